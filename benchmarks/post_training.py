"""Claim: from unlabeled images alone, lowbit makes the most accurate low-bit file of all tools, and the fastest.

ResNet-20 and a MobileNetV2 on CIFAR-10: lowbit at its three levels beside ONNX Runtime's quantizer, NNCF, torchao and
Brevitas, each from the same 1,024 training images, over three draws of them; accuracy on all 10,000 test images, file
size, time and peak memory. Then W8A8 once more on a quiet machine, one tool after the other, for the times; and files
of lowbit and of the peers timed in turn, call by call.

The peers live in an environment of their own, `--peers DIR` (made from `peers.txt` if it is not there). Rows stay in
`runs/benchmarks/post_training` with a hash of the code that made them: a stopped run goes on, and a row whose code has
not changed is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

import _mobilenet
from _figures import emit, parser
from lowbit.export.runtime import RuntimeName, arrays, open_session

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "lowbit"
KEPT = HERE.parent / "runs" / "benchmarks" / "post_training"
PEERS = ("onnxruntime", "nncf", "torchao", "brevitas")
CONFIGURATIONS = ((8, 8), (4, 8), (4, 4), (3, 8), (2, 8))
FLOORS = {(8, 8): 91.7, (4, 8): 91.6, (3, 8): 91.0, (4, 4): 91.2}  # of ResNet-20, float 91.73
LOSSES = {(4, 8): 1.5, (4, 4): 6.0}  # of the MobileNetV2, in points below float
# Brevitas learns the rounding of 3 and 2 bits, and does everything in simulation: one draw where that takes its time
SLOW = {("brevitas", "resnet20", 3), ("brevitas", "resnet20", 2)}
SLOW |= {("brevitas", "mobilenet_v2", bits) for bits in (8, 4, 3, 2)}


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    data: Path
    peers: Path | None
    quick: bool

    @property
    def draws(self) -> int:
        """How many calibration draws."""
        return 1 if self.quick else 3

    def weights(self, network: str) -> Path:
        """The float weights of a network."""
        if network == "resnet20":
            return self.data / "cifar10" / "resnet20.safetensors"
        _mobilenet.trained(self.data / "cifar10")
        return _mobilenet.KEPT / "weights.safetensors"


def row(setting: Setting, tool: str, network: str, bits: tuple[int, int], draw: int, *, fresh: bool = False) -> dict:
    """The figures of one tool: those kept, if its code is the same, else measured now in a process of its own."""
    ours = tool.startswith("lowbit")
    script = HERE / ("_ours.py" if ours else "_peers.py")
    made_by = [script, HERE / "_peers.py", HERE / "_mobilenet.py", HERE / "peers.txt", setting.weights(network)]
    made_by += [*sorted(SOURCE.rglob("*.py")), *sorted(SOURCE.rglob("*.cpp"))] if ours else []
    code = hashlib.sha256(b"".join(path.read_bytes() for path in made_by)).hexdigest()[:12]
    limit = ["--test-limit", "1000"] if setting.quick else []
    name = f"{tool.replace(' ', '-')}-{network}-w{bits[0]}a{bits[1]}-{draw}{'-quick' if limit else ''}"
    record = KEPT / name / "row.json"
    if record.exists() and not fresh:
        kept = json.loads(record.read_text())
        if kept["code"] == code:
            return kept
    which = ["--level", tool.split()[1]] if ours else ["--peer", tool]
    asked = ["--weights-bits", str(bits[0]), "--activation-bits", str(bits[1]), "--network", network]
    places = ["--weights", str(setting.weights(network)), "--data", str(setting.data), "--out", str(KEPT / name)]
    python = sys.executable if ours else str(setting.peers / "bin" / "python")
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    command = [python, str(script), *which, *asked, *places, "--draw", str(draw), "--threads", threads, *limit]
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE.parent}:{HERE}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    figures = {**json.loads(done.stdout.splitlines()[-1]), "code": code}
    record.write_text(json.dumps(figures))
    return figures


def accuracy(setting: Setting, network: str, tools: list[str]) -> None:
    """Every tool and configuration over the draws."""
    for bits in CONFIGURATIONS[: 1 if setting.quick else None]:
        means = {}
        for tool in tools:
            draws = 1 if (tool, network, bits[0]) in SLOW else setting.draws
            rows = [row(setting, tool, network, bits, draw) for draw in range(draws)]
            about = f"{network} w{bits[0]}a{bits[1]}, {tool}"
            if rows[0]["top1"] is None:
                print(json.dumps({"name": about, "value": None, "unit": "%", "target": "", "why": rows[0]["reason"]}))
                continue
            top1 = [one["top1"] for one in rows]
            means[tool] = float(np.mean(top1))
            emit(f"{about}: top-1, mean of {draws}", means[tool], "%", _target(setting, network, bits, tool))
            emit(f"{about}: top-1, spread over draws", float(np.ptp(top1)), "points")
            emit(f"{about}: time", median(one["quantize_s"] for one in rows), "s")
            emit(f"{about}: peak memory", median(one["peak_mb"] for one in rows), "MB")
            if rows[0]["size_mb"]:
                emit(f"{about}: file", rows[0]["size_mb"], "MB")
        others = [mean for tool, mean in means.items() if not tool.startswith("lowbit")]
        if others:
            ahead = max(mean for tool, mean in means.items() if tool.startswith("lowbit")) - max(others)
            emit(f"{network} w{bits[0]}a{bits[1]}: lowbit ahead of the best peer by", ahead, "points", ">= -0.1")


def _target(setting: Setting, network: str, bits: tuple[int, int], tool: str) -> str:
    if setting.quick or not tool.startswith("lowbit"):
        return ""
    if network == "resnet20":
        return f">= {FLOORS[bits]}" if bits in FLOORS else ""
    return f">= float - {LOSSES[bits]}" if bits in LOSSES else ""


def times(setting: Setting) -> None:
    """W8A8 from the float network to the file, ours verified as well, one tool after the other."""
    ours, nncf = ([], [])
    for draw in range(setting.draws):
        ours.append(row(setting, "lowbit fast", "resnet20", (8, 8), draw, fresh=True))
        if setting.peers:
            nncf.append(row(setting, "nncf", "resnet20", (8, 8), draw, fresh=True))
    emit("resnet20 w8a8, lowbit fast: quantize, export and verify", median(r["quantize_s"] for r in ours), "s")
    if nncf:
        emit("resnet20 w8a8, nncf: quantize and save", median(r["quantize_s"] for r in nncf), "s")
        ratio = median(a["quantize_s"] / b["quantize_s"] for a, b in zip(ours, nncf, strict=True))
        emit("resnet20 w8a8: time of lowbit over that of nncf", ratio, "x", "<= 1.0")


def latency(setting: Setting, network: str) -> None:
    """The files of draw 0, call by call in turn: ratios of medians within one run."""
    ours = {
        f"lowbit w{w}a{a}": row(setting, "lowbit fast", network, (w, a), 0)
        for w, a in CONFIGURATIONS[: 1 if setting.quick else None]
    }
    peers = {name: row(setting, name, network, (8, 8), 0) for name in ("onnxruntime", "nncf") if setting.peers}
    for runtime in ("onnxruntime", "openvino"):
        files = {n: Path(r["file"]) for n, r in {**ours, **peers}.items() if _reads(runtime, n, network)}
        for batch in (1, 32):
            calls = {name: _call(path, runtime, batch) for name, path in files.items()}
            times: dict[str, list[float]] = {name: [] for name in calls}
            for repeat in range(20 if setting.quick else 300 if batch == 1 else 100):
                for name, call in calls.items():
                    began = time.perf_counter()
                    call()
                    if repeat >= 5:
                        times[name].append(1000 * (time.perf_counter() - began))
            base = {"onnxruntime": "onnxruntime", "openvino": "nncf"}[runtime]
            limit = {"onnxruntime": "<= 1.0", "openvino": "<= 1.05"}[runtime]
            for name, found in times.items():
                about = f"{network}, {runtime}, batch {batch}, {name}"
                emit(f"{about}: median", median(found), "ms")
                if name.startswith("lowbit") and base in times:
                    against = np.median(np.array(found) / np.array(times[base]))
                    emit(f"{about}: over {base}'s w8a8", float(against), "x", limit if name == "lowbit w8a8" else "")
                if name.startswith("lowbit") and name != "lowbit w8a8":
                    target = "<= 1.05" if name in ("lowbit w4a8", "lowbit w2a8") else ""
                    against = np.median(np.array(found) / np.array(times["lowbit w8a8"]))
                    emit(f"{about}: over lowbit w8a8", float(against), "x", target)


def _reads(runtime: str, name: str, network: str) -> bool:
    if runtime == "onnxruntime":
        return name != "nncf"
    if (network, name) == ("mobilenet_v2", "nncf"):
        return False  # running NNCF 3.4.0's file of this network ends OpenVINO 2026.4.1 with a segmentation fault
    return name not in ("onnxruntime", "lowbit w2a8")  # OpenVINO does not read 2-bit storage


def _call(path: Path, runtime: RuntimeName, batch: int) -> Callable[[], object]:
    """A function that runs the file once."""
    images = np.random.default_rng(0).standard_normal((batch, 3, 32, 32), dtype=np.float32)
    if path.suffix == ".xml":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(str(path), "CPU", settings)
        return lambda: model([images])
    session = open_session(path, runtime=runtime, threads=2)
    feed = arrays([images], session.inputs)
    return lambda: session.run(feed)


def _environment(folder: Path) -> Path:
    """The peers' Python environment, made if it is not there."""
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(HERE / "peers.txt")]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return folder


def main() -> None:
    """Accuracy, times and latency."""
    options = parser(__doc__ or "")
    options.add_argument("--peers", type=Path, help="environment of the peers; without it, lowbit alone is measured")
    asked = options.parse_args()
    setting = Setting(asked.data, _environment(asked.peers) if asked.peers else None, asked.quick)
    tools = [*(PEERS if setting.peers else ()), "lowbit fast", "lowbit balanced", "lowbit best"]
    if setting.quick:
        tools = ["lowbit fast"]
    for network in ("resnet20",) if setting.quick else ("resnet20", "mobilenet_v2"):
        accuracy(setting, network, tools)
    times(setting)
    for network in ("resnet20",) if setting.quick else ("resnet20", "mobilenet_v2"):
        latency(setting, network)


if __name__ == "__main__":
    main()
