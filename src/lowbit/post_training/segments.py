"""How a network divides into blocks that only one tensor leaves, so that work on it holds one block at a time.

A residual block ends behind its add, where nothing but the sum goes on. `walk` goes from block to block through a
student and its float twin at once. What comes before a block has run by then, and is not run again: the tensors
that enter it are held for all calibration samples, those of earlier blocks are let go.

    image -> [conv relu] -> x -> [conv relu conv + x relu] -> x -> ... -> [pool linear] -> logits

A model that cannot be traced is one block.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lowbit import graph
from lowbit.batches import Batches, call, inputs_of, output_tensor
from lowbit.errors import CalibrationError
from lowbit.layers import Quantized, turn_off_fused_paths
from lowbit.progress import track
from lowbit.quantization import activation_quantizers, expect_quantizers, origin
from lowbit.quantizer import Quantizer

Value = object  # what enters a block: a batch for the first, a tensor for every other


def float_twin(model: nn.Module, student: nn.Module) -> nn.Module:
    """A copy of a float model in the form that `quantize` gave its student: traced, with BatchNorms folded."""
    twin = copy.deepcopy(model).eval()
    turn_off_fused_paths(twin)
    traced = graph.trace(twin)
    if isinstance(traced, str):
        return twin
    noted = origin(student)
    if noted is None or noted.folded:
        graph.fold_batchnorm(traced)
    return traced


def working_copy(student: nn.Module) -> nn.Module:
    """A copy of a student to change, in eval mode; weights that layers share become each layer's own.

    Raises:
        CalibrationError: it has no quantizers, as the float model has none.
    """
    expect_quantizers(student)
    changed = copy.deepcopy(student).eval()
    owners: dict[nn.Parameter, int] = {}
    for module in changed.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[parameter] = owners.get(parameter, 0) + 1
    for module in changed.modules():
        weight = module.layer._parameters.get("weight") if isinstance(module, Quantized) else None
        if isinstance(module, Quantized) and weight is not None and owners[weight] > 1:
            own = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            module.layer.register_parameter("weight", own)
    return changed


@dataclass
class Segment:
    """One block of a student and of its float twin, and what enters it, batch by batch."""

    layers: dict[str, Quantized]
    student: nn.Module
    twin: nn.Module
    inputs: list[Value]
    twin_inputs: list[Value]

    def outputs(self) -> list[Tensor]:
        """What the student's block makes of its inputs as it is now."""
        return _run(self.student, self.inputs)

    def targets(self) -> list[Tensor]:
        """What the twin's block makes of the twin's inputs."""
        return _run(self.twin, self.twin_inputs)


def walk(
    student: nn.Module, twin: nn.Module, batches: Batches, what: str, *, progress: bool = True
) -> Iterator[Segment]:
    """Every block in order. What the caller changes in a student's block shows in the inputs of the next.

    Raises:
        CalibrationError: no batches.
    """
    inputs: list[Value] = list(batches)
    if not inputs:
        raise CalibrationError(f"{what}: got no batches; give at least one (a list, not a used-up generator)")
    twin_inputs = inputs
    blocks = parts(student, twin)
    for i, (layers, part, twin_part) in enumerate(track(blocks, what, show=progress), start=1):
        segment = Segment(layers, part, twin_part, inputs, twin_inputs)
        yield segment
        if i < len(blocks):
            inputs, twin_inputs = [*segment.outputs()], [*segment.targets()]


def _run(part: nn.Module, inputs: list[Value]) -> list[Tensor]:
    with torch.no_grad():
        return [run(part, value) for value in inputs]


def run(part: nn.Module, value: Value) -> Tensor:
    """A block applied to what enters it, which stays as it is: models may work in place."""
    value = _cloned(value)
    if isinstance(part, _Part):
        return output_tensor(part(value))
    return output_tensor(call(part, value))  # type: ignore[arg-type]


def _cloned(value: Value) -> Value:
    match value:
        case Tensor():
            return value.clone()
        case Mapping():
            return {k: v.clone() if isinstance(v, Tensor) else v for k, v in value.items()}
        case Sequence():
            return [value[0].clone(), *value[1:]]
    return value


