"""Paths, codecs, tables and decoders against their formulas, brute force, exact fractions and a C compiler.

Numbers that a comment calls the sheet's were measured before any of this was written, with other code.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path as FilePath
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit.errors import DataError, RecipeError
from lowbit.methods.curves.arithmetic import STEPS, arithmetic, projected, why_no_arithmetic
from lowbit.methods.curves.codec import Codec, TransformName, range_of
from lowbit.methods.curves.decoders import Decoder, DecoderName
from lowbit.methods.curves.header import c_header
from lowbit.methods.curves.paths import (
    EVEN_MARGIN,
    DeepSnake,
    Fold,
    Hilbert,
    Moore,
    Path,
    Snake,
    parse_path,
    polyline,
    spacing,
)
from lowbit.methods.curves.tables import codes_of, confidence_table, learned_table, table_of, write_table
from lowbit.quantizer import OutputCodes

TOP = 255
ONE_OF_EACH: list[Path] = [Hilbert(), Snake(), Moore(), DeepSnake(4, 5), Fold(3)]
PATHS: list[Path] = [
    *ONE_OF_EACH,
    *(Hilbert(order) for order in (1, 2, 4)),
    *(Snake(rows, 0.1) for rows in (2, 3, 16)),
    *(Moore(order) for order in (1, 2)),
    *(DeepSnake(*shape, 0.05) for shape in ((2, 2), (3, 4), (5, 3))),
    Fold(1),
]


def sweep(count: int) -> Tensor:
    """Numbers spread evenly over 0 to 1, both ends left out."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def rounded(points: Tensor, bits: int = 8) -> Tensor:
    """The codes that a channel of so many bits has for points."""
    codes: Tensor = (points.clamp(0, 1) * (2**bits - 1)).round().long()
    return codes


def kinds(numbers: Tensor) -> int:
    """How many different ones there are."""
    return len(set(numbers.flatten().tolist()))


def every_pair(bits: int = 8) -> Tensor:
    codes = torch.arange(2**bits)
    return torch.stack(torch.meshgrid(codes, codes, indexing="ij"), -1)


