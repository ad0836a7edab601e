"""What a pilot file says: the user's model, data, KPI and variants, validated before anything runs.

What a method does with a variant is a section of its own: `lowbit.pilot.sections`.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from lowbit import files
from lowbit.errors import RecipeError
from lowbit.pilot import targets
from lowbit.pilot.defaults import Origins, merged
from lowbit.pilot.metrics import RANGES, SHARES, is_own
from lowbit.pilot.record import Kpi
from lowbit.pilot.sections.budgets import BudgetsSpec
from lowbit.pilot.sections.coding import FeaturesSpec, MadeFeaturesSpec
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.sections.fields import (
    Finite,
    FormatName,
    GranularityName,
    NativeName,
    Positive,
    Section,
    Seed,
    wrong,
)
from lowbit.pilot.sections.output import MadeOutputSpec, OutputSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.post_training.levels import Level
from lowbit.recipe import Recipe, check_extent, path_of, problems, validated

if TYPE_CHECKING:
    from lowbit.data import Data

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_MOST_SEEDS = 100
_MOST_THREADS, _LARGEST_BATCH = 1024, 65536


class PreprocessSpec(Section):
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


class DataSpec(Section):
    """One data set: a file, glob, folder or ``module:function``; `limit` takes a seeded random subset.

    Several `inputs` make each batch a dict by their names; `tokenizer` makes token numbers of a column of texts.
    """

    source: str
    inputs: str | tuple[str, ...] | None = None
    labels: str | None = None
    tokenizer: str | None = None
    tokens: int = Field(default=128, ge=1)
    limit: int | None = Field(default=None, ge=1)
    preprocess: PreprocessSpec = PreprocessSpec()

    def open(self, folder: Path, seed: int) -> Data:
        """The data; paths are relative to `folder`, and `seed` draws the subset.

        Raises:
            DataError: it cannot be read, or does not fit what is said of it.
        """
        from lowbit.data import Preprocess, open_data

        preprocess = Preprocess(**self.preprocess.model_dump())
        return open_data(
            self.source,
            folder=folder,
            preprocess=preprocess,
            inputs=self.inputs,
            labels=self.labels,
            tokenizer=self.tokenizer,
            tokens=self.tokens,
            limit=self.limit,
            seed=seed,
        )


class PilotData(Section):
    """The data that calibrates (no labels needed), and the data that is reported on.

    `distill`, `search`, `output` and `features` train on `train`, without it on the calibration data.
    """

    calibration: DataSpec
    test: DataSpec
    train: DataSpec | None = None


class KpiSpec(Section):
    """The figure that decides: accuracy, agreement or cosine (with the float model), r2, or ``module:function``.

    `minimum` is the least that counts, `tolerance` the most that may be lost against the float model, in the metric's
    units. With `smaller_is_better`, of an own metric, `maximum` is the most that counts, in the place of `minimum`.
    """

    metric: str = "accuracy"
    smaller_is_better: bool = False
    minimum: Finite | None = None
    maximum: Finite | None = None
    tolerance: Positive | None = None

    @model_validator(mode="after")
    def _has_one_direction(self) -> KpiSpec:
        if self.smaller_is_better and not is_own(self.metric):
            raise wrong(
                f"it is for a module:function metric, and of {self.metric} larger is better; leave it out",
                "smaller_is_better",
            )
        if self.smaller_is_better and self.minimum is not None:
            raise wrong(f"of {self.metric} smaller is better; write maximum, the most that counts", "minimum")
        if not self.smaller_is_better and self.maximum is not None:
            other = ", or smaller_is_better: true if that is so of it" if is_own(self.metric) else ""
            raise wrong(f"of {self.metric} larger is better; write minimum, the least that counts{other}", "maximum")
        return self

    @model_validator(mode="after")
    def _asks_for_something(self) -> KpiSpec:
        if self.minimum is None and self.maximum is None and self.tolerance is None:
            bound = "maximum (the most that counts)" if self.smaller_is_better else "minimum (the least that counts)"
            raise wrong(f"give {bound}, tolerance (the most that may be lost), or both")
        return self

    @model_validator(mode="after")
    def _is_within_reach(self) -> KpiSpec:
        if self.metric not in RANGES:
            return self
        least, most = RANGES[self.metric]
        within = f"{most:g} at most" if math.isinf(least) else f"from {least:g} to {most:g}"
        lies = f"{self.metric} is {'a share ' if self.metric in SHARES else ''}{within}"
        if self.minimum is not None and not least <= self.minimum <= most:
            raise wrong(f"{lies}; write 0.9 for 90 %", "minimum")
        if not math.isinf(least) and self.tolerance is not None and self.tolerance >= 1:
            raise wrong(f"{lies}; write 0.01 for a percentage point", "tolerance")
        return self

    def asked(self) -> Kpi:
        """The same for the record."""
        return Kpi(self.metric, self.minimum, self.tolerance, self.smaller_is_better, self.maximum)


class RuntimeSpec(Section):
    """What executes the files, and for which threads and batch sizes latency is measured.

    `formats` are those that the target can execute natively; none says nothing about it. With `widen` it stores others
    and computes in wider ones, which is told.
    """

    name: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int = Field(default=1, ge=1, le=_MOST_THREADS)
    batches: Annotated[tuple[Annotated[int, Field(ge=1, le=_LARGEST_BATCH)], ...], Field(min_length=1)] = (1, 32)
    formats: tuple[NativeName, ...] = ()
    widen: bool = False

    @model_validator(mode="after")
    def _widens_something(self) -> RuntimeSpec:
        if self.widen and not self.formats:
            raise wrong("widen is about formats that the target has not; give formats, or leave it out")
        return self


class Variant(Section):
    """One candidate: a recipe file, or weights and activations for all layers with exceptions in `rules`.

    `level` is the effort of post-training, and `widen_most` the number of tensors that may go to 16 bits; see
    `lowbit.post_training.levels.post_train`. With `distill` it is trained after that. With `search`, which trains too,
    recipe file and `rules` are about the layers that are not searched, and `granularity` about those that are. With
    `factorize`, layers become chains in these formats, which takes the place of post-training. With `output` the float
    model first learns to return points on a path, and all that follows is done to that network. With `features` it
    first gets codes of its features and a linear head that reads them.
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
    features: FeaturesSpec | None = None

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name.casefold() == "float":
            raise wrong(
                "a variant's name is a folder name of letters, digits and . _ + - (and not 'float', which the baseline "
                "is called)"
            )
        return name

    @model_validator(mode="after")
    def _says_something(self) -> Variant:
        beside = {
            "name",
            "recipe",
            "opset",
            "level",
            "widen_most",
            "distill",
            "search",
            "factorize",
            "output",
            "features",
        }
        given = sorted(self.model_fields_set - beside - ({"granularity"} if self.search else set()))
        if self.recipe and given:
            raise wrong(f"a recipe file and {', '.join(given)}: give one or the other")
        said = "search" in self.model_fields_set  # with nothing behind it, `load_spec` says so
        if not (self.recipe or self.weights or self.activations or self.rules or said):
            raise wrong("say what to quantize: weights, activations, rules, a recipe file, or search")
        return self

    @model_validator(mode="after")
    def _leaves_to_search_what_it_decides(self) -> Variant:
        if self.search and self.distill:
            raise wrong("search trains its student itself; leave distill out, and give its options to search")
        if self.search and (self.weights or self.activations):
            raise wrong(
                "search decides weights and activations; leave them out (rules are for layers that are not searched)"
            )
        if self.search and self.widen_most:
            raise wrong("widen_most would leave the budget of search; leave it out, or add int16 to the choices")
        return self

    @model_validator(mode="after")
    def _leaves_to_factorize_what_it_does(self) -> Variant:
        if self.factorize and self.search:
            raise wrong(
                "search decides formats of layers as they are, and factorize what layers become; make two variants of "
                "them, or leave search out and give factorize a budget, which decides formats too"
            )
        idle = sorted(self.model_fields_set & {"level", "widen_most"})
        if self.factorize and idle:
            raise wrong(f"factorize takes the place of post-training; leave {' and '.join(idle)} out")
        return self

    @model_validator(mode="after")
    def _goes_with_an_output(self) -> Variant:
        if self.output is None:
            return self
        for name in ("search", "factorize"):
            if getattr(self, name) is not None:
                raise wrong(
                    f"{name} starts from the float model as it is, and output changes it; leave one or the other out "
                    "(formats that a search found can be the recipe of a variant with output)"
                )
        if self.distill and (self.distill.loss != "mse" and "loss" in self.distill.model_fields_set):
            raise wrong(
                f"with output a student learns points, by loss 'mse', and distill.loss is {self.distill.loss!r}"
            )
        if self.distill and self.distill.temperature is not None:
            raise wrong("with output a student learns points, by loss 'mse', which has no temperature; leave it out")
        return self

    @property
    def learns(self) -> bool:
        """Whether something is trained, so that seeds matter: a fold alone is not."""
        path = self.output.path if self.output else "fold"
        return bool(self.distill or self.search or self.features or not path.startswith("fold"))

    @model_validator(mode="after")
    def _goes_with_features(self) -> Variant:
        if self.features is None:
            return self
        if self.output:
            raise wrong("features is for classifiers, and output for numbers; leave one or the other out")
        if self.search:
            raise wrong(
                "search would decide the format of the head, which reads codes of 2 bits; leave search or features out "
                "(formats that a search found can be the rules of a variant with features)"
            )
        if self.distill and self.distill.loss not in ("kl", "labels"):
            raise wrong(
                f"with features a student learns classes, by loss 'kl' or 'labels', and distill.loss is "
                f"{self.distill.loss!r}"
            )
        return self

    def to_recipe(self, folder: Path, where: str) -> Recipe:
        """The recipe of this variant; paths are relative to `folder`, and `where` begins error messages.

        Raises:
            DataError: the recipe file cannot be read.
            RecipeError: the recipe file, or a rule, does not fit.
        """
        if self.recipe:
            recipe, factorize, output, features = load_recipe(folder / self.recipe)
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
            if features is not None:
                raise RecipeError(
                    f"{where}.recipe: {self.recipe!r} is of a network whose features are codes; give the variant "
                    "features, and copy the rest into a recipe file of its own"
                )
            return recipe
        recipe = Recipe.from_dict({"rules": [*self.rules], "glue": self.glue}, where)
        if not (self.weights or self.activations):
            return recipe
        (every,) = Recipe.uniform(self.weights, self.activations, granularity=self.granularity).rules
        return replace(recipe, rules=(every, *recipe.rules))


