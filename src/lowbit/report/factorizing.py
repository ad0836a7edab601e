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
from lowbit.report.language import key, of_record, sentences, text
from lowbit.report.learning import loss_axis, on_log, tick_format
from lowbit.report.searching import layers, number, spending

METHODS = {  # of an error: its name, and the mark that it is drawn with
    "float": (key("float factors"), "float"),
    "rounding": (key("rounding"), "misses"),
    "admm": ("ADMM", "borderline"),
    "descent": (key("descent"), "meets"),
    "published": (key("as published"), "meets"),
}
_WAYS = {
    "descent": key("by descent in the integers"),
    "admm": key("by AO-ADMM and descent in the integers after it"),
    "rounding": key("by rounding float factors"),
    "published": key("as published, by AO-ADMM"),
}


# Sentences


def way(row: FactorizationRow) -> str:
    """What became of the layers, how, and what the whole network costs and loses by it."""
    chains = sum(bool(one.kind) for one in row.layers)
    costs = [
        text("{share} of the {what} ({written})", share=figures.percent(after / before), what=what, written=written)
        for what, before, after, written in (
            ("BOPs", row.before.bops, row.after.bops, figures.count(row.after.bops)),
            (
                text("bytes"),
                row.before.weight_bytes,
                row.after.weight_bytes,
                figures.size(row.after.weight_bytes),
            ),
        )
        if before
    ]
    told = text("No layer became a chain: dense ones serve better.")
    if chains:
        sentence = (
            key("{chains} of {layers} became a chain of small ones, with factors found {way}.")
            if chains == 1
            else key("{chains} of {layers} became chains of small ones, with factors found {way}.")
        )
        found = text(_WAYS[row.solver]) if row.solver in _WAYS else row.solver
        told = text(sentence, chains=chains, layers=layers(len(row.layers)), way=found)
    left = text(
        "The network has {costs} of the same network with all layers dense in the recipe's formats.",
        costs=figures.names(costs),
    )
    return sentences(told, left, _close(row))


def _close(row: FactorizationRow) -> str:
    if row.agreement is not None:
        share = figures.percent(row.agreement)
        return text("It predicts the same as the float model for {share} of held-out inputs.", share=share)
    if row.error is not None:
        error = number(row.error)
        return text("On held-out inputs its outputs are off by {error} of the float model's variance.", error=error)
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
        return text("New BatchNorm statistics brought the outputs closer, and were kept.")
    return text("New BatchNorm statistics did not bring the outputs closer, and were not kept.")


def methods(row: FactorizationRow) -> list[str]:
    """The methods whose errors are known."""
    return [name for name in METHODS if any(name in one.errors for one in row.layers)]


def method(name: str) -> str:
    """What a method is called."""
    return text(METHODS[name][0])


def became(one: FactorizedLayerRow) -> str:
    """Kind and rank of a layer's chain, or that it has none."""
    return text("{kind}, rank {rank}", kind=one.kind, rank=f"{one.rank:,}") if one.kind else text("dense")


def advice(row: FactorizationRow) -> dict[str, list[str]]:
    """The layers that each advice is about."""
    found: dict[str, list[str]] = {}
    for one in row.layers:
        if one.advice:
            found.setdefault(of_record(one.advice), []).append(one.name)
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
    title, detail = text("error of the weights"), text("relative to their norm, by method")
    plots = [_Errors(title, detail, trial, tuple(_of_weights(row)))]
    if fitted(row):
        title, detail = text("error of the outputs"), text("relative to their variance, before and after the fit")
        plots.append(_Errors(title, detail, trial, tuple(_of_outputs(row))))
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
                yield _Point(i, one, text(name), mark, value, method == row.solver)


def _of_outputs(row: FactorizationRow) -> Iterator[_Point]:
    for i, one in enumerate(row.layers, 1):
        for name, value, used in ((key("before"), one.output_before, False), (key("after"), one.output_after, True)):
            if value is not None:
                yield _Point(i, one, text(name), "meets", value, used)


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
        plotted = text(
            "Plot of the {title} of {layers}, {detail}.",
            title=self.title,
            layers=layers(len({point.number for point in self.points})),
            detail=self.detail,
        )
        left = figures.significant(worst.value)
        told = text("The largest that is left: {error} in {layer}.", error=left, layer=worst.layer.name)
        summary = sentences(plotted, told)
        return Chart(self.title, self.detail, drawn(self.layers()), tuple(map(self.mark, used)), summary)

    def mark(self, point: _Point) -> Mark:
        left, top = place(self.across.at(point.number), HEIGHT - self.up.at(self.up.inside(point.value)))
        facts = [(other.name, figures.significant(other.value)) for other in self.points if other.layer is point.layer]
        chain = (text("chain"), f"{point.layer.choice} ({became(point.layer)})")
        return Mark(f"v{self.trial}f{point.number}", point.layer.name, point.mark, left, top, (chain, *facts))

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: a line from the least to the largest error of each layer, and the errors."""
        ticks = [tick for tick in self.across.ticks(8) if tick == int(tick)]
        x = encoded("layer", self.across, text("layer, by its number in the table"), ticks, "d")
        y = encoded("value", self.up, on_log(text("error"), self.up), self.up.ticks(6), tick_format(self.up))
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
