"""The page of a study of features: what it says, that it escapes what comes from outside, and asks for nothing."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from pages import HOSTILE, Outline, hostile

from lowbit.cli import studies
from lowbit.errors import RecipeError
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
from lowbit.report.features import change, interval, render, share, took


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
        per_feature=6 if recommended else 3,
        recommended=recommended,
        sentence=f"{'recommended' if recommended else 'not recommended'}: {code} codes {outcome} (+0.0 points, 95 % "
        f"interval -0.0 to +3.5 and -12.2), 1-8 bits; {HOSTILE}",
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
    accuracy_floats=AccuracyRow(0.0, 0.095, 0.01),
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
        code_row("ternary", (0.0, 1.0, 2.0), ((0.25, 0.75), (3.25, 3.25))),
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
        FeatureRow(
            name="pixel 12",
            constant=False,
            zeros=0.1367,
            correlation=0.614,
            kurtosis=-1.25,
            original=0.8,
            binary=0.7,
            ternary=0.954,
            binary_own=-0.5625,
            ternary_own=1.6875,
            binary_best=0.802,
            ternary_best=1234.5,
            binary_error=0.3,
            ternary_error=0.2,
            sentence="ternary codes do better at -1.69.",
        ),
        FeatureRow(
            name=HOSTILE,
            constant=True,
            zeros=1.0,
            correlation=0.0,
            kurtosis=None,
            original=0.5,
            binary=0.5,
            ternary=0.5,
            binary_own=0.0,
            ternary_own=0.0,
            binary_best=0.5,
            ternary_best=0.5,
            binary_error=1.0,
            ternary_error=1.0,
            sentence="has one value only.",
        ),
    ),
    unchecked=1_062,
    took=93.0,
)


MADE = replace(
    STUDY,
    name="digits",
    command="lowbit features sweep digits.npz --model 'my net.py:build' --layer=blocks.2 --pool none --limit 9",
)


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
        "−2.0 −5.0 to +1.0; too little data per feature in 6 of 10 splits Use ternary codes",
        "−2.0 −5.0 to +1.0; too little data 0.38 per feature in 3 of 10 splits For size alone",
        "Recommended: ternary codes improves (0.0 points, 95 % interval 0.0 to +3.5 and −12.2), 1-8 bits; <script>",
        "kNN, Euclidean binary codes, not recommended equal 45.1 %",
        "A larger D is not a better classifier.",
        "Largest D 0.900 (0.870 to 0.930) at 1 D of the floats 0.770 (0.750 to 0.790) D above the floats' 0.25 to 0.75",
        "D above the floats' at no threshold Most accurate of those tried 80.0 % at −1.5 Original floats",
        "Original floats, same classifier 9.5 % To code new data ternary.json",
        "float32 256 1.0× 256 MB 1.20 ms 1.0× binary 8 32.0× 8.00 MB 30.0 µs 40.0×",
        "41 of 64 features have heavy tails.",
        "2 features one by one; 1,062 more that tell less are not listed",
        "Sorted by the largest correlation with the class that a feature or its codes have.",
        "pixel 12 0.80 0.70 0.95 0.67 1.51 30 % 20 % −0.56 0.80 1.69 1,234.50 0.61 −1.2 14 % ternary codes do better",
        "0.50 0.50 0.50 – – 100 % 100 % 0.00 0.50 0.00 0.50 0.00 – 100 % has one value only.",
        'trace = lb.FeatureTrace.load("ternary.json") codes = trace.quantizer().transform(x)',
        "from the folder that the command above was typed in: lowbit features drift runs/features-digits/binary.json "
        "NEW_DATA --model 'my net.py:build' --layer blocks.2 --pool none lowbit features drift runs/features-digits",
        "lowbit features sweep digits.npz --model 'my net.py:build' --layer=blocks.2 --pool none --limit 9",
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
    cells = re.findall(r'data-label="(\w+)" class="(\w+)( most)?">\s*<span class="figure">([^<]+)</span>', table)
    assert cells == [
        ("Original", "n", "", "9.5\N{NO-BREAK SPACE}%"),
        ("Clipped", "n", " most", "85.0\N{NO-BREAK SPACE}%"),
        ("Ternary", "n", "", "80.0\N{NO-BREAK SPACE}%"),
        ("Original", "n", " most", "90.0\N{NO-BREAK SPACE}%"),
        ("Clipped", "empty", "", "–"),
        ("Ternary", "empty", "", "–"),
    ]


def test_tables_become_cards_on_a_phone(html: str) -> None:
    """Every cell names its column, which is not seen there."""
    for section, labels in (("judged", 7), ("candidates", 3), ("storage", 5)):
        table = html.partition(f'id="{section}"')[2].partition("</table>")[0]
        cells = re.findall(r"<td ([^>]*)>", table)
        assert 'class="variants' in table
        assert len(re.findall(r'<th [^>]*role="columnheader"', table)) == labels + 1
        assert len(cells) % labels == 0
        assert all('data-label="' in cell for cell in cells)


def todo(study: FeatureStudy) -> list[str]:
    """What the page says is to be done, row by row."""
    found = re.findall(r'data-label="What to do">([^<]*)<', render(study))
    return [one.replace("\N{NO-BREAK SPACE}", " ") for one in found]


def test_what_to_do_is_a_few_words() -> None:
    assert todo(STUDY) == ["Use ternary codes", "For size alone", "Keep floats", "More data needed"]
    improves, equal = STUDY.judged[:2]
    ahead, even = (replace(improves.versus_best_float, outcome=word) for word in ("degrades", "equal"))
    rows = [
        replace(improves, recommended=False, versus_best_float=ahead, best_float=name)
        for name in ("clipped", "robust-scaled", "selected", "standardized")
    ]
    rows += [replace(improves, versus_best_float=even), replace(equal, versus_best_float=ahead)]
    rows += [replace(improves, versus_best_float=even, best_float="original")]
    assert todo(replace(STUDY, judged=tuple(rows))) == [
        "Clip floats instead: they reach 70.0 %",
        "Scale floats by quartiles instead: they reach 70.0 %",
        "Keep the best features as floats instead: they reach 70.0 %",
        "Use standardized floats instead: they reach 70.0 %",
        "Use ternary codes; clipped floats do as well",
        "For size alone; clipped floats do better",
        "Use ternary codes",
    ]


def test_sentences_are_said_once_and_out_of_the_way(html: str) -> None:
    page, _, below = html.partition("<summary>In full sentences</summary>")
    assert "improves (" not in page
    assert below.partition("</details>")[0].count("<li>") == len(STUDY.judged)


def test_too_little_data_on_all_rows_is_no_advice_against_codes() -> None:
    little = replace(STUDY, judged=STUDY.judged[3:] * 6, summary="no code is recommended on these data; 6 too little")
    text = Outline(render(little)).text
    assert "Too little data to tell. Combinations of code and classifier that 800 samples in 10 splits decide" in text
    assert "decide: none of 6." in text
    assert "No code is recommended" not in text
    mixed = replace(little, judged=STUDY.judged[2:])
    assert "No code is recommended on these data. 6 too little." in Outline(render(mixed)).text


def test_figures_have_typographic_minus_signs() -> None:
    said = replace(
        STUDY,
        judged=tuple(
            replace(row, sentence="kNN (-3.1 points, -0.0 to +0.0), runs-2 of a-1.5 and 1-8") for row in MADE.judged
        ),
        summary="too much: from -3.1 to -2",
        applicability=("excess kurtosis -1.2",),
    )
    text = Outline(render(said)).text
    assert "KNN (−3.1 points, 0.0 to 0.0), runs-2 of a-1.5 and 1-8." in text
    assert "Too much: from −3.1 to −2." in text
    assert "excess kurtosis −1.2" in text
    assert not re.search(r"(?<![\w.])-\d", text)


@pytest.mark.parametrize(
    ("command", "layer", "files", "options"),
    [
        ("", "", "", ""),
        ("", "blocks 2", "", " --model MODEL --layer 'blocks 2'"),
        ("lowbit features sweep x.npz", "", "runs/features-mine/", ""),
        ("lowbit features sweep x.npz --out 'a b' --inputs z", "", "'a b/", " --inputs z"),
        (
            *("lowbit features sweep x.npz --model n.py:f --weights w.npz --layer 2 --pool none --seed 1", "2"),
            *("runs/features-mine/", " --model n.py:f --weights w.npz --layer 2 --pool none"),
        ),
        ("an ' open quote", "2", "runs/features-mine/", " --model MODEL --layer 2"),
    ],
)
def test_drift_is_asked_as_the_sweep_was(command: str, layer: str, files: str, options: str) -> None:
    text = Outline(render(replace(STUDY, name="mine", command=command, layer=layer))).text
    quote = "'" if files.startswith("'") else ""
    for code in ("binary", "ternary"):
        assert f"lowbit features drift {files}{code}.json{quote} NEW_DATA{options}" in text
    assert text.count("NEW_DATA --model") == 2 * ("--model" in options)


def test_codes_with_a_larger_d_are_bold_in_the_checklist(html: str) -> None:
    table = html.partition('aria-label="Features"')[2].partition("</table>")[0]
    assert re.findall(r'<td class="n above">([^<]+)<', table) == ["0.95", "0.80", "1,234.50"]


def drawings(study: FeatureStudy) -> list[str]:
    """The plots of the page, binary D first."""
    return re.findall(r'<svg role="img".*?</svg>', render(study), flags=re.DOTALL)


def test_plots_have_text_alternatives(outline: Outline) -> None:
    told = [svg["aria-label"] for svg in outline.all("svg") if "aria-label" in svg]
    assert told == [
        "Plot of D of binary codes against the threshold: at most 0.900 at 0, 0.770 for floats; above floats at no "
        "threshold.",
        "Plot of the accuracy of 5 nearest neighbors on binary codes against the threshold: 80.0 % at −1.5, 70.0 % at "
        "0 and 60.0 % at 1.5; floats: 9.5 %.",
        "Plot of D of ternary codes against the threshold: at most 0.900 at 1, 0.770 for floats; above floats from "
        "0.25 to 0.75.",
        "Plot of the accuracy of 5 nearest neighbors on ternary codes against the threshold: 80.0 % at 0, 70.0 % at 1 "
        "and 60.0 % at 2; floats: 9.5 %.",
    ]


def shaded(study: FeatureStudy) -> list[list[float]]:
    """Widths of the bands of each plot."""
    band = r'd="M[^h]*h([\d.]+)v[^"]*" fill="var\(--better\)"'
    return [[float(x) for x in re.findall(band, one)] for one in drawings(study)]


def test_thresholds_that_improve_are_shaded() -> None:
    half = pytest.approx(304 * 0.5 / 2.08)  # half of two standard deviations with 2 % on either side
    assert shaded(STUDY) == [[], [], [half], []]


@pytest.mark.parametrize(
    ("improving", "kept", "told"),
    [
        (((-1.5, -1.5), (-0.5, 0.5)), [1.0], "−0.5 to 0.5"),
        (((-1.5, -1.0), (-0.5, 0.5)), [2.0], "−1.5 to 0.5"),  # one point between them
        (((-1.5, -1.0), (-0.25, 0.5)), [0.5, 0.75], "−1.5 to −1 and −0.25 to 0.5"),
        (((-1.5, -1.0), (-0.5, -0.25), (0.25, 0.5)), [2.0], "−1.5 to 0.5"),
        (((-1.5, -1.5), (1.5, 1.5)), [], "at hardly any threshold"),
        ((), [], "at no threshold"),
    ],
)
def test_single_thresholds_that_improve_are_noise(
    improving: tuple[tuple[float, float], ...], kept: list[float], told: str
) -> None:
    grid = tuple(-1.5 + 0.25 * i for i in range(13))
    curve = tuple(0.5 + 0.01 * i for i in range(13))
    row = replace(STUDY.codes[0], thresholds=grid, mean=curve, worst=curve, improving=improving)
    study = replace(STUDY, codes=(row,))
    assert sorted(shaded(study)[0]) == [pytest.approx(304 * width / 3.12, abs=0.01) for width in kept]
    assert f"D above the floats' {told} Most accurate" in Outline(render(study)).text


def test_each_axis_ends_where_its_points_end() -> None:
    row = replace(STUDY.codes[0], accuracy=tuple(AccuracyRow(at, 0.8, 0.02) for at in (-0.5, 0.5)))
    distance, accuracy = drawings(replace(STUDY, codes=(row,)))
    for drawing in (distance, accuracy):
        assert places(drawing) == pytest.approx([304 * 0.02 / 1.04, 304 * 1.02 / 1.04], abs=0.01)


def places(drawing: str) -> list[float]:
    """The left and the right end of the first line."""
    line = re.findall(r'<path d="(M[^"]+)" stroke="[^"]+" stroke-width="2"/>', drawing)[0]
    found = [float(x) for x in re.findall(r"[ML]([\d.]+),", line)]
    return [min(found), max(found)]


def named(study: FeatureStudy) -> tuple[str, float, float, float]:
    """Alignment and place of the name of the floats' line, and the height of that line."""
    drawing = drawings(study)[1]
    anchor, x, y = re.findall(
        r'text-anchor="(\w+)" transform="translate\(([\d.]+),([\d.]+)\)"[^>]*>original floats<', drawing
    )[0]
    line = re.findall(r"translate\(304,([\d.]+)\)[^>]*stroke-dasharray", drawing)[0]
    return anchor, float(x), float(y), float(line)


