"""What each layer costs in each choice of number formats, measured on the user's own runtime.

Bits are a poor guide to time: a layer in int4 is as fast as in int8 where the kernel unpacks it, one in e4m3 slower
than in float32 where the runtime converts at every call. So each choice becomes a file in which *all* layers have it,
is run whole, and the time of each operator is given to the layer that it belongs to:

- An operator fused from several nodes belongs to the layer among them, with the ReLU or add that it also computes.
- Conversions belong to the layer that makes them necessary: QuantizeLinear behind a layer that returns floats to that
  layer, DequantizeLinear and casts to the layer that reads their floats.
- All else is the rest: adds, poolings, and layers that were not asked for.

The choices take turns, so that what else the machine does hits all alike. Operators are timed in sessions of their own,
since profiling slows a call down; their times are scaled, for each choice by one factor, to sum up to the median of an
unprofiled call. Layers of the same operation (kind, shapes, stride, ...) share the mean of their times.

What a table cannot know: conversions between neighbors of different choices that no uniform file has, and layouts that
a runtime keeps only between equals. A choice for single float layers in an integer network should therefore keep the
activations quantized (``weights=None, activations=int8``): its file then holds those conversions. Measured on ResNet-20
in ONNX Runtime 1.31 and OpenVINO 2026.4, batch 1 and 32, sum / whole of a mix: int8 and int4 in turn .81 to 1.11; int8
and such float layers in turn .86 to .97; int8 and layers that are float32 all through in turn .53 to 1.07.
`check_additivity` says it for a file.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import platform
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lowbit import files, graph
from lowbit.batches import Batch, Batches, call, inputs_of, size_of
from lowbit.costs import MeasuredCosts
from lowbit.errors import CalibrationError, DataError, ExportError, LayerError, LowbitError
from lowbit.export.advice import LAYERS, Wiring
from lowbit.export.onnx import export_onnx
from lowbit.export.runtime import Array, Operator, RuntimeName, Session, arrays, open_session
from lowbit.layers import weighted_layers
from lowbit.progress import track
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe, Rule

_PASSES = 5  # profiled sessions of each choice: one that something interrupts does not count, by the median
_TURN = 5  # counted calls of a choice before it is the next one's turn
_PACKAGES = ("lowbit", "torch", "onnxscript")  # what writes the files
_MULTIPLIES = re.compile("Conv|Deconv|Gemm|MatMul|FullyConnected")
_PASSED = ("Relu", "Clip", "BatchNormalization", "QuantizeLinear", "Add")  # what a layer's kernel may take in
_BEHIND = ("QuantizeLinear", "ReorderOutput", "FakeQuantize")  # conversions of what a layer returns, not of its input
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


def measure_formats(
    model: nn.Module,
    recipes: Mapping[str, Recipe],
    layers: Sequence[str],
    calibration: Batches,
    example: Batch,
    *,
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
        runtime: what executes the files.
        threads: threads of the runtime.
        opset: see `export_onnx`.
        repeats: calls of each whole file that are counted, rounded up to a multiple of 25.
        cache: a JSON file that keeps tables, made if it is not there. A table is read from it if all that decides it
            is as it was: operations of the layers, structure of the model, choices, versions, threads, shapes of the
            batch, processor. Otherwise all choices are measured, because only those that took turns compare. Weights
            and calibration data do not decide it.
        progress: show bars on a terminal.

    Raises:
        LayerError: a name in `layers` is no layer with weights, or there is nothing to measure.
        ExportError: every choice is refused.
        DataError: the model does not take `example`, or `cache` is damaged, of another kind, or in no folder.
    """
    weighted = weighted_layers(model)
    if not layers or not recipes:
        raise LayerError("nothing to measure; give names of layers, and a recipe for each choice of formats")
    if unknown := [name for name in layers if name not in weighted]:
        raise LayerError(f"{unknown[0]!r} is no layer with weights; the model has {', '.join(weighted) or 'none'}")
    operations = _operations(model, {name: weighted[name] for name in layers}, example)
    about = _about(runtime, threads, example)
    asked: dict[str, object] = {
        **about,
        "versions": {name: version(name) for name in _PACKAGES},
        "structure": _structure(model),
        "inputs": _shapes(example),
        "layers": operations,
        "recipes": {choice: recipe.to_dict() for choice, recipe in recipes.items()},
        "opset": opset,
        "repeats": repeats,
    }
    for kept in _read(cache) if cache is not None else ():
        if kept.asked == asked:
            return kept.costs
    with tempfile.TemporaryDirectory() as folder:
        made = _Files(Path(folder), runtime, threads, opset, example)
        batches = list(calibration)
        for choice, recipe in track(recipes.items(), "export", show=progress):
            made.add(choice, model, recipe, batches, operations)
        if not made.files:
            reasons = "; ".join(f"{choice}: {error}" for choice, error in made.refused.items())
            raise ExportError(f"{runtime} can run none of the choices of formats: {reasons}")
        costs = _costs(made, operations, about, repeats, progress)
    # whether data were fit to calibrate with is no property of a choice
    if cache is not None and not any(isinstance(e, CalibrationError | DataError) for e in made.refused.values()):
        others = (one for one in _read(cache) if one.asked != asked)  # read again: another process may have measured
        files.write_json(cache, asdict(_Cache((*others, _Kept(asked, costs)))))
    return costs


