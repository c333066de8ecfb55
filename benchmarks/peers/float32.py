"""This package with PyTorch in float32, as a peer of itself: shows what `--precision` or `--engine` gains."""

from mcvd.benchmark import ours

NOTE = "this package, float32"


def build(config, state_dict):
    """All cases, with default settings."""
    return ours.implementation().build(config, state_dict)
