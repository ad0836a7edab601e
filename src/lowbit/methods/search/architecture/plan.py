"""Which architectures there are: a MobileNetV2 whose widths, expansions and kernels are options, as pure data.

    plan = Plan(stem=(16, 24), stages=(Stage((16, 24, 32), blocks=2, stride=2),), head=(128,), classes=10)
    plan.decisions          {"stem.width": (16, 24), "stages.0.width": (16, 24, 32), "blocks.0.expansion": (3, 6), ...}
    plan.layers(plan.largest)                     # every layer with its weight's shape
    plan.macs(plan.largest, 32, 32)               # {"stem.conv": 663552, ...}

References:
    Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, 2018, https://arxiv.org/abs/1801.04381,
        table 2.

Differs from the paper: the first block expands as the others do, and the first block of a stage has no shortcut, also
where its shapes would allow one, so that widths are free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from lowbit.errors import RecipeError

Architecture: TypeAlias = "Mapping[str, int]"  # the option of each decision, by name


@dataclass(frozen=True)
class Stage:
    """Inverted residual blocks, the first of which has the `stride`.

    One of `widths`, output channels, is for all blocks; each block has one of `expansions` and of `kernels` for itself.
    """

    widths: tuple[int, ...]
    blocks: int
    stride: int = 1
    expansions: tuple[int, ...] = (3, 6)
    kernels: tuple[int, ...] = (3, 5)


@dataclass(frozen=True)
class LayerShape:
    """A layer of an architecture: `weight` is `[out, in / groups, kernel, kernel]`, or `[out, in]`."""

    name: str
    weight: tuple[int, ...]
    stride: int = 1
    groups: int = 1

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.weight[1] * self.groups


@dataclass(frozen=True)
class Plan:
    """All architectures of a network: a 3x3 convolution, stages of blocks, a 1x1 convolution, and a linear layer.

    Attributes:
        stem: output channels of the first convolution.
        stages: see `Stage`.
        head: output channels of the last convolution.
        classes: outputs.
        channels: of the images.
        stem_stride: of the first convolution.
        fixed: decisions that are made already, by name; see `only`.

    Raises:
        RecipeError: an option that no layer can have.
    """

    stem: tuple[int, ...]
    stages: tuple[Stage, ...]
    head: tuple[int, ...]
    classes: int = 10
    channels: int = 3
    stem_stride: int = 1
    fixed: Architecture = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages or any(stage.blocks < 1 for stage in self.stages):
            raise RecipeError(f"the plan has {len(self.stages)} stages; expected at least 1, each with 1 block or more")
        for name, options in self._all.items():
            if not options or min(options) < 1 or list(options) != sorted(set(options)):
                raise RecipeError(f"{name}: options {options} are to be different numbers above 0, in rising order")
            if name.endswith("kernel") and not all(option % 2 for option in options):
                raise RecipeError(f"{name}: kernels {options} are to be odd, or they have no center; use 3, 5 or 7")
        for name, option in self.fixed.items():
            self._check(name, option, self._all)

    @cached_property
    def _all(self) -> dict[str, tuple[int, ...]]:
        """Every option of every decision, in the order of the layers."""
        found, number = {"stem.width": self.stem}, 0
        for i, stage in enumerate(self.stages):
            found[f"stages.{i}.width"] = stage.widths
            for _ in range(stage.blocks):
                found[f"blocks.{number}.expansion"] = stage.expansions
                found[f"blocks.{number}.kernel"] = stage.kernels
                number += 1
        return {**found, "head.width": self.head}

    @cached_property
    def options(self) -> dict[str, tuple[int, ...]]:
        """What each decision can still be, smallest first, those with one option among them."""
        return {name: (self.fixed[name],) if name in self.fixed else every for name, every in self._all.items()}

    @property
    def decisions(self) -> dict[str, tuple[int, ...]]:
        """The options of what is not decided yet."""
        return {name: options for name, options in self.options.items() if len(options) > 1}

    @property
    def smallest(self) -> dict[str, int]:
        """The architecture of fewest weights."""
        return {name: options[0] for name, options in self.options.items()}

    @property
    def middle(self) -> dict[str, int]:
        """The architecture in the middle of all options, the smaller of two."""
        return {name: options[(len(options) - 1) // 2] for name, options in self.options.items()}

    @property
    def largest(self) -> dict[str, int]:
        """The architecture of most weights."""
        return {name: options[-1] for name, options in self.options.items()}

    def only(self, architecture: Architecture) -> Plan:
        """The plan with these decisions made.

        Raises:
            RecipeError: a name or an option that the plan does not have.
        """
        return replace(self, fixed={**self.fixed, **architecture})

    def complete(self, architecture: Architecture) -> dict[str, int]:
        """The architecture with what has one option only filled in.

        Raises:
            RecipeError: a decision is missing, or one that the plan does not have.
        """
        options = self.options
        for name, option in architecture.items():
            self._check(name, option, options)
        missing = [name for name in self.decisions if name not in architecture]
        if missing:
            raise RecipeError(f"the architecture lacks {', '.join(missing)}; choose one of {options[missing[0]]}")
        return {name: architecture.get(name, every[0]) for name, every in options.items()}

    @staticmethod
    def _check(name: str, option: int, options: Mapping[str, tuple[int, ...]]) -> None:
        if name not in options:
            raise RecipeError(f"the plan has no decision {name!r}; it has {', '.join(options)}")
        if option not in options[name]:
            raise RecipeError(f"{name}: {option} is no option; choose one of {options[name]}")

    def layers(self, architecture: Architecture) -> tuple[LayerShape, ...]:
        """Every layer with a weight, in the order in which they compute."""
        chosen = self.complete(architecture)
        width, number = chosen["stem.width"], 0
        found = [LayerShape("stem.conv", (width, self.channels, 3, 3), self.stem_stride)]
        for i, stage in enumerate(self.stages):
            outputs = chosen[f"stages.{i}.width"]
            for first in (True, *[False] * (stage.blocks - 1)):
                block = f"blocks.{number}"
                hidden, kernel = width * chosen[f"{block}.expansion"], chosen[f"{block}.kernel"]
                stride = stage.stride if first else 1
                found += [
                    LayerShape(f"{block}.expand.conv", (hidden, width, 1, 1)),
                    LayerShape(f"{block}.depthwise.conv", (hidden, 1, kernel, kernel), stride, hidden),
                    LayerShape(f"{block}.project.conv", (outputs, hidden, 1, 1)),
                ]
                width, number = outputs, number + 1
        last = chosen["head.width"]
        return (*found, LayerShape("head.conv", (last, width, 1, 1)), LayerShape("linear", (self.classes, last)))

    def macs(self, architecture: Architecture, height: int, width: int) -> dict[str, int]:
        """Multiply-accumulates of each layer for one image of `height` x `width`."""
        found = {}
        for layer in self.layers(architecture):
            height, width = ((size - 1) // layer.stride + 1 for size in (height, width))
            positions = height * width if len(layer.weight) == 4 else 1
            found[layer.name] = math.prod(layer.weight) * positions
        return found


# 2.6 to 25.5 million MACs for images of 32x32
CIFAR = Plan(
    stem=(8, 16),
    stages=(
        Stage((8, 12, 16), blocks=1, expansions=(1, 2, 3)),
        Stage((16, 24, 32), blocks=2, stride=2, expansions=(2, 4, 6)),
        Stage((32, 48, 64), blocks=3, stride=2, expansions=(2, 4, 6)),
        Stage((64, 80, 96), blocks=2, stride=2, expansions=(2, 4, 6)),
    ),
    head=(256,),
)
