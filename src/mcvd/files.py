"""Names of files, atomic writes, and how to recognise the folders that mcvd itself made."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mcvd.errors import McvdError

OWN = {"recipe.yaml": ("log.jsonl", "samples", "model"), "manifest.jsonl": ("shards",), "identity.json": ("videos",)}
"""How to recognise folders of a training run, of prepared data and of an evaluation: a file, and one of these beside
it."""


def own_folders(root: Path, files: Iterable[Path]) -> set[Path]:
    """The folders of these files, below `root`, that mcvd itself made: their contents are not the user's data."""
    return {
        file.parent
        for file in files
        if file.parent != root and any((file.parent / beside).exists() for beside in OWN.get(file.name, ()))
    }


def is_run(folder: Path) -> bool:
    """Whether `mcvd train` made this folder, perhaps with no model in it yet."""
    return (folder / "recipe.yaml").is_file() and (folder / "samples").is_dir()


def model_output(path: Path | str) -> Path:
    """The folder into which a command writes a model, expanded; McvdError if the model of a run would be hidden."""
    folder = expanded(path)
    if is_run(folder) or is_run(folder.parent):
        raise McvdError(f"{folder} is of a run of mcvd train, whose own model it would hide; choose another --output")
    return folder


def expanded(path: Path | str) -> Path:
    """The path with `~` or `~user` replaced by that home folder; as it is if there is none: names may begin with ~.

    Raises McvdError for an address such as https://..., which nothing here reads.
    """
    if re.match(r"(https?|ftp|s3|gs|hf|file):/", str(path)):
        raise McvdError(f"{path} is an address, not a file: download it first (models of the hub are named owner/name)")
    return Path(os.path.expanduser(path))


def stem(path: Path | str) -> str:
    """The name of a file without its suffix, or the whole name of a folder, where a dot does not begin a suffix."""
    path = expanded(path)
    return path.resolve().name if path.is_dir() else path.stem


def model_name(model: Path | str) -> str:
    """What a model is called, as `mcvd.load` takes it: its `stem`, after the name of its training where all trainings
    use the same names: RUN and RUN-best for RUN/model and RUN/best, EXPERIMENT_STEP for
    EXPERIMENT/logs/checkpoint_STEP.pt (a checkpoint given without its folder has its own name)."""
    path, name = expanded(model), stem(model)
    if path.is_dir():
        run = path.resolve().parent
        return {"model": run.name, "best": f"{run.name}-best"}.get(name, name) if is_run(run) else name
    if path.suffix not in (".pt", ".pth"):
        return path.name  # on a hub, where owner/kth-1.5 is not another step of owner/kth-1
    step = re.fullmatch(r"checkpoint(_.*)?", name)
    folder = path.parent.resolve()
    while folder.name == "logs":
        folder = folder.parent
    return name if step is None or not folder.name or path.parent == Path() else folder.name + (step[1] or "")


@contextlib.contextmanager
def whole_file(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary file beside `path` to write into, which replaces `path` at the end. If writing fails, `path` stays as
    it was and the temporary file is removed. Permissions are those of any new file. Raises OSError if writing fails.

    temporary: its path, if no other process may be writing `path`; by default, every process has one of its own.
    """
    temporary = temporary or path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files readable only by their owner
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # which would hide why writing failed
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file atomically. Raises OSError if that fails."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
