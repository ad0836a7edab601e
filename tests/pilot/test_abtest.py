"""A/B tests of two models: p-values, verdicts and plans against other formulas and simulations; what is refused."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import lowbit as lb
from lowbit.errors import DataError
from lowbit.pilot.comparison import Decision
from lowbit.pilot.differing import mcnemar
from lowbit.pilot.power import samples_needed

Array = np.ndarray


def outcomes(both: int, lost: int, won: int, neither: int = 0) -> tuple[Array, Array]:
    """Hits of A and B: so many samples that both, only A, only B and neither have right."""
    counts = (both, lost, won, neither)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def one_hot(classes: list[int] | Array, count: int = 4, sure: float = 5.0) -> Array:
    return np.eye(count, dtype=np.float32)[classes] * np.float32(sure)


def agresti_min(lost: int, won: int, count: int) -> tuple[float, float]:
    """Wald's interval for paired shares after half a sample is added to each cell of the table."""
    b, c, n = lost + 0.5, won + 0.5, count + 2
    half = 1.96 * math.sqrt((b + c) / n - ((c - b) / n) ** 2) / math.sqrt(n)
    return (c - b) / n - half, (c - b) / n + half


# McNemar


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 5), (10, 3), (3, 10), (58, 40), (400, 300)])
def test_exact_p_is_that_of_a_binomial_test(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1
    assert mcnemar(lost, won)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(1, 0), (4, 4), (10, 3), (3, 10), (58, 40)])
def test_mid_p_counts_half_of_what_was_seen(lost: int, won: int) -> None:
    """By summing: all tables that are less likely, and half of those that are as likely."""
    n, seen = lost + won, math.comb(lost + won, won)
    ways = [math.comb(n, i) for i in range(n + 1)]
    expected = (sum(w for w in ways if w < seen) + sum(w for w in ways if w == seen) / 2) / 2**n
    assert mcnemar(lost, won)[1] == pytest.approx(expected, rel=1e-9)


def test_mid_p_known_value() -> None:
    """One of 8 discordant pairs, an example of Fagerland et al. 2013: exact 0.0703, mid-p 0.0391."""
    assert mcnemar(7, 1) == pytest.approx((0.0703, 0.0391), abs=5e-5)


# Verdicts


@pytest.mark.parametrize(
    ("table", "margin", "verdict"),
    [
        ((900, 10, 60, 30), 0.01, "better"),
        ((990, 0, 10, 0), 0.02, "better"),  # by less than the margin, but better
        ((9900, 20, 20, 60), 0.01, "equivalent"),
        ((9900, 60, 20, 20), 0.01, "equivalent"),  # a little worse
        ((900, 25, 35, 40), 0.01, "no worse"),
        ((900, 60, 10, 30), 0.01, "worse"),
        ((900, 35, 5, 60), 0.025, "worse"),  # by more than nothing for sure, and probably than the margin
        ((900, 35, 10, 55), 0.03, "undecided"),  # loses something for sure, but less than the margin as it looks
        ((90, 4, 3, 3), 0.01, "undecided"),
        ((600, 0, 0, 0), 0.01, "equivalent"),
        ((20, 0, 0, 0), 0.01, "undecided"),  # no change on few samples is not certainty
    ],
)
def test_verdicts_of_tables(table: tuple[int, int, int, int], margin: float, verdict: Decision) -> None:
    _, lost, won, _ = table
    found = lb.compare(*outcomes(*table), metric="hits", margin=margin)
    low, high = agresti_min(lost, won, sum(table))
    assert (found.effect.low, found.effect.high) == pytest.approx((low, high), abs=1e-9)
    assert found.effect.value == pytest.approx((won - lost) / sum(table))
    assert (found.lost, found.won, found.samples) == (lost, won, sum(table))
    assert found.verdict == verdict
    assert found.passed == (verdict in ("better", "equivalent", "no worse"))
    value = (won - lost) / sum(table)
    expected = {  # as the rules say, of the interval by the other formula
        "better": low > 0,
        "equivalent": -margin < low <= 0 and high < margin,
        "no worse": -margin < low <= 0 and high >= margin,
        "worse": low <= -margin and (high < -margin or (high < 0 and value < -margin)),
        "undecided": low <= -margin and high >= -margin and (high >= 0 or value >= -margin),
    }
    assert [name for name, holds in expected.items() if holds] == [verdict]


