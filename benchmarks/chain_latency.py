"""Claim: a chain of half the MACs takes longer than its 3x3 convolution where layers are narrow.

Each layer stands between two others, so that quantizing a float input and returning floats is not its time; all three
compute in int8, batch 1, one thread. The dense layer and its chains take turns in one run; the figures are the times of
the chains over that of the dense layer. How long a layer takes does not depend on its weights: they are drawn.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec

import torch
from torch import nn

import lowbit as lb
from _figures import emit, options
from lowbit.export.runtime import RuntimeName

LAYERS = ((64, 8), (64, 32), (128, 28), (256, 14), (512, 7))  # channels, and pixels of a side
QUICK = LAYERS[:1]
CHAINS = ("2x int8", "4x int8", "spatial 2x int8", "spatial 4x int8")


def network(channels: int) -> nn.Sequential:
    """The layer, between two that cost little."""

    def beside() -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 1, groups=channels)

    layer = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(before=beside(), layer=layer, after=beside())).eval()


def compare(runtime: RuntimeName, channels: int, size: int, repeats: int) -> None:
    """Times of a layer and its chains."""
    model, images = network(channels), torch.randn(1, channels, size, size)
    models, recipes = lb.chain_variants(model, lb.Recipe.uniform("int8", "int8"), ["int8", *CHAINS])
    table = lb.measure_formats(
        *(model, recipes, ["layer"], [images], images),
        models=models,
        runtime=runtime,
        repeats=repeats,
        progress=False,
    )
    times, name = table.milliseconds["layer"], f"{runtime}, 3x3, {channels} channels at {size}x{size}"
    emit(f"{name}, dense int8", times["int8"], "ms")
    for choice in CHAINS:
        emit(f"{name}, {choice} over dense int8", times[choice] / times["int8"], "x")


def main() -> None:
    """All layers in all runtimes."""
    asked = options(__doc__ or "")
    torch.manual_seed(0)
    runtimes: list[RuntimeName] = ["onnxruntime"]
    if find_spec("openvino") is not None:
        runtimes.append("openvino")
    for runtime in runtimes:
        for channels, size in QUICK if asked.quick else LAYERS:
            compare(runtime, channels, size, 25 if asked.quick else 500)


if __name__ == "__main__":
    main()
