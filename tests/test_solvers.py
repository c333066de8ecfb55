"""Solvers: exact where theory says so, equal to the field's own implementations, and of the order they claim."""

import itertools
import math
import weakref

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from mcvd.diffusion import gaussian
from mcvd.diffusion.sampling import sample
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.diffusion.solvers import (
    SOLVERS,
    ddim,
    ddpm,
    dpm_solver_pp,
    f_pndm,
    gains,
    published_table,
    solver_table,
    spaced,
    spaced_as_published,
    spaced_in_log_snr,
    unipc,
)
from mcvd.errors import McvdError

THOUSAND = NoiseSchedule()
COUNTS = (1, 2, 3, 4, 5, 7, 10, 20, 33, 50, 99, 100, 101, 333, 500, 501, 999, 1000)


def no_noise():
    raise AssertionError("this solver draws no noise")


# --- a predictor that knows the one clean video ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 25])
def test_every_solver_ends_at_the_clean_video_for_every_step_count(solver, kind, total):
    schedule = NoiseSchedule(kind, total)
    for steps in range(1, total + 1):
        assert gains(solver_table(solver, schedule, steps), schedule)[-1].item() == pytest.approx(1, abs=1e-9), steps


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_ends_at_the_clean_video_for_a_thousand_levels(solver):
    for steps in COUNTS:
        assert gains(solver_table(solver, THOUSAND, steps), THOUSAND)[-1].item() == pytest.approx(1, abs=1e-9), steps


