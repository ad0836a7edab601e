"""What learns while a network is fitted to its float twin, in units that make one learning rate fit all of it.

A weight learns in steps of its scale, a scale and a bias in shares of themselves:  tensor = start + unit * change,
and the optimizer (Adam) sees `change` alone. AdaRound's weights learn which of their two neighbors to take.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, inputs_of
from lowbit.errors import CalibrationError
from lowbit.formats import Block
from lowbit.layers import Quantized
from lowbit.post_training.segments import Value
from lowbit.quantizer import Quantizer

RoundingRule = Literal["free", "adaround"]
_WEIGHT_RATE, _SCALE_RATE, _BIAS_RATE, _ADAROUND_RATE = 6e-3, 1e-3, 2e-3, 1e-2
_LAMBDA = 1e-2


class Samples:
    """All calibration samples of one input, to be drawn from in any order."""

    def __init__(self, values: list[Value]) -> None:
        if not values:
            raise CalibrationError("got no batches; give at least one (a list, not a used-up generator)")
        parts_of = [inputs_of(value) for value in values]  # type: ignore[arg-type]
        try:
            self.args = [torch.cat(column) for column in zip(*(args for args, _ in parts_of), strict=True)]
            self.kwargs = {k: torch.cat([kwargs[k] for _, kwargs in parts_of]) for k in parts_of[0][1]}
        except (RuntimeError, ValueError, KeyError) as error:
            raise CalibrationError(
                f"calibration samples do not have one shape ({error}); learning draws single samples, so give batches "
                "whose inputs agree in all but the first dimension"
            ) from None

    def __len__(self) -> int:
        return len(next(iter((*self.args, *self.kwargs.values()))))

    def __getitem__(self, rows: Tensor) -> Batch:
        if self.kwargs:
            return {name: tensor[rows] for name, tensor in self.kwargs.items()}
        return self.args[0][rows]


def draws(count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step's batch: all samples once in random order, then again."""
    batch_size = min(batch_size, count)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(waiting) < batch_size:
            waiting = torch.randperm(count, generator=generator)
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


@dataclass
class _Learnable:
    """A tensor that learns: `start + unit * change`, where the optimizer sees `change` only."""

    tensor: Tensor
    unit: Tensor
    rate: float
    least: float = -math.inf

    def __post_init__(self) -> None:
        self.start = self.tensor.detach().clone()
        self.change = torch.zeros_like(self.start)
        self.learned_before = self.tensor.requires_grad
        self.tensor.requires_grad_(True)

    def take_gradient(self) -> None:
        grad = self.tensor.grad
        self.change.grad = torch.zeros_like(self.change) if grad is None else grad * self.unit
        self.tensor.grad = None

    def apply(self) -> None:
        with torch.no_grad():
            self.change.clamp_(min=self.least)
            self.tensor.copy_(self.start + self.unit * self.change)


