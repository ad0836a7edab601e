"""The section `factorize`: what layers can become, and how their factors are found."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lowbit.errors import FormatError, RecipeError
from lowbit.methods.factorization import choices as chains
from lowbit.pilot.sections.fields import FormatName, Seed, listed, wrong
from lowbit.pilot.sections.search import BudgetSpec
from lowbit.pilot.sections.training import Augmented


def _chain_name(name: str) -> str:
    try:
        chains.Choice.parse(name)
    except (FormatError, RecipeError) as error:
        raise wrong(str(error)) from None
    return name


def _chains(given: object) -> object:
    """What layers can become, by one name or several, or what each becomes, by globs; all of them names of choices."""
    named = [*given.values()] if isinstance(given, dict) else listed(given)
    if not isinstance(named, (list, tuple)) or not all(isinstance(name, str) for name in named) or not named:
        raise wrong("expected a choice such as '2x', a list of choices, or a mapping of layer globs to choices")
    for name in named:
        _chain_name(name)
    return given if isinstance(given, dict) else tuple(named)


ChainName = Annotated[str, AfterValidator(_chain_name)]


class ChainBudgetSpec(BudgetSpec):
    """The most that a network with chains may cost; `like` is a choice of `factorize`."""

    like: ChainName | None = None


_NOT_EXACT = {"solver", "middle", "refit"}


class FactorizeSpec(Augmented):
    """How layers of a variant become chains of small ones; see `lowbit.methods.factorization.run.factorize`.

    With `norms`, BatchNorm statistics are set anew on the calibration inputs, changed by `crop` and `flip` as the
    training of the float model changed its own. `seed` is the pilot's by default.
    """

    choices: Annotated[tuple[str, ...] | dict[str, str] | None, BeforeValidator(_chains)] = None
    budget: ChainBudgetSpec | None = None
    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    layers: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] | None = None
    exact: bool = False
    solver: Literal["descent", "admm", "rounding"] = "descent"
    middle: FormatName = "int8"
    refit: bool = True
    norms: bool = False
    compare: bool = True
    seed: Seed | None = None

    @model_validator(mode="after")
    def _has_something_to_choose_by(self) -> FactorizeSpec:
        limited = [name for name in ("budget", "tolerance") if getattr(self, name) is not None]
        if len(limited) == 2:
            raise wrong("budget and tolerance both say how far to go; give one of them")
        given = [*limited, *(["layers"] if self.layers else [])]
        if isinstance(self.choices, dict) and given:
            raise wrong(f"choices say what each layer becomes; leave {' and '.join(given)} out")
        if isinstance(self.choices, tuple) and len(self.choices) > 1 and not limited:
            raise wrong(f"{len(self.choices)} choices and nothing to choose by; give a budget or a tolerance")
        like, choices = self.budget and self.budget.like, self.choices or chains.CHOICES
        if like is not None and like not in choices:
            raise wrong(f"budget: like {like!r} is none of the choices ({', '.join(choices)})")
        return self

    @model_validator(mode="after")
    def _has_a_use_for_its_options(self) -> FactorizeSpec:
        idle = sorted(self.model_fields_set & _NOT_EXACT)
        if self.exact and idle:
            raise wrong(f"exact is as published, and has no {' and '.join(idle)}; leave one or the other out")
        if (self.crop or self.flip) and not self.norms:
            raise wrong("crop and flip change the inputs of norms; set norms: true, or leave them out")
        return self

    def found(self, choices: dict[str, str], seed: int) -> dict[str, Any]:
        """The section of a recipe file that does the same again, without anything left to choose."""
        same = self.model_copy(update={"choices": choices, "compare": False, "seed": seed})
        idle = (_NOT_EXACT if self.exact else set()) | (set() if self.norms else {"norms", "crop", "flip"})
        return same.model_dump(mode="json", exclude={"budget", "tolerance", "layers", *idle})
