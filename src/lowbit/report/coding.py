"""What the page says of features that became codes: what they are worth beside floats, and what they take.

All heads are linear and were fitted to the same training data, so what differs is what they read. The plot shows what
thresholds were worth there: the choice was made by it, not by the test data.
"""

from __future__ import annotations

import math
from typing import Any

from lowbit.pilot.record import FeaturesRow, HeadRow, Score
from lowbit.report import figures
from lowbit.report.axes import Axis
from lowbit.report.charts import HEIGHT, WIDTH, Chart, drawn, encoded, layer, texts
from lowbit.report.language import key, of_record, sentences, several, text
from lowbit.report.learning import tick_format

NAMES = {  # of heads, in the order of the table
    "own": key("the network's own head, on floats"),
    "original": key("linear head on standardized floats"),
    "clipped": key("linear head on clipped floats"),
    "robust-scaled": key("linear head on floats scaled by quartiles"),
    "neighbors": key("5 nearest neighbors among packed codes"),
}
_OUTCOMES = {
    "improves": key("the head on codes is better"),
    "equal": key("equal within the margin"),
    "degrades": key("the head on codes is worse"),
    "too little data": key("too little data to tell"),
}
_CODES = {"binary": key("binary"), "ternary": key("ternary")}
_COLORS = {"binary": "var(--front)", "ternary": "var(--limit)"}


# Sentences


def verdict(row: FeaturesRow) -> str:
    """What codes are worth beside the same head on floats, and what explains it."""
    original, best = _head(row, "original"), _head(row, row.best_float)
    if original is None or best is None:
        return text("Codes reach {accuracy}.", accuracy=_share(row.score.value))
    values = {
        "code": text(_CODES.get(row.code, row.code)),
        "before": _share(original.score.value),
        "after": _share(row.score.value),
        "interval": interval(original.gain),
    }
    match original.outcome:
        case "improves":
            told = text(
                "With {code} codes instead of floats a linear head rises from {before} to {after} on the test data "
                "(95 % interval of the gain: {interval}).",
                **values,
            )
        case "degrades":
            told = text(
                "With {code} codes instead of floats a linear head falls from {before} to {after} on the test data (95 "
                "% interval of the change: {interval}).",
                **values,
            )
        case "equal":
            told = text(
                "With {code} codes a linear head is as good as with floats, within {margin}: {before} before, {after} "
                "after (95 % interval of the change: {interval}).",
                **values,
                margin=several("{points} point", "{points} points", 100 * row.margin, points=f"{100 * row.margin:g}"),
            )
        case _:
            told = text(
                "Too little data to tell {code} codes from floats: {before} before, {after} after (95 % interval of "
                "the change: {interval}).",
                **values,
            )
    return sentences(told, _explained(row, original, best))


def _explained(row: FeaturesRow, original: HeadRow, best: HeadRow) -> str:
    """Whether floats in another form have what codes gain, and whether the network's own head has more."""
    own = _head(row, "own")
    told = []
    if original.outcome == "improves" and best.name != "original":
        reach = {"floats": text(NAMES[best.name]), "accuracy": _share(best.score.value)}
        if best.outcome == "degrades":
            told.append(text("But the {floats} reaches {accuracy}, which is more: use that.", **reach))
        elif best.outcome == "equal":
            told.append(text("The {floats} reaches {accuracy}, which explains the gain: codes are for size.", **reach))
    if own is not None and own.outcome == "degrades":
        told.append(text("The network's own head is better: {accuracy}.", accuracy=_share(own.score.value)))
    return sentences(*told)


def way(row: FeaturesRow) -> str:
    """What is coded, by which threshold, and which head reads it."""
    values = {
        "features": f"{row.features:,}",
        "code": text(_CODES.get(row.code, row.code)),
        "threshold": figures.significant(row.threshold),
    }
    where = (
        text("The output of {layer}, {features} features, is coded as {code}", layer=row.layer, **values)
        if row.layer
        else text("What {layer} reads, {features} features, is coded as {code}", layer=row.head, **values)
    )
    how = {
        "per feature": text(
            "each feature has a threshold of its own, {threshold} standard deviations in the mean", **values
        ),
        "global": text("one threshold serves all features, {threshold} standard deviations", **values),
        "given": text("the threshold was given, {threshold} standard deviations", **values),
    }.get(row.rule, row.rule)
    head = {"logistic": text("logistic regression"), "svm": text("a linear SVM")}.get(row.classifier, row.classifier)
    fitted = text(
        "The head is {head} with C = {strength}, fitted to {samples} samples of the training data, on which "
        "code, threshold and head were chosen.",
        head=head,
        strength=f"{row.strength:g}",
        samples=f"{row.samples:,}",
    )
    return sentences(text("{where}: {how}.", where=where, how=how), fitted)


def takes(row: FeaturesRow) -> str:
    """Bytes of one sample's features."""
    return text(
        "Features of one sample take {float} bytes as float32, {int8} as int8, and {packed} packed ({times}× smaller "
        "than float32; rows are padded to 64 bits).",
        float=f"{row.bytes_float:,}",
        int8=f"{row.bytes_int8:,}",
        packed=f"{row.bytes_packed:,}",
        times=f"{row.bytes_float / row.bytes_packed:.3g}",
    )


