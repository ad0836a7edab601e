"""Which formats the target executes natively (`runtime.formats`), and what of a pilot file asks for others.

Float32 runs everywhere. What a variant asks for outright and the target has not is refused before anything runs, or
with `runtime.widen` stored, widened and told. Among several choices of a search or a factorization the others stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import FormatError
from lowbit.formats import FLOAT, Format, parse
from lowbit.methods.factorization import choices as chains
from lowbit.methods.search.space import Choice
from lowbit.pilot.record import LayerRow, ObstacleRow
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.recipe import Place, Recipe

if TYPE_CHECKING:
    from lowbit.pilot.spec import RuntimeSpec, Variant


def foreign(variant: Variant, runtime: RuntimeSpec, folder: Path, where: str) -> Iterator[tuple[Place, str]]:
    """What a variant asks for and the target has not: the place in the variant, and why it cannot be.

    Paths are relative to `folder`, and `where` begins the messages of recipes that cannot be read.

    Raises:
        DataError: the recipe file cannot be read.
        RecipeError: the recipe does not fit.
    """
    if not runtime.formats or runtime.widen:
        return
    native, listed = _native(runtime.formats), ", ".join(runtime.formats)

    def told(what: str) -> str:
        return f"{what}, which is none of runtime.formats ({listed}); take one of them, or set runtime.widen: true"

    for place, fmt in _asked(variant, variant.to_recipe(folder, where)):
        if fmt not in native:
            yield place, told(f"asks for {fmt}")
    if variant.search:
        kept, _ = searched(variant.search, runtime.formats)
        if len(kept.choices) < 2:
            left = ", ".join(name for name in variant.search.choices if name not in kept.choices)
            yield ("search", "choices"), told(f"a search needs two at least, and asks for {left}")
        for budget in variant.search.budget:
            if budget.like is not None and not _runs(budget.like, native):
                yield ("search", "budget"), told(f"is like {budget.like}")
    if variant.factorize:
        named = variant.factorize.choices
        for name in [*named.values()] if isinstance(named, dict) else named or ():
            weights = chains.Choice.parse(name).weights
            if weights is not None and weights not in native:
                yield ("factorize", "choices"), told(f"asks for {weights} ({name!r})")
        yield from _of_its_own_choices(variant.factorize, runtime.formats)


def _of_its_own_choices(factorize: FactorizeSpec, formats: Sequence[str]) -> Iterator[tuple[Place, str]]:
    """What is wrong with what the target leaves of the choices that the method has by itself."""
    left, listed = factorized(factorize, formats).choices, ", ".join(formats)
    if factorize.choices is not None or not isinstance(left, tuple):
        return
    kept = f"of the method's choices runtime.formats ({listed}) leave {', '.join(left) or 'none'}"
    if all(chains.Choice.parse(name).dense for name in left):
        yield ("factorize",), f"{kept}, and no chain; name choices such as '2x', or set runtime.widen: true"
    elif factorize.budget is not None and factorize.budget.like is not None and factorize.budget.like not in left:
        yield (
            ("factorize", "budget"),
            f"is like {factorize.budget.like}, and {kept}; take one of them, name choices, or set runtime.widen: true",
        )


def _asked(variant: Variant, recipe: Recipe) -> Iterator[tuple[Place, Format]]:
    """Formats that a variant asks for by itself, and where."""
    own = 1 if variant.weights or variant.activations else 0
    for number, rule in enumerate(recipe.rules):
        for key, fmt in (("weights", rule.weights), ("activations", rule.activations)):
            if fmt is not None:
                at: Place = (key,) if number < own and not variant.recipe else ("rules", number - own, key)
                yield (("recipe",) if variant.recipe else at), fmt
    if recipe.glue is not None and any(rule.activations for rule in recipe.rules):
        yield (("recipe",) if variant.recipe else ("glue",)), recipe.glue
    if variant.widen_most:
        yield ("widen_most",), parse("int16")
    if variant.output:
        yield ("output",), parse("int8")
    if variant.factorize and not variant.factorize.exact:
        yield ("factorize", "middle"), parse(variant.factorize.middle)


def searched(search: SearchSpec, formats: Sequence[str]) -> tuple[SearchSpec, dict[str, str]]:
    """The search with the choices that a target of these formats has, and why the others are left out."""
    native = _native(formats)
    refused = {
        str(Choice.parse(name)): f"the target executes {', '.join(formats)} natively (runtime.formats)"
        for name in search.choices
        if not _runs(name, native)
    }
    kept = tuple(name for name in search.choices if _runs(name, native))
    return (search.model_copy(update={"choices": kept}) if refused else search), refused


def factorized(factorize: FactorizeSpec, formats: Sequence[str]) -> FactorizeSpec:
    """The factorization with what a target of these formats has, where the file leaves the choices to the method."""
    if factorize.choices is not None or (factorize.budget is None and factorize.tolerance is None):
        return factorize
    native = _native(formats)
    kept = tuple(name for name in chains.CHOICES if chains.Choice.parse(name).weights in native)
    return factorize if len(kept) == len(chains.CHOICES) else factorize.model_copy(update={"choices": kept})


def widened(layers: Iterable[LayerRow], formats: Sequence[str]) -> tuple[ObstacleRow, ...]:
    """What the target has to widen in the layers of a file, format by format."""
    native = _native(formats)
    where: dict[str, list[str]] = {}
    for layer in layers:
        for name in dict.fromkeys((layer.weights, layer.activations)):
            try:
                known = parse(name) in native
            except FormatError:  # float32, or nothing
                continue
            if not known:
                where.setdefault(name, []).append(layer.name)
    return tuple(
        ObstacleRow(
            tuple(names),
            f"{name} is none of the formats that the target executes natively ({', '.join(formats)}): it is stored in "
            "few bits and computed in more",
            "one of runtime.formats, if speed and not size is what counts",
        )
        for name, names in where.items()
    )


def _native(formats: Sequence[str]) -> set[Format]:
    return {parse(name) for name in formats if name != FLOAT}


def _runs(name: str, native: set[Format]) -> bool:
    choice = Choice.parse(name)
    return all(fmt is None or fmt in native for fmt in (choice.weights, choice.activations))


def check(variants: Sequence[Variant], runtime: RuntimeSpec, folder: Path, where: str) -> Iterator[tuple[Place, str]]:
    """What in variants the target has not, with places in the file; see `foreign`."""
    for i, variant in enumerate(variants):
        for place, why in foreign(variant, runtime, folder, where):
            yield ("variants", i, *place), why
