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
import datetime
import json
import os
import pickle
import platform
import queue
import re
import socket
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits
from torch import nn

from lowbit import files
from lowbit.errors import DataError, LowbitError
from lowbit.pilot.record import Trial
from lowbit.pilot.trial import Samples, Settings, Task

try:
    import fcntl
except ImportError:  # Windows: notes in lock files are all there is
    fcntl = None  # type: ignore[assignment]

RETRIES = 2
SEEN_WITHIN = 3.0  # seconds until a shared folder shows a new file everywhere
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # for libraries that load later
_LOCAL = ("LokyBackend", "ThreadingBackend", "SequentialBackend", "MultiprocessingBackend")
_REMEDY = "killed, or out of memory; give it more, or run fewer variants at once"
_alone = threading.Lock()  # torch's seed and threads, and warnings, belong to a process: one trial in it at a time


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


# Locks


def _left(descriptor: int) -> dict[str, Any]:
    """What the lock file says; nothing if it is new."""
    with contextlib.suppress(ValueError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        said = json.loads(os.read(descriptor, 4096))
        if isinstance(said, dict):
            return said
    return {}


def _alive(left: dict[str, Any]) -> bool:
    """Whether the process of a note may be running: on this host it is looked for, of another one nothing is known."""
    if left.get("host") != socket.gethostname():
        return bool(left)
    try:
        os.kill(int(left["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        pass
    return int(left["pid"]) != os.getpid()


def _try(path: Path) -> tuple[int | None, dict[str, Any], bool]:
    """An open lock file, or None where another process holds it; the note in it; whether the system really locks."""
    while True:
        descriptor, locks = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), fcntl is not None
        try:
            if locks:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = _left(descriptor)
            os.close(descriptor)
            return None, left, True
        except OSError:  # a file system without locks
            locks = False
        if _same(descriptor, path):
            return descriptor, _left(descriptor), locks
        os.close(descriptor)  # its holder has just removed it: this one is no lock any more


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _holding(descriptor: int, path: Path, note: dict[str, Any]) -> Iterator[None]:
    said = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now(), **note}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(said).encode())
    try:
        yield
    finally:
        if fcntl is None:  # Windows removes no open file
            os.close(descriptor)
        path.unlink(missing_ok=True)
        if fcntl is not None:  # after it is gone, so that nobody takes what is about to be removed
            os.close(descriptor)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@contextlib.contextmanager
def only(folder: Path) -> Iterator[str]:
    """Hold the run folder for this command, and yield a name of the run that no other has.

    A lock that a dead process left is taken over if that was on this host, or if its system cannot say so.

    Raises:
        DataError: another command works in the folder, or one on another host did not end properly.
    """
    path, run = folder / ".lock", uuid.uuid4().hex
    descriptor, left, locks = _try(path)
    who = "process {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?"} | left)
    if descriptor is None:
        raise DataError(f"run folder '{folder}' is in use ({who}); wait, stop it, or choose another folder with --out")
    elsewhere = left.get("host") != socket.gethostname()
    if left and _alive(left) and (elsewhere or not locks):
        os.close(descriptor)
        raise DataError(f"run folder '{folder}' may be in use ({who}); if that has ended, delete '{path}'")
    with _holding(descriptor, path, {"run": run}):
        yield run


@contextlib.contextmanager
def _claimed(task: Task, run: str) -> Iterator[tuple[int, str]]:
    """Hold a trial's folder; yields how many processes were lost over it in this run, and which was the last."""
    task.folder.mkdir(parents=True, exist_ok=True)
    path = task.folder / ".lock"
    while (found := _try(path))[0] is None:  # a process that outlived its command, or a worker that was given up
        time.sleep(0.2)
    descriptor, left, _ = found
    assert descriptor is not None
    lost = int(left.get("lost", 0)) + 1 if left.get("run") == run else 0
    with _holding(descriptor, path, {"run": run, "lost": lost}):
        yield lost, f"process {left.get('pid')} on {left.get('host')}"


