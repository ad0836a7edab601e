"""A variant whose output is on a path: its record, its controls, and the recipe that makes the same student again."""

from __future__ import annotations

import inspect
import os
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
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import lowbit as lb
from lowbit import files, models
from lowbit.cli import app
from lowbit.errors import DataError, LowbitError, RecipeError
from lowbit.layers import weighted_layers
from lowbit.methods.curves.paths import Fold, Snake
from lowbit.methods.curves.run import curve_output
from lowbit.pilot import compared as controls
from lowbit.pilot import curved, making
from lowbit.pilot.record import ComparedRow, OutputRow, Run, Trial, read
from lowbit.pilot.run import run_pilot
from lowbit.pilot.sections.output import OutputSpec
from lowbit.pilot.spec import load_recipe, load_spec
from lowbit.post_training.segments import float_twin
from lowbit.report.page import render
from lowbit.training.loop import Fitting

NETWORK = """
import torch
from torch import nn


def truth(x):
    return (x[:, :1] + 0.5 * x[:, 1:2] ** 2) * 3 - 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(2, 24)
        self.relu = nn.ReLU()
        self.head = nn.Linear(24, 1)

    def forward(self, x):
        return self.head(self.relu(self.hidden(x)))


def build():
    torch.manual_seed(3)
    net, x = Net(), torch.rand(500, 2)
    with torch.no_grad():
        features = torch.cat([net.relu(net.hidden(x)), torch.ones(500, 1)], 1)
        ridge = features.T @ features + 0.1 * torch.eye(25)
        solved = torch.linalg.solve(ridge, features.T @ truth(x))
        net.head.weight.copy_(solved[:-1].T)
        net.head.bias.copy_(solved[-1])
    return net


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(6, 1, 1)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)))


def dense():
    torch.manual_seed(3)
    return Dense()
"""
FORMATS = {"weights": "int8", "activations": "int8"}
FOLD: dict[str, Any] = {"name": "fold", **FORMATS, "output": {"path": "fold4"}}
SNAKE: dict[str, Any] = {
    "name": "snake",
    **FORMATS,
    "output": {"path": "snake4", "epochs": 2, "rate": 0.003, "confidence": True},
}
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {name: {"source": f"{name}.npz"} for name in ("calibration", "test", "train")},
    "kpi": {"metric": "r2", "minimum": 0.5},
    "runtime": {"batches": [1]},
    "variants": [FOLD, SNAKE],
}


def measure(project: Path, folder: Path) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    return run_pilot(spec, model, calibration, test, folder, base=project, say=lambda line: None, progress=False)


def rewrite(project: Path, **sections: Any) -> None:
    (project / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections, sort_keys=False))


def test_errors_of_several_outputs_are_in_their_own_units() -> None:
    target = torch.zeros(4, 2)
    found = torch.tensor([[0.1, 10.0], [-0.1, 10.0], [0.1, -10.0], [0.1, 10.0]])
    codec = lb.Codec(0.0, 1.0, Fold(1))
    assert controls._each(found, target, codec) == pytest.approx((0.1, 10.0))
    assert controls._each(found[:, :1], target[:, :1], codec) == ()


def variant(**output: Any) -> dict[str, Any]:
    return {"variants": [{"name": "own", **FORMATS, "output": output}]}


def row_of(run: Run, place: int = 1) -> OutputRow:
    row = run.trials[place].output
    assert row is not None, run.trials[place].error
    return row


def compared(row: OutputRow) -> dict[str, ComparedRow]:
    return {one.what: one for one in row.compared}


def settled(trial: Trial) -> Trial:
    """The trial without what a clock decides."""
    row = trial.output
    if row is not None:
        row = replace(row, epochs=tuple(replace(epoch, seconds=0.0) for epoch in row.epochs))
    return replace(trial, latencies=(), seconds=0.0, output=row)


