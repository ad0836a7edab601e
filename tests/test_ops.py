"""Fake quantization against ONNX QuantizeLinear and DequantizeLinear, its gradients against those of LSQ and EWGS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from lowbit import kernels, ops
from lowbit.formats import Block, Format, Int, MidRise, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.ops import STE, GradientRule

ONNX_INTS = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
}
ONNX_FLOATS = {
    "e4m3fn": TensorProto.FLOAT8E4M3FN,
    "e5m2": TensorProto.FLOAT8E5M2,
    "e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ,
    "e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ,
}
FORMATS = [
    *("int8", "uint8", "int4-narrow", "int2", "uint3", "int16", "ternary", "ternary:0.7", "binary"),
    *("e4m3fn", "e5m2fnuz", "e2m1", "e2m3", "bf16", "mid1", "mid2", "mid8"),
]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(4), PerGroup(5, ragged=True)]
SHAPE = torch.Size([6, 4, 2, 1])


@pytest.fixture(scope="module", autouse=True, params=["torch", "kernels"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs twice: on plain torch, and on the kernels where they can be built."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(kernels, "call", mock.Mock(return_value=None))
        elif why_not := kernels.why_not():
            pytest.skip(f"no kernels: {why_not}")
        yield


def scales_of(granularity: Granularity, shape: torch.Size = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(granularity.scale_shape(shape), generator=generator) * 0.3 + 0.05


def inputs_for(format: Format, granularity: Granularity, zero_point: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Random `x`, a third of it beyond the grid and a fifth exactly halfway between integers; and its scales."""
    generator = torch.Generator().manual_seed(2)
    scale = scales_of(granularity)
    reach = 1.5 * max(format.max, -format.min)
    z = (torch.rand(SHAPE, generator=generator) * 2 - 1) * min(reach, 40.0)
    tie = torch.rand(SHAPE, generator=generator) < 0.2
    z = torch.where(tie, z.round() + 0.5, z)
    offset = 0.0 if zero_point is None else each(zero_point, granularity)
    return (z - offset) * each(scale, granularity), scale


def zero_points_for(format: Int, granularity: Granularity) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    low, high = int(format.min), int(format.max)
    return torch.randint(low, high + 1, granularity.scale_shape(SHAPE), generator=generator).float()


def each(scale: Tensor, granularity: Granularity) -> Tensor:
    """The scale of every element, spelled out."""
    match granularity:
        case PerTensor():
            return scale.expand(SHAPE)
        case PerChannel(axis):
            return scale.reshape([-1 if i == (axis or 0) else 1 for i in range(len(SHAPE))]).expand(SHAPE)
        case PerGroup(size):
            row = SHAPE[1:].numel()
            return scale.repeat_interleave(size, 1)[:, :row].reshape(SHAPE)


def summed(terms: Tensor, granularity: Granularity) -> Tensor:
    """Sums of `terms` over the elements of each scale, spelled out."""
    labels = torch.arange(torch.Size(granularity.scale_shape(SHAPE)).numel()).reshape(granularity.scale_shape(SHAPE))
    sums = torch.zeros(labels.numel()).index_add(0, each(labels, granularity).flatten(), terms.flatten())
    return sums.reshape(labels.shape)


# Values


def onnx_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, type: int, **attributes: Any) -> Tensor:
    """`x` through QuantizeLinear and DequantizeLinear in ONNX Runtime, graph optimizations off."""
    zeros = torch.zeros_like(scale) if zero_point is None else zero_point
    points = helper.make_tensor("o", type, list(zeros.shape), zeros.flatten().tolist())
    scales = helper.make_tensor("s", TensorProto.FLOAT, list(scale.shape), scale.flatten().tolist())
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "o"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "o"], ["y"], **attributes),
    ]
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))
    y_info = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape))
    graph = helper.make_graph(nodes, "fake_quantize", [x_info], [y_info], [scales, points])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.numpy()})
    return torch.from_numpy(np.asarray(y, np.float32))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)], ids=str)
