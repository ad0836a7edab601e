"""What a pilot file will do, how long about, and what it will write, told before any of it runs.

Everything that can be wrong is looked at: the file, its recipes against the layers, the data, the metric, the training
data. Then times are estimated. One forward pass of the float network and of a student, and a training step of each, are
timed on this machine at the batch sizes that the pilot uses; the rest is counting, times factors that were measured
once (`_PASSES` and below, 2026-11-22, two cores of an Intel Xeon, ResNet-20 and two small networks). Where a factor
stands for much of the time, such as the export of a small network, another processor is off by as much as it differs.
"""

from __future__ import annotations

import copy
import difflib
import glob
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batch, bytes_of, call, output_tensor, shapes_of
from lowbit.costs import cost
from lowbit.errors import DataError, LowbitError, RecipeError
from lowbit.layers import weighted_layers
from lowbit.methods.discrimination.linear import LIMIT
from lowbit.pilot import factorized, searched
from lowbit.pilot.measured import Choices
from lowbit.pilot.run import REPEATS, tasks_of
from lowbit.pilot.sections.output import OutputSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.pilot.spec import DataSpec, PilotSpec, load_spec, problems_of
from lowbit.pilot.statistics import check_metric
from lowbit.pilot.trial import BATCH, VERIFIED, Samples, Task, example, finished
from lowbit.post_training.levels import TUNING_STEPS, Level
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.data import Data

# what each step of post-training takes, in forward passes of the student over the calibration samples
_PASSES: dict[Level, dict[str, float]] = {
    "fast": {"calibrate": 2.5},
    "balanced": {"calibrate": 2.5, "round weights": 14.0, "correct biases": 6.0},
}
_PASSES["best"] = _PASSES["balanced"]
_CUBE = 1.7e-9  # seconds of rounding a layer whose weights have n columns, over n^3
_TUNING = 2.6  # training steps of a student that one step of `tune` takes, at _TUNED samples
_TUNED = 32
_EXPORT, _EXPORT_LAYER, _FIRST = 0.65, 0.06, 1.2  # seconds; the first export also imports what it needs
_VERIFY, _VERIFY_LAYER, _VERIFY_PASSES = 0.05, 0.02, 2.0
_RUNTIME, _FROZEN = 0.45, 1.3  # a pass of the file, and of the simulation of it, over one of the student
_STEP = 0.0008  # seconds that the training loop takes a step, beside the network
_DISTILL, _EPOCH = 3.0, 1.5  # steps that a step, and each epoch beside its steps, of learning quantizers takes
_FACTORS, _COMPARED = 1.2, 2.0  # seconds a layer that becomes a chain, and for errors of the other solvers
_HEADS = 4e-5  # seconds a feature of a sample of fitting all heads, on codes and on floats
_TIMED, _TIMED_LAYER = 1.3, 0.15  # what measuring a choice takes: exports, and seconds a layer
_RESAMPLED = 4e-8  # seconds a sample and resample of a bootstrap
_BOOTSTRAP = 1000  # resamples of a score and of a difference
_REPORT, _REPORT_VARIANT = 1.0, 0.2  # seconds
_FILE_LAYER, _RECORD_LAYER, _PAGE, _PAGE_VARIANT = 2500, 3000, 60_000, 25_000  # bytes
_PROCESS = 600e6  # bytes of Python with torch, ONNX and a runtime
_EVEN = 500  # samples that sensitivities of a search look at
_LONG = 1.0  # seconds that timing one thing may take, about


@dataclass(frozen=True)
class Step:
    """One step of a trial, and about how many seconds it takes."""

    name: str
    seconds: float


@dataclass(frozen=True)
class TrialPlan:
    """One trial that will run, or that is finished and kept; `bytes` are what its folder holds at the end.

    `settings` is what it was asked for, in words. A kept trial has no steps.
    """

    name: str
    settings: str
    steps: tuple[Step, ...]
    kept: bool
    bytes: float

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return sum(step.seconds for step in self.steps)


