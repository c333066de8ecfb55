"""Videos in: any container FFmpeg knows, animated images, folders of frames, arrays -> (T, C, H, W) uint8.

Frames are found by decoding from the start, never by seeking: containers lie about counts and key frames, and a wrong
frame would be a silent error. Writing is in `video_write`, the sheet of frames in `sheet`; both can be had from here.
"""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps, ImageSequence, features
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
if "avif" in features.modules and features.check("avif"):  # Pillow from 11.3 on, as it was built
    IMAGE_SUFFIXES.add(".avif")
IMAGE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a damaged file, or one of another kind."""
_STILL_BRANDS = ("avif", "heic", "heix", "mif1")  # to FFmpeg a film of one frame, at one a second
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class VideoInfo:
    """What a file says it holds, height and width as displayed (a phone's rotation mark is obeyed).

    fps is None where the format has none (folders, arrays, still images); of an animated image it is the mean rate.
    """

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
    Rotation marks of phones are obeyed, mirroring ones too; what is transparent lies on black.

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
    """Number of frames, rate and size, of a video by decoding one frame (without a count, packets are counted).

    Only animated images are decoded whole: each of their frames says for how long it is shown.
    """
    path = Path(path).expanduser()
    _must_exist(path)
    if path.is_dir():
        images = _images_in(path)
        return VideoInfo(len(images), None, *_still_size(images[0]))
    if path.suffix.lower() in (".npz", ".npy"):
        frames, height, width, _ = array_in(path).shape
        return VideoInfo(frames, None, height, width)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        with _open_image(path) as image:
            count = pages(image)
            rate = _mean_rate(image) if count > 1 else None
        return VideoInfo(count, rate, *_still_size(path))
    try:
        with _open_video(path) as container:
            stream = _video_stream(container, path)
            packets, first = 0, None
            for packet in container.demux(stream):
                packets += packet.size > 0
                first = first or next(iter(packet.decode()), None)
                if first is not None and stream.frames:
                    break
            if first is None:
                raise McvdError(f"{path} holds no frame")
            count = stream.frames or packets
            rate = stream.average_rate or stream.guessed_rate
            if count == 1 and container.metadata.get("major_brand") in _STILL_BRANDS:
                rate = None
            return VideoInfo(count, float(rate) if rate else None, *SourceFrame(first, turn=first.rotation).size)
    except (FFmpegError, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _still_size(path: Path) -> tuple[int, int]:
    [first] = decoded_stills(path, first_only=True)
    return first.size


def _mean_rate(image: Image.Image) -> float | None:
    """Frames a second of an animation; of a damaged one, as far as it is whole."""
    count, duration = 0, 0.0
    with contextlib.suppress(*IMAGE_ERRORS):
        for page in ImageSequence.Iterator(image):
            page.load()  # webp and avif say it only then
            count, duration = count + 1, duration + page.info.get("duration", 0)
    return 1000 * count / duration if duration else None


# ------------------------------------------------------------------------------------------------------- sources


class SourceFrame(NamedTuple):
    """A picture as it comes from its source, and what the source says of it."""

    picture: Any
    """An av.VideoFrame, or a (H, W, 1|3) uint8 array."""
    aspect: Fraction = Fraction(1)
    """Pixel width / height."""
    turn: int = 0
    """Degrees to turn it anticlockwise."""
    flip: bool = False
    """Whether it is turned upside down before that."""
    time: float | None = None
    """Seconds at which it appears, from any origin; None where the source has no times."""
    lasts: float | None = None
    """Seconds for which it is shown, where the source says so."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture turned upright."""
        picture = self.picture
        height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
        return (width, height) if _quarters(self.turn) % 2 else (height, width)


def decoded_frames(path: Path) -> Iterator[SourceFrame]:
    """All frames of whatever lies at ``path``, one by one: nothing is decoded that is not asked for."""
    _must_exist(path)
    if path.is_dir():
        for image in _images_in(path):
            yield from decoded_stills(image, first_only=True)
    elif path.suffix.lower() in (".npz", ".npy"):
        for frame in array_in(path):
            yield SourceFrame(frame)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield from decoded_stills(path)
    else:
        yield from _container_frames(path)


def _container_frames(path: Path) -> Iterator[SourceFrame]:
    done, end = 0, 0.0
    try:
        with _open_video(path) as container:
            stream = _video_stream(container, path)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            for frame in container.decode(stream):
                yield SourceFrame(frame, Fraction(aspect), frame.rotation, _is_mirrored(frame), frame.time)
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
    done, time = 0, 0.0
    try:
        with _open_image(path) as image:
            for page in ImageSequence.Iterator(image):
                page = ImageOps.exif_transpose(page)
                grey = page.mode in ("1", "L") and image.format != "GIF"
                # 16 bit greys of microscopes and radars; "I" are 32 bit, into which Pillow puts pgm's and some png's
                if page.mode.startswith("I;16") or (page.mode == "I" and image.format in ("PNG", "PPM")):
                    pixels = (np.asarray(page).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                elif page.mode in ("I", "F"):
                    kind = "float" if page.mode == "F" else "32 bit or signed"
                    raise McvdError(f"{path} holds {kind} pixels of unknown range; store it as 8 or 16 bit, or as .npy")
                elif page.has_transparency_data:
                    pixels = _on_black(np.asarray(page.convert("RGBA")))[..., : 1 if grey else 3]
                else:
                    pixels = np.asarray(page.convert("L" if grey else "RGB"))
                lasts = image.info.get("duration")  # in ms; only animations have it
                yield SourceFrame(
                    pixels.reshape(*pixels.shape[:2], -1),
                    time=None if lasts is None else time,
                    lasts=None if lasts is None else lasts / 1000,
                )
                done, time = done + 1, time + (lasts or 0) / 1000
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
        try:
            return self._fitted(source)
        except FFmpegError as error:
            height, width = source.size
            to = f" made {self.size[1]}x{self.size[0]}" if self.size else " converted"
            raise McvdError(f"a frame of {width}x{height} cannot be{to}: {_short(error)}") from error

    def _fitted(self, source: SourceFrame) -> np.ndarray:
        frame, aspect, quarter = source.picture, source.aspect, _quarters(source.turn)
        if not isinstance(frame, np.ndarray) and any(part.is_alpha for part in frame.format.components):
            frame = _on_black(self._scaled(frame, "rgba", Interpolation.BICUBIC))
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
            weights = np.array([19595, 38470, 7471])  # 0.299, 0.587, 0.114 in 1/65536, as Pillow's "L"
            return ((pixels @ weights + 32768) >> 16).astype(np.uint8)[..., None]
        return pixels.repeat(3, 2) if self.channels == 3 and pixels.shape[2] == 1 else pixels

    def _scaled(self, frame: av.VideoFrame, pix_fmt: str, how: Interpolation, **size: int) -> np.ndarray:
        return self.scaler.reformat(frame, format=pix_fmt, interpolation=how | _EXACT, threads=1, **size).to_ndarray()


def _quarters(turn: int) -> int:
    return round(turn / 90) % 4


def _is_mirrored(frame: Any) -> bool:
    """Whether a frame's display matrix changes hands: PyAV's `rotation` tells only where it takes the x axis."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    xx, xy, _, yx, yy, *_ = struct.unpack("=9i", bytes(matrix))
    return xx * yy < xy * yx


def _on_black(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


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


def _open_video(path: Path) -> Any:
    return av.open(str(path.absolute()))  # absolute: FFmpeg takes what stands before a colon for a protocol


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
