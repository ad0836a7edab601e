"""The verb: search formats within a budget, and what was found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowbit import allocation, costs, graph
from lowbit.allocation import Assignment, Budget, CostName, Limit, Losses, Prices
from lowbit.batches import Batch, Batches, mapped
from lowbit.costs import MeasuredCosts
from lowbit.errors import RecipeError, TrainingError
from lowbit.families import FamilyName
from lowbit.methods.search.explain import Reason, reasons_of
from lowbit.methods.search.explore import Explorer, Sample
from lowbit.methods.search.fixed import train_found
from lowbit.methods.search.judge import Judge, Point
from lowbit.methods.search.policy import Controller, Policy, unlikeliness
from lowbit.methods.search.prices import counted, limits_of, measured
from lowbit.methods.search.sensitivity import SensitivityName, Table, by_fisher, by_loss
from lowbit.methods.search.space import Space, space_of
from lowbit.methods.search.supernet import Supernet, parts_of
from lowbit.methods.search.surrogate import Surrogate
from lowbit.post_training.correction import reestimate
from lowbit.quantization import calibrate, note, quantize
from lowbit.recipe import Recipe, Rule
from lowbit.training.keeping import Epoch
from lowbit.training.loop import fit
from lowbit.training.material import as_trained, first_of, split
from lowbit.training.objective import LossName, Objective, loss_for
from lowbit.training.processes import mean_over_processes, training_device
from lowbit.training.samples import Augment, Steps, length_of
from lowbit.training.students import finished, hash_of, known_by, let_learn, projection

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lowbit.training.loop import Fitting

Strategy = Literal["knapsack", "surrogate", "policy"]
Start = Literal["uniform", "knapsack"]
_CALIBRATING = 512  # samples that set ranges and sensitivities
_FRONT = 9  # points that are judged


@dataclass(frozen=True)
class Search:
    """What a search tried and found.

    Attributes:
        by: the strategy.
        exact: whether it went as published.
        choices: what each layer could have; those that a runtime refuses are in `refused`, with the reason.
        layers: the layers of each decision.
        budgets: the most that each cost may be, in figures.
        sensitivities: `[decisions][choices]`, see `lowbit.methods.search.sensitivity`.
        samples: every assignment that was tried, in order.
        found: the assignment that was chosen.
        candidates: what was held against each other: what was proposed, and uniform formats.
        front: the best assignments for other budgets, cheapest first; those within the budget were candidates too.
        reasons: why each layer has its format.
        epochs, best: of the fixed phase, and the number of the one whose weights were kept, 0 without such a phase.
        before, after: agreement of the student with the float network on held-out samples, in and after that phase.
        shared: the float network with the weights that all assignments share at the end of the exploring phase.
    """

    by: Strategy
    exact: bool
    choices: tuple[str, ...]
    refused: Mapping[str, str]
    layers: tuple[tuple[str, ...], ...]
    budgets: Mapping[CostName, float]
    sensitivities: Table
    samples: tuple[Sample, ...]
    found: Point
    candidates: tuple[Point, ...]
    front: tuple[Point, ...]
    reasons: tuple[Reason, ...]
    epochs: tuple[Epoch, ...]
    best: int
    before: float
    after: float
    shared: nn.Module = field(repr=False, compare=False)

    @property
    def recipe(self) -> Recipe:
        """What everything else consumes."""
        return self.found.recipe

    def student(self, point: Point, batches: Batches) -> nn.Module:
        """A student in the formats of a point, with the shared weights: as it was judged, but for its ranges.

        Args:
            point: of `front` or `candidates`.
            batches: inputs that set ranges and BatchNorm statistics; a few hundred, as training sees them.

        Raises:
            CalibrationError: no batches.
        """
        batches = list(batches)
        student = quantize(self.shared, point.recipe, fold=False)
        calibrate(student, batches, progress=False)
        reestimate(student, batches)
        return finished(student)

    def __str__(self) -> str:
        spent = ", ".join(
            f"{_figure(self.found.costs[name])} of {_figure(most)} {name} ({self.found.costs[name] / most:.1%})"
            for name, most in self.budgets.items()
        )
        tried = f"{len(self.samples)} assignments tried, " if self.samples else ""
        kept = f"{self.found.name} chosen, {spent}"
        return f"search by {self.by}: {tried}{kept}; agreement with the float network {self.after:.4f}"


def _figure(cost: float) -> str:
    """Operations and bytes as whole numbers, milliseconds with three digits."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


