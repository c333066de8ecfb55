"""A picture as its source holds it, and how it becomes a frame: turned upright, cut, resized, in grey or RGB."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from mcvd.errors import McvdError
from mcvd.text import first_line

Fit = Literal["crop", "stretch"]
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


class SourceFrame(NamedTuple):
    """A picture as it comes from its source, and what the source says about it."""

    picture: Any
    """An av.VideoFrame, or a (H, W, 1|3) uint8 array."""
    aspect: Fraction = Fraction(1)
    """Pixel width / height."""
    turn: int = 0
    """Degrees to turn it anticlockwise."""
    flip: bool = False
    """Whether it is mirrored top to bottom before that."""
    time: float | None = None
    """Seconds at which it appears, from any origin; None if the source has no times."""
    lasts: float | None = None
    """Seconds for which it is shown, if the source says so."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture turned upright."""
        picture = self.picture
        height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
        return (width, height) if _quarters(self.turn) % 2 else (height, width)

    @property
    def upright_aspect(self) -> Fraction:
        """Pixel width / height of the picture turned upright."""
        return 1 / self.aspect if _quarters(self.turn) % 2 else self.aspect


class Fitter:
    """Turns each source picture into (H, W, C) uint8 of the requested size.

    One scaler with one thread for the whole video: PyAV's default builds a multi-threaded one for every frame, which
    costs more than the decoding.
    """

    def __init__(self, size: tuple[int, int] | None, channels: int | None, fit: Fit) -> None:
        self.size, self.channels, self.fit = size, channels, fit
        self.scaler = VideoReformatter()

    def __call__(self, source: SourceFrame) -> np.ndarray:
        try:
            return self._fitted(source)
        except FFmpegError as error:
            height, width = source.size
            to = f" made {self.size[1]}x{self.size[0]}" if self.size else " converted"
            raise McvdError(f"a frame of {width}x{height} cannot be{to}: {short(error)}") from error

    def _fitted(self, source: SourceFrame) -> np.ndarray:
        frame, aspect, quarter = source.picture, source.aspect, _quarters(source.turn)
        if not isinstance(frame, np.ndarray) and any(part.is_alpha for part in frame.format.components):
            frame = on_black(self._scaled(frame, "rgba", Interpolation.BICUBIC))
        if isinstance(frame, np.ndarray):
            grey = frame.shape[2] == 1
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[..., 0] if grey else frame), "gray" if grey else "rgb24"
            )
        else:
            grey = frame.format.name.startswith("gray")
        height, width, rows, columns = frame.height, frame.width, None, None
        if self.size is not None:
            rows, columns = self.size[::-1] if quarter % 2 else self.size
            height, width = rows, columns
            if self.fit == "crop":
                scale = max(rows / frame.height, columns / (frame.width * aspect))
                height = max(rows, round(frame.height * scale))
                width = max(columns, round(float(frame.width * aspect) * scale))
        shrinks = height <= frame.height and width <= frame.width
        how = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        scaled = self._scaled(frame, "gray" if grey else "rgb24", how, width=width, height=height)
        if rows is not None and columns is not None:
            top, left = (height - rows) // 2, (width - columns) // 2
            scaled = scaled[top : top + rows, left : left + columns]
        scaled = scaled.reshape(*scaled.shape[:2], -1)
        pixels = np.rot90(scaled[::-1] if source.flip else scaled, quarter)
        if self.channels == 1 and pixels.shape[2] == 3:
            return luma(pixels)
        return pixels.repeat(3, 2) if self.channels == 3 and pixels.shape[2] == 1 else pixels

    def _scaled(self, frame: av.VideoFrame, pix_fmt: str, how: Interpolation, **size: int) -> np.ndarray:
        return self.scaler.reformat(frame, format=pix_fmt, interpolation=how | _EXACT, threads=1, **size).to_ndarray()


def _quarters(turn: int) -> int:
    return round(turn / 90) % 4


def luma(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (..., 1), ITU-R 601: 0.299, 0.587, 0.114 in 1/65536, as Pillow's "L"."""
    return ((rgb @ np.array([19595, 38470, 7471]) + 32768) >> 16).astype(np.uint8)[..., None]


def on_black(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 -> (H, W, 3): transparent pixels become black."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


def short(error: Exception) -> str:
    """First line of an error, cut to 120 characters."""
    return first_line(error)[:120]
