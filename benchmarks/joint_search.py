"""Claim: architecture and formats searched together beat formats alone, at equal bit operations and equal steps.

A MobileNetV2-like space of 2.6 to 25.5 million MACs for CIFAR-10, untrained, learns from the given ResNet-20 without
labels. All runs have the budget of the middle architecture in int4 and the same number of steps; exploring, of which
--explore is the share, is part of them.

joint    widths, expansions, kernels and formats of each block
middle   formats alone, of the middle architecture
largest  formats alone, of the largest architecture that int3 brings within nine tenths of the budget
policy   as joint, guided by the published controller

The last 5,000 training images are held out: they choose. The test images are looked at once a run. Each run keeps its
checkpoints and its result in runs/benchmarks/joint_search, so the script can be stopped and goes on; with a GPU it uses
it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import lowbit as lb
from _cifar import TRAINING, Cifar, accuracy, tell
from _figures import emit, parser
from lowbit import files
from lowbit.allocation import Budget
from lowbit.methods.search.architecture.combined import CombinedPrices, CombinedSpace, limit_of
from lowbit.methods.search.architecture.elastic import ElasticMobileNet
from lowbit.methods.search.architecture.plan import CIFAR, Plan
from lowbit.methods.search.architecture.repair import within
from lowbit.methods.search.architecture.run import search_architecture
from lowbit.methods.search.space import Choice, space_of

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "joint_search"
KINDS = ("joint", "middle", "largest", "policy")
CHOICES = ("int3", "int4", "int6", "int8")
ENDS = lb.Recipe(tuple(lb.Rule(match=n, weights=lb.Int(8), activations=lb.Int(8)) for n in ("stem.conv", "linear")))
SEARCHED = {"recipe": ENDS, "granularity": r"(blocks[.]\d+)[.].*"}
# bfloat16 is slower than float32 in the backward pass of depthwise convolutions on a CPU (measured: 0.6 and 0.35 s)
SETTINGS: dict[str, Any] = {**TRAINING, "precision": "float32", "rate": 2e-3}


class Images(Cifar):
    """CIFAR-10, or a thousand images of it."""

    def __init__(self, folder: Path, quick: bool) -> None:
        super().__init__(folder, quick)
        self.quick = quick
        if quick:
            self.train = self.train[:4]


@dataclasses.dataclass(frozen=True)
class Run:
    """One search and its training."""

    kind: str
    epochs: int
    explore: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return "-".join(str(value) for value in dataclasses.astuple(self))


def space_for(plan: Plan) -> CombinedSpace:
    """What there is to choose in a plan."""
    return CombinedSpace(plan, space_of(ElasticMobileNet(plan), CHOICES, **SEARCHED))


def budget() -> Budget:
    """The middle architecture in int4, first and last layer in int8."""
    prices = CombinedPrices("bops", space_for(CIFAR), (32, 32))
    return Budget("bops", most=prices.total(prices.of(CIFAR.middle, Choice.parse("int4"))))


def plan_for(kind: str) -> Plan:
    """The architectures that a run may choose from."""
    if kind == "middle":
        return CIFAR.only(CIFAR.middle)
    if kind == "largest":
        space, whole = space_for(CIFAR), budget().most
        assert whole is not None
        limit = limit_of(Budget("bops", most=0.9 * whole), space, (32, 32))
        largest = limit.prices.of(CIFAR.largest, Choice.parse("int3"))
        even = [[-float(option) for option in range(count)] for count in space.counts]  # each step down loses the same
        found = within(largest, even, limit, range(len(CIFAR.decisions)))
        assert found is not None
        return CIFAR.only(space.architecture(found))
    return CIFAR


def measured(run: Run, cifar: Images, kept: Path) -> dict[str, Any]:
    """The figures of a run, from its folder if it is done."""
    folder = kept / run.name
    if (folder / "result.json").exists():
        return json.loads(files.read_text(folder / "result.json"))  # type: ignore[no-any-return]
    began = time.perf_counter()
    torch.manual_seed(run.seed)
    network = ElasticMobileNet(plan_for(run.kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lb.TrainingWarning)
        student, found = search_architecture(
            *(network, cifar.train, CHOICES, budget()),
            teacher=cifar.teacher(),
            by="policy" if run.kind == "policy" else "effects",
            explore=run.explore,
            epochs=run.epochs,
            held_out=cifar.held_out,
            folder=folder,
            seed=run.seed,
            **SEARCHED,
            **{**SETTINGS, **({"batch_size": 32} if cifar.quick else {})},
        )
    cost = lb.cost(student, cifar.test[0][0][:1])
    result = {
        "test": 100 * accuracy(student, cifar.test),
        "before": 100 * found.before,
        "agreement": 100 * found.after,
        "share": cost.bops / found.budget[1],
        "megamacs": cost.macs / 1e6,
        "kilobytes": cost.weight_bytes / 1e3,
        "chosen": found.found.name,
        "architecture": dict(found.architecture),
        "formats": dict(found.found.formats),
        "weighed": {name: dict(options) for name, options in found.weighed.items()},
        "seconds": time.perf_counter() - began,
    }
    files.write_json(folder / "result.json", result)
    return result


def report(kind: str, epochs: int, found: list[dict[str, Any]]) -> None:
    """The figures of a kind of run, seed by seed."""
    name = f"{kind}, {epochs} epochs"
    tell(name, [one["test"] for one in found])
    emit(f"{name}: agreement before the fixed phase", statistics.mean(one["before"] for one in found), "%")
    emit(f"{name}: BOPs", 100 * max(one["share"] for one in found), "% of the budget", "<= 100")
    emit(f"{name}: MACs", statistics.mean(one["megamacs"] for one in found), "million")
    emit(f"{name}: weights", statistics.mean(one["kilobytes"] for one in found), "kB")
    emit(f"{name}: time of a run", statistics.mean(one["seconds"] for one in found), "s")


def main() -> None:
    """Run what was asked for, one seed after the other, and compare seed by seed."""
    options = parser(__doc__ or "")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:3])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--explore", type=float, default=0.3)
    asked = options.parse_args()
    seeds, epochs, kinds = (1, 1, KINDS[:2]) if asked.quick else (asked.seeds, asked.epochs, asked.kinds)
    cifar = Images(asked.data / "cifar10", asked.quick)
    kept = KEPT / ("quick" if asked.quick else "full")
    runs = [Run(kind, epochs, asked.explore, seed) for seed in range(seeds) for kind in kinds]
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run.kind, []).append(measured(run, cifar, kept))
    for kind, same in found.items():
        report(kind, epochs, same)
    for kind, same in found.items():
        if kind != "joint" and "joint" in found:
            ahead = [a["test"] - b["test"] for a, b in zip(found["joint"], same, strict=True)]
            target = "" if asked.quick else "> 0"
            emit(f"joint over {kind}, same seed: mean", statistics.mean(ahead), "points", target)
            emit(f"joint over {kind}, same seed: least", min(ahead), "points")


if __name__ == "__main__":
    main()
