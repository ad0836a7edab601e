"""What an assignment costs, and what it may: BOPs, weight bytes, and time or file bytes as a runtime has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from lowbit.allocation import Assignment, Budget, CostName, Limit, Prices, limit_of
from lowbit.costs import LayerCost, MeasuredCosts
from lowbit.errors import RecipeError
from lowbit.methods.search.space import Choice, Space
from lowbit.methods.search.supernet import Parts


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
        alike = None
        if budget.like is not None:
            choice = Choice.parse(budget.like)
            if choice not in space.choices:
                known = ", ".join(map(str, space.choices))
                raise RecipeError(f"budget {budget.cost}: like {budget.like!r} is no choice of the space ({known})")
            alike = table.total(space.uniform(choice))
        found.append(limit_of(budget, table, alike))
    return tuple(found)
