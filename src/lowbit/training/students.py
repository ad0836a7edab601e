"""How a student learns: its quantizers as a family does, its weights toward an objective; then it is like any other.

learn(student, objective, train, quantizer="ewgs", epochs=2, ...)    # in place
student = finished(student)                                          # ranges fixed, BatchNorms folded
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from lowbit import families, graph
from lowbit.batches import Batches, inputs_of, labels_of
from lowbit.errors import TrainingWarning
from lowbit.families import Curvature, FamilyName
from lowbit.layers import BatchNorm
from lowbit.quantization import note, origin
from lowbit.quantizer import Quantizer
from lowbit.training.keeping import Fitted
from lowbit.training.loop import Loss, fit
from lowbit.training.objective import Objective
from lowbit.training.samples import Augment, Shuffled

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

_LEAST_FACTOR = 1e-4  # of a BatchNorm that trains: at 0 it would lose its channel for good


def learn(
    student: nn.Module,
    objective: Objective,
    train: Batches | Callable[[int], Batches],
    *,
    quantizer: FamilyName,
    epochs: int,
    exact: bool = False,
    delta_every: int | None = None,
    loss: Loss | None = None,
    augment: Augment | None = None,
    about: Mapping[str, object] | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    **fitting: Unpack[Fitting],
) -> Fitted:
    """Train a calibrated student in place; it ends with the weights of the epoch that `objective` scores best.

    Its quantizers go on learning as `quantizer` until `finished`. What of it requires gradients learns; if none of its
    weights does, all do. `loss` is the objective's by default, and the others are as in `distill` and `fit`.
    """
    families.begin(student, quantizer, objective.held[0], exact=exact)
    let_learn(student)
    published = families.published_rates(student, quantizer, fitting.get("rate", 1e-3) / 100) if exact else None
    options = {"quantizer": quantizer, "exact": exact, "loss": objective.kind, "temperature": objective.temperature}
    return fit(
        student,
        loss or objective.loss,
        train,
        epochs=epochs,
        augment=augment,
        score=objective.score,
        before_epoch=_deltas(student, objective, quantizer, exact, epochs, delta_every, seed),
        after_step=projection(student),
        rates=published,
        about={**options, "features": [*objective.features], "delta_every": delta_every, **(about or {})},
        folder=folder,
        seed=seed,
        progress=progress,
        **fitting,
    )


def finished(student: nn.Module) -> nn.Module:
    """The student with its ranges fixed and its BatchNorms folded, in eval mode."""
    families.settle(student)
    if isinstance(student, fx.GraphModule):
        graph.fold_batchnorm(student)
        note(student, folded=True)
    return student.eval()


def known_by(student: nn.Module, objective: Objective, train: Callable[[int], Batches]) -> dict[str, object]:
    """What a checkpoint is known by: the recipe, and hashes of what calibrated, teaches and trains."""
    noted = origin(student)
    args, kwargs = inputs_of(train.samples) if isinstance(train, Shuffled) else ((), {})
    labels = labels_of(train.samples) if isinstance(train, Shuffled) and objective.kind == "labels" else None
    return {
        "recipe": noted.recipe.fingerprint if noted else "",
        "calibration": noted.calibration_hash if noted else "",
        "teacher": hash_of(objective.targets),
        "training data": hash_of([*args, *kwargs.values()]),
        "labels": "none" if labels is None else hash_of([labels]),
    }


def projection(student: nn.Module, norms: Sequence[BatchNorm] | None = None) -> Callable[[Tensor], None]:
    """What keeps scales, and the factors of BatchNorms that will be folded into them, positive after each step.

    `norms` are those BatchNorms; by default, those that can be folded as the student is.
    """
    quantizers = [module for module in student.modules() if isinstance(module, Quantizer)]
    if norms is None:
        norms = [*graph.batchnorms_to_fold(student).values()] if isinstance(student, fx.GraphModule) else []
    factors = [norm.weight for norm in norms if norm.weight is not None]

    def project(_: Tensor) -> None:
        families.project(quantizers)
        for factor in factors:
            factor.clamp_(min=_LEAST_FACTOR)

    return project


def let_learn(student: nn.Module) -> None:
    """Let everything learn if none of the weights would: a frozen model was quantized."""
    ranges = {id(p) for q in student.modules() if isinstance(q, Quantizer) for p in q.parameters()}
    others = [p for p in student.parameters() if id(p) not in ranges]
    if not any(p.requires_grad for p in others):
        for parameter in others:
            parameter.requires_grad_(True)


def hash_of(tensors: Iterable[Tensor]) -> str:
    """What tensors are known by."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _deltas(
    student: nn.Module,
    objective: Objective,
    quantizer: FamilyName,
    exact: bool,
    epochs: int,
    every: int | None,
    seed: int,
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
            stacklevel=4,
        )
    curvature = Curvature() if exact else Curvature(probes=8, bounded=True)

    def update(epoch: int) -> None:
        if epoch > 1 and (epoch - 1) % every == 0:
            some = objective.held[: 3 if exact else 1]
            families.update_deltas(student, lambda b: objective.loss(student, b), some, curvature, seed=seed + epoch)

    return update
