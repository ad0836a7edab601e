"""Cross-layer equalization: channels of like range, without changing what the network computes.

A ReLU between two layers lets a channel be scaled down in the first and up again in the second:

    W2 relu(W1 x + b1)  =  (W2 S) relu((W1 / S) x + b1 / S),    s_i = sqrt(r1_i / r2_i) > 0

with r1_i and r2_i the largest weights that write and read channel i. Both then have range sqrt(r1_i r2_i), so the
channels of a tensor that share one scale use it alike. It matters most where one tensor serves channels of very
different ranges: depthwise networks with per-tensor scales.

References:
    Nagel et al., Data-free quantization through weight equalization and bias correction, 2019,
    https://arxiv.org/abs/1906.04721, section 4.1, equation 11.

Differs from the paper: with `batches`, r1_i is the largest activation of channel i instead of its largest weight. Where
weights have a scale for each output channel, it is the activations that share one. A ReLU6 between two layers is left
as it is (the paper replaces it by a ReLU, which changes the function), and so its pair is not equalized.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lowbit import graph
from lowbit.batches import Batches, call
from lowbit.errors import CalibrationError, LayerError
from lowbit.layers import CONVOLUTIONS, channel_axis, why_not
from lowbit.progress import track

# what lets a positive factor of a channel through, and keeps channels apart
_HOMOGENEOUS: set[object] = {F.relu, torch.relu, "relu", nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout}
# the same, behind a convolution: behind a linear layer they would pool its channels
_POOLS: set[object] = {nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d}
_POOLS |= {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d}
_SWEEPS = 20


@dataclass(frozen=True)
class EqualizedPair:
    """Two layers and how much their channels differed: the largest over the smallest range, before and after."""

    first: str
    second: str
    spread_before: float
    spread_after: float


@dataclass(frozen=True)
class Equalization:
    """The pairs of layers that were equalized; none where all activations are clamped or branch."""

    pairs: tuple[EqualizedPair, ...]


def equalize(
    model: nn.Module, batches: Batches | None = None, *, progress: bool = True
) -> tuple[nn.Module, Equalization]:
    """A traced copy of a float `model`, BatchNorms folded, whose layers are equalized pair by pair until none changes.

    Args:
        model: a float model, before `quantize`.
        batches: inputs in any batch form, for ranges of activations instead of weights between the layers of a pair.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: `batches` is empty.
        LayerError: the model cannot be traced, so that nothing tells which layer reads which.
    """
    traced = graph.trace(copy.deepcopy(model).eval())
    if isinstance(traced, str):
        raise LayerError(f"{type(model).__name__} cannot be equalized: its graph cannot be traced ({traced})")
    graph.fold_batchnorm(traced)
    pairs = _pairs(traced)
    written = {} if batches is None else _activation_ranges(traced, pairs, batches, progress)
    layers = {name: traced.get_submodule(name) for pair in pairs for name in pair}
    before = {pair: _spread(_ranges(layers, pair, written)) for pair in pairs}
    for _ in range(_SWEEPS):
        largest = 0.0
        for pair in pairs:
            first, second = _ranges(layers, pair, written)
            alive = (first > 0) & (second > 0)
            scale = torch.where(alive, (first / second.clamp(min=1e-30)).sqrt(), 1.0).clamp(1e-4, 1e4)
            _rescale(layers[pair[0]], layers[pair[1]], scale)
            if pair[0] in written:
                written[pair[0]] = written[pair[0]] / scale
            largest = max(largest, float(scale.log().abs().max()))
        if largest < 1e-3:
            break
    rows = [EqualizedPair(*pair, before[pair], _spread(_ranges(layers, pair, written))) for pair in pairs]
    return traced, Equalization(tuple(rows))


def _pairs(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Layers where the second alone reads the first, with nothing between them but what lets factors through."""
    modules = dict(traced.named_modules())
    calls = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    owned = [p for module in traced.modules() for p in module._parameters.values() if p is not None]
    tied = {p for p in owned if sum(p is other for other in owned) > 1}

    def layer(node: fx.Node) -> nn.Module | None:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)) or why_not(module):
            return None
        return module if calls.count(str(node.target)) == 1 and not tied & {*module.parameters()} else None

    found = []
    for node in traced.graph.nodes:
        first = layer(node)
        if first is None:
            continue
        end = node
        while len(end.users) == 1:
            end = next(iter(end.users))
            second = layer(end)
            if second is not None:
                if isinstance(first, nn.Linear) == isinstance(second, nn.Linear) and _channels_match(first, second):
                    found.append((str(node.target), str(end.target)))
                break
            key = type(modules.get(str(end.target))) if end.op == "call_module" else end.target
            if key not in _HOMOGENEOUS and (key not in _POOLS or isinstance(first, nn.Linear)):
                break
    return found


def _channels_match(first: nn.Module, second: nn.Module) -> bool:
    outputs, readers = (len(layer.get_parameter("weight")) for layer in (first, second))
    groups = getattr(second, "groups", 1)
    return bool(groups == 1 or groups == readers == outputs)


def _ranges(layers: dict[str, nn.Module], pair: tuple[str, str], written: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    first, second = (layers[name] for name in pair)
    weight = second.get_parameter("weight").detach()
    read = weight if getattr(second, "groups", 1) > 1 else weight.transpose(0, 1)
    wrote = written.get(pair[0], first.get_parameter("weight").detach().flatten(1).abs().amax(1))
    return wrote, read.flatten(1).abs().amax(1)


def _rescale(first: nn.Module, second: nn.Module, scale: Tensor) -> None:
    with torch.no_grad():
        for wrote in first.parameters():
            wrote.div_(scale.reshape(-1, *[1] * (wrote.dim() - 1)))
        read = second.get_parameter("weight")
        axis = 0 if getattr(second, "groups", 1) > 1 else 1
        read.mul_(scale.reshape([-1 if i == axis else 1 for i in range(read.dim())]))


def _spread(ranges: tuple[Tensor, Tensor]) -> float:
    """The largest over the smallest range of the tensor between two layers, channels that are always 0 left out."""
    alive = ranges[0][ranges[0] > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0


def _activation_ranges(
    traced: fx.GraphModule, pairs: list[tuple[str, str]], batches: Batches, progress: bool
) -> dict[str, Tensor]:
    """The largest magnitude of each channel that the second layer of a pair reads, by the name of the first."""
    ranges: dict[str, Tensor] = {}

    def watch(name: str, axis: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            now = args[0].detach().movedim(axis, 0).flatten(1).abs().amax(1)
            ranges[name] = torch.maximum(ranges[name], now) if name in ranges else now

        return hook

    hooks = []
    for first, second in pairs:
        reader = traced.get_submodule(second)
        hooks.append(reader.register_forward_pre_hook(watch(first, channel_axis(reader))))
    seen = False
    try:
        with torch.no_grad():
            for batch in track(batches, "watch activations", show=progress):
                call(traced, batch)
                seen = True
    finally:
        for one in hooks:
            one.remove()
    if not seen:
        raise CalibrationError("equalize got no batches; give at least one, or leave them out to use weights alone")
    return ranges
