"""Weights that many architectures share: each layer has the weight of the largest, and others use a part of it.

A smaller layer uses the first output and input channels, and the center of the kernel:

    [out, in, k, k]  of  [OUT, IN, K, K]:   weight[:out, :in, (K-k)/2 : (K+k)/2, (K-k)/2 : (K+k)/2]

So a part stays trained while the others are chosen, and an architecture is selected by setting shapes, which costs
nothing. Factors and shifts of BatchNorms are shared as weights are. Their statistics fit no architecture after training
in many of them: re-estimate them for the one that is to be judged (`supernet.reestimate`).

Formats are selected in the same way. Ranges follow the largest magnitude of the part in use and of the batch at hand,
so no state belongs to a choice, and a network that was never trained needs no calibration. Of several processes, each
follows its own slice of the batch.

References:
    Yu and Huang, Universally slimmable networks and improved training techniques, 2019,
        https://arxiv.org/abs/1903.05134, section 3: first channels, and statistics after training.
    Cai et al., Once-for-all: train one network and specialize it for efficient deployment, 2020,
        https://arxiv.org/abs/1908.09791, section 3.3: kernels in the center of larger ones, here without the transform.
    Bender et al., Can weight sharing outperform random architecture search? (TuNAS), 2020,
        https://arxiv.org/abs/2008.06120.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit import ops
from lowbit.formats import Format
from lowbit.granularity import Granularity, PerTensor
from lowbit.methods.search.architecture.plan import Architecture, LayerShape, Plan
from lowbit.recipe import Rule
from lowbit.scales import affine


def part_of(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first channels and the center of the kernel, as a view."""
    for axis, size in enumerate(shape):
        start = (tensor.shape[axis] - size) // 2 if axis > 1 else 0
        tensor = tensor.narrow(axis, start, size)
    return tensor


def followed(x: Tensor, format: Format | None, granularity: Granularity, *, symmetric: bool) -> Tensor:
    """`x` on the grid of a format whose range is that of `x`; None is float."""
    if format is None:
        return x
    x = x.float()  # as in `Quantizer`
    rows = granularity.rows(x.detach())
    scale, zero_point = affine(rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0), format, symmetric)
    shape = granularity.scale_shape(x.shape)
    zero_point = None if zero_point is None else zero_point.reshape(shape)
    return ops.fake_quantize(x, scale.reshape(shape), zero_point, format, granularity)


