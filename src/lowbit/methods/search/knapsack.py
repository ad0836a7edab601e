"""The best assignment within a budget, exactly: the multiple-choice knapsack problem, solved by HiGHS.

    minimize    sum_d sum_c  loss[d][c] x[d, c]
    subject to  sum_c x[d, c] = 1  for each decision d,    sum_d sum_c cost[d][c] x[d, c] <= budget,    x in {0, 1}

References:
    Dong et al., HAWQ-V2: Hessian aware trace-weighted quantization of neural networks, 2019,
        https://arxiv.org/abs/1911.03852, section 3.2: sensitivities that add up, and the front of all budgets.
    Huangfu and Hall, Parallelizing the dual revised simplex method, 2018 (HiGHS), as `scipy.optimize.milp`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from lowbit.errors import RecipeError
from lowbit.methods.search.prices import Limit, Prices
from lowbit.methods.search.space import Assignment

Losses = Sequence[Sequence[float]]  # [decisions][choices]
# HiGHS stops 1e-6 before the optimum: the spread of losses is so many times as large, and a tie in between
_UNITS, _TIE = 1e5, 1e-4
_EXACT = {"mip_rel_gap": 0.0}


def solve(losses: Losses, limits: Sequence[Limit], *, without: Sequence[int] = ()) -> Assignment:
    """The assignment of least total loss within all limits; of equal losses, the cheapest by the first limit.

    Args:
        losses: of each choice of each decision, finite.
        limits: the budgets; none for no limit.
        without: choices that no decision may have.

    Raises:
        RecipeError: nothing fits the limits, or a loss is not finite.
    """
    table = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(table).all():
        raise RecipeError("a loss is not finite, so assignments cannot be compared; look at the float model's outputs")
    decisions, choices = table.shape
    target = table.ravel() * (_UNITS / (float(np.ptp(table)) or 1.0))
    if limits:  # a tie goes to the cheaper
        target = target + _TIE * _shares(limits[0])
    constraints = [LinearConstraint(np.kron(np.eye(decisions), np.ones(choices)), 1, 1)]
    rooms = [1.0] * len(limits)
    bounds = Bounds(0, np.tile([float(choice not in without) for choice in range(choices)], decisions))
    for attempt in range(20):
        rows = [LinearConstraint(_shares(limit)[None], -np.inf, r) for limit, r in zip(limits, rooms, strict=True)]
        found = milp(target, integrality=1, bounds=bounds, constraints=[*constraints, *rows], options=_EXACT)
        if found.x is None:
            break
        assignment = tuple(int(i) for i in found.x.reshape(decisions, choices).argmax(1))
        over = [i for i, limit in enumerate(limits) if not limit.holds(assignment)]
        if not over:
            return assignment
        for i in over:  # the solver's tolerance let it through: ask for a hair less
            rooms[i] -= 1e-7 * 2.0**attempt
    raise RecipeError(f"no assignment fits the {len(limits)} budgets together; raise one of them")


def _shares(limit: Limit) -> npt.NDArray[np.float64]:
    """Each choice's cost as a share of what the limit leaves to the decisions."""
    room = limit.most - limit.prices.fixed
    return np.asarray(limit.prices.table, dtype=np.float64).ravel() / (room if room > 0 else 1.0)


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
