"""What tests of a page share: a run with every kind of variant, texts that try to be markup, and a page's outline."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

from lowbit.pilot.record import (
    CheckRow,
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
        checks=(CheckRow("minimum", 0.91, value, value - width, value + width, verdict),),
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


def hostile(value: Any, kept: tuple[str, ...] = ("verdict",), name: str = "") -> Any:
    """The records with every text replaced, but for the fields in `kept` and for checks, whose words are ours."""
    if isinstance(value, CheckRow):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{field.name: hostile(getattr(value, field.name), kept, field.name) for field in fields(value)}
        )
    if isinstance(value, dict):
        return {hostile(key, kept): hostile(part, kept) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(hostile(part, kept) for part in value)
    return HOSTILE if isinstance(value, str) and name not in kept else value
