"""Orders from the page, carried out one after another in a separate thread."""

from __future__ import annotations

import io
import queue
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from mcvd.data.sheet import as_uint8, contact_sheet
from mcvd.diffusion.solvers import solver_table
from mcvd.errors import McvdError
from mcvd.given import whole
from mcvd.model import VideoDiffusion
from mcvd.planner import plan
from mcvd.text import counted, described, printable
from mcvd.web.clips import MOST_FRAMES, Clip, ClipStore

State = Literal["waiting", "running", "done", "failed", "cancelled"]
MOST_SAMPLES = 32
MOST_WAITING = 16
MOST_REMEMBERED = 200
"""Finished orders; their videos are kept as long as the store keeps them."""


@dataclass(frozen=True)
class Cell:
    """A frame of the timeline that comes from a clip."""

    clip: str
    frame: int
    given: bool = True
    """False: the model does not see it, and generates it anew."""


@dataclass(frozen=True)
class Order:
    """What the page asks for; its fields are the keys of the JSON."""

    timeline: list[Cell | None]
    """One entry per frame of the video; None: to be generated, and in no clip."""
    samples: int = 1
    solver: str | None = None
    steps: int | None = None
    seed: int = 0
    guidance: float = 1.0
    name: str = "video"


@dataclass
class Job:
    """An order and its progress."""

    order: Order
    known: list[bool]
    blocks: list[int]
    """For each frame the number of the block that generates it, from 1; 0: given."""
    fps: float
    state: State = "waiting"
    done: int = 0
    total: int = 0
    began: float = 0.0
    seconds: float = 0.0
    error: str = ""
    clips: list[str] = field(default_factory=list)
    """Ids of the generated clips, one per sample."""
    stop: threading.Event = field(default_factory=threading.Event)

    def status(self) -> dict[str, object]:
        """What the page is told."""
        running = self.state == "running"
        seconds = time.monotonic() - self.began if running else self.seconds
        left = seconds / self.done * (self.total - self.done) if running and self.done else None
        return {
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "seconds": seconds,
            "left": left,
            "error": self.error,
            "blocks": self.blocks,
            "fps": self.fps,
        }


class _Stopped(Exception):
    pass


class JobQueue:
    """Carries out one order at a time; nothing else uses the model."""

    def __init__(self, model: VideoDiffusion, store: ClipStore, **options: str) -> None:
        self.model, self.store, self.options = model, store, options
        self.jobs: dict[str, Job] = {}
        self._waiting: dict[str, Tensor] = {}
        """For each waiting order, the video with its given frames; who pops it, to run or cancel it, owns the order."""
        self._keys: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mcvd-serve", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> str:
        """Queues an order; returns its id. McvdError at once for what the model cannot do."""
        job, video = self._job(order)
        if len(self._waiting) >= MOST_WAITING:
            raise McvdError(f"{MOST_WAITING} orders are waiting already; try again when one is done")
        over = [key for key, other in self.jobs.items() if other.state not in ("waiting", "running")]
        for key in over[: max(len(over) - MOST_REMEMBERED, 0)]:
            del self.jobs[key]
        key = secrets.token_hex(6)
        self.jobs[key], self._waiting[key] = job, video
        self._keys.put(key)
        return key

    def __getitem__(self, key: str) -> Job:
        if key not in self.jobs:
            raise McvdError("that order is no longer here; send it again")
        return self.jobs[key]

    def cancel(self, key: str) -> None:
        """Stops an order: at once if it waits, else before its next step."""
        job = self[key]
        job.stop.set()
        if self._waiting.pop(key, None) is not None:
            job.state = "cancelled"

    def sheet(self, key: str) -> bytes:
        """The contact sheet of all frames that an order generated, as PNG."""
        job, file = self[key], io.BytesIO()
        if not job.clips:
            raise McvdError("that order has no videos yet")
        rows = [(f"sample {i}", self.store[clip].video) for i, clip in enumerate(job.clips, 1)]
        contact_sheet(rows, [not flag for flag in job.known]).save(file, "png")
        return file.getvalue()

    def close(self) -> None:
        """Stops all orders and waits for the thread."""
        for key in list(self.jobs):
            self.cancel(key)
        self._keys.put(None)
        self._thread.join()

    def _job(self, order: Order) -> tuple[Job, Tensor]:
        """An order as a job, and its video with the given frames."""
        solver, steps = self.model.sampler(order.solver, order.steps)
        order = replace(order, solver=solver, name=printable(order.name))  # as pages opened later will see it
        whole("frames in the timeline", len(order.timeline), 1, MOST_FRAMES)
        whole("samples", order.samples, 1, MOST_SAMPLES)
        whole("seed", order.seed, 0)
        self.model.check_guidance(order.guidance)
        clips = {cell.clip: self.store[cell.clip] for cell in order.timeline if cell is not None}
        known = [cell is not None and cell.given for cell in order.timeline]
        if all(known):
            raise McvdError("every frame is given, so there is none to generate")
        video = torch.zeros(len(known), self.model.channels, *self.model.size, dtype=torch.uint8)
        for i, cell in enumerate(order.timeline):
            if cell is not None:
                frames = clips[cell.clip].video
                whole(f"the frame of {clips[cell.clip].name}", cell.frame, 0, len(frames) - 1)
                if cell.given:
                    video[i] = frames[cell.frame]
        blocks = [0] * len(known)
        for number, block in enumerate(plan(known, self.model.layout, self.model.config.masking), 1):
            for i, made in zip(block.current, block.made):
                if made:
                    blocks[i] = number
        solver_table(solver, self.model.config.schedule, steps)
        fps = next((clip.fps for clip in clips.values()), self.model.config.fps)
        return Job(order, known, blocks, fps), video

    def _work(self) -> None:
        while (key := self._keys.get()) is not None:
            if (video := self._waiting.pop(key, None)) is None:
                continue
            job = self.jobs[key]
            job.began, job.state = time.monotonic(), "running"
            state: State = "failed"
            try:
                self._make(job, video)
                state = "done"
            except _Stopped:
                state = "cancelled"
            except Exception as error:  # an order that fails must not end the thread that the next one needs
                job.error = described(error)
            job.seconds = time.monotonic() - job.began
            job.state = state  # last: whoever sees it finds the rest in place

    def _make(self, job: Job, video: Tensor) -> None:
        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total
            if job.stop.is_set():
                raise _Stopped

        order = job.order
        videos = self.model.fill(
            video,
            job.known,
            samples=order.samples,
            solver=order.solver,
            steps=order.steps,
            seed=order.seed,
            guidance=order.guidance,
            progress=progress,
            **self.options,  # type: ignore[arg-type]
        )
        made, given = counted(job.known.count(False), "frame"), counted(job.known.count(True), "given frame")
        for i, sample in enumerate(videos, 1):
            name = f"{order.name} {i}" if order.samples > 1 else order.name
            job.clips.append(self.store.put(Clip(name, as_uint8(sample), job.fps, f"{made} generated from {given}")))
