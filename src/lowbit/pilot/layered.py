"""The record of a student's layers: formats, costs, kernels, and how far quantized weights are from float ones."""

from __future__ import annotations

import math

import torch
from torch import nn

from lowbit.costs import Cost
from lowbit.export.qdq import how_stored
from lowbit.export.verify import Verification
from lowbit.layers import Quantized
from lowbit.pilot.record import LayerRow
from lowbit.quantization import Coverage
from lowbit.quantizer import Quantizer


def layer_rows(
    student: nn.Module, twin: nn.Module, costs: Cost, covered: Coverage, verified: Verification
) -> tuple[LayerRow, ...]:
    """A row a layer; `twin` is the float network that the student is held to."""
    rows, twins = {row.name: row for row in covered.layers}, dict(twin.named_modules())
    result = []
    for layer in costs.layers:
        row = rows[layer.name]
        reason = row.reason or verified.stayed_float.get(layer.name, "")
        kernel = verified.layers.get(layer.name, "")
        result.append(
            LayerRow(
                layer.name,
                layer.kind,
                row.weights,
                row.activations,
                row.granularity,
                layer.parameters,
                layer.macs,
                layer.bops,
                layer.weight_bytes,
                _sqnr(student.get_submodule(layer.name), twins.get(layer.name)),
                kernel,
                reason,
                _shape(student.get_submodule(layer.name)),
            )
        )
    return tuple(result)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = (layer.layer if isinstance(layer, Quantized) else layer)._parameters.get("weight")
    return () if weight is None else tuple(weight.shape)


def _sqnr(layer: nn.Module, twin: nn.Module | None) -> float | None:
    """Signal to quantization noise ratio of a layer's weights in dB; None for float weights, exact ones or a chain's.

    The signal is the twin's float weights: the model's, or where `twin` is `layer`, those that training ended with.
    """
    if twin is None or not isinstance(layer, Quantized) or not isinstance(layer.weight_quantizer, Quantizer):
        return None
    with torch.no_grad():
        weight = (twin.layer if isinstance(twin, Quantized) else twin).get_parameter("weight").double()
        noise = float(((layer.weight.double() - weight) ** 2).sum())
        signal = float((weight**2).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def notes_of(student: nn.Module, covered: Coverage, opset: int) -> tuple[str, ...]:
    """What is to be told of coverage, and of how weights are stored."""
    formats = {m.weight_quantizer.format for m in student.modules() if isinstance(m, Quantized) and m.weight_quantizer}
    stored = [how_stored(fmt, opset) for fmt in sorted(formats, key=str)]
    return tuple(note for note in (covered.note, *stored) if note)
