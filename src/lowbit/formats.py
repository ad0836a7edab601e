"""Which numbers exist: integer, mid-rise, float, ternary, binary and block-scaled formats, as plain values.

A format is a finite set of numbers (its *grid*) and a bit pattern (its *code*) for each of them. It knows nothing of
scales or axes: `round` maps a scaled number `z` to the nearest grid value, `encode` to its code, `decode` back.

Overflow is explicit. `round` and `encode` saturate: a number beyond the grid, infinity included, becomes the nearest
end of the grid. ``Float.round(z, saturate=False)`` gives what a hardware cast without saturation gives instead:
infinity where the format has one, else NaN. NaN stays NaN through `round`; `encode` refuses it where the format has
no code for it. Ties go to the value with the even code, as in IEEE 754 and ONNX QuantizeLinear, unless a format says
otherwise.

References:
    Micikevicius et al., FP8 formats for deep learning, 2022, https://arxiv.org/abs/2209.05433 (E4M3FN, E5M2).
    Noune et al., 8-bit numerical formats for deep neural networks, 2022, https://arxiv.org/abs/2206.02915 (FNUZ).
    OCP Microscaling Formats (MX) specification 1.0, 2023, sections 5 and 6 (FP6, FP4, E8M0, blocks of 32).
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import FormatError

FLOAT = "float32"  # what stands where there is no format: every target can execute it
_NEXT_TO_NOTHING = 2.0**-20  # small, and yet an int32 bias can be counted in units of it


class Format(ABC):
    """A finite set of numbers. Subclasses are frozen dataclasses: equal fields, equal format."""

    bits: int

    @property
    @abstractmethod
    def min(self) -> float:
        """Lowest grid value."""

    @property
    @abstractmethod
    def max(self) -> float:
        """Highest grid value."""

    @abstractmethod
    def round(self, z: Tensor) -> Tensor:
        """Nearest grid value of each element of float32 `z`, saturating; NaN stays NaN."""

    @abstractmethod
    def table(self) -> Tensor:
        """What every code means: float32 `[2**bits]`, NaN for codes without a value."""

    @abstractmethod
    def _code(self, grid_values: Tensor) -> Tensor:
        """Codes (int64) of values that `round` returned; NaN never comes here."""

    @property
    def unit(self) -> float | None:
        """The unit in which every value is an integer that int8 holds, so that integer kernels are exact; else None.

        1 for integers of at most 8 bits, mid-rise of at most 7, ternary and binary; 0.5 for E2M1 ({0, 1, 2, 3, 4, 6, 8,
        12} halves), 0.125 for E2M3. None for block formats, whose scales differ within a sum.
        """
        return 1.0 if self.bits <= 8 else None

    def values(self) -> Tensor:
        """The grid: all finite values, ascending, without repeats."""
        table = self.table()
        finite: Tensor = table[torch.isfinite(table)] + 0.0  # + 0.0 turns -0 into 0
        return torch.unique(finite, sorted=True)  # type: ignore[no-any-return]

    def encode(self, z: Tensor) -> Tensor:
        """Codes of `z`, rounded first: uint8 bit patterns (int32 for 16-bit formats).

        Raises:
            FormatError: `z` holds NaN and the format has no code for it.
        """
        q = self.round(z.float())
        nan = torch.isnan(q)
        codes = self._code(torch.where(nan, 0.0, q))
        if nan.any():
            codes[nan] = self._nan_code()
        return codes.to(torch.uint8 if self.bits <= 8 else torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """Float32 values of `codes`."""
        return self.table().to(codes.device)[codes.long()]

    def scale(self, amax: Tensor) -> Tensor:
        """Scales (shape of `amax`) that place the largest magnitudes `amax` on the end of the grid.

        Where it is 0 the scale is 1, or next to nothing on a grid without zero.
        """
        scale = amax / (self.max or -self.min)
        empty = 1.0 if self.holds_zero else _NEXT_TO_NOTHING
        return torch.where(scale > 0, scale, empty)  # a denormal amax can underflow to 0 too

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is on the grid."""
        return True

    def _nan_code(self) -> int:
        raise FormatError(f"format {self}: NaN has no code; remove NaN from the tensor before quantizing it")


