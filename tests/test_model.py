"""VideoDiffusion as people use it: four tasks, input of every kind, errors in one line, files."""

import dataclasses
import json
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mcvd
import tiny
from mcvd.card import model_card, model_rows
from mcvd.config import differences, from_dict, to_dict
from mcvd.diffusion import gaussian
from mcvd.errors import McvdError
from mcvd.given import whole
from mcvd.interop import load as door
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion

FAST = {"solver": "ddim", "steps": 3}


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def colour():
    return tiny.model(channels=3)


# --- the four tasks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clips", [None, 1, 2])
def test_predict_is_filling_in_what_comes_after(model, clips):
    past = tiny.video(*([clips] if clips else []), 2, 1, 16, 16)
    out = model.predict(past, frames=4, samples=2, **FAST)
    assert out.shape == (2 * (clips or 1), 4, 1, 16, 16)
    whole = torch.cat([past, torch.zeros_like(past), torch.zeros_like(past)], dim=-4)
    filled = model.fill(whole, [True, True, False, False, False, False], samples=2, **FAST)
    assert torch.equal(out, filled[:, 2:])


def test_backward_prediction_is_filling_in_what_came_before(model):
    future = tiny.video(2, 2, 1, 16, 16)
    out = model.predict(future, frames=3, backward=True, **FAST)
    assert out.shape == (2, 3, 1, 16, 16)
    whole = torch.cat([future.new_full((2, 3, 1, 16, 16), 77), future], 1)  # what stands there is ignored
    assert torch.equal(out, model.fill(whole, [False] * 3 + [True] * 2, **FAST)[:, :3])


def test_interpolate_is_filling_in_between(model):
    past, future = tiny.video(2, 2, 1, 16, 16), tiny.video(2, 1, 1, 16, 16, seed=1)
    whole = torch.cat([past, tiny.video(2, 3, 1, 16, 16, seed=2), future], 1)
    filled = model.fill(whole, [True, True, False, False, False, True], **FAST)
    assert torch.equal(model.interpolate(past, future, frames=3, **FAST), filled[:, 2:5])
    assert torch.equal(model.interpolate(past, future, **FAST), filled[:, 2:5])  # a block's worth
    assert model.interpolate(past[0], future[0], frames=5, samples=3, **FAST).shape == (3, 5, 1, 16, 16)


def test_generate_is_filling_in_everything(model):
    out = model.generate(7, samples=2, **FAST)
    assert out.shape == (2, 7, 1, 16, 16)
    assert torch.equal(out, model.fill(tiny.video(7, 1, 16, 16), [False] * 7, samples=2, **FAST))


def test_results_are_floats_from_0_to_1_that_may_be_written_into(model):
    out = model.predict(tiny.video(2, 1, 16, 16), frames=5, **FAST)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    out[0] = 0.5
    assert not out.requires_grad


def test_known_may_be_a_tensor_or_an_array_read_backwards(model):
    video = tiny.video(5, 1, 16, 16)
    known = [True, True, False, False, False]
    filled = model.fill(video, known, **FAST)
    assert torch.equal(model.fill(video, torch.tensor(known), **FAST), filled)
    assert torch.equal(model.fill(video, np.array(known[::-1])[::-1], **FAST), filled)


def test_a_video_that_is_all_known_comes_back(model):
    video = tiny.video(2, 4, 1, 16, 16)
    assert torch.equal(model.fill(video, [True] * 4, samples=2), (video.float() / 255).repeat_interleave(2, 0))


# --- input ------------------------------------------------------------------------------------------------------------


def test_uint8_and_float_are_the_same_video(model):
    past = tiny.video(2, 1, 16, 16)
    expected = model.predict(past, frames=3, **FAST)
    assert torch.equal(model.predict(past.float() / 255, frames=3, **FAST), expected)
    assert torch.equal(model.predict(past.double() / 255, frames=3, **FAST), expected)


def test_grey_video_for_a_colour_model_is_repeated(colour):
    grey = tiny.video(2, 1, 16, 16)
    expected = colour.predict(grey.expand(-1, 3, -1, -1), frames=3, **FAST)
    assert expected.shape == (1, 3, 3, 16, 16)
    assert torch.equal(colour.predict(grey, frames=3, **FAST), expected)


