"""What a batch is: a tensor, a tuple that begins with the input, or a dict of keyword arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.errors import CalibrationError, DataError, LowbitError

Batch: TypeAlias = "Tensor | Sequence[Tensor | None] | Mapping[str, Tensor]"
Batches: TypeAlias = "Iterable[Batch]"


def inputs_of(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments of the model: a tuple's first item, a dict without ``labels``.

    Raises:
        DataError: the batch has another form.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    array = _first_array(batch)
    if array is not None:
        raise DataError(f"got a NumPy array; use {_from_numpy(array)}")
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k != "labels"}
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        return (batch[0],), {}
    raise DataError(f"got a batch of type {type(batch).__name__}, expected a tensor, a tuple (inputs, ...) or a dict")


def _first_array(batch: object) -> np.ndarray | None:
    """The NumPy array that a batch is, or whose first it holds."""
    if isinstance(batch, Mapping):
        return next((value for value in batch.values() if isinstance(value, np.ndarray)), None)
    one = batch[0] if isinstance(batch, Sequence) and batch else batch
    return one if isinstance(one, np.ndarray) else None


def _from_numpy(array: np.ndarray) -> str:
    """What turns such an array into batches, in code; layers take float32."""
    return f"torch.from_numpy(x){'.float()' if array.dtype == np.float64 else ''}.split(64)"


def expect_batches(batches: object) -> None:
    """Refuse all samples in one tensor or array, which would be iterated sample by sample.

    Raises:
        DataError: `batches` is a tensor or a NumPy array.
    """
    if isinstance(batches, Tensor):
        raise DataError(f"expected batches, got one tensor {list(batches.shape)}; write x.split(64)")
    if isinstance(batches, np.ndarray):
        raise DataError(f"expected batches, got one NumPy array {list(batches.shape)}; write {_from_numpy(batches)}")


def finite_batches(batches: Batches) -> Iterator[Batch]:
    """The batches, one by one, each looked at.

    Raises:
        CalibrationError: a sample holds NaN or infinity; samples are counted from 0 over all batches.
        DataError: a batch has no form that there is.
    """
    before = 0
    for batch in batches:
        args, kwargs = inputs_of(batch)
        for name, x in [*(("", a) for a in args), *kwargs.items()]:
            if not isinstance(x, Tensor) or not x.is_floating_point() or bool(x.isfinite().all()):
                continue
            worst = before + int((~x.isfinite()).nonzero()[0, 0]) if x.dim() else before
            which = f"sample {worst}" + (f", input {name!r}," if name else "")
            raise CalibrationError(f"{which} holds NaN or infinity, expected finite numbers; remove it")
        before += size_of(batch)
        yield batch


def labels_of(batch: Batch) -> Tensor | None:
    """Labels of a batch: a tuple's second item, a dict's ``labels``, else None."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None


def accelerator() -> torch.device:
    """Where models run that nobody placed: the machine's accelerator, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@contextmanager
def on_accelerator(model: nn.Module) -> Iterator[torch.device]:
    """Have a model on the accelerator, where there is one, and back where it was afterwards; `call` follows it."""
    before = next((parameter.device for parameter in model.parameters()), None)
    device = accelerator()
    if before is not None and before != device:
        model.to(device)
    try:
        yield device
    finally:
        if before is not None and before != device:
            model.to(before)


def without_labels(batch: Batch) -> Tensor | dict[str, Tensor]:
    """The inputs of a batch alone: a tensor, or a dict of them."""
    args, kwargs = inputs_of(batch)
    return kwargs or args[0]


def resized(batch: Batch, size: int) -> Tensor | dict[str, Tensor]:
    """The inputs of `size` samples: the first ones of a batch, which are repeated where there are fewer."""
    rows = torch.arange(size) % size_of(batch)
    inputs = without_labels(batch)
    return inputs[rows] if isinstance(inputs, Tensor) else {name: tensor[rows] for name, tensor in inputs.items()}


def shapes_of(batch: Batch) -> str:
    """The shape of one sample, or of each of its inputs, in words: ``[1, 8, 8]``, ``input_ids [64], mask [64]``."""
    args, kwargs = inputs_of(batch)
    return ", ".join(f"{name} {list(t.shape[1:])}".strip() for name, t in [*(("", a) for a in args), *kwargs.items()])


def bytes_of(batch: Batch) -> int:
    """Memory of a batch's inputs."""
    args, kwargs = inputs_of(batch)
    return sum(tensor.numel() * tensor.element_size() for tensor in (*args, *kwargs.values()))


def mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `function` applied to each of its tensors; a list becomes a tuple."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: function(tensor) if isinstance(tensor, Tensor) else tensor for key, tensor in batch.items()}
    return tuple(function(item) if isinstance(item, Tensor) else item for item in batch)


def call(model: nn.Module, batch: Batch) -> object:
    """`model` applied to a batch, which is moved to the model's device.

    Raises:
        DataError: the model does not take it; the message holds the model's own.
    """
    first = next(itertools.chain(model.parameters(), model.buffers()), None)  # a frozen one may have buffers alone
    args, kwargs = inputs_of(batch)
    if first is not None:
        args = tuple(x.to(first.device) for x in args)
        kwargs = {name: x.to(first.device) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
    try:
        return model(*args, **kwargs)
    except LowbitError:
        raise
    except Exception as error:  # the model's own forward may raise anything
        given = [*(("", a) for a in args), *kwargs.items()]
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in given)
        if any(t.dtype == torch.float64 for _, t in given) and (first is None or first.dtype != torch.float64):
            raise DataError(
                f"{type(model).__name__} does not take float64 inputs of shape {shapes.strip()} "
                f"({files.one_line(error)}); use x.float()"
            ) from error
        raise DataError(
            f"{type(model).__name__} does not take inputs of shape {shapes.strip()} ({files.one_line(error)}); "
            "correct the data or its preprocessing"
        ) from error


def outputs_of(model: nn.Module, batches: Iterable[Batch]) -> list[Tensor]:
    """What a model returns, batch by batch, without gradients."""
    with torch.no_grad():
        return [output_tensor(call(model, batch)) for batch in batches]


def size_of(batch: Batch) -> int:
    """Number of samples in a batch."""
    args, kwargs = inputs_of(batch)
    return int(next(iter((*args, *kwargs.values()))).shape[0])


def output_tensor(output: object) -> Tensor:
    """The tensor that is compared and scored: the output itself, or its first tensor.

    Raises:
        DataError: there is none.
    """
    found = output_tensors(output)
    if not found:
        raise DataError(f"the model returns {type(output).__name__}, expected a tensor, or a tuple or dict with one")
    return found[0]


def output_tensors(output: object) -> list[Tensor]:
    """All tensors that a model returned, in its order."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, Sequence) else ()
    return [item for item in items if isinstance(item, Tensor)]
