"""Which tensor a layer's weight is, and the chain of small layers that its factors make.

    cp        W [O, I, kh, kw] as X [o, i, s]       1x1 (I -> R), depthwise kh x kw, 1x1 (R -> O)
    svd       W [O, I], or a 1x1 kernel             I -> R, R -> O
    spatial   W [O, I, kh, kw] as X [o kw, i kh]    kh x 1 (I -> R), 1 x kw (R -> O)

No nonlinearity lies between them, and only the last one has a bias. In a grouped convolution each group has factors of
its own, and both dense layers of the chain are grouped. Where a chain has several layers with a kernel, each owns the
stride, padding, dilation and padding mode of its axes; in `svd`, the first layer owns the stride.

Scales cost no operation: that of a component is the scale of an output channel of the first layer or of the depthwise
one, and that of a row of the last factor the scale of an output channel of the last layer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lowbit.formats import Format
from lowbit.layers import CONVOLUTIONS, why_not
from lowbit.methods.factorization.solvers import GridFactors

Kind = Literal["cp", "svd", "spatial"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FIRST, MIDDLE, LAST = "reduce", "spatial", "expand"
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def why_no_factors(layer: nn.Module) -> str:
    """Why a layer has no factors, empty if it has."""
    if reason := why_not(layer):
        return reason
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        return f"{type(layer).__name__} has no chain of smaller layers; only Linear and convolutions have"
    weight = layer.get_parameter("weight")
    if not isinstance(layer, nn.Linear) and layer.groups > 1 and min(weight.shape[1], _outputs(layer)) == 1:
        return "it is depthwise: one channel a group has nothing to factorize"
    if min(weight.shape[:2]) == 1:
        return "it has one input or one output channel: a chain would be no smaller"
    if not all(bool(torch.any(one != 0)) for one in weight.chunk(_groups(layer))):
        return "its weights, or those of a group, are all zero"
    return ""


def kinds_of(layer: nn.Module) -> tuple[Kind, ...]:
    """The kinds of chain that a layer can become, the usual one first."""
    if why_no_factors(layer):
        return ()
    if isinstance(layer, nn.Linear) or math.prod(layer.kernel_size) == 1:  # type: ignore[arg-type]
        return ("svd",)
    separable = isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1
    return ("cp", "spatial") if separable else ("cp",)


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, CONVOLUTIONS) else 1


def _outputs(layer: nn.Module) -> int:
    """Output channels of a group."""
    return int(layer.get_parameter("weight").shape[0]) // _groups(layer)


def tensors_of(layer: nn.Module, kind: Kind) -> list[Tensor]:
    """The tensor of each group, `[o, i, s]` or `[o, i]`, in float64 on the CPU."""
    weight = layer.get_parameter("weight").detach().double().cpu()
    found = []
    for one in weight.chunk(_groups(layer)):
        match kind:
            case "cp":
                found.append(one.flatten(2))
            case "svd":
                found.append(one.flatten(1))
            case "spatial":  # [o, i, kh, kw] -> [(o, kw), (i, kh)]
                found.append(one.permute(0, 3, 1, 2).reshape(one.shape[0] * one.shape[3], -1))
    return found


@dataclass(frozen=True)
class Ranks:
    """What the rank of a layer can be: of all groups together, a multiple of `groups`.

    At `parameters / most` a component the chain has as many parameters as the layer: a larger rank only costs.
    """

    parameters: int
    component: int
    groups: int

    @property
    def most(self) -> int:
        """The largest rank whose chain is no larger than the layer."""
        return self.at(1.0)

    def at(self, rate: float) -> int:
        """The rank that leaves one in `rate` parameters; 0 if that is less than a component a group."""
        rank = self.parameters / (self.component * rate)
        return int(rank / self.groups + 1e-9) * self.groups  # 110 / 1.1 is 99.99...


def ranks_of(layer: nn.Module, kind: Kind) -> Ranks:
    """What ranks a layer can have: numel / (O + I + S) of a group, times the groups."""
    tensors = tensors_of(layer, kind)
    return Ranks(sum(t.numel() for t in tensors), sum(tensors[0].shape), len(tensors))


def chain_of(layer: nn.Module, kind: Kind, rank: int) -> nn.Sequential:
    """The chain of a layer, with the layer's bias, and weights still to be placed."""
    weight = layer.get_parameter("weight")
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(layer, nn.Linear):
        parts[FIRST] = nn.Linear(layer.in_features, rank, bias=False)
        parts[LAST] = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    else:
        assert isinstance(layer, CONVOLUTIONS)
        inputs, outputs, groups = layer.in_channels, layer.out_channels, layer.groups
        bias, every = layer.bias is not None, range(len(layer.kernel_size))
        match kind:
            case "cp":
                parts[FIRST] = _convolution(layer, inputs, rank, groups, axes=())
                parts[MIDDLE] = _convolution(layer, rank, rank, rank, axes=every)
                parts[LAST] = _convolution(layer, rank, outputs, groups, axes=(), bias=bias)
            case "svd":
                parts[FIRST] = _convolution(layer, inputs, rank, groups, axes=every)
                parts[LAST] = _convolution(layer, rank, outputs, groups, axes=(), bias=bias)
            case "spatial":
                parts[FIRST] = _convolution(layer, inputs, rank, groups, axes=(0,))
                parts[LAST] = _convolution(layer, rank, outputs, groups, axes=(1,), bias=bias)
    chain = nn.Sequential(parts).to(weight).train(layer.training)
    if layer.bias is not None:
        chain.get_submodule(LAST).register_parameter("bias", nn.Parameter(layer.bias.detach().clone()))
    for parameter in chain.parameters():
        parameter.requires_grad_(weight.requires_grad)
    return chain


