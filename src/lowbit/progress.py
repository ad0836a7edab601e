"""How long work shows itself: a bar on a terminal, and elsewhere, as in a log, a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
EVERY = 30.0  # seconds between two lines of a log; what takes less time tells nothing there


def track(items: Iterable[T], what: str, *, show: bool = True) -> Iterator[T]:
    """Yield `items` and show how far that is, with time left, if `show`."""
    with counted(len(items) if isinstance(items, Sized) else None, what, show=show) as advance:
        for item in items:
            yield item
            advance("")


@contextlib.contextmanager
def counted(total: int | None, what: str, *, done: int = 0, show: bool = True) -> Iterator[Callable[[str], None]]:
    """Yield a function that tells of one more of `total`, under another text than `what` unless that is empty."""
    what = f"{_LOG.within}{what}"
    bar = _bar(show)
    if show and not bar.console.is_terminal:
        yield _LOG.counting(total, what, done)
        return
    with bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda text: bar.update(task, advance=1, description=f"{_LOG.within}{text}" if text else None)


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Name what the work in here is part of, in its bars and lines."""
    before, _LOG.within = _LOG.within, f"{name}: "
    try:
        yield
    finally:
        _LOG.within = before


class _Log:
    """Lines of a log; all work of a process shares them, so that work inside of work does not tell twice."""

    def __init__(self) -> None:
        self.told = 0.0  # when the last line was written
        self.within = ""  # what all work is part of, as a beginning of its text

    def counting(self, total: int | None, what: str, done: int) -> Callable[[str], None]:
        """What `counted` yields."""
        began, at = time.monotonic(), done

        def advance(text: str) -> None:
            nonlocal at, what
            at, what, now = at + 1, f"{self.within}{text}" if text else what, time.monotonic()
            if now - max(began, self.told) < EVERY:
                return
            self.told = now
            shown = f"{what}: {at}, {_clock(now - began)}"
            if total is not None:
                left = _clock((total - at) * (now - began) / (at - done))
                shown = f"{what}: {at} of {total}, {_clock(now - began)}, about {left} left"
            print(shown, file=sys.stderr, flush=True)

        return advance


_LOG = _Log()


def _clock(seconds: float) -> str:
    """Hours where there are some, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(show: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not show)
