"""One trial in this process: with its threads pinned, and while no other process does the same one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import torch
from joblib import parallel_config
from threadpoolctl import threadpool_limits

from lowbit import files
from lowbit.pilot.locks import holding, take
from lowbit.pilot.record import Trial
from lowbit.pilot.shared import Do, Shared
from lowbit.pilot.task import Task

RETRIES = 2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # for libraries that load later
_REMEDY = "killed, or out of memory; give it more, or run fewer variants at once"
_turn = threading.Lock()  # torch's seed and threads, and warnings, belong to a process: one trial in it at a time


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """Let torch, BLAS and OpenMP use so many threads, and libraries that are loaded meanwhile."""
    before, environment = torch.get_num_threads(), {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(count)))
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
    with _turn, pinned(shared.settings.threads), _claimed(task, shared.run) as (lost, last):
        if lost > RETRIES:
            return given_up(task, lost, f"the last was {last}")
        with parallel_config("sequential"):  # what a trial does in parallel stays in its process
            return do(task, shared, progress)


def given_up(task: Task, times: int, why: str) -> Trial:
    """The failed trial of a task whose process was lost so many times, written into its folder."""
    error = f"its process was lost {times} times ({why}): {_REMEDY}"
    trial = Trial(task.name, task.recipe.to_dict() if task.recipe else None, task.fingerprint, "failed", error=error)
    task.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(task.folder / "trial.json", asdict(trial))
    return trial


@contextlib.contextmanager
def _claimed(task: Task, run: str) -> Iterator[tuple[int, str]]:
    """Hold a trial's folder; yields how many processes were lost over it in this run, and which was the last."""
    task.folder.mkdir(parents=True, exist_ok=True)
    path = task.folder / ".lock"
    while (found := take(path))[0] is None:  # a process that outlived its command, or a worker that was given up
        time.sleep(0.2)
    descriptor, left, _ = found
    assert descriptor is not None
    lost = int(left.get("lost", 0)) + 1 if left.get("run") == run else 0
    with holding(descriptor, path, {"run": run, "lost": lost}):
        yield lost, f"process {left.get('pid')} on {left.get('host')}"
