"""The one loop that trains: on Hugging Face Accelerate, safe to kill, the same result however often it was resumed.

A method gives `fit` a model, batches and a loss; the loop does the rest. A resumed run equals one that was never
interrupted, on the CPU bit for bit. Two things make it so: every random number of a step (order, augmentation, dropout)
follows from (seed, epoch, step) alone, so a checkpoint holds no generator; and a checkpoint is one file, replaced in
one move, with all that the next step depends on.

The learning rate rises linearly over the first share `warmup` of all T steps, then falls along a cosine:

    rate(t) = rate * (t + 1) / W  for t < W = warmup * T,    rate / 2 * (1 + cos(pi * (t - W) / (T - W)))  after that

Scales and zero points of quantizers learn at rates of their own. A scale of 0.001 and one of 10 are equally wrong when
they are off by a tenth, and Adam moves each by about its learning rate, so the rate of a scale is a share of its size.

Under torchrun each process takes its slice of every batch. Gradients are summed once a step, weighted by the sizes of
the slices, and BatchNorm normalizes by the whole batch, so the result is that of one process, but for rounding, and for
dropout, whose masks differ. DistributedDataParallel would average slices of unequal size alike, and hide the
attributes of the model from the loss.

References:
    Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017,
        https://arxiv.org/abs/1608.03983, equation 5, without restarts.
    Esser et al., Learned step size quantization, 2020, https://arxiv.org/abs/1902.08153: scales without weight decay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit import files
from lowbit.batches import Batch, Batches, inputs_of, mapped, size_of
from lowbit.errors import DataError, TrainingError
from lowbit.progress import counted
from lowbit.quantizer import Quantizer

Loss: TypeAlias = "Callable[[nn.Module, Batch], Tensor]"
Augment: TypeAlias = "Callable[[Batch, torch.Generator], Batch]"
Optimizer: TypeAlias = Literal["adam", "sgd"]
Precision: TypeAlias = Literal["float32", "bf16", "fp16"]
_CHECK_EVERY = 20  # steps between looks at the loss on a GPU, each of which waits for it


class Fitting(TypedDict, total=False):
    """Keywords of `fit` that methods pass on as they come."""

    rate: float
    scale_rate: float
    absolute_scale_rate: float | None
    optimizer: Optimizer
    weight_decay: float
    warmup: float
    clip: float | None
    precision: Precision
    channels_last: bool
    save_every: int


@dataclass(frozen=True)
class Epoch:
    """One pass over the batches: `loss` is the mean over its samples, `rate` the learning rate of its last step."""

    number: int
    loss: float
    score: float | None
    rate: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """What training did: its epochs, the number of the one whose weights the model holds, and the steps in all."""

    epochs: tuple[Epoch, ...]
    best: int
    steps: int


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Batches | Callable[[int], Batches],
    *,
    epochs: int,
    rate: float = 1e-3,
    scale_rate: float = 1e-2,
    absolute_scale_rate: float | None = None,
    optimizer: Optimizer = "adam",
    weight_decay: float = 0.0,
    warmup: float = 0.03,
    clip: float | None = None,
    precision: Precision = "float32",
    channels_last: bool = False,
    augment: Augment | None = None,
    score: Callable[[nn.Module], float] | None = None,
    before_epoch: Callable[[int], None] | None = None,
    after_step: Callable[[], None] | None = None,
    fingerprint: str = "",
    folder: Path | None = None,
    save_every: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Fitted:
    """Train `model` in place; it ends in eval mode on the device it was trained on, with the weights of the best epoch.

    Args:
        model: its parameters that require gradients learn.
        loss: takes model and batch, both on one device, and returns the mean over the batch's samples, a scalar.
        batches: can be iterated once an epoch, or is called with the number of the epoch, from 1. The order of a
            shuffling DataLoader follows from `seed`, unless it has a generator of its own, which no resuming rewinds.
        epochs: passes over the batches.
        rate: highest learning rate of weights, biases and norms.
        scale_rate: of the scales of quantizers, as a share of their mean size at the start; of learned zero points,
            which count grid steps, as it is.
        absolute_scale_rate: the same rate for all of these instead, as papers have it.
        optimizer: Adam, or SGD with Nesterov momentum of 0.9.
        weight_decay: of parameters with two dimensions or more; of no part of a quantizer.
        warmup: share of the steps in which the rate rises.
        clip: largest norm of the gradient of all parameters.
        precision: that of the loss; fp16 on a GPU only. Weights stay float32.
        channels_last: the memory format of 4-D weights and inputs.
        augment: changes a batch, on the model's device, with random numbers of the (CPU) generator alone.
        score: judges the model after each epoch, in eval mode without gradients; higher is better. Without it the last
            epoch is the best.
        before_epoch: called with the epoch's number after `model.train()`, but not again if the epoch is resumed; the
            modes of modules and the `requires_grad` that it sets are kept, all else has to be in the state dict.
        after_step: called after each optimizer step, without gradients.
        fingerprint: names all that these arguments do not: data, loss, start of the model.
        folder: keeps `log.jsonl` and `checkpoint.pt`; a run that was killed goes on there, a finished one is read. All
            processes have to see it, one writes.
        save_every: steps between checkpoints, besides the one after each epoch.
        seed: of all random numbers; torch's own generators are left as they were.
        progress: whether to show a bar on a terminal.

    Raises:
        TrainingError: no batches, nothing that learns, a folder of another run, or a loss that is not finite: the model
            then has the weights of the last checkpoint, in memory where there is no folder.
        DataError: a checkpoint that is damaged or cannot be written.
    """
    if epochs < 1 or save_every < 1:
        raise TrainingError(f"got epochs={epochs} and save_every={save_every}, expected at least 1 of each")
    if optimizer not in _OPTIMIZERS or precision not in _PRECISIONS:
        known = f"{' or '.join(_OPTIMIZERS)}, and {', '.join(_PRECISIONS)}"
        raise TrainingError(f"got optimizer {optimizer!r} and precision {precision!r}; use {known}")
    options: dict[str, object] = {
        **{"fingerprint": fingerprint, "epochs": epochs, "rate": rate, "scale_rate": scale_rate},
        **{"absolute_scale_rate": absolute_scale_rate, "optimizer": optimizer, "weight_decay": weight_decay},
        **{"warmup": warmup, "clip": clip, "precision": precision, "channels_last": channels_last, "seed": seed},
        **{"augment": "none" if augment is None else "given", "score": "none" if score is None else "given"},
        **{f"parameter '{name}'": _described(parameter) for name, parameter in model.named_parameters()},
    }
    batches = _repeatable(batches, epochs)
    with (
        _accelerator(precision) as accelerator,
        _own_random_numbers(accelerator.device),
        _whole_batch_norms(model, accelerator.num_processes),
    ):
        model.to(accelerator.device)
        _follow_first_process(model, accelerator)
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = parameter_groups(model, rate, scale_rate, absolute_scale_rate, weight_decay)
        prepared = accelerator.prepare_optimizer(_OPTIMIZERS[optimizer](groups))
        keeper = _Keeper(model, prepared, accelerator, options, folder)
        counts = keeper.resume()
        counts.length = _length(batches, counts.length, folder)
        step = _Step(model, loss, prepared, accelerator, clip, channels_last, augment, after_step, seed)
        total = epochs * counts.length
        trainer = _Trainer(step, keeper, counts, rate, partial(rate_share, steps=total, warmup=warmup), save_every)
        show = progress and accelerator.is_main_process
        with counted(total, "training", done=counts.steps, show=show) as advance:
            for epoch in range(len(counts.epochs) + 1, epochs + 1):
                trainer.train(epoch, batches, before_epoch, advance)
                trainer.close(epoch, score)
        keeper.load_best()
        model.eval()
    return Fitted(tuple(counts.epochs), counts.best, counts.steps)


def rate_share(step: int, steps: int, warmup: float) -> float:
    """Learning rate of step 0 to `steps` - 1, as a share of the highest; 0 after the last."""
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def parameter_groups(
    model: nn.Module, rate: float, scale_rate: float, absolute_scale_rate: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """What learns at which rate: weights, biases and norms, and each scale and zero point of a quantizer.

    Raises:
        TrainingError: nothing learns.
    """
    groups: list[dict[str, Any]] = []
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    of_quantizers = [(n, p) for q in quantizers for n, p in q.named_parameters(recurse=False) if p.requires_grad]
    taken = {id(parameter) for _, parameter in of_quantizers}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups.append(_group([p for p in rest if p.dim() > 1], rate, weight_decay))
    groups.append(_group([p for p in rest if p.dim() <= 1], rate))
    if absolute_scale_rate is not None:
        groups.append(_group([p for _, p in of_quantizers], absolute_scale_rate))
    else:
        for name, parameter in of_quantizers:
            size = 1.0 if name == "zero_point" else float(parameter.detach().abs().mean())
            groups.append(_group([parameter], scale_rate * size))
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError("no parameter requires gradients, so nothing would learn; call requires_grad_() on some")
    return groups


def _group(parameters: list[nn.Parameter], rate: float, weight_decay: float = 0.0) -> dict[str, Any]:
    return {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": weight_decay}


_OPTIMIZERS: dict[Optimizer, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
_PRECISIONS: dict[Precision, str] = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}  # as Accelerate calls them


# Batches


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
        generator = torch.Generator().manual_seed(_number(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        for rows in torch.split(order, self.batch_size)[start : len(self)]:
            yield mapped(self.samples, lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]


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


def _repeatable(batches: Batches | Callable[[int], Batches], epochs: int) -> Batches | Callable[[int], Batches]:
    if not isinstance(batches, Iterator):
        return batches
    if epochs > 1:
        raise TrainingError(
            f"got a {type(batches).__name__}, which is used up after one of {epochs} epochs; give a list, a loader, or "
            "a function that takes the epoch's number and returns its batches"
        )
    return list(batches)


def _length(batches: Batches | Callable[[int], Batches], stored: int, folder: Path | None) -> int:
    """Number of batches in an epoch, counted in a pass over them where it is not known."""
    items = batches(1) if callable(batches) and not isinstance(batches, Sized) else batches
    try:
        known = len(items)  # type: ignore[arg-type]
    except TypeError:  # a loader over a stream has the method, but no length
        known = stored or sum(1 for _ in items)
    if stored and known != stored:
        raise _other_run(folder, "batches in an epoch", stored, known)
    if not known:
        raise TrainingError("got no batches; give at least one, and no generator that was used up before")
    return known


def _drawn(
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
        pixels: largest shift.
        flip: whether to mirror left and right.
        fill: what comes in at the borders, one number or one for each channel: what normalization makes of a black
            pixel; 0 if empty.
    """

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        images = _images(batch)
        count, channels, height, width = images.shape
        if len(fill) not in (0, 1, channels):
            raise TrainingError(f"images have {channels} channels, fill {len(fill)} numbers; give one for each channel")
        down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        if flip:
            columns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns)
        border = images.new_tensor(fill or (0.0,)).reshape(1, -1, 1, 1)
        padded = border.expand(count, channels, height + 2 * pixels, width + 2 * pixels).clone()
        padded[:, :, pixels : pixels + height, pixels : pixels + width] = images
        which = torch.arange(count)[:, None, None].to(images.device)
        rows, columns = rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
        moved = padded[which, :, rows, columns].permute(0, 3, 1, 2).contiguous()
        return mapped(batch, lambda tensor: moved if tensor is images else tensor)

    return augment


