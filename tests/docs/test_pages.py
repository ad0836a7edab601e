"""Every command and every line of Python in the README and in docs/ runs as it is written.

The blocks of a page run in order in one folder of their own: Python in one namespace, `lowbit ...` and `python ...` in
this process, a file where the page says "Save this as `name`:". Lines below a command, or in a block `text` after a
command or a program, are what it prints: each of them has to come, in that order, whatever its figures are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shlex
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lowbit.cli import app
from lowbit.demo import trained_weights
from lowbit.errors import LowbitError, TrainingWarning

ROOT = Path(__file__).parents[2]
GENERATED = {"docs/cli.md": "made from the commands themselves, which tests/test_docs.py checks"}
INCLUDED = ("docs/results.md", "docs/log.md", "docs/changelog.md")  # figures, not instructions
PAGES = sorted(
    path
    for path in ("README.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")))
    if path not in GENERATED and path not in INCLUDED
)

NOT_RUN = {  # what a command begins with, and why it is not run; its options are still parsed where there is a parser
    "torchrun": "starts processes, 4 s each; tests/training runs them, here the options are parsed",
    "dask": "starts servers; tests/pilot/test_cluster.py runs them, here the options are parsed",
    "pip install": "needs the network; here the extra has to exist",
    "make": "sets up an environment; here the target has to exist",
    "lowbit pilot pilot.yaml --jobs": "starts processes, 4 s each; tests/pilot/test_cluster.py runs some",
    "lowbit pilot pilot.yaml --cluster": "needs a cluster; tests/pilot/test_cluster.py runs one",
}
NOT_RUN_PAGES = {  # pages of which no command is run
    "docs/huggingface.md": "needs models from elsewhere; tests/test_huggingface.py runs the commands on small ones",
}
WARNED = {"docs/curves.md": "five epochs are too few for the published loss, and the page says so"}
NOT_RUN_PYTHON = {  # what a line of the block holds
    "register_ray()": "Ray is no dependency; the page says so",
    'Client("tcp://host': "needs a cluster; tests/pilot/test_cluster.py runs one",
}

RUN = ("python", "console", "sh", "bash")
OPENING = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|\bnan\b")
SAVED = re.compile(r"Save this as `([\w./-]+)`:\n\n\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the file that the line before says it is, and where it stands."""

    language: str
    text: str
    file: str | None
    line: int


def blocks_of(page: str) -> list[Block]:
    source = (ROOT / page).read_text()
    found = []
    for match in OPENING.finditer(source):
        before, indent = source[: match.start()], len(match[1])
        text = "".join(line[indent:] if line.strip() else line for line in match[3].splitlines(keepends=True))
        named = SAVED.search(before)
        found.append(Block(match[2], text, named[1] if named else None, before.count("\n") + 1))
    return found


def masked(line: str) -> str:
    """A line of output without its figures, and without what draws tables."""
    return " ".join(NUMBER.sub("#", line).split())


@dataclass
class Reader:
    """Does what a page says, block by block."""

    page: str
    folder: Path
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str = ""
    status: int = 0

    def follow(self) -> None:
        for block in blocks_of(self.page):
            where = f"{self.page}:{block.line}"
            if block.file is not None:
                (self.folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / block.file).write_text(block.text)
            elif block.language == "python":
                self.python(block.text, where)
            elif block.language in ("console", "sh", "bash"):
                self.console(block.text, where)
            elif block.language == "text":
                self.expect(block.text.splitlines(), where, figures=True)

    def python(self, text: str, where: str) -> None:
        if any(mark in text for mark in NOT_RUN_PYTHON):
            compile(text, where, "exec")
            return
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(text, where, "exec"), self.names)
        self.printed = output.getvalue()

    def console(self, text: str, where: str) -> None:
        prompted = any(line.startswith("$ ") for line in text.splitlines())
        expected: list[str] = []
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("$ ") or (not prompted and line.strip()):
                self.expect(expected, where)
                expected = []
                self.command(line.removeprefix("$ "), where)
            else:
                expected.append(line)
        self.expect(expected, where)

    def expect(self, lines: list[str], where: str, figures: bool = False) -> None:
        """Each line is part of a line that was printed, in this order; with `figures`, these are within 5 % too."""
        printed = iter([(masked(line), NUMBER.findall(line)) for line in self.printed.splitlines()])
        for line in lines:
            if (wanted := masked(line)) not in ("", "..."):
                pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("...")))
                got = next((numbers for text, numbers in printed if pattern.search(text)), None)
                assert got is not None, f"{where}: no line {line!r} (in this order) in:\n{self.printed}"
                if figures and "..." not in line:
                    shown = [float(number) for number in NUMBER.findall(line)]
                    assert shown == pytest.approx([float(number) for number in got], rel=0.05), where

    def command(self, line: str, where: str) -> None:
        words = shlex.split(line, comments=True)
        if words == ["echo", "$?"]:
            self.printed = f"{self.status}\n"
            return
        plain = " ".join(words)
        if self.page in NOT_RUN_PAGES or any(plain.startswith(start) for start in NOT_RUN):
            parsed(words, where)
            return
        before = sys.argv
        if words[0] == "lowbit":
            try:
                result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
                self.printed, self.status = result.output, result.exit_code
            except LowbitError as error:
                self.printed, self.status = f"lowbit: {error}\n", 2
        elif words[0] == "python":
            script = Path(words[1]) if Path(words[1]).exists() else ROOT / words[1]
            output = io.StringIO()
            try:
                sys.argv = [str(script), *words[2:]]
                with contextlib.redirect_stdout(output):
                    runpy.run_path(str(script), run_name="__main__")
            finally:
                sys.argv = before
            self.printed, self.status = output.getvalue(), 0
        else:
            raise AssertionError(f"{where}: no test runs {line!r}; let one, or say in NOT_RUN why not")
        assert self.status != 2, f"{where}: {line}\n{self.printed}"


