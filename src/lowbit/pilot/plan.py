"""What a pilot will do, as a record and in words: trials in the order they start, their steps, times and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PAGE, _PAGE_VARIANT = 60_000, 25_000  # bytes


@dataclass(frozen=True)
class Step:
    """One step of a trial, and about how many seconds it takes."""

    name: str
    seconds: float


@dataclass(frozen=True)
class TrialPlan:
    """One trial that will run, or that is finished and kept; `file` and `bytes` are those of its ONNX file and folder.

    `settings` is what it was asked for, in words. A kept trial has no steps.
    """

    name: str
    settings: str
    steps: tuple[Step, ...]
    kept: bool
    file: float
    bytes: float

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return sum(step.seconds for step in self.steps)


@dataclass(frozen=True)
class Plan:
    """What a pilot will do: trials in the order they start, then the latency of all files, and the report.

    `checkpoint_bytes` is what training needs beside that while it runs, and `memory` the most that one process holds,
    both in bytes; `basis` says what the estimates are from, and `seeds` what is run more than once, empty for nothing.
    """

    name: str
    kpi: str
    data: tuple[str, ...]
    folder: Path
    trials: tuple[TrialPlan, ...]
    last: tuple[Step, ...]
    checkpoint_bytes: float
    memory: float
    jobs: int
    basis: str
    seeds: str = ""

    @property
    def seconds(self) -> float:
        """About how long the command takes: trials side by side where `jobs` says so, but for the float baseline."""
        first, others = self.trials[0].seconds, [trial.seconds for trial in self.trials[1:]]
        at_once = max(1, min(self.jobs, len(others)))
        together = max(sum(others) / at_once, max(others, default=0.0))
        return first + together + sum(step.seconds for step in self.last)

    @property
    def bytes(self) -> float:
        """What the run folder holds at the end."""
        return sum(trial.bytes for trial in self.trials) + _PAGE + _PAGE_VARIANT * len(self.trials)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.kpi}", *(f"  {line}" for line in (*self.data, self.seeds) if line)]
        lines += ["", "In this order:"]
        for number, trial in enumerate(self.trials, start=1):
            takes = "kept, finished in the run folder" if trial.kept else f"about {_duration(trial.seconds)}"
            lines.append(f"{number:>3}. {trial.name}: {takes}, file about {size(trial.file)}")
            lines.append(f"     {trial.settings}")
            if trial.steps:
                lines.append("     " + ", ".join(f"{step.name} {_duration(step.seconds)}" for step in trial.steps))
        after = ", ".join(f"{step.name} {_duration(step.seconds)}" for step in self.last)
        lines.append(f"{len(self.trials) + 1:>3}. all files: {after}")
        side = f", {self.jobs} variants at once" if self.jobs > 1 else ""
        written = f"about {size(self.bytes)}"
        if self.checkpoint_bytes:
            written += f", and while it trains up to {size(self.checkpoint_bytes)} of checkpoints"
        lines += [
            "",
            f"In all about {_duration(self.seconds)}{side}.",
            f"It writes {self.folder}: {written}; report.html is the page.",
            f"Memory: about {size(self.memory)} in each process.",
            self.basis,
        ]
        return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as text."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
