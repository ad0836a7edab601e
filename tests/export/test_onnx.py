"""What is in an exported file, and that a runtime computes with it what the frozen model does."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from lowbit import files, models
from lowbit.batches import Batch, call, inputs_of
from lowbit.errors import CalibrationError, DataError, ExportError
from lowbit.export.onnx import Exported, export_onnx, manifest_entry, note, read_manifest
from lowbit.export.qdq import BlockActivations, how_stored
from lowbit.export.runtime import Session, open_session
from lowbit.formats import parse
from lowbit.granularity import PerGroup
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe, Rule

Array = npt.NDArray[Any]


def student(model: nn.Module, example: Batch, recipe: Recipe) -> nn.Module:
    quantized = quantize(model.eval(), recipe)
    calibrate(quantized, [example], progress=False)
    return quantized


def tensors(output: object) -> list[Array]:
    match output:
        case Tensor():
            return [output.numpy()]
        case dict():
            return [t.numpy() for t in output.values()]
    assert isinstance(output, tuple)
    return [t.numpy() for t in output]


def feed(session: Session, batch: Batch) -> dict[str, Array]:
    args, kwargs = inputs_of(batch)
    return dict(zip(session.inputs, (t.numpy() for t in (*args, *kwargs.values())), strict=True))


def outputs(exported: Exported, batch: Batch) -> list[tuple[Array, Array]]:
    """(what ONNX Runtime returns, what the frozen model returns) for each output."""
    session = open_session(exported.path)
    with torch.no_grad():
        want = tensors(call(exported.model, batch))
    return list(zip(session.run(feed(session, batch)), want, strict=True))


def close(got: Array, want: Array, tolerance: float = 1e-5) -> None:
    """Equal up to float32 rounding; `tolerance` is relative to the largest number."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(np.abs(want).max()))


def graph_of(exported: Exported) -> onnx.GraphProto:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    return model.graph


