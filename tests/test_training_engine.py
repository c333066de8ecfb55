"""What large runs need, and what it must not change: sharding, fp16, recomputation, the best model."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import mcvd
import tiny
from mcvd import networks
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion
from mcvd.training import precision, run, trainer
from mcvd.training.checkpoint import checkpoints, save_checkpoint, save_model
from mcvd.training.estimate import estimate
from mcvd.training.log import RunLog
from mcvd.training.processes import Processes
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.run import train
from mcvd.training.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # two processes that wait for each other take their time on a busy machine
CPU = torch.device("cpu")
PICTURE = RunLog.picture
CONCAT = tiny.config(attention=(8, 16), head_channels=8)
SPATIN = tiny.config(attention=(8,), head_channels=8, conditioning="spatin", spatin_width=8)
FRAMES_3D = tiny.config(multipliers=(1,), frames="pseudo3d", conditioning="spatin", spatin_width=6)
SMALL = tiny.config(multipliers=(1,))


class Clips:
    """Clip i is random, and a function of i."""

    def batch(self, indices):
        return torch.stack([tiny.video(6, 1, 16, 16, seed=int(i)) for i in indices])


def recipe(model, **options):
    usual = {"steps": 4, "batch": 4, "log_every": 1, "save_every": 2, "sample_every": 1000}
    return Recipe(model=model, **({"optimizer": OptimizerConfig(lr=1e-3, warmup=2)} | usual | options))


def go(made, output, init_from=None):
    lines = []
    train(made, output, device="cpu", init_from=init_from, clips=lambda *_: Clips(), report=lines.append)
    return lines


def start(made):
    return Trainer(made, Processes(0, 1, CPU), Clips())


def logged(run, name="loss"):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def state(run, step=None):
    return torch.load(checkpoints(run)[-1] if step is None else run / f"checkpoint-{step:09d}.pt", weights_only=True)


def tensors(nested, path=""):
    """Every tensor of a nested state, by path."""
    if isinstance(nested, dict):
        return {k: v for key, value in nested.items() for k, v in tensors(value, f"{path}/{key}").items()}
    return {path: nested} if isinstance(nested, torch.Tensor) else {}


def assert_same(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def quick(patch):
    """Sheets and validation take most of the time of a short run."""
    patch.setattr("mcvd.training.log.RunLog.picture", lambda *a: None)
    patch.setattr("mcvd.training.run.TEST_CLIPS", 4)


@pytest.fixture(autouse=True)
def as_in_the_processes_that_the_tests_start(monkeypatch):
    quick(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- recomputation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [CONCAT, SPATIN, FRAMES_3D], ids=["concat", "spatin", "3d"])
def test_recomputed_activations_give_the_same_gradients_dropout_included(model):
    model = replace(model, network=replace(model.network, dropout=0.3))
    plain, recomputed = start(recipe(model)), start(recipe(model, checkpointing=True))
    kept: dict[Trainer, int] = {plain: 0, recomputed: 0}
    for each in kept:

        def keep(x, each=each):
            kept[each] += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            each.train_step()
        each.train_step()
    assert kept[recomputed] < 0.6 * kept[plain]  # the norms of the plain one keep no maps either
    gradients = [{n: p.grad for n, p in each.model.named_parameters()} for each in (plain, recomputed)]
    assert_same(*gradients)
    assert_same(plain.state_dict(), recomputed.state_dict())


@pytest.mark.parametrize("model", [tiny.config(), SPATIN, FRAMES_3D], ids=["concat", "spatin", "3d"])
def test_the_estimate_knows_what_recomputation_saves_and_costs(model):
    # without attention: how much of it is kept depends on the device
    model = replace(model, network=replace(model.network, attention=()))
    plain, recomputed = (estimate(recipe(model, checkpointing=on)) for on in (False, True))
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    made = start(recipe(model))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        made.model.loss(torch.zeros(4, 6, 1, 16, 16))
    weights = {p.untyped_storage().data_ptr() for p in made.model.parameters()}
    real = sum(storage.nbytes() for at, storage in kept.items() if at not in weights)
    assert real <= plain.activation_bytes < 1.2 * real  # it is said to be the most
    assert recomputed.activation_bytes < 0.85 * plain.activation_bytes  # two levels, and norms that keep no maps
    assert plain.flops * 1.1 < recomputed.flops < plain.flops * 4 / 3


# --- fp16 -------------------------------------------------------------------------------------------------------------


def test_fp16_is_refused_where_it_is_slow():
    with pytest.raises(McvdError, match="cpu has no fast fp16; choose fp32( or bf16)?$"):
        start(recipe(CONCAT, precision="fp16"))


@pytest.fixture
def fp16(monkeypatch):
    """CPUs can do it, slowly: the same code runs."""
    monkeypatch.setattr(networks.precision, "fast_on", lambda device: tuple(networks.precision.PRECISIONS))
    return recipe(SMALL, precision="fp16")


@pytest.mark.parametrize(
    ("fast", "dtype"), [(("bf16", "fp16", "fp32"), torch.bfloat16), (("fp16", "fp32"), torch.float32)]
)
def test_auto_is_never_fp16_which_people_ask_for(monkeypatch, fast, dtype):
    monkeypatch.setattr(precision, "fast_on", lambda device: fast)
    monkeypatch.setattr(networks.precision, "fast_on", lambda device: fast)
    made = start(recipe(SMALL))
    assert not made.precision.fp16
    assert made_dtype(made) == dtype


def test_under_fp16_steps_with_infinite_gradients_are_skipped_until_the_scale_fits(fp16, monkeypatch):
    monkeypatch.setattr(precision, "SCALE", 2.0**14)
    made = start(replace(fp16, optimizer=OptimizerConfig(lr=1e-3, warmup=0)))
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    scale, steps = 2.0**14, 0
    while not math.isfinite(made.train_step()[1]):
        steps, scale = steps + 1, scale / 2
        assert int(made.precision.skipped) == steps
        assert made.precision.scaler.get_scale() == scale
        assert_same(made.model.state_dict(), before)
    assert 0 < steps < 14
    assert int(made.precision.skipped) == 0
    assert not torch.equal(made.model.network.conv_in.weight, before["network.conv_in.weight"])


def test_fp16_follows_fp32(fp16):
    half, single = start(fp16), start(replace(fp16, precision="fp32"))
    assert made_dtype(half) == torch.float16
    for _ in range(3):  # loss and norm of the gradient, before it is clipped
        assert [float(x) for x in half.train_step()] == pytest.approx([float(x) for x in single.train_step()], rel=1e-2)


def made_dtype(made):
    """What the network computes in."""
    seen = []
    made.model.network.middle[0].conv0.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with made.precision.autocast:
        made.model(torch.zeros(1, 6, 1, 16, 16))
    return seen[0]


def test_the_scale_survives_a_restart(fp16, tmp_path, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    monkeypatch.setattr(precision, "SCALE", 2.0**20)
    go(fp16, straight)
    go(replace(fp16, steps=2), stopped)
    saved = state(stopped)["precision"]
    assert saved["scale"] == 2.0**18
    assert saved["skipped"] == 2
    go(fp16, stopped)
    assert state(stopped)["precision"] == state(straight)["precision"]
    assert_same(state(stopped), state(straight))


def test_a_run_can_turn_to_fp16_and_back(fp16, tmp_path):
    for steps, name in ((1, "fp32"), (2, "fp16"), (3, "fp32")):
        go(replace(fp16, steps=steps, precision=name), tmp_path)
    assert list(logged(tmp_path)) == [1, 2, 3]


def test_many_steps_in_a_row_without_a_finite_gradient_stop_the_run(fp16, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "SKIPS", 4)
    monkeypatch.setattr(run, "SKIPS", 4)
    made, calls = trainer.to_model_range, []

    def fails_after_step_3(*args):
        calls.append(1)
        return made(*args) * (math.nan if len(calls) > 3 else 1)

    monkeypatch.setattr(precision, "SCALE", 1.0)
    monkeypatch.setattr(trainer, "to_model_range", fails_after_step_3)
    says = "the last 4 steps up to 7 had no finite gradient in fp16; .*checkpoint-000000006.pt"
    with pytest.raises(McvdError, match=says):
        go(replace(fp16, steps=20), tmp_path)
    assert list(logged(tmp_path, "gradient")) == [1, 2, 3]
    assert list(logged(tmp_path, "learning_rate")) == [1, 2, 3, 4, 5, 6]
    assert_same(state(tmp_path, 6)["model"], state(tmp_path, 4)["model"])  # no step was taken, nothing was harmed


# --- the best model ---------------------------------------------------------------------------------------------------


def test_the_best_model_is_kept_also_over_a_restart(tmp_path, monkeypatch):
    errors = {2: 0.5, 4: 0.25, 6: 0.75, 8: 0.3, 10: math.nan, 12: 0.125}
    validated = []

    def validation(model, clips):
        validated.append(2 * len(validated) + 2)
        return {"validation": errors[validated[-1]]}

    monkeypatch.setattr(run, "validate", validation)
    made = recipe(SMALL, sample_every=2, save_every=4)

    def best():
        notes = json.loads((tmp_path / "best" / "config.json").read_text())["notes"]
        return notes["steps"], notes["validation"]

    go(replace(made, steps=4), tmp_path)
    assert best() == (4, 0.25)
    assert_same(mcvd.load(tmp_path / "best", device="cpu").state_dict(), state(tmp_path, 4)["ema"]["shadow"])
    for steps, expected in ((8, (4, 0.25)), (10, (4, 0.25)), (12, (12, 0.125))):
        go(replace(made, steps=steps), tmp_path)
        assert best() == expected, steps
    assert state(tmp_path, 12)["best"] == 0.125


def test_the_best_model_is_chosen_anew_for_other_clips(tmp_path, monkeypatch):
    errors = {2: 0.25, 4: 0.5, 6: 0.75, 8: 0.6}
    monkeypatch.setattr(run, "validate", lambda model, clips: {"validation": errors.pop(min(errors))})
    best, lines = [], []

    class Others(Clips):
        def batch(self, indices):
            return 255 - super().batch(indices)

    for steps, source in ((2, Clips()), (4, Clips()), (6, Others()), (8, Others())):
        made = recipe(SMALL, sample_every=2, steps=steps)
        train(made, tmp_path, device="cpu", clips=lambda *_, source=source: source, report=lines.append)
        best.append(json.loads((tmp_path / "best" / "config.json").read_text())["notes"]["steps"])
    assert best == [2, 2, 6, 8]
    assert sum("best/ begins anew" in line for line in lines) == 1


def test_the_average_is_built_once_in_a_step_that_validates_and_saves(tmp_path, monkeypatch):
    built, averaged = [], Trainer.averaged
    monkeypatch.setattr(Trainer, "averaged", lambda self: built.append(self.step) or averaged(self))
    go(recipe(CONCAT, sample_every=2), tmp_path)
    assert built == [2, 4]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None], ids=["write", "safetensors"])
def test_a_model_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, 3, {"step": 3})
    model = tiny.model()
    if error is None:
        (tmp_path / "model" / ".model.safetensors.partial").mkdir(parents=True)  # cannot be opened for writing
    else:
        monkeypatch.setattr(type(model), "save", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(McvdError, match=r"cannot write .*model \(.*\); the last good checkpoint is .*000003.pt"):
        save_model(tmp_path, "model", model, {})


class FullDisk(io.FileIO):
    """A file that has room for so many bytes."""

    def write(self, data):
        if self.tell() + len(data) > 5000:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("size", [3000, 50000])  # torch fails as it closes the file, or before
def test_a_checkpoint_that_finds_the_disk_full_says_so_and_takes_no_room(tmp_path, monkeypatch, size):
    save_checkpoint(tmp_path, 3, {"step": 3})
    monkeypatch.setattr("mcvd.training.checkpoint.open", FullDisk, raising=False)
    with pytest.raises(McvdError, match=r"cannot write .*6.pt \(No space left.*\); the last good .* is .*000003.pt"):
        save_checkpoint(tmp_path, 6, {str(i): torch.zeros(size // 40) for i in range(10)})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000003.pt"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, call=call: (done.append(name), call(*args)))
    save_checkpoint(tmp_path, 3, {})
    assert done == ["fsync", "replace"]


def test_an_error_of_the_gpu_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error")))
    with pytest.raises(RuntimeError, match="^CUDA error$"):
        save_checkpoint(tmp_path, 3, {})
    assert not list(tmp_path.iterdir())


def test_a_model_that_finds_the_disk_full_takes_no_room(tmp_path, monkeypatch):
    def fail(weights, path, metadata):
        path.write_bytes(b"as far as it goes")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(McvdError, match="cannot write .*model"):
        save_model(tmp_path, "model", tiny.model(), {})
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize("what", ["trackers.JsonLines.scalars", "samples.contact_sheet", "samples.write_video"])
def test_a_log_that_finds_the_disk_full_names_the_last_good_checkpoint(tmp_path, monkeypatch, what):
    monkeypatch.setattr("mcvd.training.log.RunLog.picture", PICTURE)
    go(recipe(SMALL), tmp_path)
    error = (McvdError if what.endswith("write_video") else OSError)("28, No space left on device")
    if what.endswith("scalars"):
        error = OSError(28, "No space left on device", b"log.jsonl")  # TensorBoard's names are bytes
    monkeypatch.setattr(f"mcvd.training.{what}", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(McvdError, match=r"No space left on device.*; the last good checkpoint is .*000004.pt"):
        go(recipe(SMALL, steps=6, save_every=5, sample_every=5), tmp_path)


# --- many processes ---------------------------------------------------------------------------------------------------

RUNS = {
    "concat": recipe(CONCAT, sharding="full"),
    "spatin": recipe(SPATIN, sharding="full", checkpointing=True, accumulate=2, steps=3, save_every=9),
    "3d": recipe(FRAMES_3D, sharding="full", steps=2, save_every=9),
    "fp16": recipe(SMALL, sharding="full", precision="fp16", steps=2, save_every=9),
    "resumed": recipe(CONCAT, sharding="full", save_every=9),
}
SCRIPT = """
import contextlib, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training_engine as tests
from pathlib import Path
from mcvd.networks import precision
from mcvd.training.processes import Processes