@pytest.mark.parametrize(
    ("table", "margin", "told"),
    [
        ((990, 0, 10, 0), 0.02, "B is better than A, by less than the margin: hits 100.00 % against 99.00 %, B - A is"),
        ((900, 60, 10, 30), 0.01, "B is worse than A by more than the margin of 1 point: hits 91.00 % against 96.00"),
        ((900, 35, 5, 60), 0.025, "B is worse than A, maybe by less than the margin of 2.5 points"),
        ((900, 35, 10, 55), 0.03, "undecided, B loses something, but maybe less than the margin of 3 points"),
        ((90, 4, 3, 3), 0.01, "undecided, B may lose more than the margin of 1 point, or nothing"),
        ((9900, 60, 20, 20), 0.01, "B is equivalent to A within the margin of 1 point, though worse by a little"),
    ],
)
def test_sentences(table: tuple[int, int, int, int], margin: float, told: str) -> None:
    found = lb.compare(*outcomes(*table), metric="hits", margin=margin)
    assert str(found).startswith(told)
    assert bool(found.need()) == (found.verdict == "undecided")


def test_smaller_is_better_turns_the_verdict_around() -> None:
    generator = np.random.default_rng(0)
    a = generator.exponential(1.0, 400)
    b = a - 0.2 * generator.random(400) * a
    found = lb.compare(a, b, metric="error", margin=0.05)
    assert (found.verdict, found.larger_is_better) == ("better", False)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (found.effect.low, found.effect.high) == pytest.approx((expected.low, expected.high))
    assert found.effect.value == pytest.approx((b - a).mean())
    other = lb.compare(b, a, metric="error", margin=0.05)
    assert other.verdict == "worse"
    assert other.effect.value == -found.effect.value
    assert [row.outcome for row in found.differences] == ["won"] * 400
    assert other.differences[0].index == int((a - b).argmax())


# Accuracy


def test_accuracy_with_its_classes_and_differences() -> None:
    """Worked out by hand: B loses samples 1 and 2 of class 1, wins 4, and is wrong in another way about 6."""
    labels = [0, 1, 1, 1, 2, 2, 3, 3]
    a, b = one_hot([0, 1, 1, 0, 1, 2, 0, 3]), one_hot([0, 2, 2, 0, 2, 2, 1, 3])
    b[2] *= 2  # surer of its error than of the other
    found = lb.compare(a, b, labels, margin=0.1)
    assert (found.metric, found.a.value, found.b.value) == ("accuracy", 5 / 8, 4 / 8)
    shown = [(row.index, row.outcome, row.label, row.a, row.b) for row in found.differences]
    assert shown == [(2, "lost", 1, 1, 2), (1, "lost", 1, 1, 2), (4, "won", 2, 1, 2), (6, "both wrong", 3, 0, 1)]
    assert found.differences[1].b_confidence == pytest.approx(math.exp(5) / (math.exp(5) + 3), abs=1e-5)
    first = found.classes[0]
    assert (first.label, first.samples, first.a, first.b) == (1, 3, 2 / 3, 0)
    assert (first.lost, first.won, first.instead, first.p_value) == (2, 0, 2, 0.5)
    assert [row.label for row in found.classes] == [1, 0, 3, 2]
    assert any("4 classes are 4 looks" in note for note in found.notes)
    json.dumps(asdict(found), allow_nan=False)


def test_class_p_values_are_corrected_as_holm_says() -> None:
    """Expected by the definition: the largest, over all smaller ones, of p times the number of those not smaller."""
    generator = np.random.default_rng(1)
    labels = np.arange(800) % 8
    a, b = (np.where(generator.random(800) < keep, labels, (labels + 1) % 8) for keep in (0.95, 0.85))
    rows = lb.compare(a, b, labels).classes
    p = sorted(row.p_value for row in rows)
    stepped = [max(min(1.0, (8 - j) * p[j]) for j in range(i + 1)) for i in range(8)]
    assert sorted(row.p_corrected for row in rows) == pytest.approx(stepped)
    for row in rows:
        of = labels == row.label
        lost, won = ((a == labels) & (b != labels) & of).sum(), ((b == labels) & (a != labels) & of).sum()
        assert row.p_value == pytest.approx(stats.binomtest(int(won), int(lost + won)).pvalue if lost + won else 1)


