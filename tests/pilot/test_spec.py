"""A pilot file is checked before anything runs, and what is wrong is told in one line that says where."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel

import lowbit as lb
from lowbit.allocation import Budget
from lowbit.batches import without_labels
from lowbit.data import Preprocess, from_arrays
from lowbit.methods.distillation.run import distill
from lowbit.methods.factorization.choices import CHOICES
from lowbit.methods.factorization.run import factorize
from lowbit.methods.search.run import search
from lowbit.methods.search.space import SPACES
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.pilot.spec import PilotSpec, PreprocessSpec, load_spec
from lowbit.training.loop import Fitting

VALID: dict[str, Any] = {
    "name": "cats",
    "model": "net.py:build",
    "weights": "weights.safetensors",
    "data": {
        "calibration": {"source": "calibration.npz", "limit": 256},
        "test": {"source": "test.npz", "labels": "y", "preprocess": {"scale": 255, "mean": [0.5], "std": [0.25]}},
    },
    "kpi": {"metric": "accuracy", "minimum": 0.9},
    "seed": 7,
    "runtime": {"threads": 2, "batches": [1, 8]},
    "variants": [
        {"name": "w8a8", "weights": "int8", "activations": "int8"},
        {"name": "w4", "weights": "int4", "granularity": "group:16", "glue": None},
        {"name": "head-8", "weights": "int4", "activations": "int8", "rules": [{"match": "head", "weights": "int8"}]},
        {"name": "w2", "weights": "int2", "activations": "int4", "distill": {"epochs": 3, "crop": 2}},
        {"name": "mixed", "search": {"choices": ["int4", "int8"], "budget": {"like": "int4", "share": 1.5}}},
        {"name": "chains", "weights": "int4", "factorize": {"choices": "2x"}},
    ],
}


def changed(place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The valid file with another value at a place."""
    data = copy.deepcopy(VALID)
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


def without(*place: str | int) -> dict[str, Any]:
    data = copy.deepcopy(VALID)
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return data


def refusal(folder: Path, content: object) -> str:
    """The one line that a file with this content, text or data, is refused with, less the file's path."""
    path = folder / "pilot.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(lb.LowbitError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert str(path) in message
    return message.replace(str(path), "pilot.yaml")


def test_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "pilot.yaml"
    path.write_text(yaml.safe_dump(VALID))
    spec = load_spec(path)
    assert spec == PilotSpec.model_validate(VALID)
    assert (spec.seed, spec.runtime.threads, spec.runtime.batches) == (7, 2, (1, 8))
    assert spec.data.test.preprocess.mean == (0.5,)
    first, second, third, _, mixed, chains = (variant.to_recipe(tmp_path, "here") for variant in spec.variants)
    assert first == lb.Recipe.uniform("int8", "int8")
    assert second == lb.Recipe.uniform("int4", None, granularity="group:16")
    assert [(rule.match, str(rule.weights)) for rule in third.rules] == [("*", "int4"), ("head", "int8")]
    assert mixed == lb.Recipe(())
    assert chains.rules == lb.Recipe.uniform("int4", None).rules


def test_recipe_file_is_relative_to_the_pilot_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = lb.Recipe.uniform("int4", "int8")
    recipe.save(tmp_path / "w4.yaml")
    path = tmp_path / "pilot.yaml"
    path.write_text(yaml.safe_dump(changed(("variants",), [{"name": "w4", "recipe": "w4.yaml"}])))
    monkeypatch.chdir("/")
    assert load_spec(path).variants[0].to_recipe(tmp_path, "here") == recipe


def test_recipe_file_may_be_distilled(tmp_path: Path) -> None:
    lb.Recipe.uniform("int4", "int8").save(tmp_path / "w4.yaml")
    path = tmp_path / "pilot.yaml"
    path.write_text(yaml.safe_dump(changed(("variants",), [{"name": "w4", "recipe": "w4.yaml", "distill": {}}])))
    (variant,) = load_spec(path).variants
    assert variant.distill == DistillSpec()