def _images(batch: Batch) -> Tensor:
    args, kwargs = inputs_of(batch)
    for tensor in (*args, *kwargs.values()):
        if tensor.dim() == 4:
            return tensor
    raise TrainingError("the batch holds no images [n, c, h, w] to crop and flip; leave `augment` out")


# One step


@dataclass
class _Step:
    """One step of the optimizer on one batch."""

    model: nn.Module
    loss: Loss
    optimizer: Any  # as Accelerate wraps it, with the types of torch.optim.Optimizer
    accelerator: Any
    clip: float | None
    channels_last: bool
    augment: Augment | None
    after_step: Callable[[], None] | None
    seed: int

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.generator = torch.Generator()

    def __call__(self, batch: Batch, epoch: int, number: int, share: float) -> Tensor:
        """Make step `number` of an epoch on the whole batch, at a share of the highest rates; return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        batch = mapped(batch, self._moved)
        if self.augment is not None:
            batch = self.augment(batch, self.generator.manual_seed(_number(self.seed, epoch, number)))
        part, weight = _slice(batch, self.accelerator.process_index, self.accelerator.num_processes)
        self.optimizer.zero_grad()
        self.reseed(epoch, number, self.accelerator.process_index)
        with self.accelerator.autocast():
            value = self.loss(self.model, part)
        if value.dim() or not value.requires_grad:
            got = f"shape {list(value.shape)}, requires_grad={value.requires_grad}"
            raise TrainingError(f"the loss is a tensor of {got}, expected a scalar that depends on what learns")
        self.accelerator.backward(value * weight)
        value = value.detach() * weight
        if self.accelerator.num_processes > 1:
            value = _sum_over_processes(self.parameters, value)
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        if self.after_step is not None:
            with torch.no_grad():
                self.after_step()
        return value

    def reseed(self, epoch: int, number: int, process: int = 0) -> None:
        """Seed torch's generators for a step; dropout masks of other processes are others."""
        seed = _number(self.seed, epoch, number, process)
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _moved(self, tensor: Tensor) -> Tensor:
        images = self.channels_last and tensor.dim() == 4 and tensor.is_floating_point()
        layout = torch.channels_last if images else torch.preserve_format
        return tensor.to(self.accelerator.device, non_blocking=True, memory_format=layout)


