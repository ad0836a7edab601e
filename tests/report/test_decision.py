"""Go, no-go or more data needed: the words, the sentence for who decides, and the samples that would decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pages import DISTILLATION, FAILED, FLOAT, HOSTILE_NAME, RUN, SEARCH, W2A8, W4A8, W8A8, Outline
from scipy import stats

from lowbit.pilot.power import needed_for_pairs, samples_needed
from lowbit.pilot.record import (
    CheckRow,
    ComparedRow,
    ErrorsRow,
    Kpi,
    Limits,
    OutputRow,
    RepeatRow,
    Run,
    Score,
    Trial,
    Verdict,
)
from lowbit.pilot.spec import load_spec
from lowbit.pilot.statistics import Scoring
from lowbit.report import changes, checklist, decision, requirements, risks, rollout
from lowbit.report.page import render

ASKED = "accuracy ≥ 91.0 %"
FASTER = replace(W8A8, name="faster", latencies=(replace(W8A8.latencies[0], median_ms=0.2), *W8A8.latencies[1:]))


def run(*trials: Trial, **fields: Any) -> Run:
    return replace(RUN, trials=trials, **fields)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            RUN,
            f"Go: take w4a8, the smallest of 2 variants that meet {ASKED}: 240 kB, 4.9× smaller than float.",
        ),
        (run(), "Nothing was measured: the run has no variant, and no float baseline that ran."),
        (run(FLOAT), f"Only the float model was measured: at 91.85 % it meets {ASKED}."),
        (
            run(replace(FLOAT, verdict="borderline")),
            f"Only the float model was measured: at 91.85 % it is borderline for {ASKED}.",
        ),
        (run(FLOAT, FAILED), "No-go: the only variant could not be measured."),
        (run(replace(FAILED, recipe=None), FAILED, FAILED), "No-go: none of 2 variants could be measured."),
        (
            run(FLOAT, W2A8, FAILED),
            f"No-go: none of 2 variants meets {ASKED}; the best, w2a8, has 84.27 %: stay with the float model.",
        ),
        (
            run(FLOAT, W2A8),
            f"No-go: the only variant, w2a8, misses {ASKED}, at 84.27 %; stay with the float model.",
        ),
        (
            run(FLOAT, replace(HOSTILE_NAME, name="w3a8"), W2A8),
            f"More data needed: none of 2 variants surely meets {ASKED}; w3a8 may: accuracy 91.05 % (90.50 to 91.60), "
            "asked ≥ 91.0 %.",
        ),
        (
            run(replace(FLOAT, verdict="misses"), W2A8),
            f"No-go: the only variant, w2a8, misses {ASKED}, at 84.27 %, and so does the float model.",
        ),
        (
            run(replace(FLOAT, verdict="misses"), W2A8, FAILED),
            f"No-go: none of 2 variants meets {ASKED}, nor does the float model; the best, w2a8, has 84.27 %.",
        ),
        (
            run(replace(FAILED, recipe=None), W2A8),
            f"No-go: the only variant, w2a8, misses {ASKED}, at 84.27 %.",
        ),
        (run(W8A8, W2A8), f"Go: take w8a8, the only one of 2 variants that meets {ASKED}: 372 kB."),
        (
            run(FLOAT, replace(W8A8, file_bytes=2_000_000)),
            f"Go: take w8a8, the only variant, which meets {ASKED}: 2.00 MB.",
        ),
        (
            run(FLOAT, W8A8, W4A8, FASTER, limits=Limits(latency=0.5)),
            "Go: take faster, the fastest of 3 variants that meet all that was asked: 0.200 ms, 4.1× faster, 372 kB, "
            "3.2× smaller than float.",
        ),
        (
            run(FLOAT, W8A8, W4A8, limits=Limits(bops=1e12)),
            "Go: take w4a8, with the fewest BOPs of 2 variants that meet all that was asked: 240 kB, 4.9× smaller "
            "than float.",
        ),
        (
            run(FLOAT, W8A8, kpi=Kpi("accuracy", None, 0.01)),
            "Go: take w8a8, the only variant, which meets accuracy at most 1.0 pp below float: 372 kB, 3.2× smaller "
            "than float.",
        ),
    ],
)
def test_a_run_of_any_trials_has_a_sentence(found: Run, expected: str) -> None:
    assert decision.headline(found) == expected


@pytest.mark.parametrize("trials", [(), (FLOAT,), (FLOAT, FAILED), (replace(FAILED, recipe=None), FAILED), (W2A8,)])
def test_a_run_of_any_trials_has_a_page(trials: tuple[Trial, ...]) -> None:
    found = run(*trials)
    assert decision.headline(found) in Outline(render(found)).text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_remark_counts_and_names_what_is_more_accurate() -> None:
    assert decision.remark(RUN) == (
        "All 4 variants: 2 go, 1 more data needed and 1 failed. Of those that are go, w8a8 has the most accuracy: "
        "91.81 % against 91.62 % of w4a8. The float model has 91.85 % (95 % interval 91.30 to 92.40)."
    )
    assert "would itself be: no-go" in decision.remark(run(replace(FLOAT, verdict="misses"), W8A8))


def test_of_two_as_small_the_more_accurate_is_taken() -> None:
    twin = replace(W8A8, name="twin", file_bytes=W4A8.file_bytes)
    best = decision.recommended(run(FLOAT, W4A8, twin))
    assert best is twin


CHECKS = (
    CheckRow("minimum", 0.91, 0.9131, 0.9074, 0.9184, "borderline"),
    CheckRow("tolerance", -0.01, -0.0054, -0.0081, -0.0027, "meets"),
    CheckRow("size", 250_000, 240_000, 240_000, 240_000, "meets"),
    CheckRow("bops", 3e9, 3.61e9, 3.61e9, 3.61e9, "misses"),
    CheckRow("latency", 0.4, 0.41, 0.38, 0.45, "borderline"),
)
OPEN = replace(
    W4A8,
    verdict="misses",
    checks=CHECKS,
    score=Score(0.9131, 0.9074, 0.9184, 10_000),
    difference=Score(-0.0054, -0.0081, -0.0027, 10_000),
)


def test_every_requirement_is_told_with_its_figure_and_what_was_asked() -> None:
    told = [(one.name, one.figure, one.asked, one.state) for one in requirements.of_trial(OPEN, RUN)]
    assert told == [
        ("accuracy", "91.31 % (90.74 to 91.84)", "≥ 91.0 %", "open"),
        ("accuracy from float", "−0.54 pp (−0.81 to −0.27)", "≥ −1.0 pp", "met"),
        ("file size", "240 kB", "≤ 250 kB", "met"),
        ("BOPs", "3.61 G", "≤ 3.00 G", "missed"),
        ("latency", "0.410 ms (0.380 to 0.450)", "≤ 0.400 ms", "open"),
    ]
    page = Outline(render(run(FLOAT, OPEN))).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "accuracy from float −0.54 pp (−0.81 to −0.27) , asked ≥ −1.0 pp: met" in page
    assert "measure again on a quiet machine" in page


@pytest.mark.parametrize("value", [0.92, 0.9])
def test_needed_samples_decide_about_a_minimum_in_four_tests_of_five(value: float) -> None:
    """Against scipy's own Wilson interval, for every number of hits that can come."""
    check = replace(CHECKS[0], value=value)
    number = requirements.needed(check, replace(OPEN, score=Score(value, 0.8, 0.99, 100)), RUN)
    assert number is not None
    hits = np.arange(number + 1)[np.abs(np.arange(number + 1) / number - value) < 6 * (value / number) ** 0.5]
    intervals = [stats.binomtest(int(k), number).proportion_ci(method="wilson") for k in hits]
    decided = [(one.low if value > 0.91 else -one.high) > (0.91 if value > 0.91 else -0.91) for one in intervals]
    assert stats.binom.pmf(hits[decided], number, value).sum() == pytest.approx(0.8, abs=0.02)
    told = requirements.of_trial(replace(OPEN, checks=(check,), score=Score(value, 0.8, 0.99, 100)), RUN)[0].needs
    assert f"about {number:,} test samples in all would decide" in told


