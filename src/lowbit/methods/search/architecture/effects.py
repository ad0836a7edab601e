"""What each option does to the loss, learned while weights learn, and the assignments that this proposes.

Two assignments a step are tried on one batch. The difference of their losses is modeled as one of effects that add up,

    log loss(a) - log loss(b) = sum_d theta[d, a_d] - sum_d theta[d, b_d] + noise,

by Bayesian linear regression: how far weights have learned, and what the batch does, is the same for both and drops
out. At first every theta is 0, give or take what differences as large as those seen would take if all D decisions had
equal parts in them, tau^2 = mean difference^2 / 2 D. What was learned long ago, from other weights, is forgotten. An
assignment is proposed by drawing theta from what is known by now and looking for the best one within the budget
(Thompson sampling). So at first any assignment is tried that uses the budget, later those that are promising, and the
weights adapt to what is left.

REINFORCE learns from each reward once; this uses all of them at every step. On a synthetic problem of 32 decisions in
600 steps it made nine tenths of the way from random assignments to the best one, and policies two thirds at most.

References:
    Thompson, On the likelihood that one unknown probability exceeds another, 1933, Biometrika 25.
    Agrawal and Goyal, Thompson sampling for contextual bandits with linear payoffs, 2013,
        https://arxiv.org/abs/1209.3352, section 2.2, here of differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit.allocation import Assignment
from lowbit.errors import TrainingError
from lowbit.methods.search.architecture.combined import CombinedLimit
from lowbit.methods.search.architecture.repair import solve
from lowbit.methods.search.regression import Regression

_SPREAD = 0.1  # of differences, until it is known: a share of the loss
_FIRST = 5  # differences that this guess counts as
_NOISE = 0.01  # variance of a difference, until it is known
_MEMORY = 0.999  # of what was observed, a step later
_LEAST = 1e-8  # of a loss, before its logarithm


class Effects(nn.Module):
    """Knowledge of theta as precision and weighted mean, over all options of all decisions; all in its state dict.

    Args:
        limit: the budget that every proposal is within.
    """

    samples = 2  # assignments a step

    def __init__(self, limit: CombinedLimit) -> None:
        super().__init__()
        self.limit, self.counts = limit, limit.prices.space.counts
        size = sum(self.counts)
        self.starts = torch.tensor([0, *self.counts]).cumsum(0)[:-1].tolist()
        doubt = torch.full((size,), _SPREAD / (2 * len(self.counts)) ** 0.5)
        self.theta = Regression(torch.zeros(size), doubt, noise=_NOISE, memory=_MEMORY)
        self.register_buffer("squares", torch.tensor(_FIRST * _SPREAD**2, dtype=torch.float64))  # of differences
        self.register_buffer("step", torch.tensor(0))
        self.squares: Tensor
        self.step: Tensor

    def losses(self) -> list[list[float]]:
        """The expected theta, `[decisions][options]`."""
        return self._rows(self.theta.mean())

    def shares(self) -> list[list[float]]:
        """By how much each option changes the loss, as a share of it, against the option of least loss."""
        return [[math.expm1(one - min(row)) for one in row] for row in self.losses()]

    def learn(self, drawn: Sequence[Assignment], losses: Sequence[float], ratios: Sequence[float]) -> list[float]:
        """Learn from the losses of two assignments on one batch; rewards are minus the losses.

        Raises:
            TrainingError: one is not finite.
        """
        if not all(map(math.isfinite, losses)):
            raise TrainingError(
                f"the losses of two assignments are {losses}; lower the learning rate, or leave formats out"
            )
        first, second = (math.log(max(loss, _LEAST)) for loss in losses)
        self.theta.observe(self._features(drawn[0]) - self._features(drawn[1]), first - second)
        self.step += 1
        self.squares += (first - second) ** 2
        self.theta.certainty.fill_(2 * len(self.counts) * (_FIRST + int(self.step)) / float(self.squares))
        return [-loss for loss in losses]

    def draw(self, generator: torch.Generator) -> Assignment:
        """A good assignment within the budget for a theta drawn from what is known."""
        return self._solved(self._rows(self.theta.draw(generator)))

    def best(self) -> Assignment:
        """A good assignment within the budget for the expected theta."""
        return self._solved(self.losses())

    def _solved(self, losses: list[list[float]]) -> Assignment:
        """Costs are those around the assignment that comes out: so twice, the first time around the middle."""
        near = tuple((count - 1) // 2 for count in self.counts)
        return solve(losses, self.limit, solve(losses, self.limit, near))

    def _rows(self, theta: Tensor) -> list[list[float]]:
        return [part.tolist() for part in torch.split(theta, list(self.counts))]

    def _features(self, assignment: Assignment) -> Tensor:
        x = torch.zeros(sum(self.counts), dtype=torch.float64)
        x[[start + chosen for start, chosen in zip(self.starts, assignment, strict=True)]] = 1
        return x