@pytest.mark.parametrize(
    ("accuracy", "anchor", "below"),
    [
        ((0.6, 0.7, 0.95), "start", False),  # codes reach the line's right end
        ((0.95, 0.7, 0.6), "end", False),
        ((0.982, 0.99, 0.982), "end", True),  # all are just above it
    ],
)
def test_the_line_of_floats_has_its_name_where_no_point_is(
    accuracy: tuple[float, ...], anchor: str, below: bool
) -> None:
    rows = tuple(AccuracyRow(at, mean, 0.02) for at, mean in zip((-1.0, 0.0, 1.0), accuracy, strict=True))
    study = replace(STUDY, codes=(replace(STUDY.codes[0], accuracy=rows),), accuracy_floats=AccuracyRow(0, 0.96, 0.01))
    found, x, y, line = named(study)
    assert (found, x) == (anchor, 304 if anchor == "end" else 0)
    assert (y > line) == below
    assert 5 < abs(y - line) < 16


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
    two = replace(STUDY, classes={"0": 5, "1": 5}, accuracy_floats=AccuracyRow(0.0, math.nan, math.nan))
    assert [one.count("stroke-dasharray") for one in drawings(STUDY)] == [2, 1, 2, 1]
    assert [one.count("stroke-dasharray") for one in drawings(two)] == [1, 0, 1, 0]
    assert ["original floats" in one for one in drawings(two)] == [False] * 4
    assert "worst pair" not in render(two).partition('id="candidates"')[0]


