"""The Pareto plots: which variants are on a front, where marks and lines are, and what a table tells of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import FAILED, FLOAT, HOSTILE, RUN, W2A8, W4A8, W8A8

from lowbit.pilot.record import Kpi, Limits, Score, Trial
from lowbit.report import pareto
from lowbit.report.charts import place


def test_plots_are_file_size_bops_and_each_latency() -> None:
    titles = [(chart.title, chart.detail) for chart in pareto.draw(RUN)]
    assert titles == [
        ("accuracy against file size", "the exported file"),
        ("accuracy against BOPs", "bit operations, one sample"),
        ("accuracy against latency", "onnxruntime, batch 1, 1 thread"),
        ("accuracy against latency", "onnxruntime, batch 32, 1 thread"),
        ("accuracy against latency", "openvino, batch 1, 1 thread"),
    ]
    assert pareto.draw(replace(RUN, trials=(FLOAT, FAILED))) == []


def test_marks_lie_on_the_points_that_vega_drew() -> None:
    for chart in pareto.draw(replace(RUN, trials=(FLOAT, W8A8, W4A8, W2A8))):
        width, height = (float(number) for number in re.findall(r'viewBox="0 0 (\S+) (\S+)"', chart.svg)[0])
        left, top = (
            float(n) for n in re.findall(r'stroke-miterlimit="10" transform="translate\((.+?),(.+?)\)"', chart.svg)[0]
        )
        symbols = chart.svg.partition("mark-symbol")[2].partition("</g>")[0]
        drawn = [(float(x), float(y)) for x, y in re.findall(r"translate\((.+?),(.+?)\)", symbols)]
        marked = [(mark.left * width / 100 - left, mark.top * height / 100 - top) for mark in chart.marks]
        assert marked == [pytest.approx(point, abs=0.01) for point in drawn]


def test_the_front_is_what_no_other_beats() -> None:
    chart = pareto.draw(replace(RUN, trials=(FLOAT, W8A8, replace(W4A8, file_bytes=400_000), W2A8)))[0]
    assert chart.summary == (
        "Plot of accuracy against file size (the exported file): 4 variants. On the Pareto front: w2a8, w8a8 and float."
    )


FEW = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(FEW)
def test_the_front_holds_exactly_what_is_not_dominated(places: list[tuple[int, int]]) -> None:
    """By definition, pair by pair: dominated is what another beats in one figure and does not lose to in the other."""
    trial = Trial("t", {}, "", "meets")
    points = [pareto.Point(i, trial, float(cost), Score(v, v, v, 1)) for i, (cost, v) in enumerate(places)]
    free = {
        i
        for i, (cost, value) in enumerate(places)
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in places)
    }
    assert {point.index for point in pareto.front(points)} == free


def test_the_table_names_the_fronts_that_the_plots_draw() -> None:
    found = pareto.fronts(RUN)
    for chart, short in zip(pareto.draw(RUN)[:2], ("file", "BOPs"), strict=True):
        winners = {mark.anchor for mark in chart.marks if ("on the front", "yes") in mark.facts}
        assert winners == {f"v{place}" for place, names in found.items() if short in names}
    assert {name for names in found.values() for name in names} >= {"onnxruntime 1", "onnxruntime 32", "openvino 1"}
    alone = replace(RUN, trials=tuple(replace(trial, latencies=trial.latencies[:2]) for trial in RUN.trials))
    assert {n for names in pareto.fronts(alone).values() for n in names} == {"file", "BOPs", "latency 1", "latency 32"}


def rules(svg: str) -> int:
    """Dashed lines: those of what is asked."""
    return svg.count('stroke-dasharray="4,3"')


@pytest.mark.parametrize(
    ("kpi", "limits", "counts", "named"),
    [
        (Kpi("accuracy", 0.91), Limits(), [1, 1, 1, 1, 1], "minimum 91.0 %"),
        (Kpi("accuracy", None, 0.005), Limits(), [1, 1, 1, 1, 1], "float − 0.5 pp"),
        (Kpi("accuracy", 0.91, 0.005), Limits(), [2, 2, 2, 2, 2], "float − 0.5 pp"),
        (Kpi("accuracy", 0.91), Limits(size=300_000), [2, 1, 1, 1, 1], "limit"),
        (Kpi("accuracy", 0.91), Limits(bops=4e9), [1, 2, 1, 1, 1], "minimum 91.0 %"),
        (Kpi("accuracy", 0.91), Limits(latency=0.5), [1, 1, 2, 1, 1], "minimum 91.0 %"),
        (Kpi("accuracy", 0.91), Limits(size=9_000_000_000), [1, 1, 1, 1, 1], "minimum 91.0 %"),  # far off the axis
    ],
)
def test_what_is_asked_is_drawn_as_lines(kpi: Kpi, limits: Limits, counts: list[int], named: str) -> None:
    charts = pareto.draw(replace(RUN, kpi=kpi, limits=limits))
    assert [rules(chart.svg) for chart in charts] == counts
    assert named in charts[0].svg


def test_a_limit_is_where_its_cost_would_be() -> None:
    """The line of a limit that a variant just keeps goes through its mark."""
    chart = pareto.draw(replace(RUN, limits=Limits(size=W8A8.file_bytes)))[0]
    (mark,) = [mark for mark in chart.marks if mark.name == "w8a8"]
    width, left = float(re.findall(r'viewBox="0 0 (\S+) ', chart.svg)[0]), place(0, 0)[0]
    line = re.findall(r'translate\((\S+?),(\S+?)\)" x2="0" y2="-?208"', chart.svg)
    assert line, "no vertical line"
    assert float(line[0][0]) == pytest.approx((mark.left - left) / 100 * width, abs=0.6)


def test_a_collapsed_variant_does_not_press_the_others_together() -> None:
    scores = [Score(value, value - 0.005, value + 0.005, 10_000) for value in (0.9185, 0.9162, 0.10)]
    axis = pareto.metric_axis(scores, 0.91, 100)
    assert 0.90 < axis.low < 0.91
    assert pareto.metric_axis(scores[:2], 0.91, 100) == axis
    label = pareto.draw(replace(RUN, trials=(FLOAT, W8A8, replace(W2A8, score=scores[2]))))[0].svg
    assert "w2a8 10.00 % ↓" in label


def test_names_in_a_plot_are_text() -> None:
    for chart in pareto.draw(replace(RUN, kpi=Kpi(HOSTILE, 0.91))):
        assert "<script" not in chart.svg
