"""How files are read and written: whole or not at all, and as data, never as code.

Results are written beside their destination and then moved onto it, so a crash, a full disk or a kill leaves the older
file or none, never half of one. Files from outside are hostile until proven otherwise: YAML is read with `safe_load`,
weights with safetensors or `weights_only=True`, arrays with `allow_pickle=False`. The one way to run foreign code is
`resolve`, on a reference that the user wrote.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import re
import sys
import textwrap
import types
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import DataError, LowbitError

if TYPE_CHECKING:
    import numpy as np
    import torch

_YAML_LIMIT = 1_000_000  # bytes; a recipe or pilot file has thousands, and PyYAML takes up to 20 s for a million
_YAML_BRACKETS = 100  # within each other; PyYAML takes a millisecond a character where there are thousands
_DEFLATED = 1032  # bytes that one byte of a zip file becomes at most
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.[^.]*)?")  # the names that `replacing` gives
_CANNOT_WRITE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "create the folder first",
    errno.EISDIR: "choose the name of a file, not of a folder",
}


def one_line(error: BaseException) -> str:
    """Return the kind and the message of an exception on one line of at most 200 characters."""
    return textwrap.shorten(f"{type(error).__name__}: {error}".removesuffix(": "), 200, placeholder=" ...")


# Writing


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which becomes `path` when the block succeeds and vanishes when it does not.

    The temporary file lies in the same folder and keeps the suffix, by which some writers choose the format.

    Raises:
        DataError: the file cannot be written; what was at `path` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # else a power cut may keep the new name and lose the bytes
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError while `path` is written into a one-line DataError."""
    try:
        yield
    except OSError as error:
        remedy = _CANNOT_WRITE.get(error.errno or 0, "choose a folder you may write to")
        raise DataError(f"cannot write '{path}': {error.strerror or error}; {remedy}") from error


def sweep(folder: Path, *, inside: bool = False) -> None:
    """Remove what a kill left of `replacing` in a folder, and in those inside it, where nobody else writes now."""
    for path in folder.rglob(".*") if inside else folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: object) -> None:
    """Write indented JSON, lists of numbers in one line, whole or not at all.

    Raises:
        DataError: the value holds NaN or infinity, which no other JSON reader takes, or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(f"cannot write '{path}': {error}; write None for a number that does not exist") from error
    text = re.sub(r'\[\n([^\[\]{}"]*)\n *\]', lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n")


# Reading


@contextlib.contextmanager
def reading(path: str | Path, part: str = "") -> Iterator[None]:
    """Turn whatever goes wrong while `path`, or a part of it, is read into a one-line DataError."""
    where = f"'{path}' {part}".rstrip()
    try:
        Path(path).open("rb").close()  # some readers report a missing file in words of their own
        yield
    except LowbitError:
        raise
    except Exception as error:  # parsers of damaged bytes raise nearly anything, MemoryError and KeyError included
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"cannot read {where}: {error.strerror}; check the path and its permissions") from error
        raise DataError(
            f"cannot read {where} ({one_line(error)}): truncated, corrupted or of another kind; write it again"
        ) from error


def read_bytes(path: str | Path) -> bytes:
    """Return the contents of a file."""
    with reading(path):
        return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """Return the contents of a UTF-8 text file."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_json(path: str | Path) -> object:
    """Return the value in a JSON file, unchecked."""
    try:
        value: object = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"'{path}' {where}: {error.msg}; correct the JSON there") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not usable JSON ({one_line(error)}); write the file again") from error
    return value


def read_yaml(path: str | Path) -> object:
    """Return the value in a YAML file of at most 1 MB, unchecked; tags that would run code are errors."""
    import yaml

    with reading(path):
        size = Path(path).stat().st_size
    if size > _YAML_LIMIT:
        raise DataError(f"'{path}' has {size} bytes, expected at most {_YAML_LIMIT}; check that it is the right file")
    text = read_text(path)
    if (depth := _brackets(text)) > _YAML_BRACKETS:
        raise DataError(
            f"'{path}' has {depth} brackets within each other, expected at most {_YAML_BRACKETS}; use fewer"
        )
    try:
        value: object = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DataError(f"'{path}'{where}: {error.problem or error.context}; correct the YAML there") from error
    except Exception as error:  # a tag on the wrong value, as in `!!bool x`, escapes PyYAML as KeyError or others
        raise DataError(f"'{path}' is not usable YAML ({one_line(error)}); correct the file") from error
    return value


