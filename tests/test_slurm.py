"""examples/slurm.sh, run with stand-ins for SLURM and torchrun that do what their manuals say."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcvd.cli.main import main

SCRIPT = Path(__file__).parent.parent / "examples" / "slurm.sh"
STAND_INS = {
    # passes the signal on to its task, as srun does, by being the task
    "srun": 'shift; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "$@" > "$OUT/asked"; fi',
    # starts a worker in a session of its own, as torchrun does, and waits for it
    "torchrun": """
printf '%s\\n' "$@" > "$OUT/words"
setsid "$PYTHON" -S "$OUT/worker.py" & wait $!""",
}
# in Python, as a shell cannot take up a signal that its parent ignores
WORKER = """
import os, signal, sys, time
out = os.environ["OUT"]
def stop(*_):
    open(out + "/got", "a").write("USR1")
    sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
open(out + "/ready", "w").write("ready")
if "END" in os.environ:
    sys.exit(int(os.environ["END"]))
time.sleep(60)
"""
SLURM = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job; what the stand-ins were asked is in the folder."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "worker.py").write_text(WORKER)
    here = {"OUT": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}
    environment = {**os.environ, **SLURM, **here}
    started = []

    def start(**more):
        started.append(subprocess.Popen(["bash", str(SCRIPT)], env=environment | more, cwd=tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


def test_the_time_limit_reaches_the_training_which_saves_and_is_queued_again(job, tmp_path):
    made = job()
    wait_for(tmp_path / "ready")
    made.send_signal(signal.SIGUSR1)
    assert made.wait(60) == 0
    assert (tmp_path / "got").read_text() == "USR1"
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_is_done_or_fails_is_not_queued_again(job, tmp_path, code):
    assert job(END=str(code)).wait(60) == code
    assert not (tmp_path / "asked").exists()


def test_its_command_line_is_one_that_mcvd_takes(job, tmp_path, capsys):
    assert job(END="0").wait(60) == 0
    words = (tmp_path / "words").read_text().split("\n")[:-1]
    at = words.index("-m")
    launcher = dict(zip(words[:at:2], words[1:at:2]))
    assert launcher["--nnodes"] == "2"
    assert launcher["--nproc-per-node"] == "8"
    assert launcher["--rdzv-endpoint"] == "n1:29500"
    module, *rest = words[at + 1 :]
    assert module == "mcvd"
    assert main([*rest, "--dry-run"]) == 0
    assert "sharding: full" in capsys.readouterr().out


def test_the_job_asks_for_the_signal_and_to_be_queued_again():
    asked = re.findall(r"^#SBATCH (--\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"--signal=B:USR1@120", "--requeue", "--ntasks-per-node=1", "--open-mode=append"} <= set(asked)
