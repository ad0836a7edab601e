"""What a trial's figures come from, as hashes: results of an earlier run are kept only while all of it is the same.

Weights and code tell most of a network apart. What neither shows, such as a plain attribute or the configuration of a
Hugging Face folder, shows in what it returns: a few of its outputs count too, coarsely, because their last bits depend
on the processor.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

import lowbit
from lowbit import files
from lowbit.batches import call, output_tensor
from lowbit.errors import LowbitError
from lowbit.export.tables import structure_of
from lowbit.pilot.task import Samples

_SAMPLES, _NUMBERS, _BITS = 8, 32, 7  # of each data set, of their outputs, and of each of those


def weights_hash(model: nn.Module) -> str:
    """Of all that a state dict holds."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):  # as bytes, because NumPy has no bfloat16
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:  # what the module itself adds
            digest.update(repr(value).encode())
    return digest.hexdigest()


def code_hash(model: nn.Module, references: Iterable[str], folder: Path) -> str:
    """Of what the weights leave out: the modules, the graph, and the files of the user's that they are written in.

    Args:
        model: the network.
        references: functions of the user's that decide figures too, as ``module:function``; others are no files.
        folder: where their paths begin.
    """
    names = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    for reference in references:
        try:
            names.add(files.resolve(reference, folder).__module__)
        except LowbitError:  # a model that a program built, which may be called anything
            continue
    found = {files.sha256(path) for path in _written_in(names)}
    return hashlib.sha256("\n".join([structure_of(model), *sorted(found)]).encode()).hexdigest()


def _written_in(names: Iterable[str]) -> Iterator[Path]:
    """Files of the user's modules of these names, and of those that they import, one after the other."""
    seen, left = set[str](), list(names)
    while left:
        name = left.pop()
        module = sys.modules.get(name)
        path = Path(getattr(module, "__file__", None) or "")
        if name in seen or not path.is_file() or _installed(path):
            continue
        seen.add(name)
        yield path
        for value in vars(module).values():
            if isinstance(value, types.ModuleType):
                left.append(value.__name__)
            else:
                left.append((value if isinstance(value, type | types.FunctionType) else type(value)).__module__)


def _installed(path: Path) -> bool:
    """Whether a file came with a package or with Python: versions tell of those."""
    places = [*sysconfig.get_paths().values(), str(Path(inspect.getfile(lowbit)).parent)]
    return any(path.is_relative_to(place) for place in places)


def behavior(model: nn.Module, every_data: Iterable[Samples]) -> list[list[int]]:
    """A few outputs for the first samples of each data set, in steps of a power of two; its exponent stands first."""
    found = []
    with torch.no_grad():
        for data in every_data:
            output = output_tensor(call(model, next(iter(data.batches(_SAMPLES))))).detach().double().cpu().flatten()
            some = output[torch.linspace(0, len(output) - 1, min(_NUMBERS, len(output))).long()]
            _, exponent = torch.frexp(some.abs().max())
            found.append(
                [int(exponent), *torch.ldexp(some, _BITS - exponent).nan_to_num(0, 0, 0).round().int().tolist()]
            )
    return found
