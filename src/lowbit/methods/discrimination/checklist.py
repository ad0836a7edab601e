"""What speaks for and against codes, feature by feature and for the whole, in plain sentences.

The rule of thumb for Gaussian classes (binary from mu = 0.765, ternary from 0.664, where mu is the correlation with the
class) does not hold for other noise: heavy tails make codes better at any mu, and bounded noise worse. So what
a code keeps of F = 2 D - 1 is measured, and the noise's shape explains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowbit.errors import FeatureError
from lowbit.methods.discrimination.estimators import QUANTIZERS
from lowbit.methods.discrimination.histograms import STEPS, Histograms
from lowbit.methods.discrimination.measure import by_feature, moments_of

Array = npt.NDArray[np.float64]
HEAVY = 3.0  # excess kurtosis from which codes tend to be better at any mu (derived: Laplace has 3)
FEW = 30  # samples of a class below which D of one feature is mostly noise
JUNK = 0.1  # a correlation with the class below which a feature tells next to nothing


@dataclass(frozen=True)
class FeatureCheck:
    """What a feature is like, and what codes keep of it.

    Attributes:
        name: of the feature.
        constant: whether it has one value only.
        zeros: share of its values that are exactly 0.
        correlation: abs of that with the class, from D: mu of the paper for two balanced classes.
        kurtosis: excess kurtosis within classes; 0 is Gaussian, 3 Laplace, NaN for a constant.
        original: D of the feature.
        binary, ternary: D of its codes at the thresholds of all features.
        binary_own, ternary_own: its own best thresholds, in units of the scale.
        binary_best, ternary_best: D of its codes there.
        telling: the correlation with the class of the feature or of one of its codes, whichever is largest.
        binary_error, ternary_error: share of its variance that the code at the common threshold does not follow, 1 less
            the squared correlation of both.
    """

    name: str
    constant: bool
    zeros: float
    correlation: float
    kurtosis: float
    original: float
    binary: float
    ternary: float
    binary_own: float
    ternary_own: float
    binary_best: float
    ternary_best: float
    telling: float
    binary_error: float
    ternary_error: float

    @property
    def kept(self) -> tuple[float, float]:
        """F_code / F of the binary and the ternary code at the thresholds of all features; NaN without separation."""
        f = self.original - 0.5
        return ((self.binary - 0.5) / f, (self.ternary - 0.5) / f) if f > 0 else (np.nan, np.nan)

    @property
    def sentence(self) -> str:
        """Whether codes suit this feature, and why."""
        if self.constant:
            return "has one value only: it is coded 0 and says nothing; leave it out."
        if self.telling < JUNK:
            return (
                f"says next to nothing about the class (correlation {self.correlation:.2f}), and neither do its codes."
            )
        shape = f"excess kurtosis {self.kurtosis:.1f}"
        tails = f"heavy tails ({shape})" if self.kurtosis >= HEAVY else f"no heavy tails ({shape})"
        code, d = max((("binary", self.binary), ("ternary", self.ternary)), key=lambda one: one[1])
        if d > self.original:
            return f"{code} codes separate the classes better (D {self.original:.2f} to {d:.2f}): {tails}."
        own, code, d = max(
            (self.binary_own, "binary", self.binary_best),
            (self.ternary_own, "ternary", self.ternary_best),
            key=lambda one: one[2],
        )
        if d > self.original:
            return f"{code} codes would separate better at {own:.2f}, its own best (D {self.original:.2f} to {d:.2f})."
        share = (d - 0.5) / (self.original - 0.5)
        return f"codes keep at most {100 * share:.0f} % of its separation: {tails}, correlation {self.correlation:.2f}."


def check_features(
    counts: Histograms,
    sample: npt.NDArray[np.floating],
    labels: npt.NDArray[np.generic],
    *,
    names: Sequence[str] | None = None,
) -> tuple[FeatureCheck, ...]:
    """A check of each feature.

    Args:
        counts: of the data.
        sample: rows of the data, `[n, d]`, dense; kurtosis and zeros are of these.
        labels: of the sample, `[n]`.
        names: of the features, `[d]`; their positions by default.

    Raises:
        FeatureError: a class without samples, or arrays that do not fit.
    """
    d = len(counts.scaling.scale)
    if sample.shape[1:] != (d,) or len(labels) != len(sample) or (names is not None and len(names) != d):
        raise FeatureError(f"got a sample {list(sample.shape)} and {len(labels)} labels, expected [n, {d}] and n")
    sweeps = {code: counts.sweep(code) for code in ("binary", "ternary")}
    at, own, best = {}, {}, {}
    for code, found in sweeps.items():
        at[code] = found.features[int(np.flatnonzero(found.thresholds == found.best())[0])]
        own[code] = found.best_by_feature()
        best[code] = found.features[np.rint((own[code] - found.thresholds[0]) * STEPS).astype(int), np.arange(d)]
    original = by_feature(counts.moments(), corrected=True)
    z, classes = counts.scaling.standardized(sample), len(counts.classes)

    def related(found: Array) -> list[float]:
        return [_correlation(one, classes) for one in found.tolist()]

    correlation = related(original)
    kurtosis, zeros = _kurtosis(sample, labels), (sample == 0).mean(0)
    columns = zip(
        *(names or [str(i) for i in range(d)], counts.scaling.constant.tolist(), zeros.tolist(), correlation),
        *(kurtosis.tolist(), original.tolist()),
        *(side[code].tolist() for side in (at, own, best) for code in ("binary", "ternary")),
        map(max, correlation, *(related(best[code]) for code in ("binary", "ternary"))),
        *(_unexplained(z, QUANTIZERS[code]().fit_counts(counts).transform(sample)) for code in QUANTIZERS),
        strict=True,
    )
    return tuple(FeatureCheck(*row) for row in columns)


def applicability(checks: Sequence[FeatureCheck], counts: Histograms) -> tuple[str, ...]:
    """What holds for the data as a whole, in plain sentences: what suits codes, and what to be careful about."""
    live = [one for one in checks if not one.constant]
    if not live:
        return ("No feature varies: there is nothing to learn from these data.",)
    said, many = [], len(checks)
    if len(live) < many:
        said.append(f"{many - len(live)} of {many} features have one value only; leave them out.")
    heavy = sum(one.kurtosis >= HEAVY for one in live)
    said.append(
        f"{heavy} of {len(live)} features have heavy tails (excess kurtosis {HEAVY:g} or more)"
        + (": codes cut them off, and so would clipping; compare both." if heavy else ": codes have none to cut off.")
    )
    junk = sum(one.telling < JUNK for one in live)
    if junk:
        said.append(
            f"{junk} of {len(live)} features say next to nothing about the class; a selection of features may gain "
            "what codes gain."
        )
    for code in ("binary", "ternary"):
        better = sum(getattr(one, code) > one.original for one in live)
        said.append(f"{code.capitalize()} codes raise D of {better} of {len(live)} features at one threshold for all.")
    if int(counts.samples.min()) < FEW:
        said.append(
            f"The smallest class has {int(counts.samples.min())} samples: D of single features is mostly noise below "
            f"{FEW}, so leave per_feature off."
        )
    means = counts.moments().means
    if bool(((means >= 0).all(0) | (means <= 0).all(0)).mean() > 0.9):
        said.append(
            "All class means lie on one side of zero: the cosine of {0, 1} codes follows the number of ones; use "
            "Hamming distance or ternary codes."
        )
    said.append("A larger D is not yet a better classifier; the verdict measures that.")
    return tuple(said)


def _correlation(d: float, classes: int) -> float:
    """Abs of the correlation with the class that D of a feature stands for: F = C / (C - 1) r^2 / (1 - r^2)."""
    f = 2 * d - 1
    return math.sqrt(f / (f + classes / (classes - 1)))


def _unexplained(z: npt.NDArray[np.floating], codes: npt.NDArray[np.floating]) -> list[float]:
    """1 less the squared correlation of features with their codes, `[d]`; 1 where one does not vary."""
    a, b = z - z.mean(0), codes - codes.mean(0)
    size = (a**2).sum(0) * (b**2).sum(0)
    found = 1 - np.divide((a * b).sum(0) ** 2, size, out=np.zeros_like(size), where=size > 0)
    return [float(one) for one in np.clip(found, 0, 1)]


def _kurtosis(x: npt.NDArray[np.floating], labels: npt.NDArray[np.generic]) -> Array:
    """Excess kurtosis within classes, `[d]`: of the residuals, each class in units of its own deviation."""
    classes, which = np.unique(labels, return_inverse=True)
    moments = moments_of(x, which, len(classes))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (x - moments.means[which]) / np.sqrt(moments.variances[which])
    z = np.where(np.isfinite(z), z, np.nan)
    known = np.isfinite(z).sum(0)
    fourth = np.nansum(z**4, axis=0) / np.maximum(known, 1)
    return np.asarray(np.where(known > 0, fourth - 3, np.nan))
