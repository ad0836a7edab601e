"""The page of a study of features as bits: the verdict first, then what it rests on, and how to use the codes.

D is drawn against the threshold with the accuracy of 5 nearest neighbors beside it, because a larger D is not a better
classifier: whoever reads one sees the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lowbit import __version__
from lowbit.pilot.features import CodeRow, FeatureStudy, JudgedRow, StorageRow
from lowbit.report import figures
from lowbit.report.axes import Axis
from lowbit.report.charts import HEIGHT, WIDTH, Chart, drawn, encoded, layer
from lowbit.report.learning import tick_format
from lowbit.report.page import environment, json_value

OUTCOMES = {  # symbol and color, and what it means
    "improves": ("meets", "the whole 95 % interval of the gain is above 0."),
    "equal": ("equal", "the whole interval lies within the margin: no accuracy to gain or to lose, only size."),
    "degrades": ("misses", "the whole interval is below 0."),
    "too little data": ("borderline", "the interval is too wide to say any of these; more samples could."),
}
CODES = ("binary", "ternary")
NEIGHBORS = ("kNN, Euclidean", "original")  # classifier and candidate that the accuracy of codes is drawn beside
_MANY = 12  # classes, or features, that are not shown at once
_STEEP = 20  # largest over smallest D from which its axis is logarithmic


def render(study: FeatureStudy) -> str:
    """The study as one HTML page that needs no network and no script."""
    chosen = max((r for r in study.judged if r.recommended), key=lambda r: r.versus_original.gain, default=None)
    return (
        environment()
        .get_template("features.html.j2")
        .render(
            study=study,
            verdict=_verdict(study),
            chosen=chosen,
            floats=_stored(study, "float32"),
            stored=_stored(study, chosen.code) if chosen else None,
            charts={row.code: (_apart(study, row), _accuracy(study, row)) for row in study.codes},
            facts_of={row.code: _facts(study, row) for row in study.codes},
            tried=_tried(study),
            outcomes=OUTCOMES,
            classes=_classes(study),
            share=share,
            change=change,
            interval=_interval,
            thresholds=_thresholds,
            sd=_sd,
            took=took,
            many=_MANY,
            record=json_value(dataclasses.asdict(study)),
            version=__version__,
        )
    )


def share(value: float) -> str:
    """An accuracy in percent, as the sentences have it: ``93.7 %``."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else figures.NONE


def change(value: float) -> str:
    """A gain in points: ``+49.1``."""
    text = f"{round(100 * value, 1) + 0.0:+.1f}" if math.isfinite(value) else figures.NONE
    return text.replace("-", "−")


def took(milliseconds: float) -> str:
    """A time in ms, or in µs where that is below 0.1 ms."""
    if milliseconds >= 0.1:
        return figures.milliseconds(milliseconds)
    return f"{figures.significant(1000 * milliseconds)} µs"


# Sentences and figures


def _verdict(study: FeatureStudy) -> tuple[str, str]:
    """The summary up to its first semicolon, and the rest: what happened, and what explains it."""
    first, _, rest = study.summary.rstrip(".").partition("; ")
    return _said(first), _said(rest)