@dataclass(frozen=True)
class Plan:
    """What a pilot will do: trials in the order they start, then the latency of all files, and the report.

    `checkpoint_bytes` is what training needs beside that while it runs, and `memory` the most that one process holds,
    both in bytes; `basis` says what the estimates are from, and `seeds` what is run more than once, empty for nothing.
    """

    name: str
    kpi: str
    data: tuple[str, ...]
    folder: Path
    trials: tuple[TrialPlan, ...]
    last: tuple[Step, ...]
    checkpoint_bytes: float
    memory: float
    jobs: int
    basis: str
    seeds: str = ""

    @property
    def seconds(self) -> float:
        """About how long the command takes: trials side by side where `jobs` says so, but for the float baseline."""
        first, others = self.trials[0].seconds, [trial.seconds for trial in self.trials[1:]]
        at_once = max(1, min(self.jobs, len(others)))
        together = max(sum(others) / at_once, max(others, default=0.0))
        return first + together + sum(step.seconds for step in self.last)

    @property
    def bytes(self) -> float:
        """What the run folder holds at the end."""
        return sum(trial.bytes for trial in self.trials) + _PAGE + _PAGE_VARIANT * len(self.trials)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.kpi}", *(f"  {line}" for line in (*self.data, self.seeds) if line)]
        lines += ["", "In this order:"]
        for number, trial in enumerate(self.trials, start=1):
            takes = "kept, finished in the run folder" if trial.kept else f"about {_duration(trial.seconds)}"
            lines.append(f"{number:>3}. {trial.name}: {takes}, {_size(trial.bytes)}")
            lines.append(f"     {trial.settings}")
            if trial.steps:
                lines.append("     " + ", ".join(f"{step.name} {_duration(step.seconds)}" for step in trial.steps))
        after = ", ".join(f"{step.name} {_duration(step.seconds)}" for step in self.last)
        lines.append(f"{len(self.trials) + 1:>3}. all files: {after}")
        side = f", {self.jobs} variants at once" if self.jobs > 1 else ""
        written = f"about {_size(self.bytes)}"
        if self.checkpoint_bytes:
            written += f", and while it trains up to {_size(self.checkpoint_bytes)} of checkpoints"
        lines += [
            "",
            f"In all about {_duration(self.seconds)}{side}.",
            f"It writes {self.folder}: {written}; report.html is the page.",
            f"Memory: about {_size(self.memory)} in each process.",
            self.basis,
        ]
        return "\n".join(lines)