class Learner:
    """What learns in some layers and activation quantizers, and the optimizer that moves it."""

    def __init__(
        self, layers: dict[str, Quantized], quantizers: Iterable[Quantizer], rounding: RoundingRule, steps: int
    ) -> None:
        self.steps, self.done, self.soft = steps, 0, []
        self.learnables = [_scale(q) for q in quantizers]
        for layer in layers.values():
            quantizer = layer.weight_quantizer
            if not isinstance(quantizer, Quantizer):
                continue
            if rounding == "adaround":
                soft = SoftRounding(layer, quantizer)
                self.soft.append(soft)
                self.learnables.append(_Learnable(soft.choice, torch.ones_like(soft.choice), _ADAROUND_RATE))
                continue
            weight = layer.layer.get_parameter("weight")
            step = quantizer.granularity.spread(quantizer.scale.detach(), weight.shape)
            unit = quantizer.granularity.unblocked(
                torch.ones_like(quantizer.granularity.blocked(weight.detach())) * step, weight.shape
            )
            self.learnables.append(_Learnable(weight, unit, _WEIGHT_RATE))
            if not isinstance(quantizer.format, Block):  # whose scales are on a grid of their own
                self.learnables.append(_scale(quantizer))
            if layer.bias is not None:
                size = layer.bias.detach().abs().mean().clamp(min=1e-8)
                self.learnables.append(_Learnable(layer.bias, size.expand_as(layer.bias).clone(), _BIAS_RATE))
        groups = [{"params": [one.change], "lr": one.rate} for one in self.learnables]
        if not groups:
            return
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        rates, warmup = [one.rate for one in self.learnables], max(0.1, 2 / (steps + 1))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.adam, max_lr=rates, total_steps=steps + 1, pct_start=warmup
        )

    def step(self, loss: Tensor) -> None:
        """One step down `loss`, plus AdaRound's regularizer from a fifth of the way on."""
        progress = self.done / self.steps
        if self.soft and progress > 0.2:
            beta = 2 + 18 * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))
            loss = loss + _LAMBDA * sum(soft.undecided(beta) for soft in self.soft)
        torch.autograd.backward(loss)
        for one in self.learnables:
            one.take_gradient()
        self.adam.step()
        self.schedule.step()
        for one in self.learnables:
            one.apply()
        self.done += 1

    def finish(self) -> None:
        """Let AdaRound's weights take their neighbor, and end the gradients."""
        for soft in self.soft:
            soft.decide()
        for one in self.learnables:
            one.tensor.requires_grad_(one.learned_before)

    def revert(self) -> None:
        """Go back to where learning started."""
        with torch.no_grad():
            for one in self.learnables:
                one.tensor.copy_(one.start)
            for soft in self.soft:
                soft.layer[0].layer.get_parameter("weight").copy_(soft.start)


def _scale(quantizer: Quantizer) -> _Learnable:
    return _Learnable(quantizer.scale, quantizer.scale.detach().clone(), _SCALE_RATE, least=-0.9)


class SoftRounding(nn.Module):
    """Takes the place of a layer's weight quantizer while its weights choose between their two neighbors."""

    def __init__(self, layer: Quantized, quantizer: Quantizer) -> None:
        super().__init__()
        self.layer, self.quantizer = [layer], quantizer  # in a list: the layer holds this module
        weight = layer.layer.get_parameter("weight").detach()
        self.start = weight.clone()
        granularity, format = quantizer.granularity, quantizer.format
        grid = (format.element if isinstance(format, Block) else format).values().to(weight.device)
        self.step = granularity.spread(quantizer.scale.detach(), weight.shape)
        z = (granularity.blocked(weight) / self.step).contiguous()
        below = (torch.searchsorted(grid, z, right=True) - 1).clamp(0, len(grid) - 2)
        self.low, self.high = grid[below], grid[below + 1]
        share = ((z - self.low) / (self.high - self.low)).clamp(0.01, 0.99)
        self.choice = nn.Parameter(torch.logit((share + 0.1) / 1.2))
        layer.weight_quantizer = self  # type: ignore[assignment]

    def upward(self) -> Tensor:
        """h(V): 0 for the lower neighbor, 1 for the upper."""
        return (torch.sigmoid(self.choice) * 1.2 - 0.1).clamp(0, 1)

    def undecided(self, beta: float) -> Tensor:
        """AdaRound's regularizer, the mean over weights: 0 when every weight has chosen."""
        return (1 - (2 * self.upward() - 1).abs().pow(beta)).mean()

    def forward(self, weight: Tensor) -> Tensor:
        """Numbers between the two neighbors of each weight."""
        values = (self.low + (self.high - self.low) * self.upward()) * self.step
        return self.quantizer.granularity.unblocked(values, weight.shape)

    def decide(self) -> None:
        """Put the chosen grid points into the weight, and the quantizer back into its place."""
        (layer,) = self.layer
        weight = layer.layer.get_parameter("weight")
        with torch.no_grad():
            chosen = torch.where(self.upward() >= 0.5, self.high, self.low) * self.step
            weight.copy_(self.quantizer.granularity.unblocked(chosen, weight.shape))
        layer.weight_quantizer = self.quantizer
