"""`mcvd data prepare`, `mcvd data info`, `mcvd data fetch`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from mcvd.cli.options import Count, MaybeCount, MaybeRate, MaybeSize, Number

Fit = Literal["crop", "stretch"] | None
Filter = Literal["area", "bilinear", "lanczos"] | None
_PRESET = "(default: the layout's; videos: {})"


@dataclass(kw_only=True)
class Prepare:
    """Decodes videos once into a folder that training reads quickly. Run it again to continue, or after changes.

    Sources: a folder of videos, of folders of images, of npz/npy arrays, of tar files (WebDataset) or of the authors'
    HDF5 shards, in any nesting, or one file. Damaged and short files are named and left out. See docs/data.md.

    Examples: mcvd data prepare my_videos/ my_data --size 64 64; mcvd data prepare KTH/ kth64 --layout kth;
    mcvd data prepare actions64.npz actions --split-by 'person(\\d+)'
    """

    source: Annotated[Path, Positional, arg(metavar="SOURCE")]
    """Where the videos are."""
    destination: Annotated[Path, Positional, arg(metavar="FOLDER")]
    """New or empty folder, or one of an earlier run."""
    layout: Literal["videos", "kth", "bair", "cityscapes", "ucf101"] = "videos"
    """videos: any videos; or the raw download of a published data set, with its split and its resizing."""
    size: Annotated[MaybeSize, arg(help_behavior_hint=_PRESET.format("64 64"))] = None
    """Size of the stored frames, in pixels."""
    channels: Annotated[Literal[1, 3] | None, arg(metavar="1|3", help_behavior_hint=_PRESET.format("3"))] = None
    """1: grey; 3: RGB."""
    fit: Annotated[Fit, arg(metavar="crop|stretch", help_behavior_hint=_PRESET.format("crop"))] = None
    """Crop to the aspect ratio of --size, or stretch the whole picture to it."""
    resample: Annotated[Filter, arg(metavar="area|bilinear|lanczos", help_behavior_hint=_PRESET.format("area"))] = None
    """Filter for downscaling frames."""
    fps: Annotated[MaybeRate, arg(help_behavior_hint="(default: all frames)")] = None
    """Frames per second to store, picked by time."""
    min_frames: Count = 2
    """Shorter videos are left out."""
    split_by: Annotated[str, arg(metavar="auto|file|folder|REGEX")] = "auto"
    """What stays together: auto takes train/, val/ and test/ folders, else files; REGEX: e.g. 'person(\\d+)'."""
    test_share: Number = 0.1
    """Share of the groups held out for testing."""
    val_share: Number = 0.0
    """Share of the groups held out for validation."""
    workers: Annotated[MaybeCount, arg(help_behavior_hint="(default: one per core)")] = None
    """Decoding processes."""

    def run(self) -> None:
        """Runs the command."""
        from dataclasses import replace

        from mcvd.cli.progress import ProgressBar
        from mcvd.data.prepare import PRESETS, info, prepare

        names = ("size", "channels", "fit", "resample", "fps")
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        settings = replace(PRESETS[self.layout], **said, min_frames=self.min_frames, split_by=self.split_by,
                           test_share=self.test_share, val_share=self.val_share)  # fmt: skip
        with ProgressBar("preparing", "videos") as bar:
            prepare(self.source, self.destination, settings, workers=self.workers, progress=bar)
        print("\n".join(info(self.destination).lines()))
        print(
            f"train with: --data {self.destination}; look at it with: mcvd data info {self.destination} --sheet s.png"
        )


@dataclass(kw_only=True)
class Info:
    """Describes a prepared folder, HDF5 shards or raw videos: counts, sizes, rates, and what was left out.

    Example: mcvd data info my_data --sheet clips.png
    """

    path: Annotated[Path, Positional, arg(metavar="PATH")]
    """Prepared folder, HDF5 shards (a file or a folder of them), or raw videos."""
    sheet: Annotated[Path | None, arg(metavar="PNG", help_behavior_hint="(default: none)")] = None
    """Also write a picture of some clips (not for raw videos)."""
    clips: Count = 8
    """Rows of the picture."""
    frames: Count = 10
    """Frames per row, at most."""
    split: Annotated[Literal["train", "val", "test"], arg(metavar="train|val|test")] = "train"
    """Split that the picture shows."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.data.prepare import data_sheet, info

        print("\n".join(info(self.path).lines()))
        if self.sheet is not None:
            data_sheet(self.path, self.sheet, clips=self.clips, frames=self.frames, split=self.split)
            print(f"the picture is in {self.sheet}")


@dataclass(kw_only=True)
class Fetch:
    """Downloads and unpacks a copy of a data set that others host on the Hugging Face hub.

    Example: mcvd data fetch bair
    """

    name: Annotated[Literal["bair", "ucf101"], Positional, arg(metavar="bair|ucf101")]
    """Data set; the copies are guyuchao/BAIR and guyuchao/UCF101."""
    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: in the cache)")] = None
    """Where to put it."""

    def run(self) -> None:
        """Runs the command."""
        from mcvd.data.hub import fetch_mirror

        folder = fetch_mirror(self.name, self.output)
        print(f"{self.name} is in {folder}; prepare it with: mcvd data prepare {folder} FOLDER --layout {self.name}")


@dataclass(kw_only=True)
class Command:
    """Prepares videos for training (by default at 64x64 pixels and their own frames per second), describes data sets,
    and downloads published ones.

    Examples: mcvd data prepare my_videos my_data; mcvd data info my_data --sheet clips.png; mcvd data prepare --help
    """

    ACTIONS: ClassVar = ("prepare", "info", "fetch")

    action: OmitArgPrefixes[
        OmitSubcommandPrefixes[
            Annotated[Prepare, subcommand("prepare")]
            | Annotated[Info, subcommand("info")]
            | Annotated[Fetch, subcommand("fetch")]
        ]
    ]

    def run(self) -> None:
        """Runs the action named after `data`."""
        self.action.run()
