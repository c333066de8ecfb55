"""From rows to numbers with intervals: bootstrap over videos, and the published interval over trajectories.

The bootstrap draws videos, each with all its clips and all their samples (Davison and Hinkley 1997, section 3.8): clips
of one video resemble each other, so drawn one by one they would promise more than they hold. Clips whose videos are not
known count as one video each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcvd.evaluation.calibration import spread_skill
from mcvd.evaluation.frechet import FAKES_PER_FEATURE, Moments, frechet_distance, frechet_infinity, kernel
from mcvd.evaluation.presets import OF_FEATURES
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Number, Source
from mcvd.evaluation.table import Z95, Table, summarize
from mcvd.text import counted

RESAMPLES, FVD_RESAMPLES = 1000, 200


def videos_of(clips: Sequence[int], sources: Sequence[Source]) -> list[int]:
    """Which video each of these clips is from, counted from 0 as they come; each from its own if that is not known."""
    if any(clip >= len(sources) for clip in clips):
        return list(range(len(clips)))
    numbers: dict[str, int] = {}
    return [numbers.setdefault(sources[clip].video, len(numbers)) for clip in clips]


def resampled_counts(videos: Sequence[int], resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """How often each clip occurs in each resample, ``(resamples, clips)`` float64. videos: see `videos_of`."""
    count = max(videos) + 1
    draw = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed), device="cpu")
    ones = torch.ones_like(draw, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, draw, ones)[:, torch.tensor(videos, device="cpu")]


def half_width(values: Tensor, videos: Sequence[int]) -> Tensor:
    """Half of the 95 % interval of the mean over clips, ``(clips, ...) -> (...)``: 1.96 standard errors, allowing for
    clips of one video that deviate together (Liang and Zeger 1986). videos: of two or more, see `videos_of`."""
    deviations = values - values.mean(0)
    count = max(videos) + 1
    together = torch.zeros(count, *values.shape[1:], dtype=values.dtype, device="cpu")
    together.index_add_(0, torch.tensor(videos, device="cpu"), deviations)
    return Z95 * (count / (count - 1) * together.square().sum(0)).sqrt() / len(values)


def numbers(
    table: Table, protocol: Protocol, metrics: Sequence[str], sources: Sequence[Source] = ()
) -> tuple[dict[str, Number], dict[str, list[float]]]:
    """All numbers of a table and the curves over generated frames, by metric. sources: where each clip comes from."""
    out: dict[str, Number] = {}
    curves: dict[str, list[float]] = {}
    videos, samples = videos_of(sorted({clip for clip, _ in table}), sources), protocol.samples
    for metric in ("psnr", "ssim", "lpips"):
        if metric in metrics:
            out[metric], curves[metric] = _frame_metric(table, metric, protocol.best, videos, samples)
    if "calibration" in metrics:
        out |= _calibration_numbers(table, videos, samples, curves)
    if OF_FEATURES & set(metrics):
        real, fake = table.rows("real", sample=0), table.grid("features")
        if "fvd" in metrics:
            out |= _fvd_numbers(real, fake, videos)
        if "kvd" in metrics and len(videos) > 1:
            out["kvd"] = kvd_number(real, fake, protocol.task != "generate", videos)
    return out, curves


# ---------------------------------------------------------------------------------------------------- of frames


def _frame_metric(
    table: Table, metric: str, best: bool, videos: Sequence[int], samples: int
) -> tuple[Number, list[float]]:
    clips = len(videos)
    frames = table.grid("mse" if metric == "psnr" else metric).double()
    curve = (frames[torch.arange(clips, device="cpu"), table.best_samples(metric)] if best else frames.mean(1)).mean(0)
    curve = -10 * curve.log10() if metric == "psnr" else curve
    how = "one sample" if samples == 1 else f"{'best' if best else 'mean'} of {samples} samples"
    of = f"{how}, mean over {counted(clips, 'clip')}"
    return _mean_number(table.per_clip(metric, best), videos, of), curve.tolist()


def _mean_number(values: Tensor, videos: Sequence[int], of: str) -> Number:
    """The mean of one value per clip."""
    if max(videos) < 1 or not values.isfinite().all():  # the PSNR of a perfect video is infinite
        return Number(float(values.mean()), of=of)
    return _number(float(values.double().mean()), resampled_means(values, videos), videos, of)


def resampled_means(values: Tensor, videos: Sequence[int]) -> Tensor:
    """The mean of one value per clip in each resample, ``(clips,) -> (resamples,)`` float64."""
    counts = resampled_counts(videos)
    return counts @ values.double() / counts.sum(1)


def _number(value: float, resampled: Tensor, videos: Sequence[int], of: str, *, shift: bool = False) -> Number:
    """A value with the 2.5 and 97.5 percentiles of the resampled ones; `shift`: moved to have it as their mean."""
    over = "clips" if max(videos) + 1 == len(videos) else "videos"
    how = f"bootstrap over {over}, {len(resampled)} resamples" + (", centred" if shift else "")
    resampled = resampled[resampled.isfinite()]  # with few clips, some resamples hold one clip many times
    if not len(resampled):
        return Number(value, of=of)
    moved = resampled + (value - resampled.mean()) if shift else resampled
    return Number(value, *percentiles(moved), how, of)


def percentiles(resampled: Tensor) -> tuple[float, float]:
    """The 95 % interval by resampled values ``(resamples,)`` (Efron 1979)."""
    low, high = resampled.quantile(resampled.new_tensor([0.025, 0.975])).tolist()
    return low, high


def _calibration_numbers(
    table: Table, videos: Sequence[int], samples: int, curves: dict[str, list[float]]
) -> dict[str, Number]:
    crps = table.rows("crps", sample=0)
    variance, error = (table.rows(name, sample=0).mean(1) for name in ("variance", "error"))
    curves["crps"] = crps.mean(0).tolist()
    curves["spread_skill"] = spread_skill(table, samples).tolist()
    scale = (1 + 1 / samples) ** 0.5
    value = scale * float((variance.mean() / error.mean()).sqrt())
    of = f"{samples} samples, {counted(len(videos), 'clip')}, all generated frames"
    out = {"crps": _mean_number(crps.mean(1), videos, of), "spread_skill": Number(value, of=of)}
    if max(videos) > 0:
        counts = resampled_counts(videos)
        ratio = scale * (counts @ variance / (counts @ error)).sqrt()
        out["spread_skill"] = _number(value, ratio, videos, of)
    return out


# --------------------------------------------------------------------------------------------------- of features


def _fvd_numbers(real: Tensor, fake: Tensor, videos: Sequence[int]) -> dict[str, Number]:
    """real ``(N, D)``, fake ``(N, S, D)``."""
    clips, samples = fake.shape[:2]
    if clips < 2:
        return {}
    moments = Moments(real)
    value = frechet_distance(moments, Moments(fake.flatten(0, 1)))
    of = _against(clips, samples)
    if not math.isfinite(value):  # non-finite features have no factors
        return {"fvd": Number(value, of=of)}
    out = {"fvd": Number(value, of=of)}
    if max(videos) > 0:
        # a resample has fewer distinct clips, so its distance is larger: keep the interval's width, not its bias
        out["fvd"] = _number(value, resampled_fvd(real, fake, videos), videos, of, shift=True)
    if samples > 1:
        each = [frechet_distance(moments, Moments(fake[:, s])) for s in range(samples)]
        summary = summarize(torch.tensor(each, dtype=torch.float64, device="cpu"))
        out["fvd_trajectory"] = Number(
            summary.mean,
            summary.mean - summary.conf95,
            summary.mean + summary.conf95,
            f"1.96 standard errors over {samples} trajectories",
            f"mean of {samples} distances, each {_against(clips, 1)}",
        )
    if clips * samples >= FAKES_PER_FEATURE * fake.shape[2]:
        endless = frechet_infinity(moments, fake.flatten(0, 1))
        out["fvd_infinity"] = Number(endless, of=f"extrapolated to endlessly many generated videos; {clips} real ones")
    return out


def _against(clips: int, samples: int) -> str:
    return f"{clips * samples} generated videos against {clips} real ones"


def resampled_fvd(real: Tensor, fake: Tensor, videos: Sequence[int]) -> Tensor:
    """The Fréchet distance in each resample, ``(resamples,)`` float64; real ``(N, D)``, fake ``(N, S, D)``."""
    values = [resampled_frechet(real, fake, counts) for counts in resampled_counts(videos, FVD_RESAMPLES)]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def resampled_frechet(real: Tensor, fake: Tensor, counts: Tensor) -> float:
    """The Fréchet distance if clip i occurs counts[i] times, real ``(N, D)`` and fake ``(N, S, D)``.

    With S1 = F1 F1^T, tr (S1 S2)^1/2 is the sum of the square roots of the eigenvalues of F1^T S2 F1, a matrix with at
    most as many rows as distinct clips. (`frechet_distance` is more exact and several times slower.)
    """
    drawn = counts > 0
    weights = counts[drawn].double()

    def deviations(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        features = features.double()
        mean = weights @ features / weights.sum()
        return mean, (features - mean) * (weights / (weights.sum() - 1)).sqrt()[:, None]

    mean1, x = deviations(real[drawn], weights)
    mean2, y = deviations(fake[drawn].flatten(0, 1), weights.repeat_interleave(fake.shape[1]))
    spread = x.square().sum() + y.square().sum()
    if len(x) > x.shape[1]:
        x = torch.linalg.qr(x, mode="r").R
    overlap = torch.linalg.eigvalsh(x @ (y.T @ y) @ x.T).clamp(min=0).sqrt().sum()
    return max(0.0, float((mean1 - mean2).square().sum() + spread - 2 * overlap))


def kvd_number(real: Tensor, fake: Tensor, conditional: bool, videos: Sequence[int]) -> Number:
    """KVD from sums of the kernel between clips; real ``(N, D)``, fake ``(N, S, D)``.

    conditional: the videos generated for a clip share its given frames, so they are alike however good the model is;
    then no two videos of one clip are compared, neither a generated one with the real one nor two generated ones.
    Otherwise (generation) all videos are independent, and this is `frechet.kernel_distance`. Either way its mean over
    test sets is 0 for a perfect model if no two clips are from one video. (Real clips of one video are alike, which
    raises it; in generation by the same amount for all systems on the same clips.)
    """
    clips, samples = fake.shape[:2]
    sums = _kernel_sums(real.double(), fake.double())
    which = torch.tensor(videos, device="cpu")
    together = which[:, None] == which

    def distance(counts: Tensor) -> Tensor:
        return _kernel_distance(*sums, counts, together, samples, conditional)

    value = float(distance(real.new_ones(1, clips, dtype=torch.float64)))
    of = f"{_against(clips, samples)}{', of other clips' if conditional else ''}"
    if max(videos) < 2:  # every resample of two clips that has a KVD is the set itself
        return Number(value, of=of)
    return _number(value, distance(resampled_counts(videos)), videos, of)


def _kernel_sums(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of the kernel over the videos of two clips, ``(N, N)`` each: real-real, real-made, made-made; and of each
    made video with itself, ``(N,)``."""
    clips, samples, dimensions = fake.shape
    flat = fake.flatten(0, 1)
    within = torch.stack([kernel(x, flat).sum(0).view(clips, samples).sum(1) for x in fake])
    itself = ((fake.square().sum(2) / dimensions + 1) ** 3).sum(1)
    return kernel(real, real), kernel(real, flat).view(clips, clips, samples).sum(2), within, itself


