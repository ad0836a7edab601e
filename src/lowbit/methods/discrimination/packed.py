"""Codes at one or two bits a feature: how they are stored, and who is nearest to whom.

A row of d binary codes takes d / 8 bytes in words of 64 bits, one of ternary codes twice that: 32 and 16 times less
than float32, if there are many features. Distances
between rows are counts of bits (see `lowbit.methods.discrimination.bits`), so many rows lie equally far from a query.
Whoever takes the first k of them decides by the order of the rows: with one feature and rows sorted by class, that is
no better than guessing. Here all rows as far as the k-th share its vote.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from lowbit.errors import DataWarning, FeatureError
from lowbit.methods.discrimination.bits import (
    METRICS,
    WEIGHTS,
    Floats,
    Integers,
    MetricName,
    Nearest,
    Planes,
    WeightsName,
    nearest,
    squared_norms,
    votes,
)
from lowbit.methods.discrimination.measure import as_rows

if TYPE_CHECKING:
    from typing_extensions import Self

_AT_ONCE = 1 << 20  # codes that are packed at a time

Codes: TypeAlias = Any  # an array, or a sparse one or matrix of scipy


@final
@dataclass(frozen=True, eq=False)
class Packed:
    """Codes of n rows and d features, a bit for each in one plane (binary) or two (ternary).

    `packed[rows]` takes rows by a slice, indices or a mask, as scikit-learn does to split data.

    Attributes:
        planes: uint64 `[planes, n, words]`. Plane 0 holds code > 0 and plane 1, if there is one, code < 0; feature j is
            bit j % 64 of word j // 64, and bits past the last feature are 0.
        features: d.
    """

    planes: Planes
    features: int

    @property
    def ternary(self) -> bool:
        """Whether there is a plane for the code -1."""
        return len(self.planes) == 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features, as of an array of codes."""
        return self.planes.shape[1], self.features

    @property
    def nbytes(self) -> int:
        """Of the planes."""
        return int(self.planes.nbytes)

    def __len__(self) -> int:
        return int(self.planes.shape[1])

    def __getitem__(self, rows: Any) -> Packed:
        if isinstance(rows, tuple):  # scikit-learn asks for [rows, ...]
            rows, *rest = rows
            if rest != [Ellipsis]:
                raise FeatureError("packed codes are taken by rows only; unpack them to take features")
        if isinstance(rows, Integral):
            raise FeatureError(f"one row is a slice of packed codes: got [{rows}], expected [{rows}:{rows + 1}]")
        return Packed(self.planes[:, rows], self.features)

    def as_ternary(self) -> Packed:
        """The same codes in two planes."""
        if self.ternary:
            return self
        return Packed(np.concatenate([self.planes, np.zeros_like(self.planes)]), self.features)

    def unpack(self) -> NDArray[np.int8]:
        """The codes, `[n, d]`."""
        n, words = self.planes.shape[1:]
        octets = np.ascontiguousarray(self.planes).view(np.uint8).reshape(-1, n, words * 8)
        first, *second = np.unpackbits(octets, axis=2, count=self.features, bitorder="little").view(np.int8)
        codes: NDArray[np.int8] = first - second[0] if second else first
        return codes


