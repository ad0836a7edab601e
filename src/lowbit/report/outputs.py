"""What the page says of an output on a path: what that bought, at what it comes short, and what would do as well.

The path is drawn with points that the network returned on the test data, so that one sees whether they lie on it. A
second plot tells whether the distance from the path knows which outputs to distrust.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from lowbit.pilot.record import CandidatePathRow, ComparedRow, ErrorsRow, OutputRow
from lowbit.report import figures
from lowbit.report.axes import Axis
from lowbit.report.charts import HEIGHT, WIDTH, Chart, drawn, encoded, layer
from lowbit.report.language import key, of_record, sentences, text
from lowbit.report.learning import epochs, tick_format

NAMES = {  # of what is compared, in the order of the table
    "float": key("float model"),
    "curve": key("float model that returns points"),
    "direct": key("direct output, 8 bits"),
    "wide": key("direct output, 16 bits"),
    "trained": key("direct output, 8 bits, trained as long"),
    "fold": key("fold of four, no training"),
    "post-trained": key("this variant before it was distilled"),
    "variant": key("this variant"),
}
_WOULD_DO = {  # instead of a path, and what follows from it: as good, better
    "trained": (
        key("A direct output that is trained as long is as good: what gains is training, and not the path"),
        key("A direct output that is trained as long is better: what gains is training, and not the path"),
    ),
    "fold": (
        key("A fold is as good, and needs no training: path: fold4"),
        key("A fold is better, and needs no training: path: fold4"),
    ),
    "wide": (
        key("A direct output of 16 bits is as good: where the device can return 16 bits, no path is needed"),
        key("A direct output of 16 bits is better: where the device can return 16 bits, no path is needed"),
    ),
}
_FEW = 5  # candidates that are shown before all are asked for
_ALIKE = 1.02  # times an error that is as large
_TELLS = 0.9  # of the RMSE, without the least sure numbers: then the distance tells something
_SURE = 0.97  # share of the numbers that are kept for it
_ON_THE_PATH = ("curve", "post-trained", "variant")
_PLANES = {2: ((0, 1),), 3: ((0, 1), (1, 2))}  # pairs of channels that are drawn


# Sentences


def bought(row: OutputRow) -> str:
    """What the path bought over a direct 8-bit output, or why there is none."""
    if not row.path:
        reason = of_record(row.reason)
        return text("{reason}.", reason=f"{reason[:1].upper()}{reason[1:]}")
    ours, direct, before = (_of(row, what) for what in ("variant", "direct", "float"))
    assert ours is not None
    if direct is not None and direct.quantization is not None and ours.quantization is not None:
        values = {
            "path": row.path,
            "all": _changed(direct.errors, ours.errors),
            "added": _changed(direct.quantization, ours.quantization),
        }
        if beside_direct(row) == "worse":
            return text(
                "{path} lost: against a direct 8-bit output, all of the error became {all}; of it, what quantization "
                "adds is {added}.",
                **values,
            )
        return text(
            "Against a direct 8-bit output, {path} made all of the error {all}; of it, what quantization adds is "
            "{added}.",
            **values,
        )
    if before is not None:
        changed = _changed(before.errors, ours.errors)
        return text("Against the float model, the error is {changed}: {path}, 8 bits.", changed=changed, path=row.path)
    return text(
        "With {path}, outputs differ from the float model's by RMSE {rmse}, robust SD {robust_sd}.",
        path=row.path,
        rmse=figures.significant(ours.errors.rmse),
        robust_sd=figures.significant(ours.errors.robust_sd),
    )


def against_direct(row: OutputRow) -> str:
    """How a path changed all of the error of a direct 8-bit output; empty where both were not measured."""
    ours, direct = _of(row, "variant"), _of(row, "direct")
    return _changed(direct.errors, ours.errors) if row.path and ours and direct else ""


def beside_direct(row: OutputRow) -> Literal["better", "alike", "worse"]:
    """Whether a path beats a direct 8-bit output by both figures of the error, or loses by both."""
    ours, direct = _of(row, "variant"), _of(row, "direct")
    if not row.path or ours is None or direct is None:
        return "alike"
    if not any(map(_as_large, *_figures(direct, ours))):
        worse = [mine > its for its, mine in zip(*_figures(direct, ours), strict=True)]
        return "worse" if all(worse) else "alike" if any(worse) else "better"
    return "alike"


def _figures(*rows: ComparedRow) -> list[tuple[float, float]]:
    return [(one.errors.rmse, one.errors.robust_sd) for one in rows]


def _as_large(one: float, other: float) -> bool:
    return one <= _ALIKE * other and other <= _ALIKE * one


def _changed(before: ErrorsRow, after: ErrorsRow) -> str:
    return text(
        "{robust_sd} by robust SD and {rmse} by RMSE",
        robust_sd=_times(before.robust_sd, after.robust_sd),
        rmse=_times(before.rmse, after.rmse),
    )


def _times(before: float, after: float) -> str:
    """How much smaller or larger an error became: ``2.3× smaller``."""
    if after <= 0 or before <= 0:
        return text("as large") if before == after else text("gone") if after <= 0 else text("new")
    ratio = max(before / after, after / before)
    if ratio < 1.005:
        return text("as large")
    figure = f"{ratio:.2f}×" if ratio < 2 else f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:,.0f}×"
    return text("{times} smaller", times=figure) if after < before else text("{times} larger", times=figure)


def way(row: OutputRow) -> str:
    """The path, its range, and how the network learned it; empty without one."""
    if not row.path:
        return ""
    why = of_record(row.reason).removeprefix(f"{row.path}: ")
    chosen = text("The path was chosen by the noise: {why}.", why=why) if why else text("The path was given.")
    length, ends = figures.significant(row.length), _range(row)
    size = text("It is {length} times as long as the range of one channel.", length=length)
    if row.spacing is not None:
        size = text(
            "It is {length} times as long as the range of one channel, and its branches lie {spacing} of that apart.",
            length=length,
            spacing=figures.significant(row.spacing),
        )
    spread = {
        "log": key("Range: {range}, spread by the logarithm."),
        "inverse": key("Range: {range}, spread by the inverse."),
    }.get(row.transform, key("Range: {range}."))
    return sentences(chosen, size, text(spread, range=ends), _training(row))


def _range(row: OutputRow) -> str:
    ends = [
        figures.span(figures.significant(a), figures.significant(b)) for a, b in zip(row.low, row.high, strict=False)
    ]
    if len(ends) <= 6:
        return figures.names(ends)
    return text("{number} quantities, the first from {ends}", number=len(ends), ends=ends[0])


def _training(row: OutputRow) -> str:
    if row.taught is None:
        return text("Nothing was trained.")
    told = text(
        "The network learned it from {source} for {epochs} (loss {loss}), and epoch {best} was kept.",
        source=text("the float model's outputs") if row.taught else text("the labels"),
        epochs=epochs(len(row.epochs)),
        loss=row.loss,
        best=row.best,
    )
    if row.before is None or row.after is None:
        return told
    error = text(
        "Mean error on held-out data, in float: {before} of the range before, {after} after.",
        before=figures.percent(row.before),
        after=figures.percent(row.after),
    )
    return sentences(told, error)


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
                text(
                    "RMSE got worse while robust SD got better: {share} of the numbers lie on another branch of the "
                    "path (flips), and each of them is far off. Judge by the figure that your task is judged by; fewer "
                    "rows, or a fold, have fewer flips or none",
                    share=figures.percent(ours.errors.flips),
                )
            )
        elif worst < 0 and typical < 0:
            told.append(text("The path made the error larger, by either figure: keep the direct output"))
    if before is not None and curve is not None and curve.errors.rmse > 1.1 * before.errors.rmse:
        told.append(
            text(
                "In float already, the network that returns points has {larger} RMSE than the direct one: it did not "
                "learn the path; a shorter one, more epochs or more data help more than bits",
                larger=_times(before.errors.rmse, curve.errors.rmse),
            )
        )
    return told


def advice(row: OutputRow) -> list[str]:
    """What to do with it, in plain sentences."""
    ours = _of(row, "variant")
    if ours is None:
        return []
    if not row.path:
        return [
            text("A fold needs no training, and takes only the output's steps away: give a variant path: fold4"),
            text(
                "Where noise is what refused, more bits in the layers before help; where the network's own error is, "
                "no output does"
            ),
        ]
    told = []
    for what, (as_good, better) in _WOULD_DO.items():
        other = _of(row, what)
        if other is not None and _no_worse(other.errors, ours.errors, _ALIKE):
            told.append(text(better if _no_worse(other.errors, ours.errors, 1 / _ALIKE) else as_good))
    rmse = dict(row.confidence)
    if row.corners and len(row.corners[0]) == 2 and _SURE in rmse and 1.0 in rmse:  # else no file returns it
        if rmse[_SURE] < _TELLS * rmse[1.0]:
            told.append(
                text(
                    "Without the {share} of the numbers that lie farthest from the path, RMSE is {rest} instead of "
                    "{all}: with confidence: true the file returns that distance too",
                    share=figures.percent(1 - _SURE),
                    rest=figures.significant(rmse[_SURE]),
                    all=figures.significant(rmse[1.0]),
                )
            )
        else:
            told.append(text("The distance from the path does not tell which numbers are wrong: leave confidence out"))
    return told


def _no_worse(other: ErrorsRow, ours: ErrorsRow, times: float) -> bool:
    return other.rmse <= times * ours.rmse and other.robust_sd <= times * ours.robust_sd


def _of(row: OutputRow, what: str) -> ComparedRow | None:
    return next((one for one in row.compared if one.what == what), None)


# The tables


def few_candidates(row: OutputRow) -> list[CandidatePathRow]:
    """Of the paths that were considered those that matter: the one that was taken and the best others, five in all."""
    best = sorted(row.candidates, key=lambda one: (one.path != row.path, bool(one.why_not), -one.total_gain))[:_FEW]
    return [one for one in row.candidates if one in best]


def compared(row: OutputRow) -> list[tuple[str, ComparedRow]]:
    """What is compared, by name, in the order of the table."""
    places = {what: i for i, what in enumerate(NAMES)}
    rows = sorted(row.compared, key=lambda one: places.get(one.what, len(places)))
    return [(_named(one.what), one) for one in rows]


def left_out(row: OutputRow) -> list[tuple[str, str]]:
    """Controls that are missing, with the reason."""
    return [(_named(what), of_record(reason)) for what, reason in row.left_out.items()]


def _named(what: str) -> str:
    return text(NAMES[what]) if what in NAMES else what


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


def r2(value: float | None) -> str:
    """An r2 with four digits, near 1 with three nines and more apart, or a dash."""
    if value is None:
        return figures.NONE
    digits = 4 if value >= 1 or value < 0 else max(4, 2 - math.floor(math.log10(max(1 - value, 1e-9))))
    return figures.significant(value, min(digits, 9))


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
    x = encoded("x", axes[0], text("channel {number}", number=first + 1), ticks, ".2f")
    y = encoded("y", axes[1], text("channel {number}", number=second + 1), ticks, ".2f")
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
    shown = {"first": first + 1, "second": second + 1}
    plane = len(row.corners[0]) == 2
    title = text("the path, and points of the network") if plane else text("channels {first} and {second}", **shown)
    number = f"{len(row.points):,}"
    detail = text("{number} numbers of the test data, as codes of the file", number=number)
    summary = text(
        "Plot of {path} in channels {first} and {second}, with {number} points of the network.",
        path=row.path,
        number=number,
        **shown,
    )
    return Chart(title, detail, drawn(layers), (), summary)


def _confidence(row: OutputRow) -> Chart:
    """RMSE of the numbers that lie nearest to the path, by their share."""
    shares, values = zip(*row.confidence, strict=True)
    across = Axis(100 * min(shares), 100 * max(shares), WIDTH)
    high = max(value for value in values if math.isfinite(value))
    up = Axis(0, 1.08 * high if high > 0 else 1.0, HEIGHT)
    x = encoded("share", across, text("nearest to the path, % of the numbers"), across.ticks(6), "~r")
    y = encoded("value", up, "RMSE", up.ticks(6), tick_format(up))
    rows = [{"share": 100 * share, "value": value} for share, value in row.confidence]
    point = {"type": "point", "stroke": "var(--front)", "fill": "var(--panel)", "strokeWidth": 1.75, "opacity": 1}
    layers = [layer(rows, {"type": "line", "color": "var(--front)"}, x=x, y=y), layer(rows, point, x=x, y=y)]
    least, most = row.confidence[-1], row.confidence[0]
    told = [
        text("{rmse} for {share} of the numbers", rmse=figures.significant(value), share=figures.percent(share))
        for share, value in (most, least)
    ]
    detail = text("without the numbers that lie farthest from the path")
    summary = text(
        "Plot of RMSE without the numbers that lie farthest from the path: {figures}.", figures=figures.names(told)
    )
    return Chart(text("confidence"), detail, drawn(layers), (), summary)
