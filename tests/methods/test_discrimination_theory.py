"""What codes of known distributions gain, against the method sheet's values, brute force and the definition of D."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import norm

from lowbit.errors import FeatureError
from lowbit.methods.discrimination.theory import (
    Code,
    Interval,
    Noise,
    best_threshold,
    coded,
    crossover,
    efficiency,
    improving,
    original,
)

Array = npt.NDArray[np.float64]
CODES: list[Code] = ["binary", "ternary"]
NOISES = {"Gaussian": norm, "logistic": stats.logistic(), "t5": stats.t(5), "t3": stats.t(3), "Laplace": stats.laplace}


class Row(NamedTuple):
    """Of the sheet's table."""

    mu: float
    original: float
    binary: float
    tau: float
    ternary: float
    binary_interval: Interval | None
    ternary_interval: Interval | None


TABLE = [
    Row(0.10, 0.5101, 0.5065, 0.606, 0.5082, None, None),
    Row(0.30, 0.5989, 0.5649, 0.554, 0.5820, None, None),
    Row(0.50, 0.8333, 0.7351, 0.454, 0.7933, None, None),
    Row(0.60, 1.0625, 0.9264, 0.387, 1.0272, None, None),
    Row(0.66, 1.2718, 1.1255, 0.341, 1.2684, None, None),
    Row(0.67, 1.3146, 1.1694, 0.333, 1.3213, None, Interval(0.267, 0.400)),
    Row(0.70, 1.4608, 1.3280, 0.308, 1.5123, None, Interval(0.153, 0.467)),
    Row(0.76, 1.8674, 1.8484, 0.255, 2.1355, None, Interval(0.010, 0.510)),
    Row(0.77, 1.9564, 1.9799, 0.246, 2.2923, Interval(-0.076, 0.076), Interval(0, 0.513)),
    Row(0.80, 2.2778, 2.5160, 0.217, 2.9306, Interval(-0.192, 0.192), Interval(0, 0.518)),
    Row(0.85, 3.1036, 4.4536, 0.167, 5.2270, Interval(-0.283, 0.283), Interval(0, 0.517)),
    Row(0.90, 4.7632, 12.593, 0.113, 14.821, Interval(-0.347, 0.347), Interval(0, 0.514)),
    Row(0.95, 9.7564, 212.8, 0.056, 249.1, Interval(-0.440, 0.440), Interval(0, 0.545)),
]


def by_shares(mu: float, tau: Array, code: Code, noise: str) -> Array:
    """D by the sheet's formulas as they stand, with noise that scipy scales."""
    s = math.sqrt(1 - mu**2)
    of = {
        "Gaussian": norm(scale=s),
        "logistic": stats.logistic(scale=s * math.sqrt(3) / math.pi),
        "t5": stats.t(5, scale=s * math.sqrt(3 / 5)),
        "t3": stats.t(3, scale=s / math.sqrt(3)),
        "Laplace": stats.laplace(scale=s / math.sqrt(2)),
    }[noise]
    p, q = of.cdf(mu - tau), of.cdf(-mu - tau)
    if code == "binary":
        return np.asarray((p + q - 2 * p * q) / (2 * p * (1 - p) + 2 * q * (1 - q)))
    return np.asarray(0.5 + (p - q) ** 2 / (p + q - (p - q) ** 2))


def encode(x: Array, tau: float, code: Code) -> Array:
    return np.where(x > tau, 1.0, 0.0) if code == "binary" else np.sign(x) * (np.abs(x) > tau)


def by_definition(x: Array, x2: Array, y: Array, y2: Array) -> tuple[float, float]:
    """D = E[(X - Y)^2] / (E[(X - X')^2] + E[(Y - Y')^2]) of independent draws, and its relative standard error."""
    between, first, second = (x - y) ** 2, (x - x2) ** 2, (y - y2) ** 2
    within = first.mean() + second.mean()
    error = math.hypot(between.std() / between.mean(), math.hypot(first.std(), second.std()) / within)
    return float(between.mean() / within), error / math.sqrt(len(x))


def close(found: object, *expected: float, rel: float = 0, abs: float = 0) -> bool:
    return bool(found == pytest.approx(expected if len(expected) > 1 else expected[0], rel=rel, abs=abs))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.mu:.2f}")
