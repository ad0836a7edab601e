"""The parts of a factorization against plain reconstruction, brute force and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowbit.formats import Format, Int, parse
from lowbit.methods.factorization import factors as solutions
from lowbit.methods.factorization import tensors
from lowbit.methods.factorization.chains import (
    FIRST,
    LAST,
    MIDDLE,
    Kind,
    Ranks,
    chain_of,
    formats_of,
    kinds_of,
    placed,
    ranks_of,
    tensors_of,
    why_no_factors,
)
from lowbit.methods.factorization.factors import Chain, Solver, solve
from lowbit.methods.factorization.solvers import GridFactors, admm, descent, polished, rounded, searched_scale
from lowbit.methods.factorization.starts import corrected, float_factors
from lowbit.methods.factorization.tensors import balanced, descend, gram, relative_error, ridged, targets

SHAPES: list[tuple[int, ...]] = [(6, 5, 4), (7, 5)]
FORMATS: list[Format] = [Int(4), Int(2), Int(8, narrow=True), parse("e2m1")]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whole(factors: Sequence[Tensor]) -> Tensor:
    """X^ by its definition."""
    return torch.einsum("or,ir,sr->ois" if len(factors) == 3 else "or,ir->oi", *factors)


def factors_of(shape: Sequence[int], rank: int, seed: int) -> list[Tensor]:
    return [random(seed + mode, size, rank) for mode, size in enumerate(shape)]


def structured(seed: int, *shape: int) -> Tensor:
    """Of rank 3, and noise."""
    return whole(factors_of(shape, 3, seed)) + 0.1 * random(seed + 9, *shape)


def on_grid(values: Tensor, format: Format) -> bool:
    return bool(torch.isin(values, format.values().double()).all())


def never_rises(errors: Sequence[float]) -> bool:
    return all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))


# Least squares of one factor


@pytest.mark.parametrize("shape", SHAPES)
def test_the_quadratic_of_a_mode_is_the_squared_error(shape: tuple[int, ...]) -> None:
    x, found = random(1, *shape), factors_of(shape, 3, 2)
    error = float((x - whole(found)).square().sum())
    for mode, factor in enumerate(found):
        f, g = targets(x, found, mode), gram(found, mode)
        quadratic = x.square().sum() - 2 * (factor * f).sum() + (factor @ g * factor).sum()
        assert float(quadratic) == pytest.approx(error)
    assert relative_error(x, found) == pytest.approx((error / float(x.square().sum())) ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_and_gram_are_those_of_the_khatri_rao_product(shape: tuple[int, ...]) -> None:
    x, found = random(1, *shape), factors_of(shape, 3, 2)
    for mode in range(len(shape)):
        first, *more = (factor for i, factor in enumerate(found) if i != mode)
        product = torch.einsum("ar,br->abr", first, more[0]).flatten(0, 1) if more else first
        torch.testing.assert_close(targets(x, found, mode), x.movedim(mode, 0).flatten(1) @ product)
        torch.testing.assert_close(gram(found, mode), product.mT @ product)
    assert float(gram(found).sum()) == pytest.approx(float(whole(found).square().sum()))


def test_errors_at_the_ends() -> None:
    found = factors_of((6, 5, 4), 3, 0)
    zeros = [torch.zeros_like(factor) for factor in found]
    assert relative_error(whole(found), found) == pytest.approx(0, abs=1e-7)
    assert relative_error(whole(found), zeros) == 1
    assert relative_error(whole(zeros), zeros) == 0
    assert relative_error(whole(zeros), found) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_balanced_factors_are_the_same_components(shape: tuple[int, ...]) -> None:
    found = factors_of(shape, 3, 4)
    found[0][:, 1] = 0
    even = balanced([1e5 * found[0], *found[1:]])
    torch.testing.assert_close(whole(even), 1e5 * whole(found))
    first, *others = (factor.norm(dim=0) for factor in even)
    assert float(first[1]) == 0
    for norms in others:
        torch.testing.assert_close(norms, first)


def test_a_ridge_makes_every_system_solvable() -> None:
    g = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(ridged(g, 0.5).diagonal(), torch.tensor([2.5, 0.5], dtype=torch.float64))
    torch.linalg.cholesky(ridged(torch.zeros_like(g), 0.5))


# Coordinate descent


def objective(z: Tensor, g: Tensor, f: Tensor) -> float:
    return float((z @ g * z).sum() - 2 * (z * f).sum())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(FORMATS))
def test_descent_stays_on_the_grid_and_never_raises_the_objective(seed: int, rank: int, format: Format) -> None:
    columns = random(seed, 4, rank)  # singular for a rank above 4
    g, f = columns.mT @ columns, 5 * random(seed + 1, 3, rank)
    z = format.round(3 * random(seed + 2, 3, rank).float()).double()
    objectives = [objective(z, g, f)]
    for sweeps in (1, 2, 5):
        found = descend(z, g, f, format, sweeps=sweeps)
        assert on_grid(found, format)
        objectives.append(objective(found, g, f))
    assert all(b <= a + 1e-6 * (1 + abs(a)) for a, b in itertools.pairwise(objectives))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_independent_coordinates_are_solved_in_one_sweep(format: Format) -> None:
    curvature, f = random(0, 5).square() + 0.1, 4 * random(1, 3, 5)
    found = descend(torch.zeros(3, 5, dtype=torch.float64), torch.diag(curvature), f, format)
    grid = format.values().double()
    best = (curvature[:, None] * grid.square() - 2 * f[:, :, None] * grid).argmin(2)
    assert torch.equal(found, grid[best])


def test_descent_leaves_its_argument_and_columns_without_curvature_alone() -> None:
    z, g = torch.ones(2, 2, dtype=torch.float64), torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    found = descend(z, g, torch.full_like(z, 3.0), Int(4))
    assert found.tolist() == [[1, 3], [1, 3]]
    assert z.tolist() == [[1, 1], [1, 1]]


def test_descent_stops_when_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    g, f = ridged(gram([random(0, 6, 4)]), 0.1), 5 * random(1, 3, 4)
    settled = descend(torch.zeros(3, 4, dtype=torch.float64), g, f, Int(4), sweeps=100)
    nearest, columns = tensors.nearest, []

    def counted(x: Tensor, format: Format) -> Tensor:
        columns.append(x)
        return nearest(x, format)

    monkeypatch.setattr(tensors, "nearest", counted)
    assert torch.equal(descend(settled, g, f, Int(4), sweeps=100), settled)
    assert len(columns) == 4


# Float factors


def test_the_float_factors_of_a_matrix_are_the_best() -> None:
    x = random(0, 9, 7)
    singular = torch.linalg.svdvals(x)
    for rank in (1, 3, 6):
        found = float_factors(x, rank)
        optimum = float(singular[rank:].norm() / singular.norm())  # Eckart-Young
        assert float((x - whole(found)).norm() / x.norm()) == pytest.approx(optimum)


def test_float_factors_are_balanced_better_than_nothing_and_drawn_by_the_seed() -> None:
    x = structured(0, 8, 6, 9)
    one, same, other = (float_factors(x, 4, seed=seed) for seed in (1, 1, 2))
    assert relative_error(x, one) < 0.2
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    first, *others = (factor.norm(dim=0) for factor in one)
    for norms in others:
        torch.testing.assert_close(norms, first)


def test_float_factors_grow_with_the_tensor() -> None:
    x = structured(0, 8, 6, 9)
    for factor, large in zip(float_factors(x, 4), float_factors(1e6 * x, 4), strict=True):
        torch.testing.assert_close(large, 100 * factor, rtol=1e-6, atol=1e-6)


def test_a_ridge_keeps_components_small() -> None:
    x = random(3, 8, 8, 9)
    plain, ridge = (float_factors(x, 12, ridge=ridge) for ridge in (0.0, 1e-2))
    assert sizes(ridge) < sizes(plain) / 2
    assert relative_error(x, ridge) < 0.6


def sizes(factors: Sequence[Tensor]) -> float:
    """Sum over the components of the product of their columns' squared norms."""
    return float(gram(factors).diagonal().sum())


