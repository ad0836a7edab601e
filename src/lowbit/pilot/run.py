"""A whole pilot: every variant, here or on a cluster, latency measured interleaved at the end, one record of it all.

The run folder:

    run.json                     what was asked and what made it (a `Run` without trials)
    variants/<name>/             model.onnx, manifest.json, recipe.yaml, outputs.npy, and last trial.json
    variants/<name>/training/    of a variant that trains: its logs, and until it is finished its checkpoints; factors
    variants/<name>/output/      the same of an output that learned a path; its weights.safetensors beside the recipe
    variants/<name>/seeds/<n>/   the same variant trained with another seed, as a trial of its own
    costs.json                   what choices were measured to cost on the runtime, if a variant searches or factorizes
    latency.json                 all files timed in turn, so that their ratios hold on a noisy machine
    report.html                  written by `lowbit.report` from the above
    .lock                        while a command works here, and one in the folder of each variant (`executor.py`)

Killed at any moment and started again, a pilot keeps every finished trial and ends with the same result.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import parallel_config
from pydantic import BaseModel
from torch import nn

from lowbit import files
from lowbit.batches import Batch, call, output_tensor
from lowbit.costs import Latency
from lowbit.environment import this_processor, versions
from lowbit.errors import DataError, LowbitError, TrainingError
from lowbit.export.codes import feed_of
from lowbit.export.runtime import Session, open_session
from lowbit.pilot import executor, identity, statistics, targets
from lowbit.pilot.costing import measure_ahead
from lowbit.pilot.judging import assemble, standing
from lowbit.pilot.labels import check_labels
from lowbit.pilot.outputs import example
from lowbit.pilot.record import LatencyRow, Limits, Provenance, Run, Timings, Trial, read
from lowbit.pilot.shared import Imports, Shared
from lowbit.pilot.spec import PilotSpec, Variant
from lowbit.pilot.task import Samples, Settings, Sources, Task, of_classes
from lowbit.pilot.trial import finished, run_trial, threads
from lowbit.progress import track
from lowbit.recipe import Recipe
from lowbit.training.samples import crop_and_flip

REPEATS = 100
_TRAIN = ("distill", "search", "output", "features")  # parts of a variant that train
Say = Callable[[str], None]


def run_pilot(
    spec: PilotSpec,
    model: nn.Module,
    calibration: Samples,
    test: Samples,
    folder: Path,
    *,
    train: Samples | None = None,
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
        train: inputs that variants with `distill`, `search` or `output` train on; by default what the pilot file says.
        base: what paths in the pilot file are relative to; the current folder by default.
        provenance: more to note in each file's manifest, such as where the data is.
        jobs: trials at once, in processes of their own. Inside `joblib.parallel_config` of a cluster ("dask", "ray") it
            says nothing: trials run there, all but the float baseline, and the folder has to be shared.
        say: receives a line for each step.
        progress: show bars on a terminal.

    Raises:
        DataError: the metric or a loss needs labels that are missing, the model does not take the data, inputs cannot
            be cropped, a record of an earlier run is damaged, results cannot be written, another command works in the
            folder, or a worker cannot see it.
        RecipeError: a variant's recipe cannot be read.
    """
    where, metric, runtime = base or Path(), spec.kpi.metric, spec.runtime
    tasks, train = tasks_of(spec, model, calibration, test, folder, train=train, base=where)
    noted, costs = dict(provenance or {}), folder / "costs.json"
    classes = of_classes(metric, test.labels)
    settings = Settings(metric, spec.seed, runtime.name, runtime.threads, noted, where, classes, costs)
    weights_hash, packages = identity.weights_hash(model), _versions(spec)
    data = {"calibration": calibration, "test": test} | ({} if train is calibration else {"train": train})
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(
        spec.name,
        spec.model,
        spec.kpi.asked(),
        spec.model_dump(mode="json", exclude_defaults=True),
        _provenance(spec, data, weights_hash, packages),
        limits=spec.budgets.limits() if spec.budgets else Limits(),
    )
    with executor.only(folder) as name:
        if (folder / "run.json").exists():
            earlier = read(Run, folder / "run.json")
            if earlier.pilot == run.pilot and _same_material(earlier.provenance, run.provenance):
                run = earlier  # taken up again: it started when it first started
        files.write_json(folder / "run.json", asdict(run))
        imports = Imports((spec.model, metric), where)
        shared = Shared(imports, model, Sources(calibration, train, test), settings, folder, name, packages)
        trials = _trials(tasks, shared, jobs, say, progress)
        return assemble(run, spec, tasks, trials, _latencies(run, tasks, trials, spec, test, folder, progress))


