"""What trains and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, Batches, call, inputs_of, labels_of, mapped, output_tensor, size_of
from lowbit.errors import DataError, RecipeError
from lowbit.training.processes import training_device
from lowbit.training.samples import Augment, Shuffled, seed_of

HELD_OUT = 16  # every so many batches
_TARGET = "teacher outputs"  # beside the inputs, where they are cached


def split(
    batches: Batches | Callable[[int], Batches], held_out: Batches | None, batch_size: int, seed: int
) -> tuple[Callable[[int], Batches], list[Batch]]:
    """What trains, as a function of the epoch, and what is held out.

    A loader that shuffles does so from `seed`, so that the same samples are held out each time, in every process.

    Raises:
        DataError: nothing to train on, or nothing to hold out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _split(batches, held_out, batch_size, seed)


def _split(
    batches: Batches | Callable[[int], Batches], held_out: Batches | None, batch_size: int, seed: int
) -> tuple[Callable[[int], Batches], list[Batch]]:
    held = None if held_out is None else list(held_out)
    if callable(batches):
        if not held:
            raise DataError("batches is a function, of which nothing can be held out; give held_out=[...] too")
        return batches, held
    given = list(batches)
    if held is None and len(given) > 1:
        held = given[::HELD_OUT]
        given = [batch for i, batch in enumerate(given) if i % HELD_OUT]
    if not given:
        raise DataError("got no batches to train on; give at least one (a list, not a used-up generator)")
    if not held:
        raise DataError(
            f"got {len(given)} batches and none to hold out; give at least 2, or held_out=[...] to choose the epoch by"
        )
    return Shuffled(given, batch_size, seed=seed), held


def first_of(batches: Batches, samples: int) -> list[Batch]:
    """The first batches, until they hold so many samples."""
    taken: list[Batch] = []
    for batch in batches:
        taken.append(batch)
        if sum(map(size_of, taken)) >= samples:
            break
    return taken


def as_trained(train: Callable[[int], Batches], augment: Augment | None, seed: int, count: int = 8) -> list[Batch]:
    """The first `count` batches as training sees them: augmented, on the device it runs on."""
    device, generator = training_device(), torch.Generator()
    batches = [mapped(batch, lambda tensor: tensor.to(device)) for batch in islice(train(1), count)]
    if augment is None:
        return batches
    return [augment(b, generator.manual_seed(seed_of(seed, number))) for number, b in enumerate(batches)]


def with_targets(train: Callable[[int], Batches], teacher: nn.Module) -> Shuffled:
    """The training samples with the teacher's outputs beside them.

    Raises:
        RecipeError: the batches come from a function, so that nobody knows them yet.
    """
    if not isinstance(train, Shuffled):
        raise RecipeError("cache_teacher goes with batches that are known from the start, not with a function")
    parts = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(train.count), train.batch_size):
            batch = mapped(train.samples, lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]
            parts.append(output_tensor(call(teacher, batch)).cpu())
    target, samples = torch.cat(parts), train.samples
    if isinstance(samples, Mapping):
        train.samples = {**samples, _TARGET: target}
    else:
        train.samples = (inputs_of(samples)[0][0], labels_of(samples), target)
    return train


def without_target(batch: Batch) -> tuple[Batch, Tensor]:
    """A batch of `with_targets` as it was, and the teacher's outputs in it."""
    if isinstance(batch, Mapping):
        return {name: x for name, x in batch.items() if name != _TARGET}, batch[_TARGET]
    inputs, labels, target = batch
    assert isinstance(target, Tensor)
    return (inputs, labels), target
