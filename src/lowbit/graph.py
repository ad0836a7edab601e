"""How the model is wired: BatchNorm folding, and where inputs, adds and poolings need quantizers.

A convolution runs on integers only if its input *and* its output are quantized, so quantizers belong to tensors, not to
layers. `place` walks the traced graph and gives every tensor that a quantized layer or a piece of *glue* (add, product,
concatenation, average pooling) reads one quantizer, right where the tensor is made:

    conv -> relu -> [q] -> conv -> [q] -> add -> relu -> [q] -> pool -> [q] -> linear -> logits (float)

Operations that only move numbers (max pooling, slices, reshapes, zero padding) are looked through: what they return is
still on the grid. A following ReLU belongs to the operation before it. Where readers want different formats, the tensor
gets the widest, and the others quantize its numbers again: an integer kernel can write only one output.
"""

from __future__ import annotations

import builtins
import copy
import inspect
import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from lowbit.formats import Format, Int
from lowbit.layers import (
    BATCHNORMS,
    CONVOLUTIONS,
    TRANSPOSED,
    BatchNorm,
    Quantized,
    folded_layer,
    folds_batchnorm,
    input_quantizer_for,
    ready_for_training,
    why_not,
)
from lowbit.quantizer import Quantizer
from lowbit.recipe import Rule
from lowbit.tracing import to_be_sent

# Kinds of operations, by what fx calls: a function, a method name, or a module type.
_RELU: set[object] = {F.relu, F.relu6, torch.relu, F.hardtanh, "relu", "relu_", nn.ReLU, nn.ReLU6, nn.Hardtanh}
_ADD: set[object] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MULTIPLY: set[object] = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_CONCATENATE: set[object] = {torch.cat, torch.concat, torch.concatenate}
_POOL: set[object] = {
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
}
_POOL |= {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
_MEAN: set[object] = {torch.mean, "mean"}
_MOVE: set[object] = {
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    F.dropout,
}
_NORMALIZE = {nn.LayerNorm, F.layer_norm, nn.RMSNorm, F.rms_norm}
_MOVE |= {F.max_pool1d, F.max_pool2d, F.max_pool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten, nn.Unflatten}
_MOVE |= {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.PixelShuffle, nn.ChannelShuffle}
_MOVE |= {nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d}
_MOVE |= {"view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"}


class _Tracer(fx.Tracer):
    def __init__(self, whole: nn.Module | None) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = m is self.whole or isinstance(m, (Quantized, Quantizer))
        return leaf or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, whole: nn.Module | None = None) -> fx.GraphModule | str:
    """The model's graph with its layers as nodes, or the reason why it has none (control flow on data, mostly).

    A module that is `whole` is one node too, whatever it consists of.
    """
    tracer = _Tracer(whole)
    tracer.proxy_buffer_attributes = isinstance(model, fx.GraphModule)  # whose graph may work on sizes and buffers
    if tracer.is_leaf_module(model, ""):
        return f"{type(model).__name__} is itself a layer"
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.default is None:  # fx would follow the branch for a tensor, whatever comes later
            return f"argument {name!r} of its forward is None or a tensor, which a graph cannot leave open"
    try:
        return fx.GraphModule(model, to_be_sent(tracer.trace(model)), type(model).__name__)
    except Exception as error:  # tracing runs the user's own forward, which may raise anything
        return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class _Normalized:
    """A layer and the BatchNorm that alone reads its output, both called once, so that they can be one layer."""

    layer_node: fx.Node
    bn_node: fx.Node
    layer: nn.Module
    bn: BatchNorm


def _normalized(traced: fx.GraphModule) -> list[_Normalized]:
    modules = dict(traced.named_modules())
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    found = []
    for node in traced.graph.nodes:
        bn = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if not isinstance(bn, BATCHNORMS) or bn.running_mean is None or not isinstance(before, fx.Node):
            continue
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        if len(before.users) > 1 or calls.count(before.target) > 1 or calls.count(node.target) > 1:
            continue
        if layer is not None and not why_not(layer) and not why_not(bn) and folds_batchnorm(layer, bn):
            found.append(_Normalized(before, node, layer, bn))
    return found


