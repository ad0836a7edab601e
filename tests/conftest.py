"""What every test shares: one torch thread a process, because pytest-xdist runs a process a core."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
