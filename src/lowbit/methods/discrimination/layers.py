"""A network's own features: what a named layer returns, as rows for the quantizers and classifiers of this package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowbit.batches import Batches, call, labels_of, output_tensor
from lowbit.errors import DataError, LayerError
from lowbit.layers import channels_last

Pool = Literal["mean", "none"]


def layer_features(
    model: nn.Module, layer: str, batches: Batches, *, pool: Pool = "mean"
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.generic] | None]]:
    """Yield features `[n, d]` and labels `[n]`, or None where a batch has none, batch by batch.

    The model runs in evaluation mode, without gradients, and is left as it was.

    Args:
        model: any network.
        layer: the name of one of its layers, as in `named_modules`; what it returns is taken.
        batches: inputs, with labels in tuples or dicts.
        pool: ``"mean"`` takes the mean over positions of a feature map `[n, channels, ...]`, or
            `[n, ..., channels]` of layers that return these, such as Linear and LayerNorm; ``"none"`` keeps them all.

    Raises:
        LayerError: no such layer, or it did not run, or ran several times a batch, or returns no numbers by sample.
        DataError: the model does not take a batch.
    """
    try:
        place = model.get_submodule(layer)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        near = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise LayerError(f"layer {layer!r} is not in the model; choose from {near}") from None
    seen: list[Tensor] = []
    training = {module: module.training for module in model.modules()}
    handle = place.register_forward_hook(lambda _module, _inputs, output: seen.append(output_tensor(output)))
    try:
        model.eval()
        for batch in batches:
            seen.clear()
            with torch.no_grad():
                call(model, batch)
            if len(seen) != 1:
                raise LayerError(f"layer {layer!r} ran {len(seen)} times for a batch, expected once; choose another")
            labels = labels_of(batch)
            yield (
                _rows(seen[0], layer, pool, last=channels_last(place)),
                None if labels is None else labels.detach().cpu().numpy(),
            )
    finally:
        handle.remove()
        for module, was in training.items():
            module.training = was


def _rows(output: Tensor, layer: str, pool: Pool, *, last: bool) -> npt.NDArray[np.float32]:
    if output.ndim < 2:
        raise LayerError(f"layer {layer!r} returns {list(output.shape)}, expected [n, features, ...]; choose another")
    if pool == "mean" and output.ndim > 2:
        output = output.flatten(1, -2).mean(1) if last else output.flatten(2).mean(2)
    elif pool not in ("mean", "none"):
        raise DataError(f"pool: got {pool!r}, expected mean or none")
    return output.flatten(1).float().cpu().numpy()
