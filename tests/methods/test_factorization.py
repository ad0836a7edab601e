"""The whole factorization: chains are on their grids, fit budgets, repeat bit for bit, come near the model, and run."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowbit as lb
from lowbit.allocation import Losses
from lowbit.batches import Batch, outputs_of
from lowbit.errors import CalibrationError, DataError, FormatError, LayerError, LowbitError, RecipeError
from lowbit.layers import BATCHNORMS, Quantized
from lowbit.methods.factorization import factors, run
from lowbit.methods.factorization.allocate import Picks, Priced, allocated
from lowbit.methods.factorization.chains import FIRST, LAST, MIDDLE, Kind
from lowbit.methods.factorization.choices import CHOICES, Choice, dense_weight, losses_of
from lowbit.methods.factorization.factors import Chain, Solver
from lowbit.methods.factorization.refit import refit
from lowbit.objectives import kl_divergence
from lowbit.post_training.correction import reestimate
from lowbit.quantization import activation_quantizers, coverage, origin
from lowbit.quantizer import Codes, Quantizer
from lowbit.recipe import Recipe, Rule

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.TrainingWarning")


class Network(nn.Module):
    """A small residual network: a convolution without and one with bias before a BatchNorm, and one of stride 2."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(10, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.bn2 = nn.Conv2d(10, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.conv3 = nn.Conv2d(10, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.head(torch.relu(self.conv3(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Untraceable(Network):
    """The same with control flow on data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.mean() > 1e6 else x)


NAMES = ["conv1", "conv2", "conv3"]
# the same factors are found once a process
_FACTORS = tempfile.TemporaryDirectory(prefix="lowbit-factors-")


def smooth(layer: nn.Module, seed: int) -> None:
    """Make a kernel one of rank 8 and noise, as those of trained networks are in part."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.get_parameter("weight")
    a, b, c = (torch.randn(size, 8, generator=generator) for size in weight.flatten(2).shape)
    found = torch.einsum("or,ir,sr->ois", a, b, c)
    found = found / found.std() + 0.2 * torch.randn(found.shape, generator=generator)
    weight.data.copy_(found.reshape(weight.shape) * math.sqrt(2 / weight[0].numel()))


def network(kind: Callable[..., Network] = Network, classes: int = 4) -> Network:
    torch.manual_seed(0)
    return copy.deepcopy(_network(kind, classes))


@functools.cache
def _network(kind: Callable[..., Network], classes: int) -> Network:
    model = kind(classes)
    for seed, name in enumerate(NAMES):
        smooth(model.get_submodule(name), seed)
    reestimate(model, [images(64) for _ in range(20)])
    with torch.no_grad():
        model.eval().head.weight.mul_(5)
        model.head.bias.sub_(model(images(256)).mean(0))  # no class is the most likely one
    return model


