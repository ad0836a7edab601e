"""The fixed phase: what was found is trained by itself, in the steps that exploring left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.batches import Batch, Batches
from lowbit.errors import TrainingError
from lowbit.families import FamilyName
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe
from lowbit.training.keeping import Fitted
from lowbit.training.objective import Objective
from lowbit.training.samples import Steps
from lowbit.training.students import finished, known_by, learn


@dataclass(frozen=True)
class Trained:
    """A finished student, how it was trained, and its agreement before and after that."""

    student: nn.Module
    fitted: Fitted
    before: float
    after: float


def train_found(
    shared: nn.Module,
    recipe: Recipe,
    objective: Objective,
    some: list[Batch],
    train: Callable[[int], Batches],
    steps: tuple[int, int, int],
    *,
    quantizer: FamilyName,
    about: Mapping[str, object],
    folder: Path | None,
    training: Mapping[str, Any],
) -> Trained:
    """A student of the shared weights by the recipe that was found.

    Args:
        shared: float, with the BatchNorm statistics of what was found.
        recipe: its formats.
        objective: what it is held to.
        some: inputs that set ranges.
        train: the batches of an epoch.
        steps: those of an epoch, of the exploring phase, and of the whole search.
        quantizer: how ranges learn.
        about: what a checkpoint is known by, beside the student and the data.
        folder: of the search.
        training: keywords of `learn`.

    Raises:
        TrainingError: training went astray.
    """
    length, explored, whole = steps
    student = quantize(shared, recipe, fold=False)
    calibrate(student, some, progress=False)
    before, rest, fitted = objective.agreement(student), whole - explored, Fitted((), 0, 0)
    if rest > 0:
        # two at least, so that there is an epoch to choose, and delta to update
        several = min(rest, max(2, math.ceil(rest / length)))
        fitted = learn(
            student,
            objective,
            Steps(train, length, rest // several, first=explored),
            quantizer=quantizer,
            epochs=several,
            about={**about, **known_by(student, objective, train)},
            folder=None if folder is None else folder / "fixed",
            **training,
        )
    student = finished(student)
    after = objective.agreement(student)
    if not math.isfinite(after):
        raise TrainingError("the trained student's outputs are not finite; lower rate, or set clip")
    return Trained(student, fitted, before, after)
