"""Whether what a pilot file asks for fits the model, the data and the machine; each problem as a line."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from lowbit.batches import Batch
from lowbit.errors import DataError, LowbitError
from lowbit.layers import weighted_layers
from lowbit.pilot.spec import DataSpec, PilotSpec
from lowbit.quantization import quantize
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.data import Data

T = TypeVar("T")


def tried(found: list[str], do: Callable[[], T], where: str = "") -> T | None:
    """What `do` returns; an error goes to `found`."""
    try:
        return do()
    except LowbitError as error:
        found.append(f"{where}{error}")
        return None


def opening(section: DataSpec, base: Path, seed: int, key: str) -> Callable[[], Data]:
    """Opens a section of data; its errors begin with the key."""

    def opened() -> Data:
        try:
            return section.open(base, seed)
        except LowbitError as error:
            raise DataError(f"{key}: {error}") from error

    return opened


def unwritable(folder: Path) -> list[str]:
    """Why a folder cannot be written, if it cannot."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        return [f"run folder '{folder}': '{there}' is a file; choose another folder with --out"]
    return [] if os.access(there, os.W_OK) else [f"run folder '{folder}': '{there}' cannot be written; choose another"]


def mismatches(model: nn.Module, spec: PilotSpec, base: Path, where: str) -> list[str]:
    """What in the variants does not fit the layers of the model."""
    found, named = list[str](), dict(model.named_modules())
    for i, variant in enumerate(spec.variants):
        at = f"{where}: variants[{i}] ('{variant.name}')"
        coded = variant.features
        if coded and coded.layer and coded.layer not in named:
            found.append(f"{at}: features.layer: {_no_layer(coded.layer, named, model)}")
        if not (coded and coded.layer) and not (
            variant.search or variant.factorize or (variant.output and variant.output.heads != "shared")
        ):
            tried(found, lambda v=variant: sized(model, v.to_recipe(base, where)), f"{at}: ")  # type: ignore[misc]
        for feature in variant.distill.features if variant.distill else ():
            if feature not in named:
                found.append(f"{at}: distill.features: {_no_layer(feature, named, model)}")
    return found


def unfit_outputs(model: nn.Module, spec: PilotSpec, batch: Batch, where: str) -> list[str]:
    """Which variants write an output along a path that the model, by what it returns for a batch, does not have."""
    from lowbit.methods.curves.run import check_output

    model, found = copy.deepcopy(model).eval(), list[str]()
    for i, variant in enumerate(spec.variants):
        if variant.output:
            at = f"{where}: variants[{i}] ('{variant.name}'): output: "
            tried(found, lambda: check_output(model, batch), at)
    return found


def _no_layer(name: str, named: Collection[str], model: nn.Module) -> str:
    near = difflib.get_close_matches(name, [one for one in named if one], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"layers are {', '.join(weighted_layers(model))}"
    return f"the model has no layer {name!r}; {hint}"


def sized(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A student by a recipe, with scales that take no time: it fits or it does not, and it has its size.

    Raises:
        LowbitError: the recipe does not fit the model.
    """
    return quantize(model, replace(recipe, rules=tuple(replace(r, weight_scale="absmax") for r in recipe.rules)))
