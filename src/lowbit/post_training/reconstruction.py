"""Learning low-bit weights from the float network itself: block by block (BRECQ, AdaRound), and all blocks at once.

No labels are needed: a block of the student learns to return what the same block of the float model returns.

`reconstruct` does that one block at a time, in order, on what the finished blocks before it send. With ``adaround``
each weight chooses between its two neighbors on the grid, as in the papers:

    w = s * clamp(floor(w / s) + h(V)),    h(V) = clamp(sigmoid(V) * 1.2 - 0.1, 0, 1)
    loss = |output - target|^2 + lambda * mean(1 - |2 h(V) - 1|^beta),    beta annealed from 20 to 2

With ``free`` weights, scales and biases all move, and rounding stays to nearest with the straight-through gradient:
at 3 bits and fewer the best grid point is often not a neighbor. `tune` lets all blocks learn together, each still held
to its own target, and the last one to the outputs: errors of early blocks can be made up for by late ones.

Every number learns in its own unit: a weight in steps of its scale, a scale in shares of itself. One learning rate then
fits all layers and formats.

References:
    Nagel et al., Up or down? Adaptive rounding for post-training quantization, 2020, https://arxiv.org/abs/2004.10568,
    equations 21 to 25. Li et al., BRECQ: pushing the limit of post-training quantization by block reconstruction, 2021,
    https://arxiv.org/abs/2102.05426, section 3.2.

Differs from the papers: the error is the plain mean square, without BRECQ's Fisher weights, relative to the variance of
the target, and the regularizer a mean, so that one lambda fits all blocks; scales of activations learn too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.batches import Batches
from lowbit.errors import RecipeError
from lowbit.post_training.learning import Learner, RoundingRule, Samples, draws
from lowbit.post_training.segments import Value, float_twin, parts, quantizers_in, run, walk, working_copy
from lowbit.progress import track
from lowbit.quantization import activation_quantizers, note


@dataclass(frozen=True)
class LearnedBlock:
    """The mean squared error of a block's outputs, relative to the targets' variance, before and after it learned."""

    layers: tuple[str, ...]
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Reconstruction:
    """What reconstruction gained, block by block."""

    blocks: tuple[LearnedBlock, ...]


@dataclass(frozen=True)
class Tuning:
    """The loss over all calibration samples before and after tuning; see `tune`."""

    loss_before: float
    loss_after: float


def reconstruct(
    student: nn.Module,
    model: nn.Module,
    batches: Batches,
    *,
    rounding: RoundingRule = "free",
    steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, Reconstruction]:
    """A copy of `student` whose blocks, one after the other, learned to return what the float model's return.

    A block that does not come closer on all samples is left as it was, and so is one with nothing to learn, or that
    changes the first dimension, so that no samples can be drawn.

    Args:
        student: a calibrated student.
        model: the float model it was made from.
        batches: inputs in any batch form, a list, all samples of one shape. Memory holds the inputs and outputs of one
            block for all of them.
        rounding: ``free`` lets weights go where they like, ``adaround`` only to one of their two neighbors.
        steps: optimizer steps for each block; AdaRound takes thousands.
        batch_size: samples a step.
        seed: draws the batches.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, samples of different shapes, or activations without a scale.
        RecipeError: there is no such rounding.
    """
    if rounding not in get_args(RoundingRule):
        raise RecipeError(f"rounding {rounding!r} is unknown; expected {', '.join(get_args(RoundingRule))}")
    student = working_copy(student)
    twin = float_twin(model, student)
    generator = torch.Generator().manual_seed(seed)
    ticks = iter(track(range(steps * len(parts(student, twin))), "reconstruct blocks", show=progress))
    rows = []
    for segment in walk(student, twin, batches, "reconstruct blocks", progress=False):
        inputs, targets = Samples(segment.inputs), torch.cat(segment.targets())
        variance = float(targets.var(correction=0)) or 1.0

        def error(outputs: Tensor, wanted: Tensor, variance: float = variance) -> Tensor:
            return F.mse_loss(outputs, wanted) / variance

        before = float(error(torch.cat(segment.outputs()), targets))
        learner = Learner(segment.layers, quantizers_in(segment.student), rounding, steps)
        if not learner.learnables or len(inputs) != len(targets):
            rows.append(LearnedBlock(tuple(segment.layers), before, before))
            continue
        for rows_now in draws(len(targets), batch_size, steps, generator):
            next(ticks)
            loss = error(run(segment.student, inputs[rows_now]), targets[rows_now])
            learner.step(loss)
        learner.finish()
        after = float(error(torch.cat(segment.outputs()), targets))
        if not after <= before:
            learner.revert()
            after = before
        rows.append(LearnedBlock(tuple(segment.layers), before, after))
    note(student, f"reconstruct(rounding={rounding}, steps={steps}, batch_size={batch_size}, seed={seed})")
    return student, Reconstruction(tuple(rows))


def tune(
    student: nn.Module,
    model: nn.Module,
    batches: Batches,
    *,
    steps: int = 500,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, Tuning]:
    """A copy of `student` whose blocks all learned at once to return what the float model's return.

    The loss sums squared errors relative to the target's variance: that of the outputs, and those of the blocks before
    them, each divided by the number of blocks.

    Args:
        student: a calibrated student.
        model: the float model it was made from.
        batches: inputs in any batch form, a list, all samples of one shape. Memory holds the activations of one batch.
        steps: optimizer steps.
        batch_size: samples a step.
        seed: draws the batches.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, samples of different shapes, or activations without a scale.
    """
    student = working_copy(student)
    twin = float_twin(model, student)
    inputs = Samples(list(batches))
    blocks = parts(student, twin)
    layers = {name: layer for of_block, _, _ in blocks for name, layer in of_block.items()}

    every = torch.split(torch.arange(len(inputs)), batch_size)
    variances = _variances([part for _, _, part in blocks], (inputs[rows] for rows in every))

    def loss(rows: Tensor) -> Tensor:
        value = wanted = inputs[rows]
        total = torch.zeros(())
        for i, (_, part, twin_part) in enumerate(blocks):
            with torch.no_grad():
                wanted = run(twin_part, wanted)
            value = run(part, value)
            weight = 1.0 if i == len(blocks) - 1 else 1 / len(blocks)
            total = total.to(value.device) + weight * F.mse_loss(value, wanted) / variances[i]
        return total

    with torch.no_grad():
        before = sum(float(loss(rows)) * len(rows) for rows in every) / len(inputs)
    learner = Learner(layers, activation_quantizers(student).values(), "free", steps)
    if not learner.learnables:
        return student, Tuning(before, before)
    generator = torch.Generator().manual_seed(seed)
    drawn = list(draws(len(inputs), batch_size, steps, generator))
    for rows in track(drawn, "tune the whole network", show=progress):
        learner.step(loss(rows))
    learner.finish()
    with torch.no_grad():
        after = sum(float(loss(rows)) * len(rows) for rows in every) / len(inputs)
    note(student, f"tune(steps={steps}, batch_size={batch_size}, seed={seed})")
    return student, Tuning(before, after)


def _variances(blocks: list[nn.Module], inputs: Iterable[Value]) -> list[float]:
    """Variance of the outputs of each of a float network's blocks over all samples; 1 for constant ones."""
    sums = torch.zeros(len(blocks), 3, dtype=torch.float64)
    with torch.no_grad():
        for entering in inputs:
            value: Value = entering
            for i, block in enumerate(blocks):
                value = output = run(block, value)
                wide = output.double()
                sums[i] += torch.tensor([output.numel(), float(wide.sum()), float(wide.square().sum())])
    count, total, squares = sums.unbind(1)
    return [float(v) or 1.0 for v in (squares / count - (total / count) ** 2).clamp(min=0)]
