"""A plan tells what a pilot will do before it does it: what is kept, what is wrong, and how long it takes about."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lowbit import cli, data, models
from lowbit.costs import cost
from lowbit.pilot.plan import Plan
from lowbit.pilot.planning import PlanError, plan_file
from lowbit.pilot.record import Run
from lowbit.pilot.run import run_pilot
from lowbit.pilot.spec import load_spec

NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten(), nn.Linear(54, 4)
    )
"""
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {"calibration": {"source": "calibration.npz"}, "test": {"source": "test.npz"}},
    "kpi": {"metric": "accuracy", "minimum": 0.8},
    "runtime": {"batches": [1]},
    "variants": [
        {"name": "w8a8", "weights": "int8", "activations": "int8"},
        {
            "name": "w4a8",
            "weights": "int4",
            "activations": "int8",
            "level": "fast",
            "rules": [{"match": "0", "weights": "int8", "activations": "int8"}],
        },
    ],
}


def rewrite(folder: Path, **sections: Any) -> Path:
    path = folder / "pilot.yaml"
    path.write_text(yaml.safe_dump(PILOT | sections))
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, data whose labels are its own predictions, and a pilot file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    inputs = torch.randn(240, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = models.load("net.py:build", folder=folder)(inputs).argmax(1)
    np.savez(folder / "test.npz", inputs=inputs[:120].numpy(), labels=labels[:120].numpy())
    np.savez(folder / "calibration.npz", inputs=inputs[120:].numpy())
    rewrite(folder)
    return folder


@pytest.fixture(scope="module")
def finished(project: Path) -> tuple[Plan, Run, Path]:
    """The plan of a pilot, its run, and where that is."""
    folder = project / "runs"
    planned = plan_file(rewrite(project), folder)
    assert not folder.exists()
    spec = load_spec(project / "pilot.yaml")
    sources = (spec.data.calibration, spec.data.test)
    calibration, test = (data.open_data(one.source, folder=project) for one in sources)
    model = models.load(spec.model, folder=project)
    run = run_pilot(spec, model, calibration, test, folder, base=project, say=lambda _: None, progress=False)
    return planned, run, folder


def test_plan_of_a_fresh_folder_lists_all_that_runs(finished: tuple[Plan, Run, Path]) -> None:
    plan = finished[0]
    assert [trial.name for trial in plan.trials] == ["float", "w8a8", "w4a8"]
    assert not any(trial.kept for trial in plan.trials)
    steps = [[step.name for step in trial.steps] for trial in plan.trials]
    assert steps[0] == ["export", "verify", "score"]
    assert steps[1] == ["calibrate", "round weights", "correct biases", "export", "verify", "score"]
    assert steps[2] == ["calibrate", "export", "verify", "score"]
    assert "0 int8/int8; level fast" in plan.trials[2].settings
    for told in ("accuracy >= 0.8", "120 samples of [1, 8, 8], no labels", "120 samples of [1, 8, 8], classes"):
        assert told in str(plan)


def test_estimates_are_near_what_happened(finished: tuple[Plan, Run, Path]) -> None:
    """Bytes closely; seconds within a factor that a busy machine may take, far below one that a wrong unit makes."""
    plan, run, folder = finished
    for planned, trial in zip(plan.trials, run.trials, strict=True):
        written = sum(path.stat().st_size for path in (folder / "variants" / trial.name).iterdir())
        assert planned.bytes == pytest.approx(written, rel=0.6)
        assert planned.file == pytest.approx(trial.file_bytes, rel=0.35)
        assert abs(math.log10(planned.seconds / trial.seconds)) < 1.2
    assert plan.seconds >= sum(trial.seconds for trial in plan.trials)


def test_plan_of_a_finished_folder_keeps_everything(project: Path, finished: tuple[Plan, Run, Path]) -> None:
    folder = finished[2]
    plan = plan_file(rewrite(project), folder)
    assert all(trial.kept and not trial.steps for trial in plan.trials)
    assert str(plan).count("kept, finished in the run folder") == 3
    assert [step.name for step in plan.last] == ["report"]


def test_settings_are_told_as_a_pilot_file_has_them(project: Path, tmp_path: Path) -> None:
    trained = {"name": "t", "weights": "e2m1", "activations": "int8", "distill": {"epochs": 1, "loss": "mse"}}
    told = str(plan_file(rewrite(project, variants=[trained]), tmp_path / "run"))
    assert "* e2m1/int8; level balanced; distill: {epochs: 1, loss: mse}" in told
    assert "distill (1 epoch)" in told
    assert "onnxruntime, 1 thread\n" in told
    assert "file about" in told


def test_changed_variants_run_again(project: Path, finished: tuple[Plan, Run, Path]) -> None:
    variants = [PILOT["variants"][0], {**PILOT["variants"][1], "level": "balanced"}]
    plan = plan_file(rewrite(project, variants=variants), finished[2])
    assert [trial.kept for trial in plan.trials] == [True, True, False]
    assert [step.name for step in plan.last] == ["time all in turn", "report"]


def test_training_takes_longer_with_epochs_and_needs_checkpoints(project: Path, tmp_path: Path) -> None:
    def planned(epochs: int) -> Plan:
        variant = {"name": "trained", "weights": "int4", "activations": "int4", "distill": {"epochs": epochs}}
        return plan_file(rewrite(project, variants=[variant]), tmp_path / "run")

    few, many = planned(2), planned(400)
    assert many.trials[1].seconds > 3 * few.trials[1].seconds
    assert [step.name for step in few.trials[1].steps][3] == "distill (2 epochs)"
    parameters = cost(models.load("net.py:build", folder=project), torch.zeros(1, 1, 8, 8)).parameters
    assert few.checkpoint_bytes == 16 * parameters


def test_methods_have_steps_of_their_own(project: Path, tmp_path: Path) -> None:
    search = {"choices": ["int4", "int8"], "budget": {"like": "int8", "share": 0.7}}
    chains = {"name": "chains", "weights": "int4", "activations": "int8", "factorize": {"choices": "1.5x"}}
    plan = plan_file(rewrite(project, variants=[{"name": "mixed", "search": search}, chains]), tmp_path / "run")
    steps = [[step.name for step in trial.steps] for trial in plan.trials]
    assert steps[1][:2] == ["time 2 choices", "search (2 epochs)"]
    assert steps[2][:2] == ["time 2 choices", "factorize 1 layer"]


def test_jobs_share_what_is_left(project: Path, tmp_path: Path) -> None:
    one, two = (plan_file(rewrite(project), tmp_path / "run", jobs=jobs) for jobs in (1, 2))
    last = sum(step.seconds for step in two.last)
    longest = max(trial.seconds for trial in two.trials[1:])
    assert two.seconds == pytest.approx(
        two.trials[0].seconds + max(longest, sum(trial.seconds for trial in two.trials[1:]) / 2) + last, rel=0.5
    )
    assert "2 variants at once" in str(two)
    assert "at once" not in str(one)


# What is wrong


def problems(project: Path, **sections: Any) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        plan_file(rewrite(project, **sections), project / "elsewhere")
    assert not (project / "elsewhere").exists()
    assert str(caught.value) == caught.value.problems[0]
    return caught.value.problems


def test_all_mistakes_in_a_file_are_told(project: Path) -> None:
    variants = [{"name": "w8a8", "weigths": "int8"}, {"name": "odd", "weights": "int99"}]
    found = problems(project, variants=variants)
    assert len(found) == 2
    assert "variants[0].weigths: unknown key; did you mean 'weights'?" in found[0]
    assert "variants[1].weights" in found[1]
    assert "int99" in found[1]


def test_all_that_does_not_fit_is_told(project: Path) -> None:
    missing = {"calibration": {"source": "nowhere.npz"}, "test": {"source": "calibration.npz"}}
    variants = [{"name": "w8a8", "weights": "int8", "rules": [{"match": "head", "weights": "int8"}]}]
    found = problems(project, data=missing, variants=variants)
    assert len(found) == 3
    assert "data.calibration" in found[0]
    assert "nowhere.npz" in found[0]
    assert "needs labels" in found[1]
    assert "variants[0] ('w8a8')" in found[2]
    assert "match='head' matches none" in found[2]


def test_labels_that_are_no_classes_of_the_model(project: Path) -> None:
    """From 1 on, every one is wrong: any variant would be as good as float."""
    with np.load(project / "test.npz") as arrays:
        np.savez(project / "from1.npz", inputs=arrays["inputs"], labels=arrays["labels"] + 1)
    data = {"calibration": {"source": "calibration.npz"}, "test": {"source": "from1.npz"}}
    (found,) = problems(project, data=data)
    assert "labels are 1 to 4, the model returns scores of 4 classes, which are numbered from 0" in found


def test_model_that_no_file_can_hold(project: Path) -> None:
    branching = "    def forward(self, x):\n        return super().forward(x / 2 if x.max() > 3 else x)\n"
    text = NETWORK.replace("return nn.Sequential(", "return Branching(")
    (project / "branching.py").write_text(f"{text}\nclass Branching(nn.Sequential):\n{branching}")
    (found,) = problems(project, model="branching.py:build")
    assert "its forward branches on the values of a tensor, which no file can do" in found


def test_metric_that_cannot_be_imported(project: Path) -> None:
    (found,) = problems(project, kpi={"metric": "absent.py:figure", "minimum": 1})
    assert "absent.py" in found


def test_labels_that_training_needs(project: Path) -> None:
    variants = [{"name": "v", "weights": "int8", "activations": "int8", "distill": {"loss": "labels"}}]
    (found,) = problems(project, variants=variants)
    assert "the data that it trains on has no labels" in found


def test_an_output_that_is_no_row_of_targets(project: Path) -> None:
    (project / "squeezed.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Linear(64, 1)\n\n"
        "    def forward(self, x):\n        return self.head(x.flatten(1)).squeeze(1)\n"
    )
    inputs = np.load(project / "test.npz")["inputs"]
    np.savez(project / "targets.npz", inputs=inputs, labels=inputs.mean((1, 2, 3)))
    formats = {"weights": "int8", "activations": "int8"}
    found = problems(
        project,
        model="squeezed.py:Net",
        data={"calibration": {"source": "targets.npz"}, "test": {"source": "targets.npz"}},
        kpi={"metric": "r2", "minimum": 0.5},
        variants=[{"name": "folded", **formats, "output": {"path": "fold4"}}, {"name": "direct", **formats}],
    )
    told = "output: the model returns [N]; an output needs [N, 1]: leave out the squeeze"
    assert found == (f"{project / 'pilot.yaml'}: variants[0] ('folded'): {told}",)


def test_layers_of_features_and_chains(project: Path) -> None:
    formats = {"weights": "int4", "activations": "int8"}
    distilled = {"name": "d", **formats, "distill": {"features": ["22"]}}
    chains = {"name": "c", **formats, "factorize": {"layers": "body.*"}}
    found = problems(project, variants=[distilled, chains])
    assert "distill.features: the model has no layer '22'; did you mean '2'?" in found[0]
    assert "variant 'c'" in found[1]
    assert "'body.*' matches no layer" in found[1]


def test_command_line(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 0 and a plan, status 2 and every problem; nothing is written either way."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, arguments)])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    status, out, _ = run("pilot", rewrite(project), "--plan")
    assert status == 0
    assert "1. float: about" in out
    missing = {"calibration": {"source": "a.npz"}, "test": {"source": "b.npz"}}
    status, out, err = run("pilot", rewrite(project, data=missing), "--plan")
    assert (status, out) == (2, "")
    assert "a.npz" in err
    assert "b.npz" in err
    assert [*tmp_path.iterdir()] == []
    source = project / "calibration.npz"
    status, out, err = run("pilot", "--init", "--model", f"{project / 'net.py'}:build", "--data", source)
    assert (status, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["pilot.yaml"]
    assert run("pilot", "pilot.yaml", "--plan")[0] == 0
    wrongs: list[tuple[list[str | Path], str]] = [
        (["--init", "--data", source], "--init needs --model"),
        (["pilot.yaml", "--init", "--model", "net.py:build", "--data", source], "got the pilot file"),
        (["pilot.yaml", "--test", source], "--test is of --init"),
        ([], "got no pilot file"),
    ]
    for wrong, told in wrongs:
        status, _, err = run("pilot", *wrong)
        assert status == 2
        assert told in err
