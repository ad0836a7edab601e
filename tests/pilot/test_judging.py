"""What is asked and how trials stand to it, on figures worked out by hand; seeds, whole runs of tiny variants."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lowbit as lb
from lowbit import models
from lowbit.cli.shown import show_run
from lowbit.errors import DataError
from lowbit.pilot import run as pilot_run
from lowbit.pilot import statistics
from lowbit.pilot.judging import assemble
from lowbit.pilot.planning import plan_file
from lowbit.pilot.record import (
    CheckRow,
    Kpi,
    LatencyRow,
    Limits,
    RepeatRow,
    Requirement,
    Run,
    Score,
    Trial,
    Verdict,
    read,
)
from lowbit.pilot.run import run_pilot, tasks_of
from lowbit.pilot.sections.budgets import BudgetsSpec
from lowbit.pilot.spec import PilotSpec, load_spec
from lowbit.pilot.task import Task
from lowbit.report import decision

NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
"""
OWN = "net.py:error"
BOTH = {"weights": "int4", "activations": "int8", "level": "fast"}
PILOT: dict[str, Any] = {
    "name": "tiny",
    "model": "net.py:build",
    "data": {"calibration": {"source": "calibration.npz"}, "test": {"source": "test.npz"}},
    "kpi": {"metric": "accuracy", "minimum": 0.5, "tolerance": 0.5},
    "budgets": {"size": "1 MB", "bops": "1 G"},
    "runtime": {"batches": [1]},
    "seeds": [4, 5],
    "defaults": BOTH,
    "variants": [
        {"name": "w2", "weights": "int2", "distill": {"epochs": 2, "batch_size": 16}},
        {"name": "fold", "weights": "int8", "output": {"path": "fold4", "controls": False}},
        {"name": "curve", "weights": "int8", "output": {"path": "snake3", "epochs": 1, "batch_size": 16}},
    ],
}
TIMED = LatencyRow("onnxruntime", 1, 1, 2.0, 1.8, 2.6, 100)
TRIAL = Trial(
    "w4",
    {},
    "f",
    "misses",
    score=Score(0.90, 0.88, 0.92, 1000),
    difference=Score(-0.010, -0.016, -0.004, 1000),
    file_bytes=200_000,
    bops=5_000_000,
    latencies=(TIMED,),
)


@pytest.mark.parametrize(
    ("kpi", "limits", "expected"),
    [
        (Kpi("accuracy", 0.88), Limits(), {"minimum": "meets"}),
        (Kpi("accuracy", 0.91), Limits(), {"minimum": "borderline"}),
        (Kpi("accuracy", 0.93), Limits(), {"minimum": "misses"}),
        (Kpi("accuracy", None, 0.016), Limits(), {"tolerance": "meets"}),
        (Kpi("accuracy", None, 0.015), Limits(), {"tolerance": "borderline"}),
        (Kpi("accuracy", None, 0.003), Limits(), {"tolerance": "misses"}),
        (Kpi("accuracy", 0.88, 0.015), Limits(), {"minimum": "meets", "tolerance": "borderline"}),
        (Kpi("accuracy", 0.5), Limits(size=200_000), {"minimum": "meets", "size": "meets"}),
        (Kpi("accuracy", 0.91), Limits(size=199_999), {"minimum": "borderline", "size": "misses"}),
        (Kpi("accuracy", 0.5), Limits(bops=4.9e6), {"minimum": "meets", "bops": "misses"}),
        (
            Kpi("accuracy", 0.5),
            Limits(bops=5e6, latency=2.0),
            {"minimum": "meets", "bops": "meets", "latency": "meets"},
        ),
        (Kpi("accuracy", 0.5), Limits(latency=1.9), {"minimum": "meets", "latency": "borderline"}),
        (Kpi("accuracy", 0.5), Limits(latency=1.7), {"minimum": "meets", "latency": "misses"}),
    ],
)
def test_checks_and_the_worst_of_them(kpi: Kpi, limits: Limits, expected: dict[str, Verdict]) -> None:
    checks = statistics.checks(TRIAL, kpi, limits)
    assert {row.what: row.verdict for row in checks} == expected
    order = ["meets", "borderline", "misses"]
    assert statistics.worst(checks) == max(expected.values(), key=order.index)
    for row in checks:
        assert row.low <= row.value <= row.high
        if row.what == "tolerance":
            assert (row.limit, row.value, row.low) == (-float(kpi.tolerance or 0), -0.010, -0.016)


