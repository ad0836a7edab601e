"""Lock files: who holds a folder, told by the operating system, by a note, and by signs of life.

    .lock                        the note of who claims the folder; its time is renewed every `BEAT` seconds
    .lock.<hash of that note>    for an instant: the claim of who takes over from that process, before it becomes .lock

A lock file is created exclusively, which a file system lets one process do. Its holder also locks it where the system
can (flock): such a lock is free when its process has ended, however it ended, and the note that is left tells of a
process that was lost. Where the system has no locks, or where the note is of another host, since a host's locks may
hold on that host alone (Lustre's `localflock`), a process counts as lost if it ran on this host and is gone, or if it
showed no sign of life in `LOOKS` looks. Looks are counted, not seconds: where a file server stands still, nobody looks.

Taking over is exclusive too, and a kill in the middle of it stops nobody: what succeeds a note is a file named after
it, created exclusively, and, if its process is lost in turn, succeeded in the same way. Notes never recur, so whoever
is late finds another note in .lock than the one it judged, and begins anew.

A process that stood still for longer than all looks (suspended) may find that its claim was taken: `Claim.stands`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from lowbit import files

try:
    import fcntl
except ImportError:  # Windows: notes in lock files, and signs of life, are all there is
    fcntl = None  # type: ignore[assignment]

BEAT = 5.0  # seconds between signs of life
LOOKS, PAUSE = 300, 0.2  # looks without a sign of life until a process counts as lost, and seconds between two
_LONGEST = 4096  # bytes that are read of a note
_held_here: set[Note] = set()  # the claims of this process

_Line = Annotated[str, Field(pattern=r"^\P{Cc}{0,255}$")]


@dataclass(frozen=True)
class Note:
    """What a lock file says: whose it is, since when, for which run, how many processes were lost over it before.

    `locks` tells that its process holds a lock of the system, too.
    """

    host: _Line
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    since: _Line
    run: _Line
    lost: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    locks: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Claim:
    """A lock file that is held, and the note of the process that was lost over it last, in whichever run."""

    path: Path
    note: Note
    left: Note | None

    def stands(self) -> bool:
        """Whether it is still this process's."""
        with contextlib.suppress(OSError):
            return noted(self.path) == self.note
        return False


class InUseError(Exception):
    """A lock file is held, or may be, by the process of the note, if it has one that can be read."""

    def __init__(self, note: Note | None, *, surely: bool) -> None:
        super().__init__(f"{note}, since {note.since}" if note else "its note cannot be read")
        self.surely = surely


def noted(path: Path) -> Note | None:
    """The note in a lock file; None if there is no file, or nothing in it that can be used."""
    return _parsed(_content(path) or b"")


@contextlib.contextmanager
def claimed(path: Path, run: str, *, wait: bool) -> Iterator[Claim]:
    """Hold a lock file, which is removed at the end; wait for it while another process has it, or may have it.

    Raises:
        InUseError: if it is not to wait.
        DataError: the file cannot be written.
    """
    with files.writing(path):
        claim, descriptor = _claim(path, run, wait)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(claim, ended), daemon=True, name="signs of life")
    try:
        beating.start()
        yield claim
    finally:
        ended.set()
        beating.join()
        if claim.stands():
            path.unlink(missing_ok=True)
        _held_here.discard(claim.note)
        if descriptor is not None:  # after it is gone, so that nobody takes what is about to be removed
            os.close(descriptor)