def operators(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


# Formats: one branch of a network each, all in one file


FORMATS = (
    *("int8", "int4", "int3", "int2", "ternary", "binary", "mid1", "mid2", "mid3", "mid4", "mid5", "mid7", "mid8"),
    *("e2m1", "e2m3", "e3m2"),
    *("e4m3fn", "e5m2", "bf16", "int16", "mxfp4", "nvfp4"),
)
INTEGERS = {"int8", "int4", "int3", "int2", "ternary", "binary", "e2m1", "e2m3"}
INTEGERS |= {"mid1", "mid2", "mid3", "mid4", "mid5", "mid7"}


class Branches(nn.Module):
    """A convolution and a linear layer for each name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(36, 3)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.get_submodule(name)(x) for name in self.names)


def branches(rules: dict[str, Rule], opset: int, glue: bool) -> tuple[onnx.GraphProto, dict[str, Array]]:
    """The graph, and the outputs of runtime and frozen model `[2, ...]` of each branch."""
    torch.manual_seed(0)
    example = 5 * torch.randn(4, 3, 5, 5)
    recipe = Recipe(tuple(replace(rule, match=f"{n}.*") for n, rule in rules.items()), parse("int8") if glue else None)
    quantized = student(Branches(tuple(rules)), example, recipe)
    with tempfile.TemporaryDirectory() as folder:
        exported = export_onnx(quantized, Path(folder, "m.onnx"), example, opset=opset)
        compared = outputs(exported, 5 * torch.randn(5, 3, 5, 5))
        return graph_of(exported), {name: np.stack(pair) for name, pair in zip(rules, compared, strict=True)}


@cache
def weight_formats(granularity: str, activations: str | None, opset: int) -> tuple[onnx.GraphProto, dict[str, Array]]:
    rules = {n: Recipe.uniform(n, activations, granularity=granularity).rules[0] for n in FORMATS}
    return branches(rules, opset, glue=activations is not None)


def errors(compared: dict[str, Array]) -> dict[str, float]:
    """Largest difference of each branch, relative to its largest number."""
    assert all(np.abs(want).max() > 0.5 for _, want in compared.values())
    return {name: float(np.abs(got - want).max() / np.abs(want).max()) for name, (got, want) in compared.items()}


@pytest.mark.parametrize(
    ("granularity", "activations"), [("channel", None), ("channel", "int8"), ("tensor", "int8"), ("group:9", "int8")]
)
def test_a_runtime_computes_what_the_frozen_model_does(granularity: str, activations: str | None) -> None:
    found = errors(weight_formats(granularity, activations, 21)[1])
    exact = INTEGERS if activations else set(FORMATS)  # behind a float sum, a near-tie may tip to the next code
    assert {name: error for name, error in found.items() if error > (1e-5 if name in exact else 1e-2)} == {}


STORED: dict[str, tuple[int, int]] = {
    "int8": (TensorProto.INT8, 8),
    "int4": (TensorProto.INT4, 4),
    "int3": (TensorProto.INT4, 4),
    "int2": (TensorProto.INT4, 4),
    "ternary": (TensorProto.INT4, 4),
    "binary": (TensorProto.INT4, 4),
    "mid1": (TensorProto.INT4, 4),
    "mid2": (TensorProto.INT4, 4),
    "mid3": (TensorProto.INT4, 4),
    "mid4": (TensorProto.UINT4, 4),
    "mid5": (TensorProto.INT8, 8),
    "mid7": (TensorProto.INT8, 8),
    "mid8": (TensorProto.UINT8, 8),
    "e2m1": (TensorProto.UINT4, 4),
    "e2m3": (TensorProto.UINT8, 8),
    "e3m2": (TensorProto.UINT8, 8),
    "e4m3fn": (TensorProto.FLOAT8E4M3FN, 8),
    "e5m2": (TensorProto.FLOAT8E5M2, 8),
    "bf16": (TensorProto.BFLOAT16, 16),
    "int16": (TensorProto.INT16, 16),
    "mxfp4": (TensorProto.UINT4, 4),
    "nvfp4": (TensorProto.UINT4, 4),
}
TWO_BITS: dict[str, tuple[int, int]] = dict.fromkeys(("int2", "ternary", "binary", "mid1"), (TensorProto.INT2, 2))


@pytest.mark.parametrize(("opset", "stored"), [(21, STORED), (25, STORED | TWO_BITS)], ids=["21", "25"])
def test_codes_are_stored_packed(opset: int, stored: dict[str, tuple[int, int]]) -> None:
    graph, compared = weight_formats("channel", "int8", opset)
    codes = {i.name.removesuffix(".weight.codes"): i for i in graph.initializer if i.name.endswith(".weight.codes")}
    assert codes.keys() == {f"{name}.{layer}" for name in FORMATS for layer in "03"}
    assert codes.keys() <= {node.name for node in graph.node}
    for layer, tensor in codes.items():
        kind, bits = stored[layer.partition(".")[0]]
        elements = int(np.prod(tensor.dims))
        assert (layer, tensor.data_type) == (layer, kind)
        assert (layer, len(tensor.raw_data)) == (layer, -(-elements * bits // 8))
        filled = {"mxfp4": (128, 192), "nvfp4": (128, 144)}.get(layer.partition(".")[0])  # blocks fill up each row
        assert (layer, elements) == (layer, (filled or (108, 108))[layer.endswith("3")])
    assert max(errors(compared).values()) < 1e-2


@pytest.mark.parametrize(
    ("name", "opset", "said"),
    [
        ("mid1", 21, "mid1 weights are stored in 4 bits each; opset 25 stores them in 2"),
        ("mid1", 25, "mid1 weights are stored in 2 bits each"),
        ("mid2", 25, "mid2 weights are stored in 4 bits each"),
        ("mid4", 21, "mid4 weights are stored as 4-bit indices; the kernels compute on int8, exactly"),
        ("mid7", 21, "mid7 weights are stored in 8 bits each"),
        ("mid8", 21, "mid8 weights save size only: runtimes turn them into float32 while loading"),
        ("int4", 21, ""),
    ],
)
def test_what_is_stored_otherwise_is_told(name: str, opset: int, said: str) -> None:
    assert how_stored(parse(name), opset) == said


def test_no_weight_is_left_as_float() -> None:
    graph, _ = weight_formats("channel", "int8", 21)
    largest = max(np.prod(i.dims, dtype=int) for i in graph.initializer if i.data_type == TensorProto.FLOAT)
    assert largest == 256  # the table of mid8


ACTIVATIONS = ("int8", "uint8", "int5", "int4", "int2", "ternary", "int16", "e4m3fn", "e5m2", "fp16")


def test_activation_formats() -> None:
    eight = Rule(weights=parse("int8"), activations=parse("int8"))
    rules = {name: replace(eight, activations=parse(name)) for name in ACTIVATIONS}
    graph, compared = branches(rules | {"symmetric": replace(eight, symmetric=True)}, 21, glue=True)
    assert {name: error for name, error in errors(compared).items() if error > 1e-5} == {}
    made = {o: node.op_type for node in graph.node for o in node.output}
    makes = {node.name: made.get(node.input[0], "") for node in graph.node if node.input}
    # a Clip guards a float weight; FP8 and FP16 have Cast and Mul, here before the Reshape
    special = {"int16": "Clip", "e4m3fn": "Reshape", "e5m2": "Reshape", "fp16": "Reshape"}
    assert {name: makes[f"{name}.3"] for name in rules} == dict.fromkeys(rules, "DequantizeLinear") | special


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*parts).eval()


IMAGES = torch.linspace(-2, 2, 4 * 3 * 6 * 6).reshape(4, 3, 6, 6).sin()


def test_a_clamp_before_a_quantizer_clips_the_codes_instead(tmp_path: Path) -> None:
    recipe = Recipe((Rule(weights=parse("int8"), activations=parse("int4"), symmetric=True),))
    exported = export_onnx(student(conv_net(), 20 * IMAGES, recipe), tmp_path / "m.onnx", IMAGES)
    graph = graph_of(exported)
    made = {o: node.op_type for node in graph.node for o in node.output}
    assert operators(graph)["Relu"] == 0
    assert {made[node.input[0]] for node in graph.node if node.op_type == "Clip"} == {"QuantizeLinear"}
    close(*outputs(exported, 20 * IMAGES)[0])


@pytest.mark.parametrize(
    ("activations", "refused"),
    [("e2m1", "no runtime computes with e2m1fn activations; use int2"), ("int16-narrow", "with int16-narrow")],
)
def test_an_activation_format_without_a_runtime_names_its_quantizer(
    activations: str, refused: str, tmp_path: Path
) -> None:
    quantized = student(conv_net(), IMAGES, Recipe.uniform("int8", activations))
    file = tmp_path / "m.onnx"
    file.write_bytes(b"an older export")
    with pytest.raises(ExportError, match=rf"activations\.input_1.*{refused}"):
        export_onnx(quantized, file, IMAGES)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert file.read_bytes() == b"an older export"


# Kinds of layers


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        return torch.relu(self.conv2(x) + x)


class Concat(nn.Module):
    """Two readers of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return torch.cat([self.left(x), self.right(x)], 1)


class Mean(nn.Module):
    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        self.keepdim = keepdim
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3), keepdim=self.keepdim)
        return cast(Tensor, self.head(x.flatten(1)))


