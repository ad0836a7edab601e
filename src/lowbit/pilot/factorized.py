"""The part of a trial that factorizes: layers become chains of small ones, and its record.

The recipe file of such a variant has a section ``factorize`` that says what became of each layer, so that the same
student is made again without choosing.

What every choice costs is measured on the pilot's runtime first: the record tells the milliseconds of each layer, and a
budget can be milliseconds or bytes of the file. Where neither is the budget, a student is made without times as well.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit.batches import Batch, Batches
from lowbit.costs import Cost, MeasuredCosts, cost
from lowbit.formats import Format
from lowbit.layers import weighted_layers
from lowbit.methods.factorization.allocate import Option, dense_ms
from lowbit.methods.factorization.choices import CHOICES, Choice, weight_format
from lowbit.methods.factorization.explain import FactorizedLayer, Spent
from lowbit.methods.factorization.ground import ground_of, options_of
from lowbit.methods.factorization.run import Factorization, factorize
from lowbit.methods.factorization.variants import chain_variants
from lowbit.pilot.measured import Choices, decide, fingerprint
from lowbit.pilot.record import FactorizationRow, FactorizedLayerRow, SpentRow
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.task import Task
from lowbit.pilot.trained import finite, prepared
from lowbit.recipe import Recipe


def choices(task: Task, model: nn.Module, example: Batch) -> Choices:
    """What layers can become, and the dense layers in the recipe's formats: each choice in all layers that can have it.

    Raises:
        LowbitError: the recipe or a choice does not fit the model.
    """
    assert task.factorize is not None
    assert task.recipe is not None
    spec, middle = task.factorize, "" if task.factorize.exact else task.factorize.middle
    several = spec.budget is not None or spec.tolerance is not None
    named = spec.choices or (CHOICES if several else ("2x",))
    by_glob = named if isinstance(named, dict) else {"*": named}
    wanted = {pattern: [Choice.parse(name) for name in _listed(names)] for pattern, names in by_glob.items()}
    layers = [*named] if isinstance(named, dict) else spec.layers
    ground = ground_of(model, task.recipe, layers, several)
    options, _ = options_of(ground, wanted, weight_format(middle) if middle else None)
    having: dict[str, list[str]] = {}
    dense: dict[str, Format | None] = {}
    for name, found in options.items():
        for option in found:
            if option.chain is None:
                dense[option.name] = option.rule.weights
            else:
                having.setdefault(option.name, []).append(glob.escape(name))
        own = ground.rule(name).weights
        dense.setdefault(str(own), own)
    recipes, models = dict[str, Recipe](), dict[str, nn.Module]()
    for choice, weights in dense.items():
        picks = {name: Option(choice, None, replace(ground.rule(name), weights=weights)) for name in options}
        recipes[choice] = ground.recipe_of(picks, spec.solver)
    for choice, names in having.items():
        chains, of_chains = chain_variants(model, task.recipe, [choice], layers=names, middle=middle)
        models |= chains
        recipes |= of_chains
    return Choices(recipes, [row.name for row in cost(model, example).layers], models)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def times_decide(task: Task) -> bool:
    """Whether the task cannot do without what was measured."""
    assert task.factorize is not None
    return decide([task.factorize.budget] if task.factorize.budget else [])


def untimed(costs: MeasuredCosts) -> list[str]:
    """What is to be told of the choices that the runtime refused."""
    return [f"{choice} has no milliseconds: {reason}" for choice, reason in costs.refused.items()]


def make(
    task: Task,
    model: nn.Module,
    calibration: Batches,
    costs: MeasuredCosts | None,
    *,
    classes: bool,
    seed: int,
    progress: bool,
) -> tuple[nn.Module, Factorization]:
    """A student of `model` with chains as the task says, and what came of it; BatchNorms stay for a task that distills.

    `costs` are those of its `choices`, None where they could not be measured and do not decide; `classes` tells whether
    outputs may be class scores.

    Raises:
        LowbitError: the recipe, a choice or an option does not fit the model, or a budget cannot be met.
    """
    assert task.factorize is not None
    assert task.recipe is not None
    spec = task.factorize
    budgets = [spec.budget] if spec.budget else []
    whole = costs is not None and (times_decide(task) or not costs.refused)  # the method takes no table with gaps
    student, found = student_of(
        model,
        task.recipe,
        spec,
        calibration,
        task.black,
        fold=task.distill is None,
        costs=costs if whole else None,
        classes=classes,
        folder=prepared(task, task.fingerprint if costs is None else fingerprint(task, budgets, costs)),
        seed=seed,
        progress=progress,
    )
    return student, found if costs is None or whole else _with_times(found, task.recipe, model, costs)


def _with_times(found: Factorization, recipe: Recipe, model: nn.Module, costs: MeasuredCosts) -> Factorization:
    """The same with the milliseconds that are known."""
    rules = recipe.resolve(weighted_layers(model))

    def timed(layer: FactorizedLayer) -> FactorizedLayer:
        times = costs.milliseconds[layer.name]
        before = replace(layer.before, milliseconds=dense_ms(times, rules[layer.name]))
        return replace(layer, before=before, after=replace(layer.after, milliseconds=times.get(layer.choice)))

    return replace(found, layers=tuple(map(timed, found.layers)))


def student_of(
    model: nn.Module,
    recipe: Recipe,
    spec: FactorizeSpec,
    calibration: Batches,
    black: tuple[float, ...],
    *,
    seed: int,
    fold: bool = True,
    costs: MeasuredCosts | None = None,
    classes: bool = True,
    folder: Path | None = None,
    progress: bool = True,
) -> tuple[nn.Module, Factorization]:
    """A student of `model` with chains as a file says, and what came of it; see `factorize`."""
    seed = seed if spec.seed is None else spec.seed
    norms = None
    if spec.norms:
        change, generator = spec.augment(black), torch.Generator().manual_seed(seed)
        norms = [change(batch, generator) for batch in calibration] if change else calibration
    return factorize(
        model,
        recipe,
        calibration,
        **spec.options("budget", "norms", "seed"),
        budget=spec.budget.budget() if spec.budget else None,
        norms=norms,
        fold=fold,
        measured_costs=costs,
        classes=classes,
        folder=folder,
        seed=seed,
        progress=progress,
    )


def recipe_of(task: Task, found: Factorization, seed: int) -> dict[str, Any]:
    """The recipe as the file has it: formats of the model's layers, and what became of each."""
    assert task.factorize is not None
    assert task.recipe is not None
    seed = seed if task.factorize.seed is None else task.factorize.seed
    return {**task.recipe.to_dict(), "factorize": task.factorize.found(found.choices, seed)}


def row(found: Factorization) -> FactorizationRow:
    """The record of a factorization, in plain fields."""
    return FactorizationRow(
        found.solver,
        found.exact,
        tuple(map(_layer, found.layers)),
        dict(found.skipped),
        _spent(found.cost_before),
        _spent(found.cost_after),
        {} if found.budget is None else {str(found.budget[0]): found.budget[1]},
        finite(found.error),
        finite(found.agreement),
        found.recalibrated,
    )


def _layer(layer: FactorizedLayer) -> FactorizedLayerRow:
    fitted = layer.refitted
    return FactorizedLayerRow(
        layer.name,
        layer.shape,
        layer.choice,
        layer.kind,
        layer.rank,
        dict(layer.errors),
        finite(fitted.error_before) if fitted else None,
        finite(fitted.error_after) if fitted else None,
        _spent(layer.before),
        _spent(layer.after),
        layer.advice,
    )


def _spent(of: Cost | Spent) -> SpentRow:
    milliseconds = of.milliseconds if isinstance(of, Spent) else None
    return SpentRow(of.parameters, of.macs, of.bops, of.weight_bytes, of.activation_bytes, milliseconds)
