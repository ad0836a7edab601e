"""Statistics of drift against scipy's, and against draws of known chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lowbit.drift import Means, Shares, chi_squared, clustered, distance, fell, interval, rose, stability_index


def shares_of(rows: np.ndarray) -> Shares:
    return Shares.measured(rows.mean(0), np.cov(rows.T), len(rows))


def test_stability_index() -> None:
    assert stability_index([0.5, 0.5], [0.25, 0.75]) == pytest.approx(-0.25 * np.log(0.5) + 0.25 * np.log(1.5))
    assert stability_index([[0.2, 0.8], [1.0, 0.0]], [[0.2, 0.8], [1.0, 0.0]]).tolist() == [0, 0]
    assert stability_index([1.0, 0.0], [0.9, 0.1]) == pytest.approx(-0.1 * np.log(0.9) + 0.0999 * np.log(1000))


def test_chi_squared_is_that_of_scipy() -> None:
    old, new = np.array([30, 50, 20, 0]), np.array([40, 10, 25, 0])
    expected = stats.chi2_contingency(np.stack([old, new])[:, :3], correction=False).pvalue
    assert chi_squared(old / 100, 100, new / 75, 75) == pytest.approx(expected)


def test_one_draw_a_sample_is_chi_squared() -> None:
    """Then the correction is none: eigenvalues of 1, and as many degrees of freedom as shares but one."""
    generator = np.random.default_rng(0)
    old, new = (np.eye(4)[generator.choice(4, count, p=(0.4, 0.3, 0.2, 0.1))] for count in (4000, 3000))
    assert [shares_of(old).total, shares_of(old).squares] == pytest.approx([3, 3], rel=1e-3)
    assert clustered(shares_of(old), shares_of(new)) == pytest.approx(
        float(chi_squared(old.mean(0), 4000, new.mean(0), 3000)), rel=0.02
    )


def test_dependent_draws_count_once() -> None:
    """A thousand equal draws a sample: chi-squared of draws is sure of anything, of samples holds its level."""
    generator = np.random.default_rng(1)
    wrong = right = 0
    for _ in range(400):
        rows = generator.dirichlet((2, 2, 1, 1, 1), 150)
        old, new = rows[:100], rows[100:]
        wrong += bool(chi_squared(old.mean(0), 100_000, new.mean(0), 50_000) < 0.05)
        right += clustered(shares_of(old), shares_of(new)) < 0.05
    assert wrong > 300
    assert right <= stats.binom.ppf(0.999, 400, 0.05)
    assert right >= 4  # not so careful that it sees nothing
    moved = generator.dirichlet((2, 1, 2, 1, 1), 50)
    assert clustered(shares_of(old), shares_of(moved)) < 1e-3


def test_samples_all_alike() -> None:
    old, new = (Shares(np.array(one), 50, 0.0, 0.0) for one in ([1.0, 0.0], [0.5, 0.5]))
    assert clustered(old, old) == 1
    assert clustered(old, new) == 0


def test_rose_is_the_t_test_for_sets_of_one_size() -> None:
    generator = np.random.default_rng(2)
    old, new = generator.normal(0, 1, 40), generator.normal(0.5, 1, 40)
    found = rose((old.mean(), old.std(ddof=1), 40), (new.mean(), new.std(ddof=1), 40))
    t = stats.ttest_ind(new, old).statistic
    assert found == pytest.approx(stats.t.sf(t, 39))  # half the degrees of freedom, which is more careful
    assert rose((0.5, 0.1, 40), (0.4, 0.1, 40)) == 1
    assert rose((0.0, 0.0, 40), (0.1, 0.0, 40)) == 0


def test_fell_is_fishers_test() -> None:
    expected = stats.fisher_exact([[95, 5], [80, 20]], alternative="greater").pvalue
    assert fell((95, 100), (80, 100)) == pytest.approx(expected)


def test_interval_is_wilsons_for_one_draw_a_sample() -> None:
    expected = stats.binomtest(12, 80).proportion_ci(method="wilson")
    assert list(interval(0.15, (0.15 * 0.85) ** 0.5, 80)) == pytest.approx([expected.low, expected.high], rel=1e-5)
    low, high = interval(0.15, 0.05, 80)
    assert expected.low < low < 0.15 < high < expected.high
    none = stats.binomtest(0, 80).proportion_ci(method="wilson")
    assert list(interval(0.0, 0.0, 80)) == pytest.approx([0, none.high], rel=1e-5)


def test_distance_is_hotellings() -> None:
    """Against the equal statement that a regression of the set on the variables explains nothing."""
    generator = np.random.default_rng(3)
    old, new = generator.normal(size=(60, 3)), generator.normal((0.5, 0, 0), size=(40, 3))
    x = np.concatenate([old, new])
    side = np.repeat([0.0, 1.0], [60, 40])
    wide = np.column_stack([x, np.ones(100)])
    residual = side - wide @ np.linalg.lstsq(wide, side, rcond=None)[0]
    r2 = 1 - (residual**2).sum() / ((side - side.mean()) ** 2).sum()
    expected = stats.f.sf(r2 / 3 / ((1 - r2) / 96), 3, 96)
    apart, p = distance(*(Means(one.mean(0), np.cov(one.T), len(one)) for one in (old, new)))
    assert p == pytest.approx(expected, rel=0.02)  # but for the ridge
    assert apart == pytest.approx(0.5, abs=0.35)


def test_distance_without_spread() -> None:
    still = Means(np.array([1.0, 0.0]), np.zeros((2, 2)), 50)
    assert distance(still, still) == (0, 1)
    assert distance(Means(np.zeros(1), np.zeros((1, 1)), 50), Means(np.zeros(1), np.zeros((1, 1)), 50)) == (0, 1)
    apart, p = distance(still, Means(np.array([1.01, 0.0]), np.zeros((2, 2)), 50))
    assert (apart > 100, p < 1e-9) == (True, True)
