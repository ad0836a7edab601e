"""The verbs: quantize a model by a recipe, calibrate its activations, freeze its codes; and what they covered."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import fx, nn

from lowbit import graph
from lowbit.batches import Batch, Batches, call, expect_batches, finite_batches, inputs_of, size_of
from lowbit.errors import CalibrationError, DataWarning, LayerError
from lowbit.formats import FLOAT
from lowbit.inputs import InputStatistics, InputWatch
from lowbit.layers import (
    Quantized,
    quantized_layer,
    replace,
    takes_factors,
    turn_off_fused_paths,
    unsupported_layers,
    weighted_layers,
    why_not,
)
from lowbit.progress import track
from lowbit.quantizer import Codes, Quantizer
from lowbit.recipe import Recipe, Rule
from lowbit.scales import PERCENTILE, Histogram

UNTRACED = (
    "the model cannot be traced ({reason}), so layers were swapped one by one: BatchNorms are not folded, and adds, "
    "poolings and the outputs of convolutions stay float, which keeps those convolutions off integer kernels"
)


_OUTLIER = 100.0  # times the percentile: 8-bit codes of the others are then two or three


@dataclass(frozen=True)
class Origin:
    """Where a student came from: its recipe, why it could not be traced (empty if it was), what calibrated it.

    `folded` tells whether its BatchNorms were folded, and `steps` what was done to it after calibration, in order.
    """

    recipe: Recipe
    untraced: str = ""
    folded: bool = True
    calibration_samples: int = 0
    calibration_hash: str = ""
    inputs: Mapping[str, InputStatistics] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


def origin(student: nn.Module) -> Origin | None:
    """The origin that `quantize` noted on a student, None for any other model."""
    return getattr(student, "meta", {}).get("lowbit")


def note(student: nn.Module, step: str = "", **known: Any) -> None:
    """Add to the origin of a student: a step that changed it, or fields of `Origin`; nothing for any other model."""
    noted = origin(student)
    if noted is not None:  # copies of a student may share one origin: it is replaced, never changed
        changed = replace_fields(noted, steps=(*noted.steps, *([step] if step else [])), **known)
        student.meta = {**student.meta, "lowbit": changed}  # type: ignore[dict-item, assignment]


def quantize(model: nn.Module, recipe: Recipe, *, fold: bool = True) -> nn.Module:
    """A copy of `model` with quantizers where `recipe` wants them; `model` is not changed.

    The copy is a traced graph (`torch.fx.GraphModule`) whose layers keep their names, with BatchNorms folded and
    activation quantizers on its tensors (see `lowbit.graph`); a model that cannot be traced keeps its class and gets
    quantizers inside its layers only, which `coverage` tells. Weight scales are set here; call `calibrate` for the
    activations. The copy is in eval mode.

    Args:
        model: a trained network with float weights.
        recipe: what happens to which layer.
        fold: fold BatchNorms into the layers before them. Keep them for `distill`, which trains better with them and
            folds them at the end.

    Raises:
        RecipeError: a rule matches no layer.
        LayerError: a layer cannot be quantized as asked, the model is quantized already, or nothing changed.
    """
    if any(isinstance(m, (Quantized, Quantizer)) for m in model.modules()):
        raise LayerError("the model is quantized already; quantize the float model it was made from")
    traced = graph.trace(copy.deepcopy(model).eval())
    # a model that cannot be traced is copied again: tracing may have left something in the first copy
    student = traced if isinstance(traced, fx.GraphModule) else copy.deepcopy(model).eval()
    resolved = recipe.resolve(weighted_layers(student))
    if isinstance(traced, fx.GraphModule):
        rigid = [name for name, rule in resolved.items() if rule and not _takes_factors(student, name, rule)]
        graph.fold_batchnorm(traced, None if fold else rigid)
        graph.keep_batchnorm(traced)
    in_graph = {n.target for n in traced.graph.nodes} if isinstance(traced, fx.GraphModule) else set()
    rules = {}
    for name, rule in resolved.items():
        layer = student.get_submodule(name)
        if rule is None or why_not(layer):
            continue
        quantized = quantized_layer(name, layer, rule, own_input=name not in in_graph)
        if quantized is None:
            continue
        student = replace(student, layer, quantized)
        rules[name] = rule
    if not rules:
        reasons = {why_not(m) for m in weighted_layers(student).values()} | set(unsupported_layers(student).values())
        raise LayerError(
            f"no layer of {type(model).__name__} was quantized: "
            + ("; ".join(sorted(reasons - {""})) or "the recipe leaves every layer float; give weights or activations")
        )
    turn_off_fused_paths(student)
    if isinstance(traced, fx.GraphModule) and student is traced:
        graph.place(traced, rules, recipe.glue)
    # fx copies `meta` along with a graph; a plain module copies all its attributes
    kept = getattr(student, "meta", None)
    noted = Origin(recipe, traced if isinstance(traced, str) else "", fold)
    student.meta = {**(kept if isinstance(kept, dict) else {}), "lowbit": noted}  # type: ignore[assignment]
    return student


def _takes_factors(model: nn.Module, name: str, rule: Rule) -> bool:
    return rule.weights is None or takes_factors(model.get_submodule(name), rule.weights, rule.granularity)


def calibrate(student: nn.Module, batches: Batches, *, progress: bool = True) -> None:
    """Set the scales of all activation quantizers, in place, from what `batches` send through the model.

    One pass, in memory that does not grow with the number of batches. If anything fails, earlier scales are kept.

    Args:
        student: the result of `quantize`.
        batches: tensors, tuples that begin with the input, or dicts of keyword arguments. No labels needed.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, NaN or infinite inputs or activations, or a quantizer that saw no data.
        DataError: one tensor instead of batches, or batches that the model does not take.
    """
    expect_batches(batches)
    quantizers = activation_quantizers(student)
    if not quantizers:  # nothing to run for, but what the inputs are is noted
        inputs, count, digest = InputWatch(), 0, hashlib.sha256()
        for batch in finite_batches(batches):
            count += _note_inputs(batch, inputs, digest)
        found = inputs.statistics()
        note(student, calibration_samples=count, calibration_hash=digest.hexdigest() if count else "", inputs=found)
        return
    training = student.training
    try:
        samples, hashed, seen = _watch(student.eval(), quantizers.values(), batches, progress)
        for name, quantizer in list(quantizers.items()):
            if quantizer.reads_integers and isinstance(student, fx.GraphModule):
                graph.remove(student, name)
                del quantizers[name]
        for quantizer in quantizers.values():
            if not quantizer.histogram or not quantizer.histogram.seen:
                quantizer.fit_histogram()  # raises, before any scale has changed
        _warn_of_outliers(quantizers)
        for quantizer in quantizers.values():
            quantizer.fit_histogram()
        note(student, calibration_samples=samples, calibration_hash=hashed, inputs=seen)
    finally:
        for quantizer in quantizers.values():
            quantizer.histogram = None
        student.train(training)


def _warn_of_outliers(quantizers: Mapping[str, Quantizer]) -> None:
    for name, quantizer in quantizers.items():
        if quantizer.histogram is not None and (farther := quantizer.histogram.outlier()) > _OUTLIER:
            warnings.warn(
                f"activations {name!r}: the largest of the calibration samples is {farther:.0f} times the "
                f"{PERCENTILE}th percentile, and a scale that holds it leaves few codes to the others; look at the "
                "samples, or set activation_scale to percentile in the recipe",
                DataWarning,
                stacklevel=3,
            )


def _watch(
    student: nn.Module, quantizers: Collection[Quantizer], batches: Batches, progress: bool
) -> tuple[int, str, dict[str, InputStatistics]]:
    """Send all batches through with the quantizers watching; the number, a hash, and statistics of the inputs."""
    samples, digest, inputs = 0, hashlib.sha256(), InputWatch()
    for quantizer in quantizers:
        quantizer.histogram = Histogram()
    with torch.no_grad():
        for batch in finite_batches(track(batches, "calibrate", show=progress)):
            call(student, batch)
            samples += _note_inputs(batch, inputs, digest)
    if not samples:
        raise CalibrationError("calibration got no batches; give at least one")
    return samples, digest.hexdigest(), inputs.statistics()


def _note_inputs(batch: Batch, inputs: InputWatch, digest: hashlib._Hash) -> int:
    """Take a batch into the statistics and the hash; its number of samples."""
    inputs.add(batch)
    args, kwargs = inputs_of(batch)
    for tensor in (*args, *kwargs.values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return size_of(batch)


def freeze(student: nn.Module) -> nn.Module:
    """A copy of `student` whose weights are packed codes; float weights are dropped.

    A layer with integer weights and activations then computes as an integer kernel does: sums of codes, and a bias
    rounded to multiples of input scale x weight scale.

    Raises:
        CalibrationError: an activation quantizer has no scale yet.
    """
    for name, quantizer in activation_quantizers(student).items():
        if not quantizer.ready:
            raise CalibrationError(f"{name!r} has no scale yet; call calibrate(student, batches) before freezing")
    frozen = copy.deepcopy(student).eval()
    inputs = graph.sole_input_quantizers(frozen)
    for name, layer in frozen.named_modules():
        if isinstance(layer, Quantized):
            layer.freeze(inputs.get(name))
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen


def activation_quantizers(student: nn.Module) -> dict[str, Quantizer]:
    """Every quantizer that is not a weight's, by module name, in the order of the module tree."""
    weights = {id(m.weight_quantizer) for m in student.modules() if isinstance(m, Quantized)}
    return {n: m for n, m in student.named_modules() if isinstance(m, Quantizer) and id(m) not in weights}


