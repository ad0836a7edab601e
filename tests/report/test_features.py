"""The page of a study of features: what it says, that it escapes what comes from outside, and asks for nothing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from lowbit.pilot.features import (
    AccuracyRow,
    CandidateRow,
    CodeRow,
    ComparedRow,
    FeatureRow,
    FeatureStudy,
    JudgedRow,
    StorageRow,
)
from lowbit.report.features import change, render, share, took

HOSTILE = "<script>alert(1)</script><!-- & \"quoted\" 'it' \u2028 {{ 7*7 }}"


def judged(code: Any, gain: float, half: float, outcome: str, *, recommended: bool = False) -> JudgedRow:
    compared = ComparedRow(gain, gain - half, gain + half, outcome)
    return JudgedRow(
        classifier="kNN, Euclidean",
        code=code,
        accuracy=0.45 + gain,
        spread=0.012,
        original=0.45,
        versus_original=compared,
        best_float="clipped",
        best_float_accuracy=0.7,
        versus_best_float=ComparedRow(-0.02, -0.05, 0.01, "too little data"),
        threshold=0.375,
        per_feature=3 if recommended else 0,
        recommended=recommended,
        sentence=f"{'recommended' if recommended else 'not recommended'}: {code} codes {outcome}; {HOSTILE}",
    )


def code_row(code: Any, thresholds: tuple[float, ...], improving: tuple[tuple[float, float], ...]) -> CodeRow:
    return CodeRow(
        code=code,
        thresholds=thresholds,
        mean=(0.6, 0.9, 0.55),
        worst=(0.55, 0.6, 0.52),
        improving=improving,
        threshold=thresholds[1],
        best=0.9,
        low=0.87,
        high=0.93,
        accuracy=tuple(AccuracyRow(at, 0.8 - 0.1 * i, 0.02) for i, at in enumerate(thresholds)),
        file=f"{code}.json",
    )


STUDY = FeatureStudy(
    name=HOSTILE,
    command="",
    source="digits.npz",
    layer="blocks.2",
    samples=1_797,
    features=64,
    classes={"0": 178, "1": 182, HOSTILE: 174},
    sampled=800,
    seed=3,
    version="0.1.0",
    data_hash="5d1f0c6b",
    original=0.77,
    worst=0.58,
    low=0.75,
    high=0.79,
    codes=(
        code_row("binary", (-1.5, 0.0, 1.5), ()),
        code_row("ternary", (0.0, 1.0, 2.0), ((0.25, 0.75), (1.25, 1.25))),
    ),
    summary="recommended: ternary codes raise the accuracy of kNN; clipped floats reach 70.0 % (1 of 4)",
    margin=0.01,
    splits=10,
    judged=(
        judged("ternary", 0.491, 0.03, "improves", recommended=True),
        judged("binary", 0.001, 0.004, "equal"),
        judged("ternary", -0.05, 0.02, "degrades"),
        judged("binary", 0.02, 0.06, "too little data"),
    ),
    candidates=tuple(
        CandidateRow(classifier, name, mean, 0.015)
        for classifier, name, mean in (
            ("kNN, Euclidean", "original", 0.095),
            ("kNN, Euclidean", "clipped", 0.85),
            ("kNN, Euclidean", "ternary", 0.8),
            ("linear SVM", "original", 0.9),
        )
    ),
    storage=(
        StorageRow("float32", 256.0, 1.2, 800),
        StorageRow("binary", 8.0, 0.03, 800),
        StorageRow("ternary", 16.0, 0.06, 800),
    ),
    applicability=("41 of 64 features have heavy tails.", HOSTILE),
    checks=(
        FeatureRow("pixel 12", False, 0.25, 0.61, 4.2, 0.8, 0.7, 0.95, -0.25, 0.375, "ternary codes do better."),
        FeatureRow(HOSTILE, True, 1.0, 0.0, None, 0.5, 0.5, 0.5, 0.0, 0.0, "has one value only."),
    ),
    unchecked=1_062,
    took=93.0,
)


class Outline(HTMLParser):
    """What a page holds: its elements with their attributes, its text, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.comments: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


MADE = replace(STUDY, command="lowbit features sweep digits.npz --layer blocks.2")


@pytest.fixture(scope="module")
def html() -> str:
    return render(MADE)


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    return Outline(html)


