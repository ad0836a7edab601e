"""Quantizers and frozen codes: exact round trips, and states that survive saving, copying and loading."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from lowbit.errors import CalibrationError
from lowbit.formats import Block, Int, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.quantizer import Codes, Quantizer
from lowbit.scales import Histogram

INTEGER = [
    "int8",
    "int8-narrow",
    "int4",
    "int3",
    "int2",
    "int2-narrow",
    "ternary",
    "ternary:0.7",
    "binary",
    "mid2",
    "mid3",
    "mid7",
    "e2m1",
    "e2m3",
]
OTHER = ["int16", "mid8", "e4m3fn", "e5m2", "e4m3fnuz", "e3m4", "e3m2", "bf16", "fp16"]
BLOCKS = ["mxfp4", "mxfp6", "mxfp8", "nvfp4", "mx:e2m1fn:8-up"]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(12), PerGroup(5, ragged=True)]


def weight_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def frozen(
    name: str, granularity: Granularity | None = None, shape: tuple[int, ...] = (6, 4, 3, 3)
) -> tuple[Quantizer, Codes]:
    weight = weight_of(*shape)
    quantizer = Quantizer(parse(name), weight.shape, granularity=granularity, symmetric=True)
    quantizer.fit_weight(weight)
    return quantizer, Codes(weight, quantizer)


def calibrated(name: str = "int8") -> Quantizer:
    quantizer = Quantizer(parse(name), name="conv")
    quantizer.histogram = Histogram()
    quantizer(weight_of(100) + 1)
    quantizer.fit_histogram()
    return quantizer


# Codes


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", [*INTEGER, *OTHER])
def test_codes_stand_for_exactly_the_fake_quantized_weight(name: str, granularity: Granularity) -> None:
    quantizer, codes = frozen(name, granularity)
    assert torch.equal(codes(), quantizer(weight_of(6, 4, 3, 3)))


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 64), (3, 33), (2, 1)], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_block_codes_stand_for_exactly_the_fake_quantized_weight(name: str, shape: tuple[int, ...]) -> None:
    quantizer, codes = frozen(name, shape=shape)
    assert isinstance(quantizer.format, Block)
    assert quantizer.granularity == PerGroup(quantizer.format.size, ragged=True)
    assert torch.equal(codes(), quantizer(weight_of(*shape)))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)], ids=str)
@pytest.mark.parametrize("name", INTEGER)
def test_integers_times_their_scale_are_the_weight(name: str, granularity: Granularity) -> None:
    _, codes = frozen(name, granularity)
    integers = codes.integers()
    assert torch.equal(integers, integers.round())
    assert integers.abs().max() <= 128
    assert torch.equal(integers * granularity.spread(codes.integer_scale, codes.shape), codes())


@pytest.mark.parametrize(
    ("name", "size"), [("int8", 216), ("int4", 108), ("int3", 81), ("mid2", 54), ("ternary", 54), ("binary", 27)]
)
def test_codes_are_packed(name: str, size: int) -> None:
    _, codes = frozen(name)
    assert codes.packed.dtype == torch.uint8
    assert codes.packed.numel() == size  # 216 weights
    assert set(codes.state_dict()) == {"packed", "scale"}


def test_codes_load_and_copy() -> None:
    _, codes = frozen("int4")
    _, other = frozen("int4")
    other.packed.zero_()
    other.load_state_dict(codes.state_dict())
    for twin in (other, copy.deepcopy(codes), pickle.loads(pickle.dumps(codes))):  # noqa: S301
        assert torch.equal(twin(), codes())


# Quantizers


def test_an_uncalibrated_quantizer_says_what_to_do() -> None:
    with pytest.raises(CalibrationError, match=r"'conv' have no scale yet; call calibrate\(student, batches\)"):
        Quantizer(Int(8), name="conv")(torch.ones(2))


def test_a_quantizer_that_saw_nothing_keeps_its_state() -> None:
    quantizer = calibrated()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.histogram = Histogram()
    with pytest.raises(CalibrationError, match="'conv' saw no data"):
        quantizer.fit_histogram()
    assert quantizer.histogram is None
    assert all(torch.equal(quantizer.state_dict()[k], v) for k, v in before.items())


def test_watching_passes_the_input_through() -> None:
    quantizer, x = Quantizer(Int(2), name="conv"), weight_of(10)
    quantizer.histogram = Histogram()
    assert quantizer(x) is x
    assert quantizer.histogram.seen == 10
    with pytest.raises(CalibrationError, match="activations 'conv': saw NaN"):
        quantizer(torch.tensor([torch.nan]))


@pytest.mark.parametrize("name", ["int8", "uint4", "int16"])
def test_calibrated_affine_integers_keep_zero_and_the_range(name: str) -> None:
    quantizer, x = calibrated(name), weight_of(100) + 1
    assert quantizer.ready
    assert quantizer.zero_point is not None
    y = quantizer(torch.cat([x, torch.zeros(1)]))
    assert y[-1] == 0
    assert (y[:-1] - x).abs().max() < 3 * quantizer.scale


@pytest.mark.parametrize("name", ["e4m3fn", "ternary", "bf16"])
def test_only_integers_have_a_zero_point(name: str) -> None:
    assert calibrated(name).zero_point is None
    assert Quantizer(Int(8), symmetric=True).zero_point is None


@pytest.mark.parametrize("x", [torch.arange(3), torch.tensor([True, False])], ids=["integer", "boolean"])
def test_tensors_without_fractions_pass(x: Tensor) -> None:
    assert calibrated("int2")(x) is x


def test_a_loaded_state_makes_ready_and_a_loaded_blank_unready() -> None:
    source, quantizer, x = calibrated(), Quantizer(Int(8), name="conv"), weight_of(10)
    blank = copy.deepcopy(quantizer.state_dict())
    assert not quantizer.ready
    quantizer.load_state_dict(source.state_dict())
    assert torch.equal(quantizer(x), source(x))
    quantizer.load_state_dict(blank)
    with pytest.raises(CalibrationError, match="no scale yet"):
        quantizer(x)


@pytest.mark.parametrize("name", ["int8", "e4m3fn", "ternary"])
def test_pickle_and_deepcopy(name: str) -> None:
    quantizer, x = calibrated(name), weight_of(10)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):  # noqa: S301
        assert torch.equal(twin(x), quantizer(x))
        assert twin.scale is not quantizer.scale
        assert (twin.format, twin.granularity) == (quantizer.format, quantizer.granularity)


def test_the_scale_learns_only_when_asked() -> None:
    quantizer, x = calibrated(), weight_of(10)
    assert not quantizer(x).requires_grad
    quantizer.scale.requires_grad_(True)
    quantizer(x).sum().backward()
    assert quantizer.scale.grad is not None


def test_print_tells_format_and_granularity() -> None:
    quantizer, codes = frozen("int4", PerGroup(12))
    assert "int4, per group:12" in str(quantizer)
    assert "int4, per group:12, [6, 4, 3, 3]" in str(codes)
