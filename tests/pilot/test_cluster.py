"""Trials on a cluster and in processes: lost ones are tried again, nothing runs twice, and figures are the same."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import yaml

import lowbit as lb
from lowbit import data, files, models
from lowbit.pilot import alone, executor, locks, workers
from lowbit.pilot import run as pilot_run
from lowbit.pilot.record import Run, Trial, read
from lowbit.pilot.run import run_pilot
from lowbit.pilot.shared import Imports
from lowbit.pilot.spec import load_spec
from lowbit.pilot.task import Task

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(54, 4)

    def forward(self, x):
        return 10 * self.head(self.flatten(self.relu(self.conv2(self.relu(self.conv1(x))))))


def build():
    torch.manual_seed(3)
    return Net()
"""

# kills the process that it runs in, where a file beside it says so: `die.<variant>` holds how often
METRIC = """
import json
import os
import signal
from pathlib import Path

HERE = Path(__file__).parent


def closeness(outputs, labels):
    for left in HERE.glob("die.*"):
        times, run = int(left.read_text().split()[0]), Path(left.read_text().split()[1])
        lock = run / "variants" / left.name.removeprefix("die.") / ".lock"
        if times and lock.exists() and json.loads(lock.read_text())["pid"] == os.getpid():
            left.write_text(f"{times - 1} {run}")
            os.kill(os.getpid(), signal.SIGKILL)
    return (outputs.argmax(1) == labels).mean()
"""

LOW = {"weights": "int2", "activations": "int4", "level": "fast"}
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {"calibration": {"source": "calibration.npz"}, "test": {"source": "test.npz"}},
    "kpi": {"metric": "metric.py:closeness", "minimum": 0.5},
    "runtime": {"batches": [1]},
    "variants": [
        {"name": "w8a8", "weights": "int8", "activations": "int8", "level": "fast"},
        {"name": "distilled", **LOW, "distill": {"epochs": 2, "batch_size": 16, "crop": 1}},
        {"name": "w4a8", "weights": "int4", "activations": "int8", "level": "fast"},
    ],
}
NAMES = ("float", "w8a8", "distilled", "w4a8")


def measure(project: Path, folder: Path, *, jobs: int = 1, say: Any = lambda line: None) -> Run:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, spec.weights, project)
    calibration, test = (data.open_data(name, folder=project) for name in ("calibration.npz", "test.npz"))
    return run_pilot(spec, model, calibration, test, folder, base=project, jobs=jobs, say=say, progress=False)


def settled(trial: Trial) -> Trial:
    """The trial without what a clock decides."""
    row = trial.distillation
    if row is not None:
        row = replace(row, epochs=tuple(replace(epoch, seconds=0.0) for epoch in row.epochs))
    return replace(trial, latencies=(), seconds=0.0, distillation=row)


def hashes(folder: Path) -> dict[str, str]:
    return {path.parent.name: files.sha256(path) for path in sorted(folder.glob("variants/*/model.onnx"))}