@pytest.mark.parametrize(
    "shown",
    [
        "Recommended: ternary codes raise the accuracy of kNN. Clipped floats reach 70.0 % (1 of 4).",
        "Data digits.npz Layer blocks.2 Samples 1,797 Features 64 Classes 3, with 174 to 182 samples each",
        "Accuracy, kNN, Euclidean 94.1 % from 45.0 %, +49.1 points, 95 % interval +46.1 to +52.1",
        "Features of a sample 16 bytes from 256 (16.0×)",
        "Neighbors of a query 60.0 µs from 1.20 ms (20.0×)",
        "kNN, Euclidean ternary codes, recommended improves 94.1 % ± 1.2 45.0 % +49.1 +46.1 to +52.1 70.0 % clipped",
        "−2.0 −5.0 to +1.0; too little data 0.375 one a feature in 3 of 10 splits Recommended: ternary codes improves;",
        "kNN, Euclidean binary codes, not recommended equal 45.1 %",
        "A larger D is not a better classifier.",
        "Largest D 0.900 (0.870 to 0.930) at 1 D of the floats 0.770 (0.750 to 0.790) D above the floats' 0.25 to 0.75",
        "D above the floats' at no threshold Most accurate of those tried 80.0 % at −1.5 Original floats",
        "Original floats, same classifier 9.5 % To code new data ternary.json",
        "float32 256 1.0× 1.20 ms 1.0× 256 MB 1,500 ms binary 8 32.0× 30.0 µs 40.0× 8.00 MB 37.5 ms",
        "41 of 64 features have heavy tails.",
        "2 features one by one; 1,062 more that tell less are not listed",
        "pixel 12 0.800 0.700 0.950 −0.25 0.375 0.61 4.2 25.00 % ternary codes do better.",
        "0.500 0.500 0.500 0 0 0.00 – 100 % has one value only.",
        'trace = lb.FeatureTrace.load("ternary.json") codes = trace.quantizer().transform(x)',
        "lowbit features drift binary.json NEW_DATA --model MODEL --layer blocks.2 lowbit features drift ternary.json",
        "lowbit features sweep digits.npz --layer blocks.2",
        "Seed 3 Splits 10 Margin 1 % Sample 800 of 1,797 Data 5d1f0c6b lowbit 0.1.0 Took 93 s",
    ],
)
def test_page_shows(outline: Outline, shown: str) -> None:
    assert shown in outline.text.replace("\N{NO-BREAK SPACE}", " ")


def test_every_outcome_has_its_symbol_and_color(html: str) -> None:
    table = html.partition('id="judged"')[2].partition("</table>")[0]
    chips = re.findall(r'<span class="chip (\w+)">\s*<svg[^>]*><(\w+) [^>]*></svg>([^<]+)</span>', table)
    assert chips == [
        ("meets", "circle", "improves"),
        ("equal", "rect", "equal"),
        ("misses", "path", "degrades"),
        ("borderline", "path", "too little data"),
    ]
    assert re.findall(r'<tr role="row"( class="best")?>\s*<th', table) == ["", ' class="best"', "", "", ""]


def test_the_best_candidate_of_each_classifier_is_bold(html: str) -> None:
    table = html.partition('id="candidates"')[2].partition("</table>")[0]
    assert re.findall(r'<td class="n( most)?"><span class="figure">([^<]+)</span>', table) == [
        ("", "9.5\N{NO-BREAK SPACE}%"),
        (" most", "85.0\N{NO-BREAK SPACE}%"),
        ("", "80.0\N{NO-BREAK SPACE}%"),
        (" most", "90.0\N{NO-BREAK SPACE}%"),
        ("", "–"),
        ("", "–"),
    ]


def test_codes_with_a_larger_d_are_bold_in_the_checklist(html: str) -> None:
    table = html.partition('aria-label="Features"')[2].partition("</table>")[0]
    assert re.findall(r'<td class="n above">([^<]+)<', table) == ["0.950"]


def drawings(study: FeatureStudy) -> list[str]:
    """The plots of the page, binary D first."""
    return re.findall(r'<svg role="img".*?</svg>', render(study), flags=re.DOTALL)


