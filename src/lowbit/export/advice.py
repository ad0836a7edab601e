"""Why is this file not faster, and what would have to change?

Four things keep a quantized file from the speed that its bits promise, and each is read from the file and from the
graph that the runtime really executes: layers that compute in float, conversions left between operators, layers too
small (or depthwise) for integers to pay off, and a processor without dot product instructions for 8-bit integers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, shape_inference

from lowbit.environment import Processor
from lowbit.export.runtime import Session

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
# ONNX Runtime 1.31, one thread, batch 1, chains of 8 equal layers between Q/DQ, float / int8 time: Gemm 37 k MACs
# .86, 66 k 1.65; Conv 3x3 of 8 channels 37 k .89 and 147 k .90, of 16 channels 147 k 1.15, 590 k 1.62; 2.4 M 2.6. At
# batch 32 a Gemm gains from 9 k on. OpenVINO 2026.4: 37 k 1.07 and 1.00, 66 k 1.18, 262 k 1.62; Conv 590 k 1.19
SMALL = 50_000
_MOVES = {"MaxPool", "Slice", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace"}  # any numbers
_MEAN = (
    "ReduceMean has no integer kernel, a mean over the last axes of a signal or an image has (GlobalAveragePool): "
    "write nn.AdaptiveAvgPool1d(1) or nn.AdaptiveAvgPool2d(1), or leave the layers beside it float"
)
_GOES = "goes as soon as"
_LEAVE = "leave it float (weights=null and activations=null in its rule) and measure: conversions around it cost time"
_BLOCK_OPTIONS = "weights=int4 and granularity=group:32 in its rule, exported with block_kernels"


@dataclass(frozen=True)
class Obstacle:
    """What keeps a file from being faster, and a remedy; `where` is layers or tensors, or empty for the whole file.

    `operations` are those without weights that compute in float between integer layers, where they are the reason.
    """

    where: tuple[str, ...]
    what: str
    remedy: str
    operations: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.where[:4]) + (f" and {len(self.where) - 4} more" if len(self.where) > 4 else "")
        return f"{shown}: {self.what}; {self.remedy}" if shown else f"{self.what}; {self.remedy}"


class Wiring:
    """Who makes and who reads each tensor of a file."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = {node.name: node for node in graph.node}
        self.made = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.kinds = {i.name: i.data_type for i in graph.initializer}
        self.constant = {*self.kinds, ""}  # tensors that are the same for all inputs: runtimes compute them at loading
        for node in graph.node:
            if self.constant.issuperset(node.input):
                self.constant.update(node.output)
        self.parts: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            self.parts.setdefault(self.place(node.name), []).append(node)

    def place(self, name: str) -> str:
        """The layer or quantizer that a node or tensor belongs to; its own name if it is of neither."""
        node = self.nodes.get(name) or self.made.get(name)
        if node is None:
            return name
        if node.name.endswith(".guard"):
            node = self.made[node.input[0]]
        found = re.fullmatch(r"(.*)\.(?:weight|bias)(?:#\d+)?\.\w+", node.name) or re.fullmatch(
            r"(.*?)(?:#\d+)?\.(?:scaled|codes|clipped|values|dequantize)", node.name
        )
        return found[1] if found else node.name

    def neighbors(self, place: str) -> list[onnx.NodeProto]:
        """What makes the inputs and reads the outputs of a quantizer's nodes; nothing for other places."""
        own = self.parts.get(place, [])
        if place in self.nodes:  # a layer
            return []
        before = [self.made[name] for node in own for name in node.input[:1] if name in self.made]
        after = [reader for node in own for name in node.output for reader in self.readers.get(name, [])]
        return [node for node in (*before, *after) if node not in own]


_WIDE_OUTPUT = "its output has 16 bits", "activations=int8 for the layers that read it, or a smaller widen_most"


def why_float(node: onnx.NodeProto, wiring: Wiring, kernel: str) -> Obstacle | None:
    """Why a layer that runs as `kernel` cannot be an integer kernel as the file stands; None if it could."""
    if node.op_type == "MatMulNBits":
        what, remedy = _why_float_blocks(node, kernel)
    else:
        what, remedy = _why_float_operands(node, wiring)
        if not what:
            what, remedy = _why_float_kind(node, wiring)
    return Obstacle((node.name,), what, remedy) if what else None


def _why_float_operands(node: onnx.NodeProto, wiring: Wiring) -> tuple[str, str]:
    x, w = (wiring.made.get(name) for name in node.input[:2])
    if w is not None and ".weight" not in w.name:
        return "it multiplies two activations", "nothing in a recipe: lowbit quantizes products with weights"
    if x is not None and x.name.endswith(".guard"):
        x = wiring.made[x.input[0]]
    if x is None or x.op_type != "DequantizeLinear" or wiring.kinds.get(x.input[2]) != TensorProto.UINT8:
        blocks = f"; or, in ONNX Runtime alone, {_BLOCK_OPTIONS}" if node.op_type in ("Gemm", "MatMul") else ""
        return "its input is not quantized to at most 8 bits", f"quantize it: activations=int8 in its rule{blocks}"
    if w is None or w.op_type != "DequantizeLinear":
        return (
            "its weights are float: no plain integer grid, or its calls read inputs of different scales",
            "weights=int8 or int4 and granularity=channel in its rule; a layer called twice needs a copy a call",
        )
    return "", ""