# One trial


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """Let torch, BLAS and OpenMP use so many threads, and libraries that are loaded meanwhile."""
    before, environment = torch.get_num_threads(), {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(count)))
    try:
        with threadpool_limits(limits=count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def alone(do: Do, task: Task, shared: Shared, progress: bool = False) -> Trial:
    """Do a trial with its threads pinned, while no other process does the same one and no other runs in this process.

    A trial that was lost too often in this run is a failed one.
    """
    with _alone, pinned(shared.settings.threads), _claimed(task, shared.run) as (lost, last):
        if lost > RETRIES:
            return _given_up(task, lost, f"the last was {last}")
        with parallel_config("sequential"):  # what a trial does in parallel stays in its process
            return do(task, shared, progress)


def _given_up(task: Task, times: int, why: str) -> Trial:
    error = f"its process was lost {times} times ({why}): {_REMEDY}"
    trial = Trial(task.name, task.recipe.to_dict() if task.recipe else None, task.fingerprint, "failed", error=error)
    task.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(task.folder / "trial.json", asdict(trial))
    return trial


# Many


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
        yield from _in_processes(tasks, shared.absolute(), do, min(jobs, len(tasks)))
    elif tasks:
        yield from _on_cluster(tasks, shared.absolute(), do, backend)


class _Process:
    """A process that does one trial after the other; lost, another takes its place."""

    def __init__(self, threads: int) -> None:
        self._environment = dict.fromkeys(_THREADS, str(threads))
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    def run(self, do: Do, task: Task, shared: Shared) -> Trial:
        for _ in range(1 + RETRIES):
            self._pool = ProcessPoolExecutor(1, env=self._environment) if self._pool is None else self._pool
            try:
                trial: Trial = self._pool.submit(alone, do, task, shared).result()
            except TerminatedWorkerError as error:
                if self._closed:
                    raise
                why = ", ".join(re.findall(r"[A-Z]+\(-?\d+\)", str(error))) or files.one_line(error)
                self._end()
            else:
                return trial
        return _given_up(task, 1 + RETRIES, why)

    def _end(self, kill: bool = True) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=kill)

    def close(self, kill: bool) -> None:
        self._closed = True
        self._end(kill)


def _in_processes(tasks: Sequence[Task], shared: Shared, do: Do, jobs: int) -> Iterator[Trial]:
    every = [_Process(shared.settings.threads) for _ in range(jobs)]
    free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    for process in every:
        free.put(process)

    def one(task: Task) -> Trial:
        process = free.get()
        try:
            return process.run(do, task, shared)
        except (BrokenProcessPool, pickle.PicklingError) as error:
            # the cause is a traceback, as text, from where it happened
            told = [files.one_line(error), *str(error.__cause__ or "").strip('\n"').splitlines()][-1]
            raise DataError(f"the variants cannot run in {jobs} processes ({told}); run them with --jobs 1") from error
        finally:
            free.put(process)

    parallel, done = Parallel(n_jobs=jobs, backend="threading", batch_size=1, return_as="generator_unordered"), False
    try:
        yield from parallel(delayed(one)(task) for task in tasks)
        done = True
    finally:
        for process in every:
            process.close(kill=not done)


# A cluster


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


def _on_cluster(tasks: Sequence[Task], shared: Shared, do: Do, backend: Any) -> Iterator[Trial]:
    """Give the cluster what is left, and again if it gives up, until nothing comes of it `1 + RETRIES` times."""
    left, fruitless = {task.name: task for task in tasks}, 0
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
            yield from (_given_up(task, fruitless, why) for task in left.values())
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
        if told := _unseen(shared.folder, shared.run):
            return _Raised(DataError(f"worker on {socket.gethostname()}: {told}"))
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
        imports = shared.imports
        needed = [name for name in imports.references if _found(name, imports.folder) is None]
        arguments = (shared.folder, shared.run, dict(shared.versions), needed, imports.folder.absolute())
        answers = client.run(_fit, *arguments, on_error="return")
    except Exception as error:
        raise DataError(
            f"the cluster at {where} has no workers that answer ({files.one_line(error)}); start some with "
            f"`dask worker {where} --nthreads 1`"
        ) from error
    for worker, said in answers.items():
        if said:
            told = said if isinstance(said, str) else f"{files.one_line(said)}; install lowbit there as it is here"
            raise DataError(f"worker {worker}: {told}")


def _found(reference: str, folder: Path) -> str | None:
    """Why a reference cannot be resolved; None if it can."""
    try:
        files.resolve(reference, folder)
    except LowbitError as error:
        return str(error)
    return None


def _unseen(folder: Path, run: str) -> str | None:
    """Whether this process cannot see the folder of the run, in words."""
    until = time.monotonic() + SEEN_WITHIN
    while True:
        with contextlib.suppress(OSError, ValueError):
            if json.loads((folder / ".lock").read_bytes())["run"] == run:
                if os.access(folder, os.W_OK):
                    return None
                return f"cannot write to the run folder '{folder}'; let its user"
        if time.monotonic() > until:
            return f"cannot see the run folder '{folder}'; write it to a path that all workers share (--out)"
        time.sleep(0.2)


def _fit(folder: Path, run: str, versions: dict[str, str], references: list[str], place: Path) -> str | None:
    """Why this worker cannot do trials of the run as its command would; None if it can."""
    if told := _unseen(folder, run):
        return f"on {socket.gethostname()}, {told}"
    for name, wanted in versions.items():
        try:
            here = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            here = "none"
        if here != wanted:
            return f"has {name} {here}, the command {wanted}, and figures depend on it; install the same"
    return next((told for name in references if (told := _found(name, place))), None)
