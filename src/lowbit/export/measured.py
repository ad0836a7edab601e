"""What each layer costs in each choice of number formats, measured on the user's own runtime.

Bits are a poor guide to time: a layer in int4 is as fast as in int8 where the kernel unpacks it, one in e4m3 slower
than in float32 where the runtime converts at every call. So each choice becomes a file in which *all* layers have it,
is run whole, and the time of each operator is given to the layer that it belongs to (`owners`). All else is the rest:
adds, poolings, and layers that were not asked for. A choice may have a network of its own, in which a layer is made of
several, as a chain of factors is: what they take, with the conversions between them, is the layer's.

The choices take turns, so that what else the machine does hits all alike. Operators are timed in sessions of their own,
since profiling slows a call down; their times are scaled, for each choice by one factor, to sum up to the median of an
unprofiled call. Layers that are the same operation (kind, shapes, stride, ...) in a choice share the mean of their
times.

What a table cannot know: conversions between neighbors of different choices that no uniform file has, and layouts that
a runtime keeps only between equals. A choice for single float layers in an integer network should therefore keep the
activations quantized (``weights=None, activations=int8``): its file then holds those conversions. Measured on ResNet-20
in ONNX Runtime 1.31 and OpenVINO 2026.4, batch 1 and 32, sum / whole of a mix: int8 and int4 in turn .81 to 1.11; int8
and such float layers in turn .86 to .97; int8 and layers that are float32 all through in turn .53 to 1.07.
`check_additivity` says it for a file.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from pydantic import TypeAdapter
from torch import nn

from lowbit import files
from lowbit.batches import Batch, Batches
from lowbit.costs import MeasuredCosts
from lowbit.environment import versions
from lowbit.errors import CalibrationError, DataError, ExportError, LayerError, LowbitError, RecipeError
from lowbit.export.codes import feed_of
from lowbit.export.onnx import export_onnx
from lowbit.export.owners import Parts
from lowbit.export.runtime import Array, RuntimeName, Session, open_session
from lowbit.export.tables import about_of, keep, kept, operations_of, shapes_of, structure_of
from lowbit.layers import weighted_layers
from lowbit.progress import track
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe, Rule

_PASSES = 5  # profiled sessions of each choice: one that something interrupts does not count, by the median
_TURN = 5  # counted calls of a choice before it is the next one's turn


def measure_formats(
    model: nn.Module,
    recipes: Mapping[str, Recipe],
    layers: Sequence[str],
    calibration: Batches,
    example: Batch,
    *,
    models: Mapping[str, nn.Module] | None = None,
    runtime: RuntimeName = "onnxruntime",
    threads: int = 1,
    opset: int = 21,
    repeats: int = 100,
    cache: Path | None = None,
    progress: bool = True,
) -> MeasuredCosts:
    """Time and file size of each layer in each choice of formats, in a runtime on this machine.

    Args:
        model: a float network.
        recipes: by the name of a choice, the recipe in which all of `layers` have it; one that leaves every layer
            float measures the float model. A choice that cannot be quantized, exported or run is `refused`.
        layers: names of layers with weights.
        calibration: inputs that set activation scales; kept in memory.
        example: the batch to time.
        models: the float networks of choices that have another than `model`, such as those of `lb.chain_variants`. A
            layer that is not there may be made of several, whose names begin with its own and a dot.
        runtime: what executes the files.
        threads: threads of the runtime.
        opset: see `export_onnx`.
        repeats: calls of each whole file that are counted, rounded up to a multiple of 25.
        cache: a JSON file that keeps tables, made if it is not there. A table is read from it if all that decides it
            is as it was: operations of the layers, structures of the models, choices, versions, threads, shapes of the
            batch, processor. Otherwise all choices are measured, because only those that took turns compare. Weights
            and calibration data do not decide it.
        progress: show bars on a terminal.

    Raises:
        LayerError: a name in `layers` is no layer with weights, one of `models` lacks it, or there is nothing to
            measure.
        RecipeError: one of `models` has no recipe.
        ExportError: every choice is refused.
        DataError: a model does not take `example`, or `cache` is damaged, of another kind, or in no folder.
    """
    weighted, models = weighted_layers(model), models or {}
    if not layers or not recipes:
        raise LayerError("nothing to measure; give names of layers, and a recipe for each choice of formats")
    if unknown := [name for name in layers if name not in weighted]:
        raise LayerError(f"{unknown[0]!r} is no layer with weights; the model has {', '.join(weighted) or 'none'}")
    if odd := [choice for choice in models if choice not in recipes]:
        raise RecipeError(f"models: choice {odd[0]!r} has no recipe; choices are {', '.join(recipes)}")
    own = _network(model, "model", layers, example)
    others = {choice: _network(one, f"the model of {choice!r}", layers, example) for choice, one in models.items()}
    about = about_of(runtime, threads, example)
    asked: dict[str, object] = {
        **about,
        "versions": versions(),
        "structure": structure_of(model),
        "inputs": shapes_of(example),
        "layers": own.operations,
        "models": {choice: [structure_of(one.model), one.operations] for choice, one in others.items()},
        "recipes": {choice: recipe.to_dict() for choice, recipe in recipes.items()},
        "opset": opset,
        "repeats": repeats,
    }
    if cache is not None and (found := kept(cache, asked)) is not None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        made = _Files(Path(folder), runtime, threads, opset, example)
        batches = list(calibration)
        for choice, recipe in track(recipes.items(), "export", show=progress):
            made.add(choice, others.get(choice, own), recipe, batches)
        if not made.files:
            reasons = "; ".join(f"{choice}: {error}" for choice, error in made.refused.items())
            raise ExportError(f"{runtime} can run none of the choices of formats: {reasons}")
        costs = _costs(made, layers, about, repeats, progress)
    # whether data were fit to calibrate with is no property of a choice
    if cache is not None and not any(isinstance(e, CalibrationError | DataError) for e in made.refused.values()):
        keep(cache, asked, costs)
    return costs


@dataclass(frozen=True)
class _Network:
    """A choice's float network; by layer, the names of the layers that it is made of there, and what they compute."""

    model: nn.Module
    parts: Mapping[str, tuple[str, ...]]
    operations: Mapping[str, str]


