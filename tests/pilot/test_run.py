"""A pilot ends with the same result however often it was stopped, and measures again only what changed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml

import lowbit as lb
from lowbit import data, files, models
from lowbit.errors import DataError
from lowbit.pilot import examined
from lowbit.pilot import run as pilot_run
from lowbit.pilot import trial as pilot_trial
from lowbit.pilot.record import Run, Trial, read
from lowbit.pilot.run import command_of, run_pilot, tasks_of
from lowbit.pilot.spec import PilotSpec, load_spec
from lowbit.pilot.task import Task
from lowbit.report.page import render

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(54, 4)

    def forward(self, x):
        return self.head(self.flatten(self.relu(self.conv2(self.relu(self.conv1(x))))))


def build():
    torch.manual_seed(3)
    return Net()
"""

METRIC = """
def closeness(outputs, labels):
    return (outputs.argmax(1) == labels).mean()
"""

PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {"calibration": {"source": "calibration.npz"}, "test": {"source": "test.npz"}},
    "kpi": {"metric": "accuracy", "minimum": 0.8},
    "runtime": {"batches": [1]},
    "variants": [
        {"name": "w8a8", "weights": "int8", "activations": "int8"},
        {"name": "w4a8", "recipe": "w4a8.yaml"},
        {"name": "nowhere", "rules": [{"match": "classifier.*", "weights": "int8"}]},
    ],
}


def settled(run: Run) -> Run:
    """The run without what a clock, or the way it was started, decides."""
    trials = tuple(replace(trial, latencies=(), seconds=0.0) for trial in run.trials)
    return replace(run, trials=trials, provenance=replace(run.provenance, started="", command=""))


def times(folder: Path) -> dict[str, int]:
    """When each record was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def measure(project: Path, folder: Path, *, jobs: int = 1, say: Callable[[str], None] = lambda line: None) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    sources = (spec.data.calibration, spec.data.test)
    calibration, test = (data.open_data(s.source, folder=project, limit=s.limit, seed=spec.seed) for s in sources)
    return run_pilot(spec, model, calibration, test, folder, base=project, jobs=jobs, say=say, progress=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, data whose labels are its own predictions, and a pilot file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    (folder / "metric.py").write_text(METRIC)
    inputs = torch.randn(240, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = models.load("net.py:build", folder=folder)(inputs).argmax(1)
    np.savez(folder / "test.npz", inputs=inputs[:120].numpy(), labels=labels[:120].numpy())
    np.savez(folder / "calibration.npz", inputs=inputs[120:].numpy())
    lb.Recipe.uniform("int4", "int8").save(folder / "w4a8.yaml")
    (folder / "pilot.yaml").write_text(yaml.safe_dump(PILOT))
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


def rewrite(project: Path, **sections: Any) -> None:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections))


# One run


def test_run_measures_every_variant(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    base, w8a8, w4a8, nowhere = run.trials
    assert [t.name for t in run.trials] == ["float", "w8a8", "w4a8", "nowhere"]
    assert base.recipe is None
    assert base.score is not None
    assert base.score.value == 1
    assert (base.difference, base.agreement) == (None, None)
    for trial in (w8a8, w4a8):
        assert trial.score is not None
        assert trial.difference is not None
        assert trial.agreement is not None
        assert 0.95 < trial.score.value <= 1
        assert trial.difference.value == pytest.approx(trial.score.value - 1)
        assert trial.agreement.value == trial.score.value
        assert [row.kernel for row in trial.layers] == ["QLinearConv", "QLinearConv", "QGemm"]
        assert trial.verification is not None
        assert (trial.verification.same_prediction, trial.verification.stayed_float) == (1.0, ())
        assert (folder.parent / folder.name / str(trial.file)).stat().st_size == trial.file_bytes
    assert (base.bops, w8a8.bops, w4a8.bops) == (base.macs * 32 * 32, base.macs * 64, base.macs * 32)
    assert all(len(trial.latencies) == 1 for trial in (base, w8a8, w4a8))
    assert nowhere.verdict == "failed"
    assert run.provenance.data_hash
    assert {p.name for p in folder.iterdir()} == {"run.json", "latency.json", "variants"}
    assert {p.name for p in (folder / "variants/w4a8").iterdir()} == {
        *("model.onnx", "manifest.json", "recipe.yaml", "outputs.npy", "trial.json")
    }


def test_pattern_that_matches_nothing_fails_its_own_variant(undisturbed: tuple[Run, Path]) -> None:
    run, _ = undisturbed
    assert [t.verdict for t in run.trials] == ["meets", "meets", "meets", "failed"]
    error = run.trials[3].error
    assert error is not None
    assert error.startswith("recipe rule match='classifier.*' matches none of the model's 3 layers; nearest names: ")
    assert error in render(run).replace("&#39;", "'")


def test_lines_tell_what_happens(copied: tuple[Path, Path]) -> None:
    lines: list[str] = []
    measure(*copied, say=lines.append)
    assert [line.split()[:2] for line in lines] == [
        *(["[1/4]", "float"], ["[2/4]", "w8a8"], ["[3/4]", "w4a8"], ["[4/4]", "nowhere"])
    ]
    assert [line.endswith("(kept)") for line in lines] == [True, True, True, False]
    assert "failed: recipe rule" in lines[3]


def test_torch_threads_are_left_as_they_were(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures depend on the threads in the pilot file alone, not on those that torch was set to."""
    seen: list[int] = []

    def stop(*args: object) -> None:
        seen.append(torch.get_num_threads())
        raise lb.LowbitError("stop")

    project, folder = copied
    rewrite(project, runtime={"batches": [1], "threads": 2})
    monkeypatch.setattr(pilot_trial, "_measure", stop)
    with pytest.raises(lb.LowbitError, match="stop"):
        measure(project, folder)
    assert seen == [2]
    assert torch.get_num_threads() == 1


