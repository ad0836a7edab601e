"""How ranges and gradients are trained: fixed, absmax, LSQ, PACT, DoReFa and EWGS quantizers, in one formulation.

Every quantizer clips to a range [l, u], rounds to the format's grid in it, and passes a gradient back. With scale s and
zero point o the range is l = s (min - o), u = s (max - o), so two numbers say it all. With x_n the clipped input and
x_q its rounded value, both as shares of the range, g the gradient of the result and k = 1 + delta sign(g) (x_n - x_q):

    dx = g k inside the range, 0 outside
    du = g (x_q - k x_n) inside, g above;      dl = g ((1 - x_q) - k (1 - x_n)) inside, g below

delta = 0 is the straight-through estimator (STE), and the terms outside are the only pull that clipped values have on
the range. A family is a choice of what learns and what delta is:

| family | weights                                     | activations                        | delta         |
|--------|---------------------------------------------|------------------------------------|---------------|
| fixed  | range as calibrated                         | range as calibrated                | 0             |
| absmax | range of its largest magnitude              | that of the tensor that comes      | 0             |
| lsq    | scale learns, gradient over sqrt(N Qp)      | the same                           | 0             |
| pact   | as dorefa                                   | upper end learns                   | 0             |
| dorefa | tanh(w), range of its largest magnitude     | fixed range                        | 0             |
| ewgs   | scale learns                                | scale learns, zero point if signed | from curvature|

The form is the de-quantized one: numbers come out in the units they went in, where the authors' code returns [0, 1] and
multiplies the layer's output, which no multiplication can undo for signed inputs. Behind a ReLU the range begins at 0.

With ``exact`` a family starts and learns as published; else it starts from the calibrated ranges, PACT's range also
learns from the rounding error inside it, DoReFa's activations keep their calibrated range instead of [0, 1], and EWGS's
delta has a bound.

References:
    Esser et al., Learned step size quantization, 2020, https://arxiv.org/abs/1902.08153 (LSQ).
    Choi et al., PACT: parameterized clipping activation, 2018, https://arxiv.org/abs/1805.06085.
    Zhou et al., DoReFa-Net, 2016, https://arxiv.org/abs/1606.06160.
    Lee et al., Network quantization with element-wise gradient scaling, 2021, https://arxiv.org/abs/2104.00903 (EWGS).
    Zhao and Zhao, Self-supervised quantization-aware knowledge distillation, 2024, https://arxiv.org/abs/2403.11106,
    section 3, for all of them in one form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowbit.batches import Batch, call
from lowbit.errors import CalibrationError, LayerError, RecipeError
from lowbit.formats import Block
from lowbit.layers import Quantized
from lowbit.ops import STE, GradientRule
from lowbit.quantization import activation_quantizers
from lowbit.quantizer import Codes, Quantizer
from lowbit.scales import affine

FamilyName = Literal["fixed", "absmax", "lsq", "pact", "dorefa", "ewgs"]
_LEAST = 1e-8  # of a scale, after each step


@dataclass(frozen=True)
class _Side:
    """Weights or activations of a family; `start` sets the published range from the first tensor that is seen."""

    learns: Literal["nothing", "scale", "scale and zero point"] = "nothing"
    rounding: bool = True
    balanced: bool = False
    follows: bool = False
    tanh: bool = False
    curved: bool = False
    start: Callable[[Quantizer, Tensor], None] | None = None


@dataclass(frozen=True)
class _Family:
    weights: _Side
    activations: _Side


def _set_range(quantizer: Quantizer, low: Tensor, high: Tensor) -> None:
    """Set a range that holds 0; what is symmetric takes its larger side."""
    symmetric, shape = quantizer.zero_point is None, quantizer.scale.shape
    low, high = low.clamp(max=0).reshape(shape), high.clamp(min=0).reshape(shape)
    scale, zero_point = affine(low, high, quantizer.format, symmetric)
    usable = torch.isfinite(high - low) & (high > low)  # else, of a constant, the range stays as calibrated
    quantizer.scale.copy_(torch.where(usable, scale, quantizer.scale))
    if quantizer.zero_point is not None and zero_point is not None:
        quantizer.zero_point.copy_(torch.where(usable, zero_point, quantizer.zero_point))


def _start_lsq(quantizer: Quantizer, x: Tensor) -> None:
    """s = 2 mean|x| / sqrt(Qp)."""
    mean = quantizer.granularity.rows(x).abs().mean(1).reshape(quantizer.scale.shape)
    scale = 2 * mean / _largest(quantizer) ** 0.5
    quantizer.scale.copy_(torch.where(scale > 0, scale, 1.0))


def _start_ewgs_weights(quantizer: Quantizer, w: Tensor) -> None:
    """u = 3 std(w), l = -u."""
    rows = quantizer.granularity.rows(w)
    high = 3 * rows.std(1, correction=min(1, rows.shape[1] - 1))
    _set_range(quantizer, -high, high)


def _start_ewgs_activations(quantizer: Quantizer, x: Tensor) -> None:
    """u = 3 std(x) / sqrt(1 - 2 / pi), as if x were half a normal distribution; l = min(x)."""
    _set_range(quantizer, x.min(), 3 * x.std() / math.sqrt(1 - 2 / math.pi))


def _start_at(high: float) -> Callable[[Quantizer, Tensor], None]:
    def start(quantizer: Quantizer, x: Tensor) -> None:
        end = torch.tensor(high, device=x.device)
        _set_range(quantizer, -end if float(x.min()) < 0 else 0 * end, end)

    return start


_TANH = _Side(tanh=True)
_LSQ = _Side("scale", balanced=True, start=_start_lsq)
_FAMILIES: dict[FamilyName, _Family] = {
    "fixed": _Family(_Side(), _Side()),
    "absmax": _Family(_Side(follows=True), _Side(follows=True)),
    "lsq": _Family(_LSQ, _LSQ),
    "pact": _Family(_TANH, _Side("scale", rounding=False, start=_start_at(6.0))),
    "dorefa": _Family(_TANH, _Side(start=_start_at(1.0))),
    "ewgs": _Family(
        _Side("scale", curved=True, start=_start_ewgs_weights),
        _Side("scale and zero point", curved=True, start=_start_ewgs_activations),
    ),
}


def begin(student: nn.Module, family: FamilyName, batch: Batch, *, exact: bool = False) -> None:
    """Make the quantizers of a calibrated student learn as a family does, in place, until `settle`.

    Args:
        student: the result of `quantize` and `calibrate`; a model without quantizers stays as it is.
        family: see the table above.
        batch: inputs that published starts are computed from, layer by layer as they flow.
        exact: start and learn as published.

    Raises:
        RecipeError: there is no such family.
        CalibrationError: an activation quantizer has no scale yet.
        LayerError: the student is frozen, or a format has no positive number for its scale to learn from.
    """
    if family not in get_args(FamilyName):
        raise RecipeError(f"quantizer {family!r} is unknown; expected one of {', '.join(get_args(FamilyName))}")
    if any(isinstance(module, Codes) for module in student.modules()):
        raise LayerError(f"{type(student).__name__} is frozen and cannot learn; give it as it was before freeze")
    with torch.no_grad(), ExitStack() as hooks:
        for quantizer, side in _sides(student, family).items():
            if not quantizer.ready:
                raise CalibrationError(f"{quantizer.name!r} has no scale yet; call calibrate(student, batches) first")
            learn = _learner(side, exact)
            hook = quantizer.register_forward_pre_hook(lambda q, args, learn=learn: learn(q, args[0]))
            hooks.callback(hook.remove)
        training = student.training
        call(student.eval(), batch)  # in eval mode, unlike the authors' code: BatchNorm statistics stay as they are
        student.train(training)


def _sides(student: nn.Module, family: FamilyName) -> dict[Quantizer, _Side]:
    """Every quantizer with its side of the family; those of block formats, whose scales lie on a grid, stay fixed."""
    found = dict.fromkeys(activation_quantizers(student).values(), _FAMILIES[family].activations)
    for layer in student.modules():
        if isinstance(layer, Quantized) and isinstance(layer.weight_quantizer, Quantizer):
            found[layer.weight_quantizer] = _FAMILIES[family].weights
    return {q: _Side() if isinstance(q.format, Block) else side for q, side in found.items()}


def _learner(side: _Side, exact: bool) -> Callable[[Quantizer, Tensor], None]:
    """What begins the learning of a quantizer when it sees its first tensor."""
    begun: set[Quantizer] = set()

    def learn(quantizer: Quantizer, x: Tensor) -> None:
        if quantizer in begun or not x.is_floating_point():
            return
        begun.add(quantizer)
        if side.learns != "nothing" and _largest(quantizer) <= 0:
            raise LayerError(
                f"{quantizer.name!r}: {quantizer.format} has no positive number for a scale to learn from; use binary"
            )
        if exact and side.start is not None:
            side.start(quantizer, x.detach().float())
        is_weight = isinstance(x, nn.Parameter)
        count = x.numel() / (quantizer.scale.numel() if is_weight else len(x))
        share = (count * _largest(quantizer)) ** -0.5 if side.balanced else 1.0
        quantizer.gradient = GradientRule(rounding=side.rounding or not exact, share=share)
        quantizer.tanh, quantizer.follows = side.tanh, side.follows
        quantizer.scale.requires_grad_(side.learns != "nothing")
        signed = quantizer.zero_point is not None and bool((quantizer.zero_point > quantizer.format.min).any())
        if side.learns == "scale and zero point" and signed:
            zero_point = quantizer.zero_point
            assert zero_point is not None
            del quantizer.zero_point  # a buffer
            quantizer.zero_point = nn.Parameter(zero_point)
        if side.curved:
            quantizer.set_delta(0.0)

    return learn


def _largest(quantizer: Quantizer) -> float:
    """The grid's highest number above zero, LSQ's Qp."""
    zero_point = 0.0 if quantizer.zero_point is None else float(quantizer.zero_point.detach().min())
    return quantizer.format.max - zero_point


def published_rates(student: nn.Module, family: FamilyName, rate: float) -> dict[nn.Parameter, float]:
    """Learning rates of what `begin` made learn, such that what the paper learns moves at `rate`.

    EWGS and PACT learn the ends of the range, u = s (max - o), and the zero point moves both by s; LSQ learns s.
    """
    rates: dict[nn.Parameter, float] = {}
    for quantizer in _sides(student, family):
        if quantizer.scale.requires_grad:
            ends = 1.0 if family == "lsq" else _largest(quantizer)
            rates[quantizer.scale] = rate / ends
        if isinstance(quantizer.zero_point, nn.Parameter):
            rates[quantizer.zero_point] = rate / float(quantizer.scale.detach().mean())
    return rates


def project(quantizers: Iterable[Quantizer]) -> None:
    """After a step: scales positive, zero points on the grid."""
    with torch.no_grad():
        for quantizer in quantizers:
            if quantizer.scale.requires_grad:
                quantizer.scale.abs_().clamp_(min=_LEAST)
            if isinstance(quantizer.zero_point, nn.Parameter):
                quantizer.zero_point.clamp_(quantizer.format.min, quantizer.format.max)


def settle(student: nn.Module) -> None:
    """End what `begin` began, in place: the ranges stay as they are now, and every quantizer is a fixed one again."""
    done: set[nn.Parameter] = set()  # layers may share a weight
    with torch.no_grad():
        for layer in student.modules():
            quantizer = layer.weight_quantizer if isinstance(layer, Quantized) else None
            if not (isinstance(layer, Quantized) and isinstance(quantizer, Quantizer)):
                continue
            weight = layer.layer.get_parameter("weight")
            if quantizer.tanh and weight not in done:
                weight.copy_(torch.tanh(weight))
                done.add(weight)
            if quantizer.tanh or quantizer.follows:  # the last step came after the last forward pass
                quantizer.scale.copy_(quantizer.absmax_scale(weight))
        for quantizer in (m for m in student.modules() if isinstance(m, Quantizer)):
            quantizer.gradient, quantizer.delta = STE, None
            quantizer.tanh = quantizer.follows = False
            quantizer.scale.requires_grad_(False)
            if isinstance(quantizer.zero_point, nn.Parameter):
                zero_point = quantizer.zero_point.detach().round()
                del quantizer.zero_point  # a parameter
                quantizer.register_buffer("zero_point", zero_point)


# EWGS: delta from the curvature of the loss


@dataclass(frozen=True)
class Curvature:
    """How `update_deltas` estimates the trace of the Hessian: `probes` at most for each batch, fewer once it is steady.

    It is steady when another probe changes the mean trace by less than `tolerance` of itself. `bounded` keeps delta
    to the number of steps in the range, and so the factor k between 1/2 and 3/2: near a minimum gradients vanish and
    curvature does not, and the quotient of the two would turn gradients around.
    """

    probes: int = 50
    tolerance: float = 1e-3
    bounded: bool = False


def update_deltas(
    student: nn.Module,
    loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    curvature: Curvature = Curvature(),
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Set EWGS's delta of every quantizer from the curvature of the loss; returns them by name.

    With x_q a quantizer's rounded output as a share of its range, g = dL/dx_q and H the Hessian of L in x_q,

        delta = max(0, mean over batches of  h / (3 std(g))),   h = mean over probes of (v^T H v) / numel

    with v of random signs: g at x_n is about g + H (x_n - x_q), and |g| is replaced by 3 standard deviations.

    Args:
        student: one that `begin` made learn as ``ewgs``.
        loss: the training loss of a batch, computed with `student`.
        batches: some batches, 3 in the paper for CIFAR.
        curvature: how carefully.
        seed: draws the probes.

    References:
        Lee et al., Network quantization with element-wise gradient scaling, 2021, https://arxiv.org/abs/2104.00903,
        equations 8 to 11, and the authors' code. Their test of steadiness divides by the signed mean and so stops at
        once when it is negative: here by its magnitude.
    """
    generator = torch.Generator().manual_seed(seed)
    names = {m: name for name, m in student.named_modules() if isinstance(m, Quantizer) and m.delta is not None}
    if not names:
        return {}
    found: dict[Quantizer, list[float]] = {quantizer: [] for quantizer in names}
    training = student.training
    student.eval()  # unlike the authors' code: BatchNorm statistics stay as they are
    try:
        for batch in batches:
            with _smooth(names) as outputs, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                value = loss(batch)
            traces = _traces(value, outputs, curvature, generator)
            for quantizer, (trace, spread) in traces.items():
                found[quantizer].append(trace / (3 * spread) if spread > 0 else 0.0)
    finally:
        student.train(training)
    if not any(found.values()):
        raise CalibrationError("got no batches to estimate the curvature of the loss from; give at least one")
    deltas = {}
    for quantizer, ratios in found.items():
        if ratios:  # else no batch reached it
            most = len(quantizer.format.values()) - 1 if curvature.bounded else math.inf
            quantizer.set_delta(min(max(0.0, sum(ratios) / len(ratios)), most))
        deltas[names[quantizer]] = quantizer.gradient.delta
    return deltas


