"""Verdicts against formulas written out, scikit-learn's own cross-validation, and data whose verdict is known.

Numbers that a comment calls the sheet's were measured before any of this was written, with other code.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from joblib import parallel_config
from scipy import sparse, stats
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from lowbit.errors import FeatureError
from lowbit.methods.discrimination import verdict as module
from lowbit.methods.discrimination.candidates import (
    Candidate,
    Scored,
    all_scored,
    clipped,
    code_candidate,
    default_classifiers,
    float_candidates,
    quiet,
    scored,
    separation,
    split_rows,
)
from lowbit.methods.discrimination.verdict import Compared, Outcome, Verdict, compare, judge

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
NEIGHBORS = {"kNN": KNeighborsClassifier(5)}
WINE_X, WINE_Y = load_wine(return_X_y=True)


def gaussians(count: int, *, features: int, mu: float, seed: int = 0) -> tuple[Floats, Integers]:
    """`count` samples of each of two classes at +-mu in every feature, of variance 1 in all."""
    generator, y = np.random.default_rng(seed), np.repeat([0, 1], count)
    noise = math.sqrt(1 - mu**2) * generator.standard_normal((2 * count, features))
    return np.where(y[:, None] == 0, mu, -mu) + noise, y


# The interval


def compared(differences: Any, ratio: float, margin: float, rows: int = 1) -> Compared:
    """With so many samples that what a few splits leave open does not count."""
    test = 10**18
    return compare(differences, train=round(test / max(ratio, 1e-15)), test=test, margin=margin, rows=rows)


def test_interval_is_the_corrected_one_by_hand() -> None:
    found = compared([0.02, 0.04, 0.03, 0.05, 0.01], 1 / 3, 0.01)
    error = math.sqrt((1 / 5 + 1 / 3) * 0.00025)  # the variance of these five is 0.00025
    t = 0.03 / error
    u = t / math.sqrt(1 + t**2 / 4)
    p = 2 * (1 - (0.5 + 3 / 8 * u * (1 - u**2 / 12)))  # Student's distribution with 4 degrees of freedom, closed form
    assert found.gain == pytest.approx(0.03)
    assert (found.low, found.high) == pytest.approx((0.03 - 2.776445 * error, 0.03 + 2.776445 * error), abs=1e-7)
    assert found.p == pytest.approx(p)
    assert found.outcome == "too little data"
    wider = compared([0.02, 0.04, 0.03, 0.05, 0.01], 1 / 3, 0.01, rows=5)
    assert wider.high == pytest.approx(0.03 + 4.604095 * error, abs=1e-7)  # 99 % of one for 95 % of five
    assert wider.p == pytest.approx(5 * p)


def test_few_splits_that_agree_by_chance_prove_nothing() -> None:
    assert compare([0.02, 0.02], train=90, test=30, margin=0.01, rows=6).outcome == "too little data"
    generator, calls = np.random.default_rng(0), 0
    for _ in range(2000):  # nothing changed, and 4 % of the samples are told differently each way
        draws = generator.multinomial(30, [0.04, 0.04, 0.92], size=3)
        found = compare((draws[:, 0] - draws[:, 1]) / 30, train=90, test=30, margin=0.01, rows=6)
        calls += found.outcome in ("improves", "degrades")
    assert calls / 2000 <= 0.05 / 6


def test_interval_without_overlap_is_the_plain_paired_one() -> None:
    differences = np.random.default_rng(0).normal(0.01, 0.03, 12)
    found, plain = compared(differences, 0.0, 0.001), stats.ttest_1samp(differences, 0)
    interval = plain.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, plain.pvalue))


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([0.004, 0.006, 0.005, 0.005], "equal"),  # surely above 0, and too little to matter
        ([0.01] * 4, "equal"),
        ([0.95 - 0.94] * 4, "equal"),  # 0.010000000000000009
        ([0.0] * 4, "equal"),
        ([-0.01] * 4, "equal"),
        ([0.011] * 4, "improves"),
        ([0.05, 0.06, 0.05, 0.06], "improves"),
        ([0.009, 0.013, 0.009, 0.013], "improves"),  # from below the margin, but above 0
        ([-0.05, -0.06, -0.05, -0.06], "degrades"),
        ([-0.011] * 4, "degrades"),
        ([0.1, -0.1, 0.1, -0.1], "too little data"),
        ([0.1, 0.0, 0.0, 0.0], "too little data"),
        ([-0.02, 0.0, -0.02, 0.0], "too little data"),
    ],
)
def test_outcomes(differences: list[float], outcome: Outcome) -> None:
    found = compared(differences, 1 / 3, 0.01)
    assert found.outcome == outcome
    assert found.gain == pytest.approx(np.mean(differences))
    if len(set(differences)) == 1:
        assert (found.low, found.high) == pytest.approx((differences[0], differences[0]))
        assert found.p == pytest.approx(float(differences[0] == 0), abs=1e-6)


# What is measured


def test_scores_are_those_of_nested_cross_validation() -> None:
    outer = StratifiedShuffleSplit(3, test_size=0.25, random_state=3)
    inner = StratifiedKFold(3)
    selected = GridSearchCV(
        make_pipeline(StandardScaler(), SelectKBest(f_classif), KNeighborsClassifier(5)),
        {"selectkbest__k": [13, 7, 4, 2]},
        cv=inner,
    )
    limits = [make_pipeline(StandardScaler(), Clip(c), KNeighborsClassifier(5)) for c in (3, 2, 1, 0.5)]
    found = {
        one.name: one.values for one in judge(WINE_X, WINE_Y, classifiers=NEIGHBORS, splits=3, seed=3).scores["kNN"]
    }
    assert list(found) == ["original", "clipped", "robust-scaled", "selected", "binary", "ternary"]
    plain = make_pipeline(StandardScaler(), KNeighborsClassifier(5))
    assert found["original"] == pytest.approx(cross_val_score(plain, WINE_X, WINE_Y, cv=outer))
    assert found["selected"] == pytest.approx(cross_val_score(selected, WINE_X, WINE_Y, cv=outer))
    by_hand = []
    for train, test in outer.split(WINE_X, WINE_Y):
        x, y = WINE_X[train], WINE_Y[train]
        best = max(limits, key=lambda one: cross_val_score(one, x, y, cv=inner).mean())
        by_hand.append(best.fit(x, y).score(WINE_X[test], WINE_Y[test]))
    assert found["clipped"] == pytest.approx(by_hand)


class Clip(BaseEstimator):  # type: ignore[misc]
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def fit(self, x: Floats, y: Integers) -> Clip:
        return self

    def transform(self, x: Floats) -> Floats:
        return np.minimum(np.maximum(x, -self.limit), self.limit)


@pytest.mark.parametrize("name", ["clipped", "robust-scaled", "selected", "binary", "ternary"])
def test_choices_are_made_without_the_test_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows outside of the training part are never read until the model is fitted, whatever is chosen."""
    candidates = {one.name: one for one in (*float_candidates(13, sparse=False), *map(codes_of, ("binary", "ternary")))}
    (train, test), *_ = split_rows(WINE_Y, 2, 0.25, 0)
    seen: list[Floats] = []

    class Spied(np.ndarray):
        """Records which rows are taken of it."""

        def __getitem__(self, rows: Any) -> Any:
            seen.append(rows)
            return np.asarray(self)[rows]

    fitted: list[int] = []
    plain = GridSearchCV.fit

    def fit(search: Any, x: Floats, y: Integers) -> Any:
        done = plain(search, x, y)
        fitted.append(len(seen))
        return done

    monkeypatch.setattr(GridSearchCV, "fit", fit)
    clean = scored(candidates[name], KNeighborsClassifier(), WINE_X.view(Spied), WINE_Y, train, test)
    assert fitted == [1]
    assert [list(rows) for rows in seen] == [list(train), list(test)]

    spoiled, shuffled = WINE_X.copy(), WINE_Y.copy()
    spoiled[test] *= -1000
    shuffled[test] = np.roll(shuffled[test], 7)
    changed = scored(candidates[name], KNeighborsClassifier(), spoiled, shuffled, train, test)
    assert changed.accuracy < clean.accuracy - 0.2
    assert changed.threshold == clean.threshold
    assert changed.per_feature == clean.per_feature


