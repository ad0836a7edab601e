"""Runtimes that execute an exported file: ONNX Runtime, and OpenVINO where it is installed.

A `Session` runs a file and tells what the runtime made of it: `kernels` maps each node of the optimized graph that
computes something to the operator that really runs, `conversions` are those that only rewrite numbers; both are read
from the runtime, not from hope. Opened with `profile`, it also tells how long each operator takes.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from lowbit.costs import Latency, measure
from lowbit.errors import ExportError

Array = npt.NDArray[np.generic]
RuntimeName = Literal["onnxruntime", "openvino"]
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")
_UNCOUNTED = 5  # first calls of a profiled session: they allocate memory, and OpenVINO compiles kernels in them
_NO_OPERATORS = ("Input", "Output", "Const", "Parameter", "Result", "Constant")


@dataclass(frozen=True)
class Operator:
    """One operator of the graph that runs: `reads` are the places of others in the list, -1 an input of the file.

    `names` are the file's nodes, or their outputs, that it stands for, as far as the runtime tells.
    """

    kind: str
    names: tuple[str, ...]
    reads: tuple[int, ...]
    converts: bool
    last: bool  # an output of the file


class Session(ABC):
    """A loaded file. `inputs` and `outputs` are the names of its tensors."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    _operators: list[Operator]
    _conversions: set[str]  # nodes, and their outputs, that only rewrite numbers in the file

    @abstractmethod
    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The outputs for one batch, in the order of `outputs`."""

    @abstractmethod
    def is_integer(self, kernel: str) -> bool:
        """Whether an operator from `kernels` computes on integers."""

    def operators(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each operator of the graph that really runs, with the names of the file's nodes that it stands for."""
        return [(operator.kind, operator.names) for operator in self._operators]

    def graph(self) -> tuple[Operator, ...]:
        """The graph that really runs, in an order in which it can run."""
        return tuple(self._operators)

    @abstractmethod
    def operator_ms(self) -> list[float]:
        """Milliseconds that each operator of `graph` takes in a call, over all calls of `run` but the first five.

        Both runtimes count whole microseconds and cut off the rest, so half of one is added to what ran. ONNX Runtime
        tells the time of each call, of which the middle half is averaged; OpenVINO tells only means. Ask once: the
        profile ends with it.

        Raises:
            ExportError: the session was opened without `profile`, or ran less than six times.
        """

    def _profiled(self, calls: int) -> None:
        """Raise unless there are times to read."""
        if calls <= _UNCOUNTED:
            raise ExportError(
                f"operators are timed from call {_UNCOUNTED + 1} of a session with open_session(profile=...) on, got "
                f"{calls}; open it so and call run more often"
            )

    def conversions(self) -> list[tuple[str, tuple[str, ...]]]:
        """Operators that only rewrite numbers, with their names; those that a runtime added have a neighbor's.

        Left out are those that no file can do without: behind its inputs and before its outputs.
        """
        operators = dict(enumerate(self._operators))
        reads = {i: [j for j in operator.reads if j >= 0] for i, operator in operators.items()}
        readers: dict[int, list[int]] = {}
        for i, operator in operators.items():
            for j in operator.reads:
                readers.setdefault(j, []).append(i)
        needed = self._converting(readers.get(-1, []), readers)
        needed |= self._converting([i for i, operator in operators.items() if operator.last], reads)
        found = []
        for i, operator in operators.items():
            if operator.converts and i not in needed:
                own = [name for name in operator.names if name in self._conversions]
                beside = [name for j in (*readers.get(i, []), *reads[i]) for name in operators[j].names]
                found.append((operator.kind, tuple(own or beside)))
        return found

    def _converting(self, start: list[int], edges: Mapping[int, list[int]]) -> set[int]:
        """Conversions that `start` leads to by way of conversions alone."""
        found: set[int] = set()
        waiting = list(start)
        while waiting:
            i = waiting.pop()
            if i not in found and self._operators[i].converts:
                found.add(i)
                waiting += edges.get(i, [])
        return found

    def kernels(self) -> dict[str, str]:
        """Operator by node name in the graph that really runs; integer ones are told by `is_integer`."""
        return {name: kernel for kernel, names in self.operators() for name in names}

    def latency(self, feed: Mapping[str, Array], *, repeats: int = 100, warmup: int = 10) -> Latency:
        """Wall time of one call."""
        return measure(lambda: self.run(feed), repeats=repeats, warmup=warmup)


