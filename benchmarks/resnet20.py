"""Claim: the files made of the real ResNet-20 keep its accuracy, are small, and predict what the model predicts.

Post-training, 1,024 unlabeled training images, all 10,000 CIFAR-10 test images through the exported file in ONNX
Runtime, over three calibration draws. Weights and activations of every layer, first and last included.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import lowbit as lb
from _figures import emit, options
from lowbit import models
from lowbit.data import Data, Preprocess, open_data
from lowbit.export.runtime import arrays, open_session

NORMALIZE = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
VARIANTS = {
    "w8a8": ("int8", "int8", ">= 91.6"),
    "w4a8": ("int4", "int8", ""),
    "fp4-a8": ("e2m1", "int8", ""),
    "w4a4": ("int4", "int4", ""),
    "w8a16": ("int8", "int16", ""),
}


def main() -> None:
    """Measure every variant over the draws."""
    asked = options(__doc__ or "")
    cifar = asked.data / "cifar10"
    network = models.load("lowbit.models:resnet20", cifar / "resnet20.safetensors")
    train = open_data(str(cifar / "train-*.parquet"), preprocess=NORMALIZE)
    test = open_data(str(cifar / "test-*.parquet"), preprocess=NORMALIZE, limit=1000 if asked.quick else None)
    assert test.labels is not None
    labels = test.labels.numpy()
    with torch.no_grad():
        hits = np.concatenate([network(x).argmax(1).numpy() for x, _ in test.batches(250)]) == labels
    emit("float top-1", 100 * hits.mean(), "%", "" if asked.quick else "= 91.73")
    for name, (weights, activations, target) in list(VARIANTS.items())[: 2 if asked.quick else None]:
        accuracy, same, size = [], [], 0
        for seed in range(1 if asked.quick else 3):
            figures = _measure(network, weights, activations, train.take(1024, seed), test, labels)
            accuracy.append(figures[0])
            same.append(figures[1])
            size = figures[2]
        emit(f"{name} top-1 mean", float(np.mean(accuracy)), "%", "" if asked.quick else target)
        emit(f"{name} top-1 spread over calibration draws", float(np.ptp(accuracy)), "points")
        emit(f"{name} same top-1 in the file as in the model, lowest", min(same), "%", ">= 99.9")
        emit(f"{name} file", size / 1e6, "MB", {"w8a8": "<= 0.39", "w4a8": "<= 0.25"}.get(name, ""))


def _measure(
    network: torch.nn.Module, weights: str, activations: str, calibration: Data, test: Data, labels: np.ndarray
) -> tuple[float, float, int]:
    student = lb.quantize(network, lb.Recipe.uniform(weights, activations))
    lb.calibrate(student, calibration.batches(128), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        exported = lb.export_onnx(student, Path(folder, "model.onnx"), next(iter(calibration.batches(2))))
        session = open_session(exported.path, threads=2)
        got, want = [], []
        for batch, _ in test.batches(250):
            got.append(session.run(arrays([batch.numpy()], session.inputs))[0].argmax(1))
            with torch.no_grad():
                want.append(exported.model(batch).argmax(1).numpy())
        predicted, simulated = np.concatenate(got), np.concatenate(want)
        size = exported.path.stat().st_size
    return 100 * float((predicted == labels).mean()), 100 * float((predicted == simulated).mean()), size


if __name__ == "__main__":
    main()
