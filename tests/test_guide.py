"""A guide: a weaker network that sampling moves away from where nothing is seen."""

import dataclasses
import sys
from math import nan
from pathlib import Path

import pytest
import torch

import mcvd
import tiny
from mcvd import McvdError
from mcvd.cli.main import main
from mcvd.evaluation.evaluate import Sampling, _system
from mcvd.guide import GuideConfig, guided
from mcvd.layout import BlockLayout, Masking
from mcvd.networks.config import UNetConfig
from mcvd.training.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import guidance

FAST = {"solver": "ddim", "steps": 3, "seed": 1}
ALONE = {"layout": BlockLayout(0, 3, 0), "width": 4}


@pytest.fixture(scope="module")
def weaker():
    return tiny.model(seed=7, masking=Masking(), **ALONE)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def hidden(model, **options):
    """The denoiser of a block that sees nothing, for two trajectories."""
    past, future = torch.zeros(1, 2, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16)
    return model.denoiser(past, future, torch.tensor([False]), torch.zeros(2, dtype=torch.long), **options)


@torch.no_grad()
def test_the_guide_moves_the_output_away_from_its_own_at_its_noise_levels(weaker, model):
    """x0 is linear in the output, so that the rule holds for x0 as it does for outputs."""
    made = guided(model, weaker, scale=2.5, noise=0.5)
    x = torch.randn(2, 3, 1, 16, 16)
    nothing = torch.zeros(1, 0, 1, 16, 16)
    alone = weaker.denoiser(nothing, nothing, torch.tensor([False]), torch.zeros(2, dtype=torch.long))
    acted = 0
    for t in (0, 20, 40, 60, 80, 99):
        alpha_bar = float(model.config.schedule.alpha_bar[t])
        plain, weak = hidden(model)(x, t, alpha_bar), alone(x, t, alpha_bar)
        assert torch.equal(hidden(made)(x, t, alpha_bar), plain)  # unless asked for
        acts = (1 - alpha_bar) ** 0.5 >= 0.5
        expected = weak + 2.5 * (plain - weak) if acts else plain
        torch.testing.assert_close(hidden(made, guided=True)(x, t, alpha_bar), expected, rtol=1e-4, atol=1e-4)
        acted += acts
    assert 0 < acted < 6


def test_only_what_is_made_from_nothing_is_guided(weaker, model):
    made = guided(model, weaker, noise=0.0)
    clip = tiny.video(2, 1, 16, 16)
    assert torch.equal(made.predict(clip, 6, **FAST), model.predict(clip, 6, **FAST))
    assert torch.equal(made.predict(clip, 6, backward=True, **FAST), model.predict(clip, 6, backward=True, **FAST))
    assert torch.equal(made.interpolate(clip, clip[:1], **FAST), model.interpolate(clip, clip[:1], **FAST))
    plain, guided_ = model.generate(3, samples=2, **FAST), made.generate(3, samples=2, **FAST)
    assert (guided_ - plain).abs().amax((1, 2, 3, 4)).min() > 1e-3  # every sample
    assert torch.equal(made.generate(3, reference=True, **FAST), model.generate(3, reference=True, **FAST))


def test_scale_1_is_the_model_itself(weaker, model):
    assert torch.equal(guided(model, weaker, 1.0, 0.0).generate(3, **FAST), model.generate(3, **FAST))


def test_samples_do_not_depend_on_the_batch(weaker, model):
    made = guided(model, weaker, noise=0.0)
    whole = made.generate(3, samples=3, **FAST)
    torch.testing.assert_close(made.generate(3, samples=3, batch_size=1, **FAST), whole, rtol=0, atol=1e-5)


def test_a_guided_model_is_one_folder(weaker, model, tmp_path):
    made = guided(model, weaker, 2.0, 0.25)
    again = mcvd.load(made.save(tmp_path / "m"), device="cpu")
    assert again.config == made.config
    assert again.config.guide == GuideConfig(weaker.config.network, 2.0, 0.25)
    assert torch.equal(again.generate(3, **FAST), made.generate(3, **FAST))
    assert not again.training


