"""Each tensor takes the range that measures best on held-out inputs."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.errors import CalibrationError, DataWarning
from lowbit.post_training.ranges import RULES, choose_ranges
from lowbit.quantization import activation_quantizers, calibrate, origin, quantize
from lowbit.recipe import Recipe


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, seed: int) -> Tensor:
    """Inputs with outliers; their range is hard to choose."""
    x = seeded(rows, 16, seed=seed)
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > 0.999, 40 * x, x)


def test_the_rule_chosen_has_the_least_error() -> None:
    torch.manual_seed(0)
    model = models.mlp(16, 4, (16,)).eval()
    student = quantize(model, Recipe.uniform("int8", "int4"))
    chosen, told = None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        calibrate(student, [heavy(2000, 1)], progress=False)
        before = copy.deepcopy(student.state_dict())
        chosen, told = choose_ranges(student, model, [heavy(2000, 1)], [seeded(500, 16)], progress=False)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    quantizers = activation_quantizers(chosen)
    assert {row.name for row in told.tensors} == set(quantizers)
    for row in told.tensors:
        assert set(row.errors) == set(RULES)
        assert row.errors[row.rule] == min(row.errors.values())
        assert quantizers[row.name].scale_rule == row.rule
    first = told.tensors[0].errors
    assert first["absmax"] > 1.5 * min(first.values())  # a range for outliers that held-out inputs do not have
    x = seeded(500, 16)
    with torch.no_grad():
        errors = {name: float(((one(x) - model(x)) ** 2).mean()) for name, one in (("b", student), ("c", chosen))}
    assert errors["c"] <= errors["b"]
    assert origin(chosen).steps == ("choose_ranges",)  # type: ignore[union-attr]


def test_a_student_need_not_be_calibrated() -> None:
    torch.manual_seed(0)
    model, x = models.digits_cnn().eval(), seeded(16, 1, 8, 8)
    student = quantize(model, Recipe.uniform("int4", "int8"))
    chosen, told = choose_ranges(student, model, [x[:8]], [x[8:]], progress=False)
    assert len(told.tensors) == len(activation_quantizers(chosen))
    assert chosen(x).isfinite().all()
    assert not any(q.ready for q in activation_quantizers(student).values())


def test_no_batches_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    student = quantize(model, Recipe.uniform("int4", "int8"))
    for batches, held_out in (([], [seeded(2, 4)]), ([seeded(2, 4)], [])):
        with pytest.raises(CalibrationError, match="no batches"):
            choose_ranges(student, model, batches, held_out, progress=False)