def test_what_the_file_does_not_say_is_left_to_distill() -> None:
    assert DistillSpec().options() == {
        "epochs": 2,
        "exact": False,
        "loss": "kl",
        "features": (),
        "cache_teacher": False,
    }
    given = {"epochs": 3, "quantizer": "lsq", "rate": 0.1, "optimizer": "sgd", "features": ["head"], "crop": 1}
    options = DistillSpec.model_validate(given).options()
    assert options["features"] == ("head",)
    assert set(options) - set(DistillSpec().options()) == {"quantizer", "rate", "optimizer"}


@pytest.mark.parametrize(("spec", "method"), [(DistillSpec, distill), (SearchSpec, search), (FactorizeSpec, factorize)])
def test_every_option_is_one_of_the_method(spec: type[BaseModel], method: Callable[..., object]) -> None:
    """Its signature, and what it passes on to `fit`, have a keyword for each field."""
    taken = {*inspect.signature(method).parameters, *Fitting.__annotations__}
    assert set(spec.model_fields) - {"crop", "flip"} <= taken


def searching(**given: Any) -> SearchSpec:
    return SearchSpec.model_validate({"choices": ["int4", "int8"], "budget": {"like": "int4"}} | given)


def test_what_the_file_does_not_say_is_left_to_search() -> None:
    left_out = ("choices", "budget", "granularity")
    assert searching().options(*left_out) == {"epochs": 2, "loss": "kl"}
    assert searching().of_metric("r2", classes=False).loss == "mse"
    assert searching(loss="cosine").of_metric("r2", classes=False).loss == "cosine"
    assert searching(by="policy", rate=0.1).options(*left_out) == {
        **{"epochs": 2, "loss": "kl"},
        **{"by": "policy", "rate": 0.1},
    }


def test_choices_may_be_a_space() -> None:
    assert searching(choices="fliqs-s-int").choices == SPACES["fliqs-s-int"]


def test_one_budget_or_several() -> None:
    assert searching().budgets == (Budget("bops", like="int4"),)
    several = searching(budget=[{"cost": "file", "most": 2e5}, {"cost": "latency", "like": "int8", "share": 0.9}])
    assert several.budgets == (Budget("file", most=2e5), Budget("latency", like="int8", share=0.9))


def test_layers_that_decide_together() -> None:
    assert searching().grouping == "layer"
    assert searching(granularity="model").grouping == "model"
    assert searching(granularity=["a.*", "b.*"]).grouping == ("a.*", "b.*")


def factorizing(**given: Any) -> FactorizeSpec:
    return FactorizeSpec.model_validate(given)


def test_what_layers_can_become() -> None:
    assert factorizing().options() == {
        **{"exact": False, "solver": "descent", "middle": "int8"},
        **{"refit": True, "norms": False, "compare": True},
    }
    assert factorizing(choices="rank 28 int3").choices == ("rank 28 int3",)
    assert factorizing(choices={"conv*": "2x", "head": "svd 2x"}).choices == {"conv*": "2x", "head": "svd 2x"}
    several = factorizing(choices=["int4", "2x int4"], budget={"like": "2x int4", "share": 0.9}, layers="conv*")
    assert several.choices == ("int4", "2x int4")
    assert several.layers == ("conv*",)
    assert several.budget is not None
    assert several.budget.budget() == Budget("bops", like="2x int4", share=0.9)
    assert factorizing(budget={"cost": "bytes", "like": CHOICES[-1]}).choices is None


def test_factorized_variant_may_be_distilled_and_have_a_recipe_file(tmp_path: Path) -> None:
    recipe = lb.Recipe.uniform("int4", "int8")
    recipe.save(tmp_path / "w4.yaml")
    path = tmp_path / "pilot.yaml"
    chains = {"name": "chains", "recipe": "w4.yaml", "factorize": {}, "distill": {}}
    path.write_text(yaml.safe_dump(changed(("variants",), [chains])))
    (variant,) = load_spec(path).variants
    assert variant.factorize == FactorizeSpec()
    assert variant.to_recipe(tmp_path, "here") == recipe


def test_recipe_file_of_a_factorized_network_says_what_to_do(tmp_path: Path) -> None:
    found = lb.Recipe.uniform("int4", "int8").to_dict() | {"factorize": {"choices": {"conv1": "2x"}}}
    (tmp_path / "found.yaml").write_text(yaml.safe_dump(found))
    told = refusal(tmp_path, changed(("variants",), [{"name": "again", "recipe": "found.yaml"}]))
    assert told.startswith("pilot.yaml: variants[0].recipe: 'found.yaml' is of a factorized network; copy its section")


