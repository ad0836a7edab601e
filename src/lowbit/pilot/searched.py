"""The part of a trial that searches: formats for each layer within a budget, a student that has them, and its record.

What every choice of formats costs is measured on the pilot's runtime first, so that a budget can be milliseconds or
bytes of the file, and so that choices which the runtime cannot run are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lowbit.batches import Batches
from lowbit.costs import MeasuredCosts
from lowbit.granularity import parse_granularity
from lowbit.methods.search.explore import Sample
from lowbit.methods.search.judge import Point
from lowbit.methods.search.run import Search, search
from lowbit.methods.search.space import space_of
from lowbit.pilot.measured import Choices, fingerprint
from lowbit.pilot.record import PointRow, ReasonRow, Score, SearchRow
from lowbit.pilot.task import Task
from lowbit.pilot.trained import epoch_rows, finite, prepared, warnings_kept
from lowbit.recipe import Rule

_WINDOWS = 20  # of the samples, to show how the policy moved


def choices(task: Task, model: nn.Module) -> Choices:
    """The choices of formats that the task searches, each in all layers that it does.

    Raises:
        LowbitError: a choice or a layer does not exist.
    """
    assert task.search is not None
    assert task.recipe is not None
    grouping, rule = task.search.grouping, _rule(task)
    space = space_of(model, task.search.choices, recipe=task.recipe, rule=rule, granularity=grouping)
    return Choices({str(choice): space.recipe_of(space.uniform(choice)) for choice in space.choices}, space.layers)


def train(
    task: Task, model: nn.Module, training: Batches, costs: MeasuredCosts, *, seed: int, progress: bool
) -> tuple[nn.Module, Search, list[str]]:
    """A student of `model` whose formats were searched as the task says; how that went, and what is to be told.

    Raises:
        LowbitError: an option does not fit the model, a budget cannot be met, or training went astray.
    """
    assert task.search is not None
    assert task.recipe is not None
    with warnings_kept() as told:
        student, result = search(
            model,
            training,
            task.search.choices,
            task.search.budgets,
            recipe=task.recipe,
            rule=_rule(task),
            granularity=task.search.grouping,
            **task.search.options("choices", "budget", "granularity"),
            augment=task.search.augment(task.black),
            measured_costs=costs,
            folder=prepared(task, fingerprint(task, task.search.budget, costs)),
            seed=seed,
            progress=progress,
        )
    left_out = [f"{choice} is left out of the search: {reason}" for choice, reason in result.refused.items()]
    return student, result, [*left_out, *told]


def _rule(task: Task) -> Rule:
    return Rule(granularity=parse_granularity(task.granularity))


def row(task: Task, result: Search, post_training: Score | None, gain: Score | None) -> SearchRow:
    """The record of a search, in plain fields."""
    assert task.search is not None
    first = [members[0] for members in result.layers]

    def point(one: Point) -> PointRow:
        chosen = tuple(one.choices[layer] for layer in first)
        predicted, loss, agreement = map(finite, (one.predicted, one.loss, one.agreement))
        return PointRow(
            one.name,
            chosen,
            {str(name): spent for name, spent in one.costs.items()},
            one.fits,
            predicted,
            loss,
            agreement,
        )

    return SearchRow(
        result.by,
        task.search.loss,
        task.search.loss in ("kl", "labels"),
        result.choices,
        dict(result.refused),
        result.layers,
        {str(name): most for name, most in result.budgets.items()},
        result.sensitivities,
        len(result.samples),
        movement(result.samples, len(result.layers), len(result.choices)),
        tuple(ReasonRow(r.layers, r.choice, r.share, r.sentence) for r in result.reasons),
        point(result.found),
        tuple(map(point, result.candidates)),
        tuple(map(point, result.front)),
        epoch_rows(result.epochs),
        result.best,
        finite(result.before),
        finite(result.after),
        post_training,
        gain,
    )


def movement(samples: Sequence[Sample], decisions: int, choices: int) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """The share of each choice in each decision, `[windows][decisions][choices]`, of the samples in order."""
    many = min(_WINDOWS, len(samples))
    if not many:
        return ()
    chosen = torch.tensor([sample.assignment for sample in samples]).reshape(len(samples), decisions)
    shares = [window.float().mean(0) for window in F.one_hot(chosen, choices).tensor_split(many)]
    return tuple(tuple(tuple(round(s, 3) for s in row) for row in window.tolist()) for window in shares)
