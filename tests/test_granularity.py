"""Which elements share a scale, checked by labelling every element with its scale."""

from __future__ import annotations

import pytest
import torch

from lowbit.errors import FormatError
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor, parse_granularity

CASES = [
    (PerTensor(), (2, 3, 2), ()),
    (PerTensor(), (), ()),
    (PerChannel(), (4, 3), (4,)),
    (PerChannel(), (4,), (4,)),
    (PerChannel(1), (2, 3, 2, 2), (3,)),
    (PerChannel(3), (2, 3, 2, 5), (5,)),
    (PerGroup(3), (2, 6), (2, 2)),
    (PerGroup(1), (2, 6), (2, 6)),
    (PerGroup(6), (4, 3, 2, 2), (4, 2)),
    (PerGroup(4, ragged=True), (2, 6), (2, 2)),
    (PerGroup(32, ragged=True), (2, 3, 3, 3), (2, 1)),
    (PerGroup(1), (5,), (5, 1)),
]
IDS = [f"{granularity} of {list(shape)}" for granularity, shape, _ in CASES]


@pytest.mark.parametrize(("granularity", "shape", "scales"), CASES, ids=IDS)
def test_scale_shape_and_views(granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    x = torch.arange(1.0, torch.Size(shape).numel() + 1).reshape(shape)
    assert granularity.scale_shape(x.shape) == scales
    assert torch.equal(granularity.unblocked(granularity.blocked(x), x.shape), x)
    rows = granularity.rows(x)
    assert rows.shape[0] == torch.Size(scales).numel()
    assert torch.equal(rows[rows > 0].sort().values, x.flatten())  # each element once, the rest is zeros
    assert rows[rows <= 0].count_nonzero() == 0


@pytest.mark.parametrize(("granularity", "shape", "scales"), CASES, ids=IDS)
def test_spread_gives_each_element_the_scale_of_its_row(
    granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    labels = torch.arange(torch.Size(scales).numel()).reshape(scales)
    spread = granularity.spread(labels, torch.Size(shape))
    zeros = granularity.blocked(torch.zeros(shape, dtype=torch.long))
    of_element = granularity.unblocked(zeros + spread, torch.Size(shape))
    for label, row in enumerate(granularity.rows(of_element)):
        assert set(row.tolist()) <= {0, label}
    assert set(of_element.flatten().tolist()) == set(range(labels.numel()))


def test_a_channel_is_all_that_its_index_holds() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(PerChannel(1).rows(x)[2], x[:, 2].flatten())


def test_groups_run_along_the_flattened_inputs() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert PerGroup(4, ragged=True).blocked(x).tolist() == [
        [[0, 1, 2, 3], [4, 5, 0, 0]],
        [[6, 7, 8, 9], [10, 11, 0, 0]],
    ]


@pytest.mark.parametrize("text", ["tensor", "channel", "channel:0", "channel:12", "group:32", "group:5:ragged"])
def test_parse_is_the_inverse_of_str(text: str) -> None:
    assert str(parse_granularity(text)) == text


@pytest.mark.parametrize("text", ["", "Tensor", "channel:", "channel:-1", "group", "group:1.5", "group:4:rag", "row"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="unknown granularity"):
        parse_granularity(text)


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(FormatError, match=r"\[16, 3, 3, 3\]: PerGroup\(32\) does not divide 27 inputs"):
        PerGroup(32).scale_shape(torch.Size([16, 3, 3, 3]))
    with pytest.raises(FormatError, match=r"PerChannel\(2\) on shape \[4, 3\]"):
        PerChannel(2).scale_shape(torch.Size([4, 3]))
    with pytest.raises(FormatError, match="at least 1"):
        PerGroup(0)
