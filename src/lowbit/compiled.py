"""C++ files of this package, built by the machine's own compiler when first needed and loaded by ctypes.

That takes about a second once: what is built is kept in `$XDG_CACHE_HOME/lowbit` (`~/.cache/lowbit`) for the next
process. Where it cannot be, `library` returns the reason and logs it (INFO), and its callers run slower code.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from pathlib import Path

from lowbit.files import one_line

# no flag changes a value: no fused multiply-add, and of -ffast-math only what drops errno and traps, which nobody reads
_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_FLAGS = ("-std=c++17", "-O3", "-march=native", *_EXACT, "-fopenmp", "-fno-exceptions", "-fPIC", "-shared")


@functools.cache
def library(source: Path) -> ctypes.CDLL | str:
    """What `source` compiles to, or why it cannot be had."""
    try:
        return ctypes.CDLL(str(built(source)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = one_line(error)
        logging.getLogger(__name__).info("slower code runs in place of %s: %s", source.name, reason)
        return reason


def built(source: Path) -> Path:
    """Where the compiled library lies; compiled now unless an earlier process did.

    What lies there is run, so the folder has to belong to the user and be closed to other writers.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: no compiler, a source it refuses, or no such folder.
    """
    if os.name != "posix":
        raise RuntimeError(f"C++ is built on POSIX systems, not on {os.name!r}")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowbit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user, or others may write to it")
    # what the compiler would do: that names its version, and the processor that "native" stands for
    plan = _run("g++", *_FLAGS, "-###", "-E", "-x", "c++", os.devnull).stderr
    library = folder / f"{source.stem}-{hashlib.sha256(plan + source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # moved when whole, so processes may build at once
            unfinished = Path(scratch) / library.name
            _run("g++", *_FLAGS, str(source), "-o", str(unfinished))
            unfinished.replace(library)
    return library


def _run(*command: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done