class MeanOfSequence(nn.Module):
    """The last two axes, which are no image here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 4, 3), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.relu(self.conv(x)).mean((-2, -1), keepdim=True)))


class Shared(nn.Module):
    """Layers called twice, on inputs of different scales; the linear one on a sequence, then on a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(torch.relu(self.conv(x))))
        x = torch.relu(self.linear(x.flatten(2).transpose(1, 2)))
        return cast(Tensor, self.linear(x.mean(1)))


class MeanOfSignal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.relu(self.conv(x)).mean(-1)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | float = 1.0) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        if isinstance(attention_mask, Tensor):
            x = x * attention_mask.unsqueeze(-1).float()
        return {"logits": self.head(x.sum(1))}


def seq(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (
        seq(
            *(nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=3), nn.ReLU()),
            *(nn.ConvTranspose1d(6, 6, 3, stride=2), nn.ConvTranspose1d(6, 4, 2, bias=False)),
        ),
        (4, 12),
    ),
    "conv2d": (
        seq(
            *(nn.Conv2d(4, 6, 3, dilation=2, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 3, padding="same", bias=False)),
            *(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(4, 4, 3, stride=2)),
            *(nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2)),
        ),
        (4, 8, 8),
    ),
    "conv3d": (seq(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)), (2, 3, 3, 3)),
    "linear": (seq(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), (8,)),
    "linear3d": (seq(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), (5, 8)),
    "bare": (nn.Linear(8, 4), (8,)),
    "residual": (Residual(), (4, 6, 6)),
    "concat": (Concat(), (3, 6, 6)),
    "shared": (Shared(), (4, 4, 4)),
    "poolings": (
        seq(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)),
            *(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        ),
        (3, 8, 8),
    ),
    "mean": (Mean(keepdim=False), (3, 6, 6)),
    "kept_mean": (Mean(keepdim=True), (3, 6, 6)),
    "sequence_mean": (MeanOfSequence(), (3, 6)),
    "signal_mean": (MeanOfSignal(), (4, 12)),
    "moves": (
        seq(
            *(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 4, 1), nn.Dropout()),
            *(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1)),
        ),
        (3, 4, 4),
    ),
}