def parts(student: nn.Module, twin: nn.Module) -> list[tuple[dict[str, Quantized], nn.Module, nn.Module]]:
    """The blocks of a student and of its twin, with the quantized layers of each; `run` applies one."""
    layers = {n: m for n, m in student.named_modules() if isinstance(m, Quantized)}
    if not (isinstance(student, fx.GraphModule) and isinstance(twin, fx.GraphModule)):
        return [(layers, student, twin)]
    ends = _grouped(student, {*_ends(student)} & {*_ends(twin)}, layers)
    found: list[tuple[dict[str, Quantized], nn.Module, nn.Module]] = []
    left = dict(layers)
    for part, twin_part in zip(_split(student, ends), _split(twin, ends), strict=True):
        of_part = _layers_in(part, left)
        left = {name: layer for name, layer in left.items() if name not in of_part}  # one called again is done once
        found.append((of_part, part, twin_part))
    return found


def _ends(traced: fx.GraphModule) -> list[str]:
    """Nodes after which no other tensor goes on."""
    nodes = [n for n in traced.graph.nodes if n.op != "get_attr"]
    place = {n: i for i, n in enumerate(nodes)}
    last_read = {n: max((place[user] for user in n.users), default=-1) for n in nodes}
    found, reach = [], -1  # the farthest reader of any node before the present one
    for i, node in enumerate(nodes):
        if reach <= i and last_read[node] > i and not _is_tuple(node):
            found.append(node.name)
        reach = max(reach, last_read[node])
    return found


def _is_tuple(node: fx.Node) -> bool:
    """Whether a node returns several tensors, of which others take theirs by number."""
    return any(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)


def _grouped(student: fx.GraphModule, names: set[str], layers: dict[str, Quantized]) -> list[str]:
    """Ends chosen so that every block holds a layer and begins right before one; the last block has no end."""
    chosen: list[str] = []
    candidate, seen = "", False
    for node in student.graph.nodes:
        if node.op == "call_module" and _inside(str(node.target), layers):
            if candidate:
                chosen.append(candidate)
            candidate, seen = "", True
        if node.name in names and seen:
            candidate = node.name
    return chosen


class _Part(nn.Module):
    """The nodes of a traced graph behind one node, up to another."""

    def __init__(self, traced: fx.GraphModule, start: fx.Node | None, nodes: list[fx.Node]) -> None:
        super().__init__()
        self.start, self.nodes = start, nodes
        self.whole = [traced]  # in a list, so that its parameters are not this module's as well
        used = {n for node in nodes for n in node.all_input_nodes if n.op == "get_attr"}
        self.attributes = [n for n in traced.graph.nodes if n in used]

    def forward(self, value: Value) -> object:
        interpreter = fx.Interpreter(self.whole[0], garbage_collect_values=False)
        interpreter.env = self._fed(value) if self.start is None else {self.start: value}
        for node in [*self.attributes, *self.nodes]:
            if node not in interpreter.env:
                interpreter.env[node] = interpreter.run_node(node)
        return interpreter.env[self.nodes[-1]]

    def _fed(self, batch: Value) -> dict[fx.Node, object]:
        args, kwargs = inputs_of(batch)  # type: ignore[arg-type]
        holders = [n for n in self.nodes if n.op == "placeholder"]
        fed: dict[fx.Node, object] = dict(zip(holders, args, strict=False))
        for node in holders[len(args) :]:
            fed[node] = kwargs[str(node.target)] if node.target in kwargs else node.args[0]
        return fed


def _split(traced: fx.GraphModule, ends: list[str]) -> list[_Part]:
    parts, start, nodes = [], None, []
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            continue
        nodes.append(node)
        if node.name in ends or node.op == "output":
            parts.append(_Part(traced, start, nodes))
            start, nodes = node, []
    return parts


def _layers_in(part: _Part, layers: dict[str, Quantized]) -> dict[str, Quantized]:
    return {name: m for n in part.nodes if n.op == "call_module" for name, m in _inside(str(n.target), layers).items()}


def _inside(target: str, layers: dict[str, Quantized]) -> dict[str, Quantized]:
    """A called module that is one of the layers, or those in it (fx does not look into torch's Transformer layers)."""
    return {name: layer for name, layer in layers.items() if f"{name}.".startswith(f"{target}.")}


def quantizers_in(part: nn.Module) -> list[Quantizer]:
    """Activation quantizers that a block runs."""
    nodes = getattr(part, "nodes", None)
    if nodes is None:
        return [*activation_quantizers(part).values()]
    (whole,) = part.whole  # type: ignore[misc]
    called = dict.fromkeys(str(n.target) for n in nodes if n.op == "call_module")
    return [q for target in called for q in activation_quantizers(whole.get_submodule(target)).values()]
