"""Why each layer has its format, in a plain sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowbit.errors import RecipeError
from lowbit.methods.search import knapsack
from lowbit.methods.search.knapsack import Losses
from lowbit.methods.search.prices import Limit
from lowbit.methods.search.space import Assignment, Space

_SHRUNK = (0.02, 0.05, 0.1, 0.2, 0.5)  # of what there is to decide about


@dataclass(frozen=True)
class Reason:
    """The choice of a decision: its share of the budget, and why it is no other."""

    layers: tuple[str, ...]
    choice: str
    share: float
    sentence: str


def reasons_of(space: Space, found: Assignment, losses: Losses, limits: Sequence[Limit]) -> tuple[Reason, ...]:
    """Why each decision of an assignment is as it is, by the losses that chose it.

    Each choice is held against the cheaper one that would cost least for what it saves, and the dearer one that would
    gain most for what it takes; and both against what a percent of the budget is worth elsewhere.
    """
    limit, percent = limits[0], limits[0].most / 100
    whole = sum(row[chosen] for row, chosen in zip(losses, found, strict=True)) / 100 or 1.0
    worth = _worth(losses, limits) * percent / whole
    reasons = []
    for decision, chosen, row, costs in zip(space.decisions, found, losses, limit.prices.table, strict=True):
        others = {c: ((costs[c] - costs[chosen]) / percent, (row[c] - row[chosen]) / whole) for c in range(len(row))}
        cheaper = {c: lost / -spent for c, (spent, lost) in others.items() if spent < 0}
        dearer = {c: -lost / spent for c, (spent, lost) in others.items() if spent > 0 and lost < 0}
        told = []
        if cheaper:
            spent, lost = others[down := min(cheaper, key=lambda c: cheaper[c])]
            told.append(
                f"{space.choices[down]} would save {-spent:.2g} % of the budget and change the loss by {lost:+.2g} %"
            )
        if dearer:
            spent, lost = others[up := max(dearer, key=lambda c: dearer[c])]
            told.append(
                f"{space.choices[up]} would take {spent:.2g} % of the budget and change the loss by {lost:+.2g} %"
            )
        told.append(
            f"elsewhere {worth:.2g} % of the loss hang on each percent of the budget"
            if told
            else "no other choice costs less or loses less"
        )
        choice = str(space.choices[chosen])
        reasons.append(Reason(decision.layers, choice, costs[chosen] / limit.most, f"{choice}: {'; '.join(told)}."))
    return tuple(reasons)


def _worth(losses: Losses, limits: Sequence[Limit]) -> float:
    """How much the best total loss grows for each unit of cost that the first budget shrinks."""
    first, *others = limits
    least, _ = first.prices.extent
    now = knapsack.solve(losses, limits)
    for shrunk in _SHRUNK:  # until something has to give: costs are coarse
        most = first.prices.total(now) - shrunk * (first.prices.total(now) - least)
        try:
            then = knapsack.solve(losses, [Limit(first.prices, most), *others])
        except RecipeError:  # another budget forbids what is left
            return 0.0
        grown = sum(row[b] - row[a] for row, a, b in zip(losses, now, then, strict=True))
        saved = first.prices.total(now) - first.prices.total(then)
        if grown > 0 and saved > 0:
            return grown / saved
    return 0.0