@dataclass(frozen=True)
class Int(Format):
    """Integers: signed `-2**(b-1)..2**(b-1)-1`, unsigned `0..2**b-1`; `narrow` drops the lowest signed one.

    Codes are two's complement. A narrow grid is odd-symmetric.
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (*range(1, 9), 16):
            raise FormatError(f"Int({self.bits}): integers have 1 to 8 or 16 bits")
        if self.narrow and (not self.signed or self.bits == 1):
            raise FormatError(f"Int({self.bits}, signed={self.signed}): only signed ones of 2 bits up can be narrow")

    @property
    def min(self) -> float:
        """Lowest grid value."""
        return float(-(1 << (self.bits - 1)) + self.narrow) if self.signed else 0.0

    @property
    def max(self) -> float:
        """Highest grid value."""
        return float((1 << (self.bits - self.signed)) - 1)

    def round(self, z: Tensor) -> Tensor:
        """Nearest integer, ties to even, clamped to the grid."""
        return torch.round(z).clamp(self.min, self.max)

    def table(self) -> Tensor:
        """What every code means."""
        codes = torch.arange(1 << self.bits)
        values = torch.where(codes > self.max, codes - (1 << self.bits), codes) if self.signed else codes
        return torch.where(values < self.min, torch.nan, values.float())

    def _code(self, grid_values: Tensor) -> Tensor:
        return grid_values.long() & ((1 << self.bits) - 1)

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}{'-narrow' if self.narrow else ''}"


@dataclass(frozen=True)
class MidRise(Format):
    """Odd integers `-(2**b - 1), ..., -3, -1, 1, 3, ..., 2**b - 1`: 2**b uniform, symmetric levels without zero.

    The scale is half a step. Methods that train with few bits (DoReFa, EWGS) quantize weights so: two bits give
    {-3, -1, 1, 3}, of use all four, where two-bit integers are {-2, -1, 0, 1}. It is no format of activations, which
    have many zeros. The code is `(value - 1) / 2` in two's complement. Unlike elsewhere, all ties go up: `z` exactly on
    an even integer becomes `z + 1`.

    References:
        Gersho, Quantization, IEEE Communications Society Magazine 15(5), 1977 (the name: a step rises at zero).
        Zhou et al., DoReFa-Net, 2016, https://arxiv.org/abs/1606.06160, equation 9.
        Lee, Kim and Ham, Network quantization with element-wise gradient scaling, 2021,
        https://arxiv.org/abs/2104.00903, equations 1 to 3.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9):
            raise FormatError(f"MidRise({self.bits}): mid-rise formats have 1 to 8 bits")

    @property
    def min(self) -> float:
        """Lowest grid value."""
        return -self.max

    @property
    def max(self) -> float:
        """Highest grid value."""
        return float((1 << self.bits) - 1)

    @property
    def holds_zero(self) -> bool:
        """Never: that is what the name says."""
        return False

    @property
    def unit(self) -> float | None:
        """1 up to 7 bits; the values of 8 bits reach 255."""
        return 1.0 if self.max <= 127 else None

    def round(self, z: Tensor) -> Tensor:
        """Nearest odd integer, ties up, clamped to the grid."""
        return (torch.floor(z / 2) * 2 + 1).clamp(self.min, self.max)

    def table(self) -> Tensor:
        """What every code means."""
        codes = torch.arange(1 << self.bits)
        signed = torch.where(codes >= 1 << (self.bits - 1), codes - (1 << self.bits), codes)
        return (2 * signed + 1).float()

    def _code(self, grid_values: Tensor) -> Tensor:
        return ((grid_values.long() - 1) >> 1) & ((1 << self.bits) - 1)

    def __str__(self) -> str:
        return f"mid{self.bits}"


Specials = Literal["ieee", "fn", "fnuz", "finite"]


