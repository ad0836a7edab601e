"""The whole search: shared weights equal plain students; what is found fits, replays, and is the same after a kill."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.allocation import Budget
from lowbit.batches import Batch
from lowbit.errors import LayerError, RecipeError, TrainingError
from lowbit.methods.search.explore import Explorer, read_samples
from lowbit.methods.search.policy import Controller
from lowbit.methods.search.prices import counted
from lowbit.methods.search.run import Search, search
from lowbit.methods.search.sensitivity import by_fisher, by_loss
from lowbit.methods.search.space import Choice, space_of
from lowbit.methods.search.supernet import Supernet, float_weights, parts_of
from lowbit.post_training.correction import reestimate
from lowbit.quantization import coverage, origin
from lowbit.recipe import Recipe, Rule
from lowbit.training.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.TrainingWarning")
CHOICES = ("int2", "int4", "int8")


class Network(nn.Module):
    """A small residual network; its last convolution has 8 times the MACs of a block's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = Network()
    with torch.no_grad():
        model.head.weight.mul_(10)
        for _ in range(20):
            model(torch.randn(32, 1, 8, 8))
    return model.eval()


def batches(count: int = 8, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(count)]


RECIPE = Recipe((Rule("stem.0", lb.Int(8), lb.Int(8)),))


def searched(**options: Any) -> tuple[nn.Module, Search]:
    options = {"by": "surrogate", "epochs": 2, "batch_size": 16, "explore": 0.5, "recipe": RECIPE, **options}
    budget = options.pop("budget", Budget(like="int4", share=0.7))
    return search(network(), options.pop("batches", batches()), CHOICES, budget, progress=False, **options)


@functools.cache
def usual() -> tuple[nn.Module, Search]:
    """What is searched without options; not to be changed."""
    return searched()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Path]:
    """The same in a folder."""
    folder = tmp_path_factory.mktemp("finished")
    return searched(folder=folder)[1], folder


def supernet(recipe: Recipe = RECIPE) -> tuple[Supernet, list[Any]]:
    model = network()
    space = space_of(model, [*CHOICES, "float32"], recipe=recipe)
    some = batches(2)
    parts = [parts_of(model, space, c, some, quantizer="ewgs", exact=False) for c in space.choices]
    return Supernet(model, space, parts, some, quantizer="ewgs"), parts


# Shared weights


def test_an_assignment_is_what_a_student_by_its_recipe_is() -> None:
    net, _ = supernet(Recipe(RECIPE.rules, glue=None))
    x = batches()[5]
    assert isinstance(x, Tensor)
    for assignment in ((0, 0, 0), (2, 1, 0), (1, 3, 2)):
        student = lb.quantize(network(), net.space.recipe_of(assignment), fold=False)
        with float_weights(student):
            lb.calibrate(student, batches(2), progress=False)
        net.select(assignment)
        assert torch.allclose(net(x), student(x), atol=1e-5), assignment


def test_weights_are_held_once() -> None:
    net, _ = supernet()
    student = lb.quantize(network(), Recipe.uniform("int4", "int4"), fold=False)
    several = {name: p for name, p in student.named_parameters() if p.dim() > 1}
    shared = [p for p in net.parameters() if p.dim() > 1]
    assert sum(p.numel() for p in shared) == sum(p.numel() for p in several.values())


def test_the_shared_network_is_the_model_while_nothing_was_trained() -> None:
    model = network()
    net, _ = supernet()
    x = batches()[0]
    assert isinstance(x, Tensor)
    shared = net.shared(model)
    assert type(shared) is Network
    assert torch.allclose(shared(x), model(x), atol=1e-6)
    with torch.no_grad():
        net.student.get_submodule("conv1.layer").get_parameter("weight").mul_(2)
    assert torch.allclose(net.shared(model).get_parameter("conv1.weight"), 2 * model.conv1.weight)


def test_prices_are_those_of_the_cost_of_a_student() -> None:
    net, parts = supernet()
    prices = counted(net.space, parts)
    student = lb.quantize(network(), net.space.recipe_of((2, 1, 0)))
    lb.calibrate(student, batches(2), progress=False)
    cost = lb.cost(student, batches()[0])
    assert prices["bops"].total((2, 1, 0)) == cost.bops
    assert prices["bytes"].total((2, 1, 0)) == cost.weight_bytes


