"""What the student is held to: the teacher's outputs and features, or labels; and how well it agrees with them."""

from __future__ import annotations

import difflib
import warnings
from contextlib import ExitStack
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.batches import Batch, call, labels_of, of_quantities, output_tensor, outputs_of, size_of
from lowbit.errors import DataError, LayerError, RecipeError, TrainingError, TrainingWarning
from lowbit.layers import weighted_layers
from lowbit.objectives import accuracy_of, agreement_of, are_classes, cosine_distance, kl_divergence
from lowbit.training.material import first_of, without_target

LossName = Literal["kl", "mse", "cosine", "labels"]


class Objective:
    """The loss of a batch and the score of a student, both against one teacher, or against labels alone.

    Args:
        student, teacher: on one device; the teacher in eval mode. Without one the loss is ``labels``, and agreement is
            with the labels too.
        loss: see `distill`; ``kl`` and ``labels`` take outputs as class scores, the others do not.
        temperature: of ``kl``.
        features: names of layers whose inputs are matched too.
        held: batches that score.

    Raises:
        TrainingError: student and teacher return different shapes.
        RecipeError: outputs that the loss cannot compare, or a loss that needs a teacher.
        DataError: held-out labels that are missing or do not fit, for ``labels``.
        LayerError: a name in `features` is no layer of both.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        loss: LossName,
        temperature: float,
        features: tuple[str, ...],
        held: list[Batch],
    ) -> None:
        self.teacher, self.kind, self.temperature, self.features, self.held = teacher, loss, temperature, features, held
        self.classes = loss in ("kl", "labels")
        self.variances: dict[str, float] = {}
        if teacher is None:
            if loss != "labels" or features:
                raise RecipeError(f"loss {loss!r} with features {features} needs a teacher; give one, or use 'labels'")
            self.targets = [_scores(batch, out) for batch, out in zip(held, outputs_of(student, held), strict=True)]
            return
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
        if (self.classes and not are_classes(target)) or target.dim() < 1 + (loss == "cosine"):
            takes = "class scores [N, C, ...]" if self.classes else "vectors [N, ...]"
            raise RecipeError(f"loss {loss!r} takes {takes}, the teacher returns {list(target.shape)}; use loss='mse'")
        # constants, so that the loss of a batch is the mean over its samples, however they are shared out
        self.variance = float(torch.cat([t.double().flatten() for t in self.targets]).var(correction=0)) or 1.0
        with _Inputs(teacher, features) as read:
            outputs_of(teacher, held[:1])
        self.variances = {name: float(x.double().var(correction=0)) or 1.0 for name, x in read.seen.items()}
        if loss == "labels":
            for batch, output in zip(held, self.targets, strict=True):
                check_labels(batch, output)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        if self.kind != "labels":
            return self._distance(model, batch, None)
        return self._of(output_tensor(call(model, batch)).float(), batch, None)

    def cached_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same of a batch that holds the teacher's outputs, see `material.with_targets`."""
        return self._distance(model, *without_target(batch))

    def _distance(self, model: nn.Module, batch: Batch, target: Tensor | None) -> Tensor:
        assert self.teacher is not None  # without one the loss is labels
        with _Inputs(model, self.features) as read, _Inputs(self.teacher, self.features) as wanted:
            output = output_tensor(call(model, batch)).float()
            if target is None:
                with torch.no_grad():
                    target = output_tensor(call(self.teacher, batch)).float()
        total = self._of(output, batch, target)
        for name, variance in self.variances.items():
            total = total + F.mse_loss(read.seen[name].float(), wanted.seen[name].float()) / variance
        return total

    def _of(self, output: Tensor, batch: Batch, target: Tensor | None) -> Tensor:
        """The loss of outputs alone; `target` is what the teacher returns, None for labels."""
        if target is None:
            return F.cross_entropy(output, check_labels(batch, output).to(output.device).long())
        match self.kind:
            case "mse":
                return F.mse_loss(output, target) / self.variance
            case "cosine":
                return cosine_distance(output, target)
        return kl_divergence(output, target, self.temperature)

    def judge(self, model: nn.Module, samples: int) -> tuple[float, float]:
        """Loss, without features, and agreement on the first held-out batches that have so many samples."""
        held = first_of(self.held, samples)
        outputs, targets = outputs_of(model, held), self.targets[: len(held)]
        total = 0.0
        for batch, output, target in zip(held, outputs, targets, strict=True):
            loss = self._of(output.float(), batch, None if self.kind == "labels" else target.float())
            total += float(loss) * size_of(batch)
        return total / sum(map(size_of, held)), agreement_of(outputs, targets, classes=self.classes)

    def score(self, model: nn.Module) -> float:
        """What chooses the best epoch: agreement with the teacher, or with the labels where these are learned."""
        labels = classes_in(self.held) if self.kind == "labels" else None
        return accuracy_of(outputs_of(model, self.held), labels) if labels else self.agreement(model)

    def standing(self, model: nn.Module) -> tuple[float, float]:
        """Score, and the loss below 0, on all held-out batches: of few samples a score alone says little."""
        loss, _ = self.judge(model, sum(map(size_of, self.held)))
        return self.score(model), -loss

    def agreement(self, model: nn.Module) -> float:
        """How well held-out outputs agree with the teacher's, 1 at best; without a teacher, with the labels."""
        return agreement_of(outputs_of(model, self.held), self.targets, classes=self.classes)


