"""Formats against ml_dtypes, torch, ONNX and a brute-force nearest neighbor, bit for bit: no tolerance anywhere."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import onnx.numpy_helper
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit.errors import FormatError
from lowbit.formats import EXAMPLES, NVFP4, Binary, Block, Float, Format, Int, MidRise, Ternary, pack, parse, unpack

ML_FLOATS: dict[str, Any] = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m4": ml_dtypes.float8_e3m4,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}
TORCH_FLOATS = {
    "e5m2": torch.float8_e5m2,
    "e4m3fn": torch.float8_e4m3fn,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
ML_INTS: dict[str, Any] = {
    **{"int2": ml_dtypes.int2, "uint2": ml_dtypes.uint2, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4},
    **{"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16},
}
WITH_NAN = [name for name in ML_FLOATS if parse(name).bits >= 8]
INTS = [Int(b, signed, False) for b, signed in product((*range(1, 9), 16), (True, False))]
INTS += [Int(b, narrow=True) for b in (*range(2, 9), 16)]
MID_RISES = [MidRise(bits) for bits in range(1, 9)]
# beyond the named ones: no exponent range to speak of, infinity below 8 bits, odd biases, subnormals of float32
ODD_FLOATS = [Float(1, 1), Float(1, 4, specials="fnuz"), Float(2, 3, specials="ieee"), Float(4, 3, 0, "finite")]
ODD_FLOATS += [Float(3, 4, 5, "fn"), Float(8, 3, 128, "fn"), Float(4, 3, 145), Float(5, 2, 140, "fnuz")]
FORMATS = list(dict.fromkeys([*map(parse, EXAMPLES), *INTS, *MID_RISES, *ODD_FLOATS]))


def probes(format: Format) -> Tensor:
    """Where rounding can go wrong: the grid, its midpoints, their float32 neighbors, and every magnitude around it."""
    grid = format.values().double()
    near = torch.cat([grid, (grid[1:] + grid[:-1]) / 2]).float()
    far = torch.tensor([0.0, 2.0**-149, 2.0**-126, 1.0, 3e38, torch.finfo(torch.float32).max, torch.inf])
    generator = torch.Generator().manual_seed(0)
    low, high = grid.abs()[grid != 0].log2().min().item() - 4, math.log2(max(format.max, -format.min)) + 3
    magnitude = torch.exp2(torch.rand(4096, generator=generator) * (high - low) + low)
    random = torch.randn(4096, generator=generator) * magnitude
    infinity = torch.tensor(torch.inf)
    return torch.cat([near, near.nextafter(infinity), near.nextafter(-infinity), far, -far, random])


def same_bits(actual: Tensor, expected: Tensor | np.ndarray[Any, Any]) -> None:
    """Equal float32 bit patterns: 0 differs from -0; any NaN equals any NaN."""
    a, b = np.asarray(actual), np.asarray(expected)
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    number = ~np.isnan(a)
    np.testing.assert_array_equal(a[number].view(np.uint32), b[number].view(np.uint32))


def unsigned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bit patterns of an array of any one- or two-byte type."""
    return array.view(np.uint8 if array.itemsize == 1 else np.uint16)


def float_format(name: str) -> Float:
    format = parse(name)
    assert isinstance(format, Float)
    return format


# Floats against other libraries


@pytest.mark.parametrize("name", ML_FLOATS)
def test_float_table_equals_ml_dtypes(name: str) -> None:
    format = parse(name)
    codes = np.arange(1 << format.bits).astype(np.uint8 if format.bits <= 8 else np.uint16)
    same_bits(format.table(), codes.view(ML_FLOATS[name]).astype(np.float32))
    same_bits(format.decode(torch.from_numpy(codes.astype(np.int32))), format.table())


@pytest.mark.parametrize("name", ML_FLOATS)
def test_float_rounding_equals_ml_dtypes(name: str) -> None:
    format = parse(name)
    z = probes(format)
    expected = z.clamp(format.min, format.max).numpy().astype(ML_FLOATS[name])
    same_bits(format.round(z), expected.astype(np.float32))
    np.testing.assert_array_equal(format.encode(z), unsigned(expected))


