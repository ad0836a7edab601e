"""What decides a table of measured costs, and the file that keeps tables."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lowbit import files, graph
from lowbit.batches import Batch, call, inputs_of, size_of
from lowbit.costs import MeasuredCosts
from lowbit.environment import this_processor
from lowbit.errors import DataError
from lowbit.export.runtime import RuntimeName


def about_of(runtime: RuntimeName, threads: int, example: Batch) -> dict[str, str | int]:
    """What a table tells about itself: runtime, its version, threads, batch size, processor."""
    return {
        "runtime": runtime,
        "version": version(runtime) if find_spec(runtime) else "not installed",
        "threads": threads,
        "batch": size_of(example),
        "processor": str(this_processor()),
    }


def operations_of(model: nn.Module, layers: Mapping[str, nn.Module], example: Batch) -> dict[str, str]:
    """What each layer computes, in words that are equal for equal operations."""
    inputs: dict[str, list[str]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            inputs[name].append(_sizes((args[0] if args else kwargs["input"]).shape))

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    training = model.training
    try:
        with torch.no_grad():
            call(model.eval(), example)
    finally:
        model.train(training)
        for one in hooks:
            one.remove()
    return {name: f"{_settings(layer)}, input {', '.join(inputs[name])}" for name, layer in layers.items()}


def _settings(layer: nn.Module) -> str:
    """Kind, weight shape, and what else decides how a layer computes."""
    known = ("stride", "padding", "output_padding", "dilation", "groups")
    settings = [f"{name} {getattr(layer, name)}" for name in known if hasattr(layer, name)]
    bias = "bias" if getattr(layer, "bias", None) is not None else "no bias"
    return ", ".join([f"{type(layer).__name__} {_sizes(layer.get_parameter('weight').shape)}", *settings, bias])


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def shapes_of(example: Batch) -> list[str]:
    """Names, types and shapes of a batch's tensors."""
    args, kwargs = inputs_of(example)
    return [
        f"{name}{tensor.dtype} {_sizes(tensor.shape)}" for name, tensor in [*(("", a) for a in args), *kwargs.items()]
    ]


def structure_of(model: nn.Module) -> str:
    """A hash of the model without its weights: its modules, and its graph or else the files that define it."""
    traced = graph.trace(copy.deepcopy(model).eval())
    if isinstance(traced, str):
        homes = {inspect.getsourcefile(type(module)) for module in model.modules()}
        computes = "".join(sorted(files.sha256(home) for home in homes if home and Path(home).is_file()))
    else:
        computes = traced.code
    modules = re.sub(r"0x[0-9a-f]+", "", repr(model))  # addresses change from run to run
    return hashlib.sha256(f"{modules}\n{computes}".encode()).hexdigest()


def kept(cache: Path, asked: Mapping[str, object]) -> MeasuredCosts | None:
    """The table of a cache that is decided by the same, None if it has none.

    Raises:
        DataError: the cache is damaged, another file, or in a folder that does not exist.
    """
    return next((one.costs for one in _tables(cache) if one.asked == asked), None)


def keep(cache: Path, asked: dict[str, object], costs: MeasuredCosts) -> None:
    """Write a table to a cache, beside those that are decided by something else.

    Raises:
        DataError: see `kept`.
    """
    others = (one for one in _tables(cache) if one.asked != asked)  # another process may have written in between
    files.write_json(cache, asdict(_Cache((*others, _Kept(asked, costs)))))


@dataclass(frozen=True)
class _Kept:
    """A table, and all that decided it."""

    asked: dict[str, object]
    costs: MeasuredCosts


@dataclass(frozen=True)
class _Cache:
    """The file of a cache."""

    measured_costs: tuple[_Kept, ...]


def _tables(cache: Path) -> tuple[_Kept, ...]:
    """The tables of a cache, none if there is no file yet."""
    if not cache.exists():
        if not cache.parent.is_dir():
            raise DataError(f"cannot write '{cache}': there is no folder '{cache.parent}'; create it first")
        return ()
    try:
        return TypeAdapter(_Cache).validate_python(files.read_json(cache)).measured_costs
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"'{cache}' keeps no measured costs ({where}: {first['msg']}); delete it, or name another file"
        ) from None
