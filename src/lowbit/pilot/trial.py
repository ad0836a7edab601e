"""One trial: quantize a copy of the model, calibrate, export, verify, and score the file in its runtime.

A variant that is distilled or searched is post-trained too, by the same recipe: that student is scored on the test
data, and what training gains over it is part of the record. Where layers become chains, factorization takes the place
of post-training. Where the output is written along a path, the float model learns that first, and its student is
compared with it in points; what the file returns is decoded, and compared with labels and with the user's float model.

A trial depends only on its arguments and writes only into its own folder, `trial.json` last: a folder with a
`trial.json` is a finished trial, anything else is done again. Only training goes on where it was, and what formats cost
on the runtime, measured for a search or a factorization, is kept for all trials.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batches, call, on_accelerator, output_tensor, resized, without_labels
from lowbit.costs import Cost, MeasuredCosts, cost
from lowbit.errors import DataError, DataWarning, LowbitError
from lowbit.export.codes import feed_of
from lowbit.export.measured import measure_formats
from lowbit.export.onnx import export_onnx
from lowbit.export.qdq import how_stored
from lowbit.export.runtime import RuntimeName, open_session
from lowbit.export.verify import Verification, verify
from lowbit.export.watching import note_agreement
from lowbit.layers import Quantized
from lowbit.methods.distillation.run import Distillation
from lowbit.methods.factorization.run import Factorization
from lowbit.methods.search.run import Search
from lowbit.pilot import coded, compared, curved, distilled, factorized, searched, statistics, trained
from lowbit.pilot.record import LayerRow, ObstacleRow, OutputRow, Score, Trial, VerificationRow, read
from lowbit.pilot.sections.coding import FeaturesSpec
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.sections.output import OutputSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.post_training.levels import Level, post_train
from lowbit.post_training.segments import float_twin
from lowbit.progress import track
from lowbit.quantization import Coverage, calibrate, coverage, freeze, origin, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe
from lowbit.training.students import finished as folded

Array = statistics.Array
BATCH = 100
VERIFIED = 500  # samples compared layer by layer; predictions are compared on all


class Samples(Protocol):
    """Inputs in a fixed order, with labels where there are some; `lowbit.data.Data` is one."""

    @property
    def labels(self) -> Tensor | None:
        """Targets of all samples."""

    @property
    def hash(self) -> str:
        """What identifies the content."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterable[tuple[Tensor, Tensor | None] | dict[str, Tensor]]:
        """All samples in order; with several inputs a dict by their names, and ``labels`` where there are some."""


@dataclass(frozen=True)
class Settings:
    """What all trials of a pilot share."""

    metric: str
    seed: int
    runtime: RuntimeName
    threads: int
    provenance: dict[str, object]
    folder: Path | None = None  # where the path of a metric's file begins
    costs: Path | None = None  # keeps what choices were measured to cost, for all trials of the pilot


@dataclass(frozen=True)
class Task:
    """One trial to do: `recipe` is None for the float baseline; see `lowbit.post_training.levels.post_train`.

    With `search`, `recipe` is about layers that are not searched, `granularity` about the weights of those that are,
    and `batch` is the number of samples in a call whose time is a cost. `black` is what preprocessing makes of a black
    pixel, in each channel: it comes in where images are shifted. `seed` is the pilot's if it is None; a task with
    another one names the variant that it repeats. `refused` are choices that a search may not make, with the reason.
    """

    name: str
    folder: Path
    fingerprint: str
    recipe: Recipe | None
    opset: int = 21
    level: Level = "balanced"
    widen_most: int = 0
    distill: DistillSpec | None = None
    black: tuple[float, ...] = ()
    search: SearchSpec | None = None
    granularity: str = "channel"
    batch: int = 1
    factorize: FactorizeSpec | None = None
    output: OutputSpec | None = None
    features: FeaturesSpec | None = None
    seed: int | None = None
    repeats: str = ""
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> Path:
        """The folder of all trials: that of a further seed lies in ``seeds`` of its variant's."""
        return self.folder.parents[2] if self.repeats else self.folder.parent

    @property
    def training(self) -> DistillSpec | SearchSpec | None:
        """What trains the student, if something does."""
        return self.distill or self.search