@pytest.mark.parametrize(("shape", "rank"), [((8, 8, 9), 12), ((6, 5, 9), 4), ((9, 7), 4)])
def test_corrected_factors_are_smaller_with_the_same_error(shape: tuple[int, ...], rank: int) -> None:
    x = random(3, *shape)
    near = zip(float_factors(x, rank, ridge=0.0), factors_of(shape, rank, 5), strict=True)
    start = [factor + 0.01 * noise for factor, noise in near]
    found = corrected(x, start)
    error = relative_error(x, start)
    assert relative_error(x, found) <= error * (1 + 1e-9)
    assert relative_error(x, found) == pytest.approx(error, rel=1e-6)
    assert sizes(found) < sizes(start)


# Factors on a grid


@pytest.mark.parametrize("per_component", [True, False])
def test_rounded_factors_are_each_next_to_the_float_one(per_component: bool) -> None:
    start = factors_of((6, 5, 4), 3, 0)
    found = rounded(start, [Int(4)] * 3, per_component=per_component)
    for factor, values, scale in zip(start, found.values, found.scales, strict=True):
        assert scale.shape == ((3,) if per_component else ())
        assert on_grid(values, Int(4))
        assert torch.equal(values, (factor / scale).round().clamp(-8, 7))
    assert found.component_scales.shape == (3,)
    torch.testing.assert_close(
        whole([found.values[0] * found.component_scales, *found.values[1:]]), whole(found.factors)
    )


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from(FORMATS), st.booleans())
def test_the_error_falls_from_pass_to_pass(
    seed: int, shape: tuple[int, ...], format: Format, per_component: bool
) -> None:
    x, formats = structured(seed, *shape), [format] * len(shape)
    start = rounded(float_factors(x, 3, iterations=5), formats, per_component=per_component)
    errors = [relative_error(x, start.factors)]
    for passes in (1, 2, 3, 5):
        found = polished(x, start, formats, passes=passes, tolerance=0.0)
        errors.append(relative_error(x, found.factors))
        assert all(on_grid(values, format) for values in found.values)
        assert all(scale.shape == (3,) and bool((scale > 0).all()) for scale in found.scales)
    assert never_rises(errors)


