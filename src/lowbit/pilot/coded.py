"""The part of a trial that makes features codes: the float model gets a linear head on them, and the record.

The float model with codes takes the place of the user's: it is post-trained or factorized like any other. Only a
distillation still learns from the user's model, which knows more. The head is fitted to the training data; what it is
worth is measured on the test data, beside the same head on floats, in the float model and so before any other layer is
quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save
from sklearn.preprocessing import StandardScaler
from torch import nn

from lowbit import files
from lowbit.batches import Batch, Batches, outputs_of
from lowbit.errors import DataError
from lowbit.methods.discrimination.checklist import applicability, check_features
from lowbit.methods.discrimination.estimators import QUANTIZERS
from lowbit.methods.discrimination.heads import (
    CodedHead,
    attach_head,
    coded_head,
    features_of,
    head_rule,
    head_tensors,
    set_head_scale,
)
from lowbit.methods.discrimination.linear import float_heads
from lowbit.methods.discrimination.measure import discrimination
from lowbit.methods.discrimination.packed import PackedKNeighborsClassifier, bytes_per_row
from lowbit.methods.discrimination.theory import Code
from lowbit.pilot.record import FeaturesRow, HeadRow, Score, ThresholdRow
from lowbit.pilot.sections.coding import FeaturesSpec, MadeFeaturesSpec
from lowbit.pilot.statistics import Array, Scoring
from lowbit.pilot.task import Samples, Task
from lowbit.pilot.trained import HEAD

NEIGHBORS = 5
ROWS = 5000  # training rows at most among which neighbors are searched
_OWN, _NEIGHBORS = "own", "neighbors"  # beside the names of `float_heads`


@dataclass(frozen=True)
class Coded:
    """A float model that ends in codes and a linear head, and how that came."""

    model: nn.Module
    made: CodedHead
    spec: FeaturesSpec

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the features, in a sentence."""
        return (str(self.made),)

    def section(self) -> dict[str, Any]:
        """The section ``features`` of a recipe file that makes the same again."""
        return {"features": {**({"layer": self.made.layer} if self.made.layer else {}), "weights": HEAD}}

    def save(self, folder: Path) -> None:
        """Keep thresholds and head, so that the recipe beside them makes the same again."""
        tensors = {name: tensor.contiguous() for name, tensor in head_tensors(self.model, self.made).items()}
        with files.replacing(folder / HEAD) as temporary:
            temporary.write_bytes(save(tensors))


def give(task: Task, model: nn.Module, training: Samples, *, seed: int) -> tuple[Coded, Task]:
    """The float model with codes and a head that are fitted to the training data; the task with the head in its recipe.

    Raises:
        LowbitError: an option does not fit the model or the data, or a rule no layer.
    """
    assert task.features is not None
    assert task.recipe is not None
    if training.labels is None:
        raise DataError("features: a head is fitted to labels, and the training data has none; name them in data.train")
    network, made = coded_head(model, _batches(training), **task.features.options(), seed=seed)
    return Coded(network, made, task.features), replace(task, recipe=head_rule(task.recipe, network, made.head))


def again(model: nn.Module, spec: MadeFeaturesSpec, folder: Path, example: Batch) -> nn.Module:
    """The same float model as a recipe file says, whose `folder` holds thresholds and head.

    Raises:
        LowbitError: the model cannot be given such a head, or the file is not one.
    """
    path = folder / spec.weights
    tensors = files.load_tensors(path)
    try:
        return attach_head(model, tensors, layer=spec.layer, example=example)
    except DataError as error:
        raise DataError(f"'{path}': {error}") from None


def ended(student: nn.Module) -> nn.Module:
    """The student, changed in place: a head reads codes at a scale of exactly 1; one without codes stays as it is."""
    set_head_scale(student)
    return student


# The record