@dataclass(frozen=True)
class _Sources:
    """What a trial calibrates, trains and reports on."""

    calibration: Samples
    train: Samples
    test: Samples


def run_trial(
    task: Task,
    model: nn.Module,
    calibration: Samples,
    test: Samples,
    settings: Settings,
    *,
    train: Samples | None = None,
    progress: bool = True,
) -> Trial:
    """Do a trial, or read it if its folder holds it finished. A failing variant is a failed trial, not an exception.

    A task that distills, searches or has an output on a path trains on `train`, by default on the calibration data.

    Raises:
        DataError: results cannot be written, or the float baseline is missing.
    """
    done = finished(task)
    if done is not None:
        return done
    settings = settings if task.seed is None else replace(settings, seed=task.seed)
    torch.manual_seed(settings.seed)
    began = time.perf_counter()
    task.folder.mkdir(parents=True, exist_ok=True)
    for stale in task.folder.glob(".*.????????.*"):  # what a kill left of `files.replacing`
        stale.unlink()
    (task.folder / "trial.json").unlink(missing_ok=True)  # else, killed below, it would describe the wrong file
    try:
        with _threads(settings.threads):
            trained_on = calibration if train is None else train
            trial = _measure(task, model, _Sources(calibration, trained_on, test), settings, progress)
    except LowbitError as error:
        if task.recipe is None:
            raise  # nothing can be compared without the float baseline
        trial = Trial(task.name, task.recipe.to_dict(), task.fingerprint, "failed", error=str(error))
    trial = replace(trial, seconds=time.perf_counter() - began)
    files.write_json(task.folder / "trial.json", asdict(trial))
    if trial.verdict != "failed":
        trained.tidy(task)
    return trial


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads: sums come out differently in the last bit on more, and figures must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finished(task: Task) -> Trial | None:
    """The trial in the task's folder if it is complete, did not fail, and answers the same question.

    Raises:
        DataError: its record is damaged.
    """
    if not all((task.folder / name).exists() for name in ("trial.json", "model.onnx", "outputs.npy")):
        return None
    trial = read(Trial, task.folder / "trial.json")
    return trial if trial.fingerprint == task.fingerprint and trial.verdict != "failed" else None


