"""Where quantizers sit: one class, `Quantized`, around every layer with a weight. Layer-type checks live only here."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from lowbit.errors import FormatError, LayerError
from lowbit.formats import Binary, Block, Format, MidRise
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.quantizer import Codes, Quantizer
from lowbit.recipe import Rule

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
WEIGHTED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Embedding)
# these read the weights of their parts directly, so a part of them cannot be replaced
_OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


class Quantized(nn.Module):
    """A layer whose weight, and where no graph holds the quantizer also input, is quantized before use.

    `layer.weight` keeps the float weight until `freeze` puts `Codes` in the place of the weight quantizer.
    """

    def __init__(
        self, layer: nn.Module, weight_quantizer: Quantizer | Codes | None, input_quantizer: Quantizer | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.register_buffer("input_scale", None)
        self.input_scale: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The weight as the layer uses it: on the grid."""
        match self.weight_quantizer:
            case None:
                return self.layer.weight  # type: ignore[return-value]
            case Codes():
                return self.weight_quantizer()  # type: ignore[no-any-return]
            case quantizer:
                return quantizer(self.layer.weight)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias, None without one."""
        return getattr(self.layer, "bias", None)

    def forward(self, input: Tensor, *args: object, **kwargs: Any) -> Tensor:
        """The layer applied to `input`, both quantized."""
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        if self.input_scale is not None:
            return self._on_integers(input, *args, **kwargs)
        return torch.func.functional_call(self.layer, {"weight": self.weight}, (input, *args), kwargs)  # type: ignore[no-any-return]

    def _on_integers(self, x: Tensor, *args: object, **kwargs: Any) -> Tensor:
        """The layer as an integer kernel computes it: exact while accumulators stay below 2^24."""
        codes = self.weight_quantizer
        assert isinstance(codes, Codes)
        assert self.input_scale is not None
        scale, integers = self.input_scale * codes.integer_scale, codes.integers()
        tensors = {"weight": integers}
        if self.bias is not None:
            tensors["bias"] = torch.round(self.bias / scale)
        sums = torch.func.functional_call(self.layer, tensors, (torch.round(x / self.input_scale), *args), kwargs)
        return sums * (scale.reshape(-1, *[1] * (integers.dim() - 2)) if scale.dim() else scale)  # type: ignore[no-any-return]

    def freeze(self, input_quantizer: Quantizer | None) -> None:
        """Replace the float weight by its codes; with an integer input too, compute as integer kernels do.

        The bias is then rounded to multiples of input scale x weight scale, which is how kernels add it.
        """
        if not isinstance(self.weight_quantizer, Quantizer):
            return
        self._make_room_for_bias(input_quantizer)
        codes = Codes(self.layer.weight, self.weight_quantizer)  # type: ignore[arg-type]
        self.weight_quantizer = codes
        self.layer.register_parameter("weight", None)
        if input_quantizer is None or isinstance(self.layer, nn.Embedding) or not _scales_outputs(self.layer, codes):
            return
        if codes.format.unit is None or input_quantizer.format.unit != 1.0:
            return
        self.input_scale = input_quantizer.scale.detach().clone()
        if self.bias is not None:
            scale = (self.input_scale * codes.integer_scale).double()
            rounded = torch.round(self.bias.detach().double() / scale).clamp(-(2**31) + 1, 2**31 - 1)
            self.bias.data = (rounded * scale).float()

    def _make_room_for_bias(self, input_quantizer: Quantizer | None) -> None:
        """Enlarge weight scales so far that biases fit into int32: those of channels whose weights are all but zero."""
        quantizer = self.weight_quantizer
        if input_quantizer is None or self.bias is None or not isinstance(quantizer, Quantizer):
            return
        unit = (quantizer.format.unit or 1.0) * float(input_quantizer.scale.detach().max())
        least = (self.bias.detach().double().abs() / ((2**31 - 1) * unit)).to(quantizer.scale)
        if quantizer.scale.shape == least.shape:
            quantizer.scale.data = torch.maximum(quantizer.scale.data, least * 1.001)


def _scales_outputs(layer: nn.Module, codes: Codes) -> bool:
    """Whether the weight's scales can multiply the output channels instead: one in all, or one for each."""
    if not codes.scale.dim():
        return True
    grouped = isinstance(layer, TRANSPOSED) and layer.groups > 1  # weight [in, out / groups, ...]
    return codes.granularity == output_granularity(layer, PerChannel()) and not grouped


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer of a kind that has a weight to quantize, by its first name; `Quantized` counts as its layer."""
    found: dict[str, nn.Module] = {}

    def walk(prefix: str, module: nn.Module) -> None:
        if isinstance(module, (*WEIGHTED, Quantized)):
            if not any(module is other for other in found.values()):
                found[prefix] = module
        elif not isinstance(module, _OPAQUE):
            for name, child in module.named_children():
                walk(f"{prefix}.{name}" if prefix else name, child)

    walk("", model)
    return found


def unsupported_layers(model: nn.Module) -> dict[str, str]:
    """Layers with weights that no quantizer fits, by name, with the reason."""
    reasons: dict[str, str] = {}
    covered = tuple(weighted_layers(model))
    opaque: list[str] = []
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{c}." if c else "") for c in (*covered, *opaque)) or isinstance(
            module, Quantizer
        ):
            continue
        if isinstance(module, _OPAQUE):
            opaque.append(name)
            reasons[name] = f"{type(module).__name__} reads its weights directly; write it with Linear layers"
        elif "weight" in module._parameters and module.weight is not None:
            reasons[name] = f"{type(module).__name__} has no quantized form; it stays float"
    return reasons


def output_granularity(layer: nn.Module, granularity: Granularity) -> Granularity:
    """`PerChannel()` with the axis of the layer's output channels filled in; others unchanged."""
    if granularity == PerChannel():
        return PerChannel(1 if isinstance(layer, TRANSPOSED) else 0)
    return granularity


