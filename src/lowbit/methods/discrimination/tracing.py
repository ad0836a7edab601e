"""What a quantizer did, so that it can be kept, looked into and watched.

trace = lb.trace_features(quantizer, x)     # what is needed to code again, and how often each code came
trace.save("ternary.json")
lb.FeatureTrace.load("ternary.json").changes(sample)   # which features went to 0 or flipped, and by what margin
trace.drift(new)                                       # whether codes come as often as they did
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveFloat, PositiveInt, model_validator
from scipy import stats
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from lowbit import __version__, files
from lowbit.errors import FeatureError
from lowbit.methods.discrimination.estimators import BinaryQuantizer, FeatureQuantizer, TernaryQuantizer
from lowbit.methods.discrimination.histograms import Code
from lowbit.methods.discrimination.measure import digest
from lowbit.recipe import validated

Array = npt.NDArray[np.float64]
What = Literal["to zero", "from zero", "flipped"]
MOVED = 0.2  # population stability index from which codes are called changed, the usual rule of thumb
SURE = 0.01  # and the chance, over all features, of calling any changed that is not
LEAST = 1e-4  # share that a code which never came is counted with


@dataclass(frozen=True)
class Change:
    """A feature of a sample whose code says something else than its reference.

    Attributes:
        row, feature: of the sample and the feature.
        name: of the feature.
        z: its value, in units of the scale from the center.
        code: what it became.
        what: how that differs from the reference.
        margin: distance of z from the threshold that it is on the other side of, in units of the scale.
    """

    row: int
    feature: int
    name: str
    z: float
    code: int
    what: What
    margin: float


@dataclass(frozen=True)
class FeatureDrift:
    """How codes of new data differ from those of the training data.

    Attributes:
        samples: new ones.
        index: population stability index of each feature, `[d]`: sum of (new - old) log(new / old) over its codes.
        p: of a chi-squared test that they come equally often, each feature by itself, `[d]`.
        moved: names of the features that changed: an index of 0.2 or more, and p below 0.01 over all features.
    """

    samples: int
    index: tuple[float, ...]
    p: tuple[float, ...]
    moved: tuple[str, ...]

    @property
    def drifted(self) -> bool:
        """Whether the codes of any feature changed."""
        return bool(self.moved)

    def __str__(self) -> str:
        if not self.moved:
            return f"no drift: the codes of all {len(self.index)} features come as often as they did"
        named = ", ".join(self.moved[:5]) + (", ..." if len(self.moved) > 5 else "")
        return f"drift: the codes of {len(self.moved)} of {len(self.index)} features come more or less often: {named}"


@final
class FeatureTrace(BaseModel):
    """A quantizer as plain data: enough to code again, to explain codes and to notice drift.

    Attributes:
        code: binary or ternary.
        version: of lowbit.
        data_hash: SHA-256 of the features that the frequencies are of.
        samples: of these.
        classes: labels that the quantizer was fitted to.
        names: of the features.
        center, scale, threshold: `[d]`; thresholds in units of the scale.
        frequencies: shares of the codes -1, 0 and 1 of each feature, `[d, 3]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    version: str
    data_hash: str
    samples: PositiveInt
    classes: tuple[int | float | str, ...]
    names: tuple[str, ...]
    center: tuple[FiniteFloat, ...]
    scale: tuple[PositiveFloat, ...]
    threshold: tuple[FiniteFloat, ...]
    frequencies: tuple[tuple[float, float, float], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        d = len(self.names)
        for key in ("center", "scale", "threshold", "frequencies"):
            if len(getattr(self, key)) != d:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries, expected {d}, as many as names")
        if self.code == "ternary" and min(self.threshold, default=0) < 0:
            raise ValueError("threshold of a ternary code is negative, expected at least 0")
        if any(not 0 <= share <= 1 for shares in self.frequencies for share in shares):
            raise ValueError("frequencies are no shares, expected 0 to 1")
        return self

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        files.write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | Path) -> FeatureTrace:
        """Read it back.

        Raises:
            DataError: the file cannot be read.
            RecipeError: it holds something else.
        """
        return validated(cls, files.read_json(path), str(path))

    def quantizer(self) -> BinaryQuantizer | TernaryQuantizer:
        """The quantizer, ready to transform."""
        found = (BinaryQuantizer if self.code == "binary" else TernaryQuantizer)(np.asarray(self.threshold))
        found.center_, found.scale_ = np.asarray(self.center), np.asarray(self.scale)
        found.threshold_, found.classes_ = np.asarray(self.threshold), np.asarray(self.classes)
        found.histograms_, found.n_features_in_ = None, len(self.names)
        return found

    def changes(self, x: npt.ArrayLike, reference: npt.ArrayLike | None = None) -> tuple[Change, ...]:
        """Features of samples that went to zero or flipped, the ones nearest to their threshold first.

        Args:
            x: samples `[n, d]`, dense.
            reference: what they are compared with, `[n, d]` or `[1, d]`: the codes of these samples; by default the
                sign of z, so that what the code loses or turns is listed.

        Raises:
            FeatureError: values that are not finite, or arrays that do not fit.
        """
        z, codes = self._coded(x)
        if reference is None:
            before = np.sign(z).astype(int) if self.code == "ternary" else (z > 0).astype(int)
        else:
            _, before = self._coded(reference)
            if len(before) not in (1, len(codes)):
                raise FeatureError(f"reference: got {len(before)} samples, expected 1 or {len(codes)}")
            before = np.broadcast_to(before, codes.shape)
        rows, columns = np.nonzero(codes != before)
        # the threshold that lies between: of a ternary code the one on the side of z, or of what z was
        side = np.where(codes != 0, codes, before) if self.code == "ternary" else np.ones_like(codes)
        margins = np.abs(z - side * np.asarray(self.threshold))
        found = [
            Change(
                *(int(i), int(j), self.names[j], float(z[i, j]), int(codes[i, j])),
                _what(self.code, int(before[i, j]), int(codes[i, j])),
                float(margins[i, j]),
            )
            for i, j in zip(rows, columns, strict=True)
        ]
        return tuple(sorted(found, key=lambda one: (one.margin, one.row, one.feature)))

    def drift(self, x: Any) -> FeatureDrift:
        """Whether codes of new samples `[n, d]` come as often as those of the training data, labels not needed.

        Raises:
            FeatureError: values that are not finite, or another number of features.
        """
        self._check(x)
        codes = self.quantizer().transform(x)
        old, new = np.asarray(self.frequencies), _frequencies(codes)
        count = codes.shape[0]
        a, b = np.maximum(old, LEAST), np.maximum(new, LEAST)
        index = ((b - a) * np.log(b / a)).sum(1)
        together = (old * self.samples + new * count) / (self.samples + count)
        known = np.where(together > 0, together, 1)
        statistic = (self.samples * (old - together) ** 2 / known + count * (new - together) ** 2 / known).sum(1)
        p = stats.chi2.sf(statistic, np.maximum((together > 0).sum(1) - 1, 1))
        moved = np.flatnonzero((index >= MOVED) & (p * len(p) < SURE))
        return FeatureDrift(count, tuple(index.tolist()), tuple(p.tolist()), tuple(self.names[j] for j in moved))

    def _check(self, x: Any) -> None:
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise FeatureError(f"got features {list(x.shape)}, expected [n, {len(self.names)}], as the trace has")

    def _coded(self, x: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.int64]]:
        """z and codes of samples."""
        values = np.atleast_2d(np.asarray(x, float))
        self._check(values)
        codes = self.quantizer().transform(values).astype(int)
        return (values - np.asarray(self.center)) / np.asarray(self.scale), codes


def trace_features(
    quantizer: FeatureQuantizer, x: Any, *, names: Sequence[str] | None = None, data_hash: str | None = None
) -> FeatureTrace:
    """The trace of a fitted quantizer.

    Args:
        quantizer: fitted.
        x: the features that it was fitted to, `[N, d]`, dense or sparse; code frequencies are of these.
        names: of the features, `[d]`; those of a data frame that it was fitted to, else their positions.
        data_hash: of the features, if they come from a file that has one; else it is computed.

    Raises:
        FeatureError: names or features that do not fit the quantizer.
    """
    check_is_fitted(quantizer, "threshold_")
    d = int(quantizer.n_features_in_)
    known = names if names is not None else getattr(quantizer, "feature_names_in_", range(d))
    if len(known) != d:
        raise FeatureError(f"names: got {len(known)}, expected {d}, one a feature")
    codes = quantizer.transform(x)
    threshold = np.broadcast_to(np.asarray(quantizer.threshold_, float), (d,))
    return FeatureTrace(
        code="binary" if isinstance(quantizer, BinaryQuantizer) else "ternary",
        version=__version__,
        data_hash=data_hash or digest(x),
        samples=codes.shape[0],
        classes=tuple(np.asarray(quantizer.classes_).tolist()),
        names=tuple(str(name) for name in known),
        center=tuple(np.asarray(quantizer.center_, float).tolist()),
        scale=tuple(np.asarray(quantizer.scale_, float).tolist()),
        threshold=tuple(threshold.tolist()),
        frequencies=tuple(map(tuple, _frequencies(codes).tolist())),
    )


def _frequencies(codes: Any) -> Array:
    """Shares of -1, 0 and 1 in each column, `[d, 3]`."""
    count = max(codes.shape[0], 1)
    below, above = (np.asarray((codes == one).sum(0), float).reshape(-1) / count for one in (-1, 1))
    return np.stack([below, np.maximum(1 - below - above, 0), above], axis=1)


def _what(code: Code, before: int, after: int) -> What:
    if code == "binary" or before * after < 0:
        return "flipped"
    return "from zero" if before == 0 else "to zero"