def fold_batchnorm(traced: fx.GraphModule, layers: Collection[str] | None = None) -> list[str]:
    """Fold each BatchNorm into the convolution or linear layer it follows; returns the names of those folded.

    `layers` names those that take part, None is all.

    A pair is folded only if nothing else reads the layer's output and both are called once. A quantized layer keeps its
    codes: only its scales change.
    """
    folded: list[str] = []
    while pairs := [p for p in _normalized(traced) if layers is None or str(p.layer_node.target) in layers]:
        for pair in pairs:  # and again, for a BatchNorm behind a BatchNorm
            traced.set_submodule(str(pair.layer_node.target), folded_layer(pair.layer, pair.bn))
            pair.bn_node.replace_all_uses_with(pair.layer_node)
            traced.graph.erase_node(pair.bn_node)
            folded.append(str(pair.bn_node.target))
    traced.delete_all_unused_submodules()
    traced.recompile()
    return folded


def folded(model: nn.Module) -> nn.Module:
    """A copy of a float model in eval mode, with its BatchNorms folded if it can be traced: the same, but faster."""
    traced = trace(copy.deepcopy(model).eval())
    if isinstance(traced, str):
        return copy.deepcopy(model).eval()  # not what tracing may have left something in
    fold_batchnorm(traced)
    return traced


def keep_batchnorm(traced: fx.GraphModule) -> None:
    """Make layers and the BatchNorms that stay behind them for training ready for it."""
    for pair in _normalized(traced):
        ready_for_training(pair.layer, pair.bn)


def batchnorms_to_fold(traced: fx.GraphModule) -> dict[str, BatchNorm]:
    """The BatchNorms that `fold_batchnorm` would fold, by the name of the layer before each."""
    return {str(pair.layer_node.target): pair.bn for pair in _normalized(traced)}


@dataclass
class _Demand:
    """Readers of one tensor that want one format: `rule` makes their quantizer."""

    rule: Rule
    readers: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)  # (reader, the node it reads directly)


