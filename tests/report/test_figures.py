"""How figures are written, at the edges where rounding shows."""

from __future__ import annotations

import math

import pytest

from lowbit.report import figures
from lowbit.report.figures import Metric


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.2434, "0.243"),
        (9.999, "10.0"),
        (1240.4, "1,240"),
        (-0.5, "−0.500"),
        (math.inf, "∞"),
        (math.nan, "–"),
    ],
)
def test_significant(value: float, expected: str) -> None:
    assert figures.significant(value) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(239_000, "239 kB"), (99_960, "100 kB"), (999_600, "1.00 MB"), (1_234_567_890, "1.23 GB"), (999, "999 bytes")],
)
def test_size_is_in_powers_of_1000_bytes(count: int, expected: str) -> None:
    assert figures.size(count) == expected


def test_a_figure_and_its_limit_have_digits_enough_to_differ() -> None:
    assert figures.apart(103_056, 100_000, figures.size) == ("103 kB", "100 kB")
    assert figures.apart(100_040, 100_000, figures.size) == ("100.04 kB", "100.00 kB")
    assert figures.apart(100_000, 100_000, figures.size) == ("100 kB", "100 kB")
    metric = Metric("accuracy", share=True, decimals=2)
    assert metric.apart(0.96, 0.95996, 0.94, 0.97).value(0.95996) == "95.996 %"
    assert metric.apart(0.96, 0.96, 0.94, 0.97) == metric


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (999, "999"), (999.6, "1.00 K"), (40_551_000, "40.6 M"), (999_999_999, "1.00 G"), (4.1e13, "41.0 T")],
)
def test_count(number: float, expected: str) -> None:
    assert figures.count(number) == expected


@pytest.mark.parametrize(
    ("baseline", "value", "expected"),
    [(1176, 240, "4.9×"), (1, 2, "0.50×"), (1, 1.001, "1.0×"), (1024, 8, "128×"), (0, 1, "–"), (1, 0, "–")],
)
def test_ratio(baseline: float, value: float, expected: str) -> None:
    assert figures.ratio(baseline, value) == expected


@pytest.mark.parametrize(
    ("share", "expected"), [(1, "100 %"), (0.99999, "99.99 %"), (0.9162, "91.62 %"), (0.05, "5.00 %"), (0, "0.00 %")]
)
def test_percent_keeps_100_for_what_never_differs(share: float, expected: str) -> None:
    assert figures.percent(share) == expected


@pytest.mark.parametrize(("value", "expected"), [(4.21, "4.2 s"), (93, "93 s"), (600, "10 min"), (9000, "2.5 h")])
def test_seconds(value: float, expected: str) -> None:
    assert figures.seconds(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy", "Accuracy"),
        ("mAP at 50", "mAP at 50"),
        ("r2", "R2"),
        ("R²", "R²"),
        ("m.py:mae by size", "m.py:mae by size"),
        ("", ""),
    ],
)
def test_headed(text: str, expected: str) -> None:
    assert figures.headed(text) == expected


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("2026-03-04T10:05:00+01:00", "4 March 2026, 09:05 UTC"),
        ("2026-03-04T09:05:00Z", "4 March 2026, 09:05 UTC"),
        ("2026-03-04T09:05:00", "4 March 2026, 09:05"),
        ("yesterday", "yesterday"),
    ],
)
def test_moment(started: str, expected: str) -> None:
    assert figures.moment(started) == expected


def test_names() -> None:
    assert [figures.names(list(text)) for text in ("", "a", "ab", "abc")] == ["–", "a", "a and b", "a, b and c"]


def test_a_share_is_a_percentage_and_its_difference_percentage_points() -> None:
    metric = Metric("accuracy", share=True, decimals=2)
    assert [metric.value(0.9162), metric.change(-0.0021), metric.change(0.0021)] == ["91.62 %", "−0.21 pp", "+0.21 pp"]
    assert metric.change(-0.00001) == "0.00 pp"
    assert [metric.limit(value) for value in (0.91, 0.9125, 1)] == ["91.0 %", "91.25 %", "100.0 %"]


def test_a_plain_number_stays_one() -> None:
    metric = Metric("r2", share=False, decimals=3)
    assert [metric.value(-0.0123), metric.change(0.004), metric.limit(0.5)] == ["−0.012", "+0.004", "0.5"]
