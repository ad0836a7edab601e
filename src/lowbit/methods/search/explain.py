"""Why each layer has its format, in a plain sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowbit import allocation
from lowbit.allocation import Assignment, Limit, Losses
from lowbit.errors import RecipeError
from lowbit.methods.search.space import Space

_SHRUNK = (0.02, 0.05, 0.1, 0.2, 0.5)  # of what there is to decide about


@dataclass(frozen=True)
class Reason:
    """The choice of a decision: its share of the budget, and why it is no other."""

    layers: tuple[str, ...]
    choice: str
    share: float
    sentence: str


def reasons_of(space: Space, found: Assignment, losses: Losses, limits: Sequence[Limit]) -> tuple[Reason, ...]:
    """Why each decision of an assignment is as it is, by the losses that proposed assignments.

    Each choice is held against the cheaper one that would cost least for what it saves, and the dearer one that would
    gain most for what it takes; and both against what a percent of the first budget is worth in all other decisions.
    """
    whole = sum(row[chosen] for row, chosen in zip(losses, found, strict=True)) / 100 or 1.0
    worth = _signed(_worth(losses, limits) * limits[0].most / 100 / whole).lstrip("+")
    reasons = []
    for number, (decision, chosen) in enumerate(zip(space.decisions, found, strict=True)):
        tables = [limit.prices.table[number] for limit in limits]
        percents = [limit.most / 100 for limit in limits]
        spent = [
            [(c - table[chosen]) / percent for c in table] for table, percent in zip(tables, percents, strict=True)
        ]
        lost = [(loss - losses[number][chosen]) / whole for loss in losses[number]]
        cheaper = [c for c in range(len(lost)) if spent[0][c] < 0]
        dearer = [c for c in range(len(lost)) if spent[0][c] > 0 and lost[c] < 0]
        others = [min(cheaper, key=lambda c: lost[c] / -spent[0][c])] if cheaper else []
        others += [min(dearer, key=lambda c: lost[c] / spent[0][c])] if dearer else []
        told = []
        for other in others:
            costs = ", ".join(
                f"{_signed(row[other])} % of the {limit.prices.cost} budget"
                for row, limit in zip(spent, limits, strict=True)
            )
            told.append(f"{space.choices[other]} instead would be {costs} and {_signed(lost[other])} % of the loss")
        told.append(
            f"elsewhere a percent of {limits[0].prices.cost} is worth {worth} % of the loss"
            if told
            else "no other choice costs less or loses less"
        )
        choice = str(space.choices[chosen])
        share = tables[0][chosen] / limits[0].most
        reasons.append(Reason(decision.layers, choice, share, f"{choice}: {'; '.join(told)}."))
    return tuple(reasons)


def _signed(percent: float) -> str:
    """A share with its sign, to two digits."""
    return f"{percent:+,.0f}" if abs(percent) >= 10 else f"{percent:+.2g}"


def _worth(losses: Losses, limits: Sequence[Limit]) -> float:
    """How much the best total loss grows for each unit of cost that the first budget shrinks."""
    first, *others = limits
    least, _ = first.prices.extent
    now = allocation.solve(losses, limits)
    for shrunk in _SHRUNK:  # until something has to give: costs are coarse
        most = first.prices.total(now) - shrunk * (first.prices.total(now) - least)
        try:
            then = allocation.solve(losses, [Limit(first.prices, most), *others])
        except RecipeError:  # another budget forbids what is left
            return 0.0
        grown = sum(row[b] - row[a] for row, a, b in zip(losses, now, then, strict=True))
        saved = first.prices.total(now) - first.prices.total(then)
        if grown > 0 and saved > 0:
            return grown / saved
    return 0.0
