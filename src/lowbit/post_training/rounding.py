"""Rounding a weight where its neighbors can still make up for it: second-order rounding, and scales that fit the data.

Rounding to nearest minimizes the error of the weights; what counts is the error of the outputs, trace(E H E^T) with the
covariance H of the layer's inputs (see `lowbit.post_training.covariance`). Second-order rounding takes the inputs of a
layer one after the other, those with the largest second moment first. Each column of weights is rounded to nearest, and
what it is off by is spread over the columns still to come, in the proportions that cost the least:

    U = Cholesky factor of (H + damping * mean diagonal)^-1, upper
    e = (w_i - round(w_i)) / U_ii,    W[:, i+1:] -= e U[i, i+1:]

Layers are rounded in the order in which they run, each on the inputs x that the layers before it, already rounded,
send. The float network has other inputs y there, so the weights W that suit y are not the best for x. The least squares
fit of W y by W* x, damped toward W, is W* = W (E[y x^T] + damping) (H + damping)^-1; what is rounded lies between:

    target = (1 - refit) W + refit W*

References:
    Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained transformers, 2023,
    https://arxiv.org/abs/2210.17323, section 3; the order of columns by second moment is from its code ("act order").

Differs from the paper: the target above, which `refit=0` makes the paper's (half way measured best, LOG.md; Li et al.,
GPTAQ, 2025, https://arxiv.org/abs/2504.02692, fit the float outputs too); the scales are those of the student, which
`fit_scales` can choose for the outputs' error; convolutions, grouped ones included, are rounded as the matrix products
that they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.batches import Batches
from lowbit.formats import Block, Format
from lowbit.layers import Quantized
from lowbit.post_training.covariance import SUPPORTED, Covariance, as_matrix, covariance
from lowbit.post_training.segments import Segment, float_twin, walk, working_copy
from lowbit.quantization import note
from lowbit.quantizer import Quantizer
from lowbit.scales import weight_scale


@dataclass(frozen=True)
class RoundedLayer:
    """The mean squared difference of a layer's outputs from the float network's there, relative to their mean square.

    Both the layer's own rounding and that of all layers before it are in it.
    """

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

    def fit(layer: Quantized, quantizer: Quantizer, found: Covariance, float_weight: Tensor) -> None:
        if isinstance(quantizer.format, Block):
            return
        weight = layer.layer.get_parameter("weight")
        importance = torch.diagonal(found.student, dim1=1, dim2=2)[:, None].expand(as_matrix(weight, layer.layer).shape)
        importance = importance.reshape(weight.shape).clamp(min=1e-12)
        scale = weight_scale(weight, quantizer.format, quantizer.granularity, "mse", importance)
        quantizer.scale.data.copy_(scale)

    return _each_layer(student, model, batches, fit, "fit_scales", progress)


def round_weights(
    student: nn.Module,
    model: nn.Module,
    batches: Batches,
    *,
    refit: float = 0.5,
    damping: float = 0.01,
    progress: bool = True,
) -> tuple[nn.Module, Rounding]:
    """A copy of `student` whose weights are rounded by second order, on the scales it has.

    It starts from the float model's weights: what other functions did to those of the student before is lost.

    Args:
        student: a calibrated student.
        model: the float model it was made from.
        batches: inputs in any batch form, a list; held in memory.
        refit: how far weights may move toward the least squares fit of the float outputs, from 0 to 1.
        damping: added to the diagonal of H, as a share of its mean.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, or activations without a scale.
    """

    def fit(layer: Quantized, quantizer: Quantizer, found: Covariance, float_weight: Tensor) -> None:
        _round(layer, quantizer, found, float_weight, refit, damping)

    return _each_layer(student, model, batches, fit, f"round_weights(refit={refit}, damping={damping})", progress)


def round_layer(
    layer: Quantized, twin: nn.Module, segment: Segment, *, refit: float = 0.5, damping: float = 0.01
) -> RoundedLayer | None:
    """Round one layer of a block in place, as `round_weights` does all; None if it is left as it is.

    Args:
        layer: of the student's block.
        twin: the same layer of the float network.
        segment: the block, and what enters it.
        refit, damping: as in `round_weights`.
    """
    quantizer = layer.weight_quantizer
    if _why_not(layer) or (found := covariance(layer, twin, segment)) is None:
        return None
    assert isinstance(quantizer, Quantizer)
    float_weight = as_matrix(twin.get_parameter("weight").detach(), layer.layer).double()
    before = _error(layer, float_weight, found)
    _round(layer, quantizer, found, float_weight, refit, damping)
    return RoundedLayer(quantizer.name.removesuffix(" weight"), before, _error(layer, float_weight, found))


def _round(
    layer: Quantized, quantizer: Quantizer, found: Covariance, float_weight: Tensor, refit: float, damping: float
) -> None:
    weight = layer.layer.get_parameter("weight")
    ones = torch.ones_like(quantizer.granularity.blocked(weight))
    spread = quantizer.granularity.spread(quantizer.scale.detach(), weight.shape)
    scale = as_matrix(quantizer.granularity.unblocked(ones * spread, weight.shape), layer.layer)
    h = _damped(found.student, damping)
    least_squares = torch.linalg.solve(h, float_weight @ _damped(found.cross, damping, found.student), left=False)
    target = (1 - refit) * float_weight + refit * least_squares
    weight.data.copy_(second_order(target, scale, h, quantizer.format).reshape(weight.shape))


def _damped(products: Tensor, damping: float, like: Tensor | None = None) -> Tensor:
    """Products with `damping` times the mean diagonal (of `like`) added to the diagonal; never singular."""
    diagonal = torch.diagonal(products if like is None else like, dim1=1, dim2=2)
    added = (damping * diagonal.mean(1)).clamp(min=1e-30)[:, None]
    return products + torch.diag_embed(added.expand(diagonal.shape))


def second_order(target: Tensor, scale: Tensor, h: Tensor, format: Format) -> Tensor:
    """Weights `[groups, outputs, inputs]` on the grid of `format`, with scales of that shape and damped H."""
    inputs = target.shape[2]
    order = torch.diagonal(h, dim1=1, dim2=2).argsort(dim=1, descending=True)
    columns = order[:, None].expand(target.shape)
    w, s = target.double().gather(2, columns), scale.gather(2, columns)
    every = torch.arange(len(h), device=h.device)[:, None, None]
    h = h[every, order[:, :, None], order[:, None, :]]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    rounded = torch.empty_like(w)
    for i in range(inputs):
        step = s[:, :, i]
        rounded[:, :, i] = format.round(w[:, :, i].float() / step) * step
        error = (w[:, :, i] - rounded[:, :, i]) / upper[:, i, i, None]
        w[:, :, i + 1 :] -= error[:, :, None] * upper[:, None, i, i + 1 :]
    back = order.argsort(dim=1)[:, None].expand(target.shape)
    return rounded.gather(2, back).float()


def _each_layer(
    student: nn.Module,
    model: nn.Module,
    batches: Batches,
    fit: Callable[[Quantized, Quantizer, Covariance, Tensor], None],
    step: str,
    progress: bool,
) -> tuple[nn.Module, Rounding]:
    """`fit` applied to every layer with integer or float weights, in order, each with the covariance of its inputs."""
    student = working_copy(student)
    twin = float_twin(model, student)
    rows, skipped = [], {}
    for segment in walk(student, twin, batches, step.partition("(")[0].replace("_", " "), progress=progress):
        for name, layer in segment.layers.items():
            quantizer = layer.weight_quantizer
            if reason := _why_not(layer):
                skipped[name] = reason
                continue
            assert isinstance(quantizer, Quantizer)
            found = covariance(layer, twin.get_submodule(name), segment)
            if found is None:
                skipped[name] = "the calibration samples do not reach it"
                continue
            float_weight = as_matrix(twin.get_submodule(name).get_parameter("weight").detach(), layer.layer).double()
            before = _error(layer, float_weight, found)
            fit(layer, quantizer, found, float_weight)
            rows.append(RoundedLayer(name, before, _error(layer, float_weight, found)))
    note(student, step)
    return student, Rounding(tuple(rows), skipped)


def _why_not(layer: Quantized) -> str:
    if not isinstance(layer.weight_quantizer, Quantizer):
        return "its weights are float" if layer.weight_quantizer is None else "its weights are frozen codes"
    if not isinstance(layer.layer, SUPPORTED):
        return f"{type(layer.layer).__name__} keeps the rounding it has: only Linear, Conv1d and Conv2d are rounded"
    return ""


def _error(layer: Quantized, float_weight: Tensor, found: Covariance) -> float:
    with torch.no_grad():
        return found.error(as_matrix(layer.weight, layer.layer).double(), float_weight)