def test_colour_video_for_a_grey_model_becomes_luma(model):
    red, green, blue = torch.eye(3)[:, None, :, None, None].expand(3, 2, 3, 16, 16)
    for frames, luma in ((red, 0.299), (green, 0.587), (blue, 0.114)):
        out = model.fill(frames, [True, True])
        torch.testing.assert_close(out, torch.full((1, 2, 1, 16, 16), luma))


def test_rounding_beyond_the_range_does_not_come_back(model):
    video = torch.cat([torch.full((1, 1, 16, 16), -5e-5), torch.full((1, 1, 16, 16), 1 + 5e-5)])
    assert model.fill(video, [True, True]).aminmax() == (0.0, 1.0)


def test_the_input_is_left_alone(model):
    video = torch.rand(5, 1, 16, 16)
    before = video.clone()
    model.fill(video, [True, True, False, False, False], **FAST)
    assert torch.equal(video, before)


GOOD = tiny.video(2, 1, 16, 16)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.predict(torch.zeros(2, 1, 16, 8), 3), "frames are 16x8, the model's are 16x16"),
        (lambda m: m.predict(torch.zeros(2, 2, 16, 16), 3), "has 2 channels, the model 1"),
        (lambda m: m.predict(torch.zeros(2, 4, 16, 16), 3), "has 4 channels, the model 1"),
        (lambda m: m.predict(torch.zeros(16, 16), 3), r"this has shape \(16, 16\)"),
        (lambda m: m.predict(GOOD.long(), 3), "uint8 or float, not torch.int64"),
        (lambda m: m.predict(GOOD.bool(), 3), "uint8 or float, not torch.bool"),
        (lambda m: m.predict(GOOD.float(), 3), "must lie in \\[0, 1\\]"),
        (lambda m: m.predict(GOOD.float() / 255 + 0.001, 3), "must lie in \\[0, 1\\]"),
        (lambda m: m.predict(GOOD.float() / 127.5 - 1, 3), "must lie in \\[0, 1\\]"),
        (lambda m: m.predict(torch.full((2, 1, 16, 16), torch.nan), 3), "must lie in \\[0, 1\\]"),
        (lambda m: m.predict(torch.full((2, 1, 16, 16), torch.inf), 3), "must lie in \\[0, 1\\]"),
        (lambda m: m.predict(GOOD[:0], 3), r"video is empty: its shape is \(0, 1, 16, 16\)"),
        (lambda m: m.predict(GOOD[None][:0], 3), "video is empty"),
        (lambda m: m.fill(GOOD[:0], []), "video is empty"),
        (lambda m: m.interpolate(GOOD[:0], GOOD), "video is empty"),
        (lambda m: m.interpolate(GOOD[None], GOOD[None].expand(2, -1, -1, -1, -1)), "1 clip before the gap, but 2"),
        (lambda m: m.fill(GOOD, [True]), r"known has shape \(1,\); it takes one flag for each of 2 frames"),
        (lambda m: m.fill(GOOD, torch.zeros(2, 2)), r"known has shape \(2, 2\)"),
        (lambda m: m.predict(GOOD, 0), "frames is 0"),
        (lambda m: m.generate(0), "frames is 0"),
        (lambda m: m.interpolate(GOOD, GOOD, frames=0), "frames is 0"),
        (lambda m: m.predict(GOOD, 3, samples=0), "samples is 0"),
        (lambda m: m.predict(GOOD, 3, batch_size=0), "batch_size is 0"),
        (lambda m: m.predict(GOOD, 3, seed=-1), "seed is -1"),
        (lambda m: m.predict(GOOD, 3, seed=0.5), "seed is 0.5; it must be a whole number"),
        (lambda m: m.predict(GOOD, 2.0), "frames is 2.0; it must be a whole number"),
        (lambda m: m.predict(GOOD, 10**11), "frames is 100000000000; it must be at most 1000000"),
        (lambda m: m.predict(GOOD, 3, guidance=float("nan")), "guidance is nan; it must be a finite number"),
        (lambda m: m.predict(GOOD, 3, guidance="2"), "guidance is '2'; it must be a finite number"),
        (lambda m: m.predict(GOOD, 3, guidance=10**400), "guidance is 10000.*; it must be a finite number"),
        (lambda m: m.predict(GOOD, 3, guidance=1e39), "guidance is 1e[+]39; it must be a finite number"),
        (lambda m: m.predict(GOOD, 3, context_noise=None), "context_noise is None; it must be a finite number"),
        (lambda m: m.loss(tiny.video(2, 6, 1, 16, 16)), r"float32 tensor with values in \[-1, 1\], not torch.uint8"),
        (lambda m: m.loss(torch.zeros(2, 6, 1, 16, 16).double()), "not torch.float64"),
        (lambda m: m.loss(torch.zeros(6, 1, 16, 16)), r"have shape \(B, 6, C, H, W\), not \(6, 1, 16, 16\)"),
        (lambda m: m.loss(torch.zeros(2, 6, 1, 16, 1)), r"frames \(C, H, W\) are \(1, 16, 16\), not \(1, 16, 1\)"),
        (lambda m: m.loss(torch.zeros(2, 6, 3, 16, 16)), r"frames \(C, H, W\) are \(1, 16, 16\), not \(3, 16, 16\)"),
        (lambda m: m.loss(torch.zeros(2, 6, 1, 16, 16), m.draw(1)), "the draw is of 1 clip, and there are 2"),
        (lambda m: m.predict(GOOD.permute(0, 2, 3, 1), 3), r"16 channels, the model 1; it is \(T, C, H, W\)"),
        (lambda m: m.predict(GOOD.numpy(), 3), "a video is a tensor, not ndarray; torch.as_tensor"),
        (lambda m: m.fill(GOOD, [0, 3]), "not frame numbers"),
        (lambda m: m.fill(GOOD, "yes"), "known is yes; it takes one flag"),
        (lambda m: m.fill(GOOD, None), "known is None; it takes one flag"),
        (lambda m: m.predict(GOOD, 3, steps=0), "steps is 0"),
        (lambda m: m.predict(GOOD, 3, steps=101), "steps is 101; this model's noise schedule allows 1 to 100"),
        (lambda m: m.predict(GOOD, 3, steps=0, reference=True), "steps is 0"),
        (lambda m: m.predict(GOOD, 3, solver="euler"), "solver is 'euler'"),
        (lambda m: m.predict(GOOD, 3, solver="dpm++", reference=True), "published results use ddpm and ddim"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, call, says):
    with pytest.raises(McvdError, match=says) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_whole_numbers_may_be_their_bounds():
    assert [whole("steps", value, 1, 3) for value in (1, np.int64(3))] == [1, 3]


