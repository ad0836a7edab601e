"""Axes and labels: the same map both ways, round ticks, and names that cover nothing while there is room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.report.axes import Axis, overlap, place_label


@pytest.mark.parametrize("axis", [Axis(0, 8, 100), Axis(0.2, 80, 300, log=True)])
def test_back_undoes_at(axis: Axis) -> None:
    assert [axis.at(axis.low), axis.at(axis.high)] == pytest.approx([0, axis.pixels])
    assert [axis.back(axis.at(value)) for value in (0.3, 1, 7)] == pytest.approx([0.3, 1, 7])
    assert axis.at(1e9) == pytest.approx(axis.pixels)


@given(low=st.floats(1e-9, 1e12), span=st.floats(1.01, 1e9), log=st.booleans(), most=st.integers(4, 8))
def test_ticks_are_few_round_rising_and_inside(low: float, span: float, log: bool, most: int) -> None:
    ticks = Axis(low, low * span, 300, log).ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * span for tick in ticks)


def test_ticks() -> None:
    assert Axis(0.18, 1.4, 300, log=True).ticks(6) == [0.2, 0.5, 1]
    assert Axis(2e9, 1e11, 300, log=True).ticks(6) == [2e9, 5e9, 1e10, 2e10, 5e10, 1e11]
    assert Axis(90.4, 92.5, 200).ticks(6) == [90.5, 91, 91.5, 92, 92.5]
    assert Axis(0, 0.875, 300).ticks(6) == [0, 0.2, 0.4, 0.6, 0.8]


def test_labels_avoid_what_is_taken() -> None:
    within = (0.0, 0.0, 300.0, 200.0)
    free = place_label("w4a8", 100, 100, within=within, taken=[])
    assert (free.align, free.free) == ("left", True)
    moved = place_label("w4a8", 100, 100, within=within, taken=[free.box])
    assert overlap(moved.box, free.box) == 0
    assert place_label("w4a8", 295, 100, within=within, taken=[]).align == "right"
    assert not place_label("w4a8", 100, 100, within=within, taken=[within]).free