@contextmanager
def _smooth(quantizers: Iterable[Quantizer]) -> Iterator[dict[Quantizer, Tensor]]:
    """What quantizers return meanwhile, with gradients that can be differentiated again: of the clip, in torch."""
    outputs: dict[Quantizer, Tensor] = {}

    def replaced(quantizer: Quantizer, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x, granularity = args[0].float(), quantizer.granularity
        x = torch.tanh(x) if quantizer.tanh else x
        low, high = (granularity.spread(bound, x.shape) for bound in quantizer.bounds())
        clipped = granularity.unblocked(torch.clamp(granularity.blocked(x), low, high), x.shape)
        smooth = clipped + (output - clipped).detach()
        if not smooth.requires_grad:  # of the network's input
            smooth.requires_grad_()
        outputs.setdefault(quantizer, smooth)  # of a layer that is called twice, the first call
        return smooth

    with ExitStack() as hooks:
        for quantizer in quantizers:
            hooks.callback(quantizer.register_forward_hook(replaced).remove)
        yield outputs


def _traces(
    loss: Tensor, outputs: dict[Quantizer, Tensor], curvature: Curvature, generator: torch.Generator
) -> dict[Quantizer, tuple[float, float]]:
    """For each quantizer the mean diagonal of the Hessian and the standard deviation of the gradient, both in x_q.

    All quantizers are probed at once: terms between two of them are products of independent signs, 0 in the mean.
    """
    outputs = {q: x for q, x in outputs.items() if x.requires_grad}
    tensors = list(outputs.values())
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    used = [(q, x, g) for (q, x), g in zip(outputs.items(), gradients, strict=True) if g is not None]
    widths = [_width(q, x) for q, x, _ in used]  # x = l + width * x_q
    sums = mean = torch.zeros(len(used))
    curved = [g for _, _, g in used if g.requires_grad]
    for probe in range(1, curvature.probes + 1 if curved else 1):
        signs = [torch.randint(0, 2, x.shape, generator=generator).to(x.device) * 2.0 - 1.0 for _, x, _ in used]
        probes = [s * w for s, w in zip(signs, widths, strict=True)]
        of_curved = [p for p, (_, _, g) in zip(probes, used, strict=True) if g.requires_grad]
        products = torch.autograd.grad(curved, [x for _, x, _ in used], of_curved, retain_graph=True, allow_unused=True)
        found = [
            torch.zeros(()) if hv is None else (p * hv).mean().cpu() for p, hv in zip(probes, products, strict=True)
        ]
        sums = sums + torch.stack(found)
        before, mean = mean, sums / probe
        if probe > 1 and bool(((mean - before).abs() <= curvature.tolerance * before.abs()).all()):
            break
    spreads = [float((g.detach() * w).std()) for (_, _, g), w in zip(used, widths, strict=True)]
    return {q: (float(m), s) for (q, _, _), m, s in zip(used, mean, spreads, strict=True)}


def _width(quantizer: Quantizer, x: Tensor) -> Tensor:
    low, high = quantizer.bounds()
    width = quantizer.granularity.spread(high - low, x.shape)
    return quantizer.granularity.unblocked(torch.ones_like(quantizer.granularity.blocked(x.detach())) * width, x.shape)
