"""Which elements share a scale: the whole tensor, a channel, or a group of consecutive elements.

A granularity turns a tensor into its *blocked* view, in which one scale belongs to each block, and back. The scales of
a tensor have the shape `scale_shape`: `[]` for PerTensor, `[C]` for PerChannel, `[rows, groups]` for PerGroup.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.errors import FormatError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Shape of the scales: `[]`."""
        return ()

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[1, elements]`."""
        return x.reshape(1, -1)

    def blocked(self, x: Tensor) -> Tensor:
        """`x` in the shape that `spread` broadcasts over."""
        return x

    def spread(self, scale: Tensor, shape: torch.Size) -> Tensor:
        """Scales in a shape that broadcasts over `blocked(x)`."""
        return scale

    def unblocked(self, y: Tensor, shape: torch.Size) -> Tensor:
        """Inverse of `blocked`."""
        return y

    def __str__(self) -> str:
        return "tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`; None is the layer's output channels (axis 1 if it is transposed)."""

    axis: int | None = None

    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Shape of the scales: `[C]`."""
        return (shape[self._axis(shape)],)

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[C, elements]`."""
        return x.movedim(self._axis(x.shape), 0).reshape(x.shape[self._axis(x.shape)], -1)

    def blocked(self, x: Tensor) -> Tensor:
        """`x` in the shape that `spread` broadcasts over."""
        return x

    def spread(self, scale: Tensor, shape: torch.Size) -> Tensor:
        """Scales in a shape that broadcasts over `blocked(x)`."""
        return scale.reshape([-1 if i == self._axis(shape) else 1 for i in range(len(shape))])

    def unblocked(self, y: Tensor, shape: torch.Size) -> Tensor:
        """Inverse of `blocked`."""
        return y

    def _axis(self, shape: torch.Size) -> int:
        axis = self.axis or 0
        if not 0 <= axis < len(shape):
            raise FormatError(f"PerChannel({axis}) on shape {list(shape)}: expected an axis below {len(shape)}")
        return axis

    def __str__(self) -> str:
        return "channel" if self.axis is None else f"channel:{self.axis}"


@dataclass(frozen=True)
class PerGroup:
    """One scale for `size` consecutive elements of a row, the row being all axes but the first, flattened.

    `size` divides the row unless `ragged`, which makes the last group of a row shorter (block formats).
    """

    size: int
    ragged: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FormatError(f"PerGroup({self.size}): a group has at least 1 element")

    def scale_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Shape of the scales: `[rows, groups]`."""
        row = shape[1:].numel()
        if row % self.size and not self.ragged:
            raise FormatError(
                f"{list(shape)}: PerGroup({self.size}) does not divide {row} inputs; use a divisor or PerChannel()"
            )
        return (shape[0], -(-row // self.size))

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[rows * groups, size]`, a ragged end filled with zeros."""
        return self.blocked(x).reshape(-1, self.size)

    def blocked(self, x: Tensor) -> Tensor:
        """`x` as `[rows, groups, size]`, a ragged end filled with zeros."""
        rows, groups = self.scale_shape(x.shape)
        flat = x.reshape(rows, -1)
        missing = groups * self.size - flat.shape[1]
        return torch.nn.functional.pad(flat, (0, missing)).reshape(rows, groups, self.size)

    def spread(self, scale: Tensor, shape: torch.Size) -> Tensor:
        """Scales in a shape that broadcasts over `blocked(x)`."""
        return scale.unsqueeze(-1)

    def unblocked(self, y: Tensor, shape: torch.Size) -> Tensor:
        """Inverse of `blocked`."""
        return y.reshape(shape[0], -1)[:, : shape[1:].numel()].reshape(shape)

    def __str__(self) -> str:
        return f"group:{self.size}{':ragged' if self.ragged else ''}"


Granularity = PerTensor | PerChannel | PerGroup


def parse_granularity(text: str) -> Granularity:
    """`tensor`, `channel`, `channel:1`, `group:32` or `group:32:ragged`; the inverse of `str`.

    Raises:
        FormatError: anything else.
    """
    if text == "tensor":
        return PerTensor()
    if m := re.fullmatch(r"channel(?::(\d{1,2}))?", text):
        return PerChannel(int(m[1]) if m[1] else None)
    if m := re.fullmatch(r"group:(\d{1,9})(:ragged)?", text):
        return PerGroup(int(m[1]), ragged=bool(m[2]))
    raise FormatError(f"unknown granularity {text!r}; expected tensor, channel, channel:<axis> or group:<size>")
