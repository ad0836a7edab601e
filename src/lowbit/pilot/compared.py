"""The record of an output on a path: errors beside those of controls, points to draw, and the confidence curve.

Controls are made from the user's float model by the variant's recipe and level: what a direct output of 8 bits loses,
and what 16 bits, training alone or a fold would gain without a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.batches import Batches, outputs_of
from lowbit.errors import LowbitError
from lowbit.export.quantities import MOST
from lowbit.layers import weighted_layers
from lowbit.methods.curves.choose import Choice
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.decoders import Decoder
from lowbit.methods.curves.fit import fit_head
from lowbit.methods.curves.heads import attach_decoder, deployed_points, wrap_head
from lowbit.methods.curves.measures import OutputErrors, confidence_curve, output_errors
from lowbit.methods.curves.paths import Fold
from lowbit.pilot.curved import Curved
from lowbit.pilot.record import CandidatePathRow, ComparedRow, ErrorsRow, OutputRow
from lowbit.pilot.task import Task
from lowbit.pilot.trained import OUTPUT, epoch_rows, finite, prepared
from lowbit.post_training.levels import post_train
from lowbit.quantization import freeze

_FOLD = Fold(4)  # the control that needs no training
_DRAWN = 2000  # points in the record
_RANKED = 200_000  # numbers that a confidence curve is made of
_NOT_DIRECT = "the float model was the teacher: a direct output trained by its own outputs is what it was"
_NOT_TRAINED = "the variant was not trained either"
_NOT_A_FOLD = "the variant is a fold itself"


@dataclass(frozen=True)
class Measured:
    """What a record is made of: outputs on the test data `[N, ...]`, and the data that made them.

    `reference` is of the float model, `found` of the variant's file, and `before` of the variant before it was
    distilled; `student` computes as the file does.
    """

    model: nn.Module
    student: nn.Module
    training: Batches
    calibration: Batches
    test: Batches
    labels: Tensor | None
    reference: Tensor
    found: Tensor
    before: Tensor | None


def row(task: Task, curved: Curved, measured: Measured, *, seed: int, progress: bool) -> OutputRow:
    """The record of an output, with its controls."""
    assert task.output is not None
    labels, reference = measured.labels, measured.reference
    labels = labels.float() if labels is not None else None
    if labels is not None and labels.dim() == reference.dim() - 1:
        labels = labels.unsqueeze(1)
    usable = labels is not None and labels.shape == reference.shape  # an own metric may take labels of another shape
    target = labels if usable and labels is not None else reference
    made, choice = curved.made, curved.made.choice
    codec = made.codec or _plain(target)
    against = "labels" if usable else "float model"
    rows = [ComparedRow("float", _errors(reference, target, codec), None, _each(reference, target, codec))]
    rows = rows if usable else []
    common: dict[str, Any] = {
        "reason": str(choice) if choice else "",
        "noise": finite(choice.noise) if choice else None,
        "uncertainty": finite(choice.uncertainty) if choice else None,
        "candidates": tuple(_candidates(choice)) if choice else (),
        "against": against,
    }
    if made.codec is None:
        errors, added = (_errors(measured.found, other, codec) for other in (target, reference))
        rows.append(ComparedRow("variant", errors, added, _each(measured.found, target, codec)))
        return OutputRow(path="", compared=tuple(rows), left_out={}, **common)
    floats = made.codec.decode(torch.cat(outputs_of(curved.model, measured.test)).float())
    rows.append(ComparedRow("curve", _errors(floats, target, codec, branches=True), None, _each(floats, target, codec)))
    left_out: dict[str, str] = {}
    if task.output.controls:
        for control in _controls(task, curved, measured, left_out, seed, progress):
            errors, added = (_errors(control.found, other, codec) for other in (target, control.floats))
            rows.append(ComparedRow(control.what, errors, added, _each(control.found, target, codec)))
    for what, found in (("post-trained", measured.before), ("variant", measured.found)):
        if found is not None:
            errors, added = (_errors(found, other, codec, branches=True) for other in (target, floats))
            rows.append(ComparedRow(what, errors, added, _each(found, target, codec)))
    points = deployed_points(measured.student, measured.test)
    drawn, curve = _drawn(points, measured.found, target, codec, seed)
    fit = made.fit
    return OutputRow(
        path=str(codec.path),
        compared=tuple(rows),
        left_out=left_out,
        low=_several(codec.low),
        high=_several(codec.high),
        transform=codec.transform,
        length=codec.line.length,
        spacing=finite(codec.line.spacing),
        heads=curved.spec.heads,
        decoder=next(module.kind for module in measured.student.modules() if isinstance(module, Decoder)),
        loss=fit.loss if fit else "",
        taught=fit.taught if fit else None,
        epochs=epoch_rows(fit.epochs) if fit else (),
        best=fit.best if fit else 0,
        before=finite(fit.before) if fit else None,
        after=finite(fit.after) if fit else None,
        corners=_rounded(codec.path.nodes()),
        points=drawn,
        confidence=curve,
        **common,
    )


@dataclass(frozen=True)
class _Control:
    """Outputs of another network on the test data, deployed and in float."""

    what: str
    found: Tensor
    floats: Tensor


def _controls(
    task: Task, curved: Curved, measured: Measured, left_out: dict[str, str], seed: int, progress: bool
) -> Iterator[_Control]:
    """The controls that can be made; the others are told in `left_out`."""
    assert task.output is not None
    made = curved.made
    assert made.codec is not None
    direct = Codec(made.codec.low, made.codec.high, Fold(1), clip=True)
    wanted = {"direct": direct, "wide": replace(direct, bits=16), "trained": direct}
    if isinstance(made.codec.path, Fold):
        left_out["fold"] = _NOT_A_FOLD
    else:
        wanted["fold"] = replace(direct, path=_FOLD)
    for what, codec in wanted.items():
        if what == "trained" and (made.fit is None or made.fit.taught):
            left_out[what] = _NOT_TRAINED if made.fit is None else _NOT_DIRECT
            continue
        try:
            head = curved.spec.head if curved.spec.head in weighted_layers(measured.model) else None
            network = wrap_head(measured.model, codec, head=head)
            if what == "trained":
                folder = prepared(task, task.fingerprint, OUTPUT) / what
                network, _ = fit_head(
                    network,
                    codec,
                    measured.training,
                    **task.output.training(),
                    folder=folder,
                    seed=seed,
                    progress=progress,
                )
            yield _control(what, network, codec, task, measured, seed, progress)
        except LowbitError as error:
            left_out[what] = str(error)


def _control(
    what: str, network: nn.Module, codec: Codec, task: Task, measured: Measured, seed: int, progress: bool
) -> _Control:
    assert task.recipe is not None
    student, _ = post_train(
        network,
        task.recipe,
        measured.calibration,
        level=task.level,
        widen_most=task.widen_most,
        seed=seed,
        progress=progress,
    )
    student = freeze(attach_decoder(student, Decoder(codec)))
    found, points = (torch.cat(outputs_of(one, measured.test)).float() for one in (student, network))
    return _Control(what, found, codec.decode(points))


def _drawn(
    points: Tensor, found: Tensor, target: Tensor, codec: Codec, seed: int
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, float], ...]]:
    """Some of the points, and the confidence curve; nothing for a fold, which has no branches to be off."""
    if isinstance(codec.path, Fold):
        return (), ()
    flat = points.reshape(len(points), codec.channels, -1).movedim(1, -1).flatten(0, 1)
    error = codec.difference(found, target).flatten()
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    some = order[:_RANKED].sort().values
    _, distance = codec.line.project(flat[some])
    return _rounded(flat[order[:_DRAWN]].double()), confidence_curve(error[some], distance)


def _errors(found: Tensor, target: Tensor, codec: Codec, *, branches: bool = False) -> ErrorsRow:
    """Errors of outputs; those of a direct network cannot come from another branch."""
    errors: OutputErrors = output_errors(found.float(), target.float(), codec)
    flips = errors.flips if branches else 0.0
    e = errors
    return ErrorsRow(e.count, e.rmse, e.mae, e.robust_sd, e.p999, e.levels, flips, finite(e.structure))


def _each(found: Tensor, target: Tensor, codec: Codec) -> tuple[float, ...]:
    """The RMSE of each quantity `[N, C, ...]` in its own unit, where there are several that can be shown."""
    if not 2 <= found.shape[1] <= MOST:
        return ()
    squares = codec.difference(found.double(), target.double()).square()
    return tuple(squares.transpose(0, 1).flatten(1).mean(1).sqrt().tolist())


def _plain(target: Tensor) -> Codec:
    """The range of targets, for outputs that stay direct."""
    low, high = float(target.min()), float(target.max())
    return Codec(low, high if high > low else low + 1, Fold(1), clip=True)


def _candidates(choice: Choice) -> Iterator[CandidatePathRow]:
    for one in choice.candidates:
        yield CandidatePathRow(str(one.path), one.length, one.spacing, one.gain, one.total_gain, one.why_not)


def _several(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (float(value),)


def _rounded(points: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in point) for point in points.tolist())
