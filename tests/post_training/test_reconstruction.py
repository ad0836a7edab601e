"""Learning from the float network: errors fall, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.errors import CalibrationError
from lowbit.formats import Int
from lowbit.layers import Quantized
from lowbit.post_training.learning import RoundingRule
from lowbit.post_training.reconstruction import reconstruct, tune
from lowbit.quantization import calibrate, freeze, origin, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe, Rule

RECIPE = Recipe.uniform("int4", "int4")
COARSE = Recipe.uniform("int2", "int8")  # much to gain


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def prepared(recipe: Recipe = RECIPE) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model, x = models.mlp(8, 4, (16, 16)).eval(), seeded(96, 8)
    student = quantize(model, recipe)
    calibrate(student, [x], progress=False)
    return student, model, [x[:40], x[40:]]


def error(student: nn.Module, model: nn.Module, batches: list[Tensor]) -> float:
    x = torch.cat(batches)
    with torch.no_grad():
        return float(((student(x) - model(x)) ** 2).mean())


Learn = Callable[[nn.Module, nn.Module, list[Tensor], int], nn.Module]
METHODS: dict[str, Learn] = {
    "free": lambda s, m, b, seed: reconstruct(s, m, b, steps=60, seed=seed, progress=False)[0],
    "adaround": lambda s, m, b, seed: reconstruct(s, m, b, rounding="adaround", steps=150, seed=seed, progress=False)[
        0
    ],
    "tune": lambda s, m, b, seed: tune(s, m, b, steps=80, seed=seed, progress=False)[0],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_error_falls_and_the_student_stays(method: str) -> None:
    student, model, batches = prepared(COARSE)
    before = copy.deepcopy(student.state_dict())
    learned = METHODS[method](student, model, batches, 0)
    assert error(learned, model, batches) < 0.9 * error(student, model, batches)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert freeze(learned)(batches[0]).isfinite().all()
    (step,) = origin(learned).steps  # type: ignore[union-attr]
    assert "seed=0" in step


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_result(method: str) -> None:
    student, model, batches = prepared()
    first, again, other = (METHODS[method](student, model, batches, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("weights", ["int4", "int2", "mid2", "ternary", "e2m1", "mxfp4"])
def test_adaround_chooses_one_of_two_neighbors(weights: str) -> None:
    student, model, batches = prepared(Recipe.uniform(weights, "int8"))
    learned, _ = reconstruct(student, model, batches, rounding="adaround", steps=20, progress=False)
    for name, layer in student.named_modules():
        if not isinstance(layer, Quantized):
            continue
        other, quantizer = learned.get_submodule(name), layer.weight_quantizer
        assert isinstance(other, Quantized)
        assert isinstance(quantizer, Quantizer)
        weight = layer.layer.get_parameter("weight").detach()
        blocked = quantizer.granularity.blocked(weight)
        step = quantizer.granularity.spread(quantizer.scale.detach(), weight.shape)
        grid = getattr(quantizer.format, "element", quantizer.format).values()
        z, got = blocked / step, quantizer.granularity.blocked(other.weight.detach()) / step
        torch.testing.assert_close(got, grid[(got[..., None] - grid).abs().argmin(-1)], rtol=1e-4, atol=1e-5)
        between = (
            (grid > torch.minimum(z, got)[..., None] + 1e-4) & (grid < torch.maximum(z, got)[..., None] - 1e-4)
        ).sum(-1)
        assert (between[(z >= grid[0]) & (z <= grid[-1])] == 0).all()  # no grid point lies between the two


@pytest.mark.parametrize("rounding", ["free", "adaround"])
def test_blocks_are_told(rounding: RoundingRule) -> None:
    student, model, batches = prepared(COARSE)
    _, told = reconstruct(student, model, batches, rounding=rounding, steps=100, progress=False)
    assert [block.layers for block in told.blocks] == [("linear1",), ("linear2",), ("head",)]
    before, after = (sum(getattr(block, f"error_{when}") for block in told.blocks) for when in ("before", "after"))
    assert after < before


@pytest.mark.parametrize("weights", ["int4", "int2"])
def test_no_block_ends_worse(weights: str) -> None:
    student, model, batches = prepared(Recipe.uniform(weights, "int8"))
    _, told = reconstruct(student, model, batches, progress=False)
    assert told.blocks[0].error_after <= told.blocks[0].error_before


def test_tuning_tells_its_loss() -> None:
    student, model, batches = prepared()
    _, told = tune(student, model, batches, steps=50, progress=False)
    assert told.loss_after < told.loss_before


@pytest.mark.parametrize("method", METHODS)
def test_inputs_by_name(method: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            y: Tensor = self.second(torch.relu(self.first(x * gain)))
            return y

    torch.manual_seed(0)
    model = Named().eval()
    batches = [{"x": seeded(32, 8), "gain": seeded(32, 8)}, {"x": 2 * seeded(16, 8), "gain": seeded(16, 8)}]
    student = quantize(model, RECIPE)
    calibrate(student, batches, progress=False)
    learned = METHODS[method](student, model, batches, 0)  # type: ignore[arg-type]
    with torch.no_grad():
        exact = model(**batches[0])
        assert ((learned(**batches[0]) - exact) ** 2).mean() < ((student(**batches[0]) - exact) ** 2).mean()


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_several_shapes_are_an_error(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    batches = [seeded(4, 1, 8, 8), seeded(4, 1, 9, 9)]
    student = quantize(model, RECIPE)
    calibrate(student, batches, progress=False)
    with pytest.raises(CalibrationError, match="do not have one shape"):
        METHODS[method](student, model, batches, 0)


@pytest.mark.parametrize("method", METHODS)
def test_no_batches_is_an_error(method: str) -> None:
    student, model, _ = prepared()
    with pytest.raises(CalibrationError, match="no batches"):
        METHODS[method](student, model, [], 0)


@pytest.mark.parametrize("method", METHODS)
def test_float_and_frozen_layers_stay(method: str) -> None:
    student, model, batches = prepared(Recipe((Rule("*", Int(4), Int(4)), Rule("linear2", None, Int(4)))))
    kept = student.get_submodule("linear1")
    assert isinstance(kept, Quantized)
    kept.freeze(None)
    before = {n: v.clone() for n, v in student.state_dict().items() if n.startswith(("linear1", "linear2"))}
    after = METHODS[method](student, model, batches, 0).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(after["head.layer.weight"], student.state_dict()["head.layer.weight"])


def test_layers_of_zeros_learn_nothing_harmful() -> None:
    torch.manual_seed(0)
    model, x = models.mlp(8, 4, (16,)).eval(), seeded(32, 8)
    for parameter in model.get_submodule("linear1").parameters():
        parameter.data.zero_()
    student = quantize(model, RECIPE)
    calibrate(student, [x], progress=False)
    for learn in METHODS.values():
        assert learn(student, model, [x], 0)(x).isfinite().all()


def test_one_output_and_one_sample_left_over() -> None:
    torch.manual_seed(0)
    model, x = models.mlp(8, 1, (16,)).eval(), seeded(33, 8)
    student = quantize(model, RECIPE)
    calibrate(student, [x], progress=False)
    _, told = tune(student, model, [x], steps=5, batch_size=32, progress=False)
    assert told.loss_after == told.loss_after
