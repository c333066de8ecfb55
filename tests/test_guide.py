"""A guide: a weaker network that sampling moves away from."""

import dataclasses
import re
import sys
from math import nan
from pathlib import Path

import pytest
import torch

import mcvd
import tiny
from mcvd import McvdError
from mcvd.card import model_rows
from mcvd.cli import guide as guide_command
from mcvd.cli.main import main
from mcvd.config import differences, override, parse_assignments
from mcvd.evaluation.evaluate import Sampling, _system
from mcvd.guide import GuideConfig, guided
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.config import UNetConfig
from mcvd.training.recipe import Recipe, read_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import guidance

FAST = {"solver": "ddim", "steps": 3, "seed": 1}
SMALL = {"width": 4}
TASKS = {
    "predict": (True, False),
    "backward": (False, True),
    "interpolate": (True, True),
    "generate": (False, False),
}


@pytest.fixture(scope="module")
def weaker():
    return tiny.model(seed=7, **SMALL)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def denoiser(model, past_seen, future_seen, **options):
    """The denoiser of a block for three trajectories of two clips, which see past and future or not."""
    clips = tiny.video(2, 3, 1, 16, 16) / 127.5 - 1
    past, future = clips[:, :2] * past_seen, clips[:, 2:] * future_seen
    return model.denoiser(past, future, torch.tensor([past_seen] * 2), torch.tensor([0, 0, 1]), **options)