def test_what_stands_where_nothing_is_known_does_not_matter(model):
    video, known = torch.rand(5, 1, 16, 16), [True, True, False, False, False]
    strange = video.clone()
    strange[2:] = torch.tensor([torch.nan, -7.0, torch.inf]).view(3, 1, 1, 1)
    assert torch.equal(model.fill(video, known, **FAST), model.fill(strange, known, **FAST))


def test_the_default_dtype_and_the_mode_of_parts_do_not_matter(model, tmp_path):
    before = model.predict(GOOD, 3, context_noise=0.0, **FAST)
    published = model.predict(GOOD, 3, steps=100, reference=True)
    model.train()
    model.network.middle.eval()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model.predict(GOOD, 3, **FAST), before)
        assert torch.equal(model.predict(GOOD, 3, steps=100, reference=True), published)
        assert torch.isfinite(model.loss(torch.zeros(2, 6, 1, 16, 16, dtype=torch.float32))).all()
        assert torch.equal(VideoDiffusion.from_folder(model.save(tmp_path)).predict(GOOD, 3, **FAST), before)
        drawn = model.draw(4, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(drawn[:4], model.draw(4, torch.Generator().manual_seed(0))))
    assert model.network.down.training
    assert not model.network.middle.training


def test_dropout_is_for_training_alone():
    model = tiny.model(dropout=0.5)
    expected = model.predict(GOOD, 3, **FAST)
    assert torch.equal(model.train().predict(GOOD, 3, **FAST), expected)
    clips, draw = torch.zeros(2, 6, 1, 16, 16), model.draw(2)
    assert not torch.equal(model.loss(clips, draw), model.loss(clips, draw))
    assert torch.equal(model.eval().loss(clips, draw), model.loss(clips, draw))


