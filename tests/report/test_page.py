"""The report page: what it says, that it escapes what comes from outside, and that it asks for nothing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from lowbit.pilot.record import (
    DistillationRow,
    EpochRow,
    FactorizationRow,
    FactorizedLayerRow,
    Kpi,
    LatencyRow,
    LayerRow,
    ObstacleRow,
    PointRow,
    Provenance,
    RangeRow,
    ReasonRow,
    Run,
    Score,
    SearchRow,
    SpentRow,
    TeacherRow,
    Trial,
    Verdict,
    VerificationRow,
)
from lowbit.report import charts, page
from lowbit.report.page import render

HOSTILE = "<script>alert(1)</script><!-- & \"quoted\" 'it' \u2028 {{ 7*7 }}"
LAYERS = ("stem.conv", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "head")
OBSTACLES = (
    ObstacleRow(("stem.conv",), "its weights are float", "weights=int8 in its rule"),
    ObstacleRow((), "this processor has no VNNI", "measure on one that has it"),
    ObstacleRow(tuple(f"head.{i}" for i in range(8)), "fewer than 50,000 MACs a sample", "larger batches"),
)


def layers(weights: str, activations: str, bits: int) -> tuple[LayerRow, ...]:
    rows = []
    for place, name in enumerate(LAYERS):
        kind, floating = ("Linear" if name == "head" else "Conv2d"), bits == 32 or name == "stem.conv"
        width = 32 if floating else bits
        rows.append(
            LayerRow(
                name,
                kind,
                "float32" if floating else weights,
                "float32" if floating else activations,
                "-" if floating else "per channel",
                parameters=432 * 4**place,
                macs=1_200_000 * 2**place,
                bops=1_200_000 * 2**place * width * (32 if floating else 8),
                weight_bytes=432 * 4**place * width // 8,
                sqnr_db=None if floating else 6.02 * bits - 9.3 + place,
                kernel=("Gemm" if kind == "Linear" else "Conv")
                if floating
                else ("QGemm" if kind == "Linear" else "QLinearConv"),
                reason="the first layer is left in float by the recipe" if floating and bits != 32 else "",
            )
        )
    return tuple(rows)


def trial(
    name: str, bits: int, value: float, verdict: Verdict, *, width: float = 0.0055, speed: float = 1.0, size: int
) -> Trial:
    rows = layers(f"int{bits}", "int8", bits)
    rules = [{"match": "*", "weights": f"int{bits}", "activations": "int8"}, {"match": "stem.*", "weights": None}]
    return Trial(
        name=name,
        recipe=None if bits == 32 else {"rules": rules},
        fingerprint=f"sha256:{bits:016x}",
        verdict=verdict,
        score=Score(value, value - width, value + width, 10_000),
        difference=None
        if bits == 32
        else Score(value - 0.9185, value - 0.9185 - 0.0021, value - 0.9185 + 0.0022, 10_000),
        agreement=None if bits == 32 else Score(0.9 + bits / 100, 0.895 + bits / 100, 0.905 + bits / 100, 10_000),
        file=f"variants/{name}/model.onnx",
        file_bytes=size,
        weight_bytes=sum(row.weight_bytes for row in rows),
        parameters=sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
        bops=sum(row.bops for row in rows),
        activation_bytes=65_536,
        latencies=tuple(
            LatencyRow(runtime, batch, 1, time / speed, 0.96 * time / speed, 1.1 * time / speed, 50)
            for runtime, batch, time in (("onnxruntime", 1, 0.812), ("onnxruntime", 32, 18.4), ("openvino", 1, 0.77))
        ),
        layers=rows,
        verification=None
        if bits == 32
        else VerificationRow(
            "onnxruntime", 512, 1.0, 0.9987, 1, {"QLinearConv": 4, "QGemm": 1}, ("stem.conv",), OBSTACLES
        ),
        notes=("Weights below 8 bits are stored packed and computed as int8.",) if bits < 8 else (),
        seconds=12.4 if bits == 32 else 93.0,
    )


DISTILLATION = DistillationRow(
    "ewgs",
    exact=False,
    loss="kl",
    teacher=TeacherRow(0.4312, 0.971, 0.911, ("its largest class probability is 0.43, expected at least 0.50",)),
    epochs=tuple(EpochRow(n, 0.9 / n, 0.8 + 0.02 * n, 1e-3, 12.0) for n in range(1, 5)),
    best=4,
    before=0.8,
    after=0.88,
    ranges=tuple(RangeRow(f"{name}.weight_quantizer", -0.5018, 0.2508, -0.4, 0.2, 0.125, 0.02) for name in LAYERS),
    post_training=Score(0.901, 0.895, 0.907, 10_000),
    gain=Score(0.0152, 0.0088, 0.0217, 10_000),
)


def point(name: str, choices: tuple[str, ...], bops: float, loss: float, *, fits: bool = True) -> PointRow:
    return PointRow(name, choices, {"bops": bops, "latency": 0.3}, fits, 0.9 * loss, loss, 1 - loss)


FOUND = point("surrogate", ("int3", "int3", "int2"), 4.95e8, 0.02)
SEARCH = SearchRow(
    "surrogate",
    "kl",
    classes=True,
    choices=("int2", "int3"),
    refused={"e4m3": "no runtime computes with e4m3 activations"},
    layers=(("stem.conv",), LAYERS[1:5], ("head",)),
    budgets={"bops": 5e8, "latency": 0.4},
    sensitivities=((0.2, 0.01), (0.1, 0.000012), (0.002, 0.0)),
    samples=120,
    movement=(((0.5, 0.5), (0.3, 0.7), (0.5, 0.5)), ((0.0, 1.0), (0.1, 0.9), (1.0, 0.0))),
    reasons=(
        ReasonRow(
            ("stem.conv",), "int3", 0.125, "int3: int2 would save 4 % of the budget and change the loss by +9 %."
        ),
        ReasonRow(LAYERS[1:5], "int3", 0.75, "int3: no other choice costs less or loses less."),
        ReasonRow(("head",), "int2", 0.0625, f"int2: {HOSTILE}."),
    ),
    found=FOUND,
    candidates=(
        FOUND,
        point("sensitivities", ("int3", "int2", "int3"), 4e8, 0.04),
        point("uniform int2", ("int2",) * 3, 2e8, 0.3),
        point("uniform int3", ("int3",) * 3, 6e8, 0.01, fits=False),
    ),
    front=(point("front 1", ("int2", "int2", "int3"), 3e8, 0.2), FOUND),
    epochs=DISTILLATION.epochs[:2],
    best=2,
    before=0.93,
    after=0.96,
    post_training=Score(0.902, 0.896, 0.908, 10_000),
    gain=Score(0.0085, 0.0021, 0.0149, 10_000),
)
CHAINS = FactorizationRow(
    "descent",
    exact=False,
    layers=(
        *(
            FactorizedLayerRow(
                name,
                (64, 64, 3, 3),
                "2x",
                "cp",
                134,
                {"float": 0.31, "rounding": 0.46, "descent": 0.33},
                0.24,
                0.16,
                SpentRow(36_864, 2_360_000, 75_500_000, 18_688, 40_960, 0.5),
                SpentRow(18_358, 1_170_000, 39_100_000, 9_811, 83_968, 0.4),
                f"2.1 bits a weight {HOSTILE}",
            )
            for name in LAYERS[1:3]
        ),
        FactorizedLayerRow(
            *(HOSTILE, (64, 64, 1, 1), "int4", "", 0, {}, None, None),
            SpentRow(4_096, 262_144, 8_390_000, 2_304, 8_192),
            SpentRow(4_096, 262_144, 8_390_000, 2_304, 8_192),
            "",
        ),
    ),
    skipped={"head": f"it is small {HOSTILE}"},
    before=SpentRow(300_000, 40_000_000, 1_280_000_000, 150_000, 40_960),
    after=SpentRow(150_000, 20_000_000, 640_000_000, 90_000, 83_968),
    budgets={"bops": 8e8},
    error=0.08,
    agreement=0.93,
    recalibrated=True,
)
FLOAT = trial("float", 32, 0.9185, "meets", size=1_176_000)
W8A8 = trial("w8a8", 8, 0.9181, "meets", speed=2.1, size=372_000)
W4A8 = replace(trial("w4a8", 4, 0.9162, "meets", speed=2.1, size=240_000), distillation=DISTILLATION)
FACTORIZED = replace(W4A8, name="chains", factorization=CHAINS)
HOSTILE_NAME = replace(trial(HOSTILE, 3, 0.9105, "borderline", speed=1.9, size=196_000), search=SEARCH)
W2A8 = trial("w2a8", 2, 0.8427, "misses", speed=0.8, size=160_000)
FAILED = Trial(
    "w1a8",
    {"rules": [{"match": "*", "weights": "binary", "activations": "int8"}]},
    "sha256:01",
    "failed",
    error="layer 'stem.conv' weight [16,3,3,3]: PerGroup(32) does not divide 27 inputs; use PerChannel(0)",
)
RUN = Run(
    name="resnet20-cifar10",
    model="lowbit.models:resnet20",
    kpi=Kpi("accuracy", 0.91),
    pilot={"name": "resnet20-cifar10", "kpi": {"metric": "accuracy", "minimum": 0.91}, "variants": ["w8a8", "w4a8"]},
    provenance=Provenance(
        command="lowbit pilot pilot.yaml --jobs 2",
        started="2026-03-04T09:05:00+00:00",
        seed=0,
        data_hash="sha256:5d1f0c6b",
        weights_hash="sha256:77aa02e4",
        versions={"lowbit": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.0"},
        machine={"cpu": "AMD EPYC 9454", "cores": "2", "memory": "8 GB"},
    ),
    trials=(FLOAT, W8A8, W4A8, HOSTILE_NAME, FAILED),
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


@pytest.fixture(scope="module")
def html() -> str:
    return render(RUN)


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    return Outline(html)


def test_verdict_says_how_many_meet_and_which_is_the_smallest(outline: Outline) -> None:
    sentence = "2 of 4 variants meet accuracy ≥ 91.0 %; smallest: w4a8, 0.24 MB, 4.9× smaller than float."
    others = "Of the others, 1 is borderline and 1 failed. The float model has 91.85 % (95 % interval 91.30 to 92.40)."
    assert page.verdict(RUN) == sentence
    assert page.remark(RUN) == others
    assert sentence in outline.text
    assert others in outline.text


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ((), "Nothing was measured: the run has no variant, and no float baseline that ran."),
        ((FLOAT,), "Only the float model was measured: at 91.85 % it meets accuracy ≥ 91.0 %."),
        (
            (replace(FLOAT, verdict="borderline"),),
            "Only the float model was measured: at 91.85 % it is borderline for accuracy ≥ 91.0 %.",
        ),
        ((FLOAT, FAILED), "No variant could be measured: 1 of 1 failed."),
        ((replace(FAILED, recipe=None), FAILED, FAILED), "No variant could be measured: 2 of 2 failed."),
        ((FLOAT, W2A8, FAILED), "0 of 2 variants meet accuracy ≥ 91.0 %; the best, w2a8, has 84.27 %."),
        (
            (FLOAT, replace(W2A8, verdict="borderline")),
            "0 of 1 variant meets accuracy ≥ 91.0 %; the best, w2a8, has 84.27 %, which is borderline.",
        ),
        ((W8A8, W2A8), "1 of 2 variants meets accuracy ≥ 91.0 %; smallest: w8a8, 0.37 MB."),
        (
            (FLOAT, replace(W8A8, file_bytes=2_000_000)),
            "1 of 1 variant meets accuracy ≥ 91.0 %; smallest: w8a8, 2.00 MB.",
        ),
    ],
)
def test_a_run_of_any_trials_has_a_page_and_a_sentence(trials: tuple[Trial, ...], expected: str) -> None:
    run = replace(RUN, trials=trials)
    assert page.verdict(run) == expected
    assert expected in Outline(render(run)).text


@pytest.mark.parametrize(
    "shown",
    [
        "91.62 % 91.07 to 92.17",  # metric with its interval
        "−0.23 pp −0.44 to −0.01",  # paired difference
        "94.00 % 93.50 to 94.50",  # agreement
        "0.24 MB 4.9×",
        "3.61 G 21.4×",  # BOPs
        "0.387 ms 2.1×",
        "Latency onnxruntime, batch 32, 1 thread",
        "100 % onnxruntime",  # same top-1
        "layer 'stem.conv' weight [16,3,3,3]: PerGroup(32) does not divide 27 inputs; use PerChannel(0)",
        "stem.conv : the first layer is left in float by the recipe",
        "QLinearConv × 4, QGemm × 1",
        "Why is it not faster?",
        "stem.conv its weights are float weights=int8 in its rule",
        "the whole file this processor has no VNNI measure on one that has it",
        "head.5 and 2 more fewer than 50,000 MACs a sample larger batches",
        "- match: '*' weights: int4 activations: int8",  # recipe
        "w4a8 meets distilled, ewgs smallest that meets",  # in the overview
        "Against post-training alone, which has 90.10 %, training gained accuracy: +1.52 pp (95 % interval +0.88 to",
        "Same prediction as the teacher on held-out inputs: 80.00 % before training, 88.00 % after.",
        "its largest class probability is 43.12 % on average, under augmentation it agrees with itself by 97.10 %",
        "A weak teacher: its largest class probability is 0.43, expected at least 0.50.",
        "Training loss against the float model's outputs",
        "Ranges of 6 quantizers, before and after training",
        "Quantizer Before After Delta Clipped stem.conv.weight_quantizer −0.502 to 0.251 −0.400 to 0.200 0.125 2.00 %",
        "borderline searched, surrogate",  # in the overview
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
        "chains meets factorized, descent distilled, ewgs",  # in the overview
        "2 of 3 layers became chains of small ones, with factors found by descent in the integers.",
        "The network has 50.00 % of the BOPs (640 M) and 60.00 % of the bytes (0.090 MB) of the same network",
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
    text = Outline(render(replace(RUN, trials=(FLOAT, W8A8)))).text
    assert not any(word in text for word in ("Distillation", "Delta", "Search", "Sensitivity"))


def test_every_layer_of_every_variant_has_a_row(outline: Outline) -> None:
    for name in LAYERS:
        assert outline.text.count(name) >= sum(bool(trial.layers) for trial in RUN.trials)
    assert "blocks.0.conv1 Conv2d int4 int8 per channel 1,728 2.40 M 76.8 M 864 15.8 QLinearConv" in outline.text


def test_a_metric_that_is_no_share_is_a_plain_number() -> None:
    outline = Outline(render(replace(RUN, kpi=Kpi("r2", 0.905))))
    assert "2 of 4 variants meet r2 ≥ 0.905" in outline.text
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
    assert len(html) < 200_000


def test_the_record_in_the_page_is_the_run(outline: Outline) -> None:
    record = json.loads("".join(outline.scripts))
    assert record["trials"][3]["name"] == HOSTILE
    assert record == json.loads(json.dumps(asdict(RUN)))
    assert not set("<>&\u2028\u2029") & set("".join(outline.scripts))


def hostile(value: Any) -> Any:
    """The records with every text replaced, but for the verdicts, which are ours."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {field.name: getattr(value, field.name) for field in fields(value)}
        return type(value)(**{name: part if name == "verdict" else hostile(part) for name, part in kept.items()})
    if isinstance(value, dict):
        return {hostile(key): hostile(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(hostile(part) for part in value)
    return HOSTILE if isinstance(value, str) else value


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


def test_plots_are_file_size_bops_and_each_latency() -> None:
    titles = [(chart.title, chart.detail) for chart in charts.draw(RUN)]
    assert titles == [
        ("accuracy against file size", "the exported file"),
        ("accuracy against BOPs", "bit operations, one sample"),
        ("accuracy against latency", "onnxruntime, batch 1, 1 thread"),
        ("accuracy against latency", "onnxruntime, batch 32, 1 thread"),
        ("accuracy against latency", "openvino, batch 1, 1 thread"),
    ]
    assert charts.draw(replace(RUN, trials=(FLOAT, FAILED))) == []


def test_marks_lie_on_the_points_that_vega_drew() -> None:
    for chart in charts.draw(replace(RUN, trials=(FLOAT, W8A8, W4A8, W2A8))):
        width, height = (float(number) for number in re.findall(r'viewBox="0 0 (\S+) (\S+)"', chart.svg)[0])
        left, top = (
            float(n) for n in re.findall(r'stroke-miterlimit="10" transform="translate\((.+?),(.+?)\)"', chart.svg)[0]
        )
        symbols = chart.svg.partition("mark-symbol")[2].partition("</g>")[0]
        drawn = [(float(x), float(y)) for x, y in re.findall(r"translate\((.+?),(.+?)\)", symbols)]
        marked = [(mark.left * width / 100 - left, mark.top * height / 100 - top) for mark in chart.marks]
        assert marked == [pytest.approx(point, abs=0.01) for point in drawn]


def test_the_front_is_what_no_other_beats() -> None:
    chart = charts.draw(replace(RUN, trials=(FLOAT, W8A8, replace(W4A8, file_bytes=400_000), W2A8)))[0]
    assert chart.summary == (
        "Plot of accuracy against file size (the exported file): 4 variants. On the Pareto front: w2a8, w8a8 and float."
    )


def test_a_collapsed_variant_does_not_press_the_others_together() -> None:
    scores = [Score(value, value - 0.005, value + 0.005, 10_000) for value in (0.9185, 0.9162, 0.10)]
    axis = charts.metric_axis(scores, 0.91, 100)
    assert 0.90 < axis.low < 0.91
    assert charts.metric_axis(scores[:2], 0.91, 100) == axis
    label = charts.draw(replace(RUN, trials=(FLOAT, W8A8, replace(W2A8, score=scores[2]))))[0].svg
    assert "w2a8 10.00 % ↓" in label
