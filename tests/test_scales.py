"""Scales against brute force, and the streaming histogram against the same data seen at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit import ops
from lowbit.errors import CalibrationError
from lowbit.formats import Block, Format, Int, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.scales import Histogram, ScaleRule, WeightRule, affine, weight_scale

WEIGHT_FORMATS = ["int8", "int4", "int4-narrow", "int2", "ternary", "ternary:0.7", "binary", "e4m3fn", "e2m1", "e5m2"]
WEIGHT_FORMATS += ["mid1", "mid2", "mid4"]
ACTIVATION_FORMATS = ["int8", "uint8", "int4", "uint4", "int2", "int16", "e4m3fn", "e5m2", "ternary"]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(16), PerGroup(10, ragged=True)]
RULES: list[WeightRule] = ["absmax", "mse", "percentile"]


def sample(kind: str, count: int = 4096, seed: int = 0) -> Tensor:
    """Data of one shape of distribution."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, generator=generator)
    return {
        "normal": normal,
        "heavy": normal**3,
        "relu": normal.relu(),
        "negative": -normal.abs() - 0.5,
        "shifted": normal * 0.1 + 3,
        "bimodal": torch.where(normal > 0, normal + 5, normal - 1),
        "outlier": torch.cat([normal[1:], torch.tensor([1e6])]),
        "sparse": torch.where(normal.abs() > 2, normal, 0.0),
    }[kind]


KINDS = ["normal", "heavy", "relu", "negative", "shifted", "bimodal", "outlier", "sparse"]


# Weights


def errors(weight: Tensor, scale: Tensor, format: Format, granularity: Granularity) -> Tensor:
    """Summed squared error of each block."""
    difference = ops.fake_quantize(weight, scale, None, format, granularity) - weight
    return granularity.rows(difference.double() ** 2).sum(1)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "heavy", "bimodal", "sparse"])
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_mse_is_never_worse_than_absmax(name: str, kind: str, granularity: Granularity) -> None:
    format, weight = parse(name), sample(kind, 32 * 32).reshape(32, 8, 2, 2)
    least = errors(weight, weight_scale(weight, format, granularity, "mse"), format, granularity)
    absmax = errors(weight, weight_scale(weight, format, granularity, "absmax"), format, granularity)
    assert (least <= absmax * (1 + 1e-5)).all()  # sums of float32 and float64


@pytest.mark.parametrize("kind", ["normal", "heavy", "bimodal", "sparse"])
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_mse_is_close_to_a_brute_force_scan(name: str, kind: str) -> None:
    format, weight = parse(name), sample(kind, 4096).reshape(1, -1)
    amax = weight.abs().max() / format.max
    scan = [errors(weight, amax * f, format, PerTensor()).item() for f in torch.linspace(0.02, 2.1, 400)]
    least = errors(weight, weight_scale(weight, format, PerTensor()), format, PerTensor()).item()
    assert least <= 1.1 * min(scan)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_absmax_puts_the_largest_magnitude_of_each_block_on_the_end_of_the_grid(granularity: Granularity) -> None:
    weight = sample("heavy", 32 * 32).reshape(32, 8, 2, 2)
    scale = weight_scale(weight, Int(8), granularity, "absmax")
    assert scale.shape == granularity.scale_shape(weight.shape)
    torch.testing.assert_close(scale.flatten() * 127, granularity.rows(weight).abs().amax(1))


def test_least_squares_finds_the_textbook_scales() -> None:
    """Binary: mean |x|, whatever the outlier. A grid times a scale is found exactly."""
    weight = torch.cat([sample("normal"), torch.tensor([1e3])])
    torch.testing.assert_close(weight_scale(weight, parse("binary"), PerTensor()), weight.abs().mean())
    torch.testing.assert_close(weight_scale(weight, parse("mid1"), PerTensor()), weight.abs().mean())
    grid = torch.arange(-7.0, 8) * 0.3
    torch.testing.assert_close(weight_scale(grid, Int(4), PerTensor()), torch.tensor(0.3))
    torch.testing.assert_close(weight_scale(grid[::2], parse("mid3"), PerTensor()), torch.tensor(0.3))


def test_a_ragged_end_does_not_bend_the_scale() -> None:
    weight = sample("normal", 48).reshape(4, 12)
    scale = weight_scale(weight, parse("binary"), PerGroup(8, ragged=True))
    torch.testing.assert_close(scale[:, 1], weight[:, 8:].abs().mean(1))


def test_percentile_leaves_outliers_out() -> None:
    weight = torch.linspace(-1, 1, 100_001)
    weight[:5] = 1e3  # fewer than 1 in 10,000
    assert weight_scale(weight, Int(8), PerTensor(), "percentile") * 127 == pytest.approx(1.0, abs=1e-3)
    assert weight_scale(torch.ones(100_000).index_fill(0, torch.tensor([3]), 9.0), Int(8), PerTensor(), "absmax") > 0.07


