"""The part of a trial that distills: a student trained toward the float model's outputs, and its record."""

from __future__ import annotations

from torch import nn

from lowbit.batches import Batches
from lowbit.methods.distillation.run import Distillation, distill
from lowbit.pilot.record import DistillationRow, RangeRow, Score, TeacherRow
from lowbit.pilot.task import Task
from lowbit.pilot.trained import epoch_rows, finite, prepared, warnings_kept


def train(
    task: Task, model: nn.Module, student: nn.Module, training: Batches, *, seed: int, progress: bool
) -> tuple[nn.Module, Distillation, list[str]]:
    """A calibrated student of `model`, distilled as the task says; how that went, and the warnings on the way.

    Raises:
        LowbitError: an option does not fit the model, or training went astray.
    """
    assert task.distill is not None
    with warnings_kept() as told:
        student, result = distill(
            student,
            model,
            training,
            **task.distill.options(),
            augment=task.distill.augment(task.black),
            folder=prepared(task, task.fingerprint),
            seed=seed,
            progress=progress,
        )
    return student, result, told


def row(result: Distillation, post_training: Score | None, gain: Score | None) -> DistillationRow:
    """The record of a distillation, in plain fields."""
    teacher = result.teacher
    return DistillationRow(
        result.quantizer,
        result.exact,
        result.loss,
        TeacherRow(teacher.confidence, teacher.agreement, teacher.accuracy, teacher.concerns),
        epoch_rows(result.epochs),
        result.best,
        finite(result.before),
        finite(result.after),
        tuple(RangeRow(r.name, r.low_before, r.high_before, r.low, r.high, r.delta, r.clipped) for r in result.ranges),
        post_training,
        gain,
    )
