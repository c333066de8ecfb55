"""Videos in: any container FFmpeg knows, animated images, folders of frames, arrays -> (T, C, H, W) uint8.

Frames are found by decoding from the start, never by seeking: containers lie about counts and key frames, and a wrong
frame would be a silent error. Writing is in `video_write`, the sheet of frames in `sheet`; both can be had from here.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor

from mcvd.data.arrays import array_in
from mcvd.data.sheet import contact_sheet
from mcvd.data.video_write import write_video
from mcvd.errors import McvdError

__all__ = [
    "IMAGE_SUFFIXES",
    "Fitter",
    "VideoInfo",
    "contact_sheet",
    "decoded_frames",
    "decoded_stills",
    "read_images",
    "read_video",
    "video_info",
    "write_video",
]

Fit = Literal["crop", "stretch"]
IMAGE_SUFFIXES = {".png", ".apng", ".gif", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"}
IMAGE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a damaged file, or one of another kind."""
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class VideoInfo:
    """What a file says it holds. fps is None where the format has none (folders, arrays, still images)."""

    frames: int
    fps: float | None
    height: int
    width: int


def read_video(
    path: Path | str,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    fit: Fit = "crop",
) -> Tensor:
    """The frames ``start, start + stride, ...`` of a video, (T, C, H, W) uint8, as many as ``frames`` (default: all).

    path: a video file; a gif, webp, apng, tiff or single image; a folder of images (in natural order: 2 before 10); or
    an ``.npz``/``.npy`` array, (T, H, W), (T, H, W, C) or (T, C, H, W), uint8 or float in [0, 1] (in an npz: the one
    named ``video``, or the only one).
    size: side of a square, or (height, width). fit="crop" keeps the middle of the picture at its displayed proportions,
    "stretch" all of it. Shrinking averages areas, growing is bicubic.
    channels: 1 (grey, ITU-R 601 luma), 3 (RGB), or None: 1 where the stored frames are grey images or arrays, else 3.
    Rotation marks of phones are obeyed.

    A damaged file is an error even where its first frames can be read, unless ``frames`` asks for no more than those:
    what is missing is never left out in silence (where the container keeps no count, as webm and mkv, a cut is no more
    than likely: a warning). Raises McvdError with one line: what is wrong, where, what to do.
    """
    path = Path(path).expanduser()
    if start < 0 or stride < 1 or (frames is not None and frames < 1):
        raise McvdError(f"start ({start}) must be >= 0, stride ({stride}) and frames ({frames}) >= 1")
    if channels not in (None, 1, 3):
        raise McvdError(f"channels is {channels}; it must be 1 (grey) or 3 (RGB)")
    if fit not in ("crop", "stretch"):
        raise McvdError(f"fit is {fit!r}; it must be 'crop' or 'stretch'")
    target = (size, size) if isinstance(size, int) else size
    if target is not None and min(target) < 1:
        raise McvdError(f"size is {size}; it must be one positive number or (height, width)")

    stop = None if frames is None else start + (frames - 1) * stride + 1
    wanted = islice(decoded_frames(path), start, stop, stride)
    fitter = Fitter(target, channels, fit)
    out = [fitter(frame) for frame in wanted]
    if not out:
        raise McvdError(f"{path} has no frame {start}" if start else f"{path} holds no frame")
    if frames is not None and len(out) < frames:
        raise McvdError(
            f"{path} gives only {len(out)} of the {frames} frames asked for (start {start}, stride {stride})"
        )
    return _stacked(out, path)


def read_images(files: Sequence[Path | str], *, channels: int | None = None) -> Tensor:
    """Image files, in their order, as a video ``(T, C, H, W)`` uint8; of one with several pictures the first."""
    fitter = Fitter(None, channels, "crop")
    frames = (frame for file in files for frame in decoded_stills(Path(file), first_only=True))
    return _stacked([fitter(frame) for frame in frames], Path(files[0]).parent)


def _stacked(frames: list[np.ndarray], path: Path) -> Tensor:
    if len({frame.shape for frame in frames}) > 1:
        if len({frame.shape[:2] for frame in frames}) > 1:
            raise McvdError(f"the frames of {path} differ in size, e.g. {frames[0].shape[:2]}; give size=")
        frames = [np.broadcast_to(frame, (*frame.shape[:2], 3)) for frame in frames]  # grey and colour in one folder
    return torch.from_numpy(np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2)))


