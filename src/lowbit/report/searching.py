"""What the page says of a searched variant: what was tried and found, and what assignments cost and lose.

Two tables of the page do the rest: how much each format hurts each layer, shaded along a logarithm,
and why each layer has the format that it has. Next to the first, a strip for each layer shows how the policy moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lowbit.pilot.record import PointRow, SearchRow
from lowbit.report import figures
from lowbit.report.axes import Axis, Box, place_label
from lowbit.report.charts import (
    FONT,
    HEIGHT,
    RIGHT,
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
from lowbit.report.language import key, of_record, sentences, several, text
from lowbit.report.learning import (
    agreement,
    agreement_unit,
    came,
    loss_axis,
    loss_unit,
    of_classes,
    on_log,
    score_axis,
    source,
    tick_format,
)

Figure = Literal["loss", "agreement"]
SHAPES = {"found": "circle", "candidate": "diamond", "uniform": "square", "front": "circle"}
COLORS = {"found": "meets", "candidate": "borderline", "uniform": "float", "front": "front"}
_COSTS = {  # of a budget: name, unit of the axis, how much of it is one, Vega's number format
    "bops": ("BOPs", "BOPs", 1.0, "~s"),
    "bytes": (key("bytes of weights"), "MB", 1e-6, ",~r"),
    "file": (key("bytes of weights in the file"), "MB", 1e-6, ",~r"),
    "latency": (key("latency"), "ms", 1.0, ",~r"),
}
_BY = {
    "knapsack": key("the exact solution for the sensitivities, and no exploring"),
    "surrogate": key("exploring around the exact solution for the sensitivities (surrogate)"),
    "policy": key("the published controller (policy)"),
}
_LEAST_SPAN, _MOST_SPAN = 10.0, 1e4  # of sensitivities, from no shade to the strongest


# Sentences


def cost_name(cost: str) -> str:
    """What a cost is called."""
    return text(_COSTS[cost][0]) if cost in _COSTS else cost


def cost(kind: str, value: float) -> str:
    """A cost with its unit: ``1.20 G``, ``0.24 MB``, ``0.387 ms``."""
    match kind:
        case "bops":
            return figures.count(value)
        case "bytes" | "file":
            return figures.size(round(value))
        case "latency":
            return figures.milliseconds(value)
    return figures.significant(value)


def spent(row: SearchRow) -> str:
    """What of each budget the found assignment spends."""
    return spending(row.budgets, row.found.costs)


def spending(budgets: Mapping[str, float], costs: Mapping[str, float]) -> str:
    """What of each budget some costs spend."""
    told = [
        text(
            "{share} of the budget for {cost} ({most})",
            share=figures.percent(costs[kind] / most),
            cost=cost_name(kind),
            most=cost(kind, most),
        )
        for kind, most in budgets.items()
    ]
    return text("It spends {shares}.", shares=figures.names(told))


def way(row: SearchRow) -> str:
    """How the formats were found."""
    number, decisions = sum(map(len, row.layers)), len(row.layers)
    decided = layers(number)
    if number != decisions:
        decided = several("{layers} in {number} decision", "{layers} in {number} decisions", decisions, layers=decided)
    chosen = text(
        "Formats of {layers} were chosen from {choices} by {means}.",
        layers=decided,
        choices=figures.names(row.choices),
        means=text(_BY[row.by]) if row.by in _BY else row.by,
    )
    tried = several(
        "{count} assignment of formats was tried while weights learned.",
        "{count} assignments of formats were tried while weights learned.",
        row.samples,
        count=f"{row.samples:,}",
    )
    of = several("Of {count} candidate", "Of {count} candidates", len(row.candidates), count=f"{len(row.candidates):,}")
    sentence = (
        key("{of} the one that was taken, {name}, had the lowest loss on held-out inputs within the budget.")
        if row.found.fits
        else key("{of} the one that was taken, {name}, is over the budget.")
    )
    taken = text(sentence, of=of, name=of_record(row.found.name))
    return sentences(chosen, tried if row.samples else "", taken)


def layers(number: int) -> str:
    """``1 layer``, ``19 layers``."""
    return several("{count} layer", "{count} layers", number, count=f"{number:,}")


def beside_uniform(row: SearchRow) -> str:
    """How the found assignment compares with the best of one format everywhere within the budget; empty without one."""
    uniform = [p for p in row.candidates if p.fits and len(set(p.choices)) == 1 and p.loss is not None]
    if not uniform or row.found.loss is None:
        return ""
    best = min(uniform, key=lambda p: math.inf if p.loss is None else p.loss)
    if best.choices == row.found.choices:
        return text("It is {format} everywhere: no mix of formats that was compared is better.", format=best.choices[0])
    return text(
        "Before training by itself it has a loss of {loss}, and {format} everywhere, the best single format within the "
        "budget, {uniform}.",
        loss=number(row.found.loss),
        format=best.choices[0],
        uniform=number(best.loss),
    )


def training(row: SearchRow) -> str:
    """How the found assignment was trained by itself, after exploring."""
    if not row.epochs:
        return text("No steps were left to train the found assignment by itself.")
    learned = several(
        "Then it learned by itself from {source} for {count} pass; number {best} was kept.",
        "Then it learned by itself from {source} for {count} passes; number {best} was kept.",
        len(row.epochs),
        source=source(row),
        count=f"{len(row.epochs):,}",
        best=row.best,
    )
    return sentences(learned, came(row))


def number(value: float | None) -> str:
    """A loss or a sensitivity, with a power of ten where it is small: ``0.0123``, ``1.2·10⁻⁵``."""
    if value is None or value == 0 or not math.isfinite(value) or abs(value) >= 1e-3:
        return figures.NONE if value is None else figures.significant(value, 2 if abs(value) < 100 else 3)
    digits, power = f"{value:.1e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits}·10{raised}".replace("-", "−")


def members(layers: tuple[str, ...]) -> str:
    """The layers of a decision; of many, the first ones."""
    first = ", ".join(layers[:3])
    if len(layers) <= 3:
        return first
    return text("{layers} and {number} more", layers=first, number=len(layers) - 3)


# Sensitivities, and how the policy moved


def shade(value: float, row: SearchRow) -> float:
    """How strong a sensitivity is shaded, from 0 to 1, along a logarithm between the smallest and the largest."""
    found = [value for values in row.sensitivities for value in values if value > 0]
    if not found or value <= 0:
        return 0.0
    span = min(max(max(found) / min(found), _LEAST_SPAN), _MOST_SPAN)
    return max(0.0, 1 - math.log(max(found) / value) / math.log(span))


def strip(row: SearchRow, decision: int) -> list[tuple[int, str]]:
    """How a decision moved, as (choice, path), back to front: shares stacked in a drawing as wide as there are windows.

    Each path is filled from the bottom to the sum of the shares up to its choice.
    """
    windows = [window[decision] for window in row.movement]
    paths = []
    for choice in reversed(range(len(row.choices))):
        if any(shares[choice] > 0 for shares in windows):
            tops = [100 - round(100 * sum(shares[: choice + 1])) for shares in windows]
            steps = "".join(f"V{top}H{x}" for x, top in enumerate(tops, 1))
            paths.append((choice, f"M0 100{steps}V100z"))
    return paths


def moved(row: SearchRow, decision: int) -> str:
    """The same in words: the largest share at the start, and the one at the end."""
    told = []
    for sentence, window in (
        (key("at first {choice} in {share}"), row.movement[0]),
        (key("in the end {choice} in {share}"), row.movement[-1]),
    ):
        shares = window[decision]
        most = max(range(len(shares)), key=lambda choice: shares[choice])
        told.append(text(sentence, choice=row.choices[most], share=figures.percent(shares[most])))
    return text(", ").join(told)


# The front


def points(row: SearchRow) -> list[tuple[str, PointRow]]:
    """Every assignment that was judged, once, with the kind of its mark: candidates first, then the front."""
    kinds: dict[tuple[str, ...], tuple[str, PointRow]] = {row.found.choices: ("found", row.found)}
    for kind, judged in (("candidate", row.candidates), ("front", row.front)):
        for point in judged:
            uniform = kind == "candidate" and len(set(point.choices)) == 1
            kinds.setdefault(point.choices, ("uniform" if uniform else kind, point))
    return [*kinds.values()]


def fronts(row: SearchRow, trial: int) -> list[Chart]:
    """Loss and agreement against the cost of the first budget; `trial` is the variant's place in the run."""
    plots = [_Front(row, "loss", trial), _Front(row, "agreement", trial)]
    return [plot.chart() for plot in plots if len(plot.points) > 1]


