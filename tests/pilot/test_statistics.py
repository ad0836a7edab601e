"""Scores, intervals and verdicts, against values worked out by hand or with another formula."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.errors import DataError
from lowbit.pilot import statistics
from lowbit.pilot.record import CheckRow, Kpi, Limits, Score, Trial, Verdict
from lowbit.pilot.statistics import Scoring


def one_hot(classes: list[int], count: int = 3) -> np.ndarray:
    """Outputs `[N, count]` that predict these classes."""
    return np.eye(count, dtype=np.float32)[classes]


def score(metric: str, outputs: np.ndarray, labels: np.ndarray | None, reference: np.ndarray, *how: Any) -> Score:
    return Scoring(metric, labels, reference, *how).score(outputs)


def difference(
    metric: str,
    outputs: np.ndarray,
    labels: np.ndarray | None,
    reference: np.ndarray,
    *how: Any,
    before: np.ndarray | None = None,
) -> Score:
    return Scoring(metric, labels, reference, *how).difference(outputs, before)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """E. B. Wilson, "Probable inference", https://doi.org/10.1080/01621459.1927.10502953, 1927."""
    z, p = 1.959963984540054, hits / count
    center, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    return (center - half) / (1 + z * z / count), (center + half) / (1 + z * z / count)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 10), (9, 10), (10, 10), (81, 263), (9173, 10_000), (1, 1)])
def test_share_has_the_wilson_interval(hits: int, count: int) -> None:
    found = statistics.share(np.arange(count) < hits)
    assert found.value == hits / count
    assert (found.low, found.high) == pytest.approx(wilson(hits, count), abs=1e-12)
    assert found.samples == count


