"""What the page says of a factorized variant: what became of each layer, what it costs, and how far it is off.

A table tells it layer by layer. Two plots beside it show errors by the layer's number in that table: of the weights, by
the method that found the factors, and of the outputs, before and after the last layer of a chain was fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lowbit.pilot.record import FactorizationRow, FactorizedLayerRow
from lowbit.report import figures
from lowbit.report.axes import Axis
from lowbit.report.charts import HEIGHT, SHAPES, WIDTH, Chart, Mark, drawn, encoded, layer, place, plain
from lowbit.report.learning import loss_axis, tick_format
from lowbit.report.searching import many, number, spending

METHODS = {  # of an error: its name, and the mark that it is drawn with
    "float": ("float factors", "float"),
    "rounding": ("rounding", "misses"),
    "admm": ("ADMM", "borderline"),
    "descent": ("descent", "meets"),
    "published": ("as published", "meets"),
}
_WAYS = {
    "descent": "by descent in the integers",
    "admm": "by AO-ADMM and descent in the integers after it",
    "rounding": "by rounding float factors",
    "published": "as published, by AO-ADMM",
}


# Sentences


def way(row: FactorizationRow) -> str:
    """What became of the layers, how, and what the whole network costs and loses by it."""
    chains = sum(bool(one.kind) for one in row.layers)
    costs = [
        f"{figures.percent(after / before)} of the {what} ({written})"
        for what, before, after, written in (
            ("BOPs", row.before.bops, row.after.bops, figures.count(row.after.bops)),
            ("bytes", row.before.weight_bytes, row.after.weight_bytes, figures.size(row.after.weight_bytes)),
        )
        if before
    ]
    what = "a chain" if chains == 1 else "chains"
    became = f"{chains} of {many(len(row.layers), 'layer')} became {what} of small ones, with factors found"
    told = (
        f"{became} {_WAYS.get(row.solver, row.solver)}."
        if chains
        else "No layer became a chain: dense ones serve better."
    )
    return (
        f"{told} The network has {figures.names(costs)} of the same network with all layers dense in the recipe's "
        f"formats. {_close(row)}"
    ).rstrip()


def _close(row: FactorizationRow) -> str:
    if row.agreement is not None:
        return f"It predicts the same as the float model for {figures.percent(row.agreement)} of held-out inputs."
    if row.error is not None:
        return f"On held-out inputs its outputs are off by {number(row.error)} of the float model's variance."
    return ""


def spent(row: FactorizationRow) -> str:
    """What of the budget is spent; empty without one, or where it was milliseconds or bytes of a file."""
    costs = {"bops": float(row.after.bops), "bytes": float(row.after.weight_bytes)}
    known = {kind: most for kind, most in row.budgets.items() if kind in costs}
    return spending(known, costs) if known else ""


def norms(row: FactorizationRow) -> str:
    """What became of new BatchNorm statistics; empty if none were asked for."""
    if row.recalibrated is None:
        return ""
    if row.recalibrated:
        return "New BatchNorm statistics brought the outputs closer, and were kept."
    return "New BatchNorm statistics did not bring the outputs closer, and were not kept."


def methods(row: FactorizationRow) -> list[str]:
    """The methods whose errors are known."""
    return [name for name in METHODS if any(name in one.errors for one in row.layers)]


def became(one: FactorizedLayerRow) -> str:
    """Kind and rank of a layer's chain, or that it has none."""
    return f"{one.kind}, rank {one.rank:,}" if one.kind else "dense"


def advice(row: FactorizationRow) -> dict[str, list[str]]:
    """The layers that each advice is about."""
    found: dict[str, list[str]] = {}
    for one in row.layers:
        if one.advice:
            found.setdefault(one.advice, []).append(one.name)
    return found


def timed(row: FactorizationRow) -> bool:
    """Whether layers were timed."""
    return any(one.after.milliseconds is not None for one in row.layers)


def time(milliseconds: float | None) -> str:
    """A measured time, where there is one."""
    return figures.NONE if milliseconds is None else figures.milliseconds(milliseconds)


def fitted(row: FactorizationRow) -> bool:
    """Whether last layers of chains were fitted to outputs."""
    return any(one.output_after is not None for one in row.layers)