def _network(model: nn.Module, what: str, layers: Sequence[str], example: Batch) -> _Network:
    weighted, parts = weighted_layers(model), {}
    for name in layers:
        inside = f"{name}." if name else ""
        parts[name] = (name,) if name in weighted else tuple(part for part in weighted if part.startswith(inside))
        if not parts[name]:
            raise LayerError(f"{what} has neither a layer {name!r} nor layers {inside + '*'!r}; it has {[*weighted]}")
    operations = operations_of(model, {part: weighted[part] for several in parts.values() for part in several}, example)
    joined = {name: "; ".join(operations[part] for part in several) for name, several in parts.items()}
    return _Network(model, parts, joined)


@dataclass(frozen=True)
class _File:
    """A choice's file, loaded.

    `owners` are the layers of the operators; by layer, `file_bytes`, and `computes`, which is equal for layers that are
    the same operation in the same formats.
    """

    path: Path
    session: Session
    feed: Mapping[str, Array]
    owners: Sequence[str | None]
    file_bytes: Mapping[str, int]
    computes: Mapping[str, object]


@dataclass
class _Files:
    """A file for each choice that runs, and the errors of those that do not."""

    folder: Path
    runtime: RuntimeName
    threads: int
    opset: int
    example: Batch
    files: dict[str, _File] = field(default_factory=dict)
    refused: dict[str, LowbitError] = field(default_factory=dict)

    def add(self, choice: str, network: _Network, recipe: Recipe, batches: Batches) -> None:
        """Make the file of a choice and run it once, or note why that cannot be done."""
        path = self.folder / f"{len(self.files) + len(self.refused)}.onnx"
        try:
            self.files[choice] = self._made(path, network, recipe, batches)
        except LowbitError as error:
            self.refused[choice] = error

    def _made(self, path: Path, network: _Network, recipe: Recipe, batches: Batches) -> _File:
        weighted = weighted_layers(network.model)
        rules, student = recipe.resolve(weighted), network.model
        if any(rule and (rule.weights or rule.activations) for rule in rules.values()):
            student = quantize(network.model, recipe)
            calibrate(student, batches, progress=False)
        export_onnx(student, path, self.example, opset=self.opset)
        session = open_session(path, runtime=self.runtime, threads=self.threads)
        feed = feed_of(self.example, session)
        try:
            session.run(feed)
        except Exception as error:  # runtimes raise their own types, and bare RuntimeError
            raise ExportError(f"{self.runtime} loads the file but cannot run it: {files.one_line(error)}") from error
        parts = Parts(onnx.load(path).graph, weighted)
        owners = parts.owners(session.graph())
        layer_of = {part: name for name, several in network.parts.items() for part in several}
        if lost := [part for part in layer_of if part not in {*owners, *parts.fixed()}]:
            raise ExportError(f"no operator in {self.runtime} tells that it computes layer {lost[0]!r}")
        return _File(
            path,
            session,
            feed,
            [None if owner is None else layer_of.get(owner) for owner in owners],
            {name: sum(map(parts.bytes_of, several)) for name, several in network.parts.items()},
            {
                name: (network.operations[name], [_formats(rules[part]) for part in several])
                for name, several in network.parts.items()
            },
        )

    def profiled(self) -> dict[str, Session]:
        """Sessions that time their operators, by choice."""
        return {
            choice: open_session(file.path, runtime=self.runtime, threads=self.threads, profile=self.folder)
            for choice, file in self.files.items()
        }