def parsed(words: list[str], where: str) -> None:
    """Check what can be known of a command without running it."""
    match words:
        case ["torchrun", *rest]:
            from torch.distributed.run import get_args_parser

            get_args_parser().parse_args([word.replace("$RANK", "1") for word in rest])
        case ["dask", ("scheduler" | "worker") as which, *rest]:
            command = importlib.import_module(f"distributed.cli.dask_{which}").main
            command.make_context(which, list(rest), resilient_parsing=False)
        case ["pip", "install", target]:
            extra = re.fullmatch(r"lowbit\[(\w+)\]", target)
            assert extra is not None, f"{where}: {target}"
            assert re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), where
        case ["hf", "download", _]:
            pass
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: make {target}"
        case ["lowbit", name, *rest]:
            from typer.main import get_command

            group = get_command(app)
            group.commands[name].make_context(name, list(rest))  # type: ignore[attr-defined]
        case _:
            raise AssertionError(f"{where}: nothing is known of {' '.join(words)!r}")


@pytest.fixture(scope="session")
def belongings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has: a trained network, data in files, a pilot that ran, two of its files, logs."""
    import yaml

    from lowbit import data

    folder = tmp_path_factory.mktemp("belongings")
    (folder / "net.py").write_text("from lowbit.models import digits_cnn as build\n")
    trained_weights(folder / "weights.safetensors", progress=False)
    (seen, _), (images, labels) = data.digits_train(), data.digits_test()
    np.savez(folder / "calibration.npz", inputs=seen[:256].numpy())
    for name, count in (("test", len(images)), ("new", 400), ("data", 300)):
        np.savez(folder / f"{name}.npz", inputs=images[:count].numpy(), labels=labels[:count].numpy())
    np.save(folder / "x.npy", images.flatten(1).numpy())
    np.save(folder / "y.npy", labels.numpy())

    old, new, truth = labels.clone(), labels.clone(), labels.tolist()
    old[:60], new[:40] = 0, 1
    logs = {"log": ["old,new,truth,old_hit,new_hit"], "old": ["class,truth"], "new": ["class,truth"]}
    for a, b, right in zip(old.tolist(), new.tolist(), truth, strict=True):
        logs["log"].append(f"{a},{b},{right},{int(a == right)},{int(b == right)}")
        logs["old"].append(f"{a},{right}")
        logs["new"].append(f"{b},{right}")
    for name, lines in logs.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")

    pilot: dict[str, object] = {"name": "digits", "model": "net.py:build", "weights": "weights.safetensors"}
    pilot["data"] = {name: {"source": f"{name}.npz"} for name in ("calibration", "test")}
    pilot["kpi"] = {"metric": "accuracy", "minimum": 0.9}
    pilot["variants"] = [
        {"name": f"w{bits}a8", "weights": f"int{bits}", "activations": "int8", "level": "fast"} for bits in (8, 4)
    ]
    (folder / "pilot.yaml").write_text(yaml.safe_dump(pilot))
    ran = CliRunner().invoke(app, ["pilot", f"{folder}/pilot.yaml", "--out", f"{folder}/runs/digits"])
    assert ran.exit_code == 0, ran.output
    for name in ("float", "w4a8"):
        shutil.copytree(folder / "runs/digits/variants" / name, folder / name)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language in RUN for block in blocks_of(page))])
def test_a_page_runs_as_written(page: str, belongings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(belongings, tmp_path, dirs_exist_ok=True)
    if page in ("docs/tutorial.md", "README.md"):  # these begin in an empty folder
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        if page in WARNED:
            warnings.simplefilter("ignore", TrainingWarning)
        Reader(page, tmp_path).follow()


def test_the_example_of_distillation_runs(belongings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/distill-digits"
    folder.mkdir(parents=True)
    shutil.copy(belongings / "weights.safetensors", folder)
    runpy.run_path(str(ROOT / "examples/digits/distill.py"), run_name="__main__")
    assert (folder / "model.onnx").exists()


def test_what_is_not_run_is_there_and_no_more() -> None:
    """An exception that no page needs is dropped from the list."""
    lines = [line.removeprefix("$ ") for page in PAGES for block in blocks_of(page) for line in block.text.splitlines()]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), start
    for mark in NOT_RUN_PYTHON:
        assert any(mark in line for line in lines), mark


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_that_are_run(page: str) -> None:
    """Nothing that looks like a command is in a block of another kind, or in one that is only indented."""
    source = OPENING.sub("", (ROOT / page).read_text())
    others = [block.text for block in blocks_of(page) if block.language not in (*RUN, "text", "{toctree}")]
    command = re.compile(r"^(?: {4})?(?:lowbit|python|pip|torchrun|dask|make) [\w./-]+.*$", re.MULTILINE)
    assert not re.findall(r"^ {4}(?:lowbit|python|pip|torchrun|dask) .*$", source, re.MULTILINE)
    assert not [found for text in others for found in command.findall(text)]


@pytest.mark.parametrize("page", [*PAGES, *GENERATED])
def test_commands_within_sentences_exist(page: str) -> None:
    """`lowbit pilot --plan` in a sentence or a table names a command, and options that it has."""
    from typer.main import get_command

    for found in re.findall(r"`lowbit ([^`]+)`", OPENING.sub("", (ROOT / page).read_text())):
        here: Any = get_command(app)
        for word in found.split():
            if word.startswith("--"):
                known = {option for parameter in here.params for option in parameter.opts}
                assert word.split("=")[0] in known | {"--help"}, f"{page}: lowbit {found}: {word}"
            elif word in getattr(here, "commands", {}):
                here = here.commands[word]
        assert here.name != "lowbit" or found.startswith("-"), f"{page}: lowbit {found}"


def test_the_reference_has_every_public_name() -> None:
    """docs/api.md lists each once; that each has a docstring, ruff checks."""
    import lowbit

    source = (ROOT / "docs/api.md").read_text()
    listed = " ".join(re.findall(r"```{public}\n(.*?)```", source, re.DOTALL)).split()
    public = [name for names in lowbit._HOMES.values() for name in names]
    assert sorted(listed) == sorted(public)


DERIVED = {  # figures of a page that follow from those of record, and how
    "format_search": {"3.3": "percent above 1, of 1.033"},
    "distillation": {"0.36": "87.72 - 87.36", "0.2": "88.18 - 87.96"},
}
METHODS = ("post_training", "distillation", "format_search", "factorization", "curves", "discrimination")


@pytest.mark.parametrize("page", METHODS)
def test_pages_of_methods_have_their_parts(page: str) -> None:
    """Equation, code, deviation and figures, in this order; and each figure stands in the figures of record."""
    source = (ROOT / f"docs/{page}.md").read_text()
    code = min(source.index(part) for part in ("```python",))
    equation = source.index("$$")
    differs = source.index("## What differs from the paper")
    figures = source.index("## Our figures")
    assert max(code, equation) < min(differs, figures), page
    recorded = {float(n) for n in re.findall(r"\d*\.\d+", (ROOT / "benchmarks/RESULTS.md").read_text())}
    section = source[figures:].split("\n## ")[0]
    derived = DERIVED.get(page, {})
    for number in re.findall(r"(?<![\w.:])\d*\.\d+(?![\w.])", section):
        digits = len(number.split(".")[1])
        known = any(round(value, digits) == float(number) for value in recorded)
        assert known or number in derived, f"{page}: {number} is not in benchmarks/RESULTS.md"
