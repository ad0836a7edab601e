"""Where codes and a head go in a network: behind a layer, or in front of its last Linear, in a copy.

In a graph the head keeps the name of that Linear, so that the rules of a recipe still match, and what nothing needs any
more is taken out. A network that cannot be traced has both in the place of the Linear.
"""

from __future__ import annotations

import copy
import difflib

import torch
from torch import Tensor, fx, nn

from lowbit import graph
from lowbit.batches import Batch, call, output_tensor
from lowbit.errors import LayerError
from lowbit.layers import channels_last

CODING = "coding"  # the module in front of the head: `coding.pooled` returns features, `coding.codes` their codes
HEAD = "head"  # the head's name where the network has no Linear whose name it takes


class Pooled(nn.Module):
    """The mean over positions of feature maps `[N, channels, ...]`; features `[N, d]` as they are.

    With `last`, feature maps are `[N, ..., channels]`, as layers of text networks return them.
    """

    def __init__(self, dims: int, last: bool = False) -> None:
        super().__init__()
        self.axes = tuple(range(1, dims - 1) if last else range(2, dims))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, d]`."""
        return x.mean(self.axes) if self.axes else x


class Coding(nn.Module):
    """What stands between a layer and the head: `pooled` returns features, `codes` what the head reads."""

    def __init__(self, pooled: nn.Module, codes: nn.Module) -> None:
        super().__init__()
        self.pooled, self.codes = pooled, codes

    def forward(self, x: Tensor) -> Tensor:
        """Codes `[N, d]`."""
        codes: Tensor = self.codes(self.pooled(x))
        return codes


class Attached(nn.Module):
    """A head with its codes in the place of a Linear, for networks that have no graph."""

    def __init__(self, coding: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.coding, self.head = coding, head

    def forward(self, x: Tensor) -> Tensor:
        """Scores `[N, C]`."""
        scores: Tensor = self.head(self.coding(x))
        return scores


def with_place(model: nn.Module, layer: str, batch: Batch) -> tuple[nn.Module, str, str, int]:
    """A copy with modules that do nothing where codes and head will be, their names, and the number of classes."""
    copied = copy.deepcopy(model).eval()
    last, shapes, output = _ran(copied, layer, batch)
    if output.dim() != 2 or output.shape[1] < 2:
        raise LayerError(
            f"the model returns {list(output.shape)}, expected [N, classes] scores; codes are for classifiers"
        )
    classes = output.shape[1]
    if not layer and (not last or shapes[1] != output.shape or len(shapes[0]) != 2):
        raise LayerError(
            "the model does not end in a Linear layer that reads [N, features] and returns the scores; name the layer "
            f"whose output is to be coded: {', '.join(_names(copied))}"
        )
    place = copied.get_submodule(layer or last)
    coding = Coding(Pooled(len(shapes[0]), channels_last(place)), nn.Identity())
    traced = graph.trace(copy.deepcopy(copied))
    traced = traced if isinstance(traced, str) else graph.trace(copied, place)
    if isinstance(traced, fx.GraphModule):
        return (*_in_graph(traced, layer, last, coding), classes)
    if layer:
        raise LayerError(
            f"layer {layer!r}: the model cannot be traced ({traced}), so nothing can be left out behind it; leave "
            "layer out to code the input of the last Linear"
        )
    network = copy.deepcopy(model).eval()  # tracing may have left something in the first copy
    if network.get_submodule(last) is network:
        return Attached(coding, nn.Identity()), CODING, HEAD, classes
    network.set_submodule(last, Attached(coding, nn.Identity()))
    return network, f"{last}.{CODING}", f"{last}.{HEAD}", classes


def _in_graph(traced: fx.GraphModule, layer: str, last: str, coding: nn.Module) -> tuple[nn.Module, str, str]:
    """Codes and a head behind `layer`, or before the Linear `last`, in a graph that ends there."""
    place = layer or last
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == place]
    if len(calls) != 1:
        raise LayerError(f"{named(layer)} runs {len(calls)} times in the model, expected once; choose another")
    (node,) = calls
    name = _free(traced, CODING)
    traced.add_submodule(name, coding)
    if layer:
        end = next(one for one in traced.graph.nodes if one.op == "output")
        with traced.graph.inserting_after(node):
            codes = traced.graph.call_module(name, (node,))
        head = last if last and not f"{node.target}.".startswith(f"{last}.") and last != layer else HEAD
        head = head if _unused_after(traced, node, head) else _free(traced, HEAD)
        with traced.graph.inserting_after(codes):
            scores = _called(traced, head, codes)
        end.args = (scores,)
    else:
        head = last
        with traced.graph.inserting_before(node):
            codes = traced.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.args, node.kwargs = (codes,), {}
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return traced, name, head


def _called(traced: fx.GraphModule, head: str, codes: fx.Node) -> fx.Node:
    """A call of a new module under the head's name."""
    parent, _, child = head.rpartition(".")
    traced.get_submodule(parent).add_module(child, nn.Identity())
    return traced.graph.call_module(head, (codes,))


def _unused_after(traced: fx.GraphModule, node: fx.Node, head: str) -> bool:
    """Whether a module's name is free once all that `node` does not need is gone."""
    needed, waiting = set[fx.Node](), [node]
    while waiting:
        one = waiting.pop()
        if one not in needed:
            needed.add(one)
            waiting += one.all_input_nodes
    used = [str(one.target) for one in needed if one.op in ("call_module", "get_attr")]
    return not any(f"{name}.".startswith(f"{head}.") or f"{head}.".startswith(f"{name}.") for name in used)


def _free(model: nn.Module, name: str) -> str:
    taken = {child for child, _ in model.named_children()} | {*dir(model)}
    while name in taken:
        name += "_"
    return name


def _ran(model: nn.Module, layer: str, batch: Batch) -> tuple[str, tuple[torch.Size, torch.Size], Tensor]:
    """The last Linear that ran; shapes of what is coded and of what that Linear returned; and the model's output."""
    modules = dict(model.named_modules())
    if layer and layer not in modules:
        near = difflib.get_close_matches(layer, [*modules], n=3, cutoff=0.4)
        raise LayerError(
            f"layer {layer!r} is not in the model; "
            + (f"did you mean {' or '.join(near)}?" if near else f"its layers are {', '.join(_names(model))}")
        )
    seen: list[tuple[str, object, object]] = []
    watched = {name: one for name, one in modules.items() if isinstance(one, nn.Linear) or (layer and name == layer)}
    hooks = [
        one.register_forward_hook(lambda _, args, out, name=name: seen.append((name, args[0] if args else None, out)))
        for name, one in watched.items()
    ]
    try:
        with torch.no_grad():
            output = output_tensor(call(model, batch))
    finally:
        for hook in hooks:
            hook.remove()
    linears = [one for one in seen if isinstance(modules[one[0]], nn.Linear)]
    last, read, wrote = linears[-1] if linears else ("", None, None)
    shape = wrote.shape if isinstance(wrote, Tensor) else torch.Size()
    if not layer:
        return last, (read.shape if isinstance(read, Tensor) else torch.Size(), shape), output
    own = [out for name, _, out in seen if name == layer]
    if len(own) != 1:
        raise LayerError(f"layer {layer!r} runs {len(own)} times in the model, expected once; choose another")
    returned = own[0]
    if not isinstance(returned, Tensor) or returned.dim() < 2 or len(returned) != len(output):
        got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise LayerError(f"layer {layer!r} returns {got}, expected a tensor [N, features, ...]; choose another")
    return last, (returned.shape, shape), output


def _names(model: nn.Module, most: int = 12) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    return [*names[-most:]] if len(names) <= most else ["...", *names[-most:]]


def named(layer: str) -> str:
    """What is coded, as messages call it."""
    return f"layer {layer!r}" if layer else "the input of the last Linear"
