"""Videos out: the suffix of the path decides the format. A file gets its name only when it is complete."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image
from torch import Tensor

from mcvd.data.sheet import as_uint8, contact_sheet
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.given import MOST_FPS, whole

# suffix -> codec, pixel format, options. Quality: hardly distinguishable from the original; files are small anyway.
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    ".mp4": ("libx264", "yuv420p", {"crf": "12", "preset": "medium", "movflags": "+faststart"}),
    ".mov": ("libx264", "yuv420p", {"crf": "12", "preset": "medium"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"crf": "18", "b": "0", "cpu-used": "4", "row-mt": "1"}),
    ".avi": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "2"}),
    ".mkv": ("ffv1", "bgr0", {}),  # lossless
    ".gif": ("gif", "pal8", {}),
}
_SHOWN = {".mp4", ".mov", ".webm", ".avi", ".gif"}  # for viewing: small frames are enlarged; the others keep the pixels
_VISIBLE = 256  # px, short side
_SLOWEST = 1 / 1001  # frames per second; what `limit_denominator` below can hold
_FASTEST_GIF = 100  # frames per second: it counts time in 1/100 s


def write_video(path: Path | str, video: Tensor, *, fps: float = 10.0, scale: int | None = None) -> Path:
    """Writes one video (T, C, H, W), C 1 or 3, uint8 or float in [0, 1]; returns the path.

    The suffix decides: mp4, mov (H.264), webm (VP9), avi (MJPEG), mkv (FFV1, lossless), gif (exact greys, 256 colours
    per frame), png (the frames side by side), npz (key ``video``, uint8, lossless); no suffix: a folder of PNG frames.
    fps: frames per second, 0.001 to 1000 (gif: 100); formats without time ignore it.
    scale: every pixel becomes scale x scale. Default: mp4, mov, webm, avi and gif are enlarged until the short side is
    at least 256 px; npz, mkv and folders keep their pixels. H.264, VP9 and MJPEG need even sizes: an odd last row or
    column is doubled. Parent folders are created; an existing file, or folder of such frames, is replaced.
    Raises McvdError for a wrong shape, range or suffix, or if writing fails (`check_target` finds, before there are
    frames, what can be found then).
    """
    path = expanded(path)
    frames = as_uint8(video)
    check_target(path, fps)
    scale = None if scale is None else whole("scale", scale, 1)
    suffix = path.suffix.lower()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own on the same disk: the finished file or folder moves out of it in one step.
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        part = temporary / path.name
        if suffix == ".png":
            contact_sheet([("", frames)], scale=scale).save(part)
        elif suffix == ".npz":
            with part.open("wb") as stream:  # to a name that ends in .NPZ numpy would add .npz
                np.savez_compressed(stream, video=_enlarge(frames, scale or 1).numpy())
        elif suffix:
            short = min(frames.shape[-2:])
            shown = max(1, -(-_VISIBLE // short)) if suffix in _SHOWN else 1
            _encode(part, _enlarge(frames, scale or shown), fps, *CODECS[suffix])
        else:
            _write_folder(part, _enlarge(frames, scale or 1))
            shutil.rmtree(path, ignore_errors=True)  # only frames of an earlier run: checked above
        os.replace(part, path)
    except (OSError, FFmpegError) as error:
        raise McvdError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def check_target(path: Path | str, fps: float) -> None:
    """All of `write_video`'s checks that need no frames, to be made before long work: McvdError, or nothing."""
    path = expanded(path)
    suffix, known = path.suffix.lower(), [*CODECS, ".png", ".npz"]
    if str(path) == "-":
        raise McvdError("cannot write to standard output (-); name a file")
    if path.name.lower() in known:
        raise McvdError(f"cannot write {path}: that is only a suffix; name the file, e.g. clip{path.name}")
    if suffix and suffix not in known:
        raise McvdError(
            f"cannot write {path}: the suffix must be {', '.join(known)}, or none for a folder of PNG frames"
        )
    if suffix and path.is_dir():
        raise McvdError(f"cannot write {path}: it is a folder; choose another name")
    if not suffix:
        _check_folder(path)
    if suffix in CODECS:
        try:
            good = _SLOWEST <= float(fps) <= MOST_FPS
        except (TypeError, ValueError):
            good = False
        if not good:
            raise McvdError(f"fps is {fps}; it must be a number from 0.001 to {MOST_FPS}")
    if suffix == ".gif" and fps > _FASTEST_GIF:
        raise McvdError(
            f"cannot write {path} at {fps:g} fps: a gif holds at most {_FASTEST_GIF} frames per second, viewers show "
            "50; write an mp4, or choose a smaller fps"
        )


