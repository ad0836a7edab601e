"""How a trial stands to all that was asked of it: figure, limit, and what would decide it where it is open.

How many test samples would decide is planned as the A/B test plans them (`lowbit.pilot.power`), with the value and the
spread that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lowbit.pilot.metrics import SHARES
from lowbit.pilot.power import SURE, differing, needed_for_agreement, needed_for_pairs, samples_needed
from lowbit.pilot.record import CheckRow, Run, Score, Trial, Verdict
from lowbit.report import figures
from lowbit.report.figures import Metric
from lowbit.report.language import text

OF_SCORE = ("minimum", "maximum")  # what is asked of the metric itself
OF_SAMPLES = (*OF_SCORE, "tolerance")  # what more samples decide about


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


def of_trial(trial: Trial, run: Run) -> list[Requirement]:
    """Everything that was asked of a trial, with its figures."""
    return [_requirement(check, trial, run) for check in trial.checks]


def _requirement(check: CheckRow, trial: Trial, run: Run) -> Requirement:
    needs = _needs(check, trial, run) if check.verdict == "borderline" else ""
    metric = Metric.of(run).apart(check.limit, check.value, check.low, check.high)
    match check.what:
        case "minimum" | "maximum":
            interval = figures.span(metric.number(check.low), metric.number(check.high))
            figure = f"{metric.value(check.value)} ({interval})"
            asked = f"{'≥' if check.what == 'minimum' else '≤'} {metric.limit(check.limit)}"
            return Requirement(metric.name, figure, asked, check.verdict, needs)
        case "tolerance":
            change = Score(check.value, check.low, check.high, 0)
            figure = f"{metric.change(check.value)} ({metric.change_interval(change)})"
            most = metric.loss(abs(check.limit))
            asked = f"≤ +{most}" if metric.smaller_is_better else f"≥ −{most}"
            return Requirement(text("{metric} from float", metric=metric.name), figure, asked, check.verdict, needs)
        case "seeds":
            figure = text("{trained} of {number} trained", trained=f"{check.value:g}", number=f"{check.limit:g}")
            return Requirement(text("seeds"), figure, text("all of them"), check.verdict, needs)
        case "size":
            value, limit = _exact(check, figures.size)
            return Requirement(text("file size"), value, f"≤ {limit}", check.verdict, needs)
        case "bops":
            value, limit = _exact(check, figures.count)
            return Requirement("BOPs", value, f"≤ {limit}", check.verdict, needs)
    value, limit = figures.apart(check.value, check.limit, figures.milliseconds)
    if check.low < check.high:
        value = f"{value} ({figures.span(figures.significant(check.low), figures.significant(check.high))})"
    return Requirement(text("latency"), value, f"≤ {limit}", check.verdict, needs)


def _exact(check: CheckRow, written: Callable[[float, int], str]) -> tuple[str, str]:
    """An exact figure, with its span where seeds differ in it, and its limit."""
    value, limit = figures.apart(check.value, check.limit, written)
    if check.low == check.high:
        return value, limit
    low, high = written(check.low, 3), written(check.high, 3)
    unit = low.partition(" ")[2]
    span = figures.span(low.partition(" ")[0] if high.endswith(f" {unit}") else low, high)
    return f"{value} ({span})", limit


def needed(check: CheckRow, trial: Trial, run: Run) -> int | None:
    """Test samples in all that decide about a borderline figure of the metric with 80 % power; None if no number does.

    None too where the interval holds the spread of several seeds, which samples alone do not make smaller.
    """
    of = trial.score if check.what in OF_SCORE else trial.difference
    if check.what not in OF_SAMPLES or of is None or _has_seeds(trial):
        return None
    room = abs(check.value - check.limit)  # on either side the whole interval has to lie beyond the limit
    if run.kpi.metric not in SHARES:
        variance = spread(check.low, check.high, of.samples)
        found = None if variance is None else samples_needed(room, 0.0, variance)
    elif check.what in OF_SCORE:
        found = needed_for_agreement(1 - check.value, 1 - check.limit)
    else:
        found = needed_for_pairs(differing(of), check.value, room - check.value)
    return None if found is None else max(found, of.samples + 1)


def _has_seeds(trial: Trial) -> bool:
    """Whether what is judged is a mean over several seeds."""
    return any(row.score for row in trial.repeats)


def _needs(check: CheckRow, trial: Trial, run: Run) -> str:
    if check.what == "latency":
        return text(
            "measure again on a quiet machine (delete latency.json in the run's folder first): its times spread over "
            "the limit"
        )
    if check.what == "seeds":
        return text("read the error of the seed that failed, and run the pilot again, which keeps what is finished")
    if check.what in ("size", "bops"):
        return _of_seeds(check, trial)
    if _has_seeds(trial):
        return text("its seeds differ: more of them, or more test samples, would decide")
    number = needed(check, trial, run)
    if number is None:
        return text("its value lies on the limit, where no number of samples decides")
    return text("about {number} test samples in all would decide", number=f"{number:,}")


def _of_seeds(check: CheckRow, trial: Trial) -> str:
    """What is to be known where files of several seeds lie on both sides of a limit."""
    values = {"low": f"{check.low:,.0f}", "high": f"{check.high:,.0f}", "seed": trial.seed}
    fits, size = check.value <= check.limit, check.what == "size"
    if size and fits:
        return text(
            "its seeds made files of {low} to {high} bytes; that of seed {seed}, the one to deploy, fits", **values
        )
    if size:
        return text(
            "its seeds made files of {low} to {high} bytes; that of seed {seed}, the one to deploy, does not fit: name "
            "one first whose file does",
            **values,
        )
    if fits:
        return text("its seeds take {low} to {high} BOPs; the file of seed {seed}, the one to deploy, fits", **values)
    return text(
        "its seeds take {low} to {high} BOPs; the file of seed {seed}, the one to deploy, does not fit: name one "
        "first whose file does",
        **values,
    )


def spread(low: float, high: float, samples: int) -> float | None:
    """Variance of a single sample that a 95 % interval of a mean over `samples` of them comes from; None without."""
    width = high - low
    return samples * (width / (2 * SURE)) ** 2 if math.isfinite(width) and width > 0 and samples > 0 else None
