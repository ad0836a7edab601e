"""How sure a figure is: scores with 95 % intervals, paired differences, and the verdict against the KPI."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

from lowbit import files
from lowbit.errors import DataError
from lowbit.pilot.record import Kpi, Score, Verdict

Array = npt.NDArray[np.generic]
Metric = Callable[[Array, Array], float]


def check_metric(metric: str, labels: Array | None) -> None:
    """Whether a metric can be computed, before anything runs.

    Raises:
        DataError: it is unknown, or needs labels that are not there.
    """
    if metric not in ("accuracy", "agreement", "r2") and ":" not in metric:
        raise DataError(f"kpi.metric {metric!r} is unknown; expected accuracy, agreement, r2 or module:function")
    if metric != "agreement" and labels is None:
        raise DataError(f"kpi.metric {metric!r} needs labels, the test data has none; name them, or use agreement")


def predictions(outputs: Array) -> Array:
    """The predicted class of each sample: `[N, C]` to `[N]`; the sign for a single output."""
    rows = outputs.reshape(len(outputs), -1).astype(np.float32)
    return np.asarray(rows.argmax(1) if rows.shape[1] > 1 else rows[:, 0] > 0)


def score(metric: str, outputs: Array, labels: Array | None, reference: Array, seed: int) -> Score:
    """The metric of `outputs`, with a 95 % interval: Wilson for shares, a seeded bootstrap for others.

    Raises:
        DataError: outputs and labels do not fit each other.
    """
    if metric in ("accuracy", "agreement"):
        return share(_hits(metric, outputs, labels, reference))
    function, targets = _function(metric), _targets(outputs, labels)
    value = function(outputs, targets)
    low, high = _bootstrap(lambda i: function(outputs[i], targets[i]), len(outputs), seed)
    return Score(value, low, high, len(outputs))


def difference(metric: str, outputs: Array, labels: Array | None, reference: Array, seed: int) -> Score:
    """Score of `outputs` less that of the float `reference`, paired sample by sample, with a 95 % interval."""
    if metric in ("accuracy", "agreement"):
        hits, base = (_hits(metric, o, labels, reference).astype(float) for o in (outputs, reference))
        gaps = hits - base
        half = 1.96 * float(gaps.std(ddof=1)) / len(gaps) ** 0.5 if len(gaps) > 1 else 1.0
        return Score(float(gaps.mean()), float(gaps.mean()) - half, float(gaps.mean()) + half, len(gaps))
    function, targets = _function(metric), _targets(outputs, labels)

    def gap(i: Array) -> float:
        return function(outputs[i], targets[i]) - function(reference[i], targets[i])

    low, high = _bootstrap(gap, len(outputs), seed)
    return Score(gap(np.arange(len(outputs))), low, high, len(outputs))


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
            "classes] and [N]; use a module:function metric"
        )
    return np.asarray(predictions(outputs) == targets)


def _targets(outputs: Array, labels: Array | None) -> Array:
    if labels is None or len(labels) != len(outputs):
        raise DataError(f"got {0 if labels is None else len(labels)} labels for {len(outputs)} outputs")
    return labels


def _function(metric: str) -> Metric:
    if metric != "r2":
        given = files.resolve(metric)
        return lambda outputs, targets: float(given(outputs, targets))  # type: ignore[arg-type]

    def r2(outputs: Array, targets: Array) -> float:
        flat, want = (a.reshape(len(a), -1).astype(float) for a in (outputs, targets))
        return float(1 - ((flat - want) ** 2).sum() / max(((want - want.mean(0)) ** 2).sum(), 1e-30))

    return r2


def _bootstrap(statistic: Callable[[Array], float], count: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(0, count, count)) for _ in range(500)]
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))
