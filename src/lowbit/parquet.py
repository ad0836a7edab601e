"""Parquet files: images or lists of numbers in a column, or a table with one column a feature; read row by row.

Which of these a file holds is told by the types of its columns. Only row groups with wanted rows are read.
"""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit import files
from lowbit.arrays import LABELS, NUMBERED, ROWS_AT_ONCE
from lowbit.errors import DataError
from lowbit.images import decode

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Parquet:
    """One column of Parquet files: encoded images, or lists of numbers of one length."""

    paths: tuple[Path, ...]
    counts: tuple[int, ...]  # rows of each file
    column: str
    encoded: bool  # images as {bytes, path}, else lists of numbers
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return sum(self.counts)

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Where each sample is, and its value."""
        for path, rows in _by_file(self.paths, self.counts, positions):
            for row, value in _read_rows(path, self.column, self.encoded, rows):
                where = f"'{path}' row {row}"
                if value is None:
                    raise DataError(f"{where}: column '{self.column}' is empty; remove the row or fill it")
                yield where, value if isinstance(value, np.ndarray) else decode(value, where, self.size)

    def digest(self, positions: np.ndarray) -> str:
        """What identifies the columns and files."""
        return " ".join([self.column, *map(files.sha256, self.paths)])


@dataclass(frozen=True)
class Table:
    """Parquet files with one numeric column a feature."""

    paths: tuple[Path, ...]
    counts: tuple[int, ...]  # rows of each file
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Where each sample is, and its value."""
        for path, rows in _by_file(self.paths, self.counts, positions):
            for numbers, values in _read_table(path, self.columns, rows):
                for row, value in zip(numbers.tolist(), values, strict=True):
                    yield f"'{path}' row {row}", value

    def digest(self, positions: np.ndarray) -> str:
        """What identifies the columns and files."""
        return " ".join([json.dumps(self.columns), *map(files.sha256, self.paths)])


def matching(path: Path, name: str, folder: Path | None) -> tuple[Path, ...]:
    """Return the file at `path`, or the files that a pattern matches, sorted."""
    if path.exists() or not glob.has_magic(name):
        return (path,)
    found = sorted(glob.glob(str(Path(name).expanduser()), root_dir=folder, recursive=True))
    if not found:
        raise DataError(f"data '{name}': no file in '{path.parent}' matches '{path.name}'; check the pattern")
    return tuple((folder or Path()) / file for file in found)


def open_parquet(
    paths: tuple[Path, ...], name: str, size: tuple[int, int] | None, inputs: str | None, labels: str | None
) -> tuple[Parquet | Table, np.ndarray | None]:
    """Samples of Parquet files, and their labels where there are some; images are resized to `size`.

    Raises:
        DataError: a column is missing or of another kind, or the files are not alike.
    """
    import pyarrow.parquet as pq

    tables: list[dict[str, str]] = []  # what each column of each file can be
    counts = []
    for path in paths:
        with files.reading(path), pq.ParquetFile(path) as file:
            tables.append(_kinds(file.schema_arrow))
            counts.append(file.metadata.num_rows)
    usual = [column for kind in ("image", "list of numbers") for column, seen in tables[0].items() if seen == kind]
    label = labels or ("label" if "label" in tables[0] else None)
    column = inputs or next(iter(usual), None)
    if column is None:
        return _open_table(paths, counts, tables, name, label)
    for path, table in zip(paths, tables, strict=True):
        _check_column(path, table, column, ("image", "list of numbers"))
        if label is not None:
            _check_label(path, table, label)
        if table[column] != tables[0][column]:
            raise DataError(
                f"'{path}' column '{column}' is {table[column]}, expected {tables[0][column]} like the first"
            )
    encoded = tables[0][column] == "image"
    source = Parquet(paths, tuple(counts), column, encoded, size)
    return source, read_labels(paths, label)


def _open_table(
    paths: tuple[Path, ...],
    counts: Sequence[int],
    tables: Sequence[dict[str, str]],
    name: str,
    label: str | None,
) -> tuple[Table, np.ndarray | None]:
    """Open files with one column a feature: all numeric columns but the label's are inputs, in the first one's order.

    The label has one of the usual names of arrays, too: as an input it would give the class away.
    """
    label = label or next((usual for usual in LABELS if usual in tables[0]), None)
    columns, *others = (
        [column for column, kind in table.items() if kind in ("number", "decimal number") and column != label]
        for table in tables
    )
    if not columns:
        known = ", ".join(f"{column} ({kind})" for column, kind in tables[0].items())
        text = next((f"; texts in '{column}' need" for column, kind in tables[0].items() if "string" in kind), "")
        remedy = f"{text} tokenizer: hf:<folder or name> in a YAML file of data" if text else ""
        raise DataError(
            f"data '{name}': no image, list of numbers or number among columns {known}; convert one, or read it in a "
            f"function{remedy}"
        )
    for path, found in zip(paths[1:], others, strict=True):
        missing, more = (sorted(set(a) - set(b)) for a, b in ((columns, found), (found, columns)))
        if missing or more:
            what = f"has no column of numbers '{missing[0]}'" if missing else f"has another column '{more[0]}'"
            raise DataError(f"'{path}' {what}, expected those of '{paths[0]}'; write them alike")
    for path, table in zip(paths, tables, strict=True):
        double = next((column for column, kind in table.items() if kind == "ambiguous"), None)
        if double is not None:
            raise DataError(f"'{path}' has several columns '{double}'; rename all but one")
        if label is not None:
            _check_label(path, table, label)
    source = Table(paths, tuple(counts), tuple(columns))
    return source, read_labels(paths, label)


