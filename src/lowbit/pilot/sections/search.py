"""The section `search`: which formats a layer can have, and within which budget."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lowbit.allocation import Budget, CostName
from lowbit.errors import FormatError, RecipeError
from lowbit.methods.search.run import Strategy
from lowbit.methods.search.sensitivity import SensitivityName
from lowbit.methods.search.space import SPACES, Choice
from lowbit.pilot.sections.fields import Positive, Section, listed, wrong
from lowbit.pilot.sections.training import TrainingSpec


def _choice_name(name: str) -> str:
    try:
        Choice.parse(name)
    except FormatError as error:
        raise wrong(str(error)) from None
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise wrong(f"{error}; expected 'layer', 'model' or regular expressions over layer names") from None
    return text


def _space(given: object) -> object:
    """The choices of a space that is given by its name; all else as it is."""
    if not isinstance(given, str):
        return given
    if given not in SPACES:
        raise wrong(f"space {given!r} is unknown; write a list of formats, or one of {', '.join(SPACES)}")
    return SPACES[given]


ChoiceName = Annotated[str, AfterValidator(_choice_name)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class BudgetSpec(Section):
    """The most that a network may cost; see `lowbit.allocation.Budget`. `like` is a choice of formats."""

    cost: CostName = "bops"
    most: Positive | None = None
    like: ChoiceName | None = None
    share: Positive = 1.0

    @model_validator(mode="after")
    def _says_how_much(self) -> BudgetSpec:
        if "share" in self.model_fields_set and self.most is not None:
            raise wrong("share is of like, and most is a figure; give one or the other")
        try:
            self.budget()
        except RecipeError as error:
            raise wrong(str(error)) from None
        return self

    def budget(self) -> Budget:
        """The same for the method."""
        return Budget(**self.model_dump())


class SearchSpec(TrainingSpec):
    """How a variant's formats are searched, and its student trained; see `lowbit.methods.search.run.search`.

    `choices` are the formats that a layer can have, `granularity` is which layers decide together.
    """

    choices: Annotated[tuple[ChoiceName, ...], BeforeValidator(_space)]
    budget: Annotated[tuple[BudgetSpec, ...], BeforeValidator(listed), Field(min_length=1)]
    by: Strategy | None = None
    granularity: Annotated[tuple[Pattern, ...], BeforeValidator(listed), Field(min_length=1)] = ("layer",)
    sensitivity: SensitivityName | None = None
    explore: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _is_a_search(self) -> SearchSpec:
        parsed = {Choice.parse(name) for name in self.choices}
        if len(parsed) < 2:
            raise wrong(f"choices {', '.join(self.choices) or 'are none'}: a search needs two at least; give more")
        for budget in self.budget:
            if budget.like is not None and Choice.parse(budget.like) not in parsed:
                raise wrong(f"budget: like {budget.like!r} is none of the choices ({', '.join(self.choices)})")
        if self.explore is not None and self.by == "knapsack":
            raise wrong("explore is of 'surrogate' and 'policy', and by is 'knapsack'; leave it out")
        return self

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets for `search`, the first of which is that of the front."""
        return tuple(one.budget() for one in self.budget)

    @property
    def grouping(self) -> str | tuple[str, ...]:
        """`granularity` for `search`, to which ``layer`` and ``model`` are words and no expressions."""
        return self.granularity[0] if len(self.granularity) == 1 else self.granularity