@pytest.mark.parametrize("with_zero_point", [False, True], ids=["symmetric", "affine"])
@pytest.mark.parametrize("name", ONNX_INTS)
def test_integers_equal_onnx(name: str, with_zero_point: bool, granularity: PerTensor | PerChannel) -> None:
    format = Int(int(name.strip("uint")), signed=name[0] != "u")
    zero_point = zero_points_for(format, granularity) if with_zero_point else None
    x, scale = inputs_for(format, granularity, zero_point)
    axis = {"axis": granularity.axis or 0} if isinstance(granularity, PerChannel) else {}
    expected = onnx_fake_quantize(x, scale, zero_point, ONNX_INTS[name], **axis)
    assert torch.equal(ops.fake_quantize(x, scale, zero_point, format, granularity), expected)


@pytest.mark.parametrize("name", ["int8", "uint8", "int4", "uint4"])
def test_groups_equal_onnx_blocks(name: str) -> None:
    granularity, format = PerGroup(4), Int(int(name.strip("uint")), signed=name[0] != "u")
    zero_point = zero_points_for(format, granularity)
    x, scale = inputs_for(format, granularity, zero_point)
    expected = onnx_fake_quantize(x.reshape(6, -1), scale, zero_point, ONNX_INTS[name], axis=1, block_size=4)
    assert torch.equal(ops.fake_quantize(x, scale, zero_point, format, granularity), expected.reshape(SHAPE))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1)], ids=str)
@pytest.mark.parametrize("name", ONNX_FLOATS)
def test_floats_equal_onnx(name: str, granularity: PerTensor | PerChannel) -> None:
    x, scale = inputs_for(parse(name), granularity)
    axis = {"axis": 1} if isinstance(granularity, PerChannel) else {}
    expected = onnx_fake_quantize(x, scale, None, ONNX_FLOATS[name], **axis)
    assert torch.equal(ops.fake_quantize(x, scale, None, parse(name), granularity), expected)


def test_ties_go_to_even_before_the_zero_point_is_added() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    q = ops.quantize(x, torch.tensor(1.0), torch.tensor(3.0), Int(8), PerTensor())
    assert q.tolist() == [3, 5, 5, 3, 1]


def test_the_division_is_a_division() -> None:
    scale, x = torch.tensor(1 / 3), torch.tensor(3.5 / 3)
    assert torch.round(x * scale.reciprocal()) == 4  # just beside a tie, the two differ
    assert ops.quantize(x, scale, None, Int(8), PerTensor()) == torch.round(x / scale) == 3


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_results_lie_on_the_grid_and_training_gives_the_same(name: str, granularity: Granularity) -> None:
    format = parse(name)
    x, scale = inputs_for(format, granularity)
    y = ops.fake_quantize(x, scale, None, format, granularity)
    assert torch.equal(y, format.round(x / each(scale, granularity)) * each(scale, granularity))
    assert torch.equal(ops.fake_quantize(x.requires_grad_(), scale, None, format, granularity), y)


# Gradients


def upstream(x: Tensor) -> Tensor:
    """A gradient for a result of the shape of `x`: 1, -2, 3, -4, ..."""
    g = torch.arange(1.0, x.numel() + 1)
    return torch.where(g % 2 == 1, g, -g).reshape(x.shape)


def lsq(
    x: Tensor, scale: Tensor, offset: Tensor | float, format: Format, granularity: Granularity, delta: float = 0.0
) -> list[Tensor]:
    """The gradients of `x` and `scale` in the closed form of the module's docstring."""
    g = upstream(x)
    v = x / each(scale, granularity)
    low, high = format.min - offset, format.max - offset
    rounded = torch.round(v) if isinstance(format, Int) else format.round(v)
    k = 1 + delta * g.sign() * (v - rounded) / (format.max - format.min)
    slope = torch.where(v < low, low, torch.where(v > high, high, rounded - k * v))
    return [g * torch.where((v >= low) & (v <= high), k, 0.0), summed(g * slope, granularity)]


def gradients(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    format: Format,
    granularity: Granularity,
    gradient: GradientRule = STE,
) -> tuple[Tensor, ...]:
    """Of `x`, `scale` and, where it is learnable, `zero_point`."""
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = ops.fake_quantize(x, scale, zero_point, format, granularity, gradient)
    learnable = [t for t in (x, scale, zero_point) if t is not None and t.requires_grad]
    return torch.autograd.grad(y, learnable, upstream(x))


