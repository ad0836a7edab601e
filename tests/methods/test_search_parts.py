"""The parts of a search against closed forms and brute force: spaces, prices, knapsack, policy, surrogate."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowbit import allocation
from lowbit.allocation import Budget, Limit, Prices
from lowbit.costs import MeasuredCosts
from lowbit.errors import FormatError, RecipeError, TrainingError
from lowbit.formats import Int, MidRise
from lowbit.methods.search.explain import reasons_of
from lowbit.methods.search.policy import Controller, Policy, entropy_weight, policy_loss, reward_of
from lowbit.methods.search.prices import limits_of, measured
from lowbit.methods.search.space import SPACES, Choice, Space, space_of
from lowbit.methods.search.surrogate import Surrogate
from lowbit.recipe import Recipe, Rule


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    ).eval()


# Spaces


def test_a_choice_is_written_as_it_is_read() -> None:
    for text in ("int4", "mid2/int2", "int4/int8", "float32", "int8/float32", "bf16"):
        assert str(Choice.parse(text)) == text
    assert Choice.parse("mid2/int2") == Choice(MidRise(2), Int(2))
    with pytest.raises(FormatError, match="expected one format, or two"):
        Choice.parse("int4/int4/int4")
    for names in SPACES.values():
        assert len({Choice.parse(name) for name in names}) == len(names)


def test_layers_that_the_recipe_names_are_not_searched() -> None:
    space = space_of(network(), ["int4", "int8"], recipe=Recipe((Rule("0", Int(8), Int(8)),)))
    assert space.layers == ("2", "5")
    resolved = space.recipe_of((1, 0)).resolve(["0", "2", "5"])
    formats = {name: (rule.weights, rule.activations) for name, rule in resolved.items() if rule}
    assert formats == {"0": (Int(8), Int(8)), "2": (Int(8), Int(8)), "5": (Int(4), Int(4))}
    assert space.assignment(space.names((1, 0))) == (1, 0)


def test_granularity() -> None:
    def decisions(granularity: str | list[str]) -> list[tuple[str, ...]]:
        return [d.layers for d in space_of(network(), "fliqs-s-int", granularity=granularity).decisions]

    assert decisions("layer") == [("0",), ("2",), ("5",)]
    assert decisions("model") == [("0", "2", "5")]
    assert decisions("[02]") == [("0", "2"), ("5",)]
    assert decisions(["([02])"]) == [("0",), ("2",), ("5",)]  # groups tell layers apart
    with pytest.raises(RecipeError, match="'x' matches no layer; names are 0, 2, 5"):
        decisions("x")
    with pytest.raises(RecipeError, match="expected 'layer', 'model' or regular expressions"):
        decisions("(")


def test_a_space_that_cannot_be_searched() -> None:
    with pytest.raises(RecipeError, match="at least; give more formats"):
        space_of(network(), ["int4", "int4"])
    with pytest.raises(RecipeError, match="the runtime refuses e2m1fn: no kernel"):
        space_of(network(), ["int4", "e2m1"], refused={"e2m1fn": "no kernel"})
    with pytest.raises(RecipeError, match="no layer of Sequential is left to search: the recipe names all 3"):
        space_of(network(), ["int4", "int8"], recipe=Recipe.uniform("int8", "int8"))


# Prices


def space(decisions: int = 3, choices: tuple[str, ...] = ("int2", "int4", "int8")) -> Space:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(decisions)))
    return space_of(net, choices)


def test_budgets_that_make_no_sense() -> None:
    prices = Prices("bops", ((4.0, 16.0, 64.0),) * 3, 10.0)
    assert prices.extent == (22, 202)

    def limit(**kwargs: object) -> float:
        (found,) = limits_of([Budget(**kwargs)], space(), {"bops": prices})  # type: ignore[arg-type]
        return found.most

    assert limit(most=100.0) == 100
    assert limit(like="int4") == 58
    assert limit(like="int4", share=0.5) == 29
    with pytest.raises(RecipeError, match="bops: 5 is below 22, the cheapest assignment; raise it"):
        limit(most=5.0)
    with pytest.raises(RecipeError, match="bops: 500 is above 202, the dearest assignment"):
        limit(most=500.0)
    with pytest.raises(RecipeError, match=r"like 'int3' is no choice of the space \(int2, int4, int8\)"):
        limit(like="int3")
    with pytest.raises(RecipeError, match="budget latency: nothing was measured; pass measured_costs"):
        limit(cost="latency", most=1.0)
    with pytest.raises(RecipeError, match="give either most, a figure, or like"):
        Budget("bops")
    with pytest.raises(RecipeError, match="cost 'flops' is unknown; expected bops, bytes, latency, file"):
        Budget("flops", most=1)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="share is nan, expected a positive number"):
        Budget(like="int4", share=math.nan)


def test_measured_prices_carry_the_rest_of_the_network() -> None:
    layers, choices = ("0", "1", "2"), ("int2", "int4", "int8")
    times = {layer: {c: float(n) for n, c in enumerate(choices, 1)} for layer in layers}
    found = MeasuredCosts(
        times,
        {layer: dict.fromkeys(choices, 7) for layer in layers},
        {"int2": 3.0, "int4": 6.0, "int8": 9.0},
        {},
        {},
        {},
    )
    prices = measured(space(), found)
    for assignment in ((0, 0, 0), (0, 1, 2), (2, 2, 2)):
        names = dict(zip(layers, (choices[c] for c in assignment), strict=True))
        assert prices["latency"].total(assignment) == pytest.approx(found.total_ms(names))
    assert prices["file"].total((0, 1, 2)) == 21
    with pytest.raises(RecipeError, match="the measured costs lack '3' in int2"):
        measured(space(4), found)


# Knapsack


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 4), st.integers(1, 2))
def test_the_knapsack_is_that_of_brute_force(seed: int, decisions: int, choices: int, budgets: int) -> None:
    draw = random.Random(seed)
    losses = [[draw.random() * 10.0 ** draw.randint(-4, 1) for _ in range(choices)] for _ in range(decisions)]
    tables = [
        tuple(tuple(float(draw.randint(1, 60)) for _ in range(choices)) for _ in range(decisions))
        for _ in range(budgets)
    ]
    prices = [Prices("bops", table, 5.0) for table in tables]
    limits = [Limit(p, draw.uniform(*p.extent)) for p in prices]
    fitting = [a for a in itertools.product(range(choices), repeat=decisions) if all(x.holds(a) for x in limits)]
    if not fitting:
        with pytest.raises(RecipeError, match="no assignment fits"):
            allocation.solve(losses, limits)
        return
    best = min(sum(row[c] for row, c in zip(losses, a, strict=True)) for a in fitting)
    found = allocation.solve(losses, limits)
    assert all(limit.holds(found) for limit in limits)
    assert sum(row[c] for row, c in zip(losses, found, strict=True)) == pytest.approx(
        best, abs=1e-9 * sum(map(max, losses))
    )


def test_a_budget_met_exactly_and_not_by_a_hair_more() -> None:
    prices = Prices("bops", ((1.0, 1e9),) * 4, 0.0)
    for most, bought in ((2e9 + 2, 2), (2e9 + 2 - 1e-3, 1), (4e9, 4)):
        found = allocation.solve([[1.0, 0.0]] * 4, [Limit(prices, most)])
        assert sum(found) == bought


def test_of_equal_losses_the_cheapest() -> None:
    prices = Prices("bops", ((4.0, 16.0, 64.0),) * 3, 0.0)
    assert allocation.solve([[1.0, 0.5, 0.5]] * 3, [Limit(prices, 192.0)]) == (1, 1, 1)


def test_the_front_gets_better_as_it_gets_dearer() -> None:
    draw = random.Random(1)
    prices = Prices("bops", tuple((float(m), 4.0 * m, 16.0 * m) for m in (3, 1, 4, 1, 5)), 0.0)
    losses = [sorted((draw.random() for _ in range(3)), reverse=True) for _ in range(5)]
    points = allocation.front(losses, prices)
    costs = [prices.total(a) for a in points]
    values = [sum(row[c] for row, c in zip(losses, a, strict=True)) for a in points]
    assert costs == sorted(costs)
    assert values == sorted(values, reverse=True)
    assert (points[0], points[-1]) == ((0,) * 5, (2,) * 5)
    assert len(points) > 5


def test_a_loss_that_is_not_finite() -> None:
    with pytest.raises(RecipeError, match="a loss is not finite"):
        allocation.solve([[math.nan, 0.0]], [])


# The published controller


@pytest.mark.parametrize(
    ("how", "beta", "expected"), [
        ("absolute", 2.0, (-0.5 - 2 * 0.25, -0.5 - 2 * 0.25)),
        ("excess", 2.0, (-0.5, -0.5 - 2 * 0.25)),
        ("power", 1.0, (-0.5 * 0.75, -0.5 * 1.25)),
        ("power-excess", 2.0, (-0.5, -0.5 * 1.25**2)),
    ],
)  # fmt: skip
def test_rewards(how: str, beta: float, expected: tuple[float, float]) -> None:
    for ratio, reward in zip((0.75, 1.25), expected, strict=True):
        assert reward_of(-0.5, ratio, how, beta) == pytest.approx(reward)  # type: ignore[arg-type]


def test_the_entropy_schedule() -> None:
    def at(step: int, schedule: str = "cosine") -> float:
        return entropy_weight(step, 100, 20, 0.5, schedule)  # type: ignore[arg-type]

    assert at(0) == at(19) == 0
    assert at(20) == 0
    assert at(60) == pytest.approx(0.5 * (1 - math.cos(math.pi / 2)) / 2)
    assert at(40) == pytest.approx(0.5 * (1 - math.cos(math.pi / 4)) / 2)
    assert at(100) == at(1000) == 0.5
    assert [at(60, name) for name in ("linear", "constant", "heaviside")] == pytest.approx([0.25, 0.5, 0.5])
    assert at(49, "heaviside") == 0


def test_the_gradient_of_reinforce() -> None:
    logits = torch.tensor([[0.1, 0.7, -0.4], [1.0, 0.0, 0.3]], dtype=torch.float64, requires_grad=True)
    drawn, advantage, weight = (2, 0), 1.7, 0.3
    (gradient,) = torch.autograd.grad(policy_loss(logits, [drawn], [advantage], weight), [logits])
    p = logits.detach().softmax(1)
    one = nn.functional.one_hot(torch.tensor(drawn), 3).double()
    entropy = -(p * p.log()).sum(1, keepdim=True)
    expected = -advantage * (one - p) / 2 + weight * (-p * (p.log() + entropy)) / 2
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_the_policy_rests_then_moves_by_adam_and_keeps_its_baseline() -> None:
    policy = Policy(2, 3, steps=10, controller=Controller(rate=0.1, delay=0.2, decay=0.9, entropy=0.0))
    assert torch.equal(policy.logits, torch.full((2, 3), 0.5))
    policy.update([(0, 1)], [1.0])
    policy.update([(0, 1)], [2.0])
    assert torch.equal(policy.logits, torch.full((2, 3), 0.5))  # delay
    assert float(policy.baseline) == pytest.approx(0.9 * 1.0 + 0.1 * 2.0)
    policy.update([(2, 1)], [5.0])
    moved = policy.logits - 0.5
    assert torch.allclose(moved.abs(), torch.full((2, 3), 0.1), atol=1e-5)  # Adam's first step is its rate
    assert torch.equal(moved > 0, torch.tensor([[False, False, True], [False, True, False]]))


def test_several_samples_are_each_held_against_the_others() -> None:
    policy = Policy(1, 2, steps=10, controller=Controller(samples=3))
    assert policy._advantages([1.0, 2.0, 6.0]) == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    assert math.isnan(float(policy.baseline))


def test_a_policy_goes_on_from_its_state() -> None:
    def run(steps: int, policy: Policy) -> Policy:
        for _ in range(steps):
            at = int(policy.step)
            a = policy.draw(torch.Generator().manual_seed(at))
            policy.update([a], [-float(sum(a)) - 0.1 * at])
        return policy

    def new() -> Policy:
        return Policy(4, 3, steps=40, controller=Controller(rate=0.05, delay=0.1))

    whole, half = run(30, new()), run(15, new())
    resumed = new()
    resumed.load_state_dict(half.state_dict())
    kept = half.state_dict()
    assert torch.equal(run(15, resumed).logits, whole.logits)
    assert kept["_extra_state"]["state"][0]["step"] == half.state_dict()["_extra_state"]["state"][0]["step"]
    assert not torch.equal(whole.logits, new().logits)


def test_the_policy_finds_a_known_best_assignment() -> None:
    best = (2, 0, 1, 2)
    policy = Policy(4, 3, steps=800, controller=Controller(rate=0.05, delay=0.1, decay=0.9))
    for step in range(800):
        drawn = policy.draw(torch.Generator().manual_seed(step))
        policy.update([drawn], [float(sum(a == b for a, b in zip(drawn, best, strict=True)))])
    assert policy.best() == best
    assert float(policy.probabilities().amax(1).min()) > 0.95  # the entropy is gone


def test_a_policy_that_starts_somewhere_draws_there() -> None:
    policy = Policy(50, 3, steps=10, controller=Controller(), start=(1,) * 50)
    assert policy.probabilities()[:, 1].tolist() == pytest.approx([0.6] * 50)
    assert 20 < sum(c == 1 for c in policy.draw(torch.Generator().manual_seed(0))) < 40


def test_a_reward_that_is_not_finite_changes_nothing() -> None:
    policy = Policy(2, 2, steps=4, controller=Controller(delay=0.0))
    with pytest.raises(TrainingError, match="the reward of step 1 is nan; lower the learning rate"):
        policy.update([(0, 0)], [math.nan])
    assert int(policy.step) == 0
    assert math.isnan(float(policy.baseline))


def test_controllers_that_make_no_sense() -> None:
    with pytest.raises(RecipeError, match="schedule 'sine' is unknown; expected cosine, linear"):
        Controller(schedule="sine")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="expected rate > 0"):
        Controller(samples=0)
    with pytest.raises(RecipeError, match="would reward cost"):
        Controller(reward="power", beta=-1.0)


# The surrogate


def problem(seed: int = 0) -> tuple[Tensor, tuple[Limit, ...]]:
    """True effects on log loss, `[6, 3]`, and a budget for two dear choices in all."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(6, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.8, 0.2, 0.05])
    return theta, (Limit(Prices("bops", ((1.0, 4.0, 16.0),) * 6, 0.0), 40.0),)


