"""Loads any model: bundled, in a folder, in a hub repository, or the authors' own checkpoint."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from mcvd.device import usable_device
from mcvd.errors import McvdError
from mcvd.files import expanded, is_run
from mcvd.model import VideoDiffusion
from mcvd.saving import CONFIG
from mcvd.text import first_line


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(item.name for item in files("mcvd.pretrained").iterdir() if item.joinpath("config.json").is_file())


def load(name: str | Path, *, device: str | None = None) -> VideoDiffusion:
    """A model in evaluation mode, on `device` (None: the first CUDA GPU if there is one, else the CPU).

    name: a bundled model ("digits"), a folder that `model.save` or `mcvd train` made, the authors'
        `checkpoint_<step>.pt` with its config.yml in the same folder, or a hub repository ("owner/name").
    Raises McvdError if there is no such model, or it cannot be read completely.
    """
    device = usable_device(device)  # first: an unusable one is an error before anything is read or downloaded
    return _find(name).to(device)


def _find(name: str | Path) -> VideoDiffusion:
    path = expanded(name)
    # a run folder of `mcvd train` holds its averaged weights in model/
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return VideoDiffusion.from_folder(folder)
    if path.suffix in (".pt", ".pth"):
        from mcvd.interop.official import load_checkpoint

        return load_checkpoint(path)
    if str(name) in bundled_models():  # whatever else has this name here is not a model
        with as_file(files("mcvd.pretrained").joinpath(str(name))) as folder:
            return VideoDiffusion.from_folder(folder)
    if is_run(path):
        raise McvdError(f"{path} is a run of mcvd train that has not saved a model yet")
    if path.is_dir():
        published = max(path.glob("checkpoint_*.pt"), key=lambda file: (len(file.name), file.name), default=None)
        hint = f"; for the published checkpoints in it, name one: {published}" if published else ""
        raise McvdError(f"{path} is not a model folder: it has no {CONFIG}{hint}")
    bundled = ", ".join(bundled_models()) or "none"
    if path.is_file():
        if (path.parent / CONFIG).is_file():
            raise McvdError(f"{path} is a file of a model; name its folder: {path.parent}")
        raise McvdError(
            f"{path} is a file, not a model: a model is a folder, bundled ({bundled}) or the authors' checkpoint_N.pt"
        )
    if any(files("mcvd.recipes").joinpath(*place, f"{name}.yaml").is_file() for place in ((), ("paper",))):
        raise McvdError(f"{name} is a recipe, not a model: mcvd train {name} makes one, in a run folder to name here")
    if str(name).count("/") == 1 and not path.is_absolute() and not str(name).startswith("."):
        return VideoDiffusion.from_folder(_download(str(name)))
    raise McvdError(
        f"no model {name}: it is not a folder, not a .pt file and not bundled ({bundled}); name a hub model owner/name"
    )


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # the hub's errors share no base class
        raise McvdError(
            f"no folder {repository}, and it cannot be downloaded from the hub ({first_line(error)})"
        ) from None
