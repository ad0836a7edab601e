"""Claim: convolutions become chains of half the weights, in 4 bits, without training and nearly without loss.

--part same: all 18 block convolutions of ResNet-20 at 2x in 4 bits: plain rounding, the published recipe, and ours,
  with float and with 8-bit activations; dense layers of 2, 3 and 4 bits beside them.
--part rates: ours at 1.5x, 2x and 3x, with 8, 6, 4 and 3 bits.
--part errors: the relative error of the weights by method, layer by layer.
--part time: CPU seconds for all layers, against tensorly's parafac with rounding and against our own ADMM, in one run.
--part budget: the rates and bits of each layer under the BOPs of 2x, dense layers among them; and a tolerated loss.
--part distilled: ours and 2 epochs of distillation without labels.

No labels, and no training but in the last part. 1,250 training images calibrate, all 10,000 test images are looked at
once a row. The seeds draw where factors start. Rows are kept in runs/benchmarks/factorization, so the script can be
stopped and goes on. The published recipe runs until it stops by itself, half an hour on this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

import lowbit as lb
from _cifar import TRAINING, Cifar, accuracy, of_file
from _figures import emit, parser
from lowbit import files
from lowbit.methods.factorization.chains import ranks_of, tensors_of
from lowbit.methods.factorization.factors import Chain, solve
from lowbit.methods.factorization.solvers import rounded
from lowbit.methods.factorization.tensors import balanced, relative_error

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "factorization"
RATE = 1e-3  # of distillation, as for 2 bits in distillation.py


class Setting:
    """The network, its block convolutions, and what rows are kept under."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.cifar = Cifar(asked.data / "cifar10", asked.quick)
        self.model = self.cifar.teacher()
        self.batches = [images for images, _ in self.cifar.train[:5]]  # 250 each; one of them is held out
        self.more = [images for images, _ in self.cifar.train[:20]]
        # as training saw them: cropped from a black border, flipped
        augment, generator = TRAINING["augment"], torch.Generator().manual_seed(0)
        self.norms = [augment(images, generator) for images, _ in self.cifar.train[:16]]
        names = [n for n, m in self.model.named_modules() if isinstance(m, nn.Conv2d) and n != "conv1"]
        self.names, self.seeds, self.quick = names[::8] if asked.quick else names, asked.seeds, asked.quick
        self.kept = KEPT / ("quick" if asked.quick else "full")

    def recipe(self, weights: str, activations: str | None) -> lb.Recipe:
        """The convolutions in a format, the first and the last layer in int8."""
        reads = lb.parse(activations) if activations else None
        inner = [lb.Rule(name, lb.parse(weights), reads) for name in self.names]
        return lb.Recipe((lb.Rule("*", lb.Int(8), reads), *inner), glue=reads)

    def row(self, name: str, find: Callable[[int], tuple[nn.Module, Any]], seeds: int = 1) -> list[dict[str, Any]]:
        """The figures of a row, seed by seed, from its folder if they are there; told as it goes."""
        found = []
        for seed in range(seeds):
            path = self.kept / f"{name.replace(' ', '_').replace(',', '')}-{seed}.json"
            if not path.exists():
                found.append(self._measured(find, seed))
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_json(path, found[-1])
            else:
                found.append(json.loads(files.read_text(path)))
        tests = [one["test"] for one in found]
        emit(f"{name}, top-1{f', mean of {seeds} seeds' if seeds > 1 else ''}", statistics.mean(tests), "%")
        if seeds > 1:
            emit(f"{name}, spread over seeds", max(tests) - min(tests), "points")
        emit(f"{name}, BOPs", found[0]["bops"], "% of float32")
        emit(f"{name}, weights", found[0]["kilobytes"], "kB")
        return found

    def _measured(self, find: Callable[[int], tuple[nn.Module, Any]], seed: int) -> dict[str, Any]:
        student, found = find(seed)
        cost = lb.cost(student, self.batches[0][:1])
        whole = lb.cost(self.model, self.batches[0][:1])
        more = {}
        if isinstance(found, lb.Factorization):
            more = {"choices": found.choices, "errors": {row.name: dict(row.errors) for row in found.layers}}
            more["agreement"], more["recalibrated"] = found.agreement, found.recalibrated
        return {
            "test": 100 * accuracy(student, self.cifar.test),
            "bops": 100 * cost.bops / whole.bops,
            "kilobytes": cost.weight_bytes / 1e3,
            **more,
        }

    def factorized(
        self, weights: str, activations: str | None, choice: str = "2x", *, more: bool = False, **options: Any
    ) -> Any:
        """A function of the seed that factorizes; with `more` images if asked."""
        recipe, batches = self.recipe(weights, activations), self.more if more else self.batches

        def find(seed: int) -> tuple[nn.Module, Any]:
            return lb.factorize(
                *(self.model, recipe, batches, choice),
                **{"layers": self.names, "seed": seed, "folder": self.kept, "progress": False, **options},
            )

        return find

    def dense(self, weights: str, activations: str | None) -> Any:
        """A function of the seed that quantizes after training."""
        recipe = self.recipe(weights, activations)
        return lambda seed: lb.post_train(self.model, recipe, self.batches, level="balanced", seed=seed, progress=False)


