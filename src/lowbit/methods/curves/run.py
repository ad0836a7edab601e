"""The verb: give a regressor a curve output, and what came of it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, Batches, call, labels_of, output_tensor, outputs_of
from lowbit.errors import DataError, RecipeError, TrainingWarning
from lowbit.methods.curves.choose import Choice, choose_path
from lowbit.methods.curves.codec import Codec, TransformName, range_of
from lowbit.methods.curves.fit import HeadFit, PointLoss, fit_head, target_of
from lowbit.methods.curves.heads import HeadsName, wrap_head
from lowbit.methods.curves.paths import Fold, Moore, Path, Snake, parse_path
from lowbit.recipe import Recipe
from lowbit.training.samples import Augment

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

_ROOM = 0.01  # of the range, at either end, where it is found in the data
_WORSE = 1.5  # times the direct model's error
_MEASURED = 16  # batches that a path is chosen by


@dataclass(frozen=True)
class CurveOutput:
    """What became of an output. `codec` is None where the direct one stays, and `choice` says why.

    `choice` is None where the path was given, `fit` where nothing was trained: for a fold, or a direct output.
    """

    codec: Codec | None
    choice: Choice | None
    fit: HeadFit | None

    def __str__(self) -> str:
        path = f"{self.codec.path}" if self.codec else "a direct output"
        return "; ".join([str(self.choice or path), *([str(self.fit)] if self.fit else [])])


def curve_output(
    model: nn.Module,
    batches: Batches | Callable[[int], Batches],
    recipe: Recipe | None = None,
    *,
    path: Path | str | None = None,
    low: float | tuple[float, ...] | None = None,
    high: float | tuple[float, ...] | None = None,
    transform: TransformName = "linear",
    clip_targets: bool | None = None,
    labels: bool | None = None,
    heads: HeadsName = "shared",
    head: str | None = None,
    calibration: Batches | None = None,
    epochs: int = 10,
    loss: PointLoss = "points",
    noise: float = 0.0,
    held_out: Batches | None = None,
    batch_size: int = 64,
    augment: Augment | None = None,
    folder: str | FilePath | None = None,
    seed: int = 0,
    progress: bool = True,
    **fitting: Unpack[Fitting],
) -> tuple[nn.Module, CurveOutput]:
    """A copy of a direct regressor that returns points on a path, trained, or as it was where no path serves it.

    Quantize the result as any model, then put the decoder behind it: ``attach_decoder(student, Decoder(codec))``.

    Args:
        model: returns quantities `[N, T, ...]` straight from its last layer; float, in eval mode.
        batches: inputs with targets, or inputs alone, in any batch form; see `fit_head`.
        recipe: how the network will be quantized; only needed to choose a path.
        path: such as ``snake8``, or a `Path`. None chooses a snake by the noise, or refuses, see `choose_path`.
        low, high: the range, one for all quantities or one each. By default that of the targets in `batches`, and a
            hundredth more at either end.
        transform: what is spread evenly along the path.
        clip_targets: whether targets outside the range count as its ends. By default they do where the range was found
            here or the model is the teacher, and are an error where the range was given.
        labels: whether the batches hold targets; else `model` is the teacher. By default as the first batch has it.
        heads, head: see `wrap_head`.
        calibration: inputs, with targets if `labels`, that a path is chosen by, best others than the model was trained
            on; by default the first of `batches`.
        epochs, loss, noise, held_out, batch_size, augment, folder, seed, progress, fitting: see `fit_head`.

    Raises:
        RecipeError: no recipe to choose a path with, a path that does not exist, or options that do not fit.
        DataError: no targets, NaN, a constant, targets outside a range that was given, or a model that returns `[N]`.
        LayerError: the model ends in no layer that can be widened.

    References:
        https://arxiv.org/abs/2405.14024: as published is ``path="hilbert3"``, ``heads="published"``,
        ``loss="published"`` and ``noise=0.02``, on labels.
    """
    model = copy.deepcopy(model).eval()
    given = None if callable(batches) else list(batches)
    sample = list(islice(batches(1), _MEASURED)) if callable(batches) else (given or [])[:_MEASURED]
    if not sample:
        raise DataError("got no batches; give at least two")
    check_output(model, sample[0])
    labels = labels_of(sample[0]) is not None if labels is None else labels
    found_here = low is None and high is None
    if found_here:
        if isinstance(_path(path), Moore):
            raise RecipeError(f"{path} is for periodic quantities; give low and high, one period")
        everything = given if given is not None else batches(1)  # type: ignore[operator]
        low, high = _with_room(*range_of(_targets(model, everything, labels)), transform)
    if low is None or high is None:
        raise RecipeError("give both low and high, or neither to find the range in the targets")
    clip = clip_targets if clip_targets is not None else found_here or not labels
    codec = Codec(low, high, _path(path), transform, clip=clip)
    choice = None
    if path is None:
        if recipe is None:
            raise RecipeError("a path is chosen by the noise of the quantized network; give a recipe, or a path")
        measured = sample if calibration is None else list(calibration)
        choice = choose_path(model, measured, codec, recipe, labels=labels, head=head, progress=progress)
        if choice.codec is None:
            return model, CurveOutput(None, choice, None)
        codec = choice.codec
    wrapped = wrap_head(model, codec, heads=heads, head=head, seed=seed)
    if isinstance(codec.path, Fold):
        if fitting:
            raise RecipeError(f"{codec.path} is not trained, so {', '.join(fitting)} has no effect; leave it out")
        if labels:
            for target in _targets(model, sample, labels):
                codec.share(target)
        return wrapped, CurveOutput(codec, choice, None)
    trained, fitted = fit_head(
        wrapped,
        codec,
        given if given is not None else batches,
        teacher=None if labels else model,
        epochs=epochs,
        loss=loss,
        noise=noise,
        head=head,
        held_out=held_out,
        batch_size=batch_size,
        augment=augment,
        folder=folder,
        seed=seed,
        progress=progress,
        **fitting,
    )
    _warn_where_worse(model, trained, codec, sample, labels)
    return trained, CurveOutput(codec, choice, fitted)


def check_output(model: nn.Module, batch: Batch) -> None:
    """Refuse a model whose output is not `[N, T, ...]`.

    Raises:
        DataError: it returns `[N]`, or does not take the batch.
    """
    if outputs_of(model, [batch])[0].dim() < 2:
        raise DataError("the model returns [N]; an output needs [N, 1]: leave out the squeeze")


def _warn_where_worse(model: nn.Module, trained: nn.Module, codec: Codec, sample: list[Batch], labels: bool) -> None:
    """Warn of a head that did not learn to return points as well as the direct model returned quantities."""
    errors, steps = [0.0, 0.0], 0
    with torch.no_grad():
        for batch in sample:
            points, direct = output_tensor(call(trained, batch)), output_tensor(call(model, batch))
            wanted = codec.share(codec.nearest(target_of(batch, points, codec, None if labels else model)))
            found = codec.project(points.float())[0], codec.share(codec.nearest(direct.float()))
            errors = [
                sum_ + float(codec.shorter(one - wanted).abs().mean()) for sum_, one in zip(errors, found, strict=True)
            ]
            steps += 1
    path, direct_error = (one / steps for one in errors)
    if path > max(_WORSE * direct_error, 0.5 / codec.top):
        warnings.warn(
            f"on training data, the head that returns points is off by {path:.2%} of the range on average and the "
            f"direct model by {direct_error:.2%}: train for longer or at a higher rate, or take a shorter path than "
            f"{codec.path}",
            TrainingWarning,
            stacklevel=3,
        )


def _path(path: Path | str | None) -> Path:
    if path is None:
        return Snake()
    return parse_path(path) if isinstance(path, str) else path


def _targets(model: nn.Module, batches: Batches, labels: bool) -> Iterator[Tensor]:
    """Targets `[N, T, ...]`, batch by batch: labels, or what the model returns."""
    dimensions = 0
    for batch in batches:
        target = labels_of(batch) if labels else outputs_of(model, [batch])[0]
        if target is None:
            raise DataError("some batches have no targets; give tuples (inputs, targets), or labels=False")
        dimensions = dimensions or (outputs_of(model, [batch])[0].dim() if labels else target.dim())
        yield target.float().unsqueeze(1) if target.dim() == dimensions - 1 else target.float()


def _with_room(
    lows: tuple[float, ...], highs: tuple[float, ...], transform: TransformName
) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    """A range and a hundredth more at either end; for the logarithm and the inverse, by a factor."""
    if transform == "linear":
        room = [_ROOM * (high - low) for low, high in zip(lows, highs, strict=True)]
        low = tuple(low - more for low, more in zip(lows, room, strict=True))
        return _one_or_several(low), _one_or_several(tuple(h + more for h, more in zip(highs, room, strict=True)))
    if min(lows) <= 0:
        raise DataError(f"transform {transform!r} needs targets above 0, got {min(lows):g}")
    factors = [math.exp(_ROOM * math.log(high / low)) for low, high in zip(lows, highs, strict=True)]
    low = tuple(low / factor for low, factor in zip(lows, factors, strict=True))
    return _one_or_several(low), _one_or_several(tuple(h * factor for h, factor in zip(highs, factors, strict=True)))


def _one_or_several(numbers: tuple[float, ...]) -> float | tuple[float, ...]:
    return numbers[0] if len(numbers) == 1 else numbers
