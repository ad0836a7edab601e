"""The roll-out: its steps, their figures against the A/B test's own formula, and commands that the program takes."""

from __future__ import annotations

import bisect
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import FAILED, FLOAT, HOSTILE, HOSTILE_NAME, RUN, W2A8, W4A8, W8A8
from scipy import stats
from typer.main import get_command
from typer.testing import CliRunner

from lowbit.cli import app
from lowbit.pilot.abtest import compare
from lowbit.pilot.power import differing, needed_for_agreement, needed_for_fall, needed_for_pairs
from lowbit.pilot.record import CheckRow, Kpi, Limits, RepeatRow, Run, Score, Trial
from lowbit.report import grounds, risks, rollout

TOLERANT = Kpi("accuracy", 0.91, 0.005)


def run(*trials: Trial, **fields: Any) -> Run:
    return replace(RUN, trials=trials, **fields)


def told(found: Run) -> dict[str, str]:
    return {stage.name: " ".join((*stage.sentences, *stage.commands)) for stage in rollout.stages(found)}


def test_steps_are_in_their_order_and_speak_of_the_recommended_variant() -> None:
    assert [*told(RUN)] == ["Shadow run", "Canary", "Watch", "Roll back", "Keep the float file"]
    assert "Run w4a8 beside the float model" in told(RUN)["Shadow run"]
    assert "variants/float/model.onnx (1.18 MB)" in told(RUN)["Keep the float file"]


def test_samples_of_the_shadow_run_are_those_of_the_ab_test() -> None:
    gap = recorded(40, 20, 10_000)
    best = replace(W4A8, difference=gap)
    expected = needed_for_pairs(0.006, gap.value, 0.005), needed_for_pairs(0.006, 0.0, 0.005)
    assert rollout.samples(best, replace(RUN, kpi=TOLERANT)) == expected
    text = told(run(FLOAT, best, kpi=TOLERANT))["Shadow run"]
    assert f"at most 0.5 pp takes about {expected[0]:,} such samples" in text
    assert f"If there is no loss at all, {expected[1]:,} do." in text


def test_samples_agree_with_a_comparison_of_such_outcomes() -> None:
    """Outcomes with the effect and the spread of a record: `compare` plans as many samples from them."""
    generator = np.random.default_rng(0)
    a = generator.random(2_000) < 0.9
    b = np.where(generator.random(2_000) < 0.03, ~a, a)
    margin = 0.004 - float(b.mean() - a.mean())  # so that it is undecided
    test = compare(a.astype(int), b.astype(int), metric="hits", margin=margin)
    assert test.verdict == "undecided"
    planned = rollout.samples(replace(W4A8, difference=test.effect), replace(RUN, kpi=Kpi("accuracy", 0.5, margin)))
    assert planned[0] == test.needed


def recorded(lost: int, won: int, count: int) -> Score:
    """The difference that a pilot records where one model alone is right so often."""
    hits = [1] * (count - won - lost) + [0] * won + [1] * lost, [1] * (count - won - lost) + [1] * won + [0] * lost
    return compare(*hits, metric="hits").effect


@pytest.mark.parametrize("count", [130, 600, 10_000])
def test_where_nothing_differed_the_plan_still_decides(count: int) -> None:
    """So many samples that do not differ are what the comparison calls no worse, and far fewer are not."""
    best = replace(W4A8, difference=recorded(0, 0, count))
    number, _ = rollout.samples(best, replace(RUN, kpi=Kpi("accuracy", 0.5, 0.01)))
    assert number is not None
    assert compare([1] * number, [1] * number, metric="hits", margin=0.01).passed
    assert not compare([1] * (number // 2), [1] * (number // 2), metric="hits", margin=0.01).passed
    agreeing = replace(RUN, kpi=Kpi("agreement", None, 0.1))
    assert rollout.samples(replace(W4A8, difference=recorded(0, 0, count)), agreeing) == (100, 100)  # not 2


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 9), (40, 2)])
def test_differing_samples_are_read_back_from_the_interval(lost: int, won: int) -> None:
    assert differing(recorded(lost, won, 600)) * 600 == pytest.approx(lost + won)


