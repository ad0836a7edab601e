"""A variant whose features are codes: its record, its file, what it goes with, and the recipe that makes it again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from lowbit import files, models
from lowbit.cli import app
from lowbit.errors import DataError, RecipeError
from lowbit.pilot import coded
from lowbit.pilot.planning import PlanError, plan_file
from lowbit.pilot.record import FeaturesRow, Run, Score, Trial
from lowbit.pilot.run import run_pilot
from lowbit.pilot.spec import load_recipe, load_spec
from lowbit.report.page import render

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 10)
        self.relu = nn.ReLU()
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.relu(self.hidden(x)))


def build():
    torch.manual_seed(3)
    net, (x, y) = Net(), material(600, 0)
    with torch.no_grad():
        features = torch.cat([net.relu(net.hidden(x)), torch.ones(600, 1)], 1)
        solved = torch.linalg.solve(features.T @ features + torch.eye(11), features.T @ torch.eye(3)[y])
        net.head.weight.copy_(solved[:-1].T)
        net.head.bias.copy_(solved[-1])
    return net


def material(count, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=g)
    return torch.randn(count, 6, generator=g) + 2.2 * torch.eye(6)[y], y
"""
FORMATS: dict[str, Any] = {"weights": "int8", "activations": "int8", "level": "fast"}
BITS: dict[str, Any] = {"name": "bits", **FORMATS, "features": {"classifier": "svm"}}
TAUGHT: dict[str, Any] = {
    "name": "taught",
    **FORMATS,
    "features": {"codes": "ternary", "threshold": 0.5, "layer": "relu", "classifier": "svm"},
    "distill": {"epochs": 1, "quantizer": "lsq"},
}
CHAINS: dict[str, Any] = {
    "name": "chains",
    "weights": "int8",
    "activations": "int8",
    "features": {"codes": "binary", "threshold": "global", "classifier": "logistic"},
    "factorize": {"layers": "hidden", "compare": False},
}
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {name: {"source": f"{name}.npz"} for name in ("calibration", "test", "train")},
    "kpi": {"metric": "accuracy", "minimum": 0.5},
    "runtime": {"batches": [1]},
    "variants": [BITS, TAUGHT, CHAINS],
}


def measure(project: Path, folder: Path) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    return run_pilot(spec, model, calibration, test, folder, base=project, say=lambda line: None, progress=False)


def rewrite(project: Path, **sections: Any) -> None:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections, sort_keys=False))


def write(project: Path, name: str, count: int, seed: int, labels: bool = True) -> None:
    drawn: Any = files.resolve("net.py:material", project)
    x, y = drawn(count, seed)
    arrays = {"inputs": x.numpy()} | ({"labels": y.numpy()} if labels else {})
    np.savez(project / f"{name}.npz", **arrays)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    (folder / "net.py").write_text(NETWORK)
    write(folder, "train", 160, 1)
    write(folder, "calibration", 128, 2, labels=False)
    write(folder, "test", 300, 3)
    rewrite(folder)
    return folder


@pytest.fixture
def project(material: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(material, tmp_path / "project", ignore=shutil.ignore_patterns("run")))


@pytest.fixture(scope="module")
def run(material: Path) -> Run:
    return measure(material, material / "run")


def of(run: Run, name: str) -> tuple[Trial, FeaturesRow]:
    trial = next(one for one in run.trials if one.name == name)
    assert trial.features is not None, trial.error
    return trial, trial.features


def test_heads_are_compared_on_the_same_test_data(run: Run) -> None:
    trial, row = of(run, "bits")
    assert (row.layer, row.head, row.features, row.samples, row.classifier) == ("", "head", 10, 160, "svm")
    assert [head.name for head in row.heads] == ["own", "original", "clipped", "robust-scaled", "neighbors"]
    by_name = {head.name: head for head in row.heads}
    assert by_name["own"].score == run.trials[0].score
    assert row.file == trial.score
    for head in row.heads:
        assert head.score.samples == 300
        assert head.gain.value == pytest.approx(row.score.value - head.score.value)
        assert head.outcome == coded.outcome(head.gain, row.margin)
    best = max((by_name[name] for name in ("original", "clipped", "robust-scaled")), key=lambda one: one.score.value)
    assert row.best_float == best.name
    assert min(head.score.value for head in row.heads) > 0.7
    assert (row.bytes_float, row.bytes_int8, row.bytes_packed) == (40, 10, 8 if row.code == "binary" else 16)
    assert sum(row.shares) == pytest.approx(1)
    assert row.tried_floats > 0.7
    assert row.discrimination > 0.5
    assert row.applicability


def test_other_variants_are_made_with_codes_too(run: Run) -> None:
    trial, row = of(run, "taught")
    assert (row.layer, row.code, row.rule, row.threshold, row.classifier) == ("relu", "ternary", "given", 0.5, "svm")
    assert trial.distillation is not None
    assert trial.layers[-1].activations == "ternary"
    trial, row = of(run, "chains")
    assert (row.code, trial.layers[-1].activations) == ("binary", "int1")
    assert trial.factorization is not None
    assert trial.factorization.layers[0].name == "hidden"
    for trial in run.trials[1:]:
        assert trial.verification is not None
        assert trial.verification.same_prediction == 1.0
        assert trial.verification.kernels["Greater"] == 1
        assert trial.notes[0].startswith("features: ")