def test_the_default_device_does_not_matter():
    """It is often a GPU; here the one that cannot compute, so that anything left on it shows."""
    made = {}
    for device in ("cpu", "meta"):
        model = tiny.model(dropout=0.5)
        with torch.device(device):
            options = {"steps": 100, "reference": True}
            made[device] = model.predict(GOOD, 3, **options), model.generate(3, **FAST)
            clip = torch.zeros(2, 6, 1, 16, 16, device="cpu")
            model.train().loss(clip, model.draw(2, torch.Generator("cpu"))).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(made["cpu"], made["meta"]))


def test_threads_leave_the_mode_of_the_model_as_it_was():
    model = tiny.model().train()
    second = threading.Thread(target=lambda: model.predict(GOOD, 3, **FAST))

    def meet(done: int, total: int) -> None:
        if done == 1:
            second.start()
            second.join(0.5)  # until it waits for this one

    model.predict(GOOD, 3, progress=meet, **FAST)
    second.join()
    assert all(part.training for part in model.modules())


def test_other_weights_than_float32_are_refused():
    with pytest.raises(McvdError, match=r"the weights are torch.float64; use model.float\(\)"):
        tiny.model().double().predict(GOOD, 3)
    with pytest.raises(McvdError, match=r"the weights are torch.float16; use model.float\(\)"):
        tiny.model().half().loss(torch.zeros(2, 6, 1, 16, 16))


