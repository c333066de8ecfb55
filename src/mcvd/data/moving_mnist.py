"""Stochastic Moving MNIST, made on the fly: two handwritten digits that drift, overlap and bounce at random.

The motion is that of SVG (Denton & Fergus 2018) as the published MCVD uses it, with two sources of random numbers:

* `MovingMNIST`: item i depends only on (seed, i), whatever the batch, the worker or the device, because its random
  numbers are hashes of (seed, item, digit, counter) computed in int64; whole batches are made at once.
* `reference_sequence`: the published stream, one item after the other from a numpy generator, bit-identical.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mcvd.cache import cache_dir
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.text import colours

CANVAS, DIGIT, MAX_SPEED = 64, 32, 4
ROOM = CANVAS - DIGIT  # corners lie in 0 .. ROOM-1 (the published draw never uses ROOM itself)
IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}

AHEAD = 2**16  # frames whose motion is made at once

Redraw = Callable[[int, int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``redraw(frame, axis, low, high) -> (speed along the axis in 1..4, new velocity across it in -4..4)``, for digits
that hit the low or high wall; axis 0 is y, 1 is x. Values elsewhere are not used."""


# ---------------------------------------------------------------------------------------------------- the digits


def find_mnist(path: Path | str | None = None) -> Path:
    """Folder with the MNIST files: ``path``, else ``$MCVD_DATA/mnist``, else ``mnist`` in the cache folder.

    torchvision's ``MNIST/raw`` below any of them is found too. Raises McvdError if none of them has the files.
    """
    if path is not None:
        places = [expanded(path)]
    else:
        places = [expanded(os.environ["MCVD_DATA"]) / "mnist"] if os.environ.get("MCVD_DATA") else []
        places.append(cache_dir() / "mnist")
    for place in places:
        for folder in (place, place / "MNIST" / "raw", place / "raw"):
            if any((folder / (name + end)).is_file() for name in IMAGES.values() for end in (".gz", "")):
                return folder
    raise McvdError(f"no MNIST files in {' or '.join(map(str, places))}; get them with: mcvd fetch mnist")


def load_digits(
    root: Path | str, split: Literal["train", "test"] = "train", limit: int | None = None, resize: int = DIGIT
) -> Tensor:
    """The handwritten digits of one split, (N, resize, resize) uint8, resized from 28 px like Pillow's bilinear filter.

    limit: only the first ones (the published test set uses the first 256). Divide by 255 for the published floats.
    Raises McvdError if the file is missing or damaged.
    """
    if split not in IMAGES:
        raise McvdError(f"split is {split!r}; it must be 'train' or 'test'")
    path = Path(root) / (IMAGES[split] + ".gz")
    if not path.is_file() and path.with_suffix("").is_file():
        path = path.with_suffix("")
    if not path.is_file():
        raise McvdError(f"{path} is missing; get it with: mcvd fetch mnist")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, count, height, width = np.frombuffer(data, ">u4", 4).tolist()
        images = np.frombuffer(data, np.uint8, offset=16)
        if magic != 2051 or images.size != count * height * width:
            raise ValueError("not an IDX file of images, or cut short")
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise McvdError(f"{path} is damaged ({error}); delete it and run: mcvd fetch mnist") from error
    from PIL import Image  # here, so that a machine with only torch can make clips from digits prepared elsewhere

    images = images.reshape(count, height, width)[:limit]
    for _ in range(2):
        # Pillow resizes the rows, rounds to uint8, then the columns. Rows are independent, so all digits go into one
        # tall image, once as they are and once transposed: bit-identical to one by one, and much faster.
        tall = Image.fromarray(np.ascontiguousarray(images).reshape(-1, images.shape[2]))
        rows = np.asarray(tall.resize((resize, tall.height), Image.Resampling.BILINEAR))
        images = rows.reshape(len(images), -1, resize).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(images))


# ---------------------------------------------------------------------------------------------------- the motion


