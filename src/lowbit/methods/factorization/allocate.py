"""Which layer becomes what, under a budget: chains of several rates and formats against dense layers of several bits.

Each option of each layer has a price and a predicted loss, and the knapsack is solved exactly (`lowbit.allocation`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from lowbit import allocation, costs, graph, layers
from lowbit.allocation import Assignment, Budget, CostName, Limit, Losses, Prices, limit_of
from lowbit.batches import Batch
from lowbit.costs import Cost, LayerCost, MeasuredCosts
from lowbit.errors import LowbitError, RecipeError
from lowbit.formats import Block, Format, parse
from lowbit.granularity import PerChannel, PerTensor
from lowbit.layers import output_granularity
from lowbit.methods.factorization.chains import MIDDLE, chain_of, product_of
from lowbit.methods.factorization.choices import dense_weight, losses_of
from lowbit.methods.factorization.factors import Chain, Solution
from lowbit.quantizer import Quantizer
from lowbit.recipe import Rule

_POINTS = 17  # of a front that is searched


@dataclass(frozen=True)
class Option:
    """What a layer can become: a chain, or for None the dense layer; `rule` has its formats."""

    name: str
    chain: Chain | None
    rule: Rule


Options = Mapping[str, Sequence[Option]]
Picks = dict[str, Option]


@dataclass(frozen=True)
class Priced:
    """Options and what each costs, by kind of cost; `dense` is the network with no chain at all.

    `slower` are chains that were measured to take as long as a dense option of their layer or longer, by the numbers of
    layer and option.
    """

    options: Options
    prices: Mapping[CostName, Prices]
    dense: Cost
    slower: frozenset[tuple[int, int]] = frozenset()

    def picks(self, assignment: Assignment) -> Picks:
        """The options that an assignment chooses."""
        return {name: several[n] for (name, several), n in zip(self.options.items(), assignment, strict=True)}

    def losses(
        self,
        twin: nn.Module,
        solved: Mapping[tuple[str, Chain | None], Solution],
        batches: Sequence[Batch],
        *,
        classes: bool,
        seed: int,
        progress: bool,
    ) -> list[list[float]]:
        """What the outputs are predicted to lose with each option, in the order of the options."""
        weights = {}
        for name, several in self.options.items():
            layer = twin.get_submodule(name)
            weights[name] = [
                product_of(layer, one.chain.kind, solved[name, one.chain].groups)
                if one.chain
                else dense_weight(name, layer, one.rule)
                for one in several
            ]
        return [*losses_of(twin, weights, batches, classes=classes, seed=seed, progress=progress).values()]

    def front(self, losses: Losses) -> list[Picks]:
        """The best options for a ladder of budgets in BOPs, cheapest first."""
        every = allocation.front(losses, self.prices["bops"], points=_POINTS)
        return [self.picks(assignment) for assignment in every]


def priced(
    twin: nn.Module,
    rules: Mapping[str, Rule | None],
    options: Options,
    example: Batch,
    measured: MeasuredCosts | None = None,
) -> Priced:
    """What the options cost.

    Args:
        twin: the float network.
        rules: of all its layers.
        options: by layer.
        example: a batch to count with.
        measured: what a runtime takes, by layer and the name of an option.

    Raises:
        RecipeError: the measurement lacks an option, or a layer as it stays.
    """
    counted = _counted(twin, example)
    dense = {name: one.in_formats(rules[name]) for name, one in counted.items()}
    chains = _counted_chains(twin, options, example)
    rows: dict[tuple[str, str], list[LayerCost]] = {}
    for name, several in options.items():
        for option in several:
            if (chain := option.chain) is None:
                rows[name, option.name] = [counted[name].in_formats(option.rule)]
            else:
                rows[name, option.name] = [
                    one.in_formats(option.rule, chain.middle if part == MIDDLE else chain.weights)
                    for part, one in chains[name, chain].items()
                ]
    fixed = [row for name, row in dense.items() if name not in options]
    prices: dict[CostName, Prices] = {
        "bops": _prices("bops", options, rows, fixed),
        "bytes": _prices("bytes", options, rows, fixed),
    }
    whole, slower = Cost(tuple(dense.values()), sum(p.numel() for p in twin.parameters())), frozenset[tuple[int, int]]()
    if measured is not None:
        prices |= _measured(options, rules, measured)
        slower = _slower(options, measured, prices["latency"])
    return Priced(options, prices, whole, slower)


@dataclass(frozen=True)
class _Counted:
    """A float layer and its costs."""

    row: LayerCost
    layer: nn.Module
    folds: bool  # a BatchNorm into it in the end, which gives each channel a scale

    def in_formats(self, rule: Rule | None, weights: Format | None = None) -> LayerCost:
        """The costs in the formats of a rule; with `weights`, as a layer of a chain with weights in that format."""
        row, granularity = self.row, PerChannel() if weights or rule is None else rule.granularity
        if self.folds and isinstance(granularity, PerTensor):
            granularity = PerChannel()
        weights = weights or (rule.weights if rule else None)
        if rule and rule.activations:
            bits = rule.activations.bits
            row = replace(
                row, activation_bits=bits, activation_bytes=row.activation_bytes * bits // row.activation_bits
            )
        if weights is None:
            return row
        shape = costs.shape_of(self.layer)
        holds = Quantizer(weights, shape, granularity=output_granularity(self.layer, granularity), symmetric=True)
        code_bits = weights.bits_with_scale if isinstance(weights, Block) else weights.bits
        return replace(row, weight_bits=code_bits, weight_bytes=costs.stored_bytes(shape, holds))


def _counted(model: nn.Module, example: Batch) -> dict[str, _Counted]:
    rows = costs.cost(model, example).layers
    folded = graph.batchnorms_to_fold(model) if isinstance(model, fx.GraphModule) else {}
    return {row.name: _Counted(row, model.get_submodule(row.name), row.name in folded) for row in rows}


def _counted_chains(twin: nn.Module, options: Options, example: Batch) -> dict[tuple[str, Chain], dict[str, _Counted]]:
    """The layers of every chain, counted in float networks that have one chain for each layer at a time."""
    waiting = {name: list(dict.fromkeys(o.chain for o in several if o.chain)) for name, several in options.items()}
    found: dict[tuple[str, Chain], dict[str, _Counted]] = {}
    while any(waiting.values()):
        turn = {name: several.pop() for name, several in waiting.items() if several}
        model = copy.deepcopy(twin)
        for name, chain in turn.items():
            layer = model.get_submodule(name)
            model = layers.replace(model, layer, chain_of(layer, chain.kind, chain.rank))
        for whole, one in _counted(model, example).items():
            name, _, part = whole.rpartition(".")
            if name in turn:
                found.setdefault((name, turn[name]), {})[part] = one
    return found


def _prices(
    cost: CostName, options: Options, rows: Mapping[tuple[str, str], Sequence[LayerCost]], fixed: Sequence[LayerCost]
) -> Prices:
    def of(several: Sequence[LayerCost]) -> float:
        return float(sum(row.bops if cost == "bops" else row.weight_bytes for row in several))

    table = tuple(tuple(of(rows[name, one.name]) for one in several) for name, several in options.items())
    return Prices(cost, table, of(fixed))


def _measured(options: Options, rules: Mapping[str, Rule | None], found: MeasuredCosts) -> dict[CostName, Prices]:
    """Milliseconds and file bytes.

    What belongs to no layer is shared by all that have options, as `MeasuredCosts.total_ms` does; layers of the table
    that have none take what they take as they are.
    """
    for name, several in options.items():
        for one in several:
            if one.name not in found.milliseconds.get(name, {}):
                reason = f" ({found.refused[one.name]})" if one.name in found.refused else ""
                raise RecipeError(
                    f"the measured costs lack layer {name!r} in {one.name!r}{reason}; measure all of its choices, or "
                    "leave this one out"
                )
    share = 1 / len(options)
    times = tuple(
        tuple(found.milliseconds[name][one.name] + share * found.rest_ms[one.name] for one in several)
        for name, several in options.items()
    )
    fixed = sum(_as_it_stays(name, rules.get(name), found) for name in found.milliseconds if name not in options)
    sizes = tuple(tuple(float(found.file_bytes[n][one.name]) for one in several) for n, several in options.items())
    return {"latency": Prices("latency", times, fixed), "file": Prices("file", sizes, 0.0)}


def _as_it_stays(name: str, rule: Rule | None, found: MeasuredCosts) -> float:
    """Milliseconds of a layer without options, of which the columns of other dense choices tell almost as well."""
    times = found.milliseconds[name]
    if (own := dense_ms(times, rule)) is not None:
        return own
    dense = [ms for choice, ms in times.items() if _dense_format(choice) is not None]
    if not dense:
        raise RecipeError(
            f"the measured costs have layer {name!r}, which stays dense, only as a chain; measure a dense choice too"
        )
    return sum(dense) / len(dense)


def dense_ms(times: Mapping[str, float], rule: Rule | None) -> float | None:
    """Of a layer's milliseconds by choice, that of the dense layer in a rule's weights; None if it was not measured."""
    if rule is None or rule.weights is None:
        return None
    alike = (ms for choice, ms in times.items() if _dense_format(choice) == rule.weights)
    return times.get(str(rule.weights), next(alike, None))


def _dense_format(choice: str) -> Format | None:
    """The format of a dense choice; None for chains, and for names of tables that were made for something else."""
    try:
        return parse(choice)
    except LowbitError:
        return None


def allocated(options: Priced, losses: Losses, budget: Budget) -> tuple[Limit, Picks]:
    """The options of least predicted loss within a budget.

    Where the budget is a latency, a chain that takes as long as one of the layer's dense options or longer is out.

    Raises:
        RecipeError: a cost that was not measured, a choice that does not exist, or a budget that cannot be met or needs
            no choice.
    """
    if budget.cost not in options.prices:
        raise RecipeError(f"budget {budget.cost}: nothing was measured; pass measured_costs, or budget bops")
    prices, alike = options.prices[budget.cost], None
    if budget.like is not None:
        names = [[one.name for one in several] for several in options.options.values()]
        if not all(budget.like in several for several in names):
            raise RecipeError(f"budget {budget.cost}: not all layers have choice {budget.like!r}; name another")
        alike = prices.total(tuple(several.index(budget.like) for several in names))
    out = options.slower if budget.cost == "latency" else frozenset()
    kept = [[n for n in range(len(row)) if (d, n) not in out] for d, row in enumerate(losses)]

    def left(table: Losses) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row[n] for n in numbers) for row, numbers in zip(table, kept, strict=True))

    limit, rest = limit_of(budget, prices, alike), replace(prices, table=left(prices.table))
    if (least := rest.extent[0]) > limit.most:
        raise RecipeError(
            f"budget {budget.cost}: {limit.most:.6g} is below {least:.6g}, the cheapest without chains that are slower "
            "than dense layers; raise it, or add cheaper choices"
        )
    found = allocation.solve(left(losses), [replace(limit, prices=rest)])
    return limit, options.picks(tuple(ns[n] for ns, n in zip(kept, found, strict=True)))


def _slower(options: Options, found: MeasuredCosts, prices: Prices) -> frozenset[tuple[int, int]]:
    """Chains not faster than the fastest dense option of their layer, alone or with their share of the rest."""
    alone = [[found.milliseconds[name][one.name] for one in several] for name, several in options.items()]
    slower: set[tuple[int, int]] = set()
    for table in (alone, prices.table):
        for d, (several, row) in enumerate(zip(options.values(), table, strict=True)):
            dense = min((ms for one, ms in zip(several, row, strict=True) if one.chain is None), default=float("inf"))
            slower |= {
                (d, n) for n, (one, ms) in enumerate(zip(several, row, strict=True)) if one.chain and ms >= dense
            }
    return frozenset(slower)
