"""Which layers need wider activations: what the outputs gain if one tensor alone is not rounded.

A few tensors, often the first or those behind a sum, can carry most of the error of a network with 8-bit activations.
Each is measured by itself: all others stay as they are, this one passes unrounded, and the outputs are compared with
the float model's on held-out inputs. Those that gain most read 16-bit inputs instead, at a price that is told: a layer
with 16-bit activations runs on floats in today's runtimes.
"""

from __future__ import annotations

import copy
import glob
from dataclasses import dataclass, replace

from torch import nn

from lowbit.batches import Batches, outputs_of
from lowbit.errors import CalibrationError
from lowbit.formats import Int
from lowbit.graph import input_quantizers
from lowbit.layers import weighted_layers
from lowbit.objectives import relative_error
from lowbit.progress import track
from lowbit.quantization import calibrate, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe

WIDE = Int(16)


@dataclass(frozen=True)
class Sensitivity:
    """The relative squared error of the outputs if the inputs of these layers, which share a tensor, are not rounded.

    `widened` says whether they were among those that gain most.
    """

    layers: tuple[str, ...]
    error: float
    widened: bool


@dataclass(frozen=True)
class Widening:
    """The relative squared error of the outputs as the recipe stood and as it is returned; tensors, best gain first."""

    error_before: float
    error_after: float
    tensors: tuple[Sensitivity, ...]


def widen(
    model: nn.Module,
    recipe: Recipe,
    batches: Batches,
    held_out: Batches,
    *,
    most: int = 2,
    progress: bool = True,
) -> tuple[Recipe, Widening]:
    """`recipe` with wider activations for the layers whose inputs cost the most accuracy.

    Args:
        model: the float model.
        recipe: what happens to which layer.
        batches: inputs that calibrate.
        held_out: other inputs, a list, that decide.
        most: widen at most so many tensors, and only those without which the outputs come closer to the float model's.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches.
        RecipeError, LayerError: the recipe does not fit the model.
    """
    held_out = list(held_out)
    if not held_out:
        raise CalibrationError("got no held-out batches; give at least one (a list, not a used-up generator)")
    student = quantize(model, recipe)
    calibrate(student, batches, progress=progress)
    target = outputs_of(copy.deepcopy(model).eval(), held_out)
    before = relative_error(outputs_of(student, held_out), target)
    readers: dict[Quantizer, list[str]] = {}
    for layer, quantizer in input_quantizers(student).items():
        if quantizer.format.bits < WIDE.bits:
            readers.setdefault(quantizer, []).append(layer)
    found = []
    for quantizer, layers in track([*readers.items()], "measure sensitivity", show=progress):
        hook = quantizer.register_forward_hook(lambda _, args, output: args[0])
        try:
            found.append((relative_error(outputs_of(student, held_out), target), tuple(layers)))
        finally:
            hook.remove()
    found.sort()
    chosen = [layers for error, layers in found[:most] if error < before]
    rules = recipe.resolve(weighted_layers(student)) if chosen else {}
    wider = [
        replace(rule, match=glob.escape(name), activations=WIDE)
        for layers in chosen
        for name in layers
        if (rule := rules[name]) is not None
    ]
    after = before
    if wider:
        recipe = replace(recipe, rules=(*recipe.rules, *wider))
        student = quantize(model, recipe)
        calibrate(student, batches, progress=progress)
        after = relative_error(outputs_of(student, held_out), target)
    rows = tuple(Sensitivity(layers, error, layers in chosen) for error, layers in found)
    return recipe, Widening(before, after, rows)
