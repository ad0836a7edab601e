"""What the page says of a distilled variant, and the curves it draws."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lowbit.pilot.record import DistillationRow, EpochRow, PointRow, RangeRow, Score, SearchRow, TeacherRow
from lowbit.report import learning
from lowbit.report.figures import Metric

METRIC = Metric("accuracy", share=True, decimals=2)
ROW = DistillationRow(
    "ewgs",
    exact=False,
    loss="kl",
    teacher=TeacherRow(0.934, 0.971, 0.911, ()),
    epochs=(
        EpochRow(1, 0.8, 0.9, 1e-3, 3.0),
        EpochRow(2, 0.2, 0.95, 5e-4, 3.0),
        EpochRow(3, 0.1, 0.94, 1e-5, 3.0),
    ),
    best=2,
    before=0.8,
    after=0.95,
    ranges=(RangeRow("conv.weight_quantizer", -0.51, 0.25, -0.4, 0.2, 0.1, 0.02),),
    post_training=Score(0.901, 0.89, 0.91, 10_000),
    gain=Score(0.0152, 0.0088, 0.0217, 10_000),
)
FOUND = PointRow("surrogate", ("int4",), {"bops": 1.0}, True, 0.1, 0.1, 0.9)
SEARCHED = SearchRow(
    *("surrogate", "kl", True, ("int4", "int8"), {}, (("conv",),), {"bops": 1.0}, ((0.1, 0.0),), 0, (), ()),
    *(FOUND, (FOUND,), (), ROW.epochs, ROW.best, ROW.before, ROW.after, ROW.post_training, ROW.gain),
)
REGRESSION = replace(ROW, loss="mse", teacher=TeacherRow(None, 0.99, None, ()), before=-0.25)


@pytest.mark.parametrize(
    ("gain", "told"),
    [
        (
            ROW.gain,
            "training gained accuracy: +1.52 pp (95 % interval +0.88 to +2.17, paired on the same 10,000 samples).",
        ),
        (Score(-0.02, -0.03, -0.01, 200), "training lost accuracy: −2.00 pp (95 % interval −3.00 to −1.00, paired on"),
        (Score(0.001, -0.01, 0.012, 200), "training did not measurably change accuracy: +0.10 pp (95 % interval −1.00"),
    ],
)
def test_gain_is_told_with_its_interval(gain: Score, told: str) -> None:
    sentence = learning.gain(replace(ROW, gain=gain), METRIC)
    assert sentence.startswith(f"Against post-training alone, which has 90.10 %, {told}")


def test_gain_that_is_not_known() -> None:
    sentence = learning.gain(replace(ROW, gain=None, post_training=None), METRIC)
    assert sentence == "What training gained over post-training alone is not known: the accuracy of that has no value."


def test_gain_of_a_plain_number() -> None:
    row = replace(ROW, gain=Score(0.0123, 0.01, 0.014, 50), post_training=Score(0.9, 0.8, 0.95, 50))
    assert "which has 0.900, training gained r2: +0.012 (95 %" in learning.gain(row, Metric("r2", False, 3))


def test_way_and_teacher_of_a_classifier() -> None:
    assert learning.way(ROW) == (
        "It learned from the float model's outputs (loss kl) for 3 epochs with ewgs quantizers; epoch 2 was kept. "
        "Same prediction as the teacher on held-out inputs: 80.00 % before training, 95.00 % after."
    )
    assert learning.teacher(ROW) == (
        "The teacher is the float model: its largest class probability is 93.40 % on average, under augmentation it "
        "agrees with itself by 97.10 % and it predicts 91.10 % of the labels, on held-out inputs."
    )
    published = replace(ROW, exact=True, quantizer="pact", loss="labels", epochs=ROW.epochs[:1], best=1)
    assert learning.way(published).startswith(
        "It learned from the labels for 1 epoch with pact quantizers as published; epoch 1 was kept."
    )


def test_way_and_teacher_of_a_regression() -> None:
    assert learning.way(REGRESSION).endswith(
        "Closeness to the teacher's outputs (1 at best) on held-out inputs: −0.250 before training, 0.950 after."
    )
    assert learning.teacher(REGRESSION) == (
        "The teacher is the float model: under augmentation it agrees with itself by 0.990, on held-out inputs."
    )
    assert learning.way(replace(REGRESSION, after=None)).endswith("epoch 2 was kept.")


def test_only_ewgs_has_a_delta() -> None:
    assert learning.learns_delta(ROW)
    assert not learning.learns_delta(replace(ROW, quantizer="lsq"))


def test_bounds_have_three_digits() -> None:
    assert learning.bounds(-0.50153, 1234.5) == "−0.502 to 1,230"
    assert learning.bounds(0.0, 0.00012345) == "0 to 0.000123"


def test_a_search_is_told_and_drawn_alike() -> None:
    assert learning.gain(SEARCHED, METRIC) == learning.gain(ROW, METRIC)
    assert learning.curves(SEARCHED) == learning.curves(ROW)
    numbers = replace(SEARCHED, loss="mse", classes=False, before=-0.25)
    assert learning.curves(numbers) == learning.curves(REGRESSION)
    assert learning.came(numbers) == learning.came(REGRESSION)
    assert learning.curves(replace(SEARCHED, epochs=(), best=0)) == []


# The curves


def drawn(svg: str) -> list[tuple[float, float]]:
    """Where Vega drew the points."""
    symbols = svg.partition("mark-symbol")[2].partition("</g>")[0]
    return [(float(x), float(y)) for x, y in re.findall(r"translate\((.+?),(.+?)\)", symbols)]


def test_curves_are_loss_and_agreement() -> None:
    loss, agreement = learning.curves(ROW)
    assert (loss.title, loss.detail) == ("training loss", "against the float model's outputs")
    assert loss.summary == "Plot of training loss by epoch: 0.800 in epoch 1 and 0.100 in epoch 3."
    assert (agreement.title, agreement.detail) == (
        "agreement with the teacher",
        "held-out inputs; epoch 0 is before training",
    )
    assert agreement.summary == (
        "Plot of agreement with the teacher by epoch: 80.00 % before training, 95.00 % in epoch 2, which was kept and "
        "94.00 % in epoch 3."
    )
    assert "loss (kl), log scale" in loss.svg
    assert all("epoch 2 kept" in chart.svg for chart in (loss, agreement))
    assert all("var(--front)" in chart.svg and "var(--ink)" in chart.svg for chart in (loss, agreement))
    assert not any(chart.marks for chart in (loss, agreement))
    assert max(len(chart.svg) for chart in (loss, agreement)) < 10_000


@pytest.mark.parametrize(
    ("scale", "shown"), [(1.0, [">0.2<", ">0.5<"]), (1e-5, [">2e-6<", ">5e-6<"]), (1e4, [">2,000<", ">5,000<"])]
)
def test_axes_are_written_in_full_where_that_fits(scale: float, shown: list[str]) -> None:
    epochs = tuple(replace(epoch, loss=scale * epoch.loss) for epoch in ROW.epochs)
    loss, agreement = (chart.svg for chart in learning.curves(replace(ROW, epochs=epochs)))
    assert all(text in loss for text in shown)
    assert all(f">{percent}<" in agreement for percent in (80, 85, 90, 95))


def test_points_lie_on_common_epochs_and_the_best_is_highest() -> None:
    loss, agreement = (drawn(chart.svg) for chart in learning.curves(ROW))
    assert [len(loss), len(agreement)] == [3, 4]
    assert [x for x, _ in loss] == [pytest.approx(x) for x, _ in agreement[1:]]
    assert min(range(4), key=lambda i: agreement[i][1]) == ROW.best
    assert [y for _, y in loss] == sorted(y for _, y in loss)


def test_learned_labels_are_scored_by_accuracy() -> None:
    chart = learning.curves(replace(ROW, loss="labels"))[1]
    assert (chart.title, chart.detail) == ("accuracy on held-out labels", "held-out inputs")
    assert chart.summary == (
        "Plot of accuracy on held-out labels by epoch: 90.00 % in epoch 1, 95.00 % in epoch 2, which was kept and "
        "94.00 % in epoch 3."
    )


def test_regression_is_drawn_in_plain_numbers() -> None:
    chart = learning.curves(REGRESSION)[1]
    assert "1 less relative squared error" in chart.svg
    assert "%" not in chart.svg
    assert "−0.250 before training" in chart.summary


@pytest.mark.parametrize(
    "epochs",
    [
        (EpochRow(1, 0.5, 0.9, 1e-3, 1.0),),
        (EpochRow(1, 0.0, 1.0, 1e-3, 1.0), EpochRow(2, 0.0, 1.0, 1e-3, 1.0)),
        (EpochRow(1, 1e-9, None, 1e-3, 1.0), EpochRow(2, 1e9, 0.0, 1e-3, 1.0)),
        tuple(EpochRow(n, 1 / n, 1 - 1 / n, 1e-3, 1.0) for n in range(1, 301)),
    ],
    ids=["one epoch", "all equal", "far apart", "many"],
)
def test_any_run_of_epochs_has_its_curves(epochs: tuple[EpochRow, ...]) -> None:
    charts = learning.curves(replace(ROW, epochs=epochs, best=1))
    assert len(charts) == 2
    for chart in charts:
        assert not re.search("NaN|undefined|null", chart.svg)
        assert len(chart.svg) < 30_000
    if len(epochs) > 40:
        assert [len(drawn(chart.svg)) for chart in charts] == [1, 1]  # the kept epoch alone


def test_epochs_without_a_score_have_the_loss_alone() -> None:
    epochs = tuple(replace(epoch, agreement=None) for epoch in ROW.epochs)
    assert [chart.title for chart in learning.curves(replace(ROW, epochs=epochs))] == ["training loss"]


def test_names_of_the_loss_are_escaped_in_the_drawing() -> None:
    svg = learning.curves(replace(ROW, loss="<script>alert(1)</script>"))[0].svg
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
