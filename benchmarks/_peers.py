"""What lowbit's peers make of the same networks, from the same images: one peer and one configuration a call.

ONNX Runtime's quantization tool, NNCF with OpenVINO, torchao (PT2E) and Brevitas each quantize a trained network after
training on 1,024 unlabeled training images, with the settings that their documentation recommends for convolutional
networks; where it leaves a choice, the one that was best on the last 5,000 training images (`--validation`), never on
test images. The first and the last weighted layer have 8-bit weights and activations in every configuration.

It runs in an environment of its own, with what `peers.txt` lists, and prints one JSON line; `"top1": null` with a
`reason` says that the peer cannot do the configuration. An example:

    PYTHONPATH=src python benchmarks/_peers.py --peer brevitas --weights-bits 4 --activation-bits 4 \
        --network resnet20 --weights resnet20.safetensors --data shared/data --draw 0 --out runs/peers
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import _mobilenet
from lowbit import models
from lowbit.data import Data, open_data

CALIBRATION, VALIDATION, BATCH = 1024, _mobilenet.VALIDATION, 250
NETWORKS = {"resnet20": "lowbit.models:resnet20", "mobilenet_v2": "_mobilenet:build"}
Predict = Callable[[np.ndarray], np.ndarray]  # images to logits


@dataclass(frozen=True)
class Job:
    """What one call asks for; the calibration images are decoded before the clock starts."""

    weights_bits: int
    activation_bits: int
    model: nn.Module
    images: torch.Tensor  # for calibration
    out: Path
    threads: int

    @property
    def below_8(self) -> bool:
        """Whether any layer has fewer than 8 bits."""
        return min(self.weights_bits, self.activation_bits) < 8


@dataclass
class Clock:
    """Wall time and peak memory, from here to `stop`."""

    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    peak_mb: float = 0.0

    def stop(self) -> None:
        """Quantization is done; what follows is evaluation."""
        self.seconds = time.perf_counter() - self.started
        self.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@dataclass(frozen=True)
class Quantized:
    """A quantized network that can be evaluated."""

    predict: Predict
    clock: Clock
    runs_in: str
    settings: str
    files: tuple[Path, ...] = ()


class CannotError(Exception):
    """The peer has no way to do this configuration; the message says why."""


# The peers


def _onnxruntime(job: Job, *, method: str | None = None, percentile: float = 99.9) -> Quantized:
    """ONNX Runtime's static QDQ quantization: per-channel symmetric weights, asymmetric activations."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(job.images.split(64))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch.numpy()}

    for bits, what in ((job.weights_bits, "weights"), (job.activation_bits, "activations")):
        if f"QInt{bits}" not in QuantType.__members__:
            raise CannotError(f"onnxruntime.quantization.QuantType has no {bits}-bit type for {what}")
    if method is None:
        method = "MinMax" if job.activation_bits == 8 else "Percentile"
    weight_type = QuantType[f"QInt{job.weights_bits}"]
    activation_type = QuantType[f"QUInt{job.activation_bits}"]
    exported, prepared, path = (job.out / f"{name}.onnx" for name in ("float", "prepared", "model"))
    clock = Clock()
    _export_onnx(job, exported)
    quant_pre_process(exported, prepared)
    options: dict[str, Any] = {"CalibPercentile": percentile} if method == "Percentile" else {}
    operators = None
    if job.below_8:
        first, last = _ends(onnx.load(prepared))
        weight = {"quant_type": QuantType.QInt8, "symmetric": True}
        options["TensorQuantOverrides"] = {
            first.input[0]: [{"quant_type": QuantType.QUInt8}],
            last.input[0]: [{"quant_type": QuantType.QUInt8}],
            first.input[1]: [{**weight, "axis": 0}],
            last.input[1]: [{**weight, "axis": 0}],
        }
        operators = ["Conv", "Gemm"]
    quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=True,
        activation_type=activation_type,
        weight_type=weight_type,
        calibrate_method=CalibrationMethod[method],
        extra_options=options,
    )
    clock.stop()
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = job.threads
    # On the ReLU6 of MobileNetV2 this optimization stops at a 4-bit type that it does not know.
    disabled: dict[str, Any] = {} if job.activation_bits == 8 else {"disabled_optimizers": ["ClipQuantRewrite"]}
    session = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"], **disabled)
    ranges = f"Percentile {percentile}" if method == "Percentile" else method
    used = f"quantize_static, QDQ, per channel, {weight_type} weights, {activation_type} activations, {ranges}"
    if operators:
        used += ", only Conv and Gemm, first and last at 8 bits by TensorQuantOverrides"
    return Quantized(lambda x: session.run(None, {"input": x})[0], clock, "onnxruntime", used, (path,))