def _beat(claim: Claim, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a file server that does not answer just now
            if noted(claim.path) != claim.note:
                return
            os.utime(claim.path)


@dataclass(frozen=True)
class _Seen:
    """What was seen of a lock file; `held` is None where only signs of life can tell."""

    place: Path
    content: bytes
    note: Note | None
    held: bool | None
    file: tuple[int, int]  # changes with every sign of life

    @property
    def successor(self) -> Path:
        """The file of who takes over from this content, and from no other."""
        return self.place.with_name(f"{self.place.name}.{hashlib.sha256(self.content).hexdigest()[:16]}")


def _claim(path: Path, run: str, wait: bool) -> tuple[Claim, int | None]:
    silent, before = 0, None
    while True:
        every = _successive(path)
        last = every[-1] if every else None
        if last is not None and last.held is not False:
            if not wait:
                raise InUseError(last.note, surely=last.held is True)
            silent, before = silent + 1 if last.held is None and last == before else 0, last
            if silent < LOOKS:
                time.sleep(PAUSE)
                continue
        left, place = (last.note, last.successor) if last else (None, path)
        try:
            note, descriptor = _created(place, run, left.lost + 1 if left and left.run == run else 0)
        except (FileExistsError, FileNotFoundError):  # another was quicker, and swept what was to become the file
            time.sleep(PAUSE)
            continue
        if every and _content(path) == every[0].content:
            os.replace(place, path)
            for one in every[1:]:
                one.place.unlink(missing_ok=True)
        elif every:  # taken over, and perhaps freed, since it was seen
            place.unlink(missing_ok=True)
        claim = Claim(path, note, left)
        if claim.stands():
            return claim, descriptor
        _held_here.discard(note)
        if descriptor is not None:
            os.close(descriptor)
        time.sleep(PAUSE)


def _successive(path: Path) -> list[_Seen]:
    """The lock file, and those of who was taking over from the one before; the last one counts."""
    every: list[_Seen] = []
    while (seen := _look(path)) is not None:
        every.append(seen)
        path = seen.successor
    return every


def _look(place: Path) -> _Seen | None:
    try:
        descriptor = os.open(place, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        free = _lock(descriptor, shared=True)  # only who created a file locks it for itself, and nobody needs to wait
        content, state = os.read(descriptor, _LONGEST), os.fstat(descriptor)
    finally:
        os.close(descriptor)
    note = _parsed(content)
    return _Seen(place, content, note, _held(note, free), (state.st_ino, state.st_mtime_ns))


def _held(note: Note | None, free: bool | None) -> bool | None:
    """Whether a lock file is held; `free` tells what the system says of its lock, None where it has none."""
    if free is False:
        return True
    if note is None:  # damaged: where the system has no locks, nothing tells whose it was
        return False if free else None
    if note.host != socket.gethostname():
        return None
    if free and note.locks:
        return False
    return None if _runs(note) else False


def _runs(note: Note) -> bool:
    """Whether the process of a note may be running, on this host."""
    if note.pid == os.getpid():
        return note in _held_here
    if fcntl is None:  # Windows, where signal 0 is Ctrl-C
        return True
    try:
        os.kill(note.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _created(place: Path, run: str, lost: int) -> tuple[Note, int | None]:
    """A new lock file's note, and the open file where the system locks it; nobody sees the file without its note.

    Raises:
        FileExistsError: another process created it first.
    """
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")  # a name that `files.sweep` knows
    descriptor, keep = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), False
    try:
        locks = bool(_lock(descriptor, shared=False))
        since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
        note = Note(socket.gethostname(), os.getpid(), since, run, lost, locks)
        content = _adapter().dump_json(note)
        os.write(descriptor, content)
        os.fsync(descriptor)  # else other hosts may see it empty
        _held_here.add(note)
        try:
            os.link(temporary, place)
        except FileExistsError:
            if _content(place) != content:  # a file server may have lost its answer, and been asked twice
                _held_here.discard(note)
                raise
        except FileNotFoundError:
            raise
        except OSError:  # no hard links (FAT): for an instant others see an empty file
            note, locks = replace(note, locks=False), False
            _held_here.add(note)
            with place.open("xb") as file:
                file.write(_adapter().dump_json(note))
        keep = locks
    finally:
        temporary.unlink(missing_ok=True)
        if not keep:
            os.close(descriptor)
    return note, descriptor if keep else None


def _lock(descriptor: int, *, shared: bool) -> bool | None:
    """Whether the system gives the lock of an open file; None if it has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB if shared else fcntl.LOCK_EX)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> Note | None:
    try:
        return _adapter().validate_json(content, strict=True)
    except ValidationError:
        return None


@functools.cache
def _adapter() -> TypeAdapter[Note]:
    return TypeAdapter(Note)