@cache
def kind(name: str, weights: str, activations: str | None) -> tuple[onnx.GraphProto, tuple[Array, Array]]:
    torch.manual_seed(0)
    model, shape = KINDS[name]
    example = torch.randn(3, *shape)
    with tempfile.TemporaryDirectory() as folder:
        quantized = student(model, example, Recipe.uniform(weights, activations))
        exported = export_onnx(quantized, Path(folder, "m.onnx"), example[:1])
        return graph_of(exported), outputs(exported, example)[0]


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_layers(name: str) -> None:
    graph, (got, want) = kind(name, "int4", "int8")
    close(got, want)
    layers = {n for n, m in KINDS[name][0].named_modules() if type(m).__name__.startswith(("Conv", "Linear"))}
    assert layers <= {node.name for node in graph.node}
    assert not any(node.domain for node in graph.node)


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [("linear3d", "int4", None), ("shared", "int4", None), ("shared", "e4m3fn", "int8"), ("concat", "e4m3fn", "int8")],
)
def test_a_layer_that_computes_on_floats_does_so_exactly(name: str, weights: str, activations: str | None) -> None:
    """ONNX Runtime would round activations, or weights, to int8 by itself where it finds them dequantized."""
    graph, (got, want) = kind(name, weights, activations)
    close(got, want)
    assert len({node.name for node in graph.node}) == len(graph.node)
    weights_read = [n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    made = {o: node.op_type for node in graph.node for o in node.output}
    assert {made[w] for w in weights_read} == {"Mul"}


@pytest.mark.parametrize("recipe", [None, Recipe.uniform(None, "int8")], ids=["float", "quantized input"])
def test_float_layers_have_their_names_too(recipe: Recipe | None, tmp_path: Path) -> None:
    model, shape = KINDS["linear3d"]
    example = torch.ones(2, *shape)
    model = model.eval() if recipe is None else student(model, example, recipe)
    graph = graph_of(export_onnx(model, tmp_path / "m.onnx", example))
    assert [node.name for node in graph.node if node.op_type == "MatMul"] == ["0", "2"]


def test_matmul_reads_a_weight_stored_transposed() -> None:
    graph, _ = kind("linear3d", "int4", "int8")
    assert operators(graph)["Transpose"] == 0
    assert {"0.weight.codes": [8, 8], "2.weight.codes": [8, 4]}.items() <= {
        i.name: list(i.dims) for i in graph.initializer
    }.items()


def test_a_shared_layer_is_stored_once_for_integers() -> None:
    graph, _ = kind("shared", "int4", "int8")
    stored = [i.name for i in graph.initializer if i.name.startswith("conv.") and i.name.endswith(".codes")]
    assert stored == ["conv.weight.codes"]
    assert {"conv", "conv#2", "linear", "linear#2"} <= {node.name for node in graph.node}


@pytest.mark.parametrize(
    ("name", "poolings"), [("poolings", 1), ("mean", 1), ("kept_mean", 1), ("sequence_mean", 0), ("signal_mean", 1)]
)
def test_a_mean_over_an_image_is_a_pooling(name: str, poolings: int) -> None:
    found = operators(kind(name, "int4", "int8")[0])
    assert found["GlobalAveragePool"] == poolings
    assert found["ReduceMean"] == 1 - poolings


def test_readers_with_different_formats(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eight, four = parse("int8"), parse("int4")
    recipe = Recipe((Rule(weights=eight, activations=eight), Rule("right", weights=four, activations=four)))
    example = torch.randn(3, 3, 6, 6)
    exported = export_onnx(student(Concat(), example, recipe), tmp_path / "m.onnx", example)
    close(*outputs(exported, example)[0])


@pytest.mark.parametrize("masked", [True, False])
def test_dict_inputs_keep_their_names(masked: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example: dict[str, Tensor] = {"input_ids": torch.randint(0, 11, (3, 6)), "labels": torch.zeros(3)}
    if masked:
        example["attention_mask"] = torch.ones(3, 6, dtype=torch.int64).tril()
    exported = export_onnx(student(Words(), example, Recipe.uniform("int4", "int8")), tmp_path / "m.onnx", example)
    assert set(open_session(exported.path).inputs) == set(example) - {"labels"}
    close(*outputs(exported, {k: v[:2] for k, v in example.items() if k != "labels"})[0])


def test_an_embedding_is_packed_too(tmp_path: Path) -> None:
    example = {"input_ids": torch.arange(6).reshape(2, 3)}
    exported = export_onnx(student(Words(), example, Recipe.uniform("int4", None)), tmp_path / "m.onnx", example)
    stored = {i.name: i for i in graph_of(exported).initializer}
    assert stored["embedding.weight.codes"].data_type == TensorProto.INT4
    close(*outputs(exported, example)[0])


# Block kernels


def blocks(
    weights: str, size: int, computed: BlockActivations, folder: Path, *, bias: bool = True, rank: int = 2
) -> tuple[onnx.GraphProto, tuple[Array, Array]]:
    torch.manual_seed(0)
    example = torch.randn(4, *(3,) * (rank - 2), 128)
    recipe = Recipe.uniform(weights, None, granularity=f"group:{size}")
    quantized = student(nn.Linear(128, 24, bias=bias), example, recipe)
    exported = export_onnx(quantized, folder / "m.onnx", example, block_kernels=computed)
    assert manifest_entry(exported.path)["block_kernels"] == computed
    return graph_of(exported), outputs(exported, example)[0]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("weights", ["int4", "int3", "int2", "ternary", "binary", "mid1", "mid2", "mid3"])
def test_block_kernels_are_exact_on_floats(weights: str, size: int, tmp_path: Path) -> None:
    graph, (got, want) = blocks(weights, size, "float", tmp_path)
    close(got, want)
    assert operators(graph) == {"MatMulNBits": 1}
    bits = 4 if weights in ("int4", "int3", "mid2", "mid3") else 2
    codes = next(i for i in graph.initializer if i.name.endswith(".weight.codes"))
    assert list(codes.dims) == [24, 128 // size, size * bits // 8]


@pytest.mark.parametrize(("weights", "size"), [("int4", 16), ("int4", 32), ("int2", 32), ("ternary", 128)])
def test_block_kernels_round_activations_on_request(weights: str, size: int, tmp_path: Path) -> None:
    """Measured: at most 3 % of the outputs' standard deviation, 0.6 % rms."""
    _, (got, want) = blocks(weights, size, "int8", tmp_path)
    assert 1e-4 < np.abs(got - want).max() / want.std() < 0.05


@pytest.mark.parametrize(("bias", "rank"), [(False, 2), (True, 3), (False, 3)])
def test_block_kernels_of_any_linear_layer(bias: bool, rank: int, tmp_path: Path) -> None:
    graph, (got, want) = blocks("int4", 32, "float", tmp_path, bias=bias, rank=rank)
    close(got, want)
    assert operators(graph)["MatMulNBits"] == 1
    assert [opset.domain for opset in onnx.load(tmp_path / "m.onnx").opset_import] == ["", "com.microsoft"]


def test_a_shared_layer_stores_its_blocks_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 32)
    example = torch.randn(2, 32)
    quantized = student(
        nn.Sequential(linear, nn.ReLU(), linear), example, Recipe.uniform("int4", None, granularity="group:32")
    )
    exported = export_onnx(quantized, tmp_path / "m.onnx", example, block_kernels="float")
    close(*outputs(exported, example)[0])
    graph = graph_of(exported)
    assert [node.name for node in graph.node if node.op_type == "MatMulNBits"] == ["0", "0#2"]
    assert sum(i.name.endswith(".codes") for i in graph.initializer) == 1


def test_block_kernels_leave_other_layers_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    four, eight = parse("int4"), parse("int8")
    rules = [
        Rule("0", four, granularity=PerGroup(32)),
        Rule("1", four, granularity=PerGroup(8)),
        Rule("2", four),
        Rule("3", eight, granularity=PerGroup(32)),
        Rule("4", parse("e2m1"), granularity=PerGroup(32)),
        Rule("5", four, eight, granularity=PerGroup(32)),
        Rule("6", parse("mid4"), granularity=PerGroup(32)),
    ]
    model, example = nn.Sequential(*(nn.Linear(32, 32) for _ in rules)), torch.randn(2, 32)
    exported = export_onnx(
        student(model, example, Recipe(tuple(rules))), tmp_path / "m.onnx", example, block_kernels="float"
    )
    close(*outputs(exported, example)[0], tolerance=1e-2)  # a near-tie before layer 5
    assert [node.name for node in graph_of(exported).node if node.op_type == "MatMulNBits"] == ["0"]


def test_block_kernels_without_a_layer_that_fits(tmp_path: Path) -> None:
    quantized = student(conv_net(), IMAGES, Recipe.uniform("int4", "int8"))
    with pytest.raises(ExportError, match=r"block_kernels='int8' fits no layer: it takes Linear layers .*group:16"):
        export_onnx(quantized, tmp_path / "m.onnx", IMAGES, block_kernels="int8")
    assert not list(tmp_path.iterdir())


# The batch


@pytest.mark.parametrize("exported_with", [1, 2])
def test_the_batch_is_open(exported_with: int, tmp_path: Path) -> None:
    model = student(conv_net(), IMAGES, Recipe.uniform("int8", "int8"))
    exported = export_onnx(model, tmp_path / "m.onnx", IMAGES[:exported_with])
    for samples in (1, 3):
        close(*outputs(exported, IMAGES[:samples])[0])


def test_the_batch_is_closed_on_request(tmp_path: Path) -> None:
    model = student(conv_net(), IMAGES, Recipe.uniform("int8", "int8"))
    exported = export_onnx(model, tmp_path / "m.onnx", IMAGES[:1], dynamic_batch=False)
    first = graph_of(exported).input[0].type.tensor_type.shape.dim[0]
    assert (first.dim_value, first.dim_param) == (1, "")
    close(*outputs(exported, IMAGES[:1])[0])
    session = open_session(exported.path)
    with pytest.raises(Exception, match="Got: 3 Expected: 1"):
        session.run(feed(session, IMAGES[:3]))


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x.reshape(2, 4)))


class Branching(nn.Module):
    """Control flow on data: no graph exists."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x if float(x.sum()) > 0 else -x))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (FixedBatch(), "fixes the first dimension of 'x' to 2; .*dynamic_batch=False"),
        (Branching(), "cannot export Branching: its forward branches on the values of a tensor"),
    ],
    ids=["fixed", "branching"],
)
def test_what_torch_cannot_export(
    model: nn.Module, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    example = torch.ones(2, 4)
    quantized = student(model, example, Recipe.uniform("int8", "int8"))
    capfd.readouterr()
    with pytest.raises(ExportError, match=said) as caught:
        export_onnx(quantized, tmp_path / "m.onnx", example)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_can_be_exported_as_such(tmp_path: Path) -> None:
    example = torch.ones(2, 4)
    quantized = student(FixedBatch(), example, Recipe.uniform("int8", "int8"))
    exported = export_onnx(quantized, tmp_path / "m.onnx", example, dynamic_batch=False)
    close(*outputs(exported, example)[0])


# The call


@pytest.mark.parametrize("opset", [20, 26])
def test_opset_out_of_range(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"opset {opset}: expected 21"):
        export_onnx(conv_net(), tmp_path / "m.onnx", IMAGES, opset=opset)


def test_uncalibrated(tmp_path: Path) -> None:
    quantized = quantize(conv_net(), Recipe.uniform("int8", "int8"))
    with pytest.raises(CalibrationError, match=r"activations.*has no scale yet; call calibrate"):
        export_onnx(quantized, tmp_path / "m.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantized", [True, False])
def test_an_example_without_its_batch(quantized: bool, tmp_path: Path) -> None:
    """A convolution takes one image, so only the layers behind it fail, with what nobody can read."""
    model = student(conv_net(), IMAGES, Recipe.uniform("int8", "int8")) if quantized else conv_net().eval()
    shape = ", ".join(map(str, IMAGES.shape[1:]))
    with pytest.raises(DataError, match=rf"^expected an example \[N, {shape}\], got \[{shape}\]; use x\[:1\]$"):
        export_onnx(model, tmp_path / "m.onnx", IMAGES[0])
    with pytest.raises(DataError, match="does not take inputs of shape"):
        export_onnx(model, tmp_path / "m.onnx", IMAGES[:, :1])
    assert not list(tmp_path.iterdir())


def test_a_linear_model_takes_one_sample_and_must_not(tmp_path: Path) -> None:
    """Its first dimension would become the batch."""
    quantized = student(nn.Linear(4, 2), torch.ones(2, 4), Recipe.uniform("int8", "int8"))
    with pytest.raises(DataError, match=r"^expected an example \[N, 4\], got \[4\]; use x\[:1\]$"):
        export_onnx(quantized, tmp_path / "m.onnx", torch.ones(4))


def test_an_exported_file_prints_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    exported = export_onnx(models.mlp(4, 2, ()), file, torch.ones(2, 4))
    manifest = tmp_path / "manifest.json"
    assert (
        repr(exported)
        == str(exported)
        == (f"Exported('{file}', {len(file.read_bytes()):,} bytes, manifest '{manifest}')")
    )
    file.unlink()
    assert repr(exported) == f"Exported('{file}', moved or deleted, manifest '{manifest}')"


def test_folders_are_made(tmp_path: Path) -> None:
    exported = export_onnx(models.mlp(4, 2, ()), tmp_path / "new" / "folder" / "m.onnx", torch.ones(2, 4))
    assert manifest_entry(exported.path)["bytes"] == exported.path.stat().st_size


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write"):
        export_onnx(models.mlp(4, 2, ()), tmp_path / "file" / "m.onnx", torch.ones(2, 4))


def test_exporting_changes_nothing_in_the_student(tmp_path: Path) -> None:
    quantized = student(conv_net(), IMAGES, Recipe.uniform("int4", "int8")).train()
    before = {k: v.clone() for k, v in quantized.state_dict().items()}
    export_onnx(quantized, tmp_path / "m.onnx", IMAGES)
    after = quantized.state_dict()
    assert quantized.training
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_float_model(tmp_path: Path) -> None:
    exported = export_onnx(conv_net(), tmp_path / "m.onnx", IMAGES)
    close(*outputs(exported, IMAGES)[0])
    graph = graph_of(exported)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(graph))
    assert {"0", "2", "5"} <= {node.name for node in graph.node}
    entry = manifest_entry(exported.path)
    assert entry["recipe"] is None
    assert entry["calibration"] is None


# The manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files beside each other."""
    into = tmp_path_factory.mktemp("exports")
    quantized = student(conv_net(), IMAGES, Recipe.uniform("int4", "int8"))
    export_onnx(quantized, into / "low.onnx", IMAGES, opset=25, provenance={"seed": 7})
    export_onnx(conv_net(), into / "float.onnx", IMAGES)
    return into


def test_manifest(folder: Path) -> None:
    assert set(json.loads((folder / "manifest.json").read_text())) == {"low.onnx", "float.onnx"}
    entry = manifest_entry(folder / "low.onnx")
    assert entry["sha256"] == files.sha256(folder / "low.onnx")
    assert entry["bytes"] == (folder / "low.onnx").stat().st_size
    assert entry["opset"] == onnx.load(folder / "low.onnx").opset_import[0].version == 25
    assert entry["recipe"] == Recipe.uniform("int4", "int8").to_dict()
    assert entry["provenance"] == {"seed": 7}
    assert entry["verification"] is None
    assert isinstance(entry["versions"], dict)
    packages = {"lowbit", "torch", "onnx", "onnxruntime", "onnxscript", "numpy", "scipy", "scikit-learn"}
    assert set(entry["versions"]) == {"python", *packages}
    assert isinstance(entry["calibration"], dict)
    assert entry["calibration"]["samples"] == 4
    assert len(entry["calibration"]["sha256"]) == 64
    macs = 16 * 4 * 27 + 4 * 4 * 36 + 16 * 3
    assert isinstance(entry["cost"], dict)
    assert entry["cost"]["macs"] == macs
    assert entry["cost"]["bops"] == 32 * macs
    assert isinstance(entry["coverage"], dict)
    assert [(r["name"], r["weights"], r["activations"]) for r in entry["coverage"]["layers"]] == [
        (name, "int4", "int8") for name in ("0", "2", "5")
    ]


@pytest.mark.parametrize(("weights", "opset", "codes"), [("int4", 21, 4608), ("ternary", 25, 2304)])
def test_low_bits_make_a_smaller_file(weights: str, opset: int, codes: int, tmp_path: Path) -> None:
    recipe = Recipe.uniform(weights, "int8", granularity="tensor")
    example = torch.ones(2, 96)
    exported = export_onnx(student(nn.Linear(96, 96), example, recipe), tmp_path / "m.onnx", example, opset=opset)
    assert 0 < exported.path.stat().st_size - codes < 4000


def test_noting_more_keeps_the_rest(folder: Path) -> None:
    before = read_manifest(folder)
    note(folder / "float.onnx", {"provenance": {"by": "hand"}})
    after = read_manifest(folder)
    assert after["low.onnx"] == before["low.onnx"]
    assert after["float.onnx"] == before["float.onnx"] | {"provenance": {"by": "hand"}}


def test_an_unknown_file(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no entry for 'other.onnx'; it has .*low.onnx"):
        manifest_entry(folder / "other.onnx")


@pytest.mark.parametrize("content", ["[]", '{"m.onnx": 3}', "{"])
def test_what_is_no_manifest(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)
