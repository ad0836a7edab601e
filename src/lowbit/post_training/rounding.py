"""Rounding a weight where its neighbors can still make up for it: second-order rounding, and scales that fit the data.

Rounding to nearest minimizes the error of the weights; what counts is the error of the outputs, trace(E H E^T) with the
covariance H of the layer's inputs (see `lowbit.post_training.covariance`). Second-order rounding takes the inputs of a
layer one after the other, those with the largest second moment first. Each column of weights is rounded to nearest, and
what it is off by is spread over the columns still to come, in the proportions that cost the least:

    U = Cholesky factor of (H + damping * mean diagonal)^-1, upper
    e = (w_i - round(w_i)) / U_ii,    W[:, i+1:] -= e U[i, i+1:]

Layers are rounded in the order in which they run, each on the inputs that the layers before it, already rounded, send.

References:
    Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained transformers, 2023,
    https://arxiv.org/abs/2210.17323, section 3; the order of columns by second moment is from its code ("act order").

Differs from the paper: the scales are those of the student, which `fit_scales` can choose for the outputs' error, and
convolutions, grouped ones included, are rounded as the matrix products that they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.batches import Batches
from lowbit.formats import Block
from lowbit.layers import Quantized
from lowbit.post_training.covariance import SUPPORTED, as_matrix, covariance
from lowbit.post_training.segments import float_twin, walk
from lowbit.quantization import note
from lowbit.quantizer import Quantizer
from lowbit.scales import weight_scale


@dataclass(frozen=True)
class RoundedLayer:
    """The mean squared output error of a layer that its weights cause, relative to the mean squared output."""

    name: str
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Rounding:
    """What rounding gained, layer by layer; `skipped` gives the reason for each layer left as it was."""

    layers: tuple[RoundedLayer, ...]
    skipped: dict[str, str]


def fit_scales(
    student: nn.Module, model: nn.Module, batches: Batches, *, progress: bool = True
) -> tuple[nn.Module, Rounding]:
    """A copy of `student` with weight scales that minimize the error of each layer's outputs, not of its weights.

    The squared error of each weight counts by the mean square of the input that it multiplies: the diagonal of H.

    Args:
        student: a calibrated student.
        model: the float model it was made from.
        batches: inputs in any batch form, a list; held in memory.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, or activations without a scale.
    """

    def fit(layer: Quantized, quantizer: Quantizer, h: Tensor) -> None:
        if isinstance(quantizer.format, Block):
            return
        weight = layer.layer.get_parameter("weight")
        importance = torch.diagonal(h, dim1=1, dim2=2)[:, None].expand(as_matrix(weight, layer.layer).shape)
        importance = importance.reshape(weight.shape).clamp(min=1e-12)
        scale = weight_scale(weight, quantizer.format, quantizer.granularity, "mse", importance)
        quantizer.scale.data.copy_(scale)

    return _each_layer(student, model, batches, fit, "fit_scales", progress)


def round_weights(
    student: nn.Module, model: nn.Module, batches: Batches, *, damping: float = 0.01, progress: bool = True
) -> tuple[nn.Module, Rounding]:
    """A copy of `student` whose weights are rounded by second order, on the scales it has.

    Args:
        student: a calibrated student.
        model: the float model it was made from.
        batches: inputs in any batch form, a list; held in memory.
        damping: added to the diagonal of H, as a share of its mean.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, or activations without a scale.
    """

    def fit(layer: Quantized, quantizer: Quantizer, h: Tensor) -> None:
        weight = layer.layer.get_parameter("weight")
        ones = torch.ones_like(quantizer.granularity.blocked(weight))
        spread = quantizer.granularity.spread(quantizer.scale.detach(), weight.shape)
        scale = quantizer.granularity.unblocked(ones * spread, weight.shape)
        rounded = second_order(
            as_matrix(weight.detach(), layer.layer), as_matrix(scale, layer.layer), h, quantizer, damping
        )
        weight.data.copy_(rounded.reshape(weight.shape))

    return _each_layer(student, model, batches, fit, f"round_weights(damping={damping})", progress)


def second_order(weight: Tensor, scale: Tensor, h: Tensor, quantizer: Quantizer, damping: float) -> Tensor:
    """Weights `[groups, outputs, inputs]` on the grid of `quantizer`, with scales of that shape and H of each group."""
    groups, _, inputs = weight.shape
    diagonal = torch.diagonal(h, dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True)
    back = order.argsort(dim=1)
    columns = order[:, None].expand(weight.shape)
    w, s = weight.gather(2, columns).double(), scale.gather(2, columns)
    every = torch.arange(groups, device=h.device)[:, None, None]
    h = h.double()[every, order[:, :, None], order[:, None, :]]
    # a channel that is always 0 has no say; 1 keeps its row of H invertible
    mean = diagonal.double().mean(1).clamp(min=1e-30)[:, None]
    h = h + torch.diag_embed((damping * mean).expand(groups, inputs))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    rounded = torch.empty_like(w)
    for i in range(inputs):
        step = s[:, :, i]
        rounded[:, :, i] = quantizer.format.round(w[:, :, i].float() / step) * step
        error = (w[:, :, i] - rounded[:, :, i]) / upper[:, i, i, None]
        w[:, :, i + 1 :] -= error[:, :, None] * upper[:, None, i, i + 1 :]
    return rounded.gather(2, back[:, None].expand(weight.shape)).float()


def _each_layer(
    student: nn.Module,
    model: nn.Module,
    batches: Batches,
    fit: Callable[[Quantized, Quantizer, Tensor], None],
    step: str,
    progress: bool,
) -> tuple[nn.Module, Rounding]:
    """`fit` applied to every layer with integer or float weights, in order, each with the covariance of its inputs."""
    student = copy.deepcopy(student).eval()
    twin = float_twin(model, student)
    rows, skipped = [], {}
    for segment in walk(student, twin, batches, step.partition("(")[0].replace("_", " "), progress=progress):
        for name, layer in segment.layers.items():
            quantizer = layer.weight_quantizer
            if reason := _why_not(layer):
                skipped[name] = reason
                continue
            assert isinstance(quantizer, Quantizer)
            h = covariance(layer, segment.student, segment.inputs)
            float_weight = twin.get_submodule(name).get_parameter("weight")
            before = _error(layer, float_weight, h)
            fit(layer, quantizer, h)
            rows.append(RoundedLayer(name, before, _error(layer, float_weight, h)))
    note(student, step)
    return student, Rounding(tuple(rows), skipped)


def _why_not(layer: Quantized) -> str:
    if not isinstance(layer.weight_quantizer, Quantizer):
        return "its weights are float" if layer.weight_quantizer is None else "its weights are frozen codes"
    if not isinstance(layer.layer, SUPPORTED):
        return f"{type(layer.layer).__name__} keeps the rounding it has: only Linear, Conv1d and Conv2d are rounded"
    return ""


def _error(layer: Quantized, weight: Tensor, h: Tensor) -> float:
    with torch.no_grad():
        signal = as_matrix(weight, layer.layer)
        error = as_matrix(layer.weight, layer.layer) - signal
        of_signal = float(((signal @ h) * signal).sum())
        return float(((error @ h) * error).sum()) / of_signal if of_signal > 0 else 0.0
