"""Damage for files that are read from outside: bytes, structure of YAML and JSON, npz members, ONNX graphs.

Everything is drawn from the generator that is given, so a seed is a file.
"""

from __future__ import annotations

import copy
import datetime
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -(2**63))
DEEP = "lowbit-fuzz-deep"  # replaced by thousands of brackets in the text
TEXTS = (
    *("", " ", "\n", "\x00", "\x1b[31m", "ü", "\u202e", "\U0001f600", "a" * 20_000, "../../etc/passwd", "/etc/passwd"),
    *("null", "~", "auto", "*", "**", "[", "(" * 300, "a{99999999999999999999}", "(?P<a", "(a+)+$", "[!", "\\", "{0}"),
    *(
        "int0",
        "int99",
        "int4",
        "int16",
        "mid9",
        "e9m99",
        "e0m0",
        "e5m2b999",
        "ternary:1e999",
        "ternary:-1",
        "ternary:nan",
    ),
    *(
        "mx:int4:0",
        "mx:e2m1:9999",
        "nv:mx:4",
        "bf16",
        "nvfp4-up",
        "mxfp4-up-up",
        "group:0",
        "group:999999999",
        "channel:99",
    ),
    *(
        "snake0",
        "snake999999999",
        "snake2x999999999",
        "snake9999x9999",
        "hilbert40",
        "moore0",
        "fold1",
        "fold999999999",
    ),
    *(
        "snake8@nan",
        "snake8@1e999",
        "snake8@-1",
        "hilbert0",
        "snake2x2@0.49",
        "999999x",
        "0x",
        "1e400",
        "svd",
        "rank:0",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**30, -(10**30), 10**400, 0.0, -0.0, 1e308, -1e308, 5e-324, 0.5),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}, [0] * 2000, DEEP),
)
YAML_TOKENS = (
    *(
        b"&a [*a]",
        b"*a",
        b"&a",
        b"<<: *a\n",
        b"!!python/object/apply:os.system ['true']",
        b"!!binary aGk=",
        b"!!set {a, b}",
    ),
    *(
        b"? ",
        b"- " * 300,
        b"[" * 3000,
        b"{" * 3000,
        b"\t",
        b"%YAML 9.9\n---\n",
        b"---\n",
        b"...\n",
        b"!!float x",
        b"!!bool x",
    ),
    *(
        b"!!omap [a: 1]",
        b"!!pairs [a: 1, a: 2]",
        b"!!timestamp 2001-99-99",
        b"2001-12-14t21:59:43.10-05:00",
        b"0x_",
        b"1:99:99",
    ),
    *(
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"'",
        b'"',
        b"|\n",
        b">\n",
        b": ",
        b"#",
        b"\r",
        b"\x85",
        b"0b_",
        b"0o99",
        b"!!int ''",
    ),
    *(
        b"!!python/name:os.system",
        b"!<x>",
        b"!!null x",
        b"=",
        b".inf",
        b"1e999",
        b"190:20:30",
        b'"\\ud800"',
        b'"\\UFFFFFFFF"',
    ),
)
JSON_TOKENS = (
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"9" * 5000,
        b'"\\ud800"',
        b"\\u0000",
        b"null",
    ),
    *(b"-0", b",", b"[", b"{", b"]", b"}", b'"', b"\xff", b"\x00", b"\xed\xa0\x80", b"true", b"1" * 400, b'"\\'),
)


