"""Go, no-go, or more data needed: what a run says of each variant, and which variant to take.

A variant is held against everything that was asked: a minimum of the metric, a loss against float that is tolerated,
limits of size, BOPs and latency. It is "go" if it meets all of them with its whole 95 % interval, "no-go" if it misses
one. Else a figure lies across its limit: of the metric more samples decide (`requirements`), of a cost, or where the
training of a seed failed, they decide nothing, and the page says "not settled".

Of the variants that are "go" the page recommends the one with the smallest file; the fastest where a latency was asked
for, the one with the fewest BOPs where of all costs only these were.
"""

from __future__ import annotations

import math
from collections import Counter

from lowbit.pilot.record import LatencyRow, Limits, Run, Trial, Verdict
from lowbit.report import figures, requirements
from lowbit.report.figures import Metric
from lowbit.report.language import key, sentences, several, text

Key = tuple[str, int, int]  # runtime, batch, threads


def word(verdict: Verdict) -> str:
    """What a verdict means for who decides."""
    match verdict:
        case "meets":
            return text("go")
        case "borderline":
            return text("more data needed")
        case "misses":
            return text("no-go")
    return text("failed")


def said(trial: Trial) -> str:
    """The word of a trial: its verdict's, or "not settled" where costs or failed seeds alone are open."""
    return text("not settled") if unsettled(trial) else word(trial.verdict)


def unsettled(trial: Trial) -> bool:
    """Whether a trial is borderline by what it costs, or by seeds that failed, alone."""
    open_ones = [check.what for check in trial.checks if check.verdict == "borderline"]
    return trial.verdict == "borderline" and bool(open_ones) and not {*open_ones} & {*requirements.OF_SAMPLES}


def words(run: Run) -> list[tuple[str, Verdict, str]]:
    """The words that the page says, each with its verdict and its meaning."""
    verdicts: tuple[Verdict, ...] = ("meets", "borderline", "misses", "failed")
    found: list[tuple[str, Verdict, str]] = [(word(one), one, meaning(one)) for one in verdicts]
    if any(map(unsettled, run.trials)):
        costs = text(
            "a cost lies across its limit (the times of its calls, or the files of its seeds), or the training of a "
            "seed failed. Samples do not decide that; what does stands beside it."
        )
        found.insert(2, (text("not settled"), "borderline", costs))
    return found


def meaning(verdict: Verdict) -> str:
    """What the word stands for, in one sentence."""
    match verdict:
        case "meets":
            return text("all that is asked is met, by the whole 95 % interval where a figure has one.")
        case "borderline":
            return text(
                "the 95 % interval of the metric lies across a limit, whichever side the value is on: more test "
                "samples could decide it either way."
            )
        case "misses":
            return text("at least one requirement is missed, by the value and its whole interval.")
    return text("the variant could not be made or measured; its error says why.")


def variants(run: Run) -> list[Trial]:
    """Every trial but the float baseline."""
    return [trial for trial in run.trials if trial.recipe is not None]


def baseline(run: Run) -> Trial | None:
    """The float trial that ratios and differences refer to, if it could be measured."""
    return next((trial for trial in run.trials if trial.recipe is None and trial.verdict != "failed"), None)


def timing(trial: Trial, of: Key) -> LatencyRow | None:
    """A trial's latency in one runtime at one batch size and number of threads, if it was measured."""
    return next((row for row in trial.latencies if (row.runtime, row.batch, row.threads) == of), None)


# What was asked


def _asked(run: Run) -> str:
    """What a headline says of it: the metric alone by name, and no list."""
    one = run.limits == Limits() and (run.kpi.bound is None or run.kpi.tolerance is None)
    return asked(run) if one else text("all that was asked")


def asked(run: Run) -> str:
    """All that was asked, as a sentence has it: ``accuracy ≥ 91.0 %, file size ≤ 0.25 MB``."""
    limits = run.limits
    told = [Metric.of(run).asked(run.kpi)]
    told += [] if limits.size is None else [text("file size ≤ {size}", size=figures.size(limits.size))]
    told += [] if limits.bops is None else [text("BOPs ≤ {number}", number=figures.count(limits.bops))]
    told += [] if limits.latency is None else [text("latency ≤ {time}", time=figures.milliseconds(limits.latency))]
    return figures.names(told)


