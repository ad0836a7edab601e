"""Does the file behave like the model it was made from, and does it run on integer kernels?

Three checks, on real inputs:

1. Layer by layer. Every activation quantizer's codes are read out of the running, optimized graph. The reference (the
   frozen model, or for a file alone the same file run node by node in float, which is what its operators mean) starts
   behind each quantizer from the codes that the runtime had there, so each stretch is compared by itself and rounding
   does not pile up. The first tensor that differs by more than rounding is named.
2. Outputs: what comes behind the last codes in the same way, then from input to output the share of samples with the
   same prediction, and the largest difference.
3. Kernels: every layer whose weights, input and output are integers in the file must be an integer kernel in the graph
   that the runtime really executes.

Reading codes can change what runs: OpenVINO does not round between a convolution and the add that it fuses with it,
unless something reads the codes in between. So the outputs with and without codes being read are compared as well.

A code may differ by one where float and integer arithmetic round a near-tie differently. A tensor diverges if its codes
are off by more on average than `TOLERANCES` grants the runtime, in units of 1/256 of the grid.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batch, Batches, call, inputs_of, output_tensor, size_of
from lowbit.errors import DataError, VerificationError
from lowbit.export.onnx import Exported, manifest_entry, note
from lowbit.export.runtime import Array, RuntimeName, Session, arrays, open_session
from lowbit.ops import dequantize
from lowbit.progress import track
from lowbit.quantization import activation_quantizers
from lowbit.quantizer import Quantizer

# measured: ONNX Runtime 0.0001 on ResNet-20, 0.017 in a global mean between equal scales, which is full of ties (a
# weight that it rounds by itself: 0.18); OpenVINO 0.02, and 0.19 on processors where its floats are bfloat16
TOLERANCES: dict[RuntimeName, float] = {"onnxruntime": 0.03, "openvino": 0.3}
# what the stretch behind the last codes, or reading codes, may change in 1/256 of the outputs' range; measured: ONNX
# Runtime 0.0001 (a MatMulNBits: 0.25); OpenVINO on ResNet-20 0.5 with int8 activations, 3.4 with int4 (a fault: 38)
OUTPUT_TOLERANCES: dict[RuntimeName, float] = {"onnxruntime": 0.03, "openvino": 16.0}
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class TensorCheck:
    """One quantized tensor: the share of equal codes, mean (in 1/256 of the grid) and largest difference in codes."""

    name: str
    same: float
    mean_difference: float
    largest_difference: int


@dataclass(frozen=True)
class Verification:
    """How a file ran: `tensors` in the order of the graph; `layers` maps each layer to the kernel that really ran.

    `stayed_float` lists layers that do not run on integers, each with the reason. `same_prediction` compares the
    largest output of each sample (the sign, for a single output). `mean_output_difference` is what the stretch behind
    the last codes adds, in 1/256 of the outputs' range.
    """

    runtime: str
    samples: int
    same_prediction: float
    largest_output_difference: float
    tensors: tuple[TensorCheck, ...]
    layers: dict[str, str]
    kernels: dict[str, int]
    stayed_float: dict[str, str]
    mean_output_difference: float

    @property
    def same_codes(self) -> float:
        """The lowest share of equal codes of any tensor; 1 without quantized tensors."""
        return min((t.same for t in self.tensors), default=1.0)

    @property
    def largest_code_difference(self) -> int:
        """The largest difference in codes of any tensor."""
        return max((t.largest_difference for t in self.tensors), default=0)


def verify(
    exported: Exported | str | Path,
    batches: Batches,
    *,
    runtime: RuntimeName = "onnxruntime",
    threads: int = 1,
    progress: bool = True,
) -> Verification:
    """Run a file on real inputs and compare it with what it was made from.

    Args:
        exported: the result of `export_onnx`, compared with its frozen model, the figures noted in the manifest; or
            the path of a file, checked against its manifest's hash and compared with its own float meaning.
        batches: inputs in any batch form.
        runtime: what executes the file.
        threads: threads of the runtime.
        progress: show a bar on a terminal.

    Raises:
        VerificationError: the file changed since its export, a layer diverges (named, the first one), or a layer that
            is all integers in the file does not run on an integer kernel.
        DataError: no batches, or no manifest beside the file.
        ExportError: the runtime cannot load the file.
    """
    path = exported.path if isinstance(exported, Exported) else Path(exported)
    entry = manifest_entry(path)
    if entry.get("sha256") != files.sha256(path):
        raise VerificationError(
            f"{str(path)!r} is not the file its manifest describes (sha256 differs); export it again"
        )
    graph = onnx.load(path).graph
    plain = open_session(path, runtime=runtime, threads=threads)
    samples, same, largest = 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        watched = _watched(path, Path(folder, "watched.onnx"), forced=False)
        codes_of = open_session(watched, runtime=runtime, threads=threads)
        names = _code_tensors(graph)
        if isinstance(exported, Exported):
            reference: _Reference = _ModelReference(exported.model)
        else:
            reference = _FileReference(path, _watched(path, Path(folder, "forced.onnx"), forced=True), names)
        checks = {name: _Difference(name, levels) for name, levels in _levels(graph, names).items()}
        last, unread = _OutputDifference(), _OutputDifference()
        for batch in track(batches, "verify", show=progress):
            feed = _feed(batch, plain)
            got, want = plain.run(feed)[0], reference.output(batch)
            by_tensor = dict(zip(codes_of.outputs, codes_of.run(feed), strict=True))
            got_codes = {name: by_tensor[tensor] for name, tensor in names.items()}
            want_codes, want_last = reference.stretches(batch, got_codes)
            for name, codes in want_codes.items():
                checks[name].add(got_codes[name], codes)
            last.add(by_tensor[plain.outputs[0]], want_last)
            unread.add(got, by_tensor[plain.outputs[0]])
            same += int((_prediction(got) == _prediction(want)).sum())
            largest = max(largest, float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max()))
            samples += size_of(batch)
    if not samples:
        raise DataError("verification got no batches; give at least one")
    layers, stayed_float, not_fused = _kernels(graph, plain)
    result = Verification(
        runtime,
        samples,
        same / samples,
        largest,
        tuple(check.result() for check in checks.values()),
        layers,
        dict(Counter(kernel for kernel, _ in plain.operators())),
        stayed_float | dict.fromkeys(not_fused, "all integers in the file, but the runtime did not fuse it"),
        last.result(),
    )
    diverged = next((t for t in result.tensors if t.mean_difference > TOLERANCES[runtime]), None)
    if diverged:
        raise VerificationError(
            f"{path.name} diverges in {runtime} first at {diverged.name!r}: its codes are off by "
            f"{diverged.mean_difference:.3f} on average (at most {diverged.largest_difference}), tolerated are "
            f"{TOLERANCES[runtime]}; the operations just before it run differently from the model"
        )
    if not result.mean_output_difference <= OUTPUT_TOLERANCES[runtime]:
        raise VerificationError(
            f"{path.name} diverges in {runtime} at its output, behind the last codes: by "
            f"{result.mean_output_difference:.3f} on average in 1/256 of its range, tolerated are "
            f"{OUTPUT_TOLERANCES[runtime]}; the operations just before it run differently from the model"
        )
    if not unread.result() <= OUTPUT_TOLERANCES[runtime]:
        raise VerificationError(
            f"{path.name} runs differently in {runtime} while its codes are read: its outputs then differ by "
            f"{unread.result():.3f} on average in 1/256 of their range, tolerated are {OUTPUT_TOLERANCES[runtime]}; "
            "try another version of the runtime, or onnxruntime"
        )
    if not_fused:
        raise VerificationError(
            f"{path.name}: layer {not_fused[0]!r} is all integers in the file but runs as {layers[not_fused[0]]!r} in "
            f"{runtime}; {len(not_fused)} such layers; try another version of the runtime"
        )
    if isinstance(exported, Exported):
        note(path, {"verification": {**asdict(result), "tolerance": TOLERANCES[runtime]}})
    return result


def _prediction(output: Array) -> Array:
    rows = output.reshape(len(output), -1).astype(np.float32)
    return rows.argmax(1) if rows.shape[1] > 1 else rows[:, 0] > 0


def _feed(batch: Batch, session: Session) -> dict[str, Array]:
    args, kwargs = inputs_of(batch)
    if kwargs:
        return {name: np.ascontiguousarray(kwargs[name].cpu().numpy()) for name in session.inputs}
    return arrays([a.cpu().numpy() for a in args], session.inputs)


def _watched(path: Path, written: Path, *, forced: bool) -> Path:
    """A copy of the file that also returns the codes of every quantized tensor.

    With `forced`, what comes behind a quantizer reads the codes from an extra input ``forced.<tensor>`` instead.
    """
    model = onnx.load(path)
    graph = model.graph
    kinds = _code_types(graph)
    for tensor in _code_tensors(graph).values():
        if forced:
            graph.input.append(helper.make_tensor_value_info(f"forced.{tensor}", kinds[tensor], None))
            for node in graph.node:
                if node.op_type == "DequantizeLinear" and node.input[0] == tensor:
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


def _levels(graph: onnx.GraphProto, names: dict[str, str]) -> dict[str, int]:
    """Number of codes in the container of each quantized tensor."""
    kinds = _code_types(graph)
    return {name: 65536 if kinds[tensor] == TensorProto.UINT16 else 256 for name, tensor in names.items()}


class _ModelReference:
    """The frozen torch model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.quantizers = activation_quantizers(model)

    def output(self, batch: Batch) -> Array:
        with torch.no_grad():
            return output_tensor(call(self.model, batch)).cpu().numpy()

    def stretches(self, batch: Batch, forced: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        own: dict[str, Array] = {}

        def force(name: str) -> Callable[[Quantizer, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(quantizer: Quantizer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                lowest = quantizer.format.min
                # a mean over an image keeps its axes in the file
                own[name] = (quantizer.quantize(args[0]) - lowest).cpu().numpy().reshape(forced[name].shape)
                codes = torch.from_numpy(forced[name].astype(np.float32)).to(output.device).reshape(output.shape)
                codes += lowest
                return dequantize(codes, quantizer.scale, quantizer.zero_point, quantizer.granularity, output.shape)

            return hook

        hooks = [self.quantizers[n].register_forward_hook(force(n)) for n in forced if n in self.quantizers]
        try:
            last = self.output(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return own, last


class _FileReference:
    """The file run node by node, in float: the meaning of its operators."""

    def __init__(self, path: Path, forced: Path, names: dict[str, str]) -> None:
        self.plain = open_session(path, optimize=False)
        self.forced = open_session(forced, optimize=False)
        self.names = names

    def output(self, batch: Batch) -> Array:
        return self.plain.run(_feed(batch, self.plain))[0]

    def stretches(self, batch: Batch, forced: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        feed = _feed(batch, self.plain) | {f"forced.{self.names[n]}": codes for n, codes in forced.items()}
        by_tensor = dict(zip(self.forced.outputs, self.forced.run(feed), strict=True))
        return {name: by_tensor[tensor] for name, tensor in self.names.items()}, by_tensor[self.plain.outputs[0]]


_Reference = _ModelReference | _FileReference


def _code_tensors(graph: onnx.GraphProto) -> dict[str, str]:
    """The tensor of codes behind each activation quantizer, in the order of the graph.

    Pairs repeated behind an operation that only moves numbers (``name#2``) are left out.
    """
    made = {o: n for n in graph.node for o in n.output}
    found: dict[str, str] = {}
    for node in graph.node:
        maker = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        quantizes = made.get(maker.input[0]) if maker is not None and maker.op_type == "Clip" else maker
        if quantizes is not None and quantizes.op_type == "QuantizeLinear" and "#" not in quantizes.name:
            found.setdefault(quantizes.name.removesuffix(".codes"), node.input[0])
    return found


class _Difference:
    """Running comparison of one tensor's codes."""

    def __init__(self, name: str, levels: int) -> None:
        self.name, self.levels = name, levels
        self.count, self.equal, self.total, self.largest = 0, 0, 0, 0

    def add(self, got: Array, want: Array) -> None:
        difference = np.abs(got.astype(np.int64) - want.astype(np.int64))
        self.count += difference.size
        self.equal += int((difference == 0).sum())
        self.total += int(difference.sum())
        self.largest = max(self.largest, int(difference.max(initial=0)))

    def result(self) -> TensorCheck:
        count = max(self.count, 1)
        return TensorCheck(self.name, self.equal / count, self.total / count * 256 / self.levels, self.largest)


class _OutputDifference:
    """Running comparison of the outputs."""

    def __init__(self) -> None:
        self.count, self.total, self.low, self.high = 0, 0.0, np.inf, -np.inf

    def add(self, got: Array, want: Array) -> None:
        self.count += want.size
        self.total += float(np.abs(got.astype(np.float64) - want.astype(np.float64)).sum())
        self.low, self.high = min(self.low, float(want.min())), max(self.high, float(want.max()))

    def result(self) -> float:
        return self.total / self.count * 256 / (self.high - self.low or abs(self.high) or 1.0)


def _kernels(graph: onnx.GraphProto, session: Session) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Kernel of each layer, why layers stayed float, and the layers that should have been integer but are not."""
    kernels = session.kernels()
    made = {o: n for n in graph.node for o in n.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers, stayed_float, not_fused, kinds = {}, {}, [], _code_types(graph)
    for node in graph.node:
        if node.op_type not in _LAYERS:
            continue
        kernel = kernels.get(node.name) or kernels.get(node.output[0], f"{node.op_type} (fused away)")
        layers[node.name] = kernel
        if session.is_integer(kernel):
            continue
        if reason := _why_float(node, made, readers, kinds):
            stayed_float[node.name] = reason
        else:
            not_fused.append(node.name)
    return layers, stayed_float, not_fused


def _why_float(
    node: onnx.NodeProto,
    made: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    kinds: dict[str, int],
) -> str:
    """Why a layer cannot be an integer kernel as the file stands; empty if it could."""
    x, w = (made.get(name) for name in node.input[:2])
    if w is not None and ".weight" not in w.name:
        return "it multiplies two activations"
    if x is not None and x.name.endswith(".guard"):
        x = made[x.input[0]]
    if x is None or x.op_type != "DequantizeLinear" or kinds.get(x.input[0]) != TensorProto.UINT8:
        return "its input is not quantized to at most 8 bits"
    if w is None or w.op_type != "DequantizeLinear":
        return "its weights are float: no plain integer grid, or its calls read inputs of different scales"
    if node.op_type == "ConvTranspose":
        return "runtimes have no integer kernel for transposed convolutions"
    if node.op_type == "Conv":
        after = readers.get(node.output[0], [])
        while len(after) == 1 and after[0].op_type in ("Relu", "Clip"):
            after = readers.get(after[0].output[0], [])
        if not after or any(reader.op_type != "QuantizeLinear" for reader in after):
            return "its output is not quantized"
    return ""
