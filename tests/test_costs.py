"""Costs against numbers counted by hand, and what quantizing and freezing may not change about them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.batches import Batch
from lowbit.costs import Cost, LayerCost, cost, measure
from lowbit.errors import DataError
from lowbit.formats import parse
from lowbit.quantization import calibrate, freeze, quantize
from lowbit.recipe import Recipe, Rule


def only(model: nn.Module, example: Batch) -> LayerCost:
    layers = cost(model, example).layers
    assert len(layers) == 1
    return layers[0]


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(8, 5), (2, 8), 8 * 5),
        (nn.Linear(8, 5, bias=False), (2, 8), 8 * 5),
        (nn.Linear(8, 5), (2, 7, 8), 7 * 8 * 5),
        (nn.Linear(8, 5), (2, 7, 3, 8), 7 * 3 * 8 * 5),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 8 * 6 * 4 * 3),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 10), 5 * 6 * 4 * 3),
        (nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 10), 6 * 6 * 4 * 3),
        (nn.Conv2d(4, 6, 3), (2, 4, 8, 8), 6 * 6 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), (2, 4, 8, 8), 8 * 8 * 6 * 4 * 3),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), 6 * 6 * 6 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8), 6 * 6 * 4 * 9),
        (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 4, 5, 6), 4 * 5 * 6 * 4 * 2 * 27),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 10), 10 * 4 * 6 * 3),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 8, 8), 8 * 8 * 4 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 8, 8), 8 * 8 * 4 * 3 * 9),
        (nn.ConvTranspose3d(2, 4, 2), (2, 2, 3, 3, 3), 27 * 2 * 4 * 8),
    ],
    ids=str,
)
def test_macs(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    counted = only(layer, torch.zeros(shape))
    assert counted.macs == macs
    assert counted.kind == type(layer).__name__
    assert counted.parameters == layer.get_parameter("weight").numel()


def test_an_embedding_multiplies_nothing() -> None:
    counted = only(nn.Embedding(11, 8), torch.zeros(3, 6, dtype=torch.int64))
    assert (counted.macs, counted.bops, counted.weight_bytes) == (0, 0, 4 * 88)


def test_macs_of_resnet20() -> None:
    stage1 = 6 * 32 * 32 * 16 * 16 * 9
    stage2 = 16 * 16 * (16 + 5 * 32) * 32 * 9
    stage3 = 8 * 8 * (32 + 5 * 64) * 64 * 9
    found = cost(models.resnet20(), torch.zeros(1, 3, 32, 32))
    assert found.macs == 32 * 32 * 3 * 16 * 9 + stage1 + stage2 + stage3 + 64 * 10 == 40_551_040
    assert found.bops == 1024 * found.macs
    assert found.parameters == 269_722
    assert found.activation_bytes == 4 * 2 * 16 * 32 * 32


@pytest.mark.parametrize("samples", [1, 3])
def test_costs_are_for_one_sample(samples: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert cost(model, torch.zeros(samples, 3, 8, 8)) == cost(model, torch.zeros(2, 3, 8, 8))


class Twice(nn.Module):
    """One layer, called twice, once by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.layer(input=torch.relu(self.layer(x))) * mask)


def test_a_layer_called_twice_counts_twice() -> None:
    example = {"x": torch.zeros(2, 4), "mask": torch.ones(2, 4), "labels": torch.zeros(2)}
    counted = only(Twice(), example)
    assert (counted.macs, counted.parameters, counted.weight_bytes) == (32, 16, 64)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()


EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
MACS = {"0": 36 * 8 * 27, "2": 16 * 4 * 72, "4": 64 * 5}


def student(recipe: Recipe) -> nn.Module:
    quantized = quantize(net(), recipe)
    calibrate(quantized, [EXAMPLE], progress=False)
    return quantized


def test_bops_include_first_and_last_layer() -> None:
    mixed = Recipe(
        (
            Rule(weights=parse("int4"), activations=parse("int8")),
            Rule("0", weights=parse("int8"), activations=parse("int8")),
            Rule("4", weights=parse("ternary"), activations=parse("int4")),
        )
    )
    found = cost(student(mixed), EXAMPLE)
    bits = {"0": (8, 8), "2": (4, 8), "4": (2, 4)}
    assert {r.name: r.bops for r in found.layers} == {n: MACS[n] * w * a for n, (w, a) in bits.items()}
    assert found.bops == sum(MACS[n] * w * a for n, (w, a) in bits.items())


