"""What training knows beyond the paper: accumulation, Min-SNR weights, zero terminal SNR, warm-up-stable-decay."""

import dataclasses

import pytest
import torch

import tiny
from mcvd.diffusion import gaussian
from mcvd.diffusion.loss import min_snr_weight
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.diffusion.solvers import SOLVERS, ddim, gains, published_table, solver_table, spaced
from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.training.ema import Ema, power_exponent
from mcvd.training.estimate import estimate
from mcvd.training.initialise import adapted, initialise_from
from mcvd.training.recipe import OptimizerConfig, Recipe, read_recipe
from mcvd.training.run import train
from mcvd.training.trainer import Processes, Trainer, learning_rate

ZERO = NoiseSchedule(zero_terminal=True)


class Noise:
    """Clips of random pixels, by position."""

    def __init__(self, network):
        self.shape = (network.layout.frames, network.channels, *network.size)

    def batch(self, indices):
        each = [torch.Generator().manual_seed(int(i)) for i in indices]
        return torch.stack([torch.randint(256, self.shape, generator=g, dtype=torch.uint8) for g in each])


def trainer(model=None, **options):
    model = model or tiny.config()
    recipe = Recipe(model=model, optimizer=OptimizerConfig(lr=1e-3, warmup=0), batch=4, **options)
    return Trainer(recipe, Processes(0, 1, torch.device("cpu")), Noise(model.network))


