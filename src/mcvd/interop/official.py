"""The authors' checkpoints: list files `checkpoint_<step>.pt` with a config.yml beside them, to and from our model.

Only this module and `official_config` know the published key names (`unet.all_modules.<i>. ...`), the direction of the
published labels, and which of the published options our models lack. Facts: docs/reference.md.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mcvd.config import from_dict
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.interop.official_config import model_config, read_config
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.attention import Attention
from mcvd.networks.blocks import ModulatedNorm, ResidualBlock, Spatin
from mcvd.networks.frames3d import PseudoConv3d, SpaceTimeAttention, Spatin3d
from mcvd.networks.unet import UNet
from mcvd.saving import CONFIG, load_weights, read_config_and_notes
from mcvd.text import first_line

PREFIX = "unet.all_modules."
BUFFERS = ("betas", "alphas", "alphas_prev", "unet.sigmas", "k", "k_cum", "theta_t")

# --- weights ------------------------------------------------------------------------------------------------------


def layers(network: UNet) -> Iterator[nn.Module]:
    """The layers in the order of the published flat list `all_modules`."""
    if network.time is not None:
        yield from (network.time[0], network.time[2])
    if network.mask is not None:
        yield network.mask
    yield network.conv_in
    for level in network.down:
        for i, block in enumerate(level.blocks):
            yield block
            if level.attention:
                yield level.attention[i]
        if level.resample is not None:
            yield level.resample
    first, attention, second = network.middle
    yield from (first, attention)
    if not isinstance(network.merge, nn.Identity):
        yield network.merge
    yield second
    for level in network.up:
        for merge, block in zip(level.merges, level.blocks):
            if not isinstance(merge, nn.Identity):
                yield merge
            yield block
        yield from level.attention
        if level.resample is not None:
            yield level.resample
    yield network.norm_out
    yield network.conv_out


# for every kind of layer: (published name, our name) of its parts, in the published order; missing parts are skipped
_PARTS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResidualBlock: (
        ("actnorm0", "norm0"),
        ("Conv_0", "conv0"),
        ("actnorm1", "norm1"),
        ("Conv_1", "conv1"),
        ("Conv_2", "shortcut"),
    ),
    ModulatedNorm: (("Dense_0", "modulation"), ("Norm_0", "norm"), ("Norm_0", "spatin")),
    Spatin: (("mlp_shared.0", "shared"), ("mlp_gamma", "gamma"), ("mlp_beta", "beta")),
    Spatin3d: (("converter", "converter"), ("mlp_shared.0", "shared"), ("mlp_gamma", "gamma"), ("mlp_beta", "beta")),
    PseudoConv3d: (("space_conv", "space"), ("time_conv", "time")),
    SpaceTimeAttention: (("space_att", "space"), ("time_att", "time")),
}


def _names_of(layer: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """(published name, our name) for every tensor of a layer, in the published order."""
    if isinstance(layer, Attention):
        yield from _names_of(layer.norm, f"{ours}.norm", f"{theirs}.GroupNorm_0")
        for i in range(3):  # one of ours holds three of theirs: a suffix says which third
            yield f"{theirs}.NIN_{i}.W", f"{ours}.qkv.weight/{i}"
            yield f"{theirs}.NIN_{i}.b", f"{ours}.qkv.bias/{i}"
        yield f"{theirs}.NIN_3.W", f"{ours}.out.weight"
        yield f"{theirs}.NIN_3.b", f"{ours}.out.bias"
    elif type(layer) in _PARTS:
        for published, name in _PARTS[type(layer)]:
            part = getattr(layer, name)
            if part is not None:
                yield from _names_of(part, f"{ours}.{name}", f"{theirs}.{published}")
    else:
        wrapped = ".conv" if isinstance(layer, nn.Conv3d) else ""
        for name, _ in layer.named_parameters():
            yield f"{theirs}{wrapped}.{name}", f"{ours}.{name}"


def name_map(network: UNet) -> dict[str, str]:
    """Published name -> our name, for every parameter, in the order of the published optimizer."""
    ours = {id(module): name for name, module in network.named_modules()}
    names: dict[str, str] = {}
    for i, layer in enumerate(layers(network)):
        wrapper = ".Norm_0" if layer is network.norm_out else ""
        names.update(_names_of(layer, ours[id(layer)], f"{PREFIX}{i}{wrapper}"))
    return names


def to_official(network: UNet) -> dict[str, Tensor]:
    """Our weights under the published names and in the published shapes."""
    state = network.state_dict()
    out = {}
    for theirs, ours in name_map(network).items():
        name, _, third = ours.partition("/")
        value = state[name].chunk(3)[int(third)] if third else state[name]
        out[theirs] = value.T.contiguous() if theirs.endswith(".W") else value  # NIN weights are (in, out)
    return out


def from_official(network: UNet, weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Published weights under our names; raises McvdError unless every name is used exactly once, in its shape."""
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name not in BUFFERS}
    names = name_map(network)
    last = f"{PREFIX}{sum(1 for _ in layers(network)) - 2}"
    for leaf in ("weight", "bias"):  # files from before May 2022 name the last norm without the wrapper
        if f"{last}.{leaf}" in weights:
            weights[f"{last}.Norm_0.{leaf}"] = weights.pop(f"{last}.{leaf}")
    for gone, what in ((names.keys() - weights.keys(), "lacks"), (weights.keys() - names.keys(), "has unknown")):
        if gone:
            first = min(gone)
            raise McvdError(f"{where} {what} {first} ({len(gone)} such names): config.yml does not fit these weights")
    for theirs, like in to_official(network).items():
        if (found := weights[theirs].shape) != like.shape:
            shapes = f"{tuple(found)}, not {tuple(like.shape)}"
            raise McvdError(f"{where} has another shape of {theirs} ({shapes}): config.yml does not fit these weights")
    out: dict[str, Any] = {}
    for theirs, ours in names.items():
        value = weights[theirs].T if theirs.endswith(".W") else weights[theirs]
        name, _, third = ours.partition("/")
        if third:
            out.setdefault(name, [None] * 3)[int(third)] = value
        else:
            out[name] = value
    return {name: torch.cat(value) if isinstance(value, list) else value for name, value in out.items()}