def test_gaussian_table(row: Row) -> None:
    rel, abs = (5e-4, 0.0) if row.mu >= 0.9 else (0.0, 5e-4)
    assert close(original(row.mu), row.original, rel=rel, abs=abs)
    assert close(original(row.mu), (1 + row.mu**2) / (2 * (1 - row.mu**2)), rel=1e-12)
    tau, d = best_threshold(row.mu, "binary")
    assert tau == 0
    assert close(d, row.binary, rel=rel, abs=abs)
    tau, d = best_threshold(row.mu, "ternary")
    assert close(tau, row.tau, abs=1e-3)
    assert close(d, row.ternary, rel=rel, abs=abs)
    expected: list[tuple[Code, Interval | None]] = [("binary", row.binary_interval), ("ternary", row.ternary_interval)]
    for code, interval in expected:
        found = improving(row.mu, code)
        if interval is None or found is None:
            assert found is interval
        else:
            assert close((found.low, found.high), interval.low, interval.high, abs=1e-3)


def test_gaussian_crossovers() -> None:
    binary, ternary = crossover("binary"), crossover("ternary")
    assert (binary, ternary) == pytest.approx((0.764788, 0.663512), abs=2e-6)
    for mu, s, a, distance, accuracy in [
        (binary, 0.6443, 1.18704, 2.37, 88.2),
        (ternary, 0.7482, 0.88685, 1.77, 81.2),
    ]:
        deviation = math.sqrt(1 - mu**2)
        assert deviation == pytest.approx(s, abs=1e-4)
        assert mu / deviation == pytest.approx(a, abs=1e-5)
        assert 2 * mu / deviation == pytest.approx(distance, abs=5e-3)
        assert 100 * norm.cdf(mu / deviation) == pytest.approx(accuracy, abs=0.05)
    tau, d = best_threshold(ternary, "ternary")
    assert close(tau, 0.338, abs=1e-3)
    assert close(d, 1.2865, abs=5e-4)


def test_binary_crossover_is_the_exact_condition() -> None:
    def margin(a: float) -> float:
        p = norm.cdf(a)
        return float((2 * p - 1) ** 2 / (2 * p * (1 - p)) - 2 * a**2)

    a = brentq(margin, 0.5, 2)
    assert crossover("binary") == pytest.approx(a / math.sqrt(1 + a**2), abs=1e-9)


@pytest.mark.parametrize(("code", "loss", "near"), [("binary", -0.13, 0.6), ("ternary", -0.05, 0.5)])
def test_worst_gaussian_loss(code: Code, loss: float, near: float) -> None:
    means = np.linspace(0.05, 0.95, 91)
    changes = [best_threshold(float(mu), code)[1] / original(float(mu)) - 1 for mu in means]
    assert min(changes) == pytest.approx(loss, abs=5e-3)
    assert means[int(np.argmin(changes))] == pytest.approx(near, abs=0.05)


@pytest.mark.parametrize(
    ("noise", "binary", "ternary", "exact"),
    [
        ("Gaussian", 2 / math.pi, 0.810, 3e-3),
        ("logistic", 0.82, 0.975, 5e-3),
        ("t5", 0.96, 1.13, 5e-3),
        ("t3", 1.62, 1.84, 5e-3),
        ("Laplace", 2.0, 2.0, 1e-9),
    ],
)
def test_efficiencies(noise: str, binary: float, ternary: float, exact: float) -> None:
    tau, ratio = efficiency("binary", NOISES[noise])
    assert tau == 0
    assert ratio == pytest.approx(binary, abs=exact)
    tau, ratio = efficiency("ternary", NOISES[noise])
    assert ratio == pytest.approx(ternary, abs=exact)
    if noise == "Gaussian":
        assert tau == pytest.approx(0.612, abs=1e-3)
    if noise == "Laplace":
        assert tau == 0
    mu = 0.003  # the limit is one of the gains at small mu
    gain = (by_shares(mu, np.array(tau), "ternary", noise) - 0.5) / (original(mu) - 0.5)
    assert gain == pytest.approx(ratio, rel=5e-3)


