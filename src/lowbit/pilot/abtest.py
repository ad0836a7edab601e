"""Which of two models is better: a paired A/B test of their outputs, or of outcomes that were logged.

Both models answer the same samples, so only the samples where they differ tell anything. B - A comes with a 95 %
interval, and is held against a margin, the loss that does not matter: an interval above 0 says better, one above
-margin says no worse, and a large p-value alone says nothing. One end of a 95 % interval errs in about 2.5 % of all
tests; docs/compare.md has what was simulated.

| metric | a sample's outcome | interval of B - A | p-value |
|---|---|---|---|
| accuracy, hits | right or wrong | Agresti and Min 2005 | McNemar, exact and mid-p |
| agreement | B predicts as A, or not | Wilson, less 1 | none: B can only lose |
| error | a number, smaller is better | Student's t of the paired differences | none |
| r2, module:function | of all samples together | paired bootstrap | none |

How many samples a decision takes is the usual formula of a one-sided test against a margin,

    n = v ((z_0.975 + z_0.8) / (d + margin))^2,

where d is the effect and v the variance of a sample's difference: for shares p - d^2 with p the share of samples on
which one model alone is right. It assumes that both are as observed, and gives 80 % power.

References:
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947,
    https://doi.org/10.1007/BF02295996.
    M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are
    better than exact conditional", 2013, https://doi.org/10.1186/1471-2288-13-91.
    Y. Lu, J. A. Bean, "On the sample size for one-sided equivalence of sensitivities based upon McNemar's test", 1995,
    https://doi.org/10.1002/sim.4780141611: the formula for shares.
    S. Holm, "A simple sequentially rejective multiple test procedure", 1979: the p-values of classes.
Differs from Lu and Bean: the variance is that of Agresti and Min's interval, which the verdict is given by.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from lowbit.errors import DataError
from lowbit.pilot import statistics
from lowbit.pilot.differing import (
    ClassRow,
    Difference,
    class_rows,
    confidence,
    differing_classes,
    differing_numbers,
    mcnemar,
)
from lowbit.pilot.record import Score

Array = npt.NDArray[Any]
Decision = Literal["better", "equivalent", "no worse", "worse", "undecided"]

METRICS = ("accuracy", "agreement", "r2", "hits", "error")
_SHARES = ("accuracy", "agreement", "hits")
_MARGIN = 0.01  # of metrics whose unit is known: a point of accuracy
_SURE, _POWER = 1.96, 0.8416  # normal quantiles of 97.5 % and 80 %
_FEW = 20  # samples that one model alone has right; with fewer the interval is rough
_MOST = 10**9  # samples; a larger need is no plan


@dataclass(frozen=True)
class Comparison:
    """What a paired A/B test found. `effect` is B - A in units of the metric, `a` and `b` are the metric of each.

    `lost` and `won` count samples that only A, or only B, has right; with agreement those that B predicts otherwise are
    lost. `needed` is how many samples in all a test takes that decides in 80 % of all cases, `needed_if_equal` the same
    if there is no true difference; both are None where none is needed or no number would do. `p_value` and `mid_p` are
    of McNemar's test. Samples in `differences` that B loses come first.
    """

    metric: str
    margin: float
    samples: int
    verdict: Decision
    a: Score
    b: Score
    effect: Score
    larger_is_better: bool = True
    p_value: float | None = None
    mid_p: float | None = None
    lost: int | None = None
    won: int | None = None
    needed: int | None = None
    needed_if_equal: int | None = None
    differences: tuple[Difference, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether B is better, or no worse within the margin."""
        return self.verdict in ("better", "equivalent", "no worse")

    def __str__(self) -> str:
        interval = f"95 % interval {self._gap(self.effect.low)} to {self._gap(self.effect.high)}"
        unit = " points" if self.metric in _SHARES else ""
        return (
            f"{self._said()}: {self.metric} {self.figure(self.b.value)} against {self.figure(self.a.value)}, B - A is "
            f"{self._gap(self.effect.value)}{unit} ({interval})"
        )

    def figure(self, value: float) -> str:
        """A value of the metric as text: shares in percent."""
        return f"{100 * value:.2f} %" if self.metric in _SHARES else f"{value:.4g}"

    def need(self) -> str:
        """How many more samples a decision takes and what that assumes; empty if there is a decision."""
        if self.verdict != "undecided":
            return ""
        if self.needed is None:
            told = "the effect seen lies on the margin, where no number of samples decides"
        else:
            told = (
                f"a decision takes about {self.needed - self.samples:,} samples more, {self.needed:,} in all (80 % "
                "power, if the true effect and the spread are those seen)"
            )
        if self.needed_if_equal is not None:
            told += f"; {self.needed_if_equal:,} in all if the models are equally good"
        return f"{told}. Decide once, at that number: looking again after each addition errs more often"

    def _gap(self, value: float) -> str:
        """A change of the metric as text, of shares in percentage points."""
        return f"{100 * value:+.2f}" if self.metric in _SHARES else f"{value:+.4g}"

    def _said(self) -> str:
        gain = _gain(self.effect, self.larger_is_better)
        points = f"{100 * self.margin:g} point{'' if self.margin == _MARGIN else 's'}"
        shown = points if self.metric in _SHARES else f"{self.margin:g}"
        margin = f"the margin of {shown}"
        match self.verdict:
            case "better":
                return "B is better than A" + (", by less than the margin" if gain.high < self.margin else "")
            case "equivalent":
                a_little = ", though worse by a little" if gain.high < 0 and self.metric != "agreement" else ""
                return f"B is equivalent to A within {margin}{a_little}"
            case "no worse":
                return f"B is no worse than A within {margin}"
            case "worse":
                beyond = gain.high < -self.margin
                return f"B is worse than A{' by more than' if beyond else ', maybe by less than'} {margin}"
            case "undecided":
                if gain.high < 0:
                    return f"undecided, B loses something, but maybe less than {margin}"
                return f"undecided, B may lose more than {margin}, or nothing"