@dataclass(frozen=True)
class Float(Format):
    """Small floats `(-1)^s 2^(E-bias) (1 + m/2^M)`, subnormal below; `specials` says which codes are not numbers.

    ``ieee``: the highest exponent holds infinity and NaN. ``fn``: no infinity, NaN only in the all-ones code.
    ``fnuz``: no infinity, no -0, one NaN in the place of -0. ``finite``: every code is a number (FP6, FP4).
    The default is ``ieee`` from 8 bits up and ``finite`` below.
    """

    exponent: int
    mantissa: int
    bias: int = -1  # -1: the standard one, 2^(exponent-1) - 1, one more for fnuz
    specials: Specials | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.exponent <= 8 and 1 <= self.mantissa <= 10 and self.bits <= 16):
            raise FormatError(
                f"Float({self.exponent}, {self.mantissa}): floats have 1 to 8 exponent bits, 1 to 10 mantissa bits "
                "and at most 16 bits"
            )
        if self.specials is None:
            object.__setattr__(self, "specials", "ieee" if self.bits >= 8 else "finite")
        if self.bias == -1:
            object.__setattr__(self, "bias", self._standard_bias)
        if self.specials == "ieee" and self.exponent == 1:
            raise FormatError(f"Float(1, {self.mantissa}, specials='ieee'): no exponent is left for numbers; use 'fn'")
        if self.specials == "fn" and self.bits < 8:
            raise FormatError(f"{self}: below 8 bits fn means that every code is a number; use specials='finite'")
        if self.bias < 0 or self.max > torch.finfo(torch.float32).max or 1 - self.bias - self.mantissa < -149:
            raise FormatError(f"{self}: bias {self.bias} is negative or leads out of float32, 2^-149 to 2^128")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Sign, exponent and mantissa bits."""
        return 1 + self.exponent + self.mantissa

    @property
    def _standard_bias(self) -> int:
        return (1 << (self.exponent - 1)) - (self.specials != "fnuz")

    @property
    def max(self) -> float:
        """Largest finite value."""
        top = (1 << self.exponent) - 1 - (self.specials == "ieee")
        steps = (2 << self.mantissa) - 1 - (self.specials == "fn")  # significand in units of 2^-mantissa
        return float(steps * 2.0 ** (top - self.bias - self.mantissa))

    @property
    def min(self) -> float:
        """Lowest finite value."""
        return -self.max

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)): emax of the MX specification."""
        return int(np.frexp(self.max)[1]) - 1

    @property
    def unit(self) -> float | None:
        """The smallest value, if all others are at most 127 times as large."""
        smallest = 2.0 ** (1 - self.bias - self.mantissa)
        return smallest if self.max <= 127 * smallest else None

    def round(self, z: Tensor, saturate: bool = True) -> Tensor:
        """Nearest value, ties to even; beyond the grid its end, or with `saturate` off infinity or NaN."""
        magnitude = z.abs().clamp(max=min(2 * self.max, torch.finfo(torch.float32).max))
        exponent = (torch.frexp(magnitude).exponent - 1).clamp(min=1 - self.bias)
        step = torch.ldexp(torch.ones_like(magnitude), exponent - self.mantissa)
        q = torch.round(magnitude / step) * step
        if saturate:
            q = q.clamp(max=self.max)
        else:
            q = torch.where(q > self.max, torch.inf if self.specials == "ieee" else torch.nan, q)
        q = torch.copysign(q, z)
        return q + 0.0 if self.specials == "fnuz" else q  # fnuz has no -0

    def table(self) -> Tensor:
        """What every code means, -0, infinity and NaN included."""
        return _float_table(self)

    def _code(self, grid_values: Tensor) -> Tensor:
        positive = self.table()[: 1 << (self.bits - 1)].nan_to_num(nan=torch.inf, posinf=torch.inf)
        magnitude = torch.searchsorted(positive.to(grid_values.device), grid_values.abs().contiguous())
        return magnitude | (torch.signbit(grid_values).long() << (self.bits - 1))

    def _nan_code(self) -> int:
        match self.specials:
            case "ieee":  # infinity and the highest mantissa bit: a quiet NaN
                return (((2 << self.exponent) - 1) << self.mantissa) >> 1
            case "fn":
                return (1 << (self.bits - 1)) - 1
            case "fnuz":
                return 1 << (self.bits - 1)
        return super()._nan_code()

    def __str__(self) -> str:
        named = {(8, 7): "bf16", (5, 10): "fp16"}.get((self.exponent, self.mantissa))
        if named and self.specials == "ieee" and self.bias == self._standard_bias:
            return named
        suffix = {"ieee": "" if self.bits >= 8 else "ieee", "finite": "fn" if self.bits < 8 else "finite"}
        bias = "" if self.bias == self._standard_bias else f"b{self.bias}"
        return f"e{self.exponent}m{self.mantissa}{bias}{suffix.get(str(self.specials), self.specials)}"


