"""The network computes what the published one computes, on every case of the oracle.

Tolerance 5e-6 (the oracle's README): it passes any float32 arithmetic, yet catches a GroupNorm eps of 1e-5 for 1e-6.
"""

import json

import pytest
import torch

from mcvd.diffusion import gaussian
from mcvd.errors import McvdError
from mcvd.interop import official
from mcvd.networks.blocks import group_count
from mcvd.networks.resample import downsample, upsample
from mcvd.networks.unet import time_embedding
from oracle_cases import REFUSED_CASES, apart, case_model, condition, each, frames, tensors, time_of

pytestmark = pytest.mark.oracle
EPS_TOLERANCE = 5e-6


@torch.inference_mode()
def predict_eps(model, case, mask=None):
    """The network's output for a published set of inputs, through `encode` and `forward`."""
    past, future = condition(case, model)
    if model.config.noisy_condition:
        alpha_bar = model.config.schedule.at(time_of(case["t"], model), past)
        noise = torch.cat(condition(case, model, "eps_randn"), dim=1)
        noisy = gaussian.add_noise(torch.cat([past, future], dim=1), noise, alpha_bar)
        past, future = noisy.split([past.shape[1], future.shape[1]], dim=1)
    return model.network(frames(case["x_t"], model), case["t"], model.network.encode(past, future, mask))


@each()
def test_eps(folder):
    model, case = case_model(folder), tensors(folder / "io.safetensors")
    assert apart(predict_eps(model, case, case.get("cond_mask")), case["eps"]) < EPS_TOLERANCE
    if "eps_mask_none" in case:
        assert apart(predict_eps(model, case), case["eps_mask_none"]) < EPS_TOLERANCE


@each(having="trace.safetensors")
def test_every_layer(folder):
    """Localises a difference: the first layer off is the one to look at."""
    model, case = case_model(folder), tensors(folder / "io.safetensors")
    layers, seen = list(official.layers(model.network)), {}
    last = len(layers) - 1
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out)) for i, layer in enumerate(layers)
    ]
    # the published last norm includes its activation: it is what the last convolution reads
    hooks.append(layers[last].register_forward_pre_hook(lambda _, inputs: seen.__setitem__(last - 1, inputs[0])))
    predict_eps(model, case, case.get("cond_mask"))
    for hook in hooks:
        hook.remove()
    trace = tensors(folder / "trace.safetensors")
    for name in sorted(trace):
        i = int(name.split(".")[1])
        if i not in seen:
            assert layers[i] is model.network.conv_in  # it runs in two parts: the condition's share is computed once
            continue
        scale = max(1.0, float(trace[name].abs().max()))
        assert apart(seen[i][:1], trace[name]) < EPS_TOLERANCE * scale, name


def test_options_that_the_published_code_cannot_run_are_refused():
    for folder in REFUSED_CASES:
        with pytest.raises(McvdError, match="output_all_frames"):
            case_model(folder)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("case", ["concat", "spade"])
def test_checkpoint_file(oracle_dir, case, ema):
    folder = oracle_dir / f"checkpoint_{case}"
    model = official.load_checkpoint(folder / "logs" / "checkpoint.pt", ema=ema)
    expected = tensors(folder / "expected.safetensors")
    assert not model.training
    assert apart(predict_eps(model, expected), expected["eps_ema" if ema else "eps_raw"]) < EPS_TOLERANCE
    assert apart(predict_eps(model, expected), expected["eps_raw" if ema else "eps_ema"]) > 100 * EPS_TOLERANCE


def test_resampling(oracle_dir):
    layers = tensors(oracle_dir / "layers.safetensors")
    for size in (4, 8, 15, 16):  # 15: an odd side loses its last row, as published
        x = layers[f"fir.x{size}"]
        assert apart(downsample(x), layers[f"fir.down{size}"]) < 1e-6
        assert apart(upsample(x), layers[f"fir.up{size}"]) < 1e-6


def test_time_embedding(oracle_dir):
    layers = tensors(oracle_dir / "layers.safetensors")
    for dim in (15, 16, 24, 64, 96):  # 15: an odd width ends in a zero
        assert apart(time_embedding(layers["temb.t"], dim), layers[f"temb.{dim}"]) < 1e-6
    assert apart(time_embedding(layers["temb.half_t"], 64), layers["temb.half_64"]) < 1e-6


def test_group_counts(oracle_dir):
    for channels, groups in json.loads((oracle_dir / "num_groups.json").read_text()).items():
        assert group_count(int(channels)) == groups
