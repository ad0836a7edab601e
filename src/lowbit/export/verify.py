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

A MatMulNBits may round its input to int8 by itself (accuracy level 4), which the model does not do. Layers and outputs
are then compared on a copy of the file in which it computes on floats, so that no wrong weight hides behind that
rounding, and what the rounding changes at the outputs has a tolerance of its own.

A code may differ by one where float and integer arithmetic round a near-tie differently. A tensor diverges if its codes
are off by more on average than `TOLERANCES` grants the runtime, in units of 1/256 of the grid.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batch, Batches, call, output_tensor, size_of
from lowbit.environment import this_processor
from lowbit.errors import DataError, DataWarning, LowbitError, VerificationError
from lowbit.export.advice import LAYERS, Obstacle, Wiring, computes_on_int8_blocks, obstacles, why_float
from lowbit.export.codes import code_tensors, feed_of, levels_of, reading_codes, without_int8_blocks
from lowbit.export.onnx import Exported, described, note
from lowbit.export.predicted import Predictions
from lowbit.export.profiles import Profiler
from lowbit.export.runtime import Array, RuntimeName, Session, open_session
from lowbit.inputs import InputStatistics, InputWatch, differences
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
# what MatMulNBits may change at the outputs by rounding activations to int8, in the same unit; measured: 0.23 for one
# transformer block; each layer adds .3 to .6 % rms of its outputs. Weights are compared without it, far more strictly
BLOCK_TOLERANCE = 4.0
_NOT_FUSED = "all integers in the file, but the runtime did not fuse it"


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
    largest output of each sample, a single one as `lowbit.export.predicted.Predictions` reads it.
    `mean_output_difference` is what the stretch behind the last codes adds, in 1/256 of the outputs' range. `obstacles`
    say why the file is not faster, and `unlike_calibration` how inputs differ from those that calibrated.
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
    obstacles: tuple[Obstacle, ...]
    unlike_calibration: tuple[str, ...] = ()

    @property
    def same_codes(self) -> float:
        """The lowest share of equal codes of any tensor; 1 without quantized tensors."""
        return min((t.same for t in self.tensors), default=1.0)

    @property
    def largest_code_difference(self) -> int:
        """The largest difference in codes of any tensor."""
        return max((t.largest_difference for t in self.tensors), default=0)

    def why_not_faster(self) -> list[str]:
        """What keeps the file from being faster and what to change, a line each."""
        return [str(one) for one in self.obstacles] or ["nothing: all layers run on integer kernels"]


def verify(
    exported: Exported | str | Path,
    batches: Batches,
    *,
    runtime: RuntimeName = "onnxruntime",
    threads: int = 1,
    reference: Batches | None = None,
    float_model: nn.Module | None = None,
    progress: bool = True,
) -> Verification:
    """Run a file on real inputs and compare it with what it was made from.

    What the file saw is noted in its manifest for `lowbit.watch`: how often each code came, how sure it was. For a path
    this is done only with `reference`, or where the manifest has no such section yet.

    Args:
        exported: the result of `export_onnx`, compared with its frozen model, the figures noted in the manifest; or
            the path of a file, checked against its manifest's hash and compared with its own float meaning.
        batches: inputs in any batch form.
        runtime: what executes the file.
        threads: threads of the runtime.
        reference: inputs that later ones are to be compared with, best such that neither trained nor calibrated; those
            in `batches` by default, at no extra pass.
        float_model: what the file replaces; on how many samples of the reference both predict the same is noted too.
        progress: show a bar on a terminal.

    Raises:
        VerificationError: the file changed since its export, a layer diverges (named, the first one), or a layer that
            is all integers in the file does not run on an integer kernel.
        DataError: no batches, no such file, or no manifest beside it.
        ExportError: the runtime cannot load the file.
    """
    path = exported.path if isinstance(exported, Exported) else Path(exported)
    entry = described(path)
    with contextlib.nullcontext() if isinstance(exported, Exported) else _as_written(path):
        return _verify(
            *(exported, path, entry, batches),
            runtime=runtime,
            threads=threads,
            reference=reference,
            float_model=float_model,
            progress=progress,
        )


