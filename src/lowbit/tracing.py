"""How a model whose forward looks at shapes, types or values becomes a graph: torch.fx with numbers at hand.

`torch.fx` records what a forward does without running it, so that `if x.shape[1] != 3` or `(*x.shape[:-1], heads, -1)`
stops it. Here every recorded step is computed on an example as well: types, numbers of dimensions and conditions come
from the example, while sizes stay steps of the graph. What was fixed that way must hold for other inputs too, so the
graph is compared with the model on inputs of other sizes and contents before anyone gets it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

_KNOWN = ("dtype", "device", "ndim", "layout", "requires_grad", "is_cuda")


class _Shown(fx.Proxy):
    """A recorded value that knows what it is on the example."""

    tracer: _Tracer

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.values[self.node]
        if name in _KNOWN and isinstance(value, Tensor):
            return getattr(value, name)
        return super().__getattr__(name)

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.size(axis) for axis in range(self.dim()))

    def size(self, axis: int | None = None) -> Any:
        if axis is None:
            return self.shape
        return self.tracer.create_proxy("call_method", "size", (self, axis), {})

    def dim(self) -> int:
        return int(self.tracer.values[self.node].dim())

    def is_floating_point(self) -> bool:
        return bool(self.tracer.values[self.node].is_floating_point())

    def __int__(self) -> int:
        return int(self.tracer.values[self.node])

    def __index__(self) -> int:
        return int(self.tracer.values[self.node])

    def __len__(self) -> int:
        return len(self.tracer.values[self.node])


class _Unpickled(fx.Tracer):
    """What traces the code of a graph again where that arrives in another process: every module is a node."""

    proxy_buffer_attributes = True


def to_be_sent(graph: fx.Graph) -> fx.Graph:
    """The graph in a form that can be pickled: without types, which may be text, or a tracer with arguments."""
    for node in graph.nodes:
        node.type = None
    graph._tracer_cls = _Unpickled
    return graph


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, example: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.example = example
        self.values: dict[fx.Node, Any] = {}
        self.computing = False  # on the example, when nothing is recorded

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Shown(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        self.computing = True
        try:
            with torch.no_grad():
                self.values[proxy.node] = self._compute(kind, target, self._on_example(args), self._on_example(kwargs))
        finally:
            self.computing = False
        return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call; of a module that the forward itself makes, as `nn.ReLU()(x)`, what it calls in turn."""
        installed = any(m is one for one in self.root.modules())
        if self.computing or not (installed or [*m.parameters(), *m.buffers()]):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _on_example(self, value: Any) -> Any:
        match value:
            case fx.Proxy():
                return self.values[value.node]
            case slice():
                return slice(*(self._on_example(part) for part in (value.start, value.stop, value.step)))
            case tuple() | list():
                return type(value)([self._on_example(one) for one in value])
            case dict():
                return {key: self._on_example(one) for key, one in value.items()}
        return value

    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        match kind:
            case "placeholder":
                return self.example[target]
            case "call_function":
                return target(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            case "get_attr":
                place, _, name = target.rpartition(".")
                owner = self.root.get_submodule(place)
                return {**owner._parameters, **owner._buffers}.get(name, owner.__dict__.get(name))
        return None

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.values[obj.node])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.values[obj.node]
        if isinstance(value, (tuple, list)):
            return iter([obj[i] for i in range(len(value))])  # type: ignore[index]
        return super().iter(obj)


def trace_on(
    model: nn.Module, examples: Sequence[Mapping[str, Tensor]], others: Sequence[Mapping[str, Tensor]] = ()
) -> fx.GraphModule | str:
    """The graph of a model, traced on the first example and compared on all; or the reason why it has none.

    Args:
        model: in eval mode; its forward takes the examples' tensors by name and returns one tensor.
        examples: batches of different numbers of samples and with other contents.
        others: batches whose other sizes differ too. Where the graph does not hold for them, sizes were fixed: it then
            refuses inputs of any other size than the first example's, but for the first dimension.
    """
    try:
        graph = _Tracer(examples[0]).trace(model)
        _follow_device(graph)
        traced = fx.GraphModule(model, to_be_sent(graph), type(model).__name__)
        traced.graph.eliminate_dead_code()
        traced.delete_all_unused_submodules()
        traced.recompile()
        if unlike := _unlike(model, traced, examples):
            return unlike
        if others and _unlike(model, traced, others):
            _fix_sizes(traced, examples[0])
    except Exception as error:  # the model's own forward may raise anything
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return traced


def _unlike(model: nn.Module, traced: fx.GraphModule, examples: Sequence[Mapping[str, Tensor]]) -> str:
    with torch.no_grad():
        for example in examples:
            wanted = model(**example)
            try:
                found = traced.forward(**example)  # a call of the module prints where it failed
            except Exception as error:  # sizes that were fixed do not fit, and torch says so in many ways
                return str(error).strip().splitlines()[0] or type(error).__name__
            if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
                return "its forward does other things with other inputs"
    return ""


def _follow_device(graph: fx.Graph) -> None:
    """Make tensors where the first input is, not where that of the example was."""
    first = next(node for node in graph.nodes if node.op == "placeholder")
    fixed = [n for n in graph.nodes if any(isinstance(v, torch.device) for v in (*n.args, *n.kwargs.values()))]
    if not fixed:
        return
    with graph.inserting_after([node for node in graph.nodes if node.op == "placeholder"][-1]):
        device = graph.call_function(getattr, (first, "device"))
    for node in fixed:
        node.args = tuple(device if isinstance(v, torch.device) else v for v in node.args)
        node.kwargs = {k: device if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}


def _fix_sizes(traced: fx.GraphModule, example: Mapping[str, Tensor]) -> None:
    """Let the graph refuse inputs of other sizes than the example's."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    with traced.graph.inserting_before(inputs[-1].next):
        for node in inputs:
            sizes = [*example[str(node.target)].shape[1:]]
            for axis, expected in enumerate(sizes, start=1):
                size = traced.graph.call_method("size", (node, axis))
                same = traced.graph.call_function(operator.eq, (size, expected))
                told = f"{node.target} is not of shape {sizes} a sample, which the graph was traced for"
                traced.graph.call_function(torch._assert, (same, told))
    traced.recompile()
