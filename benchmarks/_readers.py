"""What reads files from outside, each with valid files to begin from and the way they are damaged."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import _mutations as change
from lowbit.errors import LowbitError

HANGS = 5.0  # seconds that an input may take
NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
"""


@dataclass(frozen=True)
class Reader:
    """A function that reads `file` in a folder, and how this file is made.

    Attributes:
        name: of the reader.
        file: that is damaged.
        share: of all inputs.
        seeds: makes the valid files.
        changed: one of them, damaged.
        read: the call that must return or raise `LowbitError`, given the file's path.
        beside: files that lie beside it, by name.
    """

    name: str
    file: str
    share: float
    seeds: Callable[[], list[bytes]]
    changed: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], object]
    beside: Callable[[], dict[str, bytes]] = field(default=dict)


def made(reader: Reader, seed: int, number: int, seeds: list[bytes]) -> bytes:
    """The input with a number, always the same for a seed; the first ones are the valid files."""
    if number < len(seeds):
        return seeds[number]
    rng = random.Random(f"{reader.name}:{seed}:{number}")
    return reader.changed(rng, rng.choice(seeds))


class Hang(BaseException):
    """Raised in a reader that takes too long."""


@dataclass(frozen=True)
class Outcome:
    """What a reader did with an input: `kind` is empty where it returned, or refused it in one line."""

    kind: str
    told: str
    seconds: float


def prepare(reader: Reader, folder: Path) -> None:
    """Write what lies beside the file, and what no reader may touch above it."""
    for name, data in reader.beside().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / reader.file).parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "fuzz-secret.bin").write_bytes(b"secret" * 1000)


def attempt(reader: Reader, data: bytes, folder: Path, watch: Watch) -> Outcome:
    """Write an input, read it, and say what came of it.

    Kinds are ``escaped`` (another exception than a `LowbitError`), ``memory`` (refused only because memory ended),
    ``outside`` (a file written, or read, where none should be) and ``hang``.
    """
    path, above = folder / reader.file, sorted(os.listdir(folder.parent))
    path.write_bytes(data)
    kind, told = "", ""
    began = time.perf_counter()
    with watch.over(folder.parent) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(path)
        except LowbitError as error:
            told = str(error)
            if _ended_memory(error):
                kind = "memory"
        except Hang:
            kind, told = "hang", traceback.format_exc()[-3000:]
        except (Exception, SystemExit):
            kind, told = "escaped", traceback.format_exc()[-3000:]
    seconds = time.perf_counter() - began
    if seen or sorted(os.listdir(folder.parent)) != above:
        kind, told = "outside", f"{seen[:5]} {told}"
    return Outcome(kind, told, seconds)


def _ended_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or re.search(
            r"bad_alloc|[Cc]annot allocate|[Nn]ot enough memory", str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


# Writes outside

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.rename": 2, "os.link": 2, "os.symlink": 2} | dict.fromkeys(
    ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree"), 1
)
_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "pty.spawn")