@lru_cache(maxsize=32)
def nearest(path: Path, bits: int = 8) -> Tensor:
    """q of every pair of codes, not rounded to 65,536 steps: `[2^bits, 2^bits]` in float64."""
    rows = every_pair(bits).double() / (2**bits - 1)
    mirrored = isinstance(path, Hilbert) and path.order > 3  # to save time, half of it: left and right are alike
    rows = rows[: len(rows) // 2] if mirrored else rows
    found = torch.cat([polyline(path).project(few)[0] for few in rows.split_with_sizes([4] * (len(rows) // 4))])
    return torch.cat([found, 1 - found.flip(0)]) if mirrored else found


# Paths: lengths, spacings, nodes


@pytest.mark.parametrize(
    ("order", "length", "apart", "gained_bits"),
    [(1, 2.4, 0.80, 1.26), (2, 4.0, 0.267, 2.0), (3, 7.2, 0.114, 2.85), (4, 13.6, 0.053, 3.77), (5, 26.4, 0.026, 4.72)],
)
def test_hilbert_curves_are_as_long_and_as_wide_as_the_sheet_says(
    order: int, length: float, apart: float, gained_bits: float
) -> None:
    line = polyline(Hilbert(order))
    assert line.length == pytest.approx(length, rel=1e-12)
    assert line.length == pytest.approx((2**order + 1) * (1 - 2 * 0.1), rel=1e-12)
    assert line.spacing == pytest.approx(0.8 / (2**order - 1), rel=1e-12)
    assert line.spacing == pytest.approx(apart, abs=0.0007)
    assert math.log2(line.length) == pytest.approx(gained_bits, abs=0.006)
    as_a_snake = polyline(Snake(2**order, 0.1))
    assert (line.length, line.spacing) == pytest.approx((as_a_snake.length, as_a_snake.spacing), rel=1e-12)


@pytest.mark.parametrize(("order", "safe"), [(1, 0.114), (2, 0.038), (3, 0.016), (4, 0.0076), (5, 0.0037)])
def test_safe_noise_is_a_seventh_of_the_spacing(order: int, safe: float) -> None:
    assert spacing(Hilbert(order)) / 7 == pytest.approx(safe, rel=0.03)


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1, EVEN_MARGIN])
@pytest.mark.parametrize("rows", [2, 3, 8, 13, 40, 128])
def test_snakes_of_any_number_of_rows(rows: int, margin: float) -> None:
    line, width = polyline(Snake(rows, margin)), 1 - 2 * margin
    assert line.length == pytest.approx((rows + 1) * width, rel=1e-12)
    assert line.spacing == pytest.approx(width / (rows - 1), rel=1e-12)
    nodes = Snake(rows, margin).nodes()
    for row in range(rows):
        height = margin + row * width / (rows - 1)
        ends = [margin, 1 - margin] if row % 2 == 0 else [1 - margin, margin]
        expected = torch.tensor([[end, height] for end in ends], dtype=torch.float64)
        torch.testing.assert_close(nodes[2 * row : 2 * row + 2], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "layers"), [(2, 2), (3, 2), (8, 8), (5, 4), (4, 16)])
def test_deep_snakes(rows: int, layers: int) -> None:
    path = DeepSnake(rows, layers, 0.05)
    line = polyline(path)
    assert line.channels == 3
    assert line.length == pytest.approx(0.9 * (layers * (rows + 1) + 1), rel=1e-12)
    assert line.spacing == pytest.approx(min(0.9 / (rows - 1), 0.9 / (layers - 1)), rel=1e-12)
    assert len(path.nodes()) == 2 * rows * layers
    moved = path.nodes().diff(dim=0).abs() > 1e-9
    assert bool((moved.sum(1) == 1).all())  # no edge is slanted


def test_folds_go_to_one_in_one_channel_after_the_other() -> None:
    assert Fold(3).nodes().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert polyline(Fold(3)).length == 3
    assert spacing(Fold(3)) == math.inf


@pytest.mark.parametrize("order", range(1, 8))
@pytest.mark.parametrize("kind", [Hilbert, Moore])
def test_hilbert_and_moore_curves_take_unit_steps_and_visit_each_node_once(
    kind: type[Hilbert] | type[Moore], order: int
) -> None:
    nodes = kind(order, 0.1).nodes()
    steps = (nodes.diff(dim=0) * (2**order - 1) / 0.8).abs()
    torch.testing.assert_close(steps.amax(1), torch.ones(len(steps), dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(steps.amin(1).max()) < 1e-9
    places = ((nodes - 0.1) * (2**order - 1) / 0.8).round().long()
    visits = torch.zeros(2**order, 2**order, dtype=torch.long)
    for x, y in (places[:-1] if kind is Moore else places).tolist():
        visits[x, y] += 1
    assert bool((visits == 1).all())
    assert len(steps) == 4**order - (kind is Hilbert)
    assert torch.equal(nodes[0], nodes[-1]) == (kind is Moore)


@pytest.mark.parametrize("order", range(1, 6))
def test_a_moore_curve_is_as_long_as_its_edges(order: int) -> None:
    line = polyline(Moore(order, 0.1))
    assert line.length == pytest.approx(0.8 * 4**order / (2**order - 1), rel=1e-12)
    assert line.spacing == pytest.approx(0.8 / (2**order - 1), rel=1e-12)
    assert line.closed


@pytest.mark.parametrize(
    ("path", "first", "last"),
    [
        (Hilbert(1), (0.1, 0.1), (0.9, 0.1)),
        (Hilbert(4), (0.1, 0.1), (0.9, 0.1)),
        (Snake(8, 0.02), (0.02, 0.02), (0.02, 0.98)),
        (Snake(3, 0.02), (0.02, 0.02), (0.98, 0.98)),
        (DeepSnake(2, 2, 0.1), (0.1, 0.1, 0.1), (0.1, 0.1, 0.9)),
        (DeepSnake(3, 3, 0.1), (0.1, 0.1, 0.1), (0.9, 0.9, 0.9)),
        (Fold(2), (0.0, 0.0), (1.0, 1.0)),
    ],
    ids=str,
)
def test_ends_of_paths(path: Path, first: tuple[float, ...], last: tuple[float, ...]) -> None:
    line = polyline(path)
    ends = line.point(torch.tensor([0.0, 1.0, -0.3, 1.7], dtype=torch.float64))
    expected = torch.tensor([first, last, first, last], dtype=torch.float64)  # beyond its ends a path ends
    torch.testing.assert_close(ends, expected, rtol=0, atol=1e-12)


def test_the_second_order_is_hilberts_own() -> None:
    places = ((Hilbert(2).nodes() - 0.1) * 3 / 0.8).round().long().tolist()
    drawn = "00 10 11 01 02 03 13 12 22 23 33 32 31 21 20 30"
    assert places == [[int(node[0]), int(node[1])] for node in drawn.split()]


# Points and projections


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_step_in_q_is_a_step_of_that_length_or_less(path: Path) -> None:
    line = polyline(path)
    for step in (1e-2, 1e-3, 1e-5):
        q = uniform(0, 4000) * (1 - step)
        moved = (line.point(q + step) - line.point(q)).norm(dim=-1)
        assert float(moved.max()) <= line.length * step * (1 + 1e-6)
        assert float(moved.max()) > 0.9 * line.length * step  # along an edge it is that length


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_every_point_of_a_path_is_read_back(path: Path) -> None:
    line = polyline(path)
    ends = torch.tensor([0.0] if line.closed else [0.0, 1.0], dtype=torch.float64)
    q = torch.cat([sweep(20_000), ends, line.behind / line.length])
    found, distance = line.project(line.point(q))
    # within 1e-6 of a corner, the edge before it counts as just as near
    assert float((found - q).abs().max()) <= 1.01e-6 / line.length
    assert float(distance.max()) <= 1.01e-6
    assert float((found - q).abs().quantile(0.99)) < 1e-14


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(PATHS), st.lists(st.floats(-0.2, 1.2), min_size=3, max_size=3))
def test_no_point_of_a_path_is_nearer_than_the_projection(path: Path, coordinates: list[float]) -> None:
    line = polyline(path)
    many = (coordinates * (line.channels // 3 + 1))[: line.channels]
    point = torch.tensor(many, dtype=torch.float64)
    q, distance = line.project(point)
    assert 0 <= float(q) <= 1
    assert float((line.point(q) - point).norm()) == pytest.approx(float(distance), abs=1e-9)
    some = line.point(torch.linspace(0, 1, 3000, dtype=torch.float64))
    assert float(distance) <= float((some - point).norm(dim=-1).min()) + 2e-6


@pytest.mark.parametrize("path", ONE_OF_EACH, ids=str)
def test_shapes_and_types_are_kept(path: Path) -> None:
    line = polyline(path)
    for dtype in (torch.float32, torch.float64):
        points = line.point(torch.rand(2, 3, 4, dtype=dtype))
        assert points.shape == (2, 3, 4, line.channels)
        q, distance = line.project(points)
        assert q.shape == distance.shape == (2, 3, 4)
        assert points.dtype == q.dtype == distance.dtype == dtype


def test_large_batches_are_projected_in_parts_alike() -> None:
    line, points = polyline(Hilbert(5)), uniform(0, 5000, 2)  # 1,023 edges: 4,100 points in a part
    whole, _ = line.project(points)
    assert torch.equal(whole[4000:], line.project(points[4000:])[0])


def test_ties_go_to_the_earlier_edge() -> None:
    def q(path: Path, *point: float) -> float:
        return float(polyline(path).project(torch.tensor(point, dtype=torch.float64))[0])

    # along y = 0, up at x = 1, back along y = 1
    assert q(Snake(2, 0.0), 0.25, 0.5) == pytest.approx(0.25 / 3)
    assert q(Snake(2, 0.0), 0.25, 0.5 + 1e-5) == pytest.approx(2.75 / 3)
    assert q(Snake(2, 0.0), 0.5, 0.5) == pytest.approx(0.5 / 3)  # of three
    assert q(Snake(2, 0.0), 1.5, -0.5) == pytest.approx(1 / 3)  # of a corner
    assert q(Hilbert(1), 0.5, 0.5) == pytest.approx(0.5 / 3)
    assert q(Moore(1), 0.5, 0.5) == pytest.approx(0.5 / 4)
    # a row of the first layer, and the row above it
    assert q(DeepSnake(2, 2, 0.0), 0.25, 0.0, 0.5) == pytest.approx(0.25 / 7)


def test_closed_paths_go_round() -> None:
    line, q = polyline(Moore()), uniform(0, 100)
    for turns in (-2, -1, 1, 3):
        torch.testing.assert_close(line.point(q + turns), line.point(q), rtol=0, atol=1e-12)
    assert torch.equal(line.point(torch.ones(1)), line.point(torch.zeros(1)))
    for near, far in pairwise(line.point(torch.tensor([0.999, 0.9999, 1.0]))):
        assert float((near - far).norm()) < 0.01


def beside(path: Path) -> Tensor:
    """Points a fifth of the spacing off the middles of edges, and outside the corners of the square."""
    line = polyline(path)
    far = min(line.spacing, 1.0) / 5
    middles = line.starts + 0.4 * line.edges
    across = torch.roll(line.edges, 1, -1) / line.edges.norm(dim=1, keepdim=True)
    outside = torch.tensor([[-0.1] * line.channels, [1.2] * line.channels], dtype=torch.float64)
    return torch.cat([middles + far * across, middles - far * across, outside])


@pytest.mark.parametrize("path", [Hilbert(2), Snake(5), Moore(2), DeepSnake(3, 2), Fold(2)], ids=str)
def test_gradients_of_the_projection_are_finite_differences(path: Path) -> None:
    line, points, step = polyline(path), beside(path).requires_grad_(), 1e-6
    for output in (0, 1):
        (found,) = torch.autograd.grad(line.project(points)[output].sum(), points)
        assert bool((found != 0).any())
        for channel in range(line.channels):
            moved = torch.zeros_like(points)
            moved[:, channel] = step
            with torch.no_grad():
                up, down = (line.project(points + sign * moved)[output] for sign in (1, -1))
            torch.testing.assert_close(found[:, channel], (up - down) / (2 * step), rtol=0, atol=1e-7)


def test_gradients_of_points_are_the_direction_of_the_edge_and_on_the_path_they_are_finite() -> None:
    line, q = polyline(Hilbert(2)), uniform(0, 50).requires_grad_()
    points = line.point(q)
    (slope,) = torch.autograd.grad(points.sum(), q)  # the edges are parallel to the axes
    torch.testing.assert_close(slope.abs(), torch.full_like(slope, line.length), rtol=1e-9, atol=0)
    on = points.detach().requires_grad_()
    (of_distance,) = torch.autograd.grad(line.project(on)[1].sum(), on)
    assert bool(torch.isfinite(of_distance).all())


# Names


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hilbert3", Hilbert(3)),
        ("hilbert5@0.02", Hilbert(5, 0.02)),
        ("snake8", Snake(8)),
        ("snake40@0.1", Snake(40, 0.1)),
        ("snake13@0", Snake(13, 0.0)),
        ("moore4", Moore(4)),
        ("moore2@0.1", Moore(2, 0.1)),
        ("snake8x4", DeepSnake(8, 4)),
        ("snake3x5@0.05", DeepSnake(3, 5, 0.05)),
        ("fold4", Fold(4)),
    ],
)
def test_names_of_paths(name: str, path: Path) -> None:
    assert parse_path(name) == path
    assert str(path) == name
    assert parse_path(f" {name.upper()} ") == path


@given(
    st.one_of(
        st.builds(Hilbert, st.integers(1, 7), st.integers(0, 499).map(lambda m: m / 1000)),
        st.builds(Moore, st.integers(1, 7), st.integers(0, 499).map(lambda m: m / 1000)),
        st.builds(Snake, st.integers(2, 128), st.integers(0, 499).map(lambda m: m / 1000)),
        st.builds(DeepSnake, st.integers(2, 64), st.integers(2, 64), st.integers(0, 499).map(lambda m: m / 1000)),
        st.builds(Fold, st.integers(1, 64)),
    )
)
def test_names_are_read_back(path: Path) -> None:
    assert parse_path(str(path)) == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "snake",
        "8",
        "spiral3",
        "hilbert3x2",
        "moore3x3",
        "fold4@0.1",
        "fold2x2",
        "snake8@",
        "snake8@1.2.3",
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RecipeError, match=r"unknown; expected snake8, hilbert3, moore3|is no number"):
        parse_path(name)


@pytest.mark.parametrize("name", ["snake8@1", "snake8@-0.1", "hilbert9"])
def test_paths_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="expected"):
        parse_path(name)


@pytest.mark.parametrize("margin", [7 / 255, 1e-5, 0.1, 0.0])
def test_names_are_exact(margin: float) -> None:
    assert parse_path(str(Snake(8, margin))) == Snake(8, margin)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hilbert0", "order of 1 to 7"),
        ("hilbert8", "order of 1 to 7"),
        ("moore0", "order of 1 to 7"),
        ("snake1", "2 to 128 rows"),
        ("snake129", "2 to 128 rows"),
        ("snake8x1", "2 to 64 rows and layers"),
        ("snake65x2", "2 to 64 rows and layers"),
        ("fold0", "1 to 64 copies"),
        ("fold65", "1 to 64 copies"),
        ("snake8@0.5", "margin is 0.5"),
        ("hilbert3@0.9", "margin is 0.9"),
    ],
)
def test_paths_that_do_not_exist(name: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        parse_path(name)


# What paths buy


def gain(path: Path, noise: float, bits: int = 8, *, count: int = 4000) -> float:
    """RMSE of a direct output over that of a path, for q uniform and noise in each channel before it is rounded.

    The mean over the noise is not sampled but summed over every pair of codes with its probability, because rare flips
    make a sample's RMSE uncertain: that of hilbert5 at 0.005 by a tenth with 150,000 samples.
    """
    top, line = 2**bits - 1, polyline(path)
    if noise == 0:
        q = sweep(100_000)
        codes = rounded(line.point(q), bits)
        return rms(rounded(q, bits) / top - q) / rms(nearest(path, bits)[codes[:, 0], codes[:, 1]] - q)
    q = sweep(count)
    between = (torch.arange(top, dtype=torch.float64) + 0.5) / top

    def chances(values: Tensor) -> Tensor:
        """The probabilities of codes `[count, codes]`; those at the ends include what is clipped."""
        below = torch.special.ndtr((between - values[:, None]) / noise)
        none = torch.zeros(count, 1, dtype=torch.float64)
        return torch.cat([none, below, none + 1], 1).diff(dim=1)

    codes = torch.arange(top + 1, dtype=torch.float64) / top
    direct = (chances(q) * (codes - q[:, None]).square()).sum(1)
    (first, second), answers = (chances(values) for values in line.point(q).T), nearest(path, bits)
    mean, squares = ((first @ table * second).sum(1) for table in (answers, answers.square()))
    return float((direct.mean() / (squares - 2 * q * mean + q.square()).mean()).sqrt())


def sampled_gain(path: Path, noise: float, *, count: int = 150_000) -> float:
    """The same by sampling, without tables."""
    q, line = uniform(1, count), polyline(path)
    moved = line.point(q) + noise * normal(2, count, line.channels)
    found = arithmetic(Codec(0.0, 1.0, path), rounded(moved)).double() / STEPS
    return rms(rounded(q + noise * normal(3, count)) / TOP - q) / rms(found - q)


GAINS = {  # the sheet's: a row a noise, a column an order
    (8, 0.0): [2.40, 3.90, 7.11, 13.1, 25.1],
    (8, 0.002): [2.39, 3.95, 7.00, 12.8, 23.6],
    (8, 0.005): [2.38, 3.88, 6.76, 12.0, 0.58],
    (8, 0.01): [2.36, 3.78, 6.41, 0.99, 0.24],
    (8, 0.02): [2.32, 3.60, 1.62, 0.35, 0.25],
    (8, 0.05): [2.20, 1.81, 0.50, 0.39, 0.36],
    (6, 0.0): [2.4, 4.0, 6.8, 12.6, 21.5],
    (6, 0.01): [2.35, 3.8, 6.35, 0.95, 0.26],
    (4, 0.0): [2.4, math.nan, 6.4, 2.8, 1.5],  # NaN: see the test of half codes
    (4, 0.01): [2.15, 2.9, 4.8, 1.2, 0.49],
}
CELLS = [
    pytest.param(bits, order, noise, value, id=f"int{bits}-{noise}-p{order}")
    for (bits, noise), values in GAINS.items()
    for order, value in enumerate(values, 1)
    if not math.isnan(value)
]


@pytest.mark.parametrize(("bits", "order", "noise", "expected"), CELLS)
def test_hilbert_curves_buy_what_was_measured(bits: int, order: int, noise: float, expected: float) -> None:
    assert gain(Hilbert(order), noise, bits) == pytest.approx(expected, rel=0.05 if expected > 2 else 0.15)


@pytest.mark.parametrize(("rows", "noise"), [(8, 0.0), (8, 0.01), (16, 0.005), (4, 0.02)])
def test_sampling_finds_the_same(rows: int, noise: float) -> None:
    path = Snake(rows, 0.1)
    assert sampled_gain(path, noise) == pytest.approx(gain(path, noise), rel=0.015)


def test_on_half_codes_ties_decide() -> None:
    """In int4, hilbert2 lies on codes 1.5, 5.5, 9.5 and 13.5, so without noise all depends on how those are rounded.

    The sheet's 3.0 is what one of the sixteen ways gives; noise, which ends the ties, agrees with it.
    """
    q, line = sweep(20_000), polyline(Hilbert(2))
    points, direct = line.point(q) * 15, rms(rounded(q, 4) / 15 - q)
    found = []
    for way in range(16):
        codes = points.round()
        for i, tie in enumerate((1.5, 5.5, 9.5, 13.5)):
            codes = torch.where((points - tie).abs() < 1e-9, torch.full_like(codes, tie - 0.5 + (way >> i & 1)), codes)
        found.append(direct / rms(line.project(codes / 15)[0] - q))
    assert (min(found), max(found)) == pytest.approx((2.31, 3.38), abs=0.01)
    assert any(one == pytest.approx(3.0, rel=0.01) for one in found)
    assert gain(Hilbert(2), 0.0, 4) == pytest.approx(math.sqrt(8), rel=1e-3)  # half to even: here, all go up


def test_behind_the_cliff_nothing_is_left() -> None:
    assert gain(Hilbert(4), 0.005) > 10
    assert gain(Hilbert(4), 0.01) == pytest.approx(1, abs=0.1)
    assert gain(Hilbert(4), 0.02) < 0.5


def test_snakes_fall_less_far_than_hilbert_curves_of_their_length() -> None:
    for rows, order, noise, snake, hilbert in ((8, 3, 0.02, 2.3, 1.7), (16, 4, 0.01, 1.6, 1.0)):
        found = gain(Snake(rows, 0.1), noise), gain(Hilbert(order), noise)
        assert found == pytest.approx((snake, hilbert), rel=0.05)
        assert found[0] > 1.25 * found[1]
    # before the cliff they are alike
    assert gain(Snake(8, 0.1), 0.005) == pytest.approx(gain(Hilbert(3), 0.005), rel=0.05)


@pytest.mark.parametrize(
    ("noise", "rows", "snake", "narrow", "hilbert"),
    [(0.005, 21, 20.9, 14.7, 12.0), (0.01, 12, 10.9, 7.8, 6.4), (0.02, 7, 6.6, 4.4, 3.6), (0.05, 3, 3.5, 3.1, 2.2)],
)
def test_the_best_snake_is_better_than_the_best_hilbert_curve(
    noise: float, rows: int, snake: float, narrow: float, hilbert: float
) -> None:
    best = gain(Snake(rows, 0.02), noise)
    assert best == pytest.approx(snake, rel=0.07)
    of_paper = max(gain(Hilbert(order), noise) for order in range(1, 5))
    of_narrow = max(gain(Hilbert(order, 0.02), noise) for order in range(1, 5))
    assert (of_narrow, of_paper) == pytest.approx((narrow, hilbert), rel=0.05)
    assert best > 1.08 * of_narrow > 1.2 * of_paper


@pytest.mark.parametrize(("shape", "noise", "least"), [((16, 16), 0.002, 200), ((9, 9), 0.01, 75), ((5, 5), 0.02, 25)])
def test_three_channels_buy_much_more_than_two(shape: tuple[int, int], noise: float, least: float) -> None:
    assert sampled_gain(DeepSnake(*shape), noise) > least


# Round trips of codes


def deployed(codec: Codec, q: Tensor) -> Tensor:
    """q after its point was rounded and read by the projection."""
    return codec.line.project(rounded(codec.line.point(q), codec.bits).double() / codec.top)[0]


@pytest.mark.parametrize(("path", "measured"), [(Hilbert(3), 1.59e-4), (Snake(8, 0.1), 1.58e-4)], ids=str)
def test_round_trips_of_8_bit_codes(path: Path, measured: float) -> None:
    codec, q = Codec(0.0, 1.0, path), sweep(200_000)
    codes = rounded(codec.line.point(q))
    numbers = table_of(codec)[codes[:, 0], codes[:, 1]]
    found = numbers.double() / STEPS
    theory = 1 / TOP / (7.2 * math.sqrt(12))
    assert theory == pytest.approx(1.57e-4, abs=1e-6)
    assert rms(found - q) == pytest.approx(measured, rel=0.01)
    assert rms(found - q) == pytest.approx(theory, rel=0.02)
    assert float((found - q).abs().max()) < 1.6 / TOP / 7.2
    assert 1800 < kinds(numbers) < 1900
    exact = nearest(path)[codes[:, 0], codes[:, 1]]
    assert float((found - exact).abs().max()) <= 8e-6


@pytest.mark.parametrize(
    ("path", "bits"),
    [
        *((path, bits) for path in (Hilbert(1), Hilbert(2), Snake(5), Snake(16), Moore(2)) for bits in (6, 8)),
        (Moore(3), 8),  # in 6 bits its corners are but eight codes apart, and cost 5 % more
    ],
)
def test_an_error_is_that_of_a_channel_over_the_length(path: Path, bits: int) -> None:
    codec, q = Codec(0.0, 1.0, path, bits=bits), sweep(60_000)
    apart = codec.difference(deployed(codec, q)[:, None], q[:, None])
    step = 1 / codec.top / codec.line.length
    assert rms(apart) == pytest.approx(step / math.sqrt(12), rel=0.05)
    assert float(apart.abs().max()) < 1.6 * step


@pytest.mark.parametrize("copies", [1, 2, 4, 8, 64])
def test_a_fold_rounds_finer_by_its_copies(copies: int) -> None:
    codec, q = Codec(0.0, 1.0, Fold(copies)), sweep(100_000)
    codes = rounded(codec.line.point(q))
    numbers = arithmetic(codec, codes)
    assert bool((numbers.diff() >= 0).all())
    assert kinds(numbers) == copies * TOP + 1
    assert int(numbers[0]) == 0
    assert int(numbers[-1]) == STEPS
    found = codec.decode(codes.double() / TOP)[:, 0]
    assert rms(found - q) == pytest.approx(1 / TOP / copies / math.sqrt(12), rel=0.02)
    torch.testing.assert_close(numbers.double() / STEPS, found, rtol=0, atol=0.5 / STEPS + 1e-12)


def test_a_fold_is_the_mean_of_whatever_its_copies_say() -> None:
    codec = Codec(0.0, 1.0, Fold(4))
    points = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [2.0, 1.0, -0.5, 0.0]])
    share, distance = codec.project(points)
    assert share.flatten().tolist() == [0.375, 0.5, 0.5]
    assert float(distance[0]) == 0
    assert float(distance[1]) == pytest.approx(1.0)


