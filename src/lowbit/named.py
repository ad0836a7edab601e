"""Samples with several inputs by name, as networks for text take them: arrays side by side, or texts and a tokenizer.

They are held in memory, because they are small: 64 tokens and their mask are 1 kB a sample. Integers stay integers,
since they are numbers of tokens; everything else becomes float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from lowbit import files
from lowbit.arrays import LABELS, digest_of, draw
from lowbit.errors import DataError
from lowbit.parquet import names_of, read_column, read_labels

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
        return " ".join(f"{name} {digest_of(array)}" for name, array in self.arrays.items())


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
    return read(read_column(path, name).combine_chunks(), f"'{path}' column '{name}'")


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


def open_named(
    paths: tuple[Path, ...],
    name: str,
    folder: Path | None,
    inputs: str | Sequence[str] | None,
    labels: str | None,
    tokenizer: str | None,
    tokens: int,
    rows: tuple[int | None, int],
) -> tuple[Named, np.ndarray | None]:
    """Several inputs by name, or texts, of an npz file or Parquet files; of the latter those `rows` (limit, seed).

    Raises:
        DataError: the files are of another kind or damaged, or have not these inputs and labels.
    """
    suffix = paths[0].suffix.lower()
    if suffix not in (".npz", ".parquet"):
        raise DataError(f"data '{name}': several inputs and texts are read from .npz and .parquet; write one of these")
    arrays: dict[str, np.ndarray] = files.load_arrays(paths[0]) if suffix == ".npz" else {}
    there = list(arrays) if suffix == ".npz" else names_of(paths[0])
    wanted = [inputs] if isinstance(inputs, str) else list(inputs or ())
    if not wanted:
        usual = TEXTS if tokenizer else USUAL
        wanted = [key for key in usual if key in there][: 1 if tokenizer else None]
    label = labels or next((key for key in (*LABELS, "label") if key in there), None)
    missing = [key for key in (*wanted, *([label] if label else [])) if key not in there]
    if missing or not wanted or (tokenizer and len(wanted) > 1):
        what = f"no '{missing[0]}'" if missing else "several inputs" if wanted else "no texts"
        raise DataError(f"data '{name}': {what} among {', '.join(there)}; choose with `inputs:` and `labels:`")
    known: np.ndarray | None = None
    if label is not None:
        known = np.asarray(arrays[label]) if suffix == ".npz" else read_labels(paths, label)
    if tokenizer:
        column = arrays[wanted[0]].tolist() if suffix == ".npz" else texts_of(paths, wanted[0])
        limit, seed = rows
        if limit is not None and 0 < limit < len(column):  # tokens of all would take long
            chosen = draw(len(column), limit, seed).tolist()
            column = [column[row] for row in chosen]
            known = known if known is None else known[chosen]
        return tokenized(name, column, tokenizer, tokens, folder), known
    return named(name, {k: arrays[k] for k in wanted} if suffix == ".npz" else columns_of(paths, wanted)), known
