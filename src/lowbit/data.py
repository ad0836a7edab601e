"""Which inputs a model sees, in which order.

Inputs come from arrays, an `.npz` file, an image folder, Parquet files (images in the Hugging Face layout, lists of
numbers, or a table with one column a feature), or a function that the user wrote. All of them end up as one `Data`: a
fixed order of samples, read in batches as often as wanted, with labels where there are some and a hash that says which
inputs they were. Images are decoded batch by batch, so memory does not grow with their number; arrays stay in memory as
they are and become float32 batch by batch.

A damaged file, an odd shape or a NaN is an error that names the file and the row: a benchmark on silently repaired data
proves nothing.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import itertools
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import torch

from lowbit import files
from lowbit.errors import DataError, LowbitError
from lowbit.named import TEXTS, TOKENS, USUAL, Named, columns_of, named, texts_of, tokenized

if TYPE_CHECKING:
    import pyarrow as pa

_INPUTS = ("inputs", "x", "X", "data", "images")
_LABELS = ("labels", "y", "target")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# Named one by one because Pillow would run Ghostscript on an EPS file.
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_ROWS_AT_ONCE = 256  # of a Parquet file
_NUMBERED = "number the classes from 0, for example by numpy.unique(labels, return_inverse=True)[1]"


@final
@dataclass(frozen=True)
class Preprocess:
    """What happens to the inputs before the model sees them: resized, divided by `scale`, then normalized per channel.

    `mean` and `std` hold one value, or one a channel, in units of the scaled inputs. `layout` says how arrays are
    stored; batches are always NCHW. `size` is (height, width) and resizes image files, bilinearly.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise DataError(f"preprocess scale is {self.scale}, expected a positive number; use 255 for 8-bit images")
        if not all(map(math.isfinite, self.mean)):
            raise DataError(f"preprocess mean is {list(self.mean)}, expected finite numbers; correct it")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise DataError(f"preprocess std is {list(self.std)}, expected positive numbers; correct it")
        if self.layout not in ("NCHW", "NHWC"):
            raise DataError(f"preprocess layout is '{self.layout}', expected NCHW or NHWC; correct it")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise DataError(f"preprocess size is {list(self.size)}, expected [height, width]; correct it")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Inputs in a fixed order, with labels where there are some. Made by `open_data` or `from_arrays`."""

    name: str
    source: _Source
    positions: np.ndarray  # of the chosen samples within the source, int64, ascending
    labels: torch.Tensor | None  # int64 classes or float32 targets, one a sample
    input_shape: tuple[int, ...]  # of one sample as the model sees it
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels"
        return f"Data('{self.name}', {len(self)} x {list(self.input_shape)}, {labels})"

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the contents, the labels, the preprocessing and the selection; paths do not count."""
        prepare = self.preprocess
        numbers = [float(prepare.scale), [*map(float, prepare.mean)], [*map(float, prepare.std)]]
        described = json.dumps([self.source.digest(self.positions), *numbers, prepare.layout, prepare.size])
        digest = hashlib.sha256(described.encode())
        digest.update(self.positions.tobytes())
        if self.labels is not None:
            digest.update(_array_digest(self.labels.numpy()).encode())
        return digest.hexdigest()

    @property
    def shapes(self) -> str:
        """The shape of one sample, or of each of its inputs, in words."""
        if isinstance(self.source, Named):
            return ", ".join(f"{name} {list(shape)}" for name, shape in self.source.shapes.items())
        return str(list(self.input_shape))

    def batches(self, size: int) -> Iterable[tuple[torch.Tensor, torch.Tensor | None] | dict[str, torch.Tensor]]:
        """Return batches to iterate over as often as wanted: float32 inputs `[n, ...]` and their labels, or None.

        With several inputs a batch is a dict by their names, with ``labels`` where there are some. The order is fixed,
        each batch has `size` samples, and the last one what is left.
        """
        if size < 1:
            raise DataError(f"data '{self.name}': batch size is {size}, expected at least 1; correct it")
        return _Batches(self, size)

    def take(self, limit: int, seed: int) -> Data:
        """Return a random subset of at most `limit` samples, kept in order so that reading still streams."""
        if limit < 1:
            raise DataError(f"data '{self.name}': limit is {limit}, expected at least 1; leave it out to take all")
        if not -(2**63) <= seed < 2**64:
            raise DataError(
                f"data '{self.name}': seed is {reprlib.repr(seed)}, expected an integer of 64 bits; write a smaller one"
            )
        chosen = _draw(len(self), limit, seed)
        labels = None if self.labels is None else self.labels[chosen]
        return Data(self.name, self.source, self.positions[chosen.numpy()], labels, self.input_shape, self.preprocess)


