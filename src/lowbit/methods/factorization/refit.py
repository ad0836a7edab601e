"""Chains fitted to what the float network returns: the last layer by least squares on the grid, then the depthwise one.

The first layers of a chain lose some of what the layer did; the last one can make up for much of it once it sees what
they return. With z their outputs for the calibration samples, inside the network as it is by now, and y the outputs of
the float network's layer there, less the bias,

    A = (M + A0 D) (H + D)^-1,   H = E[z z^T],  M = E[y z^T],  D = damping * diag(H),

the least squares fit, drawn a little toward the factor A0. Rows are independent and have a scale each: A is rounded by
second order and improved by coordinate descent on the same quadratic form, and its scales are fitted in between. Where
the layer has a bias, or a BatchNorm behind it, H and M are covariances, and the bias or the BatchNorm's mean makes the
means equal. The depthwise layer is fitted next (see `depthwise`), and then the last one once more.

Dense layers are rounded by second order on the way, as `lowbit.post_training.round_weights` does: they make up for what
the chains before them lost, and a chain is held against the best that a dense layer can do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lowbit import graph
from lowbit.batches import Batch
from lowbit.errors import CalibrationError
from lowbit.formats import Format
from lowbit.granularity import PerChannel
from lowbit.layers import CONVOLUTIONS, BatchNorm, Quantized
from lowbit.methods.factorization.chains import LAST, MIDDLE
from lowbit.methods.factorization.depthwise import fit_depthwise
from lowbit.methods.factorization.tensors import descend, nearest
from lowbit.post_training.covariance import unfolded
from lowbit.post_training.rounding import round_layer, second_order
from lowbit.post_training.segments import Segment, run, walk
from lowbit.quantizer import Quantizer
from lowbit.scales import Histogram, weight_scale

_LEAST = 4  # rows of data for each input of a layer that is fitted
_TURNS = 3  # of codes and scales


@dataclass(frozen=True)
class Refitted:
    """The mean squared difference of a layer's outputs from the float network's, relative to their variance."""

    error_before: float
    error_after: float


def refit(
    student: nn.Module,
    twin: nn.Module,
    chains: Mapping[str, Format],
    batches: list[Batch],
    *,
    samples: int,
    damping: float = 1e-3,
    progress: bool = True,
) -> dict[str, Refitted]:
    """Fit the last layer of each chain, in place, in the order in which they run; dense layers are rounded.

    Args:
        student: quantized and calibrated, its chains named in `chains`, with the format of their last weights.
        twin: the float network that it was made from.
        batches: inputs in any batch form, a list.
        samples: how many were given, held-out ones included, for the message that tells how many are needed.
        damping: see above.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: too few samples for a layer.
    """
    found: dict[str, Refitted] = {}
    norms, float_norms = _norms(student), _norms(twin)
    reads = graph.input_quantizers(student)
    for segment in walk(student, twin, batches, "refit", progress=progress):
        for name, layer in segment.layers.items():
            chain = name.removesuffix(f".{LAST}")
            if chain not in chains or name == chain:
                folded_alone = name in float_norms and name not in norms  # its weights are not the float layer's
                if _rounds(name, layer, chains) and not folded_alone:
                    round_layer(layer, twin.get_submodule(name), segment)
                continue
            wanted = twin.get_submodule(chain)
            moments = _moments(layer, wanted, segment)
            if moments is None:
                continue
            moments.check(chain, samples)
            norm = (norms[name], float_norms[chain]) if name in norms else None
            found[chain] = _fit(layer, wanted, norm, moments, chains[chain], damping)
            middle = segment.layers.get(f"{chain}.{MIDDLE}")
            if middle is not None:
                fit_depthwise(middle, layer, wanted, segment)
                _watch(reads.get(name), segment)
                moments = _moments(layer, wanted, segment)
                assert moments is not None  # as it was before
                again = _fit(layer, wanted, norm, moments, chains[chain], damping)
                found[chain] = Refitted(found[chain].error_before, again.error_after)
    return found


def _norms(model: nn.Module) -> dict[str, BatchNorm]:
    return graph.batchnorms_to_fold(model) if isinstance(model, fx.GraphModule) else {}


def _watch(quantizer: Quantizer | None, segment: Segment) -> None:
    """Set the range of an activation quantizer anew: what it reads has changed."""
    if quantizer is not None:
        quantizer.histogram = Histogram()
        segment.outputs()
        quantizer.fit_histogram()


def _rounds(name: str, layer: Quantized, chains: Mapping[str, Format]) -> bool:
    """Whether a layer is a dense one of 8 bits or less."""
    inside = any(name.startswith(f"{chain}.") for chain in chains)
    quantizer = layer.weight_quantizer
    return not inside and isinstance(quantizer, Quantizer) and quantizer.format.bits <= 8


@dataclass
class _Moments:
    """Means over rows of data, `[groups, ...]`, of a layer's inputs z and of wanted outputs y."""

    zz: Tensor
    yz: Tensor
    yy: Tensor
    z: Tensor
    y: Tensor
    rows: int

    def check(self, name: str, samples: int) -> None:
        """Raise if there are too few rows to tell the inputs apart."""
        wanted = _LEAST * self.zz.shape[-1]
        if self.rows < wanted:
            raise CalibrationError(
                f"layer {name!r}: {samples} samples give its last factor {self.rows} rows of data for "
                f"{self.zz.shape[-1]} inputs; give at least {math.ceil(samples * wanted / self.rows)} samples, or "
                "refit=False"
            )


