"""LPIPS against the published calibration pairs."""

import numpy as np
import pytest
import torch
from PIL import Image

from mcvd.errors import McvdError
from mcvd.evaluation import lpips
from mcvd.evaluation.published_frames import published_lpips

PAIRS = {
    ("ref-I03.bmp", "dist-I03.bmp"): 0.7237,
    ("ref-I04.bmp", "dist-I04.bmp"): 0.2572,
    ("ref-I06.bmp", "dist-I06.bmp"): 0.0508,
    ("ref-I08.bmp", "dist-I08.bmp"): 0.0520,
    ("ref-I19.bmp", "dist-I19.bmp"): 0.4253,
    ("ex_ref.png", "ex_p0.png"): 0.7219,
    ("ex_ref.png", "ex_p1.png"): 0.1376,
}


@pytest.fixture(scope="module")
def network(assets_dir):
    return lpips.load(assets_dir)


@pytest.mark.parametrize(("pair", "expected"), PAIRS.items(), ids=[pair[1] for pair in PAIRS])
def test_calibration_pairs(network, assets_dir, pair, expected):
    pictures = [np.asarray(Image.open(assets_dir / "lpips_calibration" / name).convert("RGB")) for name in pair]
    a, b = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] for picture in pictures)
    assert network(a / 255, b / 255).item() == pytest.approx(expected, abs=2e-4)
    assert network(a, b).item() == pytest.approx(expected, abs=2e-4)  # uint8 is the same


def test_chunks_and_grey_change_nothing(network):
    a, b = torch.rand(2, 5, 1, 40, 33, generator=torch.Generator().manual_seed(0))
    whole = network(a, b)
    assert whole.shape == (5,)
    assert network(b, a, chunk=2).tolist() == pytest.approx(whole.tolist(), abs=1e-6)
    assert network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).tolist() == pytest.approx(whole.tolist(), abs=1e-6)
    assert network(a, a).tolist() == [0.0] * 5


def test_bytes_beside_floats_and_all_float_types_mean_the_same(network, assets_dir):
    a, b = torch.randint(0, 256, (2, 2, 3, 40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = network(a, b)
    for x, y in ((a, b / 255), (a / 255, b), (a.double() / 255, b.double() / 255)):
        assert torch.allclose(network(x, y), expected, atol=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(lpips.load(assets_dir)(a, b), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(a, b), expected)
    with pytest.raises(McvdError, match=r"must lie in \[0, 1\]; this has values from 0 to 255"):
        network(a.float(), b.float())


def test_wrong_shapes_are_named(network):
    for a, b in ((torch.rand(2, 3, 16, 16),) * 2, (torch.rand(2, 2, 64, 64),) * 2, (torch.rand(2, 3, 64, 64),) * 2):
        with pytest.raises(McvdError, match=r"\(B, 3, H, W\)"):
            network(a, b[:1])


def test_the_published_mode_compares_resized_8_bit_pictures(network):
    a, b = torch.rand(2, 2, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0))  # 2 videos of 3 frames
    distances = published_lpips(network, a, b)
    assert distances.shape == (2, 3)
    pictures = [Image.fromarray((video[1, 2, 0].numpy() * 255).astype(np.uint8)) for video in (a, b)]
    large = [np.asarray(p.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)).copy() for p in pictures]
    x, y = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in large)
    assert distances[1, 2].item() == pytest.approx(network(x, y).item(), abs=1e-6)
    assert not torch.allclose(distances, published_lpips(network, a, b, size=None))
