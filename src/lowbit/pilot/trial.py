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
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batch, Batches, on_accelerator, resized
from lowbit.costs import MeasuredCosts
from lowbit.errors import LowbitError
from lowbit.export.measured import measure_formats
from lowbit.export.runtime import RuntimeName
from lowbit.methods.distillation.run import Distillation
from lowbit.methods.factorization.run import Factorization
from lowbit.methods.search.run import Search
from lowbit.pilot import coded, curved, distilled, factorized, searched, statistics, trained
from lowbit.pilot.examined import examine
from lowbit.pilot.measured import Choices
from lowbit.pilot.outputs import in_batches, model_outputs
from lowbit.pilot.record import Trial, read
from lowbit.pilot.sections.coding import FeaturesSpec
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.sections.output import OutputSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.pilot.statistics import Array
from lowbit.post_training.levels import Level, post_train
from lowbit.quantization import calibrate, freeze, origin, quantize
from lowbit.recipe import Recipe
from lowbit.training.students import finished as folded


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
class Sources:
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
        with threads(settings.threads):
            trained_on = calibration if train is None else train
            trial = _measure(task, model, Sources(calibration, trained_on, test), settings, progress)
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
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads: sums come out differently in the last bit on more, and figures must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> Trial:
    with on_accelerator(model):
        made = _make(task, model, data, settings, progress)
    return examine(task, model, made, data, settings, progress)


def finished(task: Task) -> Trial | None:
    """The trial in the task's folder if it is complete, did not fail, and answers the same question.

    Raises:
        DataError: its record is damaged.
    """
    if not all((task.folder / name).exists() for name in ("trial.json", "model.onnx", "outputs.npy")):
        return None
    trial = read(Trial, task.folder / "trial.json")
    return trial if trial.fingerprint == task.fingerprint and trial.verdict != "failed" else None


@dataclass(frozen=True)
class Made:
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


def _make(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> Made:
    """The student of a task; its recipe, wider where that was asked for, or searched, beside the file."""
    if task.recipe is None:
        return Made(model, model)
    if task.features is not None:
        return _make_coded(task, model, data, settings, progress)
    if task.factorize is not None:
        return _make_factorized(task, model, data, settings, progress)
    return _make_post_trained(task, model, data, settings, progress)


def _make_coded(task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool) -> Made:
    """The student of a task whose features become codes: a float model with codes comes before all else."""
    bits, task = coded.give(task, model, data.train, seed=settings.seed)
    bits.save(task.folder)
    make = _make_post_trained if task.factorize is None else _make_factorized
    made = make(task, model, data, settings, progress, bits)
    return replace(made, notes=(*bits.notes, *made.notes), coded=bits)


def _make_post_trained(
    task: Task,
    model: nn.Module,
    data: Sources,
    settings: Settings,
    progress: bool,
    bits: coded.Coded | None = None,
) -> Made:
    """The student of a task that post-trains, and may train it then; with `bits`, one of the float model with codes."""
    assert task.recipe is not None
    seed, batches = settings.seed, in_batches(data.calibration)
    teacher, model = model, model if bits is None else bits.model
    asked, student, warned = task.recipe, model, list[str]()
    result: Distillation | Search | None = None
    curve: curved.Curved | None = None
    if task.output is not None:
        curve, warned = curved.give(task, model, data.train, data.calibration, in_batches, seed=seed, progress=progress)
        student = model = teacher = curve.model
    ended = _ending(curve, batches)
    if task.search is not None:
        costs = measure(task, model, data.calibration, data.test, settings, progress)
        student, result, warned = searched.train(
            task, model, in_batches(data.train), costs, seed=seed, progress=progress
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
        return Made(ended(post_trained), model, recipe, (*notes, told, *warned), curved=curve)
    before = model_outputs(freeze(ended(post_trained)), data.test, progress)  # as its file would compute
    if task.distill is not None:
        student = quantize(model, noted.recipe, fold=False)
        calibrate(student, batches, progress=progress)
        student, result, more = distilled.train(
            task, teacher, student, in_batches(data.train), seed=seed, progress=progress
        )
        warned = [*warned, *more]
    notes = (*notes, str(result), f"compared with {told}", *warned)
    return Made(ended(student), model, recipe, notes, result, before, curved=curve)


def _ending(curve: curved.Curved | None, calibration: Batches) -> Callable[[nn.Module], nn.Module]:
    """What ends a finished student: a decoder if it returns points, the scale of its codes if it has some."""
    return coded.ended if curve is None else functools.partial(curved.end, curve, calibration)


def _make_factorized(
    task: Task,
    model: nn.Module,
    data: Sources,
    settings: Settings,
    progress: bool,
    bits: coded.Coded | None = None,
) -> Made:
    """The student of a task that factorizes, and may train it then; with `bits`, one of the float model with codes."""
    seed, batches = settings.seed, in_batches(data.calibration)
    teacher, model = model, model if bits is None else bits.model
    costs, untimed = _times(task, model, data, settings, progress)
    classes = statistics.of_predictions(settings.metric)
    student, found = factorized.make(task, model, batches, costs, classes=classes, seed=seed, progress=progress)
    recipe = factorized.recipe_of(task, found, seed) | ({} if bits is None else bits.section())
    files.write_text(task.folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    if task.distill is None:
        return Made(coded.ended(student), model, recipe, (str(found), *untimed), found=found)
    before = model_outputs(freeze(coded.ended(folded(copy.deepcopy(student)))), data.test, progress)
    student, result, warned = distilled.train(
        task, teacher, student, in_batches(data.train), seed=seed, progress=progress
    )
    notes = (str(result), f"compared with {found}", *untimed, *warned)
    return Made(coded.ended(student), model, recipe, notes, result, before, found)


def _times(
    task: Task, model: nn.Module, data: Sources, settings: Settings, progress: bool
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
    choices = choices_of(task, model, timed)
    return measure_formats(
        model,
        choices.recipes,
        choices.layers,
        in_batches(calibration),
        timed,
        models=choices.models,
        runtime=settings.runtime,
        threads=settings.threads,
        opset=task.opset,
        cache=settings.costs,
        progress=progress,
    )


def choices_of(task: Task, model: nn.Module, timed: Batch) -> Choices:
    """What a task that searches or factorizes can choose from; `timed` is the batch that would be timed.

    Raises:
        LowbitError: a choice or a layer does not exist.
    """
    return factorized.choices(task, model, timed) if task.factorize else searched.choices(task, model)


def example(data: Samples, size: int) -> Tensor | dict[str, Tensor]:
    """A batch of the first inputs; they are repeated where there are fewer."""
    return resized(next(iter(data.batches(size))), size)
