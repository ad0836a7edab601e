"""What all drawings of a page have in common: their size, their look, and how they get links and cards.

Each plot is a Vega-Lite specification that `vl_convert` draws to SVG while the page is made. A reader gets a picture
that needs no script, no `eval` and no network, weighs a few kB instead of the 900 kB of the Vega libraries, prints as
it looks, and follows the page between light and dark because its colors are CSS variables. One drawing, 364 units
wide, serves all screens: the page lays out as many columns of about that width as fit, so text keeps its size on a
phone. Hover details are HTML laid over the drawing: a link a point, placed in percent of the drawing, and a card.

The geometry is fixed here and not left to Vega (domains, ticks, padding), because links and labels have to know where
a point is: `Axis.at` is the map that Vega applies too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import vl_convert

from lowbit.report.axes import Axis

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
    svg = str(vl_convert.vegalite_to_svg(specification))
    return re.sub(r' role="graphics-[a-z]+" aria-roledescription="[a-z ]+"', "", svg)  # the image has one text for all


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
