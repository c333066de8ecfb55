"""Whether int8 pays on a CPU: networks quantized after training (NNCF, run by OpenVINO) against float32 ones.

    pip install nncf openvino    # and this package
    python benchmarks/int8.py    # both models, two threads
    python benchmarks/int8.py --models digits --batches 1 --rounds 1 --clips 1 --calls 4    # a smoke test

Times a network call by this package (packed convolutions), by OpenVINO in float32 and by OpenVINO in int8, in
interleaved rounds. The paper's network has random weights, so its int8 is calibrated on random inputs; `digits` is
calibrated on calls recorded while sampling training clips, and predicts test clips with each of the three.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import nncf
import numpy as np
import openvino
import torch
from torch import Tensor

from mcvd.benchmark.cases import random_weights, setting_model
from mcvd.benchmark.measure import Sample, interleave, summarise
from mcvd.benchmark.run import machine
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.evaluation.image import psnr
from mcvd.interop.load import load
from mcvd.interop.official import from_official
from mcvd.model import VideoDiffusion
from mcvd.networks.blocks import Condition
from mcvd.networks.engine import ENGINES, calls_by
from mcvd.networks.openvino import FlatInputs, embedding, flat, settings
from mcvd.networks.unet import UNet
from mcvd.training.recipe import read_recipe

PAST, FRAMES, SEED = 5, 10, 2022  # given and generated frames; seed of the test clips
CPU = torch.device("cpu")
OURS, FLOAT, INT8 = "mcvd", "OpenVINO", "int8"
PAIRS = (OURS, FLOAT), (OURS, INT8), (FLOAT, INT8)
CALLS = ["network call, s", OURS, FLOAT, INT8, *(f"{a} / {b}" for a, b in PAIRS)]
MADE = ["5 -> 10", "PSNR to the truth, dB", f"to {FLOAT}'s frames, dB", "largest difference from them", "mean"]
LAYERS = "Convolution", "FullyConnected", "MatMul"

Call = tuple[Tensor, Tensor, Condition]
Program = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass
class Options:
    """What to run."""

    models: tuple[str, ...] = ("smmnist-concat", "digits")
    """The bundled model `digits`, or recipe names, with random weights."""
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 15
    threads: int = 2
    calls: int = 48
    """Network calls, of one clip each, that int8 is calibrated on."""
    clips: int = 16
    """Test clips that `digits` predicts."""


class Compiled:
    """An OpenVINO program in place of a network; compiled once per input shape."""

    def __init__(self, network: UNet, program: openvino.Model, threads: int):
        self.network, self.program, self.threads = network, program, threads
        self.requests: dict[tuple[tuple[int, ...], ...], openvino.InferRequest] = {}

    def __call__(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output."""
        inputs = arrays(self.network, x, time, condition)
        key = tuple(part.shape for part in inputs)
        if key not in self.requests:
            program = self.program.clone()
            program.reshape({port: list(shape) for port, shape in zip(program.inputs, key)})
            self.requests[key] = openvino.compile_model(program, "CPU", settings(self.threads)).create_infer_request()
        return torch.from_numpy(self.requests[key].infer(inputs, share_inputs=True)[0].copy())

    def kernels(self) -> str:
        """The kernels that run convolutions and matrix products, with their counts."""
        operations = next(iter(self.requests.values())).get_compiled_model().get_runtime_model().get_ops()
        about = [{name: str(value.value) for name, value in op.get_rt_info().items()} for op in operations]
        found = Counter(f"{a['layerType']} {a['primitiveType']}" for a in about if a.get("layerType") in LAYERS)
        return ", ".join(f"{count} {kernel}" for kernel, count in found.most_common())


def arrays(network: UNet, x: Tensor, time: Tensor, condition: Condition) -> list[np.ndarray]:
    """The inputs of an exported network."""
    return [part.numpy() for part in (x.contiguous(), *embedding(network, time, condition), *flat(condition))]


def random_call(model: VideoDiffusion, batch: int, generator: torch.Generator) -> Call:
    """Random frames as the condition, noise, and one time number for all, as in sampling."""
    c, layout = model.config.network, model.layout
    sizes = [(batch, n, c.channels, *c.size) for n in (layout.past, layout.future, layout.current)]
    past, future = (torch.rand(size, generator=generator) * 2 - 1 for size in sizes[:2])
    x = torch.randn(sizes[2], generator=generator)
    time = torch.randint(model.config.schedule.steps, (1,), generator=generator)
    return x, time, model.network.encode(past, future, torch.ones(batch, dtype=torch.bool))


def videos(split: Literal["train", "test"], count: int, seed: int) -> Tensor:
    """Clips of Moving MNIST, 64x64."""
    return MovingMNIST(load_digits(find_mnist(), split), PAST + FRAMES, seed=seed).batch(range(count))