def test_gradients_of_what_is_given_are_not_followed(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.predict(GOOD.float().div(255).requires_grad_(), 3, **FAST).requires_grad


def test_guidance_of_old_checkpoints_is_against_noise_alone(monkeypatch):
    # what such a model saw in training where all was hidden: zeros with the noise of the step
    model, seen = tiny.model(noisy_condition=True), []
    encode = model.network.encode
    monkeypatch.setattr(model.network, "encode", lambda *given: seen.append(given[0]) or encode(*given))
    model.predict(GOOD, 3, guidance=2.0, solver="ddpm", steps=3)
    assert len(seen) == 2 + 2 * 3  # once a block, as for any model; then in every step
    assert all(past.std() > 0.05 for past in seen[2:])


def test_what_was_never_trained_is_refused():
    always = tiny.model(masking=Masking(0.0, 0.5))
    with pytest.raises(McvdError, match="always saw its 2 past frames"):
        always.generate(3, **FAST)
    with pytest.raises(McvdError, match="guidance needs a model that saw blocks with everything hidden"):
        always.predict(GOOD, 3, guidance=2.0, **FAST)


def test_guidance_of_a_prediction_model_needs_only_its_past_hidden():
    # there is no future, so it does not matter that it was never hidden
    model = tiny.model(layout=BlockLayout(2, 3, 0), masking=Masking(0.5, 0.0))
    plain, guided = (model.predict(GOOD, 3, guidance=g, **FAST) for g in (1.0, 3.0))
    assert not torch.equal(plain, guided)
    with pytest.raises(McvdError, match="guidance"):
        tiny.model(layout=BlockLayout(2, 3, 0), masking=Masking(0.0, 0.5)).predict(GOOD, 3, guidance=3.0, **FAST)


# --- what the network predicts ----------------------------------------------------------------------------------------


class Knows(torch.nn.Module):
    """A network that knows the one clean video, and puts out what its kind of prediction asks for."""

    calls = None  # what an engine has in place

    def __init__(self, config, clean):
        super().__init__()
        self.config, self.clean, self.scale = config, clean, torch.nn.Parameter(torch.ones(()))

    def maps_fit(self, trajectories):
        return True

    def encode(self, past, future, past_seen=None, sigma=None, keep_maps=True):
        return self

    def take(self, rows):
        return self

    def forward(self, x, time, condition):
        a = self.config.schedule.at(time, x)
        clean = self.clean.expand_as(x)
        return gaussian.target(self.config.prediction, clean, gaussian.eps_from_x0(x, clean, a), a) * self.scale


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
def test_all_kinds_of_prediction_mean_the_same_frames(prediction):
    model, clean = tiny.model(prediction=prediction), torch.rand(3, 1, 16, 16) * 2 - 1
    model.network = Knows(model.config, clean)
    shape = (2, 3, 1, 16, 16)
    denoise = model.denoiser(torch.zeros(2, 2, 1, 16, 16), torch.zeros(2, 1, 1, 16, 16), torch.ones(2), torch.arange(2))
    for t in (0, 40, 99):
        x0 = denoise(torch.randn(shape), t, float(model.config.schedule.alpha_bar[t]))
        torch.testing.assert_close(x0, clean.expand(shape), rtol=0, atol=1e-4)
    loss = model.loss(
        torch.cat([torch.zeros(2, 1, 16, 16), clean, torch.zeros(1, 1, 16, 16)])[None].expand(4, -1, -1, -1, -1)
    )
    assert loss.shape == (4,)
    assert loss.max() < 1e-3  # half the summed squared error of 768 values
    out = model.predict(GOOD, 3, solver="ddpm", steps=20)
    torch.testing.assert_close(out, ((clean + 1) / 2)[None], rtol=0, atol=1e-4)


def test_time_is_counted_from_the_noisy_end_where_weights_were_trained_so():
    config = tiny.config()
    backwards = VideoDiffusion(ModelConfig(config.network, config.masking, config.schedule, time_from_noise=True))
    assert backwards._network_time(torch.tensor([0, 99])).tolist() == [99, 0]
    assert VideoDiffusion(config)._network_time(torch.tensor([0, 99])).tolist() == [0, 99]


def test_loss_hides_what_is_drawn_as_hidden(model):
    video = torch.rand(2, 6, 1, 16, 16) * 2 - 1
    draw = model.draw(2, torch.Generator().manual_seed(0))
    hidden = draw._replace(past_seen=torch.tensor([False, True]), future_seen=torch.tensor([False, True]))
    loss = model.loss(video, hidden)
    other = video.clone()
    other[:, :2] = other[:, 5:] = 0.3  # known frames of other values
    changed = model.loss(other, hidden)
    assert torch.equal(loss[0], changed[0])
    assert not torch.equal(loss[1], changed[1])


def test_unknown_predictions_are_refused():
    with pytest.raises(McvdError, match="prediction is 'score'"):
        tiny.model(prediction="score")


# --- files ------------------------------------------------------------------------------------------------------------


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_saving_and_loading_is_exact(model, tmp_path):
    folder = model.save(tmp_path / "a" / "b", notes={"steps": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["notes"] == {"steps": 3}
    again = mcvd.load(folder, device="cpu")
    assert again.config == model.config
    assert same(again.state_dict(), model.state_dict())
    assert not again.training
    assert torch.equal(again.predict(GOOD, 3, **FAST), model.predict(GOOD, 3, **FAST))


def test_numbers_of_numpy_and_torch_are_saved(tmp_path):
    """Which JSON does not know: after hours of training, saving must not fail."""
    plain = VideoDiffusion(tiny.config())
    made = VideoDiffusion(tiny.config(width=np.int64(8), size=np.array([16, 16]), layout=BlockLayout(np.int8(2), 3, 1)))
    again = mcvd.load(made.save(tmp_path / "m", notes={"psnr": torch.tensor(0.5), "steps": np.int64(3)}), device="cpu")
    assert again.config == plain.config
    assert again.notes == {"psnr": 0.5, "steps": 3}


def test_a_folder_at_home_is_saved_and_read(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model.save("~/model") == tmp_path / "model"
    assert same(VideoDiffusion.from_folder("~/model").state_dict(), model.state_dict())


def test_weights_are_not_stored_as_whole_numbers(model, tmp_path):
    with pytest.raises(McvdError, match=r"cannot be stored as torch.int8"):
        model.save(tmp_path / "model", dtype=torch.int8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_too_large_for_a_type_are_not_stored_as_infinite(dtype, tmp_path):
    model = tiny.model()
    name, weight = next(iter(model.named_parameters()))
    weight.data.view(-1)[3] = -7e4
    with pytest.raises(McvdError, match=rf"{name.removeprefix('network.')} has a weight too large for {dtype}"):
        model.save(tmp_path / "model", dtype=dtype)
    assert not list(tmp_path.iterdir())
    model.save(tmp_path / "model", dtype=torch.bfloat16)


def test_a_bf16_folder_has_half_the_size_and_is_close(tmp_path):
    model = tiny.model(width=32)
    full, half = model.save(tmp_path / "full"), model.save(tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    weights = sum(p.numel() for p in model.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, rel=0.01)
    again = VideoDiffusion.from_folder(half)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].bfloat16().float())


def test_differences_from_the_defaults_are_all_that_counts():
    assert differences(ModelConfig(), ModelConfig()) == {}
    usual = ModelConfig().network
    network = dataclasses.replace(usual, layout=dataclasses.replace(usual.layout, past=3), attention=(4, 2))
    config = dataclasses.replace(ModelConfig(), network=network, prediction="v")
    expected = {"network": {"layout": {"past": 3}, "attention": [4, 2]}, "prediction": "v"}
    assert differences(config, ModelConfig()) == expected


def test_config_round_trip():
    config = tiny.config(prediction="v", noisy_condition=True, channels=3)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config))), "here") == config