@pytest.mark.parametrize(
    ("a", "b", "labels"),
    [
        (np.array([0, 1, 2, 1]), np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])),
        (np.array([0.0, 1, 2, 1]), np.array([0.0, 1, 1, 2]), np.array([0, 1, 2, 2])),  # as a CSV file may have them
        (["x", "y", "z", "y"], ["x", "y", "y", "z"], ["x", "y", "z", "z"]),
        (one_hot([0, 1, 2, 1]), np.array([0, 1, 1, 2]), np.array([0.0, 1, 2, 2])),
        (torch.tensor(one_hot([0, 1, 2, 1])), torch.tensor([0, 1, 1, 2]), torch.tensor([[0], [1], [2], [2]])),
        (
            torch.tensor(one_hot([0, 1, 2, 1])).bfloat16().requires_grad_(),
            one_hot([0, 1, 1, 2]).astype(np.float16),
            [0, 1, 2, 2],
        ),
    ],
)
def test_forms_of_predictions(a: Any, b: Any, labels: Any) -> None:
    found = lb.compare(a, b, labels)
    assert (found.metric, found.a.value, found.b.value) == ("accuracy", 0.75, 0.75)
    assert [(row.index, row.outcome) for row in found.differences] == [(2, "lost"), (3, "won")]


def test_single_scores_are_read_by_sign() -> None:
    a, b = np.array([[2.0], [-1.0], [3.0]]), np.array([[2.0], [1.0], [-3.0]])
    found = lb.compare(a, b, [1, 0, 1])
    assert (found.a.value, found.b.value) == pytest.approx((1, 1 / 3))
    assert found.differences[0].b_confidence == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_confidence_takes_probabilities_as_they_are(scale: float) -> None:
    """Rows that add up to 1 are probabilities, others go through a softmax; an infinite score has none."""
    a = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]) * scale
    b = np.array([[0.1, 0.8, 0.1], [np.inf, 0.5, 0.5]]) * scale
    rows = {row.index: row for row in lb.compare(a, b, [0, 1]).differences}
    softmax = math.exp(1.2) / (math.exp(1.2) + math.exp(0.6) + math.exp(0.2))
    assert rows[0].a_confidence == pytest.approx(0.6 if scale == 1 else softmax, abs=1e-6)
    assert rows[1].b_confidence is None


# Other metrics


def test_outputs_of_length_one_are_embeddings() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(50, 8))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    found = lb.compare(a, a + draw.normal(size=a.shape) * 1e-4)
    assert (found.metric, found.verdict) == ("cosine", "equivalent")
    assert any("taken for embeddings" in note for note in found.notes)
    assert lb.compare(a * 2, a * 2).metric == "agreement"


def test_agreement_is_with_a_and_needs_no_labels() -> None:
    a = np.arange(1000) % 7
    b = np.where(np.arange(1000) < 4, (a + 1) % 7, a)
    found = lb.compare(a, b, margin=0.02)
    wilson = stats.binomtest(996, 1000).proportion_ci(method="wilson")
    assert (found.metric, found.verdict, found.p_value) == ("agreement", "equivalent", None)
    assert (found.effect.low, found.effect.high) == pytest.approx((wilson.low - 1, wilson.high - 1))
    assert [row.index for row in found.differences] == [0, 1, 2, 3]
    assert lb.compare(a, (a + 1) % 7, margin=0.02).verdict == "worse"
    few = lb.compare(a[:100], np.where(np.arange(100) < 3, 9, a[:100]), margin=0.02)
    assert few.verdict == "undecided"  # though the whole interval is below 0, as it always is