@pytest.mark.parametrize("name", WITH_NAN)
def test_unsaturated_rounding_and_nan_equal_ml_dtypes(name: str) -> None:
    format = float_format(name)
    z = torch.cat([probes(format), torch.tensor([torch.nan])])
    with np.errstate(over="ignore"):  # numpy warns when float16 overflows
        same_bits(format.round(z, saturate=False), z.numpy().astype(ML_FLOATS[name]).astype(np.float32))
    np.testing.assert_array_equal(format.encode(z[-1:]), unsigned(z[-1:].numpy().astype(ML_FLOATS[name])))


@pytest.mark.parametrize("name", TORCH_FLOATS)
def test_float_rounding_equals_torch_in_range(name: str) -> None:
    format = parse(name)
    z = probes(format).clamp(format.min, format.max)
    expected = z.to(TORCH_FLOATS[name])
    same_bits(format.round(z), expected.float())
    np.testing.assert_array_equal(format.encode(z), expected.view(torch.uint8 if format.bits == 8 else torch.uint16))


@pytest.mark.parametrize(
    ("name", "z", "saturated", "unsaturated"),
    [
        ("e4m3fn", 464, 448, 448),  # the tie between 448 and the 480 that would come next
        ("e4m3fn", 465, 448, math.nan),
        ("e4m3fn", math.inf, 448, math.nan),
        ("e5m2", 61439, 57344, 57344),
        ("e5m2", 61440, 57344, math.inf),
        ("e5m2", -math.inf, -57344, -math.inf),
        ("e4m3", 247, 240, 240),
        ("e4m3", -248, -240, -math.inf),
        ("e4m3fnuz", 247, 240, 240),
        ("e4m3fnuz", 248, 240, math.nan),
        ("e5m2fnuz", 61440, 57344, math.nan),
        ("e2m1", 6.9, 6, 6),
        ("e2m1", 7, 6, math.nan),
        ("e3m2", 29, 28, 28),
        ("e3m2", -30, -28, math.nan),
        ("bf16", 3.4e38, 2.0**128 - 2.0**120, math.inf),
    ],
)
def test_overflow(name: str, z: float, saturated: float, unsaturated: float) -> None:
    format = float_format(name)
    same_bits(format.round(torch.tensor(z).float()), torch.tensor(saturated).float())
    same_bits(format.round(torch.tensor(z).float(), saturate=False), torch.tensor(unsaturated).float())


@pytest.mark.parametrize(
    ("name", "bias", "largest", "normal", "subnormal", "emax"),
    [
        ("e5m2", 15, 57344, 2**-14, 2**-16, 15),
        ("e4m3fn", 7, 448, 2**-6, 2**-9, 8),
        ("e4m3", 7, 240, 2**-6, 2**-9, 7),
        ("e4m3fnuz", 8, 240, 2**-7, 2**-10, 7),
        ("e5m2fnuz", 16, 57344, 2**-15, 2**-17, 15),
        ("e4m3b11fnuz", 11, 30, 2**-10, 2**-13, 4),
        ("e3m4", 3, 15.5, 0.25, 2**-6, 3),
        ("e3m2", 3, 28, 0.25, 0.0625, 4),
        ("e2m3", 1, 7.5, 1, 0.125, 2),
        ("e2m1", 1, 6, 1, 0.5, 2),
    ],
)
def test_float_limits(name: str, bias: int, largest: float, normal: float, subnormal: float, emax: int) -> None:
    format = float_format(name)
    assert (format.bias, format.min, format.max, format.max_exponent) == (bias, -largest, largest, emax)
    assert format.table()[[1 << format.mantissa, 1]].tolist() == [normal, subnormal]


# Every format against brute force, integers against other libraries