def published_gain(steps):
    """What the published last call leaves of a clean video: x - sqrt(1 - alpha_bar) eps, where eps is what a perfect
    network says when it is told label `steps` - 1, near the noisy end, instead of the level that it sees."""
    told, last = float(THOUSAND.alpha_bar[1000 - steps]), float(THOUSAND.alpha_bar[1000 // steps - 1])
    return 1 - math.sqrt(1 - last) * (1 - math.sqrt(told)) / math.sqrt(1 - told)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
@pytest.mark.parametrize(("steps", "known"), [(10, 0.68), (25, None), (50, None), (100, 0.957)])
def test_the_published_last_call_pulls_towards_grey(solver, steps, known):
    gain = gains(published_table(solver, THOUSAND, steps), THOUSAND)[-1].item()
    assert gain == pytest.approx(published_gain(steps), abs=1e-9)
    assert known is None or gain == pytest.approx(known, abs=2e-3)
    without = gains(published_table(solver, THOUSAND, steps, denoise=False), THOUSAND)[-1].item()
    assert without == pytest.approx(1, abs=1e-9)


def test_a_thousand_published_steps_pull_very_little():
    # The label of the last call is the right one here, so that it takes the clean part of the last level's noise off:
    # sqrt(alpha_bar[0]) is left. DDPM's steps come from float32 tables that end at 0.99983 without it (reference).
    for solver, gain in (("ddim", 1.0), ("ddpm", 0.99983)):
        for denoise, expected in ((False, gain), (True, 0.99995)):
            table = published_table(solver, THOUSAND, 1000, denoise)
            assert gains(table, THOUSAND)[-1].item() == pytest.approx(expected, abs=1e-5), (solver, denoise)


def point_mass(clean, schedule):
    """What a perfect network does for one clean video: it knows the level by the time number alone."""

    def denoiser(x, t, alpha_bar):
        eps = gaussian.eps_from_x0(x, clean, schedule.alpha_bar[int(t)])
        return gaussian.x0_from_eps(x, eps, torch.tensor(alpha_bar, dtype=x.dtype))

    return denoiser


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_sampling_loop_gives_the_clean_video(solver, clip):
    clean = torch.linspace(-1, 1, 21, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(21, dtype=torch.float64, generator=draw)  # noqa: E731
    for steps in (1, 2, 3, 4, 5, 20, 50, 100):
        out = sample(point_mass(clean, THOUSAND), solver_table(solver, THOUSAND, steps), noise(), noise, clip=clip)
        torch.testing.assert_close(out, clean, rtol=0, atol=1e-9)
    if solver in ("ddpm", "ddim"):
        out = sample(point_mass(clean, THOUSAND), published_table(solver, THOUSAND, 100), noise(), noise, clip=False)
        torch.testing.assert_close(out, published_gain(100) * clean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_lies_beyond_the_range_is_used_as_its_end(solver):
    """With `clip`, a network that always answers 5 means 1, in every formula that the last state depends on."""
    draw = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(21, dtype=torch.float64, generator=draw)  # noqa: E731
    out = sample(lambda x, t, a: torch.full_like(x, 5), solver_table(solver, THOUSAND, 10), noise(), noise)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-9)


# --- diffusers ------------------------------------------------------------------------------------------------------

SHAPE = (2, 3, 4, 4)


def wavy(x, t, alpha_bar):
    """A nonlinear network: eps = sqrt(1 - alpha_bar) x + 0.3 sin(3 x + 0.01 t)."""
    return (1 - alpha_bar) ** 0.5 * x + 0.3 * torch.sin(3 * x + 0.01 * t)


def ours(table, x, noise, clip):
    def denoiser(x, t, alpha_bar):
        level = torch.tensor(alpha_bar, dtype=x.dtype)
        return gaussian.x0_from_eps(x, wavy(x, t, level), level)

    draws = iter(noise)
    return sample(denoiser, table, x, lambda: next(draws), clip=clip)


def theirs(scheduler, x, step):
    """Runs a diffusers scheduler; `step(output, t, x, i)` calls its step."""
    for i, t in enumerate(scheduler.timesteps):
        x = step(wavy(x, int(t), scheduler.alphas_cumprod[t]), t, x, i).prev_sample
    return x


def in_double(scheduler):
    """Our alpha_bar table instead of their float32 one, in which 1 - alpha_bar has lost 3 digits near the clean end."""
    scheduler.alphas_cumprod = THOUSAND.alpha_bar
    scheduler.alphas = 1 - THOUSAND.beta
    scheduler.betas = THOUSAND.beta
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def start(draws):
    g = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, dtype=torch.float64, generator=g), torch.randn(
        draws, *SHAPE, dtype=torch.float64, generator=g
    )


@pytest.mark.parametrize(
    ("steps", "clip"), [(1, True), (3, False), (10, True), (100, False), (100, True), (1000, True)]
)
def test_ddpm_equals_diffusers(steps, clip, monkeypatch):
    x, noise = start(steps)
    times = spaced(THOUSAND, steps)
    scheduler = in_double(DDPMScheduler(clip_sample=clip))
    scheduler.set_timesteps(timesteps=times)
    draws = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(draws))
    # Theirs adds noise of standard deviation 1e-10 where it should be 0: the variance is bounded below
    expected = theirs(scheduler, x, lambda output, t, x, i: scheduler.step(output, t, x))
    torch.testing.assert_close(ours(ddpm(THOUSAND, times), x, noise, clip), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_ddim_equals_diffusers(steps, eta, clip):
    x, noise = start(steps)
    # "leading" with this offset is T - 1, T - 1 - T / steps, ..., as ours
    scheduler = in_double(DDIMScheduler(clip_sample=clip, set_alpha_to_one=True, steps_offset=1000 // steps - 1))
    scheduler.set_timesteps(steps)
    times = spaced(THOUSAND, steps)
    assert scheduler.timesteps.tolist() == times
    # With clipping, the eps of the raw output steers, as in the published sampler (use_clipped_model_output=False)
    expected = theirs(
        scheduler, x, lambda output, t, x, i: scheduler.step(output, t, x, eta=eta, variance_noise=noise[i])
    )
    torch.testing.assert_close(ours(ddim(THOUSAND, times, eta), x, noise, clip), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("steps", [4, 5, 10, 20, 50])
def test_f_pndm_equals_diffusers(steps):
    # Even distances between levels only: for odd ones theirs calls the network at one half-way level and steps to
    # another (it rounds once up and once down). It never clips.
    assert 1000 // steps % 2 == 0
    x, _ = start(0)
    scheduler = in_double(PNDMScheduler(set_alpha_to_one=True, skip_prk_steps=False, steps_offset=1000 // steps - 1))
    scheduler.set_timesteps(steps)
    times = spaced(THOUSAND, steps)
    table = f_pndm(THOUSAND, times)
    assert scheduler.timesteps.tolist() == [row.t for row in table.rows]
    assert len(table.rows) == steps + 9
    expected = theirs(scheduler, x, lambda output, t, x, i: scheduler.step(output, t, x))
    torch.testing.assert_close(ours(table, x, (), clip=False), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 100, 333])
def test_dpm_solver_pp_equals_diffusers(steps, clip):
    x, _ = start(0)
    times = spaced(THOUSAND, steps)
    # Dynamic thresholding at most at 1 is clipping to [-1, 1]
    scheduler = in_double(DPMSolverMultistepScheduler(thresholding=clip, sample_max_value=1.0))
    scheduler.set_timesteps(timesteps=times)
    level = THOUSAND.alpha_bar[times]
    scheduler.sigmas = torch.cat([((1 - level) / level).sqrt(), torch.zeros(1, dtype=torch.float64)])
    expected = theirs(scheduler, x, lambda output, t, x, i: scheduler.step(output, t, x))
    torch.testing.assert_close(ours(dpm_solver_pp(THOUSAND, times), x, (), clip), expected, rtol=0, atol=1e-5)
    # (1e-5, as theirs keeps the state in float32)


def with_levels(scheduler, times):
    """A diffusers multistep scheduler set to these time numbers, in float64."""
    scheduler = in_double(scheduler)
    scheduler.set_timesteps(len(times))
    scheduler.timesteps, scheduler.num_inference_steps = torch.tensor(times), len(times)
    level = THOUSAND.alpha_bar[times]
    scheduler.sigmas = torch.cat([((1 - level) / level).sqrt(), torch.zeros(1, dtype=torch.float64)])
    return scheduler


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [2, 3, 10, 20, 100])
def test_sde_dpm_solver_pp_equals_diffusers(steps, clip):
    x, noise = start(steps)
    times = spaced(THOUSAND, steps)
    kind = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
    scheduler = with_levels(DPMSolverMultistepScheduler(thresholding=clip, sample_max_value=1.0, **kind), times)
    expected = theirs(scheduler, x, lambda output, t, x, i: scheduler.step(output, t, x, variance_noise=noise[i]))
    table = dpm_solver_pp(THOUSAND, times, noisy=True)
    torch.testing.assert_close(ours(table, x, noise, clip), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [2, 3, 4, 10, 20, 100])
def test_unipc_equals_diffusers(steps, clip):
    x, _ = start(0)
    times = spaced(THOUSAND, steps)
    kind = {"solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "zero"}
    scheduler = with_levels(UniPCMultistepScheduler(thresholding=clip, sample_max_value=1.0, **kind), times)
    expected = theirs(scheduler, x, lambda output, t, x, i: scheduler.step(output, t, x))
    torch.testing.assert_close(ours(unipc(THOUSAND, times), x, (), clip), expected, rtol=0, atol=1e-5)


# --- Gaussian data: the exact denoiser is known, everything is linear -------------------------------------------------

MEAN, STD = 0.3, 0.19


def posterior_mean(x, t, alpha_bar):
    """E[x0 | x_t] for x0 ~ N(MEAN, STD^2)."""
    a = alpha_bar
    return MEAN + math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a) * (x - math.sqrt(a) * MEAN)


def moments(table):
    """Mean and standard deviation of what a table makes, exactly: every source of noise is 1 in one row of the batch,
    and in row 0 there is none at all."""
    sources = 1 + sum(row.noise != 0 for row in table.rows)
    unit = iter(torch.eye(sources + 1, dtype=torch.float64)[1:, :, None])
    out = sample(posterior_mean, table, next(unit), lambda: next(unit), clip=False)[:, 0]
    return out[0].item(), (out[1:] - out[0]).square().sum().sqrt().item()


@pytest.mark.parametrize(
    ("solver", "steps", "mean_off", "spread_off"),
    [
        # Measured; no sampling error, `moments` is exact. The mean is off by what alpha_bar = 4e-5 of the data in the
        # noisiest state, which the start noise lacks, leaves over. With even spacing the spread falls short, because a
        # last call at level T / steps returns the mean of all data that it could be, without their spread: half of the
        # noise there was. It is of order 1 / steps for one-step solvers, and DDPM's other steps lose as much again.
        # Distances in log-SNR leave the multistep solvers their own error. The bounds are 1.1 times what is measured.
        ("ddpm", 100, 1e-5, 0.145),
        ("ddpm", 1000, 1e-5, 0.022),
        ("ddim", 100, 5e-4, 0.079),
        ("ddim", 1000, 5e-4, 0.0088),
        ("f-pndm", 20, 5e-4, 0.0105),
        ("f-pndm", 100, 5e-4, 0.0006),
        ("dpm++", 10, 5e-4, 0.0121),
        ("dpm++", 20, 5e-4, 0.0102),
        ("dpm++", 100, 5e-4, 0.0008),
        ("dpm++", 1000, 5e-4, 0.0008),
        ("unipc", 10, 5e-4, 0.0243),
        ("unipc", 20, 5e-4, 0.0074),
        ("sde-dpm++", 20, 1e-5, 0.0264),
        ("sde-dpm++", 100, 1e-5, 0.0012),
    ],
)
def test_gaussian_data_keeps_its_mean_and_spread(solver, steps, mean_off, spread_off):
    mean, spread = moments(solver_table(solver, THOUSAND, steps))
    assert mean == pytest.approx(MEAN, abs=mean_off)
    assert spread / STD - 1 == pytest.approx(0, abs=spread_off)


def error(solver, steps):
    """Error of the state at a fixed level, against the exact solution of the probability-flow ODE, with the levels
    `steps` equal distances apart; the last jump to the clean video is left out, it is of another kind."""
    fine = NoiseSchedule(steps=64_000, beta_first=1e-4 / 64, beta_last=0.02 / 64)  # as good as continuous time
    times = [*range(63_999, 6_399, -(57_600 // steps)), 6_399]
    table = SOLVERS[solver].build(fine, times)
    states = [torch.tensor([1.3], dtype=torch.float64)]
    sample(posterior_mean, table, states[0], no_noise, clip=False, on_step=lambda _, x: states.append(x))
    first, last = (float(fine.alpha_bar[t]) for t in (times[0], times[-1]))
    spread = [math.sqrt(a * STD**2 + 1 - a) for a in (first, last)]
    exact = math.sqrt(last) * MEAN + (1.3 - math.sqrt(first) * MEAN) * spread[1] / spread[0]
    return abs(states[-2].item() - exact)


@pytest.mark.parametrize(
    ("solver", "low", "high"), [("ddim", 0.88, 1.05), ("dpm++", 1.68, 2.05), ("unipc", 1.9, 4.0), ("f-pndm", 2.1, 4.5)]
)
def test_half_the_distance_between_levels_divides_the_error_by_2_to_the_order(solver, low, high):
    # 1 and 2 are the orders of DDIM and DPM-Solver++(2M); UniPC's corrector adds one to its 2. The PNDM paper proves 2
    # for F-PNDM, more is seen where the data is smooth
    errors = [error(solver, steps) for steps in (8, 16, 32, 64, 128)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(low < order < high for order in orders), orders


def test_higher_order_is_worth_its_calls():
    ddim_, two, corrected, four = (error(solver, 32) for solver in ("ddim", "dpm++", "unipc", "f-pndm"))
    assert four < two / 3 < ddim_ / 15
    assert corrected < two / 2  # without the 9 calls that F-PNDM takes more


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "draws"),
    [
        (ddpm(THOUSAND, spaced(THOUSAND, 10)), 9),  # the last step is exact: no noise
        (ddim(THOUSAND, spaced(THOUSAND, 10)), 0),
        (ddim(THOUSAND, spaced(THOUSAND, 10), eta=0.5), 9),
        (f_pndm(THOUSAND, spaced(THOUSAND, 10)), 0),
        (dpm_solver_pp(THOUSAND, spaced(THOUSAND, 10)), 0),
        (dpm_solver_pp(THOUSAND, spaced(THOUSAND, 10), noisy=True), 9),
        (unipc(THOUSAND, spaced(THOUSAND, 10)), 0),
        (published_table("ddpm", THOUSAND, 10), 9),
    ],
)
def test_noise_is_drawn_only_where_it_is_used(table, draws):
    drawn = []
    sample(lambda x, t, a: 0.5 * x, table, torch.ones(2), lambda: drawn.append(1) or torch.zeros(2))
    assert len(drawn) == draws == sum(row.noise != 0 for row in table.rows)


@pytest.mark.parametrize("solver", SOLVERS)
def test_only_the_outputs_that_are_read_again_are_kept(solver):
    table = solver_table(solver, THOUSAND, 40)
    assert table.memory <= {"dpm++": 2, "sde-dpm++": 2, "unipc": 3, "f-pndm": 13}.get(solver, 1)
    outputs, alive = [], []

    def denoiser(x, t, alpha_bar):
        alive.append(sum(output() is not None for output in outputs))
        made = torch.zeros_like(x)
        outputs.append(weakref.ref(made))
        return made

    sample(denoiser, table, torch.ones(2), lambda: torch.zeros(2), clip=False)
    assert max(alive) <= table.memory + 1  # one more while the name in the loop still holds the newest


def test_on_step_sees_every_state():
    table, states = solver_table("ddpm", THOUSAND, 5), []
    out = sample(lambda x, t, a: x, table, torch.ones(2), lambda: torch.ones(2), on_step=lambda *s: states.append(s))
    assert [i for i, _ in states] == [0, 1, 2, 3, 4]
    assert torch.equal(states[-1][1], out)


def test_the_start_noise_is_left_alone():
    x = torch.ones(3)
    for solver in SOLVERS:
        sample(lambda x, t, a: 0.1 * x, solver_table(solver, THOUSAND, 6), x, lambda: torch.ones(3))
    assert torch.equal(x, torch.ones(3))


def test_spacings():
    assert spaced(THOUSAND, 4) == [999, 749, 499, 249]
    assert spaced(THOUSAND, 3) == [999, 666, 333]
    assert spaced(THOUSAND, 1000) == spaced_as_published(THOUSAND, 1000) == list(range(999, -1, -1))
    for steps in range(1, 1001):
        times = spaced(THOUSAND, steps)
        assert len(times) == steps
        assert times[0] == 999
        assert all(a > b for a, b in itertools.pairwise(times))
    # published: every (1000 // steps)-th, whatever that gives
    assert len(spaced_as_published(THOUSAND, 300)) == 334
    assert len(spaced_as_published(THOUSAND, 334)) == 500
    assert spaced_as_published(THOUSAND, 100)[-1] == 9


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_calls_at_even_distances_in_log_snr(kind, zero_terminal):
    schedule = NoiseSchedule(kind, zero_terminal=zero_terminal)
    lambdas = [0.5 * math.log(a / (1 - a)) if a else -math.inf for a in schedule.alpha_bar.tolist()]
    # from pure noise, wherever that is, to the clean video, where the last step ends
    first, last = max(lambdas[999], math.log(0.005)), min(lambdas[0], math.log(100))
    for steps in (2, 6, 10, 20):
        times = spaced_in_log_snr(schedule, steps)
        assert times[0] == 999
        for i, t in enumerate(times[1:], 1):
            assert lambdas[t + 1] < first + (last - first) * i / steps < lambdas[t - 1]  # t is the nearest


@pytest.mark.parametrize(
    "schedule",
    [
        THOUSAND,
        NoiseSchedule("cosine", zero_terminal=True),
        NoiseSchedule(steps=8),
        NoiseSchedule(steps=2, zero_terminal=True),
        NoiseSchedule(steps=1),
        NoiseSchedule(steps=50, beta_first=1e-9, beta_last=1e-8),  # hardly any noise at all
        NoiseSchedule(steps=50, beta_first=0.9, beta_last=0.99),  # hardly anything else
    ],
)
def test_every_number_of_calls_is_at_so_many_levels(schedule):
    for steps in range(1, schedule.steps + 1):
        times = spaced_in_log_snr(schedule, steps)
        assert len(times) == steps
        assert times[0] == schedule.steps - 1
        assert times[-1] >= 0
        assert all(a > b for a, b in itertools.pairwise(times))


def test_bad_requests_are_refused():
    for steps in (0, -1, 1001):
        with pytest.raises(McvdError, match=f"steps is {steps}; .*1 to 1000"):
            solver_table("ddpm", THOUSAND, steps)
        with pytest.raises(McvdError, match="1 to 1000"):
            published_table("ddpm", THOUSAND, steps)
    with pytest.raises(McvdError, match=r"solver is 'euler'; it is one of ddpm, ddim, f-pndm, dpm\+\+, sde-"):
        solver_table("euler", THOUSAND)
    with pytest.raises(McvdError, match="published results use ddpm and ddim"):
        published_table("dpm++", THOUSAND, 20)


def test_the_default_number_of_steps_fits_a_short_schedule():
    assert len(solver_table("ddpm", NoiseSchedule(steps=8)).rows) == 8
    assert len(solver_table("ddpm", THOUSAND).rows) == 100
