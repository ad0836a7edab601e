"""What codes of a known distribution can gain: where a threshold keeps two classes further apart than their data.

The model is one feature of two classes as frequent as each other, at +mu and -mu, with the same noise of standard
deviation s around both, and mu^2 + s^2 = 1: a standardized feature whose correlation with the label is mu. Everything
follows from a = mu / s, from t = tau / s, and from how often either class lies above the threshold, p and q:

    p = Pr(noise > t - a),  q = Pr(noise > t + a)         of noise scaled to standard deviation 1
    data       F = 2 a^2
    binary     F = (p - q)^2 / (p (1 - p) + q (1 - q))                     of 1[x > tau]
    ternary    F = 2 (p - q)^2 / (p (1 - p) + q (1 - q) + 2 p q)           of sign(x) 1[|x| > tau], tau >= 0
    D = (1 + F) / 2

So a code gains where its F is more than that of the data, and by how much is one number, the gain F_code / F. As mu
goes to 0, (p - q) / 2a goes to the density f(t), and the gain to 4 f(0)^2 (binary, tau = 0) and 2 f(t)^2 / Pr(noise >
t) (ternary): it is the shape of the noise which decides. For Gaussian noise a code gains only where classes are far
apart, for heavy tails at every mu; so no rule for mu holds on data of unknown shape, and `measure` is for those.

References:
    Discrimination of binary and ternary feature quantization, 2025, https://arxiv.org/abs/2504.13792: the model and D
        for Gaussian noise. The forms by F, other noise, and the limits are derived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from lowbit.errors import FeatureError

Code = Literal["binary", "ternary"]
Array = npt.NDArray[np.float64]

_STEPS = 4000  # of the grid of thresholds on which a search starts
_TAIL = 1e-4  # share of the noise beyond the last of them
_NEAR = 1e-7  # of a, below which p - q is mostly rounding, and the density says the same
_ROUNDING = 1e-8  # of a gain: by less, no threshold is better than 0


class Noise(Protocol):
    """Noise around a class: a continuous distribution as `scipy.stats` freezes it, symmetric around 0."""

    def std(self) -> float:
        """Standard deviation."""

    def pdf(self, x: npt.ArrayLike) -> Array:
        """Density."""

    def cdf(self, x: npt.ArrayLike) -> Array:
        """Share at or below `x`."""

    def sf(self, x: npt.ArrayLike) -> Array:
        """Share above `x`."""

    def isf(self, q: npt.ArrayLike) -> Array:
        """What the share `q` lies above."""


@dataclass(frozen=True)
class Interval:
    """Thresholds between `low` and `high`, in standard deviations of the feature."""

    low: float
    high: float


def original(mu: float) -> float:
    """D of the data themselves, whatever the shape of their noise.

    Raises:
        FeatureError: `mu` is not between 0 and 1.
    """
    return 0.5 + _signal(mu) ** 2


def coded(mu: float, tau: npt.ArrayLike, code: Code, noise: Noise = norm) -> Array:
    """D of a code at each threshold of `tau`, in the shape of `tau`.

    A code that is the same for every sample has D = 1/2, and one that tells classes apart without error (as far as
    floats can tell) infinity.

    Args:
        mu: mean of a class, in standard deviations of the feature.
        tau: thresholds, in the same unit.
        code: "binary" or "ternary".
        noise: its shape, scaled to the standard deviation that `mu` leaves to it.

    Raises:
        FeatureError: `mu` is not between 0 and 1, a threshold is NaN, a ternary one is negative, or the noise is not
            symmetric around 0 or has no finite standard deviation.
    """
    a, thresholds = _signal(mu), np.asarray(tau, dtype=np.float64)
    if np.isnan(thresholds).any():
        raise FeatureError("threshold: got NaN, expected numbers in standard deviations of the feature")
    if code == "ternary" and (thresholds < 0).any():
        raise FeatureError(
            f"threshold {thresholds.min():g} of a ternary code is negative, expected 0 or more; it is set on both sides"
        )
    return np.asarray(0.5 + a**2 * _gains(code, noise)(a, thresholds / _deviation(mu)))


def best_threshold(mu: float, code: Code, noise: Noise = norm) -> tuple[float, float]:
    """The threshold of the highest D, and that D; the one nearest to 0 of several, and not below 0.

    Raises:
        FeatureError: as `coded`.
    """
    a, gains = _signal(mu), _gains(code, noise)
    t, gain = _peak(gains, a, noise)
    return t * _deviation(mu), 0.5 + a**2 * gain


def improving(mu: float, code: Code, noise: Noise = norm) -> Interval | None:
    """The thresholds around the best one at which the code's D is more than the data's; None if there are none.

    D of a binary code is that of the threshold's mirror image, so its interval is symmetric; where it does not hold 0
    (noise with several peaks) it has a mirror image itself, which is not told.

    Raises:
        FeatureError: as `coded`.
    """
    a, s, gains = _signal(mu), _deviation(mu), _gains(code, noise)
    best, gain = _peak(gains, a, noise)
    if gain <= 1:
        return None
    grid = _grid(a, noise)
    losing = grid[gains(a, grid) <= 1]
    below, above = losing[losing < best], losing[losing > best]
    # nothing is gained at the grid's end, but with noise cut off sharply and mu near 0, where all ends there
    high = _root(lambda t: gains(a, t), best, above[0]) if len(above) else float(grid[-1])
    if len(below):
        return Interval(s * _root(lambda t: gains(a, t), below[-1], best), s * high)
    return Interval(-s * high if code == "binary" else 0.0, s * high)


def crossover(code: Code, noise: Noise = norm) -> float:
    """The mu from which on some threshold improves on the data: 0 if it does at every mu.

    Some noise gains below a first mu, loses, and gains again (shapes between Laplace and Gaussian; sharp cuts): what
    comes back is the last mu at which nothing improves. Steps of 0.01 are looked at, so shorter losses go unseen.

    Raises:
        FeatureError: the noise is not symmetric around 0, or has no finite standard deviation.
    """
    gains = _gains(code, noise)
    # the last step is for a bracket alone: tails of a finite variance fall faster than 1 / a^2, so all gain near 1
    steps = np.append(np.linspace(0, 0.99, 100), 1 - 1e-9)
    losing = [i for i, mu in enumerate(steps[:-1]) if _peak(gains, mu / _deviation(mu), noise)[1] <= 1]
    if not losing:
        return 0.0
    return _root(lambda mu: _peak(gains, mu / _deviation(mu), noise)[1], steps[losing[-1]], steps[losing[-1] + 1])


def efficiency(code: Code, noise: Noise = norm) -> tuple[float, float]:
    """The best threshold as mu goes to 0, and its gain F_code / F there: more than 1 if weak features gain.

    It has no bound for noise cut off sharply (uniform), where what comes back is the end of the search.

    Raises:
        FeatureError: the noise is not symmetric around 0, or has no finite standard deviation.
    """
    return _peak(_gains(code, noise), 0.0, noise)


def _signal(mu: float) -> float:
    """mu / s = a, checked."""
    if not 0 < mu < 1:
        raise FeatureError(
            f"mu: got {mu:g}, expected a number between 0 and 1; it is the mean of a class in standard deviations of "
            "the whole feature, or the absolute correlation of feature and label"
        )
    return mu / _deviation(mu)


def _deviation(mu: float) -> float:
    """Standard deviation s of the noise: the form keeps digits near 1."""
    return float(np.sqrt((1 - mu) * (1 + mu)))


def _gains(code: Code, noise: Noise) -> Callable[[float, Array], Array]:
    """F_code / F as a function of a (0 is the limit) and of t, of any shape."""
    if code not in ("binary", "ternary"):
        raise FeatureError(f"code: got {code!r}, expected 'binary' or 'ternary'")
    deviation = float(noise.std())
    points = deviation * np.array([0.1, 0.5, 1, 2]) if np.isfinite(deviation) else np.zeros(4)
    if not (0 < deviation < np.inf and np.allclose(noise.sf(points), noise.cdf(-points), rtol=1e-6, atol=1e-12)):
        raise FeatureError(
            f"noise: got standard deviation {deviation:g} and shares above {points} of {noise.sf(points)}, below "
            f"{-points} of {noise.cdf(-points)}; expected a finite deviation and a distribution symmetric around 0"
        )

    def gains(a: float, t: Array) -> Array:
        low, high = deviation * (t - a), deviation * (t + a)
        p, not_p, q, not_q = noise.sf(low), noise.cdf(low), noise.sf(high), noise.cdf(high)
        slope = deviation * noise.pdf(deviation * t) if a < _NEAR else (p - q) / (2 * a)
        within = p * not_p + q * not_q
        if code == "ternary":
            within = within / 2 + p * q
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.asarray(np.where(slope > 0, 2 * slope**2 / within, 0.0))

    return gains


def _grid(a: float, noise: Noise) -> Array:
    """Thresholds among which to look, in standard deviations of the noise."""
    return np.linspace(0, a + float(noise.isf(_TAIL)) / float(noise.std()), _STEPS + 1)


def _peak(gains: Callable[[float, Array], Array], a: float, noise: Noise) -> tuple[float, float]:
    """t >= 0 of the highest gain, and that gain."""
    grid = _grid(a, noise)
    found = gains(a, grid)
    at = int(np.argmax(found))
    t, gain = float(grid[at]), float(found[at])
    if np.isinf(gain):
        return t, gain
    bounds = grid[max(at - 1, 0)], grid[min(at + 1, _STEPS)]
    finer = minimize_scalar(lambda t: -float(gains(a, t)), bounds=bounds, method="bounded", options={"xatol": 1e-9})
    if -finer.fun > gain * (1 + _ROUNDING * (at == 0)):  # a peak at 0 stays there
        return float(finer.x), -float(finer.fun)
    return t, gain


def _root(gain: Callable[..., float | Array], start: float, end: float) -> float:
    """Where a gain is 1, between two points on either side of it."""
    return float(brentq(lambda x: min(float(gain(x)), 2.0) - 1, start, end, xtol=1e-12))  # at most 2: gains may be inf
