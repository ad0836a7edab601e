"""What speaks against the grounds of a decision, whichever variant is taken: float model, test data, machine."""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterator, Mapping
from typing import Any

from lowbit.pilot.record import Run, Trial
from lowbit.report import decision
from lowbit.report.language import several, text
from lowbit.report.risks import Risk, named, ordered

_USUAL = ("inputs", "x", "X", "data", "images")  # arrays of an npz file that are inputs where none is named
FEW_CALIBRATING = 32  # samples: ranges come from their extremes, which fewer hardly show
FEW = 1000  # test samples; a share of 95 % has an interval of 1.4 points on either side then


def of_run(run: Run) -> list[Risk]:
    """What was found about the run itself, what weighs most first."""
    return ordered([*_float(run), *_data(run), *_machine(run), *_failed(run)])


def _float(run: Run) -> Iterator[Risk]:
    reference = next((trial for trial in run.trials if trial.recipe is None), None)
    if reference is None or reference.verdict == "failed":
        yield Risk(
            text("the float model could not be measured, so nothing tells what a variant lost"),
            text("float baseline"),
            text("read its error, and run the pilot again"),
            "high",
        )
    elif reference.verdict in ("misses", "borderline"):
        yield Risk(
            text("the float model itself does not surely reach what is asked"),
            text("float baseline"),
            text("ask for less, or for a loss against float (kpi.tolerance), or train the float model further"),
            "high",
        )


def _data(run: Run) -> Iterator[Risk]:
    samples = next((trial.score.samples for trial in run.trials if trial.score), 0)
    if 0 < samples < FEW:
        yield Risk(
            text(
                "the test data has {number} samples: figures are rough, and rare classes unseen", number=f"{samples:,}"
            ),
            text("test data"),
            text("test on more, {number} at least, with every class or range that matters", number=f"{FEW:,}"),
            "medium",
        )
    calibrated = run.provenance.samples.get("calibration", 0)
    if 0 < calibrated < FEW_CALIBRATING:
        yield Risk(
            several(
                "the calibration data has {number} sample: ranges of activations may cut off what others reach",
                "the calibration data has {number} samples: ranges of activations may cut off what others reach",
                calibrated,
            ),
            text("calibration data"),
            text("calibrate on more, {number} at least, of every kind that will come", number=f"{8 * FEW_CALIBRATING}"),
            "medium",
        )
    sections = run.pilot.get("data")
    if not isinstance(sections, Mapping):
        return
    test = sections.get("test")
    if _same(test, sections.get("train")) and any(map(_learned, run.trials)):
        yield Risk(
            text("variants were trained on the test data: their figures say nothing about new samples"),
            text("test data"),
            text("name other samples as data.test before you decide"),
            "high",
        )
    if _same(test, sections.get("calibration")):
        yield Risk(
            text("test and calibration data come from the same source: figures may look better than they are"),
            text("test data"),
            text("name other samples as data.test before you decide"),
            "high",
        )


def _learned(trial: Trial) -> bool:
    """Whether something of the variant was fitted to data.train."""
    return bool(trial.distillation or trial.search or trial.output or trial.features)


def _same(one: Any, other: Any) -> bool:
    """Whether two data sections are of the same samples: one source, and of an npz file the same array of it.

    Other inputs of a table are the same rows; a file that is named once from the root and once from here is not known
    to be one.
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return False
    first, second = (str(section.get("source") or "") for section in (one, other))
    if not first or os.path.normpath(first) != os.path.normpath(second):
        return False
    arrays = [section.get("inputs") for section in (one, other)]
    if not first.lower().endswith(".npz") or arrays[0] == arrays[1]:
        return True
    return None in arrays and any(array in _USUAL for array in arrays)


def _machine(run: Run) -> Iterator[Risk]:
    slow = [trial.name for trial in run.trials if _all_slower(trial, run)]
    if slow and len(slow) == sum(bool(t.latencies) for t in decision.variants(run)):
        yield Risk(
            text("no variant is faster than float on this machine"),
            run.provenance.machine.get("processor", "") or text("latency"),
            text("measure on the machine that will serve; here low bits save size alone"),
            "medium",
        )
    here = run.provenance.machine.get("processor", "")
    others = sorted({trial.processor for trial in run.trials if trial.processor} - {here})
    if others:
        yield Risk(
            text(
                "not all files were scored on this machine's processor ({name}); in integers the last bits differ",
                name=here,
            ),
            named([trial.name for trial in run.trials if trial.processor in others]),
            text("delete the folders of these variants and run the pilot again where it will serve"),
            "low",
        )


def _all_slower(trial: Trial, run: Run) -> bool:
    reference = decision.baseline(run)
    if trial.recipe is None or reference is None or not trial.latencies:
        return False
    before = [decision.timing(reference, (r.runtime, r.batch, r.threads)) for r in trial.latencies]
    times = [row.median_ms >= (b.median_ms if b else math.inf) for row, b in zip(trial.latencies, before, strict=True)]
    return all(times)


def _failed(run: Run) -> Iterator[Risk]:
    failed = [trial for trial in decision.variants(run) if trial.verdict == "failed"]
    if failed:
        yield Risk(
            several("{number} variant failed", "{number} variants failed", len(failed)),
            named([trial.name for trial in failed]),
            text("read the error, correct the pilot file, and run the same command again: what is finished is kept"),
            "low",
        )
