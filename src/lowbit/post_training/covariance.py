"""How the inputs of a layer vary together: the second moments that its output error depends on.

A layer that multiplies rows x of its (unfolded) input by weights W makes, with weights W + E, the squared output error

    sum over x of |E x|^2  =  trace(E H E^T),    H = sum over x of x x^T

so H, of shape `[inputs, inputs]`, is all that rounding needs to know of the data (Frantar and Alistarh, Optimal brain
compression, 2022, https://arxiv.org/abs/2208.11580, section 4). A grouped convolution has one H a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.layers import Quantized
from lowbit.post_training.segments import Value, run

SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def covariance(layer: Quantized, part: nn.Module, inputs: list[Value]) -> Tensor:
    """H of a layer while `part`, which holds it, runs on `inputs`: `[groups, inputs, inputs]`, the mean over rows x."""
    total, rows = torch.zeros(()), 0

    def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total, rows
        x = unfolded(layer, args[0])
        total = total.to(x.device) + x @ x.mT
        rows += x.shape[2]

    hook = layer.register_forward_hook(add)
    try:
        with torch.no_grad():
            for value in inputs:
                run(part, value)
    finally:
        hook.remove()
    return total / max(rows, 1)


def unfolded(quantized: Quantized, x: Tensor) -> Tensor:
    """The columns that a layer multiplies its weight with: `[groups, inputs, rows]`."""
    if quantized.input_quantizer is not None:
        x = quantized.input_quantizer(x)
    layer = quantized.layer
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T[None]
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):
        x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(x, kernel, dilation, 0, stride)  # [n, channels * kernel, positions]
    return columns.transpose(0, 1).reshape(layer.groups, columns.shape[1] // layer.groups, -1)


def as_matrix(weight: Tensor, layer: nn.Module) -> Tensor:
    """A weight, or anything of its shape, as `[groups, outputs of a group, inputs]`."""
    groups = layer.groups if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)
