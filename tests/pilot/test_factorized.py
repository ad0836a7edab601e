"""A factorized variant: its record, the recipe that makes the same student again, and training on top of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from markupsafe import escape
from typer.testing import CliRunner

import lowbit as lb
from lowbit import files, models
from lowbit.cli import app
from lowbit.costs import MeasuredCosts
from lowbit.errors import ExportError
from lowbit.export.measured import measure_formats
from lowbit.layers import weighted_layers
from lowbit.methods.factorization import run as factorizing
from lowbit.pilot import costing, examined, executor, factorized
from lowbit.pilot import run as run_module
from lowbit.pilot.record import FactorizationRow, Run, Trial, read
from lowbit.pilot.run import run_pilot
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.spec import load_recipe, load_spec
from lowbit.pilot.task import Task
from lowbit.report.figures import milliseconds
from lowbit.report.page import render

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 6, 3, stride=2)
        self.narrow = nn.Conv2d(6, 1, 3)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(55, 4, bias=False)

    def forward(self, x):
        x = self.conv3(self.relu(self.norm(self.conv2(self.relu(self.conv1(x))))))
        return 10 * self.head(torch.cat([self.flatten(x), self.flatten(self.narrow(x))], 1))


def build():
    torch.manual_seed(3)
    return Net()
"""
FORMATS = {"weights": "int4", "activations": "int8"}
CHAINS: dict[str, Any] = {
    "name": "chains",
    **FORMATS,
    "factorize": {"layers": ["conv[23]", "narrow"], "norms": True, "crop": 1},
}
TRAINED: dict[str, Any] = {
    "name": "trained",
    **FORMATS,
    "factorize": {"choices": "1.5x", "compare": False},
    "distill": {"epochs": 2, "batch_size": 32},
}
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {
        "calibration": {"source": "calibration.npz", "preprocess": {"mean": [0.1]}},
        "test": {"source": "test.npz", "preprocess": {"mean": [0.1]}},
        "train": {"source": "train.npz", "preprocess": {"mean": [0.1]}},
    },
    "kpi": {"metric": "accuracy", "minimum": 0.5},
    "runtime": {"batches": [1]},
    "variants": [CHAINS, TRAINED],
}


def measure(project: Path, folder: Path, *, jobs: int = 1, say: Callable[[str], None] = lambda line: None) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    return run_pilot(spec, model, calibration, test, folder, base=project, jobs=jobs, say=say, progress=False)


def rewrite(project: Path, **sections: Any) -> None:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections, sort_keys=False))


def variant(**factorize: Any) -> dict[str, Any]:
    return {"variants": [{**CHAINS, "factorize": factorize}]}


def row_of(run: Run, place: int = 1) -> FactorizationRow:
    row = run.trials[place].factorization
    assert row is not None, run.trials[place].error
    return row


def settled(trial: Trial) -> Trial:
    """The trial without what a clock decides."""
    row = trial.distillation
    if row is not None:
        row = replace(row, epochs=tuple(replace(epoch, seconds=0.0) for epoch in row.epochs))
    return replace(trial, latencies=(), seconds=0.0, distillation=row)


