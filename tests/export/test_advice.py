"""What keeps a file from being faster: each cause is found, with where it sits and what to change."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import cast

import onnx
import pytest
import torch
from torch import Tensor, nn

from lowbit.environment import Processor
from lowbit.export.advice import Obstacle, Wiring, obstacles
from lowbit.export.onnx import export_onnx, manifest_entry
from lowbit.export.runtime import RuntimeName, open_session
from lowbit.export.verify import Verification, verify
from lowbit.formats import parse
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe, Rule

INT8 = parse("int8")
IMAGES = torch.linspace(-2, 2, 2 * 16 * 12 * 12).reshape(2, 16, 12, 12).sin()


def wide() -> nn.Sequential:
    """Layers of 332 k MACs each."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2]).eval()


def checked(
    model: nn.Module, example: Tensor, recipe: Recipe, folder: Path, runtime: RuntimeName = "onnxruntime"
) -> Verification:
    student = quantize(model, recipe)
    calibrate(student, [example], progress=False)
    return verify(export_onnx(student, folder / "m.onnx", example), [example], runtime=runtime, progress=False)


def found(result: Verification, word: str) -> dict[str, Obstacle]:
    """Obstacles that say `word`, by place; those of the processor depend on the machine."""
    return {place: one for one in result.obstacles for place in one.where if word in one.what}


def test_nothing_to_say(tmp_path: Path) -> None:
    result = checked(wide(), IMAGES, Recipe.uniform("int4", "int8"), tmp_path)
    assert [one for one in result.obstacles if one.where] == []
    if not result.obstacles:  # the processor has dot products
        assert result.why_not_faster() == ["nothing: all layers run on integer kernels"]


def test_float_layers_and_the_conversions_around_them(tmp_path: Path) -> None:
    recipe = Recipe((Rule(weights=INT8, activations=INT8), Rule("2")))
    result = checked(wide(), IMAGES, recipe, tmp_path)
    assert {name: one.what for name, one in found(result, "weights are float").items()} == result.stayed_float
    conversions = found(result, "conversions left")
    assert set(conversions) == {"2", "activations._1", "activations._3"}
    assert "1 ReorderInput" in conversions["2"].what
    assert {one.remedy for one in conversions.values()} == {"goes as soon as layer '2' runs on integers"}
    assert "1 DequantizeLinear, 1 Clip" in conversions["activations._1"].what
    assert "1 QuantizeLinear" in conversions["activations._3"].what
    assert any(line.startswith("2: its weights are float") for line in result.why_not_faster())
    noted = cast(dict[str, list[dict[str, object]]], manifest_entry(tmp_path / "m.onnx")["verification"])
    assert [row["what"] for row in noted["obstacles"]] == [one.what for one in result.obstacles]


@pytest.mark.parametrize(
    ("recipe", "what", "remedy"),
    [
        (Recipe((Rule(weights=INT8, activations=INT8),), glue=None), "its output is not quantized", "glue=int8"),
        (Recipe.uniform("int8", "int16"), "not quantized to at most 8 bits", "activations=int8 in its rule"),
        (Recipe.uniform("mxfp4", "int8"), "its weights are float", "weights=int8 or int4"),
    ],
)
def test_every_reason_has_a_remedy(recipe: Recipe, what: str, remedy: str, tmp_path: Path) -> None:
    result = checked(wide(), IMAGES, recipe, tmp_path)
    assert remedy in found(result, what)["4"].remedy


def test_few_bits_of_activations_leave_clips(tmp_path: Path) -> None:
    clips = found(checked(wide(), IMAGES, Recipe.uniform("int4", "int4"), tmp_path), "1 Clip")
    assert "activations._1" in clips
    assert {one.remedy.partition(",")[0] for one in clips.values()} == {"activations=int8 needs no Clip"}


