"""From marks to a standard ONNX graph: QuantizeLinear / DequantizeLinear pairs and packed low-bit initializers.

What runtimes need to run on integers, all of it measured with ONNX Runtime 1.31 and OpenVINO 2026.4:

- Activations of at most 8 bits are uint8 Q/DQ pairs. Fewer than 8 bits clip the *codes* (an integer Clip between Q and
  DQ), so a 4-bit tensor still sits between integer kernels.
- Weights of at most 4 bits are stored as INT4 (INT2 from opset 25), cast to INT8 and dequantized: runtimes fold the
  cast while loading, so the file is packed and the kernel is the int8 one. Those whose values 4 bits cannot hold as
  integers (E2M1, mid-rise of 4 bits) are packed indices into an int8 table, which is folded too.
- Behind a float input they are cast to float and multiplied instead, which runtimes fold as well. Dequantized, ONNX
  Runtime would do so at every call, or make a MatMul a MatMulNBits, which rounds its input to int8 by itself.
- Biases are int32 with scale input x weight; kernels ignore the stored scale, so it must be exactly that product.
- Operations that only move numbers get the same Q/DQ pair again behind them, so that they move integers.
- A mean over an image or a signal is a GlobalAveragePool: there is an integer kernel for that and none for a mean.
- With `block_kernels`, linear layers with float inputs and weights of at most 4 bits a group are MatMulNBits nodes of
  ONNX Runtime's own domain instead, which say themselves what they round: nothing (accuracy level 1) or each block of
  the input to int8 (4).

Float formats that the runtime can cast (FP8, bfloat16, float16) are stored as such; all others are stored as indices
into a table of their values, which runtimes fold to float32 at load: small on disk, not fast.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lowbit.errors import ExportError
from lowbit.export.capture import DOMAIN
from lowbit.formats import Binary, Block, Float, Format, Int, MidRise, Ternary
from lowbit.granularity import PerChannel, PerGroup, PerTensor
from lowbit.layers import Quantized, output_granularity, weighted_layers
from lowbit.quantizer import Codes, Quantizer

Array = npt.NDArray[np.generic]

_CASTABLE: dict[Format, tuple[int, object]] = {
    Float(4, 3, specials="fn"): (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    Float(5, 2): (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    Float(4, 3, specials="fnuz"): (TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
    Float(5, 2, specials="fnuz"): (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
    Float(8, 7): (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    Float(5, 10): (TensorProto.FLOAT16, np.float16),
}
_CONTAINERS = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8, 16: np.int16}
_MOVES = {"MaxPool", "Slice", "Pad", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "MatMulNBits"}

# what MatMulNBits computes on: float activations, or activations that it rounds to int8 itself, a scale a block
BlockActivations = Literal["float", "int8"]
BLOCK_DOMAIN = "com.microsoft"
_BLOCK_SIZES = (16, 32, 64, 128)


@dataclass
class _Rewrite:
    """One graph while its marks are replaced. Nodes are re-emitted in order, so the result stays sorted."""

    model: onnx.ModelProto
    frozen: nn.Module
    opset: int
    block_kernels: BlockActivations | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)  # tensor -> the tensor that took its place
    pairs: dict[str, str] = field(default_factory=dict)  # dequantized tensor -> its quantizer
    guards: dict[str, str] = field(default_factory=dict)  # dequantized tensor -> the same behind a Clip
    pooled: dict[str, str] = field(default_factory=dict)  # mean over an image -> the same with axes of length 1
    marked: dict[str, tuple[str, bool]] = field(default_factory=dict)  # tensor of a weight mark -> layer, transposed
    weights: dict[str, str] = field(default_factory=dict)  # dequantized weight tensor -> its layer
    made: dict[tuple[str, bool, bool], str] = field(default_factory=dict)  # layer, transposed, integer -> the same
    blocks: dict[str, list[str]] = field(default_factory=dict)  # layer -> codes and scales of its MatMulNBits
    uses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.initializers = {i.name: i for i in graph.initializer}
        self.outputs = {o.name for o in graph.output}
        self.layers = weighted_layers(self.frozen).keys()
        values = [*graph.input, *graph.value_info]
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    # Building blocks

    def unique(self, name: str) -> str:
        candidate, i = name, 1
        while candidate in self.names:
            i += 1
            candidate = f"{name}.{i}"
        self.names.add(candidate)
        return candidate

    def numbered(self, module: str) -> str:
        """The name of a layer or quantizer, numbered from its second use on."""
        self.uses[module] = self.uses.get(module, 0) + 1
        return module if self.uses[module] == 1 else f"{module}#{self.uses[module]}"

    def constant(self, name: str, array: object) -> str:
        """Add an initializer; sub-byte ml_dtypes arrays are stored packed."""
        tensor = numpy_helper.from_array(np.array(array, order="C"), self.unique(name))
        self.initializers[tensor.name] = tensor
        return tensor.name

    def emit(self, op: str, inputs: Sequence[str], name: str, output: str = "", **attributes: Any) -> str:
        output = output or self.unique(name)
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    # Activations

    def activation(self, quantizer_name: str, x: str, output: str = "") -> str:
        """The numbers of `x` on the grid of a quantizer: its Q/DQ pair, or casts for a float format."""
        quantizer = self.frozen.get_submodule(quantizer_name)
        assert isinstance(quantizer, Quantizer)  # marks carry names of quantizers only
        fmt, scale = quantizer.format, quantizer.scale.detach().cpu().numpy().astype(np.float32)
        name = self.numbered(quantizer_name)
        if isinstance(fmt, Float) and fmt in _CASTABLE:
            limit = [self.constant(f"{name}.{end}", np.float32(v)) for end, v in (("min", fmt.min), ("max", fmt.max))]
            step = self.constant(f"{name}.scale", scale)
            z = self.emit("Div", [x, step], f"{name}.scaled")
            z = self.emit("Clip", [z, *limit], f"{name}.clipped")
            z = self.emit("Cast", [z], f"{name}.codes", to=_CASTABLE[fmt][0])
            z = self.emit("Cast", [z], f"{name}.values", to=TensorProto.FLOAT)
            return self.emit("Mul", [z, step], f"{name}.dequantize", output)
        if not (isinstance(fmt, Int) or fmt == Ternary()) or fmt == Int(16, narrow=True):
            raise ExportError(
                f"activations {quantizer_name!r}: no runtime computes with {fmt} activations; use int2 to int16, "
                "or e4m3fn, e5m2, e4m3fnuz, e5m2fnuz, bf16, fp16, in the recipe"
            )
        codes, step, zero = self.activation_codes(name, quantizer, x)
        dequantized = self.emit("DequantizeLinear", [codes, step, zero], f"{name}.dequantize", output)
        self.pairs[dequantized] = quantizer_name
        return dequantized

    def activation_codes(self, name: str, quantizer: Quantizer, x: str) -> tuple[str, str, str]:
        """The codes of `x` in an integer format, their scale and zero point; the first half of a pair."""
        fmt, scale = quantizer.format, quantizer.scale.detach().cpu().numpy().astype(np.float32)
        # the lowest code is stored as 0: behind a ReLU the zero point is 0, and nothing is left to clip
        kind = np.uint16 if fmt.bits > 8 else np.uint8
        x, *clamp = self.unclamped(x) if kind is np.uint8 else (x, -np.inf, np.inf)
        bounds = [
            int(v - fmt.min) for v in quantizer.quantize(torch.tensor(clamp, device=quantizer.scale.device)).tolist()
        ]
        zero_point = 0 if quantizer.zero_point is None else int(quantizer.zero_point)
        step = self.constant(f"{name}.scale", scale)
        zero = self.constant(f"{name}.zero_point", kind(zero_point - fmt.min))
        codes = self.emit("QuantizeLinear", [x, step, zero], f"{name}.codes")
        if bounds != [0, np.iinfo(kind).max]:
            ends = [self.constant(f"{name}.{e}", kind(v)) for e, v in zip(("min", "max"), bounds, strict=True)]
            codes = self.emit("Clip", [codes, *ends], f"{name}.clipped")
        return codes, step, zero

    def unclamped(self, x: str) -> tuple[str, float, float]:
        """What a ReLU or clamp that only a quantizer reads gets, and its bounds, for the codes to be clipped instead.

        That is the same function; ONNX Runtime drops a clamp by itself only if it covers the whole range of the codes,
        and else leaves the layer before it float.
        """
        node = next((n for n in reversed(self.nodes) if x in n.output), None)
        if node is None or node.op_type not in ("Relu", "Clip") or x in self.outputs or len(self.readers[x]) > 1:
            return x, -np.inf, np.inf
        bounds = [0.0, np.inf]
        if node.op_type == "Clip":
            given = [*node.input[1:], "", ""][:2]
            if any(name and name not in self.initializers for name in given):
                return x, -np.inf, np.inf
            bounds = [
                float(numpy_helper.to_array(self.initializers[name])) if name else end
                for name, end in zip(given, (-np.inf, np.inf), strict=True)
            ]
        self.nodes.remove(node)
        return node.input[0], bounds[0], bounds[1]

    # Weights

    def weight(self, name: str, transposed: bool, integer: bool) -> str:
        """The dequantized weight of a layer; made once, also if the layer is called twice."""
        key = (name, transposed, integer)
        if key not in self.made:
            stored = self.numbered(f"{name}.weight")
            self.made[key] = self._dequantized(stored, self.codes_of(name), transposed, integer)
            self.weights[self.made[key]] = name
        return self.made[key]

    def codes_of(self, layer: str) -> Codes:
        """The frozen weight of a layer that has a weight mark."""
        quantized = self.frozen.get_submodule(layer)
        assert isinstance(quantized, Quantized)
        assert isinstance(quantized.weight_quantizer, Codes)
        return quantized.weight_quantizer

    def _dequantized(self, name: str, codes: Codes, transposed: bool, integer: bool) -> str:
        stored, scale = codes.codes(), codes.scale.detach().cpu()
        spread = codes.granularity.spread(scale, codes.shape)
        axis = codes.granularity.axis or 0 if isinstance(codes.granularity, PerChannel) else 0
        if transposed and not isinstance(codes.granularity, PerGroup):
            stored, axis = stored.T, 1 - axis
            spread = spread.T if spread.dim() == 2 else spread
            transposed = False
        fmt = codes.format.element if isinstance(codes.format, Block) else codes.format
        if integer:
            step = self.constant(f"{name}.scale", (scale * (fmt.unit or 1.0)).numpy())
            inputs = [self._integers(name, fmt, stored), step, self.zeros(tuple(scale.shape))]
            return self.emit("DequantizeLinear", inputs, f"{name}.dequantize", axis=axis)
        inputs = [self._float_values(name, fmt, stored), self.constant(f"{name}.scale", spread.numpy())]
        weight = self.emit("Mul", inputs, f"{name}.dequantize")
        if isinstance(codes.granularity, PerGroup):
            weight = self._ungrouped(name, weight, codes)
        return self.emit("Transpose", [weight], f"{name}.T", perm=[1, 0]) if transposed else weight

    def _integers(self, name: str, fmt: Format, codes: Tensor) -> str:
        """Grid values as int8, in units of `Format.unit`, from packed storage."""
        if _is_indexed(fmt):
            table = (fmt.table() / (fmt.unit or 1)).numpy().astype(np.int8)
            return self.emit(
                "Gather", [self.constant(f"{name}.table", table), self._index(name, fmt, codes)], f"{name}.int8"
            )
        stored = self._packed(name, fmt, codes)
        return self.emit("Cast", [stored], f"{name}.int8", to=TensorProto.INT8) if fmt.bits <= 4 else stored

    def _packed(self, name: str, fmt: Format, codes: Tensor) -> str:
        container = _CONTAINERS[_container_bits(fmt, self.opset)]
        return self.constant(f"{name}.codes", fmt.decode(codes).numpy().astype(container))

    def _index(self, name: str, fmt: Format, codes: Tensor) -> str:
        kind = ml_dtypes.uint4 if fmt.bits <= 4 else np.uint8 if fmt.bits <= 8 else np.uint16
        index = self.constant(f"{name}.codes", codes.numpy().astype(kind))
        return self.emit("Cast", [index], f"{name}.index", to=TensorProto.INT32)

    def zeros(self, shape: tuple[int, ...]) -> str:
        """A zero point, shared by all weights of its shape: without one, ONNX Runtime keeps a Gemm float."""
        name = f"zero_point.{'x'.join(map(str, shape)) or 'scalar'}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.zeros(shape, np.int8), name)
        return name

    def _float_values(self, name: str, fmt: Format, codes: Tensor) -> str:
        """Unscaled numbers as float32, from the smallest storage the runtime reads."""
        if not _is_indexed(fmt):
            return self.emit("Cast", [self._packed(name, fmt, codes)], f"{name}.values", to=TensorProto.FLOAT)
        if fmt in _CASTABLE:
            array = fmt.decode(codes).numpy().astype(_CASTABLE[fmt][1])  # type: ignore[call-overload]
            return self.emit("Cast", [self.constant(f"{name}.codes", array)], f"{name}.values", to=TensorProto.FLOAT)
        table = self.constant(f"{name}.table", fmt.table().numpy())
        return self.emit("Gather", [table, self._index(name, fmt, codes)], f"{name}.values")

    def _ungrouped(self, name: str, weight: str, codes: Codes) -> str:
        """From `[rows, groups, size]` to the weight's shape, without a ragged end."""
        row = codes.shape[1:].numel()
        if codes.blocked_shape[1:].numel() != row:
            flat = self.constant(f"{name}.rows", np.array([codes.shape[0], -1], np.int64))
            weight = self.emit("Reshape", [weight, flat], f"{name}.padded")
            ends = [
                self.constant(f"{name}.{n}", np.array([v], np.int64)) for n, v in (("from", 0), ("to", row), ("on", 1))
            ]
            weight = self.emit("Slice", [weight, *ends], f"{name}.whole")
        shape = self.constant(f"{name}.shape", np.array(codes.shape, np.int64))
        return self.emit("Reshape", [weight, shape], f"{name}.reshaped")

    def fits_blocks(self, node: onnx.NodeProto) -> bool:
        """Whether a MatMulNBits can do what a node does: a linear layer, few bits a group, and a float input."""
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in self.marked or node.input[0] in self.pairs:
            return False
        layer, transposed = self.marked[node.input[1]]
        codes = self.codes_of(layer)
        fits = isinstance(codes.format, Int | MidRise | Ternary | Binary) and _value_bits(codes.format) <= 4
        groups = isinstance(codes.granularity, PerGroup) and codes.granularity.size in _BLOCK_SIZES
        whole = groups and codes.shape[1] == codes.blocked_shape[1:].numel()
        return fits and whole and transposed != any(a.name == "transB" and a.i for a in node.attribute)

    def block_multiplication(self, node: onnx.NodeProto, activations: BlockActivations) -> onnx.NodeProto:
        """A layer's node as MatMulNBits, which adds the bias too."""
        layer, _ = self.marked[node.input[1]]
        codes = self.codes_of(layer)
        (rows, groups, size), bits = codes.blocked_shape, 2 if _value_bits(codes.format) <= 2 else 4
        if (stored := self.blocks.get(layer)) is None:
            # unsigned, with a zero point of half the range, which is the default; the first code in the lowest bits
            unsigned = (codes.integers().cpu().reshape(rows, groups, -1, 8 // bits) + 2 ** (bits - 1)).to(torch.uint8)
            packed = (unsigned << torch.arange(0, 8, bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
            scale = codes.integer_scale.detach().cpu().reshape(rows, groups)
            stored = [self.constant(f"{layer}.weight.{n}", a.numpy()) for n, a in (("codes", packed), ("scale", scale))]
            self.blocks[layer] = stored
        return helper.make_node(
            "MatMulNBits",
            [node.input[0], *stored, *(["", "", node.input[2]] if len(node.input) > 2 else [])],
            node.output,
            name=self.numbered(layer),
            domain=BLOCK_DOMAIN,
            K=groups * size,
            N=rows,
            bits=bits,
            block_size=size,
            accuracy_level=1 if activations == "float" else 4,
        )

    def bias(self, layer_name: str, tensor: str) -> str:
        """An int32 bias with scale input x weight, for a layer that computes on integers; else the float one."""
        layer = self.frozen.get_submodule(layer_name)
        assert isinstance(layer, Quantized)
        if layer.input_scale is None or tensor not in self.initializers:
            return tensor
        assert isinstance(layer.weight_quantizer, Codes)  # only frozen layers have an input scale
        scale = (layer.input_scale * layer.weight_quantizer.integer_scale).cpu()
        values = numpy_helper.to_array(self.initializers[tensor]).astype(np.float64)
        codes = np.round(values / scale.numpy().astype(np.float64)).astype(np.int32)
        stored = self.constant(f"{layer_name}.bias.codes", codes)
        step = self.constant(f"{layer_name}.bias.scale", scale.numpy())
        return self.emit("DequantizeLinear", [stored, step], f"{layer_name}.bias.dequantize", axis=0)

    # The walk

    def run(self) -> None:
        graph = self.model.graph
        self.names |= {i.name for i in graph.initializer} | {i.name for i in graph.input}
        self.names |= {o for n in graph.node for o in n.output}
        for node in list(graph.node):
            self.visit(node)
        used = {name for node in self.nodes for name in node.input} | self.outputs
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.initializer[:]
        graph.initializer.extend(i for n, i in self.initializers.items() if n in used)
        # shapes of what layers return stay, for MACs to be counted from the file: not all can be inferred again
        kept = {node.output[0] for node in self.nodes if node.op_type in _WEIGHTED}
        shapes = [value for value in graph.value_info if value.name in kept]
        del graph.value_info[:]
        graph.value_info.extend(shapes)
        stale = [i for i, entry in enumerate(self.model.opset_import) if entry.domain == DOMAIN]
        for i in reversed(stale):
            del self.model.opset_import[i]
        if self.blocks:
            self.model.opset_import.append(helper.make_opsetid(BLOCK_DOMAIN, 1))
        elif self.block_kernels:
            raise ExportError(
                f"block_kernels={self.block_kernels!r} fits no layer: it takes Linear layers with float activations "
                f"and weights of at most 4 bits, granularity group:{', group:'.join(map(str, _BLOCK_SIZES))}"
            )

    def visit(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Transpose" and node.input[0] in self.marked and self._swaps_axes(node):
            layer, transposed = self.marked[node.input[0]]
            self.marked[node.output[0]] = layer, not transposed
            return
        rank = self.ranks.get(node.input[0], 0) if node.input else 0
        for i, name in enumerate(node.input):
            node.input[i] = self.renamed.get(name, name)
        if self.block_kernels and self.fits_blocks(node):
            node.CopyFrom(self.block_multiplication(node, self.block_kernels))
        for i, name in enumerate(node.input):
            if name in self.marked:
                layer, transposed = self.marked[name]
                node.input[i] = self.weight(layer, transposed, i == 1 and self.on_integers(layer, node))
        if node.domain == DOMAIN:
            self.replace_mark(node)
            return
        if node.op_type == "ReduceMean" and self.over_positions(node, rank):
            self.pool(node)
            return
        self.finish_layer(node)
        self.nodes.append(self.unfused(node) if node.op_type == "Relu" else node)
        if node.op_type in _MOVES and node.input[0] in self.pairs and node.output[0] not in self.outputs:
            moved = node.output[0]
            self.renamed[moved] = self.activation(self.pairs[node.input[0]], moved)

    def replace_mark(self, node: onnx.NodeProto) -> None:
        name = helper.get_attribute_value(node.attribute[0]).decode()
        result = node.output[0]
        if node.op_type == "Weight":
            self.marked[result] = name, False
            return
        if node.op_type == "Codes":
            quantizer = self.frozen.get_submodule(name)
            assert isinstance(quantizer, Quantizer)  # as above
            codes, *_ = self.activation_codes(self.numbered(name), quantizer, node.input[0])
            self.emit("Cast", [codes], f"{name}.integers", result, to=TensorProto.INT32)
            return
        kept = result if result in self.outputs else ""
        if kept:
            self.names.discard(kept)
        x = node.input[0]
        if x in self.pooled:  # quantized where it is pooled, so that the pooling runs on integers too
            x = self.emit("Flatten", [self.activation(name, self.pooled[x])], f"{name}.flatten")
        self.renamed[result] = self.activation(name, x, kept)

    def finish_layer(self, node: onnx.NodeProto) -> None:
        """Give a layer's node the layer's name, and its bias the integer form."""
        if node.op_type not in _WEIGHTED or node.domain == BLOCK_DOMAIN:
            return
        if node.op_type == "MatMul" and node.input[1] not in self.weights:
            self.name_by_scope(node)  # its weight was transposed, under a new name
        for i, tensor in enumerate(node.input):
            if (layer := self.weights.get(tensor)) is not None:  # a model that is itself a layer has the name ""
                node.name = self.numbered(layer)
                if i == 1 and self.on_integers(layer, node):
                    node.input[2:] = [self.bias(layer, bias) for bias in node.input[2:]]
                elif i == 1:
                    node.input[0] = self.guarded(node.input[0])
            elif tensor.endswith(".weight") and tensor in self.initializers:
                node.name = self.numbered(tensor.removesuffix(".weight").removesuffix(".layer"))
                if i == 1:
                    node.input[0] = self.guarded(node.input[0])

    def name_by_scope(self, node: onnx.NodeProto) -> None:
        """Give a node the name of the layer whose forward made it, which the exporter notes; else it keeps its own."""
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        layer = next((scope for scope in reversed(ast.literal_eval(scopes)) if scope and scope in self.layers), None)
        if layer is not None:
            node.name = self.numbered(layer)

    def on_integers(self, layer: str, node: onnx.NodeProto) -> bool:
        """Whether a layer's node multiplies 8-bit codes of its input with 8-bit codes of its weight, and adds the rest.

        Its float bias cannot become a sum of codes if its calls read different scales.
        """
        quantized, codes = self.frozen.get_submodule(layer), self.codes_of(layer)
        assert isinstance(quantized, Quantized)
        if node.op_type not in _WEIGHTED or node.input[0] not in self.pairs or codes.format.unit is None:
            return False
        reads = self.frozen.get_submodule(self.pairs[node.input[0]])
        assert isinstance(reads, Quantizer)
        a_scale_each_sum = codes.granularity in (PerTensor(), output_granularity(quantized.layer, PerChannel()))
        bias_fits = len(node.input) < 3 or quantized.input_scale is not None
        return a_scale_each_sum and reads.format.unit == 1.0 and bias_fits

    def guarded(self, x: str) -> str:
        """`x`, if it comes out of a Q/DQ pair behind a Clip that changes nothing.

        ONNX Runtime rounds a float weight or bias to integers by itself where the layer's input comes straight from a
        DequantizeLinear; a weight whose numbers are no plain int8 grid would change.
        """
        if x in self.pairs and x not in self.guards:
            limits = [self.constant(f"{x}.{e}", np.float32(v)) for e, v in (("lowest", -3.4e38), ("highest", 3.4e38))]
            self.guards[x] = self.emit("Clip", [x, *limits], f"{x}.guard")
        return self.guards.get(x, x)

    def unfused(self, relu: onnx.NodeProto) -> onnx.NodeProto:
        """A ReLU between an integer Gemm and one float operation as Max(x, 0), which is the same; any other as it is.

        ONNX Runtime would make one float node of Gemm and ReLU, or of Gemm and Clip, before it looks for integers.
        """
        readers = self.readers.get(relu.output[0], [])
        gemm = next((n for n in reversed(self.nodes) if relu.input[0] in n.output), None)
        if gemm is None or gemm.op_type != "Gemm" or len(readers) != 1 or readers[0].domain == DOMAIN:
            return relu
        layer = self.weights.get(gemm.input[1])
        if relu.output[0] in self.outputs or layer is None or not self.on_integers(layer, gemm):
            return relu
        zero = self.constant(f"{relu.output[0]}.zero", np.float32(0))
        return helper.make_node("Max", [relu.input[0], zero], relu.output, name=relu.name)

    def over_positions(self, node: onnx.NodeProto, rank: int) -> bool:
        """Whether a mean is over all positions of an image `[n, c, h, w]` or of a signal `[n, c, length]`.

        One that keeps the last of three axes is the mean of a norm over `[n, tokens, features]`, which runtimes fuse.
        """
        axes = self.initializers.get(node.input[1]) if len(node.input) > 1 else None
        wanted = {3: ([2], [-1]), 4: ([2, 3], [-2, -1])}.get(rank, ())
        kept = all(a.i for a in node.attribute if a.name == "keepdims")
        found = axes is not None and sorted(numpy_helper.to_array(axes).tolist()) in wanted
        return found and not (rank == 3 and kept)

    def pool(self, mean: onnx.NodeProto) -> None:
        """GlobalAveragePool, and Flatten where the mean drops the axes it is over."""
        result = mean.output[0]
        if all(a.i for a in mean.attribute if a.name == "keepdims"):
            self.emit("GlobalAveragePool", [mean.input[0]], mean.name, result)
            return
        self.pooled[result] = self.emit(
            "GlobalAveragePool", [mean.input[0]], mean.name, self.unique(f"{result}.pooled")
        )
        if any(reader.domain != DOMAIN for reader in self.readers.get(result, [])) or result in self.outputs:
            self.emit("Flatten", [self.pooled[result]], f"{mean.name}.flatten", result)

    @staticmethod
    def _swaps_axes(node: onnx.NodeProto) -> bool:
        return any(a.name == "perm" and list(a.ints) == [1, 0] for a in node.attribute)


def _value_bits(fmt: Format) -> int:
    """Bits of a two's complement integer that holds any value of a format of integers; odd ones need a bit more."""
    return fmt.bits + isinstance(fmt, MidRise)


def _container_bits(fmt: Format, opset: int) -> int:
    """Bits of the integers in the file that hold the values of a format of integers."""
    return next(b for b in _CONTAINERS if b >= _value_bits(fmt) and (b != 2 or opset >= 25))


def _is_indexed(fmt: Format) -> bool:
    """Whether weights are stored as indices into a table: floats, and integers that 4 or 8 bits hold only as such."""
    return isinstance(fmt, Float) or fmt in (MidRise(4), MidRise(8))


def how_stored(fmt: Format, opset: int) -> str:
    """What a weight format becomes in the file, where that is not what its name says; empty if it is."""
    if isinstance(fmt, Block):
        return f"{fmt} weights are stored as element codes and float32 block scales, and computed in float32"
    if fmt.unit is None and fmt.bits > 8 and isinstance(fmt, Int):
        return f"{fmt} weights save size only: runtimes compute with them in float32"
    if fmt.unit is None:
        return f"{fmt} weights save size only: runtimes turn them into float32 while loading"
    if _is_indexed(fmt):
        return (
            f"{fmt} weights are stored as {4 if fmt.bits <= 4 else 8}-bit indices; the kernels compute on int8, exactly"
        )
    container = _container_bits(fmt, opset)
    if container == fmt.bits:
        return ""
    more = "; opset 25 stores them in 2" if _value_bits(fmt) <= 2 and opset < 25 else ""
    return f"{fmt} weights are stored in {container} bits each{more}"


def lower(
    model: onnx.ModelProto, frozen: nn.Module, opset: int, block_kernels: BlockActivations | None = None
) -> onnx.ModelProto:
    """Replace the marks in `model` (in place) by what runtimes understand; `frozen` holds scales and codes.

    Raises:
        ExportError: a format that no runtime can compute with, the message names where; or no layer fits
            `block_kernels`.
    """
    _Rewrite(model, frozen, opset, block_kernels).run()
    return model
