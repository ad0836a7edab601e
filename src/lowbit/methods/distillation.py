"""Distillation: a low-bit student learns its float teacher's outputs through the quantizers, without a label.

The student is the teacher with quantizers in it (self-distillation). Its loss is how far its outputs lie from the
teacher's, so any inputs of the kind that the model will see can train it:

    student = lb.quantize(model, recipe, fold=False)      # BatchNorms stay while it trains
    lb.calibrate(student, batches)
    student, result = lb.distill(student, model, batches, epochs=2)

What learns how is a family of quantizers (`lowbit.families`). The loss of the paper is the Kullback-Leibler divergence
of softened probabilities,

    L = T^2 / B  sum_i sum_c p_t (log p_t - log p_s),    p = softmax(logits / T),

and nothing else: no weight between several losses is left to tune. For outputs that are no class scores there are mean
squared error and cosine distance, and features inside the network can be matched as well. `loss="labels"` is ordinary
quantization-aware training with cross-entropy, the comparison that has the same budget.

Every sixteenth batch is held out: it trains nothing, and the epoch that agrees best with the teacher on it is kept. At
the end ranges are fixed, BatchNorms folded, and the student is one like any other.

References:
    Zhao and Zhao, Self-supervised quantization-aware knowledge distillation, AISTATS 2024,
    https://arxiv.org/abs/2403.11106 (SQAKD), equations 1 to 12 and the authors' code.

Differs from the paper:
    The epoch is chosen by agreement with the teacher on held-out inputs, not by test accuracy.
    Numbers are de-quantized, activations behind a ReLU have an unsigned grid, and EWGS's delta is really updated.
    Ranges start as calibrated and learn in shares of their own size; with ``exact`` they start and learn as published.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lowbit import families, graph
from lowbit.batches import Batch, Batches, call, inputs_of, labels_of, mapped, output_tensor, outputs_of
from lowbit.errors import DataError, LayerError, RecipeError, TrainingError, TrainingWarning
from lowbit.families import Curvature, FamilyName
from lowbit.layers import weighted_layers
from lowbit.objectives import accuracy_of, agreement_of, are_classes, cosine_distance, kl_divergence
from lowbit.quantization import note, origin
from lowbit.quantizer import Quantizer
from lowbit.training.keeping import Epoch
from lowbit.training.loop import fit
from lowbit.training.samples import Augment, Shuffled

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

LossName = Literal["kl", "mse", "cosine", "labels"]
HELD_OUT = 16  # every so many batches
_TARGET = "teacher outputs"  # beside the inputs, where they are cached
_LEAST_CONFIDENCE, _LEAST_AGREEMENT, _LEAST_ACCURACY = 0.5, 0.8, 0.5  # of a teacher
_MOST_CLIPPED, _FEW_BITS = 0.5, 3
_LEAST_FACTOR = 1e-4  # of a BatchNorm that trains: at 0 it would lose its channel for good


@dataclass(frozen=True)
class TeacherCheck:
    """What to know of a teacher before it teaches.

    `confidence` is the mean of its largest class probability, `agreement` the share of its predictions that stay the
    same under augmentation, `accuracy` that on labels; each None where it does not apply. For outputs that are no class
    scores, `agreement` is 1 less the squared change relative to the outputs' variance.
    """

    confidence: float | None
    agreement: float
    accuracy: float | None
    concerns: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """The range of a quantizer before and after training (the widest of several), EWGS's delta at the end, and the
    share of held-out numbers that lie outside.
    """

    name: str
    low_before: float
    high_before: float
    low: float
    high: float
    delta: float
    clipped: float


@dataclass(frozen=True)
class Distillation:
    """How a student was trained and what came of it.

    `before` and `after` say how well held-out outputs agree with the teacher's: the share of equal predictions for
    class scores, else 1 less the squared error relative to the variance; 1 is best.
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
        figure = ".1%" if self.teacher.confidence is not None else ".4f"
        kind = "trained on labels" if self.loss == "labels" else f"distilled ({self.loss})"
        way = f"{self.quantizer}{' as published' if self.exact else ''}"
        last = f"{len(self.epochs)} epochs, epoch {self.best} kept"
        return f"{kind} with {way}: {last}; agreement with the teacher {self.before:{figure}} -> {self.after:{figure}}"


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches | Callable[[int], Batches],
    *,
    epochs: int = 2,
    quantizer: FamilyName = "ewgs",
    exact: bool = False,
    loss: LossName = "kl",
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
        student: the result of `quantize` (with ``fold=False`` where the model has BatchNorms) and `calibrate`.
        teacher: the float model, in eval mode; it gets no gradient.
        batches: inputs in any batch form, labels or not; held in memory and shuffled. Or a function of the epoch (from
            1) that returns its batches, which are used as they come; give `held_out` then.
        epochs: how often to go through them.
        quantizer: the family of quantizers.
        exact: start and learn as published: ranges, their learning rate, and delta every 10 epochs.
        loss: ``kl`` for class scores `[N, C, ...]`, ``mse`` or ``cosine`` (a sample's numbers as one vector) for all
            others, ``labels`` for quantization-aware training with labels instead.
        temperature: T of ``kl``.
        features: names of layers whose inputs the student matches too, by squared error relative to their variance.
        held_out: inputs that choose the best epoch; by default every sixteenth batch, which then trains nothing.
        batch_size: samples a step.
        augment: changes a batch at every step, see `training.crop_and_flip`; teacher and student see the same.
        cache_teacher: run the teacher once over all samples, not at each step; not together with `augment`.
        delta_every: epochs between updates of EWGS's delta; by default 1, and 10 with ``exact``.
        folder: where the log and checkpoints go; called again with the same arguments, training goes on from there.
        seed: draws the order of the samples, the augmentation and the probes.
        progress: show a bar on a terminal.
        fitting: rate, scale_rate, optimizer, weight_decay, clip, precision and others, as `training.fit` has them.

    Raises:
        TrainingError: the teacher is in train mode, outputs differ in shape, or the loss is not finite.
        DataError: no batches, or no labels for ``labels``.
        RecipeError: an option that does not exist or does not fit.
        LayerError: the student is frozen, or a name in `features` is no layer of both.
        CalibrationError: the student is not calibrated.
    """
    _check(teacher, loss, temperature)
    train, held = _split(batches, held_out, batch_size, seed)
    task = _Task(copy.deepcopy(student), graph.folded(teacher), loss, temperature, tuple(features), held)
    checked = check_teacher(teacher, held, augment=augment, seed=seed)
    if fitting.get("channels_last"):
        task.teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cache_teacher:
        train = _cached(train, task, augment)
    before, ranges = task.agreement(task.student), _bounds(task.student)
    families.begin(task.student, quantizer, held[0], exact=exact)
    if exact:
        fitting = {"absolute_scale_rate": fitting.get("rate", 1e-3) / 100, **fitting}
    fitted = fit(
        _learning(task.student),
        task.cached_loss if cache_teacher else task.loss,
        train,
        epochs=epochs,
        augment=augment,
        score=task.score,
        before_epoch=_deltas(task, quantizer, exact, epochs, delta_every, seed),
        after_step=_projection(task.student),
        fingerprint=_fingerprint(student, quantizer, exact, loss, temperature, features, batch_size),
        folder=None if folder is None else Path(folder),
        seed=seed,
        progress=progress,
        **fitting,
    )
    learned = _ranges(task, ranges)
    families.settle(task.student)
    finished = _folded(task.student.to(next(student.parameters()).device))
    after = task.agreement(finished)
    if not math.isfinite(after):
        raise TrainingError(
            f"the trained student's outputs are not finite (agreement {after}); lower rate, or set clip"
        )
    result = Distillation(quantizer, exact, loss, checked, fitted.epochs, fitted.best, before, after, learned)
    note(finished, f"distill(quantizer={quantizer}, exact={exact}, loss={loss}, epochs={epochs}, seed={seed})")
    return finished, result


def check_teacher(
    teacher: nn.Module, batches: Batches, *, augment: Augment | None = None, seed: int = 0
) -> TeacherCheck:
    """What to know of a teacher before it teaches; warns of a weak one.

    Args:
        teacher: a float model in eval mode.
        batches: inputs in any batch form; labels are used where there are some.
        augment: the change that predictions should survive; by default noise of a tenth of each input's deviation.
        seed: draws the augmentation.

    Warns:
        TrainingWarning: the teacher is less than half sure or half right, or changes its mind under augmentation more
            than every fifth time. The student will learn that, too.
    """
    generator, batches = torch.Generator().manual_seed(seed), list(batches)
    if not batches:
        raise DataError("got no batches to check the teacher with; give at least one (a list, not a used-up generator)")
    outputs = outputs_of(teacher, batches)
    agreement = agreement_of(outputs_of(teacher, [(augment or _noisy)(batch, generator) for batch in batches]), outputs)
    confidence = accuracy = None
    if all(are_classes(output) for output in outputs):
        confidence = float(torch.cat([o.softmax(1).amax(1).flatten() for o in outputs]).mean())
        accuracy = accuracy_of(outputs, labels) if (labels := _classes_in(batches)) else None
    told = {
        "its largest class probability is": (confidence, _LEAST_CONFIDENCE),
        "its predictions under augmentation agree by": (agreement, _LEAST_AGREEMENT),
        "its accuracy is": (accuracy, _LEAST_ACCURACY),
    }
    concerns = tuple(
        f"{what} {found:.2f}, expected at least {least}"
        for what, (found, least) in told.items()
        if found is not None and found < least
    )
    if concerns:
        warnings.warn(
            f"a weak teacher: {'; '.join(concerns)}; a student learns the faults too, so train the float model further "
            "or check how inputs are preprocessed",
            TrainingWarning,
            stacklevel=2,
        )
    return TeacherCheck(confidence, agreement, accuracy, concerns)


def _classes_in(batches: list[Batch]) -> list[Tensor] | None:
    """The class labels of all batches, None if one has none."""
    labels = [labels_of(batch) for batch in batches]
    found = [one for one in labels if one is not None and not one.is_floating_point()]
    return found if len(found) == len(batches) else None


def _noisy(batch: Batch, generator: torch.Generator) -> Batch:
    def noisy(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x + 0.1 * x.std() * torch.randn(x.shape, generator=generator).to(x)

    args, kwargs = inputs_of(batch)
    return {name: noisy(x) for name, x in kwargs.items()} if kwargs else noisy(args[0])


# What is learned


class _Task:
    """Student and teacher, what the loss compares, and how held-out outputs agree."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        loss: LossName,
        temperature: float,
        features: tuple[str, ...],
        held: list[Batch],
    ) -> None:
        self.student, self.teacher, self.kind, self.temperature = student, teacher, loss, temperature
        self.features, self.held = features, held
        for model in (student, teacher):
            for name in features:
                _layer(model, name)
        self.targets = outputs_of(teacher, held)
        (got,), target = outputs_of(student, held[:1]), self.targets[0]
        if got.shape != target.shape:
            raise TrainingError(
                f"the student returns {list(got.shape)} and the teacher {list(target.shape)} for the same batch; a "
                "student is made from its teacher with quantize"
            )
        if loss == "kl" and not are_classes(target):
            raise RecipeError(
                f"loss 'kl' compares class scores [N, C, ...], the teacher returns {list(target.shape)}; use loss='mse'"
            )
        self.variance = float(torch.cat([t.double().flatten() for t in self.targets]).var(correction=0)) or 1.0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        if self.kind != "labels":
            return self._loss(model, batch, None)
        labels = labels_of(batch)
        if labels is None:
            raise DataError("loss 'labels' got a batch without labels; give tuples (inputs, labels) or dicts")
        output = output_tensor(call(model, batch)).float()
        return F.cross_entropy(output, labels.to(output.device))

    def cached_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same of a batch that holds the teacher's outputs, see `_cached`."""
        if isinstance(batch, Mapping):
            return self._loss(model, {name: x for name, x in batch.items() if name != _TARGET}, batch[_TARGET])
        inputs, _, target = batch
        return self._loss(model, (inputs,), target)

    def _loss(self, model: nn.Module, batch: Batch, target: Tensor | None) -> Tensor:
        with _Inputs(model, self.features) as read, _Inputs(self.teacher, self.features) as wanted:
            output = output_tensor(call(model, batch)).float()
            if target is None:
                with torch.no_grad():
                    target = output_tensor(call(self.teacher.to(output.device), batch))
        total = self._distance(output, target.float())
        for name in self.features:
            feature = wanted.seen[name].float()
            total = total + F.mse_loss(read.seen[name].float(), feature) / feature.var(correction=0).clamp(min=1e-12)
        return total

    def _distance(self, output: Tensor, target: Tensor) -> Tensor:
        match self.kind:
            case "mse":
                return F.mse_loss(output, target) / self.variance
            case "cosine":
                return cosine_distance(output, target)
            case _:
                return kl_divergence(output, target, self.temperature)

    def score(self, model: nn.Module) -> float:
        """What chooses the best epoch: agreement with the teacher, or with the labels where these are learned."""
        labels = _classes_in(self.held) if self.kind == "labels" else None
        return accuracy_of(outputs_of(model, self.held), labels) if labels else self.agreement(model)

    def agreement(self, model: nn.Module) -> float:
        """How well held-out outputs agree with the teacher's, 1 at best."""
        return agreement_of(outputs_of(model, self.held), self.targets)


