"""Claim: lowbit's int8 file is as fast as the one that ONNX Runtime's own static quantizer makes of the same network.

ResNet-20 in ONNX Runtime and OpenVINO: float, ONNX Runtime's static QDQ quantizer, and lowbit's W8A8, W4A8, FP4-A8 and
W4A4 files, timed in turn, call by call, so that ratios hold on a noisy machine. Latency does not depend on the weights'
values, so random ones serve where CIFAR-10 is absent.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import lowbit as lb
from _figures import emit, options
from lowbit import models
from lowbit.data import Preprocess, open_data
from lowbit.export.runtime import RuntimeName, arrays, open_session

VARIANTS = {"w8a8": ("int8", "int8"), "w4a8": ("int4", "int8"), "fp4-a8": ("e2m1", "int8"), "w4a4": ("int4", "int4")}
NORMALIZE = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, batches: list[torch.Tensor]) -> None:
        self.feeds = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def main() -> None:
    """Build all files, time them in turn, print medians and ratios."""
    asked = options(__doc__ or "")
    cifar = asked.data / "cifar10"
    if cifar.exists():
        network = models.load("lowbit.models:resnet20", cifar / "resnet20.safetensors")
        images = open_data(str(cifar / "test-*.parquet"), preprocess=NORMALIZE, limit=512)
        batches = [batch for batch, _ in images.batches(64)]
    else:
        network = models.resnet20().eval()
        batches = list(torch.randn(512, 3, 32, 32).split(64))
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder), network, batches)
        runtimes: list[tuple[RuntimeName, int]] = [("onnxruntime", 1), ("onnxruntime", 2), ("openvino", 2)]
        for runtime, threads in runtimes[:1] if asked.quick else runtimes:
            _time(files, runtime, threads, batches, repeats=30 if asked.quick else 300)


def _files(folder: Path, network: torch.nn.Module, batches: list[torch.Tensor]) -> dict[str, Path]:
    files = {"float": lb.export_onnx(network, folder / "float.onnx", batches[0][:2]).path}
    prepared = folder / "prepared.onnx"
    quant_pre_process(files["float"], prepared)
    files["ort-static"] = folder / "ort-static.onnx"
    quantize_static(
        prepared,
        files["ort-static"],
        _Reader("x", batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    for name, (weights, activations) in VARIANTS.items():
        student = lb.quantize(network, lb.Recipe.uniform(weights, activations))
        lb.calibrate(student, batches, progress=False)
        files[name] = lb.export_onnx(student, folder / f"{name}.onnx", batches[0][:2]).path
    for name, path in files.items():
        emit(f"file {name}", path.stat().st_size / 1e6, "MB", {"w8a8": "<= 0.39", "w4a8": "<= 0.25"}.get(name, ""))
    return files


def _time(
    files: dict[str, Path], runtime: RuntimeName, threads: int, batches: list[torch.Tensor], repeats: int
) -> None:
    sessions = {name: open_session(path, runtime=runtime, threads=threads) for name, path in files.items()}
    where = f"{runtime} {threads} thread{'s' if threads > 1 else ''}"
    if runtime == "onnxruntime":
        for name in ("ort-static", *VARIANTS):
            counts = Counter(sessions[name].kernels().values())
            found = {k: counts[k] for k in ("QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm")}
            emit(f"integer kernels {name} {where}", sum(found.values()), "kernels", ">= 30" if name in VARIANTS else "")
    for size in (1, 32):
        feed = batches[0][:size].numpy()
        times: dict[str, list[float]] = {name: [] for name in files}
        for i in range(repeats // (1 if size == 1 else 5) + 5):
            for name, session in sessions.items():
                took = session.latency(arrays([feed], session.inputs), repeats=1, warmup=0).median_ms
                if i >= 5:
                    times[name].append(took)
        for name, found in times.items():
            emit(f"latency {name} batch {size} {where}", float(np.median(found)), "ms")
        base = "ort-static"
        for name in VARIANTS:
            ratio = float(np.median(np.divide(times[name], times[base])))
            target = "<= 1.05" if name == "w8a8" and runtime == "onnxruntime" else ""
            emit(f"ratio {name} / {base} batch {size} {where}", ratio, "x", target)


if __name__ == "__main__":
    main()
