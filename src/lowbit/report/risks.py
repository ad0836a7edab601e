"""What can go wrong with a variant after the decision, read from what its run recorded; `grounds` is about the run.

A risk says what was found, where, and what to do about it. "High" ones should be settled before anybody is served,
"medium" ones looked at in the shadow run, "low" ones be known. Every threshold is a constant here, with its reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lowbit.errors import FormatError
from lowbit.formats import FLOAT, parse
from lowbit.pilot.record import LayerRow, Run, Trial
from lowbit.report import decision, figures, requirements
from lowbit.report.figures import Metric
from lowbit.report.language import of_record, several, text

Severity = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")

FLIPS = 0.001  # of the numbers; one in a thousand is what p99.9 sees
MANY_FLIPS = 0.01
AGREEMENT = 0.95  # below, more than one prediction in twenty is another one, even if as many are right
DIFFERENT = 0.999  # of predictions, file and model; rounding of a float multiplier changes fewer
CODES = 1  # steps by which file and model may differ: one is the rounding of a float multiplier
CLIPPED = 0.05  # of a tensor's numbers; a percentile that calibrates well cuts off less than a hundredth
SLOWER = 1.02  # times float's median: less is noise of the clock
NOISY = 1.5  # times the median is the 90th percentile: the machine was busy
ONE_CODE = 0.98  # of all codes: what else there is can tell little
FLOAT_SHARE = 0.1  # of the MACs in float layers: less is seldom what the time goes to


@dataclass(frozen=True)
class Risk:
    """What was found, where (layers, tensors or a runtime; may be empty), what to do, and how much it weighs."""

    what: str
    where: str
    remedy: str
    severity: Severity


def name(severity: Severity) -> str:
    """The severity as the page says it."""
    return {"high": text("high"), "medium": text("medium"), "low": text("low")}[severity]


def of_trial(trial: Trial, run: Run) -> list[Risk]:
    """Everything that was found about a variant, what weighs most first; nothing about a failed one or float."""
    if trial.recipe is None or trial.verdict == "failed":
        return []
    found = [
        *_margin(trial, run),
        *_agreement(trial, run),
        *_seeds(trial, run),
        *_verification(trial),
        *_kernels(trial, run),
        *_latency(trial, run),
        *_training(trial, run),
        *_search(trial),
        *_chains(trial),
        *_output(trial),
        *_features(trial),
    ]
    return ordered(found)


def ordered(found: list[Risk]) -> list[Risk]:
    """What weighs most first."""
    return sorted(found, key=lambda risk: SEVERITIES.index(risk.severity))


def named(names: list[str]) -> str:
    """Layers or tensors, of many the first ones."""
    if len(names) <= 4:
        return ", ".join(names)
    return text("{names} and {number} more", names=", ".join(names[:4]), number=len(names) - 4)


def _margin(trial: Trial, run: Run) -> Iterator[Risk]:
    metric = Metric.of(run)
    for check, told in zip(trial.checks, requirements.of_trial(trial, run), strict=True):
        if check.verdict == "borderline" and check.what != "seeds":  # which have a risk of their own
            needs = told.needs[:1].upper() + told.needs[1:]
            values = {"figure": told.figure, "asked": told.asked}
            yield Risk(
                text("its interval reaches over what was asked: {figure}, {asked}", **values)
                if check.what in requirements.OF_SAMPLES
                else text("it lies on both sides of what was asked: {figure}, {asked}", **values),
                told.name,
                needs,
                "high",
            )
    gap = trial.difference
    if trial.verdict == "meets" and gap is not None and run.kpi.gain(gap).high < 0:
        yield Risk(
            text(
                "it surely loses something against float: {change} ({interval}), within what is asked",
                change=metric.change(gap.value),
                interval=metric.change_interval(gap),
            ),
            metric.name,
            text("make sure that whoever uses the model knows of it; a distillation (distill: {}) may win it back")
            if not trained(trial)
            else text("make sure that whoever uses the model knows of it"),
            "low",
        )


def trained(trial: Trial) -> bool:
    """Whether the variant's weights were trained, by whichever method."""
    return bool(trial.distillation or (trial.search and trial.search.epochs) or (trial.output and trial.output.epochs))


