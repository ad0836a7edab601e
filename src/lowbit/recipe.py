"""What happens to which layer: rules that match layer names, as pure data, in YAML or Python.

rules:
  - match: "*"            # glob over layer names; the last rule that matches a layer wins
    weights: int4         # a format name, or null to leave the weights float
    activations: int8     # format of the layer's input
  - match: conv1
    weights: int8
    activations: int8
glue: int8                # adds, products, concatenations and poolings between quantized layers; null: float
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from lowbit import files
from lowbit.errors import FormatError, RecipeError
from lowbit.formats import Format, Int, parse
from lowbit.granularity import Granularity, PerChannel, parse_granularity
from lowbit.scales import ScaleRule, WeightRule


@dataclass(frozen=True)
class Rule:
    """Formats for the layers whose name matches the glob `match`; None leaves weights or activations float.

    Activations are those of the layer's input. Integer activations are affine (scale and zero point) unless
    `symmetric`. `weight_scale` and `activation_scale` say how scales are chosen.
    """

    match: str = "*"
    weights: Format | None = None
    activations: Format | None = None
    granularity: Granularity = PerChannel()
    symmetric: bool = False
    weight_scale: WeightRule = "mse"
    activation_scale: ScaleRule = "mse"


@dataclass(frozen=True)
class Recipe:
    """Rules, the last match wins; `glue` is the format of adds, products, concatenations and poolings."""

    rules: tuple[Rule, ...]
    glue: Format | None = Int(8)

    @staticmethod
    def uniform(weights: str | None, activations: str | None, *, granularity: str = "channel") -> Recipe:
        """One rule for every layer, from format names; the glue is int8 if activations are quantized."""
        rule = Rule(
            weights=parse(weights) if weights else None,
            activations=parse(activations) if activations else None,
            granularity=parse_granularity(granularity),
        )
        integer = isinstance(rule.activations, Int) and rule.activations.bits <= 8
        return Recipe((rule,), glue=Int(8) if integer else None)

    def resolve(self, names: Iterable[str]) -> dict[str, Rule | None]:
        """The rule of each layer name, None where no rule matches.

        Raises:
            RecipeError: a rule matches no layer.
        """
        names = list(names)
        for rule in self.rules:
            if not any(fnmatch.fnmatchcase(name, rule.match) for name in names):
                near = difflib.get_close_matches(rule.match, names, n=3, cutoff=0.3) or names[:3]
                raise RecipeError(
                    f"recipe rule match={rule.match!r} matches none of the model's {len(names)} layers; "
                    f"nearest names: {', '.join(near) or 'none'}"
                )
        return {n: next((r for r in reversed(self.rules) if fnmatch.fnmatchcase(n, r.match)), None) for n in names}

    def to_dict(self) -> dict[str, object]:
        """Plain data, as in YAML."""
        return {
            "rules": [
                {
                    "match": r.match,
                    "weights": str(r.weights) if r.weights else None,
                    "activations": str(r.activations) if r.activations else None,
                    "granularity": str(r.granularity),
                    "symmetric": r.symmetric,
                    "weight_scale": r.weight_scale,
                    "activation_scale": r.activation_scale,
                }
                for r in self.rules
            ],
            "glue": str(self.glue) if self.glue else None,
        }

    @staticmethod
    def from_dict(data: object, where: str = "recipe") -> Recipe:
        """The recipe in plain data; `where` begins error messages.

        Raises:
            RecipeError: an unknown key, a wrong type, an unknown format; the message gives the path to the field.
        """
        parsed = validated(_RecipeData, data, where)
        rules = []
        for i, r in enumerate(parsed.rules):
            at = f"{where}: rules[{i}]"
            try:
                granularity = parse_granularity(r.granularity)
            except FormatError as error:
                raise RecipeError(f"{at}.granularity: {error}") from None
            rules.append(
                Rule(
                    r.match,
                    _format(r.weights, f"{at}.weights"),
                    _format(r.activations, f"{at}.activations"),
                    granularity,
                    r.symmetric,
                    r.weight_scale,
                    r.activation_scale,
                )
            )
        return Recipe(tuple(rules), _format(parsed.glue, f"{where}: glue"))

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read a YAML file."""
        return Recipe.from_dict(files.read_yaml(Path(path)), str(path))

    def save(self, path: str | Path) -> None:
        """Write a YAML file, whole or not at all."""
        files.write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False))

    @property
    def fingerprint(self) -> str:
        """A short hash of the content: equal recipes, equal fingerprint."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _format(name: str | None, where: str) -> Format | None:
    try:
        return None if name is None else parse(name)
    except FormatError as error:
        raise RecipeError(f"{where}: {error}") from None


class _RuleData(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    match: str = "*"
    weights: str | None = None
    activations: str | None = None
    granularity: str = "channel"
    symmetric: bool = False
    weight_scale: WeightRule = "mse"
    activation_scale: ScaleRule = "mse"


class _RecipeData(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rules: list[_RuleData]
    glue: str | None = "int8"


M = TypeVar("M", bound=BaseModel)
Place = tuple[int | str, ...]
Origin = Callable[[Place, str], tuple[Place, str]]  # of a place and a message: the place in the file, and what to add
_MOST_VALUES = 100_000
_WIDTH = 80  # characters of a value in a message
_EXAMPLES = {
    "name": "my-model",
    "variants.name": "w8a8",
    "model": "model.py:build",
    "source": "data.npz",
    "data": "{calibration: {source: calibration.npz}, test: {source: test.npz}}",
    "calibration": "{source: calibration.npz}",
    "test": "{source: test.npz}",
    "kpi": "{metric: accuracy, tolerance: 0.01}",
    "metric": "accuracy",
    "variants": "[{name: w8a8, weights: int8, activations: int8}]",
    "choices": "[int4, int8]",
    "budget": "{like: int8, share: 0.7}",
    "rules": "[{weights: int8, activations: int8}]",
}  # of keys that are required, the longest path first that fits
_WORDS = {
    **dict.fromkeys(("tuple_type", "list_type"), "expected a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "dataclass_type"), "expected a mapping"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_type": "expected text",
    "string_too_short": "it is empty",
    "invalid_key": "expected text for a key",
    "missing": "it is missing; give it",
    "too_short": "expected a list of {min_length} or more",
    "too_long": "expected a list of {max_length} at most",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} at most",
}  # of pydantic's errors, by their type


def validated(model: type[M], data: object, where: str, origin: Origin | None = None) -> M:
    """`data` as `model`, or a one-line error that names the path in the file and the nearest valid key.

    `origin` says where in the file something stands that was copied from another place.

    Raises:
        RecipeError: `data` does not fit.
    """
    check_extent(data, where)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_told(error, model, data, where, origin)[0]) from None


def problems(model: type[BaseModel], data: object, where: str, origin: Origin | None = None) -> list[str]:
    """Every reason why `data` is no `model`, each as `validated` words it, the first one first; empty if it is one."""
    try:
        check_extent(data, where)
        model.model_validate(data)
    except ValidationError as error:
        return _told(error, model, data, where, origin)
    except RecipeError as error:
        return [str(error)]
    return []


def path_of(place: Place) -> str:
    """A place in a file as it is written: ``variants[2].distill``."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".") or "the file"


