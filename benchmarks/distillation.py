"""Claim: a low-bit ResNet-20 learns from its float teacher without labels, as well as with them, at little cost.

--part table: {EWGS, LSQ, PACT, DoReFa} x {W4A4, W3A3, W2A2}, with labels (QAT) and without (SQAKD), 2 epochs each.
--part best: the best of them, trained for longer, first and last layer and sums at 8 bits, as the file then runs.
--part ablation: W2A2 as in the table with one change: EWGS without delta, LSQ on EWGS's grid, EWGS as published.
--part cost: step time and memory for backward beside the float network's, at batch 128, in one run.

The last 5,000 training images are held out: they choose the epoch. The test images are looked at once a run. Each run
keeps its checkpoints and its result in runs/benchmarks/distillation, so the script can be stopped and goes on; with a
GPU it uses it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowbit as lb
from _cifar import TRAINING, Cifar, accuracy, of_file, tell
from _figures import emit, parser
from lowbit import families, files, graph
from lowbit.objectives import kl_divergence
from lowbit.quantizer import Quantizer

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "distillation"
FAMILIES = ("ewgs", "lsq", "pact", "dorefa")
ABLATIONS: dict[str, dict[str, Any]] = {
    "ewgs-no-delta": {"quantizer": "ewgs", "delta_every": 1000},
    "lsq-midrise": {"quantizer": "lsq"},
    "ewgs-published": {"quantizer": "ewgs", "exact": True, "delta_every": 1},
}
BITS = (4, 3, 2)
LOSSES = {"kl": "SQAKD", "labels": "QAT with labels"}
BEST_FAMILY, BEST_EPOCHS = "ewgs", 8
TARGETS = {4: ">= 91.6", 3: ">= 91.0", 2: ">= 88.5"}
RATES = {4: 5e-4, 3: 1e-3, 2: 2e-3}  # chosen by EWGS's divergence on held-out images after an epoch, for all runs alike


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: `place` says what is low-bit beside the 18 inner convolutions and the linear layer."""

    family: str
    bits: int
    loss: str
    epochs: int
    seed: int
    place: str = "paper"

    @property
    def name(self) -> str:
        """Its folder."""
        return "-".join(str(value) for value in dataclasses.astuple(self))

    def recipe(self) -> lb.Recipe:
        """Weights on integers for LSQ, else on EWGS's and DoReFa's grid; where the paper has float, float or 8 bits."""
        weights = lb.Int(self.bits) if self.family == "lsq" else lb.MidRise(self.bits)
        granularity = lb.PerTensor() if self.family == "ewgs-published" else lb.PerChannel()
        inner = lb.Rule(weights=weights, activations=lb.Int(self.bits), granularity=granularity)
        outer = lb.Int(8) if self.place == "deployed" else None
        ends = [lb.Rule(match=name, weights=outer, activations=outer) for name in ("conv1", "linear")]
        return lb.Recipe((inner, *ends), glue=outer)


def measured(run: Run, cifar: Cifar, kept: Path) -> dict[str, float]:
    """The figures of a run, from its folder if it is done."""
    folder = kept / run.name
    if (folder / "result.json").exists():
        return json.loads(files.read_text(folder / "result.json"))  # type: ignore[no-any-return]
    teacher, began = cifar.teacher(), time.perf_counter()
    student = lb.quantize(teacher, run.recipe(), fold=False)
    lb.calibrate(student, cifar.train[:4], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lb.TrainingWarning)
        student, done = lb.distill(
            *(student, teacher, cifar.train),
            epochs=run.epochs,
            **ABLATIONS.get(run.family, {"quantizer": run.family}),
            loss=run.loss,
            held_out=cifar.held_out,
            folder=folder,
            seed=run.seed,
            rate=RATES[run.bits],
            **TRAINING,
        )
    result = {
        **(of_file(student, cifar) if run.place == "deployed" else {}),
        "test": 100 * accuracy(student, cifar.test),
        "agreement": 100 * done.after,
        "best": done.best,
        "seconds": time.perf_counter() - began,
        "delta": max(row.delta for row in done.ranges),
    }
    files.write_json(folder / "result.json", result)
    return result


