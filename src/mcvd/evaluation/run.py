"""The streaming evaluation that `evaluate` and `score` share: clips -> batches -> rows -> numbers, restartable.

Clips are cut into batches at fixed places, and batch b belongs to process b mod (number of processes). A batch ends
with a whole file of rows in the shared folder; the first process waits until all rows are there, and makes the numbers.
So neither the number of processes nor restarts change what is computed together with what, and no process talks to
another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcvd.cache import cache_dir
from mcvd.config import to_dict
from mcvd.errors import McvdError
from mcvd.evaluation.clips import RealClips
from mcvd.evaluation.files import load_tensors, save_tensors
from mcvd.evaluation.folder import Folder
from mcvd.evaluation.measure import Instruments, as_saved, measure
from mcvd.evaluation.presets import OF_FEATURES
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result, System
from mcvd.evaluation.statistics import numbers
from mcvd.evaluation.summary import markdown
from mcvd.evaluation.table import Table
from mcvd.text import counted

LOOK_EVERY = 0.5  # s between looks for the rows of other processes

Report = Callable[[str], None]
Progress = Callable[[int, int], None]
"""Called as ``progress(videos done, videos to do)``, of this process and this start."""


@dataclass(frozen=True)
class Worker:
    """This process among those that share an evaluation."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def of_torchrun() -> Worker:
        """As torchrun says in the environment; one alone without it. McvdError where what it says cannot be."""
        rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
            raise McvdError(
                f"RANK={rank} and WORLD_SIZE={count} in the environment (0 and 1 where unset) name no process of a "
                "number of processes; torchrun sets both: unset them, or start with it"
            )
        return Worker(int(rank), int(count))


@dataclass(frozen=True)
class Job:
    """All that an evaluation depends on."""

    protocol: Protocol
    system: System
    metrics: tuple[str, ...]
    real: RealClips
    clips: int
    """At most the protocol's."""
    data: str
    """sha256 of the real clips."""
    different: int
    """How many of them are different: data may hold fewer than are asked for."""
    make: Callable[[int, Tensor], Tensor]
    """(number of the first clip, real clips ``(B, T, C, H, W)``) -> made videos ``(B, S, T, C, H, W)``, whole clips."""
    batch: int
    """Clips that are made and measured at once."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the networks that measure, by name."""
    videos: str = ""
    """sha256 of the made videos' files, where there are such."""

    def identity(self) -> dict[str, Any]:
        """What the folder is claimed for."""
        mine = {"protocol": to_dict(self.protocol), "system": to_dict(self.system), "data": self.data}
        more = {"clips": self.clips, "metrics": list(self.metrics), "networks": dict(self.networks)}
        return {**mine, **more, "videos": self.videos}