def damaged(rng: random.Random, data: bytes, tokens: Sequence[bytes] = (), *, text: bool = False) -> bytes:
    """Bytes after one to four kinds of damage; text mostly stays text."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _damage(rng, found, tokens)
    if text and rng.random() < 0.9:
        return bytes(one if 32 <= one < 127 or one == 10 else 33 + one % 94 for one in found)
    return bytes(found)


def _damage(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    place, length = rng.randrange(len(data) + 1), min(int(rng.expovariate(1 / 16)) + 1, 4096)
    # half of all damage near the ends, where headers and footers are
    if len(data) > 512 and rng.random() < 0.5:
        place = rng.choice((rng.randrange(256), len(data) - rng.randrange(256)))
    match rng.randrange(10 if tokens else 9):
        case 0 | 1:
            for _ in range(rng.choice((1, 1, 1, 8))):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2 if data:
            data[min(place, len(data) - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 3:
            del data[place:]
        case 4:
            data[place:place] = rng.randbytes(length)
        case 5:
            del data[place : place + length]
        case 6:
            data[place:place] = data[place : place + length] * rng.choice((1, 1, 2, 50))
        case 7:
            kind = rng.choice(("<H", "<I", "<Q", ">H", ">I", ">Q"))
            number = struct.pack(kind, rng.choice(NUMBERS) % 256 ** struct.calcsize(kind))
            data[place : place + len(number)] = number
        case 8:
            other = rng.randrange(len(data) + 1)
            data[place : place + length] = data[other : other + length]
        case _:
            data[place:place] = rng.choice(tokens) if tokens else b""


# Structure


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        inside = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        for key, inner in inside:
            yield one, key
            waiting.append(inner)


def strange(rng: random.Random) -> Any:
    """A value that a file should not have at most places."""
    if rng.random() < 0.4:
        return rng.choice(TEXTS)
    return copy.deepcopy(rng.choice(VALUES))


def reshaped(rng: random.Random, tree: Any) -> Any:
    """A tree of plain data with one to three changes."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places or rng.random() < 0.01:
            tree = strange(rng)
            continue
        container, key = rng.choice(places)
        match rng.randrange(9):
            case 0 | 1 | 2:
                container[key] = strange(rng)
            case 3:
                del container[key]
            case 4:
                other, there = rng.choice(places)
                with_other = copy.deepcopy(other[there]) if there in _keys(other) else None
                container[key] = with_other
            case 5 if isinstance(container, dict):
                container[rng.choice((*TEXTS, f"{key}x", 0, None))] = container.pop(key)
            case 6:
                container[key] = rng.choice(([container[key]], {"a": container[key]}, str(container[key])))
            case 7 if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case _:
                old = container[key]
                number = isinstance(old, (int, float)) and not isinstance(old, bool)
                container[key] = rng.choice((-old, old * 10**9, 0.5, 0)) if number else strange(rng)
    return tree


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def _deepened(rng: random.Random, text: str) -> str:
    n = rng.choice((50, 500, 5000))
    return text.replace(f'"{DEEP}"', "[" * n + "]" * n).replace(DEEP, "[" * n + "]" * n)


def as_yaml(rng: random.Random, tree: Any) -> bytes:
    """A tree as YAML, in one of the forms that it can be written in."""
    if rng.random() < 0.5:
        return _deepened(rng, json.dumps(tree)).encode()
    text = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    return _deepened(rng, text).encode()


def changed_yaml(rng: random.Random, seed: bytes) -> bytes:
    """A YAML file with other structure, or other bytes."""
    if rng.random() < 0.4:
        return damaged(rng, seed, YAML_TOKENS, text=True)
    written = as_yaml(rng, reshaped(rng, yaml.safe_load(seed)))
    return damaged(rng, written, YAML_TOKENS) if rng.random() < 0.1 else written


def changed_json(rng: random.Random, seed: bytes) -> bytes:
    """A JSON file with other structure, or other bytes."""
    if rng.random() < 0.3:
        return damaged(rng, seed, JSON_TOKENS, text=True)
    written = _deepened(rng, json.dumps(reshaped(rng, json.loads(seed)))).encode()
    return damaged(rng, written, JSON_TOKENS) if rng.random() < 0.1 else written


# Archives and tables

_SHAPES = (
    "()",
    "(0,)",
    "(-1,)",
    "(3, 4)",
    "(1000000000000,)",
    "(2305843009213693952, 8)",
    "(1,) * 70",
    "('a',)",
    "None",
)
_SHAPES_MORE = (
    "(True, 2)",
    "(99999999999999999999999,)",
    "(0, 99999999999999)",
    "[3]",
    "(1.5,)",
    "(1000000000, 1000000000, 0)",
)
_DTYPES = ("'<f4'", "'|O'", "'<U1000000000'", "'<M8[ns]'", "'|V0'", "'<c16'", "[('a', '<f4')]", "'x'", "'<f2'", "None")
_DTYPES_MORE = (
    "'|S0'",
    "'<u8'",
    "'|b1'",
    "[('a', '|O')]",
    "'>i4'",
    "'<f16'",
    "('<f4', (1000000, 1000000))",
    "'<m8'",
    "'|S9'",
)
_NAMES = (
    "inputs.npy",
    "labels.npy",
    "x",
    "../../x.npy",
    "/etc/passwd.npy",
    " ",
    ".npy",
    "a" * 5000 + ".npy",
    "ü\n.npy",
    "inputs",
)


