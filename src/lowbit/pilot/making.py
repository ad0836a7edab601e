"""A task becomes a student: what its stages make of the float model, in order, and what is told of it.

A variant that is distilled or searched is post-trained too, by the same recipe: that student is scored on the test
data, and what training gains over it is part of the record. Where layers become chains, factorization takes the place
of post-training. Where the output is written along a path, the float model learns that first, and its student is
compared with it in points; what the file returns is decoded, and compared with labels and with the user's float model.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import nn

from lowbit import files
from lowbit.batches import Batches
from lowbit.costs import MeasuredCosts
from lowbit.errors import LowbitError
from lowbit.methods.distillation.run import Distillation
from lowbit.methods.factorization.run import Factorization
from lowbit.methods.search.run import Search
from lowbit.pilot import coded, costing, curved, distilled, factorized, searched
from lowbit.pilot.outputs import in_batches, model_outputs
from lowbit.pilot.statistics import Array
from lowbit.pilot.task import Settings, Sources, Task
from lowbit.post_training.levels import post_train
from lowbit.quantization import calibrate, freeze, origin, quantize
from lowbit.training.students import finished as folded


@dataclass(frozen=True)
class Made:
    """A student, the recipe it was asked for, in sentences how it was made, and for a trained one how that went.

    `source` is the float model that it is the student of: not the user's, where that learned to return points. `before`
    are the outputs on the test data of the student that post-training or factorization alone makes, `found` is what
    came of the latter, `curved` what became of the output, and `coded` what became of the features.
    """

    student: nn.Module
    source: nn.Module
    recipe: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    result: Distillation | Search | None = None
    before: Array | None = None
    found: Factorization | None = None
    curved: curved.Curved | None = None
    coded: coded.Coded | None = None


def make(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> Made:
    """The student of a task; its recipe, wider where that was asked for, or searched, beside the file."""
    if task.recipe is None:
        return Made(model, model)
    if task.features is not None:
        return _make_coded(task, model, data, settings, progress)
    if task.factorize is not None:
        return _make_factorized(task, model, data, settings, progress)
    return _make_post_trained(task, model, data, settings, progress)


def _make_coded(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> Made:
    """The student of a task whose features become codes: a float model with codes comes before all else."""
    bits, task = coded.give(task, model, data.train, seed=settings.seed)
    bits.save(task.folder)
    finish = _make_post_trained if task.factorize is None else _make_factorized
    made = finish(task, model, data, settings, progress, bits)
    return replace(made, notes=(*bits.notes, *made.notes), coded=bits)


def _make_post_trained(
    task: Task,
    model: nn.Module,
    data: Sources,
    settings: Settings,
    progress: bool,
    bits: coded.Coded | None = None,
) -> Made:
    """The student of a task that post-trains, and may train it then; with `bits`, one of the float model with codes."""
    assert task.recipe is not None
    seed, batches = settings.seed, in_batches(data.calibration)
    teacher, model = model, model if bits is None else bits.model
    asked, student, warned = task.recipe, model, list[str]()
    result: Distillation | Search | None = None
    curve: curved.Curved | None = None
    if task.output is not None:
        curve, warned = curved.give(task, model, data.train, data.calibration, in_batches, seed=seed, progress=progress)
        student = model = teacher = curve.model
    ended = _ending(curve, batches)
    if task.search is not None:
        costs = costing.measure(task, model, data, settings, progress)
        student, result, warned = searched.train(
            task, model, in_batches(data.train), costs, seed=seed, progress=progress
        )
        asked = result.recipe
    post_trained, did = post_train(
        model,
        asked,
        batches,
        level=task.level,
        widen_most=task.widen_most,
        classes=settings.classes,
        seed=seed,
        progress=progress,
    )
    did = did if curve is None else curved.in_points(did)
    noted, told = origin(post_trained), f"post-training, level {task.level}: {did}"
    assert noted is not None
    section = {} if curve is None else curve.section()
    section |= {} if bits is None else bits.section()
    if curve is not None:
        curve.save(task.folder)
    files.write_text(task.folder / "recipe.yaml", yaml.safe_dump(noted.recipe.to_dict() | section, sort_keys=False))
    recipe = asked.to_dict() | section
    notes = curve.notes if curve else ()
    if task.training is None:
        return Made(ended(post_trained), model, recipe, (*notes, told, *warned), curved=curve)
    before = model_outputs(freeze(ended(post_trained)), data.test, progress)  # as its file would compute
    if task.distill is not None:
        student = quantize(model, noted.recipe, fold=False)
        calibrate(student, batches, progress=progress)
        student, result, more = distilled.train(
            task, teacher, student, in_batches(data.train), seed=seed, progress=progress
        )
        warned = [*warned, *more]
    notes = (*notes, str(result), f"compared with {told}", *warned)
    return Made(ended(student), model, recipe, notes, result, before, curved=curve)


def _ending(curve: curved.Curved | None, calibration: Batches) -> Callable[[nn.Module], nn.Module]:
    """What ends a finished student: a decoder if it returns points, the scale of its codes if it has some."""
    return coded.ended if curve is None else functools.partial(curved.end, curve, calibration)


def _make_factorized(
    task: Task,
    model: nn.Module,
    data: Sources,
    settings: Settings,
    progress: bool,
    bits: coded.Coded | None = None,
) -> Made:
    """The student of a task that factorizes, and may train it then; with `bits`, one of the float model with codes."""
    seed, batches = settings.seed, in_batches(data.calibration)
    teacher, model = model, model if bits is None else bits.model
    costs, untimed = _times(task, model, data, settings, progress)
    student, found = factorized.make(
        task, model, batches, costs, classes=settings.classes, seed=seed, progress=progress
    )
    recipe = factorized.recipe_of(task, found, seed) | ({} if bits is None else bits.section())
    files.write_text(task.folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    if task.distill is None:
        return Made(coded.ended(student), model, recipe, (str(found), *untimed), found=found)
    before = model_outputs(freeze(coded.ended(folded(copy.deepcopy(student)))), data.test, progress)
    student, result, warned = distilled.train(
        task, teacher, student, in_batches(data.train), seed=seed, progress=progress
    )
    notes = (str(result), f"compared with {found}", *untimed, *warned)
    return Made(coded.ended(student), model, recipe, notes, result, before, found)


def _times(
    task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool
) -> tuple[MeasuredCosts | None, list[str]]:
    """What the choices of a task that factorizes cost, and what is to be told where that could not be measured."""
    try:
        costs = costing.measure(task, model, data, settings, progress)
    except LowbitError as error:
        if factorized.times_decide(task):
            raise
        return None, [f"layers have no milliseconds: {error}"]
    return costs, factorized.untimed(costs)