@contextlib.contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file from outside, whose graph may be anything, into one line."""
    try:
        yield
    except (LowbitError, Warning):
        raise
    except Exception as error:  # protobuf, the checker and the runtimes raise types of their own
        raise VerificationError(
            f"cannot verify {str(path)!r} ({files.one_line(error)}): it, or its manifest, is damaged or not as lowbit "
            "writes it; export it again"
        ) from error


def _verify(
    exported: Exported | str | Path,
    path: Path,
    entry: Mapping[str, object],
    batches: Batches,
    *,
    runtime: RuntimeName,
    threads: int,
    reference: Batches | None,
    float_model: nn.Module | None,
    progress: bool,
) -> Verification:
    model = onnx.load(path)
    graph = model.graph
    plain = open_session(path, runtime=runtime, threads=threads)
    kept = isinstance(exported, Exported) or reference is not None or not entry.get("watch")
    profiler = Profiler(graph, runtime, float_model)
    samples, largest = 0, 0.0
    predicted, wanted = Predictions(), Predictions()
    with tempfile.TemporaryDirectory() as folder:
        compared = without_int8_blocks(path, Path(folder, "float_blocks.onnx"))
        float_blocks = plain if compared == path else open_session(compared, runtime=runtime, threads=threads)
        reads = reading_codes(compared, Path(folder, "watched.onnx"), forced=False)
        codes_of, names = open_session(reads, runtime=runtime, threads=threads), code_tensors(graph)
        if isinstance(exported, Exported):
            meant: _Reference = _ModelReference(exported.model)
        else:
            meant = _FileReference(compared, reading_codes(compared, Path(folder, "forced.onnx"), forced=True), names)
        seen = InputWatch()
        checks = {name: _Difference(name, levels) for name, levels in levels_of(graph, names).items()}
        last, unread, blocks = _OutputDifference(), _OutputDifference(), _OutputDifference()
        for batch in track(batches, "verify", show=progress):
            seen.add(batch)
            feed = feed_of(batch, plain)
            got, want = plain.run(feed)[0], meant.output(batch)
            by_tensor = dict(zip(codes_of.outputs, codes_of.run(feed), strict=True))
            got_codes = {name: by_tensor[tensor] for name, tensor in names.items()}
            want_codes, want_last = meant.stretches(batch, got_codes)
            for name, codes in want_codes.items():
                checks[name].add(got_codes[name], codes)
            last.add(by_tensor[plain.outputs[0]], want_last)
            in_float = got if float_blocks is plain else float_blocks.run(feed)[0]
            unread.add(in_float, by_tensor[plain.outputs[0]])
            blocks.add(got, in_float)
            predicted.add(got)
            wanted.add(want)
            largest = max(largest, float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max()))
            samples += size_of(batch)
            if kept and reference is None:
                profiler.add(batch, got_codes, by_tensor[plain.outputs[0]])
        if kept and reference is not None:
            profiler.run(codes_of, reference, progress=progress)
    if not samples:
        raise DataError("verification got no batches; give at least one")
    layers, floats, not_fused = _kernels(graph, plain)
    result = Verification(
        runtime,
        samples,
        float((predicted.classes(probability=wanted.probability()) == wanted.classes()).mean()),
        largest,
        tuple(check.result() for check in checks.values()),
        layers,
        dict(Counter(kernel for kernel, _ in plain.operators())),
        {name: reason.what for name, reason in floats.items()} | dict.fromkeys(not_fused, _NOT_FUSED),
        last.result(),
        obstacles(model, plain, layers, floats, this_processor()),
        differences(_calibration_inputs(entry), seen.statistics()),
    )
    for difference in result.unlike_calibration:
        warnings.warn(f"{path.name}: {difference}", DataWarning, stacklevel=3)
    _refuse(path.name, runtime, result, unread.result(), blocks.result())
    _refuse_floats(path.name, runtime, layers, not_fused)
    if isinstance(exported, Exported):
        note(path, {"verification": {**asdict(result), "tolerance": TOLERANCES[runtime]}})
    if kept:
        _keep(path, profiler, entry, must=isinstance(exported, Exported) or reference is not None)
    return result


def _keep(path: Path, profiler: Profiler, entry: Mapping[str, object], *, must: bool) -> None:
    """Note what the file saw; an agreement noted before stays, unless it was measured again."""
    before, seen = entry.get("watch"), profiler.profile().model_dump(mode="json")
    if isinstance(before, dict) and profiler.float_model is None:
        seen["agreement"] = before.get("agreement")
    with contextlib.nullcontext() if must else contextlib.suppress(DataError):  # the folder may be for reading only
        note(path, {"watch": seen})


def _calibration_inputs(entry: Mapping[str, object]) -> dict[str, InputStatistics]:
    calibration = entry.get("calibration")
    inputs = calibration.get("inputs", {}) if isinstance(calibration, dict) else {}
    return {name: InputStatistics.from_dict(one) for name, one in inputs.items()}


def _refuse(name: str, runtime: RuntimeName, result: Verification, unread: float, blocks: float) -> None:
    """Raise where a result, or what reading codes or rounding blocks changed, is beyond the tolerances.

    Raises:
        VerificationError: it says what diverges.
    """
    diverged = next((t for t in result.tensors if t.mean_difference > TOLERANCES[runtime]), None)
    if diverged:
        raise VerificationError(
            f"{name} diverges in {runtime} first at {diverged.name!r}: its codes are off by "
            f"{diverged.mean_difference:.3f} on average (at most {diverged.largest_difference}), tolerated are "
            f"{TOLERANCES[runtime]}; the operations just before it run differently from the model"
        )
    if not result.mean_output_difference <= OUTPUT_TOLERANCES[runtime]:
        raise VerificationError(
            f"{name} diverges in {runtime} at its output, behind the last codes: by "
            f"{result.mean_output_difference:.3f} on average in 1/256 of its range, tolerated are "
            f"{OUTPUT_TOLERANCES[runtime]}; the operations just before it run differently from the model"
        )
    if not unread <= OUTPUT_TOLERANCES[runtime]:
        raise VerificationError(
            f"{name} runs differently in {runtime} while its codes are read: its outputs then differ by "
            f"{unread:.3f} on average in 1/256 of their range, tolerated are {OUTPUT_TOLERANCES[runtime]}; "
            "try another version of the runtime, or onnxruntime"
        )
    if not blocks <= BLOCK_TOLERANCE:
        raise VerificationError(
            f"{name}: activations that MatMulNBits rounds to int8 change its outputs in {runtime} by "
            f"{blocks:.3f} on average in 1/256 of their range, tolerated are {BLOCK_TOLERANCE}; export with "
            "block_kernels='float', or with smaller groups"
        )


def _refuse_floats(name: str, runtime: RuntimeName, layers: Mapping[str, str], not_fused: list[str]) -> None:
    """Raise if a layer that is all integers in the file runs in float.

    Raises:
        VerificationError: it names the layer.
    """
    if not_fused:
        raise VerificationError(
            f"{name}: layer {not_fused[0]!r} is all integers in the file but runs as {layers[not_fused[0]]!r} in "
            f"{runtime}; {len(not_fused)} such layers; try another version of the runtime"
        )


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
        return self.plain.run(feed_of(batch, self.plain))[0]

    def stretches(self, batch: Batch, forced: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        feed = feed_of(batch, self.plain) | {f"forced.{self.names[n]}": codes for n, codes in forced.items()}
        by_tensor = dict(zip(self.forced.outputs, self.forced.run(feed), strict=True))
        return {name: by_tensor[tensor] for name, tensor in self.names.items()}, by_tensor[self.plain.outputs[0]]


_Reference = _ModelReference | _FileReference


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


def _kernels(graph: onnx.GraphProto, session: Session) -> tuple[dict[str, str], dict[str, Obstacle], list[str]]:
    """Kernel of each layer, why layers stayed float, and the layers that should have been integer but are not."""
    kernels, wiring = session.kernels(), Wiring(graph)
    layers: dict[str, str] = {}
    floats: dict[str, Obstacle] = {}
    not_fused = []
    for node in graph.node:
        if node.op_type not in LAYERS:
            continue
        kernel = kernels.get(node.name) or kernels.get(node.output[0], f"{node.op_type} (fused away)")
        layers[node.name] = kernel
        if session.is_integer(kernel) or computes_on_int8_blocks(node, kernel):
            continue
        if node.output[0] in wiring.constant:  # computed once, when the runtime loads the file
            continue
        if reason := why_float(node, wiring, kernel):
            floats[node.name] = reason
        else:
            not_fused.append(node.name)
    return layers, floats, not_fused
