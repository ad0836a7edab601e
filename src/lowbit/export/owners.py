"""Which layer an operator that runs belongs to.

- An operator fused from several nodes belongs to the layer among them, with the ReLU or add that it also computes.
- Conversions belong to the layer that makes them necessary: QuantizeLinear behind a layer that returns floats to that
  layer, DequantizeLinear and casts to the layer that reads their floats.
- All else belongs to none: adds and poolings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import onnx

from lowbit.export.advice import LAYERS, Wiring
from lowbit.export.runtime import Operator

_MULTIPLIES = re.compile("Conv|Deconv|Gemm|MatMul|FullyConnected")
_PASSED = ("Relu", "Clip", "BatchNormalization", "QuantizeLinear", "Add")  # what a layer's kernel may take in
_BEHIND = ("QuantizeLinear", "ReorderOutput", "FakeQuantize")  # conversions of what a layer returns, not of its input
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


class Parts:
    """The layer that each node of a file is part of."""

    def __init__(self, file: onnx.GraphProto, layers: Collection[str]) -> None:
        self.wiring, self.layers = Wiring(file), layers
        self.stored = {i.name: len(i.raw_data) or i.ByteSize() for i in file.initializer}
        self.reads = {node.output[0]: set(node.input) & self.stored.keys() for node in file.node}
        self.of = {node.output[0]: self._layer_of(node) for node in file.node}

    def _layer_of(self, node: onnx.NodeProto) -> str | None:
        called = re.sub(r"#\d+$", "", node.name)  # a layer's second call is numbered
        if called in self.layers and node.op_type in (*LAYERS, "Gather"):
            return called
        if (place := self.wiring.place(node.name)) != node.name and place in self.layers:  # unpacks its weight
            return place
        # multiplies with its weight under another name, or adds its bias
        return next((layer for name in self.reads[node.output[0]] if (layer := self._holder(name)) is not None), None)

    def _holder(self, tensor: str) -> str | None:
        """The layer whose weight or bias is stored under a name; one that is the model itself has the name ``""``."""
        found = re.fullmatch(r"(?:(.+)\.)?(?:weight|bias)", tensor)
        names = [found[1] or "", re.sub(r"(^|\.)layer$", "", found[1] or "")] if found else []
        return next((name for name in names if name in self.layers), None)

    def bytes_of(self, layer: str) -> int:
        """Bytes of the numbers stored for a layer, without zero points, which layers share."""
        stored = {name for output, owner in self.of.items() if owner == layer for name in self.reads[output]}
        return sum(self.stored[name] for name in stored if not name.startswith("zero_point."))

    def fixed(self) -> set[str]:
        """Layers that compute the same for all inputs, as a table of positions does.

        A runtime computes them when it loads the file, if the export did not, so that they take no time.
        """
        return {*self.layers} - {layer for tensor, layer in self.of.items() if tensor not in self.wiring.constant}

    def owners(self, running: Sequence[Operator]) -> list[str | None]:
        """The layer of each operator that runs, None for the rest."""
        own = [self._computes(operator) for operator in running]
        converts = [owner is None and self._converts(operator) for owner, operator in zip(own, running, strict=True)]
        before = {i: [j for j in operator.reads if j >= 0] for i, operator in enumerate(running)}
        behind: dict[int, list[int]] = {i: [] for i in before}
        for i, makers in before.items():
            for j in makers:
                behind[j].append(i)

        def end(i: int, edges: Mapping[int, list[int]]) -> str | None:
            """The first layer that conversions, and what only moves numbers, lead to."""
            waiting, seen = list(edges[i]), {i}
            while waiting:
                j = waiting.pop(0)
                if own[j] is not None:
                    return own[j]
                if j not in seen and (converts[j] or running[j].kind.startswith(_MOVES)):
                    seen.add(j)
                    waiting += edges[j]
            return None

        found = list(own)
        for i, operator in enumerate(running):
            if converts[i]:
                first, second = (before, behind) if operator.kind.startswith(_BEHIND) else (behind, before)
                layer = end(i, first)
                found[i] = end(i, second) if layer is None else layer
        return found

    def _computes(self, operator: Operator) -> str | None:
        """The layer that an operator itself computes, or a part of it."""
        nodes = [node for name in operator.names if (node := self._node(name)) is not None]
        layer = next((found for node in nodes if (found := self.of[node.output[0]]) is not None), None)
        if layer is None and _MULTIPLIES.search(operator.kind):
            layer = next((found for node in nodes if (found := self._taken_in(node)) is not None), None)
        return layer

    def _converts(self, operator: Operator) -> bool:
        """Whether an operator only rewrites numbers; names that a runtime made up do not tell."""
        nodes = [node for name in operator.names if (node := self._node(name)) is not None]
        return operator.converts or (bool(nodes) and all(self.wiring.place(n.name) != n.name for n in nodes))

    def _node(self, name: str) -> onnx.NodeProto | None:
        """The file's node of a name: its own or its output's, without what a runtime put behind it."""
        name = name.removeprefix("fused ")  # with the activation behind it, by ONNX Runtime
        for known in (name, re.sub(r"_\d+$", "", name), name.partition("/")[0]):
            found: onnx.NodeProto | None = self.wiring.nodes.get(known) or self.wiring.made.get(known)
            if found is not None:
                return found
        return None

    def _taken_in(self, node: onnx.NodeProto | None) -> str | None:
        """The layer whose kernel takes in a node behind it; a fused operator may carry the last node's name alone."""
        while node is not None and self.of[node.output[0]] is None and node.op_type in _PASSED:
            computed = [name for name in node.input if name and name not in self.stored]
            if node.op_type == "Add" and len(computed) > 1:  # no bias
                return None
            node = self.wiring.made.get(computed[0]) if computed else None
        return self.of[node.output[0]] if node is not None else None
