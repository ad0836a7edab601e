"""The Pareto plots: what the metric costs in bytes, in BOPs and in milliseconds, one plot a cost.

Each plot has the front as a step line, its variants filled and the others hollow, 95 % intervals as whiskers, what is
asked of the metric as a horizontal line and what is asked of the cost as a vertical one. `fronts` tells a table the
same: which fronts each variant is on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise
from typing import Any

from lowbit.pilot.record import Run, Score, Trial
from lowbit.report import decision, figures
from lowbit.report.axes import Align, Axis, Box, letters, place_label
from lowbit.report.charts import (
    FONT,
    HEIGHT,
    LEFT,
    RIGHT,
    SHAPES,
    TOP,
    WIDTH,
    Chart,
    Mark,
    cost_axis,
    drawn,
    encoded,
    layer,
    place,
    plain,
    texts,
)
from lowbit.report.figures import Metric
from lowbit.report.language import key, several, text


def draw(run: Run) -> list[Chart]:
    """Every plot of a run that compares at least two trials: file size, BOPs, then one latency a runtime and batch."""
    return [plot.chart() for plot in _plots(run)]


def fronts(run: Run) -> dict[int, list[str]]:
    """The costs on whose front each trial is, in a few words, by its place in the run: ``file``, ``latency 32``."""
    found: dict[int, list[str]] = {}
    for plot in _plots(run):
        for point in plot.front:
            found.setdefault(point.index, []).append(plot.cost.short)
    return found


def latency_keys(run: Run) -> list[tuple[str, int, int]]:
    """Each (runtime, batch, threads) that was timed, as first met."""
    return list(dict.fromkeys((r.runtime, r.batch, r.threads) for trial in run.trials for r in trial.latencies))


def threads(number: int) -> str:
    """``1 thread``, ``4 threads``."""
    return several("{number} thread", "{number} threads", number)


def timed_by(key: tuple[str, int, int]) -> str:
    """What timed it: ``onnxruntime, batch 1, 4 threads``."""
    runtime, batch, number = key
    return text("{runtime}, batch {batch}, {threads}", runtime=runtime, batch=batch, threads=threads(number))


@dataclass(frozen=True)
class Point:
    """A trial in a plot: its place in the run, its cost, and its score in the units that are drawn."""

    index: int
    trial: Trial
    cost: float
    score: Score

    @property
    def shape(self) -> str:
        """The mark's name, which is also its color's."""
        return "float" if self.trial.recipe is None else self.trial.verdict


def front(points: Iterable[Point], sign: int = 1) -> list[Point]:
    """The points that no other dominates (is as good on both and better on one), cheapest first.

    `sign` is -1 where a smaller value of the metric is the better one.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -sign * p.score.value)):
        last = kept[-1] if kept else None
        if last is None or sign * (point.score.value - last.score.value) > 0 or _alike(point, last):
            kept.append(point)
    return kept


def _alike(one: Point, other: Point) -> bool:
    return (one.cost, one.score.value) == (other.cost, other.score.value)


@dataclass(frozen=True)
class _Cost:
    """A horizontal axis: its names, what was measured, unit, Vega's number format, each trial's cost by its place.

    `limit` is the most that is asked for, in the axis' unit.
    """

    name: str
    short: str
    detail: str
    unit: str
    format: str
    values: dict[int, float]
    limit: float | None


def _costs(run: Run) -> list[_Cost]:
    sizes = {i: trial.file_bytes / 1e6 for i, trial in enumerate(run.trials)}
    bops = {i: float(trial.bops) for i, trial in enumerate(run.trials)}
    size = None if run.limits.size is None else run.limits.size / 1e6
    timed = latency_keys(run)
    return [
        _Cost(text("file size"), text("file"), text("the exported file"), "MB", ",~r", sizes, size),
        _Cost("BOPs", "BOPs", text("bit operations, one sample"), "BOPs", "~s", bops, run.limits.bops),
        *(_latency(run, key, run.limits.latency if key == timed[0] else None, timed) for key in timed),
    ]


