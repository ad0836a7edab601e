"""What factorizations start from: the traced float network, the layers that were chosen, and what each can become."""

from __future__ import annotations

import copy
import fnmatch
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from lowbit import graph, layers
from lowbit.errors import LayerError, RecipeError
from lowbit.formats import Format
from lowbit.granularity import PerChannel, PerTensor
from lowbit.layers import CONVOLUTIONS, TRANSPOSED, Quantized, turn_off_fused_paths, weighted_layers, why_not
from lowbit.methods.factorization.allocate import Option
from lowbit.methods.factorization.chains import MIDDLE, chain_of, kinds_of, tensors_of
from lowbit.methods.factorization.choices import Choice
from lowbit.methods.factorization.factors import Chain, Solver
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe, Rule


@dataclass(frozen=True)
class Ground:
    """What a factorization starts from: the float network, traced and with its BatchNorms, and each layer's rule."""

    twin: nn.Module
    rules: Mapping[str, Rule | None]
    glue: Format | None
    chosen: tuple[str, ...]

    def layer(self, name: str) -> nn.Module:
        """A layer of the float network."""
        return self.twin.get_submodule(name)

    def rule(self, name: str) -> Rule:
        """The rule of a layer that has one."""
        rule = self.rules[name]
        assert rule is not None  # layers without one are not chosen
        return rule

    def with_chains(self, picks: Mapping[str, Option]) -> nn.Module:
        """A copy of the float network with these chains, whose weights are still to be placed."""
        model = copy.deepcopy(self.twin)
        for name, option in picks.items():
            if (chain := option.chain) is not None:
                made = chain_of(self.layer(name), chain.kind, chain.rank)
                model = layers.replace(model, model.get_submodule(name), made)
        return model

    def recipe_of(self, picks: Mapping[str, Option], solver: Solver) -> Recipe:
        """The recipe of the network with these chains."""
        found = []
        for name, rule in self.rules.items():
            if rule is None:
                continue
            option = picks.get(name)
            if option is None or option.chain is None:
                found.append(replace(rule if option is None else option.rule, match=glob.escape(name)))
                continue
            shared = solver == "published" and len(tensors_of(self.layer(name), option.chain.kind)) == 1
            granularity = PerTensor() if shared else PerChannel(0)
            for part, _ in chain_of(self.layer(name), option.chain.kind, option.chain.rank).named_children():
                format = option.chain.middle if part == MIDDLE else option.chain.weights
                found.append(
                    replace(rule, match=glob.escape(f"{name}.{part}"), weights=format, granularity=granularity)
                )
        return Recipe(tuple(found), self.glue)


def ground_of(model: nn.Module, recipe: Recipe, wanted: Sequence[str] | None, several: bool) -> Ground:
    """Trace a copy of the float network, and choose layers.

    Args:
        model: the float network.
        recipe: formats of its layers.
        wanted: globs over names; by default all convolutions with a kernel but the first layer, or where there are
            `several` choices all layers but the first and the last.
        several: whether a layer has more than one choice.

    Raises:
        RecipeError: a glob or a rule matches no layer.
        LayerError: there is no layer to choose, one has weights that are not finite, or the model is itself a layer.
    """
    if any(isinstance(m, (Quantized, Quantizer)) for m in model.modules()):
        raise LayerError("the model is quantized already; factorize the float model it was made from")
    twin = _traced(model)
    weighted = weighted_layers(twin)
    rules = {n: None if why_not(weighted[n]) else rule for n, rule in recipe.resolve(weighted).items()}
    names = [*weighted]
    chosen = _usual(weighted, several) if wanted is None else _matching(names, wanted)
    if not chosen:
        others = [name for name in names if kinds_of(weighted[name])]
        raise LayerError(
            f"{type(model).__name__} has no convolution with a kernel behind its first layer, and those alone are "
            f"factorized without being named; name layers, such as layers: {others[1:3] or others or names}"
        )
    if "" in chosen:
        raise LayerError(f"the model is itself a layer, {type(model).__name__}; put it into an nn.Sequential")
    for name in chosen:
        if not why_not(weighted[name]):
            _check_weight(name, weighted[name].get_parameter("weight"))
    return Ground(twin, rules, recipe.glue, tuple(chosen))


def _traced(model: nn.Module) -> nn.Module:
    """A copy of a float network, traced where it can be, with BatchNorms as they are kept for training."""
    twin = copy.deepcopy(model).eval()
    turn_off_fused_paths(twin)
    traced = graph.trace(twin)
    if isinstance(traced, fx.GraphModule):
        graph.keep_batchnorm(traced)
        return traced
    twin = copy.deepcopy(model).eval()  # tracing may have left something in the first copy
    turn_off_fused_paths(twin)
    return twin


def _usual(weighted: Mapping[str, nn.Module], several: bool) -> list[str]:
    """All layers but the first and the last, or without `several` choices the convolutions among all but the first.

    Convolutions that have no factors are among them, so that their users are told.
    """
    if several:
        return [*weighted][1:-1]
    convolutions = (*CONVOLUTIONS, *TRANSPOSED)
    return [n for n in [*weighted][1:] if isinstance(weighted[n], convolutions) and "svd" not in kinds_of(weighted[n])]


def _matching(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise RecipeError(f"layers: {pattern!r} matches no layer; names are {', '.join(names[:5])} ...")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.dtype != torch.float32:
        got = str(weight.dtype).removeprefix("torch.")
        raise LayerError(f"layer {name!r}: its weight is {got}, expected float32; call model.float() first")
    if not bool(torch.isfinite(weight).all()):
        raise LayerError(f"layer {name!r}: its weight holds NaN or infinite values; load intact weights")


def options_of(
    ground: Ground, wanted: Mapping[str, Sequence[Choice]], middle: Format | None
) -> tuple[dict[str, list[Option]], dict[str, str]]:
    """What each layer can become, and the reason for each that cannot become a chain.

    Raises:
        LayerError: none can, or a rank that a layer cannot have.
    """
    options: dict[str, list[Option]] = {}
    skipped: dict[str, str] = {}
    for name in ground.chosen:
        rule, layer = ground.rules[name], ground.layer(name)
        if obstacle := why_not(layer):
            skipped[name] = obstacle
            continue
        if rule is None or rule.weights is None:
            skipped[name] = "the recipe leaves its weights float"
            continue
        pattern = next(one for one in reversed([*wanted]) if fnmatch.fnmatchcase(name, one))
        found, reason = [], ""
        for choice in wanted[pattern]:
            if choice.dense:
                found.append(Option(choice.name, None, replace(rule, weights=choice.weights)))
                continue
            chain = choice.chain(name, layer, rule, middle)
            if isinstance(chain, Chain):
                found.append(Option(choice.name, chain, rule))
            else:
                reason = chain
        if any(option.chain for option in found) or (found and pattern != "*"):
            options[name] = found
        else:
            skipped[name] = reason or "none of the choices is a chain"
    chains = [option for several in options.values() for option in several if option.chain]
    all_dense = all(choice.dense for several in wanted.values() for choice in several)  # repeats what was found
    if not options or not (chains or all_dense):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*skipped.items()][:3])
        raise LayerError(f"no layer can be factorized: {reasons or 'all choices are dense'}")
    return options, skipped
