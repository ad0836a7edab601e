"""What the page says of an output on a path: what that bought, at what it comes short, and what would do as well.

The path is drawn with points that the network returned on the test data, so that one sees whether they lie on it. A
second plot tells whether the distance from the path knows which outputs to distrust.
"""

from __future__ import annotations

import math
from typing import Any

from lowbit.pilot.record import ComparedRow, ErrorsRow, OutputRow
from lowbit.report import figures
from lowbit.report.axes import Axis
from lowbit.report.charts import HEIGHT, WIDTH, Chart, drawn, encoded, layer
from lowbit.report.learning import tick_format

NAMES = {  # of what is compared, in the order of the table
    "float": "float model",
    "curve": "float model that returns points",
    "direct": "direct output, 8 bits",
    "wide": "direct output, 16 bits",
    "trained": "direct output, 8 bits, trained as long",
    "fold": "fold of four, no training",
    "post-trained": "this variant before it was distilled",
    "variant": "this variant",
}
_WOULD_DO = {  # instead of a path, and what follows from it
    "trained": ("A direct output that is trained as long", ": what gains is training, and not the path"),
    "fold": ("A fold", ", and needs no training: path: fold4"),
    "wide": ("A direct output of 16 bits", ": where the device can return 16 bits, no path is needed"),
}
_ALIKE = 1.02  # times an error that is as large
_TELLS = 0.9  # of the RMSE, without the least sure numbers: then the distance tells something
_SURE = 0.97  # share of the numbers that are kept for it
_ON_THE_PATH = ("curve", "post-trained", "variant")
_PLANES = {2: ((0, 1),), 3: ((0, 1), (1, 2))}  # pairs of channels that are drawn


# Sentences


def bought(row: OutputRow) -> str:
    """What the path bought over a direct 8-bit output, or why there is none."""
    if not row.path:
        return f"{row.reason[:1].upper()}{row.reason[1:]}."
    ours, direct, before = (_of(row, what) for what in ("variant", "direct", "float"))
    assert ours is not None
    if direct is not None and direct.quantization is not None and ours.quantization is not None:
        return (
            f"Against a direct 8-bit output, {row.path} made all of the error {_changed(direct.errors, ours.errors)}; "
            f"of it, what quantization adds is {_changed(direct.quantization, ours.quantization)}."
        )
    if before is not None:
        return f"Against the float model, the error is {_changed(before.errors, ours.errors)}: {row.path}, 8 bits."
    off = f"RMSE {figures.significant(ours.errors.rmse)}, robust SD {figures.significant(ours.errors.robust_sd)}"
    return f"With {row.path}, outputs differ from the float model's by {off}."


def _changed(before: ErrorsRow, after: ErrorsRow) -> str:
    return f"{_times(before.robust_sd, after.robust_sd)} by robust SD and {_times(before.rmse, after.rmse)} by RMSE"


def _times(before: float, after: float) -> str:
    """How much smaller or larger an error became: ``2.3× smaller``."""
    if after <= 0 or before <= 0:
        return "as large" if before == after else "gone" if after <= 0 else "new"
    ratio = max(before / after, after / before)
    if ratio < 1.005:
        return "as large"
    figure = f"{ratio:.2f}×" if ratio < 2 else f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:,.0f}×"
    return f"{figure} {'smaller' if after < before else 'larger'}"


def way(row: OutputRow) -> str:
    """The path, its range, and how the network learned it; empty without one."""
    if not row.path:
        return ""
    why = row.reason.removeprefix(f"{row.path}: ")
    chosen = f"The path was chosen by the noise: {why}." if why else "The path was given."
    spread = {"linear": "", "log": ", spread by the logarithm", "inverse": ", spread by the inverse"}
    size = f"It is {figures.significant(row.length)} times as long as the range of one channel"
    gap = "" if row.spacing is None else f", and its branches lie {figures.significant(row.spacing)} of that apart"
    return f"{chosen} {size}{gap}. Range: {_range(row)}{spread.get(row.transform, '')}. {_training(row)}"


