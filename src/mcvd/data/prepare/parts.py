"""One item decoded to one file: the step that runs in worker processes, and that is never repeated.

A part is ``<id>.raw`` (frames, one after another, no header) and ``<id>.json`` (its manifest line without a place).
The json is written last, and both are atomic, so a part that has one is complete, even if a worker whose parent was
killed is still making the same part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from av.error import FFmpegError

from mcvd.data.prepare.decode import Decoder
from mcvd.data.prepare.items import Item
from mcvd.data.settings import Settings
from mcvd.data.shards import Entry
from mcvd.errors import McvdError, Unwritable

RETRY = "the decoder failed: "  # begins a reason that may not lie in the file itself: tried again next time

UNOPENED = "not opened"  # the note if the reason was known before: tried again once that reason is gone


def part_file(parts: Path, name: str, suffix: str) -> Path:
    """The file of an item's part."""
    return parts / (hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:24] + suffix)


def make_part(item: Item, settings: Settings, parts: Path) -> Entry:
    """Decodes an item into its part; an item that cannot be used gives an entry that says why.

    Raises Unwritable, but nothing that a source can cause.
    """
    stamp, raw = (0, 0), part_file(parts, item.name, ".raw")
    partial = _beside(raw)
    try:
        stamp = item.stamp()
        with item.on_disk() as readable:
            decoder = Decoder(readable, settings)
            frames, content = _write_frames(decoder, partial)
        if frames < settings.min_frames:
            raise too_short(item.name, frames, settings.min_frames)
        sha256 = item.sha256()
        if item.stamp() != stamp:
            raise OSError(f"{item.name} was changed while it was read")
        entry = Entry(item.name, *stamp, sha256=sha256, content=content, frames=frames, fps=decoder.fps,
                      source_size=decoder.source_size, note="; ".join(decoder.notes))  # fmt: skip
    except Unwritable:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # a full disk needs the space
        raise
    except McvdError as error:
        again = RETRY if _refused(error) else ""
        entry = Entry(item.name, *stamp, skipped=f"{again}{error}", note=UNOPENED if item.problem else "")
    except Exception as error:
        entry = Entry(item.name, *stamp, skipped=f"{RETRY}{type(error).__name__}: {error}")
    try:
        if entry.skipped:
            partial.unlink(missing_ok=True)
        else:
            os.replace(partial, raw)
    except OSError as error:
        raise unwritable(raw, error) from error
    save_entry(entry, parts)
    return entry


def _refused(error: BaseException | None) -> bool:
    """Whether the system refused a file (no permission, a disk or network that fails), whatever is in it."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, FFmpegError) and error.errno is not None:
            return True
        error = error.__cause__
    return False


def save_entry(entry: Entry, parts: Path) -> None:
    """Writes the json of a part."""
    path = part_file(parts, entry.source, ".json")
    write_atomically(path, [entry.line()], _beside(path))


def load_part(parts: Path, name: str, frame_bytes: int) -> Entry | None:
    """The entry of a complete part, else None."""
    try:
        entry = Entry.parse(json.loads(part_file(parts, name, ".json").read_text(encoding="utf-8")))
        whole = entry.skipped or part_file(parts, name, ".raw").stat().st_size == entry.frames * frame_bytes
        return entry if whole and not entry.skipped.startswith(RETRY) else None
    except (OSError, ValueError, TypeError):
        return None


def write_atomically(path: Path, lines: Iterable[str], temporary: Path | None = None) -> None:
    """Writes a text file atomically, also with regard to power cuts.

    temporary: the file that becomes `path` (None: always the same, so that what a kill leaves is overwritten).
    """
    temporary = temporary or temporary_beside(path)
    try:
        with temporary.open("w", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in lines)
            settle(out)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error


def temporary_beside(path: Path) -> Path:
    """Where one process at a time writes what becomes `path`."""
    return path.with_name(f".{path.name}.tmp")


def _beside(path: Path) -> Path:
    """Where this process writes what becomes `path`: another process may be making the same part."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def settle(out: IO) -> None:
    """Waits until what was written is on disk."""
    out.flush()
    os.fsync(out.fileno())


def too_short(name: str, frames: int, needed: int) -> McvdError:
    """Why a video of so few frames is left out."""
    return McvdError(f"{name} has {frames} frame(s); at least {needed} are needed")


def unwritable(path: Path, error: OSError) -> Unwritable:
    """The error for a destination that cannot be written."""
    return Unwritable(f"cannot write {path} ({error.strerror or error}); what is done is kept: run the same again")


def _write_frames(frames: Iterable[np.ndarray], path: Path) -> tuple[int, str]:
    """Writes frames as they come, so that the length of a video costs no memory; returns their number and sha256."""
    count, digest, source = 0, hashlib.sha256(), iter(frames)
    try:
        out = path.open("wb")
    except OSError as error:
        raise unwritable(path, error) from error
    with out:
        while (frame := next(source, None)) is not None:
            try:
                out.write(frame.data)
            except OSError as error:
                raise unwritable(path, error) from error
            digest.update(frame.data)
            count += 1
        try:
            settle(out)
        except OSError as error:
            raise unwritable(path, error) from error
    return count, digest.hexdigest()
