"""Options that several commands share, and how numbers are read from the command line. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

T = TypeVar("T")


def _reader(metavar: str, read: Callable[..., T], words: int = 1) -> PrimitiveConstructorSpec[Any]:
    """Reads a value from its words; `read` raises ValueError with a message for the user."""
    return PrimitiveConstructorSpec(
        nargs=words,
        metavar=metavar,
        instance_from_str=lambda words: read(*words),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _number(
    kind: Callable[[str], float], text: str, low: float, high: float = math.inf, *, above: bool = False
) -> float:
    noun = "whole number" if kind is int else "number"
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a {noun}") from None
    if not (value > low if above else value >= low):  # also catches NaN
        raise ValueError(f"{text} must be {'above' if above else 'at least'} {low}")
    if value > high or value == math.inf:
        raise ValueError(f"{text} must be at most {high}" if high < math.inf else f"{text} is not a finite number")
    return value


def _context(text: str) -> int | str:
    return text if text == "all" else int(_number(int, text, 1))


_COUNT = _reader("N", lambda text: _number(int, text, 1))
_RATE = _reader("FPS", lambda text: _number(float, text, 0, 1000, above=True))

Count = Annotated[int, _COUNT]
"""A whole number, at least 1."""
MaybeCount = Annotated[int | None, _COUNT]
Seed = Annotated[int, _reader("N", lambda text: _number(int, text, 0))]
MaybeSeed = Annotated[int | None, _reader("N", lambda text: _number(int, text, 0))]
Port = Annotated[int, _reader("N", lambda text: _number(int, text, 0, 65535))]
MaybeMinutes = Annotated[float | None, _reader("MINUTES", lambda text: _number(float, text, 0, above=True))]
MaybeRate = Annotated[float | None, _RATE]
Number = Annotated[float, _reader("X", lambda text: _number(float, text, 0))]
MaybeSize = Annotated[
    tuple[int, int] | None,
    _reader("HEIGHT WIDTH", lambda height, width: (int(_number(int, height, 1)), int(_number(int, width, 1))), 2),
]
Context = Annotated[
    int | Literal["all"] | None, _reader("N|all", _context), arg(help_behavior_hint="(default: what the model sees)")
]

MODEL_HELP = (
    "Bundled name, folder of a model or of a training run, the authors' checkpoint_N.pt beside its config.yml, "
    "or hub name owner/name."
)
OUT_HELP = (
    "Output file; its suffix sets the format: mp4, mov, webm, avi or gif for viewing, mkv or npz lossless, png for the "
    "contact sheet of all frames only; no suffix: a folder of PNG frames; an existing folder, or PATH/: default name "
    "inside. Several samples are numbered -1, -2 ...; the contact sheet is beside them. Existing files are replaced."
)
SOLVER_DEFAULT = "(default: the model's; ddpm if it names none)"
STEPS_DEFAULT = "(default: ddpm 100, ddim 50, f-pndm 20, dpm++ 20, sde-dpm++ 20, unipc 10)"
_OUT_DEFAULT = "(default: output/NAME-TASK.mp4 in the current folder)"
Precision = Literal["fp32", "bf16", "fp16"]
Engine = Literal["torch", "compile", "openvino"]
Flag = Annotated[bool, arg(help_behavior_hint="")]
Device = Annotated[
    str | None,
    arg(metavar="DEVICE", help_behavior_hint="(default: the GPU if there is one, else the CPU)"),
]


@dataclass(kw_only=True)
class Sampling:
    """How frames are generated: the model and its device, and options of `VideoDiffusion.fill`."""

    model: Annotated[str, arg(metavar="MODEL", help=MODEL_HELP)] = "digits"
    samples: Count = 1
    """How many different videos to generate, one file each."""
    solver: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=SOLVER_DEFAULT)] = None
    """ddpm (as in the paper's tables), ddim; f-pndm, dpm++, unipc (fast); sde-dpm++ (fast, with noise)."""
    steps: Annotated[MaybeCount, arg(help_behavior_hint=STEPS_DEFAULT)] = None
    """Denoising steps per block of frames; more is slower and usually better."""
    seed: Seed = 0
    """The same seed gives the same videos."""
    guidance: Number = 1.0
    """Guidance scale: 1 is the model itself; larger values follow the given frames more closely, with less variety."""
    context_noise: Number = 0.0
    """Noise on generated frames that later blocks see; for long videos, with models trained for it
    (model.context_noise)."""
    batch_size: Count = 32
    """Samples generated at once; fewer need less memory."""
    reference: Flag = False
    """Sample as the published code does, defects included (ddpm or ddim; 100 steps unless --steps is given)."""
    precision: Precision = "fp32"
    """Arithmetic of the network; bf16 and fp16 are for GPUs, bf16 also for CPUs with bf16 units."""
    engine: Engine = "torch"
    """What runs the network. compile (torch.compile) takes a minute at first and is then faster on GPUs; openvino (pip
    install 'mcvd[openvino]') is faster on CPUs for one sample at a time with a hundred network calls or more; its first
    use with a model takes half a minute."""
    device: Device = None
    """cpu, cuda or cuda:N."""


@dataclass(kw_only=True)
class Output:
    """Where the videos go; a contact sheet of all frames (.png) is written beside them."""

    out: Annotated[str | None, arg(metavar="PATH", help=OUT_HELP, help_behavior_hint=_OUT_DEFAULT)] = None
    fps: Annotated[MaybeRate, arg(help_behavior_hint="(default: the clip's; if it has none, the model's)")] = None
    """Rate of the output video, in frames per second."""
    show_plan: Flag = False
    """First show which frames are generated in which order, and from which others."""


@dataclass(kw_only=True)
class Reading:
    """How a clip (video file, gif, webp, folder of images, npz) becomes what the model takes."""

    fit: Literal["crop", "stretch"] = "crop"
    """Crop to the model's aspect ratio, or stretch the whole picture to it."""
    stride: Annotated[MaybeCount, arg(help_behavior_hint="(default: as the model was trained)")] = None
    """Take every N-th frame of the clip."""
