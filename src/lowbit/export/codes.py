"""How the codes of quantized tensors are read out of a running file: by a copy of it that returns them as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lowbit.batches import Batch, inputs_of
from lowbit.errors import DataError
from lowbit.export.runtime import Array, Session, arrays

_READ_CODES = ("DequantizeLinear", "Cast")  # a cast where codes are what is wanted, as in a table


def feed_of(batch: Batch, session: Session) -> dict[str, Array]:
    """What a session is fed with for a batch, by the names of its inputs; a dict's others are left out.

    Raises:
        DataError: an input is missing, or the file takes several and the batch is a single tensor.
    """
    args, kwargs = inputs_of(batch)
    missing = [name for name in session.inputs if kwargs and name not in kwargs]
    if missing or (args and len(args) != len(session.inputs)):
        got = ", ".join(kwargs) or "a single tensor"
        raise DataError(f"the file takes inputs {', '.join(session.inputs)}, the data has {got}; name the same")
    if kwargs:
        return {name: np.ascontiguousarray(kwargs[name].cpu().numpy()) for name in session.inputs}
    return arrays([a.cpu().numpy() for a in args], session.inputs)


def without_int8_blocks(path: Path, written: Path) -> Path:
    """The file itself, or a copy whose MatMulNBits do not round activations, for the weights to be compared exactly."""
    model = onnx.load(path)
    levels = [a for node in model.graph.node if node.op_type == "MatMulNBits" for a in node.attribute]
    levels = [a for a in levels if a.name == "accuracy_level" and a.i == 4]
    if not levels:
        return path
    for level in levels:
        level.i = 1
    onnx.save(model, written)
    return written


def reading_codes(path: Path, written: Path, *, forced: bool) -> Path:
    """A copy of the file that also returns the codes of every quantized tensor.

    With `forced`, what comes behind a quantizer reads the codes from an extra input ``forced.<tensor>`` instead.
    """
    model = onnx.load(path)
    graph = model.graph
    kinds = _code_types(graph)
    for tensor in code_tensors(graph).values():
        if forced:
            graph.input.append(helper.make_tensor_value_info(f"forced.{tensor}", kinds[tensor], None))
            for node in graph.node:
                if node.op_type in _READ_CODES and node.input[0] == tensor:
                    node.input[0] = f"forced.{tensor}"
        graph.output.append(helper.make_tensor_value_info(tensor, kinds[tensor], None))
    onnx.save(model, written)
    return written


def _code_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Element type of every tensor that a QuantizeLinear, or a Clip behind one, writes."""
    kinds = {i.name: i.data_type for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            kinds[node.output[0]] = kinds[node.input[2]]
        elif node.op_type == "Clip" and node.input[0] in kinds:
            kinds[node.output[0]] = kinds[node.input[0]]
    return kinds


def levels_of(graph: onnx.GraphProto, names: dict[str, str]) -> dict[str, int]:
    """Number of codes in the container of each quantized tensor."""
    kinds = _code_types(graph)
    return {name: 65536 if kinds[tensor] == TensorProto.UINT16 else 256 for name, tensor in names.items()}


@dataclass(frozen=True)
class CodeRange:
    """The lowest and the highest code that a quantizer writes, and the code of zero."""

    lowest: int
    highest: int
    zero: int


def code_ranges(graph: onnx.GraphProto, names: Mapping[str, str]) -> dict[str, CodeRange]:
    """What each quantizer of `code_tensors` can write: its container, or where a Clip on its codes ends."""
    made = {output: node for node in graph.node for output in node.output}
    stored = {i.name: i for i in graph.initializer}

    def number(name: str) -> int:
        return int(numpy_helper.to_array(stored[name]))

    found = {}
    for name, tensor in names.items():
        clip = made[tensor] if made[tensor].op_type == "Clip" else None
        quantizes = made[clip.input[0]] if clip else made[tensor]
        kind = numpy_helper.to_array(stored[quantizes.input[2]]).dtype
        ends = (number(clip.input[1]), number(clip.input[2])) if clip else (0, int(np.iinfo(kind).max))
        found[name] = CodeRange(*ends, number(quantizes.input[2]))
    return found


def code_tensors(graph: onnx.GraphProto) -> dict[str, str]:
    """The tensor of codes behind each activation quantizer, in the order of the graph.

    Pairs repeated behind an operation that only moves numbers (``name#2``) are left out.
    """
    made = {o: n for n in graph.node for o in n.output}
    found: dict[str, str] = {}
    for node in graph.node:
        maker = made.get(node.input[0]) if node.op_type in _READ_CODES else None
        quantizes = made.get(maker.input[0]) if maker is not None and maker.op_type == "Clip" else maker
        if quantizes is not None and quantizes.op_type == "QuantizeLinear" and "#" not in quantizes.name:
            found.setdefault(quantizes.name.removesuffix(".codes"), node.input[0])
    return found
