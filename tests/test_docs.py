"""What the documents say is what the code does; that commands and Python on the pages run, tests/docs checks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lowbit.formats import parse
from lowbit.layers import weighted_layers
from lowbit.models import digits_cnn
from lowbit.pilot.spec import load_spec
from lowbit.recipe import Recipe

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_readme_pilot_file_is_the_example() -> None:
    (block,) = blocks("README.md", "yaml")
    shown, example = yaml.safe_load(block), yaml.safe_load((ROOT / "examples/digits/pilot.yaml").read_text())
    assert shown | {"weights": ""} == example | {"weights": ""}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("pilot.yaml")), ids=lambda p: p.parent.name)
def test_example_pilot_files_are_valid(path: Path) -> None:
    spec = load_spec(path)
    for variant in spec.variants:
        variant.to_recipe(path.parent, spec.name)


def test_rules_of_the_digits_example_match_its_layers() -> None:
    (variant,) = [v for v in load_spec(ROOT / "examples/digits/pilot.yaml").variants if v.rules]
    variant.to_recipe(ROOT, "digits").resolve(weighted_layers(digits_cnn()))


def test_pilot_file_in_docs_is_valid(tmp_path: Path) -> None:
    (block,) = blocks("docs/pilot.md", "yaml")
    (tmp_path / "pilot.yaml").write_text(block)
    Recipe.uniform("int4", "int8").save(tmp_path / "recipe.yaml")
    assert len(load_spec(tmp_path / "pilot.yaml").variants) == 6


def test_recipe_in_docs_loads() -> None:
    (block,) = blocks("docs/recipes.md", "yaml")
    assert len(Recipe.from_dict(yaml.safe_load(block)).rules) == 2


def test_every_format_in_docs_exists() -> None:
    table = (ROOT / "docs/recipes.md").read_text().split("## Formats")[1].split("## Scales")[0]
    names = [n for n in re.findall(r"`([a-z0-9:<>-]+)`", table) if "<" not in n]
    assert len(names) > 30
    for name in names:
        parse(name)


def test_command_reference_is_current() -> None:
    command = [sys.executable, "-m", "typer", "lowbit.cli", "utils", "docs", "--name", "lowbit"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/cli.md").read_text().strip() == generated.strip(), "run `make docs`"


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
