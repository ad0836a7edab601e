"""A classifier whose features are bits: the network up to a layer, codes of what that returns, a linear head on them.

    network, made = lb.coded_head(model, batches)     # batches with labels; `model` is not changed

    body -> layer -> mean over positions -> 1[x > a], or 1[x > a] - 1[x < b] -> linear

a and b are thresholds in the units of the features, center +- threshold * scale, so that a code is a comparison, in
torch, in ONNX and in `BinaryQuantizer` and `TernaryQuantizer` alike, and bit for bit the same. The head reads -1, 0 and
1, which the formats int1 (with a zero point) and ternary hold at a scale of exactly 1 (`head_rule`, `set_head_scale`):
it multiplies integers of 1 or 2 bits.

Codes have no slope. For training, a threshold passes gradients as a ramp that is two standard deviations wide does:
those of features within one of the threshold, divided by that width (derived; the clipped straight-through
estimator in units of the feature).

What suits the data is chosen and fitted on the training data alone (`linear.py`). Whether it is any good is for others
to measure, on other data: the pilot does, beside the same head on floats.

References:
    Discrimination of binary and ternary feature quantization, 2025, https://arxiv.org/abs/2504.13792: the codes.
    The head inside of a network, its export and the gradient are derived.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from lowbit.batches import Batch, Batches
from lowbit.errors import DataError, LayerError
from lowbit.formats import Int, Ternary
from lowbit.layers import Quantized, weighted_layers
from lowbit.methods.discrimination.layers import layer_features
from lowbit.methods.discrimination.linear import (
    LIMIT,
    ClassifierName,
    CodeName,
    LinearHead,
    RuleName,
    check_labels,
    code_head,
)
from lowbit.methods.discrimination.measure import check_finite
from lowbit.methods.discrimination.placing import HEAD, Attached, named, with_place
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.methods.discrimination.estimators import FeatureQuantizer

_BINARY, _TERNARY = Int(1), Ternary()  # what the head reads; with its zero point, an int1 is 0 or 1

Array: TypeAlias = npt.NDArray[Any]


class _Codes(torch.autograd.Function):
    """Comparisons forward, ramps two scales wide around the thresholds backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, above: Tensor, below: Tensor | None, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, above, scale, *([] if below is None else [below]))
        return _compared(x, above, below)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, above, scale, *below = ctx.saved_tensors
        slope = sum(((x - threshold).abs() < scale).to(x.dtype) for threshold in (above, *below))
        return grads[0] * slope / (2 * scale), None, None, None


def _compared(x: Tensor, above: Tensor, below: Tensor | None) -> Tensor:
    codes = (x > above).to(x.dtype)
    return codes if below is None else codes - (x < below).to(x.dtype)


@fx.wrap
def coded(x: Tensor, above: Tensor, below: Tensor | None, scale: Tensor) -> Tensor:
    """Codes of features `[N, d]`: 1 above the one threshold and, if there is another, -1 below it; 0 else.

    A traced graph calls it as a whole.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Codes.apply(x, above, below, scale)  # type: ignore[no-untyped-call]
        return result
    return _compared(x, above, below)


class FeatureCodes(nn.Module):
    """Codes of features `[N, d]`, -1, 0 and 1 as floats.

    Args:
        above: `[d]`, what a feature has to exceed to be coded 1; infinity for one that is always 0.
        below: `[d]`, what it has to fall below to be coded -1; None for binary codes.
        scale: `[d]`, standard deviations, which the gradient is in.
    """

    def __init__(self, above: Tensor, below: Tensor | None, scale: Tensor) -> None:
        super().__init__()
        for name, value in (("above", above), ("below", below), ("scale", scale)):
            self.register_buffer(name, value)
        self.above: Tensor
        self.below: Tensor | None
        self.scale: Tensor

    @staticmethod
    def of(quantizer: FeatureQuantizer) -> FeatureCodes:
        """The same codes as a fitted quantizer's, of float32 features."""
        above, below = (torch.from_numpy(np.array(cut)) for cut in quantizer._cuts(np.float32))
        scale = torch.from_numpy(quantizer.scale_.astype(np.float32))
        return FeatureCodes(above, below if quantizer._code == "ternary" else None, scale)

    def forward(self, x: Tensor) -> Tensor:
        """The codes of `x`."""
        return coded(x, self.above, self.below, self.scale)

    def extra_repr(self) -> str:
        """The kind of code, for `print(model)`."""
        return f"{'binary' if self.below is None else 'ternary'}, {len(self.above)} features"