def same(run: Run, folder: Path, undisturbed: tuple[Run, Path]) -> None:
    """Scores, verdicts, records and files are those of the single process, and nothing is left of the work."""
    first, other = undisturbed
    assert [t.name for t in run.trials] == [*NAMES]
    assert [*map(settled, run.trials)] == [*map(settled, first.trials)]
    assert all(t.latencies for t in run.trials)
    assert hashes(folder) == hashes(other)
    assert [*folder.rglob(".*")] == []


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, data whose labels are its own predictions, a deadly metric, and a pilot file."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    (folder / "metric.py").write_text(METRIC)
    inputs = torch.randn(240, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = models.load("net.py:build", folder=folder)(inputs).argmax(1)
    np.savez(folder / "test.npz", inputs=inputs[:120].numpy(), labels=labels[:120].numpy())
    np.savez(folder / "calibration.npz", inputs=inputs[120:].numpy())
    (folder / "pilot.yaml").write_text(yaml.safe_dump(PILOT))
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return measure(project, folder), folder


@pytest.fixture
def dying(project: Path) -> Iterator[Any]:
    """Lets the process that measures a variant be killed so many times; returns where the rest is counted."""

    def die(folder: Path, variant: str, times: int) -> Path:
        (project / f"die.{variant}").write_text(f"{times} {folder}")
        return project / f"die.{variant}"

    yield die
    for path in project.glob("die.*"):
        path.unlink()


@functools.cache
def loaded() -> ForkServerContext:
    """Processes of a server that has imported, once, what each of them would import for seconds."""
    forks = multiprocessing.get_context("forkserver")
    wanted = ["distributed.nanny", "onnxscript.function_libs.torch_lib.ops", "onnxruntime", "sklearn.metrics"]
    forks.set_forkserver_preload([*wanted, *(name for name in sys.modules if name.startswith("lowbit."))])
    forkserver.ensure_running()
    return forks


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler with two workers, in processes of their own."""
    distributed = pytest.importorskip("distributed")
    loaded()
    with (
        pytest.importorskip("dask").config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as found,
    ):
        yield found


# A cluster


def test_cluster_gives_the_figures_of_one_process_though_a_worker_is_killed(
    cluster: Any, project: Path, undisturbed: tuple[Run, Path], dying: Any, tmp_path: Path
) -> None:
    left = dying(tmp_path / "run", "distilled", 1)
    with workers.cluster(cluster.scheduler_address):
        run = measure(project, tmp_path / "run")
    assert left.read_text().startswith("0 ")
    same(run, tmp_path / "run", undisturbed)


@pytest.mark.slow  # half a minute, because workers start six times
def test_variant_that_kills_its_workers_fails_alone(
    cluster: Any, project: Path, undisturbed: tuple[Run, Path], dying: Any, tmp_path: Path
) -> None:
    left = dying(tmp_path / "run", "w8a8", 9)
    with workers.cluster(cluster.scheduler_address):
        run = measure(project, tmp_path / "run")
    assert left.read_text().startswith("6 ")
    assert [t.verdict == "failed" for t in run.trials] == [False, True, False, False]
    assert "its process was lost 3 times (the last was process " in str(run.trials[1].error)
    assert [settled(t) for t in run.trials[2:]] == [settled(t) for t in undisturbed[0].trials[2:]]


def test_worker_that_cannot_see_the_run_folder_is_named(
    cluster: Any, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder of that name is another one, as where every machine has its own disk."""

    @contextlib.contextmanager
    def of_another_machine(folder: Path) -> Iterator[str]:
        yield "a run that no lock file tells of"

    monkeypatch.setattr(executor, "only", of_another_machine)
    where = r"worker tcp://\S+: on \S+, cannot see the run folder '.*/run'; write it to a path that all workers share"
    with workers.cluster(cluster.scheduler_address), pytest.raises(lb.LowbitError, match=where):
        measure(project, tmp_path / "run")


def test_single_worker_does_not_leave_trials_to_the_command() -> None:
    """With one call at a time joblib would run them in the calling process."""

    class One:
        def effective_n_jobs(self, n_jobs: int) -> int:
            return 1

    assert workers._of_workers(One)().effective_n_jobs(-1) == 2


def test_no_scheduler_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    for given in (address, "nonsense://x"):
        with pytest.raises(lb.LowbitError, match=f"no Dask scheduler answers at '{given}'") as caught:
            contextlib.ExitStack().enter_context(workers.cluster(given, timeout=1))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("versions", "references", "told"),
    [
        ({"python": "2.7"}, [], "has python 3.*, the command 2.7, and figures depend on it; install the same"),
        ({"nosuchpackage": "1"}, [], "has nosuchpackage none, the command 1"),
        ({}, ["elsewhere.py:build"], r"reference 'elsewhere.py:build': cannot read"),
    ],
)
def test_worker_that_would_not_do_the_same_is_told(
    versions: dict[str, str], references: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each trial: a worker may come, or be started again, after all were looked at, and on Ray nobody looks."""

    def sent(run: str, versions: dict[str, str], *references: str) -> Any:
        return SimpleNamespace(folder=tmp_path, run=run, versions=versions, imports=Imports(references, tmp_path))

    def done(*args: object) -> Trial:
        return Trial("one", None, "", "misses")

    task = Task("one", tmp_path / "one", "", None)
    monkeypatch.setattr(workers, "alone", done)
    with executor.only(tmp_path) as run:
        assert isinstance(workers._there(done, task, sent(run, {})), Trial)
        raised = workers._there(done, task, sent(run, versions, *references))
    assert isinstance(raised, workers._Raised)
    assert isinstance(raised.error, lb.LowbitError)
    assert re.match(rf"worker on {re.escape(socket.gethostname())}, {told}", str(raised.error))


# Processes here


@pytest.mark.slow  # the one on a cluster is quick enough
def test_lost_process_costs_its_trial_only(
    project: Path, undisturbed: tuple[Run, Path], dying: Any, tmp_path: Path
) -> None:
    left, lines = dying(tmp_path / "run", "distilled", 1), list[str]()
    run = measure(project, tmp_path / "run", jobs=2, say=lines.append)
    assert left.read_text().startswith("0 ")
    assert sorted(line.split()[0] for line in lines) == sorted(NAMES)
    same(run, tmp_path / "run", undisturbed)


def test_trial_that_was_lost_too_often_in_this_run_is_a_failed_one(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dead processes left tells of them; those of earlier runs, as when a user stops the command, do not count."""
    monkeypatch.setattr("uuid.uuid4", lambda: type("U", (), {"hex": "this-run-0000"}))
    monkeypatch.setattr(locks, "LOOKS", 2)
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[1], folder)
    for name, of, lost in (("w8a8", "this-run-0000", 1), ("distilled", "this-run-0000", 2), ("w4a8", "another", 2)):
        (folder / "variants" / name / "trial.json").unlink()
        note = {"host": "far.away", "pid": 77, "since": "", "run": of, "lost": lost}
        (folder / "variants" / name / ".lock").write_text(json.dumps(note))
    run = measure(project, folder)
    assert [t.verdict == "failed" for t in run.trials] == [False, False, True, False]
    assert "its process was lost 3 times (the last was process 77 on far.away): killed" in str(run.trials[2].error)
    assert [*folder.rglob(".*")] == []


