"""Where training runs: one process or many, on CPUs or GPUs, with one result."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.batches import Batch, mapped, size_of
from lowbit.errors import TrainingError

Precision: TypeAlias = Literal["float32", "bf16", "fp16"]
PRECISIONS: dict[Precision, str] = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}  # as Accelerate calls them


def slice_of(batch: Batch, process: int, processes: int) -> tuple[Batch, float]:
    """A process's slice of a batch, and its share of the samples."""
    if processes == 1:
        return batch, 1.0
    size = size_of(batch)
    start, end = size * process // processes, size * (process + 1) // processes
    if size < processes:
        raise TrainingError(f"a batch of {size} samples is too small for {processes} processes; leave it out")
    return mapped(batch, lambda tensor: tensor[start:end]), (end - start) / size


def sum_over_processes(parameters: list[nn.Parameter], value: Tensor) -> Tensor:
    """Replace every gradient by its sum over the processes, all in one message; return the sum of `value`."""
    missing = [parameter.grad is None for parameter in parameters]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    present = value.new_tensor([float(not m) for m in missing])
    message = torch.cat([*(g.flatten() for g in gradients), present, value.reshape(1)])
    torch.distributed.all_reduce(message)
    *sums, present, value = torch.split(message, [*(g.numel() for g in gradients), len(parameters), 1])
    for index, (parameter, gradient, total) in enumerate(zip(parameters, gradients, sums, strict=True)):
        if not missing[index] or bool(present[index]):  # what no process used keeps no gradient, as with one process
            parameter.grad = gradient.copy_(total.view_as(gradient))
    return value[0]


@contextlib.contextmanager
def accelerator_of(precision: Precision) -> Iterator[Any]:
    """An Accelerator of this precision, whatever others there are: they share their state, which is put back."""
    if torch.distributed.is_available():
        # Loaded while there is no process group yet: a default argument in it would hold the group, and so its threads,
        # until the interpreter ends, where one that still has a tensor to let go aborts the process.
        importlib.import_module("torch.distributed.nn.functional")
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState, GradientState, PartialState  # type: ignore[import-untyped]
    from accelerate.utils import GradientAccumulationPlugin  # type: ignore[import-untyped]

    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        cpu = not torch.accelerator.is_available()  # else processes on CPUs would not find each other
        found = _is_shared()
        device = PartialState(cpu=cpu).device.type
        if not found and _is_shared() and torch.distributed.get_backend() == "gloo":
            atexit.register(_leave)
        if precision == "fp16" and device != "cuda":
            raise TrainingError(f"fp16 trains on CUDA devices only, got {device}; use bf16 or float32")
        # all said outright, or variables that `accelerate launch` sets would decide
        yield Accelerator(
            cpu=cpu,
            mixed_precision=PRECISIONS[precision],
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)


def _is_shared() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave() -> None:
    """End the process group that training began, if nobody has: its threads must not outlive the interpreter."""
    if _is_shared():
        torch.distributed.destroy_process_group()


def training_device() -> torch.device:
    """Where `fit` trains: this process's GPU if there are some, else the CPU."""
    with accelerator_of("float32") as accelerator:
        device: torch.device = accelerator.device
        return device


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def of_first_process(value: float, accelerator: Any) -> float:
    """The first process's value, in every process."""
    if accelerator.num_processes == 1:
        return value
    message = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(message, src=0)
    return float(message)


def mean_over_processes(values: list[float]) -> list[float]:
    """The mean of each value over the processes, in every process."""
    if not _is_shared():
        return values
    message = torch.tensor(values, dtype=torch.float64, device=training_device())
    torch.distributed.all_reduce(message)
    return list((message / torch.distributed.get_world_size()).tolist())


def follow_first_process(model: nn.Module, accelerator: Any) -> None:
    """Start every process from the same weights."""
    if accelerator.num_processes > 1:
        for tensor in model.state_dict().values():
            if isinstance(tensor, Tensor):  # else what a module itself adds, which follows from tensors
                torch.distributed.broadcast(tensor, src=0)


@contextlib.contextmanager
def whole_batch_norms(model: nn.Module, processes: int) -> Iterator[None]:
    """Let the BatchNorms of a model see the slices of all processes while they train."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    norms = norms if processes > 1 else []
    for norm in norms:
        norm.forward = types.MethodType(_whole_batch_norm, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _whole_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm `[n, c, ...]` with mean and variance over all processes; torch's own works on GPUs only."""
    if not norm.training:
        alone: Tensor = type(norm).forward(norm, x)
        return alone
    wide, axes, shape = x.float(), [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    sums = _summed(torch.cat([wide.sum(axes), wide.new_tensor([x.numel() / x.shape[1]])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centered = wide - mean.reshape(shape)
    variance = _summed(centered.square().sum(axes)) / count
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        channels = x.shape[1]  # all, but in a network whose widths are searched
        norm.running_mean[:channels].lerp_(mean.detach(), share)
        norm.running_var[:channels].lerp_(variance.detach() * count / (count - 1).clamp(min=1), share)
    result = centered * torch.rsqrt(variance + norm.eps).reshape(shape)
    if norm.weight is not None:
        result = result * norm.weight[: x.shape[1]].reshape(shape)
    if norm.bias is not None:
        result = result + norm.bias[: x.shape[1]].reshape(shape)
    return result.to(x.dtype)


def _summed(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, which passes back the sum of their gradients."""
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)
