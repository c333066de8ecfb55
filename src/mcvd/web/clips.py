"""The clips that a page works with: uploaded ones, and those generated from them."""

from __future__ import annotations

import io
import re
import secrets
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from mcvd.data.arrays import ARRAY_ERRORS
from mcvd.data.frames import Fit
from mcvd.data.video import read_video, video_info
from mcvd.data.video_write import write_video
from mcvd.errors import McvdError
from mcvd.model import VideoDiffusion

MOST_FRAMES = 600
"""Frames per clip; the rest of a longer one is left out, and the page says so."""
MOST_KEPT = 2**30
"""Bytes of frames that are kept; beyond it the oldest clips are dropped."""
COLUMNS = 16
"""Frames per row in the picture of a clip that a browser gets; one row of all may be wider than browsers can show."""
FORMATS = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "gif": "image/gif",
    "png": "image/png",
    "npz": "application/octet-stream",
}


@dataclass(frozen=True)
class Clip:
    """A clip in the size and colours of the model."""

    name: str
    video: Tensor
    """``(T, C, H, W)`` uint8."""
    fps: float
    was: str
    """What was read, or how it was generated, in words."""

    def grid(self) -> bytes:
        """All frames in one PNG, `COLUMNS` per row, without gaps."""
        frames, channels, height, width = self.video.shape
        rows = -(-frames // COLUMNS)
        cells = self.video.new_zeros(rows * COLUMNS, channels, height, width)
        cells[:frames] = self.video
        picture = cells.view(rows, COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
        pixels = picture.reshape(rows * height, COLUMNS * width, channels)
        file = io.BytesIO()
        Image.fromarray((pixels[..., 0] if channels == 1 else pixels).contiguous().numpy()).save(file, "png")
        return file.getvalue()

    def written(self, suffix: str, scratch: str | None = None) -> bytes:
        """The clip as a file of this format. scratch: folder for it while it is written (None: the system's)."""
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return write_video(Path(folder) / f"clip.{suffix}", self.video, fps=self.fps).read_bytes()


def received(path: Path, name: str, model: VideoDiffusion, stride: int, fit: Fit) -> Clip:
    """Reads an uploaded file; raises McvdError, with its uploaded name, if it is not a video."""
    try:
        if path.suffix == ".npz" and _unpacked(path) > MOST_KEPT:  # zeros compress to a thousandth
            raise McvdError(f"{name} has more than {MOST_KEPT >> 20} MiB of frames; cut it first")
        info = video_info(path)
        most = MOST_FRAMES if -(-info.frames // stride) > MOST_FRAMES else None
        video = read_video(path, size=model.size, channels=model.channels, stride=stride, fit=fit, frames=most)
    except McvdError as error:
        raise McvdError(str(error).replace(str(path), name)) from None
    fps = info.fps / stride if info.fps else model.config.fps
    return Clip(name, video, fps, f"{info.text}; only the first {most} are used" if most else info.text)


def _unpacked(path: Path) -> int:
    """Unpacked bytes of a zip file; 0 for anything else, which fails when it is read."""
    try:
        with zipfile.ZipFile(path) as packed:
            return sum(part.file_size for part in packed.infolist())
    except ARRAY_ERRORS:
        return 0


class ClipStore:
    """Clips by their ids; safe to share among threads."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.most, self._clips, self._lock = most, dict[str, Clip](), threading.Lock()

    def put(self, clip: Clip) -> str:
        """Keeps a clip; returns its id. The oldest are dropped to make room."""
        key = secrets.token_hex(6)
        with self._lock:
            self._clips[key] = clip
            while len(self._clips) > 1 and sum(kept.video.nbytes for kept in self._clips.values()) > self.most:
                del self._clips[next(iter(self._clips))]
        return key

    def get(self, key: str) -> Clip | None:
        """The clip, or None if it was dropped."""
        with self._lock:
            return self._clips.get(key)

    def __getitem__(self, key: str) -> Clip:
        if (clip := self.get(key)) is None:
            raise McvdError("that clip is no longer here: the oldest are dropped to make room; send it again")
        return clip


def file_name(name: str, suffix: str) -> str:
    """A name for a downloaded file that any system accepts."""
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', name)[:100].strip('-') or 'clip'}.{suffix}"
