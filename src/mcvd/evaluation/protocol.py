"""A protocol: everything that the value of a metric depends on, as one small value that is printed beside it.

It says what published numbers often leave open: which frames enter FVD, how many samples per clip, whether the best or
the mean of them counts, which clips, which pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from mcvd.errors import McvdError
from mcvd.text import counted, listed

_MOST_SEED = 2**32 - 1  # the largest that numpy's legacy generator takes, which draws the published choice

Task = Literal["predict", "backward", "interpolate", "generate"]
Source = Literal["moving-mnist", "videos", "kth", "bair", "cityscapes", "ucf101"]


@dataclass(frozen=True)
class Protocol:
    """How a system is measured. Two numbers belong in one column only if their protocols are equal.

    A clip consists of `past` given frames, then `frames` to generate, then `future` given frames.
    """

    name: str
    """Name of the preset, such as `smmnist-5to10`; `+edited` is appended to an edited one."""
    data: str
    """The data set and its split in words, such as `Stochastic Moving MNIST, test digits`."""
    task: Task
    past: int
    """Given frames before the generated ones; 0 for generation."""
    frames: int
    """Frames to generate."""
    future: int = 0
    """Given frames after the generated ones (interpolation, backward prediction)."""
    source: Source = "videos"
    """Where real frames come from: `moving-mnist`: drawn on the fly; else decoded and resized as
    `mcvd data prepare --layout` does for that data set (`videos`: area averages, centre crop)."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Split that the clips come from; `all`: every video."""
    size: tuple[int, int] = (64, 64)
    """Height and width of the frames that are compared, in pixels."""
    channels: int = 3
    """Channels: 3 for RGB, 1 for grey (repeated to three for LPIPS and FVD)."""
    stride: int = 1
    """Every stride-th frame of the videos."""
    clips: int = 256
    """Number of test clips."""
    samples: int = 10
    """Videos generated per clip."""
    choice: Literal["fixed", "published"] = "fixed"
    """Which clips: `fixed`: spread evenly over the test videos and their time, never random; `published`: a random
    start in each test video, in the random order of the authors' loader, drawn with `choice_seed`."""
    choice_seed: int = 0
    """Seed of the clips, if they are synthesized or drawn at random."""
    pixels: Literal["published", "plain"] = "published"
    """`published`: generated frames are measured before rounding to 8 bits, but SSIM and LPIPS on frames as the
    authors' code sees them (`published_frames.py`); `plain`: everything is measured on 8-bit frames, as saved."""
    binary: bool = False
    """Frames are rounded to black and white before SSIM (`published` pixels, Moving MNIST)."""
    lpips_size: int | None = 128
    """Pixels per side that frames are resized to for LPIPS (`published` pixels only); None: not resized."""
    best: bool = True
    """PSNR, SSIM and LPIPS of a clip: True: of its best sample, chosen per metric; False: the mean over samples."""
    fvd: Literal["context", "made", "none"] = "context"
    """What enters FVD: `context`: given and generated frames; `made`: the generated frames only."""
    fvd_pooled: bool = True
    """The FVD that is listed first: True: of all samples of all clips, against the real clips once each; False: the
    mean of the FVDs of trajectories, one sample per clip each. Both are measured."""

    def __post_init__(self) -> None:
        counts = {"frames": self.frames, "clips": self.clips, "samples": self.samples, "stride": self.stride}
        for name, value in counts.items():
            if value < 1:
                raise McvdError(f"protocol {self.name}: {name} is {value}; it must be at least 1")
        if self.lpips_size is not None and self.lpips_size < 1:
            raise McvdError(f"protocol {self.name}: lpips_size is {self.lpips_size}; it must be at least 1, or null")
        if not 0 <= self.choice_seed <= _MOST_SEED:
            raise McvdError(
                f"protocol {self.name}: choice_seed is {self.choice_seed}; it must lie in 0 .. {_MOST_SEED}"
            )
        if self.channels not in (1, 3) or min(self.size) < 1:
            raise McvdError(
                f"protocol {self.name}: size {self.size} must be positive, channels ({self.channels}) 1 or 3"
            )
        if self.past < 0 or self.future < 0:
            raise McvdError(f"protocol {self.name}: past ({self.past}) and future ({self.future}) must be at least 0")
        seen = {"predict": (1, 0), "backward": (0, 1), "interpolate": (1, 1), "generate": (0, 0)}[self.task]
        if (self.past > 0, self.future > 0) != tuple(map(bool, seen)):
            raise McvdError(
                f"protocol {self.name}: {self.task} does not go with {self.past} past and {self.future} future frames"
            )

    @property
    def clip_frames(self) -> int:
        """Frames of a real clip. For generation, as published, that many frames are generated and compared."""
        return self.past + self.frames + self.future

    @property
    def made(self) -> slice:
        """Where the generated frames are in a clip."""
        return slice(self.past, self.past + self.frames)

    @property
    def fvd_frames(self) -> int:
        """Frames of a video that FVD sees; 0 without FVD."""
        return {"context": self.clip_frames, "made": self.frames, "none": 0}[self.fvd]

    @property
    def in_force(self) -> Protocol:
        """The same without fields of no effect: plain frames are neither resized nor rounded to black and white."""
        return self if self.pixels == "published" else replace(self, binary=False, lpips_size=None)

    @property
    def lpips_side(self) -> int:
        """The shorter side of the images that LPIPS sees, in pixels."""
        return self.in_force.lpips_size or min(self.size)

    @property
    def words(self) -> str:
        """All of it in one sentence."""
        return self.sentence({"psnr", "ssim", "lpips", "fvd"})

    def sentence(self, metrics: Collection[str]) -> str:
        """What the values of these metrics depend on, in one sentence, for a caption."""
        height, width = self.size
        made = counted(self.frames, "frame")
        given = {
            "predict": f"{made} predicted from {self.past}",
            "backward": f"{made} generated before {self.future} given ones",
            "interpolate": f"{made} between {self.past} and {self.future} given ones",
            "generate": f"{made} generated from nothing",
        }[self.task]
        parts = [
            f"{self.data} ({self.split})",
            f"{width}x{height} {'grey' if self.channels == 1 else 'RGB'}",
            given + (f", one frame in {self.stride}" if self.stride > 1 else ""),
            f"{counted(self.clips, 'clip')} ({self._clips_words}), {counted(self.samples, 'sample')} each",
        ]
        compared = [name for name in ("psnr", "ssim", "lpips") if name in metrics]
        if self.task != "generate" and compared:
            seen = "as the published code sees frames" if self.pixels == "published" else "of plain 8-bit frames"
            ssim = "SSIM (rounded to black and white)" if self.in_force.binary else "SSIM"
            size = self.in_force.lpips_size
            titles = {"psnr": "PSNR", "ssim": ssim, "lpips": f"LPIPS at {f'{size} px' if size else 'full size'}"}
            counts = ("best" if self.best else "mean") + " of the samples"
            parts.append(
                f"{listed([titles[name] for name in compared])} {seen}, "
                f"{counts if self.samples > 1 else 'of the one sample'}"
            )
        if self.fvd != "none" and ("fvd" in metrics or "kvd" in metrics):
            whole = "the given ones included" if any(self.known) else "all generated"
            frames = f"{self.fvd_frames} frames, {'generated ones only' if self.fvd == 'made' else whole}"
            pooled = ", all samples pooled" if self.fvd_pooled else ", mean over trajectories"
            distance = "FVD" if "fvd" in metrics else "KVD"
            parts.append(
                f"{distance} (I3D, Kinetics-400 logits) on {frames}"
                + (pooled if "fvd" in metrics and self.samples > 1 else "")
            )
        return "; ".join(parts) + "."

    @property
    def _clips_words(self) -> str:
        if self.choice == "published":
            return f"random starts by the authors' rule, seed {self.choice_seed}"
        return f"drawn with seed {self.choice_seed}" if self.source == "moving-mnist" else "fixed list"

    @property
    def known(self) -> tuple[bool, ...]:
        """Which frames of a clip are given."""
        return (True,) * self.past + (False,) * self.frames + (True,) * self.future
