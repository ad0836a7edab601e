"""The roll-out: its steps, their figures against the A/B test's own formula, and commands that the program takes."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pages import FAILED, FLOAT, HOSTILE, HOSTILE_NAME, RUN, W2A8, W4A8, W8A8
from typer.main import get_command

from lowbit.cli import app
from lowbit.pilot.abtest import compare, samples_needed
from lowbit.pilot.record import CheckRow, Kpi, Limits, Run, Score, Trial
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
    assert W4A8.difference is not None
    gap = W4A8.difference
    variance = gap.samples * ((gap.high - gap.low) / (2 * 1.96)) ** 2
    expected = samples_needed(gap.value, 0.005, variance), samples_needed(0.0, 0.005, variance)
    assert rollout.samples(W4A8, replace(RUN, kpi=TOLERANT)) == expected
    text = told(replace(RUN, kpi=TOLERANT))["Shadow run"]
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
    planned, _ = rollout.samples(replace(W4A8, difference=test.effect), replace(RUN, kpi=Kpi("accuracy", 0.5, margin)))
    assert planned == pytest.approx(test.needed, rel=0.002)


def test_the_margin_is_the_tolerance_or_what_float_has_to_spare() -> None:
    assert rollout.margin(W4A8, replace(RUN, kpi=TOLERANT)) == 0.005
    assert rollout.margin(W4A8, RUN) == pytest.approx(0.9185 - 0.91, abs=1e-9)
    assert rollout.margin(W4A8, run(W4A8)) == 0.01  # float was not measured, and accuracy is a share
    assert rollout.margin(W4A8, run(W4A8, kpi=Kpi("m.py:own", 3.0))) is None


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
    score = W4A8.score
    assert score is not None
    number = samples_needed(score.value - 0.91, 0.0, score.samples * ((score.high - score.low) / 3.92) ** 2)
    assert number is not None
    assert f"accuracy on labelled answers is below 91.0 %. Looked at after every {number:,} of them" in text
    assert "“worse” with the margin 0.5 pp" in text
    assert "above 0.500 ms" in text
    only = told(replace(RUN, kpi=Kpi("accuracy", None, 0.005)))["Roll back"]
    assert "is below" not in only


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
    number = samples_needed(score.value - 0.91, 0.0, score.samples * ((score.high - score.low) / 3.92) ** 2)
    assert rollout.instead(found)[0] == f"w3a8: about {number:,} test samples in all would decide."
    assert rollout.instead(run(FLOAT, W2A8, FAILED)) == [
        "Keep the float model, and see below which methods were not tried here."
    ]
    assert rollout.instead(run(FLOAT)) == []
