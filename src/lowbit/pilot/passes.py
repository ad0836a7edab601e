"""How long a batch through the float model takes on this machine, and through a student; with training, and without."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lowbit.batches import call, output_tensor
from lowbit.errors import LowbitError
from lowbit.pilot.outputs import example
from lowbit.pilot.task import Samples, Task
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

_LONG = 1.0  # seconds that timing one thing may take, about


class Watch:
    """Times passes of the float model and of a student on this machine, each batch size once."""

    def __init__(self, model: nn.Module, tasks: Sequence[Task], data: Samples) -> None:
        recipe = next((t.recipe for t in tasks if t.recipe and t.recipe.rules), Recipe.uniform("int8", "int8"))
        self._data, self._model = data, copy.deepcopy(model).eval()
        began = time.perf_counter()
        try:
            self._student = quantize(model, recipe)
        except LowbitError:  # one that a search, a chain or an output makes fit
            self._student = quantize(model, Recipe.uniform("int8", "int8"))
        self.quantizing = time.perf_counter() - began
        calibrate(self._student, [example(data, 8)], progress=False)
        self._known: dict[tuple[bool, bool, int], float] = {}

    def seconds(self, size: int, *, student: bool = False, training: bool = False) -> float:
        """A batch of `size` samples through a network; a training step of it, with Adam, if `training`.

        Large batches that would take long are not run: a part is, and its time is multiplied.
        """
        key = (student, training, size)
        if key not in self._known:
            part = min(size, 8)
            found = self._timed(part, student, training)
            if part < size:
                slow = found * size / part > _LONG
                found = found * size / part if slow else self._timed(size, student, training)
            self._known[key] = found
        return self._known[key]

    def _timed(self, size: int, student: bool, training: bool) -> float:
        batch, network = example(self._data, size), self._student if student else self._model
        if not training:
            with torch.no_grad():
                return _least(lambda: call(network, batch))
        network = copy.deepcopy(network).train()
        learning = [p.requires_grad_() for p in network.parameters() if p.is_floating_point()]
        optimizer = torch.optim.Adam(learning, 1e-6)

        def step() -> None:
            optimizer.zero_grad()
            output_tensor(call(network, batch)).float().square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return _least(step)


def _least(do: Callable[[], object]) -> float:
    """The shortest of some calls in seconds, on the threads that are set or on one.

    Threads that wait for each other on a busy machine would be a multiple slower than what the pilot takes.
    """
    asked = torch.get_num_threads()
    found = _shortest(do)
    if asked > 1:
        torch.set_num_threads(1)
        found = min(found, _shortest(do))
        torch.set_num_threads(asked)
    return found


def _shortest(do: Callable[[], object]) -> float:
    """The shortest of some calls after one that does not count; fewer where they are long."""
    times, began = list[float](), time.perf_counter()
    do()
    while len(times) < 5 and (not times or time.perf_counter() - began < _LONG):
        start = time.perf_counter()
        do()
        times.append(time.perf_counter() - start)
    return min(times)