# Which to take


def recommended(run: Run) -> Trial | None:
    """The variant to take: of those that are "go", the cheapest by what was asked."""
    go = [trial for trial in variants(run) if trial.verdict == "meets"]
    return min(go, key=lambda trial: _price(trial, run), default=None)


def _price(trial: Trial, run: Run) -> tuple[float, float]:
    size = trial.file_bytes or math.inf
    match _by(run):
        case "latency":
            return (trial.latencies[0].median_ms if trial.latencies else math.inf), size
        case "bops":
            return trial.bops or math.inf, size
    return size, -run.kpi.sign * trial.score.value if trial.score else 0.0


def _by(run: Run) -> str:
    """The cost that decides between variants that are "go"."""
    if run.limits.latency is not None:
        return "latency"
    return "bops" if run.limits.bops is not None and run.limits.size is None else "size"


def tag(run: Run) -> str:
    """What the recommended variant is, in three words."""
    match _by(run):
        case "latency":
            return text("fastest that is go")
        case "bops":
            return text("fewest BOPs that is go")
    return text("smallest that is go")


def headline(run: Run) -> str:
    """The run in one sentence for who decides: which variant to take, and why."""
    trials = variants(run)
    if not trials:
        return _float_alone(run)
    if all(trial.verdict == "failed" for trial in trials):
        return several(
            "No-go: the only variant could not be measured.",
            "No-go: none of {number} variants could be measured.",
            len(trials),
        )
    best = recommended(run)
    if best is None:
        return _none_goes(run)
    going = sum(trial.verdict == "meets" for trial in trials)
    if going == 1:
        first = several(
            "Go: take {name}, the only variant, which meets {asked}",
            "Go: take {name}, the only one of {number} variants that meets {asked}",
            len(trials),
            name=best.name,
            asked=_asked(run),
        )
    else:
        first = {
            "latency": text(
                "Go: take {name}, the fastest of {going} variants that meet {asked}",
                name=best.name,
                going=going,
                asked=_asked(run),
            ),
            "bops": text(
                "Go: take {name}, with the fewest BOPs of {going} variants that meet {asked}",
                name=best.name,
                going=going,
                asked=_asked(run),
            ),
            "size": text(
                "Go: take {name}, the smallest of {going} variants that meet {asked}",
                name=best.name,
                going=going,
                asked=_asked(run),
            ),
        }[_by(run)]
    bought = _bought(best, run)
    if not bought:
        return text("{sentence}.", sentence=first)
    return text("{sentence}: {bought}.", sentence=first, bought=bought)


def _bought(best: Trial, run: Run) -> str:
    """What the recommended variant gains, beside float."""
    reference, told = baseline(run), []
    if best.file_bytes:
        size = figures.size(best.file_bytes)
        told.append(size)
        if reference and reference.file_bytes > best.file_bytes:
            ratio = figures.ratio(reference.file_bytes, best.file_bytes)
            told[-1] = text("{size}, {ratio} smaller than float", size=size, ratio=ratio)
    if best.latencies and reference and _by(run) == "latency":
        row = best.latencies[0]
        before = timing(reference, (row.runtime, row.batch, row.threads))
        time = figures.milliseconds(row.median_ms)
        told.insert(0, time)
        if before and before.median_ms > row.median_ms:
            told[0] = text("{time}, {ratio} faster", time=time, ratio=figures.ratio(before.median_ms, row.median_ms))
    return text(", ").join(told)


def _float_alone(run: Run) -> str:
    reference = baseline(run)
    if reference is None or reference.score is None:
        return text("Nothing was measured: the run has no variant, and no float baseline that ran.")
    value = Metric.of(run).value(reference.score.value)
    asks = _asked(run)
    match reference.verdict:
        case "meets":
            return text("Only the float model was measured: at {value} it meets {asked}.", value=value, asked=asks)
        case "borderline":
            return text(
                "Only the float model was measured: at {value} it is borderline for {asked}.", value=value, asked=asks
            )
    return text("Only the float model was measured: at {value} it misses {asked}.", value=value, asked=asks)


