"""The algebra of DDPM: conversions undo each other, the posterior is Bayes' rule, the loss is the published sum."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcvd.diffusion import gaussian
from mcvd.diffusion.loss import squared_error
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.errors import McvdError

values = st.floats(-3, 3)
levels = st.floats(1e-4, 1 - 1e-4)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(values, values, levels)
def test_x0_and_eps_imply_each_other(x0, eps, alpha_bar):
    x0, eps, a = map(scalar, (x0, eps, alpha_bar))
    x_t = gaussian.add_noise(x0, eps, a)
    assert gaussian.x0_from_eps(x_t, eps, a).item() == pytest.approx(x0.item(), abs=1e-10)
    assert gaussian.eps_from_x0(x_t, x0, a).item() == pytest.approx(eps.item(), abs=1e-10)


@given(values, values, levels)
def test_x0_follows_from_v(x0, eps, alpha_bar):
    x0, eps, a = map(scalar, (x0, eps, alpha_bar))
    x_t = gaussian.add_noise(x0, eps, a)
    assert gaussian.x0_from_v(x_t, gaussian.v_from(x0, eps, a), a).item() == pytest.approx(x0.item(), abs=1e-12)


@given(values, values, levels, st.sampled_from(gaussian.PREDICTIONS))
def test_what_a_network_should_put_out_implies_x0(x0, eps, alpha_bar, prediction):
    x0, eps, a = map(scalar, (x0, eps, alpha_bar))
    output = gaussian.target(prediction, x0, eps, a)
    x_t = gaussian.add_noise(x0, eps, a)
    assert gaussian.x0_from(prediction, x_t, output, a).item() == pytest.approx(x0.item(), abs=1e-10)


def test_unknown_predictions_are_refused():
    one = torch.ones(1)
    for call in (gaussian.target, gaussian.x0_from):
        with pytest.raises(McvdError, match="one of eps, x0, v"):
            call("score", one, one, one)


@given(values, values, levels)
def test_score_is_the_slope_of_the_log_density(x0, eps, alpha_bar):
    x0, eps, a = map(scalar, (x0, eps, alpha_bar))
    x_t = gaussian.add_noise(x0, eps, a).requires_grad_()
    (-0.5 * (x_t - a.sqrt() * x0) ** 2 / (1 - a)).backward()
    assert gaussian.score_from_eps(eps, a).item() == pytest.approx(x_t.grad.item(), rel=1e-7, abs=1e-10)


@given(values, values, levels, st.floats(0.01, 0.99))
def test_posterior_is_bayes_rule(x0, x_t, alpha_bar_to, alpha):
    """q(x_s | x_t, x0) is proportional to q(x_s | x0) q(x_t | x_s): two Gaussians in x_s, whose precisions add."""
    a_to, alpha = scalar(alpha_bar_to), scalar(alpha)
    mean, variance = gaussian.posterior(scalar(x0), scalar(x_t), a_to * alpha, a_to)
    prior = 1 / (1 - a_to)  # of N(sqrt(a_to) x0, 1 - a_to)
    likelihood = alpha / (1 - alpha)  # of N(sqrt(alpha) x_s, 1 - alpha) at x_t, read as a density of x_s
    precision = prior + likelihood
    expected = (prior * a_to.sqrt() * x0 + likelihood * x_t / alpha.sqrt()) / precision
    assert mean.item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-9)
    assert variance.item() == pytest.approx(1 / precision.item(), rel=1e-8)


def test_posterior_of_neighbours_is_ddpm_equations_6_and_7():
    schedule = NoiseSchedule()
    beta, a = schedule.beta[1:], schedule.alpha_bar[1:]
    before = schedule.alpha_bar[:-1]
    x0, x_t = torch.randn(2, 999, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = gaussian.posterior(x0, x_t, a, before)
    expected = before.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - a) * x_t
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, (1 - before) / (1 - a) * beta, rtol=1e-9, atol=0)


def test_forward_noise_has_unit_variance_for_unit_data():
    x0, eps = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    for a in (0.01, 0.5, 0.99):
        assert gaussian.add_noise(x0, eps, torch.tensor(a)).std().item() == pytest.approx(1, abs=0.01)


def test_loss_is_half_the_summed_squared_error_of_each_clip():
    output, target = torch.randn(2, 3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = squared_error(output, target)
    assert loss.shape == (3,)
    for i in range(3):
        assert loss[i].item() == pytest.approx(0.5 * ((output[i] - target[i]) ** 2).sum().item(), rel=1e-6)
    # a network that says nothing has half the number of values, in expectation
    zero = squared_error(torch.zeros(64, 5, 1, 16, 16), torch.randn(64, 5, 1, 16, 16))
    assert zero.mean().item() == pytest.approx(0.5 * 5 * 256, rel=4 / math.sqrt(64 * 5 * 256))
