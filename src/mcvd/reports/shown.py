"""The clips that a report shows, with their pictures: a sheet of all frames, and an animation of the samples."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mcvd.data.sheet import FAINT, GIVEN, INK, MADE, PAPER, contact_sheet
from mcvd.data.video_write import write_video
from mcvd.errors import McvdError
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.table import HIGHER_IS_BETTER
from mcvd.evaluation.wording import printed, title

SAMPLES_SHOWN = 5  # per clip, always including its best sample
UNJUDGED = 3  # clips that are shown if no metric ranks them
ANIMATION_SIDE, FPS = 96, 6.0  # px, smallest short side; frames per second
MUTED = -1  # a real frame that the model did not see


@dataclass(frozen=True)
class Shown:
    """A clip of a report."""

    clip: int
    title: str
    """Why it is shown: `best by PSNR (18.31)`, possibly several reasons."""
    caption: str
    """Where it comes from, and how many of its samples are shown, if not all."""
    sheet: bytes
    """PNG."""
    animation: bytes
    """GIF."""


def choose_clips(evaluation: Evaluation) -> dict[int, list[str]]:
    """Clips to show, with the reasons: best, median and worst by PSNR, then by LPIPS, of those whose videos were kept;
    the first few if neither was measured."""
    table, best = evaluation.table, evaluation.result.protocol.best
    kept = set(evaluation.videos)
    chosen: dict[int, list[str]] = {}
    for name, column in (("psnr", "mse"), ("lpips", "lpips")):
        if table is None or column not in table.columns:
            continue
        clips = sorted({clip for clip, _ in table})
        ranked = [(value, clip) for value, clip in zip(table.per_clip(name, best).tolist(), clips) if clip in kept]
        ranked.sort(reverse=name in HIGHER_IS_BETTER)
        for place, words in _places(len(ranked)):
            value, clip = ranked[place]
            chosen.setdefault(clip, []).append(f"{words} by {title(name).partition(',')[0]} ({printed(name, value)})")
    return chosen or {clip: [f"clip {clip}"] for clip in sorted(kept)[:UNJUDGED]}


def _places(count: int) -> list[tuple[int, str]]:
    places = [(0, "best"), ((count - 1) // 2, "median"), (count - 1, "worst")]
    return {0: [], 1: places[:1], 2: [places[0], places[2]]}.get(count, places)


def draw_clips(evaluation: Evaluation) -> Iterator[Shown]:
    """The chosen clips, drawn one after the other."""
    protocol = evaluation.result.protocol
    for clip, reasons in choose_clips(evaluation).items():
        real, made = evaluation.real(clip), evaluation.made(clip)
        if real.shape != made.shape[1:]:
            path, shapes = evaluation.videos[clip], f"{tuple(real.shape)} and {tuple(made.shape[1:])}"
            raise McvdError(f"{path}: the real clip and the generated ones differ in shape: {shapes}")
        best = _best_sample(evaluation, clip, len(made))
        picked = _samples(len(made), best)
        rows = [("real", real)]
        rows += [(f"sample {i + 1}" + (" (best)" if i == best else ""), made[i]) for i in picked]
        known = torch.tensor(protocol.known, device="cpu").int()
        unseen = torch.full_like(known, MUTED) if protocol.task == "generate" else known - 1  # given 0, others -1
        marks = torch.stack([unseen, *[1 - known] * len(picked)])
        words = f"clip {clip}: {', '.join(reasons)}" if reasons != [f"clip {clip}"] else reasons[0]
        notes = [f"{source.video}, from frame {source.start}" for source in evaluation.result.sources[clip : clip + 1]]
        notes += [f"{len(picked)} of {len(made)} samples"] if len(picked) < len(made) else []
        yield Shown(clip, words, "; ".join(notes), _sheet(rows, marks), _animation(rows, marks))


def _best_sample(evaluation: Evaluation, clip: int, samples: int) -> int | None:
    """Index of the clip's best sample by PSNR; None if there is one sample or PSNR was not measured."""
    table = evaluation.table
    if table is None or "mse" not in table.columns or samples < 2:
        return None
    clips = sorted({key[0] for key in table})
    best = int(table.best_samples("psnr")[clips.index(clip)]) if clip in clips else samples
    return best if best < samples else None


def _samples(count: int, best: int | None) -> list[int]:
    shown = list(range(min(count, SAMPLES_SHOWN)))
    if best is not None and best not in shown:
        shown[-1] = best
    return shown


def _sheet(rows: Sequence[tuple[str, Tensor]], marks: Tensor) -> bytes:
    stream = io.BytesIO()
    contact_sheet(rows, marks).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _animation(rows: Sequence[tuple[str, Tensor]], marks: Tensor) -> bytes:
    """All rows side by side as a GIF, with labels on top and edges as in the sheet."""
    height, width = rows[0][1].shape[-2:]
    scale = max(1, -(-ANIMATION_SIDE // min(height, width)))
    edge, gap, head = 3, 6, 18
    cell_w, cell_h = width * scale + 2 * edge, height * scale + 2 * edge
    font = ImageFont.load_default(12)
    frames = []
    for t in range(marks.shape[1]):
        picture = Image.new("RGB", (len(rows) * (cell_w + gap) - gap, head + cell_h), PAPER)
        draw = ImageDraw.Draw(picture)
        for i, (label, video) in enumerate(rows):
            left = i * (cell_w + gap)
            colour = {0: GIVEN, 1: MADE}.get(int(marks[i, t]), FAINT)
            draw.text((left + cell_w / 2, head / 2), label, INK, font, anchor="mm")
            draw.rectangle((left, head, left + cell_w - 1, head + cell_h - 1), fill=colour)
            pixels = video[t].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            tile = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            picture.paste(tile, (left + edge, head + edge))
        frames.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
    with tempfile.TemporaryDirectory() as folder:
        return write_video(Path(folder) / "clip.gif", torch.stack(frames), fps=FPS, scale=1).read_bytes()
