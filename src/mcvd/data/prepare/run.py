"""`prepare`: sources -> parts -> shards -> manifest, in steps that each survive a power cut.

    work/parts/         one decoded video each (see parts.py), made in any order by the workers
    work/journal.jsonl  one line per finished shard: the entries of its videos
    manifest.jsonl      at the end; then work/ is deleted

Shards are filled in the order of names and closed at a fixed size, so what is written does not depend on the number of
workers, nor on how often the work was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mcvd import __version__
from mcvd.config import to_dict
from mcvd.data.prepare.bair import find_bair
from mcvd.data.prepare.cityscapes import find_cityscapes
from mcvd.data.prepare.items import Item, find_items, no_videos
from mcvd.data.prepare.kth import find_kth
from mcvd.data.prepare.parts import (
    RETRY,
    UNOPENED,
    load_part,
    part_file,
    settle,
    temporary_beside,
    unwritable,
    write_atomically,
)
from mcvd.data.prepare.ucf101 import find_ucf101
from mcvd.data.prepare.workers import make_parts
from mcvd.data.settings import Settings
from mcvd.data.shards import FORMAT, MANIFEST, Entry, Manifest, is_prepared, read_manifest, shard_path
from mcvd.data.splits import assign_splits
from mcvd.data.stills import natural
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.lock import locked

SHARD_BYTES = 512 << 20
_HEADER = 128  # bytes of a shard before its frames: numpy fills them up to a multiple of 64
FEW = 4  # up to so many videos are decoded by this process: a worker takes seconds to start
FIND: dict[str, Callable[[Path], tuple[list[Item], Counter[str]]]] = {
    "videos": find_items,
    "kth": find_kth,
    "bair": find_bair,
    "cityscapes": find_cityscapes,
    "ucf101": find_ucf101,
}

Progress = Callable[[int, int], None]
"""Called as ``progress(videos done, videos to do)``, counting since this start."""


def prepare(
    source: Path | str,
    destination: Path | str,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Decodes every video at or below `source` into a prepared data set (`mcvd.data.shards`); returns its manifest.

    destination: a new or empty folder, or one of an earlier run, finished or interrupted, with the same settings: only
    missing videos, and sources that have changed (by size and time of change, then by hash), are decoded.
    workers: processes (default: one per core; only this one for a few videos). The result does not depend on it.
    Videos that are damaged or too short are left out; the manifest names them with the reason.
    Raises McvdError if no video is left, or the destination holds something else or other settings.
    """
    settings = settings or Settings()
    root, folder = expanded(source).resolve(), expanded(destination).resolve()
    if is_prepared(root):
        raise McvdError(f"{root} is prepared already; train with it as it is")
    if root == folder or root in folder.parents:
        raise McvdError(f"{folder} lies in the folder of the videos; choose one outside of {root}")
    if not root.exists():
        raise McvdError(f"{root} does not exist")
    items, ignored = FIND[settings.layout](root)
    if not items:
        raise no_videos(root)
    with locked(folder, lambda: _say_busy(folder)):
        old = _earlier(folder, settings)
        work = _Work(folder, settings, old, shard_bytes)
        if old is not None and old.root != str(root) and not any(item.name in work.known for item in items):
            raise McvdError(f"{folder} was prepared from {old.root}, not {root}; choose another folder")
        kept, todo = work.sort_out(items)
        if progress is not None:
            progress(0, len(todo))
        if todo:
            _drawn([item for item in todo if not item.problem], settings)  # an error now, not after hours of decoding
            entries = work.decode(todo, _processes(workers, len(todo)))
            for done, entry in enumerate(entries, 1):
                kept[entry.source] = entry
                if progress is not None:
                    progress(done, len(todo))
            kept.update(work.placed)  # with shard and offset
        kept = {name: work.hashed(entry) for name, entry in kept.items()}
        manifest = _manifest(items, kept, settings, root, ignored)
        if not manifest.videos:
            shutil.rmtree(work.work, ignore_errors=True)
            raise McvdError(f"no usable video in {root}; {len(items)} left out, e.g. {manifest.skipped[0].skipped}")
        _say_copies(manifest)
        if manifest != old:
            _write_manifest(folder, manifest)
        shutil.rmtree(work.work, ignore_errors=True)
        _drop_unused(folder, manifest)
    return manifest


def _say_busy(folder: Path) -> None:
    """Says that another process prepares here; this one waits, and then finds the work done."""
    warnings.warn(f"another process is preparing {folder}; waiting for it", stacklevel=6)


def _say_copies(manifest: Manifest) -> None:
    """Names videos held out of training of which training has a copy, where folders or a published split say so."""
    trained = {entry.content: entry.source for entry in manifest.videos if entry.split == "train"}
    held = [entry for entry in manifest.videos if entry.split in ("val", "test") and entry.content in trained]
    if held:
        some = ", ".join(f"{entry.source} of {trained[entry.content]}" for entry in held[:3])
        warnings.warn(
            f"{len(held)} of the videos held out of training are copies of videos for training ({some}"
            f"{', ...' if len(held) > 3 else ''}): a model has seen what it is measured on; delete them on one side",
            stacklevel=3,
        )


