"""Training: the published schedule and average, restarts that change nothing, data that anyone may have."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import mcvd
import tiny
from mcvd.config import from_dict, to_dict
from mcvd.data.video import write_video
from mcvd.errors import McvdError
from mcvd.training import run as running
from mcvd.training import trainer as training
from mcvd.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mcvd.training.ema import Ema
from mcvd.training.processes import stop_signals
from mcvd.training.recipe import RECIPES, DataConfig, OptimizerConfig, Recipe, read_recipe, recipe_names
from mcvd.training.run import train
from mcvd.training.source import TEST_CLIPS, clip_source
from mcvd.training.trainer import generator_at, learning_rate

CPU = torch.device("cpu")
ONE = training.Processes(0, 1, CPU)
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup=0)
RECIPE = Recipe(
    model=tiny.config(dropout=0.2),
    optimizer=OPTIMIZER,
    steps=20,
    batch=4,
    log_every=1,
    save_every=10,
    sample_every=1000,
)


class Clips:
    """Clip i of a stream is random, and a function of i."""

    def __init__(self, only_one=False):
        self.only_one = only_one

    def batch(self, indices):
        return torch.stack([tiny.video(6, 1, 16, 16, seed=0 if self.only_one else int(i)) for i in indices])


def clips(recipe, split, device):
    return Clips()


def failing_clips(recipe, split, device):
    """Clips of which those from number 8 on, the third step of four, cannot be read."""

    class Failing(Clips):
        def batch(self, indices):
            if split == "train" and max(indices) >= 8:
                raise McvdError("clip 8 cannot be read")
            return super().batch(indices)

    return Failing()


def go(recipe, output, **options):
    """A run in this process -> what it reported."""
    lines = []
    options = {"device": "cpu", "clips": clips, "report": lines.append, **options}
    assert train(recipe, output, **options) == output / "model"
    return lines


def losses(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Sample sheets and validation take most of the time of a short run; one test below makes all of them."""
    monkeypatch.setattr("mcvd.training.log.RunLog.picture", lambda *a: None)
    monkeypatch.setattr("mcvd.training.run.TEST_CLIPS", 4)


# --- the published recipe ---------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_from_0_and_stays():
    config = OptimizerConfig(lr=2e-4, warmup=1000)
    for step, rate in {0: 0.0, 1: 2e-7, 500: 1e-4, 1000: 2e-4, 3_000_000: 2e-4}.items():
        assert learning_rate(step, config, 3_000_000) == pytest.approx(rate, rel=1e-12, abs=0)
    assert learning_rate(0, OptimizerConfig(lr=1e-3, warmup=0), 10) == 1e-3


