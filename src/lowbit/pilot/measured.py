"""What a trial measures on the pilot's runtime before it chooses, and where its budget makes times decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import nn

from lowbit.costs import MeasuredCosts
from lowbit.pilot.sections.search import BudgetSpec
from lowbit.pilot.task import Task
from lowbit.recipe import Recipe


@dataclass(frozen=True)
class Choices:
    """What is to be measured: recipes, and networks other than the model, by choice; of these layers."""

    recipes: Mapping[str, Recipe]
    layers: Sequence[str]
    models: Mapping[str, nn.Module] = field(default_factory=dict)


def decide(budgets: Iterable[BudgetSpec]) -> bool:
    """Whether what was measured decides: a budget is milliseconds, or bytes of the file."""
    return any(budget.cost in ("latency", "file") for budget in budgets)


def fingerprint(task: Task, budgets: Iterable[BudgetSpec], costs: MeasuredCosts) -> str:
    """Of what a trial keeps while it works: where times decide, those of another machine begin anew."""
    if not decide(budgets):
        return task.fingerprint
    content = json.dumps(asdict(costs), sort_keys=True)
    return f"{task.fingerprint} {hashlib.sha256(content.encode()).hexdigest()[:16]}"
