"""Which path, if any: from the noise that quantization adds to the direct output, and how sure the network is.

With a network noise n in units of the range and codes d = 1 / (2^bits - 1) apart, a channel is off by t:

    t^2 = n^2 + d^2 / 12

and q by t / L, unless the noise reaches another branch. So branches have to be more than 7 t apart. A network that does
not know q better than s returns the mean of several points, which is off the path: L s has to stay below a third of
the spacing. The longest path that keeps both rules is chosen. It buys nothing where the network's own error s is what
counts: then the direct output stays.

The noise is measured, not assumed: the direct model is quantized by the recipe, with an output so fine that its steps
do not count, and compared with itself. Both n and s are robust standard deviations (1.4826 times the median), because a
few large errors, as at the edges of depth maps, say nothing about the rest.

References:
    https://arxiv.org/abs/2405.14024 chooses the order by hand. The rules are ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lowbit.batches import Batch, Batches, call, labels_of, output_tensor
from lowbit.errors import DataError, RecipeError
from lowbit.methods.curves.codec import Codec
from lowbit.methods.curves.decoders import Decoder
from lowbit.methods.curves.fit import shaped
from lowbit.methods.curves.heads import attach_decoder, wrap_head
from lowbit.methods.curves.measures import robust_sd
from lowbit.methods.curves.paths import EVEN_MARGIN, Fold, Hilbert, Moore, Path, Snake, polyline, spacing
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

_FINE = 16  # copies of a fold whose steps do not count
_APART = 7.0  # times the noise that branches have to be apart
_SURE = 3.0  # times the uncertainty along the path
_LEAST_GAIN = 1.2  # of the quantization error
_LEAST_TOTAL_GAIN = 1.05  # of all of the error
_MOST_ROWS = 40


@dataclass(frozen=True)
class Candidate:
    """A path, its length and spacing, and how many times smaller it would make the error.

    `gain` is of the error that quantization adds, `total_gain` with the network's own error; `why_not` is empty if the
    path keeps the rules.
    """

    path: Path
    length: float
    spacing: float
    gain: float
    total_gain: float
    why_not: str


@dataclass(frozen=True)
class Choice:
    """Which path serves an output. `codec` is None where the direct output is to stay, and `reason` tells why.

    `noise` (n), `channel_noise` (t) and `uncertainty` (s, NaN without labels) are shares of the range.
    """

    codec: Codec | None
    reason: str
    noise: float
    channel_noise: float
    uncertainty: float
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The candidate of the codec, None where the direct output stays."""
        return next((one for one in self.candidates if self.codec and one.path == self.codec.path), None)

    def __str__(self) -> str:
        return self.reason


def choose_path(
    model: nn.Module,
    batches: Batches,
    codec: Codec,
    recipe: Recipe,
    *,
    labels: bool = True,
    head: str | None = None,
    progress: bool = True,
) -> Choice:
    """The path that makes the most of 8-bit outputs of `model`, or the advice to stay with a direct output.

    Args:
        model: the direct regressor, float; returns quantities `[N, T, ...]`.
        batches: calibration inputs, with targets if `labels`; an eighth measures and the rest calibrates. What the
            network was trained on makes it look surer than it is: give other data.
        codec: range, transform and bits; of its path the kind counts, a snake, Hilbert or Moore curve.
        recipe: how the network will be quantized.
        labels: whether targets tell how sure the network is. Without, no path longer than the
            default one is chosen, which serves most networks, and nothing is said of all of the error.
        head: the model's last layer, see `wrap_head`.
        progress: show a bar on a terminal.

    Raises:
        DataError: fewer than two batches, or targets that are missing.
        RecipeError: a path of another kind.
        LayerError: the model ends in no layer that can be widened.
    """
    if not isinstance(codec.path, (Snake, Hilbert, Moore)):
        raise RecipeError(f"{codec.path} has no other sizes to choose from; give a snake, a Hilbert or a Moore curve")
    given = list(batches)
    if len(given) < 2:
        raise DataError(f"got {len(given)} batches, expected at least 2: one measures and the others calibrate")
    measured, rest = given[::8], [batch for i, batch in enumerate(given) if i % 8]
    noise, uncertainty = _noise_and_uncertainty(model, measured, rest, codec, recipe, labels, head, progress)
    return choice_for(noise, uncertainty, codec)


