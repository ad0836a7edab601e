"""Go, no-go, or more data needed: what a run says of each variant, and which variant to take.

A variant is held against everything that was asked: a minimum of the metric, a loss against float that is tolerated,
limits of size, BOPs and latency. It is "go" if it meets all of them with its whole 95 % interval, "no-go" if it misses
one, and else its interval lies across a limit, and more samples decide. How many is the formula of the A/B test
(`lowbit.pilot.abtest.samples_needed`), with the effect and the spread that were seen.

Of the variants that are "go" the page recommends the one with the smallest file; the fastest where a latency was asked
for, the one with the fewest BOPs where of all costs only these were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowbit.pilot.abtest import samples_needed
from lowbit.pilot.record import CheckRow, LatencyRow, Limits, Run, Score, Trial, Verdict
from lowbit.report import figures
from lowbit.report.figures import Metric
from lowbit.report.language import sentences, several, text

_SURE = 1.96  # standard errors in half a 95 % interval
Key = tuple[str, int, int]  # runtime, batch, threads


def word(verdict: Verdict) -> str:
    """What a verdict means for who decides."""
    match verdict:
        case "meets":
            return text("go")
        case "borderline":
            return text("more data needed")
    return text("no-go")


def meaning(verdict: Verdict) -> str:
    """What the word stands for, in one sentence."""
    match verdict:
        case "meets":
            return text("all that is asked is met, by the whole 95 % interval where a figure has one.")
        case "borderline":
            return text(
                "the 95 % interval lies across a limit, whichever side the value is on: more test samples could decide "
                "it either way."
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


def timing(trial: Trial, key: Key) -> LatencyRow | None:
    """A trial's latency in one runtime at one batch size and number of threads, if it was measured."""
    return next((row for row in trial.latencies if (row.runtime, row.batch, row.threads) == key), None)


def spread(low: float, high: float, samples: int) -> float | None:
    """Variance of a single sample that a 95 % interval of a mean over `samples` of them comes from; None without."""
    width = high - low
    return samples * (width / (2 * _SURE)) ** 2 if math.isfinite(width) and width > 0 and samples > 0 else None


# Requirements


@dataclass(frozen=True)
class Requirement:
    """How a trial stands to one requirement: its figure, what was asked, and what would decide it."""

    name: str
    figure: str
    asked: str
    verdict: Verdict
    needs: str = ""

    @property
    def state(self) -> str:
        """Whether it is met, in one word."""
        return {"meets": text("met"), "borderline": text("open")}.get(self.verdict, text("missed"))


def requirements(trial: Trial, run: Run) -> list[Requirement]:
    """Everything that was asked of a trial, with its figures."""
    return [_requirement(check, trial, run) for check in trial.checks]


def _requirement(check: CheckRow, trial: Trial, run: Run) -> Requirement:
    metric = Metric.of(run)
    needs = _needs(check, trial) if check.verdict == "borderline" else ""
    match check.what:
        case "minimum":
            interval = figures.span(metric.number(check.low), metric.number(check.high))
            figure = f"{metric.value(check.value)} ({interval})"
            return Requirement(metric.name, figure, f"≥ {metric.minimum(check.limit)}", check.verdict, needs)
        case "tolerance":
            change = Score(check.value, check.low, check.high, 0)
            figure = f"{metric.change(check.value)} ({metric.change_interval(change)})"
            name, asked = text("{metric} from float", metric=metric.name), f"≥ −{metric.loss(-check.limit)}"
            return Requirement(name, figure, asked, check.verdict, needs)
        case "size":
            value, limit = figures.size(round(check.value)), figures.size(round(check.limit))
            return Requirement(text("file size"), value, f"≤ {limit}", check.verdict, needs)
        case "bops":
            value, limit = figures.count(check.value), figures.count(check.limit)
            return Requirement("BOPs", value, f"≤ {limit}", check.verdict, needs)
    value, limit = figures.milliseconds(check.value), figures.milliseconds(check.limit)
    if check.low < check.high:
        value = f"{value} ({figures.span(figures.significant(check.low), figures.significant(check.high))})"
    return Requirement(text("latency"), value, f"≤ {limit}", check.verdict, needs)


def needed(check: CheckRow, trial: Trial) -> int | None:
    """Test samples in all that decide about a borderline figure of the metric with 80 % power; None if no number does.

    None too where the interval holds the spread of several seeds, which samples alone do not make smaller.
    """
    of = trial.score if check.what == "minimum" else trial.difference
    if check.what not in ("minimum", "tolerance") or of is None or trial.repeats:
        return None
    variance = spread(check.low, check.high, of.samples)
    found = None if variance is None else samples_needed(check.value - check.limit, 0.0, variance)
    return None if found is None else max(found, of.samples + 1)


def _needs(check: CheckRow, trial: Trial) -> str:
    if check.what == "latency":
        return text("measure again on a quiet machine: its times spread over the limit")
    if trial.repeats:
        return text("its seeds differ: more of them, or more test samples, would decide")
    number = needed(check, trial)
    if number is None:
        return text("its value lies on the limit, where no number of samples decides")
    return text("about {number} test samples in all would decide", number=f"{number:,}")


def _asked(run: Run) -> str:
    """What a headline says of it: the metric alone by name, and no list."""
    one = run.limits == Limits() and (run.kpi.minimum is None or run.kpi.tolerance is None)
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
    return size, -trial.score.value if trial.score else 0.0


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
    best = max(open_ones or scored, key=lambda t: t.score.value if t.score else -math.inf, default=None)
    if best is None or best.score is None:
        return several(
            "No-go: the only variant misses {asked}.",
            "No-go: none of {number} variants meets {asked}.",
            len(trials),
            asked=_asked(run),
        )
    value = metric.value(best.score.value)
    if open_ones:
        return several(
            "More data needed: the only variant, {name}, may meet {asked} or not; at {value} its interval decides "
            "neither.",
            "More data needed: none of {number} variants surely meets {asked}; {name} may, at {value}.",
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


def remark(run: Run) -> str:
    """What the sentence leaves out: the other variants, the most accurate that would do, and the float model."""
    trials, reference, best, metric = variants(run), baseline(run), recommended(run), Metric.of(run)
    told = [_counts(trials)] if len(trials) > 1 else []
    go = [trial for trial in trials if trial.verdict == "meets" and trial.score]
    top = max(go, key=lambda t: t.score.value if t.score else -math.inf, default=None)
    if best and best.score and top and top.score and top.score.value > best.score.value:
        told.append(
            text(
                "Of those that are go, {name} has the most {metric}: {value} against {other} of {best}.",
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
    verdicts: tuple[Verdict, ...] = ("meets", "borderline", "misses", "failed")
    counts = {one: sum(trial.verdict == one for trial in trials) for one in verdicts}
    told = [text("{number} {word}", number=counts[one], word=word(one)) for one in verdicts[:3] if counts[one]]
    told += [several("{number} failed", "{number} failed", counts["failed"])] if counts["failed"] else []
    return text("All {number} variants: {told}.", number=len(trials), told=figures.names(told))