def test_percentile_takes_tensors_of_any_size_and_sparsity() -> None:
    huge = torch.ones(1).expand(2**24 + 1)  # torch.quantile stops at 2^24
    assert weight_scale(huge, Int(8), PerTensor(), "percentile") == pytest.approx(1 / 127)
    single = torch.zeros(20_001)
    single[7] = 0.5
    assert weight_scale(single, Int(8), PerTensor(), "percentile") == pytest.approx(0.5 / 127)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*WEIGHT_FORMATS, "mxfp4", "nvfp4"])
def test_zero_blocks_get_a_usable_scale(name: str, rule: WeightRule) -> None:
    format = parse(name)
    granularity = PerGroup(format.size, ragged=True) if isinstance(format, Block) else PerChannel(0)
    weight = torch.zeros(3, 40)
    weight[1] = sample("normal", 40)
    scale = weight_scale(weight, format, granularity, rule)
    assert (scale.isfinite() & (scale > 0)).all()


@pytest.mark.parametrize("rule", RULES)
def test_block_formats_bring_their_own_scales(rule: WeightRule) -> None:
    weight, format = sample("normal", 4 * 64).reshape(4, 64), parse("mxfp4")
    granularity = PerGroup(32, ragged=True)
    expected = format.scale(granularity.rows(weight).abs().amax(1)).reshape(4, 2)
    assert torch.equal(weight_scale(weight, format, granularity, rule), expected)


# Activations: the histogram


