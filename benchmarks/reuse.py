"""Whether neighbouring sampling steps can share deep features: DeepCache (arXiv 2312.00858) on `digits`.

    python benchmarks/reuse.py    # the same command continues an interrupted run

Of every `period` network calls of a block the first is whole; the others run only the first level, down and up, and
reuse what came up from the deeper levels in the last whole call. For comparison: fewer whole calls with as much
arithmetic. A row is an evaluation of 5 -> 10 prediction under `smmnist-5to10` with one sample per clip; its folder is
kept in `output`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.benchmark.measure import interleave, summarise
from mcvd.benchmark.run import machine
from mcvd.evaluation.evaluate import Sampling, evaluate
from mcvd.evaluation.presets import find_protocol
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.wording import value_text
from mcvd.interop.load import load
from mcvd.model import VideoDiffusion
from mcvd.networks.blocks import Condition
from mcvd.networks.engine import ENGINES, calls_by
from mcvd.networks.unet import UNet

Engine = Callable[[UNet], Callable[..., Tensor] | None]
METRICS = "psnr", "ssim", "fvd"
HEAD = ["steps", "whole call every", "cost, whole calls a block", "PSNR, dB", "SSIM", "FVD"]


@dataclass
class Options:
    """What to run."""

    clips: int = 256
    rows: tuple[str, ...] = ("20/1", "20/2", "20/3", "13/1", "10/1")
    """Steps per block / period: one call in so many is whole."""
    batch_size: int = 32
    threads: int = 2
    output: Path = Path("runs/reuse")


class Reuse:
    """A network's calls that share deep features; an engine (:mod:`mcvd.networks.engine`)."""

    def __init__(self, network: UNet, period: int):
        self.network, self.period = network, period
        self.condition: Condition | None = None
        self.calls, self.deep = 0, torch.empty(0)

    def __call__(self, slot: int, x: Tensor, time_number: Tensor, condition: Condition) -> Tensor:
        """The output of a whole call or of the first level alone."""
        if condition is not self.condition:  # a block begins
            self.condition, self.calls = condition, 0
        self.calls += 1
        return (self.whole if (self.calls - 1) % self.period == 0 else self.shallow)(x, time_number, condition)

    def whole(self, x: Tensor, time_number: Tensor, condition: Condition) -> Tensor:
        """`UNet.forward`; keeps the features that enter the first level from below."""

        def keep(_: object, inputs: object, output: Tensor) -> None:
            self.deep = output.clone()

        hook = self.network.up[-2].resample.register_forward_hook(keep)
        try:
            return self.network(x, time_number, condition)
        finally:
            hook.remove()

    def shallow(self, x: Tensor, time_number: Tensor, condition: Condition) -> Tensor:
        """The first level alone."""
        net, down, up = self.network, self.network.down[0], self.network.up[-1]
        embedding = net.embed(time_number, condition, x.dtype)
        h = net.ops.first(net.conv_in, net.ops.fold(x), condition.share)
        skips = [h]
        for block in down.blocks:
            h = block(h, embedding, condition)
            skips.append(h)
        h = self.deep
        for block in up.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, condition)
        return net.ops.unfold(net.conv_out(F.silu(net.norm_out(h))))


def cost_of_shallow(model: VideoDiffusion, batch: int) -> float:
    """Time of a shallow call, in whole ones; first checks that a shallow call right after a whole one is equal."""
    network, g = model.network, torch.Generator().manual_seed(0)
    layout, frame = model.layout, (model.channels, *model.size)
    past, future, x = (torch.randn(batch, n, *frame, generator=g) for n in (layout.past, layout.future, layout.current))
    inputs = x, torch.tensor([500]), network.encode(past, future)
    reuse = Reuse(network, 1)
    calls = {name: partial(call, *inputs) for name, call in (("whole", reuse.whole), ("shallow", reuse.shallow))}
    with calls_by(network):
        whole = calls["whole"]()
        if not (torch.equal(whole, network(*inputs)) and torch.equal(whole, calls["shallow"]())):
            raise SystemExit("a shallow call right after a whole one differs from it on the same input")
        rounds = interleave(calls, 7, torch.device("cpu"))
    return summarise([taken["shallow"].wall / taken["whole"].wall for taken in rounds]).median


def evaluated(
    model: VideoDiffusion,
    protocol: Protocol,
    engine: Engine,
    output: Path,
    row: str,
    sampling: Sampling,
    metrics: tuple[str, ...],
) -> str:
    """Cells of a row: the model evaluated with its calls run by `engine`; `output` keeps the evaluation."""
    with patch.dict(ENGINES, torch=engine):
        result = evaluate(
            model,
            protocol,
            output / row.replace("/", "-"),
            name=f"digits, {row}",
            sampling=sampling,
            metrics=metrics,
            videos=False,
            report=lambda line: None,
        )
    return " | ".join(value_text(name, result.numbers[name]) for name in metrics)


@torch.no_grad()
def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    model = load("digits", device="cpu")
    share = cost_of_shallow(model, options.batch_size)
    print(f"{machine(model.device)['name']}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}; {options}")
    print(f"a shallow call takes {share:.0%} of the time of a whole one\n\n| {' | '.join(HEAD)} |", flush=True)
    print(f"|{'---|' * len(HEAD)}", flush=True)
    protocol = find_protocol("smmnist-5to10", ["samples=1", f"clips={options.clips}"])
    for row in options.rows:
        steps, period = map(int, row.split("/"))
        sampling = Sampling("sde-dpm++", steps, batch_size=options.batch_size)
        numbers = evaluated(model, protocol, partial(Reuse, period=period), options.output, row, sampling, METRICS)
        whole = -(-steps // period)
        cost = whole + (steps - whole) * share
        print(f"| {steps} | {period} | {cost:.1f} | {numbers} |", flush=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
