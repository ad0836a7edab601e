"""What a search decides: which layers share a decision, and which formats each may have."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lowbit.allocation import Assignment
from lowbit.errors import FormatError, RecipeError
from lowbit.formats import FLOAT, Format, parse
from lowbit.layers import weighted_layers, why_not
from lowbit.recipe import Recipe, Rule

SPACES: dict[str, tuple[str, ...]] = {
    "fliqs-s-int": ("int4", "int8"),
    "fliqs-s-float": ("e2m1", "e4m3fn", "bf16"),
    "fliqs-l-int": ("int4", "int5", "int6", "int7", "int8"),
    "fliqs-l-float": ("e2m1", "e2m2", "e3m2", "e3m3", "e4m3fn", "bf16"),
}


@dataclass(frozen=True)
class Choice:
    """Formats of a layer's weights and of its input; None is float32. Written ``int4``, ``mid2/int2``, ``float32``."""

    weights: Format | None
    activations: Format | None

    @staticmethod
    def parse(text: str) -> Choice:
        """The choice that `text` names: a format for both, or ``weights/activations``.

        Raises:
            FormatError: no format has that name.
        """
        names = text.split("/")
        if len(names) > 2:
            raise FormatError(f"choice {text!r}: expected one format, or two as weights/activations")
        weights, activations = (None if name == FLOAT else parse(name) for name in (names[0], names[-1]))
        return Choice(weights, activations)

    def __str__(self) -> str:
        weights, activations = (str(one) if one else FLOAT for one in (self.weights, self.activations))
        return weights if weights == activations else f"{weights}/{activations}"


@dataclass(frozen=True)
class Decision:
    """Layers that have one choice in common."""

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """All assignments of `choices` to `decisions`; other layers are as `recipe` says.

    `rule` is what a searched layer has beside its formats: granularity, and how scales are chosen.
    """

    decisions: tuple[Decision, ...]
    choices: tuple[Choice, ...]
    recipe: Recipe
    rule: Rule

    @property
    def layers(self) -> tuple[str, ...]:
        """Every searched layer."""
        return tuple(layer for decision in self.decisions for layer in decision.layers)

    def uniform(self, choice: Choice) -> Assignment:
        """The same choice for every decision."""
        return (self.choices.index(choice),) * len(self.decisions)

    def assignment(self, choices: Mapping[str, str]) -> Assignment:
        """The assignment of choices named by layer."""
        names = [str(choice) for choice in self.choices]
        return tuple(names.index(choices[decision.layers[0]]) for decision in self.decisions)

    def names(self, assignment: Assignment) -> dict[str, str]:
        """The name of the choice, by layer."""
        pairs = zip(self.decisions, assignment, strict=True)
        return {layer: str(self.choices[chosen]) for decision, chosen in pairs for layer in decision.layers}

    def recipe_of(self, assignment: Assignment) -> Recipe:
        """The recipe of an assignment."""
        pairs = zip(self.decisions, assignment, strict=True)
        return self.with_choices({layer: self.choices[chosen] for d, chosen in pairs for layer in d.layers})

    def with_choices(self, choices: Mapping[str, Choice]) -> Recipe:
        """The recipe in which layers have the given choices."""
        rules = [
            replace(self.rule, match=glob.escape(layer), weights=choice.weights, activations=choice.activations)
            for layer, choice in choices.items()
        ]
        return replace(self.recipe, rules=(*self.recipe.rules, *rules))


def space_of(
    model: nn.Module,
    choices: Sequence[str] | str,
    *,
    recipe: Recipe = Recipe(()),
    rule: Rule = Rule(),
    granularity: str | Sequence[str] = "layer",
    refused: Mapping[str, str] | None = None,
    least: int = 2,
) -> Space:
    """The space over the layers of a model that `recipe` does not name.

    Args:
        model: a float network.
        choices: names of formats, see `Choice`, or of one of `SPACES`.
        recipe: what happens to layers that are not searched.
        rule: what searched layers have beside formats.
        granularity: ``layer``, ``model``, or regular expressions: layers that one matches, with equal groups, decide
            together, such as ``r"(.*)\\.(?:query|key|value)"``; others for themselves.
        refused: choices that a runtime cannot run, with the reason: they are left out.
        least: how many choices there have to be.

    Raises:
        RecipeError: no layer is left, too few choices, or an expression that matches nothing.
        FormatError: no format has that name.
    """
    named = list(SPACES.get(choices, (choices,)) if isinstance(choices, str) else choices)
    parsed = list(dict.fromkeys(Choice.parse(name) for name in named))
    kept = tuple(choice for choice in parsed if str(choice) not in (refused or {}))
    if len(kept) < least:
        left_out = "; ".join(f"{name}: {reason}" for name, reason in (refused or {}).items())
        raise RecipeError(
            f"choices {', '.join(named) or 'are empty'}: a search needs {least} at least"
            + (f", and the runtime refuses {left_out}" if left_out else "; give more formats")
        )
    layers = weighted_layers(model)
    fixed = recipe.resolve(layers) if recipe.rules else {}
    searched = [name for name, layer in layers.items() if fixed.get(name) is None and not why_not(layer)]
    if not searched:
        raise RecipeError(
            f"no layer of {type(model).__name__} is left to search: the recipe names all {len(layers)}; "
            "leave some out of its rules"
        )
    return Space(tuple(_decisions(searched, granularity)), kept, recipe, rule)


def _decisions(layers: list[str], granularity: str | Sequence[str]) -> Iterable[Decision]:
    if granularity == "model":
        return [Decision("model", tuple(layers))]
    if granularity == "layer":
        return [Decision(name, (name,)) for name in layers]
    patterns = [granularity] if isinstance(granularity, str) else list(granularity)
    groups: dict[object, list[str]] = {}
    used = set()
    for name in layers:
        key: object = name
        for pattern in patterns:
            if match := _compiled(pattern).fullmatch(name):
                key = (pattern, match.groups())
                used.add(pattern)
                break
        groups.setdefault(key, []).append(name)
    for pattern in patterns:
        if pattern not in used:
            raise RecipeError(f"granularity {pattern!r} matches no layer; names are {', '.join(layers[:5])} ...")
    return [Decision(" + ".join(members), tuple(members)) for members in groups.values()]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"granularity {pattern!r}: {error}; expected 'layer', 'model' or regular expressions over layer names"
        ) from None
