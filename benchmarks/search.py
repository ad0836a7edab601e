"""Claim: a search finds formats that serve a ResNet-20 at least as well as uniform ones, and better than chance.

--part same: at the BOPs of uniform int4, and --part less: at 9/16 of them: the search beside uniform formats, random
  assignments of that cost, sensitivities alone, and the published search.
--part spaces: formats of integers, of floats, and of both.
--part levers: what each part of the search is worth, at 9/16: start, several samples, loss, sensitivities, share of
  exploring steps.
--part cost: a search step beside a step of plain training, and memory of weights, in one run.
--part latency: the table of measured layers against whole files, in one run.

All rows have the same steps, 2 epochs of the training images, and the same first and last layer (8 bits). The last
5,000 training images are held out: they choose assignment and epoch. The test images are looked at once a run. Each run
keeps its checkpoints and its result in runs/benchmarks/search, so the script can be stopped and goes on; with a GPU it
uses it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowbit as lb
from _cifar import TRAINING, Cifar, accuracy, tell
from _figures import emit, parser
from lowbit import families, files
from lowbit.allocation import Assignment, Limit
from lowbit.export.measured import check_additivity, measure_formats
from lowbit.methods.search.explore import Explorer
from lowbit.methods.search.prices import counted, limits_of
from lowbit.methods.search.space import Space, space_of
from lowbit.methods.search.supernet import Supernet, parts_of
from lowbit.methods.search.surrogate import Surrogate
from lowbit.training.objective import Objective
from lowbit.training.students import projection

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "search"
EPOCHS = 2
FIXED = lb.Recipe(tuple(lb.Rule(name, lb.Int(8), lb.Int(8)) for name in ("conv1", "linear")))
SPACES = {
    "int": ("mid2/int2", "int3", "int4", "int5", "int6", "int8"),
    "float": ("e2m1", "e2m2", "e3m2", "e4m3fn"),
    "mixed": ("mid2/int2", "int3", "int4", "int6", "int8", "e2m1", "e2m2", "e3m2", "e4m3fn"),
    "fliqs": ("mid2/int2", "int4", "int8"),  # powers of two, as FLIQS-S, which has no 2 bits
}
LIKE = {"float": "e2m1"}  # what costs as uniform int4 does
RATES = {1.0: 5e-4, 1.5: 5e-4, 0.5625: 1e-3}  # as chosen for 4 and 3 bits in distillation.py, for all rows alike
FISHER = {"sensitivity": "fisher"}
# a lever is what `search` gets beside the defaults
LEVERS: dict[str, dict[str, Any]] = {
    "surrogate": {"by": "surrogate"},
    "knapsack": {"by": "knapsack"},
    "published": {"exact": True, "loss": "labels"},
    "published, teacher": {"exact": True},
    "policy": {"by": "policy", "start": "uniform", "explore": 0.5},
    "policy from sensitivities": {"by": "policy", "explore": 0.5, **FISHER},
    "policy, 4 samples": {"by": "policy", "explore": 0.5, "controller": lb.Controller(samples=4), **FISHER},
    "no fixed phase": {"by": "surrogate", "explore": 1.0, **FISHER},
    "labels": {"by": "surrogate", "loss": "labels", **FISHER},
    "surrogate by fisher": {"by": "surrogate", **FISHER},
    "knapsack by fisher": {"by": "knapsack", **FISHER},
    "explore 0.15": {"by": "surrogate", "explore": 0.15, **FISHER},
    "explore 0.5": {"by": "surrogate", "explore": 0.5, **FISHER},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: `how` is a lever, ``random``, or the name of a uniform format."""

    how: str
    space: str
    share: float
    seed: int
    epochs: int = EPOCHS

    @property
    def name(self) -> str:
        """Its folder."""
        return "-".join(str(value) for value in dataclasses.astuple(self)).replace(" ", "_").replace("/", "+")

    @property
    def budget(self) -> lb.Budget:
        """A share of the BOPs of uniform int4."""
        return lb.Budget("bops", like=LIKE.get(self.space, "int4"), share=self.share)


def measured(run: Run, cifar: Cifar, kept: Path) -> dict[str, Any]:
    """The figures of a run, from its folder if it is done."""
    folder = kept / run.name
    if (folder / "result.json").exists():
        return json.loads(files.read_text(folder / "result.json"))  # type: ignore[no-any-return]
    model, began = cifar.teacher(), time.perf_counter()
    training = {"epochs": run.epochs, "held_out": cifar.held_out, "folder": folder, "seed": run.seed, **TRAINING}
    training["rate"] = RATES[run.share]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lb.TrainingWarning)
        if run.how in LEVERS:
            student, found = lb.search(
                *(model, cifar.train, SPACES[run.space], run.budget), recipe=FIXED, **LEVERS[run.how], **training
            )
            recipe, more = found.recipe, {"chosen": found.found.name, "share": found.found.costs["bops"]}
            more["share"] /= found.budgets["bops"]
            more["candidates"] = {point.name: [point.loss, point.fits] for point in found.candidates}
            more["after"] = found.after
        else:
            recipe, share = fixed_recipe(run, model, cifar)
            student = lb.quantize(model, recipe, fold=False)
            lb.calibrate(student, cifar.train[:4], progress=False)
            student, done = lb.distill(student, model, cifar.train, **training)
            more = {"share": share, "after": done.after}
    result = {
        **more,
        "test": 100 * accuracy(student, cifar.test),
        "seconds": time.perf_counter() - began,
        "formats": {rule.match: str(rule.weights) for rule in recipe.rules},
    }
    files.write_json(folder / "result.json", result)
    return result


