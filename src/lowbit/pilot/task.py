"""What a trial is asked: a task, the data that it may use, and the settings that all trials of a pilot share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lowbit.batches import are_quantities
from lowbit.export.runtime import RuntimeName
from lowbit.pilot.metrics import is_own
from lowbit.pilot.sections.coding import FeaturesSpec
from lowbit.pilot.sections.factorize import FactorizeSpec
from lowbit.pilot.sections.output import OutputSpec
from lowbit.pilot.sections.search import SearchSpec
from lowbit.pilot.sections.training import DistillSpec
from lowbit.post_training.levels import Level
from lowbit.recipe import Recipe


class Samples(Protocol):
    """Inputs in a fixed order, with labels where there are some; `lowbit.data.Data` is one."""

    @property
    def labels(self) -> Tensor | None:
        """Targets of all samples."""

    @property
    def hash(self) -> str:
        """What identifies the content."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterable[tuple[Tensor, Tensor | None] | dict[str, Tensor]]:
        """All samples in order; with several inputs a dict by their names, and ``labels`` where there are some."""


def of_classes(metric: str, labels: Tensor | None) -> bool:
    """Whether outputs predict classes, as far as a metric and the labels of the test data tell.

    With r2 and cosine they are quantities and embeddings, and with an own metric of targets in floats quantities.
    """
    return metric not in ("r2", "cosine") and not (is_own(metric) and are_quantities(labels))


@dataclass(frozen=True)
class Settings:
    """What all trials of a pilot share."""

    metric: str
    seed: int
    runtime: RuntimeName
    threads: int
    provenance: dict[str, object]
    folder: Path | None = None  # where the path of a metric's file begins
    classes: bool = True  # whether outputs are class scores, and no quantities or embeddings
    costs: Path | None = None  # keeps what choices were measured to cost, for all trials of the pilot

    def of(self, task: Task) -> Settings:
        """The same with the seed of a task that has one of its own."""
        return self if task.seed is None else replace(self, seed=task.seed)


@dataclass(frozen=True)
class Task:
    """One trial to do: `recipe` is None for the float baseline; see `lowbit.post_training.levels.post_train`.

    With `search`, `recipe` is about layers that are not searched, `granularity` about the weights of those that are,
    and `batch` is the number of samples in a call whose time is a cost. `black` is what preprocessing makes of a black
    pixel, in each channel: it comes in where images are shifted. `seed` is the pilot's if it is None; a task with
    another one names the variant that it repeats. `refused` are choices that a search may not make, with the reason.
    """

    name: str
    folder: Path
    fingerprint: str
    recipe: Recipe | None
    opset: int = 21
    level: Level = "balanced"
    widen_most: int = 0
    distill: DistillSpec | None = None
    black: tuple[float, ...] = ()
    search: SearchSpec | None = None
    granularity: str = "channel"
    batch: int = 1
    factorize: FactorizeSpec | None = None
    output: OutputSpec | None = None
    features: FeaturesSpec | None = None
    seed: int | None = None
    repeats: str = ""
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> Path:
        """The folder of all trials: that of a further seed lies in ``seeds`` of its variant's."""
        return self.folder.parents[2] if self.repeats else self.folder.parent

    @property
    def training(self) -> DistillSpec | SearchSpec | None:
        """What trains the student, if something does."""
        return self.distill or self.search


@dataclass(frozen=True)
class Sources:
    """What a trial calibrates, trains and reports on; what learns (see `Task`) does so on `train`."""

    calibration: Samples
    train: Samples
    test: Samples
