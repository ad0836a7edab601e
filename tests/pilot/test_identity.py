"""Results of an earlier run are kept only for the same network: whatever tells two apart has to tell them apart."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from lowbit import files
from lowbit.data import from_arrays
from lowbit.pilot import identity

BASE = """
from torch import nn
class Base(nn.Module):
    def forward(self, x):
        return 2 * self.linear(x)
"""
HELPER = """
import constants
def scaled(x):
    return constants.FACTOR * x
"""
NETWORK = """
import numpy as np
import pytest
import torch
from torch import nn
from base import Base
from helper import scaled
class Network(Base):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
    def forward(self, x):
        return scaled(super().forward(x))
def build():
    torch.manual_seed(0)
    return Network()
"""
SOURCES = {"base.py": BASE, "helper.py": HELPER, "constants.py": "FACTOR = 1\n", "network.py": NETWORK}


def project(folder: Path, **edits: tuple[str, str]) -> Path:
    """A network that takes four files, some of them edited."""
    for name, text in SOURCES.items():
        (folder / name).write_text(text.replace(*edits.get(name.removesuffix(".py"), ("", ""))))
    return folder


def code_of(folder: Path) -> str:
    """The hash of it, read anew, as a second run of a command reads it."""
    for name in [
        name for name in sys.modules if name in ("base", "helper", "constants") or name.startswith("network_")
    ]:
        del sys.modules[name]
    model = files.resolve("network.py:build", folder)()
    assert isinstance(model, nn.Module)
    return identity.code_hash(model, ["network.py:build", "accuracy"], folder)


def test_every_file_that_makes_the_network_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class, the class that this is of, what both import, and what that imports; nothing else in the folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = {code_of(project(tmp_path))}
    (tmp_path / "another.py").write_text("FACTOR = 2")
    assert found == {code_of(project(tmp_path))}
    for name, edit in {
        "base": ("2 * self", "3 * self"),
        "helper": ("* x", "* x + 1"),
        "constants": ("1", "4"),
        "network": ("manual_seed(0)", "manual_seed(1)"),
    }.items():
        found.add(code_of(project(tmp_path, **{name: edit})))
    assert len(found) == 5


class Gain(nn.Module):
    """A plain attribute, and a buffer that no state dict has."""

    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor = factor
        self.shift: Tensor
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """One output a sample."""
        return self.factor * x.sum(1, keepdim=True) + self.shift


def test_what_no_file_shows_shows_in_the_outputs() -> None:
    samples = from_arrays(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    models = [Gain(1, 0), Gain(1.2, 0), Gain(2, 0), Gain(1, 0.2)]
    assert len({identity.weights_hash(model) for model in models}) == 1
    found = [identity.behavior(model, [samples, samples]) for model in models]
    assert len({str(one) for one in found}) == 4
    assert found[0] == identity.behavior(Gain(1 + 1e-7, 0), [samples, samples])  # the processor's last bits do not


def test_graphs_count() -> None:
    """Two traced networks that print alike and have equal weights."""

    def traced(function: object) -> fx.GraphModule:
        graph = fx.Graph()
        graph.output(graph.call_function(function, (graph.placeholder("x"),)))  # type: ignore[arg-type]
        return fx.GraphModule(nn.Module(), graph)

    assert len({identity.code_hash(traced(one), [], Path()) for one in (torch.relu, torch.sigmoid)}) == 2


def test_weights_of_any_type_count() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extra = 1
            for name, tensor in (("narrow", torch.ones(2, dtype=torch.bfloat16)), ("none", torch.zeros(0))):
                self.register_buffer(name, tensor)
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("mask", torch.tensor([True, False]))

        def get_extra_state(self) -> int:
            return self.extra

    def changed(name: str, value: object) -> str:
        model = Odd()
        setattr(model, name, value)
        return identity.weights_hash(model)

    prints = [
        *(identity.weights_hash(Odd()), changed("narrow", torch.zeros(2, dtype=torch.bfloat16)), changed("extra", 2)),
        *(changed("count", torch.tensor(4)), changed("mask", torch.tensor([True, True]))),
    ]
    assert len(set(prints)) == 5
    assert identity.weights_hash(Odd()) == prints[0]