def open_session(
    path: str | Path,
    *,
    runtime: RuntimeName = "onnxruntime",
    threads: int = 1,
    optimize: bool = True,
    profile: Path | None = None,
) -> Session:
    """Load a file.

    Args:
        path: an ONNX file.
        runtime: which runtime executes it.
        threads: threads within an operator.
        optimize: False runs the graph node by node as it stands, in float: the meaning of the file.
        profile: a folder that the runtime may write to; the session then tells `operator_ms`, and is slower.

    Raises:
        ExportError: the runtime is not installed, or cannot load the file.
    """
    if not Path(path).is_file():
        raise ExportError(f"no file {str(path)!r}; export a model first, or check the path")
    if runtime == "openvino" and find_spec("openvino") is None:
        raise ExportError("OpenVINO is not installed; run: pip install 'lowbit[openvino]'")
    try:
        return (_OnnxRuntime if runtime == "onnxruntime" else _OpenVino)(Path(path), threads, optimize, profile)
    except Exception as error:  # runtimes raise their own types, and bare RuntimeError
        reason = " ".join(str(error).split())[:300]
        remedy = "is it an intact ONNX file?"
        if runtime == "openvino" and _stores_two_bits(Path(path)):
            remedy = "OpenVINO reads no INT2 weights; export with opset=21"
        raise ExportError(f"{runtime} cannot load {str(path)!r}: {reason}; {remedy}") from error


class _OnnxRuntime(Session):
    def __init__(self, path: Path, threads: int, optimize: bool, profile: Path | None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # sessions share the cores: without this, the threads of an idle one spin and slow the others down
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile / uuid.uuid4().hex)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, "optimized.onnx")
            options.optimized_model_filepath = str(written)
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            graph = onnx.load(written, load_external_data=False).graph
        self._profiles, self._calls = profile is not None, 0
        self._traced = [f"{node.name}_kernel_time" for node in graph.node]
        self._conversions = _conversions_of(path)
        made = {i.name: -1 for i in graph.input} | {o: i for i, node in enumerate(graph.node) for o in node.output}
        outputs = {o.name for o in graph.output}
        self._operators = []
        for node in graph.node:
            # fused nodes carry the first node's name and a counter
            name = re.sub(r"_(token_\d+|nchwc)$", "", node.name) or node.output[0]
            reads = tuple(made[tensor] for tensor in node.input if tensor in made)
            converts = node.op_type in _CONVERSIONS or (node.op_type in ("Cast", "Clip") and name in self._conversions)
            last = not outputs.isdisjoint(node.output)
            self._operators.append(Operator(node.op_type, (name,), reads, converts, last))
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        self._calls += self._profiles
        return list(self._session.run(None, dict(feed)))

    def operator_ms(self) -> list[float]:
        self._profiled(self._calls)
        trace, calls = Path(self._session.end_profiling()), self._calls
        self._profiles, self._calls = False, 0
        times: dict[str, list[float]] = {name: [] for name in self._traced}
        for event in json.loads(trace.read_text(encoding="utf-8")):
            if event["cat"] == "Node" and event["name"] in times:
                times[event["name"]].append(event["dur"])
        trace.unlink()
        return [_middle_ms(times[name], calls) for name in self._traced]

    def is_integer(self, kernel: str) -> bool:
        return kernel.startswith("QLinear") or kernel in (
            "QGemm",
            "MatMulIntegerToFloat",
            "ConvInteger",
            "MatMulInteger",
        )


def _openvino() -> Any:
    """OpenVINO without its telemetry, which would tell its maker of each import: no call leaves unasked."""
    hidden = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as if not installed: it has a stub
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
    return openvino