# Tables and integer arithmetic


def exact_number(path: Path, codes: list[int], top: int, margin: Fraction) -> int:
    """The uint16 number of codes in exact fractions, by brute force over the edges."""
    bare: Path = Snake(path.rows, 0.0) if isinstance(path, Snake) else path
    if isinstance(path, DeepSnake):
        bare = DeepSnake(path.rows, path.layers, 0.0)
    assert isinstance(bare, (Snake, DeepSnake))
    # the corners are multiples of 1 / 60 for the rows and layers of the test below
    whole = (bare.nodes() * 60).round().long().tolist()
    nodes = [[margin + Fraction(at, 60) * (1 - 2 * margin) for at in node] for node in whole]
    point = [Fraction(code, top) for code in codes]
    behind, best, nearest_way = Fraction(0), None, Fraction(0)
    for start, end in pairwise(nodes):
        (axis,) = (i for i in range(len(start)) if start[i] != end[i])
        length = abs(end[axis] - start[axis])
        along = (point[axis] - start[axis]) * (1 if end[axis] > start[axis] else -1)
        along = min(max(along, Fraction(0)), length)
        sign = 1 if end[axis] > start[axis] else -1
        foot = [at + (sign * along if i == axis else 0) for i, at in enumerate(start)]
        apart = sum(((a - b) ** 2 for a, b in zip(point, foot, strict=True)), Fraction(0))
        if best is None or apart < best:
            best, nearest_way = apart, behind + along
        behind += length
    return math.floor(nearest_way / behind * STEPS + Fraction(1, 2))


