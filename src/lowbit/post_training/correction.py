"""Moment correction: what quantization does to the mean and the spread of a channel, put back into bias and scale.

Rounded weights and activations change a layer's outputs not only at random: they shift the mean of a channel, and they
change its standard deviation, the more so the fewer weights a channel has. Both are the same for every sample, so they
can be undone for nothing, per output channel and over samples and positions:

    a = std[float output] / std[quantized output]          scale of the channel's weights <- a * scale
    b <- E[float output] - a * (E[quantized output] - b)

Layers are corrected in the order in which they run, each behind layers already corrected.

References:
    Nagel et al., Data-free quantization through weight equalization and bias correction, 2019,
    https://arxiv.org/abs/1906.04721, section 4.2; the empirical form of its appendix D.

Differs from the paper: it corrects the mean alone (a = 1), which `spread=False` does. Without the spread, each layer's
outputs shrink a little, and logits end a quarter too small.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, Batches, call, size_of
from lowbit.formats import Block
from lowbit.granularity import PerChannel
from lowbit.layers import BATCHNORMS, TRANSPOSED, Quantized, channel_axis, output_granularity
from lowbit.post_training.segments import Value, float_twin, run, walk, working_copy
from lowbit.quantization import note
from lowbit.quantizer import Quantizer

_LARGEST_FACTOR = 2.0  # of a scale: beyond it, a channel is as good as dead, and its spread is noise


@dataclass(frozen=True)
class CorrectedLayer:
    """The largest shift of a channel's mean, in standard deviations of the layer's outputs, and the factors of scales.

    The factors are 1 where a layer's scales are not one for each output channel.
    """

    name: str
    largest_shift: float
    smallest_factor: float
    largest_factor: float


@dataclass(frozen=True)
class Correction:
    """What was corrected, layer by layer; embeddings and layers with frozen codes are left as they are."""

    layers: tuple[CorrectedLayer, ...]


def correct_moments(
    student: nn.Module, model: nn.Module, batches: Batches, *, spread: bool = True, progress: bool = True
) -> tuple[nn.Module, Correction]:
    """A copy of `student` whose channels have the mean of the float model's again, and with `spread` their deviation.

    Args:
        student: a calibrated student.
        model: the float model it was made from.
        batches: inputs in any batch form, a list; held in memory.
        spread: correct standard deviations too, in the scales of weights; False is the paper's bias correction.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, or activations without a scale.
    """
    student = working_copy(student)
    twin = float_twin(model, student)
    rows = []
    for segment in walk(student, twin, batches, "correct moments", progress=progress):
        for name, layer in segment.layers.items():
            if isinstance(layer.layer, nn.Embedding) or not isinstance(layer.weight_quantizer, Quantizer | None):
                continue
            axis = channel_axis(layer.layer)
            want = _moments(twin.get_submodule(name), segment.twin, segment.twin_inputs, axis)
            got = _moments(layer, segment.student, segment.inputs, axis)
            if got is None or want is None:  # the calibration samples do not reach this layer
                continue
            factor = _factor(layer, got[1], want[1]) if spread else torch.ones_like(got[1])
            rows.append(_correct(name, layer, want[0], got[0], factor, float(want[1].square().mean().sqrt())))
    note(student, f"correct_moments(spread={spread})")
    return student, Correction(tuple(rows))


def _factor(layer: Quantized, got: Tensor, want: Tensor) -> Tensor:
    """What the scales of a layer's channels are multiplied by; 1 where they are not its own to change."""
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, Quantizer) or isinstance(quantizer.format, Block):
        return torch.ones_like(got)
    if quantizer.granularity != output_granularity(layer.layer, PerChannel()) or isinstance(layer.layer, TRANSPOSED):
        return torch.ones_like(got)
    alive = (got > 0) & (want > 0)
    return torch.where(alive, want / got.clamp(min=1e-30), 1.0).clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)


def _correct(
    name: str, layer: Quantized, want: Tensor, got: Tensor, factor: Tensor, deviation: float
) -> CorrectedLayer:
    if layer.bias is None:
        layer.layer.register_parameter("bias", nn.Parameter(torch.zeros_like(got, dtype=torch.float32)))
    assert layer.bias is not None
    bias = want - factor * (got - layer.bias.detach())
    layer.bias.data.copy_(bias)
    if isinstance(layer.weight_quantizer, Quantizer) and bool((factor != 1).any()):
        weight = layer.layer.get_parameter("weight")
        weight.data.mul_(factor.float().reshape(-1, *[1] * (weight.dim() - 1)))
        layer.weight_quantizer.scale.data.mul_(factor.float())
    shift = float((want - got).abs().max()) / (deviation or 1.0)
    return CorrectedLayer(name, shift, float(factor.min()), float(factor.max()))


def _moments(layer: nn.Module, part: nn.Module, inputs: list[Value], axis: int) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of a layer's outputs for each channel, float64; None if it never ran."""
    sums: list[Tensor] = []
    count = 0

    def add(_: nn.Module, args: object, output: Tensor) -> None:
        nonlocal count
        rows = output.detach().movedim(axis, 0).flatten(1)
        variance, mean = (found.double() for found in torch.var_mean(rows, 1, correction=0))
        sums.append(rows.shape[1] * torch.stack([mean, variance + mean**2]))
        count += rows.shape[1]

    hook = layer.register_forward_hook(add)
    try:
        with torch.no_grad():
            for value in inputs:
                run(part, value)
    finally:
        hook.remove()
    if not count:
        return None
    total = torch.stack(sums).sum(0) / count
    return total[0], (total[1] - total[0] ** 2).clamp(min=0).sqrt()


def reestimate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the statistics of the BatchNorms to those of `batches`, in place: means over all of them.

    Give batches as training sees them, augmented: statistics of plain images would not fit the weights.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCHNORMS) and m.running_mean is not None]
    batches = [batch for batch in batches if size_of(batch) > 1]  # one sample has no variance
    if not norms or not batches:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        with torch.no_grad():
            for number, batch in enumerate(batches):  # each counts by its size: the mean of all samples
                share = size_of(batch) / sum(map(size_of, batches[: number + 1]))
                for norm in norms:
                    norm.momentum = share
                call(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