@dataclass(frozen=True)
class _File:
    """A choice's file, loaded: `owners` are the layers of the operators, `file_bytes` and `rules` are by layer."""

    path: Path
    session: Session
    feed: Mapping[str, Array]
    owners: Sequence[str | None]
    file_bytes: Mapping[str, int]
    rules: Mapping[str, Rule | None]


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

    def add(self, choice: str, model: nn.Module, recipe: Recipe, batches: Batches, layers: Collection[str]) -> None:
        """Make the file of a choice and run it once, or note why that cannot be done."""
        path = self.folder / f"{len(self.files) + len(self.refused)}.onnx"
        try:
            self.files[choice] = self._made(path, model, recipe, batches, layers)
        except LowbitError as error:
            self.refused[choice] = error

    def _made(self, path: Path, model: nn.Module, recipe: Recipe, batches: Batches, layers: Collection[str]) -> _File:
        weighted = weighted_layers(model)
        rules, student = recipe.resolve(weighted), model
        if any(rule and (rule.weights or rule.activations) for rule in rules.values()):
            student = quantize(model, recipe)
            calibrate(student, batches, progress=False)
        export_onnx(student, path, self.example, opset=self.opset)
        session = open_session(path, runtime=self.runtime, threads=self.threads)
        feed = _feed(self.example, session)
        try:
            session.run(feed)
        except Exception as error:  # runtimes raise their own types, and bare RuntimeError
            raise ExportError(f"{self.runtime} loads the file but cannot run it: {files.one_line(error)}") from error
        parts = Parts(onnx.load(path).graph, weighted)
        owners = parts.owners(session.graph())
        if lost := [name for name in layers if name not in owners]:
            raise ExportError(f"no operator in {self.runtime} tells that it computes layer {lost[0]!r}")
        return _File(path, session, feed, owners, {name: parts.bytes_of(name) for name in layers}, rules)

    def profiled(self) -> dict[str, Session]:
        """Sessions that time their operators, by choice."""
        return {
            choice: open_session(file.path, runtime=self.runtime, threads=self.threads, profile=self.folder)
            for choice, file in self.files.items()
        }


def _feed(example: Batch, session: Session) -> dict[str, Array]:
    args, kwargs = inputs_of(example)
    tensors = [kwargs[name] for name in session.inputs] if kwargs else args
    return arrays([tensor.detach().cpu().numpy() for tensor in tensors], session.inputs)


# Times


def _costs(
    made: _Files, operations: Mapping[str, str], about: Mapping[str, str | int], repeats: int, progress: bool
) -> MeasuredCosts:
    """The table, from files that run."""
    whole, operators = _timed(made, repeats, progress)
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in operations}
    rest: dict[str, float] = {}
    for choice, file in made.files.items():
        spent, rest[choice] = attribute(operators[choice], file.owners, operations, whole[choice])
        same = {name: (operation, _formats(file.rules[name])) for name, operation in operations.items()}
        for layer, ms in _shared(spent, same).items():
            milliseconds[layer][choice] = ms
    sizes = {name: {choice: file.file_bytes[name] for choice, file in made.files.items()} for name in operations}
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


# Which layer an operator belongs to


