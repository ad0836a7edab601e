"""The kernels against plain torch, bit for bit; what they leave to torch; and how they are built, or not."""

from __future__ import annotations

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lowbit import compiled, kernels, ops
from lowbit.formats import Float, Format, Int, Ternary, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.ops import STE, GradientRule

FORMATS = [
    *("int1", "int2", "int4-narrow", "int8", "int16", "uint1", "uint4", "uint8", "uint16"),
    *("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e2m1", "e2m3", "e3m2", "e3m4", "e1m2", "bf16", "fp16"),
    *("ternary", "ternary:0.7", "ternary:0", "binary", "binary01", "mid1", "mid2", "mid4", "mid8"),
]
GRANULARITIES: list[Granularity] = [
    *(PerTensor(), PerChannel(), PerChannel(1), PerChannel(2), PerGroup(6), PerGroup(11, ragged=True)),
    PerGroup(5000, ragged=True),
]
RULES = [STE, GradientRule(delta=0.5), GradientRule(rounding=False), GradientRule(0.5, rounding=False, share=0.25)]
SHAPE = torch.Size([12, 14, 360])  # more than one piece a run, and enough for a second thread


@pytest.fixture
def built() -> None:
    if why_not := kernels.why_not():
        pytest.skip(f"no kernels: {why_not}")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not asked for the kernels, and its empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module, name in ((compiled, "library"), (kernels, "_library")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name).__wrapped__))
    return tmp_path / "lowbit"


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits, but for the bits of NaN."""
    nan = torch.isnan(b)
    bits = [t.masked_fill(nan, 0.0).contiguous().view(torch.int32) for t in (a, b)]
    return torch.equal(torch.isnan(a), nan) and torch.equal(*bits)


def hard(format: Format) -> Tensor:
    """Every float32 whose lower half is 0 (NaN, infinities, -0 and subnormals too), ties, and what is beside them."""
    patterns = (torch.arange(1 << 16) << 16).to(torch.int32).view(torch.float32)
    grid = format.values().double()
    ties = torch.cat([grid, (grid[1:] + grid[:-1]) / 2]).float()
    if isinstance(format, Ternary):
        ties = torch.cat([ties, torch.tensor([format.threshold, -format.threshold])])
    beside = [torch.nextafter(ties, torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    smooth = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * format.max
    return torch.cat([patterns, ties, *beside, smooth])


def drawn(
    format: Format, granularity: Granularity, affine: bool, *, gentle: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """`x` of hard (or `gentle`: normally distributed) numbers in units of its scales; scales, zero points, `g`."""
    generator = torch.Generator().manual_seed(1)
    shape = granularity.scale_shape(SHAPE)
    scale = torch.rand(shape, generator=generator) * 0.3 + 0.01
    zero_point = None
    if affine:
        span = torch.rand(shape, generator=generator) * (format.max - format.min)
        zero_point = (format.min + span).round()
    z = torch.randn(SHAPE, generator=generator) * format.max * 0.7
    if not gentle:
        numbers = hard(format)
        z = numbers[torch.randint(len(numbers), SHAPE, generator=generator)]
    x = granularity.unblocked(granularity.blocked(z) * granularity.spread(scale, SHAPE), SHAPE).contiguous()
    return x, scale, zero_point, torch.randn(SHAPE, generator=generator)


def computed(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    g: Tensor,
    format: Format,
    granularity: Granularity,
    gradient: GradientRule = STE,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Forward, and the gradients of x, of the scale and of the zero point."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    learnable = [] if zero_point is None else [zero_point.detach().requires_grad_()]
    y = ops.fake_quantize(x, scale, learnable[0] if learnable else None, format, granularity, gradient)
    dx, ds, *dz = torch.autograd.grad(y, (x, scale, *learnable), g)
    return y.detach(), dx, ds, dz[0] if dz else None


def plain() -> mock._patch[mock.Mock]:
    """Within, everything runs on torch."""
    return mock.patch.object(kernels, "call", mock.Mock(return_value=None))


# Values and gradients


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("delta", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("name", FORMATS)
def test_hard_numbers_come_out_as_in_torch(name: str, delta: float) -> None:
    format, one, rule = parse(name), torch.tensor(1.0), GradientRule(delta)
    x = hard(format)
    hard_gradients = torch.tensor([1.0, -1.0, 0.3, -0.7, 0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -3e38])
    g = hard_gradients.repeat(-(-x.numel() // 11))[: x.numel()]
    assert kernels.call(x, one, None, format, PerTensor()) is not None
    y, dx, *_ = computed(x, one, None, g, format, PerTensor(), rule)
    with plain():
        expected_y, expected_dx, *_ = computed(x, one, None, g, format, PerTensor(), rule)
    assert same(y, expected_y)
    assert same(dx, expected_dx)


CASES = [
    *((name, granularity, False) for name in ("int8", "e4m3fn", "ternary", "mid2") for granularity in GRANULARITIES),
    *((name, granularity, True) for name in ("uint8", "int4") for granularity in GRANULARITIES),
    *((name, PerGroup(32, ragged=True), False) for name in ("mxfp4", "nvfp4", "mxfp8")),
]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize(("name", "granularity", "affine"), CASES)
def test_granularities_and_zero_points_are_those_of_torch(
    name: str, granularity: Granularity, affine: bool, delta: float
) -> None:
    format = parse(name)
    given = drawn(format, granularity, affine)
    assert kernels.call(*given[:3], format, granularity) is not None
    y, dx, *_ = computed(*given, format, granularity, GradientRule(delta))
    with plain():
        expected_y, expected_dx, *_ = computed(*given, format, granularity, GradientRule(delta))
    assert same(y, expected_y)
    assert same(dx, expected_dx)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.delta}-{rule.rounding}")
@pytest.mark.parametrize(("name", "granularity", "affine"), CASES)
def test_gradients_of_the_range_are_the_sums_that_torch_takes(
    name: str, granularity: Granularity, affine: bool, rule: GradientRule
) -> None:
    format = parse(name)
    x, scale, zero_point, g = drawn(format, granularity, affine, gentle=True)
    _, _, ds, dz = computed(x, scale, zero_point, g, format, granularity, rule)
    v, pull = granularity.blocked(x) / granularity.spread(scale, SHAPE), granularity.blocked(g)
    offset = torch.tensor(0.0) if zero_point is None else granularity.spread(zero_point, SHAPE)
    q = ops.quantize(x, scale, zero_point, format, granularity) - offset
    inside = (v >= format.min - offset) & (v <= format.max - offset)
    change = pull.sign() * (v - q) * (rule.delta / (format.max - format.min))
    slope = torch.where(inside, rule.rounding * (q - (1 + change) * v), q)
    assert is_sum(ds.flatten() / rule.share, pull * slope, granularity)
    if dz is not None:
        slope = torch.where(inside, rule.rounding * change, -1.0)
        assert is_sum((dz / scale).flatten(), pull * slope, granularity)


def is_sum(found: Tensor, blocked: Tensor, granularity: Granularity) -> bool:
    """Whether these are the sums over each block, but for rounding."""
    terms = granularity.rows(granularity.unblocked(blocked, SHAPE)).double()
    return bool(((found - terms.sum(1)).abs() <= 2e-6 * terms.abs().sum(1)).all())


@pytest.mark.usefixtures("built")
def test_each_gradient_is_the_same_alone() -> None:
    format, granularity, rule = Int(4), PerChannel(), GradientRule(delta=0.5)
    x, scale, zero_point, g = drawn(format, granularity, affine=True, gentle=True)
    together = computed(x, scale, zero_point, g, format, granularity, rule)[1:]
    for i, expected in enumerate(together):
        given = [t.detach().requires_grad_(i == j) for j, t in enumerate((x, scale, zero_point)) if t is not None]
        y = ops.fake_quantize(given[0], given[1], given[2], format, granularity, rule)
        assert expected is not None
        torch.testing.assert_close(torch.autograd.grad(y, given[i], g)[0], expected)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_threads_change_nothing(granularity: Granularity) -> None:
    given = drawn(Int(8), granularity, affine=True, gentle=True)
    alone = computed(*given, Int(8), granularity, GradientRule(delta=0.5))
    torch.set_num_threads(2)
    try:
        shared = computed(*given, Int(8), granularity, GradientRule(delta=0.5))
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True) if a is not None and b is not None)
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("built")
def test_nan_stays_in_its_channel() -> None:
    x = torch.randn(3, 5000)
    x[1, 4000] = torch.nan
    y, dx, ds, _ = computed(x, torch.ones(3), None, torch.ones_like(x), Int(8), PerChannel())
    assert y.isnan().sum() == 1
    assert dx[1, 4000] == dx.isnan().sum() == 0
    assert ds.isnan().tolist() == [False, True, False]


# Orders in memory


def orders() -> dict[str, tuple[Tensor, Granularity]]:
    image, volume = torch.randn(8, 6, 20, 30), torch.randn(5, 4, 6, 7, 8)
    last, last_3d = torch.channels_last, torch.channels_last_3d
    return {
        "image": (image.to(memory_format=last), PerTensor()),
        "volume": (volume.to(memory_format=last_3d), PerTensor()),
        "transposed": (image.transpose(0, 1), PerTensor()),
        "permuted": (volume.permute(2, 0, 4, 1, 3), PerTensor()),
        "weight": (image.to(memory_format=last), PerChannel()),
        "weight, axis 0": (image.to(memory_format=last), PerChannel(0)),
        "weight of volumes": (volume.to(memory_format=last_3d), PerChannel()),
        "depthwise weight": (torch.randn(300, 1, 3, 3).to(memory_format=last), PerChannel()),
        "pointwise weight": (torch.randn(70, 30, 1, 1).to(memory_format=last), PerChannel()),
        "one output": (image[:1].to(memory_format=last), PerChannel()),
    }


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("of_gradient", ["as x", "contiguous", "backwards", "expanded", "strided"])
@pytest.mark.parametrize("name", orders())
def test_dense_tensors_keep_their_order(name: str, of_gradient: str) -> None:
    x, granularity = orders()[name]
    scale = torch.rand(granularity.scale_shape(x.shape)) * 0.3 + 0.1
    g = {
        "as x": torch.empty_like(x).normal_(),
        "contiguous": torch.randn(x.shape),
        "backwards": torch.randn(x.shape[::-1]).permute(*range(x.dim())[::-1]),
        "expanded": torch.randn(x.shape[1:]).expand(x.shape),
        "strided": torch.randn(*x.shape, 2)[..., 0],
    }[of_gradient]
    given = (x, scale, None, g, Int(4), granularity, GradientRule(delta=0.5))
    assert kernels.call(x, scale, None, Int(4), granularity, grad=g) is not None
    y, dx, ds, _ = computed(*given)
    with plain():
        expected_y, expected_dx, expected_ds, _ = computed(*given)
    assert torch.equal(y, expected_y)
    assert torch.equal(dx, expected_dx)
    torch.testing.assert_close(ds, expected_ds, rtol=1e-4, atol=1e-3)
    assert x.stride() == y.stride() == dx.stride()


# What is left to torch


def odd_ones() -> dict[str, tuple[Tensor, Tensor, Tensor | None, Format, Granularity]]:
    x, one, int8 = torch.randn(4, 6, 2, 2), torch.tensor(1.0), Int(8)
    return {
        "float64": (x.double(), one.double(), None, int8, PerTensor()),
        "bfloat16": (x.bfloat16(), one.bfloat16(), None, int8, PerTensor()),
        "every other column": (x[:, ::2], one, None, int8, PerTensor()),
        "repeated": (x[:1].expand(4, 6, 2, 2), one, None, int8, PerTensor()),
        "overlapping": (x.as_strided((3, 3), (1, 1)), one, None, int8, PerTensor()),
        "channels inside": (x.transpose(0, 1), torch.rand(6) + 0.1, None, int8, PerChannel()),
        "channels last": (x.to(memory_format=torch.channels_last), torch.rand(6) + 0.1, None, int8, PerChannel(1)),
        "groups of a channels-last weight": (
            *(x.to(memory_format=torch.channels_last), torch.rand(4, 4) + 0.1, None, int8, PerGroup(6)),
        ),
        "strided scale": (x, (torch.rand(12) + 0.1)[::3], None, int8, PerChannel()),
        "empty": (x[:0], one, None, int8, PerTensor()),
        "scale that broadcasts": (x, torch.rand(6, 1, 1) + 0.1, None, int8, PerTensor()),
        "subnormal format": (x, one, None, Float(8, 3, 130, "finite"), PerTensor()),
    }


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", odd_ones())
def test_what_does_not_fit_runs_on_torch(name: str) -> None:
    x, scale, zero_point, format, granularity = odd_ones()[name]
    assert kernels.call(x, scale, zero_point, format, granularity) is None
    y = ops.fake_quantize(x.requires_grad_(), scale, zero_point, format, granularity)
    y.sum().backward()  # type: ignore[no-untyped-call]
    with plain():
        assert torch.equal(y, ops.fake_quantize(x, scale, zero_point, format, granularity))


@pytest.mark.usefixtures("built")
def test_an_expanded_gradient_is_read_right() -> None:
    x, g = torch.randn(64, 32), torch.randn(64, 1).expand(64, 32)
    given = (x, torch.tensor(0.1), None, g, Int(8), PerTensor())
    with plain():
        expected = computed(*given)
    assert torch.equal(computed(*given)[1], expected[1])


@pytest.mark.usefixtures("built")
def test_tracers_see_torch() -> None:
    def f(x: Tensor) -> Tensor:
        return ops.fake_quantize(x, torch.tensor(0.1), None, Int(8), PerTensor())

    x, other = torch.randn(2, 3, 5)
    expected = f(other)
    assert torch.equal(make_fx(f)(x)(other), expected)
    assert torch.equal(torch.compile(f, backend="eager")(other), expected)
    assert torch.equal(torch.vmap(f)(other), expected)


# Building


def train() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.linspace(-2, 2, 100)
    return computed(x, torch.tensor(0.1), None, x, Int(4), PerTensor())[:3]


@pytest.mark.usefixtures("built")
def test_built_once_by_the_first_training_step_and_kept(fresh: Path) -> None:
    ops.fake_quantize(torch.randn(5), torch.tensor(0.1), None, Int(4), PerTensor())
    assert not fresh.exists()  # inference does not wait for a compiler
    train()
    (library,) = fresh.iterdir()
    assert fresh.stat().st_mode & 0o777 == 0o700
    compiled.library.cache_clear()
    kernels._library.cache_clear()
    with mock.patch.object(Path, "replace") as replace:  # what ends a build
        train()
    replace.assert_not_called()
    assert list(fresh.iterdir()) == [library]


@pytest.mark.usefixtures("built")
def test_two_builds_at_once_do_not_meet(fresh: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(compiled.built, kernels._SOURCE) for _ in range(2)]
    assert {each.result() for each in found} == set(fresh.iterdir())


REASONS = {
    "no compiler": "No such file",
    "error in the source": "error",
    "not a library": "invalid ELF header",
    "no folder": "File exists",
    "read-only": "Permission denied",
    "open to others": "others may write",
}


def break_the_build(how: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    match how:
        case "no compiler":
            patch.setenv("PATH", "")
        case "error in the source":
            source = folder.parent / "broken.cpp"
            source.write_text("int main( {")
            patch.setattr(kernels, "_SOURCE", source)
        case "not a library":
            patch.setattr(compiled, "built", lambda source: source)
        case "no folder":
            folder.write_text("a file")
        case "read-only":
            patch.setattr(Path, "mkdir", mock.Mock(side_effect=PermissionError("Permission denied")))
        case "open to others":
            folder.mkdir()
            folder.chmod(0o777)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("how", REASONS)
def test_training_goes_on_where_the_build_fails(
    how: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with plain():
        expected = train()
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "lowbit"):
        break_the_build(how, fresh, patch)
        found = [train(), train()]
        assert REASONS[how] in str(kernels.why_not())
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, expected, strict=True))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert REASONS[how] in caplog.text
