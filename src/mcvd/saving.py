"""The folder of a model: config.json and model.safetensors, written atomically; errors are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcvd.errors import McvdError
from mcvd.files import expanded, whole_file
from mcvd.text import first_line

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "mcvd-1"


def write_model(
    folder: str | Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
    notes: dict | None = None,
) -> Path:
    """Writes a model's configuration and weights (as `dtype`) into a folder; returns it.

    Raises McvdError if `dtype` is not a floating-point type or cannot hold a weight, OSError if writing fails.
    """
    from safetensors.torch import save_file

    folder = expanded(folder)
    if not dtype.is_floating_point:
        raise McvdError(f"weights cannot be stored as {dtype}; choose a floating-point type")
    limit = torch.finfo(dtype).max
    for name, value in weights.items():
        if ((value.abs() > limit) & value.isfinite()).any():
            raise McvdError(f"{name} has a weight too large for {dtype}; store the model in a wider type")
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **config} | ({"notes": notes} if notes else {}), indent=2)
    for name, write in (
        (WEIGHTS, lambda path: save_file(weights, path, {"format": "pt"})),
        (CONFIG, lambda path: path.write_text(text + "\n")),
    ):
        # always the same name: what a killed process leaves is overwritten
        with whole_file(folder / name, folder / f".{name}.partial") as partial:
            write(partial)
    return folder


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The configuration, notes and weights that `write_model` wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = expanded(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise McvdError(f"{folder} is not a model folder: it has no {name}")
    config, notes = read_config_and_notes(folder)
    try:
        return config, notes, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise McvdError(f"{folder / WEIGHTS} cannot be read ({error}); fetch or save it again") from None


def read_config_and_notes(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and notes in the config.json that `write_model` wrote."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise McvdError(f"{path} cannot be read as JSON ({error}); fetch or save it again") from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        raise McvdError(f"{path} does not belong to an mcvd model (format {FORMAT})")
    notes = config.pop("notes", None)
    return config, notes if isinstance(notes, dict) else {}


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Strict loading with a one-line error that names what is missing, unknown or of another shape."""
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    for names, what in ((missing, "lacks"), (surplus, "has unknown"), (sorted(wrong), "has another shape of")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise McvdError(f"{where} {what} {names[0]}{more}: it does not belong to this configuration")
    model.load_state_dict(weights)  # which converts other types


def upload(folder: Path, repo_id: str, card: str, **options: object) -> str:
    """Uploads a model's folder to a hub repository, with options of `upload_folder`; returns its address.

    card: README.md for a repository that has none.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        if not api.file_exists(repo_id, "README.md"):
            (folder / "README.md").write_text(card, encoding="utf-8")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))  # type: ignore
    except Exception as error:  # the hub's errors share no base class
        raise McvdError(f"cannot upload to {repo_id} ({first_line(error)}); log in with: hf auth login") from None
