"""The report page: what it says, that it escapes what comes from outside, and that it asks for nothing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
from pages import (
    DISTILLATION,
    FACTORIZED,
    FAILED,
    FLOAT,
    FOUND,
    HOSTILE,
    HOSTILE_NAME,
    LAYERS,
    RUN,
    SEARCH,
    W2A8,
    W4A8,
    W8A8,
    Outline,
    hostile,
    point,
)

from lowbit.pilot.record import Kpi, ObstacleRow, Score, VerificationRow
from lowbit.report.page import render


@pytest.fixture(scope="module")
def html() -> str:
    return render(RUN)


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    return Outline(html)


@pytest.mark.parametrize(
    "shown",
    [
        "91.62 % 91.07 to 92.17",  # metric with its interval
        "−0.23 pp −0.44 to −0.01",  # paired difference
        "94.00 % 93.50 to 94.50",  # agreement
        "240 kB 4.9×",
        "3.61 G 21.4×",  # BOPs
        "0.387 ms 2.1×",
        "Latency onnxruntime, batch 32, 1 thread",
        "layer 'stem.conv' weight [16,3,3,3]: PerGroup(32) does not divide 27 inputs; use PerChannel(0)",
        "stem.conv : the first layer is left in float by the recipe",
        "QLinearConv × 4, QGemm × 1",
        "Why is it not faster?",
        "stem.conv its weights are float weights=int8 in its rule",
        "the whole file this processor has no VNNI measure on one that has it",
        "head.5 and 2 more fewer than 50,000 MACs a sample larger batches",
        "- match: '*' weights: int4 activations: int8",  # recipe
        "w4a8 go distilled, ewgs smallest that is go",  # in the overview
        "Against post-training alone, which has 90.10 %, training gained accuracy: +1.52 pp (95 % interval +0.88 to",
        "Same prediction as the teacher on held-out inputs: 80.00 % before training, 88.00 % after.",
        "its largest class probability is 43.12 % on average, under augmentation it agrees with itself by 97.10 %",
        "A weak teacher: its largest class probability is 0.43, expected at least 0.50.",
        "Training loss against the float model's outputs",
        "Ranges of 6 quantizers, before and after training",
        "Quantizer Before After Delta Clipped stem.conv.weight_quantizer −0.502 to 0.251 −0.400 to 0.200 0.125 2.00 %",
        "more data needed searched, surrogate",  # in the overview
        "Against post-training alone, which has 90.20 %, training gained accuracy: +0.85 pp",
        "Formats of 6 layers in 3 decisions were chosen from int2 and int3 by exploring around the exact solution for",
        "It spends 99.00 % of the budget for BOPs (500 M) and 75.00 % of the budget for latency (0.400 ms).",
        "e4m3 was left out, because it does not run here: no runtime computes with e4m3 activations.",
        "Loss against BOPs held-out inputs, in shared weights",
        "Agreement with the float model against BOPs",
        "All 5 assignments that were compared",
        "Assignment BOPs Latency Within budget Predicted Loss Agreement",
        "uniform int3 600 M 0.300 ms no 0.0090 0.010 99.00 %",
        "Layers int2 int3 While exploring",
        "stem.conv 0.20 ✓ 0.010",
        "blocks.0.conv1, blocks.0.conv2, blocks.1.conv1 and 1 more 0.10 ✓ 1.2·10⁻⁵",
        "head ✓ 0.0020 0",
        "stem.conv int3 12.50 % int3: int2 would save 4 % of the budget and change the loss by +9 %.",
        f"head int2 6.25 % int2: {' '.join(HOSTILE.split())}.",  # why, and escaped
        "lowbit pilot pilot.yaml --jobs 2",
        "4 March 2026, 09:05 UTC",
    ],
)
def test_page_shows(outline: Outline, shown: str) -> None:
    assert shown in outline.text


@pytest.mark.parametrize(
    "shown",
    [
        "chains go factorized, descent distilled, ewgs",  # in the overview
        "2 of 3 layers became chains of small ones, with factors found by descent in the integers.",
        "The network has 50.00 % of the BOPs (640 M) and 60.00 % of the bytes (90.0 kB) of the same network",
        "It predicts the same as the float model for 93.00 % of held-out inputs. It spends 80.00 % of the budget",
        "New BatchNorm statistics brought the outputs closer, and were kept. All of this is before training.",
        f"head : it is small {' '.join(HOSTILE.split())}",
        "Error of the weights relative to their norm, by method",
        "Error of the outputs relative to their variance, before and after the fit",
        "Error, float factors Error, rounding Error, descent Error of outputs MACs BOPs Bytes Activations, bytes Time",
        "1 blocks.0.conv1 64 × 64 × 3 × 3 2x cp, rank 134 0.310 0.460 0.330 0.16 from 0.24 1.17 M from 2.36 M 39.1 M",
        "from 75.5 M 9,811 from 18,688 83,968 from 40,960 0.400 ms from 0.500 ms 2 blocks.0.conv2",
        f"3 {' '.join(HOSTILE.split())} 64 × 64 × 1 × 1 int4 dense – – – – 262 K 8.39 M 2,304 8,192 –",
        f"Where Why blocks.0.conv1 , blocks.0.conv2 2.1 bits a weight {' '.join(HOSTILE.split())}",
        "Against factorization alone, which has 90.10 %, training gained accuracy: +1.52 pp",
        "Factorized a layer was replaced by a chain of small ones",  # in the glossary
    ],
)
def test_page_of_a_factorized_variant(shown: str) -> None:
    html = render(replace(RUN, trials=(FLOAT, FACTORIZED)))
    assert "<script>alert" not in html
    assert shown in Outline(html).text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_variant_without_obstacles_says_so() -> None:
    assert W4A8.verification
    clean = replace(W4A8, verification=replace(W4A8.verification, obstacles=()))
    said = "Nothing was found: all layers run on integer kernels."
    assert said in Outline(render(replace(RUN, trials=(FLOAT, clean)))).text
    assert said not in Outline(render(replace(RUN, trials=(FLOAT, W4A8)))).text
    assert "not faster" not in Outline(render(replace(RUN, trials=(FLOAT,)))).text


def test_operations_that_compute_in_float_between_layers_are_named() -> None:
    assert W8A8.verification
    left = ObstacleRow(("mean",), "conversions left: 1 QuantizeLinear", "write another", ("ReduceMean",))
    check = replace(W8A8.verification, stayed_float=(), obstacles=(left, replace(left, where=("relu",))))
    mixed = replace(W8A8, verification=check)
    assert (
        "No layer stayed float, but ReduceMean computes in float between integer layers."
        in Outline(render(replace(RUN, trials=(FLOAT, mixed)))).text
    )


def test_the_float_model_is_told_as_what_it_is() -> None:
    check = VerificationRow("onnxruntime", 100, 1.0, 1.0, 0, {"Conv": 5, "Gemm": 1}, ())
    layers = tuple(replace(row, reason="the recipe leaves it float") for row in FLOAT.layers)
    alone = replace(FLOAT, verification=check, layers=layers, parameters=FLOAT.parameters + 958)
    told = Outline(render(replace(RUN, trials=(alone,)))).text
    assert "The exported file in onnxruntime beside the model in PyTorch, on 100 real samples." in told
    assert "It is the float model: all of it computes in float." in told
    assert "the variant's other 958 are biases, norms and the like" in told
    for wrong in ("No layer stayed float", "the recipe leaves it float", "beside the fake-quantized"):
        assert wrong not in told


def test_a_limit_that_was_computed_is_rounded() -> None:
    scored = replace(FLOAT, score=Score(2 / 3, 0.6, 0.7, 3))
    asked = replace(RUN, kpi=Kpi("accuracy", None, 0.02), trials=(scored, W8A8))
    assert "the least that is asked, 64.67 %." in Outline(render(asked)).text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_distilled_variant_has_curves_with_text_alternatives(outline: Outline) -> None:
    labels = [svg["aria-label"] for svg in outline.all("svg") if "by epoch" in svg.get("aria-label", "")]
    assert [label.partition(":")[0] for label in labels] == [
        "Plot of training loss by epoch",
        "Plot of agreement with the teacher by epoch",
    ] * 2  # that was distilled, and that was searched


def with_search(**fields: Any) -> Outline:
    return Outline(render(replace(RUN, trials=(FLOAT, replace(HOSTILE_NAME, search=replace(SEARCH, **fields))))))


def test_how_the_search_moved_has_a_text_alternative(outline: Outline) -> None:
    labels = [svg["aria-label"] for svg in outline.all("svg") if svg.get("class") == "moves"]
    assert labels == [
        "at first int2 in 50.00 %, in the end int3 in 100 %",
        "at first int3 in 70.00 %, in the end int3 in 90.00 %",
        "at first int2 in 50.00 %, in the end int2 in 100 %",
    ]


def test_marks_of_a_search_lead_to_the_rows_of_their_assignments(outline: Outline) -> None:
    links = {a["href"] for a in outline.all("a") if re.fullmatch(r"#v\d+p\d+", a["href"])}
    rows = {f"#{row['id']}" for row in outline.all("tr") if "id" in row}
    assert links == rows
    assert len(rows) == 5


def test_a_search_that_explored_nothing_and_trained_nothing_has_a_section() -> None:
    found = with_search(
        by="knapsack", samples=0, movement=(), epochs=(), best=0, refused={}, gain=None, post_training=None
    )
    assert "by the exact solution for the sensitivities, and no exploring." in found.text
    assert "No steps were left to train the found assignment by itself." in found.text
    assert "While exploring" not in found.text
    assert not [svg for svg in found.all("svg") if svg.get("class") == "moves"]


def test_long_tables_of_assignments_are_closed() -> None:
    many = tuple(point(f"front {i}", ("int2", "int3", f"int{i}"), 1e8 * i, 0.1) for i in range(4, 24))
    (table,) = [d for d in with_search(front=many).all("details") if d["class"] == "more"]
    assert "open" not in table


def test_a_page_of_sixty_layers_stays_small() -> None:
    count = 60
    layers = tuple((f"stages.{i}.conv",) for i in range(count))
    found = replace(FOUND, choices=("int3",) * count)
    reasons = tuple(replace(SEARCH.reasons[0], layers=layer) for layer in layers)
    moved = tuple(tuple((i / 20, 1 - i / 20) for _ in layers) for i in range(20))
    values: dict[str, Any] = {"sensitivities": ((0.2, 0.1),) * count, "movement": moved, "reasons": reasons}
    row = replace(SEARCH, layers=layers, found=found, candidates=(found,), front=(), **values)
    html = render(replace(RUN, trials=(FLOAT, replace(HOSTILE_NAME, search=row))))
    assert html.count('class="moves"') == count
    assert len(html) < 300_000


def with_distillation(**fields: Any) -> Outline:
    distilled = replace(W4A8, distillation=replace(DISTILLATION, **fields))
    return Outline(render(replace(RUN, trials=(FLOAT, distilled))))


def test_only_ewgs_shows_delta() -> None:
    text = with_distillation(quantizer="lsq").text
    assert "distilled, lsq" in text
    assert "Quantizer Before After Clipped stem.conv.weight_quantizer −0.502 to 0.251 −0.400 to 0.200 2.00 %" in text


def test_a_variant_trained_on_labels_says_so() -> None:
    assert "trained on labels, ewgs" in with_distillation(loss="labels").text


@pytest.mark.parametrize(("count", "is_open"), [(1, True), (8, True), (9, False)])
def test_long_tables_of_ranges_are_closed(count: int, is_open: bool) -> None:
    outline = with_distillation(ranges=(DISTILLATION.ranges[0],) * count)
    (table,) = [d for d in outline.all("details") if d["class"] == "ranges"]
    assert ("open" in table) == is_open


def test_a_distillation_without_ranges_or_figures_has_a_section() -> None:
    outline = with_distillation(ranges=(), gain=None, post_training=None, before=None, after=None, epochs=())
    assert "What training gained over post-training alone is not known" in outline.text
    assert not [d for d in outline.all("details") if d["class"] == "ranges"]


def test_without_distillation_the_page_does_not_speak_of_it() -> None:
    before, _, behind = Outline(render(replace(RUN, trials=(FLOAT, W8A8)))).text.partition("Which methods fit here")
    text = before + behind.partition("How to reproduce")[2]
    assert not any(word in text for word in ("Distillation", "Delta", "Search", "Sensitivity"))


def test_every_layer_of_every_variant_has_a_row(outline: Outline) -> None:
    for name in LAYERS:
        assert outline.text.count(name) >= sum(bool(trial.layers) for trial in RUN.trials)
    assert "blocks.0.conv1 Conv2d int4 int8 per channel 1,728 2.40 M 76.8 M 864 15.8 QLinearConv" in outline.text


def test_a_metric_that_is_no_share_is_a_plain_number() -> None:
    outline = Outline(render(replace(RUN, kpi=Kpi("r2", 0.905))))
    assert "the smallest of 2 variants that meet R² ≥ 0.905" in outline.text
    assert "−0.0023 −0.0044 to −0.0001" in outline.text
    assert " pp" not in outline.text.partition("Glossary")[0]


def test_structure_is_one_of_landmarks_headings_and_headed_tables(outline: Outline) -> None:
    assert [len(outline.all(tag)) for tag in ("h1", "main", "header", "footer", "nav")] == [1, 1, 1, 1, 1]
    assert outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("caption")) == len(outline.all("table"))
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
    assert len(html) < 220_000


def test_the_record_in_the_page_is_the_run(outline: Outline) -> None:
    record = json.loads("".join(outline.scripts))
    assert record["trials"][3]["name"] == HOSTILE
    assert record == json.loads(json.dumps(asdict(RUN)))
    assert not set("<>&\u2028\u2029") & set("".join(outline.scripts))


def test_no_text_from_outside_becomes_markup(html: str) -> None:
    run = hostile(replace(RUN, trials=(FLOAT, W8A8, W4A8, HOSTILE_NAME, W2A8, FAILED)))
    outline, plain = Outline(render(run)), Outline(html)
    assert {tag for tag, _ in outline.elements} == {tag for tag, _ in plain.elements}
    assert {name for _, attributes in outline.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }
    assert len(outline.all("script")) == 1
    assert json.loads("".join(outline.scripts)) == json.loads(json.dumps(asdict(run)))
    assert "{{ 7*7 }}" in outline.text
    assert not outline.comments


def test_figures_that_are_no_numbers_neither_fail_nor_leak_into_the_record() -> None:
    score = Score(0.915, math.nan, math.nan, 10)
    layer = replace(W4A8.layers[1], sqnr_db=math.inf)
    run = replace(RUN, trials=(FLOAT, replace(W4A8, score=score, layers=(layer,), verification=None)))
    outline = Outline(render(run))
    assert "∞" in outline.text
    record = json.loads("".join(outline.scripts), parse_constant=pytest.fail)
    assert record["trials"][1]["layers"][0]["sqnr_db"] is None