def _trials(tasks: list[Task], shared: Shared, jobs: int, say: Say, progress: bool) -> list[Trial]:
    """The trials of all tasks, in their order: kept where they are finished, else done."""
    done = {t.name: trial for t in tasks if (trial := finished(t))}
    for i, trial in enumerate(done.values(), start=1):
        say(f"[{i}/{len(tasks)}] {summary(trial)} (kept)")

    def do(some: list[Task]) -> None:
        left = [t for t in some if t.name not in done]
        for trial in executor.run_all(left, shared, _do, jobs=jobs, progress=progress):
            done[trial.name] = trial
            say(f"[{len(done)}/{len(tasks)}] {summary(trial)}")

    with parallel_config("loky"):  # the float baseline alone and here: the others are compared with it
        do(tasks[:1])
    if jobs > 1 or executor.elsewhere():  # one after the other, while nothing else runs, because times count
        for task in tasks:
            if (task.search or task.factorize) and task.name not in done:
                with contextlib.suppress(LowbitError):  # which the trial meets again, and keeps
                    measure_ahead(task, shared.model, shared.data, shared.settings, progress)
    do(tasks[1:])
    return [done[t.name] for t in tasks]


def tasks_of(
    spec: PilotSpec,
    model: nn.Module,
    calibration: Samples,
    test: Samples,
    folder: Path,
    *,
    train: Samples | None = None,
    base: Path | None = None,
) -> tuple[list[Task], Samples]:
    """What a pilot does, the float baseline first, and the data that its variants train on; nothing is written.

    Arguments and errors are those of `run_pilot`.
    """
    where, metric, runtime = base or Path(), spec.kpi.metric, spec.runtime
    labels = None if test.labels is None else test.labels.numpy()
    statistics.check_metric(metric, labels, where)
    classes = of_classes(metric, test.labels)
    trained_on, black = _training_data(spec, calibration, train, where)
    if test.labels is None and (named := next((v.name for v in spec.variants if v.features), None)):
        raise DataError(f"variant '{named}': features are judged by labels, and the test data has none; name them")
    with threads(runtime.threads), torch.no_grad():
        firsts = [next(iter(samples.batches(2))) for samples in (test, calibration, trained_on)]
        output, *_ = (output_tensor(call(model, first)) for first in firsts)
        behavior = identity.behavior(model, [calibration, test])
    if test.labels is not None:
        check_labels(metric, output, test.labels)
    meant = [metric, "" if classes else "no classes", "a mean over outputs" if metric == "r2" else ""]
    asked_of: list[object] = [spec.model, identity.weights_hash(model)]
    asked_of += [identity.code_hash(model, [spec.model, metric], where), behavior, calibration.hash, test.hash, meant]
    beside = [runtime.name, runtime.threads, _versions(spec)]

    def task(name: str, recipe: Recipe | None, seed: int = spec.seed, **how: Any) -> Task:
        asked = [recipe.to_dict() if recipe else None, how, *([trained_on.hash] if how.keys() & {*_TRAIN} else [])]
        content = json.dumps([*asked_of, seed, *beside, *asked], sort_keys=True, default=_plain)
        fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        own = folder / "variants" / name
        if seed == spec.seed:
            return Task(name, own, fingerprint, recipe, **how)
        place = own / "seeds" / str(seed)
        return Task(f"{name}, seed {seed}", place, fingerprint, recipe, seed=seed, repeats=name, **how)

    tasks, repeats = [task("float", None)], list[Task]()
    for v in spec.variants:
        recipe = v.to_recipe(where, f"{spec.name}: {v.name}")
        how, refused = _how(v, spec, black, trained_on, classes=classes)
        _check_augmentation(v.name, how, calibration, trained_on)
        every = [
            task(v.name, recipe, seed, opset=v.opset, level=v.level, widen_most=v.widen_most, **how)
            for seed in ((spec.seed, *spec.seeds[1:]) if v.learns else (spec.seed,))
        ]
        first, *others = (replace(one, refused=refused) for one in every)
        tasks.append(first)
        repeats += others
    return [*tasks, *repeats], trained_on