class _Inputs:
    """Within its block, what layers of a model read last."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self.layers = {name: _layer(model, name) for name in names}
        self.seen: dict[str, Tensor] = {}
        self.hooks = ExitStack()

    def __enter__(self) -> _Inputs:
        for name, layer in self.layers.items():

            def keep(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                self.seen[name] = args[0]

            self.hooks.callback(layer.register_forward_pre_hook(keep).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()


def _layer(model: nn.Module, name: str) -> nn.Module:
    layers = weighted_layers(model)
    if name not in layers:
        near = difflib.get_close_matches(name, layers, n=3, cutoff=0.3) or [*layers][:3]
        raise LayerError(f"features: {name!r} is no layer of {type(model).__name__}; nearest names: {', '.join(near)}")
    return layers[name]


# Before, while and after


def _check(teacher: nn.Module, loss: str, temperature: float) -> None:
    if loss not in get_args(LossName):
        raise RecipeError(f"loss {loss!r} is unknown; expected one of {', '.join(get_args(LossName))}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise RecipeError(f"temperature is {temperature}, expected a positive number; the paper has 4")
    if any(module.training for module in teacher.modules()):
        raise TrainingError("the teacher is in train mode, where its outputs change; call teacher.eval() first")


def _split(
    batches: Batches | Callable[[int], Batches], held_out: Batches | None, batch_size: int, seed: int
) -> tuple[Callable[[int], Batches], list[Batch]]:
    """What trains, as a function of the epoch, and what is held out."""
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


def _cached(train: Callable[[int], Batches], task: _Task, augment: Augment | None) -> Shuffled:
    """The training samples with the teacher's outputs beside them."""
    if augment is not None or not isinstance(train, Shuffled) or task.features or task.kind == "labels":
        raise RecipeError(
            "cache_teacher keeps one output a sample: it goes with batches that are no function, and without augment, "
            "features and loss 'labels'; leave it out"
        )
    every = torch.split(torch.arange(train.count), train.batch_size)
    with torch.no_grad():
        parts = [output_tensor(call(task.teacher, mapped(train.samples, lambda x, r=rows: x[r]))) for rows in every]  # type: ignore[misc]
    target, samples = torch.cat(parts), train.samples
    if isinstance(samples, Mapping):
        train.samples = {**samples, _TARGET: target}
    else:
        train.samples = (inputs_of(samples)[0][0], labels_of(samples), target)
    return train


