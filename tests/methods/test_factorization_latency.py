"""Chains measured on a runtime: their networks are those of finished students, and a budget of time is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.errors import LayerError, RecipeError
from lowbit.export.measured import check_additivity
from lowbit.export.runtime import open_session
from lowbit.layers import weighted_layers

RECIPE = lb.Recipe.uniform("int8", "int8")
CHOICES = ["int8", "int4", "2x int4", "spatial 2x int4", "4x int8"]


class Network(nn.Module):
    """Residual, with BatchNorms that fold, a shortcut of kernel 1, and a depthwise layer that has no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(24)
        self.short = nn.Conv2d(16, 24, 1, stride=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        y = self.deep(torch.relu(self.bn2(self.conv1(x))))
        x = torch.relu(self.bn3(self.conv2(y)) + self.short(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def network() -> Network:
    torch.manual_seed(0)
    model = Network().eval()
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.normal_(one.weight)  # some negative
            nn.init.normal_(one.bias)
    return model


CHAINS = ["conv1", "conv2", "short"]  # what of it can be chains
GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(8, 3, 12, 12, generator=GENERATOR) for _ in range(3)]
EXAMPLE = BATCHES[0][:1]


@pytest.fixture(scope="module")
def table() -> lb.MeasuredCosts:
    models, recipes = lb.chain_variants(network(), RECIPE, CHOICES)
    layers = [*weighted_layers(network())]
    timing: dict[str, Any] = {"repeats": 25, "progress": False}
    return lb.measure_formats(network(), recipes, layers, BATCHES, EXAMPLE, models=models, **timing)


def times_of(table: lb.MeasuredCosts) -> dict[str, dict[str, float]]:
    return {name: dict(row) for name, row in table.milliseconds.items()}


def factorized(table: lb.MeasuredCosts, **options: Any) -> tuple[nn.Module, lb.Factorization]:
    options = {"choices": CHOICES, "measured_costs": table, "refit": False, "progress": False, **options}
    return lb.factorize(network(), RECIPE, BATCHES, **options)


def fast(table: lb.MeasuredCosts, *names: str) -> lb.MeasuredCosts:
    """The table, where chains of some layers are far faster than anything else."""
    rows = times_of(table)
    for name in names:
        rows[name]["2x int4"] = min(rows[name].values()) / 10
    return replace(table, milliseconds=rows, rest_ms=dict.fromkeys(table.rest_ms, 0.01))


def most(table: lb.MeasuredCosts) -> float:
    """Between the fastest dense network and the slowest, so that a budget of it can be met."""
    share = {choice: ms / len(CHAINS) for choice, ms in table.rest_ms.items()}
    rows = [{choice: ms + share[choice] for choice, ms in table.milliseconds[name].items()} for name in CHAINS]
    fixed = sum(row["int8"] for name, row in table.milliseconds.items() if name not in CHAINS)
    dense, slowest = sum(min(row["int8"], row["int4"]) for row in rows), sum(max(row.values()) for row in rows)
    return fixed + (dense + slowest) / 2


# Networks


def file_of(student: nn.Module, path: Path) -> tuple[list[str], list[tuple[int, tuple[int, ...]]], list[str]]:
    """Nodes, types and shapes of what is stored, and operators that run."""
    file = onnx.load(lb.export_onnx(student, path, EXAMPLE).path).graph
    stored = sorted((one.data_type, tuple(one.dims)) for one in file.initializer)
    running = [operator.kind for operator in open_session(path).graph()]
    return [node.op_type for node in file.node], stored, running


@pytest.mark.parametrize("choice", ["2x int4", "spatial 3x"])
def test_a_variant_runs_as_the_finished_student_does(choice: str, tmp_path: Path) -> None:
    models, recipes = lb.chain_variants(network(), RECIPE, [choice])
    variant = lb.quantize(models[choice], recipes[choice])
    lb.calibrate(variant, BATCHES, progress=False)
    student, found = lb.factorize(network(), RECIPE, BATCHES, choice, layers=CHAINS, progress=False)
    assert found.recipe == recipes[choice]
    assert file_of(variant, tmp_path / "variant.onnx") == file_of(student, tmp_path / "student.onnx")


def test_a_layer_that_cannot_stays_dense() -> None:
    models, recipes = lb.chain_variants(network(), RECIPE, ["2x", "spatial 2x int4", "int4"])
    assert models.keys() == {"2x", "spatial 2x int4"}
    assert list(recipes) == ["2x", "spatial 2x int4", "int4"]
    names = {choice: {*weighted_layers(model)} for choice, model in models.items()}
    assert {"short.reduce", "short.expand", "conv1.spatial", "deep"} <= names["2x"]
    assert {"short", "conv1.reduce", "conv1.expand", "deep"} <= names["spatial 2x int4"]
    rules = {rule.match: str(rule.weights) for rule in recipes["int4"].rules}
    assert rules == {**dict.fromkeys(["stem", "deep", "head"], "int8"), **dict.fromkeys(CHAINS, "int4")}
    assert {rule.match: str(rule.weights) for rule in recipes["spatial 2x int4"].rules}["short"] == "int8"


def test_a_choice_that_no_layer_has_is_left_out() -> None:
    models, recipes = lb.chain_variants(network(), RECIPE, ["2x", "svd 2x"], layers=["conv*"])
    assert models.keys() == recipes.keys() == {"2x"}
    with pytest.raises(LayerError, match="no layer can be factorized"):
        lb.chain_variants(network(), RECIPE, ["2x"], layers=["deep"])


def test_a_model_that_is_a_layer_has_no_variants() -> None:
    with pytest.raises(LayerError, match="the model is itself a layer, Linear; put it into"):
        lb.chain_variants(nn.Linear(32, 32), RECIPE, ["2x"], layers=["*"])
    models, _ = lb.chain_variants(nn.Sequential(nn.Linear(32, 32)), RECIPE, ["2x"], layers=["*"])
    assert [*weighted_layers(models["2x"])] == ["0.reduce", "0.expand"]


def test_a_variant_returns_numbers_as_large_as_the_model() -> None:
    model, x = network(), torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    models, _ = lb.chain_variants(model, RECIPE, ["2x"])
    with torch.no_grad():
        assert 0.2 < float(models["2x"](x).std() / model(x).std()) < 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again, _ = lb.chain_variants(model, RECIPE, ["2x"])
    assert torch.equal(again["2x"](x), models["2x"](x))


# Budgets


def test_a_budget_of_measured_time_is_kept(table: lb.MeasuredCosts) -> None:
    assert table.refused == {}
    budget = most(table)
    student, found = factorized(table, budget=lb.Budget("latency", most=budget))
    assert [row.name for row in found.layers] == CHAINS
    chosen = dict.fromkeys(table.milliseconds, "int8") | {row.name: row.choice for row in found.layers}
    rest = sum(table.rest_ms[row.choice] for row in found.layers) / len(CHAINS)
    assert sum(table.milliseconds[name][choice] for name, choice in chosen.items()) + rest <= budget
    for row in found.layers:
        assert row.before.milliseconds == table.milliseconds[row.name]["int8"]
        assert row.after.milliseconds == table.milliseconds[row.name][row.choice]
        dense = min(table.milliseconds[row.name][choice] for choice in ("int8", "int4"))
        assert not row.kind or row.after.milliseconds < dense
    assert student(EXAMPLE).isfinite().all()


def test_a_chain_that_is_faster_is_taken(table: lb.MeasuredCosts, tmp_path: Path) -> None:
    known = fast(table, "conv2")
    times = known.milliseconds
    fixed = sum(row["int8"] for name, row in times.items() if name not in CHAINS) + 0.01
    dense = sum(min(times[name]["int8"], times[name]["int4"]) for name in ("conv1", "short"))
    student, found = factorized(known, budget=lb.Budget("latency", most=fixed + dense + 2 * times["conv2"]["2x int4"]))
    assert {row.name: row.choice for row in found.layers if row.kind} == {"conv2": "2x int4"}
    row = next(row for row in found.layers if row.kind)
    assert row.before.milliseconds == pytest.approx(times["conv2"]["int8"])
    assert row.after.milliseconds == pytest.approx(times["conv2"]["2x int4"])
    assert "slower" not in row.advice
    path = lb.export_onnx(student, tmp_path / "m.onnx", EXAMPLE).path
    chosen = dict.fromkeys(known.milliseconds, "int8") | {one.name: one.choice for one in found.layers}
    assert check_additivity(known, chosen, path, EXAMPLE, repeats=5, progress=False).measured_ms > 0


def test_a_chain_that_is_slower_is_not(table: lb.MeasuredCosts) -> None:
    rows = {name: {**row, "2x int4": 1 + max(row.values())} for name, row in times_of(table).items()}
    budget = lb.Budget("latency", like="2x int4")  # which leaves room for it
    slow, choices = replace(table, milliseconds=rows), ["int8", "2x int4"]
    _, found = factorized(slow, budget=budget, choices=choices)
    assert [row.choice for row in found.layers] == ["int8"] * len(CHAINS)


def test_a_chain_that_is_faster_only_by_what_belongs_to_no_layer_is_not(table: lb.MeasuredCosts) -> None:
    rows = {name: {"int8": 1.0, "2x int4": 1.0} for name in table.milliseconds}
    odd = replace(table, milliseconds=rows, rest_ms={"int8": 2.0, "2x int4": 1.0})
    _, found = factorized(odd, budget=lb.Budget("latency", like="int8"), choices=["int8", "2x int4"])
    assert [row.choice for row in found.layers] == ["int8"] * len(CHAINS)


def test_milliseconds_of_the_dense_layer_in_its_own_format(table: lb.MeasuredCosts) -> None:
    _, found = factorized(table, choices={"conv1": "int4", "conv2": "2x int4"})
    rows = {row.name: row for row in found.layers}
    for name, choice in (("conv1", "int4"), ("conv2", "2x int4")):
        assert rows[name].before.milliseconds == table.milliseconds[name]["int8"]
        assert rows[name].after.milliseconds == table.milliseconds[name][choice]
    bare = {name: {"2x int4": row["2x int4"]} for name, row in table.milliseconds.items() if name in CHAINS}
    _, found = factorized(replace(table, milliseconds=bare), choices="2x int4", layers=CHAINS)
    assert [row.before.milliseconds for row in found.layers] == [None] * len(CHAINS)
    assert [row.after.milliseconds for row in found.layers] == [bare[name]["2x int4"] for name in CHAINS]


def test_layers_outside_take_what_they_take(table: lb.MeasuredCosts) -> None:
    """A budget like int8 is the whole network's time in int8, whichever layers the table has beside the chains."""
    for known in (fast(table, "conv1"), fast(table, "conv2")):
        inner = {name: row for name, row in known.milliseconds.items() if name in CHAINS}
        fewer = replace(known, milliseconds=inner)
        both = [
            factorized(one, budget=lb.Budget("latency", like="int8"), choices=["int8", "2x int4"])[1].budget
            for one in (known, fewer)
        ]
        assert both[0] is not None
        assert both[1] is not None
        outside = sum(row["int8"] for name, row in known.milliseconds.items() if name not in CHAINS)
        assert both[0][1] == pytest.approx(both[1][1] + outside)


def test_a_refused_choice_is_told(table: lb.MeasuredCosts) -> None:
    rows = times_of(table)
    for row in rows.values():
        del row["2x int4"]
    lacks = replace(table, milliseconds=rows, refused={"2x int4": "no kernel"})
    with pytest.raises(RecipeError, match=r"lack layer 'conv1' in '2x int4' \(no kernel\); measure all of its choices"):
        factorized(lacks, budget=lb.Budget("latency", most=1.0))


def test_a_layer_outside_that_was_measured_as_a_chain_alone(table: lb.MeasuredCosts) -> None:
    rows = {name: {"2x int4": row["2x int4"]} for name, row in table.milliseconds.items()}
    with pytest.raises(RecipeError, match="'stem', which stays dense, only as a chain; measure a dense choice too"):
        factorized(replace(table, milliseconds=rows), choices="2x int4", layers=CHAINS)


def test_a_layer_outside_in_formats_of_its_own(table: lb.MeasuredCosts) -> None:
    """Its column of another dense choice is what it takes in its own formats, which no choice is named after."""
    rows = {name: {"int4": 3.0, "2x int4": 1.0} for name in table.milliseconds}
    known = replace(table, milliseconds=rows, rest_ms=dict.fromkeys(("int4", "2x int4"), 0.0))
    budget = lb.Budget("latency", like="2x int4", share=1.0)
    _, found = factorized(known, budget=budget, choices=["int4", "2x int4"])
    assert found.budget is not None
    assert found.budget[1] == pytest.approx(3 * 3.0 + 3 * 1.0)