def run(
    job: Job,
    folder: Folder,
    instruments: Callable[[], Instruments],
    *,
    videos: bool = True,
    worker: Worker | None = None,
    device: torch.device | str = "cpu",
    report: Report = print,
    progress: Progress | None = None,
) -> Result | None:
    """Does what of the job is not done yet -> the result; None in all processes but the first.

    instruments: loads the networks that measure, if there is anything to do. videos: keep what was made.
    device: where it is done, for the record. Raises McvdError where the folder holds another evaluation.
    """
    worker = worker or Worker.of_torchrun()
    folder.check(job.identity())
    if job.clips < 2 and OF_FEATURES & set(job.metrics):
        report("note: FVD and KVD need at least 2 clips, there is 1: they have no number")
    if job.different < job.clips:
        report(f"note: {job.different} of {counted(job.clips, 'clip')} are different, the others repeat them")
    finished = folder.result()
    if finished is not None:
        return finished if worker.rank == 0 else None
    table = folder.table()
    if len(table) and worker.rank == 0:
        have = len({clip for clip, _ in table})
        report(f"continuing {folder.path}: {have} of {counted(job.clips, 'clip')} are done")
    cached = _cached_features(job)
    todo = [part for part in _batches(job, table) if (part[0] // job.batch) % worker.count == worker.rank]
    done, total = 0, sum(end - first for first, end in todo) * job.protocol.samples
    tools = instruments() if todo else Instruments()
    for first, end in todo:
        began = time.perf_counter()
        real = job.real.batch(range(first, end))
        made = job.make(first, real).cpu()
        known = None if cached is None else cached[first:end]
        rows = measure(job.protocol, job.metrics, tools, first, real, made, known)
        folder.claim(job.identity())
        if videos:
            for clip, one, several in zip(range(first, end), real, as_saved(made)):
                folder.save_video(clip, one, several)
        seconds = (time.perf_counter() - began) / (end - first)
        rows.add(range(first, end), 0, seconds=torch.full((end - first,), seconds, dtype=torch.float64))
        folder.save_rows(rows, first, end)
        done += (end - first) * job.protocol.samples
        if progress is not None:
            progress(done, total)
    if worker.rank != 0:
        return None
    return _finish(job, folder, worker, device, report)


def _batches(job: Job, table: Table) -> list[tuple[int, int]]:
    """(first, end) of every run of clips that has no rows yet, never across the fixed places."""
    have = {clip for clip, _ in table}
    out: list[tuple[int, int]] = []
    for clip in range(job.clips):
        if clip in have:
            continue
        if out and out[-1][1] == clip and clip % job.batch:
            out[-1] = (out[-1][0], clip + 1)
        else:
            out.append((clip, clip + 1))
    return out


def _finish(job: Job, folder: Folder, worker: Worker, device: torch.device | str, report: Report) -> Result:
    table = folder.table()
    missing = job.clips - len({clip for clip, _ in table})
    if missing and worker.count == 1:  # nobody else will bring them
        raise McvdError(f"the rows of {counted(missing, 'clip')} are gone from {folder.path}; run the same again")
    if missing:
        report(f"waiting for the other processes: {missing} of {counted(job.clips, 'clip')} to come")
        while folder.clips_done() < job.clips and not folder.finished:
            time.sleep(LOOK_EVERY)
        table = folder.table()
    report("computing numbers and intervals")
    _cache_features(job, table)
    values, curves = numbers(table, job.protocol, job.metrics)
    result = Result(
        job.protocol,
        job.system,
        job.clips,
        len(table) // job.clips,
        job.data,
        values,
        curves,
        different=job.different,
        networks=dict(job.networks),
        machine=machine(device),
        seconds=float(table.rows("seconds", sample=0).sum()),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    folder.finish(table, result, markdown(result))
    return result


def nothing(line: str) -> None:
    """Takes a report: of several processes, one speaks."""


def machine(device: torch.device | str) -> str:
    """What it was computed on, in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


# ------------------------------------------------------------------------------- features of the real clips, kept


def _features_file(job: Job) -> Path | None:
    network = job.networks.get("i3d")
    if network is None or not OF_FEATURES & set(job.metrics):
        return None
    seen = range(job.protocol.clip_frames)[job.protocol.made if job.protocol.fvd == "made" else slice(None)]
    # the published way of real frames differs by a rounding from the plain one
    key = f"{job.data} {job.clips} {network} {job.protocol.pixels} {seen.start}-{seen.stop}"
    return cache_dir() / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _cached_features(job: Job) -> Tensor | None:
    """Features of the real clips from an earlier evaluation on the same pixels, ``(clips, D)``; None where there are
    none, or a damaged file of them, which is only a cache."""
    file = _features_file(job)
    if file is None or not file.is_file():
        return None
    try:
        real = load_tensors(file).get("real")
    except McvdError:
        return None
    return real if real is not None and real.ndim == 2 and len(real) == job.clips else None


def _cache_features(job: Job, table: Table) -> None:
    file = _features_file(job)
    if file is not None and _cached_features(job) is None:
        with contextlib.suppress(McvdError):  # a cache that others fill, and this user may only read
            save_tensors({"real": table.rows("real", sample=0)}, file)