def test_cosine_learning_rate_falls_to_0_after_the_warm_up():
    config = OptimizerConfig(lr=1.0, warmup=10, decay="cosine")
    rates = [learning_rate(step, config, 110) for step in range(111)]
    assert rates[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(7, OptimizerConfig(lr=1.0, warmup=10, decay="cosine"), 5) == pytest.approx(0.7)


def test_the_first_step_changes_nothing_with_a_warm_up():
    recipe = replace(RECIPE, optimizer=OptimizerConfig(warmup=5))
    trainer = training.Trainer(recipe, training.Processes(0, 1, CPU), Clips())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train_step()
    assert same(trainer.model.state_dict(), before)
    trainer.train_step()
    assert not same(trainer.model.state_dict(), before)


@pytest.mark.parametrize("step", [0, 3])
def test_every_step_has_its_own_clips_and_draw_of_which_every_process_takes_its_rows(step):
    recipe = replace(RECIPE, seed=5, batch=8, accumulate=2)
    trainer, parts = training.Trainer(recipe, training.Processes(0, 1, CPU), Clips()), []
    trainer.step = step
    for rank in range(2):
        trainer.processes = training.Processes(rank, 2, CPU)
        parts += trainer._parts()
    assert [len(clips) for clips, _ in parts] == [2] * 4
    assert torch.equal(torch.cat([clips for clips, _ in parts]), Clips().batch(range(8 * step, 8 * step + 8)))
    whole = trainer.model.draw(8, generator_at(5, step, CPU))
    assert torch.equal(torch.cat([draw.t for _, draw in parts]), whole.t)
    assert torch.equal(torch.cat([draw.eps for _, draw in parts]), whole.eps)


def test_dropout_is_another_one_at_every_step_and_in_every_process(monkeypatch):
    trainer, seeds = training.Trainer(RECIPE, training.Processes(0, 1, CPU), Clips()), []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for rank in range(2):
        trainer.step, trainer.processes = 0, training.Processes(rank, 2, CPU)
        for _ in range(3):
            trainer.train_step()
    assert len(set(seeds)) == len(seeds) == 6


def test_a_gradient_longer_than_clip_is_made_as_long():
    for clip in (1.0, 1e6):
        trainer = training.Trainer(replace(RECIPE, optimizer=replace(OPTIMIZER, clip=clip)), ONE, Clips())
        _, norm = trainer.train_step()
        left = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()
        assert float(norm) > 2
        assert float(left) == pytest.approx(min(float(norm), clip), rel=1e-3)


def test_the_average_is_the_published_one_from_the_first_step_on():
    layer = torch.nn.Linear(3, 2).bfloat16()
    ema = Ema(layer, 0.999)
    expected = layer.weight.detach().double()
    for _ in range(5):
        with torch.no_grad():
            layer.weight.normal_()
        ema.update()
        expected = 0.999 * expected + 0.001 * layer.weight.detach().double()
    assert ema.shadow["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.shadow["weight"].double(), expected, rtol=1e-6, atol=1e-7)


def test_the_average_with_warm_up_follows_faster_at_the_start():
    layer = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(layer, 0.999, warmup=True)
    expected = layer.weight.item()
    for n in range(20):
        with torch.no_grad():
            layer.weight.fill_(float(n))
        ema.update()
        decay = min(0.999, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert min(0.999, (1 + 10_000) / (10 + 10_000)) == 0.999  # and ends at the decay


def test_the_average_survives_its_state():
    layer = torch.nn.Linear(3, 2)
    ema, again = Ema(layer, warmup=True), Ema(layer, warmup=True)
    with torch.no_grad():
        layer.weight.normal_()
    ema.update()
    again.load_state_dict(ema.state_dict())
    for e in (ema, again):
        e.update()
    assert same(ema.shadow, again.shadow)


def test_random_numbers_depend_on_seed_step_and_stream_alone():
    def draw(*key):
        return torch.randn(50, generator=generator_at(key[0], key[1], CPU, *key[2:])).tolist()

    assert draw(3, 7) == draw(3, 7)
    different = [draw(*key) for key in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1), (1, 0, 1), (0, 2), (2, 0))]
    assert len({tuple(numbers) for numbers in different}) == len(different)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_training_on_one_clip_learns_it(tmp_path):
    recipe = replace(RECIPE, model=tiny.config(), steps=60, ema_warmup=True)
    go(recipe, tmp_path, clips=lambda *_: Clips(only_one=True))
    made = list(losses(tmp_path).values())
    # a network that says nothing has half of 3 * 16 * 16 values; the noise of one clip is soon told from the clip
    assert sum(made[:3]) / 3 == pytest.approx(384, rel=0.15)
    assert sum(made[-10:]) / 10 < 0.6 * sum(made[:3]) / 3


def test_a_run_leaves_what_people_look_for(tmp_path, monkeypatch):
    monkeypatch.undo()
    recipe = replace(RECIPE, steps=4, save_every=3, sample_every=2)
    lines = go(recipe, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000000003.pt", "checkpoint-000000004.pt"]
    tasks = ("predict", "backward", "interpolate", "generate")
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        f"step-00000000{step}{end}" for step in (2, 4) for end in (".png", *(f"-{task}.gif" for task in tasks))
    }
    assert any((tmp_path / "tensorboard").iterdir())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "validation" in line] == [2, 4]
    stepped = [line for line in logged if "loss" in line]
    assert [line["step"] for line in stepped] == [1, 2, 3, 4]
    assert all(line["steps_per_second"] > 0 and line["memory_gb"] > 0 and line["mfu"] > 0 for line in stepped)
    assert logged[0]["error"] == pytest.approx(logged[0]["loss"] * 2 / (3 * 16 * 16))
    assert any(line.startswith("step 4/4") for line in lines)
    # the model is the averaged one
    model = mcvd.load(tmp_path, device="cpu")
    state = torch.load(checkpoints(tmp_path)[-1], weights_only=True)
    assert same(model.state_dict(), state["ema"]["shadow"])
    assert model.predict(tiny.video(2, 1, 16, 16), 3, steps=2).shape == (1, 3, 1, 16, 16)


