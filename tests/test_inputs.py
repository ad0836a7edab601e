"""Statistics of inputs do not depend on how they are batched; what changed is named."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from lowbit.batches import Batch
from lowbit.inputs import InputStatistics, InputWatch, differences


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def watched(*batches: Batch) -> dict[str, InputStatistics]:
    watch = InputWatch()
    for batch in batches:
        watch.add(batch)
    return watch.statistics()


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 50, 3]], ids=["one", "single", "uneven"])
def test_statistics_are_those_of_all_samples(sizes: list[int]) -> None:
    x = 3 * seeded(60, 2, 5) + 7
    (found,) = watched(*torch.split(x, sizes)).values()
    assert found.shape == (2, 5)
    assert found.mean == pytest.approx(float(x.double().mean()), rel=1e-9)
    assert found.deviation == pytest.approx(float(x.double().std(correction=0)), rel=1e-7)
    assert (found.low, found.high) == (float(x.min()), float(x.max()))


def test_every_form_of_batch() -> None:
    x = seeded(8, 3)
    expected = watched(x)
    assert watched((x, torch.arange(8))) == watched([x]) == expected
    named = watched({"a": x, "ids": torch.arange(8), "mask": x > 0, "labels": x})
    assert named == {"a": expected["input"]}
    assert watched(torch.arange(8)) == {}
    assert watched() == {}
    assert watched(x[:0], x) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type(dtype: torch.dtype) -> None:
    x = torch.full((4, 60_000), 2.0, dtype=dtype)  # its sum leaves float16
    assert watched(x)["input"] == InputStatistics((60_000,), 2.0, 0.0, 2.0, 2.0)


def test_statistics_survive_json() -> None:
    (found,) = watched(seeded(8, 3, 4)).values()
    assert InputStatistics.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_the_same_distribution_is_not_worth_a_word() -> None:
    x = seeded(200, 6)
    assert differences(watched(x[:100]), watched(x[100:])) == ()
    assert differences(watched(x), watched(x)) == ()
    constant = torch.full((4, 3), 0.5)
    assert differences(watched(constant), watched(constant)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :5], ["here shape [5]", "there shape [6]"]),
        (lambda x: x + 2, ["here shape [6], mean 2", "there shape [6], mean"]),
        (lambda x: x * 255, ["deviation 2"]),
        (lambda x: x / 255, ["deviation 0.00"]),
    ],
    ids=["shape", "mean", "wider", "narrower"],
)
def test_what_changed_is_named(change: object, words: list[str]) -> None:
    assert callable(change)
    x = seeded(200, 6)
    (told,) = differences(watched(x), watched(change(x)))
    assert told.startswith("input 'input' is not like the calibration data: here shape")
    assert told.endswith("preprocess both alike")
    assert all(word in told for word in words)


def test_only_inputs_that_calibrated_are_compared() -> None:
    x = seeded(20, 6)
    now = watched({"a": x, "b": 100 * x, "new": x})
    (told,) = differences(watched({"a": x, "b": x, "gone": x}), now)
    assert "input 'b'" in told