def move(corner: Tensor, velocity: Tensor, frames: int, redraw: Redraw | None) -> Tensor:
    """Corners (..., frames, 2) of digits that start at ``corner`` (..., 2) with ``velocity`` (..., 2); int64, (y, x).

    Before each frame the y walls are tested, then the x walls; a digit outside is put back on the wall and leaves it
    with a new velocity along *and* across. ``redraw=None`` reflects instead (the deterministic variant).
    """
    corner, velocity = corner.clone(), velocity.clone()
    path = []
    for frame in range(frames):
        for axis in (0, 1):
            low, high = corner[..., axis] < 0, corner[..., axis] >= ROOM
            hit = low | high
            if redraw is None:
                velocity[..., axis] = torch.where(hit, -velocity[..., axis], velocity[..., axis])
            else:
                speed, across = redraw(frame, axis, low, high)
                velocity[..., axis] = torch.where(hit, torch.where(low, speed, -speed), velocity[..., axis])
                velocity[..., 1 - axis] = torch.where(hit, across, velocity[..., 1 - axis])
            corner[..., axis].clamp_(0, ROOM - 1)
        path.append(corner.clone())
        corner += velocity
    return torch.stack(path, -2)


def render(digits: Tensor, path: Tensor) -> Tensor:
    """Draws digits (B, D, 32, 32) uint8 with corners at ``path`` (B, D, T, 2) -> (B, T, 64, 64) uint8, cut at 255."""
    batch, count = digits.shape[:2]
    padded = digits.new_zeros(batch, count, CANVAS + ROOM, CANVAS + ROOM)
    padded[:, :, ROOM:CANVAS, ROOM:CANVAS] = digits
    # Every possible frame is a 64 px window on the padded digit: a view, no copy; one gather takes those wanted.
    windows = padded.unfold(2, CANVAS, 1).unfold(3, CANVAS, 1)
    item = torch.arange(batch, device=digits.device)[:, None]
    video = windows[item, 0, ROOM - path[:, 0, :, 0], ROOM - path[:, 0, :, 1]]
    for d in range(1, count):
        layer = windows[item, d, ROOM - path[:, d, :, 0], ROOM - path[:, d, :, 1]]
        video += torch.minimum(layer, ~video)  # ~v = 255 - v: saturates where uint8 would wrap
    return video


# ----------------------------------------------------------------------------------- random numbers, by position


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


_GOLDEN, _MIX1, _MIX2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) on int64, whose products wrap as uint64's do."""
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _uniform(bits: Tensor, n: int) -> Tensor:
    """Hash bits -> integers in 0 .. n-1 (bias below n / 2**31)."""
    return (((bits >> 33) & ((1 << 31) - 1)) * n) >> 31