def test_the_page_has_a_section(run: Run) -> None:
    page = render(run)
    assert page.count("<h4>Features</h4>") == 3
    assert "this variant, on ternary codes" in page


def test_the_recipe_makes_the_same_file_again(
    run: Run, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(material)
    home = material / "run/variants/bits"
    section = load_recipe(home / "recipe.yaml")[3]
    assert section is not None
    assert (section.layer, section.weights) == ("", "head.safetensors")
    shared = ["--model", "net.py:build", "--data", "calibration.npz", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["apply", str(home / "recipe.yaml"), *shared, "--level", "fast"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/model.onnx").read_bytes() == (home / "model.onnx").read_bytes()
    folder = Path(shutil.copytree(home, tmp_path / "other"))
    (folder / "head.safetensors").write_bytes(b"nothing")
    done = CliRunner().invoke(app, ["apply", str(folder / "recipe.yaml"), *shared])
    assert isinstance(done.exception, DataError)
    assert "head.safetensors" in str(done.exception)
    rewritten = material / "own.yaml"
    rewritten.write_text(yaml.safe_dump(PILOT | {"variants": [{"name": "own", "recipe": str(home / "recipe.yaml")}]}))
    with pytest.raises(RecipeError, match=r"variants\[0\].recipe: .* is of a network whose features are codes"):
        load_spec(rewritten)


def test_a_plan_tells_of_the_codes_and_of_layers_that_are_not_there(project: Path) -> None:
    made = plan_file(project / "pilot.yaml", project / "run")
    steps = {trial.name: [step.name for step in trial.steps] for trial in made.trials}
    assert "features" in steps["bits"]
    assert "features" not in steps["float"]
    rewrite(project, variants=[BITS | {"features": {"layer": "rely"}}])
    with pytest.raises(PlanError, match=r"features.layer: the model has no layer 'rely'; did you mean 'relu'"):
        plan_file(project / "pilot.yaml", project / "run")


def test_a_layer_that_cannot_be_coded_fails_its_variant_only(project: Path) -> None:
    rewrite(project, variants=[BITS | {"features": {"layer": "rely"}}])
    found = measure(project, project / "run").trials[1]
    assert found.verdict == "failed"
    assert str(found.error).startswith("layer 'rely' is not in the model; did you mean relu")


@pytest.mark.parametrize(
    ("name", "labels", "told"),
    [
        (
            "train",
            False,
            "variant 'bits': features are read by a head that learns classes, and the data that it trains",
        ),
        ("test", False, "needs labels|variant 'bits': features are judged by labels, and the test data has none"),
    ],
)
def test_data_without_labels(project: Path, name: str, labels: bool, told: str) -> None:
    write(project, name, 60, 9, labels=labels)
    rewrite(project, kpi={"metric": "agreement", "minimum": 0.5}, variants=[BITS])
    with pytest.raises(DataError, match=told):
        measure(project, project / "run")


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"features": {"codes": "octal"}}, r"variants\[0\].features.codes: .*'binary'"),
        ({"features": {"threshold": "own"}}, r"variants\[0\].features.threshold.*got 'own', expected auto, global"),
        ({"features": {"threshold": True}}, r"got True, expected auto, global, per-feature or a number"),
        ({"features": {"threshold": float("inf")}}, r"variants\[0\].features.threshold"),
        ({"features": {"codes": "ternary", "threshold": -1}}, r"threshold -1: a ternary code is 0 within"),
        ({"features": {"margin": 0}}, r"variants\[0\].features.margin"),
        ({"features": {"layers": "relu"}}, r"variants\[0\].features.layers"),
        ({"features": None}, r"variants\[0\].features: it is empty; write \{\}"),
        ({"features": {}, "output": {}}, "features is for classifiers, and output for numbers"),
        (
            {
                "features": {},
                "weights": None,
                "activations": None,
                "search": {"choices": ["int4", "int8"], "budget": {"like": "int4"}},
            },
            "search would decide the format of the head",
        ),
        (
            {"features": {}, "distill": {"loss": "mse"}},
            "with features a student learns classes, by loss 'kl' or 'labels'",
        ),
    ],
)
def test_what_a_pilot_file_cannot_say(project: Path, variant: dict[str, Any], told: str) -> None:
    own = {
        key: value
        for key, value in ({"name": "own", **FORMATS} | variant).items()
        if value is not None or key == "features"
    }
    rewrite(project, variants=[own])
    with pytest.raises(RecipeError, match=told):
        load_spec(project / "pilot.yaml")


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(-0.01, 0.01, "equal"), (0.001, 0.02, "improves"), (-0.02, -0.001, "degrades"), (-0.02, 0.02, "too little data")],
)
def test_what_a_gain_says(low: float, high: float, told: str) -> None:
    assert coded.outcome(Score((low + high) / 2, low, high, 100), 0.01) == told
    assert coded.outcome(replace(Score(0, low, high, 100)), 0.05) == "equal"
