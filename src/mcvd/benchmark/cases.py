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
from mcvd.networks.unet import UNetConfig
from mcvd.training.estimate import estimate
from mcvd.training.recipe import Recipe

Offered = Callable[..., Any]
Parts = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Setting:
    """Everything that a row of the table depends on, beside the machine and the implementation."""

    recipe: str
    """Name, for the table."""
    model: ModelConfig
    batch: int = 1
    """Clips at once."""
    samples: int = 1
    """Sampling: samples of each clip."""
    solver_steps: int = 100
    """Sampling: DDPM steps of the whole."""
    timed_steps: int = 5
    """Sampling: steps that are run; the others cost the same (see `Sampling`)."""

    def __post_init__(self) -> None:
        if self.model.noisy_condition:
            raise McvdError(f"{self.recipe}: a network with noisy_condition is not measured; set it to false in a copy")
        if not 2 <= self.timed_steps <= self.solver_steps:
            raise McvdError(
                f"{self.timed_steps} timed steps of {self.solver_steps}: at least 2, and no more than there are"
            )

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
    """A recipe's model as it is measured: as the published ones are (see `mcvd.benchmark.peer`) in what is no matter of
    time, what the network predicts and how it is told of noise; size: other pixels a side."""
    network: UNetConfig = config.network if size is None else replace(config.network, size=(size, size))
    schedule = replace(config.schedule, zero_terminal=False)
    published = replace(config, prediction="eps", schedule=schedule, context_noise=0.0, time_from_noise=True)
    return replace(published, network=network)


@torch.no_grad()
def random_weights(config: ModelConfig, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Weights under the published names. None starts near zero, as in training: a difference would hide behind it."""
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
    """The name in the contract of what is called."""

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """The functions that are timed, each once a round, by name."""

    def seconds(self, parts: Mapping[str, float], setting: Setting) -> float:
        """The time of the whole from the times of its parts."""

    def flops(self, setting: Setting) -> int:
        """Operations of the whole by the network's definition (a multiply-add is 2), however they are computed."""

    def frames(self, setting: Setting) -> int:
        """Frames that the whole makes, or learns from."""

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """What must be equal for every implementation."""


def forward_flops(config: ModelConfig, batch: int, conditions: int) -> tuple[int, int]:
    """Operations of one network call for `batch` rows, and of encoding so many conditions; counted without contents."""
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
    """One call of the network on all rows at once; what depends on the condition alone was computed before."""

    name, offer = "network", "network"

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """`call`."""
        generator = torch.Generator().manual_seed(1)
        past = setting.frames(setting.layout.past, setting.batch, generator).to(device)
        future = setting.frames(setting.layout.future, setting.batch, generator).to(device)
        x = setting.noise(setting.batch, generator).to(device)
        # one time for all rows, as in sampling
        time = torch.randint(setting.model.schedule.steps, (1,), generator=generator).expand(setting.batch).to(device)
        call = offered(past, future)
        return {"call": lambda: call(x, time)}

    def seconds(self, parts: Mapping[str, float], setting: Setting) -> float:
        """The call."""
        return parts["call"]

    def flops(self, setting: Setting) -> int:
        """Without the condition's."""
        return forward_flops(setting.model, setting.batch, setting.batch)[0]

    def frames(self, setting: Setting) -> int:
        """Current frames."""
        return setting.batch * setting.layout.current

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """The output."""
        return self.parts(build(setting.model)[self.offer], setting, device)["call"]().float()


class Sampling:
    """All current frames of a block by DDPM, the encoding of the condition included.

    Every step but the first costs the same. The first `timed_steps` are run, and the time of the whole is theirs and
    (solver_steps - timed_steps) times the median of these steps without the first, in which whatever is done once a
    block is. With timed_steps = solver_steps, the whole is timed.
    """

    name, offer = "sampling", "sample"

    def parts(self, offered: Offered, setting: Setting, device: torch.device) -> Parts:
        """`steps`; of less than the whole, with the time of a step as `steps/lap`."""
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
        """Conditions are encoded once a clip and block."""
        call, encode = forward_flops(setting.model, setting.batch * setting.samples, setting.batch)
        return setting.solver_steps * call + encode

    def frames(self, setting: Setting) -> int:
        """Made frames."""
        return setting.batch * setting.samples * setting.layout.current

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """The state after the timed steps."""
        return self.parts(build(setting.model)[self.offer], setting, device)["steps"]().float()


class TrainingStep:
    """Forward, backward, clipping, Adam and the average of the weights."""

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
        """Forward and twice that backward; the optimizer's few are not counted."""
        return estimate(Recipe(model=setting.model, batch=setting.batch)).flops * setting.batch

    def frames(self, setting: Setting) -> int:
        """Frames of the clips."""
        return setting.batch * setting.layout.frames

    def check(self, build: Callable[[ModelConfig], Callables], setting: Setting, device: torch.device) -> Tensor:
        """Losses per element of the first steps on few clips, so gradients and updates count; without dropout, whose
        random numbers no two implementations share."""
        network = replace(setting.model.network, dropout=0.0)
        few = replace(
            setting, model=replace(setting.model, network=network), batch=min(setting.batch, self.CHECKED_CLIPS)
        )
        step = self.parts(build(few.model)[self.offer], few, device)["step"]
        elements = few.layout.current * network.channels * network.size[0] * network.size[1]
        return torch.stack([step().detach().float().cpu() / elements for _ in range(self.CHECKED_STEPS)])


CASES: dict[str, Case] = {case.name: case for case in (NetworkCall(), Sampling(), TrainingStep())}