class _Work:
    """The state of a preparation on disk."""

    def __init__(self, folder: Path, settings: Settings, old: Manifest | None, shard_bytes: int):
        self.folder, self.settings, self.shard_bytes = folder, settings, shard_bytes
        self.work, self.parts = folder / "work", folder / "work" / "parts"
        self.journal = self.work / "journal.jsonl"
        self.frame_shape = (*settings.size, settings.channels)
        self.frame_bytes = int(np.prod(self.frame_shape))
        journaled = _read_journal(self.journal)
        self.known = {entry.source: entry for entry in (*(old.entries if old else ()), *journaled)}
        self.next_shard = 1 + max((entry.shard for entry in self.known.values()), default=-1)
        lost = _lost_shards(folder, self.known.values(), self.frame_bytes)
        self.known = {name: entry for name, entry in self.known.items() if entry.shard not in lost}
        self.placed: dict[str, Entry] = {}
        self.batch: list[Entry] = []

    def sort_out(self, items: Sequence[Item]) -> tuple[dict[str, Entry], list[Item]]:
        """What is done already and still valid, by name, and what is to be decoded."""
        kept, todo = {}, []
        for item in items:
            entry = self.known.get(item.name)
            same = entry and _still_true(item, entry)
            if same:
                kept[item.name] = same
            else:
                todo.append(item)
        return kept, todo

    def decode(self, todo: Sequence[Item], workers: int) -> Iterator[Entry]:
        """Decodes and packs; yields entries in order (their places are in `placed` at the end)."""
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            (self.folder / "shards").mkdir(exist_ok=True)
            if self.journal.is_file() and self.journal.read_bytes()[-1:] not in (b"", b"\n"):
                with self.journal.open("a") as out:
                    out.write("\n")  # the next line would go on where a full disk, or the power, cut the last
        except OSError as error:
            raise unwritable(self.folder, error) from error
        write_atomically(self.work / "settings.json", [json.dumps(self.settings.decoding())])
        whole: dict[str, Entry] = {}
        for item in todo:
            part = load_part(self.parts, item.name, self.frame_bytes)
            if part is not None and (part.bytes, part.mtime_ns) == _stamp(item):
                whole[item.name] = part
        made = make_parts([item for item in todo if item.name not in whole], self.settings, self.parts, workers)
        try:
            for item in todo:
                entry = whole[item.name] if item.name in whole else next(made)
                self._pack(entry)
                yield entry
        finally:
            made.close()  # type: ignore[attr-defined]
        self._close_shard()

    def hashed(self, entry: Entry) -> Entry:
        """The entry with the hash of its frames, which earlier versions did not take: all are compared by it."""
        if entry.skipped or entry.content:
            return entry
        place = _HEADER + entry.offset * self.frame_bytes, entry.frames * self.frame_bytes
        frames = np.memmap(shard_path(self.folder, entry.shard), np.uint8, "r", *place)
        return replace(entry, content=hashlib.sha256(frames.data).hexdigest())

    def _pack(self, entry: Entry) -> None:
        if entry.skipped:
            return
        waiting = self.batch[-1].offset + self.batch[-1].frames if self.batch else 0
        if self.batch and (waiting + entry.frames) * self.frame_bytes > self.shard_bytes:
            self._close_shard()
            waiting = 0
        self.batch.append(replace(entry, shard=self.next_shard, offset=waiting))

    def _close_shard(self) -> None:
        """Joins the waiting parts into one array file, then records it in the journal, then deletes the parts."""
        if not self.batch:
            return
        path = shard_path(self.folder, self.next_shard)
        temporary = temporary_beside(path)
        shape = (sum(entry.frames for entry in self.batch), *self.frame_shape)
        raws = [part_file(self.parts, entry.source, ".raw") for entry in self.batch]
        try:
            with temporary.open("wb") as out:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                for raw in raws:
                    with raw.open("rb") as stream:
                        shutil.copyfileobj(stream, out, 1 << 20)
                settle(out)
            os.replace(temporary, path)
            with self.journal.open("a", encoding="utf-8") as out:
                out.write(json.dumps([json.loads(entry.line()) for entry in self.batch]) + "\n")
                settle(out)
        except OSError as error:
            raise unwritable(path, error) from error
        for raw in raws:
            raw.unlink(missing_ok=True)
        self.placed.update({entry.source: entry for entry in self.batch})
        self.batch, self.next_shard = [], self.next_shard + 1