def nearest(format: Format, z: Tensor) -> Tensor:
    """The grid value nearest to each `z`, the one with the even code at a tie: from the table alone, in float64."""
    table = format.table().double().numpy()
    codes = np.flatnonzero(np.isfinite(table) & ~(np.signbit(table) & (table == 0)))
    codes = codes[table[codes].argsort()]
    grid, x = table[codes], z.double().numpy()
    above = np.searchsorted(grid, x).clip(1, len(grid) - 1)
    middle = (grid[above - 1] + grid[above]) / 2
    up = (x > middle) | ((x == middle) & (codes[above] % 2 == 0))
    return torch.from_numpy(np.where(up, grid[above], grid[above - 1])).float()


@pytest.mark.parametrize("format", [f for f in FORMATS if f != Binary() and not isinstance(f, MidRise)], ids=str)
def test_rounding_is_to_nearest_with_ties_to_the_even_code(format: Format) -> None:
    z = probes(format)
    assert torch.equal(format.round(z), nearest(format, z))
    assert torch.equal(format.decode(format.encode(z)), nearest(format, z))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_members_agree(format: Format) -> None:
    grid = format.values()
    assert [format.min, format.max] == grid[[0, -1]].tolist()
    assert format.table().shape == (1 << format.bits,)
    assert (grid.diff() > 0).all()
    same_bits(format.decode(format.encode(grid)), grid)


@pytest.mark.parametrize("name", ML_INTS)
def test_int_codes_equal_ml_dtypes(name: str) -> None:
    format = parse(name)
    z = probes(format)
    expected = np.rint(z.numpy()).clip(format.min, format.max).astype(ML_INTS[name])  # casts truncate and wrap
    np.testing.assert_array_equal(format.round(z), expected.astype(np.float32))
    np.testing.assert_array_equal(format.encode(z), unsigned(expected) & ((1 << format.bits) - 1))


@pytest.mark.parametrize(
    ("format", "grid"),
    [
        (Int(1), [-1, 0]),
        (Int(1, signed=False), [0, 1]),
        (Int(2), [-2, -1, 0, 1]),
        (Int(2, narrow=True), [-1, 0, 1]),
        (Int(3, narrow=True), [-3, -2, -1, 0, 1, 2, 3]),
        (MidRise(1), [-1, 1]),
        (MidRise(2), [-3, -1, 1, 3]),
        (MidRise(3), [-7, -5, -3, -1, 1, 3, 5, 7]),
        (Float(2, 1), [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        (Ternary(), [-1, 0, 1]),
        (Binary(), [-1, 1]),
        (Binary(signed=False), [0, 1]),
    ],
    ids=str,
)
def test_small_grids(format: Format, grid: list[float]) -> None:
    assert format.values().tolist() == grid


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.75])
def test_ternary(threshold: float) -> None:
    z = torch.tensor([-torch.inf, -1.0, -0.76, -0.51, -0.5, -0.2, -0.0, 0.0, 1e-45, 0.3, 0.5, 0.74, 0.75, 1.0, 9.0])
    expected = z.sign() * (z.abs() > threshold)
    assert torch.equal(Ternary(threshold).round(z), expected)
    assert torch.equal(Ternary(threshold).encode(z), (expected.int() & 3).byte())


def test_binary() -> None:
    z = torch.tensor([-torch.inf, -1e-45, -0.0, 0.0, 0.5, 0.5001, 7.0])
    assert Binary().round(z).tolist() == [-1, -1, 1, 1, 1, 1, 1]
    assert Binary().encode(z).tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert Binary(signed=False).round(z).tolist() == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("format", MID_RISES, ids=str)
def test_mid_rise_rounds_to_nearest_and_ties_up(format: MidRise) -> None:
    z = probes(format)
    z = z[(z >= 0) | (z < -(2.0**-126))]  # half a subnormal may be 0
    grid = format.values()
    above = torch.bucketize(z.double(), (grid[1:] + grid[:-1]).double() / 2, right=True)  # at a tie, the upper one
    assert torch.equal(format.round(z), grid[above])
    assert torch.equal(format.decode(format.encode(z)), grid[above])


