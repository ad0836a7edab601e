"""Second-order rounding against nearest rounding and brute force; scales that fit the data."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.formats import Int
from lowbit.layers import Quantized
from lowbit.post_training.rounding import fit_scales, round_weights
from lowbit.quantization import activation_quantizers, calibrate, freeze, origin, quantize
from lowbit.quantizer import Codes
from lowbit.recipe import Recipe, Rule


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, inputs: int) -> Tensor:
    """Inputs that a few hidden numbers make, and a little noise."""
    return seeded(rows, 3) @ seeded(3, inputs, seed=2) + 0.1 * seeded(rows, inputs, seed=3)


def layer_in(student: nn.Module, name: str = "0") -> Quantized:
    layer = student.get_submodule(name)
    assert isinstance(layer, Quantized)
    return layer


def linear(inputs: int, outputs: int, weights: str) -> tuple[nn.Module, nn.Module]:
    """A float layer in a model, and its student with float activations."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, outputs)).eval()
    return model, quantize(model, Recipe.uniform(weights, None))


def error(student: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(((student(x) - model(x)) ** 2).mean())


FORMATS = ["int8", "int4", "int2", "mid2", "ternary", "binary", "e2m1", "e4m3fn", "mxfp4", "nvfp4"]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "channel:1", "group:12"])
@pytest.mark.parametrize("weights", FORMATS)
def test_weights_end_on_the_grid(weights: str, granularity: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).eval()
    student = quantize(model, Recipe.uniform(weights, None, granularity=granularity))
    x = seeded(4, 4, 6, 6)
    rounded, _ = round_weights(student, model, [x], progress=False)
    layer = layer_in(rounded)
    assert torch.equal(layer.weight, layer.layer.get_parameter("weight"))
    codes = layer_in(freeze(rounded)).weight_quantizer
    assert isinstance(codes, Codes)
    assert torch.equal(codes(), layer.weight)
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    assert torch.equal(quantizer.scale, layer_in(student).weight_quantizer.scale)  # type: ignore[union-attr]


@pytest.mark.parametrize("weights", FORMATS)
def test_independent_inputs_give_nearest_rounding(weights: str) -> None:
    """H is the identity: a layer of unit inputs, nothing can be made up for."""
    model, student = linear(16, 8, weights)
    rounded, _ = round_weights(student, model, [torch.eye(16)], progress=False)
    assert torch.equal(layer_in(rounded).weight, layer_in(student).weight)


@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "mid2", "ternary", "binary", "e2m1"])
def test_correlated_inputs_gain(weights: str) -> None:
    model, student = linear(24, 8, weights)
    x = correlated(256, 24)
    rounded, told = round_weights(student, model, [x[:100], x[100:]], progress=False)
    assert error(rounded, model, x) < 0.5 * error(student, model, x)
    (row,) = told.layers
    assert row.name == "0"
    assert row.error_after < 0.5 * row.error_before


@pytest.mark.parametrize("seed", range(4))
def test_nearly_as_good_as_brute_force(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4)).eval()
    student = quantize(model, Recipe.uniform("int2", None))
    x = seeded(64, 3, seed=seed) @ seeded(3, 3, seed=seed + 10)
    rounded, _ = round_weights(student, model, [x], progress=False)
    layer = layer_in(student)
    scale = layer.weight_quantizer.scale.detach()  # type: ignore[union-attr]
    grid = torch.tensor([*itertools.product(Int(2).values().tolist(), repeat=3)])  # [64, 3]
    weight = model[0].get_parameter("weight").detach()
    misses = (grid[None] * scale[:, None, None] - weight[:, None]) @ x.T  # [outputs, 64, samples]
    best = (misses**2).mean(2).amin(1).mean()
    assert float(best) * (1 - 1e-4) <= error(rounded, model, x) <= 1.6 * float(best) + 1e-6
    assert error(rounded, model, x) <= 1.001 * error(student, model, x)


def test_a_network_gains() -> None:
    torch.manual_seed(0)
    model = models.digits_cnn().eval()
    x = seeded(64, 1, 8, 8)
    student = quantize(model, Recipe.uniform("int4", "int8"))
    calibrate(student, [x], progress=False)
    before = copy.deepcopy(student.state_dict())
    rounded, told = round_weights(student, model, [x[:32], x[32:]], progress=False)
    assert error(rounded, model, x) < 0.8 * error(student, model, x)
    assert len(told.layers) == 5
    assert not told.skipped
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    noted = origin(rounded)
    assert noted is not None
    assert len(noted.steps) == 1
    assert noted.steps[0].startswith("round_weights(")
    assert origin(student).steps == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("refit", [0.0, 0.5, 1.0])
