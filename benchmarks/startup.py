"""Claim: `import lowbit` costs less than 0.3 s beyond `import torch`, and `lowbit --help` answers within a second.

Whole processes, run in turn; medians. The import is measured with every public name used, since names load lazily.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from _figures import emit, options

EVERYTHING = "import lowbit; [getattr(lowbit, name) for name in dir(lowbit)]"
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, lowbit": [sys.executable, "-c", "import torch, lowbit"],
    "import torch, and every public name of lowbit": [sys.executable, "-c", f"import torch; {EVERYTHING}"],
    "lowbit --help": [str(Path(sys.executable).with_name("lowbit")), "--help"],
}


def main() -> None:
    """Time each command in turn."""
    asked = options(__doc__ or "")
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for i in range(4 if asked.quick else 11):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if i:  # the first run fills the disk cache
                times[name].append(time.perf_counter() - began)
    median = {name: float(np.median(found)) for name, found in times.items()}
    for name, value in median.items():
        emit(name, value, "s", "<= 1.0" if name == "lowbit --help" else "")
    for name in ("import torch, lowbit", "import torch, and every public name of lowbit"):
        beyond = np.median(np.subtract(times[name], times["import torch"]))
        emit(f"{name}: beyond import torch", float(beyond), "s", "<= 0.3")


if __name__ == "__main__":
    main()
