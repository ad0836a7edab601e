"""Outputs that are quantities, such as a speed and an angle, and no class scores: what they are, and how far apart.

Of outputs `[N, C, ...]` each of the C is a quantity with a unit of its own, and all its places count alike. So nothing
is summed over quantities before it is in standard deviations of each. Beyond 32, neighbors have one figure together:
these are the features of an embedding or the channels of a map rather than quantities with names.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt

from lowbit.errors import DataError

Array = np.ndarray[Any, Any]
Floats = npt.NDArray[np.float64]
MOST = 32  # quantities that have figures of their own


def values_of(outputs: Array) -> Floats:
    """What each sample has of each quantity, `[N, Q]`: the mean over places of outputs `[N, C, ...]`."""
    return _grouped(_places(outputs).mean(2))


def _places(outputs: Array) -> Floats:
    """Outputs as `[N, C, places]`."""
    return outputs.reshape(len(outputs), outputs.shape[1] if outputs.ndim > 1 else 1, -1).astype(np.float64)


def _grouped(rows: Floats) -> Floats:
    """Means over neighbors along the last dimension, `[..., C]` to `[..., Q]`."""
    count = rows.shape[-1]
    if count <= MOST:
        return rows
    return np.stack([part.mean(-1) for part in np.array_split(rows, MOST, axis=-1)], -1)


@final
class Distances:
    """How far outputs lie from a reference, in standard deviations of its quantities, in batches.

    A quantity that does not vary counts in its own unit.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._squares: list[Floats] = []  # [n, Q] each, in the units of the quantities
        # running mean, and sum of squared deviations from it, of each channel over samples and places
        self._count, self._mean, self._spread = 0, np.zeros(0), np.zeros(0)

    def add(self, outputs: Array, reference: Array) -> None:
        """Take a batch of outputs and of those that they are compared with, `[N, C, ...]` both.

        Raises:
            DataError: their shapes differ.
        """
        if outputs.shape != reference.shape:
            got, expected = list(outputs.shape), list(reference.shape)
            raise DataError(f"got outputs {got}, the model that they are compared with returns {expected}")
        if not len(outputs):
            return
        found, wanted = _places(outputs), _places(reference)
        self._squares.append(_grouped(((found - wanted) ** 2).mean(2)))
        self.samples += len(outputs)
        count, mean = wanted.shape[0] * wanted.shape[2], wanted.mean((0, 2))
        if not self._count:
            self._mean, self._spread = np.zeros_like(mean), np.zeros_like(mean)
        apart, together = mean - self._mean, self._count + count  # Chan's update
        self._spread += ((wanted - mean[:, None]) ** 2).sum((0, 2)) + apart**2 * self._count * count / together
        self._mean += apart * count / together
        self._count = together

    def deviations(self) -> Floats:
        """Standard deviations of the reference's quantities, `[Q]`."""
        return np.asarray(np.sqrt(_grouped(self._spread / max(self._count, 1))))

    def of_samples(self, deviations: Floats | None = None) -> Floats:
        """The squared distance of each sample, a mean over quantities, `[N]`; in the reference's own units by default.

        Args:
            deviations: the units of the quantities, `[Q]`.
        """
        return np.asarray(self._relative(deviations).mean(1))

    def largest(self) -> float:
        """The root mean square distance in the quantity that is farthest off."""
        return float(np.sqrt(self._relative(None).mean(0).max(initial=0.0)))

    def _relative(self, deviations: Floats | None) -> Floats:
        units = self.deviations() if deviations is None else deviations
        squares: Floats = np.concatenate(self._squares)
        return np.asarray(squares / np.where(units > 0, units, 1.0) ** 2)
