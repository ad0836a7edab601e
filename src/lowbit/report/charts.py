"""The Pareto plots: what the metric costs in bytes, in BOPs and in milliseconds; and what all drawings have in common.

Each plot is a Vega-Lite specification that `vl_convert` draws to SVG while the page is made. A reader gets a picture
that needs no script, no `eval` and no network, weighs a few kB instead of the 900 kB of the Vega libraries, prints as
it looks, and follows the page between light and dark because its colors are CSS variables. One drawing, 364 units
wide, serves all screens: the page lays out as many columns of about that width as fit, so text keeps its size on a
phone. Hover details are HTML laid over the drawing: a link a point, placed in percent of the drawing, and a card.

The geometry is fixed here and not left to Vega (domains, ticks, padding), because links and labels have to know where
a point is: `Axis.at` is the map that Vega applies too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import vl_convert

from lowbit.pilot.record import Run, Score, Trial
from lowbit.report import figures
from lowbit.report.axes import Align, Axis, Box, place_label
from lowbit.report.figures import Metric

WIDTH, HEIGHT = 304, 208  # the plotting area, in the drawing's units
LEFT, TOP, RIGHT, BOTTOM = 44, 28, 16, 42  # around it
FONT = 11
SHAPES = {"float": "square", "meets": "circle", "borderline": "diamond", "misses": "triangle-down"}


@dataclass(frozen=True)
class Mark:
    """A point's link and card over the drawing: its place in percent of the drawing, and what the card says.

    `anchor` is where the link leads.
    """

    anchor: str
    name: str
    shape: str
    left: float
    top: float
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chart:
    """A drawn plot: its title and what was measured, its SVG, its marks, and its text alternative."""

    title: str
    detail: str
    svg: str
    marks: tuple[Mark, ...]
    summary: str


def drawn(layers: list[dict[str, Any]]) -> str:
    """The SVG of a plotting area with the given layers of a Vega-Lite specification, back to front."""
    specification = {
        "width": WIDTH,
        "height": HEIGHT,
        "padding": {"left": LEFT, "top": TOP, "right": RIGHT, "bottom": BOTTOM},
        "autosize": "none",
        "background": None,
        "config": LOOK,
        "layer": layers,
    }
    return str(vl_convert.vegalite_to_svg(specification))


def encoded(field: str, axis: Axis, title: str, ticks: list[float], form: str) -> dict[str, Any]:
    """The encoding of a field along an axis, with its ticks in Vega's number format."""
    scale = {"type": "log" if axis.log else "linear", "domain": [axis.low, axis.high], "nice": False, "zero": False}
    return {
        "field": field,
        "type": "quantitative",
        "scale": {key: value for key, value in scale.items() if not (axis.log and key == "zero")},
        "axis": {"title": title, "values": ticks, "format": form},
    }


def cost_axis(costs: Iterable[float]) -> Axis:
    """A horizontal axis for positive costs: logarithmic where they span more than a factor of five, else from zero."""
    found = [*costs]
    low, high = min(found), max(found)
    margin = (high / low) ** 0.08
    return Axis(low / margin, high * margin, WIDTH, log=True) if high / low > 5 else Axis(0, high * 1.08, WIDTH)


def place(x: float, y: float) -> tuple[float, float]:
    """A point of the plotting area in percent of the drawing, from its left and top."""
    return 100 * (LEFT + x) / (LEFT + WIDTH + RIGHT), 100 * (TOP + y) / (TOP + HEIGHT + BOTTOM)


def texts(rows: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]) -> list[dict[str, Any]]:
    """Layers that write the `text` of each row in its `color`, on the side that `align` says."""
    return [
        layer(
            [row for row in rows if row["align"] == align],
            {"type": "text", "align": align, "baseline": "middle", "fontSize": FONT},
            x=x,
            y=y,
            text={"field": "text"},
            color=plain("color"),
        )
        for align in ("left", "center", "right")
    ]


def draw(run: Run) -> list[Chart]:
    """Every plot of a run that compares at least two trials: file size, BOPs, then one latency a runtime and batch."""
    metric = Metric.of(run)
    plots = [_Plot(cost, _points(run, cost, metric), metric, run.kpi.minimum) for cost in _costs(run)]
    return [plot.chart() for plot in plots if len(plot.points) > 1]


