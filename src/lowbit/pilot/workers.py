"""Trials on the workers of a cluster, behind a joblib backend; what the cluster gives up is given to it again.

Before that, workers are looked at: each has to see the run folder, and to have the same versions and user's modules.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import socket
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config

from lowbit import files
from lowbit.errors import DataError, LowbitError
from lowbit.pilot.alone import RETRIES, alone, given_up
from lowbit.pilot.locks import noted
from lowbit.pilot.record import Trial
from lowbit.pilot.shared import Do, Imports, Shared
from lowbit.pilot.task import Task

SEEN_WITHIN = 3.0  # seconds until a shared folder shows a new file everywhere


@contextlib.contextmanager
def cluster(address: str | None, *, timeout: float = 10) -> Iterator[None]:
    """Run trials on the workers of the Dask scheduler at the address; None changes nothing.

    Raises:
        DataError: `distributed` is not installed, or no scheduler answers.
    """
    if address is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError("--cluster needs the package distributed; pip install 'lowbit[cluster]'") from error
    try:
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no Dask scheduler answers at '{address}' ({files.one_line(error)}); expected tcp://host:8786, where "
            "`dask scheduler` runs"
        ) from error
    with client, parallel_config("dask", client=client, wait_for_workers_timeout=30):
        yield


def on_cluster(tasks: Sequence[Task], shared: Shared, do: Do, backend: Any) -> Iterator[Trial]:
    """Give the cluster what is left, and again if it gives up, until nothing comes of it `1 + RETRIES` times."""
    left, fruitless = {task.name: task for task in tasks}, 0
    where = shared.imports.folder
    needed = tuple(name for name in shared.imports.references if _found(name, where) is None)  # not `accuracy`
    shared = replace(shared, versions=dict(shared.versions), imports=Imports(needed, where.absolute()))
    while left:
        lost: object = None
        with _sent(shared, backend):
            as_they_come = getattr(backend, "supports_return_generator", False)
            how = "generator_unordered" if as_they_come else "list"
            parallel = Parallel(n_jobs=-1, batch_size=1, pre_dispatch="all", return_as=how)
            calls = [delayed(_there)(do, task, shared) for task in left.values()]
            for result in _or_lost(parallel, calls):
                if isinstance(result, Trial):
                    del left[result.name]
                    fruitless = -1
                    yield result
                elif isinstance(result, _Raised):
                    raise result.error
                else:
                    lost = result
        fruitless += 1
        if fruitless > RETRIES:
            why = files.one_line(lost) if isinstance(lost, BaseException) else f"the cluster returned {lost!r:.80}"
            yield from (given_up(task, fruitless, why) for task in left.values())
            return


def _or_lost(parallel: Any, calls: list[Any]) -> Iterator[object]:
    """Results, the last of which may be the exception that ended them."""
    results: Any = None
    while True:
        try:
            results = iter(parallel(calls)) if results is None else results
            result = next(results)
        except StopIteration:
            return
        except Exception as error:  # of the cluster: what a trial raises comes back as a `_Raised`
            yield error
            return
        try:
            yield result
        except GeneratorExit:  # what still runs is given up: joblib would warn of it
            with warnings.catch_warnings(), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                results.close()
            raise


@dataclass(frozen=True)
class _Raised:
    """An exception of a trial, told apart from those of the cluster."""

    error: Exception


def _there(do: Do, task: Task, shared: Shared) -> Trial | _Raised:
    try:
        # again, for one that came after the others were looked at, and where nobody looked before (Ray)
        if told := _fit(shared.folder, shared.run, shared.versions, shared.imports):
            return _Raised(DataError(f"worker {told}"))
        return alone(do, task, shared)
    except LowbitError as error:
        return _Raised(error)
    except Exception as error:  # a bug, with the traceback of where it happened
        return _Raised(RuntimeError("".join(traceback.format_exception(error))))


@contextlib.contextmanager
def _sent(shared: Shared, backend: Any) -> Iterator[None]:
    """On Dask, workers are looked at and sent what trials share, once and not with every trial."""
    client = getattr(backend, "client", None)
    if client is None:  # Ray, for one: the trials carry it, and look for the folder themselves
        yield
        return
    _check(client, shared)
    try:
        sending = parallel_config(_of_workers(type(backend))(client=client, scatter=[shared]))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        told = [files.one_line(error), *files.one_line(error.__cause__ or error).splitlines()][-1]
        raise DataError(f"model or data cannot be sent to workers ({told}); run the variants with --jobs 1") from error
    with sending:
        yield


def _of_workers(backend: Any) -> Any:
    """The backend for a single worker too, where joblib would rather run calls one after the other in this process."""

    class Workers(backend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> int:
            """At least two calls at once: the scheduler lets what is too much wait."""
            return max(2, int(super().effective_n_jobs(n_jobs)))

    return Workers


def _check(client: Any, shared: Shared) -> None:
    """Raise a DataError if there is no worker, or one that cannot do what this process can."""
    where = client.scheduler.address if client.scheduler else "the cluster"
    try:
        client.wait_for_workers(1, timeout=30)
        answers = client.run(_fit, shared.folder, shared.run, shared.versions, shared.imports, on_error="return")
    except Exception as error:
        raise DataError(
            f"the cluster at {where} has no workers that answer ({files.one_line(error)}); start some with "
            f"`dask worker {where} --nthreads 1`"
        ) from error
    for worker, said in answers.items():
        if said:
            told = said if isinstance(said, str) else f"{files.one_line(said)}; install lowbit there as it is here"
            raise DataError(f"worker {worker}: {told}")


def _fit(folder: Path, run: str, versions: Mapping[str, str], imports: Imports) -> str | None:
    """Why this worker cannot do trials of the run as its command would, after its host; None if it can."""
    told = _unseen(folder, run) or _other(versions)
    told = told or next((told for name in imports.references if (told := _found(name, imports.folder))), None)
    return told and f"on {socket.gethostname()}, {told}"


def _other(versions: Mapping[str, str]) -> str | None:
    """Which package has another version here than in the command."""
    for name, wanted in versions.items():
        try:
            here = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            here = "none"
        if here != wanted:
            return f"has {name} {here}, the command {wanted}, and figures depend on it; install the same"
    return None


def _unseen(folder: Path, run: str) -> str | None:
    """Whether this process cannot see the folder of the run, in words."""
    until = time.monotonic() + SEEN_WITHIN
    while True:
        with contextlib.suppress(OSError):
            if (note := noted(folder / ".lock")) and note.run == run:
                if os.access(folder, os.W_OK):
                    return None
                return f"cannot write to the run folder '{folder}'; let its user"
        if time.monotonic() > until:
            return f"cannot see the run folder '{folder}'; write it to a path that all workers share (--out)"
        time.sleep(0.2)


def _found(reference: str, folder: Path) -> str | None:
    """Why a reference cannot be resolved; None if it can."""
    try:
        files.resolve(reference, folder)
    except LowbitError as error:
        return str(error)
    return None
