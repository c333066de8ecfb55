"""The processes of a run: joining torchrun's group, and what they agree on."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mcvd.device import default_device, usable_device

SETTLE = 0.2  # s


@dataclass
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device

    @staticmethod
    @contextlib.contextmanager
    def join(device: str | None) -> Iterator[Processes]:
        """Joins torchrun's group, if any; leaves it at the end. McvdError for a device that is not available.

        Whatever holds the group in torch's C++ code, as DistributedDataParallel does, must be gone by then: the last
        holder to release a group waits for its threads, and DDP does so with the interpreter locked, for which these
        threads may be waiting in turn.
        """
        grouped = dist.is_torchelastic_launched()
        device = default_device() if device is None else device
        own = grouped and device == "cuda"  # a GPU each
        device = usable_device(f"cuda:{dist.get_node_local_rank()}" if own else device)
        if grouped:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
            if own:
                torch.cuda.set_device(device)
        try:
            yield (
                Processes(dist.get_rank(), dist.get_world_size(), torch.device(device))
                if grouped
                else Processes(0, 1, torch.device(device))
            )
        except BaseException as error:
            if grouped:  # its traceback holds the variables of the functions that failed
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            if grouped:
                # Gloo's threads release the tensors of the last exchange a moment after it is done, and need the
                # interpreter for that: if it were ending by then, the process would be aborted after all its work.
                time.sleep(SETTLE)
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def mean(self, value: Tensor) -> float:
        """The mean over all processes, so that the log does not depend on how many there are."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return float(value)

    def largest(self, value: int) -> int:
        """The largest value of all processes; exchanged by CPUs, so that none waits for a GPU."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, device="cpu")
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set: all must stop at the same step, or the others would wait forever."""
        return bool(self.largest(int(flag)))


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list to which SIGTERM, SIGUSR1, SIGHUP (the terminal has gone) and Ctrl-C add their names, instead of ending
    the process. What nohup ignores stays ignored. Python handles signals only in its main thread: in another one, the
    list stays empty. Windows has only the first and the last of these signals.
    """
    stop: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    names = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGUSR1"):
        names.append(signal.SIGUSR1)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        names.append(signal.SIGHUP)
    old = {name: signal.signal(name, lambda number, _: stop.append(signal.Signals(number).name)) for name in names}
    try:
        yield stop
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)
