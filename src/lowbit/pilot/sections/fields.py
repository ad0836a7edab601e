"""What values in a pilot file can be: names that are parsed, numbers in a range, and the class of every section."""

from __future__ import annotations

from typing import Annotated, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lowbit.errors import FormatError
from lowbit.formats import FLOAT, parse
from lowbit.granularity import parse_granularity


def wrong(reason: str, *at: int | str) -> PydanticCustomError:
    """What a validator raises: `reason` is told as it is, behind the path to the field.

    A validator of several keys says with `at` which of them is meant.
    """
    return PydanticCustomError("wrong", "{reason}", {"reason": reason, "at": at})


def _format_name(name: str) -> str:
    try:
        parse(name)
    except FormatError as error:
        raise wrong(str(error)) from None
    return name


def _native_name(name: str) -> str:
    return name if name == FLOAT else _format_name(name)


def _granularity_name(name: str) -> str:
    try:
        parse_granularity(name)
    except FormatError as error:
        raise wrong(str(error)) from None
    return name


def listed(given: object) -> object:
    """One of what may be several, as a list of one."""
    return [given] if isinstance(given, (str, dict)) else given


FormatName = Annotated[str, AfterValidator(_format_name)]
NativeName = Annotated[str, AfterValidator(_native_name)]
GranularityName = Annotated[str, AfterValidator(_granularity_name)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # which all generators take
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A section of a pilot file: a key that it has not is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, given: object, info: ValidationInfo) -> object:
        """`true` is no 1, which Python has it as."""
        parts = given if isinstance(given, (list, tuple)) else [given]
        if any(isinstance(part, bool) for part in parts):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if kinds and kinds <= {int, float}:
                raise wrong("expected a number")
        return given


def _kinds(annotation: object) -> set[object]:
    """What a value, or an item of one, can be, but for None."""
    if annotation in (None, type(None), Ellipsis):
        return set()
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return set[object]().union(*map(_kinds, parts)) if parts else {annotation}
