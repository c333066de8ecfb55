"""Convolutions of a paper network while sampling on a CPU, direct and by Winograd: python benchmarks/convolutions.py

For each batch: a network call under `packed_convolutions`, against one with direct convolutions only and one with
weights packed for one image, in interleaved pairs, with the largest difference of the outputs; then each kind of 3x3
layer that goes through Winograd, on its own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mcvd.benchmark.cases import random_weights
from mcvd.benchmark.measure import interleave
from mcvd.interop.official import from_official
from mcvd.model import VideoDiffusion
from mcvd.networks import winograd
from mcvd.networks.convolution import SAMPLING, Conv2d, packed_convolutions
from mcvd.training.recipe import read_recipe


def only_direct(network: nn.Module) -> nn.Module:
    """A copy that never uses Winograd."""
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, Conv2d):
            part._suits_winograd = lambda x, channels: False  # type: ignore[method-assign]
    return network


def packed_for_one(network: nn.Module) -> nn.Module:
    """A copy whose direct convolutions keep weights in oneDNN's layout for one image."""
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, Conv2d):
            part._directly = lambda x, own=part: Conv2d._directly(own, x[:1])  # type: ignore[method-assign,misc]
    return network


def compare(name: str, calls: dict[str, Callable[[], Tensor]], rounds: int) -> None:
    """Prints one line about two calls, by name: how much faster the second is."""
    (slow, slow_call), (fast, fast_call) = calls.items()
    difference = (slow_call() - fast_call()).abs().max()
    taken = interleave(calls, rounds, torch.device("cpu"))
    before, after = ([times[which].wall for times in taken] for which in calls)
    ratio = statistics.median(a / b for a, b in zip(before, after))
    print(
        f"{name}: {slow} {1e3 * min(before):.2f} ms, {fast} {1e3 * min(after):.2f} ms, {ratio:.2f} times as fast "
        f"(median of {rounds} pairs; {min(before) / min(after):.2f} of least), outputs differ by {difference:.1e}",
        flush=True,
    )


def layers_of(network: nn.Module, call: Callable[[], Tensor]) -> dict[str, tuple[Conv2d, Tensor]]:
    """One layer of each kind that uses Winograd in this call, with its input."""
    found: dict[str, tuple[Conv2d, Tensor]] = {}

    def note(part: nn.Module, given: tuple[Tensor], _: Tensor) -> None:
        assert isinstance(part, Conv2d)
        height, width = given[0].shape[-2:]
        if part._suits_winograd(given[0], SAMPLING):
            found[f"{part.in_channels} to {part.out_channels} channels, {height}x{width}"] = part, given[0]

    hooks = [part.register_forward_hook(note) for part in network.modules() if isinstance(part, Conv2d)]
    call()
    for hook in hooks:
        hook.remove()
    return found


def measure(network: nn.Module, past: Tensor, future: Tensor, x: Tensor, rounds: int) -> None:
    """Prints the lines of one batch."""
    others, time_number = (
        {"direct": only_direct(network), "packed for one": packed_for_one(network)},
        torch.tensor([500]),
    )
    with torch.no_grad(), contextlib.ExitStack() as packed:
        for one in (network, *others.values()):
            packed.enter_context(packed_convolutions(one))
        call, *calls = (partial(one, x, time_number, one.encode(past, future)) for one in (network, *others.values()))
        layers = layers_of(network, call)
        for name, other in zip(others, calls):
            compare(f"batch {len(x)}, network call", {name: other, "as it is": call}, rounds)
        for name, (part, given) in layers.items():
            ways = {"direct": partial(part._directly(given), given), "Winograd": partial(part._by_winograd(), given)}
            compare(f"batch {len(x)}, {name}", ways, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smmnist-concat")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--cache", type=float, default=4, help="MiB of transformed images at a time")
    options = parser.parse_args()
    winograd.CACHE = int(options.cache * 2**20)
    config = read_recipe(options.recipe).model
    network = VideoDiffusion(config).eval().network
    weights = random_weights(config, torch.device("cpu"))  # none near zero, which would hide differences
    network.load_state_dict(from_official(network, weights, "the benchmark's weights"))
    layout, frame = config.network.layout, (config.network.channels, *config.network.size)
    for batch in options.batch:
        past, future, x = (torch.randn(batch, n, *frame) for n in (layout.past, layout.future, layout.current))
        measure(network, past, future, x, options.rounds)


if __name__ == "__main__":
    main()
