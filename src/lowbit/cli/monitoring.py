"""A file in use: `lowbit watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.options import DATA, data_spec, runtime_named

if TYPE_CHECKING:
    from lowbit.export.watching import Watched

_SHOWN = 8  # alarms of one kind that are told in full


def watch(
    file: Annotated[Path, typer.Argument(help="An ONNX file with its manifest.json beside it.")],
    data: Annotated[str, typer.Option("--data", help=f"New inputs, no labels needed: {DATA}")],
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The float model as an ONNX file, to compare predictions with.")
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="By how much agreement with --reference may fall (or distance grow).")
    ] = 0.02,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="onnxruntime or openvino; default what it was verified in.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Look at so many samples, drawn from all.", min=1)] = 1000,
    json: Annotated[Path | None, typer.Option("--json", help="Write every check to this file.")] = None,
) -> None:
    """Does an exported file still see what it was made for? Compare new data with what the manifest says.

    Inputs, how often each code of each tensor comes, what is cut off, predicted classes, their margin, and with
    --reference how often the file predicts as the float model (a pilot writes that to variants/float/model.onnx). Of a
    regression: the values of each output, and with --reference how far they lie from the float model's. A difference
    alarms if it is large and sure. Exit status 0 without drift, 1 with, 2 for an error.

    **Example**: lowbit watch model.onnx --data new.npz --json watch.json
    """
    from lowbit import files
    from lowbit.export.onnx import existing
    from lowbit.export.watching import watch as compare

    existing(file)
    checked = None if runtime is None else runtime_named(runtime)
    spec, base = data_spec(data)
    samples = spec.open(base, 0)
    samples = samples.take(limit, 0) if len(samples) > limit else samples
    found = compare(file, samples.batches(100), reference=reference, margin=margin, runtime=checked)
    if json is not None:
        files.write_json(json, found.to_dict())
    _show(found)
    if any(alarm.kind == "input" for alarm in found.alarms) and not data.endswith((".yaml", ".yml")):
        _hint(file)
    if found.drifted:
        raise typer.Exit(1)


def _show(found: Watched) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fits in 80 columns
    table.add_column("tensor", overflow="fold")
    for column in ("index", "at lowest", "was", "at highest", "was"):
        table.add_column(column, justify="right", no_wrap=True)
    ends = {check.where: check for check in found.checks if check.kind == "clipping"}
    for check in found.checks:
        if check.kind == "codes":
            row = [f"{check.effect:.3f}"]
            for end in ("lowest", "highest"):
                cut = ends.get(f"{check.where} {end}")
                row += ["", ""] if cut is None else [f"{cut.new:.2%}", f"{cut.old:.2%}"]
            table.add_row(check.where, *row)
    if table.row_count:
        Console().print(table)
        typer.echo(
            f"index: population stability index of a tensor's codes, alike near 0, other content above "
            f"{_limit(found):g}; at lowest, at highest: the share of its numbers at that end of the range, and before"
        )
    for check in found.checks:
        if check.kind not in ("codes", "clipping") and not check.alarm:
            typer.echo(check.told)
    kinds = list(dict.fromkeys(alarm.kind for alarm in found.alarms))
    for kind in kinds:
        alarms = sorted((one for one in found.alarms if one.kind == kind), key=lambda one: -one.effect / one.limit)
        for alarm in alarms[:_SHOWN]:
            typer.echo(f"{kind}: {alarm.told}")
        if len(alarms) > _SHOWN:
            typer.echo(f"{kind}: and {len(alarms) - _SHOWN} more")
        typer.echo(f"  {alarms[0].remedy}")
    typer.echo(str(found))


def _limit(found: Watched) -> float:
    return next(check.limit for check in found.checks if check.kind == "codes")


def _hint(file: Path) -> None:
    """Say so if the data that the file was made with were preprocessed, as the new ones are not."""
    from lowbit.export.onnx import manifest_entry

    provenance = manifest_entry(file).get("provenance")
    data = provenance.get("data") if isinstance(provenance, dict) else None
    if isinstance(data, dict) and data.get("preprocess"):
        typer.echo(
            "  the file was made with preprocessed data: give --data a YAML file with the same preprocess section"
        )