@pytest.mark.parametrize(
    ("weights", "activations", "bits"),
    [
        ("int4", None, 4 * 32),
        (None, "int8", 32 * 8),
        ("e4m3fn", "e4m3fn", 8 * 8),
        ("bf16", "int16", 16 * 16),
        ("mxfp4", "int8", 4.25 * 8),
    ],
)
def test_what_stays_float_counts_32_bits(weights: str | None, activations: str | None, bits: float) -> None:
    found = cost(student(Recipe.uniform(weights, activations)), EXAMPLE)
    assert found.bops == sum(MACS.values()) * bits


@pytest.mark.parametrize(
    ("weights", "granularity", "expected"),
    [
        ("int8", "channel", 320 + 4 * 5),
        ("int4", "channel", 160 + 4 * 5),
        ("int4", "tensor", 160 + 4),
        ("int4", "group:16", 160 + 4 * 20),
        ("int3", "channel", 120 + 4 * 5),
        ("ternary", "channel", 80 + 4 * 5),
        ("binary", "tensor", 40 + 4),
        ("mid2", "channel", 80 + 4 * 5),
        ("e2m1", "channel", 160 + 4 * 5),
        ("e3m2", "tensor", 240 + 4),
        ("int16", "tensor", 640 + 4),
        ("mxfp4", "channel", 160 + 10),
        ("mxfp6", "channel", 240 + 10),
        ("nvfp4", "channel", 160 + 20 + 4),
    ],
)
def test_weight_bytes(weights: str, granularity: str, expected: int) -> None:
    torch.manual_seed(0)
    quantized = quantize(nn.Linear(64, 5), Recipe.uniform(weights, None, granularity=granularity))
    assert cost(quantized, torch.zeros(1, 64)).weight_bytes == expected


def test_odd_weights_fill_their_last_byte() -> None:
    quantized = quantize(nn.Linear(3, 3), Recipe.uniform("int4", None, granularity="tensor"))
    assert cost(quantized, torch.zeros(1, 3)).weight_bytes == 5 + 4


def test_activation_bytes() -> None:
    found = cost(student(Recipe.uniform("int4", "int8")), EXAMPLE)
    assert {r.name: r.activation_bytes for r in found.layers} == {"0": 192 + 288, "2": 288 + 64, "4": 64 + 5}
    assert found.activation_bytes == 480


def without_formats(found: Cost) -> Cost:
    rows = (replace(r, weight_bits=0, activation_bits=0, weight_bytes=0, activation_bytes=0) for r in found.layers)
    return replace(found, layers=tuple(rows))


@pytest.mark.parametrize("weights", ["int4", "e2m1", "mxfp4", None])
@pytest.mark.parametrize("activations", ["int8", None])
def test_quantizing_changes_bits_only_and_freezing_nothing(weights: str | None, activations: str | None) -> None:
    if weights is None and activations is None:
        pytest.skip("nothing is quantized")
    quantized = student(Recipe.uniform(weights, activations))
    found = cost(quantized, EXAMPLE)
    assert without_formats(found) == without_formats(cost(net(), EXAMPLE))
    assert cost(freeze(quantized), EXAMPLE) == found


def test_a_model_without_weights_costs_nothing() -> None:
    found = cost(nn.ReLU(), torch.zeros(1, 3))
    assert (found.layers, found.macs, found.bops, found.weight_bytes, found.activation_bytes) == ((), 0, 0, 0, 0)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    cost(model, EXAMPLE)
    assert model.training
    assert norm.num_batches_tracked == 0
    assert not model[0]._forward_hooks


def test_what_is_no_batch() -> None:
    with pytest.raises(DataError, match="batch of type int"):
        cost(net(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("repeats", [1, 7])
def test_measure(repeats: int) -> None:
    calls = []
    latency = measure(lambda: calls.append(1), repeats=repeats, warmup=2)
    assert len(calls) == repeats + 2
    assert latency.repeats == repeats
    assert 0 <= latency.low_ms <= latency.median_ms <= latency.high_ms
