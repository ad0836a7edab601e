"""What can be seen of a model and its data before a pilot: layers, how they can be quantized, and the float score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lowbit.arrays import UnnamedError
from lowbit.batches import call, output_tensor, output_tensors, without_labels
from lowbit.errors import DataError, LayerError, LowbitError
from lowbit.export.capture import capture
from lowbit.layers import CONVOLUTIONS, unsupported_layers, weighted_layers
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.heads import wrap_head
from lowbit.methods.curves.paths import Snake
from lowbit.methods.factorization.chains import kinds_of, ranks_of
from lowbit.pilot import statistics
from lowbit.pilot.labels import check_labels
from lowbit.pilot.outputs import BATCH
from lowbit.pilot.spec import DataSpec, PreprocessSpec
from lowbit.quantization import Coverage, coverage, origin, quantize
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.data import Data

_SCORED = 1000  # test samples that the float model is scored on
TRAINING = 512  # samples are the fewest to train on
Given = tuple[DataSpec, Path]  # a data section, and the folder that its paths are relative to


@dataclass(frozen=True)
class Found:
    """What was seen: the float model, its data, its score, and the layers by how they can be quantized."""

    model: nn.Module
    calibration: Data
    test: Data
    outputs: tuple[int, ...]  # shape of a sample's
    metric: str
    score: float
    scored: int
    coverage: Coverage
    untraced: str
    returns: int  # tensors, of which the first counts
    order: tuple[str, ...]  # quantized layers as the model calls them
    idle: tuple[str, ...]  # layers that it does not call
    chains: tuple[str, ...]  # convolutions that can become chains
    head: str  # why the output cannot be written along a path, empty if it can

    @property
    def texts(self) -> bool:
        """Whether inputs are tokens."""
        return "input_ids" in self.calibration.shapes

    @property
    def trains(self) -> bool:
        """Whether there are samples enough to train on."""
        return len(self.calibration) >= TRAINING

    @property
    def class_scores(self) -> bool:
        """Whether outputs are the scores of classes, as far as their shape tells."""
        return self.metric not in ("r2", "cosine") and len(self.outputs) == 1 and self.outputs[0] > 1


def look(model: str, data: Given, weights: Path | None, test: Given | None) -> Found:
    """Load a model, open its data, and look at both.

    Raises:
        DataError: one cannot be read, or they do not fit each other.
        ExportError: torch cannot export the model.
        LayerError: no layer of the model can be quantized.
    """
    from lowbit import models

    network = models.load(model, weights)
    calibration, tested = _opened(data, "--data"), _opened(test or data, "--test")
    every = calibration if test is None else tested
    with torch.no_grad():
        returned = call(network, next(iter(calibration.batches(2))))
        output, returns = output_tensor(returned), len(output_tensors(returned))
        drawn = every.take(_SCORED, 0) if len(every) > _SCORED else every
        outputs = torch.cat([output_tensor(call(network, batch)) for batch in drawn.batches(BATCH)])
    if output.shape[1:] != outputs.shape[1:]:
        got, expected = list(outputs.shape[1:]), list(output.shape[1:])
        raise DataError(
            f"--test: the model returns {got} a sample, and {expected} for --data; give inputs of one shape to both"
        )
    if not outputs.isfinite().all():
        raise DataError(f"model '{model}' returns NaN or infinity on '{every.name}'; check weights and preprocessing")
    embeds = model.startswith("hf:") and _embeds(model)
    try:
        metric, score = _scored(outputs, None if embeds else drawn.labels, embeds=embeds)
    except DataError as error:
        if returns > 1:
            raise DataError(f"{error}. The model returns {returns} tensors, of which the first counts") from error
        raise
    if not weighted_layers(network):
        reasons = "; ".join(f"{name}: {why}" for name, why in unsupported_layers(network).items())
        raise LayerError(f"model '{model}' has no layer that can be quantized: {reasons or 'it has no weights'}")
    student = quantize(network, Recipe.uniform("int8", "int8"))
    noted = origin(student)
    if noted and noted.untraced:  # what cannot be traced for quantizing cannot always be exported
        capture(network, without_labels(next(iter(calibration.batches(2)))), 21, dynamic_batch=True)
    covered = coverage(student)
    layers = weighted_layers(network)
    called = _called(network, next(iter(calibration.batches(2))))
    usable = {row.name for row in covered.quantized} & {*called}
    return Found(
        network,
        calibration,
        tested,
        tuple(outputs.shape[1:]),
        metric,
        score,
        len(outputs),
        covered,
        noted.untraced if noted else "",
        returns,
        tuple(name for name in called if name in usable),
        tuple(name for name in layers if name not in called),
        tuple(name for name in [*layers][1:] if name in usable and _makes_a_chain(layers[name])),
        _why_no_path(network, outputs) if metric == "r2" else "it is for numbers",
    )


def _opened(given: Given, where: str) -> Data:
    try:
        return given[0].open(given[1], 0)
    except UnnamedError as error:
        told = f"{where}: {error.found}; name one, such as --inputs {error.likely}"
        raise DataError(f"{told}, or give a YAML file with source, inputs and labels") from None
    except LowbitError as error:
        raise DataError(f"{where}: {error}") from error


def _scored(outputs: Tensor, labels: Tensor | None, *, embeds: bool) -> tuple[str, float]:
    """The metric that suits labels and outputs, and its value for the float model; `embeds` if those are embeddings."""
    if labels is None:
        return ("cosine" if embeds else "agreement"), 1.0
    found, wanted = outputs.numpy(), labels.numpy()
    classes = not labels.is_floating_point() and labels.dim() == 1
    if classes and outputs.dim() == 2 and outputs.shape[1] > 1:
        check_labels("accuracy", outputs, labels)
        return "accuracy", float((statistics.predictions(found) == wanted).mean())
    if classes and outputs[0].numel() == 1 and set(np.unique(wanted)) <= {0, 1}:
        return (
            "agreement",
            1.0,
        )  # one score for two classes: its sign is the prediction, and accuracy takes [N, classes]
    if labels[0].numel() != outputs[0].numel():
        raise DataError(
            f"the model returns {list(outputs.shape[1:])} a sample, labels are {list(labels.shape[1:]) or 'a number'}, "
            "which fit neither as classes nor as targets; check which array is labels, or leave labels out"
        )
    if bool((labels == labels[0]).all()):
        raise DataError("all targets are equal, so nothing tells a good model from a bad one; give other test data")
    return "r2", statistics.r2(found, wanted)


def _embeds(model: str) -> bool:
    """Whether a model of Hugging Face returns embeddings, and no class scores."""
    from lowbit.huggingface import kind_of

    return kind_of(model, Path.cwd()) == "embedder"


def fitted(model: str, given: Given) -> Given:
    """A data section with the tokenizer or the image settings of a Hugging Face model, if it says nothing of them."""
    from lowbit.data import column_names
    from lowbit.huggingface import kind_of, preprocessing
    from lowbit.named import TEXTS

    spec, folder = given
    path = folder / Path(spec.source).expanduser()
    if kind_of(model, Path.cwd()) != "image classifier":
        columns = column_names(path, spec.source, folder) if spec.inputs is None and spec.tokenizer is None else ()
        if "input_ids" not in columns and any(name in columns for name in TEXTS):
            return spec.model_copy(update={"tokenizer": model}), folder
        return given
    if spec.preprocess == PreprocessSpec() and path.suffix.lower() != ".npz" and ":" not in spec.source:
        found = PreprocessSpec.model_validate(preprocessing(model, Path.cwd()))
        return spec.model_copy(update={"preprocess": found}), folder
    return given


def _called(model: nn.Module, batch: Any) -> list[str]:
    """Layers with weights in the order of their first call."""
    called: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: called.append(name)

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in weighted_layers(model).items()]
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [*dict.fromkeys(called)]


def _makes_a_chain(layer: nn.Module) -> bool:
    """Whether a layer is a convolution whose kernel can be factorized to half its weights."""
    kinds = kinds_of(layer) if isinstance(layer, CONVOLUTIONS) else ()
    return bool(kinds) and kinds[0] == "cp" and ranks_of(layer, "cp").at(2.0) > 0


def _why_no_path(model: nn.Module, outputs: Tensor) -> str:
    try:
        wrap_head(model, Codec(0.0, 1.0, Snake()))
    except LowbitError as error:
        return f"the model does not end in a layer that can be widened ({error})"
    if outputs.dim() not in (2, 4):
        return f"outputs are {list(outputs.shape[1:])} a sample, and a path is for [T] or [T, H, W]"
    return ""
