"""What the page says of features that became codes, and the plot of their thresholds."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lowbit.pilot.record import FeaturesRow, HeadRow, Score, ThresholdRow
from lowbit.report import coding
from lowbit.report.page import environment


def head(name: str, accuracy: float, gain: float, outcome: str) -> HeadRow:
    return HeadRow(
        name,
        Score(accuracy, accuracy - 0.01, accuracy + 0.01, 500),
        Score(gain, gain - 0.005, gain + 0.005, 500),
        outcome,
    )


ROW = FeaturesRow(
    layer="",
    head="classifier",
    features=512,
    constant=0,
    code="binary",
    rule="per feature",
    threshold=0.25,
    classifier="logistic",
    strength=0.1,
    samples=5000,
    score=Score(0.9, 0.88, 0.92, 500),
    file=Score(0.89, 0.87, 0.91, 500),
    heads=(
        head("neighbors", 0.85, 0.05, "improves"),
        head("own", 0.93, -0.03, "degrades"),
        head("original", 0.8, 0.1, "improves"),
        head("clipped", 0.91, -0.01, "degrades"),
        head("robust-scaled", 0.9, 0.0, "equal"),
    ),
    best_float="clipped",
    margin=0.01,
    tried=(
        ThresholdRow("binary", None, True, 0.95),
        ThresholdRow("binary", 0.5, False, 0.9),
        ThresholdRow("binary", -0.5, False, 0.8),
        ThresholdRow("ternary", 0.3, False, 0.93),
        ThresholdRow("ternary", 0.6, False, 0.94),
    ),
    tried_floats=0.96,
    discrimination=3.0,
    discrimination_codes=4.5,
    shares=(0.0, 0.75, 0.25),
    bytes_float=2048,
    bytes_int8=512,
    bytes_packed=64,
    applicability=("3 of 512 features have <b>one value</b> only.",),
)


def with_head(name: str, outcome: str, gain: float = 0.0) -> FeaturesRow:
    return replace(ROW, heads=tuple(replace(h, outcome=outcome) if h.name == name else h for h in ROW.heads))


def test_a_gain_is_told_with_what_explains_it() -> None:
    assert coding.verdict(ROW) == (
        "With binary codes instead of floats a linear head rises from 80.0 % to 90.0 % on the test data (95 % interval "
        "of the gain: +9.5 to +10.5). But the linear head on clipped floats reaches 91.0 %, which is more: use that. "
        "The network's own head is better: 93.0 %."
    )
    alike = with_head("clipped", "equal")
    assert "reaches 91.0 %, which explains the gain: codes are for size" in coding.verdict(alike)
    assert "clipped" not in coding.verdict(with_head("clipped", "improves"))
    assert "own head" not in coding.verdict(with_head("own", "too little data"))


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("degrades", "With binary codes instead of floats a linear head falls from 80.0 % to 90.0 %"),
        ("equal", "With binary codes a linear head is as good as with floats, within 1 point: 80.0 % before"),
        ("too little data", "Too little data to tell binary codes from floats: 80.0 % before, 90.0 % after"),
    ],
)
def test_other_outcomes(outcome: str, told: str) -> None:
    assert coding.verdict(with_head("original", outcome)).startswith(told)


def test_what_was_done_and_what_it_takes() -> None:
    assert coding.way(ROW).startswith(
        "What classifier reads, 512 features, is coded as binary: each feature has a threshold of its own, 0.250 "
        "standard deviations in the mean. The head is logistic regression with C = 0.1, fitted to 5,000 samples"
    )
    given = replace(ROW, layer="body", rule="given", classifier="svm", code="ternary")
    assert coding.way(given).startswith(
        "The output of body, 512 features, is coded as ternary: the threshold was given"
    )
    assert "a linear SVM" in coding.way(given)
    assert "one threshold serves all" in coding.way(replace(ROW, rule="global"))
    assert "2,048 bytes as float32, 512 as int8, and 64 packed (32× smaller" in coding.takes(ROW)
    assert coding.codes(ROW).startswith("On the test data 25.0 % of the codes are 1. Separation D")
    ternary = replace(ROW, code="ternary", shares=(0.1, 0.6, 0.3), constant=1)
    assert coding.codes(ternary).startswith(
        "On the test data 10.0 % of the codes are −1, 60.0 % are 0 and 30.0 % are 1. 1 feature has one value only, and "
        "is coded 0."
    )


def test_the_table_has_all_heads_and_ends_with_the_variant() -> None:
    rows = coding.compared(ROW)
    assert [one[0] for one in rows] == [
        "the network's own head, on floats",
        "linear head on standardized floats",
        "linear head on clipped floats",
        "linear head on floats scaled by quartiles",
        "5 nearest neighbors among packed codes",
        "linear head on binary codes, float model",
        "this variant, on binary codes",
    ]
    assert rows[1][1:5] == ("80.0 %", "79.0 to 81.0", "+10.0 (+9.5 to +10.5)", "the head on codes is better")
    assert rows[0][3] == "−3.0 (−3.5 to −2.5)"
    assert rows[-1][1:4] == ("89.0 %", "87.0 to 91.0", "–")


def test_the_plot_has_a_line_for_each_code_and_one_of_floats() -> None:
    chart = coding.plot(ROW)
    assert chart is not None
    assert chart.svg.count("var(--front)") > 2
    assert "var(--limit)" in chart.svg
    assert "thresholds by D: at most 95.0 %" in chart.detail
    assert "80.0 % at -0.5 (binary)" in chart.summary
    assert "standardized floats: 96.0 %" in chart.summary
    assert re.search("NaN|Infinity", chart.svg) is None
    assert coding.plot(replace(ROW, tried=ROW.tried[:1])) is None
    assert coding.plot(replace(ROW, tried=ROW.tried[1:2] + ROW.tried[3:4])) is None
    alike = coding.plot(replace(ROW, tried=tuple(replace(t, accuracy=1.0) for t in ROW.tried[1:]), tried_floats=1.0))
    assert alike is not None
    assert "thresholds by D" not in alike.detail


def test_the_section_escapes_names() -> None:
    template = environment().from_string('{% from "coding.html.j2" import coding %}{{ coding(name, row) }}')
    page = template.render(name="<i>x</i>", row=replace(ROW, layer="<script>"))
    assert "<script>" not in page
    assert "<i>x" not in page
    assert "&lt;b&gt;one value" in page
    assert page.count("<tr") == 8
    assert page.count('class="best"') == 1
