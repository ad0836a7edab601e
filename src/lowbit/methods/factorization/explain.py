"""What became of each layer, and where a chain is not worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lowbit.costs import Cost, LayerCost, MeasuredCosts
from lowbit.methods.factorization.allocate import Option, dense_ms
from lowbit.methods.factorization.factors import Solution
from lowbit.methods.factorization.refit import Refitted
from lowbit.recipe import Rule


@dataclass(frozen=True)
class Spent:
    """What a layer, or the layers of its chain, cost for one sample; `activation_bytes` is the most that one holds."""

    parameters: int
    macs: int
    bops: int
    weight_bytes: int
    activation_bytes: int
    milliseconds: float | None


@dataclass(frozen=True)
class FactorizedLayer:
    """A layer and what became of it.

    Attributes:
        name, shape: of the layer, and its weight.
        choice: what it became, by name; `kind` is empty and `rank` 0 for a dense layer.
        errors: |W - W^| / |W| of the float factors and of each solver that was tried, by name.
        refitted: error of the layer's outputs inside the network, before and after its last factor was fitted to data.
        before, after: costs as a dense layer in the recipe's formats, and now.
        advice: where a chain is not worth it, why; else empty.
    """

    name: str
    shape: tuple[int, ...]
    choice: str
    kind: str
    rank: int
    errors: Mapping[str, float]
    refitted: Refitted | None
    before: Spent
    after: Spent
    advice: str


def rows_of(
    picks: Mapping[str, Option],
    twin: nn.Module,
    rules: Mapping[str, Rule | None],
    factors: Mapping[str, Solution],
    refitted: Mapping[str, Refitted],
    before: Cost,
    after: Cost,
    measured: MeasuredCosts | None,
) -> tuple[FactorizedLayer, ...]:
    """A row for each layer that was considered."""
    found = []
    dense_rows = {row.name: row for row in before.layers}
    for name, option in picks.items():
        weight = twin.get_submodule(name).get_parameter("weight")
        times = measured.milliseconds.get(name, {}) if measured else {}
        now = [row for row in after.layers if row.name == name or row.name.rpartition(".")[0] == name]
        was = _spent([dense_rows[name]], dense_ms(times, rules[name]))
        spent = _spent(now, times.get(option.name))
        chain = option.chain
        bits = _bits_a_weight(now, weight.numel())
        found.append(
            FactorizedLayer(
                name,
                tuple(weight.shape),
                option.name,
                chain.kind if chain else "",
                chain.rank if chain else 0,
                dict(factors[name].errors) if chain else {},
                refitted.get(name),
                was,
                spent,
                _advice(was, spent, bits, min(row.activation_bits for row in now)) if chain else "",
            )
        )
    return tuple(found)


def _spent(rows: list[LayerCost], milliseconds: float | None) -> Spent:
    return Spent(
        sum(row.parameters for row in rows),
        sum(row.macs for row in rows),
        sum(row.bops for row in rows),
        sum(row.weight_bytes for row in rows),
        max((row.activation_bytes for row in rows), default=0),
        milliseconds,
    )


def _bits_a_weight(rows: list[LayerCost], weights: int) -> float:
    """Bits of the chain for each weight of the layer that it replaces."""
    return sum(row.parameters * row.weight_bits for row in rows) / max(weights, 1)


def _advice(was: Spent, now: Spent, bits: float, activation_bits: int) -> str:
    told = []
    if activation_bits < 8:
        told.append(f"activations of {activation_bits} bits inside the chain lose much; give them 8")
    if was.milliseconds is not None and now.milliseconds is not None and now.milliseconds >= was.milliseconds:
        told.append(f"slower than the dense layer ({now.milliseconds:.3g} and {was.milliseconds:.3g} ms)")
    if now.bops >= was.bops:
        larger = now.macs * was.parameters > 1.2 * was.macs * now.parameters
        why = ": the first factor runs at the input's size" if larger else ""
        told.append(f"no fewer BOPs than the dense layer{why}")
    if bits >= 3:
        told.append(f"{bits:.1f} bits a weight, where a dense layer of {math.floor(bits)} bits is as good and simpler")
    elif bits > 2:
        told.append(f"{bits:.1f} bits a weight: compare with a dense layer of {math.ceil(bits)} bits")
    if now.activation_bytes > was.activation_bytes:
        told.append(f"holds {now.activation_bytes / max(was.activation_bytes, 1):.1f} times the activations")
    return "; ".join(told)
