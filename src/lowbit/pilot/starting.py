"""A first pilot file for a model and data, written after looking at both, with a comment for every choice in it.

The model is loaded, traced and quantized once, the data is opened, and the float model is scored on some of it. From
that follow the KPI and the variants that fit: formats for all layers with the first and the last one at 8 bits,
training where there are samples enough, a search, chains where there are convolutions for them, and for numbers an
output on a path. The file is a start to edit: its comments say what was found and why each line is there.
"""

from __future__ import annotations

from pathlib import Path

from lowbit import files
from lowbit.errors import DataError
from lowbit.pilot.looking import Given, fitted, look
from lowbit.pilot.proposing import lines, told
from lowbit.pilot.spec import load_spec


def start(model: str, data: Given, path: Path, *, weights: Path | None = None, test: Given | None = None) -> list[str]:
    """Write a pilot file for a model and data, and return what was found, in lines.

    Args:
        model: ``module:function`` or ``path/to/file.py:function``; a path is relative to the current folder.
        data: for calibration, and to train on where there is enough of it.
        path: of the file; paths in it will be relative to its folder.
        weights: of the model, relative to the current folder.
        test: to report on; the calibration data without it, which the file warns of.

    Raises:
        DataError: the file is there already, the model or the data cannot be read, or do not fit each other.
        LayerError: no layer of the model can be quantized.
    """
    if path.exists():
        raise DataError(f"'{path}' is there already and stays as it is; give another name with --out, or delete it")
    if not path.absolute().parent.is_dir():
        raise DataError(f"cannot write '{path}': there is no folder '{path.parent}'; create it first")
    if model.startswith("hf:"):
        data, test = fitted(model, data), None if test is None else fitted(model, test)
    found = look(model, data, weights, test)
    text = "\n".join(lines(found, model, data, path, weights, test)) + "\n"
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        load_spec(temporary)  # a file that cannot be read is not written
    return list(told(found))
