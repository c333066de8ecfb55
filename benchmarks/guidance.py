"""Whether guidance improves unconditional generation with `digits`: by a weaker model, or by its own attention.

    python benchmarks/guidance.py                 # the same command continues an interrupted run

A row is kind/scale/noise: weaker + scale (output - weaker) at noise levels sqrt(1 - alpha_bar) of at least `noise`, in
blocks that see nothing. Kinds: `none`; `guide`, the model's guide (autoguidance, arXiv 2406.02507); `attention`, the
same network with every attention map replaced by the identity (arXiv 2403.17377). FVD and KVD are those of
`smmnist-generate-15`, one sample per clip. "no digit" is the share of a frame's energy that remains after the best fit
by two of 1,500 training digits, at half the resolution: strokes that form no digit leave more. It is of the first and
the last frame of `clips` blocks, and of as many real test clips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.benchmark.run import machine
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.data.sheet import contact_sheet
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.evaluation.evaluate import Sampling
from mcvd.evaluation.presets import find_protocol
from mcvd.guide import GuideConfig
from mcvd.interop.load import load
from mcvd.model import VideoDiffusion
from mcvd.networks.blocks import Condition
from mcvd.networks.engine import ENGINES
from mcvd.networks.unet import UNet
from reuse import evaluated

METRICS = "fvd", "kvd"


@dataclass
class Options:
    """What to run."""

    clips: int = 128
    rows: tuple[str, ...] = ("none/1/0", "guide/2/0.95", "guide/1.5/0.95", "attention/3/0.95")
    """Kind / scale / least standard deviation of the noise."""
    model: str = "digits"
    batch_size: int = 32
    threads: int = 2
    precision: str = "bf16"
    fvd: bool = True
    """Evaluate too: some minutes a row."""
    output: Path = Path("runs/guidance")


@dataclass
class ByAttention:
    """A network's calls, guided by itself without attention; an engine (:mod:`mcvd.networks.engine`)."""

    network: UNet
    schedule: NoiseSchedule
    rule: GuideConfig

    def __call__(self, slot: int, x: Tensor, time_number: Tensor, condition: Condition) -> Tensor:
        """The output, guided where the row says so."""
        out = self.network(x, time_number, condition)
        sees = condition.share is not None and bool(condition.share.any())
        if sees or not self.rule.acts(float(self.schedule.at(time_number, x).flatten()[0])):
            return out
        with patch.object(F, "scaled_dot_product_attention", lambda q, k, v: v):
            perturbed = self.network(x, time_number, condition)
        return torch.lerp(perturbed, out, self.rule.scale)


def best_digits(frames: Tensor, digits: Tensor) -> Tensor:
    """For each frame ``(n, S, S)``, the digit ``(m, s, s)`` at the place with the least squared error: (n, S, S)."""
    side, small = frames.shape[-1], digits.shape[-1]
    energy, places = digits.square().sum((1, 2)), side - small + 1
    spectrum = torch.fft.rfft2(frames)
    gain, chosen, place = (torch.zeros(len(frames), dtype=kind) for kind in (torch.float32, torch.long, torch.long))
    for start in range(0, len(digits), 50):
        part = slice(start, start + 50)
        kernels = torch.fft.rfft2(digits[part], (side, side)).conj()
        # correlations at places where the digit lies within the frame, none of which wraps around
        found = torch.fft.irfft2(spectrum[:, None] * kernels, (side, side))[..., :places, :places]
        found = (2 * found.flatten(2) - energy[part, None]).flatten(1)
        value, index = found.max(1)
        better = value > gain
        gain = torch.where(better, value, gain)
        chosen = torch.where(better, start + index // places**2, chosen)
        place = torch.where(better, index % places**2, place)
    drawn = torch.zeros_like(frames)
    for frame, fits, digit, at in zip(drawn, gain > 0, chosen, place):
        y, x = divmod(int(at), places)
        frame[y : y + small, x : x + small] = digits[digit] * fits
    return drawn


def no_digit(frames: Tensor, digits: Tensor) -> Tensor:
    """The share of each frame's energy that two digits cannot explain; frames ``(n, 64, 64)`` in [0, 1]."""
    frames = F.avg_pool2d(frames[:, None], 2)[:, 0]
    first = best_digits(frames, digits)
    second = best_digits((frames - first).clamp(0), digits)
    first = best_digits(torch.where(second > frames, 0, frames - second).clamp(0), digits)
    rest = frames - torch.maximum(first, second)
    return rest.square().sum((1, 2)) / frames.square().sum((1, 2)).clamp(min=1)


def with_rule(model: VideoDiffusion, rule: GuideConfig | None) -> VideoDiffusion:
    """The model with its guide at another scale, or without it; the weights are shared."""
    out = VideoDiffusion(replace(model.config, guide=rule))
    out.network, out.guide = model.network, model.guide if rule else None
    return out.eval()


@torch.no_grad()
def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    base = load(options.model, device="cpu")
    if base.config.guide is None:
        raise SystemExit(f"{options.model} has no guide; mcvd guide makes a model that has one")
    print(f"{machine(base.device)['name']}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; {options}\n")
    digits = load_digits(find_mnist(), "train", 1500).float()[:, None] / 255
    share = partial(no_digit, digits=F.avg_pool2d(digits, 2)[:, 0])
    real = MovingMNIST(load_digits(find_mnist(), "test", 2 * options.clips), base.layout.current).batch(
        range(options.clips)
    )
    print("| guidance | scale | noise from | no digit | ink | FVD | KVD |\n|---|---|---|---|---|---|---|", flush=True)
    print(_cells("real test clips | | ", real.float() / 255, share) + " | |", flush=True)
    protocol = find_protocol("smmnist-generate-15", ["samples=1", f"clips={options.clips}"])
    sampling = Sampling("sde-dpm++", 20, batch_size=options.batch_size, precision=options.precision)
    options.output.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        kind, scale, noise = row.split("/")
        rule = replace(base.config.guide, scale=float(scale), noise=float(noise))
        model = with_rule(base, rule if kind == "guide" else None)
        by_attention = partial(ByAttention, schedule=base.config.schedule, rule=rule)
        engine = by_attention if kind == "attention" else ENGINES["torch"]
        with patch.dict(ENGINES, torch=engine):
            made = model.generate(
                base.layout.current,
                samples=options.clips,
                solver=sampling.solver,
                steps=sampling.steps,
                batch_size=options.batch_size,
                precision=options.precision,
            )
        rows = [("", clip) for clip in made[:24]]
        contact_sheet(rows, scale=1).save(options.output / f"{row.replace('/', '-')}.png")
        numbers = " | "
        if options.fvd:
            numbers = evaluated(model, protocol, engine, options.output, row, sampling, METRICS)
        print(f"{_cells(f'{kind} | {scale} | {noise}', made, share)} | {numbers} |", flush=True)


def _cells(name: str, clips: Tensor, share: partial[Tensor]) -> str:
    """What is measured of clips ``(n, T, 1, 64, 64)`` in [0, 1]: no digit, mean brightness."""
    left = share(torch.cat([clips[:, 0, 0], clips[:, -1, 0]]))
    return f"| {name} | {left.mean():.3f} ± {1.96 * left.std() / len(left) ** 0.5:.3f} | {clips.mean():.4f}"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
