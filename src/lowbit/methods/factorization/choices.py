"""What a layer can become: a chain at a rate, or itself in a format; and how much each would hurt.

A choice is a name, as users write it:

    2x              a chain with half as many weights, in the recipe's format
    2x int3         the same in another format
    rank 28 int4    the same by its rank, of all groups together
    svd 2x          of a certain kind (cp, svd or spatial); without, it is the layer's usual one
    int4            the layer as it is, in that format

How much a choice hurts is predicted from one backward pass a batch. If g is the gradient, at a layer's output, of the
log-likelihood of an output drawn from the float network's own distribution, and D what the layer would return with the
error of its weights in the place of its weights,

    KL(float || changed) ~ 1/2 E[ (sum_i g_i D_i)^2 ],

the Fisher information along the error, sample by sample, as the search for formats has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, call, output_tensor
from lowbit.errors import DataError, LayerError, RecipeError
from lowbit.formats import Block, Format, parse
from lowbit.layers import quantized_layer
from lowbit.methods.factorization.chains import KINDS, Kind, kinds_of, ranks_of, why_no_factors
from lowbit.methods.factorization.factors import Chain
from lowbit.objectives import are_classes, surprise_of
from lowbit.progress import track
from lowbit.recipe import Rule

CHOICES = ("int8", "int4", "int3", "int2", "1.5x int4", "2x int4", "3x int4", "4x int4", "1.5x int3", "2x int3")


@dataclass(frozen=True)
class Choice:
    """A chain at a `rate`, or of a `rank`, or the dense layer; formats and kinds that are None are the usual ones."""

    name: str
    rate: float | None = None
    rank: int | None = None
    kind: Kind | None = None
    weights: Format | None = None

    @staticmethod
    def parse(name: str) -> Choice:
        """The choice of a name, see above.

        Raises:
            RecipeError: it is none, or its rate is not above 1.
            FormatError: no format has that name.
        """
        name = " ".join(name.split())
        found = re.fullmatch(rf"(?:({'|'.join(KINDS)}) )?(?:(\d+(?:\.\d+)?)x|rank (\d+))(?: (\S+))?", name)
        if found is None:
            if " " in name or re.match(r"[\d.]", name):  # a format begins with a letter
                raise RecipeError(f"choice {name!r}: expected '2x', 'spatial 2x int4', 'rank 28' or a format")
            return Choice(name, weights=weight_format(name))
        kind, rate, rank, weights = found.groups()
        if rate and not float(rate) > 1:
            raise RecipeError(f"choice {name!r}: a rate of {rate} saves nothing; give more than 1, or a format alone")
        return Choice(
            name,
            float(rate) if rate else None,
            int(rank) if rank else None,
            cast("Kind | None", kind),
            weight_format(weights) if weights else None,
        )

    @property
    def dense(self) -> bool:
        """Whether the layer stays as it is."""
        return self.rate is None and self.rank is None

    def chain(self, name: str, layer: nn.Module, rule: Rule, middle: Format | None) -> Chain | str:
        """The chain of a layer whose rule in the recipe is `rule`, or why it has none.

        Args:
            name: of the layer.
            layer: of the float network.
            rule: its formats.
            middle: of the depthwise weights; None for that of the others.

        Raises:
            LayerError: the layer cannot have this rank.
        """
        kinds = kinds_of(layer)
        if not kinds:
            return why_no_factors(layer)
        if self.kind is not None and self.kind not in kinds:
            return f"it has no chain of kind {self.kind}, only {', '.join(kinds)}"
        kind = self.kind or kinds[0]
        weights = self.weights or rule.weights
        if weights is None or isinstance(weights, Block):
            return f"factors need a format with scales of their own, and the recipe gives {weights or 'float'} weights"
        possible = ranks_of(layer, kind)
        if self.rank is not None:
            if not 1 <= self.rank <= possible.most or self.rank % possible.groups:
                several = f" in steps of its {possible.groups} groups" if possible.groups > 1 else ""
                raise LayerError(
                    f"layer {name!r}: got rank {self.rank}, expected 1 to {possible.most}{several}; beyond that its "
                    "chain is larger than the layer"
                )
            return Chain(kind, self.rank, weights, middle or weights)
        assert self.rate is not None  # it is asked of chains only
        rank = possible.at(self.rate)
        return Chain(kind, rank, weights, middle or weights) if rank else f"at {self.rate:g}x no component is left"


def weight_format(name: str) -> Format:
    """The format that factors, or a dense layer, can have.

    Raises:
        RecipeError: it is a block format, or unsigned.
        FormatError: no format has that name.
    """
    found = parse(name)
    if isinstance(found, Block):
        raise RecipeError(
            f"choice {name!r}: block formats have no scales that a chain could take; give an integer format"
        )
    if not getattr(found, "signed", True):
        raise RecipeError(f"choice {name!r}: weights cannot all be positive; give a signed format")
    return found


def dense_weight(name: str, layer: nn.Module, rule: Rule) -> Tensor:
    """A layer's weight in the format of its rule, rounded to nearest."""
    quantized = quantized_layer(name, layer, rule, own_input=False)
    return layer.get_parameter("weight").detach() if quantized is None else quantized.weight.detach()