def test_wilson_known_value() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662."""
    found = statistics.share(np.arange(263) < 81)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (np.array([[0.1, 0.9], [2.0, -1.0]]), [1, 0]),
        (np.array([[-0.5], [0.5], [0.0]]), [False, True, False]),
        (np.array([-0.5, 0.5]), [False, True]),
        (np.array([[[1.0, 2.0], [5.0, 0.0]]]), [2]),  # what is not [N, C] is flattened
    ],
)
def test_predictions(outputs: np.ndarray, expected: list[int]) -> None:
    assert statistics.predictions(outputs).tolist() == expected


def test_accuracy_and_agreement() -> None:
    outputs, labels = one_hot([0, 1, 2, 0]), np.array([0, 1, 2, 2])
    assert score("accuracy", outputs, labels, outputs, 0).value == 0.75
    assert score("agreement", outputs, None, one_hot([0, 1, 1, 1]), 0).value == 0.5


def test_accuracy_of_a_single_output_is_by_sign() -> None:
    outputs = np.array([[1.0], [-1.0], [2.0]], np.float32)
    assert score("accuracy", outputs, np.array([1, 0, 0]), outputs, 0).value == pytest.approx(2 / 3)


def test_paired_difference_by_hand() -> None:
    """Two samples lost and one won of ten; half a sample more in each cell: 1.5 won, 2.5 lost of 12."""
    labels = np.zeros(10, int)
    reference = one_hot([0] * 9 + [1])
    outputs = one_hot([1, 1] + [0] * 8)
    found = difference("accuracy", outputs, labels, reference, 0)
    half = 1.96 * math.sqrt((4 - 1 / 12) / 144)
    assert found.value == pytest.approx(-0.1)
    assert (found.low, found.high) == pytest.approx((-1 / 12 - half, -1 / 12 + half), rel=1e-4)


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 500)
    reference = one_hot([*np.where(generator.random(500) < 0.9, labels, (labels + 1) % 3)])
    outputs = reference.copy()
    outputs[:5] = one_hot([0, 1, 2, 0, 1])
    found = difference("accuracy", outputs, labels, reference, 0)
    alone = score("accuracy", outputs, labels, reference, 0)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)


def test_nothing_changed_on_few_samples_is_not_certainty() -> None:
    outputs, labels = one_hot([0, 1, 2]), np.array([0, 1, 1])
    few = difference("accuracy", outputs, labels, outputs, 0)
    assert few.value == 0
    assert few.low == -few.high < 0
    many = difference("accuracy", np.tile(outputs, (100, 1)), np.tile(labels, 100), np.tile(outputs, (100, 1)), 0)
    assert 0 < many.high < few.high / 10


def test_agreement_difference_is_what_is_lost() -> None:
    found = difference("agreement", one_hot([0, 1, 1, 1]), None, one_hot([0, 0, 1, 1]), 0)
    assert found.value == -0.25


def test_difference_from_another_baseline() -> None:
    """Agreement stays that with the float model; what is paired is the baseline."""
    outputs, baseline, reference = one_hot([0, 1, 1, 1]), one_hot([1, 1, 1, 0]), one_hot([0, 1, 1, 1])
    labels = np.array([1, 1, 1, 1])
    agreement = difference("agreement", outputs, None, reference, 0, before=baseline)
    assert agreement.value == 0.5
    accuracy = difference("accuracy", outputs, labels, reference, 0, before=baseline)
    assert accuracy.value == 0
    targets = np.array([1.0, 2.0, 3.0], np.float32)
    near, far = targets + np.float32(0.1), targets + np.float32(0.5)
    r2 = difference("r2", near, targets, targets, 0, before=far)
    assert r2.value == pytest.approx((0.75 - 0.03) / 2, abs=1e-6)


def test_r2_by_hand() -> None:
    """Targets 1, 2, 3 have 2 as total sum of squares; residuals of 0.5 leave 0.75 / 2."""
    targets = np.array([1.0, 2.0, 3.0], np.float32)
    outputs = np.array([[1.5], [2.5], [2.5]], np.float32)
    assert score("r2", outputs, targets, outputs, 0).value == pytest.approx(1 - 0.75 / 2)
    assert score("r2", targets, targets, targets, 0).value == 1


def test_r2_interval_holds_the_value_and_is_the_seed_s() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=200)
    outputs = (targets + generator.normal(scale=0.5, size=200))[:, None]
    first, again, other = (score("r2", outputs, targets, outputs, seed) for seed in (0, 0, 1))
    assert first.low < first.value < first.high
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.value == other.value


def test_r2_difference_is_paired() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=200)
    reference = (targets + generator.normal(scale=0.5, size=200))[:, None]
    outputs = reference + generator.normal(scale=0.02, size=(200, 1))
    found = difference("r2", outputs, targets, reference, 0)
    alone = score("r2", outputs, targets, reference, 0)
    assert abs(found.value) < 0.02
    assert found.high - found.low < 0.2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("low", "high", "minimum", "expected"),
    [
        (0.90, 0.95, 0.90, "meets"),
        (0.90, 0.95, 0.89, "meets"),
        (0.90, 0.95, 0.9001, "borderline"),
        (0.90, 0.95, 0.95, "borderline"),
        (0.90, 0.95, 0.9501, "misses"),
        (-3.0, -1.0, -2.0, "borderline"),
    ],
)
def test_verdict(low: float, high: float, minimum: float, expected: Verdict) -> None:
    found = Score((low + high) / 2, low, high, 100)
    (row,) = statistics.checks(Trial("w8", {}, "", "misses", score=found), Kpi("accuracy", minimum), Limits())
    assert row == CheckRow("minimum", minimum, found.value, low, high, expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.05, 0.10, "meets"), (0.04, 0.09, "meets"), (0.05, 0.11, "borderline"), (0.11, 0.12, "misses")],
)
def test_where_smaller_is_better_the_whole_interval_stays_within(low: float, high: float, expected: Verdict) -> None:
    """An error, within a maximum of 0.1; and as a change from float, within a tolerance of 0.1."""
    found = Score((low + high) / 2, low, high, 100)
    trial = Trial("w8", {}, "", "misses", score=found, difference=found)
    kpi = Kpi("m.py:error", None, 0.1, smaller_is_better=True, maximum=0.1)
    rows = statistics.checks(trial, kpi, Limits())
    assert [(row.what, row.limit, row.verdict) for row in rows] == [
        ("maximum", 0.1, expected),
        ("tolerance", 0.1, expected),
    ]
    (base,) = statistics.checks(replace(trial, recipe=None), kpi, Limits())
    assert base == rows[0]
    better = replace(trial, difference=Score(-0.5, -0.6, -0.4, 100))
    assert statistics.checks(better, kpi, Limits())[1].verdict == "meets"
    assert str(kpi) == "m.py:error <= 0.1 and at most 0.1 above float"


# What is refused


def refusal(metric: str, outputs: np.ndarray, labels: np.ndarray | None, folder: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        score(metric, outputs, labels, outputs, 0, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("metric", ["accuracy", "r2", "package.module:function"])
def test_metric_without_labels_is_refused_before_anything_runs(metric: str) -> None:
    with pytest.raises(DataError, match=r"needs labels, the test data has none; name them, or use agreement"):
        statistics.check_metric(metric, None)


def test_metric_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="'acuracy' is unknown; expected accuracy, agreement, r2, cosine or"):
        statistics.check_metric("acuracy", np.zeros(1))
    with pytest.raises(DataError, match=r"reference 'numpy:nothing': 'numpy' has no 'nothing'"):
        statistics.check_metric("numpy:nothing", np.zeros(1))


def test_metric_that_exists() -> None:
    statistics.check_metric("agreement", None)
    for metric in ("accuracy", "r2", "numpy:dot"):
        statistics.check_metric(metric, np.zeros(1))


def test_labels_that_do_not_fit() -> None:
    outputs = one_hot([0, 1, 2])
    assert refusal("accuracy", outputs, np.zeros(2)).startswith("got 2 labels for 3 outputs, expected one each;")
    assert refusal("accuracy", outputs, None).startswith("got 0 labels for 3 outputs")
    assert "got outputs [3, 3] and labels [3, 1], expected [N, classes] and [N]" in refusal(
        "accuracy", outputs, np.zeros((3, 1))
    )
    assert "got outputs [3] and labels [3]" in refusal("accuracy", np.zeros(3), np.zeros(3))


def test_r2_does_not_broadcast() -> None:
    assert "got outputs [3, 3] and labels [3], expected as many numbers a sample" in refusal(
        "r2", one_hot([0, 1, 2]), np.zeros(3)
    )


def test_r2_of_equal_targets_is_not_defined() -> None:
    assert "'r2' is nan on 3 samples, expected a number" in refusal("r2", np.zeros((3, 1)), np.full(3, 0.1))


# The user's own metric


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics.py").write_text(
        "import numpy as np\n"
        "def closeness(outputs, labels): return 1 - np.abs(outputs[:, 0] - labels).mean()\n"
        "def broken(outputs, labels): raise KeyError('no\\nsuch thing')\n"
        "def text(outputs, labels): return 'good'\n"
        "def nan(outputs, labels): return float('nan')\n"
        "def rank(outputs, labels):\n"  # the area under the ROC curve
        "    scores, positive = outputs[:, 0], labels == 1\n"
        "    if positive.all() or not positive.any(): raise ValueError('only one class')\n"
        "    return (scores[positive][:, None] > scores[~positive]).mean()\n"
        "def distinct(outputs, labels): return float('nan') if len(set(outputs[:, 0])) < len(outputs) else 1.0\n"
    )
    return tmp_path


def test_own_metric_is_found_beside_the_pilot_file(folder: Path) -> None:
    outputs, labels = np.array([[0.0], [1.0], [2.0]]), np.array([0.0, 1.0, 2.3])
    statistics.check_metric("metrics.py:closeness", labels, folder)
    found = score("metrics.py:closeness", outputs, labels, outputs, 0, folder)
    assert found.value == pytest.approx(0.9)
    assert 0.7 - 1e-9 <= found.low < found.value < found.high <= 1
    assert difference("metrics.py:closeness", outputs, labels, outputs, 0, folder).value == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken", "got outputs [3, 3] and labels [3], raised KeyError: 'no\\nsuch thing'; correct it"),
        ("text", "raised ValueError: could not convert string to float: 'good'; correct it"),
        ("nan", "is nan on 3 samples, expected a number"),
    ],
)
def test_own_metric_that_fails(folder: Path, name: str, told: str) -> None:
    assert told in refusal(f"metrics.py:{name}", one_hot([0, 1, 2]), np.zeros(3), folder)


def ranked(count: int, positive: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[count, 1]` and labels of which so many are 1, most of them with a large score."""
    labels = (np.arange(count) < positive).astype(int)
    return (labels + np.random.default_rng(0).normal(0, 0.5, count))[:, None], labels


