"""What the page says of a factorized variant, and the plots of errors it draws."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lowbit.pilot.record import FactorizationRow, FactorizedLayerRow, SpentRow
from lowbit.report import factorizing
from lowbit.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH

DENSE, CHAIN = SpentRow(1000, 64_000, 2_048_000, 600, 2_000), SpentRow(500, 32_000, 1_024_000, 300, 4_000)


def layer(name: str, error: float, advice: str = "") -> FactorizedLayerRow:
    errors = {"float": error, "rounding": 2 * error, "admm": 1.2 * error, "descent": 1.1 * error}
    return FactorizedLayerRow(
        name, (8, 8, 3, 3), "2x", "cp", 14, errors, 0.5 * error, 0.4 * error, DENSE, CHAIN, advice
    )


ROW = FactorizationRow(
    "descent",
    exact=False,
    layers=(
        layer("a", 0.3, "slow"),
        FactorizedLayerRow("b", (8, 8, 3, 3), "int4", "", 0, {}, None, None, DENSE, DENSE, ""),
        layer("c", 0.25, "large"),
        layer("d", 0.2, "slow"),
    ),
    skipped={},
    before=SpentRow(5000, 300_000, 9_600_000, 3_000, 2_000),
    after=SpentRow(3000, 200_000, 6_400_000, 1_800, 4_000),
    budgets={},
    error=0.04,
    agreement=0.9,
    recalibrated=None,
)
CP = replace(ROW.layers[0], errors={"float": 0.3, "published": 0.4, "rounding": 0.6}, output_before=None)
PUBLISHED = replace(CP, output_after=None)


# Sentences


def test_way() -> None:
    assert factorizing.way(ROW) == (
        "3 of 4 layers became chains of small ones, with factors found by descent in the integers. The network has "
        "66.67 % of the BOPs (6.40 M) and 60.00 % of the bytes (1.80 kB) of the same network with all layers dense "
        "in the recipe's formats. It predicts the same as the float model for 90.00 % of held-out inputs."
    )
    one = replace(ROW, layers=ROW.layers[:1], solver="published", agreement=None)
    assert factorizing.way(one).startswith("1 of 1 layer became a chain of small ones, with factors found as published")
    assert factorizing.way(one).endswith(
        "On held-out inputs its outputs are off by 0.040 of the float model's variance."
    )
    assert factorizing.way(replace(one, error=None)).endswith("in the recipe's formats.")
    none = factorizing.way(replace(ROW, layers=ROW.layers[1:2]))
    assert none.startswith("No layer became a chain: dense ones serve better. The network has 66.67 %")


def test_spent_of_a_budget_that_is_counted() -> None:
    assert factorizing.spent(ROW) == ""
    assert factorizing.spent(replace(ROW, budgets={"bops": 8e6})) == (
        "It spends 80.00 % of the budget for BOPs (8.00 M)."
    )
    assert "budget for bytes of weights" in factorizing.spent(replace(ROW, budgets={"bytes": 2e3}))
    assert factorizing.spent(replace(ROW, budgets={"latency": 0.4})) == ""


def test_new_statistics_of_norms() -> None:
    assert factorizing.norms(ROW) == ""
    assert factorizing.norms(replace(ROW, recalibrated=True)).endswith("and were kept.")
    assert factorizing.norms(replace(ROW, recalibrated=False)).endswith("and were not kept.")


def test_what_is_known_of_the_layers() -> None:
    assert factorizing.methods(ROW) == ["float", "rounding", "admm", "descent"]
    assert factorizing.methods(replace(ROW, layers=(PUBLISHED,))) == ["float", "rounding", "published"]
    assert [*map(factorizing.became, ROW.layers[:2])] == ["cp, rank 14", "dense"]
    assert factorizing.advice(ROW) == {"slow": ["a", "d"], "large": ["c"]}
    assert factorizing.fitted(ROW)
    assert not factorizing.fitted(replace(ROW, layers=(PUBLISHED,)))
    assert not factorizing.timed(ROW)
    assert factorizing.timed(replace(ROW, layers=(replace(ROW.layers[0], after=replace(CHAIN, milliseconds=0.2)),)))
    assert [factorizing.time(0.2), factorizing.time(None)] == ["0.200 ms", "–"]


# The plots


def drawn(svg: str) -> list[tuple[float, float]]:
    """Where Vega drew the points."""
    symbols = svg.partition("mark-symbol")[2].partition("</g>")[0]
    return [(float(x), float(y)) for x, y in re.findall(r"translate\((.+?),(.+?)\)", symbols)]


def test_plots_are_errors_of_weights_and_of_outputs() -> None:
    weights, outputs = factorizing.errors(ROW, 3)
    assert (weights.title, outputs.title) == ("error of the weights", "error of the outputs")
    assert weights.summary == (
        "Plot of the error of the weights of 3 layers, relative to their norm, by method. The largest that is left: "
        "0.330 in a."
    )
    assert outputs.summary.endswith("The largest that is left: 0.120 in a.")
    assert [mark.anchor for mark in weights.marks] == ["v3f1", "v3f3", "v3f4"]  # as the table counts
    assert weights.marks[0].facts == (
        ("chain", "2x (cp, rank 14)"),
        *(("float factors", "0.300"), ("rounding", "0.600"), ("ADMM", "0.360"), ("descent", "0.330")),
    )
    assert outputs.marks[0].facts[1:] == (("before", "0.150"), ("after", "0.120"))
    assert (len(drawn(weights.svg)), len(drawn(outputs.svg))) == (12, 6)


def test_marks_lie_on_points_that_vega_drew() -> None:
    for chart in factorizing.errors(ROW, 0):
        places = [(round(x, 1), round(y, 1)) for x, y in drawn(chart.svg)]
        for mark in chart.marks:
            x = mark.left * (LEFT + WIDTH + RIGHT) / 100 - LEFT
            y = mark.top * (TOP + HEIGHT + BOTTOM) / 100 - TOP
            assert any(abs(x - at[0]) < 0.2 and abs(y - at[1]) < 0.2 for at in places)


@pytest.mark.parametrize(
    ("layers", "plots"),
    [
        (ROW.layers[:2], 0),  # one chain is no plot
        ((PUBLISHED, PUBLISHED), 1),
        ((replace(ROW.layers[0], errors={"float": 0.0, "descent": 0.0}, output_after=0.0), ROW.layers[0]), 2),
        (tuple(layer(f"layer{i}", 0.001 * 1.5**i) for i in range(18)), 2),
        ((replace(ROW.layers[0], errors={"float": 0.1, "descent": 1e-9}), ROW.layers[0]), 2),
    ],
    ids=["one chain", "published", "no error", "many", "far apart"],
)
def test_any_factorization_has_its_plots(layers: tuple[FactorizedLayerRow, ...], plots: int) -> None:
    charts = factorizing.errors(replace(ROW, layers=layers), 0)
    assert len(charts) == plots
    for chart in charts:
        assert not re.search("NaN|undefined|null", chart.svg)
        assert len(chart.svg) < 60_000


def test_names_are_not_in_the_drawing() -> None:
    hostile = "<script>alert(1)</script>"
    for chart in factorizing.errors(replace(ROW, layers=(layer(hostile, 0.3), layer(hostile, 0.2))), 0):
        assert "alert" not in chart.svg
