"""Where a network gets the outputs that make up a point, and at its end the decoder that reads them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from lowbit import graph
from lowbit.batches import Batch, outputs_of
from lowbit.errors import LayerError, RecipeError
from lowbit.layers import CONVOLUTIONS, Quantized, replace, weighted_layers, widened_layer
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.decoders import Decoder
from lowbit.methods.curves.paths import Fold
from lowbit.quantization import note
from lowbit.quantizer import Quantizer

HeadsName = Literal["shared", "separate", "published"]
_HIDDEN = 32  # channels of a published head
_FITTED = 4096  # points that a first guess is fitted to


class Heads(nn.Module):
    """One head for each coordinate, beside each other: points `[N, channels * T, ...]`."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, *args: Tensor) -> Tensor:
        """The coordinates, one head's after the other's."""
        return torch.cat([head(*args) for head in self.heads], dim=1)


class Encoded(nn.Module):
    """A direct model as a teacher of points: what it returns, encoded; beyond the range, the range's end."""

    def __init__(self, model: nn.Module, codec: Codec) -> None:
        super().__init__()
        self.model, self.codec = model, codec
        self.train(model.training)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Points `[N, channels * T, ...]` of the model's quantities `[N, T, ...]`."""
        found = self.model(*args, **kwargs)
        return self.codec.encode(self.codec.nearest(found))