def test_needed_samples_decide_about_a_tolerance_and_about_numbers() -> None:
    gap = statistics_of(lost=30, won=20, count=600)
    check = CheckRow("tolerance", -0.03, gap.value, gap.low, gap.high, "borderline")
    found = requirements.needed(check, replace(OPEN, difference=gap), RUN)
    assert found == needed_for_pairs(50 / 600, gap.value, 0.03)
    variance = 600 * ((gap.high - gap.low) / (2 * 1.96)) ** 2
    numbers = requirements.needed(check, replace(OPEN, difference=gap), run(FLOAT, kpi=Kpi("r2", None, 0.03)))
    assert numbers == samples_needed(gap.value + 0.03, 0.0, variance)


def statistics_of(lost: int, won: int, count: int) -> Score:
    """The difference that a pilot records where one model alone is right so often."""
    a, b = np.ones((2, count, 1), dtype=np.float32)
    a[:won], b[won : won + lost] = -1, -1
    return Scoring("agreement", None, np.ones_like(b)).difference(b, a)


def test_samples_do_not_decide_what_lies_on_the_limit_or_spreads_by_seeds() -> None:
    on_limit = replace(CHECKS[0], value=0.91)
    assert requirements.needed(on_limit, OPEN, RUN) is None
    told = requirements.of_trial(replace(OPEN, checks=(on_limit,)), RUN)[0].needs
    assert told == "its value lies on the limit, where no number of samples decides"
    repeated = replace(OPEN, repeats=(RepeatRow(1, OPEN.score, OPEN.difference, 240_000),))
    assert requirements.needed(CHECKS[0], repeated, RUN) is None
    assert "its seeds differ" in requirements.of_trial(repeated, RUN)[0].needs