def test_plots_have_text_alternatives(outline: Outline) -> None:
    told = [svg["aria-label"] for svg in outline.all("svg") if "aria-label" in svg]
    assert told == [
        "Plot of D of binary codes against the threshold: at most 0.900 at 0, 0.770 for floats; never above floats.",
        "Plot of the accuracy of 5 nearest neighbors on binary codes against the threshold: 80.0 % at −1.5, 70.0 % at "
        "0 and 60.0 % at 1.5; floats: 9.5 %.",
        "Plot of D of ternary codes against the threshold: at most 0.900 at 1, 0.770 for floats; above floats from "
        "0.25 to 0.75 and 1.25 to 1.25.",
        "Plot of the accuracy of 5 nearest neighbors on ternary codes against the threshold: 80.0 % at 0, 70.0 % at 1 "
        "and 60.0 % at 2; floats: 9.5 %.",
    ]


def test_thresholds_that_improve_are_shaded() -> None:
    widths = [
        [float(x) for x in re.findall(r'd="M[^h]*h([\d.]+)v[^"]*" fill="var\(--meets-soft\)"', one)]
        for one in drawings(STUDY)
    ]
    assert [len(one) for one in widths] == [0, 0, 2, 0]
    whole, point = sorted(widths[2], reverse=True)
    assert whole == pytest.approx(304 * 0.5 / 2.08)  # half of two standard deviations with 2 % on either side
    assert 0 < point < whole / 5


def heights(drawing: str) -> list[float]:
    """Of the points of all lines, in units from the top of the plotting area, back to front."""
    lines = re.findall(r'<path d="(M[^"]+)" stroke="[^"]+" stroke-width="2"/>', drawing)
    return [float(y) for line in lines for y in re.findall(r",([\d.-]+)", line)]


def test_lines_stay_inside_the_plot() -> None:
    low = replace(STUDY.codes[0], worst=(0.2, 0.1, 0.3), high=1.5)
    assert len(heights(drawings(replace(STUDY, codes=(low,)))[0])) == 6
    assert all(0 < y < 208 for one in drawings(replace(STUDY, codes=(low,))) for y in heights(one))


def test_floats_and_the_interval_are_drawn_to_the_same_scale() -> None:
    drawing = drawings(STUDY)[0]
    *_, left, top, right = heights(drawing)  # mean D of 0.6, 0.9 and 0.55
    unit = (left - top) / 0.3
    assert right - top == pytest.approx(0.35 * unit, abs=0.01)
    dashed = [float(y) for y in re.findall(r"translate\(304,([\d.]+)\)[^>]*stroke-dasharray", drawing)]
    assert dashed == pytest.approx([top + 0.32 * unit, top + 0.13 * unit], abs=0.01)  # 0.58 and 0.77
    start, length = re.findall(r'translate\(152,([\d.]+)\)" x2="0" y2="([\d.-]+)"', drawing)[0]
    assert [float(start), float(length)] == pytest.approx([top + 0.03 * unit, -0.06 * unit], abs=0.01)


def test_dashed_lines_are_floats() -> None:
    """Mean and worst pair where there are several, one line with two classes, none where floats were not measured."""
    two = replace(STUDY, classes={"0": 5, "1": 5}, candidates=())
    assert [one.count("stroke-dasharray") for one in drawings(STUDY)] == [2, 1, 2, 1]
    assert [one.count("stroke-dasharray") for one in drawings(two)] == [1, 0, 1, 0]
    assert "worst pair" not in render(two).partition('id="candidates"')[0]


def test_a_steep_d_has_a_logarithmic_axis() -> None:
    steep = replace(STUDY.codes[0], mean=(0.6, 249.0, 0.55), best=249.0, low=200.0, high=260.0)
    assert "log scale" in drawings(replace(STUDY, codes=(steep,)))[0]
    assert not any("log scale" in one for one in drawings(STUDY))


def test_without_a_recommendation_there_are_no_keys_and_no_second_sentence() -> None:
    study = replace(STUDY, judged=STUDY.judged[1:], summary="no code is recommended on these data")
    outline = Outline(render(study))
    assert "No code is recommended on these data. By classifier" in outline.text
    assert not any(one.get("class") in ("keys", "remark") for _, one in outline.elements)


def test_a_study_of_little_has_a_page() -> None:
    bare = replace(STUDY.codes[0], accuracy=(), mean=(math.nan,) * 3, worst=(math.nan,) * 3)
    study = replace(
        STUDY, codes=(bare,), judged=(), candidates=(), storage=(), checks=(), unchecked=0, applicability=(), layer=""
    )
    outline = Outline(render(study))
    assert "one by one" not in outline.text
    assert "sweep" not in outline.text  # no command is made up
    assert "Layer" not in outline.text


