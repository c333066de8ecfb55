"""The figures of docs/performance.md for one GPU, in resumable pieces of a few minutes.

    python benchmarks/gpu/benchmark.py                                  # the same command again does the rest
    MCVD_PEER=clone python benchmarks/gpu/benchmark.py                  # with the authors' code as a peer
    python benchmarks/gpu/benchmark.py --smoke --output runs/smoke      # tiny networks, for any machine

Needs torch, numpy, safetensors and tyro. Every piece is a document of `mcvd benchmark` in <output>/NAME.json; existing
pieces are not run again. A run stops before --minutes are over; table.txt holds all results so far. The authors'
resampling is a CUDA kernel that needs nvcc; MCVD_PEER_FIR=torch uses their plain one (the note says so).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from mcvd.benchmark.run import Options, benchmark  # noqa: E402
from mcvd.benchmark.table import table  # noqa: E402
from mcvd.layout import BlockLayout  # noqa: E402
from mcvd.model import ModelConfig  # noqa: E402
from mcvd.networks.config import UNetConfig  # noqa: E402

PEERS = HERE.parent / "peers"
LEAST_MINUTES = 0.7  # no piece is started with less time left


@dataclass
class Run:
    """What to do now."""

    output: Path = Path("runs/gpu-benchmark")
    """Folder of the pieces."""
    minutes: float = 8.0
    """Start no piece that might end after this many minutes."""
    rounds: int = 5
    """Rounds of every measurement."""
    smoke: bool = False
    """Tiny networks on the CPU: checks that everything runs; the figures mean nothing."""


def network(conditioning: str) -> ModelConfig:
    """The paper's SMMNIST networks, 5 frames from 5: recipes smmnist-concat and smmnist-spatin."""
    return ModelConfig(network=UNetConfig(layout=BlockLayout(5, 5, 0), conditioning=conditioning))


def pieces(run: Run) -> dict[str, Options]:
    """By name, most important first."""
    peers = (PEERS / "authors.py",) if os.environ.get("MCVD_PEER") else (PEERS / "plain.py",)
    concat, spatin = {"smmnist-concat": network("concat")}, {"smmnist-spatin": network("spatin")}
    # memory is measured in a separate process per implementation, which takes longest: for training only
    eager = Options(concat, ("sampling",), rounds=run.rounds, device="cuda", peers=peers, timed_steps=20, memory=False)
    base = replace(eager, engine="compile")
    fast = replace(base, precision="bf16")
    out = {
        "network-bf16": replace(fast, cases=("network",), batches=(64,), peers=()),
        "concat": replace(base, batches=(1, 8)),
        "spatin": replace(base, models=spatin, batches=(8,)),
        "training-bf16": replace(fast, cases=("training",), batches=(64,), memory=True),
        "spatin-10-samples": replace(base, models=spatin, samples=10),
        "concat-bf16": replace(fast, batches=(1, 8)),
        "training": replace(base, cases=("training",), batches=(64,), memory=True),
        "concat-eager": replace(eager, batches=(1, 8)),
        "spatin-eager": replace(eager, models=spatin, batches=(8,)),
        "growth": replace(
            eager, cases=("network",), batches=(1, 8, 64, 256), sizes=(64, 128), precision="bf16", peers=()
        ),
        "i3d": replace(eager, cases=("i3d",), batches=(8,), peers=()),
    }
    return {name: _tiny(options) for name, options in out.items() if name != "i3d"} if run.smoke else out


def _tiny(options: Options) -> Options:
    models = {}
    for name, model in options.models.items():
        shape = replace(model.network, size=(16, 16), width=8, multipliers=(1, 2), blocks=1, attention=())
        models[name] = replace(model, network=shape)
    small = replace(options, models=models, batches=(1,), sizes=(16,) if options.sizes else (), precision="fp32")
    return replace(
        small,
        device="cpu",
        engine="torch",
        solver_steps=4,
        timed_steps=4,
        rounds=1,
        memory=options.cases == ("training",),
        quick_calibration=True,
    )


def main(run: Run) -> None:
    """Runs the remaining pieces."""
    if not (run.smoke or torch.cuda.is_available()):
        raise SystemExit("there is no CUDA device; --smoke runs everything on a CPU")
    deadline = time.monotonic() + 60 * run.minutes
    run.output.mkdir(parents=True, exist_ok=True)
    plan = pieces(run)
    for name, options in plan.items():
        file = run.output / f"{name}.json"
        if file.exists():
            continue
        if time.monotonic() > deadline - 60 * LEAST_MINUTES:
            print("time is up; run the same command again for the rest", flush=True)
            break
        began = time.monotonic()
        document = benchmark(options)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(partial, file)
        print(f"{name}: {time.monotonic() - began:.0f} s\n{table(document)}\n", flush=True)
    done = {name: run.output / f"{name}.json" for name in plan if (run.output / f"{name}.json").exists()}
    texts = [f"# {name}\n{table(json.loads(file.read_text()))}\n" for name, file in done.items()]
    (run.output / "table.txt").write_text("\n".join(texts))
    print(f"{len(done)} of {len(plan)} pieces are in {run.output}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Run))
