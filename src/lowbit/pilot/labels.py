"""Whether labels suit what a model returns, looked at before anything runs."""

from __future__ import annotations

from torch import Tensor

from lowbit.errors import DataError


def check_labels(metric: str, outputs: Tensor, labels: Tensor) -> None:
    """Whether a metric of lowbit's can be computed from such outputs and labels; an own metric takes any.

    Args:
        metric: of the pilot file.
        outputs: of some samples, `[n, ...]`.
        labels: of all samples, `[N, ...]`.

    Raises:
        DataError: it cannot.
    """
    if metric == "accuracy":
        _classes(outputs, labels)
    elif metric == "r2" and labels[0].numel() != outputs[0].numel():
        raise DataError(
            f"kpi.metric r2: the model returns {_shape(outputs)} a sample, targets are {_shape(labels)}, expected as "
            "many numbers; check which array is labels, or use a module:function metric"
        )


def _classes(outputs: Tensor, labels: Tensor) -> None:
    where = "kpi.metric accuracy: "
    if labels.dim() != 1:
        one = labels[0].numel() == 1
        remedy = "store labels[:, 0]" if one else "for targets use r2, of one-hot rows store labels.argmax(1)"
        raise DataError(f"{where}labels are {_shape(labels)} a sample, expected one class; {remedy}")
    if labels.is_floating_point():
        raise DataError(
            f"{where}labels are floating-point numbers, which are targets, expected whole numbers, which are classes; "
            "store labels.astype('int64'), or use r2"
        )
    if outputs.dim() != 2:
        raise DataError(
            f"{where}the model returns {_shape(outputs)} a sample, expected one score a class; use a module:function "
            "metric"
        )
    scores, low, high = max(2, outputs.shape[1]), int(labels.min()), int(labels.max())
    if not 0 <= low <= high < scores:
        raise DataError(
            f"{where}labels are {low} to {high}, the model returns scores of {scores} classes, which are numbered from "
            "0; check which array is labels"
        )


def _shape(batch: Tensor) -> str:
    """Of one sample, in words for a single number."""
    return str(list(batch.shape[1:])) if batch.dim() > 1 else "a number"
