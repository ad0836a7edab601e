"""Features as bits: `lowbit features sweep` and `lowbit features drift`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from lowbit.cli.options import DATA, Language, Weights, data_spec, language_named, opened, resumable
from lowbit.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from lowbit.data import Data
    from lowbit.methods.discrimination.layers import Pool
    from lowbit.pilot.features import FeatureStudy

features = typer.Typer(
    name="features",
    help="Find out whether features should become bits, and watch those that did.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)

FeatureData = Annotated[str, typer.Argument(help=DATA)]
Inputs = Annotated[str | None, typer.Option("--inputs", help="Array or column of the inputs, if not a usual name.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Take a layer's outputs: module:function, or path/file.py:function, of its network."),
]
Layer = Annotated[str | None, typer.Option("--layer", help="The layer's name in the network.")]
Pooling = Annotated[str, typer.Option("--pool", help="mean over the positions of a feature map, or none.")]


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
    language: Language = "en",
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

    language_named(language)
    network, samples = _features(data, inputs, labels, model, weights, layer, pool, seed)
    name = _named(data)
    folder = out or Path("runs", f"features-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    with resumable():
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
    files.write_text(folder / "report.html", render(found, language=language))
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

    **Example**: lowbit features drift runs/features-digits_train/ternary.json lowbit.data:digits_test
    """
    import numpy as np

    from lowbit.methods.discrimination.tracing import FeatureTrace
    from lowbit.pilot.features import feature_chunks

    known = FeatureTrace.load(trace)
    network, samples = _features(data, inputs, None, model, weights, layer, pool, 0)
    chunks = feature_chunks(samples, network, layer or "", cast("Pool", pool))
    found = known.drift(np.concatenate([x for x, _ in chunks]))
    typer.echo(str(found))
    indices = dict(zip(known.names, found.index, strict=True))
    for name in sorted(found.moved, key=lambda name: -indices[name]):
        typer.echo(f"  {name}: index {indices[name]:.3f}")
    if found.drifted:
        raise typer.Exit(1)


def _named(data: str) -> str:
    """A name for what is made of the data: the file's, or the first folder's above that is not all pattern."""
    path = Path(data.rpartition(":")[2])
    names = (re.sub(r"[^\w.]+", "-", one).strip("-._") for one in (path.stem, *reversed(path.parts[:-1])))
    return next(filter(None, names), "data")


def _features(
    data: str,
    inputs: str | None,
    labels: str | None,
    model: str | None,
    weights: Path | None,
    layer: str | None,
    pool: str,
    seed: int,
) -> tuple[nn.Module | None, Data]:
    """The data, and the network whose layer makes features of them, if one is given."""
    from lowbit import models
    from lowbit.methods.discrimination.layers import Pool

    if pool not in get_args(Pool):
        raise RecipeError(f"--pool: got {pool!r}, expected {' or '.join(get_args(Pool))}")
    if (model is None) != (layer is None):
        given, missing = ("--layer", "--model") if model is None else ("--model", "--layer")
        raise RecipeError(f"{given} is given without {missing}; features of a layer need both")
    if weights is not None and model is None:
        raise RecipeError("--weights is given without --model and --layer; features of a layer need them")
    spec, base = data_spec(data)
    named = {key: name for key, name in (("inputs", inputs), ("labels", labels)) if name is not None}
    network = None if model is None else models.load(model, weights, Path.cwd())
    return network, opened(spec.model_copy(update=named), base, seed, known="features")


def _show_study(study: FeatureStudy) -> None:
    from rich.console import Console
    from rich.table import Table

    from lowbit.report.features import change, interval, share

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
            *(interval(gain.low, gain.high), gain.outcome),
        )
    Console().print(table)
    typer.echo("")
    for sentence in [row.sentence for row in study.judged if row.recommended] or [study.summary]:
        typer.echo(sentence)
