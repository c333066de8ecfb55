"""Image files: stills, animations (gif, webp, apng, avif, tiff), and folders of them in natural order."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, features

from mcvd.data.frames import SourceFrame, on_black, short
from mcvd.errors import McvdError

IMAGE_SUFFIXES = {".png", ".apng", ".gif", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"}
MAYBE_ANIMATED = frozenset([".gif", ".webp", ".apng", ".png", ".tif", ".tiff", ".avif"])
_CONTAINERS = """
    mp4 m4v mov avi mkv webm mpg mpeg mpe m2v wmv asf flv f4v ts mts m2ts vob 3gp 3g2 ogv ogg rm rmvb divx dv mxf nut
    ivf y4m h264 hevc mjpeg
"""
VIDEO_SUFFIXES = frozenset("." + suffix for suffix in _CONTAINERS.split())
_FORMATS = ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF"]  # no others under such a name: EPS is a program
if "avif" in features.modules and features.check("avif"):  # from Pillow 11.3 on, depending on its build
    IMAGE_SUFFIXES.add(".avif")
    _FORMATS.append("AVIF")
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


def decoded_stills(path: Path, first_only: bool = False, alone: bool = False) -> Iterator[SourceFrame]:
    """Frames of an image file; gif, webp, apng and tiff may hold many, composed as a viewer shows them.

    alone: raises McvdError for an animation or a stack of pictures: in a folder of images, it is a clip of its own.
    """
    done, time = 0, 0.0
    try:
        with open_image(path) as image:
            if alone and path.suffix.lower() in MAYBE_ANIMATED and (count := pages(image)) > 1:
                raise McvdError(
                    f"{path} is a clip of {count} frames, and its folder is not one: name the file itself, or a folder "
                    "of images that hold one picture each"
                )
            for page in ImageSequence.Iterator(image):
                page = ImageOps.exif_transpose(page)
                grey = page.mode in ("1", "L") and image.format != "GIF"
                # 16 bit greys of microscopes and radars; "I" is 32 bit, which Pillow uses for those of pgm and some png
                if page.mode.startswith("I;16") or (page.mode == "I" and image.format in ("PNG", "PPM")):
                    pixels = (np.asarray(page).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                elif page.mode in ("I", "F"):
                    kind = "float" if page.mode == "F" else "32 bit or signed"
                    raise McvdError(f"{path} holds {kind} pixels of unknown range; store it as 8 or 16 bit, or as .npy")
                elif page.has_transparency_data:
                    pixels = on_black(np.asarray(page.convert("RGBA")))[..., : 1 if grey else 3]
                else:
                    pixels = np.asarray(page.convert("L" if grey else "RGB"))
                lasts = image.info.get("duration")  # in ms; only animations have it
                yield SourceFrame(
                    pixels.reshape(*pixels.shape[:2], -1),
                    time=None if lasts is None else time,
                    lasts=None if lasts is None else lasts / 1000,
                )
                done, time = done + 1, time + (lasts or 0) / 1000
                if first_only or alone:  # a photo of a phone may hold more: its previews
                    return
    except IMAGE_ERRORS as error:
        if not done:
            raise McvdError(f"{path} is damaged or not an image: {short(error)}") from error
        raise McvdError(f"{path} is damaged after frame {done - 1}; frames={done} reads what is intact") from error


def still_size(path: Path) -> tuple[int, int]:
    """Height and width of the first picture in an image file, turned upright. Raises McvdError for what is none."""
    [first] = decoded_stills(path, first_only=True)
    return first.size


def mean_rate(image: Image.Image) -> float | None:
    """Frames per second of an animation; of a damaged one, of its intact part."""
    count, duration = 0, 0.0
    with contextlib.suppress(*IMAGE_ERRORS):
        for page in ImageSequence.Iterator(image):
            page.load()  # webp and avif know the duration only then
            count, duration = count + 1, duration + page.info.get("duration", 0)
    return 1000 * count / duration if duration else None


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


def sample_of(name: str) -> str:
    """NAME of NAME-1, NAME-2 ..., as `mcvd predict` calls its samples; any other name as it is."""
    return re.sub(r"-\d+$", "", name)


def pages(image: Image.Image) -> int:
    """Pictures in an open image file; 1 if they cannot be counted: decoding it reports the error."""
    try:
        return getattr(image, "n_frames", 1)
    except IMAGE_ERRORS:
        return 1


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder in natural order, without hidden ones and previews of videos beside them: NAME.png of
    NAME.mp4, of a folder NAME, or of the samples NAME-1.mp4 ... Raises McvdError where there is none."""
    files = sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda path: natural(path.name))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    others = [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    videos = [path for path in others if path.suffix.lower() in (*VIDEO_SUFFIXES, ".npz")]
    names = {path.stem for path in videos} | {path.name for path in others if path.is_dir()}
    names |= {sample_of(name) for name in names}
    frames = [path for path in images if path.stem not in names]  # NAME.0001.png ... are frames that NAME.mp4 may show
    if not frames:
        video = next(iter(videos), None)
        hint = f"; name one of its videos, e.g. {video}" if video else f" ({' '.join(sorted(IMAGE_SUFFIXES))})"
        raise McvdError(f"the folder {folder} holds no image{' but previews' if images else ''}{hint}")
    return frames


def open_image(path: Path) -> Image.Image:
    """An image file, opened but not decoded, if it is of a known format. Raises McvdError for what is none."""
    try:
        return Image.open(path, formats=_FORMATS)
    except IMAGE_ERRORS as error:
        raise McvdError(f"{path} is damaged or not an image: {short(error)}") from error
