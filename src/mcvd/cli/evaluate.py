"""`mcvd evaluate`"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from mcvd.cli.options import (
    MODEL_HELP,
    SOLVER_DEFAULT,
    STEPS_DEFAULT,
    Count,
    Device,
    Engine,
    Flag,
    MaybeCount,
    Number,
    Precision,
    Seed,
)

if TYPE_CHECKING:
    from mcvd.evaluation.protocol import Protocol
    from mcvd.evaluation.result import Result

PROTOCOL_HELP = "Preset, e.g. smmnist-5to10; `list` names all of them. See docs/evaluation.md."
SET_HELP = (
    "Change a value of the protocol, e.g. samples=2 or size=[32,32] (height and width in pixels); "
    "renames it NAME+edited."
)
METRICS_HELP = "Comma-separated subset of psnr,ssim,lpips,fvd,kvd,calibration."
DATA_HELP = (
    "Test videos: a folder made by `mcvd data prepare`, raw videos (prepared once, in the cache) or the authors' HDF5 "
    "shards; for Moving MNIST, the folder of the MNIST files."
)
_ALL = "(default: all the protocol allows)"
Settings = Annotated[
    UseAppendAction[list[str]],
    arg(metavar="KEY=VALUE", help=SET_HELP, help_behavior_hint="(can be repeated)"),
]
Metrics = Annotated[str | None, arg(metavar="NAMES", help=METRICS_HELP, help_behavior_hint=_ALL)]


@dataclass(kw_only=True)
class Command:
    """Evaluates a model under a protocol: FVD, PSNR, SSIM, LPIPS, each with its interval and everything it depends on.

    Run the same command again to continue after an interruption. Several GPUs: torchrun --nproc-per-node 8 -m mcvd
    evaluate ...

    Example: mcvd evaluate my_model --data BAIR/ --protocol bair-1to15
    """

    model: Annotated[str, Positional, arg(metavar="MODEL", help=MODEL_HELP)]
    protocol: Annotated[str, arg(metavar="NAME", help=PROTOCOL_HELP)]
    data: Annotated[Path | None, arg(metavar="PATH", help=DATA_HELP, help_behavior_hint="(default: cached MNIST)")] = (
        None
    )
    set: Settings = field(default_factory=list)
    metrics: Metrics = None
    solver: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=SOLVER_DEFAULT)] = None
    """ddpm (as in the paper's tables), ddim; f-pndm, dpm++, unipc (fast); sde-dpm++ (fast, with noise)."""
    steps: Annotated[MaybeCount, arg(help_behavior_hint=STEPS_DEFAULT)] = None
    """Denoising steps per block of frames."""
    seed: Seed = 0
    """Seed of the sampling; that of the clips is part of the protocol."""
    guidance: Number = 1.0
    """Guidance scale: 1 is the model itself; larger values follow the given frames more closely, with less variety."""
    batch_size: Count = 32
    """Samples generated at once; fewer need less memory."""
    reference: Flag = False
    """Sample as the published code does, defects included (ddpm or ddim; 100 steps unless --steps is given)."""
    precision: Precision = "fp32"
    """Arithmetic of the network; bf16 and fp16 are for GPUs, bf16 also for CPUs with bf16 units. Recorded in the
    result."""
    engine: Engine = "torch"
    """What runs the network: compile (torch.compile, which first takes a minute) is faster on GPUs, openvino (an extra)
    on CPUs with one sample at a time."""
    output: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/evaluate/MODEL-PROTOCOL-SOLVER)")
    ] = None
    """Gets result.json, result.md, rows.safetensors and videos/; a folder of another evaluation is refused."""
    no_videos: Flag = False
    """Do not keep the generated videos."""
    device: Device = None
    """cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Runs the command."""
        if self.protocol == "list":
            print_protocols()
            return
        from mcvd.cli.progress import ProgressBar
        from mcvd.evaluation.evaluate import Sampling, evaluate
        from mcvd.evaluation.presets import find_protocol
        from mcvd.evaluation.run import Worker
        from mcvd.files import model_name
        from mcvd.interop.load import load

        preset = find_protocol(self.protocol, self.set)  # a misspelt one is an error before a model is downloaded
        model = load(self.model, device=local_device(self.device))
        trained = {"size": model.size, "channels": model.channels, "stride": model.stride}
        protocol = find_protocol(self.protocol, self.set, trained)
        taken = {key: value for key, value in trained.items() if getattr(protocol, key) != getattr(preset, key)}
        if taken and Worker.of_torchrun().rank == 0:
            edits = ", ".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in taken.items())
            say(f"measuring as {self.model} was trained: {edits}")
        output = self.output or self._folder(protocol, model.sampler(self.solver, None, self.reference)[0])
        with ProgressBar("evaluating", "videos") as bar:
            result = evaluate(
                model,
                protocol,
                output,
                name=model_name(self.model) or self.model,
                data=self.data,
                sampling=Sampling(
                    self.solver,
                    self.steps,
                    self.seed,
                    self.guidance,
                    self.batch_size,
                    self.reference,
                    self.precision,
                    self.engine,
                ),
                metrics=names(self.metrics),
                videos=not self.no_videos,
                report=say,
                progress=bar,
            )
        show(result, output)

    def _folder(self, protocol: Protocol, solver: str) -> Path:
        from mcvd.files import model_name
        from mcvd.text import printable

        parts = [printable(model_name(self.model)), protocol.name, f"{solver}{self.steps or ''}"]
        parts += [f"g{self.guidance:g}"] if self.guidance != 1 else []
        parts += ["reference"] if self.reference else []
        parts += [self.precision] if self.precision != "fp32" else []
        parts += [self.engine] if self.engine != "torch" else []
        parts += [f"seed{self.seed}"] if self.seed else []
        return Path("runs") / "evaluate" / "-".join(parts)


def names(text: str | None) -> list[str] | None:
    """``psnr,ssim`` -> names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def local_device(device: str | None) -> str | None:
    """This process's GPU, if torchrun started several processes and no device is named."""
    from mcvd.evaluation.run import Worker

    if Worker.of_torchrun().count == 1 or device is not None:
        return device
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def show(result: Result | None, output: Path) -> None:
    """Prints the numbers and writes the report; only the first process has them."""
    if result is None:
        return
    from mcvd.evaluation.summary import lines
    from mcvd.reports.report import write_report

    say("\n".join(lines(result)))
    page, *_ = write_report(output)
    say(f"the result is in {output} (result.json; for a paper: result.md); look at {page}")


def print_protocols() -> None:
    """Every preset and what it means."""
    from mcvd.evaluation.presets import PRESETS

    width = max(map(len, PRESETS))
    for name, protocol in PRESETS.items():
        print(f"{name:<{width}}  {protocol.words}")


def say(line: str) -> None:
    """Prints a line at once."""
    from mcvd.text import printable

    print(printable(line), flush=True)
