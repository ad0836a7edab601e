"""Whole runs: `lowbit demo` and `lowbit pilot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.options import Jobs, Out, resumable

if TYPE_CHECKING:
    from lowbit.pilot.record import Run
    from lowbit.pilot.spec import PilotSpec


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
    with resumable():
        run = run_pilot(
            spec, model, calibration, test, folder, base=base, jobs=jobs, say=typer.echo, provenance=provenance
        )
    files.write_text(folder / "report.html", render(run))
    _show_run(run)
    typer.echo(f"\nreport: {(folder / 'report.html').resolve()}")
    return run


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
