"""Which videos are for training and which are held out: whole groups of videos, never parts of one.

The draw is a hash of the group's name, so videos added later do not move others to another split; except for a single
group that was held out, or kept, only because there must be one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from mcvd.errors import McvdError

FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_PART = re.compile(r".*?\.(?:npz|tfrecords?|hdf5|h5|png)(?=#)", re.IGNORECASE)


def folder_split(name: str) -> str | None:
    """The split that a folder in a video's path names: train/, val/ or test/ (and usual spellings)."""
    for part in PurePosixPath(_file(name)).parent.parts:
        if part.lower() in FOLDERS:
            return FOLDERS[part.lower()]
    return None


def assign_splits(
    names: Sequence[str],
    split_by: str = "auto",
    *,
    test_share: float = 0.1,
    val_share: float = 0.0,
    contents: Sequence[str] | None = None,
) -> list[tuple[str, str]]:
    """(split, group) of every video; `names` are paths below the root, `file.npz#key` for arrays.

    split_by: "file": every video on its own; "folder": those of one folder (or npz file) together; a regular
    expression with a group, e.g. ``person(\\d+)``: those with the same match together. "auto": by train/, val/ and
    test/ folders if there are train and another, else "file".
    contents: a hash of each video: copies of one video are in one group, except where folders decide.
    Shares are approximate, of groups; of two or more, at least one is held out for test and one kept for training.
    Raises McvdError for an invalid expression, or one that does not match a name.
    """
    check_splitting(split_by, test_share, val_share)
    if split_by == "auto":
        said = [folder_split(name) for name in names]
        if "train" in said and {"val", "test"} & set(said):
            # videos beside these folders are used for training
            return [(split or "train", name) for split, name in zip(said, names)]
    group_of = _grouping(split_by)
    groups = [group_of(name) for name in names]
    drawn = {group: _draw(group) for group in groups}
    if contents is not None:
        of_content: dict[str, str] = {}
        for content, group in zip(contents, groups):
            # the lowest draw, so that a copy added later moves nothing out of test
            of_content[content] = min(of_content.get(content, group), group, key=lambda group: drawn[group])
        groups = [of_content[content] for content in contents]
        drawn = {group: drawn[group] for group in groups}
    splits = {
        group: "test" if draw < test_share else "val" if draw < test_share + val_share else "train"
        for group, draw in drawn.items()
    }
    if len(splits) > 1:
        # in the order of the draw, so that these too change only for a group that is drawn before (after) them
        order = sorted(drawn, key=lambda group: drawn[group])
        if test_share and "test" not in splits.values():
            splits[order[0]] = "test"
        if "train" not in splits.values():
            splits[order[-1]] = "train"
    elif splits:
        splits = dict.fromkeys(splits, "train")
    return [(splits[group], group) for group in groups]


def check_splitting(split_by: str, test_share: float, val_share: float) -> None:
    """Raises McvdError for shares, or an expression, that cannot split anything."""
    if not (min(test_share, val_share) >= 0 and test_share + val_share < 1):
        raise McvdError(
            f"test ({test_share}) and validation ({val_share}) shares must be >= 0 and less than 1 together"
        )
    _grouping(split_by)


def _grouping(split_by: str) -> Callable[[str], str]:
    if split_by in ("auto", "file"):
        return lambda name: name
    if split_by == "folder":
        return lambda name: file if (file := _file(name)) != name else PurePosixPath(name).parent.as_posix()
    try:
        pattern = re.compile(split_by)
    except re.error as error:
        raise McvdError(f"--split-by {split_by!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise McvdError(
            f"--split-by is file, folder or an expression with a group, e.g. 'person(\\d+)', not {split_by!r}"
        )

    def group(name: str) -> str:
        match = pattern.search(name)
        if match is None or match[1] is None:
            raise McvdError(f"--split-by {split_by!r} finds nothing in {name}; every video needs a group")
        return match[1]

    return group


def _file(name: str) -> str:
    """The path of the file that holds a video, which may be a part of it; # is a letter of paths, too."""
    match = _PART.match(name)
    return match[0] if match else name


def _draw(group: str) -> float:
    """Uniform in [0, 1), from the name."""
    return int.from_bytes(hashlib.sha256(group.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48
