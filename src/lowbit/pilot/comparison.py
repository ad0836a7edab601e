"""What a test of two models found, and its verdict: an interval held against the loss that does not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowbit.pilot.differing import ClassRow, Difference
from lowbit.pilot.metrics import AGREEMENTS, SHARES
from lowbit.pilot.record import Score

METRICS = ("accuracy", "agreement", "cosine", "r2", "hits", "error")
Decision = Literal["better", "equivalent", "no worse", "worse", "undecided"]
MARGIN = 0.01  # of metrics whose unit is known: a point of accuracy


@dataclass(frozen=True)
class Comparison:
    """What a paired A/B test found. `effect` is B - A in units of the metric, `a` and `b` are the metric of each.

    `lost` and `won` count samples that only A, or only B, has right; with agreement those that B predicts otherwise are
    lost. `needed` is how many samples in all a test takes that decides in 80 % of all cases, `needed_if_equal` the same
    if there is no true difference; both are None where none is needed or no number would do. `p_value` and `mid_p` are
    of McNemar's test. Samples in `differences` that B loses come first.
    """

    metric: str
    margin: float
    samples: int
    verdict: Decision
    a: Score
    b: Score
    effect: Score
    larger_is_better: bool = True
    p_value: float | None = None
    mid_p: float | None = None
    lost: int | None = None
    won: int | None = None
    needed: int | None = None
    needed_if_equal: int | None = None
    differences: tuple[Difference, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether B is better, or no worse within the margin."""
        return self.verdict in ("better", "equivalent", "no worse")

    def __str__(self) -> str:
        interval = f"95 % interval {self._gap(self.effect.low)} to {self._gap(self.effect.high)}"
        unit = " points" if self.metric in SHARES else ""
        return (
            f"{self._said()}: {self.metric} {self.figure(self.b.value)} against {self.figure(self.a.value)}, B - A is "
            f"{self._gap(self.effect.value)}{unit} ({interval})"
        )

    def figure(self, value: float) -> str:
        """A value of the metric as text: shares in percent."""
        return f"{100 * value:.2f} %" if self.metric in SHARES else f"{value:.4g}"

    def need(self) -> str:
        """How many more samples a decision takes and what that assumes; empty if there is a decision."""
        if self.verdict != "undecided":
            return ""
        if self.needed is None:
            told = "the effect seen lies on the margin, where no number of samples decides"
        else:
            told = (
                f"a decision takes about {self.needed - self.samples:,} samples more, {self.needed:,} in all (80 % "
                "power, if the true effect and the spread are those seen)"
            )
        if self.needed_if_equal is not None:
            told += f"; {self.needed_if_equal:,} in all if the models are equally good"
        return f"{told}. Decide once, at that number: looking again after each addition errs more often"

    def _gap(self, value: float) -> str:
        """A change of the metric as text, of shares in percentage points."""
        return f"{100 * value:+.2f}" if self.metric in SHARES else f"{value:+.4g}"

    def _said(self) -> str:
        gain = gain_of(self.effect, self.larger_is_better)
        points = f"{100 * self.margin:g} point{'' if self.margin == MARGIN else 's'}"
        shown = points if self.metric in SHARES else f"{self.margin:g}"
        margin = f"the margin of {shown}"
        match self.verdict:
            case "better":
                return "B is better than A" + (", by less than the margin" if gain.high < self.margin else "")
            case "equivalent":
                a_little = ", though worse by a little" if gain.high < 0 and self.metric not in AGREEMENTS else ""
                return f"B is equivalent to A within {margin}{a_little}"
            case "no worse":
                return f"B is no worse than A within {margin}"
            case "worse":
                beyond = gain.high < -self.margin
                return f"B is worse than A{' by more than' if beyond else ', maybe by less than'} {margin}"
            case "undecided":
                if gain.high < 0:
                    return f"undecided, B loses something, but maybe less than {margin}"
                return f"undecided, B may lose more than {margin}, or nothing"


def gain_of(effect: Score, larger_is_better: bool) -> Score:
    """What B gains: the effect, turned around where smaller is better."""
    return effect if larger_is_better else -effect


def verdict_of(gain: Score, margin: float, *, only_loses: bool = False) -> Decision:
    """What the interval of a gain says; with `only_loses` it cannot be above 0, and being below 0 says nothing."""
    if gain.low > 0:
        return "better"
    if gain.low > -margin:
        return "equivalent" if gain.high < margin else "no worse"
    if gain.high < -margin or (not only_loses and gain.high < 0 and gain.value < -margin):
        return "worse"
    return "undecided"
