"""What a network returns for data, and what a file does: all samples in batches of one size, in a fixed order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batches, call, output_tensor, resized
from lowbit.errors import DataError
from lowbit.export.codes import feed_of
from lowbit.export.runtime import open_session
from lowbit.pilot.statistics import Array
from lowbit.pilot.task import Samples, Settings
from lowbit.progress import track

BATCH = 100


def file_outputs(path: Path, data: Samples, settings: Settings, progress: bool = True) -> Array:
    """First output of a file for all samples, `[N, ...]`.

    Raises:
        DataError: it returns NaN.
    """
    session = open_session(path, runtime=settings.runtime, threads=settings.threads)
    rows = []
    for batch in track(data.batches(BATCH), f"run {path.parent.name}", show=progress):
        rows.append(session.run(feed_of(batch, session))[0])
    outputs = np.concatenate(rows)
    if np.isnan(outputs).any():
        raise DataError(f"'{path}' returns NaN for {np.isnan(outputs).mean():.2%} of its outputs; check model and data")
    return outputs


def model_outputs(model: nn.Module, data: Samples, progress: bool) -> Array:
    """Output of a network for all samples, `[N, ...]`."""
    with torch.no_grad():
        batches = track(data.batches(BATCH), "fake quantize", show=progress)
        return np.concatenate([output_tensor(call(model, batch)).cpu().numpy() for batch in batches])


def drawn(data: Samples, count: int, seed: int) -> Batches:
    """Batches of some of the samples: drawn from all, which may be sorted by class, where the data can do that."""
    take = getattr(data, "take", None)
    some: Samples = take(count, seed) if callable(take) and len(data) > count else data
    for _, batch in zip(range(-(-count // BATCH)), some.batches(BATCH), strict=False):
        yield batch


def baseline(variants: Path) -> Array:
    """Outputs of the float baseline's file, `[N, ...]`.

    Raises:
        DataError: they are missing.
    """
    path = variants / "float" / "outputs.npy"
    with files.reading(path):
        return np.asarray(np.load(path, allow_pickle=False))


def in_batches(data: Samples) -> Batches:
    """Data in batches of `batch_size`."""
    return data.batches(batch_size(data))


def batch_size(data: Samples) -> int:
    """Samples a batch: at least eight batches where there are as many samples, because some are held out."""
    return max(1, min(BATCH, len(data) // 8))


def example(data: Samples, size: int) -> Tensor | dict[str, Tensor]:
    """A batch of the first inputs; they are repeated where there are fewer."""
    return resized(next(iter(data.batches(size))), size)
