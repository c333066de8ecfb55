"""Videos in: any container FFmpeg knows, animated images, folders of frames, arrays -> (T, C, H, W) uint8.

Frames are found by decoding from the start, never by seeking: containers lie about counts and key frames, and a wrong
frame would be a silent error. Writing is in `video_write`, the contact sheet in `sheet`; both are exported here too.
"""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.stream import Disposition
from torch import Tensor

from mcvd.data.arrays import ARRAY_SUFFIXES, array_in
from mcvd.data.frames import Fit, Fitter, SourceFrame, short
from mcvd.data.sheet import contact_sheet
from mcvd.data.stills import IMAGE_SUFFIXES, decoded_stills, images_in, mean_rate, open_image, pages, still_size
from mcvd.data.video_write import write_video
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.given import whole
from mcvd.text import counted

__all__ = ["VideoInfo", "contact_sheet", "read_images", "read_video", "video_info", "write_video"]

_LAST = sys.maxsize  # the largest count of frames
_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_STILL_BRANDS = ("avif", "heic", "heix", "mif1")  # to FFmpeg, a film of one frame at one frame per second


@dataclass(frozen=True)
class VideoInfo:
    """What a file says it holds, height and width as displayed (a phone's rotation mark is applied).

    fps is None where the format has none (folders, arrays, still images); of an animated image it is the mean rate.
    """

    frames: int
    fps: float | None
    height: int
    width: int

    @property
    def text(self) -> str:
        """`640x480, 90 frames at 30 fps`."""
        rate = f" at {self.fps:.4g} fps" if self.fps else ""
        return f"{self.width}x{self.height}, {counted(self.frames, 'frame')}{rate}"


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

    path: a video file (but not a playlist: the files that it names are not opened); a gif, webp, apng, tiff or single
    image; a folder of images (in natural order: 2 before 10); or an ``.npz``/``.npy`` array, (T, H, W), (T, H, W, C) or
    (T, C, H, W), uint8 or float in [0, 1] (in an npz: the one named ``video``, or the only one).
    size: side of a square, or (height, width). fit="crop" keeps the middle of the picture at its displayed proportions,
    "stretch" all of it. Shrinking averages areas, enlarging is bicubic.
    channels: 1 (grey, ITU-R 601 luma), 3 (RGB), or None: 1 if the stored frames are grey images or arrays, else 3.
    Rotation and mirroring marks of phones are applied; transparent pixels become black.

    A damaged file is an error even if its first frames can be read, unless ``frames`` asks for no more than those:
    missing frames are never skipped silently (containers without a count of frames, such as webm and mkv, only make a
    cut likely: a warning, as for frames of which FFmpeg says that they are damaged). Raises McvdError with one line:
    what is wrong, where, what to do.
    """
    path = expanded(path)
    start, stride = whole("start", start, 0, _LAST), whole("stride", stride, 1, _LAST)
    frames = None if frames is None else whole("frames", frames, 1, _LAST)
    if channels not in (None, 1, 3):
        raise McvdError(f"channels is {channels}; it must be 1 (grey) or 3 (RGB)")
    if fit not in ("crop", "stretch"):
        raise McvdError(f"fit is {fit!r}; it must be 'crop' or 'stretch'")
    target = None if size is None else _sides(size)

    stop = None if frames is None else min(start + (frames - 1) * stride + 1, _LAST)
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
    """Image files, in the given order, as a video ``(T, C, H, W)`` uint8; of one with several pictures, the first."""
    fitter = Fitter(None, channels, "crop")
    frames = (frame for file in files for frame in decoded_stills(Path(file), first_only=True))
    return _stacked([fitter(frame) for frame in frames], Path(files[0]).parent)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (whole("size", side, 1) for side in (size if isinstance(size, Sequence) else (size, size)))
    except (McvdError, ValueError):
        raise McvdError(f"size is {size!r}; it must be one positive whole number or (height, width)") from None
    return height, width


def _stacked(frames: list[np.ndarray], path: Path) -> Tensor:
    if len({frame.shape for frame in frames}) > 1:
        sizes = list(dict.fromkeys(f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames))
        if len(sizes) > 1:
            raise McvdError(
                f"the frames of {path} differ in size ({', '.join(sizes[:3])}): write them in one, or read with size="
            )
        frames = [np.broadcast_to(frame, (*frame.shape[:2], 3)) for frame in frames]  # grey and colour in one folder
    return torch.from_numpy(np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2)))


def video_info(path: Path | str) -> VideoInfo:
    """Number of frames, rate and size of a video, from decoding one frame (if the file has no count, from all packets).

    Only animated images are decoded completely: each of their frames says for how long it is shown.
    """
    path = expanded(path)
    _must_exist(path)
    if path.is_dir():
        images = images_in(path)
        return VideoInfo(len(images), None, *still_size(images[0]))
    if path.suffix.lower() in ARRAY_SUFFIXES:
        frames, height, width, _ = array_in(path).shape
        return VideoInfo(frames, None, height, width)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        with open_image(path) as image:
            count = pages(image)
            rate = mean_rate(image) if count > 1 else None
        return VideoInfo(count, rate, *still_size(path))
    try:
        with _open_video(path) as container:
            stream = _video_stream(container, path)
            declared = 0 if _is_trimmed(stream) else stream.frames
            packets, first = 0, None
            for packet in container.demux(stream):
                packets += packet.size > 0 and not packet.is_discard
                first = first or next(iter(packet.decode()), None)
                if first is not None and declared:
                    break
            if first is None:
                raise McvdError(f"{path} holds no frame")
            count = declared or packets
            rate = stream.average_rate or stream.guessed_rate
            if count == 1 and container.metadata.get("major_brand") in _STILL_BRANDS:
                rate = None
            return VideoInfo(count, float(rate) if rate else None, *SourceFrame(first, turn=first.rotation).size)
    except (FFmpegError, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


# ------------------------------------------------------------------------------------------------------- sources


def decoded_frames(path: Path) -> Iterator[SourceFrame]:
    """All frames of whatever is at ``path``, one by one: only those asked for are decoded."""
    _must_exist(path)
    if path.is_dir():
        for image in images_in(path):
            yield from decoded_stills(image, alone=True)
    elif path.suffix.lower() in ARRAY_SUFFIXES:
        for frame in array_in(path):
            yield SourceFrame(frame)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield from decoded_stills(path)
    else:
        yield from _container_frames(path)


def _container_frames(path: Path) -> Iterator[SourceFrame]:
    done, end, whole = 0, 0.0, True
    try:
        with _open_video(path) as container:
            stream = _video_stream(container, path)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            for frame in _decoded(container, stream):
                if frame.is_corrupt and whole:
                    what = f"{path} is damaged: parts of frame {done}, and maybe of others, are guesses"
                    warnings.warn(what, stacklevel=2)
                    whole = False
                yield SourceFrame(frame, Fraction(aspect), frame.rotation, _is_mirrored(frame), frame.time)
                done += 1
                end = max(end, frame.time or 0.0)
            declared, duration = stream.frames, None
            if _is_trimmed(stream) and end > 0.95 * stream.duration * stream.time_base - 2 / stream.average_rate:
                declared = done
            if not declared and container.duration and len(container.streams) == 1:
                duration = container.duration / av.time_base
    except (FFmpegError, OSError, UnicodeDecodeError) as error:
        if not done:
            raise _unreadable(path, error) from error
        raise McvdError(f"{path} is damaged after frame {done - 1}; frames={done} reads what is intact") from error
    # FFmpeg ends a cut avi or gif silently. Headers are off by one or two in healthy files.
    if done < 0.95 * declared - 2:
        raise McvdError(f"{path} is cut short: {done} of {declared} frames are there; frames={done} reads them")
    if duration and duration - end > max(1.0, 0.1 * duration):  # a long last frame is legal, so only a warning
        warnings.warn(f"{path} may be cut short: frames end at {end:.1f} s of {duration:.1f} s", stacklevel=2)


# ------------------------------------------------------------------------------------------------------- helpers


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's frames, transparency included: FFmpeg's own decoders of VP8 and VP9 drop it, libvpx's do not."""
    libvpx = _LIBVPX.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or libvpx not in av.codecs_available:
        yield from container.decode(stream)
        return
    decoder: Any = av.CodecContext.create(libvpx, "r")
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _is_mirrored(frame: Any) -> bool:
    """Whether a frame's display matrix mirrors it: PyAV's `rotation` only tells where it takes the x axis."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    xx, xy, _, yx, yy, *_ = struct.unpack("=9i", bytes(matrix))
    return xx * yy < xy * yx


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    """Opens the file, and nothing that it names: a stranger's playlist could name any video on this machine."""
    with path.open("rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
        yield container


def _video_stream(container: Any, path: Path) -> Any:
    """The first stream that is no picture of a cover, which stands for the whole file, be it film or music."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise McvdError(f"{path} has no video in it (only {container.format.long_name})")


def _is_trimmed(stream: Any) -> bool:
    """Whether a container counts frames that it does not show: an mp4 that was cut without re-encoding begins at the
    key frame before the cut, and its edit list hides what lies between."""
    if not (stream.frames and stream.duration and stream.average_rate and "mov" in stream.container.format.name):
        return False
    return bool(stream.duration * stream.time_base * stream.average_rate < stream.frames - 0.5)


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise McvdError(f"{path} does not exist")
    if not path.is_dir() and not path.is_file():  # a pipe gives its bytes once, and a clip is opened more than once
        raise McvdError(f"{path} is a pipe or a device; save the clip as a file first")
    if path.is_file() and path.stat().st_size == 0:
        raise McvdError(f"{path} is empty")


def _unreadable(path: Path, error: Exception) -> McvdError:
    reason = getattr(error, "strerror", None) or short(error)
    return McvdError(f"cannot read {path} as a video ({reason}); try to play it, or convert it with FFmpeg")