def _number(*parts: int) -> int:
    """A seed of 63 bits from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def _slice(batch: Batch, process: int, processes: int) -> tuple[Batch, float]:
    """A process's slice of a batch, and its share of the samples."""
    if processes == 1:
        return batch, 1.0
    size = size_of(batch)
    start, end = size * process // processes, size * (process + 1) // processes
    if size < processes:
        raise TrainingError(f"a batch of {size} samples is too small for {processes} processes; leave it out")
    return mapped(batch, lambda tensor: tensor[start:end]), (end - start) / size


def _sum_over_processes(parameters: list[nn.Parameter], value: Tensor) -> Tensor:
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


# What runs


@dataclass
class _Counts:
    """Where training stands, in plain numbers."""

    length: int = 0  # batches in an epoch
    epochs: list[Epoch] = field(default_factory=list)  # finished
    best: int = 0
    steps: int = 0  # in all
    step: int = 0  # in the epoch, as are the next three
    loss: float = 0.0  # sum over samples
    samples: int = 0
    seconds: float = 0.0
    log_size: int = 0  # bytes


@dataclass
class _Trainer:
    """The loop over the steps of an epoch, and what lies between two epochs."""

    step: _Step
    keeper: _Keeper
    counts: _Counts
    rate: float
    share: Callable[[int], float]  # of the highest rate, in a step
    save_every: int
    pending: list[tuple[int, int, Tensor]] = field(default_factory=list)  # step, samples, loss: not yet looked at

    def train(
        self,
        epoch: int,
        batches: Batches | Callable[[int], Batches],
        before_epoch: Callable[[int], None] | None,
        advance: Callable[[str], None],
    ) -> None:
        """Make the steps of an epoch that are still to be made."""
        counts, started = self.counts, time.monotonic() - self.counts.seconds
        if not counts.step:
            self.step.model.train()
            if before_epoch is not None:
                self.step.reseed(epoch, 0)
                before_epoch(epoch)
        looks_each = 1 if self.step.accelerator.device.type == "cpu" else _CHECK_EVERY
        for batch in _drawn(batches, epoch, counts.step, self.step.reseed):
            value = self.step(batch, epoch, counts.step, self.share(counts.steps))
            counts.steps, counts.step = counts.steps + 1, counts.step + 1
            self.pending.append((counts.steps, size_of(batch), value))
            counts.seconds = time.monotonic() - started
            saves, text = counts.steps % self.save_every == 0, ""
            if saves or len(self.pending) >= looks_each:
                self.look(epoch)
                text = f"epoch {epoch}  loss {counts.loss / counts.samples:.4g}"
            advance(text)
            if saves:
                self.keeper.log(counts, {"step": counts.steps, "epoch": epoch, **self.figures()})
                self.keeper.save(counts)
        self.look(epoch)
        if not counts.step:
            raise TrainingError(f"epoch {epoch} had no batches; give an iterable that can be repeated")

    def figures(self) -> dict[str, float | None]:
        """Loss of the epoch so far, rate and seconds, for the log."""
        counts = self.counts
        rate = self.rate * self.share(counts.steps - 1)
        return {"loss": counts.loss / counts.samples, "rate": rate, "seconds": counts.seconds}

    def look(self, epoch: int) -> None:
        """Add up the losses since the last look.

        Raises:
            TrainingError: one is not finite; the model has the weights of the last checkpoint again.
        """
        values = torch.stack([value for *_, value in self.pending]).tolist() if self.pending else []
        for (step, size, _), value in zip(self.pending, values, strict=True):
            if not math.isfinite(value):
                raise self.keeper.broken(f"the loss is {value}", epoch, step, self.rate * self.share(step - 1))
            self.counts.loss += value * size
            self.counts.samples += size
        self.pending.clear()

    def close(self, epoch: int, score: Callable[[nn.Module], float] | None) -> None:
        """Judge the model after an epoch, and save."""
        counts, model = self.counts, self.step.model
        points = None
        if score is not None:
            model.eval()
            self.step.reseed(epoch, counts.step)
            with torch.no_grad():
                points = _of_first_process(float(score(model)), self.step.accelerator)
        figures = self.figures()
        counts.epochs.append(Epoch(epoch, score=points, **figures))  # type: ignore[arg-type]
        if points is None or not counts.best or _better(points, counts.epochs[counts.best - 1].score):
            counts.best = epoch
            self.keeper.keep_best()
        shown = points if points is not None and math.isfinite(points) else None  # JSON knows no NaN
        self.keeper.log(counts, {"step": counts.steps, "epoch": epoch, **figures, "score": shown})
        counts.step, counts.loss, counts.samples, counts.seconds = 0, 0.0, 0, 0.0
        self.keeper.save(counts)


