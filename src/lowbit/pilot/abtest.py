"""Which of two models is better: a paired A/B test of their outputs, or of outcomes that were logged.

Both models answer the same samples, so only the samples where they differ tell anything. B - A comes with a 95 %
interval, and is held against a margin, the loss that does not matter: an interval above 0 says better, one above
-margin says no worse, and a large p-value alone says nothing. One end of a 95 % interval errs in about 2.5 % of all
tests; docs/compare.md has what was simulated.

| metric | a sample's outcome | interval of B - A | p-value |
|---|---|---|---|
| accuracy, hits | right or wrong | Agresti and Min 2005 | McNemar, exact and mid-p |
| agreement | B predicts as A, or not | Wilson, less 1 | none: B can only lose |
| cosine | between the outputs of B and of A | bootstrap, less 1 | none: B can only lose |
| error | a number, smaller is better | Student's t of the paired differences | none |
| r2, module:function | of all samples together | paired bootstrap | none |

How many samples a decision takes is in `lowbit.pilot.power`.

References:
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947,
    https://doi.org/10.1007/BF02295996.
    M. W. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are
    better than exact conditional", 2013, https://doi.org/10.1186/1471-2288-13-91.
    S. Holm, "A simple sequentially rejective multiple test procedure", 1979: the p-values of classes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.errors import DataError
from lowbit.pilot.comparison import MARGIN, METRICS, Comparison
from lowbit.pilot.differing import Array
from lowbit.pilot.metrics import AGREEMENTS, SHARES, is_own
from lowbit.pilot.paired import is_binary, is_whole, of_numbers, of_shares
from lowbit.pilot.statistics import Scoring


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
        labels: classes or targets, `[N, ...]`; none for agreement, cosine and outcomes.
        metric: accuracy, agreement or cosine (of B with A, no labels), r2, hits or error (outcomes), or
            ``module:function`` of (outputs, labels). By default accuracy with classes as labels, r2 with other
            numbers, hits of 0 and 1 without labels, and agreement of other classes.
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
    if chosen in SHARES:
        return of_shares(first, second, targets, chosen, tolerated, notes)
    return of_numbers(second, Scoring(chosen, targets, first, seed, folder), tolerated, notes, larger=larger)


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
        scores = a.ndim == 2 and a.shape[1] > 1 and labels.ndim == 1 and is_whole(labels)
        return "r2" if labels.dtype.kind == "f" and not scores else "accuracy"
    if all(is_binary(one) for one in (a, b)):
        notes.append("there are no labels: 1 was taken for a hit and 0 for a miss")
        return "hits"
    if all(map(_embeds, (a, b))):
        notes.append("each output has length 1: they were taken for embeddings, and not for scores of classes")
        return "cosine"
    if all(one.dtype.kind != "f" or (one.ndim == 2 and one.shape[1] > 1) for one in (a, b)):
        return "agreement"
    raise DataError("got numbers without labels; give labels, or say what they are: metric error, agreement or hits")


def _embeds(outputs: Array) -> bool:
    """Whether outputs are embeddings of length 1, which no scores of classes and no probabilities are."""
    if outputs.dtype.kind != "f" or outputs.ndim != 2 or outputs.shape[1] < 2 or not (outputs < 0).any():
        return False
    return bool(np.allclose(np.linalg.norm(outputs.astype(np.float64), axis=1), 1, atol=1e-3))


def _check(metric: str, labels: Array | None, larger_is_better: bool | None) -> bool:
    """Whether larger is better, if the metric can be computed."""
    if metric not in METRICS and not is_own(metric):
        raise DataError(f"metric {metric!r} is unknown; expected {', '.join(METRICS)} or module:function")
    without = metric in (*AGREEMENTS, "hits", "error")
    if labels is None and not without:
        raise DataError(f"metric {metric!r} needs labels, and there are none; name them, or use agreement or cosine")
    larger = metric != "error"
    if larger_is_better is not None and not is_own(metric) and larger_is_better != larger:
        raise DataError(f"metric {metric!r}: {'larger' if larger else 'smaller'} is better; leave the direction out")
    return larger if larger_is_better is None else larger_is_better


def _checked_margin(margin: float | None, metric: str) -> float:
    if margin is None and (metric == "error" or is_own(metric)):
        raise DataError(f"metric {metric!r} has a unit of its own; give the margin, the loss that does not matter")
    found = MARGIN if margin is None else margin
    if not (math.isfinite(found) and found > 0):
        raise DataError(f"margin is {found:g}, expected a number above 0; give the loss that does not matter")
    if metric in SHARES and found >= 1:
        raise DataError(f"margin is {found:g}, and {metric} is a share from 0 to 1; write 0.01 for a point")
    return float(found)
