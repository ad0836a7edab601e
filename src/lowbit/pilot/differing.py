"""Where two models differ: McNemar's test, the samples that they answer differently, and the classes that lose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Array = npt.NDArray[Any]
Outcome = Literal["lost", "won", "both wrong", "differs"]
Value = int | float | str | bool


@dataclass(frozen=True)
class Difference:
    """A sample that the models answer differently; `index` is its row, from 0.

    `a` and `b` are predictions, or None where a sample has several numbers. Confidences are the largest probability, by
    a softmax where outputs are no probabilities yet. `change` is what B adds to the sample's error, which for r2 is the
    squared one relative to the variance of the targets, a mean over quantities; with cosine it is 1 less that of the
    two outputs, for an own metric their distance.
    """

    index: int
    outcome: Outcome
    label: Value | None = None
    a: Value | None = None
    b: Value | None = None
    a_confidence: float | None = None
    b_confidence: float | None = None
    change: float | None = None


@dataclass(frozen=True)
class ClassRow:
    """The samples of one class: shares that A and B predict, how many B loses and wins, and what it says instead.

    `p_value` is of McNemar's exact test, `p_corrected` the same for as many looks as there are classes (Holm).
    """

    label: Value
    samples: int
    a: float
    b: float
    lost: int
    won: int
    p_value: float
    p_corrected: float
    instead: Value | None


def mcnemar(lost: int, won: int) -> tuple[float, float]:
    """Two-sided p-values of McNemar's test, exact and mid-p, that losing and winning a sample are equally likely."""
    count = lost + won
    if not count:
        return 1.0, 1.0
    exact = float(stats.binomtest(won, count).pvalue)
    if lost == won:  # the observed point is counted in both tails
        return exact, 1.0 - float(stats.binom.pmf(won, count, 0.5)) / 2
    return exact, exact - float(stats.binom.pmf(won, count, 0.5))


def class_rows(truth: Array, said: Array, hits: Sequence[Array]) -> tuple[ClassRow, ...]:
    """One row a class, those that lose most first.

    Args:
        truth: classes `[N]`.
        said: what B predicts, `[N]`.
        hits: whether A, and whether B, is right, `[N]` each.
    """
    found = []
    for label in np.unique(truth):
        of = truth == label
        a, b = hits[0][of], hits[1][of]
        lost, won = int((a & ~b).sum()), int((b & ~a).sum())
        answers, counts = np.unique(said[of][a & ~b], return_counts=True)
        instead = plain(answers[counts.argmax()]) if len(answers) else None
        found.append((label, len(a), float(a.mean()), float(b.mean()), lost, won, mcnemar(lost, won)[0], instead))
    corrected = _holm([row[6] for row in found])
    rows = [
        ClassRow(cast("Value", plain(label)), count, a, b, lost, won, p, corrected[i], instead)
        for i, (label, count, a, b, lost, won, p, instead) in enumerate(found)
    ]
    return tuple(sorted(rows, key=lambda row: (row.won - row.lost, row.p_value)))


def _holm(values: list[float]) -> list[float]:
    """P-values for so many looks."""
    order, result, largest = np.argsort(values), [0.0] * len(values), 0.0
    for place, i in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        result[i] = largest
    return result


def differing_classes(
    said: Sequence[Array], hits: Sequence[Array], truth: Array | None, sure: Sequence[Array | None], metric: str
) -> tuple[Difference, ...]:
    """Samples that A and B predict differently, those that B loses first, and of those what it is surest of.

    Args:
        said: what A, and what B, predicts, `[N]` each.
        hits: whether each is right, `[N]`.
        truth: classes `[N]`, None where there are none.
        sure: confidences of each, `[N]`.
        metric: with agreement nothing is lost or won.
    """

    def outcome(i: int) -> Outcome:
        if metric == "agreement":
            return "differs"
        if hits[0][i] == hits[1][i]:
            return "both wrong"
        return "lost" if hits[0][i] else "won"

    def certainty(i: int, rows: Array | None) -> float | None:
        return None if rows is None or not np.isfinite(rows[i]) else round(float(rows[i]), 6)

    rows = [
        Difference(
            i,
            outcome(i),
            None if truth is None else plain(truth[i]),
            plain(said[0][i]),
            plain(said[1][i]),
            *(certainty(i, one) for one in sure),
        )
        for i in np.flatnonzero(said[0] != said[1]).tolist()
    ]
    order = ("lost", "won", "both wrong", "differs")
    return tuple(sorted(rows, key=lambda row: (order.index(row.outcome), -(row.b_confidence or 0), row.index)))


def confidence(outputs: Array) -> Array | None:
    """The largest probability of each sample; NaN where a score is infinite."""
    if outputs.dtype.kind != "f" or outputs.ndim != 2:
        return None
    rows = outputs.astype(np.float64)
    if rows.shape[1] == 1:
        return np.asarray(special.expit(np.abs(rows[:, 0])))
    if rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-3):
        return np.asarray(rows.max(1))
    with np.errstate(invalid="ignore"):
        return np.asarray(special.softmax(rows, axis=1).max(1))


def differing_numbers(
    a: Array, b: Array, labels: Array | None, change: Array, *, judged: bool
) -> tuple[Difference, ...]:
    """Samples with other outputs, those with the largest change first, which B loses if the change is `judged`.

    Args:
        a: outputs of A, `[N, ...]`.
        b: outputs of B, `[N, ...]`.
        labels: targets `[N, ...]`, None where there are none.
        change: what B adds to a sample's error, or only how far its output is from that of A, `[N]`.
        judged: whether `change` is of an error.
    """
    same = a.shape == b.shape
    different = (a != b).reshape(len(a), -1).any(1) if same else np.ones(len(a), dtype=bool)

    def value(rows: Array | None, i: int) -> Value | None:
        return None if rows is None or rows[i].size != 1 else plain(rows[i].reshape(-1)[0])

    def outcome(i: int) -> Outcome:
        return "differs" if not judged or change[i] == 0 else "lost" if change[i] > 0 else "won"

    rows = np.flatnonzero(different)
    ordered = rows[np.argsort(-change[rows], kind="stable")].tolist()
    return tuple(
        Difference(i, outcome(i), value(labels, i), value(a, i), value(b, i), change=float(change[i])) for i in ordered
    )


def plain(value: object) -> Value | None:
    """A number of NumPy as one of Python; None for infinity, which JSON does not have."""
    found = value.item() if isinstance(value, np.generic) else value
    assert isinstance(found, (int, float, str, bool))
    return None if isinstance(found, float) and not math.isfinite(found) else found