@pytest.mark.parametrize("format", [Int(4), parse("e2m1")], ids=str)
@pytest.mark.parametrize("make", [random, structured])
@pytest.mark.parametrize("shape", [(12, 10, 9), (14, 10)])
def test_descent_is_better_than_rounding(format: Format, make: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    x, formats = make(0, *shape), [format] * len(shape)
    start = float_factors(x, 5)
    baseline = relative_error(x, rounded(start, formats).factors)
    for rounds, passes in ((4, 60), (0, 60), (1, 0)):
        found = descent(x, start, formats, rounds=rounds, passes=passes)
        assert relative_error(x, found.factors) < baseline
        assert all(on_grid(values, format) for values in found.values)
        assert all(bool((scale > 0).all()) for scale in found.scales)


def test_scales_stay_positive_where_every_component_is_empty() -> None:
    columns = [torch.tensor(column, dtype=torch.float64) for column in ([1.0, 2.0], [1.0, -1.0], [1.0, 1.0])]
    ones = tuple(torch.ones(2, 1, dtype=torch.float64) for _ in columns)  # which are orthogonal to the tensor
    start = GridFactors(ones, (torch.ones(1, dtype=torch.float64),) * 3)
    found = polished(torch.einsum("o,i,s->ois", *columns), start, [Int(4)] * 3)
    assert found.component_scales.tolist() == [1]
    assert not whole(found.factors).any()


def test_each_factor_has_a_format_of_its_own() -> None:
    x, formats = structured(0, 8, 6, 9), [Int(2), Int(4), Int(8)]
    found = descent(x, float_factors(x, 4), formats)
    assert all(on_grid(values, format) for values, format in zip(found.values, formats, strict=True))
    assert float(found.values[2].abs().max()) > 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", [Int(4), Int(8), parse("e2m1")], ids=str)
def test_a_tensor_of_rank_one_on_the_grid_is_recovered(shape: tuple[int, ...], format: Format) -> None:
    columns = [format.round(3 * random(seed, size, 1).float()).double() for seed, size in enumerate(shape)]
    for column in columns:
        column[0] = format.max
    x, formats = 0.0123 * whole(columns), [format] * len(shape)
    start = float_factors(x, 1)
    assert relative_error(x, descent(x, start, formats).factors) < 1e-6
    near = admm(x, start, formats)  # a scale out of 24
    assert relative_error(x, near.factors) < 2e-2


@pytest.mark.parametrize("seed", range(4))
def test_components_on_the_grid_are_recovered(seed: int) -> None:
    columns = [(3 * factor).round().clamp(-7, 7) for factor in factors_of((12, 10, 9), 3, seed)]
    for factor in columns:
        factor[range(3), range(3)] = 7
    x = whole(columns)
    assert relative_error(x, descent(x, float_factors(x, 3), [Int(4)] * 3).factors) < 1e-6


@pytest.mark.parametrize("shape", [(12, 10, 9), (14, 10)])
@pytest.mark.parametrize("per_component", [True, False])
@pytest.mark.parametrize("format", [Int(4), parse("e2m1")], ids=str)
def test_admm_is_on_the_grid_and_no_worse_than_its_start(
    shape: tuple[int, ...], per_component: bool, format: Format
) -> None:
    x, formats = random(0, *shape), [format] * len(shape)
    start = float_factors(x, 5)
    errors = [relative_error(x, rounded(start, formats, per_component=per_component).factors)]
    for outer in (0, 1, 3, 10):
        found = admm(x, start, formats, per_component=per_component, outer=outer)
        errors.append(relative_error(x, found.factors))
        assert all(on_grid(values, format) for values in found.values)
        assert all(scale.shape == ((5,) if per_component else ()) for scale in found.scales)
    assert errors[0] == errors[1]
    assert never_rises(errors)  # the best of the first ones is never lost
    assert errors[-1] < errors[0]
    assert relative_error(x, polished(x, found, formats).factors) <= errors[-1] + 1e-9


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("points", [1, 24, 200])
@pytest.mark.parametrize("per_component", [True, False])
def test_the_searched_scale_is_that_of_a_loop_over_ranges(format: Format, points: int, per_component: bool) -> None:
    x = random(7, 11, 4) * torch.tensor([1.0, 1e-3, 20.0, 0.0], dtype=torch.float64)
    found = searched_scale(x, format, points=points, per_component=per_component)
    assert found.shape == ((4,) if per_component else ())
    for column, scale in zip(x.T if per_component else [x], found.reshape(-1), strict=True):
        reach = max(float(column.abs().max()), 1e-150) * torch.linspace(0.2, 1.2, points, dtype=torch.float64)
        tried = [float(2 * t / (format.max - format.min)) for t in reach]
        errors = [float((format.round(column / s) * s - column).square().sum()) for s in tried]
        assert float(scale) == pytest.approx(tried[errors.index(min(errors))])


# Chains

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(10, 7), (3, 4, 10)),
    "linear without bias": (lambda: nn.Linear(10, 12, bias=False), (3, 10)),
    "stride and padding": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 11, 9)),
    "tuples": (lambda: nn.Conv2d(6, 8, (3, 5), (1, 2), (0, 2), (2, 1)), (2, 6, 11, 9)),
    "same": (lambda: nn.Conv2d(8, 12, (3, 5), padding="same", dilation=2, bias=False), (2, 8, 11, 13)),
    "valid": (lambda: nn.Conv2d(8, 12, 3, padding="valid"), (2, 8, 7, 6)),
    "reflect": (lambda: nn.Conv2d(6, 8, (3, 5), padding=(1, 2), padding_mode="reflect"), (2, 6, 7, 9)),
    "circular": (lambda: nn.Conv2d(6, 8, 3, 2, padding=1, padding_mode="circular"), (2, 6, 7, 9)),
    "replicate": (lambda: nn.Conv2d(6, 8, 3, padding="same", padding_mode="replicate"), (2, 6, 7, 9)),
    "groups": (lambda: nn.Conv2d(8, 12, 3, padding=1, dilation=2, groups=2), (2, 8, 9, 9)),
    "groups without bias": (lambda: nn.Conv2d(12, 24, 3, 2, groups=3, bias=False), (2, 12, 9, 9)),
    "1x1": (lambda: nn.Conv2d(8, 12, 1, stride=2, padding=1), (2, 8, 11, 9)),
    "1x1 in groups": (lambda: nn.Conv2d(8, 12, 1, groups=2), (2, 8, 5, 5)),
    "1x3": (lambda: nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), (1, 8, 5, 9)),
    "one dimension": (lambda: nn.Conv1d(6, 8, 5, 3, padding=2, padding_mode="circular"), (2, 6, 30)),
    "one dimension 1": (lambda: nn.Conv1d(6, 8, 1), (2, 6, 9)),
    "three dimensions": (lambda: nn.Conv3d(4, 6, 3, (1, 2, 1), (1, 0, 1)), (1, 4, 5, 6, 5)),
    "three dimensions in groups": (lambda: nn.Conv3d(8, 8, 2, dilation=(1, 2, 1), groups=2), (1, 8, 4, 5, 4)),
}
CASES = [(name, kind) for name, (make, _) in LAYERS.items() for kind in kinds_of(make())]


