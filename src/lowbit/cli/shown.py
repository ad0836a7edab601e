"""A pilot's run in the terminal: its table, what its variants miss, and the file to take.

Figures of the metric have the digits that the page gives them, so that two that differ look different.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lowbit.pilot.record import CheckRow, Run, Trial
    from lowbit.report.figures import Metric

_EXPENDABLE = (
    "ms",
    "agrees",
    "distance",
    "BOPs",
    "MB",
)  # columns that go first where a table is wider than the terminal


def show_run(run: Run, folder: Path) -> None:
    """Print the table, errors and requirements that are not met."""
    from rich.console import Console

    from lowbit.report.figures import Metric

    metric = Metric.of(run)
    typer.echo(f"\n{run.name}: {run.kpi}")
    console, columns = Console(), _columns(run, metric)
    table, left_out = _table(columns), list[str]()
    endless = console.options.update(width=10_000)
    while (width := console.measure(table, options=endless).maximum) > console.width and (name := _expendable(columns)):
        del columns[name]
        left_out.insert(0, name)
        table = _table(columns)
    Console(width=max(width, console.width)).print(table)  # rather a long line than a broken name
    if left_out:
        typer.echo(f"too narrow for {', '.join(left_out)}, which the report has")
    for trial in run.trials:
        _show_problems(trial, metric)
    _show_report(run, folder)


def _columns(run: Run, metric: Metric) -> dict[str, list[str]]:
    """The cells of each column; a trial without a score has a name and a verdict."""
    from lowbit.report import figures

    scored = [trial if trial.score else None for trial in run.trials]  # why not, stands in the line that announced it
    found: dict[str, list[str]] = {"variant": [t.name for t in run.trials], "verdict": [t.verdict for t in run.trials]}
    found[run.kpi.metric] = [_plain(metric.value(t.score.value)) if t and t.score else "" for t in scored]
    found["95 % interval"] = [_plain(metric.interval(t.score)) if t and t.score else "" for t in scored]
    if any(trial.agreement for trial in run.trials):
        found["agrees"] = [f"{t.agreement.value:.1%}" if t and t.agreement else "" for t in scored]
    if any(trial.apart is not None for trial in run.trials):  # outputs are numbers
        found["distance"] = [f"{t.apart:.1%}" if t and t.apart is not None else "" for t in scored]
    found["MB"] = [f"{t.file_bytes / 1e6:.3f}" if t else "" for t in scored]
    found["BOPs"] = [figures.count(t.bops) if t else "" for t in scored]
    for i, row in enumerate(run.trials[0].latencies):
        found[f"ms @{row.batch}"] = [
            f"{t.latencies[i].median_ms:.3f}" if t and i < len(t.latencies) else "" for t in scored
        ]
    return found


def _table(columns: dict[str, list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name in ("variant", "verdict") else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def _expendable(columns: dict[str, list[str]]) -> str | None:
    """The next column to leave out: latencies from the largest batch on, then others."""
    return next((name for start in _EXPENDABLE for name in reversed(columns) if name.split(" @")[0] == start), None)


def _show_problems(trial: Trial, metric: Metric) -> None:
    if trial.error:
        typer.echo(f"{trial.name} failed: {trial.error}")
    for one in trial.repeats:
        if one.error:
            typer.echo(f"{trial.name}, seed {one.seed}, failed: {one.error}")
    for check in trial.checks if len(trial.checks) > 1 else ():
        if check.verdict != "meets":
            typer.echo(f"{trial.name}: {check.what} {check.verdict}: {told(check, metric)}")


def told(check: CheckRow, metric: Metric) -> str:
    """A figure with its interval, if it has one, and its limit: ``30.04 kB, at most 30 kB is asked``."""
    from lowbit.pilot.record import Score
    from lowbit.report import figures

    metric = metric.apart(check.limit, check.value, check.low, check.high)
    interval = Score(check.value, check.low, check.high, 0)
    match check.what:
        case "seeds":
            return f"{check.value:g} of {check.limit:g} trained, all of them are asked"
        case "minimum" | "maximum":
            value, limit, span = metric.value(check.value), metric.limit(check.limit), metric.interval(interval)
        case "tolerance":
            value, span = metric.change(check.value), metric.change_interval(interval)
            limit = metric.loss(check.limit)
        case _:
            amount = partial(_amount, check.what)
            value, limit = figures.apart(check.value, check.limit, amount)
            span = f"{amount(check.low, 3)} to {amount(check.high, 3)}"
    between = f" ({span})" if check.low < check.high else ""
    of_metric = check.what in ("minimum", "tolerance") and not metric.smaller_is_better
    wanted = "at least" if of_metric else "at most"
    return _plain(f"{value}{between}, {wanted} {limit} is asked")


def _amount(what: str, value: float, digits: int) -> str:
    """Bytes, BOPs or milliseconds with a unit of three digits before the point at most, and no zeros at the end."""
    from lowbit.report.figures import significant

    units = {"size": ("bytes", "kB", "MB", "GB"), "bops": ("", "K", "M", "G", "T")}.get(what, ("ms",))
    power = max((i for i in range(len(units)) if value >= 1000**i), default=0)
    number = significant(value / 1000**power, digits)
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {units[power]}".strip()


def _show_report(run: Run, folder: Path) -> None:
    from lowbit.report import decision

    typer.echo(f"\nreport: {(folder / 'report.html').resolve()}")
    if (best := decision.recommended(run)) is not None and best.file is not None:
        typer.echo(f"take: {folder / best.file}")


def _plain(text: str) -> str:
    """The text in ASCII, which every terminal shows."""
    return text.replace("−", "-")
