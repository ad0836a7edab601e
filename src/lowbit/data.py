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
import hashlib
import itertools
import json
import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch

from lowbit import files
from lowbit.arrays import (
    INPUTS,
    LABELS,
    ROWS_AT_ONCE,
    Arrays,
    UnnamedError,
    as_numpy,
    checked_labels,
    digest_of,
    draw,
    finite_float32,
    refuse_one_hot,
    stacked,
)
from lowbit.errors import DataError, LowbitError
from lowbit.images import Folder, open_folder
from lowbit.named import TOKENS, USUAL, Named, named, open_named
from lowbit.parquet import Parquet, Table, matching, names_of, open_parquet

# Where samples come from: each yields (name for messages, value) at ascending positions, one by one.
_Source = Arrays | Folder | Parquet | Table | Named


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
            digest.update(digest_of(self.labels.numpy()).encode())
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
        chosen = draw(len(self), limit, seed)
        labels = None if self.labels is None else self.labels[chosen]
        return Data(self.name, self.source, self.positions[chosen.numpy()], labels, self.input_shape, self.preprocess)


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
            inputs = _normalize(stacked(batch, data.input_shape), data.preprocess)
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
        paths = matching(path, name, folder) if suffix == ".parquet" else (path,)
        by_name = open_named(paths, name, folder, inputs, labels, tokenizer, tokens, (limit, seed))
        data = _of_named(*by_name, preprocess)
    elif suffix == ".npz":
        data = _open_npz(path, name, preprocess, inputs, labels)
    elif suffix == ".parquet":
        opened = open_parquet(matching(path, name, folder), name, preprocess.size, inputs, labels)
        data = _assemble(name, *opened, preprocess)
    elif inputs or labels:
        raise DataError(
            f"data '{name}': `inputs` and `labels` name .npz arrays or Parquet columns; leave them out here"
        )
    elif path.is_dir():
        data = _assemble(name, *open_folder(path, name, preprocess.size), preprocess)
    elif ":" in name:
        data = _open_function(name, folder, preprocess)
    else:
        expected = "an .npz or .parquet file, a folder of images or 'module:function'"
        if suffix == ".npy":
            written = "np.savez('data.npz', inputs=x, labels=y)"
            raise DataError(f"data '{name}' is a single array, expected {expected}; write {written}")
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
    array = as_numpy(inputs)
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
    for start in range(0, len(array) if array.dtype.kind == "f" else 0, ROWS_AT_ONCE):
        block = array[start : start + ROWS_AT_ONCE]
        finite_float32(block, [f"data '{name}', sample {start + i}" for i in range(len(block))])
    return _assemble(name, Arrays(name, array), None if labels is None else as_numpy(labels), preprocess)


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


def _assemble(name: str, source: _Source, labels: np.ndarray | None, preprocess: Preprocess) -> Data:
    """Check what all sources have in common; the first sample tells the shape."""
    if not (count := len(source)):
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
    checked = None if labels is None else checked_labels(labels, count, name)
    return Data(name, source, positions, checked, first.shape, preprocess)


def _open_npz(path: Path, name: str, preprocess: Preprocess, inputs: str | None, labels: str | None) -> Data:
    arrays = files.load_arrays(path)
    input_key = inputs or next((key for key in INPUTS if key in arrays), None)
    label_key = labels or next((key for key in LABELS if key in arrays), None)
    if input_key is None:
        raise UnnamedError(name, [*arrays])
    for key in (input_key, label_key):
        if key is not None and key not in arrays:
            raise DataError(f"data '{name}': no array '{key}'; choose from {', '.join(arrays)}")
    if label_key is not None:
        refuse_one_hot(arrays[label_key], f"data '{name}': array '{label_key}'")
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
        return _of_named(named(name, inputs), None if labels is None else as_numpy(labels), preprocess)
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
    first = matching(path, name, folder)[0]
    if not first.is_file():
        return ()
    return tuple(names_of(first))


def _of_named(source: Named, labels: np.ndarray | None, preprocess: Preprocess) -> Data:
    if preprocess != Preprocess():
        raise DataError(f"data '{source.name}': preprocess is for a single input; leave it out, or prepare the arrays")
    if not len(source):
        raise DataError(f"data '{source.name}' is empty, expected at least one sample; check the source")
    checked = None if labels is None else checked_labels(labels, len(source), source.name)
    first = next(iter(source.shapes.values()))
    return Data(source.name, source, np.arange(len(source), dtype=np.int64), checked, first, preprocess)
