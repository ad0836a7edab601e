"""The factors of one layer: what is asked for, what comes out, and how it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor

from lowbit import files
from lowbit.formats import Format
from lowbit.methods.factorization.chains import Kind, formats_of
from lowbit.methods.factorization.solvers import GridFactors, admm, descent, polished, rounded
from lowbit.methods.factorization.starts import corrected, float_factors
from lowbit.methods.factorization.tensors import relative_error

Solver = Literal["rounding", "admm", "descent", "published"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)


@dataclass(frozen=True)
class Chain:
    """What a layer becomes: kind, rank of all groups together, and formats of the dense and the depthwise weights."""

    kind: Kind
    rank: int
    weights: Format
    middle: Format

    def __str__(self) -> str:
        return f"{self.kind} of rank {self.rank}, {self.weights}"


@dataclass(frozen=True)
class Solution:
    """The factors of a layer, group by group, and relative errors of the weights by name: ``float`` and solvers'."""

    groups: tuple[GridFactors, ...]
    errors: Mapping[str, float]


def solve(
    tensors: Sequence[Tensor], chain: Chain, solver: Solver, seed: int, compare: bool, folder: Path | None
) -> Solution:
    """The factors of a layer's tensors on the grid, from `folder` where they have been found before.

    Args:
        tensors: of each group, see `lowbit.methods.factorization.chains.tensors_of`.
        chain: kind, rank and formats.
        solver: see `factorize`.
        seed: draws the start.
        compare: find the error of all solvers but ``published``, which takes minutes.
        folder: where solutions are kept.
    """
    known = hashlib.sha256(f"{chain} {chain.middle} {solver} {seed} {compare}".encode())
    for tensor in tensors:
        known.update(f"{[*tensor.shape]}".encode() + tensor.numpy().tobytes())
    path = None if folder is None else folder / f"{known.hexdigest()[:24]}.safetensors"
    if path is not None and path.exists():
        return _loaded(path, len(tensors))
    formats = formats_of(chain.kind, chain.weights, chain.middle)
    rank = chain.rank // len(tensors)
    with threadpool_limits(1):  # the matrices are small: with a second thread, it took twice as long
        starts = [float_factors(x, rank, seed=seed) for x in tensors]
        found = {
            name: [_by(name, x, start, formats, seed) for x, start in zip(tensors, starts, strict=True)]
            for name in _wanted(solver, compare)
        }
    whole = sum(float(x.square().sum()) for x in tensors)

    def error(errors: Sequence[float]) -> float:
        squares = (e * e * float(x.square().sum()) for e, x in zip(errors, tensors, strict=True))
        return float((sum(squares) / whole) ** 0.5)

    errors: dict[str, float] = {"float": error([one[2] for one in found[solver]])}
    errors |= {name: error([one[1] for one in each]) for name, each in found.items()}
    as_read = dict(sorted(errors.items()))  # the order in which a file gives them back
    solution = Solution(tuple(one[0] for one in found[solver]), as_read)
    if path is not None:
        _save(path, solution)
    return solution


def _wanted(solver: Solver, compare: bool) -> list[Solver]:
    return list(dict.fromkeys([solver, "rounding", *(["admm", "descent"] if compare else [])]))  # type: ignore[list-item]


def _by(
    solver: Solver, x: Tensor, start: list[Tensor], formats: Sequence[Format], seed: int
) -> tuple[GridFactors, float, float]:
    """Factors of one tensor, and the relative errors of them and of the float factors that they came from."""
    match solver:
        case "rounding":
            found = rounded(start, formats)
        case "admm":
            found = polished(x, admm(x, start, formats), formats)
        case "descent":
            found = descent(x, start, formats)
        case "published":
            start = corrected(x, float_factors(x, start[0].shape[1], ridge=0, seed=seed))
            found = admm(x, start, formats, per_component=False, outer=1000, inner=1000, points=200)
    return found, relative_error(x, found.factors), relative_error(x, start)


def _save(path: Path, solution: Solution) -> None:
    tensors = {
        f"{group}.{what}.{mode}": tensor.clone(memory_format=torch.contiguous_format)
        for group, one in enumerate(solution.groups)
        for what, several in (("values", one.values), ("scales", one.scales))
        for mode, tensor in enumerate(several)
    }
    errors = {f"error.{name}": torch.tensor(value, dtype=torch.float64) for name, value in solution.errors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as place:
        save_file({**tensors, **errors}, place)


def _loaded(path: Path, groups: int) -> Solution:
    tensors = load_file(path)
    errors = {name.removeprefix("error."): float(t) for name, t in tensors.items() if name.startswith("error.")}
    modes = sum(name.startswith("0.values.") for name in tensors)

    def of(group: int, what: str) -> tuple[Tensor, ...]:
        return tuple(tensors[f"{group}.{what}.{mode}"] for mode in range(modes))

    return Solution(tuple(GridFactors(of(g, "values"), of(g, "scales")) for g in range(groups)), errors)
