"""Protocols by name: every experiment of the paper, and what others report on the same data.

A preset of the paper is written once, as a row of past, generated and future frames. What the names mean:

    smmnist-5to10            5 given frames, 10 predicted
    kth-interpolate-5-10-5   5 given, 10 generated, 5 given
    bair-generate-16         16 generated unconditionally
    ...-made                 FVD of the generated frames only, without the given ones
    ...-100                  100 samples per clip, plain frames (FitVid, MAGVIT, ExtDM and others)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mcvd.config import override, parse_assignments
from mcvd.errors import McvdError
from mcvd.evaluation import image, lpips
from mcvd.evaluation.i3d import SHORTEST
from mcvd.evaluation.protocol import Protocol

EDITED = "+edited"
ANY_VIDEOS = "videos-5to10"
"""The preset that measures models as they were trained: at their size, in their colours, with their stride."""


@dataclass(frozen=True)
class _Data:
    """What the paper's protocols on one data set share."""

    words: str
    fields: Mapping[str, Any]
    predict: Sequence[tuple[int, int]]
    """(past, generated)"""
    interpolate: Sequence[tuple[int, int, int]]
    """(past, generated, future)"""
    generate: Sequence[int]
    """Frames: as many as a prediction clip has, given ones included."""


_DIGITS, _PERSONS = "Stochastic Moving MNIST of the first 256 test digits", "KTH, persons 21-25"
_PAPER = {
    "smmnist": _Data(
        _DIGITS,
        {"source": "moving-mnist", "channels": 1, "binary": True},
        [(5, 10)],
        [(5, 5, 5), (5, 10, 5), (10, 5, 5), (10, 10, 5)],
        [15],
    ),
    "kth": _Data(
        _PERSONS,
        {"source": "kth", "channels": 1},
        [(10, 30), (10, 40), (5, 30), (5, 40)],
        [(10, 10, 5), (5, 5, 5)],
        [35, 45],
    ),
    "bair": _Data(
        "BAIR robot pushing, main camera",
        {"source": "bair"},
        [(1, 15), (2, 14), (2, 28)],
        [(1, 5, 1), (1, 5, 2), (2, 5, 2)],
        [16, 30],
    ),
    "cityscapes": _Data(
        "Cityscapes, middle square",
        {"source": "cityscapes", "size": (128, 128), "lpips_size": None},
        [(2, 28)],
        [(2, 5, 2)],
        [30],
    ),
    "ucf101": _Data("UCF-101, list 3", {"source": "ucf101"}, [(4, 16)], [(4, 4, 4)], [20]),
}
_OTHER_SIDES = {  # data words for other splits, where those above name one
    ("train", _DIGITS): "Stochastic Moving MNIST of the first 256 training digits",
    ("train", _PERSONS): "KTH, persons 1-20",
    ("all", _PERSONS): "KTH",
}
_PLAIN: dict[str, Any] = {"pixels": "plain", "binary": False, "lpips_size": None}


def _presets() -> dict[str, Protocol]:
    made: list[Protocol] = []
    for key, data in _PAPER.items():

        def add(name: str, data: _Data = data, **fields: Any) -> None:
            made.append(Protocol(name, data.words, fvd_pooled=False, **{**data.fields, **fields}))

        for past, frames in data.predict:
            add(f"{key}-{past}to{frames}", task="predict", past=past, frames=frames)
        for past, frames, future in data.interpolate:
            add(
                f"{key}-interpolate-{past}-{frames}-{future}",
                task="interpolate",
                past=past,
                frames=frames,
                future=future,
            )
        for frames in data.generate:
            add(f"{key}-generate-{frames}", task="generate", past=0, frames=frames, fvd="made")
    made += [replace(p, name=f"{p.name}-made", fvd="made") for p in made if p.task == "predict"]
    by_name = {protocol.name: protocol for protocol in made}

    hundred: dict[str, Any] = {"samples": 100, "fvd_pooled": True, **_PLAIN}
    for name in ("smmnist-5to10", "kth-10to30", "kth-10to40", "bair-1to15", "bair-2to14", "bair-2to28"):
        by_name[f"{name}-100"] = replace(by_name[name], name=f"{name}-100", **hundred)
    by_name["ucf101-4to12-100"] = replace(by_name["ucf101-4to16"], name="ucf101-4to12-100", frames=12, **hundred)
    for frames in (16, 128):
        name = f"styleganv-fvd{frames}"
        words = "any videos"
        large: dict[str, Any] = {"split": "train", "size": (256, 256), "clips": 2048, "samples": 1, "fvd": "made"}
        by_name[name] = Protocol(name, words, "generate", 0, frames, **large, **_PLAIN)
    by_name[ANY_VIDEOS] = Protocol(ANY_VIDEOS, "any videos", "predict", 5, 10, samples=4, **_PLAIN)
    return by_name