@dataclass(frozen=True, eq=False)
class CodedHead:
    """Where the codes and the head are in the new network, and how they were chosen.

    Attributes:
        layer: whose output is coded; empty for the input of the last Linear, which the head takes the place of.
        coding, head: names of these modules in the network.
        linear: the head as it was fitted, with the quantizer as its step ``code``.
        classes: how many scores it returns.
        features, labels: what it was fitted to, `[N, d]` and `[N]`.
    """

    layer: str
    coding: str
    head: str
    linear: LinearHead
    classes: int
    features: Array
    labels: Array

    @property
    def quantizer(self) -> FeatureQuantizer:
        """The fitted quantizer of the codes."""
        found: FeatureQuantizer = self.linear.pipeline.named_steps["code"]
        return found

    @property
    def rule(self) -> str:
        """How the threshold came: ``per feature``, ``global`` or ``given``."""
        if isinstance(self.quantizer.threshold, str):
            return "per feature" if self.quantizer.per_feature else "global"
        return "global" if len({one.threshold for one in self.linear.tried}) > 1 else "given"

    def __str__(self) -> str:
        quantizer, linear = self.quantizer, self.linear
        threshold = float(np.mean(quantizer.threshold_))
        where = f"the output of {self.layer}" if self.layer else f"the input of {self.head.removesuffix(f'.{HEAD}')}"
        return (
            f"features: {where} as {quantizer.n_features_in_} {linear.name} codes, threshold {threshold:.3g} standard "
            f"deviations ({self.rule}), {linear.classifier} head with C = {linear.strength:g}, fitted to "
            f"{len(self.features):,} samples (cross-validated accuracy {linear.accuracy:.1%})"
        )


def coded_head(
    model: nn.Module,
    batches: Batches,
    *,
    layer: str = "",
    codes: CodeName = "auto",
    threshold: RuleName | float = "auto",
    classifier: ClassifierName = "linear",
    limit: int = LIMIT,
    seed: int = 0,
) -> tuple[nn.Module, CodedHead]:
    """A copy of a classifier that ends in codes of its features and a linear head on them, fitted with labels.

    Args:
        model: a float network that returns scores `[N, C]`; it is not changed.
        batches: inputs with labels, whole numbers from 0 to C - 1; they are read once, and their features held.
        layer: whose output is coded, as in `named_modules`, its mean over positions if it has some; what comes behind
            it is left out. By default the input of the last Linear, whose name the head then keeps.
        codes, threshold, classifier, limit, seed: see `lowbit.methods.discrimination.linear.code_head`.

    Returns:
        The network, in eval mode, and how it came. `features_of` returns its features.

    Raises:
        LayerError: no such layer, one that returns no features, or a model that ends in no Linear or has no graph.
        FeatureError: labels that do not fit, too few samples of a class, features that do not vary, an unknown option.
        DataError: batches without labels.
    """
    held = iter(batches)
    first = next(held, None)
    if first is None:
        raise DataError("coded_head: got no batches; give inputs with labels (a list, not a used-up generator)")
    network, coding, head, classes = with_place(model, layer, first)
    x, y = _material(network, coding, first, held)
    check_finite(x)
    check_labels(y, classes)
    if bool((x == x[0]).all()):
        raise LayerError(
            f"{named(layer)}: each of its {x.shape[1]} features has one value only on {len(x)} samples; choose "
            "another layer"
        )
    linear = code_head(x, y, codes=codes, threshold=threshold, classifier=classifier, limit=limit, seed=seed)
    made = CodedHead(layer, coding, head, linear, classes, x, y)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    network.set_submodule(f"{coding}.codes", FeatureCodes.of(made.quantizer).to(device))
    network.set_submodule(head, _linear_layer(linear).to(device))
    return network.eval(), made


def attach_head(model: nn.Module, tensors: Mapping[str, Tensor], *, layer: str, example: Batch) -> nn.Module:
    """The network that `coded_head` made of `model`, from the tensors of its codes and its head (`head_tensors`).

    Raises:
        LayerError: a layer that is not there, or that returns another number of features.
        DataError: the tensors are not those of a head.
    """
    network, coding, head, classes = with_place(model, layer, example)
    try:
        codes = FeatureCodes(tensors["above"], tensors.get("below"), tensors["scale"])
        weight, bias = tensors["weight"], tensors["bias"]
    except KeyError as error:
        raise DataError(f"got {', '.join(tensors) or 'nothing'}, expected the tensors of a head; no {error}") from None
    d = sum(features.shape[1] for features, _ in features_of(network, coding, [example]))
    if weight.shape != (classes, d) or bias.shape != (classes,) or codes.above.shape != (d,):
        raise DataError(
            f"the head is for {list(weight.shape)[::-1]} features and classes, the model has {d} and {classes}; give "
            "the model that it was fitted to"
        )
    linear = nn.Linear(d, classes)
    linear.load_state_dict({"weight": weight, "bias": bias})
    network.set_submodule(f"{coding}.codes", codes)
    network.set_submodule(head, linear)
    return network.eval()


