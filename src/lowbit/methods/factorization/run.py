"""The verb: replace layers by chains of low-bit factors, and what that cost and bought."""

from __future__ import annotations

import copy
import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from joblib import Parallel, delayed
from torch import Tensor, fx, nn

from lowbit import costs, graph
from lowbit.allocation import Budget, CostName
from lowbit.batches import Batch, Batches, outputs_of, size_of
from lowbit.costs import Cost, MeasuredCosts
from lowbit.errors import CalibrationError, LayerError, RecipeError
from lowbit.layers import Quantized
from lowbit.methods.factorization.allocate import Option, Picks, allocated, priced
from lowbit.methods.factorization.chains import placed, tensors_of
from lowbit.methods.factorization.choices import CHOICES, Choice, weight_format
from lowbit.methods.factorization.explain import FactorizedLayer, rows_of
from lowbit.methods.factorization.factors import SOLVERS, Chain, Solution, Solver, solve
from lowbit.methods.factorization.ground import Ground, ground_of, options_of
from lowbit.methods.factorization.refit import Refitted
from lowbit.methods.factorization.refit import refit as refit_last
from lowbit.objectives import agreement_of, are_classes, relative_error
from lowbit.post_training.correction import reestimate
from lowbit.post_training.segments import working_copy
from lowbit.progress import counted
from lowbit.quantization import calibrate, note, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe

_Closeness: TypeAlias = "Callable[[nn.Module], tuple[float, float | None]]"  # see `Factorization.error, agreement`


@dataclass(frozen=True)
class Factorization:
    """What became of each layer, and what the whole network gained.

    Attributes:
        layers: a row for each layer that was considered, in the model's order.
        skipped: layers that have no factors, with the reason.
        solver, exact: how factors were found.
        recipe: of the network with its chains; `quantize` takes it for the float network with chains.
        cost_before, cost_after: of the network with all layers dense in the recipe's formats, and as it is now.
        budget: the most that it may cost, in figures; None without a budget.
        error, agreement: of the outputs on the held-out samples, against the float network; see
            `lowbit.objectives`. `agreement` is None where outputs are no class scores.
        recalibrated: whether new BatchNorm statistics were kept; None if none were asked for.
    """

    layers: tuple[FactorizedLayer, ...]
    skipped: Mapping[str, str]
    solver: Solver
    exact: bool
    recipe: Recipe
    cost_before: Cost
    cost_after: Cost
    budget: tuple[CostName, float] | None
    error: float
    agreement: float | None
    recalibrated: bool | None

    @property
    def choices(self) -> dict[str, str]:
        """What each layer became: `factorize` takes it as `choices`, and then does the same again."""
        return {glob.escape(row.name): row.choice for row in self.layers}

    def __str__(self) -> str:
        chains = [row for row in self.layers if row.kind]
        bops = self.cost_after.bops / max(self.cost_before.bops, 1)
        size = self.cost_after.weight_bytes / max(self.cost_before.weight_bytes, 1)
        close = f"agreement {self.agreement:.1%}" if self.agreement is not None else f"relative error {self.error:.4f}"
        way = "as published" if self.exact else f"by {self.solver}"
        return (
            f"{len(chains)} of {len(self.layers)} layers factorized {way}: {bops:.1%} of the BOPs and {size:.1%} of "
            f"the bytes of the dense layers; {close} with the float network on held-out inputs"
        )


