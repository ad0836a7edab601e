"""Is the teacher good enough? A student learns the faults of its teacher."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, Batches, inputs_of, outputs_of
from lowbit.errors import DataError, TrainingWarning
from lowbit.objectives import accuracy_of, agreement_of, are_classes
from lowbit.training.objective import classes_in
from lowbit.training.samples import Augment

_LEAST_CONFIDENCE, _LEAST_AGREEMENT, _LEAST_ACCURACY = 0.5, 0.8, 0.5


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


def check_teacher(
    teacher: nn.Module,
    batches: Batches,
    *,
    classes: bool | None = None,
    augment: Augment | None = None,
    seed: int = 0,
) -> TeacherCheck:
    """What to know of a teacher before it teaches; warns of a weak one.

    Args:
        teacher: a float model in eval mode.
        batches: inputs in any batch form; labels are used where there are some.
        classes: whether outputs are class scores `[N, C, ...]`; by default, if their shape allows it.
        augment: the change that predictions should survive; by default noise of a tenth of each input's deviation.
        seed: draws the augmentation.

    Raises:
        DataError: no batches, or outputs that are not finite.

    Warns:
        TrainingWarning: the teacher is less than half sure or half right, or changes its mind under augmentation more
            than every fifth time.
    """
    generator, batches = torch.Generator().manual_seed(seed), list(batches)
    if not batches:
        raise DataError("got no batches to check the teacher with; give at least one (a list, not a used-up generator)")
    outputs = outputs_of(teacher, batches)
    for number, output in enumerate(outputs):
        if not bool(torch.isfinite(output).all()):
            raise DataError(f"the teacher's outputs for batch {number} are not finite; look at its inputs")
    classes = all(are_classes(output) for output in outputs) if classes is None else classes
    changed = outputs_of(teacher, [(augment or _noisy)(batch, generator) for batch in batches])
    agreement = agreement_of(changed, outputs, classes=classes)
    confidence = accuracy = None
    if classes:
        confidence = float(torch.cat([o.softmax(1).amax(1).flatten() for o in outputs]).mean())
        accuracy = accuracy_of(outputs, labels) if (labels := classes_in(batches)) else None
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


def _noisy(batch: Batch, generator: torch.Generator) -> Batch:
    def noisy(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x + 0.1 * x.std() * torch.randn(x.shape, generator=generator).to(x)

    args, kwargs = inputs_of(batch)
    return {name: noisy(x) for name, x in kwargs.items()} if kwargs else noisy(args[0])
