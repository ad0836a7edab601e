"""Trials side by side on this machine, each in a process to itself, so that losing one disturbs no other."""

from __future__ import annotations

import pickle
import queue
import re
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lowbit import files
from lowbit.errors import DataError
from lowbit.pilot.alone import RETRIES, THREADS, alone, given_up
from lowbit.pilot.record import Trial
from lowbit.pilot.shared import Do, Shared
from lowbit.pilot.task import Task


class _Process:
    """A process that does one trial after the other; lost, another takes its place."""

    def __init__(self, threads: int) -> None:
        self._environment = dict.fromkeys(THREADS, str(threads))
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
        return given_up(task, 1 + RETRIES, why)

    def _end(self, kill: bool = True) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=kill)

    def close(self, kill: bool) -> None:
        self._closed = True
        self._end(kill)


def in_processes(tasks: Sequence[Task], shared: Shared, do: Do, jobs: int) -> Iterator[Trial]:
    """Do trials in so many processes, and yield each when it is finished.

    Raises:
        DataError: the model cannot be sent to another process.
    """
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