def strange_npy(rng: random.Random) -> bytes:
    """An array file whose header promises what its bytes may not hold."""
    shape, kind = rng.choice(_SHAPES + _SHAPES_MORE), rng.choice(_DTYPES + _DTYPES_MORE)
    order = rng.choice(("False", "True", "None", "1"))
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        header = rng.choice(
            ("[" * 500, "{}", header[:-5], "{'a': 1}", "x" * 70000, "__import__('os')", header + "(" * 90)
        )
    version = rng.choice((*[b"\x01\x00"] * 8, b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    text = header.encode() + b"\n"
    length = struct.pack("<H", len(text) % 65536) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + length + text + rng.randbytes(rng.choice((0, 1, 48, 64, 1000)))


def plain_npy(rng: random.Random) -> bytes:
    """An intact array of some kind."""
    kinds = ("f4", "f8", "f2", "i8", "u1", "u2", "u8", "b1", "c8", "U3", "S3", "M8[s]")
    shape = rng.choice(((6, 4), (6,), (6, 1, 8, 8), (0, 4), (), (6, 0), (1, 4), (6, 2, 2, 2, 2)))
    array = np.frombuffer(rng.randbytes(int(np.prod(shape)) * 8), "u1")[: int(np.prod(shape))]
    written = io.BytesIO()
    np.save(written, array.astype(rng.choice(kinds)).reshape(shape))
    return written.getvalue()


def changed_npz(rng: random.Random, seed: bytes) -> bytes:
    """An archive with other members, or other bytes."""
    if rng.random() < 0.3:
        return damaged(rng, seed)
    written = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", how) as archive:
        warnings.simplefilter("ignore")  # about names that come twice
        for name in (*rng.sample(_NAMES, rng.randrange(3)), "inputs.npy", "labels.npy")[: rng.choice((1, 2, 2, 3, 4))]:
            made = rng.choice((strange_npy, plain_npy))(rng)
            made = damaged(rng, made) if rng.random() < 0.2 else made
            archive.writestr(name, b"not an array" if rng.random() < 0.03 else made)
    return damaged(rng, written.getvalue()) if rng.random() < 0.2 else written.getvalue()


def changed_safetensors(rng: random.Random, seed: bytes) -> bytes:
    """Another header over the same bytes, or other bytes."""
    if rng.random() < 0.4:
        return damaged(rng, seed)
    (length,) = struct.unpack("<Q", seed[:8])
    header, body = json.loads(seed[8 : 8 + length]), seed[8 + length :]
    if rng.random() < 0.5:
        return _fitting_safetensors(rng, header, body)
    header = reshaped(rng, header)
    if rng.random() < 0.3 and isinstance(header, dict) and header:
        name = rng.choice(list(header))
        kind, shape = (
            rng.choice(("F64", "F16", "BF16", "I8", "U16", "BOOL", "F8_E4M3", "C64", "F4")),
            [rng.choice(NUMBERS)],
        )
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [rng.choice(NUMBERS), rng.choice(NUMBERS)]}
    text = _deepened(rng, json.dumps(header)).encode()
    stated = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", stated) + text + body


def _fitting_safetensors(rng: random.Random, header: dict[str, Any], body: bytes) -> bytes:
    """A header that fits its bytes, over other tensors than those of the network."""
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(names)
        one = header[name]
        match rng.randrange(6):
            case 0:
                one["dtype"] = rng.choice(("I32", "U32", "F32"))
            case 1:
                one["shape"] = rng.choice((one["shape"][::-1], [*one["shape"], 1], [1, *one["shape"]], one["shape"]))
            case 2:
                one["shape"], one["dtype"] = (
                    [one["data_offsets"][1] - one["data_offsets"][0]],
                    rng.choice(("U8", "BOOL", "F8_E4M3")),
                )
            case 3:
                names.remove(name)
                names.append(rng.choice((*TEXTS, "0.weight.x")))
                header[names[-1]] = header.pop(name)
            case 4:
                body = rng.randbytes(len(body))
            case _:
                header["__metadata__"] = rng.choice(
                    ({}, {"a": "b"}, {"": ""}, {"format": "tf"}, {"a" * 3000: "\ud800"}, {"a": 1})
                )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def strange_table(rng: random.Random) -> bytes:
    """An intact Parquet file with columns of kinds that few have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = rng.choice((0, 1, 5, 300))
    holes = rng.random() < 0.3

    def column(values: Callable[[int], Any], kind: Any) -> Any:
        return pa.array([None if holes and rng.random() < 0.2 else values(i) for i in range(rows)], kind)

    kinds: list[Callable[[], Any]] = [
        lambda: column(float, pa.float64()),
        lambda: column(lambda i: i % 3, pa.int64()),
        lambda: column(lambda i: i % 3 == 0, pa.bool_()),
        lambda: column(lambda i: f"a{i}", pa.string()),
        lambda: column(lambda i: b"\xff", pa.binary()),
        lambda: column(lambda i: [1.0] * rng.choice((3, 3, 3, 0, 4)), pa.list_(pa.float32())),
        lambda: column(lambda i: [1.0, float("nan")], pa.list_(pa.float64(), 2)),
        lambda: column(lambda i: [None, 1], pa.large_list(pa.int32())),
        lambda: column(lambda i: [["a"]], pa.list_(pa.list_(pa.string()))),
        lambda: column(lambda i: {"bytes": rng.choice((b"", b"x", None)), "path": "a"}, _image()),
        lambda: column(lambda i: {"bytes": i}, pa.struct([("bytes", pa.int32())])),
        lambda: column(lambda i: {"bytes": "a"}, pa.struct([("bytes", pa.string())])),
        lambda: column(lambda i: i, pa.decimal128(38, 10)),
        lambda: column(lambda i: i, pa.decimal256(70, 3)),
        lambda: column(lambda i: i, pa.timestamp("ns")),
        lambda: column(lambda i: datetime.date(2000, 1, 1), pa.date32()),
        lambda: column(lambda i: i, pa.duration("s")),
        lambda: column(np.float16, pa.float16()),
        lambda: column(lambda i: 2**64 - 1, pa.uint64()),
        lambda: column(lambda i: "a", pa.string()).dictionary_encode(),
        lambda: column(lambda i: i, pa.int64()).dictionary_encode(),
        lambda: column(lambda i: [("a", 1)], pa.map_(pa.string(), pa.int32())),
        lambda: pa.nulls(rows),
        lambda: column(lambda i: rng.choice((1e300, float("inf"), float("nan"), -1.0)), pa.float64()),
    ]
    names = (
        "image",
        "label",
        "labels",
        "x",
        "y",
        "bytes",
        "",
        "a\nb",
        "inputs",
        "target",
        "label",
        "outputs",
        "hits",
        "ü" * 500,
    )
    chosen = [(rng.choice(names), rng.choice(kinds)()) for _ in range(rng.randrange(1, 5))]
    table = pa.Table.from_arrays([array for _, array in chosen], names=[name for name, _ in chosen])
    written = io.BytesIO()
    try:
        pq.write_table(table, written, row_group_size=rng.choice((1, 3, 100)) if rows else None)
    except Exception:  # a kind that Parquet has not
        return strange_table(rng)
    return written.getvalue()


def _image() -> Any:
    import pyarrow as pa

    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def changed_parquet(rng: random.Random, seed: bytes) -> bytes:
    """A table of other columns, or other bytes."""
    if rng.random() < 0.6:
        return damaged(rng, seed)
    written = strange_table(rng)
    return damaged(rng, written) if rng.random() < 0.2 else written


def changed_zip(rng: random.Random, seed: bytes) -> bytes:
    """An archive with one member damaged, and all its sums right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed)) as old, zipfile.ZipFile(written, "w") as archive:
        names = old.namelist()
        chosen = rng.choice([name for name in names if name.endswith("data.pkl")] if rng.random() < 0.8 else names)
        for name in names:
            data = old.read(name)
            archive.writestr(name, damaged(rng, data) if name == chosen else data)
    return written.getvalue()


