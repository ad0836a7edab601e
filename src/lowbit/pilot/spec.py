"""What a pilot file says: the user's model, data, KPI and variants, validated before anything runs."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lowbit import files
from lowbit.allocation import Budget, CostName
from lowbit.errors import FormatError, RecipeError
from lowbit.families import FamilyName
from lowbit.formats import parse
from lowbit.granularity import parse_granularity
from lowbit.methods.curves.arithmetic import why_no_arithmetic
from lowbit.methods.curves.codec import Codec, TransformName
from lowbit.methods.curves.decoders import DecoderName
from lowbit.methods.curves.fit import PointLoss
from lowbit.methods.curves.heads import HeadsName
from lowbit.methods.curves.paths import Fold, Moore, Snake, parse_path
from lowbit.methods.curves.paths import Path as Curve
from lowbit.methods.factorization import choices as chains
from lowbit.methods.search.run import Strategy
from lowbit.methods.search.sensitivity import SensitivityName
from lowbit.methods.search.space import SPACES, Choice
from lowbit.post_training.levels import Level
from lowbit.recipe import Recipe, validated
from lowbit.training.loop import Optimizer
from lowbit.training.objective import LossName
from lowbit.training.processes import Precision
from lowbit.training.samples import Augment, crop_and_flip

if TYPE_CHECKING:
    from typing_extensions import Self

    from lowbit.data import Data

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
AUTO = "auto"  # a path that the noise chooses


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


def _choice_name(name: str) -> str:
    try:
        Choice.parse(name)
    except FormatError as error:
        raise _wrong(str(error)) from None
    return name


def _chain_name(name: str) -> str:
    try:
        chains.Choice.parse(name)
    except (FormatError, RecipeError) as error:
        raise _wrong(str(error)) from None
    return name


def _path_name(name: str) -> str:
    try:
        if name != AUTO:
            parse_path(name)
    except RecipeError as error:
        raise _wrong(f"{error}; or {AUTO!r}, to choose a snake by the noise") from None
    return name


def _chains(given: object) -> object:
    """What layers can become, by one name or several, or what each becomes, by globs; all of them names of choices."""
    named = [*given.values()] if isinstance(given, dict) else _listed(given)
    if not isinstance(named, (list, tuple)) or not all(isinstance(name, str) for name in named) or not named:
        raise _wrong("expected a choice such as '2x', a list of choices, or a mapping of layer globs to choices")
    for name in named:
        _chain_name(name)
    return given if isinstance(given, dict) else tuple(named)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise _wrong(f"{error}; expected 'layer', 'model' or regular expressions over layer names") from None
    return text


def _space(given: object) -> object:
    """The choices of a space that is given by its name; all else as it is."""
    if not isinstance(given, str):
        return given
    if given not in SPACES:
        raise _wrong(f"space {given!r} is unknown; write a list of formats, or one of {', '.join(SPACES)}")
    return SPACES[given]


def _listed(given: object) -> object:
    """One of what may be several, as a list of one."""
    return [given] if isinstance(given, (str, dict)) else given


FormatName = Annotated[str, AfterValidator(_format_name)]
GranularityName = Annotated[str, AfterValidator(_granularity_name)]
ChoiceName = Annotated[str, AfterValidator(_choice_name)]
ChainName = Annotated[str, AfterValidator(_chain_name)]
PathName = Annotated[str, AfterValidator(_path_name)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
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
    """The data that calibrates (no labels needed), and the data that is reported on.

    `distill`, `search` and `output` train on `train`, without it on the calibration data.
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


class _Augmented(_Section):
    """How images are changed: `crop` shifts them by up to so many pixels, `flip` mirrors half of them.

    See `lowbit.training.samples.crop_and_flip`.
    """

    crop: int = Field(default=0, ge=0)
    flip: bool = False

    def options(self, *without: str) -> dict[str, Any]:
        """The keywords of the method that the file gives, all but `augment` and those named in `without`."""
        return self.model_dump(exclude={"crop", "flip", *without}, exclude_none=True)

    def augment(self, black: tuple[float, ...]) -> Augment | None:
        """The change to each batch, None for none; `black` is what comes in at the borders."""
        return crop_and_flip(self.crop, flip=self.flip, fill=black) if self.crop or self.flip else None


