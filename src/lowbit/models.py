"""Which networks come with the package, and how any network is loaded.

The networks are the ones that low-bit papers report on, in sizes that a CPU can train: plain `torch.nn` modules that
`torch.fx` can trace, where each ReLU is a module of its own so that a quantizer has a place to sit. None of them comes
with weights; `load` reads those, for these networks as for the user's own.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import nn

from lowbit import files
from lowbit.errors import DataError, LowbitError


def load(reference: str, weights: str | Path | None = None, folder: Path | None = None) -> nn.Module:
    """Return the network that `module:function` builds, with its weights, in evaluation mode.

    Args:
        reference: the function, called without arguments, see `lowbit.files.resolve`; or `hf:<folder or name>`, a model
            of Hugging Face that is on this machine, see `lowbit.huggingface.load`.
        weights: a file for `lowbit.files.load_tensors`; without one the network keeps the weights it was built with.
        folder: where relative paths begin; the current folder by default.

    Raises:
        DataError: the function or the file cannot be used, or they do not fit each other to the last tensor.
    """
    if reference.startswith("hf:"):
        from lowbit import huggingface

        function: Callable[..., object] = functools.partial(huggingface.load, reference, folder)
    else:
        function = files.resolve(reference, folder)
    try:
        model = function()
    except LowbitError:
        raise
    except Exception as error:
        raise DataError(f"model '{reference}': the function raised {files.one_line(error)}; correct it") from error
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise DataError(f"model '{reference}': the function returned {got}, expected an nn.Module; return the network")
    if weights is not None:
        path = (folder or Path()) / Path(weights).expanduser()
        _load_weights(model, files.load_tensors(path), f"weights '{path}' for '{reference}'")
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
            origin = "as built" if weights is None else f"in '{weights}'"
            raise DataError(f"model '{reference}': '{name}' {origin} holds NaN or infinity; train or save it again")
    return model.eval()


def _load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    remedy = "take the weights that belong to this network"
    for name, own in model.state_dict().items():
        if name in tensors and isinstance(own, torch.Tensor) and tensors[name].shape != own.shape:
            got, expected = list(tensors[name].shape), list(own.shape)
            raise DataError(f"{where}: '{name}' has shape {got}, expected {expected}; {remedy}")
    missing, unexpected = model.load_state_dict(tensors, strict=False)  # forgives BatchNorm counters of old files
    if missing:
        others = f"it has '{next(iter(unexpected))}' instead" if unexpected else f"it has {len(tensors)} others"
        raise DataError(f"{where}: no '{missing[0]}', {others}; {remedy}")
    if unexpected:
        raise DataError(f"{where}: '{unexpected[0]}' is in the file but not in the network; {remedy}")


# Parts


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Return convolution, BatchNorm and activation; the convolution keeps the resolution up to its stride."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts["bn"] = nn.BatchNorm2d(outputs)
    if act is not None:
        parts["act"] = act()
    return nn.Sequential(parts)


def _initialize(model: nn.Module) -> None:
    """Draw weights with the variance that keeps activations at one scale through ReLU layers; biases are zero.

    References:
        He et al., "Delving Deep into Rectifiers", https://arxiv.org/abs/1502.01852, 2015, eq. 10.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ResNet


@final
class PaddedShortcut(nn.Module):
    """The shortcut without parameters: every second pixel, with zeros as the new channels.

    References:
        He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, 2015, option A.
    """

    def __init__(self, channels: int) -> None:
        """Add `channels` zero channels, half of them in front."""
        super().__init__()
        self.front = channels // 2
        self.back = channels - self.front

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, c, h, w]` to `[n, c + channels, h / 2, w / 2]`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))


@final
class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and what goes around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        # An empty Sequential, unlike an Identity, leaves no node in the traced graph.
        self.shortcut = nn.Sequential() if stride == 1 else PaddedShortcut(outputs - inputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, inputs, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


@final
class ResNet(nn.Module):
    """The CIFAR ResNet of depth `6 * blocks + 2`: three stages of 16, 32 and 64 channels.

    References:
        He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, 2015, section 4.2.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, num_classes)
        _initialize(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [ResidualBlock(outputs, outputs) for _ in range(blocks - 1)]
        return nn.Sequential(ResidualBlock(inputs, outputs, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `[n, 3, h, w]` to logits `[n, num_classes]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: torch.Tensor = self.linear(self.flatten(self.pool(x)))
        return out


def resnet20(num_classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet of depth 20 (0.27 M parameters)."""
    return ResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet of depth 32 (0.46 M parameters)."""
    return ResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet of depth 44 (0.66 M parameters)."""
    return ResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet of depth 56 (0.85 M parameters)."""
    return ResNet(9, num_classes)


# MobileNet


def _classifier(features: list[nn.Module], channels: int, num_classes: int) -> nn.Sequential:
    """Return features, global average pooling and a linear head, from images to logits."""
    model = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(channels, num_classes),
        )
    )
    _initialize(model)
    return model