def latency_keys(run: Run) -> list[tuple[str, int, int]]:
    """Each (runtime, batch, threads) that was timed, as first met."""
    return list(dict.fromkeys((r.runtime, r.batch, r.threads) for trial in run.trials for r in trial.latencies))


def threads(number: int) -> str:
    """``1 thread``, ``4 threads``."""
    return f"{number} thread{'' if number == 1 else 's'}"


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


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats: cheapest first, each better than every cheaper one."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score.value)):
        if not kept or point.score.value > kept[-1].score.value:
            kept.append(point)
    return kept


@dataclass(frozen=True)
class _Cost:
    """A horizontal axis: name, what was measured, unit, Vega's number format, each trial's cost by its place."""

    name: str
    detail: str
    unit: str
    format: str
    values: dict[int, float]


def _costs(run: Run) -> list[_Cost]:
    sizes = {i: trial.file_bytes / 1e6 for i, trial in enumerate(run.trials)}
    bops = {i: float(trial.bops) for i, trial in enumerate(run.trials)}
    return [
        _Cost("file size", "the exported file", "MB", ",~r", sizes),
        _Cost("BOPs", "bit operations, one sample", "BOPs", "~s", bops),
        *(_latency(run, *key) for key in latency_keys(run)),
    ]


def _latency(run: Run, runtime: str, batch: int, number: int) -> _Cost:
    medians = {
        i: row.median_ms
        for i, trial in enumerate(run.trials)
        for row in trial.latencies
        if (row.runtime, row.batch, row.threads) == (runtime, batch, number)
    }
    return _Cost("latency", f"{runtime}, batch {batch}, {threads(number)}", "ms", ",~r", medians)


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


def metric_axis(scores: Sequence[Score], minimum: float, pixels: float) -> Axis:
    """From just below the lowest interval to just above the highest, the minimum included.

    One collapsed variant would press all others into a line: where leaving out what lies far below both the best and
    the minimum at least halves the axis, it ends above those scores, and they are drawn on its floor.
    """
    best = max(scores, key=lambda score: score.value)
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
    return metric_axis(scores, run.kpi.minimum, 100) if scores else None