def test_the_surrogate_starts_at_the_sensitivities() -> None:
    theta, limits = problem()
    table = tuple(tuple(row) for row in theta.tolist())
    start = allocation.solve(table, limits)
    guide = Surrogate(table, start, limits)
    whole = sum(row[c] for row, c in zip(table, start, strict=True))
    expected = torch.log1p((theta - theta[torch.arange(6), torch.tensor(start)][:, None]) / whole)
    assert torch.allclose(guide.mean, expected)


@pytest.mark.slow
def test_the_surrogate_corrects_wrong_sensitivities_within_the_budget() -> None:
    gaps = []
    for seed in (1, 2, 4):
        theta, limits = problem(seed)
        table = tuple(tuple(row) for row in theta.flip(0).tolist())  # those of other layers
        start = allocation.solve(table, limits)
        guide = Surrogate(table, start, limits)
        noise = torch.Generator().manual_seed(seed)

        def loss(assignment: tuple[int, ...], theta: Tensor = theta) -> float:
            return float(theta[torch.arange(6), torch.tensor(assignment)].sum())

        for step in range(200):
            drawn = guide.draw(torch.Generator().manual_seed(step))
            assert limits[0].holds(drawn)
            drift = -0.004 * step
            guide.learn(
                [drawn], [math.exp(loss(drawn) + drift + 0.05 * float(torch.randn((), generator=noise)))], [1.0]
            )
        best = loss(allocation.solve(theta.tolist(), limits))
        gaps.append((loss(start) - best, loss(guide.best()) - best))
    wrong, corrected = (sum(gap) for gap in zip(*gaps, strict=True))
    assert wrong > 0.3
    assert corrected < wrong / 3


