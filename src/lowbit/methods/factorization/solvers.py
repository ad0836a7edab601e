"""Factors on a low-bit grid: by rounding, by alternating projections (AO-ADMM), and by coordinate descent.

All three start from float factors and end with grid values and scales. `rounded` is the baseline. `admm` is the
published algorithm: the copy H~ that fits the tensor and the copy H on the grid are pulled together by a dual U,

    rho = tr(G) / R,   H~ = (F + rho (H + U)) (G + rho I)^-1,   H = project(H~ - U),   U = U + H - H~

`descent` is ours: it never leaves the grid for long. Each round solves one factor after the other for the present ones
of the others and rounds it by second order, so that a column makes up for what the columns before it lost; then integer
coordinate descent takes over, which no step makes worse, and after each pass the R component scales are fitted anew.

References:
    Cherniuk et al., Quantization aware factorization for deep neural network compression, 2023,
        https://arxiv.org/abs/2308.04595, section 3.
    Huang, Sidiropoulos and Liavas, A flexible and efficient algorithmic framework for constrained matrix and tensor
        factorization, 2016, https://arxiv.org/abs/1506.04209, algorithm 1.
    Frantar et al., GPTQ, 2023, https://arxiv.org/abs/2210.17323, section 3: rounding by second order.

Differs from the paper: scales may differ from component to component, which costs nothing in the chain of layers that
comes out; `admm` returns the best iterate, where the authors' code keeps the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.formats import Format
from lowbit.granularity import PerChannel, PerTensor
from lowbit.methods.factorization.tensors import descend, gram, nearest, relative_error, ridged, targets
from lowbit.post_training.rounding import second_order
from lowbit.scales import weight_scale

_RIDGE = 1e-3  # of the systems that are solved and rounded


@dataclass(frozen=True)
class GridFactors:
    """Factors `values * scales`: values on the grid, `[size of the mode, R]`; scales all `[R]`, or all `[]`."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    @property
    def factors(self) -> list[Tensor]:
        """The numbers that they stand for."""
        return [values * scale for values, scale in zip(self.values, self.scales, strict=True)]

    @property
    def component_scales(self) -> Tensor:
        """The products of the scales, `[R]`: all that counts."""
        product = torch.ones(self.values[0].shape[1], dtype=torch.float64)
        for scale in self.scales:
            product = product * scale
        return product


def rounded(factors: Sequence[Tensor], formats: Sequence[Format], *, per_component: bool = True) -> GridFactors:
    """Each factor rounded to nearest by itself, on scales of least squared error."""
    scales = tuple(_scale(factor, format, per_component) for factor, format in zip(factors, formats, strict=True))
    values = (nearest(f / s, format) for f, s, format in zip(factors, scales, formats, strict=True))
    return GridFactors(tuple(values), scales)


def _scale(factor: Tensor, format: Format, per_component: bool) -> Tensor:
    return weight_scale(factor, format, PerChannel(1) if per_component else PerTensor()).double()


def descent(
    x: Tensor,
    factors: Sequence[Tensor],
    formats: Sequence[Format],
    *,
    rounds: int = 4,
    passes: int = 60,
    tolerance: float = 1e-5,
) -> GridFactors:
    """The factors of a tensor on a grid by alternating second-order rounding, then coordinate descent.

    Args:
        x: `[o, i, s]` or `[o, i]`, float64.
        factors: where to start.
        formats: the grid of each factor.
        rounds: how often each factor is solved and rounded; 0 starts the descent from plain rounding.
        passes: the most passes of the descent over all factors.
        tolerance: it stops when the relative error falls by less than this in a pass.
    """
    start = rounded(factors, formats)
    best, least = start, relative_error(x, start.factors)
    now = [factor.clone() for factor in factors]
    for _ in range(rounds):
        values, scales = [*start.values], [*start.scales]
        for mode, format in enumerate(formats):
            values[mode], scales[mode] = _solved_on_grid(x, now, mode, format)
            now[mode] = values[mode] * scales[mode]
        start = GridFactors(tuple(values), tuple(scales))
        if (error := relative_error(x, now)) < least:
            best, least = start, error
    return polished(x, best, formats, passes=passes, tolerance=tolerance)


def _solved_on_grid(x: Tensor, factors: Sequence[Tensor], mode: int, format: Format) -> tuple[Tensor, Tensor]:
    """The least squares solution of a factor, rounded by second order: grid values, and a scale a component."""
    g = ridged(gram(factors, mode), _RIDGE)
    solution = torch.linalg.solve(g, targets(x, factors, mode), left=False)
    scale = _scale(solution, format, per_component=True)
    spread = scale.expand(solution.shape)
    on_grid = second_order(solution[None], spread[None].float(), g[None], format)[0].double()
    return nearest(on_grid / scale, format), scale


def polished(
    x: Tensor, start: GridFactors, formats: Sequence[Format], *, passes: int = 60, tolerance: float = 1e-5
) -> GridFactors:
    """Coordinate descent from a start on the grid: the error never rises, from pass to pass."""
    values, scales = [*start.values], start.component_scales
    error = relative_error(x, start.factors)
    for _ in range(passes):
        before = error
        for mode, format in enumerate(formats):
            g = gram(values, mode) * scales[:, None] * scales
            values[mode] = descend(values[mode], g, targets(x, values, mode) * scales, format)
        values, scales = _fitted_scales(x, values, scales, formats)
        error = relative_error(x, [values[0] * scales, *values[1:]])
        if before - error < tolerance:
            break
    return GridFactors(tuple(values), (scales, *[torch.ones_like(scales)] * (len(values) - 1)))


