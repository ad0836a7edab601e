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
from typing import Annotated, Any, Literal, final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, model_validator
from scipy import stats
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from lowbit import __version__, drift, files
from lowbit.errors import FeatureError
from lowbit.methods.discrimination.estimators import QUANTIZERS, BinaryQuantizer, FeatureQuantizer
from lowbit.methods.discrimination.measure import as_rows, digest
from lowbit.methods.discrimination.theory import Code
from lowbit.recipe import validated

Array = npt.NDArray[np.float64]
What = Literal["to zero", "from zero", "flipped"]


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
        p: chance of that if they come equally often, exact, each feature by itself, `[d]`.
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
        constant: `[d]`, features that are always coded 0.
        frequencies: shares of the codes -1, 0 and 1 of each feature, `[d, 3]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    version: str
    data_hash: str
    samples: Annotated[int, Field(gt=0, le=10**9)]  # beyond, `drift` takes seconds a feature
    classes: tuple[bool | int | float | str, ...]
    names: tuple[str, ...]
    center: tuple[FiniteFloat, ...]
    scale: tuple[PositiveFloat, ...]
    threshold: tuple[FiniteFloat, ...]
    constant: tuple[bool, ...]
    frequencies: tuple[tuple[float, float, float], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        d = len(self.names)
        for key in ("center", "scale", "threshold", "constant", "frequencies"):
            if len(getattr(self, key)) != d:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries, expected {d}, as many as names")
        if self.code == "ternary" and min(self.threshold, default=0) < 0:
            raise ValueError("threshold of a ternary code is negative, expected at least 0")
        if any(min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 for shares in self.frequencies):
            raise ValueError("frequencies are no shares, expected numbers from 0 that add up to 1")
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

    def quantizer(self) -> FeatureQuantizer:
        """The quantizer, ready to transform."""
        found = QUANTIZERS[self.code](np.asarray(self.threshold))
        found.center_, found.scale_ = np.asarray(self.center), np.asarray(self.scale)
        found.threshold_, found.classes_ = np.asarray(self.threshold), np.asarray(self.classes)
        found.constant_ = np.asarray(self.constant)
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
        x = as_rows(x)
        self._check(x)
        old, new = (
            np.rint(np.asarray(self.frequencies) * self.samples).astype(int),
            _counts(self.quantizer().transform(x)),
        )
        index, p = drift.stability_index(old / self.samples, new / x.shape[0]), _chance(old, new)
        moved = (index >= drift.MOVED) & (p * len(p) < drift.SURE)
        names = tuple(name for name, one in zip(self.names, moved, strict=True) if one)
        return FeatureDrift(x.shape[0], tuple(index.tolist()), tuple(p.tolist()), names)

    def _check(self, x: Any) -> None:
        shape = list(np.shape(x))
        if len(shape) != 2 or shape[1] != len(self.names) or not shape[0]:
            raise FeatureError(f"got features {shape}, expected [n, {len(self.names)}], as the trace has")

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
        constant=tuple(np.asarray(quantizer.constant_).tolist()),
        frequencies=tuple(map(tuple, (_counts(codes) / max(codes.shape[0], 1)).tolist())),
    )


def _counts(codes: Any) -> npt.NDArray[np.int64]:
    """How often -1, 0 and 1 come in each column, `[d, 3]`."""
    below, above = (np.asarray((codes == one).sum(0), np.int64).reshape(-1) for one in (-1, 1))
    return np.stack([below, codes.shape[0] - below - above, above], axis=1)


def _chance(old: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> Array:
    """How likely counts `[d, codes]` differ as much or more if codes come equally often in both, `[d]`.

    Fisher's exact test of each code against all others, two-sided by doubling, times the number of codes: rare
    codes and few new rows are where a chi-squared test raises false alarms.
    """
    before, after = old.sum(-1, keepdims=True), new.sum(-1, keepdims=True)
    drawn = stats.hypergeom(before + after, old + new, after)
    p = 2 * np.minimum(drawn.cdf(new), drawn.sf(new - 1))
    return np.asarray(np.minimum(p.min(-1) * old.shape[-1], 1))


def _what(code: Code, before: int, after: int) -> What:
    if code == "binary" or before * after < 0:
        return "flipped"
    return "from zero" if before == 0 else "to zero"
