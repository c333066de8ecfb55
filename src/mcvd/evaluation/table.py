"""Accumulates per-video results: whatever was measured for each (clip, sample), in any order, from any process.

Everything reported is computed from this small table (a few curves and 400 features per video), so batches, processes
and interrupted runs only ever add rows, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.evaluation.files import load_tensors, save_tensors

Key = tuple[int, int]
ROUNDING = 0.3
"""Largest relative difference between two measurements of one video. Another batch size rounds differently: by 1e-5 in
float32; in half precision a few videos drift by 0.2 by their last frame. Two samples of a clip are about 0.3 apart, so
several clips of another evaluation would not pass."""
HIGHER_IS_BETTER = frozenset({"psnr", "ssim"})
Z95 = 1.959964
"""Standard errors from the mean to an end of its 95 % interval."""


@dataclass(frozen=True)
class Summary:
    """A number over clips: mean, standard deviation (ddof 0), half-width of the 95 % interval of the mean, count.

    The interval is 1.96 standard errors (ddof 1), as published; nan for a single clip.
    """

    mean: float
    std: float
    conf95: float
    count: int


def summarize(values: Tensor) -> Summary:
    """Summary of one value per clip, ``(clips,)``."""
    values, n = values.double(), len(values)
    error = float(values.std(unbiased=True)) / n**0.5 if n > 1 else float("nan")
    return Summary(float(values.mean()), float(values.std(unbiased=False)), Z95 * error, n)


class Table:
    """Rows by (clip, sample); columns by name, each a tensor of one shape, such as the SSIM of every frame ``(T,)``.

    Usual columns: ``mse``, ``ssim``, ``lpips`` of each frame, ``features`` (I3D, 400), and those of `calibration`.
    """

    def __init__(self) -> None:
        self._rows: dict[Key, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    @property
    def columns(self) -> set[str]:
        """Names of the columns that at least one row has."""
        return {name for row in self._rows.values() for name in row}

    def __iter__(self) -> Iterator[Key]:
        """(clip, sample) of each row, sorted: what an interrupted run need not do again."""
        return iter(sorted(self._rows))

    def add(self, clips: Sequence[int] | Tensor, samples: Sequence[int] | Tensor | int = 0, **columns: Tensor) -> None:
        """Adds one value per row to each column, ``(B, ...)``; a row may get its columns one after the other.

        If a row already has a value, the first one stays: two simultaneous starts may measure a clip twice. Raises
        McvdError if the values differ by more than rounding: the shards do not come from the same evaluation.
        """
        clip_ids = [int(clip) for clip in clips]
        sample_ids = [samples] * len(clip_ids) if isinstance(samples, int) else [int(sample) for sample in samples]
        for name, values in columns.items():
            if not len(values) == len(clip_ids) == len(sample_ids):
                raise McvdError(f"{name}: {len(values)} values for {len(clip_ids)} clips, {len(sample_ids)} samples")
            for key, value in zip(zip(clip_ids, sample_ids), values.detach().cpu()):
                known = self._rows.setdefault(key, {}).setdefault(name, value)
                if known is value:
                    self._rows[key][name] = value.clone()  # not a view that keeps the whole batch in memory
                elif name != "seconds" and not _alike(known, value):  # which differs each time
                    raise McvdError(f"clip {key[0]}, sample {key[1]} was measured twice with different {name}")

    def merge(self, *others: Table) -> Table:
        """Adds the rows of other tables; returns itself. Of rows that several have, the first stays, as in `add`."""
        for other in others:
            for (clip, sample), row in other._rows.items():
                self.add([clip], [sample], **{name: value[None] for name, value in row.items()})
        return self

    def rows(self, name: str, sample: int | None = None) -> Tensor:
        """A column as ``(rows, ...)``, sorted by clip, then sample; only those of `sample` if it is given."""
        keys = [key for key in self if sample is None or key[1] == sample]
        return torch.stack(self._values(name, keys))

    def grid(self, name: str) -> Tensor:
        """A column as ``(clips, samples, ...)``, sorted; McvdError unless every clip has the same samples."""
        keys = list(self)
        samples = sorted({sample for _, sample in keys})
        clips = sorted({clip for clip, _ in keys})
        if len(keys) != len(clips) * len(samples):
            raise McvdError(f"not every one of {len(clips)} clips has all {len(samples)} samples yet")
        return torch.stack(self._values(name, keys)).unflatten(0, (len(clips), len(samples)))

    def per_video(self, metric: str) -> Tensor:
        """One value per video, ``(clips, samples)``: the mean over its frames; ``psnr`` is that of the mean error."""
        if metric == "psnr":
            return -10 * self.grid("mse").double().mean(-1).log10()
        return self.grid(metric).double().mean(-1)

    def best_samples(self, metric: str) -> Tensor:
        """Index of each clip's best sample by this metric, ``(clips,)``."""
        values = self.per_video(metric)
        return values.argmax(1) if metric in HIGHER_IS_BETTER else values.argmin(1)

    def per_clip(self, metric: str, best: bool) -> Tensor:
        """One value per clip, ``(clips,)``: of its best sample by this metric (as published; depends on the number
        of samples), or the mean over its samples."""
        values = self.per_video(metric)
        return values.gather(1, self.best_samples(metric)[:, None])[:, 0] if best else values.mean(1)

    def summary(self, metric: str, over: Literal["best", "mean"] = "best") -> Summary:
        """``mse``, ``psnr``, ``ssim`` or ``lpips`` over clips; see `per_clip`."""
        return summarize(self.per_clip(metric, best=over == "best"))

    def save(self, path: Path | str) -> None:
        """Writes all rows as safetensors, atomically."""
        keys, tensors = list(self), {}
        for name in sorted(self.columns):
            having = [key for key in keys if name in self._rows[key]]
            tensors[f"value.{name}"] = torch.stack(self._values(name, having))
            tensors[f"key.{name}"] = torch.tensor(having, device="cpu")
        save_tensors(tensors, path)

    @classmethod
    def load(cls, path: Path | str) -> Table:
        """Reads what `save` wrote; McvdError for any other file."""
        tensors, table = load_tensors(path), cls()
        names = {entry.removeprefix("value.") for entry in tensors if entry.startswith("value.")}
        keys = {name: tensors.get(f"key.{name}", torch.empty(0, device="cpu")) for name in sorted(names)}
        if len(tensors) != 2 * len(names) or any(key.shape[1:] != (2,) for key in keys.values()):
            raise McvdError(f"{path} holds no rows of an evaluation")
        for name, key in keys.items():
            table.add(key[:, 0], key[:, 1], **{name: tensors[f"value.{name}"]})
        return table

    def _values(self, name: str, keys: Sequence[Key]) -> list[Tensor]:
        missing = next((key for key in keys if name not in self._rows[key]), None)
        if not keys or missing is not None:
            where = f" of clip {missing[0]}, sample {missing[1]}" if missing else ""
            raise McvdError(f"{name}{where} was not measured")
        return [self._rows[key][name] for key in keys]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two values of one measurement agree within rounding."""
    if a.shape != b.shape:
        return False
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return bool((a - b).norm() <= ROUNDING * a.norm() + 1e-6)
