"""How far apart the classes of some data are: squared distances between classes over those within.

For two classes, D = E[(X - Y)^2] / (E[(X - X')^2] + E[(Y - Y')^2]) with the differences of independent draws. With the
means' difference delta and the variances v1 and v2 this is D = (1 + F) / 2, F = delta^2 / (v1 + v2): one half is no
separation at all. For vectors both sides are sums over the features, so D is a ratio of sums, not a mean of ratios,
and features that do not vary count nothing. The same formulas hold for codes, whose moments follow from shares:
P and P (1 - P) for {0, 1}; p+ - p- and p+ + p- - (p+ - p-)^2 for {-1, 0, 1}.

The source defines D for two classes; for more, lowbit gives the mean over pairs of classes and the worst pair;
for a feature alone, a ratio of sums over the pairs, since one pair that it splits without any variance would be all.

References:
    Discrimination of binary and ternary feature quantization, 2025, https://arxiv.org/abs/2504.13792.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from lowbit.errors import FeatureError

Array = npt.NDArray[np.float64]
Matrix: TypeAlias = Any  # features [N, d]: an array, or a sparse matrix of scipy


@dataclass(frozen=True)
class Moments:
    """What D is made of: for each class the number of samples `[C]`, means and variances `[C, d]` (population's).

    Any number of thresholds may stand in front: means and variances `[..., C, d]`.
    """

    counts: npt.NDArray[np.int64]
    means: Array
    variances: Array


@dataclass(frozen=True, eq=False)
class Discrimination:
    """How far classes are apart, all features together.

    Attributes:
        classes: labels, `[C]`.
        pairs: D of each pair of classes, `[C, C]`, symmetric; NaN on the diagonal.
        features: D of each feature alone, all pairs of classes together, `[d]`; 1/2 where a feature does not vary.
    """

    classes: npt.NDArray[np.generic]
    pairs: Array
    features: Array

    @property
    def mean(self) -> float:
        """Over the pairs of classes."""
        return float(mean_pair(self.pairs))

    @property
    def worst(self) -> float:
        """Of the pair that is least apart."""
        return float(worst_pair(self.pairs))

    @property
    def worst_classes(self) -> tuple[object, object]:
        """The two classes that are least apart."""
        a, b = np.unravel_index(int(np.nanargmin(self.pairs)), self.pairs.shape)
        return self.classes[a].item(), self.classes[b].item()


def discrimination(x: Matrix, y: npt.ArrayLike, *, corrected: bool = True) -> Discrimination:
    """D of data as they are; pass codes to learn what quantization made of it.

    Args:
        x: features, `[N, d]`, dense or sparse.
        y: labels, `[N]`; at least two classes.
        corrected: take away what few samples add to squared differences of means (derived).

    Raises:
        FeatureError: fewer than two classes, or values that are not finite.
    """
    data, classes, which = labeled(x, y)
    moments = moments_of(data, which, len(classes))
    return Discrimination(classes, pairs(moments, corrected=corrected), by_feature(moments, corrected=corrected))


def interval(
    x: Matrix,
    y: npt.ArrayLike,
    code: Callable[[Matrix], Matrix] | None = None,
    *,
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of the mean D, over `draws` resamples class by class; of the codes `code(x)` if one is given.

    It is the basic bootstrap interval of F (of its logarithm from 1 on): resampled classes lie further apart than those
    they are drawn from, as those do than the truth, and the basic interval takes that away.

    Raises:
        FeatureError: as `discrimination`.
    """
    data, classes, which = labeled(x, y)
    rows = data if code is None else code(data)

    def mean_of(chosen: npt.NDArray[np.int64]) -> float:
        moments = moments_of(rows[chosen], which[chosen], len(classes))
        return float(mean_pair(pairs(moments, corrected=True)))

    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(which == c) for c in range(len(classes))]
    found = [mean_of(np.concatenate([generator.choice(one, len(one)) for one in members])) for _ in range(draws)]
    value = 2 * mean_of(np.arange(len(which))) - 1
    low, high = 2 * np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) - 1
    large = value >= 1  # large ones spread by a factor
    least, most = (value**2 / high, value**2 / low) if large else (2 * value - high, 2 * value - low)
    return 0.5 + max(float(least), 0) / 2, 0.5 + max(float(most), 0) / 2


def moments_of(x: Matrix, which: npt.NDArray[np.int64], classes: int) -> Moments:
    """Moments of the features `x` `[N, d]` of samples that belong to class `which` `[N]`, of `classes`."""
    counts, means, variances = np.bincount(which, minlength=classes), [], []
    for c in range(classes):
        rows = x[which == c]
        mean = np.asarray(rows.mean(0, dtype=np.float64)).reshape(-1)
        square = rows.multiply(rows) if sparse.issparse(rows) else np.square(rows - mean)
        variance = np.asarray(square.mean(0, dtype=np.float64)).reshape(-1)
        means.append(mean)
        variances.append(np.maximum(variance - mean**2, 0) if sparse.issparse(rows) else variance)
    return Moments(counts, np.stack(means), np.stack(variances))


