"""What outputs are held to: how far a student's lie from its teacher's, and how well the two agree."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def are_classes(output: Tensor) -> bool:
    """Whether an output can be class scores, `[N, C, ...]` with several classes."""
    return output.dim() >= 2 and output.shape[1] > 1


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p_t || p_s) of softened probabilities, the mean over samples (and places); scores `[N, C, ...]`.

    Its gradient in the student's scores is T (p_s - p_t) / N.
    """
    log_p_s = (student / temperature).movedim(1, -1).flatten(0, -2).log_softmax(1)
    log_p_t = (teacher / temperature).movedim(1, -1).flatten(0, -2).log_softmax(1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos of the angle between a sample's outputs, as one vector; the mean over samples `[N, ...]`."""
    return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1)).mean()


def relative_error(outputs: list[Tensor], targets: list[Tensor]) -> float:
    """Mean squared difference over the variance of the targets; both batch by batch."""
    found, wanted = (torch.cat([one.double().cpu().flatten() for one in every]) for every in (outputs, targets))
    return float(((found - wanted) ** 2).mean() / wanted.var(correction=0).clamp(min=1e-30))


def agreement_of(outputs: list[Tensor], targets: list[Tensor], *, classes: bool) -> float:
    """How well outputs agree, batch by batch: the share of equal predictions for class scores, else 1 less the relative
    error. 1 is best; NaN tells of outputs that are not finite.
    """
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        return math.nan
    if not classes:
        return 1 - relative_error(outputs, targets)
    return accuracy_of(outputs, [target.argmax(1) for target in targets])


def accuracy_of(outputs: list[Tensor], labels: list[Tensor]) -> float:
    """The share of class scores `[N, C, ...]` whose largest is that of the label `[N, ...]`; both batch by batch."""
    hits = [(a.argmax(1).cpu() == b.cpu()).flatten() for a, b in zip(outputs, labels, strict=True)]
    return float(torch.cat(hits).float().mean())


def surprise_of(output: Tensor, generator: torch.Generator, *, classes: bool) -> Tensor:
    """The negative log-likelihood, summed over samples, of outputs drawn from the network's own distribution.

    Its gradients have the Fisher information as their covariance. Where outputs are no class scores, the distribution
    is normal with the outputs' variance.
    """
    if not classes:
        noise = torch.randn(output.shape, generator=generator).to(output)
        fixed = output.detach()
        deviation = fixed.std() if fixed.numel() > 1 else fixed.abs().max()  # of a single number nothing is known
        return (output * noise).sum() / float(deviation.clamp(min=1e-12))
    scores = output.movedim(1, -1).flatten(0, -2)
    drawn = torch.multinomial(scores.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
    return F.cross_entropy(scores, drawn.to(scores.device), reduction="sum")
