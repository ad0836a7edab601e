"""The section `budgets`: the most that a file may weigh, compute and take."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from lowbit.pilot.record import Limits
from lowbit.pilot.sections.fields import Positive, Section, wrong

_BYTES = {"": 1.0, "b": 1.0, "bytes": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def _counted(given: object, units: dict[str, float], expected: str) -> object:
    """A number with a unit as the number that it is; what is no text stays as it is."""
    if not isinstance(given, str):
        return given
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)\s*([A-Za-z]*)\s*", given)
    if found is None or found[2].lower() not in units:
        raise wrong(f"expected {expected}")
    return round(float(found[1]) * units[found[2].lower()], 6)


def _bytes(given: object) -> object:
    size = _counted(given, _BYTES, "a number of bytes, or text such as '200 kB' or '1.5 MB' (kB = 1000 bytes)")
    if isinstance(size, float) and math.isfinite(size) and not size.is_integer():
        raise wrong("expected whole bytes; write '1.5 MB' for 1500000")
    return int(size) if isinstance(size, float) and size < 1e18 else size


def _operations(given: object) -> object:
    return _counted(given, _COUNTS, "a number such as 1e9, or text such as '40 M' or '1.2 G'")


class BudgetsSpec(Section):
    """What a variant may cost at most: bytes of its file, BOPs of a sample, milliseconds of a batch (the median)."""

    size: Annotated[int, BeforeValidator(_bytes), Field(gt=0)] | None = None
    bops: Annotated[Positive, BeforeValidator(_operations)] | None = None
    latency: Positive | None = None

    @model_validator(mode="after")
    def _says_something(self) -> BudgetsSpec:
        if self.size is None and self.bops is None and self.latency is None:
            raise wrong("it is empty; give size, bops or latency, or leave budgets out")
        return self

    def limits(self) -> Limits:
        """The same for the record."""
        return Limits(self.size, self.bops, self.latency)
