"""Which class an output predicts: the largest of several, or what a single one says of two."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Classes = npt.NDArray[np.int64]


@final
class Predictions:
    """Outputs that come batch by batch, as classes.

    A single output is a logit, large above 0, or a probability, large above 0.5: a probability if all lie in [0, 1],
    where the sign would tell nothing. So it is read when all are there: a batch of few could be either.

    Attributes:
        single: whether there is one output a sample.
    """

    def __init__(self, *outputs: Array) -> None:
        self.single = False
        self._found: list[Array] = []
        for one in outputs:
            self.add(one)

    def add(self, outputs: Array) -> None:
        """Take a batch of outputs, `[N, ...]`."""
        rows = outputs.reshape(len(outputs), -1).astype(np.float32)
        self.single = rows.shape[1] == 1
        self._found.append(rows[:, 0] if self.single else rows.argmax(1))

    def probability(self) -> bool:
        """Whether a single output is a probability."""
        return self.single and all(bool(((found >= 0) & (found <= 1)).all()) for found in self._found)

    def classes(self, *, probability: bool | None = None) -> Classes:
        """The class of each sample, `[N]`; of a single output 1 or 0.

        Args:
            probability: what a single output is, where that is known: of a reference that it is compared with, for one.
        """
        if not self._found:
            return np.zeros(0, np.int64)
        found = np.concatenate(self._found)
        if self.single:
            found = found > (0.5 if (self.probability() if probability is None else probability) else 0.0)
        return found.astype(np.int64)


def predictions(outputs: Array, like: Array | None = None) -> Classes:
    """The class of each sample, `[N]`; with `like`, a reference's outputs, both are read alike (see `Predictions`)."""
    return Predictions(outputs).classes(probability=None if like is None else Predictions(like).probability())