@pytest.mark.parametrize(
    ("noise", "binary", "ternary"),
    [("logistic", 0.65, 0.31), ("t5", 0.35, 0.0), ("t3", 0.0, 0.0), ("Laplace", 0.0, 0.0)],
)
def test_crossovers_by_shape_of_noise(noise: str, binary: float, ternary: float) -> None:
    thresholds = np.linspace(0, 2, 4001)
    expected: list[tuple[Code, float]] = [("binary", binary), ("ternary", ternary)]
    for code, mu in expected:
        found = crossover(code, NOISES[noise])
        assert found == pytest.approx(mu, abs=5e-3)
        if mu == 0:
            assert found == 0
            sides = [0.02, 0.2, 0.4, 0.6, 0.8]
        else:
            assert (by_shares(found - 1e-3, thresholds, code, noise) < original(found - 1e-3)).all()
            sides = [found + 1e-3, (found + 1) / 2]
        for side in sides:
            assert by_shares(side, thresholds, code, noise).max() > original(side)


def test_gains_may_come_and_go_with_mu() -> None:
    shape = stats.gennorm(1.4)  # between Laplace and Gaussian
    assert efficiency("binary", shape)[1] > 1
    assert improving(0.01, "binary", shape) is not None
    assert improving(0.5, "binary", shape) is None
    mu = crossover("binary", shape)
    assert 0.5 < mu < 0.7
    assert improving(mu - 1e-3, "binary", shape) is None
    assert improving(mu + 1e-3, "binary", shape) is not None


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("mu", [0.2, 0.5, 0.7, 0.9])
def test_thresholds_against_brute_force(mu: float, code: Code, noise: str) -> None:
    thresholds = np.linspace(-2 if code == "binary" else 0, 2, 8001)
    expected = by_shares(mu, thresholds, code, noise)
    np.testing.assert_allclose(coded(mu, thresholds, code, NOISES[noise]), expected, rtol=1e-9)

    tau, d = best_threshold(mu, code, NOISES[noise])
    assert abs(tau) == pytest.approx(abs(thresholds[np.argmax(expected)]), abs=1e-3)
    assert d == pytest.approx(expected.max(), rel=1e-6)

    interval = improving(mu, code, NOISES[noise])
    better = thresholds[expected > original(mu)]
    if interval is None:
        assert not len(better)
        return
    assert (interval.low, interval.high) == pytest.approx((better[0], better[-1]), abs=1e-3)
    for edge in {interval.low, interval.high} - {0.0}:
        assert by_shares(mu, np.array(edge), code, noise) == pytest.approx(original(mu), rel=1e-6)


@pytest.mark.parametrize("noise", ["Gaussian", "Laplace", "t5"])
@pytest.mark.parametrize("mu", [0.15, 0.5, 0.8])
def test_closed_forms_against_draws(mu: float, noise: str) -> None:
    generator, draws = np.random.default_rng(0), 400_000
    raw = {
        "Gaussian": generator.standard_normal((4, draws)),
        "Laplace": generator.laplace(size=(4, draws)) / math.sqrt(2),
        "t5": generator.standard_t(5, (4, draws)) * math.sqrt(3 / 5),
    }[noise]
    x = math.sqrt(1 - mu**2) * raw + mu * np.array([[1], [1], [-1], [-1]])
    d, error = by_definition(*x)
    assert error < 0.01
    assert d == pytest.approx(original(mu), rel=5 * error)
    for code in CODES:
        for tau in [0.0, 0.3, 0.9]:
            codes = encode(x, tau, code)
            expected = coded(mu, tau, code, NOISES[noise])
            d, error = by_definition(*codes)
            assert error < 0.005
            assert d == pytest.approx(expected, rel=5 * error)
            # the plug-in: two sets of draws a class are one
            delta, variances = codes[:2].mean() - codes[2:].mean(), codes[:2].var() + codes[2:].var()
            assert (1 + delta**2 / variances) / 2 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("noise", NOISES)
def test_binary_is_even_and_ternary_starts_at_it(noise: str) -> None:
    thresholds = np.linspace(0, 3, 31)
    for mu in [0.01, 0.4, 0.95]:
        positive = coded(mu, thresholds, "binary", NOISES[noise])
        np.testing.assert_allclose(positive, coded(mu, -thresholds, "binary", NOISES[noise]), rtol=1e-12)
        assert coded(mu, 0, "ternary", NOISES[noise]) == pytest.approx(positive[0], rel=1e-12)


def test_the_scale_of_noise_does_not_count() -> None:
    for code in CODES:
        np.testing.assert_allclose(
            coded(0.6, [0.1, 0.7], code, stats.t(3, scale=7)), coded(0.6, [0.1, 0.7], code, stats.t(3)), rtol=1e-12
        )
        assert efficiency(code, norm(scale=0.01)) == pytest.approx(efficiency(code), rel=1e-9)


