"""Families of quantizers against their papers' formulas, and EWGS's delta against the exact Hessian."""

from __future__ import annotations

import copy
import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lowbit import families
from lowbit.errors import CalibrationError, LayerError, RecipeError
from lowbit.families import Curvature, FamilyName
from lowbit.formats import Int, MidRise
from lowbit.granularity import PerTensor
from lowbit.layers import Quantized
from lowbit.quantization import activation_quantizers, calibrate, freeze, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe, Rule

FAMILIES: tuple[FamilyName, ...] = get_args(FamilyName)
INT3 = Int(3)
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def calibrated(weights: Int | MidRise = INT3, activations: Int = INT3) -> nn.Module:
    rule = Rule(weights=weights, activations=activations, granularity=PerTensor())
    student = quantize(network(), Recipe((rule,), glue=None))
    calibrate(student, [X], progress=False)
    return student


def parts(student: nn.Module) -> tuple[Quantizer, Quantizer, Quantizer]:
    """The first layer's weight quantizer, the quantizer of the signed input, and the one behind the ReLU."""
    layer = student.get_submodule("0")
    assert isinstance(layer, Quantized)
    assert isinstance(layer.weight_quantizer, Quantizer)
    signed, unsigned = activation_quantizers(student).values()
    return layer.weight_quantizer, signed, unsigned


def begun(family: FamilyName, *, exact: bool = False, weights: Int | MidRise = INT3) -> nn.Module:
    student = calibrated(weights)
    families.begin(student, family, X, exact=exact)
    return student.train()


def high(quantizer: Quantizer) -> float:
    return float(quantizer.bounds()[1].max())


# Starts


def test_lsq_starts_at_twice_the_mean_magnitude() -> None:
    weight, _, unsigned = parts(begun("lsq", exact=True))
    first = network()[0].weight.detach()  # type: ignore[index]
    assert weight.scale.item() == pytest.approx(float(2 * first.abs().mean() / math.sqrt(3)))
    assert weight.gradient.share == pytest.approx((48 * 3) ** -0.5)
    assert unsigned.gradient.share == pytest.approx((8 * 7) ** -0.5)  # of the numbers of one sample


def test_ewgs_starts_at_three_deviations() -> None:
    student = begun("ewgs", exact=True, weights=MidRise(2))
    weight, signed, unsigned = parts(student)
    first = network()[0].weight.detach()  # type: ignore[index]
    assert high(weight) == pytest.approx(3 * float(first.std()))
    assert float(weight.bounds()[0]) == pytest.approx(-3 * float(first.std()))
    low, top = float(signed.bounds()[0]), high(signed)
    assert top - low == pytest.approx(3 * float(X.std()) / math.sqrt(1 - 2 / math.pi) - float(X.min()), rel=1e-5)
    assert float(unsigned.bounds()[0]) == 0


@pytest.mark.parametrize(("family", "end"), [("pact", 6.0), ("dorefa", 1.0)])
def test_pact_and_dorefa_start_at_a_constant(family: FamilyName, end: float) -> None:
    _, signed, unsigned = parts(begun(family, exact=True))
    assert high(unsigned) == pytest.approx(end)
    assert float(unsigned.bounds()[0]) == 0
    assert high(signed) - float(signed.bounds()[0]) == pytest.approx(2 * end)


@pytest.mark.parametrize("family", ["fixed", "lsq", "ewgs"])
def test_a_calibrated_start_changes_nothing_yet(family: FamilyName) -> None:
    before = calibrated()(X)
    assert torch.equal(begun(family)(X), before)


def test_absmax_follows_each_tensor_that_comes() -> None:
    student = begun("absmax")
    weight, signed, unsigned = parts(student)
    for quantizer, x in ((signed, torch.tensor([-2.0, 1.0, 4.0])), (unsigned, torch.tensor([0.0, 1.0, 30.0]))):
        y = quantizer(x)
        assert high(quantizer) - float(quantizer.bounds()[0]) == pytest.approx(float(x.max() - x.min()), rel=1e-5)
        assert float((y - x).abs().max()) <= float(quantizer.scale) / 2 + 1e-6
    layer = next(m for m in student.modules() if isinstance(m, Quantized))
    with torch.no_grad():
        layer.layer.get_parameter("weight").mul_(3)
    families.settle(student)
    assert torch.equal(weight.scale, weight.absmax_scale(layer.layer.get_parameter("weight")))
    assert not any(quantizer.follows for quantizer in (weight, signed, unsigned))


# Gradients in closed form: of the quantizer alone, off ties