@torch.no_grad()
@pytest.mark.parametrize("seen", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_guide_moves_the_output_away_from_its_own_at_its_noise_levels(weaker, model, seen, guidance):
    """x0 is linear in the output, so that the rule holds for x0 as it does for outputs."""
    made = guided(model, weaker, scale=2.5, noise=0.5)
    x = torch.randn(3, 3, 1, 16, 16)
    acted = 0
    for t in (0, 20, 40, 60, 80, 99):
        alpha_bar = float(model.config.schedule.alpha_bar[t])
        plain = denoiser(model, *seen, guidance=guidance)(x, t, alpha_bar)
        weak = denoiser(weaker, *seen)(x, t, alpha_bar)
        assert torch.equal(denoiser(made, *seen, guidance=guidance)(x, t, alpha_bar), plain)  # unless asked for
        acts = (1 - alpha_bar) ** 0.5 >= 0.5
        expected = weak + 2.5 * (plain - weak) if acts else plain
        out = denoiser(made, *seen, guidance=guidance, guided=True)(x, t, alpha_bar)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        acted += acts
    assert 0 < acted < 6


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"noisy_condition": True}, {"context_noise": 0.5}, {"mask_embedding": True}, {"conditioning": "spatin"}]
)
def test_the_guide_is_told_what_the_model_is_told(options):
    model, weaker = tiny.model(**options), tiny.model(seed=7, **SMALL | options)
    made = guided(model, weaker, scale=2.5, noise=0.0)
    x, noise = torch.randn(3, 3, 1, 16, 16), torch.randn(3, 3, 1, 16, 16)
    told = {"condition_noise": lambda: noise, "sigma": 0.3 if "context_noise" in options else 0.0}
    for seen in TASKS.values():
        plain, weak = (denoiser(one, *seen, **told)(x, 70, 0.4) for one in (model, weaker))
        out = denoiser(made, *seen, guided=True, **told)(x, 70, 0.4)
        torch.testing.assert_close(out, weak + 2.5 * (plain - weak), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_model_and_guide_see_the_same_noise_on_known_frames(model):
    """With itself as its guide, a model says what it says without one, whoever draws the noise."""
    noisy = tiny.model(noisy_condition=True)
    made = guided(noisy, noisy, scale=3.0, noise=0.0)
    x, outputs = torch.randn(3, 3, 1, 16, 16), []
    for guided_ in (False, True):
        torch.manual_seed(0)
        outputs.append(denoiser(made, True, True, guided=guided_)(x, 50, float(noisy.config.schedule.alpha_bar[50])))
    torch.testing.assert_close(*outputs)


def test_every_task_is_guided_and_the_reference_is_not(weaker, model):
    made = guided(model, weaker, noise=0.0)
    clip = tiny.video(2, 1, 16, 16)
    calls = {
        "predict": lambda one, **options: one.predict(clip, 6, **options),
        "backward": lambda one, **options: one.predict(clip, 6, backward=True, **options),
        "interpolate": lambda one, **options: one.interpolate(clip, clip[:1], **options),
        "generate": lambda one, **options: one.generate(3, **options),
    }
    for make in calls.values():
        plain, guided_ = (make(one, samples=2, **FAST) for one in (model, made))
        assert (guided_ - plain).abs().amax((1, 2, 3, 4)).min() > 1e-3  # every sample
        assert torch.equal(make(made, reference=True, **FAST), make(model, reference=True, **FAST))


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
    made = guided(guided(model, tiny.model(seed=3, **SMALL)), weaker, noise=0.0)
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
    assert weights(guided(model, weaker, 2)) == weights(two)
    whole, real = tiny.model(masking=Masking(0, 1)), tiny.model(masking=Masking(0.0, 1.0))
    assert weights(whole) == weights(real)


def test_what_a_guided_model_is_named_by_leaves_defaults_out(weaker, model):
    """A field that UNetConfig gets later must not give the models of today another hash."""
    said = differences(guided(model, weaker, 2.0).config, ModelConfig())["guide"]
    own = dataclasses.asdict(weaker.config.network)
    usual = dataclasses.asdict(UNetConfig())
    assert said.keys() == {"network", "scale"}
    assert said["network"].keys() == {name for name in own if own[name] != usual[name]}
    assert differences(GuideConfig(UNetConfig()), None) == {"network": {}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layout": BlockLayout(2, 3, 0)},
            r"the guide's layout is BlockLayout\(past=2, .*future=1\); they must be equal",
        ),
        ({"size": (16, 8)}, r"the guide's size is \(16, 8\), the model's \(16, 16\); they must be equal"),
        ({"channels": 3}, "the guide's channels is 3, the model's 1; they must be equal"),
        ({"steps": 50}, "the schedule of the guide and of the model differ"),
        ({"prediction": "v"}, "the prediction of the guide and of the model differ"),
        ({"noisy_condition": True}, "the noisy_condition of the guide and of the model differ"),
        ({"context_noise": 0.5}, "the context_noise of the guide and of the model differ"),
        ({"masking": Masking(0.5, 0.0)}, "the guide was not trained for these tasks of the model: generate, predict"),
    ],
)
def test_models_that_do_not_fit_are_refused(options, message, model):
    with pytest.raises(McvdError, match=message):
        guided(model, tiny.model(**SMALL | options))


def test_a_guide_of_another_stride_is_refused_and_notes_are_a_copy(weaker):
    every_third = tiny.model()
    every_third.notes["stride"] = 3
    with pytest.raises(McvdError, match="the guide was trained on one frame in 1, the model on one in 3"):
        guided(every_third, weaker)
    same = tiny.model(seed=7, **SMALL)
    same.notes["stride"] = 3
    made = guided(every_third, same)
    assert (made.notes, made.training) == (every_third.notes, False)
    made.notes["stride"] = 5
    assert every_third.stride == 3


@pytest.mark.parametrize(
    ("scale", "noise"), [(0.5, 0.9), (nan, 0.9), (float("inf"), 0.9), (2, -0.1), (2, 1.1), (2, nan)]
)
def test_scale_and_noise_are_checked(scale, noise, model, weaker):
    with pytest.raises(McvdError, match=r"the guide's (scale|noise) is .*; it must be"):
        guided(model, weaker, scale, noise)


