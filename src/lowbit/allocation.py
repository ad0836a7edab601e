"""The best assignment of choices within a budget, exactly: the multiple-choice knapsack problem, solved by HiGHS.

    minimize    sum_d sum_c  loss[d][c] x[d, c]
    subject to  sum_c x[d, c] = 1  for each decision d,    sum_d sum_c cost[d][c] x[d, c] <= budget,    x in {0, 1}

A decision is what is chosen for one layer, or for several together; each may have choices of its own.

References:
    Dong et al., HAWQ-V2: Hessian aware trace-weighted quantization of neural networks, 2019,
        https://arxiv.org/abs/1911.03852, section 3.2: sensitivities that add up, and the front of all budgets.
    Huangfu and Hall, Parallelizing the dual revised simplex method, 2018 (HiGHS), as `scipy.optimize.milp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from lowbit.errors import RecipeError

Assignment: TypeAlias = "tuple[int, ...]"  # the number of a choice, for each decision
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


def limit_of(budget: Budget, prices: Prices, alike: float | None = None) -> Limit:
    """A budget in figures; `alike` is what the network costs with the choice that the budget is `like`.

    Raises:
        RecipeError: it is below the cheapest or above the dearest assignment.
    """
    most = budget.most if alike is None else budget.share * alike
    assert most is not None  # a budget has one or the other
    least, dearest = prices.extent
    if most < least:
        raise RecipeError(
            f"budget {budget.cost}: {most:.6g} is below {least:.6g}, the cheapest assignment; raise it, or add cheaper "
            "choices"
        )
    if most > dearest:
        raise RecipeError(
            f"budget {budget.cost}: {most:.6g} is above {dearest:.6g}, the dearest assignment, which then needs no "
            "search; lower it, or add dearer choices"
        )
    return Limit(prices, most)


Losses: TypeAlias = "Sequence[Sequence[float]]"  # [decisions][choices]
# HiGHS stops 1e-6 before the optimum: the spread of losses is so many times as large, and a tie in between
_UNITS, _TIE = 1e5, 1e-4
_EXACT = {"mip_rel_gap": 0.0}


def solve(losses: Losses, limits: Sequence[Limit]) -> Assignment:
    """The assignment of least total loss within all limits; of equal losses, the cheapest by the first limit.

    Args:
        losses: of each choice of each decision, finite.
        limits: the budgets; none for no limit.

    Raises:
        RecipeError: nothing fits the limits, or a loss is not finite.
    """
    sizes = [len(row) for row in losses]
    table = np.concatenate([np.asarray(row, dtype=np.float64) for row in losses])
    if not np.isfinite(table).all():
        raise RecipeError("a loss is not finite, so assignments cannot be compared; look at the float model's outputs")
    target = table * (_UNITS / (float(np.ptp(table)) or 1.0))
    if limits:  # a tie goes to the cheaper
        target = target + _TIE * _shares(limits[0])
    one_each = LinearConstraint(np.repeat(np.eye(len(sizes)), sizes, axis=1), 1, 1)
    rooms = [1.0] * len(limits)
    for attempt in range(20):
        rows = [LinearConstraint(_shares(limit)[None], -np.inf, r) for limit, r in zip(limits, rooms, strict=True)]
        found = milp(target, integrality=1, bounds=Bounds(0, 1), constraints=[one_each, *rows], options=_EXACT)
        if found.x is None:
            break
        assignment = tuple(int(part.argmax()) for part in np.split(found.x, np.cumsum(sizes)[:-1]))
        over = [i for i, limit in enumerate(limits) if not limit.holds(assignment)]
        if not over:
            return assignment
        for i in over:  # the solver's tolerance let it through: ask for a hair less
            rooms[i] -= 1e-7 * 2.0**attempt
    raise RecipeError(f"no assignment fits the {len(limits)} budgets together; raise one of them")


def _shares(limit: Limit) -> npt.NDArray[np.float64]:
    """Each choice's cost as a share of what the limit leaves to the decisions."""
    room = limit.most - limit.prices.fixed
    table = np.concatenate([np.asarray(row, dtype=np.float64) for row in limit.prices.table])
    return table / (room if room > 0 else 1.0)


def front(losses: Losses, prices: Prices, others: Sequence[Limit] = (), *, points: int = 33) -> list[Assignment]:
    """The best assignments for a ladder of budgets, cheapest first: each costs more than the one before and is better.

    The budgets lie between the cheapest and the dearest assignment, evenly on a logarithmic scale.
    """
    least, most = prices.extent
    found: list[Assignment] = []
    for budget in np.geomspace(max(least, 1e-12), max(most, 1e-12), points):
        limit = Limit(prices, max(float(budget), least))
        try:
            assignment = solve(losses, [limit, *others])
        except RecipeError:
            continue  # another budget forbids what this one allows
        if not found or _loss(losses, assignment) < _loss(losses, found[-1]):
            found.append(assignment)
    return found


def _loss(losses: Losses, assignment: Assignment) -> float:
    return float(sum(row[chosen] for row, chosen in zip(losses, assignment, strict=True)))
