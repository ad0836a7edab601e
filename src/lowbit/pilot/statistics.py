"""How sure a figure is: scores with 95 % intervals, paired differences, and the verdict against the KPI."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from lowbit import files
from lowbit.errors import DataError, LowbitError
from lowbit.pilot.record import Kpi, Score, Verdict

Array = npt.NDArray[np.generic]
Metric = Callable[[Array, Array], float]


def check_metric(metric: str, labels: Array | None, folder: Path | None = None) -> None:
    """Whether a metric can be computed, before anything runs.

    Raises:
        DataError: it is unknown, cannot be imported, or needs labels that are not there.
    """
    if metric not in ("accuracy", "agreement", "r2") and ":" not in metric:
        raise DataError(f"kpi.metric {metric!r} is unknown; expected accuracy, agreement, r2 or module:function")
    if metric != "agreement" and labels is None:
        raise DataError(f"kpi.metric {metric!r} needs labels, the test data has none; name them, or use agreement")
    if ":" in metric:
        files.resolve(metric, folder)


def predictions(outputs: Array) -> Array:
    """The predicted class of each sample: `[N, C]` to `[N]`; the sign for a single output."""
    rows = outputs.reshape(len(outputs), -1).astype(np.float32)
    return np.asarray(rows.argmax(1) if rows.shape[1] > 1 else rows[:, 0] > 0)


def score(
    metric: str, outputs: Array, labels: Array | None, reference: Array, seed: int, folder: Path | None = None
) -> Score:
    """The metric of `outputs`, with a 95 % interval: Wilson for shares, a seeded bootstrap for others.

    Args:
        metric: accuracy, agreement, r2 or ``module:function``.
        outputs: of the file, `[N, ...]`.
        labels: targets, `[N, ...]`.
        reference: outputs of the float model.
        seed: of the bootstrap.
        folder: where the path of a ``path/file.py:function`` begins.

    Raises:
        DataError: outputs and labels do not fit each other, or the metric's function fails on them.
    """
    if metric in ("accuracy", "agreement"):
        return share(_hits(metric, outputs, labels, reference))
    function, targets = _function(metric, folder), _targets(outputs, labels)
    return _bootstrap(lambda i: function(outputs[i], targets[i]), len(outputs), seed, metric)


def difference(
    metric: str,
    outputs: Array,
    labels: Array | None,
    reference: Array,
    seed: int,
    folder: Path | None = None,
    *,
    baseline: Array | None = None,
) -> Score:
    """Score of `outputs` less that of `baseline`, paired sample by sample, with a 95 % interval.

    The baseline's outputs are those of the float model by default; `reference` is always the float model's, which
    agreement is with.

    For shares the interval adds half a sample to each cell of the two-by-two table (Agresti and Min, Simple improved
    confidence intervals for comparing matched proportions, 2005), so that no change on few samples is not certainty.
    """
    before = reference if baseline is None else baseline
    if metric in ("accuracy", "agreement"):
        hits, base = (_hits(metric, o, labels, reference).astype(float) for o in (outputs, before))
        gaps, count = hits - base, len(hits) + 2
        won, lost = float((gaps > 0).sum()) + 0.5, float((gaps < 0).sum()) + 0.5
        middle = (won - lost) / count
        half = 1.96 * ((won + lost - (won - lost) ** 2 / count) / count**2) ** 0.5
        return Score(float(gaps.mean()), middle - half, middle + half, len(gaps))
    function, targets = _function(metric, folder), _targets(outputs, labels)

    def gap(i: Array) -> float:
        return function(outputs[i], targets[i]) - function(before[i], targets[i])

    return _bootstrap(gap, len(outputs), seed, metric)


def share(hits: Array) -> Score:
    """A share with its Wilson interval."""
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Score(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def verdict(value: Score, kpi: Kpi) -> Verdict:
    """``meets`` if the whole interval reaches the minimum, ``misses`` if none of it does, else ``borderline``."""
    if value.low >= kpi.minimum:
        return "meets"
    return "borderline" if value.high >= kpi.minimum else "misses"


def _hits(metric: str, outputs: Array, labels: Array | None, reference: Array) -> Array:
    if metric == "agreement":
        return np.asarray(predictions(outputs) == predictions(reference))
    targets = _targets(outputs, labels)
    if targets.ndim != 1 or outputs.ndim != 2:
        raise DataError(
            f"kpi.metric accuracy: got outputs {list(outputs.shape)} and labels {list(targets.shape)}, expected [N, "
            "classes] and [N]; check which array is labels, or use a module:function metric"
        )
    return np.asarray(predictions(outputs) == targets)


def _targets(outputs: Array, labels: Array | None) -> Array:
    if labels is None or len(labels) != len(outputs):
        got = 0 if labels is None else len(labels)
        raise DataError(f"got {got} labels for {len(outputs)} outputs, expected one each; correct the test data")
    return labels


def _function(metric: str, folder: Path | None) -> Metric:
    if metric == "r2":
        return _r2
    given = files.resolve(metric, folder)

    def called(outputs: Array, targets: Array) -> float:
        try:
            return float(given(outputs, targets))  # type: ignore[arg-type]
        except LowbitError:
            raise
        except Exception as error:  # the user's function may raise anything
            got = f"outputs {list(outputs.shape)} and labels {list(targets.shape)}"
            raise DataError(f"kpi.metric {metric!r}: got {got}, raised {files.one_line(error)}; correct it") from error

    return called


def _r2(outputs: Array, targets: Array) -> float:
    """1 - residual / total sum of squares, NaN where all targets are equal."""
    got, want = (a.reshape(len(a), -1).astype(float) for a in (outputs, targets))
    if got.shape != want.shape:
        raise DataError(
            f"kpi.metric r2: got outputs {list(outputs.shape)} and labels {list(targets.shape)}, expected as many "
            "numbers a sample; use a module:function metric"
        )
    if (want == want[0]).all():
        return math.nan
    return 1 - float(((got - want) ** 2).sum() / ((want - want.mean(0)) ** 2).sum())


def _bootstrap(statistic: Callable[[Array], float], count: int, seed: int, metric: str) -> Score:
    """The statistic of all samples, and its interval over resamples; those for which it is not defined are left out."""
    value = statistic(np.arange(count))
    if not math.isfinite(value):
        raise DataError(
            f"kpi.metric {metric!r} is {value} on {count} samples, expected a number; check labels, outputs"
        )
    generator = np.random.default_rng(seed)
    draws = np.array([statistic(generator.integers(0, count, count)) for _ in range(500)])
    low, high = np.quantile(draws[np.isfinite(draws)], [0.025, 0.975])
    return Score(value, float(low), float(high), count)
