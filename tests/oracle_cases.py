"""What the oracle tests share: the case folders found, each as a model of ours, and tensors in our shapes."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcvd.interop import official
from mcvd.model import VideoDiffusion

FOLDER = Path(os.environ.get("MCVD_ORACLE") or Path(__file__).resolve().parent.parent / "../shared/oracle")
# what the published code itself cannot run; a case with such an option is there to be refused
REFUSED = {("model", "output_all_frames"): True}


def raw_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _is_refused(folder: Path) -> bool:
    config = raw_config(folder)
    return any(config[section].get(key) == value for (section, key), value in REFUSED.items())


FOLDERS = sorted(path.parent for path in FOLDER.glob("*/model.safetensors") if (path.parent / "config.yml").is_file())
REFUSED_CASES = [folder for folder in FOLDERS if _is_refused(folder)]
CASES = [folder for folder in FOLDERS if folder not in REFUSED_CASES]


def each(having: str = "model.safetensors"):
    """Parametrises `folder` over the cases that have this file; without any, the test is skipped with the reason."""
    found = [folder for folder in CASES if (folder / having).is_file()]
    none = pytest.param(None, marks=pytest.mark.skip(f"no case with {having} in {FOLDER}; set MCVD_ORACLE"), id="none")
    return pytest.mark.parametrize("folder", found or [none], ids=lambda folder: folder.name)


@functools.cache
def tensors(path: Path) -> dict[str, Tensor]:
    return {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in load_file(path).items()}


@functools.cache
def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@functools.cache
def case_model(folder: Path) -> VideoDiffusion:
    """The case as a model in evaluation mode, through the importer."""
    state = tensors(folder / "model.safetensors")
    return official.build(official.read_config(folder / "config.yml"), state, state, str(folder))


def frames(maps: Tensor, model: VideoDiffusion) -> Tensor:
    """Published ``(B, frames * C, H, W)`` -> ours ``(B, frames, C, H, W)``."""
    return maps.unflatten(1, (-1, model.channels))


def condition(case: dict[str, Tensor], model: VideoDiffusion, name: str = "cond") -> tuple[Tensor, Tensor]:
    """Past and future frames of a published condition; a network without one has no such tensor."""
    like = case["x_t"] if "x_t" in case else case["x_init"]
    maps = case.get(name, like[:, :0])
    past, future = frames(maps, model).split([model.layout.past, model.layout.future], dim=1)
    return past, future


def time_of(labels: Tensor, model: VideoDiffusion) -> Tensor:
    """Published labels count from the noisiest level, our time numbers from the cleanest."""
    return model.config.schedule.steps - 1 - labels


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; frames may be folded into channels on one side."""
    assert ours.numel() == theirs.numel(), f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    return (ours.detach().reshape(theirs.shape).double() - theirs.double()).abs().max().item()