# ONNX

_OPERATORS = ("Relu", "Add", "Loop", "If", "Scan", "NonMaxSuppression", "Reshape", "DequantizeLinear", "QuantizeLinear")
_OPERATORS_MORE = (
    "Clip",
    "Cast",
    "Gemm",
    "Conv",
    "MatMul",
    "Identity",
    "Transpose",
    "ConstantOfShape",
    "Nonsense",
    "Tile",
)
_LOCATIONS = (
    "../fuzz-secret.bin",
    "../../../../etc/passwd",
    "/etc/passwd",
    "beside.bin",
    "",
    ".",
    "model.onnx",
    "link.bin",
    "a\x00b",
)


def changed_onnx(rng: random.Random, seed: bytes) -> bytes:
    """A model with another graph, or other bytes."""
    if rng.random() < 0.4:
        return damaged(rng, seed)
    model = onnx.load_from_string(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            _change_graph(rng, model)
        except (ValueError, TypeError, IndexError):  # a number that the field cannot hold, or nothing left to change
            continue
    return model.SerializeToString()


def _change_graph(rng: random.Random, model: onnx.ModelProto) -> None:  # noqa: PLR0912
    graph = model.graph
    node, stored = rng.choice(graph.node), rng.choice(graph.initializer) if graph.initializer else None
    names = [name for one in graph.node for name in (*one.input, *one.output)] + ["", "nowhere", graph.input[0].name]
    match rng.randrange(20):
        case 0:
            graph.node.remove(node)
        case 1:
            graph.node.append(node)
        case 2:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 3:
            node.output[rng.randrange(len(node.output))] = rng.choice(names)
        case 4 if stored:
            graph.initializer.remove(stored)
        case 5 if stored:
            stored.dims[:] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
        case 6 if stored:
            stored.data_type = rng.choice((*range(30), 2**31 - 1, -1))
        case 7 if stored:
            stored.raw_data = rng.choice((b"", b"x", stored.raw_data[:-1], stored.raw_data * 2))
        case 8 if stored:
            _outside(rng, stored)
        case 9:
            model.opset_import[0].version = rng.choice((0, -1, 1, 13, 21, 26, 999, 2**62))
        case 10:
            model.ir_version = rng.choice((0, -1, 3, 10, 99, 2**62))
        case 11:
            values = rng.choice((graph.input, graph.output))
            _change_value(rng, rng.choice(values), values)
        case 12:
            node.name = rng.choice(
                ("", "a", "\x00", rng.choice(graph.node).name, "x.guard", "y.codes", "z.weight.values")
            )
        case 13:
            node.op_type = rng.choice(_OPERATORS + _OPERATORS_MORE)
        case 14 if node.attribute:
            _change_attribute(rng, rng.choice(node.attribute), graph)
        case 15:
            del node.input[rng.randrange(len(node.input)) :]
        case 16:
            del node.output[rng.randrange(len(node.output)) :]
        case 17:
            node.domain = rng.choice(("", "com.microsoft", "x", "ai.onnx.ml"))
        case 18:
            moved = copy.deepcopy(node)
            graph.node.remove(node)
            graph.node.insert(rng.randrange(len(graph.node) + 1), moved)
        case _:
            extra = rng.choice(graph.output)
            (graph.output.append if rng.random() < 0.5 else graph.input.append)(extra)


def _outside(rng: random.Random, stored: TensorProto) -> None:
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", rng.choice(_LOCATIONS)),
        ("offset", rng.choice(NUMBERS)),
        ("length", rng.choice(NUMBERS)),
    ):
        if key == "location" or rng.random() < 0.5:
            entry = stored.external_data.add()
            entry.key, entry.value = key, rng.choice((str(value), str(value), str(value), "x", "-1"))


