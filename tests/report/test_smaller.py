"""A run whose metric is better the smaller it is: the page says of it what it says of its mirror image."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
from pages import DISTILLATION, FLOAT, RUN, W2A8, W4A8, W8A8, Outline
from typer.main import get_command

from lowbit.cli import app
from lowbit.cli.shown import told
from lowbit.pilot.record import CheckRow, Kpi, Limits, RepeatRow, Run, Score, Trial
from lowbit.pilot.statistics import checks, worst
from lowbit.report import checklist, decision, figures, learning, pareto, requirements, risks, rollout
from lowbit.report.charts import HEIGHT
from lowbit.report.figures import Metric
from lowbit.report.page import render

LARGER = Kpi("m.py:closeness", 0.905, 0.012)
SMALLER = Kpi("m.py:error", None, 0.012, smaller_is_better=True, maximum=0.095)
SEEDS = tuple(RepeatRow(n, Score(v, v - 0.01, v + 0.01, 10_000), None, 240_000) for n, v in ((1, 0.90), (2, 0.93)))
SEEDED = replace(W4A8, name="seeded", repeats=SEEDS, own=RepeatRow(0, W4A8.score, W4A8.difference, 240_000))
W3A8 = replace(
    W2A8, name="w3a8", score=Score(0.91, 0.902, 0.918, 10_000), difference=Score(-0.0085, -0.0128, -0.0042, 10_000)
)
TRIALS = (FLOAT, W8A8, W4A8, W3A8, W2A8, SEEDED)


def judged(kpi: Kpi, *trials: Trial) -> Run:
    rows = [replace(one, checks=checks(one, kpi, Limits())) for one in trials]
    return replace(RUN, kpi=kpi, trials=tuple(replace(one, verdict=worst(one.checks)) for one in rows))


def error(score: Score | None) -> Score | None:
    """1 less a score."""
    return None if score is None else Score(1 - score.value, 1 - score.high, 1 - score.low, score.samples)


def mirrored(trial: Trial) -> Trial:
    """The trial as it is where the error is the metric."""

    def row(one: RepeatRow) -> RepeatRow:
        return replace(one, score=error(one.score), difference=-one.difference if one.difference else None)

    trained = trial.distillation
    if trained and trained.gain:
        trained = replace(trained, post_training=error(trained.post_training), gain=-trained.gain)
    return replace(
        trial,
        score=error(trial.score),
        difference=-trial.difference if trial.difference else None,
        own=row(trial.own) if trial.own else None,
        repeats=tuple(map(row, trial.repeats)),
        distillation=trained,
    )


RUNS = judged(LARGER, *TRIALS), judged(SMALLER, *map(mirrored, TRIALS))
ERRORS = RUNS[1]


def test_verdicts_and_what_is_taken_are_those_of_the_mirror_image() -> None:
    verdicts = [[one.verdict for one in run.trials] for run in RUNS]
    assert verdicts[0] == verdicts[1]
    assert {*verdicts[0]} == {"meets", "borderline", "misses"}
    taken = [decision.recommended(run) for run in RUNS]
    assert [one.name for one in taken if one] == ["w4a8"] * 2
    as_small = replace(W8A8, name="as-small", file_bytes=W4A8.file_bytes)
    for run in (judged(LARGER, FLOAT, W4A8, as_small), judged(SMALLER, *map(mirrored, (FLOAT, W4A8, as_small)))):
        best = decision.recommended(run)
        assert best is not None
        assert best.name == "as-small"  # which has the better figure
    assert "w8a8 has the most m.py:closeness: 0.9181 against 0.9162 of w4a8." in decision.remark(RUNS[0])
    assert "w8a8 has the least m.py:error: 0.0819 against 0.0838 of w4a8." in decision.remark(ERRORS)
    hard = [judged(replace(LARGER, minimum=0.99), *TRIALS), judged(replace(SMALLER, maximum=0.01), *ERRORS.trials)]
    assert [re.findall(r"the best, ([\w-]+),", decision.headline(run)) for run in hard] == [["w8a8"]] * 2


def test_fronts_and_axes_are_turned_around() -> None:
    fronts = [pareto.fronts(run) for run in RUNS]
    assert fronts[0] == fronts[1]
    ups, downs = (pareto._plots(run)[0] for run in RUNS)
    assert downs.up.low == pytest.approx(1 - ups.up.high)
    assert downs.up.high == pytest.approx(1 - ups.up.low)
    assert [line.name for line in downs.lines] == ["float + 0.012", "maximum 0.095"]
    assert [line.value for line in downs.lines] == [pytest.approx(1 - line.value) for line in ups.lines]
    one, other = (next(p for p in plot.points if p.trial.name == "w2a8") for plot in (ups, downs))
    assert not ups.is_inside(one)
    assert not downs.is_inside(other)
    svg = pareto.draw(ERRORS)[0].svg
    assert "w2a8 0.1573 ↑" in svg
    assert "w2a8 0.8427 ↓" in pareto.draw(RUNS[0])[0].svg
    shade = next(layer for layer in downs.layers() if layer["mark"]["type"] == "rect")
    assert shade["data"]["values"] == [{"value": downs.bound, "end": downs.up.high}]
    assert downs.down(other.score.value) == 0 == HEIGHT - ups.down(one.score.value)
    strips = [pareto.strip(run) for run in RUNS]
    assert strips[0] is not None
    assert strips[1] is not None
    assert strips[1].at(0.09) == pytest.approx(100 - strips[0].at(0.91))
    assert (figures.bound(RUNS[0]), figures.bound(ERRORS)) == (0.905, 0.095)
    alone = [replace(run, kpi=replace(run.kpi, minimum=None, maximum=None)) for run in RUNS]
    assert [figures.bound(run) for run in alone] == [pytest.approx(0.9065), pytest.approx(0.0935)]


def test_requirements_say_on_which_side_they_are() -> None:
    bound, change = requirements.of_trial(ERRORS.trials[2], ERRORS)
    assert (bound.name, bound.asked, bound.state) == ("m.py:error", "≤ 0.095", "met")
    assert (change.figure, change.asked) == ("+0.0023 (+0.0001 to +0.0044)", "≤ +0.012")
    assert decision.asked(ERRORS) == "m.py:error ≤ 0.095 and at most 0.012 above float"
    needs = [[one.needs for trial in run.trials for one in requirements.of_trial(trial, run)] for run in RUNS]
    assert needs[0] == needs[1]
    assert any("test samples in all would decide" in one for one in needs[1])


def test_risks_and_methods_weigh_the_same() -> None:
    """What surely loses, training that made it worse, and seeds on both sides of what is asked."""
    worse = replace(DISTILLATION, gain=Score(-0.01, -0.015, -0.005, 10_000))
    trials = (*TRIALS, replace(W4A8, name="worse", distillation=worse))
    runs = judged(LARGER, *trials), judged(SMALLER, *map(mirrored, trials))
    found = [
        [(risk.severity, risk.what[:30]) for one in run.trials for risk in risks.of_trial(one, run)] for run in runs
    ]
    assert found[0] == found[1]
    said = [risk.what for trial in runs[1].trials for risk in risks.of_trial(trial, runs[1])]
    assert "training made it worse than post-training alone" in said
    assert "its seeds lie on both sides of what is asked: m.py:error from 0.0700 to 0.1000, asked ≤ 0.095" in said
    assert any(one.startswith("it surely loses something against float: +0.00") for one in said)
    fits = [[(one.fit, one.why) for one in checklist.methods(run)] for run in runs]
    assert fits[0] == fits[1]


def test_the_roll_out_compares_errors() -> None:
    plans = [rollout.samples(run.trials[2], run) for run in RUNS]
    assert plans[0] == plans[1] != (None, None)
    assert [rollout.margin(replace(run, kpi=replace(run.kpi, tolerance=None))) for run in RUNS] == [0.013, 0.013]
    stages = {stage.name: stage for stage in rollout.stages(ERRORS)}
    (command,) = stages["Shadow run"].commands
    assert command.endswith("--label truth --metric m.py:error --smaller-is-better --margin 0.012")
    _, verb, *arguments = shlex.split(command)
    get_command(app).commands[verb].make_context(verb, [*arguments])  # type: ignore[attr-defined]
    assert "m.py:error on labelled answers is above 0.095." in " ".join(stages["Roll back"].sentences)
    assert "is below" not in " ".join(stages["Roll back"].sentences)


def test_a_gain_is_a_smaller_error() -> None:
    metric = Metric.of(ERRORS)
    better = replace(DISTILLATION, gain=Score(-0.02, -0.03, -0.01, 100))
    worse = replace(DISTILLATION, gain=Score(0.02, 0.01, 0.03, 100))
    assert "training improved m.py:error, of which smaller is better: −0.0200 (" in learning.gain(better, metric)
    assert "training made m.py:error worse, of which smaller is better: +0.0200 (" in learning.gain(worse, metric)
    assert "training gained accuracy: " in learning.gain(worse, Metric.of(RUN))


def test_the_terminal_says_at_most() -> None:
    metric = Metric.of(ERRORS)
    bound = CheckRow("maximum", 0.095, 0.1, 0.1, 0.1, "misses")
    change = CheckRow("tolerance", 0.012, 0.1, 0.1, 0.1, "misses")
    assert told(bound, metric) == "0.1000, at most 0.095 is asked"
    assert told(change, metric) == "+0.1000, at most 0.012 is asked"


def test_the_page_says_that_smaller_is_better() -> None:
    larger, smaller = (replace(run, trials=run.trials[:2]) for run in RUNS)
    page = Outline(render(smaller)).text
    assert "Down and to the left is better, since m.py:error is better the smaller it is. The line joins" in page
    assert (
        "m.py:error is better the smaller it is. The bar shows the interval; the line in it, the most that is asked"
        in page
    )
    assert "Up and to the left" not in page
    japanese = Outline(render(smaller, language="ja")).text
    assert "m.py:errorは小さいほど良いため、左下ほど優れています。" in japanese
    assert "is better" not in japanese
    assert "Up and to the left is better. The line joins" in Outline(render(larger)).text