def assert_sums_close(found: Tensor, expected: Tensor, format: Format) -> None:
    """But for rounding, which is relative to the terms: in sums of both signs they are larger than the sum."""
    reach = min(max(format.max, -format.min), 300.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * reach)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_lsq(name: str, granularity: Granularity) -> None:
    format = parse(name)
    x, scale = inputs_for(format, granularity)
    dx, ds = gradients(x, scale, None, format, granularity)
    expected_dx, expected_ds = lsq(x, scale, 0.0, format, granularity)
    assert torch.equal(dx, expected_dx)
    assert_sums_close(ds, expected_ds, format)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_scaled_by_element(name: str, granularity: Granularity) -> None:
    format = parse(name)
    x, scale = inputs_for(format, granularity)
    dx, ds = gradients(x, scale, None, format, granularity, GradientRule(delta=0.7))
    expected_dx, expected_ds = lsq(x, scale, 0.0, format, granularity, delta=0.7)
    torch.testing.assert_close(dx, expected_dx)
    assert_sums_close(ds, expected_ds, format)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("format", [Int(8), Int(8, signed=False), Int(4), Int(2, signed=False)], ids=str)
def test_affine_gradients_are_those_of_lsq(format: Int, granularity: Granularity) -> None:
    zero_point = zero_points_for(format, granularity)
    x, scale = inputs_for(format, granularity, zero_point)
    dx, ds = gradients(x, scale, zero_point, format, granularity)
    expected_dx, expected_ds = lsq(x, scale, each(zero_point, granularity), format, granularity)
    assert torch.equal(dx, expected_dx)
    assert_sums_close(ds, expected_ds, format)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4", "mx:e2m1fn:4"])
def test_block_gradients_are_those_of_lsq(name: str) -> None:
    format = parse(name)
    assert isinstance(format, Block)
    granularity = PerGroup(format.size, ragged=True)
    x, _ = inputs_for(format, granularity)
    scale = format.scale(granularity.rows(x).abs().amax(1)).reshape(granularity.scale_shape(SHAPE))
    dx, ds = gradients(x, scale, None, format, granularity)
    expected_dx, expected_ds = lsq(x, scale, 0.0, format, granularity)
    assert torch.equal(dx, expected_dx)
    assert_sums_close(ds, expected_ds, format)


@pytest.mark.parametrize("zero_point", [None, torch.tensor(2.0)], ids=["symmetric", "affine"])
def test_input_gradient_is_the_slope_across_whole_steps(zero_point: Tensor | None) -> None:
    """Steps average out over whole multiples of the scale: inside the grid the slope is 1, outside 0."""
    scale, format = torch.tensor(0.25), Int(4)
    offset = 0.0 if zero_point is None else float(zero_point)
    v = torch.tensor([-30.3, -4.3, -1.2, 0.1, 2.8, 30.1])
    low, high = (v - offset - 1) * scale, (v - offset + 1) * scale
    y = [ops.fake_quantize(end, scale, zero_point, format, PerTensor()) for end in (low, high)]
    x = ((v - offset) * scale).requires_grad_()
    ops.fake_quantize(x, scale, zero_point, format, PerTensor()).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, (y[1] - y[0]) / (high - low))


@pytest.mark.parametrize("name", FORMATS)
def test_scale_gradient_outside_the_grid_is_the_finite_difference(name: str) -> None:
    """A clipped number is an end of the grid times the scale. Inside, rounding holds still: see the LSQ formula."""
    format, step = parse(name), 2.0**-6
    scale = torch.tensor(0.25)
    for end in (format.max, format.min):
        if end == 0:  # an unsigned grid ends in 0 below, and 0 times a scale stays 0
            continue
        x = torch.tensor([4 * end * 0.25])
        high, low = (ops.fake_quantize(x, scale + d, None, format, PerTensor()) for d in (step, -step))
        _, ds = gradients(x, scale, None, format, PerTensor())
        assert ds == (high - low) / (2 * step) == end