@pytest.mark.parametrize(
    ("path", "bits", "margin"),
    [
        (Snake(2, 0.0), 4, Fraction(0)),
        (Snake(3, 1 / 15), 4, Fraction(1, 15)),
        (Snake(4, 3 / 30), 4, Fraction(3, 30)),
        (Snake(5, 1 / 30), 4, Fraction(1, 30)),
        (DeepSnake(2, 2, 0.0), 3, Fraction(0)),
        (DeepSnake(3, 2, 1 / 14), 3, Fraction(1, 14)),
        (DeepSnake(2, 3, 1 / 7), 3, Fraction(1, 7)),
        (DeepSnake(3, 3, 0.0), 3, Fraction(0)),
    ],
    ids=str,
)
def test_numbers_are_those_of_exact_fractions(path: Path, bits: int, margin: Fraction) -> None:
    codec = Codec(0.0, 1.0, path, bits=bits)
    codes = torch.cartesian_prod(*[torch.arange(2**bits)] * codec.channels)
    expected = [exact_number(path, one, codec.top, margin) for one in codes.tolist()]
    assert arithmetic(codec, codes).tolist() == expected
    assert projected(codec, codes).tolist() == expected


SNAKES = [Snake(2, 0.1), Snake(3, 0.0), Snake(), Snake(8, 0.1), Snake(13, 11 / 510), Snake(16), Snake(40, 1 / 510)]


