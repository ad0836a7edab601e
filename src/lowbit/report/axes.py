"""Where things are in a plot: axes with round ticks, and names placed where they cover least.

Pure geometry in the drawing's units, x to the right and y downwards from the top left of the plotting area.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "center", "right"]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers on a stretch of pixels, straight or logarithmic."""

    low: float
    high: float
    pixels: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is, in pixels from the low end; what lies outside is moved to the nearer end."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, self.inside(value)))
        return (value - low) / (high - low) * self.pixels

    def back(self, pixel: float) -> float:
        """The value at a pixel."""
        share = pixel / self.pixels
        return self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)

    def inside(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)

    def ticks(self, most: int) -> list[float]:
        """At most that many round values: 1, 2, 5 times powers of ten (or 1, 3, or 1 alone), or evenly spaced."""
        decade = math.floor(math.log10(self.high if self.log else self.high - self.low))
        if self.log:
            powers = range(decade - 18, decade + 1)
            sets = [[m * 10.0**p for p in powers for m in leads] for leads in ((1, 2, 5), (1, 3), (1,))]
            sets += [[10.0**p for p in powers if p % every == 0] for every in (2, 3)]
        else:
            steps = [m * 10.0**p for p in range(decade - 1, decade + 2) for m in (1, 2, 5)]
            sets = [[n * s for n in range(math.ceil(self.low / s), math.floor(self.high / s) + 1)] for s in steps]
        rounded = [[float(f"{value:.12g}") for value in values] for values in sets]
        shown = [[value for value in values if self.low <= value <= self.high] for values in rounded]
        return next((values for values in shown if len(values) <= most), shown[-1])


@dataclass(frozen=True)
class Label:
    """A name in a plot: its anchor, the side of it that lies there, and the box it covers."""

    x: float
    y: float
    align: Align
    box: Box
    free: bool


def place_label(text: str, x: float, y: float, *, within: Box, taken: Iterable[Box], size: float = 11) -> Label:
    """A label beside (x, y), on the side where it covers least of what is taken and does not leave the plot."""
    width, half = 0.58 * size * letters(text) + 2, 0.62 * size
    sides: Sequence[tuple[float, float, Align]] = (
        (9, 0, "left"),
        (-9, 0, "right"),
        (7, -11, "left"),
        (7, 11, "left"),
        (-7, -11, "right"),
        (-7, 11, "right"),
        (0, -15, "center"),
        (0, 15, "center"),
    )
    others = [*taken]
    labels = []
    for dx, dy, align in sides:
        left = x + dx - {"left": 0.0, "center": width / 2, "right": width}[align]
        box = (left, y + dy - half, left + width, y + dy + half)
        outside = width * 2 * half - overlap(box, within)
        covered = sum(overlap(box, other) for other in others)
        labels.append((8 * outside + covered, Label(x + dx, y + dy, align, box, outside + covered < half * half)))
    return min(labels, key=lambda scored: scored[0])[1]


def letters(text: str) -> float:
    """How long a text is, in Latin letters: those of Japanese, a square each, take 1.7 times as much."""
    return sum(1.7 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