def _latency(run: Run, key: tuple[str, int, int], limit: float | None, timed: Sequence[tuple[str, int, int]]) -> _Cost:
    medians = {
        i: row.median_ms
        for i, trial in enumerate(run.trials)
        for row in trial.latencies
        if (row.runtime, row.batch, row.threads) == key
    }
    runtime, batch, number = key
    detail = timed_by((runtime, batch, number))
    named = text("latency") if len({one for one, _, _ in timed}) == 1 else runtime
    several_threads = len({one for _, _, one in timed}) > 1
    short = f"{named} {batch}" + (f" ({threads(number)})" if several_threads else "")
    return _Cost(text("latency"), short, detail, "ms", ",~r", medians, limit)


def _plots(run: Run) -> list[_Plot]:
    metric = Metric.of(run)
    plots = [_Plot(cost, _points(run, cost, metric), metric, _lines(run, metric)) for cost in _costs(run)]
    return [plot for plot in plots if len(plot.points) > 1]


def _points(run: Run, cost: _Cost, metric: Metric) -> list[Point]:
    return [
        Point(i, trial, cost.values[i], _scaled(trial.score, metric.scale))
        for i, trial in enumerate(run.trials)
        if trial.score and math.isfinite(trial.score.value) and cost.values.get(i, 0) > 0
    ]


def _scaled(score: Score, scale: float = 1) -> Score:
    """The score in the units that are drawn; an end of the interval that is no number becomes the value."""
    low, high = (end if math.isfinite(end) else score.value for end in (score.low, score.high))
    return Score(scale * score.value, scale * low, scale * high, score.samples)


@dataclass(frozen=True)
class _Line:
    """What is asked of the metric: the least value or the most, in the units that are drawn, and its name."""

    value: float
    name: str


def _lines(run: Run, metric: Metric) -> list[_Line]:
    """The bound, and the float model's score within the tolerance: what is asked of it, the strictest first."""
    reference, asked, kpi = decision.baseline(run), [], run.kpi
    if kpi.bound is not None:
        said = key("maximum {value}") if kpi.smaller_is_better else key("minimum {value}")
        asked.append(_Line(metric.scale * kpi.bound, text(said, value=metric.limit(kpi.bound))))
    if kpi.tolerance is not None and reference and reference.score:
        said = key("float + {loss}") if kpi.smaller_is_better else key("float − {loss}")
        value = reference.score.value - kpi.sign * kpi.tolerance
        asked.append(_Line(metric.scale * value, text(said, loss=metric.loss(kpi.tolerance))))
    return sorted(asked, key=lambda line: -kpi.sign * line.value)


def metric_axis(scores: Sequence[Score], bound: float | None, pixels: float, sign: int = 1) -> Axis:
    """From just below the lowest interval to just above the highest, what is asked included where something is.

    One collapsed variant would press all others into a line: where leaving out what lies far below both the best and
    the minimum at least halves the axis, it ends above those scores, and they are drawn on its floor. With a `sign` of
    -1 smaller is better, and it is what lies far above the best and the maximum, on the axis' ceiling.
    """
    if sign < 0:
        turned = _upwards([-score for score in scores], None if bound is None else -bound, pixels)
        return Axis(-turned.high, -turned.low, pixels)
    return _upwards(scores, bound, pixels)


def _upwards(scores: Sequence[Score], minimum: float | None, pixels: float) -> Axis:
    """The axis where larger is better."""
    best = max(scores, key=lambda score: score.value)
    minimum = best.value if minimum is None else minimum
    near = max(abs(best.value - minimum), best.high - best.low)
    kept = [score for score in scores if score.value >= min(best.value, minimum) - 3 * near]
    top = max(minimum, *(score.high for score in scores))
    low, whole = (min(minimum, *(score.low for score in some)) for some in (kept, scores))
    low = low if top - whole > 2 * (top - low) else whole
    margin = 0.08 * (top - low) or 0.05 * abs(top) or 1.0
    return Axis(low - margin, top + margin, pixels)


def strip(run: Run) -> Axis | None:
    """The metric on 100 pixels, the same for every row of the table, or None where nothing was scored."""
    scores = [_scaled(trial.score) for trial in run.trials if trial.score and math.isfinite(trial.score.value)]
    return metric_axis(scores, figures.bound(run), 100, run.kpi.sign) if scores else None


