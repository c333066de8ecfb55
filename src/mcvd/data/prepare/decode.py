"""One item -> its frames as they are stored, one after another: found, turned, cut, resized, resampled in time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from mcvd.data.arrays import array_in
from mcvd.data.frames import Fitter, SourceFrame
from mcvd.data.hdf5 import video_frames
from mcvd.data.prepare.bair import record_frames
from mcvd.data.prepare.items import Item, open_array
from mcvd.data.settings import Settings
from mcvd.data.stills import decoded_stills
from mcvd.data.video import decoded_frames, video_info
from mcvd.errors import McvdError


class Decoder:
    """Iterating gives (H, W, C) uint8 frames; after that `fps`, `source_size` and `notes` are known.

    Raises McvdError for a damaged source, on reaching the damage.
    """

    def __init__(self, item: Item, settings: Settings):
        self.item, self.settings = item, settings
        self.fps: float | None = None
        self.source_size: tuple[int, int] | None = None
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.item.problem:
            raise McvdError(self.item.problem)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield from self._resampled(self._rate())
        self.notes = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]

    def _rate(self) -> float | None:
        """Frames per second of the source, if it says so."""
        return video_info(self.item.files[0]).fps if self.item.kind == "video" else None

    def _resampled(self, rate: float | None) -> Iterator[np.ndarray]:
        """Stored frame k is the one that a viewer sees at k / fps seconds."""
        fit, fps = _Fit(self.settings), self.settings.fps
        self.fps = fps if fps and rate else rate
        shown: np.ndarray | None = None
        count, first, end = 0, None, 0.0
        for index, source in enumerate(self._sources()):
            if self.source_size is None:
                self.source_size = source.size
            if not (fps and rate):
                yield fit(source)
                continue
            first = source.time if index == 0 else first
            time = index / rate if source.time is None or first is None else source.time - first
            end = time + (1 / rate if source.lasts is None else source.lasts)
            while shown is not None and count / fps < time - 1e-6:
                yield shown
                count += 1
            shown = fit(source)
        if fps and rate:
            while shown is not None and count / fps < end - 1e-6:
                yield shown
                count += 1

    def _sources(self) -> Iterator[SourceFrame]:
        kind, file = self.item.kind, Path(self.item.files[0])
        if kind in ("video", "npy"):
            yield from decoded_frames(file)
        elif kind == "images":
            for image in self.item.files:
                yield from decoded_stills(Path(image), first_only=True)
        elif kind == "npz":
            with open_array(self.item) as stream:
                video = array_in(stream, self.item.name)
            for picture in video:
                yield SourceFrame(picture)
        else:
            frames = record_frames if kind == "tfrecord" else video_frames
            for picture in frames(file, int(self.item.key)):
                yield SourceFrame(picture)


class _Fit:
    """Converts a picture to the stored size and colours."""

    def __init__(self, settings: Settings):
        self.settings = settings
        # for the filters of published data sets, the picture comes in full size and is resized here
        size = settings.size if settings.resample == "area" else None
        self.reader = Fitter(size, settings.channels, settings.fit)

    def __call__(self, source: SourceFrame) -> np.ndarray:
        frame, settings = self.reader(source), self.settings
        if settings.resample != "area":
            if settings.fit == "crop":
                frame = _middle(frame, settings.size, source.upright_aspect)
            if frame.shape[:2] != settings.size:
                resized = _lanczos if settings.resample == "lanczos" else _bilinear
                frame = resized(frame, settings.size)
        return np.ascontiguousarray(frame)


def _middle(frame: np.ndarray, size: tuple[int, int], aspect: Fraction) -> np.ndarray:
    """The largest part in the middle that is displayed with the proportions of `size`; aspect: of the frame's pixels,
    width / height."""
    height, width = frame.shape[:2]
    rows = min(height, round(width * aspect * size[0] / size[1]))
    columns = min(width, round(height / aspect * size[1] / size[0]))
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + rows, left : left + columns]


def _lanczos(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[2] == 1 else frame))
    return np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS)).reshape(*size, frame.shape[2])


def _bilinear(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Without averaging: aliased where it shrinks, as the published KTH frames are."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    small = functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