def test_gradients_come_only_where_wanted() -> None:
    x, scale = torch.randn(5, requires_grad=True), torch.tensor(0.1)
    ops.fake_quantize(x, scale, None, Int(8), PerTensor()).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert scale.grad is None
    x, scale = torch.randn(5), torch.tensor(0.1, requires_grad=True)
    ops.fake_quantize(x, scale, None, Int(8), PerTensor()).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is None
    assert scale.grad is not None
    assert scale.grad.shape == ()
    scale, zero_point = torch.tensor(0.1), torch.tensor(0.2, requires_grad=True)
    ops.fake_quantize(x, scale, zero_point, Int(8), PerTensor()).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is None
    assert scale.grad is None
    assert zero_point.grad is not None
    assert zero_point.grad.shape == ()


@pytest.mark.parametrize("learnable", [False, True], ids=["fixed", "learnable"])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_nothing_but_the_arguments_is_saved_for_backward(granularity: Granularity, learnable: bool) -> None:
    zero_point = zero_points_for(Int(4), granularity).requires_grad_(learnable)
    x, scale = inputs_for(Int(4), granularity, zero_point.detach())
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.fake_quantize(x.requires_grad_(), scale.requires_grad_(), zero_point, Int(4), granularity)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, scale, zero_point))


# Gradient rules


def by_the_ends(
    x: list[float], g: list[float], low: float, high: float, levels: int, rule: GradientRule
) -> tuple[list[float], float, float]:
    """Gradients of `x`, of the upper and of the lower end of a range of equally spaced levels.

    One number at a time in Python floats: the table of element-wise gradient scaling, with `rule.rounding` off PACT's.
    """
    dx, upper, lower = [], 0.0, 0.0
    for number, pull in zip(x, g, strict=True):
        if not low <= number <= high:
            dx.append(0.0)
            upper += pull * (number > high)
            lower += pull * (number < low)
            continue
        share = (number - low) / (high - low)
        rounded = round(share * (levels - 1)) / (levels - 1)
        k = 1 + rule.delta * math.copysign(1, pull) * (share - rounded)
        dx.append(pull * k)
        upper += rule.rounding * pull * (rounded - k * share)
        lower += rule.rounding * pull * ((1 - rounded) - k * (1 - share))
    return dx, upper, lower


NUMBERS = [-1.5, -0.4, 0.1, 0.8, 2.0]
PULLS = [1.0, 1.0, -1.0, 1.0, -1.0]
KNOWN: dict[float, tuple[list[float], float, float]] = {
    0.0: ([0, 1, -1, 1, 0], -0.983333, 0.983333),
    0.5: ([0, 0.983333, -1.058333, 0.95, 0], -0.90125, 1.02625),
}


@pytest.mark.parametrize("delta", KNOWN)
def test_four_levels_from_minus_one_to_one(delta: float) -> None:
    """Worked by hand: the range [-1, 1] of EWGS, whose four levels are those of MidRise(2) with scale 1/3."""
    expected_dx, upper, lower = KNOWN[delta]
    rule = GradientRule(delta)
    dx, *ends = by_the_ends(NUMBERS, PULLS, -1, 1, 4, rule)
    assert dx == pytest.approx(expected_dx, abs=1e-6)
    assert ends == pytest.approx([upper, lower], abs=1e-6)
    x, scale = torch.tensor(NUMBERS, requires_grad=True), torch.tensor(1 / 3, requires_grad=True)
    y = ops.fake_quantize(x, scale, None, MidRise(2), PerTensor(), rule)
    torch.testing.assert_close(y, torch.tensor([-1, -1 / 3, 1 / 3, 1, 1]))
    found, ds = torch.autograd.grad(y, (x, scale), torch.tensor(PULLS))
    torch.testing.assert_close(found, torch.tensor(dx))
    assert float(ds) == pytest.approx(3 * upper - 3 * lower, abs=1e-5)  # the ends are 3 and -3 scales