def factorize(
    model: nn.Module,
    recipe: Recipe,
    batches: Batches,
    choices: Mapping[str, str] | Sequence[str] | str | None = None,
    *,
    budget: Budget | None = None,
    tolerance: float | None = None,
    layers: Sequence[str] | None = None,
    exact: bool = False,
    solver: Solver = "descent",
    middle: str = "int8",
    refit: bool = True,
    fold: bool = True,
    norms: Batches | None = None,
    compare: bool = False,
    measured_costs: MeasuredCosts | None = None,
    classes: bool = True,
    jobs: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, Factorization]:
    """A calibrated student of `model` in which layers are chains of low-bit factors, and what came of it. No labels.

    Without a budget, every layer takes the one choice there is. With a budget, or a tolerance, each takes the one of
    several that serves the network best.

    Args:
        model: a trained float network; it is not changed.
        recipe: formats of all layers, by their names in `model`: those of a layer are also those of its factors.
        batches: inputs in any batch form; a few hundred samples, which are held in memory. Every eighth batch is held
            out to measure by, where there are several.
        choices: what layers can become, see `lowbit.methods.factorization.choices`; by default ``2x``, and a list with
            dense layers in it under a budget or a tolerance. Or what each becomes, by globs over names, the last match
            wins: `Factorization.choices` of another call repeats what that one found.
        budget: the most the network may cost; ``like`` names a choice.
        tolerance: instead, how much may be lost: the cheapest network (in BOPs) is looked for that predicts the same
            as the float network for all but this share of the held-out samples; or, where outputs are no class scores,
            whose relative squared error is at most that.
        layers: globs over names, without which it is all convolutions with a kernel but the model's first
            layer, and under a budget or a tolerance all layers but the first and the last.
        exact: as published: start by error-preserving correction, AO-ADMM with one scale for each factor until it
            stops, all factors in the same format, and nothing fitted to data but BatchNorms, with `norms`. Minutes a
            layer. `solver`, `middle` and `refit` have no effect.
        solver: ``descent``, ``admm`` (polished by descent) or ``rounding``.
        middle: format of the depthwise weights, which are a few percent of all.
        refit: fit the last and the depthwise layer of each chain to the float network's outputs.
        fold: fold BatchNorms in the end. Keep them for `distill`.
        norms: inputs as training sees them, augmented; BatchNorm statistics are then set anew on them, and kept if
            that brings the outputs closer. Plain inputs would harm a network that was trained on augmented ones.
        compare: find the errors of all solvers, not only that of the one in use.
        measured_costs: what a runtime was measured to take, for budgets of ``latency`` and ``file``, in networks of
            `chain_variants`.
        classes: whether outputs `[N, C]` are class scores; False for embeddings and quantities.
        jobs: layers at once, in processes of their own (joblib; `joblib.parallel_config` chooses a cluster).
        folder: keeps factors; called again with the same arguments, they are read from there.
        seed: draws where factors start.
        progress: show bars on a terminal.

    Raises:
        RecipeError: choices, budgets or names that do not exist or fit.
        FormatError: no format has that name.
        LayerError: nothing can be factorized, a rank that a layer cannot have, or weights that are not finite.
        CalibrationError: too few samples.
    """
    if solver not in SOLVERS:
        raise RecipeError(f"solver {solver!r} is unknown; expected {', '.join(SOLVERS)}")
    if exact:
        solver, middle, refit = "published", "", False
    several = budget is not None or tolerance is not None
    wanted = _wanted(choices, budget, tolerance, layers)
    held, calibrating = _divided(batches)
    samples = sum(map(size_of, {id(batch): batch for batch in (*held, *calibrating)}.values()))
    ground = ground_of(model, recipe, [*wanted] if layers is None and isinstance(choices, Mapping) else layers, several)
    options, skipped = options_of(ground, wanted, weight_format(middle) if middle else None)
    chains = {(name, option.chain): None for name, several in options.items() for option in several if option.chain}
    solved = _solved(ground, [*chains], solver, seed, compare, jobs, None if folder is None else Path(folder), progress)

    def build(picks: Mapping[str, Option]) -> tuple[nn.Module, dict[str, Refitted]]:
        factors = {name: solved[name, option.chain] for name, option in picks.items() if option.chain}
        return _built(ground, picks, factors, calibrating, samples, solver, refit, progress)

    target = outputs_of(ground.twin, held)
    scores = classes and all(are_classes(one) and one.dim() == 2 for one in target)

    def closeness(student: nn.Module) -> tuple[float, float | None]:
        """The relative error of the outputs, and their agreement where they are class scores."""
        outputs = outputs_of(student, held)
        return relative_error(outputs, target), agreement_of(outputs, target, classes=True) if scores else None

    prices = priced(ground.twin, ground.rules, options, calibrating[0], measured_costs)
    limit, picks = None, {name: several[0] for name, several in options.items()}
    if budget is not None or tolerance is not None:
        losses = prices.losses(ground.twin, solved, calibrating, classes=classes, seed=seed, progress=progress)
        if budget is not None:
            limit, picks = allocated(prices, losses, budget)
        else:
            assert tolerance is not None
            picks = _cheapest(prices.front(losses), build, closeness, tolerance)
    student, refitted = build(picks)
    recalibrated = None if norms is None else _recalibrated(student, [*norms], calibrating, closeness)
    if fold and isinstance(student, fx.GraphModule):
        graph.fold_batchnorm(student)
        note(student, folded=True)
    chosen = ", ".join(dict.fromkeys(option.name for option in picks.values()))
    note(student, f"factorize({chosen}, solver={solver}, refit={refit}, seed={seed})")
    cost_after = costs.cost(student, calibrating[0])
    factors = {name: solved[name, option.chain] for name, option in picks.items() if option.chain}
    found = Factorization(
        rows_of(picks, ground.twin, ground.rules, factors, refitted, prices.dense, cost_after, measured_costs),
        skipped,
        solver,
        exact,
        ground.recipe_of(picks, solver),
        prices.dense,
        cost_after,
        None if limit is None else (limit.prices.cost, limit.most),
        *closeness(student),
        recalibrated,
    )
    return student, found


