"""Counting data that do not fit into memory: chunk by chunk, on all cores of one machine or on many machines.

    counts = lb.count_features(chunks, n_jobs=2)      # chunks: a list-like of (features, labels), read where it is used
    counts.sweep("ternary").best()                    # the threshold with the largest discrimination

Chunks are counted where joblib puts them: in threads here, and on a cluster inside `joblib.parallel_config("dask")`, to
which only the reader of the chunks travels. Memory holds one chunk and one set of counts a worker.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed, effective_n_jobs
from scipy import sparse

from lowbit import files
from lowbit.errors import DataError, DataWarning, FeatureError
from lowbit.methods.discrimination.histograms import REACH, Histograms, Scaling, Unit, scaling, scaling_of
from lowbit.methods.discrimination.measure import Matrix, as_labels, as_rows, check_finite

Chunk: TypeAlias = tuple[Matrix, npt.NDArray[np.generic]]
FAR = 0.05  # share of values beyond all thresholds that is told
SCALED_ON = 8  # chunks, evenly spread, that the scale is taken from


@runtime_checkable
class Chunks(Protocol):
    """Data in pieces that can be read in any order, and by a process that was sent this object."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Chunk: ...


def count_features(
    chunks: Chunks | Iterable[Chunk],
    *,
    scale: Scaling | None = None,
    center: bool = True,
    unit: Unit = "std",
    n_jobs: int | None = None,
) -> Histograms:
    """Counts of all chunks, in one pass; D at every threshold follows from them without the data.

    Args:
        chunks: features `[n, d]` and labels `[n]` each. Read in parallel if they have a length and can be indexed, else
            one after the other, as they come.
        scale: what thresholds are in units of. By default it is taken from 8 chunks, evenly spread, before the pass;
            of a stream from its first chunk, which should then be drawn at random.
        center, unit: as in `scaling`, of the default scale.
        n_jobs: as in joblib, for chunks that can be indexed.

    Raises:
        FeatureError: no data, values that are not finite, or chunks that do not fit each other.
    """
    if isinstance(chunks, Chunks):
        return _in_parallel(chunks, scale, center, unit, n_jobs)
    stream = iter(chunks)
    first = next(stream, None)
    if first is None:
        raise FeatureError("got no chunk of features, expected at least one")
    units = scale or scaling(_checked(first, None)[0], center=center, unit=unit)
    return _told(_counted(chain([first], stream), units))


def in_pieces(x: Matrix, y: npt.NDArray[np.generic], rows: int = 65536) -> Sequence[Chunk]:
    """Arrays, which may be memory-mapped, as chunks of so many rows; nothing is copied."""
    return [(x[i : i + rows], y[i : i + rows]) for i in range(0, x.shape[0], rows)]


@final
@dataclass(frozen=True)
class ArrayFiles:
    """Two `.npy` files, of features `[N, d]` and labels `[N]`, as chunks; each is read from disk where it is used.

    Attributes:
        x, y: the files, at paths that every worker sees.
        rows: of a chunk.

    Raises:
        DataError: when a file cannot be read, or holds Python objects, which are never unpickled.
    """

    x: Path
    y: Path
    rows: int = 65536

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise DataError(f"rows: got {self.rows}, expected at least 1")

    def __len__(self) -> int:
        x, y = len(self._opened(self.x)), len(self._opened(self.y))
        if x != y:
            raise DataError(f"'{self.x}' has {x} rows and '{self.y}' {y}, expected one label a row")
        return math.ceil(y / self.rows)

    def __getitem__(self, index: int, /) -> Chunk:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(index * self.rows, (index + 1) * self.rows)
        return self._opened(self.x)[part], self._opened(self.y)[part]

    def _opened(self, path: Path) -> npt.NDArray[Any]:
        with files.reading(path):
            found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found


def _in_parallel(chunks: Chunks, scale: Scaling | None, center: bool, unit: Unit, n_jobs: int | None) -> Histograms:
    if not len(chunks):
        raise FeatureError("got no chunk of features, expected at least one")
    units = scale
    if units is None:
        spread = sorted({int(i) for i in np.linspace(0, len(chunks) - 1, SCALED_ON)})

        def read() -> Iterator[Matrix]:
            features = None
            for i in spread:
                x, _ = _checked(chunks[i], features)
                features = x.shape[1]
                yield x

        units = scaling_of(read, center=center, unit=unit)
    workers = max(effective_n_jobs(n_jobs), 1)
    turns = [range(i, len(chunks), workers) for i in range(min(workers, len(chunks)))]
    parts = Parallel(n_jobs=n_jobs, prefer="threads")(delayed(_counted_of)(chunks, turn, units) for turn in turns)
    whole: Histograms = parts[0]
    for part in parts[1:]:
        whole = whole.merged(part)
    return _told(whole)


def _counted_of(chunks: Chunks, turn: range, units: Scaling) -> Histograms:
    return _counted((chunks[i] for i in turn), units)


def _counted(chunks: Iterator[Chunk] | Iterable[Chunk], units: Scaling) -> Histograms:
    found = None
    for chunk in chunks:
        x, y = _checked(chunk, len(units.scale))
        if not len(y):
            continue
        if found is None:
            found = Histograms.empty(np.unique(y), units, is_sparse=bool(sparse.issparse(x)))
        found = found.added(x, y)
    if found is None:
        raise FeatureError("got no chunk of features, expected at least one")
    return found


def _checked(chunk: Chunk, features: int | None) -> Chunk:
    if not isinstance(chunk, Sequence) or len(chunk) != 2:
        raise FeatureError(f"got a chunk of type {type(chunk).__name__}, expected (features, labels)")
    x, y = as_rows(chunk[0]), as_labels(chunk[1])
    if x.ndim != 2 or y.shape != x.shape[:1] or features not in (None, x.shape[1]):
        raise FeatureError(
            f"got a chunk of features {list(x.shape)} and labels {list(y.shape)}, expected [n, {features or 'd'}] and "
            "[n]"
        )
    check_finite(x)
    return x, y


def _told(counts: Histograms) -> Histograms:
    if counts.beyond > FAR:
        warnings.warn(
            f"{counts.beyond:.0%} of the values lie more than {REACH} units of the scale from the center, beyond all "
            "thresholds: the scale does not fit the data; give scale=, or chunks that are drawn at random",
            DataWarning,
            stacklevel=3,
        )
    return counts
