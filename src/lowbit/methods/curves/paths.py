"""Which paths a number can be written along: polylines in the unit square or cube, one coordinate an output channel.

A number q in [0, 1] is the share of the path that lies behind a point, and reading it back is finding the nearest point
of the path. A path of length L spreads q over L times the range of one channel, so rounding in the channels, and noise
that is independent between them, hurts q an L-th as much, as long as no noise carries a point to another branch:
branches lie `spacing` apart, and noise of more than a seventh of that begins to cost more than it buys.

| path | channels | L, in units of w = 1 - 2 margin | spacing, of w |
|------|----------|------------------|---------|
| ``hilbert3`` (order p) | 2 | 2^p + 1 | 1 / (2^p - 1) |
| ``snake8`` (R rows) | 2 | R + 1 | 1 / (R - 1) |
| ``moore3`` (order p; closed, for periodic numbers) | 2 | 4^p / (2^p - 1) | 1 / (2^p - 1) |
| ``snake8x4`` (R rows, M layers) | 3 | M (R + 1) + 1 | the smaller of 1 / (R - 1) and 1 / (M - 1) |
| ``fold4`` (n copies) | n | n, and w = 1 | none: no branch comes near another |

A snake is as long as a Hilbert curve with as many rows, and better: neighbors on it lie one row apart at most, so a
point that noise carries over is wrong by 2/R and not by up to 0.8; and R can be any number. `fold1` is a plain
output in the fixed range 0 to 1, and a fold of n copies is what a linear layer can do without any training.

A margin keeps the path away from the ends of the range, where noise would be clipped; three times the noise serves
best. The snake's default is 5 of 255 codes, so that its points can be found in integers.

References:
    Curve-valued outputs, 2024, https://arxiv.org/abs/2405.14024 (v2): Hilbert curves with a margin of 0.1.
    Differs from the paper: snakes, closed curves, three channels and folds are ours.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from lowbit.errors import RecipeError

_TIE = 1e-12  # squared distances that differ by less are one, and the earlier edge is taken
_PAIRS = 1 << 18  # distances computed at once: they fit into a cache
EVEN_MARGIN = 5 / 255  # a whole number of 8-bit codes


@dataclass(frozen=True)
class Hilbert:
    """The Hilbert curve of an order, 4^order nodes."""

    order: int = 3
    margin: float = 0.1

    def __post_init__(self) -> None:
        _check(self, 1 <= self.order <= 7, "an order of 1 to 7")

    def nodes(self) -> Tensor:
        """Its corners, `[nodes, channels]` in float64."""
        return _inside(_hilbert(self.order) / (2**self.order - 1), self.margin)

    def __str__(self) -> str:
        return _named(self, f"hilbert{self.order}")


@dataclass(frozen=True)
class Snake:
    """Rows swept to and fro."""

    rows: int = 8
    margin: float = EVEN_MARGIN

    def __post_init__(self) -> None:
        _check(self, 2 <= self.rows <= 128, "2 to 128 rows")

    def nodes(self) -> Tensor:
        """Its corners, `[nodes, channels]` in float64."""
        return _inside(_snake(self.rows), self.margin)

    def __str__(self) -> str:
        return _named(self, f"snake{self.rows}")


@dataclass(frozen=True)
class Moore:
    """The closed Hilbert curve of an order: q = 0 and q = 1 are one point."""

    order: int = 3
    margin: float = 0.02

    def __post_init__(self) -> None:
        _check(self, 1 <= self.order <= 7, "an order of 1 to 7")

    def nodes(self) -> Tensor:
        """Its corners, the first one again at the end, `[nodes, channels]` in float64."""
        side = 2 ** (self.order - 1) - 1
        quarter = _hilbert(self.order - 1)
        up = torch.stack([side - quarter[:, 1], quarter[:, 0]], 1)
        down = torch.stack([side + 1 + quarter[:, 1], 2 * side + 1 - quarter[:, 0]], 1)
        step = torch.tensor([0.0, side + 1.0], dtype=torch.float64)
        nodes = torch.cat([up, up + step, down, down - step, up[:1]])
        return _inside(nodes / (2 * side + 1), self.margin)

    def __str__(self) -> str:
        return _named(self, f"moore{self.order}")


@dataclass(frozen=True)
class DeepSnake:
    """A snake in three channels: layers of rows, every second layer swept backwards."""

    rows: int = 8
    layers: int = 8
    margin: float = EVEN_MARGIN

    def __post_init__(self) -> None:
        _check(self, 2 <= self.rows <= 64 and 2 <= self.layers <= 64, "2 to 64 rows and layers")

    def nodes(self) -> Tensor:
        """Its corners, `[nodes, channels]` in float64."""
        plane = _snake(self.rows)
        depths = torch.linspace(0, 1, self.layers, dtype=torch.float64)
        layers = [
            torch.cat([plane if i % 2 == 0 else plane.flip(0), depth.expand(len(plane), 1)], 1)
            for i, depth in enumerate(depths)
        ]
        return _inside(torch.cat(layers), self.margin)

    def __str__(self) -> str:
        return _named(self, f"snake{self.rows}x{self.layers}")


@dataclass(frozen=True)
class Fold:
    """One channel after the other goes from 0 to 1: copies of a linear layer whose outputs saturate."""

    copies: int = 4
    margin: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        _check(self, 1 <= self.copies <= 64, "1 to 64 copies")

    def nodes(self) -> Tensor:
        """Its corners, `[nodes, channels]` in float64."""
        return torch.tril(torch.ones(self.copies + 1, self.copies, dtype=torch.float64), -1)

    def __str__(self) -> str:
        return f"fold{self.copies}"


Path = Hilbert | Snake | Moore | DeepSnake | Fold

_NAME = re.compile(r"(hilbert|snake|moore|fold)(\d+)(?:x(\d+))?(?:@([\d.e-]+))?")


def parse_path(name: str) -> Path:
    """The path of a name such as ``snake8``, ``hilbert3``, ``moore3``, ``snake8x8``, ``fold4``, ``snake8@0.05``.

    Raises:
        RecipeError: no such path.
    """
    found = _NAME.fullmatch(name.strip().lower())
    if not found or (found[3] and found[1] != "snake") or (found[4] and found[1] == "fold"):
        raise RecipeError(
            f"path {name!r} is unknown; expected snake8, hilbert3, moore3 (periodic), snake8x8 (three channels) or "
            "fold4 (no training), and a margin as in snake8@0.02 if it is not to be the default"
        )
    kind, first, second, margin = found[1], int(found[2]), found[3], found[4]
    try:
        given = {} if margin is None else {"margin": float(margin)}
    except ValueError:
        raise RecipeError(f"path {name!r}: {margin!r} is no number") from None
    match kind:
        case "hilbert":
            return Hilbert(first, **given)
        case "moore":
            return Moore(first, **given)
        case "fold":
            return Fold(first)
    return DeepSnake(first, int(second), **given) if second else Snake(first, **given)


@dataclass(frozen=True)
class Polyline:
    """A path as the edges that it is made of; all tensors are float64.

    `starts` and `edges` are `[edges, channels]`, `behind` `[edges]` is the length of what lies before each edge.
    """

    starts: Tensor
    edges: Tensor
    behind: Tensor
    length: float
    spacing: float
    closed: bool

    @property
    def channels(self) -> int:
        """Coordinates of a point."""
        return self.starts.shape[1]

    def point(self, q: Tensor) -> Tensor:
        """The points `[..., channels]` at q `[...]`, in q's type; q outside [0, 1] goes round, or ends."""
        share = q.double()
        share = share - share.floor() if self.closed else share.clamp(0, 1)
        way = share * self.length
        at = (torch.searchsorted(self.behind.to(q.device), way.detach().contiguous(), right=True) - 1).clamp(min=0)
        starts, edges, behind = (one.to(q.device)[at] for one in (self.starts, self.edges, self.behind))
        along = (way - behind) / edges.norm(dim=-1)
        found: Tensor = (starts + along.clamp(0, 1)[..., None] * edges).to(q.dtype)
        return found

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """q `[...]` of the nearest points of the path, and how far away they are, for points `[..., channels]`.

        Both have gradients in the points. Of two edges that are equally near, the earlier one counts.
        """
        flat = points.double().reshape(-1, self.channels)
        starts, edges, behind = (one.to(points.device) for one in (self.starts, self.edges, self.behind))
        with torch.no_grad():
            parts = torch.split(flat, max(1, _PAIRS // len(starts)))
            nearest = torch.cat([_nearest(part, starts, edges) for part in parts])
        start, edge, before = starts[nearest], edges[nearest], behind[nearest]
        along = (((flat - start) * edge).sum(1) / edge.square().sum(1)).clamp(0, 1)
        q = (before + along * edge.norm(dim=1)) / self.length
        distance = (flat - start - along[:, None] * edge).norm(dim=1)
        shape = points.shape[:-1]
        return q.reshape(shape).to(points.dtype), distance.reshape(shape).to(points.dtype)


def _nearest(points: Tensor, starts: Tensor, edges: Tensor) -> Tensor:
    offset = points[:, None] - starts
    along = ((offset * edges).sum(-1) / edges.square().sum(-1)).clamp(0, 1)
    apart = (offset - along[..., None] * edges).square().sum(-1)
    return (apart <= apart.amin(1, keepdim=True) + _TIE).int().argmax(1)


@lru_cache(maxsize=256)
def polyline(path: Path) -> Polyline:
    """The edges of a path."""
    nodes = path.nodes()
    edges = nodes.diff(dim=0)
    lengths = edges.norm(dim=1)
    behind = torch.cat([torch.zeros(1, dtype=torch.float64), lengths.cumsum(0)])
    return Polyline(nodes[:-1], edges, behind[:-1], float(behind[-1]), spacing(path), isinstance(path, Moore))


def spacing(path: Path) -> float:
    """The distance between neighboring branches; infinite where there are none."""
    width = 1.0 - 2.0 * path.margin
    match path:
        case Hilbert(order=order) | Moore(order=order):
            return width / float(2**order - 1)
        case Snake(rows=rows):
            return width / (rows - 1)
        case DeepSnake(rows=rows, layers=layers):
            return width / (max(rows, layers) - 1)
    return math.inf


def _hilbert(order: int) -> Tensor:
    """Nodes of the Hilbert curve of an order as whole numbers, from (0, 0) to (2^order - 1, 0)."""
    nodes = []
    for i in range(4**order):
        x = y = 0
        rest, side = i, 1
        while side < 2**order:
            right = 1 & (rest // 2)
            upper = 1 & (rest ^ right)
            if upper == 0:
                if right:
                    x, y = side - 1 - x, side - 1 - y
                x, y = y, x
            x, y = x + side * right, y + side * upper
            rest, side = rest // 4, side * 2
        nodes.append((x, y))
    return torch.tensor(nodes, dtype=torch.float64)


def _snake(rows: int) -> Tensor:
    """Corners of a snake in the unit square."""
    ends = [[(0.0, r / (rows - 1)), (1.0, r / (rows - 1))][:: 1 if r % 2 == 0 else -1] for r in range(rows)]
    return torch.tensor([end for row in ends for end in row], dtype=torch.float64)


def _inside(nodes: Tensor, margin: float) -> Tensor:
    return margin + nodes * (1 - 2 * margin)


def _check(path: Hilbert | Snake | Moore | DeepSnake | Fold, fits: bool, expected: str) -> None:
    if not fits:
        raise RecipeError(f"{path!r}: expected {expected}")
    if not 0 <= path.margin < 0.5:
        raise RecipeError(f"{path!r}: margin is {path.margin}, expected at least 0 and below 0.5")


def _named(path: Hilbert | Snake | Moore | DeepSnake, name: str) -> str:
    short = f"{path.margin:g}"
    exact = short if float(short) == path.margin else repr(path.margin)  # names are read again
    return name if path.margin == type(path)().margin else f"{name}@{exact}"