def search(
    model: nn.Module,
    batches: Batches | Callable[[int], Batches],
    choices: Sequence[str] | str,
    budget: Budget | Sequence[Budget],
    *,
    by: Strategy = "surrogate",
    exact: bool = False,
    recipe: Recipe = Recipe(()),
    rule: Rule = Rule(),
    granularity: str | Sequence[str] = "layer",
    sensitivity: SensitivityName = "loss",
    controller: Controller = Controller(),
    start: Start = "knapsack",
    explore: float = 0.3,
    epochs: int = 2,
    quantizer: FamilyName = "ewgs",
    loss: LossName | None = None,
    temperature: float = 4.0,
    held_out: Batches | None = None,
    batch_size: int = 64,
    augment: Augment | None = None,
    measured_costs: MeasuredCosts | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    **fitting: Unpack[Fitting],
) -> tuple[nn.Module, Search]:
    """A trained student of `model` whose layers have the formats that serve it best within a budget, and how that went.

    Args:
        model: a trained float network; it is not changed, and teaches.
        batches: inputs in any batch form, as in `distill`.
        choices: formats that a layer can have, such as ``["int4", "int8", "mid2/int2"]``, or the name of a space.
        budget: the most the network may cost; of several, all hold, and the first is that of the front.
        by: ``knapsack`` solves for the sensitivities and trains; ``surrogate`` refines that while weights learn, see
            `lowbit.methods.search.surrogate`; ``policy`` is the published controller.
        exact: search as published: by policy from a uniform start, in all steps, with symmetric ranges that follow the
            largest magnitude, and the most probable assignment at the end, whatever it costs. Give ``loss="labels"``
            too; `by`, `quantizer`, `start` and `explore` have no effect.
        recipe: what happens to layers that are not searched; those that it does not name are.
        rule: granularity and scales of searched layers.
        granularity: which layers decide together, see `space_of`.
        sensitivity: how sensitivities are estimated.
        controller: the published controller's numbers.
        start: where the policy begins.
        explore: share of the steps in which assignments change; in the others the best one is trained.
        epochs: passes over the batches in all.
        quantizer: how ranges learn, see `lowbit.families`.
        loss, temperature: what the student is held to, as in `distill`; the same loss judges assignments. ``kl`` takes
            outputs for class scores: say ``mse`` for a regression with several outputs whose batches have no labels.
        held_out: inputs that judge; by default every sixteenth batch.
        batch_size: samples a step.
        augment: changes a batch at every step.
        measured_costs: what a runtime was measured to take, for budgets of ``latency`` and ``file``; choices that it
            refuses are left out.
        folder: keeps samples and checkpoints; called again with the same arguments, the search goes on from there.
        seed: of all that is drawn.
        progress: show bars on a terminal.
        fitting: rate, scale_rate, optimizer, weight_decay, clip, precision and others of `lowbit.training.loop.fit`.

    Raises:
        RecipeError: an option that does not exist or fit, no layer to search, a budget that cannot be met or needs no
            search.
        FormatError, LayerError: a format that does not exist, or that a layer cannot have.
        TrainingError: `model` is in train mode, or a loss or reward is not finite.
        DataError: no batches.
    """
    by, quantizer, start, explore = ("policy", "absmax", "uniform", 1.0) if exact else (by, quantizer, start, explore)
    if exact:
        rule = replace(rule, symmetric=True, weight_scale="absmax", activation_scale="absmax")
    _check(model, by, start, sensitivity, explore, epochs)
    refused = dict(measured_costs.refused) if measured_costs else {}
    space = space_of(model, choices, recipe=recipe, rule=rule, granularity=granularity, refused=refused)
    train, held = split(batches, held_out, batch_size, seed)
    length, home = length_of(train, 0, None), next(model.parameters()).device
    training: dict[str, Any] = {"augment": augment, "seed": seed, "progress": progress, **fitting}
    how = (quantizer, exact, loss, temperature, bool(fitting.get("channels_last")))
    ground = _prepared(model, space, train, held, measured_costs, budget, how)
    objective, limits = ground.objective, ground.limits
    place = None if folder is None else Path(folder)
    table = _sensitivities(ground, sensitivity, seed, progress)
    first = allocation.solve(table, limits)
    exploring = 0 if by == "knapsack" else max(1, round(explore * epochs * length))
    guide = None if by == "knapsack" else _guide(by, table, first, ground, exploring, controller, start)
    about: dict[str, object] = {
        "search": by,
        "exact": exact,
        "controller": repr(controller),
        "start": start,
        "batch_size": batch_size,
    }
    about |= {"sensitivities": hash_of([torch.tensor(table)]), "exploring": exploring}
    about |= {"choices": [*map(str, space.choices)], "layers": [d.name for d in space.decisions]}
    samples = () if guide is None else _explored(ground, guide, Steps(train, length, exploring), place, about, training)
    losses: Losses = guide.losses() if isinstance(guide, Surrogate) else table
    judge = Judge(ground.net, objective, ground.prices, limits, table, as_trained(train, augment, seed))
    candidates = judge.points(_candidates(ground, first, guide), "compare candidates", progress=progress)
    front = judge.points(_ladder(losses, limits), "compare the front", progress=progress)
    best = min((point for point in (*candidates, *front) if point.fits), key=lambda point: point.loss)
    found = candidates[0] if exact else best
    chosen = space.assignment(found.choices)
    judge.prepare(chosen)
    shared = ground.net.shared(ground.model)
    trained = train_found(
        *(shared, found.recipe, objective, ground.some, train, (length, exploring, epochs * length)),
        quantizer=quantizer,
        about=about,
        folder=place,
        training=training,
    )
    student = trained.student
    counted_again = costs.cost(student, ground.some[0])  # a layer may read what another one had quantized
    spent: dict[CostName, float] = {"bops": counted_again.bops, "bytes": counted_again.weight_bytes}
    found = replace(found, costs={**found.costs, **spent})
    note(student, f"search(by={by}, exact={exact}, loss={objective.kind}, epochs={epochs}, seed={seed})")
    result = Search(
        by,
        exact,
        tuple(map(str, space.choices)),
        refused,
        tuple(decision.layers for decision in space.decisions),
        {limit.prices.cost: limit.most for limit in limits},
        table,
        samples,
        found,
        tuple(candidates),
        tuple(front),
        reasons_of(space, chosen, guide.shares(chosen) if isinstance(guide, Surrogate) else table, limits),
        trained.fitted.epochs,
        trained.fitted.best,
        trained.before,
        trained.after,
        shared.to(home),
    )
    return student.to(home), result