@pytest.mark.parametrize("format", MID_RISES, ids=str)
def test_mid_rise_grid_and_codes(format: MidRise) -> None:
    """Odd integers, as far as 2^b - 1; the code is (value - 1) / 2 in two's complement."""
    grid = format.values()
    assert grid.tolist() == list(range(1 - 2**format.bits, 2**format.bits, 2))
    assert torch.equal(format.encode(grid).int(), ((grid - 1) / 2).int() & (2**format.bits - 1))
    assert format.unit == (1.0 if format.bits <= 7 else None)


def test_mid_rise_is_its_papers_quantizer() -> None:
    """DoReFa, equation 9, and EWGS quantize to `2 round((2^b - 1) (w + 1) / 2) / (2^b - 1) - 1` for w in [-1, 1]."""
    w = torch.rand(4096, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    for bits in range(1, 9):
        format = MidRise(bits)
        paper = 2 * ((w / 2 + 0.5) * format.max).round() / format.max - 1
        torch.testing.assert_close(format.round(w * format.max) / format.max, paper, rtol=0, atol=1e-12)


@pytest.mark.parametrize("format", [f for f in FORMATS if not isinstance(f, Block)], ids=str)
def test_scale_puts_amax_on_the_end_of_the_grid(format: Format) -> None:
    amax = torch.tensor([8.0, 0.0, 1e-45])  # the last underflows to a scale of 0 unless that is caught
    scale = format.scale(amax)
    assert scale[0] == amax[0] / max(format.max, -format.min if format.max == 0 else 0)
    assert scale[1] == (1 if format.holds_zero else 2.0**-20)
    assert (scale > 0).all()


# Block formats

MX = [Block(Float(2, 1)), Block(Float(2, 3)), Block(Float(3, 2)), Block(Float(4, 3, specials="fn")), Block(Float(5, 2))]
POWERS = torch.exp2(torch.arange(-149, 128).double()).float()
AMAX = torch.cat([POWERS, POWERS.nextafter(torch.tensor(0.0))[1:], POWERS[:-1] * 1.5, POWERS[:-1] * 1.875])


@pytest.mark.parametrize("format", MX, ids=str)
def test_mx_scale_is_the_formula(format: Block) -> None:
    emax = math.floor(math.log2(format.max))
    expected = [2.0 ** max(math.floor(math.log2(a)) - emax, -127) for a in AMAX.tolist()]
    assert format.scale(AMAX).tolist() == expected
    assert format.scale(AMAX[:10].reshape(2, 5)).shape == (2, 5)


@pytest.mark.parametrize("format", MX, ids=str)
def test_mx_elements_saturate_beyond_the_largest(format: Block) -> None:
    amax = AMAX[AMAX >= 2.0**-100]
    z = amax / format.scale(amax)
    assert z.min() >= 2.0**format.element.max_exponent
    assert z.max() < 2.0 ** (format.element.max_exponent + 1)
    assert z.max() > format.max
    assert format.round(z).max() == format.max


@pytest.mark.parametrize("format", MX, ids=str)
def test_rounded_up_mx_scale_is_the_least_that_does_not_saturate(format: Block) -> None:
    ends = (format.max * POWERS.double())[POWERS.log2() < 100].float()
    infinity = torch.tensor(torch.inf)
    amax = torch.cat([AMAX, ends, ends.nextafter(infinity), ends.nextafter(-infinity)]).double()
    scale = Block(format.element, round_up=True).scale(amax.float()).double()
    assert (amax <= scale * format.max).all()
    assert ((amax > scale / 2 * format.max) | (scale == 2.0**-127)).all()


@pytest.mark.parametrize("round_up", [False, True])
@pytest.mark.parametrize("format", MX, ids=str)
def test_mx_scales_are_e8m0(format: Block, round_up: bool) -> None:
    scale = Block(format.element, round_up=round_up).scale(AMAX)
    same_bits(scale, scale.numpy().astype(ml_dtypes.float8_e8m0fnu).astype(np.float32))


def test_nvfp4_scale_has_two_levels() -> None:
    amax = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) * torch.exp2(-torch.arange(8))
    amax[0, 0] = 0
    tensor_scale = amax.max() / (6 * 448)
    block_scale = (amax / (6 * tensor_scale)).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    block_scale[0, 0] = 2.0**-9  # the least one, for a block of zeros
    scale = NVFP4.scale(amax)
    same_bits(scale, torch.from_numpy(block_scale) * tensor_scale)
    assert scale.max() == 448 * tensor_scale