def _range(row: OutputRow) -> str:
    ends = [f"{figures.significant(a)} to {figures.significant(b)}" for a, b in zip(row.low, row.high, strict=False)]
    return figures.names(ends[:6]) if len(ends) <= 6 else f"{len(ends)} quantities, the first from {ends[0]}"


def _training(row: OutputRow) -> str:
    if row.taught is None:
        return "Nothing was trained."
    source = "the float model's outputs" if row.taught else "the labels"
    many = f"{len(row.epochs)} epoch{'' if len(row.epochs) == 1 else 's'}"
    told = f"The network learned it from {source} for {many} (loss {row.loss}), and epoch {row.best} was kept."
    if row.before is None or row.after is None:
        return told
    return (
        f"{told} Mean error on held-out data, in float: {figures.percent(row.before)} of the range before, "
        f"{figures.percent(row.after)} after."
    )


def cautions(row: OutputRow) -> list[str]:
    """Where the path did harm."""
    ours, direct, before, curve = (_of(row, what) for what in ("variant", "direct", "float", "curve"))
    if not row.path or ours is None:
        return []
    told = []
    if direct is not None:
        typical, worst = (getattr(direct.errors, name) - getattr(ours.errors, name) for name in ("robust_sd", "rmse"))
        if worst < 0 < typical:
            told.append(
                f"RMSE got worse while robust SD got better: {figures.percent(ours.errors.flips)} of the numbers lie "
                "on another branch of the path (flips), and each of them is far off. Judge by the figure that your "
                "task is judged by; fewer rows, or a fold, have fewer flips or none"
            )
        elif worst < 0 and typical < 0:
            told.append("The path made the error larger, by either figure: keep the direct output")
    if before is not None and curve is not None and curve.errors.rmse > 1.1 * before.errors.rmse:
        told.append(
            f"In float already, the network that returns points has {_times(before.errors.rmse, curve.errors.rmse)} "
            "RMSE than the direct one: it did not learn the path; a shorter one, more epochs or more data help more "
            "than bits"
        )
    return told


def advice(row: OutputRow) -> list[str]:
    """What to do with it, in plain sentences."""
    ours = _of(row, "variant")
    if ours is None:
        return []
    if not row.path:
        return [
            "A fold needs no training, and takes only the output's steps away: give a variant path: fold4",
            "Where noise is what refused, more bits in the layers before help; where the network's own error is, "
            "no output does",
        ]
    told = []
    for what, (name, why) in _WOULD_DO.items():
        other = _of(row, what)
        if other is not None and _no_worse(other.errors, ours.errors, _ALIKE):
            better = _no_worse(other.errors, ours.errors, 1 / _ALIKE)
            told.append(f"{name} is {'better' if better else 'as good'}{why}")
    rmse = dict(row.confidence)
    if row.corners and len(row.corners[0]) == 2 and _SURE in rmse and 1.0 in rmse:  # else no file returns it
        if rmse[_SURE] < _TELLS * rmse[1.0]:
            all_of, rest = figures.significant(rmse[1.0]), figures.significant(rmse[_SURE])
            told.append(
                f"Without the {figures.percent(1 - _SURE)} of the numbers that lie farthest from the path, RMSE is "
                f"{rest} instead of {all_of}: with confidence: true the file returns that distance too"
            )
        else:
            told.append("The distance from the path does not tell which numbers are wrong: leave confidence out")
    return told


def _no_worse(other: ErrorsRow, ours: ErrorsRow, times: float) -> bool:
    return other.rmse <= times * ours.rmse and other.robust_sd <= times * ours.robust_sd


def _of(row: OutputRow, what: str) -> ComparedRow | None:
    return next((one for one in row.compared if one.what == what), None)


# The table


def compared(row: OutputRow) -> list[tuple[str, ComparedRow]]:
    """What is compared, by name, in the order of the table."""
    places = {what: i for i, what in enumerate(NAMES)}
    rows = sorted(row.compared, key=lambda one: places.get(one.what, len(places)))
    return [(NAMES.get(one.what, one.what), one) for one in rows]


def left_out(row: OutputRow) -> list[tuple[str, str]]:
    """Controls that are missing, with the reason."""
    return [(NAMES.get(what, what), reason) for what, reason in row.left_out.items()]


