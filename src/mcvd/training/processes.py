"""The processes of a run: joining the group that torchrun made, and what they agree on."""

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
        """Joins the group that torchrun made, if any; leaves it at the end. McvdError for a device that is not there.

        What holds the group from within torch's C++ code, as DistributedDataParallel does, must be gone by then: who
        lets go of a group last waits for its threads, and DDP does so with the interpreter locked, which these threads
        may be waiting for in turn.
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
            if grouped:  # its traceback keeps what the functions that failed had
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            if grouped:
                # Gloo's threads let go of the tensors of the last exchange a moment after it is done, and need the
                # interpreter for it: were it ending by then, the process would be aborted after all its work.
                time.sleep(SETTLE)
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> float:
        """The mean over all processes, so that the log does not depend on how many there are."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return float(value)

    def largest(self, value: int) -> int:
        """The largest value that any process has; exchanged by CPUs, so that nobody waits for a GPU."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, device="cpu")
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def any(self, flag: bool) -> bool:
        """Whether any process says so: to stop, all must leave at the same step, or the others would wait for ever."""
        return bool(self.largest(int(flag)))


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list that SIGTERM, SIGUSR1, SIGHUP (the terminal has gone) and Ctrl-C put their name into, instead of ending
    the process. What nohup has it ignore stays so. Python handles signals in its main thread alone: in another, none
    come. Windows has the first and the last of them alone.
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
