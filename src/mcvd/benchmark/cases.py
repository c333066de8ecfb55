"""What is measured: a network call, the sampling of a block, a training step. Inputs are random, from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mcvd.benchmark.measure import Laps
from mcvd.benchmark.peer import Callables
from mcvd.errors import McvdError
from mcvd.interop.official import to_official
from mcvd.layout import BlockLayout
from mcvd.model import Draw, ModelConfig, VideoDiffusion
from mcvd.networks.blocks import scaled_uniform_
from mcvd.networks.config import UNetConfig
from mcvd.training.estimate import estimate
from mcvd.training.recipe import Recipe
from mcvd.training.recorded import WARM

Offered = Callable[..., Any]
Parts = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Setting:
    """Everything that a row of the table depends on, besides machine and implementation."""

    recipe: str
    """Name in the table."""
    model: ModelConfig
    batch: int = 1
    """Clips at once."""
    samples: int = 1
    """Sampling: samples per clip."""
    solver_steps: int = 100
    """Sampling: DDPM steps in total."""
    timed_steps: int = 5
    """Sampling: steps that are run; the rest are extrapolated (see `Sampling`)."""

    def __post_init__(self) -> None:
        if self.model.noisy_condition:
            raise McvdError(f"{self.recipe}: a network with noisy_condition is not measured; set it to false in a copy")
        if not 2 <= self.timed_steps <= self.solver_steps:
            raise McvdError(f"{self.timed_steps} timed steps of {self.solver_steps}: time at least 2, and at most all")

    @property
    def layout(self) -> BlockLayout:
        """Past, current and future frames."""
        return self.model.network.layout

    def frames(self, count: int, rows: int, generator: torch.Generator) -> Tensor:
        """Clean frames ``(rows, count, C, H, W)`` in [-1, 1], float32, on the CPU."""
        network = self.model.network
        return torch.rand(rows, count, network.channels, *network.size, generator=generator) * 2 - 1

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """N(0, I), shaped like the current frames."""
        network = self.model.network
        return torch.randn(rows, self.layout.current, network.channels, *network.size, generator=generator)


def setting_model(config: ModelConfig, size: int | None = None) -> ModelConfig:
    """A recipe's model as it is measured: what the network predicts and how it is told the noise level, which cost no
    time, are as in published models (see `mcvd.benchmark.peer`). size: other pixels per side."""
    network: UNetConfig = config.network if size is None else replace(config.network, size=(size, size))
    schedule = replace(config.schedule, zero_terminal=False)
    published = replace(config, prediction="eps", schedule=schedule, context_noise=0.0, time_from_noise=True)
    return replace(published, network=network)


@torch.no_grad()
def random_weights(config: ModelConfig, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Weights under the published names. Unlike in training, none is near zero, which would hide differences."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoDiffusion(config)
        for weight in model.network.parameters():
            if weight.dim() > 1 and weight.abs().max() < 1e-3:
                scaled_uniform_(weight)
            elif weight.dim() == 1:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return {name: value.clone().to(device).contiguous() for name, value in to_official(model.network).items()}


class Case(Protocol):
    """A kind of row."""

    name: str
    offer: str
    """The contract's name for what is called."""

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """The functions that are timed, each once per round, by name."""

    def seconds(self, parts: Mapping[str, float], setting: Setting) -> float:
        """The total time from the times of the parts."""

    def flops(self, setting: Setting) -> int:
        """Total operations by the network's definition (a multiply-add is 2), however they are computed."""

    def frames(self, setting: Setting) -> int:
        """Frames generated or trained on in total."""

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """Output that must be equal for all implementations."""


def untimed(case: Case, device: torch.device) -> int:
    """Calls until all later ones cost the same: the first, which compiles and gets memory; in training on a GPU, those
    until the step is recorded (:mod:`mcvd.training.recorded`)."""
    return WARM + 1 if case.name == TrainingStep.name and device.type == "cuda" else 1


def forward_flops(config: ModelConfig, batch: int, conditions: int) -> tuple[int, int]:
    """Operations of one network call for `batch` rows, and of encoding that many conditions; on meta tensors."""
    with torch.device("meta"):
        model = VideoDiffusion(config).eval()
        c = config.network
        past, current, future = (
            torch.empty(rows, n, c.channels, *c.size)
            for rows, n in ((conditions, c.layout.past), (batch, c.layout.current), (conditions, c.layout.future))
        )
        with torch.no_grad(), FlopCounterMode(display=False) as encode:
            condition = model.network.encode(past, future)
        condition = condition.take(torch.zeros(batch, dtype=torch.long))
        with torch.no_grad(), FlopCounterMode(display=False) as call:
            model.network(current, torch.zeros(batch, dtype=torch.long), condition)
    return call.get_total_flops(), encode.get_total_flops()


