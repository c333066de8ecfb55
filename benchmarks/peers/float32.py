"""This package with PyTorch in float32, a peer of itself: what `--precision` or `--engine` gain."""

from mcvd.benchmark import ours

NOTE = "this package, float32"


def build(config, state_dict):
    """All cases, by default settings."""
    return ours.implementation().build(config, state_dict)