def _nncf(job: Job, *, preset: str | None = None, fast: bool = True) -> Quantized:
    """NNCF's post-training quantization of the OpenVINO model.

    Only its NPU target knows 4 bits, for weights and, if symmetric, for the inputs of convolutions that are not
    depthwise. One call has one precision, so the first and the last layer are quantized by a second call.
    """
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    preset = preset or ("MIXED" if job.activation_bits == 8 else "PERFORMANCE")
    path = job.out / "model.xml"
    clock = Clock()
    model = ov.convert_model(job.model, example_input=job.images[:1], input=[[-1, *job.images.shape[1:]]])
    dataset = nncf.Dataset([image[None].numpy() for image in job.images])
    weighted = {
        op.get_friendly_name(): op.get_type_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    }
    names = list(weighted)
    depthwise = [name for name in names if weighted[name] == "GroupConvolution"]
    between = ["Add", "ReduceMean", "Relu", "Clamp", "Reshape", "Pad", "Slice", "StridedSlice"]

    def quantize(chosen: list[str], weights: int, activations: int, types: list[str]) -> None:
        nonlocal model
        low = min(weights, activations) < 8
        parameters = AdvancedQuantizationParameters(
            weights_quantization_params=QuantizationParameters(num_bits=weights),
            activations_quantization_params=QuantizationParameters(num_bits=activations),
        )
        ignored = nncf.IgnoredScope(names=[name for name in names if name not in chosen], types=types, validate=False)
        model = nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset[preset],
            target_device=nncf.TargetDevice.NPU if low else nncf.TargetDevice.ANY,
            subset_size=len(job.images),
            fast_bias_correction=fast,
            ignored_scope=ignored,
            advanced_parameters=parameters if low else None,
        )

    used = f"nncf.quantize, {preset}, {len(job.images)} samples, fast_bias_correction={fast}"
    try:
        if not job.below_8:
            quantize(names, 8, 8, [])
        elif job.activation_bits == 8:
            quantize(names[1:-1], job.weights_bits, 8, [])
        else:
            others = [name for name in names[1:-1] if name not in depthwise]
            quantize(others, job.weights_bits, job.activation_bits, between)
            if depthwise:
                quantize(depthwise, job.weights_bits, 8, between)
                used += ", depthwise layers with 8-bit activations (it has no fewer for them)"
    except ValueError as error:
        if "incompatible" not in str(error):
            raise
        raise CannotError(
            f"nncf.quantize refuses {job.weights_bits}-bit weights with {job.activation_bits}-bit activations for "
            "convolutions: no target device has them, and NPU, the lowest, has 4 and 8 bits"
        ) from error
    if job.below_8:
        quantize([names[0], names[-1]], 8, 8, between)
        used += ", target NPU, first and last at 8 bits by a second call"
    ov.save_model(model, path)
    clock.stop()
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": job.threads})
    return Quantized(lambda x: compiled(x)[0], clock, "openvino", used, (path, path.with_suffix(".bin")))


def _torchao(job: Job) -> Quantized:
    """torchao's PT2E flow with the X86 quantizer; below 8 bits with narrower ranges in its specifications."""
    from torch.export import Dim, export
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    clock = Clock()
    default = get_default_x86_inductor_quantization_config()
    quantizer = X86InductorQuantizer()
    half = 2 ** (job.weights_bits - 1)
    activation = replace(default.input_activation, quant_max=2**job.activation_bits - 1)
    weight = replace(default.weight, quant_min=-half, quant_max=half - 1)
    quantizer.set_global(replace(default, input_activation=activation, output_activation=activation, weight=weight))
    for name in _end_names(job.model):
        quantizer.set_module_name_qconfig(name, default)
    exported = export(job.model, (job.images[:2],), dynamic_shapes=({0: Dim("batch")},)).module()
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for batch in job.images.split(128):
            prepared(batch)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    clock.stop()
    used = "PT2E, X86InductorQuantizer, its default observers"
    if job.below_8:
        used += " with narrower quant_min and quant_max; first and last at its 8-bit default"
    return Quantized(_in_torch(converted), clock, "simulated in torch", used)


