"""How the frames of a video are converted when it is prepared, and how the videos are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, get_args, get_type_hints

from mcvd.config import to_dict
from mcvd.data.splits import check_splitting
from mcvd.errors import McvdError
from mcvd.given import MOST_FPS, finite, whole

Layout = Literal["videos", "kth", "bair", "cityscapes", "ucf101"]
SPLITTING = ("split_by", "test_share", "val_share")  # these can change later without decoding anything again


@dataclass(frozen=True)
class Settings:
    """Every choice that a prepared data set depends on, besides its sources."""

    size: tuple[int, int] = (64, 64)
    """(height, width) of the stored frames, in pixels."""
    channels: int = 3
    """3: RGB; 1: grey."""
    fit: Literal["crop", "stretch"] = "crop"
    """`crop`: the middle of the picture at its displayed proportions; `stretch`: all of it, squeezed."""
    resample: Literal["area", "bilinear", "lanczos"] = "area"
    """How frames are made smaller: `area` averages (enlarging is bicubic); the others are those of published data sets:
    `bilinear` reads 2x2 pixels, whatever the factor, as OpenCV does; `lanczos` is Pillow's."""
    fps: float | None = None
    """Frames per second to store, by time (frames are left out or repeated); None: all frames as they are."""
    min_frames: int = 2
    """Videos with fewer stored frames are left out, and named."""
    layout: Layout = "videos"
    """`videos`: any videos; the others: the raw download of that data set."""
    split_by: str = "auto"
    """`auto`, `file`, `folder` or a regular expression with a group: see `mcvd.data.splits.assign_splits`. Data sets
    with a published split keep it."""
    test_share: float = 0.1
    """Share of the groups that is held out for test."""
    val_share: float = 0.0
    """Share of the groups that is held out for validation."""

    def __post_init__(self) -> None:
        hints = get_type_hints(Settings)
        for name in ("fit", "resample", "layout"):
            if getattr(self, name) not in (known := get_args(hints[name])):
                raise McvdError(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        if not isinstance(self.size, Sequence) or len(self.size) != 2:
            raise McvdError(f"size is {self.size!r}; it is (height, width) in pixels")
        for side in self.size:
            whole("size", side, 1)
        if whole("channels", self.channels, 1) not in (1, 3):
            raise McvdError(f"channels is {self.channels}; it must be 1 (grey) or 3 (RGB)")
        if self.fps is not None and not (isinstance(self.fps, Real) and 0 < self.fps <= MOST_FPS):
            raise McvdError(f"fps is {self.fps!r}; it must be above 0 and at most {MOST_FPS}")
        if isinstance(self.fps, Fraction):  # such as 30000/1001, which cannot be written as JSON
            object.__setattr__(self, "fps", float(self.fps))
        whole("min_frames", self.min_frames, 1)
        shares = finite("test_share", self.test_share), finite("val_share", self.val_share)
        check_splitting(self.split_by, *shares)

    def decoding(self) -> dict[str, Any]:
        """The settings that stored frames depend on, as JSON."""
        return {key: value for key, value in to_dict(self).items() if key not in SPLITTING}


PRESETS = {
    "videos": Settings(),
    "kth": Settings((64, 64), 1, "stretch", "bilinear", layout="kth"),
    "bair": Settings((64, 64), 3, layout="bair"),
    "cityscapes": Settings((128, 128), 3, "crop", "lanczos", layout="cityscapes"),
    # 85 wide: clips are cut out of it 64 wide, at random places in training and in the middle for test
    "ucf101": Settings((64, 85), 3, "stretch", "lanczos", layout="ucf101"),
}
"""Settings of the published data sets."""


def settings_for(layout: str, size: tuple[int, int], channels: int, **chosen: Any) -> Settings:
    """The settings of a data set for clips of (height, width) = `size` with these channels; settings that are None in
    `chosen` are as published. Frames of UCF-101 are stored wider, so that clips can be cut out of them."""
    if layout == "ucf101":
        size = size[0], round(size[1] * 85 / 64)
    said = {name: value for name, value in chosen.items() if value is not None}
    return replace(PRESETS[layout], size=size, channels=channels, **said)
