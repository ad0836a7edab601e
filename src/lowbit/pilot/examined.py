"""A student becomes a file, and the file is looked at: verified, scored beside the float model's, its costs counted."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lowbit import files
from lowbit.batches import without_labels
from lowbit.costs import cost
from lowbit.errors import DataError, DataWarning
from lowbit.export.onnx import export_onnx
from lowbit.export.quantities import Distances
from lowbit.export.verify import verify
from lowbit.export.watching import note_agreement, note_distance
from lowbit.methods.distillation.run import Distillation
from lowbit.methods.search.run import Search
from lowbit.pilot import coded, compared, curved, distilled, factorized, searched, statistics
from lowbit.pilot.layered import layer_rows, notes_of
from lowbit.pilot.making import Made
from lowbit.pilot.outputs import BATCH, baseline, drawn, file_outputs, in_batches, model_outputs
from lowbit.pilot.record import ObstacleRow, OutputRow, Score, Trial, VerificationRow
from lowbit.pilot.statistics import Array, Scoring
from lowbit.pilot.task import Settings, Sources, Task
from lowbit.post_training.segments import float_twin
from lowbit.quantization import coverage

VERIFIED = 500  # samples compared layer by layer; predictions are compared on all


def examine(task: Task, model: nn.Module, made: Made, data: Sources, settings: Settings, progress: bool) -> Trial:
    """Export a student and measure its file; the trial has no verdict yet.

    Raises:
        LowbitError: it cannot be exported, or the file does something else than the student.
    """
    test = data.test
    example = without_labels(next(iter(test.batches(2))))
    student = made.student.cpu()  # runtimes compare with it, and they are on the CPU
    made.source.cpu()
    hashes = {"calibration_data": data.calibration.hash, "test_data": test.hash}
    if task.training is not None or task.output is not None or task.features is not None:
        hashes["training_data"] = data.train.hash
    provenance = {"seed": settings.seed, **hashes, **settings.provenance}
    exported = export_onnx(student, task.folder / "model.onnx", example, opset=task.opset, provenance=provenance)
    outputs = file_outputs(exported.path, test, settings, progress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # told in the notes
        some = drawn(test, VERIFIED, settings.seed)
        verification = verify(
            exported,
            some,
            runtime=settings.runtime,
            threads=settings.threads,
            classes=settings.classes,
            progress=progress,
        )
    with files.replacing(task.folder / "outputs.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, outputs)
    reference = outputs if task.recipe is None else baseline(task.variants)
    labels = None if test.labels is None else test.labels.numpy()
    simulated = model_outputs(exported.model, test, progress)
    same, apart = _together(outputs, simulated, settings)
    agreement, distance = _beside_float(exported.path, outputs, reference, settings)
    costs, covered = cost(student, example), coverage(student)
    scoring = Scoring(settings.metric, labels, reference, settings.seed, settings.folder)
    score, gap = scoring.score(outputs), scoring.difference(outputs) if task.recipe else None
    trained_weights = made.result is not None and (made.result.best > 0 or isinstance(made.result, Search))
    twin = student if trained_weights else float_twin(made.source, student)
    if made.curved is not None:
        twin = curved.twin_of(twin, student)
    beside = _beside_post_training(made, scoring, outputs)
    return Trial(
        task.name,
        made.recipe,
        task.fingerprint,
        "misses",  # the verdict is given when the run is put together: the KPI's minimum is no part of a trial
        score=score,
        difference=gap,
        agreement=agreement if task.recipe else None,
        file=(task.folder / "model.onnx").relative_to(task.variants.parent).as_posix(),
        file_bytes=exported.path.stat().st_size,
        weight_bytes=costs.weight_bytes,
        parameters=costs.parameters,
        macs=costs.macs,
        bops=costs.bops,
        activation_bytes=costs.activation_bytes,
        layers=layer_rows(student, twin, costs, covered, verification),
        verification=VerificationRow(
            settings.runtime,
            len(outputs),
            same,
            verification.same_codes,
            verification.largest_code_difference,
            verification.kernels,
            tuple(verification.stayed_float) if task.recipe else (),
            tuple(ObstacleRow(**vars(one)) for one in verification.obstacles) if task.recipe else (),
            apart,
        ),
        notes=(
            *made.notes,
            *statistics.left_out(score, gap),
            *verification.unlike_calibration,
            *notes_of(student, covered, task.opset),
        ),
        distillation=distilled.row(made.result, *beside) if isinstance(made.result, Distillation) else None,
        search=searched.row(task, made.result, *beside) if isinstance(made.result, Search) else None,
        factorization=factorized.row(made.found) if made.found else None,
        output=_output_row(task, made, model, exported.model, data, (outputs, reference), settings, progress),
        features=coded.row(made.coded, test, (outputs, reference), seed=settings.seed) if made.coded else None,
        apart=distance if task.recipe else None,
        quantities=() if settings.classes else statistics.quantities(outputs, labels, reference, settings.seed),
    )


def _together(outputs: Array, others: Array, settings: Settings) -> tuple[float | None, float | None]:
    """The share of equal predictions, or of quantities the largest distance."""
    if not settings.classes:
        return None, _distances(outputs, others).largest()
    return float((statistics.predictions(outputs, others) == statistics.predictions(others)).mean()), None


def _beside_float(
    path: Path, outputs: Array, reference: Array, settings: Settings
) -> tuple[Score | None, float | None]:
    """The same against the float model, noted in the manifest of the file for `lowbit watch`."""
    if not settings.classes:
        found = _distances(outputs, reference)
        note_distance(path, found)
        return None, found.largest()
    agreeing = np.asarray(statistics.predictions(outputs, reference) == statistics.predictions(reference))
    note_agreement(path, int(agreeing.sum()), len(agreeing))
    return statistics.share(agreeing), None


def _distances(outputs: Array, reference: Array) -> Distances:
    found = Distances()
    found.add(outputs, reference)
    return found


def _output_row(
    task: Task,
    made: Made,
    model: nn.Module,
    student: nn.Module,
    data: Sources,
    outputs: tuple[Array, Array],
    settings: Settings,
    progress: bool,
) -> OutputRow | None:
    """The record of an output on a path; `outputs` are those of the file and of the float model's."""
    if made.curved is None:
        return None
    found, reference = (torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in outputs)
    measured = compared.Measured(
        model,
        student,
        in_batches(data.train),
        in_batches(data.calibration),
        data.test.batches(BATCH),
        None if settings.metric == "accuracy" else data.test.labels,  # classes are no targets
        reference,
        found,
        None if made.before is None else torch.from_numpy(np.asarray(made.before, dtype=np.float32)),
    )
    return compared.row(task, made.curved, measured, seed=settings.seed, progress=progress)


def _beside_post_training(made: Made, scoring: Scoring, outputs: Array) -> tuple[Score | None, Score | None]:
    """The KPI's metric of the student that post-training alone makes, and that of the trained one less it."""
    if made.before is None:
        return None, None
    post_training: Score | None = None
    with contextlib.suppress(DataError):  # an own metric may have no value for a student that collapsed
        post_training = scoring.score(made.before)
        return post_training, scoring.difference(outputs, made.before)
    return post_training, None