def fixed_recipe(run: Run, model: nn.Module, cifar: Cifar) -> tuple[lb.Recipe, float]:
    """The recipe of a random or uniform assignment, and its share of the budget."""
    space, limit = space_and_limit(run, model, cifar)
    if run.how == "random":
        assignment = random_assignment(space, limit, random.Random(run.seed))
    else:
        assignment = space.uniform(next(choice for choice in space.choices if str(choice) == run.how))
    return space.recipe_of(assignment), limit.prices.total(assignment) / limit.most


def space_and_limit(run: Run, model: nn.Module, cifar: Cifar) -> tuple[Space, Limit]:
    """What there is to choose from, and the budget in BOPs."""
    space, some = space_of(model, SPACES[run.space], recipe=FIXED), [cifar.train[0][0][:50]]
    parts = [parts_of(model, space, choice, some, quantizer="fixed", exact=False) for choice in space.choices]
    (limit,) = limits_of([run.budget], space, counted(space, parts))
    return space, limit


def random_assignment(space: Space, limit: Limit, draw: random.Random) -> Assignment:
    """Steps up from the cheapest choices, at random layers, until nothing fits any more."""
    table = limit.prices.table
    ladders = [sorted(range(len(row)), key=lambda c, row=row: row[c]) for row in table]  # type: ignore[misc]
    places = [0] * len(table)
    able = list(range(len(table)))
    while able:
        layer = draw.choice(able)
        places[layer] += 1
        found = [ladder[min(p, len(ladder) - 1)] for ladder, p in zip(ladders, places, strict=True)]
        if places[layer] == len(ladders[layer]) or not limit.holds(tuple(found)):
            places[layer] -= 1
            able.remove(layer)
    return tuple(ladder[place] for ladder, place in zip(ladders, places, strict=True))


def compare(
    rows: list[tuple[str, str, float]], cifar: Cifar, asked: argparse.Namespace, kept: Path
) -> dict[str, float]:
    """Rows (how, space, share of int4's BOPs), each by all seeds; the mean test accuracy of each."""
    means = {}
    for seed in range(asked.seeds):  # a whole table by one seed first
        for how, space, share in rows:
            measured(Run(how, space, share, seed, asked.epochs), cifar, kept)
    for how, space, share in rows:
        found = [measured(Run(how, space, share, seed, asked.epochs), cifar, kept) for seed in range(asked.seeds)]
        name = f"{how}, {space}, {share:g} of int4's BOPs"
        tell(name, [one["test"] for one in found])
        spent = [one["share"] for one in found]
        emit(f"{name}: share of the budget, least", min(spent), "", ">= 0.98" if how in LEVERS else "")
        emit(f"{name}: share of the budget, most", max(spent), "", "<= 1" if how in LEVERS else "")
        means[how] = statistics.mean(one["test"] for one in found)
    return means


