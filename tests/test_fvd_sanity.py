"""FVD on real clips orders what an eye orders (small scale of benchmarks/fvd_sanity.py)."""

import sys
from pathlib import Path

import pytest
import torch

from mcvd.evaluation import i3d

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from fvd_sanity import cut_clips, distances


@pytest.mark.slow
def test_fvd_orders_halves_wrong_order_and_noise(assets_dir):
    clips = cut_clips(assets_dir / "sequences" / "smmnist_real.npz", 10, most=12)
    network = i3d.load(assets_dir)
    found = distances(lambda videos: network.features(videos, 4), clips, splits=10)
    assert found.in_order() == 10
    means = {name: sum(values) / len(values) for name, values in found.kvd.items()}
    assert abs(means["as they are"]) < 0.5 * min(means["wrong order"], means["noise"])


def test_kvd_of_random_halves_is_0_on_average():
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    found = distances(
        lambda videos: features[: len(videos)], torch.zeros(8, 2, 1, 2, 2, dtype=torch.uint8), splits=3000
    )
    values = torch.tensor(found.kvd["as they are"])
    assert values.min() < 0 < values.max()
    assert abs(float(values.mean())) < 3 * float(values.std()) / len(values) ** 0.5
