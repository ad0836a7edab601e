"""Whether new data come from where the old ones came from: how far apart two sets of shares or means are, and how sure.

A drift is called one only if it is large and sure. How large is the population stability index of shares, or the
distance of means in standard deviations: neither grows with the number of samples. How sure is the chance that equal
data differ as much.

Codes of one sample are no independent draws: pixels resemble their neighbors, and a bright image is bright everywhere.
Where a sample brings many of them, its shares are one observation, and the spread between samples is what a difference
is measured against.

References:
    Siddiqi, Credit Risk Scorecards, 2006: the stability index and its rule of thumb, 0.2.
    Rao and Scott, The analysis of categorical data from complex sample surveys, J. Am. Stat. Assoc. 76, 1981; On
    chi-squared tests for multiway contingency tables, Ann. Stat. 12, 1984: chi-squared of clustered counts, eq. 3.
    Hotelling, The generalization of Student's ratio, Ann. Math. Stat. 2, 1931.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
MOVED = 0.2  # population stability index from which shares are called changed, the usual rule of thumb
SURE = 0.01  # and the chance, over all that is tested together, of calling any changed that is not
LEAST = 1e-4  # share that something which never came is counted with
_RIDGE = 1e-3  # added to correlations: means that go together exactly still have a distance
_SMALLEST = 1e-5  # of a standard deviation, in magnitudes of what it is of: what is kept of means has as many digits


def stability_index(old: npt.ArrayLike, new: npt.ArrayLike) -> Array:
    """Population stability index over the last axis: the sum of (new - old) log(new / old) of shares; `[...]`."""
    a, b = (np.maximum(np.asarray(one, float), LEAST) for one in (old, new))
    return np.asarray(((b - a) * np.log(b / a)).sum(-1))


def chi_squared(old: npt.ArrayLike, old_samples: int, new: npt.ArrayLike, new_samples: int) -> Array:
    """Chance that two sets of shares over the last axis, one draw a sample, differ as much or more; `[...]`."""
    before, after = np.asarray(old, float), np.asarray(new, float)
    together = (before * old_samples + after * new_samples) / (old_samples + new_samples)
    known = np.where(together > 0, together, 1)
    parts = old_samples * (before - together) ** 2 / known + new_samples * (after - together) ** 2 / known
    return np.asarray(stats.chi2.sf(parts.sum(-1), np.maximum((together > 0).sum(-1) - 1, 1)))


@dataclass(frozen=True)
class Shares:
    """Mean shares `[k]` of samples that bring many draws each.

    `total` and `squares` are the sums of the eigenvalues, and of their squares, of the covariance of a sample's shares
    in units of `shares`: what one draw a sample would have is k - 1 and k - 1.
    """

    shares: Array
    samples: int
    total: float
    squares: float

    @staticmethod
    def measured(shares: Array, covariance: Array, samples: int) -> Shares:
        """From the mean `[k]` and the covariance `[k, k]` of the shares of single samples."""
        root = np.sqrt(np.where(shares > 0, shares, np.inf))
        scaled = covariance / np.outer(root, root)
        return Shares(shares, samples, float(np.trace(scaled)), float((scaled**2).sum()))


def clustered(old: Shares, new: Shares) -> float:
    """Chance that mean shares of equal data differ as much: chi-squared with Rao and Scott's second correction.

    The spread between samples is the larger one of both sets together, and of each by itself.
    """
    n, m = old.samples, new.samples
    together = (n * old.shares + m * new.shares) / (n + m)
    apart = float(((new.shares - old.shares) ** 2 / np.where(together > 0, together, 1)).sum())
    if apart == 0 or min(n, m) < 2:
        return 1.0
    pooled = _pooled(n, m)
    total, size = max(
        (sum(w * s.total for w, s in zip(weights, (old, new), strict=True)),
         sum(w * s.squares**0.5 for w, s in zip(weights, (old, new), strict=True)))
        for weights in (pooled, (1 / n, 1 / m))
    )  # fmt: skip
    if total <= 0:  # samples that are all alike, on both sides, and differ between them
        return 0.0
    degrees = total**2 / size**2
    return float(stats.f.sf(apart / total, degrees, min(n, m) - 1))


def rose(old: tuple[float, float, int], new: tuple[float, float, int]) -> float:
    """Chance that the mean of equal data rises as much: each is a mean, its deviation between samples, and samples."""
    (before, spread, n), (after, other, m) = old, new
    if after <= before or min(n, m) < 2:
        return 1.0
    variances = spread**2, other**2
    variance = max(
        sum(w * v for w, v in zip(weights, variances, strict=True)) for weights in (_pooled(n, m), (1 / n, 1 / m))
    )
    return float(stats.t.sf((after - before) / variance**0.5, min(n, m) - 1)) if variance > 0 else 0.0


def fell(old: tuple[int, int], new: tuple[int, int]) -> float:
    """Chance that a share of hits of equal data falls as much, exactly: each is hits and samples.

    References:
        Fisher, The logic of inductive inference, J. Royal Stat. Soc. 98, 1935.
    """
    (hits, n), (others, m) = old, new
    return float(stats.hypergeom.cdf(others, n + m, hits + others, m))


def interval(share: float, deviation: float, samples: int) -> tuple[float, float]:
    """95 % interval of a mean share, by Wilson with as many draws as its deviation between samples is worth.

    References:
        Wilson, Probable inference, J. Am. Stat. Assoc. 22, 1927; Dean and Pagano, Evaluating confidence interval
        methods for binomial proportions in clustered surveys, J. Surv. Stat. Methodol. 3, 2015.
    """
    most = share * (1 - share) * samples / deviation**2 if deviation > 0 else samples
    count, z = max(most, samples), 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class Means:
    """Mean `[d]` and covariance `[d, d]` of what samples bring."""

    mean: Array
    covariance: Array
    samples: int


def distance(old: Means, new: Means) -> tuple[float, float]:
    """Mahalanobis distance of two means, and the chance that those of equal data are as far apart (Hotelling's T^2)."""
    n, m, d = old.samples, new.samples, len(old.mean)
    freedom = n + m - d - 1
    if min(n, m) < 2 or freedom < 1:
        return 0.0, 1.0
    covariance = ((n - 1) * old.covariance + (m - 1) * new.covariance) / (n + m - 2)
    size = np.maximum(np.abs(old.mean), np.abs(new.mean)).max(initial=0.0)
    deviations = np.sqrt(np.diag(covariance))
    deviations = np.maximum(deviations, _SMALLEST * max(float(size), float(deviations.max(initial=0.0))))
    if not deviations.all():  # zeros on both sides
        return 0.0, 1.0
    gap = (new.mean - old.mean) / deviations
    correlations = covariance / np.outer(deviations, deviations) + _RIDGE * np.eye(d)
    squared = max(float(gap @ np.linalg.solve(correlations, gap)), 0.0)
    t_squared = squared * n * m / (n + m)
    return squared**0.5, float(stats.f.sf(t_squared * freedom / (d * (n + m - 2)), d, freedom))


def _pooled(n: int, m: int) -> tuple[float, float]:
    """What the variances of two sets weigh in that of the difference of their means, if they are equal."""
    return tuple((count - 1) / (n + m - 2) * (1 / n + 1 / m) for count in (n, m))  # type: ignore[return-value]