@pytest.mark.slow  # half a minute, because processes start six times
def test_lost_processes_cost_their_trials_only(
    project: Path, undisturbed: tuple[Run, Path], dying: Any, tmp_path: Path
) -> None:
    once, always = dying(tmp_path / "run", "distilled", 1), dying(tmp_path / "run", "w4a8", 9)
    lines: list[str] = []
    run = measure(project, tmp_path / "run", jobs=2, say=lines.append)
    assert (once.read_text()[:2], always.read_text()[:2]) == ("0 ", "6 ")
    assert sorted(line.split()[0] for line in lines) == sorted(NAMES)
    assert run.trials[3].error == (
        "its process was lost 3 times (SIGKILL(-9)): killed, or out of memory; give it more, or run fewer variants at "
        "once"
    )
    assert read(Trial, tmp_path / "run/variants/w4a8/trial.json").verdict == "failed"
    always.unlink()
    same(measure(project, tmp_path / "run"), tmp_path / "run", undisturbed)  # what failed is tried again


def test_any_joblib_backend_is_a_cluster(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows no client and returns all results at the end, as Ray's."""
    seen: list[int] = []

    class Other(joblib._parallel_backends.ThreadingBackend):  # type: ignore[misc]
        supports_return_generator = False

        def submit(self, func: Any, callback: Any = None) -> Any:
            seen.append(len(func.items))
            return super().submit(func, callback)

    joblib.register_parallel_backend("other", Other)
    with joblib.parallel_config("other", n_jobs=2):
        run = measure(project, tmp_path / "run")
    assert seen == [1, 1, 1]  # one trial to a call, and the float baseline here
    same(run, tmp_path / "run", undisturbed)


def test_cluster_that_gives_up_is_asked_again_and_then_told_of(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(joblib._parallel_backends.ThreadingBackend):  # type: ignore[misc]
        asked = 0

        def submit(self, func: Any, callback: Any = None) -> Any:
            Lost.asked += 1
            raise ConnectionError("the head node is gone")

    joblib.register_parallel_backend("lost", Lost)
    with joblib.parallel_config("lost", n_jobs=1):
        run = measure(project, tmp_path / "run")
    assert Lost.asked >= 3
    assert [t.verdict == "failed" for t in run.trials] == [False, True, True, True]
    assert "lost 3 times (ConnectionError: the head node is gone)" in str(run.trials[1].error)


def test_error_of_a_trial_on_a_cluster_is_its_own(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: Any, *args: Any, **how: Any) -> Trial:
        if task.recipe is None:
            return Trial(task.name, None, task.fingerprint, "misses")
        raise ZeroDivisionError("a bug")

    joblib.register_parallel_backend("threads", type("Threads", (joblib._parallel_backends.ThreadingBackend,), {}))
    monkeypatch.setattr(pilot_run, "run_trial", broken)
    with joblib.parallel_config("threads", n_jobs=1), pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        measure(project, tmp_path / "run")


def test_last_trial_that_is_left_has_a_process_of_its_own_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would take the command with it, each time that it is started again."""
    here, apart = list[str](), list[str]()

    def beside(tasks: Sequence[Task], shared: Any, do: Any, jobs: int) -> list[Trial]:
        apart.extend(f"{task.name} of {jobs}" for task in tasks)
        return []

    monkeypatch.setattr(executor, "in_processes", beside)
    monkeypatch.setattr(executor, "alone", lambda do, task, *_: here.append(task.name))
    float_, int4 = Task("float", tmp_path, "", None), Task("int4", tmp_path, "", lb.Recipe.uniform("int4", None))
    for tasks, jobs in (([float_], 4), ([int4], 4), ([int4], 1), ([], 4)):
        with joblib.parallel_config("loky"):
            [*executor.run_all(tasks, SimpleNamespace(absolute=lambda: None), print, jobs=jobs, progress=False)]  # type: ignore[arg-type]
    assert (here, apart) == (["float", "int4"], ["int4 of 1"])


# Threads


def test_threads_are_pinned_while_a_trial_runs_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    with alone._turn:  # no thread of an earlier test is at a trial meanwhile
        monkeypatch.setenv("MKL_NUM_THREADS", "7")
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        before = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
        with alone.pinned(2):
            assert torch.get_num_threads() == 2
            assert max(pool["num_threads"] for pool in threadpool_info()) == 2  # a library may have fewer to begin with
            assert (os.environ["MKL_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]) == ("2", "2")
        assert torch.get_num_threads() == 1
        assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == before
        assert os.environ["MKL_NUM_THREADS"] == "7"
        assert "OPENBLAS_NUM_THREADS" not in os.environ


# Locks


HOLDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background ignores
import contextlib, time
from lowbit.pilot.executor import only
with contextlib.suppress(KeyboardInterrupt), only(folder):
    inside.send(True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[ForkServerProcess]:
    """A process that works in the folder until it is stopped."""
    forks = loaded()
    told, inside = forks.Pipe(duplex=False)
    process = forks.Process(target=exec, args=(HOLDING, {"folder": folder, "inside": inside}))
    with told, inside:
        process.start()
        assert told.poll(60)
        yield process
        process.kill()
        process.join()


def test_second_command_in_a_folder_is_refused_and_a_dead_one_is_not_in_the_way(project: Path, tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        told = rf"'{tmp_path}' is in use \(process {process.pid} on {socket.gethostname()}, since 20.*--out"
        with pytest.raises(lb.LowbitError, match=told):
            measure(project, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
        process.kill()
        process.join()
        assert (tmp_path / ".lock").exists()
        with executor.only(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert not (tmp_path / ".lock").exists()


def test_interrupted_command_leaves_no_lock(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        assert (tmp_path / ".lock").exists()
        os.kill(int(process.pid or 0), signal.SIGINT)
        process.join()
        assert not (tmp_path / ".lock").exists()


def test_lock_of_another_host_is_for_the_user_to_delete(tmp_path: Path) -> None:
    note = {"host": "another.host", "pid": os.getpid(), "since": "2026-01-01T00:00:00+00:00", "run": "x"}
    (tmp_path / ".lock").write_text(json.dumps(note))
    with (
        pytest.raises(lb.LowbitError, match=r"\(process \d+ on another.host, since 2026.*if that has ended, delete"),
        executor.only(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / ".lock").read_text()) == note


GOOD = {"host": socket.gethostname(), "pid": 1, "since": "2026", "run": "x", "lost": 0, "locks": False}
DAMAGED = [
    *("", "{", "[1]", "3", "\0", '"' * 9000),
    *(json.dumps(GOOD | {"pid": pid}) for pid in (None, 10**30, 2**31, 0, -1, "7", 7.5, True)),
    *(json.dumps(GOOD | {"lost": lost}) for lost in ("x", None, -1, 10**30)),
    *(json.dumps(GOOD | {"host": host}) for host in (None, "a\nb", "x" * 999)),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_note_that_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Where the system says that its lock is free it is taken over; else the user is told which file to delete."""
    path = tmp_path / ".lock"
    path.write_text(content)
    with executor.only(tmp_path) as run:
        assert json.loads(path.read_text())["run"] == run
    path.write_text(content)
    monkeypatch.setattr("fcntl.flock", unsupported)
    told = f"may be in use .its note cannot be read.; if that has ended, delete '{path}'"
    with pytest.raises(lb.LowbitError, match=told), executor.only(tmp_path):
        pass
    assert path.read_text() == content


def test_what_a_killed_command_was_writing_is_swept(tmp_path: Path) -> None:
    left = [tmp_path / name for name in (".costs.0123abcd.json", ".run.89abcdef.json", ".name.0123abcd")]
    others = [tmp_path / name for name in (".hidden", ".my.settings.json", "run.json")]
    for path in (*left, *others):
        path.write_text("{")
    with executor.only(tmp_path):
        assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / ".lock"])