def test_size_and_bops_are_those_of_all_seeds() -> None:
    """From the smallest to the largest; a seed that failed has none."""
    score, gap = TRIAL.score, TRIAL.difference
    rows = (RepeatRow(1, score, gap, 210_000, bops=4_000_000), RepeatRow(2, None, None, 0, "no memory"))
    failed = CheckRow("seeds", 3, 2, 2, 2, "borderline")
    seeded = replace(TRIAL, repeats=rows)
    expected: dict[Requirement, list[tuple[float, Verdict]]] = {
        "size": [(210_000, "meets"), (209_999, "borderline"), (199_999, "misses")],
        "bops": [(5e6, "meets"), (4.5e6, "borderline"), (3.9e6, "misses")],
    }
    for what, cases in expected.items():
        for limit, verdict in cases:
            limits = Limits(size=int(limit)) if what == "size" else Limits(bops=limit)
            _, told, row = statistics.checks(seeded, Kpi("accuracy", 0.5), limits)
            assert told == failed
            assert (row.what, row.verdict) == (what, verdict)
    _, _, row = statistics.checks(seeded, Kpi("accuracy", 0.5), Limits(bops=1.0))
    assert (row.value, row.low, row.high) == (5e6, 4e6, 5e6)


def test_float_is_judged_by_the_minimum_alone() -> None:
    base = replace(TRIAL, recipe=None, difference=None)
    asked = Limits(1, 1.0, 0.1)
    assert [row.what for row in statistics.checks(base, Kpi("accuracy", 0.93, 0.001), asked)] == ["minimum"]
    assert statistics.worst(statistics.checks(base, Kpi("accuracy", 0.93), asked)) == "misses"
    assert statistics.worst(statistics.checks(base, Kpi("accuracy", None, 0.01), asked)) == "meets"


def test_latency_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(DataError, match=r"'w4' was not timed, and budgets\.latency asks for it"):
        statistics.checks(replace(TRIAL, latencies=()), Kpi("accuracy", 0.5), Limits(latency=1.0))


def test_mean_over_seeds_has_both_spreads() -> None:
    """Three seeds: t with 2 degrees of freedom is 4.302653; s of 0.90, 0.92, 0.94 is 0.02."""
    scores = [Score(v, v - 0.01, v + 0.02, 100) for v in (0.90, 0.92, 0.94)]
    found = statistics.over_seeds(scores, "r2")
    of_seeds = 4.302653 * 0.02 / math.sqrt(3)
    assert found.value == pytest.approx(0.92)
    assert found.low == pytest.approx(0.92 - math.sqrt(0.01**2 + of_seeds**2), abs=1e-7)
    assert found.high == pytest.approx(0.92 + math.sqrt(0.02**2 + of_seeds**2), abs=1e-7)
    assert statistics.over_seeds(scores[:1], "r2") == scores[0]
    assert statistics.over_seeds([scores[0]] * 2, "r2").low == pytest.approx(0.89)
    two = [Score(0.1, 0.0, 0.2, 100), Score(0.99, 0.98, 1.0, 100)]
    assert (statistics.over_seeds(two, "accuracy").low, statistics.over_seeds(two, "accuracy").high) == (0.0, 1.0)
    assert statistics.over_seeds(two, "accuracy", difference=True).low == -1.0
    ends = {
        ("r2", False): (-math.inf, 1.0),
        ("r2", True): (-math.inf, math.inf),
        ("cosine", False): (-1.0, 1.0),
        ("cosine", True): (-2.0, 0.0),
        ("net.py:f", False): (-math.inf, math.inf),
    }
    for (metric, gap), (least, most) in ends.items():
        apart = [Score(v - gap, v - gap - 0.01, v - gap + 0.01, 100) for v in (0.1, 0.9)]
        wide = statistics.over_seeds(apart, metric, difference=gap)
        assert wide.value == pytest.approx(0.5 - gap)
        half = 12.7062 * 0.4  # t s / sqrt 2 of two values 0.8 apart
        assert wide.low == pytest.approx(max(0.5 - gap - half, least), abs=1e-3)
        assert wide.high == pytest.approx(min(0.5 - gap + half, most), abs=1e-3)
    whole = Score(1 + 1e-16, 1.0, 1 + 1e-16, 100)  # a cosine that was rounded up
    assert statistics.over_seeds([whole, whole], "cosine").high >= whole.value