@dataclass(frozen=True)
class _Ground:
    """What a search stands on: the shared weights, what they are held to, and what assignments cost.

    `some` are the inputs that set ranges and sensitivities; `known` is what a checkpoint is known by.
    """

    model: nn.Module
    net: Supernet
    objective: Objective
    prices: Mapping[CostName, Prices]
    limits: tuple[Limit, ...]
    some: list[Batch]
    known: Mapping[str, object]

    @property
    def space(self) -> Space:
        """What there is to choose from."""
        return self.net.space


def _prepared(
    model: nn.Module,
    space: Space,
    train: Callable[[int], Batches],
    held: list[Batch],
    measured_costs: MeasuredCosts | None,
    budget: Budget | Sequence[Budget],
    how: tuple[FamilyName, bool, LossName | None, float, bool],
) -> _Ground:
    quantizer, exact, loss, temperature, channels_last = how
    device = training_device()
    model = copy.deepcopy(model).to(device)
    some = [mapped(batch, lambda tensor: tensor.to(device)) for batch in first_of(train(1), _CALIBRATING)]
    parts = [parts_of(model, space, c, some, quantizer=quantizer, exact=exact) for c in space.choices]
    prices = {**counted(space, parts), **(measured(space, measured_costs) if measured_costs else {})}
    limits = limits_of([budget] if isinstance(budget, Budget) else budget, space, prices)
    net = Supernet(model, space, parts, some, quantizer=quantizer, exact=exact).to(device)
    teacher = graph.folded(model).to(device)
    if channels_last:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = loss_for(loss, teacher, held)
    objective = Objective(net, teacher, loss, temperature, (), held)
    known = {**known_by(net.student, objective, train), "quantizer": quantizer, "loss": loss}
    known |= {"temperature": temperature, "budgets": [[limit.prices.cost, limit.most] for limit in limits]}
    return _Ground(model, net, objective, prices, limits, some, known)


