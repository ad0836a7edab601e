"""How long work shows itself where its output is no terminal."""

from __future__ import annotations

import pytest

from lowbit import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; lines are written as if nothing was told before."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(progress._LOG, "told", 0.0)
    return now


def test_a_log_has_a_line_now_and_then(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """With what is done, the time that took, and what is left at that pace."""
    for _ in progress.track(range(400), "calibrate"):
        clock[0] += 10
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "calibrate: 3 of 400, 0:30, about 1:06:10 left"
    assert lines[-1] == "calibrate: 399 of 400, 1:06:30, about 0:10 left"
    assert len(lines) == 133


def test_short_work_tells_nothing(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """However much of it there is."""
    for _ in range(10):
        for _ in progress.track(range(29), "calibrate"):
            clock[0] += 1
    assert not capfd.readouterr().err


def test_work_inside_of_work_shares_the_lines(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """Two bars at once are no reason for two lines; the text of the last step stands in them."""
    with progress.counted(10, "training", done=4) as advance:
        for _ in progress.track(iter("ab"), "look"):
            clock[0] += 35
        advance("epoch 5 of 10")
        clock[0] += 30
        advance("")
    assert capfd.readouterr().err.splitlines() == [
        "look: 1, 0:35",
        "look: 2, 1:10",
        "epoch 5 of 10: 6 of 10, 1:40, about 3:20 left",
    ]


def test_lines_name_what_the_work_is_part_of(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """A variant, while it is measured."""
    with progress.within("w4a8"), progress.counted(2, "training") as advance:
        for text in ("", "epoch 2 of 2"):
            clock[0] += 40
            advance(text)
    with progress.counted(2, "look") as advance:
        clock[0] += 40
        advance("")
    assert [line.rpartition(":")[0].partition(" of")[0] for line in capfd.readouterr().err.splitlines()] == [
        "w4a8: training: 1",
        "w4a8: epoch 2",
        "look: 1",
    ]


def test_nothing_is_shown_unless_asked(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    """In processes side by side, for one."""
    for _ in progress.track(range(5), "calibrate", show=False):
        clock[0] += 100
    assert not capfd.readouterr().err
