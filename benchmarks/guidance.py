"""What guidance changes with `digits`: by its guide, or by the same network with everything hidden.

    python benchmarks/guidance.py                                    # the same command continues an interrupted run
    python benchmarks/guidance.py --protocol smmnist-generate-15 --rows none/1/0 guide/1.5/0.95 guide/2/0.95

A row is kind/scale/noise: weaker + scale (x0 - weaker) at noise levels sqrt(1 - alpha_bar) of at least `noise`. Kinds:
`none`; `guide`, the model's guide (autoguidance, arXiv 2406.02507); `hidden`, the same network that sees nothing
(classifier-free guidance, in an interval: arXiv 2404.07724). The metrics are those of `protocol`, with one sample per
clip. Of what is generated from nothing, "no digit" is measured, too: the share of a frame's energy that remains after
the best fit by two of 1,500 training digits, at half the resolution, in the first and the last frame of `clips` blocks;
strokes that form no digit leave more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.benchmark.run import machine
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.data.sheet import contact_sheet
from mcvd.diffusion.sampling import Denoiser
from mcvd.evaluation.evaluate import Sampling
from mcvd.evaluation.presets import find_protocol
from mcvd.guide import GuideConfig
from mcvd.interop.load import load
from mcvd.model import VideoDiffusion
from mcvd.networks.engine import ENGINES
from reuse import evaluated


@dataclass
class Options:
    """What to run."""

    clips: int = 128
    rows: tuple[str, ...] = ("none/1/0", "guide/1.5/0.95", "hidden/1.5/0.95")
    """Kind / scale / least standard deviation of the noise."""
    protocol: str = "smmnist-5to10"
    model: str = "digits"
    batch_size: int = 32
    threads: int = 2
    precision: str = "bf16"
    steps: int = 20
    """Network calls per block."""
    evaluate: bool = True
    """Measure the metrics: some minutes a row."""
    output: Path = Path("runs/guidance")


class Hidden(VideoDiffusion):
    """A model guided by itself with everything hidden."""

    rule: GuideConfig

    def denoiser(self, past: Tensor, future: Tensor, past_seen: Tensor, rows: Tensor, *_: object) -> Denoiser:
        """As the model's, without its options."""
        plain = super().denoiser(past, future, past_seen, rows)
        hidden = super().denoiser(past * 0, future * 0, past_seen & False, rows)

        def denoise(x: Tensor, t: int, alpha_bar: float) -> Tensor:
            out = plain(x, t, alpha_bar)
            return torch.lerp(hidden(x, t, alpha_bar), out, self.rule.scale) if self.rule.acts(alpha_bar) else out

        return denoise


def with_rule(model: VideoDiffusion, kind: str, rule: GuideConfig) -> VideoDiffusion:
    """The model with other guidance; the weights are shared."""
    out = (Hidden if kind == "hidden" else VideoDiffusion)(replace(model.config, guide=None))
    out.network = model.network
    if kind == "guide":
        out.config, out.guide = replace(model.config, guide=rule), model.guide
    elif isinstance(out, Hidden):
        out.rule = rule
    elif kind != "none":
        raise SystemExit(f"no kind of guidance {kind}; it is none, guide or hidden")
    return out.eval()


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


@torch.no_grad()
def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    base = load(options.model, device="cpu")
    if base.config.guide is None:
        raise SystemExit(f"{options.model} has no guide; mcvd guide makes a model that has one")
    print(f"{machine(base.device)['name']}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; {options}\n")
    protocol = find_protocol(options.protocol, ["samples=1", f"clips={options.clips}"])
    sampling = Sampling("sde-dpm++", options.steps, batch_size=options.batch_size, precision=options.precision)
    options.output.mkdir(parents=True, exist_ok=True)
    blind = protocol.task == "generate"
    metrics: tuple[str, ...] = ("fvd", "kvd") if blind else ("psnr", "ssim", "fvd", "kvd")
    metrics = metrics if options.evaluate else ()
    head = ["guidance", "scale", "noise from", *(["no digit", "ink"] if blind else []), *metrics]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    if blind:
        some = F.avg_pool2d(load_digits(find_mnist(), "train", 1500).float()[:, None] / 255, 2)[:, 0]
        real = MovingMNIST(load_digits(find_mnist(), "test", 2 * options.clips), base.layout.current)
        shape = _shape(real.batch(range(options.clips)).float() / 255, some)
        print(f"| real test clips | | | {shape} |{' |' * len(metrics)}", flush=True)
    for row in options.rows:
        kind, scale, noise = row.split("/")
        model = with_rule(base, kind, replace(base.config.guide, scale=float(scale), noise=float(noise)))
        cells = [kind, scale, noise]
        if blind:
            made = model.generate(
                base.layout.current,
                samples=options.clips,
                solver=sampling.solver,
                steps=sampling.steps,
                batch_size=options.batch_size,
                precision=options.precision,
            )
            sheet = contact_sheet([("", clip) for clip in made[:24]], scale=1)
            sheet.save(options.output / f"{row.replace('/', '-')}.png")
            cells.append(_shape(made, some))
        if metrics:
            folder = options.output / protocol.name
            cells.append(evaluated(model, protocol, ENGINES["torch"], folder, row, sampling, metrics))
        print(f"| {' | '.join(cells)} |", flush=True)


def _shape(clips: Tensor, digits: Tensor) -> str:
    """Cells of what is measured of clips ``(n, T, 1, 64, 64)`` in [0, 1]: no digit, mean brightness."""
    left = no_digit(torch.cat([clips[:, 0, 0], clips[:, -1, 0]]), digits)
    return f"{left.mean():.3f} ± {1.96 * left.std() / len(left) ** 0.5:.3f} | {clips.mean():.4f}"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