def test_dead_and_equal_inputs(refit: float) -> None:
    model, student = linear(12, 8, "int4")
    x = seeded(64, 12)
    x[:, 2] = 0
    x[:, 5:9] = x[:, 4:5]
    rounded, told = round_weights(student, model, [x], refit=refit, progress=False)
    assert layer_in(rounded).weight.isfinite().all()
    assert error(rounded, model, x) <= error(student, model, x)
    assert told.layers[0].error_after == pytest.approx(told.layers[0].error_after)  # no NaN


@pytest.mark.parametrize("value", [0.0, 1e6, 1e-20])
def test_inputs_that_are_all_alike(value: float) -> None:
    model, student = linear(6, 4, "int4")
    for function in (round_weights, fit_scales):
        rounded, told = function(student, model, [torch.full((8, 6), value)], progress=False)
        assert layer_in(rounded).weight.isfinite().all()
        assert told.layers[0].error_after >= 0


def test_depthwise_layers_gain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, padding=1)).eval()
    x = nn.functional.interpolate(seeded(8, 6, 4, 4), scale_factor=3, mode="bilinear")  # smooth, as images are
    student = quantize(model, Recipe.uniform("int2", None))
    rounded, _ = round_weights(student, model, [x], progress=False)
    assert error(rounded, model, x) < 0.9 * error(student, model, x)


class Kinds(nn.Module):
    """A layer of each kind that is not rounded, and one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.up = nn.ConvTranspose1d(4, 4, 3)
        self.left, self.head = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.left(self.up(self.embed(ids).transpose(1, 2))))
        return y


def test_layers_left_alone_are_named() -> None:
    torch.manual_seed(0)
    model = Kinds().eval()
    student = quantize(model, Recipe((Rule("*", Int(4), Int(8)), Rule("left", None, Int(8)))))
    ids = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(0))
    calibrate(student, [ids], progress=False)
    for function in (round_weights, fit_scales):
        changed, told = function(student, model, [ids], progress=False)
        assert [row.name for row in told.layers] == ["head"]
        assert set(told.skipped) == {"embed", "up", "left"}
        assert "Embedding keeps the rounding it has" in told.skipped["embed"]
        assert "ConvTranspose1d keeps the rounding it has" in told.skipped["up"]
        assert told.skipped["left"] == "its weights are float"
        for name in told.skipped:
            assert torch.equal(layer_in(changed, name).weight, layer_in(student, name).weight)
    _, told = round_weights(freeze(student), model, [ids], progress=False)
    assert told.skipped["head"] == "its weights are frozen codes"
    assert not told.layers


def test_layers_called_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(input=self.first(x))
            return y

    torch.manual_seed(0)
    model = Named().eval()
    student = quantize(model, Recipe.uniform("int4", None))
    _, told = round_weights(student, model, [correlated(64, 6)], progress=False)
    assert [row.name for row in told.layers] == ["first", "second"]


# Scales


def test_inputs_of_one_size_give_the_scales_of_least_error_of_weights() -> None:
    model, student = linear(16, 8, "int4")
    fitted, _ = fit_scales(student, model, [3 * torch.eye(16)], progress=False)
    scales = (layer_in(s).weight_quantizer.scale for s in (fitted, student))  # type: ignore[union-attr]
    torch.testing.assert_close(*scales, rtol=1e-5, atol=0)


def test_weights_of_inputs_that_are_0_do_not_matter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8)).eval()
    model[0].get_parameter("weight").data[:, 3] = 4  # few other weights would survive
    student = quantize(model, Recipe.uniform("int4", None))
    x = seeded(64, 16)
    x[:, 3] = 0
    fitted, told = fit_scales(student, model, [x], progress=False)
    assert error(fitted, model, x) < 0.05 * error(student, model, x)
    assert told.layers[0].error_after < 0.05 * told.layers[0].error_before


def test_scales_keep_weights_and_activations() -> None:
    torch.manual_seed(0)
    model = models.mlp(6, 3, (8,)).eval()
    student = quantize(model, Recipe.uniform("int4", "int8"))
    x = correlated(64, 6)
    calibrate(student, [x], progress=False)
    fitted, _ = fit_scales(student, model, [x], progress=False)
    assert torch.equal(
        layer_in(fitted, "head").layer.get_parameter("weight"), layer_in(student, "head").layer.get_parameter("weight")
    )
    for a, b in zip(activation_quantizers(fitted).values(), activation_quantizers(student).values(), strict=True):
        assert torch.equal(a.scale, b.scale)
    assert origin(fitted).steps == ("fit_scales",)  # type: ignore[union-attr]
