"""Training of a network that returns points, on labels or on what a direct model returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.batches import Batch, Batches, call, labels_of, output_tensor
from lowbit.errors import DataError, RecipeError, TrainingError
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.decoders import Decoder
from lowbit.methods.curves.heads import Heads, last_layer
from lowbit.quantization import note
from lowbit.quantizer import Quantizer
from lowbit.training.keeping import Epoch
from lowbit.training.loop import fit
from lowbit.training.material import split
from lowbit.training.processes import training_device
from lowbit.training.samples import Augment
from lowbit.training.students import hash_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

PointLoss = Literal["points", "published"]
_KNEE = 0.05  # of a coordinate's range: beyond it, errors count as they are and not squared
_POINT, _DISTANCE = 1.0, 25.0  # the paper's a and b


@dataclass(frozen=True)
class HeadFit:
    """How a head was trained. `before` and `after` are mean errors on held-out data, as shares of the range.

    `best` is 0 where no epoch was better than the start, which was kept.
    """

    loss: PointLoss
    taught: bool
    epochs: tuple[Epoch, ...]
    best: int
    before: float
    after: float

    def __str__(self) -> str:
        on = "the direct model's outputs" if self.taught else "labels"
        return (
            f"trained on {on} ({self.loss}): {len(self.epochs)} epochs, epoch {self.best} kept; "
            f"mean error {self.before:.3%} -> {self.after:.3%} of the range"
        )


def fit_head(
    model: nn.Module,
    codec: Codec,
    batches: Batches | Callable[[int], Batches],
    *,
    teacher: nn.Module | None = None,
    epochs: int = 10,
    loss: PointLoss = "points",
    noise: float = 0.0,
    head: str | None = None,
    held_out: Batches | None = None,
    batch_size: int = 64,
    augment: Augment | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    **fitting: Unpack[Fitting],
) -> tuple[nn.Module, HeadFit]:
    """A copy of a float `model` that returns points, trained to return those of the targets, and how that went.

    Args:
        model: the result of `wrap_head` on a float model. (A quantized one is distilled, see `Encoded`.)
        codec: what it was wrapped with.
        batches: inputs with targets `[N, T, ...]` (or `[N]`) as labels; with a teacher, inputs alone. Held in memory
            and shuffled. Or a function of the epoch (from 1) that returns its batches; give `held_out` then.
        teacher: the direct model, in eval mode, if there are no labels. What it returns beyond the range counts as the
            range's end.
        epochs: how often to go through them.
        loss: ``points`` is the smooth L1 distance between points. ``published`` adds the error of the decoded number
            and the squared distance from the path, |q - q'| + |p - p'|^2 + 25 r^2.
        noise: standard deviation of normal noise that training adds to what the head reads.
        head: the name of the head, which only noise at a model that cannot be traced needs.
        held_out: what chooses the best epoch; by default every sixteenth batch, which then trains nothing.
        batch_size: samples a step.
        augment: changes a batch at every step; with a teacher alone.
        folder: where the log and checkpoints go; called again with the same arguments, training goes on from there.
        seed: draws the order of the samples and the augmentation.
        progress: show a bar on a terminal.
        fitting: rate, optimizer, weight_decay, clip, precision and others of `lowbit.training.loop.fit`.

    Raises:
        DataError: targets that are missing, NaN, outside the range, or of another shape than the points.
        RecipeError: an option that does not exist or does not fit.
        TrainingError: a loss that is not finite, a quantized model, or a teacher in train mode.

    References:
        https://arxiv.org/abs/2405.14024: ``published`` with a = 1 and b = 25, and a noise of 0.02. The
            loss of its task is |q - q'| here.
        Differs from the paper: without the distance from the path and the decoded error, from a trained direct model
        and with one widened layer, errors were five sixths, with a snake five eighths (`benchmarks/curves.py`).
    """
    if loss not in get_args(PointLoss):
        raise RecipeError(f"loss {loss!r} is unknown; expected one of {', '.join(get_args(PointLoss))}")
    if any(isinstance(module, (Quantizer, Decoder)) for module in model.modules()):
        raise TrainingError("fit_head trains float models without a decoder; distill a student from Encoded(teacher)")
    if teacher is not None and any(module.training for module in teacher.modules()):
        raise TrainingError("the teacher is in train mode, where its outputs change; call teacher.eval() first")
    if not noise >= 0:
        raise RecipeError(f"noise is {noise}, expected a standard deviation of 0 or more; the paper has 0.02")
    if augment is not None and teacher is None:
        raise RecipeError("augment changes inputs and not their labels; give a teacher, or augment the batches")
    train, held = split(batches, held_out, batch_size, seed)
    home, device = next(model.parameters()).device, training_device()
    model = copy.deepcopy(model).to(device)
    teacher = None if teacher is None else copy.deepcopy(teacher).to(device)
    model.eval()
    with torch.no_grad():
        targets = [target_of(batch, output_tensor(call(model, batch)), codec, teacher) for batch in held]

    def error(current: nn.Module) -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for batch, target in zip(held, targets, strict=True):
                share, _ = codec.project(output_tensor(call(current, batch)).float())
                apart = codec.shorter(share - codec.share(target))
                total, count = total + float(apart.abs().double().sum()), count + apart.numel()
        return total / count

    def of(current: nn.Module, batch: Batch) -> Tensor:
        points = output_tensor(call(current, batch)).float()
        return point_loss(points, target_of(batch, points, codec, teacher), codec, loss)

    before, start = error(model), copy.deepcopy(model.state_dict())
    about: dict[str, object] = {
        **{"codec": repr(codec), "loss": loss, "batch_size": batch_size, "taught": teacher is not None},
        "noise": noise,
        "held out": hash_of(targets),
        "start": hash_of([*model.state_dict().values()]),
    }
    with _noisy(model, noise, head):
        fitted = fit(
            model,
            of,
            train,
            epochs=epochs,
            augment=augment,
            score=lambda current: -error(current),
            about=about,
            folder=None if folder is None else Path(folder),
            seed=seed,
            progress=progress,
            **fitting,
        )
    note(model, f"fit_head({codec.path}, loss={loss}, epochs={epochs}, seed={seed})")
    after, best = error(model), fitted.best
    if not after < before:
        model.load_state_dict(start)
        after, best = before, 0
    result = HeadFit(loss, teacher is not None, fitted.epochs, best, before, after)
    return model.to(home), result


@contextmanager
def _noisy(model: nn.Module, noise: float, head: str | None) -> Iterator[None]:
    """Add normal noise to what the heads of a model read while it trains."""
    if not noise:
        yield
        return
    heads = next((module for module in model.modules() if isinstance(module, Heads)), None)
    module = heads or model.get_submodule(last_layer(model) if head is None else head)

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return tuple(x + noise * torch.randn_like(x) for x in args) if module.training else None

    handle = module.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def point_loss(points: Tensor, target: Tensor, codec: Codec, kind: PointLoss = "points") -> Tensor:
    """The loss of points `[N, channels * T, ...]` for targets `[N, T, ...]`, see `fit_head`; a scalar."""
    wanted = codec.encode(target)
    if kind == "points":
        return F.smooth_l1_loss(points, wanted, beta=_KNEE)
    share, distance = codec.project(points)
    apart = codec.shorter(share - codec.share(target))
    squared = (points - wanted).square().mean() * codec.channels
    return apart.abs().mean() + _POINT * (squared + _DISTANCE * distance.square().mean())


def target_of(batch: Batch, points: Tensor, codec: Codec, teacher: nn.Module | None = None) -> Tensor:
    """What points of a batch should stand for, `[N, T, ...]`: its labels, or what the teacher returns.

    Raises:
        DataError: no labels, or labels of another shape.
    """
    if teacher is not None:
        with torch.no_grad():
            return codec.nearest(output_tensor(call(teacher, batch)).float())
    labels = labels_of(batch)
    if labels is None:
        raise DataError("batches have no targets; give tuples (inputs, targets), or a teacher")
    return shaped(labels.to(points.device), (points.shape[0], points.shape[1] // codec.channels, *points.shape[2:]))


def shaped(labels: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Labels as targets of a shape `[N, T, ...]`; those of a single quantity may come as `[N, ...]`.

    Raises:
        DataError: they have another shape.
    """
    target = labels.float()
    target = target.unsqueeze(1) if target.dim() == len(wanted) - 1 else target
    if tuple(target.shape) != wanted:
        raise DataError(f"targets are {list(labels.shape)}, expected {list(wanted)}; correct the labels")
    return target