def channel_axis(layer: nn.Module) -> int:
    """The axis of channels in a layer's input and output, counted from the end."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]


def channels_last(layer: nn.Module) -> bool:
    """Whether a layer returns `[N, positions, channels]`, as those of text networks do, not `[N, channels, ...]`."""
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return len(layer.normalized_shape) == 1
    return isinstance(layer, (nn.Linear, nn.Embedding))


def why_not(layer: nn.Module) -> str:
    """Why this layer cannot be wrapped, empty if it can."""
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it carries forward hooks, which would run twice; remove them first"
    return ""


def folds_batchnorm(layer: nn.Module, bn: BatchNorm) -> bool:
    """Whether `folded_layer` can make one layer of these two."""
    if isinstance(layer, Quantized):
        quantizer = layer.weight_quantizer
        layer = layer.layer
        if isinstance(quantizer, Codes):
            return False
        if quantizer is not None and not takes_factors(layer, quantizer.format, quantizer.granularity):
            return False
    if isinstance(layer, TRANSPOSED) and layer.groups > 1:  # weight [in, out / groups, ...]: torch cannot fuse it
        return False
    if isinstance(layer, nn.Linear):
        return layer.out_features == bn.num_features
    return isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))


def takes_factors(layer: nn.Module, format: Format, granularity: Granularity) -> bool:
    """Whether the scales of a weight can take up a factor for each output channel, and codes stay as they are."""
    if isinstance(format, Block):  # whose scales lie on a grid
        return False
    outputs, granularity = output_granularity(layer, PerChannel()), output_granularity(layer, granularity)
    if isinstance(granularity, PerGroup):
        return outputs == PerChannel(0)
    return isinstance(granularity, PerTensor) or granularity == outputs


def folded_layer(layer: nn.Module, bn: BatchNorm) -> nn.Module:
    """`layer` with the BatchNorm behind it, in eval mode: factors into weights and their scales, the rest into biases.

    A quantized layer keeps its codes; where the factor is negative, the codes change sign, and on a grid without the
    opposite of its lowest number that one saturates.
    """
    inner = layer.layer if isinstance(layer, Quantized) else layer
    if isinstance(inner, nn.Linear):
        fused: nn.Module = fuse_linear_bn_eval(inner, bn)
    else:
        fused = fuse_conv_bn_eval(inner, bn, transpose=isinstance(inner, TRANSPOSED))  # type: ignore[type-var]
    if not isinstance(layer, Quantized):
        return fused
    quantizer = layer.weight_quantizer
    if isinstance(quantizer, Quantizer):
        assert bn.running_var is not None  # `graph` folds no other
        factors = torch.rsqrt(bn.running_var + bn.eps) * (1.0 if bn.weight is None else bn.weight.detach().abs())
        quantizer.take_factors(factors, output_granularity(inner, PerChannel()))
    layer.layer = fused.train(inner.training)
    return layer


def widened_layer(name: str, layer: nn.Module, factors: Tensor, offsets: Tensor) -> nn.Module:
    """A layer that returns several copies of what `layer` returns, one behind the other, each times a factor, plus one.

    A quantized layer keeps its codes where the factors are positive and its scales can take them up; else its weights
    are rounded anew.

    Args:
        name: for error messages.
        layer: Linear, a convolution or a transposed one without groups; may be `Quantized`.
        factors, offsets: `[copies, out]`.

    Raises:
        LayerError: another layer, or a frozen one.
    """
    inner = layer.layer if isinstance(layer, Quantized) else layer
    if not isinstance(inner, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) or getattr(inner, "groups", 1) > 1:
        what = (
            f"{type(inner).__name__} with {inner.groups} groups" if hasattr(inner, "groups") else type(inner).__name__
        )
        raise LayerError(
            f"layer {name!r} is a {what}, which cannot be widened; end the model in Linear, or in a convolution "
            "without groups"
        )
    quantizer = layer.weight_quantizer if isinstance(layer, Quantized) else None
    if isinstance(quantizer, Codes):
        raise LayerError(f"layer {name!r} is frozen; widen it before freeze")
    if reason := why_not(inner):
        raise LayerError(f"layer {name!r} cannot be widened: {reason}")
    copies, outputs = factors.shape
    axis = 1 if isinstance(inner, TRANSPOSED) else 0
    weight, bias = inner.weight.detach(), inner.bias
    column = [-1 if i == axis else 1 for i in range(weight.dim())]
    wide = copy.deepcopy(inner)
    wide.register_parameter("weight", nn.Parameter(torch.cat([weight * row.reshape(column) for row in factors], axis)))
    shift = offsets if bias is None else offsets + factors * bias.detach()
    wide.register_parameter("bias", nn.Parameter(shift.reshape(-1).to(weight)))
    setattr(wide, "out_features" if isinstance(wide, nn.Linear) else "out_channels", copies * outputs)
    if not isinstance(layer, Quantized):
        return wide
    if quantizer is not None:
        quantizer = _widened_quantizer(quantizer, inner, wide, factors)
    return Quantized(wide, quantizer, copy.deepcopy(layer.input_quantizer))


def _widened_quantizer(quantizer: Quantizer, layer: nn.Module, wide: nn.Module, factors: Tensor) -> Quantizer:
    weight = wide.get_parameter("weight")
    if bool((factors > 0).all()) and takes_factors(layer, quantizer.format, quantizer.granularity):
        kept = copy.deepcopy(quantizer)
        if kept.scale.dim():
            kept.scale = nn.Parameter(torch.cat([kept.scale.detach()] * len(factors)), requires_grad=False)
        kept.take_factors(factors.reshape(-1), output_granularity(wide, PerChannel()))
        return kept
    fitted = Quantizer(
        quantizer.format,
        weight.shape,
        granularity=quantizer.granularity,
        symmetric=True,
        scale_rule=quantizer.scale_rule,
        name=quantizer.name,
    ).to(weight.device)
    fitted.fit_weight(weight.detach())
    return fitted


def ready_for_training(layer: nn.Module, bn: BatchNorm) -> None:
    """Make a float layer and the BatchNorm behind it one that trains and then folds well; the function stays the same.

    The layer's bias goes into the mean, which takes it out again: it would have no gradient but noise, of which Adam
    makes whole steps. Channels that `bn` multiplies by a negative number are turned around: a fold then only scales.
    """
    assert bn.running_mean is not None  # `graph` pairs no other
    with torch.no_grad():
        if layer.bias is not None:
            bn.running_mean.sub_(layer.bias)  # type: ignore[arg-type]
            layer.register_parameter("bias", None)
        if bn.weight is None or not bool((bn.weight < 0).any()):
            return
        signs, weight = torch.where(bn.weight < 0, -1.0, 1.0), layer.get_parameter("weight")
        axis = 1 if isinstance(layer, TRANSPOSED) else 0
        turned = weight * signs.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
        # a parameter of its own: another layer may share the weight
        layer.register_parameter("weight", nn.Parameter(turned, weight.requires_grad))
        bn.running_mean.mul_(signs)
        bn.weight.mul_(signs)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`model`, changed in place, with `new` under each of the names of `old`; `new` if `old` is the model itself."""
    for name in [n for n, m in model.named_modules(remove_duplicate=False) if m is old and n]:
        model.set_submodule(name, new)
    return new if model is old else model


