"""Features to {0, 1} or {-1, 0, 1}, in scikit-learn's conventions.

    quantizer = lb.TernaryQuantizer().fit(x, y)       # the threshold with the largest discrimination on these data
    codes = quantizer.transform(x)                    # floats, for any estimator
    packed = quantizer.pack(x)                        # 2 bits a feature, for PackedKNeighborsClassifier

A code is 1[z > tau], or sign(z) 1[|z| > tau], of the standardized feature z. One threshold serves all features
unless each is to have its own; it is chosen by discrimination, which needs one pass over the data, by cross-validated
accuracy, or given. A larger discrimination is not a better classifier: `judge` measures that.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, final, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from typing_extensions import Self

from lowbit import files
from lowbit.errors import FeatureError
from lowbit.methods.discrimination.histograms import LIMITS, Criterion, Histograms, Scaling, Sweep, Unit, scaling
from lowbit.methods.discrimination.measure import as_rows, check_finite
from lowbit.methods.discrimination.packed import Packed, concatenate, pack
from lowbit.methods.discrimination.theory import Code

Choice = Literal["discrimination", "accuracy"]
FEW = 50  # samples of the smallest class at which a feature's own threshold counts as much as the one of all
TRIED = 6  # thresholds whose accuracy is measured beside the one with the largest D
ROWS = 65536  # packed at a time
_CHOICES = " or ".join(f'"{one}"' for one in get_args(Choice))


class FeatureQuantizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both quantizers share: all but the code itself.

    Args:
        threshold: how the threshold is chosen, or the threshold in units of the scale: one number, or `[d]`.
            ``"discrimination"``: the largest D over all features on the training data, at most 1.5 (binary, to both
            sides) or 2 (ternary) units from zero; of sparse features from 0 to just below 4. ``"accuracy"``: the best
            cross-validated accuracy of `classifier`, of that threshold and six between -1.5 and 1.5 (binary) or 0 and
            2 (ternary, or sparse features).
        per_feature: each feature has a threshold of its own, from its own D, drawn to the one of all features where
            samples are few.
        center: whether z is 0 at the mean; sparse features cannot be centered.
        unit: of the scale: ``"std"``, or ``"mean"``, the mean of abs(x - center), as in the paper.
        criterion: for more than two classes, whether the mean over pairs of classes counts, or the worst pair.
        classifier: whose accuracy decides; 5 nearest neighbors by default.
        cv: folds, or a splitter, of that accuracy.

    Attributes:
        center_, scale_: `[d]`; constant_: which features have one value only, and are coded 0.
        threshold_: in units of the scale; a number, or `[d]`.
        classes_: labels, `[C]`.
        histograms_: what the threshold was chosen by; None for a given threshold.
        n_features_in_, feature_names_in_: of the training data.

    References:
        arXiv 2504.13792. Differs from the paper: features are centered, thresholds are in units of the standard
        deviation (``center=False, unit="mean"`` gives the paper's), and D is corrected for few samples (derived).
    """

    _code: Code
    histograms_: Histograms | None

    def __init__(
        self,
        threshold: Choice | float | npt.ArrayLike = "discrimination",
        *,
        per_feature: bool = False,
        center: bool = True,
        unit: Unit = "std",
        criterion: Criterion = "mean",
        classifier: Any = None,
        cv: Any = 5,
    ) -> None:
        self.threshold = threshold
        self.per_feature = per_feature
        self.center = center
        self.unit = unit
        self.criterion = criterion
        self.classifier = classifier
        self.cv = cv

    def fit(self, x: Any, y: Any) -> Self:
        """Set scale and threshold from features `[N, d]`, dense or sparse, and labels `[N]`.

        Raises:
            FeatureError: one class only, values that are not finite, a negative threshold where there can be none, or
                fewer samples of a class than folds.
        """
        self._forget()
        data, labels = self._count(x, y, None)
        self.threshold_ = self._best(data, labels) if self._is_chosen() else self._given()
        return self

    def partial_fit(self, x: Any, y: Any, classes: Any = None) -> Self:
        """Go on with another chunk; `fit` on one chunk is the same as `partial_fit` on it.

        Center and scale are those of the first chunk, which should therefore be drawn at random; the counts that the
        threshold is chosen by are of all chunks. There is none until each class has had two samples.

        Args:
            x, y: the chunk.
            classes: all labels that will come, `[C]`; needed at the first call unless its chunk has all.

        Raises:
            FeatureError: as `fit`, a label that is not in `classes`, or a threshold chosen by accuracy, for which all
                data have to be there at once.
        """
        self._check_streams()
        data, labels = self._count(x, y, classes)
        if not self._is_chosen():
            self.threshold_ = self._given()
        elif self._counts().samples.min() >= 2:
            self.threshold_ = self._best(data, labels)
        return self

    def fit_counts(self, counts: Histograms) -> Self:
        """Set scale and threshold from counts, as of `count_features`, of data that are not all here.

        Raises:
            FeatureError: a class has too few samples, or the threshold is chosen by accuracy, which needs the data.
        """
        self._check_streams()
        self._forget()
        self.n_features_in_ = len(counts.scaling.scale)
        self._take(counts.classes, counts.scaling, counts if self._is_chosen() else None)
        self.threshold_ = self._best(None, None) if self._is_chosen() else self._given()
        return self

    def transform(self, x: Any) -> Any:
        """Codes of features `[N, d]`, dense or sparse as they are, in their own floating-point type.

        Raises:
            FeatureError: values that are not finite, or sparse features for a quantizer that centers.
        """
        check_is_fitted(self, "threshold_")
        data = self._checked(x, reset=False)
        if not sparse.issparse(data):
            return self._codes(data, *self._cuts(data.dtype)).astype(data.dtype)
        if self.center_.any() or np.min(self.threshold_) < 0:
            raise FeatureError(
                "got sparse features, expected dense ones: zeros are not coded as 0 where features are centered or the "
                "threshold is negative; fit on sparse features, or use center=False"
            )
        found = as_rows(data).copy()
        found.data = self._codes(found.data, *self._cuts(data.dtype, found.indices)).astype(data.dtype)
        found.eliminate_zeros()
        return found

    def pack(self, x: Any) -> Packed:
        """Codes of features `[N, d]` at 1 (binary) or 2 (ternary) bits each; the rest as `transform`."""
        rows, ternary = as_rows(x), self._code == "ternary"
        chunks = range(0, max(rows.shape[0], 1), ROWS)
        return concatenate([pack(self.transform(rows[i : i + ROWS]), ternary=ternary) for i in chunks])

    def sweep(self) -> Sweep:
        """D against the threshold, on the data that this was fitted to.

        Raises:
            FeatureError: the threshold was given, so nothing was counted.
        """
        check_is_fitted(self, "scale_")
        return self._counts().sweep(self._code)

    @abstractmethod
    def _codes(self, x: Any, above: Any, below: Any) -> Any:
        """Codes of values, which change where they pass `above` or `below`."""

    # How `fit` and `partial_fit` get there

    def _counts(self) -> Histograms:
        if self.histograms_ is None:
            raise FeatureError('threshold: a given one needs no counts; fit with threshold="discrimination" to sweep')
        return self.histograms_

    def _check_streams(self) -> None:
        if isinstance(self.threshold, str) and self.threshold == "accuracy":
            raise FeatureError('threshold: "accuracy" needs all data at once; use fit, or threshold="discrimination"')

    def _forget(self) -> None:
        for name in [n for n in vars(self) if n.endswith("_") and not n.startswith("__")]:
            delattr(self, name)

    def _count(self, x: Any, y: Any, classes: Any) -> tuple[Any, Any]:
        """Count a chunk, on the scale of the first one; returns it checked."""
        first, chosen = not hasattr(self, "scale_"), self._is_chosen()
        data, labels = self._checked(x, y, reset=first)
        check_classification_targets(labels)
        known = self.classes_ if not first else np.unique(labels if classes is None else np.asarray(classes))
        if len(known) < 2:
            raise FeatureError(
                f"{type(self).__name__} got labels of one class only ({known[0]}), expected two or more; name those "
                "still to come in classes="
            )
        unseen = np.setdiff1d(labels, known)
        if len(unseen):
            raise FeatureError(
                f"labels: got {unseen[0]}, expected one of {known.tolist()}; name all in classes= of the first "
                "partial_fit"
            )
        if first:
            units = scaling(data, center=self.center, unit=self.unit)
            empty = Histograms.empty(known, units, is_sparse=bool(sparse.issparse(data)))
            self._take(known, units, empty if chosen else None)
        if self.histograms_ is not None:
            self.histograms_ = self.histograms_.added(data, labels)
        return data, labels

    def _take(self, classes: npt.NDArray[Any], units: Scaling, counts: Histograms | None) -> None:
        self.classes_, self.histograms_ = classes, counts
        self.center_, self.scale_, self.constant_ = units.center, units.scale, units.constant

    def _checked(self, x: Any, *y: Any, reset: bool) -> Any:
        """Features, with labels if given, after scikit-learn's checks; a value that is not finite is named."""
        types = [np.float64, np.float32]
        found = validate_data(self, x, *y, accept_sparse="csr", dtype=types, ensure_all_finite=False, reset=reset)
        check_finite(found[0] if y else found)
        return found

    def _is_chosen(self) -> bool:
        if isinstance(self.threshold, str) and self.threshold not in get_args(Choice):
            raise FeatureError(f"threshold: got {self.threshold!r}, expected {_CHOICES}, a number or an array")
        return isinstance(self.threshold, str)

    def _given(self) -> Any:
        """The threshold that was given: a number or `[d]`."""
        given = np.asarray(self.threshold, float)
        if given.shape not in ((), self.scale_.shape) or not np.isfinite(given).all():
            got = list(given.shape) if given.ndim else float(given)
            raise FeatureError(f"threshold: got {got}, expected a finite number, or {list(self.scale_.shape)} of them")
        if given.min() < 0 and self._code == "ternary":
            raise FeatureError(f"threshold: got {given.min():g}, expected at least 0; a ternary code is 0 within +- it")
        return given if given.ndim else float(given)

    def _best(self, data: Any, labels: Any) -> Any:
        """The threshold that is chosen: a number, or `[d]`."""
        found = self.sweep()
        best = found.best(self.criterion)
        if isinstance(self.threshold, str) and self.threshold == "accuracy":
            best = self._most_accurate(data, labels, best)
        if not self.per_feature:
            return best
        few = int(self._counts().samples.min())
        own = few / (few + FEW)
        return own * found.best_by_feature() + (1 - own) * best

    def _most_accurate(self, data: Any, labels: Any, best: float) -> float:
        """The threshold with the best cross-validated accuracy; `best` if no other is better."""
        fewest = int(np.unique(labels, return_counts=True)[1].min())
        if isinstance(self.cv, int) and fewest < self.cv:
            raise FeatureError(f"cv: got {self.cv} folds, expected at most {fewest}, the samples of the smallest class")
        low, high = LIMITS["ternary"] if sparse.issparse(data) else LIMITS[self._code]

        def accuracy(threshold: float) -> float:
            classifier = KNeighborsClassifier() if self.classifier is None else clone(self.classifier)
            codes = make_pipeline(type(self)(threshold, center=self.center, unit=self.unit), classifier)
            return float(cross_val_score(codes, data, labels, cv=self.cv, error_score="raise").mean())

        tried: list[float] = [best, *np.linspace(low, high, TRIED).tolist()]
        try:
            return max(tried, key=accuracy)
        except FeatureError:
            raise
        except ValueError as error:
            raise FeatureError(f"classifier: {files.one_line(error)}; give it more samples, or another one") from error

    def _cuts(self, dtype: Any, of: Any = slice(None)) -> tuple[Any, Any]:
        """What values of the features `of` have to exceed, or fall below, to be 1 or -1."""
        middle, size = self.center_[of], self.scale_[of]
        reach = size * (self.threshold_[of] if np.ndim(self.threshold_) else self.threshold_)
        fixed = self.constant_[of]  # coded 0
        above, below = np.where(fixed, np.inf, middle + reach), np.where(fixed, -np.inf, middle - reach)
        return above.astype(dtype), below.astype(dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


@final
class BinaryQuantizer(FeatureQuantizer):
    """Features to {0, 1}: 1 above the threshold. Arguments and attributes are those of `FeatureQuantizer`."""

    _code = "binary"

    def _codes(self, x: Any, above: Any, below: Any) -> Any:
        return x > above


@final
class TernaryQuantizer(FeatureQuantizer):
    """Features to {-1, 0, 1}: the sign where the distance from zero is above the threshold, else 0.

    Arguments and attributes are those of `FeatureQuantizer`.
    """

    _code = "ternary"

    def _codes(self, x: Any, above: Any, below: Any) -> Any:
        return (x > above).astype(np.int8) - (x < below)


QUANTIZERS: dict[Code, type[FeatureQuantizer]] = {"binary": BinaryQuantizer, "ternary": TernaryQuantizer}