class NetworkCall:
    """One network call on all rows at once; what depends only on the condition is computed beforehand."""

    name, offer = "network", "network"

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """`call`."""
        generator = torch.Generator().manual_seed(1)
        past = setting.frames(setting.layout.past, setting.batch, generator).to(device)
        future = setting.frames(setting.layout.future, setting.batch, generator).to(device)
        x = setting.noise(setting.batch, generator).to(device)
        # one time number for all rows, as in sampling
        time = torch.randint(setting.model.schedule.steps, (1,), generator=generator).expand(setting.batch).to(device)
        call = offered(past, future)
        return {"call": lambda: call(x, time)}

    def seconds(self, parts: Mapping[str, float], setting: Setting) -> float:
        """The call."""
        return parts["call"]

    def flops(self, setting: Setting) -> int:
        """Of the call, without encoding the condition."""
        return forward_flops(setting.model, setting.batch, setting.batch)[0]

    def frames(self, setting: Setting) -> int:
        """Current frames."""
        return setting.batch * setting.layout.current

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """The output."""
        return self.parts(build(setting.model)[self.offer], setting, device)["call"]().float()


class Sampling:
    """All current frames of a block by DDPM, including encoding of the condition.

    Every step but the first costs the same; the first includes whatever is done once per block. The first `timed_steps`
    are run, and the total is their time plus (solver_steps - timed_steps) times the median of these steps without the
    first. With timed_steps = solver_steps, everything is timed.
    """

    name, offer = "sampling", "sample"

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """`steps`; if not all are timed, also the time of a step, as `steps/lap`."""
        generator = torch.Generator().manual_seed(2)
        past = setting.frames(setting.layout.past, setting.batch, generator).to(device)
        future = setting.frames(setting.layout.future, setting.batch, generator).to(device)
        rows = setting.batch * setting.samples
        x, *noises = (setting.noise(rows, generator).to(device) for _ in range(5))

        def run(done: Callable[[], None] | None) -> Tensor:
            fresh: Iterator[Tensor] = chain.from_iterable(repeat(noises))

            def noise() -> Tensor:  # the last thing that a step asks for
                if done is not None:
                    done()
                return next(fresh)

            return offered(past, future, x, noise, setting.solver_steps, setting.timed_steps)

        whole = setting.timed_steps == setting.solver_steps
        return {"steps": (lambda: run(None)) if whole else Laps(run, device)}

    def seconds(self, parts: Mapping[str, float], setting: Setting) -> float:
        """See the class."""
        return parts["steps"] + (setting.solver_steps - setting.timed_steps) * parts.get("steps/lap", 0.0)

    def flops(self, setting: Setting) -> int:
        """Conditions are encoded once per clip and block."""
        call, encode = forward_flops(setting.model, setting.batch * setting.samples, setting.batch)
        return setting.solver_steps * call + encode

    def frames(self, setting: Setting) -> int:
        """Generated frames."""
        return setting.batch * setting.samples * setting.layout.current

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """The state after the timed steps."""
        return self.parts(build(setting.model)[self.offer], setting, device)["steps"]().float()


class TrainingStep:
    """Forward, backward, gradient clipping, Adam and weight averaging."""

    name, offer = "training", "train_step"
    CHECKED_CLIPS, CHECKED_STEPS = 2, 3

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """`step`."""
        generator = torch.Generator().manual_seed(3)
        video = setting.frames(setting.layout.frames, setting.batch, generator)
        video = ((video + 1) * 127.5).round().to(torch.uint8).to(device)
        seen = torch.ones(setting.batch, dtype=torch.bool)
        time = torch.randint(setting.model.schedule.steps, (setting.batch,), generator=generator)
        draw = Draw(*(x.to(device) for x in (seen, seen, time, setting.noise(setting.batch, generator))))
        return {"step": lambda: offered(video, draw)}

    def seconds(self, parts: Mapping[str, float], setting: Setting) -> float:
        """The step."""
        return parts["step"]

    def flops(self, setting: Setting) -> int:
        """Forward, and twice that for backward; the few of the optimizer are not counted."""
        return estimate(Recipe(model=setting.model, batch=setting.batch)).flops * setting.batch

    def frames(self, setting: Setting) -> int:
        """Frames of the clips."""
        return setting.batch * setting.layout.frames

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """Losses per element of the first steps on few clips, which covers gradients and updates; without dropout,
        whose random numbers differ between implementations."""
        network = replace(setting.model.network, dropout=0.0)
        few = replace(
            setting, model=replace(setting.model, network=network), batch=min(setting.batch, self.CHECKED_CLIPS)
        )
        step = self.parts(build(few.model)[self.offer], few, device)["step"]
        elements = few.layout.current * network.channels * network.size[0] * network.size[1]
        steps = untimed(self, device) - 1 + self.CHECKED_STEPS  # some of them as they will be timed
        return torch.stack([step().detach().float().cpu() / elements for _ in range(steps)])


CASES: dict[str, Case] = {case.name: case for case in (NetworkCall(), Sampling(), TrainingStep())}
