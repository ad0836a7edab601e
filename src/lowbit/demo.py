"""The main job on what comes with the package: train a small network on digits, then pilot five low-bit variants."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lowbit import data, files, models
from lowbit.pilot.spec import PilotSpec
from lowbit.progress import track

SEED = 0
EPOCHS = 12

PILOT = PilotSpec.model_validate(
    {
        "name": "demo",
        "model": "lowbit.models:digits_cnn",
        "weights": "weights.safetensors",
        "data": {
            "calibration": {"source": "lowbit.data:digits_train", "limit": 256},
            "test": {"source": "lowbit.data:digits_test"},
        },
        "kpi": {"metric": "accuracy", "minimum": 0.96},
        "seed": SEED,
        "variants": [
            {"name": "w8a8", "weights": "int8", "activations": "int8"},
            {"name": "w4a8", "weights": "int4", "activations": "int8"},
            {"name": "w4a4", "weights": "int4", "activations": "int4"},
            {"name": "fp4-a8", "weights": "e2m1", "activations": "int8"},
            {"name": "ternary-a8", "weights": "ternary", "activations": "int8", "opset": 25},
        ],
    }
)


def trained_weights(path: Path, *, progress: bool = True) -> Path:
    """Weights of `models.digits_cnn` trained with `SEED`, at `path`; made in seconds if they are not there."""
    if not path.exists():
        from safetensors.torch import save

        path.parent.mkdir(parents=True, exist_ok=True)
        model = _trained(progress)
        with files.replacing(path) as temporary:
            temporary.write_bytes(save(model.state_dict()))
    return path


def _trained(progress: bool) -> nn.Module:
    inputs, labels = data.digits_train()
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = models.digits_cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    model.train()
    for _ in track(range(EPOCHS), "train on digits", show=progress):
        for rows in torch.randperm(len(inputs), generator=generator)[: len(inputs) // 64 * 64].reshape(-1, 64):
            loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()
