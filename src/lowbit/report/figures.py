"""How a figure is written: one function a unit, so that the table, the plots and the sentences agree.

Sizes are in kB, MB and GB of 1e3, 1e6 and 1e9 bytes, counts take K/M/G/T, and only share-type metrics (accuracy,
agreement) are percentages: an R2 or a correlation stays a plain number. Everything returned is plain text; the template
escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from lowbit.pilot.record import Kpi, Run, Score
from lowbit.report.language import active, key, text

NONE = "–"
_METRICS = {"accuracy": key("accuracy"), "agreement": key("agreement"), "cosine": key("cosine"), "r2": key("R²")}


def significant(value: float, digits: int = 3) -> str:
    """The value with that many significant digits and thousands separators, never an exponent: ``1,240``, ``0.243``."""
    if not math.isfinite(value):
        return NONE if math.isnan(value) else _minus("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    return _minus(f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}")


def size(count: float, digits: int = 3) -> str:
    """Bytes in kB, MB or GB of powers of 1000: ``103 kB``, ``1.18 MB``."""
    return _prefixed(count, digits, ((9, "GB"), (6, "MB"), (3, "kB")), least="bytes")


def count(number: float, digits: int = 3) -> str:
    """A count with K, M, G or T and three significant digits: ``40.6 M``."""
    return _prefixed(number, digits, ((12, "T"), (9, "G"), (6, "M"), (3, "K")))


def milliseconds(value: float, digits: int = 3) -> str:
    """Milliseconds with three significant digits."""
    return f"{significant(value, digits)} ms"


def _prefixed(number: float, digits: int, prefixes: Iterable[tuple[int, str]], least: str = "") -> str:
    """The number in the largest unit that leaves no more than three digits before its point."""
    for power, prefix in prefixes:
        if number >= (1 - 0.5 * 10**-digits) * 10**power:  # what would round to 1,000 of the smaller unit
            return f"{significant(number / 10**power, digits)} {prefix}"
    return f"{number:,.0f} {least}".rstrip()


def apart(value: float, limit: float, written: Callable[[float, int], str]) -> tuple[str, str]:
    """A figure and its limit with as many significant digits, three at least, as it takes to tell them apart."""
    for digits in range(3, 16):
        first, second = written(value, digits), written(limit, digits)
        if first != second or value == limit:
            break
    return first, second


def ratio(baseline: float, value: float) -> str:
    """Baseline divided by value: above 1 is smaller, cheaper or faster than the baseline."""
    if baseline <= 0 or value <= 0:
        return NONE
    times = baseline / value
    return f"{times:,.0f}×" if times >= 99.95 else f"{times:.1f}×" if times >= 0.995 else f"{times:.2f}×"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage; 100 % only where nothing differs."""
    if share == 1:
        return "100 %"
    return f"{min(100 * share, 99.99) if 0.9 < share < 1 else 100 * share:.2f} %"


def shares(score: Score) -> str:
    """The 95 % interval of a share: ``98.12 to 98.90``, in percent."""
    return span(percent(score.low), percent(score.high)).replace(" %", "")


def span(low: str, high: str) -> str:
    """From one figure to another."""
    return text("{low} to {high}", low=low, high=high)


def seconds(value: float) -> str:
    """A duration: ``93 s``, ``12 min``, ``1.5 h``."""
    if value < 120:
        return text("{number} s", number=significant(value, 2))
    if value < 5400:
        return text("{number} min", number=f"{value / 60:.0f}")
    return text("{number} h", number=f"{value / 3600:.1f}")


def headed(text: str) -> str:
    """The text as a heading begins; mAP, a name with its own capitals, and metrics.py:mae stay as they are."""
    first, _, rest = text.partition(" ")
    return " ".join([first.capitalize() if first.islower() and ":" not in first else first, *([rest] if rest else [])])


def decibels(value: float | None) -> str:
    """A ratio in dB with one decimal."""
    if value is None or not math.isfinite(value):
        return NONE if value is None else significant(value)
    return _minus(f"{value:.1f}")


def moment(started: str) -> str:
    """An ISO 8601 time in UTC as people write it; any other text comes back as it is."""
    try:
        time = datetime.fromisoformat(started.replace("Z", "+00:00"))
    except ValueError:
        return started
    zone = "" if time.tzinfo is None else " UTC"
    time = time.astimezone(timezone.utc) if zone else time
    day = f"{time.year}年{time.month}月{time.day}日 {time:%H:%M}"
    return f"{day if active() == 'ja' else f'{time.day} {time:%B %Y, %H:%M}'}{zone}"