def _measure(task: Task, model: nn.Module, data: _Sources, settings: Settings, progress: bool) -> Trial:
    test = data.test
    example = without_labels(next(iter(test.batches(2))))
    with on_accelerator(model):
        made = _make(task, model, data, settings, progress)
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
        drawn = _drawn(test, VERIFIED, settings.seed)
        verification = verify(exported, drawn, runtime=settings.runtime, threads=settings.threads, progress=progress)
    with files.replacing(task.folder / "outputs.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, outputs)
    reference = outputs if task.recipe is None else _baseline(task.variants)
    labels = None if test.labels is None else test.labels.numpy()
    simulated = _model_outputs(exported.model, test, progress)
    same = float((statistics.predictions(outputs, simulated) == statistics.predictions(simulated)).mean())
    agreeing = np.asarray(statistics.predictions(outputs, reference) == statistics.predictions(reference))
    agreement = statistics.share(agreeing)
    note_agreement(exported.path, int(agreeing.sum()), len(agreeing))
    costs, covered = cost(student, example), coverage(student)
    measured = (settings.metric, outputs, labels, reference, settings.seed, settings.folder)
    twin = student if made.result else float_twin(made.source, student)
    if made.curved is not None:
        twin = curved.twin_of(twin, student)
    compared = _beside_post_training(made, measured)
    return Trial(
        task.name,
        made.recipe,
        task.fingerprint,
        "misses",  # the verdict is given when the run is put together: the KPI's minimum is no part of a trial
        score=statistics.score(*measured),
        difference=statistics.difference(*measured) if task.recipe else None,
        agreement=agreement if task.recipe else None,
        file=(task.folder / "model.onnx").relative_to(task.variants.parent).as_posix(),
        file_bytes=exported.path.stat().st_size,
        weight_bytes=costs.weight_bytes,
        parameters=costs.parameters,
        macs=costs.macs,
        bops=costs.bops,
        activation_bytes=costs.activation_bytes,
        layers=_layer_rows(student, twin, costs, covered, verification),
        verification=VerificationRow(
            settings.runtime,
            len(outputs),
            same,
            verification.same_codes,
            verification.largest_code_difference,
            verification.kernels,
            tuple(verification.stayed_float) if task.recipe else (),
            tuple(ObstacleRow(o.where, o.what, o.remedy) for o in verification.obstacles) if task.recipe else (),
        ),
        notes=(*made.notes, *verification.unlike_calibration, *_notes(student, covered, task.opset)),
        distillation=distilled.row(made.result, *compared) if isinstance(made.result, Distillation) else None,
        search=searched.row(task, made.result, *compared) if isinstance(made.result, Search) else None,
        factorization=factorized.row(made.found) if made.found else None,
        output=_output_row(task, made, model, exported.model, data, (outputs, reference), settings, progress),
        features=coded.row(made.coded, test, (outputs, reference), seed=settings.seed) if made.coded else None,
    )


def _output_row(
    task: Task,
    made: _Made,
    model: nn.Module,
    student: nn.Module,
    data: _Sources,
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
        _in_batches(data.train),
        _in_batches(data.calibration),
        data.test.batches(BATCH),
        None if settings.metric == "accuracy" else data.test.labels,  # classes are no targets
        reference,
        found,
        None if made.before is None else torch.from_numpy(np.asarray(made.before, dtype=np.float32)),
    )
    return compared.row(task, made.curved, measured, seed=settings.seed, progress=progress)


@dataclass(frozen=True)
class _Made:
    """A student, the recipe it was asked for, in sentences how it was made, and for a trained one how that went.

    `source` is the float model that it is the student of: not the user's, where that learned to return points. `before`
    are the outputs on the test data of the student that post-training or factorization alone makes, `found` is what
    came of the latter, `curved` what became of the output, and `coded` what became of the features.
    """

    student: nn.Module
    source: nn.Module
    recipe: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    result: Distillation | Search | None = None
    before: Array | None = None
    found: Factorization | None = None
    curved: curved.Curved | None = None
    coded: coded.Coded | None = None


def _make(task: Task, model: nn.Module, data: _Sources, settings: Settings, progress: bool) -> _Made:
    """The student of a task; its recipe, wider where that was asked for, or searched, beside the file."""
    if task.recipe is None:
        return _Made(model, model)
    if task.features is not None:
        return _make_coded(task, model, data, settings, progress)
    if task.factorize is not None:
        return _make_factorized(task, model, data, settings, progress)
    return _make_post_trained(task, model, data, settings, progress)


def _make_coded(task: Task, model: nn.Module, data: _Sources, settings: Settings, progress: bool) -> _Made:
    """The student of a task whose features become codes: a float model with codes comes before all else."""
    bits, task = coded.give(task, model, data.train, seed=settings.seed)
    bits.save(task.folder)
    make = _make_post_trained if task.factorize is None else _make_factorized
    made = make(task, model, data, settings, progress, bits)
    return replace(made, notes=(*bits.notes, *made.notes), coded=bits)


def _make_post_trained(
    task: Task,
    model: nn.Module,
    data: _Sources,
    settings: Settings,
    progress: bool,
    bits: coded.Coded | None = None,
) -> _Made:
    """The student of a task that post-trains, and may train it then; with `bits`, one of the float model with codes."""
    assert task.recipe is not None
    seed, batches = settings.seed, _in_batches(data.calibration)
    teacher, model = model, model if bits is None else bits.model
    asked, student, warned = task.recipe, model, list[str]()
    result: Distillation | Search | None = None
    curve: curved.Curved | None = None
    if task.output is not None:
        curve, warned = curved.give(
            task, model, data.train, data.calibration, _in_batches, seed=seed, progress=progress
        )
        student = model = teacher = curve.model
    ended = _ending(curve, batches)
    if task.search is not None:
        costs = measure(task, model, data.calibration, data.test, settings, progress)
        student, result, warned = searched.train(
            task, model, _in_batches(data.train), costs, seed=seed, progress=progress
        )
        asked = result.recipe
    post_trained, did = post_train(
        model, asked, batches, level=task.level, widen_most=task.widen_most, seed=seed, progress=progress
    )
    did = did if curve is None else curved.in_points(did)
    noted, told = origin(post_trained), f"post-training, level {task.level}: {did}"
    assert noted is not None
    section = {} if curve is None else curve.section()
    section |= {} if bits is None else bits.section()
    if curve is not None:
        curve.save(task.folder)
    files.write_text(task.folder / "recipe.yaml", yaml.safe_dump(noted.recipe.to_dict() | section, sort_keys=False))
    recipe = asked.to_dict() | section
    notes = curve.notes if curve else ()
    if task.training is None:
        return _Made(ended(post_trained), model, recipe, (*notes, told, *warned), curved=curve)
    before = _model_outputs(freeze(ended(post_trained)), data.test, progress)  # as its file would compute
    if task.distill is not None:
        student = quantize(model, noted.recipe, fold=False)
        calibrate(student, batches, progress=progress)
        student, result, more = distilled.train(
            task, teacher, student, _in_batches(data.train), seed=seed, progress=progress
        )
        warned = [*warned, *more]
    notes = (*notes, str(result), f"compared with {told}", *warned)
    return _Made(ended(student), model, recipe, notes, result, before, curved=curve)


def _ending(curve: curved.Curved | None, calibration: Batches) -> Callable[[nn.Module], nn.Module]:
    """What ends a finished student: a decoder if it returns points, the scale of its codes if it has some."""
    return coded.ended if curve is None else functools.partial(curved.end, curve, calibration)


def _make_factorized(
    task: Task,
    model: nn.Module,
    data: _Sources,
    settings: Settings,
    progress: bool,
    bits: coded.Coded | None = None,
) -> _Made:
    """The student of a task that factorizes, and may train it then; with `bits`, one of the float model with codes."""
    seed, batches = settings.seed, _in_batches(data.calibration)
    teacher, model = model, model if bits is None else bits.model
    costs, untimed = _times(task, model, data, settings, progress)
    student, found = factorized.make(task, model, batches, costs, seed=seed, progress=progress)
    recipe = factorized.recipe_of(task, found, seed) | ({} if bits is None else bits.section())
    files.write_text(task.folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    if task.distill is None:
        return _Made(coded.ended(student), model, recipe, (str(found), *untimed), found=found)
    before = _model_outputs(freeze(coded.ended(folded(copy.deepcopy(student)))), data.test, progress)
    student, result, warned = distilled.train(
        task, teacher, student, _in_batches(data.train), seed=seed, progress=progress
    )
    notes = (str(result), f"compared with {found}", *untimed, *warned)
    return _Made(coded.ended(student), model, recipe, notes, result, before, found)


def _times(
    task: Task, model: nn.Module, data: _Sources, settings: Settings, progress: bool
) -> tuple[MeasuredCosts | None, list[str]]:
    """What the choices of a task that factorizes cost, and what is to be told where that could not be measured."""
    try:
        costs = measure(task, model, data.calibration, data.test, settings, progress)
    except LowbitError as error:
        if factorized.times_decide(task):
            raise
        return None, [f"layers have no milliseconds: {error}"]
    return costs, factorized.untimed(costs)


def measure(
    task: Task, model: nn.Module, calibration: Samples, test: Samples, settings: Settings, progress: bool
) -> MeasuredCosts:
    """What the choices of a task that searches or factorizes cost in the runtime; they are kept for all trials.

    Raises:
        LowbitError: a choice or a layer does not exist, or the runtime can run none of the choices.
    """
    timed = example(test, task.batch)
    choices = factorized.choices(task, model, timed) if task.factorize else searched.choices(task, model)
    return measure_formats(
        model,
        choices.recipes,
        choices.layers,
        _in_batches(calibration),
        timed,
        models=choices.models,
        runtime=settings.runtime,
        threads=settings.threads,
        opset=task.opset,
        cache=settings.costs,
        progress=progress,
    )


def example(data: Samples, size: int) -> Tensor | dict[str, Tensor]:
    """A batch of the first inputs; they are repeated where there are fewer."""
    return resized(next(iter(data.batches(size))), size)


def _in_batches(data: Samples) -> Batches:
    """At least eight batches where there are as many samples: some are held out."""
    return data.batches(max(1, min(BATCH, len(data) // 8)))


def _beside_post_training(
    made: _Made, measured: tuple[str, Array, Array | None, Array, int, Path | None]
) -> tuple[Score | None, Score | None]:
    """The KPI's metric of the student that post-training alone makes, and what training gained over it."""
    if made.before is None:
        return None, None
    metric, _, labels, reference, seed, folder = measured
    post_training: Score | None = None
    with contextlib.suppress(DataError):  # an own metric may have no value for a student that collapsed
        post_training = statistics.score(metric, made.before, labels, reference, seed, folder)
        return post_training, statistics.difference(*measured, baseline=made.before)
    return post_training, None


def file_outputs(path: Path, data: Samples, settings: Settings, progress: bool = True) -> Array:
    """First output of a file for all samples, `[N, ...]`."""
    session = open_session(path, runtime=settings.runtime, threads=settings.threads)
    rows = []
    for batch in track(data.batches(BATCH), f"run {path.parent.name}", show=progress):
        rows.append(session.run(feed_of(batch, session))[0])
    outputs = np.concatenate(rows)
    if np.isnan(outputs).any():
        raise DataError(f"'{path}' returns NaN for {np.isnan(outputs).mean():.2%} of its outputs; check model and data")
    return outputs


def _model_outputs(model: nn.Module, data: Samples, progress: bool) -> Array:
    with torch.no_grad():
        batches = track(data.batches(BATCH), "fake quantize", show=progress)
        return np.concatenate([output_tensor(call(model, batch)).cpu().numpy() for batch in batches])


def _drawn(data: Samples, count: int, seed: int) -> Batches:
    """Batches of some of the samples: drawn from all, which may be sorted by class, where the data can do that."""
    take = getattr(data, "take", None)
    some: Samples = take(count, seed) if callable(take) and len(data) > count else data
    for _, batch in zip(range(-(-count // BATCH)), some.batches(BATCH), strict=False):
        yield batch


def _baseline(variants: Path) -> Array:
    path = variants / "float" / "outputs.npy"
    with files.reading(path):
        return np.asarray(np.load(path, allow_pickle=False))


def _layer_rows(
    student: nn.Module, twin: nn.Module, costs: Cost, covered: Coverage, verified: Verification
) -> tuple[LayerRow, ...]:
    rows, twins = {row.name: row for row in covered.layers}, dict(twin.named_modules())
    result = []
    for layer in costs.layers:
        row = rows[layer.name]
        reason = row.reason or verified.stayed_float.get(layer.name, "")
        kernel = verified.layers.get(layer.name, "")
        result.append(
            LayerRow(
                layer.name,
                layer.kind,
                row.weights,
                row.activations,
                row.granularity,
                layer.parameters,
                layer.macs,
                layer.bops,
                layer.weight_bytes,
                _sqnr(student.get_submodule(layer.name), twins.get(layer.name)),
                kernel,
                reason,
            )
        )
    return tuple(result)


def _sqnr(layer: nn.Module, twin: nn.Module | None) -> float | None:
    """Signal to quantization noise ratio of a layer's weights in dB; None for float weights, exact ones or a chain's.

    The signal is the twin's float weights: the model's, or where `twin` is `layer`, those that training ended with.
    """
    if twin is None or not isinstance(layer, Quantized) or not isinstance(layer.weight_quantizer, Quantizer):
        return None
    with torch.no_grad():
        weight = (twin.layer if isinstance(twin, Quantized) else twin).get_parameter("weight").double()
        noise = float(((layer.weight.double() - weight) ** 2).sum())
        signal = float((weight**2).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def _notes(student: nn.Module, covered: Coverage, opset: int) -> tuple[str, ...]:
    formats = {m.weight_quantizer.format for m in student.modules() if isinstance(m, Quantized) and m.weight_quantizer}
    stored = [how_stored(fmt, opset) for fmt in sorted(formats, key=str)]
    return tuple(note for note in (covered.note, *stored) if note)
