"""A whole pilot: every variant through joblib, latency measured interleaved at the end, one record of it all.

The run folder:

    run.json                     what was asked and what made it (a `Run` without trials)
    variants/<name>/             model.onnx, manifest.json, recipe.yaml, outputs.npy, and last trial.json
    latency.json                 all files timed in turn, so that their ratios hold on a noisy machine
    report.html                  written by `lowbit.report` from the above

Killed at any moment and started again, a pilot keeps every finished trial and ends with the same result.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from pydantic import TypeAdapter, ValidationError
from torch import nn

from lowbit import files
from lowbit.cost import Latency
from lowbit.errors import DataError
from lowbit.export.runtime import Session, arrays, open_session
from lowbit.pilot import statistics
from lowbit.pilot.record import Kpi, LatencyRow, Provenance, Run, Trial
from lowbit.pilot.spec import PilotSpec
from lowbit.pilot.trial import Samples, Settings, Task, finished, run_trial
from lowbit.progress import track

REPEATS = 100
_PACKAGES = ("lowbit", "torch", "onnx", "onnxruntime", "numpy")
Say = Callable[[str], None]


def run_pilot(
    spec: PilotSpec,
    model: nn.Module,
    calibration: Samples,
    test: Samples,
    folder: Path,
    *,
    base: Path | None = None,
    provenance: Mapping[str, object] | None = None,
    jobs: int = 1,
    say: Say = print,
    progress: bool = True,
) -> Run:
    """Measure the float model and every variant, and return the record of the run; finished trials are kept.

    Args:
        spec: the pilot file.
        model: the float network, in eval mode.
        calibration: inputs that set activation scales; labels are not used.
        test: inputs, and labels if the metric needs them, that the report is about.
        folder: where the run is written.
        base: what paths in the pilot file are relative to.
        provenance: more to note in each file's manifest, such as where the data is.
        jobs: trials at once, in processes of their own (joblib; `joblib.parallel_config` chooses a cluster).
        say: receives a line for each step.
        progress: show bars on a terminal.

    Raises:
        DataError: the metric needs labels that are missing, or results cannot be written.
        RecipeError: a variant's recipe cannot be read.
    """
    statistics.check_metric(spec.kpi.metric, None if test.labels is None else test.labels.numpy())
    settings = Settings(spec.kpi.metric, spec.seed, spec.runtime.name, spec.runtime.threads, dict(provenance or {}))
    weights_hash = _weights_hash(model)
    about = [
        spec.model,
        weights_hash,
        calibration.hash,
        test.hash,
        settings.metric,
        spec.seed,
        settings.runtime,
        settings.threads,
        version("lowbit"),
    ]
    where = base or Path()

    def task(name: str, recipe: Any, opset: int) -> Task:
        content = json.dumps([*about, recipe.to_dict() if recipe else None, opset], sort_keys=True)
        fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        return Task(name, folder / "variants" / name, fingerprint, recipe, opset)

    tasks = [task("float", None, 21)]
    tasks += [task(v.name, v.to_recipe(where, spec.name), v.opset) for v in spec.variants]
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(
        spec.name,
        spec.model,
        Kpi(spec.kpi.metric, spec.kpi.minimum),
        spec.model_dump(mode="json", exclude_defaults=True),
        _provenance(spec, calibration, test, weights_hash),
    )
    if (folder / "run.json").exists():
        earlier = read_run(folder)
        if earlier.pilot == run.pilot and _same_material(earlier.provenance, run.provenance):
            run = earlier  # taken up again: it started when it first started
    files.write_json(folder / "run.json", asdict(run))
    shared = (model, calibration, test, settings)
    trials = [_announced(tasks[0], shared, say, progress)]  # the others are compared with the float baseline
    if jobs == 1:
        trials += [_announced(t, shared, say, progress) for t in tasks[1:]]
    else:
        parallel = Parallel(n_jobs=jobs, return_as="generator")
        for trial in parallel(delayed(run_trial)(t, *shared, progress=False) for t in tasks[1:]):
            say(summary(trial))
            trials.append(trial)
    latencies = _latencies(run, tasks, trials, spec, test, folder, progress)
    return assemble(run, trials, latencies)


def read_run(folder: Path) -> Run:
    """What a run folder says was asked, without its trials.

    Raises:
        DataError: there is no such folder, or its `run.json` is no record of a run.
    """
    path = folder / "run.json"
    try:
        return TypeAdapter(Run).validate_python(files.read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(f"{str(path)!r} is no record of a run ({first['msg']}); delete it to start anew") from None


def _same_material(a: Provenance, b: Provenance) -> bool:
    return (a.data_hash, a.weights_hash, a.versions, a.machine) == (b.data_hash, b.weights_hash, b.versions, b.machine)


def assemble(run: Run, trials: list[Trial], latencies: dict[str, tuple[LatencyRow, ...]]) -> Run:
    """The run with its trials: latencies filled in, and each verdict given against the KPI."""
    return replace(
        run,
        trials=tuple(
            replace(
                trial,
                latencies=latencies.get(trial.name, ()),
                verdict=statistics.verdict(trial.score, run.kpi) if trial.score else "failed",
            )
            for trial in trials
        ),
    )


def summary(trial: Trial) -> str:
    """A trial in one line."""
    if trial.score is None:
        return f"{trial.name:<16} failed: {trial.error}"
    return f"{trial.name:<16} {trial.score.value:.4f}  {trial.file_bytes / 1e6:.3f} MB  {trial.seconds:.0f} s"


def _announced(task: Task, shared: tuple[nn.Module, Samples, Samples, Settings], say: Say, progress: bool) -> Trial:
    kept = finished(task) is not None
    trial = run_trial(task, *shared, progress=progress)
    say(summary(trial) + (" (kept)" if kept else ""))
    return trial


def _latencies(
    run: Run, tasks: list[Task], trials: list[Trial], spec: PilotSpec, test: Samples, folder: Path, progress: bool
) -> dict[str, tuple[LatencyRow, ...]]:
    """Time all files in turn, batch by batch size; kept while the files are the same."""
    paths = {t.name: t.folder / "model.onnx" for t, trial in zip(tasks, trials, strict=True) if trial.score}
    key = {name: files.sha256(path) for name, path in paths.items()}
    asked = spec.runtime.model_dump(mode="json")
    kept = _read_latencies(folder / "latency.json")
    if kept is not None and kept[0] == [key, asked]:
        return kept[1]
    sessions = {n: open_session(p, runtime=spec.runtime.name, threads=spec.runtime.threads) for n, p in paths.items()}
    rows: dict[str, list[LatencyRow]] = {name: [] for name in paths}
    for batch in spec.runtime.batches:
        inputs = next(iter(test.batches(batch)))[0].numpy()
        if len(inputs) < batch:
            inputs = np.resize(inputs, (batch, *inputs.shape[1:]))
        for name, latency in _interleaved(sessions, inputs, f"time batch {batch}", progress).items():
            rows[name].append(LatencyRow(spec.runtime.name, batch, spec.runtime.threads, **asdict(latency)))
    result = {name: tuple(found) for name, found in rows.items()}
    written = {name: [asdict(row) for row in found] for name, found in result.items()}
    files.write_json(folder / "latency.json", {"of": [key, asked], "rows": written})
    return result


def _interleaved(sessions: dict[str, Session], inputs: Any, what: str, progress: bool) -> dict[str, Latency]:
    feeds = {name: arrays([inputs], session.inputs) for name, session in sessions.items()}
    for name, session in sessions.items():
        session.latency(feeds[name], repeats=1, warmup=5)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in track(range(REPEATS), what, show=progress):
        for name, session in sessions.items():
            times[name].append(session.latency(feeds[name], repeats=1, warmup=0).median_ms)
    quantiles = {name: np.quantile(found, [0.1, 0.5, 0.9]) for name, found in times.items()}
    return {n: Latency(float(q[1]), float(q[0]), float(q[2]), REPEATS) for n, q in quantiles.items()}


def _read_latencies(path: Path) -> tuple[list[Any], dict[str, tuple[LatencyRow, ...]]] | None:
    if not path.exists():
        return None
    data = files.read_json(path)
    try:
        rows = TypeAdapter(dict[str, tuple[LatencyRow, ...]]).validate_python(data["rows"])  # type: ignore[index]
        return data["of"], rows  # type: ignore[index]
    except (ValidationError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} is no latency record; delete it to measure again") from error


def _weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _provenance(spec: PilotSpec, calibration: Samples, test: Samples, weights_hash: str) -> Provenance:
    return Provenance(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seed=spec.seed,
        data_hash=hashlib.sha256((calibration.hash + test.hash).encode()).hexdigest(),
        weights_hash=weights_hash,
        versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        machine={"system": platform.platform(), "processor": _processor(), "cores": str(os.cpu_count())},
    )


def _processor() -> str:
    """The processor's name, and whether it has the int8 dot products that integer kernels live on."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    text = path.read_text()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    vnni = [flag for flag in ("avx512_vnni", "avx_vnni", "asimddp", "amx_int8") if flag in text]
    return f"{name} ({', '.join(vnni) or 'no int8 dot product instructions'})"