class PlanError(RecipeError):
    """Every problem that keeps a pilot from running; the message is the first one."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0])
        self.problems = tuple(problems)


def plan_file(path: Path, out: Path | None = None, *, jobs: int = 1) -> Plan:
    """Look at all that a pilot file names, and plan it. Nothing is written and no variant runs.

    Args:
        path: the pilot file.
        out: the run folder, ``runs/<name>`` by default.
        jobs: variants at once.

    Raises:
        PlanError: something is wrong; `problems` has all that was found.
        DataError: the file cannot be read.
    """
    from lowbit import models

    data, base, found = files.read_yaml(path), path.resolve().parent, list[str]()
    if isinstance(data, dict) and (wrong := problems_of(data, os.fspath(path))):
        raise PlanError(wrong)
    try:
        spec = load_spec(path)
    except LowbitError as error:
        raise PlanError([str(error)]) from error
    folder = out or Path("runs", spec.name)
    model = _tried(found, lambda: models.load(spec.model, spec.weights, base))
    opened = {
        key: _tried(found, _opening(section, base, spec.seed, f"data.{key}"))
        for key, section in spec.data
        if section is not None
    }
    calibration, test = opened["calibration"], opened["test"]
    if test is not None:
        labels = None if test.labels is None else test.labels.numpy()
        _tried(found, lambda: check_metric(spec.kpi.metric, labels, base))
    found += _unwritable(folder)
    if model is not None:
        found += _mismatches(model, spec, base, os.fspath(path))
    if model is None or calibration is None or test is None:
        raise PlanError(found)
    try:
        tasks, train = tasks_of(spec, model, calibration, test, folder, train=opened.get("train"), base=base)
        example_of = example(test, spec.runtime.batches[0])
        for task in tasks[1:]:  # what they can choose from has to exist
            _tried(found, lambda task=task: _choices(task, model, example_of), f"variant '{task.name}': ")  # type: ignore[misc]
    except LowbitError as error:
        found += [str(error)] if str(error) not in found else []
    if found:
        raise PlanError(found)
    return plan_pilot(spec, model, tasks, (calibration, train, test), folder, jobs=jobs)


T = TypeVar("T")


def _tried(found: list[str], do: Callable[[], T], where: str = "") -> T | None:
    """What `do` returns; an error goes to `found`."""
    try:
        return do()
    except LowbitError as error:
        found.append(f"{where}{error}")
        return None


def _opening(section: DataSpec, base: Path, seed: int, key: str) -> Callable[[], Data]:
    def opened() -> Data:
        try:
            return section.open(base, seed)
        except LowbitError as error:
            raise DataError(f"{key}: {error}") from error

    return opened


def _unwritable(folder: Path) -> list[str]:
    """Why a folder cannot be written, if it cannot."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        return [f"run folder '{folder}': '{there}' is a file; choose another folder with --out"]
    return [] if os.access(there, os.W_OK) else [f"run folder '{folder}': '{there}' cannot be written; choose another"]


def _mismatches(model: nn.Module, spec: PilotSpec, base: Path, where: str) -> list[str]:
    """What in the variants does not fit the layers of the model."""
    found, named = list[str](), dict(model.named_modules())
    for i, variant in enumerate(spec.variants):
        at = f"{where}: variants[{i}] ('{variant.name}')"
        coded = variant.features
        if coded and coded.layer and coded.layer not in named:
            found.append(f"{at}: features.layer: {_no_layer(coded.layer, named, model)}")
        if not (coded and coded.layer) and not (
            variant.search or variant.factorize or (variant.output and variant.output.heads != "shared")
        ):
            _tried(found, lambda v=variant: _sized(model, v.to_recipe(base, where)), f"{at}: ")  # type: ignore[misc]
        for feature in variant.distill.features if variant.distill else ():
            if feature not in named:
                found.append(f"{at}: distill.features: {_no_layer(feature, named, model)}")
    return found