def same(setting: Setting) -> None:
    """2x in 4 bits."""
    tests = 100 * accuracy(setting.model, setting.cifar.test)
    emit("float, top-1", tests, "%", "= 91.73")
    factorized, norms = setting.factorized, setting.norms
    plain = {"solver": "rounding", "middle": "int4", "refit": False}
    setting.row("2x int4, rounding", factorized("int4", None, **plain), setting.seeds)
    setting.row("2x int4, rounding, BatchNorm", factorized("int4", None, **plain, norms=norms), setting.seeds)
    ours = setting.row("2x int4, ours", factorized("int4", None), setting.seeds)
    emit("2x int4, ours: least of the seeds", min(one["test"] for one in ours), "%", ">= 91.4")
    eight = setting.row("2x int4, ours, A8", factorized("int4", "int8"), setting.seeds)
    emit("2x int4, ours, A8: least of the seeds", min(one["test"] for one in eight), "%", ">= 90.9")
    many = setting.row("2x int4, ours, 5,000 images", factorized("int4", None, more=True), setting.seeds)
    emit("2x int4, ours, 5,000 images: least of the seeds", min(one["test"] for one in many), "%", ">= 91.4")
    setting.row("2x int4, ours, BatchNorm, A8", factorized("int4", "int8", norms=norms), setting.seeds)
    setting.row("2x int4, ours by ADMM", factorized("int4", None, solver="admm"), setting.seeds)
    setting.row("2x int4, descent alone", factorized("int4", None, refit=False), setting.seeds)
    setting.row("2x int4, descent, BatchNorm", factorized("int4", None, refit=False, norms=norms), setting.seeds)
    setting.row("2x int4, rounding and refit", factorized("int4", None, solver="rounding"), setting.seeds)
    setting.row("2x int4, depthwise int4", factorized("int4", None, middle="int4"), setting.seeds)
    setting.row("2x int4, spatial SVD", factorized("int4", None, "spatial 2x"), setting.seeds)
    for weights in ("int4", "int3", "int2"):
        for activations, label in ((None, ""), ("int8", ", A8")):
            setting.row(f"dense {weights}{label}", setting.dense(weights, activations))
    if not setting.quick:
        found = setting.row("2x int4, published", factorized("int4", None, exact=True, norms=norms))
        emit("2x int4, published: top-1", found[0]["test"], "%", ">= 89.6")


def rates(setting: Setting) -> None:
    """Rates and bits."""
    for bits in ("int8", "int6", "int4", "int3"):
        for choice in ("1.5x", "2x", "3x"):
            setting.row(f"{choice} {bits}, ours", setting.factorized(bits, None, choice))
        setting.row(f"dense {bits}", setting.dense(bits, None))


def errors(setting: Setting) -> None:
    """Relative errors of the weights, all factors in the same format."""
    for bits in (4, 3):
        found: dict[str, list[float]] = {}
        for name in setting.names:
            layer = setting.model.get_submodule(name)
            chain = Chain("cp", ranks_of(layer, "cp").at(2), lb.Int(bits), lb.Int(bits))
            solution = solve(tensors_of(layer, "cp"), chain, "descent", 0, True, setting.kept)
            for how, error in solution.errors.items():
                found.setdefault(how, []).append(error)
        for how, each in found.items():
            emit(f"2x int{bits}, relative error of the weights by {how}, mean", statistics.mean(each), "")
        better = [a < b for a, b in zip(found["descent"], found["rounding"], strict=True)]
        emit(f"2x int{bits}, descent below rounding", 100 * statistics.mean(better), "% of layers", "= 100")
        wide = [
            e
            for n, e in zip(setting.names, found["descent"], strict=True)
            if n.startswith("layer3") and n != "layer3.0.conv1"
        ]
        target = "<= 0.407" if bits == 4 else ""
        emit(f"2x int{bits}, descent, the worst of the 64x64x9 layers, rank 134", max(wide), "", target)


