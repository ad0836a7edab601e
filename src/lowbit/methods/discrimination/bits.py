"""How often each feature falls into each bin, and which rows of bits are nearest: the two loops worth a compiler.

`bits.cpp` does both, built by `lowbit.compiled`; where that cannot be, numpy gives the same numbers, slower. Both share
the machine by joblib's threads, which a call of C++ or of numpy does not hold up.

Codes lie in planes of bits, `[planes, n, words]` of uint64: plane 0 holds P = code > 0 and plane 1, of ternary codes
only, N = code < 0. Bits past the last feature are 0. With h = pc((P ^ P') | (N ^ N')), the features whose codes differ,
and b = pc((P & N') | (N & P')), those whose codes are +1 and -1, pc being the number of bits set (derived):
hamming h / d, L1 = h + b, squared L2 = h + 3 b, dot product = (|q|^2 + |x|^2 - h - b) / 2 - b.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray

from lowbit import compiled
from lowbit.errors import FeatureError

_SOURCE = Path(__file__).with_name("bits.cpp")
_AT_ONCE = 1 << 21  # numbers that the numpy path holds at a time

MetricName = Literal["hamming", "manhattan", "sqeuclidean", "cosine"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
WeightsName = Literal["uniform", "distance"]
WEIGHTS: tuple[WeightsName, ...] = get_args(WeightsName)
Planes: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_OPPOSITE: dict[MetricName, int] = {"hamming": 0, "manhattan": 1, "sqeuclidean": 3, "cosine": -1}  # the factor of b


# Histograms


def histogram(
    x: NDArray[np.floating[Any] | np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    center: NDArray[np.floating[Any]],
    inverse: NDArray[np.floating[Any]],
    counts: Integers,
    *,
    steps: int = 16,
    reach: float = 4.0,
    n_jobs: int | None = None,
) -> tuple[Floats, Floats]:
    """Adds to `counts` how often z = (x - center) * inverse falls on and between the multiples of 1 / steps.

    With t = z * steps the bin is floor(t) + ceil(t): a multiple of a step has an even bin of its own, all between two
    of them share the odd one in between. Bins end at +- 2 * steps * reach, which also take what lies beyond; bin b is
    found at `counts[..., b + 2 * steps * reach]`. All is computed in the dtype of x. NaN counts as beyond the reach.

    Args:
        x: `[n, d]` of float32 or float64; others are taken as float64.
        labels: `[n]`, which class each row belongs to.
        center, inverse: `[d]`, where the features lie and one over their scale.
        counts: int64 `[classes, d, 4 * steps * reach + 1]` in one stretch of memory.
        n_jobs: threads, as in joblib; they share the features.

    Returns:
        The sums of z and of its squares by class and feature, `[classes, d]` each.

    Raises:
        FeatureError: arrays that do not fit together, or a label without a class.
    """
    x = np.ascontiguousarray(x, dtype=x.dtype if x.dtype in (np.float32, np.float64) else np.float64)
    labels = np.ascontiguousarray(labels, dtype=np.int32)
    center, inverse = (np.ascontiguousarray(one, dtype=x.dtype) for one in (center, inverse))
    half = round(2 * steps * reach)
    width = 2 * half + 1
    if x.ndim != 2 or labels.shape != x.shape[:1] or not center.shape == inverse.shape == x.shape[1:]:
        raise FeatureError(
            f"got x {list(x.shape)}, labels {list(labels.shape)}, center {list(center.shape)} and "
            f"inverse {list(inverse.shape)}; expected [n, d], [n], [d] and [d]"
        )
    if half != 2 * steps * reach or half % 2 or not 0 < width < 1 << 16:
        raise FeatureError(f"got {steps} steps and reach {reach:g}; steps * reach has to be whole, and below 16384")
    if counts.shape[1:] != (x.shape[1], width) or counts.dtype != np.int64 or not counts.flags.c_contiguous:
        raise FeatureError(
            f"got counts {counts.dtype} {list(counts.shape)}; expected int64 [classes, {x.shape[1]}, {width}] in one "
            "stretch of memory"
        )
    sums, squares = np.zeros(counts.shape[:2]), np.zeros(counts.shape[:2])
    if not x.size:
        return sums, squares
    if labels.min() < 0 or labels.max() >= len(counts):
        raise FeatureError(f"got labels from {labels.min()} to {labels.max()}, but counts of {len(counts)} classes")
    scale = inverse * x.dtype.type(steps)
    library = compiled.library(_SOURCE)
    if isinstance(library, str):
        _count(x, labels, center, scale, counts, sums, squares, half)
        return sums / steps, squares / steps**2
    count = getattr(library, f"lowbit_histogram_{'float' if x.dtype == np.float32 else 'double'}")
    arrays = [_pointer(one) for one in (x, labels, center, scale, counts, sums, squares)]
    sizes = [ctypes.c_int64(one) for one in (*x.shape, len(counts), half)]
    _share(x.shape[1], n_jobs, lambda first, last: count(*arrays, *sizes, *map(ctypes.c_int64, (first, last))))
    return sums / steps, squares / steps**2


def _count(
    x: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    center: NDArray[np.floating[Any]],
    scale: NDArray[np.floating[Any]],
    counts: Integers,
    sums: Floats,
    squares: Floats,
    half: int,
) -> None:
    """`histogram` in numpy; sums and squares are of steps."""
    flat, width = counts.reshape(-1), 2 * half + 1
    zero_bins = np.arange(x.shape[1]) * width + half
    for rows in _chunks(len(x), x.shape[1]):
        with np.errstate(invalid="ignore", over="ignore"):
            t = (x[rows] - center) * scale
            for label in np.unique(labels[rows]):
                own = t[labels[rows] == label]
                sums[label] += own.sum(0, dtype=np.float64)
                squares[label] += np.square(own, dtype=np.float64).sum(0)
            t = np.fmax(np.fmin(t, half // 2), -(half // 2))  # which turn NaN into a number, as bits.cpp does
        bins = (np.floor(t) + np.ceil(t)).astype(np.int64) + zero_bins
        bins += labels[rows, None].astype(np.int64) * (x.shape[1] * width)
        np.add.at(flat, bins.reshape(-1), 1)


# Neighbors


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k rows nearest to each query, nearest first and, at the same distance, the lower row first.

    Attributes:
        distances: `[q, k]`.
        rows: `[q, k]`, their indices.
        tied: `[q, classes]`, how many rows of each class lie at the distance of the k-th, among these k or not; of no
            classes where no labels were given.
    """

    distances: Floats
    rows: Integers
    tied: Integers


