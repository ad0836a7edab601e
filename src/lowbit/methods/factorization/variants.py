"""The networks to measure before a budget of milliseconds can decide: for each choice, all layers as that chain.

    choices = ["int8", "2x int4", "3x int4"]
    models, recipes = lb.chain_variants(model, recipe, choices)
    layers = [row.name for row in lb.cost(model, example).layers]
    table = lb.measure_formats(model, recipes, layers, batches, example, models=models)
    budget = lb.Budget("latency", like="int8", share=0.8)
    student, found = lb.factorize(model, recipe, batches, choices, budget=budget, measured_costs=table)

How long a chain takes is decided by its shapes and formats alone, so no factors are looked for: weights are drawn. Its
BatchNorms are still there; `quantize` folds them, as `factorize` does in the end, into the same operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lowbit.methods.factorization.choices import Choice, weight_format
from lowbit.methods.factorization.ground import ground_of, options_of
from lowbit.recipe import Recipe


def chain_variants(
    model: nn.Module,
    recipe: Recipe,
    choices: Sequence[str],
    *,
    layers: Sequence[str] | None = None,
    middle: str = "int8",
) -> tuple[dict[str, nn.Module], dict[str, Recipe]]:
    """For each choice, the float network in which every layer that can has it, and the recipe for that network.

    A layer that cannot have a choice stays dense there, in the formats of `recipe`, as do layers that are not
    considered. A choice that no layer can have is left out.

    Args:
        model: a float network; it is not changed.
        recipe: as for `factorize`, as are the other arguments.
        choices: names, see `lowbit.methods.factorization.choices`. Dense ones have a recipe alone: their network is
            `model`.
        layers: globs over names; by default all layers but the first and the last.
        middle: format of the depthwise weights.

    Returns:
        Networks with chains, in evaluation mode, and recipes, both by choice: `measure_formats` takes them.

    Raises:
        RecipeError: choices or names that do not exist or fit.
        FormatError: no format has that name.
        LayerError: nothing can be factorized, a rank that a layer cannot have, or weights that are not finite.
    """
    wanted = [Choice.parse(name) for name in dict.fromkeys(choices)]
    ground = ground_of(model, recipe, layers, several=True)
    options, _ = options_of(ground, {"*": wanted}, weight_format(middle) if middle else None)
    models: dict[str, nn.Module] = {}
    recipes: dict[str, Recipe] = {}
    generator = torch.Generator().manual_seed(0)
    for choice in wanted:
        picks = {name: one for name, several in options.items() for one in several if one.name == choice.name}
        if not picks:
            continue
        recipes[choice.name] = ground.recipe_of(picks, "descent")
        if choice.dense:
            continue
        models[choice.name] = found = ground.with_chains(picks)
        for name in picks:
            _draw(found.get_submodule(name), ground.layer(name), generator)
    return models, recipes


def _draw(chain: nn.Module, dense: nn.Module, generator: torch.Generator) -> None:
    """Draw weights with which a chain returns numbers about as large as the dense layer does."""
    *first, last = chain.children()
    weight = dense.get_parameter("weight").detach()
    variance = float(weight.square().sum()) / len(weight)  # of outputs, where inputs have variance 1
    for layer in (*first, last):
        own = layer.get_parameter("weight")
        size = ((variance if layer is last else 1.0) / own[0].numel()) ** 0.5
        own.data.copy_(size * torch.randn(own.shape, generator=generator))
