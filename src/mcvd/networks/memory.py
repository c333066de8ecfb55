"""How much memory is free, for what is kept only to save time."""

from __future__ import annotations

from pathlib import Path

import torch

UNKNOWN = 8 * 2**30
"""Bytes assumed to be free if the system does not say."""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; on a CPU, in this container and without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + _unused(device)
    return min(_available(Path("/proc/meminfo")), _left(Path("/sys/fs/cgroup")))


def _unused(device: torch.device) -> int:
    """Bytes that torch holds on a GPU for its next tensors; not those of recordings, which only these can use."""
    return sum(
        segment["total_size"] - segment["active_size"]
        for segment in torch.cuda.memory_snapshot(include_traces=False)
        if segment["device"] == device.index and segment["segment_pool_id"] == (0, 0)
    )


def _available(meminfo: Path) -> int:
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux
        return UNKNOWN


def _left(group: Path) -> int:
    """Bytes that are left to a control group; a huge number if it has no limit."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(kept["inactive_file"])  # the page cache is reclaimed first
    except (OSError, ValueError, KeyError):  # no such group, or `max`
        return 2**63
