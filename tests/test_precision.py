"""Sampling in half precision: the same video within a bound, the state of the solver in float32, refused where slow."""

import pytest
import torch

import mcvd
import tiny
from mcvd.errors import McvdError
from mcvd.evaluation.image import psnr
from mcvd.networks import precision
from mcvd.training.precision import Precision

HALVES = [name for name in precision.PRECISIONS if name != "fp32"]


@pytest.fixture
def everywhere(monkeypatch):
    """CPUs can do it, slowly: the same code runs."""
    monkeypatch.setattr(precision, "fast_on", lambda device: tuple(precision.PRECISIONS))


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_bundled_model_makes_the_same_frames_to_40_db(everywhere, name, guidance):
    model = mcvd.load("digits")
    past = model.generate(5, solver="dpm++", steps=3, seed=1)
    single, half = (
        model.predict(past, 5, samples=2, solver="dpm++", steps=5, guidance=guidance, precision=p)
        for p in ("fp32", name)
    )
    assert half.dtype == torch.float32
    assert not torch.equal(half, single)
    assert float(psnr(half, single).min()) > 40


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_the_network_computes_in_it_and_the_solver_does_not(everywhere, name, conditioning):
    model = tiny.model(conditioning=conditioning, spatin_width=6, attention=(8,), head_channels=8)
    inside, outside = [], []
    model.network.middle[0].conv0.register_forward_hook(lambda *a: inside.append(a[2].dtype))
    model.network.register_forward_pre_hook(lambda module, inputs: outside.append(inputs[0].dtype))
    past, options = tiny.video(2, 1, 16, 16), {"solver": "ddim", "steps": 4}
    half = model.predict(past, 6, precision=name, **options)
    assert set(inside) == {precision.PRECISIONS[name]}
    assert set(outside) == {torch.float32}
    assert float(psnr(half, model.predict(past, 6, **options)).min()) > 30  # random weights magnify


@pytest.mark.parametrize(
    ("found", "fast"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, ("fp32",)),
        ({"avx512_bf16": True}, ("fp32", "bf16")),
        ({"amx_tile": True, "amx_bf16": True}, ("fp32", "bf16")),
        ({"architecture": "aarch64", "bf16": True}, ("fp32",)),  # never measured
    ],
)
def test_cpus_with_units_for_bf16(monkeypatch, found, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert precision.fast_on(torch.device("cpu")) == fast
    # every CPU makes the same steps of training, unless it is told to be quick
    assert not Precision("auto", torch.device("cpu")).autocast._enabled
    if "bf16" in fast:
        assert Precision("bf16", torch.device("cpu")).autocast._enabled


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 0), ("fp16", "fp32")), ((7, 5), ("fp16", "fp32")), ((8, 0), ("bf16", "fp16", "fp32"))]
)
def test_gpus_that_emulate_bf16_have_no_units_for_it(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.fast_on(torch.device("cuda", 1)) == fast


def test_a_cpu_is_asked_for_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(McvdError, match="cpu has no fast bf16; choose fp32"):
        tiny.model().predict(tiny.video(2, 1, 16, 16), 3, precision="bf16")
    with pytest.raises(McvdError, match="precision is 'half'; it is one of fp32, bf16, fp16"):
        tiny.model().predict(tiny.video(2, 1, 16, 16), 3, precision="half")


@pytest.mark.parametrize(
    ("settings", "usual"),
    [
        ("", ""),
        ("torch.set_float32_matmul_precision('medium')", "torch.set_float32_matmul_precision('highest')"),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "torch.backends.cuda.matmul.allow_tf32 = False"),
        ("torch.backends.cudnn.conv.fp32_precision = 'ieee'", "torch.backends.cudnn.conv.fp32_precision = 'tf32'"),
        ("torch.backends.mkldnn.fp32_precision = 'bf16'", "torch.backends.mkldnn.fp32_precision = 'none'"),
        ("torch.backends.fp32_precision = 'tf32'", "torch.backends.fp32_precision = 'none'"),
    ],
)
def test_exactly_is_float32_whatever_was_set_before_which_comes_back(settings, usual):
    def found():
        to = torch.backends
        return [place.fp32_precision for place in (to.cudnn.conv, to.cuda.matmul, to.mkldnn.conv, to.mkldnn.matmul)]

    torch.set_float32_matmul_precision("highest")
    plain = found()
    exec(settings)
    try:
        before = found()
        with precision.exactly(torch.device("cpu")):
            assert set(found()) <= {"ieee", "none"}
        assert found() == before
    finally:
        exec(usual)
    assert found() == plain  # nothing has kept what was general


def test_weights_are_packed_for_float32_alone():
    model, past = tiny.model(), tiny.video(2, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):  # somebody else's: it is respected
        half = model.predict(past, 3, solver="ddim", steps=2)
    assert float(psnr(half, model.predict(past, 3, solver="ddim", steps=2)).min()) > 30


@torch.no_grad()
def test_what_a_half_precision_network_says_is_computed_with_in_float32():
    model = tiny.model(prediction="x0")
    past, future, x = (torch.rand(1, frames, 1, 16, 16) for frames in (2, 1, 3))
    with torch.autocast("cpu", torch.bfloat16):
        denoise = model.denoiser(past, future, torch.tensor([True]), torch.tensor([0]), guidance=3.0)
        made = denoise(x, 50, 0.5)
    assert made.dtype == torch.float32
    assert not torch.equal(made, made.bfloat16().float())  # as guidance would leave it in bf16
