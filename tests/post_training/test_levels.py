"""The levels, on good data and on bad."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lowbit import models
from lowbit.errors import CalibrationError, DataWarning, RecipeError
from lowbit.export.onnx import export_onnx
from lowbit.export.verify import verify
from lowbit.post_training import levels
from lowbit.post_training.levels import LEVELS, Level, post_train
from lowbit.quantization import origin
from lowbit.recipe import Recipe

RECIPE = Recipe.uniform("int4", "int8")


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "TUNING_STEPS", 10)


def digits() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return models.digits_cnn().eval(), list(torch.split(seeded(72, 1, 8, 8), 8))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: Level) -> None:
    model, batches = digits()
    before = copy.deepcopy(model.state_dict())
    student, told = post_train(model, RECIPE, batches, level=level, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert student(batches[0]).isfinite().all()
        exact = model(batches[0])
        assert ((student(batches[0]) - exact) ** 2).mean() < 0.1 * exact.var()
    assert told.level == level
    assert told.steps[0].name == "calibrate"
    assert told.widening is None
    noted = origin(student)
    assert noted is not None
    names = [step.partition("(")[0] for step in noted.steps]
    assert len(names) == len(told.steps) - 1
    assert ("round_weights" in names) == (level != "fast")
    assert ("tune" in names) == (level == "best")
    if level != "fast":
        assert told.steps[-1].error <= told.steps[0].error
        assert all(step.agreement is not None and 0 <= step.agreement <= 1 for step in told.steps)
        assert "same prediction as the float model" in str(told)


def test_better_levels_come_closer() -> None:
    model, batches = digits()
    errors = {}
    for level in LEVELS:
        student, _ = post_train(model, RECIPE, batches, level=level, progress=False)
        with torch.no_grad():
            errors[level] = float(torch.stack([((student(x) - model(x)) ** 2).mean() for x in batches]).mean())
    assert errors["balanced"] < errors["fast"]
    assert errors["best"] < errors["fast"]


def test_same_inputs_same_result() -> None:
    model, batches = digits()
    first, _ = post_train(model, RECIPE, batches, level="best", progress=False)
    again, _ = post_train(model, RECIPE, batches, level="best", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("level", LEVELS)
def test_batches_may_be_a_generator(level: Level) -> None:
    model, batches = digits()

    def once() -> Iterator[Tensor]:
        yield from batches

    expected, _ = post_train(model, RECIPE, batches, level=level, progress=False)
    student, _ = post_train(model, RECIPE, once(), level=level, progress=False)
    assert torch.equal(student(batches[0]), expected(batches[0]))


def test_what_cannot_work_is_an_error() -> None:
    model, batches = digits()
    with pytest.raises(RecipeError, match="level 'better' is unknown; expected fast, balanced, best"):
        post_train(model, RECIPE, batches, level="better", progress=False)  # type: ignore[arg-type]
    for level in ("balanced", "best"):
        for some in ([], batches[:1]):
            with pytest.raises(CalibrationError, match="expected at least 2"):
                post_train(model, RECIPE, some, level=level, progress=False)
    with pytest.raises(CalibrationError, match="no batches"):
        post_train(model, RECIPE, [], level="fast", progress=False)


def test_regression_is_judged_by_its_error() -> None:
    torch.manual_seed(0)
    model = models.mlp(6, 1, (16,)).eval()
    _, told = post_train(model, RECIPE, list(torch.split(seeded(64, 6), 8)), progress=False)
    assert all(step.agreement is None for step in told.steps)
    assert "squared error" in str(told)


def test_widening_is_told() -> None:
    model, batches = digits()
    recipe = Recipe.uniform("int8", "int4")
    student, told = post_train(model, recipe, batches, widen_most=1, progress=False)
    assert told.widening is not None
    assert told.widening.error_after < told.widening.error_before
    noted = origin(student)
    assert noted is not None
    assert any(rule.activations is not None and rule.activations.bits == 16 for rule in noted.recipe.rules)


def test_the_file_does_what_the_student_does(tmp_path: Path) -> None:
    model, batches = digits()
    student, _ = post_train(model, RECIPE, batches, progress=False)
    result = verify(export_onnx(student, tmp_path / "m.onnx", batches[0]), batches, progress=False)
    assert result.same_prediction is not None
    assert result.same_prediction > 0.95
    assert result.unlike_calibration == ()


# Bad data


def outlier(batches: list[Tensor]) -> list[Tensor]:
    batches[3] = batches[3].clone()
    batches[3][2, 0, 4, 4] = 1e6
    return batches


def spoiled(kind: str) -> tuple[nn.Module, list[Tensor]]:
    model, batches = digits()
    first, second = model.get_submodule("features.0"), model.get_submodule("features.1")
    match kind:
        case "constant inputs":
            batches = [torch.full_like(x, 0.5) for x in batches]
        case "inputs that are all 0":
            batches = [torch.zeros_like(x) for x in batches]
        case "dead channels":
            first.get_parameter("bn.weight").data[:6] = 0
            first.get_parameter("bn.bias").data[:6] = torch.tensor([0.0, 0, 0, 1, -1, -1])
        case "dead layer":
            second.get_parameter("bn1.weight").data.zero_()
        case "layer of zeros":
            second.get_parameter("conv1.weight").data.zero_()
        case "last layer of zeros":
            model.get_parameter("linear.weight").data.zero_()
        case "tiny weights":
            second.get_parameter("conv1.weight").data.mul_(1e-20)
        case "outlier":
            batches = outlier(list(torch.split(seeded(360, 1, 8, 8), 40)))  # the percentile needs 10,000 numbers
    return model, batches


KINDS = ["constant inputs", "inputs that are all 0", "dead channels", "dead layer", "layer of zeros"]
KINDS += ["last layer of zeros", "tiny weights", "outlier"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_gives_finite_networks_and_files(kind: str, tmp_path: Path) -> None:
    model, batches = spoiled(kind)
    if kind == "outlier":
        with pytest.warns(DataWarning, match="the largest of the calibration samples is .* times"):
            student, told = post_train(model, RECIPE, batches, progress=False)
    else:
        student, told = post_train(model, RECIPE, batches, progress=False)
    with torch.no_grad():
        for x in (*batches, seeded(4, 1, 8, 8)):
            assert student(x).isfinite().all()
    assert all(np.isfinite(step.error) for step in told.steps)
    exported = export_onnx(student, tmp_path / "m.onnx", batches[0])
    for tensor in onnx.load(exported.path).graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype.kind not in "fc" or np.isfinite(values).all(), tensor.name


# Known to fail


@pytest.mark.parametrize("level", ["balanced", "best"])
def test_the_mode_of_the_model_stays(level: Level) -> None:
    model, batches = digits()
    post_train(model.train(), RECIPE, batches, level=level, progress=False)
    assert model.training


def test_one_output_one_sample_a_batch() -> None:
    torch.manual_seed(0)
    model = models.mlp(6, 1, (16,)).eval()
    _, told = post_train(model, RECIPE, list(torch.split(seeded(5, 6), 1)), progress=False)
    assert all(np.isfinite(step.error) for step in told.steps)


def test_images_of_several_sizes() -> None:
    """Level fast takes them; the others take them or say what is wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    batches = [seeded(2, 1, 8 + i // 8, 8) for i in range(16)]
    post_train(model, RECIPE, batches, level="fast", progress=False)
    try:
        post_train(model, RECIPE, batches, progress=False)
    except CalibrationError as error:
        assert "shape" in str(error)  # noqa: PT017


def test_widened_layers_are_told() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(64, 6)
    recipe = Recipe.uniform("int8", "int2")
    _, did = post_train(model, recipe, list(torch.split(x, 8)), level="fast", widen_most=1, progress=False)
    assert did.widening is not None
    (wide,) = [tensor for tensor in did.widening.tensors if tensor.widened]
    assert str(did).endswith(f"16-bit inputs for {wide.layers[0]}")


def test_a_regression_has_no_equal_predictions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(64, 6)
    plain, labelled = list(torch.split(x, 16)), [(part, model(part).detach()) for part in torch.split(x, 16)]
    recipe = Recipe.uniform("int8", "int8")
    assert "same prediction" in str(post_train(model, recipe, plain, progress=False)[1])
    for batches, classes in ((labelled, None), (plain, False)):
        _, did = post_train(model, recipe, batches, classes=classes, progress=False)
        assert "same prediction" not in str(did)
        assert all(step.agreement is None for step in did.steps)
