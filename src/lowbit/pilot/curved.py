"""The part of a trial that writes the output along a path: the float model learns to return points, and the record.

The float model that returns points takes the place of the user's: it is post-trained, distilled from and compared with
in points. The decoder comes behind the finished student, and from there on outputs are targets again, which are
compared with labels and with the outputs of the user's own float model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batches, labels_of
from lowbit.errors import DataError
from lowbit.methods.curves.decoders import Decoder
from lowbit.methods.curves.fit import shaped
from lowbit.methods.curves.heads import Decoded, attach_decoder, deployed_points, wrap_head
from lowbit.methods.curves.run import CurveOutput, curve_output
from lowbit.methods.curves.tables import learned_table
from lowbit.pilot.sections.output import CurveSpec, MadeOutputSpec
from lowbit.pilot.task import Samples, Task
from lowbit.pilot.trained import OUTPUT, WEIGHTS, prepared, warnings_kept
from lowbit.post_training.levels import PostTraining

_MEASURED = 16  # batches that a path is chosen by


@dataclass(frozen=True)
class Curved:
    """A float model whose output is on a path, or as it was where no path serves it, and how that came."""

    model: nn.Module
    made: CurveOutput
    spec: CurveSpec

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the output, in sentences."""
        made = self.made
        if made.codec is None:
            return (f"output: {made.choice}",)
        told = [*([str(made.choice)] if made.choice else [f"{made.codec.path}, as asked"])]
        return (f"output: {told[0]}; {made.fit or 'nothing was trained'}",)

    def section(self) -> dict[str, Any]:
        """The section ``output`` of a recipe file that makes the same again; empty where the output is direct."""
        codec, spec = self.made.codec, self.spec
        if codec is None:
            return {}
        named = spec.model_dump(mode="json", include={"heads", "head", "decoder", "learned_table", "confidence"})
        low, high = (list(end) if isinstance(end, tuple) else end for end in (codec.low, codec.high))
        where = {"path": str(codec.path), "low": low, "high": high}
        weights = {"weights": WEIGHTS} if self.made.fit else {}
        return {"output": {**where, "transform": codec.transform, **named, **weights}}

    def save(self, folder: Path) -> None:
        """Keep the weights of a float model that was trained, so that the recipe beside them makes the same again."""
        path = folder / WEIGHTS
        if self.made.fit is None:
            path.unlink(missing_ok=True)
            return
        from safetensors.torch import save

        tensors = {name: tensor.contiguous().clone() for name, tensor in _tensors(self.model).items()}
        with files.replacing(path) as temporary:
            temporary.write_bytes(save(tensors))


def give(
    task: Task, model: nn.Module, training: Samples, calibration: Samples, batched: Any, *, seed: int, progress: bool
) -> tuple[Curved, list[str]]:
    """The float model with its output on a path, trained as the task says, and the warnings on the way.

    Raises:
        LowbitError: an option does not fit the model or the data, or training went astray.
    """
    assert task.output is not None
    spec = task.output
    on_labels = training.labels is not None if spec.labels is None else spec.labels
    others = calibration is not training and (calibration.labels is not None or not on_labels)
    with warnings_kept() as told:
        wrapped, made = curve_output(
            model,
            batched(training),
            task.recipe,
            path=spec.curve,
            calibration=[*islice(batched(calibration), _MEASURED)] if others else None,
            **{**spec.options(), "labels": on_labels},
            folder=prepared(task, task.fingerprint, OUTPUT),
            seed=seed,
            progress=progress,
        )
    return Curved(wrapped, made, spec), told


def again(model: nn.Module, spec: MadeOutputSpec, folder: Path) -> Curved:
    """The same float model as a recipe file says, whose `folder` holds the weights.

    Raises:
        LowbitError: the model cannot be given such an output, or the weights are not its own.
    """
    wrapped = wrap_head(model, spec.codec, heads=spec.heads, head=spec.head)
    if spec.weights is not None:
        path = folder / spec.weights
        own, found = _tensors(wrapped), files.load_tensors(path)
        wrong = next(
            (n for n in [*own, *found] if n not in own or n not in found or own[n].shape != found[n].shape), ""
        )
        if wrong:
            raise DataError(f"'{path}' is of another network: {wrong!r} is not the same; give the model of the pilot")
        wrapped.load_state_dict(found, strict=False)
    return Curved(wrapped.eval(), CurveOutput(spec.codec, None, None), spec)


def end(curved: Curved, calibration: Batches, student: nn.Module) -> nn.Module:
    """The student with the decoder behind it; a direct one as it is.

    Raises:
        DataError: a table is to be learned, and `calibration` has no targets.
    """
    codec, spec = curved.made.codec, curved.spec
    if codec is None:
        return student
    found = attach_decoder(student, Decoder(codec, kind=spec.decoder, confidence=spec.confidence))
    if not spec.learned_table:
        return found
    batches = list(calibration)
    points = deployed_points(found, batches)
    labels = [label for batch in batches if (label := labels_of(batch)) is not None]
    if len(labels) < len(batches):
        raise DataError("learned_table is filled from the labels of the calibration data, which has none; leave it out")
    target = shaped(torch.cat(labels), (len(points), points.shape[1] // codec.channels, *points.shape[2:]))
    table = learned_table(codec, points, codec.nearest(target))
    return attach_decoder(student, Decoder(codec, kind=spec.decoder, confidence=spec.confidence, table=table))


def twin_of(twin: nn.Module, student: nn.Module) -> nn.Module:
    """A float twin of a student with a decoder, so that its layers have the names that they have in the student."""
    return Decoded(twin, student.decoder) if isinstance(student, Decoded) else twin


def in_points(did: PostTraining) -> PostTraining:
    """What post-training did to points, which are no class scores."""
    return replace(did, steps=tuple(replace(step, agreement=None) for step in did.steps))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