def _training_data(
    spec: PilotSpec, calibration: Samples, given: Samples | None, folder: Path
) -> tuple[Samples, tuple[float, ...]]:
    """What variants train on, the calibration data if nothing else is said, and what a black pixel is in it.

    Raises:
        DataError: it cannot be read, or a loss needs labels that it has not.
    """
    trained = [(v.name, key, how) for v in spec.variants for key in _TRAIN if (how := getattr(v, key))]
    said = spec.data.train
    if not trained:
        return calibration, ()
    train = given if given is not None else said.open(folder, spec.seed) if said else calibration
    for name, key, how in trained:
        if key == "output":
            if how.labels and train.labels is None:
                raise DataError(
                    f"variant '{name}': output.labels is true, and the data that it trains on has none; name them in "
                    "data.train, or leave labels out to learn from the float model"
                )
        elif key == "features":
            if train.labels is None or train.labels.is_floating_point():
                found = "no labels" if train.labels is None else "labels that are no classes"
                raise DataError(
                    f"variant '{name}': features are read by a head that learns classes, and the data that it trains "
                    f"on has {found}; name them in data.train"
                )
        elif how.loss == "labels" and (train.labels is None or train.labels.is_floating_point()):
            found = "no labels" if train.labels is None else "labels that are no classes"
            raise DataError(
                f"variant '{name}': {key}.loss 'labels' learns classes, the data that it trains on has {found}; name "
                "them in data.train, or leave loss out to learn from the float model"
            )
    return train, (said or spec.data.calibration).preprocess.black()


