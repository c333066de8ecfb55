"""A recipe: everything a training run depends on, from YAML, with errors that name the nearest key."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mcvd.config import from_dict, read_yaml
from mcvd.data.settings import Layout
from mcvd.errors import McvdError
from mcvd.files import expanded, is_run
from mcvd.model import ModelConfig

RECIPES = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class DataConfig:
    """The source of clips."""

    kind: Literal["moving-mnist", "videos"] = "videos"
    """`moving-mnist`: made on the fly from the MNIST digits; `videos`: a folder of video files and image folders."""
    path: str | None = None
    """Folder; for Moving MNIST None means the cache, where `mcvd fetch mnist` puts it."""
    stride: int = 1
    """Take every stride-th frame of a video."""
    flip: bool = False
    """Mirror half of the clips left to right."""
    fps: float | None = None
    """Frames per second to which videos are resampled when they are prepared; None keeps their own."""
    fit: Literal["crop", "stretch"] | None = None
    """How frames are fitted to the model's shape: a centre crop, or stretched; None: as is usual for the layout (`crop`
    for `videos`)."""
    split_by: str = "auto"
    """Unit that is held out for validation: `auto`, `file`, `folder`, or a regular expression with a group."""
    digits: tuple[int, ...] = (2,)
    """Moving MNIST: digits per clip; of several numbers, each clip draws one, all with the same probability."""
    layout: Layout = "videos"
    """What the raw videos are: any videos (`videos`), or the download of a published data set, with its split."""

    @property
    def source(self) -> str:
        """The folder, in full, or the kind of clips that need none: what a run notes of its data."""
        return self.kind if self.path is None else str(expanded(self.path).resolve())


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, as published, or Muon."""

    name: Literal["adam", "muon"] = "adam"
    """The optimizer: `adam`, or `muon` for weights of convolutions and linear layers with Adam for the rest."""
    lr: float = 2e-4
    """Learning rate after warm-up."""
    warmup: int = 1000
    """Steps of linear warm-up; the first step has rate 0."""
    decay: Literal["constant", "cosine", "wsd"] = "constant"
    """What the rate does after warm-up: `cosine` falls to 0 at the last step; `wsd` stays, then falls linearly to 0."""
    cooldown: float = 0.2
    """Share of the steps during which `wsd` falls."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's averages."""
    eps: float = 1e-8
    """Added to Adam's denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    momentum: float = 0.95
    """Decay rate of Muon's average."""
    clip: float = 1.0
    """Largest norm of the gradient (of the summed loss, as published); larger ones are scaled down."""

    def __post_init__(self) -> None:
        for name in ("lr", "warmup", "eps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise McvdError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0")
        if not self.clip > 0:
            raise McvdError(f"optimizer.clip is {self.clip}; it must be above 0")
        if not 0 <= self.cooldown <= 1:
            raise McvdError(f"optimizer.cooldown is {self.cooldown}; it is a share, from 0 to 1")
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1]), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise McvdError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class Recipe:
    """A training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 700_000
    """Optimizer steps."""
    batch: int = 64
    """Clips per step, over all processes."""
    accumulate: int = 1
    """Parts into which a process divides its share of the batch, one after another, to save memory."""
    weighting: Literal["uniform", "min-snr"] = "uniform"
    """Weight of the noise levels in the loss: all the same (the paper), or Min-SNR (arXiv 2303.09556)."""
    ema: float = 0.999
    """Decay of the averaged weights."""
    ema_warmup: bool = False
    """Let the average follow faster at the start (short runs)."""
    ema_power: float | None = None
    """Average with a power profile instead (EDM2, arXiv 2312.02696): its relative width sigma_rel, e.g. 0.1 for a
    standard deviation of a tenth of the steps made so far; above 0, at most 1 / sqrt(12) = 0.288."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic: `auto` is bf16 on GPUs that have it, else fp32; `bf16` is also for CPUs with units for it; `fp16`,
    with a scaled loss, is for older GPUs."""
    compile: bool = False
    """Compile the network with torch.compile (minutes at the start, faster after)."""
    recorded: bool = False
    """On one GPU: record the step once and replay it (CUDA graphs), so that the GPU does not wait for Python."""
    checkpointing: bool = False
    """Recompute the blocks of the network in the backward pass instead of keeping their activations."""
    sharding: Literal["none", "full"] = "none"
    """What is sharded over several processes: `none` (DDP), or weights, gradients, optimizer and EMA (`full`, FSDP)."""
    seed: int = 0
    """Seed of everything random."""
    log_every: int = 50
    """Steps between log lines."""
    save_every: int = 1000
    """Steps between checkpoints."""
    sample_every: int = 5000
    """Steps between sample sheets and validation."""
    tracker: Literal["wandb", "trackio"] | None = None
    """Also send the log to W&B or trackio (extras of the same names)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every", "sample_every"):
            if getattr(self, name) < 1:
                raise McvdError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.ema < 1:
            raise McvdError(f"ema is {self.ema}; it must be at least 0 and below 1")
        if self.ema_power is not None and not 0 < self.ema_power <= 12**-0.5:
            raise McvdError(f"ema_power is {self.ema_power}; it must be above 0 and at most 0.288, the plain mean")
        if self.ema_power is not None and self.ema_warmup:
            raise McvdError("ema_power forgets the start by itself: it needs ema_warmup false")
        if self.weighting == "min-snr" and self.model.schedule.zero_terminal:
            raise McvdError(
                "weighting min-snr gives pure noise, from which sampling starts with a zero-terminal schedule, the "
                "weight 0: it would never be trained; use weighting uniform"
            )
        if self.model.guide is not None:
            raise McvdError("model.guide is for sampling: it is given to a model after training (mcvd.guide.guided)")
        if self.data.stride < 1:
            raise McvdError(f"data.stride is {self.data.stride}; it must be at least 1")
        if self.seed < 0:
            raise McvdError(f"seed is {self.seed}; it must be at least 0")


def read_recipe(name: str | Path) -> Recipe:
    """A recipe by bundled name (`digits`) or path of a YAML file."""
    import yaml

    path = expanded(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise McvdError(f"{path} does not exist")
    elif is_run(path):
        raise McvdError(f"{path} is a run; to continue it, give its recipe: {path / 'recipe.yaml'} --output {path}")
    else:
        path = _bundled(str(name))
    try:
        data = read_yaml(path.read_bytes())
    except OSError as error:
        raise McvdError(f"cannot read {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('in "<byte string>",', "at").split())
        raise McvdError(f"{path} cannot be read as YAML: {said}") from None
    return from_dict(Recipe, {} if data is None else data, str(path))


def recipe_names() -> list[str]:
    """The bundled recipes: those of the bundled models, then one for every published experiment."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml")) + sorted(p.stem for p in RECIPES.glob("paper/*.yaml"))


def _bundled(name: str) -> Path:
    found = {path.stem: path for path in RECIPES.rglob("*.yaml")}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else f"bundled ones: {', '.join(recipe_names())}"
        raise McvdError(f"no recipe {name}; {hint} (or give the path of a .yaml file)")
    return found[name]