def test_searched_variant_may_have_a_recipe_file_for_other_layers(tmp_path: Path) -> None:
    recipe = lb.Recipe((lb.Rule("head", weights=lb.Int(8), activations=lb.Int(8)),))
    recipe.save(tmp_path / "head.yaml")
    path = tmp_path / "pilot.yaml"
    mixed = {**VALID["variants"][4], "recipe": "head.yaml", "granularity": "tensor"}
    path.write_text(yaml.safe_dump(changed(("variants",), [mixed])))
    (variant,) = load_spec(path).variants
    assert variant.to_recipe(tmp_path, "here") == recipe
    ruled = {**VALID["variants"][4], "rules": [{"match": "head", "weights": "int8"}], "glue": None}
    path.write_text(yaml.safe_dump(changed(("variants",), [ruled])))
    (variant,) = load_spec(path).variants
    assert variant.to_recipe(tmp_path, "here") == lb.Recipe((lb.Rule("head", weights=lb.Int(8)),), glue=None)


def test_crop_and_flip_become_an_augmentation() -> None:
    assert DistillSpec().augment((1.0,)) is None
    images, generator = torch.rand(8, 2, 5, 5), torch.Generator().manual_seed(0)
    cropped = DistillSpec(crop=2).augment((-3.0, 7.0))
    assert cropped is not None
    moved = cropped(images, generator)
    assert isinstance(moved, torch.Tensor)
    borders = {value for channel in moved.movedim(1, 0) for value in channel.unique().tolist() if not 0 <= value < 1}
    assert borders == {-3.0, 7.0}
    flipped = DistillSpec(flip=True).augment(())
    assert flipped is not None
    turned = flipped(images, generator)
    assert isinstance(turned, torch.Tensor)
    kept = [bool((a == b).all()) for a, b in zip(turned, images, strict=True)]
    assert set(kept) == {True, False}
    mirrored = [bool((a == b.flip(-1)).all()) for a, b in zip(turned, images, strict=True)]
    assert [a or b for a, b in zip(kept, mirrored, strict=True)] == [True] * 8


@pytest.mark.parametrize(
    ("preprocess", "black"),
    [
        ({}, ()),
        ({"scale": 255, "std": [0.25]}, ()),
        ({"mean": [0.5]}, (-0.5,)),
        ({"mean": [0.5], "std": [0.25]}, (-2.0,)),
        ({"mean": [0.5, 0.25], "std": [0.25]}, (-2.0, -1.0)),
        ({"mean": [0.5], "std": [0.25, 0.5]}, (-2.0, -1.0)),
        ({"mean": [0.0, 0.5], "std": [1.0, 0.25]}, (0.0, -2.0)),
    ],
)
def test_black_pixel_after_preprocessing(preprocess: dict[str, Any], black: tuple[float, ...]) -> None:
    assert PreprocessSpec.model_validate(preprocess).black() == black
    if "scale" not in preprocess:
        data = from_arrays(np.zeros((1, 2, 3, 3)), preprocess=Preprocess(**preprocess))
        prepared = without_labels(next(iter(data.batches(1))))
        assert isinstance(prepared, torch.Tensor)
        assert prepared[0, :, 0, 0].tolist() == [*(black * 2)[:2]] or not black


@pytest.mark.parametrize(
    ("place", "path", "near"),
    [
        (("varants",), "varants", "'variants'"),
        (("data", "tst"), "data.tst", "'test'"),
        (("data", "test", "label"), "data.test.label", "'labels'"),
        (("data", "test", "preprocess", "scael"), "data.test.preprocess.scael", "'scale'"),
        (("kpi", "minimun"), "kpi.minimun", "'minimum'"),
        (("runtime", "thread"), "runtime.thread", "'threads'"),
        (("variants", 1, "weight"), "variants[1].weight", "'weights'"),
        (("data", "trian"), "data.trian", "'train'"),
        (("variants", 3, "distill", "epoch"), "variants[3].distill.epoch", "'epochs'"),
        (("variants", 4, "search", "choice"), "variants[4].search.choice", "'choices'"),
        (("variants", 4, "search", "budget", "liek"), "variants[4].search.budget.liek", "'like'"),
        (("variants", 5, "factorize", "choice"), "variants[5].factorize.choice", "'choices'"),
    ],
)
def test_unknown_key_names_its_place_and_the_nearest_key(
    tmp_path: Path, place: tuple[str | int, ...], path: str, near: str
) -> None:
    assert refusal(tmp_path, changed(place, 1)) == f"pilot.yaml: {path}: unknown key; did you mean {near}?"


