"""The streaming evaluation that `evaluate` and `score` share: clips -> batches -> rows -> numbers, restartable.

Batches start at fixed clips, and batch b belongs to process b mod (number of processes). Each batch ends with one
complete file of rows in the shared folder; the first process waits until all rows are there, then computes the numbers.
So neither the number of processes nor restarts change what is batched together, and processes share nothing but the
folder.
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
from mcvd.evaluation.result import Result, Source, System
from mcvd.evaluation.statistics import numbers
from mcvd.evaluation.summary import markdown
from mcvd.evaluation.table import Table
from mcvd.text import counted

LOOK_EVERY = 0.5  # s between checks for the rows of other processes

Report = Callable[[str], None]
Progress = Callable[[int, int], None]
"""Called as ``progress(videos done, videos to do)``, counting this process since this start."""


@dataclass(frozen=True)
class Worker:
    """This process among those that share an evaluation."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def of_torchrun() -> Worker:
        """From torchrun's environment variables; the only process without them. Raises McvdError if they are wrong."""
        rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
            raise McvdError(
                f"RANK={rank} and WORLD_SIZE={count} in the environment (0 and 1 where unset) are not a rank "
                "and a number of processes; torchrun sets both: unset them, or start with torchrun"
            )
        return Worker(int(rank), int(count))


@dataclass(frozen=True)
class Job:
    """Everything that an evaluation depends on."""

    protocol: Protocol
    system: System
    metrics: tuple[str, ...]
    real: RealClips
    clips: int
    """How many; at most the protocol's."""
    data: str
    """sha256 of the real clips."""
    different: int
    """How many of the clips are distinct: the data may hold fewer than requested."""
    make: Callable[[int, Tensor], Tensor]
    """(number of the first clip, real clips ``(B, T, C, H, W)``) -> generated whole clips ``(B, S, T, C, H, W)``."""
    batch: int
    """Clips generated and measured at once."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the metric networks, by name."""
    sources: list[Source] = field(default_factory=list)
    """Where the real clips come from, if they are cut out of videos."""
    videos: str = ""
    """sha256 of the generated videos' files; empty if a model generates them."""

    def identity(self) -> dict[str, Any]:
        """What identifies this evaluation in its folder."""
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
    """Does what is still to do of the job -> the result; None in all processes but the first.

    instruments: loads the metric networks, if there is anything to do. videos: keep the generated videos.
    device: where it runs, for the record. Raises McvdError if the folder holds another evaluation.
    """
    worker = worker or Worker.of_torchrun()
    folder.check(job.identity())
    if job.clips < 2 and OF_FEATURES & set(job.metrics):
        report("note: FVD and KVD need at least 2 clips, there is 1: they are left out")
    if job.different < job.clips:
        report(f"note: {job.different} of {counted(job.clips, 'clip')} are distinct, the others repeat them")
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
        rows.add(range(first, end), 0, seconds=torch.full((end - first,), seconds, dtype=torch.float64, device="cpu"))
        folder.save_rows(rows, first, end)
        done += (end - first) * job.protocol.samples
        if progress is not None:
            progress(done, total)
    if worker.rank != 0:
        return None
    return _finish(job, folder, worker, device, report)


def _batches(job: Job, table: Table) -> list[tuple[int, int]]:
    """(first, end) of every run of clips without rows, never across the start of a batch."""
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
    if missing and worker.count == 1:  # nobody else will measure them
        raise McvdError(f"the rows of {counted(missing, 'clip')} are missing from {folder.path}; run the same again")
    if missing:
        report(f"waiting for the other processes: {missing} of {counted(job.clips, 'clip')} to come")
        while folder.clips_done() < job.clips and not folder.finished:
            time.sleep(LOOK_EVERY)
        table = folder.table()
    report("computing numbers and intervals")
    _cache_features(job, table)
    values, curves = numbers(table, job.protocol, job.metrics, job.sources)
    result = Result(
        job.protocol,
        job.system,
        job.clips,
        job.protocol.samples,
        job.data,
        values,
        curves,
        different=job.different,
        networks=dict(job.networks),
        sources=job.sources,
        machine=machine(device),
        seconds=float(table.rows("seconds", sample=0).sum()),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    folder.finish(table, result, markdown(result))
    return result


def nothing(line: str) -> None:
    """Ignores a line: of several processes, only the first reports."""


def machine(device: torch.device | str) -> str:
    """What it was computed on, in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


# ------------------------------------------------------------------------------- features of the real clips, cached


def _features_file(job: Job) -> Path | None:
    network = job.networks.get("i3d")
    if network is None or not OF_FEATURES & set(job.metrics):
        return None
    seen = range(job.protocol.clip_frames)[job.protocol.made if job.protocol.fvd == "made" else slice(None)]
    # published real frames differ from plain ones by rounding
    key = f"{job.data} {job.clips} {network} {job.protocol.pixels} {seen.start}-{seen.stop}"
    return cache_dir() / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _cached_features(job: Job) -> Tensor | None:
    """Features of the real clips from an earlier evaluation on the same pixels, ``(clips, D)``; None if there are none,
    or if the cache file is damaged."""
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
        with contextlib.suppress(McvdError):  # this user may not be allowed to write into the cache
            save_tensors({"real": table.rows("real", sample=0)}, file)