def _told(error: ValidationError, model: type[BaseModel], data: object, where: str, origin: Origin | None) -> list[str]:
    """One line for each mistake; misspelled keys come first."""
    found = error.errors(include_url=False)
    # a misspelled key is also a missing one: the spelling is what to mend
    unknown = [e for e in found if e["type"] == "extra_forbidden"]
    near = {(*e["loc"][:-1], n) for e in unknown for n in _nearest(e["loc"], model)}
    # and a list whose items are wrong is also too short
    parts = {e["loc"][:i] for e in found for i in range(len(e["loc"]))}
    followed = {"missing": near, "too_short": parts}
    others = [e for e in found if e not in unknown and e["loc"] not in followed.get(e["type"], ())]
    lines = []
    for one in (*unknown, *others):
        message, given = _worded(one), one.get("input")
        if one["type"] == "missing":
            message += _example(one["loc"])
        place = _in_file(one["loc"], data, one["type"] in ("missing", "extra_forbidden"))
        for key in one.get("ctx", {}).get("at", ()):  # a check of several keys says which of them is meant
            place, given = (*place, key), _part(given, key)
        place, beside = origin(place, message) if origin else (place, "")
        if one["type"] == "extra_forbidden":
            meant = _nearest(one["loc"], model)
            here = ", ".join(sorted(_keys_at(model, one["loc"][:-1])))
            hint = f"did you mean {meant[0]!r}?" if meant else f"known keys are {here}"
            lines.append(f"{where}: {path_of(place)}: unknown key; {hint}")
            continue
        told = one["type"] == "missing" or (isinstance(given, str) and repr(given) in message)
        got = "" if told else f", got {_short(given)}"
        lines.append(f"{where}: {path_of(place)}: {message}{got}{beside}")
    return [*dict.fromkeys(lines)]


