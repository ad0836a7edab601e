"""Claim: from network to verified file takes the same memory for 20,000 images as for 1,000.

Quantize, calibrate, export and verify, W8A8, level fast: each count runs in a process of its own, whose peak resident
memory the operating system reports. CIFAR-10 training images where they are, else images made on the fly.
"""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _figures import emit, options


def main() -> None:
    """Calibrate on few and on many images and compare peak memory."""
    if sys.argv[1:2] == ["--child"]:
        _child(int(sys.argv[2]), Path(sys.argv[3]))
        return
    asked = options(__doc__ or "")
    few, many = (200, 1000) if asked.quick else (1000, 20000)
    peak = {}
    for count in (few, many):
        command = [sys.executable, __file__, "--child", str(count), str(asked.data)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak[count], seconds = (float(v) for v in done.stdout.split())
        emit(f"peak memory, {count} images", peak[count] / 1e3, "MB")
        emit(f"time, {count} images", seconds, "s")
    emit(f"peak memory, {many} / {few} images", peak[many] / peak[few], "x", "<= 1.05")


def _child(count: int, data: Path) -> None:
    import torch

    import lowbit as lb
    from lowbit import models
    from lowbit.data import Preprocess, open_data

    class Made:
        """Images made on the fly."""

        def __len__(self) -> int:
            return count // 100

        def __iter__(self) -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(0)
            return (torch.randn(100, 3, 32, 32, generator=generator) for _ in range(len(self)))

    network = models.resnet20().eval()
    train = data / "cifar10" / "train-*.parquet"
    preprocess = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = (
        open_data(str(train), preprocess=preprocess).take(count, 0).batches(100) if train.parent.exists() else Made()
    )
    began = time.perf_counter()
    student, _ = lb.post_train(network, lb.Recipe.uniform("int8", "int8"), images, level="fast", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        exported = lb.export_onnx(student, Path(folder, "model.onnx"), torch.zeros(2, 3, 32, 32))
        lb.verify(exported, list(itertools.islice(images, 4)), progress=False)  # on 400, as many for any count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - began)


if __name__ == "__main__":
    main()