@pytest.mark.parametrize("path", SNAKES, ids=str)
def test_integers_equal_the_projection_on_every_pair_of_codes(path: Snake) -> None:
    codec, codes = Codec(0.0, 1.0, path), every_pair()
    table = table_of(codec)
    assert table.shape == (256, 256)
    assert torch.equal(arithmetic(codec, codes).int(), table)
    # the table's numbers are the nearest ones to q, which no rounding to 65,535 steps was done to
    assert float((table.double() / STEPS - nearest(path)).abs().max()) <= 0.5 / STEPS + 1e-9
    assert int(table.min()) == 0
    assert int(table.max()) == STEPS


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_integers_equal_the_projection_at_fewer_bits(bits: int) -> None:
    codec = Codec(0.0, 1.0, Snake(5, 1.5 / (2**bits - 1)), bits=bits)
    assert table_of(codec).shape == (2**bits, 2**bits)
    assert torch.equal(arithmetic(codec, every_pair(bits)).int(), table_of(codec))


@pytest.mark.parametrize(
    ("rows", "layers", "margin"),
    [
        *((rows, layers, EVEN_MARGIN) for rows in (2, 3, 4) for layers in (2, 3, 4)),
        (8, 8, EVEN_MARGIN),
        (7, 6, 0.1),
        (6, 9, 0.0),
        (16, 16, 5.5 / 255),
    ],
)
def test_deep_integers_equal_the_projection(rows: int, layers: int, margin: float) -> None:
    codec = Codec(0.0, 1.0, DeepSnake(rows, layers, margin))
    codes = torch.randint(256, (6000, 3), generator=torch.Generator().manual_seed(rows + 10 * layers))
    on_ties = torch.tensor([[x, y, z] for x in (0, 5, 128, 250, 255) for y in (0, 5, 127) for z in (5, 127, 250)])
    codes = torch.cat([codes, on_ties, rounded(codec.line.point(uniform(1, 2000)))])
    assert torch.equal(arithmetic(codec, codes), projected(codec, codes))


def test_the_largest_deep_snake_does_not_overflow() -> None:
    codec = Codec(0.0, 1.0, DeepSnake(64, 64))
    codes = torch.randint(256, (300, 3), generator=torch.Generator().manual_seed(0))
    codes = torch.cat([codes, torch.tensor([[0, 0, 0], [255, 255, 255], [0, 255, 255], [5, 5, 250]])])
    assert torch.equal(arithmetic(codec, codes), projected(codec, codes))