def test_interval_over_seeds_covers_the_mean() -> None:
    """Means of 3 trainings, seeds and samples both random: 95 % of intervals hold the true mean, within 3 sigma."""
    generator, held, rounds = np.random.default_rng(0), 0, 2000
    for _ in range(rounds):
        shared = generator.normal(0, 0.01)  # of the test samples, the same for all seeds
        values = 0.9 + shared + generator.normal(0, 0.01, 3)
        scores = [Score(v, v - 1.96 * 0.01, v + 1.96 * 0.01, 100) for v in values]
        found = statistics.over_seeds(scores, "r2")
        held += found.low <= 0.9 <= found.high
    assert 0.935 <= held / rounds <= 0.99


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({"size": 1234}, Limits(size=1234)),
        ({"size": "200 kB"}, Limits(size=200_000)),
        ({"size": "1.5 MB"}, Limits(size=1_500_000)),
        ({"size": 2000.0}, Limits(size=2000)),
        ({"size": "2GB"}, Limits(size=2_000_000_000)),
        ({"bops": "1e9"}, Limits(bops=1e9)),
        ({"bops": 2.5e6, "latency": 2.5}, Limits(bops=2.5e6, latency=2.5)),
        ({"bops": "40.6 M"}, Limits(bops=40_600_000)),
    ],
)
def test_budgets(given: dict[str, Any], limits: Limits) -> None:
    assert BudgetsSpec.model_validate(given).limits() == limits


# In the file


def refusal(folder: Path, **sections: Any) -> str:
    path = folder / "refused.yaml"
    path.write_text(yaml.safe_dump(PILOT | sections))
    with pytest.raises(lb.LowbitError) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"kpi": {"metric": "accuracy"}}, "kpi: give minimum (the least that counts), tolerance (the most that"),
        ({"kpi": {"metric": OWN, "smaller_is_better": True}}, "kpi: give maximum (the most that counts), tolerance"),
        (
            {"kpi": {"metric": "r2", "smaller_is_better": True, "tolerance": 0.1}},
            "kpi.smaller_is_better: it is for a module:function metric, and of r2 larger is better; leave it out",
        ),
        (
            {"kpi": {"metric": OWN, "smaller_is_better": True, "minimum": 0.3}},
            "kpi.minimum: of net.py:error smaller is better; write maximum, the most that counts, got 0.3",
        ),
        (
            {"kpi": {"metric": OWN, "maximum": 0.3}},
            "kpi.maximum: of net.py:error larger is better; write minimum, the least that counts, or smaller_is_better",
        ),
        (
            {"kpi": {"maximum": 0.3, "minimum": 0.2}},
            "kpi.maximum: of accuracy larger is better; write minimum, the least that counts, got 0.3",
        ),
        ({"kpi": {"metric": OWN, "smaller_is_better": "less"}}, "kpi.smaller_is_better: expected true or false"),
        (
            {"kpi": {"metric": OWN, "smaler_is_better": True}},
            "kpi.smaler_is_better: unknown key; did you mean 'smaller",
        ),
        ({"kpi": {"tolerance": 0}}, "kpi.tolerance: expected more than 0"),
        ({"kpi": {"tolerance": 1}}, "kpi.tolerance: accuracy is a share from 0 to 1; write 0.01 for"),
        ({"kpi": {"tolerence": 1}}, "kpi.tolerence: unknown key; did you mean 'tolerance'?"),
        ({"budgets": {}}, "budgets: it is empty; give size, bops or latency"),
        ({"budgets": {"size": "200 kg"}}, "budgets.size: expected a number of bytes, or text such as '200 kB'"),
        ({"budgets": {"size": -1}}, "budgets.size: expected more than 0"),
        ({"budgets": {"size": "1e400 B"}}, "budgets.size: expected a finite number, got inf"),
        ({"budgets": {"size": 1.5}}, "budgets.size: expected whole bytes; write '1.5 MB' for 1500000, got 1.5"),
        ({"budgets": {"size": "1.23456 kB"}}, "budgets.size: expected whole bytes"),
        ({"budgets": {"size": True}}, "budgets.size: expected a number, got True"),
        ({"budgets": {"bops": True}}, "budgets.bops: expected a number, got True"),
        ({"budgets": {"latency": True}}, "budgets.latency: expected a number, got True"),
        ({"budgets": {"bops": "many"}}, "budgets.bops: expected a number such as 1e9"),
        ({"budgets": {"latency": "fast"}}, "budgets.latency: expected a number"),
        ({"budgets": {"latenzy": 1}}, "budgets.latenzy: unknown key; did you mean 'latency'?"),
        ({"budget": {"size": 1}}, "budget: unknown key; did you mean 'budgets'?"),
        ({"seeds": 0}, "seeds: expected a number of seeds from 1 to 100"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds: two seeds are the same"),
        ({"seeds": [1, -1]}, "seeds[1]: expected 0 or more"),
        ({"seeds": "all"}, "seeds: expected a list"),
        ({"seed": 3}, "seed: seeds begin with 4; give one or the other, got 3"),
    ],
)
def test_wrong_requirement_names_its_place(sections: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, **sections).startswith(told)


