"""A protocol: everything that the value of a metric depends on, as one small value that is printed beside it.

Half of all disputes about numbers in this field are about what is written here: which frames enter FVD, how many
samples a clip, whether the best or the mean of them counts, which clips, which pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcvd.errors import McvdError

Task = Literal["predict", "backward", "interpolate", "generate"]


@dataclass(frozen=True)
class Protocol:
    """How a system is measured. Two numbers may stand in one column only if their protocols are equal.

    A clip is `past` real frames, then `frames` that are made, then `future` real frames.
    """

    name: str
    """Of the preset, such as `smmnist-5to10`; an edited preset gets `+edited`."""
    data: str
    """The data set and its split in words, such as `Stochastic Moving MNIST, test digits`."""
    task: Task
    past: int
    """Real frames before those that are made; 0 for generation."""
    frames: int
    """Frames that are made."""
    future: int = 0
    """Real frames after those that are made (interpolation, backward prediction)."""
    size: tuple[int, int] = (64, 64)
    """Height and width of the frames that are compared, in pixels."""
    stride: int = 1
    """Every stride-th frame of the videos."""
    clips: int = 256
    """Test clips."""
    samples: int = 10
    """Videos that are made for each clip."""
    choice: Literal["fixed", "published"] = "fixed"
    """Which clips: `fixed`: spread evenly over the test videos and their time, never random; `published`: a random
    start in each test video, in the random order of the authors' loader, by `choice_seed`."""
    choice_seed: int = 0
    """Seed of the clips, where they are made or drawn at random."""
    pixels: Literal["published", "plain"] = "published"
    """SSIM and LPIPS of frames as the authors' code sees them (`published_frames.py`), or of the frames as they are."""
    binary: bool = False
    """Frames are rounded to black and white before SSIM and LPIPS (published, Moving MNIST)."""
    lpips_size: int | None = 128
    """Side that frames are resized to for LPIPS (`published` pixels); None leaves them."""
    best: bool = True
    """PSNR, SSIM and LPIPS of a clip: of its best sample by each metric, or the mean over samples."""
    fvd: Literal["context", "made", "none"] = "context"
    """What enters FVD: the given real frames together with the made ones, or the made frames alone."""
    fvd_pooled: bool = True
    """FVD of all samples of all clips against the real clips once each; False: mean of the FVDs of trajectories, each
    one sample a clip."""

    def __post_init__(self) -> None:
        counts = {"frames": self.frames, "clips": self.clips, "samples": self.samples, "stride": self.stride}
        for name, value in counts.items():
            if value < 1:
                raise McvdError(f"protocol {self.name}: {name} is {value}; it must be at least 1")
        if self.past < 0 or self.future < 0:
            raise McvdError(f"protocol {self.name}: past {self.past} and future {self.future} count frames")
        seen = {"predict": (1, 0), "backward": (0, 1), "interpolate": (1, 1), "generate": (0, 0)}[self.task]
        if (self.past > 0, self.future > 0) != tuple(map(bool, seen)):
            raise McvdError(
                f"protocol {self.name}: {self.task} from {self.past} past, {self.future} future frames cannot be"
            )

    @property
    def clip_frames(self) -> int:
        """Frames of a real clip. For generation, as published, that many frames are made and compared."""
        return self.past + self.frames + self.future

    @property
    def known(self) -> tuple[bool, ...]:
        """Which frames of a clip are given."""
        return (True,) * self.past + (False,) * self.frames + (True,) * self.future
