"""Verification passes what behaves like the model and runs on integers, and names what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from lowbit import files, models
from lowbit.batches import Batch
from lowbit.errors import DataError, VerificationError
from lowbit.export.onnx import Exported, export_onnx, manifest_entry, note
from lowbit.export.qdq import BlockActivations
from lowbit.export.runtime import RuntimeName
from lowbit.export.verify import Verification, _kernels, verify
from lowbit.formats import parse
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe, Rule

RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "openvino" and find_spec("openvino") is None, reason="OpenVINO is not installed"
        ),
    )
    for name in get_args(RuntimeName)
]


def installed() -> tuple[RuntimeName, ...]:
    """ONNX Runtime first."""
    return get_args(RuntimeName) if find_spec("openvino") else ("onnxruntime",)


def exported(model: nn.Module, example: Batch, recipe: Recipe, folder: Path, opset: int = 21) -> Exported:
    """A file of `model` with random norms and biases, calibrated on `example`."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    student = quantize(model.eval(), recipe)
    calibrate(student, [example], progress=False)
    return export_onnx(student, folder / "m.onnx", example, opset=opset)


def both_ways(file: Exported, batches: list[Batch], runtime: RuntimeName = "onnxruntime") -> Verification:
    """Verified against the frozen model, and as a file alone."""
    alone = verify(file.path, batches, runtime=runtime, progress=False)
    against = verify(file, batches, runtime=runtime, progress=False)
    assert alone.layers == against.layers
    assert alone.stayed_float == against.stayed_float
    assert [t.name for t in alone.tensors] == [t.name for t in against.tensors]
    return against


# Integers from end to end


@pytest.mark.parametrize(("weights", "activations"), [("int8", "int8"), ("int4", "int4"), ("e2m1", "int8")])
def test_a_residual_network_is_all_integers(weights: str, activations: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = models.ResNet(1, 10), torch.randn(4, 3, 16, 16)
    file = exported(model, example, Recipe.uniform(weights, activations), tmp_path)
    layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    results = [both_ways(file, [example, example[:1]], runtime) for runtime in installed()]
    for result in results:
        assert (result.samples, set(result.layers), result.stayed_float) == (5, layers, {})
        assert result.same_codes > 0.999
        assert result.largest_code_difference <= 1
    assert results[0].same_prediction == 1
    # the padded shortcuts go through float, and so does what two readers want in different formats
    moves = {"Clip", "Transpose", "Reshape", "Slice", "Pad", "QuantizeLinear", "DequantizeLinear"}
    counts = {kernel: count for kernel, count in results[0].kernels.items() if kernel not in moves}
    assert counts == {"QLinearConv": 7, "QLinearAdd": 3, "QLinearGlobalAveragePool": 1, "QGemm": 1}


@pytest.mark.parametrize("opset", [21, 25])
@pytest.mark.parametrize("weights", ["mid1", "mid2", "mid3", "mid4", "mid5", "mid7"])
def test_weights_without_zero_are_integers(weights: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    example = torch.randn(4, 3, 8, 8)
    file = exported(model, example, Recipe.uniform(weights, "int8"), tmp_path, opset)
    runtimes = installed() if opset == 21 else installed()[:1]  # OpenVINO refuses the INT2 of mid1
    results = [both_ways(file, [example], runtime) for runtime in runtimes]
    for result in results:
        assert (set(result.layers), result.stayed_float) == ({"0", "2", "4"}, {})
        assert result.largest_code_difference <= 1
    assert results[0].layers == {"0": "QLinearConv", "2": "QLinearConv", "4": "QGemm"}


def test_verification_is_noted_in_the_manifest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(4, 6)
    file = exported(models.mlp(6, 3, (8,)), example, Recipe.uniform("int4", "int8"), tmp_path)
    verify(file.path, [example], progress=False)
    assert manifest_entry(file.path)["verification"] is None
    result = verify(file, [example, example], progress=False)
    noted = cast(dict[str, Any], manifest_entry(file.path)["verification"])
    assert (noted["runtime"], noted["samples"]) == ("onnxruntime", 8)
    assert [t["name"] for t in noted["tensors"]] == [t.name for t in result.tensors]
    assert noted["layers"] == result.layers == {"linear1": "QGemm", "head": "QGemm"}
    assert manifest_entry(file.path)["recipe"] == Recipe.uniform("int4", "int8").to_dict()


# Architectures


class Attention(nn.Module):
    """One pre-norm transformer block on sequences of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(8, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.gelu, self.down, self.head = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm1(x)
        q, k, v = (part(y).reshape(-1, 6, 2, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
        attention = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
        x = x + self.o((attention @ v).transpose(1, 2).reshape(-1, 6, 16))
        x = x + self.down(self.gelu(self.up(self.norm2(x))))
        return cast(Tensor, self.head(x.mean(1)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.pool, self.down2 = nn.Conv2d(3, 8, 3, 1, 1), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, 1, 1)
        self.up, self.conv, self.out = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.up(F.relu(self.down2(self.pool(a)))))
        return cast(Tensor, self.out(F.relu(self.conv(torch.cat([a, b], 1)))))


class Squeeze(nn.Module):
    """Squeeze and excitation, with the pooling written both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.fc1 = nn.Conv2d(3, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1)
        self.fc2, self.conv2, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.pool(x)))))
        return cast(Tensor, self.head(F.relu(self.conv2(x)).mean((2, 3))))