@pytest.mark.parametrize("masking", [tiny.OPEN, Masking(0.5, 0.5, frames=0.5)], ids=["groups", "frames"])
@pytest.mark.parametrize("context_noise", [0.0, 0.5])
def test_parts_of_a_batch_add_up_to_the_batch(masking, context_noise):
    model = tiny.config(masking=masking, context_noise=context_noise)
    whole, parts = trainer(model), trainer(model, accumulate=2)
    for _ in range(2):
        (loss, norm), (loss_parts, norm_parts) = whole.train_step(), parts.train_step()
        assert float(loss_parts) == pytest.approx(float(loss), rel=1e-5)
        assert float(norm_parts) == pytest.approx(float(norm), rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(McvdError, match="batch 4 does not divide among 1 processes of 3 parts"):
        trainer(accumulate=3)
    with pytest.raises(McvdError, match="batch 4 does not divide into accumulate 3 parts"):
        estimate(dataclasses.replace(trainer().recipe, accumulate=3))


def test_min_snr_weights_an_x0_error_by_the_snr_up_to_5_whatever_the_network_predicts():
    alpha_bar = NoiseSchedule().alpha_bar[::37]
    x0 = eps = torch.zeros(1, dtype=torch.float64)
    off = 0.1
    for prediction in gaussian.PREDICTIONS:
        for a in alpha_bar:
            right = gaussian.target(prediction, x0, eps, a)
            in_x0 = gaussian.x0_from(prediction, gaussian.add_noise(x0, eps, a), right + off, a).square()
            snr = float(a / (1 - a))
            weighted = min_snr_weight(a[None], prediction) * off**2
            assert float(weighted) == pytest.approx(float(in_x0) * min(snr, 5.0), rel=1e-9)


def test_min_snr_changes_the_loss_of_a_step():
    assert float(trainer(weighting="min-snr").train_step()[0]) != pytest.approx(float(trainer().train_step()[0]))


def test_min_snr_would_not_train_the_pure_noise_that_a_zero_terminal_schedule_starts_from():
    assert float(min_snr_weight(ZERO.alpha_bar[-1:], "v")) == 0
    model = dataclasses.replace(tiny.config(), schedule=ZERO, prediction="v")
    Recipe(model=model)
    with pytest.raises(McvdError, match="never be trained; use weighting uniform"):
        Recipe(model=model, weighting="min-snr")


def test_a_zero_terminal_schedule_ends_in_pure_noise_and_keeps_its_first_level():
    assert float(ZERO.alpha_bar[-1]) == 0.0
    assert float(ZERO.alpha_bar[0]) == pytest.approx(float(NoiseSchedule().alpha_bar[0]), abs=1e-12)
    assert (ZERO.alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_solvers_are_sound_on_a_zero_terminal_schedule(solver, steps):
    assert float(gains(solver_table(solver, ZERO, steps), ZERO)[-1]) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("schedule", [ZERO, NoiseSchedule("cosine")], ids=["zero-terminal", "cosine"])
@pytest.mark.parametrize("steps", [100, 1000])
def test_published_sampling_of_another_schedule_has_its_levels(steps, schedule):
    rows = published_table("ddpm", schedule, steps, denoise=False).rows
    assert [row.alpha_bar for row in rows] == [float(schedule.alpha_bar[row.t]) for row in rows]


def test_ddim_with_all_noise_takes_a_zero_terminal_schedule():
    # of the first step's state nothing is kept: eta = 1 leaves eps a weight of 0, up to rounding
    for steps in range(1, 101):
        assert ddim(ZERO, spaced(ZERO, steps), eta=1.0).rows[0].eps[0] == pytest.approx(0, abs=1e-7)


def test_a_zero_terminal_schedule_needs_a_network_that_does_not_predict_eps():
    with pytest.raises(McvdError, match="needs prediction v or x0"):
        VideoDiffusion(ModelConfig(schedule=ZERO))
    model = VideoDiffusion(dataclasses.replace(tiny.config(), schedule=ZERO, prediction="v"))
    assert torch.isfinite(model.generate(frames=model.layout.current, solver="dpm++", steps=3)).all()


def test_warm_up_stable_decay():
    config = OptimizerConfig(lr=1.0, warmup=10, decay="wsd", cooldown=0.2)
    rates = [learning_rate(step, config, 100) for step in (0, 5, 10, 50, 79, 80, 90, 99, 100)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.05, 0.0])
    assert learning_rate(99, dataclasses.replace(config, cooldown=0.0), 100) == 1.0


WIDEST = 12**-0.5


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, WIDEST])
def test_an_average_with_a_power_profile_has_the_mean_and_the_width_of_its_closed_form(width):
    """EDM2, equations of section 3.1: weights t^gamma have mean (gamma + 1) / (gamma + 2) and deviation sigma_rel."""
    gamma = power_exponent(width)
    updates, values = 4000, torch.nn.Linear(1, 2, bias=False)
    ema = Ema(values, power=width)
    for i in range(1, updates + 1):
        with torch.no_grad():
            values.weight.copy_(torch.tensor([[i / updates], [(i / updates) ** 2]]))
        ema.update()
    mean, square = ema.shadow["weight"].double().flatten().tolist()
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=2e-3)
    assert (square - mean**2) ** 0.5 == pytest.approx(width, abs=2e-3)
    assert ((gamma + 1) / (gamma + 3)) ** 0.5 / (gamma + 2) == pytest.approx(width, rel=1e-9)


def test_the_widest_power_profile_is_the_plain_mean_and_none_remembers_the_start():
    weights = torch.nn.Linear(3, 2)
    ema, again = Ema(weights, power=WIDEST), Ema(weights, power=WIDEST)
    seen = []
    for _ in range(7):
        with torch.no_grad():
            weights.weight.normal_()
        seen.append(weights.weight.detach().clone())
        ema.update()
        torch.testing.assert_close(ema.shadow["weight"], torch.stack(seen).mean(0))
    again.load_state_dict(ema.state_dict())  # how many updates there were is part of the state
    for average in (ema, again):
        average.update()
    assert torch.equal(ema.shadow["weight"], again.shadow["weight"])


def test_a_recipe_with_a_power_profile_averages_so_and_takes_only_what_can_be():
    made = trainer(ema_power=WIDEST)
    weights = []
    for _ in range(3):
        made.train_step()
        weights.append(made.model.network.conv_out.weight.detach().clone())
    torch.testing.assert_close(made.averaged().network.conv_out.weight, torch.stack(weights).mean(0))
    assert not made.averaged().training  # it is validated without dropout
    for wrong, says in (({"ema_power": 0.3}, "at most 0.288"), ({"ema_power": 0.0}, "above 0")):
        with pytest.raises(McvdError, match=says):
            Recipe(**wrong)
    with pytest.raises(McvdError, match="needs ema_warmup false"):
        Recipe(ema_power=0.1, ema_warmup=True)