def images(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Noise, and each image of a color of its own."""
    noise, color = (torch.randn(size, 3, *more, generator=generator) for more in ((8, 8), (1, 1)))
    return 0.5 * noise + 1.5 * color


def batches(count: int = 9, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [images(size, generator) for _ in range(count)]


def inputs() -> Tensor:
    return images(32, torch.Generator().manual_seed(2))


OUTER = (Rule("stem.0", lb.Int(8), lb.Int(8)), Rule("head", lb.Int(8), lb.Int(8)))
RECIPE = Recipe((Rule("*", lb.Int(4), lb.Int(8)), *OUTER))


def factorized(model: nn.Module | None = None, choices: Any = "2x", **options: Any) -> tuple[nn.Module, Any]:
    model = network() if model is None else model
    options = {"recipe": RECIPE, "batches": batches(), "folder": _FACTORS.name, "progress": False, **options}
    return lb.factorize(model, choices=choices, **options)


@functools.cache
def usual() -> tuple[nn.Module, lb.Factorization]:
    """Every convolution at 2x; not to be changed."""
    return factorized(compare=True)


def chain_layers(student: nn.Module, found: lb.Factorization) -> dict[str, Quantized]:
    """The layers of all chains, by name."""
    several = {row.name: student.get_submodule(row.name) for row in found.layers if row.kind}
    layers = {f"{name}.{part}": layer for name, chain in several.items() for part, layer in chain.named_children()}
    assert all(isinstance(layer, Quantized) for layer in layers.values())
    return layers  # type: ignore[return-value]


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest of the outputs', relative to the largest output."""
    with torch.no_grad():
        a, b = one(inputs()), other(inputs())
    return float((a - b).abs().max() / b.abs().max())


# Choices


@pytest.mark.parametrize(
    ("name", "expected"), [
        ("2x", Choice("2x", rate=2.0)),
        ("1.5x int3", Choice("1.5x int3", rate=1.5, weights=lb.Int(3))),
        ("rank 28", Choice("rank 28", rank=28)),
        ("rank 28 int4", Choice("rank 28 int4", rank=28, weights=lb.Int(4))),
        ("spatial 2x", Choice("spatial 2x", rate=2.0, kind="spatial")),
        ("svd rank 3 int2", Choice("svd rank 3 int2", rank=3, kind="svd", weights=lb.Int(2))),
        ("cp 1.01x e2m1", Choice("cp 1.01x e2m1", rate=1.01, kind="cp", weights=lb.parse("e2m1"))),
        ("  2x \t int4 ", Choice("2x int4", rate=2.0, weights=lb.Int(4))),
        ("int4", Choice("int4", weights=lb.Int(4))),
        ("ternary", Choice("ternary", weights=lb.Ternary())),
    ],
)  # fmt: skip
def test_choices_are_read_from_names(name: str, expected: Choice) -> None:
    found = Choice.parse(name)
    assert found == expected
    assert found.dense == (expected.rate is None and expected.rank is None)
    assert Choice.parse(found.name) == found


@pytest.mark.parametrize("name", CHOICES)
def test_default_choices_can_be_read(name: str) -> None:
    assert Choice.parse(name).name == name


@pytest.mark.parametrize(
    ("name", "error", "message"), [
        ("1x", RecipeError, "choice '1x': a rate of 1 saves nothing; give more than 1, or a format alone"),
        ("1.0x int4", RecipeError, "choice '1.0x int4': a rate of 1.0 saves nothing"),
        ("0.5x", RecipeError, "a rate of 0.5 saves nothing"),
        ("2z", RecipeError, "choice '2z': expected '2x', 'spatial 2x int4', 'rank 28' or a format"),
        ("2y int4", RecipeError, "choice '2y int4': expected '2x', 'spatial 2x int4', 'rank 28' or a format"),
        ("rank 2.5", RecipeError, "choice 'rank 2.5': expected"),
        ("tucker 2x", RecipeError, "choice 'tucker 2x': expected"),
        ("2x int4 int8", RecipeError, "choice '2x int4 int8': expected"),
        ("-2x", FormatError, "-2x"),
        ("", FormatError, "format"),
        ("int99", FormatError, "Int(99): integers have"),
        ("2x int99", FormatError, "Int(99): integers have"),
        ("mxfp4", RecipeError, "choice 'mxfp4': block formats have no scales that a chain could take"),
        ("2x nvfp4", RecipeError, "choice 'nvfp4': block formats have no scales"),
    ],
)  # fmt: skip
def test_names_that_are_no_choice(name: str, error: type[LowbitError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Choice.parse(name)


def test_the_chain_of_a_choice() -> None:
    layer, rule = nn.Conv2d(16, 16, 3), Rule("*", lb.Int(4), lb.Int(8))
    expected: dict[str, tuple[Kind, int, lb.Int]] = {
        "2x": ("cp", 28, lb.Int(4)), "2x int3": ("cp", 28, lb.Int(3)),
        "rank 7": ("cp", 7, lb.Int(4)), "spatial 2x": ("spatial", 12, lb.Int(4)),
    }  # fmt: skip
    for name, (kind, rank, weights) in expected.items():
        choice = Choice.parse(name)
        assert choice.chain("conv", layer, rule, lb.Int(8)) == Chain(kind, rank, weights, lb.Int(8))
        assert choice.chain("conv", layer, rule, None) == Chain(kind, rank, weights, weights)
    found = Choice.parse("2x").chain("fc", nn.Linear(16, 16), rule, None)
    assert found == Chain("svd", 4, lb.Int(4), lb.Int(4))


@pytest.mark.parametrize(
    ("name", "layer", "rule", "reason"), [
        ("2x", nn.Conv2d(8, 8, 3, groups=8), Rule("*", lb.Int(4)), "it is depthwise"),
        ("spatial 2x", nn.Linear(8, 8), Rule("*", lb.Int(4)), "it has no chain of kind spatial, only svd"),
        ("svd 2x", nn.Conv2d(8, 8, 3), Rule("*", lb.Int(4)), "it has no chain of kind svd, only cp, spatial"),
        ("2x", nn.Linear(8, 8), Rule("*"), "the recipe gives float weights"),
        ("2x", nn.Linear(8, 8), Rule("*", lb.parse("mxfp4")), "the recipe gives mxfp4 weights"),
        ("99x", nn.Linear(8, 8), Rule("*", lb.Int(4)), "at 99x no component is left"),
    ],
)  # fmt: skip
def test_why_a_choice_has_no_chain(name: str, layer: nn.Module, rule: Rule, reason: str) -> None:
    found = Choice.parse(name).chain("layer", layer, rule, None)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(
    ("name", "layer", "message"), [
        ("rank 0", nn.Linear(8, 8), "layer 'fc': got rank 0, expected 1 to 4; beyond that its chain is larger"),
        ("rank 5", nn.Linear(8, 8), "layer 'fc': got rank 5, expected 1 to 4"),
        ("rank 3", nn.Conv2d(8, 8, 3, groups=2), "got rank 3, expected 1 to 16 in steps of its 2 groups"),
    ],
)  # fmt: skip
def test_ranks_that_a_layer_cannot_have(name: str, layer: nn.Module, message: str) -> None:
    with pytest.raises(LayerError, match=re.escape(message)):
        Choice.parse(name).chain("fc", layer, Rule("*", lb.Int(4)), None)


def test_a_dense_weight_is_that_of_the_student() -> None:
    model, rule = network(), Rule("*", lb.Int(3), lb.Int(8))
    student = lb.quantize(model, Recipe((rule,)), fold=False)
    expected = student.get_submodule("conv3")
    assert isinstance(expected, Quantized)
    assert torch.equal(dense_weight("conv3", model.conv3, rule), expected.weight)
    assert dense_weight("conv3", model.conv3, Rule("*")) is not None
    assert torch.equal(dense_weight("conv3", model.conv3, Rule("*")), model.conv3.weight)


def changed(name: str, size: float, model: nn.Module) -> Tensor:
    """The weight of a layer with noise, `size` times as large as itself."""
    weight = model.get_submodule(name).get_parameter("weight").detach()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name) + int(100 * size)))
    return weight + size * weight.std() * noise


