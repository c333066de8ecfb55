"""What only a CUDA GPU can show; skipped where there is none. `pytest tests/test_cuda.py` is the check of a machine."""

import contextlib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from mcvd.benchmark.run import Options, benchmark
from mcvd.data.moving_mnist import MovingMNIST
from mcvd.draw import generator_at
from mcvd.guide import guided
from mcvd.networks.engine import ENGINES, calls_by
from mcvd.networks.memory import free_memory
from mcvd.training.processes import Processes
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.recorded import WARM
from mcvd.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
NETWORKS = [{}, {"conditioning": "spatin", "spatin_width": 8}, {"attention": (8,)}, {"patch": 2}]
NETWORKS += [{"frames": "pseudo3d"}]
each_network = pytest.mark.parametrize("network", NETWORKS, ids=["concat", "spatin", "attention", "patch", "3d"])


@contextlib.contextmanager
def strict():
    """Convolutions in float32, not TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@each_network
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_gpu_fills_in_what_a_cpu_does(network, guidance):
    cpu = tiny.model(**network)
    gpu = tiny.model(**network).cuda()
    frames, known = tiny.video(2, 11, 1, 16, 16), [True] * 2 + [False] * 8 + [True]  # three blocks and a short one
    noises = torch.randn(64, 2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def filled(model):
        from mcvd.diffusion.solvers import solver_table
        from mcvd.planner import plan
        from mcvd.rollout import rollout

        home, left = next(model.parameters()).device, iter(noises)
        given = frames.to(home).float() / 255
        blocks = plan(known, model.layout, model.config.masking)
        table = solver_table("sde-dpm++", model.config.schedule, 6)
        noise = lambda _, shape: next(left).to(home)  # noqa: E731
        with calls_by(model.network):
            return rollout(model, given, known, blocks, table, samples=1, guidance=guidance, noise=noise).cpu()

    with strict():
        assert torch.allclose(filled(gpu), filled(cpu), atol=2e-3)


@each_network
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_calls_give_the_same_bits(network, guidance, precision, monkeypatch):
    model, clips = tiny.model(**network).cuda(), tiny.video(2, 2, 1, 16, 16)
    options = {"frames": 7, "samples": 2, "batch_size": 3, "steps": 5, "guidance": guidance, "precision": precision}
    replayed = model.predict(clips, **options)  # chunks of 3 and 1, several blocks: conditions change under a recording
    monkeypatch.setitem(ENGINES, "torch", lambda network: None)
    assert torch.equal(replayed, model.predict(clips, **options))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_guide_is_replayed_and_moves_samples_as_on_a_cpu(precision, monkeypatch):
    def made():
        return guided(tiny.model(), tiny.model(seed=7, width=4), noise=0.0)

    model, clips = made().cuda(), tiny.video(2, 2, 1, 16, 16)
    options = {"frames": 7, "samples": 2, "batch_size": 3, "steps": 5, "guidance": 2.0, "precision": precision}
    replayed = model.predict(clips, **options)
    monkeypatch.setitem(ENGINES, "torch", lambda network: None)
    assert torch.equal(replayed, model.predict(clips, **options))
    x, a = torch.randn(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 0.3
    nothing = torch.zeros(1, 2, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16), torch.tensor([False]), torch.tensor([0, 0])
    with torch.no_grad(), strict():
        there = model.denoiser(*(part.cuda() for part in nothing), guided=True)(x.cuda(), 50, a).cpu()
        assert torch.allclose(there, made().denoiser(*nothing, guided=True)(x, 50, a), atol=2e-3)


def trainer(patch=1, dropout=0.0, **options):
    recipe = Recipe(
        model=tiny.config(
            attention=(8,), size=(32, 32), layout=tiny.BlockLayout(2, 2, 1), patch=patch, dropout=dropout
        ),
        batch=8,
        steps=20,
        **{"optimizer": OptimizerConfig(lr=1e-3, warmup=0), **options},
    )
    device = torch.device("cuda")
    digits = (torch.rand(10, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    return Trainer(recipe, Processes(0, 1, device), MovingMNIST(digits, 5, size=32, device=device))


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_in_every_precision(precision, optimizer):
    run = trainer(precision=precision, optimizer=OptimizerConfig(name=optimizer, lr=2e-3, warmup=0))
    losses = [float(run.train_step()[0]) for _ in range(20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("patch", [1, 2])
def test_a_compiled_step_equals_an_eager_one(patch):
    still = OptimizerConfig(lr=0, warmup=0)  # or a small difference would grow
    runs = [trainer(patch, precision="fp32", compile=compiled, optimizer=still) for compiled in (False, True)]
    for _ in range(3):
        with strict():
            losses = [run.train_step()[0] for run in runs]
        assert torch.allclose(*losses, rtol=1e-5)
        gradients = [torch.cat([w.grad.flatten() for w in run.model.parameters()]) for run in runs]
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "weighting": "min-snr"}, {"dropout": 0.2}, {"compile": True}]
)
def test_a_recorded_run_equals_one_that_is_not(optimizer, options):
    rate = OptimizerConfig(name=optimizer, lr=1e-3, warmup=4, decay="cosine")
    runs = [trainer(precision="fp32", optimizer=rate, recorded=on, **options) for on in (False, True)]
    with strict():
        losses = [[float(run.train_step()[0]) for _ in range(12)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(set(losses[1])) == 12
    ends = [torch.cat([w.flatten() for w in run.averaged().parameters()]) for run in runs]
    began = torch.cat([w.flatten() for w in trainer().model.parameters()])
    assert (ends[0] - ends[1]).norm() < 0.02 * (ends[0] - began).norm()


def test_the_benchmarked_training_step_equals_a_plain_one():
    """Also the recorded steps, which are the ones that are timed."""
    plain = Path(__file__).resolve().parents[1] / "benchmarks" / "peers" / "plain.py"
    options = Options({"tiny": tiny.config()}, ("training",), device="cuda", rounds=2, peers=(plain,), memory=False)
    (row,) = benchmark(replace(options, quick_calibration=True))["rows"]
    assert row["implementations"]["plain"]["equal"], row


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_and_replayed_calls_make_the_same_frames(precision):
    model, clips = tiny.model(attention=(8,)).cuda(), tiny.video(2, 2, 1, 16, 16)
    options = {"frames": 7, "samples": 2, "batch_size": 3, "steps": 5, "precision": precision}
    with strict():
        compiled, plain = (model.predict(clips, engine=engine, **options) for engine in ("compile", "torch"))
    assert torch.allclose(compiled, plain, atol=1e-3 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_training_step_never_waits_for_the_gpu(optimizer, recorded):
    rate = OptimizerConfig(name=optimizer, lr=2e-3, warmup=0)
    run = trainer(precision="bf16", optimizer=rate, recorded=recorded)
    for _ in range(WARM + 1 if recorded else 1):
        run.train_step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            run.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [f"{w.filename}:{w.lineno}" for w in waits if "synchronizing" in str(w.message)] == []


def test_processes_agree_without_waiting_for_the_gpu(monkeypatch):
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": 29555}
    for name, value in {**alone, "TORCHELASTIC_RUN_ID": "test"}.items():
        monkeypatch.setenv(name, str(value))
    with Processes.join("cuda") as joined:
        assert joined.device == torch.device("cuda:0")
        processes = Processes(0, 2, joined.device)  # as if there were another: what is exchanged goes through the group
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert processes.largest(3) == 3
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert processes.mean(torch.tensor(3.0, device="cuda")) == 1.5


def test_the_gpu_draws_for_itself():
    model = tiny.model().cuda()
    draw = model.draw(4, generator_at(0, 0, model.device))
    assert {part.device.type for part in draw if part is not None} == {"cuda"}


def test_memory_of_a_recording_is_not_free():
    device, graph, size = torch.device("cuda", 0), torch.cuda.CUDAGraph(), 2**28
    torch.cuda.synchronize()
    before = free_memory(device)
    with torch.cuda.device(device), torch.cuda.graph(graph):
        torch.zeros(size, dtype=torch.uint8, device=device)  # freed at once, and written by every replay
    assert before - free_memory(device) >= size
    kept = torch.zeros(size, dtype=torch.uint8, device=device)
    used = before - free_memory(device)
    assert used >= 2 * size
    del kept
    assert before - free_memory(device) <= used - size  # what torch keeps for later is free
