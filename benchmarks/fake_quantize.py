"""Claim: in training, fake quantization costs at most 1.2 times torch's own for integers (floats: 2 times).

Forward and backward of `ops.fake_quantize`, with a gradient for x alone and for x and the scale (LSQ), against
`torch.fake_quantize_per_channel_affine` (int8, axis 0, gradient for x alone) on the same tensor. The two are called in
turn; a figure is the median of the ratios. What is kept for the backward pass beyond the input: at most a packed mask,
1 bit an element.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from _figures import emit, options
from lowbit import kernels, ops
from lowbit.formats import Float, Format, parse
from lowbit.granularity import Granularity, PerChannel, PerTensor

FORMATS = [parse(name) for name in ("int8", "int4", "ternary", "binary", "e4m3fn", "e2m1")]
TENSORS: dict[str, tuple[list[int], Granularity]] = {
    "weight [256,256,3,3] per channel": ([256, 256, 3, 3], PerChannel(0)),
    "activation [64,64,32,32] per tensor": ([64, 64, 32, 32], PerTensor()),
    "activation [64,64,32,32] per channel": ([64, 64, 32, 32], PerChannel(1)),
}
Work = Callable[[Tensor], Tensor]


def native(x: Tensor) -> Work:
    """Torch's own operator for `x`."""
    scale, zero_point = torch.full([x.shape[0]], 0.03), torch.zeros(x.shape[0], dtype=torch.int32)
    return lambda x: torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, -128, 127)


def ours(x: Tensor, format: Format, granularity: Granularity, learn_scale: bool) -> Work:
    """Lowbit's, for `x`."""
    scale = torch.full(granularity.scale_shape(x.shape), 3 / format.max, requires_grad=learn_scale)
    return lambda x: ops.fake_quantize(x, scale, None, format, granularity)


def seconds(work: Work, x: Tensor, grad: Tensor) -> float:
    """One forward and backward."""
    x.grad = None
    began = time.perf_counter()
    work(x).backward(grad)
    return time.perf_counter() - began


def bits_saved(work: Work, x: Tensor) -> float:
    """What autograd keeps of `work(x)` besides `x` itself, in bits an element."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(0 if tensor.data_ptr() == x.data_ptr() else tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work(x)
    return 8 * sum(saved) / x.numel()


def main() -> None:
    """Time every tensor, number of threads and format."""
    asked = options(__doc__ or "")
    emit("kernels in use", float(kernels.why_not() is None), "1 = yes")
    for name, (shape, granularity) in TENSORS.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator, requires_grad=True)
        grad = torch.randn(shape, generator=generator)
        theirs = native(x)
        works = {
            f"{format}, gradient for x{' and scale' * learned}": ours(x, format, granularity, learned)
            for format in FORMATS
            for learned in (False, True)
        }
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times: list[float] = []
            ratios: dict[str, list[float]] = {label: [] for label in works}
            for i in range(8 if asked.quick else 20):
                for label, work in works.items():
                    times.append(seconds(theirs, x, grad))
                    ratio = seconds(work, x, grad) / times[-1]
                    if i:  # the first round warms up
                        ratios[label].append(ratio)
            where = f"{name}, {threads} thread{'s' * (threads > 1)}"
            emit(f"{where}: torch's own", 1e3 * float(np.median(times)), "ms")
            for label, found in ratios.items():
                is_float = isinstance(parse(label.split(",")[0]), Float)
                emit(f"{where}: {label}", float(np.median(found)), "x torch's own", "<= 2" if is_float else "<= 1.2")
        emit(f"{name}: torch's own, saved for backward beyond x", bits_saved(theirs, x), "bits an element")
        saved = max(bits_saved(work, x) for work in works.values())
        emit(f"{name}: saved for backward beyond x, any format", saved, "bits an element", "<= 1")


if __name__ == "__main__":
    main()