def nearest(
    base: Planes,
    queries: Planes,
    k: int,
    *,
    features: int,
    metric: MetricName,
    labels: NDArray[np.integer[Any]] | None = None,
    classes: int = 0,
    n_jobs: int | None = None,
) -> Nearest:
    """Exact neighbors of rows of bits, ties included.

    Args:
        base: `[planes, n, words]`, the rows to choose from.
        queries: `[planes, q, words]`.
        k: how many, at most n.
        features: d, how many bits of the words are in use.
        metric: ``hamming`` (share of the codes that differ), ``manhattan``, ``sqeuclidean`` or ``cosine``
            (1 where either row is all 0).
        labels: `[n]`, from 0 to below `classes`.
        n_jobs: threads, as in joblib; they share the queries.

    Raises:
        FeatureError: planes, labels or a k that do not fit, or an unknown metric.
    """
    base, queries = (np.ascontiguousarray(one, dtype=np.uint64) for one in (base, queries))
    if base.ndim != 3 or queries.ndim != 3 or base.shape[::2] != queries.shape[::2] or base.shape[0] not in (1, 2):
        raise FeatureError(f"planes {list(queries.shape)} cannot be compared with {list(base.shape)}")
    if metric not in METRICS:
        raise FeatureError(f"metric {metric!r} is unknown; expected one of {', '.join(METRICS)}")
    if not 1 <= k <= base.shape[1]:
        raise FeatureError(f"got {k} neighbors of {base.shape[1]} rows; expected at least 1 and no more than rows")
    if labels is None:
        classes = 0
    else:
        labels = np.ascontiguousarray(labels, dtype=np.int32)
        if labels.shape != base.shape[1:2] or labels.min() < 0 or labels.max() >= classes:
            raise FeatureError(f"labels {list(labels.shape)} do not fit {base.shape[1]} rows and {classes} classes")
    count = queries.shape[1]
    keys, rows = np.empty((count, k)), np.empty((count, k), dtype=np.int64)
    tied = np.zeros((count, classes), dtype=np.int64)
    find = _finder(base, queries, metric, labels, keys, rows, tied)
    _share(count, n_jobs, find)
    return Nearest(_distances(keys, queries, features, metric), rows, tied)


def _finder(
    base: Planes,
    queries: Planes,
    metric: MetricName,
    labels: NDArray[np.integer[Any]] | None,
    keys: Floats,
    rows: Integers,
    tied: Integers,
) -> Callable[[int, int], None]:
    """What fills keys, rows and tied for the queries from a first to before a last one.

    A key is a number that orders the rows as their distances do, and is the same for the same distance in either path:
    a whole number or, for cosine, -dot |dot| / |x|^2, the one rounding of an exact quotient.
    """
    library, opposite = compiled.library(_SOURCE), _OPPOSITE[metric]
    if isinstance(library, str):

        def find(first: int, last: int) -> None:
            for some in _chunks(last - first, base.shape[1]):
                part = slice(first + some.start, first + some.stop)
                _find(base, queries[:, part], opposite, labels, keys[part], rows[part], tied[part])

        return find
    arrays = [_pointer(one) for one in (base, queries, labels, keys, rows, tied)]
    planes, n, words = base.shape
    numbers = (planes, words, n, queries.shape[1], keys.shape[1], tied.shape[1], opposite)
    sizes = [ctypes.c_int64(one) for one in numbers]
    call = library.lowbit_nearest
    return lambda first, last: call(*arrays, *sizes, *map(ctypes.c_int64, (first, last)))


