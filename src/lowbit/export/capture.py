"""From torch to an ONNX graph in which quantizers are still marks, nodes `Activation`, `Weight` and `Codes`.

The torch exporter folds low-bit weights back to float and knows no packed initializers, so it never sees them: before
tracing, every quantizer is swapped for a stand-in that leaves a node with the quantizer's name in the graph.
`lowbit.export.qdq` replaces those nodes.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lowbit.batches import Batch, inputs_of
from lowbit.errors import ExportError
from lowbit.layers import Quantized
from lowbit.quantization import activation_quantizers
from lowbit.quantizer import Codes, OutputCodes, Quantizer

DOMAIN = "lowbit"


class _ActivationMark(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Activation", (x,), {"name": self.name}, dtype=x.dtype, shape=x.shape, version=1
        )


class _CodesMark(nn.Module):
    """Stands for `OutputCodes`; its quantizer keeps its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Codes", (x,), {"name": self.name}, dtype=torch.int32, shape=x.shape, version=1
        )


class _WeightMark(Codes):
    """Stands for `Codes`; a subclass, so that `Quantized` treats it as such."""

    def __init__(self, name: str, codes: Codes) -> None:
        nn.Module.__init__(self)
        self.name, self.shape = name, codes.shape

    def forward(self) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Weight", (), {"name": self.name}, dtype=torch.float32, shape=list(self.shape), version=1
        )

    def extra_repr(self) -> str:
        return self.name


def capture(frozen: nn.Module, example: Batch, opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    """The ONNX graph of a frozen model, with marks for its quantizers.

    Raises:
        ExportError: torch cannot export the model.
    """
    marked = copy.deepcopy(frozen).cpu().eval()
    for name in [name for name, module in marked.named_modules() if isinstance(module, OutputCodes)]:
        marked.set_submodule(name, _CodesMark(f"{name}.quantizer"))
    for name in activation_quantizers(marked):
        marked.set_submodule(name, _ActivationMark(name))
    for name, layer in marked.named_modules():
        if isinstance(layer, Quantized) and isinstance(layer.weight_quantizer, Codes):
            layer.weight_quantizer = _WeightMark(name, layer.weight_quantizer)
            layer.input_scale = None
        elif isinstance(layer, Quantized) and isinstance(layer.weight_quantizer, Quantizer):
            raise ExportError(f"layer {name!r} is not frozen; call freeze(student) first")
    args, kwargs = inputs_of(example)
    if dynamic_batch:  # torch.export takes a batch of 1 for a constant
        args = tuple(_at_least_two(a) for a in args)
        kwargs = {k: _at_least_two(v) for k, v in kwargs.items()}
    dynamic = _open_batch(marked, len(args), list(kwargs))
    try:
        with _quiet():
            program = torch.onnx.export(
                marked,
                args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic if dynamic_batch else None,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types, some from the user's own forward
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps what went wrong in instructions for its own developers
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        first = next((line for line in lines if "Error" in line or "violat" in line), lines[0] if lines else "")
        if type(cause).__name__ == "GuardOnDataDependentSymNode":
            raise ExportError(
                f"torch cannot export {type(frozen).__name__}: its forward branches on the values of a tensor, which "
                "no file can do; compute both sides and choose with torch.where, or leave the branch out"
            ) from error
        fixed = "; if its forward fixes the batch size, let it follow x.shape[0], or export with dynamic_batch=False"
        remedy = fixed if dynamic_batch else ""
        raise ExportError(
            f"torch cannot export {type(frozen).__name__}: {type(cause).__name__}: {first}{remedy}"
        ) from error
    assert program is not None  # dynamo=True always returns a program
    captured = program.model_proto
    sizes = {i.name: i.type.tensor_type.shape.dim[0].dim_value for i in captured.graph.input if dynamic_batch}
    for name, size in sizes.items():
        if size:  # the exporter gives up on an open dimension without a word
            raise ExportError(
                f"{type(frozen).__name__} fixes the first dimension of {name!r} to {size}; make its forward follow the "
                "batch size, or export with dynamic_batch=False"
            )
    return captured


def _open_batch(model: nn.Module, args: int, kwargs: list[str]) -> dict[str, Any]:
    """The first dimension of each input open, by the names that the model's forward has for them."""
    batch = torch.export.Dim("batch")
    parameters = inspect.signature(model.forward).parameters.values()
    shapes: dict[str, Any] = {}
    left = args
    for one in parameters:
        if one.kind is one.VAR_POSITIONAL:
            if left:
                shapes[one.name] = tuple({0: batch} for _ in range(left))
            left = 0
        elif one.kind is one.VAR_KEYWORD:
            if others := [name for name in kwargs if name not in shapes]:
                shapes[one.name] = {name: {0: batch} for name in others}
        elif left or one.name in kwargs:
            shapes[one.name], left = {0: batch}, left - bool(left)
    return shapes


def _at_least_two(x: Tensor) -> Tensor:
    return torch.cat([x, x])[:2] if x.shape[0] == 1 else x


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings (missing torchvision, deprecations) and graphs away from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