def _brevitas(
    job: Job,
    *,
    weight_method: str = "mse",
    activation_method: str | None = None,
    percentile: float = 99.999,
    activation_type: str = "asym",
    equalize: int = 20,
    gptq: bool | None = None,
    act_order: bool = False,
    round_iterations: int | None = None,
    round_batch: int = 32,
    round_lr: float = 1e-2,
    bias_correction: bool = True,
) -> Quantized:
    """Brevitas as in its ImageNet example: graph equalization, GPTQ or learned rounding, bias correction."""
    from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
    from brevitas.inject import value
    from brevitas_examples.imagenet_classification.ptq import ptq_common

    def bits(module: nn.Module, asked: int) -> int:
        return 8 if isinstance(module, nn.Linear) or module.in_channels == 3 else asked

    @value
    def weights_bits(module: nn.Module) -> int:
        return bits(module, job.weights_bits)

    @value
    def activation_bits(module: nn.Module) -> int:
        return bits(module, job.activation_bits)

    if activation_method is None:
        activation_method = "stats" if job.activation_bits == 8 else "mse"
    if round_iterations is None:
        round_iterations = 500 if job.weights_bits < 4 else 0
    if gptq is None:
        gptq = not round_iterations
    clock = Clock()
    loader = [(batch, None) for batch in job.images.split(64)]
    model = preprocess_for_quantize(job.model, equalize_iters=equalize, equalize_merge_bias=True)
    _, layers, _, _ = ptq_common.create_quant_maps(
        dtype=torch.float32,
        bias_bit_width=32,
        weight_bit_width=weights_bits,
        weight_param_method=weight_method,
        weight_scale_type="float_scale",
        weight_quant_type="sym",
        weight_quant_granularity="per_channel",
        weight_narrow_range=False,
        weight_quant_format="int",
        act_quant_format="int",
        act_bit_width=activation_bits,
        act_scale_type="float_scale",
        act_scale_computation_type="static",
        act_param_method=activation_method,
        act_quant_type=activation_type,
        act_quant_granularity="per_tensor",
        act_quant_percentile=percentile,
    )
    model = layerwise_quantize(model, compute_layer_map=layers).eval()
    with torch.no_grad():
        model(loader[0][0])
    ptq_common.calibrate(loader, model)
    if gptq:
        ptq_common.apply_gptq(loader, model, act_order=act_order, create_weight_orig=True)
    if round_iterations:
        _learn_rounding(model, loader, round_iterations, round_batch, round_lr)
    if bias_correction:
        ptq_common.apply_bias_correction(loader, model)
    clock.stop()
    ranges = f"percentile {percentile}" if activation_method == "stats" else activation_method
    steps = [f"layerwise, per-channel {weight_method} weights, {activation_type} activations ({ranges})"]
    steps += [f"{equalize} equalization iterations"] * bool(equalize) + ["GPTQ"] * gptq
    steps += [f"learned rounding ({round_iterations} steps a layer)"] * bool(round_iterations)
    steps += ["bias correction"] * bias_correction
    return Quantized(_in_torch(model), clock, "simulated in torch", ", ".join(steps))


# Parts


def _learn_rounding(model: nn.Module, loader: list[Any], iterations: int, batch: int, lr: float) -> None:
    """Brevitas' learned rounding, layer by layer, as its example does it but without float16, which is for GPUs."""
    from functools import partial

    from brevitas_examples.common.learned_round.learned_round_trainer import LearnedRoundTrainer, get_blocks
    from brevitas_examples.imagenet_classification.ptq import learned_round_utils as utils

    asked = argparse.Namespace(
        learned_round="hard_sigmoid",
        learned_round_loss="regularised_mse",
        learned_round_lr_scheduler=None,
        learned_round_iters=iterations,
        learned_round_batch_size=batch,
        learned_round_lr=lr,
    )
    config = utils.parse_args_to_dataclass(asked)
    config.training_args.use_amp = False
    LearnedRoundTrainer(config=config).train(
        model=model,
        model_forward=utils.vision_forward,
        block_forward=utils.vision_block_forward,
        data_loader=loader,
        cache=utils.CacheVision(),
        get_blocks_fn=partial(get_blocks, block_check_fn=utils.is_layer),
    )