@pytest.mark.parametrize("format", [*MX, Block(Float(2, 1), round_up=True), NVFP4], ids=str)
@pytest.mark.parametrize("amax", [[0.0, 0.0], [0.0, 3.0], [1e-45, 0.0], [1e-40, 0.0], [1e-37, 0.0], []], ids=str)
def test_block_scales_are_positive(format: Block, amax: list[float]) -> None:
    scale = format.scale(torch.tensor(amax))
    assert len(scale) == len(amax)
    assert (scale > 0).all()
    assert scale.isfinite().all()


@pytest.mark.parametrize(
    ("name", "bits"), [("mxfp4", 4.25), ("mxfp6", 6.25), ("mxfp8", 8.25), ("nvfp4", 4.5), ("mx:e2m1:16", 4.5)]
)
def test_bits_with_scale(name: str, bits: float) -> None:
    format = parse(name)
    assert isinstance(format, Block)
    assert format.bits_with_scale == bits
    assert format.bits == int(bits)


# Names

FORMAT_NAMES = {
    "int4": Int(4),
    "uint8": Int(8, signed=False),
    "int4-narrow": Int(4, narrow=True),
    "e4m3fn": Float(4, 3, specials="fn"),
    "e4m3b11fnuz": Float(4, 3, 11, "fnuz"),
    "e2m1fn": Float(2, 1, specials="finite"),
    "bf16": Float(8, 7),
    "fp16": Float(5, 10),
    "mid1": MidRise(1),
    "mid2": MidRise(2),
    "mid8": MidRise(8),
    "ternary": Ternary(),
    "ternary:0.7": Ternary(0.7),
    "binary": Binary(),
    "binary01": Binary(signed=False),
    "mxfp8": Block(Float(4, 3, specials="fn")),
    "mxfp4-up": Block(Float(2, 1), round_up=True),
    "mx:e3m2fn:32": Block(Float(3, 2)),
    "nvfp4": Block(Float(2, 1), 16, "e4m3fn"),
    "nv:e2m3fn:16": Block(Float(2, 3), 16, "e4m3fn"),
}