def test_a_steep_d_has_a_logarithmic_axis() -> None:
    steep = replace(STUDY.codes[0], mean=(0.6, 249.0, 0.55), best=249.0, low=200.0, high=260.0)
    assert "log scale" in drawings(replace(STUDY, codes=(steep,)))[0]
    assert not any("log scale" in one for one in drawings(STUDY))


@pytest.mark.parametrize("best", [0.9, 249.0])
def test_a_bar_that_begins_at_no_separation_is_seen_to_end(best: float) -> None:
    row = replace(STUDY.codes[0], mean=(0.6, best, 0.55), best=best, low=0.5, high=1.2 * best)
    drawing = drawings(replace(STUDY, codes=(row,), original=0.6, worst=0.6))[0]
    start, length = map(float, re.findall(r'translate\(152,([\d.]+)\)" x2="0" y2="([\d.-]+)"', drawing)[0])
    assert min(start, start + length) > 10
    assert max(start, start + length) < 198
    caps = sorted(map(float, re.findall(r'd="M148.5,([\d.]+)h7v1.25h-7Z', drawing)))
    assert caps == pytest.approx(sorted([start, start + length]), abs=0.7)


def test_accuracy_has_no_axis_beyond_100_percent() -> None:
    best = tuple(AccuracyRow(at, mean, 0.01) for at, mean in ((0.0, 0.04), (1.0, 1.0)))
    drawing = drawings(replace(STUDY, codes=(replace(STUDY.codes[0], accuracy=best),)))[1]
    ticks = [float(one) for one in re.findall(r">(-?[\d.]+)</text>", drawing)]
    assert max(ticks) == 100
    assert 60 in ticks  # and no logarithm


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
    assert [("open" in one) for one in outline.all("details")] == [False, is_open]


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


