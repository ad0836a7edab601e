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
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lowbit import __version__
from lowbit.pilot.record import Run, Trial
from lowbit.report import (
    changes,
    charts,
    checklist,
    coding,
    decision,
    factorizing,
    figures,
    grounds,
    language,
    learning,
    outputs,
    pareto,
    requirements,
    risks,
    rollout,
    searching,
)
from lowbit.report.figures import Metric
from lowbit.report.language import several, speaking, text


def render(run: Run, *, language: str = "en") -> str:
    """The run as one HTML page that needs no network and no script, in one of `language.LANGUAGES`."""
    with speaking(language):
        return _rendered(run)


def _rendered(run: Run) -> str:
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            metric=Metric.of(run),
            float_trial=decision.baseline(run),
            best=decision.recommended(run),
            headline=decision.headline(run),
            remark=decision.remark(run),
            asked=decision.asked(run),
            tag=decision.tag(run),
            words=decision.words(run),
            charts=pareto.draw(run),
            on_fronts=pareto.fronts(run),
            risks_of_run=grounds.of_run(run),
            stages=rollout.stages(run),
            instead=rollout.instead(run),
            checklist=checklist.methods(run),
            said_of={trial.name: decision.said(trial) for trial in run.trials},
            timings=pareto.latency_keys(run),
            strip=pareto.strip(run),
            bound=figures.bound(run),
            record=json_value(dataclasses.asdict(run)),
            version=__version__,
        )
    )


def stayed_float(trial: Trial) -> list[tuple[str, str]]:
    """Each layer of a low-bit variant that the runtime ran in float, with the reason that its row gives."""
    if trial.recipe is None:
        return []
    reasons = {row.name: row.reason for row in trial.layers if row.reason}
    names = trial.verification.stayed_float if trial.verification else tuple(reasons)
    return [(name, reasons.get(name, "")) for name in names]


def no_layer_stayed(trial: Trial) -> str:
    """What is said where no layer of a variant stayed float: operations without weights may have."""
    if trial.recipe is None:
        return text("It is the float model: all of it computes in float.")
    obstacles = trial.verification.obstacles if trial.verification else ()
    between = [*dict.fromkeys(operation for one in obstacles for operation in one.operations)]
    if not between:
        return text("No layer stayed float.")
    return several(
        "No layer stayed float, but {names} computes in float between integer layers.",
        "No layer stayed float, but {names} compute in float between integer layers.",
        len(between),
        names=figures.names(between),
    )


def other_parameters(trial: Trial) -> int:
    """Parameters that are no layer's weights: biases, norms, scales that were learned."""
    return trial.parameters - sum(row.parameters for row in trial.layers)


def environment() -> Environment:
    """Where templates lie, and how they write figures, records and drawings; all else is escaped."""
    here = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    made.install_gettext_callables(language.gettext, language.ngettext, newstyle=True)  # type: ignore[attr-defined]
    made.globals |= {"_": language.markup, "several": language.markup_several, "active": language.active}
    made.globals |= {"sentences": language.sentences, "gap": language.gap}
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    made.filters |= {
        "of_record": language.of_record,
        "told": language.text,
        "size": figures.size,
        "count": figures.count,
        "percent": figures.percent,
        "ms": figures.milliseconds,
        "decibels": figures.decibels,
        "headed": figures.headed,
        "moment": figures.moment,
        "seconds": figures.seconds,
        "shares": figures.shares,
        "threads": pareto.threads,
        "timed_by": pareto.timed_by,
        "timing": decision.timing,
        "decided": decision.word,
        "said": decision.said,
        "requirements": requirements.of_trial,
        "risks": risks.of_trial,
        "severity": risks.name,
        "changes": changes.of_trial,
        "fit": checklist.word,
        "stayed_float": stayed_float,
        "no_layer_stayed": no_layer_stayed,
        "other_parameters": other_parameters,
        "gain": learning.gain,
        "codes_verdict": coding.verdict,
        "codes_way": coding.way,
        "codes_take": coding.takes,
        "codes_facts": coding.codes,
        "codes_compared": coding.compared,
        "codes_advice": coding.advice,
        "codes_plot": coding.plot,
        "way": learning.way,
        "teacher": learning.teacher,
        "concerns": learning.concerns,
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
        "method": factorizing.method,
        "fitted": factorizing.fitted,
        "timed": factorizing.timed,
        "time": factorizing.time,
        "bought": outputs.bought,
        "output_way": outputs.way,
        "cautions": outputs.cautions,
        "output_advice": outputs.advice,
        "compared": outputs.compared,
        "left_out": outputs.left_out,
        "few_candidates": outputs.few_candidates,
        "images": outputs.images,
        "error": outputs.figure,
        "r2": outputs.r2,
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
        "FITS": checklist.SHAPES,
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


def _keep(sentence: str) -> str:
    """The text with its figures kept on one line with their units."""
    kept = re.sub(r"(?<=[\d≥×]) (?=[\d%×]|[kMG]B|ms|pp|[KMGT]\b)", "\N{NO-BREAK SPACE}", sentence)
    return Markup(kept) if isinstance(sentence, Markup) else kept


def _drawing(chart: charts.Chart) -> Markup:
    """The drawing as one image with a text alternative."""
    return Markup(chart.svg.replace("<svg ", f'<svg role="img" aria-label="{escape(chart.summary)}" ', 1))