def _kinds(schema: pa.Schema) -> dict[str, str]:
    """What each column can be; an index that pandas wrote is none."""
    named = Counter(schema.names)
    return {
        field.name: _column_kind(field.type) if named[field.name] == 1 else "ambiguous"
        for field in schema
        if not re.fullmatch(r"__index_level_\d+__", field.name)
    }


def _column_kind(column: pa.DataType) -> str:
    import pyarrow as pa

    types = pa.types
    if types.is_struct(column) and column.get_field_index("bytes") >= 0:
        return "image"
    if types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column):
        numeric = types.is_integer(column.value_type) or types.is_floating(column.value_type)
        return "list of numbers" if numeric else "list"
    if types.is_integer(column) or types.is_floating(column) or types.is_boolean(column):
        return "number"
    return "decimal number" if types.is_decimal(column) else str(column)


def _check_label(path: Path, table: dict[str, str], column: str) -> None:
    remedy = NUMBERED if "string" in table.get(column, "") else "choose another"
    _check_column(path, table, column, ("number",), remedy)


def _check_column(
    path: Path, table: dict[str, str], column: str, expected: tuple[str, ...], remedy: str = "choose another"
) -> None:
    if column not in table:
        raise DataError(f"'{path}' has no column '{column}'; choose from {', '.join(table)}")
    if table[column] not in expected:
        raise DataError(f"'{path}' column '{column}' is {table[column]}, expected {' or '.join(expected)}; {remedy}")


def read_labels(paths: Sequence[Path], column: str | None) -> np.ndarray | None:
    """A column with one number a row, of all files.

    Raises:
        DataError: it is missing, or a row of it is empty.
    """
    return None if column is None else np.concatenate([read_column(path, column).to_numpy() for path in paths])


def read_column(path: Path, column: str) -> pa.ChunkedArray:
    """A column of one file.

    Raises:
        DataError: it is missing, or a row of it is empty.
    """
    import pyarrow.parquet as pq

    with files.reading(path), pq.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise DataError(f"'{path}' has no column '{column}'; choose from {', '.join(file.schema_arrow.names)}")
        values = file.read(columns=[column], use_threads=False).column(0)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null())[0])
        raise DataError(f"'{path}' row {row}: column '{column}' is empty; remove the row or fill it")
    return values


def names_of(path: Path) -> list[str]:
    """Names of the columns of a file.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow.parquet as pq

    with files.reading(path), pq.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def _by_file(paths: Sequence[Path], counts: Sequence[int], positions: np.ndarray) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield each file with those of its rows that are at the ascending positions."""
    start = 0
    for path, count in zip(paths, counts, strict=True):
        yield path, _between(positions, start, start + count) - start
        start += count


def _read_rows(
    path: Path, column: str, encoded: bool, rows: np.ndarray
) -> Iterator[tuple[int, bytes | np.ndarray | None]]:
    """Yield the wanted rows of a Parquet column with their numbers."""
    for start, batch, wanted in _read_batches(path, [column], rows):
        values = batch.column(0)
        if encoded:  # flatten, unlike field, keeps an empty struct empty
            values = values.flatten()[values.type.get_field_index("bytes")]
        for row in wanted.tolist():
            value = values[row - start]
            if not value.is_valid:
                yield row, None
            else:
                yield row, value.as_py() if encoded else value.values.to_numpy(zero_copy_only=False)


def _read_table(path: Path, columns: Sequence[str], rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers of the wanted rows `[n]` and their values in all columns, float32 `[n, d]`."""
    for start, batch, wanted in _read_batches(path, columns, rows):
        values = np.empty((len(wanted), len(columns)), np.float32)
        bad = np.zeros(values.shape, bool)
        for i, name in enumerate(columns):
            column = batch.column(name)
            bad[:, i] = ~column.is_valid().to_numpy(zero_copy_only=False)[wanted - start]
            numbers = column.cast("double", safe=False).to_numpy(zero_copy_only=False)[wanted - start]
            with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is reported below
                values[:, i] = numbers
        if not np.isfinite(values).all():  # an empty value is a NaN here
            row, i = np.argwhere(~np.isfinite(values))[0]
            what = "is empty" if bad[row, i] else "holds NaN or infinity, expected a finite number"
            raise DataError(f"'{path}' row {wanted[row]}: column '{columns[i]}' {what}; remove the row or fill it")
        yield wanted, values


def _read_batches(
    path: Path, columns: Sequence[str], rows: np.ndarray
) -> Iterator[tuple[int, pa.RecordBatch, np.ndarray]]:
    """Yield the first row, the columns and the wanted rows of a batch, skipping the row groups without any."""
    import pyarrow.parquet as pq

    with files.reading(path), pq.ParquetFile(path) as file:
        end = 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            wanted = _between(rows, start, end)
            if not len(wanted):
                continue
            with files.reading(path, f"rows {start} to {end - 1}"):
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
                    yield start, batch, _between(wanted, start, start + len(batch))
                    start += len(batch)
                    if start > wanted[-1]:
                        break


def _between(positions: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return those of the ascending positions that lie in `start..end - 1`."""
    first, last = np.searchsorted(positions, (start, end))
    return positions[first:last]
