"""Claim: no file from outside makes a reader raise more than a `LowbitError`, hang, or write elsewhere.

Files of every kind that lowbit reads are damaged, 100,000 in all: bits, bytes, slices, the structure of YAML, JSON and
ONNX graphs, headers of arrays and tensors. Input `n` of a reader is the same for the same seed. Each reader runs in a
child process that may take 3 GiB more than it begins with; an input that hangs or kills it is noted, and the next child
goes on behind it. What is found is kept under runs/benchmarks/fuzzing, a file and a line of findings.jsonl each:

    python benchmarks/fuzzing.py --replay "recipe:0:4711"      # reader, seed, number
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from _figures import emit, parser
from _readers import HANGS, READERS, Hang, Outcome, Reader, Watch, attempt, made, prepare

sys.dont_write_bytecode = True
KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "fuzzing"
MEMORY = 3 << 30
KILLED_AFTER = 4 * HANGS  # wall time, for what no signal stops
SHOWN = struct.Struct("<qd")  # number of the input at work, and when it began


def main() -> None:
    """Damage, read, count."""
    options = parser(__doc__ or "")
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="readers with this in their name")
    options.add_argument("--replay", default="", help="reader:seed:number")
    asked = options.parse_args()
    torch.set_num_threads(1)
    if asked.replay:
        replay(asked.replay)
        return
    (KEPT / "broken.txt").unlink(missing_ok=True)
    total, shares = 2000 if asked.quick else asked.inputs, sum(reader.share for reader in READERS)
    counts: Counter[str] = Counter()
    for reader in READERS:
        if asked.only in reader.name:
            counts += one_reader(reader, asked.seed, max(1, round(total * reader.share / shares)))
    emit("inputs", counts["inputs"], "inputs", "" if asked.quick else ">= 100000")
    for kind, name in (("escaped", "escaped exceptions"), ("hang", "hangs"), ("outside", "writes or reads outside")):
        emit(name, counts[kind], "inputs", "= 0")
    emit("crashes of the process", counts["crash"], "inputs", "= 0")
    emit("stopped by the memory limit alone", counts["memory"], "inputs", "= 0")


def one_reader(reader: Reader, seed: int, inputs: int) -> Counter[str]:
    """All inputs of a reader; prints its figures."""
    counts, slowest, began = Counter[str](inputs=inputs), 0.0, time.perf_counter()
    reader.seeds(), reader.beside()  # made once, in the process that children are copies of
    with tempfile.TemporaryDirectory(prefix="lowbit-fuzz-") as folder:
        shared = mmap.mmap(-1, SHOWN.size)
        first = 0
        while first < inputs:
            told = Path(folder, "told.jsonl")
            told.touch()
            shared[:] = SHOWN.pack(first, time.time())
            child = os.fork()
            if not child:
                _child(reader, seed, range(first, inputs), Path(folder), shared, told)
            status = _watched(child, shared)
            found = [json.loads(line) for line in told.read_text().splitlines()]
            told.unlink()
            for one in found:
                slowest = max(slowest, one["slowest"])
                if one["kind"]:
                    counts[one["kind"]] += 1
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            if os.WIFEXITED(status) and (KEPT / "broken.txt").exists():
                raise SystemExit((KEPT / "broken.txt").read_text())
            at = SHOWN.unpack(shared[:])[0]
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            kind = "hang" if hung else "crash"
            counts[kind] += 1
            slowest = max(slowest, KILLED_AFTER if hung else 0.0)
            data = Path(folder, "case", reader.file).read_bytes()
            _keep(reader, seed, at, data, Outcome(kind, f"status {status}", 0.0))
            first = at + 1
    took = time.perf_counter() - began
    for kind in ("escaped", "hang", "outside", "crash", "memory"):
        if counts[kind]:
            emit(f"{reader.name}: {kind}", counts[kind], "inputs", "= 0")
    emit(f"{reader.name}: inputs", inputs, "inputs")
    emit(f"{reader.name}: slowest", slowest, "s", f"< {HANGS:g}")
    emit(f"{reader.name}: rate", inputs / took, "inputs/s")
    return counts


def _watched(child: int, shared: mmap.mmap) -> int:
    """Wait for a child, and kill it where an input takes too long."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.time() - SHOWN.unpack(shared[:])[1] > KILLED_AFTER:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _child(reader: Reader, seed: int, numbers: range, folder: Path, shared: mmap.mmap, told: Path) -> None:
    """Read inputs, and never return."""
    code = 1
    try:
        case = folder / "case"
        case.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(case)
        os.chdir(case)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        seeds = reader.seeds()
        prepare(reader, case)
        watch = Watch()
        attempt(reader, seeds[0], case, watch)  # imports, and what libraries keep
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, virtual + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, _hang)
        slowest = 0.0
        for number in numbers:
            shared[:] = SHOWN.pack(number, time.time())
            data = made(reader, seed, number, seeds)
            shared[:] = SHOWN.pack(number, time.time())
            signal.setitimer(signal.ITIMER_PROF, HANGS)
            try:
                outcome = attempt(reader, data, case, watch)
            except Hang:
                outcome = Outcome("hang", "behind the reader", HANGS)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if outcome.seconds > HANGS / 5 and not outcome.kind:
                _keep(reader, seed, number, data, Outcome("slow", f"{outcome.seconds:.1f} s", outcome.seconds))
            if outcome.kind:
                _keep(reader, seed, number, data, outcome)
            if outcome.kind or outcome.seconds > slowest or number == numbers[-1]:
                slowest = max(slowest, outcome.seconds)
                line = {"kind": outcome.kind, "slowest": slowest, "number": number}
                with told.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        code = 0
    except BaseException as error:
        with contextlib.suppress(Exception):
            KEPT.mkdir(parents=True, exist_ok=True)
            import traceback

            (KEPT / "broken.txt").write_text(f"{reader.name}: {error!r}\n{traceback.format_exc()}")
    finally:
        os._exit(code)


def _hang(*_: object) -> None:
    raise Hang


def _keep(reader: Reader, seed: int, number: int, data: bytes, outcome: Outcome) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{reader.name.replace(' ', '_').replace(',', '')}-{seed}-{number}{Path(reader.file).suffix}"
    kept.write_bytes(data)
    line = {"at": f"{reader.name}:{seed}:{number}", "kind": outcome.kind, "told": outcome.told, "file": kept.name}
    with (KEPT / "findings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def replay(at: str) -> None:
    """Read one input again, in this process, and print what came of it."""
    name, seed, number = at.rsplit(":", 2)
    reader = next(one for one in READERS if one.name == name)
    with tempfile.TemporaryDirectory(prefix="lowbit-fuzz-") as folder:
        case = Path(folder, "case")
        case.mkdir()
        os.chdir(case)
        data = made(reader, int(seed), int(number), reader.seeds())
        prepare(reader, case)
        print(data[:2000])
        print(attempt(reader, data, case, Watch()))
        os.chdir("/")


if __name__ == "__main__":
    main()
