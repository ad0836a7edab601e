"""Architecture and formats as one assignment: what it selects in the shared weights, what it costs, what it is called.

Decisions of the architecture come first, then those of formats. Bit operations do not add up over them, as they do over
formats alone: the MACs of a layer depend on its own width and on that of the layer before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lowbit.allocation import Assignment, Budget, CostName
from lowbit.errors import RecipeError
from lowbit.formats import Block, Format
from lowbit.granularity import PerGroup, PerTensor
from lowbit.methods.search.architecture.elastic import ElasticMobileNet
from lowbit.methods.search.architecture.plan import LayerShape, Plan
from lowbit.methods.search.space import Choice, Space
from lowbit.recipe import Recipe, Rule

_FLOAT_BITS = 32


@dataclass(frozen=True)
class CombinedSpace:
    """Every architecture of a plan in every format of a space, whose layers are those of the plan.

    Raises:
        RecipeError: there is nothing to decide, or scales that cannot follow a part of a weight.
    """

    plan: Plan
    formats: Space

    def __post_init__(self) -> None:
        if not self.plan.decisions and len(self.formats.choices) < 2:
            raise RecipeError("the plan has one architecture, and one format to choose; give more options of either")
        for rule in (self.formats.rule, *self.formats.recipe.rules):
            if isinstance(rule.granularity, PerGroup):
                raise RecipeError(f"{rule.granularity}: groups do not divide every width; use scales per channel")
        used = [r.weights for r in self.formats.recipe.rules] + [c.weights for c in self.formats.choices]
        for one in used:
            if isinstance(one, Block):
                raise RecipeError(f"{one}: blocks do not divide every width; leave block formats out")

    @property
    def counts(self) -> tuple[int, ...]:
        """How many options each decision has."""
        formats = [len(self.formats.choices)] * len(self.formats.decisions)
        return (*(len(options) for options in self.plan.decisions.values()), *formats)

    def architecture(self, assignment: Assignment) -> dict[str, int]:
        """The architecture, with what has one option only."""
        chosen = zip(self.plan.decisions.items(), assignment, strict=False)
        return self.plan.complete({name: options[number] for (name, options), number in chosen})

    def choices(self, assignment: Assignment) -> Assignment:
        """The decisions of formats alone."""
        return assignment[len(self.plan.decisions) :]

    def recipe(self, assignment: Assignment) -> Recipe:
        """The recipe of the extracted network."""
        return self.formats.recipe_of(self.choices(assignment))

    def by_name(self, values: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
        """Values `[decisions][options]`, by the names of decisions and options."""
        formats = {decision.name: self.formats.choices for decision in self.formats.decisions}
        every = [*self.plan.decisions.items(), *formats.items()]
        return {n: dict(zip(map(str, o), row, strict=False)) for (n, o), row in zip(every, values, strict=True)}

    def rules(self, assignment: Assignment) -> dict[str, Rule | None]:
        """Formats of every layer."""
        fixed = self._fixed
        pairs = zip(self.formats.decisions, self.choices(assignment), strict=True)
        chosen = {layer: self._rules[number] for decision, number in pairs for layer in decision.layers}
        return fixed | chosen

    @cached_property
    def _rules(self) -> list[Rule]:
        return [
            replace(self.formats.rule, weights=choice.weights, activations=choice.activations)
            for choice in self.formats.choices
        ]

    @cached_property
    def _fixed(self) -> dict[str, Rule | None]:
        names = [layer.name for layer in self.plan.layers(self.plan.largest)]
        return self.formats.recipe.resolve(names) if self.formats.recipe.rules else {}


class Combined(nn.Module):
    """An elastic network in which assignments are selected."""

    def __init__(self, network: ElasticMobileNet, space: CombinedSpace) -> None:
        super().__init__()
        self.network, self.space = network, space

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network returns in the selected assignment."""
        return self.network(*args, **kwargs)  # type: ignore[no-any-return]

    def select(self, assignment: Assignment) -> None:
        """Select architecture and formats."""
        self.network.choose(self.space.architecture(assignment))
        self.network.set_formats(self.space.rules(assignment))


