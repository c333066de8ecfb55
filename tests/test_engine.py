"""What carries out network calls: engines give the same frames, or say what is wrong."""

import warnings
from functools import partial

import pytest
import torch

import mcvd.networks.openvino as module
import tiny
from mcvd import McvdError
from mcvd.cli.main import main
from mcvd.device import tuned_convolutions
from mcvd.evaluation.image import psnr
from mcvd.networks import precision
from mcvd.networks.blocks import Condition
from mcvd.networks.engine import ENGINES, calls_by, network_call
from mcvd.networks.openvino import openvino_calls

CLIPS = tiny.video(1, 2, 1, 16, 16)
FAST = {"samples": 3, "steps": 3, "solver": "ddim"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def test_threads_that_tune_convolutions_leave_the_setting_as_they_found_it():
    first, second = tuned_convolutions(), tuned_convolutions()
    for step in (first.__enter__, second.__enter__, partial(first.__exit__, None, None, None)):
        step()
        assert torch.backends.cudnn.benchmark
    second.__exit__(None, None, None)
    assert not torch.backends.cudnn.benchmark


def exports(monkeypatch):
    """A list that grows with every export."""
    made, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *inputs: made.append(1) or export(*inputs))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "blocks"),  # all samples share the condition of the first block
    [
        ({"attention": (8,)}, 2),
        ({"conditioning": "spatin", "spatin_width": 8, "patch": 2}, 2),
        ({"frames": "pseudo3d", "context_noise": 0.5}, 1),
    ],
    ids=["concat", "spatin", "pseudo3d"],
)
@pytest.mark.filterwarnings("ignore:exporting")
def test_openvino_makes_the_same_frames_and_is_exported_once(options, blocks, cache, monkeypatch):
    pytest.importorskip("openvino")
    model, made = tiny.model(**options), exports(monkeypatch)
    expected = model.predict(CLIPS, 3 * blocks, **FAST)
    first = model.predict(CLIPS, 3 * blocks, engine="openvino", **FAST)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
    assert not torch.equal(first, expected)  # it did run
    assert len(made) == len(list(cache.iterdir())) == blocks
    assert torch.equal(model.predict(CLIPS, 3 * blocks, engine="openvino", **FAST), first)
    assert len(made) == blocks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:exporting")
