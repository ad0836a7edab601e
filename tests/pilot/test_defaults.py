"""What variants start from, and which formats a target has: what comes out, and where errors say that it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import lowbit as lb
from lowbit.errors import RecipeError
from lowbit.pilot.planning import PlanError, plan_file
from lowbit.pilot.record import LayerRow
from lowbit.pilot.spec import PilotSpec, load_spec
from lowbit.pilot.targets import factorized, searched, widened

PILOT: dict[str, Any] = {
    "name": "cats",
    "model": "net.py:build",
    "data": {"calibration": {"source": "a.npz"}, "test": {"source": "b.npz"}},
    "kpi": {"minimum": 0.9},
}
BOTH = {"weights": "int4", "activations": "int8"}
SEARCH = {"choices": ["int2", "int4", "int8"], "budget": {"like": "int4"}}


def loaded(folder: Path, **sections: Any) -> PilotSpec:
    path = folder / "pilot.yaml"
    path.write_text(yaml.safe_dump(PILOT | sections))
    return load_spec(path)


def refusal(folder: Path, **sections: Any) -> str:
    with pytest.raises(lb.LowbitError) as caught:
        loaded(folder, **sections)
    assert "\n" not in str(caught.value)
    with pytest.raises(PlanError) as planned:  # which has every problem, this one first
        plan_file(folder / "pilot.yaml")
    assert planned.value.problems[0] == str(caught.value)
    return str(caught.value).removeprefix(f"{folder / 'pilot.yaml'}: ")


def test_a_variant_starts_from_the_defaults_and_its_own_keys_win(tmp_path: Path) -> None:
    defaults = {**BOTH, "rules": [{"match": "a", "weights": "int8"}], "distill": {"epochs": 5, "crop": 2}}
    variants = [
        {"name": "as-it-is"},
        {"name": "own", "weights": "int2", "rules": [], "distill": {"epochs": 7, "flip": True}},
        {"name": "dropped", "distill": {"crop": None}, "activations": None, "glue": None},
        {"name": "none", "distill": None},
    ]
    spec = loaded(tmp_path, defaults=defaults, variants=variants)
    whole = [
        {"name": "as-it-is", **defaults},
        {"name": "own", "weights": "int2", "activations": "int8", "distill": {"epochs": 7, "crop": 2, "flip": True}},
        {"name": "dropped", "weights": "int4", "rules": defaults["rules"], "distill": {"epochs": 5}, "glue": None},
        {"name": "none", **BOTH, "rules": defaults["rules"]},
    ]
    assert spec == PilotSpec.model_validate(PILOT | {"variants": whole})
    assert PilotSpec.model_validate(PILOT | {"defaults": defaults, "variants": variants}) == spec
    assert PilotSpec.model_validate(spec.model_dump(exclude_defaults=True)) == spec


def test_null_is_a_value_of_glue_and_no_default_for_recipe_files(tmp_path: Path) -> None:
    lb.Recipe.uniform("int4", "int8").save(tmp_path / "r.yaml")
    variants = [{"name": "a", **BOTH}, {"name": "b", **BOTH, "glue": "int16"}, {"name": "c", "recipe": "r.yaml"}]
    first, second, third = loaded(tmp_path, defaults={"glue": None}, variants=variants).variants
    assert (first.glue, second.glue, third.glue) == (None, "int16", "int8")


@pytest.mark.parametrize(
    ("defaults", "own", "told"),
    [
        (3, BOTH, "defaults: expected a mapping, got 3"),
        ({"name": "x"}, BOTH, "defaults: every variant has a name of its own; leave name out"),
        ({"distil": {}}, BOTH, "defaults.distil: unknown key; did you mean 'distill'?"),
        ({"distill": {"epoch": 3}}, BOTH, "defaults.distill.epoch: unknown key; did you mean 'epochs'?"),
        ({"distill": {"epochs": 0}}, BOTH, "defaults.distill.epochs: expected 1 or more, got"),
        ({"distill": {"epochs": 2}}, {**BOTH, "distill": {"epochs": 0}}, "variants[0].distill.epochs: expected"),
        ({"weights": "itn4"}, {}, "defaults.weights: unknown format 'itn4'; did you mean 'int4'"),
        ({"rules": [{"weights": "itn4"}]}, {}, "defaults: rules[0].weights: unknown format 'itn4'"),
        ({"distill": None}, BOTH, "defaults.distill: it is empty; write {}"),
        ({"distill": {"loss": "mse", "temperature": 2}}, BOTH, "defaults.distill: temperature is of loss 'kl'"),
    ],
)
def test_wrong_default_is_told_where_it_stands(
    defaults: object, own: dict[str, Any], told: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, defaults=defaults, variants=[{"name": "a", **own}]).startswith(told)


@pytest.mark.parametrize(
    ("defaults", "own", "told", "remedy"),
    [
        (
            {"distill": {}},
            {"search": SEARCH},
            "variants[0]: search trains its student itself; leave distill out",
            "; distill is from defaults: to do without, write distill: null in the variant",
        ),
        (
            BOTH,
            {"search": SEARCH},
            "variants[0]: search decides weights and",
            "; activations and weights are from defaults: to do without, write activations: null and weights: null in",
        ),
        ({"level": "fast"}, {**BOTH, "factorize": {}}, "variants[0]: factorize takes", "write level: null in the"),
        (
            {"distill": {"cache_teacher": True}},
            {**BOTH, "distill": {"crop": 1}},
            "variants[0].distill: cache_teacher keeps one output",
            "; cache_teacher is from defaults: to do without, write distill: {cache_teacher: null} in the variant",
        ),
    ],
)
def test_default_that_does_not_go_with_an_own_key_says_which_to_drop(
    defaults: dict[str, Any], own: dict[str, Any], told: str, remedy: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, defaults=defaults, variants=[{"name": "a", **own}])
    assert message.startswith(told)
    assert remedy in message


# Formats of the target


def test_formats_that_the_target_has_are_taken(tmp_path: Path) -> None:
    variants = [{"name": "a", **BOTH}, {"name": "b", "search": SEARCH}, {"name": "c", **BOTH, "factorize": {}}]
    spec = loaded(tmp_path, runtime={"formats": ["int8", "int4", "float32"]}, variants=variants)
    assert spec.variants[1].search is not None
    kept, refused = searched(spec.variants[1].search, spec.runtime.formats)
    assert kept.choices == ("int4", "int8")
    assert refused == {"int2": "the target executes int8, int4, float32 natively (runtime.formats)"}


@pytest.mark.parametrize(
    ("own", "place", "fmt"),
    [
        ({"weights": "int2"}, "weights", "int2"),
        ({**BOTH, "activations": "int16"}, "activations", "int16"),
        ({**BOTH, "glue": "int16"}, "glue", "int16"),
        ({**BOTH, "rules": [{"match": "a", "weights": "e2m1"}]}, "rules[0].weights", "e2m1"),
        ({"recipe": "r.yaml"}, "recipe", "int3"),
        ({**BOTH, "widen_most": 1}, "widen_most", "int16"),
        ({**BOTH, "factorize": {"choices": "2x int3"}}, "factorize.choices", "int3"),
        ({**BOTH, "factorize": {"middle": "int6"}}, "factorize.middle", "int6"),
        ({"search": {**SEARCH, "choices": ["int2", "int3", "int4"]}}, "search.choices", "int2, int3"),
        ({"search": {**SEARCH, "budget": {"like": "int2"}}}, "search.budget", "int2"),
    ],
)
def test_format_that_the_target_has_not_is_refused(own: dict[str, Any], place: str, fmt: str, tmp_path: Path) -> None:
    lb.Recipe.uniform("int3", "int8").save(tmp_path / "r.yaml")
    runtime: dict[str, Any] = {"formats": ["int8", "int4"]}
    path, variants = tmp_path / "pilot.yaml", [{"name": "a", **own}]
    with pytest.raises(RecipeError) as caught:
        loaded(tmp_path, runtime=runtime, variants=variants)
    message = str(caught.value)
    assert message.startswith(f"{path}: variants[0].{place}: ")
    assert f"{fmt}" in message
    assert "none of runtime.formats (int8, int4)" in message
    loaded(tmp_path, runtime={**runtime, "widen": True}, variants=variants)


@pytest.mark.parametrize(
    ("formats", "factorize", "place", "told"),
    [
        (["int8"], {"budget": {"like": "int4", "share": 0.7}}, "factorize", "leave int8, and no chain"),
        (["int8", "e4m3"], {"tolerance": 0.1}, "factorize", "leave int8, and no chain; name choices such as '2x'"),
        (["e4m3", "int8"], {"budget": {"most": 9}}, "factorize", "runtime.formats (e4m3, int8) leave int8, and no"),
        (["int8", "int3"], {"budget": {"like": "2x int4"}}, "factorize.budget", "is like 2x int4, and of the method"),
    ],
)
def test_choices_of_the_method_that_the_target_leaves_have_to_do(
    formats: list[str], factorize: dict[str, Any], place: str, told: str, tmp_path: Path
) -> None:
    variants = [{"name": "a", "weights": "int8", "activations": "int8", "factorize": factorize}]
    message = refusal(tmp_path, runtime={"formats": formats}, variants=variants)
    assert message.startswith(f"variants[0].{place}: ")
    assert told in message
    loaded(tmp_path, runtime={"formats": formats, "widen": True}, variants=variants)
    named = [{**variants[0], "factorize": {"choices": "2x"}}]
    loaded(tmp_path, runtime={"formats": formats}, variants=named)  # which is in the formats of the variant


def test_choices_that_the_target_leaves_are_enough(tmp_path: Path) -> None:
    given = {"budget": {"like": "int4", "share": 0.7}}
    variants = [{"name": "a", "weights": "int8", "activations": "int8", "factorize": given}]
    (variant,) = loaded(tmp_path, runtime={"formats": ["int8", "int4"]}, variants=variants).variants
    assert variant.factorize is not None
    assert factorized(variant.factorize, ("int8", "int4")).choices == (
        *("int8", "int4", "1.5x int4", "2x int4", "3x int4", "4x int4"),
    )


def test_format_from_defaults_is_refused_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"pilot.yaml: defaults.weights: asks for int2, which is none of"):
        loaded(tmp_path, runtime={"formats": ["int8"]}, defaults={"weights": "int2"}, variants=[{"name": "a"}])


def test_wrong_section_runtime(tmp_path: Path) -> None:
    variants = [{"name": "a", **BOTH}]
    told = refusal(tmp_path, runtime={"formats": ["itn8"]}, variants=variants)
    assert told.startswith("runtime.formats[0]: unknown format 'itn8'; did you mean 'int8'")
    assert refusal(tmp_path, runtime={"widen": True}, variants=variants).startswith("runtime: widen is about formats")
    assert refusal(tmp_path, runtime={"format": []}, variants=variants).endswith("did you mean 'formats'?")


def test_what_the_target_widens_is_told_by_layer() -> None:
    def row(name: str, weights: str, activations: str) -> LayerRow:
        return LayerRow(name, "Linear", weights, activations, "channel", 1, 1, 1, 1, None, "", "")

    layers = [row("a", "int4", "int8"), row("b", "int2", "int8"), row("c", "int2", "float32"), row("d", "", "")]
    (obstacle,) = widened(layers, ("int4", "int8"))
    assert obstacle.where == ("b", "c")
    assert obstacle.what.startswith("int2 is none of the formats that the target executes natively (int4, int8)")
