"""What is known of each choice while a search goes on: a linear model of the loss, and the assignments it proposes.

The loss of a step is modeled as a product over decisions, log loss = mean + sum_d theta[d, a_d] + noise: what a format
does to the loss scales with the loss as weights learn. Before the first step theta is what the sensitivities say,

    theta[d, c] = log(1 + (s[d, c] - s[d, start_d]) / sum_d s[d, start_d]),

each half as uncertain as it is large; every step makes it surer (Bayesian linear regression, a ridge toward the
sensitivities). The drift of the loss is taken out by a moving average. An assignment is proposed by drawing theta from
what is known and solving the knapsack for it (Thompson sampling): so each lies within the budget exactly, and what is
uncertain and promising is tried.

References:
    Thompson, On the likelihood that one unknown probability exceeds another, 1933, Biometrika 25.
    Agrawal and Goyal, Thompson sampling for contextual bandits with linear payoffs, 2013,
        https://arxiv.org/abs/1209.3352, section 2.2, here over assignments within a budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit.errors import TrainingError
from lowbit.methods.search.knapsack import solve
from lowbit.methods.search.prices import Limit
from lowbit.methods.search.sensitivity import Table
from lowbit.methods.search.space import Assignment

_DECAY = 0.95  # of the moving averages
_DOUBT, _LEAST_DOUBT = 0.5, 0.05  # of theta: as a share of it, and in itself
_NOISE = 0.01  # variance of log loss from batch to batch, until it is known
_MOST_GAIN = 0.9  # of the loss, that a prior may promise


class Surrogate(nn.Module):
    """Knowledge of theta, `[decisions x choices]`, as precision and weighted mean; all in its state dict.

    Args:
        sensitivities: see above.
        start: the assignment that they make the best.
        limits: the budgets.
    """

    def __init__(self, sensitivities: Table, start: Assignment, limits: Sequence[Limit]) -> None:
        super().__init__()
        self.limits = tuple(limits)
        table = torch.tensor(sensitivities, dtype=torch.float64)
        self.shape = table.shape
        there = table[torch.arange(len(table)), torch.tensor(start)]
        whole = float(there.sum().abs()) or 1.0
        prior = ((table - there[:, None]) / whole).clamp(min=-_MOST_GAIN).log1p().flatten()
        certainty = (_DOUBT * prior.abs()).clamp(min=_LEAST_DOUBT) ** -2
        self.register_buffer("precision", torch.diag(certainty))
        self.register_buffer("weighted", prior * certainty)
        self.register_buffer("average", torch.tensor(math.nan, dtype=torch.float64))  # of log loss, less theta's part
        self.register_buffer("variance", torch.tensor(_NOISE, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))
        self.precision: Tensor
        self.weighted: Tensor
        self.average: Tensor
        self.variance: Tensor
        self.step: Tensor

    @property
    def mean(self) -> Tensor:
        """The expected theta, `[decisions, choices]`."""
        theta: Tensor = torch.linalg.solve(self.precision, self.weighted)
        return theta.reshape(self.shape)

    def shares(self) -> list[list[float]]:
        """By how much each choice changes the loss, as a share of it, against the choice of least loss."""
        theta = self.mean
        return (theta - theta.amin(1, keepdim=True)).expm1().tolist()

    def observe(self, assignment: Assignment, loss: float) -> None:
        """Learn from the loss of a step.

        Raises:
            TrainingError: it is not finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of an assignment is {loss}; lower the learning rate, or leave formats out")
        x = self._features(assignment)
        explained = float(x @ torch.linalg.solve(self.precision, self.weighted))
        rest = math.log(max(loss, 1e-12)) - explained
        if not int(self.step):
            self.average.fill_(rest)
        surprise = rest - float(self.average)
        self.average.add_((1 - _DECAY) * surprise)
        self.variance.lerp_(torch.tensor(surprise**2, dtype=torch.float64), 1 - _DECAY)
        weight = 1 / max(float(self.variance), 1e-12)
        self.precision.add_(weight * torch.outer(x, x))
        self.weighted.add_(weight * (explained + surprise) * x)
        self.step += 1

    def propose(self, generator: torch.Generator) -> Assignment:
        """The best assignment within the budget for a theta drawn from what is known."""
        noise = torch.randn(self.precision.shape[0], generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(self.precision.cpu())
        drawn = self.mean.cpu().flatten() + torch.linalg.solve_triangular(factor.T, noise[:, None], upper=True)[:, 0]
        return solve(drawn.reshape(self.shape).tolist(), self.limits)

    def best(self) -> Assignment:
        """The best assignment within the budget for the expected theta."""
        return solve(self.mean.tolist(), self.limits)

    def _features(self, assignment: Assignment) -> Tensor:
        x = torch.zeros(self.shape, dtype=torch.float64, device=self.precision.device)
        x[torch.arange(self.shape[0]), torch.tensor(assignment)] = 1
        return x.flatten()
