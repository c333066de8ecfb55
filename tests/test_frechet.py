"""Fréchet and kernel distances against published values, scipy and their own theory; calibration of samples."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mcvd.errors import McvdError
from mcvd.evaluation.calibration import calibration, crps, spread_skill
from mcvd.evaluation.files import save_tensors
from mcvd.evaluation.frechet import Moments, frechet_distance, frechet_infinity, kernel_distance
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.statistics import numbers
from mcvd.evaluation.table import Table


def normal(*shape, seed=0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.oracle
def test_frechet_equals_the_published_code(oracle_dir):
    vectors = load_file(oracle_dir / "metrics" / "frechet.safetensors")
    cases = json.loads((oracle_dir / "metrics" / "frechet.json").read_text())
    compared = 0
    for name, expected in cases.items():
        if "frechet" not in expected:
            continue
        real, fake = (Moments(vectors[f"{name}.{part}"]) for part in ("real", "fake"))
        # The published root of a singular product is itself good to about 1e-8.
        assert frechet_distance(real, fake) == pytest.approx(expected["frechet"], rel=1e-7, abs=1e-9), name
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize(("n", "m", "d"), [(50, 80, 8), (300, 200, 40)])
def test_frechet_equals_scipy(n, m, d):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    real, fake = normal(n, d), normal(m, d, seed=1, shift=0.3) * 1.5
    s1, s2 = (np.cov(x.numpy(), rowvar=False) for x in (real, fake))
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum().item() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert frechet_distance(Moments(real), Moments(fake)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_fewer_videos_than_features_is_exact():
    basis = torch.linalg.qr(normal(60, 60)).Q
    real, fake = normal(10, 5), normal(12, 5, seed=1, shift=1.0)
    inside = frechet_distance(Moments(real), Moments(fake))  # full rank in 5 dimensions, rank 5 of 60 after turning
    turned = frechet_distance(Moments(real @ basis[:5] + 100), Moments(fake @ basis[:5] + 100))
    assert turned == pytest.approx(inside, rel=1e-9)


def test_frechet_is_never_negative():
    """Rounding would make every other distance from itself so."""
    sets = [Moments(normal(30, 12, seed=seed, shift=5.0)) for seed in range(20)]
    assert all(0 <= frechet_distance(one, one) < 1e-9 for one in sets)


def test_moments_merge_in_any_order_save_and_load(tmp_path):
    features = normal(40, 12, shift=1000.0)
    whole = Moments(features)
    torch.testing.assert_close(whole.covariance(), torch.from_numpy(np.cov(features.numpy(), rowvar=False)))
    shards = [Moments(part) for part in features.split([3, 1, 20, 16])]
    other = Moments(normal(30, 12, seed=1, shift=1000.0))
    expected = frechet_distance(whole, other)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        merged = Moments().merge(*(shards[i] for i in order), Moments())
        assert merged.count == 40
        assert frechet_distance(merged, other) == pytest.approx(expected, abs=1e-6)
    whole.save(tmp_path / "real" / "moments.safetensors")
    assert frechet_distance(Moments.load(tmp_path / "real" / "moments.safetensors"), other) == expected
    with pytest.raises(McvdError, match="does not exist"):
        Moments.load(tmp_path / "nothing.safetensors")
    save_tensors({"mean": whole.mean}, tmp_path / "other.safetensors")
    with pytest.raises(McvdError, match="other.safetensors holds no statistics of features"):
        Moments.load(tmp_path / "other.safetensors")


def test_misuse_is_named():
    with pytest.raises(McvdError, match="at least 2 videos, there are 1"):
        frechet_distance(Moments(normal(1, 4)), Moments(normal(5, 4)))
    with pytest.raises(McvdError, match="4 and 5 numbers"):
        frechet_distance(Moments(normal(6, 4)), Moments(normal(6, 5)))
    with pytest.raises(McvdError, match="4 and 5 numbers"):
        Moments(normal(6, 4)).add(normal(6, 5))
    with pytest.raises(McvdError, match="over 4 features needs 16 fakes, not 15"):
        frechet_infinity(Moments(normal(6, 4)), normal(15, 4))
    with pytest.raises(McvdError, match="there are 1 and 5"):
        kernel_distance(normal(1, 4), normal(5, 4))


def test_infinity_removes_the_bias_of_few_fakes():
    real = Moments(normal(20000, 16))
    fake = normal(800, 16, seed=1)  # of the same distribution: the true distance is 0
    plain, extrapolated = frechet_distance(real, Moments(fake)), frechet_infinity(real, fake)
    assert plain > 0.1
    assert abs(extrapolated) < plain / 3
    assert extrapolated == frechet_infinity(real, fake)
    with torch.device("meta"):  # the default device, often a GPU, does not matter
        assert extrapolated == frechet_infinity(real, fake)


def test_kernel_distance_is_its_definition_and_unbiased():
    x, y = normal(7, 4), normal(5, 4, seed=1)

    def k(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within = [sum(k(a, b) for a in s for b in s if a is not b) / (len(s) * (len(s) - 1)) for s in (list(x), list(y))]
    expected = sum(within) - 2 * sum(k(a, b) for a in x for b in y) / 35
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    same = torch.tensor([kernel_distance(normal(20, 8, seed=2 * i), normal(20, 8, seed=2 * i + 1)) for i in range(300)])
    assert abs(same.mean().item()) < 3 * same.std().item() / 300**0.5
    assert kernel_distance(normal(50, 8), normal(50, 8, seed=1, shift=1.0)) > 10 * same.std().item()


def test_crps_is_its_definition():
    samples, truth = normal(5, 3, 2), normal(3, 2, seed=1)
    pairs = sum((samples[i] - samples[j]).abs() for i in range(5) for j in range(5)) / 20
    torch.testing.assert_close(crps(samples, truth), (samples - truth).abs().mean(0) - pairs / 2)
    torch.testing.assert_close(crps(truth.expand(4, 3, 2) + 0.25, truth), torch.full_like(truth, 0.25))
    with pytest.raises(McvdError, match="2 or more samples"):
        crps(samples[:1], truth)


def test_spread_skill_is_one_for_honest_samples_and_small_for_sure_ones():
    truth = 0.5 + 0.1 * normal(20, 2, 1, 16, 16)
    honest = 0.5 + 0.1 * normal(20, 4, 2, 1, 16, 16, seed=1)
    table, sure = Table(), Table()
    for rows in (range(10, 20), range(10)):  # shards, in any order
        table.add(list(rows), **calibration(honest[list(rows)], truth[list(rows)]))
    sure.add(range(20), **calibration(0.5 + (honest - 0.5) / 10, truth))
    assert spread_skill(table, 4).tolist() == pytest.approx([1.0, 1.0], abs=0.05)
    assert max(spread_skill(sure, 4).tolist()) < 0.2
    assert table.rows("crps").mean() < sure.rows("crps").mean()


def test_features_that_cannot_be_compared_are_named_and_those_that_are_no_numbers_are_nan():
    good = torch.rand(4, 3)
    for real, fake in ((good, good[:, :2]), (good[..., None], good[..., None])):
        with pytest.raises(McvdError, match="features"):
            kernel_distance(real, fake)
    with pytest.raises(McvdError, match=r"\(B, D\), not \(4, 3, 1\)"):
        Moments(good[..., None])
    assert math.isnan(frechet_distance(Moments(good), Moments(good * torch.nan)))


def test_numbers_of_features_that_are_no_numbers_have_no_interval_and_no_trajectories():
    table, protocol = Table(), Protocol("tiny", "noise", "generate", 0, 9, clips=6, samples=2, fvd="made")
    made = normal(6, 2, 3)
    made[4, 1, 0] = math.nan
    table.add(range(6), real=normal(6, 3))
    for sample in range(2):
        table.add(range(6), sample, features=made[:, sample])
    found, _ = numbers(table, protocol, ("fvd", "kvd"))
    assert found.keys() == {"fvd", "kvd"}
    assert all(math.isnan(number.value) and number.low is None for number in found.values())


@pytest.mark.parametrize("task", ["generate", "predict"])
def test_kvd_compares_videos_of_one_clip_in_generation_alone(task):
    protocol = Protocol("tiny", "noise", task, int(task == "predict"), 9, clips=6, samples=2, fvd="made")
    table, real, made = Table(), normal(6, 3), normal(6, 2, 3, seed=1)
    table.add(range(6), real=real)
    for sample in range(2):
        table.add(range(6), sample, features=made[:, sample])
    found = numbers(table, protocol, ("kvd",))[0]["kvd"]
    of_all = kernel_distance(real, made.flatten(0, 1))
    assert (found.value == pytest.approx(of_all)) == (task == "generate")
    assert found.of.endswith(", of other clips") == (task == "predict")


def test_the_mean_over_trajectories_is_in_float64():
    table, protocol = Table(), Protocol("tiny", "noise", "generate", 0, 9, clips=9, samples=3, fvd="made")
    real, made = normal(9, 4), normal(9, 3, 4, seed=1)
    table.add(range(9), real=real)
    for sample in range(3):
        table.add(range(9), sample, features=made[:, sample])
    each = [frechet_distance(Moments(real), Moments(made[:, sample])) for sample in range(3)]
    found = numbers(table, protocol, ("fvd",))[0]["fvd_trajectory"]
    assert found.value == pytest.approx(sum(each) / 3, rel=1e-13)
