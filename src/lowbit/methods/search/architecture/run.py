"""The verb: search architecture and formats together, and what was found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from lowbit import graph
from lowbit.allocation import Budget, CostName
from lowbit.batches import Batch, Batches, inputs_of, mapped
from lowbit.errors import DataError, RecipeError, TrainingError
from lowbit.families import FamilyName
from lowbit.methods.search.architecture.candidates import Candidate, Comparison, candidates_of
from lowbit.methods.search.architecture.combined import Combined, CombinedLimit, CombinedSpace, limit_of
from lowbit.methods.search.architecture.effects import Effects
from lowbit.methods.search.architecture.elastic import ElasticMobileNet
from lowbit.methods.search.explore import Explorer, Sample
from lowbit.methods.search.fixed import train_found
from lowbit.methods.search.policy import Controller, Policy
from lowbit.methods.search.space import space_of
from lowbit.quantization import note, quantize
from lowbit.recipe import Recipe, Rule
from lowbit.training.keeping import Epoch
from lowbit.training.loop import fit
from lowbit.training.material import as_trained, first_of, split
from lowbit.training.objective import LossName, Objective, loss_for
from lowbit.training.processes import training_device
from lowbit.training.samples import Augment, Steps, length_of
from lowbit.training.students import hash_of, known_by, let_learn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

Guide = Literal["effects", "policy"]
_CALIBRATING = 512  # samples that set ranges


@dataclass(frozen=True)
class JointSearch:
    """What a joint search tried and found.

    Attributes:
        budget: the cost that was limited, and its most.
        by: the guide.
        samples: every assignment that was tried, in order: the numbers of options, in the order of `weighed`.
        weighed: each decision with its options, at the end of the exploring phase: by how much each changes the loss,
            as a share of it, against the best one; of a policy, how probable it is.
        found: the candidate that was chosen; its costs are those of the student.
        candidates: what it was chosen from, itself among them; all are within the budget.
        epochs, best: of the fixed phase, and the number of the one whose weights were kept, 0 without such a phase.
        before, after: agreement of the student with the teacher, or without one its accuracy, on held-out samples, in
            and after that phase.
        shared: the architecture that was found, float, with the weights at the end of the exploring phase.
    """

    by: Guide
    budget: tuple[CostName, float]
    samples: tuple[Sample, ...]
    weighed: Mapping[str, Mapping[str, float]]
    found: Candidate
    candidates: tuple[Candidate, ...]
    epochs: tuple[Epoch, ...]
    best: int
    before: float
    after: float
    shared: nn.Module = field(repr=False, compare=False)

    @property
    def architecture(self) -> Mapping[str, int]:
        """The option of each decision of the plan, those with one option among them."""
        return self.found.architecture

    @property
    def recipe(self) -> Recipe:
        """The formats of that architecture."""
        return self.found.recipe

    def __str__(self) -> str:
        name, most = self.budget
        spent = f"{self.found.costs[name]:.6g} of {most:.6g} {name} ({self.found.costs[name] / most:.1%})"
        tried = f"joint search by {self.by}: {len(self.samples)} assignments tried, {self.found.name} chosen"
        return f"{tried}, {spent}; agreement {self.after:.4f}"


def search_architecture(
    network: ElasticMobileNet,
    batches: Batches | Callable[[int], Batches],
    choices: Sequence[str] | str,
    budget: Budget,
    *,
    teacher: nn.Module | None = None,
    by: Guide = "effects",
    loss: LossName | None = None,
    temperature: float = 4.0,
    recipe: Recipe = Recipe(()),
    rule: Rule = Rule(),
    granularity: str | Sequence[str] = "layer",
    controller: Controller = Controller(rate=0.02, samples=2, relative=True),
    explore: float = 0.3,
    epochs: int = 2,
    quantizer: FamilyName = "ewgs",
    held_out: Batches | None = None,
    batch_size: int = 64,
    augment: Augment | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    **fitting: Unpack[Fitting],
) -> tuple[nn.Module, JointSearch]:
    """A trained student, of plain layers, in the architecture and the formats that serve it best within a budget.

    With one architecture left (`Plan.only`) formats alone are searched, in the same way.

    Args:
        network: all architectures; it is not changed.
        batches: inputs in any batch form, as in `distill`; with labels where there is no teacher.
        choices: formats that a layer can have, or the name of a space, as in `search`.
        budget: of ``bops`` or ``bytes``; what it is `like` is the largest architecture.
        teacher: a trained float network with the same outputs.
        by: what guides: ``effects``, or the published ``policy``.
        loss: what the student is held to; by default ``labels`` without a teacher, else as in `distill`.
        temperature: of ``kl``.
        recipe: what happens to layers whose formats are not searched; those that it does not name are.
        rule: granularity and scales of searched layers.
        granularity: which layers have their formats in common, see `space_of`; ``(.*)[.].*[.]conv`` for blocks.
        controller: the numbers of a policy.
        explore: share of the steps in which assignments change; in the others the best one is trained.
        epochs: passes over the batches in all.
        quantizer: how ranges learn in the fixed phase, see `lowbit.families`.
        held_out: inputs that judge; by default every sixteenth batch.
        batch_size: samples a step.
        augment: changes a batch at every step.
        folder: keeps samples and checkpoints; called again with the same arguments, the search goes on from there.
        seed: of all that is drawn.
        progress: show bars on a terminal.
        fitting: rate, scale_rate, optimizer, weight_decay, clip, precision and others of `lowbit.training.loop.fit`.

    Raises:
        RecipeError: an option that does not exist or fit, nothing to decide, a budget that cannot be met or needs no
            search, or a loss that needs a teacher.
        FormatError, LayerError: a format that does not exist, or that a layer cannot have.
        TrainingError: the teacher is in train mode or returns another shape, or a loss or reward is not finite.
        DataError: no batches, or labels that are missing.
    """
    _check(network, teacher, by, explore, epochs)
    train, held = split(batches, held_out, batch_size, seed)
    length = length_of(train, 0, None)
    exploring = max(1, round(explore * epochs * length))
    space = _space(network, choices, recipe, rule, granularity)
    held_to = (loss or "labels") if teacher is None else loss_for(loss, teacher, held)
    how = _Held(teacher, held_to, temperature, held)
    ground = _prepared(network, space, train, budget, how, channels_last=bool(fitting.get("channels_last")))
    guide = Effects(ground.limit) if by == "effects" else Policy(len(space.counts), space.counts, exploring, controller)
    place = None if folder is None else Path(folder)
    explorer = Explorer(ground.net, guide, ground.objective, ground.limit, seed=seed, folder=place)
    about = {
        **ground.known,
        "guide": by,
        "controller": repr(controller),
        "exploring": f"{exploring} steps of {batch_size}",
    }
    training: dict[str, Any] = {"augment": augment, "seed": seed, "progress": progress, **fitting}
    let_learn(explorer.net)
    fit(
        explorer,
        explorer.loss,
        Steps(train, length, exploring),
        epochs=1,
        after_step=explorer.learn,
        about=about,
        folder=None if place is None else place / "explore",
        **training,
    )
    compared = Comparison(ground.net, ground.objective, ground.limit, as_trained(train, augment, seed))
    assignments = candidates_of(guide, ground.limit, seed=seed)
    candidates = compared.candidates(assignments, progress=progress)
    found = min(candidates, key=lambda candidate: candidate.loss)
    compared.prepare(found.assignment)
    shared = ground.net.network.extract(found.architecture)
    trained = train_found(
        *(shared, found.recipe, ground.objective, ground.some, train, (length, exploring, epochs * length)),
        quantizer=quantizer,
        about=about,
        folder=place,
        training=training,
    )
    student = trained.student
    note(student, f"search_architecture(loss={how.loss}, epochs={epochs}, seed={seed})")
    home = next(network.parameters()).device
    result = JointSearch(
        by,
        (budget.cost, ground.limit.most),
        explorer.samples,
        space.by_name(guide.probabilities().tolist() if isinstance(guide, Policy) else guide.shares()),
        found,
        tuple(candidates),
        trained.fitted.epochs,
        trained.fitted.best,
        trained.before,
        trained.after,
        shared.to(home),
    )
    return student.to(home), result


@dataclass(frozen=True)
class _Held:
    """What the student is held to."""

    teacher: nn.Module | None
    loss: LossName
    temperature: float
    held: list[Batch]


@dataclass(frozen=True)
class _Ground:
    """What a search stands on: the shared weights, what they are held to, and the budget.

    `some` are the inputs that set ranges; `known` is what a checkpoint is known by.
    """

    net: Combined
    objective: Objective
    limit: CombinedLimit
    some: list[Batch]
    known: Mapping[str, object]


def _space(
    network: ElasticMobileNet,
    choices: Sequence[str] | str,
    recipe: Recipe,
    rule: Rule,
    granularity: str | Sequence[str],
) -> CombinedSpace:
    """What there is to decide; every format is tried on the largest architecture, so that none fails later."""
    formats = space_of(network, choices, recipe=recipe, rule=rule, granularity=granularity, least=1)
    space = CombinedSpace(network.plan, formats)
    largest = network.extract(network.plan.largest)
    for choice in formats.choices:
        if choice.weights or choice.activations:
            quantize(largest, formats.recipe_of(formats.uniform(choice)), fold=False)
    return space


def _prepared(
    network: ElasticMobileNet,
    space: CombinedSpace,
    train: Callable[[int], Batches],
    budget: Budget,
    how: _Held,
    *,
    channels_last: bool,
) -> _Ground:
    device = training_device()
    some = [mapped(batch, lambda tensor: tensor.to(device)) for batch in first_of(train(1), _CALIBRATING)]
    limit = limit_of(budget, space, _size(some[0]))
    net = Combined(copy.deepcopy(network), space).to(device).eval()
    net.select((0,) * len(space.counts))
    teacher = None if how.teacher is None else graph.folded(how.teacher).to(device)
    if teacher is not None and channels_last:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = Objective(net, teacher, how.loss, how.temperature, (), how.held)
    formats = space.formats
    known = {
        **known_by(net, objective, train),
        "start": hash_of(network.state_dict().values()),
        "plan": repr(space.plan),
        "formats": [*map(str, formats.choices), *(decision.name for decision in formats.decisions)],
        "others": f"{formats.recipe.fingerprint} and {formats.rule}",
        "loss": f"{how.loss} at {how.temperature}",
        "budget": f"{limit.most} {budget.cost}",
    }
    return _Ground(net, objective, limit, some, known)


def _check(network: nn.Module, teacher: nn.Module | None, by: Guide, explore: float, epochs: int) -> None:
    if by not in get_args(Guide):
        raise RecipeError(f"by {by!r} is unknown; expected one of {', '.join(get_args(Guide))}")
    if not isinstance(network, ElasticMobileNet):
        raise RecipeError(
            f"{type(network).__name__} has one architecture; give an ElasticMobileNet, or search its formats by search"
        )
    if teacher is not None and any(module.training for module in teacher.modules()):
        raise TrainingError("the teacher is in train mode, where its outputs change; call teacher.eval() first")
    if not 0 < explore <= 1 or epochs < 1:
        raise RecipeError(f"got explore={explore} and epochs={epochs}, expected a share in (0, 1] and at least 1 epoch")


def _size(batch: Batch) -> tuple[int, int]:
    """Height and width of the images of a batch."""
    args, kwargs = inputs_of(batch)
    shape = next(iter((*args, *kwargs.values()))).shape
    if len(shape) != 4:
        raise DataError(f"got inputs of shape {list(shape)}, expected images [n, channels, height, width]")
    return shape[2], shape[3]