def _worded(error: ErrorDetails) -> str:
    """What is wrong, in words of a file rather than of Python's types."""
    told = _WORDS.get(error["type"])
    if told is not None:
        numbers = error.get("ctx", {}).items()
        return told.format(**{k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in numbers})
    return error["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ", 1)


def _example(place: Place) -> str:
    """How a key that is missing may be written; empty where nothing is known of it."""
    keys = [part for part in place if isinstance(part, str)]
    found = next((e for e in (_EXAMPLES.get(".".join(keys[i:])) for i in range(len(keys))) if e), None)
    return "" if found is None else f", as in `{keys[-1]}: {found}`"


def _short(value: object) -> str:
    """A value in so many characters that a line stays one that is read."""
    text = reprlib.repr(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."


def _part(value: Any, key: int | str) -> Any:
    """The value behind a key or at an index; None if it is not there."""
    if isinstance(value, (list, tuple)) and isinstance(key, int):
        return value[key] if key < len(value) else None
    return value.get(key) if isinstance(value, dict) else None


def _in_file(place: Place, data: object, names_a_key: bool) -> Place:
    """The place as the file has it, without what only types have: one of several as a list of one, a part of a union.

    With `names_a_key` the last part is a key, though it may not be there.
    """
    kept: list[int | str] = []
    for i, part in enumerate(place):
        if isinstance(data, dict):
            if part in data or (names_a_key and i == len(place) - 1):
                kept.append(part)
                data = data.get(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int):
            kept.append(part)
            data = data[part] if part < len(data) else None
    return tuple(kept)


def _nearest(place: Place, model: type[BaseModel]) -> list[str]:
    """The key nearest to the last one of a place, among those that can be there."""
    return difflib.get_close_matches(str(place[-1]), sorted(_keys_at(model, place[:-1])), n=1)


def check_extent(data: object, where: str) -> None:
    """Refuse a file whose aliases (`*name`) multiply to more values than memory holds.

    Raises:
        RecipeError: they do.
    """
    seen, waiting = 0, [data]
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise RecipeError(f"{where}: more than {_MOST_VALUES} values, aliases written out; write fewer aliases")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _keys_at(model: type[BaseModel], path: Iterable[int | str]) -> set[str]:
    """The keys that a file has at a place."""
    found = [model]
    for part in path:
        if isinstance(part, str):
            fields = [one.model_fields[part].annotation for one in found if part in one.model_fields]
            found = [inner for annotation in fields for inner in _models_in(annotation)] or found
    return {key for one in found for key in one.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