@pytest.mark.parametrize(("count", "is_open"), [(12, True), (13, False)])
def test_long_checklists_are_closed(count: int, is_open: bool) -> None:
    outline = Outline(render(replace(STUDY, checks=STUDY.checks[:1] * count)))
    assert [("open" in one) for one in outline.all("details")] == [is_open]


def test_a_page_of_two_hundred_features_stays_small() -> None:
    assert len(render(replace(STUDY, checks=STUDY.checks[:1] * 200))) < 250_000


def test_structure_is_one_of_landmarks_headings_and_headed_tables(outline: Outline) -> None:
    assert [len(outline.all(tag)) for tag in ("h1", "main", "header", "footer", "nav")] == [1, 1, 1, 1, 1]
    assert outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("caption")) == len(outline.all("table")) == 4
    assert all(cell["scope"] in ("col", "row") for cell in outline.all("th"))
    assert all(svg.get("aria-hidden") == "true" or svg["aria-label"] for svg in outline.all("svg"))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in outline.all("a")} <= set(ids)


def test_page_asks_for_nothing(html: str, outline: Outline) -> None:
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<)]*", html)) <= namespaces
    assert not re.search(r"@import|url\(|//# source|\bfetch\b|\beval\b", html)
    assert not any("src" in attributes or "srcset" in attributes for _, attributes in outline.elements)
    assert [link["href"] for link in outline.all("link")] == ["data:,"]
    assert [script["type"] for script in outline.all("script")] == ["application/json"]
    policy = next(meta["content"] for meta in outline.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")


def test_the_record_in_the_page_is_the_study(outline: Outline) -> None:
    assert json.loads("".join(outline.scripts)) == json.loads(json.dumps(asdict(MADE)))
    assert not set("<>&\u2028\u2029") & set("".join(outline.scripts))


def hostile(value: Any, name: str = "") -> Any:
    """The study with every text replaced, but for codes and outcomes, which are ours."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: hostile(getattr(value, field.name), field.name) for field in fields(value)})
    if isinstance(value, dict):
        return {hostile(key): hostile(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(hostile(part) for part in value)
    return HOSTILE if isinstance(value, str) and name not in ("code", "outcome") else value


def shapes(outline: Outline) -> set[tuple[str, str]]:
    """Every element with each of its attributes."""
    return {(tag, name) for tag, attributes in outline.elements for name in (*attributes, "")}


def test_no_text_from_outside_becomes_markup(html: str, outline: Outline) -> None:
    study = hostile(STUDY)
    found = Outline(render(replace(study, command=HOSTILE)))
    assert shapes(found) == shapes(outline)
    assert len(found.all("script")) == 1
    assert json.loads("".join(found.scripts)) == json.loads(json.dumps(asdict(study)))
    assert found.text.count("{{ 7*7 }}") > 20
    assert not found.comments
    strange = replace(STUDY.judged[0], versus_original=replace(STUDY.judged[0].versus_original, outcome=HOSTILE))
    assert shapes(Outline(render(replace(STUDY, judged=(strange,))))) <= shapes(outline)


def test_figures_that_are_no_numbers_neither_fail_nor_leak_into_the_record() -> None:
    compared = ComparedRow(math.nan, math.nan, math.inf, "too little data")
    study = replace(
        STUDY,
        original=math.inf,
        low=math.nan,
        codes=(replace(STUDY.codes[0], mean=(0.5, math.nan, math.inf), best=math.inf, low=math.nan),),
        judged=(replace(STUDY.judged[0], versus_original=compared, accuracy=math.nan),),
    )
    outline = Outline(render(study))
    record = json.loads("".join(outline.scripts), parse_constant=pytest.fail)
    assert record["original"] is None
    assert record["codes"][0]["mean"] == [0.5, None, None]
    assert "nan" not in outline.text.lower()


def test_units() -> None:
    assert [share(one) for one in (0.9369, 1.0, math.nan)] == ["93.7 %", "100.0 %", "–"]
    assert [change(one) for one in (0.491, -0.0004, -0.0123, math.nan)] == ["+49.1", "+0.0", "−1.2", "–"]
    assert [took(one) for one in (0.0043, 0.1, 37.0)] == ["4.30 µs", "0.100 ms", "37.0 ms"]