def row(coded: Coded, test: Samples, outputs: tuple[Array, Array], *, seed: int) -> FeaturesRow:
    """What codes are worth on the test data, in the float model.

    `outputs` are those of the variant's file, and those of the user's float model.

    Raises:
        DataError: the test data has no labels.
    """
    made, spec, labels = coded.made, coded.spec, test.labels
    if labels is None:
        raise DataError("features: codes are judged by labels, and the test data has none; name them in data.test")
    y, quantizer, (file, own) = labels.numpy(), made.quantizer, outputs
    x = np.concatenate([features for features, _ in features_of(coded.model, made.coding, _batches(test))])
    floats = float_heads(made.features, made.labels, classifier=spec.classifier, seed=seed)
    scores = {_OWN: own, **{one.name: one.scores(x) for one in floats}, _NEIGHBORS: _neighbors(made, x)}
    ours = _outputs(coded.model, test)
    scoring = Scoring("accuracy", y, own, seed)
    judged = tuple(_judged(name, found, ours, scoring, spec.margin) for name, found in scores.items())
    by_name = {one.name: one for one in judged}
    best = max((one.name for one in floats), key=lambda name: by_name[name].score.value)
    counts = QUANTIZERS[cast("Code", made.linear.name)]().fit(made.features, made.labels).histograms_
    assert counts is not None
    codes = quantizer.transform(x)
    d, ternary = x.shape[1], made.linear.name == "ternary"
    return FeaturesRow(
        layer=made.layer,
        head=made.head,
        features=d,
        constant=int(quantizer.constant_.sum()),
        code=made.linear.name,
        rule=made.rule,
        threshold=float(np.mean(quantizer.threshold_)),
        classifier=made.linear.classifier,
        strength=made.linear.strength,
        samples=len(made.features),
        score=scoring.score(ours),
        file=scoring.score(file),
        heads=judged,
        best_float=best,
        margin=spec.margin,
        tried=tuple(ThresholdRow(t.name, t.threshold, t.per_feature, t.accuracy) for t in made.linear.tried),
        tried_floats=floats[0].accuracy,
        discrimination=discrimination(StandardScaler().fit_transform(made.features), made.labels).mean,
        discrimination_codes=discrimination(quantizer.transform(made.features), made.labels).mean,
        shares=(float((codes < 0).mean()), float((codes == 0).mean()), float((codes > 0).mean())),
        bytes_float=4 * d,
        bytes_int8=d,
        bytes_packed=bytes_per_row(d, ternary=ternary),
        applicability=applicability(check_features(counts, made.features, made.labels), counts),
    )


def _judged(name: str, outputs: Array, ours: Array, scoring: Scoring, margin: float) -> HeadRow:
    """A head beside the one on codes, on the same samples."""
    gain = scoring.difference(ours, outputs)
    return HeadRow(name, scoring.score(outputs), gain, outcome(gain, margin))


def outcome(gain: Score, margin: float) -> str:
    """What a gain says, in the words and the order of `lowbit.methods.discrimination.verdict`."""
    if max(-gain.low, gain.high) <= margin:
        return "equal"
    if gain.low > 0:
        return "improves"
    return "degrades" if gain.high < 0 else "too little data"


def _neighbors(made: CodedHead, x: Array) -> Array:
    """Votes of the nearest training rows among packed codes, `[n, C]`."""
    kept = np.random.default_rng(0).permutation(len(made.features))[:ROWS]
    codes = made.quantizer.pack(made.features[kept])
    nearest = PackedKNeighborsClassifier(min(NEIGHBORS, len(codes))).fit(codes, made.labels[kept])
    found = np.zeros((len(x), made.classes), np.float32)
    found[:, nearest.classes_] = nearest.predict_proba(made.quantizer.pack(x))
    return found


def _outputs(network: nn.Module, data: Samples) -> Array:
    found: Array = torch.cat(outputs_of(network, _batches(data))).float().numpy()
    return found


def _batches(data: Samples) -> Batches:
    return data.batches(100)