def predict(model: VideoDiffusion, clips: Tensor, batch_size: int) -> Tensor:
    """5 -> 10, by SDE-DPM-Solver++ with 20 steps per block."""
    return model.predict(clips[:, :PAST], FRAMES, solver="sde-dpm++", steps=20, batch_size=batch_size)


def sampling_calls(model: VideoDiffusion, clips: Tensor, count: int) -> list[Call]:
    """`count` of the network calls that predict these clips, evenly spread."""
    calls: list[Call] = []
    hook = model.network.register_forward_pre_hook(lambda _, inputs: calls.append((inputs[0].clone(), *inputs[1:])))
    predict(model, clips, 1)
    hook.remove()
    return [calls[i * len(calls) // count] for i in range(count)]


def export(model: VideoDiffusion, x: Tensor, time: Tensor, condition: Condition) -> openvino.Model:
    """The network as a float32 program for any number of clips, exported with an example of two."""
    told, parts, batch = embedding(model.network, time, condition), flat(condition), {0: torch.export.Dim("batch")}
    network, shapes = FlatInputs(model.network, condition), (batch, [None] * len(told), [batch] * len(parts))
    return openvino.convert_model(torch.export.export(network, (x, told, parts), dynamic_shapes=shapes))


def call_row(name: str, rounds: list[dict[str, Sample]]) -> list[str]:
    """A row of the first table: medians; ratios with their interval, and the ratio of the shortest times."""
    cells = [f"{summarise([taken[who].wall for taken in rounds]).median:.4f}" for who in (OURS, FLOAT, INT8)]
    for slow, fast in PAIRS:
        ratio = summarise([taken[slow].wall / taken[fast].wall for taken in rounds])
        least = min(taken[slow].wall for taken in rounds) / min(taken[fast].wall for taken in rounds)
        cells.append(f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}; {least:.2f})")
    return [name, *cells]


def made_rows(model: VideoDiffusion, programs: dict[str, Program], clips: Tensor) -> list[list[str]]:
    """Rows of the second table: what each generates from the same clips and noise."""
    made, rows = {"truth": clips[:, PAST:].float() / 255}, []
    for who in (FLOAT, OURS, INT8):
        ENGINES["torch"] = lambda network, who=who: lambda slot, *inputs: programs[who](*inputs)
        made[who] = predict(model, clips, len(clips))
        apart, psnrs = (made[who] - made[FLOAT]).abs(), (psnr(made[who], made[x]).mean() for x in ("truth", FLOAT))
        rows.append([who, *(f"{value:.2f}" for value in psnrs), f"{apart.max():.2g}", f"{apart.mean():.2g}"])
    return rows


def print_table(rows: list[list[str]]) -> None:
    """Markdown; the first row is the head."""
    print("\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]) + "\n")


@torch.no_grad()
def main(options: Options) -> None:
    nncf.set_log_level(logging.ERROR)
    torch.set_num_threads(options.threads)
    vnni = any(has for name, has in torch.cpu.get_capabilities().items() if "vnni" in name)
    print(f"{machine(CPU)['name']}, VNNI: {vnni}; torch {torch.__version__}, OpenVINO", end=" ")
    print(f"{openvino.__version__}, NNCF {nncf.__version__}; {datetime.now(UTC):%Y-%m-%d}; {options}", flush=True)
    for name in options.models:
        generator = torch.Generator().manual_seed(1)
        if name == "digits":
            model = load(name, device="cpu")
            calls = sampling_calls(model, videos("train", 4, 0), options.calls)
        else:
            model = VideoDiffusion(setting_model(read_recipe(name).model)).eval()
            model.network.load_state_dict(from_official(model.network, random_weights(model.config, CPU), name))
            calls = [random_call(model, 1, generator) for _ in range(options.calls)]
        program = export(model, *random_call(model, 2, generator))
        data = nncf.Dataset([arrays(model.network, *call) for call in calls])
        mixed = nncf.QuantizationPreset.MIXED  # activations get a zero point: SiLU's are mostly positive
        quantized = nncf.quantize(program, data, subset_size=len(calls), preset=mixed)
        exact, low = (Compiled(model.network, made, options.threads) for made in (program, quantized))
        programs: dict[str, Program] = {OURS: model.network, FLOAT: exact, INT8: low}
        rows = [CALLS]
        for batch in options.batches:
            call = random_call(model, batch, generator)
            todo = {who: partial(run, *call) for who, run in programs.items()}
            with calls_by(model.network):
                rows.append(call_row(f"{name}, batch {batch}", interleave(todo, options.rounds, CPU)))
        right, wrong = (torch.cat([run(*call) for call in calls]) for run in (exact, low))
        print(f"\n{name}, int8: error {(wrong - right).norm() / right.norm():.1%}; {low.kernels()}\n")
        print_table(rows)
        if name == "digits":
            print_table([MADE, *made_rows(model, programs, videos("test", options.clips, SEED))])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