def unsupported(*args: object) -> None:
    """A file system without locks."""
    raise OSError(95, "Operation not supported")


def test_file_system_without_locks_goes_by_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holding(tmp_path) as process:
        monkeypatch.setattr("fcntl.flock", unsupported)
        with pytest.raises(lb.LowbitError, match=f"may be in use .process {process.pid} on"), executor.only(tmp_path):
            pass
        process.kill()
        process.join()
        with executor.only(tmp_path):
            pass
        assert not (tmp_path / ".lock").exists()


def test_process_that_outlives_its_command_is_waited_for(project: Path, tmp_path: Path) -> None:
    """As a trial's process does when the command is killed: what it ends with is kept, and not measured twice."""
    place = tmp_path / "variants/float"
    place.mkdir(parents=True)
    with holding(place) as process:
        seconds = 1.0
        began = time.monotonic()
        threading.Timer(seconds, process.kill).start()
        measure(project, tmp_path)
        assert time.monotonic() - began > seconds
    assert not (place / ".lock").exists()


def trial(folder: Path, do: Any) -> Trial:
    """What comes of one trial in this process, in a run named "x"."""
    shared: Any = SimpleNamespace(run="x", settings=SimpleNamespace(threads=1))
    return alone.alone(do, Task("one", folder, "", None), shared)