def watched(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    """Bit for bit."""
    return (a.limit, a.low, a.high, a.seen) == (b.limit, b.low, b.high, b.seen) and torch.equal(a.counts, b.counts)


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_batch_size_do_not_matter(kind: str) -> None:
    x = sample(kind, 20_000)
    at_once = watched(x)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    assert same(watched(*torch.split(shuffled, 977)), at_once)
    assert same(watched(*torch.split(x.sort().values, 64)), at_once)
    assert same(watched(x.reshape(4, 5, -1)), at_once)


def test_size_stays_the_same_and_nothing_is_lost() -> None:
    histogram = Histogram()
    bins = histogram.counts.numel()
    for exponent in range(-20, 40):
        histogram.update(sample("normal", 100, exponent) * 2.0**exponent)
    assert histogram.counts.numel() == bins
    assert histogram.counts.sum() == histogram.seen == 6000


def test_doubling_is_exact() -> None:
    """The bins of a range that grew are those of one that had its final size from the start."""
    x = sample("normal", 50_000)
    end = torch.tensor([300.0])
    grown = watched(x * 1e-3, x * 0.1, x, end)
    assert same(grown, watched(end, x, x * 0.1, x * 1e-3))
    edges = torch.linspace(-grown.limit, grown.limit, grown.counts.numel() + 1, dtype=torch.float64)
    everything = torch.cat([x * 1e-3, x * 0.1, x, end]).double()
    expected = torch.bincount(torch.bucketize(everything, edges, right=True) - 1, minlength=grown.counts.numel())
    assert torch.equal(grown.counts, expected.double())


@pytest.mark.parametrize("value", [1e-45, 1e-30, 0.5, 1.0, 3e38])
def test_any_magnitude_is_counted(value: float) -> None:
    histogram = watched(torch.tensor([value, -value, 0.0]))
    assert histogram.counts.sum() == 3
    assert histogram.limit >= value
    for rule in RULES:
        low, high = histogram.bounds(rule, Int(8), False)
        scale, zero_point = affine(torch.tensor(low), torch.tensor(high), Int(8), False)
        assert zero_point is not None
        assert scale.isfinite()
        assert scale > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_errors(bad: float) -> None:
    histogram = watched(torch.ones(3))
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        histogram.update(torch.tensor([1.0, bad, 2.0]))
    assert same(histogram, watched(torch.ones(3)))


def test_empty_batches_count_for_nothing() -> None:
    assert same(watched(torch.ones(3), torch.ones(0, 4)), watched(torch.ones(3)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ACTIVATION_FORMATS)
@pytest.mark.parametrize("value", [0.0, 3.0, -0.2])
def test_constant_data_is_met_closely(name: str, rule: ScaleRule, value: float) -> None:
    format, x = parse(name), torch.full((100,), value)
    if value < 0 and name == "ternary":
        value = abs(value)  # a symmetric grid
    low, high = watched(x).bounds(rule, format, not isinstance(format, Int))
    assert low <= 0 <= high
    scale, zero_point = affine(torch.tensor(low), torch.tensor(high), format, False)
    y = ops.fake_quantize(x, scale, zero_point, format, PerTensor())
    torch.testing.assert_close(y, x, rtol=2e-3, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_lie_within_the_data_and_contain_zero(kind: str, rule: ScaleRule) -> None:
    x = sample(kind)
    for symmetric in (False, True):
        low, high = watched(x).bounds(rule, Int(8), symmetric)
        assert low <= 0 <= high
        assert max(-low, high) <= float(x.abs().max())
        if not symmetric:
            assert min(float(x.min()), 0.0) <= low
            assert high <= max(float(x.max()), 0.0)


def test_one_sided_data_waste_no_codes() -> None:
    for kind, end in (("relu", 0), ("negative", 1)):
        for rule in RULES:
            assert watched(sample(kind)).bounds(rule, Int(8), False)[end] == 0


def test_absmax_is_exact() -> None:
    x = sample("shifted")
    assert watched(*torch.split(x, 100)).bounds("absmax", Int(8), False) == (0.0, float(x.max()))


@pytest.mark.parametrize("kind", ["normal", "heavy", "relu", "bimodal", "shifted"])
def test_percentile_equals_that_of_the_sorted_data_up_to_a_bin(kind: str) -> None:
    x = sample(kind, 200_000)
    histogram = watched(x)
    low, high = histogram.bounds("percentile", Int(8), False)
    bin_width = 2 * histogram.limit / histogram.counts.numel()
    ordered = x.sort().values
    tail = 20  # 0.01 % of 200,000
    assert low == pytest.approx(min(float(ordered[tail]), 0.0), abs=bin_width)
    assert high == pytest.approx(max(float(ordered[-1 - tail]), 0.0), abs=bin_width)


def test_percentile_leaves_outliers_out_at_the_histogram_s_resolution() -> None:
    histogram = watched(sample("outlier", 100_000))
    low, high = histogram.bounds("percentile", Int(8), False)
    assert high <= 2 * histogram.limit / histogram.counts.numel()
    assert high < 1e6 / 1000
    assert low == pytest.approx(float(sample("outlier", 100_000).min()))


def squared_error(x: Tensor, low: float, high: float, format: Format, symmetric: bool) -> float:
    scale, zero_point = affine(torch.tensor(low), torch.tensor(high), format, symmetric)
    return float(((ops.fake_quantize(x, scale, zero_point, format, PerTensor()) - x).double() ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "symmetric"),
    [*((n, s) for n in ("int8", "uint4", "int4", "int2") for s in (False, True)), ("e4m3fn", True), ("e2m1", True)],
)
def test_streamed_mse_is_close_to_a_brute_force_scan_of_the_data(kind: str, name: str, symmetric: bool) -> None:
    x, format = sample(kind, 2000), parse(name)
    histogram = watched(*torch.split(x, 300))
    full = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    fractions = torch.linspace(0.05, 1.0, 30).tolist()
    pairs = [(f, f) for f in fractions] if symmetric else [(a, b) for a in fractions for b in fractions]
    amax = max(-full[0], full[1])
    ends = (-amax, amax) if symmetric else full
    scan = min(squared_error(x, ends[0] * a, ends[1] * b, format, symmetric) for a, b in pairs)
    found = squared_error(x, *histogram.bounds("mse", format, symmetric), format, symmetric)
    blur = 1.15 if kind == "outlier" else 1.0  # two bins hold all the rest
    assert found <= 1.1 * blur * scan
    assert found <= 1.02 * blur * squared_error(x, *histogram.bounds("absmax", format, symmetric), format, symmetric)


# Ranges to scale and zero point


@pytest.mark.parametrize("name", ["int8", "uint8", "int8-narrow", "int4", "uint2", "int16", "int1"])
@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 2.0), (0.0, 5.0), (-3.0, 0.0), (-1e-3, 1e4), (-1e30, 1.0), (0.0, 0.0), (-1e-44, 1e-45), (-3e38, 3e38)],
)
def test_zero_is_exact_and_the_zero_point_on_the_grid(name: str, low: float, high: float) -> None:
    format = parse(name)
    scale, zero_point = affine(torch.tensor(low), torch.tensor(high), format, False)
    assert zero_point is not None
    assert scale.dtype == zero_point.dtype == torch.float32
    assert scale.isfinite()
    assert scale > 0
    assert zero_point == zero_point.round()
    assert format.min <= zero_point <= format.max
    assert ops.fake_quantize(torch.zeros(1), scale, zero_point, format, PerTensor()) == 0


@pytest.mark.parametrize("name", ["int8", "uint8", "int4", "int16"])
def test_the_range_s_ends_are_met_within_a_step(name: str) -> None:
    format, ends = parse(name), torch.tensor([-1.0, 2.0])
    scale, zero_point = affine(ends[0], ends[1], format, False)
    y = ops.fake_quantize(ends, scale, zero_point, format, PerTensor())
    assert ((y - ends).abs() <= scale * 1.01).all()


@pytest.mark.parametrize("name", ["int8", "uint8", "e4m3fn", "ternary"])
def test_symmetric_ranges_have_no_zero_point(name: str) -> None:
    format = parse(name)
    scale, zero_point = affine(torch.tensor(-1.0), torch.tensor(2.0), format, True)
    assert zero_point is None
    assert scale == pytest.approx(2.0 / format.max)