def shapes(outline: Outline) -> set[tuple[str, str]]:
    """Every element with each of its attributes."""
    return {(tag, name) for tag, attributes in outline.elements for name in (*attributes, "")}


def test_no_text_from_outside_becomes_markup(html: str, outline: Outline) -> None:
    study = hostile(STUDY, ("code", "outcome"))
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
    assert [change(one) for one in (0.491, -0.0004, 0.0004, -0.0123, math.nan)] == ["+49.1", "0.0", "0.0", "−1.2", "–"]
    assert interval(-1.5, math.inf) == "−100.0 to +100.0"
    assert [interval(*one) for one in ((0.0, 0.0), (math.nan, 0.1))] == ["0.0 to 0.0", "– to +10.0"]
    assert [took(one) for one in (0.0043, 0.1, 37.0)] == ["4.30 µs", "0.100 ms", "37.0 ms"]


# The commands that pages name


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("train-*.parquet", "train"),
        ("flowers/*.parquet", "flowers"),
        ("flowers/**/*.parquet", "flowers"),
        ("*.parquet", "data"),
        ("t*-0.parquet", "t-0"),
    ],
)
def test_a_sweep_is_named_by_its_data(data: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is a pattern; a table of numbers has one feature a column."""
    (tmp_path / "flowers").mkdir()
    table = pa.table({"length": [1.0, 2.0], "width": [3, 4], "label": [0, 1]})
    for folder in (tmp_path, tmp_path / "flowers"):
        pq.write_table(table, folder / "train-0.parquet")
    seen: dict[str, Any] = {}

    def stop(samples: Any, folder: Path, **keywords: Any) -> None:
        seen.update(shape=samples.input_shape, folder=folder, name=keywords["name"])
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lowbit.pilot.features.study", stop)
    with pytest.raises(typer.Exit):
        studies.sweep(data)
    assert seen == {"shape": (2,), "folder": Path("runs", f"features-{name}"), "name": name}


@pytest.mark.parametrize(("model", "layer"), [(None, None), ("net.py:build", "2")])
def test_an_unknown_pooling_is_refused_before_data_are_read(model: str | None, layer: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        studies.sweep("no.npz", model=model, layer=layer, pool="bogus")
    assert str(caught.value) == "--pool: got 'bogus', expected mean or none"


def test_the_example_of_drift_reads_what_that_of_sweep_writes() -> None:
    swept, drifted = (
        shlex.split(str(one.__doc__).partition("**Example**: ")[2].splitlines()[0])
        for one in (studies.sweep, studies.drift)
    )
    name = swept[3].partition(":")[2]
    assert drifted[3] == f"runs/features-{name}/ternary.json"
