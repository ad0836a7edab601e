"""What the page says of a variant that was trained: what that gained, how sure its teacher is, and two curves.

The curves are drawn as the Pareto plots are (`charts`): SVG of the same width, in the page's own colors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from lowbit.pilot.record import DistillationRow, Score, SearchRow
from lowbit.report import figures
from lowbit.report.axes import Axis, Box, place_label
from lowbit.report.charts import FONT, HEIGHT, RIGHT, TOP, WIDTH, Chart, drawn, encoded, layer, texts
from lowbit.report.figures import Metric

Trained: TypeAlias = "DistillationRow | SearchRow"
_MOST_POINTS = 40  # epochs with a point each; more would be a blur


def gain(row: Trained, metric: Metric, over: str = "post-training") -> str:
    """What training gained over what came before it alone, in one sentence."""
    if row.gain is None or row.post_training is None:
        return f"What training gained over {over} alone is not known: the {metric.name} of that has no value."
    change, interval = metric.change(row.gain.value), metric.change_interval(row.gain)
    what = {1: "gained", -1: "lost"}.get(_direction(row.gain), "did not measurably change")
    score = metric.value(row.post_training.value)
    return (
        f"Against {over} alone, which has {score}, training {what} {metric.name}: {change} (95 % interval "
        f"{interval}, paired on the same {row.gain.samples:,} samples)."
    )


def _direction(score: Score) -> int:
    """1 if the whole interval is above 0, -1 if it is below, else 0."""
    return (score.low > 0) - (score.high < 0)


def way(row: DistillationRow) -> str:
    """What learned from what, and how close to the teacher it came."""
    many = f"{len(row.epochs)} epoch{'' if len(row.epochs) == 1 else 's'}"
    published = " as published" if row.exact else ""
    source = "the labels" if row.loss == "labels" else f"the float model's outputs (loss {row.loss})"
    learned = f"It learned from {source} for {many} with {row.quantizer} quantizers{published}"
    return f"{learned}; epoch {row.best} was kept. {came(row)}".rstrip()


def came(row: Trained) -> str:
    """How close to the teacher the student was before training, and how close it came."""
    if row.before is None or row.after is None:
        return ""
    what = "Same prediction as the teacher" if of_classes(row) else "Closeness to the teacher's outputs (1 at best)"
    before, after = (agreement(value, row) for value in (row.before, row.after))
    return f"{what} on held-out inputs: {before} before training, {after} after."


def teacher(row: DistillationRow) -> str:
    """What was found of the teacher."""
    found, facts = row.teacher, []
    if found.confidence is not None:
        facts.append(f"its largest class probability is {figures.percent(found.confidence)} on average")
    facts.append(f"under augmentation it agrees with itself by {agreement(found.agreement, row)}")
    if found.accuracy is not None:
        facts.append(f"it predicts {figures.percent(found.accuracy)} of the labels")
    return f"The teacher is the float model: {figures.names(facts)}, on held-out inputs."


def learns_delta(row: DistillationRow) -> bool:
    """Whether the quantizers have a delta: those of EWGS."""
    return row.quantizer == "ewgs"


def bounds(low: float, high: float) -> str:
    """A range: ``−0.502 to 0.251``."""
    return f"{figures.significant(low)} to {figures.significant(high)}"


def of_classes(row: Trained) -> bool:
    """Whether outputs are class scores, so that agreement is a share of predictions."""
    return row.classes if isinstance(row, SearchRow) else row.teacher.confidence is not None


def agreement(value: float, row: Trained) -> str:
    """Agreement with the teacher, as a share where it is one."""
    return figures.percent(value) if of_classes(row) else figures.significant(value)


def agreement_unit(row: Trained) -> str:
    """What an axis of agreement is in."""
    return "%" if of_classes(row) else "1 less relative squared error"


# The curves


def curves(row: Trained) -> list[Chart]:
    """Training loss by epoch, and the score on held-out inputs by epoch, where there are such figures."""
    plots = [_loss(row), _score(row)]
    return [plot.chart() for plot in plots if any(epoch for epoch, _ in plot.points)]


@dataclass(frozen=True)
class _Curve:
    """One figure by epoch, on its way to a `Chart`: points are (epoch, value in the units that are drawn)."""

    title: str
    detail: str
    unit: str
    points: tuple[tuple[int, float], ...]
    up: Axis
    kept: int
    summary: str

    def chart(self) -> Chart:
        return Chart(self.title, self.detail, drawn(self.layers()), (), self.summary)

    @property
    def across(self) -> Axis:
        return Axis(0, max(epoch for epoch, _ in self.points), WIDTH)

    def rows(self) -> list[dict[str, Any]]:
        """The points that get a mark: all, or of many the kept one alone."""
        few = len(self.points) <= _MOST_POINTS
        return [
            {
                "epoch": epoch,
                "value": value,
                "size": 62 if epoch == self.kept else 26,
                "fill": "var(--front)" if epoch == self.kept else "var(--panel)",
            }
            for epoch, value in self.points
            if few or epoch == self.kept
        ]

    def labels(self) -> list[dict[str, Any]]:
        """The name of the kept epoch, where it covers least of the curve."""
        within: Box = (-4, -TOP, WIDTH + RIGHT, HEIGHT)
        taken: list[Box] = []
        for epoch, value in self.points:
            x, y = self.across.at(epoch), HEIGHT - self.up.at(value)
            taken.append((x - 5, y - 5, x + 5, y + 5))
        text = f"epoch {self.kept} kept"
        for epoch, value in self.points:
            if epoch == self.kept:
                x, y = self.across.at(epoch), HEIGHT - self.up.at(value)
                label = place_label(text, x, y, within=within, taken=taken, size=FONT)
                place = {"epoch": self.across.back(label.x), "value": self.up.back(HEIGHT - label.y)}
                return [{**place, "text": text, "align": label.align, "color": "var(--ink)"}]
        return []

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: the line, its points, and the name of the kept one."""
        x = encoded("epoch", self.across, "epoch", [t for t in self.across.ticks(7) if t == int(t)], "d")
        y = encoded("value", self.up, self.unit, self.up.ticks(6), tick_format(self.up))
        line = [{"epoch": epoch, "value": value} for epoch, value in self.points]
        point = {"type": "point", "stroke": "var(--front)", "strokeWidth": 1.75, "opacity": 1}
        as_it_is = {name: {"field": name, "type": "quantitative", "scale": None} for name in ("size", "fill")}
        as_it_is["fill"]["type"] = "nominal"
        return [
            layer(line, {"type": "line", "color": "var(--front)"}, x=x, y=y),
            layer(self.rows(), point, x=x, y=y, **as_it_is),
            *texts(self.labels(), x, y),
        ]


