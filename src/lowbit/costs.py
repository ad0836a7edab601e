"""What a model costs: parameters, MACs, BOPs, bytes, activation memory, and measured latency.

MACs are counted for one sample, in every layer with weights, by running the model once: for each output element the
number of weights that were multiplied into it. BOPs = MACs x weight bits x activation bits, first and last layers
included; float32 counts 32 bits. Biases are not counted as MACs. An Embedding looks up, it multiplies nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit import graph
from lowbit.batches import Batch, call, size_of
from lowbit.errors import LayerError
from lowbit.formats import Block, Format
from lowbit.layers import TRANSPOSED, Quantized, weighted_layers
from lowbit.quantizer import Codes, Quantizer

_FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One layer, for one sample. Bytes are of packed codes and float32 scales, or of float32 weights; without bias."""

    name: str
    kind: str
    parameters: int
    macs: int
    weight_bits: float
    activation_bits: int
    weight_bytes: int
    activation_bytes: int

    @property
    def bops(self) -> int:
        """MACs x weight bits x activation bits."""
        return round(self.macs * self.weight_bits * self.activation_bits)


@dataclass(frozen=True)
class Cost:
    """A whole model, for one sample; `parameters` are all of the model's, norms and biases included.

    `activation_bytes` is the largest input plus output that one layer holds, at their bit widths: what a device that
    runs layer by layer needs beside the weights.
    """

    layers: tuple[LayerCost, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations."""
        return sum(layer.bops for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Weights of all layers as stored, with their scales; without biases and norms."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Largest input plus output of one layer."""
        return max((layer.activation_bytes for layer in self.layers), default=0)


def cost(model: nn.Module, example: Batch) -> Cost:
    """Count what `model`, float or quantized, costs for one sample of `example`.

    Raises:
        DataError: `example` is no batch.
    """
    layers = weighted_layers(model)
    inputs = graph.input_quantizers(model)
    calls: dict[str, list[tuple[int, int]]] = {name: [] for name in layers}  # (input, output elements) of each call
    samples = size_of(example)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            calls[name].append((x.numel() // samples, output.numel() // samples))

        return hook

    hooks = [layer.register_forward_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    training = model.training
    try:
        with torch.no_grad():
            call(model.eval(), example)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    rows = tuple(_layer_cost(name, layer, inputs.get(name), calls[name]) for name, layer in layers.items())
    codes = sum(m.shape.numel() for m in model.modules() if isinstance(m, Codes))
    scales = {id(m.scale) for m in model.modules() if isinstance(m, Quantizer)}
    return Cost(rows, codes + sum(p.numel() for p in model.parameters() if id(p) not in scales))


def _layer_cost(name: str, module: nn.Module, reads: Quantizer | None, calls: list[tuple[int, int]]) -> LayerCost:
    layer, holds = module, None
    if isinstance(module, Quantized):
        layer, holds = module.layer, module.weight_quantizer
    shape = holds.shape if isinstance(holds, Codes) else shape_of(layer)
    bits = _bits(holds.format) if holds else _FLOAT_BITS
    activation_bits = reads.format.bits if reads else _FLOAT_BITS
    multiplied = 0 if isinstance(layer, nn.Embedding) else sum(_macs(layer, shape, i, o) for i, o in calls)
    return LayerCost(
        name,
        type(layer).__name__,
        parameters=shape.numel(),
        macs=multiplied,
        weight_bits=bits,
        activation_bits=activation_bits,
        weight_bytes=stored_bytes(shape, holds) if holds else 4 * shape.numel(),
        activation_bytes=max((-(-(i + o) * activation_bits // 8) for i, o in calls), default=0),
    )


def _macs(layer: nn.Module, shape: torch.Size, inputs: int, outputs: int) -> int:
    """A (transposed) convolution or linear layer multiplies each output (input) element `weights / channels` times."""
    if isinstance(layer, TRANSPOSED):
        return inputs * shape[1:].numel()
    return outputs * shape[1:].numel()


def shape_of(layer: nn.Module) -> torch.Size:
    """The shape of a layer's weight, parametrized or not."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.shape


def stored_bytes(shape: torch.Size, holds: Quantizer | Codes) -> int:
    """Bytes of a weight's packed codes and scales."""
    return -(-shape.numel() * holds.format.bits // 8) + _scale_bytes(holds)


def _scale_bytes(holds: Quantizer | Codes) -> int:
    """One byte a block for block formats, and NVFP4's tensor scale; float32 for all others."""
    if isinstance(holds.format, Block):
        return holds.scale.numel() + (4 if holds.format.scale_format == "e4m3fn" else 0)
    return 4 * holds.scale.numel()


def _bits(format: Format) -> float:
    return format.bits_with_scale if isinstance(format, Block) else format.bits


@dataclass(frozen=True)
class Latency:
    """Wall time of one call in milliseconds: median, 10th and 90th percentile over `repeats` calls."""

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def measure(run: Callable[[], object], *, repeats: int = 100, warmup: int = 10) -> Latency:
    """Time `repeats` calls of `run` after `warmup` uncounted ones."""
    for _ in range(warmup):
        run()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    low, median, high = torch.quantile(torch.tensor(times, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9]).double())
    return Latency(float(median), float(low), float(high), len(times))


@dataclass(frozen=True)
class MeasuredCosts:
    """What layers cost on a runtime in each choice of formats (a name such as ``int4``), measured on whole files.

    `milliseconds` and `file_bytes` are by layer, then choice; `rest_ms` is the time of all that belongs to none of
    these layers, `whole_ms` the median of a whole call without profiling, and `refused` why the runtime cannot run a
    choice, which none of the others then has. `about` tells the runtime, its version, threads, batch size, processor.
    """

    milliseconds: Mapping[str, Mapping[str, float]]
    file_bytes: Mapping[str, Mapping[str, int]]
    rest_ms: Mapping[str, float]
    whole_ms: Mapping[str, float]
    refused: Mapping[str, str]
    about: Mapping[str, str | int]

    def total_ms(self, assignment: Mapping[str, str]) -> float:
        """Milliseconds of a call with a choice for each layer: the sum of the layers and of the rest.

        The rest is the mean over the layers of their choices' rests: exact where all have the same choice, and
        linear, so each layer can carry its share of it.

        Raises:
            LayerError: a layer has no choice, is not in the table, or has a choice that was not measured.
        """
        if odd := sorted(self.milliseconds.keys() ^ assignment.keys()):
            expected = "a choice for each of its layers and for no other"
            raise LayerError(f"layer {odd[0]!r} is in the table or in the assignment alone; expected {expected}")
        for layer, choice in assignment.items():
            if choice not in self.rest_ms:
                reason = self.refused.get(choice, "it was not measured")
                raise LayerError(
                    f"layer {layer!r} has no costs in {choice!r} ({reason}); choose from {', '.join(self.rest_ms)}"
                )
        rest = sum(self.rest_ms[choice] * count for choice, count in Counter(assignment.values()).items())
        return sum(self.milliseconds[n][c] for n, c in assignment.items()) + rest / max(len(assignment), 1)
