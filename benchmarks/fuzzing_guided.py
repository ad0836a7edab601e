"""Claim: inputs that are found by what code they reach make no reader raise more than a `LowbitError` either.

atheris (libFuzzer) changes files so that they reach new branches of lowbit's own code, for the readers that are Python:
recipe, pilot file, manifest, records, studies, traces, logs and npz. Each has a process of its own, which ends at the
first finding; that input is kept under runs/benchmarks/fuzzing/guided. It needs: pip install atheris
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from _figures import emit, parser

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "fuzzing" / "guided"
RUNS = {  # inputs of each reader: those that cost more have fewer
    "recipe": 15_000,
    "pilot": 10_000,
    "manifest": 15_000,
    "record": 15_000,
    "feature study": 10_000,
    "feature trace": 15_000,
    "csv log": 10_000,
    "npz": 10_000,
}
LONGEST, SECONDS = 4096, 10  # bytes of an input, and how long it may take


def main() -> None:
    """Every reader in a process of its own, one after the other."""
    options = parser(__doc__ or "")
    options.add_argument("--reader", default="", help="fuzz this one, in this process")
    options.add_argument("--runs", type=int, default=0)
    asked = options.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("left out: atheris is not installed, see the top of this file")
        return
    if asked.reader:
        _fuzz(asked.reader, asked.runs)
        return
    findings = total = 0
    for name, runs in RUNS.items():
        count = min(runs, 200) if asked.quick else runs
        command = [sys.executable, __file__, "--reader", name, "--runs", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        made = re.findall(r"^#(\d+)\s.*cov: (\d+)", done.stderr, re.M)
        if not made:
            raise SystemExit(f"{name}: atheris ended with {done.returncode}: {done.stderr[-2000:]}")
        ended = re.search(r"Done (\d+) runs", done.stderr)
        findings += ended is None
        total += int(ended[1] if ended else made[-1][0])
        emit(f"{name}: inputs", int(ended[1] if ended else made[-1][0]), "inputs", f"{count}")
        emit(f"{name}: branches reached by valid files, in the end", int(made[-1][1]) - int(made[0][1]), "more")
        if ended is None:
            print(done.stderr[-3000:], file=sys.stderr)
    emit("inputs", total, "inputs")
    emit("findings", findings, "inputs", "= 0")


def _fuzz(name: str, runs: int) -> None:
    """Fuzz one reader until it has had so many inputs, or fails; libFuzzer ends the process."""
    import atheris

    folder = Path(tempfile.mkdtemp(prefix="lowbit-fuzz-"))
    case, corpus = folder / "case", folder / "corpus"
    case.mkdir()
    corpus.mkdir()
    KEPT.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["lowbit"]):
        from _readers import READERS, Watch, attempt, prepare

        (reader,) = (one for one in READERS if one.name == name)
        prepare(reader, case)
        os.chdir(case)
        os.environ["TMPDIR"] = tempfile.tempdir = str(case)
        watch = Watch()
        for number, data in enumerate(reader.seeds()):  # read once here, where what a reader imports is instrumented
            (corpus / str(number)).write_bytes(data)
            attempt(reader, data, case, watch)

    def one(data: bytes) -> None:
        outcome = attempt(reader, data, case, watch)
        if outcome.kind:
            raise RuntimeError(f"{outcome.kind}: {outcome.told}")

    prefix = f"-artifact_prefix={KEPT / name.replace(' ', '-')}-"
    limits = [f"-max_len={LONGEST}", "-len_control=0", f"-timeout={SECONDS}", "-rss_limit_mb=6000"]
    atheris.Setup([sys.argv[0], str(corpus), f"-runs={runs}", "-seed=1", prefix, *limits], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
