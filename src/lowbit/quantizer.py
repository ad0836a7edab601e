"""What holds format and scale: `Quantizer` while numbers are still float, `Codes` once weights are frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import ops
from lowbit.errors import CalibrationError
from lowbit.formats import Block, Format, Int, pack, unpack
from lowbit.granularity import Granularity, PerGroup, PerTensor
from lowbit.ops import STE, GradientRule
from lowbit.scales import Histogram, ScaleRule, affine, weight_scale


class Quantizer(nn.Module):
    """Fake quantizes its input to `format`: with a fixed scale, or with one that learns (see `lowbit.families`).

    `scale` is NaN until calibrated. `zero_point` is None for symmetric quantization. While `histogram` is set, the
    quantizer passes its input through and only watches it: that is how `calibrate` streams.

    Args:
        format: the grid.
        shape: shape of the tensor to come; only needed for granularities finer than the tensor.
        granularity: which elements share a scale.
        symmetric: no zero point; always so for formats other than integers.
        scale_rule: how `calibrate` chooses the range.
        name: where this quantizer sits, for error messages.
    """

    def __init__(
        self,
        format: Format,
        shape: torch.Size | None = None,
        *,
        granularity: Granularity | None = None,
        symmetric: bool = False,
        scale_rule: ScaleRule = "mse",
        name: str = "",
    ) -> None:
        super().__init__()
        if isinstance(format, Block):
            granularity = PerGroup(format.size, ragged=True)
        self.format = format
        self.granularity: Granularity = granularity or PerTensor()
        self.scale_rule: ScaleRule = scale_rule
        self.name = name
        self.histogram: Histogram | None = None
        self.reads_integers = False  # a mask or an index, which needs no quantizer: `calibrate` takes it out
        self.gradient: GradientRule = STE
        self.fixed = False  # whether its range was given, and no calibration changes it
        self.follows = False  # whether its range is that of each tensor it sees
        self.tanh = False  # whether it quantizes tanh(x), as DoReFa's weights do; then it follows too
        self._ready = False
        scale_shape = self.granularity.scale_shape(shape or torch.Size([]))
        self.scale = nn.Parameter(torch.full(scale_shape, torch.nan), requires_grad=False)
        has_zero_point = isinstance(format, Int) and not symmetric
        self.register_buffer("zero_point", torch.zeros(scale_shape) if has_zero_point else None)
        self.zero_point: Tensor | None
        self.register_buffer("delta", None)
        self.delta: Tensor | None  # while EWGS trains: `gradient.delta` as a scalar, which is saved with the state

    @property
    def ready(self) -> bool:
        """Whether the scale is set."""
        self._ready = self._ready or not bool(torch.isnan(self.scale).any())
        return self._ready

    def _load_from_state_dict(self, *args: Any) -> None:
        self._ready = False  # look again: what is loaded may be calibrated or not
        super()._load_from_state_dict(*args)
        if self.delta is not None:
            self.gradient = replace(self.gradient, delta=float(self.delta))

    def set_delta(self, delta: float) -> None:
        """Set how much EWGS scales gradients by the rounding error; kept in the state from now on."""
        self.delta = torch.tensor(delta, dtype=torch.float32, device=self.scale.device)
        self.gradient = replace(self.gradient, delta=float(self.delta))  # float32, as it is loaded again

    def forward(self, x: Tensor) -> Tensor:
        """Nearest grid numbers to `x`; integer and boolean tensors, and plain numbers, pass unchanged."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            self.reads_integers = True
            return x
        if self.histogram is not None:
            try:
                self.histogram.update(x)
            except CalibrationError as error:
                raise CalibrationError(f"activations {self.name!r}: {error}") from None
            return x
        if not self.ready:
            raise CalibrationError(f"activations {self.name!r} have no scale yet; call calibrate(student, batches)")
        scale: Tensor = self.scale
        x = x.float()  # mixed precision ends here: a grid in bfloat16 would be another grid
        if self.tanh:
            x = torch.tanh(x)
        if self.tanh or self.follows:
            scale = self._follow(x)  # a tensor of its own for each call: the one before is kept for its gradient
        return ops.fake_quantize(x, scale, self.zero_point, self.format, self.granularity, self.gradient)

    def absmax_scale(self, x: Tensor) -> Tensor:
        """The scales, in the shape of `scale`, that put the largest magnitude of each block on the end of the grid."""
        return self.format.scale(self.granularity.rows(x.detach()).abs().amax(1)).reshape(self.scale.shape)

    def _follow(self, x: Tensor) -> Tensor:
        """Take the range of a tensor, 0 inside; returns the scale."""
        scale, zero_point = self.absmax_scale(x), self.zero_point
        if zero_point is not None:
            rows = self.granularity.rows(x.detach())
            low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
            scale, moved = (one.reshape(self.scale.shape) for one in affine(low, high, self.format, False))  # type: ignore[union-attr]
            self.zero_point = moved
        self.scale.data.copy_(scale)
        return scale

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest number on the grid, in the shape of `scale`, without gradients."""
        zero_point = 0.0 if self.zero_point is None else self.zero_point.detach().round()
        scale = self.scale.detach()
        return (self.format.min - zero_point) * scale, (self.format.max - zero_point) * scale

    def fit_weight(self, weight: Tensor) -> None:
        """Set the scale from a whole weight tensor."""
        assert self.scale_rule != "entropy"  # a rule of activations, as the types of `Rule` say
        with torch.no_grad():
            self.scale.copy_(weight_scale(weight, self.format, self.granularity, self.scale_rule))

    def fit_histogram(self) -> None:
        """Set scale and zero point from what was watched, and stop watching.

        Raises:
            CalibrationError: nothing was seen.
        """
        seen, self.histogram = self.histogram, None
        if self.fixed:
            return
        if seen is None or not seen.seen:
            raise CalibrationError(
                f"activations {self.name!r} saw no data during calibration; give batches that reach this layer, or "
                "leave it float in the recipe"
            )
        symmetric = self.zero_point is None
        low, high = seen.bounds(self.scale_rule, self.format, symmetric)
        scale, zero_point = affine(torch.tensor(low), torch.tensor(high), self.format, symmetric)
        with torch.no_grad():
            self.scale.copy_(scale)
            if self.zero_point is not None and zero_point is not None:
                self.zero_point.copy_(zero_point)

    def take_factors(self, factors: Tensor, outputs: Granularity) -> None:
        """Follow a weight whose channels, `outputs`, were multiplied by positive `factors` `[out]`: the codes stay."""
        if isinstance(self.granularity, PerTensor):
            self.granularity = outputs
        shape = (-1, *[1] * (self.scale.dim() - 1))
        scale = self.scale.detach() * factors.reshape(shape)
        self.scale = nn.Parameter(scale.clamp(min=torch.finfo(torch.float32).tiny), requires_grad=False)

    def quantize(self, x: Tensor) -> Tensor:
        """Grid values (zero point included) of `x`, in the granularity's blocked shape."""
        return ops.quantize(x, self.scale, self.zero_point, self.format, self.granularity)

    def extra_repr(self) -> str:
        """Format and granularity, for `print(model)`."""
        return f"{self.format}, per {self.granularity}"