def test_noise_with_two_peaks_has_its_best_binary_threshold_off_zero() -> None:
    shape = stats.dweibull(2.0)  # no density at 0; standard deviation 1
    mu, s = 0.5, math.sqrt(0.75)
    thresholds = np.linspace(0, 3, 6001)
    p, q = shape.sf((thresholds - mu) / s), shape.sf((thresholds + mu) / s)
    expected = 0.5 + (p - q) ** 2 / (2 * (p * (1 - p) + q * (1 - q)))
    tau, d = best_threshold(mu, "binary", shape)
    assert tau == pytest.approx(thresholds[np.argmax(expected)], abs=1e-3)
    assert d == pytest.approx(expected.max())
    assert tau > 0.5

    ternary = improving(mu, "ternary", shape)
    expected = 0.5 + (p - q) ** 2 / (p + q - (p - q) ** 2)
    better = thresholds[expected > original(mu)]
    assert ternary is not None
    assert (ternary.low, ternary.high) == pytest.approx((better[0], better[-1]), abs=1e-3)
    assert ternary.low > 0.5


def test_codes_that_say_nothing_or_everything() -> None:
    assert coded(0.5, [100.0, math.inf], "binary").tolist() == [0.5, 0.5]
    assert coded(0.5, 100.0, "ternary") == 0.5
    uniform = stats.uniform(-1, 2)  # reaches sqrt(3) standard deviations: above mu = 0.87 classes do not overlap
    assert coded(0.9, [0.0, 5.0], "binary", uniform).tolist() == [math.inf, 0.5]
    assert best_threshold(0.9, "ternary", uniform) == (0, math.inf)
    interval = improving(0.9, "binary", uniform)
    assert interval is not None
    assert interval.low == -interval.high


@pytest.mark.parametrize("code", CODES)
def test_means_near_the_ends(code: Code) -> None:
    for mu in [0.99, 0.999]:  # a tail taken as 1 - p is rounding here, or nothing
        tau, d = best_threshold(mu, code)
        assert math.isfinite(d)
        assert 0 <= tau < 0.02
        assert improving(mu, code) is not None
    a = 0.99 / math.sqrt(1 - 0.99**2)
    assert coded(0.99, 0, code) == pytest.approx(1 / (4 * norm.sf(a)), rel=1e-9)

    limit, ratio = efficiency(code)
    for mu in [1e-4, 1e-6, 1e-7, 1e-12, 1e-300]:
        tau, d = best_threshold(mu, code)
        assert tau == pytest.approx(limit, abs=1e-3)
        assert d - 0.5 == pytest.approx(ratio * mu**2, rel=1e-6, abs=2e-16)
        assert improving(mu, code) is None
        assert improving(mu, code, stats.t(3)) is not None


@pytest.mark.parametrize("mu", [0.0, 1.0, -0.3, 1.2, math.nan])
def test_mu_out_of_range(mu: float) -> None:
    with pytest.raises(FeatureError, match=r"mu: got \S+, expected a number between 0 and 1"):
        original(mu)
    for code in CODES:
        with pytest.raises(FeatureError, match="mu: got"):
            coded(mu, 0.1, code)
        with pytest.raises(FeatureError, match="mu: got"):
            best_threshold(mu, code)
        with pytest.raises(FeatureError, match="mu: got"):
            improving(mu, code)


def test_bad_thresholds() -> None:
    with pytest.raises(FeatureError, match=r"threshold -0\.2 of a ternary code is negative, expected 0 or more"):
        coded(0.5, [0.1, -0.2], "ternary")
    for code in CODES:
        with pytest.raises(FeatureError, match="threshold: got NaN"):
            coded(0.5, math.nan, code)


def test_bad_codes() -> None:
    with pytest.raises(FeatureError, match="got 'quaternary', expected 'binary' or 'ternary'"):
        crossover("quaternary")  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [stats.expon(-1), norm(0.5), stats.t(2), stats.t(1)], ids=["skew", "off", "t2", "t1"])
def test_bad_noise(noise: Noise) -> None:
    for code in CODES:
        with pytest.raises(FeatureError, match="finite deviation and a distribution symmetric around 0"):
            efficiency(code, noise)
