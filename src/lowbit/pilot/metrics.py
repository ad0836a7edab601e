"""Metrics that are known by name: which are shares, which need no labels, and between which values they lie.

Any other metric is a function of the user's, ``module:function`` of (outputs, labels), whose unit and direction only
the user knows.
"""

from __future__ import annotations

import math

KPIS = ("accuracy", "agreement", "r2", "cosine")  # of a pilot; larger is better
SHARES = ("accuracy", "agreement", "hits")  # of samples
AGREEMENTS = ("agreement", "cosine")  # of one model with another, without labels: that other one has 1
RANGES = {
    **dict.fromkeys(SHARES, (0.0, 1.0)),
    "cosine": (-1.0, 1.0),
    "r2": (-math.inf, 1.0),
}  # the least and the most


def is_own(metric: str) -> bool:
    """Whether a metric is a function of the user's."""
    return ":" in metric


def bounds(metric: str, *, difference: bool = False) -> tuple[float, float]:
    """Between which values a metric lies, or its difference from the float model's; infinite where nothing is known."""
    least, most = RANGES.get(metric, (-math.inf, math.inf))
    if not difference:
        return least, most
    return (least - 1, most - 1) if metric == "cosine" else (least - most, most - least)