class Parts:
    """The layer that each node of a file is part of."""

    def __init__(self, file: onnx.GraphProto, layers: Collection[str]) -> None:
        self.wiring, self.layers = Wiring(file), layers
        self.stored = {i.name: len(i.raw_data) or i.ByteSize() for i in file.initializer}
        self.reads = {node.output[0]: set(node.input) & self.stored.keys() for node in file.node}
        self.of = {node.output[0]: self._layer_of(node) for node in file.node}

    def _layer_of(self, node: onnx.NodeProto) -> str | None:
        called = re.sub(r"#\d+$", "", node.name)  # a layer's second call is numbered
        if called in self.layers and node.op_type in (*LAYERS, "Gather"):
            return called
        if (place := self.wiring.place(node.name)) != node.name and place in self.layers:  # unpacks its weight
            return place
        # multiplies with its weight under another name, or adds its bias
        return next((layer for name in self.reads[node.output[0]] if (layer := self._holder(name)) is not None), None)

    def _holder(self, tensor: str) -> str | None:
        """The layer whose weight or bias is stored under a name; one that is the model itself has the name ``""``."""
        found = re.fullmatch(r"(?:(.+)\.)?(?:weight|bias)", tensor)
        names = [found[1] or "", re.sub(r"(^|\.)layer$", "", found[1] or "")] if found else []
        return next((name for name in names if name in self.layers), None)

    def bytes_of(self, layer: str) -> int:
        """Bytes of the numbers stored for a layer, without zero points, which layers share."""
        stored = {name for output, owner in self.of.items() if owner == layer for name in self.reads[output]}
        return sum(self.stored[name] for name in stored if not name.startswith("zero_point."))

    def owners(self, running: Sequence[Operator]) -> list[str | None]:
        """The layer of each operator that runs, None for the rest."""
        own = [self._computes(operator) for operator in running]
        converts = [owner is None and self._converts(operator) for owner, operator in zip(own, running, strict=True)]
        before = {i: [j for j in operator.reads if j >= 0] for i, operator in enumerate(running)}
        behind: dict[int, list[int]] = {i: [] for i in before}
        for i, makers in before.items():
            for j in makers:
                behind[j].append(i)

        def end(i: int, edges: Mapping[int, list[int]]) -> str | None:
            """The first layer that conversions, and what only moves numbers, lead to."""
            waiting, seen = list(edges[i]), {i}
            while waiting:
                j = waiting.pop(0)
                if own[j] is not None:
                    return own[j]
                if j not in seen and (converts[j] or running[j].kind.startswith(_MOVES)):
                    seen.add(j)
                    waiting += edges[j]
            return None

        found = list(own)
        for i, operator in enumerate(running):
            if converts[i]:
                first, second = (before, behind) if operator.kind.startswith(_BEHIND) else (behind, before)
                layer = end(i, first)
                found[i] = end(i, second) if layer is None else layer
        return found

    def _computes(self, operator: Operator) -> str | None:
        """The layer that an operator itself computes, or a part of it."""
        nodes = [node for name in operator.names if (node := self._node(name)) is not None]
        layer = next((found for node in nodes if (found := self.of[node.output[0]]) is not None), None)
        if layer is None and _MULTIPLIES.search(operator.kind):
            layer = next((found for node in nodes if (found := self._taken_in(node)) is not None), None)
        return layer

    def _converts(self, operator: Operator) -> bool:
        """Whether an operator only rewrites numbers; names that a runtime made up do not tell."""
        nodes = [node for name in operator.names if (node := self._node(name)) is not None]
        return operator.converts or (bool(nodes) and all(self.wiring.place(n.name) != n.name for n in nodes))

    def _node(self, name: str) -> onnx.NodeProto | None:
        """The file's node of a name: its own or its output's, without what a runtime put behind it."""
        for known in (name, re.sub(r"_\d+$", "", name), name.partition("/")[0]):
            found: onnx.NodeProto | None = self.wiring.nodes.get(known) or self.wiring.made.get(known)
            if found is not None:
                return found
        return None

    def _taken_in(self, node: onnx.NodeProto | None) -> str | None:
        """The layer whose kernel takes in a node behind it; a fused operator may carry the last node's name alone."""
        while node is not None and self.of[node.output[0]] is None and node.op_type in _PASSED:
            computed = [name for name in node.input if name and name not in self.stored]
            if node.op_type == "Add" and len(computed) > 1:  # no bias
                return None
            node = self.wiring.made.get(computed[0]) if computed else None
        return self.of[node.output[0]] if node is not None else None