def test_integers_find_hard_rows_without_error() -> None:
    """Points on a row's own codes, away from the turns: the sheet's integer snake inverts them exactly."""
    path = Snake(8)  # rows lie 35 codes apart, from 5 to 250
    codec = Codec(0.0, 1.0, path)
    row, step = torch.meshgrid(torch.arange(8), torch.arange(1, 245), indexing="ij")
    x = torch.where(row % 2 == 0, 5 + step, 250 - step)
    found = arithmetic(codec, torch.stack([x, 5 + 35 * row], -1))
    way = row * (245 + 35) + step
    assert torch.equal(found, (2 * STEPS * way + 2205) // (2 * 2205))
    assert kinds(found) == found.numel()


@pytest.mark.parametrize("path", [Hilbert(3), Moore(3), Snake(8, 0.02), Snake(8, 0.1), Fold(2)], ids=str)
def test_why_there_is_no_integer_arithmetic(path: Path) -> None:
    reason = why_no_arithmetic(path, 8)
    codec, codes = Codec(0.0, 1.0, path), torch.zeros(1, 2, dtype=torch.long)
    if isinstance(path, (Hilbert, Moore)):
        assert "only snakes and folds" in reason
    elif path == Snake(8, 0.02):
        assert "5.1 codes" in reason
        assert "half codes" in reason
    else:
        assert not reason
        assert arithmetic(codec, codes).tolist() == [0]
        return
    with pytest.raises(RecipeError) as raised:
        arithmetic(codec, codes)
    assert reason in str(raised.value)


def test_tables_are_for_two_channels() -> None:
    for path in (DeepSnake(), Fold(4), Fold(1)):
        with pytest.raises(RecipeError, match=r"is for two, use decoder='arithmetic'"):
            table_of(Codec(0.0, 1.0, path))
    with pytest.raises(RecipeError, match=r"is for two, use decoder='arithmetic'"):
        confidence_table(Codec(0.0, 1.0, DeepSnake()))
    with pytest.raises(RecipeError, match="always on the path"):
        confidence_table(Codec(0.0, 1.0, Fold(2)))


def test_decoders_refuse_what_does_not_fit() -> None:
    fold, snake = Codec(0.0, 1.0, Fold(2)), Codec(0.0, 1.0)
    for wrong in ({"table": torch.zeros(256, 256)}, {"confidence": True}, {"kind": "table"}):
        with pytest.raises(RecipeError):
            Decoder(fold, **wrong)
    for shape in ((5, 3), (5, 1), (5,)):
        with pytest.raises(DataError, match=r"expected \[N, 2 \* T"):
            Decoder(snake)(torch.rand(shape))


def test_arithmetic_tells_distances_too() -> None:
    codec, points = Codec(0.0, 1.0), torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    looked_up, computed = (Decoder(codec, kind=kind, confidence=True)(points) for kind in get_args(DecoderName))
    for table, own in zip(looked_up, computed, strict=True):
        torch.testing.assert_close(table, own, atol=0, rtol=0)


def test_targets_may_be_integers_and_batches_empty() -> None:
    assert float(Codec(0.5, 10.5).share(torch.tensor([[3]]))) == pytest.approx(0.25)
    codec = Codec(0.0, 1.0)
    assert codec.decode(torch.zeros(0, 2)).shape == (0, 1)
    assert torch.equal(learned_table(codec, torch.zeros(0, 2), torch.zeros(0, 1)), table_of(codec))
    for batches in ([torch.rand(5)], [torch.rand(0, 1)], [torch.rand(5, 2), torch.rand(5, 1)]):
        with pytest.raises(DataError, match=r"expected \[N, T, ...\]"):
            range_of(batches)
    with pytest.raises(DataError, match=r"expected \[N, 2 \* T, ...\]"):
        learned_table(codec, torch.zeros(5, 3), torch.zeros(5, 1))


def test_a_table_is_written_as_numpy_reads_it(tmp_path: FilePath) -> None:
    codec, file = Codec(0.0, 1.0, Hilbert(2)), tmp_path / "table.npy"
    write_table(codec, file)
    read = np.load(file, allow_pickle=False)
    assert read.dtype == np.uint16
    assert read.shape == (256, 256)
    np.testing.assert_array_equal(read, table_of(codec).numpy())
    write_table(codec, file, table=torch.full((256, 256), STEPS, dtype=torch.int32))
    assert int(np.load(file).min()) == STEPS
    assert [found.name for found in tmp_path.iterdir()] == ["table.npy"]


# Tables that are learned


def posterior_mean(codec: Codec, noise: float) -> Tensor:
    """E[q | codes] for q uniform and noise in each channel, `[codes, codes]`: the table of least squared error."""
    q, top = sweep(4000), codec.top
    between = (torch.arange(top, dtype=torch.float64) + 0.5) / top
    none = torch.zeros(len(q), 1, dtype=torch.float64)
    first, second = (
        torch.cat([none, torch.special.ndtr((between - values[:, None]) / noise), none + 1], 1).diff(dim=1)
        for values in codec.line.point(q).T
    )
    mass = first.T @ second
    return torch.where(mass > 1e-12, first.T @ (q[:, None] * second) / mass.clamp(min=1e-12), nearest(codec.path, 6))


def test_a_learned_table_has_the_least_squared_error() -> None:
    codec, noise, count = Codec(0.0, 1.0, Snake(8), bits=6), 0.035, 500_000
    q = uniform(0, count)
    learned = learned_table(codec, codec.line.point(q) + noise * normal(1, count, 2), q[:, None])
    fresh = uniform(2, 100_000)
    codes = rounded(codec.line.point(fresh) + noise * normal(3, 100_000, 2), 6)

    def error(table: Tensor) -> float:
        return rms(table[codes[:, 0], codes[:, 1]].double() - fresh)

    of_learned, least = error(learned.double() / STEPS), error(posterior_mean(codec, noise))
    assert learned.shape == (64, 64)
    assert learned.dtype == torch.int32
    assert 0 <= int(learned.min()) <= int(learned.max()) <= STEPS
    assert of_learned < 0.95 * error(table_of(codec).double() / STEPS)
    assert of_learned == pytest.approx(least, rel=0.01)


def test_pairs_that_are_rare_stay_near_the_projection() -> None:
    codec = Codec(0.0, 1.0, Snake(8))
    before = table_of(codec)
    codes = torch.tensor([[100.0, 100.0]])
    for count in (1, 4, 400):
        after = learned_table(codec, (codes / TOP).expand(count, 2), torch.ones(count, 1))
        start = int(before[100, 100])
        assert int(after[100, 100]) == pytest.approx(start + (STEPS - start) * count / (count + 4), abs=1)
        assert int((after != before).sum()) == 1


def test_what_a_table_has_no_data_for_is_the_projection() -> None:
    codec = Codec(0.0, 1.0, Hilbert(2))
    numbers = table_of(codec)
    at = torch.tensor([[10, 20], [200, 30]])
    target = numbers[at[:, 0], at[:, 1]].double()[:, None] / STEPS
    assert torch.equal(learned_table(codec, at.double() / TOP, target), numbers)


def test_a_learned_table_of_a_closed_path_takes_the_shorter_way_round() -> None:
    codec = Codec(0.0, 360.0, Moore(2))
    seam = codec.line.point(torch.zeros(1)).expand(1000, 2)
    x, y = codes_of(seam[:1], codec)[0].tolist()
    target = torch.tensor([350.0, 8.0]).repeat(500)[:, None]  # 359 on average, not 179
    found = float(learned_table(codec, seam, target)[x, y]) * 360 / STEPS
    before = float(table_of(codec)[x, y]) * 360 / STEPS
    assert (found - 359 + 180) % 360 - 180 == pytest.approx(((before - 359 + 180) % 360 - 180) * 4 / 1004, abs=0.02)


def test_learned_tables_take_several_dense_quantities() -> None:
    codec = Codec((0.0, 10.0), (1.0, 20.0), Snake(8))
    target = (
        torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 9 * torch.tensor([0.1, 1.0])[:, None, None]
        + torch.tensor([0.0, 10.0])[:, None, None]
    )
    whole = learned_table(codec, codec.encode(target), target)
    one = Codec(0.0, 1.0, Snake(8))
    share = codec.share(target).movedim(1, -1).reshape(-1, 1)
    points = codec.encode(target).reshape(3, 2, 2, 4, 5).permute(0, 3, 4, 2, 1).reshape(-1, 2)
    assert int((whole - learned_table(one, points, share)).abs().max()) <= 1  # float32 shares
    assert int((whole - table_of(codec)).abs().max()) > 1


def test_points_and_targets_that_do_not_belong_together() -> None:
    codec = Codec(0.0, 1.0)
    for points, target in (((5, 2), (4, 1)), ((5, 4), (5, 1)), ((5, 2, 3), (5, 1))):
        with pytest.raises(DataError, match=r"expected \[N, 2 \* T, ...\]"):
            learned_table(codec, torch.zeros(points), torch.zeros(target))


# Decoders


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_output_codes_are_rounded_and_clipped(bits: int) -> None:
    codes_at, top = OutputCodes(bits), 2**bits - 1
    codes = torch.arange(top + 1)
    assert torch.equal(codes_at(codes / top).long(), codes)
    points = torch.cat([torch.tensor([-3.0, -0.4 / top, 0.6 / top, 1.2]), 1.4 * uniform(0, 1000).float() - 0.2])
    assert codes_at(points)[:4].tolist() == [0, 0, 1, top]
    # what tables are learned from
    assert torch.equal(codes_at(points).long(), codes_of(points, Codec(0.0, 1.0, Fold(1), bits=bits)))


TWO_RANGES = ((0.0, -20.0), (1.0, 30.0))


@pytest.mark.parametrize("kind", [None, "table", "arithmetic"])
@pytest.mark.parametrize("shape", [(7, 4), (2, 4, 3, 5)], ids=["flat", "dense"])
def test_a_decoder_reads_codes_as_the_table_does(kind: DecoderName | None, shape: tuple[int, ...]) -> None:
    codec = Codec(*TWO_RANGES, Snake(8))
    codes = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    jitter = 0.4 * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1)
    found = Decoder(codec, kind=kind)((codes + jitter) / TOP)
    numbers = table_of(codec)[codes[:, :2], codes[:, 2:]]  # all first coordinates, then all second ones
    assert found.shape == (shape[0], 2, *shape[2:])
    assert torch.equal(found, codec.quantity(numbers.float() / STEPS))


@pytest.mark.parametrize(
    ("path", "transform"),
    [
        (Moore(2), "linear"),
        *(
            (path, transform)
            for path in (Snake(), Hilbert(2), DeepSnake(4, 4), Fold(2), Fold(5), Fold(1))
            for transform in ("linear", "log", "inverse")
        ),
    ],
)
def test_decoders_return_the_targets_that_were_encoded(path: Path, transform: TransformName) -> None:
    codec = Codec(1.0, 4.0, path, transform)
    target = 1 + 3 * torch.rand(200, 1, 2, generator=torch.Generator().manual_seed(0))
    found = Decoder(codec)(codec.encode(target))
    worst = 1.6 / TOP / codec.line.length + 1 / STEPS  # of the share, and a share is worth at most 12 there
    assert float(codec.difference(found, target).abs().max()) <= 12 * worst
    assert codec.difference(found, target).abs().mean() > 0