def damage_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def edit_config(change):
    def damage(folder):
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_weights, "model.safetensors cannot be read .*fetch or save it again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"format": '), "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "does not belong to an mcvd model"),
        (edit_config(lambda data: data.pop("format")), "does not belong to an mcvd model"),
        (edit_config(lambda data: data.update(predictoin="v")), "unknown key predictoin; did you mean prediction?"),
        (
            edit_config(lambda data: data["network"].update(width="8")),
            "network: width: expected a whole number, found '8'",
        ),
        (edit_config(lambda data: data["network"].update(blocks=2)), "it does not belong to this configuration"),
        (edit_config(lambda data: data["network"].update(width=16)), "has another shape of"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(model, tmp_path, damage, says):
    folder = model.save(tmp_path)
    damage(folder)
    with pytest.raises(McvdError, match=says) as caught:
        mcvd.load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_training_run_is_loaded_from_its_model_folder(model, tmp_path):
    model.save(tmp_path / "model")
    assert mcvd.load(tmp_path, device="cpu").config == model.config


def test_unknown_models_are_refused_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(McvdError, match=r"no model nothing: .* not bundled .*; name a hub model owner/name"):
        mcvd.load("nothing", device="cpu")
    with pytest.raises(McvdError, match="has no config.json"):
        mcvd.load(tmp_path, device="cpu")
    for step in (9000, 10000):
        (tmp_path / f"checkpoint_{step}.pt").touch()
    with pytest.raises(McvdError, match=r"name one: .*checkpoint_10000\.pt$"):
        mcvd.load(tmp_path, device="cpu")
    with pytest.raises(McvdError):
        mcvd.load("checkpoint_5.pt", device="cpu")


@pytest.mark.parametrize("device", ["gpu", *([] if torch.cuda.is_available() else ["cuda", "cuda:1"])])
def test_a_missing_device_is_refused(device):
    with pytest.raises(McvdError, match=f"cannot use the device '{device}' on this machine"):
        mcvd.load("digits", device=device)


def test_a_hub_model_that_cannot_be_had_is_refused(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        McvdError, match=re.escape("no folder a/b, and it cannot be downloaded from the hub (no route to host)")
    ):
        mcvd.load("a/b", device="cpu")


def test_a_hub_model_is_loaded_from_its_snapshot(model, tmp_path, monkeypatch):
    model.save(tmp_path)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    assert same(mcvd.load("a/b", device="cpu").state_dict(), model.state_dict())
    assert asked == [("a/b", {"allow_patterns": ["config.json", "model.safetensors"]})]  # and not all else that it has


def test_what_is_noted_of_the_training_stays_with_a_model(tmp_path):
    assert (tiny.model().notes, tiny.model().stride) == ({}, 1)
    tiny.model().save(tmp_path / "a", notes={"steps": 5, "stride": 3})
    loaded = mcvd.load(tmp_path / "a", device="cpu")
    loaded.save(tmp_path / "b")
    again = mcvd.load(tmp_path / "b", device="cpu")
    assert (again.notes, again.stride) == ({"steps": 5, "stride": 3}, 3)
    assert "| stride | 3 |" in model_card(again, "me/mine")
    for wrong in ("many", 0):  # anybody may have written it
        again.notes["stride"] = wrong
        assert again.stride == 1


@pytest.mark.parametrize(
    ("options", "tasks", "trained"),
    [
        ({}, "predict, predict --backward, interpolate, generate", "past hidden 50%.*, future hidden 50% of the time$"),
        ({"masking": Masking(0.5, 0.5, together=True)}, "interpolate, generate", "both together"),
        ({"masking": Masking(1.0, 0.5)}, "predict --backward, generate", "past hidden 100%.*, future hidden 50%"),
        ({"masking": Masking(), "layout": BlockLayout(2, 3)}, "predict", "^past hidden 0% of the time$"),
        ({"masking": Masking(), "layout": BlockLayout(0, 3)}, "generate", "^no past and no future$"),
        ({"masking": Masking(0.5, 0.5, frames=0.1), "context_noise": 0.3}, "predict, .*", "10% of single.*up to 0.3"),
    ],
)
def test_a_model_says_what_it_was_trained_for(options, tasks, trained):
    rows = dict(model_rows(tiny.model(**options)))
    assert re.fullmatch(tasks, rows["tasks"])
    assert re.search(trained, rows["trained with"])


def test_a_model_says_how_it_was_made_and_how_it_samples():
    config = dataclasses.replace(tiny.config(prediction="v", steps=120), solver="sde-dpm++")
    rows = dict(model_rows(made := VideoDiffusion(config)))
    assert rows["noise"] == "linear schedule, 120 levels; predicts v"
    assert rows["solver"] == "sde-dpm++, 20 steps per block, unless --solver and --steps say otherwise"
    assert rows["network"] == "width 8 x (1, 2), concat"
    assert rows["parameters"] == f"{sum(p.numel() for p in made.parameters()) / 1e6:.2f} million"


def test_a_model_says_its_size_as_width_by_height():
    assert dict(model_rows(tiny.model(size=(16, 32))))["size"] == "32x16 pixels, grey"


def test_push_to_hub_uploads_a_folder_that_loads(model, monkeypatch):
    seen = {}

    class Api:
        def create_repo(self, repo_id, exist_ok):
            seen["repo"] = (repo_id, exist_ok)

        def file_exists(self, repo_id, filename):
            return filename in seen.get("there", ())

        def upload_folder(self, repo_id, folder_path, **options):
            seen["loaded"] = VideoDiffusion.from_folder(folder_path)
            seen["files"] = {path.name: path for path in Path(folder_path).iterdir()}
            seen["card"] = seen["files"]["README.md"].read_text() if "README.md" in seen["files"] else ""
            seen["options"] = options
            return f"https://example.org/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert model.push_to_hub("me/mine", commit_message="first") == "https://example.org/me/mine"
    assert seen["repo"] == ("me/mine", True)
    assert seen["options"] == {"commit_message": "first"}
    assert same(seen["loaded"].state_dict(), model.state_dict())
    _, front, page = seen["card"].split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "mcvd"
    assert 'mcvd.load("me/mine")' in page
    for command in ("predict", "predict --backward", "interpolate", "generate"):
        assert re.search(f"^mcvd {command} .*--model me/mine$", page, re.MULTILINE)
    with monkeypatch.context() as offline:
        offline.setattr(Api, "create_repo", lambda *_, **__: (_ for _ in ()).throw(Exception("no route to host\n...")))
        with pytest.raises(McvdError, match=r"cannot upload to me/mine \(no route to host\); log in with"):
            model.push_to_hub("me/mine")
    seen["there"] = ["README.md"]  # which somebody wrote
    model.push_to_hub("me/mine")
    assert seen["files"].keys() == {"config.json", "model.safetensors"}


def test_a_card_shows_what_is_noted_as_it_is():
    """Whatever signs it has: a cell of a Markdown table ends at the next bar."""
    made = tiny.model()
    made.notes = {"source": "a|b_*c*.pt", "two\nlines": "of\ntext", "clips_seen": 12}
    card = model_card(made, "me/mine")
    assert "| source | a\\|b\\_\\*c\\*.pt |\n| two lines | of text |\n| clips\\_seen | 12 |\n\n```" in card
    assert "| frames | 2 past, 3 generated at once, 1 future; videos are written at 10 per second |" in card


def test_bundled_models_load():
    assert "digits" in door.bundled_models()
    for name in door.bundled_models():
        assert isinstance(mcvd.load(name, device="cpu"), VideoDiffusion)


def test_a_model_says_how_it_is_sampled(tmp_path):
    given = dataclasses.replace(tiny.config(), solver="sde-dpm++")
    model = VideoDiffusion(given)
    assert torch.equal(model.predict(GOOD, 3), model.predict(GOOD, 3, solver="sde-dpm++", steps=20))
    assert not torch.equal(model.predict(GOOD, 3), model.predict(GOOD, 3, solver="ddpm"))
    published = model.predict(GOOD, 3, reference=True)
    assert torch.equal(published, model.predict(GOOD, 3, solver="ddpm", reference=True))
    calls = []  # the published 100 steps and one more, or all steps that there are
    tiny.model(steps=7).predict(GOOD, 3, reference=True, progress=lambda done, total: calls.append(total))
    assert calls == [8] * 8
    model.save(tmp_path / "model")
    assert mcvd.load(tmp_path / "model").config.solver == "sde-dpm++"
    with pytest.raises(McvdError, match="one of ddpm"):
        dataclasses.replace(given, solver="euler")
    for fps in (0.0, 1001.0, float("nan")):
        with pytest.raises(McvdError, match=f"fps is {fps}; it must be a number from 0.001 to 1000"):
            dataclasses.replace(given, fps=fps)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("sde-dpm++", 20)),
        ({"steps": 5}, ("sde-dpm++", 5)),
        ({"solver": "dpm++"}, ("dpm++", 20)),
        ({"solver": "ddpm"}, ("ddpm", 100)),
        ({"reference": True}, ("ddpm", 100)),
        ({"solver": "ddim", "reference": True}, ("ddim", 100)),
        ({"steps": 7, "reference": True}, ("ddpm", 7)),
    ],
)
def test_the_solver_and_its_steps_where_nothing_is_asked_for(asked, expected):
    model = VideoDiffusion(dataclasses.replace(tiny.config(steps=120), solver="sde-dpm++"))
    assert model.sampler(**asked) == expected
    solver, steps = expected
    same = model.predict(GOOD, 3, solver=solver, steps=steps, reference=asked.get("reference", False))
    assert torch.equal(model.predict(GOOD, 3, **asked), same)