SLOW = replace(W4A8, verdict="borderline", checks=(replace(CHECKS[0], verdict="meets"), CHECKS[4]))


def test_an_open_latency_is_no_question_of_samples() -> None:
    found = run(FLOAT, SLOW, limits=Limits(latency=0.4))
    assert decision.headline(found) == (
        "Not settled: the only variant, w4a8, may meet all that was asked or not: latency 0.410 ms (0.380 to 0.450), "
        "asked ≤ 0.400 ms."
    )
    assert decision.remark(run(FLOAT, SLOW, W2A8)).startswith("All 2 variants: 1 not settled and 1 no-go.")
    (told,) = rollout.instead(found)
    assert told.startswith("w4a8: for latency ≤ 0.400 ms: measure again on a quiet machine (delete latency.json")
    page = Outline(render(found)).text
    assert "not settled a cost lies across its limit" in page  # in the glossary
    assert "it lies on both sides of what was asked" in page.lower()
    assert "a cost lies across its limit" not in Outline(render(RUN)).text
    both = replace(SLOW, checks=(CHECKS[0], CHECKS[4]))
    assert decision.said(both) == "more data needed"
    assert any("Decide once" in one for one in rollout.instead(run(FLOAT, both)))


@pytest.mark.parametrize(
    ("what", "value", "told"),
    [
        ("size", 29_880, "its seeds made files of 29,880 to 31,000 bytes; that of seed 0, the one to deploy, fits"),
        ("size", 30_500, "files of 29,880 to 31,000 bytes; that of seed 0, the one to deploy, does not fit"),
        ("bops", 29_880, "its seeds take 29,880 to 31,000 BOPs; the file of seed 0, the one to deploy, fits"),
        ("bops", 31_000, "the file of seed 0, the one to deploy, does not fit: name one first whose file does"),
    ],
)
def test_seeds_on_both_sides_of_a_cost_are_told_with_their_span(what: Any, value: float, told: str) -> None:
    check = CheckRow(what, 30_000, value, 29_880, 31_000, "borderline")
    seeded = replace(OPEN, checks=(check,), repeats=(RepeatRow(1, OPEN.score, OPEN.difference, 31_000),))
    (one,) = requirements.of_trial(seeded, RUN)
    assert told in one.needs
    assert ("(29.9 to 31.0 kB)" if what == "size" else "(29.9 to 31.0 K)") in one.figure
    assert requirements.needed(check, seeded, RUN) is None


@pytest.mark.parametrize(
    ("verdict", "word"),
    [("meets", "go"), ("borderline", "more data needed"), ("misses", "no-go"), ("failed", "failed")],
)
def test_words_of_verdicts(verdict: Verdict, word: str) -> None:
    assert decision.word(verdict) == word
    assert decision.meaning(verdict).endswith(".")
    assert [one for one, _, _ in decision.words(RUN) if one == word] == [word]  # each word is explained once


