"""`evaluate`: how good a model is under a protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mcvd import __version__
from mcvd.cache import tensors_sha256
from mcvd.config import differences, from_dict, to_dict
from mcvd.errors import McvdError
from mcvd.evaluation.clips import RealClips, content, real_clips, sources
from mcvd.evaluation.folder import Folder
from mcvd.evaluation.measure import Instruments, load_instruments, network_hashes
from mcvd.evaluation.presets import choose_metrics
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result, System
from mcvd.evaluation.run import Job, Progress, Report, Worker, nothing, run
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.planner import plan
from mcvd.text import colours, printable


@dataclass(frozen=True)
class Sampling:
    """How the model samples: options of `VideoDiffusion.fill`."""

    solver: str | None = None
    steps: int | None = None
    seed: int = 0
    guidance: float = 1.0
    batch_size: int = 32
    """Trajectories per network call; changes results by rounding at most."""
    reference: bool = False
    precision: str = "fp32"
    engine: str = "torch"
    """Changes results by rounding at most."""


def evaluate(
    model: VideoDiffusion,
    protocol: Protocol,
    output: Path | str,
    *,
    name: str,
    data: Path | str | None = None,
    sampling: Sampling | None = None,
    metrics: Sequence[str] | None = None,
    instruments: Instruments | None = None,
    clips: RealClips | None = None,
    videos: bool = True,
    worker: Worker | None = None,
    report: Report = print,
    progress: Progress | None = None,
) -> Result | None:
    """Measures a model under a protocol -> the result, also written to `output`; None in all processes but the first.

    output: folder of this evaluation (see `mcvd.evaluation.folder`); the same call continues an interrupted
        evaluation or returns the finished result. A folder that holds anything else is refused.
    name: display name of the model.
    data: see `real_clips`.
    clips: real clips to use instead of `data`.
    metrics: names of `presets.METRICS`; None: all that the protocol allows.
    instruments: metric networks (default: the published ones).
    videos: keep the generated videos in `output`/videos.
    worker: this process's share of the work (default: from torchrun's environment).
    Raises McvdError if model, data and protocol do not fit together.
    """
    sampling = sampling or Sampling()
    worker = worker or Worker.of_torchrun()
    say = report if worker.rank == 0 else nothing
    check_fit(model, protocol, name)
    chosen, notes = choose_metrics(protocol, metrics, published=instruments is None)
    if model.stride not in (1, protocol.stride):
        notes.append(
            f"note: {name} was trained on one frame in {model.stride}, the protocol takes one in {protocol.stride}; "
            f"--set stride={model.stride} measures as it was trained"
        )
    for note in notes:
        say(note)
    folder = Folder(output)
    real = clips if clips is not None else real_clips(protocol, data, say)
    networks = network_hashes(chosen) if instruments is None else dict(instruments.hashes)
    job = Job(
        protocol,
        _system(model, name, sampling),
        chosen,
        real,
        protocol.clips,
        *content(real, protocol.clips),
        _maker(model, protocol, sampling),
        batch=max(1, sampling.batch_size // protocol.samples),
        networks=networks,
        sources=sources(real, protocol.clips),
    )
    return run(
        job,
        folder,
        lambda: instruments or load_instruments(chosen, model.device),
        videos=videos,
        worker=worker,
        device=model.device,
        report=say,
        progress=progress if worker.rank == 0 else None,
    )


def check_fit(model: VideoDiffusion, protocol: Protocol, name: str) -> None:
    """Raises McvdError if the model cannot do what the protocol asks for, saying what would work."""
    if model.size != protocol.size or model.channels != protocol.channels:
        (height, width), channels = model.size, model.channels
        edits = [] if model.size == protocol.size else [f"--set size=[{height},{width}]"]
        edits += [] if channels == protocol.channels else [f"--set channels={channels}"]
        raise McvdError(
            f"{name} generates frames of {width}x{height}, {colours(channels)}, but protocol {protocol.name} "
            f"compares {protocol.size[1]}x{protocol.size[0]}, {colours(protocol.channels)}: measure at the model's "
            f"with {' '.join(edits)} (which makes it another protocol)"
        )
    try:
        plan(protocol.known, model.layout, model.config.masking)
    except McvdError as error:
        raise McvdError(f"protocol {protocol.name}: {error}") from None


def _system(model: VideoDiffusion, name: str, sampling: Sampling) -> System:
    saved = from_dict(ModelConfig, to_dict(model.config), "the model")  # as loaded: 1 given for 1.0 is 1.0
    said = differences(replace(saved, solver=ModelConfig.solver), ModelConfig())  # the solver has its own field
    config = json.dumps(said, sort_keys=True)
    weights = {**model.state_dict(), "config": torch.frombuffer(bytearray(config.encode()), dtype=torch.uint8)}
    return System(
        printable(name),
        tensors_sha256(weights),
        *model.sampler(sampling.solver, sampling.steps, sampling.reference),
        sampling.guidance,
        sampling.seed,
        sampling.reference,
        __version__,
        sampling.precision,
        sampling.engine,
    )


def _maker(model: VideoDiffusion, protocol: Protocol, sampling: Sampling) -> Callable[[int, Tensor], Tensor]:
    def make(first: int, real: Tensor) -> Tensor:
        made = model.fill(real, protocol.known, samples=protocol.samples, first_clip=first, **asdict(sampling))
        return made.unflatten(0, (len(real), protocol.samples))

    return make
