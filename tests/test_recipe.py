"""Recipes: what is written is what is read, and every mistake is named with its place and remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lowbit.errors import DataError, FormatError, RecipeError
from lowbit.formats import EXAMPLES, Int, parse
from lowbit.granularity import PerChannel, PerGroup, PerTensor
from lowbit.recipe import Recipe, Rule

RECIPES = {
    "empty": Recipe(()),
    "defaults": Recipe((Rule(),)),
    "uniform": Recipe.uniform("int4", "int8"),
    "weights only": Recipe.uniform("mxfp4", None),
    "everything set": Recipe(
        (
            Rule("*", Int(4, narrow=True), Int(8, signed=False), PerGroup(32), True, "absmax", "percentile"),
            Rule("head.[0-9]", parse("ternary:0.7"), parse("e4m3fn"), PerTensor()),
            Rule("stem", None, None, PerChannel(1)),
        ),
        glue=Int(16),
    ),
    "every format": Recipe(tuple(Rule(weights=parse(name)) for name in EXAMPLES), glue=None),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_yaml_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "recipe.yaml")
    loaded = Recipe.load(tmp_path / "recipe.yaml")
    assert loaded == recipe
    assert loaded.fingerprint == recipe.fingerprint
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_example_of_the_documentation_loads(tmp_path: Path) -> None:
    import lowbit.recipe

    (tmp_path / "recipe.yaml").write_text(str(lowbit.recipe.__doc__).split("\n\n", 1)[1])
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe(
        (Rule("*", Int(4), Int(8)), Rule("conv1", Int(8), Int(8))), glue=Int(8)
    )


def test_the_last_match_wins() -> None:
    first, second, third = Rule("*", Int(8)), Rule("body.*", Int(4)), Rule("body.conv?", Int(2))
    resolved = Recipe((first, second, third)).resolve(["stem", "body.linear", "body.conv1"])
    assert resolved == {"stem": first, "body.linear": second, "body.conv1": third}
    assert Recipe((third, first)).resolve(["body.conv1"]) == {"body.conv1": first}


def test_layers_without_a_rule_get_none() -> None:
    assert Recipe((Rule("a", Int(8)),)).resolve(["a", "b"])["b"] is None


def test_matching_minds_case() -> None:
    with pytest.raises(RecipeError, match="matches none"):
        Recipe((Rule("CONV"),)).resolve(["conv"])


@pytest.mark.parametrize(
    ("pattern", "names", "message"),
    [
        (
            "layer1.conv9",
            ["stem", "layer1.conv1", "layer1.conv2"],
            "none of the model's 3 layers; nearest names: layer1.conv",
        ),
        ("zzz", ["stem", "head"], "nearest names: stem, head"),
        ("*", [], "none of the model's 0 layers; nearest names: none"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, names: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe((Rule(pattern),)).resolve(names)
    assert repr(pattern) in str(error.value)
    assert message in str(error.value)


def rule(**fields: object) -> dict[str, object]:
    return {"rules": [{"match": "*"}, fields]}


def test_what_came_is_told_in_so_many_characters() -> None:
    long = {f"a key of many characters, number {i}": [["x" * 90] * 9] * 9 for i in range(9)}
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict({"rules": long}, "r.yaml")
    message = str(error.value)
    assert message.startswith("r.yaml: rules: expected a list, got {'a key")
    assert len(message.partition("got ")[2]) == 80


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rule(weigths="int4"), "r.yaml: rules[1].weigths: unknown key; did you mean 'weights'?"),
        ({"rules": [], "glu": "int8"}, "r.yaml: glu: unknown key; did you mean 'glue'?"),
        (rule(xyz=1), "r.yaml: rules[1].xyz: unknown key; known keys are activation_scale, activations, "),
        (rule(weights="int9"), "r.yaml: rules[1].weights: Int(9): integers have"),
        (rule(activations="e4m3fm"), "r.yaml: rules[1].activations: unknown format 'e4m3fm'; did you mean 'e4m3fn'?"),
        (rule(weights=""), "r.yaml: rules[1].weights: unknown format ''"),
        (rule(granularity="chanel"), "r.yaml: rules[1].granularity: unknown granularity 'chanel'"),
        (rule(weights=4), "r.yaml: rules[1].weights: expected text, got 4"),
        (rule(symmetric="yes"), "r.yaml: rules[1].symmetric: expected true or false, got 'yes'"),
        (rule(weight_scale="minmax"), "r.yaml: rules[1].weight_scale: expected 'absmax', 'mse' or 'percentile'"),
        ({"rules": [], "glue": "int"}, "r.yaml: glue: unknown format 'int'"),
        ({"glue": "int8"}, "r.yaml: rules: it is missing; give it, as in `rules: [{weights"),
        ([1, 2], "r.yaml: the file: expected"),
        (None, "r.yaml: the file: expected"),
        ({"rules": {"match": "*"}}, "r.yaml: rules: expected a list"),
    ],
)
def test_mistakes_are_named_with_their_place(data: object, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict(data, "r.yaml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe_are_one_line_errors(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(DataError, match="cannot read"):
        Recipe.load(path)
    path.write_text("rules: [*]")
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        Recipe.load(path)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("activations", "glue"), [("int8", "int8"), ("uint4", "int8"), ("int16", None), ("e4m3fn", None), (None, None)]
)
def test_uniform_chooses_the_glue(activations: str | None, glue: str | None) -> None:
    recipe = Recipe.uniform("int4", activations, granularity="group:16")
    assert recipe.glue == (parse(glue) if glue else None)
    assert recipe.rules[0].granularity == PerGroup(16)


def test_uniform_refuses_unknown_names() -> None:
    with pytest.raises(FormatError, match="did you mean 'int4'"):
        Recipe.uniform("imt4", None)


def test_the_fingerprint_follows_every_field() -> None:
    base = Rule()
    changed = [
        *(dataclasses.replace(base, **{f: Int(8)}) for f in ("weights", "activations")),  # type: ignore[arg-type]
        *(dataclasses.replace(base, **{f: "absmax"}) for f in ("weight_scale", "activation_scale")),  # type: ignore[arg-type]
        dataclasses.replace(base, match="conv"),
        dataclasses.replace(base, granularity=PerTensor()),
        dataclasses.replace(base, symmetric=True),
    ]
    recipes = [Recipe((base,)), Recipe((base,), glue=None), Recipe((base, base)), *(Recipe((r,)) for r in changed)]
    assert len({recipe.fingerprint for recipe in recipes}) == len(recipes)
    assert Recipe((Rule(),)).fingerprint == Recipe((base,)).fingerprint
