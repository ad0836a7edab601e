"""What is tried: classifiers, given floats in a few robust shapes or codes, each with choices of its own.

A code that beats standardized floats may do so only because it tames outliers or drowns out junk. Clipping, scaling by
quartiles, and leaving features out do that as well, without a code; so they are tried beside it. Whatever a candidate
can choose, it chooses by cross-validation on the training part, and of equal choices takes the first, the mildest.

Sparse features are not centered anywhere, which would fill them.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC

from lowbit import files
from lowbit.errors import FeatureError
from lowbit.methods.discrimination.estimators import QUANTIZERS, FeatureQuantizer
from lowbit.methods.discrimination.measure import moments_of
from lowbit.methods.discrimination.theory import Code

FOLDS = 3  # of the cross-validation on the training part
BINARY = (-0.5, 0.0, 0.5)  # thresholds beside the one with the largest D
TERNARY = (0.15, 0.3, 0.6, 1.0)
_CONSTANT = 1e-12  # variance within classes that is rounding, of features with variance 1


@dataclass(frozen=True)
class Candidate:
    """Steps ahead of the classifier, and the parameters of them to choose from, as `GridSearchCV` takes them."""

    name: str
    steps: tuple[tuple[str, Any], ...]
    choices: tuple[dict[str, list[Any]], ...] = ()


@dataclass(frozen=True)
class Scored:
    """Accuracy on a test part, and what was chosen without it: a code's mean threshold (None for floats)."""

    accuracy: float
    threshold: float | None = None
    per_feature: bool = False


def float_candidates(features: int, *, sparse: bool) -> tuple[Candidate, ...]:
    """The original first: standardized features, or sparse ones as they are; and what keeps outliers and junk out."""
    original = () if sparse else (("scale", StandardScaler()),)
    scale = ("scale", StandardScaler(with_mean=not sparse))
    clip, select = ("clip", FunctionTransformer(clipped, accept_sparse=True)), ("select", SelectKBest(separation))
    kept = sorted({max(1, math.ceil(features * share)) for share in (1 / 8, 1 / 4, 1 / 2, 1)}, reverse=True)
    clipping = Candidate("clipped", (scale, clip), ({"clip__kw_args": [{"limit": c} for c in (3, 2, 1, 0.5)]},))
    robust = Candidate(
        *("robust-scaled", (("scale", RobustScaler()), clip)),
        ({"clip__kw_args": [{"limit": c} for c in (None, 3, 1)]},),
    )
    # quartiles of sparse features are mostly 0; dividing by deviations makes rare ones count most, which may not suit
    return (
        Candidate("original", original),
        clipping,
        Candidate("standardized", (scale,)) if sparse else robust,
        Candidate("selected", (*original, select), ({"select__k": kept},)),
    )


def code_candidate(code: Code, *, sparse: bool) -> Candidate:
    """A code by the threshold with the largest D, one or one a feature, or by one of a few thresholds."""
    thresholds = [t for t in (BINARY if code == "binary" else TERNARY) if t >= 0 or not sparse]
    by_discrimination: dict[str, list[Any]] = {
        "code__threshold": ["discrimination"],
        "code__per_feature": [False, True],
    }
    return Candidate(code, (("code", QUANTIZERS[code]()),), (by_discrimination, {"code__threshold": thresholds}))


def default_classifiers() -> dict[str, BaseEstimator]:
    """Those that distances between features matter to."""
    return {
        "kNN, Euclidean": KNeighborsClassifier(5),
        "kNN, cosine": KNeighborsClassifier(5, metric="cosine", algorithm="brute"),
        "linear SVM": LinearSVC(C=0.1, dual="auto"),
    }


def seeded(classifiers: Mapping[str, BaseEstimator], seed: int) -> dict[str, BaseEstimator]:
    """Copies that do the same each time."""
    if not classifiers:
        raise FeatureError("classifiers: got none, expected at least one; leave it out for the default ones")
    found = {}
    for name, one in classifiers.items():
        if not isinstance(one, BaseEstimator) or not is_classifier(one):
            raise FeatureError(f"classifiers: got {one!r} for {name!r}, expected a scikit-learn classifier")
        random = [k for k, v in one.get_params().items() if k.split("__")[-1] == "random_state" and v is None]
        found[name] = clone(one).set_params(**dict.fromkeys(random, seed))
    return found


