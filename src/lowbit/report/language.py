"""In which language pages are written: English, or another from a catalogue, sentence by sentence.

The English sentence is the key, as it stands in the code and in the templates, so code reads as the page does. A
catalogue is data in gettext's format (``ja.po``), which translators' tools know; placeholders are named, in braces, and
may come in another order. What a run recorded (notes, reasons, advice) was written in English when the run was made,
and stays so in its record: `of_record` finds the entry that such a sentence was made from and says it anew. The
language is no part of a run: the same record makes the page in any of them.

A sentence without an entry stays English rather than leaving a gap: errors of other libraries are such sentences. For
those of lowbit itself the tests see to it that none is without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from babel.messages.pofile import read_po
from markupsafe import Markup

from lowbit.errors import LowbitError

LANGUAGES = ("en", "ja")
RECORD = "record"  # the context of entries for sentences that lie in records
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_FREE = ("error", "reason", "reasons")  # placeholders that catch what other libraries say too
_PROSE = re.compile(r"(?:\b[a-z]+ ){3}")
_active: ContextVar[str] = ContextVar("language", default="en")


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Texts are in `language` inside the block. Raises LowbitError for a language that has no catalogue."""
    if language not in LANGUAGES:
        raise LowbitError(f"language: got {language!r}, expected {' or '.join(LANGUAGES)}")
    token = _active.set(language)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> str:
    """The language that texts are in: one of `LANGUAGES`."""
    return _active.get()


def text(english: str, /, **values: object) -> str:
    """The sentence in the active language, its `{placeholders}` filled with `values`."""
    entry = catalogue(active()).sentences.get(_one_line(english), english)
    return entry.format(**values) if values else entry


def several(one: str, many: str, number: float, /, **values: object) -> str:
    """`one` if `number` is 1, else `many`, in the active language; both may say `{number}`."""
    return text(_chosen(one, many, number), **{"number": number, **values})


def key(english: str, /) -> str:
    """The sentence itself, as a key that `text` is given later."""
    return english


def sentences(*parts: str) -> str:
    """Sentences behind each other, without the empty ones."""
    return gap().join(part for part in parts if part)


def gap() -> str:
    """What stands between two sentences."""
    return "" if active() == "ja" else " "


def of_record(sentence: str) -> str:
    """A sentence that lies in a record in English, in the active language; as it is where no entry fits it."""
    return catalogue(active()).recorded(sentence)


# In templates, where the sentence is markup and values are escaped


def markup(english: str, /, **values: object) -> Markup:
    """`text` for templates."""
    return Markup(text(english)).format(**values) if values else Markup(text(english))


def markup_several(one: str, many: str, number: float, /, **values: object) -> Markup:
    """`several` for templates."""
    return markup(_chosen(one, many, number), **{"number": number, **values})


def gettext(message: str) -> str:
    """`text` for trans blocks, whose placeholders are `%(name)s`; Jinja fills them."""
    return _percent(text(_braces(message)))


def ngettext(one: str, many: str, number: float) -> str:
    """`several` for trans blocks, whose placeholders are `%(name)s`; Jinja fills them."""
    return gettext(_chosen(one, many, number))


# The catalogue


@dataclass(frozen=True)
class Catalogue:
    """Translations by their English: `sentences` of the page, and `patterns` of sentences that lie in records."""

    sentences: dict[str, str]
    patterns: dict[str, str]

    @cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], str, bool]]:
        """Patterns, the one with the most fixed letters first; their translations, and whether they have a word."""
        fixed = {english: _PLACEHOLDER.sub("", english) for english in self.patterns}
        ordered = sorted(fixed, key=lambda english: len(fixed[english]), reverse=True)
        return [
            (_pattern(english), self.patterns[english], bool(re.search("[a-z]{2}", fixed[english])))
            for english in ordered
            if fixed[english] != english
        ]

    def recorded(self, sentence: str) -> str:
        """The sentence by the entry whose pattern it has; what its placeholders caught is looked up in turn.

        Several clauses, or a list, are said one by one, if there is an entry for each.
        """
        if not self.patterns or not sentence:
            return sentence
        if sentence in self.patterns:
            return self.patterns[sentence]
        clauses = self._clauses(sentence, "; ", "。") or self._clauses(sentence, ", ", "、")
        return clauses or self._by_pattern(sentence) or sentence

    def _by_pattern(self, sentence: str) -> str:
        for pattern, translation, has_word in self._compiled:
            if found := pattern.fullmatch(sentence):
                caught = {name: self.recorded(part) for name, part in found.groupdict().items()}
                left = [part for name, part in found.groupdict().items() if name not in _FREE and caught[name] == part]
                if (has_word or caught != found.groupdict()) and not any(map(_PROSE.search, left)):
                    return _filled(translation, caught)  # else it is another sentence
        return ""

    def _clauses(self, sentence: str, separator: str, ours: str) -> str:
        """The shortest beginning that has an entry, and what follows it; empty where one of both has none."""
        pieces = sentence.split(separator)
        for size in range(1, len(pieces)):
            first, rest = separator.join(pieces[:size]), separator.join(pieces[size:])
            said = self.patterns.get(first) or self._by_pattern(first)
            if said and (more := self.recorded(rest)) != rest:
                return f"{said}{ours}{more}"
        return ""


@cache
def catalogue(language: str) -> Catalogue:
    """All entries of a language; English has none, it is the key."""
    said: dict[str, str] = {}
    patterns: dict[str, str] = {}
    if language == "en":
        return Catalogue(said, patterns)
    with (Path(__file__).parent / f"{language}.po").open("rb") as file:
        read = read_po(file, locale=language, abort_invalid=True)
    for message in read:
        if message.id:  # the entry without one is the head of the file
            forms = (message.id,) if isinstance(message.id, str) else message.id
            entry = message.string if isinstance(message.string, str) else (message.string or ("",))[0]
            for english in forms:  # one entry for both where there is a plural: Japanese has none
                (patterns if message.context == RECORD else said)[english] = entry
    return Catalogue(said, patterns)


def _pattern(english: str) -> re.Pattern[str]:
    seen: set[str] = set()

    def group(name: str) -> str:
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>s?)" if name == "s" else f"(?P<{name}>.+?)"  # s: the ending of a plural

    fixed_and_names = enumerate(_PLACEHOLDER.split(english))
    return re.compile("".join(group(part) if i % 2 else re.escape(part) for i, part in fixed_and_names), re.DOTALL)


def _filled(entry: str, values: dict[str, str]) -> str:
    """With values that may hold braces themselves, and so may the entry: `{0, 1}` is no placeholder."""
    return _PLACEHOLDER.sub(lambda place: values.get(place[1], place[0]), entry)


def _chosen(one: str, many: str, number: float) -> str:
    """The form that the number asks for; a catalogue without plurals has both alike."""
    return one if number == 1 else many


def _one_line(message: str) -> str:
    return re.sub(r"\s*\n\s*", " ", message.strip()) if "\n" in message else message


def _braces(message: str) -> str:
    """`%(n)s of 5 %%` as `{n} of 5 %`."""
    return re.sub(r"%\((\w+)\)s", r"{\1}", message).replace("%%", "%")


def _percent(message: str) -> str:
    """`{n} of 5 %` as `%(n)s of 5 %%`."""
    return _PLACEHOLDER.sub(r"%(\1)s", message.replace("%", "%%"))
