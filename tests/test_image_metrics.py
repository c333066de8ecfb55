"""PSNR, SSIM and MSE against their definitions, scikit-image and the published protocol; the table that keeps them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mcvd.errors import McvdError
from mcvd.evaluation.image import mse, psnr, ssim
from mcvd.evaluation.published_frames import grey, published_ssim, through_network_range, to_uint8
from mcvd.evaluation.table import Table


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


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
def test_uint8_and_float_are_compared_as_what_they_show(metric):
    x, y = torch.randint(0, 256, (2, 2, 3, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = metric(x / 255, y / 255)
    for a, b in ((x, y), (x, y / 255), (x / 255, y), (x.double() / 255, y)):
        assert torch.allclose(metric(a, b), expected, atol=1e-6)
    for wrong in (x.float(), x / 127.5 - 1, x.long(), x.numpy()):
        with pytest.raises(McvdError, match="a video is|must lie in"):
            metric(wrong, y)
    diverged = x.float()
    diverged[0] = torch.nan  # which does not excuse the others
    with pytest.raises(McvdError, match="must lie in"):
        metric(diverged, y)
    assert metric(y / 255 * torch.nan, x).isnan().all()  # a model that makes no numbers has a value: none


def test_samples_are_compared_with_one_truth_but_no_shapes_are_guessed():
    x, y = torch.rand(4, 3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    for metric in (mse, psnr, ssim):
        assert torch.allclose(metric(x, y)[1], metric(x[1], y))
        for wrong in (y[..., :1], y.expand(3, 3, 16, 16), x[:2], y[0, 0]):
            with pytest.raises(McvdError, match="must have one shape, not"):
                metric(x, wrong)
    with pytest.raises(McvdError, match="T, C, H, W"):
        psnr(x, y[:1])


def test_ssim_equals_scikit_image():
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x, y = torch.rand(2, 2, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    for a, b, mine in zip(x, y, ssim(x, y)):
        theirs = skimage.structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
        )
        assert float(mine) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.oracle
def test_everything_equals_the_published_protocol(oracle_dir):
    videos = load_file(oracle_dir / "metrics" / "image_metrics.safetensors")
    published = json.loads((oracle_dir / "metrics" / "image_metrics.json").read_text())
    compared = 0
    for name, expected in published.items():
        if f"{name}.real" not in videos:
            continue
        real, made = (videos[f"{name}.{part}"].unflatten(1, (-1, expected["channels"])) for part in ("real", "pred"))
        binary = "MNIST" in expected["dataset"].upper()
        assert psnr(made, real).tolist() == pytest.approx(expected["vid_psnr"], abs=2e-4), name

        samples, table = expected["preds_per_test"], Table()
        for i in reversed(range(len(real))):  # one video at a time, in any order
            values = {"mse": mse(made[i], real[i])[None], "ssim": published_ssim(made[i], real[i], binary)[None]}
            table.add([i // samples], [i % samples], **values)
        for metric in ("mse", "psnr", "ssim"):
            exact = {"abs": 1e-6, "rel": 2e-6}
            assert table.per_video(metric).flatten().tolist() == pytest.approx(expected[f"vid_{metric}"], **exact), name
            summary = table.summary(metric)
            assert summary.count == len(real) // samples
            if summary.std == 0:  # the published interval of equal values is not a number; ours is 0
                expected[f"conf95_{metric}"] = 0.0
            assert [summary.mean, summary.std, summary.conf95] == pytest.approx(
                [expected[f"{part}_{metric}"] for part in ("avg", "std", "conf95")], abs=2e-6, rel=1e-5
            ), (name, metric)
        compared += 1
    assert compared >= 8


def test_published_frames_lose_a_grey_level_on_the_way_through_the_network_range():
    levels = torch.arange(256, dtype=torch.uint8)
    real = through_network_range(levels)
    lost = levels.int() - to_uint8(real).int()
    assert lost.unique().tolist() == [0, 1]
    assert lost.sum() == 63
    assert torch.equal(through_network_range(real), real)
    assert to_uint8(torch.tensor([0.49, 0.51, 1.2]), binary=True).tolist() == [0, 255, 255]


def test_grey_equals_pillow():
    frames = torch.randint(0, 256, (2, 3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for frame, made in zip(frames.flatten(0, 1), grey(frames).flatten(0, 1)):
        assert np.array_equal(Image.fromarray(frame.permute(1, 2, 0).numpy()).convert("L"), made[0])


def table_of(clips, samples, frames=3):
    """A full table and its rows as shards."""
    generator = torch.Generator().manual_seed(0)
    shards = []
    for clip in range(clips):
        for sample in range(samples):
            mse_, ssim_ = torch.rand(2, 1, frames, generator=generator, dtype=torch.float64)
            shards.append(Table())
            shards[-1].add([clip], [sample], mse=mse_, ssim=ssim_)
    return Table().merge(*shards), shards


def test_best_is_chosen_for_each_metric_by_itself():
    table, _ = table_of(4, 3)
    error, index = table.grid("mse").mean(-1), table.grid("ssim").mean(-1)
    assert table.summary("mse").mean == pytest.approx(error.amin(1).mean().item())
    assert table.summary("ssim").mean == pytest.approx(index.amax(1).mean().item())
    assert table.summary("psnr").mean == pytest.approx((-10 * error.amin(1).log10()).mean().item())
    assert table.summary("ssim", over="mean").mean == pytest.approx(index.mean().item())
    assert table.rows("ssim", sample=1).shape == (4, 3)


def test_tables_merge_in_any_order_and_survive_a_restart(tmp_path):
    whole, shards = table_of(4, 2)
    order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(1)).tolist()
    half = Table().merge(*(shards[i] for i in order[:4]))
    half.save(tmp_path / "table.safetensors")
    resumed = Table.load(tmp_path / "table.safetensors")
    assert list(resumed) == sorted(list(whole)[i] for i in order[:4])
    assert (3, 1) in whole
    with pytest.raises(McvdError, match="not every one of"):
        resumed.grid("mse")
    resumed.merge(*(shards[i] for i in order))  # rows that are there already are no harm
    assert len(resumed) == 8
    for metric in ("mse", "psnr", "ssim"):
        assert resumed.summary(metric) == whole.summary(metric)


def test_a_table_refuses_contradictions_and_missing_columns(tmp_path):
    table, _ = table_of(2, 1)
    with pytest.raises(McvdError, match="clip 1, sample 0 was measured twice with different mse"):
        table.add([1], mse=torch.zeros(1, 3))
    with pytest.raises(McvdError, match="2 values for 1 clips"):
        table.add([1], lpips=torch.zeros(2, 3))
    table.add([0], lpips=torch.zeros(1, 3))
    with pytest.raises(McvdError, match="lpips of clip 1, sample 0 was not measured"):
        table.summary("lpips")
    with pytest.raises(McvdError, match="mse was not measured"):
        Table().rows("mse")
    (tmp_path / "damaged").write_bytes(b"12345678901234567890")
    with pytest.raises(McvdError, match="damaged cannot be read"):
        Table.load(tmp_path / "damaged")
