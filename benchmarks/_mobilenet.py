"""The depthwise network that benchmarks measure: a MobileNetV2 of half width, trained here on CIFAR-10 and kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from lowbit import files, models
from lowbit.data import Data, Preprocess, open_data

NORMALIZE = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "mobilenet_v2"
SEED, EPOCHS, BATCH = 0, 20, 128
VALIDATION = 5000  # the last images of the training set, never trained on


def build() -> nn.Module:
    """The untrained network."""
    return models.mobilenet_v2(width=0.5)


def trained(cifar: Path) -> nn.Module:
    """The network with its weights; trained first (20 minutes on two cores) where they are not kept yet.

    Training goes on after the last whole epoch if it was stopped.
    """
    weights = KEPT / "weights.safetensors"
    if not weights.exists():
        _train(open_data(str(cifar / "train-*.parquet"), preprocess=NORMALIZE), weights)
    return _loaded(weights)


def _loaded(weights: Path) -> nn.Module:
    model = build()
    model.load_state_dict(load_file(weights))
    return model.eval()


def _train(data: Data, weights: Path) -> None:
    images, labels = (torch.cat(list(parts)) for parts in zip(*data.batches(5000), strict=True))
    images, held_out = images[:-VALIDATION], images[-VALIDATION:]
    labels, held_out_labels = labels[:-VALIDATION], labels[-VALIDATION:]
    torch.manual_seed(SEED)
    model = build().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others}], lr=0.1, momentum=0.9, nesterov=True
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps * EPOCHS, pct_start=0.2)
    state = KEPT / "training.pt"
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["epoch"]
    KEPT.mkdir(parents=True, exist_ok=True)
    for epoch in range(first, EPOCHS):
        generator = torch.Generator().manual_seed(SEED + epoch)
        started = time.perf_counter()
        model.train()
        for rows in torch.randperm(len(images), generator=generator)[: steps * BATCH].reshape(-1, BATCH):
            batch = _augmented(images[rows], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            hits = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(held_out.split(250), held_out_labels.split(250), strict=True)
            )
        print(
            json.dumps(
                {
                    "name": f"training, epoch {epoch + 1} of {EPOCHS}",
                    "value": 100 * hits / VALIDATION,
                    "unit": "% on held-out training images",
                    "target": "",
                    "seconds": round(time.perf_counter() - started),
                }
            ),
            flush=True,
        )
        with files.replacing(state) as temporary:
            saved = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch + 1,
            }
            torch.save(saved, temporary)
    with files.replacing(weights) as temporary:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)


def _augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image shifted by up to 4 pixels, and mirrored half of the time."""
    n, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(n, width)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    rows = top + torch.arange(height).expand(n, height)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


if __name__ == "__main__":
    trained(Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10")
