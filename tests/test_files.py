"""Files are written whole or not at all, and reading one never runs it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowbit import files
from lowbit.errors import DataError


class Malicious:
    """A pickle of this leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def refusal(call: Callable[..., object], *args: object) -> str:
    """The one line that the call is refused with."""
    with pytest.raises(DataError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def raising(error: OSError) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise error

    return fail


@pytest.fixture(autouse=True)
def imports_undone(tmp_path: Path) -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


# Writing


def test_replacing_moves_the_finished_file_into_place(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    path.write_text("old")
    with files.replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    path = tmp_path / "result.txt"
    message = refusal(files.write_text, path, "text")
    assert message == (f"cannot write '{path}': No space left on device; free some space or choose another folder")
    assert not list(tmp_path.iterdir())


def test_a_write_that_stops_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    files.write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        message = refusal(files.write_text, path, "x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    script = (
        "import os, signal\nfrom lowbit.files import replacing\n"
        f"with replacing({str(path)!r}) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_sweeping_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    left: list[Path] = []
    for name in ("result.npz", "fingerprint", "a.b.json", "inner/log.jsonl"):
        with contextlib.suppress(ValueError), files.replacing(tmp_path / name) as temporary:
            temporary.write_text("half")
            left.append(temporary)
            raise ValueError
    for path in left:
        path.write_text("half")
    kept = [tmp_path / name for name in (".lock", ".lock.0123456789abcdef", ".git.settings.yml", "result.npz")]
    for path in kept:
        path.write_text("whole")
    files.sweep(tmp_path)
    assert sorted(tmp_path.glob("*")) == sorted([*kept, tmp_path / "inner"])
    assert left[3].exists()
    files.sweep(tmp_path, inside=True)
    assert not left[3].exists()


def test_unwritable_places_are_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "no" / "result.txt"
    assert refusal(files.write_text, missing, "") == (
        f"cannot write '{missing}': No such file or directory; create the folder first"
    )
    (tmp_path / "file").write_text("")
    assert "create the folder first" in refusal(files.write_text, tmp_path / "file" / "result.txt", "")
    (tmp_path / "folder").mkdir()
    assert "not of a folder" in refusal(files.write_text, tmp_path / "folder", "")
    monkeypatch.setattr(os, "replace", raising(PermissionError(errno.EACCES, "Permission denied")))
    assert "Permission denied; choose a folder you may write to" in refusal(files.write_text, tmp_path / "a", "")


def test_json_is_indented_unsorted_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"b": 1, "a": ["ü"]})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": [\n    "ü"\n  ]\n}\n'
    assert files.read_json(path) == {"b": 1, "a": ["ü"]}
    assert "write None" in refusal(files.write_json, path, {"loss": float("nan")})
    assert files.read_json(path) == {"b": 1, "a": ["ü"]}


# Reading text


def test_text_problems_are_named(tmp_path: Path) -> None:
    path = tmp_path / "text"
    assert refusal(files.read_text, path).startswith(f"cannot read '{path}': No such file or directory; ")
    assert "Is a directory" in refusal(files.read_text, tmp_path)
    path.write_bytes(b"ab\xff")
    assert refusal(files.read_text, path) == f"'{path}' is not UTF-8 text (byte 2); save it as UTF-8"
    path.write_bytes(b"\xef\xbb\xbfok")
    assert files.read_text(path) == "ok"


def test_json_problems_are_located(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('{"a": 1,\n "b" 2}')
    assert refusal(files.read_json, path).startswith(f"'{path}' line 2, column 6: ")
    path.write_text("[" * 100_000)
    assert "RecursionError" in refusal(files.read_json, path)


def test_yaml_problems_are_located(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("rules:\n  - match: '*'\n    weights: int4\n")
    assert files.read_yaml(path) == {"rules": [{"match": "*", "weights": "int4"}]}
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    assert refusal(files.read_yaml, path).startswith(f"'{path}' line 3, column 2: ")
    path.write_text("a: \x00")
    assert "not usable YAML" in refusal(files.read_yaml, path)
    path.write_text("a: !!bool maybe")
    assert "not usable YAML" in refusal(files.read_yaml, path)
    path.write_text("[" * 5_000)
    assert "5000 brackets within each other" in refusal(files.read_yaml, path)
    path.write_text("- " * 5_000)
    assert "not usable YAML" in refusal(files.read_yaml, path)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "recipe.yaml", tmp_path / "trace"
    path.write_text(f"a: !!python/object/apply:os.system ['touch {trace}']\n")
    assert "line 1, column 4: could not determine a constructor" in refusal(files.read_yaml, path)
    assert not trace.exists()


def test_yaml_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as file:
        file.truncate(1_000_001)
    assert "has 1000001 bytes, expected at most 1000000" in refusal(files.read_yaml, path)


def test_sha256_is_that_of_the_contents(tmp_path: Path) -> None:
    path, contents = tmp_path / "data", os.urandom(3_000_000)
    path.write_bytes(contents)
    assert files.sha256(path) == hashlib.sha256(contents).hexdigest()
    assert "check the path" in refusal(files.sha256, tmp_path / "missing")


# Reading tensors


def saved(folder: Path, suffix: str, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    elif suffix == ".npz":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(path, allow_pickle=False, **arrays)
    else:
        torch.save(tensors, path)
    return path


SUFFIXES = [".safetensors", ".pt", ".pth", ".npz"]
TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_come_back_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    loaded = files.load_tensors(saved(tmp_path, suffix, TENSORS))
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix, TENSORS)
    contents = path.read_bytes()
    for length in range(0, len(contents), max(1, len(contents) // 40)):
        path.write_bytes(contents[:length])
        assert str(path) in refusal(files.load_tensors, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_damaged_file_is_read_or_refused_but_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix, TENSORS)
    contents = path.read_bytes()
    refused = 0
    for place in range(0, len(contents), max(1, len(contents) // 100)):
        path.write_bytes(contents[:place] + bytes([contents[place] ^ 0xFF]) + contents[place + 1 :])
        with contextlib.suppress(DataError):
            files.load_tensors(path)
            continue
        refused += 1
    assert refused


def test_a_checkpoint_may_hold_its_state_dict_under_that_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "state_dict": TENSORS}, path)
    assert files.load_tensors(path).keys() == TENSORS.keys()
    torch.save({"epoch": 3, "model": TENSORS}, path)
    assert "entry 'epoch' is int, expected a tensor" in refusal(files.load_tensors, path)
    torch.save(torch.ones(3), path)
    assert "holds a Tensor, expected a state dict" in refusal(files.load_tensors, path)


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(3), "extra": Malicious(trace)}, path)
    message = refusal(files.load_tensors, path)
    assert f"'{path}' is a pickle" in message
    assert "safetensors.torch.save_file" in message
    path.write_bytes(pickle.dumps(Malicious(trace), protocol=4))
    assert "is a pickle" in refusal(files.load_tensors, path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "is a pickle" in refusal(files.load_tensors, path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # noqa: S301  the trap does work
    assert trace.exists()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    assert "end in '.bin', expected .safetensors, .pt, .pth or .npz" in refusal(files.load_tensors, tmp_path / "w.bin")
    for suffix in SUFFIXES:
        path = tmp_path / f"missing{suffix}"
        assert refusal(files.load_tensors, path).startswith(f"cannot read '{path}': No such file or directory")
    np.savez(tmp_path / "words.npz", words=np.array(["a"]))
    assert "words.npz" in refusal(files.load_tensors, tmp_path / "words.npz")


def test_arrays_come_back_and_nothing_but_arrays(tmp_path: Path) -> None:
    path, trace = tmp_path / "data.npz", tmp_path / "trace"
    np.savez_compressed(path, x=np.arange(4), y=np.array(["a", "b"]))
    assert files.load_arrays(path)["x"].tolist() == [0, 1, 2, 3]
    np.savez(path, x=np.arange(4), odd=np.array([Malicious(trace)], dtype=object))
    assert "array 'odd' is a pickle of Python objects, expected numbers" in refusal(files.load_arrays, path)
    path.write_bytes(pickle.dumps(Malicious(trace)))
    assert "is truncated or no .npz file" in refusal(files.load_arrays, path)
    with path.open("wb") as file:
        np.save(file, np.arange(4))
    assert "is truncated or no .npz file" in refusal(files.load_arrays, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "member 'readme.txt' is no array" in refusal(files.load_arrays, path)
    assert not trace.exists()


# Calling the user's code


def test_resolve_finds_functions_in_modules_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.resolve("json:dumps") is json.dumps
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "nets.py").write_text("def build():\n    return 'module'\n")
    assert files.resolve("package.nets:build", tmp_path)() == "module"
    assert files.resolve("package/nets.py:build", tmp_path)() == "module"
    assert files.resolve(f"{tmp_path}/package/nets.py:build")() == "module"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("here_only.py").write_text("def build():\n    return 'here'\n")
    assert files.resolve("here_only:build", tmp_path)() == "here"


def test_resolve_lets_a_file_import_its_neighbors_and_define_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "neighbor_a1.py").write_text("VALUE = 5\n")
    (tmp_path / "model.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Box:\n    value: int\n"
        "def build():\n    from neighbor_a1 import VALUE\n    return Box(VALUE).value\n"
    )
    assert files.resolve("model.py:build", tmp_path)() == 5


def test_resolve_keeps_equal_names_apart_and_sees_edits(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text(f"def build():\n    return '{folder}'\n")
    assert files.resolve("model.py:build", tmp_path / "one")() == "one"
    assert files.resolve("model.py:build", tmp_path / "two")() == "two"
    (tmp_path / "two" / "model.py").write_text("def build():\n    return 'new'\n")
    assert files.resolve("model.py:build", tmp_path / "two")() == "new"
    build = files.resolve("model.py:build", tmp_path / "two")
    assert files.resolve("model.py:build", tmp_path / "two") is build


def test_resolve_refuses_a_module_that_hides_another(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def dumps():\n    return 'hidden'\n")
    assert "write the path of the .py file instead" in refusal(files.resolve, "json:dumps", tmp_path)
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("nothing", "cannot be read, expected 'package.module:function'"),
        (":build", "cannot be read, expected 'package.module:function'"),
        ("module:", "cannot be read, expected 'package.module:function'"),
        ("no_such_module:build", "raised ModuleNotFoundError: No module named 'no_such_module'; check the name"),
        ("missing.py:build", "missing.py': No such file or directory"),
        (".relative:build", "importing '.relative' raised"),
        ("broken.py:build", "importing 'broken.py' raised SyntaxError: "),
        ("raises.py:build", "importing 'raises.py' raised ValueError: two lines; "),
        ("leaves.py:build", "importing 'leaves.py' raised SystemExit: 3; "),
        ("good.py:absent", "'good.py' has no 'absent'; choose from build"),
        ("good.py:bild", "'good.py' has no 'bild'; did you mean 'build'? choose from build"),
        ("empty.py:absent", "'empty.py' has no 'absent'; choose from no functions"),
        ("good.py:NUMBER", "'NUMBER' is int, expected a function"),
    ],
)
def test_resolve_refuses_in_one_line(tmp_path: Path, reference: str, expected: str) -> None:
    sources = {
        "broken": "def build(:\n",
        "raises": "raise ValueError('two\\nlines')\n",
        "leaves": "import sys\nsys.exit(3)\n",
        "good": "NUMBER = 1\ndef build(): ...\n",
        "empty": "",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    message = refusal(files.resolve, reference, tmp_path)
    assert message.startswith(f"reference '{reference}'")
    assert expected in message