def _agreement(trial: Trial, run: Run) -> Iterator[Risk]:
    agreed = trial.agreement
    if agreed is None or agreed.value >= AGREEMENT or trial.verdict not in ("meets", "borderline"):
        return
    if run.kpi.metric == "agreement":
        return  # that is the requirement itself
    yield Risk(
        text(
            "it predicts as the float model for {share} of the samples only, though its {metric} is close: what it "
            "gets wrong is something else",
            share=figures.percent(agreed.value),
            metric=Metric.of(run).name,
        ),
        text("predictions"),
        text("look at the samples where they differ (lowbit compare writes them with --out) before users do"),
        "medium",
    )


def _seeds(trial: Trial, run: Run) -> Iterator[Risk]:
    metric = Metric.of(run)
    own = trial.own.score if trial.own else trial.score
    scores = [score for score in (own, *(row.score for row in trial.repeats)) if score]
    failed = [row for row in trial.repeats if row.error]
    if failed:
        yield Risk(
            several("training failed with {number} seed", "training failed with {number} seeds", len(failed)),
            named([text("seed {seed}", seed=row.seed) for row in failed]),
            text(
                "read the error, and do not rely on the seed that worked: {error}",
                error=of_record(failed[0].error or ""),
            ),
            "high",
        )
    if not trial.repeats or len(scores) < 2:
        return
    sides = _on_both_sides(trial, run)
    worst, best = (pick(scores, key=lambda score: score.value) for pick in (min, max))
    values = {"low": metric.value(worst.value), "high": metric.value(best.value)}
    if sides or worst.high < best.low:
        yield Risk(
            sides or text("its seeds disagree: from {low} to {high}", **values),
            text("seeds"),
            text("train longer or with a lower rate, and judge by the mean, not by the best seed"),
            "high" if sides else "medium",
        )


def _on_both_sides(trial: Trial, run: Run) -> str:
    """What is said where some seeds reach what is asked of the metric and some do not; empty where none do."""
    metric = Metric.of(run)
    for check, told in zip(trial.checks, requirements.of_trial(trial, run), strict=True):
        rows = [row for row in (trial.own, *trial.repeats) if row]
        of_score = check.what in requirements.OF_SCORE
        values = [one.value for row in rows if (one := row.score if of_score else row.difference)]
        reached = {run.kpi.sign * (value - check.limit) >= 0 for value in values}
        if check.what in requirements.OF_SAMPLES and len(reached) == 2:
            said = metric.value if of_score else metric.change
            return text(
                "its seeds lie on both sides of what is asked: {name} from {low} to {high}, asked {asked}",
                name=told.name,
                low=said(min(values)),
                high=said(max(values)),
                asked=told.asked,
            )
    return ""


def _verification(trial: Trial) -> Iterator[Risk]:
    check = trial.verification
    if check is None:
        yield Risk(
            text("the exported file was not verified against the model"),
            trial.file or "",
            text("run lowbit verify on it before it serves anybody"),
            "high",
        )
        return
    if check.same_prediction is not None and check.same_prediction < DIFFERENT:
        yield Risk(
            text(
                "file and model predict the same for {share} of the samples only",
                share=figures.percent(check.same_prediction),
            ),
            check.runtime,
            text("run lowbit verify, which names the tensor where they part; judge by the file, which was measured"),
            "high",
        )
    elif check.largest_code_difference > CODES:
        yield Risk(
            text("codes of file and model differ by up to {number} steps", number=check.largest_code_difference),
            check.runtime,
            text("run lowbit verify, which names the tensor where they part"),
            "medium",
        )


