"""The measure, sweeps, quantizers, traces and checklists, against sums written out and values of the method's sheet."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import lowbit as lb
from lowbit import errors as lb_errors
from lowbit.errors import DataError, FeatureError, LayerError, RecipeError
from lowbit.methods.discrimination import theory
from lowbit.methods.discrimination.checklist import applicability, check_features
from lowbit.methods.discrimination.histograms import STEPS, Histograms, scaling
from lowbit.methods.discrimination.measure import by_feature, interval, moments_of, pairs
from lowbit.methods.discrimination.sweep import in_pieces

Array = npt.NDArray[Any]
QUANTIZERS = (lb.BinaryQuantizer, lb.TernaryQuantizer)


def gaussian(mu: float, n: int, *, d: int = 1, seed: int = 0) -> tuple[Array, Array]:
    """Two classes at +-mu with unit second moment."""
    generator = np.random.default_rng(seed)
    y = np.repeat([0, 1], n)
    noise = np.sqrt(1 - mu**2) * generator.standard_normal((2 * n, d))
    return np.where(y[:, None] == 1, mu, -mu) + noise, y


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x, y


def by_definition(x: Array, y: Array) -> float:
    """Mean over pairs of E|X - Y|^2 / (E|X - X'|^2 + E|Y - Y'|^2), X' and Y' drawn with replacement."""
    found = []
    for a, b in itertools.combinations(np.unique(y), 2):
        p, q = x[y == a], x[y == b]

        def mean_square(one: Array, other: Array) -> float:
            return float(((one[:, None] - other[None]) ** 2).sum(-1).mean())

        found.append(mean_square(p, q) / (mean_square(p, p) + mean_square(q, q)))
    return float(np.mean(found))


# The measure


def test_measure_is_the_definition() -> None:
    x, y = load_wine(return_X_y=True)
    z = StandardScaler().fit_transform(x)
    assert lb.discrimination(z, y, corrected=False).mean == pytest.approx(by_definition(z, y), rel=1e-9)
    assert lb.discrimination(sparse.csr_array(z), y, corrected=False).mean == pytest.approx(
        by_definition(z, y), rel=1e-9
    )


@pytest.mark.parametrize("mu", [0.3, 0.7, 0.9])
def test_plug_in_is_within_a_percent_of_the_closed_form(mu: float) -> None:
    x, y = gaussian(mu, 500_000)
    assert lb.discrimination(x, y).mean == pytest.approx(theory.original(mu), rel=0.01)
    for quantizer in QUANTIZERS:
        codes = quantizer(0.3, center=False).fit(x, y).transform(x)
        code: Any = "binary" if quantizer is lb.BinaryQuantizer else "ternary"
        scale = float(x.std())
        assert lb.discrimination(codes, y).mean == pytest.approx(float(theory.coded(mu, 0.3 * scale, code)), rel=0.01)


def test_correction_takes_away_what_few_samples_add() -> None:
    generator = np.random.default_rng(0)
    plain, corrected = [], []
    for _ in range(300):
        x, y = generator.standard_normal((10, 20)), np.repeat([0, 1], 5)  # no separation: D is 1/2
        which = moments_of(x, y.astype(np.int64), 2)
        plain.append(pairs(which, corrected=False)[0, 1])
        # floored at 1/2 one by one, so the mean of the unfloored sums is looked at
        v = which.variances * 5 / 4
        between = ((which.means[0] - which.means[1]) ** 2 - v[0] / 5 - v[1] / 5).sum()
        corrected.append(0.5 + between / (2 * v.sum()))
        assert pairs(which, corrected=True)[0, 1] == pytest.approx(max(corrected[-1], 0.5))
    assert np.mean(plain) == pytest.approx(0.625, abs=0.01)
    assert np.mean(corrected) == pytest.approx(0.5, abs=0.01)


def test_features_do_not_average_ratios() -> None:
    x, y = gaussian(0.9, 4000)
    junk = np.random.default_rng(1).standard_normal((len(x), 9))
    both = lb.discrimination(np.hstack([x, junk]), y)
    delta, v1, v2 = (x[y == 1].mean() - x[y == 0].mean()) ** 2, x[y == 0].var(ddof=1), x[y == 1].var(ddof=1)
    rest = sum(junk[y == c].var(0, ddof=1).sum() for c in (0, 1))
    assert both.mean == pytest.approx(0.5 + delta / (2 * (v1 + v2 + rest)), rel=0.01)
    assert both.features[0] == pytest.approx(theory.original(0.9), rel=0.1)
    assert both.features[1:] == pytest.approx(np.full(9, 0.5), abs=0.01)


def test_pairs_of_classes_and_the_worst(digits: tuple[Array, Array]) -> None:
    x, y = digits
    found = lb.discrimination(x, y)
    assert found.pairs.shape == (10, 10)
    assert np.allclose(found.pairs, found.pairs.T, equal_nan=True)
    a, b = found.worst_classes
    keep = (y == a) | (y == b)
    assert lb.discrimination(x[keep], y[keep]).mean == pytest.approx(found.worst)
    assert found.worst < found.mean
    constant = x.std(0) == 0
    assert np.all(found.features[constant] == 0.5)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(100):
        x, y = gaussian(0.5, 40, d=4, seed=seed)
        low, high = interval(x, y, draws=100, seed=seed)
        held += low <= theory.original(0.5) <= high
    assert 87 <= held <= 100


def test_features_of_many_classes_are_a_ratio_of_sums() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((300, 4)) * [1, 2, 3, 4], np.repeat([0, 1, 2], 100)
    x += y[:, None] * [1, 0, 2, 0.1]
    moments = moments_of(x, y.astype(np.int64), 3)
    both = [(0, 1), (0, 2), (1, 2)]
    between = sum((moments.means[a] - moments.means[b]) ** 2 for a, b in both)
    within = sum(moments.variances[a] + moments.variances[b] for a, b in both)
    assert np.allclose(by_feature(moments, corrected=False), 0.5 + between / (2 * within))


# Sweeps


@pytest.mark.parametrize("code", ["binary", "ternary"])
def test_sweep_is_the_measure_of_the_codes(digits: tuple[Array, Array], code: Any) -> None:
    x, y = digits
    quantizer = lb.BinaryQuantizer if code == "binary" else lb.TernaryQuantizer
    found = quantizer().fit(x, y).sweep()
    for i in range(0, len(found.thresholds), 7):
        codes = quantizer(found.thresholds[i]).fit(x, y).transform(x)
        direct = lb.discrimination(codes, y)
        assert found.mean[i] == pytest.approx(direct.mean, rel=1e-9)
        assert found.worst[i] == pytest.approx(direct.worst, rel=1e-9)
        assert np.allclose(found.features[i], direct.features)


def test_sweep_finds_the_optimum_of_the_closed_form() -> None:
    x, y = gaussian(0.8, 200_000)
    ternary, binary = (one(center=False).fit(x, y).sweep() for one in (lb.TernaryQuantizer, lb.BinaryQuantizer))
    assert ternary.best() == pytest.approx(0.217, abs=1 / STEPS)
    assert ternary.mean.max() == pytest.approx(2.9306, rel=0.01)
    assert binary.best() == 0
    assert binary.mean.max() == pytest.approx(2.5160, rel=0.01)
    (low, high), *others = ternary.improving(theory.original(0.8))
    assert not others
    assert low == 0
    assert high == pytest.approx(0.518, abs=1 / STEPS)
    assert binary.improving(theory.original(0.8)) == [(-0.1875, 0.1875)]
    weak, labels = gaussian(0.5, 100_000)
    assert lb.TernaryQuantizer(center=False).fit(weak, labels).sweep().improving(theory.original(0.5)) == []


def test_counts_do_not_depend_on_chunks_or_workers(digits: tuple[Array, Array]) -> None:
    x, y = digits
    units = scaling(x)
    whole = Histograms.empty(np.unique(y), units).added(x, y)
    pieces, order = in_pieces(x, y, 100), np.argsort(y, kind="stable")
    sorted_pieces = in_pieces(x[order], y[order], 100)  # most of which lack most classes
    for chunks, jobs in ((pieces, 1), (pieces, 2), (iter(pieces), 1), (sorted_pieces, 2), (iter(sorted_pieces), 1)):
        found = lb.count_features(chunks, scale=units, n_jobs=jobs)
        assert np.array_equal(found.counts, whole.counts)
        assert np.array_equal(found.samples, whole.samples)
        assert np.allclose(found.sums, whole.sums)
        assert np.allclose(found.squares, whole.squares)
    assert np.allclose(whole.original(), lb.discrimination(units.standardized(x), y).pairs, equal_nan=True)


def test_sparse_features_are_counted_as_dense_ones() -> None:
    generator = np.random.default_rng(0)
    x = sparse.random_array((400, 30), density=0.1, rng=generator, format="csr")
    y = generator.integers(0, 3, 400)
    units = scaling(x)
    dense = Histograms.empty(np.unique(y), units).added(x.toarray(), y)
    thin = Histograms.empty(np.unique(y), units, is_sparse=True).added(x, y)
    assert np.array_equal(dense.counts, thin.counts)
    assert np.allclose(dense.sums, thin.sums)
    assert np.allclose(dense.squares, thin.squares)
    assert np.allclose(scaling(x.toarray(), center=False).scale, units.scale)
    with pytest.raises(FeatureError, match="zeros of sparse features"):
        thin.sweep("binary", (-1, 1))


def test_sweep_refuses_limits_that_no_code_has(digits: tuple[Array, Array]) -> None:
    found = lb.TernaryQuantizer().fit(*digits).histograms_
    assert found is not None
    with pytest.raises(FeatureError, match="expected at least 0"):
        found.sweep("ternary", (-1, 1))
    with pytest.raises(FeatureError, match="inside of"):
        found.sweep("binary", (-9, 9))
    with pytest.raises(FeatureError, match="other centers"):
        found.merged(Histograms.empty(found.classes, replace(found.scaling, center=found.scaling.center + 1)))


def test_streams_say_what_does_not_fit() -> None:
    x, y = gaussian(0.5, 50, d=3)
    with pytest.raises(FeatureError, match="no chunk"):
        lb.count_features(iter(()))
    with pytest.raises(FeatureError, match=r"expected \[n, 3\]"):
        lb.count_features([(x, y), (x[:, :2], y)])
    bad = x.copy()
    bad[7, 2] = np.nan
    with pytest.raises(FeatureError, match="NaN in row 7, column 2"):
        lb.count_features([(x, y), (bad, y)])
    with pytest.raises(FeatureError, match="expected at least 2"):
        lb.count_features([(x, y), (x[:1], np.array([5]))]).sweep("binary")


# The quantizers


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_scikit_learn_checks_pass(quantizer: Any) -> None:
    found = check_estimator(quantizer(), on_fail=None, on_skip=None)
    failed = [(one["check_name"], one["exception"]) for one in found if one["status"] == "failed"]
    assert not failed
    assert sum(one["status"] == "passed" for one in found) >= 47


def test_codes_are_the_definition(digits: tuple[Array, Array]) -> None:
    x, y = digits
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    assert np.array_equal(lb.BinaryQuantizer(0.2).fit(x, y).transform(x), (z > 0.2).astype(float))
    assert np.array_equal(lb.TernaryQuantizer(0.4).fit(x, y).transform(x), np.sign(z) * (np.abs(z) > 0.4))
    paper = lb.BinaryQuantizer(0.5, center=False, unit="mean").fit(x, y)
    size = np.where(x.any(0), np.abs(x).mean(0), 1)
    assert np.array_equal(paper.transform(x), (x > 0.5 * size).astype(float))


def test_constant_features_are_coded_zero() -> None:
    x, y = gaussian(0.8, 100, d=2)
    x[:, 1] = 0.1  # which has no exact mean
    assert not lb.TernaryQuantizer().fit(x, y).transform(x)[:, 1].any()
    assert not lb.BinaryQuantizer(0.0).fit(x, y).transform(x)[:, 1].any()


def test_thresholds_by_feature_are_drawn_to_the_one_of_all(digits: tuple[Array, Array]) -> None:
    x, y = digits
    one, each = lb.TernaryQuantizer().fit(x, y), lb.TernaryQuantizer(per_feature=True).fit(x, y)
    own = one.sweep().best_by_feature()
    few = np.bincount(y).min()
    assert np.allclose(each.threshold_, (few * own + 50 * one.threshold_) / (few + 50))
    assert each.transform(x).shape == x.shape


def test_threshold_by_accuracy_is_the_best_tried(digits: tuple[Array, Array]) -> None:
    x, y = digits[0][:400], digits[1][:400]
    chosen = lb.BinaryQuantizer("accuracy", cv=3).fit(x, y).threshold_
    model = make_pipeline(lb.BinaryQuantizer(), lb.PackedKNeighborsClassifier(5))
    search = GridSearchCV(model, {"binaryquantizer__threshold": [-1.5, -0.9, -0.3, 0.3, 0.9, 1.5]}, cv=3).fit(x, y)
    assert abs(chosen) <= 0.9
    assert search.best_params_["binaryquantizer__threshold"] in (-0.3, 0.3)
    with pytest.raises(FeatureError, match="4 folds, expected at most 3"):
        lb.BinaryQuantizer("accuracy", cv=4).fit(x[:40], np.repeat([0, 1], [37, 3]))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_chunks_give_the_same_as_all_at_once(digits: tuple[Array, Array], quantizer: Any) -> None:
    x, y = digits
    whole = quantizer().fit(x, y)
    assert quantizer().partial_fit(x, y).threshold_ == whole.threshold_
    streamed = quantizer().fit_counts(lb.count_features(in_pieces(x, y, 100), scale=scaling(x)))
    assert np.array_equal(streamed.transform(x), whole.transform(x))
    parts = quantizer()
    for i in range(0, len(x), 300):
        parts.partial_fit(x[i : i + 300], y[i : i + 300], classes=range(10))
    assert parts.sweep().mean.argmax() == pytest.approx(whole.sweep().mean.argmax(), abs=3)
    assert parts.histograms_.samples.sum() == len(x)


def test_chunk_without_all_classes_has_no_threshold_yet() -> None:
    x, y = gaussian(0.8, 50)
    quantizer = lb.BinaryQuantizer().partial_fit(x[:50], y[:50], classes=[0, 1])
    with pytest.raises(ValueError, match="not fitted"):
        quantizer.transform(x)
    assert quantizer.partial_fit(x[50:], y[50:]).transform(x).shape == x.shape


def test_sparse_features_stay_sparse() -> None:
    generator = np.random.default_rng(0)
    x = sparse.random_array((300, 40), density=0.2, rng=generator, format="csr", dtype=np.float32)
    y = generator.integers(0, 2, 300)
    for quantizer in QUANTIZERS:
        fitted = quantizer().fit(x, y)
        codes = fitted.transform(x)
        assert sparse.issparse(codes)
        assert codes.dtype == np.float32
        assert np.array_equal(codes.toarray(), fitted.transform(x.toarray()))
        assert np.array_equal(fitted.pack(x).unpack(), codes.toarray())
    with pytest.raises(FeatureError, match="sparse"):
        lb.BinaryQuantizer(-0.5).fit(x.toarray(), y).transform(x)


def test_data_frames_keep_their_names(digits: tuple[Array, Array]) -> None:
    frame = pd.DataFrame(digits[0][:, 20:24], columns=["a", "b", "c", "d"])
    quantizer = lb.TernaryQuantizer().set_output(transform="pandas").fit(frame, digits[1])
    assert list(quantizer.transform(frame).columns) == ["a", "b", "c", "d"]
    assert lb.trace_features(quantizer.set_output(transform="default"), frame).names == ("a", "b", "c", "d")


def test_packed_codes_are_the_codes(digits: tuple[Array, Array]) -> None:
    x, y = digits
    for quantizer in QUANTIZERS:
        fitted = quantizer().fit(x, y)
        assert np.array_equal(fitted.pack(x).unpack(), fitted.transform(x))
    assert fitted.pack(x).nbytes * 16 == x.astype(np.float32).nbytes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threshold": -0.1}, "expected at least 0"),
        ({"threshold": "best"}, "discrimination"),
        ({"threshold": [1.0, 2.0]}, r"expected a finite number, or \[64\]"),
        ({"threshold": float("nan")}, "finite"),
        ({"unit": "mad"}, "unit"),
        ({"criterion": "median"}, "criterion"),
    ],
)
def test_bad_arguments_are_named(digits: tuple[Array, Array], given: dict[str, Any], said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        lb.TernaryQuantizer(**given).fit(*digits)


def test_bad_data_are_named(digits: tuple[Array, Array]) -> None:
    x, y = digits
    with pytest.raises(FeatureError, match="one class only"):
        lb.BinaryQuantizer().fit(x, np.zeros(len(x), int))
    for value, name in ((np.nan, "NaN"), (np.inf, "infinity")):
        bad = x.copy()
        bad[3, 5] = value
        with pytest.raises(FeatureError, match=f"{name}.* in row 3, column 5"):
            lb.BinaryQuantizer().fit(bad, y)
    with pytest.raises(FeatureError, match="expected one of"):
        lb.BinaryQuantizer().partial_fit(x, y).partial_fit(x[:5], [0, 1, 2, 3, 77])
    with pytest.raises(FeatureError, match="sample, expected at least 2"):
        lb.BinaryQuantizer().fit(x[:3], [0, 0, 1])
    with pytest.raises(FeatureError, match="all data at once"):
        lb.BinaryQuantizer("accuracy").partial_fit(x, y)
    with pytest.raises(FeatureError, match="needs no counts"):
        lb.BinaryQuantizer(0.0).fit(x, y).sweep()


def test_quantizers_are_cloned_with_their_settings() -> None:
    given = lb.TernaryQuantizer("accuracy", per_feature=True, unit="mean", cv=3)
    assert clone(given).get_params() == given.get_params()


# Traces


def test_traces_go_through_json(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    x, y = digits
    for quantizer in QUANTIZERS:
        fitted = quantizer(per_feature=True).fit(x, y)
        trace = lb.trace_features(fitted, x)
        trace.save(tmp_path / "trace.json")
        again = lb.FeatureTrace.load(tmp_path / "trace.json")
        assert again == trace
        assert np.array_equal(again.quantizer().transform(x), fitted.transform(x))
        assert np.allclose(np.sum(trace.frequencies, axis=1), 1)
    assert trace.data_hash != lb.trace_features(fitted, x + 1e-9).data_hash


def test_traces_that_were_tampered_with_are_refused(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    path = tmp_path / "trace.json"
    lb.trace_features(lb.TernaryQuantizer().fit(*digits), digits[0]).save(path)
    kept = json.loads(path.read_text())
    for change, said in (
        ({"scale": kept["scale"][:-1]}, "64"),
        ({"threshold": [-1.0] * 64}, "negative"),
        ({"code": "octal"}, "code"),
        ({"center": [None] * 64}, "center"),
        ({"sclae": []}, "did you mean"),
    ):
        path.write_text(json.dumps(kept | change))
        with pytest.raises(RecipeError, match=said):
            lb.FeatureTrace.load(path)
    path.write_text("{")
    with pytest.raises(DataError):
        lb.FeatureTrace.load(path)


def test_changes_are_what_the_code_loses() -> None:
    x, y = np.array([[-2.0, 0.3], [2.0, -0.3], [-2.0, 0.1], [2.0, -0.1]]), np.array([0, 1, 0, 1])
    quantizer = lb.TernaryQuantizer(1.2, center=False).fit(x, y)
    z = x / x.std(0)
    found = lb.trace_features(quantizer, x, names=["large", "small"]).changes(x)
    assert {(one.row, one.name, one.what) for one in found} == {
        (i, name, "to zero")
        for i, row in enumerate(z)
        for name, v in zip(["large", "small"], row, strict=True)
        if abs(v) <= 1.2
    }
    assert all(one.margin == pytest.approx(1.2 - abs(one.z)) for one in found)
    assert [one.margin for one in found] == sorted(one.margin for one in found)
    moved = lb.trace_features(quantizer, x).changes(x[:1] * [-1, 1], reference=x[:1])
    assert [(one.feature, one.what, one.code) for one in moved] == []  # 2 / 2 is below 1.2: both are 0
    binary = lb.trace_features(lb.BinaryQuantizer(0.5, center=False).fit(x, y), x)
    assert not [one for one in binary.changes(x) if one.feature == 0]
    found = binary.changes(np.array([[0.2, 0.0]]))
    assert [(one.feature, one.what, one.code) for one in found] == [(0, "flipped", 0)]
    assert found[0].margin == pytest.approx(0.5 - 0.2 / x[:, 0].std())
    flips = binary.changes(np.array([[2.0, 0.0]]), reference=np.array([[-2.0, 0.0]]))
    assert [(one.what, one.code) for one in flips] == [("flipped", 1)]


def test_drift_is_seen_and_its_absence_too(digits: tuple[Array, Array]) -> None:
    x, y = digits
    trace = lb.trace_features(lb.TernaryQuantizer().fit(x, y), x)
    generator = np.random.default_rng(0)
    same = trace.drift(x[generator.integers(0, len(x), 1000)])
    assert not same.drifted
    assert "no drift" in str(same)
    moved = x.copy()
    moved[:, 20] += 8
    found = trace.drift(moved)
    assert found.moved == ("20",)
    assert found.index[20] > 0.2
    assert "20" in str(found)
    old, new = (
        np.asarray(trace.frequencies)[20],
        np.array([(lb.TernaryQuantizer().fit(x, y).transform(moved)[:, 20] == c).mean() for c in (-1, 0, 1)]),
    )
    a, b = np.maximum(old, 1e-4), np.maximum(new, 1e-4)
    assert found.index[20] == pytest.approx(((b - a) * np.log(b / a)).sum())
    few = trace.drift(moved[:3])  # three samples prove nothing
    assert not few.drifted


# The checklist


def test_checklist_tells_features_apart() -> None:
    generator = np.random.default_rng(0)
    n = 4000
    y = np.repeat([0, 1], n)
    sign = np.where(y == 1, 1.0, -1.0)
    x = np.stack(
        [
            0.5 * sign + generator.laplace(size=2 * n),
            0.3 * sign + generator.standard_normal(2 * n),
            2.0 * sign + generator.standard_normal(2 * n),
            generator.standard_normal(2 * n),
            np.full(2 * n, 3.0),
        ],
        axis=1,
    )
    quantizer = lb.BinaryQuantizer().fit(x, y)
    assert quantizer.histograms_ is not None
    checks = check_features(quantizer.histograms_, x, y, names=["laplace", "weak", "strong", "junk", "constant"])
    by_name = {one.name: one for one in checks}
    assert by_name["laplace"].kurtosis == pytest.approx(3, abs=0.6)
    assert by_name["weak"].kurtosis == pytest.approx(0, abs=0.3)
    assert by_name["laplace"].kept[0] == pytest.approx(2 * 0.8, abs=0.5)
    assert by_name["weak"].kept[0] == pytest.approx(0.637, abs=0.1)
    assert by_name["strong"].correlation == pytest.approx(2 / np.sqrt(5), abs=0.01)
    assert "separate the classes better" in by_name["laplace"].sentence
    assert "heavy tails" in by_name["laplace"].sentence
    assert "separate the classes better" in by_name["strong"].sentence
    assert "keep at most" in by_name["weak"].sentence
    assert "next to nothing" in by_name["junk"].sentence
    assert "one value only" in by_name["constant"].sentence
    said = " ".join(applicability(checks, quantizer.histograms_))
    assert "1 of 5 features have one value only" in said
    assert "1 of 4 features say next to nothing" in said
    assert "not yet a better classifier" in said


# Layers


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.idle = nn.Conv2d(1, 4, 3), nn.Linear(4, 2), nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.drop(self.conv(x).mean((2, 3))))
        return found


def test_layers_give_their_features() -> None:
    torch.manual_seed(0)
    model = TwoBranches().train()
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 2
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    found = list(lb.layer_features(model, "conv", batches))
    x, y = (np.concatenate(part) for part in zip(*found, strict=True))
    assert np.allclose(x, model.conv(images).mean((2, 3)).detach(), atol=1e-6)
    assert np.array_equal(y, labels)
    assert next(lb.layer_features(model, "conv", batches, pool="none"))[0].shape == (4, 4 * 36)
    first, again = (next(lb.layer_features(model, "head", batches))[0] for _ in range(2))
    assert np.array_equal(first, again)  # no dropout
    assert model.training
    assert not model.conv._forward_hooks
    with pytest.raises(LayerError, match="choose from conv, head"):
        next(lb.layer_features(model, "layer9", batches))
    with pytest.raises(LayerError, match="ran 0 times"):
        next(lb.layer_features(model, "idle", batches))


# What a review found


def test_sparse_features_in_any_form_are_the_same() -> None:
    generator = np.random.default_rng(0)
    thin = sparse.random_array((60, 60), density=0.2, rng=generator, format="csr")
    y = generator.integers(0, 2, 60)
    expected = lb.count_features([(thin, y)]).counts
    doubled = sparse.csr_array(
        (
            np.r_[thin.data / 2, thin.data / 2],
            (np.r_[thin.tocoo().row, thin.tocoo().row], np.r_[thin.tocoo().col, thin.tocoo().col]),
        ),
        shape=thin.shape,
    )
    twice = sparse.csr_array(
        (np.repeat(thin.data / 2, 2), np.repeat(thin.indices, 2), 2 * thin.indptr), shape=thin.shape
    )
    for other in (thin.tocsc(), thin.tocoo(), doubled, twice):
        assert np.array_equal(lb.count_features([(other, y)]).counts, expected)
    before = twice.copy()
    assert set(lb.BinaryQuantizer(0.9).fit(twice, y).transform(twice).data) <= {1.0}
    assert twice.nnz == before.nnz  # what came is left alone


def test_constants_are_coded_zero_whatever_the_threshold() -> None:
    x, y = gaussian(0.8, 60, d=2)
    x[:, 1] = 5.0
    for quantizer in (lb.BinaryQuantizer(-0.5), lb.BinaryQuantizer(0.5, center=False), lb.TernaryQuantizer(0.0)):
        codes = quantizer.fit(x, y).transform(x)
        assert not codes[:, 1].any()
        again = lb.trace_features(quantizer, x).quantizer()
        assert np.array_equal(again.transform(x), codes)
    thin = sparse.csr_array(np.c_[np.abs(x[:, :1]), np.full(len(x), 0.1)])
    assert not lb.BinaryQuantizer(0.5).fit(thin, y).transform(thin)[:, [1]].nnz
    far = np.c_[1.6e12 + 5e4 * x[:, 0], x[:, 0]]  # moments in milliseconds
    codes = lb.BinaryQuantizer(0.0).fit(far, y).transform(far)
    assert np.array_equal(codes[:, 0], codes[:, 1])


def test_scales_of_chunks_are_those_of_the_whole() -> None:
    x, _ = gaussian(0.5, 300, d=5)
    x = x * [1, 10, 1e-3, 5, 1] + [0, 100, 0, -5, 1e6]
    for unit in ("std", "mean"):
        whole, parts = scaling(x, unit=unit), scaling(x[:100], x[100:450], x[450:], unit=unit)
        assert np.allclose(whole.center, parts.center)
        assert np.allclose(whole.scale, parts.scale)
    assert np.allclose(scaling(x).scale, x.std(0))
    assert np.allclose(scaling(x, unit="mean").scale, np.abs(x - x.mean(0)).mean(0))
    for factor in (1e200, 1e-40):
        with pytest.raises(FeatureError, match="column 0 has a scale of"):
            scaling(x * factor)


def test_sorted_streams_are_told() -> None:
    x, y = gaussian(0.99, 500)
    far = np.concatenate([x[:500], 50 + x[500:]])
    with pytest.warns(lb_errors.DataWarning, match="50% of the values lie more than 4 units"):
        lb.count_features((far[i : i + 100], y[i : i + 100]) for i in range(0, 1000, 100))


def test_few_new_rows_raise_no_false_alarm() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1000, 64))
    y = np.repeat([0, 1], 500)
    for threshold in (0.6, 2.0):
        trace = lb.trace_features(lb.TernaryQuantizer(threshold).fit(x, y), x)
        for rows in (1, 3, 10, 30, 200):
            alarms = sum(trace.drift(generator.standard_normal((rows, 64))).drifted for _ in range(40))
            assert alarms <= 2
        assert trace.drift(generator.standard_normal((60, 64)) + 2).drifted


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.eye(4), [0, 1, 0, float("nan")], "fractions or NaN"),
        (np.eye(4), [0.5, 1.5, 0.5, 1.5], "fractions or NaN"),
        (np.eye(4), None, "labels: got none"),
        (np.eye(4), [0, "a", None, 1], "several types"),
        (np.eye(4) * 1j, [0, 1, 0, 1], "complex128"),
        (np.array([["a"]] * 4), [0, 1, 0, 1], "real numbers"),
    ],
)
def test_data_that_are_none_are_refused(x: Any, y: Any, said: str) -> None:
    for call in (lb.discrimination, lb.judge, lambda x, y: lb.count_features([(x, y)])):
        with pytest.raises(FeatureError, match=said):
            call(x, y)


def test_chunks_have_to_be_alike() -> None:
    x, y = gaussian(0.5, 20, d=3)
    others: list[tuple[Any, str]] = [
        ((sparse.csr_array(x), y), "sparse"),
        ((x, y.astype(str)), "numbers and texts"),
        ((x, y, y), r"expected \(features, labels\)"),
    ]
    for other, said in others:
        with pytest.raises(FeatureError, match=said):
            lb.count_features([(x, y), other])
    assert lb.count_features([(x, y), (x[:0], y[:0])]).samples.sum() == 40


def test_array_files_have_to_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((120, 2)))
    np.save(tmp_path / "y.npy", np.zeros(64))
    with pytest.raises(DataError, match=r"120 rows and .* 64"):
        lb.count_features(lb.ArrayFiles(tmp_path / "x.npy", tmp_path / "y.npy"))
    with pytest.raises(DataError, match="expected at least 1"):
        lb.ArrayFiles(tmp_path / "x.npy", tmp_path / "y.npy", rows=0)


def test_a_chunk_that_was_refused_leaves_nothing_behind() -> None:
    x, y = gaussian(0.8, 50)
    quantizer = lb.BinaryQuantizer()
    with pytest.raises(FeatureError, match="expected one of"):
        quantizer.partial_fit(100 * x, y + 5, classes=[0, 1])
    assert quantizer.partial_fit(x, y, classes=[0, 1]).scale_[0] == pytest.approx(x.std())
    array = lb.TernaryQuantizer(np.array([0.5]))
    assert array.partial_fit(x, y).fit_counts(lb.count_features([(x, y)])).threshold_ == 0.5


def test_a_pair_without_variance_does_not_rule_all() -> None:
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 100)
    codes = np.where(y == 0, 0.0, np.where(y == 1, 1.0, generator.integers(0, 2, 300)))[:, None]
    found = lb.discrimination(codes, y)
    assert found.pairs[0, 1] <= 0.5 + 200 / 2  # no more than 200 samples show


def test_labels_that_were_never_seen_are_refused() -> None:
    x, y = gaussian(0.8, 50)
    codes = lb.BinaryQuantizer().fit(x, y).transform(x)
    with pytest.raises(FeatureError, match="got 7, which was not seen in fit"):
        lb.PackedKNeighborsClassifier().fit(codes, y).score(codes, np.where(y == 0, 0, 7))
