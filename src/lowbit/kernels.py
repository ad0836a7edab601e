"""Fake quantization in C++ for training on the CPU: built by the machine's own compiler, bit for bit what torch gives.

In torch, fake quantization is six passes over a tensor and a dozen backward; `kernels.cpp` makes it one each. It is
compiled (about a second, see `lowbit.compiled`) when a gradient is first asked for, and kept for the next process.
Where that cannot be, `lowbit.ops` runs on plain torch; `why_not` and the log (INFO) say why.

The library has a C interface and knows no tensors, so it fits any version of torch. It runs on torch's own threads:
g++ asks for the same OpenMP as torch, whose symbols are already loaded for the whole process and found first.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lowbit import compiled
from lowbit.formats import Binary, Block, Float, Format, Int, MidRise, Ternary
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor

_SOURCE = Path(__file__).with_name("kernels.cpp")
_PIECE = 2048  # numbers done at a time, so that they stay in the first-level cache


def why_not() -> str | None:
    """Why training runs without the kernels; None where it runs with them. Builds them if nothing did yet."""
    found = _library()
    return found if isinstance(found, str) else None


@functools.cache  # which also says whether anybody has asked
def _library() -> ctypes.CDLL | str:
    """The kernels, or why there are none."""
    return compiled.library(_SOURCE)


# What the kernels are told: the structures of kernels.cpp


class _Grid(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "mantissa")),
        *((name, ctypes.c_float) for name in ("low", "high", "threshold", "smallest_normal", "zero")),
    )


class _Rule(ctypes.Structure):
    _fields_ = (("correction", ctypes.c_float), ("rounding", ctypes.c_float))


class _Layout(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "row", "run", "scales_of_row", "piece"))


@functools.lru_cache(maxsize=256)
def _grid(format: Format, affine: bool) -> _Grid | None:
    """`format` for the kernels; None if they do not know it."""
    element = format.element if isinstance(format, Block) else format
    match element:
        case Int():
            told: dict[str, float] = {"kind": int(affine)}
        case _ if affine:
            return None
        case Float() if element.bias <= 127:  # beyond, its normal numbers are subnormal in float32
            zero = 0.0 if element.specials == "fnuz" else -0.0
            smallest = 2.0 ** (1 - element.bias)
            told = {"kind": 2, "mantissa": element.mantissa, "smallest_normal": smallest, "zero": zero}
        case Ternary():
            told = {"kind": 3, "threshold": element.threshold}
        case Binary():
            told = {"kind": 4, "threshold": 0.0 if element.signed else 0.5 + 2.0**-24}  # the next after 0.5
        case MidRise():
            told = {"kind": 5}
        case _:
            return None
    return _Grid(low=format.min, high=format.max, **told)


def _layout(shape: torch.Size, granularity: Granularity) -> _Layout:
    """Where in memory the runs lie, for a tensor that `_in_order` lets through."""
    match granularity:
        case PerTensor():
            return _Layout(1, shape.numel(), shape.numel(), 0, _PIECE)
        case PerChannel(axis):
            row, run = shape[axis or 0 :].numel(), shape[(axis or 0) + 1 :].numel()
            return _Layout(shape.numel() // row, row, run, 0, _PIECE)
        case PerGroup(size):
            rows, groups = granularity.scale_shape(shape)
            return _Layout(rows, shape[1:].numel(), size, groups, _PIECE)


# Calls


@dataclass(frozen=True)
class Call:
    """The kernels, ready for one tensor `x`, its scales and, on the way back, the gradient of the result."""

    library: ctypes.CDLL
    x: Tensor
    scale: Tensor
    zero_point: Tensor | None
    grad: Tensor | None
    format: Format
    layout: _Layout
    arguments: tuple[Any, ...]  # the first ones of both kernels

    def forward(self) -> Tensor:
        """`x` fake quantized, with its strides."""
        y = torch.empty_like(self.x)
        self.library.lowbit_forward(*self.arguments, _pointer(y))
        return y

    def backward(
        self, wanted: Sequence[bool], delta: float, rounding: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of `x`, `scale` and `zero_point` as far as they are `wanted`, by the rule of `lowbit.ops`."""
        rule = _Rule(delta / (self.format.max - self.format.min), rounding)
        runs, pieces = -(-self.layout.row // self.layout.run), -(-self.layout.run // _PIECE)
        sums = self.layout.rows * runs * pieces  # one for each piece
        dx = torch.empty_like(self.x) if wanted[0] else None
        ds, dz = (self.x.new_empty(sums) if one else None for one in wanted[1:])
        given = map(_pointer, (self.grad, dx, ds, dz))
        self.library.lowbit_backward(*self.arguments, ctypes.byref(rule), *given)
        ds, dz = (None if one is None else self._by_scale(one, pieces) for one in (ds, dz))
        return dx, ds, None if dz is None else dz * self.scale

    def _by_scale(self, sums: Tensor, pieces: int) -> Tensor:
        """The sums of all pieces that share a scale added up, in the shape of `scale`."""
        return sums.reshape(-1, self.scale.numel(), pieces).sum((0, 2)).reshape(self.scale.shape)


def call(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    format: Format,
    granularity: Granularity,
    *,
    grad: Tensor | None = None,
    build: bool = False,
) -> Call | None:
    """A call of the kernels, or None where torch has to do it: they take float32 in one stretch of CPU memory.

    The order in memory is free for PerTensor; with PerChannel a channel has to be a stretch of its own, as in the
    weight of a convolution in channels-last memory format. What comes out has the strides of `x`.

    Args:
        grad: the gradient of the result, for `Call.backward`.
        build: whether to build the kernels; without, they are used if `call` or `why_not` have built them before.
    """
    scales = [s for s in (scale, zero_point) if s is not None]
    if _watched() or not (build or _library.cache_info().currsize):
        return None
    given = (x, *scales) if grad is None else (x, *scales, grad)
    if x.numel() == 0 or not all(map(_usable, given)) or not all(s.is_contiguous() for s in scales):
        return None
    if any(s.shape != granularity.scale_shape(x.shape) for s in scales) or not _in_order(x, granularity):
        return None
    grid, library = _grid(format, zero_point is not None), _library()
    if grid is None or isinstance(library, str):
        return None
    if grad is not None and grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    layout, pointers = _layout(x.shape, granularity), map(_pointer, (x, scale, zero_point))
    arguments = (ctypes.byref(grid), ctypes.byref(layout), torch.get_num_threads(), *pointers)
    return Call(library, x, scale, zero_point, grad, format, layout, arguments)


def _watched() -> bool:
    """Whether torch's own operations are being compiled, traced or transformed, and nothing else would be seen."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _usable(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, Parameter)
        and (x.device.type, x.dtype, x.layout) == ("cpu", torch.float32, torch.strided)
        and not x.is_neg()
    )


def _in_order(x: Tensor, granularity: Granularity) -> bool:
    """Whether `x` lies in one stretch of memory, in an order that keeps together what shares a scale."""
    if x.is_contiguous():
        return True
    match granularity:
        case PerTensor():
            return _is_dense(x)
        case PerChannel(axis) if not axis:
            return x.stride(0) * x.shape[0] == x.numel() and _is_dense(x)
    return False


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill one stretch of memory, without gaps and each with a place of its own."""
    stretch = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != stretch:
            return False
        stretch *= size
    return True


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())