@pytest.mark.parametrize(("name", "format"), FORMAT_NAMES.items())
def test_names(name: str, format: Format) -> None:
    assert parse(name) == format
    assert str(format) == name


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_round_trip(name: str) -> None:
    assert parse(str(parse(name))) == parse(name)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("itn4", "int4"),
        ("mxfp5", "mxfp"),
        ("nvfp", "nvfp4"),
        ("e4m3fnu", "e4m3fnuz"),
        ("ternery", "ternary"),
        ("mid9", "mid2"),
    ],
)
def test_unknown_name_suggests_one(name: str, suggestion: str) -> None:
    with pytest.raises(FormatError, match=f"unknown format '{name}'; did you mean '{suggestion}"):
        parse(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "float",
            "INT4",
            "int",
            "int4 ",
            "int0",
            "int9",
            "int12",
            "int17",
            "int1-narrow",
            "uint4-narrow",
            "int4-up",
        ),
        *("mid", "mid0", "mid9", "mid16", "umid2", "mid2-narrow"),
        *("e0m3", "e4m0", "e9m2", "e8m10", "e1m6", "e4m3b200", "e8m3fn", "e4m3xyz", "ternary:", "ternary:1.2.3"),
        *(
            "ternary:1.5",
            "ternary:-0.1",
            "mx:int4:32",
            "mx:mxfp4:32",
            "mx:e2m1:1",
            "mx:e2m1:9999",
            "nvfp4-up",
            "nv:e2m1:0",
        ),
    ],
)
def test_nonsense_names_raise(name: str) -> None:
    with pytest.raises(FormatError):
        parse(name)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        *((Int, (bits,)) for bits in (0, -1, 9, 15, 17, 32)),
        *((Int, arguments) for arguments in ((4, False, True), (1, True, True))),
        *((MidRise, (bits,)) for bits in (0, -1, 9, 16)),
        *((Float, size) for size in ((0, 3), (4, 0), (9, 2), (2, 11), (8, 8), (-1, 4))),
        *((Float, (4, 3, bias)) for bias in (-2, 148, 999)),  # out of float32
        *((Float, (1, 6, -1, "ieee")), (Float, (2, 1, -1, "fn")), (Float, (8, 2, -1, "finite"))),
        *((Ternary, (threshold,)) for threshold in (-0.1, 1.0, 1 - 1e-9, math.nan)),
        *((Block, (Float(2, 1), size)) for size in (0, 1, -32, 4097)),
        (Block, (Float(2, 1), 16, "e4m3fn", True)),
    ],
)
def test_nonsense_sizes_raise(make: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(FormatError):
        make(*arguments)


# Properties of every format

properties = settings(deadline=None, derandomize=True, max_examples=60)
numbers = st.lists(st.floats(width=32, allow_nan=False) | st.floats(-9, 9, width=32), min_size=1, max_size=20)
tensors = numbers.map(lambda values: torch.tensor(values, dtype=torch.float32))


@st.composite
def floats(draw: st.DrawFn) -> Float:
    exponent, mantissa = draw(st.integers(1, 8)), draw(st.integers(1, 10))
    bias = draw(st.just(-1) | st.integers(0, 150))
    specials = draw(st.sampled_from(["ieee", "fn", "fnuz", "finite", None]))
    try:
        return Float(exponent, mantissa, bias, specials)  # type: ignore[arg-type]
    except FormatError:
        reject()


blocks = st.builds(Block, floats(), st.integers(2, 4096), st.just("e8m0"), st.booleans())
blocks |= st.builds(Block, floats(), st.integers(2, 4096), st.just("e4m3fn"))
thresholds = st.floats(0, 1 - 2.0**-24)
formats: st.SearchStrategy[Format] = st.one_of(
    st.sampled_from([*INTS, *MID_RISES]),
    floats(),
    st.builds(Ternary, thresholds),
    st.builds(Binary, st.booleans()),
    blocks,
)


@properties
@given(formats)
def test_any_format_has_a_name(format: Format) -> None:
    assert parse(str(format)) == format
    assert hash(parse(str(format))) == hash(format)


@properties
@given(formats, tensors)
def test_rounding_lands_on_the_grid_and_stays(format: Format, z: Tensor) -> None:
    q = format.round(z)
    assert torch.isin(q, format.values()).all()
    same_bits(format.round(q), q)


@properties
@given(formats, tensors)
def test_rounding_is_monotone(format: Format, z: Tensor) -> None:
    assert (format.round(z.sort().values).diff() >= 0).all()


@properties
@given(formats.filter(lambda f: f.min == -f.max), tensors)
def test_rounding_is_odd_on_symmetric_grids(format: Format, z: Tensor) -> None:
    if isinstance(format, Binary):  # which has no 0
        z = z[z != 0]
    if isinstance(format, MidRise):  # whose ties go up, subnormals among them: half of one may be 0
        z = z[(z % 2 != 0) & (z.abs() >= 2.0**-126)]
    assert torch.equal(format.round(-z), -format.round(z))


@properties
@given(formats, tensors)
def test_codes_stand_for_the_rounded_values(format: Format, z: Tensor) -> None:
    codes = format.encode(z)
    assert codes.dtype == (torch.uint8 if format.bits <= 8 else torch.int32)
    assert codes.max() <= (1 << format.bits) - 1
    assert torch.equal(format.decode(codes), format.round(z))
    if isinstance(format, Float | Block):
        same_bits(format.decode(codes), format.round(z))  # -0 has a code of its own


@properties
@given(floats(), st.integers(0, 300), st.integers(0, 300), st.floats(1, 2, exclude_max=True, width=32))
def test_float_rounding_commutes_with_powers_of_two(format: Float, low: int, shift: int, significand: float) -> None:
    least, top = max(1 - format.bias, -126), format.max_exponent - 1  # normal numbers whose rounding cannot overflow
    if least > top:
        reject()
    low = least + low % (top - least + 1)
    high = low + shift % (top - low + 1)
    z = torch.tensor([significand, -significand]).double()
    q_low, q_high = (format.round((z * 2.0**e).float()).double() / 2.0**e for e in (low, high))
    assert torch.equal(q_low, q_high)


@properties
@given(formats, tensors)
def test_nan_stays_nan_or_is_refused(format: Format, z: Tensor) -> None:
    with_nan = torch.cat([z, torch.tensor([torch.nan])])
    same_bits(format.round(with_nan), torch.cat([format.round(z), with_nan[-1:]]))
    element = format.element if isinstance(format, Block) else format
    if isinstance(element, Float) and element.specials != "finite":
        same_bits(format.decode(format.encode(with_nan)), format.round(with_nan))
    else:
        with pytest.raises(FormatError, match=f"format {element}: NaN has no code"):
            format.encode(with_nan)


# Packing


@pytest.mark.parametrize("count", [0, 1, 2, 7, 33, 1000])
@pytest.mark.parametrize("bits", [*range(1, 9), 16])
def test_unpack_undoes_pack(bits: int, count: int) -> None:
    codes = torch.randint(1 << bits, (count,), generator=torch.Generator().manual_seed(bits))
    codes = codes.to(torch.uint8 if bits <= 8 else torch.int32)
    packed = pack(codes, bits)
    assert (packed.dtype, packed.shape) == (torch.uint8, (math.ceil(count * bits / 8),))
    unpacked = unpack(packed, bits, count)
    assert unpacked.dtype == codes.dtype
    assert torch.equal(unpacked, codes)


@pytest.mark.parametrize("name", [*ML_INTS, "e2m1fn", "e2m3fn", "e3m2fn", "e4m3fn", "e5m2", "bf16"])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4)])
def test_packed_bytes_are_those_of_onnx(name: str, shape: tuple[int, ...]) -> None:
    format = parse(name)
    z = format.round(torch.randn(shape, generator=torch.Generator().manual_seed(0)) * min(format.max, 1e3))
    tensor = onnx.numpy_helper.from_array(z.numpy().astype({**ML_FLOATS, **ML_INTS}[name]))
    assert pack(format.encode(z), format.bits).numpy().tobytes() == tensor.raw_data


