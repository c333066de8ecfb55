"""Muon: what its updates are, which weights get them, and that restarts and processes do not change the run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mcvd
import tiny
from mcvd.config import override, parse_assignments
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion
from mcvd.training import trainer
from mcvd.training.estimate import estimate
from mcvd.training.muon import SIZE, Muon, _as_weight, _matrix, muon_weights, optimizer_for, orthogonalise
from mcvd.training.processes import Processes
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.trainer import Trainer
from test_training_engine import CONCAT, FRAMES_3D, Clips, assert_same, go, logged, quick, recipe, start, state, tensors

MUON = OptimizerConfig(name="muon", lr=2e-3, warmup=2, weight_decay=0.1)
WIDE = replace(CONCAT, network=replace(CONCAT.network, width=16))  # more weights that are large enough


@pytest.fixture(autouse=True)
def as_in_the_processes_that_the_tests_start(monkeypatch):
    quick(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 16, 144), (1, 64, 64), (5, 32, 90), (3, 24, 25)], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_orthogonal_matrices_keep_the_directions_and_have_singular_values_near_1(shape, size):
    torch.manual_seed(0)
    x = size * torch.randn(shape)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    made = torch.linalg.svdvals(orthogonalise(x))
    seen = s > 0.02 * s.amax(1, keepdim=True)  # 5 iterations do not bring the smallest all the way
    assert made.max() < 1.3
    assert ((u.mT @ orthogonalise(x) @ v.mT).diagonal(dim1=1, dim2=2)[seen] > 0.6).all()


def test_every_matrix_of_a_stack_is_made_as_if_alone():
    torch.manual_seed(0)
    x = torch.randn(4, 12, 30) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None, None]
    for one, made in zip(x, orthogonalise(x)):
        torch.testing.assert_close(made, orthogonalise(one[None])[0])
    assert torch.equal(orthogonalise(x)[3], torch.zeros(12, 30))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 5, 3, 3), (80, 5, 3, 3), (8, 5, 3), (50, 7, 1, 1)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_weight_is_a_matrix_that_is_no_higher_than_wide_and_back(shape, channels_last):
    weight = torch.randn(shape)
    if channels_last and len(shape) == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    matrix = _matrix(weight)
    assert matrix.shape == tuple(sorted((shape[0], weight.numel() // shape[0])))
    assert torch.equal(_as_weight(matrix, weight), weight)


def single(shape, gradient, **options):
    """A layer with one weight for Muon, after one step."""
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.ones(shape))
    layer.bias = torch.nn.Parameter(torch.ones(3))
    layer.weight.grad = gradient
    optimizer = optimizer_for(layer, replace(MUON, lr=0.1, **options), fused=False)
    optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("shape", [(50, 60), (60, 50), (16, 16, 3, 3), (300, 8, 1, 1)], ids=str)
def test_updates_have_the_size_of_adams_whatever_the_shape(shape):
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    layer, optimizer = single(shape, gradient, weight_decay=0.0)
    update = (1 - layer.weight.detach()) / 0.1
    assert float(update.square().mean().sqrt()) == pytest.approx(SIZE, rel=0.25)
    assert float((update * gradient).sum()) > 0
    torch.testing.assert_close(optimizer.state[layer.weight]["average"], 0.05 * gradient)
    assert layer.bias not in optimizer.state  # it has no gradient


def test_a_gradient_of_zero_moves_nothing_but_by_the_weight_decay():
    layer, _ = single((50, 60), torch.zeros(50, 60))
    torch.testing.assert_close(layer.weight.detach(), torch.full((50, 60), 0.99))
    layer, _ = single((50, 60), None)
    assert torch.equal(layer.weight.detach(), torch.ones(50, 60))


def test_the_average_and_the_look_ahead_are_those_of_the_paper():
    torch.manual_seed(0)
    gradients = torch.randn(3, 50, 60)
    layer, optimizer = single((50, 60), gradients[0])
    for gradient in gradients[1:]:
        layer.weight.grad = gradient.clone()
        optimizer.step()
    expected, average = torch.ones(50, 60), torch.zeros(50, 60)
    for gradient in gradients:
        average = 0.95 * average + 0.05 * gradient
        update = orthogonalise((0.95 * average + 0.05 * gradient)[None])[0]
        expected = (1 - 0.1 * 0.1) * expected - 0.1 * 0.2 * 60**0.5 * update
    torch.testing.assert_close(layer.weight.detach(), expected)


# --- which weights, which optimizer -----------------------------------------------------------------------------------


def test_muon_takes_the_large_weights_of_convolutions_and_linear_layers():
    model = VideoDiffusion(tiny.config(width=16, attention=(8,), head_channels=8, context_noise=0.5))
    chosen = {id(weight) for weight in muon_weights(model)}
    found = {name.removeprefix("network.") for name, weight in model.named_parameters() if id(weight) in chosen}
    assert {"down.0.blocks.0.conv0.weight", "middle.1.qkv.weight", "middle.0.norm0.modulation.weight"} <= found
    large = {name.removeprefix("network.") for name, weight in model.named_parameters() if weight.numel() > 2000}
    assert large - found == {"time.2.weight", "sigma.2.weight"}
    optimizer = optimizer_for(model, MUON, fused=False)
    assert isinstance(optimizer, Muon)
    grouped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in model.parameters())  # each once


def test_the_convolutions_over_time_of_a_3d_network_are_no_embedding():
    model = VideoDiffusion(replace(FRAMES_3D, network=replace(FRAMES_3D.network, width=24)))
    chosen = {id(weight) for weight in muon_weights(model)}
    assert any(".time." in name for name, weight in model.named_parameters() if id(weight) in chosen)


def test_a_recipe_names_its_optimizer():
    made = override(Recipe(), parse_assignments(["optimizer.name=muon", "optimizer.momentum=0.9"], "--set"), "--set")
    assert (made.optimizer.name, made.optimizer.momentum) == ("muon", 0.9)
    with pytest.raises(McvdError, match="name is 'mion'; it is one of adam, muon"):
        override(Recipe(), {"optimizer.name": "mion"}, "--set")
    with pytest.raises(McvdError, match=r"optimizer.momentum is 1.0; it must be at least 0 and below 1"):
        override(Recipe(), {"optimizer.momentum": 1.0}, "--set")


def test_the_estimate_knows_that_muon_keeps_one_average():
    adam, muon = (estimate(recipe(CONCAT, optimizer=OptimizerConfig(name=name))) for name in ("adam", "muon"))
    weights = sum(weight.numel() for weight in muon_weights(VideoDiffusion(CONCAT)))
    assert adam.state_bytes == 20 * adam.parameters
    assert muon.state_bytes == adam.state_bytes - 4 * weights


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_that_stopped_ends_as_if_it_had_not(tmp_path):
    made = recipe(replace(WIDE, network=replace(WIDE.network, dropout=0.2)), optimizer=MUON, steps=20, save_every=10)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    go(made, straight)
    go(replace(made, steps=10), stopped)
    assert go(made, stopped)[0].endswith("at step 10")
    assert_same(state(stopped), state(straight))
    assert logged(stopped) == logged(straight)
    assert list(logged(stopped)) == list(range(1, 21))


def test_what_the_recipe_says_now_holds_after_a_restart():
    made = start(recipe(WIDE, optimizer=MUON))
    made.train_step()
    edited = replace(MUON, momentum=0.5, weight_decay=0.3, betas=(0.8, 0.9))
    again = start(recipe(WIDE, optimizer=edited))
    again.load_state_dict(made.state_dict(), "run")
    muon, adam = again.optimizer.param_groups
    assert (muon["momentum"], muon["weight_decay"]) == (0.5, 0.3)
    assert (adam["betas"], adam["weight_decay"]) == ((0.8, 0.9), 0.3)
    assert "betas" not in muon
    assert "momentum" not in adam
    before = made.state_dict()["optimizer"]["state"]
    assert_same(again.state_dict()["optimizer"]["state"], before)
    again.train_step()  # also by Adam's part, whose counts go on
    assert float(again.optimizer.state[adam["params"][0]]["step"]) == 2


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_run_that_began_on_a_cpu_gets_the_fused_adam_of_a_gpu(name, monkeypatch):
    made = recipe(WIDE, optimizer=replace(MUON, name=name))
    before, plain = start(made), start(made)
    before.train_step()
    monkeypatch.setattr(trainer, "optimizer_for", lambda model, config, fused: optimizer_for(model, config, True))
    fused = start(made)
    for again in (plain, fused):
        again.load_state_dict(before.state_dict(), "run")
    assert [run.optimizer.param_groups[-1]["fused"] for run in (before, plain, fused)] == [False, False, True]
    assert float(fused.train_step()[0]) == float(plain.train_step()[0])


@pytest.mark.parametrize(("before", "now"), [("adam", "muon"), ("muon", "adam")])
def test_a_run_with_another_optimizer_is_refused_and_nothing_is_changed(before, now):
    run, other = (start(recipe(CONCAT, optimizer=replace(MUON, name=name))) for name in (before, now))
    run.train_step()
    own = {name: value.clone() for name, value in other.model.state_dict().items()}
    says = f"^run holds a run with optimizer {before}, the recipe says {now}; choose another --output, nothing was"
    with pytest.raises(McvdError, match=says):
        other.load_state_dict(run.state_dict(), "run")
    assert_same(other.model.state_dict(), own)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_makes_the_steps_of_a_cpu_and_continues():
    torch.manual_seed(0)
    gradients = [(torch.randn(24, 16, 3, 3), torch.randn(300, 40), torch.randn(24)) for _ in range(3)]
    ends = []
    for device in ("cpu", "cuda"):
        layer = torch.nn.Module()
        layer.convolution = torch.nn.Parameter(torch.zeros(24, 16, 3, 3, device=device))
        layer.linear = torch.nn.Parameter(torch.zeros(300, 40, device=device))
        layer.bias = torch.nn.Parameter(torch.zeros(24, device=device))
        optimizer = optimizer_for(layer, MUON, fused=device == "cuda")
        for each in gradients:
            for weight, gradient in zip(layer.parameters(), each):
                weight.grad = gradient.to(device)
            optimizer.step()
        ends.append([weight.detach().cpu() for weight in layer.parameters()])
    for cpu, gpu in zip(*ends):
        assert float((gpu - cpu).norm() / cpu.norm()) < 0.03  # bf16 beside float32

    cuda = Processes(0, 1, torch.device("cuda"))
    run, again = (Trainer(recipe(WIDE, optimizer=MUON), cuda, Clips()) for _ in range(2))
    for _ in range(2):
        run.train_step()
    again.load_state_dict(run.state_dict(), "run")
    assert_same(again.optimizer.state_dict()["state"], run.optimizer.state_dict()["state"])
    again.train_step()  # the fused Adam with the counts that were read
    assert all(torch.isfinite(weight).all() for weight in again.model.parameters())


RUNS = {name: recipe(WIDE, optimizer=MUON, sharding=name) for name in ("none", "full")}
SCRIPT = """
import contextlib, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_muon as tests
from pathlib import Path
from mcvd.training.processes import Processes

tests.quick(tests.pytest.MonkeyPatch())
with Processes.join("cpu") as processes:
    Processes.join = staticmethod(lambda device: contextlib.nullcontext(processes))  # one group for all runs
    for name, recipe in tests.RUNS.items():
        for steps in (2, 4):  # the second time from a checkpoint
            tests.go(tests.replace(recipe, steps=steps), Path({folder!r}) / name)
            processes.any(False)  # waits until the first process has saved
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_as_one_does_sharded_or_not(tmp_path):
    go(recipe(WIDE, optimizer=MUON), tmp_path / "one")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(Path(mcvd.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    one = tensors(state(tmp_path / "one"))
    for name in RUNS:
        for value in ("loss", "gradient", "validation"):
            for step, number in logged(tmp_path / "one", value).items():
                assert logged(tmp_path / name, value)[step] == pytest.approx(number, rel=1e-5), (name, value, step)
        two = tensors(state(tmp_path / name))
        assert one.keys() == two.keys()
        for key, expected in one.items():
            assert (two[key].shape, two[key].dtype) == (expected.shape, expected.dtype), key
            if key.startswith("/model"):
                torch.testing.assert_close(two[key], expected, rtol=0, atol=1e-5)
