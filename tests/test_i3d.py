"""I3D against published values, its parts against torch's own 3-D operators, and FVD on real clips."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mcvd.errors import McvdError
from mcvd.evaluation import i3d
from mcvd.evaluation.frechet import Moments, frechet_distance, kernel_distance


@pytest.fixture(scope="module")
def network(assets_dir):
    return i3d.load(assets_dir)


@pytest.mark.parametrize(
    ("frames", "expected", "tolerance"),
    [(10, 569.77, 0.57), (11, 486.75, 0.49), (12, 552.77, 0.55), (16, 152.902, 0.15), (30, 151.392, 0.01)],
)
def test_black_and_white_are_as_far_apart_as_published(network, frames, expected, tolerance):
    clips = torch.stack([torch.zeros(frames, 3, 224, 224), torch.ones(frames, 3, 224, 224)])
    black, white = network(clips)
    assert (black - white).square().sum().item() == pytest.approx(expected, abs=tolerance)


def test_features_do_not_depend_on_types_or_on_autocast(network, assets_dir):
    clips = torch.rand(1, 9, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = network.features(clips)
    assert torch.allclose(network.features(clips.double()), expected, atol=1e-5)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(i3d.load(assets_dir).features(clips), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.features(clips), expected)
    with pytest.raises(McvdError, match=r"must lie in \[0, 1\]"):
        network.features(255 * clips)
    with pytest.raises(McvdError, match=r"\(B, T, C, H, W\), C 1 or 3, not \(9, 1, 32, 32\)"):
        network.features(clips[0])
    with pytest.raises(McvdError, match=r"not \(2, 9, 32, 32, 3\)"):  # numpy's order
        network.features(torch.rand(2, 9, 32, 32, 3))


@pytest.mark.parametrize(("frames", "size", "stride"), [(5, 3, 1), (2, 3, 1), (1, 3, 1), (10, 7, 2), (11, 7, 2)])
@pytest.mark.parametrize("height", [14, 15])
def test_convolution_and_pooling_equal_3d_operators(frames, size, stride, height):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, frames, height, 16, 4, generator=generator)
    kernel, bias = torch.randn(6, 4, size, size, size, generator=generator), torch.randn(6, generator=generator)
    sides = [i3d.same_padding(n, size, stride) for n in x.shape[1:4]]
    padding = [amount for side in reversed(sides) for amount in side]
    ours = i3d.TapsConv(4, 6, size, stride)
    ours.load_state_dict({"weight": kernel.transpose(1, 2).flatten(1, 2), "bias": bias})
    plain = x.permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        made = ours(x, then=lambda y: y)
    expected = F.conv3d(F.pad(plain, padding), kernel, bias, stride)
    torch.testing.assert_close(made, expected.permute(0, 2, 3, 4, 1), atol=1e-4, rtol=1e-4)
    window = min(size, 3)
    sides = [i3d.same_padding(n, window, stride) for n in x.shape[1:4]]
    padding = [amount for side in reversed(sides) for amount in side]
    expected = F.max_pool3d(F.pad(plain, padding, value=-torch.inf), window, stride).permute(0, 2, 3, 4, 1)
    assert torch.equal(i3d.max_pool(x, (window,) * 3, (stride,) * 3), expected)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_winograd_equals_the_direct_convolution(frames):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, frames, 28, 32, 64, generator=generator)
    kernel, bias = torch.randn(8, 64, 3, 3, 3, generator=generator), torch.randn(8, generator=generator)
    ours = i3d.TapsConv(64, 8, 3)
    ours.load_state_dict({"weight": kernel.transpose(1, 2).flatten(1, 2), "bias": bias})
    assert ours._by_winograd(x)
    with torch.no_grad():
        made = ours(x, then=lambda y: y)
    expected = F.conv3d(x.permute(0, 4, 1, 2, 3).double(), kernel.double(), bias.double(), padding=1)
    error = (made - expected.permute(0, 2, 3, 4, 1)).abs().max() / expected.std()
    assert error < 2e-4


@pytest.mark.oracle
def test_resize_equals_the_published_preprocessing(oracle_dir):
    vectors = load_file(oracle_dir / "metrics" / "frechet.safetensors")
    frames = vectors["preprocess.in"].transpose(0, 1)[None]  # (C, T, H, W) in the file
    made = (2 * i3d.resize(frames) - 1)[0].transpose(0, 1)
    assert made.shape == (3, 2, 224, 224)
    torch.testing.assert_close(made[..., ::7, ::7], vectors["preprocess.out_every7"], atol=1e-6, rtol=0)


def test_resize_repeats_grey_and_takes_8_bit():
    video = torch.randint(0, 256, (1, 2, 1, 20, 30), dtype=torch.uint8)
    made = i3d.resize(video)
    assert made.shape == (1, 2, 3, 224, 224)
    assert torch.equal(made[:, :, 0], made[:, :, 2])
    assert torch.equal(made, i3d.resize(video / 255))


def test_wrong_clips_are_named(network):
    with pytest.raises(McvdError, match=r"not \(1, 10, 3, 64, 64\); see i3d.resize"):
        network(torch.rand(1, 10, 3, 64, 64))
    with pytest.raises(McvdError, match="at least 9 frames, these have 8"):
        network(torch.rand(1, 8, 3, 224, 224))
    assert network(torch.rand(0, 10, 3, 224, 224)).shape == (0, 400)


@pytest.fixture(scope="module")
def features(network, assets_dir):
    """Of 8 real clips of 10 frames each: of two people, of two others, these with frames shuffled, and with noise."""
    with np.load(assets_dir / "sequences" / "actions64.npz") as sequences:
        clips = {key: torch.from_numpy(sequences[key][5:15]).permute(0, 3, 1, 2) / 255 for key in sequences.files}
    generator = torch.Generator().manual_seed(0)
    half, other = (
        torch.stack([clips[key] for key in sorted(clips) if key.startswith(people)])
        for people in (("person0", "person2"), ("person1", "person3"))
    )
    shuffled = torch.stack([clip[torch.randperm(10, generator=generator)] for clip in other])
    noisy = (other + 0.1 * torch.randn(other.shape, generator=generator)).clamp(0, 1)
    sets = {"half": half, "other": other, "shuffled": shuffled, "noisy": noisy}
    return {name: network.features(videos) for name, videos in sets.items()}


def test_fvd_orders_real_clips(features):
    real = Moments(features["half"])
    other, shuffled, noisy = (frechet_distance(real, Moments(features[k])) for k in ("other", "shuffled", "noisy"))
    assert 1.2 * other < shuffled < noisy / 1.2
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    kernels = [kernel_distance(features["half"], features[name]) for name in ("other", "shuffled", "noisy")]
    assert kernels == sorted(kernels)


def test_kvd_of_random_halves_of_real_clips_is_zero_in_the_mean(features):
    real = torch.cat([features["half"], features["other"]])
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(400):
        order = torch.randperm(16, generator=generator)
        values.append(kernel_distance(real[order[:8]], real[order[8:]]))
    spread = torch.tensor(values)
    assert abs(spread.mean().item()) < 3 * spread.std().item() / 20  # three standard errors


def test_merging_shards_in_any_order_gives_the_same_fvd(features):
    real, fake = Moments(features["half"]), torch.cat([features["other"], features["noisy"]])
    whole = frechet_distance(real, Moments(fake))
    shards = [Moments(part) for part in fake.split([5, 1, 4, 6])]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        merged = Moments().merge(*(shards[i] for i in order))
        assert frechet_distance(real, merged) == pytest.approx(whole, abs=1e-6)
