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
from lowbit.report.language import key, of_record, sentences, several, text

Trained: TypeAlias = "DistillationRow | SearchRow"
OVER = (key("post-training"), key("factorization"))  # what can come before training
_MOST_POINTS = 40  # epochs with a point each; more would be a blur


def gain(row: Trained, metric: Metric, over: str = OVER[0]) -> str:
    """What training gained over what came before it alone, in one sentence."""
    names = {"over": text(over), "metric": metric.name}
    if row.gain is None or row.post_training is None:
        return text("What training gained over {over} alone is not known: the {metric} of that has no value.", **names)
    gained = -row.gain if metric.smaller_is_better else row.gain
    sentence = {
        1: key(
            "Against {over} alone, which has {score}, training improved {metric}, of which smaller is better: {change} "
            "(95 % interval {interval}, paired on the same {samples} samples)."
        )
        if metric.smaller_is_better
        else key(
            "Against {over} alone, which has {score}, training gained {metric}: {change} (95 % interval {interval}, "
            "paired on the same {samples} samples)."
        ),
        -1: key(
            "Against {over} alone, which has {score}, training made {metric} worse, of which smaller is better: "
            "{change} (95 % interval {interval}, paired on the same {samples} samples)."
        )
        if metric.smaller_is_better
        else key(
            "Against {over} alone, which has {score}, training lost {metric}: {change} (95 % interval {interval}, "
            "paired on the same {samples} samples)."
        ),
        0: key(
            "Against {over} alone, which has {score}, training did not measurably change {metric}: {change} (95 % "
            "interval {interval}, paired on the same {samples} samples)."
        ),
    }[_direction(gained)]
    return text(
        sentence,
        score=metric.value(row.post_training.value),
        change=metric.change(row.gain.value),
        interval=metric.change_interval(row.gain),
        samples=f"{row.gain.samples:,}",
        **names,
    )


def _direction(score: Score) -> int:
    """1 if the whole interval is above 0, -1 if it is below, else 0."""
    return (score.low > 0) - (score.high < 0)


def way(row: DistillationRow) -> str:
    """What learned from what, and how close to the teacher it came."""
    sentence = (
        key("It learned from {source} for {epochs} with {quantizer} quantizers as published; epoch {best} was kept.")
        if row.exact
        else key("It learned from {source} for {epochs} with {quantizer} quantizers; epoch {best} was kept.")
    )
    learned = text(sentence, source=source(row), epochs=epochs(len(row.epochs)), quantizer=row.quantizer, best=row.best)
    return sentences(learned, came(row))


def source(row: Trained) -> str:
    """What was learned from."""
    if row.loss == "labels":
        return text("the labels")
    return text("the float model's outputs (loss {loss})", loss=row.loss)


def epochs(number: int) -> str:
    """``1 epoch``, ``8 epochs``."""
    return several("{number} epoch", "{number} epochs", number)


def came(row: Trained) -> str:
    """How close to the teacher the student was before training, and how close it came."""
    if row.before is None or row.after is None:
        return ""
    sentence = (
        key("Same prediction as the teacher on held-out inputs: {before} before training, {after} after.")
        if of_classes(row)
        else key(
            "Closeness to the teacher's outputs (1 at best) on held-out inputs: {before} before training, {after} "
            "after."
        )
    )
    return text(sentence, before=agreement(row.before, row), after=agreement(row.after, row))


def teacher(row: DistillationRow) -> str:
    """What was found of the teacher."""
    found, facts = row.teacher, []
    if found.confidence is not None:
        share = figures.percent(found.confidence)
        facts.append(text("its largest class probability is {share} on average", share=share))
    itself = agreement(found.agreement, row)
    facts.append(text("under augmentation it agrees with itself by {agreement}", agreement=itself))
    if found.accuracy is not None:
        facts.append(text("it predicts {share} of the labels", share=figures.percent(found.accuracy)))
    return text("The teacher is the float model: {facts}, on held-out inputs.", facts=figures.names(facts))


def concerns(row: DistillationRow) -> list[str]:
    """Why the teacher is a weak one."""
    return [text("A weak teacher: {concern}.", concern=of_record(concern)) for concern in row.teacher.concerns]


def learns_delta(row: DistillationRow) -> bool:
    """Whether the quantizers have a delta: those of EWGS."""
    return row.quantizer == "ewgs"


def bounds(low: float, high: float) -> str:
    """A range: ``−0.502 to 0.251``."""
    return figures.span(figures.significant(low), figures.significant(high))


def of_classes(row: Trained) -> bool:
    """Whether outputs are class scores, so that agreement is a share of predictions."""
    return row.classes if isinstance(row, SearchRow) else row.teacher.confidence is not None


def agreement(value: float, row: Trained) -> str:
    """Agreement with the teacher, as a share where it is one."""
    return figures.percent(value) if of_classes(row) else figures.significant(value)


def agreement_unit(row: Trained) -> str:
    """What an axis of agreement is in."""
    return "%" if of_classes(row) else text("1 less relative squared error")


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
        name = text("epoch {number} kept", number=self.kept)
        for epoch, value in self.points:
            if epoch == self.kept:
                x, y = self.across.at(epoch), HEIGHT - self.up.at(value)
                label = place_label(name, x, y, within=within, taken=taken, size=FONT)
                place = {"epoch": self.across.back(label.x), "value": self.up.back(HEIGHT - label.y)}
                return [{**place, "text": name, "align": label.align, "color": "var(--ink)"}]
        return []

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: the line, its points, and the name of the kept one."""
        x = encoded("epoch", self.across, text("epoch"), [t for t in self.across.ticks(7) if t == int(t)], "d")
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
    detail = text("against the labels") if row.loss == "labels" else text("against the float model's outputs")
    ends = [
        text("{value} in epoch {epoch}", value=figures.significant(value), epoch=epoch)
        for epoch, value in (*points[:1], *points[1:][-1:])
    ]
    axis = loss_axis([value for _, value in points])
    summary = text("Plot of training loss by epoch: {figures}.", figures=figures.names(ends))
    return _Curve(text("training loss"), detail, loss_unit(row.loss, axis), points, axis, row.best, summary)


def loss_unit(loss: str, axis: Axis) -> str:
    """What an axis of a loss is in."""
    return on_log(text("loss ({loss})", loss=loss), axis)


def on_log(title: str, axis: Axis) -> str:
    """The title of an axis, which says where it is logarithmic."""
    return text("{title}, log scale", title=title) if axis.log else title


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
    title = text("accuracy on held-out labels") if on_labels else text("agreement with the teacher")
    told = [
        text(_said(epoch, row.best), value=agreement(value / scale, row), epoch=epoch)
        for epoch, value in points
        if epoch in (points[0][0], row.best, points[-1][0])
    ]
    detail = text("held-out inputs") if on_labels else text("held-out inputs; epoch 0 is before training")
    axis = score_axis([value for _, value in points], of_classes=of_classes(row))
    summary = text("Plot of {title} by epoch: {figures}.", title=title, figures=figures.names(told))
    return _Curve(title, detail, agreement_unit(row), points, axis, row.best, summary)


def _said(epoch: int, best: int) -> str:
    if epoch == best:
        return (
            key("{value} in epoch {epoch}, which was kept") if epoch else key("{value} before training, which was kept")
        )
    return key("{value} in epoch {epoch}") if epoch else key("{value} before training")


def score_axis(values: list[float], *, of_classes: bool) -> Axis:
    """From just below the lowest to just above the highest; shares stay shares."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.02 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return Axis(max(0.0, low), min(100.0 + margin / 4, high), HEIGHT) if of_classes else Axis(low, high, HEIGHT)
