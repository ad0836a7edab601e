"""The command line: what works, and that whatever a user gets wrong is one line that says what to do."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save

import lowbit as lb
from lowbit import cli, files
from lowbit.cli import options
from lowbit.cli.shown import show_run, told
from lowbit.errors import DataError
from lowbit.export.onnx import manifest_entry
from lowbit.pilot import outcomes
from lowbit.pilot.record import CheckRow, Kpi, LatencyRow, Provenance, Run, Score, Trial
from lowbit.report.figures import Metric

COMMANDS = ("demo", "pilot", "apply", "verify", "watch", "features")
NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten(), nn.Linear(54, 4)
    )


def wrong():
    raise ValueError("two\\nlines")


def text():
    return "a network"


def two(): return torch.zeros(1), torch.zeros(1), torch.zeros(1)


number = 3
"""


class Result(NamedTuple):
    status: int
    out: str
    err: str


Lowbit = Callable[..., Result]


@pytest.fixture
def lowbit(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lowbit:
    """The command line in this process, which has torch loaded already."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, arguments)])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run


def refusal(result: Result) -> str:
    """The one line that a command is refused with."""
    assert result.status == 2, result
    assert result.err.startswith("lowbit: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert len(result.err) < 700
    return result.err.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, its data, a recipe and a pilot file."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "net.py").write_text(NETWORK)
    inputs = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(folder / "data.npz", inputs=inputs, labels=np.arange(60) % 4)
    np.savez(folder / "unlabeled.npz", inputs=inputs)
    lb.Recipe.uniform("int8", "int8").save(folder / "recipe.yaml")
    save_pilot(folder / "pilot.yaml")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = list(sys.path)
    monkeypatch.chdir(folder)
    yield
    sys.path[:] = path


def save_pilot(path: Path, **sections: Any) -> Path:
    content = {
        "name": "tiny",
        "model": "net.py:build",
        "data": {"calibration": {"source": "unlabeled.npz"}, "test": {"source": "data.npz"}},
        "kpi": {"metric": "agreement", "minimum": 0.5},
        "variants": [{"name": "w8a8", "weights": "int8", "activations": "int8"}],
    }
    path.write_text(yaml.safe_dump(content | sections))
    return path


def applying(tmp_path: Path, **options: str | Path) -> list[str | Path]:
    """Arguments of `lowbit apply` that work, but for some."""
    given: dict[str, str | Path] = {
        "recipe": "recipe.yaml",
        "model": "net.py:build",
        "data": "unlabeled.npz",
        "out": tmp_path / "out",
    }
    given |= options
    arguments: list[str | Path] = ["apply", given.pop("recipe")]
    for name, value in given.items():
        arguments += [f"--{name}", value]
    return arguments


# What works


def test_version(lowbit: Lowbit) -> None:
    assert lowbit("--version") == (0, f"lowbit {lb.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(lowbit: Lowbit, command: str) -> None:
    result = lowbit(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"lowbit {command}" in result.out


def test_help_without_arguments_lists_every_command(lowbit: Lowbit) -> None:
    result = lowbit()
    assert all(f" {command} " in result.out + result.err for command in COMMANDS)


@pytest.mark.parametrize("code", ["import lowbit", "import lowbit; lowbit.LowbitError", "import lowbit.cli"])
def test_import_leaves_torch_alone(code: str) -> None:
    heavy = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'joblib'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_help_leaves_torch_alone() -> None:
    code = "import sys; from lowbit import cli; sys.argv = ['lowbit', '--help']; cli.main()"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage: lowbit" in done.stdout
    assert "typer" in done.stderr
    assert "torch" not in done.stderr


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file made with the installed command."""
    out = tmp_path_factory.mktemp("exported") / "new" / "folder"
    command = [str(Path(sys.executable).with_name("lowbit")), *map(str, applying(out.parent, out=out))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "predicts as the quantized model on 100.00%" in done.stdout
    assert f"{out / 'model.onnx'}  0.00" in done.stdout
    return out / "model.onnx"


def test_apply_writes_a_file_and_its_manifest(exported: Path) -> None:
    assert {path.name for path in exported.parent.iterdir()} == {"model.onnx", "manifest.json"}
    entry = json.loads((exported.parent / "manifest.json").read_text())["model.onnx"]
    assert entry["sha256"] == files.sha256(exported)
    assert entry["recipe"] == lb.Recipe.uniform("int8", "int8").to_dict()
    assert entry["calibration"]["samples"] == 49  # of 60, batches of 7: the first and the last are held out
    assert entry["provenance"]["data"] == {"source": "unlabeled.npz", "limit": 60}
    assert entry["verification"]["same_prediction"] == 1


@pytest.mark.parametrize("data", [(), ("--data", "data.npz"), ("--data", "data.yaml", "--limit", "10")])
def test_verify_finds_its_data_or_takes_other(lowbit: Lowbit, exported: Path, folder: Path, data: tuple[str]) -> None:
    (folder / "data.yaml").write_text("source: data.npz\nlimit: 20\n")
    result = lowbit("verify", exported, *data)
    assert (result.status, result.err) == (0, "")
    assert "predicts as the quantized model on 100.00%" in result.out
    assert f"{10 if '--limit' in data else 60} samples" in result.out


def test_verify_finds_its_data_from_anywhere(
    lowbit: Lowbit, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lowbit("verify", exported).status == 0


@pytest.fixture
def tampered(exported: Path, tmp_path: Path) -> Path:
    for name in ("model.onnx", "manifest.json"):
        (tmp_path / name).write_bytes((exported.parent / name).read_bytes())
    return tmp_path / "model.onnx"


def test_verify_refuses_a_changed_file(lowbit: Lowbit, tampered: Path) -> None:
    tampered.write_bytes(tampered.read_bytes() + b"\0")
    assert "is not the file its manifest describes (sha256 differs); export it again" in refusal(
        lowbit("verify", tampered)
    )


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ("{", "line 1, column 2: "),
        ("[]", "is no manifest: expected an object with one entry a file; export the model again"),
        ('{"other.onnx": {}}', "has no entry for 'model.onnx'; it has other.onnx"),
        ('{"model.onnx": {"provenance": []}}', "does not name its data; give --data"),
        ('{"model.onnx": {"provenance": {"data": 3}}}', "manifest.json: the file: expected a mapping"),
        ('{"model.onnx": {"provenance": {"data": {"source": "no.npz"}, "seed": "x"}}}', "no.npz"),
    ],
)
def test_verify_with_a_damaged_manifest(lowbit: Lowbit, tampered: Path, manifest: str, told: str) -> None:
    (tampered.parent / "manifest.json").write_text(manifest)
    assert told in refusal(lowbit("verify", tampered))


def test_verify_without_a_manifest_or_file(lowbit: Lowbit, tampered: Path) -> None:
    wrong = tampered.with_name("modell.onnx")
    for command in (["verify"], ["watch", "--data", "absent.npz"], ["compare", tampered]):
        told = refusal(lowbit(*command, wrong))
        assert told.endswith(f"no file '{wrong}' (did you mean model.onnx?)")
        nowhere = tampered.parent / "no" / "model.onnx"
        assert f"no file '{nowhere}': no folder '{nowhere.parent}'; check" in refusal(lowbit(*command, nowhere))
    (tampered.parent / "manifest.json").unlink()
    assert "manifest.json': No such file" in refusal(lowbit("verify", tampered))


def test_pilot_writes_its_report(lowbit: Lowbit, folder: Path, tmp_path: Path) -> None:
    """Then `verify` takes one of its files, and exit status 1 says that no variant meets the KPI."""
    data = {"calibration": {"source": "unlabeled.npz", "limit": 20}, "test": {"source": "data.npz", "limit": 40}}
    path = save_pilot(folder / "works.yaml", data=data, seed=5)
    result = lowbit("pilot", path, "--out", tmp_path / "run")
    assert (result.status, result.err) == (0, "")
    table = [line for line in result.out.splitlines() if line.startswith(("variant", "float", "w8a8"))]
    assert [line.split()[:2] for line in table] == [["variant", "verdict"], ["float", "meets"], ["w8a8", "meets"]]
    assert max(map(len, table)) <= 80
    *_, report, take = result.out.splitlines()
    assert report == f"report: {tmp_path / 'run/report.html'}"
    assert take == f"take: {tmp_path / 'run/variants/w8a8/model.onnx'}"
    assert Path(take.removeprefix("take: ")).is_file()
    assert "w8a8" in (tmp_path / "run/report.html").read_text()
    manifest = json.loads((tmp_path / "run/variants/w8a8/manifest.json").read_text())
    assert manifest["model.onnx"]["provenance"]["data"] == {"source": "data.npz", "limit": 40}
    assert "40 samples" in lowbit("verify", tmp_path / "run/variants/w8a8/model.onnx").out
    save_pilot(path, data=data, seed=5, kpi={"metric": "agreement", "minimum": 1})
    again = lowbit("pilot", path, "--out", tmp_path / "run")
    assert (again.status, again.err) == (1, "")
    assert "(kept)" in again.out
    assert "borderline" in again.out
    assert "take:" not in again.out


def a_run(metric: str, *trials: Trial) -> Run:
    return Run("machine", "net.py:build", Kpi(metric, 0.9, None), {}, Provenance("", "", 0, "", "", {}, {}), trials)


def test_names_of_variants_are_never_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of scores close to 1 no two look the same."""
    monkeypatch.setenv("COLUMNS", "80")
    latencies = tuple(LatencyRow("onnxruntime", batch, 1, 1.5, 1.4, 1.6, 5) for batch in (1, 32))

    def trial(name: str, value: float) -> Trial:
        score = Score(value, value - 2e-5, value + 1e-5, 900)
        agreement = Score(0.99, 0.98, 1.0, 900)
        return Trial(
            *(name, {}, "", "borderline"), score=score, agreement=agreement, file_bytes=106_000, latencies=latencies
        )

    names = ["w4a4-distilled-on-everything", "w8a8"]
    show_run(a_run("r2", trial(names[0], 0.99997), trial(names[1], 0.999966)), Path("run"))
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("w")]
    assert [row[:3] for row in rows] == [[names[0], "borderline", "0.999970"], [names[1], "borderline", "0.999966"]]
    assert max(map(len, lines)) <= 80
    assert "too narrow for " in "\n".join(lines)
    monkeypatch.setenv("COLUMNS", "30")
    show_run(a_run("r2", trial(names[0], 0.99997)), Path("run"))
    assert names[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "figures", "line"),
    [
        ("size", (30_000, 30_042, 30_042, 30_042), "30.04 kB, at most 30 kB is asked"),
        ("size", (2_000_000, 2_500_000, 2_400_000, 2_500_000), "2.5 MB (2.4 MB to 2.5 MB), at most 2 MB is asked"),
        ("bops", (40e6, 57.8e6, 57.8e6, 57.8e6), "57.8 M, at most 40 M is asked"),
        ("latency", (2.5, 3.25, 2.25, 4), "3.25 ms (2.25 ms to 4 ms), at most 2.5 ms is asked"),
        ("tolerance", (-0.01, -1 / 300, -0.0105976, 0.004), "-0.33 pp (-1.06 to +0.40), at least -1.0 pp is asked"),
        ("minimum", (0.96, 0.95, 0.94, 0.97), "95.00 % (94.00 to 97.00), at least 96.0 % is asked"),
    ],
)
def test_what_is_missed_is_told_in_units(what: Any, figures: tuple[float, float, float, float], line: str) -> None:
    assert told(CheckRow(what, *figures, verdict="misses"), Metric("accuracy", share=True, decimals=2)) == line


def test_a_first_pilot_file_of_arrays_with_other_names(lowbit: Lowbit, folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "data.npz") as arrays:
        np.savez(folder / "odd.npz", waves=arrays["inputs"], state=arrays["labels"])
    init = ["pilot", "--init", "--model", "net.py:build", "--data", "odd.npz", "--out", tmp_path / "odd.yaml"]
    told = "--data: data 'odd.npz': none of inputs, x, X, data, images among arrays waves, state; name one, such as "
    assert f"{told}--inputs waves, or give a YAML file with source" in refusal(lowbit(*init))
    given = ["--test", "odd.npz", "--inputs", "waves", "--labels", "state"]
    assert lowbit(*init, *given).status == 0
    data = yaml.safe_load((tmp_path / "odd.yaml").read_text())["data"]
    assert [section.get("inputs") for section in data.values()] == ["waves", "waves"]
    assert [section.get("labels") for section in data.values()] == [None, "state"]
    assert "--inputs is of --init" in refusal(lowbit("pilot", "pilot.yaml", "--inputs", "waves"))


def test_pilot_that_is_stopped_says_how_to_go_on(
    lowbit: Lowbit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowbit.pilot.run.run_trial", stop)
    result = lowbit("pilot", "pilot.yaml", "--out", tmp_path)
    assert (result.status, result.err) == (130, "lowbit: stopped; the same command goes on where it was\n")


# Features as bits


@pytest.fixture(scope="module")
def clusters(folder: Path) -> Path:
    """Three classes of six features with outliers; beside it, what cannot be studied."""
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    x = generator.normal(size=(150, 6)) + 2.5 * (np.arange(6) % 3 == labels[:, None])
    x = np.where(generator.random(x.shape) < 0.1, 40 * generator.normal(size=x.shape), x).astype(np.float32)
    np.savez(folder / "clusters.npz", inputs=x, labels=labels)
    np.savez(folder / "renamed.npz", features=x, kind=0 * labels)
    np.savez(folder / "unknown.npz", y=labels, kept=x)
    np.savez(folder / "moved.npz", inputs=x + np.array([0, 0, 3, 0, 0, 0], np.float32))
    np.savez(folder / "narrow.npz", inputs=x[:, :5])
    np.savez(folder / "targets.npz", inputs=x, labels=labels / 7)
    np.savez(folder / "hole.npz", inputs=np.where(np.arange(6) == 3, np.nan, x), labels=labels)
    return folder / "clusters.npz"


def sweeping(out: Path, *others: str | Path, data: str = "clusters.npz") -> list[str | Path]:
    """Arguments of `lowbit features sweep` that take seconds."""
    return ["features", "sweep", data, "--out", out, "--limit", "120", "--splits", "2", *others]


@pytest.fixture(scope="module")
def swept(clusters: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the command wrote, and what it said."""
    out, said, errors = tmp_path_factory.mktemp("swept") / "new" / "folder", io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clusters.parent)
        patch.setattr(sys, "argv", ["lowbit", *map(str, sweeping(out))])
        with redirect_stdout(said), redirect_stderr(errors), suppress(SystemExit):
            cli.main()
    assert errors.getvalue() == ""
    return out, said.getvalue()


