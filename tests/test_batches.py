"""What is handed over as batches and is none, or holds what no scale can be set from, is refused with what to write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.errors import CalibrationError, DataError

RECIPE = lb.Recipe.uniform("int8", "int8")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2)).eval()


def signals() -> Tensor:
    return torch.randn(64, 3, 20, generator=torch.Generator().manual_seed(1))


def given_to(verb: str, batches: Any, activations: str | None = "int8") -> None:
    recipe = lb.Recipe.uniform("int8", activations)
    if verb == "calibrate":
        lb.calibrate(lb.quantize(net(), recipe), batches, progress=False)
    else:
        lb.post_train(net(), recipe, batches, level=verb, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("verb", ["calibrate", "fast", "balanced"])
@pytest.mark.parametrize(("position", "bad"), [(3, torch.nan), (19, torch.inf), (63, -torch.inf)])
def test_samples_that_are_not_finite(verb: str, activations: str | None, position: int, bad: float) -> None:
    """Samples 0 to 7 are held out by `post_train`, where nothing calibrates."""
    x = signals()
    x[position, 1, 2] = bad
    with pytest.raises(CalibrationError, match=rf"^sample {position} holds NaN or infinity, expected finite .* remove"):
        given_to(verb, torch.split(x, 8), activations)


def test_the_input_that_is_not_finite_is_named() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = self.body(x * mask)
            return out

    def batches() -> Iterator[dict[str, Tensor]]:
        for i, part in enumerate(torch.split(signals(), 8)):
            yield {"x": part, "mask": torch.full_like(part, torch.nan if i == 2 else 1.0)}

    with pytest.raises(CalibrationError, match=r"^sample 16, input 'mask', holds NaN"):
        lb.post_train(Masked().eval(), RECIPE, batches(), level="fast", progress=False)


def test_batches_without_samples_and_without_floats_pass() -> None:
    ids = torch.arange(6).reshape(2, 3)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    student, _ = lb.post_train(model, RECIPE, [ids, ids[:0], ids], level="fast", progress=False)
    assert student(ids).isfinite().all()


@pytest.mark.parametrize("verb", ["calibrate", "fast", "balanced"])
def test_one_tensor_or_array_is_not_batches(verb: str) -> None:
    with pytest.raises(DataError, match=r"^expected batches, got one tensor \[64, 3, 20\]; write x\.split\(64\)$"):
        given_to(verb, signals())
    told = r"^expected batches, got one NumPy array \[64, 3, 20\]; write torch\.from_numpy\(x\)\.split\(64\)$"
    with pytest.raises(DataError, match=told):
        given_to(verb, signals().numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["alone", "tuple", "dict"])
@pytest.mark.parametrize("verb", ["calibrate", "balanced"])
def test_arrays_are_not_tensors(verb: str, form: str, dtype: type[np.floating[Any]]) -> None:
    x = signals().numpy().astype(dtype)
    batches = [{"alone": one, "tuple": (one, one[:, 0, 0]), "dict": {"input": one}}[form] for one in np.split(x, 8)]
    use = "torch.from_numpy(x).split(64)" if dtype is np.float32 else "torch.from_numpy(x).float().split(64)"
    with pytest.raises(DataError) as caught:
        given_to(verb, batches)
    assert str(caught.value) == f"got a NumPy array; use {use}"
    lb.calibrate(lb.quantize(net(), RECIPE), eval(use, {"torch": torch, "x": x}), progress=False)  # as told, it works


@pytest.mark.parametrize("verb", ["calibrate", "fast", "balanced"])
def test_float64_is_told_from_a_wrong_shape(verb: str) -> None:
    with pytest.raises(DataError, match=r"does not take float64 inputs of shape \[8, 3, 20\] .*; use x\.float\(\)$"):
        given_to(verb, torch.split(signals().double(), 8))
    with pytest.raises(DataError, match=r"does not take inputs of shape \[8, 2, 20\] .*correct the data"):
        given_to(verb, torch.split(signals()[:, :2], 8))
