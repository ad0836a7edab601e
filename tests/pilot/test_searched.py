"""A searched variant: its record, the recipe that it leaves, and that a search goes on where it was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markupsafe import escape
from typer.testing import CliRunner

import lowbit as lb
from lowbit import data, files, models
from lowbit.batches import Batch
from lowbit.cli import app
from lowbit.costs import MeasuredCosts
from lowbit.errors import ExportError
from lowbit.export import measured
from lowbit.methods.search.explore import Sample, read_samples
from lowbit.pilot import costing, examined, executor, searched
from lowbit.pilot import run as run_module
from lowbit.pilot.measured import fingerprint
from lowbit.pilot.record import Run, SearchRow, Trial, read
from lowbit.pilot.run import run_pilot
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.spec import load_spec
from lowbit.pilot.task import Settings, Sources, Task
from lowbit.report.page import render
from lowbit.training import loop
from lowbit.training.samples import Augment

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(54, 4)

    def forward(self, x):
        return 10 * self.head(self.flatten(self.relu(self.conv2(self.relu(self.norm(self.conv1(x)))))))


def build():
    torch.manual_seed(3)
    return Net()
"""
SEARCH: dict[str, Any] = {
    "choices": ["int2", "e4m3", "int4"],
    "budget": [{"like": "int4", "share": 0.7}, {"cost": "file", "like": "int4"}],
    "batch_size": 16,
    "explore": 0.5,
    "crop": 1,
}
SEARCHED: dict[str, Any] = {"name": "searched", "level": "fast", "search": SEARCH}
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {
        "calibration": {"source": "calibration.npz"},
        "test": {"source": "test.npz"},
        "train": {"source": "train.npz"},
    },
    "kpi": {"metric": "accuracy", "minimum": 0.5},
    "runtime": {"batches": [1]},
    "variants": [SEARCHED],
}


def measure(project: Path, folder: Path, *, jobs: int = 1, say: Callable[[str], None] = lambda line: None) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (data.open_data(name, folder=project) for name in ("calibration.npz", "test.npz"))
    return run_pilot(spec, model, calibration, test, folder, base=project, jobs=jobs, say=say, progress=False)


def rewrite(project: Path, **sections: Any) -> None:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections, sort_keys=False))


def variant(others: dict[str, Any] | None = None, **search: Any) -> dict[str, Any]:
    return {"variants": [{**SEARCHED, **(others or {}), "search": SEARCH | search}]}


def row_of(run: Run) -> SearchRow:
    row = run.trials[-1].search
    assert row is not None, run.trials[-1].error
    return row


def settled(trial: Trial) -> Trial:
    """The trial without what a clock decides."""
    row = trial.search
    if row is not None:
        row = replace(row, epochs=tuple(replace(epoch, seconds=0.0) for epoch in row.epochs))
    return replace(trial, latencies=(), seconds=0.0, search=row)


def table(recipes: Mapping[str, lb.Recipe], layers: Sequence[str], refused: dict[str, str]) -> MeasuredCosts:
    """Costs that nobody measured: a layer takes a millisecond for each bit."""
    runs = {name: float(name[-1]) for name in recipes if name not in refused}
    times = {layer: dict(runs) for layer in layers}
    sizes = {layer: dict.fromkeys(runs, 100) for layer in layers}
    return MeasuredCosts(times, sizes, dict.fromkeys(runs, 0.0), runs, refused, {"runtime": "none"})


Asked = list[tuple[Mapping[str, lb.Recipe], Sequence[str], dict[str, Any]]]


def pretending(monkeypatch: pytest.MonkeyPatch, **refused: str) -> Asked:
    """Let a runtime that is not there be measured; what was asked for."""
    asked: Asked = []

    def measured(
        model: object, recipes: Mapping[str, lb.Recipe], layers: Sequence[str], *_: object, **how: Any
    ) -> MeasuredCosts:
        asked.append((recipes, layers, how))
        return table(recipes, layers, refused)

    monkeypatch.setattr(costing, "measure_formats", measured)
    return asked