def found(score: str) -> Trial:
    return Trial("one", None, score, "misses")


@pytest.mark.parametrize("without", ["flock", "fcntl"])
def test_nothing_runs_twice_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """A living process is waited for by its signs of life, and is not one that was lost."""
    if without == "flock":
        monkeypatch.setattr("fcntl.flock", unsupported)
    else:
        monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "PAUSE", 0.01)
    monkeypatch.setattr(locks, "LOOKS", 100)
    forks = loaded()
    told, inside = forks.Pipe(duplex=False)
    here = {"folder": tmp_path, "inside": inside, "without": without}
    process = forks.Process(target=exec, args=(ALIVE, here))
    process.start()
    lost: list[int] = []
    with told, inside:
        assert told.poll(60)
        began = time.monotonic()

        def do(*args: object) -> Trial:
            note = locks.noted(tmp_path / ".lock")
            assert note is not None
            lost.append(note.lost)
            return found("here")

        trial(tmp_path, do)
    process.join()
    assert time.monotonic() - began > 1.4
    assert lost == [0]
    assert not (tmp_path / ".lock").exists()


ALIVE = """
import time
from pathlib import Path
from lowbit.pilot import locks
locks.BEAT = 0.05
if without == "fcntl":
    locks.fcntl = None
else:
    def unsupported(*args):
        raise OSError(95, "")
    locks.fcntl.flock = unsupported
with locks.claimed(folder / ".lock", "x", wait=True):
    inside.send(True)
    time.sleep(1.5)
"""


