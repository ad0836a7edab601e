"""One network for all assignments: shared weights, and for each choice of a layer its own quantizers.

A choice is selected by a number in each layer, which costs nothing. Weights are held once, as in plain training; all
that comes with a choice are its scales.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lowbit import costs, families, graph
from lowbit.batches import Batch
from lowbit.costs import LayerCost
from lowbit.errors import RecipeError
from lowbit.families import FamilyName
from lowbit.formats import Block, Int
from lowbit.layers import Quantized
from lowbit.methods.search.space import Choice, Space
from lowbit.quantization import calibrate, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe

Pair = tuple[Quantizer | None, Quantizer | None]  # of a layer's weight and input
Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]  # arguments and output


@dataclass(frozen=True)
class Parts:
    """What a choice brings along where all searched layers have it: their quantizers, and what every layer costs."""

    quantizers: dict[str, Pair]
    rows: dict[str, LayerCost]


def parts_of(
    model: nn.Module, space: Space, choice: Choice, batches: list[Batch], *, quantizer: FamilyName, exact: bool
) -> Parts:
    """The parts of a choice, from a student that has it everywhere, calibrated and ready to learn.

    Raises:
        RecipeError: a format whose scales do not follow BatchNorms.
        LayerError, CalibrationError: the choice does not fit a layer, or a layer saw no data.
    """
    if isinstance(choice.weights, Block):
        raise RecipeError(f"choice {choice}: scales of block formats cannot be shared in a search; leave it out")
    student = _student(model, space.recipe_of(space.uniform(choice)), batches, quantizer, exact)
    inputs = graph.input_quantizers(student)
    pairs: dict[str, Pair] = {}
    for layer in space.layers:
        own = student.get_submodule(layer)
        weights = own.weight_quantizer if isinstance(own, Quantized) else None
        assert weights is None or isinstance(weights, Quantizer)
        pairs[layer] = weights, inputs.get(layer)
    return Parts(pairs, {row.name: row for row in costs.cost(student, batches[0]).layers})


def _student(model: nn.Module, recipe: Recipe, batches: list[Batch], quantizer: FamilyName, exact: bool) -> nn.Module:
    """A student by a recipe that can learn; the float model itself where the recipe leaves everything float."""
    if not any(rule.weights or rule.activations for rule in recipe.rules):
        return copy.deepcopy(model).eval()
    student = quantize(model, recipe, fold=False)
    with float_weights(student):
        calibrate(student, batches, progress=False)
    families.begin(student, quantizer, batches[0], exact=exact)
    return student


@contextmanager
def float_weights(student: nn.Module) -> Iterator[None]:
    """Within it, weights pass unrounded: ranges for every assignment should follow from none."""
    quantized = [module for module in student.modules() if isinstance(module, Quantized)]
    kept = [layer.weight_quantizer for layer in quantized]
    try:
        for layer in quantized:
            layer.weight_quantizer = None
        yield
    finally:
        for layer, quantizer in zip(quantized, kept, strict=True):
            layer.weight_quantizer = quantizer


class Switch(nn.Module):
    """Several quantizers, of which one at a time is chosen; None, chosen or among them, is float."""

    def __init__(self, quantizers: Sequence[Quantizer | None]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList([nn.Identity() if q is None else q for q in quantizers])
        self.chosen: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x` as the chosen quantizer returns it."""
        return x if self.chosen is None else self.quantizers[self.chosen](x)


class Supernet(nn.Module):
    """A student of `model` whose searched layers can have any choice of `space`.

    Attributes:
        student: the network, BatchNorms kept; its searched layers quantize inside, not in the graph.
        space: what there is to choose from.
        norms: BatchNorms that will be folded.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        parts: Sequence[Parts],
        batches: list[Batch],
        *,
        quantizer: FamilyName,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        any_format = Choice(Int(8), None)  # wraps the layers; what quantizes comes from the parts
        bare = space.with_choices(dict.fromkeys(space.layers, any_format))
        self.student = _student(model, bare, batches, quantizer, exact)
        # found while quantizers can still be asked whether their scales take factors up
        traced = self.student if isinstance(self.student, fx.GraphModule) else None
        self.norms = [*graph.batchnorms_to_fold(traced).values()] if traced else []
        self._switches: dict[str, tuple[Switch, Switch]] = {}
        for layer in space.layers:
            quantized = self.student.get_submodule(layer)
            assert isinstance(quantized, Quantized)
            pairs = [part.quantizers[layer] for part in parts]
            switches = Switch([pair[0] for pair in pairs]), Switch([pair[1] for pair in pairs])
            quantized.weight_quantizer, quantized.input_quantizer = switches  # type: ignore[assignment]
            self._switches[layer] = switches

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the student returns in the selected assignment."""
        return self.student(*args, **kwargs)

    def select(self, assignment: Sequence[int | None] | None) -> None:
        """Give every decision its choice; None is float, of one decision or of all."""
        chosen = [None] * len(self.space.decisions) if assignment is None else assignment
        for decision, number in zip(self.space.decisions, chosen, strict=True):
            for layer in decision.layers:
                self._set(layer, number)

    def _set(self, layer: str, number: int | None) -> None:
        for switch in self._switches[layer]:
            switch.chosen = number

    def output_of(self, layer: str, number: int, call: Call) -> Tensor:
        """What a searched layer returns for the arguments of a call in another choice; it is float again after that."""
        self._set(layer, number)
        args, kwargs, _ = call
        output: Tensor = self.student.get_submodule(layer)(*args, **kwargs)
        self._set(layer, None)
        return output

    @contextmanager
    def watched(self) -> Iterator[dict[str, list[Call]]]:
        """Within it, the calls of searched layers, by name; their outputs have gradients."""
        calls: dict[str, list[Call]] = {layer: [] for layer in self.space.layers}
        with ExitStack() as hooks:
            for layer in self.space.layers:

                def keep(_: nn.Module, args: Any, kwargs: Any, output: Tensor, layer: str = layer) -> Tensor:
                    output = output if output.requires_grad else output.detach().requires_grad_()
                    # copies: what comes later may compute in place
                    kept = tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in args)
                    calls[layer].append((kept, kwargs, output))
                    return output.clone()

                module = self.student.get_submodule(layer)
                hooks.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
            yield calls

    def shared(self, model: nn.Module) -> nn.Module:
        """A copy of the float `model` with the weights and BatchNorms that the assignments share by now."""
        found = {}
        for name, tensor in self.student.state_dict().items():
            owner, _, key = name.rpartition(".")
            layer, _, last = owner.rpartition(".")
            inside = last == "layer" and isinstance(self.student.get_submodule(layer), Quantized)
            found[f"{layer}.{key}".lstrip(".") if inside else name] = tensor
        copied = copy.deepcopy(model).eval()
        own = copied.state_dict()
        copied.load_state_dict({name: found.get(name, tensor) for name, tensor in own.items()})
        return copied
