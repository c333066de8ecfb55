"""Files that are written whole or not at all, and the folders that are of mcvd's own making."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

OWN = {"recipe.yaml": ("log.jsonl", "samples", "model"), "manifest.jsonl": ("shards",), "identity.json": ("videos",)}
"""What tells folders of a training run, of prepared data and of an evaluation: a file, and one of these beside it."""


def own_folders(root: Path, files: Iterable[Path]) -> set[Path]:
    """The folders of these files, below `root`, that mcvd made itself: what lies in them is nobody's data."""
    return {
        file.parent
        for file in files
        if file.parent != root and any((file.parent / beside).exists() for beside in OWN.get(file.name, ()))
    }


def stem(path: Path | str) -> str:
    """The name of a file without its suffix, of a folder whole: a dot in it is no suffix."""
    path = Path(path).expanduser()
    return path.resolve().name if path.is_dir() else path.stem


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write into, which takes its place at the end; where writing fails, neither is
    changed. It can be read by whom any new file can. Raises OSError where it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files readable by their owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file, whole or not at all. Raises OSError where it cannot."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
