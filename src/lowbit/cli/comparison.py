"""Which of two models is better: `lowbit compare`."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.cli.options import DataOption, Runtime, data_spec, noted_spec, opened, runtime_named
from lowbit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lowbit.data import Data
    from lowbit.pilot.comparison import Comparison
    from lowbit.pilot.outcomes import Log

_SIDE = "ONNX file, or log of predictions or outcomes (npz, csv, parquet)."


@dataclass(frozen=True)
class _Sides:
    """Outputs of A and B, labels, how they are called, and what else is to be told and written."""

    a: npt.NDArray[np.generic]
    b: npt.NDArray[np.generic]
    labels: npt.NDArray[np.generic] | None
    names: tuple[str, str]
    notes: tuple[str, ...]
    record: dict[str, Any]


def compare(
    a: Annotated[Path | None, typer.Argument(help=f"The model in use: {_SIDE}")] = None,
    b: Annotated[Path | None, typer.Argument(help="The model that may replace it, of either kind.")] = None,
    data: DataOption = None,
    inputs: Annotated[
        str | None, typer.Option("--inputs", help="Array or column of the inputs, if not a usual name.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", "--label", help="Array or column of the labels, in the data or the log.")
    ] = None,
    outcomes: Annotated[
        Path | None, typer.Option("--outcomes", help="One log that holds both sides, instead of A and B.")
    ] = None,
    column_a: Annotated[str | None, typer.Option("--a", help="Column of A in its log.")] = None,
    column_b: Annotated[str | None, typer.Option("--b", help="Column of B in its log.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="accuracy, agreement, cosine, r2, hits, error or module:function; default by the data."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", help="Loss of B that does not matter, in the metric's unit; default 0.01."),
    ] = None,
    smaller: Annotated[
        bool, typer.Option("--smaller-is-better", help="So it is with a module:function metric.")
    ] = False,
    runtime: Runtime = "onnxruntime",
    limit: Annotated[int | None, typer.Option("--limit", help="Compare on so many samples.", min=1)] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of that choice, and of the bootstrap.")] = 0,
    show: Annotated[int, typer.Option("--show", help="Show so many samples that differ.", min=0)] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for comparison.json and differences.csv, with all of them.")
    ] = None,
) -> None:
    """Test whether model B is better than A, or no worse within a margin, on the same samples.

    A and B are ONNX files that are run on --data (without it, on what the manifest beside A or B names), or outcomes
    that were logged, one row a sample: predictions with labels, 1 for a hit and 0 for a miss, or errors (--metric
    error). Exit status 0 if B is better or no worse, 1 if it is worse or nothing can be decided yet.

    **Example**: lowbit compare float.onnx w4a8.onnx --data test.npz --margin 0.005

    **Example**: lowbit compare --outcomes log.csv --a old --b new --label truth
    """
    from lowbit.pilot import abtest

    checked = runtime_named(runtime)
    if outcomes is not None:
        if any(one is not None for one in (a, b, data, inputs, limit)):
            raise DataError("--outcomes holds both sides; leave A, B, --data and what is of them out")
        sides = _one_log(outcomes, column_a, column_b, labels, metric)
    elif a is None or b is None:
        raise DataError("expected two models or logs, A and B, or one log with --outcomes; see lowbit compare --help")
    else:
        sides = _two_files((a, b), (column_a, column_b), data, inputs, labels, metric, checked, limit, seed)
    found = abtest.compare(
        sides.a,
        sides.b,
        sides.labels,
        metric=metric,
        margin=margin,
        larger_is_better=False if smaller else None,
        seed=seed,
        folder=Path.cwd(),
    )
    _show(found, sides, show)
    if out is not None:
        _write(found, sides, out)
    if not found.passed:
        raise typer.Exit(1)


def _one_log(path: Path, a: str | None, b: str | None, labels: str | None, metric: str | None) -> _Sides:
    from lowbit import files
    from lowbit.pilot.outcomes import open_log

    log = open_log(path)
    if a is None or b is None:
        raise DataError(f"'{path}' has columns {log.listed()}; name those of A and B with --a and --b")
    if a == b:
        raise DataError(f"--a and --b are the same column '{a}'; name two")
    sides = [log.column(a), log.column(b)]
    truth = _logged_labels(log, labels, metric)
    record = {"outcomes": {"file": str(path), "sha256": files.sha256(path), "a": a, "b": b, "labels": labels}}
    return _Sides(sides[0], sides[1], truth, (a, b), (), record)


def _logged_labels(log: Log, name: str | None, metric: str | None) -> npt.NDArray[np.generic] | None:
    """The labels of a log; refused where there seem to be some that nobody named."""
    from lowbit.pilot.outcomes import LABELS

    if name is not None:
        return log.column(name)
    unnamed = next((column for column in LABELS if column in log.names), None)
    if unnamed is not None and metric not in ("agreement", "cosine", "hits", "error"):
        raise DataError(
            f"'{log.path}' has a column '{unnamed}': name the labels with --label, or say by --metric hits, error, "
            "agreement or cosine that none are needed"
        )
    return None


def _two_files(
    paths: tuple[Path, Path],
    columns: tuple[str | None, str | None],
    data: str | None,
    inputs: str | None,
    labels: str | None,
    metric: str | None,
    runtime: Any,
    limit: int | None,
    seed: int,
) -> _Sides:
    from lowbit import files
    from lowbit.export.onnx import existing
    from lowbit.pilot.outcomes import is_log, open_log, run_file, was_calibrated_on

    hashes = [files.sha256(existing(path)) for path in paths]
    if hashes[0] == hashes[1] and (not is_log(paths[0]) or columns[0] == columns[1]):
        raise DataError(f"A '{paths[0]}' and B '{paths[1]}' are the same file by hash; give two that differ")
    logs = [open_log(path) if is_log(path) else None for path in paths]
    for which, log, column in zip("ab", logs, columns, strict=True):
        if log is None and column is not None:
            raise DataError(f"--{which} names a column, and {which.upper()} is no log; leave it out")
    samples, record, notes = None, dict[str, Any](), list[str]()
    if data is not None or not all(logs):
        samples, record["data"] = _samples(paths, data, inputs, labels, limit, seed)
        truth = None if samples.labels is None else samples.labels.numpy()
        for which, path in zip("AB", paths, strict=True):
            if (entry := _entry(path)) is not None and was_calibrated_on(entry, samples):
                notes.append(f"{which} was calibrated on these very samples; others would be fairer")
    elif inputs is not None or limit is not None:
        raise DataError("--inputs and --limit are of data, and two logs need none; leave them out")
    else:
        truth = _labels_of_two([log for log in logs if log], labels, metric)
    sides = []
    for path, log, column in zip(paths, logs, columns, strict=True):
        if log is not None:
            sides.append(log.column(column or log.outcomes(labels)))
        else:
            assert samples is not None
            sides.append(run_file(path, samples, runtime=runtime))
    record["files"] = {
        which: {"file": str(path), "sha256": digest, **({"column": column} if column else {})}
        for which, path, digest, column in zip("ab", paths, hashes, columns, strict=True)
    }
    return _Sides(sides[0], sides[1], truth, (str(paths[0]), str(paths[1])), tuple(notes), record)


def _labels_of_two(logs: list[Log], name: str | None, metric: str | None) -> npt.NDArray[np.generic] | None:
    """The labels in one of two logs, or in both, where they have to be the same."""
    import numpy as np

    if name is None:
        return next((one for log in logs if (one := _logged_labels(log, None, metric)) is not None), None)
    found = [log.column(name) for log in logs if name in log.names]
    if not found:
        raise DataError(f"neither '{logs[0].path}' nor '{logs[1].path}' has a column '{name}'; name one that is there")
    if len(found) == 2 and not np.array_equal(found[0], found[1]):
        raise DataError(
            f"the labels in '{logs[0].path}' and '{logs[1].path}' differ; log the same samples in the same order"
        )
    return found[0]


def _samples(
    paths: tuple[Path, Path], data: str | None, inputs: str | None, labels: str | None, limit: int | None, seed: int
) -> tuple[Data, dict[str, Any]]:
    """The data that is named, else that of a manifest beside A or B, and what to write about it."""
    from lowbit.pilot.outcomes import noted_data

    if data is not None:
        (spec, base), drawn = data_spec(data), seed
    else:
        noted = [found for path in paths if (entry := _entry(path)) and (found := noted_data(entry))]
        if not noted:
            raise DataError(f"no manifest beside '{paths[0]}' or '{paths[1]}' names data; give --data")
        if any(other != noted[0] for other in noted):
            raise DataError(f"the manifests of '{paths[0]}' and '{paths[1]}' name other data or draws; give --data")
        section, folder, drawn = noted[0]
        spec, base = noted_spec(section), Path(folder)
    named = {key: name for key, name in (("inputs", inputs), ("labels", labels)) if name is not None}
    samples = opened(spec.model_copy(update=named), base, drawn)
    samples = samples if limit is None or len(samples) <= limit else samples.take(limit, seed)
    return samples, {"source": samples.name, "hash": samples.hash, "samples": len(samples)}


def _entry(path: Path) -> dict[str, object] | None:
    """What the manifest beside a file says of it, None if there is none or it is about others."""
    from lowbit.export.onnx import MANIFEST, read_manifest

    return read_manifest(path.parent).get(path.name) if (path.parent / MANIFEST).is_file() else None


def _show(found: Comparison, sides: _Sides, show: int) -> None:
    typer.echo(f"{found.metric} of {found.samples:,} samples")
    for which, name, score in zip("AB", sides.names, (found.a, found.b), strict=True):
        interval = f"{found.figure(score.low)} to {found.figure(score.high)}"
        typer.echo(f"  {which}  {found.figure(score.value)} (95 % interval {interval})  {_printable(name)}")
    if found.p_value is not None:
        typer.echo(
            f"  B loses {found.lost} samples and wins {found.won}: McNemar's p {found.p_value:.3g} exact, "
            f"{found.mid_p:.3g} mid-p"
        )
    typer.echo(str(found))
    if need := found.need():
        typer.echo(need)
    _show_classes(found)
    _show_differences(found, show)
    for note in (*sides.notes, *found.notes):
        typer.echo(f"note: {note}")


def _show_classes(found: Comparison) -> None:
    losing = [row for row in found.classes if row.lost > row.won]
    if not losing:
        return
    _table(
        f"classes that lose: {len(losing)} of {len(found.classes)}",
        ("class", "samples", "A", "B", "lost", "won", "p", "corrected", "B says"),
        [
            (
                *(row.label, row.samples, found.figure(row.a), found.figure(row.b), row.lost, row.won),
                *(f"{row.p_value:.3g}", f"{row.p_corrected:.3g}", row.instead),
            )
            for row in losing[:10]
        ],
    )


def _show_differences(found: Comparison, show: int) -> None:
    shown = found.differences[:show]
    if not shown:
        return
    columns = [f.name for f in fields(shown[0]) if any(getattr(row, f.name) is not None for row in shown)]
    title = f"samples that differ: {len(found.differences):,}" + (
        f", the first {len(shown)}" if len(shown) < len(found.differences) else ""
    )
    _table(
        title, [c.replace("_confidence", " sure") for c in columns], [[getattr(r, c) for c in columns] for r in shown]
    )


def _table(title: str, columns: Any, rows: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    typer.echo(title)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fits in 80 columns
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(value)) for value in row))
    Console().print(table)


def _printable(value: object) -> str:
    """A value for a terminal, without the control characters that a log may hold."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def _write(found: Comparison, sides: _Sides, out: Path) -> None:
    from lowbit import files
    from lowbit.pilot.differing import Difference

    out.mkdir(parents=True, exist_ok=True)
    told = {"sentence": str(found), "need": found.need(), "passed": found.passed}
    record = sides.record | told | asdict(found) | {"notes": [*sides.notes, *found.notes]}
    files.write_json(out / "comparison.json", record)
    names = [field.name for field in fields(Difference)]
    with (
        files.replacing(out / "differences.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in found.differences)
    typer.echo(f"written: {out / 'comparison.json'}, {out / 'differences.csv'}")