@lru_cache(maxsize=64)
def _float_table(format: Float) -> Tensor:
    codes = torch.arange(1 << (format.bits - 1))
    exponent, mantissa = codes >> format.mantissa, codes & ((1 << format.mantissa) - 1)
    significand = mantissa + torch.where(exponent > 0, 1 << format.mantissa, 0)
    power = torch.clamp(exponent, min=1) - format.bias - format.mantissa
    positive = (significand.double() * torch.exp2(power.double())).float()
    if format.specials == "ieee":
        positive[exponent == (1 << format.exponent) - 1] = torch.nan
        positive[((1 << format.exponent) - 1) << format.mantissa] = torch.inf
    elif format.specials == "fn":
        positive[-1] = torch.nan
    negative = -positive
    if format.specials == "fnuz":
        negative[0] = torch.nan
    return torch.cat([positive, negative])


@dataclass(frozen=True)
class Ternary(Format):
    """{-1, 0, +1}: `sign(z)` where `|z| > threshold`, else 0; 0.5 is nearest rounding. Codes are 2-bit integers."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 - 2.0**-24:  # the last float32 below 1
            raise FormatError(f"Ternary({self.threshold}): the threshold lies in [0, 1), in units of the scale")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one code."""
        return 2

    @property
    def min(self) -> float:
        """Lowest grid value."""
        return -1.0

    @property
    def max(self) -> float:
        """Highest grid value."""
        return 1.0

    def round(self, z: Tensor) -> Tensor:
        """`sign(z)` beyond the threshold."""
        q = torch.where(z.abs() <= self.threshold, torch.zeros_like(z), torch.sign(z))
        return torch.where(torch.isnan(z), z, q)  # torch.sign(NaN) is 0

    def table(self) -> Tensor:
        """What every code means."""
        return torch.tensor([0.0, 1.0, torch.nan, -1.0])

    def _code(self, grid_values: Tensor) -> Tensor:
        return grid_values.long() & 3

    def __str__(self) -> str:
        return "ternary" if self.threshold == 0.5 else f"ternary:{self.threshold!r}"