# Times


def _costs(
    made: _Files, layers: Sequence[str], about: Mapping[str, str | int], repeats: int, progress: bool
) -> MeasuredCosts:
    """The table, from files that run."""
    whole, operators = _timed(made, repeats, progress)
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in layers}
    rest: dict[str, float] = {}
    for choice, file in made.files.items():
        spent, rest[choice] = attribute(operators[choice], file.owners, layers, whole[choice])
        for layer, ms in _shared(spent, file.computes).items():
            milliseconds[layer][choice] = ms
    sizes = {name: {choice: file.file_bytes[name] for choice, file in made.files.items()} for name in layers}
    refused = {choice: str(error) for choice, error in made.refused.items()}
    return MeasuredCosts(milliseconds, sizes, rest, whole, refused, about)


def _formats(rule: Rule | None) -> Rule | None:
    return replace(rule, match="*") if rule else None


def attribute(
    times: Sequence[float], owners: Sequence[str | None], layers: Collection[str], whole_ms: float
) -> tuple[dict[str, float], float]:
    """Milliseconds of each layer and of the rest, from the times of operators, scaled to sum up to a whole call.

    The scale stands for what profiling adds to operators and for what a call takes outside of them. All is rest where
    each operator takes less than the runtime can tell.
    """
    scale = whole_ms / (sum(times) or math.inf)
    if not scale:
        return dict.fromkeys(layers, 0.0), whole_ms
    spent, rest = dict.fromkeys(layers, 0.0), 0.0
    for owner, ms in zip(owners, times, strict=True):
        if owner is not None and owner in spent:
            spent[owner] += scale * ms
        else:
            rest += scale * ms
    return spent, rest


def _shared(spent: Mapping[str, float], same: Mapping[str, object]) -> dict[str, float]:
    """The mean over layers that are the same: equal operations in equal formats take equal time."""
    groups = {name: [other for other in spent if same[other] == same[name]] for name in spent}
    return {name: sum(spent[other] for other in group) / len(group) for name, group in groups.items()}