def _learning(student: nn.Module) -> nn.Module:
    """The student, in which everything learns if nothing of the model did."""
    ranges = {id(p) for q in student.modules() if isinstance(q, Quantizer) for p in q.parameters()}
    others = [p for p in student.parameters() if id(p) not in ranges]
    if not any(p.requires_grad for p in others):  # a frozen model was quantized
        for parameter in others:
            parameter.requires_grad_(True)
    return student


def _deltas(
    task: _Task, quantizer: FamilyName, exact: bool, epochs: int, every: int | None, seed: int
) -> Callable[[int], None] | None:
    """What updates EWGS's delta before an epoch."""
    if quantizer != "ewgs":
        return None
    every = every or (10 if exact else 1)
    if epochs <= every:
        warnings.warn(
            f"EWGS is to update delta every {every} epochs and trains for {epochs}: delta stays 0, which is the "
            "straight-through estimator; train for longer, or give a smaller delta_every",
            TrainingWarning,
            stacklevel=3,
        )
    curvature = Curvature() if exact else Curvature(probes=8, bounded=True)

    def update(epoch: int) -> None:
        if epoch > 1 and (epoch - 1) % every == 0:
            some = task.held[: 3 if exact else 1]
            families.update_deltas(
                task.student, lambda b: task.loss(task.student, b), some, curvature, seed=seed + epoch
            )

    return update