def _better(score: float, best: float | None) -> bool:
    """Whether a score beats the best so far; any beats NaN."""
    return best is None or score > best or (math.isnan(best) and not math.isnan(score))


# What is kept


@dataclass
class _Keeper:
    """What a run keeps, in memory and in its folder: log, last checkpoint, weights of the best epoch."""

    model: nn.Module
    optimizer: Any
    accelerator: Any
    options: dict[str, object]
    folder: Path | None

    def __post_init__(self) -> None:
        self.writes = self.folder is not None and self.accelerator.is_main_process
        self.where = "the start"
        self.last = _copied(self.model.state_dict())
        self.best: dict[str, Any] | None = None

    def resume(self) -> _Counts:
        """Go to the last checkpoint in the folder, if there is one.

        Raises:
            TrainingError: it is of another run.
            DataError: it is damaged.
        """
        counts = _Counts()
        if self.folder is None:
            return counts
        path = self.folder / "checkpoint.pt"
        if path.exists():
            with files.reading(path), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle protocol of a damaged file
                stored = torch.load(path, map_location="cpu", weights_only=True)
                self._compare(stored["options"])
                counts = _Counts(**{**stored["counts"], "epochs": [Epoch(**e) for e in stored["counts"]["epochs"]]})
                self._restore(stored)
                self.where, self.last, self.best = f"step {counts.steps}", stored["weights"], stored["best"]
        if self.writes:
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / "log.jsonl").open("ab") as log:
                    log.truncate(min(counts.log_size, log.tell()))
        return counts

    def _compare(self, there: dict[str, object]) -> None:
        for name in {**self.options, **there}:
            if self.options.get(name) != there.get(name):
                raise _other_run(self.folder, name, there.get(name), self.options.get(name))

    def _restore(self, stored: dict[str, Any]) -> None:
        _load(self.model, stored["weights"])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(stored["scaler"])
        for name, module in self.model.named_modules():
            module.training = name not in stored["in_eval_mode"]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in stored["without_gradient"])

    def save(self, counts: _Counts) -> None:
        """Keep all that the next step depends on.

        Raises:
            TrainingError: weights are not finite; the checkpoint before stays.
        """
        learned = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        if not bool(torch.stack([p.isfinite().all() for p in learned]).all()):
            raise self.broken("weights are not finite", len(counts.epochs) + bool(counts.step), counts.steps)
        scaler = self.accelerator.scaler
        self.where, self.last = f"step {counts.steps}", _copied(self.model.state_dict())
        if not self.writes or self.folder is None:
            return
        state = {
            "options": self.options,
            "counts": asdict(counts),
            "weights": self.last,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "in_eval_mode": [name for name, module in self.model.named_modules() if not module.training],
            "without_gradient": [name for name, p in self.model.named_parameters() if not p.requires_grad],
        }
        with files.replacing(self.folder / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def keep_best(self) -> None:
        """Remember the weights as they are as those of the best epoch."""
        self.best = _copied(self.model.state_dict())

    def load_best(self) -> None:
        """Give the model the weights of the best epoch."""
        assert self.best is not None
        _load(self.model, self.best)

    def log(self, counts: _Counts, row: dict[str, object]) -> None:
        """Write a line of the log, and how long the log is now."""
        if self.writes and self.folder is not None:
            path = self.folder / "log.jsonl"
            with _writing(path), path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
                counts.log_size = file.tell()

    def broken(self, what: str, epoch: int, step: int, rate: float | None = None) -> TrainingError:
        """The error of training that went astray, with the model put back to where it was good."""
        _load(self.model, self.last)
        self.model.eval()
        at = "" if rate is None else f" at learning rate {rate:.3g}"
        return TrainingError(
            f"{what} in epoch {epoch}, step {step}{at}; lower `rate` or `scale_rate`, or set `clip`"
            f"{', and give another folder' if self.folder else ''} (the model holds the weights of {self.where})"
        )


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().cpu().clone() if isinstance(v, Tensor) else v for name, v in state.items()}