def _timed(made: _Files, repeats: int, progress: bool) -> tuple[dict[str, float], dict[str, list[float]]]:
    """By choice, milliseconds of a whole call and of each operator; the choices take turns."""
    plain = {choice: file.session for choice, file in made.files.items()}
    feeds = {choice: file.feed for choice, file in made.files.items()}
    wholes: dict[str, list[float]] = {choice: [] for choice in feeds}
    operators: dict[str, list[list[float]]] = {choice: [] for choice in feeds}
    for _ in track(range(_PASSES), "time", show=progress):
        profiled = made.profiled()
        _take_turn(profiled, feeds)  # which takes in the calls that a profile leaves out
        for _ in range(math.ceil(repeats / (_PASSES * _TURN))):
            for choice, ms in _take_turn(plain, feeds).items():
                wholes[choice].append(ms)
            _take_turn(profiled, feeds)
        for choice, session in profiled.items():
            operators[choice].append(session.operator_ms())
    medians = {choice: [float(ms) for ms in np.median(found, axis=0)] for choice, found in operators.items()}
    return {choice: float(np.median(found)) for choice, found in wholes.items()}, medians


def _take_turn(sessions: Mapping[str, Session], feeds: Mapping[str, Mapping[str, Array]]) -> dict[str, float]:
    """The median of a few calls of each session, one session after the other.

    The first call does not count: it finds the numbers of the session before in the processor's caches.
    """
    return {c: session.latency(feeds[c], repeats=_TURN, warmup=1).median_ms for c, session in sessions.items()}


# Does it add up


@dataclass(frozen=True)
class Additivity:
    """What a table predicts for a call of a file with a mix of choices, and what it takes, in milliseconds."""

    predicted_ms: float
    measured_ms: float

    @property
    def ratio(self) -> float:
        """Predicted / measured: 1 where costs add up."""
        return self.predicted_ms / self.measured_ms


def check_additivity(
    costs: MeasuredCosts,
    assignment: Mapping[str, str],
    path: str | Path,
    example: Batch,
    *,
    beside: Mapping[str, str | Path] | None = None,
    repeats: int = 100,
    progress: bool = True,
) -> Additivity:
    """Measure the file made with an assignment as a whole, and compare it with the sum in the table.

    Args:
        costs: from `measure_formats`; its runtime and threads run the file.
        assignment: a choice for each layer of the table.
        path: the file.
        example: a batch of the size that the table is for.
        beside: by choice, files in which all layers have it. They take turns with the file, and the prediction is
            scaled by what those of the assignment's choices take now / in the table: the machine may be busier now.
        repeats: calls that are counted, rounded up to a multiple of 5.
        progress: show a bar on a terminal.

    Raises:
        LayerError: the assignment does not fit the table.
        DataError: the table is of another machine, version or batch size.
        ExportError: the runtime cannot load a file.
    """
    predicted = costs.total_ms(assignment)
    runtime = TypeAdapter[RuntimeName](RuntimeName).validate_python(costs.about["runtime"])
    threads = int(costs.about["threads"])
    for what, here in about_of(runtime, threads, example).items():
        if costs.about[what] != here:
            raise DataError(f"the table is for {what} {costs.about[what]!r}, here it is {here!r}; measure again")
    paths = {"": path, **(beside or {})}
    sessions = {choice: open_session(one, runtime=runtime, threads=threads) for choice, one in paths.items()}
    feeds = {choice: feed_of(example, session) for choice, session in sessions.items()}
    _take_turn(sessions, feeds)
    turns = [_take_turn(sessions, feeds) for _ in track(range(math.ceil(repeats / _TURN)), "time", show=progress)]
    measured = {choice: float(np.median([turn[choice] for turn in turns])) for choice in paths}
    if shared := [choice for choice in assignment.values() if choice in measured]:
        predicted *= sum(measured[choice] for choice in shared) / sum(costs.whole_ms[choice] for choice in shared)
    return Additivity(predicted, measured[""])
