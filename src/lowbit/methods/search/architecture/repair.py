"""An assignment brought within a budget, where costs do not add up over decisions: no knapsack solver takes them.

Costs are known exactly for every assignment, and at once; so the best one is looked for by following them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.allocation import Assignment
from lowbit.methods.search.architecture.combined import CombinedLimit

Losses = Sequence[Sequence[float]]  # [decisions][options]
_FULL = 0.98  # of a budget
_HALVINGS = 30


def solve(losses: Losses, limit: CombinedLimit, near: Assignment) -> Assignment:
    """An assignment of small loss within the budget.

    Each decision has the option of least loss + price x cost, its cost being what it changes `near`; the price is the
    lowest at which the whole is within the budget, by bisection.
    """
    costs = [
        [limit.cost((*near[:d], option, *near[d + 1 :])) / limit.most for option in range(len(row))]
        for d, row in enumerate(losses)
    ]

    def at(price: float) -> Assignment:
        return tuple(
            min(range(len(row)), key=lambda i, row=row, own=own: row[i] + price * own[i])  # type: ignore[misc]
            for row, own in zip(losses, costs, strict=True)
        )

    if limit.holds(found := at(0.0)):
        return found
    low, high = 0.0, 1e-3
    while not limit.holds(found := at(high)):
        low, high = high, 4 * high
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        if limit.holds(one := at(price)):
            found, high = one, price
        else:
            low = price
    return found


def within(
    assignment: Assignment, losses: Losses, limit: CombinedLimit, free: Sequence[int] | None = None
) -> Assignment | None:
    """The assignment changed, one decision at a time, until it is within the budget and uses nearly all of it.

    Of the changes that save cost the one of least loss for what it saves is made, until the budget holds; then, while
    less than `_FULL` of it is used, of those that still fit the one of least loss for what it takes.

    Args:
        assignment: where to begin.
        losses: `[decisions][options]`, what is lost with an option.
        limit: the budget.
        free: numbers of the decisions that may change, all by default.

    Returns:
        None if the free decisions cannot meet the budget.
    """
    free = range(len(assignment)) if free is None else free
    cost = limit.cost(assignment)
    while cost > limit.most:
        changes = [(loss / (cost - c), c, a) for loss, c, a in _changes(assignment, losses, limit, free) if c < cost]
        if not changes:
            return None
        _, cost, assignment = min(changes)
    while cost < _FULL * limit.most:
        every = _changes(assignment, losses, limit, free)
        changes = [(loss / (c - cost), c, a) for loss, c, a in every if cost < c <= limit.most]
        if not changes:
            break
        _, cost, assignment = min(changes)
    return assignment


def _changes(
    assignment: Assignment, losses: Losses, limit: CombinedLimit, free: Sequence[int]
) -> list[tuple[float, float, Assignment]]:
    """Every change of one decision: what more it loses, and the cost and the assignment that come of it."""
    found = []
    for d in free:
        for number, loss in enumerate(losses[d]):
            if number != assignment[d]:
                changed = (*assignment[:d], number, *assignment[d + 1 :])
                found.append((loss - losses[d][assignment[d]], limit.cost(changed), changed))
    return found
