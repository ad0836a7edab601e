"""The section `features`: which features of a classifier become codes, and the linear head that reads them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from lowbit.methods.discrimination.linear import ClassifierName, CodeName, RuleName
from lowbit.pilot.sections.fields import Finite, Section, wrong

_RULES = ("auto", "global", "per-feature")


def _threshold(given: object) -> object:
    """A rule or a number; of all else one message, where pydantic would have one for each."""
    if given in _RULES or (isinstance(given, (int, float)) and not isinstance(given, bool)):
        return given
    raise wrong(f"got {given!r}, expected {', '.join(_RULES)} or a number of standard deviations")


class FeaturesSpec(Section):
    """How features become codes; see `lowbit.methods.discrimination.heads.coded_head`.

    `layer` is the one whose output is coded, by default the input of the last Linear. `margin` is the change in
    accuracy that does not matter where the head is compared with others.
    """

    layer: Annotated[str, Field(min_length=1)] | None = None
    codes: CodeName = "auto"
    threshold: Annotated[RuleName | Finite, BeforeValidator(_threshold)] = "auto"
    classifier: ClassifierName = "linear"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01

    @model_validator(mode="after")
    def _is_a_threshold_of_the_code(self) -> FeaturesSpec:
        if self.codes == "ternary" and not isinstance(self.threshold, str) and self.threshold < 0:
            raise wrong(
                f"threshold {self.threshold:g}: a ternary code is 0 within +- the threshold; give 0 or more, or codes: "
                "binary"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The keywords of `coded_head` that the file gives."""
        return self.model_dump(exclude={"margin"}, exclude_none=True)


class MadeFeaturesSpec(Section):
    """Codes and a head that were made: `weights` is the file of thresholds and of the head, beside the recipe."""

    layer: str = ""
    weights: Annotated[str, Field(min_length=1)]