def split_rows(
    which: npt.NDArray[np.int64], splits: int, test_share: float, seed: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Positions of the training and the test samples of each split."""
    counts = np.bincount(which)
    splitter = StratifiedShuffleSplit(splits, test_size=test_share, random_state=seed)
    try:
        found = list(splitter.split(np.zeros((len(which), 1)), which))
    except ValueError as error:
        raise FeatureError(
            f"labels: got {counts.min()} samples of the smallest of {len(counts)} classes, too few to split "
            f"{test_share:g} of all off for a test; add samples or leave the class out"
        ) from error
    fewest = min(np.bincount(which[train], minlength=len(counts)).min() for train, _ in found)
    if fewest < FOLDS:
        raise FeatureError(
            f"labels: got {counts.min()} samples of the smallest class, {fewest} of them to train on, expected at "
            f"least {FOLDS}, one for each fold of the inner cross-validation; add samples or leave the class out"
        )
    return found


def scored(
    candidate: Candidate,
    classifier: BaseEstimator,
    x: npt.NDArray[np.generic] | sparse.csr_array,
    y: npt.NDArray[np.generic],
    train: npt.NDArray[np.integer],
    test: npt.NDArray[np.integer],
) -> Scored:
    """Choose and fit on the rows `train` of features `[N, d]` and labels `[N]`; only then look at the rows `test`.

    Raises:
        FeatureError: the classifier does not take the data.
    """
    model = Pipeline([*candidate.steps, ("classifier", clone(classifier))])
    try:
        with quiet():
            if candidate.choices:
                folds = StratifiedKFold(FOLDS)  # of rows in random order already
                options = {"scoring": "accuracy", "cv": folds, "n_jobs": 1, "error_score": "raise"}
                search = GridSearchCV(model, list(candidate.choices), **options)
                model = search.fit(x[train], y[train]).best_estimator_
            else:
                model = clone(model).fit(x[train], y[train])
            accuracy = float(np.mean(model.predict(x[test]) == y[test]))
    except ValueError as error:  # scikit-learn's
        raise FeatureError(
            f"{type(classifier).__name__} cannot learn from {candidate.name} features of {len(train)} samples "
            f"({files.one_line(error)}); add samples, or give another classifier"
        ) from error
    code = model.steps[0][1]
    if not isinstance(code, FeatureQuantizer):
        return Scored(accuracy)
    return Scored(accuracy, float(np.mean(code.threshold_)), code.per_feature)


def all_scored(
    candidates: Sequence[Candidate],
    classifiers: Sequence[BaseEstimator],
    x: npt.NDArray[np.generic] | sparse.csr_array,
    y: npt.NDArray[np.generic],
    split: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]],
) -> list[list[Scored]]:
    """Every classifier's candidates on one split, on whatever machine."""
    return [[scored(candidate, classifier, x, y, *split) for candidate in candidates] for classifier in classifiers]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Say nothing where a classifier stops before it has converged: its accuracy tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def clipped(x: Any, limit: float | None = None) -> Any:
    """Features within +-`limit`, dense or sparse as they are."""
    if limit is None:
        return x
    if not sparse.issparse(x):
        return np.clip(x, -limit, limit)
    found = x.copy()
    np.clip(found.data, -limit, limit, out=found.data)
    return found


def separation(x: Any, y: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Variance between classes over that within, `[d]`: ranks features as `f_classif` does, constant ones too."""
    classes, which = np.unique(y, return_inverse=True)
    moments = moments_of(x, which, len(classes))
    shares = (moments.counts / len(which))[:, None]
    within = (shares * moments.variances).sum(0)
    between = (shares * (moments.means - (shares * moments.means).sum(0)) ** 2).sum(0)
    return np.asarray(between / (within + _CONSTANT))