def test_a_guide_that_counts_time_from_the_other_end_is_refused(model):
    weaker = VideoDiffusion(dataclasses.replace(tiny.config(**SMALL), time_from_noise=True))
    with pytest.raises(McvdError, match="the time_from_noise of the guide and of the model differ"):
        guided(model, weaker)


def test_the_guide_acts_from_its_noise_level_upwards(weaker):
    config = GuideConfig(weaker.config.network, noise=0.5)
    assert [config.acts(alpha_bar) for alpha_bar in (0.76, 0.75, 0.0)] == [False, True, True]
    assert GuideConfig(weaker.config.network, noise=1.0).acts(0.0)  # of a zero-terminal schedule


def test_what_a_guided_model_says_counts_model_and_guide_apart(weaker, model):
    plain, made = (dict(model_rows(one)) for one in (model, guided(model, weaker)))
    assert "guide" not in plain
    assert made["parameters"] == plain["parameters"]
    small = dict(model_rows(weaker))["parameters"]
    assert made["guide"] == f"{small} parameters, width 4 x (1, 2); scale 1.5, at noise from 0.95"


def test_a_guide_may_know_more_tasks_than_the_model_and_must_know_hidden_frames(weaker):
    few = tiny.model(masking=Masking(0.5, 1.0))
    assert guided(few, weaker).config.masking == few.config.masking
    with pytest.raises(McvdError, match=r"not trained with single frames hidden \(masking.frames\), as the model was"):
        guided(tiny.model(masking=Masking(0.5, 0.5, frames=0.2)), weaker)


def test_the_command_makes_the_guided_model(weaker, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("strong")
    weaker.save("weak")
    assert main(["guide", "strong", "weak", "--output", "both", "--noise", "0.5", "--scale", "4"]) == 0
    assert "wrote both; name it as --model" in capsys.readouterr().out
    assert torch.equal(
        mcvd.load("both", device="cpu").generate(3, **FAST), guided(model, weaker, 4.0, 0.5).generate(3, **FAST)
    )
    tiny.model(channels=3).save("colour")
    assert main(["guide", "strong", "colour", "--output", "other"]) == 1
    assert "the guide's channels is 3, the model's 1; they must be equal" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(["info", "both"]) == 0
    assert "0.02 million parameters, width 4 x (1, 2); scale 4, at noise from 0.5" in capsys.readouterr().out


def test_the_defaults_of_the_command_are_those_of_the_library():
    for name in ("scale", "noise"):
        assert getattr(guide_command.Command, name) == getattr(GuideConfig, name)


def test_the_command_overwrites_no_run_and_not_the_weaker_model(weaker, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("run/model")
    Path("run/recipe.yaml").write_text("")
    Path("run/samples").mkdir()
    weaker.save("weak")
    before = Path("weak/model.safetensors").read_bytes()
    for output in ("run", "run/model"):
        assert main(["guide", "run/model", "weak", "--output", output]) == 1
        assert f"{output} is of a run of mcvd train, whose own model it would hide" in capsys.readouterr().err
    for output in ("weak", "../" + tmp_path.name + "/weak"):
        assert main(["guide", "run/model", "weak", "--output", output]) == 1
        assert "is the weaker model, which would be lost; choose another --output" in capsys.readouterr().err
    assert not Path("run/config.json").exists()
    assert Path("weak/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("recipe", ["digits", "digits-small", "videos-small", "modern"])
def test_the_weaker_recipe_of_the_help_is_one(recipe):
    said = " ".join(guide_command.Command.__doc__.split())
    assignments = re.findall(r"--set (\S+=\d+)", said)
    assert len(assignments) == 2
    strong = read_recipe(recipe)
    weak = override(strong, parse_assignments(assignments, "--set"), "the recipe")
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in VideoDiffusion(one.model).parameters()) for one in (strong, weak)]
    assert sizes[1] < sizes[0] / 5


def test_a_recipe_has_no_guide():
    config = tiny.config()
    guide = GuideConfig(UNetConfig(**{**tiny.NETWORK, **SMALL}))
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
