"""Recorded training steps: what can be shown without a GPU. The recordings themselves are in test_cuda.py."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion
from mcvd.training import recorded, trainer
from mcvd.training.muon import optimizer_for
from mcvd.training.parallel import wrap
from mcvd.training.processes import Processes
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.recorded import WARM, check_recordable
from mcvd.training.trainer import Trainer
from test_training_options import Noise

CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """What is done, with all arguments that are not tensors: a recording fixes these, wherever they come from."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        fixed = torch.utils._pytree.tree_map(lambda x: "tensor" if isinstance(x, torch.Tensor) else x, (args, kwargs))
        if not str(func).startswith("profiler."):
            self.done.append((str(func), str(fixed)))
        return func(*args, **(kwargs or {}))


class Graph:
    """A CUDA graph on a CPU: what was recorded is done again by Python, and leaves its results where they were."""

    def __init__(self):
        self.traces = []

    def replay(self):
        recorded = self.run.recorded
        with Operations() as operations:
            again = self.run._update(recorded.parts, recorded.rate)
        self.traces.append(operations.done)
        for kept, new in zip(recorded.recording[1], again):
            kept.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Recordings on a CPU: `graphs(run)` has the steps of a trainer recorded, and returns the list of recordings."""
    made = []

    @contextlib.contextmanager
    def recording(graph, stream, capture_error_mode):
        """Nothing is executed while it is recorded."""
        graph.run = stream.run
        optimizer = graph.run.optimizer
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = [value for weight in weights for value in optimizer.state[weight].values()]
        before = [x.detach().clone() for x in (*weights, *state)]
        yield
        with torch.no_grad():
            for x, value in zip((*weights, *state), before):
                x.copy_(value)
        made.append(graph)

    monkeypatch.setattr(trainer, "check_recordable", lambda *_: None)
    monkeypatch.setattr(trainer, "optimizer_for", lambda model, config, fused: optimizer_for(model, config, True))
    monkeypatch.setattr(recorded, "aside", lambda stream, run: run())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: type("Stream", (), {})())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)

    def of(run):
        run.recorded.stream.run = run
        return made

    return of


def recipe(**options):
    model = tiny.config(attention=(8,), noisy_condition=True, masking=replace(tiny.OPEN, frames=0.3))
    return Recipe(model=model, batch=4, steps=8, ema_warmup=True, **options)


OPTIMIZERS = {
    "adam": OptimizerConfig(lr=1e-3, warmup=3, decay="cosine", weight_decay=0.1),
    "muon": OptimizerConfig(name="muon", lr=1e-3, warmup=3, decay="wsd", weight_decay=0.1),
}


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "weighting": "min-snr"}], ids=["whole", "parts"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_does_the_same_at_every_step_with_the_values_of_that_step(graphs, optimizer, options):
    made = recipe(optimizer=OPTIMIZERS[optimizer], **options)
    plain, replayed = (
        Trainer(replace(made, recorded=on), Processes(0, 1, CPU), Noise(made.model.network)) for on in (False, True)
    )
    recordings = graphs(replayed)
    for _ in range(made.steps):  # the learning rate, on the device, is rounded to float32
        assert [float(x) for x in replayed.train_step()] == pytest.approx([float(x) for x in plain.train_step()], 1e-5)
    for mine, other in zip(plain.averaged().parameters(), replayed.averaged().parameters()):
        assert torch.allclose(mine, other, rtol=0, atol=1e-6)

    (graph,) = recordings
    assert len(graph.traces) == made.steps - WARM
    for trace in graph.traces[1:]:
        assert trace == graph.traces[0]
    assert not any("_local_scalar_dense" in name for name, _ in graph.traces[0])  # waits for the device


def test_a_run_that_was_recorded_continues_unrecorded(graphs):
    made = recipe(optimizer=OPTIMIZERS["muon"])
    before = Trainer(replace(made, recorded=True), Processes(0, 1, CPU), Noise(made.model.network))
    again = Trainer(made, Processes(0, 1, CPU), Noise(made.model.network))
    graphs(before)
    for _ in range(WARM + 2):
        before.train_step()
    again.load_state_dict(before.state_dict(), "run")
    assert [float(x) for x in before.train_step()] == pytest.approx([float(x) for x in again.train_step()], 1e-5)


def test_the_blocks_of_every_run_of_a_process_are_compiled(monkeypatch):
    """PyTorch compiles so many versions of the same code, usually 8, and runs further ones uncompiled."""
    compile_by = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **_: compile_by(part, backend="eager", dynamic=False))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    for side in (16, 24, 32):
        made = Recipe(model=tiny.config(size=(side, side)), recorded=True, compile=True)
        run = wrap(VideoDiffusion(made.model), made, Processes(0, 1, CPU))
        run(torch.zeros(1, made.model.network.layout.frames, 1, side, side))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("device", "count", "options", "says"),
    [
        ("cpu", 1, {}, "only steps on a GPU can be recorded, not on cpu"),
        ("cuda", 2, {}, "only steps of a single process can be recorded, not of 2"),
        ("cuda", 1, {"checkpointing": True}, "steps with checkpointing cannot be recorded"),
        ("cuda", 1, {"precision": "fp16"}, "steps in fp16 cannot be recorded, as some of them are skipped"),
    ],
)
def test_steps_that_cannot_be_recorded_are_refused(device, count, options, says):
    with pytest.raises(McvdError, match=f"^{says}; set recorded to false$"):
        check_recordable(recipe(recorded=True, **options), Processes(0, count, torch.device(device)))


def test_a_recorded_recipe_is_refused_on_a_cpu():
    made = recipe(recorded=True)
    with pytest.raises(McvdError, match="set recorded to false"):
        Trainer(made, Processes(0, 1, CPU), Noise(made.model.network))