class _Fitted(_Section):
    """What every training has; what is None is as the method has it."""

    epochs: int = Field(default=2, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    rate: Positive | None = None
    optimizer: Optimizer | None = None
    weight_decay: NotNegative | None = None
    clip: Positive | None = None
    precision: Precision | None = None


class TrainingSpec(_Augmented, _Fitted):
    """How a student is trained, whatever decides its formats; what is None is as the method has it."""

    quantizer: FamilyName | None = None
    loss: LossName = "kl"
    temperature: Positive | None = None
    scale_rate: NotNegative | None = None

    @model_validator(mode="after")
    def _has_a_use_for_its_temperature(self) -> Self:
        if self.temperature is not None and self.loss != "kl":
            raise _wrong(f"temperature is of loss 'kl', and loss is {self.loss!r}; leave it out")
        return self

    def of_metric(self, metric: str) -> Self:
        """What this is for a pilot with a metric: where r2 decides, outputs are numbers and no class scores."""
        if metric == "r2" and "loss" not in self.model_fields_set:
            return self.model_copy(update={"loss": "mse"})
        return self


class DistillSpec(TrainingSpec):
    """How a variant is trained toward the float model's outputs; see `lowbit.methods.distillation.run.distill`."""

    exact: bool = False
    features: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    delta_every: int | None = Field(default=None, ge=1)
    cache_teacher: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> DistillSpec:
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


class BudgetSpec(_Section):
    """The most that a network may cost; see `lowbit.allocation.Budget`. `like` is a choice of formats."""

    cost: CostName = "bops"
    most: Positive | None = None
    like: ChoiceName | None = None
    share: Positive = 1.0

    @model_validator(mode="after")
    def _says_how_much(self) -> BudgetSpec:
        if "share" in self.model_fields_set and self.most is not None:
            raise _wrong("share is of like, and most is a figure; give one or the other")
        try:
            self.budget()
        except RecipeError as error:
            raise _wrong(str(error)) from None
        return self

    def budget(self) -> Budget:
        """The same for the method."""
        return Budget(**self.model_dump())


class SearchSpec(TrainingSpec):
    """How a variant's formats are searched, and its student trained; see `lowbit.methods.search.run.search`.

    `choices` are the formats that a layer can have, `granularity` is which layers decide together.
    """

    choices: Annotated[tuple[ChoiceName, ...], BeforeValidator(_space)]
    budget: Annotated[tuple[BudgetSpec, ...], BeforeValidator(_listed), Field(min_length=1)]
    by: Strategy | None = None
    granularity: Annotated[tuple[Pattern, ...], BeforeValidator(_listed), Field(min_length=1)] = ("layer",)
    sensitivity: SensitivityName | None = None
    explore: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _is_a_search(self) -> SearchSpec:
        parsed = {Choice.parse(name) for name in self.choices}
        if len(parsed) < 2:
            raise _wrong(f"choices {', '.join(self.choices) or 'are none'}: a search needs two at least; give more")
        for budget in self.budget:
            if budget.like is not None and Choice.parse(budget.like) not in parsed:
                raise _wrong(f"budget: like {budget.like!r} is none of the choices ({', '.join(self.choices)})")
        if self.explore is not None and self.by == "knapsack":
            raise _wrong("explore is of 'surrogate' and 'policy', and by is 'knapsack'; leave it out")
        return self

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets for `search`, the first of which is that of the front."""
        return tuple(one.budget() for one in self.budget)

    @property
    def grouping(self) -> str | tuple[str, ...]:
        """`granularity` for `search`, to which ``layer`` and ``model`` are words and no expressions."""
        return self.granularity[0] if len(self.granularity) == 1 else self.granularity


class ChainBudgetSpec(BudgetSpec):
    """The most that a network with chains may cost; `like` is a choice of `factorize`."""

    like: ChainName | None = None


_NOT_EXACT = {"solver", "middle", "refit"}


class FactorizeSpec(_Augmented):
    """How layers of a variant become chains of small ones; see `lowbit.methods.factorization.run.factorize`.

    With `norms`, BatchNorm statistics are set anew on the calibration inputs, changed by `crop` and `flip` as the
    training of the float model changed its own. `seed` is the pilot's by default.
    """

    choices: Annotated[tuple[str, ...] | dict[str, str] | None, BeforeValidator(_chains)] = None
    budget: ChainBudgetSpec | None = None
    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    layers: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] | None = None
    exact: bool = False
    solver: Literal["descent", "admm", "rounding"] = "descent"
    middle: FormatName = "int8"
    refit: bool = True
    norms: bool = False
    compare: bool = True
    seed: int | None = None

    @model_validator(mode="after")
    def _has_something_to_choose_by(self) -> FactorizeSpec:
        limited = [name for name in ("budget", "tolerance") if getattr(self, name) is not None]
        if len(limited) == 2:
            raise _wrong("budget and tolerance both say how far to go; give one of them")
        given = [*limited, *(["layers"] if self.layers else [])]
        if isinstance(self.choices, dict) and given:
            raise _wrong(f"choices say what each layer becomes; leave {' and '.join(given)} out")
        if isinstance(self.choices, tuple) and len(self.choices) > 1 and not limited:
            raise _wrong(f"{len(self.choices)} choices and nothing to choose by; give a budget or a tolerance")
        like, choices = self.budget and self.budget.like, self.choices or chains.CHOICES
        if like is not None and like not in choices:
            raise _wrong(f"budget: like {like!r} is none of the choices ({', '.join(choices)})")
        return self

    @model_validator(mode="after")
    def _has_a_use_for_its_options(self) -> FactorizeSpec:
        idle = sorted(self.model_fields_set & _NOT_EXACT)
        if self.exact and idle:
            raise _wrong(f"exact is as published, and has no {' and '.join(idle)}; leave one or the other out")
        if (self.crop or self.flip) and not self.norms:
            raise _wrong("crop and flip change the inputs of norms; set norms: true, or leave them out")
        return self

    def found(self, choices: dict[str, str], seed: int) -> dict[str, Any]:
        """The section of a recipe file that does the same again, without anything left to choose."""
        same = self.model_copy(update={"choices": choices, "compare": False, "seed": seed})
        idle = (_NOT_EXACT if self.exact else set()) | (set() if self.norms else {"norms", "crop", "flip"})
        return same.model_dump(mode="json", exclude={"budget", "tolerance", "layers", *idle})


_OF_TRAINING = {*_Fitted.model_fields, "loss", "noise"}


class CurveSpec(_Section):
    """How numbers become points on a path and are read again; see `lowbit.methods.curves.run.curve_output`.

    `decoder` is as `Decoder` chooses by default. With `learned_table` the table is filled from the calibration data,
    with `confidence` the file also returns how far from the path each point lies.
    """

    path: PathName = AUTO
    low: Finite | tuple[Finite, ...] | None = None
    high: Finite | tuple[Finite, ...] | None = None
    transform: TransformName = "linear"
    heads: HeadsName = "shared"
    head: Annotated[str, Field(min_length=1)] | None = None
    decoder: DecoderName | None = None
    learned_table: bool = False
    confidence: bool = False

    @property
    def curve(self) -> Curve | None:
        """The path, None for one that the noise chooses."""
        return None if self.path == AUTO else parse_path(self.path)

    @model_validator(mode="after")
    def _is_a_codec(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise _wrong("give both low and high, or neither to find the range in the targets")
        try:
            curve = self.curve or Snake()
            codec = Codec(1.0 if self.low is None else self.low, 2.0 if self.high is None else self.high, curve)
            replace(codec, transform=self.transform)
        except RecipeError as error:
            raise _wrong(str(error)) from None
        if isinstance(curve, Moore) and self.low is None:
            raise _wrong(f"{curve} is for periodic quantities; give low and high, one period")
        if isinstance(curve, Fold) and (self.heads != "shared" or self.transform != "linear"):
            raise _wrong(f"{curve} is what a linear layer does by itself; leave heads and transform out")
        if self.heads == "separate" and self.head is None:
            raise _wrong("heads 'separate' copies the module that makes the output; name it with head")
        return self._has_a_decoder(codec)

    def _has_a_decoder(self, codec: Codec) -> Self:
        tables = codec.channels == 2 and not isinstance(codec.path, Fold)
        if self.decoder == "table" and not tables:
            raise _wrong(f"decoder 'table' is for paths in two channels, and not for {codec.path}; leave it out")
        if self.decoder == "arithmetic" and (reason := why_no_arithmetic(codec.path, codec.bits)):
            raise _wrong(reason)
        asked = [name for name in ("learned_table", "confidence") if getattr(self, name)]
        if asked and not tables:
            raise _wrong(f"{asked[0]} is a table for two channels, and {codec.path} has none; leave it out")
        if self.learned_table and self.decoder == "arithmetic":
            raise _wrong("learned_table fills a table, and decoder 'arithmetic' has none; leave one or the other out")
        return self


class OutputSpec(CurveSpec, _Fitted):
    """How a variant's output is written along a path, and trained to; what is None is as the method has it.

    With `controls`, direct outputs of 8 and 16 bits, one that is trained as long, and a fold are measured beside it.
    """

    clip_targets: bool | None = None
    labels: bool | None = None
    epochs: int = Field(default=10, ge=1)
    loss: PointLoss = "points"
    noise: NotNegative | None = None
    controls: bool = True

    @model_validator(mode="after")
    def _has_a_use_for_its_training(self) -> OutputSpec:
        idle = sorted(self.model_fields_set & _OF_TRAINING)
        if isinstance(self.curve, Fold) and idle:
            raise _wrong(f"{self.path} needs no training; leave {' and '.join(idle)} out")
        return self

    def training(self) -> dict[str, Any]:
        """The keywords of `fit_head` that the file gives."""
        return self.model_dump(include=_OF_TRAINING, exclude_none=True)

    def options(self) -> dict[str, Any]:
        """The keywords of `curve_output` that the file gives, all but the path."""
        without = {"path", "decoder", "learned_table", "confidence", "controls"}
        return self.model_dump(exclude=without, exclude_none=True)


class MadeOutputSpec(CurveSpec):
    """An output that was made: nothing is left to choose, and `weights` is the file of the trained float network.

    Without weights nothing was trained.
    """

    path: Annotated[str, AfterValidator(_path_name)]
    low: Finite | tuple[Finite, ...]
    high: Finite | tuple[Finite, ...]
    weights: str | None = None

    @model_validator(mode="after")
    def _is_made(self) -> MadeOutputSpec:
        if self.path == AUTO:
            raise _wrong(f"path {AUTO!r} is of a pilot file, which chooses; name the path")
        return self

    @property
    def codec(self) -> Codec:
        """The path, the range and the transform."""
        return Codec(self.low, self.high, parse_path(self.path), self.transform, clip=True)


class Variant(_Section):
    """One candidate: a recipe file, or weights and activations for all layers with exceptions in `rules`.

    `level` is the effort of post-training, and `widen_most` the number of tensors that may go to 16 bits; see
    `lowbit.post_training.levels.post_train`. With `distill` it is trained after that. With `search`, which trains too,
    recipe file and `rules` are about the layers that are not searched, and `granularity` about those that are. With
    `factorize`, layers become chains in these formats, which takes the place of post-training. With `output` the float
    model first learns to return points on a path, and all that follows is done to that network.
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
    search: SearchSpec | None = None
    factorize: FactorizeSpec | None = None
    output: OutputSpec | None = None

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name == "float":
            raise _wrong("a variant's name is a folder name of letters, digits and . _ + - (and not 'float')")
        return name

    @model_validator(mode="after")
    def _says_something(self) -> Variant:
        beside = {"name", "recipe", "opset", "level", "widen_most", "distill", "search", "factorize", "output"}
        given = sorted(self.model_fields_set - beside - ({"granularity"} if self.search else set()))
        if self.recipe and given:
            raise _wrong(f"a recipe file and {', '.join(given)}: give one or the other")
        said = "search" in self.model_fields_set  # with nothing behind it, `load_spec` says so
        if not (self.recipe or self.weights or self.activations or self.rules or said):
            raise _wrong("say what to quantize: weights, activations, rules, a recipe file, or search")
        return self

    @model_validator(mode="after")
    def _leaves_to_search_what_it_decides(self) -> Variant:
        if self.search and self.distill:
            raise _wrong("search trains its student itself; leave distill out, and give its options to search")
        if self.search and (self.weights or self.activations):
            raise _wrong(
                "search decides weights and activations; leave them out (rules are for layers that are not searched)"
            )
        if self.search and self.widen_most:
            raise _wrong("widen_most would leave the budget of search; leave it out, or add int16 to the choices")
        return self

    @model_validator(mode="after")
    def _leaves_to_factorize_what_it_does(self) -> Variant:
        if self.factorize and self.search:
            raise _wrong(
                "search decides formats of layers as they are, and factorize what layers become; make two variants of "
                "them, or leave search out and give factorize a budget, which decides formats too"
            )
        idle = sorted(self.model_fields_set & {"level", "widen_most"})
        if self.factorize and idle:
            raise _wrong(f"factorize takes the place of post-training; leave {' and '.join(idle)} out")
        return self

    @model_validator(mode="after")
    def _goes_with_an_output(self) -> Variant:
        if self.output is None:
            return self
        for name in ("search", "factorize"):
            if getattr(self, name) is not None:
                raise _wrong(
                    f"{name} starts from the float model as it is, and output changes it; leave one or the other out "
                    "(formats that a search found can be the recipe of a variant with output)"
                )
        if self.distill and (self.distill.loss != "mse" and "loss" in self.distill.model_fields_set):
            raise _wrong(
                f"with output a student learns points, by loss 'mse', and distill.loss is {self.distill.loss!r}"
            )
        if self.distill and self.distill.temperature is not None:
            raise _wrong("with output a student learns points, by loss 'mse', which has no temperature; leave it out")
        return self

    def to_recipe(self, folder: Path, where: str) -> Recipe:
        """The recipe of this variant; paths are relative to `folder`, and `where` begins error messages.

        Raises:
            DataError: the recipe file cannot be read.
            RecipeError: the recipe file, or a rule, does not fit.
        """
        if self.recipe:
            recipe, factorize, output = load_recipe(folder / self.recipe)
            if factorize is not None:
                raise RecipeError(
                    f"{where}.recipe: {self.recipe!r} is of a factorized network; copy its section factorize into the "
                    "variant, and the rest into a recipe file of its own"
                )
            if output is not None:
                raise RecipeError(
                    f"{where}.recipe: {self.recipe!r} is of a network with an output on a path; give the variant an "
                    "output, and copy the rest into a recipe file of its own"
                )
            return recipe
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

    @model_validator(mode="after")
    def _judges_numbers_as_numbers(self) -> PilotSpec:
        curved = next((variant.name for variant in self.variants if variant.output), None)
        if curved is not None and self.kpi.metric == "accuracy":
            raise _wrong(
                f"variant {curved!r}: output is for numbers, and kpi.metric is 'accuracy', of classes; use r2 or a "
                "module:function"
            )
        return self


class _Sections(_Section):
    factorize: FactorizeSpec | None = None
    output: MadeOutputSpec | None = None


def load_recipe(path: Path) -> tuple[Recipe, FactorizeSpec | None, MadeOutputSpec | None]:
    """A recipe file, and the sections that a pilot writes into one: how layers become chains, what the output became.

    Raises:
        DataError: the file cannot be read.
        RecipeError: it does not fit; the message gives the path to the field.
    """
    data, where = files.read_yaml(path), os.fspath(path)
    if not isinstance(data, dict):
        return Recipe.from_dict(data, where), None, None
    found = validated(_Sections, {name: data.pop(name) for name in _Sections.model_fields if name in data}, where)
    for name in found.model_fields_set:
        if getattr(found, name) is None:
            raise RecipeError(f"{where}: {name}: it is empty; leave the key out")
    return Recipe.from_dict(data, where), found.factorize, found.output


_EMPTY = {
    "distill": "write {} to distill with every default",
    "search": "give choices and a budget",
    "factorize": "write {} to factorize with every default",
    "output": "write {} for a path that the noise chooses",
}


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
        for key, remedy in _EMPTY.items():
            if getattr(variant, key) is None and key in variant.model_fields_set:  # a key with nothing behind it
                raise RecipeError(f"{where}: variants[{i}].{key}: it is empty; {remedy}, or leave the key out")
        variant.to_recipe(path.parent, f"{where}: variants[{i}]")
    return spec
