"""What a model's inputs look like, so that data of another shape or scale than the calibration data is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.batches import Batch, inputs_of

_SHIFT = 0.5  # means differ if they are so many standard deviations apart
_STRETCH = 2.0  # and deviations if one is so many times the other


@dataclass(frozen=True)
class InputStatistics:
    """One input over all samples: shape of a sample, mean and standard deviation, extremes."""

    shape: tuple[int, ...]
    mean: float
    deviation: float
    low: float
    high: float

    @staticmethod
    def from_dict(data: Mapping[str, object]) -> InputStatistics:
        """The inverse of `dataclasses.asdict`, after a trip through JSON."""
        numbers = {k: float(str(data[k])) for k in ("mean", "deviation", "low", "high")}
        shape = data["shape"]
        assert isinstance(shape, (list, tuple))
        return InputStatistics(tuple(int(size) for size in shape), **numbers)

    def __str__(self) -> str:
        return f"shape {list(self.shape)}, mean {self.mean:.3g}, deviation {self.deviation:.3g}"


class InputWatch:
    """Running statistics of every float input of a model, in constant memory."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[tuple[int, ...], Tensor, float, float]] = {}

    def add(self, batch: Batch) -> None:
        """Take the inputs of one batch into account."""
        args, kwargs = inputs_of(batch)
        for name, x in [*(("input", a) for a in args), *kwargs.items()]:
            if not x.is_floating_point() or not x.numel():
                continue
            wide = x.detach().double()
            now = torch.stack([wide.sum(), (wide**2).sum(), wide.new_tensor(x.numel())]).cpu()
            low, high = (float(v) for v in torch.aminmax(x.detach()))
            if name in self._sums:
                shape, sums, least, most = self._sums[name]
                now, low, high = now + sums, min(low, least), max(high, most)
            else:
                shape = tuple(x.shape[1:])
            self._sums[name] = shape, now, low, high

    def statistics(self) -> dict[str, InputStatistics]:
        """What was seen, by input name; a positional input is ``input``."""
        found = {}
        for name, (shape, (total, squares, count), low, high) in self._sums.items():
            mean = float(total / count)
            found[name] = InputStatistics(shape, mean, max(float(squares / count) - mean**2, 0.0) ** 0.5, low, high)
        return found


def differences(calibration: Mapping[str, InputStatistics], now: Mapping[str, InputStatistics]) -> tuple[str, ...]:
    """A sentence with the evidence for each input whose shape or scale is not that of the calibration data."""
    found = []
    for name, seen in now.items():
        before = calibration.get(name)
        if before is None:
            continue
        spread = max(before.deviation, 1e-12)
        stretch = max(seen.deviation, 1e-12) / spread
        if (
            before.shape != seen.shape
            or abs(before.mean - seen.mean) > _SHIFT * spread
            or not 1 / _STRETCH <= stretch <= _STRETCH
        ):
            found.append(
                f"input {name!r} is not like the calibration data: here {seen}; there {before}; preprocess both alike"
            )
    return tuple(found)
