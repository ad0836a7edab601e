"""The shape of the package, walked with `ast`: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lowbit

ROOT = Path(lowbit.__file__).parent
# a part may import only parts before it; a new part finds its place here first
LEAVES = [
    *("errors", "files", "progress", "batches", "inputs", "objectives", "drift", "compiled", "tracing", "environment"),
]
ORDER = [
    *LEAVES,
    *("formats", "granularity", "kernels", "ops", "scales", "quantizer", "recipe", "layers", "graph", "quantization"),
    *("families", "costs", "allocation", "post_training", "training", "methods", "export", "pilot", "report"),
]
# edges import what they like, and only they and the pilot import them
EDGES = {"models", "data", "arrays", "images", "parquet", "named", "cli", "demo", "huggingface"}
USERS_OF_EDGES = {*EDGES, "pilot"}
# allowed from pickle: the errors that a refused file, or a model that cannot go to another process, raises
PICKLE = {"UnpicklingError", "PicklingError"}

FILES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in ROOT.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(tree: ast.Module) -> Iterator[str]:
    """Every import, wherever it stands, as a full dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(name: str) -> str:
    """`export` of `export.qdq`."""
    return name.split(".", maxsplit=1)[0]


PARTS = {part(name) for name in FILES} - {"__init__"}


def imported_parts(name: str) -> set[str]:
    """Other parts of the package that a module imports."""
    inside = {full.split(".")[1] for full in imports(TREES[name]) if full.startswith("lowbit.")}
    return (inside & PARTS) - {part(name)}


def of_every_module(test: Callable[[str], None]) -> Callable[[], None]:
    """One test of all modules, which names those that fail: one for each takes longer to start than to run."""

    def run() -> None:
        failed = []
        for name in FILES:
            try:
                test(name)
            except AssertionError as error:
                failed.append(f"{name}: {error or 'does not hold'}")
        assert not failed, "\n".join(failed)

    return run


def test_every_part_has_its_place() -> None:
    unplaced = PARTS - {*ORDER, *EDGES}
    assert not unplaced, "add the new part to ORDER, where its imports allow"


@of_every_module
def test_imports_only_go_up_the_list(name: str) -> None:
    if part(name) not in ORDER:
        return
    place = ORDER.index(part(name))
    allowed = set(ORDER[:place])
    if part(name) in USERS_OF_EDGES:
        allowed |= EDGES
    assert imported_parts(name) <= allowed


@of_every_module
def test_edges_are_edges(name: str) -> None:
    if part(name) not in USERS_OF_EDGES:
        assert not imported_parts(name) & EDGES


@of_every_module
def test_nothing_between_methods_and_what_shows_or_writes_results(name: str) -> None:
    names = set(imports(TREES[name]))
    if part(name) in ("export", "report"):
        assert not any(full.startswith("lowbit.methods") for full in names)
    if part(name) == "methods":
        method = name.split(".")[1:2]
        others = {full for full in names if full.startswith("lowbit.methods.")}
        assert all(other.split(".")[2:3] == method for other in others)


def imported_modules(name: str) -> set[str]:
    """Modules that a module imports, and not for types alone."""
    outside = [n for n in TREES[name].body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    found = (full.removeprefix("lowbit.") for full in imports(ast.Module(outside, [])) if full.startswith("lowbit."))
    return {next((one for one in (full, full.rpartition(".")[0]) if one in FILES), "") for full in found} - {""}


def test_modules_import_each_other_one_way() -> None:
    left = {name: imported_modules(name) for name in FILES}
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left, "these import each other in a circle, or something that does"


def test_import_lowbit_loads_nothing_heavy() -> None:
    script = "import sys, lowbit; print([m for m in sys.modules if m == 'torch' or m.startswith('lowbit.')])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# What no module does


def calls(name: str, function: str) -> list[ast.Call]:
    """Calls of `module.function` in a module."""
    return [n for n in ast.walk(TREES[name]) if isinstance(n, ast.Call) and ast.unparse(n.func) == function]


@of_every_module
def test_torch_load_reads_weights_only(name: str) -> None:
    for call in calls(name, "torch.load"):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("weights_only") == "True", f"line {call.lineno}"
    assert "torch.load" not in set(imports(TREES[name]))  # which would hide the calls


@of_every_module
def test_yaml_is_read_safely(name: str) -> None:
    attributes = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "yaml"]
    unsafe = {"load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all"}
    used = {node.attr for node in attributes} | {n.removeprefix("yaml.") for n in imports(TREES[name]) if "yaml." in n}
    assert not used & unsafe


@of_every_module
def test_nothing_is_unpickled(name: str) -> None:
    names = set(imports(TREES[name]))
    assert not {part(full) for full in names} & {"dill", "cloudpickle", "shelve", "marshal"}
    assert {full for full in names if part(full) == "pickle"} <= {"pickle"}
    used = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"]
    assert {node.attr for node in used} <= PICKLE
    assert not calls(name, "joblib.load")
    for call in calls(name, "np.load"):
        assert {k.arg: ast.unparse(k.value) for k in call.keywords}.get("allow_pickle", "False") == "False"
