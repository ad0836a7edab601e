"""How a quantity becomes a point on a path and is read again: `encode` for the loss, `decode` for the answer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lowbit.errors import DataError, RecipeError
from lowbit.methods.curves.paths import Fold, Moore, Path, Polyline, Snake, parse_path, polyline, spacing

TransformName = Literal["linear", "log", "inverse"]
_SLACK = 1e-6  # of the range: float32 targets at its ends are inside


@dataclass(frozen=True)
class Codec:
    """Quantities from `low` to `high`, along a path.

    A target holds T quantities in its dimension 1, `[N, T, ...]`: T is 1 for a scalar, 4 for a box, and dense targets
    go on with height and width. Points hold all first coordinates, then all second ones: `[N, channels * T, ...]`.

    Args:
        low, high: the range of the quantity, one for all or one for each of the T. For a closed path (`Moore`) it is
            one period, and targets go round.
        path: see `lowbit.methods.curves.paths`; or its name.
        transform: what is spread evenly along the path: the quantity, its logarithm, or its inverse.
        clip: whether targets outside the range count as its ends, instead of being an error.
        bits: of a channel's code in the deployed network, 2 to 8; 16 for a fold too.

    Raises:
        RecipeError: no range, or a path whose branches are closer than the codes of a channel.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    path: Path = Snake()
    transform: TransformName = "linear"
    clip: bool = False
    bits: int = 8

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not isinstance(end := getattr(self, name), (int, float)):
                object.__setattr__(self, name, tuple(end))
        if isinstance(self.path, str):
            object.__setattr__(self, "path", parse_path(self.path))
        if self.transform not in get_args(TransformName):
            raise RecipeError(
                f"transform {self.transform!r} is unknown; expected one of {', '.join(get_args(TransformName))}"
            )
        lows, highs = _several(self.low), _several(self.high)
        if len(lows) != len(highs) and 1 not in (len(lows), len(highs)):
            raise RecipeError(f"low has {len(lows)} numbers and high {len(highs)}; give one for each quantity, or one")
        for low, high in zip(*_alike(lows, highs), strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise RecipeError(
                    f"the range is {low:g} to {high:g}, expected two finite numbers, the lower one first; a target "
                    "that is always the same number needs no network"
                )
            if self.transform != "linear" and low <= 0:
                raise RecipeError(f"transform {self.transform!r} needs a range above 0, got {low:g} to {high:g}")
        if self.transform != "linear" and isinstance(self.path, Moore):
            raise RecipeError(f"{self.path} is for periodic quantities, which have no {self.transform}; use 'linear'")
        if not (2 <= self.bits <= 8 or (self.bits == 16 and isinstance(self.path, Fold))):
            raise RecipeError(f"bits is {self.bits}, expected 2 to 8, or 16 for a fold; the path is {self.path}")
        if spacing(self.path) <= 1 / self.top:
            raise RecipeError(
                f"{self.path}: its branches are {spacing(self.path):.2g} apart, and {self.bits}-bit codes "
                f"{1 / self.top:.2g}; give fewer rows or a lower order"
            )

    @property
    def line(self) -> Polyline:
        """The path, as edges."""
        return polyline(self.path)

    @property
    def channels(self) -> int:
        """Output channels of each quantity."""
        return self.line.channels

    @property
    def top(self) -> int:
        """The highest code of a channel; codes begin at 0."""
        return (1 << self.bits) - 1

    @property
    def periodic(self) -> bool:
        """Whether the range is one period of a quantity that goes round."""
        return self.line.closed

    def share(self, target: Tensor) -> Tensor:
        """Where in the range targets `[N, T, ...]` lie, as a share q of the path.

        Raises:
            DataError: NaN, numbers outside the range (unless `clip`), or another number of quantities.
        """
        target = target if target.is_floating_point() else target.float()
        if not bool(torch.isfinite(target).all()):
            bad = int((~torch.isfinite(target)).sum())
            raise DataError(f"{bad} of {target.numel()} targets are NaN or infinite; remove them, or mask them before")
        low, high = self._ends(target)
        if self.periodic:
            turns = (target - low) / (high - low)
            return turns - turns.floor()
        if not self.clip:
            slack = _SLACK * (self._high(target) - self._low(target))
            outside = (target < self._low(target) - slack) | (target > self._high(target) + slack)
            if count := int(outside.sum()):
                raise DataError(
                    f"{count} of {target.numel()} targets are outside {self._named()} ({target.min():g} to "
                    f"{target.max():g}); give a wider range, or clip targets to it"
                )
        return ((self._forward(self.nearest(target)) - low) / (high - low)).clamp(0, 1)

    def quantity(self, share: Tensor) -> Tensor:
        """The quantities `[N, T, ...]` at shares of the path; the inverse of `share`."""
        low, high = self._ends(share)
        value = low + share * (high - low)
        match self.transform:
            case "log":
                return value.exp()
            case "inverse":
                return 1 / value
        return value

    def encode(self, target: Tensor) -> Tensor:
        """Points `[N, channels * T, ...]` of targets `[N, T, ...]`.

        Raises:
            DataError: see `share`.
        """
        points = self.line.point(self.share(target))  # [N, T, ..., channels]
        return points.movedim(-1, 1).flatten(1, 2)

    def decode(self, points: Tensor) -> Tensor:
        """Targets `[N, T, ...]` of points `[N, channels * T, ...]`: the nearest on the path. It has gradients."""
        return self.quantity(self.project(points)[0])

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The share of the path at the nearest point, and its distance, both `[N, T, ...]`.

        The distance, in units of a channel's range, grows where the network is not sure.
        """
        if points.dim() < 2 or points.shape[1] % self.channels:
            raise DataError(
                f"got points {list(points.shape)}, expected [N, {self.channels} * T, ...] for {self.path}; is this the "
                "output of wrap_head with the same codec?"
            )
        apart = points.reshape(len(points), self.channels, points.shape[1] // self.channels, *points.shape[2:]).movedim(
            1, -1
        )
        if isinstance(self.path, Fold):  # the copies are one number, and their sum is exact
            share = apart.clamp(0, 1).mean(-1)
            return share, (apart - self.line.point(share)).norm(dim=-1)
        return self.line.project(apart)

    def difference(self, found: Tensor, target: Tensor) -> Tensor:
        """`found` less `target`, the shorter way round for periodic quantities."""
        apart = found - target
        if not self.periodic:
            return apart
        low, high = self._ends(target)
        turns = apart / (high - low)
        return (turns - turns.round()) * (high - low)

    def shorter(self, apart: Tensor) -> Tensor:
        """Differences of shares, the shorter way round for periodic quantities."""
        return apart - apart.round().detach() if self.periodic else apart

    def nearest(self, target: Tensor) -> Tensor:
        """Targets `[N, T, ...]`, or of those outside the range the nearest in it; periodic ones as they are."""
        if self.periodic:
            return target
        return torch.minimum(torch.maximum(target, self._low(target)), self._high(target))

    def width(self, like: Tensor) -> Tensor:
        """The width of the range, one for each quantity of a tensor `[N, T, ...]`."""
        return self._high(like) - self._low(like)

    def _named(self) -> str:
        return f"{self.low} to {self.high}"

    def _low(self, like: Tensor) -> Tensor:
        return _column(self.low, like)

    def _high(self, like: Tensor) -> Tensor:
        return _column(self.high, like)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._forward(self._low(like)), self._forward(self._high(like))

    def _forward(self, value: Tensor) -> Tensor:
        match self.transform:
            case "log":
                return value.log()
            case "inverse":
                return 1 / value
        return value


def range_of(targets: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The least and the greatest of each quantity of targets `[N, T, ...]`, batch by batch.

    Raises:
        DataError: no targets, numbers that are not finite, or a quantity that never changes.
    """
    lows: Tensor | None = None
    highs: Tensor | None = None
    for target in targets:
        if target.dim() < 2 or not target.numel() or (lows is not None and len(lows) != target.shape[1]):
            raise DataError(f"got targets {list(target.shape)}, expected [N, T, ...], with the same T in all batches")
        flat = target.detach().movedim(1, 0).flatten(1).double()
        low, high = flat.amin(1), flat.amax(1)
        lows = low if lows is None else torch.minimum(lows, low)
        highs = high if highs is None else torch.maximum(highs, high)
    if lows is None or highs is None:
        raise DataError("got no targets to find a range in; give at least one batch")
    if not bool(torch.isfinite(lows).all() and torch.isfinite(highs).all()):
        raise DataError("targets are NaN or infinite; remove them, or give the range yourself")
    if constant := [i for i, (low, high) in enumerate(zip(lows, highs, strict=True)) if low == high]:
        raise DataError(
            f"quantity {constant[0]} of the targets is always {float(lows[constant[0]]):g}; a constant has no range to "
            "write along a path"
        )
    return tuple(lows.tolist()), tuple(highs.tolist())


def _several(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _alike(lows: tuple[float, ...], highs: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    count = max(len(lows), len(highs))
    return (lows if len(lows) == count else lows * count), (highs if len(highs) == count else highs * count)


def _column(value: float | tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers of quantities, in the shape that goes with `[N, T, ...]`."""
    numbers = torch.tensor(_several(value), dtype=like.dtype, device=like.device)
    if like.dim() < 2 or len(numbers) not in (1, like.shape[1]):
        raise DataError(
            f"got {list(like.shape)}, expected [N, {len(numbers) if len(numbers) > 1 else 'T'}, ...]: a sample's "
            "quantities are dimension 1 (a scalar is [N, 1])"
        )
    return numbers.reshape(-1, *[1] * (like.dim() - 2))