def _in_torch(model: nn.Module) -> Predict:
    """How to run a module on arrays."""

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    return predict


def _export_onnx(job: Job, path: Path) -> None:
    torch.onnx.export(
        job.model,
        (job.images[:1],),
        path,
        dynamo=False,
        opset_version=21 if job.below_8 else 17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
    )


def _ends(model: Any) -> tuple[Any, Any]:
    """The first and the last weighted node of an ONNX graph."""
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return weighted[0], weighted[-1]


def _end_names(model: nn.Module) -> tuple[str, str]:
    """The names of the first and the last weighted module."""
    weighted = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return weighted[0], weighted[-1]


def top1(predict: Predict, data: Data) -> float:
    hits = 0
    for images, labels in data.batches(BATCH):
        assert labels is not None
        hits += int((predict(images.numpy()).argmax(1) == labels.numpy()).sum())
    return 100 * hits / len(data)


def _held_out(train: Data) -> Data:
    """The last images of the training set, on which settings are chosen."""
    assert train.labels is not None
    return replace(train, positions=train.positions[-VALIDATION:], labels=train.labels[-VALIDATION:])


PEERS: dict[str, Callable[..., Quantized]] = {
    "onnxruntime": _onnxruntime,
    "nncf": _nncf,
    "torchao": _torchao,
    "brevitas": _brevitas,
}


def _measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Quantize and evaluate; the figures of the JSON line."""
    random.seed(asked.draw)
    np.random.seed(asked.draw)
    torch.manual_seed(asked.draw)
    model = models.load(NETWORKS[asked.network], asked.weights)
    cifar = asked.data / "cifar10"
    train = open_data(str(cifar / "train-*.parquet"), preprocess=_mobilenet.NORMALIZE)
    images = torch.cat([batch for batch, _ in train.take(CALIBRATION, asked.draw).batches(BATCH)])
    job = Job(asked.weights_bits, asked.activation_bits, model, images, asked.out, asked.threads)
    figures: dict[str, Any] = {
        "peer": asked.peer,
        "network": asked.network,
        "weights_bits": asked.weights_bits,
        "activation_bits": asked.activation_bits,
        "draw": asked.draw,
    }
    try:
        quantized = PEERS[asked.peer](job, **asked.settings)
    except CannotError as error:
        return {**figures, "top1": None, "reason": str(error)}
    if asked.validation:
        data = _held_out(train)
        data = data.take(asked.test_limit, 0) if asked.test_limit else data
    else:
        data = open_data(str(cifar / "test-*.parquet"), preprocess=_mobilenet.NORMALIZE, limit=asked.test_limit)
    return {
        **figures,
        "top1": top1(quantized.predict, data),
        "images": len(data),
        "quantize_s": round(quantized.clock.seconds, 1),
        "peak_mb": round(quantized.clock.peak_mb),
        "file": str(quantized.files[0]) if quantized.files else None,
        "size_mb": sum(path.stat().st_size for path in quantized.files) / 1e6 if quantized.files else None,
        "runs_in": quantized.runs_in,
        "settings": quantized.settings,
    }


def arguments(description: str) -> argparse.ArgumentParser:
    """What every tool is asked: which network, bits and images, and where results go."""
    parser = argparse.ArgumentParser(description=inspect.cleandoc(description).splitlines()[0])
    parser.add_argument("--weights-bits", type=int, required=True)
    parser.add_argument("--activation-bits", type=int, required=True)
    parser.add_argument("--network", required=True, choices=NETWORKS)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main() -> None:
    """Print the JSON line, and nothing else on standard output."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--peer", required=True, choices=PEERS)
    parser.add_argument("--validation", action="store_true", help="evaluate on held-out training images")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: other settings than the chosen ones")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    printed = os.dup(1)
    os.dup2(2, 1)  # the libraries print
    warnings.filterwarnings("ignore")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])  # also bounds their own thread pools
    torch.set_num_threads(asked.threads)
    line = json.dumps(_measure(asked))
    os.write(printed, f"{line}\n".encode())


if __name__ == "__main__":
    main()
