"""Where a scale comes from: the largest magnitude, a percentile, the least squared error, or the least divergence.

Weights are here as a whole, so their scales come from functions of the tensor. Activations stream by: a `Histogram`
sees each batch once, in memory that does not grow, and the same functions are evaluated on it at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lowbit.errors import CalibrationError
from lowbit.formats import Block, Float, Format, Int
from lowbit.granularity import Granularity

WeightRule = Literal["absmax", "mse", "percentile"]
ScaleRule = Literal["absmax", "mse", "percentile", "entropy"]  # of activations, whose distribution is known
PERCENTILE = 99.99
_CLIPS = torch.linspace(0.05, 1.0, 96)
_STRETCHES = torch.linspace(1.01, 2.0, 100)


def weight_scale(
    weight: Tensor,
    format: Format,
    granularity: Granularity,
    rule: WeightRule = "mse",
    importance: Tensor | None = None,
) -> Tensor:
    """Scales of a weight tensor, shape `granularity.scale_shape(weight.shape)`, float32.

    ``mse`` tries 96 clipping points a block, for float formats also 100 larger ranges, and refines the best by least
    squares (scale <- <x, q> / <q, q> with the codes fixed, which never raises the error). `importance`, of the weight's
    shape, says how much each squared error counts. Block formats define their own scales, so `rule` does not apply.
    """
    rows = granularity.rows(weight.detach().float())
    amax = rows.abs().amax(1)
    if rule == "percentile" and not isinstance(format, Block):
        kept = rows.abs().kthvalue(math.ceil(rows.shape[1] * PERCENTILE / 100), dim=1).values
        amax = torch.where(kept > 0, kept, amax)
    scale = format.scale(amax)
    if rule == "mse" and not isinstance(format, Block):
        counts = torch.ones_like(weight, dtype=torch.float32) if importance is None else importance.float()
        scale = _least_error(rows, amax, format, granularity.rows(counts))  # 0 behind the end of a ragged row
    return scale.reshape(granularity.scale_shape(weight.shape))


def _fractions(format: Format) -> Tensor:
    """Ranges to try, in units of the largest magnitude: a float grid repeats in each octave, so larger ones may fit."""
    return torch.cat([_STRETCHES, _CLIPS]) if isinstance(format, Float) else _CLIPS


def _least_error(rows: Tensor, amax: Tensor, format: Format, counts: Tensor) -> Tensor:
    def error(scale: Tensor) -> tuple[Tensor, Tensor]:
        q = format.round(rows / scale[:, None])
        return ((q * scale[:, None] - rows) ** 2 * counts).sum(1), q

    best = format.scale(amax)
    least, codes = error(best)
    for fraction in _fractions(format):
        scale = format.scale(amax * fraction)
        now, q = error(scale)
        better = now < least
        best, least = torch.where(better, scale, best), torch.where(better, now, least)
        codes = torch.where(better[:, None], q, codes)
    for _ in range(4):
        refit = (rows * codes * counts).sum(1) / (codes * codes * counts).sum(1).clamp(min=1e-30)
        refit = torch.where(refit > 0, refit, best)
        now, q = error(refit)
        better = now < least
        best, least = torch.where(better, refit, best), torch.where(better, now, least)
        codes = torch.where(better[:, None], q, codes)
    return best


_BINS = 8192  # over [-limit, limit]: an 8-bit step of the used half holds at least 8 bins


@dataclass
class Histogram:
    """Streaming statistics of a tensor: extremes and counts over `[-limit, limit]`, in constant memory.

    `limit` is a power of two and doubles by adding neighboring bins, which is exact: the result does not depend on the
    order or size of the batches.
    """

    limit: float = 0.0
    low: float = 0.0
    high: float = 0.0
    seen: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    def update(self, x: Tensor) -> None:
        """Add all elements of `x`.

        Raises:
            CalibrationError: `x` holds NaN or infinity.
        """
        x = x.detach().float().reshape(-1)
        if not x.numel():
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise CalibrationError("saw NaN or infinite values; check the calibration data and the float model")
        self.low, self.high = (min(low, self.low), max(high, self.high)) if self.seen else (low, high)
        amax = max(-low, high)
        if amax > 0:
            self._grow(2.0 ** max(math.frexp(amax)[1], -100))  # so that bins have a width in float32
        bins_per_unit = _BINS / (2 * (self.limit or 1.0))
        for chunk in torch.split(x, 1 << 22):  # a power of two and floor are exact; torch.histc rounds
            bins = (chunk * bins_per_unit).floor_().int().add_(_BINS // 2)
            self.counts += torch.bincount(bins, minlength=_BINS).cpu()
        self.seen += x.numel()

    def _grow(self, limit: float) -> None:
        if self.limit == 0:
            self.limit = limit  # until now only zeros: they stay in the middle bin
        while self.limit < limit:
            inner = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(inner, (_BINS // 4, _BINS // 4))
            self.limit *= 2

    def outlier(self) -> float:
        """How many times the largest magnitude is that of the percentile rule; 1 at least."""
        tail = max(float(self.counts.sum()) * (1 - PERCENTILE / 100), 1.0)  # of few values, all but the largest
        percentile = max(abs(bound) for bound in self._without(tail))
        return max(-self.low, self.high, percentile) / percentile if percentile > 0 else 1.0

    def bounds(self, rule: ScaleRule, format: Format, symmetric: bool) -> tuple[float, float]:
        """The range (low, high), 0 inside, that `rule` gives a tensor in `format`."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if low == high:
            return low, high
        if rule == "absmax":
            return low, high
        if rule == "percentile":
            return self._without(float(self.counts.sum()) * (1 - PERCENTILE / 100))
        cost = self._errors if rule == "mse" else self._divergences
        if symmetric:
            amax = max(-low, high)
            clips = amax * _fractions(format).double()
            best = float(clips[cost(-clips, clips, format, True).argmin()])
            return -best, best
        for _ in range(2):  # coordinate descent from the full range: one side, then the other
            highs = max(self.high, 0.0) * _CLIPS.double()
            high = float(highs[cost(torch.full_like(highs, low), highs, format, False).argmin()])
            lows = min(self.low, 0.0) * _CLIPS.double()
            low = float(lows[cost(lows, torch.full_like(lows, high), format, False).argmin()])
        return low, high

    def _without(self, tail: float) -> tuple[float, float]:
        """The range, 0 inside, beyond which `tail` values at most lie on either side."""
        kept = ((self.counts.cumsum(0) > tail) & (self.counts.flip(0).cumsum(0).flip(0) > tail)).nonzero()
        if not len(kept):
            return min(self.low, 0.0), max(self.high, 0.0)
        edge = 2 * self.limit / _BINS
        bounds = float(kept[0]) * edge - self.limit, (float(kept[-1]) + 1) * edge - self.limit
        return max(min(self.low, 0.0), min(bounds[0], 0.0)), min(max(self.high, 0.0), max(bounds[1], 0.0))

    def _errors(self, lows: Tensor, highs: Tensor, format: Format, symmetric: bool) -> Tensor:
        """Summed squared rounding error of the histogram for each candidate range."""
        counts, centers = self._used()
        return ((self._rounded(centers, lows, highs, format, symmetric) - centers).double() ** 2 * counts).sum(1)

    def _divergences(self, lows: Tensor, highs: Tensor, format: Format, symmetric: bool) -> Tensor:
        """Kullback-Leibler divergence of the rounded from the clipped distribution for each candidate range.

        What lies outside a range counts for its outermost bins in the distribution, but not in the rounded one, which
        spreads the count of each code over the bins that it stands for.

        References:
            Migacz, 8-bit inference with TensorRT, GTC 2017,
            https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf
        """
        counts, centers = self._used()
        rounded = self._rounded(centers, lows, highs, format, symmetric)
        inside = (centers >= lows[:, None]) & (centers <= highs[:, None])
        found = []
        for codes, kept in zip(rounded, inside, strict=True):
            inner = counts[kept]
            if not len(inner):
                found.append(torch.tensor(torch.inf, dtype=torch.float64))
                continue
            clipped = inner.clone()
            first, last = kept.nonzero()[[0, -1], 0].tolist()
            clipped[0] += counts[:first].sum()
            clipped[-1] += counts[last + 1 :].sum()
            _, group, bins = torch.unique_consecutive(codes[kept], return_inverse=True, return_counts=True)
            spread = (torch.zeros(len(bins), dtype=torch.float64).index_add_(0, group, inner) / bins)[group]
            p, q = clipped / clipped.sum(), spread / spread.sum()
            found.append((p * (p / q).log()).sum())
        return torch.stack(found)

    def _used(self) -> tuple[Tensor, Tensor]:
        """Counts and centers of the bins that hold something."""
        used = self.counts.nonzero()[:, 0]
        return self.counts[used], ((used.double() + 0.5) * (2 * self.limit / _BINS) - self.limit).float()

    def _rounded(self, centers: Tensor, lows: Tensor, highs: Tensor, format: Format, symmetric: bool) -> Tensor:
        """The centers on the grid of each candidate range, `[ranges, bins]`."""
        scale, zero_point = affine(lows, highs, format, symmetric)
        z = centers / scale[:, None]
        if zero_point is None:
            return format.round(z) * scale[:, None]
        q = (z.round() + zero_point[:, None]).clamp(format.min, format.max) - zero_point[:, None]
        return q * scale[:, None]


def affine(low: Tensor, high: Tensor, format: Format, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (None when symmetric, or no integer format) of ranges that contain 0; float32.

    An empty range (constant 0) gets scale 1. The zero point is an integer inside the grid, so 0 is exact.
    """
    if symmetric or not isinstance(format, Int):
        return format.scale(torch.maximum(-low, high).float()), None
    span = high.double() - low.double()  # may leave float32
    scale = torch.where(span > 0, span / (format.max - format.min), 1.0)
    limits = torch.finfo(torch.float32)  # a denormal range would give a scale of 0
    scale = scale.clamp(limits.tiny, limits.max).float()
    zero_point = (format.min - low.float() / scale).round().clamp(format.min, format.max)
    return scale, zero_point