@dataclass(frozen=True)
class _Place:
    """A judged assignment in a plot: its mark, its row in the table, its cost and its value in the units drawn."""

    kind: str
    number: int
    point: PointRow
    cost: float
    value: float


@dataclass(frozen=True)
class _Front:
    """Assignments by cost and by one figure, on their way to a `Chart`."""

    row: SearchRow
    figure: Figure
    trial: int

    @property
    def budget(self) -> str:
        """The cost that is drawn: that of the first budget."""
        return next(iter(self.row.budgets))

    @property
    def unit(self) -> tuple[str, str, float, str]:
        return _COSTS.get(self.budget, (self.budget, self.budget, 1.0, "~s"))

    @cached_property
    def points(self) -> list[_Place]:
        return [*self._places()]

    def _places(self) -> Iterator[_Place]:
        scale = 100.0 if self.figure == "agreement" and of_classes(self.row) else 1.0
        for i, (kind, point) in enumerate(points(self.row)):
            value = getattr(point, self.figure)
            spends = point.costs.get(self.budget, 0.0) * self.unit[2]
            if value is not None and math.isfinite(value) and spends > 0:
                yield _Place(kind, i, point, spends, scale * value)

    @cached_property
    def across(self) -> Axis:
        return cost_axis([p.cost for p in self.points])

    @cached_property
    def up(self) -> Axis:
        values = [p.value for p in self.points]
        return loss_axis(values) if self.figure == "loss" else score_axis(values, of_classes=of_classes(self.row))

    @cached_property
    def most(self) -> float:
        """The budget, in the units that are drawn."""
        return self.row.budgets[self.budget] * self.unit[2]

    def at(self, point: _Place) -> tuple[float, float]:
        """Where a point is, in pixels from the left and the top."""
        return self.across.at(point.cost), HEIGHT - self.up.at(point.value)

    def chart(self) -> Chart:
        sentence = (
            key("loss against {cost}")
            if self.figure == "loss"
            else key("agreement with the float model against {cost}")
        )
        title = text(sentence, cost=text(self.unit[0]))
        count = len(self.points)
        told = several(
            "Plot of {title}: {count} assignment.",
            "Plot of {title}: {count} assignments.",
            count,
            title=title,
            count=f"{count:,}",
        )
        found = next((p.point for p in self.points if p.kind == "found"), None)
        if found:
            facts = text("; ").join(" ".join(fact) for fact in self.facts(found))
            told = sentences(told, text("Found: {name}, {facts}.", name=of_record(found.name), facts=facts))
        detail = text("held-out inputs, in shared weights")
        return Chart(title, detail, drawn(self.layers()), tuple(self.mark(p) for p in self.points), told)

    def mark(self, p: _Place) -> Mark:
        left, top = place(*self.at(p))
        return Mark(f"v{self.trial}p{p.number}", of_record(p.point.name), p.kind, left, top, self.facts(p.point))

    def facts(self, point: PointRow) -> tuple[tuple[str, str], ...]:
        """What the card of a point says."""
        scored = "" if point.agreement is None else agreement(point.agreement, self.row)
        costs = [(cost_name(kind), cost(kind, point.costs[kind])) for kind in self.row.budgets if kind in point.costs]
        kept = text("kept") if point.fits else text("exceeded")
        facts = (
            (text("loss"), number(point.loss)),
            (text("agreement"), scored),
            *costs,
            (text("budget"), kept),
        )
        return tuple(fact for fact in facts if fact[1])

    def labels(self) -> list[dict[str, Any]]:
        """Names of the budget, of what was found, and of single formats where they fit freely."""
        within: Box = (-4, -TOP, WIDTH + RIGHT, HEIGHT)
        budget = self.across.at(self.most)
        taken: list[Box] = [(budget - 1, 0, budget + 1, HEIGHT)]
        taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in map(self.at, self.points)]
        limit = text("budget")
        above = place_label(limit, budget, 6, within=within, taken=taken, size=FONT)
        found = [(limit, above, "var(--muted)")]
        taken.append(above.box)
        for p in sorted(self.points, key=lambda p: p.kind != "found"):
            if p.kind in ("found", "uniform"):
                name = text("found") if p.kind == "found" else p.point.choices[0]
                label = place_label(_short(name), *self.at(p), within=within, taken=taken, size=FONT)
                if label.free or p.kind == "found":
                    taken.append(label.box)
                    found.append((_short(name), label, "var(--ink)"))
        return [
            {
                "text": name,
                "cost": self.across.back(label.x),
                "value": self.up.back(HEIGHT - label.y),
                "align": label.align,
                "color": color,
            }
            for name, label, color in found
        ]

    def layers(self) -> list[dict[str, Any]]:
        """Back to front: what is over the budget, the budget, the front's line, points, names."""
        x = encoded("cost", self.across, on_log(self.unit[1], self.across), self.across.ticks(6), self.unit[3])
        what = loss_unit(self.row.loss, self.up) if self.figure == "loss" else agreement_unit(self.row)
        y = encoded("value", self.up, what, self.up.ticks(6), tick_format(self.up))
        over = [{"cost": self.across.inside(self.most), "end": self.across.high}]
        on_front = {point.choices for point in self.row.front}
        line = [{"cost": p.cost, "value": p.value} for p in self.points if p.point.choices in on_front]
        rows = [
            {
                "cost": p.cost,
                "value": p.value,
                "shape": SHAPES[p.kind],
                "size": 90 if p.kind == "found" else 26 if p.kind == "front" else 50,
                "color": f"var(--{COLORS[p.kind]})",
                "fill": f"var(--{COLORS[p.kind]})" if p.kind == "found" else "var(--panel)",
            }
            for p in sorted(self.points, key=lambda p: p.kind == "found")
        ]
        size = {**plain("size"), "type": "quantitative"}
        return [
            layer(over, {"type": "rect", "color": "var(--below)"}, x=x, x2={"field": "end"}),
            layer(over, {"type": "rule", "color": "var(--limit)", "strokeDash": [4, 3]}, x=x),
            layer(line, {"type": "line", "color": "var(--front)", "strokeWidth": 1.25}, x=x, y=y),
            layer(
                rows,
                {"type": "point", "strokeWidth": 1.75, "opacity": 1},
                x=x,
                y=y,
                shape=plain("shape"),
                size=size,
                fill=plain("fill"),
                stroke=plain("color"),
            ),
            *texts(self.labels(), x, y),
        ]


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