@pytest.mark.parametrize("path", [Snake(8), Hilbert(2), Moore(2)], ids=str)
def test_confidence_is_the_distance_from_the_path(path: Path) -> None:
    codec = Codec(*TWO_RANGES, path)
    codes = torch.randint(256, (3, 4, 6), generator=torch.Generator().manual_seed(0))
    target, distance = Decoder(codec, confidence=True)(codes / TOP)
    expected = codec.project(codes.double() / TOP)[1]
    assert distance.shape == target.shape == (3, 2, 6)
    torch.testing.assert_close(distance.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(target, Decoder(codec)(codes / TOP))


def test_a_decoder_takes_another_table_and_keeps_it_in_its_state() -> None:
    codec = Codec(0.0, 1.0, Hilbert(2))
    table = table_of(codec).flip(0)
    decoder = Decoder(codec, table=table)
    codes = torch.tensor([[3, 4], [200, 100]])
    assert torch.equal(decoder(codes / TOP)[:, 0], table[codes[:, 0], codes[:, 1]].float() / STEPS)
    other = Decoder(codec)
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(codes / TOP), decoder(codes / TOP))


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        (Hilbert(), "arithmetic", "only snakes and folds"),
        (Snake(8, 0.02), "arithmetic", "half codes"),
        (DeepSnake(), "table", "is for two"),
        (Fold(4), "table", "by a sum"),
        (Snake(), "network", "decoder 'network' is unknown"),
    ],
)
def test_decoders_that_do_not_exist(path: Path, kind: DecoderName, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        Decoder(Codec(0.0, 1.0, path), kind=kind)


def test_tables_that_do_not_fit_a_decoder() -> None:
    codec = Codec(0.0, 1.0)
    with pytest.raises(RecipeError, match=r"a table of \[16, 16\] does not fit"):
        Decoder(codec, table=torch.zeros(16, 16, dtype=torch.int32))
    with pytest.raises(RecipeError, match="does not fit snake8 with decoder 'arithmetic'"):
        Decoder(codec, kind="arithmetic", table=table_of(codec))


# The C header

C_PATHS: dict[str, tuple[Path, int]] = {
    "plain": (Snake(), 8),
    "uneven": (Snake(13, 11 / 510), 8),
    "odd": (Snake(21, 0.0), 8),
    "few": (Snake(5, 1.5 / 63), 6),
    "hilbert": (Hilbert(3), 8),
    "narrow": (Snake(8, 0.02), 8),
}


def test_a_c_compiler_finds_the_same_numbers_for_every_pair(tmp_path: FilePath) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    codecs = {name: Codec(-3.0, 25.0, path, bits=bits) for name, (path, bits) in C_PATHS.items()}
    functions: list[tuple[str, str]] = []
    loops = []
    for name, codec in codecs.items():
        header = c_header(codec, name=name)
        (tmp_path / f"{name}.h").write_text(header)
        assert ("_arithmetic" in header) == (name not in ("hilbert", "narrow"))
        for function in ("decode", *(["arithmetic"] if "_arithmetic" in header else [])):
            functions.append((name, function))
            loops.append(
                f"for (int x = 0; x <= {codec.top}; x++) for (int y = 0; y <= {codec.top}; y++)"
                f" {{ uint16_t q = {name}_{function}((uint8_t)x, (uint8_t)y); fwrite(&q, 2, 1, stdout); }}"
            )
    loops.append(
        "for (int32_t q = 0; q < 65536; q++) { float v = plain_quantity((uint16_t)q); fwrite(&v, 4, 1, stdout); }"
    )
    twice = "".join(f'#include "{name}.h"\n' * 2 for name in codecs)
    (tmp_path / "main.c").write_text(f"#include <stdio.h>\n{twice}int main(void) {{ {' '.join(loops)} return 0; }}\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run([compiler, *flags, "main.c", "-o", "main"], cwd=tmp_path, check=True)
    out = subprocess.run([str(tmp_path / "main")], check=True, capture_output=True).stdout
    at = 0
    for name, function in functions:
        expected = table_of(codecs[name]).numpy().astype(np.uint16)
        found = np.frombuffer(out, np.uint16, expected.size, at).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected, err_msg=f"{name}_{function}")
        at += 2 * expected.size
    values = np.frombuffer(out, np.float32, 65536, at)
    assert at + values.nbytes == len(out)
    expected_values = codecs["plain"].quantity(torch.arange(65536).double()[:, None] / STEPS)[:, 0].numpy()
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=4e-6)


def test_a_header_leaves_out_what_does_not_apply() -> None:
    assert "linear" in c_header(Codec(0.0, 1.0))
    assert "_quantity" not in c_header(Codec(1.0, 2.0, transform="log"))
    assert "_quantity" not in c_header(Codec((0.0, 0.0), (1.0, 2.0)))
    codec = Codec(0.0, 1.0)
    learned = c_header(codec, table=torch.full((256, 256), 77, dtype=torch.int32))
    assert "_arithmetic" not in learned  # it would know nothing of what was learned
    assert "77, 77" in learned


@pytest.mark.parametrize("name", ["", "8bit", "a-b", "a b", "a;", "für", "x\n"])
def test_headers_refuse_names_that_c_does_not_take(name: str) -> None:
    with pytest.raises(RecipeError, match="no C identifier"):
        c_header(Codec(0.0, 1.0), name=name)


def test_headers_are_for_two_channels() -> None:
    with pytest.raises(RecipeError, match="is for two"):
        c_header(Codec(0.0, 1.0, DeepSnake()))


# Codecs