def stored(path: Path) -> dict[str, bytes]:
    """The numbers in a file, by name."""
    return {one.name: one.SerializeToString() for one in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a regressor, data of three kinds, and a pilot file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    x = torch.rand(600, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + 0.5 * x[:, 1] ** 2) * 3 - 1
    for name, rows in (("test", slice(150)), ("calibration", slice(150, 300)), ("train", slice(300, 600))):
        np.savez(folder / f"{name}.npz", inputs=x[rows].numpy(), labels=y[rows].numpy())
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


# The file


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"pth": "snake8"}, "output.pth: unknown key; did you mean 'path'?"),
        ({"path": "spiral3"}, "path 'spiral3' is unknown; expected snake8, hilbert3"),
        ({"low": 0}, "give both low and high, or neither"),
        ({"low": 2, "high": 1}, "expected two finite numbers, the lower one first"),
        ({"path": "snake8", "low": [0, 1], "high": [1, 2, 3]}, "low has 2 numbers and high 3"),
        ({"transform": "log", "low": 0, "high": 1}, "needs a range above 0"),
        ({"path": "moore3", "transform": "log"}, "is for periodic quantities"),
        ({"path": "fold4", "heads": "separate"}, "leave heads and transform out"),
        ({"path": "fold4", "epochs": 2, "clip": 1}, "fold4 needs no training; leave clip and epochs out"),
        ({"heads": "separate"}, "name it with head"),
        ({"path": "fold4", "confidence": True}, "confidence is a table for two channels, and fold4 has none"),
        (
            {"path": "snake4x4", "learned_table": True},
            "learned_table is a table for two channels, and snake4x4 has none",
        ),
        ({"decoder": "arithmetic", "learned_table": True}, "decoder 'arithmetic' has none"),
        ({"path": "hilbert3", "decoder": "arithmetic"}, "hilbert3"),
        ({"path": "fold4", "decoder": "table"}, "decoder 'table' is for paths in two channels"),
        ({"epochs": 0}, "expected 1 or more"),
        ({"path": "snake200"}, "2 to 128 rows"),
        (None, "output: it is empty; write {}"),
    ],
)
def test_output_that_does_not_fit_is_one_line(output: dict[str, Any] | None, told: str, tmp_path: Path) -> None:
    (tmp_path / "pilot.yaml").write_text(yaml.safe_dump(PILOT | {"variants": [{**FOLD, "output": output}]}))
    with pytest.raises(LowbitError) as caught:
        load_spec(tmp_path / "pilot.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"variants": [{**FOLD, "factorize": {}}]}, "factorize starts from the float model as it is"),
        (
            {"variants": [{"name": "a", "search": {"choices": ["int4", "int8"], "budget": {"most": 9}}, "output": {}}]},
            "search starts from the float model as it is",
        ),
        ({"variants": [{**FOLD, "distill": {"loss": "kl"}}]}, "by loss 'mse', and distill.loss is 'kl'"),
        ({"variants": [{**FOLD, "distill": {"temperature": 2}}]}, "which has no temperature"),
        (
            {
                "kpi": {"metric": "accuracy", "minimum": 0.5},
                "variants": [{**FOLD, "output": {"path": "fold4", "labels": True}}],
            },
            r"variants\[0\].output.labels: it takes targets from labels, and kpi.metric is 'accuracy', so labels are",
        ),
    ],
)
def test_what_an_output_does_not_go_with(sections: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "pilot.yaml").write_text(yaml.safe_dump(PILOT | sections))
    with pytest.raises(RecipeError, match=told):
        load_spec(tmp_path / "pilot.yaml")


def test_every_option_is_one_of_the_method() -> None:
    taken = {*inspect.signature(curve_output).parameters, *Fitting.__annotations__}
    of_the_file = {"decoder", "learned_table", "confidence", "controls"}
    assert set(OutputSpec.model_fields) - of_the_file <= taken
    assert OutputSpec().curve is None
    assert OutputSpec().options() == {"transform": "linear", "heads": "shared", "epochs": 10, "loss": "points"}
    assert OutputSpec(rate=0.1, optimizer="sgd").training() == {
        **{"epochs": 10, "loss": "points", "rate": 0.1, "optimizer": "sgd"}
    }


# One run


