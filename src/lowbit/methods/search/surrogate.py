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

from lowbit.allocation import Assignment, Limit, solve
from lowbit.errors import TrainingError
from lowbit.methods.search.regression import Regression
from lowbit.methods.search.sensitivity import Table

_DECAY = 0.95  # of the moving average
_DOUBT, _LEAST_DOUBT = 0.5, 0.05  # of theta: as a share of it, and in itself
_NOISE = 0.01  # variance of log loss from batch to batch, until it is known
_TRUST = 0.01  # in the order that sensitivities give, where what was seen says otherwise
_MOST_GAIN = 0.9  # of the loss, that a prior may promise


class Surrogate(nn.Module):
    """What is known of theta, `[decisions, choices]`; all in its state dict.

    Args:
        sensitivities: see above.
        start: the assignment that they make the best.
        limits: the budgets.
    """

    samples = 1  # assignments a step

    def __init__(self, sensitivities: Table, start: Assignment, limits: Sequence[Limit]) -> None:
        super().__init__()
        self.limits = tuple(limits)
        table = torch.tensor(sensitivities, dtype=torch.float64)
        self.shape = table.shape
        there = table[torch.arange(len(table)), torch.tensor(start)]
        whole = float(there.abs().sum()) or 1.0
        prior = ((table - there[:, None]) / whole).clamp(min=-_MOST_GAIN).log1p()
        doubt = (_DOUBT * prior.abs()).clamp(min=_LEAST_DOUBT)
        self.theta = Regression(prior.flatten(), doubt.flatten(), noise=_NOISE)
        self.register_buffer("average", torch.tensor(math.nan, dtype=torch.float64))  # of log loss, less theta's part
        self.register_buffer("step", torch.tensor(0))
        self.average: Tensor
        self.step: Tensor

    @property
    def mean(self) -> Tensor:
        """The expected theta, `[decisions, choices]`."""
        return self.theta.mean().reshape(self.shape)

    def learn(self, drawn: Sequence[Assignment], losses: Sequence[float], ratios: Sequence[float]) -> list[float]:
        """Learn from the loss of a step's assignment; the reward is minus the loss.

        Raises:
            TrainingError: it is not finite.
        """
        (assignment,), (loss,) = drawn, losses
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of an assignment is {loss}; lower the learning rate, or leave formats out")
        x = torch.zeros(self.shape, dtype=torch.float64)
        x[torch.arange(self.shape[0]), torch.tensor(assignment)] = 1
        rest = self.theta.surprise(x.flatten(), math.log(max(loss, 1e-12)))
        if not int(self.step):
            self.average.fill_(rest)
        average = float(self.average)
        self.average.add_((1 - _DECAY) * (rest - average))
        self.theta.observe(x.flatten(), math.log(max(loss, 1e-12)) - average)
        self.step += 1
        return [-loss]

    def draw(self, generator: torch.Generator) -> Assignment:
        """The best assignment within the budget for a theta drawn from what is known."""
        return solve(self._ordered(self.theta.draw(generator).reshape(self.shape)), self.limits)

    def best(self) -> Assignment:
        """The best assignment within the budget for the expected theta."""
        return solve(self.losses(), self.limits)

    def losses(self) -> list[list[float]]:
        """What is expected of each choice, where dearer choices are no worse."""
        return self._ordered(self.mean)

    def shares(self, found: Assignment) -> list[list[float]]:
        """The loss of each choice, as a share of that of `found`, where each decision has an equal part in it."""
        theta = torch.tensor(self.losses(), dtype=torch.float64)
        there = theta[torch.arange(len(theta)), torch.tensor(found)]
        shares: list[list[float]] = ((theta - there[:, None]).expm1() + 1 / len(theta)).tolist()
        return shares

    def _ordered(self, theta: Tensor) -> list[list[float]]:
        """No choice worse than a cheaper one: noise should leave none of the budget unspent.

        Where theta says otherwise, a choice is as much better than the cheaper one as a hundredth of the sensitivities.
        """
        rows: list[list[float]] = []
        priors = self.theta.prior.reshape(self.shape).tolist()
        for found, prior, costs in zip(theta.tolist(), priors, self.limits[0].prices.table, strict=True):
            row = list(found)
            for c in sorted(range(len(row)), key=lambda c: costs[c]):
                for other in range(len(row)):
                    if costs[other] < costs[c]:
                        row[c] = min(row[c], row[other] - _TRUST * max(0.0, prior[other] - prior[c]))
            rows.append(row)
        return rows
