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

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, Batches, mapped, size_of
from lowbit.errors import TrainingError
from lowbit.progress import counted
from lowbit.quantizer import Quantizer
from lowbit.training.keeping import Counts, Epoch, Fitted, Keeper, described
from lowbit.training.processes import (
    PRECISIONS,
    Precision,
    accelerator_of,
    follow_first_process,
    of_first_process,
    own_random_numbers,
    slice_of,
    sum_over_processes,
    whole_batch_norms,
)
from lowbit.training.samples import Augment, drawn, length_of, repeatable, seed_of

Loss: TypeAlias = "Callable[[nn.Module, Batch], Tensor]"
Optimizer: TypeAlias = Literal["adam", "sgd"]
_CHECK_EVERY = 20  # steps between looks at the loss on a GPU, each of which waits for it


class Fitting(TypedDict, total=False):
    """Keywords of `fit` that methods pass on as they come."""

    rate: float
    scale_rate: float
    optimizer: Optimizer
    weight_decay: float
    warmup: float
    clip: float | None
    precision: Precision
    channels_last: bool
    save_every: int


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Batches | Callable[[int], Batches],
    *,
    epochs: int,
    rate: float = 1e-3,
    scale_rate: float = 1e-2,
    rates: Mapping[nn.Parameter, float] | None = None,
    optimizer: Optimizer = "adam",
    weight_decay: float = 0.0,
    warmup: float = 0.03,
    clip: float | None = None,
    precision: Precision = "float32",
    channels_last: bool = False,
    augment: Augment | None = None,
    score: Callable[[nn.Module], float] | None = None,
    before_epoch: Callable[[int], None] | None = None,
    after_step: Callable[[Tensor], None] | None = None,
    about: Mapping[str, object] | None = None,
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
        rates: of single parameters, where they are not to follow from the two above.
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
        after_step: called after each optimizer step with the loss of the whole batch, a scalar, without gradients.
        about: names and values of all that these arguments do not say: data, loss, start of the model.
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
    if not (rate >= 0 and scale_rate >= 0 and weight_decay >= 0 and 0 <= warmup < 1 and (clip is None or clip > 0)):
        raise TrainingError(
            f"got rate={rate}, scale_rate={scale_rate}, weight_decay={weight_decay}, warmup={warmup} and clip={clip}; "
            "expected clip above 0, warmup from 0 to 1, the others at least 0"
        )
    if optimizer not in _OPTIMIZERS or precision not in PRECISIONS:
        known = f"{' or '.join(_OPTIMIZERS)}, and {', '.join(PRECISIONS)}"
        raise TrainingError(f"got optimizer {optimizer!r} and precision {precision!r}; use {known}")
    options: dict[str, object] = {
        **(about or {}),
        **{"epochs": epochs, "rate": rate, "scale_rate": scale_rate, "rates": sorted((rates or {}).values())},
        **{"optimizer": optimizer, "weight_decay": weight_decay},
        **{"warmup": warmup, "clip": clip, "precision": precision, "channels_last": channels_last, "seed": seed},
        **{"augment": "none" if augment is None else "given", "score": "none" if score is None else "given"},
        **{f"parameter '{name}'": described(parameter) for name, parameter in model.named_parameters()},
    }
    batches = repeatable(batches, epochs)
    with (
        accelerator_of(precision) as accelerator,
        own_random_numbers(accelerator.device),
        whole_batch_norms(model, accelerator.num_processes),
    ):
        model.to(accelerator.device)
        follow_first_process(model, accelerator)
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = parameter_groups(model, rate, scale_rate, rates or {}, weight_decay)
        prepared = accelerator.prepare_optimizer(_OPTIMIZERS[optimizer](groups))
        keeper = Keeper(model, prepared, accelerator, options, folder)
        counts = keeper.resume()
        counts.length = length_of(batches, counts.length, folder)
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
    model: nn.Module, rate: float, scale_rate: float, rates: Mapping[nn.Parameter, float], weight_decay: float
) -> list[dict[str, Any]]:
    """What learns at which rate: weights, biases and norms, and each scale and zero point of a quantizer.

    Raises:
        TrainingError: nothing learns.
    """
    groups = [_group([parameter], own) for parameter, own in rates.items()]
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    of_quantizers = [(n, p) for q in quantizers for n, p in q.named_parameters(recurse=False) if p.requires_grad]
    taken = {id(p) for p in (*rates, *(parameter for _, parameter in of_quantizers))}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups.append(_group([p for p in rest if p.dim() > 1], rate, weight_decay))
    groups.append(_group([p for p in rest if p.dim() <= 1], rate))
    for name, parameter in of_quantizers:
        size = 1.0 if name == "zero_point" else float(parameter.detach().abs().mean())
        if parameter not in rates:
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
    after_step: Callable[[Tensor], None] | None
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
            batch = self.augment(batch, self.generator.manual_seed(seed_of(self.seed, epoch, number)))
        part, weight = slice_of(batch, self.accelerator.process_index, self.accelerator.num_processes)
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
            value = sum_over_processes(self.parameters, value)
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        if self.after_step is not None:
            with torch.no_grad():
                self.after_step(value)
        return value

    def reseed(self, epoch: int, number: int, process: int = 0) -> None:
        """Seed torch's generators for a step; dropout masks of other processes are others."""
        seed = seed_of(self.seed, epoch, number, process)
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _moved(self, tensor: Tensor) -> Tensor:
        images = self.channels_last and tensor.dim() == 4 and tensor.is_floating_point()
        layout = torch.channels_last if images else torch.preserve_format
        return tensor.to(self.accelerator.device, non_blocking=True, memory_format=layout)


@dataclass
class _Trainer:
    """The loop over the steps of an epoch, and what lies between two epochs."""

    step: _Step
    keeper: Keeper
    counts: Counts
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
        for batch in drawn(batches, epoch, counts.step, self.step.reseed):
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
                points = of_first_process(float(score(model)), self.step.accelerator)
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
    """Whether a score is as good as the best so far, of an epoch that learned less; any beats NaN."""
    return best is None or score >= best or (math.isnan(best) and not math.isnan(score))