def test_a_run_from_before_an_option_was_known_is_continued():
    made = trainer()
    state = made.state_dict()
    del state["config"]["context_noise"], state["config"]["masking"]["frames"]
    made.load_state_dict(state, "run")
    state["config"]["context_noise"] = 0.5
    with pytest.raises(McvdError, match="another model"):
        made.load_state_dict(state, "run")


def output(model, past, x, future):
    return model.network(x, torch.tensor([7]), model.network.encode(past, future))


@torch.no_grad()
@pytest.mark.parametrize("layout", [BlockLayout(2, 3, 1), BlockLayout(4, 3, 1), BlockLayout(2, 3, 3)], ids=str)
def test_a_model_that_starts_from_another_begins_as_that_one_also_with_more_condition_frames(layout):
    source, model = tiny.model(), tiny.model(seed=1, layout=layout)
    new = initialise_from(model, source)
    assert new == ([] if layout == source.layout else ["conv_in.weight"])
    draw = torch.Generator().manual_seed(0)
    past, x, future = (torch.randn(1, n, 1, 16, 16, generator=draw) for n in (layout.past, 3, layout.future))
    torch.testing.assert_close(output(model, past, x, future), output(source, past[:, -2:], x, future[:, :1]))


@torch.no_grad()
def test_frames_are_told_apart_where_layouts_have_equally_many():
    source, model = tiny.model(), tiny.model(seed=1, layout=BlockLayout(3, 3, 0))
    assert initialise_from(model, source) == ["conv_in.weight"]
    own, given = model.network.conv_in.weight, source.network.conv_in.weight
    assert torch.equal(own[:, [0, 1, 2, 4, 5]], given[:, :5])  # the current frames, and the past ones nearest to them
    assert not own[:, 3].any()
    assert initialise_from(tiny.model(layout=BlockLayout(1, 4, 1)), source) == [
        "conv_in.weight", "conv_out.weight", "conv_out.bias"
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("layout", [BlockLayout(1, 3, 2), BlockLayout(3, 3, 0)], ids=str)
def test_frames_find_their_weights_also_where_others_make_up_for_their_number(layout):
    source, model = tiny.model(), tiny.model(seed=1, layout=layout)
    assert initialise_from(model, source) == ["conv_in.weight"]
    draw = torch.Generator().manual_seed(0)
    past, x, future = (torch.randn(1, n, 1, 16, 16, generator=draw) for n in (layout.past, 3, layout.future))
    hidden = torch.zeros(1, 1, 1, 16, 16)  # what a model has no frame for
    theirs = torch.cat([hidden, past], 1)[:, -2:], x, torch.cat([future, hidden], 1)[:, :1]
    torch.testing.assert_close(output(model, past, x, future), output(source, *theirs))


@pytest.mark.parametrize(("frames", "part"), [("channels", "shared.weight"), ("3d", "converter")])
def test_spatin_of_other_frames_is_new_also_where_their_number_is_the_same(frames, part):
    options = {"conditioning": "spatin", "frames": frames, "spatin_width": 12}
    source, model = tiny.model(**options), tiny.model(seed=1, layout=BlockLayout(1, 3, 2), **options)
    new = initialise_from(model, source)
    assert new == [name for name in model.network.state_dict() if part in name]


@pytest.mark.parametrize("frames", ["channels", "3d"])
def test_attention_of_other_heads_is_new(frames):
    """Its weights have the same shape, but other channels are compared with each other."""
    options = {"attention": (8,), "frames": frames}
    source, model = (tiny.model(head_channels=heads, **options) for heads in (8, 4))
    attention = [name for name in model.network.state_dict() if ".qkv." in name or ".out." in name]
    assert attention
    assert initialise_from(model, source) == attention
    assert initialise_from(tiny.model(head_channels=16, **options), tiny.model(head_channels=-1, **options)) == []


@torch.no_grad()
def test_a_model_that_makes_more_frames_keeps_what_it_knew_of_the_first():
    source, model = tiny.model(), tiny.model(seed=1, layout=BlockLayout(2, 5, 1))
    assert initialise_from(model, source) == ["conv_in.weight", "conv_out.weight", "conv_out.bias"]
    draw = torch.Generator().manual_seed(0)
    past, x, future = (torch.randn(1, n, 1, 16, 16, generator=draw) for n in (2, 5, 1))
    model.network.conv_in.weight[:, 3:5] = 0  # what the two new frames say
    torch.testing.assert_close(output(model, past, x, future)[:, :3], output(source, past, x[:, :3], future))


def test_weights_that_fit_nowhere_are_refused():
    differ = r"do not fit: the recipe has model\.network\.width 16 \(was 8\); make these values equal"
    with pytest.raises(McvdError, match=differ):
        initialise_from(tiny.model(width=16, layout=BlockLayout(3, 3, 1)), tiny.model(width=8))


def test_fine_tuning_says_what_is_new_and_refuses_another_meaning(tmp_path):
    tiny.model().save(tmp_path / "start")
    recipe = Recipe(model=tiny.config(layout=BlockLayout(3, 3, 1)), steps=2, batch=2, sample_every=100)
    lines = []
    options = {"clips": lambda recipe, split, device: Noise(recipe.model.network), "report": lines.append}
    folder = train(recipe, tmp_path / "run", init_from=tmp_path / "start", device="cpu", **options)
    assert any("starting from" in line and line.endswith("conv_in.weight") for line in lines)
    trained = VideoDiffusion.from_folder(folder).network.state_dict()
    moved = trained["middle.0.conv0.weight"] - tiny.model().network.state_dict()["middle.0.conv0.weight"]
    assert 0 <= float(moved.abs().max()) < 1e-2  # two steps away, not another random start
    other = dataclasses.replace(recipe, model=tiny.config(steps=50))
    with pytest.raises(McvdError, match=r"other noise: the recipe has model\.schedule\.steps 50 \(was 100\); make"):
        train(other, tmp_path / "other", init_from=tmp_path / "start", device="cpu", **options)
    assert not (tmp_path / "other").exists()


def test_the_recipe_counts_time_as_the_weights_do_and_takes_no_weights_of_other_conditions():
    source = VideoDiffusion(dataclasses.replace(tiny.config(), time_from_noise=True))
    assert adapted(Recipe(model=tiny.config()), source).model.time_from_noise
    with pytest.raises(McvdError, match=r"other noise: the recipe has model\.noisy_condition True \(was False\)"):
        adapted(Recipe(model=tiny.config(noisy_condition=True)), source)


def test_another_prediction_starts_from_all_weights_but_the_last_convolution():
    start, model = tiny.model(), VideoDiffusion(tiny.config(prediction="x0"))
    assert initialise_from(model, start) == ["conv_out.weight", "conv_out.bias"]
    own, given = model.network.state_dict(), start.network.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own if not name.startswith("conv_out."))
    assert float(own["conv_out.weight"].abs().max()) < 1e-3  # it says nothing yet


def test_estimates_count_what_is_there():
    recipe = read_recipe("smmnist-concat")
    cost = estimate(recipe)
    assert cost.parameters == 27_941_765
    # the published figure is 19.8 GFLOP a network call; backward costs twice that
    assert cost.flops == pytest.approx(3 * 19.8e9, rel=0.02)
    half = estimate(dataclasses.replace(recipe, accumulate=2))
    assert half.activation_bytes == cost.activation_bytes / 2
    assert cost.seconds(recipe, 1e12) == pytest.approx(cost.flops * recipe.batch * recipe.steps / 1e12)
