"""KTH actions as downloaded: ``[boxing/]person01_boxing_d1_uncomp.avi``; persons 1-20 train, 21-25 test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mcvd.data.hdf5 import KTH_TRAIN_PERSONS
from mcvd.data.prepare.items import Item, not_downloaded

_NAME = re.compile(r"person(\d\d)_([a-z]+)_d(\d)(_uncomp)?\.avi")


def find_kth(root: Path) -> tuple[list[Item], Counter[str]]:
    """One item per file; a group is a person. Files with other names are counted as ignored."""
    items, ignored = [], Counter[str]()
    for file in sorted(root.rglob("*")):
        match = _NAME.fullmatch(file.name)
        if match:
            name, split = file.relative_to(root).as_posix(), "train" if int(match[1]) <= KTH_TRAIN_PERSONS else "test"
            items.append(Item(name, "video", (str(file),), split=split, group=f"person{match[1]}"))
        elif file.is_file():
            ignored[file.suffix or "(none)"] += 1
    if not items:
        raise not_downloaded(root, "files like person01_boxing_d1_uncomp.avi")
    return items, ignored