def _kernels(trial: Trial, run: Run) -> Iterator[Risk]:
    check = trial.verification
    ran_float = set(check.stayed_float) if check else set()
    asked = [row for row in trial.layers if row.weights == FLOAT]
    forced = [row for row in trial.layers if row.weights != FLOAT and row.name in ran_float]
    total = sum(row.macs for row in trial.layers) or 1
    for rows, what, remedy in (
        (
            forced,
            text("low-bit layers run in float: the format saves storage, not time"),
            text("take a format that this runtime has integer kernels for, or count on the size alone"),
        ),
        (
            asked,
            text("layers stayed float"),
            text("quantize them in the recipe if they are meant to be, or leave them: it was measured so"),
        ),
    ):
        if rows:
            share = sum(row.macs for row in rows) / total
            yield Risk(
                text("{what}: {share} of the MACs", what=what, share=figures.percent(share)),
                named([row.name for row in rows]),
                remedy,
                "medium" if share > FLOAT_SHARE else "low",
            )
    widened = [row for row in trial.layers if row.name not in ran_float and _widened(row)]
    on_target = [row for row in widened if _target_has(row, run)]
    elsewhere = [row for row in widened if row not in on_target]
    if elsewhere:
        yield Risk(
            text(
                "the runtime widens formats below 8 bits ({formats}, weights/activations): they save storage, and BOPs "
                "only on hardware that has such kernels",
                formats=_formats(elsewhere),
            ),
            named([row.name for row in elsewhere]),
            text("count on the measured latency, not on BOPs, for this runtime"),
            "low",
        )
    if on_target:
        yield Risk(
            text(
                "the runtime here widens formats that the target executes natively ({formats}, weights/activations): "
                "latencies are not the target's",
                formats=_formats(on_target),
            ),
            named([row.name for row in on_target]),
            text("measure the file on the target before a latency decides"),
            "low",
        )


def _formats(rows: list[LayerRow]) -> str:
    return figures.names(dict.fromkeys(f"{row.weights}/{row.activations}" for row in rows))


def target(run: Run) -> tuple[str, ...]:
    """The formats that the target executes natively (`runtime.formats`), by their names; none where it is not said."""
    section = run.pilot.get("runtime")
    names = section.get("formats") if isinstance(section, Mapping) else None
    found: list[str] = []
    for name in names if isinstance(names, (list, tuple)) else ():
        with contextlib.suppress(FormatError):
            found.append(str(parse(str(name))))
    return tuple(found)


def _target_has(row: LayerRow, run: Run) -> bool:
    """Whether the target executes the layer's formats, as far as they are below 8 bits, natively."""
    names = [name for name in (row.weights, row.activations) if 0 < bits(name) < 8]
    return all(str(parse(name)) in target(run) for name in names)


def _widened(row: LayerRow) -> bool:
    """Whether an integer layer has a format that its kernel computes with more bits."""
    return row.weights != FLOAT and any(0 < bits(fmt) < 8 for fmt in (row.weights, row.activations))


def bits(fmt: str) -> int:
    """Bits of a number of the format; 0 where it is none that lowbit knows, or float32."""
    try:
        return parse(fmt).bits
    except FormatError:
        return 0


def _latency(trial: Trial, run: Run) -> Iterator[Risk]:
    reference = decision.baseline(run)
    for row in trial.latencies:
        key = (row.runtime, row.batch, row.threads)
        where = text("{runtime}, batch {batch}", runtime=row.runtime, batch=row.batch)
        before = decision.timing(reference, key) if reference else None
        if before and row.median_ms > SLOWER * before.median_ms:
            yield Risk(
                text(
                    "it is slower than float: {time} against {before}",
                    time=figures.milliseconds(row.median_ms),
                    before=figures.milliseconds(before.median_ms),
                ),
                where,
                text("see “Why is it not faster?” below; take it for its size, or not at all"),
                "medium",
            )
        if row.high_ms > NOISY * row.median_ms > 0:
            yield Risk(
                text(
                    "its times spread: the 90th percentile is {ratio} the median",
                    ratio=f"{row.high_ms / row.median_ms:.1f}×",
                ),
                where,
                text("measure again on a quiet machine before a latency decides"),
                "low",
            )


