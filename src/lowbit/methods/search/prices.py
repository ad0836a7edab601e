"""What an assignment costs, and what it may: BOPs, weight bytes, and time or file bytes as a runtime has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from lowbit.costs import LayerCost, MeasuredCosts
from lowbit.errors import RecipeError
from lowbit.methods.search.space import Assignment, Choice, Space
from lowbit.methods.search.supernet import Parts

CostName = Literal["bops", "bytes", "latency", "file"]


@dataclass(frozen=True)
class Budget:
    """The most a network may cost.

    `cost` is ``bops``, ``bytes`` (packed weights and scales), ``latency`` (milliseconds a call) or ``file`` (bytes of
    the searched layers as the file stores them); the last two need `MeasuredCosts`. `most` is a figure in these units;
    or `like` names a choice, and the budget is `share` times what the network costs with it in all searched layers.
    """

    cost: CostName = "bops"
    most: float | None = None
    like: str | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.cost not in get_args(CostName):
            raise RecipeError(f"budget cost {self.cost!r} is unknown; expected {', '.join(get_args(CostName))}")
        if (self.most is None) == (self.like is None):
            raise RecipeError(f"budget {self.cost}: give either most, a figure, or like, the name of a choice")
        for name in ("most", "share"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RecipeError(f"budget {self.cost}: {name} is {value}, expected a positive number")


@dataclass(frozen=True)
class Prices:
    """One kind of cost: `table[decision][choice]`, and `fixed` for all that no decision changes."""

    cost: CostName
    table: tuple[tuple[float, ...], ...]
    fixed: float

    def total(self, assignment: Assignment) -> float:
        """What the whole network costs."""
        return self.fixed + sum(row[chosen] for row, chosen in zip(self.table, assignment, strict=True))

    @property
    def extent(self) -> tuple[float, float]:
        """The least and the most that any assignment costs."""
        return self.fixed + sum(map(min, self.table)), self.fixed + sum(map(max, self.table))


def counted(space: Space, parts: Sequence[Parts]) -> dict[CostName, Prices]:
    """BOPs and bytes of every choice; `parts` are the choices' in the order of the space."""
    found: dict[CostName, Prices] = {}
    fields: dict[CostName, Callable[[LayerCost], int]] = {
        "bops": lambda row: row.bops,
        "bytes": lambda row: row.weight_bytes,
    }
    others = [row for name, row in parts[0].rows.items() if name not in space.layers]
    for name, field in fields.items():
        table = tuple(
            tuple(float(sum(field(part.rows[layer]) for layer in decision.layers)) for part in parts)
            for decision in space.decisions
        )
        found[name] = Prices(name, table, float(sum(map(field, others))))
    return found


def measured(space: Space, found: MeasuredCosts) -> dict[CostName, Prices]:
    """Milliseconds and file bytes of every choice, from what a runtime was measured to take.

    What belongs to no layer takes as long as all layers together make it: each carries its share, see
    `MeasuredCosts.total_ms`.

    Raises:
        RecipeError: the measurement lacks a layer or a choice.
    """
    missing = [
        f"{layer!r} in {choice}"
        for layer in space.layers
        for choice in map(str, space.choices)
        if choice not in found.milliseconds.get(layer, {})
    ]
    if missing:
        raise RecipeError(f"the measured costs lack {missing[0]}; measure the layers and choices of this search")
    share = 1 / len(space.layers)

    def table(of: Callable[[str, str], float]) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(sum(of(layer, str(choice)) for layer in decision.layers) for choice in space.choices)
            for decision in space.decisions
        )

    times = table(lambda layer, choice: found.milliseconds[layer][choice] + share * found.rest_ms[choice])
    sizes = table(lambda layer, choice: found.file_bytes[layer][choice])
    return {"latency": Prices("latency", times, 0.0), "file": Prices("file", sizes, 0.0)}


class Capped(Protocol):
    """What the exploring phase knows of a budget."""

    @property
    def most(self) -> float:
        """The budget."""

    def cost(self, assignment: Assignment) -> float:
        """What the whole network costs."""


@dataclass(frozen=True)
class Limit:
    """A budget in figures."""

    prices: Prices
    most: float

    def cost(self, assignment: Assignment) -> float:
        """What the whole network costs."""
        return self.prices.total(assignment)

    def holds(self, assignment: Assignment) -> bool:
        """Whether an assignment is within the budget."""
        return self.prices.total(assignment) <= self.most


def limits_of(budgets: Sequence[Budget], space: Space, prices: Mapping[CostName, Prices]) -> tuple[Limit, ...]:
    """The budgets in figures.

    Raises:
        RecipeError: a cost that was not measured, a choice that is not in the space, or a budget below the cheapest or
            above the dearest assignment.
    """
    found = []
    for budget in budgets:
        if budget.cost not in prices:
            raise RecipeError(
                f"budget {budget.cost}: nothing was measured; pass measured_costs=measure_formats(...), or budget bops"
            )
        table = prices[budget.cost]
        if budget.like is None:
            assert budget.most is not None
            most = budget.most
        else:
            alike = Choice.parse(budget.like)
            if alike not in space.choices:
                known = ", ".join(map(str, space.choices))
                raise RecipeError(f"budget {budget.cost}: like {budget.like!r} is no choice of the space ({known})")
            most = budget.share * table.total(space.uniform(alike))
        least, dearest = table.extent
        if most < least:
            raise RecipeError(
                f"budget {budget.cost}: {most:.6g} is below {least:.6g}, the cheapest assignment; raise it, or add "
                "cheaper formats"
            )
        if most > dearest:
            raise RecipeError(
                f"budget {budget.cost}: {most:.6g} is above {dearest:.6g}, the dearest assignment, which then needs no "
                "search; lower it, or add dearer formats"
            )
        found.append(Limit(table, most))
    return tuple(found)