def test_key_unlike_any_other_lists_the_known_ones(tmp_path: Path) -> None:
    assert "qqq: unknown key; known keys are " in refusal(tmp_path, changed(("qqq",), 1))


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("name",), 3, "name: expected text, got 3"),
        (("name",), "../cats", "name: a pilot's name is a folder name of letters"),
        (("model",), None, "model: expected text, got None"),
        (("data",), "test.npz", "data: expected a mapping"),
        (("data", "test"), ["test.npz"], "data.test: expected a mapping"),
        (("data", "calibration", "limit"), 0, "data.calibration.limit: expected 1 or more"),
        (("data", "test", "preprocess", "layout"), "HWC", "data.test.preprocess.layout: expected 'NCHW' or"),
        (("data", "test", "preprocess", "size"), [32], "data.test.preprocess.size[1]: it is missing; give it"),
        (("data", "test", "preprocess", "mean"), ["a"], "data.test.preprocess.mean[0]: expected a number"),
        (("kpi", "minimum"), "high", "kpi.minimum: expected a number"),
        (("kpi", "minimum"), float("nan"), "kpi.minimum: expected a finite number"),
        (("kpi", "minimum"), 90, "kpi.minimum: accuracy is a share from 0 to 1; write 0.9 for 90 %, got 90"),
        (("seed",), "x", "seed: expected a whole number"),
        (("runtime", "name"), "tensorrt", "runtime.name: expected 'onnxruntime' or 'openvino', got 'tensorrt'"),
        (("runtime", "threads"), 0, "runtime.threads: expected 1 or more, got 0"),
        (("runtime", "batches"), [1, 0], "runtime.batches[1]: expected 1 or more, got 0"),
        (("runtime", "threads"), 10**12, "runtime.threads: expected 1024 at most, got 1000000000000"),
        (("runtime", "batches"), [1, 65537], "runtime.batches[1]: expected 65536 at most, got 65537"),
        (("seed",), -1, "seed: expected 0 or more, got -1"),
        (("seed",), 2**63, "seed: expected 9223372036854775807 at most, got"),
        (("kpi",), {"metric": "cosine", "minimum": 95}, "kpi.minimum: cosine is from -1 to 1; write 0.9 for 90 %"),
        (("kpi",), {"metric": "cosine", "tolerance": 5}, "kpi.tolerance: cosine is from -1 to 1; write 0.01 for"),
        (("kpi",), {"metric": "r2", "minimum": 95}, "kpi.minimum: r2 is 1 at most; write 0.9 for 90 %, got 95"),
        (("kpi",), 3, "kpi: expected a mapping, got 3"),
        (("variants", 0, "name"), "Float", "variants[0].name: a variant's name is a folder name of letters"),
        *(
            (place, value, f"{path}: expected a number, got {value}")
            for place, value, path in (
                (("seed",), False, "seed"),
                (("kpi", "minimum"), True, "kpi.minimum"),
                (("runtime", "threads"), True, "runtime.threads"),
                (("runtime", "batches"), [True], "runtime.batches"),
                (("variants", 0, "widen_most"), True, "variants[0].widen_most"),
                (("variants", 3, "distill", "rate"), True, "variants[3].distill.rate"),
                (("variants", 4, "search", "budget", "share"), True, "variants[4].search.budget.share"),
            )
        ),
        (("variants",), [], "variants: expected a list of 1 or more"),
        (("variants",), {"name": "w8"}, "variants: expected a list"),
        (("variants", 0), "w8a8", "variants[0]: expected a mapping"),
        (("variants", 0), {"weights": "int8"}, "variants[0].name: it is missing; give it, as in `name: w8a8`"),
        (("variants", 0, "name"), "a/b", "variants[0].name: a variant's name is a folder name"),
        (("variants", 0, "name"), "..", "variants[0].name: a variant's name is a folder name"),
        (("variants", 0, "name"), "", "variants[0].name: a variant's name is a folder name"),
        (("variants", 0, "name"), "a" * 65, "variants[0].name: a variant's name is a folder name"),
        (("variants", 0, "name"), "float", "variants[0].name: a variant's name is a folder name"),
        (("variants", 1, "name"), "W8A8", "variants: two variants have the same name"),
        (("variants", 0, "weights"), 8, "variants[0].weights: expected text, got 8"),
        (("variants", 0, "weights"), "itn4", "variants[0].weights: unknown format 'itn4'; did you mean 'int4'"),
        (("variants", 0, "activations"), "float8", "variants[0].activations: unknown format 'float8'"),
        (("variants", 0, "glue"), "int-8", "variants[0].glue: unknown format 'int-8'"),
        (("variants", 0, "granularity"), "row", "variants[0].granularity: unknown granularity 'row'"),
        (("variants", 0, "opset"), 26, "variants[0].opset: expected 25 at most, got 26"),
        (("data", "train"), "train.npz", "data.train: expected a mapping"),
        (("variants", 3, "distill"), None, "variants[3].distill: it is empty; write {} to distill with every default"),
        (("variants", 3, "distill"), True, "variants[3].distill: expected a mapping"),
        *(
            (("variants", 3, "distill", key), value, f"variants[3].distill.{key}: expected {told}")
            for key, value, told in (
                ("epochs", 0, "1 or more, got 0"),
                ("epochs", 1.5, "a whole number, got 1.5"),
                ("quantizer", "lsq+", "'fixed', 'absmax', 'lsq', 'pact', 'dorefa' or 'ewgs', got 'lsq+'"),
                ("exact", "perhaps", "true or false"),
                ("loss", "l2", "'kl', 'mse', 'cosine' or 'labels', got 'l2'"),
                ("temperature", 0, "more than 0, got 0"),
                ("features", "head", "a list, got 'head'"),
                ("batch_size", 0, "1 or more, got 0"),
                ("rate", -0.1, "more than 0, got -0.1"),
                ("rate", float("inf"), "a finite number"),
                ("scale_rate", -1, "0 or more, got -1"),
                ("optimizer", "lion", "'adam' or 'sgd', got 'lion'"),
                ("weight_decay", -1, "0 or more, got -1"),
                ("clip", 0, "more than 0, got 0"),
                ("precision", "int8", "'float32', 'bf16' or 'fp16', got 'int8'"),
                ("delta_every", 0, "1 or more, got 0"),
                ("crop", -1, "0 or more, got -1"),
            )
        ),
        *(
            (("variants", 3, "distill"), given, f"variants[3].distill: {told}")
            for given, told in (
                ({"loss": "mse", "temperature": 4}, "temperature is of loss 'kl', and loss is 'mse'; leave it out"),
                ({"loss": "labels", "features": ["head"]}, "features are the teacher's, and loss 'labels' has none"),
                ({"quantizer": "lsq", "delta_every": 2}, "delta_every is of quantizer 'ewgs', and quantizer is 'lsq'"),
                (
                    {"cache_teacher": True, "flip": True},
                    "cache_teacher keeps one output a sample, which features, crop",
                ),
            )
        ),
        (("variants", 4, "search"), None, "variants[4].search: it is empty; give choices and a budget, or leave the"),
        (("variants", 4, "search"), {}, "variants[4].search.choices: it is missing; give it"),
        (("variants", 4, "search"), {"choices": "fliqs-l-int"}, "variants[4].search.budget: it is missing; give it"),
        *(
            (("variants", 4, "search", key), value, f"variants[4].search{told}")
            for key, value, told in (
                ("choices", "fliqs-xl", ".choices: space 'fliqs-xl' is unknown; write a list of formats, or one of fl"),
                ("choices", ["int4", "itn8"], ".choices[1]: unknown format 'itn8'; did you mean 'int8'"),
                (
                    "choices",
                    ["int4", "int8/int8/int8"],
                    ".choices[1]: choice 'int8/int8/int8': expected one format, or",
                ),
                ("choices", ["int4", "int4/int4"], ": choices int4, int4/int4: a search needs two at least; give more"),
                ("choices", [], ": choices are none: a search needs two at least"),
                ("choices", 4, ".choices: expected a list"),
                ("budget", [], ".budget: expected a list of 1 or more"),
                ("budget", 3, ".budget: expected a list"),
                ("budget", {}, ".budget: budget bops: give either most, a figure, or like, the name of a choice"),
                ("budget", {"most": 1e9, "like": "int4"}, ".budget: budget bops: give either most, a figure, or"),
                ("budget", {"most": -1}, ".budget.most: expected more than 0"),
                (
                    "budget",
                    {"cost": "joules", "most": 1},
                    ".budget.cost: expected 'bops', 'bytes', 'latency'",
                ),
                ("budget", {"most": 1e9, "share": 2}, ".budget: share is of like, and most is a figure; give one"),
                (
                    "budget",
                    [{"most": 1e9}, {"like": "int5"}],
                    ": budget: like 'int5' is none of the choices (int4, int8)",
                ),
                ("by", "random", ".by: expected 'knapsack', 'surrogate' or 'policy', got 'random'"),
                (
                    "granularity",
                    "(",
                    ".granularity: missing ), unterminated subpattern at position 0; expected 'lay",
                ),
                ("sensitivity", "hessian", ".sensitivity: expected 'loss' or 'fisher'"),
                ("explore", 0, ".explore: expected more than 0"),
                ("explore", 1.5, ".explore: expected 1 at most"),
                ("epochs", 0, ".epochs: expected 1 or more"),
                ("temperature", 0, ".temperature: expected more than 0"),
                ("exact", True, ".exact: unknown key; "),
            )
        ),
        (
            ("variants", 4, "search"),
            {"choices": "fliqs-s-int", "budget": {"most": 1}, "by": "knapsack", "explore": 0.5},
            "variants[4].search: explore is of 'surrogate' and 'policy', and by is 'knapsack'; leave it out",
        ),
        (
            ("variants", 4, "search"),
            {"choices": "fliqs-s-int", "budget": {"most": 1}, "loss": "mse", "temperature": 4},
            "variants[4].search: temperature is of loss 'kl', and loss is 'mse'; leave it out",
        ),
        (("variants", 4, "distill"), {}, "variants[4]: search trains its student itself; leave distill out"),
        (("variants", 4, "weights"), "int4", "variants[4]: search decides weights and activations; leave them out"),
        (("variants", 4, "widen_most"), 1, "variants[4]: widen_most would leave the budget of search; leave it out"),
        (("variants", 5, "factorize"), None, "variants[5].factorize: it is empty; write {} to factorize with every"),
        *(
            (("variants", 5, "factorize"), given, f"variants[5].factorize{told}")
            for given, told in (
                ({"choices": "two"}, ".choices: unknown format 'two'"),
                ({"choices": ["2x", "0.5x int4"]}, ".choices: choice '0.5x int4': a rate of 0.5 saves nothing"),
                ({"choices": {"a": "2x", "b": "wavelet 2x"}}, ".choices: choice 'wavelet 2x': expected '2x', 'spatial"),
                ({"choices": "mxfp4"}, ".choices: choice 'mxfp4': block formats have no scales"),
                ({"choices": 2}, ".choices: expected a choice such as '2x', a list of choices, or a mapping"),
                ({"choices": []}, ".choices: expected a choice such as '2x'"),
                ({"choices": ["2x", "3x"]}, ": 2 choices and nothing to choose by; give a budget or a tolerance"),
                ({"choices": {"a": "2x"}, "tolerance": 0.1}, ": choices say what each layer becomes; leave tolerance"),
                ({"choices": {"a": "2x"}, "layers": "a"}, ": choices say what each layer becomes; leave layers out"),
                ({"budget": {"most": 1}, "tolerance": 0.1}, ": budget and tolerance both say how far to go; give one"),
                ({"budget": {"like": "5x"}}, ": budget: like '5x' is none of the choices (int8, int4, "),
                ({"budget": {"like": "two"}}, ".budget.like: unknown format 'two'"),
                ({"budget": {}}, ".budget: budget bops: give either most, a figure, or like, the name of a choice"),
                ({"tolerance": 1.5}, ".tolerance: expected less than 1, got 1.5"),
                ({"layers": []}, ".layers: "),
                ({"solver": "published"}, ".solver: expected 'descent', 'admm' or 'rounding', got 'published'"),
                ({"exact": True, "middle": "int8"}, ": exact is as published, and has no middle; leave one or the"),
                ({"exact": True, "refit": False, "solver": "admm"}, ": exact is as published, and has no refit and so"),
                ({"middle": "itn8"}, ".middle: unknown format 'itn8'; did you mean 'int8'"),
                ({"crop": 2}, ": crop and flip change the inputs of norms; set norms: true, or leave them out"),
            )
        ),
        (
            ("variants", 5, "search"),
            {"choices": "fliqs-s-int", "budget": {"most": 1}},
            "variants[5]: search decides weights and activations; leave them out",
        ),
        (
            ("variants", 5),
            {"name": "both", "factorize": {}, "search": {"choices": "fliqs-s-int", "budget": {"most": 1}}},
            "variants[5]: search decides formats of layers as they are, and factorize what layers become; make two",
        ),
        (("variants", 5, "level"), "fast", "variants[5]: factorize takes the place of post-training; leave level out"),
        (("variants", 5, "widen_most"), 2, "variants[5]: factorize takes the place of post-training; leave widen_mo"),
        (("variants", 5), {"name": "chains", "factorize": {}}, "variants[5]: say what to quantize: weights, activat"),
        (
            ("variants", 0),
            {"name": "w8"},
            "variants[0]: say what to quantize: weights, activations, rules, a recipe file, or search",
        ),
        (("variants", 0, "recipe"), "r.yaml", "variants[0]: a recipe file and activations, weights: give one or"),
        (("variants", 2, "rules"), ["head"], "variants[2].rules[0]: expected a mapping"),
        (("variants", 2, "rules"), [{"weights": "itn4"}], "variants[2]: rules[0].weights: unknown format 'itn4'"),
        (("variants", 2, "rules"), [{}, {"weight": "int4"}], "variants[2]: rules[1].weight: unknown key; did you mean"),
    ],
)
def test_wrong_value_names_its_place(tmp_path: Path, place: tuple[str | int, ...], value: object, told: str) -> None:
    message = refusal(tmp_path, changed(place, value))
    assert message.startswith(f"pilot.yaml: {told}")
    assert "Value error" not in message