# What decides a table


def _operations(model: nn.Module, layers: Mapping[str, nn.Module], example: Batch) -> dict[str, str]:
    """What each layer computes, in words that are equal for equal operations."""
    inputs: dict[str, list[str]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            inputs[name].append(_sizes((args[0] if args else kwargs["input"]).shape))

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    training = model.training
    try:
        with torch.no_grad():
            call(model.eval(), example)
    finally:
        model.train(training)
        for one in hooks:
            one.remove()
    return {name: f"{_settings(layer)}, input {', '.join(inputs[name])}" for name, layer in layers.items()}


def _settings(layer: nn.Module) -> str:
    """Kind, weight shape, and what else decides how a layer computes."""
    known = ("stride", "padding", "output_padding", "dilation", "groups")
    settings = [f"{name} {getattr(layer, name)}" for name in known if hasattr(layer, name)]
    bias = "bias" if getattr(layer, "bias", None) is not None else "no bias"
    return ", ".join([f"{type(layer).__name__} {_sizes(layer.get_parameter('weight').shape)}", *settings, bias])


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _shapes(example: Batch) -> list[str]:
    args, kwargs = inputs_of(example)
    return [
        f"{name}{tensor.dtype} {_sizes(tensor.shape)}" for name, tensor in [*(("", a) for a in args), *kwargs.items()]
    ]


def _structure(model: nn.Module) -> str:
    """A hash of the model without its weights: its modules, and its graph or else the files that define it."""
    traced = graph.trace(copy.deepcopy(model).eval())
    if isinstance(traced, str):
        homes = {inspect.getsourcefile(type(module)) for module in model.modules()}
        computes = "".join(sorted(files.sha256(home) for home in homes if home and Path(home).is_file()))
    else:
        computes = traced.code
    modules = re.sub(r"0x[0-9a-f]+", "", repr(model))  # addresses change from run to run
    return hashlib.sha256(f"{modules}\n{computes}".encode()).hexdigest()


def _about(runtime: RuntimeName, threads: int, example: Batch) -> dict[str, str | int]:
    return {
        "runtime": runtime,
        "version": version(runtime) if find_spec(runtime) else "not installed",
        "threads": threads,
        "batch": size_of(example),
        "processor": _processor(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


@dataclass(frozen=True)
class _Kept:
    """A table, and all that decided it."""

    asked: dict[str, object]
    costs: MeasuredCosts


@dataclass(frozen=True)
class _Cache:
    """The file of a cache."""

    measured_costs: tuple[_Kept, ...]


def _read(cache: Path) -> tuple[_Kept, ...]:
    """The tables of a cache, none if there is no file yet.

    Raises:
        DataError: it is damaged, another file, or in a folder that does not exist.
    """
    if not cache.exists():
        if not cache.parent.is_dir():
            raise DataError(f"cannot write '{cache}': there is no folder '{cache.parent}'; create it first")
        return ()
    try:
        return TypeAdapter(_Cache).validate_python(files.read_json(cache)).measured_costs
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"'{cache}' keeps no measured costs ({where}: {first['msg']}); delete it, or name another file"
        ) from None


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
    for what, here in _about(runtime, threads, example).items():
        if costs.about[what] != here:
            raise DataError(f"the table is for {what} {costs.about[what]!r}, here it is {here!r}; measure again")
    paths = {"": path, **(beside or {})}
    sessions = {choice: open_session(one, runtime=runtime, threads=threads) for choice, one in paths.items()}
    feeds = {choice: _feed(example, session) for choice, session in sessions.items()}
    _take_turn(sessions, feeds)
    turns = [_take_turn(sessions, feeds) for _ in track(range(math.ceil(repeats / _TURN)), "time", show=progress)]
    measured = {choice: float(np.median([turn[choice] for turn in turns])) for choice in paths}
    if shared := [choice for choice in assignment.values() if choice in measured]:
        predicted *= sum(measured[choice] for choice in shared) / sum(costs.whole_ms[choice] for choice in shared)
    return Additivity(predicted, measured[""])