@dataclass(frozen=True)
class LayerCoverage:
    """One layer: its formats as names (``float32`` where untouched), or the reason why it was skipped."""

    name: str
    kind: str
    weights: str
    activations: str
    granularity: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What of a model is quantized; `note` tells what an untraced model costs, empty for a traced one."""

    layers: tuple[LayerCoverage, ...]
    note: str = ""

    def __str__(self) -> str:
        lines = []
        for row in self.layers:
            what = row.reason or f"weights {row.weights} per {row.granularity}, activations {row.activations}"
            lines.append(f"{row.name} ({row.kind}): {what}")
        return "\n".join([*lines, *([self.note] if self.note else [])])

    @property
    def quantized(self) -> tuple[LayerCoverage, ...]:
        """Layers with at least one quantizer."""
        return tuple(row for row in self.layers if not row.reason)

    @property
    def skipped(self) -> tuple[LayerCoverage, ...]:
        """Layers left float, each with its reason."""
        return tuple(row for row in self.layers if row.reason)


def _format_name(quantizer: Quantizer | Codes | None) -> str:
    return str(quantizer.format) if quantizer else FLOAT


def coverage(student: nn.Module) -> Coverage:
    """Every layer with weights of `student`: how it is quantized, or why it is not."""
    inputs = graph.input_quantizers(student)
    rows = []
    for name, layer in weighted_layers(student).items():
        if not isinstance(layer, Quantized):
            reason = why_not(layer) or "the recipe leaves it float"
            rows.append(LayerCoverage(name, type(layer).__name__, FLOAT, FLOAT, "", reason))
            continue
        weights, reads = layer.weight_quantizer, inputs.get(name)
        granularity = str(weights.granularity) if weights else ""
        rows.append(
            LayerCoverage(name, type(layer.layer).__name__, _format_name(weights), _format_name(reads), granularity, "")
        )
    for name, reason in unsupported_layers(student).items():
        kind = type(student.get_submodule(name)).__name__
        rows.append(LayerCoverage(name, kind, FLOAT, FLOAT, "", reason))
    noted = origin(student)
    return Coverage(tuple(rows), UNTRACED.format(reason=noted.untraced) if noted and noted.untraced else "")