@pytest.mark.parametrize("path", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("shape", [(50, 1), (50, 4), (3, 4, 6, 5), (3, 1, 7)], ids=str)
def test_targets_are_read_back(path: Path, shape: tuple[int, ...]) -> None:
    codec = Codec(-5.0, 20.0, path)
    target = 25 * uniform(0, *shape) - 5
    points = codec.encode(target)
    assert points.shape == (shape[0], codec.channels * shape[1], *shape[2:])
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
    torch.testing.assert_close(codec.decode(points), target, rtol=0, atol=3e-5)
    share, distance = codec.project(points)
    assert share.shape == distance.shape == target.shape
    assert float(distance.max()) < 2e-6
    assert codec.encode(target.float()).dtype == torch.float32
    torch.testing.assert_close(codec.decode(codec.encode(target.float())), target.float(), rtol=0, atol=3e-5)


@pytest.mark.parametrize(("transform", "middle"), [("linear", 50.5), ("log", 10.0), ("inverse", 200 / 101)])
def test_transforms_choose_what_is_spread_evenly(transform: TransformName, middle: float) -> None:
    codec = Codec(1.0, 100.0, Snake(8), transform)
    target = torch.tensor([[1.0], [middle], [100.0]], dtype=torch.float64)
    torch.testing.assert_close(codec.share(target).flatten(), torch.tensor([0, 0.5, 1], dtype=torch.float64))
    torch.testing.assert_close(codec.quantity(codec.share(target)), target)
    many = 1 + 99 * uniform(0, 500, 1)
    torch.testing.assert_close(codec.decode(codec.encode(many)), many, rtol=1e-5, atol=0)
    assert bool((codec.share(many.sort(0).values).diff(dim=0) >= 0).all())


@pytest.mark.parametrize("transform", ["linear", "log", "inverse"])
def test_each_quantity_has_its_range(transform: TransformName) -> None:
    lows, highs = (1.0, 2.0, 0.5, 10.0), (2.0, 30.0, 0.6, 1000.0)
    together, target = Codec(lows, highs, Hilbert(2), transform), uniform(0, 20, 4, 3)
    target = torch.tensor(lows)[:, None] + target * (torch.tensor(highs) - torch.tensor(lows))[:, None]
    points = together.encode(target)
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        alone = Codec(low, high, Hilbert(2), transform)
        torch.testing.assert_close(points[:, i::4], alone.encode(target[:, i : i + 1]))
    torch.testing.assert_close(together.decode(points), target, rtol=1e-5, atol=0)
    assert together.width(target).shape == (4, 1)
    shared_low = Codec(0.0, (1.0, 2.0))
    assert shared_low.width(torch.zeros(1, 2)).tolist() == [1.0, 2.0]
    assert shared_low.share(torch.tensor([[0.5, 0.5]])).tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize("transform", ["linear", "log", "inverse"])
def test_clipped_targets_count_as_the_ends(transform: TransformName) -> None:
    codec = Codec(1.0, 3.0, Snake(8), transform, clip=True)
    target = torch.tensor([[-5.0], [0.0], [1.0], [3.0], [1e9]])
    assert codec.share(target).flatten().tolist() == [0, 0, 0, 1, 1]


def test_targets_at_the_ends_are_inside_and_targets_beyond_are_counted() -> None:
    codec = Codec(0.1, 0.7)
    ends = torch.tensor([[0.1], [0.7], [torch.tensor(0.7).nextafter(torch.tensor(1.0)).item()]])
    assert float(codec.share(ends).max()) == 1
    with pytest.raises(DataError, match=r"2 of 4 targets are outside 0.1 to 0.7 \(0 to 9\).*clip targets"):
        codec.share(torch.tensor([[0.0], [0.2], [0.3], [9.0]]))
    with pytest.raises(DataError, match=r"1 of 4 targets are outside \(0.0, 0.0\) to \(1.0, 2.0\)"):
        Codec((0.0, 0.0), (1.0, 2.0)).share(torch.tensor([[1.0, 2.0], [1.5, 1.5]]))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("path", [Snake(), Moore()], ids=str)
def test_targets_that_are_no_numbers(path: Path, clip: bool) -> None:
    target = torch.tensor([[0.5], [torch.nan], [torch.inf]])
    with pytest.raises(DataError, match="2 of 3 targets are NaN or infinite"):
        Codec(0.0, 1.0, path, clip=clip).encode(target)


def test_targets_and_points_of_wrong_shapes() -> None:
    codec = Codec(0.0, 1.0)
    with pytest.raises(DataError, match=r"got \[7\], expected \[N, T, ...\].*a scalar is \[N, 1\]"):
        codec.encode(torch.rand(7))
    with pytest.raises(DataError, match=r"got \[7, 3\], expected \[N, 2, ...\]"):
        Codec((0.0, 0.0), (1.0, 1.0)).encode(torch.rand(7, 3))
    for shape in ((7, 3), (7,), (7, 1, 4)):
        with pytest.raises(DataError, match=r"expected \[N, 2 \* T, ...\] for snake8"):
            codec.decode(torch.rand(shape))
    with pytest.raises(DataError, match=r"expected \[N, 3 \* T, ...\] for snake8x8"):
        Codec(0.0, 1.0, DeepSnake()).decode(torch.rand(7, 2))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf), ((0.0, 1.0), (1.0, 1.0))]
)
def test_ranges_that_are_none(low: float | tuple[float, ...], high: float | tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match=r"the range is .* the lower one first"):
        Codec(low, high)


def test_codecs_that_do_not_exist() -> None:
    with pytest.raises(RecipeError, match="low has 2 numbers and high 3"):
        Codec((0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(RecipeError, match="transform 'sqrt' is unknown; expected one of linear, log, inverse"):
        Codec(0.0, 1.0, transform="sqrt")  # type: ignore[arg-type]
    for transform in ("log", "inverse"):
        for low in (0.0, -1.0):
            with pytest.raises(RecipeError, match=f"'{transform}' needs a range above 0"):
                Codec(low, 1.0, transform=transform)
        with pytest.raises(RecipeError, match="moore3 is for periodic quantities"):
            Codec(1.0, 2.0, Moore(), transform)
    for bits in (1, 9):
        with pytest.raises(RecipeError, match=f"bits is {bits}, expected 2 to 8"):
            Codec(0.0, 1.0, bits=bits)


@pytest.mark.parametrize(
    ("path", "bits", "fits"),
    [
        (Hilbert(7), 8, True),
        (Hilbert(7), 6, False),
        (Hilbert(5), 6, True),
        (Hilbert(6), 6, False),
        (Hilbert(3), 4, True),
        (Hilbert(4), 4, False),
        (Snake(128), 8, True),
        (Snake(128), 7, False),
        (DeepSnake(64, 2), 6, False),
        (Fold(64), 2, True),
    ],
    ids=str,
)
def test_branches_may_not_be_closer_than_codes(path: Path, bits: int, fits: bool) -> None:
    if fits:
        assert Codec(0.0, 1.0, path, bits=bits).top == 2**bits - 1
        return
    with pytest.raises(RecipeError, match=f"{bits}-bit codes .*; give fewer rows or a lower order"):
        Codec(0.0, 1.0, path, bits=bits)


def test_periodic_quantities_go_round() -> None:
    codec = Codec(-180.0, 180.0, Moore(3))
    assert codec.periodic
    degrees = 360 * uniform(0, 300, 1) - 180
    points = codec.encode(degrees)
    for turns in (-2, -1, 1, 5):
        torch.testing.assert_close(codec.encode(degrees + 360 * turns), points, rtol=0, atol=1e-9)
    torch.testing.assert_close(codec.decode(points), degrees, rtol=0, atol=1e-3)
    low, high = codec.encode(torch.tensor([[-180.0], [180.0]]))
    assert torch.equal(low, high)
    near = codec.encode(torch.tensor([[179.9], [-179.9]]))
    assert float((near[0] - near[1]).norm()) < 0.01
    found, target = (
        torch.tensor([[179.0], [-179.0], [10.0], [-170.0]]),
        torch.tensor([[-179.0], [179.0], [5.0], [170.0]]),
    )
    torch.testing.assert_close(codec.difference(found, target), torch.tensor([[-2.0], [2.0], [5.0], [20.0]]))
    open_ended = Codec(-180.0, 180.0)
    assert not open_ended.periodic
    assert open_ended.difference(found, target)[0].item() == 358


# Ranges


def test_a_range_is_found_batch_by_batch() -> None:
    batches = [torch.tensor([[1.0, 5.0], [2.0, 7.0]]), torch.tensor([[-1.5, 6.0]])]
    assert range_of(batches) == ((-1.5, 5.0), (2.0, 7.0))
    assert range_of(iter([torch.arange(24.0).reshape(2, 2, 2, 3)])) == ((0.0, 6.0), (17.0, 23.0))
    targets = torch.randn(100, 3)
    low, high = range_of([targets[:33], targets[33:]])
    assert float(Codec(low, high).share(targets).max()) == 1  # all are inside, float32 or not


def test_ranges_that_cannot_be_found() -> None:
    with pytest.raises(DataError, match="no targets to find a range in; give at least one batch"):
        range_of([])
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(DataError, match="NaN or infinite"):
            range_of([torch.rand(3, 1), torch.tensor([[0.5], [bad]])])
    with pytest.raises(DataError, match="quantity 1 of the targets is always 7"):
        range_of([torch.tensor([[1.0, 7.0]]), torch.tensor([[2.0, 7.0]])])
