"""What a joint search chooses from at the end: assignments within the budget, compared in the shared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lowbit.allocation import Assignment, CostName
from lowbit.batches import Batch
from lowbit.methods.search.architecture.combined import Combined, CombinedLimit, CombinedPrices
from lowbit.methods.search.architecture.effects import Effects
from lowbit.methods.search.architecture.repair import within
from lowbit.methods.search.judge import JUDGED
from lowbit.methods.search.policy import Policy, unlikeliness
from lowbit.post_training.correction import reestimate
from lowbit.progress import track
from lowbit.recipe import Recipe
from lowbit.training.objective import Objective
from lowbit.training.processes import mean_over_processes
from lowbit.training.samples import seed_of

_DRAWN = 6  # candidates that the guide would try next
_COSTS: tuple[CostName, ...] = ("bops", "bytes")


@dataclass(frozen=True)
class Candidate:
    """An architecture in formats (by layer), what it costs, and how good it is in the shared weights."""

    name: str
    assignment: Assignment
    architecture: Mapping[str, int]
    formats: Mapping[str, str]
    recipe: Recipe
    costs: Mapping[CostName, float]
    loss: float
    agreement: float


@dataclass(frozen=True)
class Comparison:
    """What candidates are compared in: the shared weights, the held-out samples, and batches as training sees them."""

    net: Combined
    objective: Objective
    limit: CombinedLimit
    batches: Sequence[Batch]

    def prepare(self, assignment: Assignment) -> None:
        """Select an assignment in the shared weights, with BatchNorm statistics of its own."""
        self.net.select(assignment)
        reestimate(self.net, self.batches)

    def candidates(self, assignments: Mapping[str, Assignment], *, progress: bool) -> list[Candidate]:
        """Each assignment, by name, judged; of equal ones the first."""
        distinct: dict[Assignment, str] = {}
        for name, assignment in assignments.items():
            distinct.setdefault(assignment, name)
        every = track([*distinct.items()], "compare candidates", show=progress)
        return [self._candidate(name, assignment) for assignment, name in every]

    def _candidate(self, name: str, assignment: Assignment) -> Candidate:
        self.prepare(assignment)
        space, size = self.net.space, self.limit.prices.size
        prices = [CombinedPrices(cost, space, size) for cost in _COSTS]
        loss, agreement = mean_over_processes([*self.objective.judge(self.net, JUDGED)])  # the same in all
        return Candidate(
            name,
            assignment,
            space.architecture(assignment),
            space.formats.names(space.choices(assignment)),
            space.recipe(assignment),
            {one.name: one.total(assignment) for one in prices},
            loss,
            agreement,
        )


def candidates_of(guide: Policy | Effects, limit: CombinedLimit, *, seed: int) -> dict[str, Assignment]:
    """What seems good, within the budget.

    That is what the guide holds best, what it would try next, and uniform formats in an architecture that makes them
    fit.
    """
    name, losses = ("policy", unlikeliness(guide)) if isinstance(guide, Policy) else ("effects", guide.losses())
    generator = torch.Generator().manual_seed(seed_of(seed, -1))
    likely = {name: guide.best()} | {f"drawn {i}": guide.draw(generator) for i in range(1, _DRAWN + 1)}
    found = {name: within(one, losses, limit) for name, one in likely.items()}
    space = limit.prices.space
    own = range(len(space.plan.decisions))
    for choice in space.formats.choices:
        uniform = (*guide.best()[: len(own)], *space.formats.uniform(choice))
        found[f"uniform {choice}"] = within(uniform, losses, limit, own)
    return {name: one for name, one in found.items() if one is not None}
