"""What a pilot file says: the user's model, data, KPI and variants, validated before anything runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lowbit import files
from lowbit.errors import RecipeError
from lowbit.recipe import Recipe, validated

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessSpec(_Section):
    """How inputs become what the model expects; see `lowbit.data.Preprocess`."""

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[int, int] | None = None


class DataSpec(_Section):
    """One data set: a file, glob, folder or ``module:function``; `limit` takes a seeded random subset."""

    source: str
    inputs: str | None = None
    labels: str | None = None
    limit: int | None = None
    preprocess: PreprocessSpec = PreprocessSpec()


class PilotData(_Section):
    """The data that calibrates (no labels needed) and the data that is reported on."""

    calibration: DataSpec
    test: DataSpec


class KpiSpec(_Section):
    """The figure that decides: accuracy, agreement (with the float model), r2, or ``module:function``."""

    metric: str = "accuracy"
    minimum: float


class RuntimeSpec(_Section):
    """What executes the files, and for which threads and batch sizes latency is measured."""

    name: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int = Field(default=1, ge=1)
    batches: tuple[int, ...] = (1, 32)


class Variant(_Section):
    """One candidate: a recipe file, or weights and activations for all layers with exceptions in `rules`."""

    name: str
    recipe: str | None = None
    weights: str | None = None
    activations: str | None = None
    granularity: str = "channel"
    rules: tuple[dict[str, object], ...] = ()
    glue: str | None = "int8"
    opset: int = 21

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name == "float":
            raise ValueError("a variant's name is a folder name of letters, digits and . _ + - (and not 'float')")
        return name

    @model_validator(mode="after")
    def _says_something(self) -> Variant:
        if self.recipe and (self.weights or self.activations or self.rules):
            raise ValueError("give either a recipe file, or weights, activations and rules")
        if not (self.recipe or self.weights or self.activations or self.rules):
            raise ValueError("say what to quantize: weights, activations, rules, or a recipe file")
        return self

    def to_recipe(self, folder: Path, where: str) -> Recipe:
        """The recipe of this variant; paths are relative to `folder`."""
        if self.recipe:
            return Recipe.load(folder / self.recipe)
        rules: list[dict[str, object]] = [*self.rules]
        if self.weights or self.activations:
            every = {"weights": self.weights, "activations": self.activations, "granularity": self.granularity}
            rules.insert(0, {"match": "*", **every})
        return Recipe.from_dict({"rules": rules, "glue": self.glue}, f"{where}: variant {self.name!r}")


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
            raise ValueError("a pilot's name is a folder name of letters, digits and . _ + -")
        return name

    @field_validator("variants")
    @classmethod
    def _are_distinct(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        names = [v.name.casefold() for v in variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name (upper and lower case are one on some disks)")
        return variants


def load_spec(path: Path) -> PilotSpec:
    """Read a pilot file.

    Raises:
        DataError: it cannot be read.
        RecipeError: it does not fit; the message gives the path to the field.
    """
    data = files.read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{os.fspath(path)}: expected a mapping with name, model, data, kpi and variants")
    return validated(PilotSpec, data, os.fspath(path))