def test_every_seed_has_a_row() -> None:
    rows = tuple(RepeatRow(i, Score(0.91 + i / 1000, 0.9, 0.93, 10_000), None, 240_000) for i in (1, 2))
    failed = RepeatRow(3, None, None, 0, "no memory <b>")
    seeded = replace(W4A8, repeats=(*rows, failed), own=RepeatRow(0, W4A8.score, W4A8.difference, 240_000))
    open_one = CheckRow("seeds", 4, 3, 3, 3, "borderline")
    seeded = replace(seeded, verdict="borderline", checks=(*seeded.checks, open_one))
    html = render(run(FLOAT, seeded))
    text = Outline(html).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "w4a8 not settled accuracy" in text
    assert "seeds 3 of 4 trained , asked all of them: open; read the error of the seed that failed, and run the" in text
    assert "Not settled: the only variant, w4a8, may meet accuracy ≥ 91.0 % or not: seeds 3 of 4 trained" in text
    assert sum(risk.where == "seeds" or "seed" in risk.what for risk in risks.of_trial(seeded, run(FLOAT, seeded))) == 1
    japanese = Outline(render(run(FLOAT, seeded), language="ja")).text
    assert "4 個中 3 個が学習に成功" in japanese
    assert " trained" not in japanese
    assert (
        "Seed Accuracy From float File BOPs 0 91.62 % (91.07 to 92.17) −0.23 pp (−0.44 to −0.01) 240 kB – 1 91.10 %"
        in text
    )
    assert "3 no memory <b>" in text
    assert "no memory <b>" not in html
    assert "Seeds" not in Outline(render(run(W4A8))).text


# What changed, and which methods fit


def test_what_changed_is_told_with_its_reason() -> None:
    told = dict(changes.of_trial(W4A8, RUN))
    assert told == {
        "5 layers of 6 have int4 weights and int8 activations": "the recipe asks for it",
        "1 layer stayed float": "the first layer is left in float by the recipe",
        "weights and ranges were trained": "to return what the float model returns, without labels",
        "the file has 240 kB, from 1.18 MB": "low-bit weights are stored packed, with their scales; biases stay wide",
        "a batch of 1 takes 0.387 ms, from 0.812 ms": "integer kernels ran: QLinearConv and QGemm",
    }
    assert changes.of_trial(FLOAT, RUN) == changes.of_trial(FAILED, RUN) == []


def fits(found: Run) -> dict[str, checklist.Method]:
    return {method.name: method for method in checklist.methods(found)}


def test_methods_are_judged_from_the_records() -> None:
    found = fits(run(FLOAT, W8A8, W2A8))
    assert found["8-bit integers"].used == ("w8a8",)
    assert found["Weights of 4 bits and fewer"].used == ("w2a8",)
    assert "with its 8-bit kernels" in found["Weights of 4 bits and fewer"].why
    assert found["Distillation"].fit == "fits"  # w2a8 surely loses
    assert "w2a8" in found["Distillation"].why
    assert found["Factorization"].fit == "fits"
    assert found["Numbers as points on a path"].fit == "no"
    assert found["Search"].used == ()
    assert fits(run(FLOAT, HOSTILE_NAME))["Search"].used == (HOSTILE_NAME.name,)


def test_methods_that_do_not_fit_say_why() -> None:
    linear = tuple(replace(row, kind="Linear") for row in FLOAT.layers[:3])
    small = replace(FLOAT, layers=linear)
    found = fits(run(small, W8A8, kpi=Kpi("r2", 0.9)))
    assert [found[name].fit for name in ("Search", "Factorization", "Features as bits")] == ["no"] * 3
    assert found["Search"].why == "There are 3 layers to choose for: try their formats one by one instead."
    assert found["Factorization"].why.startswith("0.00 % of the MACs are in convolutions")
    assert found["Numbers as points on a path"].fit == "fits"


def test_convolutions_are_counted_by_their_macs() -> None:
    macs = [row.macs for row in FLOAT.layers]
    share = 100 * sum(macs[1:-1]) / sum(macs)  # neither the first layer nor the linear one
    assert f"{share:.2f} %" in fits(RUN)["Factorization"].why


def test_advice_to_distill_counts_variants_that_nothing_trained() -> None:
    trained = replace(W2A8, name="trained", distillation=DISTILLATION), replace(W2A8, name="mixed", search=SEARCH)
    assert "nothing tells its gain" in fits(run(FLOAT, *trained))["Distillation"].why
    kept = replace(W8A8, difference=Score(0.0, -0.001, 0.001, 10_000))
    assert "no variant without training surely lost" in fits(run(FLOAT, kept, *trained))["Distillation"].why
    unlearned = replace(W2A8, name="plain-mix", search=replace(SEARCH, epochs=()))
    why = fits(run(FLOAT, *trained, unlearned))["Distillation"].why
    assert "plain-mix surely loses" in why
    assert "trained" not in why