def check_frames(size: tuple[int, int], channels: int, who: str) -> None:
    """Raises McvdError unless Moving MNIST has frames of (height, width) = `size` with these channels.

    who: what asks for them, such as `the recipe`.
    """
    if size not in ((CANVAS, CANVAS), (CANVAS // 2, CANVAS // 2)) or channels != 1:
        asked = f"{size[1]}x{size[0]}, {colours(channels)}"
        raise McvdError(f"Moving MNIST is 64x64 or 32x32 and grey; {who} asks for {asked}")


class MovingMNIST:
    """Endless Stochastic Moving MNIST as a dataset of whole batches; item i is a function of (seed, i) only.

    digits: (N, 32, 32) uint8, of `load_digits`.
    frames: T.
    num_digits: digits per clip; of several numbers, each clip draws one, all with the same probability: (1, 2) makes
        half of the clips with one digit.
    size: 64, or 32 (the 64 px clip averaged 2x2, for small models).
    length: what ``len()`` returns; `batch` takes any index >= 0.
    device: where clips are made (with the same values on every device).
    """

    def __init__(
        self,
        digits: Tensor,
        frames: int,
        *,
        size: int = CANVAS,
        num_digits: int | Sequence[int] = 2,
        seed: int = 0,
        length: int = 60_000,
        device: torch.device | str = "cpu",
    ) -> None:
        if digits.dtype != torch.uint8 or digits.ndim != 3 or digits.shape[1:] != (DIGIT, DIGIT) or not len(digits):
            raise McvdError(
                f"digits must be (N, 32, 32) uint8, not {tuple(digits.shape)} {digits.dtype}; use load_digits"
            )
        if size not in (CANVAS, CANVAS // 2):
            raise McvdError(f"size is {size}; Moving MNIST is made at 64 or 32 px")
        counts = (num_digits,) if isinstance(num_digits, int) else tuple(num_digits)
        if frames < 1 or not counts or min(counts) < 1:
            raise McvdError(f"frames ({frames}) and num_digits ({num_digits}) must be at least 1")
        self.digits = digits.to(device)
        self.frames, self.size, self.counts, self.seed, self.length = frames, size, counts, seed, length
        self.counts_there = torch.tensor(counts, device=device)
        self.window = range(0), *self.paths(range(0))
        """Items whose motion has been made, and that; see `_motion`."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        """One clip, (T, 1, size, size) uint8."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        return self.batch([index])[0]

    def paths(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Which digits, (B, D), -1 for none, and where their corners are, (B, D, T, 2) as (y, x) in 0..31; int64."""
        device = self.digits.device
        if isinstance(indices, range):  # made on the device: a copy would wait for all earlier work
            item = torch.arange(len(indices), device=device) * indices.step + indices.start
        else:
            item = torch.as_tensor(indices, dtype=torch.int64, device=device)
        seed = torch.full((), _signed(self.seed & ((1 << 64) - 1)), dtype=torch.int64, device=device)
        key = _mix(_mix(_mix(seed + _GOLDEN) + item) * _GOLDEN)[:, None]
        place = torch.arange(1, max(self.counts) + 1, device=device)
        there = place <= self.counts_there[_uniform(_mix(key), len(self.counts))]
        key = _mix(key + place * _GOLDEN)
        # Counters are tied to their use (start, then 4 per frame), not to the order of hits: no draw shifts another.
        counter = torch.arange(1, 6 + 4 * self.frames, device=device) * _GOLDEN
        bits = _mix(key[..., None] + counter)
        which = torch.where(there, _uniform(bits[..., 0], len(self.digits)), -1)
        corner = _uniform(bits[..., 1:3], ROOM)
        velocity = _uniform(bits[..., 3:5], 2 * MAX_SPEED + 1) - MAX_SPEED
        bounces = bits[..., 5:].unflatten(-1, (self.frames, 2, 2))
        speed = 1 + _uniform(bounces[..., 0], MAX_SPEED)
        across = _uniform(bounces[..., 1], 2 * MAX_SPEED + 1) - MAX_SPEED

        def redraw(frame: int, axis: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            return speed[..., frame, axis], across[..., frame, axis]

        return which, move(corner, velocity, self.frames, redraw)

    def _motion(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """`paths`; of a range, from those of many items, made at once: they take hundreds of small operations, whatever
        the number of items, and a GPU would wait for Python to launch them."""
        if not (isinstance(indices, range) and indices.step == 1 and len(indices)):
            return self.paths(indices)
        made, which, path = self.window
        if not (made.start <= indices.start and indices.stop <= made.stop):
            made = range(indices.start, max(indices.stop, indices.start + AHEAD // self.frames))
            which, path = self.paths(made)
            self.window = made, which, path  # at once: another thread may be asking for clips, too
        rows = slice(indices.start - made.start, indices.stop - made.start)
        return which[rows], path[rows]

    def batch(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The clips of the given items, (B, T, 1, size, size) uint8, 0 background .. 255 ink."""
        which, path = self._motion(indices)
        drawn = self.digits[which.clamp(min=0)]
        if min(self.counts) != max(self.counts):
            drawn = drawn * (which >= 0)[..., None, None]
        video = render(drawn, path)
        if self.size != CANVAS:
            rows = video[..., 0::2, :].to(torch.int16) + video[..., 1::2, :]
            video = ((rows[..., 0::2] + rows[..., 1::2] + 2) >> 2).to(torch.uint8)
        return video.unsqueeze(2)


# ------------------------------------------------------------------------------------------- the published stream


def reference_sequence(
    digits: Tensor, rng: np.random.RandomState, frames: int, *, num_digits: int = 2, deterministic: bool = False
) -> Tensor:
    """The next clip of the published generator, (T, 1, 64, 64) uint8; ``rng`` advances as the published one does.

    The published dataset seeds once, with the first index asked for, and then draws clips in call order whatever the
    index; its test set takes only the first 256 test digits. So: ``rng = RandomState(first)``, ``digits[:256]``, one
    call per clip.
    """
    which, paths = [], []

    def there(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=digits.device)

    def redraw(frame: int, axis: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not (low | high).any():
            return there(0), there(0)
        along = rng.randint(1, MAX_SPEED + 1) if low.any() else -rng.randint(-MAX_SPEED, 0)
        return there(along), there(rng.randint(-MAX_SPEED, MAX_SPEED + 1))

    for _ in range(num_digits):  # all draws of a digit come before those of the next
        which.append(rng.randint(len(digits)))
        x, y = rng.randint(ROOM), rng.randint(ROOM)
        dx, dy = rng.randint(-MAX_SPEED, MAX_SPEED + 1), rng.randint(-MAX_SPEED, MAX_SPEED + 1)
        paths.append(move(there(y, x)[None], there(dy, dx)[None], frames, None if deterministic else redraw))
    return render(digits[which][None], torch.stack(paths, 1))[0, :, None]