def test_other_weights_get_a_program_of_their_own(cache):
    pytest.importorskip("openvino")
    options = {**FAST, "samples": 1, "frames": 3}
    for count, seed in enumerate((0, 1), 1):
        model = tiny.model(seed)
        torch.testing.assert_close(
            model.predict(CLIPS, engine="openvino", **options), model.predict(CLIPS, **options), rtol=0, atol=1e-4
        )
        assert len(list(cache.iterdir())) == count


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:exporting")
@pytest.mark.parametrize("options", [{}, {"conditioning": "spatin", "spatin_width": 8}], ids=["concat", "spatin"])
def test_openvino_in_bf16_runs_the_same_program(options, cache, monkeypatch):
    pytest.importorskip("openvino")
    units = "bf16" in precision.fast_on(torch.device("cpu"))
    monkeypatch.setattr(precision, "fast_on", lambda device: ("fp32", "bf16"))
    model, made = tiny.model(attention=(8,), head_channels=8, **options), exports(monkeypatch)
    half, single = (model.predict(CLIPS, 3, engine="openvino", precision=p, **FAST) for p in ("bf16", "fp32"))
    torch.testing.assert_close(single, model.predict(CLIPS, 3, **FAST), rtol=0, atol=1e-4)
    assert float(psnr(half, single).min()) > 30  # random weights magnify
    assert torch.equal(half, single) is not units  # without units OpenVINO stays in float32
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:exporting")
def test_openvino_in_bf16_is_told_the_exact_time(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(precision, "fast_on", lambda device: ("fp32", "bf16"))
    model = tiny.model()
    network, x, time = model.network, torch.randn(1, 3, 1, 16, 16), torch.tensor([901])  # in bf16, that is 900
    condition = network.encode(torch.rand(1, 2, 1, 16, 16), torch.rand(1, 1, 1, 16, 16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = openvino_calls(network)(0, x, time, condition)
    right, wrong = (network(x, t, condition) for t in (time, time - 1))
    off = [(half - made).square().mean().sqrt() for made in (right, wrong)]
    assert off[0] < 0.03 * right.square().mean().sqrt()
    assert 10 * off[0] < off[1]


def test_a_cache_that_cannot_be_written_is_an_error(cache):
    pytest.importorskip("openvino")
    cache.parent.mkdir()
    cache.write_text("a file in the place of the folder")
    with pytest.raises(McvdError, match=r"cannot keep the exported network in .*MCVD_CACHE"):
        tiny.model().predict(CLIPS, 3, engine="openvino", **FAST)


def test_another_process_may_export_first(cache, monkeypatch):
    def save(program, new):
        (new / module.PROGRAM).write_text("mine")
        folder = cache / module.hashlib.sha256(b"the same").hexdigest()[:24]
        folder.mkdir()
        (folder / module.PROGRAM).write_text("theirs")

    monkeypatch.setattr(module, "_export", lambda *inputs: None)
    monkeypatch.setattr(module, "_save", save)
    with pytest.warns(UserWarning, match="exporting"):
        folder = module.Programs(tiny.model().network)._program("the same", torch.zeros(1), torch.zeros(1), None)
    assert (folder / module.PROGRAM).read_text() == "theirs"
    assert list(cache.iterdir()) == [folder]


def test_what_openvino_is_not_for(monkeypatch):
    with pytest.raises(McvdError, match="for CPUs, and the model is on meta"):
        openvino_calls(tiny.model().network.to("meta"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(McvdError, match=r"pip install 'mcvd\[openvino\]'"):
        tiny.model().predict(CLIPS, 3, engine="openvino", **FAST)


def test_the_command_line_says_how_to_get_openvino(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    code = main(["generate", "--frames", "1", "--engine", "openvino", "--out", str(tmp_path / "a.mp4")])
    assert code == 1
    assert "pip install 'mcvd[openvino]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [{"patch": 2}, {"conditioning": "spatin", "spatin_width": 8}], ids=["patch", "spatin"]
)
def test_a_compiled_network_makes_the_same_frames(network):
    model = tiny.model(attention=(8,), **network)
    with pytest.warns(UserWarning, match="compiling the network once for batches of 2"):
        compiled = model.predict(CLIPS[:1], 3, engine="compile", samples=2, steps=3)
    plain = model.predict(CLIPS[:1], 3, samples=2, steps=3)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is compiled again
        assert torch.equal(model.predict(CLIPS[:1], 3, engine="compile", samples=2, steps=3), compiled)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:compiling")
def test_every_number_of_clips_and_every_network_is_compiled(monkeypatch):
    compiled = []
    backend = lambda graph, inputs: compiled.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    for width in (8, 12, 16):  # earlier networks are gone by then, but not what was compiled for them
        model = tiny.model(blocks=1, multipliers=(1,), width=width)
        for samples in range(1, 6):
            model.predict(CLIPS, 3, engine="compile", samples=samples, steps=1)
    torch._dynamo.reset()
    assert len(compiled) == 15  # PyTorch would stop at 8


@pytest.mark.filterwarnings("ignore:compiling")
def test_without_a_compiler_it_is_an_error(monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(McvdError, match=r"^torch.compile failed \(.*no compiler found.*\); choose engine torch$"):
        tiny.model(blocks=1, multipliers=(1,)).predict(CLIPS, 3, engine="compile", **FAST)


def test_engines_have_names():
    with pytest.raises(McvdError, match="'quick'; it is one of torch, compile, openvino"):
        tiny.model().predict(CLIPS, 3, engine="quick", **FAST)


def test_the_network_is_itself_again_afterwards():
    network = tiny.model().network
    network.calls = other = lambda *inputs: inputs
    with calls_by(network):
        assert network.calls is None  # PyTorch on a CPU needs nothing in place
        assert network_call(network) is network
    assert network.calls is other
    assert network_call(network, 7)(1, 2, 3) == (7, 1, 2, 3)


def test_the_two_conditions_of_guidance_have_slots_of_their_own(monkeypatch):
    slots = []
    monkeypatch.setitem(ENGINES, "torch", lambda network: lambda slot, *inputs: slots.append(slot) or network(*inputs))
    tiny.model().predict(CLIPS, 3, guidance=2.0, **FAST)
    assert slots == [0, 1] * 3


@pytest.mark.parametrize("names", ["", "share", "frames rows", "share past_seen sigma"])
def test_a_condition_can_hold_other_tensors(names):
    parts = dict.fromkeys(names.split(), torch.zeros(2))
    condition = Condition(**{"share": None, "maps": [(torch.zeros(2), torch.zeros(2))], **parts})
    others = [torch.full((2,), float(i)) for i in range(len(condition.tensors()))]
    assert all(a is b for a, b in zip(condition.with_tensors(others).tensors(), others, strict=True))