def test_resamples_on_which_an_own_metric_fails_are_left_out(folder: Path) -> None:
    """Of 100 samples 3 are positive: a resample has none of them with a probability of 0.97^100, 4.8 %."""
    outputs, labels = ranked(100, 3)
    scoring = Scoring("metrics.py:rank", labels, outputs[::-1], 0, folder)
    found, gap = scoring.score(outputs), scoring.difference(outputs)
    assert 0.02 < found.undefined == gap.undefined < 0.08
    assert found.low <= found.value <= found.high <= 1
    assert gap.low <= gap.value <= gap.high
    (told,) = statistics.left_out(found, None)
    assert told.startswith(f"the metric is not defined on {found.undefined:.1%} of the resamples")
    outputs, labels = ranked(100, 50)
    whole = score("metrics.py:rank", outputs, labels, outputs, 0, folder)
    assert whole.undefined == 0
    assert statistics.left_out(whole, None) == ()


@pytest.mark.parametrize(
    ("name", "positive", "told"),
    [
        (
            "rank",
            1,
            r"is a number on 3\d\d of 500 resamples of 100 samples \(ValueError: only one class\), expected 400",
        ),
        (
            "distinct",
            1,
            r"is a number on 0 of 500 resamples of 100 samples, expected 400 or more for an interval; give",
        ),
    ],
)
def test_own_metric_that_fails_on_many_resamples_is_refused(folder: Path, name: str, positive: int, told: str) -> None:
    outputs, labels = ranked(100, positive)
    assert re.search(told, refusal(f"metrics.py:{name}", outputs, labels, folder))