def test_agreement_is_planned_as_its_comparison_plans() -> None:
    best = replace(W4A8, difference=recorded(30, 0, 1_000))
    test = compare([0] * 1_000, [1] * 30 + [0] * 970, metric="agreement", margin=0.04)
    assert test.verdict == "undecided"
    planned, _ = rollout.samples(best, run(FLOAT, best, kpi=Kpi("agreement", None, 0.04)))
    assert planned == test.needed


def test_of_several_seeds_the_file_of_the_first_is_planned_for() -> None:
    own = RepeatRow(0, W4A8.score, recorded(20, 10, 10_000), 240_000)
    seeded = replace(W4A8, difference=Score(-0.002, -0.02, 0.016, 10_000), own=own, repeats=(replace(own, seed=1),))
    found = run(FLOAT, seeded, kpi=TOLERANT)
    assert rollout.samples(seeded, found)[0] == needed_for_pairs(0.003, -0.001, 0.005)
    assert "measured here (−0.10 pp)" in told(found)["Shadow run"]


@pytest.mark.parametrize("loss", [0.005, 0.008])
def test_a_loss_of_the_margin_or_more_cannot_be_shown_to_be_less(loss: float) -> None:
    best = replace(W4A8, difference=recorded(round(10_000 * loss), 0, 10_000))
    text = told(run(FLOAT, best, kpi=TOLERANT))["Shadow run"]
    assert f"shows that it loses less than 0.5 pp, if the loss is the one measured here (−{100 * loss:.2f} pp)" in text
    assert "no width" not in text
    flat = replace(W4A8, difference=Score(0.0, 0.0, 0.0, 10_000))
    assert "no width" in told(run(FLOAT, flat, kpi=Kpi("r2", None, 0.005)))["Shadow run"]


def test_the_margin_is_the_tolerance_or_what_float_has_to_spare() -> None:
    assert rollout.margin(replace(RUN, kpi=TOLERANT)) == 0.005
    assert rollout.margin(RUN) == pytest.approx(0.9185 - 0.91, abs=1e-9)
    assert rollout.margin(run(W4A8)) == 0.01  # float was not measured, and accuracy is a share
    assert rollout.margin(run(W4A8, kpi=Kpi("m.py:own", 3.0))) is None


def test_the_heaviest_risk_decides_the_share_of_the_canary() -> None:
    shares = []
    for weight in risks.SEVERITIES:
        trial = {
            "high": replace(W8A8, verification=None),
            "medium": replace(W8A8, latencies=tuple(replace(r, median_ms=1e3) for r in W8A8.latencies)),
            "low": replace(W8A8, difference=Score(0.0, -0.001, 0.001, 10)),
        }[weight]
        found = run(FLOAT, trial, W4A8)
        assert {risk.severity for risk in (*risks.of_trial(trial, found), *grounds.of_run(found))} >= {weight}
        shares.append(rollout.canary(trial, found))
    assert shares == [0.01, 0.05, 0.1]
    assert "1 %" in told(run(FLOAT, replace(W8A8, verification=None)))["Canary"]
    assert "Settle the risk marked high above first." in told(run(FLOAT, replace(W8A8, verification=None)))["Canary"]


def test_the_criterion_to_go_back_has_the_numbers_of_the_kpi() -> None:
    text = told(replace(RUN, kpi=TOLERANT, limits=Limits(latency=0.5)))["Roll back"]
    number = needed_for_fall(0.89, 0.91, 100)
    assert (
        f"accuracy on labelled answers is below 91.0 %. Looked at after every {number:,} of them, a fall to 89.0 %"
        in text
    )
    assert "“worse” with the margin 0.5 pp" in text
    assert "above 0.500 ms" in text
    only = told(replace(RUN, kpi=Kpi("accuracy", None, 0.005)))["Roll back"]
    assert "is below" not in only


