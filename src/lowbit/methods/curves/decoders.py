"""The end of a deployed network: quantized channels are read as one number, by a table or by integer arithmetic.

Both return q as a uint16 number, bit for bit the same, and so do the C header and the projection that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lowbit.errors import DataError, RecipeError
from lowbit.methods.curves.arithmetic import STEPS, arithmetic, why_no_arithmetic
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.paths import Fold
from lowbit.methods.curves.tables import confidence_table, table_of
from lowbit.quantizer import OutputCodes

_OFFSET = 1 << 15  # torch looks nothing up in uint16, so the table holds int16

DecoderName = Literal["table", "arithmetic"]


class Decoder(nn.Module):
    """The end of a deployed network: points `[N, channels * T, ...]`, quantized to codes, become targets `[N, T, ...]`.

    The scale of the codes is fixed, 1 / (2^bits - 1) and a zero point of 0, so that one table fits every network.

    Args:
        codec: what the network was made with.
        kind: ``table`` or ``arithmetic``.
        table: another one than `table_of`, see `learned_table`.
        confidence: also return how far from the path each point lies, by a second table; for two channels, no fold.

    Raises:
        RecipeError: a decoder that does not exist for the path.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        kind: DecoderName | None = None,
        table: Tensor | None = None,
        confidence: bool = False,
    ) -> None:
        super().__init__()
        folds = isinstance(codec.path, Fold)
        kind = kind or ("table" if codec.channels == 2 and not folds else "arithmetic")
        if kind not in ("table", "arithmetic"):
            raise RecipeError(f"decoder {kind!r} is unknown; expected 'table' or 'arithmetic'")
        if kind == "arithmetic" and (reason := why_no_arithmetic(codec.path, codec.bits)):
            raise RecipeError(reason)
        if folds and kind == "table":
            raise RecipeError(f"{codec.path} is decoded by a sum; leave kind and table out")
        if table is not None and (table.is_floating_point() or int(table.min()) < 0 or int(table.max()) > STEPS):
            raise RecipeError(
                f"a table holds whole numbers from 0 to {STEPS}; got {table.dtype}, {table.min()} to {table.max()}"
            )
        if table is not None and (kind != "table" or table.shape != (codec.top + 1,) * 2):
            raise RecipeError(f"a table of {list(table.shape)} does not fit {codec.path} with decoder {kind!r}")
        self.codec, self.kind, self.channels = codec, kind, codec.channels
        self.codes = OutputCodes(codec.bits)
        made = (table_of(codec) if table is None else table) if kind == "table" else None
        self.register_buffer("table", None if made is None else (made.flatten() - _OFFSET).to(torch.int16))
        self.table: Tensor | None
        self.register_buffer("distances", confidence_table(codec).flatten() if confidence else None)
        self.distances: Tensor | None

    def forward(self, points: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Targets; and with ``confidence`` the distances from the path beside them."""
        if points.dim() < 2 or points.shape[1] % self.channels:
            raise DataError(
                f"got points {list(points.shape)}, expected [N, {self.channels} * T, ...] for {self.codec.path}"
            )
        parts = self.codes(points).chunk(self.channels, dim=1)
        target = self.codec.quantity(self._share(parts))
        return target if self.distances is None else (target, _looked_up(self.distances, self._index(parts)))

    def _share(self, parts: Sequence[Tensor]) -> Tensor:
        """The share of the path at codes, channel by channel."""
        if isinstance(self.codec.path, Fold):  # exact, and no step of the uint16 number in between
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total.float() / (self.channels * self.codec.top)
        if self.table is None:
            return arithmetic(self.codec, torch.stack([*parts], -1)).float() / STEPS
        return (_looked_up(self.table.float(), self._index(parts)) + _OFFSET) / STEPS

    def _index(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] * (self.codec.top + 1) + parts[1]


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).reshape(index.shape)