def names(items: Iterable[str]) -> str:
    """A list as a sentence has it: ``a, b and c``."""
    *rest, last = [*items] or [NONE]
    return text("{first} and {last}", first=text(", ").join(rest), last=last) if rest else last


def bound(run: Run) -> float | None:
    """The value of the metric that a plot draws a line at: the minimum, or the float model's less the tolerance.

    Where smaller is better the maximum, or the float model's and the tolerance. None where only a tolerance is asked
    and the float model has no score.
    """
    kpi = run.kpi
    if kpi.bound is not None:
        return kpi.bound
    scores = [trial.score.value for trial in run.trials if trial.recipe is None and trial.score]
    return scores[0] - kpi.sign * kpi.tolerance if scores and kpi.tolerance is not None else None


@dataclass(frozen=True)
class Metric:
    """How the deciding metric is written: a percentage, or a plain number with `decimals` decimals.

    `smaller_is_better` says which of two values is the better one, and so what a sentence calls a gain.
    """

    name: str
    share: bool
    decimals: int
    smaller_is_better: bool = False

    @classmethod
    def of(cls, run: Run) -> Metric:
        """The run's metric; a plain number shows two digits of the narrowest interval, so that no row rounds away."""
        asked = run.kpi.metric
        name = text(_METRICS[asked]) if asked in _METRICS else asked
        smaller = run.kpi.smaller_is_better
        if run.kpi.metric.lower().endswith(("accuracy", "agreement")):
            return cls(name, share=True, decimals=2, smaller_is_better=smaller)
        scores = [score for trial in run.trials for score in (trial.score, trial.difference) if score]
        widths = [score.high - score.low for score in scores if 0 < score.high - score.low < math.inf]
        decimals = min(6, max(2, 1 - math.floor(math.log10(min(widths, default=0.01)))))
        return cls(name, share=False, decimals=decimals, smaller_is_better=smaller)

    @property
    def scale(self) -> float:
        """What a recorded value is multiplied by before it is shown or drawn."""
        return 100.0 if self.share else 1.0

    @property
    def unit(self) -> str:
        """The unit after a value, with its space."""
        return " %" if self.share else ""

    @property
    def title(self) -> str:
        """The metric's name with its unit, for an axis or a column."""
        return text("{metric}, %", metric=self.name) if self.share else self.name

    def number(self, value: float) -> str:
        """A value without its unit."""
        text = f"{self.scale * value:,.{self.decimals}f}"
        return _minus(text.removeprefix("-") if float(text.replace(",", "")) == 0 else text)

    def value(self, value: float) -> str:
        """A value with its unit: ``91.62 %``."""
        return self.number(value) + self.unit

    def apart(self, limit: float, *values: float) -> Metric:
        """The metric with as many decimals as it takes to tell values from a limit that they are not."""
        for decimals in range(self.decimals, self.decimals + 8):
            metric = replace(self, decimals=decimals)
            if all(metric.number(value) != metric.number(limit) for value in values if value != limit):
                break
        return metric

    def interval(self, score: Score) -> str:
        """The 95 % interval: ``91.08 to 92.15``."""
        return span(self.number(score.low), self.number(score.high))

    def change(self, value: float) -> str:
        """A signed difference: ``−0.21 pp``, percentage points for a share."""
        return self._signed(value) + (" pp" if self.share else "")

    def change_interval(self, score: Score) -> str:
        """The 95 % interval of a difference: ``−0.43 to +0.01``."""
        return span(self._signed(score.low), self._signed(score.high))

    def limit(self, value: float) -> str:
        """An asked minimum or maximum as it was asked: at least one decimal, and no digit rounded away."""
        text = f"{round(self.scale * value, 10):,.10f}".rstrip("0")
        return _minus(text + "0" if text.endswith(".") else text) + self.unit

    def loss(self, value: float) -> str:
        """A loss as it was asked: ``1.0 pp``, percentage points for a share."""
        return self.limit(value).removesuffix(self.unit) + (" pp" if self.share else "")

    def asked(self, kpi: Kpi) -> str:
        """What is asked of the metric: ``accuracy ≥ 96.0 %``, ``accuracy at most 1.0 pp below float``, or both."""
        bound = "" if kpi.bound is None else f"{'≤' if kpi.smaller_is_better else '≥'} {self.limit(kpi.bound)}"
        lost = ""
        if kpi.tolerance is not None:
            away = key("at most {most} above float") if kpi.smaller_is_better else key("at most {most} below float")
            lost = text(away, most=self.loss(kpi.tolerance))
        return f"{self.name} {names(part for part in (bound, lost) if part)}"

    def _signed(self, value: float) -> str:
        text = self.number(value)
        return text if text.startswith("−") or not any(digit in text for digit in "123456789") else f"+{text}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
