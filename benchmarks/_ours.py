"""What lowbit makes of the same networks, from the same images as its peers: one configuration a call, one JSON line.

The time and the peak memory run from the loaded float network to the verified ONNX file.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import numpy as np
import torch

import _mobilenet
import lowbit as lb
from _peers import BATCH, CALIBRATION, NETWORKS, arguments, top1
from lowbit import models
from lowbit.data import open_data
from lowbit.export.runtime import arrays, open_session
from lowbit.formats import Int
from lowbit.layers import weighted_layers
from lowbit.post_training.levels import LEVELS
from lowbit.recipe import Recipe, Rule


def recipe(network: torch.nn.Module, weights_bits: int, activation_bits: int) -> Recipe:
    """The asked bits for all layers but the first and the last, which have 8."""
    first, *_, last = weighted_layers(network)
    rest = Rule(weights=Int(weights_bits), activations=Int(activation_bits))
    ends = (Rule(match=name, weights=Int(8), activations=Int(8)) for name in (first, last))
    return Recipe((rest, *ends))


def _measure(asked: argparse.Namespace) -> dict[str, Any]:
    network = models.load(NETWORKS[asked.network], asked.weights)
    cifar = asked.data / "cifar10"
    train = open_data(str(cifar / "train-*.parquet"), preprocess=_mobilenet.NORMALIZE)
    images = torch.cat([batch for batch, _ in train.take(CALIBRATION, asked.draw).batches(BATCH)])
    batches = list(images.split(64))
    began = time.perf_counter()
    student, did = lb.post_train(
        network,
        recipe(network, asked.weights_bits, asked.activation_bits),
        batches,
        level=asked.level,
        seed=asked.draw,
        progress=False,
    )
    opset = 25 if asked.weights_bits <= 2 else 21
    exported = lb.export_onnx(student, asked.out / "model.onnx", batches[0][:2], opset=opset)
    lb.verify(exported, batches[:4], threads=asked.threads, progress=False)
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    session = open_session(exported.path, threads=asked.threads)

    def predict(images: np.ndarray) -> np.ndarray:
        return session.run(arrays([images], session.inputs))[0]

    test = open_data(str(cifar / "test-*.parquet"), preprocess=_mobilenet.NORMALIZE, limit=asked.test_limit)
    return {
        "peer": f"lowbit {asked.level}",
        "network": asked.network,
        "weights_bits": asked.weights_bits,
        "activation_bits": asked.activation_bits,
        "draw": asked.draw,
        "top1": top1(predict, test),
        "images": len(test),
        "quantize_s": round(seconds, 1),
        "peak_mb": round(peak),
        "file": str(exported.path),
        "size_mb": exported.path.stat().st_size / 1e6,
        "runs_in": "onnxruntime",
        "settings": str(did),
    }


def main() -> None:
    """Print the JSON line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--level", choices=LEVELS, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(_measure(asked)))


if __name__ == "__main__":
    main()
