"""What every test shares: one torch thread a process, as pytest-xdist runs a process a core; a cache of its own."""

from __future__ import annotations

import os
import tempfile

import torch

torch.set_num_threads(1)
# compiled kernels of a test session are its own; removed with the object at exit
_CACHE = tempfile.TemporaryDirectory(prefix="lowbit-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