@pytest.mark.parametrize("count", [2, 130])
def test_where_nothing_differs_the_plan_is_what_decides(count: int) -> None:
    found = lb.compare([1] * count, [1] * count, metric="hits", margin=0.01)
    assert (found.verdict, found.needed) == ("undecided", found.needed_if_equal)
    assert found.needed is not None
    assert lb.compare([1] * found.needed, [1] * found.needed, metric="hits", margin=0.01).verdict == "equivalent"


def test_cosine_is_with_a_and_needs_no_labels() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(400, 3, 5))
    b = a + 0.1 * generator.normal(size=a.shape)
    found = lb.compare(a, b, metric="cosine", margin=0.02)
    cosines = np.array([float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(*flat(a, b), strict=True)])
    assert (found.verdict, found.p_value, found.a.value) == ("equivalent", None, 1.0)
    assert (found.b.value, found.effect.value) == pytest.approx((cosines.mean(), cosines.mean() - 1))
    half = 1.96 * cosines.std() / 20
    assert (found.effect.low, found.effect.high) == pytest.approx(
        (cosines.mean() - 1 - half, cosines.mean() - 1 + half), abs=half / 5
    )
    assert [row.index for row in found.differences] == np.argsort(cosines, kind="stable").tolist()
    assert {row.outcome for row in found.differences} == {"differs"}
    assert found.differences[0].change == pytest.approx(1 - cosines.min())
    assert lb.compare(a, generator.normal(size=a.shape), metric="cosine").verdict == "worse"
    close = lb.compare(a, b, metric="cosine", margin=-found.effect.value)
    assert close.verdict == "undecided"  # though the whole interval is below 0, as it always is


def flat(*given: Array) -> list[Array]:
    return [one.reshape(len(one), -1) for one in given]


def test_r2_by_the_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=500)
    a = labels + 0.3 * generator.normal(size=500)
    b = a + 0.02 * generator.normal(size=500)
    found = lb.compare(a, b[:, None], labels)
    r2 = [1 - ((one - labels) ** 2).mean() / labels.var() for one in (a, b)]
    assert found.metric == "r2"
    assert (found.a.value, found.b.value) == pytest.approx(r2)
    assert found.verdict == "equivalent"
    change = (b - labels) ** 2 - (a - labels) ** 2
    assert [row.index for row in found.differences[:5]] == np.argsort(-change)[:5].tolist()
    assert found.differences[0].change == pytest.approx(change.max())
    worse = lb.compare(a, labels + 0.6 * generator.normal(size=500), labels)
    assert worse.verdict == "worse"
    assert lb.compare(a, b, labels, seed=1).effect != lb.compare(a, b, labels, seed=2).effect


def error_of(outputs: Array, labels: Array) -> float:
    return float(np.abs(outputs - labels).mean())


@pytest.mark.parametrize(("larger", "verdict"), [(True, "better"), (False, "worse")])
def test_own_metric_has_a_direction(larger: bool, verdict: Decision) -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=300)
    a, b = labels + 0.1, labels + generator.normal(size=300)
    found = lb.compare(a, b, labels, metric=f"{__file__}:error_of", margin=0.1, larger_is_better=larger)
    assert (found.verdict, found.larger_is_better) == (verdict, larger)
    assert found.effect.value == pytest.approx(np.abs(b - labels).mean() - 0.1)
    assert {row.outcome for row in found.differences} == {"differs"}


def error_of_the_rare(outputs: Array, labels: Array) -> float:
    if not (labels > 2).any():
        raise ValueError("nothing rare")
    return error_of(outputs[labels > 2], labels[labels > 2])


def test_resamples_without_a_value_are_told_and_many_are_refused() -> None:
    generator, metric = np.random.default_rng(0), f"{__file__}:error_of_the_rare"
    labels = np.array([3.0] * 4 + [0.0] * 196)
    a, b = (labels + generator.normal(size=200) for _ in range(2))
    (note,) = lb.compare(a, b, labels, metric=metric, margin=0.1).notes
    assert "the metric is not defined on 1.2% of the resamples" in note
    labels[1:4] = 0
    with pytest.raises(DataError, match=r"^metric '.*' is a number on 3\d\d of 500 .* \(ValueError: nothing rare\)"):
        lb.compare(a, b, labels, metric=metric, margin=0.1)