def test_first_code_takes_the_lowest_bits() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([0b101, 0b011, 0b110]), 3).tolist() == [0b10_011_101, 0b1]


@pytest.mark.parametrize(("code", "bits"), [(2, 1), (16, 4), (-1, 4), (256, 8), (1 << 16, 16)])
def test_pack_refuses_codes_that_do_not_fit(code: int, bits: int) -> None:
    with pytest.raises(FormatError, match=f"{bits} bits hold 0..{(1 << bits) - 1}"):
        pack(torch.tensor([0, code]), bits)


@pytest.mark.parametrize("bits", [0, 9, 12, 32])
def test_packing_refuses_other_widths(bits: int) -> None:
    with pytest.raises(FormatError, match=f"got {bits} bits"):
        pack(torch.tensor([0]), bits)
    with pytest.raises(FormatError, match=f"got {bits} bits"):
        unpack(torch.zeros(64, dtype=torch.uint8), bits, 2)


@pytest.mark.parametrize(("bits", "count", "size"), [(4, 5, 2), (3, 3, 1), (8, 1, 0), (16, 2, 3)])
def test_unpack_refuses_a_short_stream(bits: int, count: int, size: int) -> None:
    with pytest.raises(FormatError, match=f"need {math.ceil(bits * count / 8)} bytes, got {size}"):
        unpack(torch.zeros(size, dtype=torch.uint8), bits, count)