def images(row: OutputRow) -> bool:
    """Whether outputs have small structures to compare."""
    return any(one.errors.structure is not None for one in row.compared)


def flips(one: ComparedRow, row: OutputRow) -> tuple[str, str | None]:
    """The share of flips, all and by quantization; dashes for an output that has no branches."""
    if row.spacing is None or one.what not in _ON_THE_PATH:
        return figures.NONE, None
    return figures.percent(one.errors.flips), figures.percent(one.quantization.flips) if one.quantization else None


def figure(value: float | None) -> str:
    """An error, or a dash."""
    return figures.NONE if value is None else figures.significant(value)


# The plots


def plots(row: OutputRow) -> list[Chart]:
    """The path with its points, in each plane that shows its branches, and the confidence curve."""
    pairs = _PLANES.get(len(row.corners[0]) if row.corners else 0, ()) if row.points else ()
    paths = [_path(row, *pair) for pair in pairs]
    return [*paths, *([_confidence(row)] if len(row.confidence) > 1 else [])]


def _path(row: OutputRow, first: int, second: int) -> Chart:
    """The path as a line, and points that the network returned, in two of its channels."""
    wide = WIDTH / HEIGHT / 2  # a square keeps its sides
    axes = Axis(0.5 - wide, 0.5 + wide, WIDTH), Axis(0, 1, HEIGHT)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    x = encoded("x", axes[0], f"channel {first + 1}", ticks, ".2f")
    y = encoded("y", axes[1], f"channel {second + 1}", ticks, ".2f")
    line = [{"x": corner[first], "y": corner[second], "order": i} for i, corner in enumerate(row.corners)]
    dots: list[dict[str, Any]] = []  # one line with gaps: a point weighs 15 bytes, and as a mark of its own 200
    for i, point in enumerate(row.points):
        dots.append({"x": point[first], "y": point[second], "order": 2 * i})
        dots.append({"x": point[first], "y": None, "order": 2 * i + 1})
    dot = {"type": "line", "color": "var(--front)", "strokeWidth": 3, "strokeCap": "round", "opacity": 0.6}
    order = {"order": {"field": "order", "type": "quantitative"}}
    layers: list[dict[str, Any]] = [
        layer(
            line, {"type": "line", "color": "var(--limit)", "strokeWidth": 1, "strokeJoin": "round"}, x=x, y=y, **order
        ),
        layer(dots, dot, x=x, y=y, **order),
    ]
    title = (
        "the path, and points of the network" if len(row.corners[0]) == 2 else f"channels {first + 1} and {second + 1}"
    )
    detail = f"{len(row.points):,} numbers of the test data, as codes of the file"
    summary = (
        f"Plot of {row.path} in channels {first + 1} and {second + 1}, with {len(row.points):,} points of the network."
    )
    return Chart(title, detail, drawn(layers), (), summary)


def _confidence(row: OutputRow) -> Chart:
    """RMSE of the numbers that lie nearest to the path, by their share."""
    shares, values = zip(*row.confidence, strict=True)
    across = Axis(100 * min(shares), 100 * max(shares), WIDTH)
    high = max(value for value in values if math.isfinite(value))
    up = Axis(0, 1.08 * high if high > 0 else 1.0, HEIGHT)
    x = encoded("share", across, "nearest to the path, % of the numbers", across.ticks(6), "~r")
    y = encoded("value", up, "RMSE", up.ticks(6), tick_format(up))
    rows = [{"share": 100 * share, "value": value} for share, value in row.confidence]
    point = {"type": "point", "stroke": "var(--front)", "fill": "var(--panel)", "strokeWidth": 1.75, "opacity": 1}
    layers = [layer(rows, {"type": "line", "color": "var(--front)"}, x=x, y=y), layer(rows, point, x=x, y=y)]
    least, most = row.confidence[-1], row.confidence[0]
    told = [
        f"{figures.significant(value)} for {figures.percent(share)} of the numbers" for share, value in (most, least)
    ]
    detail = "without the numbers that lie farthest from the path"
    return Chart("confidence", detail, drawn(layers), (), f"Plot of RMSE {detail}: {figures.names(told)}.")
