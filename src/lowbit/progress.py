"""How long work shows itself: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], what: str, *, show: bool = True) -> Iterator[T]:
    """Yield `items` under a progress bar with time left, on a terminal and if `show`."""
    total = len(items) if isinstance(items, Sized) else None
    with _bar(show) as bar:
        yield from bar.track(items, total=total, description=what)


@contextlib.contextmanager
def counted(total: int, what: str, *, done: int = 0, show: bool = True) -> Iterator[Callable[[str], None]]:
    """Yield a function that moves such a bar one of `total` on, and changes its text unless that is empty."""
    with _bar(show) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda text: bar.update(task, advance=1, description=text or None)


def _bar(show: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal))
