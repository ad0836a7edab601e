"""How many samples a decision between two models takes.

It is the usual formula of a one-sided test against a margin,

    n = v ((z_0.975 + z_0.8) / (d + margin))^2,

where d is the effect and v the variance of a sample's difference: for shares p - d^2 with p the share of samples on
which one model alone is right. It assumes that both are as observed, and gives 80 % power.

The interval that judges a share adds half a sample to both ways to differ, and so does the plan, at the number of
samples that it is for: v = (p n + 1) / (n + 2) - (d n / (n + 2))^2. Without that a test in which nothing differed
would need no sample at all, and with the half samples of the test that was seen, too many.

References:
    Y. Lu, J. A. Bean, "On the sample size for one-sided equivalence of sensitivities based upon McNemar's test", 1995,
    https://doi.org/10.1002/sim.4780141611: the formula for shares.
Differs from Lu and Bean: the variance is that of Agresti and Min's interval, which the verdict is given by.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from lowbit.pilot.record import Score

SURE, _POWER = 1.96, 0.8416  # normal quantiles of 97.5 % and 80 %
_MOST = 10**9  # samples; a larger need is no plan


def samples_needed(effect: float, margin: float, variance: float) -> int | None:
    """Samples of a test that decides about a margin with 80 % power, by the formula above; None if no number does.

    Args:
        effect: what B truly gains, in units of the metric; a loss is negative.
        margin: the loss that does not matter.
        variance: of what B gains on a single sample.
    """
    root = _root(effect, margin)
    return None if root is None else _whole(variance * root**2)


def needed_for_pairs(share: float, effect: float, margin: float) -> int | None:
    """Samples of a paired test of a share that decides about a margin with 80 % power; None if no number does.

    Args:
        share: of samples that one model alone has right, or predicts otherwise.
        effect: what B truly gains, as a share; a loss is negative.
        margin: the loss that does not matter, as a share.
    """
    root = _root(effect, margin)
    if root is None:
        return None

    def enough(count: int) -> bool:
        variance = (share * count + 1) / (count + 2) - (effect * count / (count + 2)) ** 2
        return count >= variance * root**2

    low, high = 0, _MOST  # enough from some number on: the variance of a sample changes little
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if enough(high) else None


def differing(gap: Score) -> float:
    """The share of samples that one model alone has right, read back from Agresti and Min's interval of a difference.

    The half-width of that interval is 1.96 sqrt(c - e^2 / (n + 2)) / (n + 2), with c the differing samples and one
    more, and e what is won less what is lost.
    """
    count, gained = gap.samples, gap.value * gap.samples
    counted = ((gap.high - gap.low) / (2 * SURE) * (count + 2)) ** 2 + gained**2 / (count + 2)
    return max(round(counted - 1), abs(round(gained))) / count


def needed_for_fall(share: float, limit: float, least: int = 1) -> int | None:
    """Samples, `least` or more, of which a share is seen to be below a limit in 80 % of all looks; None if no number.

    Seen is what puts the whole 95 % interval of Wilson below the limit, and the power is that of the binomial
    distribution. Both are shares in (0, 1).
    """
    about = needed_for_agreement(1 - share, 1 - limit) if share < limit else None
    if about is None:
        return None
    counts = np.arange(least, 2 * about + least + 100)
    seen = np.ceil(counts * limit - SURE * np.sqrt(counts * limit * (1 - limit))) - 1  # hits that are few enough
    found = np.flatnonzero(stats.binom.cdf(seen, counts, share) >= 0.8)
    return int(counts[found[0]]) if len(found) else None


def needed_for_agreement(share: float, margin: float) -> int | None:
    """Samples for a decision whether a share, of samples predicted otherwise, is below the margin: Wilson's variance.

    n = ((z_0.975 sqrt(m (1 - m)) + z_0.8 sqrt(p (1 - p))) / (m - p))^2, as Wilson's interval inverts the score test.
    """
    if share == margin:
        return None
    spread = SURE * math.sqrt(margin * (1 - margin)) + _POWER * math.sqrt(share * (1 - share))
    return _whole((spread / (margin - share)) ** 2)


def _root(effect: float, margin: float) -> float | None:
    """The root of the samples a variance of 1 takes; None for an effect on the margin."""
    room = effect + margin
    if room > 0:  # the interval has to end above -margin
        return (SURE + _POWER) / room
    if room < 0:  # the interval has to end below 0, and the effect to lie below -margin
        return max((SURE + _POWER) / -effect, _POWER / -room)
    return None


def _whole(count: float) -> int | None:
    return math.ceil(count) if count <= _MOST else None