def _convolution(
    like: Convolution, inputs: int, outputs: int, groups: int, *, axes: Sequence[int], bias: bool = False
) -> Convolution:
    """A convolution with the kernel, stride, padding and dilation of another along some axes, 1 along the others."""

    def along(values: Sequence[int], other: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else other for axis, value in enumerate(values))

    padding = like.padding if isinstance(like.padding, str) else along(like.padding, 0)
    return type(like)(
        inputs,
        outputs,
        along(like.kernel_size, 1),  # type: ignore[arg-type]
        stride=along(like.stride, 1),  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=along(like.dilation, 1),  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=like.padding_mode,
    )


@dataclass(frozen=True)
class Placed:
    """A weight of the chain: grid values in the weight's shape, and the scale of each output channel."""

    values: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        """The numbers that the layer multiplies with."""
        return self.values * self.scale.reshape(-1, *[1] * (self.values.dim() - 1))


def placed(layer: nn.Module, kind: Kind, groups: Sequence[GridFactors]) -> dict[str, Placed]:
    """The weights of a layer's chain, by part.

    Component scales go to the first layer; in `cp` to the depthwise one, and the first layer's are such that all of its
    output channels have the same norm of weights, so that they share a range well.
    """
    kernel = () if isinstance(layer, nn.Linear) else tuple(layer.kernel_size)  # type: ignore[arg-type]
    ones = [1] * len(kernel)
    last = torch.cat([one.values[0] for one in groups])  # [O, R / groups], or [(o, kw), R / groups]
    first = torch.cat([one.values[1].mT for one in groups])  # [R, I / groups], or [R, (i, kh)]
    weights = {FIRST: first.reshape(*first.shape, *ones), LAST: last.reshape(*last.shape, *ones)}
    if kind == "cp":
        weights[MIDDLE] = torch.cat([one.values[2].mT for one in groups]).reshape(-1, 1, *kernel)
    if kind == "spatial":
        high, wide = kernel
        weights[FIRST] = first.reshape(len(first), -1, high, 1)
        weights[LAST] = last.reshape(-1, wide, last.shape[1]).mT[:, :, None]  # [O, R / groups, 1, kw]
    if groups[0].scales[0].dim():
        scales = _component_scales(groups, first, kind)
    else:
        modes = {FIRST: 1, MIDDLE: 2, LAST: 0}
        scales = {part: _of_groups([one.scales[modes[part]] for one in groups], len(weights[part])) for part in weights}
    one_each = {part: torch.ones(len(values), dtype=torch.float64) for part, values in weights.items()}
    return {part: Placed(values, scales.get(part, one_each[part])) for part, values in weights.items()}


def _component_scales(groups: Sequence[GridFactors], first: Tensor, kind: Kind) -> dict[str, Tensor]:
    whole = torch.cat([one.component_scales for one in groups])
    if kind != "cp":
        return {FIRST: whole}
    norms = first.norm(dim=1)
    even = 1 / torch.where(norms > 0, norms, 1.0)
    return {FIRST: even, MIDDLE: whole / even}


def _of_groups(scales: Sequence[Tensor], rows: int) -> Tensor:
    """One scale a group, repeated for its rows."""
    return torch.stack(list(scales)).repeat_interleave(rows // len(scales))


def product_of(layer: nn.Module, kind: Kind, groups: Sequence[GridFactors]) -> Tensor:
    """The weight that the chain amounts to, in the layer's shape; float64."""
    shape = layer.get_parameter("weight").shape
    each = []
    for one in groups:
        a, b, *c = one.factors
        whole = torch.einsum("or,ir,sr->ois", a, b, *c) if c else a @ b.mT
        if kind == "spatial":  # [(o, kw), (i, kh)] -> [o, i, kh, kw]
            whole = whole.reshape(-1, shape[3], shape[1], shape[2]).permute(0, 2, 3, 1)
        each.append(whole.reshape(-1, *shape[1:]))
    return torch.cat(each)


def formats_of(kind: Kind, weights: Format, middle: Format) -> tuple[Format, ...]:
    """The format of each factor: last, first, and of the depthwise layer."""
    return (weights, weights, middle) if kind == "cp" else (weights, weights)
