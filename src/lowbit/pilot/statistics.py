"""How sure a figure is: scores with 95 % intervals, paired differences, means over seeds, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from lowbit import files
from lowbit.errors import DataError, LowbitError
from lowbit.export import predicted
from lowbit.export.quantities import MOST
from lowbit.pilot.metrics import AGREEMENTS, KPIS, SHARES, bounds, is_own
from lowbit.pilot.power import SURE
from lowbit.pilot.record import CheckRow, Kpi, Limits, QuantityRow, Requirement, Score, Trial, Verdict

Array = npt.NDArray[np.generic]
Metric = Callable[[Array, Array], float]
predictions = predicted.predictions  # what is scored is read as what is verified
_DRAWS = 500  # resamples of the bootstrap
_DEFINED = 0.8  # of them, the least that an interval is made of: what is left out are the unusual ones


def check_metric(metric: str, labels: Array | None, folder: Path | None = None) -> None:
    """Whether a metric can be computed, before anything runs.

    Raises:
        DataError: it is unknown, cannot be imported, or needs labels that are not there.
    """
    if metric not in KPIS and not is_own(metric):
        raise DataError(f"kpi.metric {metric!r} is unknown; expected {', '.join(KPIS)} or module:function")
    if metric not in AGREEMENTS and labels is None:
        raise DataError(
            f"kpi.metric {metric!r} needs labels, the test data has none; name them, or use agreement (of classes) or "
            "cosine (of embeddings)"
        )
    if is_own(metric):
        files.resolve(metric, folder)


@dataclass(frozen=True)
class Scoring:
    """What outputs are scored by, on the same samples in the same order.

    Args:
        metric: accuracy, agreement, cosine (the mean over samples of the cosine to the float model's outputs), r2 (the
            mean of the quantities', the C of outputs `[N, C, ...]`) or ``module:function``.
        labels: targets, `[N, ...]`.
        reference: outputs of the float model, `[N, ...]`.
        seed: of the bootstrap.
        folder: where the path of a ``path/file.py:function`` begins.
    """

    metric: str
    labels: Array | None
    reference: Array
    seed: int = 0
    folder: Path | None = None

    def score(self, outputs: Array) -> Score:
        """The metric of outputs `[N, ...]`, with a 95 % interval: Wilson for shares, a seeded bootstrap for others.

        Raises:
            DataError: outputs and labels do not fit each other, or the metric's function fails on them.
        """
        if self.metric in SHARES:
            return share(self._hits(outputs))
        if self.metric == "cosine":
            return self._mean(cosines(outputs, self.reference))
        function, targets = _function(self.metric, self.folder), _targets(outputs, self.labels)
        if self.metric == "r2":
            _expect_spread(outputs, targets)
        return self._bootstrap(lambda i: function(outputs[i], targets[i]), len(outputs))

    def difference(self, outputs: Array, before: Array | None = None) -> Score:
        """Score of `outputs` less that of others, paired sample by sample, with a 95 % interval.

        `before` are the others, by default those of the float model, which agreement is with in either case.

        For shares the interval adds half a sample to each cell of the two-by-two table (Agresti and Min, Simple
        improved confidence intervals for comparing matched proportions, 2005), so that no change on few samples is not
        certainty.
        """
        base = self.reference if before is None else before
        if self.metric in SHARES:
            gaps = np.subtract(*(self._hits(one).astype(float) for one in (outputs, base)))
            count = len(gaps) + 2
            won, lost = float((gaps > 0).sum()) + 0.5, float((gaps < 0).sum()) + 0.5
            middle = (won - lost) / count
            half = SURE * ((won + lost - (won - lost) ** 2 / count) / count**2) ** 0.5
            return Score(float(gaps.mean()), middle - half, middle + half, len(gaps))
        if self.metric == "cosine":
            return self._mean(np.subtract(cosines(outputs, self.reference), cosines(base, self.reference)))
        function, targets = _function(self.metric, self.folder), _targets(outputs, self.labels)

        def gap(i: Array) -> float:
            return function(outputs[i], targets[i]) - function(base[i], targets[i])

        return self._bootstrap(gap, len(outputs))

    def _hits(self, outputs: Array) -> Array:
        if self.metric == "agreement":
            return np.asarray(predictions(outputs, self.reference) == predictions(self.reference))
        targets = _targets(outputs, self.labels)
        if targets.ndim != 1 or outputs.ndim != 2:
            raise DataError(
                f"kpi.metric accuracy: got outputs {list(outputs.shape)} and labels {list(targets.shape)}, expected "
                "[N, classes] and [N]; check which array is labels, or use a module:function metric"
            )
        return np.asarray(predictions(outputs) == targets)

    def _mean(self, values: Array) -> Score:
        return self._bootstrap(lambda i: float(values[i].mean()), len(values))

    def _bootstrap(self, statistic: Callable[[Array], float], count: int) -> Score:
        """The statistic of all samples, and its interval over resamples; where it is not defined they are left out.

        Not defined is what is no number, and on a resample what the metric's function refuses.
        """
        value = statistic(np.arange(count))
        if not math.isfinite(value):
            raise DataError(
                f"kpi.metric {self.metric!r} is {value} on {count} samples, expected a number; check labels, outputs"
            )
        generator = np.random.default_rng(self.seed)
        draws, why = np.full(_DRAWS, np.nan), ""
        for n in range(_DRAWS):
            drawn = generator.integers(0, count, count)
            try:
                draws[n] = statistic(drawn)
            except LowbitError as error:
                why = why or f" ({files.one_line(error.__cause__ or error)})"
        defined = draws[np.isfinite(draws)]
        if len(defined) < _DEFINED * _DRAWS:
            raise DataError(
                f"kpi.metric {self.metric!r} is a number on {len(defined)} of {_DRAWS} resamples of {count} samples"
                f"{why}, expected {_DEFINED * _DRAWS:.0f} or more for an interval; give more test samples, or let the "
                "function return a number for such samples too"
            )
        low, high = np.quantile(defined, [0.025, 0.975])
        return Score(value, float(low), float(high), count, undefined=1 - len(defined) / _DRAWS)


def left_out(*scores: Score | None) -> tuple[str, ...]:
    """What is to be told where resamples were left out of an interval: nothing, or a sentence."""
    share = max(score.undefined for score in scores if score)
    if not share:
        return ()
    return (
        f"the metric is not defined on {share:.1%} of the resamples that its interval is made of; they are left out, "
        "and with more test samples they would be fewer",
    )


def cosines(outputs: Array, reference: Array) -> npt.NDArray[np.float64]:
    """The cosine between the outputs of each sample and those of the reference, float64 `[N]`; two zeros have 1."""
    found, wanted = (one.reshape(len(one), -1).astype(np.float64) for one in (outputs, reference))
    if found.shape != wanted.shape:
        raise DataError(
            f"kpi.metric cosine: got outputs {list(outputs.shape)}, the float model has {list(reference.shape)}; it is "
            "for variants that return what the float model does"
        )
    lengths = np.sqrt((found**2).sum(1) * (wanted**2).sum(1))
    both_zero = ~found.any(1) & ~wanted.any(1)
    return np.where(both_zero, 1.0, (found * wanted).sum(1) / np.where(lengths > 0, lengths, 1.0))


def share(hits: Array) -> Score:
    """A share with its Wilson interval."""
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Score(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def over_seeds(scores: Sequence[Score], metric: str, *, difference: bool = False) -> Score:
    """The mean over trainings with several seeds, with a 95 % interval for the mean over all seeds and samples.

    To each side the half-width is sqrt(h^2 + (t s / sqrt n)^2). h is the mean of the n scores' own half-widths to that
    side: they are of the same samples, so their errors go together and do not shrink with n. s is the standard
    deviation over seeds (n - 1 in its denominator), t the 97.5 % quantile of Student's t with n - 1 degrees of freedom.
    With two seeds t is 12.7: three or more tell much more. Intervals end where the metric does: shares at 0 and 1, and
    their differences at -1 and 1; cosines at -1 and 1, and their differences from float, which has 1, at -2 and 0; r2
    at 1. A single score stays as it is.
    """
    count, values = len(scores), np.array([score.value for score in scores])
    if count == 1:
        return scores[0]
    mean = float(values.mean())
    of_seeds = float(stats.t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
    below, above = (
        float(np.mean([max(0.0, gap) for gap in gaps]))
        for gaps in zip(*((score.value - score.low, score.high - score.value) for score in scores), strict=True)
    )
    low, high = mean - math.hypot(below, of_seeds), mean + math.hypot(above, of_seeds)
    least, most = bounds(metric, difference=difference)
    return Score(mean, min(mean, max(low, least)), max(mean, min(high, most)), scores[0].samples)


def checks(trial: Trial, kpi: Kpi, limits: Limits) -> tuple[CheckRow, ...]:
    """How a trial with a score stands to all that is asked; of the float baseline the minimum alone is asked.

    The score has to reach the minimum, and its paired difference from float the negative of the tolerance: ``meets`` if
    the whole interval does, ``misses`` if none of it does, else ``borderline``. Where smaller is better the score has
    to stay within the maximum, and the difference within the tolerance. A mean over seeds some of which failed is
    ``borderline`` at best. Size and BOPs are exact, with several seeds from the smallest to the largest of theirs.
    Latency is the median at the first batch size, of the trial's own file alone, with the 10th and 90th percentile of
    the calls: it meets if the median is within the limit, because what disturbs a measurement only adds to it, misses
    if even the 10th percentile is not, and is borderline between.

    Raises:
        DataError: a latency is asked, and the trial was not timed.
    """
    rows: list[CheckRow] = []
    if kpi.bound is not None and trial.score:
        rows.append(_of_metric("maximum" if kpi.smaller_is_better else "minimum", kpi.bound, trial.score, kpi))
    if trial.recipe is None:
        return tuple(rows)
    if kpi.tolerance is not None and trial.difference:
        rows.append(_of_metric("tolerance", -kpi.sign * kpi.tolerance, trial.difference, kpi))
    if failed := sum(one.score is None for one in trial.repeats):
        every = 1 + len(trial.repeats)
        rows.append(CheckRow("seeds", every, every - failed, every - failed, every - failed, "borderline"))
    if limits.size is not None:
        sizes = [trial.file_bytes, *(one.file_bytes for one in trial.repeats if one.score)]
        rows.append(_at_most("size", limits.size, trial.file_bytes, min(sizes), max(sizes)))
    if limits.bops is not None:
        counts = [trial.bops, *(one.bops for one in trial.repeats if one.score)]
        rows.append(_at_most("bops", limits.bops, trial.bops, min(counts), max(counts)))
    if limits.latency is not None:
        if not trial.latencies:
            raise DataError(
                f"variant '{trial.name}' was not timed, and budgets.latency asks for it; run the pilot again"
            )
        first = trial.latencies[0]
        within: Verdict = "meets" if first.median_ms <= limits.latency else "borderline"
        verdict: Verdict = "misses" if first.low_ms > limits.latency else within
        rows.append(CheckRow("latency", limits.latency, first.median_ms, first.low_ms, first.high_ms, verdict))
    return tuple(rows)


def worst(rows: Iterable[CheckRow]) -> Verdict:
    """The worst verdict of some checks; where nothing is asked it is ``meets``."""
    order: tuple[Verdict, ...] = ("meets", "borderline", "misses", "failed")
    return max((row.verdict for row in rows), key=order.index, default="meets")


def _of_metric(what: Requirement, limit: float, score: Score, kpi: Kpi) -> CheckRow:
    if kpi.smaller_is_better:
        return _at_most(what, limit, score.value, score.low, score.high)
    if score.low >= limit:
        verdict: Verdict = "meets"
    else:
        verdict = "borderline" if score.high >= limit else "misses"
    return CheckRow(what, limit, score.value, score.low, score.high, verdict)


def _at_most(what: Requirement, limit: float, value: float, low: float, high: float) -> CheckRow:
    if high <= limit:
        verdict: Verdict = "meets"
    else:
        verdict = "borderline" if low <= limit else "misses"
    return CheckRow(what, limit, value, low, high, verdict)


def _targets(outputs: Array, labels: Array | None) -> Array:
    if labels is None or len(labels) != len(outputs):
        got = 0 if labels is None else len(labels)
        raise DataError(f"got {got} labels for {len(outputs)} outputs, expected one each; correct the test data")
    return labels


def _function(metric: str, folder: Path | None) -> Metric:
    if metric == "r2":
        return r2
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


def r2(outputs: Array, targets: Array) -> float:
    """The mean of the quantities' r2; NaN where all targets of one are equal."""
    return float(r2_of_each(outputs, targets).mean())


def r2_of_each(outputs: Array, targets: Array) -> npt.NDArray[np.float64]:
    """1 - residual / total sum of squares of each quantity, `[C]` of outputs `[N, C, ...]`, NaN where all targets of it
    are equal.

    The places of a quantity have one sum together, so that a dark corner of all images does not make it undefined.
    """
    got, want = _by_quantity(outputs, targets)
    total = ((want - want.mean(0)) ** 2).sum((0, 2))
    equal = (want == want[0]).all((0, 2))
    rest = ((got - want) ** 2).sum((0, 2))
    return np.asarray(np.where(equal, np.nan, 1 - rest / np.where(equal, 1.0, total)))


def relative_errors(outputs: Array, targets: Array) -> npt.NDArray[np.float64]:
    """What each sample adds to 1 - r2, times the number of samples, `[N]`: a mean over quantities."""
    got, want = _by_quantity(outputs, targets)
    variance = ((want - want.mean(0)) ** 2).sum(2).mean(0)
    return np.asarray((((got - want) ** 2).sum(2) / np.where(variance > 0, variance, 1.0)).mean(1))


def rmse_of_each(outputs: Array, targets: Array) -> npt.NDArray[np.float64]:
    """The root mean square error of each quantity in its own unit, `[C]`."""
    got, want = _by_quantity(outputs, targets)
    return np.asarray(((got - want) ** 2).mean((0, 2)) ** 0.5)


def quantities(outputs: Array, labels: Array | None, reference: Array, seed: int) -> tuple[QuantityRow, ...]:
    """A row for each of several quantities; none for a single one, for more than 32, and for labels of another shape.

    Args:
        outputs: of the file, `[N, C, ...]`.
        labels: targets, `[N, C, ...]`.
        reference: outputs of the float model.
        seed: of the bootstrap.
    """
    count = outputs.shape[1] if outputs.ndim > 1 else 1
    same_size = labels is not None and len(labels) == len(outputs) and labels.size == outputs.size == reference.size
    if not 2 <= count <= MOST or labels is None or not same_size:
        return ()
    found, before = (
        zip(r2_of_each(one, labels), rmse_of_each(one, labels), strict=True) for one in (outputs, reference)
    )
    generator = np.random.default_rng(seed)
    draws = np.empty((_DRAWS, count))
    for n in range(_DRAWS):
        i = generator.integers(0, len(outputs), len(outputs))
        draws[n] = r2_of_each(outputs[i], labels[i]) - r2_of_each(reference[i], labels[i])
    rows = []
    for (r2_now, rmse), (r2_float, rmse_float), several in zip(found, before, draws.T, strict=True):
        defined = several[np.isfinite(several)]
        gap = None
        if math.isfinite(r2_now) and len(defined) >= _DEFINED * _DRAWS:
            low, high = np.quantile(defined, [0.025, 0.975])
            gap = Score(float(r2_now - r2_float), float(low), float(high), len(outputs), 1 - len(defined) / _DRAWS)
        rows.append(QuantityRow(_finite(r2_now), float(rmse), _finite(r2_float), float(rmse_float), gap))
    return tuple(rows)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _by_quantity(outputs: Array, targets: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Outputs `[N, C, ...]` and targets as `[N, C, places]` both."""
    if outputs.size != targets.size or len(outputs) != len(targets):
        raise DataError(
            f"kpi.metric r2: got outputs {list(outputs.shape)} and labels {list(targets.shape)}, expected as many "
            "numbers a sample; use a module:function metric"
        )
    shape = (len(outputs), outputs.shape[1] if outputs.ndim > 1 else 1, -1)
    return outputs.reshape(shape).astype(np.float64), targets.reshape(shape).astype(np.float64)


def _expect_spread(outputs: Array, targets: Array) -> None:
    """Refuse targets of which a quantity has one value: its r2 is not defined, and so the mean is not.

    Raises:
        DataError: it names the quantity.
    """
    equal = np.flatnonzero(np.isnan(r2_of_each(outputs, targets)))
    if len(equal):
        which = f"all targets of output {equal[0]}" if outputs.ndim > 1 and outputs.shape[1] > 1 else "all targets"
        raise DataError(
            f"kpi.metric r2: {which} are equal in {len(outputs)} samples, so it is not defined; give other test data, "
            "or a module:function metric"
        )
