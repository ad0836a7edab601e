"""Linear classifiers on features or on their codes; whatever one chooses, it chooses on the training data alone.

A head that reads codes is compared with the same head on floats, and on floats that are clipped or scaled by quartiles,
which tame outliers without a code. Each of them chooses by cross-validation: first how features are prepared
(code and threshold, or how much to clip), then which classifier, and how strongly it is held back. Of equal choices the
first counts, the mildest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from lowbit import files
from lowbit.errors import FeatureError
from lowbit.methods.discrimination.candidates import FOLDS, Candidate, code_candidate, float_candidates, quiet
from lowbit.methods.discrimination.estimators import QUANTIZERS
from lowbit.methods.discrimination.theory import Code

ClassifierName = Literal["linear", "logistic", "svm"]
CodeName = Literal["auto", "binary", "ternary"]
RuleName = Literal["auto", "global", "per-feature"]
LIMIT = 5000  # rows that choices are made on; the classifier that was chosen is fitted to all
STRENGTHS = (0.1, 0.01, 1.0)  # C of scikit-learn; the first is that of the choices before it
FLOATS = ("original", "clipped", "robust-scaled")

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Tried:
    """A way to prepare features and its cross-validated accuracy on the training data.

    Attributes:
        name: of the candidate: a code, or one of `FLOATS`.
        threshold: that was given, in standard deviations; None for floats, and where the largest D chooses it.
        per_feature: whether each feature has a threshold of its own.
        accuracy: mean over the folds, with the first strength.
    """

    name: str
    threshold: float | None
    per_feature: bool
    accuracy: float


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier on prepared features, fitted.

    Attributes:
        name: how features are prepared: a code, or one of `FLOATS`.
        pipeline: steps that prepare, and the classifier, `LogisticRegression` or `LinearSVC`.
        classifier: ``logistic`` or ``svm``; strength: its C.
        accuracy: cross-validated, on the training data.
        tried: what was chosen from.
    """

    name: str
    pipeline: Pipeline
    classifier: str
    strength: float
    accuracy: float
    tried: tuple[Tried, ...]

    def scores(self, x: Array) -> npt.NDArray[np.float64]:
        """The score of each class, `[n, C]`, of features `[n, d]` as they are."""
        found = np.asarray(self.pipeline.decision_function(x))
        return np.stack([-found / 2, found / 2], 1) if found.ndim == 1 else found


def check_labels(y: Array, classes: int) -> None:
    """Whether a head with `classes` outputs can learn from labels `[N]`.

    Raises:
        FeatureError: labels that are no classes, one class only, or too few samples of a class.
    """
    if y.ndim != 1 or y.dtype.kind not in "iub":
        raise FeatureError(f"labels: got {y.dtype} {list(y.shape)}, expected a class, a whole number, for each sample")
    if not len(y):
        raise FeatureError("labels: got none; give samples to fit the head to")
    if y.min() < 0 or y.max() >= classes:
        raise FeatureError(
            f"labels: got classes {y.min()} to {y.max()}, and the network returns {classes} scores; expected 0 to "
            f"{classes - 1}"
        )
    counts = np.bincount(y, minlength=classes)
    if (counts > 0).sum() < 2:
        raise FeatureError(f"labels: got class {y[0]} only; give samples of all {classes} classes")
    if counts.min() < FOLDS:
        raise FeatureError(
            f"labels: got {counts.min()} samples of class {counts.argmin()}, expected at least {FOLDS} of each of the "
            f"{classes} classes, one for each fold of the cross-validation; add samples"
        )


def code_head(
    x: Array,
    y: Array,
    *,
    codes: CodeName = "auto",
    threshold: RuleName | float = "auto",
    classifier: ClassifierName = "linear",
    limit: int = LIMIT,
    seed: int = 0,
) -> LinearHead:
    """The linear classifier on codes of features that cross-validates best.

    Args:
        x: features `[N, d]`.
        y: classes `[N]`, from 0 on, at least three samples each.
        codes: ``binary``, ``ternary``, or whichever is better.
        threshold: ``global`` (the largest D of all features together, or one of a few), ``per-feature`` (each feature
            its own, by D), whichever is better, or one number in standard deviations.
        classifier: ``logistic`` (regression), ``svm``, or whichever of these linear ones is better.
        limit: rows at most that choices are made on.
        seed: of these rows and of the folds.

    Raises:
        FeatureError: values that are not finite, a threshold that a code cannot have, or an unknown name.
    """
    if codes not in get_args(CodeName):
        raise FeatureError(f"codes: got {codes!r}, expected {' or '.join(get_args(CodeName))}")
    if isinstance(threshold, str) and threshold not in get_args(RuleName):
        raise FeatureError(f"threshold: got {threshold!r}, expected {', '.join(get_args(RuleName))} or a number")
    if not isinstance(threshold, str) and not np.isfinite(threshold):
        raise FeatureError(f"threshold: got {threshold:g}, expected a finite number of standard deviations")
    kinds: tuple[Code, ...] = get_args(Code) if codes == "auto" else (codes,)
    if not isinstance(threshold, str) and threshold < 0:  # which a ternary code cannot have
        if codes == "ternary":
            raise FeatureError(f"threshold: got {threshold:g}, expected at least 0; a ternary code is 0 within +- it")
        kinds = ("binary",)
    return _fitted([_ruled(code, threshold) for code in kinds], classifier, x, y, limit, seed)


