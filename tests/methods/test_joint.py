"""Joint search: shared weights equal extracted ones, costs equal those counted, what is known to be best is found."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

import lowbit as lb
from lowbit import families
from lowbit.allocation import Budget
from lowbit.batches import Batch
from lowbit.errors import DataError, FormatError, LayerError, RecipeError, TrainingError
from lowbit.methods.search.architecture.candidates import candidates_of
from lowbit.methods.search.architecture.combined import Combined, CombinedLimit, CombinedPrices, CombinedSpace, limit_of
from lowbit.methods.search.architecture.effects import Effects
from lowbit.methods.search.architecture.elastic import ElasticBatchNorm2d, ElasticMobileNet, MobileNet, part_of
from lowbit.methods.search.architecture.plan import CIFAR, Architecture, Plan, Stage
from lowbit.methods.search.architecture.repair import solve, within
from lowbit.methods.search.architecture.run import Guide, JointSearch, search_architecture
from lowbit.methods.search.explore import Explorer
from lowbit.methods.search.policy import Controller, Policy, policy_loss, unlikeliness
from lowbit.methods.search.space import space_of
from lowbit.recipe import Recipe, Rule
from lowbit.training.objective import Objective
from lowbit.training.processes import _whole_batch_norm

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.TrainingWarning")  # few epochs

PLAN = Plan(
    stem=(4, 8),
    stages=(Stage((4, 6, 8), blocks=2, stride=2, expansions=(1, 2)), Stage((8, 12), blocks=1, expansions=(2,))),
    head=(8, 16),
    classes=4,
    channels=1,
)


def network(plan: Plan = PLAN, seed: int = 0) -> ElasticMobileNet:
    """Untrained, with statistics that differ from channel to channel."""
    torch.manual_seed(seed)
    net = ElasticMobileNet(plan)
    for _ in range(3):
        net(torch.randn(16, plan.channels, 8, 8))
    return net.eval()


def architectures(plan: Plan = PLAN) -> Iterator[dict[str, int]]:
    """The largest with each option of each decision, and some at random."""
    for name, options in plan.decisions.items():
        for option in options:
            yield {**plan.largest, name: option}
    draw = random.Random(0)
    for _ in range(5):
        yield {name: draw.choice(options) for name, options in plan.options.items()}


def batches(count: int = 256, *, labels: bool = True) -> list[Batch]:
    """Images whose class tells where they are bright."""
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0, :4].mean((1, 2)) > 0).long() + 2 * (x[:, 0, :, :4].mean((1, 2)) > 0).long()
    return [(x[i : i + 16], y[i : i + 16] if labels else None) for i in range(0, count, 16)]


def combined(plan: Plan = PLAN, choices: tuple[str, ...] = ("int4", "int8"), **options: Any) -> CombinedSpace:
    return CombinedSpace(plan, space_of(ElasticMobileNet(plan), choices, least=1, **options))


def every(space: CombinedSpace) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, space.counts))


def searched(net: ElasticMobileNet | None = None, data: Sequence[Batch] | None = None, **options: Any) -> Any:
    given = {"budget": Budget("bops", like="int4", share=0.6), "choices": ["int4", "int8"], **options}
    choices, budget = given.pop("choices"), given.pop("budget")
    given = {"epochs": 2, "explore": 0.4, "batch_size": 16, "rate": 5e-3, "progress": False, **given}
    return search_architecture(net or network(), data or batches(), choices, budget, **given)


# Plans


def test_a_plan_has_options_and_decisions() -> None:
    assert PLAN.options["blocks.2.expansion"] == (2,)
    assert "blocks.2.expansion" not in PLAN.decisions
    assert PLAN.smallest["stages.0.width"] == 4
    assert PLAN.middle["stages.0.width"] == 6
    assert not PLAN.only(PLAN.middle).decisions
    assert PLAN.only({"stem.width": 8}).largest == PLAN.largest
    assert PLAN.only({"stem.width": 4}).complete({**PLAN.largest, "stem.width": 4})["stem.width"] == 4


def test_the_plan_for_small_images_is_of_the_size_it_says() -> None:
    assert sum(CIFAR.macs(CIFAR.smallest, 32, 32).values()) < 3e6
    assert 1e7 < sum(CIFAR.macs(CIFAR.largest, 32, 32).values()) < 3e7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Plan((8,), (), (8,)), "expected at least 1"),
        (lambda: Plan((8,), (Stage((8,), blocks=0),), (8,)), "1 block or more"),
        (lambda: Plan((8, 4), (Stage((8,), blocks=1),), (8,)), "stem.width: options"),
        (lambda: Plan((8,), (Stage((8,), blocks=1, kernels=(2, 4)),), (8,)), "odd"),
        (lambda: PLAN.only({"stem.width": 5}), "stem.width: 5 is no option"),
        (lambda: PLAN.only({"stem": 4}), "no decision 'stem'"),
        (lambda: PLAN.complete({}), "lacks stem.width"),
        (lambda: network().choose({**PLAN.largest, "head.width": 9}), "head.width: 9"),
    ],
)
def test_plans_and_architectures_that_do_not_fit(wrong: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        wrong()


# Shared weights


def test_a_part_is_the_first_channels_and_the_center() -> None:
    weight = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    assert torch.equal(part_of(weight, (1, 2, 3, 3)), weight[:1, :2, 1:4, 1:4])
    assert part_of(weight, ()) is weight


@pytest.mark.parametrize("architecture", [*architectures()])
def test_the_extracted_network_computes_the_same_and_costs_what_the_plan_says(architecture: Architecture) -> None:
    net, x = network(), torch.randn(4, 1, 8, 8)
    plain = net.extract(architecture)
    assert {type(m) for m in plain.modules() if not list(m.children())} <= {
        *(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU6, nn.AdaptiveAvgPool2d, nn.Flatten)
    }
    net.choose(architecture)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-6)
    counted = {row.name: row.macs for row in lb.cost(plain, x).layers}
    assert counted == PLAN.macs(architecture, 8, 8)


def test_odd_sizes_are_counted_as_convolutions_make_them() -> None:
    x = torch.randn(1, 1, 11, 7)
    assert {r.name: r.macs for r in lb.cost(network().extract(PLAN.largest), x).layers} == PLAN.macs(
        PLAN.largest, 11, 7
    )


def test_gradients_reach_what_is_in_use_and_nothing_else() -> None:
    net = network().train()
    net.choose(PLAN.smallest)
    net(torch.randn(8, 1, 8, 8)).square().sum().backward()
    shapes = {f"{shape.name}.weight": shape.weight for shape in PLAN.layers(PLAN.smallest)}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        used = torch.zeros_like(parameter, dtype=torch.bool)
        part_of(used, shapes.get(name, (len(part_of(parameter, ())),)))[...] = True
        if name in shapes:
            assert not parameter.grad[~used].any(), name
    assert net.get_submodule("blocks.0.depthwise.conv").get_parameter("weight").grad[:4, :, 1:4, 1:4].any()  # type: ignore[index]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batchnorm_of_all_channels_is_torchs_own(momentum: float | None) -> None:
    ours, theirs = ElasticBatchNorm2d(6, momentum=momentum), nn.BatchNorm2d(6, momentum=momentum)
    for _ in range(3):
        x = torch.randn(4, 6, 3, 3)
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    before = ours.running_mean.clone()  # type: ignore[union-attr]
    ours(torch.randn(4, 2, 3, 3) + 5)
    assert (ours.running_mean[:2] != before[:2]).all()  # type: ignore[index]
    assert torch.equal(ours.running_mean[2:], before[2:])  # type: ignore[index]


def test_a_batchnorm_sees_all_processes() -> None:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        ours, whole = ElasticBatchNorm2d(6), ElasticBatchNorm2d(6)
        x = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(_whole_batch_norm(whole, x), ours(x))
        for a, b in zip(whole.buffers(), ours.buffers(), strict=True):
            torch.testing.assert_close(a, b)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("choice", ["int4", "mid2/int3", "e2m1", "float32/int8", "int8/float32"])
def test_formats_round_as_quantizers_that_follow(choice: str) -> None:
    space = combined(choices=(choice,))
    net, x = Combined(network(), space), torch.randn(16, 1, 8, 8)
    assignment = (0,) * len(space.counts)
    recipe = Recipe(space.recipe(assignment).rules, glue=None)
    student = lb.quantize(net.network.extract(PLAN.smallest), recipe, fold=False)
    lb.calibrate(student, [x], progress=False)
    families.begin(student, "absmax", x)
    net.select(assignment)
    with torch.no_grad():
        torch.testing.assert_close(net(x), student(x), rtol=1e-5, atol=1e-5)


# Costs


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_prices_are_what_the_student_costs(granularity: str) -> None:
    scales = lb.PerTensor() if granularity == "tensor" else lb.PerChannel()
    eight = Rule(match="stem.conv", weights=lb.Int(8), activations=lb.Int(8), granularity=scales)
    space = combined(choices=("int4/int8", "int8", "float32"), recipe=Recipe((eight,)), rule=Rule(granularity=scales))
    net, draw, x = network(), random.Random(0), torch.randn(2, 1, 8, 8)
    for _ in range(4):
        one = tuple(draw.randrange(count) for count in space.counts)
        student = lb.quantize(net.extract(space.architecture(one)), space.recipe(one), fold=False)
        lb.calibrate(student, [x], progress=False)
        cost = lb.cost(student, x)
        assert CombinedPrices("bops", space, (8, 8)).total(one) == cost.bops
        assert CombinedPrices("bytes", space, (8, 8)).total(one) == cost.weight_bytes


def tiny() -> CombinedSpace:
    """A space small enough to try all of it."""
    plan = Plan((4, 8), (Stage((4, 8), blocks=1, expansions=(1, 2)),), (8, 16), classes=4, channels=1)
    return combined(plan, ("int2", "int4", "int8"), granularity=r"(stem|blocks|head|linear).*")


@pytest.mark.parametrize("cost", ["bops", "bytes"])
def test_the_extent_of_prices(cost: Any) -> None:
    space = tiny()
    prices = CombinedPrices(cost, space, (8, 8))
    totals = [prices.total(one) for one in every(space)]
    assert prices.extent == (min(totals), max(totals))


def test_budgets_in_figures() -> None:
    space = tiny()
    limit = limit_of(Budget("bops", like="int4", share=0.5), space, (8, 8))
    macs = sum(space.plan.macs(space.plan.largest, 8, 8).values())
    assert limit.most == 0.5 * 16 * macs
    for budget, message in (
        (Budget("bops", most=10.0), "below"),
        (Budget("bops", most=1e12), "above"),
        (Budget("bops", like="int5"), "no choice of the space"),
        (Budget("latency", most=1.0), "one architecture"),
    ):
        with pytest.raises(RecipeError, match=message):
            limit_of(budget, space, (8, 8))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_solved_is_within_the_budget_and_nearly_the_best(seed: int) -> None:
    space, draw = tiny(), random.Random(seed)
    prices = CombinedPrices("bops", space, (8, 8))
    least, most = prices.extent
    limit = CombinedLimit(prices, math.exp(draw.uniform(math.log(1.1 * least), math.log(0.9 * most))))
    losses = [sorted((draw.expovariate(5) for _ in range(count)), reverse=True) for count in space.counts]

    def loss(one: tuple[int, ...]) -> float:
        return sum(row[chosen] for row, chosen in zip(losses, one, strict=True))

    best = min(loss(one) for one in every(space) if limit.holds(one))
    worst = max(map(loss, every(space)))
    near = (0,) * len(losses)
    found = within(solve(losses, limit, solve(losses, limit, near)), losses, limit)
    assert found is not None
    assert limit.holds(found)
    assert loss(found) <= best + 0.2 * (worst - best)


def test_within_changes_only_what_is_free() -> None:
    space = tiny()
    losses = [[0.0] * count for count in space.counts]
    dearest = tuple(count - 1 for count in space.counts)
    prices = CombinedPrices("bops", space, (8, 8))
    own = range(len(space.plan.decisions))
    found = within(dearest, losses, CombinedLimit(prices, 0.5 * prices.extent[1]), own)
    assert found is not None
    assert found[len(own) :] == dearest[len(own) :]
    assert within(dearest, losses, CombinedLimit(prices, prices.extent[0]), own) is None


# Guides


def test_a_policy_of_decisions_with_different_numbers_of_choices() -> None:
    policy = Policy(3, (2, 4, 1), steps=60, controller=Controller(rate=0.1, delay=0.2, samples=2))
    generator = torch.Generator().manual_seed(0)
    seen: list[set[int]] = [set(), set(), set()]
    for _ in range(60):
        drawn = [policy.draw(generator) for _ in range(2)]
        policy.update(drawn, [float(one[0] == 1) + float(one[1] == 3) for one in drawn])
        for options, chosen in zip(seen, zip(*drawn, strict=True), strict=True):
            options.update(chosen)
    assert seen == [{0, 1}, {0, 1, 2, 3}, {0}]
    assert policy.best() == (1, 3, 0)
    p = policy.probabilities()
    assert torch.equal(p > 0, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool())
    assert [len(row) for row in unlikeliness(policy)] == [2, 4, 1]
    assert Policy(3, (2, 4, 1), steps=60, controller=Controller(), start=(1, 0, 0)).best() == (1, 0, 0)


def test_choices_that_do_not_exist_change_no_gradient() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wider = torch.cat([logits, torch.full((2, 2), -math.inf)], 1)
    for weight in (0.0, 0.5):
        losses = [policy_loss(one, [(0, 2), (1, 1)], [0.3, -0.2], weight) for one in (logits, wider)]
        gradients = [torch.autograd.grad(one, [logits], retain_graph=True)[0] for one in losses]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


class Known(nn.Module):
    """A network whose loss is known: that of what is selected, times what drifts and what the batch does."""

    def __init__(self, losses: list[list[float]], noise: float) -> None:
        super().__init__()
        self.losses, self.noise, self.draw = losses, noise, random.Random(0)
        self.selected: tuple[int, ...] = ()

    def select(self, assignment: tuple[int, ...]) -> None:
        self.selected = assignment

    def total(self, assignment: tuple[int, ...]) -> float:
        return sum(row[chosen] for row, chosen in zip(self.losses, assignment, strict=True))

    def loss(self, net: nn.Module, batch: Tensor) -> Tensor:
        return batch * math.exp(self.total(self.selected) + self.draw.gauss(0, self.noise))


@pytest.mark.parametrize("by", ["effects", "policy"])
def test_the_best_of_a_known_problem_is_found_within_the_budget(by: Guide) -> None:
    space = tiny()
    prices, draw = CombinedPrices("bops", space, (8, 8)), random.Random(1)
    limit = CombinedLimit(prices, 0.25 * prices.extent[1])
    losses = [sorted((draw.expovariate(5) for _ in range(count)), reverse=True) for count in space.counts]
    known, steps = Known(losses, noise=0.03), 250
    controller = Controller(rate=0.03, samples=2, relative=True, delay=0.1)
    guide = Effects(limit) if by == "effects" else Policy(len(space.counts), space.counts, steps, controller)
    explorer = Explorer(cast(Any, known), guide, cast(Any, known), limit, seed=0, folder=None)
    for step in range(steps):
        batch = torch.tensor((1 + 3 * math.exp(-step / 50)) * draw.lognormvariate(0, 0.1))
        explorer.learn(explorer.loss(explorer.net, batch))
    candidates = candidates_of(guide, limit, seed=0)
    assert all(map(limit.holds, candidates.values()))
    totals = sorted(known.total(one) for one in every(space) if limit.holds(one))
    first = known.total(candidates[by])
    share = sum(total < first - 1e-12 for total in totals) / len(totals)
    assert share <= (0.02 if by == "effects" else 0.1)
    if by == "effects":
        assert all(map(limit.holds, (sample.assignment for sample in explorer.samples)))


@pytest.mark.slow
def test_effects_find_in_600_steps_what_a_policy_does_not() -> None:
    """The claim in `effects`: how much of the way from random assignments to the best they make."""
    space = combined(CIFAR, ("int2", "int4", "int8"), granularity=r"(blocks[.]\d+)[.].*")
    limit = limit_of(Budget("bops", like="int4", share=0.4), space, (32, 32))
    draw, steps = random.Random(0), 600
    losses = [sorted((draw.expovariate(20) for _ in range(count)), reverse=True) for count in space.counts]
    known = Known(losses, noise=0.03)
    indifferent = [[0.0] * count for count in space.counts]
    by_chance = [within(tuple(draw.randrange(n) for n in space.counts), indifferent, limit) for _ in range(20)]
    chance = sum(known.total(one) for one in by_chance if one) / len(by_chance)
    best = within(tuple(count - 1 for count in space.counts), losses, limit)
    assert best is not None
    controllers = [Controller(), Controller(rate=0.05, samples=2, relative=True)]
    policies = [Policy(len(space.counts), space.counts, steps, controller) for controller in controllers]
    shares = []
    guides: list[Effects | Policy] = [Effects(limit), *policies]
    for guide in guides:
        explorer = Explorer(cast(Any, known), guide, cast(Any, known), limit, seed=0, folder=None)
        for step in range(steps):
            batch = torch.tensor((0.5 + 3 * math.exp(-3 * step / steps)) * draw.lognormvariate(0, 0.1))
            explorer.learn(explorer.loss(explorer.net, batch))
        found = next(iter(candidates_of(guide, limit, seed=0).values()))
        shares.append((chance - known.total(found)) / (chance - known.total(best)))
    assert shares[0] > 0.85, shares
    assert max(shares[1:]) < 0.7


def test_effects_are_those_of_the_problem() -> None:
    space = tiny()
    prices, draw = CombinedPrices("bops", space, (8, 8)), random.Random(0)
    effects = Effects(CombinedLimit(prices, prices.extent[1]))
    theta = [[draw.uniform(0, 0.2) for _ in range(count)] for count in space.counts]
    for _ in range(300):
        pair = [tuple(draw.randrange(count) for count in space.counts) for _ in range(2)]
        effects.learn(pair, [math.exp(sum(t[i] for t, i in zip(theta, one, strict=True))) for one in pair], [1.0, 1.0])
    for found, true in zip(effects.losses(), theta, strict=True):
        for i in range(len(true)):
            assert found[i] - found[0] == pytest.approx(true[i] - true[0], abs=0.01)
    with pytest.raises(TrainingError, match="losses of two"):
        effects.learn(pair, [1.0, math.nan], [1.0, 1.0])


# Without a teacher


def test_without_a_teacher_labels_judge() -> None:
    data, model = batches(64), network()
    objective = Objective(model, None, "labels", 4.0, (), data)
    labels = torch.cat([cast(tuple[Tensor, Tensor], batch)[1] for batch in data])
    with torch.no_grad():
        hits = torch.cat([model(cast(tuple[Tensor, Tensor], b)[0]).argmax(1) for b in data]) == labels
    assert objective.score(model) == objective.agreement(model) == pytest.approx(float(hits.float().mean()))
    with pytest.raises(RecipeError, match="needs a teacher"):
        Objective(model, None, "kl", 4.0, (), data)
    with pytest.raises(DataError, match="without labels"):
        Objective(model, None, "labels", 4.0, (), batches(64, labels=False))


# The verb


@pytest.fixture(scope="module")
def found() -> tuple[nn.Module, JointSearch]:
    return cast("tuple[nn.Module, JointSearch]", searched())


def test_what_is_found_is_a_student_within_the_budget(found: tuple[nn.Module, JointSearch]) -> None:
    student, result = found
    (name, most), x = result.budget, torch.randn(2, 1, 8, 8)
    cost = lb.cost(student, x)
    assert name == "bops"
    assert cost.bops == result.found.costs["bops"] <= most
    assert cost.weight_bytes == result.found.costs["bytes"]
    assert result.found in result.candidates
    assert result.found.loss == min(one.loss for one in result.candidates)
    assert all(one.costs["bops"] <= most for one in result.candidates)
    assert isinstance(result.shared, MobileNet)
    assert result.architecture == PLAN.complete(result.architecture)
    assert {row.name for row in lb.coverage(student).quantized} == set(result.found.formats)
    assert set(result.weighed) == {*PLAN.decisions, *result.found.formats}
    assert len(result.samples) == 2 * 12  # pairs
    assert "joint search by effects: 24 assignments tried" in str(result)


def test_what_is_found_runs_in_onnxruntime(found: tuple[nn.Module, JointSearch], tmp_path: Path) -> None:
    student, x = found[0], torch.randn(4, 1, 8, 8)
    exported = lb.export_onnx(student, tmp_path / "model.onnx", x)
    lb.verify(exported, [x], progress=False)
    session = onnxruntime.InferenceSession(exported.path)
    (scores,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert (torch.from_numpy(scores).argmax(1) == student(x).argmax(1)).all()


def test_the_network_stays_as_it_was() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    searched(net, epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(layer.rule is None for layer in net.layers.values())


def test_formats_alone_are_searched_in_one_architecture() -> None:
    plan = PLAN.only(PLAN.middle)
    student, result = searched(network(plan), budget=Budget("bops", like="int8", share=0.5))
    assert result.architecture == PLAN.middle
    assert lb.cost(student, torch.randn(1, 1, 8, 8)).bops <= result.budget[1]
    assert set(result.weighed) == set(result.found.formats)


def test_an_architecture_alone_is_searched_in_one_format() -> None:
    _, result = searched(choices=["int8"], budget=Budget("bytes", like="int8", share=0.5), by="policy", epochs=1)
    assert set(result.found.formats.values()) == {"int8"}
    assert result.by == "policy"
    assert result.weighed["stem.width"]["4"] + result.weighed["stem.width"]["8"] == pytest.approx(1)


def test_batches_of_any_form_and_a_teacher() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()

    class ByName(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, teacher(x))

    images = [cast(tuple[Tensor, Tensor], batch)[0] for batch in batches(96)]
    named = [{"x": x} for x in images]
    first, second = (searched(data=data, teacher=ByName().eval(), epochs=1, explore=1.0)[1] for data in (images, named))
    assert first.samples == second.samples
    assert first.found == second.found


def test_what_learns_better_is_chosen() -> None:
    """Of two stems that fit the budget, one channel carries too little of four classes."""
    plan = Plan((1, 12), (Stage((8,), blocks=1, expansions=(2,), kernels=(5,)),), (32,), classes=4, channels=1)
    budget = Budget("bops", like="int8", share=0.9)
    _, result = searched(ElasticMobileNet(plan), batches(512), budget=budget, epochs=4, explore=0.7, rate=1e-2)
    assert result.architecture["stem.width"] == 12


class Killed(Exception):
    pass


def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    calls = 0
    at = -1

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise Killed
        images, labels = cast(tuple[Tensor, Tensor], batch)
        return images + 0.1 * torch.randn(images.shape, generator=generator), labels

    def run(name: str) -> Any:
        return searched(augment=augment, folder=tmp_path / name, save_every=3)

    whole, expected = run("whole")
    for at in (7, 19):  # a step of the exploring phase, and one of the fixed phase
        calls = 0
        with pytest.raises(Killed):
            run(f"killed at {at}")
        student, result = run(f"killed at {at}")
        assert result.samples == expected.samples, at
        assert result.candidates == expected.candidates, at
        assert result.weighed == expected.weighed, at
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, student.state_dict()[name]), (at, name)
    again, read = run("whole")
    assert read.found == expected.found
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())
    with pytest.raises(TrainingError, match="another run"):
        searched(network(seed=1), augment=augment, folder=tmp_path / "whole", save_every=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": Budget("bops", most=10.0)}, RecipeError, "below"),
        ({"budget": Budget("bops", most=1e12)}, RecipeError, "above"),
        ({"budget": Budget("file", most=1e3)}, RecipeError, "one architecture"),
        ({"choices": []}, RecipeError, "choices are empty"),
        ({"choices": ["int99x"]}, FormatError, "int99x"),
        ({"choices": ["uint4", "int8"]}, (FormatError, LayerError), "uint4"),
        ({"choices": ["nvfp4", "int8"]}, RecipeError, "leave block formats out"),
        ({"rule": Rule(granularity=lb.PerGroup(4))}, RecipeError, "groups do not divide"),
        (
            {"net": network(PLAN.only(PLAN.middle)), "choices": ["int8"]},
            RecipeError,
            "and one format",
        ),
        ({"net": nn.Linear(2, 2)}, RecipeError, "has one architecture"),
        ({"loss": "kl"}, RecipeError, "needs a teacher"),
        ({"teacher": nn.Linear(2, 2)}, TrainingError, "train mode"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()}, TrainingError, "same batch"),
        ({"data": batches(labels=False)}, DataError, "without labels"),
        ({"data": [torch.randn(8, 64) for _ in range(4)]}, DataError, "expected images"),
        ({"by": "luck"}, RecipeError, "by 'luck'"),
        ({"explore": 0.0}, RecipeError, "explore=0.0"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        searched(**options)


@pytest.mark.parametrize("by", ["effects", "policy"])
def test_a_loss_that_is_not_finite_is_told(by: Guide) -> None:
    data = batches()
    cast(tuple[Tensor, Tensor], data[3])[0][:] = math.nan
    with pytest.raises(TrainingError, match=r"reward of step|losses of two"):
        searched(data=data, by=by, held_out=batches(16))