def test_guiding_leaves_both_models_as_they_are_and_a_new_guide_replaces_the_old(weaker, model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    made = guided(guided(model, tiny.model(seed=3, masking=Masking(), **ALONE)), weaker, noise=0.0)
    assert model.config.guide is None
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(made.generate(3, **FAST), guided(model, weaker, noise=0.0).generate(3, **FAST))
    with torch.no_grad():
        next(made.network.parameters()).zero_()
        next(made.guide.parameters()).zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert next(weaker.parameters()).abs().max() > 0


def test_an_evaluation_with_a_guide_is_another_one(weaker, model):
    def weights(model):
        return _system(model, "m", Sampling("ddim", 3)).weights

    two, three = guided(model, weaker, 2.0), guided(model, weaker, 3.0)
    assert len({weights(model), weights(two), weights(three)}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": BlockLayout(2, 3, 0)}, "a guide generates from nothing: its layout must have past 0 and future 0"),
        ({"layout": BlockLayout(0, 2, 0)}, "the guide makes 2 frames at once, the model 3; they must be equal"),
        ({"size": (16, 8)}, r"the guide's size is \(16, 8\), the model's \(16, 16\); they must be equal"),
        ({"channels": 3}, "the guide's channels is 3, the model's 1; they must be equal"),
        ({"steps": 50}, "the schedule of the guide and of the model differ"),
        ({"prediction": "v"}, "the prediction of the guide and of the model differ"),
    ],
)
def test_models_that_do_not_fit_are_refused(options, message, model):
    other = tiny.model(masking=Masking(), **ALONE | options)
    with pytest.raises(McvdError, match=message):
        guided(model, other)


@pytest.mark.parametrize(
    ("scale", "noise"), [(0.5, 0.9), (nan, 0.9), (float("inf"), 0.9), (2, -0.1), (2, 1.1), (2, nan)]
)
def test_scale_and_noise_are_checked(scale, noise, model, weaker):
    with pytest.raises(McvdError, match=r"the guide's (scale|noise) is .*; it must be"):
        guided(model, weaker, scale, noise)


def test_a_model_that_always_sees_something_has_nothing_to_guide(weaker):
    with pytest.raises(McvdError, match="not trained to generate from nothing"):
        guided(tiny.model(masking=Masking()), weaker)


def test_the_command_makes_the_guided_model(weaker, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("strong")
    weaker.save("weak")
    assert main(["guide", "strong", "weak", "--output", "both", "--noise", "0.5", "--scale", "4"]) == 0
    assert "mcvd generate --model both" in capsys.readouterr().out
    assert torch.equal(
        mcvd.load("both", device="cpu").generate(3, **FAST), guided(model, weaker, 4.0, 0.5).generate(3, **FAST)
    )
    assert main(["guide", "strong", "strong", "--output", "other"]) == 1
    assert "past 0 and future 0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(["info", "both"]) == 0
    assert "width 4 x (1, 2), scale 4, at noise from 0.5" in capsys.readouterr().out


def test_a_recipe_has_no_guide():
    config = tiny.config()
    guide = GuideConfig(UNetConfig(**{**tiny.NETWORK, **ALONE}))
    with pytest.raises(McvdError, match=r"model.guide .* after training"):
        Recipe(model=dataclasses.replace(config, guide=guide))


def test_a_guided_model_can_start_a_training(weaker, model):
    from mcvd.training.initialise import initialise_from

    new = tiny.model(seed=5)
    assert initialise_from(new, guided(model, weaker)) == []
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in new.state_dict().items())


def test_what_two_digits_explain_leaves_nothing():
    """benchmarks/guidance.py: two drawn digits leave nothing, also where they touch the edge; three, or noise, do."""
    digits = torch.zeros(3, 16, 16)
    digits[0, 2:14, 7:9] = 1  # a 1
    digits[1, 3:6, 3:13] = digits[1, 6:14, 10:13] = 0.8  # a 7
    digits[2, 4:12, 4:12] = 0.5
    frames = torch.zeros(4, 64, 64)
    for frame, placed in enumerate([[(0, 0, 0), (1, 16, 16)], [(2, 3, 9)], [(0, 0, 0), (1, 16, 16), (2, 0, 16)]]):
        for digit, y, x in placed:
            large = digits[digit].repeat_interleave(2, 0).repeat_interleave(2, 1)
            frames[frame, 2 * y : 2 * y + 32, 2 * x : 2 * x + 32] += large
    frames[3] = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    left = guidance.no_digit(frames, digits)
    assert left[0] < 1e-4
    assert left[1] < 1e-4
    assert 0.1 < left[2] < 0.9
    assert left[3] > 0.5
