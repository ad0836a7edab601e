"""About how long the trials of a pilot take, and how large what they write and hold is.

One forward pass of the float network and of a student, and a training step of each, are timed on this machine at the
batch sizes that the pilot uses; the rest is counting, times factors that were measured once (below, 2026-11-22, two
cores of an Intel Xeon, ResNet-20 and two small networks). Where a factor stands for much of the time, such as the
export of a small network, another processor is off by as much as it differs.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, bytes_of, call, output_tensor
from lowbit.costs import cost
from lowbit.errors import LowbitError
from lowbit.formats import Format, parse
from lowbit.layers import weighted_layers
from lowbit.methods.curves.paths import DeepSnake
from lowbit.methods.discrimination.linear import LIMIT
from lowbit.pilot.costing import choices_of
from lowbit.pilot.examined import VERIFIED
from lowbit.pilot.fitting import sized
from lowbit.pilot.outputs import BATCH, batch_size, example
from lowbit.pilot.passes import Watch
from lowbit.pilot.plan import Step, TrialPlan
from lowbit.pilot.run import REPEATS
from lowbit.pilot.sections.output import OutputSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.pilot.spec import PilotSpec
from lowbit.pilot.task import Samples, Task
from lowbit.pilot.wording import counted, scalar
from lowbit.post_training.levels import TUNING_STEPS, Level
from lowbit.recipe import Recipe

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
_FILE_LAYER, _RECORD, _RECORD_LAYER = 2500, 4000, 1500  # bytes
_TABLE, _RECORD_PATH = 2 * 256**2, 55_000  # bytes: what reads two channels as a point on a path, and its drawing
_PROCESS = 600e6  # bytes of Python with torch, ONNX and a runtime
_EVEN = 500  # samples that sensitivities of a search look at


@dataclass(frozen=True)
class Ground:
    """What estimates are made of: the pilot, its model and data, and times of passes."""

    spec: PilotSpec
    model: nn.Module
    data: tuple[Samples, Samples, Samples]  # for calibration, training and test
    watch: Watch

    @property
    def basis(self) -> str:
        """What the times are from."""
        calibration, size = self.data[0], batch_size(self.data[0])
        forward, student = self.watch.seconds(size), self.watch.seconds(size, student=True)
        cores = os.cpu_count() or 1
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        busy = f" This one is busy: {load:.1f} jobs on {cores} cores." if load > cores else ""
        return (
            f"Estimated, not measured: a batch of {size} takes {forward * 1e3:.3g} ms in the float model and "
            f"{student * 1e3:.3g} ms in a student in torch on this machine just now; passes, epochs and steps are "
            f"counted ({counted(len(calibration), 'calibration sample')}), and factors measured elsewhere fill the "
            f"rest. On a quiet machine expect it to be within a factor of 3.{busy}"
        )

    def passes(self, data: Samples, samples: int | None = None, *, student: bool = True) -> float:
        """Seconds of all samples, or so many, through a network once."""
        size = batch_size(data)
        return self.watch.seconds(size, student=student) * (len(data) if samples is None else samples) / size

    def trial(self, task: Task, *, kept: bool, first: bool) -> TrialPlan:
        """The plan of one trial; the `first` of a process imports what exports need."""
        steps = () if kept else tuple(self._steps(task, first))
        file, beside = self._bytes(task)
        return TrialPlan(task.name, _settings(task), steps, kept, file, file + beside)

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
            yield Step(f"distill ({counted(task.distill.epochs, 'epoch')})", rate + scored + self.watch.quantizing)
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
        choices = choices_of(task, self.model, example(self.data[2], task.batch))
        one = _TIMED * (_EXPORT + _EXPORT_LAYER * len(layers)) + _TIMED_LAYER * len(layers)
        calls = 2 * REPEATS * self.watch.seconds(task.batch) * _RUNTIME
        yield Step(
            f"time {counted(len(choices.recipes), 'choice')}",
            len(choices.recipes) * (one + calls + self.passes(self.data[0])),
        )
        if task.factorize:
            chained = len({name for recipe in choices.recipes.values() for name in _chained(recipe, layers)})
            each = _FACTORS + (_COMPARED if task.factorize.compare else 0.0)
            yield Step(f"factorize {counted(chained, 'layer')}", each * chained + 20 * self.passes(self.data[0]))
            return
        assert task.search is not None
        train = self.data[1]
        tried = len(choices.layers) * len(choices.recipes) * self.passes(train, min(_EVEN, len(train)))
        yield Step(
            f"search ({counted(task.search.epochs, 'epoch')})",
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

    def _bytes(self, task: Task) -> tuple[float, float]:
        """Bytes of a task's ONNX file, and of all that lies beside it in its folder."""
        test = self.data[2]
        with torch.no_grad():
            output = output_tensor(call(self.model, next(iter(test.batches(2)))))
        student = self.model if task.recipe is None else self._made(task)
        costs = cost(student, next(iter(test.batches(2))))
        # BatchNorms are folded, so a bias a channel is left of what is no weight
        rest = 4 * (costs.parameters - sum(layer.parameters for layer in costs.layers))
        file = float(costs.weight_bytes + rest + _FILE_LAYER * len(costs.layers))
        beside = float(_RECORD + _RECORD_LAYER * len(costs.layers) + 4 * len(test) * output[0].numel())
        if task.output and not task.output.path.startswith("fold"):  # learned: its weights are kept too
            in_a_plane = not isinstance(task.output.curve, DeepSnake)
            file += _TABLE if in_a_plane and task.output.decoder != "arithmetic" else 0
            beside += _RECORD_PATH + 4 * costs.parameters
        return file, beside

    def _made(self, task: Task) -> nn.Module:
        """A network with weights as large as those of the student that the task makes, at most."""
        assert task.recipe is not None
        rules = tuple(replace(rule, activations=None) for rule in task.recipe.rules if rule.weights)
        try:
            return sized(self.model, Recipe(rules, glue=None)) if rules or task.search is None else self._at_8_bits()
        except LowbitError:  # layers of another head, or weights that all stay float
            return self._at_8_bits() if task.output else self.model

    def _at_8_bits(self) -> nn.Module:
        return sized(self.model, Recipe.uniform("int8", None))

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


def _settings(task: Task) -> str:
    """What a task was asked for, in words."""
    if task.recipe is None:
        return "the model as it is, in the runtime; all others are compared with it"
    rules = [f"{r.match} {_format(r.weights)}/{_format(r.activations)}" for r in task.recipe.rules]
    told = [", ".join(rules) or "formats are searched"]
    if not task.factorize:
        told.append(f"level {task.level}")
    for name in ("features", "output", "search", "factorize", "distill"):
        section = getattr(task, name)
        if section is not None:
            given = section.model_dump(mode="json", exclude_defaults=True)
            told.append(f"{name}: {scalar(given)}" if given else f"{name} by defaults")
    return "; ".join(told)


def _format(fmt: Format | None) -> str:
    """A format as pilot files name it: ``e2m1`` for ``e2m1fn``, which is the same."""
    name = "float32" if fmt is None else str(fmt)
    short = name.removesuffix("fn")
    return short if short != name and parse(short) == fmt else name


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
