"""Each operator that runs is given to the layer that it computes or converts for."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import onnx
import pytest
import torch
from torch import Tensor, nn

from lowbit.export.onnx import export_onnx
from lowbit.export.owners import Parts
from lowbit.export.runtime import Operator, RuntimeName, open_session
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "openvino" and find_spec("openvino") is None, reason="OpenVINO is not installed"
        ),
    )
    for name in get_args(RuntimeName)
]
TOKENS = torch.arange(10).reshape(2, 5) % 7


class Tokens(nn.Module):
    """A layer called twice, products of more than two dimensions whose bias is added apart, and a lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16, bias=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        for _ in range(2):
            x = x + self.down(torch.relu(self.up(x)))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def owned(recipe: Recipe | None, folder: Path, name: RuntimeName) -> tuple[tuple[Operator, ...], list[str | None]]:
    torch.manual_seed(0)
    model: nn.Module = Tokens().eval()
    layers = ["emb", "up", "down", "head"]
    if recipe:
        model = quantize(model, recipe)
        calibrate(model, [TOKENS], progress=False)
    path = export_onnx(model, folder / "m.onnx", TOKENS).path
    running = open_session(path, runtime=name).graph()
    return running, Parts(onnx.load(path).graph, layers).owners(running)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    "recipe", [None, *(Recipe.uniform(w, "int8") for w in ("int8", "e4m3"))], ids=["-", "i8", "f8"]
)
def test_each_product_is_its_layers(recipe: Recipe | None, name: RuntimeName, tmp_path: Path) -> None:
    running, owners = owned(recipe, tmp_path, name)
    products = [owner for o, owner in zip(running, owners, strict=True) if {"MatMul", "Gemm", "Fully"} & words(o.kind)]
    assert products == ["up", "down", "up", "down", "head"]
    assert owners.count("emb") >= 1


def words(kind: str) -> set[str]:
    return {word for word in ("MatMul", "Gemm", "Fully") if word in kind}


def test_conversions_go_to_the_layer_that_needs_them(tmp_path: Path) -> None:
    running, owners = owned(Recipe.uniform("e4m3", "int8"), tmp_path, "onnxruntime")
    of = Counter(zip(owners, (o.kind for o in running), strict=True))
    assert {kind: n for (owner, kind), n in of.items() if owner == "up"} == {
        **{"MatMul": 2, "Add": 2},  # the bias
        **{"DequantizeLinear": 2, "Clip": 2, "QuantizeLinear": 2},  # floats that it reads, and that it returns
    }
    assert of["emb", "QuantizeLinear"] == 1
    assert of["head", "QuantizeLinear"] == 1  # behind a mean, which is no layer: for the layer that reads it
    assert {kind for owner, kind in of if owner is None} == {"QLinearAdd", "DequantizeLinear", "ReduceMean"}


def test_a_float_kernel_that_takes_in_what_follows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    path = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3, 8, 8)).path
    running = open_session(path).graph()
    owners = Parts(onnx.load(path).graph, ["0", "2", "4"]).owners(running)
    convolutions = [owner for o, owner in zip(running, owners, strict=True) if "Conv" in o.kind]
    assert convolutions == ["0", "2", "4"]


class Placed(nn.Module):
    """A table of positions, which is the same for all inputs, and a product that is fused with what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.places = nn.Embedding(7, 16), nn.Embedding(5, 16)
        self.pool, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x) + self.places(torch.arange(5))
        return self.head(torch.tanh(self.pool(x[:, 0])))  # type: ignore[no-any-return]


@pytest.mark.parametrize("recipe", [None, Recipe.uniform("int8", None)], ids=["float", "int8"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_layers_that_read_no_input_and_those_fused_with_an_activation(
    name: RuntimeName, recipe: Recipe | None, tmp_path: Path
) -> None:
    model: nn.Module = quantize(Placed().eval(), recipe) if recipe else Placed().eval()
    path = export_onnx(model, tmp_path / "m.onnx", TOKENS).path
    parts = Parts(onnx.load(path).graph, ["emb", "places", "pool", "head"])
    assert parts.fixed() == {"places"}
    assert {*parts.owners(open_session(path, runtime=name).graph())} >= {"emb", "pool", "head"}
