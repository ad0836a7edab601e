"""Where trials run: in this process, in processes of their own, or on a cluster behind a joblib backend.

A trial gives the same figures everywhere: it runs alone in its process, with its threads pinned, and depends on its
arguments alone. A lock file says who works where, so that nothing runs twice at once:

    .lock                    of a run folder: one command at a time
    variants/<name>/.lock    of a trial: one process at a time; another one waits, and then reads what was found

Whose process has ended, or shows no sign of life, has lost its lock (`locks.py`). The note that it left tells of it,
and so a trial knows how often that happened to it in this run.

A lost process (killed, out of memory) costs its trial only, which is tried again, `RETRIES` times, and then recorded as
failed. Here every trial at once has a process to itself (loky's, as joblib starts them), so that losing one disturbs no
other. On a cluster the scheduler starts lost trials again; what it gives up is given to it once more.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from joblib.parallel import get_active_backend

from lowbit import files
from lowbit.errors import DataError
from lowbit.pilot.alone import alone
from lowbit.pilot.locks import InUseError, claimed
from lowbit.pilot.processes import in_processes
from lowbit.pilot.record import Trial
from lowbit.pilot.shared import Do, Shared
from lowbit.pilot.task import Task
from lowbit.pilot.workers import on_cluster

_LOCAL = ("LokyBackend", "ThreadingBackend", "SequentialBackend", "MultiprocessingBackend")


@contextlib.contextmanager
def only(folder: Path) -> Iterator[str]:
    """Hold the run folder for this command, and yield a name of the run that no other has.

    A lock that a dead process left is taken over if that was on this host, or if its system cannot say so.

    Raises:
        DataError: another command works in the folder, or one on another host did not end properly.
    """
    path, run = folder / ".lock", uuid.uuid4().hex
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(claimed(path, run, wait=False))
        except InUseError as error:
            if error.surely:
                remedy = "wait, stop it, or choose another folder with --out"
                raise DataError(f"run folder '{folder}' is in use ({error}); {remedy}") from error
            raise DataError(
                f"run folder '{folder}' may be in use ({error}); if that has ended, delete '{path}'"
            ) from error
        files.sweep(folder)
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
    if backend is None and (jobs == 1 or all(task.recipe is None for task in tasks)):  # nothing goes on without float
        yield from (alone(do, task, shared, progress) for task in tasks)
        return
    tasks = [replace(task, folder=task.folder.absolute()) for task in tasks]
    if backend is None:
        yield from in_processes(tasks, shared.absolute(), do, min(jobs, len(tasks)))
    elif tasks:
        yield from on_cluster(tasks, shared.absolute(), do, backend)