def _projection(student: nn.Module) -> Callable[[], None]:
    """What keeps scales, and the factors of BatchNorms that will be folded into them, positive after each step."""
    quantizers = [module for module in student.modules() if isinstance(module, Quantizer)]
    norms = graph.batchnorms_to_fold(student) if isinstance(student, fx.GraphModule) else []
    factors = [norm.weight for norm in norms if norm.weight is not None]

    def project() -> None:
        families.project(quantizers)
        for factor in factors:
            factor.clamp_(min=_LEAST_FACTOR)

    return project


def _folded(student: nn.Module) -> nn.Module:
    """The student with its BatchNorms folded."""
    if isinstance(student, fx.GraphModule):
        graph.fold_batchnorm(student)
        note(student, folded=True)
    return student.eval()


def _fingerprint(student: nn.Module, *about: object) -> str:
    noted = origin(student)
    return json.dumps([noted.recipe.to_dict() if noted else None, *about], default=list)


def _bounds(student: nn.Module) -> dict[str, tuple[float, float]]:
    """The range of each quantizer by name, of several scales the widest."""
    found = {}
    for name, module in student.named_modules():
        if isinstance(module, Quantizer) and module.ready:
            low, high = module.bounds()
            found[name] = (float(low.min()), float(high.max()))
    return found