def tick_format(axis: Axis) -> str:
    """Vega's number format for an axis: with exponents where zeros would not fit beside it."""
    return "~e" if axis.high < 1e-3 else ",~r"


def _loss(row: Trained) -> _Curve:
    points = tuple((e.number, e.loss) for e in row.epochs if math.isfinite(e.loss))
    what = "the labels" if row.loss == "labels" else "the float model's outputs"
    ends = [f"{figures.significant(value)} in epoch {epoch}" for epoch, value in (*points[:1], *points[1:][-1:])]
    axis = loss_axis([value for _, value in points])
    unit = f"loss ({row.loss}){', log scale' if axis.log else ''}"
    summary = f"Plot of training loss by epoch: {figures.names(ends)}."
    return _Curve("training loss", f"against {what}", unit, points, axis, row.best, summary)


def loss_axis(values: list[float]) -> Axis:
    """From zero, or where the loss spans more than a factor of five, logarithmic."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > 5 * low:
        margin = (high / low) ** 0.08
        return Axis(low / margin, high * margin, HEIGHT, log=True)
    return Axis(min(0.0, low), high * 1.08 if high > 0 else 1.0, HEIGHT)


def _score(row: Trained) -> _Curve:
    """Agreement with the teacher; where labels were learned, accuracy on them."""
    on_labels = row.loss == "labels"
    scale = 100.0 if of_classes(row) else 1.0
    found = [(e.number, e.agreement) for e in row.epochs]
    if not on_labels:
        found.insert(0, (0, row.before))
    points = tuple((epoch, scale * value) for epoch, value in found if value is not None and math.isfinite(value))
    title = "accuracy on held-out labels" if on_labels else "agreement with the teacher"
    told = [
        f"{agreement(value / scale, row)} {f'in epoch {epoch}' if epoch else 'before training'}"
        + (", which was kept" if epoch == row.best else "")
        for epoch, value in points
        if epoch in (points[0][0], row.best, points[-1][0])
    ]
    detail = "held-out inputs" if on_labels else "held-out inputs; epoch 0 is before training"
    axis = score_axis([value for _, value in points], of_classes=of_classes(row))
    return _Curve(
        title, detail, agreement_unit(row), points, axis, row.best, f"Plot of {title} by epoch: {figures.names(told)}."
    )


def score_axis(values: list[float], *, of_classes: bool) -> Axis:
    """From just below the lowest to just above the highest; shares stay shares."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.02 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return Axis(max(0.0, low), min(100.0 + margin / 4, high), HEIGHT) if of_classes else Axis(low, high, HEIGHT)
