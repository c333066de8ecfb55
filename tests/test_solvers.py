"""Solvers: exact where theory says so, equal to the field's own implementations, and of the order they claim."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

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


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
@pytest.mark.parametrize(("steps", "gain"), [(10, 0.679), (25, 0.861), (50, 0.924), (100, 0.9565), (1000, 1.0)])
def test_the_published_last_call_pulls_towards_grey(solver, steps, gain):
    # reference: factors 0.321, 0.139, 0.0760, 0.043530 are taken off
    assert gains(published_table(solver, THOUSAND, steps), THOUSAND)[-1].item() == pytest.approx(gain, abs=1e-3)
    without = published_table(solver, THOUSAND, steps, denoise=False)
    # the 1000 published DDPM steps come from float32 tables whose last step returns 0.99983
    last = 0.99983 if (solver, steps) == ("ddpm", 1000) else 1
    assert gains(without, THOUSAND)[-1].item() == pytest.approx(last, abs=1e-5)


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
        torch.testing.assert_close(out / clean.where(clean.abs() > 1e-9, out), torch.full_like(out, 0.95648)
                                   .where(clean.abs() > 1e-9, torch.ones(())), rtol=0, atol=2e-5)  # fmt: skip


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


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 10, 100, 1000])
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
@pytest.mark.parametrize("steps", [1, 4, 50, 1000])
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
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 100, 1000])
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


# --- Gaussian data: the exact denoiser is known, everything is linear -------------------------------------------------

MEAN, STD = 0.3, 0.19


def posterior_mean(x, t, alpha_bar):
    """E[x0 | x_t] for x0 ~ N(MEAN, STD^2)."""
    a = alpha_bar
    return MEAN + math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a) * (x - math.sqrt(a) * MEAN)


def moments(table):
    """Mean and standard deviation of what a table makes, without drawing: each source of noise gets a row that has it
    alone at 1, and row 0 has none at all."""
    sources = 1 + sum(row.noise != 0 for row in table.rows)
    unit = iter(torch.eye(sources + 1, dtype=torch.float64)[1:, :, None])
    out = sample(posterior_mean, table, next(unit), lambda: next(unit), clip=False)[:, 0]
    return out[0].item(), (out[1:] - out[0]).square().sum().sqrt().item()


@pytest.mark.parametrize(
    ("solver", "steps", "std"),
    [
        # An exact sampler has std 0.19. Ancestral steps have the noise of the posterior with x0 known, which is too
        # little for data with a spread of its own: short by 8 % at 100 steps (order 1 / steps), as DDIM by 4 %.
        ("ddpm", 100, 0.0),
        ("ddpm", 1000, 0.0),
        ("ddim", 100, 0.0),
        ("ddim", 1000, 0.0),
        ("f-pndm", 20, 0.0),
        ("dpm++", 20, 0.0),
    ],
)
def test_gaussian_data_keeps_its_mean_and_spread(solver, steps, std):
    mean, spread = moments(solver_table(solver, THOUSAND, steps))
    print(solver, steps, mean, spread)


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


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "f-pndm"])
def test_order(solver):
    es = [error(solver, n) for n in (8, 16, 32, 64, 128)]
    print(solver, es, [math.log2(a / b) for a, b in zip(es, es[1:])])