def _change_value(rng: random.Random, value: onnx.ValueInfoProto, values: Any) -> None:
    tensor = value.type.tensor_type
    match rng.randrange(7):
        case 0:
            tensor.elem_type = rng.randrange(27)
        case 1 if tensor.shape.dim:
            rng.choice(tensor.shape.dim).dim_value = rng.choice(NUMBERS)
        case 2:
            tensor.ClearField("shape")
        case 3:
            tensor.shape.dim.add().dim_param = rng.choice(("n", ""))
        case 4:
            value.ClearField("type")
        case 5:
            value.name = rng.choice(("", "nowhere", "\x00"))
        case _:
            values.remove(value)


def _change_attribute(rng: random.Random, attribute: onnx.AttributeProto, graph: onnx.GraphProto) -> None:
    match rng.randrange(6):
        case 0:
            attribute.i = rng.choice(NUMBERS)
        case 1:
            attribute.ints[:] = [rng.choice(NUMBERS) for _ in range(rng.randrange(6))]
        case 2:
            attribute.type = rng.choice(list(onnx.AttributeProto.AttributeType.values()))
        case 3:
            attribute.name = rng.choice(("", "axis", "bits", "block_size", "accuracy_level", "pads", "group"))
        case 4:
            attribute.f = rng.choice((float("nan"), 1e38, -1.0))
        case _:
            attribute.type = onnx.AttributeProto.GRAPH
            inner = copy.deepcopy(graph)  # a message that is copied into itself crashes protobuf
            attribute.g.CopyFrom(inner)
