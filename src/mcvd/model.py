"""VideoDiffusion: a network, its noise schedule and its block layout; the training loss, and filling in frames."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from mcvd.card import model_card
from mcvd.config import from_dict, to_dict
from mcvd.diffusion import gaussian
from mcvd.diffusion.loss import squared_error
from mcvd.diffusion.sampling import Denoiser
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.diffusion.solvers import PUBLISHED, default_steps, published_table, solver_named, solver_table
from mcvd.draw import Draw
from mcvd.errors import McvdError
from mcvd.given import MOST_FPS, MOST_FRAMES, finite, frame_flags, given_video, whole
from mcvd.guide import GuideConfig
from mcvd.layout import BlockLayout, Masking, hide, split
from mcvd.networks.config import UNetConfig
from mcvd.networks.engine import calls_by, network_call
from mcvd.networks.precision import autocast
from mcvd.networks.unet import UNet
from mcvd.planner import plan
from mcvd.rollout import Progress, rollout
from mcvd.saving import CONFIG, WEIGHTS, load_weights, read_model, upload, write_model
from mcvd.text import counted


@dataclass(frozen=True)
class ModelConfig:
    """The content of config.json in a model folder."""

    network: UNetConfig = field(default_factory=UNetConfig)
    masking: Masking = field(default_factory=Masking)
    """How past and future were hidden in training, which determines the tasks of the model."""
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    prediction: str = "eps"
    """What the network predicts: `eps` (the paper), `x0` or `v`."""
    noisy_condition: bool = False
    """Past and future get the noise of the current frames' level before the network sees them (old checkpoints)."""
    context_noise: float = 0.0
    """Largest standard deviation sigma of the Gaussian noise added to past and future frames in training, in [0, 1),
    which makes long rollouts robust to the model's own errors: sigma is uniform in [0, context_noise], one per clip,
    frames become sqrt(1 - sigma^2) x + sigma eps, and the network is told sigma (conditioning augmentation, Ho et al.
    2021, arXiv 2106.15282; for past frames, GameNGen, arXiv 2408.14837, section 3.2.1)."""
    time_from_noise: bool = False
    """The network counts time from the noisiest level (published checkpoints), not from the cleanest."""
    solver: str = "ddpm"
    """The solver that is used unless another of `mcvd.diffusion.solvers.SOLVERS` is named."""
    fps: float = 10.0
    """Frame rate of written videos, frames per second."""
    guide: GuideConfig | None = None
    """A weaker network that guides sampling; see `mcvd.guide.guided`."""

    def __post_init__(self) -> None:
        if self.prediction not in gaussian.PREDICTIONS:
            raise McvdError(f"prediction is {self.prediction!r}; it is one of {', '.join(gaussian.PREDICTIONS)}")
        if self.prediction == "eps" and self.schedule.zero_terminal:
            raise McvdError("a zero-terminal schedule needs prediction v or x0: pure noise says nothing of the video")
        solver_named(self.solver)
        if not 0.001 <= self.fps <= MOST_FPS:  # what `write_video` takes
            raise McvdError(f"fps is {self.fps}; it must be a number from 0.001 to {MOST_FPS}")
        if not 0.0 <= self.context_noise < 1.0:
            raise McvdError(f"context_noise is {self.context_noise}; it must be at least 0 and below 1")
        if self.context_noise and not self.network.layout.condition_frames:
            raise McvdError("context_noise is for past and future frames, and this layout has none; leave it at 0")
        if self.context_noise and self.noisy_condition:
            raise McvdError("noisy_condition adds noise of its own to past and future; leave context_noise at 0")
        if self.guide is not None:
            self.guide.check(self.network)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) within it, also between two training steps; then every part returns to its own mode.

    Only within `calls_by`, which admits one thread at a time: otherwise, one would restore what another has changed.
    """
    training = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in training:
            part.training = mode


class FillOptions(TypedDict, total=False):
    """The options of `VideoDiffusion.fill`, which documents them and has their defaults; all tasks take them."""

    samples: int
    solver: str | None
    steps: int | None
    seed: int
    guidance: float
    batch_size: int
    first_clip: int
    reference: bool
    context_noise: float
    precision: str
    engine: str
    progress: Progress | None


class _View(NamedTuple):
    """What trajectories see: the frames of each distinct condition, and which condition each trajectory has."""

    past: Tensor
    future: Tensor
    past_seen: Tensor
    sigma: Tensor | None
    rows: Tensor


class VideoDiffusion(nn.Module):
    """A masked conditional video diffusion model.

    All public methods take video ``(T, C, H, W)`` or ``(B, T, C, H, W)``, uint8 or float in [0, 1], and return float in
    [0, 1] of shape ``(B * samples, T, C, H, W)``, the samples of a clip one after another. Inside, values lie in
    [-1, 1].
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.notes: dict[str, Any] = {}  # what is known of the training: steps, stride, ...; see `save`
        tell_sigma = config.context_noise > 0
        self.network = UNet(config.network, tell_sigma).float()  # whatever the default dtype
        self.guide = None if config.guide is None else UNet(config.guide.network, tell_sigma).float()
        for weight in self.parameters():
            if weight.dim() == 4:  # the memory format with the fastest convolutions, on CPUs and GPUs
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    @property
    def layout(self) -> BlockLayout:
        """Past, current and future frames of a block."""
        return self.config.network.layout

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        return self.config.network.size

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.config.network.channels

    @property
    def stride(self) -> int:
        """Clips should be read like the training videos, of which every stride-th frame was used; 1 if not noted."""
        stride = self.notes.get("stride")
        return stride if isinstance(stride, int) and stride > 0 else 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def extra_repr(self) -> str:
        """What is shown first when the model is printed."""
        return f"size={self.size}, channels={self.channels}, layout={self.layout}, solver={self.config.solver!r}"

    # --- training -----------------------------------------------------------------------------------------------

    def draw(self, clips: int, generator: torch.Generator | None = None) -> Draw:
        """Everything random in the loss of this many clips, on the generator's device."""
        home = None if generator is None else generator.device
        masking, frame = self.config.masking, (self.channels, *self.size)
        dtype = torch.float32  # whatever the default dtype
        draw = Draw(
            *masking.draw(clips, generator=generator),
            torch.randint(self.config.schedule.steps, (clips,), generator=generator, device=home),
            torch.randn((clips, self.layout.current, *frame), generator=generator, device=home, dtype=dtype),
            masking.draw_frames(clips, self.layout, generator=generator),
        )
        if self.config.context_noise:
            sigma = self.config.context_noise * torch.rand(clips, generator=generator, device=home, dtype=dtype)
            draw = draw._replace(context_sigma=sigma)
        if self.config.context_noise or self.config.noisy_condition:
            noise = (clips, self.layout.condition_frames, *frame)
            draw = draw._replace(context_eps=torch.randn(noise, generator=generator, device=home, dtype=dtype))
        return draw

    def loss(self, video: Tensor, draw: Draw | None = None) -> Tensor:
        """The training loss of each clip, ``(B,)``; calling the model does the same.

        video: ``(B, p + k + f, C, H, W)`` float32, consecutive frames in [-1, 1].
        draw: the random masks, time numbers and noise; None draws them from torch's global generator.

        Raises McvdError for clips or a draw of another shape or type, and for weights that are not float32.
        """
        self._check_weights()
        past, current, future = split(video, self.layout)
        if current.shape[2:] != (frame := (self.channels, *self.size)):  # others might broadcast
            raise McvdError(f"this model's frames (C, H, W) are {frame}, not {tuple(current.shape[2:])}")
        draw = self.draw(len(video)) if draw is None else draw.to(video.device)
        if len(draw.t) != len(video):
            raise McvdError(f"the draw is of {counted(len(draw.t), 'clip')}, and there are {len(video)}")
        if draw.context_sigma is not None:
            kept = (1 - draw.context_sigma.square()).view(-1, 1, 1, 1, 1)
            past, future = self._with_noise(past, future, kept, draw.context_eps)
        if draw.frames_seen is not None:
            past = hide(past, draw.frames_seen[:, : self.layout.past])
            future = hide(future, draw.frames_seen[:, self.layout.past :])
        past, future = hide(past, draw.past_seen), hide(future, draw.future_seen)
        seen, sigma = draw.past_seen, draw.context_sigma
        return self.loss_at(current, past, future, draw.t, draw.eps, seen, draw.context_eps, sigma)

    forward = loss

    def loss_at(
        self,
        current: Tensor,
        past: Tensor,
        future: Tensor,
        t: Tensor,
        eps: Tensor,
        past_seen: Tensor | None = None,
        condition_noise: Tensor | None = None,
        sigma: Tensor | None = None,
    ) -> Tensor:
        """The loss of each clip at time numbers t ``(B,)`` with noise eps (DDPM algorithm 1); frames in [-1, 1].

        condition_noise ``(B, p + f, C, H, W)``: N(0, I) for past and future of a model with `noisy_condition` (None:
            drawn here). sigma ``(B,)``: standard deviation of the noise already in them, with `context_noise`.
        """
        alpha_bar = self.config.schedule.at(t, current)
        x_t = gaussian.add_noise(current, eps, alpha_bar)
        if self.config.noisy_condition:
            past, future = self._with_noise(past, future, alpha_bar, condition_noise)
        condition = self.network.encode(past, future, past_seen, sigma)
        output = self.network(x_t, self._network_time(t), condition)
        target = gaussian.target(self.config.prediction, current, eps, alpha_bar)
        return squared_error(output, target)

    # --- denoising ----------------------------------------------------------------------------------------------

    def _network_time(self, t: Tensor) -> Tensor:
        return self.config.schedule.steps - 1 - t if self.config.time_from_noise else t

    @staticmethod
    def _with_noise(past: Tensor, future: Tensor, alpha_bar: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        frames = torch.cat([past, future], dim=1)
        noise = torch.randn_like(frames) if noise is None else noise
        return gaussian.add_noise(frames, noise, alpha_bar).split([past.shape[1], future.shape[1]], dim=1)

    def denoiser(
        self,
        past: Tensor,
        future: Tensor,
        past_seen: Tensor,
        rows: Tensor,
        guidance: float = 1.0,
        condition_noise: Callable[[], Tensor] | None = None,
        sigma: float = 0.0,
        guided: bool = False,
    ) -> Denoiser:
        """(x_t, t, alpha_bar) -> x0_hat for trajectories that share conditions.

        past ``(b, p, C, H, W)``, future ``(b, f, C, H, W)`` in [-1, 1], hidden frames 0, past_seen ``(b,)`` bool: one
        entry for each distinct condition; rows ``(B,)``: which of them each trajectory has. The condition is encoded
        once, here.
        guidance: 1 is the plain model; a larger value follows the condition more closely, by classifier-free guidance
            (arXiv 2207.12598) against the same network with everything hidden.
        condition_noise: returns fresh N(0, I) noise ``(B, p + f, C, H, W)`` for each call; used only by a model with
            `noisy_condition` (None: drawn from torch's global generator).
        sigma: standard deviation of the noise already in past and future; a model with `context_noise` is told it.
        guided: the model's guide, if it has one, acts (arXiv 2406.02507).
        """
        told = past.new_full((len(past),), sigma) if self.config.context_noise else None
        shared = len(past) == 1 and not self.config.noisy_condition
        seen = _View(past, future, past_seen, told, rows)
        branches = [(self.network, seen)]
        if guidance != 1.0:
            nothing = torch.zeros_like(past[:1]), torch.zeros_like(future[:1]), past_seen[:1] & False
            branches.append((self.network, _View(*nothing, None, torch.zeros_like(rows))))
        guide = self.config.guide if guided else None
        if guide is not None and self.guide is not None:
            branches.append((self.guide, seen))
        keep = [network.maps_fit(1 if shared else len(rows)) for network, _ in branches]
        conditions = [
            network.encode(v.past, v.future, v.past_seen, v.sigma, fit).take(v.rows)
            for (network, v), fit in zip(branches, keep)
        ]
        calls = [network_call(network, slot) for slot, (network, _) in enumerate(branches)]
        prediction = self.config.prediction
        frames = len(rows), past.shape[1] + future.shape[1], *past.shape[2:]
        fresh = condition_noise or (lambda: past.new_empty(frames).normal_())

        def denoise(x: Tensor, t: int, alpha_bar: float) -> Tensor:
            time = self._network_time(torch.full((1,), t, device=x.device))
            acting = guide if guide is not None and guide.acts(alpha_bar) else None
            asked = branches if acting or guide is None else branches[:-1]
            here = conditions
            if self.config.noisy_condition:
                # the level that the network is told: in the published last call, it differs from that of x
                level = x.new_full((), float(self.config.schedule.alpha_bar[t]))
                noise = fresh()
                noisy = [self._with_noise(v.past[v.rows], v.future[v.rows], level, noise) for _, v in asked]
                here = [
                    network.encode(*pair, v.past_seen[v.rows], None, fit)
                    for (network, v), pair, fit in zip(asked, noisy, keep)
                ]
            outputs = [call(x, time, condition).float() for call, condition, _ in zip(calls, here, asked)]
            output = outputs[0] if guidance == 1.0 else torch.lerp(outputs[1], outputs[0], guidance)
            if acting:
                output = torch.lerp(outputs[-1], output, acting.scale)
            # infinite frames would be clipped to black or white, but what is not a number is found in the end
            output = output.nan_to_num(math.nan, math.nan, math.nan)
            # torch.tensor(...) would wait for the GPU
            return gaussian.x0_from(prediction, x, output, torch.full((), alpha_bar, dtype=x.dtype, device=x.device))

        return denoise

    def sampler(self, solver: str | None = None, steps: int | None = None, reference: bool = False) -> tuple[str, int]:
        """Which solver, and in how many steps per block: what is asked for, or the model's and its default.

        `reference` knows DDPM and DDIM, so it takes DDPM for a model with another solver. Raises McvdError for a name
        that is no solver's.
        """
        own = self.config.solver if not reference or self.config.solver in PUBLISHED else ModelConfig.solver
        solver = own if solver is None else solver
        usual = default_steps(solver, self.config.schedule, reference)
        return solver, usual if steps is None else steps

    def check_guidance(self, guidance: float) -> float:
        """The guidance scale; McvdError if it is no finite number, or the model cannot be guided by itself."""
        guidance = finite("guidance", guidance)
        if guidance != 1.0 and (False, False) not in self.config.masking.combinations(self.layout):
            raise McvdError("guidance needs a model that saw blocks with everything hidden in training; leave it at 1")
        return guidance

    # --- filling in ---------------------------------------------------------------------------------------------

    def fill(
        self,
        video: Tensor,
        known: Sequence[bool] | Tensor,
        *,
        samples: int = 1,
        solver: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        guidance: float = 1.0,
        batch_size: int = 32,
        first_clip: int = 0,
        reference: bool = False,
        context_noise: float = 0.0,
        precision: str = "fp32",
        engine: str = "torch",
        progress: Progress | None = None,
    ) -> Tensor:
        """Generates every frame that is not known; every task is a call of this.

        video: all T frames; those where `known` is False are ignored.
        known: ``(T,)`` bool, the frames that are given; they are returned bit-identical (as float in [0, 1]).
        samples: how many different results for each clip.
        solver, steps: see `mcvd.diffusion.solvers.SOLVERS`; None: those of `sampler`.
        seed: the same seed gives the same result (up to float rounding), however the work is batched. Sample j of the
            clip at position i is always the same trajectory.
        first_clip: position of the first clip, if several calls with the same seed share the clips.
        guidance: 1 is the model itself; a larger value follows the known frames more closely, at the cost of variety.
        batch_size: trajectories per network call.
        reference: sample as the published code does, its final denoising defect included (solver ddpm or ddim).
        context_noise: standard deviation of the noise added to a block's past and future if any of these frames were
            generated, so that the model trusts them less in long rollouts; at most its value in training.
        precision: precision of the network: `fp32`; `bf16` or `fp16` on GPUs, `bf16` on CPUs, that have units for it.
            The solver stays in float32.
        engine: what runs the network: `torch`; `compile` (torch.compile), faster on GPUs after about a minute of
            compiling; or, on CPUs, `openvino` (an extra), faster for one trajectory at a time in a hundred calls or
            more, after half a minute at its first use.
        progress: called with (steps done, steps in total).

        Returns float ``(B * samples, T, C, H, W)`` in [0, 1]. Raises McvdError for input that does not fit the model,
        a task that it was not trained for, or a model that generates non-finite values.
        """
        flags = frame_flags(known)
        given, known = self._given(video, flags), flags.tolist()
        samples, batch_size = whole("samples", samples, 1), whole("batch_size", batch_size, 1)
        first_clip, seed = whole("first_clip", first_clip, 0), whole("seed", seed, 0)
        steps = None if steps is None else whole("steps", steps, 1)
        guidance, context_noise = self.check_guidance(guidance), finite("context_noise", context_noise)
        if not 0.0 <= context_noise <= self.config.context_noise:
            most = self.config.context_noise
            raise McvdError(f"context_noise is {context_noise}; this model was trained with 0 to {most:g}")
        half = autocast(precision, self.device)
        blocks = plan(known, self.layout, self.config.masking)
        solver, steps = self.sampler(solver, steps, reference)
        table = (published_table if reference else solver_table)(solver, self.config.schedule, steps)
        # a guide is small and acts in half of the calls: not worth compiling
        guide = contextlib.nullcontext() if self.guide is None else calls_by(self.guide)
        with half, calls_by(self.network, engine), guide, _evaluating(self):
            return rollout(
                self,
                given,
                known,
                blocks,
                table,
                samples=samples,
                seed=seed,
                guidance=guidance,
                batch_size=batch_size,
                first_clip=first_clip,
                clip_made=not reference,
                guided=not reference,
                tell_hidden=not reference,
                context_noise=context_noise,
                progress=progress,
            )

    def predict(self, past: Tensor, frames: int, *, backward: bool = False, **options: Unpack[FillOptions]) -> Tensor:
        """What happens next (with `backward`, what happened before): `frames` new frames; options as in `fill`.

        Returns the new frames only, in time order, ``(B * samples, frames, C, H, W)``.
        """
        past, n = self._given(past), whole("frames", frames, 1, MOST_FRAMES)
        blank = past.new_zeros(len(past), n, *past.shape[2:])
        context = [True] * past.shape[1]
        if backward:
            return self.fill(torch.cat([blank, past], 1), [False] * n + context, **options)[:, :n]
        return self.fill(torch.cat([past, blank], 1), context + [False] * n, **options)[:, -n:]

    def interpolate(
        self, past: Tensor, future: Tensor, *, frames: int | None = None, **options: Unpack[FillOptions]
    ) -> Tensor:
        """What happened between past and future: `frames` new frames (None: one block); options as in `fill`.

        Returns the new frames only, ``(B * samples, frames, C, H, W)``.
        """
        past, future = self._given(past), self._given(future)
        n = self.layout.current if frames is None else whole("frames", frames, 1, MOST_FRAMES)
        if len(past) != len(future):
            raise McvdError(f"{counted(len(past), 'clip')} before the gap, but {len(future)} after it")
        video = torch.cat([past, past.new_zeros(len(past), n, *past.shape[2:]), future], 1)
        known = [True] * past.shape[1] + [False] * n + [True] * future.shape[1]
        return self.fill(video, known, **options)[:, past.shape[1] : past.shape[1] + n]

    def generate(self, frames: int, **options: Unpack[FillOptions]) -> Tensor:
        """Generates new videos unconditionally, ``(samples, frames, C, H, W)``; options as in `fill`."""
        n = whole("frames", frames, 1, MOST_FRAMES)
        return self.fill(torch.zeros(n, self.channels, *self.size, device="cpu"), [False] * n, **options)

    def _given(self, video: Tensor, known: Tensor | None = None) -> Tensor:
        """A caller's video, as `given_video` normalises it for this model."""
        self._check_weights()
        return given_video(video, self.size, self.channels, known).to(self.device)

    def _check_weights(self) -> None:
        if (weights := next(self.parameters()).dtype) != torch.float32:
            raise McvdError(f"the weights are {weights}; use model.float(), with precision= or autocast for less")

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32, notes: dict | None = None) -> Path:
        """Writes config.json and model.safetensors (weights as `dtype`) into a folder; returns it.

        notes: what is known of the training, also for config.json (None: the model's own notes).
        """
        notes = self.notes if notes is None else notes
        return write_model(folder, to_dict(self.config), self.state_dict(), dtype, to_dict(notes))

    @classmethod
    def from_folder(cls, folder: str | Path) -> VideoDiffusion:
        """The model that `save` wrote, in evaluation mode."""
        config, notes, weights = read_model(folder)
        model = cls(from_dict(ModelConfig, config, str(Path(folder) / CONFIG)))
        load_weights(model, weights, str(Path(folder) / WEIGHTS))
        model.notes = notes
        return model.eval()

    def push_to_hub(self, repo_id: str, **options: object) -> str:
        """Saves the model and uploads it to a hub repository, with options of `upload_folder`; returns its address.

        A repository without a README.md gets one that says what the model is and how to use it.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save(folder), repo_id, model_card(self, repo_id), **options)
