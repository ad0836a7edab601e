"""How long work shows itself: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, *, show: bool = True) -> Iterator[T]:
    """Yield `items` under a progress bar with time left, on a terminal and if `show`."""
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
    total = len(items) if isinstance(items, Sized) else None
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        yield from bar.track(items, total=total, description=what)