class _OpenVino(Session):
    def __init__(self, path: Path, threads: int, optimize: bool, profile: Path | None) -> None:
        ov = _openvino()
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if not optimize:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if profile is not None:
            settings["PERF_COUNT"] = True
        _check_nodes(path)
        self._model = ov.Core().compile_model(str(path), "CPU", settings)
        self._request = self._model.create_infer_request()
        self._profiles, self._calls, self._uncounted = profile is not None, 0, dict[str, float]()
        graph = onnx.load(path, load_external_data=False).graph  # OpenVINO renames tensors, but keeps their order
        stored = {i.name for i in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in stored)
        self.outputs = tuple(o.name for o in graph.output)
        self._conversions = _conversions_of(path)
        self._operators = self._running()

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        results = self._request.infer([feed[name] for name in self.inputs], share_inputs=True, share_outputs=True)
        self._calls += self._profiles
        if self._profiles and self._calls == _UNCOUNTED:
            self._uncounted = self._total_us()
        return [np.array(results[o]) for o in self._model.outputs]

    def operator_ms(self) -> list[float]:
        self._profiled(self._calls)
        counted, total = self._calls - _UNCOUNTED, self._total_us()
        spent = {name: (us - self._uncounted.get(name, 0.0)) / counted for name, us in total.items()}
        return [max(spent.get(name, 0.0), 0.0) / 1000 for name in self._friendly]

    def _total_us(self) -> dict[str, float]:
        """Microseconds of all calls so far, by operator, from OpenVINO's means: cut off, of times that are cut off."""
        found: dict[str, float] = {}
        for told in self._request.profiling_info:
            mean = told.real_time.total_seconds() * 1e6
            if mean:  # else it did not run, or took less than can be told
                found[told.node_name] = found.get(told.node_name, 0.0) + self._calls * (mean + 1.0)
        return found

    def _running(self) -> list[Operator]:
        """Operators named by layer type and precision, such as ``Convolution i8``."""
        ops = list(self._model.get_runtime_model().get_ordered_ops())
        kinds = {op.get_friendly_name(): str(op.get_rt_info()["layerType"].astype(str)) for op in ops}
        inputs = {name for name, kind in kinds.items() if kind in ("Input", "Parameter")}
        running = [op for op in ops if kinds[op.get_friendly_name()] not in _NO_OPERATORS]
        self._friendly = [op.get_friendly_name() for op in running]
        places = dict.fromkeys(inputs, -1) | {op.get_friendly_name(): i for i, op in enumerate(running)}
        found = []
        for op in running:
            info, kind = op.get_rt_info(), kinds[op.get_friendly_name()]
            names = str(info["originalLayersNames"].astype(str)).split(",")
            if kind in ("Convolution", "Deconvolution", "FullyConnected", "MatMul"):  # some lose their own name
                names = [re.sub("/(WithoutBiases|Dequantization).*", "", name) for name in names]
            # copies of a node get a number, dequantizations that become arithmetic a generated name
            names = [re.sub(r"(?<=\.codes)_\d+$", "", name) for name in dict.fromkeys(names) if name]
            ours = any(name in self._conversions for name in names) and all(
                name in self._conversions or re.fullmatch(r"[A-Z]\w*_\d+", name) for name in names
            )
            makers = (value.get_source_output().get_node().get_friendly_name() for value in op.inputs())
            targets = (target.get_node() for output in op.outputs() for target in output.get_target_inputs())
            found.append(
                Operator(
                    f"{kind} {info['runtimePrecision'].astype(str)}",
                    tuple(names),
                    tuple(places[name] for name in makers if name in places),
                    kind in ("Reorder", "Convert", "FakeQuantize") or (kind == "Eltwise" and ours),
                    any(kinds[target.get_friendly_name()] in ("Output", "Result") for target in targets),
                )
            )
        return found

    def is_integer(self, kernel: str) -> bool:
        return kernel.endswith((" i8", " u8"))


def _middle_ms(times: Sequence[float], calls: int) -> float:
    """Mean of the middle half of the counted calls, from microseconds cut to whole ones; 0 for what never ran."""
    per_call = len(times) // calls  # 1, but more in a loop of the model's own and 0 in a branch that is not taken
    if not per_call:
        return 0.0
    each = np.reshape(times[: per_call * calls], (calls, per_call)).sum(1)
    ordered = np.sort(each[_UNCOUNTED:])
    cut = len(ordered) // 4
    return (float(ordered[cut : len(ordered) - cut].mean()) + 0.5 * per_call) / 1000


def _check_nodes(path: Path) -> None:
    """Raise for a node without its inputs, on which OpenVINO crashes, or an opset of 2**62, on which it hangs.

    The whole model is not checked: copies that also return codes name tensors without their shapes.
    """
    model = onnx.load(path, load_external_data=False)
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = model.ir_version, {o.domain: o.version for o in model.opset_import}
    for node in model.graph.node:
        onnx.checker.check_node(node, context)


def _stores_two_bits(path: Path) -> bool:
    try:
        stored = onnx.load(path, load_external_data=False).graph.initializer
    except Exception:  # no ONNX file, which protobuf says with a type of its own
        return False
    return any(i.data_type == onnx.TensorProto.INT2 for i in stored)


def _conversions_of(path: Path) -> set[str]:
    """Nodes that `lowbit.export.qdq` adds to rewrite numbers, not the model's own Clip and Cast, and their outputs."""
    ours = re.compile(r".*\.(codes|clipped|scaled|values|dequantize|guard)")
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {name for node in nodes if ours.fullmatch(node.name) for name in (node.name, *node.output)}


def arrays(tensors: Sequence[object], names: Sequence[str]) -> dict[str, Array]:
    """Feed for a session from tensors in the order of its inputs."""
    return {name: np.ascontiguousarray(t) for name, t in zip(names, tensors, strict=True)}
