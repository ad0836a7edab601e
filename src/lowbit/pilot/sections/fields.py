"""What values in a pilot file can be: names that are parsed, numbers in a range, and the class of every section."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lowbit.errors import FormatError
from lowbit.formats import parse
from lowbit.granularity import parse_granularity

FLOAT = "float32"  # no format, and what every target can execute


def wrong(reason: str) -> PydanticCustomError:
    """What a validator raises: `reason` is told as it is, behind the path to the field."""
    return PydanticCustomError("wrong", "{reason}", {"reason": reason})


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
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A section of a pilot file: a key that it has not is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