def choice_for(noise: float, uncertainty: float, codec: Codec) -> Choice:
    """The choice for a known network noise n and uncertainty s (NaN: unknown), as shares of the range."""
    step = 1 / codec.top
    channel = math.hypot(noise, step / math.sqrt(12))
    candidates = tuple(
        _candidate(path, channel, uncertainty, step) for path in _sizes_of(codec.path, channel, codec.top)
    )
    fitting = [one for one in candidates if not one.why_not]
    kept = max(fitting, key=lambda one: one.length, default=None)
    told = f"noise {noise:.2e}, with the output's steps {channel:.2e}" + (
        "" if math.isnan(uncertainty) else f", the network's own error {uncertainty:.2e} (robust, of the range)"
    )
    if kept is None:
        shortest = min(candidates, key=lambda one: one.length)
        reason = f"the direct output stays: {shortest.path} {shortest.why_not}; {told}"
    elif math.isnan(uncertainty):
        reason = f"{kept.path}: the error of quantization up to {kept.gain:.1f} times smaller; {told}"
    elif kept.gain < _LEAST_GAIN or kept.total_gain < _LEAST_TOTAL_GAIN:
        reason = (
            f"the direct output stays: the best path, {kept.path}, would make the error of quantization up to "
            f"{kept.gain:.1f} times smaller and all of the error {kept.total_gain:.2f} times, which a new head is not "
            f"worth; {told}"
        )
        kept = None
    else:
        reason = (
            f"{kept.path}: the error of quantization up to {kept.gain:.1f} times smaller, all of it "
            f"{kept.total_gain:.2f} times; {told}"
        )
    chosen = None if kept is None else replace(codec, path=kept.path)
    return Choice(chosen, reason, noise, channel, uncertainty, candidates)


def _candidate(path: Path, channel: float, own: float, step: float) -> Candidate:
    length, apart = polyline(path).length, spacing(path)
    total = math.hypot(own, channel) / math.hypot(own, channel / length)  # NaN where nobody knows
    why_not = ""
    if apart <= _APART * channel:
        why_not = f"has branches {apart:.3f} apart, and noise needs {_APART * channel:.3f}"
    elif math.isnan(own) and length > polyline(type(path)()).length * 1.1:
        why_not = "is for a network that is known to be sure enough, which takes labels"
    elif length * own >= apart / _SURE:
        why_not = f"would need a network that is sure to {apart / _SURE / length:.2e} of the range"
    elif apart <= step:
        why_not = "has branches closer than codes"
    return Candidate(path, length, apart, length, total, why_not)


def _sizes_of(path: Path, channel: float, top: int) -> list[Path]:
    """The paths of a kind, shortest first; a snake's margin follows the noise, in whole codes."""
    if isinstance(path, Snake):
        margin = path.margin
        if margin == EVEN_MARGIN and 3 * channel > margin:
            margin = min(math.ceil(3 * channel * top) / top, 0.25)
        return [Snake(rows, margin) for rows in range(2, _MOST_ROWS + 1)]
    assert isinstance(path, (Hilbert, Moore))
    return [replace(path, order=order) for order in range(1, 7)]


def _noise_and_uncertainty(
    model: nn.Module,
    measured: Sequence[Batch],
    rest: Sequence[Batch],
    codec: Codec,
    recipe: Recipe,
    labels: bool,
    head: str | None,
    progress: bool,
) -> tuple[float, float]:
    """How far quantization moves the direct output, and how far the float one is off, as shares of the range."""
    fine = replace(codec, path=Fold(_FINE), transform="linear", clip=True)
    model = copy.deepcopy(model).eval()
    student = quantize(wrap_head(model, fine, head=head), recipe)
    calibrate(student, rest, progress=progress)
    student = attach_decoder(student, Decoder(fine))
    moved, off = [], []
    with torch.no_grad():
        for batch in measured:
            direct = output_tensor(call(model, batch)).float()
            share = codec.share(codec.nearest(direct))
            moved.append(codec.shorter(codec.share(codec.nearest(output_tensor(call(student, batch)))) - share))
            if labels:
                target = labels_of(batch)
                if target is None:
                    raise DataError("batches have no targets; give tuples (inputs, targets), or labels=False")
                off.append(codec.shorter(share - codec.share(shaped(target.to(direct.device), tuple(direct.shape)))))
    noise = robust_sd(torch.cat([one.flatten() for one in moved]))
    return noise, robust_sd(torch.cat([one.flatten() for one in off])) if off else math.nan
