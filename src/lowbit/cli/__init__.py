"""The command line. Errors are one line, and the exit status is 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lowbit import __version__
from lowbit.cli.comparison import compare
from lowbit.cli.deployment import apply, verify
from lowbit.cli.monitoring import watch
from lowbit.cli.runs import demo, pilot
from lowbit.cli.studies import features
from lowbit.errors import LowbitError

app = typer.Typer(
    name="lowbit",
    help="Make a trained PyTorch network low-bit, and prove what each change costs and buys.\n\n"
    "Start with **lowbit demo**: it trains a small network, makes five low-bit variants of it, measures them "
    "in ONNX Runtime and writes a report. Then **lowbit pilot --init --model net.py:build --data data.npz** looks at "
    "your own model and data and writes a pilot file for them, and **lowbit pilot pilot.yaml** runs it.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, pilot, apply, verify, watch, compare):
    app.command()(command)
app.add_typer(features)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"lowbit {__version__}")
        raise typer.Exit


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
