"""What one network call sees and generates, and how past and future are hidden in training (MCVD, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.given import MOST_FRAMES


@dataclass(frozen=True)
class BlockLayout:
    """Consecutive frames of one network call, in time order: `past` seen, `current` generated, `future` seen.

    Raises McvdError when `current` < 1, another count is negative, or they add up to more than `MOST_FRAMES`.
    """

    past: int
    current: int
    future: int = 0

    def __post_init__(self) -> None:
        if self.current < 1:
            raise McvdError(f"a block makes at least 1 frame, not current={self.current}")
        if self.past < 0 or self.future < 0:
            raise McvdError(f"past={self.past} and future={self.future} count frames and cannot be negative")
        if self.frames > MOST_FRAMES:
            raise McvdError(f"a block of {self.frames} frames is longer than any video, {MOST_FRAMES} frames")

    @property
    def frames(self) -> int:
        """Frames of one training clip."""
        return self.past + self.current + self.future

    @property
    def condition_frames(self) -> int:
        """Frames of the condition: past, then future."""
        return self.past + self.future


@dataclass(frozen=True)
class Masking:
    """How past and future were hidden in training: each whole group, for each clip, with these probabilities.

    past, future: probability in [0, 1] that the group is hidden (the paper trains with 1/2).
    together: one draw for both, the published `prob_mask_sync`; needs equal probabilities above 0.
    frames: probability in [0, 1) that a single frame of a seen group is hidden, independently of the others (the
        paper: 0). A model trained this way also accepts a past or future that is partly known.
    """

    past: float = 0.0
    future: float = 0.0
    together: bool = False
    frames: float = 0.0

    def __post_init__(self) -> None:
        for name, probability in (("past", self.past), ("future", self.future)):
            if not 0.0 <= probability <= 1.0:
                raise McvdError(f"masking {name}={probability} is a probability and must be between 0 and 1")
        if not 0.0 <= self.frames < 1.0:
            raise McvdError(f"masking frames={self.frames} is a probability and must be at least 0 and below 1")
        if self.together and not self.past == self.future > 0.0:
            raise McvdError(
                f"masking past={self.past} and future={self.future} together needs two equal probabilities above 0"
            )

    def allows(self, past_seen: bool, future_seen: bool) -> bool:
        """Whether training ever showed this combination, for a layout that has both groups."""
        if self.together and past_seen != future_seen:
            return False
        return all(
            probability < 1.0 if seen else probability > 0.0
            for seen, probability in ((past_seen, self.past), (future_seen, self.future))
        )

    def combinations(self, layout: BlockLayout) -> frozenset[tuple[bool, bool]]:
        """The (past seen, future seen) pairs of training; a group that the layout lacks counts as not seen."""
        return frozenset(
            (past and layout.past > 0, future and layout.future > 0)
            for past in (False, True)
            for future in (False, True)
            if self.allows(past, future)
        )

    def tasks(self, layout: BlockLayout) -> dict[str, tuple[bool, bool]]:
        """The tasks that training showed, by name, each with its (past seen, future seen)."""
        names = {"predict": (True, False), "backward": (False, True), "interpolate": (True, True)}
        names["generate"] = (False, False)
        trained = self.combinations(layout)
        return {name: seen for name, seen in names.items() if seen in trained}

    def draw_frames(
        self, batch: int, layout: BlockLayout, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Draws which past and future frames are seen if their group is, bool (batch, p + f); None if all are."""
        if self.frames == 0.0:
            return None
        home = None if generator is None else generator.device
        shape = batch, layout.condition_frames
        return torch.rand(shape, generator=generator, device=home, dtype=torch.float32) >= self.frames

    def draw(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws (past_seen, future_seen), two bool tensors (batch,).

        uniforms: (2, batch) in [0, 1), row 0 for the past, row 1 for the future; drawn with `generator` if not given.
        The published rule is `seen = uniform > probability`, so probability 1 hides every group. Probability 0 is
        not compared at all (as published): a uniform of exactly 0 would hide a group that is always seen.
        """
        if uniforms is None:
            home = None if generator is None else generator.device
            uniforms = torch.rand(2, batch, generator=generator, device=home, dtype=torch.float32)
        if uniforms.shape != (2, batch):
            raise McvdError(f"uniforms must have shape (2, {batch}), not {tuple(uniforms.shape)}")
        past_seen = (uniforms[0] > self.past) | (self.past == 0.0)
        if self.together:
            return past_seen, past_seen
        return past_seen, (uniforms[1] > self.future) | (self.future == 0.0)


def split(video: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts training clips (B, layout.frames, C, H, W) into their past, current and future frames (views).

    Raises McvdError for another number of frames, or clips that are not float32.
    """
    if not isinstance(video, Tensor) or video.dtype != torch.float32:
        have = video.dtype if isinstance(video, Tensor) else type(video).__name__
        raise McvdError(f"training clips are a float32 tensor with values in [-1, 1], not {have}")
    if video.ndim != 5 or video.shape[1] != layout.frames:
        raise McvdError(
            f"clips of {layout.past} past, {layout.current} current and {layout.future} future frames have shape "
            f"(B, {layout.frames}, C, H, W), not {tuple(video.shape)}"
        )
    past, current, future = video.split([layout.past, layout.current, layout.future], dim=1)
    return past, current, future


def hide(frames: Tensor, seen: Tensor) -> Tensor:
    """Hides the frames (B, T, C, H, W) of each clip whose `seen` (B,), or each frame whose `seen` (B, T), is False.

    Hidden frames are all 0, mid-grey in the network's range [-1, 1]: the published code also multiplies by the flag.
    """
    return frames * seen.to(frames).reshape(*seen.shape, *[1] * (frames.ndim - seen.ndim))
