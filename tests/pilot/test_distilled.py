"""A distilled variant: its record, what it gains over post-training, and that training goes on where it was killed."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lowbit as lb
from lowbit import data, files, models
from lowbit.batches import Batch
from lowbit.errors import TrainingWarning
from lowbit.pilot import trained
from lowbit.pilot.record import DistillationRow, Run, Trial, read
from lowbit.pilot.run import run_pilot
from lowbit.pilot.sections.training import DistillSpec
from lowbit.pilot.spec import load_spec
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
LOW = {"weights": "int2", "activations": "int4", "level": "fast"}
DISTILL = {"epochs": 3, "batch_size": 32, "crop": 1}
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
    "variants": [{"name": "post-trained", **LOW}, {"name": "distilled", **LOW, "distill": DISTILL}],
}


def measure(project: Path, folder: Path, *, jobs: int = 1, say: Callable[[str], None] = lambda line: None) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (data.open_data(name, folder=project) for name in ("calibration.npz", "test.npz"))
    return run_pilot(spec, model, calibration, test, folder, base=project, jobs=jobs, say=say, progress=False)


def rewrite(project: Path, **sections: Any) -> None:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections))


def variant(**distill: Any) -> dict[str, Any]:
    return {"variants": [PILOT["variants"][0], {"name": "distilled", **LOW, "distill": DISTILL | distill}]}


def row_of(run: Run) -> DistillationRow:
    row = run.trials[-1].distillation
    assert row is not None
    return row


def settled(trial: Trial) -> Trial:
    """The trial without what a clock decides."""
    row = trial.distillation
    if row is not None:
        row = replace(row, epochs=tuple(replace(epoch, seconds=0.0) for epoch in row.epochs))
    return replace(trial, latencies=(), seconds=0.0, distillation=row)


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


def test_record_of_a_distilled_variant(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    post_trained, trial = run.trials[1:]
    row = row_of(run)
    assert post_trained.distillation is None
    assert trial.score is not None
    assert trial.verification is not None
    assert (row.quantizer, row.exact, row.loss) == ("ewgs", False, "kl")
    assert [epoch.number for epoch in row.epochs] == [1, 2, 3]
    assert row.epochs[-1].loss < row.epochs[0].loss
    assert row.epochs[row.best - 1].agreement == max(epoch.agreement or 0 for epoch in row.epochs)
    assert len(row.ranges) == 6  # three weights, three inputs
    assert row.teacher.confidence is not None
    assert row.teacher.accuracy == 1
    names = {path.name for path in (folder / "variants/distilled").iterdir()}
    assert names == {"model.onnx", "manifest.json", "recipe.yaml", "outputs.npy", "trial.json", "training"}
    assert [path.name for path in (folder / "variants/distilled/training").iterdir()] == ["log.jsonl"]
    manifest = json.loads((folder / "variants/distilled/manifest.json").read_text())
    assert len({manifest["model.onnx"]["provenance"][f"{name}_data"] for name in ("calibration", "training")}) == 2


def test_gain_is_over_the_variant_that_post_training_makes(undisturbed: tuple[Run, Path]) -> None:
    """The other variant is the same but for `distill`: its file scores what the trial's own baseline does."""
    run, _ = undisturbed
    row, score = row_of(run), run.trials[2].score
    assert row.post_training == run.trials[1].score
    assert row.post_training is not None
    assert row.gain is not None
    assert score is not None
    assert row.gain.value == pytest.approx(score.value - row.post_training.value)
    assert row.gain.low < row.gain.value < row.gain.high
    assert row.gain.samples == 120


def test_notes_say_how_it_was_made(undisturbed: tuple[Run, Path]) -> None:
    notes = undisturbed[0].trials[2].notes
    assert notes[0].startswith("distilled (kl) with ewgs: 3 epochs, epoch ")
    assert notes[1] == "compared with post-training, level fast: calibrate"


