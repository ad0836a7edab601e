"""How far outputs are off, in the units of the target: the middle of the errors, their tail, and their look.

The median hides outliers and the root mean square sees little else, so both are always told. An output written along a
path can be wrong in a way of its own: noise carries a point to another branch (a flip), which `flips` counts. And a
dense output of few levels looks terraced, which `structure` tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import DataError
from lowbit.methods.curves.codec import Codec

_BLOCK = 4
_NORMAL = 1.4826  # standard deviations of a normal distribution in a median absolute deviation


@dataclass(frozen=True)
class OutputErrors:
    """Errors of `count` numbers in units of the target; `structure` is None where outputs are no images.

    `robust_sd` is 1.4826 times the median absolute error, and `p999` what one error in a thousand exceeds. `flips` is
    the share of numbers that noise carried to another branch of the path, and `levels` how many different ones came.
    """

    count: int
    rmse: float
    mae: float
    robust_sd: float
    p999: float
    levels: int
    flips: float
    structure: float | None

    def __str__(self) -> str:
        return (
            f"RMSE {self.rmse:.4g}, MAE {self.mae:.4g}, robust SD {self.robust_sd:.4g}, p99.9 {self.p999:.4g}, "
            f"{self.flips:.2%} flips, {self.levels} levels"
        )


def output_errors(found: Tensor, target: Tensor, codec: Codec) -> OutputErrors:
    """Errors of outputs `[N, T, ...]` against targets, or against those of another network, of the same shape.

    Raises:
        DataError: shapes that differ, nothing to compare, or numbers that are not finite.
    """
    if found.shape != target.shape or not found.numel():
        raise DataError(f"got outputs {list(found.shape)} for targets {list(target.shape)}, expected the same shape")
    if not bool(torch.isfinite(found).all() and torch.isfinite(target).all()):
        raise DataError("outputs or targets are NaN or infinite; mask them before they are compared")
    apart = codec.difference(found.double(), target.double())
    size = apart.abs().flatten()
    return OutputErrors(
        count=size.numel(),
        rmse=float(size.square().mean().sqrt()),
        mae=float(size.mean()),
        robust_sd=robust_sd(size),
        p999=_quantile(size, 0.999),
        levels=len(torch.unique(found)),
        flips=flip_rate(found, target, codec),
        structure=structure(found, target) if found.dim() == 4 and min(found.shape[2:]) >= _BLOCK else None,
    )


def robust_sd(errors: Tensor) -> float:
    """The standard deviation of normal errors with the same median size: a few large ones do not count."""
    return _NORMAL * float(errors.abs().median())


def flip_rate(found: Tensor, target: Tensor, codec: Codec) -> float:
    """The share of numbers that lie farther along the path than its branches lie apart; 0 for a path without any."""
    line = codec.line
    if not math.isfinite(line.spacing):
        return 0.0
    apart = codec.shorter(codec.share(codec.nearest(found)) - codec.share(codec.nearest(target)))
    return float((apart.abs() * line.length > line.spacing).double().mean())


def structure(found: Tensor, target: Tensor) -> float:
    """How alike the small structures of images `[N, T, H, W]` are: 1 is the same, terraces bring it down.

    The mean cosine similarity of the coefficients of the discrete cosine transform of 4x4 blocks, without the mean of
    a block. Blocks that are flat in both count 1, in one of them 0.

    References:
        https://arxiv.org/abs/2405.14024, the SC metric. The paper does not say whether the mean takes part; it would
        hide all else.
    """
    n = torch.arange(_BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi / _BLOCK * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / _BLOCK)
    basis[0] = 1 / math.sqrt(_BLOCK)

    def coefficients(images: Tensor) -> Tensor:
        height, width = (size // _BLOCK * _BLOCK for size in images.shape[2:])
        cut = images[..., :height, :width].double().cpu()
        blocks = cut.unfold(2, _BLOCK, _BLOCK).unfold(3, _BLOCK, _BLOCK)
        return (basis @ blocks @ basis.T).flatten(-2)[..., 1:].reshape(-1, _BLOCK**2 - 1)

    ours, theirs = coefficients(found), coefficients(target)
    size_ours, size_theirs = ours.norm(dim=1), theirs.norm(dim=1)
    flat_ours, flat_theirs = (size <= 1e-9 * (1 + size.max()) for size in (size_ours, size_theirs))
    alike = (ours * theirs).sum(1) / (size_ours * size_theirs).clamp(min=1e-300)
    alike = torch.where(flat_ours | flat_theirs, (flat_ours & flat_theirs).double(), alike)
    return float(alike.mean())


def confidence_curve(
    error: Tensor, distance: Tensor, kept: tuple[float, ...] = (1.0, 0.99, 0.97, 0.95, 0.9, 0.8)
) -> tuple[tuple[float, float], ...]:
    """The RMSE of the share of numbers that lie nearest to the path, for several shares: ``(share, RMSE)``.

    A curve that falls steeply says that the distance knows which outputs to distrust.
    """
    order = distance.flatten().argsort()
    squares = error.flatten().double().square()[order].cumsum(0)
    counts = [max(1, round(share * len(squares))) for share in kept]
    return tuple((share, math.sqrt(float(squares[n - 1]) / n)) for share, n in zip(kept, counts, strict=True))


def _quantile(size: Tensor, share: float) -> float:
    return float(size.kthvalue(max(1, math.ceil(share * size.numel()))).values)
