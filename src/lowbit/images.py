"""Image files: a folder of them, whose sub-folders may be classes, and an encoded image as an array."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit import files
from lowbit.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# Named one by one because Pillow would run Ghostscript on an EPS file.
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


@dataclass(frozen=True)
class Folder:
    """Image files in a fixed order, resized to (height, width) if `size` is given."""

    images: tuple[Path, ...]
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.images)

    def samples(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the decoded image of each position, uint8 RGB `[3, height, width]`."""
        for position in positions.tolist():
            path = self.images[position]
            yield f"'{path}'", decode(files.read_bytes(path), f"'{path}'", self.size)

    def digest(self, positions: np.ndarray) -> str:
        """What identifies the files at some positions."""
        return " ".join(files.sha256(self.images[position]) for position in positions.tolist())


def decode(encoded: bytes, where: str, size: tuple[int, int] | None) -> np.ndarray:
    """Return an encoded image as uint8 RGB `[3, height, width]`, resized to `size`.

    Raises:
        DataError: it is damaged, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            rgb = image.convert("RGB")
            if size:
                rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{where}: no image in a known format, expected {', '.join(_PILLOW_FORMATS)}; remove it"
        ) from error
    except Exception as error:  # on damaged bytes Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(f"{where}: the image is damaged ({files.one_line(error)}); replace or remove it") from error
    return np.asarray(rgb).transpose(2, 0, 1)


def open_folder(path: Path, name: str, size: tuple[int, int] | None) -> tuple[Folder, np.ndarray | None]:
    """Images of a folder in sorted order, and their classes `[samples]` if they lie in sub-folders.

    Raises:
        DataError: there are none, or some in a folder and its sub-folders both.
    """

    def images(folder: Path, pattern: str) -> list[Path]:
        return sorted(file for file in folder.glob(pattern) if file.suffix.lower() in _SUFFIXES)

    flat = images(path, "*")
    classes = {
        folder.name: images(folder, "**/*")
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    if flat and any(classes.values()):
        raise DataError(f"data '{name}': images both in '{path}' and in its sub-folders; keep one of the two")
    if not (flat or any(classes.values())):
        kinds = ", ".join(_SUFFIXES)
        raise DataError(f"data '{name}': no {kinds} files in '{path}'; for Parquet write '{name}/*.parquet'")
    empty = [] if flat else [folder for folder, found in classes.items() if not found]
    if empty:
        raise DataError(f"data '{name}': class folder '{empty[0]}' has no images; fill or remove it")
    found = flat or [file for folder in classes.values() for file in folder]
    labels = None if flat else np.repeat(np.arange(len(classes)), [len(folder) for folder in classes.values()])
    return Folder(tuple(found), size), labels
