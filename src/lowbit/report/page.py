"""The report: one HTML page, made from a run's records alone.

The page is for a person who decides, in the order that person reads: the verdict in one sentence, the variants beside
each other, what each costs, then everything about each variant, and how to make the figures again. It is one file that
asks the network for nothing: no script runs, the plots are drawn while the page is made (`charts`), and a Content
Security Policy forbids the rest. The records travel in the page as JSON, so that a program can read what a person sees.

Names come from outside (models, layers, runtimes, errors), so the template escapes every one of them; only the
drawings, in which Vega has escaped the text, and the JSON, in which Jinja has escaped ``<``, go in as they are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lowbit import __version__
from lowbit.pilot.record import LatencyRow, Run, Trial, Verdict
from lowbit.report import charts, factorizing, figures, learning, outputs, searching
from lowbit.report.figures import Metric

VERDICTS: dict[Verdict, str] = {
    "meets": "the whole 95 % interval is at or above the minimum.",
    "borderline": "the value is at or above the minimum but its interval reaches below it, or the value is below the "
    "minimum but its interval reaches above it. More test samples could decide it either way.",
    "misses": "the value and its whole interval are below the minimum.",
    "failed": "the variant could not be made or measured; its error says why.",
}


def render(run: Run) -> str:
    """The run as one HTML page that needs no network and no script."""
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            metric=Metric.of(run),
            float_trial=baseline(run),
            best=smallest(run),
            verdict=verdict(run),
            remark=remark(run),
            verdicts=VERDICTS,
            charts=charts.draw(run),
            timings=charts.latency_keys(run),
            strip=charts.strip(run),
            record=json_value(dataclasses.asdict(run)),
            version=__version__,
        )
    )


def variants(run: Run) -> list[Trial]:
    """Every trial but the float baseline."""
    return [trial for trial in run.trials if trial.recipe is not None]


def baseline(run: Run) -> Trial | None:
    """The float trial that ratios and differences refer to, if it could be measured."""
    return next((trial for trial in run.trials if trial.recipe is None and trial.verdict != "failed"), None)


def smallest(run: Run) -> Trial | None:
    """The variant with the smallest file among those that meet the KPI."""
    meeting = [trial for trial in variants(run) if trial.verdict == "meets"]
    return min(meeting, key=lambda trial: trial.file_bytes or math.inf, default=None)


def verdict(run: Run) -> str:
    """What the run says, in one plain sentence: how many variants meet the KPI, and the smallest that does."""
    metric, trials, reference = Metric.of(run), variants(run), baseline(run)
    asked = f"{metric.name} ≥ {metric.minimum(run.kpi.minimum)}"
    many = f"{len(trials)} variant{'' if len(trials) == 1 else 's'}"
    if not trials:
        if reference is None or reference.score is None:
            return "Nothing was measured: the run has no variant, and no float baseline that ran."
        value = metric.value(reference.score.value)
        return f"Only the float model was measured: at {value} it {_against(reference, asked)}."
    if all(trial.verdict == "failed" for trial in trials):
        return f"No variant could be measured: {len(trials)} of {len(trials)} failed."
    best = smallest(run)
    if best is None:
        close = max((t for t in trials if t.score), key=lambda t: t.score.value if t.score else -math.inf, default=None)
        at = f"; the best, {close.name}, has {metric.value(close.score.value)}" if close and close.score else ""
        word = ", which is borderline" if at and close and close.verdict == "borderline" else ""
        return f"0 of {many} {'meets' if len(trials) == 1 else 'meet'} {asked}{at}{word}."
    meeting = sum(trial.verdict == "meets" for trial in trials)
    facts = [best.name]
    if best.file_bytes:
        facts.append(figures.size(best.file_bytes))
        if reference and reference.file_bytes > best.file_bytes:
            facts.append(f"{figures.ratio(reference.file_bytes, best.file_bytes)} smaller than float")
    word = "meets" if meeting == 1 else "meet"
    return f"{meeting} of {many} {word} {asked}; smallest: {', '.join(facts)}."


def remark(run: Run) -> str:
    """What the sentence leaves out: how the other variants did, and what the float model scores."""
    trials, reference = variants(run), baseline(run)
    counts = [(sum(t.verdict == word for t in trials), word) for word in VERDICTS]
    others = [f"{number} {_word(word, number)}" for number, word in counts if number and word != "meets"]
    sentences = [f"Of the others, {figures.names(others)}."] if others and smallest(run) else []
    if others and not smallest(run) and len(others) > 1:
        sentences = [f"Of these, {figures.names(others)}."]
    if reference and reference.score and trials:
        metric = Metric.of(run)
        value, interval = metric.value(reference.score.value), metric.interval(reference.score)
        itself = "" if reference.verdict == "meets" else f", and itself {_against(reference, 'the minimum')}"
        sentences.append(f"The float model has {value} (95 % interval {interval}){itself}.")
    return " ".join(sentences)


def timing(trial: Trial, key: tuple[str, int, int]) -> LatencyRow | None:
    """A trial's latency in one runtime at one batch size and number of threads, if it was measured."""
    return next((row for row in trial.latencies if (row.runtime, row.batch, row.threads) == key), None)


