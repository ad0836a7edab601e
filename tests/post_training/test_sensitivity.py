"""The layer made sensitive on purpose is found, and reads 16 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.errors import CalibrationError
from lowbit.formats import Int
from lowbit.objectives import relative_error
from lowbit.post_training.sensitivity import widen
from lowbit.quantization import calibrate, coverage, quantize
from lowbit.recipe import Recipe, Rule


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Sensitive(nn.Module):
    """`second` reads numbers of which the small ones count."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.first.weight.data[0] *= 200
        self.second.weight.data[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x)))
        return y


def test_the_sensitive_layer_is_widened() -> None:
    torch.manual_seed(0)
    model, recipe = Sensitive().eval(), Recipe.uniform("int8", "int8")
    batches, held_out = [seeded(256, 8)], [seeded(64, 8, seed=2)]
    wider, told = widen(model, recipe, batches, held_out, most=1, progress=False)
    assert [row.layers for row in told.tensors if row.widened] == [("second",)]
    assert [row.error for row in told.tensors] == sorted(row.error for row in told.tensors)
    assert told.error_after < 0.2 * told.error_before
    rules = wider.resolve(["first", "second", "third"])
    assert [str(rule.activations) for rule in rules.values() if rule] == ["int8", "int16", "int8"]
    student = quantize(model, wider)
    calibrate(student, batches, progress=False)
    with torch.no_grad():
        assert relative_error(student(held_out[0]), model(held_out[0])) == pytest.approx(told.error_after, rel=1e-3)
    assert {row.name: row.activations for row in coverage(student).layers}["second"] == "int16"


@pytest.mark.parametrize(("activations", "most"), [("int8", 0), ("int16", 2), (None, 2)])
def test_where_nothing_is_gained_the_recipe_stays(activations: str | None, most: int) -> None:
    torch.manual_seed(0)
    model, recipe = models.mlp(8, 4).eval(), Recipe.uniform("int8", activations)
    same, told = widen(model, recipe, [seeded(64, 8)], [seeded(32, 8, seed=2)], most=most, progress=False)
    assert same == recipe
    assert told.error_after == told.error_before
    assert not any(row.widened for row in told.tensors)


def test_no_batches_is_an_error() -> None:
    model, recipe = models.mlp(8, 4).eval(), Recipe.uniform("int8", "int8")
    with pytest.raises(CalibrationError, match="no held-out batches"):
        widen(model, recipe, [seeded(4, 8)], [], progress=False)
    with pytest.raises(CalibrationError, match="no batches"):
        widen(model, recipe, [], [seeded(4, 8)], progress=False)


def test_a_rule_that_leaves_a_layer_float() -> None:
    torch.manual_seed(0)
    recipe = Recipe((Rule("*", Int(8), Int(4)), Rule("head")))
    wider, _ = widen(models.mlp(8, 4).eval(), recipe, [seeded(64, 8)], [seeded(32, 8, seed=2)], progress=False)
    assert len(wider.rules) > 2