@pytest.mark.parametrize("key", ["name", "model", "data", "kpi", "variants"])
def test_missing_section(tmp_path: Path, key: str) -> None:
    assert f"pilot.yaml: {key}: it is missing; give it" in refusal(tmp_path, without(key))


def test_wrong_recipe_file_is_named(tmp_path: Path) -> None:
    pilot = changed(("variants",), [{"name": "w4", "recipe": "w4.yaml"}])
    path = tmp_path / "pilot.yaml"
    path.write_text(yaml.safe_dump(pilot))
    with pytest.raises(lb.LowbitError, match=r"cannot read '.*w4\.yaml': No such file"):
        load_spec(path)
    (tmp_path / "w4.yaml").write_text("rules: [{weights: itn4}]")
    with pytest.raises(lb.LowbitError, match=r"w4\.yaml: rules\[0\]\.weights: unknown format 'itn4'"):
        load_spec(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "got an empty file, expected a mapping; write name, model"),
        ("- a\n- b\n", "got a list, expected a mapping"),
        ("just text", "got a str, expected a mapping"),
        ("name: [\n", "line 2, column 1: expected the node content"),
        ("name: a\n model: b\n", "line 2, column 7: mapping values are not allowed here"),
        ("name: *nobody\n", "line 1, column 7: found undefined alias"),
        ("name: !!python/object/apply:os.system [id]\n", "line 1, column 7: could not determine a constructor"),
        ("a: &a [*a]\n", "more than 100000 values, aliases written out"),
    ],
)
def test_file_that_is_no_pilot(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


@pytest.mark.parametrize("place", ["variants", "weights", "preprocess"])
def test_alias_bomb_is_refused_at_once(tmp_path: Path, place: str) -> None:
    nine = ", ".join
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{nine([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    began = time.perf_counter()
    assert "more than 100000 values" in refusal(tmp_path, "\n".join([*lines, f"{place}: *a11"]))
    assert time.perf_counter() - began < 2


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    assert "expected at most 1000000;" in refusal(tmp_path, "# " + "x" * 1_000_001)