def _draw(count: int, limit: int, seed: int) -> torch.Tensor:
    """Some of `count` numbers, ascending."""
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(int(seed)))
    return shuffled[:limit].sort().values


@dataclass(frozen=True)
class _Batches:
    data: Data
    size: int

    def __len__(self) -> int:
        return math.ceil(len(self.data) / self.size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None] | dict[str, torch.Tensor]]:
        data = self.data
        if isinstance(data.source, Named):
            for start in range(0, len(data), self.size):
                rows = slice(start, start + self.size)
                labels = {} if data.labels is None else {"labels": data.labels[rows]}
                yield {**data.source.batch(data.positions[rows]), **labels}
            return
        samples = data.source.samples(data.positions)
        for start in range(0, len(data), self.size):
            end = min(start + self.size, len(data))
            batch = list(itertools.islice(samples, end - start))
            if len(batch) < end - start:
                raise DataError(
                    f"data '{data.name}' became shorter while it was read; leave its files alone, run again"
                )
            inputs = _normalize(_stack(batch, data.input_shape), data.preprocess)
            yield inputs, None if data.labels is None else data.labels[start:end]


def open_data(
    source: str | Path,
    *,
    folder: Path | None = None,
    preprocess: Preprocess | None = None,
    inputs: str | Sequence[str] | None = None,
    labels: str | None = None,
    tokenizer: str | None = None,
    tokens: int = TOKENS,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Open inputs, and labels where there are some.

    Args:
        source: an `.npz` file; a Parquet file or a pattern such as `train-*.parquet`; a folder of images, whose
            sub-folders are the classes in sorted order; or `module:function`, which returns inputs or (inputs, labels).
            Where Parquet files have neither an image nor a list column, all numeric columns but the label's are inputs.
        folder: where relative paths begin; the current folder by default.
        preprocess: what happens to the inputs; nothing by default.
        inputs: the `.npz` array or Parquet column of the inputs, where the usual names do not find it; several names
            are several inputs, and batches are dicts by them. Found without: `input_ids` and `attention_mask`.
        tokenizer: `hf:<folder or name>`, which makes these two of a column of texts: `inputs`, or a usual name.
        tokens: a text is cut or filled up to so many.
        labels: the same for the labels.
        limit: take a random subset of this size.
        seed: of that subset.

    Raises:
        DataError: the source is missing, empty, damaged, or does not fit the arguments.
    """
    name, preprocess = str(source), preprocess or Preprocess()
    path = (folder or Path()) / Path(source).expanduser()
    suffix = path.suffix.lower()
    if (
        tokenizer is not None
        or (inputs is not None and not isinstance(inputs, str))
        or (inputs is None and USUAL[0] in column_names(path, name, folder))
    ):
        data = _open_named(path, name, folder, preprocess, inputs, labels, tokenizer, tokens, (limit, seed))
    elif suffix == ".npz":
        data = _open_npz(path, name, preprocess, inputs, labels)
    elif suffix == ".parquet":
        data = _open_parquet(_matching(path, name, folder), name, preprocess, inputs, labels)
    elif inputs or labels:
        raise DataError(
            f"data '{name}': `inputs` and `labels` name .npz arrays or Parquet columns; leave them out here"
        )
    elif path.is_dir():
        data = _open_folder(path, name, preprocess)
    elif ":" in name:
        data = _open_function(name, folder, preprocess)
    else:
        expected = "an .npz or .parquet file, a folder of images or 'module:function'"
        found = "is another kind of file" if path.exists() else "does not exist"
        raise DataError(f"data '{name}': '{path}' {found}, expected {expected}; check the path")
    return data if limit is None else data.take(limit, seed)


def from_arrays(
    inputs: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor | None = None,
    *,
    name: str = "arrays",
    preprocess: Preprocess | None = None,
) -> Data:
    """Return arrays or tensors `[samples, ...]` in memory as `Data`; integer labels are classes, float ones targets."""
    preprocess = preprocess or Preprocess()
    array = _numpy(inputs)
    if array.dtype.kind not in "fiub":
        raise DataError(f"data '{name}': inputs are {array.dtype}, expected real numbers; convert them")
    if array.ndim < 2:
        raise DataError(f"data '{name}': inputs have shape {list(array.shape)}, expected [samples, ...]; add an axis")
    if 0 in array.shape[1:]:  # a billion of them take no bytes
        raise DataError(f"data '{name}': inputs have shape {list(array.shape)}, no numbers a sample; write them again")
    if preprocess.layout == "NHWC":
        if array.ndim != 4:
            raise DataError(f"data '{name}': layout NHWC needs 4 axes, got shape {list(array.shape)}; leave it out")
        array = array.transpose(0, 3, 1, 2)
    for start in range(0, len(array) if array.dtype.kind == "f" else 0, _ROWS_AT_ONCE):
        block = array[start : start + _ROWS_AT_ONCE]
        _finite_float32(block, [f"data '{name}', sample {start + i}" for i in range(len(block))])
    return _assemble(name, _Arrays(name, array), len(array), None if labels is None else _numpy(labels), preprocess)


def digits(split: Literal["train", "test"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the handwritten digits of scikit-learn: inputs `[n, 1, 8, 8]` in 0..1 and classes, 1,197 + 600 samples.

    The split is stratified and always the same. As sources: `lowbit.data:digits_train`, `lowbit.data:digits_test`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, classes = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(classes)), test_size=600, random_state=0, stratify=classes)
    chosen = np.sort(train if split == "train" else test)
    inputs = torch.from_numpy(images[chosen]).float().div(16).reshape(-1, 1, 8, 8)
    return inputs, torch.from_numpy(classes[chosen]).long()


def digits_train() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 1,197 training digits."""
    return digits("train")


def digits_test() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 600 test digits."""
    return digits("test")


# Where samples come from. Each source yields (name for messages, value) at ascending positions, one by one.


@dataclass(frozen=True)
class _Arrays:
    name: str
    inputs: np.ndarray

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for position in positions.tolist():
            yield f"data '{self.name}', sample {position}", self.inputs[position]

    def digest(self, positions: np.ndarray) -> str:
        return _array_digest(self.inputs)


@dataclass(frozen=True)
class _Folder:
    images: tuple[Path, ...]
    size: tuple[int, int] | None

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for position in positions.tolist():
            path = self.images[position]
            yield f"'{path}'", _decode(files.read_bytes(path), f"'{path}'", self.size)

    def digest(self, positions: np.ndarray) -> str:
        return " ".join(files.sha256(self.images[position]) for position in positions.tolist())


@dataclass(frozen=True)
class _Parquet:
    paths: tuple[Path, ...]
    counts: tuple[int, ...]  # rows of each file
    column: str
    encoded: bool  # images as {bytes, path}, else lists of numbers
    size: tuple[int, int] | None

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for path, rows in _by_file(self.paths, self.counts, positions):
            for row, value in _read_rows(path, self.column, self.encoded, rows):
                where = f"'{path}' row {row}"
                if value is None:
                    raise DataError(f"{where}: column '{self.column}' is empty; remove the row or fill it")
                yield where, value if isinstance(value, np.ndarray) else _decode(value, where, self.size)

    def digest(self, positions: np.ndarray) -> str:
        return " ".join([self.column, *map(files.sha256, self.paths)])


@dataclass(frozen=True)
class _Table:
    """Parquet files with one numeric column a feature."""

    paths: tuple[Path, ...]
    counts: tuple[int, ...]  # rows of each file
    columns: tuple[str, ...]

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for path, rows in _by_file(self.paths, self.counts, positions):
            for numbers, values in _read_table(path, self.columns, rows):
                for row, value in zip(numbers.tolist(), values, strict=True):
                    yield f"'{path}' row {row}", value

    def digest(self, positions: np.ndarray) -> str:
        return " ".join([json.dumps(self.columns), *map(files.sha256, self.paths)])


_Source = _Arrays | _Folder | _Parquet | _Table | Named


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
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
                    yield start, batch, _between(wanted, start, start + len(batch))
                    start += len(batch)
                    if start > wanted[-1]:
                        break


def _between(positions: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return those of the ascending positions that lie in `start..end - 1`."""
    first, last = np.searchsorted(positions, (start, end))
    return positions[first:last]


def _decode(encoded: bytes, where: str, size: tuple[int, int] | None) -> np.ndarray:
    """Return an encoded image as uint8 RGB `[3, height, width]`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            rgb = image.convert("RGB")
            if size:
                rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{where}: no image in a known format, expected {', '.join(_PILLOW_FORMATS)}; remove it"
        ) from error
    except Exception as error:  # on damaged bytes Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(f"{where}: the image is damaged ({files.one_line(error)}); replace or remove it") from error
    return np.asarray(rgb).transpose(2, 0, 1)


# From samples to batches


def _stack(samples: list[tuple[str, np.ndarray]], shape: tuple[int, ...]) -> torch.Tensor:
    for where, value in samples:
        if value.shape != shape:
            remedy = "set `size:` to resize all images" if len(shape) == 3 else "pad or cut the rows to one length"
            raise DataError(f"{where}: shape {list(value.shape)}, expected {list(shape)} like the first; {remedy}")
    return torch.from_numpy(_finite_float32(np.stack([value for _, value in samples]), [where for where, _ in samples]))


def _finite_float32(values: np.ndarray, where: list[str]) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is reported below
        single = values.astype(np.float32)
    if values.dtype.kind == "f":
        finite = np.isfinite(single).reshape(len(single), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"{where[int(finite.argmin())]} holds NaN or infinity, expected finite numbers; remove it")
    return single


def _normalize(batch: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Return `(batch / scale - mean) / std` per channel, in place."""
    per_channel = (-1, *[1] * (batch.ndim - 2))
    if preprocess.scale != 1:
        batch /= preprocess.scale
    if preprocess.mean:
        batch -= torch.tensor(preprocess.mean).reshape(per_channel)
    if preprocess.std:
        batch /= torch.tensor(preprocess.std).reshape(per_channel)
    return batch


# Opening


def _assemble(name: str, source: _Source, count: int, labels: np.ndarray | None, preprocess: Preprocess) -> Data:
    """Check what all sources have in common; the first sample tells the shape."""
    if count == 0:
        raise DataError(f"data '{name}' is empty, expected at least one sample; check the source")
    positions = np.arange(count, dtype=np.int64)
    _, first = next(source.samples(positions[:1]))
    if preprocess.size and first.shape[1:] != tuple(preprocess.size):
        got, expected = list(first.shape), list(preprocess.size)
        raise DataError(
            f"data '{name}': inputs {got} are not {expected}, and only image files are resized; omit `size`"
        )
    for field, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (0, 1, first.shape[0]):
            raise DataError(
                f"data '{name}': {field} has {len(values)} values, inputs {list(first.shape)} have {first.shape[0]} "
                f"channels; give one value, or one a channel"
            )
    checked = None if labels is None else _labels(labels, count, name)
    return Data(name, source, positions, checked, first.shape, preprocess)


def _labels(labels: np.ndarray, count: int, name: str) -> torch.Tensor:
    if labels.dtype.kind not in "fiub":
        remedy = _NUMBERED if labels.dtype.kind in "USOT" else "convert them"
        raise DataError(f"data '{name}': labels are {labels.dtype}, expected integers or floats; {remedy}")
    if labels.ndim == 0 or len(labels) != count:
        got = len(labels) if labels.ndim else "one"
        raise DataError(f"data '{name}': {got} labels for {count} inputs, expected one each; correct the source")
    if labels.dtype.kind != "f":
        return torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(_finite_float32(labels, [f"data '{name}', label {i}" for i in range(count)]))


def _open_npz(path: Path, name: str, preprocess: Preprocess, inputs: str | None, labels: str | None) -> Data:
    arrays = files.load_arrays(path)
    input_key = inputs or next((key for key in _INPUTS if key in arrays), None)
    label_key = labels or next((key for key in _LABELS if key in arrays), None)
    if input_key is None:
        usual = ", ".join(_INPUTS)
        raise DataError(f"data '{name}': none of {usual} among arrays {', '.join(arrays)}; choose one with `inputs:`")
    for key in (input_key, label_key):
        if key is not None and key not in arrays:
            raise DataError(f"data '{name}': no array '{key}'; choose from {', '.join(arrays)}")
    return from_arrays(
        arrays[input_key], None if label_key is None else arrays[label_key], name=name, preprocess=preprocess
    )


def _open_function(name: str, folder: Path | None, preprocess: Preprocess) -> Data:
    function = files.resolve(name, folder)
    try:
        result: object = function()
    except LowbitError:
        raise
    except Exception as error:
        raise DataError(f"data '{name}': the function raised {files.one_line(error)}; correct it") from error
    inputs, labels = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    arrays = (torch.Tensor, np.ndarray)
    if isinstance(inputs, dict) and isinstance(labels, (*arrays, type(None))):
        return _of_named(named(name, inputs), None if labels is None else _numpy(labels), preprocess)
    if not (isinstance(inputs, arrays) and isinstance(labels, (*arrays, type(None)))):
        got = ", ".join(type(value).__name__ for value in (inputs, labels) if value is not None)
        raise DataError(f"data '{name}': the function returned {got}, expected inputs or (inputs, labels) as tensors")
    return from_arrays(inputs, labels, name=name, preprocess=preprocess)


def column_names(path: Path, name: str, folder: Path | None) -> tuple[str, ...]:
    """Names of the arrays of an npz file, or of the columns of Parquet files (`name` may be a pattern); else none.

    Raises:
        DataError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz" and path.is_file():
        return tuple(files.load_arrays(path))
    if suffix != ".parquet":
        return ()
    first = _matching(path, name, folder)[0]
    if not first.is_file():
        return ()
    import pyarrow.parquet as pq

    with files.reading(first), pq.ParquetFile(first) as file:
        return tuple(file.schema_arrow.names)


def _open_named(
    path: Path,
    name: str,
    folder: Path | None,
    preprocess: Preprocess,
    inputs: str | Sequence[str] | None,
    labels: str | None,
    tokenizer: str | None,
    tokens: int,
    rows: tuple[int | None, int],
) -> Data:
    """Several inputs by name, or texts, of an npz file or Parquet files; of the latter those `rows` (limit, seed)."""
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".parquet"):
        raise DataError(f"data '{name}': several inputs and texts are read from .npz and .parquet; write one of these")
    paths = _matching(path, name, folder) if suffix == ".parquet" else (path,)
    if suffix == ".npz":
        arrays: dict[str, np.ndarray] = files.load_arrays(path)
        there = list(arrays)
    else:
        import pyarrow.parquet as pq

        with files.reading(paths[0]), pq.ParquetFile(paths[0]) as file:
            there = list(file.schema_arrow.names)
    wanted = [inputs] if isinstance(inputs, str) else list(inputs or ())
    if not wanted:
        usual = TEXTS if tokenizer else USUAL
        wanted = [key for key in usual if key in there][: 1 if tokenizer else None]
    label = labels or next((key for key in (*_LABELS, "label") if key in there), None)
    missing = [key for key in (*wanted, *([label] if label else [])) if key not in there]
    if missing or not wanted or (tokenizer and len(wanted) > 1):
        what = f"no '{missing[0]}'" if missing else "several inputs" if wanted else "no texts"
        raise DataError(f"data '{name}': {what} among {', '.join(there)}; choose with `inputs:` and `labels:`")
    known: np.ndarray | None = None
    if label is not None:
        known = np.asarray(arrays[label]) if suffix == ".npz" else _read_labels(paths, label)
    if tokenizer:
        column = arrays[wanted[0]].tolist() if suffix == ".npz" else texts_of(paths, wanted[0])
        limit, seed = rows
        if limit is not None and 0 < limit < len(column):  # tokens of all would take long
            chosen = _draw(len(column), limit, seed).tolist()
            column = [column[row] for row in chosen]
            known = known if known is None else known[chosen]
        source = tokenized(name, column, tokenizer, tokens, folder)
    else:
        source = named(name, {k: arrays[k] for k in wanted} if suffix == ".npz" else columns_of(paths, wanted))
    return _of_named(source, known, preprocess)


def _of_named(source: Named, labels: np.ndarray | None, preprocess: Preprocess) -> Data:
    if preprocess != Preprocess():
        raise DataError(f"data '{source.name}': preprocess is for a single input; leave it out, or prepare the arrays")
    if not len(source):
        raise DataError(f"data '{source.name}' is empty, expected at least one sample; check the source")
    checked = None if labels is None else _labels(labels, len(source), source.name)
    first = next(iter(source.shapes.values()))
    return Data(source.name, source, np.arange(len(source), dtype=np.int64), checked, first, preprocess)


def _open_folder(path: Path, name: str, preprocess: Preprocess) -> Data:
    def images(folder: Path, pattern: str) -> list[Path]:
        return sorted(file for file in folder.glob(pattern) if file.suffix.lower() in _SUFFIXES)

    flat = images(path, "*")
    classes = {
        folder.name: images(folder, "**/*")
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    if flat and any(classes.values()):
        raise DataError(f"data '{name}': images both in '{path}' and in its sub-folders; keep one of the two")
    if not (flat or any(classes.values())):
        kinds = ", ".join(_SUFFIXES)
        raise DataError(f"data '{name}': no {kinds} files in '{path}'; for Parquet write '{name}/*.parquet'")
    empty = [] if flat else [folder for folder, found in classes.items() if not found]
    if empty:
        raise DataError(f"data '{name}': class folder '{empty[0]}' has no images; fill or remove it")
    found = flat or [file for folder in classes.values() for file in folder]
    labels = None if flat else np.repeat(np.arange(len(classes)), [len(folder) for folder in classes.values()])
    return _assemble(name, _Folder(tuple(found), preprocess.size), len(found), labels, preprocess)


def _matching(path: Path, name: str, folder: Path | None) -> tuple[Path, ...]:
    """Return the file at `path`, or the files that a pattern matches, sorted."""
    if path.exists() or not glob.has_magic(name):
        return (path,)
    found = sorted(glob.glob(str(Path(name).expanduser()), root_dir=folder, recursive=True))
    if not found:
        raise DataError(f"data '{name}': no file in '{path.parent}' matches '{path.name}'; check the pattern")
    return tuple((folder or Path()) / file for file in found)


def _open_parquet(
    paths: tuple[Path, ...], name: str, preprocess: Preprocess, inputs: str | None, labels: str | None
) -> Data:
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
        return _open_table(paths, counts, tables, name, preprocess, label)
    for path, table in zip(paths, tables, strict=True):
        _check_column(path, table, column, ("image", "list of numbers"))
        if label is not None:
            _check_label(path, table, label)
        if table[column] != tables[0][column]:
            raise DataError(
                f"'{path}' column '{column}' is {table[column]}, expected {tables[0][column]} like the first"
            )
    encoded = tables[0][column] == "image"
    source = _Parquet(paths, tuple(counts), column, encoded, preprocess.size)
    return _assemble(name, source, sum(counts), _read_labels(paths, label), preprocess)


def _open_table(
    paths: tuple[Path, ...],
    counts: Sequence[int],
    tables: Sequence[dict[str, str]],
    name: str,
    preprocess: Preprocess,
    label: str | None,
) -> Data:
    """Open files with one column a feature: all numeric columns but the label's are inputs, in the first one's order.

    The label has one of the usual names of arrays, too: as an input it would give the class away.
    """
    label = label or next((usual for usual in _LABELS if usual in tables[0]), None)
    columns, *others = (
        [column for column, kind in table.items() if kind in ("number", "decimal number") and column != label]
        for table in tables
    )
    if not columns:
        known = ", ".join(f"{column} ({kind})" for column, kind in tables[0].items())
        raise DataError(
            f"data '{name}': no image, list of numbers or number among columns {known}; convert one, or read it in a "
            "function"
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
    source = _Table(paths, tuple(counts), tuple(columns))
    return _assemble(name, source, sum(counts), _read_labels(paths, label), preprocess)


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
    remedy = _NUMBERED if "string" in table.get(column, "") else "choose another"
    _check_column(path, table, column, ("number",), remedy)


def _check_column(
    path: Path, table: dict[str, str], column: str, expected: tuple[str, ...], remedy: str = "choose another"
) -> None:
    if column not in table:
        raise DataError(f"'{path}' has no column '{column}'; choose from {', '.join(table)}")
    if table[column] not in expected:
        raise DataError(f"'{path}' column '{column}' is {table[column]}, expected {' or '.join(expected)}; {remedy}")


def _read_labels(paths: Sequence[Path], column: str | None) -> np.ndarray | None:
    return None if column is None else np.concatenate([_read_column(path, column) for path in paths])


def _read_column(path: Path, column: str) -> np.ndarray:
    import pyarrow.parquet as pq

    with files.reading(path), pq.ParquetFile(path) as file:
        values = file.read(columns=[column]).column(0)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null())[0])
        raise DataError(f"'{path}' row {row}: column '{column}' is empty; remove the row or fill it")
    array: np.ndarray = values.to_numpy()
    return array


def _numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    return values


def _array_digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
