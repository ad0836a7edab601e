"""A regression with outputs of different units is never read as a classifier: record, page, terminal and manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lowbit import models
from lowbit.cli.shown import show_run
from lowbit.export.watching import profile_of
from lowbit.pilot.record import Run, Trial, read
from lowbit.pilot.run import run_pilot, tasks_of
from lowbit.pilot.spec import load_spec
from lowbit.pilot.task import of_classes
from lowbit.report import rollout
from lowbit.report.page import render

NETWORK = """
import numpy as np
import torch
from torch import nn


def build():  # a speed in m/s, and a turn in deg/s
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        net[2].weight[1] *= 50
        net[2].bias.copy_(torch.tensor([10.0, 0.0]))
    return net


def worst(outputs, labels):
    return -float(np.abs(outputs - labels).max())
"""
PILOT: dict[str, Any] = {
    "name": "driving",
    "model": "net.py:build",
    "data": {name: {"source": f"{name}.npz"} for name in ("calibration", "test")},
    "kpi": {"metric": "r2", "tolerance": 0.5},
    "runtime": {"batches": [1]},
    "variants": [
        {"name": "w8a8", "weights": "int8", "activations": "int8"},
        {"name": "learned", "weights": "int3", "activations": "int8", "distill": {"epochs": 1}},
    ],
}


def measure(project: Path, folder: Path, **sections: Any) -> Run:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections, sort_keys=False))
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    return run_pilot(spec, model, calibration, test, folder, base=project, say=lambda line: None, progress=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driving")
    (folder / "net.py").write_text(NETWORK)
    model = models.load("net.py:build", None, folder)
    for seed, name in enumerate(("calibration", "test")):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 4, generator=generator)
        with torch.no_grad():
            y = model(x) + torch.randn(200, 2, generator=generator) * torch.tensor([0.01, 0.5])
        labels = {"labels": y.numpy()} if name == "test" else {}
        np.savez(folder / f"{name}.npz", inputs=x.numpy(), **labels)
    return folder


@pytest.fixture(scope="module")
def run(project: Path) -> Run:
    return measure(project, project / "run")


def one(run: Run, name: str) -> Trial:
    return next(trial for trial in run.trials if trial.name == name)


def test_the_record_tells_of_quantities_and_of_no_classes(project: Path, run: Run) -> None:
    for trial in run.trials:
        assert trial.agreement is None
        assert trial.verification is not None
        assert trial.verification.same_prediction is None
        assert trial.verification.apart is not None
        assert trial.verification.apart < 0.05
        assert not any("prediction" in note for note in trial.notes)
        assert trial.file is not None
        kept = profile_of(project / "run" / trial.file)
        assert (kept.output, kept.agreement, len(kept.quantities)) == (None, None, 2)
        assert kept.distance is not None
        assert kept.distance.samples == 200
        assert read(Trial, project / "run" / "variants" / trial.name / "trial.json").quantities == trial.quantities
    assert run.trials[0].apart is None
    trial = one(run, "w8a8")
    assert trial.apart is not None
    assert 0 < trial.apart < 0.1
    assert trial.score is not None
    assert trial.score.value == pytest.approx(np.mean([row.r2 for row in trial.quantities]))
    assert trial.difference is not None
    gaps = [row.difference.value for row in trial.quantities if row.difference]
    assert trial.difference.value == pytest.approx(np.mean(gaps))


def test_training_is_by_squared_errors(run: Run) -> None:
    trial = one(run, "learned")
    assert trial.distillation is not None
    assert trial.distillation.loss == "mse"


def test_an_own_metric_of_targets_in_floats_is_of_quantities_too(project: Path) -> None:
    (project / "own.yaml").write_text(yaml.safe_dump(PILOT | {"kpi": {"metric": "net.py:worst", "tolerance": 9}}))
    spec = load_spec(project / "own.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    tasks, _ = tasks_of(spec, model, calibration, test, project / "own", base=project)
    assert [task.distill.loss for task in tasks if task.distill] == ["mse"]


def test_page_terminal_and_roll_out(project: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = render(run)
    assert page.count('aria-label="Each output of ') == 2
    assert "of their spread" in page
    assert "Distance of file and model" in page
    assert "Same top-1</dt><dd>100" not in page
    assert 'data-label="Agreement with float"' not in page
    show_run(run, project / "run")
    shown = capsys.readouterr().out
    assert "distance" in shown
    assert "agrees" not in shown
    told = " ".join(sentence for stage in rollout.stages(run) for sentence in stage.sentences)
    assert "how far outputs lie from float" in told
    assert "classes" not in told
    assert rollout.compare(one(run, "w8a8"), run).startswith("lowbit compare --outcomes log.npz")


@pytest.mark.parametrize(
    ("metric", "labels", "quantities"),
    [
        ("r2", None, True),
        ("cosine", None, True),
        ("accuracy", torch.tensor([0, 1]), False),
        ("agreement", None, False),
        ("m.py:f", torch.tensor([0.5, 3.0]), True),
        ("m.py:f", torch.tensor([1.0, 0.0]), False),
        ("m.py:f", torch.tensor([2, 3]), False),
        ("m.py:f", torch.tensor([[0.75, 0.25], [0.5, 0.5]]), False),  # soft labels
        ("m.py:f", torch.tensor([[0.75, 0.25], [0.5, 0.6]]), True),
        ("m.py:f", None, False),
    ],
)
def test_what_tells_of_quantities(metric: str, labels: torch.Tensor | None, quantities: bool) -> None:
    assert of_classes(metric, labels) is not quantities
