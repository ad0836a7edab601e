"""What the choices of a trial that searches or factorizes cost in the pilot's runtime, measured once for all trials."""

from __future__ import annotations

from torch import nn

from lowbit.batches import Batch
from lowbit.costs import MeasuredCosts
from lowbit.export.measured import measure_formats
from lowbit.pilot import coded, factorized, searched
from lowbit.pilot.measured import Choices
from lowbit.pilot.outputs import example, in_batches
from lowbit.pilot.task import Settings, Sources, Task


def measure_ahead(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> None:
    """Measure what the trial of a task will: where it has features, that is of the float model with codes.

    Raises:
        LowbitError: as `measure`, or an option of the features does not fit the model or the data.
    """
    if task.features is not None:
        bits, task = coded.give(task, model, data.train, seed=settings.of(task).seed)
        model = bits.model
    measure(task, model, data, settings, progress)


def measure(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> MeasuredCosts:
    """What the choices of a task that searches or factorizes cost in the runtime; they are kept for all trials.

    Raises:
        LowbitError: a choice or a layer does not exist, or the runtime can run none of the choices.
    """
    timed = example(data.test, task.batch)
    choices = choices_of(task, model, timed)
    return measure_formats(
        model,
        choices.recipes,
        choices.layers,
        in_batches(data.calibration),
        timed,
        models=choices.models,
        runtime=settings.runtime,
        threads=settings.threads,
        opset=task.opset,
        cache=settings.costs,
        progress=progress,
    )


def choices_of(task: Task, model: nn.Module, timed: Batch) -> Choices:
    """What a task that searches or factorizes can choose from; `timed` is the batch that would be timed.

    Raises:
        LowbitError: a choice or a layer does not exist.
    """
    return factorized.choices(task, model, timed) if task.factorize else searched.choices(task, model)