def test_a_run_in_a_thread(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        threads.submit(go, replace(RECIPE, steps=2), tmp_path).result()
    assert len(losses(tmp_path)) == 2


def test_what_a_caller_has_switched_changes_no_run(tmp_path):
    recipe = replace(RECIPE, steps=2)
    go(recipe, tmp_path / "plain")
    with torch.no_grad():
        train(recipe, str(tmp_path / "no_grad"), device="cpu", clips=clips, report=lambda line: None)
    with torch.inference_mode():
        go(recipe, tmp_path / "inference")
    for name in ("no_grad", "inference"):
        assert losses(tmp_path / name) == losses(tmp_path / "plain")
    torch.set_default_dtype(torch.float64)
    try:
        go(recipe, tmp_path / "double")
    finally:
        torch.set_default_dtype(torch.float32)
    assert mcvd.load(tmp_path / "double").network.conv_in.weight.dtype == torch.float32


def test_only_the_two_newest_checkpoints_stay(tmp_path):
    for step in (1, 2, 3, 1_000_000_000):
        save_checkpoint(tmp_path, step, {"step": step})
    (tmp_path / "checkpoint.partial").write_text("of a run that was killed")
    assert [load["step"] for load in (torch.load(path) for path in checkpoints(tmp_path))] == [3, 1_000_000_000]
    assert load_checkpoint(tmp_path, CPU)["step"] == 1_000_000_000
    assert load_checkpoint(tmp_path / "elsewhere", CPU) is None
    save_checkpoint(tmp_path, 1_000_000_001, {})  # at another step than the killed one's, whose file takes no more room
    assert [path for path in tmp_path.iterdir() if path not in checkpoints(tmp_path)] == []


SCRIPT = """
import faulthandler, gc, os, signal, sys
faulthandler.dump_traceback_later(240, exit=True)  # before `run` gives up: a process that hangs says where
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as tests
from dataclasses import replace
from pathlib import Path
from mcvd.errors import McvdError
from mcvd.training.log import RunLog
RunLog.picture = lambda *a: None

leave = torch.distributed.destroy_process_group
def look_and_leave():
    networks = [o for o in gc.get_objects() if isinstance(o, torch.nn.parallel.DistributedDataParallel)]
    print(f"{{len(networks)}} networks left", flush=True)
    leave()
torch.distributed.destroy_process_group = look_and_leave

def report(line):
    print(line, flush=True)
    if line.startswith(f"step {{os.environ.get('KILL_AT')}}/"):
        os.kill(os.getpid(), signal.SIGKILL)

recipe = tests.RECIPE if len(sys.argv) < 3 else replace(tests.RECIPE, model=tests.tiny.config(), steps=int(sys.argv[2]))
clips = tests.failing_clips if "fail" in sys.argv else tests.clips
try:
    tests.train(recipe, Path(sys.argv[1]), device="cpu", clips=clips, report=report)
except McvdError as error:
    print(error)
"""
TWO_PROCESSES = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"


@pytest.fixture
def run(tmp_path):
    """Runs the training script in a process of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    source = str(Path(mcvd.__file__).parent.parent)

    def start(output, *more, launcher=(), kill_at=""):
        environment = {**os.environ, "PYTHONPATH": source, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, str(script), str(output), *map(str, more)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    return start


@pytest.fixture
def one_thread():
    """As in the processes that the tests start: sums in another order would differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(run, tmp_path, one_thread):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    go(RECIPE, straight)
    first = run(killed, kill_at=13)
    assert first.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoints(killed)] == ["checkpoint-000000010.pt"]
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"step": 14, "lo')  # a line that was cut by the kill
    again = run(killed)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stdout
    assert "at step 10" in again.stdout

    states = [torch.load(folder / "checkpoint-000000020.pt", weights_only=True) for folder in (straight, killed)]
    assert same(*(state["model"] for state in states))
    assert same(*(state["ema"]["shadow"] for state in states))
    moments = [state["optimizer"]["state"] for state in states]
    assert all(same(moments[0][i], moments[1][i]) for i in moments[0])
    assert losses(straight) == losses(killed)
    assert list(losses(killed)) == list(range(1, 21))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (straight, killed)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_train_as_one_does(run, tmp_path, one_thread):
    one, two = tmp_path / "one", tmp_path / "two"
    go(replace(RECIPE, model=tiny.config(), steps=6), one)
    done = run(two, 6, launcher=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 6/6") == 2  # the loss and the validation of one process, not of both
    assert list(losses(two)) == list(losses(one)) == [1, 2, 3, 4, 5, 6]
    for step, loss in losses(one).items():
        assert losses(two)[step] == pytest.approx(loss, rel=1e-5), step
    a, b = (torch.load(folder / "checkpoint-000000006.pt", weights_only=True)["model"] for folder in (one, two))
    # Adam divides by the gradient's own size, so the last bits of a gradient near 0 may turn into a part of a step
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-3)
    # a network that outlives the group of processes may wait for it for ever
    assert done.stdout.count("0 networks left") == 2


