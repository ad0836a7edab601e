"""Tables from pairs of codes to numbers: of the nearest point, of how far it is, and of the mean of what was meant.

A table of a path in two channels holds 65,536 numbers, 128 KiB. It can also be filled from data (`learned_table`):
where noise makes branches run into each other, the mean of what was meant is a better answer than the nearest point.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit import files
from lowbit.errors import DataError, RecipeError
from lowbit.methods.curves.arithmetic import STEPS, projected
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.paths import Fold

_WEIGHT = 4.0  # samples that the nearest point counts for, in a learned table


def table_of(codec: Codec) -> Tensor:
    """The uint16 number of every pair of codes, `[2^bits, 2^bits]` as int32; the first index is the first channel's.

    Raises:
        RecipeError: a path with another number of channels than two.
    """
    return projected(codec, _pairs(codec)).int()


def confidence_table(codec: Codec) -> Tensor:
    """How far from the path every pair of codes lies, in units of a channel's range, `[2^bits, 2^bits]`.

    Raises:
        RecipeError: a path with another number of channels than two, or a fold, whose points are all on it.
    """
    if isinstance(codec.path, Fold):
        raise RecipeError(f"{codec.path}: copies of one number are always on the path, so the distance tells nothing")
    points = _pairs(codec).double() / codec.top
    return codec.line.project(points)[1].float()


def _pairs(codec: Codec) -> Tensor:
    if codec.channels != 2:
        raise RecipeError(
            f"{codec.path} has {codec.channels} channels; a table of every combination is for two, "
            "use decoder='arithmetic'"
        )
    codes = torch.arange(codec.top + 1)
    return torch.stack(torch.meshgrid(codes, codes, indexing="ij"), -1)


def learned_table(codec: Codec, points: Tensor, target: Tensor) -> Tensor:
    """A table that returns the mean of what was meant by a pair of codes, which has the least squared error.

    Pairs that are rare stay near the projection, which counts for four samples; codes of a closed path are averaged the
    shorter way round.

    Args:
        codec: with a path in two channels.
        points: what the deployed network returns on calibration inputs `[N, 2 * T, ...]`, see
            `lowbit.methods.curves.heads.deployed_points`.
        target: what it should have returned, `[N, T, ...]`.

    Returns:
        As `table_of`.

    Raises:
        DataError: points and targets do not belong together.
    """
    table = table_of(codec)
    if points.dim() < 2 or points.shape[1] % 2:
        raise DataError(f"got points {list(points.shape)}, expected [N, 2 * T, ...]")
    codes = codes_of(points, codec).reshape(len(points), 2, points.shape[1] // 2, *points.shape[2:])
    first, second = codes[:, 0], codes[:, 1]
    if first.shape != target.shape:
        raise DataError(f"got points {list(points.shape)} for targets {list(target.shape)}, expected [N, 2 * T, ...]")
    index = (first * (codec.top + 1) + second).flatten()
    before = table.flatten().double()
    apart = codec.share(target).double().flatten() * STEPS - before[index]
    if codec.periodic:
        apart = apart - (apart / STEPS).round() * STEPS
    total = torch.zeros_like(before).index_add_(0, index, apart)
    count = torch.zeros_like(before).index_add_(0, index, torch.ones_like(apart))
    learned = before + total / (count + _WEIGHT)
    learned = learned % STEPS if codec.periodic else learned.clamp(0, STEPS)
    return learned.round().int().reshape(table.shape)


def codes_of(points: Tensor, codec: Codec) -> Tensor:
    """The integer codes of points, as the deployed output has them: rounded to the grid of `codec.bits`, clipped."""
    top = codec.top
    codes: Tensor = (points * top).round().clamp(0, top).long()
    return codes


def write_table(codec: Codec, path: str | Path, *, table: Tensor | None = None) -> None:
    """Write a table as a NumPy file of uint16, `[2^bits, 2^bits]`."""
    array = (table_of(codec) if table is None else table).numpy().astype(np.uint16)
    with files.replacing(Path(path)) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
