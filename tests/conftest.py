"""What every test shares: one torch thread a process, as pytest-xdist runs a process a core; a cache of the session's
own; torch's table of ONNX operators, built once."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
# compiled kernels of a test session are its own, shared by its workers, and removed with the object at exit
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="lowbit-cache-")
    os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    """torch.onnx builds its table of operators anew in every export, which is half of the time of a small one.

    Here it is built once an opset; an export still gets a table of its own that it may add to. So is the list of
    composite operators, which it asks for once a namespace. With a torch that has neither, exports are only slower.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        built = functools.cache(ONNXRegistry.from_torchlib)

        def copied(*opset: int, **named: int) -> Any:
            table = copy.copy(built(*opset, **named))
            table.functions = {name: list(functions) for name, functions in table.functions.items()}
            return table

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        from torch._export.utils import _materialize_cpp_cia_ops

        patch.setattr("torch._export.utils._materialize_cpp_cia_ops", functools.cache(_materialize_cpp_cia_ops))
        yield
        return
    yield