def pack(codes: Codes, *, ternary: bool | None = None) -> Packed:
    """Codes in bits.

    Args:
        codes: `[n, d]` of 0 and 1, or -1, 0 and 1, as an array of any dtype or sparse as scipy has it.
        ternary: whether to keep a plane for -1; by default only if there is one.

    Raises:
        FeatureError: not a matrix of such numbers; the first other one is named.
    """
    codes = as_rows(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "biuf":
        raise FeatureError(f"got {codes.dtype} {list(codes.shape)}, expected codes [n, d] of numbers")
    n, d = codes.shape
    words = -(-d // 64)
    octets = np.zeros((2, n, words * 8), dtype=np.uint8)
    for start, some in _dense(codes):
        positive, negative = some == 1, some == -1
        known = positive | negative | (some == 0) if ternary is not False else positive | (some == 0)
        if not known.all():
            row, column = np.unravel_index(np.argmin(known), known.shape)
            expected = "0 or 1" if ternary is False else "-1, 0 or 1"
            raise FeatureError(
                f"row {start + row}, column {column}: got {some[row, column]}, expected a code, {expected}; "
                "quantize the features first"
            )
        for plane, bits in zip(octets, (positive, negative), strict=True):
            if bits.any():
                plane[start : start + len(some), : -(-d // 8)] = np.packbits(bits, axis=1, bitorder="little")
    planes = octets.view(np.uint64)
    if ternary is None:
        ternary = bool(planes[1].any())
    return Packed(planes if ternary else planes[:1].copy(), d)


def _dense(codes: Codes) -> Iterator[tuple[int, NDArray[Any]]]:
    """A few rows at a time, and the number of the first."""
    step = max(1, _AT_ONCE // max(codes.shape[1], 1))
    for start in range(0, codes.shape[0], step):
        some = codes[start : start + step]
        yield start, some.toarray() if scipy.sparse.issparse(some) else some


def bytes_per_row(features: int, *, ternary: bool) -> int:
    """What a row of codes takes: whole words of 64 bits, in one plane or two."""
    return -(-features // 64) * (16 if ternary else 8)


def concatenate(parts: Sequence[Packed]) -> Packed:
    """The rows of all parts, in order; ternary if one of them is.

    Raises:
        FeatureError: no parts, or parts of different features.
    """
    if len({part.features for part in parts}) != 1:
        raise FeatureError(f"got parts of {[part.features for part in parts]} features, expected one number of them")
    if any(part.ternary for part in parts):
        parts = [part.as_ternary() for part in parts]
    return Packed(np.concatenate([part.planes for part in parts], axis=1), parts[0].features)


class PackedKNeighborsClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The k nearest neighbors among packed codes, exact, with ties counted in full.

    Rows nearer than the k-th have a vote each. All rows as far as the k-th share the places that are left, so the order
    of the rows decides nothing. Where no rows tie, this is `sklearn.neighbors.KNeighborsClassifier`.

    Takes `Packed`, or codes 0, 1 and -1 in an array or sparse matrix, which it packs; so it can follow a quantizer in a
    pipeline.

    Args:
        n_neighbors: k, at most the number of rows.
        metric: ``hamming`` (the share of codes that differ), ``manhattan``, ``sqeuclidean`` or ``cosine``. Of binary
            codes, the first three rank alike. Cosine has no direction for a row of zeros: its distance is 1.
        weights: ``uniform``, or ``distance`` for votes of one over the distance.
        n_jobs: threads, as in joblib.

    Attributes:
        classes_: `[classes]`, sorted.
        n_features_in_: d.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        metric: MetricName = "hamming",
        weights: WeightsName = "uniform",
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.weights = weights
        self.n_jobs = n_jobs

    def fit(self, X: Codes, y: ArrayLike) -> Self:
        """Keeps the rows X `[n, d]` and their classes y `[n]`.

        Raises:
            FeatureError: what is no code, more neighbors than rows, or an argument that does not exist.
        """
        if self.metric not in METRICS:
            raise FeatureError(f"metric {self.metric!r} is unknown; expected one of {', '.join(METRICS)}")
        if self.weights not in WEIGHTS:
            raise FeatureError(f"weights {self.weights!r} are unknown; expected one of {', '.join(WEIGHTS)}")
        if isinstance(X, Packed):
            check_consistent_length(X, y)
            y = column_or_1d(y, warn=True)
            self._packed, self.n_features_in_ = X, X.features
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        else:
            X, y = validate_data(self, X, y, accept_sparse="csr")
            self._packed = pack(X)
        check_classification_targets(y)
        self._neighbors(self.n_neighbors)
        self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
        self._labels = labels.astype(np.int32)
        if self.metric == "cosine" and (empty := int((squared_norms(self._packed.planes) == 0).sum())):
            warnings.warn(
                f"{empty} of {len(self._packed)} rows have only zeros and thus no direction: under cosine their "
                "distance to everything is 1; use metric 'hamming', which has no such rows",
                DataWarning,
                stacklevel=2,
            )
        return self

    def kneighbors(
        self, X: Codes, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[Floats, Integers] | Integers:
        """Distances `[q, k]` and row numbers `[q, k]` of the nearest, ties by the lower row; or only the latter.

        Raises:
            FeatureError: more neighbors than rows, or what is no code.
            ValueError: another number of features than in fit.
        """
        check_is_fitted(self)
        found = self._nearest(X, self._neighbors(self.n_neighbors if n_neighbors is None else n_neighbors))
        return (found.distances, found.rows) if return_distance else found.rows

    def predict_proba(self, X: Codes) -> Floats:
        """Shares of the votes, `[q, classes]`."""
        check_is_fitted(self)
        found = self._nearest(X, self._neighbors(self.n_neighbors), tied=True)
        counted = votes(found, self._labels, self.weights)
        shares: Floats = counted / counted.sum(1, keepdims=True)
        return shares

    def predict(self, X: Codes) -> NDArray[Any]:
        """The class with most votes, `[q]`; of several, the first in `classes_`."""
        check_is_fitted(self)
        classes: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return classes

    def score(self, X: Codes, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Share of the samples that are predicted right.

        Raises:
            FeatureError: a label that was not there in `fit`, which nobody can predict.
        """
        check_is_fitted(self)
        unseen = np.setdiff1d(np.asarray(y), self.classes_)
        if len(unseen):
            raise FeatureError(f"labels: got {unseen[0]}, which was not seen in fit, expected {self.classes_.tolist()}")
        return float(super().score(X, y, sample_weight))

    def _neighbors(self, k: int) -> int:
        rows = len(self._packed)
        if not isinstance(k, Integral) or not 1 <= k <= rows:
            raise FeatureError(f"got n_neighbors {k!r} of {rows} rows; expected a whole number from 1 to {rows}")
        return int(k)

    def _nearest(self, X: Codes, k: int, *, tied: bool = False) -> Nearest:
        base = self._packed
        if not isinstance(X, Packed):
            X = pack(validate_data(self, X, accept_sparse="csr", reset=False))
        if X.features != base.features:
            raise FeatureError(
                f"X has {X.features} features, but {type(self).__name__} is expecting {base.features} features as input"
            )
        if X.ternary or base.ternary:
            X, base = X.as_ternary(), base.as_ternary()
        labels = self._labels if tied else None
        return nearest(
            base.planes,
            X.planes,
            k,
            features=base.features,
            metric=self.metric,
            labels=labels,
            classes=len(self.classes_),
            n_jobs=self.n_jobs,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
