"""Runs a plan: block after block, with one denoiser and one solver, for every sample of every clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mcvd.diffusion.gaussian import add_noise
from mcvd.diffusion.sampling import sample
from mcvd.diffusion.solvers import Table
from mcvd.errors import McvdError
from mcvd.planner import Block

if TYPE_CHECKING:
    from mcvd.model import VideoDiffusion

Progress = Callable[[int, int], None]
Noise = Callable[[list[tuple[int, int]], tuple[int, ...]], Tensor]
"""(trajectories, shape of one) -> fresh N(0, I) noise ``(len(trajectories), *shape)``."""


class SeededNoise:
    """Noise for each trajectory (clip, sample) from its own generator, so that batching changes nothing."""

    def __init__(self, seed: int, device: torch.device):
        self.seed, self.device = seed, device
        self.generators: dict[tuple[int, int], torch.Generator] = {}

    def __call__(self, trajectories: list[tuple[int, int]], shape: tuple[int, ...]) -> Tensor:
        noise = torch.empty(len(trajectories), *shape, device=self.device, dtype=torch.float32)
        for row, trajectory in zip(noise, trajectories):
            row.normal_(generator=self._generator(trajectory))
        return noise

    def _generator(self, trajectory: tuple[int, int]) -> torch.Generator:
        if trajectory not in self.generators:
            state = np.random.SeedSequence([self.seed, *trajectory]).generate_state(1, np.uint64)
            self.generators[trajectory] = torch.Generator(self.device).manual_seed(int(state[0] >> np.uint64(1)))
        return self.generators[trajectory]


@torch.no_grad()  # not inference_mode, whose tensors cannot be written to afterwards
def rollout(
    model: VideoDiffusion,
    video: Tensor,
    known: Sequence[bool],
    blocks: Sequence[Block],
    table: Table,
    *,
    samples: int,
    seed: int = 0,
    guidance: float = 1.0,
    batch_size: int = 32,
    first_clip: int = 0,
    clip_made: bool = True,
    guided: bool = True,
    tell_hidden: bool = True,
    context_noise: float = 0.0,
    noise: Noise | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Fills in the frames of video ``(B, T, C, H, W)`` in [0, 1] that are not known -> ``(B * samples, T, C, H, W)``.

    Given frames are returned bit-identical. noise: where noise comes from (None: :class:`SeededNoise` of `seed`).
    first_clip: number of the first clip; each trajectory (clip number, sample) has its own noise.
    clip_made: clamp generated frames to the range of a video before later blocks read them (the published code does
    not).
    guided: the model's guide acts.
    tell_hidden: tell a network with `mask_embedding` when the past is hidden (the published samplers do not).
    context_noise: standard deviation of the noise added to a block's past and future if any of these frames were
    generated. The given ones among them get it too: the network is told one level for all, as in training.

    Raises McvdError if the model generates non-finite values.
    """
    noise = SeededNoise(seed, video.device) if noise is None else noise
    trajectories = [(first_clip + clip, i) for clip in range(len(video)) for i in range(samples)]
    chunks = [trajectories[i : i + batch_size] for i in range(0, len(trajectories), batch_size)]
    done, total = 0, len(chunks) * len(blocks) * len(table.rows)
    given = torch.tensor([bool(k) for k in known], device=video.device)
    out = []
    for chunk in chunks:
        clips = torch.tensor([clip - first_clip for clip, _ in chunk], device=video.device)
        frames = video[clips] * 2 - 1
        for block in blocks:

            def step(row: int, state: Tensor, before: int = done) -> None:
                if progress is not None:
                    progress(before + row + 1, total)

            seen = [i for i in (*block.past, *block.future) if i is not None]
            shared = all(known[i] for i in seen)
            made = _run_block(
                model,
                frames,
                block,
                table,
                chunk,
                noise,
                clips=clips if shared else None,
                past_seen=block.past_seen or not tell_hidden,
                guidance=guidance,
                sigma=0.0 if shared else context_noise,
                guided=guided,
                on_step=step,
            )
            keep = [i for i, makes in enumerate(block.made) if makes]
            frames[:, [block.current[i] for i in keep]] = made[:, keep].clamp(-1, 1) if clip_made else made[:, keep]
            done += len(table.rows)
        if not frames.isfinite().all():
            raise McvdError(
                "the model generated non-finite values: its weights are damaged, its training diverged, or half "
                "precision is too narrow for it (choose precision fp32)"
            )
        out.append(torch.where(given.view(-1, 1, 1, 1), video[clips], ((frames + 1) / 2).clamp(0, 1)))
    return torch.cat(out)


def _run_block(
    model: VideoDiffusion,
    frames: Tensor,
    block: Block,
    table: Table,
    chunk: list[tuple[int, int]],
    noise: Noise,
    *,
    clips: Tensor | None,
    past_seen: bool,
    guidance: float,
    sigma: float,
    guided: bool,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Samples the current frames of one block -> ``(B, k, C, H, W)`` in [-1, 1].

    chunk: the trajectories, as `noise` takes them.
    clips: which clip each trajectory belongs to, if the block sees only given frames: then the condition is encoded
    once per clip. None: every trajectory has its own condition. past_seen: what the network is told about the past.
    sigma: standard deviation of the noise added to the condition. guided: the model's guide acts.
    """
    if clips is None:
        rows = torch.arange(len(frames), device=frames.device)
        sources = frames
    else:
        _, first, inverse = np.unique(clips.cpu().numpy(), return_index=True, return_inverse=True)
        rows = torch.as_tensor(inverse, device=frames.device)
        sources = frames[torch.as_tensor(first, device=frames.device)]
    past, future = _gather(sources, block.past), _gather(sources, block.future)
    told = torch.full((len(sources),), past_seen, device=frames.device)
    condition_shape = (past.shape[1] + future.shape[1], *frames.shape[2:])
    if sigma:  # then every trajectory has its own row
        seen = torch.tensor([i is not None for i in (*block.past, *block.future)], device=frames.device)
        kept = torch.tensor(1 - sigma**2, device=frames.device, dtype=frames.dtype)
        noisy = add_noise(torch.cat([past, future], 1), noise(chunk, condition_shape), kept)
        past, future = (noisy * seen.view(-1, 1, 1, 1)).split([past.shape[1], future.shape[1]], 1)
    denoise = model.denoiser(past, future, told, rows, guidance, lambda: noise(chunk, condition_shape), sigma, guided)

    imposed = [i for i, known in enumerate(block.imposed) if known]
    if imposed:
        # frames of the block that are known already: they replace the network's output
        truth = frames[:, [block.current[i] for i in imposed]]
        places = torch.tensor(imposed, device=frames.device)  # once: with a list, every step would wait for the GPU
        network = denoise

        def denoise(x: Tensor, t: int, alpha_bar: float) -> Tensor:
            return network(x, t, alpha_bar).index_copy_(1, places, truth)

    shape = (len(block.current), *frames.shape[2:])
    return sample(denoise, table, noise(chunk, shape), lambda: noise(chunk, shape), on_step=on_step)


def _gather(frames: Tensor, indices: Sequence[int | None]) -> Tensor:
    """The frames at these indices; hidden ones (None) are 0."""
    picked = frames.new_zeros(len(frames), len(indices), *frames.shape[2:])
    for place, index in enumerate(indices):
        if index is not None:
            picked[:, place] = frames[:, index]
    return picked