def compare(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    metric: str | None = None,
    margin: float | None = None,
    larger_is_better: bool | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> Comparison:
    """Test whether B is better than A, or no worse, on the same samples in the same order.

    Args:
        a: outputs of A: class scores `[N, C]`, a score above 0 for class 1 `[N, 1]`, classes (numbers or text) `[N]`,
            numbers `[N, ...]`; or its outcomes `[N]`, 1 for a hit and 0 for a miss, or an error, not negative.
        b: the same of B.
        labels: classes or targets, `[N, ...]`; none for agreement and for outcomes.
        metric: accuracy, agreement (of B with A, no labels), r2, hits or error (outcomes), or ``module:function`` of
            (outputs, labels). By default accuracy with classes as labels, r2 with other numbers, hits of 0 and 1
            without labels, and agreement of other classes.
        margin: the loss of B that does not matter, in units of the metric; 0.01, but for error and own metrics, whose
            unit only you know.
        larger_is_better: whether that is so of an own metric, True by default.
        seed: of the bootstrap.
        folder: where the path of a ``path/file.py:function`` begins.

    Raises:
        DataError: outputs and labels do not fit each other or the metric, hold NaN, or are of one sample; the metric
            is unknown, or the margin is none.
    """
    first, second = _array(a, "A"), _array(b, "B")
    if len(first) != len(second):
        raise DataError(f"A has {len(first)} samples and B {len(second)}, expected the same ones; pair them row by row")
    if len(first) < 2:
        raise DataError(f"got {len(first)} samples, expected two at least; a test takes hundreds")
    targets = None if labels is None else _labels(labels, len(first))
    notes: list[str] = []
    chosen = metric or _usual_metric(first, second, targets, notes)
    larger = _check(chosen, targets, larger_is_better)
    tolerated = _checked_margin(margin, chosen)
    if chosen in _SHARES:
        return _of_shares(first, second, targets, chosen, tolerated, notes)
    return _of_numbers(first, second, targets, chosen, tolerated, larger, (seed, folder), notes)


def samples_needed(effect: float, margin: float, variance: float) -> int | None:
    """Samples of a test that decides about a margin with 80 % power, by the formula above; None if no number does.

    Args:
        effect: what B truly gains, in units of the metric; a loss is negative.
        margin: the loss that does not matter.
        variance: of what B gains on a single sample.
    """
    room = effect + margin
    if room > 0:  # the interval has to end above -margin
        root = (_SURE + _POWER) / room
    elif room < 0:  # the interval has to end below 0, and the effect to lie below -margin
        root = max((_SURE + _POWER) / -effect, _POWER / -room)
    else:
        return None
    return _whole(variance * root**2)


# What came


def _array(given: npt.ArrayLike, what: str) -> Array:
    """Outputs or labels as an array `[N, ...]` of numbers or text without NaN; tensors too."""
    tensor: Any = given
    if hasattr(tensor, "detach"):  # without importing torch: a log needs none
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
    array: Array = np.asarray(tensor)
    if array.dtype.kind not in "fiubU":
        raise DataError(f"{what}: got {array.dtype}, expected numbers, classes or text; convert them")
    if array.ndim == 0 or not array.size:
        raise DataError(f"{what}: got shape {list(array.shape)}, expected one row a sample; check what was given")
    if array.dtype.kind == "f":
        wrong = np.isnan(array).reshape(len(array), -1).any(1)
        if wrong.any():
            raise DataError(
                f"{what} holds NaN in {int(wrong.sum())} of {len(array)} samples, first in row {int(wrong.argmax())}; "
                "check model and data"
            )
    return array


def _labels(given: npt.ArrayLike, count: int) -> Array:
    labels = _array(given, "labels")
    if len(labels) != count:
        raise DataError(f"got {len(labels)} labels for {count} samples, expected one each; correct the data")
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _usual_metric(a: Array, b: Array, labels: Array | None, notes: list[str]) -> str:
    if labels is not None:
        scores = a.ndim == 2 and a.shape[1] > 1 and labels.ndim == 1 and _is_whole(labels)
        return "r2" if labels.dtype.kind == "f" and not scores else "accuracy"
    if all(_is_binary(one) for one in (a, b)):
        notes.append("there are no labels: 1 was taken for a hit and 0 for a miss")
        return "hits"
    if all(one.dtype.kind != "f" or (one.ndim == 2 and one.shape[1] > 1) for one in (a, b)):
        return "agreement"
    raise DataError("got numbers without labels; give labels, or say what they are: metric error, agreement or hits")


def _check(metric: str, labels: Array | None, larger_is_better: bool | None) -> bool:
    """Whether larger is better, if the metric can be computed."""
    if metric not in METRICS and ":" not in metric:
        raise DataError(f"metric {metric!r} is unknown; expected {', '.join(METRICS)} or module:function")
    without = metric in ("agreement", "hits", "error")
    if labels is None and not without:
        raise DataError(f"metric {metric!r} needs labels, and there are none; name them, or use agreement")
    larger = metric != "error"
    if larger_is_better is not None and ":" not in metric and larger_is_better != larger:
        raise DataError(f"metric {metric!r}: {'larger' if larger else 'smaller'} is better; leave the direction out")
    return larger if larger_is_better is None else larger_is_better


def _checked_margin(margin: float | None, metric: str) -> float:
    if margin is None and (metric == "error" or ":" in metric):
        raise DataError(f"metric {metric!r} has a unit of its own; give the margin, the loss that does not matter")
    found = _MARGIN if margin is None else margin
    if not (math.isfinite(found) and found > 0):
        raise DataError(f"margin is {found:g}, expected a number above 0; give the loss that does not matter")
    if metric in _SHARES and found >= 1:
        raise DataError(f"margin is {found:g}, and {metric} is a share from 0 to 1; write 0.01 for a point")
    return float(found)


def _is_whole(values: Array) -> bool:
    if values.dtype.kind == "f":
        return bool(np.isfinite(values).all() and (values == np.round(values)).all())
    return values.dtype.kind in "iub"


def _is_binary(values: Array) -> bool:
    return values.ndim == 1 and _is_whole(values) and bool(np.isin(values, (0, 1)).all())


# Shares


def _classes(outputs: Array, what: str) -> Array:
    """Predicted classes `[N]` of class scores, of single scores, or given as such."""
    if outputs.ndim == 2 and outputs.dtype.kind != "U":
        if outputs.shape[1] == 1 and outputs.dtype.kind == "f" and ((outputs >= 0) & (outputs <= 1)).all():
            raise DataError(
                f"{what} returns one number a sample, all from 0 to 1, and its class is read from the sign; export the "
                "score before the sigmoid, or use a module:function metric"
            )
        return statistics.predictions(outputs) if outputs.dtype.kind == "f" or outputs.shape[1] > 1 else outputs[:, 0]
    if outputs.ndim != 1 or (outputs.dtype.kind == "f" and not _is_whole(outputs)):
        got = f"numbers of shape {list(outputs.shape)}"
        raise DataError(f"{what}: got {got}, expected scores [N, classes] or classes [N]; for targets use metric r2")
    return outputs.astype(np.int64) if outputs.dtype.kind == "f" else outputs


def _true_classes(labels: Array, outputs: Sequence[Array]) -> Array:
    """Labels `[N]` that the outputs can be right about."""
    if labels.ndim != 1 or (labels.dtype.kind == "f" and not _is_whole(labels)):
        got = f"{labels.dtype} of shape {list(labels.shape)}"
        raise DataError(f"labels: got {got}, expected one class a sample; for targets use metric r2")
    truth = labels.astype(np.int64) if labels.dtype.kind == "f" else labels
    for what, one in zip("AB", outputs, strict=True):
        text, scores = one.dtype.kind == "U", one.ndim == 2 and (one.dtype.kind == "f" or one.shape[1] > 1)
        if text != (truth.dtype.kind == "U"):
            kinds = ("text", "numbers") if text else ("numbers", "text")
            raise DataError(f"{what} predicts {kinds[0]}, and the labels are {kinds[1]}; name classes the same way")
        count = max(one.shape[1], 2) if scores else 0
        if count and (truth.min() < 0 or truth.max() >= count):
            raise DataError(
                f"labels go from {truth.min()} to {truth.max()}, and {what} has {count} classes, 0 to {count - 1}; "
                "check which array is labels"
            )
    return truth


def _hits(a: Array, b: Array, labels: Array | None, metric: str) -> tuple[list[Array], list[Array], Array | None]:
    """What A and B predict, whether each is right, and the true classes, `[N]` each."""
    if metric == "hits":
        if not (_is_binary(a) and _is_binary(b)):
            raise DataError("metric hits: expected 1 for a hit and 0 for a miss, one a sample; or give labels")
        said: list[Array] = [a.astype(np.int64), b.astype(np.int64)]
        return said, [one == 1 for one in said], None
    said = [_classes(a, "A"), _classes(b, "B")]
    if (said[0].dtype.kind == "U") != (said[1].dtype.kind == "U"):
        raise DataError("one of A and B predicts text and the other numbers; name classes the same way")
    if labels is None or metric == "agreement":
        return said, [np.ones(len(a), dtype=bool), said[0] == said[1]], None
    truth = _true_classes(labels, (a, b))
    return said, [one == truth for one in said], truth


def _of_shares(a: Array, b: Array, labels: Array | None, metric: str, margin: float, notes: list[str]) -> Comparison:
    said, hits, truth = _hits(a, b, labels, metric)
    lost, won = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    scores, count = [statistics.share(one) for one in hits], len(a)
    exact = middle = equal = None
    if metric == "agreement":
        effect = Score(scores[1].value - 1, scores[1].low - 1, scores[1].high - 1, count)
        verdict = _verdict(effect, margin, only_loses=True)
        needed = _needed_agreement(lost / count, margin)
        notes.append("agreement says how often B predicts otherwise, not which of them is right; labels would")
    else:
        # agreement of hits with ones is the same paired difference, for outcomes without scores
        before, after = (one.astype(np.float32) for one in hits)
        effect = statistics.difference("agreement", after, None, np.ones_like(after), 0, baseline=before)
        verdict = _verdict(effect, margin)
        exact, middle = mcnemar(lost, won)
        differing, gap = (lost + won + 1) / (count + 2), (won - lost) / (count + 2)  # as in the interval
        needed = samples_needed(effect.value, margin, differing - gap**2)
        equal = samples_needed(0.0, margin, differing)
        if lost + won < _FEW:
            notes.append(
                f"{lost + won} samples are right in one model alone: with fewer than {_FEW} the interval is rough, and "
                "a loss of the margin passes more often than in 2.5 % of all tests"
            )
        if not (hits[0].any() or hits[1].any()):
            notes.append("neither has a single sample right; check that labels and outputs belong together")
    classes = () if truth is None else class_rows(truth, said[1], hits)
    if classes:
        notes.append(
            f"{len(classes)} classes are {len(classes)} looks: some lose by chance; the corrected p-value allows for it"
        )
    needed, equal = _open(verdict, count, needed, equal)
    return Comparison(
        metric,
        margin,
        count,
        verdict,
        scores[0],
        scores[1],
        effect,
        p_value=exact,
        mid_p=middle,
        lost=lost,
        won=won,
        needed=needed,
        needed_if_equal=equal,
        differences=differing_classes(said, hits, truth, [confidence(a), confidence(b)], metric),
        classes=classes,
        notes=tuple(notes),
    )


def _needed_agreement(share: float, margin: float) -> int | None:
    """Samples for a decision whether a share, of samples predicted otherwise, is below the margin: Wilson's variance.

    n = ((z_0.975 sqrt(m (1 - m)) + z_0.8 sqrt(p (1 - p))) / (m - p))^2, as Wilson's interval inverts the score test.
    """
    if share == margin:
        return None
    spread = _SURE * math.sqrt(margin * (1 - margin)) + _POWER * math.sqrt(share * (1 - share))
    return _whole((spread / (margin - share)) ** 2)


# Numbers


def _of_numbers(
    a: Array,
    b: Array,
    labels: Array | None,
    metric: str,
    margin: float,
    larger: bool,
    how: tuple[int, Path | None],
    notes: list[str],
) -> Comparison:
    seed, folder = how
    count, change = len(a), np.zeros(len(a))
    if metric == "error":
        errors = [_errors(one, what) for one, what in ((a, "A"), (b, "B"))]
        change = errors[1] - errors[0]
        scores, effect = [_mean(one) for one in errors], _mean(change)
    else:
        if metric == "r2":
            for what, one in (("A", a), ("B", b), ("labels", labels)):
                if one is None or one.dtype.kind == "U" or not np.isfinite(one).all():
                    raise DataError(f"metric r2: {what} holds text or infinity, expected numbers; use accuracy")
        with _named_metric():
            scores = [statistics.score(metric, one, labels, a, seed, folder) for one in (a, b)]
            effect = statistics.difference(metric, b, labels, a, seed, folder)
        if metric == "r2":
            target = np.asarray(labels).reshape(count, -1).astype(np.float64)
            squares = [((one.reshape(count, -1).astype(np.float64) - target) ** 2).sum(1) for one in (a, b)]
            change = squares[1] - squares[0]
        elif a.shape == b.shape and "U" not in (a.dtype.kind, b.dtype.kind):
            apart = (b.astype(np.float64) - a.astype(np.float64)).reshape(count, -1)
            change = np.sqrt((np.where(np.isfinite(apart), apart, 0) ** 2).sum(1))
    gain = _gain(effect, larger)
    verdict = _verdict(gain, margin)
    variance = count * ((effect.high - effect.low) / (2 * _SURE)) ** 2
    if effect.low == effect.high and verdict == "undecided":
        notes.append("the interval has no width: all resamples are alike, so more samples cannot be planned")
    needed = samples_needed(gain.value, margin, variance) if variance else None
    equal = samples_needed(0.0, margin, variance) if variance else None
    needed, equal = _open(verdict, count, needed, equal)
    return Comparison(
        metric,
        margin,
        count,
        verdict,
        scores[0],
        scores[1],
        effect,
        larger_is_better=larger,
        needed=needed,
        needed_if_equal=equal,
        differences=differing_numbers(a, b, labels, change, judged=metric in METRICS),
        notes=tuple(notes),
    )


def _errors(values: Array, what: str) -> Array:
    if values.ndim != 1 or values.dtype.kind == "U" or not np.isfinite(values).all() or (values < 0).any():
        raise DataError(f"metric error: {what} needs one finite number a sample, not negative; take absolute errors")
    return values.astype(np.float64)


def _mean(values: Array) -> Score:
    """The mean, with Student's interval."""
    rows = values.astype(np.float64)
    middle, half = float(rows.mean()), float(rows.std(ddof=1) / len(rows) ** 0.5 * stats.t.ppf(0.975, len(rows) - 1))
    return Score(middle, middle - half, middle + half, len(rows))


@contextlib.contextmanager
def _named_metric() -> Iterator[None]:
    """Errors that name the key of a pilot file name the metric."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("kpi.metric", "metric")) from error


# Both


def _gain(effect: Score, larger_is_better: bool) -> Score:
    """What B gains: the effect, turned around where smaller is better."""
    return effect if larger_is_better else Score(-effect.value, -effect.high, -effect.low, effect.samples)


def _verdict(gain: Score, margin: float, *, only_loses: bool = False) -> Decision:
    """What the interval of a gain says; with `only_loses` it cannot be above 0, and being below 0 says nothing."""
    if gain.low > 0:
        return "better"
    if gain.low > -margin:
        return "equivalent" if gain.high < margin else "no worse"
    if gain.high < -margin or (not only_loses and gain.high < 0 and gain.value < -margin):
        return "worse"
    return "undecided"


def _open(verdict: Decision, count: int, needed: int | None, equal: int | None) -> tuple[int | None, int | None]:
    """Samples that are needed, where something is undecided and there are not as many."""
    if verdict != "undecided":
        return None, None
    return None if needed is None else max(needed, count + 1), equal if equal is not None and equal > count else None


def _whole(count: float) -> int | None:
    return math.ceil(count) if count <= _MOST else None
