"""One verb: write a model as an ONNX file, with a manifest beside it that says what it is and how it was made."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.batches import Batch, call, inputs_of
from lowbit.costs import cost
from lowbit.environment import versions
from lowbit.errors import DataError, ExportError, VerificationError
from lowbit.export.capture import capture
from lowbit.export.qdq import BlockActivations, lower
from lowbit.quantization import Origin, coverage, freeze, origin

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Exported:
    """An ONNX file and the frozen model it was made from."""

    path: Path
    model: nn.Module

    def __repr__(self) -> str:
        size = f"{self.path.stat().st_size:,} bytes" if self.path.is_file() else "moved or deleted"
        return f"Exported('{self.path}', {size}, manifest '{self.path.parent / MANIFEST}')"


def export_onnx(
    student: nn.Module,
    path: str | Path,
    example: Batch,
    *,
    opset: int = 21,
    dynamic_batch: bool = True,
    block_kernels: BlockActivations | None = None,
    provenance: Mapping[str, object] | None = None,
) -> Exported:
    """Write `student`, frozen, as an ONNX file, and its entry in the ``manifest.json`` of the same folder.

    Weights of at most 4 bits are stored packed, 2-bit ones from opset 25. A float model is written as it is.

    Args:
        student: a calibrated student, or a float model.
        path: the file to write; a file that is there is replaced only when the new one is whole.
        example: a batch to trace the model with; its values do not matter.
        opset: 21 runs in ONNX Runtime 1.20 and OpenVINO 2024.5 and later; 25 stores 2-bit weights in 2 bits, which
            ONNX Runtime 1.31 reads and OpenVINO 2026.4 does not read.
        dynamic_batch: leave the first dimension of inputs open.
        block_kernels: None writes standard operators alone. ``"float"`` and ``"int8"`` make every Linear layer with
            float activations and weights of at most 4 bits, granularity ``group:16`` to ``group:128``, a MatMulNBits,
            an operator of ONNX Runtime that computes on the packed weights: on float activations, exactly, or faster
            on activations that it rounds to int8 itself, a scale a block, which no calibration has seen.
        provenance: more to note in the manifest, such as seeds and the hash of the data.

    Raises:
        ExportError: torch cannot export the model, a format has no form that runtimes read, no layer fits
            `block_kernels`, or the file is too large.
        CalibrationError: an activation quantizer has no scale.
        DataError: the model does not take the example, or the file cannot be written.
    """
    if not 21 <= opset <= 25:
        raise ExportError(f"opset {opset}: expected 21 (4-bit storage) to 25 (2-bit storage)")
    path = Path(path)
    frozen = freeze(student)
    _check_example(frozen, example)
    # torch writes up to opset 23 or so; nothing that lowbit adds changed its meaning between 21 and 25
    model = lower(capture(frozen, example, 21, dynamic_batch), frozen, opset, block_kernels)
    model.opset_import[0].version = opset
    model.ir_version = 10 if opset < 23 else 13
    model.producer_name, model.producer_version = "lowbit", version("lowbit")
    if model.ByteSize() >= 2**31 - 1:
        raise ExportError(f"{path.name} would hold {model.ByteSize() / 1e9:.1f} GB; one ONNX file holds at most 2 GB")
    onnx.checker.check_model(model)
    with files.replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(model.SerializeToString())
    noted = origin(student)
    costs = cost(frozen, example)
    entry: dict[str, object] = {
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
        "opset": opset,
        "block_kernels": block_kernels,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "recipe": noted.recipe.to_dict() if noted else None,
        "calibration": _calibration(noted) if noted else None,
        "steps": list(noted.steps) if noted else [],
        "coverage": asdict(coverage(student)),
        "cost": {k: getattr(costs, k) for k in ("parameters", "macs", "bops", "weight_bytes", "activation_bytes")},
        "provenance": dict(provenance or {}),
        "verification": None,
        "watch": None,
    }
    note(path, entry)
    return Exported(path, frozen)


def _check_example(model: nn.Module, example: Batch) -> None:
    """Refuse an example that the model does not take, or without the dimension of the batch."""
    noted = origin(model)
    args, kwargs = inputs_of(example)
    for name, x in [*(("input", a) for a in args), *kwargs.items()]:
        seen = noted.inputs.get(name) if noted else None
        if seen is not None and tuple(x.shape) == seen.shape:
            raise DataError(_without_batch(x))
    try:
        with torch.no_grad():
            call(model, example)
    except DataError as error:
        if not args or not _takes(model, args[0].unsqueeze(0)):
            raise
        raise DataError(_without_batch(args[0])) from error


def _takes(model: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            call(model, x)
    except DataError:
        return False
    return True


def _without_batch(x: Tensor) -> str:
    return f"expected an example {['N', *x.shape]}, got {list(x.shape)}; use x[:1]".replace("'", "")


def _calibration(noted: Origin) -> dict[str, object]:
    inputs = {name: asdict(one) for name, one in noted.inputs.items()}
    return {"samples": noted.calibration_samples, "sha256": noted.calibration_hash, "inputs": inputs}


def note(path: Path, entry: Mapping[str, object]) -> None:
    """Add to or change the manifest's entry for a file."""
    beside = path.parent / MANIFEST
    manifest = read_manifest(path.parent) if beside.exists() else {}
    manifest[path.name] = {**manifest.get(path.name, {}), **entry}
    files.write_json(beside, manifest)


def read_manifest(folder: Path) -> dict[str, dict[str, object]]:
    """The manifest of a folder: an entry a file name.

    Raises:
        DataError: there is none, or it is no manifest.
    """
    path = folder / MANIFEST
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or not all(isinstance(entry, dict) for entry in manifest.values()):
        raise DataError(
            f"{str(path)!r} is no manifest: expected an object with one entry a file; export the model again"
        )
    return manifest


def manifest_entry(path: Path) -> dict[str, object]:
    """The manifest's entry for a file.

    Raises:
        DataError: the manifest does not mention the file.
    """
    manifest = read_manifest(path.parent)
    if path.name not in manifest:
        raise DataError(f"{str(path.parent / MANIFEST)!r} has no entry for {path.name!r}; it has {', '.join(manifest)}")
    return manifest[path.name]


def existing(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        DataError: there is no such file; the message names one that is called alike.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; name the file in it")
    missing = path  # or the first folder on the way that does not exist
    while not missing.parent.exists():
        missing = missing.parent
    there = sorted(one.name for one in missing.parent.iterdir()) if missing.parent.is_dir() else []
    near = difflib.get_close_matches(missing.name, there, n=1)
    told = f"no file '{path}'" + (f": no folder '{missing}'" if missing != path else "")
    raise DataError(f"{told} (did you mean {near[0]}?)" if near else f"{told}; check the path")


def described(path: Path) -> dict[str, object]:
    """The manifest's entry for a file that is still the one that was exported.

    Raises:
        DataError: there is no such file, or no manifest that mentions it.
        VerificationError: the file changed since.
    """
    entry = manifest_entry(existing(path))
    if entry.get("sha256") != files.sha256(path):
        raise VerificationError(
            f"{str(path)!r} is not the file its manifest describes (sha256 differs); export it again"
        )
    return entry