# --- files --------------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | Path, ema: bool = True) -> VideoDiffusion:
    """A published `checkpoint_<step>.pt`, with the config.yml of its folder, as a model in evaluation mode.

    ema: use the averaged weights (what the published results use); False gives the raw ones.
    Raises McvdError for a file that is not such a checkpoint, an option that cannot be reproduced, or weights that do
    not fit the configuration: nothing is ever loaded in part.
    """
    return _load(expanded(path), ema)[0]


def import_checkpoint(
    path: str | Path, folder: str | Path, ema: bool = True, dtype: torch.dtype = torch.float32
) -> VideoDiffusion:
    """Writes a published checkpoint as a model folder (weights as `dtype`), a quarter of its size; returns the model.

    The notes in config.json say where it came from: file name, SHA-256, training step, averaged weights or raw ones.
    Raises McvdError as `load_checkpoint` does, and if the folder holds another model: only the same import may be
    repeated.
    """
    path, folder = expanded(path), expanded(folder)
    model, notes = _load(path, ema)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    notes = {"source": path.name, "sha256": digest, **notes}
    if (folder / CONFIG).exists() and not _is_import(folder, model.config, notes):
        raise McvdError(f"{folder} holds another model, which is not replaced; name another folder with --output")
    try:
        model.save(folder, dtype, notes)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise McvdError(f"cannot write {folder} ({reason}); name another folder with --output") from None
    return model


def _is_import(folder: str | Path, config: ModelConfig, notes: dict[str, Any]) -> bool:
    """Whether a model folder holds these weights of this file, whatever the file's name, with this configuration."""
    try:
        found, told = read_config_and_notes(folder)
        same = all(told.get(name) == notes[name] for name in ("sha256", "ema"))
        return same and from_dict(ModelConfig, found, str(folder)) == config
    except McvdError:
        return False


