"""What trials that train have in common: a folder of checkpoints, warnings that become notes, records of epochs.

Training keeps its checkpoints in a folder of the trial's, and goes on there when the pilot was killed, or when what
came after it failed and is tried again. Once the trial is finished only the logs of the training are left. A
factorization keeps the factors that it found there too. An output that learns a path has a folder of its own, because
the student may be distilled afterwards.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowbit import files
from lowbit.errors import TrainingWarning
from lowbit.pilot.record import EpochRow
from lowbit.pilot.task import Task
from lowbit.training.keeping import Epoch

_LOGS = ("log.jsonl", "samples.jsonl")
_FINGERPRINT = "fingerprint"  # of what the checkpoints are of
_STUDENT, OUTPUT = "training", "output"  # folders
WEIGHTS = "weights.safetensors"  # of a float model that learned a path
HEAD = "head.safetensors"  # of codes of features: thresholds, and the linear head that reads them


def prepared(task: Task, fingerprint: str, name: str = _STUDENT) -> Path:
    """The folder to work in: with what the same training or factorization kept if there is something, else empty."""
    folder = task.folder / name
    marker = folder / _FINGERPRINT
    if not marker.exists() or files.read_text(marker) != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files.write_text(marker, fingerprint)
    files.sweep(folder, inside=True)
    return folder


def tidy(task: Task) -> None:
    """Leave nothing but the logs of a training that is not needed any more, and nothing at all of an earlier variant's.

    A kill before this leaves checkpoints, which harm nothing.
    """
    for name, trains in ((_STUDENT, task.training is not None), (OUTPUT, task.output is not None)):
        folder = task.folder / name
        if not trains:
            shutil.rmtree(folder, ignore_errors=True)
        for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
            if path.is_file() and path.name not in _LOGS:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
    if task.output is None:
        (task.folder / WEIGHTS).unlink(missing_ok=True)
    if task.features is None:
        (task.folder / HEAD).unlink(missing_ok=True)


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
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


def epoch_rows(epochs: Iterable[Epoch]) -> tuple[EpochRow, ...]:
    """The record of epochs."""
    return tuple(EpochRow(e.number, e.loss, finite(e.score), e.rate, e.seconds) for e in epochs)


def finite(value: float | None) -> float | None:
    """The value as JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None
