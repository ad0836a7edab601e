"""From a recipe to a file that is checked: `lowbit apply` and `lowbit verify`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lowbit.cli.options import DATA, DataOption, Runtime, Weights, data_spec, noted_spec, runtime_named
from lowbit.errors import DataError

if TYPE_CHECKING:
    from lowbit.export.verify import Verification
    from lowbit.post_training.levels import Level


def apply(
    recipe: Annotated[Path, typer.Argument(help="A recipe: which layer gets which format.")],
    model: Annotated[str, typer.Option("--model", help="module:function, or path/file.py:function, that builds it.")],
    data: Annotated[str, typer.Option("--data", help=f"Calibration inputs, no labels needed: {DATA}")],
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
    from lowbit.batches import are_quantities, on_accelerator, without_labels
    from lowbit.export.onnx import MANIFEST, export_onnx
    from lowbit.export.verify import verify as check
    from lowbit.pilot import coded, curved
    from lowbit.pilot.factorized import student_of
    from lowbit.pilot.spec import load_recipe
    from lowbit.post_training.levels import post_train
    from lowbit.quantization import coverage

    checked, (read, chains, output, features) = runtime_named(runtime), load_recipe(recipe)
    out.mkdir(parents=True, exist_ok=True)
    network = models.load(model, weights, Path.cwd())
    spec, base = data_spec(data)
    samples = spec.open(base, seed)
    if spec.limit is None and len(samples) > limit:
        samples = samples.take(limit, seed)
    batches = samples.batches(max(1, min(100, len(samples) // 8)))
    if features is not None:
        network = coded.again(network, features, recipe.parent, next(iter(samples.batches(2))))
        typer.echo(f"features: codes and head from {features.weights}")
    if output is not None:
        curve = curved.again(network, output, recipe.parent)
        student, did = post_train(curve.model, read, batches, level=cast("Level", level), seed=seed)
        student = curved.end(curve, batches, student)
        from_file = f"weights from {output.weights}" if output.weights else "which needs no training"
        typer.echo(f"output: {output.path}, {from_file}")
        typer.echo(f"level {level}: {curved.in_points(did)}")
    elif chains is None:
        with on_accelerator(network):
            student, did = post_train(network, read, batches, level=cast("Level", level), seed=seed)
        student = student.cpu()
        typer.echo(f"level {level}: {did}")
    else:
        student, found = student_of(network, read, chains, batches, spec.preprocess.black(), seed=seed)
        typer.echo(str(found))
    student = coded.ended(student) if features is not None else student
    example = without_labels(next(iter(samples.batches(2))))
    provenance = {
        "seed": seed,
        "calibration_data": samples.hash,
        "data": spec.model_dump(mode="json", exclude_defaults=True) | {"limit": len(samples)},
        "data_folder": os.fspath(base),
    }
    with tempfile.TemporaryDirectory(dir=out) as unverified:
        exported = export_onnx(student, Path(unverified, "model.onnx"), example, opset=opset, provenance=provenance)
        classes = False if are_quantities(samples.labels) else None
        verified = check(exported, samples.batches(100), runtime=checked, float_model=network, classes=classes)
        _show_verification(exported.path, verified)
        for name in (exported.path.name, MANIFEST):  # only a file that passed gets its final name
            os.replace(exported.path.with_name(name), out / name)
    for row in coverage(student).skipped:
        typer.echo(f"  left float: {row.name} ({row.kind}): {row.reason}")
    if weights is None:
        typer.echo("  no --weights were given: these are those that the model's function made")
    written = out / "model.onnx"
    typer.echo(f"{written}  {written.stat().st_size / 1e6:.3f} MB")


def verify(
    file: Annotated[Path, typer.Argument(help="An ONNX file with its manifest.json beside it.")],
    data: DataOption = None,
    runtime: Runtime = "onnxruntime",
    limit: Annotated[int, typer.Option("--limit", help="Check on so many samples.", min=1)] = 500,
    renew: Annotated[
        bool, typer.Option("--renew", help="Let lowbit watch compare with these samples from now on.")
    ] = False,
) -> None:
    """Check an exported file again: is it the one in the manifest, does it run as it should, and on which kernels?

    Without --data, the data that the manifest names is used.
    """
    from lowbit.batches import are_quantities
    from lowbit.export.onnx import existing, manifest_entry
    from lowbit.export.verify import verify as check
    from lowbit.pilot.outcomes import noted_data

    checked, noted = runtime_named(runtime), noted_data(manifest_entry(existing(file)))
    section, folder, seed = noted or (None, "", 0)
    if data is not None:
        spec, base = data_spec(data)
    elif noted is not None:
        spec, base = noted_spec(section), Path(folder)
    else:
        raise DataError(f"the manifest of {str(file)!r} does not name its data; give --data")
    samples = spec.open(base, seed)
    samples = samples.take(limit, 0) if len(samples) > limit else samples
    batches = samples.batches(100)
    classes = False if are_quantities(samples.labels) else None
    result = check(file, batches, runtime=checked, reference=batches if renew else None, classes=classes)
    _show_verification(file, result)
    typer.echo("why is it not faster?")
    for line in result.why_not_faster():
        typer.echo(f"  {line}")


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
        f"verified: {result.closeness}; at least "
        f"{result.same_codes:.4%} of any tensor's codes are equal, the others differ by at most "
        f"{result.largest_code_difference}; kernels: "
        + ", ".join(f"{count} {kernel}" for kernel, count in sorted(result.kernels.items()))
    )