def _how(
    v: Variant, spec: PilotSpec, black: tuple[float, ...], train: Samples, *, classes: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a variant asks for beside post-training, and the choices that the target refuses.

    `black` is a black pixel of `train`, the data that trains.
    """
    how: dict[str, Any] = {}
    native, refused = () if spec.runtime.widen else spec.runtime.formats, dict[str, str]()
    if v.factorize:
        calibrated = spec.data.calibration.preprocess.black()
        factorize = targets.factorized(v.factorize, native) if native else v.factorize
        how |= {"factorize": factorize, "black": calibrated, "batch": spec.runtime.batches[0]}
    if v.distill:
        distill = (
            v.distill.model_copy(update={"loss": "mse"})
            if v.output
            else v.distill.of_metric(spec.kpi.metric, classes=classes)
        )
        how |= {"black": black, "distill": distill}
    if v.output:
        classes = train.labels is not None and not train.labels.is_floating_point()
        scores = spec.kpi.metric == "accuracy" or (spec.kpi.metric == "agreement" and classes)
        scores = scores and v.output.labels is None  # class scores are learned from the float model
        how |= {"output": v.output.model_copy(update={"labels": False}) if scores else v.output}
    if v.features:
        how |= {"features": v.features}
    if v.search:
        of_weights = {"granularity": v.granularity, "batch": spec.runtime.batches[0]}
        search, refused = targets.searched(v.search, native) if native else (v.search, refused)
        how |= {"black": black, "search": search.of_metric(spec.kpi.metric, classes=classes), **of_weights}
    return how, refused


def _check_augmentation(variant: str, how: Mapping[str, Any], calibration: Samples, train: Samples) -> None:
    """Whether samples can be cropped and flipped as a variant asks, tried on one of them.

    Raises:
        DataError: they cannot.
    """
    for key, samples in (("distill", train), ("search", train), ("factorize", calibration)):
        asked = [name for name in ("crop", "flip") if key in how and getattr(how[key], name)]
        if asked:
            try:
                augment = crop_and_flip(how[key].crop, flip=how[key].flip, fill=how["black"])
                augment(next(iter(samples.batches(1))), torch.Generator())
            except TrainingError as error:
                raise DataError(
                    f"variant '{variant}': {' and '.join(f'{key}.{one}' for one in asked)}: {error}"
                ) from error


def _plain(how: BaseModel) -> dict[str, Any]:
    """What the file says, without the defaults of the method."""
    return how.model_dump(mode="json", exclude_none=True)


def _same_material(a: Provenance, b: Provenance) -> bool:
    return (a.data_hash, a.weights_hash, a.versions, a.machine) == (b.data_hash, b.weights_hash, b.versions, b.machine)


def summary(trial: Trial) -> str:
    """A trial in one line."""
    if trial.score is None:
        return f"{trial.name:<16} failed: {trial.error}"
    return f"{trial.name:<16} {trial.score.value:#.5g}  {trial.file_bytes / 1e6:.3f} MB  {trial.seconds:.0f} s"


def _do(task: Task, shared: Shared, progress: bool) -> Trial:
    return run_trial(task, shared.model, shared.data, shared.settings, progress=progress)


def _latencies(
    run: Run, tasks: list[Task], trials: list[Trial], spec: PilotSpec, test: Samples, folder: Path, progress: bool
) -> dict[str, tuple[LatencyRow, ...]]:
    """Time all files in turn, batch by batch size; kept while files, machine and versions are the same."""
    stands = standing(tasks, trials).items()
    paths = {name: tasks[i].folder / "model.onnx" for name, i in stands if trials[i].score}
    of = {
        "files": {name: files.sha256(path) for name, path in paths.items()},
        "runtime": spec.runtime.model_dump(mode="json"),
        "machine": run.provenance.machine,
        "versions": run.provenance.versions,
    }
    record = folder / "latency.json"
    if record.exists() and (kept := read(Timings, record)).of == of:
        return kept.rows
    sessions = {n: open_session(p, runtime=spec.runtime.name, threads=spec.runtime.threads) for n, p in paths.items()}
    rows: dict[str, list[LatencyRow]] = {name: [] for name in paths}
    for batch in spec.runtime.batches:
        inputs = example(test, batch)
        for name, latency in _interleaved(sessions, inputs, f"time batch {batch}", progress).items():
            rows[name].append(LatencyRow(spec.runtime.name, batch, spec.runtime.threads, **asdict(latency)))
    result = {name: tuple(found) for name, found in rows.items()}
    files.write_json(record, asdict(Timings(of, result)))
    return result


def _interleaved(sessions: dict[str, Session], inputs: Batch, what: str, progress: bool) -> dict[str, Latency]:
    feeds = {name: feed_of(inputs, session) for name, session in sessions.items()}
    for name, session in sessions.items():
        session.latency(feeds[name], repeats=1, warmup=5)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in track(range(REPEATS), what, show=progress):
        for name, session in sessions.items():
            times[name].append(session.latency(feeds[name], repeats=1, warmup=0).median_ms)
    quantiles = {name: np.quantile(found, [0.1, 0.5, 0.9]) for name, found in times.items()}
    return {n: Latency(float(q[1]), float(q[0]), float(q[2]), REPEATS) for n, q in quantiles.items()}


def _versions(spec: PilotSpec) -> dict[str, str]:
    """Of the packages that the figures of a pilot depend on."""
    return versions(spec.runtime.name, *(["transformers"] if spec.model.startswith("hf:") else []))


def command_of(given: Sequence[str]) -> str:
    """The command that makes these figures again; the language of the page is no part of it."""
    words = [Path(given[0]).name]
    for before, word in itertools.pairwise(given):
        if "--language" not in (before, word) and not word.startswith("--language="):
            words.append(word)
    return shlex.join(words)


def _provenance(
    spec: PilotSpec, data: Mapping[str, Samples], weights_hash: str, packages: dict[str, str]
) -> Provenance:
    return Provenance(
        command=command_of(sys.argv),
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seed=spec.seed,
        data_hash=hashlib.sha256("".join(one.hash for one in data.values()).encode()).hexdigest(),
        weights_hash=weights_hash,
        versions=packages,
        machine={"system": platform.platform(), "processor": str(this_processor()), "cores": str(os.cpu_count())},
        samples={name: len(one) for name, one in data.items()},
    )