def stayed_float(trial: Trial) -> list[tuple[str, str]]:
    """Each layer that the runtime ran in float, with the reason that its row gives."""
    reasons = {row.name: row.reason for row in trial.layers if row.reason}
    names = trial.verification.stayed_float if trial.verification else tuple(reasons)
    return [(name, reasons.get(name, "")) for name in names]


def _against(trial: Trial, asked: str) -> str:
    verbs: dict[Verdict, str] = {"meets": "meets", "borderline": "is borderline for", "misses": "misses"}
    return f"{verbs.get(trial.verdict, trial.verdict)} {asked}"


def _word(verdict: Verdict, number: int) -> str:
    several: dict[Verdict, str] = {
        "meets": "meet",
        "borderline": "are borderline",
        "misses": "miss",
        "failed": "failed",
    }
    one: dict[Verdict, str] = {"meets": "meets", "borderline": "is borderline", "misses": "misses", "failed": "failed"}
    return (one if number == 1 else several)[verdict]


def environment() -> Environment:
    """Where templates lie, and how they write figures, records and drawings; all else is escaped."""
    here = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    made.filters |= {
        "size": figures.size,
        "count": figures.count,
        "percent": figures.percent,
        "ms": figures.milliseconds,
        "decibels": figures.decibels,
        "headed": figures.headed,
        "moment": figures.moment,
        "seconds": figures.seconds,
        "shares": figures.shares,
        "threads": charts.threads,
        "timing": timing,
        "stayed_float": stayed_float,
        "gain": learning.gain,
        "way": learning.way,
        "teacher": learning.teacher,
        "learns_delta": learning.learns_delta,
        "curves": learning.curves,
        "search_way": searching.way,
        "search_spent": searching.spent,
        "search_training": searching.training,
        "beside_uniform": searching.beside_uniform,
        "members": searching.members,
        "number": searching.number,
        "points": searching.points,
        "chains_way": factorizing.way,
        "chains_spent": factorizing.spent,
        "chains_norms": factorizing.norms,
        "advice": factorizing.advice,
        "became": factorizing.became,
        "methods": factorizing.methods,
        "fitted": factorizing.fitted,
        "timed": factorizing.timed,
        "time": factorizing.time,
        "bought": outputs.bought,
        "output_way": outputs.way,
        "cautions": outputs.cautions,
        "output_advice": outputs.advice,
        "compared": outputs.compared,
        "left_out": outputs.left_out,
        "images": outputs.images,
        "error": outputs.figure,
        "significant": figures.significant,
        "yaml": _yaml,
        "keep": _keep,
        "drawing": _drawing,
    }
    made.globals |= {
        "ratio": figures.ratio,
        "agreement": learning.agreement,
        "bounds": learning.bounds,
        "cost": searching.cost,
        "cost_name": searching.cost_name,
        "errors": factorizing.errors,
        "METHODS": factorizing.METHODS,
        "flips": outputs.flips,
        "output_plots": outputs.plots,
        "fronts": searching.fronts,
        "moved": searching.moved,
        "moves": searching.strip,
        "shade": searching.shade,
    }
    return made


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(json_value(value), sort_keys=False, allow_unicode=True, width=100).rstrip()


def json_value(value: Any) -> Any:
    """The value as JSON has it: tuples are lists, what JSON cannot hold is text, and no number is infinite."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda constant: None)


def _keep(text: str) -> str:
    """The text with its figures kept on one line with their units."""
    return re.sub(r"(?<=[\d≥×]) (?=[\d%×]|MB|ms|pp|[KMGT]\b)", "\N{NO-BREAK SPACE}", text)


def _drawing(chart: charts.Chart) -> Markup:
    """The drawing as one image with a text alternative."""
    return Markup(chart.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(chart.summary)}" ', 1))
