"""A picture of videos: one row each, frames numbered, the colour of the edge says which frames were given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.files import whole_file
from mcvd.given import tensor, whole

GIVEN, MADE = (44, 110, 187), (226, 120, 20)  # blue and orange: told apart by colour-blind readers too
PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (130, 130, 130)


def as_uint8(video: Tensor) -> Tensor:
    """(T, C, H, W), C 1 or 3, uint8 or float in [0, 1] -> the same as uint8 on the CPU; else McvdError."""
    if tensor(video).ndim != 4 or video.shape[1] not in (1, 3) or 0 in video.shape:
        raise McvdError(f"a video is (T, C, H, W) with C 1 or 3, not {tuple(video.shape)}")
    if video.dtype == torch.uint8:
        return video.detach().cpu()
    if not video.is_floating_point():
        raise McvdError(f"a video is uint8 or float in [0, 1], not {video.dtype}")
    video = video.detach().float().cpu()
    low, high = video.min().item(), video.max().item()
    if not (low >= -0.01 and high <= 1.01):  # also catches NaN
        raise McvdError(f"the video has values {low:.3g} .. {high:.3g}; floats must lie in [0, 1]")
    return (video.clamp(0, 1) * 255).round().to(torch.uint8)


def contact_sheet(
    rows: Sequence[tuple[str, Tensor]],
    made: Tensor | Sequence[bool] | None = None,
    *,
    path: Path | str | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """One row of frames for each (label, video); frame numbers on top.

    rows: videos (T, C, H, W), uint8 or float in [0, 1]; T may differ, height and width may not.
    made: (T,) for all rows or (rows, T), bool or int: frames of 1 get an orange edge (made by the model), of 0 a blue
    one (given), of -1 none (neither: a real frame that the model did not see). None: no edges at all.
    columns: frames side by side before the rows go on below (default: what fits in about 1600 px, 4 to 20).
    scale: pixels become scale x scale (default: short side at least 64 px).
    path: where to save the PNG too.
    """
    if not rows:
        raise McvdError("a contact sheet needs at least one video")
    videos = [as_uint8(video) for _, video in rows]
    height, width = videos[0].shape[-2:]
    if any(video.shape[-2:] != (height, width) for video in videos):
        raise McvdError(f"videos of one sheet must have one size, not {sorted({tuple(v.shape[-2:]) for v in videos})}")
    longest = max(len(video) for video in videos)
    marks = None
    if made is not None:
        marks = torch.as_tensor(made).cpu().to(torch.int8)
        if marks.shape not in ((longest,), (len(rows), longest)):
            raise McvdError(f"made must be ({longest},) or ({len(rows)}, {longest}), not {tuple(marks.shape)}")
        marks = marks.expand(len(rows), longest)

    scale = max(1, -(-64 // min(height, width))) if scale is None else whole("scale", scale, 1)
    height, width = height * scale, width * scale
    text = max(11, min(18, height // 7))
    font = ImageFont.load_default(text)
    edge = max(2, height // 40) if marks is not None else 0
    gap = max(2, height // 40)
    cell_h, cell_w = height + 2 * edge + gap, width + 2 * edge + gap
    columns = max(4, min(20, 1600 // cell_w)) if columns is None else whole("columns", columns, 1)
    columns = min(columns, longest)
    groups = -(-longest // columns)
    head = text + 6
    left = int(max(font.getlength(label) for label, _ in rows)) + (10 if any(label for label, _ in rows) else 0) + gap
    group_h = head + len(rows) * cell_h + (gap * 2 if groups > 1 else 0)
    foot = head + 4 if marks is not None else 0
    legend_w = int(font.getlength("given made")) + 6 * text
    size = (max(left + columns * cell_w, legend_w if foot else 0) + gap, groups * group_h + foot + gap)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)

    every = next(n for n in (1, 2, 5, 10, 20, 50, 100) if n * cell_w > font.getlength("0000") or n == 100)
    for frame in range(longest):
        group, column = divmod(frame, columns)
        x, top = left + column * cell_w, group * group_h
        if frame % every == 0:
            draw.text((x + edge + width / 2, top + head / 2), str(frame), FAINT, font, anchor="mm")
        for row, video in enumerate(videos):
            if frame >= len(video):
                continue
            y = top + head + row * cell_h
            if marks is not None:
                colour = {1: MADE, 0: GIVEN}.get(int(marks[row, frame]), PAPER)
                draw.rectangle((x, y, x + width + 2 * edge - 1, y + height + 2 * edge - 1), fill=colour)
            sheet.paste(_picture(video[frame], scale), (x + edge, y + edge))
    for group in range(groups):
        for row, (label, _) in enumerate(rows):
            middle = group * group_h + head + row * cell_h + edge + height / 2
            draw.text((left - 6, middle), label, INK, font, anchor="rm")
    if marks is not None:
        pen, line = float(left), groups * group_h + foot / 2
        for name, colour in (("given", GIVEN), ("made", MADE)):
            draw.rectangle((pen, line - text / 2.5, pen + text * 0.8, line + text / 2.5), fill=colour)
            draw.text((pen + text * 1.2, line), name, INK, font, anchor="lm")
            pen += text * 2.4 + font.getlength(name)
    if path is not None:
        _save(sheet, Path(path).expanduser())
    return sheet


def _picture(frame: Tensor, scale: int) -> Image.Image:
    pixels = frame.repeat_interleave(scale, -1).repeat_interleave(scale, -2).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _save(sheet: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            sheet.save(temporary, "PNG")
    except OSError as error:
        raise McvdError(f"cannot write {path}: {error.strerror or error}") from error
