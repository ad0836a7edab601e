"""What figures depend on beside model and data: the packages that compute them, and the processor."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("lowbit", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy", "scikit-learn")
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")  # of 8-bit integers: integer kernels live on them


@dataclass(frozen=True)
class Processor:
    """A machine type such as ``x86_64``, and its features, none where the system does not tell; a name for people."""

    machine: str
    features: frozenset[str]
    name: str = ""

    def __str__(self) -> str:
        if not self.features:
            return self.name or self.machine
        found = [feature for feature in _DOT_PRODUCTS if feature in self.features]
        return f"{self.name or self.machine} ({', '.join(found) or 'no int8 dot product instructions'})"


def this_processor() -> Processor:
    """The processor of this machine, from Linux's /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    features = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return Processor(
        platform.machine(),
        frozenset(features[1].split()) if features else frozenset(),
        name[1] if name else platform.processor(),
    )


def versions(*more: str) -> dict[str, str]:
    """The version of Python, of each package that lowbit's figures depend on, and of `more` that are installed."""
    names = (*_PACKAGES, *(name for name in dict.fromkeys(more) if name not in _PACKAGES and find_spec(name)))
    return {"python": platform.python_version()} | {name: version(name) for name in names}
