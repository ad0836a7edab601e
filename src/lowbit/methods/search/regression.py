"""Bayesian linear regression, y = x theta + noise: what is known of theta, and a theta drawn from it.

Knowledge is the precision P of theta and P theta. An observation with noise of variance v adds x x^T / v to the one and
x y / v to the other; v follows the surprises.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_DECAY = 0.95  # of the moving average of squared surprises


class Regression(nn.Module):
    """What is known of theta; all in the state dict.

    Args:
        prior: theta as it is expected to be, `[n]`.
        doubt: its standard deviation, `[n]`.
        noise: variance of an observation, until it is known.
        memory: share of what was observed that is left a step later.

    Attributes:
        certainty: 1 / doubt^2, which may change as more is known.
    """

    def __init__(self, prior: Tensor, doubt: Tensor, *, noise: float, memory: float = 1.0) -> None:
        super().__init__()
        self.memory, size = memory, len(prior)
        self.register_buffer("prior", prior.double())
        self.register_buffer("certainty", doubt.double() ** -2)
        self.register_buffer("precision", torch.zeros(size, size, dtype=torch.float64))  # of what was observed
        self.register_buffer("weighted", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.tensor(noise, dtype=torch.float64))
        self.prior: Tensor
        self.certainty: Tensor
        self.precision: Tensor
        self.weighted: Tensor
        self.variance: Tensor

    def _precision(self) -> Tensor:
        return self.precision.cpu() + torch.diag(self.certainty.cpu())

    def mean(self) -> Tensor:
        """The expected theta, `[n]`, on the CPU."""
        weighted = (self.weighted + self.certainty * self.prior).cpu()
        theta: Tensor = torch.linalg.solve(self._precision(), weighted)
        return theta

    def draw(self, generator: torch.Generator) -> Tensor:
        """A theta drawn from what is known, `[n]`, on the CPU."""
        factor = torch.linalg.cholesky(self._precision())
        noise = torch.randn(len(factor), 1, generator=generator, dtype=torch.float64)
        spread: Tensor = torch.linalg.solve_triangular(factor.T, noise, upper=True)[:, 0]
        return self.mean() + spread

    def surprise(self, x: Tensor, y: float) -> float:
        """How far y is from what x makes expected."""
        return y - float(x.cpu() @ self.mean())

    def observe(self, x: Tensor, y: float) -> None:
        """Learn from y at x, `[n]`."""
        x = x.to(self.weighted)
        surprise = torch.tensor(self.surprise(x, y), dtype=torch.float64)
        self.variance.lerp_((surprise**2).to(self.variance), 1 - _DECAY)
        weight = 1 / max(float(self.variance), 1e-12)
        self.precision.mul_(self.memory).add_(weight * torch.outer(x, x))
        self.weighted.mul_(self.memory).add_(weight * x * y)
