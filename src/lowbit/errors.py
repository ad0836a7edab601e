"""What can go wrong, as one exception tree.

Every error a user can cause is a `LowbitError` whose message says where it happened, what came, what was expected and
what to do about it, in one line. The command line prints that line and exits with status 2; anything else that escapes
is a bug in lowbit.
"""

from __future__ import annotations


class LowbitError(Exception):
    """Root of every error that lowbit raises on purpose."""


class FormatError(LowbitError):
    """A number format or granularity that does not exist, or values it cannot hold."""


class RecipeError(LowbitError):
    """A recipe, or pilot file, that cannot be read or does not fit the model."""


class LayerError(LowbitError):
    """A layer that cannot be quantized as asked: the message names the layer."""


class CalibrationError(LowbitError):
    """Calibration that saw no data, or data without a usable range."""


class DataError(LowbitError):
    """Data or weights on disk, or from a user's function, that cannot be used."""


class FeatureError(LowbitError, ValueError):
    """Features, labels or thresholds that cannot be used; a ValueError, as scikit-learn's conventions ask."""


class DataWarning(UserWarning):
    """Data that can be used but should be looked at: outliers, or inputs unlike those of the calibration."""


class TrainingError(LowbitError):
    """Training that cannot go on: no data, a loss that is not finite, or a checkpoint of another run."""


class TrainingWarning(UserWarning):
    """Training that will run but may not do what was hoped for: a weak teacher, ranges that do not fit."""


class ExportError(LowbitError):
    """A model that cannot be written as ONNX, or that the chosen runtime cannot run."""


class VerificationError(LowbitError):
    """An exported file that does not behave like the model it was made from."""