def _training(trial: Trial, run: Run) -> Iterator[Risk]:
    row = trial.distillation
    if row is not None:
        for concern in row.teacher.concerns:
            yield Risk(
                text("a weak teacher: {concern}", concern=of_record(concern)),
                text("distillation"),
                text("the student learns its faults too: check the float model on this data first"),
                "medium",
            )
        cut = [one for one in row.ranges if one.clipped > CLIPPED]
        if cut:
            worst = max(one.clipped for one in cut)
            yield Risk(
                text("ranges cut off up to {share} of the numbers", share=figures.percent(worst)),
                named([one.name for one in cut]),
                text("try another quantizer or a lower scale_rate, and watch the clipping with lowbit watch"),
                "medium",
            )
    for part in (row, trial.search):
        if part is not None and part.gain is not None and run.kpi.gain(part.gain).high < 0:
            yield Risk(
                text("training made it worse than post-training alone"),
                text("distillation") if part is row else text("search"),
                text("leave training out, or train with a lower rate and more inputs"),
                "medium",
            )


def _search(trial: Trial) -> Iterator[Risk]:
    row = trial.search
    if row is not None and not row.found.fits:
        yield Risk(
            text("no assignment of formats fitted the budget: the one that was taken is over it"),
            text("search"),
            text("give a larger budget, or cheaper choices"),
            "medium",
        )


def _chains(trial: Trial) -> Iterator[Risk]:
    row = trial.factorization
    if row is None:
        return
    if row.after.activation_bytes > row.before.activation_bytes:
        yield Risk(
            text(
                "chains hold more activations than the layers did: {after} bytes against {before}",
                after=f"{row.after.activation_bytes:,}",
                before=f"{row.before.activation_bytes:,}",
            ),
            text("factorization"),
            text("check that the device has memory for them"),
            "low",
        )
    doubted = [one.name for one in row.layers if one.kind and one.advice]
    if doubted:
        yield Risk(
            text("a chain may not be worth it here"),
            named(doubted),
            text("see “Where a chain may not be worth it” below: a dense layer may be as good and simpler"),
            "low",
        )


def _output(trial: Trial) -> Iterator[Risk]:
    row = trial.output
    ours = next((one for one in row.compared if one.what == "variant"), None) if row else None
    if row is None or ours is None or not row.path:
        return
    if row.spacing is not None and ours.errors.flips > FLIPS:
        yield Risk(
            text(
                "{share} of its numbers lie on another branch of the path (flips), each of them far off",
                share=figures.percent(ours.errors.flips),
            ),
            row.path,
            text("use fewer rows or a fold, or distrust numbers far from the path (confidence: true)"),
            "high" if ours.errors.flips > MANY_FLIPS else "medium",
        )
    direct = next((one for one in row.compared if one.what == "direct"), None)
    if direct is not None and ours.errors.rmse > direct.errors.rmse:
        yield Risk(
            text("its RMSE is larger than that of a direct output of 8 bits"),
            row.path,
            text("judge by the figure that your task is judged by, or keep the direct output"),
            "medium",
        )


def _features(trial: Trial) -> Iterator[Risk]:
    row = trial.features
    if row is None:
        return
    best = next((head for head in row.heads if head.name == row.best_float), None)
    if best is not None and best.outcome == "degrades":
        yield Risk(
            text(
                "the linear head on codes surely loses to that on floats: {share} against {other}",
                share=figures.percent(row.score.value),
                other=figures.percent(best.score.value),
            ),
            row.head,
            text("keep floats unless memory decides, or try another threshold or ternary codes"),
            "medium",
        )
    if any(share > ONE_CODE for share in row.shares):
        yield Risk(
            text("nearly all features have one and the same code: {share}", share=figures.percent(max(row.shares))),
            row.head,
            text("try a lower threshold, or one for each feature"),
            "medium",
        )