def test_a_surrogate_goes_on_from_its_state() -> None:
    theta, limits = problem()
    table = tuple(tuple(row) for row in theta.tolist())
    start = allocation.solve(table, limits)
    one, other = (Surrogate(table, start, limits) for _ in range(2))
    one.learn([start], [0.3], [1.0])
    other.load_state_dict(one.state_dict())
    for guide in (one, other):
        guide.learn([(0,) * 6], [0.7], [1.0])
    assert torch.equal(one.mean, other.mean)
    assert one.draw(torch.Generator().manual_seed(3)) == other.draw(torch.Generator().manual_seed(3))
    with pytest.raises(TrainingError, match="the loss of an assignment is inf"):
        one.learn([start], [math.inf], [1.0])


# Reasons


def test_reasons_name_what_else_was_possible() -> None:
    found = (0, 2, 1)
    limit = Limit(Prices("bops", ((4.0, 16.0, 64.0),) * 3, 0.0), 84.0)
    losses = [[0.1, 0.05, 0.04], [9.0, 3.0, 0.1], [1.0, 0.2, 0.15]]
    assert allocation.solve(losses, [limit]) == found
    first, second, third = reasons_of(space(), found, losses, [limit])
    assert first.choice == "int2"
    assert "int4 instead would be +14 % of the bops budget and -12 % of the loss;" in first.sentence
    assert "budget and +" not in first.sentence
    assert "int4 instead would be -57 % of the bops budget and +725 % of the loss;" in second.sentence
    assert second.share == pytest.approx(64 / 84)
    assert "int2 instead" in third.sentence
    assert "int8 instead" in third.sentence
    assert third.sentence.endswith("elsewhere a percent of bops is worth 14 % of the loss.")


def test_reasons_tell_what_every_budget_would_say() -> None:
    bops = Limit(Prices("bops", ((4.0, 16.0, 64.0),) * 3, 0.0), 84.0)
    size = Limit(Prices("bytes", ((2.0, 4.0, 8.0),) * 3, 10.0), 30.0)
    reason, *_ = reasons_of(space(), (1, 1, 1), [[0.3, 0.2, 0.1]] * 3, [bops, size])
    told = "int2 instead would be -14 % of the bops budget, -6.7 % of the bytes budget and +17 % of the loss"
    assert told in reason.sentence


def test_dearer_choices_are_no_worse_than_cheaper_ones() -> None:
    theta, limits = problem()
    guide = Surrogate(tuple(map(tuple, theta.tolist())), (1,) * 6, limits)
    for row in guide._ordered(theta.flip(1)):  # as if more bits were worse
        assert row[0] >= row[1] >= row[2]
    falling = theta.cummin(1).values - torch.tensor([0.0, 0.1, 0.2])
    assert torch.allclose(torch.tensor(guide._ordered(falling)), falling.float())
