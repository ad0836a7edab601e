"""What a pilot file says: the user's model, data, KPI and variants, validated before anything runs."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lowbit import files
from lowbit.errors import FormatError, RecipeError
from lowbit.families import FamilyName
from lowbit.formats import parse
from lowbit.granularity import parse_granularity
from lowbit.post_training.levels import Level
from lowbit.recipe import Recipe, validated
from lowbit.training.loop import Optimizer
from lowbit.training.objective import LossName
from lowbit.training.processes import Precision
from lowbit.training.samples import Augment, crop_and_flip

if TYPE_CHECKING:
    from lowbit.data import Data

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def _wrong(reason: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{reason}", {"reason": reason})


def _format_name(name: str) -> str:
    try:
        parse(name)
    except FormatError as error:
        raise _wrong(str(error)) from None
    return name


def _granularity_name(name: str) -> str:
    try:
        parse_granularity(name)
    except FormatError as error:
        raise _wrong(str(error)) from None
    return name


FormatName = Annotated[str, AfterValidator(_format_name)]
GranularityName = Annotated[str, AfterValidator(_granularity_name)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessSpec(_Section):
    """How inputs become what the model expects; see `lowbit.data.Preprocess`."""

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[int, int] | None = None

    def black(self) -> tuple[float, ...]:
        """What becomes of a pixel of 0, in each channel or in all; empty where that is 0."""
        black = -np.array(self.mean) / np.array(self.std or 1.0)
        return tuple(black.tolist()) if any(self.mean) else ()


class DataSpec(_Section):
    """One data set: a file, glob, folder or ``module:function``; `limit` takes a seeded random subset."""

    source: str
    inputs: str | None = None
    labels: str | None = None
    limit: int | None = Field(default=None, ge=1)
    preprocess: PreprocessSpec = PreprocessSpec()

    def open(self, folder: Path, seed: int) -> Data:
        """The data; paths are relative to `folder`, and `seed` draws the subset.

        Raises:
            DataError: it cannot be read, or does not fit what is said of it.
        """
        from lowbit.data import Preprocess, open_data

        preprocess = Preprocess(**self.preprocess.model_dump())
        names = {"inputs": self.inputs, "labels": self.labels}
        return open_data(self.source, folder=folder, preprocess=preprocess, **names, limit=self.limit, seed=seed)


class PilotData(_Section):
    """The data that calibrates (no labels needed), the data that is reported on, and inputs that `distill` trains on.

    Without `train`, the calibration data trains.
    """

    calibration: DataSpec
    test: DataSpec
    train: DataSpec | None = None


class KpiSpec(_Section):
    """The figure that decides: accuracy, agreement (with the float model), r2, or ``module:function``."""

    metric: str = "accuracy"
    minimum: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_within_reach(self) -> KpiSpec:
        if self.metric in ("accuracy", "agreement") and not 0 <= self.minimum <= 1:
            raise _wrong(f"minimum {self.minimum:g}: {self.metric} is a share from 0 to 1; write 0.9 for 90 %")
        return self


class RuntimeSpec(_Section):
    """What executes the files, and for which threads and batch sizes latency is measured."""

    name: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int = Field(default=1, ge=1)
    batches: tuple[Annotated[int, Field(ge=1)], ...] = (1, 32)


class DistillSpec(_Section):
    """How a variant is trained toward the float model's outputs; see `lowbit.methods.distillation.run.distill`.

    What is None is as `distill` has it. `crop` shifts images by up to so many pixels and `flip` mirrors half of them;
    see `lowbit.training.samples.crop_and_flip`.
    """

    epochs: int = Field(default=2, ge=1)
    quantizer: FamilyName | None = None
    exact: bool = False
    loss: LossName = "kl"
    temperature: Positive | None = None
    features: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    batch_size: int | None = Field(default=None, ge=1)
    rate: Positive | None = None
    scale_rate: NotNegative | None = None
    optimizer: Optimizer | None = None
    weight_decay: NotNegative | None = None
    clip: Positive | None = None
    precision: Precision | None = None
    delta_every: int | None = Field(default=None, ge=1)
    cache_teacher: bool = False
    crop: int = Field(default=0, ge=0)
    flip: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> DistillSpec:
        if self.temperature is not None and self.loss != "kl":
            raise _wrong(f"temperature is of loss 'kl', and loss is {self.loss!r}; leave it out")
        if self.features and self.loss == "labels":
            raise _wrong("features are the teacher's, and loss 'labels' has none; leave them out")
        if self.delta_every is not None and self.quantizer not in (None, "ewgs"):
            raise _wrong(f"delta_every is of quantizer 'ewgs', and quantizer is {self.quantizer!r}; leave it out")
        if self.cache_teacher and (self.features or self.crop or self.flip or self.loss == "labels"):
            raise _wrong(
                "cache_teacher keeps one output a sample, which features, crop, flip and loss 'labels' do not go with; "
                "leave one or the other out"
            )
        return self

    def of_metric(self, metric: str) -> DistillSpec:
        """What this is for a pilot with a metric: where r2 decides, outputs are numbers and no class scores."""
        if metric == "r2" and "loss" not in self.model_fields_set:
            return self.model_copy(update={"loss": "mse"})
        return self

    def options(self) -> dict[str, Any]:
        """The keywords of `distill` that the file gives, all but `augment`."""
        return self.model_dump(exclude={"crop", "flip"}, exclude_none=True)

    def augment(self, black: tuple[float, ...]) -> Augment | None:
        """The change to each batch, None for none; `black` is what comes in at the borders."""
        return crop_and_flip(self.crop, flip=self.flip, fill=black) if self.crop or self.flip else None


class Variant(_Section):
    """One candidate: a recipe file, or weights and activations for all layers with exceptions in `rules`.

    `level` is the effort of post-training, and `widen_most` the number of tensors that may go to 16 bits; see
    `lowbit.post_training.levels.post_train`. With `distill` it is trained after that.
    """

    name: str
    recipe: str | None = None
    weights: FormatName | None = None
    activations: FormatName | None = None
    granularity: GranularityName = "channel"
    rules: tuple[dict[str, object], ...] = ()
    glue: FormatName | None = "int8"
    opset: int = Field(default=21, ge=21, le=25)
    level: Level = "balanced"
    widen_most: int = Field(default=0, ge=0)
    distill: DistillSpec | None = None

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name == "float":
            raise _wrong("a variant's name is a folder name of letters, digits and . _ + - (and not 'float')")
        return name

    @model_validator(mode="after")
    def _says_something(self) -> Variant:
        given = sorted(self.model_fields_set - {"name", "recipe", "opset", "level", "widen_most", "distill"})
        if self.recipe and given:
            raise _wrong(f"a recipe file and {', '.join(given)}: give one or the other")
        if not (self.recipe or self.weights or self.activations or self.rules):
            raise _wrong("say what to quantize: weights, activations, rules, or a recipe file")
        return self

    def to_recipe(self, folder: Path, where: str) -> Recipe:
        """The recipe of this variant; paths are relative to `folder`, and `where` begins error messages.

        Raises:
            DataError: the recipe file cannot be read.
            RecipeError: the recipe file, or a rule, does not fit.
        """
        if self.recipe:
            return Recipe.load(folder / self.recipe)
        recipe = Recipe.from_dict({"rules": [*self.rules], "glue": self.glue}, where)
        if not (self.weights or self.activations):
            return recipe
        (every,) = Recipe.uniform(self.weights, self.activations, granularity=self.granularity).rules
        return replace(recipe, rules=(every, *recipe.rules))


class PilotSpec(_Section):
    """A whole pilot file."""

    name: str
    model: str
    weights: str | None = None
    data: PilotData
    kpi: KpiSpec
    seed: int = 0
    runtime: RuntimeSpec = RuntimeSpec()
    variants: tuple[Variant, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise _wrong("a pilot's name is a folder name of letters, digits and . _ + -")
        return name

    @field_validator("variants")
    @classmethod
    def _are_distinct(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        names = [v.name.casefold() for v in variants]
        if len(set(names)) < len(names):
            raise _wrong("two variants have the same name (upper and lower case are one on some disks)")
        return variants


def load_spec(path: Path) -> PilotSpec:
    """Read a pilot file and the recipes that it names.

    Raises:
        DataError: a file cannot be read.
        RecipeError: it does not fit; the message gives the path to the field.
    """
    data, where = files.read_yaml(path), os.fspath(path)
    if not isinstance(data, dict):
        got = "an empty file" if data is None else f"a {type(data).__name__}"
        raise RecipeError(f"{where}: got {got}, expected a mapping; write name, model, data, kpi and variants")
    spec = validated(PilotSpec, data, where)
    for i, variant in enumerate(spec.variants):
        if variant.distill is None and "distill" in variant.model_fields_set:  # a key with nothing behind it
            empty = "distill: it is empty; write {} to distill with every default, or leave the key out"
            raise RecipeError(f"{where}: variants[{i}].{empty}")
        variant.to_recipe(path.parent, f"{where}: variants[{i}]")
    return spec