def test_three_bits_of_lsq() -> None:
    """Worked by hand; a share of 1 / sqrt(5 numbers * largest integer 3)."""
    x, scale = torch.tensor([-3, -0.6, 0.2, 0.9, 2], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    y = ops.fake_quantize(x, scale, None, Int(3), PerTensor(), GradientRule(share=15**-0.5))
    assert y.tolist() == [-2, -0.5, 0, 1, 1.5]
    terms = [torch.autograd.grad(one, scale, retain_graph=True)[0] * 15**0.5 for one in y]
    torch.testing.assert_close(torch.stack(terms), torch.tensor([-4, 0.2, -0.4, 0.2, 3]))
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(-0.258199, abs=1e-6)


RULES = [
    *(GradientRule(delta) for delta in (0.0, 0.5)),
    *(GradientRule(delta, rounding=False, share=0.1) for delta in (0.0, 0.5)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.delta}-{rule.rounding}")
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("format", [Int(4, signed=False), Int(3), Int(4, narrow=True)], ids=str)
def test_gradients_follow_from_those_of_the_ends(format: Int, granularity: Granularity, rule: GradientRule) -> None:
    """The ends are l = s * (n - o) and u = s * (p - o), so ds = (p - o) du + (n - o) dl and do = -s (du + dl)."""
    scale, whole = scales_of(granularity), zero_points_for(format, granularity)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)) * format.max * each(scale, granularity)
    x -= each(whole * scale, granularity)
    zero_point = (whole + 0.3).requires_grad_()
    found = gradients(x, scale, zero_point, format, granularity, rule)
    labels = each(torch.arange(scale.numel()).reshape(scale.shape), granularity)
    expected = [torch.zeros(t.shape) for t in (x, scale, scale)]
    levels = round(format.max - format.min) + 1
    for i, (s, o) in enumerate(zip(scale.flatten().tolist(), whole.flatten().tolist(), strict=True)):
        mine, (n, p) = labels == i, (format.min - o, format.max - o)
        dx, upper, lower = by_the_ends(x[mine].tolist(), upstream(x)[mine].tolist(), s * n, s * p, levels, rule)
        expected[0][mine] = torch.tensor(dx)
        expected[1].view(-1)[i] = rule.share * (p * upper + n * lower)
        expected[2].view(-1)[i] = -s * (upper + lower)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_a_learnable_zero_point_counts_as_the_nearest_integer(granularity: Granularity) -> None:
    format = Int(4)
    whole = zero_points_for(format, granularity)
    x, scale = inputs_for(format, granularity, whole)
    learnable = (whole - 0.4).requires_grad_()
    expected = ops.fake_quantize(x, scale, whole, format, granularity)
    assert torch.equal(ops.fake_quantize(x, scale, learnable, format, granularity), expected)
    with torch.no_grad():
        assert torch.equal(ops.fake_quantize(x, scale, learnable, format, granularity), expected)
    found = gradients(x, scale, learnable, format, granularity, GradientRule(delta=0.5))
    for one, other in zip(
        found, gradients(x, scale, whole, format, granularity, GradientRule(delta=0.5)), strict=False
    ):
        assert torch.equal(one, other)
    y = ops.fake_quantize(x.requires_grad_(), scale, learnable, format, granularity, GradientRule(delta=0.5))
    assert torch.equal(torch.autograd.grad(y, x, upstream(x))[0], found[0])  # also where only that of x is asked for


def test_zero_point_gradient_outside_the_grid_is_the_finite_difference() -> None:
    """A clipped number is an end of the range, which moves by a scale with each step of the zero point."""
    scale, format, far = torch.tensor(0.25), Int(4), torch.tensor([-9.0, 9.0])
    high, low = (ops.fake_quantize(far, scale, torch.tensor(o), format, PerTensor()) for o in (3.0, 1.0))
    zero_point = torch.tensor(2.0, requires_grad=True)
    y = ops.fake_quantize(far, scale, zero_point, format, PerTensor())
    for i in range(2):
        (dz,) = torch.autograd.grad(y[i], zero_point, retain_graph=True)
        assert dz == (high[i] - low[i]) / 2 == -scale


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    y = ops.fake_quantize(x, torch.tensor(0.1), None, Int(8), PerTensor())
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()  # type: ignore[no-untyped-call]
