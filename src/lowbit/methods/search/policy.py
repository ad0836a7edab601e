"""The published controller: a categorical distribution for each decision, trained by REINFORCE.

With logits theta, probabilities p_l = softmax(theta_l), an assignment a drawn from them, its reward r, a baseline b and
the advantage A = r - b, the controller descends

    L = -A mean_l log p_l(a_l) + w(t) mean_l H(p_l),    H(p) = -sum_c p_c log p_c

with Adam. The entropy is *penalized*, more and more: w rises along a cosine from 0 at the end of the delay to its
highest at the end of the search, so the policy collapses to one assignment while weights still adapt to it. During the
delay assignments are uniform, and the controller rests.

Rewards of an assignment of quality Q (minus the loss of a training batch), cost C and target C0:

    absolute      Q - beta |C / C0 - 1|
    excess        Q - beta max(0, C / C0 - 1)
    power         Q (C / C0)^beta                  beta > 0, because Q < 0 here
    power-excess  Q max(1, C / C0)^beta            the same

References:
    Dotzel et al., FLIQS: one-shot mixed-precision floating-point and integer quantization search, 2024,
        https://arxiv.org/abs/2308.03290, section 3, and the authors' code for what the paper leaves open.
    Bender et al., Can weight sharing outperform random architecture search? (TuNAS), 2020,
        https://arxiv.org/abs/2008.06120, section 3.1: the absolute reward.
    Kool et al., Buy 4 REINFORCE samples, get a baseline for free!, 2019, https://openreview.net/forum?id=r1lgTGL5DE:
        several assignments on one batch, the mean of the others as baseline.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lowbit.allocation import Assignment
from lowbit.errors import RecipeError, TrainingError

RewardName = Literal["absolute", "excess", "power", "power-excess"]
EntropyName = Literal["cosine", "linear", "constant", "heaviside"]
_LEAST = 1e-8  # of a probability, before its logarithm


@dataclass(frozen=True)
class Controller:
    """The controller's numbers, as published.

    Attributes:
        rate: of Adam.
        decay: of the baseline, a moving average of rewards.
        delay: share of the steps before the controller learns; TuNAS's, the authors' own is 2,500 steps of a long run.
        entropy: highest weight of the entropy.
        schedule: how that weight rises: along a cosine or a line, not at all, or at once after half of the steps.
        reward: see above.
        beta: what an excess over the target costs.
        samples: assignments a step; with several, all on one batch, without gradients for the weights but for the
            first, and the mean of the others is the baseline.
        relative: whether Q is minus the logarithm of the loss. A percent of the loss then counts as much as a percent
            of the budget (times beta), whatever the loss is and however far training has come.
    """

    rate: float = 5e-3
    decay: float = 0.99
    delay: float = 0.25
    entropy: float = 0.5
    schedule: EntropyName = "cosine"
    reward: RewardName = "absolute"
    beta: float = 1.0
    samples: int = 1
    relative: bool = False

    def __post_init__(self) -> None:
        for name, known in (("schedule", EntropyName), ("reward", RewardName)):
            if getattr(self, name) not in get_args(known):
                raise RecipeError(f"{name} {getattr(self, name)!r} is unknown; expected {', '.join(get_args(known))}")
        if not (self.rate > 0 and 0 <= self.decay < 1 and 0 <= self.delay < 1 and self.samples >= 1):
            raise RecipeError(
                f"got rate={self.rate}, decay={self.decay}, delay={self.delay}, samples={self.samples}; expected "
                "rate > 0, decay and delay in [0, 1), samples >= 1"
            )
        if self.reward.startswith("power") and (self.beta <= 0 or self.relative):
            raise RecipeError(
                f"reward {self.reward!r} with beta={self.beta}, relative={self.relative} would reward cost: quality is "
                "minus the loss, so give beta > 0, and leave relative out"
            )


def quality_of(loss: float, controller: Controller) -> float:
    """Q for the loss of an assignment; see `Controller.relative`."""
    return -math.log(max(loss, _LEAST)) if controller.relative else -loss


def reward_of(quality: float, ratio: float, how: RewardName, beta: float) -> float:
    """The reward for a quality at `ratio` = C / C0; see above."""
    match how:
        case "absolute":
            return quality - beta * abs(ratio - 1)
        case "excess":
            return quality - beta * max(0.0, ratio - 1)
        case "power":
            return float(quality * ratio**beta)
    return float(quality * max(1.0, ratio) ** beta)


def entropy_weight(step: int, steps: int, delay: int, most: float, schedule: EntropyName) -> float:
    """The weight of the entropy in a step of `steps`, of which the first `delay` have none."""
    if step < delay:
        return 0.0
    if step >= steps:
        return most
    done = (step - delay) / max(1, steps - delay)
    match schedule:
        case "cosine":
            return most * (1 - math.cos(math.pi * done)) / 2
        case "linear":
            return most * done
        case "constant":
            return most
    return most if step >= steps / 2 else 0.0


class Policy(nn.Module):
    """Logits `[decisions, choices]`, their optimizer and their baseline; all in its state dict.

    Where decisions have different numbers of choices, the logits of those that do not exist are minus infinity.

    Args:
        decisions, choices: the size of the space; `choices` of all decisions, or of each.
        steps: of the whole search.
        controller: the numbers.
        start: an assignment to begin near, with probability `sure`; the published start is uniform, logits of 0.5.
    """

    def __init__(
        self,
        decisions: int,
        choices: int | Sequence[int],
        steps: int,
        controller: Controller,
        *,
        start: Assignment | None = None,
        sure: float = 0.6,
    ) -> None:
        super().__init__()
        self.controller, self.steps, self.samples = controller, steps, controller.samples
        self.delay = int(controller.delay * steps)
        counts = torch.tensor([choices] * decisions if isinstance(choices, int) else choices)
        logits = torch.full((decisions, int(counts.max())), 0.5)
        logits[torch.arange(logits.shape[1]) >= counts[:, None]] = -math.inf
        if start is not None:
            others = (counts - 1).clamp(min=1)
            logits[torch.arange(decisions), torch.tensor(start)] += (sure * others / (1 - sure)).log()
        self.begun = start is not None  # nothing is drawn uniformly then
        self.logits = nn.Parameter(logits, requires_grad=False)  # not for the optimizer of the weights
        self.register_buffer("baseline", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))
        self.baseline: Tensor
        self.step: Tensor
        self.optimizer = torch.optim.Adam([self.logits], lr=controller.rate)

    def probabilities(self) -> Tensor:
        """p, `[decisions, choices]`."""
        return self.logits.detach().softmax(1)

    def best(self) -> Assignment:
        """The most probable choice of each decision."""
        return tuple(self.logits.argmax(1).tolist())

    def draw(self, generator: torch.Generator) -> Assignment:
        """An assignment from the policy; from uniform choices during the delay."""
        p = self.probabilities().cpu()
        if int(self.step) < self.delay and not self.begun:
            p = torch.isfinite(self.logits.detach().cpu()).float()
        return tuple(torch.multinomial(p, 1, generator=generator)[:, 0].tolist())

    def learn(self, drawn: Sequence[Assignment], losses: Sequence[float], ratios: Sequence[float]) -> list[float]:
        """Learn from the losses of a step's assignments, whose costs are `ratios` of the budget; the rewards.

        Raises:
            TrainingError: a reward is not finite; nothing has changed.
        """
        how = self.controller
        qualities = [quality_of(loss, how) for loss in losses]
        rewards = [reward_of(q, ratio, how.reward, how.beta) for q, ratio in zip(qualities, ratios, strict=True)]
        self.update(drawn, rewards)
        return rewards

    def update(self, drawn: Sequence[Assignment], rewards: Sequence[float]) -> None:
        """Learn from the rewards of a step's assignments.

        Raises:
            TrainingError: a reward is not finite; nothing has changed.
        """
        if not all(map(math.isfinite, rewards)):
            raise TrainingError(
                f"the reward of step {int(self.step) + 1} is {next(r for r in rewards if not math.isfinite(r))}; lower "
                "the learning rate, or leave out the formats that break the network"
            )
        advantages = self._advantages(rewards)
        self.step += 1
        if int(self.step) <= self.delay and not self.begun:
            return
        weight = entropy_weight(
            int(self.step) - 1, self.steps, self.delay, self.controller.entropy, self.controller.schedule
        )
        with torch.enable_grad():
            logits = self.logits.detach().requires_grad_()
            loss = policy_loss(logits, drawn, advantages, weight)
            (self.logits.grad,) = torch.autograd.grad(loss, [logits])
        self.optimizer.step()
        self.logits.grad = None

    def _advantages(self, rewards: Sequence[float]) -> list[float]:
        """How far each reward is above the others; one alone, above the moving average, which then takes it in."""
        if len(rewards) > 1:
            total = sum(rewards)
            return [r - (total - r) / (len(rewards) - 1) for r in rewards]
        (reward,) = rewards
        if not math.isfinite(float(self.baseline)):
            self.baseline.fill_(reward)
        advantage = reward - float(self.baseline)
        self.baseline.mul_(self.controller.decay).add_(reward * (1 - self.controller.decay))
        return [advantage]

    def get_extra_state(self) -> Any:
        """The optimizer's state, as a copy."""
        return copy.deepcopy(self.optimizer.state_dict())

    def set_extra_state(self, state: Any) -> None:
        """Restore the optimizer's state."""
        self.optimizer.load_state_dict(copy.deepcopy(state))


def unlikeliness(policy: Policy) -> list[list[float]]:
    """-log p, of each choice of each decision that exists."""
    counts = torch.isfinite(policy.logits).sum(1).tolist()
    every = (-policy.probabilities().double().clamp(min=_LEAST).log()).tolist()
    return [row[:count] for row, count in zip(every, counts, strict=True)]


def policy_loss(logits: Tensor, drawn: Sequence[Assignment], advantages: Sequence[float], weight: float) -> Tensor:
    """-A mean_l log p_l(a_l), the mean over assignments, plus `weight` times the mean entropy."""
    p = logits.softmax(1).clamp(min=_LEAST)
    log_p = p.log()
    chosen = torch.tensor(drawn, device=logits.device)[..., None]  # [samples, decisions, 1]
    of_drawn = log_p.expand(len(drawn), *log_p.shape).gather(2, chosen)[..., 0].mean(1)
    entropy = -(p * log_p).sum(1).mean()
    return -(of_drawn * torch.tensor(advantages, device=logits.device)).mean() + weight * entropy
