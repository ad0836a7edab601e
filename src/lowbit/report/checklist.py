"""Which methods fit this model, its data and its runtime, judged from what the run recorded.

Each method gets a plain sentence that says why it fits or not, the variants that used it, and where none did the lines
that a pilot file needs to try it, in formats that the target executes (`runtime.formats`) where the file names some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lowbit.formats import FLOAT
from lowbit.pilot.metrics import SHARES
from lowbit.pilot.record import LayerRow, Run, Trial
from lowbit.report import decision, figures, outputs
from lowbit.report.changes import on_integers
from lowbit.report.language import several, text
from lowbit.report.risks import bits, target, trained

Fit = Literal["fits", "maybe", "no"]
SHAPES: dict[Fit, str] = {"fits": "meets", "maybe": "borderline", "no": "failed"}  # the page's symbols
_SPREAD = 6.0  # dB of SQNR between layers, about one bit: below it all layers want the same format
_SHARE = 0.3  # of the MACs in convolutions: below it chains save little
_WIDE = 256  # features: from here on packing them into bits saves memory worth speaking of
_LAYERS = 4  # the fewest that a search is worth


@dataclass(frozen=True)
class Method:
    """A method: whether it fits, why, the variants that used it, and what to write to try it."""

    name: str
    fit: Fit
    why: str
    used: tuple[str, ...]
    line: str


def word(fit: Fit) -> str:
    """The fit as the page says it."""
    return {"fits": text("fits"), "maybe": text("maybe"), "no": text("does not fit")}[fit]


def methods(run: Run) -> list[Method]:
    """Every method, in the order in which one would try them."""
    layers = _layers(run)
    return [
        _eight(run, layers),
        _four(run),
        _floats(run),
        _distill(run),
        _search(run, layers),
        _factorize(run, layers),
        _output(run),
        _features(run, layers),
    ]


def _layers(run: Run) -> tuple[LayerRow, ...]:
    """The layers of the network as it came, or of the variant that has the most of them."""
    reference = decision.baseline(run)
    if reference and reference.layers:
        return reference.layers
    return max((trial.layers for trial in run.trials), key=len, default=())


def _used(run: Run, used: Callable[[Trial], Any]) -> tuple[str, ...]:
    return tuple(trial.name for trial in decision.variants(run) if used(trial))


def _weights(trial: Trial) -> set[str]:
    return {row.weights for row in trial.layers if row.weights != FLOAT}


def _is_integer(fmt: str) -> bool:
    return fmt.startswith(("int", "mid"))


def _is_low(fmt: str) -> bool:
    """Whether a format has fewer than 8 bits and is no low-bit float: integers, ternary, binary."""
    return 0 < bits(fmt) < 8 and not _is_float(fmt)


def _is_float(fmt: str) -> bool:
    return fmt.startswith(("e2", "e3", "e4", "e5", "mxfp", "nvfp"))


# Lines for the pilot file


@dataclass(frozen=True)
class _Formats:
    """The formats that lines may have: those of the target, or any where it names none or widens others.

    `low` are integers below 8 bits, what one would try first in front, `floats` low-bit floats. `beside` are those that
    activations and layers between have; None where no integer of 8 bits or fewer is there.
    """

    low: tuple[str, ...]
    floats: tuple[str, ...]
    eight: bool
    all: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> _Formats:
        native, section = target(run), run.pilot.get("runtime")
        if not native or (isinstance(section, Mapping) and section.get("widen")):
            return cls(("int4",), ("e2m1",), eight=True, all=("int4", "int8"))
        low = sorted((one for one in native if _is_integer(one) and bits(one) < 8), key=lambda one: one != "int4")
        return cls(tuple(low), tuple(filter(_is_float, native)), eight="int8" in native, all=native)

    @property
    def beside(self) -> str | None:
        """What activations have: int8, or the integer with the most bits."""
        return "int8" if self.eight else max(self.low, key=bits, default=None)

    @property
    def ending(self) -> str:
        """What ends a line: without int8 tensors between layers stay float."""
        return "" if self.eight else ", glue: null"


def _without(name: str, used: tuple[str, ...], run: Run) -> Method:
    """A method that the target has no formats for."""
    why = text(
        "The target has no formats for it (runtime.formats: {formats}); with runtime.widen: true it would store "
        "others, and compute them in more bits.",
        formats=", ".join(target(run)),
    )
    return Method(name, "no", why, used, "")


def _short(weights: str, activations: str) -> str:
    return f"w{bits(weights)}a{bits(activations)}"


def _joined(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"


# Method by method


def _eight(run: Run, layers: tuple[LayerRow, ...]) -> Method:
    used = _used(run, lambda trial: any(_is_integer(fmt) and bits(fmt) == 8 for fmt in _weights(trial)))
    why = several(
        "{number} layer has weights, and runtimes have 8-bit integer kernels; no labels and no training are needed.",
        "{number} layers have weights, and runtimes have 8-bit integer kernels; no labels and no training are needed.",
        len(layers),
    )
    if not _Formats.of(run).eight:
        return _without(text("8-bit integers"), used, run)
    line = "- {name: w8a8, weights: int8, activations: int8}"
    return Method(text("8-bit integers"), "fits" if layers else "maybe", why, used, line)


def _four(run: Run) -> Method:
    used = _used(run, lambda trial: any(map(_is_low, _weights(trial))))
    ran = {row.kernel for trial in run.trials for row in trial.layers if _is_low(row.weights) and row.kernel}
    if any("NBits" in kernel for kernel in ran):
        why = text(
            "This runtime has kernels for blocks of 4-bit weights (MatMulNBits), so they save time too where few rows "
            "enter."
        )
    elif any(on_integers(kernel) for kernel in ran):
        why = text("This runtime computes them with its 8-bit kernels: they save storage, at the speed of 8 bits.")
    elif ran:
        why = text("This runtime ran such layers in float: they save storage and may cost time.")
    else:
        why = text("They halve the file again; whether this runtime has kernels for them was not seen in this run.")
    formats = _Formats.of(run)
    if not formats.low or formats.beside is None:
        return _without(text("Weights of 4 bits and fewer"), used, run)
    weights, beside = formats.low[0], formats.beside
    name = _short(weights, beside)
    line = f"- {{name: {name}, weights: {weights}, activations: {beside}{formats.ending}}}"
    return Method(text("Weights of 4 bits and fewer"), "fits", why, used, line)


def _floats(run: Run) -> Method:
    used = _used(run, lambda trial: any(map(_is_float, _weights(trial))))
    why = text(
        "4-bit floats follow weights with many small and few large values better than int4; CPUs compute them with "
        "8-bit kernels or in float, so they are for storage, or for hardware that has them."
    )
    formats = _Formats.of(run)
    if not formats.floats or formats.beside is None:
        return _without(text("Low-bit floats"), used, run)
    weights, beside = formats.floats[0], formats.beside
    name = f"fp{bits(weights)}-a{bits(beside)}"
    line = f"- {{name: {name}, weights: {weights}, activations: {beside}{formats.ending}}}"
    return Method(text("Low-bit floats"), "maybe", why, used, line)


def _distill(run: Run) -> Method:
    used = _used(run, lambda trial: trial.distillation)
    untrained = [one for one in decision.variants(run) if one.difference and not trained(one)]
    lost = [one.name for one in untrained if one.difference and run.kpi.gain(one.difference).high < 0]
    if not untrained:
        why = text(
            "It needs inputs and no labels; here no variant was measured without training, so nothing tells its gain."
        )
    elif lost:
        why = several(
            "{names} surely loses something against float, and training toward the float model's outputs may win it "
            "back; it needs inputs, and no labels.",
            "{names} surely lose something against float, and training toward the float model's outputs may win it "
            "back; it needs inputs, and no labels.",
            len(lost),
            names=figures.names(lost[:4]),
        )
    else:
        why = text(
            "It needs inputs and no labels; here no variant without training surely lost anything, so post-training "
            "may do."
        )
    fit: Fit = "fits" if lost or used else "maybe"
    gains = [one.distillation.gain for one in decision.variants(run) if one.distillation and one.distillation.gain]
    if gains and all(gain.high < 0 for gain in gains):
        fit = "no"
        why = text(
            "It was tried here and lost: training made {names} worse than post-training alone.",
            names=figures.names(used[:4]),
        )
    formats = _Formats.of(run)
    lowest = formats.low[0] if formats.low else formats.beside
    if lowest is None:
        return _without(text("Distillation"), used, run)
    name = f"{_short(lowest, lowest)}-distilled"
    line = f"- {{name: {name}, weights: {lowest}, activations: {lowest}, distill: {{epochs: 20}}{formats.ending}}}"
    return Method(text("Distillation"), fit, why, used, line)


def _search(run: Run, layers: tuple[LayerRow, ...]) -> Method:
    used = _used(run, lambda trial: trial.search)
    formats = _Formats.of(run)
    if len(formats.all) < 2:
        return _without(text("Search"), used, run)
    among = ("int4", "int8") if {"int4", "int8"} <= {*formats.all} else formats.all
    like = max(among, key=bits)
    searched = f"{{choices: {_joined(among)}, budget: {{like: {like}, share: 0.7}}}}"
    line = f"- {{name: mixed, search: {searched}{formats.ending}}}"
    ratios = [
        [row.sqnr_db for row in trial.layers if row.sqnr_db is not None]
        for trial in decision.variants(run)
        if len(_weights(trial)) == 1
    ]
    spans = [max(found) - min(found) for found in ratios if len(found) > 1]
    if len(layers) < _LAYERS:
        why = several(
            "There is {number} layer to choose for: try its formats one by one instead.",
            "There are {number} layers to choose for: try their formats one by one instead.",
            len(layers),
        )
        return Method(text("Search"), "no", why, used, line)
    if spans and max(spans) < _SPREAD:
        why = text(
            "Layers stand the same format equally well: their signal to noise ratios lie within {span} dB, so a mix "
            "gains little.",
            span=f"{max(spans):.1f}",
        )
        return Method(text("Search"), "maybe", why, used, line)
    if spans:
        why = text(
            "Layers differ in how well they stand the same format: their signal to noise ratios lie {span} dB apart, "
            "so a mix of formats may be better than one.",
            span=f"{max(spans):.1f}",
        )
    else:
        why = several(
            "{number} layer could have a format of its own.",
            "{number} layers could each have a format of their own.",
            len(layers),
        )
    return Method(text("Search"), "fits", why, used, line)


def _factorize(run: Run, layers: tuple[LayerRow, ...]) -> Method:
    used = _used(run, lambda trial: trial.factorization)
    formats = _Formats.of(run)
    if formats.beside is None:
        return _without(text("Factorization"), used, run)
    weights, middle = formats.low[0] if formats.low else formats.beside, formats.beside
    chain = "{choices: 2x}" if formats.eight else f"{{choices: 2x, middle: {middle}}}"
    line = f"- {{name: chains, weights: {weights}, activations: {middle}, factorize: {chain}{formats.ending}}}"
    total = sum(row.macs for row in layers)
    share = sum(row.macs for row in layers[1:] if row.kind.startswith("Conv")) / total if total else 0.0
    if share < _SHARE:
        why = text(
            "{share} of the MACs are in convolutions behind the first layer, which chains are made of: little to save.",
            share=figures.percent(share),
        )
        return Method(text("Factorization"), "no", why, used, line)
    why = text(
        "{share} of the MACs are in convolutions behind the first layer, and those with a kernel larger than one can "
        "become chains; at three bits a weight or more a dense layer is often as good.",
        share=figures.percent(share),
    )
    return Method(text("Factorization"), "fits" if not used else "maybe", why, used, line)


def _output(run: Run) -> Method:
    used = _used(run, lambda trial: trial.output)
    line = "- {name: fold, weights: int8, activations: int8, output: {path: fold4}}"
    name = text("Numbers as points on a path")
    seen = _paths_measured(run)
    if run.kpi.metric in SHARES:
        why = text("Outputs are predictions of classes, and a path is for numbers: what rounds them changes few.")
        return Method(name, "no", why, used, line)
    if not _Formats.of(run).eight:
        return _without(name, used, run)
    if seen:
        gains = [outputs.beside_direct(trial.output) for trial in decision.variants(run) if trial.output]
        fit: Fit = "fits" if "better" in gains else "no" if {*gains} == {"worse"} else "maybe"
        return Method(name, fit, seen, used, line)
    if run.kpi.metric == "r2":
        why = text(
            "Outputs are numbers, and a direct output of 8 bits has 256 levels; a fold has more and needs no training, "
            "a path may have more still and is learned."
        )
        return Method(name, "fits", why, used, line)
    why = text("If outputs are numbers, a direct output of 8 bits has 256 levels, and a fold or a path has more.")
    return Method(name, "maybe", why, used, line)


def _paths_measured(run: Run) -> str:
    """What each path made of the error of a direct output; empty where none was measured beside one."""
    told = [
        text("{name} ({path}) made it {changed}", name=trial.name, path=trial.output.path, changed=changed)
        for trial in decision.variants(run)
        if trial.output and (changed := outputs.against_direct(trial.output))
    ]
    return text("Beside the error of a direct 8-bit output: {told}.", told="; ".join(told)) if told else ""


def _features(run: Run, layers: tuple[LayerRow, ...]) -> Method:
    used = _used(run, lambda trial: trial.features)
    line = "lowbit features sweep features.npz"
    name = text("Features as bits")
    last = layers[-1] if layers else None
    if last is None or last.kind != "Linear":
        return Method(name, "no", text("The network does not end in a linear layer that reads features."), used, line)
    if run.kpi.metric == "r2":
        why = text("Outputs are numbers; the study of features judges classes and neighbors.")
        return Method(name, "no", why, used, line)
    reads = math.prod(last.shape[1:])
    values = {"layer": last.name, "number": f"{reads:,}"}
    if not last.shape:
        why = text("Layer {layer} reads features; the study tells whether bits help a classifier.", layer=last.name)
    elif reads < _WIDE:
        why = text(
            "Layer {layer} reads {number} features: bits save little memory, and the study tells whether they help a "
            "classifier.",
            **values,
        )
    else:
        why = text(
            "Layer {layer} reads {number} features: stored as bits they take a thirty-second of the memory, which "
            "counts where many are kept and compared.",
            **values,
        )
    return Method(name, "maybe", why, used, line)
