"""The catalogue of Japanese: an entry for every text of the sources, none without a text, placeholders alike."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from jinja2 import Environment

import lowbit
from lowbit.report import language

PACKAGE = Path(lowbit.__file__).parent
REPORT = PACKAGE / "report"
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def entries() -> list[tuple[str | None, tuple[str, ...], str]]:
    """Context, English (with a plural, where there is one) and Japanese of each entry."""
    with (REPORT / "ja.po").open("rb") as file:
        read = [message for message in read_po(file, locale="ja", abort_invalid=True) if message.id]
    forms = [(m.id,) if isinstance(m.id, str) else tuple(m.id) for m in read]
    strings = [m.string if isinstance(m.string, str) else m.string[0] for m in read if m.string is not None]
    return [(m.context, form, string) for m, form, string in zip(read, forms, strings, strict=True)]


ENTRIES = entries()


def said(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """The keys of a module: what `text`, `several` and `key` are called with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("text", "several", "key"):
                given = [a.value for a in node.args[: 2 if name == "several" else 1] if isinstance(a, ast.Constant)]
                if given and all(isinstance(one, str) for one in given):
                    yield tuple(map(str, given))


def in_template(source: str) -> Iterator[tuple[str, ...]]:
    """The keys of a template."""
    made = Environment(extensions=["jinja2.ext.i18n"])
    made.newstyle_gettext = True  # type: ignore[attr-defined]
    for _, name, told in made.extract_translations(source, ["_", "several", "gettext", "ngettext"]):  # type: ignore[attr-defined]
        given = [one for one in (told if isinstance(told, tuple) else (told,)) if isinstance(one, str)]
        given = given[: 2 if name in ("several", "ngettext") else 1]
        if name in ("gettext", "ngettext"):
            given = [re.sub(r"%\((\w+)\)s", r"{\1}", one).replace("%%", "%") for one in given]
        yield tuple(re.sub(r"\s*\n\s*", " ", one.strip()) if "\n" in one else one for one in given)


def all_keys() -> set[tuple[str, ...]]:
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in REPORT.glob("*.py")]
    templates = [path.read_text(encoding="utf-8") for path in REPORT.glob("*.j2")]
    return {key for tree in modules for key in said(tree)} | {
        key for source in templates for key in in_template(source)
    }


def test_every_text_has_an_entry_and_every_entry_a_text() -> None:
    keys, known = all_keys(), {form for context, form, _ in ENTRIES if context is None}
    assert len(keys) > 700
    assert sorted(keys - known) == [], "add these to ja.po"
    assert sorted(known - keys) == [], "nobody says these any more: take them out of ja.po"


def test_a_text_has_one_entry() -> None:
    seen = [(context, one) for context, form, _ in ENTRIES for one in {*form}]
    assert sorted(one for context, one in seen if seen.count((context, one)) > 1) == []


@pytest.mark.parametrize("context", [None, language.RECORD])
def test_translations_have_the_placeholders_of_their_english(context: str | None) -> None:
    for found, form, told in ENTRIES:
        if found == context:
            asked = {name for one in form for name in PLACEHOLDER.findall(one)} - {"s"}  # the ending of a plural
            assert {*PLACEHOLDER.findall(told)} == asked, form
            assert told.strip(), form
            assert not re.search(r"[{}]", PLACEHOLDER.sub("", told).replace("{0, 1}", "").replace("{}", "")), form


def recorded_sources() -> str:
    """Every text of lowbit outside of the report, with `{}` for what an f-string fills in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if "report" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(PLACEHOLDER.sub("{}", node.value))
    return "\n".join(found)


def test_every_sentence_of_a_record_is_still_written_by_somebody() -> None:
    sources = recorded_sources()
    words = re.compile(r"[A-Za-z][A-Za-z ,'()-]{5,}[A-Za-z]")  # runs of words between figures and placeholders
    gone = [
        (form[0], part)
        for context, form, _ in ENTRIES
        if context == language.RECORD
        for part in words.findall(PLACEHOLDER.sub("\0", form[0]))
        if part not in sources
    ]
    assert gone == []
