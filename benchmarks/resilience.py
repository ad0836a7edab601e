"""Claim: a pilot that is killed, or that loses a worker, ends with the page of an undisturbed one.

A pilot of the digits network with variants that train (distilled, searched), one that is factorized and one that is not
trained. The command, in two processes at once, is killed with all its processes (SIGKILL) at twenty random moments and
started again each time; then the same pilot runs on two Dask workers, one of which is killed in the middle. Each run's
page is compared with that of an undisturbed run in a single process, byte for byte, after what a clock decides (times,
when it started, the command) is set to the same in both. The exit status is 1 if any differs.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from _figures import emit, options
from lowbit import demo, files
from lowbit.pilot.judging import assemble
from lowbit.pilot.record import Run, Trial, read
from lowbit.pilot.spec import PilotSpec
from lowbit.pilot.task import Task
from lowbit.report.page import render

KILLS, PORT = 20, 18786
LOW = {"weights": "int4", "activations": "int4", "level": "fast"}
PILOT: dict[str, Any] = {
    "name": "resilience",
    "model": "lowbit.models:digits_cnn",
    "weights": "weights.safetensors",
    "data": {
        "calibration": {"source": "lowbit.data:digits_train", "limit": 256},
        "train": {"source": "lowbit.data:digits_train", "limit": 512},
        "test": {"source": "lowbit.data:digits_test"},
    },
    "kpi": {"metric": "accuracy", "minimum": 0.96},
    "runtime": {"batches": [1]},
    "variants": [
        {"name": "w8a8", "weights": "int8", "activations": "int8"},
        {"name": "distilled", **LOW, "distill": {"epochs": 12, "batch_size": 32}},
        {
            "name": "searched",
            "search": {"choices": ["int4", "int8"], "budget": {"like": "int4", "share": 1.5}, "epochs": 4},
        },
        {"name": "chains", **{k: LOW[k] for k in ("weights", "activations")}, "factorize": {"choices": "2x"}},
    ],
}
CLOCKS = {"seconds": 0.0, "milliseconds": None, "latency": 0.0}
TIMES = re.compile(r"slower than the dense layer \([^)]*\)(; )?|\d+(\.\d+)? s\b")  # in sentences


def command(folder: Path, *asked: str) -> list[str]:
    """The pilot's own command; `lowbit` lies beside the interpreter."""
    lowbit = str(Path(sys.executable).with_name("lowbit"))
    return [lowbit, "pilot", str(folder.parent / "pilot.yaml"), "--out", str(folder), *asked]


@contextlib.contextmanager
def group(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, which is killed as one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(os.devnull, "wb") as nothing:
        process = subprocess.Popen(words, stdout=nothing, stderr=nothing, env=environment, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finished(folder: Path) -> bool:
    """Run the command to its end; whether its exit status is one of a pilot that ended."""
    with group(command(folder)) as process:
        return process.wait() in (0, 1) and (folder / "report.html").exists()


def timeless(value: Any) -> Any:
    """A record without what a clock decides."""
    if isinstance(value, dict):
        return {key: CLOCKS[key] if key in CLOCKS else timeless(one) for key, one in value.items()}
    if isinstance(value, list):
        return [timeless(one) for one in value]
    return TIMES.sub("", value) if isinstance(value, str) else value


def page(folder: Path) -> str:
    """The page of a run folder, as if every clock had stood still."""
    for path in folder.glob("variants/*/trial.json"):
        files.write_json(path, timeless(files.read_json(path)))
    run = read(Run, folder / "run.json")
    run = replace(run, provenance=replace(run.provenance, started="2026-01-01T00:00:00+00:00", command="lowbit pilot"))
    names = ["float", *(variant["name"] for variant in PILOT["variants"])]
    tasks = [Task(name, folder / "variants" / name, "", None) for name in names]
    trials = [read(Trial, task.folder / "trial.json") for task in tasks]
    return render(assemble(run, PilotSpec.model_validate(PILOT), tasks, trials, {}))


def killed(folder: Path, kills: int, longest: float) -> int:
    """Kill the command so often at random moments, as often as it takes anew; the number of runs that ended."""
    dice, done, runs = random.Random(0), 0, 0
    while done < kills:
        with group(command(folder / f"run{runs}", "--jobs", "2")) as process:
            moment = time.monotonic() + dice.uniform(1, longest)
            while time.monotonic() < moment and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is None:
                done += 1
            else:
                runs += 1
    return runs + 1


def on_cluster(folder: Path, wait: float) -> None:
    """Run the pilot on two Dask workers, and kill the process group of one after `wait` seconds."""
    dask, address = str(Path(sys.executable).with_name("dask")), f"tcp://127.0.0.1:{PORT}"
    worker = [dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder.parent)]
    with (
        group([dask, "scheduler", "--port", str(PORT), "--no-dashboard", "--host", "127.0.0.1"]),
        group([*worker, "--no-nanny"]) as lost,  # else its nanny would start it again
        group([*worker, "--no-nanny"]),
        group(command(folder, "--cluster", address)) as pilot,
    ):
        time.sleep(wait)
        os.killpg(lost.pid, signal.SIGKILL)
        if pilot.wait() not in (0, 1):
            raise SystemExit(f"the pilot on the cluster ended with {pilot.returncode}")


def main() -> int:
    """Run all three; the number of pages that differ is the exit status."""
    asked = options(__doc__ or "")
    kills, different = 2 if asked.quick else KILLS, 0
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        pilot = {**PILOT, "variants": PILOT["variants"][:1]} if asked.quick else PILOT
        PILOT["variants"] = pilot["variants"]
        demo.trained_weights(folder / "weights.safetensors", progress=False)
        (folder / "pilot.yaml").write_text(yaml.safe_dump(pilot))
        began = time.monotonic()
        if not finished(folder / "undisturbed"):
            raise SystemExit("the undisturbed pilot did not end")
        seconds, expected = time.monotonic() - began, page(folder / "undisturbed")
        emit("undisturbed, one process", seconds, "s")
        emit("page", len(expected) / 1e3, "kB")

        runs = killed(folder, kills, longest=0.7 * seconds)
        for number in range(runs):
            if not finished(folder / f"run{number}"):
                raise SystemExit(f"run {number} did not end after it was killed")
            different += page(folder / f"run{number}") != expected
        emit("kills of the whole command at random moments", kills, "")
        emit("runs that they fell on", runs, "")
        emit("pages that differ after kills", different, "", "0")

        on_cluster(folder / "cluster", 0.5 * seconds)
        lost = page(folder / "cluster") != expected
        emit("pages that differ on two Dask workers, one killed", lost, "", "0")
    return 1 if different or lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