@dataclass(frozen=True)
class CombinedPrices:
    """One kind of cost, ``bops`` or ``bytes``, for images of `size`, height and width."""

    name: CostName
    space: CombinedSpace
    size: tuple[int, int]

    def total(self, assignment: Assignment) -> float:
        """What the extracted and quantized network costs."""
        return sum(self._layers(assignment).values())

    def _layers(self, assignment: Assignment) -> dict[str, float]:
        plan, architecture = self.space.plan, self.space.architecture(assignment)
        rules = self.space.rules(assignment)
        if self.name == "bytes":
            return {layer.name: _bytes(layer, rules.get(layer.name)) for layer in plan.layers(architecture)}
        macs = plan.macs(architecture, *self.size)
        return {name: macs[name] * _bit_product(rules.get(name)) for name in macs}

    @property
    def extent(self) -> tuple[float, float]:
        """The least and the most that any assignment costs."""
        return self._extreme(min, self.space.plan.smallest), self._extreme(max, self.space.plan.largest)

    def _extreme(self, best: Callable[[list[float]], float], architecture: Mapping[str, int]) -> float:
        """In one architecture layers cost what they cost by themselves: the best choice of each decision."""
        formats = self.space.formats
        tables = [self._layers(self.of(architecture, choice)) for choice in formats.choices]
        searched = sum(best([sum(t[n] for n in d.layers) for t in tables]) for d in formats.decisions)
        return searched + sum(cost for name, cost in tables[0].items() if name not in formats.layers)

    def of(self, architecture: Mapping[str, int], choice: Choice) -> Assignment:
        """The assignment of an architecture with one choice everywhere."""
        numbers = [options.index(architecture[name]) for name, options in self.space.plan.decisions.items()]
        return (*numbers, *self.space.formats.uniform(choice))


def _bits(format: Format | None) -> int:
    return _FLOAT_BITS if format is None else format.bits


def _bit_product(rule: Rule | None) -> int:
    """What each MAC of a layer counts."""
    return _bits(rule.weights if rule else None) * _bits(rule.activations if rule else None)


def _bytes(layer: LayerShape, rule: Rule | None) -> int:
    """Packed codes and float32 scales, as `lowbit.costs` counts them."""
    numbers, format = math.prod(layer.weight), rule.weights if rule else None
    scales = 0 if rule is None or format is None else 1 if isinstance(rule.granularity, PerTensor) else layer.weight[0]
    return -(-numbers * _bits(format) // 8) + 4 * scales


@dataclass(frozen=True)
class CombinedLimit:
    """A budget in figures."""

    prices: CombinedPrices
    most: float

    def cost(self, assignment: Assignment) -> float:
        """What the whole network costs."""
        return self.prices.total(assignment)

    def holds(self, assignment: Assignment) -> bool:
        """Whether an assignment is within the budget."""
        return self.cost(assignment) <= self.most


def limit_of(budget: Budget, space: CombinedSpace, size: tuple[int, int]) -> CombinedLimit:
    """The budget in figures; what it is `like` is the largest architecture.

    Raises:
        RecipeError: a cost that is measured for one architecture only, a choice that is not in the space, or a budget
            below the cheapest or above the dearest assignment.
    """
    if budget.cost not in ("bops", "bytes"):
        raise RecipeError(
            f"budget {budget.cost}: a runtime is measured on one architecture, and this search has many; use bops or "
            "bytes, and search formats of what it found by what was measured"
        )
    prices = CombinedPrices(budget.cost, space, size)
    most = budget.most
    if most is None:
        alike, choices = Choice.parse(budget.like or ""), space.formats.choices
        if alike not in choices:
            known = ", ".join(map(str, choices))
            raise RecipeError(f"budget {budget.cost}: like {budget.like!r} is no choice of the space ({known})")
        most = budget.share * prices.total(prices.of(space.plan.largest, alike))
    least, dearest = prices.extent
    if most < least:
        raise RecipeError(
            f"budget {budget.cost}: {most:.6g} is below {least:.6g}, the smallest architecture in the cheapest "
            "formats; raise it, or add cheaper options"
        )
    if most > dearest:
        raise RecipeError(
            f"budget {budget.cost}: {most:.6g} is above {dearest:.6g}, the largest architecture in the dearest "
            "formats, which then needs no search; lower it, or add dearer options"
        )
    return CombinedLimit(prices, most)
