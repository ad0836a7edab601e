"""Two processes train, distill and search as one does. They are started once, as that takes longer than their work."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.methods.search.explore import read_samples

FOLDERS = [str(Path(__file__).parents[1] / name) for name in ("training", "methods")]
DISTILLED: dict[str, Any] = {"epochs": 3, "optimizer": "sgd", "quantizer": "lsq"}
SEARCHED: dict[str, Any] = {"epochs": 1, "optimizer": "sgd", "quantizer": "lsq", "by": "policy"}
SCRIPT = f"""
import atexit, os, sys, warnings
from pathlib import Path
import torch
warnings.simplefilter("error")
from lowbit.errors import TrainingWarning
warnings.simplefilter("ignore", TrainingWarning)
torch.set_num_threads(1)
sys.path[:0] = {FOLDERS!r}
import test_distillation, test_loop, test_search

def alone():  # a thread that outlives the interpreter aborts the process now and then
    threads = [Path(f"/proc/self/task/{{task}}/comm").read_text() for task in os.listdir("/proc/self/task")]
    if found := [name for name in threads if "gloo" in name]:
        print("left:", found, file=sys.stderr)
        os._exit(3)

if Path("/proc/self/task").exists():
    atexit.register(alone)
rank = os.environ["RANK"]
for norm in (False, True):
    model = test_loop.network(dropout=0, norm=norm)
    test_loop.shared_run(model, Path(f"norm-{{norm}}"))
    assert "forward" not in model[1].__dict__
    torch.save(model.state_dict(), f"norm-{{norm}}-{{rank}}.pt")
student, _ = test_distillation.trained(**{DISTILLED!r})
torch.save(student.state_dict(), f"distilled-{{rank}}.pt")
_, found = test_search.searched(**{SEARCHED!r}, folder="search")
torch.save([found.samples[-1].assignment, [sample.reward for sample in found.samples]], f"searched-{{rank}}.pt")
"""


@pytest.mark.filterwarnings("ignore::lowbit.errors.TrainingWarning")  # a weak teacher, and few epochs
def test_two_processes_do_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(sys, "path", [*FOLDERS, *sys.path])
    loop, distillation, search = map(importlib.import_module, ("test_loop", "test_distillation", "test_search"))

    def by_both(name: str) -> list[Any]:
        return [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]

    for norm in (False, True):
        model = loop.network(dropout=0, norm=norm)
        fitted = loop.shared_run(model, tmp_path / f"alone-{norm}")
        assert fitted.steps == 15
        first, second = by_both(f"norm-{norm}")
        for name, tensor in model.state_dict().items():
            assert torch.equal(first[name], second[name]), (norm, name)
            assert torch.allclose(first[name], tensor, atol=1e-5, rtol=1e-5), (norm, name)
        both = [loop.rows(tmp_path / f"{who}-{norm}") for who in ("norm", "alone")]
        for row, expected in zip(*both, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)

    student = distillation.trained(**DISTILLED)[0].state_dict()
    for shared in by_both("distilled"):
        for name, value in student.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-5)

    _, found = search.searched(**SEARCHED)
    for last, rewards in by_both("searched"):
        assert tuple(last) == found.samples[-1].assignment
        assert rewards == pytest.approx([sample.reward for sample in found.samples], abs=1e-4)
    assert len(read_samples(tmp_path / "search/samples.jsonl")) == len(found.samples)