def head_tensors(network: nn.Module, made: CodedHead) -> dict[str, Tensor]:
    """Thresholds, weight and bias of a network of `coded_head`, for `attach_head`."""
    parts = (network.get_submodule(f"{made.coding}.codes"), network.get_submodule(made.head))
    return {name: value.detach().clone() for part in parts for name, value in part.state_dict().items()}


def features_of(network: nn.Module, coding: str, batches: Batches) -> Iterator[tuple[Array, Array | None]]:
    """Float features `[n, d]` that a network of `coded_head` makes codes of, and labels, batch by batch."""
    return layer_features(network, f"{coding}.pooled", batches, pool="none")


def head_rule(recipe: Recipe, network: nn.Module, head: str) -> Recipe:
    """The recipe, in which a head that has quantized activations reads codes as they are: 1 bit for binary ones, or 2.

    Raises:
        RecipeError: a rule matches no layer.
    """
    rule = recipe.resolve(weighted_layers(network))[head]
    if rule is None or rule.activations is None:  # floats hold codes exactly too
        return recipe
    (codes,) = (one for one in network.modules() if isinstance(one, FeatureCodes))
    binary = codes.below is None
    own = replace(
        rule,
        match=glob.escape(head),
        activations=_BINARY if binary else _TERNARY,
        symmetric=not binary,
        activation_scale="absmax",
    )
    return replace(recipe, rules=(*recipe.rules, own))


def set_head_scale(student: nn.Module) -> None:
    """Set the scale of quantizers that read codes to 1, in place: training comes close to that only.

    The weights behind them take up what it was, codes and all, so that the student stays the same function.
    """
    for quantizer, readers in _reading_codes(student):
        if quantizer.format not in (_BINARY, _TERNARY) or not quantizer.ready:
            continue
        factor = quantizer.scale.detach().clone()
        quantizer.scale.data.fill_(1.0)
        if quantizer.zero_point is not None:
            quantizer.zero_point.data.fill_(quantizer.format.min)
        for reader in readers:
            reader.layer.get_parameter("weight").data.mul_(factor)
            if isinstance(reader.weight_quantizer, Quantizer):
                reader.weight_quantizer.scale.data.mul_(factor)


def _reading_codes(student: nn.Module) -> Iterator[tuple[Quantizer, list[Quantized]]]:
    """Quantizers that read codes, and the layers that read what they return."""
    if isinstance(student, fx.GraphModule):
        modules = dict(student.named_modules())
        for node in [user for one in student.graph.nodes if one.target is coded for user in one.users]:
            quantizer = modules.get(str(node.target))
            if isinstance(quantizer, Quantizer):
                readers = [modules.get(str(user.target)) for user in node.users]
                yield quantizer, [one for one in readers if isinstance(one, Quantized)]
        return
    for module in student.modules():
        head = module.head if isinstance(module, Attached) else None
        if isinstance(head, Quantized) and head.input_quantizer is not None:
            yield head.input_quantizer, [head]


# What the head learns from


def _material(network: nn.Module, coding: str, first: Batch, others: Iterator[Batch]) -> tuple[Array, Array]:
    """Features and labels of all batches."""

    def every() -> Iterator[Batch]:
        yield first
        yield from others

    rows, labels = [], []
    for features, its in features_of(network, coding, every()):
        if its is None:
            raise DataError("the data that a head is fitted to has no labels; name them, or give other data")
        rows.append(features)
        labels.append(its)
    return np.concatenate(rows), np.concatenate(labels)


def _linear_layer(head: LinearHead) -> nn.Linear:
    """The classifier's weights as a layer; one row of two classes becomes two, half each."""
    classifier = head.pipeline.named_steps["classifier"]
    weight, bias = np.asarray(classifier.coef_, np.float32), np.asarray(classifier.intercept_, np.float32)
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer.requires_grad_(True)
