"""How the inputs of a layer vary together: the second moments that its output error depends on.

A layer that multiplies rows x of its (unfolded) input by weights W makes, with weights W + E, the squared output error

    sum over x of |E x|^2  =  trace(E H E^T),    H = sum over x of x x^T

so H, of shape `[inputs, inputs]`, is all that rounding needs to know of the data (Frantar and Alistarh, Optimal brain
compression, 2022, https://arxiv.org/abs/2208.11580, section 4). A grouped convolution has one H a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.layers import Quantized
from lowbit.post_training.segments import Segment, run

SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Covariance:
    """Mean products of inputs, `[groups, inputs, inputs]`: of the student's x, and of the float twin's y."""

    student: Tensor
    cross: Tensor
    twin: Tensor

    def error(self, weight: Tensor, float_weight: Tensor) -> float:
        """Mean square of `weight` x - `float_weight` y, relative to that of `float_weight` y."""
        want = float((float_weight @ self.twin * float_weight).sum())
        both = float((float_weight @ self.cross * weight).sum())
        return (float((weight @ self.student * weight).sum()) - 2 * both + want) / want if want > 0 else 0.0


def covariance(layer: Quantized, twin: nn.Module, segment: Segment) -> Covariance | None:
    """How inputs of a layer and of its float twin vary together while their block runs; None if it is never called."""
    total: list[Tensor] = []
    rows = 0
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output: xs.append(unfolded(layer.layer, _read(layer, _input(args, kwargs)))),
            with_kwargs=True,
        ),
        twin.register_forward_hook(
            lambda _, args, kwargs, output: ys.append(unfolded(twin, _input(args, kwargs))), with_kwargs=True
        ),
    ]
    try:
        with torch.no_grad():
            for value, twin_value in zip(segment.inputs, segment.twin_inputs, strict=True):
                run(segment.student, value)
                run(segment.twin, twin_value)
                for x, y in zip(xs, ys, strict=True):  # one of each for every call
                    products = [x @ x.mT, y @ x.mT, y @ y.mT]
                    total = [a + b for a, b in zip(total, products, strict=True)] if total else products
                    rows += x.shape[2]
                xs.clear()
                ys.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return Covariance(*(sums.double() / rows for sums in total)) if total else None


def _input(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _read(layer: Quantized, x: Tensor) -> Tensor:
    return x if layer.input_quantizer is None else layer.input_quantizer(x)


def unfolded(layer: nn.Module, x: Tensor) -> Tensor:
    """The columns of its input that a layer multiplies its weight with: `[groups, inputs, rows]`."""
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