def test_statistics_of_batchnorms_are_those_of_the_batches() -> None:
    norm = nn.BatchNorm2d(3)
    x = [torch.randn(20, 3, 4, 4) * 3 + 1 for _ in range(4)]
    reestimate(norm, x)
    whole = torch.cat(x).transpose(0, 1).flatten(1)
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in x])
    torch.testing.assert_close(norm.running_mean, whole.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.momentum == 0.1
    assert not norm.training
    before = norm.running_mean
    reestimate(norm, [x[0][:1]])  # of which there is no variance
    assert norm.running_mean is before


# Sensitivities


def test_loss_sensitivities_are_what_each_choice_costs_alone() -> None:
    net, _ = supernet(Recipe(()))
    model, held = network(), batches(2)
    objective = Objective(net, model, "kl", 4.0, (), held)
    table = by_loss(net, objective, held, progress=False)
    names = [d.name for d in net.space.decisions]
    alone = lb.quantize(model, Recipe((Rule("conv1", lb.Int(4), lb.Int(4)),), glue=None), fold=False)
    with float_weights(alone):
        lb.calibrate(alone, batches(2), progress=False)
    with torch.no_grad():
        expected = sum(float(objective.loss(alone, b)) for b in held) / len(held)
    assert table[names.index("conv1")][1] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    for row in table:
        assert row[0] > row[1] > row[2] > row[3] == 0


def test_fisher_sensitivities_in_closed_form() -> None:
    """y = w x with squared-error likelihood: the gradient is known, so is the weighted error of rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).eval()
    x = torch.randn(4000, 3)
    space = space_of(model, ["int2/float32", "int4/float32"])
    parts = [parts_of(model, space, c, [x], quantizer="fixed", exact=False) for c in space.choices]
    net = Supernet(model, space, parts, [x], quantizer="fixed")
    ((coarse, fine),) = by_fisher(net, [x], classes=False, progress=False)
    y = model(x).detach()
    for choice, found in zip(space.choices, (coarse, fine), strict=True):
        student = lb.quantize(model, space.recipe_of(space.uniform(choice)))
        moved = (student(x) - y).detach()
        assert found == pytest.approx(float((moved**2).sum(1).mean() / 2 / y.var()), rel=0.1)  # g is normal noise / std


def test_fisher_predicts_the_loss() -> None:
    net, _ = supernet(Recipe(()))
    held = batches(4, 64)
    objective = Objective(net, network(), "kl", 1.0, (), held)
    predicted = torch.tensor(by_fisher(net, held, classes=True, progress=False))[:, 2]
    real = torch.tensor(by_loss(net, objective, held, progress=False))[:, 2]
    assert ((predicted / real).log().abs() < math.log(2)).all()  # of int8, where second order is enough


@pytest.mark.parametrize("frozen", [False, True])
def test_activations_that_work_in_place_change_no_sensitivity(frozen: bool) -> None:
    def table(inplace: bool) -> Any:
        torch.manual_seed(0)
        convs = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace), nn.Flatten()]
        model = nn.Sequential(*convs, nn.Linear(64, 4)).eval().requires_grad_(not frozen)
        space, some = space_of(model, CHOICES), batches(2)
        parts = [parts_of(model, space, c, some, quantizer="fixed", exact=False) for c in space.choices]
        return by_fisher(Supernet(model, space, parts, some, quantizer="fixed"), some, classes=True, progress=False)

    assert table(True) == table(False)


def test_a_network_of_one_layer_shares_its_weights() -> None:
    model = nn.Linear(3, 2).eval()
    some: list[Batch] = [torch.randn(16, 3)]
    space = space_of(model, CHOICES)
    parts = [parts_of(model, space, c, some, quantizer="fixed", exact=False) for c in space.choices]
    net = Supernet(model, space, parts, some, quantizer="fixed")
    with torch.no_grad():
        net.student.get_parameter("layer.weight").mul_(2)
    assert torch.equal(net.shared(model).get_parameter("weight"), 2 * model.weight)


# The verb


@pytest.mark.parametrize("by", ["knapsack", "surrogate", "policy"])
def test_what_is_found_fits_and_is_what_the_student_has(by: Any) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    student, found = searched(by=by)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert found.found.fits
    assert found.found.costs["bops"] <= found.budgets["bops"]
    assert lb.cost(student, batches()[0]).bops == found.found.costs["bops"]
    formats = {row.name: row.weights for row in coverage(student).layers}
    assert formats == {"stem.0": "int8", **found.found.choices}
    assert found.found.loss == min(point.loss for point in found.candidates if point.fits)
    assert {"uniform int2", "uniform int4", "uniform int8"} <= {point.name for point in found.candidates} | {
        "sensitivities"
    }
    assert bool(found.samples) == (by != "knapsack")
    assert len(found.reasons) == 3
    assert 0 <= found.after <= 1
    assert by in str(found)
    x = batches()[0]
    assert isinstance(x, Tensor)
    for point in (found.front[0], found.front[-1]):  # any point exports
        other = found.student(point, batches())
        assert {row.name: row.weights for row in coverage(other).layers} == {"stem.0": "int8", **point.choices}
        assert torch.isfinite(other(x)).all()


def test_what_is_found_replays_without_searching(tmp_path: Path) -> None:
    student, found = usual()
    found.recipe.save(tmp_path / "recipe.yaml")
    again = lb.quantize(network(), Recipe.load(tmp_path / "recipe.yaml"))
    assert [r.weights for r in coverage(again).layers] == [r.weights for r in coverage(student).layers]
    exported = lb.export_onnx(student, tmp_path / "model.onnx", batches()[0])
    assert lb.verify(exported, batches(2), progress=False)


def test_surrogates_stay_within_the_budget_in_every_step() -> None:
    _, found = searched(explore=1.0)
    assert len(found.samples) == 14
    assert all(sample.cost <= found.budgets["bops"] for sample in found.samples)
    assert not found.epochs


def test_as_published() -> None:
    _, found = searched(exact=True, loss="kl", controller=Controller(delay=0.3))
    assert found.by == "policy"
    assert found.found.name == "policy"
    assert len(found.samples) == 14  # all steps
    assert not found.epochs
    rule = found.recipe.rules[-1]
    assert (rule.symmetric, rule.weight_scale, rule.activation_scale) == (True, "absmax", "absmax")


def test_several_samples_a_step_are_all_logged() -> None:
    _, found = searched(by="policy", controller=Controller(samples=3), explore=0.3)
    assert [sample.step for sample in found.samples] == [step for step in range(1, 5) for _ in range(3)]


def test_the_same_seed_finds_the_same_and_another_draws_others() -> None:
    (one, a), (other, b), (_, c) = usual(), searched(), searched(seed=1)
    assert a.recipe == b.recipe
    assert a.samples == b.samples
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())
    assert a.samples != c.samples


@pytest.mark.parametrize("killed_at", [1, 7])
def test_a_killed_search_goes_on_to_the_same_result(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = usual()
    learn = Explorer.learn

    def killed(self: Explorer, loss: Tensor) -> None:
        learn(self, loss)
        if int(self.guide.step) == killed_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Explorer, "learn", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(save_every=2, folder=tmp_path)
    student, found = searched(save_every=2, folder=tmp_path)
    assert found.recipe == expected.recipe
    assert found.samples == expected.samples
    assert tuple(read_samples(tmp_path / "samples.jsonl")) == expected.samples
    assert all(torch.equal(v, student.state_dict()[n]) for n, v in whole.state_dict().items())
    again, read = searched(save_every=2, folder=tmp_path)  # finished: only read
    assert read.samples == found.samples
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in whole.state_dict().items())


@pytest.mark.parametrize("other", [{"sensitivity": "fisher"}, {"explore": 0.6}, {"by": "policy"}])
def test_the_folder_of_another_search_is_refused(other: Any, finished: tuple[Search, Path]) -> None:
    with pytest.raises(TrainingError, match="holds a checkpoint of another run"):
        searched(folder=finished[1], **other)


def test_samples_are_json_lines_and_a_cut_one_is_left_out(finished: tuple[Search, Path], tmp_path: Path) -> None:
    found, folder = finished
    shutil.copy(folder / "samples.jsonl", tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert json.loads(lines[0]).keys() == {"step", "assignment", "cost", "reward"}
    (tmp_path / "samples.jsonl").write_text("\n".join([*lines, lines[0][:20]]))
    assert tuple(read_samples(tmp_path / "samples.jsonl")) == found.samples
    (tmp_path / "samples.jsonl").write_text("\n".join([lines[0][:20], *lines]))
    with pytest.raises(lb.LowbitError, match="line 1"):
        read_samples(tmp_path / "samples.jsonl")


def test_a_known_best_assignment_is_found() -> None:
    """Only the last layer matters: all others' channels are dead, so the bits belong there."""
    model = network()
    with torch.no_grad():
        for norm in (model.get_submodule("bn1"), model.get_submodule("bn2")):
            norm.get_parameter("weight").fill_(1e-4)
    for by in ("knapsack", "surrogate"):
        _, found = search(
            *(model, batches(), CHOICES, Budget(cost="bytes", like="int4")),
            by=by,
            recipe=RECIPE,
            epochs=1,
            batch_size=16,
            progress=False,
        )
        proposed = next(point for point in found.candidates if point.name in ("surrogate", "sensitivities"))
        assert proposed.choices["head"] == "int8", by
        assert "int2" in proposed.choices.values()


def test_two_budgets_hold_at_once() -> None:
    both = [Budget(like="int4"), Budget(cost="bytes", like="int4", share=0.8)]
    _, found = searched(by="knapsack", budget=both, epochs=1)
    assert set(found.budgets) == {"bops", "bytes"}
    assert all(found.found.costs[name] <= most for name, most in found.budgets.items())


def test_bad_input() -> None:
    with pytest.raises(TrainingError, match=r"call model\.eval\(\) first"):
        search(network().train(), batches(), CHOICES, Budget(like="int4"))
    with pytest.raises(RecipeError, match="by 'luck' is unknown; expected one of knapsack, surrogate, policy"):
        searched(by="luck")
    with pytest.raises(RecipeError, match=r"got explore=1\.5"):
        searched(explore=1.5)
    with pytest.raises(RecipeError, match=r"is below .*, the cheapest assignment"):
        searched(budget=Budget(most=1.0))
    with pytest.raises(RecipeError, match=r"is above .*, the dearest assignment"):
        searched(budget=Budget(most=1e12))
    with pytest.raises(RecipeError, match="scales of block formats cannot be shared in a search"):
        search(network(), batches(), ["mxfp4/int8", "int8"], Budget(like="int8", share=0.9), progress=False)
    with pytest.raises(LayerError, match="binary is a weight format"):
        search(network(), batches(), ["binary", "int8"], Budget(like="int8", share=0.9), progress=False)


def test_a_loss_that_is_not_finite_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    propose = Explorer.loss

    def broken(self: Explorer, model: nn.Module, batch: Batch) -> Tensor:
        return propose(self, model, batch) * (math.nan if int(self.guide.step) == 2 else 1.0)

    monkeypatch.setattr(Explorer, "loss", broken)
    with pytest.raises(TrainingError, match="the loss of an assignment is nan; lower the learning rate"):
        searched()
    with pytest.raises(TrainingError, match="the reward of step 3 is nan"):
        searched(by="policy")


def test_choices_are_kept_apart_by_name() -> None:
    assert str(Choice.parse("int4/int8")) != str(Choice.parse("int8/int4"))


def test_a_regression_is_searched_by_squared_errors() -> None:
    model = network()
    labelled: list[Batch] = [(x, model(x).detach()) for x in batches() if isinstance(x, Tensor)]
    options: dict[str, Any] = {"by": "knapsack", "epochs": 1, "batch_size": 16, "recipe": RECIPE, "progress": False}
    student, found = search(model, labelled, CHOICES, Budget(like="int4", share=0.7), **options)
    assert found.after < 1  # 1 less the relative error, no share of equal predictions
    noted = origin(student)
    assert noted is not None
    assert any("loss=mse" in step for step in noted.steps)