def gradients(quantizer: Quantizer, x: Tensor, g: Tensor) -> tuple[Tensor, float]:
    x = x.clone().requires_grad_()
    quantizer.scale.grad = None
    torch.autograd.backward(quantizer(x), g)
    assert x.grad is not None
    return x.grad, 0.0 if quantizer.scale.grad is None else float(quantizer.scale.grad)


def test_lsq_gradient() -> None:
    weight, _, _ = parts(begun("lsq"))
    with torch.no_grad():
        weight.scale.fill_(0.5)
    dx, ds = gradients(weight, torch.tensor([-3.0, -0.6, 0.2, 0.9, 2.0]), torch.ones(5))
    assert torch.equal(dx, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))
    terms = -4 + 0.2 - 0.4 + 0.2 + 3
    assert ds == pytest.approx(terms * (48 * 3) ** -0.5, rel=1e-5)


def test_pact_gradient_as_published_comes_from_what_is_clipped() -> None:
    x, g = torch.tensor([-1.0, 0.3, 2.9, 7.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, -0.5])
    published, full = (parts(begun("pact", exact=exact))[2] for exact in (True, False))
    with torch.no_grad():
        full.scale.copy_(published.scale)
    levels = 7
    dx, ds = gradients(published, x, g)
    assert torch.equal(dx, torch.tensor([0.0, 2.0, 3.0, 0.0, 0.0]))
    assert ds / levels == pytest.approx(3.5)  # dalpha = sum g [x >= alpha]
    inside = [(round(v / 6 * levels) / levels - v / 6) * w for v, w in ((0.3, 2.0), (2.9, 3.0))]
    assert gradients(full, x, g)[1] / levels == pytest.approx(3.5 + sum(inside), rel=1e-5)


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_dorefa_gradient_of_weights(delta: float) -> None:
    weight, _, _ = parts(begun("dorefa", weights=MidRise(2)))
    weight.set_delta(delta)
    w, g = torch.tensor([-1.2, -0.4, 0.1, 0.5]), torch.tensor([1.0, 1.0, -1.0, 1.0])
    dx, _ = gradients(weight, w, g)
    peak = math.tanh(1.2)
    for i in range(4):
        t = math.tanh(float(w[i]))
        x_n = t / (2 * peak) + 0.5
        k = 1 + delta * float(g[i]) * (x_n - round(x_n * 3) / 3)
        assert float(dx[i]) == pytest.approx(float(g[i]) * k * (1 - t * t), rel=1e-4)
    assert not weight.scale.requires_grad


def test_ewgs_gradient_scales_by_the_rounding_error() -> None:
    weight, _, _ = parts(begun("ewgs", weights=MidRise(2)))
    with torch.no_grad():
        weight.scale.fill_(1 / 3)  # l = -1, u = 1
    x, g = torch.tensor([-1.5, -0.4, 0.1, 0.8, 2.0]), torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
    for delta, want, du_minus_dl in (
        (0.0, (0, 1, -1, 1, 0), -1.966667),
        (0.5, (0, 0.983333, -1.058333, 0.95, 0), -1.9275),
    ):
        weight.set_delta(delta)
        dx, ds = gradients(weight, x, g)
        assert torch.allclose(dx, torch.tensor(want, dtype=torch.float32), atol=1e-5)
        assert ds / 3 == pytest.approx(du_minus_dl, abs=1e-5)  # u = 3 s


def test_ewgs_without_delta_is_the_straight_through_estimator() -> None:
    ewgs, lsq = begun("ewgs"), begun("lsq")
    for student in (ewgs, lsq):
        for quantizer in parts(student):
            quantizer.scale.requires_grad_(False)
        student(X).square().mean().backward()
    of_lsq = dict(lsq.named_parameters())
    for name in ("0.layer.weight", "2.layer.weight"):
        found, wanted = ewgs.get_parameter(name).grad, of_lsq[name].grad
        assert found is not None
        assert wanted is not None
        assert torch.equal(found, wanted)


# Learning and the end of it


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_settling_leaves_a_fixed_quantizer_with_the_same_output(family: FamilyName, exact: bool) -> None:
    student = begun(family, exact=exact)
    learning = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        student(X).square().mean().backward()
        optimizer.step()
        families.project(parts(student))
    with torch.no_grad():
        trained = student.eval()(X)
        families.settle(student)
        assert torch.allclose(student(X), trained, atol=1e-6)
    assert not any(q.scale.requires_grad or q.tanh or q.delta is not None for q in parts(student))
    assert not any(isinstance(q.zero_point, nn.Parameter) for q in parts(student))
    freeze(student)


