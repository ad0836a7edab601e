"""A first pilot file for a model and data, written after looking at both, with a comment for every choice in it.

The model is loaded, traced and quantized once, the data is opened, and the float model is scored on some of it. From
that follow the KPI and the variants that fit: formats for all layers with the first and the last one at 8 bits,
training where there are samples enough, a search, chains where there are convolutions for them, and for numbers an
output on a path. The file is a start to edit: its comments say what was found and why each line is there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import call, output_tensor
from lowbit.errors import DataError, LayerError, LowbitError
from lowbit.layers import CONVOLUTIONS, unsupported_layers, weighted_layers
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.heads import wrap_head
from lowbit.methods.curves.paths import Snake
from lowbit.methods.factorization.chains import kinds_of, ranks_of
from lowbit.pilot import statistics
from lowbit.pilot.spec import DataSpec, PreprocessSpec, load_spec
from lowbit.pilot.trial import BATCH
from lowbit.quantization import Coverage, coverage, origin, quantize
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.data import Data

_SCORED = 1000  # test samples that the float model is scored on
_CALIBRATING = 1024  # samples are enough to calibrate
_TRAINING = 512  # samples are the fewest to train on
_STEPS = 2000  # of training, about
_LOSS, _LOSS_OF_AGREEMENT, _LOSS_OF_R2, _LOSS_OF_COSINE = 0.01, 0.02, 0.1, 0.01
_WIDTH = 116  # characters of a comment
_GENERAL = {"build", "build_model", "create", "create_model", "get_model", "load", "main", "make", "model", "net"}
Given = tuple[DataSpec, Path]  # a data section, and the folder that its paths are relative to


@dataclass(frozen=True)
class _Found:
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
        return len(self.calibration) >= _TRAINING

    @property
    def class_scores(self) -> bool:
        """Whether outputs are the scores of classes, as far as their shape tells."""
        return self.metric not in ("r2", "cosine") and len(self.outputs) == 1 and self.outputs[0] > 1


def start(model: str, data: Given, path: Path, *, weights: Path | None = None, test: Given | None = None) -> list[str]:
    """Write a pilot file for a model and data, and return what was found, in lines.

    Args:
        model: ``module:function`` or ``path/to/file.py:function``; a path is relative to the current folder.
        data: for calibration, and to train on where there is enough of it.
        path: of the file; paths in it will be relative to its folder.
        weights: of the model, relative to the current folder.
        test: to report on; the calibration data without it, which the file warns of.

    Raises:
        DataError: the file is there already, the model or the data cannot be read, or do not fit each other.
        LayerError: no layer of the model can be quantized.
    """
    if path.exists():
        raise DataError(f"'{path}' is there already and stays as it is; give another name with --out, or delete it")
    if not path.absolute().parent.is_dir():
        raise DataError(f"cannot write '{path}': there is no folder '{path.parent}'; create it first")
    if model.startswith("hf:"):
        data, test = _fitted(model, data), None if test is None else _fitted(model, test)
    found = _look(model, data, weights, test)
    text = "\n".join(_lines(found, model, data, path, weights, test)) + "\n"
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        load_spec(temporary)  # a file that cannot be read is not written
    return list(_told(found))


def _look(model: str, data: Given, weights: Path | None, test: Given | None) -> _Found:
    from lowbit import models

    network = models.load(model, weights)
    calibration, tested = _opened(data, "--data"), _opened(test or data, "--test")
    every = calibration if test is None else tested
    with torch.no_grad():
        output = output_tensor(call(network, next(iter(calibration.batches(2)))))
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
    metric, score = _scored(outputs, None if embeds else drawn.labels, embeds=embeds)
    if not weighted_layers(network):
        reasons = "; ".join(f"{name}: {why}" for name, why in unsupported_layers(network).items())
        raise LayerError(f"model '{model}' has no layer that can be quantized: {reasons or 'it has no weights'}")
    student = quantize(network, Recipe.uniform("int8", "int8"))
    noted = origin(student)
    covered = coverage(student)
    layers = weighted_layers(network)
    called = _called(network, next(iter(calibration.batches(2))))
    usable = {row.name for row in covered.quantized} & {*called}
    return _Found(
        network,
        calibration,
        tested,
        tuple(outputs.shape[1:]),
        metric,
        score,
        len(outputs),
        covered,
        noted.untraced if noted else "",
        tuple(name for name in called if name in usable),
        tuple(name for name in layers if name not in called),
        tuple(name for name in [*layers][1:] if name in usable and _makes_a_chain(layers[name])),
        _why_no_path(network, outputs) if metric == "r2" else "it is for numbers",
    )


def _opened(given: Given, where: str) -> Data:
    try:
        return given[0].open(given[1], 0)
    except LowbitError as error:
        raise DataError(f"{where}: {error}") from error


def _scored(outputs: Tensor, labels: Tensor | None, *, embeds: bool) -> tuple[str, float]:
    """The metric that suits labels and outputs, and its value for the float model; `embeds` if those are embeddings."""
    if labels is None:
        return ("cosine" if embeds else "agreement"), 1.0
    found, wanted = outputs.numpy(), labels.numpy()
    classes = not labels.is_floating_point() and labels.dim() == 1
    if classes and outputs.dim() == 2 and outputs.shape[1] > 1:
        if not 0 <= wanted.min() <= wanted.max() < outputs.shape[1]:
            raise DataError(
                f"labels are {wanted.min()} to {wanted.max()}, the model returns scores of {outputs.shape[1]} classes, "
                "which are numbered from 0; check which array is labels"
            )
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
    rows = wanted.reshape(len(wanted), -1).astype(np.float64)
    rest = ((found.reshape(len(found), -1) - rows) ** 2).sum()
    return "r2", float(1 - rest / ((rows - rows.mean(0)) ** 2).sum())


def _embeds(model: str) -> bool:
    """Whether a model of Hugging Face returns embeddings, and no class scores."""
    from lowbit.huggingface import kind_of

    return kind_of(model, Path.cwd()) == "embedder"


def _fitted(model: str, given: Given) -> Given:
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
    if outputs.dim() not in (2, 4):
        return f"outputs are {list(outputs.shape[1:])} a sample, and a path is for [T] or [T, H, W]"
    try:
        wrap_head(model, Codec(0.0, 1.0, Snake()))
    except LowbitError as error:
        return str(error)
    return ""


# The file


def _lines(
    found: _Found, model: str, data: Given, path: Path, weights: Path | None, test: Given | None
) -> Iterator[str]:
    folder = path.absolute().parent
    yield from _comment(
        f"Written by lowbit pilot --init for {model}. A start to edit: delete what you do not need. "
        f"docs/pilot.md explains every key."
    )
    yield "#"
    yield f"#   lowbit pilot {path.name} --plan    what will run, and how long it takes"
    yield f"#   lowbit pilot {path.name}           runs it, and writes report.html"
    yield f"name: {_scalar(_name(model))}"
    yield f"model: {_scalar(_relative(model, Path.cwd(), folder))}"
    if weights is None:
        yield "# weights: weights.safetensors    none were given: the model is measured as its function built it"
    else:
        yield f"weights: {_scalar(_relative(os.fspath(weights), Path.cwd(), folder))}"
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


def _data_lines(found: _Found, data: Given, test: Given | None, folder: Path) -> Iterator[str]:
    yield "data:"
    many = len(found.calibration) > _CALIBRATING and data[0].limit is None
    yield f"  calibration:             # {_described(found.calibration)}"
    yield from _section(data, folder, {"limit": _CALIBRATING} if many else {})
    if many:
        yield f"  train:                   # variants that train take all {len(found.calibration)} samples"
        yield from _section(data, folder, {})
    if test is None:
        yield from _comment(
            "No --test was given: the report is about the samples that set the ranges, and may look better than it is. "
            "Name others before you decide.",
            "  ",
        )
    yield f"  test:                    # {_described(found.test)}"
    yield from _section(test or data, folder, {})


def _section(given: Given, folder: Path, more: dict[str, Any]) -> Iterator[str]:
    section = given[0].model_dump(mode="json", exclude_defaults=True) | more
    section["source"] = _relative(section["source"], given[1], folder)
    if "tokenizer" in section:  # in a file of data it is as seen from there, found by --init from here
        section["tokenizer"] = _relative(section["tokenizer"], given[1], folder)
    for key in ("source", *(key for key in section if key != "source")):
        yield f"    {key}: {_scalar(section[key])}"


def _described(data: Data) -> str:
    about = f"{len(data)} samples of {data.shapes}"
    if data.labels is None:
        return f"{about}, no labels"
    if data.labels.is_floating_point():
        return f"{about}, targets of {list(data.labels.shape[1:]) or 'one number'}"
    return f"{about}, labels of {len(np.unique(data.labels.numpy()))} classes"


def _kpi_lines(found: _Found) -> Iterator[str]:
    scored = f"{found.scored} test samples"
    match found.metric:
        case "accuracy":
            minimum = max(0.0, found.score - _LOSS)
            why = f"The float model is right for {found.score:.2%} of {scored}; the minimum is {_LOSS:.0%} less."
            if found.score < 2 / found.outputs[0]:
                why += " That is hardly more than guessing: check weights, labels and preprocessing first."
        case "r2":
            minimum = 1 - (1 - found.score) * (1 + _LOSS_OF_R2)
            why = (
                f"The float model has r2 = {found.score:.6g} on {scored}; at the minimum the squared error is "
                f"{_LOSS_OF_R2:.0%} larger."
            )
            if found.score < 0:
                why += " That is worse than the mean of all targets: check weights, targets and preprocessing first."
        case "cosine":
            minimum = 1 - _LOSS_OF_COSINE
            why = (
                "The model returns embeddings, so their mean cosine to those of the float model decides, which needs "
                f"no labels. The float model has 1; the minimum is {_LOSS_OF_COSINE:g} less."
            )
        case _:
            minimum = 1 - _LOSS_OF_AGREEMENT
            why = (
                f"{_why_agreement(found)}, so agreement with the float model decides: the share of equal "
                "predictions (the largest output, or the sign of a single one). The float model has 1; the minimum is "
                f"{_LOSS_OF_AGREEMENT:.0%} less."
            )
            if not found.class_scores:
                why += (
                    f" Outputs {list(found.outputs)} are hardly class scores: write a module:function metric of your "
                    "own that measures what counts, and give data with labels for it."
                )
    yield from _comment(why)
    yield "# Beside the minimum or alone: tolerance, the most that may be lost against float on the same samples."
    yield f"kpi: {{metric: {found.metric}, minimum: {_down(minimum)}}}    # tolerance: {_tolerance(found)}"


def _tolerance(found: _Found) -> str:
    """What may be lost, as the minimum has it."""
    lost = {"accuracy": _LOSS, "r2": _LOSS_OF_R2 * max(1 - found.score, 1e-6)}.get(found.metric, _LOSS_OF_AGREEMENT)
    return f"{lost:.2g}"


def _why_agreement(found: _Found) -> str:
    if found.test.labels is None:
        return "There are no labels"
    return "Accuracy takes a score for each class, and the model returns one for two"


def _layer_lines(found: _Found) -> Iterator[str]:
    rows = found.coverage.quantized
    yield from _comment(f"{len(rows)} layers can be quantized: {_listed([row.name for row in rows])}.")
    skipped: dict[tuple[str, str], list[str]] = {}
    for row in found.coverage.skipped:
        skipped.setdefault((row.kind, row.reason), []).append(row.name)
    for (kind, reason), names in skipped.items():
        stay = "stays" if len(names) == 1 else "stay"
        yield from _comment(f"{_listed(names)} ({kind}) {stay} float: {reason}.")
    if found.idle:
        yield from _comment(f"Not called on this data: {_listed(found.idle)}.")
    if found.untraced:
        yield from _comment(f"{found.coverage.note}.")
    else:
        yield "# torch.fx can trace the model: BatchNorms are folded, and adds and poolings run on integers too."


def _variant_lines(found: _Found) -> Iterator[str]:
    ends = found.order[:1] + found.order[-1:] if len(found.order) > 2 else ()
    yield "  # 8 bits everywhere: a quarter of the size, the fastest kernels, and seldom a loss."
    yield "  - {name: w8a8, weights: int8, activations: int8}"
    kept = " The first and the last layer, which are small and lose most, stay at 8." if ends else ""
    yield from _comment(f"4-bit weights, stored packed, at the speed of 8 bits.{kept}", "  ")
    yield from _variant("w4a8", "int4", "int8", ends)
    yield "  # 4-bit floats, computed by the 8-bit kernels: storage, not speed."
    yield from _variant("fp4-a8", "e2m1", "int8", ends)
    if found.trains:
        yield f"  # 4-bit activations need training: here toward the float model's outputs, on {_trained_on(found)}."
        yield from _variant("w4a4-distilled", "int4", "int4", ends, [f"distill: {_scalar(_training(found, 128))}"])
    else:
        yield from _comment(
            f"4-bit activations. Training would help (distill: {{}}), and {len(found.calibration)} samples are few for "
            f"it: with {_TRAINING} or more name them as data.train and add it. Level best takes minutes.",
            "  ",
        )
        yield from _variant("w4a4", "int4", "int4", ends, ["level: best"])
    yield from _method_lines(found, ends)


def _method_lines(found: _Found, ends: Sequence[str]) -> Iterator[str]:
    if found.trains and len(found.order) > 3 and not found.untraced:
        yield "  # A search decides which layers get 4 bits: the best network at 0.7 of the bit operations of 8 bits."
        search = {"choices": ["int4", "int8"], "budget": {"like": "int8", "share": 0.7}, **_training(found, 64)}
        yield "  - name: mixed"
        yield f"    search: {_scalar(search)}"
    else:
        yield "  # No search: it needs a model that can be traced, four layers or more, and samples to train on."
    if found.chains and not found.untraced:
        yield from _comment(
            f"Convolutions that can become chains of smaller ones: {_listed(found.chains)}. The report says where "
            "a dense layer of few bits is as good.",
            "  ",
        )
        yield from _variant("chains", "int4", "int8", ends, [f"factorize: {_scalar(_chaining(found))}"])
    if found.metric != "r2":
        return
    if found.head:
        yield from _comment(f"No output on a path: {found.head}.", "  ")
        return
    yield "  # Outputs of 8 bits have 256 levels. A fold over four of them has more and needs no training;"
    yield from _variant("fold", "int8", "int8", (), ["output: {path: fold4}"])
    if found.trains:
        yield "  # a path that the noise chooses may have more still, and is learned (docs/curves.md)."
        yield from _variant("curve", "int8", "int8", (), ["output: {}"])


def _chaining(found: _Found) -> dict[str, Any]:
    return {"choices": "2x", "layers": [_glob(name) for name in found.chains]}


def _trained_on(found: _Found) -> str:
    return f"{len(found.calibration)} samples{'' if found.calibration.labels is None else ' (labels are not used)'}"


def _training(found: _Found, size: int) -> dict[str, Any]:
    """Options of a training that takes some thousand steps at most."""
    steps = max(1, len(found.calibration) // size)
    options: dict[str, Any] = {"epochs": min(20, max(2, math.ceil(_STEPS / steps)))}
    if not found.class_scores and found.metric not in ("r2", "cosine"):
        options["loss"] = "mse"  # which r2 has by itself, and cosine its own
    return options


def _variant(name: str, weights: str, activations: str, ends: Iterable[str], more: Sequence[str] = ()) -> Iterator[str]:
    yield f"  - name: {name}"
    yield f"    weights: {weights}"
    yield f"    activations: {activations}"
    for line in more:
        yield f"    {line}"
    rules = [f"      - {_scalar({'match': _glob(e), 'weights': 'int8', 'activations': 'int8'})}" for e in ends]
    if rules:
        yield "    rules:"
        yield from rules


def _told(found: _Found) -> Iterator[str]:
    yield f"calibration: {_described(found.calibration)}; test: {_described(found.test)}"
    yield f"float model: {found.metric} {found.score:.4f} on {found.scored} samples"
    yield f"layers: {len(found.coverage.quantized)} can be quantized, {len(found.coverage.skipped)} stay float"
    if found.untraced:
        yield f"the model cannot be traced: {found.untraced}"


# Words


def _name(model: str) -> str:
    """A name for the pilot: of the function, or of its file where that says more."""
    if model.startswith("hf:"):
        path = Path(model.removeprefix("hf:"))
        named = path.parent.name if path.name.lower() in _GENERAL else path.name
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", named).lstrip("._+-")[:64] or "pilot"
    place, _, function = model.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem if function.lower() in _GENERAL else function)
    return name.lstrip("._+-")[:64] or "pilot"


def _relative(reference: str, of: Path, folder: Path) -> str:
    """A path, or the path of a ``file.py:function``, as seen from another folder; all else as it is."""
    if reference.startswith("hf:"):
        path = reference.removeprefix("hf:")
        return f"hf:{_relative(path, of, folder)}" if (of / Path(path).expanduser()).is_dir() else reference
    place, colon, name = reference.rpartition(":")
    if colon and not place.endswith(".py"):
        return reference
    path = place if colon else reference
    if of.resolve() == folder.resolve() or path.startswith("~") or Path(path).is_absolute():
        return reference
    return f"{Path(os.path.relpath(of / path, folder)).as_posix()}{colon}{name if colon else ''}"


def _glob(name: str) -> str:
    """A layer's name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _down(value: float) -> str:
    """A number a little below, with as many digits as its distance from 1 needs."""
    digits = 4 if value < 0 else max(4, 2 - math.floor(math.log10(max(1 - value, 1e-9))))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _scalar(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """A sentence as comment lines; whatever a model's own messages hold, it stays a comment."""
    line = f"{indent}#"
    for word in " ".join("".join(c if c.isprintable() else " " for c in text).split()).split(" "):
        if len(line) + 1 + len(word) > _WIDTH and line != f"{indent}#":
            yield line
            line = f"{indent}#"
        line = f"{line} {word}"
    yield line
