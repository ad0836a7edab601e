"""Where trials run: in this process, in processes of their own, or on a cluster behind a joblib backend.

A trial gives the same figures everywhere: it runs alone in its process, with its threads pinned, and depends on its
arguments alone. A lock file says who works where, so that nothing runs twice at once:

    .lock                    of a run folder: one command at a time
    variants/<name>/.lock    of a trial: one process at a time; another one waits, and then reads what was found

The operating system frees a lock when its process ends, however it ends. A note that is still in a freed file therefore
tells of a process that was lost, and so a trial knows how often that happened to it in this run.

A lost process (killed, out of memory) costs its trial only, which is tried again, `RETRIES` times, and then recorded as
failed. Here every trial at once has a process to itself (loky's, as joblib starts them), so that losing one disturbs no
other. On a cluster the scheduler starts lost trials again; what it gives up is given to it once more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from joblib.parallel import get_active_backend
from torch import nn

from lowbit import files
from lowbit.errors import DataError, LowbitError
from lowbit.pilot.alone import alone
from lowbit.pilot.locks import holding, may_run, take
from lowbit.pilot.processes import in_processes
from lowbit.pilot.record import Trial
from lowbit.pilot.trial import Samples, Settings, Task
from lowbit.pilot.workers import on_cluster

_LOCAL = ("LokyBackend", "ThreadingBackend", "SequentialBackend", "MultiprocessingBackend")


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
    calibration: Samples
    train: Samples
    test: Samples
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


@contextlib.contextmanager
def only(folder: Path) -> Iterator[str]:
    """Hold the run folder for this command, and yield a name of the run that no other has.

    A lock that a dead process left is taken over if that was on this host, or if its system cannot say so.

    Raises:
        DataError: another command works in the folder, or one on another host did not end properly.
    """
    path, run = folder / ".lock", uuid.uuid4().hex
    descriptor, left, locks = take(path)
    who = "process {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?"} | left)
    if descriptor is None:
        raise DataError(f"run folder '{folder}' is in use ({who}); wait, stop it, or choose another folder with --out")
    elsewhere = left.get("host") != socket.gethostname()
    if left and may_run(left) and (elsewhere or not locks):
        os.close(descriptor)
        raise DataError(f"run folder '{folder}' may be in use ({who}); if that has ended, delete '{path}'")
    with holding(descriptor, path, {"run": run}):
        yield run


def elsewhere() -> Any | None:
    """The joblib backend of a cluster, where the caller's `joblib.parallel_config` has chosen one."""
    backend, _ = get_active_backend()
    return None if type(backend).__name__ in _LOCAL else backend


def run_all(tasks: Sequence[Task], shared: Shared, do: Do, *, jobs: int, progress: bool) -> Iterator[Trial]:
    """Do trials where they belong, and yield each when it is finished; on a cluster that is active, `jobs` is its own.

    Raises:
        DataError: the model cannot be sent to another process, or a worker cannot see the run folder.
    """
    backend = elsewhere()
    if backend is None and min(jobs, len(tasks)) <= 1:
        yield from (alone(do, task, shared, progress) for task in tasks)
        return
    tasks = [replace(task, folder=task.folder.absolute()) for task in tasks]
    if backend is None:
        yield from in_processes(tasks, shared.absolute(), do, min(jobs, len(tasks)))
    elif tasks:
        yield from on_cluster(tasks, shared.absolute(), do, backend)
