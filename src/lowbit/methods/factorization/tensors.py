"""The least squares that factors solve, one factor at a time.

A tensor X, `[o, i, s]` or a matrix `[o, i]`, is a sum of R components, outer products of a column of each factor:

    X[o, i, s] ~ sum_r A[o, r] B[i, r] C[s, r]

With all factors but one fixed, the error is quadratic in that one, H, and its rows do not depend on each other:

    |X - X^|^2 = |X|^2 - 2 sum(H * F) + sum((H G) * H)
    F = the unfolded X times the Khatri-Rao product of the others,  G = the elementwise product of their Gram matrices

so neither X^ nor the Khatri-Rao product is ever built. Everything is in float64, on the CPU.

References:
    Kolda and Bader, Tensor decompositions and applications, 2009, https://doi.org/10.1137/07070111X, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.formats import Format

_AXES = "ois"


def targets(x: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
    """F of a mode, `[size of the mode, R]`."""
    axes = _AXES[: x.dim()]
    others = [axis for i, axis in enumerate(axes) if i != mode]
    equation = f"{axes},{','.join(f'{axis}r' for axis in others)}->{axes[mode]}r"
    return torch.einsum(equation, x, *(factor for i, factor in enumerate(factors) if i != mode))


def gram(factors: Sequence[Tensor], mode: int | None = None) -> Tensor:
    """G of a mode, `[R, R]`: all factors but that one; of all factors for None."""
    found = factors[0].new_ones(factors[0].shape[1], factors[0].shape[1])
    for i, factor in enumerate(factors):
        if i != mode:
            found = found * (factor.mT @ factor)
    return found


def relative_error(x: Tensor, factors: Sequence[Tensor]) -> float:
    """|X - X^| / |X|, in Frobenius norms; 0 for a tensor of zeros that the factors meet."""
    whole = float(x.square().sum())
    square = whole - 2 * float((factors[0] * targets(x, factors, 0)).sum()) + float(gram(factors).sum())
    return (max(square, 0.0) / whole) ** 0.5 if whole > 0 else float(square > 0)


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same components with columns of equal norm in all factors."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    mean = norms.prod(0) ** (1 / len(factors))
    return [factor * (mean / norm.clamp(min=1e-150)) for factor, norm in zip(factors, norms, strict=True)]


def ridged(g: Tensor, ridge: float) -> Tensor:
    """G with `ridge` times its mean diagonal added to the diagonal; never singular."""
    return g + torch.eye(len(g), dtype=g.dtype) * max(ridge * float(g.trace()) / len(g), 1e-150)


def descend(codes: Tensor, g: Tensor, f: Tensor, format: Format, *, sweeps: int = 1) -> Tensor:
    """Grid values z `[n, R]` that lower tr(z G z^T) - 2 tr(z F^T), one column after the other, all rows at once.

    The best real number for one value, the others fixed, is c = z + (F - z G) / diag(G); the error is a parabola around
    it, so the grid number next to c is the best one there is, and no step raises the error. It stops early where a
    sweep changes nothing.
    """
    codes = codes.clone()
    residual = f - codes @ g
    for _ in range(sweeps):
        changed = False
        for r, curvature in enumerate(torch.diagonal(g).tolist()):
            if curvature <= 0:
                continue
            moved = nearest(codes[:, r] + residual[:, r] / curvature, format)
            step = moved - codes[:, r]
            if bool(step.any()):
                residual -= step[:, None] * g[r]
                codes[:, r] = moved
                changed = True
        if not changed:
            break
    return codes


def nearest(x: Tensor, format: Format) -> Tensor:
    """Grid values next to `x`, in float64."""
    return format.round(x.float()).double()
