"""The command line: `lowbit demo`, `pilot`, `apply`, `verify`, `features`. Errors are one line, exit status 2."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lowbit import __version__
from lowbit.errors import DataError, LowbitError, RecipeError

if TYPE_CHECKING:
    from torch import nn

    from lowbit.data import Data
    from lowbit.export.verify import Verification
    from lowbit.methods.discrimination.layers import Pool
    from lowbit.pilot.features import FeatureStudy
    from lowbit.pilot.record import Run
    from lowbit.pilot.spec import DataSpec, PilotSpec
    from lowbit.post_training.levels import Level

app = typer.Typer(
    name="lowbit",
    help="Make a trained PyTorch network low-bit, and prove what each change costs and buys.\n\n"
    "Start with **lowbit demo**: it trains a small network, makes five low-bit variants of it, measures them "
    "in ONNX Runtime and writes a report. Then write a pilot file for your own model (examples/cifar10/pilot.yaml is "
    "one) and run **lowbit pilot**.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

features = typer.Typer(
    name="features",
    help="Find out whether features should become bits, and watch those that did.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(features)

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; default runs/<name>.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Variants at once, each in a process of its own.")]
Runtime = Annotated[str, typer.Option("--runtime", help="onnxruntime or openvino.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", help="npz, Parquet glob, image folder, module:function, or a YAML file with a data section."
    ),
]
FeatureData = Annotated[str, typer.Argument(help=DataOption.__metadata__[0].help)]
Inputs = Annotated[str | None, typer.Option("--inputs", help="Array or column of the inputs, if not a usual name.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Take a layer's outputs: module:function, or path/file.py:function, of its network."),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="safetensors, or a state dict in .pt or .npz.")]
Layer = Annotated[str | None, typer.Option("--layer", help="The layer's name in the network.")]
Pooling = Annotated[str, typer.Option("--pool", help="mean over the positions of a feature map, or none.")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"lowbit {__version__}")
        raise typer.Exit


@app.command()
def demo(out: Out = None) -> None:
    """Run the main job on data and a model that come with the package, in about a minute, offline.

    Trains a small convolutional network on scikit-learn's digits, makes int8, int4, 4-bit float and ternary variants,
    exports each as an ONNX file, checks every file against its model, and writes report.html.
    """
    from lowbit import demo as example

    folder = out or Path("runs", example.PILOT.name)
    if not (folder / "weights.safetensors").exists():
        typer.echo("training a small network on digits, then measuring it and five low-bit variants ...")
    example.trained_weights(folder / "weights.safetensors")
    _pilot(example.PILOT, folder, folder, jobs=1)


@app.command()
def pilot(
    file: Annotated[Path, typer.Argument(help="The pilot file: model, data, KPI and variants.")],
    out: Out = None,
    jobs: Jobs = 1,
) -> None:
    """Measure every variant of a pilot file on your model and data, and write one report.

    The run folder is written as it goes: stop it at any moment, start it again with the same command, and finished
    variants are kept. Paths in the file are relative to the file. Exit status 1 if a variant fails or none meets the
    KPI.

    **Example**: lowbit pilot examples/cifar10/pilot.yaml
    """
    from lowbit.pilot.spec import load_spec

    spec = load_spec(file)
    run = _pilot(spec, out or Path("runs", spec.name), file.resolve().parent, jobs)
    variants = [trial for trial in run.trials if trial.recipe]
    if any(t.verdict == "failed" for t in variants) or not any(t.verdict == "meets" for t in variants):
        raise typer.Exit(1)


@app.command()
def apply(
    recipe: Annotated[Path, typer.Argument(help="A recipe: which layer gets which format.")],
    model: Annotated[str, typer.Option("--model", help="module:function, or path/file.py:function, that builds it.")],
    data: Annotated[
        str, typer.Option("--data", help=f"Calibration inputs, no labels needed: {DataOption.__metadata__[0].help}")
    ],
    weights: Weights = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for model.onnx and manifest.json.")] = Path("lowbit-out"),
    runtime: Runtime = "onnxruntime",
    opset: Annotated[int, typer.Option("--opset", help="21, or 25 to store 2-bit weights in 2 bits.")] = 21,
    limit: Annotated[int, typer.Option("--limit", help="Calibrate on so many samples.", min=1)] = 1024,
    seed: Annotated[int, typer.Option("--seed", help="Which samples.")] = 0,
    level: Annotated[
        str, typer.Option("--level", help="Effort: fast, balanced or best (minutes). A factorized network has none.")
    ] = "balanced",
) -> None:
    """Turn one recipe into one verified ONNX file with its manifest.

    The recipe may be one that a pilot found: formats of a search, layers that became chains of small ones, or an output
    on a path, whose weights lie beside the recipe.

    **Example**: lowbit apply recipe.yaml --model lowbit.models:resnet20 --weights resnet20.safetensors
    --data calibration.npz
    """
    from lowbit import models
    from lowbit.export.onnx import MANIFEST, export_onnx
    from lowbit.export.verify import verify as check
    from lowbit.pilot import curved
    from lowbit.pilot.factorized import student_of
    from lowbit.pilot.spec import load_recipe
    from lowbit.post_training.levels import post_train
    from lowbit.quantization import coverage

    checked, (read, chains, output) = _runtime(runtime), load_recipe(recipe)
    out.mkdir(parents=True, exist_ok=True)
    network = models.load(model, weights, Path.cwd())
    spec, base = _data_spec(data)
    samples = spec.open(base, seed)
    if spec.limit is None and len(samples) > limit:
        samples = samples.take(limit, seed)
    batches = samples.batches(max(1, min(100, len(samples) // 8)))
    if output is not None:
        curve = curved.again(network, output, recipe.parent)
        student, did = post_train(curve.model, read, batches, level=cast("Level", level), seed=seed)
        student = curved.end(curve, batches, student)
        from_file = f"weights from {output.weights}" if output.weights else "which needs no training"
        typer.echo(f"output: {output.path}, {from_file}")
        typer.echo(f"level {level}: {curved.in_points(did)}")
    elif chains is None:
        student, did = post_train(network, read, batches, level=cast("Level", level), seed=seed)
        typer.echo(f"level {level}: {did}")
    else:
        student, found = student_of(network, read, chains, batches, spec.preprocess.black(), seed=seed)
        typer.echo(str(found))
    example = next(iter(samples.batches(2)))[0]
    provenance = {
        "seed": seed,
        "calibration_data": samples.hash,
        "data": spec.model_dump(mode="json", exclude_defaults=True) | {"limit": len(samples)},
        "data_folder": os.fspath(base),
    }
    with tempfile.TemporaryDirectory(dir=out) as unverified:
        exported = export_onnx(student, Path(unverified, "model.onnx"), example, opset=opset, provenance=provenance)
        _show_verification(exported.path, check(exported, samples.batches(100), runtime=checked))
        for name in (exported.path.name, MANIFEST):  # only a file that passed gets its final name
            os.replace(exported.path.with_name(name), out / name)
    for row in coverage(student).skipped:
        typer.echo(f"  left float: {row.name} ({row.kind}): {row.reason}")
    if weights is None:
        typer.echo("  no --weights were given: these are those that the model's function made")
    written = out / "model.onnx"
    typer.echo(f"{written}  {written.stat().st_size / 1e6:.3f} MB")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An ONNX file with its manifest.json beside it.")],
    data: DataOption = None,
    runtime: Runtime = "onnxruntime",
    limit: Annotated[int, typer.Option("--limit", help="Check on so many samples.", min=1)] = 500,
) -> None:
    """Check an exported file again: is it the one in the manifest, does it run as it should, and on which kernels?

    Without --data, the data that the manifest names is used.
    """
    from lowbit.export.onnx import manifest_entry
    from lowbit.export.verify import verify as check

    checked, noted = _runtime(runtime), manifest_entry(file).get("provenance")
    provenance = noted if isinstance(noted, dict) else {}
    seed = provenance.get("seed")
    if data is not None:
        spec, base = _data_spec(data)
    elif "data" in provenance:
        spec, base = _validated_data(provenance["data"], "manifest.json"), Path(str(provenance.get("data_folder", ".")))
    else:
        raise DataError(f"the manifest of {str(file)!r} does not name its data; give --data")
    samples = spec.open(base, seed if isinstance(seed, int) else 0)
    samples = samples.take(limit, 0) if len(samples) > limit else samples
    result = check(file, samples.batches(100), runtime=checked)
    _show_verification(file, result)
    typer.echo("why is it not faster?")
    for line in result.why_not_faster():
        typer.echo(f"  {line}")


@features.command()
def sweep(
    data: FeatureData,
    inputs: Inputs = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Array or column of the classes, if not a usual name.")
    ] = None,
    model: Model = None,
    weights: Weights = None,
    layer: Layer = None,
    pool: Pooling = "mean",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; default runs/features-NAME, of the data.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Train classifiers on so many samples.", min=1)] = 5000,
    splits: Annotated[int, typer.Option("--splits", help="Random splits that accuracy is measured on.", min=2)] = 10,
    margin: Annotated[float, typer.Option("--margin", help="Change in accuracy that does not matter, a share.")] = 0.01,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample and the splits.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Splits at once.")] = 1,
) -> None:
    """Sweep thresholds of binary and ternary codes of features, and say for which classifier they are worth it.

    Features are the inputs themselves, or with --model and --layer what a layer of a network returns. Writes
    report.html, features.json and one trace a code, to code new data with. Stop it at any moment: the same command
    goes on where it was.

    **Example**: lowbit features sweep lowbit.data:digits_train --limit 1000
    """
    from lowbit import files
    from lowbit.pilot.features import study
    from lowbit.report.features import render

    network, samples = _features(data, inputs, labels, model, weights, layer, seed)
    name = re.sub(r"[^\w.-]+", "-", Path(data.rpartition(":")[2]).stem).strip("-")
    folder = out or Path("runs", f"features-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    with _resumable():
        found = study(
            samples,
            folder,
            name=name,
            model=network,
            layer=layer or "",
            pool=cast("Pool", pool),
            limit=limit,
            splits=splits,
            margin=margin,
            seed=seed,
            jobs=jobs,
            command=shlex.join(["lowbit", *sys.argv[1:]]),
            say=typer.echo,
        )
    files.write_text(folder / "report.html", render(found))
    _show_study(found)
    typer.echo(f"\nreport: {(folder / 'report.html').resolve()}")


@features.command()
def drift(
    trace: Annotated[Path, typer.Argument(help="binary.json or ternary.json of a sweep.")],
    data: FeatureData,
    inputs: Inputs = None,
    model: Model = None,
    weights: Weights = None,
    layer: Layer = None,
    pool: Pooling = "mean",
) -> None:
    """Compare how often each code comes in new data, no labels needed, with how often it came in those of the sweep.

    Prints the features that moved with their population stability index. Exit status 1 if any did.

    **Example**: lowbit features drift runs/features-digits/ternary.json new.npz
    """
    import numpy as np

    from lowbit.methods.discrimination.tracing import FeatureTrace
    from lowbit.pilot.features import feature_chunks

    known = FeatureTrace.load(trace)
    network, samples = _features(data, inputs, None, model, weights, layer, 0)
    chunks = feature_chunks(samples, network, layer or "", cast("Pool", pool))
    found = known.drift(np.concatenate([x for x, _ in chunks]))
    typer.echo(str(found))
    indices = dict(zip(known.names, found.index, strict=True))
    for name in sorted(found.moved, key=lambda name: -indices[name]):
        typer.echo(f"  {name}: index {indices[name]:.3f}")
    if found.drifted:
        raise typer.Exit(1)


def _pilot(spec: PilotSpec, folder: Path, base: Path, jobs: int) -> Run:
    from lowbit import files, models
    from lowbit.pilot.run import run_pilot
    from lowbit.report.page import render

    folder.mkdir(parents=True, exist_ok=True)
    model = models.load(spec.model, spec.weights, base)
    calibration = spec.data.calibration.open(base, spec.seed)
    test = spec.data.test.open(base, spec.seed)
    provenance = {
        "data": spec.data.test.model_dump(mode="json", exclude_defaults=True),
        "data_folder": str(base.resolve()),
    }
    with _resumable():
        run = run_pilot(
            spec, model, calibration, test, folder, base=base, jobs=jobs, say=typer.echo, provenance=provenance
        )
    files.write_text(folder / "report.html", render(run))
    _show_run(run)
    typer.echo(f"\nreport: {(folder / 'report.html').resolve()}")
    return run


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("lowbit: stopped; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None


def _features(
    data: str,
    inputs: str | None,
    labels: str | None,
    model: str | None,
    weights: Path | None,
    layer: str | None,
    seed: int,
) -> tuple[nn.Module | None, Data]:
    """The data, and the network whose layer makes features of them, if one is given."""
    from lowbit import models

    if (model is None) != (layer is None):
        given, missing = ("--layer", "--model") if model is None else ("--model", "--layer")
        raise RecipeError(f"{given} is given without {missing}; features of a layer need both")
    if weights is not None and model is None:
        raise RecipeError("--weights is given without --model and --layer; features of a layer need them")
    spec, base = _data_spec(data)
    named = {key: name for key, name in (("inputs", inputs), ("labels", labels)) if name is not None}
    network = None if model is None else models.load(model, weights, Path.cwd())
    return network, spec.model_copy(update=named).open(base, seed)


def _data_spec(source: str) -> tuple[DataSpec, Path]:
    """A data section, from a YAML file or of the source alone, and the folder its paths are relative to."""
    from lowbit import files

    if not source.endswith((".yaml", ".yml")):
        return _validated_data({"source": source}, "--data"), Path.cwd()
    path = Path(source)
    return _validated_data(files.read_yaml(path), source), path.resolve().parent


def _validated_data(data: object, where: str) -> DataSpec:
    from lowbit.pilot.spec import DataSpec
    from lowbit.recipe import validated

    return validated(DataSpec, data, where)


def _runtime(name: str) -> Any:
    if name not in ("onnxruntime", "openvino"):
        raise RecipeError(f"--runtime {name!r} is unknown; expected onnxruntime or openvino")
    return name


def _show_verification(path: Path, result: Verification) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{path.name} in {result.runtime}, {result.samples} samples", title_justify="left")
    for column in ("layer", "kernel", "why not integer"):
        table.add_column(column, overflow="fold")
    for layer, kernel in result.layers.items():
        table.add_row(layer, kernel, result.stayed_float.get(layer, ""))
    Console().print(table)
    typer.echo(
        f"verified: predicts as the quantized model on {result.same_prediction:.2%} of the samples; at least "
        f"{result.same_codes:.4%} of any tensor's codes are equal, the others differ by at most "
        f"{result.largest_code_difference}; kernels: "
        + ", ".join(f"{count} {kernel}" for kernel, count in sorted(result.kernels.items()))
    )


def _show_run(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    from lowbit.report import figures

    typer.echo(f"\n{run.name}: {run.kpi.metric} >= {run.kpi.minimum:g}")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fits in 80 columns
    for column in ("variant", "verdict"):
        table.add_column(column, overflow="fold")
    for column in (run.kpi.metric, "95 % interval", "agrees", "MB", "BOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in run.trials[0].latencies:
        table.add_column(f"ms @{row.batch}", justify="right", no_wrap=True)
    for trial in run.trials:
        if trial.score is None:  # why, stands in the line that announced it, and in the report
            table.add_row(trial.name, trial.verdict)
            continue
        table.add_row(
            trial.name,
            trial.verdict,
            f"{trial.score.value:.4f}",
            f"{trial.score.low:.3f}-{trial.score.high:.3f}",
            f"{trial.agreement.value:.1%}" if trial.agreement else "",
            f"{trial.file_bytes / 1e6:.3f}",
            figures.count(trial.bops),
            *(f"{row.median_ms:.3f}" for row in trial.latencies),
        )
    Console().print(table)
    for trial in run.trials:
        if trial.error:
            typer.echo(f"{trial.name} failed: {trial.error}")


def _show_study(study: FeatureStudy) -> None:
    from rich.console import Console
    from rich.table import Table

    from lowbit.report.features import change, share

    typer.echo("")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fits in 80 columns
    for column in ("classifier", "code"):
        table.add_column(column, overflow="fold")
    for column in ("codes", "floats", "gain", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for row in study.judged:
        gain = row.versus_original
        table.add_row(
            *(row.classifier, row.code, share(row.accuracy), share(row.original), change(gain.gain)),
            *(f"{change(gain.low)} to {change(gain.high)}", gain.outcome),
        )
    Console().print(table)
    typer.echo("")
    for sentence in [row.sentence for row in study.judged if row.recommended] or [study.summary]:
        typer.echo(sentence)


def main() -> None:
    """Run the command line; a `LowbitError`, or a disk that refuses, is one line on stderr and exit status 2."""
    try:
        app()
    except LowbitError as error:
        message = str(error)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        message = f"{what}{error.strerror or error}; check the path, its permissions and the free space"
    else:
        return
    typer.echo(f"lowbit: {' '.join(message.split())}", err=True)
    sys.exit(2)
