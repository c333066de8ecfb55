"""`mcvd train`"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from mcvd.cli.options import Device, Flag, MaybeCount, MaybeMinutes, MaybeSeed
from mcvd.text import colours, counted

if TYPE_CHECKING:
    from mcvd.training.recipe import Recipe

_FROM_RECIPE = "(default: the recipe's)"


@dataclass(kw_only=True)
class Command:
    """Trains a model from a recipe. Run the same command again to continue where it stopped; Ctrl-C saves first.

    Examples: mcvd train digits-small; mcvd train my_recipe.yaml --data my_videos/ --steps 200000; several GPUs:
    torchrun --nproc-per-node 8 -m mcvd train my_recipe.yaml
    """

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """Bundled name (an unknown one lists them), or path of a .yaml file."""
    data: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=_FROM_RECIPE)] = None
    """Folder of videos (files, folders of images, npz) or, for Moving MNIST, of the MNIST files."""
    output: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(default: runs/RECIPE)")] = None
    """Run folder: checkpoints, model/ and best/ (for --model), log.jsonl, TensorBoard events, samples/."""
    steps: Annotated[MaybeCount, arg(help_behavior_hint=_FROM_RECIPE)] = None
    """Total optimizer steps, including those of earlier runs."""
    minutes: Annotated[MaybeMinutes, arg(help_behavior_hint="(default: no limit)")] = None
    """Save and stop after about this many minutes."""
    finish: Flag = False
    """With --minutes: do as many steps as fit, learning-rate decay included."""
    batch: Annotated[MaybeCount, arg(help_behavior_hint=_FROM_RECIPE)] = None
    """Clips per step, over all processes."""
    seed: Annotated[MaybeSeed, arg(help_behavior_hint=_FROM_RECIPE)] = None
    """Seed of everything random."""
    device: Device = None
    """cpu, cuda or cuda:N."""
    set: Annotated[UseAppendAction[list[str]], arg(metavar="KEY=VALUE", help_behavior_hint="(can be repeated)")] = (
        field(default_factory=list)
    )
    """Any other value of the recipe, e.g. optimizer.lr=1e-4 or model.network.width=96."""

    init_from: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: random weights)")] = None
    """Start from a model's weights (named as for --model of other commands), wherever they fit."""
    tracker: Annotated[Literal["wandb", "trackio"] | None, arg(help_behavior_hint=_FROM_RECIPE)] = None
    """Also send the log to Weights & Biases or trackio."""
    dry_run: Flag = False
    """Print the full recipe and its cost (weights, arithmetic, memory, time) without training."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.config import override, parse_assignments
        from mcvd.files import expanded
        from mcvd.training.recipe import read_recipe
        from mcvd.training.run import train

        named = {"data.path": self.data and str(self.data), "steps": self.steps, "batch": self.batch, "seed": self.seed}
        named["tracker"] = self.tracker
        recipe = read_recipe(self.recipe)
        recipe = override(recipe, parse_assignments(self.set, "--set"), "--set")
        recipe = override(recipe, {key: value for key, value in named.items() if value is not None}, "options")
        if self.dry_run:
            _print_estimate(recipe, self.device)
            _say_if_none_attends(recipe)
            path = recipe.data.path
            if path is not None and not expanded(path).exists():  # the question may be about another machine
                print(f"note: {path} does not exist on this machine, so training would stop here at once")
            return
        output = self.output or Path("runs") / Path(self.recipe).stem
        first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, only the first prints
        if first:
            network, layout = recipe.model.network, recipe.model.network.layout
            height, width = network.size
            tasks = ", ".join(recipe.model.masking.tasks(layout))
            _say(
                f"training {self.recipe} into {output}: {width}x{height} {colours(network.channels)}, "
                f"{layout.past} past, {layout.current} current, {layout.future} future frames; "
                f"tasks: {tasks}; {counted(recipe.steps, 'step')} of {counted(recipe.batch, 'clip')}"
            )
            _say_if_none_attends(recipe)
            if recipe.precision == "auto" and _cpu_has_bf16(self.device):
                _say("note: this CPU has units for bf16; --set precision=bf16 makes steps faster")
        model = train(
            recipe,
            output,
            device=self.device,
            minutes=self.minutes,
            finish=self.finish,
            init_from=self.init_from,
            report=_say,
            live=sys.stdout.isatty(),
        )
        if first:
            _say(f"the model is in {model}; look at it with: mcvd generate --model {model}")


def _say_if_none_attends(recipe: Recipe) -> None:
    """A recipe of another size keeps its `attention`, which then may name no level of the network."""
    network = recipe.model.network
    if network.attention and not set(network.attention) & set(network.resolutions):
        asked, there = (", ".join(map(str, sides)) for sides in (network.attention, network.resolutions))
        _say(f"note: no level has attention: model.network.attention is {asked}, levels have {there} pixels per side")


def _cpu_has_bf16(device: str | None) -> bool:
    import torch

    from mcvd.device import default_device
    from mcvd.networks.precision import fast_on

    device = device or default_device()
    return device == "cpu" and "bf16" in fast_on(torch.device(device))


def _print_estimate(recipe: Recipe, where: str | None) -> None:
    import torch
    import yaml

    from mcvd.config import to_dict
    from mcvd.device import usable_device
    from mcvd.training.estimate import estimate, rate

    device = torch.device(usable_device(where))
    cost, speed = estimate(recipe), rate(device)
    print(yaml.safe_dump(to_dict(recipe), sort_keys=False), end="")
    print(f"\ntasks        {', '.join(recipe.model.masking.tasks(recipe.model.network.layout))}")
    print(f"weights      {cost.parameters / 1e6:.2f} million")
    print(f"arithmetic   {cost.flops / 1e9:.1f} GFLOP per clip and step, forward and backward")
    shared = ", split among the processes" if recipe.sharding == "full" else ""
    print(f"memory       {cost.state_bytes / 1e9:.2f} GB for weights, gradients, optimizer and EMA{shared}; at most")
    print(
        f"             {cost.activation_bytes / 1e9:.2f} GB for activations in one process (float32; half in 16 bits)"
    )
    print(
        f"time         {cost.seconds(recipe, speed) / 3600:.3g} hours for {recipe.steps} steps of {recipe.batch} clips "
        f"on this machine's {device.type}, if it reaches {speed / 1e12:.3g} TFLOP/s"
    )


def _say(line: str) -> None:
    """Prints a line. A run goes on if nobody can read it: `mcvd train ... | tee log` loses tee at Ctrl-C, a terminal is
    closed, a disk full."""
    from mcvd.cli.main import drop_output

    try:
        print(line, flush=True)
    except OSError:
        drop_output()