def _scaled(channels: int, width: float) -> int:
    """Return `channels * width` as a multiple of 8, never more than a tenth below it."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels * width else rounded + 8


def mobilenet_v1(num_classes: int = 10, width: float = 1.0, stem_stride: Literal[1, 2] = 1) -> nn.Sequential:
    """Return MobileNet v1: 13 pairs of a depthwise 3x3 and a 1x1 convolution.

    `width` scales the channels. With `stem_stride` 2 the network has the strides of the paper, 32 in all, for inputs
    of about 224x224; with 1 the first convolution keeps the resolution, for inputs of about 32x32.

    References:
        Howard et al., "MobileNets", https://arxiv.org/abs/1704.04861, 2017, table 1.
    """
    outputs = [_scaled(channels, width) for channels in (32, 64, *[128] * 2, *[256] * 2, *[512] * 6, *[1024] * 2)]
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    features: list[nn.Module] = [_conv(3, outputs[0], 3, stem_stride)]
    for (inputs, output), stride in zip(pairwise(outputs), strides, strict=True):
        depthwise = _conv(inputs, inputs, 3, stride, groups=inputs)
        features.append(nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=_conv(inputs, output, 1))))
    return _classifier(features, outputs[-1], num_classes)


@final
class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3 and a linear 1x1 that narrows; a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _conv(inputs, hidden, 1, act=nn.ReLU6) if expansion > 1 else nn.Sequential()
        self.depthwise = _conv(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6)
        self.project = _conv(hidden, outputs, 1, act=None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, inputs, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def mobilenet_v2(num_classes: int = 10, width: float = 1.0, stem_stride: Literal[1, 2] = 1) -> nn.Sequential:
    """Return MobileNet v2: 17 inverted residual blocks with ReLU6.

    `width` scales the channels. With `stem_stride` 2 the network has the strides of the paper, 32 in all, for inputs
    of about 224x224; with 1 the first convolution keeps the resolution, for inputs of about 32x32.

    References:
        Sandler et al., "MobileNetV2", https://arxiv.org/abs/1801.04381, 2018, table 2.
    """
    stages = (  # expansion, channels, blocks, stride of the first block
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    inputs = _scaled(32, width)
    features: list[nn.Module] = [_conv(3, inputs, 3, stem_stride, act=nn.ReLU6)]
    for expansion, channels, blocks, stride in stages:
        output = _scaled(channels, width)
        for block in range(blocks):
            features.append(InvertedResidual(inputs, output, stride if block == 0 else 1, expansion))
            inputs = output
    last = _scaled(1280, max(width, 1.0))  # the paper never narrows the last convolution
    features.append(_conv(inputs, last, 1, act=nn.ReLU6))
    return _classifier(features, last, num_classes)


# VGG and small networks


def vgg(num_classes: int = 10, depth: Literal[8, 11] = 8) -> nn.Sequential:
    """Return a VGG with BatchNorm for 32x32 inputs, whose five stages each end in 2x2 max pooling.

    References:
        Simonyan, Zisserman, "Very Deep Convolutional Networks", https://arxiv.org/abs/1409.1556, 2014, table 1.
        Differs from the paper: BatchNorm, and one linear layer in the place of three, which `depth` still counts.
    """
    stages = {8: ((64,), (128,), (256,), (512,), (512,)), 11: ((64,), (128,), (256, 256), (512, 512), (512, 512))}
    if depth not in stages:
        raise DataError(f"vgg: depth is {depth}, expected 8 or 11; choose one of them")
    features: list[nn.Module] = []
    inputs = 3
    for stage in stages[depth]:
        for output in stage:
            features.append(_conv(inputs, output, 3))
            inputs = output
        features.append(nn.MaxPool2d(2))
    return _classifier(features, inputs, num_classes)


def mlp(inputs: int, outputs: int, hidden: tuple[int, ...] = (64, 64)) -> nn.Sequential:
    """Return linear layers with ReLU between them, on flattened inputs `[n, ...]` of `inputs` numbers each."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, (before, after) in enumerate(pairwise((inputs, *hidden)), start=1):
        parts[f"linear{index}"] = nn.Linear(before, after)
        parts[f"relu{index}"] = nn.ReLU()
    parts["head"] = nn.Linear((inputs, *hidden)[-1], outputs)
    model = nn.Sequential(parts)
    _initialize(model)
    return model


def digits_cnn() -> nn.Sequential:
    """Return a small convolutional network for digits `[n, 1, 8, 8]`: one residual block, 20 k parameters.

    It holds what low-bit methods stumble over: a first layer, a strided layer, a residual add, a pooling and a head.
    """
    return _classifier([_conv(1, 24, 3), ResidualBlock(24, 24), _conv(24, 40, 3, stride=2)], 40, 10)
