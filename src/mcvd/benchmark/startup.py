"""How long commands take to start, each in its own process, compared with importing torch alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcvd.benchmark.measure import interleave, run_child, summarise

HELP, IMPORT, PREDICT = "mcvd --help", "import torch", "mcvd predict"


def startup_rows(rounds: int, on_round: Callable[[], None]) -> list[dict[str, Any]]:
    """`mcvd --help`; and `mcvd predict` with the bundled model on the CPU, one block of one sample, from start to
    written video, also minus importing torch in the same round."""
    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "clip.npz", Path(folder) / "out.mp4"
        np.savez(clip, np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8))
        commands = {
            IMPORT: ["-c", "import torch"],
            HELP: ["-m", "mcvd", "--help"],
            PREDICT: ["-m", "mcvd", "predict", str(clip), "--device", "cpu", "--out", str(out)],
        }
        functions = {name: partial(run_child, arguments, name) for name, arguments in commands.items()}
        taken = interleave(functions, rounds, torch.device("cpu"), on_round)
    rows = []
    for name in (HELP, IMPORT, PREDICT):
        wall = [t[name].wall for t in taken]
        row: dict[str, Any] = {"case": "startup", "command": name, "seconds": summarise(wall)._asdict()}
        if name == PREDICT:
            row["beyond_torch"] = summarise([t[name].wall - t[IMPORT].wall for t in taken])._asdict()
        rows.append(row)
    return rows