def turn_off_fused_paths(model: nn.Module) -> None:
    """Make Transformer encoders call their layers: their fused path in eval mode would bypass the quantizers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors are for the fused path only


def quantized_layer(name: str, layer: nn.Module, rule: Rule, *, own_input: bool) -> Quantized | None:
    """`layer` with the quantizers that `rule` asks for, None if for none; `own_input` puts the input quantizer inside.

    Raises:
        LayerError: the formats do not fit this layer, or its weight holds NaN or infinity.
    """
    if rule.weights is None and (rule.activations is None or isinstance(layer, nn.Embedding)):
        return None
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if weight.dtype != torch.float32:
        got = str(weight.dtype).removeprefix("torch.")
        raise LayerError(f"layer {name!r}: its weight is {got}, expected float32; call model.float() first")
    if not bool(torch.isfinite(weight).all()):
        raise LayerError(f"layer {name!r}: its weight holds NaN or infinite values; load intact weights")
    weight_quantizer = None
    if rule.weights is not None:
        if not getattr(rule.weights, "signed", True):
            raise LayerError(
                f"layer {name!r}: weights in {rule.weights} cannot be negative; use a signed format such as int8"
            )
        granularity = output_granularity(layer, rule.granularity)
        grouped = isinstance(rule.weights, Block) or isinstance(granularity, PerGroup)
        if grouped and isinstance(layer, TRANSPOSED):
            raise LayerError(f"layer {name!r}: transposed convolutions have no groups along inputs; use PerChannel()")
        try:
            weight_quantizer = Quantizer(
                rule.weights,
                weight.shape,
                granularity=granularity,
                symmetric=True,
                scale_rule=rule.weight_scale,
                name=f"{name} weight",
            )
        except FormatError as error:
            raise LayerError(f"layer {name!r} weight {error}") from None
        weight_quantizer.fit_weight(weight)
    input_quantizer = input_quantizer_for(name, rule) if own_input and not isinstance(layer, nn.Embedding) else None
    return Quantized(layer, weight_quantizer, input_quantizer).to(weight.device)


def input_quantizer_for(name: str, rule: Rule) -> Quantizer | None:
    """The activation quantizer that `rule` asks for, None for float.

    Raises:
        LayerError: the format is for weights only.
    """
    if rule.activations is None:
        return None
    if isinstance(rule.activations, (Block, Binary, MidRise)):
        raise LayerError(
            f"layer {name!r}: {rule.activations} is a weight format; activations take int2 to int16 or a float format"
        )
    return Quantizer(rule.activations, symmetric=rule.symmetric, scale_rule=rule.activation_scale, name=name)