def pairs(moments: Moments, *, corrected: bool) -> Array:
    """D of each pair of classes over all features, `[..., C, C]`; NaN on the diagonal."""
    variances = _variances(moments, corrected)
    gram = moments.means @ np.swapaxes(moments.means, -1, -2)
    squares = np.diagonal(gram, axis1=-2, axis2=-1)
    between = squares[..., :, None] + squares[..., None, :] - 2 * gram
    within = variances.sum(-1)
    shared = within[..., :, None] + within[..., None, :]
    if corrected:
        noise = (variances / moments.counts[:, None]).sum(-1)
        between = between - noise[..., :, None] - noise[..., None, :]
    found = _measure(between, shared, moments.counts[:, None] + moments.counts)
    own = np.arange(found.shape[-1])
    found[..., own, own] = np.nan
    return found


def by_feature(moments: Moments, *, corrected: bool) -> Array:
    """D of each feature alone, `[..., d]`, a ratio of sums over the pairs of classes; 1/2 where it does not vary."""
    variances, classes = _variances(moments, corrected), moments.means.shape[-2]
    between = classes * (moments.means**2).sum(-2) - moments.means.sum(-2) ** 2
    if corrected:
        between = between - (classes - 1) * (variances / moments.counts[:, None]).sum(-2)
    return _measure(between, (classes - 1) * variances.sum(-2), moments.counts.sum())


def mean_pair(found: Array) -> Array:
    """Mean over pairs of `pairs`, `[...]`."""
    return np.asarray(np.nanmean(found, axis=(-1, -2)))


def worst_pair(found: Array) -> Array:
    """The least of `pairs`, `[...]`."""
    return np.asarray(np.nanmin(found, axis=(-1, -2)))


def labeled(x: Matrix, y: npt.ArrayLike) -> tuple[Matrix, npt.NDArray[np.generic], npt.NDArray[np.int64]]:
    """Features, classes `[C]` and the class of each sample `[N]`, checked.

    Raises:
        FeatureError: another number of labels than samples, one class only, or values that are not finite.
    """
    data, labels = as_rows(x), as_labels(y)
    if data.ndim != 2 or labels.ndim != 1 or data.shape[0] != len(labels):
        raise FeatureError(
            f"got features {list(data.shape)} and labels {list(labels.shape)}, expected [N, d] and [N]; pass one row "
            "and one label a sample"
        )
    check_finite(data)
    classes, which = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise FeatureError(
            f"labels: got one class only ({classes[0]}), expected two or more; discrimination is between classes"
            if len(classes)
            else "got no samples, expected at least two of each class"
        )
    return data, classes, which.astype(np.int64)


def as_rows(x: Any) -> Matrix:
    """Features as an array, or as sparse rows without duplicate entries.

    Raises:
        FeatureError: they are no real numbers.
    """
    found: Matrix = x.tocsr() if sparse.issparse(x) else np.asarray(x)
    if found.dtype.kind not in "biuf":
        raise FeatureError(f"features: got {found.dtype}, expected real numbers; convert them")
    if sparse.issparse(found) and not found.has_canonical_format:
        found = found.copy() if found is x else found
        found.sum_duplicates()
    return found


def as_labels(y: Any) -> npt.NDArray[np.generic]:
    """Labels as an array of classes.

    Raises:
        FeatureError: there are none, or they are no classes: fractions, NaN, or of several types.
    """
    if y is None:
        raise FeatureError("labels: got none, expected one a sample; discrimination is between classes")
    labels = np.asarray(y)
    try:
        np.unique(labels)
    except TypeError:
        raise FeatureError("labels: got values of several types, expected numbers or texts; convert them") from None
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        raise FeatureError("labels: got fractions or NaN, expected classes; convert them to whole numbers or texts")
    return labels


def check_finite(x: Matrix) -> None:
    """Raise a FeatureError that names the first value which is not finite."""
    values = x.data if sparse.issparse(x) else x
    if not np.issubdtype(values.dtype, np.floating):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()) or np.isfinite(values).all():  # the sum alone decides nearly always
            return
    at = np.argwhere(~np.isfinite(values))[0]
    if sparse.issparse(x):
        row = int(np.searchsorted(x.indptr, at[0], side="right")) - 1
        column, value = int(x.indices[at[0]]), values[at[0]]
    else:
        row, column, value = int(at[0]), int(at[-1]), values[tuple(at)]
    what = "NaN" if np.isnan(value) else "infinity (inf)"
    raise FeatureError(
        f"features: got {what} in row {row}, column {column}, expected finite numbers; impute or drop it before"
    )


def digest(*arrays: Matrix, text: str = "") -> str:
    """SHA-256 of arrays, dense or sparse: shapes, types and values; and of a text."""
    found = hashlib.sha256(text.encode())
    for array in arrays:
        found.update(str(np.shape(array)).encode())
        for part in (array.data, array.indices, array.indptr) if sparse.issparse(array) else (np.asarray(array),):
            found.update(part.dtype.str.encode())
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _variances(moments: Moments, corrected: bool) -> Array:
    """Variances, without bias if `corrected`."""
    if not corrected:
        return moments.variances
    n = moments.counts[:, None]
    return np.asarray(moments.variances * (n / np.maximum(n - 1, 1)))


def _measure(between: Array, within: Array, samples: npt.NDArray[np.int64]) -> Array:
    """(1 + F) / 2; 1/2 where nothing varies. F is at least 0, and at most the number of samples, which show no more."""
    between = np.maximum(between, 0)
    floor = np.maximum(within, between / samples)
    return np.asarray(0.5 + np.divide(between, 2 * floor, out=np.zeros_like(between), where=floor > 0))
