"""`mcvd info`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mcvd.errors import McvdError
from mcvd.files import expanded, is_run


@dataclass(kw_only=True)
class Command:
    """Describes a model and the tasks it was trained for, or the length and size of a clip.

    Examples: mcvd info digits; mcvd info clip.mp4
    """

    what: Annotated[str, Positional, arg(metavar="MODEL|CLIP")]
    """A model (bundled name, folder, checkpoint_N.pt, owner/name), or a clip. Sizes are in pixels, rates per second."""

    def run(self) -> None:
        """Runs the command."""
        print("\n".join(f"{name:<12} {value}" for name, value in self._rows()))

    def _rows(self) -> list[tuple[str, str]]:
        path = expanded(self.what)
        folder = model_folder(self.what)
        clip = is_named_as_clip(path) or (path.exists() and not is_run(path))  # `load` says that it has no model yet
        if folder is None and clip and path.suffix not in (".pt", ".pth"):
            must_be_one_clip(path)
            try:
                return clip_rows(path)
            except McvdError:
                if path.is_dir() or is_named_as_clip(path):
                    raise  # of any other file, `load` says what it is
        from mcvd.card import model_rows
        from mcvd.interop.load import load

        return [("model", self.what), *model_rows(load(self.what, device="cpu"))]


def model_folder(name: str) -> Path | None:
    """The local folder that holds the model's config.json, if the name refers to one."""
    from importlib.resources import files

    places = [expanded(name), expanded(name) / "model"]
    if "/" not in name:
        places.append(Path(str(files("mcvd.pretrained"))) / name)
    return next((place for place in places if (place / "config.json").is_file()), None)


def is_named_as_clip(path: Path) -> bool:
    """Whether the suffix is one of videos, images or arrays."""
    from mcvd.data.arrays import ARRAY_SUFFIXES
    from mcvd.data.stills import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    return path.suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, *ARRAY_SUFFIXES)


def must_be_one_clip(path: Path) -> None:
    """Raises McvdError for a folder without images, naming a clip in it and the command that describes them all."""
    from mcvd.data.stills import IMAGE_SUFFIXES, images_in

    if not path.is_dir():
        return
    try:
        images_in(path)
    except McvdError:
        inside = (file for file in sorted(path.iterdir()) if file.name[0] != "." and is_named_as_clip(file))
        clip = next((file for file in inside if file.suffix.lower() not in IMAGE_SUFFIXES), None)
        raise McvdError(
            f"{path} is neither a model (it has no config.json) nor a clip (it has no image); "
            f"{f'name one in it ({clip}), or: ' if clip else ''}mcvd data info {path} says what videos it holds"
        ) from None


def clip_rows(path: Path) -> list[tuple[str, str]]:
    """What is known about a clip without decoding it."""
    from mcvd.data.video import video_info

    info = video_info(path)
    rows = [("clip", str(path)), ("frames", str(info.frames)), ("size", f"{info.width}x{info.height} pixels")]
    if info.fps:
        rows += [("rate", f"{info.fps:.4g} frames per second"), ("duration", f"{info.frames / info.fps:.2f} s")]
    return rows
