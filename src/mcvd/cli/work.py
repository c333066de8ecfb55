"""Shared by the sampling commands: every task is a video with a mask of known frames, filled in and written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mcvd.cli.options import Output, Reading, Sampling
from mcvd.cli.progress import ProgressBar
from mcvd.data.stills import IMAGE_SUFFIXES
from mcvd.data.video import contact_sheet, read_video, video_info, write_video
from mcvd.data.video_write import check_target
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.given import MOST_FRAMES, whole
from mcvd.interop.load import load
from mcvd.model import VideoDiffusion
from mcvd.planner import draw_plan, plan
from mcvd.text import colours, counted


def load_model(sampling: Sampling) -> VideoDiffusion:
    """The model of `--model`, on `--device`."""
    return load(sampling.model, device=sampling.device)


@dataclass(frozen=True)
class Clip:
    """A clip as the model takes it."""

    path: Path
    video: Tensor
    """``(T, C, H, W)`` uint8"""
    fps: float | None


def read_clip(path: Path, model: VideoDiffusion, name: str, reading: Reading) -> Clip:
    """Reads a clip in the size and colours of the model, and prints how it was converted."""
    info = video_info(path)
    stride = reading.stride or model.stride
    video = read_video(path, size=model.size, channels=model.channels, stride=stride, fit=reading.fit)
    fps = info.fps / stride if info.fps else None
    height, width = model.size
    every = f", one frame in {stride}" if stride > 1 else ""
    print(f"{path.name or path}: {info.text} -> {width}x{height} {colours(model.channels)}{every}, as {name} needs")
    return Clip(path, video, fps)


def context_frames(video: Tensor, asked: int | Literal["all"] | None, default: int, *, end: bool) -> Tensor:
    """The frames of a clip that are given to the model: the last ones (`end`), or the first.

    default: how many the model sees (if it sees none on that side, one frame is given, to be imposed).
    """
    n = len(video) if asked == "all" else asked or min(max(default, 1), len(video))
    if n > len(video):
        raise McvdError(f"--context is {n}, but the clip has only {counted(len(video), 'frame')}")
    return video[-n:] if end else video[:n]


def new_frames(asked: int | None, model: VideoDiffusion) -> int:
    """How many frames to generate: `--frames`, or one block."""
    return whole("--frames", asked or model.layout.current, 1, MOST_FRAMES)


def fill_in(
    model: VideoDiffusion,
    video: Tensor,
    known: Sequence[bool],
    name: str,
    sampling: Sampling,
    output: Output,
    *,
    clips: Sequence[Clip] = (),
    truth: Tensor | None = None,
) -> None:
    """Generates the unknown frames of video ``(T, C, H, W)``, writes a file per sample and a contact sheet of them all.

    name: of the files, unless `--out` gives another. clips: the clips that were read, which are never overwritten; the
    first frame rate among them is the output's. truth: real frames for the first row of the contact sheet.
    """
    fps = output.fps or next((clip.fps for clip in clips if clip.fps), None) or model.config.fps
    files, sheet = targets(output.out, name, sampling.samples, [clip.path for clip in clips], fps)
    blocks = plan(known, model.layout, model.config.masking)
    if output.show_plan:
        print(draw_plan(blocks, known))
    made = counted(known.count(False), "frame")
    given = counted(known.count(True), "given frame") if any(known) else "noise alone"
    samples = f" {sampling.samples} times" if sampling.samples > 1 else ""
    print(f"generating {made} from {given}{samples}, {counted(len(blocks), 'block')}, on {model.device}", flush=True)

    began = time.monotonic()
    options = {name: value for name, value in vars(sampling).items() if name not in ("model", "device")}
    with ProgressBar("sampling", "steps") as bar:
        videos = model.fill(video, known, progress=bar, **options)
    videos = videos.cpu()
    said = [f"generated in {time.monotonic() - began:.1f} s"]

    try:
        for path, sample in zip(files, videos):
            done = "replaced" if path.exists() else "wrote"
            write_video(path, sample, fps=fps)
            said.append(f"{done} {path} ({counted(len(sample), 'frame')} at {fps:.4g} fps)")
        rows = [(f"sample {i}", sample) for i, sample in enumerate(videos, 1)]
        edges = 1 - torch.tensor(known).int()
        if truth is not None:
            rows.insert(0, ("real clip", truth))
            edges = torch.stack([-edges, *[edges] * len(videos)])  # the model did not see its other frames
        done = "replaced" if sheet.exists() else "wrote"
        contact_sheet(rows, edges, path=sheet)
        said.append(f"{done} {sheet} (all frames: given ones edged blue, generated ones orange)")
    finally:
        print("\n".join(said))  # not before all is written: the reader may be gone (`mcvd ... | head`)


def targets(out: str | None, name: str, samples: int, inputs: Sequence[Path], fps: float) -> tuple[list[Path], Path]:
    """Paths of the videos and of the contact sheet; McvdError now, not after sampling, if they cannot be written."""
    path = expanded(out or f"output/{name}.mp4")
    if out is not None and (out.endswith(("/", "\\")) or (path.is_dir() and not _holds_frames(path))):
        path /= f"{name}.mp4"
    check_target(path, fps)
    suffix = path.suffix.lower()
    sheet = path if suffix == ".png" else path.with_suffix(".png")
    digits = len(str(samples))
    names = [path.name] if samples == 1 else [f"{path.stem}-{i:0{digits}}{path.suffix}" for i in range(1, samples + 1)]
    files = [] if suffix == ".png" else [path.with_name(n) for n in names]
    clips = [expanded(item).resolve() for item in inputs]
    folders = [clip for clip in clips if clip.is_dir()]
    for target in (*files, sheet):
        there = target.resolve()
        if any(there == clip or there in clip.parents for clip in clips):
            raise McvdError(f"{target} is the clip itself, or holds it; write to another file with --out")
        if there.parent in folders and target.suffix.lower() in IMAGE_SUFFIXES:
            raise McvdError(f"{target} would be one more frame of the clip {there.parent.name}; name another --out")
        linked = target.is_symlink() and target.is_dir()
        if linked or (target.exists() and not target.is_file() and not target.is_dir()):
            raise McvdError(f"cannot write {target}: it is a link to a folder, or a device; choose another --out")
        if target.is_dir() and (target.suffix or not _holds_frames(target)):
            raise McvdError(f"cannot write {target}: it is a folder with other things in it; choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target in (*files, sheet):  # under a name as long as that of the file that will be made
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{target.name}.").close()
    except OSError as error:
        raise McvdError(f"cannot write into {path.parent}: {error.strerror or error}") from None
    return files, sheet


def _holds_frames(folder: Path) -> bool:
    return (folder / "frame_00000.png").is_file()
