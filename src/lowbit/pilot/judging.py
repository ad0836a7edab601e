"""What a run says of its trials: means over seeds, latencies filled in, and how each stands to all that is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lowbit.pilot import statistics, targets
from lowbit.pilot.record import LatencyRow, RepeatRow, Run, SearchRow, Trial
from lowbit.pilot.spec import PilotSpec, RuntimeSpec
from lowbit.pilot.task import Task


def assemble(
    run: Run,
    spec: PilotSpec,
    tasks: Sequence[Task],
    trials: Sequence[Trial],
    latencies: Mapping[str, tuple[LatencyRow, ...]],
) -> Run:
    """The run with its trials: one a variant, with those of its other seeds in it, latencies filled in, all judged.

    `trials` are those of `tasks`, in their order.

    Raises:
        DataError: a latency is asked of a trial that was not timed.
    """
    stands, found = standing(tasks, trials), []
    for name, place in stands.items():
        task, trial = tasks[place], trials[place]
        seed = spec.seed if task.seed is None else task.seed
        others = [
            _repeat(other, spec.seed if one.seed is None else one.seed)
            for i, (one, other) in enumerate(zip(tasks, trials, strict=True))
            if (one.repeats or one.name) == name and i != place
        ]
        whole = replace(trial, name=name, seed=seed, latencies=latencies.get(name, ()))
        whole = _told(whole, task, spec.runtime)
        found.append(_judged(_over_seeds(whole, others, run.kpi.metric), run))
    return replace(run, trials=tuple(found))


def standing(tasks: Sequence[Task], trials: Sequence[Trial]) -> dict[str, int]:
    """By variant, the index of the trial whose file stands for it: of the first seed that did not fail.

    That of the first seed where all failed. Variants are in the order of their tasks.
    """
    found: dict[str, int] = {}
    for i, (task, trial) in enumerate(zip(tasks, trials, strict=True)):
        name = task.repeats or task.name
        first = found.setdefault(name, i)
        if trials[first].score is None and trial.score is not None:
            found[name] = i
    return found


def _repeat(trial: Trial, seed: int) -> RepeatRow:
    return RepeatRow(seed, trial.score, trial.difference, trial.file_bytes, trial.error, trial.bops)


def _over_seeds(trial: Trial, further: list[RepeatRow], metric: str) -> Trial:
    """The trial with the mean over seeds in place of its own score; a seed that failed is told and left out of it."""
    if not further or trial.score is None:
        return replace(trial, repeats=tuple(further))
    own = _repeat(trial, trial.seed)
    scores = [one.score for one in (own, *further) if one.score]
    gaps = [one.difference for one in (own, *further) if one.difference]
    failed = tuple(f"seed {one.seed} failed: {one.error}" for one in further if not one.score)
    return replace(
        trial,
        score=statistics.over_seeds(scores, metric),
        difference=statistics.over_seeds(gaps, metric, difference=True) if gaps else None,
        repeats=tuple(further),
        own=own,
        notes=(*trial.notes, *failed),
    )


def _told(trial: Trial, task: Task, runtime: RuntimeSpec) -> Trial:
    """The trial with what the target has not: choices that were left out of a search, formats that it widens."""
    if isinstance(trial.search, SearchRow) and task.refused:
        trial = replace(trial, search=replace(trial.search, refused={**trial.search.refused, **task.refused}))
    if trial.verification is not None and runtime.widen and trial.recipe is not None:
        beyond = targets.widened(trial.layers, runtime.formats)
        whole = replace(trial.verification, obstacles=(*trial.verification.obstacles, *beyond))
        trial = replace(trial, verification=whole)
    return trial


def _judged(trial: Trial, run: Run) -> Trial:
    if trial.score is None:
        return replace(trial, verdict="failed", checks=())
    checks = statistics.checks(trial, run.kpi, run.limits)
    return replace(trial, checks=checks, verdict=statistics.worst(checks))