@dataclass(frozen=True)
class Binary(Format):
    """{-1, +1} when signed (0 goes to +1), else {0, 1} (0.5 goes to 0). Code 1 is the higher value."""

    signed: bool = True

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one code."""
        return 1

    @property
    def min(self) -> float:
        """Lowest grid value."""
        return -1.0 if self.signed else 0.0

    @property
    def max(self) -> float:
        """Highest grid value."""
        return 1.0

    @property
    def holds_zero(self) -> bool:
        """Only {0, 1} does."""
        return not self.signed

    def round(self, z: Tensor) -> Tensor:
        """The nearer of the two values."""
        high = z >= 0 if self.signed else z > 0.5
        return torch.where(torch.isnan(z), z, torch.where(high, self.max, self.min))

    def table(self) -> Tensor:
        """What every code means."""
        return torch.tensor([self.min, self.max])

    def _code(self, grid_values: Tensor) -> Tensor:
        return (grid_values > 0).long()

    def __str__(self) -> str:
        return "binary" if self.signed else "binary01"


@dataclass(frozen=True)
class Block(Format):
    """A float format whose scale is shared by blocks of `size` elements and is itself low-bit.

    ``scale_format="e8m0"`` (MX): a power of two, 2^(floor(log2 amax) - emax), or with `round_up` the least one that
    does not saturate. ``"e4m3fn"`` (NVFP4): a positive E4M3 number times one float32 scale a tensor,
    amax / (element max x 448). `bits` are the element's; `bits_with_scale` adds the block scale's share.
    """

    element: Float
    size: int = 32
    scale_format: Literal["e8m0", "e4m3fn"] = "e8m0"
    round_up: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.size <= 4096 or (self.round_up and self.scale_format != "e8m0"):
            raise FormatError(f"Block of {self.size} {self.element}: 2 to 4096 elements; only MX scales can round up")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one element, without its share of the scale."""
        return self.element.bits

    @property
    def bits_with_scale(self) -> float:
        """Stored bits an element: 4.25 for MXFP4, 4.5 for NVFP4."""
        return self.element.bits + 8 / self.size

    @property
    def min(self) -> float:
        """Lowest element."""
        return self.element.min

    @property
    def max(self) -> float:
        """Highest element."""
        return self.element.max

    @property
    def unit(self) -> None:
        """None: the scales of the blocks in one sum differ."""

    def round(self, z: Tensor) -> Tensor:
        """Nearest element, saturating: `amax / scale` may reach 2^(emax+1), beyond the largest element."""
        return self.element.round(z)

    def table(self) -> Tensor:
        """What every element code means."""
        return self.element.table()

    def _code(self, grid_values: Tensor) -> Tensor:
        return self.element._code(grid_values)

    def _nan_code(self) -> int:
        return self.element._nan_code()

    def scale(self, amax: Tensor) -> Tensor:
        """Block scales as they are stored and decoded; never zero."""
        if self.scale_format == "e8m0":
            mantissa, exponent = torch.frexp(amax.double() / self.max if self.round_up else amax)
            # frexp's mantissa lies in [0.5, 1): floor(log2) is exponent - 1, ceil(log2) is exponent unless exactly 0.5
            power = exponent - (mantissa == 0.5).int() if self.round_up else exponent - 1 - self.element.max_exponent
            # the lowest E8M0 scale, 2^-127, is subnormal in float32; an all-zero block takes 1
            return torch.where(amax > 0, torch.exp2(power.double().clamp(-127, 127)).float(), 1.0)
        e4m3 = Float(4, 3, specials="fn")
        tensor_scale = (amax.max() if amax.numel() else amax.new_tensor(0.0)) / (self.max * e4m3.max)
        if tensor_scale == 0:
            return torch.ones_like(amax)
        tensor_scale = tensor_scale.clamp(min=2.0**-117)  # so that the least block scale stays normal in float32
        return e4m3.round(amax / (self.max * tensor_scale)).clamp(min=2.0**-9) * tensor_scale

    def __str__(self) -> str:
        if self.scale_format == "e4m3fn":
            return f"nv:{self.element}:{self.size}" if self != NVFP4 else "nvfp4"
        plain = replace(self, round_up=False)
        name = next((n for n, f in _NAMED.items() if f == plain), f"mx:{self.element}:{self.size}")
        return name + ("-up" if self.round_up else "")