def test_features_sweep_writes_its_report(swept: tuple[Path, str]) -> None:
    out, said = swept
    assert {path.name for path in out.iterdir()} >= {"report.html", "features.json", "binary.json", "ternary.json"}
    table = [line for line in said.splitlines() if line.startswith(("classifier", "kNN", "linear"))]
    assert len(table) == 7
    assert table[0].split() == ["classifier", "code", "codes", "floats", "gain", "95", "%", "interval", "outcome"]
    assert max(map(len, table)) <= 80
    record = json.loads((out / "features.json").read_text())
    told = [row["sentence"] for row in record["judged"] if row["recommended"]] or [record["summary"]]
    assert all(sentence in said for sentence in told)
    assert said.rstrip().endswith(f"report: {out / 'report.html'}")
    page = (out / "report.html").read_text()
    assert f"lowbit features sweep clusters.npz --out {out} --limit 120" in page
    assert (record["name"], record["source"], record["samples"], record["sampled"]) == (
        *("clusters", "clusters.npz"),
        *(150, 120),
    )
    codes = lb.FeatureTrace.load(out / "ternary.json").quantizer().transform(np.load("clusters.npz")["inputs"])
    assert set(np.unique(codes)) == {-1, 0, 1}


def test_features_sweep_goes_on_where_it_was(
    lowbit: Lowbit, swept: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Splits that are written are not trained again, and a study that was stopped says how to go on."""
    out, _ = swept
    before = json.loads((out / "features.json").read_text())

    def stop(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowbit.methods.discrimination.verdict.all_scored", stop)
    assert lowbit(*sweeping(out)).status == 0
    after = json.loads((out / "features.json").read_text())
    assert [after[key] for key in ("judged", "codes", "summary")] == [
        before[key] for key in ("judged", "codes", "summary")
    ]
    result = lowbit(*sweeping(out, "--seed", "1"))
    assert (result.status, result.err) == (130, "lowbit: stopped; the same command goes on where it was\n")


def test_features_sweep_of_a_layer(lowbit: Lowbit, clusters: Path, tmp_path: Path) -> None:
    layered = ["--model", "net.py:build", "--layer", "2"]
    result = lowbit(*sweeping(tmp_path / "layer", *layered, data="data.npz"))
    assert result.status == 0
    record = json.loads((tmp_path / "layer/features.json").read_text())
    assert (record["layer"], record["features"]) == ("2", 6)  # channels, their mean over positions
    drifted = lowbit("features", "drift", tmp_path / "layer/binary.json", "unlabeled.npz", *layered)
    assert drifted == (0, "no drift: the codes of all 6 features come as often as they did\n", "")


def test_features_drift(lowbit: Lowbit, swept: tuple[Path, str]) -> None:
    trace = swept[0] / "ternary.json"
    assert lowbit("features", "drift", trace, "clusters.npz") == (
        *(0, "no drift: the codes of all 6 features come as often as they did\n", ""),
    )
    moved = lowbit("features", "drift", trace, "moved.npz")
    assert (moved.status, moved.err) == (1, "")
    first, second = moved.out.splitlines()
    assert first == "drift: the codes of 1 of 6 features come more or less often: 2"
    assert second.startswith("  2: index ")
    assert float(second.split()[-1]) >= 0.2
    assert lowbit("features", "drift", trace, "renamed.npz", "--inputs", "features").status == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sweep", "unlabeled.npz"], "data 'unlabeled.npz' has no labels; name them"),
        (["sweep", "clusters.npz", "--labels", "no"], "no"),
        (["sweep", "renamed.npz"], "classes"),
        (["sweep", "renamed.npz", "--inputs", "features", "--labels", "kind"], "class"),
        (["sweep", "unknown.npz"], "among arrays y, kept; name one, such as --inputs kept"),
        (["sweep", "targets.npz"], "data 'targets.npz': labels are not whole numbers, expected classes"),
        (["sweep", "hole.npz"], "data 'hole.npz', sample 0 holds NaN or infinity, expected finite numbers"),
        (["sweep", "no.npz"], "no.npz': No such file or directory"),
        (["sweep", "clusters.npz", "--margin", "2"], "margin: got 2, expected a share above 0 and below 1"),
        (
            ["sweep", "data.npz", "--model", "net.py:build", "--layer", "9"],
            "layer '9' is not in the model; choose from 0, 1, 2, 3, 4",
        ),
        (
            ["sweep", "data.npz", "--model", "net.py:build", "--layer", "2", "--pool", "max"],
            "pool: got 'max', expected mean or none",
        ),
        (["sweep", "data.npz", "--layer", "2"], "--layer is given without --model; features of a layer need both"),
        (["sweep", "data.npz", "--model", "net.py:build"], "--model is given without --layer; features of a layer"),
        (["sweep", "data.npz", "--weights", "x.npz"], "--weights is given without --model and --layer;"),
        (["drift", "no.json", "clusters.npz"], "no.json': No such file or directory"),
        (["drift", "TRACE", "hole.npz"], "data 'hole.npz', sample 0 holds NaN or infinity"),
        (["drift", "TRACE", "narrow.npz"], "got features [150, 5], expected [n, 6], as the trace has"),
        (["drift", "STUDY", "clusters.npz"], "features.json"),
    ],
)
def test_wrong_features(
    lowbit: Lowbit, swept: tuple[Path, str], tmp_path: Path, arguments: list[str], told: str
) -> None:
    known: dict[str, str | Path] = {"TRACE": swept[0] / "binary.json", "STUDY": swept[0] / "features.json"}
    given = [known.get(one, one) for one in arguments]
    out = ["--out", tmp_path / "out", "--splits", "2"] if arguments[0] == "sweep" else []
    assert told in refusal(lowbit("features", *given, *out))


# What does not


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("rules: [{match: '*', weights: itn4}]", "rules[0].weights: unknown format 'itn4'; did you mean 'int4'?"),
        ("rules: [{weight: int4}]", "rules[0].weight: unknown key; did you mean 'weights'?"),
        ("rules: [{match: conv9, weights: int4}]", "recipe rule match='conv9' matches none of the model's 3 layers;"),
        ("rules: [{weights: int4, granularity: 'group:5'}]", "[4, 1, 3, 3]: PerGroup(5) does not divide 9 inputs; use"),
        ("rules: [{weights: int4, granularity: rows}]", "rules[0].granularity: unknown granularity 'rows'"),
        ("rules: [{match: '*'}]", "no layer of Sequential was quantized: the recipe leaves every layer float; give"),
        ("rules: [", "line 1, column 9: expected the node content"),
        ("", "the file: expected a mapping"),
    ],
)
def test_wrong_recipe(lowbit: Lowbit, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "wrong.yaml").write_text(content)
    assert told in refusal(lowbit(*applying(tmp_path, recipe=tmp_path / "wrong.yaml")))


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("net", "reference 'net' cannot be read, expected 'package.module:function' or 'path/to/file.py:function'"),
        ("nosuchmodule:build", "importing 'nosuchmodule' raised ModuleNotFoundError"),
        ("nosuch.py:build", "nosuch.py': No such file or directory; check the path"),
        ("net.py:bild", "'net.py' has no 'bild'; did you mean 'build'? choose from build, wrong, text, two"),
        ("net.py:number", "'number' is int, expected a function; name one"),
        ("net.py:wrong", "model 'net.py:wrong': the function raised ValueError: two lines; correct it"),
        ("net.py:text", "the function returned str, expected an nn.Module; return the network"),
        ("broken.py:build", "importing 'broken.py' raised SyntaxError"),
    ],
)
def test_wrong_model_reference(lowbit: Lowbit, folder: Path, tmp_path: Path, reference: str, told: str) -> None:
    (folder / "broken.py").write_text("def build(:\n")
    assert told in refusal(lowbit(*applying(tmp_path, model=reference)))


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    shapes = {"0.weight": (4, 1, 3, 3), "0.bias": (4,), "2.weight": (6, 4, 3, 3), "2.bias": (6,)}
    return {name: torch.randn(shape) for name, shape in (shapes | {"4.weight": (4, 54), "4.bias": (4,)}).items()}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("no.safetensors", None, "no.safetensors': No such file or directory; check the path and its permissions"),
        ("cut.safetensors", save(state())[:-100], "truncated, corrupted or of another kind; write it again"),
        ("cut.npz", b"PK\3\4 and no more", "is truncated or no .npz file; write it again"),
        ("bad.pt", pickle.dumps({"0.weight": Malicious()}), "is a pickle that runs code when read, which is refused;"),
        ("cut.pt", b"PK\3\4 and no more", "cut.pt'"),
        ("text.h5", b"", "end in '.h5', expected .safetensors, .pt, .pth or .npz; save with"),
        (
            "nan.safetensors",
            save(state() | {"2.bias": torch.full((6,), torch.nan)}),
            "'2.bias' in 'nan.safetensors' holds NaN or infinity; train or save it again",
        ),
        ("other.safetensors", save({"x": torch.zeros(1)}), "no '0.weight', it has 'x' instead; take the weights that"),
        (
            "shape.safetensors",
            save(state() | {"2.bias": torch.zeros(7)}),
            "'2.bias' has shape [7], expected [6]; take the weights that belong to this network",
        ),
    ],
)
def test_wrong_weights(
    lowbit: Lowbit, folder: Path, tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    assert told in refusal(lowbit(*applying(tmp_path, weights=name)))
    assert not (folder / "pwned").exists()


def write_data(folder: Path) -> None:
    zeros = np.zeros((6, 1, 8, 8), np.float32)
    nan = zeros.copy()
    nan[4, 0, 3, 3] = np.nan
    np.savez(folder / "nan.npz", inputs=nan)
    np.savez(folder / "empty.npz", inputs=zeros[:0])
    np.savez(folder / "rgb.npz", inputs=np.zeros((6, 3, 8, 8), np.float32))
    np.savez(folder / "small.npz", inputs=np.zeros((6, 1, 2, 2), np.float32))
    np.savez(folder / "objects.npz", inputs=np.array([Malicious()]))
    np.savez(folder / "names.npz", pictures=zeros)
    np.save(folder / "single.npy", zeros)
    np.savez(folder / "hot.npz", x=zeros, y=np.eye(3)[np.arange(6) % 3])
    (folder / "cut.npz").write_bytes((folder / "data.npz").read_bytes()[:2000])
    pq.write_table(pa.table({"x": [[0.0] * 64] * 6}), folder / "whole.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-20])
    (folder / "typo.yaml").write_text("sorce: data.npz\n")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("no.npz", "no.npz': No such file or directory; check the path and its permissions"),
        ("no-*.parquet", "matches 'no-*.parquet'; check the pattern"),
        ("nowhere", "nowhere' does not exist, expected an .npz or .parquet file, a folder of images or"),
        ("nan.npz", "data 'nan.npz', sample 4 holds NaN or infinity, expected finite numbers; remove it"),
        ("empty.npz", "data 'empty.npz' is empty, expected at least one sample; check the source"),
        ("cut.npz", "is truncated or no .npz file; write it again with numpy.savez"),
        ("cut.parquet", "truncated, corrupted or of another kind; write it again"),
        ("objects.npz", "array 'inputs' is a pickle of Python objects, expected numbers; save a numeric array"),
        (
            "single.npy",
            "is a single array, expected an .npz or .parquet file, a folder of images or 'module:function'; "
            "write np.savez('data.npz', inputs=x, labels=y)",
        ),
        ("hot.npz", "data 'hot.npz': array 'y' [6, 3] look one-hot, a single 1 in each row; expected one class number"),
        ("names.npz", "none of inputs, x, X, data, images among arrays pictures; choose one with `inputs:`"),
        ("typo.yaml", "unknown key; did you mean 'source'?"),
        ("net.py:wrong", "data 'net.py:wrong': the function raised ValueError: two lines; correct it"),
        ("net.py:two", "the function returned tuple, expected inputs or (inputs, labels) as tensors"),
        (
            "rgb.npz",
            "Sequential does not take inputs of shape [1, 3, 8, 8] (RuntimeError: Given groups=1, weight of size "
            "[4, 1, 3, 3], expected input[1, 3, 8, 8] to have 1 channels, but got 3 channels instead); correct the "
            "data or its preprocessing",
        ),
        ("small.npz", "Sequential does not take inputs of shape [1, 1, 2, 2] (RuntimeError: "),
    ],
)
def test_wrong_data(lowbit: Lowbit, folder: Path, tmp_path: Path, source: str, told: str) -> None:
    write_data(folder)
    assert told in refusal(lowbit(*applying(tmp_path, data=source)))
    assert not (folder / "pwned").exists()
    assert not list((tmp_path / "out").iterdir())


def test_unknown_runtime_and_opset(lowbit: Lowbit, tmp_path: Path) -> None:
    told = "--runtime 'tensorrt' is unknown; expected onnxruntime or openvino"
    assert told in refusal(lowbit(*applying(tmp_path, runtime="tensorrt")))
    assert told in refusal(lowbit("verify", "model.onnx", "--runtime", "tensorrt"))
    assert "opset 7: expected 21" in refusal(lowbit(*applying(tmp_path, opset="7")))


@pytest.mark.parametrize("command", ["apply", "pilot", "demo"])
def test_folder_that_cannot_be_written(lowbit: Lowbit, tmp_path: Path, command: str) -> None:
    (tmp_path / "taken").write_text("a file")
    arguments = {"apply": applying(tmp_path, out=tmp_path / "taken")}
    others = [command, *(["pilot.yaml"] if command == "pilot" else []), "--out", tmp_path / "taken"]
    message = refusal(lowbit(*arguments.get(command, others)))
    assert f"{tmp_path / 'taken'}: File exists; check the path, its permissions and the free space" in message


def test_full_disk(lowbit: Lowbit, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays, and nothing half-written is left."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.onnx").write_bytes(b"the older file")
    monkeypatch.setattr(os, "replace", full)
    message = refusal(lowbit(*applying(tmp_path)))
    assert "model.onnx': No space left on device; free some space or choose another folder" in message
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"the older file"]
    message = refusal(lowbit("pilot", "pilot.yaml", "--out", tmp_path / "run"))
    assert "run.json': No space left on device" in message


def test_missing_files(lowbit: Lowbit, tmp_path: Path) -> None:
    told = "cannot read 'no.yaml': No such file or directory; check the path and its permissions"
    assert told in refusal(lowbit("pilot", "no.yaml"))
    assert told in refusal(lowbit(*applying(tmp_path, recipe="no.yaml")))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"kpi": {"metric": "accuracy", "minimum": 0.9}},
            "kpi.metric 'accuracy' needs labels, the test data has none;",
        ),
        (
            {"kpi": {"metric": "acuracy", "minimum": 0.9}},
            "kpi.metric 'acuracy' is unknown; expected accuracy, agreement",
        ),
        (
            {
                "kpi": {"metric": "net.py:no", "minimum": 0.9},
                "data": {"calibration": {"source": "unlabeled.npz"}, "test": {"source": "data.npz"}},
            },
            "reference 'net.py:no': 'net.py' has no 'no'; choose from",
        ),
        ({"kpi": {"minimun": 0.9}}, "pilot.yaml: kpi.minimun: unknown key; did you mean 'minimum'?"),
        (
            {"model": "net.py:bild"},
            "reference 'net.py:bild': 'net.py' has no 'bild'; did you mean 'build'?",
        ),
        ({"weights": "no.pt"}, "no.pt': No such file or directory"),
        ({"variants": [{"name": "w8", "weights": "itn8"}]}, "pilot.yaml: variants[0].weights: unknown format 'itn8'"),
        (
            {"data": {"calibration": {"source": "rgb.npz"}, "test": {"source": "unlabeled.npz"}}},
            "Sequential does not take inputs of shape [2, 3, 8, 8] (RuntimeError: Given groups=1",
        ),
    ],
)
def test_wrong_pilot(lowbit: Lowbit, folder: Path, tmp_path: Path, sections: dict[str, Any], told: str) -> None:
    write_data(folder)
    unlabeled = {"calibration": {"source": "unlabeled.npz"}, "test": {"source": "unlabeled.npz"}}
    path = save_pilot(folder / "wrong-pilot.yaml", **({"data": unlabeled} | sections))
    assert told in refusal(lowbit("pilot", path, "--out", tmp_path / "run"))
    assert not (tmp_path / "run/variants").exists()


def test_installed_command_fails_in_one_line(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, where libraries may also write to standard error."""
    write_data(folder)
    command = [str(Path(sys.executable).with_name("lowbit")), *map(str, applying(tmp_path, data="rgb.npz"))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "does not take inputs of shape" in refusal(Result(done.returncode, done.stdout, done.stderr))


# Two models compared


def test_help_of_compare(lowbit: Lowbit) -> None:
    result = lowbit("compare", "--help")
    assert (result.status, result.err) == (0, "")
    assert "lowbit compare" in result.out
    assert " compare " in lowbit("--help").out


@pytest.fixture(scope="module")
def rivals(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with a manifest: a network, one that differs by little, and one that is wrong; beside them, no rivals."""
    from lowbit.export.onnx import export_onnx

    out = tmp_path_factory.mktemp("rivals")
    sys.path.append(str(folder))
    network = files.resolve("net.py:build", folder)()
    assert isinstance(network, torch.nn.Module)
    inputs = torch.from_numpy(np.load(folder / "data.npz")["inputs"])
    truth = network.eval()(inputs).argmax(1).numpy()
    np.savez(folder / "known.npz", inputs=inputs.numpy(), labels=np.where(np.arange(60) < 55, truth, (truth + 1) % 4))
    np.savez(folder / "sizes.npz", inputs=inputs[:, :, :7].numpy(), labels=truth)
    np.savez(folder / "wide.npz", inputs=inputs.numpy(), labels=truth + 4)
    provenance = {"data": {"source": "known.npz"}, "data_folder": str(folder), "seed": 0}
    for name in ("old", "new", "broken"):
        with torch.no_grad():
            last = network.get_submodule("4").get_parameter("weight")
            last.mul_({"old": 1.0, "new": 1.001, "broken": -1.0}[name])
        export_onnx(network, out / f"{name}.onnx", inputs[:1], provenance=provenance)
    (out / "copy.onnx").write_bytes((out / "old.onnx").read_bytes())
    (out / "text.onnx").write_text("no ONNX file")
    return out


def test_compare_runs_two_files(lowbit: Lowbit, rivals: Path, tmp_path: Path) -> None:
    """With the data that the manifest names; the figures are those of the files, run by ONNX Runtime itself."""
    import onnxruntime as ort

    result = lowbit(
        "compare", rivals / "old.onnx", rivals / "broken.onnx", "--out", tmp_path / "new/out", "--show", "3"
    )
    assert (result.status, result.err) == (1, "")
    given = np.load("known.npz")
    said = {}
    for name in ("old", "broken"):
        session = ort.InferenceSession(rivals / f"{name}.onnx", providers=["CPUExecutionProvider"])
        said[name] = session.run(None, {session.get_inputs()[0].name: given["inputs"]})[0].argmax(1)
    a, b = said["old"] == given["labels"], said["broken"] == given["labels"]
    assert a.sum() == 55
    record = json.loads((tmp_path / "new/out/comparison.json").read_text())
    assert (record["a"]["value"], record["b"]["value"]) == (a.mean(), b.mean())
    assert (record["lost"], record["won"]) == ((a & ~b).sum(), (b & ~a).sum())
    assert (record["verdict"], record["passed"], record["samples"]) == ("worse", False, 60)
    assert record["files"]["a"]["sha256"] == files.sha256(rivals / "old.onnx")
    assert record["data"]["source"] == "known.npz"
    rows = (tmp_path / "new/out/differences.csv").read_text().splitlines()
    assert rows[0] == "index,outcome,label,a,b,a_confidence,b_confidence,change"
    told = sorted((int(row.split(",")[0]), int(row.split(",")[4])) for row in rows[1:])
    assert told == [(i, int(said["broken"][i])) for i in np.flatnonzero(said["old"] != said["broken"]).tolist()]
    assert rows[1].split(",")[1] == "lost"
    assert "B is worse than A by more than the margin of 1 point: accuracy" in result.out
    assert f"samples that differ: {len(told)}, the first 3" in result.out
    assert "classes that lose: " in result.out
    assert str(tmp_path / "new/out/comparison.json") in result.out


def test_compare_gates(lowbit: Lowbit, rivals: Path) -> None:
    """Exit status 0 if B is no worse; 1 if nothing can be decided, and then how many samples would."""
    pair = ["compare", rivals / "old.onnx", rivals / "new.onnx"]
    result = lowbit(*pair, "--data", "known.npz", "--margin", "0.1")
    assert (result.status, result.err) == (0, "")
    assert "B is equivalent to A within the margin of 10 points: accuracy 91.67 % against 91.67 %" in result.out
    assert "samples that differ" not in result.out
    result = lowbit(*pair, "--margin", "0.01", "--limit", "20")
    assert (result.status, result.err) == (1, "")
    assert "accuracy of 20 samples" in result.out
    assert "undecided, B may lose more than the margin of 1 point, or nothing" in result.out
    assert "samples more" in result.out
    (rivals / "unlabeled.yaml").write_text("source: unlabeled.npz\n")
    result = lowbit(*pair, "--data", "unlabeled.npz", "--metric", "agreement", "--margin", "0.1")
    assert result.status == 0
    assert "agreement 100.00 % against 100.00 %" in result.out


def test_compare_with_a_fixed_batch_or_float16(lowbit: Lowbit, rivals: Path, tmp_path: Path) -> None:
    """Files from elsewhere may fix the batch, here at 7, or take half floats; 60 samples are no multiple of it."""
    import onnx

    model = onnx.load(rivals / "old.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, tmp_path / "seven.onnx")
    make = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((64, 4), np.float16), "w")
    graph = make.make_graph(
        [make.make_node("Flatten", ["x"], ["f"]), make.make_node("MatMul", ["f", "w"], ["y"])],
        "half",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["n", 1, 8, 8])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["n", 4])],
        [weight],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10), tmp_path / "half.onnx")
    told = lowbit("compare", tmp_path / "seven.onnx", tmp_path / "half.onnx", "--data", "known.npz", "--margin", "0.1")
    assert (told.status, told.err) == (1, "")
    assert "accuracy of 60 samples" in told.out
    assert "A  91.67 %" in told.out


@pytest.fixture(scope="module")
def logs(folder: Path) -> dict[str, int]:
    """The same outcomes as CSV, Parquet and npz; and how many samples B loses and wins in them."""
    generator = np.random.default_rng(0)
    names = np.array(["cat", "dog", "eel"])
    truth = names[np.arange(300) % 3]
    old, new = (np.where(generator.random(300) < keep, truth, names[(np.arange(300) + 1) % 3]) for keep in (0.9, 0.7))
    a, b = old == truth, new == truth
    table = {"old": old, "new": new, "truth": truth, "a_hit": a.astype(int), "b_hit": b.astype(int)}
    errors = generator.exponential(size=300)
    table |= {"a_error": errors, "b_error": errors * 0.9, "id": np.arange(300)}
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    text = [",".join(table), *(",".join(map(str, row)) for row in rows)]
    (folder / "log.csv").write_text("\n".join(text) + "\n")
    np.savez(folder / "log.npz", **table)
    arrays: dict[str, Any] = {name: pa.array(column.tolist()) for name, column in table.items()}
    arrays["truth"] = arrays["truth"].dictionary_encode()  # as pandas writes categories
    pq.write_table(pa.table(arrays | {"when": pa.array([None] * 300)}), folder / "log.parquet")
    for name, column in (("old", old), ("new", new)):
        np.savez(folder / f"{name}.npz", predictions=column, labels=truth)
    np.savez(folder / "other.npz", predictions=new, labels=truth[::-1])
    return {"lost": int((a & ~b).sum()), "won": int((b & ~a).sum())}


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_compare_of_logged_outcomes(lowbit: Lowbit, logs: dict[str, int], tmp_path: Path, kind: str) -> None:
    log = ["compare", "--outcomes", f"log.{kind}"]
    for columns in (["--a", "old", "--b", "new", "--label", "truth"], ["--a", "a_hit", "--b", "b_hit"]):
        result = lowbit(*log, *columns, "--out", tmp_path)
        assert (result.status, result.err) == (1, "")
        record = json.loads((tmp_path / "comparison.json").read_text())
        assert {key: record[key] for key in ("lost", "won")} == logs
        assert record["verdict"] == "worse"
        assert record["metric"] == ("accuracy" if "truth" in columns else "hits")
    result = lowbit(*log, "--a", "a_error", "--b", "b_error", "--metric", "error", "--margin", "0.01")
    assert (result.status, result.err) == (0, "")
    assert "B is better than A: error" in result.out


def test_compare_of_two_logs(lowbit: Lowbit, logs: dict[str, int], rivals: Path, tmp_path: Path) -> None:
    result = lowbit("compare", "old.npz", "new.npz", "--labels", "labels", "--out", tmp_path)
    assert (result.status, result.err) == (1, "")
    assert {key: json.loads((tmp_path / "comparison.json").read_text())[key] for key in logs} == logs
    lines = [line for line in result.out.splitlines() if line.startswith(("index", "class ", "cat", "dog"))]
    assert lines
    assert max(map(len, lines)) <= 80
    np.savez(tmp_path / "log.npz", outputs=np.load("known.npz")["labels"], id=np.arange(60))
    result = lowbit("compare", rivals / "old.onnx", tmp_path / "log.npz")  # a file, and what another one said
    assert result.status == 0
    assert "B is better than A" in result.out or "no worse" in result.out


def test_compare_shows_no_control_characters(lowbit: Lowbit, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b,t\n" + "x,\x1b[31m[bold]y,x\n" * 3)
    result = lowbit("compare", "--outcomes", tmp_path / "log.csv", "--a", "a", "--b", "b", "--label", "t")
    assert result.status == 1
    assert "\x1b" not in result.out
    assert "?[31m[bold]y" in result.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected two models or logs, A and B, or one log with --outcomes"),
        (["{old}"], "expected two models or logs, A and B"),
        (["{old}", "{copy}"], "copy.onnx' are the same file by hash; give two that differ"),
        (["{old}", "{text}"], "text.onnx': "),
        (["{old}", "no.onnx"], "no file 'no.onnx'; check the path"),
        (["{old}", "{new}", "--data", "no.npz"], "no.npz': No such file"),
        (
            ["{old}", "{new}", "--data", "sizes.npz"],
            "takes samples of shape [1, 8, 8], the data has [1, 7, 8]; correct",
        ),
        (["{old}", "{new}", "--data", "clusters.npz"], "takes samples of shape [1, 8, 8], the data has [6]; correct"),
        (["{old}", "{new}", "--data", "wide.npz"], "labels go from 4 to "),
        (["{old}", "{new}", "--data", "unlabeled.npz", "--metric", "accuracy"], "metric 'accuracy' needs labels"),
        (["{old}", "{new}", "--metric", "acuracy"], "metric 'acuracy' is unknown; expected accuracy, agreement"),
        (["{old}", "{new}", "--margin", "0"], "margin is 0, expected a number above 0"),
        (["{old}", "{new}", "--a", "x"], "--a names a column, and A is no log; leave it out"),
        (["{old}", "{new}", "--runtime", "tensorrt"], "--runtime 'tensorrt' is unknown"),
        (["{old}", "{new}", "--limit", "1"], "got 1 samples, expected two at least"),
        (["{old}", "{new}", "--outcomes", "log.csv"], "--outcomes holds both sides; leave A, B, --data"),
        (["--outcomes", "log.csv"], "'log.csv' has columns old, new, truth, a_hit, b_hit, a_error, b_error, id; name"),
        (["--outcomes", "log.csv", "--a", "old", "--b", "old"], "--a and --b are the same column 'old'"),
        (["--outcomes", "log.csv", "--a", "old", "--b", "no"], "'log.csv' has no column 'no'; choose from old, new"),
        (["--outcomes", "log.parquet", "--a", "when", "--b", "new"], "'log.parquet' column 'when' is null, expected"),
        (["--outcomes", "log.csv", "--a", "a_error", "--b", "b_error"], "got numbers without labels; give labels"),
        (["--outcomes", "net.py", "--a", "x", "--b", "y"], "log 'net.py' ends in '.py', expected .npz, .csv, .parquet"),
        (["--outcomes", "empty.csv", "--a", "x", "--b", "y"], "cannot read 'empty.csv'"),
        (["--outcomes", "hole.csv", "--a", "x", "--b", "y"], "'hole.csv' column 'y' is empty or NaN in row 1"),
        (["--outcomes", "twice.csv", "--a", "x", "--b", "y"], "'twice.csv' has column 'x' twice"),
        (["--outcomes", "ragged.csv", "--a", "x", "--b", "y"], "cannot read 'ragged.csv'"),
        (["--outcomes", "clusters.npz", "--a", "inputs", "--b", "labels"], "has a column 'labels': name the labels"),
        (["old.npz", "new.npz"], "'old.npz' has a column 'labels': name the labels with --label"),
        (["old.npz", "other.npz", "--label", "labels"], "the labels in 'old.npz' and 'other.npz' differ; log the same"),
        (["old.npz", "new.npz", "--label", "no"], "neither 'old.npz' nor 'new.npz' has a column 'no'"),
        (["old.npz", "log.csv", "--label", "truth"], "'log.csv' has columns old, new, truth, a_hit"),
        (["old.npz", "new.npz", "--label", "labels", "--limit", "3"], "--inputs and --limit are of data"),
        (["old.npz", "{old}", "--data", "known.npz"], "A has 300 samples and B 60, expected the same ones"),
    ],
)
def test_wrong_comparison(
    lowbit: Lowbit, logs: dict[str, int], rivals: Path, clusters: Path, arguments: list[str], told: str
) -> None:
    Path("empty.csv").write_text("")
    Path("hole.csv").write_text("x,y\n1,0\n1,\n0,1\n")
    Path("twice.csv").write_text("x,x,y\n1,0,1\n1,1,1\n")
    Path("ragged.csv").write_text("x,y\n1,0\n1,0,1\n")
    given = [str(rivals / f"{one[1:-1]}.onnx") if one.startswith("{") else one for one in arguments]
    assert told in refusal(lowbit("compare", *given))


def test_a_log_with_odd_names_is_refused_in_one_line(lowbit: Lowbit, tmp_path: Path) -> None:
    columns = ["--a", "x", "--b", "y"]
    (tmp_path / "newline.csv").write_text('"a\n\x1b[31mb",c\n1,0\n')
    told = refusal(lowbit("compare", "--outcomes", tmp_path / "newline.csv", *columns))
    assert told.endswith("has no column 'x'; choose from a??[31mb, c")
    (tmp_path / "latin.csv").write_bytes(b"\xe9t\xe9,y\n1,0\n")
    assert "cannot read" in refusal(lowbit("compare", "--outcomes", tmp_path / "latin.csv", *columns))
    (tmp_path / "wide.csv").write_text(",".join(f"column{i}" for i in range(500)) + "\n")
    assert "column19 and 480 others" in refusal(lowbit("compare", "--outcomes", tmp_path / "wide.csv", *columns))


# Watching a file in use


@pytest.fixture(scope="module")
def new_data(folder: Path) -> None:
    """Draws like those of the calibration, brighter ones, few."""
    inputs = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()
    np.savez(folder / "alike.npz", inputs=inputs)
    np.savez(folder / "bright.npz", inputs=inputs + np.float32(0.8))
    np.savez(folder / "three.npz", inputs=inputs[:3] + np.float32(5))


@pytest.mark.usefixtures("new_data")
def test_watch_tells_drift_by_its_exit_status(lowbit: Lowbit, exported: Path, tmp_path: Path) -> None:
    result = lowbit("watch", exported, "--data", "alike.npz", "--json", tmp_path / "watch.json")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1].startswith("no drift: none of ")
    written = json.loads((tmp_path / "watch.json").read_text())
    assert (written["drifted"], written["samples"], written["reference_samples"]) == (False, 60, 60)
    result = lowbit("watch", exported, "--data", "bright.npz", "--json", tmp_path / "watch.json", "--limit", "50")
    assert (result.status, result.err) == (1, "")
    assert "input: input 'input' is " in result.out
    assert "  look at the preprocessing first" in result.out
    assert result.out.splitlines()[-1].startswith("drift: ")
    table = [line for line in result.out.splitlines() if line.startswith(("tensor ", "activations."))]
    assert table[0].split() == ["tensor", "index", "at", "lowest", "was", "at", "highest", "was"]
    assert len(table) > 2
    assert max(map(len, table)) <= 80
    assert "index: population stability index of a tensor's codes, alike near 0, other content above 0.2;" in result.out
    written = json.loads((tmp_path / "watch.json").read_text())
    assert (written["drifted"], written["samples"]) == (True, 50)
    assert next(one["kind"] for one in written["checks"] if one["alarm"]) == "input"
    result = lowbit("watch", exported, "--data", "three.npz")
    assert (result.status, result.out.splitlines()[-1]) == (
        0,
        "nothing can be told: 3 new samples, expected 30 or more",
    )


@pytest.mark.usefixtures("new_data")
def test_watch_beside_the_float_model(lowbit: Lowbit, exported: Path, tmp_path: Path) -> None:
    model: Any = files.resolve("net.py:build")()
    reference = lb.export_onnx(model.eval(), tmp_path / "float.onnx", torch.zeros(1, 1, 8, 8)).path
    result = lowbit("watch", exported, "--data", "alike.npz", "--reference", reference, "--margin", "0.05")
    assert (result.status, result.err) == (0, "")
    assert "predicts as the float model on " in result.out
    assert "no file '" in refusal(lowbit("watch", exported, "--data", "alike.npz", "--reference", tmp_path / "no.onnx"))


@pytest.mark.usefixtures("new_data")
def test_watch_of_an_older_file(lowbit: Lowbit, tampered: Path, exported: Path) -> None:
    """It says what to do, and that works; a later verification with --renew changes what is compared with."""
    manifest = tampered.parent / "manifest.json"
    entry = json.loads(manifest.read_text())
    kept = entry["model.onnx"].pop("watch")
    manifest.write_text(json.dumps(entry))
    told = "does not tell what the file saw; run lowbit apply or lowbit pilot again, or lowbit verify on the data"
    assert told in refusal(lowbit("watch", tampered, "--data", "alike.npz"))
    assert lowbit("verify", tampered).status == 0
    again = json.loads(manifest.read_text())["model.onnx"]["watch"]
    assert again | {"agreement": None} == kept | {"agreement": None}
    assert lowbit("watch", tampered, "--data", "bright.npz").status == 1
    with pytest.warns(UserWarning, match="is not like the calibration data"):
        assert lowbit("verify", tampered, "--data", "bright.npz", "--renew").status == 0
    assert lowbit("watch", tampered, "--data", "bright.npz").status == 0


@pytest.mark.usefixtures("new_data")
def test_watch_hints_at_preprocessing_that_is_missing(lowbit: Lowbit, tampered: Path) -> None:
    manifest = tampered.parent / "manifest.json"
    entry = json.loads(manifest.read_text())
    entry["model.onnx"]["provenance"]["data"]["preprocess"] = {"mean": [0.8]}
    manifest.write_text(json.dumps(entry))
    hint = "give --data a YAML file with the same preprocess section"
    assert hint in lowbit("watch", tampered, "--data", "bright.npz").out
    Path("bright.yaml").write_text("source: bright.npz\npreprocess: {mean: [0.8]}\n")
    result = lowbit("watch", tampered, "--data", "bright.yaml")
    assert result.status == 0
    assert hint not in result.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "no.npz"), "no.npz': No such file"),
        (("--data", "rgb.npz"), "the file does not take inputs of shape [6, 3, 8, 8] ("),
        (("--data", "data.npz", "--runtime", "tensorrt"), "--runtime 'tensorrt' is unknown"),
        (("--data", "data.npz", "--margin", "2"), "margin is 2.0, expected a share from 0 to below 1"),
        (("--data", "data.npz", "--json", "no/such/watch.json"), "watch.json"),
    ],
)
def test_wrong_watching(lowbit: Lowbit, exported: Path, folder: Path, arguments: tuple[str, ...], told: str) -> None:
    write_data(folder)
    assert told in refusal(lowbit("watch", exported, *arguments))


def test_watch_refuses_a_changed_file_or_section(lowbit: Lowbit, tampered: Path) -> None:
    manifest = tampered.parent / "manifest.json"
    entry = json.loads(manifest.read_text())
    entry["model.onnx"]["watch"]["samples"] = -1
    manifest.write_text(json.dumps(entry))
    told = refusal(lowbit("watch", tampered, "--data", "data.npz"))
    assert "model.onnx, watch: samples: expected more than 0, got -1" in told
    tampered.write_bytes(tampered.read_bytes() + b"\0")
    assert "is not the file its manifest describes" in refusal(lowbit("watch", tampered, "--data", "data.npz"))


def test_a_pilot_file_can_be_watched(lowbit: Lowbit, folder: Path, tmp_path: Path) -> None:
    data = {"calibration": {"source": "unlabeled.npz"}, "test": {"source": "data.npz"}}
    assert lowbit("pilot", save_pilot(folder / "watched.yaml", data=data), "--out", tmp_path).status == 0
    variants = tmp_path / "variants"
    reference = ("--reference", variants / "float/model.onnx")
    result = lowbit("watch", variants / "w8a8/model.onnx", "--data", "data.npz", *reference)
    assert (result.status, result.err) == (0, "")
    trial = json.loads((variants / "w8a8/trial.json").read_text())
    noted = json.loads((variants / "w8a8/manifest.json").read_text())["model.onnx"]["watch"]["agreement"]
    assert noted["same"] / noted["samples"] == trial["agreement"]["value"]


def test_a_file_of_a_further_seed_names_the_samples_that_it_was_measured_on(
    lowbit: Lowbit, folder: Path, tmp_path: Path
) -> None:
    """The pilot's seed draws them, for all seeds of a variant."""
    data = {"calibration": {"source": "unlabeled.npz"}, "test": {"source": "data.npz", "limit": 100}}
    trained = {"name": "w8a8", "weights": "int8", "activations": "int8", "distill": {"epochs": 1}}
    pilot = save_pilot(folder / "drawn.yaml", data=data, seeds=[3, 4], variants=[trained])
    assert lowbit("pilot", pilot, "--out", tmp_path).status == 0
    file = tmp_path / "variants/w8a8/seeds/4/model.onnx"
    entry: Any = manifest_entry(file)
    section, base, seed = outcomes.noted_data(entry) or ("", "", -1)
    test = options.noted_spec(section).open(Path(base), seed)
    assert entry["provenance"]["test_data"] == test.hash
    assert lowbit("compare", tmp_path / "variants/float/model.onnx", file, "--margin", "0.5").status == 0


def test_functions_that_a_manifest_names_are_not_run() -> None:
    assert options.noted_spec({"source": "lowbit.data:digits_test"}).source == "lowbit.data:digits_test"
    assert options.noted_spec({"source": "test.npz"}).source == "test.npz"
    for source in ("evil.py:run", "os:getcwd", "folder/x.py:f", "lowbit.evil.py:run", "lowbit.files:resolve"):
        with pytest.raises(DataError, match="functions of a manifest are not run; give --data"):
            options.noted_spec({"source": source})
