"""Which range each activation quantizer should have: every rule is tried, and held-out inputs decide, tensor by tensor.

A wide range clips nothing but rounds coarsely; no one rule finds the best balance for all tensors of a network. So the
network is calibrated once by each rule (the largest magnitude, a percentile, least squared error, least divergence),
and each tensor takes the range with which its block's outputs come closest to the float model's, on inputs that did
not calibrate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from lowbit.batches import Batches
from lowbit.objectives import relative_error
from lowbit.post_training.segments import float_twin, quantizers_in, walk, working_copy
from lowbit.quantization import activation_quantizers, calibrate, note
from lowbit.quantizer import Quantizer
from lowbit.scales import ScaleRule

RULES: tuple[ScaleRule, ...] = get_args(ScaleRule)


@dataclass(frozen=True)
class ChosenRange:
    """The rule that one tensor took, and its block's relative squared error on held-out inputs by each rule."""

    name: str
    rule: ScaleRule
    errors: dict[str, float]


@dataclass(frozen=True)
class Ranges:
    """The ranges chosen, in the order in which the tensors are made."""

    tensors: tuple[ChosenRange, ...]


def choose_ranges(
    student: nn.Module, model: nn.Module, batches: Batches, held_out: Batches, *, progress: bool = True
) -> tuple[nn.Module, Ranges]:
    """A copy of `student`, calibrated anew, in which each activation quantizer has the rule that measures best.

    Args:
        student: the result of `quantize`; it need not be calibrated.
        model: the float model it was made from.
        batches: inputs that calibrate, a list: it is gone through once for each rule.
        held_out: other inputs, a list, that decide; held in memory.
        progress: show a bar on a terminal.

    Raises:
        CalibrationError: no batches, or activations that cannot be calibrated.
    """
    student = working_copy(student)
    calibrated: dict[ScaleRule, dict[str, tuple[Tensor, Tensor | None]]] = {}
    own = {name: q.scale_rule for name, q in activation_quantizers(student).items()}
    for rule in RULES:
        for quantizer in activation_quantizers(student).values():
            quantizer.scale_rule = rule
        calibrate(student, batches, progress=progress)
        calibrated[rule] = {n: _range(q) for n, q in activation_quantizers(student).items()}
    names = {q: n for n, q in activation_quantizers(student).items()}
    for quantizer, name in names.items():
        _use(quantizer, own[name], calibrated[own[name]][name])
    rows = []
    for segment in walk(student, float_twin(model, student), held_out, "choose ranges", progress=progress):
        target = segment.targets()
        for quantizer in quantizers_in(segment.student):
            name = names[quantizer]
            errors = {}
            for rule in RULES:
                _use(quantizer, rule, calibrated[rule][name])
                errors[rule] = relative_error(segment.outputs(), target)
            best = min(RULES, key=lambda rule: errors[rule])
            _use(quantizer, best, calibrated[best][name])
            rows.append(ChosenRange(name, best, {str(rule): error for rule, error in errors.items()}))
    note(student, "choose_ranges")
    return student, Ranges(tuple(rows))


def _range(quantizer: Quantizer) -> tuple[Tensor, Tensor | None]:
    zero_point = quantizer.zero_point
    return quantizer.scale.detach().clone(), None if zero_point is None else zero_point.clone()


def _use(quantizer: Quantizer, rule: ScaleRule, range_: tuple[Tensor, Tensor | None]) -> None:
    quantizer.scale_rule = rule
    quantizer.scale.data.copy_(range_[0])
    if quantizer.zero_point is not None and range_[1] is not None:
        quantizer.zero_point.copy_(range_[1])