PRESETS: dict[str, Protocol] = _presets()
"""Protocols by name."""


def find_protocol(name: str, assignments: Sequence[str] = (), trained: Mapping[str, Any] | None = None) -> Protocol:
    """A preset by name, with `assignments` such as ``samples=2`` or ``size=[32,32]``, which rename it to NAME+edited.

    trained: `size`, `channels` and `stride` of the model to measure; `ANY_VIDEOS` takes those that are not assigned.

    Raises McvdError for an unknown name or field, naming the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"protocols: {', '.join(PRESETS)}"
        raise McvdError(f"no protocol {name}; {hint}")
    preset = PRESETS[name]
    values = parse_assignments(assignments, "--set")
    if "name" in values:
        raise McvdError(f"--set: name cannot be set; an edited preset is called {name}{EDITED}")
    if trained and name == ANY_VIDEOS:
        values = {**trained, **values}
    edited = override(preset, values, "--set")
    if "data" not in values:
        edited = replace(edited, data=_OTHER_SIDES.get((edited.split, edited.data), edited.data))
    return preset if edited == preset else replace(edited, name=f"{name}{EDITED}")


METRICS = ("psnr", "ssim", "lpips", "fvd", "kvd", "calibration")
"""What can be measured; `calibration` is CRPS and spread over skill."""
OF_FEATURES = frozenset({"fvd", "kvd"})
"""Metrics that compare I3D features."""


def choose_metrics(
    protocol: Protocol, asked: Sequence[str] | None = None, *, published: bool = True
) -> tuple[tuple[str, ...], list[str]]:
    """Chooses what is measured under a protocol -> (metrics, notes on what is left out and why).

    asked: names of `METRICS`; None: all that the protocol allows. Raises McvdError for one that it does not.
    published: LPIPS uses its published network, which needs images of a certain size.
    """
    paired = protocol.task != "generate"
    reasons: dict[str, str] = {}
    if not paired:
        reasons |= dict.fromkeys(("psnr", "ssim", "lpips", "calibration"), "generation has no ground truth")
    elif protocol.samples < 2:
        reasons["calibration"] = "it needs 2 or more samples per clip"
    few = "it needs frames of {} or more pixels per side, this protocol gives it {}"
    if paired and min(protocol.size) < image.SMALLEST:
        reasons["ssim"] = few.format(image.SMALLEST, min(protocol.size))
    if paired and published and protocol.lpips_side < lpips.SMALLEST:
        reasons["lpips"] = few.format(lpips.SMALLEST, protocol.lpips_side)
    if protocol.fvd == "none":
        reasons |= dict.fromkeys(("fvd", "kvd"), "the protocol has none")
    elif protocol.fvd_frames < SHORTEST:
        short = f"I3D needs {SHORTEST} or more frames, this protocol gives it {protocol.fvd_frames}"
        reasons |= dict.fromkeys(("fvd", "kvd"), short)
    if asked is None:
        said = [f"FVD and KVD are left out: {reasons['fvd']}"] if protocol.fvd != "none" and "fvd" in reasons else []
        said += [
            f"{name.upper()} is left out: {reasons[name]}" for name in ("ssim", "lpips") if paired and name in reasons
        ]
        return tuple(name for name in METRICS if name not in reasons), said
    for name in asked:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            raise McvdError(f"no metric {name}; {f'did you mean {near[0]}?' if near else ', '.join(METRICS)}")
        if name in reasons:
            raise McvdError(f"{name} under {protocol.name}: {reasons[name]}")
    if not asked:
        raise McvdError(f"no metric requested; choose from: {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in asked), []
