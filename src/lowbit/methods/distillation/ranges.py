"""What became of the ranges: where they were, where they are, and whether they fit what comes in."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, call
from lowbit.errors import TrainingWarning
from lowbit.quantizer import Quantizer

_MOST_CLIPPED, _FEW_BITS = 0.5, 3


@dataclass(frozen=True)
class Range:
    """The range of a quantizer before and after training (the widest of several), EWGS's delta at the end, and the
    share of held-out numbers that lie outside.
    """

    name: str
    low_before: float
    high_before: float
    low: float
    high: float
    delta: float
    clipped: float


def bounds_of(student: nn.Module) -> dict[str, tuple[float, float]]:
    """The range of each quantizer by name, of several scales the widest."""
    found = {}
    for name, module in student.named_modules():
        if isinstance(module, Quantizer) and module.ready:
            low, high = module.bounds()
            found[name] = (float(low.min()), float(high.max()))
    return found


def ranges_of(student: nn.Module, batch: Batch, before: dict[str, tuple[float, float]]) -> tuple[Range, ...]:
    """What became of each range, and how much of a batch lies outside; warns of ranges that do not fit."""
    clipped: dict[Quantizer, float] = {}
    unused: dict[Quantizer, int] = {}

    def look(quantizer: Quantizer, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = torch.tanh(args[0]) if quantizer.tanh else args[0]
        low, high = (quantizer.granularity.spread(bound, x.shape) for bound in quantizer.bounds())
        blocked = quantizer.granularity.blocked(x)
        clipped[quantizer] = float(((blocked < low) | (blocked > high)).float().mean())
        if quantizer.format.bits <= _FEW_BITS and quantizer.scale.dim() == 0:
            unused[quantizer] = len(quantizer.format.values()) - len(torch.unique(output))

    named = {name: m for name, m in student.named_modules() if isinstance(m, Quantizer)}
    with ExitStack() as hooks, torch.no_grad():
        for quantizer in named.values():
            hooks.callback(quantizer.register_forward_hook(look).remove)
        call(student, batch)
    bounds = bounds_of(student)
    rows = tuple(
        Range(name, *before[name], *bounds[name], q.gradient.delta, clipped[q])
        for name, q in named.items()
        if q in clipped
    )
    most = [row.name for row in rows if row.clipped > _MOST_CLIPPED]
    dead = [name for name, q in named.items() if unused.get(q, 0) > 0]
    for names, what in ((most, "clip more than half of their input"), (dead, "never use some of their few levels")):
        if names:
            warnings.warn(
                f"{len(names)} trained quantizers {what}: {', '.join(names[:3])}{', ...' if names[3:] else ''}; "
                "look at their ranges in the result, and try another family or scale_rate",
                TrainingWarning,
                stacklevel=3,
            )
    return rows
