"""Claim: weights alone in 4 bits make a large linear layer faster than float, through ONNX Runtime's block-wise kernel.

One linear layer of 1024 x 1024 weights, 1 and 64 rows, one thread: float, and 4- and 2-bit weights in groups of 32 with
float activations exported as float multiplications, and as MatMulNBits on float and on int8 activations. Timed in turn,
call by call; the error is that of the file against the quantized model, in shares of the outputs' standard deviation.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lowbit as lb
from _figures import emit, options
from lowbit.export.runtime import Session, arrays, open_session

FILES = {
    "int4 weights, float multiplication": ("int4", None),
    "int4 weights, MatMulNBits on floats": ("int4", "float"),
    "int4 weights, MatMulNBits on int8": ("int4", "int8"),
    "int2 weights, MatMulNBits on floats": ("int2", "float"),
    "int2 weights, MatMulNBits on int8": ("int2", "int8"),
}


def main() -> None:
    """Export, check and time all files."""
    repeats = 50 if options(__doc__ or "").quick else 300
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(1024, 1024, bias=False)).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = lb.export_onnx(layer, Path(folder, "float.onnx"), torch.randn(2, 1024)).path
        sessions: dict[str, Session] = {"float": open_session(path)}
        rows = torch.randn(64, 1024)
        for i, (name, (format, kernels)) in enumerate(FILES.items()):
            student = lb.quantize(layer, lb.Recipe.uniform(format, None, granularity="group:32"))
            exported = lb.export_onnx(student, Path(folder, f"{i}.onnx"), rows[:2], opset=25, block_kernels=kernels)
            sessions[name] = open_session(exported.path)
            with torch.no_grad():
                want = exported.model(rows).numpy()
            got = sessions[name].run(arrays([rows.numpy()], sessions[name].inputs))[0]
            emit(f"{name}: largest error", float(np.abs(got - want).max() / want.std()), "of the outputs' deviation")
            emit(f"{name}: file", exported.path.stat().st_size / 1e6, "MB")
        for count in (1, 64):
            feed = {n: arrays([rows[:count].numpy()], s.inputs) for n, s in sessions.items()}
            times: dict[str, list[float]] = {name: [] for name in sessions}
            for repeat in range(repeats):
                for name, session in sessions.items():
                    began = time.perf_counter()
                    session.run(feed[name])
                    if repeat >= 10:
                        times[name].append(1000 * (time.perf_counter() - began))
            for name, found in times.items():
                emit(f"{name}, {count} rows: median", float(np.median(found)), "ms")
                ratio = float(np.median(np.array(found) / np.array(times["float"])))
                target = "< 1" if (name, count) == ("int4 weights, MatMulNBits on int8", 1) else ""
                emit(f"{name}, {count} rows: over float", ratio, "x", target)


if __name__ == "__main__":
    main()
