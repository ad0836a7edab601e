"""The kernels against plain torch, bit for bit; what they leave to torch; and how they are built, or not."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lowbit import kernels, ops
from lowbit.formats import Float, Format, Int, Ternary, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor

FORMATS = [
    *("int1", "int2", "int4-narrow", "int8", "int16", "uint1", "uint4", "uint8", "uint16"),
    *("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e2m1", "e2m3", "e3m2", "e3m4", "e1m2", "bf16", "fp16"),
    *("ternary", "ternary:0.7", "ternary:0", "binary", "binary01"),
]
GRANULARITIES: list[Granularity] = [
    *(PerTensor(), PerChannel(), PerChannel(1), PerChannel(2), PerGroup(6), PerGroup(11, ragged=True)),
    PerGroup(5000, ragged=True),
]
SHAPE = torch.Size([12, 14, 360])  # more than one piece a run, and enough for a second thread


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture
def built() -> None:
    if why_not := kernels.why_not():
        pytest.skip(f"no kernels: {why_not}")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not asked for the kernels, and its empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_library", functools.cache(kernels._library.__wrapped__))
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
    x: Tensor, scale: Tensor, zero_point: Tensor | None, g: Tensor, format: Format, granularity: Granularity
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and both gradients."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = ops.fake_quantize(x, scale, zero_point, format, granularity)
    dx, ds = torch.autograd.grad(y, (x, scale), g)
    return y.detach(), dx, ds


def plain() -> mock._patch[mock.Mock]:
    """Within, everything runs on torch."""
    return mock.patch.object(kernels, "call", mock.Mock(return_value=None))


# Values and gradients


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", FORMATS)
def test_hard_numbers_come_out_as_in_torch(name: str) -> None:
    format, one = parse(name), torch.tensor(1.0)
    x = hard(format)
    assert kernels.call(x, one, None, format, PerTensor()) is not None
    y, dx, _ = computed(x, one, None, torch.ones_like(x), format, PerTensor())
    with plain():
        expected_y, expected_dx, _ = computed(x, one, None, torch.ones_like(x), format, PerTensor())
    assert same(y, expected_y)
    assert same(dx, expected_dx)


CASES = [
    *((name, granularity, False) for name in ("int8", "e4m3fn", "ternary", "binary") for granularity in GRANULARITIES),
    *((name, granularity, True) for name in ("uint8", "int4") for granularity in GRANULARITIES),
    *((name, PerGroup(32, ragged=True), False) for name in ("mxfp4", "nvfp4", "mxfp8")),
]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("name", "granularity", "affine"), CASES)
def test_granularities_and_zero_points_are_those_of_torch(name: str, granularity: Granularity, affine: bool) -> None:
    format = parse(name)
    given = drawn(format, granularity, affine)
    assert kernels.call(*given[:3], format, granularity) is not None
    y, dx, _ = computed(*given, format, granularity)
    with plain():
        expected_y, expected_dx, _ = computed(*given, format, granularity)
    assert same(y, expected_y)
    assert same(dx, expected_dx)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("name", "granularity", "affine"), CASES)
def test_scale_gradient_is_the_sum_that_torch_takes(name: str, granularity: Granularity, affine: bool) -> None:
    format = parse(name)
    x, scale, zero_point, g = drawn(format, granularity, affine, gentle=True)
    _, _, ds = computed(x, scale, zero_point, g, format, granularity)
    v = granularity.blocked(x) / granularity.spread(scale, SHAPE)
    offset = torch.tensor(0.0) if zero_point is None else granularity.spread(zero_point, SHAPE)
    q = ops.quantize(x, scale, zero_point, format, granularity) - offset
    inside = (v >= format.min - offset) & (v <= format.max - offset)
    terms = granularity.rows(granularity.unblocked(torch.where(inside, q - v, q), SHAPE) * g).double()
    error = (ds.flatten() - terms.sum(1)).abs()
    assert (error <= 2e-6 * terms.abs().sum(1)).all()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_threads_change_nothing(granularity: Granularity) -> None:
    given = drawn(Int(8), granularity, affine=True, gentle=True)
    alone = computed(*given, Int(8), granularity)
    torch.set_num_threads(2)
    try:
        assert all(map(torch.equal, alone, computed(*given, Int(8), granularity)))
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("built")
def test_nan_stays_in_its_channel() -> None:
    x = torch.randn(3, 5000)
    x[1, 4000] = torch.nan
    y, dx, ds = computed(x, torch.ones(3), None, torch.ones_like(x), Int(8), PerChannel())
    assert y.isnan().sum() == 1
    assert dx[1, 4000] == dx.isnan().sum() == 0
    assert ds.isnan().tolist() == [False, True, False]


# What is left to torch


def odd_ones() -> dict[str, tuple[Tensor, Tensor, Tensor | None, Format, Granularity]]:
    x, one, int8 = torch.randn(4, 6, 2, 2), torch.tensor(1.0), Int(8)
    return {
        "float64": (x.double(), one.double(), None, int8, PerTensor()),
        "bfloat16": (x.bfloat16(), one.bfloat16(), None, int8, PerTensor()),
        "transposed": (x.transpose(0, 1), one, None, int8, PerTensor()),
        "channels last": (x.to(memory_format=torch.channels_last), one, None, int8, PerTensor()),
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
    assert y.stride() == x.stride()


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
    return computed(x, torch.tensor(0.1), None, x, Int(4), PerTensor())


@pytest.mark.usefixtures("built")
def test_built_once_by_the_first_training_step_and_kept(fresh: Path) -> None:
    ops.fake_quantize(torch.randn(5), torch.tensor(0.1), None, Int(4), PerTensor())
    assert not fresh.exists()  # inference does not wait for a compiler
    train()
    (library,) = fresh.iterdir()
    assert fresh.stat().st_mode & 0o777 == 0o700
    kernels._library.cache_clear()
    with mock.patch.object(Path, "replace") as replace:  # what ends a build
        train()
    replace.assert_not_called()
    assert list(fresh.iterdir()) == [library]


@pytest.mark.usefixtures("built")
def test_two_builds_at_once_do_not_meet(fresh: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(kernels._built) for _ in range(2)]
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
            patch.setattr(kernels, "_built", lambda: kernels._SOURCE)
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