tests.quick(tests.pytest.MonkeyPatch())
precision.fast_on = lambda device: tuple(precision.PRECISIONS)
with Processes.join("cpu") as processes:
    Processes.join = staticmethod(lambda device: contextlib.nullcontext(processes))  # one group for all runs
    def clips(recipe, split, device):
        print(f"clips {{processes.rank}} {{split}}", flush=True)
        return tests.Clips()

    for name, recipe in tests.RUNS.items():
        start = Path({folder!r}) / "start" if name == "3d" else None
        said = lambda line: print(f"{{name}}: {{line}}", flush=True)
        tests.train(recipe, Path({folder!r}) / name, device="cpu", init_from=start, clips=clips, report=said)
    try:
        found = processes.rank and Path({folder!r}) / "concat" or Path({folder!r}) / "nothing"
        tests.train(recipe, found, device="cpu", clips=lambda *_: tests.Clips())
    except tests.McvdError as error:
        print(f"refused {{processes.rank}}: {{error}}", flush=True)
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The run folders of two processes that share out their weights, and what they said."""
    folder = tmp_path_factory.mktemp("sharded")
    one = folder / "one"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        go(recipe(CONCAT), one)
    VideoDiffusion(FRAMES_3D).save(folder / "start")
    (folder / "resumed").mkdir()
    shutil.copy(checkpoints(one)[0], folder / "resumed")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    source = str(Path(mcvd.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["concat", "spatin", "3d"])
def test_two_sharded_processes_train_as_one_does(sharded, tmp_path, name):
    folder, said = sharded
    if name == "concat":
        one = folder / "one"
    else:
        one, start_from = tmp_path / "one", folder / "start" if name == "3d" else None
        assert f"starting from {folder / 'start'}" in said
        go(replace(RUNS[name], sharding="none", checkpointing=False), one, init_from=start_from)
    assert list(logged(folder / name)) == list(logged(one))
    for value in ("loss", "gradient", "validation"):
        for step, number in logged(one, value).items():
            assert logged(folder / name, value)[step] == pytest.approx(number, rel=1e-5), (value, step)
    a, b = tensors(state(folder / name)), tensors(state(one))
    assert a.keys() == b.keys()  # the whole state, as one process writes it
    for key, value in a.items():
        assert value.shape == b[key].shape, key
        assert value.dtype == b[key].dtype, key


@pytest.mark.slow
def test_a_sharded_checkpoint_is_continued_by_one_process(sharded, tmp_path):
    folder, _ = sharded
    shutil.copy(checkpoints(folder / "concat")[0], tmp_path)
    assert go(RUNS["concat"], tmp_path)[0].endswith("at step 2")  # sharding among one changes nothing
    assert list(logged(tmp_path)) == [3, 4]
    for step, loss in logged(tmp_path).items():
        assert loss == pytest.approx(logged(folder / "concat")[step], rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_is_continued_by_sharded_ones(sharded):
    folder, said = sharded
    assert f"resumed: continuing {folder / 'resumed'} at step 2" in said
    assert list(logged(folder / "resumed")) == [3, 4]
    for step, loss in logged(folder / "resumed").items():
        assert loss == pytest.approx(logged(folder / "one")[step], rel=1e-5)


@pytest.mark.slow
def test_sharded_fp16_follows_one_process(sharded, fp16, tmp_path):
    folder, _ = sharded
    go(replace(fp16, steps=2), tmp_path)
    for step, loss in logged(tmp_path).items():
        assert logged(folder / "fp16")[step] == pytest.approx(loss, rel=1e-2)
    assert state(folder / "fp16")["precision"] == state(tmp_path)["precision"]


@pytest.mark.slow
def test_processes_that_do_not_share_the_run_folder_are_refused(sharded):
    _, said = sharded
    for rank in (0, 1):
        assert f"refused {rank}: the processes found different checkpoints in" in said


@pytest.mark.slow
def test_only_the_first_process_makes_validation_clips(sharded):
    _, said = sharded
    assert "clips 0 test" in said
    assert "clips 1 train" in said
    assert "clips 1 test" not in said


@pytest.mark.slow
def test_the_model_of_a_sharded_run_is_a_model_like_any_other(sharded):
    folder, _ = sharded
    model = mcvd.load(folder / "spatin", device="cpu")
    assert_same(model.state_dict(), state(folder / "spatin")["ema"]["shadow"])
    assert model.predict(tiny.video(2, 1, 16, 16), 3, steps=2).shape == (1, 3, 1, 16, 16)
    assert json.loads((folder / "spatin" / "best" / "config.json").read_text())["notes"]["steps"] == 3