_Call = tuple[str, Tensor, Tensor]  # the layer, its input and its output


def losses_of(
    model: nn.Module,
    weights: Mapping[str, Sequence[Tensor]],
    batches: Sequence[Batch],
    *,
    classes: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """What the outputs lose with each of some weights in the place of a layer's own, see above.

    Args:
        model: the float network.
        weights: by layer, the candidates, in the shape of its weight.
        batches: inputs in any batch form.
        classes: whether outputs `[N, C]` are class scores.
        seed: draws the outputs.
        progress: show a bar on a terminal.

    Raises:
        DataError: a prediction is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {name: model.get_submodule(name) for name in weights}
    errors = {
        name: [(one.to(own) - own).detach() for one in several]
        for name, several in weights.items()
        for own in [layers[name].get_parameter("weight")]
    }
    sums = {name: [0.0] * len(several) for name, several in weights.items()}
    count = 0
    for batch in track(batches, "measure sensitivity", show=progress):
        seen: list[_Call] = []

        def keep(name: str, x: Tensor, output: Tensor, seen: list[_Call] = seen) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            seen.append((name, x.detach().clone(), output))
            return output.clone()  # what comes later may compute in place

        hooks = [
            layer.register_forward_hook(
                lambda _, args, kwargs, output, name=name: keep(name, args[0] if args else kwargs["input"], output),
                with_kwargs=True,
            )
            for name, layer in layers.items()
        ]
        try:
            with torch.enable_grad():
                output = output_tensor(call(model, batch)).float()
        finally:
            for hook in hooks:
                hook.remove()
        count += len(output)
        with torch.enable_grad():
            surprise = surprise_of(output, generator, classes=classes and are_classes(output))
        gradients = torch.autograd.grad(surprise, [y for *_, y in seen], allow_unused=True)
        moved: dict[tuple[str, int], Tensor] = {}
        for (name, x, _), g in zip(seen, gradients, strict=True):
            for number, error in enumerate(errors[name] if g is not None else ()):
                one, before = _along(layers[name], x, error, g), moved.get((name, number))
                moved[name, number] = one if before is None else _together(before, one)
        for (name, number), each in moved.items():
            sums[name][number] += float(each.square().sum()) / 2
    found = {name: [total / max(count, 1) for total in several] for name, several in sums.items()}
    for name, several in found.items():
        if not all(map(math.isfinite, several)):
            raise DataError(f"layer {name!r}: its sensitivity is not finite; look at the model's outputs and inputs")
    return found


def _together(before: Tensor, one: Tensor) -> Tensor:
    """What two calls amount to: added up sample by sample, where they have the same samples."""
    return before + one if len(before) == len(one) else torch.cat([before, one])


def _along(layer: nn.Module, x: Tensor, error: Tensor, g: Tensor) -> Tensor:
    """g D, of each sample of a call."""
    with torch.no_grad():
        y = torch.func.functional_call(layer, {"weight": error}, (x,))
        if (bias := getattr(layer, "bias", None)) is not None:
            y = y - (bias if isinstance(layer, nn.Linear) else bias.reshape(-1, *[1] * (y.dim() - 2)))
        along: Tensor = (g * y).double().flatten(1).sum(1)
        return along
