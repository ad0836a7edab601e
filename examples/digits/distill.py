"""Distil a 2-bit network from its float teacher without labels, and export it.

python examples/digits/distill.py
torchrun --nproc-per-node 2 examples/digits/distill.py      (the same student, from two processes)
"""

from __future__ import annotations

import os
from pathlib import Path

import lowbit as lb
from lowbit import data, models
from lowbit.demo import trained_weights


def main() -> None:
    """Train in seconds; called again, read what is there."""
    folder = Path("runs/distill-digits")
    model = models.load("lowbit.models:digits_cnn", trained_weights(folder / "weights.safetensors")).eval()
    images, _ = data.digits_train()  # the labels stay in the drawer
    batches = list(images.split(64))

    student = lb.quantize(model, lb.Recipe.uniform("mid2", "int2"), fold=False)
    lb.calibrate(student, batches[:8])
    student, result = lb.distill(student, model, batches, epochs=8, folder=folder)

    if int(os.environ.get("RANK", "0")) == 0:  # under torchrun every process has the student; one writes it
        print(result)
        exported = lb.export_onnx(student, folder / "model.onnx", images[:1])
        print(lb.verify(exported, batches).kernels)


if __name__ == "__main__":
    main()
