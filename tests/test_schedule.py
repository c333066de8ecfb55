"""Noise schedules: the published values, and what every schedule must obey."""

import pytest
import torch

from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.errors import McvdError

# Published label 0 is the noisiest; our time number is 999 - label. Values of the published tables (docs/reference.md).
PUBLISHED = {0: 4.03583035e-5, 1: 4.11819419e-5, 99: 2.70244e-4, 500: 0.0785872, 990: 0.998105168, 999: 0.999899983}


@pytest.mark.parametrize(("label", "value"), PUBLISHED.items())
def test_linear_schedule_has_the_published_values(label, value):
    # 2e-6: the published table is a float32 product of up to 1000 factors
    assert NoiseSchedule().alpha_bar[999 - label].item() == pytest.approx(value, rel=2e-6)


def test_linear_schedule_has_the_published_betas():
    beta = NoiseSchedule().beta
    for label, value in {0: 0.02, 990: 2.7927928e-4, 999: 1e-4}.items():
        assert beta[999 - label].item() == pytest.approx(value, rel=1e-7)


def test_cosine_schedule_is_its_formula():
    alpha_bar = NoiseSchedule("cosine").alpha_bar
    # f(u) / f(0), f(u) = cos^2(((u + 0.008) / 1.008) pi / 2), by hand at u = 1/1000, 1/2 and 1
    assert alpha_bar[0].item() == pytest.approx(0.99995872, abs=1e-7)
    assert alpha_bar[499].item() == pytest.approx(0.49384 / 0.99984, abs=1e-4)
    assert 0 <= alpha_bar[999].item() < 1e-14


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_every_schedule_falls_from_below_1_to_above_0(kind, steps):
    schedule = NoiseSchedule(kind, steps)
    alpha_bar = schedule.alpha_bar
    assert alpha_bar.shape == (steps,)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[0] < 1
    assert alpha_bar[-1] > 0
    assert (alpha_bar.diff() < 0).all()
    assert torch.allclose(torch.cumprod(1 - schedule.beta, 0), alpha_bar, rtol=1e-10, atol=1e-30)
    assert ((schedule.beta > 0) & (schedule.beta <= 1)).all()


def test_at_broadcasts_over_a_batch_in_its_dtype():
    schedule, like = NoiseSchedule(), torch.zeros(3, 2, 1, 4, 4)
    at = schedule.at(torch.tensor([0, 500, 999]), like)
    assert at.shape == (3, 1, 1, 1, 1)
    assert at.dtype == torch.float32
    assert torch.equal(at.flatten(), schedule.alpha_bar[[0, 500, 999]].float())


def test_impossible_schedules_are_refused():
    with pytest.raises(McvdError, match="'linear' or 'cosine'"):
        NoiseSchedule("sigmoid")
    for steps in (0, 10**30):
        with pytest.raises(McvdError, match=f"a noise schedule has 1 to 1000000 steps, not {steps}"):
            NoiseSchedule(steps=steps)
    with pytest.raises(McvdError, match=r"from 0.0001 to 1.5; both must lie between 0 and 1"):
        NoiseSchedule(beta_last=1.5)
    with pytest.raises(McvdError, match="a single one would be pure noise"):
        NoiseSchedule(steps=1, zero_terminal=True)