def _load(path: Path, ema: bool) -> tuple[VideoDiffusion, dict[str, Any]]:
    if not path.is_file():
        raise McvdError(f"{path} is {'a folder, not a checkpoint of the authors' if path.is_dir() else 'missing'}")
    run = path.parent
    if re.fullmatch(r"checkpoint-\d+\.pt", path.name) and ((run / "recipe.yaml").exists() or (run / "model").is_dir()):
        raise McvdError(f"{path} is for continuing a run of mcvd train, not a model: name the run folder, {run}")
    config_path = run / "config.yml"
    if not config_path.is_file():
        raise McvdError(f"{path} needs the config.yml it was published with in the same folder; there is none")
    published = read_config(config_path)
    states = _read(path)
    use_ema = bool(ema and published["model"]["ema"])
    if use_ema and len(states) < 5:
        raise McvdError(
            f"{path} has no averaged weights although config.yml says model.ema; "
            "take the raw ones with mcvd import --raw (load_checkpoint: ema=False)"
        )
    if published["model"]["gamma"]:
        warnings.warn(f"{path.name} was trained with Gamma noise; it is sampled with Gaussian noise here", stacklevel=3)
    model = build(published, states[0], states[4] if use_ema else states[0], str(path), str(config_path))
    step = states[3] if isinstance(states[3], int) else f"{states[3]}"  # a tensor cannot be a note
    return model, {"step": step, "ema": use_ema}


def _read(path: Path) -> list[Any]:
    """The list in the file; nothing but tensors and plain values is ever unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle's version
            states = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can raise anything
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            # PyTorch's text advises to switch the protection off; people only need to know that the file was refused
            other = "is a file of another kind, or " if "Unsupported operand" in str(error) else ""
            reason = f"it {other}holds code, which is never run"
        raise McvdError(f"{path} cannot be read as a checkpoint ({reason}); download it again") from None
    weights = states[:1] + states[4:] if isinstance(states, list) and len(states) > 3 else [None]
    if not all(isinstance(state, dict) for state in weights):
        raise McvdError(f"{path} is not a published checkpoint, a list of weights, optimizer, epoch, step and EMA")
    return states


def build(
    published: dict[str, dict[str, Any]],
    state: dict[str, Tensor],
    weights: dict[str, Tensor],
    where: str,
    config: str = "config.yml",
) -> VideoDiffusion:
    """The model for what `read_config` returned, in evaluation mode: `weights` loaded, the tables of `state` checked.

    where, config: the files of weights and configuration, named in errors.
    """
    try:
        model = VideoDiffusion(model_config(published))
    except McvdError as error:
        raise McvdError(f"{config}: {error}") from None
    for part in (state, weights):
        _check_tensors(part, where)
    _check_tables(model.config.schedule, state, where)
    load_weights(model.network, from_official(model.network, weights, where), where)
    return model.eval()


def _check_tensors(state: dict[Any, Any], where: str) -> None:
    """Checks that a state dict holds named tensors of real numbers, and nothing else that a file may hold."""
    for name, value in state.items():
        if not isinstance(name, str):
            kind = type(name).__name__
            raise McvdError(f"{where} has a weight whose name is not text ({kind}); it is not a published checkpoint")
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise McvdError(f"{where}: {name} is not a dense tensor of real numbers; it is not a published checkpoint")


def _check_tables(schedule: NoiseSchedule, state: dict[str, Tensor], where: str) -> None:
    """The noise schedule is computed anew, in float64; this makes sure that it is the one the file was trained with."""
    stored = state.get("module.alphas", state.get("alphas"))
    if stored is None:
        raise McvdError(f"{where} holds no noise schedule (module.alphas); it is not a published checkpoint")
    ours = schedule.alpha_bar.flip(0)  # published tables run from noisy to clean
    exact = max(1e-5, torch.finfo(stored.dtype).eps)  # the whole file may have been converted to half precision
    if stored.shape != ours.shape or not torch.allclose(stored.double(), ours, rtol=exact, atol=1e-6):
        raise McvdError(f"{where}: its noise schedule is not the one that config.yml describes")