class Smooth(nn.Module):
    """Activations that are no clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.silu, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1)
        self.hardswish, self.head = nn.Hardswish(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.silu(self.conv1(x))
        return cast(Tensor, self.head(F.adaptive_avg_pool2d(x + self.hardswish(self.conv2(x)), 1).flatten(1)))


def sensor() -> nn.Sequential:
    """Depthwise and pointwise convolutions over time."""
    return nn.Sequential(
        *(nn.Conv1d(6, 6, 5, padding=2, groups=6), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 12, 1), nn.ReLU()),
        *(nn.Conv1d(12, 12, 3, stride=2, groups=12), nn.ReLU(), nn.Conv1d(12, 16, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


def inverted() -> nn.Sequential:
    """MobileNet v2 in small: ReLU6, which 4-bit codes do not fill."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), models.InvertedResidual(8, 8, 1, 4)),
        *(models.InvertedResidual(8, 8, 2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


@pytest.mark.parametrize(
    ("build", "shape", "activations", "integer"),
    [
        (Attention, (6, 8), "int8", 8),
        (UNet, (3, 8, 8), "int8", 4),  # all but the transposed convolution
        (Squeeze, (3, 8, 8), "int8", 5),
        (Smooth, (3, 8, 8), "int8", 3),
        (sensor, (6, 32), "int8", 5),
        (inverted, (3, 8, 8), "int4", 8),
    ],
)
def test_architectures(
    build: Callable[[], nn.Module], shape: tuple[int, ...], activations: str, integer: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, example = build(), torch.randn(4, *shape)
    file = exported(model, example, Recipe.uniform("int4", activations), tmp_path)
    result = both_ways(file, [example])
    assert sum(result.layers[n] in ("QLinearConv", "QGemm", "MatMulIntegerToFloat") for n in result.layers) == integer
    assert result.same_codes > 0.98
    if build is Attention:
        assert set(result.stayed_float.values()) == {"it multiplies two activations"}
    if find_spec("openvino") and activations == "int8":  # which skips roundings: 4 bits on random weights are chaos
        assert verify(file, [example], runtime="openvino", progress=False).largest_code_difference <= 2


# What stays float says why


def test_float_weights_behind_quantized_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = models.ResNet(1, 10), torch.randn(4, 3, 16, 16)
    file = exported(model, example, Recipe.uniform(None, "int8"), tmp_path)
    result, *_ = (both_ways(file, [example], runtime) for runtime in installed())
    assert result.same_codes > 0.999
    assert len(result.stayed_float) == 8
    assert all("its weights are float" in reason for reason in result.stayed_float.values())
    assert len(result.tensors) == 12  # two at the stem, three in each of three blocks, the pooled one


class Plain(nn.Sequential):
    def __init__(self) -> None:
        parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
        super().__init__(*parts)


IMAGES = torch.linspace(-2, 2, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8).sin()
INT8 = parse("int8")


@pytest.mark.parametrize(
    ("recipe", "reasons"),
    [
        (Recipe((Rule(weights=INT8, activations=INT8),), glue=None), {"4": "its output is not quantized"}),
        (
            Recipe((Rule(weights=INT8, activations=INT8), Rule("2"))),
            {"2": "its weights are float: no plain integer grid"},
        ),
        (
            Recipe((Rule(weights=INT8, activations=INT8), Rule("4", weights=INT8, activations=parse("int16")))),
            {"2": "its output has 16 bits", "4": "its input is not quantized to at most 8 bits"},
        ),
        (
            Recipe.uniform("int8", "int16"),
            dict.fromkeys(("0", "2", "4"), "its input is not quantized to at most 8 bits"),
        ),
        (Recipe.uniform("int8", None), dict.fromkeys(("0", "2", "4"), "its input is not quantized to at most 8 bits")),
        (
            Recipe((Rule("0", parse("int16"), INT8), Rule("2", parse("mxfp4"), INT8), Rule("4", INT8, INT8))),
            dict.fromkeys(("0", "2"), "its weights are float: no plain integer grid"),
        ),
        (
            Recipe.uniform("int8", "int8", granularity="channel:1"),
            dict.fromkeys(("0", "2", "4"), "its weights are float: no plain integer grid"),
        ),
    ],
    ids=["no glue", "a float layer", "16-bit output", "int16", "weights only", "no 8-bit grids", "input channels"],
)
def test_reasons(recipe: Recipe, reasons: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = both_ways(exported(Plain(), IMAGES, recipe, tmp_path), [IMAGES])
    assert {name: reason.partition(",")[0] for name, reason in result.stayed_float.items()} == reasons
    assert set(result.layers) == {"0", "2", "4"}


class Optional(nn.Module):
    """Takes None or a tensor: no graph leaves that open."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.relu(self.conv(x if mask is None else x * mask))
        return cast(Tensor, self.head(x.mean((2, 3))))


def test_an_untraceable_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = exported(Optional(), IMAGES, Recipe.uniform("int4", "int8"), tmp_path)
    result, *_ = (both_ways(file, [IMAGES], runtime) for runtime in installed())
    assert set(result.layers) == {"conv", "head"}
    assert [t.name for t in result.tensors] == ["conv.input_quantizer", "head.input_quantizer"]
    assert result.stayed_float == {"conv": "its output is not quantized"}


def test_a_float_file(tmp_path: Path) -> None:
    result = both_ways(export_onnx(Plain().eval(), tmp_path / "m.onnx", IMAGES), [IMAGES])
    assert result.tensors == ()
    assert result.same_codes == 1
    assert result.largest_code_difference == 0
    assert set(result.stayed_float) == {"0", "2", "4"}


# Block kernels


class Blocks(nn.Module):
    """Linear layers of a transformer without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(64),
            nn.Linear(64, 128),
            nn.Linear(128, 64),
            nn.Linear(64, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1)))


TOKENS = torch.linspace(0, 400, 16 * 6 * 64).reshape(16, 6, 64).sin()


def block_file(weights: str, size: int, computed: BlockActivations, folder: Path) -> Exported:
    torch.manual_seed(0)
    student = quantize(Blocks().eval(), Recipe.uniform(weights, None, granularity=f"group:{size}"))
    return export_onnx(student, folder / "m.onnx", TOKENS, block_kernels=computed)


@pytest.mark.parametrize(
    ("weights", "size", "computed", "reason"),
    [
        ("int4", 32, "float", "its weights are 4-bit blocks, computed on float activations"),
        ("int4", 16, "int8", ""),
        ("ternary", 32, "int8", ""),
        ("int2", 16, "int8", "its weights are 2-bit blocks of 16, for which ONNX Runtime has no int8 kernel"),
    ],
)
def test_block_kernels(weights: str, size: int, computed: BlockActivations, reason: str, tmp_path: Path) -> None:
    result = both_ways(block_file(weights, size, computed, tmp_path), [TOKENS])
    assert result.layers == dict.fromkeys(("up", "down", "head"), "MatMulNBits")
    assert set(result.stayed_float.values()) == ({reason} if reason else set())
    assert result.mean_output_difference < 1e-3  # the weights are compared without rounded activations
    assert (result.largest_output_difference > 1e-5) == (computed == "int8" and not reason)


def test_block_kernels_in_openvino(tmp_path: Path) -> None:
    """It reads them, and computes on floats whatever they ask for."""
    pytest.importorskip("openvino")
    result = both_ways(block_file("int4", 32, "int8", tmp_path), [TOKENS], "openvino")
    assert len(result.stayed_float) == 3


@pytest.mark.parametrize("computed", ["float", "int8"])
@pytest.mark.parametrize(
    ("tensor", "factor"), [("up.weight.scale", 1.02), ("down.weight.codes", 0), ("head.weight.scale", 1.01)]
)
def test_changed_blocks_are_found(computed: BlockActivations, tensor: str, factor: float, tmp_path: Path) -> None:
    file = block_file("int4", 32, computed, tmp_path)
    (tmp_path / "changed").mkdir()
    with pytest.raises(VerificationError, match="diverges in onnxruntime at its output"):
        verify(tampered(file, tensor, factor, tmp_path / "changed"), [TOKENS], progress=False)


def test_blocks_that_rounding_ruins(tmp_path: Path) -> None:
    """One number a block a million times the others: what is left of the others are zeros."""
    tokens = TOKENS.clone()
    torch.manual_seed(0)
    model = nn.Linear(64, 5).eval()
    with torch.no_grad():
        model.weight[:, ::32] = 0
    tokens[:, :, ::32] = 1e4
    student = quantize(model, Recipe.uniform("int4", None, granularity="group:32"))
    file = export_onnx(student, tmp_path / "m.onnx", tokens, block_kernels="int8")
    with pytest.raises(VerificationError, match=r"rounds to int8 change its outputs.*block_kernels='float'"):
        verify(file, [tokens], progress=False)


# What it refuses


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    model = nn.Sequential(*Plain(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    return exported(model, IMAGES, Recipe.uniform("int8", "int8"), tmp_path_factory.mktemp("intact"))


def tampered(file: Exported, initializer: str, factor: float, folder: Path) -> Exported:
    """A copy with one initializer changed, and a manifest that agrees."""
    model = onnx.load(file.path)
    tensor = next(i for i in model.graph.initializer if i.name == initializer)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), initializer))
    copy = folder / file.path.name
    onnx.save(model, copy)
    shutil.copy(file.path.parent / "manifest.json", folder)
    note(copy, {"sha256": files.sha256(copy)})
    return Exported(copy, file.model)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("initializer", "factor", "named"),
    [
        ("0.weight.scale", 1.5, "first at 'activations._1'"),
        ("2.weight.scale", 1.5, "first at 'activations._3'"),
        ("2.bias.codes", 10, "first at 'activations._3'"),
        ("4.weight.scale", 1.5, "first at 'activations._5'"),
        ("activations._3.scale", 1.5, "first at 'activations._3'"),
        ("8.weight.scale", 1.5, "at its output, behind the last codes"),
    ],
)
def test_a_changed_number_is_named(
    runtime: RuntimeName, initializer: str, factor: float, named: str, intact: Exported, tmp_path: Path
) -> None:
    verify(intact, [IMAGES], runtime=runtime, progress=False)
    with pytest.raises(VerificationError, match=f"^m.onnx diverges in {runtime} {named}.*differently from the model$"):
        verify(tampered(intact, initializer, factor, tmp_path), [IMAGES], runtime=runtime, progress=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["m.onnx"]["verification"] is not None


def test_a_runtime_that_leaves_a_layer_float(intact: Exported, tmp_path: Path) -> None:
    """A file whose Gemm lost its zero point: integers on paper, float in ONNX Runtime."""
    model = onnx.load(intact.path)
    node = next(n for n in model.graph.node if n.name == "8.weight.dequantize")
    del node.input[2]
    onnx.save(model, tmp_path / "m.onnx")
    note(tmp_path / "m.onnx", {"sha256": files.sha256(tmp_path / "m.onnx")})
    with pytest.raises(VerificationError, match=r"layer '8' is all integers in the file but runs as 'Gemm'"):
        verify(tmp_path / "m.onnx", [IMAGES], progress=False)


@pytest.mark.parametrize("against_model", [True, False])
def test_a_file_that_changed_since_its_export(against_model: bool, intact: Exported, tmp_path: Path) -> None:
    copy = tmp_path / "m.onnx"
    copy.write_bytes(intact.path.read_bytes() + b" ")
    shutil.copy(intact.path.parent / "manifest.json", tmp_path)
    with pytest.raises(VerificationError, match=r"is not the file its manifest describes \(sha256 differs\)"):
        verify(Exported(copy, intact.model) if against_model else copy, [IMAGES], progress=False)


def test_no_manifest(intact: Exported, tmp_path: Path) -> None:
    shutil.copy(intact.path, tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify(tmp_path / "m.onnx", [IMAGES], progress=False)


def test_no_file(intact: Exported, tmp_path: Path) -> None:
    shutil.copy(intact.path.parent / "manifest.json", tmp_path)
    name = intact.path.name
    shutil.copy(intact.path, tmp_path / "model.onnx")
    (tmp_path / "variants" / "w8a8").mkdir(parents=True)
    for wrong, told in {
        "modell.onnx": "no file '{}' (did you mean model.onnx?)",
        "else.txt": "no file '{}'; check the path",
        "variants/w4a8/model.onnx": f"no file '{{}}': no folder '{tmp_path}/variants/w4a8' (did you mean w8a8?)",
        "zzz/yyy/model.onnx": f"no file '{{}}': no folder '{tmp_path}/zzz'; check the path",
        "model.onnx/model.onnx": "no file '{}'; check the path",
        "variants": "'{}' is a folder; name the file in it",
    }.items():
        with pytest.raises(DataError) as caught:
            verify(tmp_path / wrong, [IMAGES], progress=False)
        assert str(caught.value) == told.format(tmp_path / wrong)
    with pytest.raises(DataError, match="no file"):
        verify(Exported(tmp_path / "gone" / name, intact.model), [IMAGES], progress=False)


def test_no_batches(intact: Exported) -> None:
    with pytest.raises(DataError, match="verification got no batches"):
        verify(intact, [], progress=False)


def test_batches_of_every_form(intact: Exported) -> None:
    batches: list[Batch] = [IMAGES, (IMAGES[:2], torch.zeros(2)), [IMAGES[:1]]]
    assert verify(intact, batches, progress=False).samples == 7


def test_a_single_output_is_compared_by_its_sign(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(16, 4)
    result = both_ways(exported(models.mlp(4, 1, (8,)), example, Recipe.uniform("int8", "int8"), tmp_path), [example])
    assert result.same_prediction == 1
    assert np.isfinite(result.largest_output_difference)


def test_a_layer_that_reads_no_input_need_not_run_on_integers() -> None:
    class Folded:
        def kernels(self) -> dict[str, str]:
            return {}  # computed when the file was loaded

        def is_integer(self, kernel: str) -> bool:
            return "fused away" not in kernel

    numbers = {"t": np.ones((5, 4), np.uint8), "w": np.ones((4, 4), np.int8), "s": np.float32(1)}
    nodes = [onnx.helper.make_node("DequantizeLinear", [one, "s"], [f"{one}.dequantize"]) for one in ("t", "w")]
    nodes.append(onnx.helper.make_node("MatMul", ["t.dequantize", "w.dequantize"], ["y"], name="places"))
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()]
    graph = onnx.helper.make_graph(nodes, "g", [], [], stored)
    assert _kernels(graph, cast("Any", Folded())) == ({"places": "MatMul (fused away)"}, {}, [])