def _why_float_kind(node: onnx.NodeProto, wiring: Wiring) -> tuple[str, str]:
    if node.op_type == "ConvTranspose":
        return (
            "runtimes have no integer kernel for transposed convolutions",
            "use nn.Upsample and a convolution, or OpenVINO, which has an integer kernel for some",
        )
    if node.op_type == "Conv":
        after = wiring.readers.get(node.output[0], [])
        while len(after) == 1 and after[0].op_type in ("Relu", "Clip"):
            after = wiring.readers.get(after[0].output[0], [])
        if any(reader.op_type == "BatchNormalization" for reader in after):
            return "a BatchNorm follows it that is not folded", "distill the student, or quantize without fold=False"
        if not after or any(reader.op_type != "QuantizeLinear" for reader in after):
            return (
                "its output is not quantized",
                "quantize its output: glue=int8 in the recipe, and activations=int8 for the layers that read it",
            )
        if any(wiring.kinds.get(reader.input[2]) != TensorProto.UINT8 for reader in after):
            return _WIDE_OUTPUT
    if node.op_type == "Gemm":  # which may return floats, but not 16-bit codes
        after = [reader for reader in wiring.readers.get(node.output[0], []) if reader.op_type == "QuantizeLinear"]
        if any(wiring.kinds.get(reader.input[2]) != TensorProto.UINT8 for reader in after):
            return _WIDE_OUTPUT
    return "", ""


def _why_float_blocks(node: onnx.NodeProto, kernel: str) -> tuple[str, str]:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bits, size = given["bits"], given["block_size"]
    if kernel == "MatMulNBits" and given["accuracy_level"] == 4:
        return (
            f"its weights are {bits}-bit blocks of {size}, for which ONNX Runtime has no int8 kernel",
            "use groups of 32, 64 or 128, or 4 bits",
        )
    if given["accuracy_level"] == 4:
        return (
            f"its weights are {bits}-bit blocks, which this runtime computes on floats",
            "run the file in ONNX Runtime, which has an int8 kernel for them",
        )
    # measured for 1024 x 1024 and one row, float / int8 activations: 4 bits .082 / .040 ms, 2 bits 2.06 / .096 ms
    faster = "half" if bits == 4 else "a twentieth of"
    return (
        f"its weights are {bits}-bit blocks, computed on float activations",
        f"export with block_kernels='int8': ONNX Runtime then takes {faster} the time for a single row",
    )


