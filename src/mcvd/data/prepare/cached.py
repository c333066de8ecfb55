"""Raw videos, prepared once, in the cache, when they are first needed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mcvd.cache import cache_dir
from mcvd.config import to_dict
from mcvd.data.hdf5 import hdf5_shards
from mcvd.data.prepare.run import prepare
from mcvd.data.settings import PRESETS, Settings
from mcvd.data.shards import is_prepared, read_manifest
from mcvd.errors import Unwritable
from mcvd.text import counted

LINE_EVERY = 20.0  # s between lines while videos are prepared


def prepared_data(path: Path, settings: Settings, report: Callable[[str], None]) -> Path:
    """`path` itself if clips can be read from it (a prepared folder, HDF5 shards); else the folder in the cache into
    which its videos are prepared, now or before. Sources that have changed since are decoded again.
    """
    if is_prepared(path):
        was = read_manifest(path).settings
        usual = replace(PRESETS[settings.layout], layout="videos")  # what a recipe need not name
        for key in ("fps", "layout", "fit", "split_by"):
            value = getattr(settings, key)
            if value not in (getattr(usual, key), was.get(key)):
                report(f"note: {path} was prepared with {key} {was.get(key)}, not {value}, and is used as it is")
        return path
    if path.exists() and hdf5_shards(path):
        return path
    key = json.dumps([str(path.resolve()), to_dict(settings)])  # runs with another split get a folder of their own
    folder = cache_dir() / "prepared" / f"{path.resolve().stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_EVERY:
            said = time.monotonic()
            report(f"preparing {path}: {done} of {total} videos")

    try:
        manifest = prepare(path, folder, settings, progress=progress)
    except Unwritable as error:
        raise Unwritable(f"{error}; MCVD_CACHE says where the cache is") from None
    frames = sum(entry.frames for entry in manifest.videos)
    warned = [entry for entry in manifest.videos if entry.note]
    remarks = [
        f"{len(entries)} {what} ({', '.join(entry.source for entry in entries[:5])})"
        for what, entries in (("left out", manifest.skipped), ("used with a warning", warned))
        if entries
    ]
    more = f"; {', '.join(remarks)}; the reasons: mcvd data info {folder}" if remarks else ""
    what = f"{counted(len(manifest.videos), 'video')}, {counted(frames, 'frame')} of {path}"
    report(f"{what} {'is' if len(manifest.videos) == 1 else 'are'} prepared in {folder}{more}")
    return folder
