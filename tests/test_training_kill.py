"""A run that is killed (SIGKILL) at any moment, over and over, ends with the same bits as one that is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mcvd
from mcvd.training.checkpoint import checkpoints
from test_training_engine import assert_same, logged

KILLS, STEPS = 20, 120

# One process imports torch and forks every run, because the import costs more than the run. It must not compute.
SERVER = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_training_engine as tests
import torch._dynamo  # these are imported when they are first used: once, as all the rest
from torch.utils.tensorboard import SummaryWriter
from mcvd.training.run import train

tests.torch.set_num_threads(1)
tests.quick(tests.pytest.MonkeyPatch())
model = tests.tiny.config(multipliers=(1,), dropout=0.2)
recipe = tests.recipe(model, steps={steps}, batch=1, save_every=3, sample_every=20)

def start(output):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        train(recipe, output, device="cpu", clips=lambda *_: tests.Clips(), report=lambda line: None)
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def wait_until(child, condition):
    while not condition():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            sys.exit("the run ended before it was killed")
        time.sleep(0.0005)

def lines(output):
    log = output / "log.jsonl"
    return log.read_bytes().count(b"\\n") if log.exists() else 0

def written(output, names):
    stamps = {{}}
    for path in output.glob(names):
        try:
            stamps[path] = path.stat().st_mtime_ns
        except FileNotFoundError:  # renamed since
            pass
    return stamps

straight, killed = Path(sys.argv[1]), Path(sys.argv[2])
assert end(start(straight)) == 0
seconds = tests.json.loads((straight / "log.jsonl").read_text().splitlines()[-1])["seconds"] / {steps}
draw = random.Random(0)
for kill in range({kills}):
    before, more = lines(killed), draw.randrange(1, 5)
    names = draw.choice(["checkpoint.partial", "model/.*.partial"])
    left = written(killed, names)  # by a kill before this one
    child = start(killed)
    if kill % 2:  # while a checkpoint or a model is being written
        wait_until(child, lambda: written(killed, names).items() - left.items())
        time.sleep(draw.random() * 0.002)
    else:  # anywhere in a step, or in what follows it
        wait_until(child, lambda: lines(killed) >= (before + more if kill else 1))
        time.sleep(draw.random() * seconds)
    os.kill(child, signal.SIGKILL)
    print(end(child), len(list(killed.rglob("*.partial"))), flush=True)
assert end(start(killed)) == 0
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    server = SERVER.format(tests=str(Path(__file__).parent), steps=STEPS, kills=KILLS)
    environment = {**os.environ, "PYTHONPATH": str(Path(mcvd.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", server, str(straight), str(killed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    kills = [line.split() for line in done.stdout.splitlines()]
    assert [code for code, _ in kills] == ["-9"] * KILLS
    assert any(partial != "0" for _, partial in kills)  # some of them inside a write

    states = [torch.load(checkpoints(run)[-1], weights_only=True) for run in (straight, killed)]
    assert_same(*states)
    assert states[0]["step"] == states[1]["step"] == STEPS
    assert states[0]["best"] == states[1]["best"]
    for name in ("model", "best"):
        for file in ("config.json", "model.safetensors"):
            assert (straight / name / file).read_bytes() == (killed / name / file).read_bytes(), (name, file)
    for value in ("loss", "gradient", "validation"):
        assert logged(straight, value) == logged(killed, value)
    assert list(logged(killed)) == list(range(1, STEPS + 1))
    assert [path.name for path in checkpoints(killed)] == [path.name for path in checkpoints(straight)]
    assert not list(killed.rglob("*.partial"))
