"""One trial in this process: with its threads pinned, and while no other process does the same one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict

import torch
from joblib import parallel_config
from threadpoolctl import threadpool_limits

from lowbit import files
from lowbit.pilot.locks import claimed
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

    A trial that was lost too often in this run is a failed one. A process that stood still for so long that another one
    took the trial over waits for it, and returns what that one found.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    while True:
        # what holds it may be a process that outlived its command, or a worker that was given up
        with _turn, pinned(shared.settings.threads), claimed(task.folder / ".lock", shared.run, wait=True) as claim:
            if claim.note.lost > RETRIES:
                trial = given_up(task, claim.note.lost, f"the last was {claim.left}")
            else:
                with parallel_config("sequential"):  # what a trial does in parallel stays in its process
                    trial = do(task, shared, progress)
            if claim.stands():
                return trial


def given_up(task: Task, times: int, why: str) -> Trial:
    """The failed trial of a task whose process was lost so many times, written into its folder."""
    error = f"its process was lost {times} times ({why}): {_REMEDY}"
    trial = Trial(task.name, task.recipe.to_dict() if task.recipe else None, task.fingerprint, "failed", error=error)
    task.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(task.folder / "trial.json", asdict(trial))
    return trial