def float_heads(
    x: Array, y: Array, *, classifier: ClassifierName = "linear", limit: int = LIMIT, seed: int = 0
) -> tuple[LinearHead, ...]:
    """The same classifier on the features themselves, each in the best of its forms: `FLOATS`, in this order.

    Arguments and errors are those of `code_head`.
    """
    candidates = [one for one in float_candidates(x.shape[1], sparse=False) if one.name in FLOATS]
    return tuple(_fitted([one], classifier, x, y, limit, seed) for one in candidates)


def _ruled(code: Code, threshold: RuleName | float) -> Candidate:
    """The candidate of a code with the choices that a rule leaves it."""
    if not isinstance(threshold, str):
        return Candidate(code, (("code", QUANTIZERS[code]()),), ({"code__threshold": [float(threshold)]},))
    found = code_candidate(code, sparse=False)
    if threshold == "auto":
        return found
    by_d, given = found.choices
    own = {**by_d, "code__per_feature": [threshold == "per-feature"]}
    return Candidate(code, found.steps, (own, given) if threshold == "global" else (own,))


def _fitted(
    candidates: Sequence[Candidate], classifier: ClassifierName, x: Array, y: Array, limit: int, seed: int
) -> LinearHead:
    """The best of all that candidates and classifiers can choose, fitted to all rows."""
    if classifier not in get_args(ClassifierName):
        raise FeatureError(f"classifier: got {classifier!r}, expected {', '.join(get_args(ClassifierName))}")
    names = ("logistic", "svm") if classifier == "linear" else (classifier,)
    rows = _drawn(y, limit, seed)
    some, labels = x[rows], y[rows]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)

    def accuracy(model: Pipeline) -> float:
        values = cross_val_score(model, some, labels, cv=folds, scoring="accuracy", error_score="raise")
        return round(float(values.mean()), 9)  # so that equal choices are equal

    def with_(steps: Sequence[tuple[str, Any]], name: str, strength: float) -> Pipeline:
        return clone(Pipeline([*steps, ("classifier", _linear(name, strength, seed))]))

    try:
        with quiet():
            prepared = [
                (one, with_(one.steps, names[0], STRENGTHS[0]).set_params(**choice))
                for one in candidates
                for choice in ParameterGrid(list(one.choices) or [{}])
            ]
            found = [accuracy(model) for _, model in prepared]
            chosen, best = prepared[int(np.argmax(found))]
            heads = [(name, strength) for name in names for strength in STRENGTHS]
            models = [with_(best.steps[:-1], *head) for head in heads]
            scores = [max(found), *(accuracy(model) for model in models[1:])]
            at = int(np.argmax(scores))
            fitted = models[at].fit(x, y)
    except FeatureError:
        raise
    except ValueError as error:  # scikit-learn's
        raise FeatureError(
            f"a linear classifier cannot learn from {len(y)} samples of {x.shape[1]} features "
            f"({files.one_line(error)}); add samples, or choose another layer"
        ) from error
    tried = tuple(_tried(one.name, model, value) for (one, model), value in zip(prepared, found, strict=True))
    return LinearHead(chosen.name, fitted, *heads[at], scores[at], tried)


def _tried(name: str, model: Pipeline, accuracy: float) -> Tried:
    code = model.named_steps.get("code")
    given = None if code is None or isinstance(code.threshold, str) else float(code.threshold)
    return Tried(name, given, code is not None and bool(code.per_feature), accuracy)


def _linear(name: str, strength: float, seed: int) -> BaseEstimator:
    if name == "svm":
        return LinearSVC(C=strength, dual="auto", random_state=seed)
    return LogisticRegression(C=strength, max_iter=300, random_state=seed)


def _drawn(y: Array, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """Rows to choose on: `limit` at most, drawn class by class, and of each class as many as there are folds."""
    if len(y) <= limit:
        return np.arange(len(y))
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(y == one) for one in np.unique(y)]
    counts = [max(FOLDS, limit * len(one) // len(y)) for one in members]
    return np.sort(np.concatenate([generator.permutation(m)[:count] for m, count in zip(members, counts, strict=True)]))