def _find(
    base: Planes,
    queries: Planes,
    opposite: int,
    labels: NDArray[np.integer[Any]] | None,
    keys: Floats,
    rows: Integers,
    tied: Integers,
) -> None:
    """The neighbors of a few queries in numpy."""
    found, k = _keys(base, queries, opposite), keys.shape[1]
    farthest = np.partition(found, k - 1, axis=1)[:, k - 1]
    for query, (key, limit) in enumerate(zip(found, farthest, strict=True)):
        candidates = np.flatnonzero(key <= limit)
        rows[query] = candidates[np.argsort(key[candidates], kind="stable")][:k]
        keys[query] = key[rows[query]]
        if labels is not None:
            tied[query] = np.bincount(labels[key == limit], minlength=tied.shape[1])


def _keys(base: Planes, queries: Planes, opposite: int) -> NDArray[Any]:
    """`[q, n]`, see `_finder`."""
    shape = (queries.shape[1], base.shape[1])
    h, b = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    for word in range(base.shape[2]):
        (p, *n), (other_p, *other_n) = queries[:, :, word, None], base[:, :, word]
        differ = p ^ other_p
        if n:
            differ |= n[0] ^ other_n[0]
            b += np.bitwise_count((p & other_n[0]) | (n[0] & other_p))
        h += np.bitwise_count(differ)
    if opposite >= 0:
        return h + opposite * b
    norm, other_norm = squared_norms(queries)[:, None], squared_norms(base)
    dot = ((norm + other_norm - h - b) // 2 - b).astype(np.float64)
    return -dot * np.abs(dot) / np.maximum(other_norm, 1)


def squared_norms(planes: Planes) -> Integers:
    """`[n]`, how many codes of each row are not 0."""
    norms: Integers = np.bitwise_count(planes).sum((0, 2), dtype=np.int64)
    return norms


def _distances(keys: Floats, queries: Planes, features: int, metric: MetricName) -> Floats:
    match metric:
        case "hamming":
            return keys / features
        case "cosine":  # 1 - dot / sqrt(|q|^2 |x|^2), exactly 0 where that is
            norm = np.maximum(squared_norms(queries), 1)[:, None]
            return 1 + np.copysign(np.sqrt(np.abs(keys) / norm), keys)
        case _:
            return keys


def votes(found: Nearest, labels: NDArray[np.integer[Any]], weights: WeightsName) -> Floats:
    """`[q, classes]`: rows nearer than the k-th vote; those as far as it share what places are left, row order aside.

    Args:
        found: with `tied` counted.
        labels: `[n]`, as `nearest` was given.
        weights: ``uniform``, or ``distance``: by one over the distance, but rows at distance 0 alone where there are.
    """
    (count, k), classes = found.rows.shape, found.tied.shape[1]
    last = found.distances[:, -1:]
    nearer = found.distances < last
    left = k - nearer.sum(1, keepdims=True)  # places for the rows as far as the k-th
    all_tied = found.tied.sum(1, keepdims=True)
    boxes = (np.arange(count)[:, None] * classes + labels[found.rows])[nearer]
    if weights == "uniform":  # one division of whole numbers, so that equal votes are equal
        own = np.bincount(boxes, minlength=count * classes).reshape(count, classes)
        equal: Floats = (own * all_tied + left * found.tied) / all_tied
        return equal
    at_zero = found.distances == 0
    with np.errstate(divide="ignore"):
        weight = np.where(at_zero.any(1, keepdims=True), at_zero, 1 / found.distances)
    own = np.bincount(boxes, weight[nearer], minlength=count * classes).reshape(count, classes)
    weighted: Floats = own + weight[:, -1:] * left * found.tied / all_tied
    return weighted


# Both


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Few rows at a time."""
    step = max(1, _AT_ONCE // max(columns, 1))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _share(count: int, n_jobs: int | None, work: Callable[[int, int], object]) -> None:
    """Does the work from 0 to before `count` in as many parts as there are threads."""
    parts = max(1, min(effective_n_jobs(n_jobs), count))
    edges = [count * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, count)
    else:
        Parallel(n_jobs=parts, prefer="threads", require="sharedmem")(
            delayed(work)(*edges[part : part + 2]) for part in range(parts)
        )


def _pointer(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)