# One output, and embeddings


def test_a_single_output_is_a_logit_or_a_probability() -> None:
    logits = np.array([[-2.0], [-0.1], [0.1], [3.0]], dtype=np.float32)
    sigmoid = 1 / (1 + np.exp(-logits))
    assert statistics.predictions(logits).tolist() == [False, False, True, True]
    assert statistics.predictions(sigmoid).tolist() == [False, False, True, True]
    below = np.array([[0.2], [0.3]], dtype=np.float32)  # beside logits, these are logits
    assert statistics.predictions(below).tolist() == [False, False]
    assert statistics.predictions(below, logits).tolist() == [True, True]
    flipped = score("agreement", sigmoid[::-1], None, sigmoid, 0)
    assert flipped.value == 0


def test_cosine_is_the_mean_over_samples() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=np.float32)
    outputs = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    found = score("cosine", outputs, None, reference, 0)
    assert found.value == pytest.approx((1 + 0 + 2**-0.5) / 3)
    assert found.low < found.value < found.high
    assert found == score("cosine", 5 * outputs, None, reference, 0)
    lost = difference("cosine", outputs, None, reference, 0)
    assert lost.value == pytest.approx(found.value - 1)
    same = difference("cosine", outputs, None, reference, 0, before=outputs)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    statistics.check_metric("cosine", None)
    with pytest.raises(DataError, match=r"cosine: got outputs \[3, 2\], the float model has \[3, 1\]"):
        score("cosine", outputs, None, reference[:, :1], 0)
