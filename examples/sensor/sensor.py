"""A sensor: where the peak of a noisy spectrum of 64 bins lies, found by a small network.

python examples/sensor/sensor.py               trains the network, in seconds
lowbit pilot examples/sensor/pilot.yaml        8-bit variants, with a direct output and with curve outputs
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = Path("runs/sensor/weights.safetensors")


def build() -> nn.Module:
    """The network: spectra `[N, 64]` to places `[N, 1]`, from 0 to 1."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))


def spectra(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian peaks of random place, width and height, with noise; and their places."""
    draw = torch.Generator().manual_seed(seed)
    place, width, height = (torch.rand(count, 1, generator=draw) for _ in range(3))
    peak = (0.7 + 0.6 * height) * torch.exp(-0.5 * ((torch.arange(64.0) - 6 - 52 * place) / (2.5 + width)) ** 2)
    return peak + 0.01 * torch.randn(count, 64, generator=draw), place


def train() -> tuple[Tensor, Tensor]:
    """What trains."""
    return spectra(20_000, 1)


def calibration() -> tuple[Tensor, Tensor]:
    """What sets ranges, and what a path is chosen by."""
    return spectra(1024, 2)


def test() -> tuple[Tensor, Tensor]:
    """What the report is about."""
    return spectra(10_000, 3)


def main() -> None:
    """Train the direct network and keep its weights."""
    torch.manual_seed(0)
    model, (inputs, places) = build(), train()
    epochs, size = 30, 128
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    steps = epochs * (len(inputs) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(inputs), (size,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.smooth_l1_loss(model(inputs[rows]), places[rows], beta=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), WEIGHTS)
    with torch.no_grad():
        inputs, places = test()
        print(f"RMSE {float((model(inputs) - places).square().mean().sqrt()):.5f} of the range; weights in {WEIGHTS}")


if __name__ == "__main__":
    main()
