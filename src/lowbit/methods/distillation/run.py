"""The verb: distill a student, and what came of it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from lowbit import graph
from lowbit.batches import Batches
from lowbit.errors import RecipeError, TrainingError, TrainingWarning
from lowbit.families import FamilyName
from lowbit.methods.distillation.ranges import Range, bounds_of, ranges_of
from lowbit.methods.distillation.teacher import TeacherCheck, check_teacher
from lowbit.quantization import expect_quantizers, note
from lowbit.training.keeping import Epoch
from lowbit.training.material import split, with_targets
from lowbit.training.objective import LossName, Objective, loss_for
from lowbit.training.processes import training_device
from lowbit.training.samples import Augment
from lowbit.training.students import finished, known_by, learn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

_WIDE = 10.0  # a range of PACT that diverges without gradient clipping


@dataclass(frozen=True)
class Distillation:
    """How a student was trained and what came of it.

    `before` and `after` say how well held-out outputs agree with the teacher's: the share of equal predictions for
    losses of class scores, else 1 less the squared error relative to the variance; 1 is best. `best` is 0 where no
    epoch was as good as the start, which was kept.
    """

    quantizer: FamilyName
    exact: bool
    loss: LossName
    teacher: TeacherCheck
    epochs: tuple[Epoch, ...]
    best: int
    before: float
    after: float
    ranges: tuple[Range, ...]

    def __str__(self) -> str:
        figure = ".1%" if self.loss in ("kl", "labels") else ".4f"
        kind = "trained on labels" if self.loss == "labels" else f"distilled ({self.loss})"
        way = f"{self.quantizer}{' as published' if self.exact else ''}"
        kept = f"epoch {self.best} kept" if self.best else "none as good as the start, which was kept"
        last = f"{len(self.epochs)} epochs, {kept}"
        return f"{kind} with {way}: {last}; agreement with the teacher {self.before:{figure}} -> {self.after:{figure}}"


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches | Callable[[int], Batches],
    *,
    epochs: int = 2,
    quantizer: FamilyName = "ewgs",
    exact: bool = False,
    loss: LossName | None = None,
    temperature: float = 4.0,
    features: Sequence[str] = (),
    held_out: Batches | None = None,
    batch_size: int = 128,
    augment: Augment | None = None,
    cache_teacher: bool = False,
    delta_every: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    **fitting: Unpack[Fitting],
) -> tuple[nn.Module, Distillation]:
    """A copy of `student`, trained to return what `teacher` returns, and how that went.

    Args:
        student: the result of `quantize` (with ``fold=False`` where the model has BatchNorms) and `calibrate`. What of
            it requires gradients learns; if none of its weights does, all do.
        teacher: the float model, in eval mode; it gets no gradient.
        batches: inputs in any batch form, labels or not; held in memory and shuffled. Or a function of the epoch (from
            1) that returns its batches, which are used as they come; give `held_out` then.
        epochs: how often to go through them.
        quantizer: the family of quantizers.
        exact: start and learn as published: ranges, their learning rate (a hundredth of `rate`), and delta every 10
            epochs. The granularity of the papers' weights, a range for each tensor, is for the recipe to say.
        loss: ``kl`` for class scores `[N, C, ...]`: it takes them for logits, of which only the differences within a
            sample count, so it does not keep the outputs of a regression. ``mse`` or ``cosine`` (a sample's numbers as
            one vector) for all others, ``labels`` for quantization-aware training with labels instead. By default
            ``mse`` where labels are floats or outputs cannot be class scores, else ``kl``: without labels, several
            outputs a sample are taken for class scores, so say ``mse`` for a regression.
        temperature: T of ``kl``.
        features: names of layers whose inputs the student matches too, by squared error relative to their variance.
        held_out: inputs that choose the best epoch, or with all but ``exact`` the start where none is as good; by
            default every sixteenth batch, which then trains nothing.
        batch_size: samples a step.
        augment: changes a batch at every step, see `lowbit.training.samples.crop_and_flip`; the teacher sees the same.
        cache_teacher: run the teacher once over all samples, not at each step; not together with `augment`.
        delta_every: epochs between updates of EWGS's delta; by default 1, and 10 with ``exact``.
        folder: where the log and checkpoints go; called again with the same arguments, training goes on from there.
        seed: draws the order of the samples, the augmentation and the probes.
        progress: show a bar on a terminal.
        fitting: rate, scale_rate, optimizer, weight_decay, clip, precision and others of `lowbit.training.loop.fit`.

    Raises:
        TrainingError: the student has no quantizers, the teacher is in train mode, outputs differ in shape, or the
            loss is not finite.
        DataError: no batches, outputs of the teacher that are not finite, or labels that are missing or do not fit.
        RecipeError: an option that does not exist or does not fit.
        LayerError: the student is frozen, or a name in `features` is no layer of both.
        CalibrationError: the student is not calibrated.

    Warns:
        TrainingWarning: ``kl`` was given and labels are floats, the teacher is weak, or ranges may diverge.
    """
    expect_quantizers(student, TrainingError)
    _check(teacher, loss, temperature, features, quantizer, exact, delta_every, cache_teacher, augment, fitting)
    train, held = split(batches, held_out, batch_size, seed)
    home, device = next(student.parameters()).device, training_device()
    student, teacher = copy.deepcopy(student).eval().to(device), graph.folded(teacher).to(device)
    if fitting.get("channels_last"):
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = loss_for(loss, teacher, held)
    checked = check_teacher(teacher, held, classes=loss in ("kl", "labels"), augment=augment, seed=seed)
    objective = Objective(student, teacher, loss, temperature, tuple(features), held)
    before, ranges = objective.agreement(student), bounds_of(student)
    start, at_start = copy.deepcopy(student), objective.standing(student)
    if not exact:  # which starts at 6
        _warn_of_pact(student, quantizer, fitting)
    fitted = learn(
        student,
        objective,
        with_targets(train, teacher) if cache_teacher else train,
        quantizer=quantizer,
        exact=exact,
        delta_every=delta_every,
        epochs=epochs,
        loss=objective.cached_loss if cache_teacher else None,
        augment=augment,
        about={
            **{"batch_size": batch_size, "cache_teacher": cache_teacher},
            **known_by(student, objective, train),
        },
        folder=None if folder is None else Path(folder),
        seed=seed,
        progress=progress,
        **fitting,
    )
    learned, best = ranges_of(student, held[0], ranges), fitted.best
    student = finished(student)
    after = objective.agreement(student)
    if not math.isfinite(after):
        raise TrainingError("the trained student's outputs are not finite; lower rate, or set clip")
    if not exact and all(now < then for now, then in zip(objective.standing(student), at_start, strict=True)):
        learned, best = ranges_of(start, held[0], ranges), 0
        student, after = finished(start), before
    note(student, f"distill(quantizer={quantizer}, exact={exact}, loss={loss}, epochs={epochs}, seed={seed})")
    result = Distillation(quantizer, exact, loss, checked, fitted.epochs, best, before, after, learned)
    return student.to(home), result


def _check(
    teacher: nn.Module,
    loss: LossName | None,
    temperature: float,
    features: Sequence[str],
    quantizer: FamilyName,
    exact: bool,
    delta_every: int | None,
    cache_teacher: bool,
    augment: Augment | None,
    fitting: Fitting,
) -> None:
    """Refuse what does not exist, or would have no effect."""
    if any(module.training for module in teacher.modules()):
        raise TrainingError("the teacher is in train mode, where its outputs change; call teacher.eval() first")
    for what, given, known in (("loss", loss, LossName), ("quantizer", quantizer, FamilyName)):
        if given is not None and given not in get_args(known):
            raise RecipeError(f"{what} {given!r} is unknown; expected one of {', '.join(get_args(known))}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise RecipeError(f"temperature is {temperature}, expected a positive number; the paper has 4")
    if delta_every is not None and (quantizer != "ewgs" or delta_every < 1):
        raise RecipeError(f"delta_every is {delta_every}, expected at least 1, and only with quantizer 'ewgs'")
    if features and loss == "labels":
        raise RecipeError("features are the teacher's, and loss 'labels' has no teacher; leave them out")
    if exact and "scale_rate" in fitting:
        raise RecipeError("with exact, ranges learn at a hundredth of rate, and scale_rate has no effect; leave it out")
    if cache_teacher and (augment is not None or features or loss == "labels"):
        raise RecipeError(
            "cache_teacher keeps one output a sample, which goes without augment, features and loss 'labels'; "
            "leave one or the other out"
        )


def _warn_of_pact(student: nn.Module, quantizer: FamilyName, fitting: Fitting) -> None:
    """Warn of a wide range that learns from all that lies outside, which diverges without clipping."""
    wide = [n for n, (_, high) in bounds_of(student).items() if high > _WIDE and not n.endswith("weight_quantizer")]
    if quantizer == "pact" and wide and fitting.get("clip") is None:
        warnings.warn(
            f"PACT learns {len(wide)} ranges beyond {_WIDE:g} ({', '.join(wide[:3])}), which can diverge; set clip=1.0",
            TrainingWarning,
            stacklevel=3,
        )
