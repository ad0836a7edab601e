"""What all trials of a run share, wherever they run: it travels to each process once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from lowbit import files
from lowbit.errors import LowbitError
from lowbit.pilot.record import Trial
from lowbit.pilot.task import Settings, Sources, Task


@dataclass(frozen=True)
class Imports:
    """Imports the user's modules when it is unpickled: a process of its own needs them before it meets the model."""

    references: tuple[str, ...]
    folder: Path

    def __reduce__(self) -> tuple[Callable[..., Imports], tuple[tuple[str, ...], Path]]:
        return _imported, (self.references, self.folder.resolve())


def _imported(references: tuple[str, ...], folder: Path) -> Imports:
    for reference in references:
        with contextlib.suppress(LowbitError):  # accuracy, or a model that a program built: nothing to import
            files.resolve(reference, folder)
    return Imports(references, folder)


@dataclass(frozen=True)
class Shared:
    """What all trials of a run share; `imports` stands first, because it has to be unpickled before the model.

    `run` names this run of the command, and `versions` are the packages that figures depend on.
    """

    imports: Imports
    model: nn.Module
    data: Sources
    settings: Settings
    folder: Path
    run: str
    versions: Mapping[str, str]

    def absolute(self) -> Shared:
        """The same with paths that hold in any folder."""
        its = self.settings
        folder, costs = (None if path is None else path.absolute() for path in (its.folder, its.costs))
        return replace(self, settings=replace(its, folder=folder, costs=costs), folder=self.folder.absolute())


Do = Callable[[Task, Shared, bool], Trial]  # does a trial, with bars or without