def _seeds(given: object) -> object:
    """A number of seeds as that many, from 0; all else as it is."""
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= _MOST_SEEDS:
            raise wrong(f"expected a number of seeds from 1 to {_MOST_SEEDS}, or a list of seeds")
        return tuple(range(given))
    return given


class PilotSpec(Section):
    """A whole pilot file.

    With `seeds`, variants that learn are run once a seed, the first of which is `seed`: it draws the data and all else.
    `defaults` are in the variants once the file is read, and None then.
    """

    name: str
    model: str
    weights: str | None = None
    data: PilotData
    kpi: KpiSpec
    budgets: BudgetsSpec | None = None
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds), Field(min_length=1, max_length=_MOST_SEEDS)] = ()
    runtime: RuntimeSpec = RuntimeSpec()
    defaults: dict[str, object] | None = None
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _has_defaults_in_its_variants(cls, data: object) -> object:
        return merged(data) if isinstance(data, dict) else data

    @field_validator("defaults")
    @classmethod
    def _is_of_many(cls, defaults: dict[str, object] | None) -> dict[str, object] | None:
        if defaults and "name" in defaults:
            raise wrong("every variant has a name of its own; leave name out of the defaults")
        return defaults

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise wrong("two seeds are the same; a training with it again would be the same too")
        return seeds

    @model_validator(mode="after")
    def _has_one_first_seed(self) -> PilotSpec:
        if self.seeds and "seed" in self.model_fields_set and self.seed != self.seeds[0]:
            raise wrong(f"seeds begin with {self.seeds[0]}; give one or the other", "seed")
        if self.seeds:
            object.__setattr__(self, "seed", self.seeds[0])
        return self

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise wrong("a pilot's name is a folder name of letters, digits and . _ + -")
        return name

    @field_validator("variants")
    @classmethod
    def _are_distinct(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        names = [v.name.casefold() for v in variants]
        if len(set(names)) < len(names):
            raise wrong("two variants have the same name (upper and lower case are one on some disks)")
        return variants

    @model_validator(mode="after")
    def _judges_numbers_as_numbers(self) -> PilotSpec:
        for i, variant in enumerate(self.variants if self.kpi.metric == "accuracy" else ()):
            asked = [key for key in ("labels", "learned_table") if variant.output and getattr(variant.output, key)]
            if asked:
                raise wrong(
                    "it takes targets from labels, and kpi.metric is 'accuracy', so labels are classes; leave it out, "
                    "and class scores are learned from the float model",
                    *("variants", i, "output", asked[0]),
                )
        return self


class _Sections(Section):
    factorize: FactorizeSpec | None = None
    output: MadeOutputSpec | None = None
    features: MadeFeaturesSpec | None = None


def load_recipe(
    path: Path,
) -> tuple[Recipe, FactorizeSpec | None, MadeOutputSpec | None, MadeFeaturesSpec | None]:
    """A recipe file, and the sections that a pilot writes into one: chains, what output and features became.

    Raises:
        DataError: the file cannot be read.
        RecipeError: it does not fit; the message gives the path to the field.
    """
    data, where = files.read_yaml(path), os.fspath(path)
    if not isinstance(data, dict):
        return Recipe.from_dict(data, where), None, None, None
    found = validated(_Sections, {name: data.pop(name) for name in _Sections.model_fields if name in data}, where)
    for name in found.model_fields_set:
        if getattr(found, name) is None:
            raise RecipeError(f"{where}: {name}: it is empty; leave the key out")
    return Recipe.from_dict(data, where), found.factorize, found.output, found.features


_EMPTY = {
    "distill": "write {} to distill with every default",
    "search": "give choices and a budget",
    "factorize": "write {} to factorize with every default",
    "output": "write {} for a path that the noise chooses",
    "features": "write {} for codes of what the last Linear reads",
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
    check_extent(data, where)
    origin = Origins.of(data)
    spec = validated(PilotSpec, merged(data), where, origin)
    for i, variant in enumerate(spec.variants):
        for key, remedy in _EMPTY.items():
            if getattr(variant, key) is None and key in variant.model_fields_set:  # a key with nothing behind it
                at = path_of(origin(("variants", i, key), "")[0])
                raise RecipeError(f"{where}: {at}: it is empty; {remedy}, or leave the key out")
        shared = "defaults" if origin(("variants", i, "rules"), "")[0][0] == "defaults" else f"variants[{i}]"
        variant.to_recipe(path.parent, f"{where}: {shared}")
    for place, why in targets.check(spec.variants, spec.runtime, path.parent, where):
        raise RecipeError(f"{where}: {path_of(origin(place, '')[0])}: {why}")
    return spec


def problems_of(data: dict[str, object], where: str) -> list[str]:
    """Every reason why the content of a pilot file is none, as `load_spec` words it; empty if there is none."""
    try:
        check_extent(data, where)
    except RecipeError as error:
        return [str(error)]
    return problems(PilotSpec, merged(data), where, Origins.of(data))
