"""Assignments compared in the weights that they share, on held-out samples, each with its own BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.allocation import Assignment, CostName, Limit, Prices
from lowbit.batches import Batch
from lowbit.methods.search.sensitivity import Table
from lowbit.methods.search.supernet import Supernet
from lowbit.post_training.correction import reestimate
from lowbit.progress import track
from lowbit.recipe import Recipe
from lowbit.training.objective import Objective
from lowbit.training.processes import mean_over_processes

JUDGED = 1024  # held-out samples


@dataclass(frozen=True)
class Point:
    """An assignment, what it costs, and how good it is in the shared weights, without training of its own.

    `choices` are by layer; `costs` of the whole network; `fits` says whether it is within all budgets; `predicted` is
    the loss that sensitivities add up to; `loss` and `agreement` with the float network are measured.
    """

    name: str
    choices: Mapping[str, str]
    recipe: Recipe
    costs: Mapping[CostName, float]
    fits: bool
    predicted: float
    loss: float
    agreement: float


@dataclass(frozen=True)
class Judge:
    """What assignments are compared with.

    Attributes:
        net, objective: the shared weights, and the loss with the held-out samples.
        prices, limits: every cost, and the budgets.
        table: sensitivities.
        batches: as training sees them, for the statistics of BatchNorms.
    """

    net: Supernet
    objective: Objective
    prices: Mapping[CostName, Prices]
    limits: Sequence[Limit]
    table: Table
    batches: Sequence[Batch]

    def prepare(self, assignment: Assignment) -> None:
        """Select an assignment in the shared weights, with BatchNorm statistics of its own."""
        self.net.select(assignment)
        reestimate(self.net, self.batches)

    def points(self, assignments: Mapping[str, Assignment], what: str, *, progress: bool) -> list[Point]:
        """Each assignment, by name, judged; of equal ones the first."""
        distinct: dict[Assignment, str] = {}
        for name, assignment in assignments.items():
            distinct.setdefault(assignment, name)
        return [self._point(name, one) for one, name in track([*distinct.items()], what, show=progress)]

    def _point(self, name: str, assignment: Assignment) -> Point:
        self.prepare(assignment)
        loss, agreement = mean_over_processes([*self.objective.judge(self.net, JUDGED)])  # the same in all
        return Point(
            name,
            self.net.space.names(assignment),
            self.net.space.recipe_of(assignment),
            {cost: prices.total(assignment) for cost, prices in self.prices.items()},
            all(limit.holds(assignment) for limit in self.limits),
            sum(row[chosen] for row, chosen in zip(self.table, assignment, strict=True)),
            loss,
            agreement,
        )
