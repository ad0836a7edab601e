"""What is in an exported file, and that a runtime computes with it what the frozen model does."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batch, call, inputs_of
from lowbit.errors import CalibrationError, DataError, ExportError
from lowbit.export.onnx import Exported, export_onnx, manifest_entry, note, read_manifest
from lowbit.export.runtime import Session, open_session
from lowbit.formats import parse
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe, Rule

Array = npt.NDArray[np.generic]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Test processes of two threads each wait for each other on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    *("int8", "int4", "int3", "int2", "ternary", "binary", "e2m1", "e2m3", "e3m2"),
    *("e4m3fn", "e5m2", "bf16", "int16", "mxfp4", "nvfp4"),
)
INTEGERS = {"int8", "int4", "int3", "int2", "ternary", "binary", "e2m1", "e2m3"}


class Branches(nn.Module):
    """A convolution and a linear layer for each format."""

    def __init__(self) -> None:
        super().__init__()
        for name in FORMATS:
            parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
            self.add_module(name, nn.Sequential(*parts))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.get_submodule(name)(x) for name in FORMATS)


@cache
def branches(granularity: str, activations: str | None, opset: int = 21) -> tuple[onnx.GraphProto, dict[str, Array]]:
    """The graph, and the outputs of runtime and frozen model `[2, ...]` of each branch."""
    torch.manual_seed(0)
    example = torch.randn(4, 3, 5, 5)
    whole = [Recipe.uniform(name, activations, granularity=granularity).rules[0] for name in FORMATS]
    rules = tuple(
        Rule(f"{name}.*", rule.weights, rule.activations, rule.granularity)
        for name, rule in zip(FORMATS, whole, strict=True)
    )
    recipe = Recipe(rules, glue=parse("int8") if activations else None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "m.onnx")
        exported = export_onnx(student(Branches(), example, recipe), file, example, opset=opset)
        compared = outputs(exported, torch.randn(5, 3, 5, 5))
        return graph_of(exported), {n: np.stack(pair) for n, pair in zip(FORMATS, compared, strict=True)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("granularity", "activations"), [("channel", None), ("channel", "int8"), ("tensor", "int8"), ("group:9", "int8")]
)
def test_a_runtime_computes_what_the_frozen_model_does(name: str, granularity: str, activations: str | None) -> None:
    got, want = branches(granularity, activations)[1][name]
    assert np.abs(want).max() > 0.05
    # behind a float sum, a near-tie may tip to the next code
    close(got, want, 1e-5 if activations is None or name in INTEGERS else 1e-2)


STORED = {
    "int8": (TensorProto.INT8, 8),
    "int4": (TensorProto.INT4, 4),
    "int3": (TensorProto.INT4, 4),
    "int2": (TensorProto.INT4, 4),
    "ternary": (TensorProto.INT4, 4),
    "binary": (TensorProto.INT4, 4),
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
OPSET25 = STORED | dict.fromkeys(("int2", "ternary", "binary"), (TensorProto.INT2, 2))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("opset", "stored"), [(21, STORED), (25, OPSET25)])
def test_codes_are_stored_packed(name: str, opset: int, stored: dict[str, tuple[int, int]]) -> None:
    graph, compared = branches("channel", "int8", opset)
    codes = {i.name: i for i in graph.initializer}
    kind, bits = stored[name]
    for layer, elements in (("0", 4 * 27), ("3", 3 * 36)):
        tensor = codes[f"{name}.{layer}.weight.codes"]
        padded = int(np.prod(tensor.dims))
        assert tensor.data_type == kind
        assert len(tensor.raw_data) == -(-padded * bits // 8)
        assert padded == elements or name in ("mxfp4", "nvfp4")  # blocks fill up the end of a row
    assert {f"{name}.0", f"{name}.3"} <= {node.name for node in graph.node}
    close(*compared[name], tolerance=1e-5 if name in INTEGERS else 1e-2)


def test_no_weight_is_left_as_float() -> None:
    graph, _ = branches("channel", "int8")
    largest = max(np.prod(i.dims, dtype=int) for i in graph.initializer if i.data_type == TensorProto.FLOAT)
    assert largest == 64  # the table of e3m2


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*parts).eval()


IMAGES = torch.linspace(-2, 2, 4 * 3 * 6 * 6).reshape(4, 3, 6, 6).sin()


@pytest.mark.parametrize(
    "activations", ["int8", "uint8", "int4", "int2", "int16", "ternary", "e4m3fn", "e5m2", "fp16", "int5"]
)
def test_activation_formats(activations: str, tmp_path: Path) -> None:
    recipe = Recipe.uniform("int8", activations)
    exported = export_onnx(student(conv_net(), IMAGES, recipe), tmp_path / "m.onnx", IMAGES)
    close(*outputs(exported, IMAGES)[0], tolerance=1e-5)
    found = operators(graph_of(exported))
    assert bool(found["QuantizeLinear"]) == (activations not in ("e4m3fn", "e5m2", "fp16"))


def test_symmetric_activations(tmp_path: Path) -> None:
    rule = Rule(weights=parse("int8"), activations=parse("int8"), symmetric=True)
    exported = export_onnx(student(conv_net(), IMAGES, Recipe((rule,))), tmp_path / "m.onnx", IMAGES)
    close(*outputs(exported, IMAGES)[0])


@pytest.mark.parametrize("activations", ["int8", "int4"])
def test_a_clamp_before_a_quantizer_clips_the_codes_instead(activations: str, tmp_path: Path) -> None:
    quantized = student(conv_net(), 20 * IMAGES, Recipe.uniform("int8", activations))
    graph = graph_of(export_onnx(quantized, tmp_path / "m.onnx", IMAGES))
    assert operators(graph)["Relu"] == 0
    made = {o: node.op_type for node in graph.node for o in node.output}
    clipped = [node.input[0] for node in graph.node if node.op_type == "Clip"]
    assert {made[x] for x in clipped} <= {"QuantizeLinear"}


@pytest.mark.parametrize(
    ("recipe", "refused"),
    [
        (Recipe.uniform("int8", "e2m1"), "activations.input_1.*no runtime computes with e2m1fn"),
        (Recipe.uniform("int8", "e4m3"), "activations.input_1.*e4m3 activations; use int2"),
        (Recipe.uniform("int8", "int16-narrow"), "activations.input_1.*int16-narrow activations"),
    ],
)
def test_an_activation_format_without_a_runtime_names_its_quantizer(
    recipe: Recipe, refused: str, tmp_path: Path
) -> None:
    quantized = student(conv_net(), IMAGES, recipe)
    file = tmp_path / "m.onnx"
    file.write_bytes(b"an older export")
    with pytest.raises(ExportError, match=refused):
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
    "conv1d": (seq(nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=3)), (4, 12)),
    "conv2d": (seq(nn.Conv2d(4, 6, 3, dilation=2, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 1, bias=False)), (4, 8, 8)),
    "conv3d": (seq(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)), (2, 3, 3, 3)),
    "same": (seq(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, 4, padding="same")), (3, 5, 5)),
    "reflect": (seq(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), (3, 5, 5)),
    "transposed1d": (seq(nn.ConvTranspose1d(4, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose1d(6, 4, 2)), (4, 6)),
    "transposed2d": (seq(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.ConvTranspose2d(6, 4, 2, groups=2)), (4, 5, 5)),
    "linear": (seq(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), (8,)),
    "linear3d": (seq(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), (5, 8)),
    "bare": (nn.Linear(8, 4), (8,)),
    "residual": (Residual(), (4, 6, 6)),
    "concat": (Concat(), (3, 6, 6)),
    "shared": (Shared(), (4, 4, 4)),
    "max_pool": (seq(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)), (3, 6, 6)),
    "avg_pool": (seq(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)), (3, 6, 6)),
    "adaptive": (seq(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), (3, 6, 6)),
    "mean": (Mean(keepdim=False), (3, 6, 6)),
    "kept_mean": (Mean(keepdim=True), (3, 6, 6)),
    "sequence_mean": (MeanOfSequence(), (3, 6)),
    "upsample": (seq(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1)), (3, 6, 6)),
    "shuffle": (seq(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 4, 1)), (3, 6, 6)),
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


@pytest.mark.parametrize("name", ["linear", "linear3d", "shared", "concat"])
@pytest.mark.parametrize(("weights", "activations"), [("int4", None), ("int8", None), ("e4m3fn", "int8")])
def test_a_layer_that_computes_on_floats_does_so_exactly(name: str, weights: str, activations: str | None) -> None:
    """ONNX Runtime would round activations, or weights, to int8 by itself where it finds them dequantized."""
    graph, (got, want) = kind(name, weights, activations)
    close(got, want)
    assert len({node.name for node in graph.node}) == len(graph.node)
    weights_read = [n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    made = {o: node.op_type for node in graph.node for o in node.output}
    assert {made[w] for w in weights_read} == {"Mul"}


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


@pytest.mark.parametrize(("name", "poolings"), [("adaptive", 1), ("mean", 1), ("kept_mean", 1), ("sequence_mean", 0)])
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


# The batch


@pytest.mark.parametrize("exported_with", [1, 2])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_batch_is_open(exported_with: int, samples: int, tmp_path: Path) -> None:
    model = student(conv_net(), IMAGES, Recipe.uniform("int8", "int8"))
    exported = export_onnx(model, tmp_path / "m.onnx", IMAGES[:exported_with])
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
    [(FixedBatch(), "violat.*dynamic_batch=False"), (Branching(), "cannot export Branching: .*data-dependent")],
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


def test_a_folder_that_does_not_exist_yet_or_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError):
        export_onnx(conv_net(), tmp_path / "file" / "m.onnx", IMAGES)


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
    assert set(entry["versions"]) == {"lowbit", "torch", "onnx", "onnxruntime", "onnxscript", "numpy"}
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


def test_low_bits_make_a_smaller_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = nn.Linear(256, 256), torch.randn(2, 256)
    sizes = []
    for weights, opset in itertools.product(("int8", "int4", "ternary"), (21, 25)):
        quantized = student(model, example, Recipe.uniform(weights, "int8", granularity="tensor"))
        sizes.append(export_onnx(quantized, tmp_path / "m.onnx", example, opset=opset).path.stat().st_size)
    codes = [65536, 65536, 32768, 32768, 32768, 16384]
    assert all(0 <= size - held < 4096 for size, held in zip(sizes, codes, strict=True))


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