def _sensitivities(ground: _Ground, by: SensitivityName, seed: int, progress: bool) -> Table:
    """The same in every process, to the last bit: all that comes later follows from them."""
    if by == "loss":
        table = by_loss(ground.net, ground.objective, ground.some, progress=progress)
    else:
        table = by_fisher(ground.net, ground.some, classes=ground.objective.classes, seed=seed, progress=progress)
    return tuple(tuple(mean_over_processes(list(row))) for row in table)


def _explored(
    ground: _Ground,
    guide: Policy | Surrogate,
    steps: Steps,
    folder: Path | None,
    about: Mapping[str, object],
    training: Mapping[str, Any],
) -> tuple[Sample, ...]:
    """Train the shared weights in assignments that `guide` draws; what was tried."""
    explorer = Explorer(ground.net, guide, ground.objective, ground.limits[0], seed=training["seed"], folder=folder)
    let_learn(ground.net)
    project = projection(ground.net.student, ground.net.norms)

    def after_step(loss: Tensor) -> None:
        project(loss)
        explorer.learn(loss)

    fit(
        explorer,
        explorer.loss,
        steps,
        epochs=1,
        after_step=after_step,
        about={**ground.known, **about},
        folder=None if folder is None else folder / "explore",
        **training,
    )
    return explorer.samples


def _guide(
    by: Strategy, table: Table, first: Assignment, ground: _Ground, steps: int, controller: Controller, start: Start
) -> Policy | Surrogate:
    if by == "surrogate":
        return Surrogate(table, first, ground.limits)
    space = ground.space
    near = first if start == "knapsack" else None
    return Policy(len(space.decisions), len(space.choices), steps, controller, start=near)


def _candidates(ground: _Ground, first: Assignment, guide: Policy | Surrogate | None) -> dict[str, Assignment]:
    """What the final assignment is chosen from: what was found, where it began, and uniform assignments."""
    space, found = ground.space, {}
    if isinstance(guide, Surrogate):
        found["surrogate"] = guide.best()
    if isinstance(guide, Policy):
        found["policy"] = guide.best()
        found["policy within the budget"] = allocation.solve(unlikeliness(guide), ground.limits)
    found["sensitivities"] = first
    return found | {f"uniform {choice}": space.uniform(choice) for choice in space.choices}


def _ladder(losses: Losses, limits: Sequence[Limit]) -> dict[str, Assignment]:
    """Some assignments of the front, from the cheapest to the dearest."""
    every = allocation.front(losses, limits[0].prices, limits[1:])
    chosen = sorted({round(i * (len(every) - 1) / max(1, _FRONT - 1)) for i in range(_FRONT)})
    return {f"front {number}": every[i] for number, i in enumerate(chosen, 1)}


def _check(
    model: nn.Module, by: Strategy, start: Start, sensitivity: SensitivityName, explore: float, epochs: int
) -> None:
    if any(module.training for module in model.modules()):
        raise TrainingError("the model is in train mode, where its outputs change; call model.eval() first")
    known = {"by": (by, Strategy), "start": (start, Start), "sensitivity": (sensitivity, SensitivityName)}
    for name, (given, names) in known.items():
        if given not in get_args(names):
            raise RecipeError(f"{name} {given!r} is unknown; expected one of {', '.join(get_args(names))}")
    if not 0 < explore <= 1 or epochs < 1:
        raise RecipeError(f"got explore={explore} and epochs={epochs}, expected a share in (0, 1] and at least 1 epoch")
