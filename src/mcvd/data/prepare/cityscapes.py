"""Cityscapes as downloaded: leftImg8bit_sequence/{train,val,test}/CITY/CITY_000000_000012_leftImg8bit.png.

Its sequences are runs of 30 frames; only the numbers in the names say where one ends.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mcvd.data.prepare.items import Item, not_downloaded
from mcvd.data.splits import folder_split

FRAMES = 30
_NAME = re.compile(r"(.+)_(\d+)_(\d+)_leftImg8bit\.png")


def find_cityscapes(root: Path) -> tuple[list[Item], Counter[str]]:
    """Sorted frames in runs of 30 with consecutive numbers; a group is a city.

    In a complete download, these are every 30 sorted files, as published. A run that is too short (a missing file) is
    an item with a problem, and shifts no other run.
    """
    found, ignored = [], Counter[str]()
    for file in root.rglob("*"):
        match = _NAME.fullmatch(file.name)
        if match:
            found.append((file.parent, match[1], int(match[2]), int(match[3]), file))
        elif file.is_file():
            ignored[file.suffix or "(none)"] += 1
    if not found:
        raise not_downloaded(root, "files like aachen_000000_000000_leftImg8bit.png")
    found.sort()
    items: list[Item] = []
    run: list[Path] = []
    previous = None
    for folder, city, sequence, frame, file in found:
        here = (folder, city, sequence, frame)
        if run and (previous != (folder, city, sequence, frame - 1) or len(run) == FRAMES):
            items.append(_item(run, root))
            run = []
        run.append(file)
        previous = here
    items.append(_item(run, root))
    return items, ignored


def _item(run: list[Path], root: Path) -> Item:
    first = run[0].relative_to(root).as_posix()
    match = _NAME.fullmatch(run[0].name)
    problem = "" if len(run) == FRAMES else f"{first} begins a run of {len(run)} frames, not {FRAMES}: some are missing"
    return Item(
        f"{first}#{len(run)}",
        "images",
        tuple(map(str, run)),
        split=folder_split(first) or "",
        group=match[1] if match else "",
        problem=problem,
    )