def video_info(path: Path | str) -> VideoInfo:
    """Number of frames, rate and size without decoding (in containers without a count, packets are counted)."""
    path = Path(path).expanduser()
    _must_exist(path)
    if path.is_dir():
        images = _images_in(path)
        with _open_image(images[0]) as image:
            return VideoInfo(len(images), None, image.height, image.width)
    if path.suffix.lower() in (".npz", ".npy"):
        frames, height, width, _ = array_in(path).shape
        return VideoInfo(frames, None, height, width)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        with _open_image(path) as image:
            count, duration = pages(image), image.info.get("duration", 0)
            return VideoInfo(count, 1000 / duration if count > 1 and duration else None, image.height, image.width)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            rate = stream.average_rate or stream.guessed_rate
            return VideoInfo(count, float(rate) if rate else None, stream.height, stream.width)
    except (FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error


# ------------------------------------------------------------------------------------------------------- sources

SourceFrame = tuple[Any, Fraction, int]
"""A picture (av.VideoFrame, or (H, W, 1|3) uint8 array), pixel width / height, degrees to turn it anticlockwise."""


def decoded_frames(path: Path) -> Iterator[SourceFrame]:
    """All frames of whatever lies at ``path``, one by one: nothing is decoded that is not asked for."""
    _must_exist(path)
    if path.is_dir():
        for image in _images_in(path):
            yield from decoded_stills(image, first_only=True)
    elif path.suffix.lower() in (".npz", ".npy"):
        for frame in array_in(path):
            yield frame, Fraction(1), 0
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield from decoded_stills(path)
    else:
        yield from _container_frames(path)


def _container_frames(path: Path) -> Iterator[SourceFrame]:
    done, end = 0, 0.0
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            for frame in container.decode(stream):
                yield frame, Fraction(aspect), frame.rotation
                done += 1
                end = max(end, frame.time or 0.0)
            declared, duration = stream.frames, None
            if not declared and container.duration and len(container.streams) == 1:
                duration = container.duration / av.time_base
    except (FFmpegError, OSError, UnicodeDecodeError) as error:
        if not done:
            raise _unreadable(path, error) from error
        raise McvdError(f"{path} is damaged after frame {done - 1}; frames={done} reads what is whole") from error
    # FFmpeg ends a cut avi or gif without a word. Headers are off by one or two in healthy files.
    if done < 0.95 * declared - 2:
        raise McvdError(f"{path} is cut short: {done} of {declared} frames are there; frames={done} reads them")
    if duration and duration - end > max(1.0, 0.1 * duration):  # a long last frame is legal, so no more than a warning
        warnings.warn(f"{path} may be cut short: frames end at {end:.1f} s of {duration:.1f} s", stacklevel=2)


def decoded_stills(path: Path, first_only: bool = False) -> Iterator[SourceFrame]:
    """Frames of an image file; gif, webp, apng and tiff may hold many, composed as a viewer shows them."""
    done = 0
    try:
        with _open_image(path) as image:
            for page in ImageSequence.Iterator(image):
                page = ImageOps.exif_transpose(page)
                grey = page.mode in ("1", "L", "I", "I;16", "I;16B", "F") and image.format != "GIF"
                if page.mode.startswith("I"):  # 16 bit greys of microscopes and radars
                    pixels = (np.asarray(page).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                elif page.mode == "F":
                    raise McvdError(f"{path} holds float pixels of unknown range; store it as 8 or 16 bit, or as .npy")
                else:
                    pixels = np.asarray(page.convert("L" if grey else "RGB"))
                yield pixels.reshape(*pixels.shape[:2], -1), Fraction(1), 0
                done += 1
                if first_only:
                    return
    except IMAGE_ERRORS as error:
        if not done:
            raise McvdError(f"{path} is damaged or not an image: {_short(error)}") from error
        raise McvdError(f"{path} is damaged after frame {done - 1}; frames={done} reads what is whole") from error


# ------------------------------------------------------------------------------------------------------ geometry


class Fitter:
    """Turns each source picture into (H, W, C) uint8 of the size asked for.

    One scaler with one thread for the whole video: PyAV's default builds a many-threaded one for every frame, which
    costs more than the decoding.
    """

    def __init__(self, size: tuple[int, int] | None, channels: int | None, fit: Fit) -> None:
        self.size, self.channels, self.fit = size, channels, fit
        self.scaler = VideoReformatter()

    def __call__(self, source: SourceFrame) -> np.ndarray:
        frame, aspect, turn = source
        quarter = round(turn / 90) % 4
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
        try:
            scaled = self.scaler.reformat(
                frame,
                width=width,
                height=height,
                format="gray" if grey else "rgb24",
                interpolation=(Interpolation.AREA if shrinks else Interpolation.BICUBIC) | _EXACT,
                threads=1,
            ).to_ndarray()
        except FFmpegError as error:
            raise McvdError(f"a frame of {frame.width}x{frame.height} cannot be made {width}x{height}") from error
        if rows is not None and columns is not None:
            top, left = (height - rows) // 2, (width - columns) // 2
            scaled = scaled[top : top + rows, left : left + columns]
        pixels = np.rot90(scaled.reshape(*scaled.shape[:2], -1), quarter)
        if self.channels == 1 and pixels.shape[2] == 3:
            weights = np.array([19595, 38470, 7471])  # 0.299, 0.587, 0.114 in 1/65536, as Pillow's "L"
            return ((pixels @ weights + 32768) >> 16).astype(np.uint8)[..., None]
        return pixels.repeat(3, 2) if self.channels == 3 and pixels.shape[2] == 1 else pixels


# ------------------------------------------------------------------------------------------------------- helpers


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key by which frame2 comes before frame10; equal keys are told apart by the text itself."""
    parts: list[tuple[int, str]] = []
    number = ""
    for letter in text.lower():
        if letter.isascii() and letter.isdigit():
            number += letter
            continue
        if number:
            parts.append((int(number), ""))
            number = ""
        parts.append((-1, letter))
    if number:
        parts.append((int(number), ""))
    return [*parts, (-2, text)]


def pages(image: Image.Image) -> int:
    """Pictures in an open image file; 1 where they cannot be counted, which is noticed again when it is decoded."""
    try:
        return getattr(image, "n_frames", 1)
    except IMAGE_ERRORS:
        return 1


def _images_in(folder: Path) -> list[Path]:
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not images:
        raise McvdError(f"the folder {folder} holds no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(images, key=lambda path: natural(path.name))


def _open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except IMAGE_ERRORS as error:
        raise McvdError(f"{path} is damaged or not an image: {_short(error)}") from error


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise McvdError(f"{path} has no video in it (only {container.format.long_name})")
    return container.streams.video[0]


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise McvdError(f"{path} does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise McvdError(f"{path} is empty")


def _unreadable(path: Path, error: Exception) -> McvdError:
    reason = getattr(error, "strerror", None) or _short(error)
    return McvdError(f"cannot read {path} as a video ({reason}); try to play it, or convert it with FFmpeg")


def _short(error: Exception) -> str:
    """First line of an error, without the folder names FFmpeg and Pillow put in."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