def test_record_of_a_fold(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    row, done = row_of(run), run.trials[1]
    assert (row.path, row.reason, row.candidates, row.against) == ("fold4", "", (), "labels")
    assert (row.taught, row.epochs, row.points, row.confidence) == (None, (), (), ())
    assert set(compared(row)) == {"float", "curve", "direct", "wide", "variant"}
    assert row.left_out.keys() == {"trained", "fold"}
    assert done.notes[0] == "output: fold4, as asked; nothing was trained"
    assert "squared error relative to the outputs' variance" in done.notes[1]
    assert all(layer.sqnr_db is not None for layer in done.layers)
    names = {path.name for path in (folder / "variants/fold").iterdir()}
    assert names == {"model.onnx", "manifest.json", "recipe.yaml", "outputs.npy", "trial.json"}
    errors = compared(row)
    assert errors["variant"].quantization is not None
    assert errors["direct"].quantization is not None
    assert errors["wide"].quantization is not None
    assert errors["variant"].quantization.rmse < errors["direct"].quantization.rmse
    assert errors["direct"].errors.levels <= 256 < 2 * errors["wide"].errors.levels
    assert errors["curve"].errors.rmse == pytest.approx(errors["float"].errors.rmse, rel=1e-2)
    assert done.score is not None
    assert done.score.value > 0.9


def test_record_of_a_path_that_was_learned(undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    row, done = row_of(run, 2), run.trials[2]
    assert (row.path, row.taught, len(row.epochs), row.decoder) == ("snake4", False, 2, "table")
    assert set(compared(row)) == {"float", "curve", "direct", "wide", "trained", "fold", "variant"}
    assert row.left_out == {}
    assert row.before is not None
    assert row.after is not None
    assert len(row.points) == 150
    assert all(len(point) == 2 and 0 <= min(point) <= max(point) <= 1 for point in row.points)
    assert len(row.corners) == 8
    assert row.confidence[0][0] == 1.0
    assert row.confidence[0][1] == pytest.approx(compared(row)["variant"].errors.rmse)
    assert done.notes[0].startswith("output: snake4, as asked; trained on labels (points): 2 epochs")
    found = sorted(path.name for path in (folder / "variants/snake").rglob("*") if path.is_file())
    assert found == sorted(
        ["model.onnx", "manifest.json", "recipe.yaml", "outputs.npy", "trial.json", "weights.safetensors"]
        + 2 * ["log.jsonl"]
    )
    session = onnx.load(folder / "variants/snake/model.onnx")
    assert len(session.graph.output) == 2  # the distance too
    assert [layer.sqnr_db is None for layer in done.layers] == [False, False]


def test_outputs_are_compared_with_targets_in_their_units(project: Path, undisturbed: tuple[Run, Path]) -> None:
    run, folder = undisturbed
    labels = np.load(project / "test.npz")["labels"]
    for place, name in ((1, "fold"), (2, "snake")):
        outputs = np.load(folder / "variants" / name / "outputs.npy")[:, 0]
        errors = compared(row_of(run, place))["variant"].errors
        assert errors.rmse == pytest.approx(float(np.sqrt(((outputs - labels) ** 2).mean())), rel=1e-4)
        assert errors.mae == pytest.approx(float(np.abs(outputs - labels).mean()), rel=1e-4)


def test_page_says_it_too(undisturbed: tuple[Run, Path]) -> None:
    html = render(undisturbed[0])
    rows = compared(row_of(undisturbed[0], 2))
    ours, direct = rows["variant"].errors, rows["direct"].errors
    lost = ours.rmse > direct.rmse and ours.robust_sd > direct.robust_sd
    told = "snake4 lost: against a direct 8-bit output, " if lost else "Against a direct 8-bit output, snake4 made "
    assert f"{told}all of the error" in html
    assert "output on fold4" in html
    assert str(escape("fold of four, no training")) in html
    assert html.count("<script") == 1  # the record, as JSON


def test_records_are_read_again(undisturbed: tuple[Run, Path], tmp_path: Path) -> None:
    run = undisturbed[0]
    files.write_json(tmp_path / "run.json", asdict(run))
    assert read(Run, tmp_path / "run.json") == run
    older = asdict(run.trials[0])
    del older["output"]
    files.write_json(tmp_path / "trial.json", older)
    assert read(Trial, tmp_path / "trial.json") == run.trials[0]


def test_finished_variants_are_kept(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curved, "give", pytest.fail)
    project, folder = copied
    assert measure(project, folder).trials[2].output is not None


# Other ways


def test_refusal_keeps_the_direct_output_with_a_note(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    for name in ("calibration", "train"):
        with np.load(project / f"{name}.npz") as data:
            noise = np.random.default_rng(0).normal(0, 0.4, len(data["labels"])).astype(np.float32)
            arrays = {"inputs": data["inputs"], "labels": data["labels"] + noise}
        np.savez(project / f"{name}.npz", **arrays)
    rewrite(project, variants=[{"name": "plain", **FORMATS}, *variant(epochs=1)["variants"]])
    run = measure(project, folder)
    row, done = row_of(run, 2), run.trials[2]
    assert row.path == ""
    assert row.reason.startswith("the direct output stays: ")
    assert done.notes[0] == f"output: {row.reason}"
    assert row.candidates
    assert row.noise is not None
    assert set(compared(row)) == {"float", "variant"}
    assert done.score == run.trials[1].score
    assert stored(folder / "variants/own/model.onnx") == stored(folder / "variants/plain/model.onnx")
    assert load_recipe(folder / "variants/own/recipe.yaml")[2] is None
    assert not (folder / "variants/own/output").exists()
    html = render(run)
    assert "The direct output stays: " in html
    assert f"{len(row.candidates)} paths that were considered" in html


def test_a_path_that_was_chosen(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    monkeypatch.setattr("lowbit.methods.curves.choose._LEAST_TOTAL_GAIN", 0.0)
    rewrite(project, **variant(epochs=1, controls=False))
    run = measure(project, folder)
    row = row_of(run)
    assert row.path.startswith("snake")
    assert row.path in row.reason
    assert any(one.path == row.path and not one.why_not for one in row.candidates)
    assert set(compared(row)) == {"float", "curve", "variant"}
    assert row.left_out == {}
    assert "The path was chosen by the noise: " in render(run)


def test_distilled_from_the_network_that_returns_points(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    output = {"path": "snake3", "epochs": 1, "labels": False, "learned_table": True}
    rewrite(
        project, variants=[{"name": "own", **FORMATS, "output": output, "distill": {"epochs": 1, "quantizer": "lsq"}}]
    )
    run = measure(project, folder)
    row, done = row_of(run), run.trials[1]
    assert row.taught is True
    assert set(compared(row)) == {"float", "curve", "direct", "wide", "fold", "post-trained", "variant"}
    assert "the float model was the teacher" in row.left_out["trained"]
    assert done.distillation is not None
    assert done.distillation.loss == "mse"
    assert done.distillation.post_training is not None
    assert done.distillation.post_training.value > 0  # of targets, not of points
    names = {str(path.relative_to(folder / "variants/own")) for path in (folder / "variants/own").rglob("log.jsonl")}
    assert names == {"training/log.jsonl", "output/log.jsonl"}
    assert "and not distilled" in render(run)


def test_without_labels_errors_are_those_from_the_float_model(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    for name in ("calibration", "test", "train"):
        with np.load(project / f"{name}.npz") as data:
            inputs = data["inputs"]
        np.savez(project / f"{name}.npz", inputs=inputs)
    own = variant(path="hilbert1", epochs=1)["variants"]
    table = {"name": "table", **FORMATS, "output": {"path": "snake2", "epochs": 1, "learned_table": True}}
    rewrite(project, variants=[*own, table], kpi={"metric": "agreement", "minimum": 0.5})
    run = measure(project, folder)
    row = row_of(run)
    assert (row.against, row.taught) == ("float model", True)
    assert set(compared(row)) == {"curve", "direct", "wide", "fold", "variant"}
    assert run.trials[2].error is not None
    assert run.trials[2].error.startswith("learned_table is filled from the labels of the calibration data")
    rewrite(project, **variant(labels=True), kpi={"metric": "agreement", "minimum": 0.5})
    with pytest.raises(DataError, match=r"output\.labels is true, and the data that it trains on has none"):
        measure(project, folder)


def test_a_control_that_cannot_be_made_is_left_out(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    make = controls._control

    def control(what: str, *how: Any) -> Any:
        if what == "wide":
            raise RecipeError("no 16 bits <here>")
        return make(what, *how)

    monkeypatch.setattr(controls, "_control", control)
    rewrite(project, **variant(path="fold2"))
    run = measure(project, folder)
    assert row_of(run).left_out["wide"] == "no 16 bits <here>"
    assert "no 16 bits &lt;here&gt;" in render(run)


def test_images(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    inputs = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = models.load("net.py:dense", folder=project)(inputs)
    for name in ("calibration", "test", "train"):
        np.savez(project / f"{name}.npz", inputs=inputs.numpy(), labels=labels.numpy())
    rewrite(project, model="net.py:dense", **variant(path="snake3", epochs=1, heads="separate", head="head"))
    run = measure(project, folder)
    row, done = row_of(run), run.trials[1]
    errors = compared(row)["variant"].errors
    assert errors.count == 48 * 64
    assert errors.structure is not None
    assert len(row.points) == 2000
    assert [layer.name for layer in done.layers] == ["conv", "head.heads.0", "head.heads.1"]
    assert all(layer.sqnr_db is not None for layer in done.layers)
    assert "Structure" in render(run)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(x if x.sum() > 0 else -x)
        return found


def test_layers_of_a_network_that_cannot_be_traced_have_their_float_twins() -> None:
    codec = lb.Codec(0.0, 1.0, Fold(2))
    wrapped = lb.wrap_head(Untraceable(), codec, head="head")
    student = lb.attach_decoder(lb.quantize(wrapped, lb.Recipe.uniform("int8", None)), lb.Decoder(codec))
    names = {name for name, _ in curved.twin_of(float_twin(wrapped, student), student).named_modules()}
    assert {*weighted_layers(student)} == {"model.head"}
    assert "model.head" in names


def test_an_output_goes_on_where_it_was(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project, folder = copied
    whole = read(Trial, folder / "variants/snake/trial.json")
    shutil.rmtree(folder / "variants/snake")
    rewrite(project, variants=[SNAKE])
    with monkeypatch.context() as patch:
        patch.setattr(making, "post_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(project, folder)
    kept = folder / "variants/snake/output"
    assert (kept / "checkpoint.pt").exists()
    log = (kept / "log.jsonl").read_text()
    run = measure(project, folder)
    assert (kept / "log.jsonl").read_text() == log  # with its times: nothing was trained again
    assert not (kept / "checkpoint.pt").exists()
    assert settled(run.trials[1]).output == settled(whole).output
    assert run.trials[1].score == whole.score


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_was_left_of_an_output_goes_with_it(copied: tuple[Path, Path]) -> None:
    project, folder = copied
    rewrite(project, variants=[{"name": "snake", **FORMATS}])
    assert measure(project, folder).trials[1].output is None
    assert not (folder / "variants/snake/output").exists()
    assert not (folder / "variants/snake/weights.safetensors").exists()


# The same again


@pytest.fixture
def applied(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[int, str]]:
    """Make a file of a recipe with `lowbit apply`."""
    monkeypatch.chdir(project)

    def apply(recipe: Path) -> tuple[int, str]:
        asked = ["apply", os.fspath(recipe), "--model", "net.py:build", "--data", "calibration.npz"]
        done = CliRunner().invoke(app, [*asked, "--out", os.fspath(tmp_path / "applied")])
        return done.exit_code, done.output + str(done.exception or "")

    return apply


@pytest.mark.parametrize("name", ["fold", "snake"])
def test_recipe_makes_the_same_file(
    name: str, undisturbed: tuple[Run, Path], applied: Callable[[Path], tuple[int, str]], tmp_path: Path
) -> None:
    run, folder = undisturbed
    home = folder / "variants" / name
    recipe, _, output, _ = load_recipe(home / "recipe.yaml")
    assert recipe == lb.Recipe.uniform("int8", "int8")
    assert output is not None
    assert output.weights == {"fold": None, "snake": "weights.safetensors"}[name]
    made = next(one for one in run.trials if one.name == name)
    assert files.read_yaml(home / "recipe.yaml") == made.recipe
    status, told = applied(home / "recipe.yaml")
    assert status == 0, told
    assert f"output: {row_of(run, 1 + (name == 'snake')).path}, " in told
    assert stored(tmp_path / "applied/model.onnx") == stored(home / "model.onnx")


def test_weights_of_another_network_are_refused(
    copied: tuple[Path, Path], applied: Callable[[Path], tuple[int, str]]
) -> None:
    home = copied[1] / "variants/snake"
    weights = load_file(home / "weights.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != "head.bias"}, home / "weights.safetensors")
    status, told = applied(home / "recipe.yaml")
    assert status != 0
    assert "is of another network: 'head.bias' is not the same" in told


def test_section_of_a_recipe_that_is_wrong_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    made = {"path": "snake4", "low": 0.0, "high": 1.0}
    for section, told in (
        ({**made, "rows": 3}, "output.rows: unknown key"),
        ({**made, "path": "auto"}, "path 'auto' is of a pilot file"),
        ({"path": "snake4"}, "output.low: "),
        (None, "output: it is empty"),
    ):
        path.write_text(yaml.safe_dump({"rules": [{"match": "*", "weights": "int8"}], "output": section}))
        with pytest.raises(RecipeError, match=told):
            load_recipe(path)
    margin = 8 / 255
    made["path"] = str(Snake(4, margin))
    path.write_text(yaml.safe_dump({"rules": [{"match": "*", "weights": "int8"}], "output": made}))
    output = load_recipe(path)[2]
    assert output is not None
    assert output.codec.path.margin == margin
    (tmp_path / "pilot.yaml").write_text(yaml.safe_dump(PILOT | {"variants": [{"name": "a", "recipe": "recipe.yaml"}]}))
    with pytest.raises(RecipeError, match="is of a network with an output on a path"):
        load_spec(tmp_path / "pilot.yaml")