def _ranges(task: _Task, before: dict[str, tuple[float, float]]) -> tuple[Range, ...]:
    """What became of each range, and how much of a held-out batch lies outside; warns of ranges that do not fit."""
    clipped: dict[Quantizer, float] = {}
    unused: dict[Quantizer, int] = {}

    def look(quantizer: Quantizer, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = torch.tanh(args[0]) if quantizer.tanh else args[0]
        low, high = (quantizer.granularity.spread(bound, x.shape) for bound in quantizer.bounds())
        blocked = quantizer.granularity.blocked(x)
        clipped[quantizer] = float(((blocked < low) | (blocked > high)).float().mean())
        if quantizer.format.bits <= _FEW_BITS and quantizer.scale.dim() == 0:
            unused[quantizer] = len(quantizer.format.values()) - len(torch.unique(output))

    named = {name: m for name, m in task.student.named_modules() if isinstance(m, Quantizer)}
    with ExitStack() as hooks, torch.no_grad():
        for quantizer in named.values():
            hooks.callback(quantizer.register_forward_hook(look).remove)
        call(task.student, task.held[0])
    bounds = _bounds(task.student)
    rows = tuple(
        Range(name, *before[name], *bounds[name], q.gradient.delta, clipped[q])
        for name, q in named.items()
        if q in clipped
    )
    most = [row.name for row in rows if row.clipped > _MOST_CLIPPED]
    dead = [name for name, q in named.items() if unused.get(q, 0) > 0]
    for names, what in ((most, "clip more than half of their input"), (dead, "never use some of their few levels")):
        if names:
            warnings.warn(
                f"{len(names)} trained quantizers {what}: {', '.join(names[:3])}{', ...' if names[3:] else ''}; "
                "look at their ranges in the result, and try another family or scale_rate",
                TrainingWarning,
                stacklevel=3,
            )
    return rows
