"""The page in a real browser: nothing fails, nothing leaves, keys reach all of it, and axe finds nothing serious."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import RUN

from lowbit.report.page import render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SIZES = {"wide": (1200, 900), "narrow": (400, 800)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(RUN), encoding="utf-8")
    return path


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[Any]:
    """The page at a size and theme; fails where the console says anything or a request leaves."""
    (width, height), theme = request.param
    told: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    page = context.new_page()
    page.on("console", lambda message: told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("request", lambda asked: told.append(asked.url) if asked.url != file.as_uri() else None)
    page.goto(file.as_uri())
    yield page
    context.close()
    assert told == []


SLOW = ("wide-dark", "narrow-light")
VIEWS = [
    pytest.param((size, theme), id=view, marks=[pytest.mark.slow] if view in SLOW else [])
    for name, size in SIZES.items()
    for theme in ("light", "dark")
    for view in (f"{name}-{theme}",)
]


@pytest.mark.parametrize("opened", VIEWS, indirect=True)
def test_axe_finds_nothing_and_nothing_is_cut_off(opened: Any) -> None:
    for closed in opened.query_selector_all("details:not([open])"):
        closed.evaluate("element => element.open = true")
    found = axe.Axe().run(opened).response["violations"]
    some = {v["id"]: [n["target"] for n in v["nodes"]][:3] for v in found if v["impact"] != "minor"}
    assert some == {}
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("opened", VIEWS[:1], indirect=True)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Any) -> None:
    wanted = opened.evaluate(
        """() => [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
            .filter(e => e.checkVisibility()).length"""
    )
    reached, unseen = set(), []
    for number in range(wanted + 20):
        opened.keyboard.press("Tab")
        at = opened.evaluate(
            """n => { const e = document.activeElement; if (e === document.body) return null;
                const s = getComputedStyle(e); e.dataset.n ??= n;
                const shown = s.outlineStyle !== 'none' || s.boxShadow !== 'none';
                return [e.dataset.n, e.outerHTML.slice(0, 80), shown] }""",
            number,
        )
        if at is None:
            continue
        if at[0] in reached:
            break
        reached.add(at[0])
        if not at[2]:
            unseen.append(at[1])
    assert unseen == []
    assert len(reached) == wanted
