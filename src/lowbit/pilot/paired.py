"""A paired test of two models: of shares of samples that each has right, or of numbers of which the metric is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from lowbit.errors import DataError
from lowbit.pilot import statistics
from lowbit.pilot.comparison import METRICS, Comparison, gain_of, verdict_of
from lowbit.pilot.differing import Array, class_rows, confidence, differing_classes, differing_numbers, mcnemar
from lowbit.pilot.metrics import AGREEMENTS
from lowbit.pilot.power import SURE, needed_for_agreement, needed_for_pairs, samples_needed
from lowbit.pilot.record import Score
from lowbit.pilot.statistics import Scoring

_FEW = 20  # samples that one model alone has right; with fewer the interval is rough


def of_shares(a: Array, b: Array, labels: Array | None, metric: str, margin: float, notes: list[str]) -> Comparison:
    """The test of a share: of samples that are right, or predicted alike. `labels` are classes; `notes` is added to."""
    said, hits, truth = _hits(a, b, labels, metric)
    lost, won = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    scores, count = [statistics.share(one) for one in hits], len(a)
    exact = middle = equal = None
    if metric == "agreement":
        effect = Score(scores[1].value - 1, scores[1].low - 1, scores[1].high - 1, count)
        needed = needed_for_agreement(lost / count, margin)
        notes.append("agreement says how often B predicts otherwise, not which of them is right; labels would")
    else:
        # agreement of hits with ones is the same paired difference, for outcomes without scores
        before, after = (one.astype(np.float32) for one in hits)
        effect = Scoring("agreement", None, np.ones_like(after)).difference(after, before)
        exact, middle = mcnemar(lost, won)
        needed, equal = (needed_for_pairs((lost + won) / count, gain, margin) for gain in (effect.value, 0.0))
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
    return replace(
        _judged(metric, margin, scores, effect, (needed, equal)),
        p_value=exact,
        mid_p=middle,
        lost=lost,
        won=won,
        differences=differing_classes(said, hits, truth, [confidence(a), confidence(b)], metric),
        classes=classes,
        notes=tuple(notes),
    )


def of_numbers(b: Array, scoring: Scoring, margin: float, notes: list[str], *, larger: bool) -> Comparison:
    """The test of errors, of cosines, r2 or an own metric of B; the reference of `scoring` is A."""
    metric, a, labels = scoring.metric, scoring.reference, scoring.labels
    count, change = len(a), np.zeros(len(a))
    if metric == "error":
        errors = [_errors(one, what) for one, what in ((a, "A"), (b, "B"))]
        change = errors[1] - errors[0]
        scores, effect = [_mean(one) for one in errors], _mean(change)
    elif metric == "cosine":
        change = _apart(a, b)
        scores = [scoring.score(one) for one in (a, b)]
        effect = Score(scores[1].value - 1, scores[1].low - 1, scores[1].high - 1, count)
        notes.append("cosine says how far B's outputs are from A's, not which of them is right; labels would")
    else:
        if metric == "r2":
            for what, one in (("A", a), ("B", b), ("labels", labels)):
                if one is None or one.dtype.kind == "U" or not np.isfinite(one).all():
                    raise DataError(f"metric r2: {what} holds text or infinity, expected numbers; use accuracy")
        with _named_metric():
            scores, effect = [scoring.score(one) for one in (a, b)], scoring.difference(b)
        notes += statistics.left_out(effect, *scores)
        if metric == "r2":
            target = np.asarray(labels).reshape(count, -1).astype(np.float64)
            squares = [((one.reshape(count, -1).astype(np.float64) - target) ** 2).sum(1) for one in (a, b)]
            change = squares[1] - squares[0]
        elif a.shape == b.shape and "U" not in (a.dtype.kind, b.dtype.kind):
            apart = (b.astype(np.float64) - a.astype(np.float64)).reshape(count, -1)
            change = np.sqrt((np.where(np.isfinite(apart), apart, 0) ** 2).sum(1))
    variance = count * ((effect.high - effect.low) / (2 * SURE)) ** 2
    needed = samples_needed(gain_of(effect, larger).value, margin, variance) if variance else None
    equal = samples_needed(0.0, margin, variance) if variance else None
    found = _judged(metric, margin, scores, effect, (needed, equal), larger=larger)
    if effect.low == effect.high and found.verdict == "undecided":
        notes.append("the interval has no width: all resamples are alike, so more samples cannot be planned")
    differences = differing_numbers(a, b, labels, change, judged=metric in METRICS and metric not in AGREEMENTS)
    return replace(found, differences=differences, notes=tuple(notes))


def _judged(
    metric: str,
    margin: float,
    scores: Sequence[Score],
    effect: Score,
    needs: tuple[int | None, int | None],
    *,
    larger: bool = True,
) -> Comparison:
    """The verdict, and how many samples are needed where there is none: more than there are."""
    count, (needed, equal) = effect.samples, needs
    verdict = verdict_of(gain_of(effect, larger), margin, only_loses=metric in AGREEMENTS)
    found = Comparison(metric, margin, count, verdict, scores[0], scores[1], effect, larger_is_better=larger)
    if verdict != "undecided":
        return found
    return replace(
        found,
        needed=None if needed is None else max(needed, count + 1),
        needed_if_equal=equal if equal is not None and equal > count else None,
    )


def _hits(a: Array, b: Array, labels: Array | None, metric: str) -> tuple[list[Array], list[Array], Array | None]:
    """What A and B predict, whether each is right, and the true classes, `[N]` each."""
    if metric == "hits":
        if not (is_binary(a) and is_binary(b)):
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


def _classes(outputs: Array, what: str) -> Array:
    """Predicted classes `[N]` of class scores, of single scores, or given as such."""
    if outputs.ndim == 2 and outputs.dtype.kind != "U":
        if outputs.shape[1] == 1 and outputs.dtype.kind == "f" and ((outputs >= 0) & (outputs <= 1)).all():
            raise DataError(
                f"{what} returns one number a sample, all from 0 to 1, and its class is read from the sign; export the "
                "score before the sigmoid, or use a module:function metric"
            )
        return statistics.predictions(outputs) if outputs.dtype.kind == "f" or outputs.shape[1] > 1 else outputs[:, 0]
    if outputs.ndim != 1 or (outputs.dtype.kind == "f" and not is_whole(outputs)):
        got = f"numbers of shape {list(outputs.shape)}"
        raise DataError(f"{what}: got {got}, expected scores [N, classes] or classes [N]; for targets use metric r2")
    return outputs.astype(np.int64) if outputs.dtype.kind == "f" else outputs


def _true_classes(labels: Array, outputs: Sequence[Array]) -> Array:
    """Labels `[N]` that the outputs can be right about."""
    if labels.ndim != 1 or (labels.dtype.kind == "f" and not is_whole(labels)):
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


def _apart(a: Array, b: Array) -> Array:
    """1 less the cosine between the outputs of A and of B for each sample, `[N]`."""
    for what, one in (("A", a), ("B", b)):
        if one.ndim < 2 or one.dtype.kind == "U" or not np.isfinite(one).all():
            raise DataError(
                f"metric cosine: {what} is {one.dtype} of shape {list(one.shape)}, expected finite numbers [N, D]; log "
                "the whole output of each sample, as an array of an npz file"
            )
    if a.shape != b.shape:
        raise DataError(
            f"metric cosine: A has shape {list(a.shape)} and B {list(b.shape)}, expected the same; compare two models "
            "that return the same"
        )
    return np.asarray(1 - statistics.cosines(b, a))


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


def is_whole(values: Array) -> bool:
    """Whether all values are whole numbers."""
    if values.dtype.kind == "f":
        return bool(np.isfinite(values).all() and (values == np.round(values)).all())
    return values.dtype.kind in "iub"


def is_binary(values: Array) -> bool:
    """Whether there is one 0 or 1 a sample."""
    return values.ndim == 1 and is_whole(values) and bool(np.isin(values, (0, 1)).all())
