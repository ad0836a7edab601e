"""What happens to a tensor: quantize, dequantize, and fake quantize with its gradient rule.

With scale s and zero point o (an integer, 0 for symmetric formats), following ONNX QuantizeLinear:

    q = clamp(round(x / s) + o)        for integers, ties to even, *before* the zero point is added
    q = format.round(x / s)            for every other format
    x_hat = (q - o) * s

The division is a true float32 division, as in ONNX Runtime: multiplying by 1/s rounds differently near ties.

Gradient (straight-through with clipping, and LSQ for the scale; Esser et al., Learned step size quantization, 2020,
https://arxiv.org/abs/1902.08153, equations 3 and 5): with v = x / s and [n, p] the grid's ends less the zero point,

    dx = g where n <= v <= p, else 0
    ds = sum over the block of g * (round(v) - v inside, n below, p above)

What is written here in torch is the reference, and runs on every device. For float32 on the CPU `lowbit.kernels` does
the same in one pass where it can be built: the same bits, but for the order in which `ds` is summed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lowbit import kernels
from lowbit.formats import Format, Int
from lowbit.granularity import Granularity


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, format: Format, granularity: Granularity) -> Tensor:
    """Grid values (float32, shape of `granularity.blocked(x)`) nearest to `x / scale`, zero point included."""
    z = granularity.blocked(x) / granularity.spread(scale, x.shape)
    if zero_point is None or not isinstance(format, Int):
        return format.round(z)
    offset = granularity.spread(zero_point, x.shape)
    return z.round_().add_(offset).clamp_(format.min, format.max)


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, granularity: Granularity, shape: torch.Size
) -> Tensor:
    """The numbers, of shape `shape`, that grid values `q` stand for: `(q - zero_point) * scale`."""
    if zero_point is not None:
        q = q - granularity.spread(zero_point, shape)
    return granularity.unblocked(q * granularity.spread(scale, shape), shape)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, format: Format, granularity: Granularity
) -> Tensor:
    """Round `x` to the grid and stay float: the shape of `x`, differentiable in `x` and `scale`.

    Args:
        x: float32, any shape.
        scale: positive, `granularity.scale_shape(x.shape)`.
        zero_point: integer-valued float tensor like `scale`, or None for 0; only for integer formats.
        format: the grid.
        granularity: which elements share a scale.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _FakeQuantize.apply(x, scale, zero_point, format, granularity)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, scale, zero_point, format, granularity, training=False)


def _forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, format: Format, granularity: Granularity, *, training: bool
) -> Tensor:
    # only training is worth waiting for a compiler
    if kernel := kernels.call(x, scale, zero_point, format, granularity, build=training):
        return kernel.forward()
    return dequantize(quantize(x, scale, zero_point, format, granularity), scale, zero_point, granularity, x.shape)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor | None, format: Format, granularity: Granularity
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)  # type: ignore[arg-type]  # the rest is recomputed
        ctx.format, ctx.granularity = format, granularity  # type: ignore[attr-defined]
        return _forward(x, scale, zero_point, format, granularity, training=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, scale, zero_point = ctx.saved_tensors  # type: ignore[attr-defined]
        format: Format = ctx.format  # type: ignore[attr-defined]
        granularity: Granularity = ctx.granularity  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        if kernel := kernels.call(x, scale, zero_point, format, granularity, grad=grad):
            return *kernel.backward(wanted), None, None, None
        offset = 0.0 if zero_point is None else granularity.spread(zero_point, x.shape)
        v = granularity.blocked(x) / granularity.spread(scale, x.shape)
        g = granularity.blocked(grad)
        inside = (v >= format.min - offset) & (v <= format.max - offset)
        dx = granularity.unblocked(g * inside, x.shape) if wanted[0] else None
        if not wanted[1]:
            return dx, None, None, None, None
        q = quantize(x, scale, zero_point, format, granularity) - offset
        terms = granularity.unblocked(g * torch.where(inside, q - v, q), x.shape)
        return dx, granularity.rows(terms).sum(1).reshape(scale.shape), None, None, None
