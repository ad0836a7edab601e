"""What codes stand for, in whole numbers: q as 0 to 65535, by projection and, bit for bit the same, by integers alone.

Snakes need no search: the nearest point is on the row below, the row above, or the one turn between them. With a margin
of whole half codes, all of that is exact in integers, so it is the same on any hardware. A fold is a sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.errors import RecipeError
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.paths import DeepSnake, Fold, Path, Snake

STEPS = 65535  # of a decoded number


def projected(codec: Codec, codes: Tensor) -> Tensor:
    """uint16 numbers, as int64, of codes `[..., channels]`: the nearest point of the path, in float64."""
    if isinstance(codec.path, Fold):
        return arithmetic(codec, codes)
    q, _ = codec.line.project(codes.double() / codec.top)
    numbers: Tensor = (q * STEPS + 0.5 + 1e-9).floor().long()
    return numbers


def arithmetic(codec: Codec, codes: Tensor) -> Tensor:
    """The same in integers alone, for snakes and folds.

    Raises:
        RecipeError: another path, or a margin that is no whole number of half codes.
    """
    path, top, codes = codec.path, codec.top, codes.long()
    if isinstance(path, Fold):
        whole = path.copies * top
        return (2 * STEPS * codes.sum(-1) + whole) // (2 * whole)
    if reason := why_no_arithmetic(path, codec.bits):
        raise RecipeError(reason)
    assert isinstance(path, (Snake, DeepSnake))
    border = round(2 * path.margin * top)
    width = 2 * top - 2 * border  # of a row, in half codes
    if isinstance(path, Snake):
        if 2 * (width * (path.rows - 1)) ** 2 < 2**31:  # squared distances: half the time of int64
            codes = codes.int()
        x, y = ((2 * codes[..., i] - border) * (path.rows - 1) for i in (0, 1))
        way, _, _ = _snake_way(x, y, path.rows, width)
        return _rounded(way, (path.rows**2 - 1) * width)
    # units in which rows and layers both lie on whole numbers
    x, y, z = ((2 * codes[..., i] - border) * (path.rows - 1) * (path.layers - 1) for i in (0, 1, 2))
    row, layer = width * (path.layers - 1), width * (path.rows - 1)
    first, last, apart = _snake_way(x, y, path.rows, row)
    whole = (path.rows**2 - 1) * row
    below = _row_below(z, layer, path.layers)
    backwards = (below & 1).bool()
    end_x = torch.where(backwards, 0, row * (path.rows - 1) * (path.rows % 2))
    end_y = torch.where(backwards, 0, row * (path.rows - 1))
    depth = torch.minimum(torch.maximum(z, below * layer), (below + 1) * layer)
    candidates = [
        (
            level * (whole + layer) + torch.where((level & 1).bool(), whole - last, first),
            apart + (z - level * layer).square(),
        )
        for level in (below, below + 1)
    ]
    between = below * (whole + layer) + whole + depth - below * layer
    turn = (between, (x - end_x).square() + (y - end_y).square() + (z - depth).square())
    found, _, _ = _nearest_way([candidates[0], turn, candidates[1]])
    return _rounded(found, path.layers * whole + (path.layers - 1) * layer)


def _snake_way(x: Tensor, y: Tensor, rows: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """The way along a snake to its nearest point, see `_nearest_way`; rows lie `row` apart, in integers."""
    long = row * (rows - 1)  # a row's length: the square is as wide as high
    below = _row_below(y, row, rows)
    backwards = (below & 1).bool()
    side = torch.where(backwards, 0, long)  # where the path turns from this row to the next
    inside = x.clamp(0, long)
    even = torch.where(backwards, long - inside, inside)
    between = torch.minimum(torch.maximum(y, below * row), (below + 1) * row)
    start, beside = below * (long + row), (x - inside).square()
    return _nearest_way(
        [
            (start + even, beside + (y - below * row).square()),
            (start + long + between - below * row, (x - side).square() + (y - between).square()),
            (start + row + 2 * long - even, beside + (y - (below + 1) * row).square()),
        ]
    )


def _row_below(y: Tensor, apart: int, rows: int) -> Tensor:
    """The number of the row at or below a height, the last but one at most, so that there is one above."""
    return torch.div(y.clamp(min=0), apart, rounding_mode="trunc").clamp(max=rows - 2)


def _nearest_way(candidates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Of ways and their squared distances: the nearest, the first and the last of those alike, and its distance."""
    first, nearest = candidates[0]
    last = first
    for way, distance in candidates[1:]:
        first = torch.where(distance < nearest, way, first)
        last = torch.where(distance <= nearest, way, last)
        nearest = torch.minimum(distance, nearest)
    return first, last, nearest


def _rounded(way: Tensor, whole: int) -> Tensor:
    return torch.div(2 * STEPS * way.long() + whole, 2 * whole, rounding_mode="trunc")


def why_no_arithmetic(path: Path, bits: int) -> str:
    """Why a path cannot be decoded in integers; empty if it can."""
    if not isinstance(path, (Snake, DeepSnake, Fold)):
        return f"{path} has no integer arithmetic, only snakes and folds have; use decoder='table'"
    border = 2 * path.margin * (2**bits - 1)
    if abs(border - round(border)) > 1e-6:
        return (
            f"{path}: a margin of {path.margin:g} is {border / 2:g} codes; integer arithmetic needs whole half codes, "
            "such as 5 / 255; or use decoder='table'"
        )
    return ""
