"""A decoder as a C header, for processors that run no ONNX."""

from __future__ import annotations

from torch import Tensor

from lowbit.errors import RecipeError
from lowbit.methods.curves.arithmetic import STEPS, why_no_arithmetic
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.paths import Fold, Snake
from lowbit.methods.curves.tables import table_of


def c_header(codec: Codec, *, name: str = "curve", table: Tensor | None = None) -> str:
    """A C99 header that decodes codes as the network's own decoder does, bit for bit.

    ``uint16_t NAME_decode(uint8_t x, uint8_t y)`` looks up a table, ``NAME_arithmetic(x, y)`` needs none (snakes
    alone), and ``float NAME_quantity(uint16_t q)`` is for a linear transform and one range.

    Raises:
        RecipeError: a path with another number of channels than two, or a name that C does not take.
    """
    if isinstance(codec.path, Fold):
        raise RecipeError(f"{codec.path} is decoded by a sum, which needs no table; write it where it is used")
    if not name.isidentifier() or not name.isascii():
        raise RecipeError(f"name {name!r} is no C identifier; use letters, digits and _")
    values = table_of(codec) if table is None else table
    top = codec.top
    rows = ",\n".join(", ".join(map(str, row)) for row in values.reshape(-1, 16).tolist())
    parts = [
        f"/* {codec.path}, {codec.bits}-bit channels, {codec.low} to {codec.high} ({codec.transform}); by lowbit. */",
        f"#ifndef LOWBIT_{name.upper()}_H\n#define LOWBIT_{name.upper()}_H\n#include <stdint.h>",
        f"static const uint16_t {name}_table[{values.numel()}] = {{\n{rows}\n}};",
        f"static inline uint16_t {name}_decode(uint8_t x, uint8_t y) {{\n"
        f"  return {name}_table[((uint32_t)x << {codec.bits}) | y];\n}}",
    ]
    if isinstance(codec.path, Snake) and table is None and not why_no_arithmetic(codec.path, codec.bits):
        border = round(2 * codec.path.margin * top)
        parts.append(_C_SNAKE.format(name=name, rows=codec.path.rows, border=border, width=2 * top - 2 * border))
    if codec.transform == "linear" and not isinstance(codec.low, tuple) and not isinstance(codec.high, tuple):
        step = (float(codec.high) - float(codec.low)) / STEPS
        parts.append(
            f"static inline float {name}_quantity(uint16_t q) {{\n"
            f"  return {float(codec.low)!r}f + {step!r}f * (float)q;\n}}"
        )
    return "\n".join([*parts, "#endif", ""])


_C_SNAKE = """\
static inline uint16_t {name}_arithmetic(uint8_t cx, uint8_t cy) {{
  const int32_t rows = {rows}, row = {width}, wide = row * (rows - 1);
  const int32_t x = (2 * cx - {border}) * (rows - 1), y = (2 * cy - {border}) * (rows - 1);
  int32_t below = y < 0 ? 0 : y / row;
  if (below > rows - 2) below = rows - 2;
  const int32_t odd = below & 1, low = below * row, high = low + row;
  const int32_t inside = x < 0 ? 0 : x > wide ? wide : x, along = odd ? wide - inside : inside;
  const int32_t between = y < low ? low : y > high ? high : y, side = odd ? 0 : wide;
  const int64_t beside = (int64_t)(x - inside) * (x - inside), start = (int64_t)below * (wide + row);
  int64_t way = start + along, nearest = beside + (int64_t)(y - low) * (y - low);
  int64_t other = (int64_t)(x - side) * (x - side) + (int64_t)(y - between) * (y - between);
  if (other < nearest) {{ nearest = other; way = start + wide + between - low; }}
  other = beside + (int64_t)(y - high) * (y - high);
  if (other < nearest) {{ way = start + row + 2 * (int64_t)wide - along; }}
  const int64_t whole = (int64_t)(rows * rows - 1) * row;
  return (uint16_t)((2 * 65535 * way + whole) / (2 * whole));
}}"""
