"""How to bring the recommended variant into service in steps, with the figures that each step takes.

Shadow run, canary, watching, a criterion to go back by, and the float file that one goes back to. How many labelled
samples a step takes is the formula of the A/B test (`lowbit.pilot.abtest.samples_needed`), with the effect and the
spread that the run measured; the share of the canary follows from the heaviest risk that was found.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from lowbit.pilot.abtest import samples_needed
from lowbit.pilot.record import Run, Trial
from lowbit.report import decision, figures, grounds, risks
from lowbit.report.figures import Metric
from lowbit.report.language import several, text

_SHARES = ("accuracy", "agreement")  # metrics whose margin is known where nothing was asked
_USUAL = 0.01  # margin of these: that of lowbit compare
_FEWEST = 100  # labelled answers that an interval of a share should have
_CANARY: dict[risks.Severity, float] = {
    "high": 0.01,
    "medium": 0.05,
    "low": 0.1,
}  # of the traffic, by the heaviest risk


@dataclass(frozen=True)
class Stage:
    """One step: its name, what to do in plain sentences, and the commands that do it."""

    name: str
    sentences: tuple[str, ...]
    commands: tuple[str, ...] = ()


def stages(run: Run) -> list[Stage]:
    """The steps for the recommended variant; none where no variant is "go"."""
    best = decision.recommended(run)
    if best is None:
        return []
    return [_shadow(best, run), _canary(best, run), _watch(best, run), _back(best, run), _keep(run)]


def instead(run: Run) -> list[str]:
    """What to do where no variant is "go": samples for those that are open, else what else to try."""
    trials = decision.variants(run)
    open_ones = [trial for trial in trials if trial.verdict == "borderline"]
    told = [
        text("{name}: {why}.", name=trial.name, why="; ".join(one.needs for one in asked if one.needs))
        for trial in open_ones
        for asked in [decision.requirements(trial, run)]
        if any(one.needs for one in asked)
    ]
    if told:
        told.append(
            text(
                "Decide once, at that number: looking again after each addition errs more often. Name the samples as "
                "data.test and run the pilot again; training is kept."
            )
        )
    elif trials:
        told.append(text("Keep the float model, and see below which methods were not tried here."))
    return told


def margin(trial: Trial, run: Run) -> float | None:
    """The loss that does not matter: the tolerance, else what float has to spare; None where neither is known."""
    if run.kpi.tolerance is not None:
        return run.kpi.tolerance
    reference = decision.baseline(run)
    spare = (
        reference.score.value - run.kpi.minimum
        if reference and reference.score and run.kpi.minimum is not None
        else 0.0
    )
    if math.isfinite(spare) and spare > 0:
        return float(f"{spare:.2g}")
    return _USUAL if run.kpi.metric in _SHARES else None


def samples(trial: Trial, run: Run) -> tuple[int | None, int | None]:
    """Labelled samples that show the variant no worse within the margin: with the loss as measured, and with none."""
    gap, room = trial.difference, margin(trial, run)
    variance = decision.spread(gap.low, gap.high, gap.samples) if gap else None
    if gap is None or room is None or variance is None:
        return None, None
    return samples_needed(gap.value, room, variance), samples_needed(0.0, room, variance)


def canary(trial: Trial, run: Run) -> float:
    """The share of the traffic to begin with, from the heaviest risk that was found."""
    found = [*risks.of_trial(trial, run), *grounds.of_run(run)]
    return _CANARY[next((one for one in risks.SEVERITIES if any(risk.severity == one for risk in found)), "low")]


def _shadow(best: Trial, run: Run) -> Stage:
    metric, room = Metric.of(run), margin(best, run)
    told = [
        text(
            "Run {name} beside the float model on live inputs, answer with the float model, and log both predictions.",
            name=best.name,
        )
        if run.kpi.metric == "agreement"
        else text(
            "Run {name} beside the float model on live inputs, answer with the float model, and log both predictions "
            "and, once it is known, the truth.",
            name=best.name,
        )
    ]
    needed, equal = samples(best, run)
    if needed is not None and room is not None:
        told.append(
            text(
                "Showing that it loses at most {margin} takes about {number} such samples if the loss is the one "
                "measured here ({change}), with 80 % power.",
                margin=metric.loss(room),
                number=f"{needed:,}",
                change=metric.change(best.difference.value if best.difference else 0.0),
            )
        )
    if equal is not None:
        told.append(text("If there is no loss at all, {number} do.", number=f"{equal:,}"))
    if room is None:
        told.append(text("Choose the margin first: the loss of the metric that does not matter to you."))
    elif needed is None:
        told.append(text("How many samples that takes cannot be planned from this run: its interval has no width."))
    return Stage(text("Shadow run"), tuple(told), (compare(best, run),))


def compare(best: Trial, run: Run) -> str:
    """The command that decides on logged outcomes."""
    room = margin(best, run)
    parts = ["lowbit", "compare", "--outcomes", "log.csv", "--a", "float", "--b", best.name]
    parts += [] if run.kpi.metric == "agreement" else ["--label", "truth"]
    parts += ["--metric", run.kpi.metric]
    return shlex.join(parts) + (" --margin MARGIN" if room is None else f" --margin {room:.4g}")


def _canary(best: Trial, run: Run) -> Stage:
    share = canary(best, run)
    found = [*risks.of_trial(best, run), *grounds.of_run(run)]
    heavy = [risk for risk in found if risk.severity == "high"]
    told = [
        several(
            "Settle the risk marked high above first.",
            "Settle the {number} risks marked high above first.",
            len(heavy),
        )
    ] * bool(heavy)
    told.append(
        text(
            "Then let it answer {share} of the requests, half of them next, and all in the end; go on when lowbit "
            "compare says “better”, “equivalent” or “no worse”.",
            share=f"{100 * share:g} %",
        )
    )
    needed, _ = samples(best, run)
    if needed is not None:
        told.append(
            text(
                "At {share}, {needed} labelled answers take {requests} requests, if every answer gets a label.",
                share=f"{100 * share:g} %",
                needed=f"{needed:,}",
                requests=f"{math.ceil(needed / share):,}",
            )
        )
    return Stage(text("Canary"), tuple(told))


def _watch(best: Trial, run: Run) -> Stage:
    reference = decision.baseline(run)
    parts = ["lowbit", "watch", best.file or "model.onnx", "--data", "new.npz"]
    parts += ["--reference", reference.file] if reference and reference.file else []
    return Stage(
        text("Watch"),
        (
            text(
                "Give it a thousand new inputs a day, no labels needed: it compares inputs, codes, clipping and "
                "classes with what the file was made for, and how often the file predicts as float. Exit status 1 "
                "means drift."
            ),
        ),
        (shlex.join(parts),),
    )


def _back(best: Trial, run: Run) -> Stage:
    metric, kpi, told = Metric.of(run), run.kpi, []
    if kpi.minimum is not None:
        number = _falls(best, kpi.minimum)
        told.append(
            text(
                "Go back to the float file when the whole 95 % interval of {metric} on labelled answers is below "
                "{minimum}.",
                metric=metric.name,
                minimum=metric.minimum(kpi.minimum),
            )
        )
        if number is not None and best.score:
            told.append(
                text(
                    "Looked at after every {number} of them, a value as measured here ({value}) is told from the "
                    "minimum in 80 % of all looks.",
                    number=f"{number:,}",
                    value=metric.value(best.score.value),
                )
            )
    if kpi.tolerance is not None:
        told.append(
            text(
                "Go back when lowbit compare says “worse” with the margin {margin}.", margin=metric.loss(kpi.tolerance)
            )
        )
    if run.limits.latency is not None:
        told.append(
            text("Go back when the median latency stays above {limit}.", limit=figures.milliseconds(run.limits.latency))
        )
    told.append(text("When lowbit watch exits with 1, stop widening the canary until the reason is known."))
    return Stage(text("Roll back"), tuple(told))


def _falls(best: Trial, minimum: float) -> int | None:
    """Samples that tell the measured value from the minimum."""
    score = best.score
    variance = decision.spread(score.low, score.high, score.samples) if score else None
    if score is None or variance is None or score.value <= minimum:
        return None
    found = samples_needed(score.value - minimum, 0.0, variance)
    return None if found is None else max(found, _FEWEST)


def _keep(run: Run) -> Stage:
    reference = decision.baseline(run)
    if reference is None or not reference.file:
        told = text("Keep the float model ready to serve, until the variant has seen a full cycle of your data.")
    else:
        told = text(
            "Keep {file} ({size}) ready to serve, until the variant has seen a full cycle of your data: a week, or a "
            "season.",
            file=reference.file,
            size=figures.size(reference.file_bytes),
        )
    return Stage(text("Keep the float file"), (told,))
