"""How a commented YAML file is written: comments in lines, values, and paths as seen from its folder."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

_WIDTH = 116  # characters of a comment
_GENERAL = {"build", "build_model", "create", "create_model", "get_model", "load", "main", "make", "model", "net"}


def name_of(model: str) -> str:
    """A name for the pilot: of the function, or of its file where that says more."""
    if model.startswith("hf:"):
        path = Path(model.removeprefix("hf:"))
        named = path.parent.name if path.name.lower() in _GENERAL else path.name
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", named).lstrip("._+-")[:64] or "pilot"
    place, _, function = model.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem if function.lower() in _GENERAL else function)
    return name.lstrip("._+-")[:64] or "pilot"


def relative(reference: str, of: Path, folder: Path) -> str:
    """A path, or the path of a ``file.py:function``, as seen from another folder; all else as it is."""
    if reference.startswith("hf:"):
        path = reference.removeprefix("hf:")
        return f"hf:{relative(path, of, folder)}" if (of / Path(path).expanduser()).is_dir() else reference
    place, colon, name = reference.rpartition(":")
    if colon and not place.endswith(".py"):
        return reference
    path = place if colon else reference
    if of.resolve() == folder.resolve() or path.startswith("~") or Path(path).is_absolute():
        return reference
    return f"{Path(os.path.relpath(of / path, folder)).as_posix()}{colon}{name if colon else ''}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 sample``, ``2 samples``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def a_little_below(value: float) -> str:
    """A number a little below, with as many digits as its distance from 1 needs."""
    digits = 4 if value < 0 else max(4, 2 - math.floor(math.log10(max(1 - value, 1e-9))))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def scalar(value: object) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def comment(text: str, indent: str = "") -> Iterator[str]:
    """A sentence as comment lines; whatever a model's own messages hold, it stays a comment."""
    line = f"{indent}#"
    for word in " ".join("".join(c if c.isprintable() else " " for c in text).split()).split(" "):
        if len(line) + 1 + len(word) > _WIDTH and line != f"{indent}#":
            yield line
            line = f"{indent}#"
        line = f"{line} {word}"
    yield line