def _said(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _classes(study: FeatureStudy) -> str:
    """How many classes, and the samples of the smallest and the largest."""
    counts = sorted(study.classes.values()) or [0]
    sizes = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{len(study.classes):,}, with {sizes} samples each"


def _stored(study: FeatureStudy, name: str) -> StorageRow | None:
    return next((row for row in study.storage if row.name == name), None)


def _interval(low: float, high: float) -> str:
    return f"{change(low)} to {change(high)}".replace(" ", "\N{NO-BREAK SPACE}")


def _thresholds(row: JudgedRow, splits: int) -> str:
    """How often each feature had a threshold of its own, where any had."""
    return f"one a feature in {row.per_feature} of {splits} splits" if row.per_feature else ""


def _facts(study: FeatureStudy, row: CodeRow) -> list[tuple[str, str]]:
    """What the plots of a code show, in figures."""
    where = figures.names(f"{_sd(low)} to {_sd(high)}" for low, high in row.improving)
    facts = [
        ("Largest D", f"{_d(row.best, row.low, row.high)} at {_sd(row.threshold)}"),
        ("D of the floats", _d(study.original, study.low, study.high)),
        ("D above the floats'", where if row.improving else "at no threshold"),
    ]
    best = max(row.accuracy, key=lambda one: one.mean, default=None)
    if best is not None:
        facts.append(("Most accurate of those tried", f"{share(best.mean)} at {_sd(best.threshold)}"))
    floats = _neighbors(study)
    if floats is not None:
        facts.append(("Original floats, same classifier", share(floats)))
    return [*facts, ("To code new data", row.file)]


def _d(value: float, low: float, high: float) -> str:
    return f"{figures.significant(value)} ({figures.significant(low)} to {figures.significant(high)})"


def _sd(threshold: float) -> str:
    return f"{threshold:.3g}".replace("-", "−")


def _neighbors(study: FeatureStudy) -> float | None:
    """Accuracy of nearest neighbors on floats."""
    return next((one.mean for one in study.candidates if (one.classifier, one.name) == NEIGHBORS), None)


def _tried(study: FeatureStudy) -> tuple[list[str], list[tuple[str, list[tuple[str, str, bool]]]]]:
    """Names of all candidates, and for each classifier its accuracy with each, spread, and whether it is the best."""
    names = list(dict.fromkeys(one.name for one in study.candidates))
    rows = []
    for classifier in dict.fromkeys(one.classifier for one in study.candidates):
        found = {one.name: one for one in study.candidates if one.classifier == classifier}
        best = share(max(one.mean for one in found.values()))
        cells = [
            (share(one.mean), f"± {100 * one.spread:.1f}", share(one.mean) == best)
            if one
            else (figures.NONE, "", False)
            for one in map(found.get, names)
        ]
        rows.append((classifier, cells))
    return names, rows


# The plots


def _apart(study: FeatureStudy, row: CodeRow) -> Chart:
    """D of all features against the threshold; solid lines are codes, dashed ones floats."""
    several = len(study.classes) > 2  # else the mean pair is the worst pair
    curves = [(row.mean, study.original, "var(--front)"), *([(row.worst, study.worst, "var(--limit)")] * several)]
    drawable = [*row.mean, study.original, *((*row.worst, study.worst) if several else ()), row.low, row.high]
    across, up = _across(row), _up([value for value in drawable if math.isfinite(value)])
    x = encoded("x", across, "threshold, standard deviations", across.ticks(6), "~r")
    y = encoded("y", up, f"D{', log scale' if up.log else ''}", up.ticks(6), tick_format(up))
    step = (across.high - across.low) / 100
    better = [
        {"x": low, "end": high} if high > low else {"x": low - step, "end": high + step} for low, high in row.improving
    ]
    layers = [layer(better, {"type": "rect", "color": "var(--meets-soft)"}, x=x, x2={"field": "end"})]
    for values, original, color in reversed(curves):
        points = _points(zip(row.thresholds, values, strict=True))
        dashes = {"type": "rule", "color": color, "strokeDash": [4, 3], "strokeWidth": 1.5}
        layers.append(layer(_points([(0, original)]), dashes, y=y))
        layers.append(layer(points, {"type": "line", "color": color, "strokeWidth": 2}, x=x, y=y))
    layers += _with_bars([(row.threshold, row.best, row.low, row.high)], x, y)
    where = figures.names(f"{_sd(low)} to {_sd(high)}" for low, high in row.improving)
    summary = (
        f"Plot of D of {row.code} codes against the threshold: at most {figures.significant(row.best)} at "
        f"{_sd(row.threshold)}, {figures.significant(study.original)} for floats; "
        + (f"above floats from {where}." if row.improving else "never above floats.")
    )
    return Chart("separation D", "all features together; larger is further apart", drawn(layers), (), summary)


def _accuracy(study: FeatureStudy, row: CodeRow) -> Chart:
    """Accuracy of 5 nearest neighbors against the threshold."""
    floats = _neighbors(study)
    scaled = [
        tuple(100 * value for value in (one.mean, one.mean - one.spread, min(one.mean + one.spread, 1)))
        for one in row.accuracy
    ]
    dots = [(one.threshold, *values) for one, values in zip(row.accuracy, scaled, strict=True)]
    lines = [] if floats is None else [100 * floats]
    across, up = _across(row), _up([value for one in scaled for value in one] + lines)
    x = encoded("x", across, "threshold, standard deviations", across.ticks(6), "~r")
    y = encoded("y", up, "accuracy, %", up.ticks(6), "~r")
    dashes = {"type": "rule", "color": "var(--front)", "strokeDash": [4, 3], "strokeWidth": 1.5}
    layers = [
        layer(_points((0, value) for value in lines), dashes, y=y),
        layer(_points(dot[:2] for dot in dots), {"type": "line", "color": "var(--front)", "strokeWidth": 2}, x=x, y=y),
        *_with_bars(dots, x, y),
    ]
    told = figures.names(f"{share(one.mean)} at {_sd(one.threshold)}" for one in row.accuracy)
    beside = "" if floats is None else f"; floats: {share(floats)}"
    summary = f"Plot of the accuracy of 5 nearest neighbors on {row.code} codes against the threshold: {told}{beside}."
    return Chart("accuracy", "5 nearest neighbors, on the sample", drawn(layers), (), summary)


def _across(row: CodeRow) -> Axis:
    """All thresholds that either plot of a code has, so that they can be read side by side."""
    every = [*row.thresholds, *(one.threshold for one in row.accuracy), row.threshold]
    low, high = min(every), max(every)
    margin = 0.02 * (high - low) or 1.0
    return Axis(low - margin, high + margin, WIDTH)


def _up(values: Sequence[float]) -> Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low > _STEEP:
        return Axis(low / 1.1, high * 1.1, HEIGHT, log=True)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, HEIGHT)


def _points(pairs: Any) -> list[dict[str, float]]:
    """Rows of a layer, without what is no number."""
    return [{"x": x, "y": y} for x, y in pairs if math.isfinite(y)]


def _with_bars(dots: Sequence[tuple[float, ...]], x: dict[str, Any], y: dict[str, Any]) -> list[dict[str, Any]]:
    """Layers of points `(x, y, low, high)`."""
    rows = [dict(zip(("x", "y", "low", "high"), dot, strict=True)) for dot in dots if all(map(math.isfinite, dot))]
    bar = {"type": "rule", "strokeWidth": 1.25, "opacity": 0.6, "color": "var(--front)"}
    point = {"type": "point", "stroke": "var(--front)", "fill": "var(--panel)", "strokeWidth": 1.75, "opacity": 1}
    return [
        layer(rows, bar, x=x, y={**y, "field": "low"}, y2={"field": "high"}),
        layer(rows, point, x=x, y=y),
    ]
