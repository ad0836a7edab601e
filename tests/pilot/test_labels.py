"""Labels that do not suit outputs and metric are refused before anything runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit.errors import DataError
from lowbit.pilot.labels import check_labels

SCORES, NUMBERS = torch.rand(2, 10), torch.rand(2, 3)
CLASSES = torch.arange(10).repeat(3)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels"),
    [
        ("accuracy", SCORES, CLASSES),
        ("accuracy", torch.rand(2, 1), CLASSES % 2),
        ("r2", NUMBERS, torch.rand(9, 3)),
        ("r2", torch.rand(2, 1), torch.rand(9)),
        ("agreement", SCORES, torch.rand(9, 2)),
        ("own.py:metric", SCORES, torch.rand(9, 2)),
    ],
)
def test_what_fits_passes(metric: str, outputs: Tensor, labels: Tensor) -> None:
    check_labels(metric, outputs, labels)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "told"),
    [
        ("accuracy", SCORES, CLASSES + 1, "labels are 1 to 10, the model returns scores of 10 classes, which are numb"),
        ("accuracy", torch.rand(2, 1), CLASSES, "labels are 0 to 9, the model returns scores of 2 classes"),
        ("accuracy", SCORES, CLASSES[:, None], r"labels are \[1\] a sample, expected one class; store labels\[:, 0\]"),
        ("accuracy", SCORES, torch.rand(9, 2), r"labels are \[2\] a sample, expected one class; for targets use r2"),
        ("accuracy", SCORES, CLASSES.float(), r"expected whole numbers.*store labels\.astype\('int64'\), or use r2"),
        ("accuracy", torch.rand(2, 10, 4), CLASSES, r"the model returns \[10, 4\] a sample, expected one score a cla"),
        ("r2", NUMBERS, torch.rand(9, 2), r"the model returns \[3\] a sample, targets are \[2\], expected as many"),
        ("r2", NUMBERS, torch.rand(9), r"the model returns \[3\] a sample, targets are a number"),
    ],
)
def test_what_does_not_fit_is_told(metric: str, outputs: Tensor, labels: Tensor, told: str) -> None:
    with pytest.raises(DataError, match=told):
        check_labels(metric, outputs, labels)