NVFP4 = Block(Float(2, 1), 16, "e4m3fn")
_NAMED: dict[str, Format] = {
    "bf16": Float(8, 7),
    "fp16": Float(5, 10),
    "mxfp4": Block(Float(2, 1)),
    "mxfp6": Block(Float(2, 3)),
    "mxfp8": Block(Float(4, 3, specials="fn")),
    "nvfp4": NVFP4,
    **{f"mid{bits}": MidRise(bits) for bits in range(1, 9)},
    "ternary": Ternary(),
    "binary": Binary(),
    "binary01": Binary(signed=False),
}
EXAMPLES = (
    *("int8", "uint8", "int4", "int4-narrow", "int2", "int16", "mid2", "ternary", "binary", "binary01"),
    *("e4m3fn", "e5m2", "e4m3", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m4", "e3m2", "e2m3", "e2m1"),
    *("mxfp4", "mxfp6", "mxfp8", "nvfp4", "bf16", "fp16"),
)


def parse(name: str) -> Format:
    """The format called `name`; ``parse(str(format)) == format`` for every format.

    Integers ``int4``, ``uint8``, ``int4-narrow``; ``mid2`` ({-3,-1,1,3}); floats ``e4m3fn``, ``e5m2``, ``e4m3b11fnuz``,
    ``e2m1``; ``ternary``, ``ternary:0.7``; ``binary`` ({-1,+1}), ``binary01`` ({0,1}); blocks ``mxfp4``,
    ``mx:e3m2fn:32``, ``nvfp4``.

    Raises:
        FormatError: no format has that name; the message suggests one.
    """
    if named := _NAMED.get(name):
        return named
    if m := re.fullmatch(r"(u?)int(\d{1,2})(-narrow)?", name):
        return Int(int(m[2]), signed=not m[1], narrow=bool(m[3]))
    if m := re.fullmatch(r"e(\d)m(\d{1,2})(?:b(\d{1,3}))?(ieee|fn|fnuz|finite|)", name):
        bits = 1 + int(m[1]) + int(m[2])
        specials: Specials | None = "finite" if m[4] == "fn" and bits < 8 else m[4] or None  # type: ignore[assignment]
        return Float(int(m[1]), int(m[2]), int(m[3] or -1), specials)
    if m := re.fullmatch(r"ternary:(-?\d+(?:\.\d+)?(?:e-?\d+)?)", name):
        return Ternary(float(m[1]))
    if m := re.fullmatch(r"(mx|nv):(\w+):(\d{1,4})", name.removesuffix("-up")):
        element = parse(m[2])
        if isinstance(element, Float):
            return Block(element, int(m[3]), "e8m0" if m[1] == "mx" else "e4m3fn", name.endswith("-up"))
    block = _NAMED.get(name.removesuffix("-up"))
    if isinstance(block, Block):
        return replace(block, round_up=True)
    near = difflib.get_close_matches(name, EXAMPLES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise FormatError(f"unknown format {name!r}; {hint}known are for example {', '.join(EXAMPLES)}")


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of `bits` bits, end to end in bytes: uint8 `[ceil(n * bits / 8)]`, first code in the lowest bits (as ONNX).

    Raises:
        FormatError: a code does not fit `bits`, or `bits` is not 1 to 8 or 16.
    """
    if bits not in (*range(1, 9), 16):
        raise FormatError(f"pack: got {bits} bits a code, expected 1 to 8 or 16")
    flat = codes.detach().cpu().reshape(-1).numpy().astype(np.int64)
    if flat.size and (flat.min() < 0 or flat.max() >> bits):
        raise FormatError(f"pack: codes lie in {flat.min()}..{flat.max()}, {bits} bits hold 0..{(1 << bits) - 1}")
    as_bytes = flat.astype("<u2").view(np.uint8).reshape(-1, 2)
    stream = np.unpackbits(as_bytes, axis=1, bitorder="little")[:, :bits]
    return torch.from_numpy(np.packbits(stream.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of a packed byte stream: uint8 `[count]` (int32 for 16 bits).

    Raises:
        FormatError: the stream is shorter than `count` codes, or `bits` is not 1 to 8 or 16.
    """
    if bits not in (*range(1, 9), 16):
        raise FormatError(f"unpack: got {bits} bits a code, expected 1 to 8 or 16")
    data = packed.detach().cpu().numpy()
    if data.size * 8 < bits * count:
        raise FormatError(f"unpack: {count} codes of {bits} bits need {-(-bits * count // 8)} bytes, got {data.size}")
    stream = np.unpackbits(data, bitorder="little")[: bits * count].reshape(count, bits)
    if bits <= 8:
        return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").reshape(count))
    return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view("<u2").astype(np.int32).reshape(count))