TARGETS = (["int8"], ["int4", "int8"], ["int2", "int3"], ["e4m3", "int4", "int8"], ["e4m3"], ["int8", "mid2"], ["int4"])


@pytest.mark.parametrize("formats", [*TARGETS, None])
def test_lines_ask_for_formats_that_the_target_has(formats: list[str] | None, tmp_path: Path) -> None:
    """Every line that is proposed is one that the pilot itself takes."""
    runtime = {} if formats is None else {"runtime": {"formats": formats}}
    found = checklist.methods(run(FLOAT, pilot=runtime, kpi=Kpi("r2", 0.9)))
    lines = {one.name: yaml.safe_load(one.line)[0] for one in found if one.fit != "no" and one.line.startswith("- ")}
    for variant in lines.values():
        file = {
            "name": "some",
            "model": "m.py:build",
            "data": {"calibration": {"source": "a.npz"}, "test": {"source": "b.npz"}},
            "kpi": {"metric": "r2", "minimum": 0.9},
            "variants": [variant],
            **runtime,
        }
        (tmp_path / "pilot.yaml").write_text(yaml.safe_dump(file))
        load_spec(tmp_path / "pilot.yaml")
    assert ("8-bit integers" in lines) == (formats is None or "int8" in formats)
    assert ("Low-bit floats" in lines) == (formats is None or len(formats) == 3)
    if formats == ["int8"]:
        (missing,) = [one for one in found if one.name == "Weights of 4 bits and fewer"]
        assert (missing.fit, missing.why[:52]) == ("no", "The target has no formats for it (runtime.formats: i")
    if formats == ["e4m3"]:
        assert lines == {}
    widening = run(FLOAT, pilot={"runtime": {"formats": ["int8"], "widen": True}})
    assert all(one.line for one in checklist.methods(widening))


def test_a_path_that_lost_is_not_advised_and_says_so() -> None:
    def compared(what: str, rmse: float) -> ComparedRow:
        errors = ErrorsRow(100, rmse, rmse, rmse, rmse, 200, 0.0, None)
        return ComparedRow(what, errors, errors)

    def with_path(name: str, rmse: float) -> Trial:
        rows = (compared("direct", 1.0), compared("variant", rmse))
        row = OutputRow("snake5", "snake5: all of it 1.12 times", None, None, (), "labels", rows, {})
        return replace(W8A8, name=name, verdict="misses", output=row)

    lost, won = with_path("curve", 4.6), with_path("fold", 0.5)
    method = fits(run(FLOAT, lost, kpi=Kpi("r2", 0.9)))["Numbers as points on a path"]
    assert (method.fit, method.used) == ("no", ("curve",))
    assert "curve (snake5) made it 4.6× larger by robust SD and 4.6× larger by RMSE" in method.why
    assert fits(run(FLOAT, lost, won, kpi=Kpi("r2", 0.9)))["Numbers as points on a path"].fit == "fits"
    told = dict(changes.of_trial(lost, RUN))["the output is a point on the path snake5"]
    assert told.startswith("expected before training: snake5")
    assert told.endswith("measured, it lost to a direct output")
    page = Outline(render(run(FLOAT, lost, kpi=Kpi("r2", 0.9)))).text
    assert "snake5 lost: against a direct 8-bit output, all of the error became 4.6× larger" in page
    assert "curve (no-go)" in page  # among what was tried


def test_training_that_lost_is_not_advised() -> None:
    loss = Score(-0.02, -0.03, -0.01, 10_000)
    worse = replace(W4A8, distillation=replace(DISTILLATION, gain=loss))
    method = fits(run(FLOAT, worse))["Distillation"]
    assert (method.fit, method.why[:32]) == ("no", "It was tried here and lost: trai")


def test_ternary_weights_are_among_those_of_few_bits() -> None:
    ternary = replace(W2A8, name="ternary", layers=tuple(replace(r, weights="ternary") for r in W2A8.layers))
    assert fits(run(FLOAT, ternary))["Weights of 4 bits and fewer"].used == ("ternary",)


def test_a_last_layer_is_said_to_read_the_features_that_it_reads() -> None:
    (*layers, head) = FLOAT.layers
    small = replace(FLOAT, layers=(*layers, replace(head, shape=(10, 40))))
    assert fits(run(small, W8A8))["Features as bits"].why.startswith("Layer head reads 40 features: bits save little")