def test_seeds_by_number_or_by_name() -> None:
    def spec(**given: Any) -> PilotSpec:
        return PilotSpec.model_validate({key: value for key, value in PILOT.items() if key != "seeds"} | given)

    assert (spec(seeds=3).seed, spec(seeds=3).seeds) == (0, (0, 1, 2))
    assert (spec(seeds=[7, 2]).seed, spec(seeds=[7, 2]).seeds) == (7, (7, 2))
    assert (spec(seed=7).seed, spec(seed=7).seeds) == (7, ())
    assert spec(**spec(seeds=[7, 2]).model_dump(exclude_defaults=True)) == spec(seeds=[7, 2])


# Whole runs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    inputs = torch.randn(160, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = models.load("net.py:build", folder=folder)(inputs).argmax(1)
    np.savez(folder / "test.npz", inputs=inputs[:80].numpy(), labels=labels[:80].numpy())
    np.savez(folder / "calibration.npz", inputs=inputs[80:].numpy(), labels=labels[80:].numpy())
    (folder / "pilot.yaml").write_text(yaml.safe_dump(PILOT))
    return folder


def measured(project: Path, spec: PilotSpec, folder: Path) -> Run:
    model = models.load(spec.model, None, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    return run_pilot(spec, model, calibration, test, folder, base=project, say=lambda line: None, progress=False)


@pytest.fixture(scope="module")
def run(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return measured(project, load_spec(project / "pilot.yaml"), folder), folder


def test_what_learns_is_run_once_a_seed(run: tuple[Run, Path]) -> None:
    pilot, folder = run
    assert [trial.name for trial in pilot.trials] == ["float", "w2", "fold", "curve"]
    assert [[one.seed for one in trial.repeats] for trial in pilot.trials] == [[], [5], [], [5]]
    assert {trial.seed for trial in pilot.trials} == {4}
    assert {path.parent.relative_to(folder / "variants").as_posix() for path in folder.rglob("trial.json")} == {
        *("float", "w2", "w2/seeds/5", "fold", "curve", "curve/seeds/5")
    }
    assert pilot.limits == Limits(1_000_000, 1e9)
    assert all((folder / str(trial.file)).stat().st_size == trial.file_bytes for trial in pilot.trials)


def test_repeat_is_what_a_single_run_with_its_seed_is(run: tuple[Run, Path], project: Path, tmp_path: Path) -> None:
    """And the trial of the first seed asks the same as a single run with that one, so it is kept."""
    pilot, folder = run
    whole = pilot.trials[1]
    (row,) = whole.repeats
    alone = {key: value for key, value in PILOT.items() if key != "seeds"} | {"variants": PILOT["variants"][:1]}
    trial = measured(project, PilotSpec.model_validate(alone | {"seed": 5}), tmp_path / "5").trials[1]
    assert (row.score, row.difference, row.file_bytes) == (trial.score, trial.difference, trial.file_bytes)
    kept = read(Trial, folder / "variants/w2/seeds/5/trial.json")
    assert kept.fingerprint == trial.fingerprint
    assert kept.score == trial.score
    first = read(Trial, folder / "variants/w2/trial.json")
    model, spec = models.load("net.py:build", None, project), PilotSpec.model_validate(alone | {"seed": 4})
    calibration, test = (one.open(project, 4) for one in (spec.data.calibration, spec.data.test))
    tasks, _ = tasks_of(spec, model, calibration, test, tmp_path, base=project)
    assert first.fingerprint == tasks[1].fingerprint
    assert whole.own is not None
    assert (whole.own.score, whole.own.difference) == (first.score, first.difference)
    assert whole.own.score is not None
    both = [row.score for row in (whole.own, *whole.repeats) if row.score]
    assert len(both) == 2
    assert whole.score == statistics.over_seeds(both, "accuracy")
    assert {row.what: row.low for row in whole.checks}["minimum"] == whole.score.low


def test_class_scores_are_written_along_a_path(run: tuple[Run, Path]) -> None:
    """Learned from the float model, which labels cannot teach; errors are those from it."""
    fold, curve = run[0].trials[2:]
    for trial in (fold, curve):
        assert trial.output is not None
        assert trial.output.against == "float model"
        assert trial.score is not None
        assert trial.verification is not None
        assert trial.verification.same_codes > 0.95
    assert curve.output is not None
    assert curve.output.taught is True
    assert fold.score is not None
    assert fold.score.value >= 0.95


def test_seed_that_fails_is_told_and_left_out(
    run: tuple[Run, Path], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(project / "pilot.yaml")
    model = models.load(spec.model, None, project)
    calibration, test = (one.open(project, spec.seed) for one in (spec.data.calibration, spec.data.test))
    tasks, _ = tasks_of(spec, model, calibration, test, run[1], base=project)
    trials = [read(Trial, task.folder / "trial.json") for task in tasks]
    assert [task.name for task in tasks[4:]] == ["w2, seed 5", "curve, seed 5"]
    trials[4] = Trial("w2, seed 5", {}, "", "failed", error="out of luck")
    found = assemble(run[0], spec, tasks, trials, {}).trials[1]
    assert found.own is not None
    assert found.score == found.own.score == trials[1].score
    assert found.repeats[0].error == "out of luck"
    assert "seed 5 failed: out of luck" in found.notes
    checks = {row.what: row for row in found.checks}
    assert (checks["seeds"].value, checks["seeds"].limit, checks["seeds"].verdict) == (1, 2, "borderline")
    assert {row.verdict for row in found.checks if row.what != "seeds"} == {"meets"}
    assert found.verdict == "borderline"
    whole = replace(run[0], trials=(*run[0].trials[:1], found))
    assert decision.recommended(whole) is None
    asked = "may meet all that was asked or not: seeds 1 of 2 trained, asked all of them"
    assert decision.headline(whole) == f"Not settled: the only variant, w2, {asked}."
    capsys.readouterr()
    show_run(whole, run[1])
    assert "w2: seeds borderline: 1 of 2 trained, all of them are asked" in capsys.readouterr().out


def test_first_seed_that_did_not_fail_stands_for_the_variant(
    run: tuple[Run, Path], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is the one that is timed and named, and the variant is no failed one."""
    spec, folder = load_spec(project / "pilot.yaml"), run[1]
    second = read(Trial, folder / "variants/w2/seeds/5/trial.json")

    def with_a_failure(tasks: list[Task], *_: object) -> list[Trial]:
        kept = [read(Trial, task.folder / "trial.json") for task in tasks]
        return [Trial("w2", {}, "", "failed", error="no memory") if one.name == "w2" else one for one in kept]

    before = (folder / "latency.json").read_bytes()
    monkeypatch.setattr(pilot_run, "_trials", with_a_failure)
    found = measured(project, spec, folder)
    (folder / "latency.json").write_bytes(before)
    assert [trial.name for trial in found.trials] == ["float", "w2", "fold", "curve"]
    whole = found.trials[1]
    assert (whole.seed, whole.score, whole.difference) == (5, second.score, second.difference)
    assert whole.file == second.file == "variants/w2/seeds/5/model.onnx"
    assert [(one.seed, one.error) for one in whole.repeats] == [(4, "no memory")]
    assert whole.own is not None
    assert (whole.own.seed, whole.own.file_bytes, whole.own.bops) == (5, second.file_bytes, second.bops)
    assert "seed 4 failed: no memory" in whole.notes
    assert whole.verdict == statistics.worst(whole.checks) != "failed"
    assert len(whole.latencies) == 1

    def with_failures(tasks: list[Task], *_: object) -> list[Trial]:
        return [
            replace(one, error="no memory", score=None, verdict="failed") if "w2" in task.folder.parts else one
            for task in tasks
            for one in [read(Trial, task.folder / "trial.json")]
        ]

    monkeypatch.setattr(pilot_run, "_trials", with_failures)
    whole = measured(project, spec, folder).trials[1]
    (folder / "latency.json").write_bytes(before)
    assert (whole.name, whole.seed, whole.verdict, whole.error) == ("w2", 4, "failed", "no memory")
    assert [one.seed for one in whole.repeats] == [5]


def test_where_smaller_is_better_the_smaller_error_is_taken(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit gets a large share of the classes wrong, and misses what 8 bits meet, whatever a file costs."""
    (project / "metrics.py").write_text("def wrong(outputs, labels): return (outputs.argmax(1) != labels).mean()\n")
    kpi = {"metric": "metrics.py:wrong", "smaller_is_better": True, "maximum": 0.15, "tolerance": 0.1}
    variants = [{"name": "w8", "weights": "int8"}, {"name": "w1", "weights": "binary"}]
    alone = {key: value for key, value in PILOT.items() if key not in ("seeds", "budgets")}
    path = project / "errors.yaml"
    path.write_text(yaml.safe_dump(alone | {"name": "errors", "kpi": kpi, "variants": variants}))
    folder = tmp_path / "errors"
    found = measured(project, load_spec(path), folder)
    assert found.kpi == Kpi("metrics.py:wrong", None, 0.1, smaller_is_better=True, maximum=0.15)
    assert [trial.verdict for trial in found.trials] == ["meets", "meets", "misses"]
    base, fine, coarse = found.trials
    assert base.score is not None
    assert fine.score is not None
    assert coarse.score is not None
    assert base.score.value <= fine.score.value < 0.1 < coarse.score.value
    assert [row.what for row in coarse.checks] == ["maximum", "tolerance"]
    assert decision.headline(found).startswith("Go: take w8, the only one of 2 variants that meets all that was asked")
    assert "metrics.py:wrong <= 0.15 and at most 0.1 above float" in str(plan_file(path, folder))
    show_run(found, folder)
    told = capsys.readouterr().out
    assert re.search(r"w1: maximum misses: 0\.\d+ \(.*\), at most 0\.15 is asked", told)
    assert re.search(r"w1: tolerance misses: \+0\.\d+ \(.*\), at most 0\.1 is asked", told)


def test_a_run_of_before_smaller_could_be_better_is_read(run: tuple[Run, Path], tmp_path: Path) -> None:
    content = json.loads((run[1] / "run.json").read_text())
    for key in ("smaller_is_better", "maximum"):
        del content["kpi"][key]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert read(Run, tmp_path / "run.json").kpi == run[0].kpi
    content = json.loads((run[1] / "variants/w2/trial.json").read_text())
    del content["score"]["undefined"]
    (tmp_path / "trial.json").write_text(json.dumps(content))
    assert read(Trial, tmp_path / "trial.json") == read(Trial, run[1] / "variants/w2/trial.json")


def test_plan_counts_seeds_and_names_budgets(run: tuple[Run, Path], project: Path, tmp_path: Path) -> None:
    plan = plan_file(project / "pilot.yaml", tmp_path / "elsewhere")
    told = str(plan)
    assert "accuracy >= 0.5 and at most 0.5 below float, file <= 1 MB, BOPs <= 1,000,000,000, onnxruntime" in told
    assert "seeds 4, 5: 2 of 3 variants learn and run 2 times, the rest once" in told
    assert [trial.name for trial in plan.trials][4:] == ["w2, seed 5", "curve, seed 5"]
    assert all(trial.kept for trial in plan_file(project / "pilot.yaml", run[1]).trials)
