"""The page of a study of features as bits: the verdict first, then what it rests on, and how to use the codes.

D is drawn against the threshold with the accuracy of 5 nearest neighbors beside it, because a larger D is not a better
classifier: whoever reads one sees the other.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from lowbit import __version__
from lowbit.pilot.features import CodeRow, FeatureRow, FeatureStudy, JudgedRow, StorageRow
from lowbit.report import figures
from lowbit.report.axes import Align, Axis, Box, letters, overlap
from lowbit.report.charts import FONT, HEIGHT, RIGHT, WIDTH, Chart, drawn, encoded, layer, texts
from lowbit.report.language import key, of_record, speaking, text
from lowbit.report.learning import on_log, tick_format
from lowbit.report.page import environment, json_value

OUTCOMES = {  # symbol and color, and what it means
    key("improves"): ("meets", key("the whole 95 % interval of the gain is above 0.")),
    key("equal"): (
        "equal",
        key("the whole interval lies within the margin: no accuracy to gain or to lose, only size."),
    ),
    key("degrades"): ("misses", key("the whole interval is below 0.")),
    key("too little data"): (
        "borderline",
        key("the interval is too wide to say any of these; more samples could."),
    ),
}
INSTEAD = {  # what to do by the best floats
    "clipped": key("Clip floats instead: they reach {accuracy}"),
    "robust-scaled": key("Scale floats by quartiles instead: they reach {accuracy}"),
    "selected": key("Keep the best features as floats instead: they reach {accuracy}"),
}
DO = {  # what to do by the outcome alone
    "equal": key("For size alone"),
    "degrades": key("Keep floats"),
    "too little data": key("More data needed"),
}
FLOATS = key("original floats")  # the name of their line
NAMES = {  # of codes, floats and classifiers that records have by name
    name: name
    for name in (
        *(key("binary"), key("ternary"), key("original"), key("clipped"), key("robust-scaled"), key("selected")),
        *(key("standardized"), key("kNN, Euclidean"), key("kNN, cosine"), key("linear SVM")),
    )
}
_MANY = 12  # classes, or features, that are not shown at once
_ROOM = 0.08  # above and below what is drawn, as a share of it
_STEEP = 20  # largest over smallest D from which its axis is logarithmic


def render(study: FeatureStudy, *, language: str = "en") -> str:
    """The study as one HTML page that needs no network and no script, in one of `language.LANGUAGES`."""
    with speaking(language):
        return _rendered(study)


def _rendered(study: FeatureStudy) -> str:
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
            interval=lambda low, high: interval(low, high).replace(" ", "\N{NO-BREAK SPACE}"),
            todo=_todo,
            said=_said,
            named=named,
            typeset=_typeset,
            threshold=_threshold,
            drift=_drift(study),
            fixed=_fixed,
            whole=_whole,
            kept=_kept,
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
    return _typeset(f"{100 * value:+.1f}") if math.isfinite(value) else figures.NONE


def interval(low: float, high: float) -> str:
    """That of a gain, in points: ``−3.1 to +5.9``. No gain is beyond 100 points, wherever the interval ends."""
    low, high = (end if math.isnan(end) else min(max(end, -1.0), 1.0) for end in (low, high))
    return figures.span(change(low), change(high))


def took(milliseconds: float) -> str:
    """A time in ms, or in µs where that is below 0.1 ms."""
    if milliseconds >= 0.1:
        return figures.milliseconds(milliseconds)
    return f"{figures.significant(1000 * milliseconds)} µs"


# Sentences and figures


def _verdict(study: FeatureStudy) -> tuple[str, str]:
    """The summary up to its first semicolon, and the rest: what happened, and what explains it."""
    if study.judged and all(row.versus_original.outcome == "too little data" for row in study.judged):
        decided = text(
            "Combinations of code and classifier that {samples} samples in {splits} splits decide: none of {number}.",
            samples=f"{study.sampled:,}",
            splits=study.splits,
            number=len(study.judged),
        )
        return text("Too little data to tell."), decided
    first, _, rest = study.summary.partition("; ")
    return _said(first), _said(rest)


def _said(sentence: str) -> str:
    """A sentence of a record as a page has it."""
    told = _typeset(sentence.rstrip("."))
    return text("{sentence}.", sentence=f"{told[:1].upper()}{told[1:]}") if told else ""


def _typeset(sentence: str) -> str:
    """A sentence of a record: figures with a minus sign, and without a sign where they are 0.0."""
    signed = re.sub(r"(?<![\w.-])[+-](?=0\.0(?![\d.]))", "", of_record(sentence))
    return re.sub(r"(?<![\w.-])-(?=\d)", "−", signed)


def named(name: str) -> str:
    """What a code, its floats or a classifier is called."""
    return text(NAMES[name]) if name in NAMES else name


def _todo(row: JudgedRow) -> str:
    """What follows from a row, in a few words; its figures are in the other cells."""
    floats = row.versus_best_float.outcome if row.best_float != "original" else ""
    match row.versus_original.outcome:
        case "improves" if row.recommended:
            use = key("Use {code} codes; {floats} floats do as well") if floats == "equal" else key("Use {code} codes")
            return text(use, code=named(row.code), floats=named(row.best_float))
        case "improves":
            instead = INSTEAD.get(row.best_float, key("Use {floats} floats instead: they reach {accuracy}"))
            return text(instead, floats=named(row.best_float), accuracy=share(row.best_float_accuracy))
        case "equal" if floats == "degrades":
            return text("For size alone; {floats} floats do better", floats=named(row.best_float))
        case other:
            return text(DO[other]) if other in DO else ""


def _classes(study: FeatureStudy) -> str:
    """How many classes, and the samples of the smallest and the largest."""
    counts = sorted(study.classes.values()) or [0]
    least, most = (f"{number:,}" for number in (counts[0], counts[-1]))
    sizes = least if least == most else figures.span(least, most)
    return text("{number}, with {sizes} samples each", number=f"{len(study.classes):,}", sizes=sizes)


def _stored(study: FeatureStudy, name: str) -> StorageRow | None:
    return next((row for row in study.storage if row.name == name), None)


def _threshold(row: JudgedRow, splits: int) -> tuple[str, str]:
    """The median threshold, or that features had their own in most splits; and in how many they had."""
    shown = {"number": row.per_feature, "splits": splits}
    if 2 * row.per_feature > splits:
        return text("per feature"), text("in {number} of {splits} splits", **shown)
    own = text("per feature in {number} of {splits} splits", **shown)
    return _fixed(row.threshold), own if row.per_feature else ""


def _drift(study: FeatureStudy) -> str:
    """Commands that watch the codes: with the options of the sweep, and from the folder where it was typed."""
    given = _options(study.command, "--model", "--weights", "--layer", "--pool", "--inputs", "--out")
    out = given.pop("--out", f"runs/features-{study.name}" if study.command else "")
    if study.layer:
        given = given | {"--model": given.get("--model", "MODEL"), "--layer": study.layer}
    options = [part for option in given.items() for part in option]
    files = (str(PurePosixPath(out, row.file)) for row in study.codes)
    return "\n".join(shlex.join(["lowbit", "features", "drift", file, "NEW_DATA", *options]) for file in files)


def _options(command: str, *names: str) -> dict[str, str]:
    """The named options of a command that have a value."""
    try:
        typed = shlex.split(command)
    except ValueError:  # no command, but some text
        return {}
    found = {}
    for one, following in pairwise([*typed, ""]):
        name, equals, value = one.partition("=")
        if name in names:
            found[name] = value if equals else following
    return found


def _facts(study: FeatureStudy, row: CodeRow) -> list[tuple[str, str]]:
    """What the plots of a code show, in figures."""
    facts = [
        (text("Largest D"), _at(_d(row.best, row.low, row.high), row.threshold)),
        (text("D of the floats"), _d(study.original, study.low, study.high)),
        (text("D above the floats'"), _above(row)),
    ]
    best = max(row.accuracy, key=lambda one: one.mean, default=None)
    if best is not None:
        facts.append((text("Most accurate of those tried"), _at(share(best.mean), best.threshold)))
    floats = (text("Original floats, same classifier"), share(study.accuracy_floats.mean))
    return [*facts, floats, (text("To code new data"), row.file)]


def _at(value: str, threshold: float) -> str:
    return text("{value} at {threshold}", value=value, threshold=_sd(threshold))


def _above(row: CodeRow) -> str:
    """Where D is above that of the floats, in words."""
    found = [figures.span(_sd(low), _sd(high)) for low, high in _improving(row)]
    if found:
        return figures.names(found)
    return text("at hardly any threshold") if row.improving else text("at no threshold")


def _improving(row: CodeRow) -> list[tuple[float, float]]:
    """Intervals of thresholds with a larger D than floats, without single points, across gaps of one point."""
    gap = 2.01 * (row.thresholds[1] - row.thresholds[0]) if len(row.thresholds) > 1 else 0.0
    found: list[tuple[float, float]] = []
    for low, high in row.improving:
        if high > low:
            joins = bool(found) and low - found[-1][1] < gap
            found.append((found.pop()[0] if joins else low, high))
    return found


def _d(value: float, low: float, high: float) -> str:
    return f"{figures.significant(value)} ({figures.span(figures.significant(low), figures.significant(high))})"


def _sd(threshold: float) -> str:
    return f"{threshold:.3g}".replace("-", "−")


def _fixed(value: float) -> str:
    """A figure of a column with two decimals."""
    return f"{value:,.2f}".replace("-", "−") if math.isfinite(value) else figures.significant(value)


def _kept(row: FeatureRow) -> tuple[str, str]:
    """F of the binary and the ternary code over F of the floats; a dash where floats separate nothing."""
    f = row.original - 0.5
    binary, ternary = (_fixed((d - 0.5) / f) if f > 0 else figures.NONE for d in (row.binary, row.ternary))
    return binary, ternary


def _whole(part: float) -> str:
    """A share in whole percent; 0 and 100 only where it is nothing or all."""
    if 0 < part < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 < part < 1 else f"{100 * part:.0f} %"


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
    across = _across([*row.thresholds, row.threshold])
    up = _up([value for value in drawable if math.isfinite(value)], steep=_STEEP)
    x = encoded("x", across, text("threshold, standard deviations"), across.ticks(6), "~r")
    y = encoded("y", up, on_log("D", up), up.ticks(6), tick_format(up))
    better = [{"x": low, "end": high} for low, high in _improving(row)]
    layers = [layer(better, {"type": "rect", "color": "var(--better)"}, x=x, x2={"field": "end"})]
    for values, original, color in reversed(curves):
        points = _points(zip(row.thresholds, values, strict=True))
        dashes = {"type": "rule", "color": color, "strokeDash": [4, 3], "strokeWidth": 1.5}
        layers.append(layer(_points([(0, original)]), dashes, y=y))
        layers.append(layer(points, {"type": "line", "color": color, "strokeWidth": 2}, x=x, y=y))
    layers += _with_bars([(row.threshold, row.best, row.low, row.high)], x, y)
    sentence = (
        key(
            "Plot of D of {code} codes against the threshold: at most {best} at {threshold}, {floats} for floats; "
            "above floats from {above}."
        )
        if _improving(row)
        else key(
            "Plot of D of {code} codes against the threshold: at most {best} at {threshold}, {floats} for floats; "
            "above floats {above}."
        )
    )
    summary = text(
        sentence,
        code=named(row.code),
        best=figures.significant(row.best),
        threshold=_sd(row.threshold),
        floats=figures.significant(study.original),
        above=_above(row),
    )
    detail = text("all features together; larger is further apart")
    return Chart(text("separation D"), detail, drawn(layers), (), summary)


def _accuracy(study: FeatureStudy, row: CodeRow) -> Chart:
    """Accuracy of 5 nearest neighbors against the threshold."""
    floats = study.accuracy_floats.mean
    scaled = [
        tuple(100 * value for value in (one.mean, one.mean - one.spread, min(one.mean + one.spread, 1)))
        for one in row.accuracy
    ]
    dots = [(one.threshold, *values) for one, values in zip(row.accuracy, scaled, strict=True)]
    lines = [100 * floats] if math.isfinite(floats) else []
    across = _across([one.threshold for one in row.accuracy])
    up = _up([value for one in scaled for value in one if math.isfinite(value)] + lines)
    x = encoded("x", across, text("threshold, standard deviations"), across.ticks(6), "~r")
    y = encoded("y", up, text("accuracy, %"), [tick for tick in up.ticks(6) if 0 <= tick <= 100], "~r")
    dashes = {"type": "rule", "color": "var(--front)", "strokeDash": [4, 3], "strokeWidth": 1.5}
    layers = [
        layer(_points((0, value) for value in lines), dashes, y=y),
        layer(_points(dot[:2] for dot in dots), {"type": "line", "color": "var(--front)", "strokeWidth": 2}, x=x, y=y),
        *_with_bars(dots, x, y),
        *texts([_named(text(FLOATS), value, dots, across, up) for value in lines], x, y),
    ]
    summary = text(
        "Plot of the accuracy of 5 nearest neighbors on {code} codes against the threshold: {told}; floats: {floats}.",
        code=named(row.code),
        told=figures.names(_at(share(one.mean), one.threshold) for one in row.accuracy),
        floats=share(floats),
    )
    detail = text("5 nearest neighbors, on the sample")
    return Chart(text("accuracy"), detail, drawn(layers), (), summary)


def _named(
    name: str, value: float, dots: Sequence[tuple[float, ...]], across: Axis, up: Axis
) -> dict[str, float | str]:
    """The name of a horizontal line, at one of its ends and above or below it, where it covers least."""
    line, width, half = HEIGHT - up.at(value), 0.58 * FONT * letters(name), 0.62 * FONT
    seen = [tuple(map(up.at, dot[1:])) for dot in dots if all(map(math.isfinite, dot))]
    places = [across.at(dot[0]) for dot in dots if all(map(math.isfinite, dot))]
    taken: list[Box] = [
        (x - 5, HEIGHT - high - 5, x + 5, HEIGHT - low + 5) for x, (_, low, high) in zip(places, seen, strict=True)
    ]
    for (x, end), ((y, *_), (last, *_)) in zip(pairwise(places), pairwise(seen), strict=True):
        steps = [(x + (end - x) * i / 12, HEIGHT - y - (last - y) * i / 12) for i in range(13)]
        taken += [(a[0], min(a[1], b[1]) - 2, b[0], max(a[1], b[1]) + 2) for a, b in pairwise(steps)]
    ends: tuple[tuple[float, Align], ...] = ((WIDTH, "right"), (0, "left"))
    corners = [(x, y, align) for y in (line - 9, line + 10) for x, align in ends]

    def covered(corner: tuple[float, float, Align]) -> float:
        x, y, align = corner
        left = x - width if align == "right" else x
        box = (left, y - half, left + width, y + half)
        outside = 2 * half * width - overlap(box, (0, -half, WIDTH + RIGHT, HEIGHT + 3))
        return round(8 * outside + sum(overlap(box, one) for one in taken), 3)  # first of equal ones

    x, y, align = min(corners, key=covered)
    back = {"x": across.back(x), "y": up.back(HEIGHT - y)}
    return {**back, "align": align, "text": name, "color": "var(--muted)"}


def _across(thresholds: Sequence[float]) -> Axis:
    """From the first to the last threshold of a plot."""
    low, high = min(thresholds, default=0.0), max(thresholds, default=1.0)
    margin = 0.02 * (high - low) or 1.0
    return Axis(low - margin, high + margin, WIDTH)


def _up(values: Sequence[float], steep: float = math.inf) -> Axis:
    """Logarithmic from a `steep` ratio on; with room at both ends, so that a bar is seen to end."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low > steep:
        margin = (high / low) ** _ROOM
        return Axis(low / margin, high * margin, HEIGHT, log=True)
    margin = _ROOM * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, HEIGHT)


def _points(pairs: Any) -> list[dict[str, float]]:
    """Rows of a layer, without what is no number."""
    return [{"x": x, "y": y} for x, y in pairs if math.isfinite(y)]


def _with_bars(dots: Sequence[tuple[float, ...]], x: dict[str, Any], y: dict[str, Any]) -> list[dict[str, Any]]:
    """Layers of points `(x, y, low, high)`, their bars with a cap at either end."""
    rows = [dict(zip(("x", "y", "low", "high"), dot, strict=True)) for dot in dots if all(map(math.isfinite, dot))]
    bar = {"type": "rule", "strokeWidth": 1.25, "opacity": 0.6, "color": "var(--front)"}
    point = {"type": "point", "stroke": "var(--front)", "fill": "var(--panel)", "strokeWidth": 1.75, "opacity": 1}
    cap = {**bar, "type": "tick", "orient": "horizontal", "size": 7, "thickness": 1.25}
    return [
        layer(rows, bar, x=x, y={**y, "field": "low"}, y2={"field": "high"}),
        *(layer(rows, cap, x=x, y={**y, "field": end}) for end in ("low", "high")),
        layer(rows, point, x=x, y=y),
    ]