def same(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """At the BOPs of uniform int4."""
    rows = ("int4", "knapsack", "surrogate", "random", "published")
    means = compare([(how, "int", 1.0) for how in rows], cifar, asked, kept)
    emit(
        "surrogate less uniform int4, same BOPs", means["surrogate"] - means["int4"], "points", ">= 0 within the spread"
    )


def less(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """At 9/16 of that."""
    rows = ("knapsack", "surrogate", "surrogate by fisher", "knapsack by fisher", "random", "int3", "published")
    means = compare([(how, "int", 0.5625) for how in rows], cifar, asked, kept)
    emit("surrogate less random assignments, 9/16 of the BOPs", means["surrogate"] - means["random"], "points", ">= 1")
    known = means["surrogate"] - means["knapsack"]
    emit("surrogate less knapsack, 9/16 of the BOPs", known, "points", ">= 0 within the spread")


def spaces(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """Integers, floats and both."""
    for how in ("surrogate", "random", "knapsack"):
        rows = (("mixed", 0.5625), ("fliqs", 0.5625), ("mixed", 1.0), ("float", 1.5), ("int", 1.5))
        compare([(how, *row) for row in rows], cifar, asked, kept)
    compare([("e2m1fn", "float", 1.5)], cifar, asked, kept)


def levers(cifar: Cifar, asked: argparse.Namespace, kept: Path) -> None:
    """What each part is worth."""
    compare([(how, "int", 0.5625) for how in LEVERS], cifar, asked, kept)


def cost(cifar: Cifar, asked: argparse.Namespace) -> None:
    """Times of a step and memory."""
    model, images = cifar.teacher(), cifar.train[0][0][:128]
    run = Run("search", "int", 0.5625, 0)
    space, limit = space_and_limit(run, model, cifar)
    parts = [parts_of(model, space, c, [images], quantizer="ewgs", exact=False) for c in space.choices]
    net = Supernet(model, space, parts, [images], quantizer="ewgs").train()
    objective = Objective(net.eval(), model, "kl", 4.0, (), [images])
    sensitivities = tuple(tuple(1.0 / (1 + c) for c in range(len(space.choices))) for _ in space.decisions)
    guide = Surrogate(sensitivities, space.uniform(space.choices[1]), [limit])
    explorer = Explorer(net, guide, objective, limit, seed=0, folder=None)
    plain = lb.quantize(model, space.recipe_of(space.uniform(space.choices[1])), fold=False)
    lb.calibrate(plain, [images], progress=False)
    families.begin(plain, "ewgs", images)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    keep = projection(net.student, net.norms)

    def both(loss: Tensor) -> None:
        keep(loss)
        explorer.learn(loss)

    steps: dict[str, tuple[nn.Module, Callable[[], Tensor], Callable[[Tensor], None]]] = {
        "plain": (plain.train(), lambda: objective.loss(plain, images), projection(plain)),
        "search": (explorer.train(), lambda: explorer.loss(explorer, images), both),
    }
    optimizers = {n: torch.optim.Adam([p for p in m.parameters() if p.requires_grad]) for n, (m, *_) in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(4 if asked.quick else 32):
        for name, (_, loss, after) in steps.items():
            began = time.perf_counter()
            optimizers[name].zero_grad()
            value = loss()
            value.backward()
            optimizers[name].step()
            with torch.no_grad():
                after(value.detach())
            if turn > 1:  # the first ones warm up
                times[name].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(times["search"], times["plain"], strict=True)]
    emit("search step over plain step", statistics.median(ratios), "x", "" if asked.quick else "<= 1.1")
    held = {name: sum(p.numel() for p in m.parameters() if p.dim() > 1) for name, (m, *_) in steps.items()}
    emit("search, weights held over plain", held["search"] / held["plain"], "x", "= 1")


def latency(cifar: Cifar, asked: argparse.Namespace) -> None:
    """The sum of the table against whole files."""
    model, images = cifar.teacher(), cifar.train[0][0][:1]
    space = space_of(model, ["int8", "int4", "float32/int8"], recipe=FIXED)
    recipes = {str(choice): space.recipe_of(space.uniform(choice)) for choice in space.choices}
    for runtime in ("onnxruntime",) if asked.quick else ("onnxruntime", "openvino"):
        table = measure_formats(
            *(model, recipes, space.layers, cifar.train[:1], images),
            runtime=runtime,  # type: ignore[arg-type]
            repeats=20 if asked.quick else 100,
            progress=False,
        )
        rows = {f"uniform {choice}": space.uniform(choice) for choice in space.choices}
        rows["int8, int4 and float weights in turn"] = tuple(
            i % len(space.choices) for i in range(len(space.decisions))
        )
        uniform: dict[str, Path] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, assignment in rows.items():
                student = lb.quantize(model, space.recipe_of(assignment))
                lb.calibrate(student, cifar.train[:1], progress=False)
                path = lb.export_onnx(student, Path(folder, f"{len(uniform)}.onnx"), images).path
                mixed = len(uniform) == len(space.choices)  # compared beside the others: machines change their speed
                names = space.names(assignment)
                found = check_additivity(table, names, path, images, beside=uniform if mixed else None, progress=False)
                uniform[str(space.choices[assignment[0]])] = path
                emit(f"{runtime}, {name}: table's sum over the measured whole", found.ratio, "x", "0.8 to 1.2")


def main() -> None:
    """Run the parts that were asked for."""
    options = parser(__doc__ or "")
    parts: dict[str, Any] = {"same": same, "less": less, "spaces": spaces, "levers": levers}
    options.add_argument("--part", choices=(*parts, "cost", "latency", "all"), default="all")
    options.add_argument("--seeds", type=int, default=3, help="of each row")
    options.add_argument("--epochs", type=int, default=EPOCHS, help="of each row")
    asked = options.parse_args()
    cifar = Cifar(asked.data / "cifar10", asked.quick)
    if asked.part in ("cost", "all"):
        cost(cifar, asked)
    if asked.part in ("latency", "all"):
        latency(cifar, asked)
    if asked.quick:
        asked.seeds, asked.epochs = 1, 1
        if asked.part in ("less", "all"):
            compare([("surrogate", "fliqs", 0.5625)], cifar, asked, KEPT / "quick")
        return
    emit("float top-1", 100 * accuracy(cifar.teacher(), cifar.test), "%", "= 91.73")
    for name, part in parts.items():
        if asked.part in (name, "all"):
            part(cifar, asked, KEPT / "full")


if __name__ == "__main__":
    main()
