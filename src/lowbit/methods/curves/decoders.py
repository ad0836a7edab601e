"""The end of a deployed network: quantized channels are read as one number, by a table or by integer arithmetic.

Both return q as a uint16 number, bit for bit the same, and so do the C header and the projection that trains.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lowbit.errors import RecipeError
from lowbit.formats import Int
from lowbit.methods.curves.arithmetic import STEPS, arithmetic, why_no_arithmetic
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.tables import confidence_table, table_of
from lowbit.quantizer import Quantizer

DecoderName = Literal["table", "arithmetic"]


class Decoder(nn.Module):
    """The end of a deployed network: points `[N, channels * T, ...]`, quantized to codes, become targets `[N, T, ...]`.

    The scale of the codes is fixed, 1 / (2^bits - 1) and a zero point of 0, so that one table fits every network.

    Args:
        codec: what the network was made with.
        kind: ``table`` or ``arithmetic``.
        table: another one than `table_of`, see `learned_table`.
        confidence: also return how far from the path each point lies, a second table.

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
        kind = kind or ("table" if codec.channels == 2 else "arithmetic")
        if kind not in ("table", "arithmetic"):
            raise RecipeError(f"decoder {kind!r} is unknown; expected 'table' or 'arithmetic'")
        if kind == "arithmetic" and (reason := why_no_arithmetic(codec.path, codec.bits)):
            raise RecipeError(reason)
        if table is not None and (kind != "table" or table.shape != (codec.top + 1,) * 2):
            raise RecipeError(f"a table of {list(table.shape)} does not fit {codec.path} with decoder {kind!r}")
        self.codec, self.kind = codec, kind
        self.quantizer = fixed_quantizer(codec.bits)
        made = (table_of(codec) if table is None else table) if kind == "table" else None
        self.register_buffer("table", None if made is None else made.flatten().to(torch.uint16))
        self.table: Tensor | None
        self.register_buffer("distances", confidence_table(codec).flatten() if confidence else None)
        self.distances: Tensor | None

    def forward(self, points: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Targets; and with ``confidence`` the distances from the path beside them."""
        top = self.codec.top
        codes = (self.quantizer(points) * top).round().int()
        parts = codes.chunk(self.codec.channels, dim=1)
        if self.table is None:
            found = arithmetic(self.codec, torch.stack([part.long() for part in parts], -1))
            return self.codec.quantity(found.float() / STEPS)
        index = parts[0] * (self.codec.top + 1) + parts[1]
        target = self.codec.quantity(self.table[index].float() / STEPS)
        return target if self.distances is None else (target, self.distances[index])


def fixed_quantizer(bits: int) -> Quantizer:
    """A quantizer of numbers from 0 to 1: unsigned codes, whose scale no calibration sets."""
    quantizer = Quantizer(Int(bits), name="output")
    quantizer.scale.data.fill_(1 / (2**bits - 1))
    assert quantizer.zero_point is not None
    quantizer.zero_point.fill_(-(2 ** (bits - 1)))
    return quantizer
