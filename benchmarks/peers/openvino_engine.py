"""This package with its engine `openvino`, as a peer of itself with PyTorch: what the compiler gains on a CPU."""

from mcvd.benchmark import ours

NOTE = "this package, engine openvino"


def build(config, state_dict):
    """Network calls and sampling; training is PyTorch's in any case."""
    callables = ours.implementation(engine="openvino").build(config, state_dict)
    return {name: callables[name] for name in ("network", "sample")}
