"""Whether perturbed-attention guidance (arXiv 2403.17377) improves unconditional generation with `digits`.

    python benchmarks/attention_guidance.py    # the same command continues an interrupted run

Without given frames there is no condition to guide by. This guidance pushes away from the same network with every
attention map replaced by the identity: out + (scale - 1) (out - perturbed), at noise levels up to `noisiest` (guidance
in an interval, arXiv 2404.07724), in all blocks or in those that see no frames. A row is an evaluation
under `smmnist-generate-15` with one sample per clip; its folder is kept in `output`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.benchmark.run import machine
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.evaluation.evaluate import Sampling
from mcvd.evaluation.presets import find_protocol
from mcvd.interop.load import load
from mcvd.networks.blocks import Condition
from mcvd.networks.unet import UNet
from reuse import evaluated

METRICS = "fvd", "kvd"


@dataclass
class Options:
    """What to run."""

    clips: int = 128
    rows: tuple[str, ...] = ("1/1/all", "2/0.9/all", "2/0.9/first")
    """Scale / largest standard deviation of the noise / blocks: all, or the first, which sees no frames."""
    batch_size: int = 32
    threads: int = 2
    output: Path = Path("runs/attention-guidance")


@dataclass
class Guided:
    """A network's guided calls; an engine (:mod:`mcvd.networks.engine`)."""

    network: UNet
    schedule: NoiseSchedule
    scale: float
    noisiest: float
    blocks: str

    def __call__(self, slot: int, x: Tensor, time_number: Tensor, condition: Condition) -> Tensor:
        """The output, guided where the row says so."""
        out = self.network(x, time_number, condition)
        sees = condition.share is not None and bool(condition.share.any())
        too_noisy = float((1 - self.schedule.at(time_number, x).flatten()[0]).sqrt()) > self.noisiest
        if self.scale == 1 or too_noisy or (sees and self.blocks == "first"):
            return out
        with patch.object(F, "scaled_dot_product_attention", lambda q, k, v: v):
            perturbed = self.network(x, time_number, condition)
        return torch.lerp(perturbed, out, self.scale)


@torch.no_grad()
def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    model = load("digits", device="cpu")
    print(f"{machine(model.device)['name']}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; {options}\n")
    print("| scale | noise up to | blocks | FVD | KVD |\n|---|---|---|---|---|", flush=True)
    protocol = find_protocol("smmnist-generate-15", ["samples=1", f"clips={options.clips}"])
    sampling = Sampling("sde-dpm++", 20, batch_size=options.batch_size)
    for row in options.rows:
        scale, noisiest, blocks = row.split("/")
        guided = partial(
            Guided, schedule=model.config.schedule, scale=float(scale), noisiest=float(noisiest), blocks=blocks
        )
        numbers = evaluated(model, protocol, guided, options.output, row, sampling, METRICS)
        print(f"| {scale} | {noisiest} | {blocks} | {numbers} |", flush=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