def test_two_formats_for_one_tensor(tmp_path: Path) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.left, self.right = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            return torch.cat([self.left(x), self.right(x)], 1)

    rules = Rule(weights=INT8, activations=INT8), Rule("right", weights=INT8, activations=parse("int4"))
    conversions = found(checked(Fork().eval(), IMAGES, Recipe(rules), tmp_path), "conversions left")
    assert "same activations" in conversions["activations.relu"].remedy


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.head = nn.Linear(256, 256), nn.LayerNorm(256), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(self.up(x))))


def test_operations_without_an_integer_kernel_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = checked(Sequence().eval(), torch.randn(2, 3, 256), Recipe.uniform("int8", "int8"), tmp_path)
    remedies = {place: one.remedy for place, one in found(result, "conversions left").items()}
    assert any("in the place of LayerNormalization" in remedy for remedy in remedies.values())
    assert found(result, "fewer than") == {}


@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_small_layers_are_named(dynamic_batch: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    student = quantize(nn.Sequential(*parts).eval(), Recipe.uniform("int8", "int8"))
    calibrate(student, [IMAGES], progress=False)
    file = export_onnx(student, tmp_path / "m.onnx", IMAGES, dynamic_batch=dynamic_batch)
    result = verify(file, [IMAGES], progress=False)
    assert set(found(result, "fewer than 50,000 MACs a sample")) == {"4"}


def test_depthwise_convolutions_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4)
    result = checked(nn.Sequential(*parts).eval(), IMAGES, Recipe.uniform("int8", "int8"), tmp_path)
    assert set(found(result, "depthwise")) == {"2"}


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_tells_its_conversions(tmp_path: Path) -> None:
    recipe = Recipe((Rule(weights=INT8, activations=INT8), Rule("2")))
    result = checked(wide(), IMAGES, recipe, tmp_path, "openvino")
    assert set(found(result, "weights are float")) == {"2"}
    assert found(result, "Reorder")


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (Processor("x86_64", frozenset({"avx2", "avx512f"})), "no VNNI"),
        (Processor("AMD64", frozenset({"avx2", "avx_vnni"})), ""),
        (Processor("x86_64", frozenset({"avx512_vnni"})), ""),
        (Processor("x86_64", frozenset()), ""),
        (Processor("aarch64", frozenset({"asimd"})), "no dot product"),
        (Processor("aarch64", frozenset({"asimd", "asimddp"})), ""),
        (Processor("riscv64", frozenset({"v"})), ""),
    ],
)
def test_the_processor(processor: Processor, said: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    student = quantize(wide(), Recipe.uniform("int8", "int8"))
    calibrate(student, [IMAGES], progress=False)
    path = export_onnx(student, tmp_path_factory.mktemp("export") / "m.onnx", IMAGES).path
    session, model = open_session(path), onnx.load(path)
    layers = {name: kernel for name, kernel in session.kernels().items() if name in ("0", "2", "4")}
    whole = [one for one in obstacles(model, session, layers, {}, processor) if not one.where]
    assert len(whole) == bool(said)
    assert all(said in str(one) for one in whole)
    assert obstacles(model, session, dict.fromkeys(layers, "Conv"), {}, processor) == ()


def test_an_obstacle_as_a_line() -> None:
    assert str(Obstacle(("a", "b"), "slow", "mend")) == "a, b: slow; mend"
    assert str(Obstacle((), "slow", "mend")) == "slow; mend"
    assert str(Obstacle(tuple("abcdef"), "slow", "mend")) == "a, b, c, d and 2 more: slow; mend"


def test_places() -> None:
    names = (
        "a.weight.dequantize",
        "a.weight#2.codes",
        "a.bias.dequantize",
        "activations.x#3.codes",
        "activations.x.clipped",
    )
    graph = onnx.GraphProto(node=[onnx.helper.make_node("Identity", ["x"], [f"out.{name}"], name) for name in names])
    wiring = Wiring(graph)
    assert [wiring.place(name) for name in names] == ["a", "a", "a", "activations.x", "activations.x"]
    assert [wiring.place(name) for name in ("out.a.bias.dequantize", "node_add")] == ["a", "node_add"]