def _wanted(
    choices: Mapping[str, str] | Sequence[str] | str | None,
    budget: Budget | None,
    tolerance: float | None,
    layers: Sequence[str] | None,
) -> dict[str, list[Choice]]:
    """The choices by glob."""
    several = budget is not None or tolerance is not None
    if budget is not None and tolerance is not None:
        raise RecipeError("got budget and tolerance, which both say how far to go; give one of them")
    if tolerance is not None and not 0 < tolerance < 1:
        raise RecipeError(f"tolerance is {tolerance}, expected a share between 0 and 1, such as 0.01")
    if isinstance(choices, Mapping):
        if several or layers is not None:
            raise RecipeError("choices say what each layer becomes; leave budget, tolerance and layers out")
        return {pattern: [Choice.parse(name)] for pattern, name in choices.items()}
    if choices is None:
        choices = CHOICES if several else "2x"
    names = [choices] if isinstance(choices, str) else list(choices)
    if several and names and not any(Choice.parse(name).dense for name in names):
        raise RecipeError(f"choices {', '.join(names)} leave no layer dense; add a format, such as int4")
    if not several and len(names) != 1:
        raise RecipeError(f"got {len(names)} choices and nothing to choose by; give a budget or a tolerance")
    return {"*": [Choice.parse(name) for name in dict.fromkeys(names)]}


def _divided(batches: Batches) -> tuple[list[Batch], list[Batch]]:
    """What is held out, and what calibrates; a single batch does both."""
    every = list(batches)
    if not every:
        raise CalibrationError("factorize got no batches; give at least one (a list, not a used-up generator)")
    return (every, every) if len(every) == 1 else (every[::8], [batch for i, batch in enumerate(every) if i % 8])


def _solved(
    ground: Ground,
    wanted: Sequence[tuple[str, Chain | None]],
    solver: Solver,
    seed: int,
    compare: bool,
    jobs: int | None,
    folder: Path | None,
    progress: bool,
) -> dict[tuple[str, Chain | None], Solution]:
    """The factors of each layer and chain, in parallel."""
    if folder is not None:
        folder = folder / "factors"
        folder.mkdir(parents=True, exist_ok=True)

    def task(name: str, chain: Chain) -> tuple[list[Tensor], Chain]:
        return tensors_of(ground.layer(name), chain.kind), chain

    calls = (delayed(solve)(*task(n, c), solver, seed, compare, folder) for n, c in wanted if c is not None)
    results = Parallel(n_jobs=jobs, return_as="generator")(calls)
    found: dict[tuple[str, Chain | None], Solution] = {}
    with counted(len(wanted), "factorize", show=progress) as advance:
        for (name, chain), solution in zip(wanted, results, strict=True):
            found[name, chain] = solution
            advance(name)
    return found


def _built(
    ground: Ground,
    picks: Mapping[str, Option],
    factors: Mapping[str, Solution],
    batches: list[Batch],
    samples: int,
    solver: Solver,
    refitting: bool,
    progress: bool,
) -> tuple[nn.Module, dict[str, Refitted]]:
    """The student with these chains, calibrated, and fitted to the float network."""
    chains = {name: option.chain for name, option in picks.items() if option.chain}
    student = quantize(ground.with_chains(picks), ground.recipe_of(picks, solver), fold=False)
    for name, chain in chains.items():
        for part, found in placed(ground.layer(name), chain.kind, factors[name].groups).items():
            layer = student.get_submodule(f"{name}.{part}")
            assert isinstance(layer, Quantized)
            quantizer = layer.weight_quantizer
            assert isinstance(quantizer, Quantizer)
            layer.layer.get_parameter("weight").data.copy_(found.weight)
            quantizer.scale.data.copy_(found.scale if quantizer.scale.dim() else found.scale[0])
            layer.layer.get_parameter("weight").data.copy_(layer.weight.detach())  # to the last bit on the grid
    student = working_copy(student)  # layers that share a weight are rounded each for itself
    calibrate(student, batches, progress=progress)
    if not refitting:
        return student, {}
    formats = {name: chain.weights for name, chain in chains.items()}
    refitted = refit_last(student, ground.twin, formats, batches, samples=samples, progress=progress)
    calibrate(student, batches, progress=progress)
    return student, refitted


def _recalibrated(student: nn.Module, norms: list[Batch], batches: list[Batch], closeness: _Closeness) -> bool:
    """Set BatchNorm statistics anew, in place, if that brings the outputs closer; whether it did."""
    (before, _), kept = closeness(student), copy.deepcopy(student.state_dict())
    reestimate(student, norms)
    calibrate(student, batches, progress=False)
    if closeness(student)[0] < before:
        return True
    student.load_state_dict(kept)
    return False


def _cheapest(
    front: Sequence[Picks],
    build: Callable[[Picks], tuple[nn.Module, dict[str, Refitted]]],
    closeness: _Closeness,
    tolerance: float,
) -> Picks:
    """The cheapest picks of a front, from cheap to dear, that lose no more than is tolerated; by bisection.

    Raises:
        LayerError: not even the dearest do.
    """

    def lost(picks: Picks) -> float:
        error, agreement = closeness(build(picks)[0])
        return error if agreement is None else 1 - agreement

    low, high = 0, len(front) - 1
    if (least := lost(front[high])) > tolerance:
        raise LayerError(
            f"the dearest of the choices loses {least:.4f}, and {tolerance:g} is tolerated; add choices of more bits, "
            "raise the tolerance, or give more samples"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if lost(front[middle]) <= tolerance else (middle + 1, high)
    return front[high]
