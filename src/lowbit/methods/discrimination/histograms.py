"""D at all thresholds at once, from counts that can be added up: one pass over data of any size.

Each feature is counted, class by class, on a grid of z = (x - center) / scale. Cumulative sums of the counts are the
shares above each threshold, which are all that the moments of codes need, so D at every threshold follows without
another look at the data. Counts of different chunks, processes and machines add up exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.preprocessing import StandardScaler

from lowbit.errors import FeatureError
from lowbit.methods.discrimination import bits
from lowbit.methods.discrimination.measure import Matrix, Moments, by_feature, mean_pair, pairs, worst_pair
from lowbit.methods.discrimination.theory import Code

Array = npt.NDArray[np.float64]
Criterion = Literal["mean", "worst"]
Unit = Literal["std", "mean"]

STEPS = 16  # thresholds to a unit of the scale
REACH = 4  # units of the scale that the thresholds go out to, to both sides
LIMITS: dict[Code, tuple[float, float]] = {"binary": (-1.5, 1.5), "ternary": (0.0, 2.0)}  # the paper's grids
_COUNTED = ("counts", "samples", "sums", "squares")
SMALL = 1e-30  # least scale of a feature; one over it is the largest
HALF = 2 * STEPS * REACH  # the bin of zero: even bins are the thresholds themselves, odd ones what lies between


@dataclass(frozen=True, eq=False)
class Scaling:
    """Where features are 0 and how large a unit is: `center` `[d]`, `scale` `[d]`, and which are `constant` `[d]`."""

    center: Array
    scale: Array
    constant: npt.NDArray[np.bool_]

    def standardized(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """z = (x - center) / scale."""
        return np.asarray((x - self.center) / self.scale)

    def same_as(self, other: Scaling) -> bool:
        """Whether both standardize alike."""
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in ("center", "scale", "constant"))


def scaling(*chunks: Matrix, center: bool = True, unit: Unit = "std") -> Scaling:
    """The scaling of features `[N, d]`, all at once or in chunks.

    Args:
        chunks: finite features.
        center: whether zero is the mean, else it stays 0. Sparse features are never centered, which would fill them.
        unit: the standard deviation, or the mean of abs(x - center), as the paper has it.

    Raises:
        FeatureError: the unit is unknown, or features are too large or too small to be squared.
    """
    return scaling_of(lambda: iter(chunks), center=center, unit=unit)


def scaling_of(chunks: Callable[[], Iterator[Matrix]], *, center: bool = True, unit: Unit = "std") -> Scaling:
    """The same for chunks that are read one after the other, twice if the unit is ``"mean"``."""
    if unit not in get_args(Unit):
        raise FeatureError(f"unit: got {unit!r}, expected one of {', '.join(get_args(Unit))}")
    moments, low, high = StandardScaler(with_mean=False), np.array(np.inf), np.array(-np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in chunks():
            if not chunk.shape[0]:
                continue
            moments.partial_fit(chunk)
            low, high = np.minimum(low, _column(chunk.min(0))), np.maximum(high, _column(chunk.max(0)))
            thin = bool(sparse.issparse(chunk))
    if np.isinf(low).any():
        raise FeatureError("features: got no samples, expected at least one")
    constant = np.asarray(low == high)
    middle = np.zeros_like(moments.mean_) if thin or not center else np.where(constant, low, moments.mean_)
    size = np.sqrt(moments.var_) if unit == "std" else _mean_distance(chunks, middle, moments.n_samples_seen_)
    fits = constant | ((size > SMALL) & (size < 1 / SMALL))
    if not fits.all():
        column = int(np.argmin(fits))
        raise FeatureError(
            f"features: column {column} has a scale of {size[column]:.3g}, too small or large; rescale it"
        )
    return Scaling(middle, np.where(constant, 1, size), constant)


def _column(values: Any) -> Array:
    """A row of extremes, `[d]`."""
    return np.asarray(values.todense() if sparse.issparse(values) else values, float).reshape(-1)


def _mean_distance(chunks: Callable[[], Iterator[Matrix]], middle: Array, samples: int) -> Array:
    """Mean of abs(x - middle), `[d]`."""
    found = np.zeros_like(middle)
    for x in chunks():
        found += np.asarray(abs(x if sparse.issparse(x) else x - middle).sum(0, dtype=np.float64)).reshape(-1)
    return found / samples


@dataclass(frozen=True, eq=False)
class Sweep:
    """D against the threshold, of one code.

    Attributes:
        code: binary or ternary.
        thresholds: in units of the scale, `[T]`, ascending.
        mean, worst: D over all features at each threshold, mean over pairs of classes and of the worst pair, `[T]`.
        features: D of each feature alone at each threshold, all pairs of classes together, `[T, d]`.
    """

    code: Code
    thresholds: Array
    mean: Array
    worst: Array
    features: Array

    def best(self, criterion: Criterion = "mean") -> float:
        """The threshold, one for all features, with the largest D; of equal ones the nearest to zero."""
        if criterion not in get_args(Criterion):
            raise FeatureError(f"criterion: got {criterion!r}, expected one of {', '.join(get_args(Criterion))}")
        return float(self.thresholds[_largest(getattr(self, criterion)[:, None], self.thresholds)[0]])

    def best_by_feature(self) -> Array:
        """The threshold of each feature with the largest D of its own, `[d]`."""
        return np.asarray(self.thresholds[_largest(self.features, self.thresholds)])

    def improving(self, original: float, criterion: Criterion = "mean") -> list[tuple[float, float]]:
        """The intervals of thresholds, on the grid, at which D is above `original`."""
        above = getattr(self, criterion) > original
        edges = np.flatnonzero(np.diff(np.concatenate(([False], above, [False]))))
        return [
            (float(self.thresholds[a]), float(self.thresholds[b - 1]))
            for a, b in zip(edges[::2], edges[1::2], strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Histograms:
    """Counts of standardized features, `[C, d, bins]`, with sums that give the moments of the features themselves.

    Attributes:
        classes: labels, `[C]`.
        scaling: what thresholds are in units of; the same for all chunks.
        counts: int64; bin `HALF` is zero, even bins are multiples of 1 / `STEPS`, the outer ones hold what lies beyond.
        samples: of each class, `[C]`.
        sums, squares: of z, `[C, d]`.
        is_sparse: whether features are sparse and thresholds have to be at least 0.
    """

    classes: npt.NDArray[np.generic]
    scaling: Scaling
    counts: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]
    sums: Array
    squares: Array
    is_sparse: bool = False

    @classmethod
    def empty(cls, classes: npt.NDArray[np.generic], scaling: Scaling, *, is_sparse: bool = False) -> Histograms:
        """Counts of nothing yet."""
        shape = (len(classes), len(scaling.scale))
        counts = np.zeros((*shape, 2 * HALF + 1), np.int64)
        return cls(classes, scaling, counts, np.zeros(shape[0], np.int64), np.zeros(shape), np.zeros(shape), is_sparse)

    def added(
        self,
        x: Matrix,
        labels: npt.NDArray[np.generic],
        *,
        n_jobs: int | None = None,
    ) -> Histograms:
        """These, with the counts of a chunk added in place: features `[n, d]` and labels `[n]`.

        Classes that were not there before are taken in, which copies.

        Args:
            x: finite features, sparse if and only if the histograms are of sparse ones.
            labels: of the samples.
            n_jobs: threads, as in joblib; they share the features.
        """
        into = self._covering(np.unique(labels))
        which = np.searchsorted(into.classes, labels).astype(np.int32)
        inverse = 1 / into.scaling.scale
        samples = np.bincount(which, minlength=len(into.classes))
        if bool(sparse.issparse(x)) != self.is_sparse:
            raise FeatureError(
                "got sparse features for dense ones, or dense for sparse, expected one of both in all chunks"
            )
        if sparse.issparse(x):
            into._count_sparse(x, which, samples, inverse)
        else:
            given = x, which, into.scaling.center, inverse, into.counts
            sums, squares = bits.histogram(*given, steps=STEPS, reach=REACH, n_jobs=n_jobs)
            into.sums[:] += sums
            into.squares[:] += squares
        into.samples[:] += samples
        return into

    def merged(self, other: Histograms) -> Histograms:
        """Both together, exactly; of the classes of both.

        Raises:
            FeatureError: they count in other units.
        """
        if not self.scaling.same_as(other.scaling) or self.is_sparse != other.is_sparse:
            raise FeatureError("histograms of other centers or scales cannot be added; count all data in the same")
        one, two = self._covering(other.classes), other._covering(self.classes)
        return replace(one, **{name: getattr(one, name) + getattr(two, name) for name in _COUNTED})

    def _covering(self, classes: npt.NDArray[np.generic]) -> Histograms:
        """These, with empty counts for the `classes` that are not there yet."""
        if (self.classes.dtype.kind in "US") != (np.asarray(classes).dtype.kind in "US"):
            raise FeatureError("labels: got numbers and texts, expected one of both in all chunks; convert them")
        union = np.union1d(self.classes, classes)
        if len(union) == len(self.classes):
            return self
        wider = Histograms.empty(union, self.scaling, is_sparse=self.is_sparse)
        place = np.searchsorted(union, self.classes)
        for name in _COUNTED:
            getattr(wider, name)[place] = getattr(self, name)
        return wider

    @property
    def beyond(self) -> float:
        """The share of values that lie further out than any threshold, where thresholds cannot tell them apart."""
        outer = int(self.counts[..., 0].sum() + self.counts[..., -1].sum())
        return outer / max(int(self.samples.sum()) * len(self.scaling.scale), 1)

    def moments(self) -> Moments:
        """Of the features themselves, standardized."""
        n = np.maximum(self.samples, 1)[:, None]
        means = self.sums / n
        return Moments(self.samples, means, np.maximum(self.squares / n - means**2, 0))

    def original(self) -> Array:
        """D of the features themselves for each pair of classes, `[C, C]`, standardized feature by feature."""
        return pairs(self.moments(), corrected=True)

    def sweep(self, code: Code, limits: tuple[float, float] | None = None) -> Sweep:
        """D of a code at all thresholds of the grid within `limits`; corrected for few samples.

        Raises:
            FeatureError: a class has no samples, or the limits hold no threshold that the code can have.
        """
        self._check()
        low, high = limits or ((0.0, REACH - 1 / STEPS) if self.is_sparse else LIMITS[code])
        if low < 0 and (code == "ternary" or self.is_sparse):
            raise FeatureError(
                f"limits: got {low:g}, expected at least 0; a ternary code is 0 within +- the threshold"
                if code == "ternary"
                else f"limits: got {low:g}, expected at least 0; below, zeros of sparse features would be ones"
            )
        ticks = np.arange(int(np.ceil(low * STEPS)), int(np.floor(high * STEPS)) + 1)
        if not len(ticks) or abs(ticks).max() >= REACH * STEPS:
            raise FeatureError(f"limits: got {low:g} to {high:g}, expected an interval inside of +-{REACH}")
        moments = self.coded(code, ticks)
        each = pairs(moments, corrected=True)
        return Sweep(code, ticks / STEPS, mean_pair(each), worst_pair(each), by_feature(moments, corrected=True))

    def coded(self, code: Code, ticks: npt.NDArray[np.integer]) -> Moments:
        """Moments of the codes at the thresholds `ticks` / `STEPS`, `[T, C, d]`."""
        up_to = self.counts.cumsum(-1)
        n = np.maximum(self.samples, 1)[:, None, None]
        live = ~self.scaling.constant  # a constant is coded 0
        above = np.moveaxis(1 - up_to[..., HALF + 2 * ticks] / n, -1, 0) * live
        if code == "binary":
            return Moments(self.samples, above, above * (1 - above))
        below = np.moveaxis(up_to[..., HALF - 2 * ticks - 1] / n, -1, 0) * live
        mean = above - below
        return Moments(self.samples, mean, np.maximum(above + below - mean**2, 0))

    def _count_sparse(
        self, x: Matrix, labels: npt.NDArray[np.int32], samples: npt.NDArray[np.int64], inverse: Array
    ) -> None:
        """Only values that are stored are looked at; the others of each class are 0."""
        rows = np.repeat(labels, np.diff(x.indptr))
        z = (x.data * inverse[x.indices]).astype(np.float32)
        t = np.clip(z * np.float32(STEPS), -HALF / 2, HALF / 2)
        bins = HALF + (np.floor(t) + np.ceil(t)).astype(np.int64)
        np.add.at(self.counts, (rows, x.indices, bins), 1)
        stored = np.zeros(self.counts.shape[:2], np.int64)
        np.add.at(stored, (rows, x.indices), 1)
        self.counts[..., HALF] += samples[:, None] - stored
        np.add.at(self.sums, (rows, x.indices), z)
        np.add.at(self.squares, (rows, x.indices), np.square(z, dtype=np.float64))

    def _check(self) -> None:
        if len(self.classes) < 2:
            raise FeatureError(
                f"labels: got one class only ({self.classes[0]}), expected two or more; discrimination is between "
                "classes"
            )
        missing = self.classes[self.samples < 2]
        if len(missing):
            count = int(self.samples[self.classes == missing[0]][0])
            raise FeatureError(
                f"class {missing[0]} has {count} sample{'' if count == 1 else 's'}, expected at least 2; add some, or "
                "leave the class out"
            )


def _largest(values: Array, thresholds: Array) -> npt.NDArray[np.int64]:
    """Where each column of `values` `[T, k]` is largest, `[k]`; of equal ones at the threshold nearest to zero."""
    order = np.argsort(np.abs(thresholds), kind="stable")
    return np.asarray(order[np.argmax(values[order], axis=0)])
