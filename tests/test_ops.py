"""Fake quantization against ONNX QuantizeLinear and DequantizeLinear, and its gradient against the LSQ formulas."""

from __future__ import annotations

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
from lowbit.formats import Block, Format, Int, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor

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
    *("e4m3fn", "e5m2fnuz", "e2m1", "e2m3", "bf16"),
]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(4), PerGroup(5, ragged=True)]
SHAPE = torch.Size([6, 4, 2, 1])


@pytest.fixture(scope="module", autouse=True, params=["torch", "kernels"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test runs twice: on plain torch, and on the kernels where they can be built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
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


def lsq(x: Tensor, scale: Tensor, offset: Tensor | float, format: Format, granularity: Granularity) -> list[Tensor]:
    """The gradients for an upstream gradient g = 1, 2, 3, ... in the closed form of the module's docstring."""
    g = torch.arange(1.0, x.numel() + 1).reshape(x.shape)
    v = x / each(scale, granularity)
    low, high = format.min - offset, format.max - offset
    rounded = torch.round(v) if isinstance(format, Int) else format.round(v)
    slope = torch.where(v < low, low, torch.where(v > high, high, rounded - v))
    return [torch.where((v >= low) & (v <= high), g, 0.0), summed(g * slope, granularity)]


def gradients(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, format: Format, granularity: Granularity
) -> tuple[Tensor, ...]:
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    g = torch.arange(1.0, x.numel() + 1).reshape(x.shape)
    return torch.autograd.grad(ops.fake_quantize(x, scale, zero_point, format, granularity), (x, scale), g)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_lsq(name: str, granularity: Granularity) -> None:
    format = parse(name)
    x, scale = inputs_for(format, granularity)
    dx, ds = gradients(x, scale, None, format, granularity)
    expected_dx, expected_ds = lsq(x, scale, 0.0, format, granularity)
    assert torch.equal(dx, expected_dx)
    torch.testing.assert_close(ds, expected_ds)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("format", [Int(8), Int(8, signed=False), Int(4), Int(2, signed=False)], ids=str)
def test_affine_gradients_are_those_of_lsq(format: Int, granularity: Granularity) -> None:
    zero_point = zero_points_for(format, granularity)
    x, scale = inputs_for(format, granularity, zero_point)
    dx, ds = gradients(x, scale, zero_point, format, granularity)
    expected_dx, expected_ds = lsq(x, scale, each(zero_point, granularity), format, granularity)
    assert torch.equal(dx, expected_dx)
    torch.testing.assert_close(ds, expected_ds)


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
    torch.testing.assert_close(ds, expected_ds)


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


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_nothing_but_the_arguments_is_saved_for_backward(granularity: Granularity) -> None:
    zero_point = zero_points_for(Int(4), granularity)
    x, scale = inputs_for(Int(4), granularity, zero_point)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.fake_quantize(x.requires_grad_(), scale.requires_grad_(), zero_point, Int(4), granularity)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, scale, zero_point))


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(5, requires_grad=True)
    y = ops.fake_quantize(x, torch.tensor(0.1), None, Int(8), PerTensor())
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()  # type: ignore[no-untyped-call]
