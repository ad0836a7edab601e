"""The exploring phase: weights learn in assignments that change from step to step, and losses tell which are good."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.allocation import Assignment
from lowbit.batches import Batch
from lowbit.errors import DataError
from lowbit.methods.search.prices import Capped
from lowbit.methods.search.supernet import Supernet
from lowbit.training.objective import Objective
from lowbit.training.processes import mean_over_processes
from lowbit.training.samples import seed_of

if TYPE_CHECKING:
    from lowbit.methods.search.architecture.combined import Combined


@dataclass(frozen=True)
class Sample:
    """One assignment that was tried: its choices, decision by decision, its cost and its reward.

    The reward is that of the policy; without one it is minus the loss.
    """

    step: int
    assignment: Assignment
    cost: float
    reward: float


class Guide(Protocol):
    """What draws assignments and learns from their losses: a module, all of whose knowledge is in its state dict."""

    samples: int  # assignments a step
    step: Tensor  # the number of those made

    def draw(self, generator: torch.Generator) -> Assignment:
        """The next assignment."""

    def learn(self, drawn: Sequence[Assignment], losses: Sequence[float], ratios: Sequence[float]) -> list[float]:
        """Learn from the losses of a step's assignments, whose costs are `ratios` of the budget; returns rewards."""


class Explorer(nn.Module):
    """A supernet and what guides it, as one module, so that a checkpoint of the training holds both.

    Args:
        net: the shared weights.
        guide: draws assignments and learns from their losses.
        objective: the loss.
        limit: the budget that rewards refer to.
        seed: of what is drawn.
        folder: where `samples.jsonl` is written, by the first process.
    """

    def __init__(
        self,
        net: Supernet | Combined,
        guide: Guide,
        objective: Objective,
        limit: Capped,
        *,
        seed: int,
        folder: Path | None,
    ) -> None:
        super().__init__()
        self.net, self.guide = net, guide
        self._objective, self._limit, self._seed = objective, limit, seed
        self._log = SampleLog(folder)
        self._drawn: list[Assignment] = []
        self._others: list[float] = []

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All that was tried, in order."""
        if not self._log.ready:  # a finished search was read
            self._log.begin(int(self.guide.step) + 1)
        return tuple(self._log.rows)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns in the selected assignment."""
        return self.net(*args, **kwargs)

    def loss(self, _: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch in an assignment drawn for this step; others are drawn and measured without gradients."""
        generator = torch.Generator().manual_seed(seed_of(self._seed, int(self.guide.step)))
        self._drawn = [self.guide.draw(generator) for _ in range(self.guide.samples)]
        self._others = []
        with torch.no_grad():
            for assignment in self._drawn[1:]:
                self.net.select(assignment)
                self._others.append(float(self._objective.loss(self.net, batch)))
        self.net.select(self._drawn[0])
        return self._objective.loss(self.net, batch)

    def learn(self, loss: Tensor) -> None:
        """Tell the guide what came of the step, and write it down."""
        losses = [float(loss), *mean_over_processes(self._others)] if self._others else [float(loss)]
        costs = [self._limit.cost(assignment) for assignment in self._drawn]
        step = int(self.guide.step) + 1
        rewards = self.guide.learn(self._drawn, losses, [cost / self._limit.most for cost in costs])
        for assignment, cost, reward in zip(self._drawn, costs, rewards, strict=True):
            self._log.write(Sample(step, assignment, cost, reward))


class SampleLog:
    """Samples in memory and in ``samples.jsonl``; what a resumed run does again is taken out first."""

    def __init__(self, folder: Path | None) -> None:
        first = not torch.distributed.is_available() or not torch.distributed.is_initialized()
        self.path = folder / "samples.jsonl" if folder else None
        self.writes = self.path is not None and (first or torch.distributed.get_rank() == 0)
        self.rows: list[Sample] = []
        self.ready = False

    def begin(self, step: int) -> None:
        """Read what was written before `step`, and drop the rest."""
        if self.path is not None and self.path.exists():
            self.rows = [row for row in read_samples(self.path) if row.step < step]
            if self.writes:
                files.write_text(self.path, "".join(f"{_line(row)}\n" for row in self.rows))
        self.ready = True

    def write(self, row: Sample) -> None:
        """Add a sample."""
        if not self.ready:
            self.begin(row.step)
        self.rows.append(row)
        if self.writes and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as log:
                log.write(f"{_line(row)}\n")


def _line(row: Sample) -> str:
    return json.dumps(asdict(row))


def read_samples(path: Path) -> list[Sample]:
    """The samples in a log; a last line that a kill cut short is left out.

    Raises:
        DataError: the file is damaged elsewhere.
    """
    lines = files.read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(
                Sample(int(row["step"]), tuple(map(int, row["assignment"])), float(row["cost"]), float(row["reward"]))
            )
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(
                f"'{path}', line {number}: {files.one_line(error)}; delete the folder to search anew"
            ) from None
    return rows