def codes_of(code: Any) -> Candidate:
    return code_candidate(code, sparse=False)


def test_labels_without_meaning_are_guessed() -> None:
    """Selecting features on all rows, the classical leak, finds some that seem to tell such labels apart."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((100, 400)), np.arange(100) % 2
    leaked = SelectKBest(f_classif, k=50).fit_transform(x, y)
    outer = StratifiedShuffleSplit(8, test_size=0.25, random_state=0)
    assert cross_val_score(KNeighborsClassifier(), leaked, y, cv=outer).mean() > 0.8
    found = judge(x, y, classifiers=NEIGHBORS, codes=("ternary",), splits=6)
    assert all(abs(one.mean - 0.5) < 0.1 for one in found.scores["kNN"])
    assert not found.recommended


def test_rows_say_what_was_chosen() -> None:
    found = judge(WINE_X, WINE_Y, classifiers=NEIGHBORS, codes=("ternary",), splits=5)
    candidate = codes_of("ternary")
    chosen = [scored(candidate, NEIGHBORS["kNN"], WINE_X, WINE_Y, *part) for part in split_rows(WINE_Y, 5, 0.25, 0)]
    (row,) = found.rows
    assert row.threshold == np.median([one.threshold for one in chosen])
    assert row.per_feature == sum(one.per_feature for one in chosen)
    assert row.scores.values == tuple(one.accuracy for one in chosen)
    assert row.scores.spread == pytest.approx(np.std(row.scores.values, ddof=1))
    assert (found.train, found.test, found.splits) == (133, 45, 5)
    gains = np.subtract(row.scores.values, row.original.values)
    assert row.versus_original == compare(gains, train=133, test=45, margin=0.01, rows=2)
    assert row.best_float.mean == max(one.mean for one in found.scores["kNN"] if one.name != "ternary")


# Data whose verdict is known


def test_classes_further_apart_are_not_recommended() -> None:
    """The sheet: 3 features at mu = .8 raise D from 2.28 to 2.52 (binary), and neighbors lose 98.9 -> 97.9."""
    found = judge(*gaussians(2000, features=3, mu=0.8, seed=1), classifiers=NEIGHBORS, splits=12)
    before = found.discrimination["original"]
    assert before == pytest.approx(2.278, rel=0.03)
    assert found.discrimination["binary"] == pytest.approx(2.516, rel=0.06)
    assert found.discrimination["ternary"] == pytest.approx(2.931, rel=0.06)
    assert not found.recommended
    for row in found.rows:
        assert 0.98 < row.original.mean < 0.995
        assert 0.97 < row.scores.mean < row.original.mean
        assert row.versus_original.outcome == "degrades"
        d = found.discrimination[row.code]
        assert f"though D rises from {before:.2f} to {d:.2f}; keep floats" in row.sentence
        assert row.sentence.startswith(f"not recommended: {row.code} codes lower the accuracy of kNN from ")
    assert found.summary == ("no code is recommended on these data; combinations of code and classifier: 2 degrades")


@pytest.mark.parametrize(("least", "most", "before"), [(3, 10, 0.44), (10, 30, 0.12)])
def test_impulses_on_digits_are_what_ternary_codes_are_for(least: float, most: float, before: float) -> None:
    """8 % of the entries of standardized digits get +-`least` to `most` standard deviations more.

    The sheet, whose impulses were not written down: 44.6 originally, 93.7 as ternary codes. Measured here: clipping
    explains all of the gain against small impulses, and less than it against large ones.
    """
    x, y = load_digits(return_X_y=True)
    generator, z = np.random.default_rng(0), StandardScaler().fit_transform(x)
    size = generator.uniform(least, most, z.shape) * generator.choice([-1, 1], z.shape)
    z += np.where(generator.random(z.shape) < 0.08, size, 0)
    (row,) = judge(z, y, classifiers=NEIGHBORS, codes=("ternary",), splits=5).rows
    assert row.original.mean == pytest.approx(before, abs=0.04)
    assert row.scores.mean == pytest.approx(0.937, abs=0.02)
    assert row.versus_original.outcome == "improves"
    assert row.versus_original.low > 0.4
    assert row.recommended is (least > 3)
    assert f"floats reach {100 * row.best_float.mean:.1f} %" in row.sentence
    assert ("which explains the gain" in row.sentence) is (least == 3)


# What is said, for accuracies made up


# 8 splits of 45 + 15 samples: the interval is 2.364624 sqrt(1 / 8 + 1 / 3) = 1.60086 standard deviations to either side
RAISED = "binary codes raise the accuracy of kNN from 70.0 % to 91.0 % (+21.0 points, 95 % interval +18.9 to +23.1)"
APART = "though D rises from 1.00 to 2.00"
SAME = (
    "no accuracy to gain or lose (within 1 point): binary codes change the accuracy of kNN from 70.0 % to 70.1 % (+0.1 "
    f"points, 95 % interval -0.1 to +0.3) {APART}; worth it for size alone, 32 times smaller than float32"
)


@pytest.mark.parametrize(
    ("binary", "clips", "recommended", "sentence"),
    [
        ((0.9, 0.92), (0.8, 0.8), True, f"recommended: {RAISED}; clipped floats reach 80.0 %"),
        (
            (0.9, 0.92),
            (0.9, 0.92),
            True,
            f"recommended: {RAISED}; but clipped floats reach 91.0 %, which explains the gain: the code is for size, "
            "32 times smaller than float32",
        ),
        (
            (0.9, 0.92),
            (0.92, 0.9),
            True,
            f"recommended: {RAISED}; clipped floats reach 91.0 %, not told apart from the code on these data, which is "
            "32 times smaller than float32",
        ),
        (
            (0.9, 0.92),
            (0.95, 0.97),
            False,
            f"not recommended: {RAISED}; but clipped floats reach 96.0 %, which explains the gain and is more: use "
            "those",
        ),
        (
            (0.9, 0.92),
            (0.5, 0.5),
            True,
            f"recommended: {RAISED}; no other floats are better than the original ones",
        ),
        (
            (0.6, 0.62),
            (0.8, 0.8),
            False,
            "not recommended: binary codes lower the accuracy of kNN from 70.0 % to 61.0 % (-9.0 points, 95 % "
            f"interval -11.1 to -6.9) {APART}; keep floats; clipped floats reach 80.0 %",
        ),
        ((0.7, 0.702), (0.7, 0.7), False, SAME),
        ((0.7, 0.702), (0.8, 0.8), False, f"{SAME}; clipped floats reach 80.0 %"),
        (
            (
                0.67,
                0.73,
            ),  # 6.2 points to either side; 64 splits would make them 4.4, and 1 needs 19 times the 40,000 samples
            (0.7, 0.7),
            False,
            "too little data: binary codes change the accuracy of kNN from 70.0 % to 70.0 % (+0.0 points, 95 % "
            f"interval -6.2 to +6.2) {APART}, neither within 1 point nor to one side of 0; some 64 splits of "
            "760,000 samples would decide",
        ),
        (
            (
                0.696,
                0.71,
            ),  # 1.44 points instead of 1 - 0.3; 64 splits would make them 1.0, and 0.7 needs twice the samples
            (0.7, 0.7),
            False,
            "too little data: binary codes change the accuracy of kNN from 70.0 % to 70.3 % (+0.3 points, 95 % "
            f"interval -1.1 to +1.7) {APART}, neither within 1 point nor to one side of 0; some 64 splits of "
            "85,000 samples would decide",
        ),
    ],
)
def test_sentences(
    binary: tuple[float, float],
    clips: tuple[float, float],
    recommended: bool,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = made_up({"binary": binary, "clipped": clips}, monkeypatch, splits=8)
    (row,) = found.rows
    assert row.sentence == sentence
    assert row.recommended is recommended
    said = f"{sentence} (1 of 1 combinations of code and classifier are recommended)"
    assert (found.summary == said) is recommended


def test_more_splits_are_asked_for_where_they_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up({"binary": (0.69, 0.715)}, monkeypatch, splits=2, margin=0.1)
    assert "; some 4 splits would decide" in found.rows[0].sentence


def test_a_larger_discrimination_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [made_up({"binary": (0.6, 0.62)}, monkeypatch, splits=8, apart=d).rows[0] for d in (0.5, 1.0, 200.0)]
    assert len({(one.versus_original, one.recommended) for one in found}) == 1
    assert ["though D rises" in one.sentence for one in found] == [False, False, True]


def made_up(
    accuracies: dict[str, tuple[float, float]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    splits: int,
    margin: float = 0.01,
    apart: float = 2.0,
) -> Verdict:
    """A verdict on accuracies that go to and fro; 0.7 where none are given."""
    turn = iter(range(splits))

    def fake(candidates: Sequence[Candidate], *_: Any) -> list[list[Scored]]:
        now = next(turn) % 2
        return [[Scored(accuracies.get(one.name, (0.7, 0.7))[now], 0.3) for one in candidates]]

    monkeypatch.setattr(module, "all_scored", fake)
    monkeypatch.setattr(module, "_apart", lambda *_: {"original": 1.0, "binary": apart})
    x, y = gaussians(20_000, features=64, mu=0.5)  # so many that the spread of a few splits counts as it is
    return judge(x, y, classifiers=NEIGHBORS, codes=("binary",), splits=splits, margin=margin)


# How it runs


def test_the_same_seed_gives_the_same_verdict() -> None:
    x, y = gaussians(40, features=6, mu=0.4)
    told: list[str] = []

    def judged(seed: int = 0) -> Verdict:
        trees = {"tree": DecisionTreeClassifier(max_features=2), "SVM": LinearSVC(max_iter=1, dual=False)}
        return judge(x, y, classifiers=trees, codes=("ternary",), splits=2, seed=seed, say=told.append)

    alone = judged()
    assert told == ["split 1 of 2", "split 2 of 2"]
    with parallel_config(backend="threading", n_jobs=2):
        assert judged() == alone
    assert judged(seed=1).scores != alone.scores
    assert ("error", None, Warning, None, 0) in warnings.filters  # the ones of the session are back


def test_work_can_be_sent_elsewhere() -> None:
    candidates = (*float_candidates(13, sparse=False), codes_of("binary"), codes_of("ternary"))
    task = all_scored, (candidates, list(default_classifiers().values()))
    work, given = pickle.loads(pickle.dumps(task))  # noqa: S301  # our own
    part = split_rows(WINE_Y, 2, 0.25, 0)[0]
    found = work(*given, WINE_X, WINE_Y, part)
    assert [[one.accuracy > 0.8 for one in row] for row in found] == [[True] * 6] * 3


def test_splits_that_were_kept_are_not_done_again(tmp_path: Path) -> None:
    given: dict[str, Any] = {"classifiers": NEIGHBORS, "splits": 3, "codes": ["ternary"]}
    said: list[str] = []
    plain = judge(WINE_X, WINE_Y, **given)
    first = judge(WINE_X, WINE_Y, **given, folder=tmp_path, say=said.append)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 3
    assert said == ["split 1 of 3", "split 2 of 3", "split 3 of 3"]
    kept[1].unlink()
    again = judge(WINE_X, WINE_Y, **given, folder=tmp_path, say=said.append)
    assert said[3:] == ["2 of 3 splits are there already", "split 3 of 3"]
    assert plain == first == again
    before = len(list(tmp_path.iterdir()))
    judge(WINE_X + 1e-9, WINE_Y, **given, folder=tmp_path)  # other data are other splits
    assert len(list(tmp_path.iterdir())) == before + 3


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_features_are_not_centered(kind: Callable[[Any], Any]) -> None:
    generator = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 60)
    x = generator.poisson(np.where(y[:, None] == "a", 0.3, 0.8), (120, 12)) * 1.5
    x[:, 3] = 0
    found = judge(kind(x), y, splits=2)
    assert list(found.scores) == ["kNN, Euclidean", "kNN, cosine", "linear SVM"]
    outer = StratifiedShuffleSplit(2, test_size=0.25, random_state=0)
    for name, one in default_classifiers().items():
        if "kNN" in name:
            scaled = make_pipeline(StandardScaler(with_mean=False), one)
            for place, model in ((0, one), (2, scaled)):  # as they are, and standardized
                expected = cross_val_score(model, sparse.csr_array(x), y, cv=outer)
                assert found.scores[name][place].values == pytest.approx(expected)
    assert all(row.threshold >= 0 for row in found.rows)
    assert all(one > 0.5 for one in found.discrimination.values())
    dense = clipped(x, 2.0)
    assert np.array_equal(clipped(kind(x), 2.0).toarray(), dense)
    assert x.max() > 2


def test_constant_features_and_stopping_early_are_no_warnings() -> None:
    x, y = gaussians(30, features=4, mu=0.6)
    x = np.column_stack([x, np.zeros(60), np.full(60, 0.1), np.full(60, 1e9), y])  # and one that tells everything
    found = judge(x, y, classifiers={"SVM": LinearSVC(max_iter=1, dual=True)}, splits=2)
    assert found.scores["SVM"][0].mean > 0.5
    with quiet():
        warnings.warn("stopped early", ConvergenceWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="something else"):
            warnings.warn("something else", UserWarning, stacklevel=1)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_features_are_ranked_as_by_analysis_of_variance(kind: Callable[[Any], Any]) -> None:
    order = np.argsort(f_classif(WINE_X, WINE_Y)[0])
    z = StandardScaler(with_mean=False).fit_transform(WINE_X)
    assert np.array_equal(np.argsort(separation(kind(z), WINE_Y)), order)
    constant = separation(kind(np.column_stack([np.full(178, 0.1), z, WINE_Y])), WINE_Y)
    assert constant.argmin() == 0
    assert constant.argmax() == 14


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": np.zeros(178)}, "one class only"),
        ({"y": WINE_Y[:-1]}, r"expected \[N, d\] and \[N\]"),
        ({"x": np.where(np.eye(178, 13) > 0, np.nan, WINE_X)}, "NaN in row 0, column 0"),
        ({"x": np.where(np.eye(178, 13) > 0, np.inf, WINE_X)}, "infinity"),
        ({"y": np.where(np.arange(178) < 3, 7, WINE_Y)}, "3 samples of the smallest class, 2 of them to train on"),
        ({"y": np.where(np.arange(178) < 1, 7, WINE_Y)}, "1 samples of the smallest of 4 classes, too few"),
        ({"test_share": 0.01}, "too few to split 0.01"),
        ({"splits": 1}, "splits: got 1, expected at least 2"),
        ({"margin": 0.0}, "margin: got 0, expected a share above 0"),
        ({"margin": -0.01}, "margin: got -0.01"),
        ({"margin": math.nan}, "margin: got nan"),
        ({"margin": 1}, "such as 0.01 for one point"),
        ({"test_share": 0.0}, "test_share: got 0,"),
        ({"test_share": 1.0}, "test_share: got 1,"),
        ({"codes": ("binary", "quaternary")}, r"expected some of \['binary', 'ternary'\]"),
        ({"codes": ()}, r"codes: got \[\]"),
        ({"codes": ("binary", "binary")}, "each once"),
        ({"classifiers": {}}, "classifiers: got none"),
        ({"classifiers": {"one": KMeans()}}, "got KMeans.* for 'one', expected a scikit-learn classifier"),
        ({"classifiers": {"one": LinearRegression()}}, "expected a scikit-learn classifier"),
        ({"classifiers": {"one": KNeighborsClassifier}}, "expected a scikit-learn classifier"),
        ({"classifiers": {"one": "kNN"}}, "got 'kNN' for 'one'"),
    ],
)
def test_what_cannot_be_judged_is_refused(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"x": WINE_X, "y": WINE_Y, "classifiers": NEIGHBORS, "splits": 2} | change
    with pytest.raises(FeatureError, match=match):
        judge(arguments.pop("x"), arguments.pop("y"), **arguments)