@final
class ElasticConv2d(nn.Conv2d):
    """A convolution that uses the part `active` of its weight; depthwise, or without groups."""

    active: Sequence[int] = ()  # shape of the part; all of it if empty
    rule: Rule | None = None  # its formats; None is float

    def forward(self, input: Tensor) -> Tensor:
        """Map `[n, active in, h, w]` to `[n, active out, ...]`."""
        input, weight = _operands(self, input)
        groups = 1 if self.groups == 1 else len(weight)
        return F.conv2d(input, weight, None, self.stride, weight.shape[-1] // 2, 1, groups)


@final
class ElasticLinear(nn.Linear):
    """A linear layer that uses the part `active` of its weight; all outputs always."""

    active: Sequence[int] = ()
    rule: Rule | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map `[n, active in]` to `[n, out]`."""
        return F.linear(*_operands(self, input), self.bias)


def _operands(layer: ElasticConv2d | ElasticLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and weight of a layer, as it multiplies them."""
    weight, rule = part_of(layer.weight, layer.active), layer.rule
    if rule is None:
        return x, weight
    x = followed(x, rule.activations, PerTensor(), symmetric=rule.symmetric)
    return x, followed(weight, rule.weights, rule.granularity, symmetric=True)


@final
class ElasticBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm of as many channels as come, up to `num_features`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `[n, channels, h, w]` to the same."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        channels, share = input.shape[1], self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if share is None else share
        statistics = self.running_mean[:channels], self.running_var[:channels]
        weight, bias = self.weight[:channels], self.bias[:channels]
        return F.batch_norm(input, *statistics, weight, bias, self.training, share or 0.0, self.eps)


class _Kinds(NamedTuple):
    """What a network is made of."""

    conv: type[nn.Conv2d]
    norm: type[nn.BatchNorm2d]
    linear: type[nn.Linear]


_PLAIN = _Kinds(nn.Conv2d, nn.BatchNorm2d, nn.Linear)
_ELASTIC = _Kinds(ElasticConv2d, ElasticBatchNorm2d, ElasticLinear)


def _normalized(shape: LayerShape, kinds: _Kinds, *, act: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, with `act`, ReLU6."""
    outputs, _, kernel, _ = shape.weight
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = kinds.conv(
        shape.inputs, outputs, kernel, shape.stride, kernel // 2, groups=shape.groups, bias=False
    )
    parts["bn"] = kinds.norm(outputs)
    if act:
        parts["act"] = nn.ReLU6()
    return nn.Sequential(parts)


@final
class Block(nn.Module):
    """A 1x1 convolution that widens, a depthwise one, and a linear 1x1 that narrows; with a shortcut or without."""

    def __init__(self, expand: nn.Module, depthwise: nn.Module, project: nn.Module, *, residual: bool) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project, self.residual = expand, depthwise, project, residual

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """One architecture of a plan, of plain torch layers."""

    def __init__(self, plan: Plan, architecture: Architecture, kinds: _Kinds = _PLAIN) -> None:
        super().__init__()
        shapes = {shape.name: shape for shape in plan.layers(architecture)}
        self.stem = _normalized(shapes["stem.conv"], kinds)
        self.blocks = nn.Sequential()
        for stage in plan.stages:
            for residual in (False, *[True] * (stage.blocks - 1)):
                name = f"blocks.{len(self.blocks)}"
                expand, depthwise = (_normalized(shapes[f"{name}.{p}.conv"], kinds) for p in ("expand", "depthwise"))
                project = _normalized(shapes[f"{name}.project.conv"], kinds, act=False)
                self.blocks.append(Block(expand, depthwise, project, residual=residual))
        self.head = _normalized(shapes["head.conv"], kinds)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        outputs, inputs = shapes["linear"].weight
        self.linear = kinds.linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, channels, h, w]` to class scores `[n, classes]`."""
        return self.linear(self.flatten(self.pool(self.head(self.blocks(self.stem(x))))))  # type: ignore[no-any-return]


@final
class ElasticMobileNet(MobileNet):
    """All architectures of a plan in shared weights; the largest is selected at first.

    It learns as any network does. Quantize what `extract` returns, not the network itself.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, plan.largest, _ELASTIC)
        self.plan = plan
        self.choose(plan.largest)

    @property
    def layers(self) -> dict[str, ElasticConv2d | ElasticLinear]:
        """Every layer with a weight, in the order in which they compute."""
        found = self.named_modules()
        return {name: layer for name, layer in found if isinstance(layer, ElasticConv2d | ElasticLinear)}

    def choose(self, architecture: Architecture) -> None:
        """Select an architecture.

        Raises:
            RecipeError: it is none of the plan's.
        """
        layers = self.layers
        for shape in self.plan.layers(architecture):
            layers[shape.name].active = shape.weight

    def set_formats(self, rules: Mapping[str, Rule | None]) -> None:
        """Select the formats of layers, by name; None is float."""
        layers = self.layers
        for name, rule in rules.items():
            layers[name].rule = rule

    def extract(self, architecture: Architecture) -> MobileNet:
        """An architecture by itself, float, with its part of the weights, in eval mode.

        Raises:
            RecipeError: it is none of the plan's.
        """
        plain, shared = MobileNet(self.plan, architecture), self.state_dict()
        plain.load_state_dict({name: part_of(shared[name], own.shape) for name, own in plain.state_dict().items()})
        return plain.to(next(self.parameters()).device).eval()