@pytest.mark.parametrize(("fall", "limit", "least"), [(0.89, 0.91, 100), (0.965, 0.985, 1), (0.3, 0.5, 1)])
def test_a_fall_is_seen_in_four_looks_of_five(fall: float, limit: float, least: int) -> None:
    """By scipy's own Wilson interval, and not with fewer samples; a higher value is no fall."""
    number = needed_for_fall(fall, limit, least)
    assert number is not None
    for count, enough in ((number, True), (number - 1, number == least), (number // 2, False)):

        def reaches(hits: int, count: int = count) -> bool:
            return float(stats.binomtest(hits, count).proportion_ci(method="wilson").high) >= limit

        fewest = bisect.bisect_left(range(count), True, key=reaches)
        assert (stats.binom.cdf(fewest - 1, count, fall) >= 0.8) == enough
    assert needed_for_fall(limit, limit) is needed_for_fall(limit + 0.01, limit) is None


@pytest.mark.parametrize("name", ["w4a8", "it's", HOSTILE])
def test_commands_are_ones_that_the_program_takes(name: str) -> None:
    """Parsed by the program itself, whatever a variant is called; it ends where the log is not there."""
    best = replace(W4A8, name=name, file=f"variants/{name}/model.onnx")
    found = run(FLOAT, best, kpi=TOLERANT)
    commands = [command for stage in rollout.stages(found) for command in stage.commands]
    assert len(commands) == 2
    for command in commands:
        program, verb, *arguments = shlex.split(command)
        assert program == "lowbit"
        parser = get_command(app).commands[verb]  # type: ignore[attr-defined]
        parser.make_context(verb, [*arguments], resilient_parsing=False)
    assert name in shlex.split(commands[0])


def test_agreement_needs_no_truth() -> None:
    found = run(FLOAT, W4A8, kpi=Kpi("agreement", 0.9))
    assert "truth" not in told(found)["Shadow run"]
    assert "--metric agreement" in told(found)["Shadow run"]
    assert "labelled" not in " ".join(told(found).values())


def test_a_canary_is_answered_by_float_too() -> None:
    assert "if every answer gets a label; let float answer the same ones" in told(RUN)["Canary"]


def test_the_comparison_of_cosines_runs_as_the_page_says_it(tmp_path: Path) -> None:
    best = replace(W4A8, difference=Score(-0.002, -0.003, -0.001, 500), score=Score(0.998, 0.997, 0.999, 500))
    reference = replace(FLOAT, score=Score(1.0, 1.0, 1.0, 500))
    found = run(reference, best, kpi=Kpi("cosine", 0.99))
    assert "truth" not in told(found)["Shadow run"]
    assert "below 0.99" in told(found)["Roll back"]
    command = shlex.split(rollout.compare(best, found))[1:]
    outputs = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    np.savez(tmp_path / "log.npz", float=outputs, w4a8=outputs + 0.05 * outputs[::-1])
    command[command.index("log.npz")] = str(tmp_path / "log.npz")
    ran = CliRunner().invoke(app, command)
    assert (ran.exit_code, "cosine 0.99" in ran.output) == (0, True), ran.output


def test_a_metric_of_unknown_unit_asks_for_a_margin() -> None:
    text = told(run(W4A8, kpi=Kpi("m.py:own", 0.9)))["Shadow run"]
    assert "Choose the margin first" in text
    assert text.endswith("--margin MARGIN")


def test_without_a_variant_that_goes_it_tells_what_to_do_instead() -> None:
    assert HOSTILE_NAME.score is not None
    score = HOSTILE_NAME.score
    row = CheckRow("minimum", 0.91, score.value, score.low, score.high, "borderline")
    open_one = replace(HOSTILE_NAME, name="w3a8", checks=(row,))
    found = run(FLOAT, open_one, W2A8)
    assert rollout.stages(found) == []
    number = needed_for_agreement(1 - score.value, 0.09)
    assert rollout.instead(found)[0].endswith(f": about {number:,} test samples in all would decide.")
    assert "variants are trained and measured anew" in rollout.instead(found)[1]
    assert rollout.instead(run(FLOAT, W2A8, FAILED)) == [
        "Keep the float model, and see below which methods were not tried here."
    ]
    assert rollout.instead(run(replace(FLOAT, verdict="misses"), W2A8))[0].startswith("Nothing that was measured meets")
    assert rollout.instead(run(FLOAT)) == []