def codes(row: FeaturesRow) -> str:
    """How often each code came, and how far apart codes keep classes."""
    below, zero, above = (_share(share) for share in row.shares)
    came = (
        text("On the test data {above} of the codes are 1.", above=above)
        if row.code == "binary"
        else text(
            "On the test data {below} of the codes are −1, {zero} are 0 and {above} are 1.",
            below=below,
            zero=zero,
            above=above,
        )
    )
    idle = several(
        "{number} feature has one value only, and is coded 0.",
        "{number} features have one value only, and are coded 0.",
        row.constant,
    )
    apart = text(
        "Separation D on the training data: {before} as floats, {after} as codes, which decides nothing.",
        before=figures.significant(row.discrimination),
        after=figures.significant(row.discrimination_codes),
    )
    return sentences(came, idle if row.constant else "", apart)


def advice(row: FeaturesRow) -> list[str]:
    """The checklist of the features as a whole."""
    return [of_record(one) for one in row.applicability]


# The table


def compared(row: FeaturesRow) -> list[tuple[str, str, str, str, str, bool]]:
    """Name, accuracy, interval, what codes gain on it, what that says, and whether it is of codes themselves."""
    places = {name: i for i, name in enumerate(NAMES)}
    rows = sorted(row.heads, key=lambda one: places.get(one.name, len(places)))
    code = text(_CODES.get(row.code, row.code))
    ours = [
        (text("linear head on {code} codes, float model", code=code), row.score),
        (text("this variant, on {code} codes", code=code), row.file),
    ]
    others = [
        (
            text(NAMES.get(one.name, one.name)),
            _share(one.score.value),
            _range(one.score),
            text("{gain} ({interval})", gain=change(one.gain.value), interval=interval(one.gain)),
            text(_OUTCOMES.get(one.outcome, one.outcome)),
            False,
        )
        for one in rows
    ]
    return [*others, *((name, _share(one.value), _range(one), figures.NONE, "", True) for name, one in ours)]


def _head(row: FeaturesRow, name: str) -> HeadRow | None:
    return next((one for one in row.heads if one.name == name), None)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else figures.NONE


def _range(score: Score) -> str:
    return text("{low} to {high}", low=f"{100 * score.low:.1f}", high=f"{100 * score.high:.1f}")


def change(value: float) -> str:
    """A gain in points: ``+1.2``."""
    return f"{100 * value:+.1f}".replace("-", "−")


def interval(gain: Score) -> str:
    """Of a gain, in points."""
    return text("{low} to {high}", low=change(gain.low), high=change(gain.high))


# The plot


def plot(row: FeaturesRow) -> Chart | None:
    """Cross-validated accuracy against the threshold, on the training data; None where no thresholds were tried."""
    found = [one for one in row.tried if one.threshold is not None]
    others = [one for one in row.tried if one.threshold is None]
    if not any(sum(one.code == code for one in found) > 1 for code in _CODES):
        return None
    places = [one.threshold for one in found if one.threshold is not None]
    values = [100 * one.accuracy for one in row.tried] + [100 * row.tried_floats]
    margin = 0.08 * (max(places) - min(places)) or 0.5
    across = Axis(min(places) - margin, max(places) + margin, WIDTH)
    room = max(0.12 * (max(values) - min(values)), 0.05)
    up = Axis(min(values) - room, max(values) + room, HEIGHT)
    x = encoded("x", across, text("threshold, standard deviations"), across.ticks(6), "~r")
    y = encoded("y", up, text("accuracy, %"), [one for one in up.ticks(6) if one <= 100], tick_format(up))
    dashes = {"type": "rule", "color": "var(--muted)", "strokeDash": [4, 3], "strokeWidth": 1.5}
    layers = [layer([{"y": 100 * row.tried_floats}], dashes, y=y)]
    names: list[dict[str, Any]] = [
        {
            "x": across.low,
            "y": 100 * row.tried_floats,
            "align": "left",
            "text": text("standardized floats"),
            "color": "var(--muted)",
        }
    ]
    for code in dict.fromkeys(one.code for one in found):
        color = _COLORS.get(code, "var(--front)")
        points = [{"x": one.threshold, "y": 100 * one.accuracy} for one in found if one.code == code]
        points.sort(key=lambda point: point["x"] or 0.0)
        dot = {"type": "point", "stroke": color, "fill": "var(--panel)", "strokeWidth": 1.75, "opacity": 1}
        layers += [layer(points, {"type": "line", "color": color}, x=x, y=y), layer(points, dot, x=x, y=y)]
        last = points[-1]
        names.append({**last, "align": "right", "text": text(_CODES.get(code, code)), "color": color})
    raised = [{**name, "y": up.back(up.at(float(name["y"])) + 9)} for name in names]
    told = [
        text(
            "{accuracy} at {threshold} ({code})",
            accuracy=_share(one.accuracy),
            threshold=f"{one.threshold:g}",
            code=one.code,
        )
        for one in found
    ]
    by_d = max((one.accuracy for one in others), default=math.nan)
    detail = (
        text("a linear head, cross-validated on the training data; thresholds by D: at most {best}", best=_share(by_d))
        if others
        else text("a linear head, cross-validated on the training data")
    )
    summary = text(
        "Plot of accuracy against the threshold: {points}; standardized floats: {floats}.",
        points=figures.names(told),
        floats=_share(row.tried_floats),
    )
    return Chart(text("which threshold"), detail, drawn([*layers, *texts(raised, x, y)]), (), summary)