@pytest.mark.parametrize("more", [{}, {"steps": 5}, {"reference": True}])
def test_a_solver_that_there_is_not_is_refused(more):
    with pytest.raises(McvdError, match="solver is 'euler'; it is one of ddpm"):
        tiny.model().sampler("euler", **more)


def test_what_is_no_model_does_not_hide_a_bundled_one(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = mcvd.load("digits", device="cpu").config
    folder = tmp_path / "digits"
    folder.mkdir()
    assert mcvd.load("digits", device="cpu").config == bundled
    model.save(folder / "model")  # a run of mcvd train
    assert mcvd.load("digits", device="cpu").config == model.config
    (folder / "model").rename(tmp_path / "model")
    model.save(folder)
    tiny.model(width=4).save(folder / "model")  # which the folder's own hides
    assert mcvd.load("digits", device="cpu").config == model.config


def test_a_file_that_is_no_model_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "plain.mp4").touch()
    with pytest.raises(McvdError, match=r"in/plain.mp4 is a file, not a model: .*bundled \(digits\)"):
        mcvd.load("in/plain.mp4", device="cpu")
    with pytest.raises(McvdError, match=r"https://hub.example/me/m is an address, not a file: download it first"):
        mcvd.load("https://hub.example/me/m", device="cpu")
    for name in ("a/b/c", "./nothing", "../nothing", "/nothing"):  # no owner/name
        with pytest.raises(McvdError, match=rf"^no model {re.escape(name)}: it is not a folder"):
            mcvd.load(name, device="cpu")
    for recipe in ("videos-small", "kth-concat"):
        with pytest.raises(McvdError, match=rf"{recipe} is a recipe, not a model: mcvd train {recipe} makes one"):
            mcvd.load(recipe, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_names_its_folder(tmp_path, name):
    tiny.model().save(tmp_path / "m")
    with pytest.raises(McvdError, match=rf"m/{name} is a file of a model; name its folder: .*/m$"):
        mcvd.load(tmp_path / "m" / name, device="cpu")
