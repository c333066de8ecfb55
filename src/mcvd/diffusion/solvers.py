"""Solvers as tables: every sampler here is linear in x, the network's outputs so far, and fresh noise.

A row of a :class:`Table` is one network call. The call sees the state x at time t and yields x0_hat and, from it,
eps_hat = (x - sqrt(alpha_bar) x0_hat) / sqrt(1 - alpha_bar). The next state is then

    x' = base * x_base + sum over past calls j of (x0[j] * x0_hat_j + eps[j] * eps_hat_j) + noise * z,   z ~ N(0, I)

where x_base is the state at the last row marked `anchor` (Runge-Kutta stages start again from it). All coefficients are
float64; :func:`mcvd.diffusion.sampling.sample` runs any table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.errors import McvdError

LEAST_SIGNAL, LEAST_NOISE = 0.005, 0.01
"""Least ratios of signal to noise, and of noise to signal, that matter to where multistep solvers place their calls."""


@dataclass(frozen=True)
class Row:
    """One network call at time t, and how the next state follows from it and its predecessors."""

    t: int
    """Time number the network is called with."""
    alpha_bar: float
    """alpha_bar of the state that the network sees."""
    base: float
    """Weight of x_base."""
    x0: tuple[float, ...] = ()
    """Weights of x0_hat of this call, the call before, ..."""
    eps: tuple[float, ...] = ()
    """Weights of eps_hat of this call, the call before, ..."""
    noise: float = 0.0
    """Standard deviation of the fresh noise."""
    anchor: bool = True
    """Whether x at this call is the x_base of this and the following rows."""


@dataclass(frozen=True)
class Table:
    """A solver for one schedule and number of steps."""

    rows: tuple[Row, ...]
    clip_eps: bool = False
    """Whether eps_hat follows the clipped x0_hat (multistep in eps), or the raw one (DDIM as published)."""

    @property
    def memory(self) -> int:
        """How many calls back a row reads, itself included."""
        return max(max(len(row.x0), len(row.eps)) for row in self.rows)


def _check_steps(schedule: NoiseSchedule, steps: int) -> None:
    if not 1 <= steps <= schedule.steps:
        raise McvdError(f"steps is {steps}; this model's noise schedule allows 1 to {schedule.steps}")


def spaced(schedule: NoiseSchedule, steps: int) -> list[int]:
    """`steps` time numbers from T - 1 down, evenly spaced: T - 1 - floor(i T / steps)."""
    _check_steps(schedule, steps)
    return [schedule.steps - 1 - i * schedule.steps // steps for i in range(steps)]


def spaced_in_log_snr(schedule: NoiseSchedule, steps: int) -> list[int]:
    """`steps` time numbers from T - 1 down, at even distances in lambda, the half log signal-to-noise ratio.

    The first call is at T - 1, and the step of the last ends at the clean video. In between, the range of lambda from
    T - 1 to time 0 is cut evenly, without what lies beyond `LEAST_SIGNAL` and `LEAST_NOISE`: pure noise, or a clean
    video, to any network. The formulas of DPM-Solver++ and UniPC are in lambda (arXiv 2206.00927, section 3.4), and so
    are their errors: even distances in time are long at both ends, of which the noisy one decides what the video shows
    (docs/results.md), and the clean one how much results vary (tests/test_solvers.py).
    """
    _check_steps(schedule, steps)
    lambdas = np.array([_half_log_snr(alpha_bar) for alpha_bar in reversed(schedule.alpha_bar.tolist())])
    lambdas = lambdas.clip(math.log(LEAST_SIGNAL), -math.log(LEAST_NOISE))
    wanted = np.linspace(lambdas[0], lambdas[-1], steps, endpoint=False)
    times = [schedule.steps - 1]
    for i, time in enumerate(np.interp(wanted[1:], lambdas, np.arange(schedule.steps)[::-1]), 1):
        times.append(max(min(round(time), times[-1] - 1), steps - 1 - i))  # all different
    return times


def spaced_as_published(schedule: NoiseSchedule, steps: int) -> list[int]:
    """The published spacing: every (T // steps)-th time number from T - 1 down: for 7 steps of 1000, it gives 8."""
    _check_steps(schedule, steps)
    return list(range(schedule.steps - 1, -1, -(schedule.steps // steps)))


def _levels(schedule: NoiseSchedule, times: list[int]) -> list[tuple[int, float, float]]:
    """(t, alpha_bar at t, alpha_bar where the step ends) for every step; the last step ends at 1, the clean video."""
    alpha_bar = schedule.alpha_bar
    values = [float(alpha_bar[t]) for t in times]
    return list(zip(times, values, [*values[1:], 1.0]))


def _transfer(a: float, b: float) -> tuple[float, float]:
    """DDIM's step from alpha_bar a to b, no noise: weights of x and eps_hat (arXiv 2010.02502 eq. 12; PNDM eq. 11)."""
    return math.sqrt(b / a), math.sqrt(1 - b) - math.sqrt(b * (1 - a) / a)


def ddpm(schedule: NoiseSchedule, times: list[int]) -> Table:
    """Ancestral sampling with the posterior's mean and variance (DDPM eqs. 6, 7 and 11, algorithm 2)."""
    rows = []
    for t, a, b in _levels(schedule, times):
        alpha, beta = a / b, 1 - a / b
        rows.append(
            Row(
                t,
                a,
                base=math.sqrt(alpha) * (1 - b) / (1 - a),
                x0=(math.sqrt(b) * beta / (1 - a),),
                noise=math.sqrt((1 - b) / (1 - a) * beta),
            )
        )
    return Table(tuple(rows))


def ddim(schedule: NoiseSchedule, times: list[int], eta: float = 0.0) -> Table:
    """DDIM (arXiv 2010.02502 eq. 12): eta = 0 is deterministic, eta = 1 has the noise of DDPM."""
    rows = []
    for t, a, b in _levels(schedule, times):
        sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        rows.append(Row(t, a, base=0.0, x0=(math.sqrt(b),), eps=(math.sqrt(max(1 - b - sigma**2, 0.0)),), noise=sigma))
    return Table(tuple(rows))


def f_pndm(schedule: NoiseSchedule, times: list[int]) -> Table:
    """F-PNDM (arXiv 2202.09778, algorithm 2): three pseudo Runge-Kutta steps, then linear multistep of order 4.

    A Runge-Kutta step takes 4 calls, two of them half-way between two levels; so 4 or more steps are len(times) + 9
    calls. With fewer, the last step, which ends at the clean video where eps is undefined, is first order. The
    published code has the time axis of this solver reversed (docs/reference.md); these are the PNDM paper's equations.
    """
    rows: list[Row] = []
    firsts: list[int] = []  # the row of the first call of each step: only these enter the multistep formula
    for i, (t, a, b) in enumerate(_levels(schedule, times)):
        firsts.append(len(rows))
        if a < 1e-6:
            # the first level of cosine and zero-terminal schedules, where eps says nothing about x0: first order in x0
            # is stable
            rows.append(Row(t, a, base=0.0, x0=(math.sqrt(b),), eps=(math.sqrt(1 - b),)))
            continue
        full_x, full_eps = _transfer(a, b)
        if i >= 3:
            weights = [0.0] * (len(rows) - firsts[-4] + 1)
            for first, weight in zip(firsts[-4:], (-9 / 24, 37 / 24, -59 / 24, 55 / 24)):
                weights[len(rows) - first] = full_eps * weight
            rows.append(Row(t, a, full_x, eps=tuple(weights)))
        elif b == 1.0:
            rows.append(Row(t, a, full_x, eps=(full_eps,)))
        else:
            end = times[i + 1]
            middle = t - (t - end) // 2  # the training level nearest to half-way, as published weights know no others
            m = float(schedule.alpha_bar[middle])
            half_x, half_eps = _transfer(a, m)
            sixth = full_eps / 6
            rows += [
                Row(t, a, half_x, eps=(half_eps,)),
                Row(middle, m, half_x, eps=(half_eps,), anchor=False),
                Row(middle, m, full_x, eps=(full_eps,), anchor=False),
                Row(end, b, full_x, eps=(sixth, 2 * sixth, 2 * sixth, sixth), anchor=False),
            ]
    return Table(tuple(rows), clip_eps=True)


def _half_log_snr(alpha_bar: float) -> float:
    """lambda of the DPM-Solver papers; infinite where alpha_bar is 0 or 1."""
    if alpha_bar in (0.0, 1.0):
        return math.inf if alpha_bar else -math.inf
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


def dpm_solver_pp(schedule: NoiseSchedule, times: list[int], noisy: bool = False) -> Table:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), first order at both ends; predicts x0, reads 2 calls.

    noisy: SDE-DPM-Solver++(2M) (same paper, section 4), which adds noise in every step as DDPM does.
    """
    levels = _levels(schedule, times)
    rows = []
    for i, (t, a, b) in enumerate(levels):
        if b == 1.0:  # lambda is infinite at the clean end: the step ends at x0_hat itself
            rows.append(Row(t, a, base=0.0, x0=(1.0,)))
            continue
        h = _half_log_snr(b) - _half_log_snr(a)
        base = math.sqrt((1 - b) / (1 - a)) * (math.exp(-h) if noisy else 1.0)
        fresh = -math.expm1(-2 * h) if noisy else 0.0  # share of the next state's noise variance that is drawn anew
        gain = math.sqrt(b) * (fresh if noisy else -math.expm1(-h))
        noise = math.sqrt((1 - b) * fresh)
        if i == 0:
            rows.append(Row(t, a, base, x0=(gain,), noise=noise))
            continue
        r = (_half_log_snr(a) - _half_log_snr(levels[i - 1][1])) / h
        rows.append(Row(t, a, base, x0=(gain * (1 + 0.5 / r), -gain * 0.5 / r), noise=noise))
    return Table(tuple(rows))


def unipc(schedule: NoiseSchedule, times: list[int]) -> Table:
    """UniPC-2 (arXiv 2302.04867, algorithms 1 and 2, x0 prediction, B(h) = e^h - 1), first order at both ends.

    The output of each call first corrects the state that it saw; the next step starts from the corrected state. The
    correction is a sum of outputs, so correction and step fit into one row.
    """
    levels = _levels(schedule, times)
    rows = []
    for i, (t, a, b) in enumerate(levels):
        if b == 1.0:
            rows.append(Row(t, a, base=0.0, x0=(1.0,)))
            continue
        corrected = _unipc_correction([_half_log_snr(level[1]) for level in levels[max(i - 2, 0) : i + 1]], a)
        h = _half_log_snr(b) - _half_log_snr(a)
        base = math.sqrt((1 - b) / (1 - a))
        gain = -math.sqrt(b) * math.expm1(-h)
        half = 0.5 * gain * h / (_half_log_snr(a) - _half_log_snr(levels[i - 1][1])) if i else 0.0
        weights = [base * weight for weight in corrected]
        weights[0] += gain + half
        weights[1] -= half
        rows.append(Row(t, a, base, x0=tuple(weights)))
    return Table(tuple(rows))


def _unipc_correction(levels: list[float], alpha_bar: float) -> tuple[float, float, float]:
    """What the corrector adds to the state at the last of up to 3 lambdas: weights of the outputs there and before."""
    if len(levels) == 1:
        return 0.0, 0.0, 0.0
    h = levels[-1] - levels[-2]
    gain = -math.sqrt(alpha_bar) * math.expm1(-h)
    if len(levels) == 2:
        return 0.5 * gain, -0.5 * gain, 0.0
    r = (levels[-3] - levels[-2]) / h  # negative
    # b_1 and b_2 of the paper; they and r fix the weights of both differences of outputs
    first = -1 / h - 1 / math.expm1(-h)
    second = 2 * (1 / h**2 + (1 / h - 0.5) / math.expm1(-h))
    old = (first - second) / (1 - r)
    new = first - old
    slope = gain * (old - 0.5) / r  # beyond the predictor's half
    return gain * new, -gain * new - slope, slope


@dataclass(frozen=True)
class Solver:
    """A named solver with its default number of steps."""

    build: Callable[[NoiseSchedule, list[int]], Table]
    spacing: Callable[[NoiseSchedule, int], list[int]]
    steps: int
    summary: str


SOLVERS = {
    "ddpm": Solver(ddpm, spaced, 100, "ancestral sampling, as in the paper's tables"),
    "ddim": Solver(ddim, spaced, 50, "deterministic for a given start noise"),
    "f-pndm": Solver(f_pndm, spaced_in_log_snr, 20, "fourth-order multistep, 9 more calls than steps"),
    "dpm++": Solver(dpm_solver_pp, spaced_in_log_snr, 20, "DPM-Solver++(2M), second order"),
    "sde-dpm++": Solver(
        partial(dpm_solver_pp, noisy=True), spaced_in_log_snr, 20, "SDE-DPM-Solver++(2M): adds noise, as DDPM does"
    ),
    "unipc": Solver(unipc, spaced_in_log_snr, 10, "UniPC of order 2, a corrected DPM-Solver++"),
}

PUBLISHED = ("ddpm", "ddim")
"""Those that `published_table` knows."""


def solver_named(name: str) -> Solver:
    """The solver of this name; McvdError if there is none."""
    if name not in SOLVERS:
        raise McvdError(f"solver is {name!r}; it is one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def default_steps(name: str, schedule: NoiseSchedule, published: bool = False) -> int:
    """Steps of a solver unless others are asked for: its own number, or the 100 of the published code; at most all."""
    own = solver_named(name).steps
    return min(100 if published else own, schedule.steps)


def solver_table(name: str, schedule: NoiseSchedule, steps: int | None = None) -> Table:
    """The table of a solver by name, for `steps` steps (None: `default_steps`)."""
    solver = solver_named(name)
    steps = default_steps(name, schedule) if steps is None else steps
    return solver.build(schedule, solver.spacing(schedule, steps))


def published_table(name: str, schedule: NoiseSchedule, steps: int, denoise: bool = True) -> Table:
    """DDPM or DDIM exactly as the published code ran them, defects included (docs/reference.md).

    Its spacing differs when `steps` does not divide T, and `denoise` appends its last call: x - sqrt(1 - alpha_bar) eps
    at the last level, but with the network told a time number near the noisy end (label L - 1, meant as an index of the
    L steps): this pulls every video towards grey, by 4.3 % at 100 steps.
    """
    if name not in PUBLISHED:
        raise McvdError(f"the published results use ddpm and ddim, not {name!r}; leave out reference mode to use it")
    times = spaced_as_published(schedule, steps)
    table = SOLVERS[name].build(schedule, times)
    rows = list(table.rows)
    if name == "ddpm" and schedule.kind == "linear" and not schedule.zero_terminal and steps == schedule.steps:
        rows = _ddpm_rows_in_float32(schedule)
    if denoise:
        a = rows[-1].alpha_bar
        rows.append(Row(schedule.steps - len(times), a, base=1.0, eps=(-math.sqrt(1 - a),)))
    return Table(tuple(rows))


def _ddpm_rows_in_float32(schedule: NoiseSchedule) -> list[Row]:
    """DDPM's rows for all T steps, as published: from float32 tables of beta and alpha_bar that do not quite match.

    (1 - alpha_bar loses digits near the clean end; the last step returns 0.99983 x0_hat. With fewer steps, the
    published code computes beta from alpha_bar, as `ddpm` does.)
    """
    ends = schedule.beta_last, schedule.beta_first
    betas = torch.linspace(*ends, schedule.steps, dtype=torch.float32, device="cpu").flip(0)
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    var, var_to, beta, a, b = (x.tolist() for x in (1 - alpha_bar, 1 - before, betas, alpha_bar, before))
    return [
        Row(
            t,
            a[t],
            base=math.sqrt(1 - beta[t]) * var_to[t] / var[t],
            x0=(math.sqrt(b[t]) * beta[t] / var[t],),
            noise=math.sqrt(var_to[t] / var[t] * beta[t]),
        )
        for t in range(schedule.steps - 1, -1, -1)
    ]


def gains(table: Table, schedule: NoiseSchedule) -> Tensor:
    """For an exact predictor of a single clean video x0: how much of x0 is in the state after every row, ``(rows,)``.

    The predictor knows the noise level only from the time number, as a network does. A sound solver ends at 1; this is
    the "gain" of a solver in docs and tests.
    """
    out = []
    state = base = math.sqrt(table.rows[0].alpha_bar)
    x0s: list[float] = []
    eps_s: list[float] = []
    for row in table.rows:
        base = state if row.anchor else base
        told = float(schedule.alpha_bar[row.t])
        eps_s.insert(0, (state - math.sqrt(told)) / math.sqrt(1 - told))
        root = math.sqrt(row.alpha_bar)
        x0s.insert(0, (state - math.sqrt(1 - row.alpha_bar) * eps_s[0]) / root if root else 1.0)
        state = row.base * base + sum(w * x for w, x in zip(row.x0, x0s)) + sum(w * e for w, e in zip(row.eps, eps_s))
        out.append(state)
    return torch.tensor(out, dtype=torch.float64)