def interrupting(steps: list[int], limit: int | None) -> Callable[[SearchSpec, tuple[float, ...]], Augment]:
    """An augmentation that counts how often it is called, and is stopped at the limit."""

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        steps[0] += 1
        if steps[0] == limit:
            raise KeyboardInterrupt
        return batch

    return lambda spec, black: augment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, data whose labels are its own predictions, and a pilot file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    inputs = torch.randn(480, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = models.load("net.py:build", folder=folder)(inputs).argmax(1)
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


# One run


def test_record_of_a_searched_variant(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    row, trial = row_of(run), run.trials[1]
    assert (row.by, row.loss, row.classes, row.choices) == ("surrogate", "kl", True, ("int2", "int4"))
    assert row.refused.keys() == {"e4m3"}
    assert row.layers == (("conv1",), ("conv2",), ("head",))
    assert [*row.budgets] == ["bops", "file"]
    assert row.found in row.candidates
    assert row.found.fits
    assert row.found.costs["bops"] == trial.bops <= row.budgets["bops"]
    assert row.found.costs["bytes"] == trial.weight_bytes
    assert row.found.costs.keys() == {"bops", "bytes", "latency", "file"}
    assert [reason.choice for reason in row.reasons] == [*row.found.choices]
    assert [layer.weights for layer in trial.layers] == [*row.found.choices]
    assert [reason.share for reason in row.reasons] == [layer.bops / row.budgets["bops"] for layer in trial.layers]
    assert [len(values) for values in row.sensitivities] == [2, 2, 2]
    assert {"uniform int2", "uniform int4"} <= {point.name for point in (*row.candidates, row.found)}
    assert [epoch.number for epoch in row.epochs] == [*range(1, len(row.epochs) + 1)]
    assert row.epochs[row.best - 1].agreement == max(epoch.agreement or 0 for epoch in row.epochs)
    assert all(abs(sum(shares) - 1) < 0.01 for window in row.movement for shares in window)
    names = {path.name for path in (folder / "variants/searched").iterdir()}
    assert names == {"model.onnx", "manifest.json", "recipe.yaml", "outputs.npy", "trial.json", "training"}
    manifest = json.loads((folder / "variants/searched/manifest.json").read_text())
    assert "training_data" in manifest["model.onnx"]["provenance"]


def test_every_sample_is_kept_and_checkpoints_are_not(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    training = folder / "variants/searched/training"
    files_left = {path.relative_to(training).as_posix() for path in training.rglob("*") if path.is_file()}
    assert files_left == {"samples.jsonl", "explore/log.jsonl", "fixed/log.jsonl"}
    samples = read_samples(training / "samples.jsonl")
    assert len(samples) == row_of(run).samples > 0
    assert searched.movement(samples, 3, 2) == row_of(run).movement


def test_gain_is_over_post_training_by_the_found_recipe(undisturbed: tuple[Run, Path]) -> None:
    run, _ = undisturbed
    row, score = row_of(run), run.trials[1].score
    assert score is not None
    assert row.gain is not None
    assert row.post_training is not None
    assert row.gain.value == pytest.approx(score.value - row.post_training.value)


def test_notes_say_how_it_was_found_and_what_was_left_out(undisturbed: tuple[Run, Path]) -> None:
    notes = undisturbed[0].trials[1].notes
    assert notes[0].startswith("search by surrogate: ")
    assert notes[1] == "compared with post-training, level fast: calibrate"
    assert notes[2].startswith("e4m3 is left out of the search: ")
    assert "no runtime computes with e4m3 activations" in notes[2]


def test_page_says_it_too(undisturbed: tuple[Run, Path]) -> None:
    html = render(undisturbed[0])
    for reason in row_of(undisturbed[0]).reasons:
        assert str(escape(reason.sentence)) in html
    assert "searched, surrogate" in html


def test_records_are_read_again(undisturbed: tuple[Run, Path], tmp_path: Path) -> None:
    run = undisturbed[0]
    files.write_json(tmp_path / "run.json", asdict(run))
    assert read(Run, tmp_path / "run.json") == run
    older = asdict(run.trials[0])
    del older["search"]
    files.write_json(tmp_path / "trial.json", older)
    assert read(Trial, tmp_path / "trial.json") == run.trials[0]


def test_found_recipe_is_applied_without_a_search(
    undisturbed: tuple[Run, Path], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = undisturbed
    recipe = folder / "variants/searched/recipe.yaml"
    assert lb.Recipe.load(recipe).to_dict() == run.trials[1].recipe
    monkeypatch.setattr(searched, "search", pytest.fail)
    monkeypatch.chdir(project)
    asked = ["apply", os.fspath(recipe), "--model", "net.py:build", "--data", "calibration.npz", "--level", "fast"]
    done = CliRunner().invoke(app, [*asked, "--out", os.fspath(tmp_path)])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "manifest.json").read_text())["model.onnx"]
    original = json.loads((folder / "variants/searched/manifest.json").read_text())["model.onnx"]
    assert stored["recipe"] == original["recipe"]


# Again


@pytest.mark.parametrize("late", [False, True], ids=["exploring", "training what was found"])
def test_killed_it_goes_on_there(copied: tuple[Path, Path], late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied

    often = {**(loop.fit.__kwdefaults__ or {}), "save_every": 2}  # steps between checkpoints
    monkeypatch.setattr(loop.fit, "__kwdefaults__", often)

    def started(limit: int | None = None) -> tuple[Run, int]:
        steps = [0]
        monkeypatch.setattr(SearchSpec, "augment", interrupting(steps, limit))
        return measure(project, folder), steps[0]

    def again() -> None:
        shutil.rmtree(folder / "variants/searched")

    again()
    whole, every = started()
    samples = (folder / "variants/searched/training/samples.jsonl").read_text()
    tried = row_of(whole).samples
    again()
    with pytest.raises(KeyboardInterrupt):
        started(every - 2 if late else tried - 2)
    training = folder / "variants/searched/training"
    assert (training / "explore/checkpoint.pt").exists()
    assert (training / "fixed/checkpoint.pt").exists() == late
    (training / "explore/.checkpoint.0a1b2c3d.pt").write_text("half of one")
    resumed, rest = started()
    assert rest < every - tried + (0 if late else 5)
    assert settled(resumed.trials[1]) == settled(whole.trials[1])
    assert (training / "samples.jsonl").read_text() == samples
    assert not [*training.rglob("*checkpoint*")]


def test_what_fails_after_the_search_does_not_search_again(
    copied: tuple[Path, Path], undisturbed: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    shutil.rmtree(folder / "variants/searched")

    def refuse(*_: object, **__: object) -> None:
        raise ExportError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(examined, "export_onnx", refuse)
        assert measure(project, folder).trials[1].error == "the disk is full"
    explored = folder / "variants/searched/training/explore/log.jsonl"
    before = explored.read_bytes()
    run = measure(project, folder)
    assert settled(run.trials[1]) == settled(undisturbed[0].trials[1])
    assert explored.read_bytes() == before


def test_another_budget_is_searched_anew_but_not_measured_again(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    lines: list[str] = []
    measure(project, folder, say=lines.append)
    assert all(line.endswith("(kept)") for line in lines)
    monkeypatch.setattr(measured._Files, "add", pytest.fail)
    rewrite(project, **variant(budget={"cost": "bytes", "like": "int4", "share": 0.9}, by="knapsack", explore=None))
    rewritten = (project / "pilot.yaml").read_text().replace("    explore: null\n", "")
    (project / "pilot.yaml").write_text(rewritten)
    row = row_of(measure(project, folder))
    assert [*row.budgets] == ["bytes"]
    assert (row.by, row.samples, row.movement) == ("knapsack", 0, ())
    assert not (folder / "variants/searched/training/samples.jsonl").exists()


def test_times_of_another_machine_begin_another_search(tmp_path: Path) -> None:
    task = Task("a", tmp_path, "0123", lb.Recipe(()), search=SearchSpec.model_validate(SEARCH))
    recipes = {name: lb.Recipe(()) for name in ("int2", "int4")}
    costs = [table(recipes, ["conv1"], {}), table(recipes, ["conv2"], {})]
    assert task.search is not None
    assert len({fingerprint(task, task.search.budget, one) for one in costs}) == 2
    counted = SearchSpec.model_validate(SEARCH | {"budget": {"most": 1e6}})
    assert {fingerprint(task, counted.budget, one) for one in costs} == {"0123"}


# What is asked of the search


def test_rules_are_for_layers_that_are_not_searched(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    asked = pretending(monkeypatch)
    head = {"match": "head", "weights": "int8", "activations": "int8"}
    budget = {"cost": "latency", "like": "int4", "share": 0.8}
    options = {"choices": ["int2", "int4"], "budget": budget, "granularity": "(conv).*", "epochs": 1}
    rewrite(project, runtime={"batches": [3, 1]}, **variant({"rules": [head], "granularity": "tensor"}, **options))
    run = measure(project, folder)
    row = row_of(run)
    assert row.layers == (("conv1", "conv2"),)
    assert row.budgets == {"latency": pytest.approx(0.8 * 2 * 4)}
    assert row.found.choices == ("int2",)
    first, second, third = run.trials[1].layers
    assert (first.weights, first.granularity) == ("int2", "channel:0")  # a BatchNorm was folded into it at the end
    assert (second.weights, second.granularity) == ("int2", "tensor")
    assert (third.weights, third.activations) == ("int8", "int8")
    ((recipes, layers, how),) = asked
    assert [*recipes] == ["int2", "int4"]
    assert layers == ("conv1", "conv2")
    assert (how["runtime"], how["threads"], how["opset"]) == ("onnxruntime", 1, 21)
    assert how["cache"] == folder / "costs.json"
    assert {str(rule.granularity) for rule in recipes["int2"].rules if rule.match != "head"} == {"tensor"}


def test_batch_that_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    examples: list[Batch] = []
    monkeypatch.setattr(costing, "measure_formats", lambda *given, **_: examples.append(given[4]))
    few = data.from_arrays(np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8))
    spec = SearchSpec.model_validate(SEARCH)
    task = Task("a", tmp_path, "0123", lb.Recipe(()), search=spec, batch=5)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
    costing.measure(task, model, Sources(few, few, few), Settings("accuracy", 0, "onnxruntime", 1, {}), progress=False)
    (timed,) = examples
    assert isinstance(timed, torch.Tensor)
    assert timed.shape == (5, 1, 8, 8)
    assert torch.equal(timed[2:4], timed[:2])


def test_costs_are_measured_before_trials_run_side_by_side(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    rewrite(project, variants=[SEARCHED, {**SEARCHED, "name": "again"}])
    order: list[str] = []

    def measured_first(task: Task, *_: object) -> None:
        order.append(task.name)
        raise lb.LowbitError("the runtime refuses it")

    monkeypatch.setattr(run_module, "measure_ahead", measured_first)

    def nothing(*_: object, **__: object) -> Iterator[Trial]:
        order.append("run")
        yield from ()

    monkeypatch.setattr(executor, "run_all", nothing)
    with pytest.raises(KeyError):  # of a trial that was not run
        measure(project, folder, jobs=2)
    assert order == ["run", "again", "run"]  # the float baseline is alone


# What goes wrong


@pytest.mark.parametrize(
    ("search", "refused", "told"),
    [
        ({}, {"int2": "no kernel"}, "a search needs .* at least, and the runtime refuses int2: no kernel"),
        ({"budget": {"most": 1}}, {}, "budget bops: 1 is below .*, the cheapest assignment; raise it"),
        ({"granularity": "stem.*"}, {}, r"granularity 'stem\.\*' matches no layer; names are conv1, conv2, head"),
    ],
)
def test_what_does_not_fit_the_model_or_the_runtime_fails_its_own_variant(
    copied: tuple[Path, Path],
    search: dict[str, Any],
    refused: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project, folder = copied
    pretending(monkeypatch, **refused)
    rewrite(project, **variant(choices=["int2", "int4"], **search))
    run = measure(project, folder)
    assert run.trials[0].verdict != "failed"
    assert run.trials[1].verdict == "failed"
    assert re.search(told, run.trials[1].error or "")
    assert run.trials[1].recipe is not None  # so that it is not taken for the float model


def test_labels_that_are_missing_are_told_before_anything_runs(copied: tuple[Path, Path], tmp_path: Path) -> None:
    project, _ = copied
    np.savez(project / "train.npz", inputs=np.load(project / "train.npz")["inputs"])
    rewrite(project, **variant(loss="labels"))
    with pytest.raises(lb.LowbitError, match=r"variant 'searched': search\.loss 'labels' learns classes.*no labels"):
        measure(project, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Records in plain fields


def test_movement_is_the_share_of_each_choice_in_windows_of_the_samples() -> None:
    samples = [Sample(step, (int(step > 20), step % 2), 1.0, 0.0) for step in range(40)]
    moved = searched.movement(samples, 2, 2)
    assert len(moved) == 20
    assert moved[0] == ((1.0, 0.0), (0.5, 0.5))
    assert moved[10] == ((0.5, 0.5), (0.5, 0.5))
    assert moved[-1] == ((0.0, 1.0), (0.5, 0.5))
    assert searched.movement(samples[:3], 2, 3) == tuple(
        tuple(tuple(float(i == chosen) for i in range(3)) for chosen in one.assignment) for one in samples[:3]
    )
    assert searched.movement([], 2, 2) == ()
