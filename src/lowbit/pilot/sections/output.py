"""The section `output`: how numbers are written along a path, in a pilot file and in the recipe of what was made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lowbit.errors import RecipeError
from lowbit.methods.curves.arithmetic import why_no_arithmetic
from lowbit.methods.curves.codec import Codec, TransformName
from lowbit.methods.curves.decoders import DecoderName
from lowbit.methods.curves.fit import PointLoss
from lowbit.methods.curves.heads import HeadsName
from lowbit.methods.curves.paths import Fold, Moore, Snake, parse_path
from lowbit.methods.curves.paths import Path as Curve
from lowbit.pilot.sections.fields import Finite, NotNegative, Section, wrong
from lowbit.pilot.sections.training import Fitted

if TYPE_CHECKING:
    from typing_extensions import Self

AUTO = "auto"  # a path that the noise chooses


def _path_name(name: str) -> str:
    try:
        if name != AUTO:
            parse_path(name)
    except RecipeError as error:
        raise wrong(f"{error}; or {AUTO!r}, to choose a snake by the noise") from None
    return name


PathName = Annotated[str, AfterValidator(_path_name)]


_OF_TRAINING = {*Fitted.model_fields, "loss", "noise"}


class CurveSpec(Section):
    """How numbers become points on a path and are read again; see `lowbit.methods.curves.run.curve_output`.

    `decoder` is as `Decoder` chooses by default. With `learned_table` the table is filled from the calibration data,
    with `confidence` the file also returns how far from the path each point lies.
    """

    path: PathName = AUTO
    low: Finite | tuple[Finite, ...] | None = None
    high: Finite | tuple[Finite, ...] | None = None
    transform: TransformName = "linear"
    heads: HeadsName = "shared"
    head: Annotated[str, Field(min_length=1)] | None = None
    decoder: DecoderName | None = None
    learned_table: bool = False
    confidence: bool = False

    @property
    def curve(self) -> Curve | None:
        """The path, None for one that the noise chooses."""
        return None if self.path == AUTO else parse_path(self.path)

    @model_validator(mode="after")
    def _is_a_codec(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise wrong("give both low and high, or neither to find the range in the targets")
        try:
            curve = self.curve or Snake()
            codec = Codec(1.0 if self.low is None else self.low, 2.0 if self.high is None else self.high, curve)
            replace(codec, transform=self.transform)
        except RecipeError as error:
            raise wrong(str(error)) from None
        if isinstance(curve, Moore) and self.low is None:
            raise wrong(f"{curve} is for periodic quantities; give low and high, one period")
        if isinstance(curve, Fold) and (self.heads != "shared" or self.transform != "linear"):
            raise wrong(f"{curve} is what a linear layer does by itself; leave heads and transform out")
        if self.heads == "separate" and self.head is None:
            raise wrong("heads 'separate' copies the module that makes the output; name it with head")
        return self._has_a_decoder(codec)

    def _has_a_decoder(self, codec: Codec) -> Self:
        tables = codec.channels == 2 and not isinstance(codec.path, Fold)
        if self.decoder == "table" and not tables:
            raise wrong(f"decoder 'table' is for paths in two channels, and not for {codec.path}; leave it out")
        if self.decoder == "arithmetic" and (reason := why_no_arithmetic(codec.path, codec.bits)):
            raise wrong(reason)
        asked = [name for name in ("learned_table", "confidence") if getattr(self, name)]
        if asked and not tables:
            raise wrong(f"{asked[0]} is a table for two channels, and {codec.path} has none; leave it out")
        if self.learned_table and self.decoder == "arithmetic":
            raise wrong("learned_table fills a table, and decoder 'arithmetic' has none; leave one or the other out")
        return self


class OutputSpec(CurveSpec, Fitted):
    """How a variant's output is written along a path, and trained to; what is None is as the method has it.

    With `controls`, direct outputs of 8 and 16 bits, one that is trained as long, and a fold are measured beside it.
    """

    clip_targets: bool | None = None
    labels: bool | None = None
    epochs: int = Field(default=10, ge=1)
    loss: PointLoss = "points"
    noise: NotNegative | None = None
    controls: bool = True

    @model_validator(mode="after")
    def _has_a_use_for_its_training(self) -> OutputSpec:
        idle = sorted(self.model_fields_set & _OF_TRAINING)
        if isinstance(self.curve, Fold) and idle:
            raise wrong(f"{self.path} needs no training; leave {' and '.join(idle)} out")
        return self

    def training(self) -> dict[str, Any]:
        """The keywords of `fit_head` that the file gives."""
        return self.model_dump(include=_OF_TRAINING, exclude_none=True)

    def options(self) -> dict[str, Any]:
        """The keywords of `curve_output` that the file gives, all but the path."""
        without = {"path", "decoder", "learned_table", "confidence", "controls"}
        return self.model_dump(exclude=without, exclude_none=True)


class MadeOutputSpec(CurveSpec):
    """An output that was made: nothing is left to choose, and `weights` is the file of the trained float network.

    Without weights nothing was trained.
    """

    path: Annotated[str, AfterValidator(_path_name)]
    low: Finite | tuple[Finite, ...]
    high: Finite | tuple[Finite, ...]
    weights: str | None = None

    @model_validator(mode="after")
    def _is_made(self) -> MadeOutputSpec:
        if self.path == AUTO:
            raise wrong(f"path {AUTO!r} is of a pilot file, which chooses; name the path")
        return self

    @property
    def codec(self) -> Codec:
        """The path, the range and the transform."""
        return Codec(self.low, self.high, parse_path(self.path), self.transform, clip=True)
