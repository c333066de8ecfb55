"""Distances between two sets of features: Fréchet (FVD, on I3D logits) and kernel (KVD), in float64."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from mcvd.errors import McvdError
from mcvd.evaluation.files import load_tensors, save_tensors

FAKES_PER_FEATURE = 4
"""Fewest fakes, as a multiple of the features, for `frechet_infinity`: its smallest subset is a quarter of them."""


class Moments:
    """Sufficient statistics of the Fréchet distance: count, mean and scatter (the sum of outer products of deviations).

    Kept about the running mean (Chan et al. 1979), not as raw sums, to avoid cancellation; batches and shards merge in
    any order to the same numbers within float64 rounding.
    """

    def __init__(self, features: Tensor | None = None) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.scatter = torch.zeros(0, 0, dtype=torch.float64, device="cpu")
        if features is not None:
            self.add(features)

    def add(self, features: Tensor) -> Moments:
        """Adds a batch of features ``(B, D)``; returns itself."""
        if features.ndim != 2:
            raise McvdError(f"features must have shape (B, D), not {tuple(features.shape)}")
        batch = Moments()
        if len(features):
            features = features.detach().cpu().double()
            batch.count, batch.mean = len(features), features.mean(0)
            centred = features - batch.mean
            batch.scatter = centred.T @ centred
        return self.merge(batch)

    def merge(self, *others: Moments) -> Moments:
        """Adds the statistics of other sets; returns itself."""
        for other in others:
            if other.count == 0:
                continue
            if self.count == 0:
                self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
                continue
            if self.mean.shape != other.mean.shape:
                raise McvdError(f"features of {len(self.mean)} and {len(other.mean)} numbers cannot be merged")
            total, shift = self.count + other.count, other.mean - self.mean
            self.scatter += other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
            self.mean += shift * (other.count / total)
            self.count = total
        return self

    def covariance(self) -> Tensor:
        """``(D, D)``, unbiased (ddof 1). Raises McvdError for fewer than two features."""
        if self.count < 2:
            raise McvdError(f"a covariance needs at least 2 videos, there are {self.count}")
        return self.scatter / (self.count - 1)

    def factor(self) -> Tensor:
        """F ``(D, R)`` with F F^T = covariance. R is at most count - 1: eigenvalues beyond that are rounding
        errors, and their square roots would not be small."""
        values, vectors = torch.linalg.eigh(self.covariance())
        values, vectors = values.flip(0), vectors.flip(1)
        floor = values[0].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
        rank = min(int((values > floor).sum()), self.count - 1)
        return vectors[:, :rank] * values[:rank].sqrt()

    def save(self, path: Path | str) -> None:
        """Writes the statistics as safetensors."""
        save_tensors(
            {"count": torch.tensor(self.count, device="cpu"), "mean": self.mean, "scatter": self.scatter}, path
        )

    @classmethod
    def load(cls, path: Path | str) -> Moments:
        """Reads what `save` wrote."""
        tensors, moments = load_tensors(path), cls()
        if set(tensors) != {"count", "mean", "scatter"}:
            raise McvdError(f"{path} holds no statistics of features")
        moments.count = int(tensors["count"])
        moments.mean, moments.scatter = tensors["mean"], tensors["scatter"]
        return moments


def frechet_distance(real: Moments, fake: Moments) -> float:
    """``|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)``, the squared Fréchet distance of two Gaussians.

    With S1 = F1 F1^T and S2 = F2 F2^T, tr (S1 S2)^1/2 is the sum of the singular values of F1^T F2. Unlike the root of
    a matrix product, this is real, and exact to rounding even with fewer videos than features.
    The value depends on both counts: compare only values with the same numbers of real and fake videos. It is nan if
    any feature is not finite.
    """
    if real.mean.shape != fake.mean.shape:
        raise McvdError(f"features of {len(real.mean)} and {len(fake.mean)} numbers cannot be compared")
    if not all(part.isfinite().all() for part in (real.mean, real.scatter, fake.mean, fake.scatter)):
        return math.nan
    overlap = torch.linalg.svdvals(real.factor().T @ fake.factor()).sum()
    spread = real.covariance().trace() + fake.covariance().trace() - 2 * overlap
    return max(0.0, float((real.mean - fake.mean).square().sum() + spread))


def frechet_infinity(real: Moments, fake: Tensor, points: int = 15, seed: int = 0) -> float:
    """Fréchet distance extrapolated to infinitely many fakes (Chong and Forsyth 2020), for the same real statistics.

    The bias is close to linear in 1 / N once N exceeds the number of features, so a line in 1 / N is fitted to the
    distances of random subsets of ``points`` sizes, from a quarter of the fakes to all; its value at 0 is returned.
    fake: features ``(N, D)``. Raises McvdError for N < 4 D: the distances of smaller subsets are on no line, and the
    value would be far off, mostly below 0.
    """
    if len(fake) < (fewest := FAKES_PER_FEATURE * fake.shape[1]):
        raise McvdError(f"an extrapolation over {fake.shape[1]} features needs {fewest} fakes, not {len(fake)}")
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(len(fake) // FAKES_PER_FEATURE, len(fake), points, device="cpu").round().long()
    distances = []
    for size in sizes.tolist():
        subset = fake[torch.randperm(len(fake), generator=generator, device="cpu")[:size].to(fake.device)]
        distances.append(frechet_distance(real, Moments(subset)))
    inverse = 1 / sizes.double()
    line = torch.stack([torch.ones_like(inverse), inverse], 1)
    return float(
        torch.linalg.lstsq(line, torch.tensor(distances, dtype=torch.float64, device="cpu")[:, None]).solution[0]
    )


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel (x.y / D + 1)^3 of KVD between all pairs of features: ``(N, D)``, ``(M, D)`` -> ``(N, M)``."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """KVD: squared maximum mean discrepancy with `kernel` (Binkowski et al. 2018), unbiased.

    real ``(N, D)``, fake ``(M, D)``, N and M at least 2, of mutually independent videos (those generated for a clip
    resemble it: see `statistics.kvd_number`). For two samples of one distribution its mean is 0 whatever their sizes
    (so single values may be below 0), unlike that of the Fréchet distance.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise McvdError(f"features must be (N, D) and (M, D), not {tuple(real.shape)} and {tuple(fake.shape)}")
    if len(real) < 2 or len(fake) < 2:
        raise McvdError(f"KVD needs at least 2 videos on each side, there are {len(real)} and {len(fake)}")
    real, fake = real.cpu().double(), fake.cpu().double()

    def within(x: Tensor) -> Tensor:
        matrix = kernel(x, x)
        return (matrix.sum() - matrix.trace()) / (len(x) * (len(x) - 1))

    return float(within(real) + within(fake) - 2 * kernel(real, fake).mean())