# How many samples


def test_samples_needed_by_hand() -> None:
    """(1.96 + 0.8416)^2 = 7.849: Lu and Bean's formula where B is as good, and what is needed to say worse."""
    assert samples_needed(0, 0.05, 0.1) == math.ceil(7.849 * 0.1 / 0.0025)
    assert samples_needed(-0.02, 0.05, 0.1) == math.ceil(7.84896 * 0.1 / 0.0009)
    assert samples_needed(-0.10, 0.05, 0.1) == math.ceil(7.849 * 0.1 / 0.01)
    assert samples_needed(-0.06, 0.05, 0.1) == math.ceil(0.8416**2 * 0.1 / 0.0001)  # the effect beyond the margin
    assert samples_needed(-0.05, 0.05, 0.1) is None


def decided(lost: float, won: float, margin: float, count: int, draws: int, seed: int) -> tuple[float, float]:
    """Shares of simulated tests that say no worse, and worse, by the rules and the other formula."""
    generator = np.random.default_rng(seed)
    tables = generator.multinomial(count, [lost, won, 1 - lost - won], size=draws)
    b, c, n = tables[:, 0] + 0.5, tables[:, 1] + 0.5, count + 2
    half = 1.96 * np.sqrt((b + c) / n - ((c - b) / n) ** 2) / math.sqrt(n)
    low, high, value = (c - b) / n - half, (c - b) / n + half, (tables[:, 1] - tables[:, 0]) / count
    passed = low > -margin
    worse = ~passed & ((high < -margin) | ((high < 0) & (value < -margin)))
    for row in range(5):  # the package says the same of these
        table = (count - int(tables[row, :2].sum()), int(tables[row, 0]), int(tables[row, 1]))
        found = lb.compare(*outcomes(*table), metric="hits", margin=margin)
        assert (found.passed, found.verdict == "worse") == (passed[row], worse[row])
    return float(passed.mean()), float(worse.mean())


@pytest.mark.parametrize(
    ("both", "lost", "won", "margin"),
    [
        (282, 10, 8, 0.02),  # hardly a loss
        (180, 10, 10, 0.03),  # none
        (184, 6, 10, 0.01),  # a gain
        (80, 12, 8, 0.01),  # a loss beyond the margin
        (450, 30, 20, 0.015),  # just beyond the margin
    ],
)
def test_the_plan_has_the_power_that_it_says(both: int, lost: int, won: int, margin: float) -> None:
    """Fresh tests of as many samples as planned, if the truth is the table."""
    found = lb.compare(*outcomes(both, lost, won), metric="hits", margin=margin)
    assert found.verdict == "undecided"
    assert found.needed is not None
    assert f"{found.needed - found.samples:,} samples more, {found.needed:,} in all" in found.need()
    n = both + lost + won
    effect, spread = (won - lost) / n, (lost + won) / n
    power = decided((spread - effect) / 2, (spread + effect) / 2, margin, found.needed, 20_000, seed=0)
    assert power[0 if effect > -margin else 1] == pytest.approx(0.8, abs=0.02)
    fewer = decided((spread - effect) / 2, (spread + effect) / 2, margin, found.needed // 2, 20_000, seed=0)
    assert fewer[0 if effect > -margin else 1] < 0.7


def test_the_plan_if_the_models_are_equal() -> None:
    found = lb.compare(*outcomes(282, 10, 8), metric="hits", margin=0.02)
    assert found.needed_if_equal is not None
    half = (18 / 300) / 2
    assert decided(half, half, 0.02, found.needed_if_equal, 20_000, seed=1)[0] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.04), (0.02, 0.01)])
def test_a_loss_of_the_margin_passes_in_few_tests(lost: float, won: float) -> None:
    """One end of a 95 % interval: about 2.5 % of all tests err."""
    passed, worse = decided(lost, won, 0.01, 2000, 40_000, seed=2)
    assert 0.015 < passed < 0.03
    assert worse < 0.6  # the effect lies beyond the margin in half of them