def _fitted_scales(
    x: Tensor, values: list[Tensor], scales: Tensor, formats: Sequence[Format]
) -> tuple[list[Tensor], Tensor]:
    """The component scales of least error for these values, all positive: negative ones turn a column around.

    Where no column of a component can be turned, or a scale comes out as 0, the old one stays; then the error of the
    others' change is checked, and all the old ones stay if it rose.
    """
    products = gram(values)
    wanted = (values[0] * targets(x, values, 0)).sum(0)
    fitted = torch.linalg.lstsq(products, wanted[:, None], driver="gelsd").solution[:, 0]
    turned, kept = list(values), False
    for r in torch.nonzero(fitted < 0)[:, 0].tolist():
        mode = next((k for k, format in enumerate(formats) if _can_turn(values[k][:, r], format)), None)
        if mode is None:
            fitted[r], kept = scales[r], True
            continue
        if turned[mode] is values[mode]:
            turned[mode] = values[mode].clone()
        turned[mode][:, r] *= -1
        fitted[r] *= -1
    empty = fitted <= 1e-12 * float(fitted.abs().max())
    fitted = torch.where(empty, scales, fitted)
    if (kept or bool(empty.any())) and _error(x, turned, fitted) > _error(x, values, scales):
        return values, scales
    return turned, fitted


def _error(x: Tensor, values: Sequence[Tensor], scales: Tensor) -> float:
    return relative_error(x, [values[0] * scales, *values[1:]])


def _can_turn(column: Tensor, format: Format) -> bool:
    """Whether the opposites of all values are on the grid."""
    return bool(torch.equal(nearest(-column, format), -column))


def admm(
    x: Tensor,
    factors: Sequence[Tensor],
    formats: Sequence[Format],
    *,
    per_component: bool = True,
    outer: int = 40,
    inner: int = 10,
    points: int = 24,
) -> GridFactors:
    """The factors of a tensor on a grid by AO-ADMM; the best of all outer iterations.

    As published: ``per_component=False, outer=1000, inner=1000, points=200``.

    Args:
        x: `[o, i, s]` or `[o, i]`, float64.
        factors: where to start.
        formats: the grid of each factor.
        per_component: a scale for each component, or one for each factor.
        outer: the most iterations over all factors. It stops earlier when the relative error changes by less than 1e-5,
            or has risen by more than 1e-3 over the last 5 iterations (10 for a matrix).
        inner: the most projections of a factor in each. It stops earlier when both residuals are below 1e-8.
        points: how many ranges a projection tries.
    """
    start = rounded(factors, formats, per_component=per_component)
    now, values, scales = start.factors, [*start.values], [*start.scales]
    duals = [torch.zeros_like(factor) for factor in now]
    best, errors = start, [relative_error(x, now)]
    memory = 5 if x.dim() == 3 else 10
    for _ in range(outer):
        for mode, format in enumerate(formats):
            f, g = targets(x, now, mode), gram(now, mode)
            rho = max(float(g.trace()) / len(g), 1e-150)
            root = torch.linalg.cholesky(g + rho * torch.eye(len(g), dtype=g.dtype))
            for _ in range(inner):
                free = torch.cholesky_solve((f + rho * (now[mode] + duals[mode])).mT, root).mT
                wanted = free - duals[mode]
                scales[mode] = searched_scale(wanted, format, points=points, per_component=per_component)
                values[mode] = nearest(wanted / scales[mode], format)
                moved = values[mode] * scales[mode]
                duals[mode] = duals[mode] + moved - free
                apart, step = _share(moved - free, moved), _share(moved - now[mode], duals[mode])
                now[mode] = moved
                if apart < 1e-8 and step < 1e-8:
                    break
        error = relative_error(x, now)
        if error < min(errors):
            best = GridFactors(tuple(values), tuple(scales))
        errors.append(error)
        settled = abs(errors[-2] - error) < 1e-5
        if settled or (len(errors) > memory and error - errors[-1 - memory] > 1e-3):
            break
    return best


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.square().sum()) / max(float(whole.square().sum()), 1e-150)


def searched_scale(x: Tensor, format: Format, *, points: int, per_component: bool) -> Tensor:
    """The scale of least squared error among `points` ranges, `[R]` or `[]`.

    The ranges are 0.2 to 1.2 times the largest magnitude, evenly, to either side: for integers of b bits the scale is
    2 t / (2^b - 1). All of them are evaluated exactly from sums over the sorted numbers between the grid's midpoints.
    """
    rows = x.mT.contiguous() if per_component else x.reshape(1, -1)
    ordered = rows.sort(dim=1).values
    reach = rows.abs().amax(1).clamp(min=1e-150)[:, None] * torch.linspace(0.2, 1.2, points, dtype=x.dtype)
    scales = 2 * reach / (format.max - format.min)  # [rows, points]
    grid = format.values().double()
    edges = scales[:, :, None] * ((grid[1:] + grid[:-1]) / 2)
    ends = torch.searchsorted(ordered, edges.flatten(1)).reshape(edges.shape)
    first, last = torch.zeros_like(ends[:, :, :1]), torch.full_like(ends[:, :, :1], rows.shape[1])
    ends = torch.cat([first, ends, last], dim=2)
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    totals = sums.gather(1, ends.flatten(1)).reshape(ends.shape).diff(dim=2)
    products, squares = (totals * grid).sum(2), (ends.diff(dim=2) * grid.square()).sum(2)
    errors = scales.square() * squares - 2 * scales * products  # less the sum of x^2, the same for all
    best = scales.gather(1, errors.argmin(1, keepdim=True))[:, 0]
    return best if per_component else best[0]