class Watch:
    """Notes what the interpreter writes outside a folder, reads from where nothing should be read, or starts."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        """What is noted while the block runs."""
        self.folder, self.seen = os.path.realpath(folder), []
        try:
            yield self.seen
        finally:
            self.folder = None

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, int):
                return
            where = os.fsdecode(path)
            if "fuzz-secret" in where or where == "/etc/passwd":
                self.seen.append(f"reads {where}")
            if isinstance(flags, int) and flags & _WRITES and not self._inside(where):
                self.seen.append(f"writes {where}")
        elif event in _PATHS:
            for path in args[: _PATHS[event]]:
                if not isinstance(path, int) and not self._inside(os.fsdecode(path)):
                    self.seen.append(f"{event} {os.fsdecode(path)}")
        elif event in _CODE:
            self.seen.append(f"{event} {args!r:.200}")

    def _inside(self, path: str) -> bool:
        folder = self.folder or ""
        full = os.path.realpath(path) if "\x00" not in path else path
        return full in {os.devnull, folder} or full.startswith(folder + os.sep)


# Valid files


def _yaml(*trees: object) -> list[bytes]:
    return [yaml.safe_dump(tree, sort_keys=False).encode() for tree in trees]


def _recipes() -> list[bytes]:
    rule = {"match": "conv*", "weights": "int4", "activations": "int8", "granularity": "group:32", "symmetric": True}
    return _yaml(
        {"rules": [{"match": "*", "weights": "int8", "activations": "int8"}, rule], "glue": "int8"},
        {"rules": [rule | {"weights": "mxfp4", "weight_scale": "absmax", "activation_scale": "mse"}], "glue": None},
        {
            "rules": [rule],
            "factorize": {"choices": {"conv1": "2x"}, "exact": False, "solver": "admm", "middle": "int8"},
        },
        {"rules": [rule], "output": {"path": "snake8@0.05", "low": [0.0, 1.0], "high": [1.0, 2.0], "weights": "w.npz"}},
    )


def _pilots() -> list[bytes]:
    variants = [
        {"name": "w8a8", "weights": "int8", "activations": "int8", "level": "best", "widen_most": 2},
        {"name": "w4", "recipe": "recipe.yaml"},
        {"name": "h", "weights": "int4", "rules": [{"match": "head", "weights": "int8"}]},
        {"name": "w2", "weights": "int2", "distill": {"epochs": 3, "crop": 2, "features": ["a"], "rate": 0.1}},
        {
            "name": "mixed",
            "search": {"choices": ["int4", "int8"], "budget": {"like": "int4", "share": 1.5}, "by": "policy"},
        },
        {
            "name": "g",
            "search": {"choices": "fliqs-s-int", "budget": {"cost": "bops", "most": 1e6}, "granularity": ["a.*"]},
        },
        {"name": "chains", "weights": "int4", "factorize": {"choices": ["2x", "4x"], "budget": {"like": "2x"}}},
    ]
    test = {
        "source": "test.npz",
        "labels": "y",
        "preprocess": {"scale": 255, "mean": [0.5], "std": [0.25], "size": [8, 8]},
    }
    whole = {
        **{"name": "cats", "model": "net.py:build", "weights": "w.safetensors"},
        **{"data": {"calibration": {"source": "c.npz", "limit": 256}, "test": test}, "seed": 7},
        **{"kpi": {"metric": "accuracy", "minimum": 0.9}, "runtime": {"threads": 2, "batches": [1, 8]}},
    }
    curve = {"path": "hilbert3", "low": 0.0, "high": 1.0, "epochs": 3, "loss": "points", "decoder": "table"}
    numbers = whole | {"kpi": {"metric": "r2", "minimum": 0.5}, "variants": [{**variants[0], "output": curve}]}
    del numbers["variants"][0]["widen_most"]
    some = [{"name": "m", "weights": "int8", "output": {"path": "auto", "controls": False}}]
    return _yaml(
        whole | {"variants": variants[:4]}, whole | {"variants": variants[4:]}, numbers, numbers | {"variants": some}
    )


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"inputs": rng.standard_normal((12, 1, 8, 8)).astype(np.float32), "labels": np.arange(12) % 3}


def _saved(save: Callable[..., object], *args: object, **keywords: object) -> bytes:
    written = io.BytesIO()
    save(written, *args, **keywords)
    return written.getvalue()


def _npz() -> list[bytes]:
    small = {"x": np.arange(24, dtype=np.uint8).reshape(6, 4), "y": np.arange(6.0)}
    return [_saved(np.savez, **_arrays()), _saved(np.savez_compressed, **small)]


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, image = _arrays(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": one, "path": "a"} for one in _images()[:4]], image)
    flat = arrays["inputs"].reshape(12, 64)
    tables = (
        pa.table({"image": pictures, "label": [0, 1, 0, 1]}),
        pa.table({"x": pa.array(flat.tolist(), pa.list_(pa.float32())), "label": arrays["labels"]}),
        pa.table({f"f{i}": flat[:, i] for i in range(4)} | {"label": arrays["labels"]}),
    )
    found = []
    for table in tables:
        for how in ("snappy", "none"):
            out = io.BytesIO()
            pq.write_table(table, out, compression=how, row_group_size=5)
            found.append(out.getvalue())
    return found


def _images() -> list[bytes]:
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    plain = [_saved(image.save, kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")]
    more = [
        _saved(image.convert(mode).save, kind)
        for mode, kind in (("P", "PNG"), ("I", "TIFF"), ("1", "BMP"), ("L", "JPEG"))
    ]
    return [
        *plain,
        *more,
        _saved(image.convert("CMYK").save, "JPEG"),
        _saved(image.save, "TIFF", compression="tiff_lzw"),
    ]


def _build() -> torch.nn.Module:
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    network: torch.nn.Module = space["build"]()
    return network


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    return [save(_build().state_dict()), save(_build().state_dict(), {"format": "pt"})]


def _checkpoints() -> list[bytes]:
    state = _build().state_dict()
    plain = dict(state)
    return [
        _saved(lambda out: torch.save(state, out)),
        _saved(lambda out: torch.save({"state_dict": plain, "epoch": 3}, out)),
        _saved(lambda out: torch.save(plain, out, _use_new_zipfile_serialization=False)),
    ]


def _strange_tensors(rng: random.Random) -> object:
    state: dict[Any, Any] = dict(_build().state_dict())
    key = rng.choice(list(state))
    shape = state[key].shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state[key] = rng.choice(
            (
                lambda: torch.zeros(shape).to_sparse(),
                lambda: torch.zeros(shape, dtype=torch.complex64),
                lambda: torch.zeros(shape, dtype=torch.bfloat16),
                lambda: torch.zeros(shape, dtype=torch.float8_e4m3fn),
                lambda: torch.zeros(shape, dtype=torch.bool),
                lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
                lambda: torch.empty(shape, device="meta"),
                lambda: torch.zeros(()).expand(shape),
                lambda: torch.zeros(1).expand(10**6, 10**6),
                lambda: torch.full(shape, float("nan")),
                lambda: torch.zeros(shape).tolist(),
                lambda: torch.nn.Parameter(torch.zeros(shape)),
                lambda: None,
                lambda: torch.zeros(0, *shape),
                lambda: torch.zeros(shape, dtype=torch.uint16),
                lambda: torch.zeros(4, 4).to_sparse_csr(),
                lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            )
        )()
    if rng.random() < 0.3:
        state[rng.choice((0, None, "", "a\nb", "x" * 5000, ("a",), 1.5))] = state.pop(key)
    return rng.choice((state, state, state, {"state_dict": state}, {"state_dict": {"state_dict": state}}, [state]))


_PICKLES = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x02.",
    b"\x80\x04N.",
    b"(lp0\n" * 2000 + b".",
    b"\x80\x02}q\x00.",
    b"I1\n.",
    b"",
)


def _changed_checkpoint(rng: random.Random, seed: bytes) -> bytes:
    if seed[:2] == b"PK" and rng.random() < 0.4:
        return change.changed_zip(rng, seed)
    if rng.random() < 0.4:
        return change.damaged(rng, seed, (*_PICKLES, b"ctorch\n_utils\n", b"\x8c\x05torch", b"R", b"b", b"\x81"))
    if rng.random() < 0.1:
        return rng.choice(_PICKLES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = _saved(lambda out: torch.save(_strange_tensors(rng), out))
    except Exception:  # a kind that torch does not save
        return _changed_checkpoint(rng, seed)
    return change.damaged(rng, written) if rng.random() < 0.1 else written


# Models and their manifests


@functools.cache
def _exported() -> list[tuple[bytes, bytes]]:
    """ONNX files and their manifests."""
    import tempfile

    from torch import nn

    from lowbit.export.onnx import export_onnx
    from lowbit.quantization import calibrate, quantize
    from lowbit.recipe import Recipe

    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    x = torch.from_numpy(_arrays()["inputs"])
    provenance = {"seed": 0, "data": {"source": "data.npz", "limit": 10}, "data_folder": "."}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        for model, recipe, blocks in (
            (conv, Recipe.uniform("int8", "int8"), None),
            (conv, Recipe.uniform("int4", "int4"), None),
            (flat, Recipe.uniform("int4", None, granularity="group:32"), "int8"),
        ):
            student = quantize(model, recipe)
            calibrate(student, [x], progress=False)
            export_onnx(student, path, x, block_kernels=blocks, provenance=provenance)  # type: ignore[arg-type]
            from lowbit.export.verify import verify

            verify(path, [x], progress=False)
            found.append((path.read_bytes(), path.with_name("manifest.json").read_bytes()))
            path.with_name("manifest.json").unlink()
    return found


def _data_beside() -> dict[str, bytes]:
    return {"data.npz": _npz()[0]}


def _verify(path: Path) -> None:
    """As `lowbit verify model.onnx --data data.npz`, the manifest having the hash of the damaged file."""
    if path.name == "model.onnx":
        manifest = json.loads(_exported()[0][1])
        entry = manifest["model.onnx"] | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if len(path.read_bytes()) % 2:
            entry["watch"] = None
        path.with_name("manifest.json").write_text(json.dumps({"model.onnx": entry}))
        _command(path, str(path.with_name("data.npz")))
    else:
        path.with_name("model.onnx").write_bytes(_exported()[0][0])
        _command(path.with_name("model.onnx"), None)


def _command(path: Path, data: str | None, runtime: str = "onnxruntime") -> None:
    from lowbit.cli.deployment import verify

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        verify(path, data, runtime, 10, False)


def _verify_openvino(path: Path) -> None:
    manifest = json.loads(_exported()[0][1])
    manifest["model.onnx"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("manifest.json").write_text(json.dumps(manifest))
    _command(path, str(path.with_name("data.npz")), "openvino")


def _watch(path: Path) -> None:
    """As `lowbit watch model.onnx --data data.npz`."""
    from lowbit.data import open_data
    from lowbit.export.watching import watch

    watch(path.with_name("model.onnx"), open_data(path.with_name("data.npz")).batches(10), progress=False)


def _run_file(path: Path) -> None:
    """As `lowbit compare model.onnx other.onnx --data data.npz` does for each of its files."""
    from lowbit.data import open_data
    from lowbit.pilot.outcomes import run_file

    run_file(path, open_data(path.with_name("data.npz")), progress=False)


# What reads


def _read_recipe(path: Path) -> None:
    from lowbit.pilot.spec import load_recipe

    recipe = load_recipe(path)[0]
    _ = recipe.fingerprint
    recipe.resolve(["conv1", "conv2", "head"])


def _read_pilot(path: Path) -> None:
    from lowbit.pilot.spec import load_spec

    load_spec(path)


def _read_data(path: Path) -> None:
    from lowbit.data import open_data

    data = open_data(path)
    for _ in data.batches(4):
        pass
    _ = data.hash


def _read_folder(path: Path) -> None:
    _read_data(path.parent.parent)


def _read_weights(path: Path) -> None:
    from lowbit.models import load

    load("net.py:build", path.name, path.parent)


def _read_manifest(path: Path) -> None:
    from lowbit.export.onnx import described

    described(path.with_name("model.onnx"))


def _read_record(path: Path) -> None:
    from lowbit.pilot.record import Run, Timings, Trial, read

    data = path.read_bytes()
    kind: Any = Run if b'"trials"' in data else Timings if b'"rows"' in data else Trial
    read(kind, path)


def _read_lock(path: Path) -> None:
    """As the lock file of a run folder, of a trial, and where the system has no locks."""
    from lowbit.pilot import executor, locks

    note = locks.noted(path)
    for free in (True, False, None):
        locks._held(note, free)
    try:
        with executor.only(path.parent):
            pass
    finally:
        path.unlink(missing_ok=True)


def _read_study(path: Path) -> None:
    from lowbit.pilot.features import FeatureStudy

    FeatureStudy.load(path)


def _read_trace(path: Path) -> None:
    from lowbit.methods.discrimination.tracing import FeatureTrace

    trace = FeatureTrace.load(path)
    x = np.zeros((3, len(trace.names)))
    trace.changes(x)
    trace.drift(x)


def _read_log(path: Path) -> None:
    from lowbit.pilot.outcomes import open_log

    log = open_log(path)
    for name in log.names[:4]:
        with contextlib.suppress(LowbitError):
            log.column(name)
    log.column(log.outcomes(None))


def _logs() -> list[bytes]:
    rows = "\n".join(f"{i % 3},{i % 2 == 0},{i / 7},a{i}" for i in range(20))
    return [f"labels,outcome,score,name\n{rows}\n".encode(), b'outputs\r\n"1,5"\r\n2\r\n', b"hit;label\n1;0\n"]


_CSV = (
    b",",
    b'"',
    b"\n",
    b"\r\n",
    b'""',
    b"\x00",
    b"\xff",
    b"nan",
    b"1e999",
    b",,,,",
    b"\xef\xbb\xbf",
    b"a" * 3000,
    b"\n" * 100,
)


def _records() -> list[bytes]:
    """Records with every part, filled from the types of their fields."""
    from lowbit.pilot.record import Run, Timings, Trial

    return [json.dumps(_example(kind)).encode() for kind in (Trial, Run, Timings)]


def _notes() -> list[bytes]:
    import socket

    note = {"host": "far.away", "pid": 77, "since": "2026-01-01T00:00:00+00:00", "run": "0123abcd", "lost": 1}
    here = {**note, "host": socket.gethostname(), "locks": True}
    return [json.dumps(one).encode() for one in (note, here)]


def _study() -> list[bytes]:
    from lowbit.pilot.features import FeatureStudy

    return [json.dumps(_example(FeatureStudy)).encode()]


def _example(kind: Any) -> Any:  # noqa: PLR0911
    """A value of a type, of dataclasses and what they hold."""
    import dataclasses
    import types
    import typing

    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {one.name: _example(hints[one.name]) for one in dataclasses.fields(kind)}
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return inside[0]
    if origin in (typing.Union, types.UnionType):
        return _example(inside[0])
    if origin is tuple:
        return [_example(inside[0])] * 2 if Ellipsis in inside else [_example(one) for one in inside]
    if origin is dict:
        return {"a": _example(inside[1])}
    if origin is list:
        return [_example(inside[0])]
    return {int: 3, float: 0.5, str: "text", bool: True}.get(kind, "anything")


def _traces() -> list[bytes]:
    from lowbit.methods.discrimination.estimators import BinaryQuantizer, TernaryQuantizer
    from lowbit.methods.discrimination.tracing import trace_features

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), np.arange(40) % 2
    traces = [trace_features(one().fit(x, y), x) for one in (BinaryQuantizer, TernaryQuantizer)]
    return [json.dumps(one.model_dump(mode="json")).encode() for one in traces]


def _changed_log(rng: random.Random, seed: bytes) -> bytes:
    return change.damaged(rng, seed, _CSV, text=True)


def _changed_image(rng: random.Random, seed: bytes) -> bytes:
    return change.damaged(rng, seed)


def _net_beside() -> dict[str, bytes]:
    return {"net.py": NETWORK.encode()}


def _models() -> list[bytes]:
    return [model for model, _ in _exported()]


def _manifests() -> list[bytes]:
    return [_exported()[0][1]]


def _first_model() -> list[bytes]:
    return _models()[:1]


def _model_beside() -> dict[str, bytes]:
    return _data_beside() | {"model.onnx": _exported()[0][0]}


READERS: tuple[Reader, ...] = (
    Reader("recipe", "recipe.yaml", 12, _recipes, change.changed_yaml, _read_recipe),
    Reader("pilot", "pilot.yaml", 6, _pilots, change.changed_yaml, _read_pilot, lambda: {"recipe.yaml": _recipes()[0]}),
    Reader("npz", "data.npz", 13, _npz, change.changed_npz, _read_data),
    Reader("parquet", "data.parquet", 9, _parquet, change.changed_parquet, _read_data),
    Reader("images", "images/a/0.png", 9, _images, _changed_image, _read_folder),
    Reader(
        "safetensors", "w.safetensors", 11, _safetensors, change.changed_safetensors, _read_weights,
        _net_beside,
    ),
    Reader("checkpoint", "w.pt", 8, _checkpoints, _changed_checkpoint, _read_weights, _net_beside),
    Reader("manifest", "manifest.json", 7, _manifests, change.changed_json, _read_manifest, _model_beside),
    Reader("record", "trial.json", 3, _records, change.changed_json, _read_record),
    Reader("lock note", ".lock", 1, _notes, change.changed_json, _read_lock),
    Reader("feature study", "features.json", 4, _study, change.changed_json, _read_study),
    Reader("feature trace", "ternary.json", 7, _traces, change.changed_json, _read_trace),
    Reader("csv log", "log.csv", 5, _logs, _changed_log, _read_log),
    Reader("parquet log", "log.parquet", 2, _parquet, change.changed_parquet, _read_log),
    Reader("npz log", "log.npz", 2, _npz, change.changed_npz, _read_log),
    Reader("lowbit watch, manifest", "manifest.json", 1, _manifests, change.changed_json, _watch, _model_beside),
    Reader("OpenVINO, ONNX", "model.onnx", 0.2, _first_model, change.changed_onnx, _verify_openvino, _data_beside),
    Reader("lowbit verify, manifest", "manifest.json", 1, _manifests, change.changed_json, _verify, _data_beside),
    Reader("lowbit verify, ONNX", "model.onnx", 2.5, _models, change.changed_onnx, _verify, _data_beside),
    Reader("compare, ONNX", "model.onnx", 1.5, _models, change.changed_onnx, _run_file, _data_beside),
)  # fmt: skip