class Decoded(nn.Module):
    """A model that returns points, and the decoder behind it."""

    def __init__(self, model: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.model, self.decoder = model, decoder

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What the decoder makes of the model's points."""
        decoded: Tensor | tuple[Tensor, Tensor] = self.decoder(self.model(*args, **kwargs))
        return decoded


def wrap_head(
    model: nn.Module, codec: Codec, *, heads: HeadsName = "shared", head: str | None = None, seed: int = 0
) -> nn.Module:
    """A copy of a direct regressor that returns points on the path in the place of quantities.

    The last layer becomes several layers beside each other, and starts as the affine functions of the quantity that
    come closest to the coordinates. For a fold they are the coordinates, so nothing has to be trained; any other path
    has to be learned, see `lowbit.methods.curves.fit.fit_head`.

    Args:
        model: returns quantities `[N, T, ...]`, straight from its last layer, a Linear one or a convolution. A student
            of `quantize` too: a fold keeps its codes where scales can take its factors up; a path then is to be
            distilled from ``Encoded(teacher, codec)``.
        codec: the path and the range; its channels make the new outputs `[N, channels * T, ...]`.
        heads: ``shared`` widens the last layer. ``separate`` copies the module `head` for each coordinate.
            ``published`` makes for each a 3x3 convolution to 32 channels, ReLU and a 1x1 convolution, or two Linear
            layers, with weights of their own.
        head: the module whose output the model returns; by default the last layer, as the traced graph has it.
        seed: of the weights of published heads.

    Raises:
        LayerError: the model ends in something else than a layer that can be widened; the message says in what.
        RecipeError: options that do not exist or do not go together.
    """
    if heads not in get_args(HeadsName):
        raise RecipeError(f"heads {heads!r} is unknown; expected one of {', '.join(get_args(HeadsName))}")
    if heads == "separate" and head is None:
        raise RecipeError("heads='separate' copies the module that makes the output; name it with head='...'")
    if isinstance(codec.path, Fold) and (heads != "shared" or codec.transform != "linear"):
        raise RecipeError(
            f"{codec.path} is what a linear layer can do by itself: it goes with heads='shared' and transform='linear'"
            f", got {heads!r} and {codec.transform!r}"
        )
    wrapped = copy.deepcopy(model)
    name = last_layer(wrapped) if head is None else head
    if head is not None:
        _check_is_last(wrapped, head)
    try:
        last = wrapped.get_submodule(name)
    except AttributeError:
        raise LayerError(f"the model has no module {head!r}; it has {', '.join(weighted_layers(wrapped))}") from None
    match heads:
        case "shared":
            outputs = _outputs(name, last)
            new: nn.Module = widened_layer(name, last, *_first_guess(codec, name, outputs))
        case "separate":
            new = Heads([copy.deepcopy(last) for _ in range(codec.channels)])
            if isinstance(wrapped, fx.GraphModule):
                raise LayerError("heads='separate' copies a module of the model's own class; wrap it before quantize")
        case "published":
            new = Heads(_published(name, last, codec.channels, seed))
    wrapped = replace(wrapped, last, new.train(last.training))
    if isinstance(wrapped, fx.GraphModule):
        _free_output(wrapped)  # its range was that of quantities
    note(wrapped, f"wrap_head({codec.path}, heads={heads})")
    return wrapped


def attach_decoder(model: nn.Module, decoder: Decoder) -> nn.Module:
    """A copy of a model that returns points, with `decoder` behind it: it returns quantities, and is ready to export.

    Of a student, the quantizer behind its last layer gives way to the decoder's own, whose scale is fixed.

    Args:
        model: the result of `wrap_head`, trained, and usually quantized and calibrated; it is not changed.
        decoder: of the same codec.

    Raises:
        LayerError: the model has a decoder already.
    """
    if any(isinstance(module, Decoder) for module in model.modules()):
        raise LayerError("the model has a decoder already; attach one only")
    device = next((parameter.device for parameter in model.parameters()), None)
    decoder = copy.deepcopy(decoder).to(device).eval()
    ended = copy.deepcopy(model).eval()
    if not isinstance(ended, fx.GraphModule):
        decoded = Decoded(ended, decoder).eval()
        if isinstance(kept := getattr(model, "meta", None), dict):
            decoded.meta = {**kept}  # type: ignore[assignment]
        note(decoded, f"attach_decoder({decoder.codec.path}, {decoder.kind})")
        return decoded
    returned, read = _free_output(ended)
    ended.add_submodule("decoder", decoder)
    with ended.graph.inserting_after(read):
        decoded_node = ended.graph.call_module("decoder", (read,))
    returned.replace_input_with(read, decoded_node)
    ended.graph.lint()
    ended.recompile()
    note(ended, f"attach_decoder({decoder.codec.path}, {decoder.kind})")
    return ended


def _free_output(student: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """Take the quantizer of the output away; the output node, and what it returns.

    Raises:
        LayerError: the student returns several things.
    """
    returned = next(node for node in reversed(student.graph.nodes) if node.op == "output")
    read = returned.args[0]
    if not isinstance(read, fx.Node):
        raise LayerError("the student returns several things; a decoder reads one tensor of points")
    if isinstance(_module(student, read), Quantizer) and len(read.users) == 1:
        path, read = str(read.target), read.args[0]
        graph.remove(student, path)
        assert isinstance(read, fx.Node)
    return returned, read


def deployed_points(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """The points `[N, channels * T, ...]` that the decoder of a model reads, on the grid of its codes.

    Raises:
        LayerError: the model has no decoder.
    """
    decoder = next((module for module in model.modules() if isinstance(module, Decoder)), None)
    if decoder is None:
        raise LayerError(f"{type(model).__name__} has no decoder; give the result of attach_decoder")
    found: list[Tensor] = []
    handle = decoder.codes.register_forward_hook(lambda _, __, codes: found.append(codes / decoder.codes.top))
    try:
        outputs_of(model, batches)
    finally:
        handle.remove()
    return torch.cat(found)


def last_layer(model: nn.Module) -> str:
    """The name of the layer whose output the model returns.

    Raises:
        LayerError: it ends in something else, or cannot be traced.
    """
    traced = model if isinstance(model, fx.GraphModule) else graph.trace(copy.deepcopy(model).eval())
    if isinstance(traced, str):
        if (layers := weighted_layers(model)) and "" in layers:
            return ""  # the model is itself a layer
        raise LayerError(
            f"{type(model).__name__} cannot be traced ({traced}); name the layer that makes its output with head='...'"
        )
    returned = next(node for node in reversed(traced.graph.nodes) if node.op == "output").args[0]
    if isinstance(returned, fx.Node) and isinstance(_module(traced, returned), Quantizer):
        returned = returned.args[0]
    if not isinstance(returned, fx.Node):
        raise LayerError(
            f"{type(model).__name__} returns several things; a head is wrapped where one tensor [N, T, ...] is returned"
        )
    if returned.op != "call_module":
        what = getattr(returned.target, "__name__", returned.target)
        raise LayerError(
            f"{type(model).__name__} ends in {what!r}, expected a Linear layer or a convolution; return the layer's "
            "own output, without what follows"
        )
    return str(returned.target)


def _check_is_last(model: nn.Module, head: str) -> None:
    """Raise where a layer that is named is not what a model that can be traced returns."""
    layers = weighted_layers(model)
    traced = model if isinstance(model, fx.GraphModule) else graph.trace(copy.deepcopy(model).eval())
    if head in layers and not isinstance(traced, str) and (last := last_layer(model)) != head:
        raise LayerError(f"{type(model).__name__} returns the output of {last!r}, not of {head!r}; leave head out")


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _outputs(name: str, layer: nn.Module) -> int:
    inner = layer.layer if isinstance(layer, Quantized) else layer
    outputs = getattr(inner, "out_features", getattr(inner, "out_channels", None))
    if not isinstance(outputs, int):
        raise LayerError(
            f"the model ends in {name!r}, a {type(inner).__name__}, which cannot be widened; expected a Linear layer "
            "or a convolution. Return that layer's own output, or name it with head='...'"
        )
    return outputs


def _first_guess(codec: Codec, name: str, outputs: int) -> tuple[Tensor, Tensor]:
    """Factors and offsets `[channels, T]` that make coordinates of quantities, as far as affine functions can."""
    ends = [torch.tensor(one, dtype=torch.float64).reshape(-1) for one in (codec.low, codec.high)]
    if any(len(end) not in (1, outputs) for end in ends):
        raise LayerError(
            f"layer {name!r} returns {outputs} quantities, the range is of {max(map(len, ends))}; give low and high "
            "one number, or one for each"
        )
    if isinstance(codec.path, Fold):
        low, high = (end.expand(outputs) for end in ends)
        copies = codec.path.copies
        factors = (copies / (high - low)).expand(copies, outputs)
        return factors.float(), (-torch.arange(copies)[:, None] - factors * low).float()
    q = torch.linspace(0, 1, _FITTED, dtype=torch.float64)
    quantity, coordinates = codec.quantity(q[:, None].expand(-1, outputs)), codec.line.point(q)
    centered = quantity - quantity.mean(0)
    factors = (centered[:, None] * coordinates[:, :, None]).sum(0) / centered.square().sum(0)
    return factors.float(), (coordinates.mean(0)[:, None] - factors * quantity.mean(0)).float()


def _published(name: str, layer: nn.Module, channels: int, seed: int) -> list[nn.Module]:
    """The paper's heads, in the place of a layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(layer, nn.Linear):
            made: list[nn.Module] = [
                nn.Sequential(nn.Linear(layer.in_features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, layer.out_features))
                for _ in range(channels)
            ]
        elif isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and set(layer.stride) == {1}:
            kind = type(layer)
            made = [
                nn.Sequential(
                    kind(layer.in_channels, _HIDDEN, 3, padding=1),
                    nn.ReLU(),
                    kind(_HIDDEN, layer.out_channels, 1),
                )
                for _ in range(channels)
            ]
        else:
            raise LayerError(
                f"layer {name!r}: published heads take the place of a float Linear layer, or of a convolution without "
                f"stride and groups, not of a {type(layer).__name__}; wrap the model before quantize, or use "
                "heads='shared'"
            )
    return [head.to(layer.weight.device) for head in made]
