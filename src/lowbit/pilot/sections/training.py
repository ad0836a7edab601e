"""How a variant is trained: what every training has, and distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from lowbit.families import FamilyName
from lowbit.pilot.sections.fields import NotNegative, Positive, Section, wrong
from lowbit.training.loop import Optimizer
from lowbit.training.objective import LossName
from lowbit.training.processes import Precision
from lowbit.training.samples import Augment, crop_and_flip

if TYPE_CHECKING:
    from typing_extensions import Self


class Augmented(Section):
    """How images are changed: `crop` shifts them by up to so many pixels, `flip` mirrors half of them.

    See `lowbit.training.samples.crop_and_flip`.
    """

    crop: int = Field(default=0, ge=0)
    flip: bool = False

    def options(self, *without: str) -> dict[str, Any]:
        """The keywords of the method that the file gives, all but `augment` and those named in `without`."""
        return self.model_dump(exclude={"crop", "flip", *without}, exclude_none=True)

    def augment(self, black: tuple[float, ...]) -> Augment | None:
        """The change to each batch, None for none; `black` is what comes in at the borders."""
        return crop_and_flip(self.crop, flip=self.flip, fill=black) if self.crop or self.flip else None


class Fitted(Section):
    """What every training has; what is None is as the method has it."""

    epochs: int = Field(default=2, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    rate: Positive | None = None
    optimizer: Optimizer | None = None
    weight_decay: NotNegative | None = None
    clip: Positive | None = None
    precision: Precision | None = None


class TrainingSpec(Augmented, Fitted):
    """How a student is trained, whatever decides its formats; what is None is as the method has it."""

    quantizer: FamilyName | None = None
    loss: LossName = "kl"
    temperature: Positive | None = None
    scale_rate: NotNegative | None = None

    @model_validator(mode="after")
    def _has_a_use_for_its_temperature(self) -> Self:
        if self.temperature is not None and self.loss != "kl":
            raise wrong(f"temperature is of loss 'kl', and loss is {self.loss!r}; leave it out")
        return self

    def of_metric(self, metric: str, *, classes: bool = True) -> Self:
        """What this is for a pilot with a metric, whose outputs may be no `classes`."""
        fitting: LossName = "cosine" if metric == "cosine" else "mse"
        if not classes and "loss" not in self.model_fields_set:
            return self.model_copy(update={"loss": fitting})
        return self


class DistillSpec(TrainingSpec):
    """How a variant is trained toward the float model's outputs; see `lowbit.methods.distillation.run.distill`."""

    exact: bool = False
    features: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    delta_every: int | None = Field(default=None, ge=1)
    cache_teacher: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> DistillSpec:
        if self.features and self.loss == "labels":
            raise wrong("features are the teacher's, and loss 'labels' has none; leave them out")
        if self.delta_every is not None and self.quantizer not in (None, "ewgs"):
            raise wrong(f"delta_every is of quantizer 'ewgs', and quantizer is {self.quantizer!r}; leave it out")
        if self.cache_teacher and (self.features or self.crop or self.flip or self.loss == "labels"):
            raise wrong(
                "cache_teacher keeps one output a sample, which features, crop, flip and loss 'labels' do not go with; "
                "leave one or the other out"
            )
        return self