@dataclass(frozen=True)
class _Plot:
    """One plot on its way to a `Chart`."""

    cost: _Cost
    points: list[Point]
    metric: Metric
    asked: float

    @property
    def minimum(self) -> float:
        return self.metric.scale * self.asked

    @cached_property
    def front(self) -> list[Point]:
        return front(self.points)

    @cached_property
    def across(self) -> Axis:
        """The cost."""
        return cost_axis(p.cost for p in self.points)

    @cached_property
    def up(self) -> Axis:
        return metric_axis([p.score for p in self.points], self.minimum, HEIGHT)

    def down(self, value: float) -> float:
        """Where a metric is, in pixels from the top."""
        return HEIGHT - self.up.at(value)

    def chart(self) -> Chart:
        title = f"{self.metric.name} against {self.cost.name}"
        winners = figures.names(p.trial.name for p in self.front)
        return Chart(
            title,
            self.cost.detail,
            drawn(self.layers()),
            tuple(self.mark(p) for p in self.points),
            f"Plot of {title} ({self.cost.detail}): {len(self.points)} variants. On the Pareto front: {winners}.",
        )

    def mark(self, point: Point) -> Mark:
        left, top = place(self.across.at(point.cost), self.down(point.score.value))
        return Mark(f"v{point.index}", point.trial.name, point.shape, left, top, self.facts(point))

    def facts(self, point: Point) -> tuple[tuple[str, str], ...]:
        trial = point.trial
        assert trial.score is not None
        facts = (
            (self.metric.name, self.metric.value(trial.score.value)),
            ("interval", self.metric.interval(trial.score)),
            ("from float", self.metric.change(trial.difference.value) if trial.difference else ""),
            ("file", figures.size(trial.file_bytes) if trial.file_bytes else ""),
            ("BOPs", figures.count(trial.bops) if trial.bops else ""),
            ("latency", figures.milliseconds(point.cost) if self.cost.unit == "ms" else ""),
        )
        return tuple(fact for fact in facts if fact[1])

    def labels(self) -> list[dict[str, Any]]:
        """The minimum's name and the points': front first; a dominated point's is left out where none fits freely."""
        within: Box = (-4, -TOP, WIDTH + RIGHT, HEIGHT)
        line = self.down(self.minimum)
        asked = f"minimum {self.metric.minimum(self.asked)}"
        taken: list[Box] = [(0, line - 1, WIDTH, line + 1), (WIDTH - 6 * len(asked), line, WIDTH, line + 16)]
        for p in self.points:
            x = self.across.at(p.cost)
            taken.append((x - 6, self.down(p.score.value) - 6, x + 6, self.down(p.score.value) + 6))
            taken.append((x - 2, self.down(p.score.high), x + 2, self.down(p.score.low)))
        for before, after in pairwise(p for p in self.front if p.score.value >= self.up.low):
            (left, y), (right, top) = ((self.across.at(p.cost), self.down(p.score.value)) for p in (before, after))
            taken += [(left, y - 2, right, y + 2), (right - 2, top, right + 2, y)]
        texts: list[tuple[str, float, float, Align, str]] = [(asked, WIDTH, line + 9, "right", "var(--muted)")]
        for p in sorted(self.points, key=lambda p: p not in self.front):
            hidden = f" {self.metric.value(p.score.value / self.metric.scale)} ↓" if p.score.value < self.up.low else ""
            text = (p.trial.name if len(p.trial.name) <= 18 else p.trial.name[:17] + "…") + hidden
            label = place_label(
                text, self.across.at(p.cost), self.down(p.score.value), within=within, taken=taken, size=FONT
            )
            if label.free or p in self.front:
                taken.append(label.box)
                texts.append((text, label.x, label.y, label.align, "var(--ink)"))
        return [
            {"text": text, "cost": self.across.back(x), "value": self.up.back(HEIGHT - y), "align": align, "color": ink}
            for text, x, y, align, ink in texts
        ]

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: what misses, the minimum, front, intervals, points, names."""
        across = self.cost.unit + (", log scale" if self.across.log else "")
        x = encoded("cost", self.across, across, self.across.ticks(6), self.cost.format)
        ticks = self.up.ticks(6)
        y = encoded("value", self.up, self.metric.title, ticks, f".{_decimals(ticks)}f")
        floor = self.up.low
        minimum = [{"value": self.minimum, "low": floor}]
        steps = [{"cost": p.cost, "value": p.score.value} for p in self.front if p.score.value >= floor]
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
        stroke = {"stroke": plain("color")}
        return [
            layer(minimum, {"type": "rect", "color": "var(--below)"}, y=y, y2={"field": "low"}),
            layer(minimum, {"type": "rule", "color": "var(--limit)", "strokeDash": [4, 3]}, y=y),
            layer(steps, {"type": "line", "color": "var(--front)", "interpolate": "step-after"}, x=x, y=y),
            layer(
                rows,
                {"type": "rule", "strokeWidth": 1.25, "opacity": 0.6},
                x=x,
                y={**y, "field": "low"},
                y2={"field": "high"},
                color=plain("color"),
            ),
            layer(
                rows,
                {"type": "point", "size": 62, "strokeWidth": 1.75, "opacity": 1},
                x=x,
                y=y,
                shape=plain("shape"),
                fill=plain("fill"),
                **stroke,
            ),
            *texts(self.labels(), x, y),
        ]


def _decimals(values: Iterable[float]) -> int:
    """The digits behind the point that all values need."""
    return max((len(f"{value:.9f}".rstrip("0").partition(".")[2]) for value in values), default=0)


def layer(rows: list[dict[str, Any]], mark: dict[str, Any], **encoding: dict[str, Any]) -> dict[str, Any]:
    """A layer of a Vega-Lite specification, with its own data."""
    return {"data": {"values": rows}, "mark": mark, "encoding": encoding}


def plain(field: str) -> dict[str, Any]:
    """The encoding of a field that holds what is drawn: a color, a shape, a size."""
    return {"field": field, "type": "nominal", "scale": None}


LOOK: dict[str, Any] = {
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": FONT,
        "titleFontSize": FONT,
        "titleFontWeight": "normal",
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--grid)",
        "ticks": False,
        "domain": False,
        "labelPadding": 7,
        "labelLimit": 0,
        "titleLimit": 0,
    },
    "axisX": {"grid": False, "domain": True, "domainColor": "var(--line)", "titleAnchor": "end", "titlePadding": 6},
    "axisY": {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 2 - LEFT, "titleY": -16},
}
