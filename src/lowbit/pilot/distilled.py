"""The part of a trial that trains: a student distilled from the float model, and its record.

Training keeps its checkpoints in a folder of the trial's, and goes on there when the pilot was killed, or when what
came after it failed and is tried again. Once the trial is finished only the log of the training is left.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lowbit import files
from lowbit.batches import Batches
from lowbit.errors import TrainingWarning
from lowbit.methods.distillation.run import Distillation, distill
from lowbit.pilot.record import DistillationRow, EpochRow, RangeRow, Score, TeacherRow
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.pilot.trial import Task

_LOG = "log.jsonl"
_FINGERPRINT = "fingerprint"  # of the trial that the checkpoints are of


def train(
    task: Task,
    model: nn.Module,
    recipe: Recipe,
    calibration: Batches,
    training: Batches,
    *,
    seed: int,
    progress: bool,
) -> tuple[nn.Module, Distillation, list[str]]:
    """A student of `model` by `recipe`, distilled as the task says; how that went, and the warnings on the way.

    Raises:
        LowbitError: the recipe or an option does not fit the model, or training went astray.
    """
    assert task.distill is not None
    student = quantize(model, recipe, fold=False)
    calibrate(student, calibration, progress=progress)
    with _warnings_kept() as told:
        student, result = distill(
            student,
            model,
            training,
            **task.distill.options(),
            augment=task.distill.augment(task.black),
            folder=_prepared(_folder(task), task.fingerprint),
            seed=seed,
            progress=progress,
        )
    return student, result, told


def tidy(task: Task) -> None:
    """Leave nothing but the log of a training that is not needed any more, and nothing at all of an earlier variant's.

    A kill before this leaves checkpoints, which harm nothing.
    """
    if task.distill is None:
        shutil.rmtree(_folder(task), ignore_errors=True)
    for path in _folder(task).glob("*"):
        if path.name != _LOG:
            path.unlink()


def row(result: Distillation, post_training: Score | None, gain: Score | None) -> DistillationRow:
    """The record of a distillation, in plain fields."""
    teacher = result.teacher
    return DistillationRow(
        result.quantizer,
        result.exact,
        result.loss,
        TeacherRow(teacher.confidence, teacher.agreement, teacher.accuracy, teacher.concerns),
        tuple(EpochRow(e.number, e.loss, _finite(e.score), e.rate, e.seconds) for e in result.epochs),
        result.best,
        _finite(result.before),
        _finite(result.after),
        tuple(RangeRow(r.name, r.low_before, r.high_before, r.low, r.high, r.delta, r.clipped) for r in result.ranges),
        post_training,
        gain,
    )


def _finite(value: float | None) -> float | None:
    """The value as JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None


def _folder(task: Task) -> Path:
    return task.folder / "training"


def _prepared(folder: Path, fingerprint: str) -> Path:
    """The folder to train in: with the checkpoint of the same trial if there is one, else empty."""
    marker = folder / _FINGERPRINT
    if not marker.exists() or files.read_text(marker) != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files.write_text(marker, fingerprint)
    for stale in folder.glob(".*.????????.*"):  # what a kill left of `files.replacing`
        stale.unlink()
    return folder


@contextlib.contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Collect what training warns of within the block; all other warnings go on."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingWarning)
        yield told
    for one in caught:
        if issubclass(one.category, TrainingWarning):
            told.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
