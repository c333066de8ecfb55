"""The Gaussian algebra of DDPM (arXiv 2006.11239): forward process, posterior, and what a network may predict.

`alpha_bar` is a tensor that broadcasts over x. All functions are elementwise.
"""

from __future__ import annotations

from torch import Tensor

from mcvd.errors import McvdError

PREDICTIONS = ("eps", "x0", "v")


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (DDPM eq. 4)."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean frames that x_t and its noise imply (DDPM eq. 15)."""
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that x_t and its clean frames imply (DDPM eq. 15, solved for eps)."""
    return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def v_from(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (arXiv 2202.00512, section 4)."""
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0


def x0_from_v(x_t: Tensor, v: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v (arXiv 2202.00512, appendix D)."""
    return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v


def score_from_eps(eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """grad log q(x_t) = -eps / sqrt(1 - alpha_bar) (DDPM section 3.2; MCVD section 2.1)."""
    return -eps / (1 - alpha_bar).sqrt()


def posterior(x0: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_to: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x0), where s < t has `alpha_bar_to` (DDPM eqs. 6 and 7 for s = t - 1)."""
    alpha = alpha_bar / alpha_bar_to  # of the step from s to t
    beta = 1 - alpha
    mean = (alpha_bar_to.sqrt() * beta * x0 + alpha.sqrt() * (1 - alpha_bar_to) * x_t) / (1 - alpha_bar)
    return mean, (1 - alpha_bar_to) / (1 - alpha_bar) * beta


def target(prediction: str, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network with this `prediction` ("eps", "x0" or "v") should output."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":
        return v_from(x0, eps, alpha_bar)
    raise McvdError(f"prediction is {prediction!r}; it is one of {', '.join(PREDICTIONS)}")


def x0_from(prediction: str, x_t: Tensor, output: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean frames that a network's output implies; `prediction` as in `target`."""
    if prediction == "eps":
        return x0_from_eps(x_t, output, alpha_bar)
    if prediction == "x0":
        return output
    if prediction == "v":
        return x0_from_v(x_t, output, alpha_bar)
    raise McvdError(f"prediction is {prediction!r}; it is one of {', '.join(PREDICTIONS)}")
