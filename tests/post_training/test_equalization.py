"""Equalization changes no function, and makes the ranges of a pair one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit import models
from lowbit.errors import LayerError
from lowbit.post_training.equalization import equalize


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Depthwise(nn.Module):
    """What equalization is for: depthwise layers between ReLUs, channels of very different ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)
        self.first.weight.data *= torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y: Tensor = self.last(F.max_pool2d(self.norm(self.depthwise(x)).relu(), 1))
        return y


class Chain(nn.Module):
    """Poolings and dropout between convolutions, and linear layers behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Conv2d(8, 6, 3)),
            *(nn.AvgPool2d(2), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {  # and the number of pairs
    "resnet20": (models.resnet20, seeded(2, 3, 16, 16), 9),
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(width=0.25),
        seeded(2, 3, 32, 32),
        1,
    ),  # ReLU6 everywhere but behind a projection
    "mlp": (lambda: models.mlp(6, 3, (16, 8)), seeded(8, 6), 2),
    "depthwise": (Depthwise, seeded(2, 3, 8, 8), 1),
    "chain": (Chain, seeded(2, 3, 8, 8), 3),
}


def built(name: str) -> tuple[nn.Module, Tensor, int]:
    build, x, pairs = NETWORKS[name]
    torch.manual_seed(0)
    return build().eval(), x, pairs


@pytest.mark.parametrize("activations", [False, True], ids=["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str, activations: bool) -> None:
    model, x, pairs = built(name)
    before = copy.deepcopy(model.state_dict())
    equalized, told = equalize(model, [x[:1], x[1:]] if activations else None, progress=False)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(equalized(x), expected, rtol=1e-4, atol=1e-4 * max(1, float(expected.abs().max())))
    assert len(told.pairs) == pairs
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "resnet20", "depthwise"])
def test_the_ranges_of_a_pair_are_one(name: str) -> None:
    model, _, _ = built(name)
    equalized, told = equalize(model, progress=False)
    for pair in told.pairs:
        first = equalized.get_submodule(pair.first).get_parameter("weight").detach()
        second = equalized.get_submodule(pair.second).get_parameter("weight").detach()
        axis = 0 if getattr(equalized.get_submodule(pair.second), "groups", 1) > 1 else 1
        read = second.movedim(axis, 0).flatten(1).abs().amax(1)
        torch.testing.assert_close(first.flatten(1).abs().amax(1), read, rtol=1e-2, atol=0)


def test_ranges_told_apart_by_orders_of_magnitude_shrink() -> None:
    model, _, _ = built("depthwise")
    _, told = equalize(model, progress=False)
    assert told.pairs[0].first == "first"
    assert told.pairs[0].second == "depthwise"
    assert told.pairs[0].spread_before > 100
    assert told.pairs[0].spread_after < told.pairs[0].spread_before / 5


def test_channels_that_are_always_0() -> None:
    model, x, _ = built("mlp")
    first, second = model.get_submodule("linear1"), model.get_submodule("linear2")
    first.get_parameter("weight").data[2] = 0
    first.get_parameter("bias").data[2] = 0
    second.get_parameter("weight").data[:, 5] = 0
    for batches in (None, [x]):
        equalized, told = equalize(model, batches, progress=False)
        with torch.no_grad():
            torch.testing.assert_close(equalized(x), model(x), rtol=1e-4, atol=1e-4)
        assert all(p.isfinite().all() for p in equalized.parameters())
        assert all(pair.spread_after < float("inf") for pair in told.pairs)


def test_what_cannot_be_traced_is_an_error() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else F.relu(self.linear(x))

    with pytest.raises(LayerError, match="Branching cannot be equalized: its graph cannot be traced"):
        equalize(Branching())


@pytest.mark.parametrize("pool", [nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(2)], ids=["max", "average"])
def test_pooling_over_the_channels_of_a_linear_layer(pool: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), pool, nn.Linear(3 if isinstance(pool, nn.AvgPool1d) else 6, 4)).eval()
    model[0].get_parameter("weight").data[0] *= 20
    x = seeded(2, 5, 6)
    equalized, _ = equalize(model, progress=False)
    torch.testing.assert_close(equalized(x), model(x), rtol=1e-4, atol=1e-4)


def test_tied_weights_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    model[2].weight = model[0].weight
    model[0].get_parameter("weight").data[0] *= 20
    x = seeded(4, 6)
    equalized, _ = equalize(model, progress=False)
    torch.testing.assert_close(equalized(x), model(x), rtol=1e-4, atol=1e-4)