def test_the_plan_of_an_agreement_has_its_power() -> None:
    a = np.zeros(300, int)
    found = lb.compare(a, (np.arange(300) < 3).astype(int), metric="agreement", margin=0.02)
    assert found.verdict == "undecided"
    assert found.needed is not None
    otherwise = np.random.default_rng(0).binomial(found.needed, 0.01, 4000)
    seen, counts = np.unique(otherwise, return_counts=True)
    passing = [
        1 - stats.binomtest(int(found.needed - k), found.needed).proportion_ci(method="wilson").low < 0.02 for k in seen
    ]
    assert counts[passing].sum() / 4000 == pytest.approx(0.8, abs=0.05)


def test_the_plan_of_an_error_has_its_power() -> None:
    generator = np.random.default_rng(3)
    a = generator.exponential(1.0, 80)
    b = np.abs(a + generator.normal(0, 0.3, 80))
    found = lb.compare(a, b, metric="error", margin=0.05)
    assert found.verdict == "undecided"
    assert found.needed is not None
    gaps = generator.normal((b - a).mean(), (b - a).std(ddof=1), size=(4000, found.needed))
    high = gaps.mean(1) + 1.96 * gaps.std(1, ddof=1) / math.sqrt(found.needed)
    assert (high < 0.05).mean() == pytest.approx(0.8, abs=0.04)


def test_an_effect_on_the_margin_cannot_be_planned() -> None:
    found = lb.compare(*outcomes(198, 2, 0), metric="hits", margin=0.01)
    assert (found.verdict, found.needed) == ("undecided", None)
    assert "the effect seen lies on the margin" in found.need()


# What is refused


