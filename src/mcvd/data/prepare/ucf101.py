"""UCF-101 as downloaded: CLASS/v_CLASS_g01_c01.avi, with trainlist03.txt and testlist03.txt below the root."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mcvd.data.hdf5 import ucf_test_positions
from mcvd.data.prepare.items import Item, not_downloaded
from mcvd.errors import McvdError

SPLIT_LIST = "03"
_NAME = re.compile(r"v_(\w+)_g(\d+)_c(\d+)\.avi")


def find_ucf101(root: Path) -> tuple[list[Item], Counter[str]]:
    """One item per video, with the split of list 3 (9624 and 3696 videos; every tenth of the latter is for test, as
    published); a group is the clips of one film.

    A video in neither list, or a listed one that is missing, is an item with a problem.
    """
    listed = {split: _read(root, f"{split}list{SPLIT_LIST}.txt") for split in ("train", "test")}
    tests = ucf_test_positions(len(listed["test"]))
    splits = {
        line.split()[0].rpartition("/")[2]: split if split == "train" or position in tests else "unused"
        for split, lines in listed.items()
        for position, line in enumerate(lines)
    }
    items, ignored = [], Counter[str]()
    for file in sorted(root.rglob("*")):
        match = _NAME.fullmatch(file.name)
        if match:
            split = splits.pop(file.name, "")
            problem = "" if split else f"{file.name} is in neither list {SPLIT_LIST}"
            name, group = file.relative_to(root).as_posix(), f"{match[1]}_g{match[2]}"
            items.append(Item(name, "video", (str(file),), split=split, group=group, problem=problem))
        elif file.is_file() and not file.name.endswith(".txt"):
            ignored[file.suffix or "(none)"] += 1
    if not items:
        raise not_downloaded(root, "files like v_Archery_g01_c01.avi")
    items += [Item(name, "video", (), split=split, problem=f"{name} is in list {SPLIT_LIST} but not there")
              for name, split in splits.items()]  # fmt: skip
    return sorted(items, key=lambda item: item.name), ignored


def _read(root: Path, name: str) -> list[str]:
    found = sorted(root.rglob(name))
    if not found:
        raise McvdError(f"{root} has no {name}: unpack UCF101TrainTestSplits-RecognitionTask.zip there too")
    return [line for line in found[0].read_text().splitlines() if line.strip()]