def layer_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name][0]()


def solved(layer: nn.Module, kind: Kind, rank: int, per_component: bool = True) -> list[GridFactors]:
    """INT4 factors of each group, 8 bits between."""
    formats = formats_of(kind, Int(4), Int(8))
    groups = tensors_of(layer, kind)
    starts = [float_factors(x, rank // len(groups), iterations=10) for x in groups]
    if per_component:
        return [descent(x, start, formats, passes=2) for x, start in zip(groups, starts, strict=True)]
    return [rounded(start, formats, per_component=False) for start in starts]


def weight_of(layer: nn.Module, kind: Kind, groups: Sequence[GridFactors]) -> Tensor:
    """The weight that the factors of all groups stand for."""
    shape = layer.get_parameter("weight").shape
    found = [whole(one.factors) for one in groups]
    if kind == "spatial":  # [(o, kw), (i, kh)]
        split = (shape[0] // len(found), shape[3], shape[1], shape[2])
        found = [x.reshape(split).permute(0, 2, 3, 1) for x in found]
    return torch.cat([x.reshape(-1, *shape[1:]) for x in found])


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_tensors_are_the_weight(name: str, kind: Kind) -> None:
    layer = layer_of(name)
    weight = layer.get_parameter("weight").detach()
    found = tensors_of(layer, kind)
    assert {x.dim() for x in found} == {3 if kind == "cp" else 2}
    ones = [GridFactors((x, torch.eye(x.shape[1]).double()), (torch.ones(()),) * 2) for x in found if x.dim() == 2]
    again = weight_of(layer, kind, ones) if ones else torch.cat(found).reshape(weight.shape)
    assert torch.equal(again, weight.double())


@pytest.mark.parametrize("per_component", [True, False])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_chain_is_the_layer_with_the_weight_of_the_factors(name: str, kind: Kind, per_component: bool) -> None:
    layer, shape = layer_of(name), LAYERS[name][1]
    rank = ranks_of(layer, kind).at(1.4)
    groups = solved(layer, kind, rank, per_component)
    chain = chain_of(layer, kind, rank)
    for part, found in placed(layer, kind, groups).items():
        weight = chain.get_submodule(part).get_parameter("weight")
        assert found.weight.shape == weight.shape
        weight.data.copy_(found.weight)
    x = torch.randn(shape)
    expected = torch.func.functional_call(layer, {"weight": weight_of(layer, kind, groups).float()}, (x,))
    assert float((chain(x) - expected).detach().abs().max()) < 1e-5 * float(expected.detach().abs().max())


@pytest.mark.parametrize("per_component", [True, False])
@pytest.mark.parametrize("name", ["linear", "groups", "three dimensions"])
def test_placed_values_are_grid_values_and_an_exact_scale_for_each_output(name: str, per_component: bool) -> None:
    layer = layer_of(name)
    for kind in kinds_of(layer):
        rank = ranks_of(layer, kind).at(1.4)
        found = placed(layer, kind, solved(layer, kind, rank, per_component))
        assert set(found) == {name for name, _ in chain_of(layer, kind, rank).named_children()}
        for part, one in found.items():
            assert on_grid(one.values, Int(8) if part == MIDDLE else Int(4))
            assert one.scale.shape == one.values.shape[:1]
            assert bool((one.scale > 0).all())
            for weight, values, scale in zip(one.weight, one.values, one.scale, strict=True):
                assert torch.equal(weight, values * scale)
            if not per_component:
                assert len(set(one.scale.tolist())) <= len(tensors_of(layer, kind))
        if per_component:
            assert torch.equal(found[LAST].scale, torch.ones_like(found[LAST].scale))


def test_the_first_outputs_of_a_cp_chain_share_one_norm_of_weights() -> None:
    layer = layer_of("groups")
    groups = solved(layer, "cp", 8)
    groups[1].values[1][:, 2] = 0  # an empty component is left empty
    norms = placed(layer, "cp", groups)[FIRST].weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0] * 6 + [0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "kinds"), [
        ("linear", ("svd",)), ("1x1", ("svd",)), ("one dimension 1", ("svd",)), ("one dimension", ("cp",)),
        ("three dimensions", ("cp",)), ("1x3", ("cp",)), ("same", ("cp", "spatial")), ("groups", ("cp", "spatial")),
    ],
)  # fmt: skip
def test_kinds(name: str, kinds: tuple[Kind, ...]) -> None:
    assert kinds_of(layer_of(name)) == kinds


@pytest.mark.parametrize(
    ("layer", "reason"), [
        (nn.Conv2d(8, 8, 3, groups=8), "it is depthwise: one channel a group has nothing to factorize"),
        (nn.Conv2d(8, 16, 3, groups=8), "it is depthwise"),
        (nn.Conv2d(8, 4, 3, groups=4), "it is depthwise"),
        (nn.ConvTranspose2d(8, 8, 3), "ConvTranspose2d has no chain of smaller layers"),
        (nn.Embedding(8, 8), "Embedding has no chain of smaller layers; only Linear and convolutions have"),
        (nn.ReLU(), "ReLU has no chain of smaller layers"),
        (nn.Conv2d(1, 8, 3), "it has one input or one output channel: a chain would be no smaller"),
        (nn.Linear(8, 1), "it has one input or one output channel"),
    ],
)  # fmt: skip
def test_layers_without_factors(layer: nn.Module, reason: str) -> None:
    assert why_no_factors(layer).startswith(reason)
    assert kinds_of(layer) == ()


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_of_zeros_has_no_factors(name: str) -> None:
    layer = layer_of(name)
    assert why_no_factors(layer) == ""
    nn.init.zeros_(layer.get_parameter("weight"))
    assert why_no_factors(layer) == "its weights, or those of a group, are all zero"


@pytest.mark.parametrize("name", ["groups", "1x1 in groups", "three dimensions in groups"])
def test_a_group_of_zeros_has_no_factors(name: str) -> None:
    layer = layer_of(name)
    with torch.no_grad():
        layer.get_parameter("weight").chunk(2)[1].zero_()
    assert why_no_factors(layer) == "its weights, or those of a group, are all zero"
    assert kinds_of(layer) == ()


@pytest.mark.parametrize(
    ("channels", "rate", "rank"), [(64, 2, 134), (64, 3, 89), (32, 1, 126), (32, 2, 63), (16, 2, 28), (512, 2, 1141)]
)
def test_published_ranks(channels: int, rate: float, rank: int) -> None:
    assert ranks_of(nn.Conv2d(channels, channels, 3), "cp").at(rate) == rank


@pytest.mark.parametrize(
    ("layer", "kind", "most"), [
        (nn.Linear(10, 7), "svd", 70 / 17),
        (nn.Conv2d(6, 8, (3, 5)), "cp", 6 * 8 * 15 / (6 + 8 + 15)),
        (nn.Conv2d(6, 8, (3, 5)), "spatial", 6 * 8 * 15 / (6 * 3 + 8 * 5)),
        (nn.Conv2d(8, 12, 3, groups=2), "cp", 2 * (4 * 6 * 9 / (4 + 6 + 9))),
        (nn.Conv2d(8, 12, 1, groups=2), "svd", 2 * (4 * 6 / (4 + 6))),
    ],
)  # fmt: skip
def test_formulas_of_ranks(layer: nn.Module, kind: Kind, most: float) -> None:
    ranks = ranks_of(layer, kind)
    assert ranks.parameters / ranks.component == pytest.approx(most)
    assert ranks.most == ranks.at(1) == math.floor(most / ranks.groups) * ranks.groups
    assert ranks.at(1e9) == 0


def test_a_rank_that_a_rate_meets_exactly_is_reached() -> None:
    assert 110 / 1.1 < 100
    assert Ranks(110 * 30, 30, 1).at(1.1) == 100


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_rate_is_the_share_of_parameters_that_is_left(name: str, kind: Kind) -> None:
    layer = layer_of(name)
    ranks, numel = ranks_of(layer, kind), layer.get_parameter("weight").numel()

    def parameters(rank: int) -> int:
        weights = [p for key, p in chain_of(layer, kind, rank).named_parameters() if key.endswith("weight")]
        return sum(weight.numel() for weight in weights)

    for rate in (1.0, 1.25, 2.0):
        rank = ranks.at(rate)
        assert rank % ranks.groups == 0
        assert rank == 0 or parameters(rank) <= numel / rate
        assert parameters(rank + ranks.groups) > numel / rate


def test_a_chain_takes_over_bias_mode_and_whether_it_is_trained() -> None:
    layer = layer_of("stride and padding").eval().requires_grad_(False)
    chain = chain_of(layer, "cp", 5)
    assert [name for name, _ in chain.named_parameters()] == [
        f"{FIRST}.weight", f"{MIDDLE}.weight", f"{LAST}.weight", f"{LAST}.bias",
    ]  # fmt: skip
    assert torch.equal(chain.get_parameter(f"{LAST}.bias"), layer.get_parameter("bias"))
    assert chain.get_parameter(f"{LAST}.bias") is not layer.get_parameter("bias")
    assert not any(part.training for part in chain.modules())
    assert not any(parameter.requires_grad for parameter in chain.parameters())


@pytest.mark.parametrize("name", ["linear", "groups"])
def test_a_chain_has_the_dtype_of_the_layer(name: str) -> None:
    layer = layer_of(name).double()
    for kind in kinds_of(layer):
        chain = chain_of(layer, kind, 4)
        assert {parameter.dtype for parameter in chain.parameters()} == {torch.float64}
        assert chain(torch.zeros(LAYERS[name][1], dtype=torch.float64)).dtype == torch.float64


# Solutions


def never(*_: object) -> None:
    raise AssertionError("solved again")


@pytest.mark.parametrize(
    ("kind", "shape", "solver"),
    [("svd", (8, 6), "admm"), ("cp", (8, 6, 9), "descent"), ("spatial", (24, 18), "rounding")],
)
def test_a_solution_is_read_again(
    kind: Kind, shape: tuple[int, ...], solver: Solver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, groups = Chain(kind, 6, Int(4), Int(8)), [structured(0, *shape), structured(1, *shape)]
    found = solve(groups, chain, solver, 0, False, tmp_path)
    monkeypatch.setattr(solutions, "_by", never)
    again = solve(groups, chain, solver, 0, False, tmp_path)
    assert [*again.errors.items()] == [*found.errors.items()]
    for one, other in zip(found.groups, again.groups, strict=True):
        for kept, read in zip((*one.values, *one.scales), (*other.values, *other.scales), strict=True):
            assert torch.equal(kept, read)
            assert kept.dtype == read.dtype


def test_something_else_is_solved_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, groups = Chain("svd", 3, Int(4), Int(8)), [structured(0, 8, 6)]
    solve(groups, chain, "rounding", 0, False, tmp_path)
    monkeypatch.setattr(solutions, "_by", never)
    solve(groups, chain, "rounding", 0, False, tmp_path)
    for other, format, solver, seed, compare in [
        (groups, Int(4), "rounding", 1, False),
        (groups, Int(3), "rounding", 0, False),
        (groups, Int(4), "descent", 0, False),
        (groups, Int(4), "rounding", 0, True),
        ([2 * groups[0]], Int(4), "rounding", 0, False),
    ]:
        with pytest.raises(AssertionError, match="solved again"):
            solve(other, Chain("svd", 3, format, Int(8)), solver, seed, compare, tmp_path)  # type: ignore[arg-type]
    for middle, rank in ((Int(4), 3), (Int(8), 2)):
        with pytest.raises(AssertionError, match="solved again"):
            solve(groups, Chain("svd", rank, Int(4), middle), "rounding", 0, False, tmp_path)
    with pytest.raises(AssertionError, match="solved again"):
        solve(groups, chain, "rounding", 0, False, None)


def test_the_same_numbers_in_other_shapes_are_solved_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, x = Chain("svd", 2, Int(4), Int(8)), structured(0, 8, 6)
    solve([x], chain, "rounding", 0, False, tmp_path)
    monkeypatch.setattr(solutions, "_by", never)
    for other in ([*x.chunk(2)], [x.reshape(6, 8)]):
        with pytest.raises(AssertionError, match="solved again"):
            solve(other, chain, "rounding", 0, False, tmp_path)


@pytest.mark.parametrize("solver", ["rounding", "admm", "descent"])
def test_solvers_are_compared(solver: Solver) -> None:
    chain, groups = Chain("cp", 10, Int(4), Int(8)), [structured(0, 8, 6, 9), 5 * structured(1, 8, 6, 9)]
    found = solve(groups, chain, solver, 0, True, None)
    assert set(found.errors) == {"float", "rounding", "admm", "descent"}
    assert found.errors["float"] < found.errors["descent"] < found.errors["rounding"]
    assert found.errors["admm"] < found.errors["rounding"]
    alone = solve(groups, chain, solver, 0, False, None)
    assert set(alone.errors) == {"float", "rounding", solver}
    assert alone.errors[solver] == found.errors[solver]
    lost = [x - whole(one.factors) for x, one in zip(groups, found.groups, strict=True)]
    assert found.errors[solver] == pytest.approx(float(torch.cat(lost).norm() / torch.cat(groups).norm()))
    assert all(values.shape[1] == 5 for one in found.groups for values in one.values)


def test_the_published_solver_has_a_scale_for_each_factor() -> None:
    found = solve([random(0, 5, 4, 3)], Chain("cp", 2, Int(4), Int(4)), "published", 0, False, None)
    assert all(scale.shape == () for scale in found.groups[0].scales)
    assert set(found.errors) == {"float", "rounding", "published"}


def test_a_chain_is_told_in_a_few_words() -> None:
    assert str(Chain("cp", 12, Int(4), Int(8))) == "cp of rank 12, int4"


@pytest.mark.parametrize("seed", range(8))
def test_the_ridge_does_not_pull_factors_to_zero(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randn(size, 1, generator=generator, dtype=torch.float64) for size in (12, 10, 9)]
    x = whole(columns)
    assert relative_error(x, float_factors(x, 1)) < 0.1
