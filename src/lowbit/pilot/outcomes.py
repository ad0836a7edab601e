"""Where the sides of an A/B test come from: ONNX files that are run on data, or logs of predictions or outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lowbit import files
from lowbit.errors import DataError, LowbitError

if TYPE_CHECKING:
    from lowbit.data import Data
    from lowbit.export.runtime import RuntimeName, Session

Array = npt.NDArray[np.generic]
LOGS = (".npz", ".csv", ".parquet")
LABELS = ("labels", "label", "y", "target", "targets")
_USUAL = ("outputs", "predictions", "prediction", "outcomes", "outcome", "hits", "hit", "errors", "error")
_BATCH = 100


def is_log(path: Path) -> bool:
    """Whether a file is a log, by its name; any other is taken for ONNX."""
    return path.suffix.lower() in LOGS


@dataclass(frozen=True)
class Log:
    """A log with one row a sample: `names` are those of its columns, which are read when they are asked for."""

    path: Path
    names: tuple[str, ...]
    _read: Callable[[str], Array]

    def column(self, name: str) -> Array:
        """A column `[N]` of numbers, truth values or text, or an array `[N, ...]` of an npz file.

        Raises:
            DataError: there is no such column, it has an empty row, or holds something else.
        """
        if name not in self.names:
            raise DataError(f"'{self.path}' has no column '{name}'; choose from {self.listed()}")
        return self._read(name)

    def listed(self) -> str:
        """The names of up to 20 columns, on one line."""
        shown = ", ".join(_on_one_line(name) for name in self.names[:20])
        return shown + (f" and {len(self.names) - 20} others" if len(self.names) > 20 else "")

    def outcomes(self, without: str | None) -> str:
        """The name of the column that holds predictions or outcomes, by a usual name or because there is one alone.

        Raises:
            DataError: neither is so.
        """
        left = [name for name in self.names if name != without and name not in LABELS]
        usual = [name for name in _USUAL if name in left]
        if len(usual) != 1 and len(left) != 1:
            raise DataError(
                f"'{self.path}' has columns {self.listed()}: which are the predictions or outcomes? name them "
                "with --a and --b"
            )
        return (usual if len(usual) == 1 else left)[0]


def open_log(path: Path) -> Log:
    """Open a CSV file with a header, a Parquet file, or an npz file.

    Raises:
        DataError: it is missing, damaged, of another kind, has no column, or names one twice.
    """
    if not is_log(path):
        raise DataError(f"log '{path}' ends in '{path.suffix}', expected {', '.join(LOGS)}; write one of these")
    if path.suffix.lower() == ".npz":
        arrays = files.load_arrays(path)
        names, read = tuple(arrays), arrays.__getitem__
    else:
        with files.reading(path):
            table = _table(path)
            names, read = tuple(table.column_names), _reader(path, table)  # names may not be UTF-8
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        found = f"column '{_on_one_line(twice[0])}' twice" if twice else "no column"
        raise DataError(f"'{path}' has {found}, expected columns with names of their own; write it again")
    return Log(path, names, read)


def _on_one_line(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _table(path: Path) -> Any:
    if path.suffix.lower() == ".csv":
        from pyarrow import csv

        return csv.read_csv(path, read_options=csv.ReadOptions(use_threads=False))
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read(use_threads=False)


def _reader(path: Path, table: Any) -> Callable[[str], Array]:
    def read(name: str) -> Array:
        import pyarrow as pa

        where, column = f"'{path}' column '{name}'", table.column(name)
        with files.reading(path, f"column '{name}'"):
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            kind = column.type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not (text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                raise DataError(f"{where} is {kind}, expected numbers, classes or text; choose another")
            if column.null_count:
                row = int(np.flatnonzero(column.is_null().to_numpy())[0])
                raise DataError(f"{where} is empty or NaN in row {row}; remove the row in all columns, or fill it")
            return np.array(column.to_pylist(), dtype=np.str_) if text else np.asarray(column.to_numpy())

    return read


def run_file(path: Path, data: Data, *, runtime: RuntimeName = "onnxruntime", progress: bool = True) -> Array:
    """First output of an ONNX file for all samples, `[N, ...]`.

    A file whose batch is fixed is run on batches of that size, the last one filled up with its first sample.

    Raises:
        ExportError: it is no ONNX file, or the runtime cannot load it.
        DataError: it does not take the data, or does not return a row a sample.
    """
    from lowbit.batches import resized, shapes_of, size_of
    from lowbit.export.codes import feed_of
    from lowbit.export.runtime import open_session
    from lowbit.progress import track

    session = open_session(path, runtime=runtime)
    size, numbers = _inputs(path, session, data)
    rows = []
    for batch in track(data.batches(size or _BATCH), f"run {path.name}", show=progress):
        count = size_of(batch)
        filled = resized(batch, size) if size else batch
        given = {name: array.astype(numbers[name]) for name, array in feed_of(filled, session).items()}
        try:
            output = session.run(given)[0]
        except LowbitError:
            raise
        except Exception as error:  # runtimes raise their own types, and bare RuntimeError
            raise DataError(
                f"'{path}' does not take samples of {shapes_of(batch)} ({files.one_line(error)}); correct the data or "
                "its preprocessing"
            ) from error
        if output.ndim == 0 or len(output) != (size or count):
            raise DataError(
                f"'{path}' returns {list(output.shape)} for {size or count} samples, expected a row a sample in its "
                "first output; export it so"
            )
        rows.append(output[:count])
    return np.concatenate(rows)


def _inputs(path: Path, session: Session, data: Data) -> tuple[int | None, dict[str, Any]]:
    """The size of batches if the file fixes it, and the types of its inputs; checked before a runtime complains."""
    import onnx

    from lowbit.batches import inputs_of

    args, kwargs = inputs_of(next(iter(data.batches(1))))
    samples = {**dict(zip(session.inputs, args, strict=False)), **kwargs}
    if missing := [name for name in session.inputs if name not in samples]:
        raise DataError(
            f"'{path}' takes {len(session.inputs)} inputs ({', '.join(session.inputs)}), the data has no "
            f"'{missing[0]}'; name its inputs alike, or log its outputs and compare the logs"
        )
    graph = onnx.load(path, load_external_data=False).graph
    size, numbers = None, dict[str, Any]()
    for given in (one for one in graph.input if one.name in session.inputs):
        tensor, sample = given.type.tensor_type, samples[given.name]
        numbers[given.name] = number = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if (number.kind == "f") != sample.is_floating_point():
            raise DataError(
                f"'{path}' takes {number} for '{given.name}', the data has {str(sample.dtype).removeprefix('torch.')}; "
                "log its outputs and compare the logs"
            )
        if not tensor.HasField("shape"):
            continue
        expected = [one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim]
        got = list(sample.shape[1:])
        if len(expected) != len(got) + 1 or any(e not in (None, g) for e, g in zip(expected[1:], got, strict=True)):
            shown = ", ".join("any" if one is None else str(one) for one in expected[1:])
            raise DataError(
                f"'{path}' takes samples of shape [{shown}], the data has {got}; correct the data or its preprocessing"
            )
        size = expected[0] if size is None else size
    return size, numbers


def noted_data(entry: Mapping[str, object]) -> tuple[object, str, int] | None:
    """Section, folder and seed of the data that an entry of a manifest names, None if it names none.

    A variant of a pilot that has a seed of its own was measured on what the pilot's seed drew, which is ``data_seed``.
    """
    provenance = entry.get("provenance")
    if not isinstance(provenance, dict) or "data" not in provenance:
        return None
    seed = provenance.get("data_seed", provenance.get("seed"))
    return provenance["data"], str(provenance.get("data_folder", ".")), seed if isinstance(seed, int) else 0


def was_calibrated_on(entry: Mapping[str, object], data: Data) -> bool:
    """Whether these very samples set the scales of the file that an entry of a manifest is about."""
    provenance = entry.get("provenance")
    return isinstance(provenance, dict) and provenance.get("calibration_data") == data.hash