@pytest.mark.parametrize(
    ("a", "b", "labels", "options", "told"),
    [
        ([1, 0, 1], [1, 0], None, {}, "A has 3 samples and B 2, expected the same ones; pair them row by row"),
        ([1], [0], None, {}, "got 1 samples, expected two at least"),
        ([], [], None, {}, "A: got shape [0], expected one row a sample"),
        (1, 0, None, {}, "A: got shape [], expected one row a sample"),
        ([1, 0], [0, 1], [1], {}, "got 1 labels for 2 samples, expected one each"),
        ([1, 0], [0, 1], None, {"metric": "accuracy"}, "metric 'accuracy' needs labels, and there are none"),
        ([1, 0], [0, 1], None, {"metric": "r2"}, "metric 'r2' needs labels"),
        ([1, 0], [0, 1], None, {"metric": "m:f", "margin": 1}, "metric 'm:f' needs labels"),
        ([1, 0], [0, 1], None, {"metric": "acuracy"}, "metric 'acuracy' is unknown; expected accuracy, agreement, c"),
        ([1.5, 0], [0, 1], None, {}, "got numbers without labels; give labels, or say what they are: metric error"),
        ([[1.5], [0]], [[0.5], [1]], None, {}, "got numbers without labels; give labels, or say what they are"),
        ([1.5, 0], [0, 1], [0, 1], {}, "A: got numbers of shape [2], expected scores [N, classes] or classes [N]"),
        ([1, 0], [0, 1], ["x", "y"], {}, "A predicts numbers, and the labels are text; name classes the same way"),
        (["x", "y"], ["x", "y"], [0, 1], {}, "A predicts text, and the labels are numbers; name classes the same"),
        (["x", "y"], [1, 0], None, {"metric": "agreement"}, "one of A and B predicts text and the other numbers"),
        ([1, 0], [0, 1], [0.5, 1], {"metric": "accuracy"}, "labels: got float64 of shape [2], expected one class a"),
        ([1, 0], [0, 1], [[0, 1], [1, 0]], {}, "labels: got int64 of shape [2, 2], expected one class a sample"),
        (one_hot([1, 0]), one_hot([1, 1]), [1, 4], {}, "labels go from 1 to 4, and A has 4 classes, 0 to 3; check"),
        (one_hot([1, 0]), one_hot([1, 1]), [-1, 0], {}, "labels go from -1 to 0, and A has 4 classes, 0 to 3"),
        ([[0.2], [0.7]], [[0.1], [0.2]], [0, 1], {}, "A returns one number a sample, all from 0 to 1"),
        ([1, 2], [0, 1], None, {"metric": "hits"}, "metric hits: expected 1 for a hit and 0 for a miss"),
        (
            [1.0, 2.0],
            [1.0, 2.0],
            None,
            {"metric": "cosine"},
            "metric cosine: A is float64 of shape [2], expected",
        ),
        ([[1, 2], [1, 2]], [[1], [2]], None, {"metric": "cosine"}, "metric cosine: A has shape [2, 2] and B [2, 1]"),
        ([1, -2], [0, 1], None, {"metric": "error", "margin": 1}, "metric error: A needs one finite number a sample"),
        ([1.0, np.inf], [0, 1], None, {"metric": "error", "margin": 1}, "metric error: A needs one finite number"),
        ([1.0, 2], [np.nan, 1], None, {}, "B holds NaN in 1 of 2 samples, first in row 0; check model and data"),
        ([1.0, 2], [0, 1], [0.5, np.nan], {}, "labels holds NaN in 1 of 2 samples, first in row 1"),
        ([1.0, np.inf], [0, 1.5], [0.5, 1], {}, "metric r2: A holds text or infinity, expected numbers"),
        ([1.0, 2], [1, 1.5], [0.5, 0.5], {}, "metric 'r2' is nan on 2 samples, expected a number"),
        ([[1.0, 2], [2, 3]], [1, 1.5], [0.5, 1.5], {"metric": "r2"}, "metric r2: got outputs [2, 2] and labels [2]"),
        ([1 + 2j, 2], [1, 1.5], [0, 1], {}, "A: got complex128, expected numbers, classes or text"),
        ([1, 0], [0, 1], None, {"margin": 0}, "margin is 0, expected a number above 0"),
        ([1, 0], [0, 1], None, {"margin": -0.1}, "margin is -0.1, expected a number above 0"),
        ([1, 0], [0, 1], None, {"margin": math.nan}, "margin is nan, expected a number above 0"),
        ([1, 0], [0, 1], None, {"margin": 1}, "margin is 1, and hits is a share from 0 to 1; write 0.01 for a point"),
        ([1, 2], [0, 1], None, {"metric": "error"}, "metric 'error' has a unit of its own; give the margin"),
        ([1, 0], [0, 1], [1, 1], {"metric": "m:f"}, "metric 'm:f' has a unit of its own; give the margin"),
        ([1, 0], [0, 1], [1, 1], {"larger_is_better": False}, "metric 'accuracy': larger is better; leave the"),
        ([1, 0], [0, 1], [1, 1], {"metric": "nowhere:f", "margin": 1}, "reference 'nowhere:f'"),
    ],
)
def test_refused(a: Any, b: Any, labels: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError) as refused:
        lb.compare(a, b, labels, **options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "kpi" not in str(refused.value)


def test_a_total_failure_is_noted() -> None:
    assert any("neither has a single sample right" in note for note in lb.compare([1, 2], [2, 1], [0, 0]).notes)
    told = "there are no labels: 1 was taken for a hit and 0 for a miss"
    assert lb.compare([1, 0], [0, 1]).notes[0] == told


@pytest.mark.parametrize(("lost", "won", "few"), [(0, 0, True), (10, 9, True), (10, 10, False), (40, 0, False)])
def test_few_samples_that_tell_are_noted(lost: int, won: int, few: bool) -> None:
    notes = lb.compare(*outcomes(400, lost, won)).notes
    assert any(f"{lost + won} samples are right in one model alone" in note for note in notes) == few


def test_swapping_the_sides_swaps_what_is_found() -> None:
    for table in itertools.product((50, 400), (2, 9), (3, 20)):
        one, other = lb.compare(*outcomes(*table)), lb.compare(*outcomes(*table)[::-1])
        assert (one.lost, one.won, one.p_value) == (other.won, other.lost, other.p_value)
        assert one.effect.low == pytest.approx(-other.effect.high)


def test_the_example_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/compare.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    exec(code, {})
    told = page.split("```text\n")[1].split("```")[0].splitlines()
    for shown, line in zip(told, capsys.readouterr().out.splitlines(), strict=True):
        assert line.startswith(shown.removesuffix("..."))
