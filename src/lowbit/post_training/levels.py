"""Post-training quantization in one call, at three levels of effort.

| level    | what it does                                                                    | time            |
|----------|---------------------------------------------------------------------------------|-----------------|
| fast     | scales by least squared error, from one pass over the inputs                    | seconds         |
| balanced | and second-order rounding toward the float outputs, bias correction             | some passes     |
| best     | and the whole network tuned to return what the float network returns            | minutes         |

The functions are those that a user can call one by one; a level is no more than their order. Every eighth batch is held
out: it calibrates nothing and measures what each step gained. `choose_ranges`, `equalize`, `fit_scales` and
`reconstruct` are not part of any level: where they were measured they gained nothing on top of these (LOG.md).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lowbit.batches import Batch, Batches, expect_batches, finite_batches, of_quantities, outputs_of
from lowbit.errors import CalibrationError, RecipeError
from lowbit.objectives import agreement_of, relative_error
from lowbit.post_training.correction import correct_moments
from lowbit.post_training.reconstruction import tune
from lowbit.post_training.rounding import round_weights
from lowbit.post_training.sensitivity import Widening, widen
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

Level = Literal["fast", "balanced", "best"]
LEVELS: tuple[Level, ...] = ("fast", "balanced", "best")
TUNING_STEPS = 500


@dataclass(frozen=True)
class Step:
    """One step and how close the student's outputs then came to the float model's on held-out inputs.

    `error` is the squared difference relative to the outputs' variance; `agreement` the share of samples whose largest
    output is the same, None where outputs are no class scores (`[N, C]` with C > 1, and labels no floats). Level
    ``fast`` holds nothing out and measures neither: its error is NaN.
    """

    name: str
    seconds: float
    error: float
    agreement: float | None


@dataclass(frozen=True)
class PostTraining:
    """What a level did, step by step; `widening` tells which layers got wider activations, None if not asked for."""

    level: Level
    steps: tuple[Step, ...]
    widening: Widening | None

    def __str__(self) -> str:
        """The steps and what they gained, without times, which differ from run to run; the layers that were widened."""
        if math.isnan(self.steps[0].error):
            return self.steps[0].name
        scores = self.steps[0].agreement is not None
        told = [f"{s.name} {s.agreement:.1%}" if scores else f"{s.name} {s.error:.4f}" for s in self.steps]
        what = "same prediction as the float model" if scores else "squared error relative to the outputs' variance"
        tensors = self.widening.tensors if self.widening else ()
        wide = [name for tensor in tensors if tensor.widened for name in tensor.layers]
        widened = f"; 16-bit inputs for {', '.join(wide)}" if wide else ""
        return f"{', '.join(told)} ({what}, on held-out inputs){widened}"


def post_train(
    model: nn.Module,
    recipe: Recipe,
    batches: Batches,
    *,
    level: Level = "balanced",
    widen_most: int = 0,
    classes: bool | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, PostTraining]:
    """A student of `model`, quantized by `recipe` and calibrated, as good as the level's effort makes it. No labels.

    Args:
        model: a trained float network; it is not changed.
        recipe: what happens to which layer.
        batches: inputs in any batch form; a few hundred samples or more. ``fast`` streams them, unless it is to
            widen; the others hold them.
        level: how much time it may take.
        widen_most: let so many tensors at most go to 16 bits where that brings the outputs closer; see `widen`.
        classes: whether outputs `[N, C]` are class scores, so that equal predictions are counted; by default, unless
            labels in `batches` are floats.
        seed: draws the batches of `tune`.
        progress: show bars on a terminal.

    Raises:
        CalibrationError: too few batches, NaN or infinite inputs, or activations that cannot be calibrated.
        DataError: one tensor instead of batches, or batches that the model does not take.
        RecipeError: the recipe does not fit the model, or there is no such level.
    """
    if level not in LEVELS:
        raise RecipeError(f"level {level!r} is unknown; expected {', '.join(LEVELS)}")
    expect_batches(batches)
    if level == "fast" and not widen_most:
        began = time.perf_counter()
        student = quantize(model, recipe)
        calibrate(student, batches, progress=progress)
        return student, PostTraining(level, (Step("calibrate", time.perf_counter() - began, float("nan"), None),), None)
    held = list(finite_batches(batches))
    if len(held) < 2:
        raise CalibrationError(
            f"got {len(held)} batches, expected at least 2: every eighth is held out to measure what each step gains; "
            "give more samples, or smaller batches, or use level 'fast'"
        )
    held_out = held[::8]
    calibrating = [batch for i, batch in enumerate(held) if i % 8]
    target = outputs_of(copy.deepcopy(model).eval(), held_out)
    predict = not of_quantities(held) if classes is None else classes
    scores = predict and all(one.dim() == 2 and one.shape[1] > 1 for one in target)
    steps: list[Step] = []

    def done(name: str, began: float, student: nn.Module) -> nn.Module:
        outputs = outputs_of(student, held_out)
        agreement = agreement_of(outputs, target, classes=True) if scores else None
        steps.append(Step(name, time.perf_counter() - began, relative_error(outputs, target), agreement))
        return student

    began, widening = time.perf_counter(), None
    if widen_most:
        recipe, widening = widen(model, recipe, calibrating, held_out, most=widen_most, progress=progress)
    student = quantize(model, recipe)
    calibrate(student, calibrating, progress=progress)
    done("calibrate", began, student)
    for name, improve in _improvements(level, seed).items():
        began = time.perf_counter()
        student = done(name, began, improve(student, model, calibrating, progress))
    return student, PostTraining(level, tuple(steps), widening)


def _improvements(level: Level, seed: int) -> dict[str, Callable[[nn.Module, nn.Module, list[Batch], bool], nn.Module]]:
    """What comes after calibration, in order."""
    balanced: dict[str, Callable[[nn.Module, nn.Module, list[Batch], bool], nn.Module]] = {
        "round weights": lambda s, m, b, p: round_weights(s, m, b, progress=p)[0],
        "correct biases": lambda s, m, b, p: correct_moments(s, m, b, spread=False, progress=p)[0],
    }
    best = {"tune": lambda s, m, b, p: tune(s, m, b, steps=TUNING_STEPS, seed=seed, progress=p)[0]}
    return {"fast": {}, "balanced": balanced, "best": balanced | best}[level]