def test_noise_of_the_weights_is_against_those_that_were_learned(undisturbed: tuple[Run, Path]) -> None:
    first = [trial.layers[0].sqnr_db for trial in undisturbed[0].trials]
    assert first[0] is None
    assert first[2] is not None
    assert 3 < first[2] < 25


def test_records_without_distillation_still_read(undisturbed: tuple[Run, Path], tmp_path: Path) -> None:
    older = asdict(undisturbed[0].trials[1])
    del older["distillation"]
    files.write_json(tmp_path / "trial.json", older)
    again = read(Trial, tmp_path / "trial.json")
    assert again == undisturbed[0].trials[1]


def test_labels_may_be_learned_and_the_widened_recipe_is_what_trains(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    labels = {"epochs": 1, "loss": "labels", "quantizer": "lsq", "optimizer": "sgd"}
    widened = {"weights": "int4", "activations": "int4", "widen_most": 1, "level": "fast", "distill": labels}
    rewrite(project, variants=[{"name": "widened", **widened}])
    run = measure(project, folder)
    trial = run.trials[1]
    assert trial.error is None
    assert (row_of(run).loss, row_of(run).quantizer) == ("labels", "lsq")
    assert trial.notes[0].startswith("trained on labels with lsq: 1 epoch")
    saved = lb.Recipe.load(folder / "variants/widened/recipe.yaml")
    wide = {rule.match for rule in saved.rules if str(rule.activations) == "int16"}
    assert wide == {layer.name for layer in trial.layers if layer.activations == "int16"}


def test_recipe_file_trains_on_the_calibration_data(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    lb.Recipe.uniform("int4", "int8").save(project / "w4a8.yaml")
    sources = {name: PILOT["data"][name] for name in ("calibration", "test")}
    rewrite(project, data=sources, variants=[{"name": "w4a8", "recipe": "w4a8.yaml", "distill": {"epochs": 1}}])
    run = measure(project, folder)
    assert run.trials[1].error is None
    assert row_of(run).teacher.accuracy is None  # calibration data has no labels here


def test_warnings_go_to_the_notes(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    rewrite(project, **variant(epochs=1, delta_every=2))
    notes = measure(project, folder).trials[2].notes  # any warning that escaped would be an error here
    assert any(note.startswith("EWGS is to update delta every 2 epochs and trains for 1") for note in notes)


def test_other_warnings_go_on() -> None:
    def told_of() -> list[str]:
        with trained.warnings_kept() as told:
            warnings.simplefilter("always")
            warnings.warn("overflow", RuntimeWarning, stacklevel=1)
            warnings.warn("a weak teacher", TrainingWarning, stacklevel=1)
        return told

    with pytest.warns(RuntimeWarning, match="overflow"):
        told = told_of()
    assert told == ["a weak teacher"]


@pytest.mark.slow  # test_cluster.py has a distilled variant in other processes, test_run.py others in joblib's own
def test_processes_of_their_own_give_the_same_figures(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path
) -> None:
    parallel = measure(project, tmp_path / "run", jobs=2)
    assert [*map(settled, parallel.trials)] == [*map(settled, undisturbed[0].trials)]


# Again


def same_files(folder: Path, other: Path) -> None:
    for name in ("float", "post-trained", "distilled"):
        path = f"variants/{name}/model.onnx"
        assert files.sha256(folder / path) == files.sha256(other / path)


def interrupting(steps: list[int], limit: int | None) -> Callable[[DistillSpec, tuple[float, ...]], Augment]:
    """An augmentation that counts how often it is called, and is stopped at the limit."""

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        steps[0] += 1
        if steps[0] == limit:
            raise KeyboardInterrupt
        return batch

    return lambda spec, black: augment


def test_killed_in_training_it_goes_on_there(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "killed"):  # what is not trained is there already
        shutil.copytree(undisturbed[1], tmp_path / name, ignore=shutil.ignore_patterns("distilled"))

    def started(name: str, limit: int | None = None) -> tuple[Run, int]:
        steps = [0]
        monkeypatch.setattr(DistillSpec, "augment", interrupting(steps, limit))
        return measure(project, tmp_path / name), steps[0]

    whole, every = started("whole")
    with pytest.raises(KeyboardInterrupt):
        started("killed", every - 2)
    training = tmp_path / "killed/variants/distilled/training"
    assert {path.name for path in training.iterdir()} == {"checkpoint.pt", "fingerprint", "log.jsonl"}
    (training / ".checkpoint.0a1b2c3d.pt").write_text("half of one")
    again, rest = started("killed")
    assert rest < every - 5
    assert settled(again.trials[2]) == settled(whole.trials[2])
    same_files(tmp_path / "killed", tmp_path / "whole")
    assert [path.name for path in training.iterdir()] == ["log.jsonl"]
    lines = [
        (folder / "variants/distilled/training/log.jsonl").read_text()
        for folder in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert lines[0].count("\n") == lines[1].count("\n")


def test_checkpoint_of_other_options_is_not_taken_up(
    project: Path, copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed while it trains with another rate, and the rate is changed back."""
    folder, other = copied
    before = files.sha256(other / "variants/distilled/model.onnx")
    rewrite(folder, **variant(rate=0.01))
    with monkeypatch.context() as patch:
        patch.setattr(DistillSpec, "augment", interrupting([0], 15))
        with pytest.raises(KeyboardInterrupt):
            measure(folder, other)
    assert (other / "variants/distilled/training/checkpoint.pt").exists()
    rewrite(folder)
    (other / "variants/distilled/outputs.npy").unlink(missing_ok=True)
    measure(folder, other)
    assert files.sha256(other / "variants/distilled/model.onnx") == before


def test_finished_is_kept_and_only_what_changed_is_trained_again(copied: tuple[Path, Path]) -> None:
    project, folder = copied

    def kept() -> list[bool]:
        lines: list[str] = []
        measure(project, folder, say=lines.append)
        return [line.endswith("(kept)") for line in sorted(lines, key=lambda line: line.split()[1])]

    assert kept() == [True, True, True]  # distilled, float, post-trained
    rewrite(project, **variant(flip=True))
    assert kept() == [False, True, True]
    arrays = dict(np.load(project / "train.npz"))
    np.savez(project / "train.npz", **(arrays | {"inputs": arrays["inputs"] * np.float32(1.1)}))
    assert kept() == [False, True, True]
    rewrite(project, variants=[PILOT["variants"][0], {"name": "distilled", **LOW}])
    assert kept() == [False, True, True]
    assert not (folder / "variants/distilled/training").exists()


# What goes wrong


def test_option_that_does_not_fit_the_model_fails_its_own_variant(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    rewrite(project, **variant(features=["haed"]))
    run = measure(project, folder)
    assert [trial.verdict == "failed" for trial in run.trials] == [False, False, True]
    assert "'haed' is no layer of" in str(run.trials[2].error)


@pytest.mark.parametrize(
    ("labels", "told"), [({}, "no labels"), ({"labels": np.ones(240, np.float32)}, "labels that are no classes")]
)
def test_labels_that_are_missing_are_told_before_anything_runs(
    copied: tuple[Path, Path], labels: dict[str, Any], told: str, tmp_path: Path
) -> None:
    project, _ = copied
    np.savez(project / "train.npz", inputs=np.load(project / "train.npz")["inputs"], **labels)
    rewrite(project, **variant(loss="labels"))
    with pytest.raises(lb.LowbitError, match=f"variant 'distilled': distill.loss 'labels' learns classes.*{told}"):
        measure(project, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_training_data_that_does_not_exist(copied: tuple[Path, Path], tmp_path: Path) -> None:
    project, folder = copied
    rewrite(project, data=PILOT["data"] | {"train": {"source": "nowhere.npz"}})
    with pytest.raises(lb.LowbitError, match=r"nowhere\.npz"):
        measure(project, folder)
    rewrite(project, data=PILOT["data"] | {"train": {"source": "nowhere.npz"}}, variants=PILOT["variants"][:1])
    assert measure(project, folder).trials[1].verdict != "failed"  # nothing trains, so nothing is opened
