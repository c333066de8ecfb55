"""Decoding in several processes. A worker is `python -m mcvd.data.prepare.workers`: one JSON line in, one out.

Not `multiprocessing`: its spawn imports the caller's main script again, its workers outlive a killed parent, and one
that crashes (FFmpeg on a damaged file) breaks the whole pool. Here a worker ends when its input does, and a crash costs
one file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mcvd.config import from_dict, to_dict
from mcvd.data.prepare.items import Item
from mcvd.data.prepare.parts import RETRY, make_part, save_entry
from mcvd.data.settings import Settings
from mcvd.data.shards import Entry
from mcvd.errors import McvdError, Unwritable


def make_parts(items: Sequence[Item], settings: Settings, parts: Path, workers: int) -> Iterator[Entry]:
    """The entries of all items, in their order, decoded by this many processes (1: by this one).

    Raises McvdError if the destination cannot be written or no worker can be started.
    """
    if workers <= 1:
        for item in items:
            yield make_part(item, settings, parts)
        return
    crew = _Crew(items, settings, parts)
    threads = [threading.Thread(target=crew.serve, daemon=True) for _ in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    try:
        early: dict[int, Entry] = {}
        for index in range(len(items)):
            while index not in early:
                done, outcome = crew.done.get()
                if isinstance(outcome, McvdError):
                    raise outcome
                early[done] = outcome
            yield early.pop(index)
    finally:
        crew.stop()
        for thread in threads:
            thread.join()


class _Crew:
    """Threads of the parent, each with one worker process, that share a list of items."""

    def __init__(self, items: Sequence[Item], settings: Settings, parts: Path):
        self.todo = iter(enumerate(items))
        self.settings, self.parts = settings, parts
        self.done: queue.Queue[tuple[int, Entry | McvdError]] = queue.Queue()
        self.lock = threading.Lock()
        self.stopped = False
        self.processes: set[subprocess.Popen] = set()

    def serve(self) -> None:
        """The loop of one thread."""
        process = None
        while (task := self._next()) is not None:
            index, item = task
            try:
                process = process or self._start()
                outcome = self._ask(process, item)
                if outcome is None:
                    code, process = self._end(process), None
                    if self.stopped:
                        return
                    outcome = Entry(item.name, *item.stamp(), skipped=f"{RETRY}its process ended with code {code}")
                    save_entry(outcome, self.parts)
            except McvdError as error:
                outcome = error
            except Exception as error:  # the reader waits for an answer, whatever happens here
                outcome = McvdError(f"cannot decode {item.name}: {type(error).__name__}: {error}")
            self.done.put((index, outcome))
        if process is not None:
            self._end(process)

    def _next(self) -> tuple[int, Item] | None:
        with self.lock:
            return None if self.stopped else next(self.todo, None)

    def _ask(self, process: subprocess.Popen, item: Item) -> Entry | McvdError | None:
        """The answer of a worker; None if it died."""
        task = {"item": asdict(item), "settings": to_dict(self.settings), "parts": str(self.parts)}
        try:
            process.stdin.write(json.dumps(task) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            answer = json.loads(process.stdout.readline() or "null")  # type: ignore[union-attr]
        except (OSError, ValueError):
            return None
        if answer is None:
            return None
        return Unwritable(answer["unwritable"]) if "unwritable" in answer else Entry.parse(answer)

    def _start(self) -> subprocess.Popen:
        here = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],  # -P: a torch.py in the current folder is not torch
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                encoding="utf-8",
            )
            with self.lock:
                self.processes.add(process)
            if self.stopped:
                process.kill()
            if process.stdout.readline() != "ready\n":  # type: ignore[union-attr]
                errors.seek(0)
                last = (errors.read().decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
                process.kill()
                self._end(process)
                raise McvdError(f"a worker process cannot start ({last}); try with one worker")
        return process

    def _end(self, process: subprocess.Popen) -> int:
        """Ends a worker's input, and so the worker; returns its exit code."""
        with contextlib.suppress(BrokenPipeError):  # it died before it was asked
            process.stdin.close()  # type: ignore[union-attr]
        code = process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        with self.lock:
            self.processes.discard(process)
        return code

    def stop(self) -> None:
        """Ends all workers now."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.kill()


def main() -> None:
    """A worker: answers until its input ends, as it does when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    tasks: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    print("ready", file=answers, flush=True)
    while (line := tasks.get()) is not None:
        task = json.loads(line)
        item = from_dict(Item, task["item"], "item")
        settings = from_dict(Settings, task["settings"], "settings")
        try:
            answer = make_part(item, settings, Path(task["parts"])).line()
        except Unwritable as error:
            answer = json.dumps({"unwritable": str(error)})
        tasks.task_done()
        print(answer, file=answers, flush=True)


def _listen(tasks: queue.Queue[str | None]) -> None:
    """Passes the input on. If it ends before all is answered, the parent was killed: nobody needs the rest."""
    for line in sys.stdin:
        tasks.put(line)
    if tasks.unfinished_tasks:
        os._exit(1)
    tasks.put(None)


if __name__ == "__main__":
    main()