def computes_on_int8_blocks(node: onnx.NodeProto, kernel: str) -> bool:
    """Whether a MatMulNBits rounds its input to int8; 2-bit blocks of 16 fall back to float (measured)."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        kernel == node.op_type == "MatMulNBits"
        and given["accuracy_level"] == 4
        and (given["bits"] == 4 or given["block_size"] >= 32)
    )


def obstacles(
    model: onnx.ModelProto,
    session: Session,
    layers: Mapping[str, str],
    floats: Mapping[str, Obstacle],
    processor: Processor,
) -> tuple[Obstacle, ...]:
    """Everything that keeps a file from being faster, equal causes together.

    Args:
        model: the file.
        session: the runtime that executes it.
        layers: the kernel of each layer.
        floats: why layers that compute in float do so.
        processor: what runs the kernels.
    """
    integer = [name for name, kernel in layers.items() if session.is_integer(kernel)]
    found = [
        *floats.values(),
        *_conversions(Wiring(model.graph), session, floats),
        *_without_gain(integer, model.graph, _shapes(model)),
        *(_no_dot_products(processor) if integer else ()),
    ]
    together: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for one in found:
        together.setdefault((one.what, one.remedy, one.operations), []).extend(one.where)
    return tuple(Obstacle(tuple(where), *what) for what, where in together.items())


def _conversions(wiring: Wiring, session: Session, floats: Mapping[str, Obstacle]) -> Iterator[Obstacle]:
    """Conversions that a float file would not have."""
    if not any(node.op_type == "QuantizeLinear" for node in wiring.nodes.values()):
        return
    at: dict[str, list[str]] = {}
    for kind, names in session.conversions():
        known = next((name for name in names if name in wiring.nodes or name in wiring.made), "")
        at.setdefault(wiring.place(known), []).append(kind)
    kernels = session.kernels()
    for place, kinds in at.items():
        left = ", ".join(f"{number} {kind}" for kind, number in Counter(kinds).items())
        operations: tuple[str, ...] = ()
        if place in floats:
            remedy = f"{_GOES} layer {place!r} runs on integers"
        elif set(kinds) == {"Clip"}:
            remedy = "activations=int8 needs no Clip, unless a clamp such as ReLU6 ends inside its range"
        else:
            remedy, operations = _what_needs_floats(place, wiring, session, kernels, floats)
        yield Obstacle((place,) if place else (), f"conversions left: {left}", remedy, operations)


def _what_needs_floats(
    place: str, wiring: Wiring, session: Session, kernels: Mapping[str, str], floats: Mapping[str, Obstacle]
) -> tuple[str, tuple[str, ...]]:
    """What to change for the float numbers beside a quantizer to go, and the operations that compute with them."""
    found: list[str] = []
    for node in wiring.neighbors(place):
        if node.name in floats:
            return f"{_GOES} layer {node.name!r} runs on integers", ()
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return "give all layers that read this tensor the same activations", ()
        maker = wiring.made.get(node.input[0])
        if node.op_type == "Add" and maker is not None and kernels.get(maker.name) == "MatMulIntegerToFloat":
            return (
                f"flatten the input of {maker.name!r} to two dimensions: with more, its integer kernel returns floats",
                (),
            )
        kernel = kernels.get(node.name) or kernels.get(node.output[0], "")
        if node.op_type not in _MOVES and not session.is_integer(kernel):
            found.append(node.op_type)
    operations = tuple(dict.fromkeys(found))
    if not operations:
        return "nothing in a recipe: the runtime wants its numbers arranged in another way here", ()
    if operations == ("ReduceMean",):
        return _MEAN, operations
    named = " and ".join(operations)
    return (
        f"use an operation with an integer kernel in the place of {named}, or leave the layers beside it float",
        operations,
    )


def _without_gain(names: Iterable[str], graph: onnx.GraphProto, shapes: Mapping[str, list[int]]) -> Iterator[Obstacle]:
    """Layers on integer kernels that take no less time than float ones."""
    counts, nodes = _macs(graph, shapes), {node.name: node for node in graph.node}
    for name in names:
        node = nodes[name]
        grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
        if node.op_type == "Conv" and grouped and shapes.get(node.input[1], [0, 0])[1] == 1:
            # measured from 18 k to 1.2 M MACs at batch 1: ONNX Runtime .4 to .65, OpenVINO .9 to .98
            yield Obstacle((name,), "depthwise: the integer kernel takes longer than the float one", _LEAVE)
        elif counts.get(name, SMALL) < SMALL:
            few = f"fewer than {SMALL:,} MACs a sample: at batch 1 integers gain nothing"
            yield Obstacle((name,), few, f"larger batches; or {_LEAVE}")


def _no_dot_products(processor: Processor) -> Iterator[Obstacle]:
    x86 = processor.machine.lower() in ("x86_64", "amd64")
    if not processor.features or (not x86 and processor.machine.lower() not in ("aarch64", "arm64")):
        return  # the system does not tell, or there is nothing to look for
    if x86 and not processor.features & {"avx512_vnni", "avx_vnni"}:
        yield Obstacle(
            (),
            "this processor has no VNNI: pairs of products are added in 16 bits, which saturates, and takes longer",
            "measure on a processor with avx512_vnni or avx_vnni; weights of at most 7 bits (int7) cannot saturate",
        )
    elif not x86 and "asimddp" not in processor.features:
        yield Obstacle(
            (),
            "this processor has no dot product instructions (asimddp): integer kernels take longer",
            "measure on one that has them, Armv8.2 with dotprod or later",
        )


def _macs(graph: onnx.GraphProto, shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Multiply-accumulates of each layer for one sample; without layers whose shapes the file leaves open."""
    samples = next((shapes[v.name][0] for v in graph.input if shapes.get(v.name)), 1) or 1
    found = {}
    for node in graph.node:
        if node.op_type not in LAYERS or node.op_type == "MatMulNBits":
            continue
        x, w, y = (shapes.get(name, []) for name in (*node.input[:2], node.output[0]))
        elements, weights = (x if node.op_type == "ConvTranspose" else y), w[1:]
        if node.op_type in ("Gemm", "MatMul"):
            weights = w[1:] if any(a.name == "transB" and a.i for a in node.attribute) else w[:-1]
        if elements and weights and all(elements + weights):
            found[node.name] = math.prod(elements + weights) // samples
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of each tensor for one sample, where it can be inferred; open dimensions are 0."""
    graph = shape_inference.infer_shapes(model).graph
    first = next((v.type.tensor_type.shape.dim[0] for v in graph.input if v.type.tensor_type.shape.dim), None)
    batch = first.dim_param if first is not None else ""

    def size(dimension: onnx.TensorShapeProto.Dimension) -> int:
        return 1 if batch and dimension.dim_param == batch else dimension.dim_value

    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {v.name: [size(d) for d in v.type.tensor_type.shape.dim] for v in values}
    return shapes | {i.name: list(i.dims) for i in graph.initializer}
