"""CIFAR-10 and the given ResNet-20, for benchmarks that train: data in memory, what trains, and what is told of it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lowbit as lb
from _figures import emit
from _mobilenet import NORMALIZE
from lowbit import models
from lowbit.data import open_data
from lowbit.export.runtime import arrays, open_session
from lowbit.training.samples import crop_and_flip

VALIDATION = 5000  # training images that are held out: they choose


class Cifar:
    """CIFAR-10 in memory."""

    def __init__(self, folder: Path, quick: bool) -> None:
        data = open_data(str(folder / "train-*.parquet"), preprocess=NORMALIZE, limit=2048 if quick else None)
        test = open_data(str(folder / "test-*.parquet"), preprocess=NORMALIZE, limit=500 if quick else None)
        batches, held = list(data.batches(250)), 2 if quick else VALIDATION // 250
        self.train, self.held_out, self.test = batches[:-held], batches[-held:], list(test.batches(250))
        self.folder = folder

    def teacher(self) -> nn.Module:
        """The given ResNet-20."""
        return models.load("lowbit.models:resnet20", self.folder / "resnet20.safetensors").eval()


BLACK = tuple(-mean / std for mean, std in zip(NORMALIZE.mean, NORMALIZE.std, strict=True))
TRAINING: dict[str, Any] = {
    **{"batch_size": 128, "precision": "bf16", "channels_last": True},
    "augment": crop_and_flip(4, fill=BLACK),
}


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]) -> float:
    """Top-1 of a model."""
    with torch.no_grad():
        return float(torch.cat([model(x).argmax(1) == y for x, y in batches]).float().mean())


def of_file(student: nn.Module, cifar: Cifar) -> dict[str, float]:
    """Top-1 and size of the student's file in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        exported = lb.export_onnx(student, Path(folder, "model.onnx"), cifar.test[0][0][:2])
        lb.verify(exported, cifar.train[:2], progress=False)
        session = open_session(exported.path, threads=1)
        hits = [
            session.run(arrays([x.numpy()], session.inputs))[0].argmax(1) == y.numpy()
            for x, y in cifar.test
            if y is not None
        ]
        return {"file": 100 * float(np.concatenate(hits).mean()), "megabytes": exported.path.stat().st_size / 1e6}


def tell(name: str, found: list[float], target: str = "") -> None:
    """A mean, and the spread of several seeds."""
    emit(f"{name}, top-1{f', mean of {len(found)} seeds' if found[1:] else ''}", statistics.mean(found), "%", target)
    if found[1:]:
        emit(f"{name}, spread over seeds", max(found) - min(found), "points")
