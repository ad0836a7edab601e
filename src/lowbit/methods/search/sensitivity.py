"""How much each choice hurts by itself: what the outputs lose if one decision alone has it, and all else is float.

Two estimates, both without labels. ``loss`` measures: with the choice in place, how far do the outputs move from the
float network's? One pass over the samples for each decision and choice. ``fisher`` predicts it from one backward pass
a batch: if y is a layer's output, y_q what it becomes in the choice, and g the gradient of the log-likelihood of an
output drawn from the network's own distribution, then

    KL(float || quantized) ~ 1/2 E[ (sum_i g_i (y_q - y)_i)^2 ],

the Fisher information in y along the error, sample by sample. The usual diagonal form, with g_i^2 (y_q - y)_i^2 summed,
takes the errors of a layer's outputs as independent, which they are not: the error of a weight is the same wherever it
is used. For outputs that are no class scores the distribution is normal with the outputs' variance, and the estimate is
that of the squared error in its units.

References:
    Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018,
        https://arxiv.org/abs/1801.05787, equations 5 to 8: the same information, along a pruned feature map.
    Li et al., BRECQ: pushing the limit of post-training quantization by block reconstruction, 2021,
        https://arxiv.org/abs/2102.05426, equation 10, the diagonal form in layer outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from lowbit.batches import Batch, call, output_tensor
from lowbit.errors import DataError
from lowbit.methods.search.space import Space
from lowbit.methods.search.supernet import Call, Supernet
from lowbit.objectives import surprise_of
from lowbit.progress import track
from lowbit.training.objective import Objective

SensitivityName = Literal["loss", "fisher"]
Table = tuple[tuple[float, ...], ...]  # [decisions][choices]


def by_loss(net: Supernet, objective: Objective, batches: list[Batch], *, progress: bool = True) -> Table:
    """The loss of each choice of each decision, all others float: the mean over the batches, less that of float.

    Raises:
        DataError: a loss is not finite.
    """
    space, rows = net.space, []
    net.eval()
    with torch.no_grad():
        net.select(None)
        nothing = _mean_loss(net, objective, batches)
        everything = [(d, c) for d in range(len(space.decisions)) for c in range(len(space.choices))]
        for decision, choice in track(everything, "measure sensitivity", show=progress):
            net.select(tuple(choice if i == decision else None for i in range(len(space.decisions))))
            rows.append(_mean_loss(net, objective, batches) - nothing)
    return _table(rows, space)


def _mean_loss(net: Supernet, objective: Objective, batches: list[Batch]) -> float:
    return sum(float(objective.loss(net.student, batch)) for batch in batches) / len(batches)


def by_fisher(net: Supernet, batches: list[Batch], *, classes: bool, seed: int = 0, progress: bool = True) -> Table:
    """The same, predicted from one backward pass a batch.

    Raises:
        DataError: a prediction is not finite.
    """
    space, generator = net.space, torch.Generator().manual_seed(seed)
    sums = torch.zeros(len(space.decisions), len(space.choices), dtype=torch.float64)
    count = 0
    net.eval()
    net.select(None)
    for batch in track(batches, "measure sensitivity", show=progress):
        with net.watched() as calls:
            output = output_tensor(call(net.student, batch)).float()
            count += len(output)
            surprise = surprise_of(output, generator, classes=classes)
        ys = [y for seen in calls.values() for *_, y in seen]
        gradients = iter(torch.autograd.grad(surprise, ys, allow_unused=True))
        for layer, seen in calls.items():
            decision = next(i for i, d in enumerate(space.decisions) if layer in d.layers)
            for one in seen:
                g = next(gradients)
                if g is not None:
                    sums[decision] += _weighted_errors(net, layer, one, g)
    return _table((sums / max(1, count)).flatten().tolist(), space)


def _weighted_errors(net: Supernet, layer: str, one: Call, g: Tensor) -> Tensor:
    """1/2 (g (y_q - y))^2, summed over the samples of a call, for each choice."""
    *_, y = one
    with torch.no_grad():
        moved = [net.output_of(layer, number, one) - y for number in range(len(net.space.choices))]
        return torch.stack([(g * error).double().flatten(1).sum(1).square().sum().cpu() / 2 for error in moved])


def _table(values: Iterable[float], space: Space) -> Table:
    found = torch.tensor([*values], dtype=torch.float64).reshape(len(space.decisions), len(space.choices))
    for decision, row in zip(space.decisions, found, strict=True):
        for choice, value in zip(space.choices, row.tolist(), strict=True):
            if not torch.isfinite(torch.tensor(value)):
                raise DataError(
                    f"the sensitivity of {decision.name} to {choice} is {value}; look at the model's outputs, or leave "
                    "the format out"
                )
    return tuple(tuple(row) for row in found.tolist())