def _still_true(item: Item, entry: Entry) -> Entry | None:
    """The entry (with its new stamp), if the source is what it was when the entry was made; else None."""
    known_before = bool(item.problem) or entry.note == UNOPENED
    if entry.skipped.startswith(RETRY) or (known_before and item.problem != entry.skipped):
        return None
    with contextlib.suppress(OSError):
        size, mtime_ns = item.stamp()
        if (size, mtime_ns) == (entry.bytes, entry.mtime_ns):
            return entry
        if size == entry.bytes and entry.sha256 and item.sha256() == entry.sha256:  # touched or copied, but the same
            return replace(entry, mtime_ns=mtime_ns)
    return None


def _lost_shards(folder: Path, entries: Iterable[Entry], frame_bytes: int) -> set[int]:
    """Shards that are missing, or shorter than their content should be."""
    needed: dict[int, int] = {}
    for entry in entries:
        if not entry.skipped:
            end = _HEADER + (entry.offset + entry.frames) * frame_bytes
            needed[entry.shard] = max(needed.get(entry.shard, 0), end)
    paths = {shard: shard_path(folder, shard) for shard in needed}
    return {shard for shard, path in paths.items() if not path.is_file() or path.stat().st_size < needed[shard]}


def _read_journal(path: Path) -> list[Entry]:
    """Entries of finished shards; a line that was cut short is ignored."""
    entries: list[Entry] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, TypeError):
            entries += [Entry.parse(data) for data in json.loads(line)]
    return entries


def _earlier(folder: Path, settings: Settings) -> Manifest | None:
    """The manifest of an earlier run, if any; McvdError if the folder holds something else, or other settings."""
    old = read_manifest(folder) if is_prepared(folder) else None
    unfinished = folder / "work" / "settings.json"
    if old is not None:
        was = {key: old.settings.get(key) for key in settings.decoding()}
    elif unfinished.is_file():
        was = json.loads(unfinished.read_text())
    else:
        # one file is enough: what is in work/ and shards/ is deleted at the end, and may be the user's, or the source
        begun = {folder / ".lock", temporary_beside(unfinished)}
        strange = next((file for file in folder.rglob("*") if not file.is_dir() and file not in begun), None)
        if strange is not None:
            raise McvdError(f"{folder} holds other files ({strange.relative_to(folder)}); choose a new or empty folder")
        return None
    differ = [
        f"{key} {was.get(key)}, not {value}" for key, value in settings.decoding().items() if was.get(key) != value
    ]
    if differ:
        raise McvdError(f"{folder} was begun with {'; '.join(differ)}; choose another folder")
    return old


def _manifest(
    items: Sequence[Item], entries: dict[str, Entry], settings: Settings, root: Path, ignored: Counter[str]
) -> Manifest:
    """Assigns every usable video to a split. Those with a published split keep it."""
    ordered = sorted(items, key=lambda item: natural(item.name))
    usable = [item for item in ordered if not entries[item.name].skipped]
    drawn = _drawn(usable, settings, {name: entry.content for name, entry in entries.items()})
    out = []
    for item in ordered:
        entry = entries[item.name]
        split, group = ("", "") if entry.skipped else drawn.get(item.name, (item.split, item.group or item.name))
        out.append(replace(entry, split=split, group=group))
    plain = json.loads(json.dumps(to_dict(settings)))
    return Manifest(plain, str(root), __version__, tuple(out), dict(sorted(ignored.items())))


def _drawn(
    items: Sequence[Item], settings: Settings, contents: Mapping[str, str] | None = None
) -> dict[str, tuple[str, str]]:
    """(split, group), by name, of the videos that have no published split. contents: a hash of each video, by name."""
    names = [item.name for item in items if not item.split]
    shares = {"test_share": settings.test_share, "val_share": settings.val_share}
    hashes = None if contents is None else [contents[name] for name in names]
    return dict(zip(names, assign_splits(names, settings.split_by, contents=hashes, **shares)))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    head = {
        "mcvd_data": FORMAT,
        "version": manifest.version,
        "root": manifest.root,
        "settings": manifest.settings,
        "ignored": manifest.ignored,
        "lines": len(manifest.entries),
    }
    write_atomically(folder / MANIFEST, [json.dumps(head), *(entry.line() for entry in manifest.entries)])


def _drop_unused(folder: Path, manifest: Manifest) -> None:
    """Deletes shards of which no video is left, after the sources have changed, and incomplete ones of a killed run.
    A file of another name was put there by somebody else."""
    used = {shard_path(folder, entry.shard) for entry in manifest.videos}
    for path in (folder / "shards").iterdir():
        if path not in used and re.fullmatch(r"\d{5,}\.npy|\.\d{5,}\.npy\.tmp", path.name):
            path.unlink(missing_ok=True)


def _stamp(item: Item) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        return item.stamp()
    return None


def _processes(workers: int | None, videos: int) -> int:
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if videos <= FEW else min(cores, videos)