# Errors by layer


def errors(row: FactorizationRow, trial: int) -> list[Chart]:
    """Errors of weights and of outputs by layer; `trial` is the variant's place in the run."""
    plots = [_Errors("error of the weights", "relative to their norm, by method", trial, tuple(_of_weights(row)))]
    if fitted(row):
        detail = "relative to their variance, before and after the fit"
        plots.append(_Errors("error of the outputs", detail, trial, tuple(_of_outputs(row))))
    return [plot.chart() for plot in plots if len({point.number for point in plot.points}) > 1]


@dataclass(frozen=True)
class _Point:
    """One error: the number of its layer in the table, what it is called, its mark, and whether that is filled."""

    number: int
    layer: FactorizedLayerRow
    name: str
    mark: str
    value: float
    used: bool


def _of_weights(row: FactorizationRow) -> Iterator[_Point]:
    for i, one in enumerate(row.layers, 1):
        for method, (name, mark) in METHODS.items():
            value = one.errors.get(method)
            if value is not None and math.isfinite(value):
                yield _Point(i, one, name, mark, value, method == row.solver)


def _of_outputs(row: FactorizationRow) -> Iterator[_Point]:
    for i, one in enumerate(row.layers, 1):
        for name, value in (("before", one.output_before), ("after", one.output_after)):
            if value is not None:
                yield _Point(i, one, name, "meets", value, name == "after")


@dataclass(frozen=True)
class _Errors:
    """Errors by the number of the layer, on their way to a `Chart`."""

    title: str
    detail: str
    trial: int
    points: tuple[_Point, ...]

    @cached_property
    def across(self) -> Axis:
        numbers = [point.number for point in self.points]
        return Axis(min(numbers) - 0.5, max(numbers) + 0.5, WIDTH)

    @cached_property
    def up(self) -> Axis:
        return loss_axis([point.value for point in self.points])

    def chart(self) -> Chart:
        used = [point for point in self.points if point.used]
        worst = max(used or self.points, key=lambda point: point.value)
        layers = many(len({point.number for point in self.points}), "layer")
        told = f"The largest that is left: {figures.significant(worst.value)} in {worst.layer.name}."
        summary = f"Plot of the {self.title} of {layers}, {self.detail}. {told}"
        return Chart(self.title, self.detail, drawn(self.layers()), tuple(map(self.mark, used)), summary)

    def mark(self, point: _Point) -> Mark:
        left, top = place(self.across.at(point.number), HEIGHT - self.up.at(self.up.inside(point.value)))
        facts = [(other.name, figures.significant(other.value)) for other in self.points if other.layer is point.layer]
        chain = ("chain", f"{point.layer.choice} ({became(point.layer)})")
        return Mark(f"v{self.trial}f{point.number}", point.layer.name, point.mark, left, top, (chain, *facts))

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: a line from the least to the largest error of each layer, and the errors."""
        ticks = [tick for tick in self.across.ticks(8) if tick == int(tick)]
        x = encoded("layer", self.across, "layer, by its number in the table", ticks, "d")
        unit = f"error{', log scale' if self.up.log else ''}"
        y = encoded("value", self.up, unit, self.up.ticks(6), tick_format(self.up))
        by_layer: dict[int, list[float]] = {}
        for point in self.points:
            by_layer.setdefault(point.number, []).append(self.up.inside(point.value))
        spans = [{"layer": i, "value": min(values), "end": max(values)} for i, values in by_layer.items()]
        rows = [
            {
                "layer": point.number,
                "value": self.up.inside(point.value),
                "shape": SHAPES[point.mark],
                "color": f"var(--{point.mark})",
                "fill": f"var(--{point.mark})" if point.used else "var(--panel)",
            }
            for point in sorted(self.points, key=lambda point: point.used)
        ]
        size = 50 if len(by_layer) <= 20 else 26
        return [
            layer(spans, {"type": "rule", "color": "var(--line)"}, x=x, y=y, y2={"field": "end"}),
            layer(
                rows,
                {"type": "point", "size": size, "strokeWidth": 1.5, "opacity": 1},
                x=x,
                y=y,
                shape=plain("shape"),
                fill=plain("fill"),
                stroke=plain("color"),
            ),
        ]
