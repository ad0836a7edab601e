"""Whether features should become bits: the sweep, the verdict and what they cost, as one record for the report.

A study looks at all data once to count them, and at a random sample of their rows for everything that trains a
classifier. What takes long is written as it is found, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from lowbit import __version__, files
from lowbit.batches import labels_of, without_labels
from lowbit.data import Data
from lowbit.errors import DataError, FeatureError
from lowbit.methods.discrimination.checklist import FeatureCheck, applicability, check_features
from lowbit.methods.discrimination.estimators import QUANTIZERS, FeatureQuantizer
from lowbit.methods.discrimination.histograms import Histograms, scaling
from lowbit.methods.discrimination.layers import Pool, layer_features
from lowbit.methods.discrimination.measure import interval, mean_pair, worst_pair
from lowbit.methods.discrimination.packed import PackedKNeighborsClassifier
from lowbit.methods.discrimination.sweep import count_features
from lowbit.methods.discrimination.theory import Code
from lowbit.methods.discrimination.tracing import trace_features
from lowbit.methods.discrimination.verdict import Verdict, judge

ROWS = 4096  # read at a time
NEIGHBORS, FOLDS = 5, 5
TRIED: dict[Code, tuple[float, ...]] = {
    "binary": (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0),
    "ternary": (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5),
}  # thresholds whose accuracy is drawn beside D
REPEATS = 5  # calls that are timed
SHOWN = 200  # features in the checklist of the record, the most telling ones first

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class AccuracyRow:
    """Accuracy of 5 nearest neighbors at a threshold: mean and standard deviation over folds of the sample."""

    threshold: float
    mean: float
    spread: float


@dataclass(frozen=True)
class CodeRow:
    """D of one code against its threshold, all data; accuracy at some thresholds, on the sample.

    Attributes:
        code: binary or ternary.
        thresholds, mean, worst: D over all features, mean over pairs of classes and of the worst pair.
        improving: intervals of thresholds at which the mean D is above that of the original features.
        threshold: with the largest mean D.
        best, low, high: that D, and its 95 % interval over resamples of the sample.
        accuracy: at some thresholds.
        file: that a `FeatureTrace` lies in, beside the record.
    """

    code: Code
    thresholds: tuple[float, ...]
    mean: tuple[float, ...]
    worst: tuple[float, ...]
    improving: tuple[tuple[float, float], ...]
    threshold: float
    best: float
    low: float
    high: float
    accuracy: tuple[AccuracyRow, ...]
    file: str


@dataclass(frozen=True)
class ComparedRow:
    """A gain in accuracy, its interval, and what that says."""

    gain: float
    low: float
    high: float
    outcome: str


@dataclass(frozen=True)
class JudgedRow:
    """One code with one classifier; accuracies are means over the splits."""

    classifier: str
    code: Code
    accuracy: float
    spread: float
    original: float
    versus_original: ComparedRow
    best_float: str
    best_float_accuracy: float
    versus_best_float: ComparedRow
    threshold: float
    per_feature: int
    recommended: bool
    sentence: str


@dataclass(frozen=True)
class CandidateRow:
    """The accuracy of one candidate with one classifier over the splits."""

    classifier: str
    name: str
    mean: float
    spread: float


@dataclass(frozen=True)
class StorageRow:
    """What the sample takes, and how long 5 nearest neighbors of a query take in it, on one thread.

    Attributes:
        name: floats or a code.
        bytes_per_row: of one sample's features.
        milliseconds: for one query among `rows`, median of several calls on many queries.
        rows: that were searched.
    """

    name: str
    bytes_per_row: float
    milliseconds: float
    rows: int


@dataclass(frozen=True)
class FeatureRow:
    """One feature of the checklist; see `FeatureCheck`."""

    name: str
    constant: bool
    zeros: float
    correlation: float
    kurtosis: float | None
    original: float
    binary: float
    ternary: float
    binary_own: float
    ternary_own: float
    binary_best: float
    ternary_best: float
    binary_error: float
    ternary_error: float
    sentence: str


@dataclass(frozen=True)
class FeatureStudy:
    """All that is known about features as bits on some data.

    Attributes:
        name, source: of the study and of its data; layer is empty where they are no network's.
        samples, features: of the data; classes by label with their samples.
        sampled: rows of the sample that classifiers were trained on.
        original, worst, low, high: D of the features as they are, standardized; mean, worst pair and 95 % interval.
        accuracy_floats: of 5 nearest neighbors among standardized floats, on the same folds as the codes' rows.
        summary: the verdict in one sentence.
        margin, splits: of the verdict.
        applicability: what holds for the data as a whole.
        checks: the most telling features; `unchecked` are not listed.
        command: that made it, as typed; empty from Python.
        took: seconds.
    """

    name: str
    source: str
    layer: str
    samples: int
    features: int
    classes: dict[str, int]
    sampled: int
    seed: int
    version: str
    data_hash: str
    original: float
    worst: float
    low: float
    high: float
    codes: tuple[CodeRow, ...]
    accuracy_floats: AccuracyRow
    summary: str
    margin: float
    splits: int
    judged: tuple[JudgedRow, ...]
    candidates: tuple[CandidateRow, ...]
    storage: tuple[StorageRow, ...]
    applicability: tuple[str, ...]
    checks: tuple[FeatureRow, ...]
    unchecked: int
    command: str
    took: float

    def save(self, folder: Path) -> None:
        """Write `features.json`."""
        files.write_json(folder / "features.json", TypeAdapter(FeatureStudy).dump_python(self, mode="json"))

    @staticmethod
    def load(path: Path) -> FeatureStudy:
        """Read it back.

        Raises:
            DataError: the file is missing, damaged or something else.
        """
        try:
            return TypeAdapter(FeatureStudy).validate_python(files.read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"'{path}': {where}: {first['msg']}; run lowbit features sweep again") from None


def study(
    data: Data,
    folder: Path,
    *,
    name: str,
    model: nn.Module | None = None,
    layer: str = "",
    pool: Pool = "mean",
    limit: int = 5000,
    splits: int = 10,
    margin: float = 0.01,
    seed: int = 0,
    jobs: int = 1,
    command: str = "",
    say: Callable[[str], object] = lambda text: None,
) -> FeatureStudy:
    """Sweep thresholds, measure classifiers, and write `features.json` and one trace a code to `folder`.

    Args:
        data: inputs with labels: the features themselves, or what `model` takes.
        folder: that everything is written to; a study of the same data and settings goes on from it.
        name: of the study.
        model, layer, pool: whose layer's outputs are the features; see `layer_features`.
        limit: rows of the sample that classifiers are trained on.
        splits, margin: of the verdict, see `judge`.
        seed: of the sample and the splits.
        jobs: splits at once.
        command: that was typed, for the page.
        say: told what goes on.

    Raises:
        DataError: data without labels.
        FeatureError: one class only, too few samples, or values that are not finite.
        LayerError: no such layer.
    """
    began = time.perf_counter()
    if data.labels is None:
        raise DataError(f"data {data.name!r} has no labels; name them, discrimination is between classes")
    if data.labels.is_floating_point():
        raise FeatureError(f"data {data.name!r}: labels are not whole numbers, expected classes")
    some = data.take(limit, seed) if len(data) > limit else data
    x, y = (np.concatenate(part) for part in zip(*feature_chunks(some, model, layer, pool), strict=True))
    say(f"{len(data):,} samples of {x.shape[1]:,} features; {len(x):,} of them train classifiers")
    units = scaling(x)
    counts = count_features(
        cast("Iterator[tuple[Array, Array]]", feature_chunks(data, model, layer, pool)), scale=units
    )
    quantizers = {code: one().fit_counts(counts) for code, one in QUANTIZERS.items()}
    say("counted; now the verdict")
    verdict = judge(x, y, margin=margin, splits=splits, seed=seed, n_jobs=jobs, folder=folder / "splits", say=say)
    say("accuracy against the threshold, memory and speed")
    codes = []
    for code, quantizer in quantizers.items():
        trace_features(quantizer, x, data_hash=some.hash).save(folder / f"{code}.json")
        codes.append(_code(code, counts, quantizer, x, y, seed))
    checks = check_features(counts, x, y)
    telling = sorted(checks, key=lambda one: -one.telling)[:SHOWN]
    original, (low, high) = counts.original(), interval(units.standardized(x), y, seed=seed)
    found = FeatureStudy(
        name=name,
        source=data.name,
        layer=layer,
        samples=len(data),
        features=x.shape[1],
        classes={str(c): int(n) for c, n in zip(counts.classes, counts.samples, strict=True)},
        sampled=len(x),
        seed=seed,
        version=__version__,
        data_hash=data.hash,
        original=float(mean_pair(original)),
        worst=float(worst_pair(original)),
        low=low,
        high=high,
        codes=tuple(codes),
        accuracy_floats=_accuracy(0.0, make_pipeline(StandardScaler(), KNeighborsClassifier(NEIGHBORS)), x, y, seed),
        summary=verdict.summary,
        margin=margin,
        splits=splits,
        judged=tuple(_judged(verdict)),
        candidates=tuple(_candidates(verdict)),
        storage=tuple(_storage(quantizers, units.standardized(x), x, y)),
        applicability=applicability(checks, counts),
        checks=tuple(_check(one) for one in telling),
        unchecked=len(checks) - len(telling),
        command=command,
        took=time.perf_counter() - began,
    )
    found.save(folder)
    return found


def feature_chunks(
    data: Data, model: nn.Module | None = None, layer: str = "", pool: Pool = "mean"
) -> Iterator[tuple[Array, Array | None]]:
    """Features `[n, d]` of a few thousand samples at a time, with labels where there are some."""
    if model is not None:
        yield from layer_features(model, layer, data.batches(min(ROWS, 256)), pool=pool)
        return
    for batch in data.batches(ROWS):
        inputs, labels = without_labels(batch), labels_of(batch)
        if isinstance(inputs, dict):
            raise DataError(f"data '{data.name}' has several inputs ({', '.join(inputs)}); name one with `inputs:`")
        yield inputs.flatten(1).numpy(), None if labels is None else labels.numpy()


def _code(code: Code, counts: Histograms, quantizer: FeatureQuantizer, x: Array, y: Array, seed: int) -> CodeRow:
    sweep = counts.sweep(code)
    low, high = interval(x, y, quantizer.transform, seed=seed)
    neighbors = PackedKNeighborsClassifier(NEIGHBORS, metric="sqeuclidean")
    accuracy = [
        _accuracy(threshold, make_pipeline(QUANTIZERS[code](threshold), neighbors), x, y, seed)
        for threshold in TRIED[code]
    ]
    return CodeRow(
        code=code,
        thresholds=tuple(sweep.thresholds.tolist()),
        mean=tuple(sweep.mean.tolist()),
        worst=tuple(sweep.worst.tolist()),
        improving=tuple(sweep.improving(float(mean_pair(counts.original())))),
        threshold=sweep.best(),
        best=float(sweep.mean.max()),
        low=low,
        high=high,
        accuracy=tuple(accuracy),
        file=f"{code}.json",
    )


def _accuracy(threshold: float, model: Any, x: Array, y: Array, seed: int) -> AccuracyRow:
    values = cross_val_score(model, x, y, cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed))
    return AccuracyRow(threshold, float(values.mean()), float(values.std(ddof=1)))


def _judged(verdict: Verdict) -> Iterator[JudgedRow]:
    for row in verdict.rows:
        original, floats = (
            ComparedRow(one.gain, one.low, one.high, one.outcome)
            for one in (row.versus_original, row.versus_best_float)
        )
        yield JudgedRow(
            classifier=row.classifier,
            code=row.code,
            accuracy=row.scores.mean,
            spread=row.scores.spread,
            original=row.original.mean,
            versus_original=original,
            best_float=row.best_float.name,
            best_float_accuracy=row.best_float.mean,
            versus_best_float=floats,
            threshold=row.threshold,
            per_feature=row.per_feature,
            recommended=row.recommended,
            sentence=row.sentence,
        )


def _candidates(verdict: Verdict) -> Iterator[CandidateRow]:
    for classifier, scores in verdict.scores.items():
        yield from (CandidateRow(classifier, one.name, one.mean, one.spread) for one in scores)


def _storage(
    quantizers: dict[Code, FeatureQuantizer], z: npt.NDArray[np.floating], x: Array, y: Array
) -> Iterator[StorageRow]:
    """Memory and time of nearest neighbors, on one thread, interleaved so that all see the same machine."""
    queries = slice(0, min(len(x), 200))
    floats = z.astype(np.float32)
    models: dict[str, tuple[Any, Any]] = {
        "float32": (KNeighborsClassifier(NEIGHBORS, algorithm="brute").fit(floats, y), floats[queries])
    }
    sizes = {"float32": 4.0 * x.shape[1]}
    for code, quantizer in quantizers.items():
        packed = quantizer.pack(x)
        models[code] = PackedKNeighborsClassifier(NEIGHBORS).fit(packed, y), packed[queries]
        sizes[code] = packed.nbytes / len(packed)
    times: dict[str, list[float]] = {name: [] for name in models}
    with threadpool_limits(1):
        for _ in range(REPEATS):
            for name, (model, asked) in models.items():
                began = time.perf_counter()
                model.predict(asked)
                times[name].append(1000 * (time.perf_counter() - began) / len(x[queries]))
    for name, taken in times.items():
        yield StorageRow(name, sizes[name], median(taken), len(x))


def _check(one: FeatureCheck) -> FeatureRow:
    values = {key: value for key, value in asdict(one).items() if key in FeatureRow.__dataclass_fields__}
    kurtosis = one.kurtosis if np.isfinite(one.kurtosis) else None
    return FeatureRow(**{**values, "kurtosis": kurtosis, "sentence": one.sentence})