def _scores(batch: Batch, output: Tensor) -> Tensor:
    """The labels of a batch as class scores in the shape of `output`: 1 for the label, 0 for others.

    Raises:
        DataError: they are missing or do not fit.
        RecipeError: the outputs are no class scores.
    """
    if not are_classes(output):
        raise RecipeError(f"loss 'labels' takes class scores [N, C, ...], the network returns {list(output.shape)}")
    labels = check_labels(batch, output).to(output.device).long()
    return torch.zeros_like(output).scatter_(1, labels.unsqueeze(1), 1.0)


def check_labels(batch: Batch, output: Tensor) -> Tensor:
    """The class labels of a batch, integers `[N, ...]` for outputs `[N, C, ...]`.

    Raises:
        DataError: they are missing, or something else.
    """
    labels, expected = labels_of(batch), [len(output), *output.shape[2:]]
    if labels is None:
        raise DataError("loss 'labels' got a batch without labels; give tuples (inputs, labels) or dicts")
    if labels.is_floating_point() or list(labels.shape) != expected:
        got = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise DataError(f"loss 'labels' got labels of {got}, expected class numbers {expected}; correct the labels")
    if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels < output.shape[1])).all()):
        reach = f"from {int(labels.min())} to {int(labels.max())}"
        raise DataError(f"labels reach {reach}, expected 0 to {output.shape[1] - 1}; correct the labels")
    return labels


def classes_in(batches: list[Batch]) -> list[Tensor] | None:
    """The class labels of all batches, None if one has none."""
    labels = [labels_of(batch) for batch in batches]
    found = [one for one in labels if one is not None and not one.is_floating_point()]
    return found if len(found) == len(batches) else None


def loss_for(given: LossName | None, teacher: nn.Module, held: list[Batch]) -> LossName:
    """The loss that was given, else what fits outputs as far as can be seen: ``mse`` for quantities, else ``kl``.

    Float labels tell of quantities, and so do outputs that cannot be class scores, such as a single number a sample.

    Warns:
        TrainingWarning: ``kl`` was given, and labels are floats.
    """
    quantities = of_quantities(held)
    if given is None:
        return "mse" if quantities or not are_classes(outputs_of(teacher, held[:1])[0]) else "kl"
    if given == "kl" and quantities:
        warnings.warn(
            "loss 'kl' takes outputs for class scores, of which only the differences within a sample count, and labels "
            "are floats: a regression is not kept by it; give loss='mse'",
            TrainingWarning,
            stacklevel=3,
        )
    return given


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