@dataclass(frozen=True)
class _Plot:
    """One plot on its way to a `Chart`; `lines` are what is asked of the metric."""

    cost: _Cost
    points: list[Point]
    metric: Metric
    lines: list[_Line]

    @property
    def sign(self) -> int:
        """-1 where smaller is better, and up is worse."""
        return -1 if self.metric.smaller_is_better else 1

    @property
    def shown(self) -> list[_Line]:
        """Lines that lie on the axis."""
        return [line for line in self.lines if self.up.low <= line.value <= self.up.high]

    @property
    def bound(self) -> float | None:
        """The least value of the metric that will do, or the most where smaller is better."""
        return self.lines[0].value if self.lines else None

    @cached_property
    def front(self) -> list[Point]:
        return front(self.points, self.sign)

    @cached_property
    def across(self) -> Axis:
        """The cost; its limit is on the axis unless that lies far beyond all variants."""
        costs = [p.cost for p in self.points]
        limit = self.cost.limit
        return cost_axis([*costs, limit] if limit is not None and 0 < limit < 4 * max(costs) else costs)

    @cached_property
    def up(self) -> Axis:
        return metric_axis([p.score for p in self.points], self.bound, HEIGHT, self.sign)

    @property
    def limit(self) -> float | None:
        """The most that the cost may be, if it lies on the axis."""
        limit = self.cost.limit
        return limit if limit is not None and self.across.low <= limit <= self.across.high else None

    def down(self, value: float) -> float:
        """Where a metric is, in pixels from the top."""
        return HEIGHT - self.up.at(value)

    def is_inside(self, point: Point) -> bool:
        """Whether a point is not so bad that it lies beyond the axis."""
        return self.up.low <= point.score.value <= self.up.high

    def chart(self) -> Chart:
        title = text("{metric} against {cost}", metric=self.metric.name, cost=self.cost.name)
        winners = figures.names(p.trial.name for p in self.front)
        summary = text(
            "Plot of {title} ({detail}): {number} variants. On the Pareto front: {winners}.",
            title=title,
            detail=self.cost.detail,
            number=len(self.points),
            winners=winners,
        )
        return Chart(title, self.cost.detail, drawn(self.layers()), tuple(self.mark(p) for p in self.points), summary)

    def mark(self, point: Point) -> Mark:
        left, top = place(self.across.at(point.cost), self.down(point.score.value))
        return Mark(f"v{point.index}", point.trial.name, point.shape, left, top, self.facts(point))

    def facts(self, point: Point) -> tuple[tuple[str, str], ...]:
        trial = point.trial
        assert trial.score is not None
        facts = (
            (text("decision"), "" if trial.recipe is None else decision.said(trial)),
            (self.metric.name, self.metric.value(trial.score.value)),
            (text("interval"), self.metric.interval(trial.score)),
            (text("from float"), self.metric.change(trial.difference.value) if trial.difference else ""),
            (text("file"), figures.size(trial.file_bytes) if trial.file_bytes else ""),
            ("BOPs", figures.count(trial.bops) if trial.bops else ""),
            (text("latency"), figures.milliseconds(point.cost) if self.cost.unit == "ms" else ""),
            (text("on the front"), text("yes") if point in self.front else text("no")),
        )
        return tuple(fact for fact in facts if fact[1])

    def labels(self) -> list[dict[str, Any]]:
        """Names of the lines and the points: front first; a dominated point's is left out where none fits freely."""
        within: Box = (-4, -TOP, WIDTH + RIGHT, HEIGHT)
        told: list[tuple[str, float, float, Align, str]] = []
        titled = 2 - LEFT + 0.58 * FONT * letters(self.metric.title)
        taken: list[Box] = [(2 - LEFT, -24, titled, -10)]  # the title of the axis
        for line, beyond in zip(self.shown, (-9, 9) if len(self.shown) > 1 else (9,), strict=False):
            y, below = self.down(line.value), self.sign * beyond
            taken += [(0, y - 1, WIDTH, y + 1), (WIDTH - 6 * len(line.name), y + below - 7, WIDTH, y + below + 7)]
            told.append((line.name, WIDTH, y + below, "right", "var(--muted)"))
        for p in self.points:
            x = self.across.at(p.cost)
            taken.append((x - 6, self.down(p.score.value) - 6, x + 6, self.down(p.score.value) + 6))
            taken.append((x - 2, self.down(p.score.high), x + 2, self.down(p.score.low)))
        if self.limit is not None:
            edge, most = self.across.at(self.limit), text("limit")
            taken.append((edge - 1, 0, edge + 1, HEIGHT))
            named = place_label(most, edge, 6, within=within, taken=taken, size=FONT)
            taken.append(named.box)
            told.append((most, named.x, named.y, named.align, "var(--muted)"))
        for before, after in pairwise(p for p in self.front if self.is_inside(p)):
            (left, y), (right, top) = ((self.across.at(p.cost), self.down(p.score.value)) for p in (before, after))
            taken += [(left, y - 2, right, y + 2), (right - 2, min(top, y), right + 2, max(top, y))]
        for p in sorted(self.points, key=lambda p: p not in self.front):
            away = f" {self.metric.value(p.score.value / self.metric.scale)} {'↓' if self.sign > 0 else '↑'}"
            hidden = "" if self.is_inside(p) else away
            name = (p.trial.name if len(p.trial.name) <= 18 else p.trial.name[:17] + "…") + hidden
            x, y = self.across.at(p.cost), self.down(p.score.value)
            label = place_label(name, x, y, within=within, taken=taken, size=FONT)
            if label.free or p in self.front:
                taken.append(label.box)
                told.append((name, label.x, label.y, label.align, "var(--ink)"))
        return [
            {"text": name, "cost": self.across.back(x), "value": self.up.back(HEIGHT - y), "align": align, "color": ink}
            for name, x, y, align, ink in told
        ]

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: what misses, the lines of what is asked, front, intervals, points, names."""
        across = text("{unit}, log scale", unit=self.cost.unit) if self.across.log else self.cost.unit
        x = encoded("cost", self.across, across, self.across.ticks(6), self.cost.format)
        ticks = self.up.ticks(6)
        y = encoded("value", self.up, self.metric.title, ticks, f".{_decimals(ticks)}f")
        worst = self.up.low if self.sign > 0 else self.up.high
        beyond = [] if self.bound is None else [{"value": self.bound, "end": worst}]
        asked = [{"value": line.value} for line in self.shown]
        most = [] if self.limit is None else [{"cost": self.limit, "end": self.across.high}]
        steps = [{"cost": p.cost, "value": p.score.value} for p in self.front if self.is_inside(p)]
        rows = [
            {
                "cost": p.cost,
                "value": self.up.inside(p.score.value),
                "low": self.up.inside(p.score.low),
                "high": self.up.inside(p.score.high),
                "shape": SHAPES[p.shape],
                "color": f"var(--{p.shape})",
                "fill": f"var(--{p.shape})" if p in self.front else "var(--panel)",
            }
            for p in self.points
        ]
        shade, dashed = {"type": "rect", "color": "var(--below)"}, {"type": "rule", "color": "var(--limit)"}
        whiskers, marks = {"type": "rule", "strokeWidth": 1.25, "opacity": 0.6}, {"type": "point", "size": 62}
        cap = {**whiskers, "type": "tick", "orient": "horizontal", "size": 7, "thickness": 1.25}
        scores = [p.score for p in self.points]  # a bar that goes on beyond the axis has no cap there
        ends = {
            "low": [*compress(rows, (self.up.low < score.low < self.up.high for score in scores))],
            "high": [*compress(rows, (self.up.low < score.high < self.up.high for score in scores))],
        }
        return [
            layer(beyond, shade, y=y, y2={"field": "end"}),
            *([layer(most, shade, x=x, x2={"field": "end"})] if most else []),
            layer(asked, {**dashed, "strokeDash": [4, 3]}, y=y),
            *([layer(most, {**dashed, "strokeDash": [4, 3]}, x=x)] if most else []),
            layer(steps, {"type": "line", "color": "var(--front)", "interpolate": "step-after"}, x=x, y=y),
            layer(rows, whiskers, x=x, y={**y, "field": "low"}, y2={"field": "high"}, color=plain("color")),
            *(layer(ending, cap, x=x, y={**y, "field": end}, color=plain("color")) for end, ending in ends.items()),
            layer(
                rows,
                {**marks, "strokeWidth": 1.75, "opacity": 1},
                x=x,
                y=y,
                shape=plain("shape"),
                fill=plain("fill"),
                stroke=plain("color"),
            ),
            *texts(self.labels(), x, y),
        ]


def _decimals(values: Iterable[float]) -> int:
    """The digits behind the point that all values need."""
    return max((len(f"{value:.9f}".rstrip("0").partition(".")[2]) for value in values), default=0)
