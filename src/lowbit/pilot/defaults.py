"""The section `defaults` of a pilot file: what every variant starts from.

A variant's own keys win. Mappings are merged key by key, lists are taken whole, and `key: null` in a variant drops the
default, but for `glue`, of which null is a value: a default of it is not for variants with a recipe file. What is
checked is the variant that comes out; this module knows which of its keys came from where, so that an error names the
place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.recipe import Place

_GLUE = "glue"


def merged(data: Mapping[str, Any]) -> dict[str, Any]:
    """A pilot file's content with its defaults in its variants; what is no mapping or list stays as it is."""
    given, variants = data.get("defaults"), data.get("variants")
    if not isinstance(given, dict) or "name" in given or not isinstance(variants, (list, tuple)):
        return dict(data)
    every = [_merge(own, given) if isinstance(own, dict) else own for own in variants]
    return {**{key: value for key, value in data.items() if key != "defaults"}, "variants": every}


def _merge(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in given.items() if key != _GLUE or "recipe" not in own}
    for key, value in own.items():
        beneath = given.get(key)
        if value is None and key in given and key != _GLUE:
            del result[key]
        elif isinstance(value, dict) and isinstance(beneath, dict):
            result[key] = _merge(value, beneath)
        else:
            result[key] = value
    return result


@dataclass(frozen=True)
class Origins:
    """Where in the file the keys of merged variants stand: in `given`, the defaults, or in the variants as they are."""

    given: Mapping[str, Any]
    variants: tuple[Any, ...]

    @staticmethod
    def of(data: object) -> Origins:
        """Those of a pilot file's content."""
        given = data.get("defaults") if isinstance(data, dict) else None
        variants = data.get("variants") if isinstance(data, dict) else None
        return Origins(
            given if isinstance(given, dict) else {}, tuple(variants) if isinstance(variants, (list, tuple)) else ()
        )

    def __call__(self, place: Place, message: str) -> tuple[Place, str]:
        """The place in the file of a place in the merged content, and what to add to a message about it."""
        if len(place) < 2 or place[0] != "variants" or not isinstance(place[1], int) or place[1] >= len(self.variants):
            return place, ""
        own, inside = self.variants[place[1]], place[2:]
        if inside and not _has(own, inside) and _has(self.given, inside):
            return ("defaults", *inside), ""
        from_defaults = [key for key in _paths(_at(self.given, inside)) if not _has(own, (*inside, *key))]
        named = [".".join(key) for key in from_defaults if _names(message, key)]
        if not named:
            return place, ""
        dropped = [_null([*map(str, inside), *name.split(".")]) for name in named]
        are = "is" if len(named) == 1 else "are"
        told = (
            f"; {' and '.join(named)} {are} from defaults: to do without, write {' and '.join(dropped)} in the variant"
        )
        return place, told


def _null(keys: list[str]) -> str:
    """A key that is null, with the mappings that it is in."""
    first, *rest = keys
    return f"{first}: {{{_null(rest)}}}" if rest else f"{first}: null"


def _has(value: Any, place: Place) -> bool:
    for part in place:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _at(value: Any, place: Place) -> Any:
    for part in place:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _paths(value: Any) -> Iterator[tuple[str, ...]]:
    """Every key, and those of mappings in it."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (str(key),)
        yield from ((str(key), *deeper) for deeper in _paths(inner))


def _names(message: str, key: tuple[str, ...]) -> bool:
    return re.search(rf"(?<![\w.]){re.escape('.'.join(key))}(?![\w.]*\w)", message) is not None
