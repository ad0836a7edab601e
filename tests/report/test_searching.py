"""What the page says of a searched variant, and the plots and strips it draws."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from lowbit.pilot.record import EpochRow, PointRow, ReasonRow, SearchRow
from lowbit.report import searching
from lowbit.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH


def point(name: str, choices: tuple[str, ...], bops: float, loss: float | None, *, fits: bool = True) -> PointRow:
    return PointRow(name, choices, {"bops": bops, "file": bops / 100}, fits, 0.1, loss, loss and 1 - loss)


FOUND = point("surrogate", ("int4", "int8"), 9e7, 0.05)
UNIFORM = (
    point("uniform int4", ("int4", "int4"), 5e7, 0.2),
    point("uniform int8", ("int8", "int8"), 2e8, 0.01, fits=False),
)
ROW = SearchRow(
    "surrogate",
    "kl",
    classes=True,
    choices=("int4", "int8"),
    refused={},
    layers=(("conv",), ("head",)),
    budgets={"bops": 1e8},
    sensitivities=((0.1, 0.001), (1.0, -0.1)),
    samples=40,
    movement=(((1.0, 0.0), (0.25, 0.75)), ((0.5, 0.5), (0.0, 1.0))),
    reasons=(ReasonRow(("conv",), "int4", 0.4, "why"), ReasonRow(("head",), "int8", 0.5, "why not")),
    found=FOUND,
    candidates=(FOUND, point("sensitivities", ("int8", "int4"), 8e7, 0.07), *UNIFORM),
    front=(point("front 1", ("int4", "int4"), 5e7, 0.2), point("front 2", ("int8", "int8"), 2e8, 0.01)),
    epochs=(EpochRow(1, 0.3, 0.9, 1e-3, 1.0), EpochRow(2, 0.2, 0.95, 1e-3, 1.0)),
    best=2,
    before=0.9,
    after=0.95,
)


# Sentences


def test_way() -> None:
    assert searching.way(ROW) == (
        "Formats of 2 layers were chosen from int4 and int8 by exploring around the exact solution for the "
        "sensitivities (surrogate). 40 assignments of formats were tried while weights learned. Of 4 candidates the "
        "one that was taken, surrogate, had the lowest loss on held-out inputs within the budget."
    )
    one = replace(ROW, layers=(("conv", "head"),), samples=0, by="knapsack")
    assert "Formats of 2 layers in 1 decision were chosen from" in searching.way(one)
    assert "no exploring. Of 4 candidates" in searching.way(one)
    over = replace(ROW, by="policy", found=replace(FOUND, fits=False))
    assert "by the published controller (policy)." in searching.way(over)
    assert searching.way(over).endswith("surrogate, is over the budget.")


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("bops", 1.234e9, "1.23 G"),
        ("bytes", 240_000, "240 kB"),
        ("file", 240_000.0, "240 kB"),
        ("latency", 0.38712, "0.387 ms"),
        ("joules", 12.345, "12.3"),
    ],
)
def test_costs_have_their_units(kind: str, value: float, shown: str) -> None:
    assert searching.cost(kind, value) == shown


def test_spent_of_each_budget() -> None:
    assert searching.spent(ROW) == "It spends 90.00 % of the budget for BOPs (100 M)."
    both = replace(ROW, budgets={"bops": 9e7, "file": 1e6})
    assert searching.spent(both) == (
        "It spends 100 % of the budget for BOPs (90.0 M) and 90.00 % of the budget for bytes of weights in the file "
        "(1.00 MB)."
    )


def test_beside_the_best_single_format_within_the_budget() -> None:
    assert searching.beside_uniform(ROW) == (
        "Before training by itself it has a loss of 0.050, and int4 everywhere, the best single format within the "
        "budget, 0.20."
    )
    same = replace(ROW, found=UNIFORM[0])
    assert searching.beside_uniform(same) == "It is int4 everywhere: no mix of formats that was compared is better."
    assert searching.beside_uniform(replace(ROW, candidates=(FOUND, UNIFORM[1]))) == ""
    assert searching.beside_uniform(replace(ROW, candidates=(FOUND, replace(UNIFORM[0], loss=None)))) == ""


def test_training_of_what_was_found() -> None:
    assert searching.training(ROW) == (
        "Then it learned by itself from the float model's outputs (loss kl) for 2 passes; number 2 was kept. Same "
        "prediction as the teacher on held-out inputs: 90.00 % before training, 95.00 % after."
    )
    assert "from the labels for 1 pass;" in searching.training(replace(ROW, loss="labels", epochs=ROW.epochs[:1]))
    assert searching.training(replace(ROW, before=None)).endswith("number 2 was kept.")
    assert searching.training(replace(ROW, epochs=())) == "No steps were left to train the found assignment by itself."


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.0123, "0.012"),
        (0.001, "0.0010"),
        (0.000999, "1.0·10⁻³"),
        (1.24e-5, "1.2·10⁻⁵"),
        (-3.4e-12, "−3.4·10⁻¹²"),
        (123.4, "123"),
        (math.inf, "∞"),
    ],
)
def test_numbers_have_two_digits(value: float | None, shown: str) -> None:
    assert searching.number(value) == shown


def test_of_many_layers_the_first_are_named() -> None:
    assert searching.members(("a", "b", "c")) == "a, b, c"
    assert searching.members(("a", "b", "c", "d", "e")) == "a, b, c and 2 more"


# Shades and strips


def test_shades_follow_a_logarithm() -> None:
    shades = [searching.shade(value, ROW) for value in (1.0, 0.1, 0.01, 0.001, 0.0, -0.1)]
    assert shades == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0])
    near = replace(ROW, sensitivities=((0.9, 1.0),))
    assert searching.shade(0.9, near) > 0.9  # what hardly differs looks alike
    assert searching.shade(1e-9, replace(ROW, sensitivities=((1.0, 1e-9),))) == 0
    assert searching.shade(0.0, replace(ROW, sensitivities=((0.0, 0.0),))) == 0


def test_strips_are_stacked_shares() -> None:
    assert searching.strip(ROW, 0) == [(1, "M0 100V0H1V0H2V100z"), (0, "M0 100V0H1V50H2V100z")]
    assert searching.strip(ROW, 1) == [(1, "M0 100V0H1V0H2V100z"), (0, "M0 100V75H1V100H2V100z")]
    assert searching.moved(ROW, 1) == "at first int8 in 75.00 %, in the end int8 in 100 %"


def test_formats_that_were_never_tried_have_no_path() -> None:
    never = replace(ROW, choices=("int2", "int4", "int8"), movement=(((0.0, 1.0, 0.0),),))
    assert searching.strip(never, 0) == [(1, "M0 100V0H1V100z")]


# The front


def test_every_assignment_is_one_point() -> None:
    assert [(kind, one.name) for kind, one in searching.points(ROW)] == [
        ("found", "surrogate"),
        ("candidate", "sensitivities"),
        ("uniform", "uniform int4"),
        ("uniform", "uniform int8"),
    ]
    other = replace(ROW, front=(*ROW.front, point("front 3", ("int2", "int8"), 7e7, 0.1)))
    assert searching.points(other)[-1][0] == "front"


def drawn(svg: str) -> list[tuple[float, float]]:
    """Where Vega drew the points."""
    symbols = svg.partition("mark-symbol")[2].partition("</g>")[0]
    return [(float(x), float(y)) for x, y in re.findall(r"translate\((.+?),(.+?)\)", symbols)]


def test_plots_are_loss_and_agreement() -> None:
    loss, agreement = searching.fronts(ROW, 3)
    assert (loss.title, agreement.title) == ("loss against BOPs", "agreement with the float model against BOPs")
    assert loss.summary == (
        "Plot of loss against BOPs: 4 assignments. Found: surrogate, loss 0.050; agreement 95.00 %; BOPs 90.0 M; "
        "budget kept."
    )
    assert all(text in loss.svg for text in (">budget<", ">found<", ">int8<", "loss (kl), log scale", "BOPs"))
    assert "%" in agreement.svg
    assert [mark.anchor for mark in loss.marks] == ["v3p0", "v3p1", "v3p2", "v3p3"]
    assert [mark.shape for mark in loss.marks] == ["found", "candidate", "uniform", "uniform"]
    assert max(len(chart.svg) for chart in (loss, agreement)) < 12_000


def test_marks_lie_on_the_points_that_vega_drew() -> None:
    for chart in searching.fronts(ROW, 0):
        marked = [
            (mark.left * (LEFT + WIDTH + RIGHT) / 100 - LEFT, mark.top * (TOP + HEIGHT + BOTTOM) / 100 - TOP)
            for mark in chart.marks
        ]
        assert sorted(marked) == [pytest.approx(at, abs=0.1) for at in sorted(drawn(chart.svg))]


@pytest.mark.parametrize(
    "fields",
    [
        {"budgets": {"file": 1e6}},
        {"classes": False, "loss": "mse"},
        {"front": (), "candidates": (FOUND, UNIFORM[0])},
        {"candidates": (FOUND, replace(UNIFORM[0], loss=0.0, agreement=1.0))},
        {"candidates": (FOUND, replace(FOUND, choices=("int8", "int4")))},
        {"budgets": {"bops": 1e3}},
        {"front": tuple(point(f"f{i}", (f"int{i}", "x"), 10.0**i, 10.0**-i) for i in range(1, 12))},
    ],
    ids=["file", "numbers", "two", "no loss", "all equal", "budget far below", "far apart"],
)
def test_any_search_has_its_plots(fields: dict[str, Any]) -> None:
    charts = searching.fronts(replace(ROW, **fields), 0)
    assert len(charts) == 2
    for chart in charts:
        assert not re.search("NaN|undefined|null", chart.svg)


def test_figures_that_are_not_known_are_left_out() -> None:
    unknown = replace(FOUND, loss=None, agreement=None)
    few = replace(ROW, found=unknown, candidates=(unknown, UNIFORM[0]), front=())
    assert searching.fronts(few, 0) == []
    assert searching.fronts(replace(few, candidates=(unknown, *UNIFORM)), 0)[0].summary == (
        "Plot of loss against BOPs: 2 assignments."
    )


def test_names_are_escaped_in_the_drawing() -> None:
    script = "<script>alert(1)</script>"
    uniform = replace(UNIFORM[0], choices=(script, script))
    svg = searching.fronts(replace(ROW, candidates=(FOUND, uniform), front=(), loss=script), 0)[0].svg
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