def test_predicted_losses_are_near_real_ones() -> None:
    model, data, sizes = network(), batches(4, 128), (0.02, 0.05, 0.1)
    weights = {name: [changed(name, size, model) for size in sizes] for name in (*NAMES, "head")}
    predicted = losses_of(model, weights, data, progress=False)
    real: dict[str, list[float]] = {}
    before = copy.deepcopy(model.state_dict())
    wanted = torch.cat(outputs_of(model, data))
    for name, several in weights.items():
        real[name] = []
        for weight in several:
            model.load_state_dict({**before, f"{name}.weight": weight})
            real[name].append(float(kl_divergence(torch.cat(outputs_of(model, data)), wanted, 1.0)))
        model.load_state_dict(before)
    for name, losses in predicted.items():
        assert losses == sorted(losses)
        for one, other in zip(losses, real[name], strict=True):
            assert abs(math.log(one / other)) < math.log(2), name
    assert sorted(predicted, key=lambda n: predicted[n][1]) == sorted(real, key=lambda n: real[n][1])


def test_predicted_losses_in_closed_form() -> None:
    """y = W x, normal with the variance of y: an error D of the weight costs E|D x|^2 / 2 var(y)."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 1)).eval(), torch.randn(4000, 3)
    error = torch.tensor([[0.1, -0.2, 0.05]])
    weight = model[0].get_parameter("weight").detach()
    ((found, twice, none),) = losses_of(
        model, {"0": [weight + error, weight + 2 * error, weight]}, [x], progress=False
    ).values()
    assert found == pytest.approx(float((x @ error.mT).square().mean() / 2 / model(x).detach().var()), rel=0.1)
    assert twice == pytest.approx(4 * found, rel=1e-4)
    assert none == 0


def test_the_layers_own_weight_loses_nothing_and_the_model_stays_as_it_is() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    own = {name: [model.get_submodule(name).get_parameter("weight").detach().double()] for name in (*NAMES, "head")}
    assert losses_of(model, own, batches(2), progress=False) == {name: [0.0] for name in own}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not layer._forward_hooks for layer in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_predicted_losses_do_not_depend_on_parameters_that_are_trained_nor_on_what_works_in_place() -> None:
    def table(inplace: bool, frozen: bool) -> dict[str, list[float]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace), nn.Flatten())
        model.eval().requires_grad_(not frozen)
        weights = {name: [changed(name, 0.1, model)] for name in ("0", "2")}
        return losses_of(model, weights, batches(2), progress=False)

    assert table(True, False) == table(False, False) == table(False, True)
    assert all(loss > 0 for several in table(True, True).values() for loss in several)


def test_a_sensitivity_that_is_not_finite_says_so() -> None:
    model = nn.Sequential(nn.Linear(3, 1)).eval()
    weight = torch.zeros(1, 3)
    with pytest.raises(DataError, match="layer '0': its sensitivity is not finite; look at the model's outputs"):
        losses_of(model, {"0": [weight]}, [torch.full((4, 3), math.inf)], progress=False)


# The student


def test_the_result_is_a_calibrated_student_and_the_model_is_unchanged() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    student, found = factorized(model)
    assert same(student, usual()[0])  # `compare` only measures
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model) is Network
    assert [*chain_layers(student, found)] == [f"{name}.{part}" for name in NAMES for part in (FIRST, MIDDLE, LAST)]
    assert all(quantizer.ready for quantizer in activation_quantizers(student).values())
    assert not student.training
    noted = origin(student)
    assert noted is not None
    assert noted.folded
    assert noted.steps == ("factorize(2x, solver=descent, refit=True, seed=0)",)
    assert torch.isfinite(student(inputs())).all()


def test_formats_are_those_of_the_recipe_and_eight_bits_between() -> None:
    student, found = usual()
    rows = {row.name: (row.weights, row.activations) for row in coverage(student).layers}
    chains = {
        f"{name}.{part}": ("int8" if part == MIDDLE else "int4", "int8")
        for name in NAMES for part in (FIRST, MIDDLE, LAST)
    }  # fmt: skip
    assert rows == {"stem.0": ("int8", "int8"), **chains, "head": ("int8", "int8")}
    assert {rule.match: str(rule.weights) for rule in found.recipe.rules} == {n: w for n, (w, _) in rows.items()}
    assert {n: w for n, (w, _) in rows.items() if n.endswith(MIDDLE)} == {f"{n}.{MIDDLE}": "int8" for n in NAMES}
    other, _ = factorized(choices="4x int3", middle="int4", refit=False)
    formats = {row.name: row.weights for row in coverage(other).layers}
    assert [formats[f"conv1.{part}"] for part in (FIRST, MIDDLE, LAST)] == ["int3", "int4", "int3"]


@pytest.mark.parametrize("options", [{}, {"fold": False}, {"refit": False, "solver": "rounding"}], ids=str)
def test_every_weight_is_an_integer_times_a_scale(options: dict[str, Any]) -> None:
    student, found = factorized(**options) if options else usual()
    frozen = lb.freeze(student)
    for name, layer in chain_layers(student, found).items():
        codes = frozen.get_submodule(name).get_submodule("weight_quantizer")
        assert isinstance(codes, Codes)
        integers = codes.integers()
        most = 128 if name.endswith(MIDDLE) else 8
        assert torch.equal(integers, integers.round())
        assert -most <= integers.min() < 0 < integers.max() <= most - 1
        scale = codes.integer_scale.detach().reshape(-1, *[1] * (integers.dim() - 1))
        assert torch.equal(integers * scale, layer.weight.detach())
        assert bool((scale > 0).all())
        # the float weight is on the grid already: nothing is rounded anymore
        torch.testing.assert_close(layer.layer.get_parameter("weight"), layer.weight, rtol=1e-5, atol=0)


def test_the_codes_of_the_first_layers_are_those_of_the_solver() -> None:
    student, found = factorized(refit=False, fold=False, layers=["conv3"])
    layer = network().conv3
    solved = factors.solve(
        [layer.weight.detach().double().flatten(2)], Chain("cp", found.layers[0].rank, lb.Int(4), lb.Int(8)),
        "descent", 0, False, None,
    )  # fmt: skip
    frozen = lb.freeze(student)
    for part, values in zip((LAST, FIRST, MIDDLE), solved.groups[0].values, strict=True):
        codes = frozen.get_submodule(f"conv3.{part}.weight_quantizer")
        assert isinstance(codes, Codes)
        expected = values if part == LAST else values.mT
        assert torch.equal(codes.integers().flatten(1), expected.float())


def test_the_same_seed_does_the_same_and_another_does_not() -> None:
    runs = [factorized(folder=None, seed=seed, layers=["conv1", "conv3"]) for seed in (0, 0, 1)]
    (one, found), (again, repeated), (other, _) = runs
    assert same(again, one)
    assert repeated.choices == found.choices
    assert not same(other, one)


def test_layers_at_once_find_the_same() -> None:
    student, _ = factorized(folder=None, jobs=2)
    assert same(student, usual()[0])


def test_what_was_found_can_be_repeated() -> None:
    student, found = factorized(choices=["int4", "int3", "3x int3"], budget=lb.Budget(like="int4", share=0.7))
    assert len(set(found.choices.values())) > 1
    again, repeated = factorized(choices=found.choices)
    assert same(again, student)
    assert repeated.choices == found.choices
    assert repeated.recipe == found.recipe
    assert repeated.cost_after == found.cost_after


def test_choices_by_name_the_last_match_wins() -> None:
    _, found = factorized(choices={"conv*": "2x", "conv2": "int3", "conv3": "rank 5"}, refit=False)
    assert found.choices == {"conv1": "2x", "conv2": "int3", "conv3": "rank 5"}
    assert [(row.kind, row.rank) for row in found.layers] == [("cp", 15), ("", 0), ("cp", 5)]
    assert [bool(row.errors) for row in found.layers] == [True, False, True]


def test_factors_are_kept_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, found = factorized(folder=tmp_path, compare=True)
    monkeypatch.setattr(factors, "_by", None)
    again, read = factorized(folder=tmp_path, compare=True)
    assert same(again, student)
    assert [row.errors for row in read.layers] == [row.errors for row in found.layers]
    with pytest.raises(TypeError):
        factorized(folder=tmp_path, compare=True, seed=1)


def test_a_killed_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solve, by = factors.solve, factors._by
    done: list[Any] = []

    def killed(*args: Any) -> factors.Solution:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args)
        return solve(*args)

    def counting(solver: Solver, *args: Any) -> Any:
        done.append(solver)
        return by(solver, *args)

    with monkeypatch.context() as patch:
        patch.setattr(run, "solve", killed)
        with pytest.raises(KeyboardInterrupt):
            factorized(folder=tmp_path)
    assert len(done) == len([*tmp_path.rglob("*.safetensors")]) == 2
    done.clear()
    monkeypatch.setattr(factors, "_by", counting)
    student, _ = factorized(folder=tmp_path)
    assert done == ["descent", "rounding"]  # of the third layer
    assert same(student, usual()[0])


# How near it comes


def test_descent_is_better_than_rounding_in_every_layer() -> None:
    for row in usual()[1].layers:
        assert set(row.errors) == {"float", "rounding", "admm", "descent"}
        assert row.errors["float"] < row.errors["descent"] < row.errors["rounding"]
        assert row.errors["admm"] < row.errors["rounding"]


@pytest.mark.parametrize("solver", ["descent", "admm", "rounding"])
def test_a_refit_lowers_the_errors_of_all_layers_and_of_the_network(solver: Solver) -> None:
    _, found = factorized(solver=solver)
    _, plain = factorized(solver=solver, refit=False)
    assert all(row.refitted.error_after < row.refitted.error_before for row in found.layers)
    assert all(row.refitted is None for row in plain.layers)
    assert found.error < plain.error
    assert found.agreement >= plain.agreement


def test_a_refit_finds_a_lost_factor_again() -> None:
    model, recipe = network(), Recipe((Rule("*", lb.Int(8)),))
    a, b, c = torch.randn(12), torch.randn(10), torch.randn(3, 3)
    model.conv3.weight.data.copy_(torch.einsum("o,i,hw->oihw", a, b, c))  # which a chain can be exactly
    student, found = factorized(model, "rank 4 int8", recipe=recipe, layers=["conv3"], refit=False, fold=False)
    assert found.error < 1e-3
    student.get_submodule(f"conv3.{LAST}.layer").get_parameter("weight").data.zero_()
    told = refit(student, model, {"conv3": lb.Int(8)}, batches(), samples=128, progress=False)["conv3"]
    assert told.error_before == pytest.approx(1)  # of the spread of outputs; the mean is not counted
    assert told.error_after < 1e-3
    assert difference(student, model) < 0.03


def test_dense_layers_of_few_bits_are_rounded_by_second_order_on_the_way() -> None:
    choices = {"conv1": "2x", "conv2": "int3", "conv3": "int3"}
    _, found = factorized(choices=choices)
    _, plain = factorized(choices=choices, refit=False)
    assert found.error < plain.error / 1.5


@pytest.mark.parametrize("negative", [False, True])
def test_folded_batchnorms_change_nothing(negative: bool) -> None:
    model = network()
    if negative:
        with torch.no_grad():
            for norm in (model.bn1, model.bn2):
                norm.weight.copy_(torch.linspace(-1.5, 1.5, 10))
    kept, _ = factorized(model, fold=False)
    folded, found = factorized(model)
    assert sum(isinstance(module, BATCHNORMS) for module in kept.modules()) == 2 + 1
    assert not any(isinstance(module, BATCHNORMS) for module in folded.modules())
    assert difference(folded, kept) < 1e-4
    assert found.error < 0.1


def test_a_network_that_cannot_be_traced() -> None:
    student, found = factorized(network(Untraceable))
    assert type(student) is Untraceable
    assert len(chain_layers(student, found)) == 9
    assert all(row.refitted.error_after <= row.refitted.error_before for row in found.layers)
    assert found.error < 0.2
    noted = origin(student)
    assert noted is not None
    assert noted.untraced


def test_a_student_is_distilled_and_exported(tmp_path: Path) -> None:
    student, _ = factorized(fold=False)
    trained, told = lb.distill(student, network(), batches(3), epochs=1, batch_size=48, progress=False)
    assert math.isfinite(told.after)
    exported = lb.export_onnx(trained, tmp_path / "model.onnx", batches()[0])
    assert lb.verify(exported, batches(2), progress=False)


def test_batchnorm_statistics_are_kept_only_if_they_help() -> None:
    options: dict[str, Any] = {"choices": "4x int3", "fold": False, "refit": False}
    plain, found = factorized(**options)
    assert found.recalibrated is None
    better, told = factorized(norms=batches(), **options)
    assert told.recalibrated is True
    assert told.error < found.error
    assert not same(better, plain)
    odd, told = factorized(norms=[50 * images(16) + 30 for _ in range(3)], **options)
    assert told.recalibrated is False
    assert told.error == found.error
    assert same(odd, plain)


def test_as_published() -> None:
    torch.manual_seed(0)
    model = convolutional(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), outputs=5)
    student, found = factorized(
        model.eval(), "rank 2", recipe=Recipe.uniform("int4", "int8"), exact=True, fold=False, norms=batches()
    )
    assert (found.exact, found.solver) == (True, "published")
    assert isinstance(found.recalibrated, bool)
    (row,) = found.layers
    assert row.refitted is None
    assert set(row.errors) == {"float", "rounding", "published"}
    assert row.errors["published"] < 1
    layers = chain_layers(student, found)
    assert len(layers) == 3
    for layer in layers.values():
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, Quantizer)
        assert (quantizer.format, quantizer.scale.numel()) == (lb.Int(4), 1)
    assert [rule.granularity for rule in found.recipe.rules[1:4]] == [lb.PerTensor()] * 3
    assert "1 of 1 layers factorized as published" in str(found)


# Other networks


class Block(nn.Module):
    """A Transformer's block, written with Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear1, self.linear2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear2(F.relu(self.linear1(self.norm(x))))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def convolutional(*layers: nn.Module, outputs: int) -> nn.Sequential:
    body = [part for layer in layers for part in (layer, nn.ReLU())]
    one = isinstance(layers[0], nn.Conv1d)
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1) if one else nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(outputs, 4))  # fmt: skip


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any, dict[str, str]]] = {
    "groups": (
        lambda: convolutional(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, padding=1, groups=2), outputs=12),
        (3, 8, 8), None, {"2": "cp"},
    ),
    "dilation and stride": (
        lambda: convolutional(
            nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, (3, 5), stride=(2, 1), padding=(2, 2), dilation=(2, 1)), outputs=12
        ),
        (3, 9, 9), None, {"2": "cp"},
    ),
    "1x1": (
        lambda: convolutional(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1, stride=2), outputs=12),
        (3, 8, 8), ["2"], {"2": "svd"},
    ),
    "sensor": (
        lambda: convolutional(
            nn.Conv1d(3, 12, 5), nn.Conv1d(12, 16, 5, stride=2, padding=2), nn.Conv1d(16, 12, 3, dilation=2),
            outputs=12,
        ),
        (3, 40), None, {"2": "cp", "4": "cp"},
    ),
    "block": (Block, (6, 16), ["*linear1", "*linear2"], {"linear1": "svd", "linear2": "svd"}),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
        (6, 16), ["*linear1", "*linear2"], {"linear1": "svd", "linear2": "svd"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_run_as_files(name: str, tmp_path: Path) -> None:
    make, shape, layers, kinds = OTHERS[name]
    torch.manual_seed(0)
    model, data = make().eval(), [torch.randn(16, *shape) for _ in range(5)]
    recipe = Recipe.uniform("int4", "int8")
    student, found = factorized(model, "1.3x", recipe=recipe, batches=data, layers=layers)
    assert {row.name: row.kind for row in found.layers} == kinds
    assert all(row.refitted.error_after <= row.refitted.error_before for row in found.layers)
    exported = lb.export_onnx(student, tmp_path / "model.onnx", data[0])
    assert lb.verify(exported, data[1:3], progress=False)


def test_spatial_chains_run_as_files(tmp_path: Path) -> None:
    student, found = factorized(choices="spatial 2x", layers=["conv2", "conv3"])
    assert {row.kind for row in found.layers} == {"spatial"}
    assert len(chain_layers(student, found)) == 4
    exported = lb.export_onnx(student, tmp_path / "model.onnx", batches()[0])
    assert lb.verify(exported, batches(2), progress=False)


class Tokens(nn.Module):
    """Layers of all kinds that have no factors, and one that has."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.dense, self.depthwise = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.transposed, self.empty = nn.ConvTranspose1d(8, 8, 2, stride=2), nn.Conv1d(8, 8, 3)
        self.one = nn.Linear(8, 1)
        nn.init.zeros_(self.empty.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.relu(self.dense(self.embedding(x).transpose(1, 2))))
        return self.one(self.empty(self.transposed(x)).mean(2))  # type: ignore[no-any-return]


def test_layers_without_factors_are_told() -> None:
    torch.manual_seed(0)
    data = [torch.randint(20, (16, 10)) for _ in range(4)]
    _, found = factorized(Tokens().eval(), recipe=Recipe.uniform("int4", "int8"), batches=data, layers=["*"])
    assert [row.name for row in found.layers] == ["dense"]
    assert found.skipped == {
        "embedding": "Embedding has no chain of smaller layers; only Linear and convolutions have",
        "depthwise": "it is depthwise: one channel a group has nothing to factorize",
        "transposed": "ConvTranspose1d has no chain of smaller layers; only Linear and convolutions have",
        "empty": "its weights, or those of a group, are all zero",
        "one": "it has one input or one output channel: a chain would be no smaller",
    }
    assert found.agreement is None
    assert "relative error" in str(found)


def test_layers_that_the_recipe_leaves_float_are_told() -> None:
    rules = (*RECIPE.rules, Rule("conv1", None, lb.Int(8)), Rule("conv2", lb.parse("mxfp4")))
    student, found = factorized(recipe=Recipe(rules))
    assert found.skipped == {
        "conv1": "the recipe leaves its weights float",
        "conv2": "factors need a format with scales of their own, and the recipe gives mxfp4 weights",
    }
    assert [row.name for row in found.layers] == ["conv3"]
    assert {row.name: row.weights for row in coverage(student).layers}["conv1"] == "float32"
    _, found = factorized(recipe=Recipe((Rule("conv3", lb.Int(4)),)))
    assert found.skipped == dict.fromkeys(["conv1", "conv2"], "the recipe leaves its weights float")


# Budgets

Allocation = tuple[Priced, Losses, Picks]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Allocation]:
    """What is allocated from now on."""
    seen: list[Allocation] = []

    def watching(prices: Priced, losses: Losses, budget: lb.Budget) -> Any:
        limit, picks = allocated(prices, losses, budget)
        seen.append((prices, losses, picks))
        return limit, picks

    monkeypatch.setattr(run, "allocated", watching)
    return seen


def assignment_of(prices: Priced, picks: Picks) -> tuple[int, ...]:
    return tuple([*several].index(picks[name]) for name, several in prices.options.items())


@pytest.mark.parametrize(("cost", "share"), [("bops", 0.8), ("bops", 0.6), ("bytes", 0.8)])
def test_a_budget_is_met_by_the_best_there_is(cost: Any, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    choices = ["int8", "int4", "int3", "2x", "3x int3"]
    student, found = factorized(choices=choices, budget=lb.Budget(cost=cost, like="int4", share=share))
    assert found.budget is not None
    ((prices, losses, picks),) = seen
    table, (_, most) = prices.prices[cost], found.budget
    chosen = assignment_of(prices, picks)
    now = found.cost_after.bops if cost == "bops" else found.cost_after.weight_bytes
    assert table.total(chosen) == now <= most
    assert found.cost_before == prices.dense
    assert {n: p.name for n, p in picks.items()} == found.choices
    every = itertools.product(*(range(len(row)) for row in losses))
    best = min(sum(row[n] for row, n in zip(losses, a, strict=True)) for a in every if table.total(a) <= most)
    assert sum(row[n] for row, n in zip(losses, chosen, strict=True)) == pytest.approx(best, rel=1e-4)
    assert lb.cost(student, batches()[0]) == found.cost_after


def test_without_layers_a_budget_is_over_all_but_the_first_and_the_last() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    options = {"recipe": Recipe.uniform("int4", "int8"), "choices": ["int4", "2x"]}
    _, found = factorized(model.eval(), budget=lb.Budget(like="2x"), **options)
    assert found.choices == {"3": "2x"}
    table = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), model[1])
    with pytest.raises(LayerError, match=re.escape("first layer, and those alone")) as told:
        factorized(table.eval(), recipe=Recipe.uniform("int4", "int8"))
    assert str(told.value).endswith("such as layers: ['2']")  # which has factors, unlike the table


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_near_a_rate_of_one_layers_stay_dense(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = network(classes=64), watched(monkeypatch)
    torch.manual_seed(3)
    for name in NAMES:
        nn.init.kaiming_normal_(model.get_submodule(name).get_parameter("weight"))
    options = {"batches": [torch.randn(48, 3, 8, 8) for _ in range(4)], "refit": False}
    chain = f"1.02x {format}"  # the dearer one, as its depthwise weights have 8 bits: both fit
    _, found = factorized(model, [chain, format], budget=lb.Budget(like=chain), **options)
    assert found.choices == dict.fromkeys(NAMES, format)
    ((_, losses, _),) = seen
    assert all(dense < chained for chained, dense in losses)


@pytest.mark.parametrize(
    ("budget", "message"), [
        (lb.Budget(most=1.0), "budget bops: 1 is below .*, the cheapest assignment"),
        (lb.Budget(cost="bytes", most=1e12), "budget bytes: 1e.12 is above .*, the dearest assignment"),
        (lb.Budget(like="int5"), "budget bops: not all layers have choice 'int5'; name another"),
        (lb.Budget(cost="latency", most=1.0), "budget latency: nothing was measured; pass measured_costs"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be(budget: lb.Budget, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        factorized(choices=["int4", "3x"], budget=budget, refit=False)


def measured(times: Mapping[str, Mapping[str, float]]) -> lb.MeasuredCosts:
    choices = dict.fromkeys(choice for row in times.values() for choice in row)
    sizes = {name: dict.fromkeys(row, 100) for name, row in times.items()}
    return lb.MeasuredCosts(times, sizes, dict.fromkeys(choices, 0.3), dict.fromkeys(choices, 9.0), {}, {})


def test_a_chain_that_is_slower_than_the_dense_layer_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    times = {name: {"int2": 1.0, "int4": 2.0, "1.5x int4": 0.5} for name in NAMES}
    times["conv2"]["1.5x int4"] = 1.0  # as long as the fastest dense option
    options: dict[str, Any] = {"choices": ["int2", "1.5x int4"], "refit": False, "measured_costs": measured(times)}
    _, found = factorized(budget=lb.Budget(cost="latency", most=2.5), **options)
    assert found.choices == {"conv1": "1.5x int4", "conv2": "int2", "conv3": "1.5x int4"}
    ((_, losses, _),) = seen
    assert all(chain < dense for dense, chain in losses)  # where the time does not count, it is the better one
    assert found.budget == ("latency", 2.5)
    assert [row.after.milliseconds for row in found.layers] == [0.5, 1.0, 0.5]


def test_a_chain_that_is_slower_than_the_dense_layer_is_told() -> None:
    times = {name: {"int4": 1.0, "2x": 0.5} for name in NAMES}
    times["conv2"]["2x"] = 1.25
    _, found = factorized(refit=False, measured_costs=measured(times))
    told = ["slower than the dense layer" in row.advice for row in found.layers]
    assert told == [False, True, False]
    assert "slower than the dense layer (1.25 and 1 ms)" in found.layers[1].advice
    assert [row.before.milliseconds for row in found.layers] == [1.0] * 3
    assert [row.after.milliseconds for row in found.layers] == [0.5, 1.25, 0.5]


@pytest.mark.parametrize("missing", ["choice", "layer"])
def test_measured_costs_that_lack_a_choice(missing: str) -> None:
    times = {name: {"int4": 1.0, "2x": 0.5} for name in NAMES}
    if missing == "layer":
        del times["conv2"]
    else:
        del times["conv2"]["2x"]
    with pytest.raises(RecipeError, match="the measured costs lack layer 'conv2' in '2x'; measure all of its choices"):
        factorized(refit=False, measured_costs=measured(times))


@pytest.mark.parametrize("classes", [4, 1])
def test_a_loose_tolerance_gives_a_cheaper_network_than_a_strict_one(classes: int) -> None:
    choices, model = ["int8", "2x", "4x int3"], network(classes=classes)
    _, loose = factorized(model, choices, tolerance=0.5, refit=False)
    _, strict = factorized(model, choices, tolerance=0.05, refit=False)
    assert loose.cost_after.bops < strict.cost_after.bops
    assert strict.error < loose.error
    assert strict.budget is loose.budget is None
    if classes > 1:
        assert 1 - strict.agreement <= 0.05
        assert 1 - loose.agreement <= 0.5
    else:
        assert strict.error <= 0.05
        assert strict.agreement is None


def test_a_tolerance_that_no_choice_meets() -> None:
    with pytest.raises(LayerError, match=r"the dearest of the choices loses 0\.\d+, and 0\.001 is tolerated"):
        factorized(choices=["int2", "4x int2"], tolerance=0.001, refit=False)


# What is told


def test_costs_of_rows_are_those_of_their_layers() -> None:
    student, found = usual()
    for row in found.layers:
        chain = student.get_submodule(row.name)
        inputs, outputs = row.shape[:2][::-1]
        assert row.before.parameters == math.prod(row.shape)
        assert row.after.parameters == row.rank * (inputs + outputs + 9)
        assert row.after.parameters == sum(p.numel() for n, p in chain.named_parameters() if n.endswith("layer.weight"))
        positions = 64 if row.name != "conv3" else 16
        assert row.before.macs == math.prod(row.shape) * positions
        assert row.after.macs == row.rank * (64 * inputs + 9 * positions + outputs * positions)
        assert row.after.bops == 8 * row.rank * (4 * 64 * inputs + 8 * 9 * positions + 4 * outputs * positions)
        assert row.after.milliseconds is None
    rest = {row.name: row for row in found.cost_after.layers}
    assert (
        found.cost_after.bops == sum(row.after.bops for row in found.layers) + rest["stem.0"].bops + rest["head"].bops
    )
    shares = f"{found.cost_after.bops / found.cost_before.bops:.1%} of the BOPs"
    assert str(found).startswith(f"3 of 3 layers factorized by descent: {shares}")


def test_advice() -> None:
    told = {row.name: row.advice for row in usual()[1].layers}
    assert "no fewer BOPs than the dense layer: the first factor runs at the input's size" in told["conv3"]
    assert "no fewer BOPs" not in told["conv1"]
    assert "2.5 bits a weight: compare with a dense layer of 3 bits" in told["conv1"]
    assert "holds 1.5 times the activations" in told["conv1"]
    _, found = factorized(choices={"conv1": "1.1x", "conv2": "3x int3", "conv3": "int4"}, refit=False)
    many, few, dense = (row.advice for row in found.layers)
    assert re.search(r"4\.\d bits a weight, where a dense layer of 4 bits is as good and simpler", many)
    assert few == ""
    assert dense == ""
    _, found = factorized(recipe=Recipe((Rule("*", lb.Int(4), lb.Int(4)), *OUTER)), refit=False)
    assert all("activations of 4 bits inside the chain lose much; give them 8" in row.advice for row in found.layers)


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"), [
        ({"choices": "rank 0"}, LayerError, "layer 'conv1': got rank 0, expected 1 to 31"),
        ({"choices": "rank 32"}, LayerError, "layer 'conv1': got rank 32, expected 1 to 31"),
        ({"choices": "1x"}, RecipeError, "choice '1x': a rate of 1 saves nothing"),
        ({"choices": "2x int99"}, FormatError, "Int(99): integers have"),
        ({"middle": "int99"}, FormatError, "Int(99): integers have"),
        ({"choices": ["2x", "3x"]}, RecipeError, "got 2 choices and nothing to choose by; give a budget"),
        ({"choices": []}, RecipeError, "got 0 choices and nothing to choose by"),
        ({"layers": ["conv9"]}, RecipeError, "layers: 'conv9' matches no layer; names are stem.0, conv1, conv2"),
        ({"choices": {"conv9": "2x"}}, RecipeError, "'conv9' matches no layer"),
        ({"choices": {"conv1": "2x"}, "layers": ["conv1"]}, RecipeError, "choices say what each layer becomes"),
        ({"choices": {"conv1": "2x"}, "tolerance": 0.1}, RecipeError, "leave budget, tolerance and layers out"),
        ({"tolerance": 1.5}, RecipeError, "tolerance is 1.5, expected a share between 0 and 1"),
        ({"tolerance": 0.1, "budget": lb.Budget(like="2x")}, RecipeError, "got budget and tolerance"),
        ({"choices": "int4"}, LayerError, "no layer can be factorized: conv1: none of the choices is a chain"),
        ({"choices": "99x"}, LayerError, "no layer can be factorized: conv1: at 99x no component is left"),
        ({"recipe": Recipe((Rule("head", lb.Int(4)),))}, LayerError, "conv1: the recipe leaves its weights float"),
        ({"recipe": Recipe((Rule("conv9", lb.Int(4)),))}, RecipeError, "recipe rule match='conv9' matches none"),
        ({"batches": []}, CalibrationError, "factorize got no batches; give at least one"),
        ({"batches": iter(())}, CalibrationError, "not a used-up generator"),
    ],
)  # fmt: skip
def test_bad_input(options: dict[str, Any], error: type[LowbitError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        factorized(**options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    model = network()
    model.conv2.weight.data[0, 0, 0, 0] = value
    with pytest.raises(LayerError, match="layer 'conv2': its weight holds NaN or infinite values; load intact weights"):
        factorized(model)


def test_too_few_samples_for_the_refit() -> None:
    samples = torch.cat([x for x in batches(1) if isinstance(x, Tensor)])
    options: dict[str, Any] = {"layers": ["conv3"]}
    with pytest.raises(CalibrationError, match=r"layer 'conv3': 1 samples give its last factor 16 rows") as told:
        factorized(batches=[samples[:1]], **options)
    needed = re.search(r"give at least (\d+) samples, or refit=False", str(told.value))
    assert needed is not None
    enough = int(needed[1])
    with pytest.raises(CalibrationError, match=f"give at least {enough} samples"):
        factorized(batches=[samples[: enough - 1]], **options)
    factorized(batches=[samples[:enough]], **options)
    factorized(batches=[samples[:1]], refit=False, **options)


def test_a_result_without_chains_can_be_repeated() -> None:
    student, found = lb.factorize(
        *(network(), RECIPE, batches(), ["int8", "int4", "20x int2"]),
        budget=lb.Budget("bops", like="int8", share=0.95),
        progress=False,
    )
    assert not any(row.kind for row in found.layers)
    again, _ = lb.factorize(network(), RECIPE, batches(), found.choices, progress=False)
    assert torch.equal(student(inputs()), again(inputs()))


def test_bytes_count_the_scales_of_groups() -> None:
    recipe, budget = lb.Recipe.uniform("int4", "int8", granularity="group:3"), lb.Budget("bytes", like="int3")
    _, found = lb.factorize(network(), recipe, batches(), ["int4", "int3", "3x"], budget=budget, progress=False)
    assert found.budget is not None
    assert found.cost_after.weight_bytes <= found.budget[1]


def test_a_layer_called_by_keyword_has_a_sensitivity() -> None:
    class ByKeyword(Network):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.relu(x + self.bn2(self.conv2(input=torch.relu(self.bn1(self.conv1(input=x))))))
            return self.head(torch.relu(self.conv3(x)).mean((2, 3)))  # type: ignore[no-any-return]

    model = network(ByKeyword)
    weights = {name: [0.9 * model.get_submodule(name).get_parameter("weight").detach()] for name in NAMES}
    same = losses_of(network(), weights, batches(), progress=False)
    assert losses_of(model, weights, batches(), progress=False) == same


def test_what_is_quantized_or_parametrized_already() -> None:
    with pytest.raises(LayerError, match="quantized already"):
        lb.factorize(usual()[0], RECIPE, batches(), progress=False)
    model = network()
    torch.nn.utils.parametrizations.weight_norm(model.conv2)
    _, found = lb.factorize(model, RECIPE, batches(), solver="rounding", refit=False, progress=False)
    assert [*found.choices] == ["conv1", "conv3"]
    assert found.skipped["conv2"].startswith("its weight is parametrized")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "magic"}, r"solver 'magic' is unknown; expected rounding, admm, descent"),
        ({"middle": "mxfp4"}, r"'mxfp4': block formats"),
        ({"choices": "2x uint4"}, r"'uint4': weights cannot all be positive"),
    ],
)
def test_what_factors_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lb.factorize(network(), RECIPE, batches(), progress=False, **options)


def test_the_depthwise_layer_is_fitted_too() -> None:
    weights = []
    for refitting in (False, True):
        student, _ = lb.factorize(network(), RECIPE, batches(), refit=refitting, progress=False)
        layer = student.get_submodule(f"conv1.{MIDDLE}")
        assert isinstance(layer, Quantized)
        assert torch.equal(layer.weight, layer.layer.get_parameter("weight"))
        weights.append(layer.weight)
    assert not torch.equal(*weights)


def test_outputs_that_are_no_class_scores_are_judged_by_their_error() -> None:
    _, found = factorized(classes=False, tolerance=0.5, choices=["2x", "int8"])
    assert found.agreement is None
    assert "relative error" in str(found)
