"""Histograms and packed neighbors against loops, scikit-learn and a brute-force count of votes; both paths alike."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer
from sklearn.utils.estimator_checks import check_estimator

from lowbit import compiled
from lowbit.errors import DataWarning, FeatureError
from lowbit.methods.discrimination import bits
from lowbit.methods.discrimination import packed as packed_module
from lowbit.methods.discrimination.bits import METRICS, MetricName, WeightsName, histogram
from lowbit.methods.discrimination.packed import PackedKNeighborsClassifier, concatenate, pack

Codes = NDArray[np.int8]
Dtype = type[np.float32] | type[np.float64]


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", functools.cache(compiled.library.__wrapped__))
        yield


@pytest.fixture(params=["compiled", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two does the work."""
    if request.param == "numpy":
        without_compiler(monkeypatch)
    elif isinstance(reason := compiled.library(bits._SOURCE), str):
        pytest.skip(reason)
    return str(request.param)


def without_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compiled, "library", lambda source: "taken away")
    patch.setattr(bits, "_AT_ONCE", 1000)  # more than one chunk


def drawn(n: int, d: int, *, ternary: bool, seed: int = 0) -> Codes:
    """Codes with rows that repeat, but none of zeros."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1 if ternary else 0, 2, (n, d)).astype(np.int8)
    codes[n // 2 : n // 2 + n // 8] = codes[: n // 8]
    codes[(codes == 0).all(1), 0] = 1
    return codes


# Histograms


def counted(
    x: NDArray[Any], labels: NDArray[Any], center: NDArray[Any], inverse: NDArray[Any], classes: int, half: int
) -> NDArray[np.int64]:
    """One number at a time, in the arithmetic of the dtype of x."""
    counts = np.zeros((classes, x.shape[1], 2 * half + 1), dtype=np.int64)
    for i, j in np.ndindex(*x.shape):
        t = float((x[i, j] - center[j]) * inverse[j]) * 16
        bin = floor(t) + ceil(t) if abs(t) < 1e6 else round(np.sign(t)) * half
        counts[labels[i], j, min(max(bin, -half), half) + half] += 1
    return counts


def awkward(n: int, d: int, dtype: Dtype) -> NDArray[Any]:
    """Normal numbers; zeros, multiples of a step and what is beside them; the ends and beyond."""
    rng = np.random.default_rng(1)
    x: NDArray[Any] = rng.standard_normal((n, d)).astype(dtype)
    special: NDArray[Any] = np.array(
        [0, -0.0, 1 / 16, -3 / 16, 2.5, 4, -4, 4.01, -7, 1e30, -np.inf, np.inf, 5e-324, 1e-40], dtype
    )
    special = np.concatenate([special, np.nextafter(special[:7], dtype(9)), np.nextafter(special[:7], dtype(-9))])
    at = rng.random((n, d)) < 0.4
    x[at] = rng.choice(special, at.sum())
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(40, 1), (25, 64), (11, 130), (1100, 3)])
def test_histograms_are_those_of_a_loop(path: str, dtype: Dtype, n: int, d: int) -> None:
    x, rng = awkward(n, d, dtype), np.random.default_rng(2)
    labels = rng.integers(0, 3, n)
    scalings: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (np.zeros(d, dtype), np.ones(d, dtype)),
        (rng.standard_normal(d).astype(dtype), rng.uniform(0.5, 2, d).astype(dtype)),
    ]
    for center, inverse in scalings:
        counts = np.full((4, d, 257), 7, dtype=np.int64)
        histogram(x, labels, center, inverse, counts, n_jobs=2)
        expected = counted(x, labels, center, inverse, 4, 128)
        np.testing.assert_array_equal(counts - 7, expected)
    assert expected.sum() == n * d


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_those_of_numpy(path: str, dtype: Dtype) -> None:
    rng = np.random.default_rng(0)
    n, d = 3000, 70
    x: NDArray[Any] = (rng.standard_normal((n, d)) * rng.uniform(1, 9, d) + 5).astype(dtype)
    labels, center, inverse = rng.integers(0, 3, n), rng.standard_normal(d), rng.uniform(0.1, 2, d)
    counts = np.zeros((4, d, 257), dtype=np.int64)
    sums, squares = histogram(x, labels, center, inverse, counts, n_jobs=2)
    z = (x.astype(float) - center) * inverse
    for label in range(4):
        np.testing.assert_allclose(sums[label], z[labels == label].sum(0), rtol=1e-5)
        np.testing.assert_allclose(squares[label], (z[labels == label] ** 2).sum(0), rtol=1e-5)


def test_bins_of_a_few_numbers(path: str) -> None:
    x = np.array([[0], [-0.0], [0.5], [0.5000001], [0.4999999], [-0.5], [4], [1e9], [-4], [-1e9], [3.99]])
    counts = np.zeros((1, 1, 257), dtype=np.int64)
    histogram(x, np.zeros(11, dtype=int), np.zeros(1), np.ones(1), counts)
    assert {int(b) - 128: int(counts[0, 0, b]) for b in counts[0, 0].nonzero()[0]} == {
        **{0: 2, 16: 1, 17: 1, 15: 1, -16: 1, 128: 2, -128: 2, 127: 1},
    }


def test_counters_do_not_overflow(path: str) -> None:
    n = 70_000 * 2
    counts = np.zeros((2, 1, 257), dtype=np.int64)
    histogram(np.ones((n, 1), np.float32), np.arange(n) // 139_000, np.zeros(1), np.ones(1), counts)
    assert counts[0, 0, 128 + 32] == 139_000
    assert counts[1, 0, 128 + 32] == 1000
    assert counts.sum() == n


def test_other_grids(path: str) -> None:
    counts = np.zeros((1, 2, 4 * 100 * 30 + 1), dtype=np.int64)  # so wide that features of a block are few
    histogram(np.array([[0.125, -50]]), np.zeros(1, int), np.zeros(2), np.ones(2), counts, steps=100, reach=30)
    assert [tuple(map(int, place)) for place in np.argwhere(counts)] == [(0, 0, 6000 + 25), (0, 1, 0)]


def test_nan_stays_in_bounds(path: str) -> None:
    counts = np.zeros((1, 3, 257), dtype=np.int64)
    histogram(np.full((5, 3), np.nan, np.float32), np.zeros(5, int), np.zeros(3), np.ones(3), counts)
    assert (counts[..., -1] == 5).all()
    assert counts.sum() == 15


def test_strange_arrays_are_counted_alike(path: str) -> None:
    x = np.asfortranarray(np.random.default_rng(3).integers(-5, 5, (30, 7)))
    found, expected = np.zeros((2, 2, 7, 257), dtype=np.int64)
    labels = np.arange(60)[::2] % 2
    histogram(x, labels, np.zeros(14)[::2], np.ones(7), found)
    histogram(np.ascontiguousarray(x, dtype=np.float64), labels.copy(), np.zeros(7), np.ones(7), expected)
    np.testing.assert_array_equal(found, expected)
    histogram(x[:0], labels[:0], np.zeros(7), np.ones(7), found)
    np.testing.assert_array_equal(found, expected)


def test_histograms_refuse_what_would_be_out_of_bounds(path: str) -> None:
    x, one = np.zeros((3, 2)), np.ones(2)
    counts = np.zeros((2, 2, 257), dtype=np.int64)
    for labels in ([0, 1, 2], [0, 0, -1]):
        with pytest.raises(FeatureError, match="labels from"):
            histogram(x, np.array(labels), one, one, counts)
    with pytest.raises(FeatureError, match="got x"):
        histogram(x, np.zeros(2, int), one, one, counts)
    with pytest.raises(FeatureError, match="got counts"):
        histogram(x, np.zeros(3, int), one, one, counts[:, :, :-1])
    with pytest.raises(FeatureError, match="has to be whole"):
        histogram(x, np.zeros(3, int), one, one, counts, reach=0.7)
    assert not counts.any()


# Packed codes


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("d", [1, 63, 64, 65, 200])
def test_packed_codes_come_back(ternary: bool, d: int) -> None:
    codes = drawn(40, d, ternary=ternary)
    codes[0, 0] = -1 if ternary else 1
    packed = pack(codes)
    assert packed.ternary == ternary
    assert packed.shape == codes.shape
    assert len(packed) == 40
    assert packed.nbytes == (1 + ternary) * 40 * ceil(d / 64) * 8
    for kind in (np.float32, np.int64, scipy.sparse.csr_matrix, scipy.sparse.coo_array):
        given = kind(codes) if kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_array) else codes.astype(kind)
        np.testing.assert_array_equal(pack(given).planes, packed.planes)
    unpacked = packed.unpack()
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)
    np.testing.assert_array_equal(packed.as_ternary().unpack(), codes)
    np.testing.assert_array_equal(packed[3:9].unpack(), codes[3:9])
    np.testing.assert_array_equal(packed[np.array([5, 2, 2])].unpack(), codes[[5, 2, 2]])
    np.testing.assert_array_equal(packed[codes[:, 0] == 1, ...].unpack(), codes[codes[:, 0] == 1])
    binary = pack(np.abs(codes))
    np.testing.assert_array_equal(concatenate([packed, binary]).unpack(), np.concatenate([codes, np.abs(codes)]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(packed)).planes, packed.planes)  # noqa: S301


def test_words_are_as_documented() -> None:
    codes = np.zeros((2, 70), dtype=np.int8)
    codes[1, [0, 3, 64]], codes[0, 69] = 1, -1
    np.testing.assert_array_equal(pack(codes).planes, np.array([[[0, 0], [9, 1]], [[0, 32], [0, 0]]], dtype=np.uint64))


def test_many_chunks_pack_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = drawn(50, 100, ternary=True)
    monkeypatch.setattr("lowbit.methods.discrimination.packed._AT_ONCE", 700)
    np.testing.assert_array_equal(pack(codes).unpack(), codes)
    codes = codes.astype(float)
    codes[33, 7] = 0.5
    with pytest.raises(FeatureError, match=r"row 33, column 7: got 0.5"):
        pack(scipy.sparse.csr_array(codes))


def test_what_is_no_code_is_named() -> None:
    codes = np.zeros((3, 4))
    assert not pack(codes).ternary
    assert pack(codes, ternary=True).ternary
    codes[1, 2] = -1
    with pytest.raises(FeatureError, match=r"row 1, column 2: got -1.0, expected a code, 0 or 1;"):
        pack(codes, ternary=False)
    codes[2, 0] = np.nan
    with pytest.raises(FeatureError, match="row 2, column 0: got nan"):
        pack(codes)
    with pytest.raises(FeatureError, match="expected real numbers"):
        pack(np.array([["a"]]))
    with pytest.raises(FeatureError, match="expected codes"):
        pack(np.zeros(3))
    packed = pack(np.eye(4))
    with pytest.raises(FeatureError, match="slice"):
        packed[0]
    with pytest.raises(FeatureError, match="rows only"):
        packed[:, 1]
    with pytest.raises(FeatureError, match="one number"):
        concatenate([packed, pack(np.eye(3))])


# Neighbors

SIZES = [(200, 70, 5), (64, 1, 3), (37, 64, 37), (300, 513, 1), (90, 6, 20)]


def reference_distances(base: Codes, queries: Codes, metric: MetricName, k: int) -> NDArray[np.float64]:
    found = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(base.astype(float))
    distances: NDArray[np.float64] = found.kneighbors(queries.astype(float))[0]
    return distances


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_distances_are_those_of_scikit_learn(
    path: str, n: int, d: int, k: int, metric: MetricName, ternary: bool
) -> None:
    base, queries = drawn(n, d, ternary=ternary), drawn(24, d, ternary=ternary, seed=1)
    model = PackedKNeighborsClassifier(k, metric=metric, n_jobs=2).fit(base, np.arange(n) % 3)
    distances, rows = model.kneighbors(queries)
    np.testing.assert_allclose(distances, reference_distances(base, queries, metric, k), atol=1e-7)
    own = exact(base, queries, metric)
    order = np.argsort(own, axis=1, kind="stable")[:, :k]  # the lower row first
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(model.kneighbors(pack(queries), return_distance=False), rows)


def exact(base: Codes, queries: Codes, metric: MetricName) -> NDArray[np.float64]:
    """Numbers that order rows as `metric` does, the same where distances are; in plain integers and one division."""
    q, x = queries[:, None].astype(np.int64), base.astype(np.int64)
    match metric:
        case "hamming":
            return np.asarray((q != x).sum(2), dtype=float)
        case "manhattan":
            return np.asarray(np.abs(q - x).sum(2), dtype=float)
        case "sqeuclidean":
            return np.asarray(((q - x) ** 2).sum(2), dtype=float)
        case "cosine":
            dot = (q * x).sum(2)
            return np.asarray(-np.sign(dot) * dot**2 / np.maximum((x**2).sum(1), 1))


def brute_votes(
    base: Codes, queries: Codes, y: NDArray[Any], k: int, metric: MetricName, weights: WeightsName
) -> NDArray[np.float64]:
    """The sharing rule, row by row."""
    orders = exact(base, queries, metric)
    votes = np.zeros((len(queries), 3))
    for query, order in enumerate(orders):
        limit = np.sort(order)[k - 1]
        closer, tied = order < limit, order == limit
        share = np.where(closer, 1.0, np.where(tied, (k - closer.sum()) / tied.sum(), 0.0))
        if weights == "distance":
            true = true_distances(base, queries[query], metric)
            near_zero = (true < 1e-9) & (closer | tied)
            with np.errstate(divide="ignore"):
                share = share * (near_zero if near_zero.any() else 1 / true)
            share[~(closer | tied)] = 0
        for row in range(len(base)):
            votes[query, y[row]] += share[row]
    return np.asarray(votes / votes.sum(1, keepdims=True))


def true_distances(base: Codes, query: Codes, metric: MetricName) -> NDArray[np.float64]:
    q, x = query.astype(float), base.astype(float)
    match metric:
        case "hamming":
            return np.asarray((q != x).mean(1))
        case "manhattan":
            return np.asarray(np.abs(q - x).sum(1))
        case "sqeuclidean":
            return np.asarray(((q - x) ** 2).sum(1))
        case "cosine":
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(q)
            return np.where(norms > 0, 1 - x @ q / np.where(norms > 0, norms, 1), 1)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_ties_share_the_places_that_are_left(
    path: str, n: int, d: int, k: int, metric: MetricName, weights: WeightsName, ternary: bool
) -> None:
    base, queries = drawn(n, d, ternary=ternary), drawn(20, d, ternary=ternary, seed=1)
    queries[:4] = base[:4]
    y = np.random.default_rng(5).integers(0, 3, n)
    model = PackedKNeighborsClassifier(k, metric=metric, weights=weights).fit(base, y)
    found = model.predict_proba(queries)
    np.testing.assert_allclose(found, brute_votes(base, queries, y, k, metric, weights), atol=1e-7)
    np.testing.assert_array_equal(model.predict(queries), found.argmax(1))


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("metric", METRICS)
def test_without_ties_votes_are_those_of_scikit_learn(path: str, metric: MetricName, weights: WeightsName) -> None:
    base, queries = drawn(60, 300, ternary=True), drawn(200, 300, ternary=True, seed=1)
    y, k = np.array(["a", "b", "c"])[np.arange(60) % 3], 4
    sorted_ = np.sort(exact(base, queries, metric), axis=1)
    queries = queries[sorted_[:, k - 1] < sorted_[:, k]]
    assert len(queries) > 50
    model = PackedKNeighborsClassifier(k, metric=metric, weights=weights).fit(base, y)
    other = KNeighborsClassifier(k, metric=metric, weights=weights, algorithm="brute").fit(base.astype(float), y)
    np.testing.assert_allclose(model.predict_proba(queries), other.predict_proba(queries.astype(float)), atol=1e-9)
    assert (model.predict(queries) == other.predict(queries.astype(float))).mean() > 0.98  # votes that round apart
    assert model.score(queries, model.predict(queries)) == 1


def test_order_of_rows_decides_nothing(path: str) -> None:
    """One feature and rows sorted by class: taking the first k at the same distance is no better than guessing."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 500)
    x = (rng.standard_normal(1000) < np.where(y == 1, 1.0, -1.0))[:, None].astype(float)
    model = PackedKNeighborsClassifier(5).fit(x, y)
    first_rows = y[model.kneighbors(x, return_distance=False)].mean(1) > 0.5
    assert (first_rows == y).mean() < 0.6
    assert model.score(x, y) == pytest.approx((x[:, 0] == y).mean())
    assert model.score(x, y) > 0.8
    mixed = rng.permutation(1000)
    again = PackedKNeighborsClassifier(5).fit(x[mixed], y[mixed])
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))