def _kernel_distance(
    real: Tensor,
    across: Tensor,
    made: Tensor,
    itself: Tensor,
    counts: Tensor,
    together: Tensor,
    samples: int,
    conditional: bool,
) -> Tensor:
    """The unbiased estimate for each row of counts ``(R, N)``. together: which clips are from one video, ``(N, N)``.

    Pairs of two repeats of one video do not count, neither of a clip with itself nor with another clip of that video:
    they are closer than any two videos of a test set, so every resample would be off to one side. conditional: see
    `kvd_number`.
    """

    def of_pairs(matrix: Tensor) -> Tensor:
        of_one_video = (matrix * together).sum(1) - matrix.diagonal()
        return ((counts @ (matrix * ~together)) * counts).sum(1) + counts @ of_one_video

    total, pairs = counts.sum(1), of_pairs(torch.ones_like(real))
    between_real = of_pairs(real) / pairs
    if conditional:
        return between_real + of_pairs(made) / (pairs * samples**2) - 2 * of_pairs(across) / (pairs * samples)
    inside = counts @ (made.diagonal() - itself)
    between_made = (of_pairs(made) + inside) / (pairs * samples**2 + total * samples * (samples - 1))
    between_both = (of_pairs(across) + counts @ across.diagonal()) / ((pairs + total) * samples)
    return between_real + between_made - 2 * between_both
