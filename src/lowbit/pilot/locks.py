"""Lock files: who holds a folder, told by the operating system and by a note.

The system frees a lock when its process ends, however it ends. A note that is still in a freed file therefore tells of
a process that was lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: notes in lock files are all there is
    fcntl = None  # type: ignore[assignment]


def take(path: Path) -> tuple[int | None, dict[str, Any], bool]:
    """An open lock file, or None where another process holds it; the note in it; whether the system really locks."""
    while True:
        descriptor, locks = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), fcntl is not None
        try:
            if locks:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = _left(descriptor)
            os.close(descriptor)
            return None, left, True
        except OSError:  # a file system without locks
            locks = False
        if _same(descriptor, path):
            return descriptor, _left(descriptor), locks
        os.close(descriptor)  # its holder has just removed it: this one is no lock any more


def may_run(left: dict[str, Any]) -> bool:
    """Whether the process of a note may be running: on this host it is looked for, of another one nothing is known."""
    if left.get("host") != socket.gethostname():
        return bool(left)
    try:
        os.kill(int(left["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        pass
    return int(left["pid"]) != os.getpid()


@contextlib.contextmanager
def holding(descriptor: int, path: Path, note: dict[str, Any]) -> Iterator[None]:
    """Hold a lock file that was taken, with a note in it; it is removed at the end."""
    said = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now(), **note}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(said).encode())
    try:
        yield
    finally:
        if fcntl is None:  # Windows removes no open file
            os.close(descriptor)
        path.unlink(missing_ok=True)
        if fcntl is not None:  # after it is gone, so that nobody takes what is about to be removed
            os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _left(descriptor: int) -> dict[str, Any]:
    """What the lock file says; nothing if it is new."""
    with contextlib.suppress(ValueError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        said = json.loads(os.read(descriptor, 4096))
        if isinstance(said, dict):
            return said
    return {}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