def stored(path: Path) -> dict[str, bytes]:
    """The numbers in a file, by name."""
    return {one.name: one.SerializeToString() for one in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, data whose labels are its own predictions, and a pilot file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    inputs = torch.randn(480, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = models.load("net.py:build", folder=folder)(inputs - 0.1).argmax(1)
    np.savez(folder / "test.npz", inputs=inputs[:120].numpy(), labels=labels[:120].numpy())
    np.savez(folder / "calibration.npz", inputs=inputs[120:240].numpy())
    np.savez(folder / "train.npz", inputs=inputs[240:].numpy(), labels=labels[240:].numpy())
    rewrite(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return measure(project, folder), folder


@pytest.fixture
def copied(project: Path, undisturbed: tuple[Run, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies, free to change, of the project and its finished run."""
    shutil.copytree(project, tmp_path / "project")
    shutil.copytree(undisturbed[1], tmp_path / "run")
    return tmp_path / "project", tmp_path / "run"


@pytest.fixture
def applied(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Make a file of a recipe with `lowbit apply`."""
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(PILOT["data"]["calibration"]))
    shutil.copy(project / "calibration.npz", tmp_path)
    monkeypatch.chdir(project)

    def apply(recipe: Path) -> Path:
        asked = ["apply", os.fspath(recipe), "--model", "net.py:build", "--data", os.fspath(tmp_path / "data.yaml")]
        asked += ["--out", os.fspath(tmp_path), "--seed", "5"]  # of the samples, not of the factors
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, done.output
        return tmp_path / "model.onnx"

    return apply


# One run


def test_record_of_a_factorized_variant(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    row, trial = row_of(run), run.trials[1]
    assert (row.solver, row.exact, row.budgets) == ("descent", False, {})
    assert [one.name for one in row.layers] == ["conv2", "conv3"]
    assert row.skipped == {"narrow": "it has one input or one output channel: a chain would be no smaller"}
    for one in row.layers:
        assert (one.choice, one.kind) == ("2x", "cp")
        assert one.errors.keys() == {"float", "rounding", "admm", "descent"}
        assert one.errors["float"] < one.errors["descent"] < one.errors["rounding"]
        assert one.output_before is not None
        assert one.output_after is not None
        assert one.output_after < one.output_before
        assert one.after.parameters < one.before.parameters
        assert one.before.milliseconds is not None
        assert one.after.milliseconds is not None
        assert one.before.milliseconds > 0
        assert one.after.milliseconds > 0
        assert "bits a weight" in one.advice
    assert (row.after.bops, row.after.weight_bytes) == (trial.bops, trial.weight_bytes)
    assert row.after.bops < row.before.bops
    assert row.agreement is not None
    assert row.recalibrated is not None
    assert [layer.name for layer in trial.layers if layer.name.startswith("conv2")] == [
        *("conv2.reduce", "conv2.spatial", "conv2.expand"),
    ]
    assert [layer.name for layer in trial.layers if layer.sqnr_db is None] == [  # the model has no such layers
        f"{name}.{part}" for name in ("conv2", "conv3") for part in ("reduce", "spatial", "expand")
    ]
    assert trial.notes[0].startswith("2 of 2 layers factorized by descent: ")
    names = {path.name for path in (folder / "variants/chains").iterdir()}
    assert names == {"model.onnx", "manifest.json", "recipe.yaml", "outputs.npy", "trial.json"}


def test_recipe_says_what_became_of_each_layer(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    path = folder / "variants/chains/recipe.yaml"
    recipe, section, *_ = load_recipe(path)
    assert recipe == lb.Recipe.uniform("int4", "int8")
    assert section == FactorizeSpec(choices={"conv2": "2x", "conv3": "2x"}, norms=True, crop=1, compare=False, seed=0)
    assert files.read_yaml(path) == run.trials[1].recipe
    trained = yaml.safe_load((folder / "variants/trained/recipe.yaml").read_text())
    assert trained["factorize"] == {
        **{"choices": {"conv2": "1.5x", "conv3": "1.5x"}, "exact": False, "solver": "descent"},
        **{"middle": "int8", "refit": True, "compare": False, "seed": 0},
    }


def test_trained_after_it_was_factorized(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    trial, row = run.trials[2], row_of(run, 2)
    assert [one.errors.keys() for one in row.layers] == [{"float", "rounding", "descent"}] * 2
    assert trial.distillation is not None
    assert trial.distillation.gain is not None
    assert trial.distillation.post_training is not None
    assert trial.score is not None
    before = trial.distillation.post_training.value
    assert trial.distillation.gain.value == pytest.approx(trial.score.value - before)
    assert {one.name for one in trial.distillation.ranges} >= {"conv2.reduce.weight_quantizer"}
    assert [layer.name for layer in trial.layers if layer.sqnr_db is None] == []
    assert trial.notes[0].startswith("distilled (kl) with ewgs: 2 epochs")
    assert trial.notes[1].startswith("compared with 2 of 2 layers factorized by descent")
    assert [path.name for path in (folder / "variants/trained/training").rglob("*")] == ["log.jsonl"]


def test_what_training_is_compared_with_is_the_factorized_file(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    untrained = {key: value for key, value in TRAINED.items() if key != "distill"}
    rewrite(project, variants=[untrained | {"name": "untrained"}, TRAINED])
    run = measure(project, folder)
    assert run.trials[2].distillation is not None
    assert run.trials[2].distillation.post_training == run.trials[1].score


def test_page_says_it_too(undisturbed: tuple[Run, Path]) -> None:
    html = render(undisturbed[0])
    for one in row_of(undisturbed[0]).layers:
        assert str(escape(one.advice)) in html
        for spent in (one.before, one.after):
            assert spent.milliseconds is not None
            assert milliseconds(spent.milliseconds) in html
    assert "factorized, descent" in html
    assert "Against factorization alone, which has" in html


def test_records_are_read_again(undisturbed: tuple[Run, Path], tmp_path: Path) -> None:
    run = undisturbed[0]
    files.write_json(tmp_path / "run.json", asdict(run))
    assert read(Run, tmp_path / "run.json") == run
    older = asdict(run.trials[0])
    del older["factorization"]
    files.write_json(tmp_path / "trial.json", older)
    assert read(Trial, tmp_path / "trial.json") == run.trials[0]


# The same again


def test_found_recipe_makes_the_same_file(undisturbed: tuple[Run, Path], applied: Callable[[Path], Path]) -> None:
    folder = undisturbed[1] / "variants/chains"
    again = applied(folder / "recipe.yaml")
    assert stored(again) == stored(folder / "model.onnx")
    recipes = [json.loads((one / "manifest.json").read_text())["model.onnx"] for one in (again.parent, folder)]
    assert recipes[0]["recipe"] == recipes[1]["recipe"]


def test_what_a_budget_chose_is_not_chosen_again(
    copied: tuple[Path, Path], applied: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    choices = ["int8", "rank 8", "spatial 1.5x int6"]
    given = {"choices": choices, "budget": {"like": "int8", "share": 0.85}, "layers": ["conv?"], "seed": 3}
    rewrite(project, **variant(**given))
    with monkeypatch.context() as patch:
        pretending(patch)
        row = row_of(measure(project, folder))
    assert {one.choice for one in row.layers} <= {*choices}
    assert any(one.kind for one in row.layers)
    assert row.after.bops <= row.budgets["bops"]
    _, section, *_ = load_recipe(folder / "variants/chains/recipe.yaml")
    assert section is not None
    assert section.choices == {one.name: one.choice for one in row.layers}
    assert (section.budget, section.layers, section.seed) == (None, None, 3)
    monkeypatch.setattr(factorizing, "allocated", pytest.fail)
    monkeypatch.setattr("lowbit.export.measured._Files.add", pytest.fail)
    again = applied(folder / "variants/chains/recipe.yaml")
    assert stored(again) == stored(folder / "variants/chains/model.onnx")


def test_section_of_a_recipe_that_is_wrong_names_its_place(tmp_path: Path) -> None:
    content = lb.Recipe.uniform("int4", "int8").to_dict() | {"factorize": {"choices": {"conv2": "two"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(lb.LowbitError, match=r"recipe\.yaml: factorize\.choices: .*'two'"):
        load_recipe(tmp_path / "recipe.yaml")


# Again


def test_factors_that_were_found_are_kept_until_the_trial_is_finished(
    copied: tuple[Path, Path], undisturbed: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    shutil.rmtree(folder / "variants/chains")

    def refuse(*_: object, **__: object) -> None:
        raise ExportError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(examined, "export_onnx", refuse)
        assert measure(project, folder).trials[1].error == "the disk is full"
    training = folder / "variants/chains/training"
    assert len([*training.rglob("*.safetensors")]) == 2
    monkeypatch.setattr("lowbit.methods.factorization.factors.descent", pytest.fail)
    run = measure(project, folder)
    assert settled(run.trials[1]) == settled(undisturbed[0].trials[1])
    assert not training.exists()


def test_only_what_changed_is_done_again(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    pretending(monkeypatch)

    def kept() -> list[bool]:
        lines: list[str] = []
        measure(project, folder, say=lines.append)
        return [line.endswith("(kept)") for line in sorted(lines, key=lambda line: line.split()[1])]

    assert kept() == [True, True, True]  # chains, float, trained
    one = {"choices": "3x", "layers": "conv2", "compare": False}
    rewrite(project, variants=[{**CHAINS, "factorize": one}, TRAINED])
    assert kept() == [False, True, True]


# What is asked of the method


def test_published_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(factorized, "factorize", lambda *given, **how: asked.update(how, given=given))
    batches = [torch.randn(4, 1, 6, 6)]
    spec = FactorizeSpec(exact=True, norms=True, flip=True, compare=False)
    factorized.student_of(torch.nn.Identity(), lb.Recipe(()), spec, batches, (), seed=4)
    assert (asked["exact"], asked["seed"], asked["compare"]) == (True, 4, False)
    (changed,) = asked["norms"]
    assert not torch.equal(changed, batches[0])
    assert torch.equal(changed.abs().amax((1, 2, 3)), batches[0].abs().amax((1, 2, 3)))
    factorized.student_of(torch.nn.Identity(), lb.Recipe(()), FactorizeSpec(norms=True, seed=1), batches, (), seed=4)
    assert asked["norms"] is batches
    assert asked["seed"] == 1
    assert spec.found({"a": "2x"}, 4).keys() == {"choices", "exact", "norms", "crop", "flip", "compare", "seed"}


# What choices cost on the runtime


def pretending(monkeypatch: pytest.MonkeyPatch, **refused: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Let chains take a millisecond in each layer and dense layers two; what was asked for."""
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def measured(*given: Any, **how: Any) -> MeasuredCosts:
        asked.append((given, how))
        told = {name.replace("_", " "): reason for name, reason in refused.items()}
        times = {choice: 1.0 if choice in how["models"] else 2.0 for choice in given[1] if choice not in told}
        sizes = {layer: {choice: int(100 * ms) for choice, ms in times.items()} for layer in given[2]}
        rest = dict.fromkeys(times, 0.5)
        return MeasuredCosts({layer: dict(times) for layer in given[2]}, sizes, rest, times, told, {"runtime": "none"})

    monkeypatch.setattr(costing, "measure_formats", measured)
    return asked


def test_a_latency_budget_is_met(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    tables: list[MeasuredCosts] = []

    def measured(*given: Any, **how: Any) -> MeasuredCosts:
        tables.append(measure_formats(*given, **how, repeats=25))
        return tables[0]

    monkeypatch.setattr(costing, "measure_formats", measured)
    budget = {"cost": "latency", "like": "int8"}
    rewrite(project, **variant(choices=["int8", "2x int4"], budget=budget, compare=False))
    row = row_of(measure(project, folder))
    (table,) = tables
    assert table.rest_ms.keys() == {"int8", "int4", "2x int4"}  # those of the choices, and the recipe's
    assert [*table.milliseconds] == ["conv1", "conv2", "conv3", "narrow", "head"]
    chosen = {one.name: one.choice for one in row.layers}
    rest = sum(table.rest_ms[choice] for choice in chosen.values()) / len(chosen)
    every = dict.fromkeys(table.milliseconds, "int4") | chosen
    assert sum(table.milliseconds[name][choice] for name, choice in every.items()) + rest <= row.budgets["latency"] * (
        1 + 1e-9
    )
    for one in row.layers:
        assert one.before.milliseconds == table.milliseconds[one.name]["int4"]
        assert one.after.milliseconds == table.milliseconds[one.name][one.choice]


@pytest.mark.parametrize("cost", ["latency", "file"])
def test_what_was_measured_decides(cost: str, copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    asked = pretending(monkeypatch)
    budget = {"cost": cost, "most": {"latency": 2 * 3 + 2 * 1 + 0.6, "file": 300}[cost]}
    rewrite(project, runtime={"batches": [3, 1]}, **variant(choices=["int8", "2x int4"], budget=budget, compare=False))
    row = row_of(measure(project, folder))
    assert row.budgets == {cost: budget["most"]}
    assert [one.name for one in row.layers] == ["conv2", "conv3"]
    assert [one.choice for one in row.layers].count("2x int4") == {"latency": 2, "file": 1}[cost]
    assert {one.before.milliseconds for one in row.layers} == {2.0}
    ((given, how),) = asked
    assert given[4].shape == (3, 1, 8, 8)
    assert (how["runtime"], how["threads"], how["opset"]) == ("onnxruntime", 1, 21)
    assert how["cache"] == folder / "costs.json"


def test_times_of_another_machine_begin_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[str] = []
    monkeypatch.setattr(factorized, "prepared", lambda task, fingerprint: kept.append(fingerprint))
    monkeypatch.setattr(factorized, "student_of", lambda *_, **__: (None, None))
    tables = [MeasuredCosts({}, {}, {}, {"2x": ms}, {}, {}) for ms in (1.0, 2.0)]
    for cost in ("latency", "file", "bops"):
        spec = FactorizeSpec.model_validate({"budget": {"cost": cost, "most": 1}})
        task = Task("a", tmp_path, "0123", lb.Recipe(()), factorize=spec)
        for costs in tables:
            factorized.make(task, torch.nn.Identity(), [], costs, classes=True, seed=0, progress=False)
    assert len({*kept[:2], "0123"}) == 3
    assert kept[2:] == [*kept[:2], "0123", "0123"]


def test_choices_of_a_mapping_are_measured_where_they_are(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    asked = pretending(monkeypatch)
    rules = [{"match": "conv3", "weights": "int6"}]
    choices = {"conv*": "rank 16", "conv1": "int3", "conv2": "2x", "narrow": "3x"}  # conv3 alone can have rank 16
    rewrite(project, variants=[{**CHAINS, "rules": rules, "factorize": {"choices": choices, "compare": False}}])
    row = row_of(measure(project, folder))
    assert {one.name: one.choice for one in row.layers} == {"conv1": "int3", "conv2": "2x", "conv3": "rank 16"}
    assert [one.before.milliseconds for one in row.layers] == [2.0, 2.0, 2.0]
    assert [one.after.milliseconds for one in row.layers] == [2.0, 1.0, 1.0]
    (((_, recipes, *_), how),) = asked
    assert recipes.keys() == {"int3", "int4", "int6", "rank 16", "2x"}
    assert how["models"].keys() == {"rank 16", "2x"}
    names = {choice: {*weighted_layers(model)} for choice, model in how["models"].items()}
    assert {"conv1", "conv2", "conv3.spatial"} <= names["rank 16"]
    assert {"conv1", "conv2.spatial", "conv3"} <= names["2x"]
    formats = {rule.match: str(rule.weights) for rule in recipes["int6"].rules}
    inner = dict.fromkeys(["conv1", "conv2", "conv3"], "int6")
    assert formats == {**inner, "narrow": "int4", "head": "int4"}


def test_a_refused_choice_is_told_where_times_do_not_decide(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    pretending(monkeypatch, **{"3x_int2": "no kernel"})
    budget = {"like": "int8", "share": 0.9}
    rewrite(project, **variant(choices=["int8", "3x int2", "1.5x int4"], budget=budget, compare=False))
    run = measure(project, folder)
    row = row_of(run)
    assert "3x int2 has no milliseconds: no kernel" in run.trials[1].notes
    assert {one.before.milliseconds for one in row.layers} == {2.0}
    expected = {"int8": 2.0, "3x int2": None, "1.5x int4": 1.0}
    assert all(one.after.milliseconds == expected[one.choice] for one in row.layers)


@pytest.mark.parametrize(
    "factorize",
    [
        {"choices": "2x", "layers": "conv2"},
        {"choices": {"conv2": "2x"}},
        {"choices": ["int8", "2x"], "budget": {"like": "int8", "share": 0.9}, "layers": "conv2"},
        {"choices": ["int8", "2x"], "tolerance": 0.9, "layers": "conv2"},
    ],
)
def test_a_runtime_that_measures_nothing_is_told_where_times_do_not_decide(
    factorize: dict[str, Any], copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    monkeypatch.setattr(costing, "measure_formats", refuse)
    rewrite(project, **variant(**factorize, compare=False))
    run = measure(project, folder)
    assert "layers have no milliseconds: no clock" in run.trials[1].notes
    assert {one.after.milliseconds for one in row_of(run).layers} == {None}


def refuse(*_: object, **__: object) -> None:
    raise ExportError("no clock")


def test_a_runtime_that_refuses_fails_a_variant_whose_times_decide(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    rewrite(project, **variant(choices=["int8", "2x"], budget={"cost": "latency", "like": "int8"}, compare=False))
    with monkeypatch.context() as patch:
        patch.setattr(costing, "measure_formats", refuse)
        assert measure(project, folder).trials[1].error == "no clock"
    pretending(monkeypatch, **{"2x": "no kernel"})
    told = measure(project, folder).trials[1].error
    assert told is not None
    assert "lack layer 'conv2' in '2x' (no kernel)" in told


def test_choices_are_measured_before_trials_run_side_by_side(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    rewrite(project, **variant(choices="3x", compare=False))
    order: list[str] = []
    monkeypatch.setattr(run_module, "measure_ahead", lambda task, *_: order.append(task.name))

    def nothing(*_: object, **__: object) -> list[Trial]:
        order.append("run")
        return []

    monkeypatch.setattr(executor, "run_all", nothing)
    with pytest.raises(KeyError):  # of a trial that was not run
        measure(project, folder, jobs=2)
    assert order == ["run", "chains", "run"]  # the float baseline is alone


# What goes wrong


@pytest.mark.parametrize(
    ("factorize", "told"),
    [
        ({"choices": "2x", "layers": "stem"}, "layers: 'stem' matches no layer; names are conv1, conv2"),
        ({"choices": "rank 900"}, "layer 'conv2': got rank 900, expected 1 to "),
        (
            {"choices": ["int8", "2x"], "budget": {"most": 1}},
            "budget bops: 1 is below .*, the cheapest assignment; raise it",
        ),
        ({"choices": "int4"}, "no layer can be factorized"),
    ],
)
def test_what_does_not_fit_the_model_fails_its_own_variant(
    copied: tuple[Path, Path], factorize: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    pretending(monkeypatch)
    rewrite(project, **variant(**factorize))
    run = measure(project, folder)
    assert run.trials[0].verdict != "failed"
    assert run.trials[1].verdict == "failed"
    assert re.search(told, run.trials[1].error or "")
    assert run.trials[1].recipe is not None  # so that it is not taken for the float model