def _enlarge(frames: Tensor, scale: int) -> Tensor:
    return frames.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def _encode(path: Path, video: Tensor, fps: float, codec: str, pix_fmt: str, options: dict[str, str]) -> None:
    """One pass of FFmpeg over (T, C, H, W) uint8."""
    if "420" in pix_fmt:
        video = torch.cat([video, video[..., -1:, :]], -2) if video.shape[-2] % 2 else video
        video = torch.cat([video, video[..., -1:]], -1) if video.shape[-1] % 2 else video
    pictures = video.permute(0, 2, 3, 1).contiguous().numpy()
    container_options = {"movflags": options["movflags"]} if "movflags" in options else {}
    # An absolute path: FFmpeg takes what stands before a colon for a protocol.
    with av.open(str(path.absolute()), "w", options=container_options) as container:
        rate = Fraction(float(fps)).limit_denominator(1001)
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = pictures.shape[1], pictures.shape[2], pix_fmt
        stream.options = {key: value for key, value in options.items() if key != "movflags"}
        context = stream.codec_context
        context.thread_count = 1  # with more, x264 does not always write the same bytes on a busy machine
        if pix_fmt == "yuv420p":
            # Stated in the file: otherwise, players guess BT.601 or BT.709 by the size, and shift the colours.
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            context.color_primaries, context.color_trc = 1, 1
        scaler = VideoReformatter()
        for index, picture in enumerate(pictures):
            frame = _palette_frame(picture) if pix_fmt == "pal8" else _yuv_frame(picture, pix_fmt, scaler)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _yuv_frame(picture: np.ndarray, pix_fmt: str, scaler: VideoReformatter) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3))), "rgb24")
    if pix_fmt == "bgr0":
        return scaler.reformat(rgb, format=pix_fmt, threads=1)
    full = pix_fmt == "yuvj420p"
    return scaler.reformat(
        rgb,
        format=pix_fmt,
        dst_colorspace=Colorspace.ITU601 if full else Colorspace.ITU709,
        dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        threads=1,
    )


def _palette_frame(picture: np.ndarray) -> av.VideoFrame:
    """256 colours for this frame alone: all greys, or those Pillow picks. (Its own GIF writer drops equal frames.)"""
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    if (picture == picture[..., :1]).all():
        palette[:, 1:] = np.arange(256)[:, None]
        pixels = picture[..., 0]
    else:
        image = Image.fromarray(picture).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
        colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
        palette[: len(colours), 1:] = colours
        pixels = np.asarray(image)
    return av.VideoFrame.from_ndarray((np.ascontiguousarray(pixels), palette), "pal8")  # type: ignore[arg-type]


def _write_folder(folder: Path, video: Tensor) -> None:
    folder.mkdir()
    for index, picture in enumerate(video.permute(0, 2, 3, 1).contiguous().numpy()):
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(folder / f"frame_{index:05d}.png")


def _check_folder(path: Path) -> None:
    """A folder may be replaced only if it holds nothing but frames that `write_video` wrote."""
    if path.is_file():
        raise McvdError(f"cannot write frames into {path}: it is a file")
    if path.is_dir() and any(not re.fullmatch(r"frame_\d{5,}\.png", entry.name) for entry in path.iterdir()):
        raise McvdError(f"cannot write frames into {path}: it holds other files; name a new folder")