class OutputCodes(nn.Module):
    """The integer codes of numbers from 0 to 1, as a deployed network's output has them, for a table to be read with.

    Their scale is 1 / (2^bits - 1) and their zero point 0 in any network; no calibration changes them.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.top = (1 << bits) - 1
        self.quantizer = Quantizer(Int(bits), name="output")
        self.quantizer.fixed = True
        self.quantizer.scale.data.fill_(1 / self.top)
        assert self.quantizer.zero_point is not None
        self.quantizer.zero_point.fill_(self.quantizer.format.min)

    def forward(self, x: Tensor) -> Tensor:
        """int32, from 0 to 2^bits - 1."""
        codes: Tensor = (self.quantizer(x) * self.top).round().int()
        return codes


class Codes(nn.Module):
    """A frozen weight tensor: packed codes and scales in the place of the float numbers."""

    def __init__(self, weight: Tensor, quantizer: Quantizer) -> None:
        super().__init__()
        self.format, self.granularity, self.shape = quantizer.format, quantizer.granularity, weight.shape
        codes = self.format.encode(quantizer.quantize(weight.detach()))
        self.blocked_shape = codes.shape
        self.register_buffer("packed", pack(codes, self.format.bits))
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.packed: Tensor
        self.scale: Tensor

    def codes(self) -> Tensor:
        """The codes, in the granularity's blocked shape."""
        return unpack(self.packed, self.format.bits, self.blocked_shape.numel()).reshape(self.blocked_shape)

    def integers(self) -> Tensor:
        """The weight in units of `integer_scale`: integers, for a format with a `unit`."""
        values = self.format.decode(self.codes().to(self.scale.device))
        return self.granularity.unblocked(values / (self.format.unit or 1.0), self.shape)

    @property
    def integer_scale(self) -> Tensor:
        """What one unit of `integers` stands for."""
        return self.scale * (self.format.unit or 1.0)

    def forward(self) -> Tensor:
        """The numbers the codes stand for, in the weight's shape."""
        values = self.format.decode(self.codes().to(self.scale.device))
        return ops.dequantize(values, self.scale, None, self.granularity, self.shape)

    def extra_repr(self) -> str:
        """Format and granularity, for `print(model)`."""
        return f"{self.format}, per {self.granularity}, {list(self.shape)}"