def test_silent_process_of_another_host_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the lock looks free all the time: locks of another host may hold there alone."""
    monkeypatch.setattr(locks, "PAUSE", 0.01)
    monkeypatch.setattr(locks, "LOOKS", 20)
    path, until = tmp_path / ".lock", time.monotonic() + 0.8
    path.write_text(json.dumps(GOOD | {"host": "far.away", "locks": True}))

    def beat() -> None:
        while time.monotonic() < until:
            os.utime(path)
            time.sleep(0.02)

    beating = threading.Thread(target=beat)
    beating.start()
    with locks.claimed(path, "x", wait=True) as claim:
        assert time.monotonic() > until
        assert (claim.note.lost, str(claim.left)) == (1, "process 1 on far.away")
    beating.join()


def test_file_system_without_hard_links_has_a_lock_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlinked(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unlinked)
    with executor.only(tmp_path) as run:
        assert json.loads((tmp_path / ".lock").read_text())["run"] == run
        with pytest.raises(lb.LowbitError, match=f"may be in use .process {os.getpid()} on"), executor.only(tmp_path):
            pass
    assert [*tmp_path.iterdir()] == []


def test_one_process_at_a_time_takes_over_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind one that was killed while it took over."""
    monkeypatch.setattr("fcntl.flock", unsupported)
    monkeypatch.setattr(locks, "PAUSE", 0.001)
    path, inside, most, counts = tmp_path / ".lock", [0], list[int](), list[int]()
    dead = subprocess.Popen(["true"])
    dead.wait()

    def work() -> None:
        for _ in range(5):
            with locks.claimed(path, "x", wait=True) as claim:
                inside[0] += 1
                most.append(inside[0])
                counts.append(claim.note.lost)
                time.sleep(0.002)
                inside[0] -= 1

    for _ in range(4):
        path.write_text(json.dumps(GOOD | {"pid": dead.pid}))
        seen = locks._look(path)
        assert seen is not None
        seen.successor.write_text(json.dumps(GOOD | {"pid": dead.pid, "lost": 1}))
        threads = [threading.Thread(target=work) for _ in range(6)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert [*tmp_path.iterdir()] == []
    assert most == [1] * 120
    assert sorted(counts) == [0] * 116 + [2] * 4


def test_process_whose_trial_was_taken_over_returns_what_the_other_found(tmp_path: Path) -> None:
    """As one that was suspended for minutes."""
    results = iter([found("mine"), found("the other's")])

    def do(*args: object) -> Trial:
        result = next(results)
        if result.fingerprint == "mine":
            (tmp_path / ".lock").write_text(json.dumps(GOOD | {"pid": 2**31 - 1}))
        return result

    assert trial(tmp_path, do).fingerprint == "the other's"
    assert [*tmp_path.iterdir()] == []


# Killed


@contextlib.contextmanager
def started(project: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [str(Path(sys.executable).with_name("lowbit")), "pilot", "pilot.yaml", "--out", str(folder), *options]
    with subprocess.Popen(
        command, cwd=project, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_command_killed_at_any_moment_ends_the_same(
    project: Path, undisturbed: tuple[Run, Path], tmp_path: Path, jobs: str
) -> None:
    folder, dice = tmp_path / "run", random.Random(int(jobs))
    for _ in range(3):
        with started(project, folder, "--jobs", jobs) as process:
            time.sleep(dice.uniform(4, 12))
            process.send_signal(signal.SIGKILL)
    with started(project, folder, "--jobs", jobs) as process:
        out, errors = process.communicate()
        assert (process.returncode, errors) == (0, ""), out
    assert hashes(folder) == hashes(undisturbed[1])
    trials = [read(Trial, folder / "variants" / name / "trial.json") for name in NAMES]
    given: Any = {"verdict": "misses", "checks": ()}  # when assembled
    expected = [replace(settled(trial), **given) for trial in undisturbed[0].trials]
    assert [*map(settled, trials)] == expected
    assert [*folder.rglob(".*")] == []
