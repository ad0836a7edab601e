"""One trial: quantize a copy of the model, calibrate, export, verify, and score the file in its runtime.

A trial depends only on its arguments and writes only into its own folder, `trial.json` last: a folder with a
`trial.json` is a finished trial, anything else is done again. Only training goes on where it was, and what formats cost
on the runtime, measured for a search or a factorization, is kept for all trials.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from torch import nn

from lowbit import files
from lowbit.batches import on_accelerator
from lowbit.environment import this_processor
from lowbit.errors import LowbitError
from lowbit.pilot import trained
from lowbit.pilot.examined import examine
from lowbit.pilot.making import make
from lowbit.pilot.record import Trial, read
from lowbit.pilot.task import Settings, Sources, Task
from lowbit.progress import within


def run_trial(
    task: Task,
    model: nn.Module,
    data: Sources,
    settings: Settings,
    *,
    progress: bool = True,
) -> Trial:
    """Do a trial, or read it if its folder holds it finished. A failing variant is a failed trial, not an exception.

    Raises:
        DataError: results cannot be written, or the float baseline is missing.
    """
    done = finished(task)
    if done is not None:
        return done
    settings = settings.of(task)
    torch.manual_seed(settings.seed)
    began = time.perf_counter()
    task.folder.mkdir(parents=True, exist_ok=True)
    for stale in task.folder.glob(".*.????????.*"):  # what a kill left of `files.replacing`
        stale.unlink()
    (task.folder / "trial.json").unlink(missing_ok=True)  # else, killed below, it would describe the wrong file
    try:
        with threads(settings.threads), within(task.name):
            trial = _measure(task, model, data, settings, progress)
    except LowbitError as error:
        if task.recipe is None:
            raise  # nothing can be compared without the float baseline
        trial = Trial(task.name, task.recipe.to_dict(), task.fingerprint, "failed", error=str(error))
    trial = replace(trial, seconds=time.perf_counter() - began, processor=str(this_processor()))
    files.write_json(task.folder / "trial.json", asdict(trial))
    if trial.verdict != "failed":
        trained.tidy(task)
    return trial


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads: sums come out differently in the last bit on more, and figures must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> Trial:
    with on_accelerator(model):
        made = make(task, model, data, settings, progress)
    return examine(task, model, made, data, settings, progress)


def finished(task: Task) -> Trial | None:
    """The trial in the task's folder if it is complete, did not fail, and answers the same question.

    Raises:
        DataError: its record is damaged.
    """
    if not all((task.folder / name).exists() for name in ("trial.json", "model.onnx", "outputs.npy")):
        return None
    trial = read(Trial, task.folder / "trial.json")
    return trial if trial.fingerprint == task.fingerprint and trial.verdict != "failed" else None
