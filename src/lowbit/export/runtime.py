"""Runtimes that execute an exported file: ONNX Runtime, and OpenVINO where it is installed.

A `Session` runs a file and tells what the runtime made of it: `kernels` maps each node of the optimized graph that
computes something to the operator that really runs, read from the runtime, not from hope.
"""

from __future__ import annotations

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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


class Session(ABC):
    """A loaded file. `inputs` and `outputs` are the names of its tensors."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @abstractmethod
    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The outputs for one batch, in the order of `outputs`."""

    @abstractmethod
    def operators(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each operator of the graph that really runs, with the names of the file's nodes that it stands for."""

    @abstractmethod
    def is_integer(self, kernel: str) -> bool:
        """Whether an operator from `kernels` computes on integers."""

    def kernels(self) -> dict[str, str]:
        """Operator by node name in the graph that really runs; integer ones are told by `is_integer`."""
        return {name: kernel for kernel, names in self.operators() for name in names}

    def latency(self, feed: Mapping[str, Array], *, repeats: int = 100, warmup: int = 10) -> Latency:
        """Wall time of one call."""
        return measure(lambda: self.run(feed), repeats=repeats, warmup=warmup)


def open_session(
    path: str | Path, *, runtime: RuntimeName = "onnxruntime", threads: int = 1, optimize: bool = True
) -> Session:
    """Load a file.

    Args:
        path: an ONNX file.
        runtime: which runtime executes it.
        threads: threads within an operator.
        optimize: False runs the graph node by node as it stands, in float: the meaning of the file.

    Raises:
        ExportError: the runtime is not installed, or cannot load the file.
    """
    if not Path(path).is_file():
        raise ExportError(f"no file {str(path)!r}; export a model first, or check the path")
    if runtime == "openvino" and find_spec("openvino") is None:
        raise ExportError("OpenVINO is not installed; run: pip install 'lowbit[openvino]'")
    try:
        return (_OnnxRuntime if runtime == "onnxruntime" else _OpenVino)(Path(path), threads, optimize)
    except Exception as error:  # runtimes raise their own types, and bare RuntimeError
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{runtime} cannot load {str(path)!r}: {reason}; is it an intact ONNX file?") from error


class _OnnxRuntime(Session):
    def __init__(self, path: Path, threads: int, optimize: bool) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # sessions share the cores: without this, the threads of an idle one spin and slow the others down
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, "optimized.onnx")
            options.optimized_model_filepath = str(written)
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            nodes = onnx.load(written, load_external_data=False).graph.node
        # fused nodes carry the first node's name and a counter
        self._operators: list[tuple[str, tuple[str, ...]]] = [
            (node.op_type, (re.sub(r"_(token_\d+|nchwc)$", "", node.name) or node.output[0],)) for node in nodes
        ]
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        return list(self._session.run(None, dict(feed)))

    def operators(self) -> list[tuple[str, tuple[str, ...]]]:
        return self._operators

    def is_integer(self, kernel: str) -> bool:
        return kernel.startswith("QLinear") or kernel in (
            "QGemm",
            "MatMulIntegerToFloat",
            "ConvInteger",
            "MatMulInteger",
        )


class _OpenVino(Session):
    def __init__(self, path: Path, threads: int, optimize: bool) -> None:
        import openvino as ov

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if not optimize:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        self._model = ov.Core().compile_model(str(path), "CPU", settings)
        graph = onnx.load(path, load_external_data=False).graph  # OpenVINO renames tensors, but keeps their order
        stored = {i.name for i in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in stored)
        self.outputs = tuple(o.name for o in graph.output)

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        results = self._model([feed[name] for name in self.inputs])
        return [np.array(results[o]) for o in self._model.outputs]

    def operators(self) -> list[tuple[str, tuple[str, ...]]]:
        """Layer type and precision, such as ``Convolution i8``."""
        found = []
        for op in self._model.get_runtime_model().get_ops():
            info = op.get_rt_info()
            kind, precision = (str(info[k].astype(str)) for k in ("layerType", "runtimePrecision"))
            if kind not in ("Input", "Output", "Const", "Parameter", "Result", "Constant"):
                names = str(info["originalLayersNames"].astype(str)).split(",")
                if kind in ("Convolution", "Deconvolution", "FullyConnected", "MatMul"):  # some lose their own name
                    names = [re.sub("/(WithoutBiases|Dequantization).*", "", name) for name in names]
                found.append((f"{kind} {precision}", tuple(dict.fromkeys(name for name in names if name))))
        return found

    def is_integer(self, kernel: str) -> bool:
        return kernel.endswith((" i8", " u8"))


def arrays(tensors: Sequence[object], names: Sequence[str]) -> dict[str, Array]:
    """Feed for a session from tensors in the order of its inputs."""
    return {name: np.ascontiguousarray(t) for name, t in zip(names, tensors, strict=True)}