def _none_goes(run: Run) -> str:
    trials, metric = variants(run), Metric.of(run)
    scored = [trial for trial in trials if trial.score]
    open_ones = [trial for trial in scored if trial.verdict == "borderline"]
    best = _best(open_ones or scored, run)
    if best is None or best.score is None:
        return several(
            "No-go: the only variant misses {asked}.",
            "No-go: none of {number} variants meets {asked}.",
            len(trials),
            asked=_asked(run),
        )
    if open_ones:
        return _open(best, run)
    value, reference = metric.value(best.score.value), baseline(run)
    if reference is None:
        return several(
            "No-go: the only variant, {name}, misses {asked}, at {value}.",
            "No-go: none of {number} variants meets {asked}; the best, {name}, has {value}.",
            len(trials),
            name=best.name,
            asked=_asked(run),
            value=value,
        )
    if reference.verdict == "misses":
        return several(
            "No-go: the only variant, {name}, misses {asked}, at {value}, and so does the float model.",
            "No-go: none of {number} variants meets {asked}, nor does the float model; the best, {name}, has {value}.",
            len(trials),
            name=best.name,
            asked=_asked(run),
            value=value,
        )
    return several(
        "No-go: the only variant, {name}, misses {asked}, at {value}; stay with the float model.",
        "No-go: none of {number} variants meets {asked}; the best, {name}, has {value}: stay with the float model.",
        len(trials),
        name=best.name,
        asked=_asked(run),
        value=value,
    )


def _best(trials: list[Trial], run: Run) -> Trial | None:
    """The one with the best value of the metric."""
    return max(trials, key=lambda t: run.kpi.sign * t.score.value if t.score else -math.inf, default=None)


def _open(best: Trial, run: Run) -> str:
    """The sentence where the best variant is borderline, with what is open and its figure."""
    told = [
        text("{name} {figure}, asked {asked}", name=one.name, figure=one.figure, asked=one.asked)
        for one in requirements.of_trial(best, run)
        if one.verdict == "borderline"
    ]
    values = {"name": best.name, "asked": _asked(run), "open": figures.names(told)}
    if unsettled(best):
        return several(
            "Not settled: the only variant, {name}, may meet {asked} or not: {open}.",
            "Not settled: none of {number} variants surely meets {asked}; {name} may: {open}.",
            len(variants(run)),
            **values,
        )
    return several(
        "More data needed: the only variant, {name}, may meet {asked} or not: {open}.",
        "More data needed: none of {number} variants surely meets {asked}; {name} may: {open}.",
        len(variants(run)),
        **values,
    )


def remark(run: Run) -> str:
    """What the sentence leaves out: the other variants, the most accurate that would do, and the float model."""
    trials, reference, best, metric = variants(run), baseline(run), recommended(run), Metric.of(run)
    told = [_counts(trials)] if len(trials) > 1 else []
    go = [trial for trial in trials if trial.verdict == "meets" and trial.score]
    top = _best(go, run)
    if best and best.score and top and top.score and run.kpi.sign * (top.score.value - best.score.value) > 0:
        told.append(
            text(
                key("Of those that are go, {name} has the least {metric}: {value} against {other} of {best}.")
                if run.kpi.smaller_is_better
                else key("Of those that are go, {name} has the most {metric}: {value} against {other} of {best}."),
                name=top.name,
                metric=metric.name,
                value=metric.value(top.score.value),
                other=metric.value(best.score.value),
                best=best.name,
            )
        )
    if trials and reference and reference.score:
        value, interval = metric.value(reference.score.value), metric.interval(reference.score)
        if reference.verdict == "meets":
            told.append(text("The float model has {value} (95 % interval {interval}).", value=value, interval=interval))
        else:
            told.append(
                text(
                    "The float model has {value} (95 % interval {interval}), and would itself be: {word}.",
                    value=value,
                    interval=interval,
                    word=word(reference.verdict),
                )
            )
    return sentences(*told)


def _counts(trials: list[Trial]) -> str:
    """How many variants are what."""
    counts = Counter(said(trial) for trial in trials if trial.verdict != "failed")
    order = [word("meets"), word("borderline"), text("not settled"), word("misses")]
    told = [text("{number} {word}", number=counts[one], word=one) for one in order if counts[one]]
    failed = sum(trial.verdict == "failed" for trial in trials)
    told += [several("{number} failed", "{number} failed", failed)] if failed else []
    return text("All {number} variants: {told}.", number=len(trials), told=figures.names(told))
