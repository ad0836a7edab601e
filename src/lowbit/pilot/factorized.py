"""The part of a trial that factorizes: layers become chains of small ones, and its record.

The recipe file of such a variant has a section ``factorize`` that says what became of each layer, so that the same
student is made again without choosing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowbit.batches import Batches
from lowbit.costs import Cost
from lowbit.methods.factorization.explain import FactorizedLayer, Spent
from lowbit.methods.factorization.run import Factorization, factorize
from lowbit.pilot.record import FactorizationRow, FactorizedLayerRow, SpentRow
from lowbit.pilot.trained import finite, prepared
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.pilot.spec import FactorizeSpec
    from lowbit.pilot.trial import Task


def make(
    task: Task, model: nn.Module, calibration: Batches, *, seed: int, progress: bool
) -> tuple[nn.Module, Factorization]:
    """A student of `model` with chains as the task says, and what came of it; BatchNorms stay for a task that distills.

    Raises:
        LowbitError: the recipe, a choice or an option does not fit the model, or a budget cannot be met.
    """
    assert task.factorize is not None
    assert task.recipe is not None
    folder = prepared(task, task.fingerprint)
    fold = task.distill is None
    return student_of(
        model,
        task.recipe,
        task.factorize,
        calibration,
        task.black,
        fold=fold,
        folder=folder,
        seed=seed,
        progress=progress,
    )


def student_of(
    model: nn.Module,
    recipe: Recipe,
    spec: FactorizeSpec,
    calibration: Batches,
    black: tuple[float, ...],
    *,
    seed: int,
    fold: bool = True,
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


def _spent(cost: Cost | Spent) -> SpentRow:
    milliseconds = cost.milliseconds if isinstance(cost, Spent) else None
    return SpentRow(cost.parameters, cost.macs, cost.bops, cost.weight_bytes, cost.activation_bytes, milliseconds)