@pytest.mark.slow
def test_two_processes_that_fail_leave_their_group(run, tmp_path):
    done = run(tmp_path / "run", 6, "fail", launcher=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 1/6") == 1
    assert done.stdout.count("clip 8 cannot be read") == 2
    assert done.stdout.count("0 networks left") == 2


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(McvdError, match="batch 4 does not divide among 3 processes"):
        training.Trainer(RECIPE, training.Processes(0, 3, CPU), Clips())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_and_leaves(tmp_path, name, request):
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:  # as nohup leaves it to the tests
        request.addfinalizer(lambda: signal.signal(getattr(signal, name), signal.SIG_IGN))
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    before = signal.getsignal(getattr(signal, name))
    lines = []

    def report(line):
        lines.append(line)
        if line.startswith("step 3/"):
            os.kill(os.getpid(), getattr(signal, name))

    go(RECIPE, tmp_path, report=report)
    # the signal came while step 3 was being logged
    last = checkpoints(tmp_path)[-1]
    assert last.name in ("checkpoint-000000003.pt", "checkpoint-000000004.pt")
    assert mcvd.load(tmp_path, device="cpu").config == RECIPE.model
    assert lines[-1] == f"stopped at step {int(last.stem[-9:])} ({name}); run the same command again to continue"
    assert signal.getsignal(getattr(signal, name)) is before
    assert go(replace(RECIPE, steps=5), tmp_path)[0].startswith("continuing")
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_systems_without_unix_signals_and_memory_figures_train(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.delattr(signal, "SIGHUP")
    for module in ("resource", "fcntl"):
        monkeypatch.setitem(sys.modules, module, None)
    go(replace(RECIPE, steps=2), tmp_path)
    assert list(losses(tmp_path)) == [1, 2]
    assert "memory_gb" not in (tmp_path / "log.jsonl").read_text()


def test_time_that_is_up_saves_and_leaves(tmp_path):
    lines = go(RECIPE, tmp_path, minutes=0)
    assert lines[-1] == "stopped at step 1 (time is up); run the same command again to continue"
    assert len(checkpoints(tmp_path)) == 1


class Clock:
    """Time that passes when a training step is made, or when a checkpoint is saved."""

    def __init__(self, monkeypatch, first=40.0, step=1.0, save=3.0):
        self.now = 100.0
        self.costs = itertools.chain([first], itertools.repeat(step))
        make, keep = training.Trainer.train_step, running.save_checkpoint
        monkeypatch.setattr(running.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(training.Trainer, "train_step", lambda run: (make(run), self.spend(next(self.costs)))[0])
        monkeypatch.setattr(running, "save_checkpoint", lambda *args: (keep(*args), self.spend(save)))

    def spend(self, seconds):
        self.now += seconds


def rates(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


@pytest.mark.parametrize("every", [1, 7, 1000], ids="logs every {}".format)
def test_a_run_that_is_to_finish_makes_the_steps_that_fit(tmp_path, monkeypatch, every):
    clock = Clock(monkeypatch)
    falling = replace(OPTIMIZER, decay="wsd", cooldown=0.5)
    recipe = replace(RECIPE, optimizer=falling, steps=10**6, log_every=every, save_every=10)
    lines = go(recipe, tmp_path, minutes=2, finish=True)
    assert not any("stopped" in line for line in lines)
    assert 100 + 110 < clock.now <= 100 + 120 + 3  # the last save may begin when the time ends
    step, rate = max(rates(tmp_path).items())
    assert lines[-1].startswith(f"step {step}/{step} ")
    assert 55 < step < 80
    assert rate < 0.1 * OPTIMIZER.lr  # it has fallen
    assert checkpoints(tmp_path)[-1].name == f"checkpoint-{step:09}.pt"


@pytest.mark.parametrize("steps", [10**6, 4, 1], ids="the recipe says {}".format)
def test_a_run_that_is_to_finish_goes_on_after_a_pause(tmp_path, monkeypatch, steps):
    go(replace(RECIPE, steps=3), tmp_path)
    Clock(monkeypatch)
    lines = go(replace(RECIPE, steps=steps), tmp_path, minutes=1, finish=True)
    assert lines[0].startswith("continuing")
    assert 12 < max(rates(tmp_path)) < 25
    assert not any("stopped" in line for line in lines)


def test_a_run_that_is_to_finish_does_so_where_the_last_steps_are_slow(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    clock.costs = itertools.chain([40.0], [1.0] * 50, itertools.repeat(30.0))
    lines = go(replace(RECIPE, steps=10**6, log_every=1000, sample_every=1000), tmp_path, minutes=2, finish=True)
    assert clock.now <= 100 + 120 + 30 + 3
    step = max(rates(tmp_path))
    assert 51 < step < 55
    assert lines[-1].startswith(f"step {step}/{step}  validation ")
    assert checkpoints(tmp_path)[-1].name == f"checkpoint-{step:09}.pt"


def test_a_signal_only_interrupts_a_run_that_is_to_finish(tmp_path):
    lines = []

    def report(line):
        lines.append(line)
        if line.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGTERM)

    go(replace(RECIPE, steps=10**6), tmp_path, report=report, minutes=60, finish=True)
    assert lines[-1].endswith("(SIGTERM); run the same command again to continue")
    assert not any("validation" in line for line in lines)


def test_to_finish_needs_to_know_when(tmp_path):
    with pytest.raises(McvdError, match="^finish chooses the steps that fit into the minutes: say how many minutes$"):
        go(RECIPE, tmp_path / "run", finish=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_complete_is_left_as_it_is(tmp_path):
    recipe = replace(RECIPE, steps=2)
    go(recipe, tmp_path)
    before = files(tmp_path / "model") | {path: path.read_bytes() for path in checkpoints(tmp_path)}
    go(recipe, tmp_path)
    assert files(tmp_path / "model") | {path: path.read_bytes() for path in checkpoints(tmp_path)} == before


def test_another_model_is_refused_and_nothing_is_touched(tmp_path):
    go(replace(RECIPE, steps=2), tmp_path)
    before = files(tmp_path)
    differ = r"model\.network\.width 16 \(was 8\), model\.network\.dropout 0\.0 \(was 0\.2\)"
    with pytest.raises(McvdError, match=f"a run of another model: {differ}; choose another --output, nothing was chan"):
        go(replace(RECIPE, model=tiny.config(width=16)), tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no" * 500])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, damage):
    go(replace(RECIPE, steps=2, save_every=1), tmp_path)
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    before = files(tmp_path)
    with pytest.raises(McvdError, match=f"{newest.name} is damaged .* delete it to continue from the prev") as caught:
        go(RECIPE, tmp_path)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before
    newest.unlink()
    assert go(replace(RECIPE, steps=2), tmp_path)[0].endswith("at step 1")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "^CUDA out of memory$"),
        (PermissionError(13, "Permission denied"), r"^cannot read .*000000002.pt: Permission denied$"),
    ],
)
def test_a_checkpoint_that_is_whole_is_not_called_damaged(tmp_path, monkeypatch, error, says):
    go(replace(RECIPE, steps=2, save_every=1), tmp_path)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises((McvdError, torch.OutOfMemoryError), match=says):
        go(RECIPE, tmp_path)


def test_a_file_of_others_with_the_name_of_a_checkpoint(tmp_path):
    torch.save({"model": {}}, tmp_path / "checkpoint-000000001.pt")
    with pytest.raises(McvdError, match="holds a checkpoint that mcvd train did not write; move it away"):
        go(RECIPE, tmp_path)


@pytest.mark.parametrize(("log_every", "noticed"), [(1, 8), (50, 10)])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path, monkeypatch, log_every, noticed):
    calls, make = [], training.to_model_range

    def fails_at_step_8(*args):
        calls.append(1)
        return make(*args) * (math.nan if len(calls) >= 8 else 1)

    monkeypatch.setattr(training, "to_model_range", fails_at_step_8)
    says = f"the loss is nan .* at step {noticed}; the last good checkpoint is .*checkpoint-000000005.pt"
    with pytest.raises(McvdError, match=says):
        go(replace(RECIPE, save_every=5, log_every=log_every), tmp_path)
    for value in mcvd.load(tmp_path, device="cpu").state_dict().values():
        assert torch.isfinite(value).all()


def test_a_gradient_that_is_not_finite_stops_too(tmp_path, monkeypatch):
    """The loss of that step is still finite, but its weights are not."""
    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", lambda *a: torch.tensor(math.inf))
    with pytest.raises(McvdError, match="gradient inf at step 1; the last good checkpoint is none"):
        go(RECIPE, tmp_path)


@pytest.mark.parametrize("every", [10, 7])
def test_steps_are_saved_before_what_stops_validation_stops_the_run(tmp_path, monkeypatch, every):
    straight, full = tmp_path / "straight", tmp_path / "full"
    go(RECIPE, straight)

    def no_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(running, "validate", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            go(replace(RECIPE, sample_every=every), full)
    assert [path.name for path in checkpoints(full)] == [f"checkpoint-{every:09}.pt"]
    go(RECIPE, full)
    ends = [torch.load(run / "checkpoint-000000020.pt", weights_only=True)["model"] for run in (straight, full)]
    assert same(*ends)


# --- people's own videos ----------------------------------------------------------------------------------------------


def test_training_on_a_folder_of_videos(tmp_path, monkeypatch):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    for i, name in enumerate(("a.mp4", "sub/b.gif", "c.npz")):
        write_video(tmp_path / "videos" / name, tiny.video(8 + i, 3, 16, 16, seed=i), scale=1)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video" * 50)
    recipe = replace(RECIPE, data=DataConfig("videos", str(tmp_path / "videos")), steps=2)
    said = go(recipe, tmp_path / "run", clips=None)[0]
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert "3 videos, 27 frames" in said
    assert "; 1 left out (broken.mp4); the reasons: mcvd data info " in said
    with pytest.raises(McvdError, match="--data FOLDER"):
        go(replace(recipe, data=DataConfig("videos")), tmp_path / "other", clips=None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_value_of_data_reaches_the_clips(tmp_path, monkeypatch, split):
    found = SimpleNamespace()
    monkeypatch.setattr("mcvd.data.prepare.info", lambda path: SimpleNamespace(splits=["train", "test"]))
    monkeypatch.setattr("mcvd.data.prepare.prepared_data", lambda path, made, say: vars(found).update(settings=made))
    monkeypatch.setattr("mcvd.data.prepare.open_data", lambda path, frames, **options: vars(found).update(options))
    data = DataConfig("videos", str(tmp_path), 3, flip=True, fps=5.0, fit="stretch", split_by="folder")
    clip_source(replace(RECIPE, seed=7, data=data), split, CPU)
    made = found.settings
    assert (made.size, made.channels, made.fps, made.fit, made.split_by) == ((16, 16), 1, 5.0, "stretch", "folder")
    assert (found.size, found.channels, found.stride, found.flip, found.seed) == ((16, 16), 1, 3, True, 7)
    assert (found.split, found.fixed) == (split, None if split == "train" else TEST_CLIPS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_moving_digits_are_those_of_the_recipe_and_of_the_split(monkeypatch, split):
    monkeypatch.setattr("mcvd.training.source.find_mnist", lambda path: path)
    images = {"train": torch.zeros(3, 32, 32, dtype=torch.uint8), "test": torch.zeros(2, 32, 32, dtype=torch.uint8)}
    monkeypatch.setattr("mcvd.training.source.load_digits", lambda folder, split: images[split])
    data = DataConfig("moving-mnist", digits=(1, 3))
    source = clip_source(replace(RECIPE, seed=7, data=data, model=tiny.config(size=(32, 32))), split, CPU)
    assert (source.counts, source.seed, source.size, source.frames) == ((1, 3), 7, 32, 6)
    assert len(source.digits) == len(images[split])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_model_says_of_which_frames_its_clips_were(tmp_path, monkeypatch, stride):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    for i in range(2):
        write_video(tmp_path / "videos" / f"{i}.npz", tiny.video(24, 3, 16, 16, seed=i))
    data = DataConfig("videos", str(tmp_path / "videos"), stride)
    go(replace(RECIPE, data=data, steps=1), tmp_path / "run", clips=None)
    for name in ("model", "best"):
        model = mcvd.load(tmp_path / "run" / name)
        assert model.notes.get("stride", 1) == model.stride == stride


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_is_read(name):
    recipe = read_recipe(name)
    assert recipe.batch >= 1
    (path,) = RECIPES.rglob(f"{name}.yaml")
    assert read_recipe(path) == recipe


def test_recipes_survive_the_round_trip(tmp_path):
    recipe = replace(RECIPE, data=DataConfig("videos", "somewhere", 2, True))
    assert from_dict(Recipe, to_dict(recipe), "here") == recipe
    for name, dump in (("a.yaml", yaml.safe_dump), ("b.yml", json.dumps)):
        (tmp_path / name).write_text(dump(to_dict(recipe)))
        assert read_recipe(tmp_path / name) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepps: 5", "r.yaml: unknown key stepps; did you mean steps?"),
        ("model: {network: {widht: 8}}", "r.yaml: model: network: unknown key widht; did you mean width?"),
        ("optimizer: {zzz: 8}", "unknown key zzz; known keys: name, lr, warmup"),
        ("steps: many", "steps: expected a whole number, found 'many'"),
        ("steps: 1.5", "steps: expected a whole number, found 1.5"),
        ("steps: true", "steps: expected a whole number, found True"),
        ("optimizer: {lr: fast}", "lr: expected a number, found 'fast'"),
        (f"optimizer: {{lr: 1{'0' * 400}}}", "lr: expected a number, found 1000"),
        ("optimizer: {lr: true}", "lr: expected a number, found True"),
        ("optimizer: {betas: [0.9, 0.9, 0.9]}", "betas: expected 2 values, e.g. [1, 2], found 3"),
        ("optimizer: {betas: [0.9]}", "betas: expected 2 values, e.g. [1, 2], found 1"),
        ("optimizer: {betas: 0.9}", "betas: expected a list, e.g. [1, 2], found 0.9"),
        ("precision: fp8", "precision is 'fp8'; it is one of auto, fp32, bf16"),
        ("model: 5", "model: expected keys and values, found 5"),
        ("- a", "expected keys and values"),
        ("a: [", "cannot be read as YAML"),
        ("model: {network: {layout: {past: 2}}}", "layout: current is missing"),
        ("model: {masking: {past: 2}}", "must be between 0 and 1"),
        ("steps: 0", "steps is 0; it must be at least 1"),
        ("log_every: 0", "log_every is 0"),
        ("batch: -1", "batch is -1"),
        ("seed: -1", "seed is -1"),
        ("ema: 1.5", "ema is 1.5; it must be at least 0 and below 1"),
        ("optimizer: {lr: -1}", "optimizer.lr is -1.0; it must be at least 0"),
        ("optimizer: {warmup: -5}", "optimizer.warmup is -5; it must be at least 0"),
        ("optimizer: {clip: 0}", "optimizer.clip is 0.0; it must be above 0"),
        ("optimizer: {cooldown: -1}", "optimizer.cooldown is -1.0; it is a share, from 0 to 1"),
        ("optimizer: {betas: [0.9, 1]}", "optimizer.betas is (0.9, 1.0); it must be at least 0 and below 1"),
        ("data: {stride: 0}", "data.stride is 0; it must be at least 1"),
        ("model: {schedule: {beta_last: 1.5}}", "beta goes from 0.0001 to 1.5; both must lie between 0 and 1"),
        ("model: {prediction: foo}", "prediction is 'foo'; it is one of eps, x0, v"),
        ("model: {network: {width: 2}}", "width is 2; it must be at least 4"),
        (
            "model: {network: {frames: 3d, conditioning: spatin, spatin_width: 4}}",
            "spatin_width is 4; it must be at least 5",
        ),
        ("model: {network: {multipliers: []}}", "multipliers is (); it must be at least 1"),
        (f"model: {{network: {{blocks: {10**30}}}}}", f"blocks is {10**30}; it must be at most 100000"),
        (f"model: {{network: {{size: [64, {2**40}]}}}}", f"size is (64, {2**40}); it must be at most 100000"),
        (f"model: {{network: {{layout: {{past: {10**30}, current: 1}}}}}}", "frames is longer than any video, 1000000"),
        ("model: {network: {head_channels: 0}}", "head_channels is 0; it must be at least 1, or -1 for one head"),
        ("model: {fps: .nan}", "fps is nan; it must be a number from 0.001 to 1000"),
        ("batch: 8\nsteps: 5\nbatch: 16", "batch is given twice"),
        ("optimizer: {lr: 1, eps: 1, lr: 2}", "lr is given twice"),
        (b"# Gr\xf6\xdfe\nsteps: 5", "r.yaml cannot be read as YAML: unacceptable character"),
        ("data: {path: 2024-13-45}", "r.yaml cannot be read as YAML: month must be in 1..12"),
        ("false", "r.yaml: expected keys and values, found False"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, text, says):
    (tmp_path / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(McvdError) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_numbers_are_read_as_people_mean_them(tmp_path):
    (tmp_path / "r.yaml").write_text("optimizer: {lr: 1e-4, eps: 1}\nmodel: {network: {size: [32, 32]}}")
    recipe = read_recipe(tmp_path / "r.yaml")
    assert (recipe.optimizer.lr, recipe.optimizer.eps) == (1e-4, 1.0)  # YAML 1.1 reads 1e-4 as text
    assert recipe.model.network.size == (32, 32)


@pytest.mark.parametrize("name", ["\U0001f3a5", os.fsdecode(b"v\xff"), "~no-such-user/videos"])
def test_a_run_continues_from_its_own_recipe_whatever_its_videos_are_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    recipe = replace(RECIPE, data=DataConfig("videos", name), steps=1)
    go(recipe, tmp_path / "run")
    assert recipe.data.source == str(tmp_path / name)
    assert read_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_a_key_that_replaces_an_inherited_one_is_not_there_twice(tmp_path):
    text = "optimizer: &usual {lr: 1.0, eps: 1.0}\ndata: {stride: 3}\n"
    (tmp_path / "r.yaml").write_text(text.replace("{lr: 1.0", "{<<: {lr: 5.0, betas: [0, 0]}, lr: 1.0"))
    assert read_recipe(tmp_path / "r.yaml").optimizer == OptimizerConfig(lr=1.0, eps=1.0, betas=(0.0, 0.0))


def test_any_seed_will_do(tmp_path):
    """Such as the time: torch's own generators take 64 bits, and steps are numbered in them, too."""
    for seed in (20261127170631, 2**64, 10**30):
        go(replace(RECIPE, seed=seed, steps=2), tmp_path / str(seed))
    first, *others = [losses(tmp_path / str(seed)) for seed in (20261127170631, 2**64, 10**30)]
    assert first not in others


def test_an_empty_recipe_is_the_default_one(tmp_path):
    (tmp_path / "r.yaml").write_text("# nothing\n")
    assert read_recipe(tmp_path / "r.yaml") == Recipe()


def test_unknown_recipes_are_refused(tmp_path):
    with pytest.raises(McvdError, match="no recipe nothing; bundled ones: digits.*or give the path of a .yaml file"):
        read_recipe("nothing")
    with pytest.raises(McvdError, match="no recipe digit; did you mean digits"):
        read_recipe("digit")
    with pytest.raises(McvdError, match="gone.yaml does not exist"):
        read_recipe(tmp_path / "gone.yaml")
