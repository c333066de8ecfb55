"""The contract of an implementation to be measured, and the loader of a peer's FILE.py.

FILE.py defines ``build(config, state_dict)`` and may define ``NOTE``, a line that describes it and is printed beside
its figures.

config: :class:`mcvd.model.ModelConfig`. `config.network` is the shape of the network; it predicts eps, and counts time
    as the published weights do: 0 is the noisiest level (`config.time_from_noise`).
state_dict: the weights in float32 under the published names and in the published shapes
    (``unet.all_modules.<i>. ...``, see :mod:`mcvd.interop.official`), on the device to be measured.

`build` returns a dictionary with any of the following; cases that an implementation lacks are left out for it.
Frames are float32 ``(B, frames, C, H, W)`` of B clips; clean ones are in [-1, 1].

``"network"``: ``(past, future) -> call``, and ``call(x, time) -> eps``: one network call in evaluation mode, without
    gradients. past ``(B, p, C, H, W)``, future ``(B, f, C, H, W)``, x and eps ``(B, k, C, H, W)``, time ``(B,)`` long.
    Whatever depends only on past and future may be computed before the call: it is not part of the call's time, but is
    part of sampling's.
``"sample"``: ``(past, future, x, noise, steps, calls) -> state``: the first `calls` network calls of DDPM with `steps`
    steps (every (T // steps)-th level from the noisiest on; x0_hat clipped to [-1, 1]), from start noise x
    ``(B * samples, k, C, H, W)``, the samples of a clip one after another; past and future have B rows. ``noise()``
    gives fresh noise shaped like x; it is called at the end of every step except the very last, and marks the time
    of a step. Returns the state after that many calls, noise included, ``(B * samples, k, C, H, W)``.
``"train_step"``: ``(video, draw) -> loss``: one complete step on uint8 video ``(B, p + k + f, C, H, W)`` with the
    random numbers of `draw` (:class:`mcvd.model.Draw`; its t is 0 at the cleanest level): the mean over clips of half
    the squared error summed over a clip, backward, gradient clipped to norm 1, Adam (rate 2e-4, 0.9, 0.999, 1e-8, no
    decay), average of the weights with decay 0.999; dropout as in `config.network.dropout`. Returns the loss before the
    step. After it has been called, the others are not called again.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mcvd.errors import McvdError
from mcvd.model import ModelConfig
from mcvd.text import described

LEARNING_RATE, GRADIENT_CLIP, EMA_DECAY = 2e-4, 1.0, 0.999
OFFERS = ("network", "sample", "train_step")

Callables = Mapping[str, Callable[..., Any]]
Build = Callable[[ModelConfig, dict[str, Tensor]], Callables]


@dataclass(frozen=True)
class Implementation:
    """An implementation that can be measured."""

    name: str
    note: str
    build: Build


def load_peer(path: Path) -> Implementation:
    """The implementation in FILE.py, named after the file. Raises McvdError if there is none."""
    if not path.is_file():
        raise McvdError(f"--peer {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"mcvd_peer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise McvdError(f"--peer {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up there
    with _blamed(path, "cannot be imported"):
        spec.loader.exec_module(module)
    build = getattr(module, "build", None)
    if not callable(build):
        raise McvdError(f"--peer {path} defines no build(config, state_dict)")
    return Implementation(path.stem, str(getattr(module, "NOTE", "")), _held_to_contract(path, build))


@contextmanager
def _blamed(path: Path, what: str) -> Iterator[None]:
    """Whatever a peer's code raises, including `sys.exit`, becomes one line that names its file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise McvdError(f"--peer {path}: {what}: {described(error)}") from error


def _held_to_contract(path: Path, build: Build) -> Build:
    """`build`, with the contract checked on it and on what it returns, where checks cost no time."""

    def tensor_of(what: str, function: Callable[..., Any]) -> Callable[..., Tensor]:
        def call(*given: Any) -> Tensor:
            with _blamed(path, f"{what} failed"):
                out = function(*given)
            if not isinstance(out, Tensor):
                raise McvdError(f"--peer {path}: {what} returns {type(out).__name__}; it must return a tensor")
            return out

        return call

    def checked(config: ModelConfig, state_dict: dict[str, Tensor]) -> Callables:
        with _blamed(path, "build failed"):
            offered = build(config, state_dict)
        if not isinstance(offered, Mapping):
            raise McvdError(f"--peer {path}: build returns {type(offered).__name__}; it must return a dictionary")
        if unknown := offered.keys() - set(OFFERS):
            raise McvdError(f"--peer {path}: build offers {min(unknown, key=str)}; it may offer {', '.join(OFFERS)}")
        out = {name: tensor_of(name, function) for name, function in offered.items()}

        def network(past: Tensor, future: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
            with _blamed(path, "network failed"):
                call = offered["network"](past, future)
            return tensor_of("network's call", call)

        def sample(
            past: Tensor, future: Tensor, x: Tensor, noise: Callable[[], Tensor], steps: int, calls: int
        ) -> Tensor:
            asked: list[None] = []

            def counted() -> Tensor:
                asked.append(None)
                return noise()

            state = out["sample"](past, future, x, counted, steps, calls)
            if len(asked) != calls < steps:  # its calls time the steps
                found = f"called noise() {len(asked)} times in {calls} steps"
                raise McvdError(f"--peer {path}: sample {found}; it must call it at the end of every step")
            return state

        return out | {name: f for name, f in (("network", network), ("sample", sample)) if name in offered}

    return checked
