"""Network calls on a CPU by OpenVINO, a compiler; fastest for one clip at a time (docs/performance.md)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcvd.cache import cache_dir, tensors_sha256
from mcvd.errors import McvdError
from mcvd.networks.blocks import Condition
from mcvd.networks.unet import UNet

PROGRAM = "network.xml"  # and network.bin, its weights
HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def openvino_calls(network: UNet) -> Programs:
    """Calls of this network by OpenVINO: in float32, the same up to rounding; under autocast, in its precision.

    The network is exported once per shape of its inputs, which takes half a minute, and kept in the cache, from which
    it starts in seconds. Raises McvdError without OpenVINO, and for a network on a GPU.
    """
    device = next(network.parameters()).device
    if device.type != "cpu":
        raise McvdError(f"the engine openvino is for CPUs, and the model is on {device}; choose torch, or device cpu")
    if importlib.util.find_spec("openvino") is None:
        raise McvdError("the engine openvino needs OpenVINO: pip install 'mcvd[openvino]'")
    return Programs(network)


class Programs:
    """The programs of a network, by the shapes of their inputs."""

    def __init__(self, network: UNet):
        self.network = network
        self.requests: dict[Any, Any] = {}
        self.given: dict[int, tuple[Condition, list[Tensor]]] = {}

    def __call__(self, slot: int, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The network's output, a tensor of its own."""
        if slot not in self.given or self.given[slot][0] is not condition:  # the next block's
            self.given[slot] = condition, flat(condition)
        precision = HINTS[torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32]
        inputs = [x.contiguous(), *embedding(self.network, time, condition), *self.given[slot][1]]
        shapes = tuple((tuple(part.shape), part.dtype) for part in inputs)
        if (shapes, precision) not in self.requests:
            folder = self._program(f"{self.identity} {shapes}", x, time, condition)
            program = _compiled(folder, torch.get_num_threads(), precision)
            self.requests[shapes, precision] = program.create_infer_request()
        results = self.requests[shapes, precision].infer([part.numpy() for part in inputs], share_inputs=True)
        return torch.from_numpy(results[0].copy())

    @functools.cached_property
    def identity(self) -> str:
        """What identifies a program, besides shapes: weights, configuration, and all code that it comes from."""
        import openvino

        code = hashlib.sha256()
        for file in sorted(Path(__file__).parent.glob("*.py")):
            code.update(file.read_bytes())
        weights = tensors_sha256(self.network.state_dict())
        return f"{weights} {self.network.config} {code.hexdigest()} {torch.__version__} {openvino.__version__}"

    def _program(self, identity: str, x: Tensor, time: Tensor, condition: Condition) -> Path:
        """The folder of the program for inputs of these shapes; exported if it does not exist yet."""
        home = cache_dir() / "openvino"
        folder = home / hashlib.sha256(identity.encode()).hexdigest()[:24]
        if folder.is_dir():
            return folder
        try:
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home) as partial:
                new = Path(partial, "new")
                new.mkdir()
                warnings.warn(
                    f"exporting the network for OpenVINO once for this model and batches of {len(x)}: half a minute",
                    stacklevel=2,
                )
                _save(_export(self.network, x, time, condition), new)
                try:
                    os.rename(new, folder)
                except OSError:
                    if not folder.is_dir():  # else another process was first
                        raise
        except OSError as error:
            text = f"cannot keep the exported network in {home}: {error.strerror or error}"
            raise McvdError(f"{text}; MCVD_CACHE names another folder") from None
        return folder


class FlatInputs(nn.Module):
    """The exported part of the network, with the condition as tensors: everything but the time embedding.

    If asked for half precision, OpenVINO would use it for the embedding too, and take time 901 for 900.
    """

    def __init__(self, network: UNet, condition: Condition):
        super().__init__()
        self.network, self.condition = network, _pictures(condition)

    def forward(self, x: Tensor, embedding: list[Tensor], parts: list[Tensor]) -> Tensor:
        condition = self.condition.with_tensors(parts)
        # maps of one row, implicitly broadcast to all rows, crash the compiler of OpenVINO 2026.4
        maps = [(_rows(gain, len(x)), _rows(bias, len(x))) for gain, bias in condition.maps]
        return self.network.with_embedding(x, embedding[0] if embedding else None, replace(condition, maps=maps))


def _rows(part: Tensor, count: int) -> Tensor:
    return part.expand(count, *part.shape[1:])


def embedding(network: UNet, time: Tensor, condition: Condition) -> list[Tensor]:
    """The embedding that `FlatInputs` takes, if the network has one; float32 also under autocast."""
    with torch.autocast("cpu", enabled=False):
        made = network.embed(time, condition, torch.float32)
    return [] if made is None else [made.contiguous()]


def flat(condition: Condition) -> list[Tensor]:
    """The tensors that `FlatInputs` takes; float32 also under autocast."""
    parts = _pictures(condition).tensors()
    return [(part.float() if part.is_floating_point() else part).contiguous() for part in parts]


def _pictures(condition: Condition) -> Condition:
    """The condition without what the embedding already contains."""
    return replace(condition, past_seen=None, sigma=None)


def _export(network: UNet, x: Tensor, time: Tensor, condition: Condition) -> Any:
    """An OpenVINO model for inputs of these shapes: x, `embedding` and `flat` condition -> the network's output."""
    import openvino

    inputs = x.contiguous(), embedding(network, time, condition), flat(condition)
    with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = openvino.convert_model(torch.export.export(FlatInputs(network, condition), inputs))
    shapes = [list(part.shape) for part in (inputs[0], *inputs[1], *inputs[2])]
    program.reshape(dict(zip(program.inputs, shapes, strict=True)))
    return program


def _save(program: Any, folder: Path) -> None:
    import openvino

    try:
        openvino.save_model(program, folder / PROGRAM, compress_to_fp16=False)
    except RuntimeError as error:  # a full disk
        raise OSError(str(error).splitlines()[-1]) from None


@functools.lru_cache(maxsize=2)  # one for full chunks of samples, one for the rest
def _compiled(folder: Path, threads: int, precision: str) -> Any:
    import openvino

    return openvino.compile_model(folder / PROGRAM, "CPU", settings(threads, precision))


def settings(threads: int, precision: str = "f32") -> dict[str, object]:
    """OpenVINO's settings for a program whose calls run one after another."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,  # without it, bf16 wherever a processor has it
    }
