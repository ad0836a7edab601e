"""Samples with several inputs by name, as networks for text take them: arrays side by side, or texts and a tokenizer.

They are held in memory, because they are small: 64 tokens and their mask are 1 kB a sample. Integers stay integers,
since they are numbers of tokens; everything else becomes float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from lowbit import files
from lowbit.errors import DataError

USUAL = ("input_ids", "attention_mask")  # taken together where a file has the first
TEXTS = ("text", "sentence", "texts", "sentences")  # a column with one of these names is tokenized
TOKENS = 128  # a text is cut or filled up to so many by default


@final
@dataclass(frozen=True)
class Named:
    """Arrays `[samples, ...]` by the names of a network's inputs."""

    name: str
    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one sample, by input."""
        return {name: array.shape[1:] for name, array in self.arrays.items()}

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The first input alone, which tells how many samples there are."""
        for position in positions.tolist():
            yield f"data '{self.name}', sample {position}", next(iter(self.arrays.values()))[position]

    def batch(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """The samples at some positions."""
        return {name: torch.from_numpy(array[positions]) for name, array in self.arrays.items()}

    def digest(self, positions: np.ndarray) -> str:
        """What identifies the arrays."""
        return " ".join(f"{name} {_hash(array)}" for name, array in self.arrays.items())


def _hash(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def named(name: str, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> Named:
    """Arrays as inputs by name.

    Raises:
        DataError: there is none, one has no samples axis or holds no real numbers, or they differ in length.
    """
    found: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.dtype.kind not in "fiub" or array.ndim < 1:
            raise DataError(
                f"data '{name}', input '{key}': got {array.dtype} {list(array.shape)}, expected numbers [samples, ...]"
                "; and texts need `tokenizer:`"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"data '{name}', input '{key}' holds NaN or infinity, expected finite numbers; remove them")
        found[key] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    if not found:
        raise DataError(f"data '{name}' has no inputs; name them with `inputs:`")
    lengths = {key: len(array) for key, array in found.items()}
    if len({*lengths.values()}) > 1:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"data '{name}': inputs have different numbers of samples ({told}); write them again")
    return Named(name, found)


def tokenized(name: str, column: Sequence[object], tokenizer: str, length: int, folder: Path | None) -> Named:
    """Texts as token numbers and mask, by the tokenizer of `hf:<folder or name>`.

    Raises:
        DataError: one is no text, or the tokenizer cannot be used.
    """
    from lowbit.huggingface import tokenize

    texts = [str(text) if isinstance(text, str) else None for text in column]
    if None in texts:
        raise DataError(f"data '{name}', row {texts.index(None)}: got no text; remove the row or fill it")
    if not texts:
        raise DataError(f"data '{name}' is empty, expected at least one text; check the source")
    return Named(name, tokenize(tokenizer, [text for text in texts if text is not None], length, folder))


def columns_of(paths: Sequence[Path], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of Parquet files with lists of equal length, or one number a row, as arrays.

    Raises:
        DataError: a column is missing, has an empty row, lists of several lengths, or something else in it.
    """
    return {name: np.concatenate([_column(path, name, _numbers) for path in paths]) for name in names}


def texts_of(paths: Sequence[Path], name: str) -> list[object]:
    """A column of texts in Parquet files."""
    return [text for path in paths for text in _column(path, name, lambda values, _: values.to_pylist())]


def _column(path: Path, name: str, read: Callable[..., Any]) -> Any:
    import pyarrow.parquet as pq

    with files.reading(path), pq.ParquetFile(path) as file:
        if name not in file.schema_arrow.names:
            raise DataError(f"'{path}' has no column '{name}'; choose from {', '.join(file.schema_arrow.names)}")
        values = file.read(columns=[name], use_threads=False).column(0).combine_chunks()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null())[0])
        raise DataError(f"'{path}' row {row}: column '{name}' is empty; remove the row or fill it")
    return read(values, f"'{path}' column '{name}'")


def _numbers(values: object, where: str) -> np.ndarray:
    import pyarrow as pa

    assert isinstance(values, pa.Array)
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        flat, count = values.flatten(), len(values)
        if count and (len(flat) % count or len({len(row) for row in values}) > 1):
            raise DataError(f"{where} has lists of several lengths, expected one; cut or fill them up")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(count, -1)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    raise DataError(f"{where} is {kind}, expected lists of numbers; convert it, or read it in a function")