def _brackets(text: str) -> int:
    """How deep brackets lie within each other at most, those in quotes and comments included."""
    steps = (1 if one in "[{" else -1 for one in re.findall(r"[\[\]{}]", text))
    return max(itertools.accumulate(steps), default=0)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal, reading in constant memory."""
    digest = hashlib.sha256()
    with reading(path), Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Reading tensors


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the named tensors in a `.safetensors`, `.pt`, `.pth` or `.npz` file, on the CPU.

    A PyTorch file holds a state dict, bare or under the key `state_dict`.

    Raises:
        DataError: the file is missing, damaged, of another kind, or needs code to be read, which never runs.
    """
    import torch

    path = Path(path)
    match path.suffix.lower():
        case ".safetensors":
            from safetensors.torch import load_file

            with reading(path):
                tensors: dict[str, torch.Tensor] = load_file(path)
            return tensors
        case ".pt" | ".pth":
            return _load_checkpoint(path)
        case ".npz":
            arrays = load_arrays(path)
            with reading(path):
                return {name: torch.from_numpy(array) for name, array in arrays.items()}
        case suffix:
            expected = "expected .safetensors, .pt, .pth or .npz"
            raise DataError(f"weights '{path}' end in '{suffix}', {expected}; save with safetensors.torch.save_file")


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the named arrays in an `.npz` file.

    Raises:
        DataError: the file is missing, damaged, no `.npz`, or holds Python objects, which are never unpickled.
    """
    import numpy as np

    with reading(path):
        if not zipfile.is_zipfile(path):
            raise DataError(f"'{path}' is truncated or no .npz file; write it again with numpy.savez")
        # An open file, because numpy.load leaves its own open when the archive is damaged.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for member in archive.zip.infolist():
                _check_member(archive.zip, member, path)
            return {name: _load_array(archive, name, path) for name in archive.files}


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str | Path) -> None:
    """Refuse an array that says it is larger than its bytes: numpy allocates what the header says before it reads."""
    import numpy as np

    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(member) as stream:
        if stream.read(6) != np.lib.format.MAGIC_PREFIX:
            return  # no array, which is told when it is read
        version = (*stream.read(2),)
        if version not in headers:
            raise DataError(f"'{path}' array '{member.filename}' has format {version}, expected (1, 0) or (2, 0)")
        shape, _, dtype = headers[version](stream)
        behind = member.file_size - stream.tell()
    stored = min(member.compress_size, Path(path).stat().st_size)
    expected, most = math.prod(shape) * dtype.itemsize, min(behind, _DEFLATED * stored)
    if not dtype.hasobject and (expected > most or min(shape, default=0) < 0):
        raise DataError(
            f"'{path}' array '{member.filename}' is said to have {expected} bytes, expected at most {most}: truncated "
            "or damaged; write it again with numpy.savez"
        )


def _load_array(archive: np.lib.npyio.NpzFile, name: str, path: str | Path) -> np.ndarray:
    import numpy as np

    try:
        array: object = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"'{path}' array '{name}' is a pickle of Python objects, expected numbers; save a numeric array"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"'{path}' member '{name}' is no array; write the file again with numpy.savez")
    return array


def _load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    import torch

    remedy = "save with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocol, which is not the reader's concern
        try:
            # torch asks the file for as many bytes as an old pickle says; a buffer has no more than there are
            source = path if _is_archive(path) else io.BytesIO(path.read_bytes())
            value: object = torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise DataError(f"'{path}' is a pickle that runs code when read, which is refused; {remedy}") from error
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise DataError(f"'{path}' holds a {type(value).__name__}, expected a state dict; {remedy}")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in value.items():
        if not isinstance(tensor, torch.Tensor):
            raise DataError(f"'{path}' entry '{name}' is {type(tensor).__name__}, expected a tensor; {remedy}")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise DataError(f"'{path}' entry '{name}' is sparse, nested, quantized or empty, expected a dense tensor")
        tensors[str(name)] = tensor
    return tensors


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


# Calling the user's code


def resolve(reference: str, folder: Path | None = None) -> Callable[..., object]:
    """Return the function that `package.module:function` or `path/to/file.py:function` names.

    A path is relative to `folder`. A module that is not installed is looked for in `folder` and the current folder,
    which come last on the path: a file beside a recipe cannot replace a library.

    Raises:
        DataError: the reference cannot be read, imported, found or called.
    """
    place, colon, name = reference.rpartition(":")
    if not (colon and place and name.isidentifier()):
        expected = "'package.module:function' or 'path/to/file.py:function'"
        raise DataError(f"reference '{reference}' cannot be read, expected {expected}; write one of these")
    folder = (folder or Path()).resolve()
    try:
        module = _import_file(folder / place) if place.endswith(".py") else _import_module(place, folder)
    except LowbitError as error:
        raise DataError(f"reference '{reference}': {error}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything, or be a script that exits
        raise DataError(
            f"reference '{reference}': importing '{place}' raised {one_line(error)}; check the name or mend the module"
        ) from error
    function: object = getattr(module, name, None)
    if function is None:
        known = _functions(module)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        some = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        raise DataError(
            f"reference '{reference}': '{place}' has no '{name}'; {hint}choose from {some or 'no functions'}"
        )
    if not callable(function):
        raise DataError(
            f"reference '{reference}': '{name}' is {type(function).__name__}, expected a function; name one"
        )
    return function


def _functions(module: types.ModuleType) -> list[str]:
    """Names that can be called: functions of the module itself, then its classes; only without any what it imports."""
    public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    own = [key for key, value in public.items() if getattr(value, "__module__", None) == module.__name__]
    return sorted(own or public, key=lambda key: isinstance(public[key], type))


def _import_module(name: str, folder: Path) -> types.ModuleType:
    importlib.invalidate_caches()  # the user may have written the module a moment ago
    top = name.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        _importable(folder, Path.cwd())
    module = importlib.import_module(name)
    meant = next((file for file in (folder / f"{top}.py", folder / top / "__init__.py") if file.is_file()), None)
    found = getattr(sys.modules[top], "__file__", None)
    if meant and found and not meant.samefile(found):
        raise DataError(f"module '{top}' is '{found}', not '{meant}'; write the path of the .py file instead")
    return module


def _import_file(path: Path) -> types.ModuleType:
    source = read_bytes(path)
    # Named after path and contents: equal names in two folders stay apart, an edited file is read anew.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:12]}"
    if name not in sys.modules:
        _importable(path.parent)
        module = types.ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses and pickle look their module up while it is being imported
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _importable(*folders: Path) -> None:
    """Add folders to the end of the import path for good: functions import their helpers when they are called."""
    sys.path.extend(str(folder) for folder in dict.fromkeys(folders) if str(folder) not in sys.path)