# The same again


def test_again_keeps_what_is_finished(copied: tuple[Path, Path], undisturbed: tuple[Run, Path]) -> None:
    before = times(copied[1])
    again = measure(*copied)
    after = times(copied[1])
    written = {name for name in after if after[name] != before[name]}
    assert written == {"run.json", "variants/nowhere/trial.json"}  # what failed is tried again
    assert undisturbed[0] == replace(again, trials=(*again.trials[:3], undisturbed[0].trials[3]))


def test_other_minimum_changes_verdicts_alone(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    before = times(folder)
    rewrite(project, kpi={"metric": "accuracy", "minimum": 0.995})
    run = measure(project, folder)
    assert [t.verdict for t in run.trials] == ["borderline", "borderline", "misses", "failed"]
    after = times(folder)
    assert all(after[name] == before[name] for name in after if name not in ("run.json", "variants/nowhere/trial.json"))


def other_data(project: Path, name: str) -> None:
    arrays = dict(np.load(project / name))
    arrays["inputs"] = arrays["inputs"] + np.float32(0.01)
    np.savez(project / name, **arrays)


def other_labels(project: Path) -> None:
    arrays = dict(np.load(project / "test.npz"))
    arrays["labels"] = (arrays["labels"] + 1) % 4
    np.savez(project / "test.npz", **arrays)


def other_weights(project: Path) -> None:
    model = models.load("net.py:build", folder=project)
    torch.save({name: tensor * 1.01 for name, tensor in model.state_dict().items()}, project / "weights.pt")
    rewrite(project, weights="weights.pt")


def other_code(project: Path) -> None:
    (project / "net.py").write_text(NETWORK.replace("return self.head(", "return 2 * self.head("))


def other_variants(**fields: Any) -> Callable[[Path], None]:
    return lambda project: rewrite(project, variants=[PILOT["variants"][0] | fields, *PILOT["variants"][1:]])


ALL = ["float", "w8a8", "w4a8"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda project: None, []),
        (lambda project: rewrite(project, seed=1), ALL),
        (lambda project: other_data(project, "test.npz"), ALL),
        (lambda project: other_data(project, "calibration.npz"), ALL),
        (other_labels, ALL),
        (other_weights, ALL),
        (other_code, ALL),
        (lambda project: rewrite(project, kpi={"metric": "agreement", "minimum": 0.8}), ALL),
        (lambda project: rewrite(project, kpi={"metric": "metric.py:closeness", "minimum": 0.8}), ALL),
        (lambda project: rewrite(project, runtime={"batches": [1], "threads": 2}), ALL),
        (lambda project: rewrite(project, runtime={"batches": [1, 2]}), []),
        (lambda project: lb.Recipe.uniform("int2", "int8").save(project / "w4a8.yaml"), ["w4a8"]),
        (other_variants(weights="int4"), ["w8a8"]),
        (other_variants(opset=25), ["w8a8"]),
        (other_variants(name="renamed"), ["renamed"]),
    ],
    ids=[
        *("nothing", "seed", "test inputs", "calibration inputs", "labels", "weights", "code", "metric", "own metric"),
        *("threads", "batches", "recipe file", "format", "opset", "name"),
    ],
)
def test_only_what_changed_is_measured_again(
    copied: tuple[Path, Path], change: Callable[[Path], None], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = copied
    measured: list[str] = []

    def note(task: Task, *args: object, **keywords: object) -> Trial:
        measured.append(task.name)
        return Trial(task.name, None, task.fingerprint, "failed", error="noted")

    change(project)
    monkeypatch.setattr(pilot_run, "run_trial", note)
    run = measure(project, folder)
    assert [name for name in measured if name != "nowhere"] == expected
    assert [t.name for t in run.trials if t.score] == [t.name for t in run.trials if t.name not in measured]


def test_own_metric_is_noticed_when_edited(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    rewrite(project, kpi={"metric": "metric.py:closeness", "minimum": 0.8}, variants=PILOT["variants"][:1])
    prints: list[str] = []

    def note(task: Task, *args: object, **keywords: object) -> Trial:
        prints.append(task.fingerprint)
        return Trial(task.name, None, task.fingerprint, "failed")

    monkeypatch.setattr(pilot_run, "run_trial", note)
    measure(project, folder)
    measure(project, folder)
    (project / "metric.py").write_text(METRIC.replace("mean()", "mean() / 2"))
    measure(project, folder)
    assert prints[:2] == prints[2:4]
    assert not set(prints[:2]) & set(prints[4:])


def test_changed_recipe_is_measured(copied: tuple[Path, Path], undisturbed: tuple[Run, Path]) -> None:
    project, folder = copied
    before = times(folder)
    lb.Recipe.uniform("ternary", "int8").save(project / "w4a8.yaml")
    run = measure(project, folder)
    after = times(folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {
        *("run.json", "latency.json", "variants/nowhere/trial.json"),
        *("variants/w4a8/manifest.json", "variants/w4a8/trial.json"),
    }
    earlier, now = undisturbed[0].trials[2], run.trials[2]
    assert now.bops < earlier.bops
    assert now.recipe is not None
    assert now.recipe["rules"][0]["weights"] == "ternary"


def test_variant_stopped_under_another_recipe_is_not_taken_for_finished(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is changed, the run is killed after the new file was written, and the recipe is changed back."""
    project, folder = copied
    before = files.sha256(folder / "variants/w4a8/model.onnx")
    lb.Recipe.uniform("ternary", "int8").save(project / "w4a8.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(examined, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(project, folder)
    assert files.sha256(folder / "variants/w4a8/model.onnx") != before
    lb.Recipe.uniform("int4", "int8").save(project / "w4a8.yaml")
    measure(project, folder)
    assert files.sha256(folder / "variants/w4a8/model.onnx") == before


def interrupted(*args: object, **keywords: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["model.onnx", "outputs.npy"])
def test_variant_whose_files_are_gone_is_measured_again(copied: tuple[Path, Path], name: str) -> None:
    project, folder = copied
    (folder / "variants/w8a8" / name).unlink()
    run = measure(project, folder)
    assert run.trials[1].verdict == "meets"
    assert (folder / "variants/w8a8" / name).exists()


@pytest.mark.parametrize("place", ["run.json", "latency.json", "variants/float/trial.json", "variants/w8a8/trial.json"])
@pytest.mark.parametrize("content", ["", '{"name": "tiny", ', "[]", '{"name": 3}', "\0\xff"])
def test_damaged_record_is_one_line_that_says_to_delete_it(copied: tuple[Path, Path], place: str, content: str) -> None:
    project, folder = copied
    (folder / place).write_bytes(content.encode("latin-1"))
    with pytest.raises(lb.LowbitError) as caught:
        measure(project, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / place) in message
    assert "delete" in message
    (folder / place).unlink()
    if "trial" not in place:  # which takes a second
        assert measure(project, folder).trials[1].verdict == "meets"


# What goes wrong


def test_model_that_does_not_take_the_data_is_told_before_anything_runs(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    np.savez(project / "calibration.npz", inputs=np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(lb.LowbitError, match=r"Net does not take inputs of shape \[2, 3, 8, 8\] \(RuntimeError: Given"):
        measure(project, folder)


def test_nan_from_the_model_is_an_error(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    (project / "net.py").write_text(NETWORK.replace("(x))))))", "(x)))))).log()"))
    with pytest.raises(lb.LowbitError, match=r"model.onnx' returns NaN for \d+\.\d+% of its outputs; check model and"):
        measure(project, folder)


def test_metric_that_fails_on_the_outputs_is_one_line(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    (project / "metric.py").write_text("def closeness(outputs, labels): return outputs - labels\n")
    rewrite(project, kpi={"metric": "metric.py:closeness", "minimum": 0.8})
    with pytest.raises(lb.LowbitError, match=r"kpi.metric 'metric.py:closeness': got outputs \[120, 4\] and labels \["):
        measure(project, folder)


def test_folder_that_cannot_be_written(project: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="exists"):
        measure(project, tmp_path / "taken")


# In parallel


def test_processes_of_their_own_give_the_same_figures(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path
) -> None:
    """The model's class lives in a file that the other processes have to import first; two variants are left to do."""
    run, folder = undisturbed
    for trial in (run.trials[0], *run.trials[3:]):
        shutil.copytree(folder / "variants" / trial.name, tmp_path / "run/variants" / trial.name)
    parallel = measure(project, tmp_path / "run", jobs=2)
    assert settled(parallel) == settled(run)
    assert hashes(tmp_path / "run") == hashes(folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # joblib's own thread stumbles too
class Unsendable:
    """What can be copied here, and not sent."""

    def __deepcopy__(self, memo: object) -> Unsendable:
        return self

    def __reduce__(self) -> str:
        raise TypeError("it stays here")


def test_model_that_cannot_be_sent_to_another_process(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[1] / "variants/float", tmp_path / "run/variants/float")
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, None, project)
    model.register_buffer("lock", None)
    model.__dict__["lock"] = Unsendable()
    calibration, test = (data.open_data(name, folder=project) for name in ("calibration.npz", "test.npz"))
    with pytest.raises(lb.LowbitError, match=r"cannot run in 2 processes \(TypeError: it stays here\); run"):
        run_pilot(spec, model, calibration, test, tmp_path / "run", base=project, jobs=2, progress=False)


# Killed


def hashes(folder: Path) -> dict[str, str]:
    return {path.parent.name: files.sha256(path) for path in sorted(folder.glob("variants/*/model.onnx"))}


def check_whole(folder: Path) -> None:
    """Every file under a final name can be read to its end."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith("."):
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".yaml":
                lb.Recipe.load(path)
            case ".npy":
                assert np.load(path).shape == (120, 4)
            case ".onnx":
                onnx.checker.check_model(onnx.load(path))
            case _:
                assert path.name == "report.html"
                assert path.read_text().rstrip().endswith("</html>")


class Page(HTMLParser):
    """The text of a page, and the elements that are open at its end."""

    EMPTY = frozenset({"meta", "link", "br", "img", "input", "path", "rect", "circle", "line"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@contextlib.contextmanager
def started(project: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [str(Path(sys.executable).with_name("lowbit")), "pilot", "pilot.yaml", "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process


def test_killed_at_any_moment_it_ends_the_same(project: Path, undisturbed: tuple[Run, Path], tmp_path: Path) -> None:
    folder, dice = tmp_path / "run", random.Random(0)
    with started(project, folder) as process:
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and not folder.exists():
            time.sleep(0.005)  # until it writes
        time.sleep(dice.uniform(0, 2))
        process.send_signal(signal.SIGKILL)  # twenty times in benchmarks/resilience.py
    check_whole(folder)
    with started(project, folder) as process:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (1, "")  # one variant is made to fail
    check_whole(folder)
    assert list(folder.glob("variants/*/.*")) == []
    run, other = undisturbed
    assert hashes(folder) == hashes(other)
    trials = [read(Trial, folder / "variants" / t.name / "trial.json") for t in run.trials]
    again = replace(read(Run, folder / "run.json"), trials=tuple(trials))
    first = tuple(read(Trial, other / "variants" / t.name / "trial.json") for t in run.trials)
    assert settled(again) == settled(replace(run, trials=first))
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert all(t.name in page.text for t in run.trials)
    assert str(run.trials[3].error) in page.text


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"distill": {"crop": 8}}, "distill.crop: images are 8 x 8, and a shift by up to 8 pixels can leave nothing"),
        ({"distill": {"crop": 10**9, "flip": True}}, "distill.crop and distill.flip: images are 8 x 8, and a shift by"),
        ({"factorize": {"norms": True, "crop": 99}}, "factorize.crop: images are 8 x 8, and a shift by up to 99 pix"),
        ({"distill": {"crop": 7}, "factorize": {"norms": True, "crop": 7}}, ""),
    ],
)
def test_images_are_shifted_by_less_than_their_size(project: Path, variant: dict[str, Any], told: str) -> None:
    """Which is told before anything runs."""
    spec = PilotSpec.model_validate(PILOT | {"variants": [{"name": "a", "weights": "int8"} | variant]})
    model, folder = models.load(spec.model, None, project), project / "nowhere"
    calibration, test = (one.open(project, 0) for one in (spec.data.calibration, spec.data.test))
    if not told:
        assert len(tasks_of(spec, model, calibration, test, folder, base=project)[0]) == 2
        return
    with pytest.raises(DataError, match=f"variant 'a': {told}"):
        tasks_of(spec, model, calibration, test, folder, base=project)
    with pytest.raises(DataError, match=told):
        run_pilot(spec, model, calibration, test, folder, base=project, progress=False)
    assert not folder.exists()


@pytest.mark.parametrize("language", [["--language", "ja"], ["--language=ja"], []])
def test_the_language_of_the_page_is_no_part_of_the_command(language: list[str]) -> None:
    given = ["/somewhere/lowbit", "pilot", *language, "my pilot.yaml", "--jobs", "2", *language]
    assert command_of(given) == "lowbit pilot 'my pilot.yaml' --jobs 2"