class _Wiring:
    """A graph and what its nodes are."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.normalized = {pair.layer_node: pair.bn_node for pair in _normalized(traced)}

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def is_a(self, node: fx.Node, kind: Iterable[object]) -> bool:
        key = type(self.module(node)) if node.op == "call_module" else node.target
        return node.op.startswith("call_") and key in kind

    def moves(self, node: fx.Node) -> bool:
        """Whether a node returns numbers of its first input, or zeros, unchanged."""
        match node.target:
            case F.pad:
                mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", 0)
                return mode == "constant" and not value
            case F.interpolate:
                return bool(_argument(node, 3, "mode", "nearest") == "nearest")
            case operator.getitem:
                index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
                return any(isinstance(i, slice) or i in (None, Ellipsis) for i in index)
        upsample = self.module(node)
        if isinstance(upsample, nn.Upsample):
            return upsample.mode == "nearest"
        return self.is_a(node, _MOVE)

    def source(self, node: fx.Node) -> fx.Node:
        """Where the numbers of a tensor were made."""
        while self.moves(node) and node.args and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return node

    def glue_inputs(self, node: fx.Node) -> list[fx.Node]:
        """Tensors that an add, product, concatenation or average pooling reads; empty for any other node.

        Empty too for an add that a LayerNorm reads: that is float in every runtime, so integers would save nothing, and
        in transformers a few channels of such sums are so large that all others lose their codes (LOG.md).
        """
        tensors: object = ()
        if self.is_a(node, _ADD) and any(self.is_a(user, _NORMALIZE) for user in node.users):
            return []
        if self.is_a(node, _ADD) or self.is_a(node, _MULTIPLY):
            tensors = node.args[:2] if len(node.args) >= 2 and not node.kwargs else ()
        elif self.is_a(node, _CONCATENATE):
            tensors = _argument(node, 0, "tensors", ())
        elif self.is_a(node, _POOL):
            tensors = node.args[:1]
        elif self.is_a(node, _MEAN):
            axes = _argument(node, 1, "dim", ())
            spatial = isinstance(axes, (tuple, list)) and tuple(axes) in ((2, 3), (-2, -1), (-1, -2), (3, 2))
            tensors = node.args[:1] if spatial else ()
        if isinstance(tensors, (tuple, list)) and all(isinstance(t, fx.Node) and not self.is_size(t) for t in tensors):
            return list(tensors)
        return []

    def is_size(self, node: fx.Node) -> bool:
        """Whether a node is a Python number: the size of a tensor, or computed from sizes."""
        if node.op == "call_method":
            return node.target in ("size", "dim", "numel")
        if node.target is builtins.getattr:
            return node.args[1] in ("shape", "ndim")
        arithmetic = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
        return node.op == "call_function" and arithmetic and all(self.is_size(n) for n in node.all_input_nodes)

    def end(self, node: fx.Node) -> fx.Node:
        """The node itself, its BatchNorm that will be folded, or the ReLU that alone reads either."""
        node = self.normalized.get(node, node)
        users = list(node.users)
        return users[0] if len(users) == 1 and self.is_a(users[0], _RELU) else node

    def origin(self, node: fx.Node) -> fx.Node:
        """The operation behind a ReLU and a BatchNorm that will be folded, else the node itself."""
        if self.is_a(node, _RELU) and isinstance(behind := _argument(node, 0, "input", None), fx.Node):
            node = behind
        return next((layer for layer, bn in self.normalized.items() if bn is node), node)


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _input(node: fx.Node) -> fx.Node:
    """The tensor that a layer reads."""
    return node.args[0] if node.args else node.kwargs["input"]  # type: ignore[return-value]


def place(traced: fx.GraphModule, rules: dict[str, Rule], glue: Format | None) -> None:
    """Put activation quantizers on the graph's tensors, as sub-modules ``activations.<tensor>``.

    Args:
        traced: a graph whose layers are already wrapped in `Quantized`.
        rules: the rule of each wrapped layer.
        glue: the format in which adds, products, concatenations and poolings between quantized layers compute.
    """
    wiring = _Wiring(traced)
    demands: dict[fx.Node, list[_Demand]] = {}

    def demand(reader: fx.Node, read: fx.Node, rule: Rule, *, joins: bool = False) -> None:
        """Join a demand for the same numbers, or open one; glue joins any of its format."""
        wanted = demands.setdefault(wiring.source(read), [])
        alike = (d for d in wanted if d.rule.activations == rule.activations and (joins or _reads_alike(d.rule, rule)))
        found = next(alike, None)
        if found is None:
            wanted.append(found := _Demand(rule))
        found.readers.append((reader, read))

    made_by_integers: set[fx.Node] = set()
    convolutions: list[fx.Node] = []
    for node in traced.graph.nodes:
        layer = wiring.module(node)
        if isinstance(layer, Quantized) and (rule := rules.get(str(node.target))):
            if rule.activations is None or isinstance(layer.layer, nn.Embedding):
                continue
            demand(node, _input(node), rule)
            if isinstance(rule.activations, Int) and rule.activations.bits <= 8:
                made_by_integers.add(node)
                if isinstance(layer.layer, (*CONVOLUTIONS, *TRANSPOSED)):
                    convolutions.append(node)
    if glue is not None:
        glue_rule = Rule(activations=glue)
        needs_output = list(convolutions)
        for node in traced.graph.nodes:
            inputs = wiring.glue_inputs(node)
            if any(wiring.origin(wiring.source(i)) in made_by_integers for i in inputs):
                made_by_integers.add(node)
                needs_output.append(node)
                for read in inputs:
                    demand(node, read, glue_rule, joins=True)
        for node in needs_output:
            end = wiring.end(node)
            if end not in demands:
                demands[end] = [_Demand(glue_rule)]
    apart = {tensor for tensor, wanted in demands.items() if glue is None and _has_others(wiring, tensor, wanted)}
    _insert(traced, demands, apart)


def _has_others(wiring: _Wiring, tensor: fx.Node, wanted: list[_Demand]) -> bool:
    """Whether something reads the numbers of a tensor that does not want them quantized."""
    theirs = {reader for one in wanted for reader, _ in one.readers}
    waiting = list(tensor.users)
    while waiting:
        user = waiting.pop()
        if wiring.moves(user):
            waiting += user.users
        elif user not in theirs:
            return True
    return False


def _reads_alike(a: Rule, b: Rule) -> bool:
    return (a.symmetric, a.activation_scale) == (b.symmetric, b.activation_scale)


def _insert(traced: fx.GraphModule, demands: dict[fx.Node, list[_Demand]], apart: set[fx.Node]) -> None:
    """Put a quantizer on each tensor, for all of its readers, or for those `apart` right before the readers."""
    taken: set[str] = set()

    def add(after: fx.Node, rule: Rule, name: str) -> fx.Node:
        quantizer = input_quantizer_for(f"output of {after.name}", rule)
        assert quantizer is not None  # a demand has a format
        path = f"activations.{name}"
        while path in taken or hasattr(nn.Module, path.rpartition(".")[2]):  # such as `to`, which a module has
            path += "_"
        taken.add(path)
        traced.add_submodule(path, quantizer.to(next(traced.parameters()).device))
        with traced.graph.inserting_after(after):
            return traced.graph.call_module(path, (after,))

    def add_before(readers: list[tuple[fx.Node, fx.Node]], rule: Rule, suffix: str) -> None:
        for read in dict.fromkeys(read for _, read in readers):
            made = read.args[0] if read.target in quantizers else read
            quantized = add(read, rule, f"{made}{suffix}")
            for reader in (reader for reader, its_read in readers if its_read is read):
                reader.replace_input_with(read, quantized)

    quantizers: set[object] = set()  # by their paths, of whole tensors
    for tensor, wanted in demands.items():
        wanted.sort(key=lambda one: one.rule.activations.bits if one.rule.activations else 0, reverse=True)
        widest, *narrower = wanted
        quantized = tensor
        if tensor in apart:
            add_before(widest.readers, widest.rule, "")
        else:
            quantized = add(tensor, widest.rule, tensor.name)
            quantizers.add(quantized.target)
            for user in list(tensor.users):
                if user is not quantized:
                    user.replace_input_with(tensor, quantized)
        for one in narrower:
            direct = [(reader, quantized if read is tensor else read) for reader, read in one.readers]
            add_before(direct, one.rule, f"_{one.rule.activations}".replace("-", "_"))
    traced.graph.lint()
    traced.recompile()


def remove(traced: fx.GraphModule, path: str) -> None:
    """Take a quantizer out of the graph again."""
    for node in [n for n in traced.graph.nodes if n.op == "call_module" and n.target == path]:
        node.replace_all_uses_with(node.args[0])
        traced.graph.erase_node(node)
    traced.delete_submodule(path)
    traced.recompile()


def input_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizer behind the input of each `Quantized` layer that has one, at its first call; all share a format."""
    return {name: read[0] for name, read in _quantizers_read(model).items()}


def sole_input_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizer behind the input of each `Quantized` layer, where all its calls read the same one."""
    return {n: read[0] for n, read in _quantizers_read(model).items() if all(q is read[0] for q in read)}


def _quantizers_read(model: nn.Module) -> dict[str, list[Quantizer]]:
    """What each `Quantized` layer reads, call by call; not those with a call that reads floats."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Quantized)}
    found = {n: [m.input_quantizer] for n, m in layers.items()}
    if isinstance(model, fx.GraphModule):
        wiring = _Wiring(model)
        calls = [n for n in model.graph.nodes if isinstance(wiring.module(n), Quantized)]
        found |= {str(node.target): [] for node in calls}
        for node in calls:
            source = wiring.module(wiring.source(_input(node)))
            found[str(node.target)].append(source if isinstance(source, Quantizer) else None)
    return {n: [q for q in read if q is not None] for n, read in found.items() if None not in read}
