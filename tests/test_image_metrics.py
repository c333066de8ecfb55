"""PSNR and SSIM against their definitions and scikit-image's published values."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mcvd.evaluation.image import psnr, ssim


def test_psnr_is_that_of_the_mean_error_over_all_frames():
    truth = torch.zeros(2, 4, 1, 16, 16)
    video = truth.clone()
    video[0, 0] = 1.0  # one of four frames is wholly wrong: mean squared error 1/4
    video[1] = 0.1
    assert psnr(video, truth).tolist() == pytest.approx([6.0206, 20.0], abs=1e-4)


def test_ssim_of_equal_frames_is_one_and_of_noise_is_small():
    frame = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(frame, frame).tolist() == pytest.approx([1.0] * 3)
    assert ssim(frame, frame.roll(1, 0)).max() < 0.2


def test_ssim_equals_scikit_image():
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x, y = torch.rand(2, 2, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    for a, b, mine in zip(x, y, ssim(x, y)):
        theirs = skimage.structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
        )
        assert float(mine) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.oracle
def test_psnr_equals_the_published_protocol(oracle_dir):
    videos = load_file(oracle_dir / "metrics" / "image_metrics.safetensors")
    published = json.loads((oracle_dir / "metrics" / "image_metrics.json").read_text())
    compared = 0
    for name, expected in published.items():
        if f"{name}.real" not in videos or expected.get("preds_per_test") != 1 or "vid_psnr" not in expected:
            continue
        real, made = (videos[f"{name}.{part}"].unflatten(1, (-1, expected["channels"])) for part in ("real", "pred"))
        assert psnr(made, real).tolist() == pytest.approx(expected["vid_psnr"], abs=2e-4), name
        compared += 1
    assert compared >= 2
