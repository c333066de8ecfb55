"""FVD on real clips orders what an eye orders (small scale of benchmarks/fvd_sanity.py)."""

import sys
from pathlib import Path

import pytest

from mcvd.evaluation import i3d

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from fvd_sanity import cut_clips, distances


@pytest.mark.slow
def test_fvd_orders_halves_wrong_order_and_noise(assets_dir):
    clips = cut_clips(assets_dir / "sequences" / "smmnist_real.npz", 10, most=12)
    network = i3d.load(assets_dir)
    found = distances(lambda videos: network.features(videos, 4), clips)
    assert found.fvd["as it is"] < found.fvd["shuffled"] < found.fvd["noisy"]
    assert abs(found.kvd["as it is"]) < min(found.kvd["shuffled"], found.kvd["noisy"])
