"""What happens to a tensor: quantize, dequantize, and fake quantize with its gradient rule.

With scale s and zero point o (an integer, 0 for symmetric formats), following ONNX QuantizeLinear:

    q = clamp(round(x / s) + o)        for integers, ties to even, *before* the zero point is added
    q = format.round(x / s)            for every other format
    x_hat = (q - o) * s

The division is a true float32 division, as in ONNX Runtime: multiplying by 1/s rounds differently near ties.

Gradient, with v = x / s, [n, p] the grid's ends and q = round(v) the grid value, all three less the zero point:

    dx = g * k where n <= v <= p, else 0
    ds = share * sum over the block of g * (q - k * v inside, n below, p above)
    do = sum over the block of -s * g * (1 - k inside, 1 outside)
    k  = 1 + delta * sign(g) * (v - q) / (p - n)

k = 1 is the straight-through estimator with clipping. These are the derivatives by the ends of the range, l = s * n and
u = s * p, carried over to s and o: with x_n = (v - n) / (p - n), x_q the same of q, and dl = du = 0 where not named,

    du = g * (x_q - k * x_n) inside, g above;    dl = g * ((1 - x_q) - k * (1 - x_n)) inside, g below

What is written here in torch is the reference, and runs on every device. For float32 on the CPU `lowbit.kernels` does
the same in one pass where it can be built: the same bits, but for the order in which `ds` and `do` are summed.

References:
    Esser et al., Learned step size quantization, 2020, https://arxiv.org/abs/1902.08153, equations 3 and 5.
    Lee et al., Network quantization with element-wise gradient scaling, 2021, https://arxiv.org/abs/2104.00903.
    Choi et al., PACT: parameterized clipping activation for quantized neural networks, 2018,
        https://arxiv.org/abs/1805.06085.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lowbit import kernels
from lowbit.formats import Format, Int
from lowbit.granularity import Granularity


@dataclass(frozen=True)
class GradientRule:
    """What rounding passes back; the default is the straight-through estimator.

    Attributes:
        delta: of element-wise gradient scaling (EWGS): how far a gradient grows where it pulls a number towards its
            grid value, and shrinks where it pushes it away; 0 is the straight-through estimator.
        rounding: whether the rounding error inside the range moves its ends (LSQ, EWGS), or only what lies outside
            does (PACT).
        share: factor on the gradient of the scale (LSQ: 1 / sqrt(N * p) for N numbers a scale).
    """

    delta: float = 0.0
    rounding: bool = True
    share: float = 1.0


STE = GradientRule()


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
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    format: Format,
    granularity: Granularity,
    gradient: GradientRule = STE,
) -> Tensor:
    """Round `x` to the grid and stay float: the shape of `x`, differentiable in `x`, `scale` and `zero_point`.

    Args:
        x: float32, any shape.
        scale: positive, `granularity.scale_shape(x.shape)`.
        zero_point: float tensor like `scale`, or None for 0; only for integer formats. With `requires_grad` it may be
            any real number: it is rounded here, straight-through. Without, it has to be integer-valued.
        format: the grid.
        granularity: which elements share a scale.
        gradient: what rounding passes back.
    """
    learnable = zero_point is not None and zero_point.requires_grad
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or learnable):
        return _FakeQuantize.apply(x, scale, zero_point, format, granularity, gradient)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, scale, _whole(zero_point, learnable), format, granularity, training=False)


def _whole(zero_point: Tensor | None, learnable: bool) -> Tensor | None:
    """The zero point as an integer; one that nobody learns is one already."""
    return zero_point.round() if zero_point is not None and learnable else zero_point


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
        ctx: FunctionCtx,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        format: Format,
        granularity: Granularity,
        gradient: GradientRule,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)  # type: ignore[arg-type]  # the rest is recomputed
        ctx.format, ctx.granularity, ctx.gradient = format, granularity, gradient  # type: ignore[attr-defined]
        whole = _whole(zero_point, ctx.needs_input_grad[2])  # type: ignore[attr-defined]
        return _forward(x, scale, whole, format, granularity, training=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors  # type: ignore[attr-defined]
        format: Format = ctx.format  # type: ignore[attr-defined]
        granularity: Granularity = ctx.granularity  # type: ignore[attr-defined]
        rule: GradientRule = ctx.gradient  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        zero_point = _whole(zero_point, wanted[2])
        if kernel := kernels.call(x, scale, zero_point, format, granularity, grad=grad):
            dx, ds, dz = kernel.backward(wanted, rule.delta, rule.rounding)
        else:
            dx, ds, dz = _gradients(x, scale, zero_point, format, granularity, rule, grad, wanted)
        return dx, ds if ds is None or rule.share == 1 else ds * rule.share, dz, None, None, None


def _gradients(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    format: Format,
    granularity: Granularity,
    rule: GradientRule,
    grad: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `x`, `scale` (without the share) and `zero_point`, as far as they are `wanted`."""
    offset = 0.0 if zero_point is None else granularity.spread(zero_point, x.shape)
    v, g = granularity.blocked(x) / granularity.spread(scale, x.shape), granularity.blocked(grad)
    inside = (v >= format.min - offset) & (v <= format.max - offset)
    q = change = v.new_zeros(())  # change: k - 1
    if rule.delta or wanted[1]:
        q = quantize(x, scale, zero_point, format, granularity) - offset
    if rule.delta:
        sign = torch.copysign(v.new_ones(()), g)
        change = (v - q).mul_(sign).mul_(rule.delta / (format.max - format.min))

    def summed(slope: Tensor) -> Tensor:
        """Sums of g times `slope` (blocked) over the blocks: the shape of `scale`."""
        terms = granularity.unblocked(g * slope, x.shape)
        return granularity.rows(terms).sum(1).reshape(scale.shape)

    dx = ds = dz = None
    if wanted[0]:
        dx = granularity.unblocked(g * (torch.where(inside, change + 1, 0.0) if rule.delta else inside), x.shape)
    if wanted[1]:
        error = q - ((change + 1) * v if rule.delta else v)
        ds = summed(torch.where(inside, error if rule.rounding else 0.0, q))
    if wanted[2]:
        dz = summed(torch.where(inside, change if rule.rounding else torch.zeros_like(change), -1.0)) * scale
    return dx, ds, dz
