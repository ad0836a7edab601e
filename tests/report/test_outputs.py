"""What the page says of an output on a path, and the plots of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from pages import FLOAT as FLOAT_TRIAL
from pages import RUN, W8A8

from lowbit.pilot.record import CandidatePathRow, ComparedRow, EpochRow, ErrorsRow, OutputRow
from lowbit.report import figures, outputs
from lowbit.report.page import render


def errors(rmse: float, robust: float, flips: float = 0.0, structure: float | None = None) -> ErrorsRow:
    return ErrorsRow(100, rmse, 0.7 * rmse, robust, 4 * rmse, 90, flips, structure)


FLOAT, CURVE = ComparedRow("float", errors(0.1, 0.1), None), ComparedRow("curve", errors(0.1, 0.1), None)
DIRECT = ComparedRow("direct", errors(0.4, 0.4), errors(0.3, 0.3))
WIDE = ComparedRow("wide", errors(0.3, 0.3), errors(0.2, 0.2))
TRAINED = ComparedRow("trained", errors(0.4, 0.4), errors(0.3, 0.3))
FOLD = ComparedRow("fold", errors(0.3, 0.3), errors(0.2, 0.2))
OURS = ComparedRow("variant", errors(0.2, 0.1, 0.01), errors(0.1, 0.03, 0.005))
ROW = OutputRow(
    path="snake2",
    reason="",
    noise=None,
    uncertainty=None,
    candidates=(),
    against="labels",
    compared=(OURS, FLOAT, CURVE, DIRECT, WIDE, TRAINED, FOLD),
    left_out={},
    low=(0.0,),
    high=(5.0,),
    transform="linear",
    length=2.88,
    spacing=0.96,
    heads="shared",
    decoder="table",
    loss="points",
    taught=False,
    epochs=(EpochRow(1, 0.1, -0.1, 0.001, 1.0), EpochRow(2, 0.05, -0.05, 0.0, 1.0)),
    best=2,
    before=0.05,
    after=0.01,
    corners=((0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)),
    points=((0.5, 0.02), (0.97, 0.5), (0.4, 0.97)),
    confidence=((1.0, 0.2), (0.97, 0.1), (0.8, 0.09)),
)
REFUSED = replace(ROW, path="", reason="the direct output stays: noise", compared=(FLOAT, OURS), corners=(), points=())


def with_errors(what: str, error: ErrorsRow, row: OutputRow = ROW) -> OutputRow:
    return replace(row, compared=tuple(replace(c, errors=error) if c.what == what else c for c in row.compared))


def test_of_many_paths_the_one_taken_and_the_best_are_shown_first() -> None:
    def candidate(rows: int, why_not: str) -> CandidatePathRow:
        return CandidatePathRow(f"snake{rows}", 1.0 + rows, 1 / rows, 1.0 * rows, 1 + rows / 100, why_not)

    many = replace(ROW, candidates=tuple(candidate(rows, "too near" if rows > 6 else "") for rows in range(2, 41)))
    assert [one.path for one in outputs.few_candidates(many)] == [f"snake{rows}" for rows in range(2, 7)]
    few = replace(many, candidates=many.candidates[:3])
    assert outputs.few_candidates(few) == [*few.candidates]


@pytest.mark.parametrize(("rmse", "robust", "told"), [(0.2, 0.1, "better"), (0.5, 0.6, "worse"), (0.5, 0.1, "alike")])
def test_a_path_wins_or_loses_by_both_figures(rmse: float, robust: float, told: str) -> None:
    row = with_errors("variant", errors(rmse, robust))
    assert outputs.beside_direct(row) == told
    assert (" lost: against" in outputs.bought(row)) == (told == "worse")
    assert outputs.beside_direct(REFUSED) == "alike"


# Sentences


def test_bought() -> None:
    assert outputs.bought(ROW) == (
        "Against a direct 8-bit output, snake2 made all of the error 4.0× smaller by robust SD and 2.0× smaller by "
        "RMSE; of it, what quantization adds is 10.0× smaller by robust SD and 3.0× smaller by RMSE."
    )
    alone = replace(ROW, compared=(OURS, FLOAT))
    assert outputs.bought(alone) == (
        "Against the float model, the error is as large by robust SD and 2.0× larger by RMSE: snake2, 8 bits."
    )
    assert outputs.bought(replace(ROW, against="float model", compared=(OURS, CURVE))) == (
        "With snake2, outputs differ from the float model's by RMSE 0.200, robust SD 0.100."
    )
    assert outputs.bought(REFUSED) == "The direct output stays: noise."


def test_several_outputs_have_errors_in_their_own_units() -> None:
    several = replace(ROW, compared=(replace(OURS, each=(0.02, 1.5)), replace(FLOAT, each=(0.01, 1.25)), DIRECT))
    page = render(replace(RUN, trials=(FLOAT_TRIAL, replace(W8A8, output=several))))
    (table,) = re.findall(r'aria-label="Errors of each output of .*?</table>', page, re.DOTALL)
    assert re.findall(r"Output \d", table) == ["Output 0", "Output 1"]
    assert re.findall(r'<td class="n">(.*?)</td>', table) == ["0.0100", "1.25", "0.0200", "1.50"]
    assert "where units differ, those with the largest numbers decide them" in table
    assert "Errors of each output of" not in render(replace(RUN, trials=(FLOAT_TRIAL, replace(W8A8, output=ROW))))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (1.0, 0.5, "2.0× smaller"),
        (1.0, 1.5, "1.50× larger"),
        (1.0, 1.004, "as large"),
        (0.0, 0.0, "as large"),
        (1.0, 0.0, "gone"),
        (0.0, 1.0, "new"),
        (1.0, 0.005, "200× smaller"),
    ],
)
def test_how_an_error_changed(before: float, after: float, told: str) -> None:
    assert outputs._times(before, after) == told


def test_way() -> None:
    told = outputs.way(ROW)
    assert told.startswith("The path was given. It is 2.88 times as long as the range of one channel, and its branches")
    assert "Range: 0 to 5.00. The network learned it from the labels for 2 epochs (loss points), and epoch 2" in told
    assert told.endswith("in float: 5.00 % of the range before, 1.00 % after.")
    fold = replace(ROW, path="fold4", spacing=None, taught=None, reason="fold4: it fits", transform="log")
    assert outputs.way(fold) == (
        "The path was chosen by the noise: it fits. It is 2.88 times as long as the range of one channel. Range: 0 to "
        "5.00, spread by the logarithm. Nothing was trained."
    )
    taught = replace(ROW, taught=True, before=None, low=(0.0,) * 9, high=(1.0,) * 9)
    assert outputs.way(taught).endswith(
        "from the float model's outputs for 2 epochs (loss points), and epoch 2 was kept."
    )
    assert "Range: 9 quantities, the first from 0 to 1.00." in outputs.way(taught)
    assert outputs.way(REFUSED) == ""


def test_caution_where_rmse_got_worse_and_robust_sd_better() -> None:
    (caution,) = outputs.cautions(with_errors("variant", errors(0.5, 0.1, 0.02)))
    assert caution.startswith("RMSE got worse while robust SD got better: 2.00 % of the numbers lie on another branch")
    assert outputs.cautions(ROW) == []
    assert outputs.cautions(REFUSED) == []
    assert outputs.cautions(replace(ROW, compared=())) == []


def test_caution_where_the_path_did_harm() -> None:
    worse = with_errors("curve", errors(0.3, 0.3), with_errors("variant", errors(0.5, 0.5)))
    harm, float_already = outputs.cautions(worse)
    assert harm == "The path made the error larger, by either figure: keep the direct output"
    assert float_already.startswith("In float already, the network that returns points has 3.0× larger RMSE than the")


def test_advice() -> None:
    (told,) = outputs.advice(ROW)
    assert told == (
        "Without the 3.00 % of the numbers that lie farthest from the path, RMSE is 0.100 instead of 0.200: with "
        "confidence: true the file returns that distance too"
    )
    assert "leave confidence out" in outputs.advice(replace(ROW, confidence=((1.0, 0.2), (0.97, 0.199))))[0]
    as_good = with_errors("fold", errors(0.2, 0.1), with_errors("wide", errors(0.1, 0.05), replace(ROW, confidence=())))
    assert outputs.advice(with_errors("trained", errors(0.201, 0.1), as_good)) == [
        "A direct output that is trained as long is as good: what gains is training, and not the path",
        "A fold is as good, and needs no training: path: fold4",
        "A direct output of 16 bits is better: where the device can return 16 bits, no path is needed",
    ]
    assert outputs.advice(replace(ROW, corners=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))) == []
    assert outputs.advice(REFUSED)[0].endswith("path: fold4")
    assert outputs.advice(replace(ROW, compared=())) == []


def test_what_is_compared_in_order() -> None:
    assert [name for name, _ in outputs.compared(ROW)] == [
        "float model",
        "float model that returns points",
        "direct output, 8 bits",
        "direct output, 16 bits",
        "direct output, 8 bits, trained as long",
        "fold of four, no training",
        "this variant",
    ]
    assert outputs.left_out(replace(ROW, left_out={"fold": "too few"})) == [("fold of four, no training", "too few")]
    assert not outputs.images(ROW)
    assert outputs.images(with_errors("variant", errors(0.1, 0.1, structure=0.9)))
    assert outputs.figure(None) == figures.NONE
    assert outputs.flips(OURS, ROW) == ("1.00 %", "0.50 %")
    assert outputs.flips(CURVE, ROW) == ("0.00 %", None)
    assert outputs.flips(DIRECT, ROW) == (figures.NONE, None)


# The plots


def test_plots() -> None:
    path, confidence = outputs.plots(ROW)
    assert path.summary == "Plot of snake2 in channels 1 and 2, with 3 points of the network."
    assert confidence.summary == (
        "Plot of RMSE without the numbers that lie farthest from the path: 0.200 for 100 % of the numbers and 0.0900 "
        "for 80.00 % of the numbers."
    )
    for chart in (path, confidence):
        assert chart.svg.startswith("<svg")
        assert "<script" not in chart.svg
    assert outputs.plots(REFUSED) == [outputs._confidence(REFUSED)]
    assert outputs.plots(replace(REFUSED, confidence=())) == []


def test_the_path_is_drawn_in_its_own_order_and_in_a_square() -> None:
    svg = outputs.plots(ROW)[0].svg
    (line,) = re.findall(r'<path[^>]* d="(M[^"]*)"[^>]*stroke="var\(--limit\)"', svg)
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+),([\d.]+)", line)]
    assert len(corners) == 4
    (x0, y0), (x1, y1), (x2, y2), (x3, _) = corners
    assert y0 == pytest.approx(y1)
    assert x1 == pytest.approx(x2)
    assert x0 == pytest.approx(x3)
    assert x1 - x0 == pytest.approx(y1 - y2, rel=0.01)


def test_three_channels_are_two_planes() -> None:
    corners, points = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.5)), ((0.5, 0.0, 0.0),)
    first, second = outputs.plots(replace(ROW, corners=corners, points=points, confidence=()))
    assert (first.title, second.title) == ("channels 1 and 2", "channels 2 and 3")


def test_many_points_are_one_light_line() -> None:
    many = outputs.plots(replace(ROW, points=((0.5, 0.5), (0.25, 0.75)) * 1000))[0]
    assert "2,000 numbers" in many.detail
    assert len(many.svg) < 60_000
    (dots,) = re.findall(r'd="(M[^"]*)"[^>]*stroke-linecap="round"', many.svg)
    assert len(re.findall(r"M[\d.]+,[\d.]+Z?", dots)) == 2000
    assert "L" not in dots
