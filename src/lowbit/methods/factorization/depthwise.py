"""The depthwise layer of a chain, fitted to what the float network returns: least squares by conjugate gradients.

With the other two layers fixed, a chain's output is linear in its depthwise weights C,

    y[o, p] = sum_r A[o, r] sum_s C[r, s] u[r, p + s],    u: what the first layer returns

but the normal equations have R * S unknowns, too many to write down. They need not be: a product with their matrix is
one pass through the two layers and one back. Preconditioned by diag(A^T A) E[u^2], a dozen such products come close to
the solution, which a ridge of the same diagonal draws toward the present C. Outputs are centered: a bias or the
BatchNorm behind, where there is one, makes up for their means. Depthwise weights have 8 bits by default, so rounding
the solution to nearest loses next to nothing.

References:
    Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952,
    https://doi.org/10.6028/jres.049.044.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit.layers import Quantized
from lowbit.post_training.segments import Segment, run
from lowbit.quantizer import Quantizer

_MOST = 1 << 23  # numbers of u that are used: some 300 images of 32x32 in 28 channels
_STEPS = 12
_RIDGE = 1e-2


def fit_depthwise(middle: Quantized, last: Quantized, twin: nn.Module, segment: Segment) -> None:
    """Fit the weights of a chain's depthwise layer, in place.

    Args:
        middle: the depthwise layer.
        last: the layer behind it.
        twin: the layer of the float network that the chain replaces.
        segment: the block they are in, and what enters it.
    """
    us, ys = _seen(middle, twin, segment)
    if not us:
        return
    u, wanted = torch.cat(us), _centered(torch.cat(ys))
    a, start = last.weight.detach(), middle.weight.detach()
    ones = [1] * (start.dim() - 2)
    in_one = a.square().sum(0).flatten() if last.layer.groups == 1 else _of_groups(a, last.layer.groups)  # type: ignore[arg-type]
    power = u.square().transpose(0, 1).flatten(1).mean(1)
    diagonal = (in_one * power).clamp(min=1e-12 * float((in_one * power).max()) + 1e-30).reshape(-1, 1, *ones)
    count = wanted.numel() / wanted.shape[1]

    def output(c: Tensor) -> Tensor:
        v = torch.func.functional_call(middle.layer, {"weight": c}, (u,))
        return _centered(torch.func.functional_call(last.layer, {"weight": a}, (v,)))

    def gradient(c: Tensor, target: Tensor | None) -> Tensor:
        """Of half the mean squared error, in c; without a target, the product with the matrix."""
        c = c.detach().requires_grad_(True)
        with torch.enable_grad():
            error = output(c) if target is None else output(c) - target
            (found,) = torch.autograd.grad(error.square().sum() / (2 * count), c)
        return found

    residual = -gradient(start, wanted)
    move = torch.zeros_like(start)
    scaled = residual / diagonal
    direction, size = scaled.clone(), float((residual * scaled).sum())
    for _ in range(_STEPS):
        if size <= 0:
            break
        product = gradient(direction, None) + _RIDGE * diagonal * direction
        step = size / float((direction * product).sum())
        move += step * direction
        residual -= step * product
        scaled = residual / diagonal
        before, size = size, float((residual * scaled).sum())
        direction = scaled + (size / before) * direction
    quantizer = middle.weight_quantizer
    assert isinstance(quantizer, Quantizer)
    middle.layer.get_parameter("weight").data.copy_(start + move)
    quantizer.fit_weight(start + move)
    middle.layer.get_parameter("weight").data.copy_(middle.weight.detach())  # what is stored is on the grid


def _seen(middle: Quantized, twin: nn.Module, segment: Segment) -> tuple[list[Tensor], list[Tensor]]:
    """What the depthwise layer reads and the float layer returns, for as many samples as can be held."""
    us: list[Tensor] = []
    ys: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        us.append((args[0] if middle.input_quantizer is None else middle.input_quantizer(args[0])).clone())

    hooks = [
        middle.register_forward_hook(see),
        twin.register_forward_hook(lambda _, args, output: ys.append(output.clone())),
    ]
    try:
        with torch.no_grad():
            for value, twin_value in zip(segment.inputs, segment.twin_inputs, strict=True):
                run(segment.student, value)
                run(segment.twin, twin_value)
                if sum(one.numel() for one in us) >= _MOST:
                    break
    finally:
        for hook in hooks:
            hook.remove()
    alike = [i for i, u in enumerate(us) if u.shape[1:] == us[0].shape[1:]]  # not images of another size
    return [us[i] for i in alike], [ys[i] for i in alike]


def _centered(y: Tensor) -> Tensor:
    return y - y.mean([0, *range(2, y.dim())], keepdim=True)


def _of_groups(a: Tensor, groups: int) -> Tensor:
    """Squared norms of the columns of a grouped weight `[O, R / groups, ...]`, for all R."""
    return a.reshape(groups, a.shape[0] // groups, -1).square().sum(1).flatten()