def _moments(layer: Quantized, twin: nn.Module, segment: Segment) -> _Moments | None:
    """The moments of a chain's last layer and of the float layer's outputs; None if no sample reaches them."""
    zs: list[Tensor] = []
    ys: list[Tensor] = []
    groups = layer.layer.groups if isinstance(layer.layer, CONVOLUTIONS) else 1

    def see(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0] if layer.input_quantizer is None else layer.input_quantizer(args[0])
        zs.append(_columns(layer.layer, x))

    def want(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        y = output if module.bias is None else output - _spread(module.bias, output, module)  # type: ignore[arg-type]
        rows = y.reshape(-1, y.shape[-1]).mT if isinstance(module, nn.Linear) else y.transpose(0, 1).flatten(1)
        ys.append(rows.reshape(groups, -1, rows.shape[1]).double())

    total: list[Tensor] = []
    rows = 0
    hooks = [layer.register_forward_hook(see), twin.register_forward_hook(want)]
    try:
        with torch.no_grad():
            for value, twin_value in zip(segment.inputs, segment.twin_inputs, strict=True):
                run(segment.student, value)
                run(segment.twin, twin_value)
                for z, y in zip(zs, ys, strict=True):  # one of each for every call
                    sums = [z @ z.mT, y @ z.mT, y.square().sum(2), z.sum(2), y.sum(2)]
                    total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
                    rows += z.shape[2]
                zs.clear()
                ys.clear()
    finally:
        for hook in hooks:
            hook.remove()
    if not total:
        return None
    zz, yz, yy, z, y = (one / rows for one in total)
    return _Moments(zz, yz, yy, z, y, rows)


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The columns that a layer multiplies its weight with, `[groups, inputs, rows]`, in float64."""
    if isinstance(layer, CONVOLUTIONS) and math.prod(layer.kernel_size) == 1:
        flat = x.transpose(0, 1).flatten(1)
        return flat.reshape(layer.groups, -1, flat.shape[1]).double()
    return unfolded(layer, x).double()


def _spread(bias: Tensor, output: Tensor, layer: nn.Module) -> Tensor:
    return bias if isinstance(layer, nn.Linear) else bias.reshape(-1, *[1] * (output.dim() - 2))


def _fit(
    layer: Quantized,
    twin: nn.Module,
    norm: tuple[BatchNorm, BatchNorm] | None,
    moments: _Moments,
    format: Format,
    damping: float,
) -> Refitted:
    """Fit weights and scales of a layer, and its bias or the mean of the BatchNorm behind it, in place.

    Bias and mean are those of the float network's layer and BatchNorm, `twin` and the second of `norm`, and a shift.
    """
    quantizer, bias = layer.weight_quantizer, layer.bias
    assert isinstance(quantizer, Quantizer)
    weight = layer.layer.get_parameter("weight")
    groups = len(moments.zz)
    start = weight.detach().double().reshape(groups, weight.shape[0] // groups, -1)
    h, m, square = moments.zz, moments.yz, moments.yy
    if bias is not None or norm is not None:
        h = h - moments.z[:, :, None] * moments.z[:, None]
        m = m - moments.y[:, :, None] * moments.z[:, None]
        square = square - moments.y.square()
    diagonal = torch.diagonal(h, dim1=1, dim2=2)
    added = torch.diag_embed((damping * diagonal).clamp(min=1e-12 * float(diagonal.max()) + 1e-30))
    h_damped, m_damped = h + added, m + start @ added
    fitted = torch.linalg.solve(h_damped, m_damped, left=False)
    values, scale = _on_grid(fitted, h_damped, m_damped, format)
    found = values * scale
    # the float layer's variance may be 0
    whole = max(float(square.sum()), 1e-30)

    def error(a: Tensor) -> float:
        return max(0.0, float(((a @ h) * a).sum() - 2 * (a * m).sum()) / whole + 1)

    before = error(layer.weight.detach().double().reshape(start.shape))
    weight.data.copy_(found.reshape(weight.shape))
    quantizer.scale = nn.Parameter(scale.flatten().to(weight), requires_grad=quantizer.scale.requires_grad)
    quantizer.granularity = PerChannel(0)
    weight.data.copy_(layer.weight.detach())  # to the last bit on the grid
    shift = (moments.y - (found @ moments.z[:, :, None])[:, :, 0]).flatten()
    if bias is not None:
        bias.data.copy_(twin.bias.detach() + shift.to(bias))  # type: ignore[operator]
    elif norm is not None:
        mine, own = norm[0].running_mean, norm[1].running_mean
        assert mine is not None  # `graph` pairs no other
        assert own is not None
        mine.copy_(own - shift.to(own))
    return Refitted(before, error(found))


def _on_grid(fitted: Tensor, h: Tensor, m: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Grid values `[groups, outputs, inputs]` and scales `[groups, outputs, 1]` of least tr(A H A^T) - 2 tr(A M^T)."""
    groups, outputs, inputs = fitted.shape
    importance = torch.diagonal(h, dim1=1, dim2=2)[:, None].expand(fitted.shape).reshape(-1, inputs)
    scale = weight_scale(fitted.reshape(-1, inputs), format, PerChannel(0), "mse", importance).double()
    scale = scale.reshape(groups, outputs, 1)
    spread = scale.expand(fitted.shape).float()
    values = nearest(second_order(fitted, spread, h, format).double() / scale, format)
    for _ in range(_TURNS):
        values = torch.stack(
            [descend(z, g, f / s, format, sweeps=8) for z, g, f, s in zip(values, h, m, scale, strict=True)]
        )
        squares = ((values @ h) * values).sum(2, keepdim=True)
        best = (values * m).sum(2, keepdim=True) / squares.clamp(min=1e-150)
        scale = torch.where((best > 0) & (squares > 0), best, scale)
    return values, scale