def _load(model: nn.Module, weights: dict[str, Any]) -> None:
    """Load a state dict, with buffers that are None at one time of the training and tensors at another."""
    for name in {**model.state_dict(), **weights}:
        owner, _, key = name.rpartition(".")
        buffers = model.get_submodule(owner)._buffers
        if key in buffers and (buffers[key] is None) == (name in weights):
            buffers[key] = weights[name].clone() if name in weights else None
    model.load_state_dict(weights)


def _described(parameter: nn.Parameter) -> str:
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"{dtype}{list(parameter.shape)}{'' if parameter.requires_grad else ' fixed'}"


def _other_run(folder: Path | None, name: str, there: object, here: object) -> TrainingError:
    return TrainingError(
        f"'{folder}' holds a checkpoint of another run: {name} {there!r} there, {here!r} here; give another folder, or "
        "delete this one to train anew"
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write '{path}': {error.strerror or error}; choose a folder you may write to"
        ) from error


# Processes and devices


@contextlib.contextmanager
def _accelerator(precision: Precision) -> Iterator[Any]:
    """An Accelerator of this precision, whatever others there are: they share their state, which is put back."""
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState, GradientState, PartialState  # type: ignore[import-untyped]
    from accelerate.utils import GradientAccumulationPlugin  # type: ignore[import-untyped]

    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        cpu = not torch.accelerator.is_available()  # else processes on CPUs would not find each other
        device = PartialState(cpu=cpu).device.type
        if precision == "fp16" and device != "cuda":
            raise TrainingError(f"fp16 trains on CUDA devices only, got {device}; use bf16 or float32")
        # all said outright, or variables that `accelerate launch` sets would decide
        yield Accelerator(
            cpu=cpu,
            mixed_precision=_PRECISIONS[precision],
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)


@contextlib.contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _of_first_process(value: float, accelerator: Any) -> float:
    if accelerator.num_processes == 1:
        return value
    message = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(message, src=0)
    return float(message)


def _follow_first_process(model: nn.Module, accelerator: Any) -> None:
    """Start every process from the same weights."""
    if accelerator.num_processes > 1:
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


@contextlib.contextmanager
def _whole_batch_norms(model: nn.Module, processes: int) -> Iterator[None]:
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
        norm.running_mean.lerp_(mean.detach(), share)
        norm.running_var.lerp_(variance.detach() * count / (count - 1).clamp(min=1), share)
    result = centered * torch.rsqrt(variance + norm.eps).reshape(shape)
    if norm.weight is not None:
        result = result * norm.weight.reshape(shape)
    if norm.bias is not None:
        result = result + norm.bias.reshape(shape)
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