def seconds(setting: Setting) -> None:
    """CPU seconds."""
    import tensorly
    from tensorly.decomposition import parafac

    layers = {name: setting.model.get_submodule(name) for name in setting.names}
    ranks = {name: ranks_of(layer, "cp").at(2) for name, layer in layers.items()}

    def by(solver: str) -> list[float]:
        chains = {name: Chain("cp", rank, lb.Int(4), lb.Int(8)) for name, rank in ranks.items()}
        found = [solve(tensors_of(layers[n], "cp"), c, solver, 0, False, None) for n, c in chains.items()]  # type: ignore[arg-type]
        return [one.errors[solver] for one in found]

    def by_tensorly() -> list[float]:
        with threadpool_limits(1):  # as ours
            return with_tensorly()

    def with_tensorly() -> list[float]:
        found = []
        for name, layer in layers.items():
            (x,) = tensors_of(layer, "cp")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cp = parafac(x.numpy(), ranks[name], init="random", random_state=0)  # 100 passes at most
            factors = balanced(
                [torch.from_numpy(f) for f in (cp.factors[0] * tensorly.tensor(cp.weights), *cp.factors[1:])]
            )
            grid = rounded(factors, [lb.Int(4), lb.Int(4), lb.Int(8)])
            found.append(relative_error(x, grid.factors))
        return found

    times = {}
    for name, work in {
        "tensorly and rounding": by_tensorly,
        "ours": lambda: by("descent"),
        "ours by ADMM": lambda: by("admm"),
    }.items():
        began = time.process_time()
        found = work()
        times[name] = time.process_time() - began
        emit(f"all layers, {name}: CPU time", times[name], "s", "<= 10" if name == "ours" else "")
        emit(f"all layers, {name}: relative error, mean", statistics.mean(found), "")
    emit("ours over tensorly and rounding", times["ours"] / times["tensorly and rounding"], "x the time")
    emit("ADMM over ours", times["ours by ADMM"] / times["ours"], "x the time")
    if not setting.quick:
        began = time.process_time()
        setting.factorized("int4", "int8", folder=None)(0)
        emit("factorize, with refit and calibration: CPU time", time.process_time() - began, "s")


def budget(setting: Setting) -> None:
    """Choices layer by layer."""
    choices = [
        "int8",
        "int6",
        "int4",
        "int3",
        "1.5x int4",
        "2x int4",
        "3x int4",
        "4x int4",
        "1.5x int3",
        "2x int3",
        "2x int6",
    ]
    like = lb.Budget("bops", like="2x int4")
    recipe, kept = setting.recipe("int4", "int8"), setting.kept

    def chosen(choices: list[str], **asked: Any) -> Callable[[int], tuple[nn.Module, Any]]:
        return lambda seed: lb.factorize(
            *(setting.model, recipe, setting.batches, choices),
            **{"layers": setting.names, "seed": seed, "folder": kept, "progress": False, **asked},
        )

    setting.row("allocated, BOPs of 2x int4, A8", chosen(choices, budget=like), setting.seeds)
    without = [name for name in choices if "x" not in name or name == "2x int4"]
    setting.row("allocated, dense or 2x int4, A8", chosen(without, budget=like), setting.seeds)
    setting.row("tolerated loss of 2 %, A8", chosen(choices, tolerance=0.02))


def distilled(setting: Setting) -> None:
    """With training."""
    cifar, began = setting.cifar, setting.factorized("int4", "int8", fold=False)
    training = {"epochs": 2, "held_out": cifar.held_out, "rate": RATE, **TRAINING}

    def find(seed: int) -> tuple[nn.Module, Any]:
        student, _ = began(seed)
        folder = setting.kept / f"distilled-{seed}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lb.TrainingWarning)
            return lb.distill(student, setting.model, cifar.train, folder=folder, seed=seed, progress=False, **training)

    setting.row("2x int4, ours and 2 epochs of distillation, A8", find, setting.seeds)


def exported(setting: Setting) -> None:
    """The file."""
    student, _ = setting.factorized("int4", "int8")(0)
    found = of_file(student, setting.cifar)
    emit("2x int4, ours, A8: file in ONNX Runtime, top-1", found["file"], "%")
    emit("2x int4, ours, A8: file", 1000 * found["megabytes"], "kB")


def main() -> None:
    """Run the parts that were asked for."""
    options = parser(__doc__ or "")
    parts = {"same": same, "rates": rates, "errors": errors, "time": seconds, "budget": budget, "file": exported}
    options.add_argument("--part", choices=(*parts, "distilled", "all"), default="all")
    options.add_argument("--seeds", type=int, default=3, help="of the rows that are compared")
    asked = options.parse_args()
    if asked.quick:
        asked.seeds = 1
        parts = {"errors": errors, "time": seconds, "file": exported}
    setting = Setting(asked)
    for name, part in {**parts, **({} if asked.quick else {"distilled": distilled})}.items():
        if asked.part in (name, "all"):
            part(setting)


if __name__ == "__main__":
    main()
