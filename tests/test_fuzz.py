"""Whatever is in a file from outside, reading it returns or is refused in one line; what once did not is kept here.

The damage, and the readers, are those of benchmarks/fuzzing.py, which reads 100,000 files; here hypothesis draws a few
dozen a reader.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from lowbit import files
from lowbit.data import from_arrays, open_data
from lowbit.errors import DataError, ExportError, LowbitError, RecipeError, VerificationError
from lowbit.export.runtime import open_session
from lowbit.export.verify import verify
from lowbit.methods.discrimination.tracing import FeatureTrace
from lowbit.pilot.spec import load_spec

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
fuzz: Any = importlib.import_module("_readers")
WATCH = fuzz.Watch()
SLOW = ("lowbit verify, ONNX", "lowbit verify, manifest", "compare, ONNX", "lowbit watch, manifest", "record")


def runnable(reader: Any) -> bool:
    return not reader.name.startswith("OpenVINO") or find_spec("openvino") is not None


READERS = [reader for reader in fuzz.READERS if runnable(reader)]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that all reading and writing stays in, temporary files included."""
    case = tmp_path / "case"
    case.mkdir()
    monkeypatch.chdir(case)
    monkeypatch.setattr(tempfile, "tempdir", str(case))
    return case


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_reading_returns_or_refuses(reader: Any, in_a_folder_of_its_own: Path) -> None:
    case = in_a_folder_of_its_own
    seeds = reader.seeds()
    fuzz.prepare(reader, case)
    fuzz.attempt(reader, seeds[0], case, WATCH)  # what is imported and cached by the first call

    @settings(
        max_examples=5 if reader.name.startswith("OpenVINO") else 20 if reader.name in SLOW else 40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @drawn(st.integers(0, 2**32))
    def check(number: int) -> None:
        data = fuzz.made(reader, 1, len(seeds) + number, seeds)
        outcome = fuzz.attempt(reader, data, case, WATCH)
        assert not outcome.kind, f"{reader.name}:1:{len(seeds) + number}: {outcome.told}"
        assert outcome.seconds < fuzz.HANGS

    check()


# of the valid files, those that a reader refuses on purpose: none of their columns is an outcome
REFUSED = {"parquet log": 6}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_is_damaged_was_valid(reader: Any, in_a_folder_of_its_own: Path) -> None:
    """Else the files that are read would be refused at once, and nothing behind that be tried."""
    fuzz.prepare(reader, in_a_folder_of_its_own)
    outcomes = [fuzz.attempt(reader, seed, in_a_folder_of_its_own, WATCH) for seed in reader.seeds()]
    assert not any(outcome.kind for outcome in outcomes[1:])
    assert sum(bool(outcome.told) for outcome in outcomes[1:]) <= REFUSED.get(reader.name, 0)


def test_the_watch_sees_what_is_written_outside(tmp_path: Path, in_a_folder_of_its_own: Path) -> None:
    reader = fuzz.READERS[0]
    outside = tmp_path.parent / f"{tmp_path.name}-outside"

    def attempted(read: Callable[[Path], object]) -> str:
        kind: str = fuzz.attempt(replace(reader, read=read), b"", in_a_folder_of_its_own, WATCH).kind
        return kind

    assert attempted(lambda path: path.with_name("inside").write_text("a")) == ""
    assert attempted(lambda path: outside.write_text("a")) == "outside"
    assert attempted(lambda path: os.rename(outside, in_a_folder_of_its_own / "b")) == "outside"
    assert attempted(lambda path: (tmp_path / "beside").write_text("a")) == "outside"
    assert attempted(lambda path: os.system("true")) == "outside"
    assert attempted(lambda path: (tmp_path / "fuzz-secret.bin").read_bytes()) == "outside"
    assert attempted(lambda path: np.empty(2**60)) == "escaped"
    assert attempted(lambda path: json.loads("{}")["a"]) == "escaped"


# What was found


def archive(**members: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as opened:
        for name, data in members.items():
            opened.writestr(f"{name}.npy", data)
    return written.getvalue()


def header(shape: str, kind: str = "'<f4'", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text)) + text


def test_yaml_of_many_brackets(in_a_folder_of_its_own: Path) -> None:
    """PyYAML takes a second for each thousand characters of these, without recursion that ends it."""
    path = in_a_folder_of_its_own / "recipe.yaml"
    path.write_text("a: [" + ", ".join(["[" * 250 + "]" * 250] * 100) + "]\n")
    began = time.perf_counter()
    with pytest.raises(DataError, match="has 251 brackets within each other, expected at most 100"):
        files.read_yaml(path)
    assert time.perf_counter() - began < 1
    path.write_text("a: " + "[" * 100 + "]" * 100 + "\nb: '}}}]]]'\n")
    assert isinstance(files.read_yaml(path), dict)


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(4,)", "(1000000000, 0, -1)", "(65536, 65536)"])
def test_array_larger_than_its_bytes(in_a_folder_of_its_own: Path, shape: str) -> None:
    """numpy allocates what a header says, terabytes too, before it looks for the bytes."""
    path = in_a_folder_of_its_own / "a.npz"
    path.write_bytes(archive(x=header(shape) + bytes(12)))
    with pytest.raises(DataError, match="is said to have") as caught:
        files.load_arrays(path)
    assert caught.value.__cause__ is None


def test_array_larger_than_a_member_that_lies(in_a_folder_of_its_own: Path) -> None:
    path = in_a_folder_of_its_own / "a.npz"
    data = bytearray(archive(x=header("(1000000000,)") + bytes(12)))
    start = data.rindex(b"PK\x01\x02")
    data[start + 20 : start + 28] = struct.pack("<II", 4_000_000_080, 4_000_000_080)  # the sizes in the directory
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        files.load_arrays(path)
    assert "MemoryError" not in str(caught.value)


def test_arrays_of_every_size_are_read(in_a_folder_of_its_own: Path) -> None:
    path = in_a_folder_of_its_own / "a.npz"
    given: dict[str, Any] = {
        "none": np.zeros((0, 3)),
        "one": np.float64(2.0),
        "zeros": np.zeros(1_000_000),
        "text": np.array(["ab"]),
    }
    for save in (np.savez, np.savez_compressed):
        save(path, **given)
        read = files.load_arrays(path)
        assert all(np.array_equal(read[name], value) for name, value in given.items())


@pytest.mark.parametrize("shape", ["(1000000000000, 0)", "(1000000000, 0, 3)"])
def test_samples_without_numbers(in_a_folder_of_its_own: Path, shape: str) -> None:
    """A billion of them take no bytes, and for ever to look through."""
    path = in_a_folder_of_its_own / "a.npz"
    path.write_bytes(archive(inputs=header(shape)))
    with pytest.raises(DataError, match="no numbers a sample"):
        open_data(path)


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.zeros(3, 4).to_sparse(),
        lambda: torch.empty(3, 4, device="meta"),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.quantize_per_tensor(torch.zeros(3, 4), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "nested", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_no_numbers_in_memory(
    in_a_folder_of_its_own: Path, tensor: Callable[[], torch.Tensor]
) -> None:
    torch.save({"0.weight": tensor()}, "w.pt")
    with pytest.raises(DataError, match=r"'0\.weight' is sparse, nested, quantized or empty"):
        files.load_tensors("w.pt")


def test_old_weights_that_say_they_are_long(in_a_folder_of_its_own: Path) -> None:
    """A string of 4 GB is asked for, and its memory with it, before the file turns out to be shorter."""
    torch.save({"weight": torch.zeros(2)}, "w.pt", _use_new_zipfile_serialization=False)
    written = Path("w.pt").read_bytes()
    assert torch.equal(files.load_tensors("w.pt")["weight"], torch.zeros(2))
    name = b"X" + struct.pack("<I", 6) + b"weight"
    assert name in written
    Path("w.pt").write_bytes(written.replace(name, b"X" + struct.pack("<I", 2**32 - 1) + b"weight"))
    tracemalloc.start()
    with pytest.raises(DataError):
        files.load_tensors("w.pt")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1_000_000


def test_seeds_that_torch_does_not_take(in_a_folder_of_its_own: Path) -> None:
    """A manifest's seed may be true, or have a thousand digits."""
    data = from_arrays(np.zeros((20, 2)))
    assert data.take(5, True).positions.tolist() == data.take(5, 1).positions.tolist()
    with pytest.raises(DataError, match="expected an integer of 64 bits"):
        data.take(5, 10**1000)


@pytest.mark.parametrize("pattern", ["a{99999999999999999999}", "(" * 3000 + ")" * 3000], ids=["repeated", "nested"])
def test_patterns_that_are_too_much_to_compile(in_a_folder_of_its_own: Path, pattern: str) -> None:
    (fuzzed,) = [reader for reader in fuzz.READERS if reader.name == "pilot"]
    pilot = yaml.safe_load(fuzzed.seeds()[1])
    (searched,) = [variant for variant in pilot["variants"] if variant["name"] == "g"]
    searched["search"]["granularity"] = [pattern]
    Path("pilot.yaml").write_text(yaml.safe_dump(pilot))
    with pytest.raises(RecipeError, match=r"search\.granularity\[0\]: .*expected 'layer', 'model' or regular"):
        load_spec(Path("pilot.yaml"))


def test_trace_of_more_samples_than_there_are(in_a_folder_of_its_own: Path) -> None:
    (fuzzed,) = [reader for reader in fuzz.READERS if reader.name == "feature trace"]
    trace = json.loads(fuzzed.seeds()[0])
    Path("trace.json").write_text(json.dumps(trace | {"samples": 40_000_000_000}))
    with pytest.raises(RecipeError, match="samples: expected 1000000000 at most"):
        FeatureTrace.load("trace.json")


def put(folder: Path, model: onnx.ModelProto | bytes, **more: object) -> Path:
    """A model with the manifest that belongs to it."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    entry = json.loads(fuzz._exported()[0][1])["model.onnx"] | {"sha256": files.sha256(path)} | more
    files.write_json(folder / "manifest.json", {"model.onnx": entry})
    return path


def lowbits() -> onnx.ModelProto:
    return onnx.load_from_string(fuzz._exported()[0][0])


def test_verify_refuses_what_it_cannot_read(in_a_folder_of_its_own: Path) -> None:
    x = torch.zeros(2, 1, 8, 8)
    damaged = fuzz._exported()[0][0][:-20]
    with pytest.raises(LowbitError):
        verify(put(in_a_folder_of_its_own, damaged), [x], progress=False)
    entry = {"calibration": {"inputs": {"input": {"mean": "a"}}}}
    with pytest.raises(VerificationError, match="damaged or not as lowbit writes it"):
        verify(put(in_a_folder_of_its_own, lowbits(), **entry), [x], progress=False)


@pytest.mark.parametrize("location", ["../fuzz-secret.bin", "/etc/passwd", "nowhere.bin"])
def test_weights_from_another_folder(in_a_folder_of_its_own: Path, location: str) -> None:
    (in_a_folder_of_its_own.parent / "fuzz-secret.bin").write_bytes(bytes(100_000))
    model = lowbits()
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    entry = stored.external_data.add()
    entry.key, entry.value = "location", location
    path = put(in_a_folder_of_its_own, model)
    with WATCH.over(in_a_folder_of_its_own.parent) as seen, pytest.raises((VerificationError, ExportError)):
        verify(path, [torch.zeros(2, 1, 8, 8)], progress=False)
    assert not seen


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("what", ["a node without inputs", "an opset of 2**62"])
def test_files_that_openvino_does_not_survive(in_a_folder_of_its_own: Path, what: str) -> None:
    """The first ends the process, the second takes for ever: neither may get there."""
    model = lowbits()
    if what == "an opset of 2**62":
        model.opset_import[0].version = 2**62
    else:
        del next(node for node in model.graph.node if node.op_type == "Conv").input[1:]
    with pytest.raises(ExportError, match="openvino cannot load"):
        open_session(put(in_a_folder_of_its_own, model), runtime="openvino")