@pytest.mark.parametrize(("family", "weights", "activations"), [("lsq", 1, 2), ("pact", 0, 2), ("dorefa", 0, 0)])
def test_what_learns(family: FamilyName, weights: int, activations: int) -> None:
    weight, *others = parts(begun(family))
    assert int(weight.scale.requires_grad) == weights
    assert sum(q.scale.requires_grad for q in others) == activations


def test_the_zero_point_of_signed_activations_learns_with_ewgs() -> None:
    _, signed, unsigned = parts(begun("ewgs"))
    assert isinstance(signed.zero_point, nn.Parameter)
    assert not isinstance(unsigned.zero_point, nn.Parameter)
    (signed(X) - X - 1).square().mean().backward()
    assert signed.zero_point.grad is not None
    assert float(signed.zero_point.grad) != 0


def test_projection_keeps_scales_positive_and_zero_points_on_the_grid() -> None:
    weight, signed, _ = parts(begun("ewgs"))
    assert signed.zero_point is not None
    with torch.no_grad():
        weight.scale.fill_(-0.2)
        signed.zero_point.fill_(50.0)
    families.project([weight, signed])
    assert weight.scale.item() == pytest.approx(0.2)
    assert signed.zero_point.item() == 3


def test_state_carries_delta_and_zero_point() -> None:
    one, other = begun("ewgs"), begun("ewgs")
    parts(one)[0].set_delta(0.3)
    other.load_state_dict(one.state_dict())
    assert parts(other)[0].gradient == parts(one)[0].gradient
    assert copy.deepcopy(one).state_dict().keys() == one.state_dict().keys()


# Delta


def test_delta_follows_the_hessian() -> None:
    student = begun("ewgs", weights=MidRise(3))
    target = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))

    def loss(batch: object) -> Tensor:
        return nn.functional.mse_loss(student(batch), target)

    deltas = families.update_deltas(student, loss, [X], Curvature(probes=400, tolerance=0))
    layer = student.get_submodule("2")
    assert isinstance(layer, Quantized)
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, Quantizer)
    with torch.no_grad():
        features = parts(student)[2](torch.relu(student.get_submodule("0")(parts(student)[1](X))))
    weight = layer.weight.detach().requires_grad_()
    value = nn.functional.mse_loss(nn.functional.linear(features, weight, layer.bias), target)
    (gradient,) = torch.autograd.grad(value, weight)
    width = float(quantizer.bounds()[1] - quantizer.bounds()[0])
    trace = 2 * float((features**2).mean(0).sum()) * 4 / 4  # of the mean over 4 outputs: 2 / 4 x^2 in each of 4 rows
    expected = width**2 * trace / weight.numel() / (3 * width * float(gradient.std()))
    assert deltas["2.weight_quantizer"] == pytest.approx(expected, rel=0.15)
    assert quantizer.gradient.delta == deltas["2.weight_quantizer"]
    assert all(delta >= 0 for delta in deltas.values())
    assert sum(delta > 0 for delta in deltas.values()) >= 3


def test_delta_does_not_depend_on_the_batch_size() -> None:
    found = []
    for repeats in (1, 4):
        student = begun("ewgs")
        batch = X.repeat(repeats, 1)
        families.update_deltas(student, lambda b, s=student: s(b).square().mean(), [batch], Curvature(200, 0))  # type: ignore[misc]
        found.append(parts(student)[0].gradient.delta)
    assert found[0] == pytest.approx(found[1], rel=0.1)
    assert found[0] > 0


def test_delta_leaves_the_student_as_it_was() -> None:
    student = begun("ewgs")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    families.update_deltas(student, lambda b: student(b).square().mean(), [X])
    assert student.training
    assert all(torch.equal(v, before[n]) for n, v in student.state_dict().items() if not n.endswith("delta"))
    assert all(parameter.grad is None for parameter in student.parameters())


def test_delta_of_other_families_is_left_alone() -> None:
    student = begun("lsq")
    assert families.update_deltas(student, lambda b: student(b).mean(), [X]) == {}


# Errors


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match="'lqs' is unknown; expected one of fixed, absmax, lsq"):
        families.begin(calibrated(), "lqs", X)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=r"call calibrate\(student, batches\) first"):
        families.begin(quantize(network(), Recipe.uniform("int4", "int4")), "lsq", X)
    with pytest.raises(LayerError, match="is frozen and cannot learn"):
        families.begin(freeze(calibrated()), "lsq", X)
    with pytest.raises(LayerError, match="int1 has no positive number"):
        families.begin(calibrated(Int(1)), "lsq", X)
    student = begun("ewgs")
    with pytest.raises(CalibrationError, match="got no batches to estimate"):
        families.update_deltas(student, lambda b: student(b).mean(), [])
