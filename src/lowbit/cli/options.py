"""What several commands share: options, data by name, and being stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from lowbit.data import Data
    from lowbit.pilot.spec import DataSpec

_EXAMPLES = ("lowbit.data:digits_train", "lowbit.data:digits_test")
DATA = "npz, Parquet glob, image folder, module:function, or a YAML file with a data section."
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; default runs/<name>.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Variants at once, each in a process of its own.")]
Runtime = Annotated[str, typer.Option("--runtime", help="onnxruntime or openvino.")]
DataOption = Annotated[str | None, typer.Option("--data", help=DATA)]
Language = Annotated[str, typer.Option("--language", help="Of the page: en or ja.")]
Weights = Annotated[Path | None, typer.Option("--weights", help="safetensors, or a state dict in .pt or .npz.")]


def data_spec(source: str) -> tuple[DataSpec, Path]:
    """A data section, from a YAML file or of the source alone, and the folder its paths are relative to."""
    from lowbit import files

    if not source.endswith((".yaml", ".yml")):
        return validated_data({"source": source}, "--data"), Path.cwd()
    path = Path(source)
    return validated_data(files.read_yaml(path), source), path.resolve().parent


def validated_data(data: object, where: str) -> DataSpec:
    """A data section, or an error that names its key in `where`."""
    from lowbit.pilot.spec import DataSpec
    from lowbit.recipe import validated

    return validated(DataSpec, data, where)


def opened(spec: DataSpec, base: Path, seed: int, known: str = "") -> Data:
    """The data; `known` is one more usual name of its inputs.

    Raises:
        DataError: it cannot be read; where no array has a usual name, the message has the option that names one.
    """
    from lowbit.arrays import UnnamedError

    try:
        return spec.open(base, seed)
    except UnnamedError as error:
        if known in error.names:
            return spec.model_copy(update={"inputs": known}).open(base, seed)
        raise DataError(f"{error.found}; name one, such as --inputs {error.likely}") from None


def noted_spec(data: object) -> DataSpec:
    """A data section that a manifest names.

    A manifest is a file from outside, and a function that it names would be run: only lowbit's examples are.

    Raises:
        DataError: it names another function.
        RecipeError: it is no data section.
    """
    spec = validated_data(data, "manifest.json")
    if ":" in spec.source and spec.source not in _EXAMPLES:
        raise DataError(
            f"the manifest names the function {spec.source!r} as its data, and functions of a manifest are not run; "
            f"give --data {spec.source} if you trust it"
        )
    return spec


def runtime_named(name: str) -> Any:
    """The name, if it is a runtime's."""
    if name not in ("onnxruntime", "openvino"):
        raise RecipeError(f"--runtime {name!r} is unknown; expected onnxruntime or openvino")
    return name


def language_named(name: str) -> str:
    """The name, if pages can be written in that language."""
    from lowbit.report.language import LANGUAGES

    if name not in LANGUAGES:
        raise RecipeError(f"--language {name!r} is unknown; expected {' or '.join(LANGUAGES)}")
    return name


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Work that Ctrl-C stops and the same command takes up again."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("lowbit: stopped; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None
