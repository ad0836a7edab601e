"""Whole runs: `lowbit demo` and `lowbit pilot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.options import DATA, Jobs, Language, Out, Weights, data_spec, language_named, resumable
from lowbit.cli.shown import show_run
from lowbit.errors import RecipeError

if TYPE_CHECKING:
    from lowbit.pilot.record import Run
    from lowbit.pilot.spec import PilotSpec


def demo(out: Out = None, language: Language = "en") -> None:
    """Run the main job on data and a model that come with the package, in about a minute, offline.

    Trains a small convolutional network on scikit-learn's digits, makes int8, int4, 4-bit float and ternary variants,
    exports each as an ONNX file, checks every file against its model, and writes report.html.
    """
    from lowbit import demo as example

    language_named(language)
    folder = out or Path("runs", example.PILOT.name)
    if not (folder / "weights.safetensors").exists():
        typer.echo("training a small network on digits, then measuring it and five low-bit variants ...")
    example.trained_weights(folder / "weights.safetensors")
    _pilot(example.PILOT, folder, folder, jobs=1, language=language)


def pilot(
    file: Annotated[Path | None, typer.Argument(help="The pilot file: model, data, KPI and variants.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write, default runs/<name>; with --init the file, pilot.yaml."),
    ] = None,
    jobs: Jobs = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="A Dask scheduler, tcp://host:8786: variants run on its workers, not here."),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Check all that the file names, tell what would run and how long; run nothing."),
    ] = False,
    init: Annotated[
        bool, typer.Option("--init", help="Write a pilot file for --model and --data, after looking at them.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="With --init: module:function or file.py:function.")
    ] = None,
    weights: Weights = None,
    data: Annotated[str | None, typer.Option("--data", help=f"With --init, for calibration: {DATA}")] = None,
    test: Annotated[str | None, typer.Option("--test", help="With --init, to report on: as --data.")] = None,
    inputs: Annotated[
        str | None, typer.Option("--inputs", help="With --init: array or column of the inputs, if not a usual name.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="With --init: the same of the labels, of --test where it is given.")
    ] = None,
    language: Language = "en",
) -> None:
    """Measure every variant of a pilot file on your model and data, and write one report.

    The run folder is written as it goes: stop it at any moment, start it again with the same command, and finished
    variants are kept. Paths in the file are relative to the file. Exit status 1 if a variant fails or none meets the
    KPI. With --cluster, file and run folder are on a path that all workers see (docs/cluster.md).

    --init looks at a model and data and writes a commented pilot file for them. --plan looks at a pilot file and tells
    what would run, in which order, how long it takes about and what it writes; exit status 2 if something is wrong.

    **Example**: lowbit pilot examples/cifar10/pilot.yaml
    """
    from lowbit.pilot.spec import load_spec

    language_named(language)
    if init:
        if file is not None or plan:
            what = "--plan" if plan else f"the pilot file '{file}'"
            raise RecipeError(f"--init writes a pilot file, and got {what} too; give --out for where, and plan it then")
        _init(out or Path("pilot.yaml"), model, weights, data, test, inputs, labels)
        return
    given = {"--model": model, "--weights": weights, "--data": data, "--test": test}
    given |= {"--inputs": inputs, "--labels": labels}
    if odd := [name for name, value in given.items() if value is not None]:
        raise RecipeError(f"{odd[0]} is of --init; without it the pilot file says that, so leave {odd[0]} out")
    if file is None:
        raise RecipeError("got no pilot file; name one, or write one with --init --model m.py:build --data data.npz")
    if plan:
        _plan(file, out, jobs)
        return
    spec = load_spec(file)
    run = _pilot(spec, out or Path("runs", spec.name), file.resolve().parent, jobs, cluster, language)
    variants = [trial for trial in run.trials if trial.recipe]
    failed = any(t.verdict == "failed" or any(one.error for one in t.repeats) for t in variants)
    if failed or not any(t.verdict == "meets" for t in variants):
        raise typer.Exit(1)


def _init(
    path: Path,
    model: str | None,
    weights: Path | None,
    data: str | None,
    test: str | None,
    inputs: str | None,
    labels: str | None,
) -> None:
    from lowbit.pilot.starting import start

    if model is None or data is None:
        missing = "--model" if model is None else "--data"
        raise RecipeError(f"--init needs {missing}; write --init --model m.py:build --data data.npz")
    of_data, of_test = data_spec(data), None if test is None else data_spec(test)
    named = {} if inputs is None else {"inputs": inputs}
    with_labels = named if labels is None else {**named, "labels": labels}
    if of_test is not None:
        of_test = of_test[0].model_copy(update=with_labels), of_test[1]
    of_data = of_data[0].model_copy(update=with_labels if of_test is None else named), of_data[1]
    for line in start(model, of_data, path, weights=weights, test=of_test):
        typer.echo(line)
    typer.echo(f"\nwrote {path}; read it, then: lowbit pilot {path} --plan")


def _plan(file: Path, out: Path | None, jobs: int) -> None:
    from lowbit.pilot.planning import PlanError, plan_file

    try:
        typer.echo(str(plan_file(file, out, jobs=jobs)))
    except PlanError as error:
        for problem in error.problems[1:]:  # the first is told at the end, as every error is
            typer.echo(f"lowbit: {' '.join(problem.split())}", err=True)
        raise


def _pilot(
    spec: PilotSpec, folder: Path, base: Path, jobs: int, cluster: str | None = None, language: str = "en"
) -> Run:
    from lowbit import files, models
    from lowbit.pilot import workers
    from lowbit.pilot.run import run_pilot
    from lowbit.report.page import render

    folder.mkdir(parents=True, exist_ok=True)
    model = models.load(spec.model, spec.weights, base)
    calibration = spec.data.calibration.open(base, spec.seed)
    test = spec.data.test.open(base, spec.seed)
    provenance = {
        "data": spec.data.test.model_dump(mode="json", exclude_defaults=True),
        "data_folder": str(base.resolve()),
        "data_seed": spec.seed,
    }
    with resumable(), workers.cluster(cluster):
        run = run_pilot(
            spec, model, calibration, test, folder, base=base, jobs=jobs, say=typer.echo, provenance=provenance
        )
    files.write_text(folder / "report.html", render(run, language=language))
    show_run(run, folder)
    return run
