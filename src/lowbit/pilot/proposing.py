"""The lines of a first pilot file: the KPI and the variants that fit what was seen, each with the reason for it."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.pilot.looking import TRAINING, Found, Given
from lowbit.pilot.metrics import SHARES
from lowbit.pilot.power import SURE
from lowbit.pilot.wording import a_little_below, comment, counted, listed, name_of, relative, scalar

if TYPE_CHECKING:
    from lowbit.data import Data

_CALIBRATING = 1024  # samples are enough to calibrate
_FEW_CALIBRATING = 32  # ranges come from extremes, which fewer samples hardly show
_FEW_TESTED = 100  # below, the interval of any figure is wide
_STEPS = 2000  # of training, about
_TEXT_RATE = 1e-4  # one step of 1e-3 took the embeddings of MiniLM from a cosine of 0.994 to 0.439
_WORSE = "That is worse than the mean of all targets: does the data belong to this model?"
_LOSS, _LOSS_OF_AGREEMENT, _LOSS_OF_R2, _LOSS_OF_COSINE = 0.01, 0.02, 0.1, 0.01


def lines(found: Found, model: str, data: Given, path: Path, weights: Path | None, test: Given | None) -> Iterator[str]:
    """The file, line by line; its paths are relative to its folder."""
    folder = path.absolute().parent
    yield from comment(
        f"Written by lowbit pilot --init for {model}. A start to edit: delete what you do not need. "
        f"docs/pilot.md explains every key."
    )
    yield "#"
    yield f"#   lowbit pilot {path.name} --plan    what will run, and how long it takes"
    yield f"#   lowbit pilot {path.name}           runs it, and writes report.html"
    yield f"name: {scalar(name_of(model))}"
    yield f"model: {scalar(relative(model, Path.cwd(), folder))}"
    if weights is None and model.startswith("hf:"):
        yield "# weights come with the model"
    elif weights is None:
        yield "# weights: weights.safetensors    none were given: the model is measured as its function built it"
    else:
        yield f"weights: {scalar(relative(os.fspath(weights), Path.cwd(), folder))}"
    yield ""
    yield from _data_lines(found, data, test, folder)
    yield ""
    yield from _kpi_lines(found)
    yield "# budgets:                 # what a variant may cost at most; each is judged"
    yield "#   size: 200 kB           # of the file; a number is bytes"
    yield "#   bops: 40 M             # bit operations of one sample"
    yield "#   latency: 2.5           # milliseconds, the median at the first batch size"
    yield "seed: 0"
    yield "# seeds: 3                 # in place of seed: what trains runs with 0, 1 and 2; the mean is judged"
    yield "runtime:"
    yield "  name: onnxruntime        # or openvino"
    yield "  threads: 1"
    yield "  batches: [1, 32]         # latency is measured at these batch sizes"
    yield "#   formats: [int8, int4]  # what the target executes natively: others are refused, or with widen: true told"
    yield "# defaults:                # what every variant starts from; its own keys win, and null drops one"
    yield "#   activations: int8"
    yield ""
    yield from _layer_lines(found)
    if found.texts:
        yield "# Sums and products between layers stay float (glue); on text, level balanced takes minutes a variant."
        yield "defaults: {glue: null, level: fast}"
    yield "variants:"
    yield from _variant_lines(found)


def _data_lines(found: Found, data: Given, test: Given | None, folder: Path) -> Iterator[str]:
    yield "data:"
    many = len(found.calibration) > _CALIBRATING and data[0].limit is None
    yield f"  calibration:             # {_described(found.calibration)}"
    yield from _section(data, folder, {"limit": _CALIBRATING} if many else {})
    if few := _few_calibrating(found):
        yield from comment(few, "  ")
    if many:
        yield f"  train:                   # variants that train take all {len(found.calibration)} samples"
        yield from _section(data, folder, {})
    if test is None:
        yield from comment(
            "No --test was given: the report is about the samples that set the ranges, and may look better than it is. "
            "Name others before you decide.",
            "  ",
        )
    yield f"  test:                    # {_described(found.test)}"
    yield from _section(test or data, folder, {})


def _section(given: Given, folder: Path, more: dict[str, Any]) -> Iterator[str]:
    section = given[0].model_dump(mode="json", exclude_defaults=True) | more
    section["source"] = relative(section["source"], given[1], folder)
    if "tokenizer" in section:  # in a file of data it is as seen from there, found by --init from here
        section["tokenizer"] = relative(section["tokenizer"], given[1], folder)
    for key in ("source", *(key for key in section if key != "source")):
        yield f"    {key}: {scalar(section[key])}"


def _described(data: Data) -> str:
    about = f"{counted(len(data), 'sample')} of {data.shapes}"
    if data.labels is None:
        return f"{about}, no labels"
    if data.labels.is_floating_point():
        return f"{about}, targets of {list(data.labels.shape[1:]) or 'one number'}"
    return f"{about}, labels of {len(np.unique(data.labels.numpy()))} classes"


def _kpi_lines(found: Found) -> Iterator[str]:
    scored, lost = counted(found.scored, "test sample"), _lost(found)
    match found.metric:
        case "accuracy":
            minimum = max(0.0, found.score - lost)
            why = f"The float model is right for {found.score:.2%} of {scored}; a variant may lose {lost:.0%} of them."
            if found.score < 2 / found.outputs[0]:
                why += " That is hardly more than guessing: check weights, labels and preprocessing first."
        case "r2":
            minimum = found.score - lost
            why = (
                f"The float model has r2 = {found.score:.6g} on {scored}; the squared error of a variant may be "
                f"{_LOSS_OF_R2:.0%} larger."
            )
            if found.score < 0:
                why += f" {_WORSE} Check weights, targets and preprocessing first."
        case "cosine":
            minimum = 1 - lost
            why = (
                "The model returns embeddings, so their mean cosine to those of the float model decides, which needs "
                f"no labels. The float model has 1; a variant may have {lost:g} less."
            )
        case _:
            minimum = 1 - lost
            why = (
                f"{_why_agreement(found)}, so agreement with the float model decides: the share of equal "
                "predictions (the largest output, or the sign of a single one). The float model has 1; a variant may "
                f"have {lost:.0%} less."
            )
            if not found.class_scores:
                why += (
                    f" Outputs {list(found.outputs)} are hardly class scores: write a module:function metric of your "
                    "own that measures what counts, and give data with labels for it."
                )
    yield from comment(f"{why} {_too_few(found)}")
    yield from comment(
        "tolerance is the most that may be lost against the float model on the same samples. Beside it or alone: "
        "minimum, the least that counts, which the float model has to reach too. A metric of your own is "
        "module:function, and the larger it is the better; for an error add smaller_is_better: true, and give maximum "
        "in the place of minimum."
    )
    yield f"kpi: {{metric: {found.metric}, tolerance: {lost:.2g}}}    # minimum: {a_little_below(minimum)}"


def _lost(found: Found) -> float:
    """What a variant may lose of the metric."""
    match found.metric:
        case "accuracy":
            return _LOSS
        case "r2":
            return _LOSS_OF_R2 * max(1 - found.score, 1e-6)
        case "cosine":
            return _LOSS_OF_COSINE
    return _LOSS_OF_AGREEMENT


def _too_few(found: Found) -> str:
    """A warning where even a variant that predicts the same everywhere has an interval wider than what may be lost.

    Of a metric that is no share of samples none can be told ahead; there very few samples are warned of.
    """
    number = f"{counted(len(found.test), 'test sample')} {'is' if len(found.test) == 1 else 'are'}"
    fewest = math.ceil(SURE / _lost(found)) - 2  # of `Scoring.difference`, which adds two samples
    if found.metric not in SHARES:
        few = f"{number} few: every interval will be wide; give {_FEW_TESTED} or more."
        return few if len(found.test) < _FEW_TESTED else ""
    if len(found.test) >= fewest:
        return ""
    return (
        f"{number} too few to tell so small a loss, and every variant will need more data: "
        f"give {fewest} or more, or a larger tolerance."
    )


def _few_calibrating(found: Found) -> str:
    """A warning where ranges come from very few samples."""
    number = len(found.calibration)
    if number >= _FEW_CALIBRATING:
        return ""
    return (
        f"{counted(number, 'calibration sample')} {'is' if number == 1 else 'are'} few: ranges of activations may cut "
        f"off what other inputs reach; give {_FEW_CALIBRATING} at least, better some hundred."
    )


def _why_agreement(found: Found) -> str:
    if found.test.labels is None:
        return "There are no labels"
    return "Accuracy takes a score for each class, and the model returns one for two"


def _layer_lines(found: Found) -> Iterator[str]:
    rows = found.coverage.quantized
    yield from comment(f"{len(rows)} layers can be quantized: {listed([row.name for row in rows])}.")
    skipped: dict[tuple[str, str], list[str]] = {}
    for row in found.coverage.skipped:
        skipped.setdefault((row.kind, row.reason), []).append(row.name)
    for (kind, reason), names in skipped.items():
        stay = "stays" if len(names) == 1 else "stay"
        yield from comment(f"{listed(names)} ({kind}) {stay} float: {reason}.")
    if found.idle:
        yield from comment(f"Not called on this data: {listed(found.idle)}.")
    if found.untraced:
        yield from comment(f"{found.coverage.note}.")
    else:
        yield "# torch.fx can trace the model: BatchNorms are folded, and adds and poolings run on integers too."


def _variant_lines(found: Found) -> Iterator[str]:
    ends = found.order[:1] + found.order[-1:] if len(found.order) > 2 else ()
    yield "  # 8 bits everywhere: a quarter of the size, the fastest kernels, and seldom a loss."
    yield "  - {name: w8a8, weights: int8, activations: int8}"
    kept = " The first and the last layer, which lose most, stay at 8." if ends else ""
    yield from comment(f"4-bit weights, stored packed, at the speed of 8 bits.{kept}", "  ")
    yield from _variant("w4a8", "int4", "int8", ends)
    yield "  # 4-bit floats, computed by the 8-bit kernels: storage, not speed."
    yield from _variant("fp4-a8", "e2m1", "int8", ends)
    if found.trains:
        yield f"  # 4-bit activations need training: here toward the float model's outputs, on {_trained_on(found)}."
        yield from _variant("w4a4-distilled", "int4", "int4", ends, [f"distill: {scalar(_training(found, 128))}"])
    else:
        section = scalar({"rate": _TEXT_RATE} if found.texts else {})
        best = "" if found.texts else " Level best takes minutes."  # and of a text network hours
        yield from comment(
            f"4-bit activations. Training would help (distill: {section}), and {len(found.calibration)} samples are "
            f"few for it: with {TRAINING} or more name them as data.train and add it.{best}",
            "  ",
        )
        yield from _variant("w4a4", "int4", "int4", ends, ["level: best"] if best else [])
    yield from _method_lines(found, ends)


def _method_lines(found: Found, ends: Sequence[str]) -> Iterator[str]:
    if found.trains and len(found.order) > 3 and not found.untraced:
        yield "  # A search decides which layers get 4 bits: the best network at 0.7 of the bit operations of 8 bits."
        search = {"choices": ["int4", "int8"], "budget": {"like": "int8", "share": 0.7}, **_training(found, 64)}
        yield "  - name: mixed"
        yield f"    search: {scalar(search)}"
    else:
        lacks = {
            "a model that can be traced": bool(found.untraced),
            "four layers or more": len(found.order) <= 3,
            f"{TRAINING} samples or more to train on": not found.trains,
        }
        yield f"  # No search: it needs {' and '.join(what for what, lacking in lacks.items() if lacking)}."
    if found.chains and not found.untraced:
        yield from comment(
            f"Convolutions that can become chains of smaller ones: {listed(found.chains)}. The report says where "
            "a dense layer of few bits is as good.",
            "  ",
        )
        yield from _variant("chains", "int4", "int8", ends, [f"factorize: {scalar(_chaining(found))}"])
    if found.metric != "r2":
        return
    if found.head:
        yield from comment(f"No output variants (fold, curve): {found.head}.", "  ")
        return
    yield "  # Outputs of 8 bits have 256 levels. A fold over four of them has more and needs no training;"
    yield from _variant("fold", "int8", "int8", (), ["output: {path: fold4}"])
    if found.trains:
        yield "  # a path that the noise chooses may have more still, and is learned (docs/curves.md)."
        yield from _variant("curve", "int8", "int8", (), ["output: {}"])


def _chaining(found: Found) -> dict[str, Any]:
    return {"choices": "2x", "layers": [glob.escape(name) for name in found.chains]}


def _trained_on(found: Found) -> str:
    return f"{len(found.calibration)} samples{'' if found.calibration.labels is None else ' (labels are not used)'}"


def _training(found: Found, size: int) -> dict[str, Any]:
    """Options of a training that takes some thousand steps at most."""
    steps = max(1, len(found.calibration) // size)
    options: dict[str, Any] = {"epochs": min(20, max(2, math.ceil(_STEPS / steps)))}
    if found.texts:
        options["rate"] = _TEXT_RATE
    if not found.class_scores and found.metric not in ("r2", "cosine"):
        options["loss"] = "mse"  # which r2 has by itself, and cosine its own
    return options


def _variant(name: str, weights: str, activations: str, ends: Iterable[str], more: Sequence[str] = ()) -> Iterator[str]:
    yield f"  - name: {name}"
    yield f"    weights: {weights}"
    yield f"    activations: {activations}"
    for line in more:
        yield f"    {line}"
    rules = [f"      - {scalar({'match': glob.escape(e), 'weights': 'int8', 'activations': 'int8'})}" for e in ends]
    if rules:
        yield "    rules:"
        yield from rules


def told(found: Found) -> Iterator[str]:
    """What was seen, in lines."""
    yield f"calibration: {_described(found.calibration)}; test: {_described(found.test)}"
    digits = "#.6g" if found.metric == "r2" else ".4f"
    yield f"float model: {found.metric} {found.score:{digits}} on {counted(found.scored, 'sample')}"
    if found.metric == "r2" and found.score < 0:
        yield f"warning: an r2 below 0. {_WORSE}"
    yield from (f"warning: {few}" for few in (_few_calibrating(found), _too_few(found)) if few)
    yield f"layers: {len(found.coverage.quantized)} can be quantized, {len(found.coverage.skipped)} stay float"
    if found.returns > 1:
        yield f"the model returns {found.returns} tensors: the first is scored and compared; return one to count all"
    if found.untraced:
        yield f"the model cannot be traced: {found.untraced}"