def _no_layer(name: str, named: Collection[str], model: nn.Module) -> str:
    near = difflib.get_close_matches(name, [one for one in named if one], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"layers are {', '.join(weighted_layers(model))}"
    return f"the model has no layer {name!r}; {hint}"


def _sized(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A student by a recipe, with scales that take no time: it fits or it does not, and it has its size.

    Raises:
        LowbitError: the recipe does not fit the model.
    """
    return quantize(model, replace(recipe, rules=tuple(replace(r, weight_scale="absmax") for r in recipe.rules)))


def _choices(task: Task, model: nn.Module, example: Batch) -> Choices | None:
    """What a task that searches or factorizes can choose from.

    Raises:
        LowbitError: a choice or a layer does not exist.
    """
    if task.search:
        return searched.choices(task, model)
    return factorized.choices(task, model, example) if task.factorize else None


def plan_pilot(
    spec: PilotSpec,
    model: nn.Module,
    tasks: Sequence[Task],
    data: tuple[Samples, Samples, Samples],
    folder: Path,
    *,
    jobs: int = 1,
) -> Plan:
    """The plan of tasks that fit the model and the data: what is kept, and what the rest takes.

    Args:
        spec: the pilot file.
        model: the float network.
        tasks: of `lowbit.pilot.run.tasks_of`.
        data: for calibration, training and test.
        folder: the run folder.
        jobs: variants at once.

    Raises:
        LowbitError: a trial's record is damaged, or the model does not take the data.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(spec.runtime.threads)
    try:
        ground = _Ground(spec, model, data, _Watch(model, tasks, data[2]))
        kept = {task.name for task in tasks if finished(task)}
        first = next((task.name for task in tasks if task.name not in kept), "")
        trials = tuple(ground.trial(task, kept=task.name in kept, first=task.name == first) for task in tasks)
        last = ground.last(
            sum(not task.repeats for task in tasks), nothing_new=not first and (folder / "latency.json").exists()
        )
    finally:
        torch.set_num_threads(before)
    left = [task for task in tasks if task.name not in kept]
    described = ("calibration", data[0]), ("training", data[1]), ("test", data[2])
    return Plan(
        spec.name,
        f"{', '.join(_asked(spec))}, {spec.runtime.name}, {spec.runtime.threads} threads",
        tuple(f"{what}: {_described(one)}" for what, one in described if what != "training" or one is not data[0]),
        folder,
        trials,
        last,
        max((ground.checkpoint(task) for task in left), default=0.0),
        max((ground.memory(task) for task in left), default=ground.memory(tasks[0])),
        jobs,
        ground.basis,
        _seeds(spec),
    )


def _asked(spec: PilotSpec) -> Iterator[str]:
    """What is asked of a variant."""
    yield str(spec.kpi.asked())
    if spec.budgets and spec.budgets.size is not None:
        yield f"file <= {_size(spec.budgets.size)}"
    if spec.budgets and spec.budgets.bops is not None:
        yield f"BOPs <= {spec.budgets.bops:,.0f}"
    if spec.budgets and spec.budgets.latency is not None:
        yield f"latency <= {spec.budgets.latency:g} ms at batch {spec.runtime.batches[0]}"


def _seeds(spec: PilotSpec) -> str:
    """What several seeds are for; empty where there are none."""
    if len(spec.seeds) < 2:
        return ""
    learning = sum(variant.learns for variant in spec.variants)
    named = ", ".join(map(str, spec.seeds))
    many = f"{learning} of {len(spec.variants)} variants learn"
    return f"seeds {named}: {many} and run {len(spec.seeds)} times, the rest once"


def _described(data: Samples) -> str:
    shape = shapes_of(next(iter(data.batches(1))))
    kinds = {None: "no labels", True: "targets", False: "classes"}
    labels = kinds[None if data.labels is None else data.labels.is_floating_point()]
    return f"{len(data)} samples of {shape}, {labels}"


class _Watch:
    """Times passes of the float model and of a student on this machine, each batch size once."""

    def __init__(self, model: nn.Module, tasks: Sequence[Task], data: Samples) -> None:
        recipe = next((t.recipe for t in tasks if t.recipe and t.recipe.rules), Recipe.uniform("int8", "int8"))
        self._data, self._model = data, copy.deepcopy(model).eval()
        began = time.perf_counter()
        try:
            self._student = quantize(model, recipe)
        except LowbitError:  # one that a search, a chain or an output makes fit
            self._student = quantize(model, Recipe.uniform("int8", "int8"))
        self.quantizing = time.perf_counter() - began
        calibrate(self._student, [example(data, 8)], progress=False)
        self._known: dict[tuple[bool, bool, int], float] = {}

    def seconds(self, size: int, *, student: bool = False, training: bool = False) -> float:
        """A batch of `size` samples through a network; a training step of it, with Adam, if `training`.

        Large batches that would take long are not run: a part is, and its time is multiplied.
        """
        key = (student, training, size)
        if key not in self._known:
            part = min(size, 8)
            found = self._timed(part, student, training)
            if part < size:
                slow = found * size / part > _LONG
                found = found * size / part if slow else self._timed(size, student, training)
            self._known[key] = found
        return self._known[key]

    def _timed(self, size: int, student: bool, training: bool) -> float:
        batch, network = example(self._data, size), self._student if student else self._model
        if not training:
            with torch.no_grad():
                return _least(lambda: call(network, batch))
        network = copy.deepcopy(network).train()
        learning = [p.requires_grad_() for p in network.parameters() if p.is_floating_point()]
        optimizer = torch.optim.Adam(learning, 1e-6)

        def step() -> None:
            optimizer.zero_grad()
            output_tensor(call(network, batch)).float().square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return _least(step)


def _least(do: Callable[[], object]) -> float:
    """The shortest of some calls in seconds, on the threads that are set or on one.

    Threads that wait for each other on a busy machine would be a multiple slower than what the pilot takes.
    """
    asked = torch.get_num_threads()
    found = _shortest(do)
    if asked > 1:
        torch.set_num_threads(1)
        found = min(found, _shortest(do))
        torch.set_num_threads(asked)
    return found


def _shortest(do: Callable[[], object]) -> float:
    """The shortest of some calls after one that does not count; fewer where they are long."""
    times, began = list[float](), time.perf_counter()
    do()
    while len(times) < 5 and (not times or time.perf_counter() - began < _LONG):
        start = time.perf_counter()
        do()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class _Ground:
    """What estimates are made of: the pilot, its model and data, and times of passes."""

    spec: PilotSpec
    model: nn.Module
    data: tuple[Samples, Samples, Samples]  # for calibration, training and test
    watch: _Watch

    @property
    def basis(self) -> str:
        """What the times are from."""
        calibration, size = self.data[0], self.batch(self.data[0])
        forward, student = self.watch.seconds(size), self.watch.seconds(size, student=True)
        cores = os.cpu_count() or 1
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        busy = f" This one is busy: {load:.1f} jobs on {cores} cores." if load > cores else ""
        return (
            f"Estimated, not measured: a batch of {size} takes {forward * 1e3:.3g} ms in the float model and "
            f"{student * 1e3:.3g} ms in a student in torch on this machine just now; passes, epochs and steps are "
            f"counted ({len(calibration)} calibration samples), and factors measured elsewhere fill the rest. On "
            f"a quiet machine expect it to be within a factor of 3.{busy}"
        )

    @staticmethod
    def batch(data: Samples) -> int:
        """The batch size in which a trial reads data."""
        return max(1, min(BATCH, len(data) // 8))

    def passes(self, data: Samples, samples: int | None = None, *, student: bool = True) -> float:
        """Seconds of all samples, or so many, through a network once."""
        size = self.batch(data)
        return self.watch.seconds(size, student=student) * (len(data) if samples is None else samples) / size

    def trial(self, task: Task, *, kept: bool, first: bool) -> TrialPlan:
        """The plan of one trial; the `first` of a process imports what exports need."""
        steps = () if kept else tuple(self._steps(task, first))
        return TrialPlan(task.name, _settings(task), steps, kept, self._bytes(task))

    def _steps(self, task: Task, first: bool) -> Iterator[Step]:
        layers, test = len(weighted_layers(self.model)), self.data[2]
        scored = self.passes(test, student=task.recipe is not None) * _FROZEN
        if task.features:
            yield Step("features", self._features())
        if task.output:
            yield Step("output", self._output(task, task.output))
        if task.search or task.factorize:
            yield from self._choosing(task)
        if task.recipe is not None and not task.factorize:
            yield from self._post_training(task)
        if task.distill:
            rate = self._training(task.distill, len(self.data[1]), task.distill.batch_size or 128)
            yield Step(f"distill ({task.distill.epochs} epochs)", rate + scored + self.watch.quantizing)
        yield Step("export", _EXPORT + _EXPORT_LAYER * layers + (_FIRST if first else 0.0))
        drawn = self.passes(test, min(VERIFIED, len(test)), student=task.recipe is not None)
        yield Step("verify", _VERIFY + _VERIFY_LAYER * layers + _VERIFY_PASSES * drawn)
        quick = self.spec.kpi.metric in ("accuracy", "agreement", "cosine")
        resampled = 0 if quick else _BOOTSTRAP * len(test) * _RESAMPLED
        yield Step("score", scored * (1 + _RUNTIME) + resampled)

    def _post_training(self, task: Task) -> Iterator[Step]:
        once = self.passes(self.data[0])
        columns = [w.shape[1:].numel() for layer in weighted_layers(self.model).values() for w in [_weight(layer)]]
        for name, passes in _PASSES[task.level].items():
            beside = self.watch.quantizing if name == "calibrate" else 0.0
            beside += _CUBE * sum(c**3 for c in columns) if name == "round weights" else 0.0
            yield Step(name, passes * once + beside)
        if task.level == "best":
            yield Step(f"tune ({TUNING_STEPS} steps)", TUNING_STEPS * _TUNING * self._step(_TUNED))
        if task.widen_most:
            yield Step("widen", len(columns) * 0.5 * once)

    def _step(self, size: int, *, student: bool = True) -> float:
        return self.watch.seconds(size, student=student, training=True)

    def _training(self, how: DistillSpec | SearchSpec, samples: int, size: int) -> float:
        """Seconds of training a student on so many samples, in steps of `size`."""
        size = min(size, samples)
        held = samples - samples // 16
        step = self._step(size)
        return how.epochs * (max(1, held // size) * (_STEP + _DISTILL * step) + _EPOCH * step)

    def _choosing(self, task: Task) -> Iterator[Step]:
        """What comes before and with a search or a factorization."""
        layers = weighted_layers(self.model)
        choices = _choices(task, self.model, example(self.data[2], task.batch))
        assert choices is not None
        one = _TIMED * (_EXPORT + _EXPORT_LAYER * len(layers)) + _TIMED_LAYER * len(layers)
        calls = 2 * REPEATS * self.watch.seconds(task.batch) * _RUNTIME
        yield Step(
            f"time {len(choices.recipes)} choices", len(choices.recipes) * (one + calls + self.passes(self.data[0]))
        )
        if task.factorize:
            chained = len({name for recipe in choices.recipes.values() for name in _chained(recipe, layers)})
            each = _FACTORS + (_COMPARED if task.factorize.compare else 0.0)
            yield Step(f"factorize {chained} layers", each * chained + 20 * self.passes(self.data[0]))
            return
        assert task.search is not None
        train = self.data[1]
        tried = len(choices.layers) * len(choices.recipes) * self.passes(train, min(_EVEN, len(train)))
        yield Step(
            f"search ({task.search.epochs} epochs)",
            tried + self._training(task.search, len(train), task.search.batch_size or 64),
        )

    def _output(self, task: Task, how: OutputSpec) -> float:
        """Seconds of learning a path, and of its controls: another training and students of their own."""
        once, train = self.passes(self.data[0]), self.data[1]
        students = (4 if how.controls else 1) * (sum(_PASSES[task.level].values()) * once + self.watch.quantizing)
        students += 4 * self.passes(self.data[2]) if how.controls else 0.0
        if how.path.startswith("fold"):
            return students
        size = min(how.batch_size or 64, len(train))
        step = _STEP + 1.3 * self._step(size, student=False)
        fitted = how.epochs * max(1, (len(train) - len(train) // 16) // size) * step
        return fitted * (2 if how.controls else 1) + students

    def _features(self) -> float:
        """Seconds of reading the features of all training and test data, and of linear heads on some of them."""
        train, test = self.data[1], self.data[2]
        linears = [layer.in_features for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        wide = linears[-1] if linears else 64
        fits = _HEADS * min(len(train), LIMIT) * wide
        return float(self.passes(train, student=False) + 2 * self.passes(test, student=False) + fits)

    def last(self, trials: int, *, nothing_new: bool) -> tuple[Step, ...]:
        """What comes after all trials."""
        calls = sum(self.watch.seconds(size) for size in self.spec.runtime.batches) * (REPEATS + 6) * _RUNTIME
        timing = () if nothing_new else (Step("time all in turn", calls * trials),)
        return (*timing, Step("report", _REPORT + _REPORT_VARIANT * trials))

    def _bytes(self, task: Task) -> float:
        test = self.data[2]
        with torch.no_grad():
            output = output_tensor(call(self.model, next(iter(test.batches(2)))))
        student = self.model if task.recipe is None else self._made(task)
        costs = cost(student, next(iter(test.batches(2))))
        # BatchNorms are folded, so a bias a channel is left of what is no weight
        rest = 4 * (costs.parameters - sum(layer.parameters for layer in costs.layers))
        weights = 4 * costs.parameters if task.output else 0
        records = (_FILE_LAYER + _RECORD_LAYER) * len(costs.layers)
        return float(costs.weight_bytes + rest + weights + records + 4 * len(test) * output[0].numel())

    def _made(self, task: Task) -> nn.Module:
        """A network with weights as large as those of the student that the task makes, at most."""
        assert task.recipe is not None
        rules = tuple(replace(rule, activations=None) for rule in task.recipe.rules if rule.weights)
        try:
            return _sized(self.model, Recipe(rules, glue=None)) if rules or task.search is None else self._at_8_bits()
        except LowbitError:  # layers of another head, or weights that all stay float
            return self._at_8_bits() if task.output else self.model

    def _at_8_bits(self) -> nn.Module:
        return _sized(self.model, Recipe.uniform("int8", None))

    def checkpoint(self, task: Task) -> float:
        """Bytes of the checkpoints of a task that trains: weights, two moments, and the best weights."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return 16.0 * parameters if task.training or task.output else 0.0

    def memory(self, task: Task) -> float:
        """Bytes that a process holds at most: itself, the data, networks, and numbers between layers."""
        several = {id(one): one for one in self.data}.values()
        sizes = [len(one) * bytes_of(next(iter(one.batches(1)))) for one in several]
        batch = next(iter(self.data[2].batches(2)))
        widest, all_of = cost(self.model, batch).activation_bytes, _activations(self.model, batch)
        weights = 4 * sum(p.numel() for p in self.model.parameters())
        held = float(BATCH * widest)
        if task.recipe is not None and (task.level != "fast" or task.factorize):
            held += 3.0 * len(self.data[0]) * widest  # a block's inputs and outputs, of two networks
        if task.training:
            held = max(held, 3.0 * all_of * (task.training.batch_size or 128))
        return _PROCESS + 2.0 * sum(sizes) + 8.0 * weights + held


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight") if "weight" in layer._parameters else torch.empty(0, 0)


def _activations(model: nn.Module, batch: Batch) -> float:
    """Bytes of what all layers of a model return for one sample."""
    total, hooks = [0.0], []

    def add(_: nn.Module, __: object, output: object) -> None:
        total[0] += 4 * output[0].numel() if isinstance(output, Tensor) and output.dim() else 0.0

    for module in model.modules():
        if not any(True for _ in module.children()):
            hooks.append(module.register_forward_hook(add))
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return total[0]


def _chained(recipe: Recipe, layers: Iterable[str]) -> Iterator[str]:
    """Layers that a recipe has parts of."""
    for name in layers:
        if any(rule.match.startswith(f"{glob.escape(name)}.") for rule in recipe.rules):
            yield name


def _settings(task: Task) -> str:
    """What a task was asked for, in words."""
    if task.recipe is None:
        return "the model as it is, in the runtime; all others are compared with it"
    rules = [f"{r.match} {r.weights or 'float32'}/{r.activations or 'float32'}" for r in task.recipe.rules]
    told = [", ".join(rules) or "formats are searched"]
    if not task.factorize:
        told.append(f"level {task.level}")
    for name in ("features", "output", "search", "factorize", "distill"):
        section = getattr(task, name)
        if section is not None:
            given = section.model_dump(mode="json", exclude_defaults=True)
            told.append(f"{name} {given}" if given else f"{name} by defaults")
    return "; ".join(told)


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
