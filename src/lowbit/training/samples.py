"""Which samples a step sees: shuffled, resumed in the middle of an epoch, augmented."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowbit import files
from lowbit.batches import Batch, Batches, inputs_of, mapped, size_of
from lowbit.errors import TrainingError
from lowbit.training.keeping import other_run

Augment: TypeAlias = "Callable[[Batch, torch.Generator], Batch]"


class Shuffled:
    """Samples in memory, in batches of one size: in an order of its own for each epoch, from `seed` and epoch alone.

    An incomplete last batch is left out, unless it is the only one.

    Args:
        batches: tensors, tuples or dicts, all of one form; samples of one shape.
        batch_size: samples in a batch.
        seed: of the order.

    Raises:
        TrainingError: no batches, or samples that do not have one shape.
    """

    def __init__(self, batches: Batches, batch_size: int, *, seed: int = 0) -> None:
        parts = list(batches)
        if not parts or batch_size < 1:
            raise TrainingError(f"got {len(parts)} batches to draw {batch_size} samples from, expected at least 1 each")
        try:
            self.samples = _joined(parts)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise TrainingError(
                f"samples do not have one shape ({files.one_line(error)}); training draws single samples, so give "
                "batches that agree in form and in all but the first dimension"
            ) from None
        self.count, self.seed = size_of(self.samples), seed
        if not self.count:
            raise TrainingError("got no samples; give batches with at least one")
        self.batch_size = min(batch_size, self.count)

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        for rows in torch.split(order, self.batch_size)[start : len(self)]:
            yield mapped(self.samples, lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]


class Steps:
    """`count` batches an epoch of the endless stream that `batches` make epoch after epoch, from batch `first` on.

    Args:
        batches: called with the number of an epoch, from 1; each has `length` batches.
    """

    def __init__(self, batches: Callable[[int], Batches], length: int, count: int, *, first: int = 0) -> None:
        self.batches, self.length, self.count, self.first = batches, length, count, first

    def __len__(self) -> int:
        return self.count

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        start = self.first + (epoch - 1) * self.count
        left = self.count
        while left:
            number, skipped = divmod(start, self.length)
            taken = min(left, self.length - skipped)
            yield from itertools.islice(self.batches(number + 1), skipped, skipped + taken)
            start, left = start + taken, left - taken


def _joined(parts: list[Any]) -> Batch:
    """One batch of all samples, on the CPU."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.cpu() for part in parts])
    if isinstance(first, Mapping):
        if any(set(part) != set(first) for part in parts):
            raise KeyError("the batches have different keys")
        return {key: torch.cat([part[key].cpu() for part in parts]) for key in first}
    columns = list(zip(*parts, strict=True))
    return tuple(None if set(column) == {None} else torch.cat([t.cpu() for t in column]) for column in columns)


def repeatable(batches: Batches | Callable[[int], Batches], epochs: int) -> Batches | Callable[[int], Batches]:
    """The batches, as something that can be iterated once an epoch.

    Raises:
        TrainingError: they are used up after one epoch of several.
    """
    if not isinstance(batches, Iterator):
        return batches
    if epochs > 1:
        raise TrainingError(
            f"got a {type(batches).__name__}, which is used up after one of {epochs} epochs; give a list, a loader, or "
            "a function that takes the epoch's number and returns its batches"
        )
    return list(batches)


def length_of(batches: Batches | Callable[[int], Batches], stored: int, folder: Path | None) -> int:
    """Number of batches in an epoch, counted in a pass over them where it is not known."""
    items = batches(1) if callable(batches) and not isinstance(batches, Sized) else batches
    try:
        known = len(items)  # type: ignore[arg-type]
    except TypeError:  # a loader over a stream has the method, but no length
        known = stored or sum(1 for _ in items)
    if stored and known != stored:
        raise other_run(folder, "batches in an epoch", stored, known)
    if not known:
        raise TrainingError("got no batches; give at least one, and no generator that was used up before")
    return known


def drawn(
    batches: Batches | Callable[[int], Batches], epoch: int, start: int, seed: Callable[[int, int], None]
) -> Iterator[Batch]:
    """The batches of an epoch from batch `start` on; `seed` is called for each one before it is drawn."""
    seed(epoch, 0)  # a DataLoader draws its order when its iteration starts
    if isinstance(batches, Shuffled):
        number, rest = start, batches(epoch, start)
    else:
        number, rest = 0, iter(batches(epoch) if callable(batches) else batches)
    while True:
        seed(epoch, number)
        try:
            batch = next(rest)
        except StopIteration:
            return
        if number >= start:
            yield batch
        number += 1


def crop_and_flip(pixels: int = 4, *, flip: bool = True, fill: tuple[float, ...] = ()) -> Augment:
    """Return an augmentation: each image `[n, c, h, w]` shifted by up to `pixels` both ways, half of them mirrored.

    The images are a batch's first 4-D tensor other than `labels`; all else stays as it is.

    Args:
        pixels: largest shift, less than the height and the width of the images.
        flip: whether to mirror left and right.
        fill: what comes in at the borders, one number or one for each channel: what normalization makes of a black
            pixel; 0 if empty.
    """

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        images = _images(batch)
        count, channels, height, width = images.shape
        if len(fill) not in (0, 1, channels):
            raise TrainingError(f"images have {channels} channels, fill {len(fill)} numbers; give one for each channel")
        if pixels >= min(height, width):
            raise TrainingError(
                f"images are {height} x {width}, and a shift by up to {pixels} pixels can leave nothing of them; give "
                f"less than {min(height, width)}"
            )
        down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        if flip:
            columns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns)
        border = images.new_tensor(fill or (0.0,)).reshape(1, -1, 1, 1)
        padded = border.expand(count, channels, height + 2 * pixels, width + 2 * pixels).clone()
        padded[:, :, pixels : pixels + height, pixels : pixels + width] = images
        which = torch.arange(count)[:, None, None].to(images.device)
        rows, columns = rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
        layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last  # the latter as gathered
        moved = padded[which, :, rows, columns].permute(0, 3, 1, 2).contiguous(memory_format=layout)
        return mapped(batch, lambda tensor: moved if tensor is images else tensor)

    return augment


def _images(batch: Batch) -> Tensor:
    args, kwargs = inputs_of(batch)
    for tensor in (*args, *kwargs.values()):
        if tensor.dim() == 4:
            return tensor
    raise TrainingError("the batch holds no images [n, c, h, w] to crop and flip; leave the augmentation out")


def seed_of(*parts: int) -> int:
    """A seed of 63 bits from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
