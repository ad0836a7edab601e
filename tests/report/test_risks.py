"""Risks: each is found in a record that has it, and not in one that has not; and what the roll-out makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pages import CHAINS, DISTILLATION, FAILED, FLOAT, HOSTILE, HOSTILE_NAME, RUN, SEARCH, W4A8, W8A8, Outline

from lowbit.pilot.record import (
    CheckRow,
    ComparedRow,
    ErrorsRow,
    FeaturesRow,
    HeadRow,
    Kpi,
    OutputRow,
    QuantityRow,
    RepeatRow,
    Run,
    Score,
    Trial,
)
from lowbit.report import grounds, risks
from lowbit.report.page import render

EXACT = replace(W8A8.verification, stayed_float=(), largest_code_difference=1) if W8A8.verification else None
ROWS = tuple(replace(r, weights="int8", activations="int8", kernel="QLinearConv", reason="") for r in W8A8.layers)
# a variant that nothing can be said against, and a run around it
CLEAN = replace(W8A8, name="clean", layers=ROWS, verification=EXACT)
PILOT = {"data": {"calibration": {"source": "train.npz"}, "test": {"source": "test.npz"}}}
AROUND = replace(RUN, trials=(FLOAT, CLEAN), pilot=PILOT)
SURE = (0.9181, 0.9126, 0.9236, 10_000)


def learned(**fields: Any) -> Trial:
    """A variant that was distilled without anything to say against it."""
    teacher = replace(DISTILLATION.teacher, concerns=())
    ranges = tuple(replace(one, clipped=0.01) for one in DISTILLATION.ranges)
    row = {"teacher": teacher, "ranges": ranges, **fields}
    return replace(CLEAN, distillation=replace(DISTILLATION, **row))


def layer(**fields: Any) -> Trial:
    return replace(CLEAN, layers=(replace(ROWS[0], **fields), *ROWS[1:]))


def numbers(speed: float, turn: float, rmse: float = 0.2) -> Trial:
    """A variant with two outputs, and what these lose of their r2."""
    rows = [
        QuantityRow(0.9975 - one, rmse, 0.9975, 0.1, Score(-one, -one - 0.001, -one + 0.001, 10_000))
        for one in (speed, turn)
    ]
    return replace(CLEAN, quantities=tuple(rows), agreement=None, apart=0.1)


def verified(**fields: Any) -> Trial:
    assert EXACT is not None
    return replace(CLEAN, verification=replace(EXACT, **fields))


def timed(**fields: Any) -> Trial:
    return replace(CLEAN, latencies=(replace(CLEAN.latencies[0], **fields), *CLEAN.latencies[1:]))


def chains(**fields: int) -> Trial:
    plain = tuple(replace(one, advice="") for one in CHAINS.layers)
    after = replace(CHAINS.after, **{"activation_bytes": CHAINS.before.activation_bytes, **fields})
    return replace(CLEAN, factorization=replace(CHAINS, layers=plain, after=after))


def curve(flips: float, rmse: float = 0.01) -> Trial:
    errors = [ErrorsRow(1000, one, 0.01, 0.01, 0.1, 1000, share, None) for one, share in ((rmse, flips), (0.02, 0.0))]
    rows = (ComparedRow("variant", errors[0], None), ComparedRow("direct", errors[1], None))
    row = OutputRow("snake8", "", None, None, (), "labels", rows, {}, spacing=0.1)
    return replace(CLEAN, output=row)


def coded(outcome: str = "equal", shares: tuple[float, float, float] = (0.3, 0.4, 0.3)) -> Trial:
    score = Score(*SURE)
    head = HeadRow("clipped", Score(0.95, 0.94, 0.96, 10_000), Score(-0.03, -0.04, -0.02, 10_000), outcome)
    row = FeaturesRow(
        *(
            "",
            "head",
            64,
            0,
            "ternary",
            "global",
            0.5,
            "svm",
            1.0,
            1000,
            score,
            score,
            (head,),
            "clipped",
            0.01,
            (),
            0.9,
        ),
        *(1.0, 0.9, shares, 256, 64, 16, ()),
    )
    return replace(CLEAN, features=row)


def seeds(*values: float, error: str | None = None) -> Trial:
    rows = tuple(RepeatRow(i, Score(v, v - 0.002, v + 0.002, 10_000), None, 1) for i, v in enumerate(values, 1))
    rows += (RepeatRow(9, None, None, 0, error),) if error else ()
    own = RepeatRow(0, Score(0.9181, 0.9161, 0.9201, 10_000), None, 1)
    return replace(CLEAN, repeats=rows, own=own)


def scored(**fields: Any) -> Trial:
    return replace(CLEAN, **fields)


BOTH = (
    CheckRow("minimum", 0.9, 0.9181, 0.91, 0.92, "meets"),
    CheckRow("tolerance", -0.01, 0, -0.02, 0.02, "borderline"),
)


def losses(*values: float) -> Trial:
    """Seeds that lose so much, all of them far above the minimum; the first loses nothing."""
    gaps = [Score(-value, -value - 0.002, 0.002 - value, 10_000) for value in (0.0, *values)]
    own, *rows = (RepeatRow(i, Score(*SURE), gap, 1) for i, gap in enumerate(gaps))
    return replace(CLEAN, own=own, repeats=tuple(rows), checks=BOTH)


BORDERLINE = CheckRow("minimum", 0.91, 0.9105, 0.905, 0.916, "borderline")
WORSE = Score(-0.02, -0.03, -0.01, 10_000)
CASES: dict[str, tuple[Trial, Trial, str, risks.Severity]] = {  # without, with, what it says, how much it weighs
    "interval": (
        CLEAN,
        scored(checks=(BORDERLINE,), verdict="borderline"),
        "its interval reaches over what was asked: 91.05 % (90.50 to 91.60), ≥ 91.0 %",
        "high",
    ),
    "loss": (scored(difference=Score(-0.001, -0.002, 0.001, 10_000)), scored(difference=WORSE), "surely loses", "low"),
    "agreement": (
        scored(agreement=Score(0.96, 0.95, 0.97, 10_000)),
        scored(agreement=Score(0.94, 0.93, 0.95, 10_000)),
        "predicts as the float model for 94.00 % of the samples only",
        "medium",
    ),
    "seeds": (seeds(0.9182, 0.9179), seeds(0.9182, 0.9111), "its seeds disagree: from 91.11 % to 91.82 %", "medium"),
    "sides": (
        seeds(0.9182, 0.9179),
        seeds(0.9182, 0.9082),
        "on both sides of what is asked: accuracy from 90.82 % to",
        "high",
    ),
    "sides of a tolerance": (
        losses(0.001, 0.009),
        losses(0.001, 0.011),
        "accuracy from float from −1.10 pp to 0.00 pp, asked ≥ −1.0 pp",
        "high",
    ),
    "failed seed": (seeds(0.9182), seeds(0.9182, error="no memory"), "training failed with 1 seed", "high"),
    "unverified": (CLEAN, scored(verification=None), "was not verified", "high"),
    "predictions": (verified(same_prediction=0.9995), verified(same_prediction=0.99), "the same for 99.00 %", "high"),
    "an output": (
        numbers(0.005, 0.005),
        numbers(0.0088, 0.0),
        "output 0 loses more than the mean of all outputs tells: its r2 is 0.9887 instead of 0.9975, its RMSE 2.00",
        "medium",
    ),
    "an output with as small an error": (numbers(0.0088, 0.0, 0.105), numbers(0.0088, 0.0), "loses more", "medium"),
    "distance": (
        replace(CLEAN, agreement=None, apart=0.1),
        replace(CLEAN, agreement=None, apart=0.3),
        "its outputs lie 30.00 % of their spread from the float model's, though its accuracy is close",
        "medium",
    ),
    "outputs of file and model": (
        verified(same_prediction=None, apart=0.01),
        verified(same_prediction=None, apart=0.06),
        "outputs of file and model lie 6.00 % of their spread apart",
        "high",
    ),
    "codes": (
        verified(largest_code_difference=1),
        verified(largest_code_difference=3),
        "codes of file and model differ by up to 3 steps",
        "medium",
    ),
    "float layers": (CLEAN, layer(weights="float32", activations="float32"), "layers stayed float: 1.59 %", "low"),
    "runs in float": (
        CLEAN,
        replace(layer(weights="mxfp4", kernel="Conv"), verification=verified(stayed_float=("stem.conv",)).verification),
        "low-bit layers run in float",
        "low",
    ),
    "widened": (CLEAN, layer(weights="int4"), "widens formats below 8 bits (int4/int8", "low"),
    "slower": (timed(median_ms=0.8), timed(median_ms=0.9), "slower than float: 0.900 ms against 0.812 ms", "medium"),
    "noisy": (timed(high_ms=0.5), timed(high_ms=0.9), "the 90th percentile is 2.3× the median", "low"),
    "teacher": (
        learned(),
        learned(teacher=replace(DISTILLATION.teacher, concerns=("it is unsure",))),
        "a weak teacher: it is unsure",
        "medium",
    ),
    "clipped": (
        learned(),
        learned(ranges=(replace(DISTILLATION.ranges[0], clipped=0.5),)),
        "ranges cut off up to 50.00 %",
        "medium",
    ),
    "training": (learned(), learned(gain=WORSE), "training made it worse", "medium"),
    "budget": (
        scored(search=SEARCH),
        scored(search=replace(SEARCH, found=replace(SEARCH.found, fits=False))),
        "no assignment of formats fitted the budget",
        "medium",
    ),
    "activations": (chains(), chains(activation_bytes=83_968), "chains hold more activations", "low"),
    "chain": (
        chains(),
        scored(factorization=replace(CHAINS, after=replace(CHAINS.after, activation_bytes=1))),
        "a chain may not be worth it here",
        "low",
    ),
    "some flips": (curve(0.0005), curve(0.005), "0.50 % of its numbers lie on another branch", "medium"),
    "many flips": (curve(0.0005), curve(0.05), "5.00 % of its numbers lie on another branch", "high"),
    "rmse": (curve(0.0), curve(0.0, rmse=0.03), "its RMSE is larger than that of a direct output", "medium"),
    "codes lose": (coded(), coded("degrades"), "surely loses to that on floats: 91.81 % against 95.00 %", "medium"),
    "one code": (coded(), coded(shares=(0.0, 0.99, 0.01)), "one and the same code: 99.00 %", "medium"),
}


def found(trial: Trial) -> list[risks.Risk]:
    return risks.of_trial(trial, replace(AROUND, trials=(FLOAT, trial)))


def test_nothing_is_said_against_a_clean_variant_of_a_clean_run() -> None:
    assert found(CLEAN) == []
    assert grounds.of_run(AROUND) == []
    assert risks.of_trial(FLOAT, AROUND) == risks.of_trial(FAILED, AROUND) == []


@pytest.mark.parametrize("case", CASES)
def test_a_risk_is_found_where_it_is_and_only_there(case: str) -> None:
    without, having, told, severity = CASES[case]
    assert not [risk for risk in found(without) if told in risk.what]
    (risk,) = [risk for risk in found(having) if told in risk.what]
    assert risk.severity == severity
    assert risk.where
    assert risk.remedy


def test_float_layers_weigh_by_their_macs() -> None:
    last = replace(CLEAN, layers=(*ROWS[:-1], replace(ROWS[-1], weights="float32")))
    (risk,) = found(last)
    assert (risk.severity, risk.where) == ("medium", "head")


def test_what_weighs_most_comes_first() -> None:
    both = replace(verified(same_prediction=0.5), difference=WORSE, latencies=timed(median_ms=0.9).latencies)
    assert [risk.severity for risk in found(both)] == ["high", "medium", "low"]


def test_agreement_as_the_metric_is_no_risk_of_its_own() -> None:
    unlike = replace(CLEAN, agreement=Score(0.9, 0.89, 0.91, 10_000))
    assert risks.of_trial(unlike, replace(AROUND, kpi=Kpi("agreement", 0.8))) == []


def test_an_output_beyond_the_tolerance_of_the_mean_weighs_much() -> None:
    asked = replace(AROUND, kpi=Kpi("r2", tolerance=0.005))
    (risk,) = [one for one in risks.of_trial(numbers(0.0088, 0.0), asked) if "loses more" in one.what]
    assert risk.severity == "high"


FEW = Score(0.9181, 0.86, 0.95, 200)
SAME = {"data": {"calibration": {"source": "a.npz"}, "test": {"source": "a.npz"}}}
SLOW = replace(CLEAN, latencies=tuple(replace(r, median_ms=50.0) for r in CLEAN.latencies))
TAUGHT = {"data": {"calibration": {"source": "a.npz"}, "test": {"source": "b.npz"}, "train": {"source": "./b.npz"}}}
RUNS: dict[str, tuple[Run, str, risks.Severity]] = {
    "float misses": (
        replace(AROUND, trials=(replace(FLOAT, verdict="misses"), CLEAN)),
        "the float model itself",
        "high",
    ),
    "float failed": (replace(AROUND, trials=(replace(FAILED, recipe=None), CLEAN)), "could not be measured", "high"),
    "few samples": (
        replace(AROUND, trials=(replace(FLOAT, score=FEW), CLEAN)),
        "the test data has 200 samples",
        "medium",
    ),
    "few calibrated": (
        replace(AROUND, provenance=replace(AROUND.provenance, samples={"calibration": 8})),
        "the calibration data has 8 samples",
        "medium",
    ),
    "same data": (replace(AROUND, pilot=SAME), "come from the same source", "high"),
    "trained on test data": (
        replace(AROUND, pilot=TAUGHT, trials=(FLOAT, replace(CLEAN, distillation=DISTILLATION))),
        "variants were trained on the test data",
        "high",
    ),
    "machine": (replace(AROUND, trials=(FLOAT, SLOW)), "no variant is faster than float on this machine", "medium"),
    "processor": (
        replace(AROUND, trials=(FLOAT, replace(CLEAN, processor="another"))),
        "not all files were scored on this machine's processor",
        "low",
    ),
    "failed": (replace(AROUND, trials=(FLOAT, CLEAN, FAILED)), "1 variant failed", "low"),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_risk_of_the_run_is_found_where_it_is(case: str) -> None:
    having, told, severity = RUNS[case]
    (risk,) = grounds.of_run(having)
    assert told in risk.what
    assert (risk.severity, bool(risk.where), bool(risk.remedy)) == (severity, True, True)


def test_training_data_counts_where_something_was_trained() -> None:
    assert grounds.of_run(replace(AROUND, pilot=TAUGHT)) == []


@pytest.mark.parametrize(
    ("calibration", "test", "same"),
    [
        ({"source": "./a.npz", "limit": 9}, {"source": "a.npz", "labels": "y"}, True),
        ({"source": "a.npz", "inputs": "x_train"}, {"source": "a.npz", "inputs": "x_test"}, False),
        ({"source": "a.npz", "inputs": "x_train"}, {"source": "a.npz"}, False),
        ({"source": "a.npz", "inputs": "x"}, {"source": "a.npz"}, True),
        ({"source": "a.parquet", "inputs": "left"}, {"source": "a.parquet", "inputs": "right"}, True),  # the same rows
        ({"source": "d/../m.py:rows"}, {"source": "m.py:rows"}, True),
        ({"source": "m.py:rows"}, {"source": "m.py:others"}, False),
        ({}, {}, False),
    ],
)
def test_the_same_samples_are_known_by_source_and_array(
    calibration: dict[str, Any], test: dict[str, Any], same: bool
) -> None:
    told = grounds.of_run(replace(AROUND, pilot={"data": {"calibration": calibration, "test": test}}))
    assert [risk.severity for risk in told] == ["high"] * same


def test_what_the_target_executes_is_widened_here_alone() -> None:
    low = replace(CLEAN, layers=(replace(ROWS[0], weights="int4"), replace(ROWS[1], weights="int2"), *ROWS[2:]))
    pilot = {**PILOT, "runtime": {"formats": ["int4", "int8"], "widen": True}}
    told = {risk.where: risk.what for risk in risks.of_trial(low, replace(AROUND, trials=(FLOAT, low), pilot=pilot))}
    assert "the runtime widens formats below 8 bits (int2/int8" in told[ROWS[1].name]
    assert "the target executes natively (int4/int8" in told[ROWS[0].name]


def test_distillation_is_no_advice_for_what_a_search_trained() -> None:
    searched = replace(CLEAN, search=SEARCH, difference=WORSE)
    for trial, advised in ((searched, False), (replace(searched, search=replace(SEARCH, epochs=())), True)):
        (risk,) = [one for one in found(trial) if "surely loses" in one.what]
        assert ("distill" in risk.remedy) == advised


def test_the_page_shows_the_risks_of_the_run_and_of_each_variant_escaped() -> None:
    assert W4A8.distillation is not None
    teacher = replace(DISTILLATION.teacher, concerns=(HOSTILE,))
    weak = replace(W4A8, name=HOSTILE, distillation=replace(DISTILLATION, teacher=teacher))
    html = render(replace(RUN, trials=(FLOAT, weak, replace(HOSTILE_NAME, search=None)), pilot=SAME))
    text = " ".join(Outline(html).text.split())
    assert "<script>alert" not in html
    assert f"A weak teacher: {' '.join(HOSTILE.split())}" in text
    assert "high Test and calibration data come from the same source" in text
    assert "Its interval reaches over what was asked" in text
