"""Inputs and labels as arrays: what they are called in files, what makes them one of a data set, and what says so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from lowbit.errors import DataError

# usual names in files
INPUTS = ("inputs", "x", "X", "data", "images")
LABELS = ("labels", "y", "target")
NUMBERED = "number the classes from 0, for example by numpy.unique(labels, return_inverse=True)[1]"
ROWS_AT_ONCE = 256  # that are checked, or read from a Parquet file


@final
class UnnamedError(DataError):
    """None of the arrays `names` of the data `name` has a usual name of inputs."""

    def __init__(self, name: str, names: list[str]) -> None:
        super().__init__(name, names)  # with which it can be pickled
        self.names = names
        self.found = f"data '{name}': none of {', '.join(INPUTS)} among arrays {', '.join(names)}"

    def __str__(self) -> str:
        return f"{self.found}; choose one with `inputs:`"

    @property
    def likely(self) -> str:
        """The array that most likely holds the inputs: the first that has no usual name of labels."""
        return next((name for name in self.names if name not in LABELS), "inputs")


@dataclass(frozen=True)
class Arrays:
    """Samples `[samples, ...]` in memory; `name` is that of the data, for messages."""

    name: str
    inputs: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Where each sample is, and its value."""
        for position in positions.tolist():
            yield f"data '{self.name}', sample {position}", self.inputs[position]

    def digest(self, positions: np.ndarray) -> str:
        """What identifies the array."""
        return digest_of(self.inputs)


def draw(count: int, limit: int, seed: int) -> torch.Tensor:
    """Some of `count` numbers, ascending."""
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(int(seed)))
    return shuffled[:limit].sort().values


def as_numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array, or a tensor as one."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    return values


def finite_float32(values: np.ndarray, where: list[str]) -> np.ndarray:
    """Samples as float32; `where` names each.

    Raises:
        DataError: one holds NaN or infinity, as float32 at least.
    """
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is reported below
        single = values.astype(np.float32)
    if values.dtype.kind == "f":
        finite = np.isfinite(single).reshape(len(single), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"{where[int(finite.argmin())]} holds NaN or infinity, expected finite numbers; remove it")
    return single


def digest_of(array: np.ndarray) -> str:
    """SHA-256 of an array: its type, shape and numbers."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def checked_labels(labels: np.ndarray, count: int, name: str) -> torch.Tensor:
    """Labels of so many inputs: int64 classes, or float32 targets.

    Raises:
        DataError: they are no numbers, not one each, or not finite.
    """
    if labels.dtype.kind not in "fiub":
        remedy = NUMBERED if labels.dtype.kind in "USOT" else "convert them"
        raise DataError(f"data '{name}': labels are {labels.dtype}, expected integers or floats; {remedy}")
    if labels.ndim == 0 or len(labels) != count:
        got = len(labels) if labels.ndim else "one"
        raise DataError(f"data '{name}': {got} labels for {count} inputs, expected one each; correct the source")
    refuse_one_hot(labels, f"data '{name}': labels")
    if labels.dtype.kind != "f":
        return torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(finite_float32(labels, [f"data '{name}', label {i}" for i in range(count)]))


def refuse_one_hot(labels: np.ndarray, where: str) -> None:
    """Refuse rows `[samples, classes]` of zeros and a single 1: as targets they would make a regression of classes.

    Raises:
        DataError: they are such rows.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "fiub" or min(labels.shape) < 2:
        return
    if ((labels == 0) | (labels == 1)).all() and ((labels == 1).sum(axis=1) == 1).all():
        raise DataError(
            f"{where} {list(labels.shape)} look one-hot, a single 1 in each row; expected one class number a sample: "
            "use labels.argmax(1)"
        )


def stacked(samples: list[tuple[str, np.ndarray]], shape: tuple[int, ...]) -> torch.Tensor:
    """Samples with the names of their places as a batch, float32 `[n, *shape]`.

    Raises:
        DataError: one has another shape, or is not finite.
    """
    for where, value in samples:
        if value.shape != shape:
            remedy = "set `size:` to resize all images" if len(shape) == 3 else "pad or cut the rows to one length"
            raise DataError(f"{where}: shape {list(value.shape)}, expected {list(shape)} like the first; {remedy}")
    return torch.from_numpy(finite_float32(np.stack([value for _, value in samples]), [where for where, _ in samples]))