def test_equal_votes_go_to_the_first_class(path: str) -> None:
    model = PackedKNeighborsClassifier(3).fit(np.zeros((6, 2)), ["b", "a", "c", "c", "b", "a"])
    assert model.predict_proba(np.ones((1, 2))).tolist() == [[1 / 3] * 3]
    assert model.predict(np.ones((1, 2))).tolist() == ["a"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "k"), [(5000, 5), (5000, 700), (3000, 3000)])
def test_both_paths_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, n: int, k: int, metric: MetricName) -> None:
    """Enough rows for many tiles, and candidates that are pruned often."""
    if isinstance(reason := compiled.library(bits._SOURCE), str):
        pytest.skip(reason)
    count = {5: 514, 700: 9, 3000: 360}[k]  # for each thread a block, which many candidates make small, and more
    base, queries = pack(drawn(n, 90, ternary=True)), pack(drawn(count, 90, ternary=True, seed=1))
    labels = np.arange(n) // (n // 4 + 1)
    for planes in (1, 2):
        given = (base.planes[:planes], queries.planes[:planes], k)
        options: dict[str, Any] = {"features": 90, "metric": metric, "labels": labels, "classes": 4}
        found = bits.nearest(*given, **options, n_jobs=2)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "library", lambda source: "taken away")
            expected = bits.nearest(*given, **options)
        for name in ("distances", "rows", "tied"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_rows_that_come_ever_nearer(path: str) -> None:
    """The worst order for pruning: each row is nearer than all before."""
    d = 1200
    base = np.triu(np.ones((d, d)))  # row i has its last d - i features set
    model = PackedKNeighborsClassifier(4).fit(base, np.arange(d) % 2)
    distances, rows = model.kneighbors(np.zeros((1, d)))
    assert rows.tolist() == [[d - 1, d - 2, d - 3, d - 4]]
    np.testing.assert_allclose(distances * d, [[1, 2, 3, 4]])


def test_binary_and_ternary_codes_meet(path: str) -> None:
    binary, ternary = drawn(30, 20, ternary=False), drawn(30, 20, ternary=True)
    y = np.arange(30) % 2
    for base, queries in ((binary, ternary), (ternary, binary)):
        model = PackedKNeighborsClassifier(3, metric="manhattan").fit(pack(base), y)
        np.testing.assert_allclose(model.kneighbors(queries)[0], reference_distances(base, queries, "manhattan", 3))


def test_rows_of_zeros_have_no_direction(path: str) -> None:
    base = np.array([[1, 0], [0, 0], [0, 0], [0, 1]])
    with pytest.warns(DataWarning, match="2 of 4 rows have only zeros") as caught:
        model = PackedKNeighborsClassifier(4, metric="cosine").fit(base, [0, 1, 1, 0])
    assert len(caught) == 1
    distances, rows = model.kneighbors(np.array([[1, 0], [0, 0]]))
    assert distances.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert rows.tolist() == [[0, 1, 2, 3]] * 2
    PackedKNeighborsClassifier(4).fit(base, [0, 1, 1, 0])


# In scikit-learn


def test_works_in_pipelines_and_searches() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.standard_normal((120, 30)) + y[:, None]
    search = GridSearchCV(
        make_pipeline(Binarizer(threshold=0.5), PackedKNeighborsClassifier()),
        {"packedkneighborsclassifier__n_neighbors": [1, 7], "packedkneighborsclassifier__metric": ["manhattan"]},
        cv=3,
    ).fit(x, y)
    assert search.best_score_ > 0.9
    packed = pack(x > 0.5)
    of_packed = GridSearchCV(PackedKNeighborsClassifier(metric="manhattan"), {"n_neighbors": [1, 7]}, cv=3).fit(
        packed, y
    )
    np.testing.assert_array_equal(of_packed.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"])
    sparse = PackedKNeighborsClassifier().fit(scipy.sparse.csr_matrix((x > 0.5).astype(float)), y)
    dense = clone(sparse).fit(packed, y)
    assert dense.n_features_in_ == 30
    again = pickle.loads(pickle.dumps(sparse))  # noqa: S301
    np.testing.assert_array_equal(again.predict_proba(packed), dense.predict_proba(x > 0.5))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    x, y = np.eye(4), [0, 1, 0, 1]
    for arguments, message in (
        ({"n_neighbors": 5}, "got n_neighbors 5 of 4 rows"),
        ({"n_neighbors": 0}, "whole number from 1 to 4"),
        ({"n_neighbors": 1.5}, "whole number from 1 to 4"),
        ({"metric": "minkowski"}, "metric 'minkowski' is unknown"),
        ({"weights": "even"}, "weights 'even' are unknown"),
    ):
        with pytest.raises(FeatureError, match=message):
            PackedKNeighborsClassifier(**{"n_neighbors": 2, **arguments}).fit(x, y)  # type: ignore[arg-type]
    model = PackedKNeighborsClassifier(2).fit(x, y)
    with pytest.raises(FeatureError, match="got n_neighbors 5"):
        model.kneighbors(x, 5)
    for queries in (np.eye(3), pack(np.eye(3))):
        with pytest.raises(ValueError, match="3 features, but PackedKNeighborsClassifier is expecting 4 features"):
            model.predict(queries)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(pack(x), y[:3])
    with pytest.raises(FeatureError, match=r"row 0, column 0: got 0.5"):
        model.predict(x / 2)


def failures() -> dict[str, Exception]:
    results = check_estimator(PackedKNeighborsClassifier(1), on_fail=None, on_skip=None)
    assert sum(each["status"] == "passed" for each in results) >= 15
    return {each["check_name"]: each["exception"] for each in results if each["status"] == "failed"}


def test_estimator_checks_pass_on_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks bring features that are no codes, so here they become codes as they are packed."""
    monkeypatch.setattr(packed_module, "pack", lambda x: pack(x.sign() if scipy.sparse.issparse(x) else np.sign(x)))
    assert not failures()


def test_estimator_checks_fail_only_for_features_that_are_no_codes() -> None:
    for name, error in failures().items():
        causes = (error, error.__cause__, error.__context__)
        assert any("expected a code" in str(cause) for cause in causes), name
