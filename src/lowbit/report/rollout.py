"""How to bring the recommended variant into service in steps, with the figures that each step takes.

Shadow run, canary, watching, a criterion to go back by, and the float file that one goes back to. How many samples a
step takes is planned as `lowbit compare` plans them (`lowbit.pilot.power`), with the effect and the spread that the run
measured; the share of the canary follows from the heaviest risk that was found. Of a variant with several seeds the
figures are those of the first one, whose file is deployed.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from lowbit.pilot.comparison import MARGIN
from lowbit.pilot.metrics import AGREEMENTS, SHARES
from lowbit.pilot.power import differing, needed_for_agreement, needed_for_fall, needed_for_pairs, samples_needed
from lowbit.pilot.record import CheckRow, Run, Score, Trial
from lowbit.report import decision, figures, grounds, requirements, risks
from lowbit.report.figures import Metric
from lowbit.report.language import several, text

_FEWEST = 100  # samples that a decision should have, however few a plan asks for
_FALL = 0.02  # below the minimum of a share: worth going back for, and some hundred to thousand answers show it
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
    return [_shadow(best, run), _canary(best, run), _watch(best, run), _back(run), _keep(run)]


def instead(run: Run) -> list[str]:
    """What to do where no variant is "go": samples for those that are open, else what else to try."""
    trials = decision.variants(run)
    open_ones = [trial for trial in trials if trial.verdict == "borderline"]
    told = [
        text(
            "{name}: {why}.",
            name=trial.name,
            why="; ".join(
                text("for {requirement}: {needs}", requirement=f"{one.name} {one.asked}", needs=one.needs)
                for one in asked
                if one.needs
            ),
        )
        for trial in open_ones
        for asked in [requirements.of_trial(trial, run)]
        if any(one.needs for one in asked)
    ]
    if any(requirements.needed(check, one, run) for one in open_ones for check in one.checks if _is_open(check)):
        told.append(
            text(
                "Decide once, at that number: looking again after each addition errs more often. Name the samples as "
                "data.test and run the pilot again: variants are trained and measured anew, and the same training data "
                "and seeds give the same weights."
            )
        )
    reference = decision.baseline(run)
    if told or not trials:
        return told
    if reference is not None and reference.verdict == "misses":
        return [
            text(
                "Nothing that was measured meets what was asked, the float model included: ask for less, or train it "
                "further."
            )
        ]
    return [text("Keep the float model, and see below which methods were not tried here.")]


def _is_open(check: CheckRow) -> bool:
    return check.verdict == "borderline"


def margin(run: Run) -> float | None:
    """The loss that does not matter: the tolerance, else what float has to spare; None where neither is known."""
    if run.kpi.tolerance is not None:
        return run.kpi.tolerance
    reference, bound = decision.baseline(run), run.kpi.bound
    score = reference.score if reference else None
    spare = run.kpi.sign * (score.value - bound) if score and bound is not None else 0.0
    if math.isfinite(spare) and spare > 0:
        return float(f"{spare:.2g}")
    return MARGIN if run.kpi.metric in SHARES else None


def samples(trial: Trial, run: Run) -> tuple[int | None, int | None]:
    """Samples that show the file no worse within the margin: with the loss as measured, and with none.

    None where that cannot be planned; the loss as measured is no less than the margin, for one.
    """
    gap, room = _own_loss(trial), margin(run)
    if gap is None or room is None:
        return None, None
    effect = run.kpi.gain(gap).value
    return _planned(effect, gap, room, run.kpi.metric), _planned(0.0, gap, room, run.kpi.metric)


def _own_loss(trial: Trial) -> Score | None:
    """The difference from float of the file to deploy: of several seeds that of the first."""
    return trial.own.difference if trial.own else trial.difference


def _planned(effect: float, gap: Score, room: float, metric: str) -> int | None:
    """Samples that `lowbit compare` takes to say "no worse", if so much is gained, with the spread of `gap`."""
    if effect + room <= 0:
        return None
    if metric == "agreement":
        found = needed_for_agreement(-effect, room)
    elif metric in SHARES:
        found = needed_for_pairs(differing(gap), effect, room)
    else:
        variance = requirements.spread(gap.low, gap.high, gap.samples)
        found = None if variance is None else samples_needed(effect, room, variance)
    return None if found is None else max(found, _FEWEST)


def canary(trial: Trial, run: Run) -> float:
    """The share of the traffic to begin with, from the heaviest risk that was found."""
    found = [*risks.of_trial(trial, run), *grounds.of_run(run)]
    return _CANARY[next((one for one in risks.SEVERITIES if any(risk.severity == one for risk in found)), "low")]


def _shadow(best: Trial, run: Run) -> Stage:
    metric, room, gap = Metric.of(run), margin(run), _own_loss(best)
    told = [_beside(best, run)]
    needed, equal = samples(best, run)
    if needed is not None and room is not None and gap is not None:
        told.append(
            text(
                "Showing that it loses at most {margin} takes about {number} such samples if the loss is the one "
                "measured here ({change}), with 80 % power.",
                margin=metric.loss(room),
                number=f"{needed:,}",
                change=metric.change(gap.value),
            )
        )
    if equal is not None:
        told.append(text("If there is no loss at all, {number} do.", number=f"{equal:,}"))
    if room is None:
        told.append(text("Choose the margin first: the loss of the metric that does not matter to you."))
    elif gap is not None and run.kpi.gain(gap).value + room <= 0:
        told.append(
            text(
                "No number of samples shows that it loses less than {margin}, if the loss is the one measured here "
                "({change}).",
                margin=metric.loss(room),
                change=metric.change(gap.value),
            )
        )
    elif needed is None:
        told.append(text("How many samples that takes cannot be planned from this run: its interval has no width."))
    return Stage(text("Shadow run"), tuple(told), (compare(best, run),))


def _beside(best: Trial, run: Run) -> str:
    """What to run and to log."""
    if run.kpi.metric == "cosine":
        return text(
            "Run {name} beside the float model on live inputs, answer with the float model, and log the whole outputs "
            "of both, as two arrays of an npz file.",
            name=best.name,
        )
    if run.kpi.metric == "agreement":
        return text(
            "Run {name} beside the float model on live inputs, answer with the float model, and log both predictions.",
            name=best.name,
        )
    if best.quantities:
        return text(
            "Run {name} beside the float model on live inputs, answer with the float model, and log the outputs of "
            "both and, once it is known, the truth, as three arrays of an npz file with a row a sample.",
            name=best.name,
        )
    return text(
        "Run {name} beside the float model on live inputs, answer with the float model, and log both predictions and, "
        "once it is known, the truth.",
        name=best.name,
    )


def compare(best: Trial, run: Run) -> str:
    """The command that decides on logged outcomes."""
    several_numbers = run.kpi.metric == "cosine" or bool(best.quantities)  # a sample, which a column does not hold
    room, log = margin(run), "log.npz" if several_numbers else "log.csv"
    parts = ["lowbit", "compare", "--outcomes", log, "--a", "float", "--b", best.name]
    parts += [] if run.kpi.metric in AGREEMENTS else ["--label", "truth"]
    parts += ["--metric", run.kpi.metric, *(["--smaller-is-better"] if run.kpi.smaller_is_better else [])]
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
        values = {"share": f"{100 * share:g} %", "needed": f"{needed:,}", "requests": f"{math.ceil(needed / share):,}"}
        told.append(
            text("At {share}, {needed} answers take {requests} requests; let float answer the same ones.", **values)
            if run.kpi.metric in AGREEMENTS
            else text(
                "At {share}, {needed} labelled answers take {requests} requests, if every answer gets a label; let "
                "float answer the same ones, since the comparison is paired.",
                **values,
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
                "Give it a thousand new inputs a day, no labels needed: it compares inputs, codes, clipping and the "
                "values of each output with what the file was made for, and how far outputs lie from float's. Exit "
                "status 1 means drift."
            )
            if best.apart is not None
            else text(
                "Give it a thousand new inputs a day, no labels needed: it compares inputs, codes, clipping and "
                "classes with what the file was made for, and how often the file predicts as float. Exit status 1 "
                "means drift."
            ),
        ),
        (shlex.join(parts),),
    )


def _back(run: Run) -> Stage:
    metric, kpi, told = Metric.of(run), run.kpi, []
    if kpi.maximum is not None:
        told.append(
            text(
                "Go back to the float file when the whole 95 % interval of {metric} on labelled answers is above "
                "{maximum}.",
                metric=metric.name,
                maximum=metric.limit(kpi.maximum),
            )
        )
    if kpi.minimum is not None:
        values = {"metric": metric.name, "minimum": metric.limit(kpi.minimum)}
        told.append(
            text(
                "Go back to the float file when the whole 95 % interval of {metric}, on answers that float gave too, "
                "is below {minimum}.",
                **values,
            )
            if kpi.metric in AGREEMENTS
            else text(
                "Go back to the float file when the whole 95 % interval of {metric} on labelled answers is below "
                "{minimum}.",
                **values,
            )
        )
        fall = kpi.minimum - _FALL
        number = needed_for_fall(fall, kpi.minimum, _FEWEST) if kpi.metric in SHARES and fall > 0 else None
        if number is not None:
            told.append(
                text(
                    "Looked at after every {number} of them, a fall to {value} is seen in 80 % of all looks.",
                    number=f"{number:,}",
                    value=metric.limit(fall),
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
