"""Times find their layers, tables add up and are kept, and a choice that cannot run is told, not raised."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from lowbit.costs import MeasuredCosts
from lowbit.errors import DataError, ExportError, LayerError, RecipeError
from lowbit.export import measured, runtime, tables
from lowbit.export.measured import Additivity, attribute, check_additivity, measure_formats
from lowbit.export.onnx import export_onnx
from lowbit.export.owners import Parts
from lowbit.export.runtime import RuntimeName, Session
from lowbit.formats import Int
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
IMAGES = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()
FLOAT = Recipe((Rule(),), glue=None)
RECIPES = {
    "float32": FLOAT,
    "int8": Recipe.uniform("int8", "int8"),
    "w4": Recipe.uniform("int4", None),
    "fp8": Recipe.uniform("e4m3", "e4m3"),  # which no runtime has as activations
}
LAYERS = ["0", "2", "4", "8"]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    equal = [part for _ in range(2) for part in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), *equal, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


def chained(*names: str) -> nn.Sequential:
    """The same, with chains in the place of layers."""
    model = small()
    for name in names:
        chain: OrderedDict[str, nn.Module] = OrderedDict(
            reduce=nn.Conv2d(4, 3, 1, bias=False),
            spatial=nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False),
            expand=nn.Conv2d(3, 4, 1),
        )
        model[int(name)] = nn.Sequential(chain)
    return model.eval()


def measure(
    recipes: Mapping[str, Recipe],
    layers: Sequence[str] = LAYERS,
    *,
    model: nn.Module | None = None,
    models: Mapping[str, nn.Module] | None = None,
    runtime: RuntimeName = "onnxruntime",
    cache: Path | None = None,
) -> MeasuredCosts:
    timing: dict[str, Any] = {"runtime": runtime, "repeats": 1, "cache": cache, "progress": False}
    return measure_formats(model or small(), recipes, layers, [IMAGES], IMAGES, models=models, **timing)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "costs.json"


@pytest.fixture(scope="module")
def costs(cache: Path) -> MeasuredCosts:
    return measure(RECIPES, cache=cache)


def stop(*_: object) -> None:
    raise AssertionError("measured")


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured._Files, "add", stop)


# The table


def test_a_table(costs: MeasuredCosts) -> None:
    choices = {"float32", "int8", "w4"}
    assert costs.milliseconds.keys() == costs.file_bytes.keys() == set(LAYERS)
    for rows in (*costs.milliseconds.values(), *costs.file_bytes.values()):
        assert rows.keys() == choices
        assert min(rows.values()) > 0
    assert costs.rest_ms.keys() == costs.whole_ms.keys() == choices
    about = {"runtime": "onnxruntime", "threads": 1, "batch": 2}
    assert about.items() <= costs.about.items()
    assert costs.about.keys() - about.keys() == {"version", "processor"}


def test_layers_and_rest_are_the_whole(costs: MeasuredCosts) -> None:
    for choice, whole in costs.whole_ms.items():
        assert costs.total_ms(dict.fromkeys(LAYERS, choice)) == pytest.approx(whole)


def test_equal_operations_share_their_time(costs: MeasuredCosts) -> None:
    assert costs.milliseconds["2"] == costs.milliseconds["4"]
    assert costs.milliseconds["0"] != costs.milliseconds["2"]


def test_a_choice_that_no_runtime_has(costs: MeasuredCosts) -> None:
    assert costs.refused.keys() == {"fp8"}
    assert "no runtime computes with e4m3 activations" in costs.refused["fp8"]


def test_file_bytes(costs: MeasuredCosts) -> None:
    weights, channels = 4 * 4 * 9, 4
    assert costs.file_bytes["2"] == {
        "float32": 4 * (weights + channels),
        "int8": weights + 4 * channels + 2 * 4 * channels,  # codes, scales; codes and scales of biases
        "w4": weights // 2 + 4 * channels + 4 * channels,
    }


def test_layers_that_are_not_asked_for_are_the_rest() -> None:
    one = measure({"float32": FLOAT}, ["2"])
    assert one.milliseconds.keys() == {"2"}
    assert one.rest_ms["float32"] + one.milliseconds["2"]["float32"] == pytest.approx(one.whole_ms["float32"])


def test_openvino() -> None:
    pytest.importorskip("openvino")
    found = measure({"int8": RECIPES["int8"]}, runtime="openvino")
    assert (found.about["runtime"], dict(found.refused)) == ("openvino", {})
    assert found.total_ms(dict.fromkeys(LAYERS, "int8")) == pytest.approx(found.whole_ms["int8"])


def test_a_model_that_is_a_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16)
    recipes = {name: RECIPES[name] for name in ("float32", "int8")}
    found = measure_formats(nn.Linear(16, 8).eval(), recipes, [""], [x], x, repeats=1, progress=False)
    assert found.refused == {}
    assert found.file_bytes == {"": {"float32": 4 * (16 * 8 + 8), "int8": 16 * 8 + 4 * 8 + 8 * 8}}
    assert min(found.milliseconds[""].values()) > 0


# Layers that are several in a choice


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    "recipe",
    [FLOAT, *(Recipe.uniform(w, a) for w, a in (("int8", "int8"), ("int4", None), ("e4m3", "int8")))],
    ids=["-", "i8", "w4", "f8"],
)
def test_all_of_a_chain_is_its_layers(recipe: Recipe, name: RuntimeName, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Counter[str | None]] = []

    def count(
        times: Sequence[float], owners: Sequence[str | None], layers: Sequence[str], whole: float
    ) -> tuple[dict[str, float], float]:
        found.append(Counter(owners))
        return attribute(times, owners, layers, whole)

    monkeypatch.setattr(measured, "attribute", count)
    monkeypatch.setattr(measured, "_PASSES", 1)
    costs = measure({"dense": recipe, "chain": recipe}, models={"chain": chained("2", "4")}, runtime=name)
    dense, chain = found
    assert chain[None] <= dense[None]  # nothing of a chain is the rest
    for layer in ("2", "4"):
        assert chain[layer] >= dense[layer] + 2
        assert min(costs.milliseconds[layer].values()) > 0
    assert costs.total_ms(dict.fromkeys(LAYERS, "chain")) == pytest.approx(costs.whole_ms["chain"])


@pytest.fixture(scope="module")
def chains() -> MeasuredCosts:
    recipes = {choice: RECIPES[choice] for choice in ("int8", "w4")}
    models = {"both": chained("2", "4"), "one": chained("2"), "all": chained("2", "4")}
    return measure({**recipes, "both": RECIPES["int8"], "one": RECIPES["int8"], "all": FLOAT}, models=models)


def test_a_table_with_chains(chains: MeasuredCosts) -> None:
    choices = {"int8", "w4", "both", "one", "all"}
    assert chains.refused == {}
    assert all(rows.keys() == choices for rows in chains.milliseconds.values())
    for choice, whole in chains.whole_ms.items():
        assert chains.total_ms(dict.fromkeys(LAYERS, choice)) == pytest.approx(whole)


def test_bytes_of_a_chain(chains: MeasuredCosts) -> None:
    weights = 4 * 3 + 3 * 9 + 3 * 4
    assert chains.file_bytes["2"]["all"] == 4 * (weights + 4)
    assert chains.file_bytes["2"]["both"] == chains.file_bytes["2"]["one"]
    assert chains.file_bytes["4"]["one"] == chains.file_bytes["4"]["int8"]
    assert chains.file_bytes["0"]["both"] == chains.file_bytes["0"]["int8"]


def test_equal_chains_share_their_time_and_no_dense_layer_does(chains: MeasuredCosts) -> None:
    times = {choice: (chains.milliseconds["2"][choice], chains.milliseconds["4"][choice]) for choice in chains.whole_ms}
    assert all(times[choice][0] == times[choice][1] for choice in ("int8", "both", "all"))
    assert times["one"][0] != times["one"][1]


def test_equal_chains_in_other_formats_do_not_share() -> None:
    rules = (Rule(weights=Int(8), activations=Int(8)), Rule("4.*", weights=None, activations=Int(8)))
    found = measure({"chain": Recipe(rules)}, models={"chain": chained("2", "4")})
    assert found.milliseconds["2"] != found.milliseconds["4"]


def test_a_model_that_is_a_chain() -> None:
    x = torch.randn(2, 16)
    chain = nn.Sequential(OrderedDict(reduce=nn.Linear(16, 4, bias=False), expand=nn.Linear(4, 8))).eval()
    found = measure_formats(
        *(nn.Linear(16, 8).eval(), {"-": FLOAT, "2x": FLOAT}, [""], [x], x),
        models={"2x": chain},
        repeats=1,
        progress=False,
    )
    assert found.file_bytes == {"": {"-": 4 * (16 * 8 + 8), "2x": 4 * (16 * 4 + 4 * 8 + 8)}}


def test_a_chain_that_is_refused_leaves_the_others() -> None:
    found = measure({"int8": RECIPES["int8"], "2x": RECIPES["fp8"]}, models={"2x": chained("2")})
    assert found.refused.keys() == {"2x"}
    assert found.milliseconds["2"].keys() == {"int8"}


def test_models_fit_their_choices() -> None:
    with pytest.raises(RecipeError, match=r"models: choice '2x' has no recipe; choices are float32"):
        measure({"float32": FLOAT}, models={"2x": chained("2")})
    with pytest.raises(LayerError, match=r"the model of '2x' has neither a layer '8' nor layers '8\.\*'"):
        measure({"2x": FLOAT}, models={"2x": small()[:6]})


# Times


def test_times_are_scaled_to_the_whole() -> None:
    spent, rest = attribute([1.0, 2.0, 1.0, 4.0], ["a", "b", None, "other"], ["a", "b"], 16.0)
    assert (spent, rest) == ({"a": 2.0, "b": 4.0}, 10.0)
    assert attribute([0.0, 0.0], ["a", None], ["a"], 16.0) == ({"a": 0.0}, 16.0)


# What cannot be measured


def test_nothing_runs() -> None:
    with pytest.raises(ExportError, match=r"onnxruntime can run none of the choices of formats: fp8: .*no runtime"):
        measure({"fp8": RECIPES["fp8"]})


def test_a_file_that_loads_but_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise RuntimeError("Not implemented")

    monkeypatch.setattr(runtime._OnnxRuntime, "run", run)
    with pytest.raises(ExportError, match="loads the file but cannot run it: RuntimeError: Not implemented"):
        measure({"float32": FLOAT})


def test_a_layer_that_no_operator_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parts, "owners", lambda _, running: [None] * len(running))
    with pytest.raises(ExportError, match="no operator in onnxruntime tells that it computes layer '0'"):
        measure({"float32": FLOAT})


def test_what_to_measure_must_exist() -> None:
    with pytest.raises(LayerError, match="'stem' is no layer with weights; the model has 0, 2, 4, 8"):
        measure(RECIPES, ["0", "stem"])
    with pytest.raises(LayerError, match="nothing to measure"):
        measure(RECIPES, [])
    with pytest.raises(LayerError, match="nothing to measure"):
        measure({})


# The cache


@pytest.mark.usefixtures("no_measuring")
def test_a_kept_table_is_not_measured_again(cache: Path, costs: MeasuredCosts) -> None:
    assert measure(RECIPES, cache=cache) == costs
    other = small()
    for parameter in other.parameters():
        parameter.data.mul_(2)
    assert measure(RECIPES, model=other, cache=cache) == costs


@pytest.mark.usefixtures("costs", "no_measuring")
@pytest.mark.parametrize(
    ("recipes", "layers"),
    [
        ({**RECIPES, "int8": Recipe.uniform("int8", "int4")}, LAYERS),
        ({"int8": RECIPES["int8"]}, LAYERS),
        (RECIPES, LAYERS[:2]),
    ],
    ids=["recipe", "choices", "layers"],
)
def test_another_question_is_measured(recipes: Mapping[str, Recipe], layers: Sequence[str], cache: Path) -> None:
    with pytest.raises(AssertionError, match="measured"):
        measure(recipes, layers, cache=cache)


@pytest.mark.usefixtures("costs", "no_measuring")
def test_another_structure_is_measured(cache: Path) -> None:
    other = small()
    other[1] = nn.ReLU6()
    with pytest.raises(AssertionError, match="measured"):
        measure(RECIPES, model=other, cache=cache)


def test_another_chain_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, recipes = tmp_path / "costs.json", {"int8": RECIPES["int8"], "2x": RECIPES["int8"]}
    first = measure(recipes, models={"2x": chained("2")}, cache=kept)
    monkeypatch.setattr(measured._Files, "add", stop)
    assert measure(recipes, models={"2x": chained("2")}, cache=kept) == first
    for models in (None, {"2x": chained("2", "4")}, {"int8": chained("2")}):
        with pytest.raises(AssertionError, match="measured"):
            measure(recipes, models=models, cache=kept)


@pytest.mark.usefixtures("costs", "no_measuring")
@pytest.mark.parametrize("package", ["onnxruntime", "lowbit", "torch"])
def test_another_version_is_measured(package: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowbit.environment.version", lambda name: "99" if name == package else version(name))
    with pytest.raises(AssertionError, match="measured"):
        measure(RECIPES, cache=cache)


def test_tables_lie_side_by_side(cache: Path, costs: MeasuredCosts, tmp_path: Path) -> None:
    kept = tmp_path / "costs.json"
    kept.write_bytes(cache.read_bytes())
    second = measure({"float32": FLOAT}, cache=kept)
    tables = [one["costs"]["whole_ms"] for one in json.loads(kept.read_text())["measured_costs"]]
    assert tables == [costs.whole_ms, second.whole_ms]


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"measured_costs": [', "line 1, column"),
        ("[1, 2]", "keeps no measured costs"),
        ('{"measured_costs": [{"asked": {}, "costs": {"rest_ms": 1}}]}', "keeps no measured costs"),
    ],
    ids=["damaged", "another file", "another table"],
)
def test_a_file_that_is_no_cache(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        measure(RECIPES, cache=path)
    assert path.read_text() == text


@pytest.mark.usefixtures("no_measuring")
def test_a_cache_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="create it first"):
        measure(RECIPES, cache=tmp_path / "none" / "costs.json")


def test_data_that_do_not_calibrate_are_not_kept(tmp_path: Path) -> None:
    recipes = {name: RECIPES[name] for name in ("float32", "int8")}
    found = measure_formats(
        *(small(), recipes, LAYERS, [], IMAGES), repeats=1, cache=tmp_path / "costs.json", progress=False
    )
    assert "calibration got no batches" in found.refused["int8"]
    assert found.whole_ms.keys() == {"float32"}
    assert not (tmp_path / "costs.json").exists()


# Sums


TABLE = MeasuredCosts(
    milliseconds={"a": {"int8": 2.0, "int4": 1.0}, "b": {"int8": 6.0, "int4": 5.0}},
    file_bytes={"a": {"int8": 8, "int4": 4}, "b": {"int8": 8, "int4": 4}},
    rest_ms={"int8": 2.0, "int4": 4.0},
    whole_ms={"int8": 10.0, "int4": 10.0},
    refused={"e4m3": "no runtime has it"},
    about={"runtime": "onnxruntime", "version": "1", "threads": 1, "batch": 2, "processor": "one"},
)


@pytest.mark.parametrize(
    ("assignment", "total"),
    [
        ({"a": "int8", "b": "int8"}, 10.0),
        ({"a": "int4", "b": "int4"}, 10.0),
        ({"a": "int8", "b": "int4"}, 2 + 5 + 3),
        ({"b": "int8", "a": "int4"}, 1 + 6 + 3),
    ],
)
def test_total(assignment: dict[str, str], total: float) -> None:
    assert TABLE.total_ms(assignment) == total


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ({"a": "int8"}, "layer 'b' is in the table or in the assignment alone"),
        ({"a": "int8", "b": "int8", "c": "int8"}, "layer 'c' is in the table or in the assignment alone"),
        ({"a": "int8", "b": "e4m3"}, r"layer 'b' has no costs in 'e4m3' \(no runtime has it\); choose from int8, int4"),
        ({"a": "int8", "b": "int2"}, r"no costs in 'int2' \(it was not measured\)"),
    ],
)
def test_an_assignment_that_the_table_does_not_know(assignment: dict[str, str], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        TABLE.total_ms(assignment)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(small(), tmp_path_factory.mktemp("file") / "m.onnx", IMAGES).path


def here(table: MeasuredCosts) -> MeasuredCosts:
    return replace(table, about=tables.about_of("onnxruntime", 1, IMAGES))


def test_additivity_of_a_file(file: Path) -> None:
    found = check_additivity(here(TABLE), {"a": "int8", "b": "int4"}, file, IMAGES, repeats=1, progress=False)
    assert found.predicted_ms == 10.0
    assert found.measured_ms > 0
    assert found.ratio == found.predicted_ms / found.measured_ms


def test_a_busier_machine_does_not_count(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(sessions: Mapping[str, Session], _: object) -> dict[str, float]:
        return {choice: {"": 25.0, "int8": 30.0, "int4": 10.0}[choice] for choice in sessions}

    monkeypatch.setattr(measured, "_take_turn", turn)
    for assignment, predicted in (
        ({"a": "int8", "b": "int4"}, 10.0 * 2),
        ({"a": "int8", "b": "int8"}, 10.0 * 3),
        ({"a": "int4", "b": "int4"}, 10.0),
    ):
        beside = {"int8": file, "int4": file}
        found = check_additivity(here(TABLE), assignment, file, IMAGES, beside=beside, repeats=1, progress=False)
        assert found == Additivity(predicted, 25.0)


def test_a_table_of_another_place(file: Path) -> None:
    with pytest.raises(DataError, match="the table is for version '1', here it is '1"):
        check_additivity(TABLE, {"a": "int8", "b": "int4"}, file, IMAGES)
    with pytest.raises(DataError, match="the table is for batch 2, here it is 1; measure again"):
        check_additivity(here(TABLE), {"a": "int8", "b": "int4"}, file, IMAGES[:1])
