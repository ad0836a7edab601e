"""What a pilot file will do, how long about, and what it will write, told before any of it runs.

Everything that can be wrong is looked at: the file, its recipes against the layers, the data, the metric, the training
data. Then times are estimated (`lowbit.pilot.estimates`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from lowbit import files, graph
from lowbit.batches import shapes_of
from lowbit.errors import LowbitError, RecipeError
from lowbit.export.capture import capture
from lowbit.pilot.costing import choices_of
from lowbit.pilot.estimates import Ground
from lowbit.pilot.fitting import mismatches, opening, tried, unfit_outputs, unwritable
from lowbit.pilot.outputs import example
from lowbit.pilot.passes import Watch
from lowbit.pilot.plan import Plan, size
from lowbit.pilot.run import tasks_of
from lowbit.pilot.spec import PilotSpec, load_spec, problems_of
from lowbit.pilot.statistics import check_metric
from lowbit.pilot.task import Samples, Task
from lowbit.pilot.trial import finished, threads
from lowbit.pilot.wording import counted


class PlanError(RecipeError):
    """Every problem that keeps a pilot from running; the message is the first one."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0])
        self.problems = tuple(problems)


def plan_file(path: Path, out: Path | None = None, *, jobs: int = 1) -> Plan:
    """Look at all that a pilot file names, and plan it. Nothing is written and no variant runs.

    Args:
        path: the pilot file.
        out: the run folder, ``runs/<name>`` by default.
        jobs: variants at once.

    Raises:
        PlanError: something is wrong; `problems` has all that was found.
        DataError: the file cannot be read.
    """
    from lowbit import models

    data, base, found = files.read_yaml(path), path.resolve().parent, list[str]()
    if isinstance(data, dict) and (wrong := problems_of(data, os.fspath(path))):
        raise PlanError(wrong)
    try:
        spec = load_spec(path)
    except LowbitError as error:
        raise PlanError([str(error)]) from error
    folder = out or Path("runs", spec.name)
    model = tried(found, lambda: models.load(spec.model, spec.weights, base))
    opened = {
        key: tried(found, opening(section, base, spec.seed, f"data.{key}"))
        for key, section in spec.data
        if section is not None
    }
    calibration, test = opened["calibration"], opened["test"]
    if test is not None:
        labels = None if test.labels is None else test.labels.numpy()
        tried(found, lambda: check_metric(spec.kpi.metric, labels, base))
    found += unwritable(folder)
    if model is not None:
        found += mismatches(model, spec, base, os.fspath(path))
    if model is None or calibration is None or test is None:
        raise PlanError(found)
    try:
        tasks, train = tasks_of(spec, model, calibration, test, folder, train=opened.get("train"), base=base)
        example_of = example(test, spec.runtime.batches[0])
        found += unfit_outputs(model, spec, example_of, os.fspath(path))
        if isinstance(graph.trace(copy.deepcopy(model)), str):  # then it cannot always be exported either
            tried(found, lambda: capture(model, example(test, 2), 21, dynamic_batch=True))
        for task in tasks[1:]:
            if task.search or task.factorize:  # what they can choose from has to exist
                tried(found, lambda task=task: choices_of(task, model, example_of), f"variant '{task.name}': ")  # type: ignore[misc]
    except LowbitError as error:
        found += [str(error)] if str(error) not in found else []
    if found:
        raise PlanError(found)
    return plan_pilot(spec, model, tasks, (calibration, train, test), folder, jobs=jobs)


def plan_pilot(
    spec: PilotSpec,
    model: nn.Module,
    tasks: Sequence[Task],
    data: tuple[Samples, Samples, Samples],
    folder: Path,
    *,
    jobs: int = 1,
) -> Plan:
    """The plan of tasks that fit the model and the data: what is kept, and what the rest takes.

    Args:
        spec: the pilot file.
        model: the float network.
        tasks: of `lowbit.pilot.run.tasks_of`.
        data: for calibration, training and test.
        folder: the run folder.
        jobs: variants at once.

    Raises:
        LowbitError: a trial's record is damaged, or the model does not take the data.
    """
    with threads(spec.runtime.threads):
        ground = Ground(spec, model, data, Watch(model, tasks, data[2]))
        kept = {task.name for task in tasks if finished(task)}
        first = next((task.name for task in tasks if task.name not in kept), "")
        trials = tuple(ground.trial(task, kept=task.name in kept, first=task.name == first) for task in tasks)
        last = ground.last(
            sum(not task.repeats for task in tasks), nothing_new=not first and (folder / "latency.json").exists()
        )
    left = [task for task in tasks if task.name not in kept]
    described = ("calibration", data[0]), ("training", data[1]), ("test", data[2])
    return Plan(
        spec.name,
        f"{', '.join(_asked(spec))}, {spec.runtime.name}, {counted(spec.runtime.threads, 'thread')}",
        tuple(f"{what}: {_described(one)}" for what, one in described if what != "training" or one is not data[0]),
        folder,
        trials,
        last,
        max((ground.checkpoint(task) for task in left), default=0.0),
        max((ground.memory(task) for task in left), default=ground.memory(tasks[0])),
        jobs,
        ground.basis,
        _seeds(spec),
    )


def _asked(spec: PilotSpec) -> Iterator[str]:
    """What is asked of a variant."""
    yield str(spec.kpi.asked())
    if spec.budgets and spec.budgets.size is not None:
        yield f"file <= {size(spec.budgets.size)}"
    if spec.budgets and spec.budgets.bops is not None:
        yield f"BOPs <= {spec.budgets.bops:,.0f}"
    if spec.budgets and spec.budgets.latency is not None:
        yield f"latency <= {spec.budgets.latency:g} ms at batch {spec.runtime.batches[0]}"


def _seeds(spec: PilotSpec) -> str:
    """What several seeds are for; empty where there are none."""
    if len(spec.seeds) < 2:
        return ""
    learning = sum(variant.learns for variant in spec.variants)
    named = ", ".join(map(str, spec.seeds))
    many = f"{learning} of {counted(len(spec.variants), 'variant')} {'learns' if learning == 1 else 'learn'}"
    return f"seeds {named}: {many} and {'runs' if learning == 1 else 'run'} {len(spec.seeds)} times, the rest once"


def _described(data: Samples) -> str:
    shape = shapes_of(next(iter(data.batches(1))))
    kinds = {None: "no labels", True: "targets", False: "classes"}
    labels = kinds[None if data.labels is None else data.labels.is_floating_point()]
    return f"{counted(len(data), 'sample')} of {shape}, {labels}"