def table(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """The paper's table."""
    families_asked, bits_asked, epochs = (FAMILIES[:1], BITS[-1:], 1) if asked.quick else (FAMILIES, BITS, 2)
    runs = [
        Run(family, bits, loss, epochs, seed)
        for bits in reversed(bits_asked)
        for family in families_asked
        for loss in LOSSES
        for seed in range(asked.seeds if bits == 2 and not asked.quick else 1)
    ]
    found = results(runs, cifar, kept)
    for run, same in groups(found).items():
        name = f"{run.family} W{run.bits}A{run.bits} {LOSSES[run.loss]}, {epochs} epochs"
        tell(name, [one["test"] for one in same])


def ablation(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """What one change does to the table's EWGS or LSQ at W2A2."""
    names = ("ewgs-published",) if asked.quick else (*ABLATIONS,)
    runs = [Run(name, 2, "kl", 1 if asked.quick else 2, 0) for name in names]
    for run, found in results(runs, cifar, kept).items():
        tell(f"{run.family} W2A2 SQAKD, {run.epochs} epochs", [found["test"]])


def best(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """The best quantizer for longer."""
    epochs = 1 if asked.quick else BEST_EPOCHS
    runs = [
        Run(BEST_FAMILY, bits, "kl", epochs, seed, "deployed")
        for bits in ((2,) if asked.quick else reversed(BITS))
        for seed in range(asked.seeds if bits == 2 and not asked.quick else 1)
    ]
    for run, same in groups(results(runs, cifar, kept)).items():
        name = f"{BEST_FAMILY} W{run.bits}A{run.bits}, all layers, {epochs} epochs"
        tell(name, [one["test"] for one in same], "" if asked.quick else TARGETS[run.bits])
        emit(f"{name}: top-1 of the file in ONNX Runtime", statistics.mean(one["file"] for one in same), "%")
        emit(f"{name}: file", same[0]["megabytes"], "MB")
        agreement = statistics.mean(one["agreement"] for one in same)
        emit(f"{name}: agreement with the teacher on held-out images", agreement, "%")


def results(runs: list[Run], cifar: Cifar, kept: Path) -> dict[Run, dict[str, float]]:
    """The figures of all runs, one seed after the other."""
    found = {run: measured(run, cifar, kept) for run in sorted(runs, key=lambda run: run.seed)}
    return {run: found[run] for run in runs}


def groups(found: dict[Run, dict[str, float]]) -> dict[Run, list[dict[str, float]]]:
    """Runs that differ by seed alone, by their first."""
    together: dict[Run, list[dict[str, float]]] = {}
    for run, figures in found.items():
        together.setdefault(dataclasses.replace(run, seed=0), []).append(figures)
    return together


def cost(cifar: Cifar, asked: argparse.Namespace) -> None:
    """Times and memory of a step."""
    images, labels = cifar.train[0][0][:128], cifar.train[0][1][:128]
    teacher = graph.folded(cifar.teacher())  # as `distill` does
    network = cifar.teacher().train()
    steps = {"float": (network, lambda: nn.functional.cross_entropy(network(images), labels))}
    for family in ("ewgs", "lsq"):
        student = lb.quantize(cifar.teacher(), Run(family, 2, "kl", 1, 0).recipe(), fold=False)
        lb.calibrate(student, [images], progress=False)
        families.begin(student, family, images)
        for module in student.modules():
            if isinstance(module, Quantizer) and family == "ewgs":
                module.set_delta(0.1)
        steps[family] = (student.train(), _distillation(student, teacher, images))
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-4) for name, (model, _) in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(3 if asked.quick else 22):
        for name, (_, loss) in steps.items():
            began = time.perf_counter()
            optimizers[name].zero_grad()
            loss().backward()
            optimizers[name].step()
            if turn > 1:  # the first ones warm up
                times[name].append(time.perf_counter() - began)
    saved = {name: saved_bytes(loss) for name, (_, loss) in steps.items()}
    emit("float training step", 1000 * statistics.median(times["float"]), "ms")
    emit("float, saved for backward", saved["float"] / 1e6, "MB")
    for name, most in (("ewgs", "<= 1.45"), ("lsq", "")):
        ratios = [a / b for a, b in zip(times[name], times["float"], strict=True)]
        emit(f"SQAKD W2A2 {name} step over float step", statistics.median(ratios), "x", "" if asked.quick else most)
        memory = "<= 1.6" if name == "ewgs" else ""
        emit(f"SQAKD W2A2 {name} saved for backward over float", saved[name] / saved["float"], "x", memory)


def _distillation(student: nn.Module, teacher: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with torch.no_grad():
            target = teacher(images)
        return kl_divergence(student(images), target, 4.0)

    return loss


def saved_bytes(loss: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage counted once; parameters are none of them."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    del result
    return sum(kept.values())


def main() -> None:
    """Run the parts that were asked for."""
    options = parser(__doc__ or "")
    options.add_argument("--part", choices=("table", "best", "ablation", "cost", "all"), default="all")
    options.add_argument("--seeds", type=int, default=3, help="of the W2A2 runs")
    asked = options.parse_args()
    cifar = Cifar(asked.data / "cifar10", asked.quick)
    if not asked.quick:
        emit("float top-1", 100 * accuracy(cifar.teacher(), cifar.test), "%", "= 91.73")
    kept = KEPT / ("quick" if asked.quick else "full")
    if asked.part in ("cost", "all"):
        cost(cifar, asked)
    if asked.part in ("best", "all"):
        best(cifar, asked, kept)
    if asked.part in ("table", "all"):
        table(cifar, asked, kept)
    if asked.part in ("ablation", "all"):
        ablation(cifar, asked, kept)


if __name__ == "__main__":
    main()
