"""What a training run keeps: its counts, its log, the last checkpoint and the best weights."""

from __future__ import annotations

import contextlib
import json
import reprlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import files
from lowbit.errors import DataError, TrainingError


@dataclass(frozen=True)
class Epoch:
    """One pass over the batches: `loss` is the mean over its samples, `rate` the learning rate of its last step."""

    number: int
    loss: float
    score: float | None
    rate: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """What training did: its epochs, the number of the one whose weights the model holds, and the steps in all."""

    epochs: tuple[Epoch, ...]
    best: int
    steps: int


@dataclass
class Counts:
    """Where training stands, in plain numbers."""

    length: int = 0  # batches in an epoch
    epochs: list[Epoch] = field(default_factory=list)  # finished
    best: int = 0
    steps: int = 0  # in all
    step: int = 0  # in the epoch, as are the next three
    loss: float = 0.0  # sum over samples
    samples: int = 0
    seconds: float = 0.0
    log_size: int = 0  # bytes


@dataclass
class Keeper:
    """What a run keeps, in memory and in its folder: log, last checkpoint, weights of the best epoch."""

    model: nn.Module
    optimizer: Any
    accelerator: Any
    options: dict[str, object]
    folder: Path | None

    def __post_init__(self) -> None:
        self.writes = self.folder is not None and self.accelerator.is_main_process
        self.where = "the start"
        self.last = _copied(self.model.state_dict())
        self.best: dict[str, Any] | None = None

    def resume(self) -> Counts:
        """Go to the last checkpoint in the folder, if there is one.

        Raises:
            TrainingError: it is of another run.
            DataError: it is damaged.
        """
        counts = Counts()
        if self.folder is None:
            return counts
        path = self.folder / "checkpoint.pt"
        if path.exists():
            with _resuming(path), files.reading(path), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle protocol of a damaged file
                stored = torch.load(path, map_location="cpu", weights_only=True)
                self._compare(stored["options"])
                counts = Counts(**{**stored["counts"], "epochs": [Epoch(**e) for e in stored["counts"]["epochs"]]})
                self._restore(stored)
                self.where, self.last, self.best = f"step {counts.steps}", stored["weights"], stored["best"]
        if self.writes:
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / "log.jsonl").open("ab") as log:
                    log.truncate(min(counts.log_size, log.tell()))
        return counts

    def _compare(self, there: dict[str, object]) -> None:
        for name in {**self.options, **there}:
            if self.options.get(name) != there.get(name):
                raise other_run(self.folder, name, there.get(name), self.options.get(name))

    def _restore(self, stored: dict[str, Any]) -> None:
        _load(self.model, stored["weights"])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(stored["scaler"])
        for name, module in self.model.named_modules():
            module.training = name not in stored["in_eval_mode"]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in stored["without_gradient"])

    def save(self, counts: Counts) -> None:
        """Keep all that the next step depends on.

        Raises:
            TrainingError: weights are not finite; the checkpoint before stays.
        """
        learned = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        if not bool(torch.stack([p.isfinite().all() for p in learned]).all()):
            raise self.broken("weights are not finite", len(counts.epochs) + bool(counts.step), counts.steps)
        scaler = self.accelerator.scaler
        self.where, self.last = f"step {counts.steps}", _copied(self.model.state_dict())
        if not self.writes or self.folder is None:
            return
        state = {
            "options": self.options,
            "counts": asdict(counts),
            "weights": self.last,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "in_eval_mode": [name for name, module in self.model.named_modules() if not module.training],
            "without_gradient": [name for name, p in self.model.named_parameters() if not p.requires_grad],
        }
        with files.replacing(self.folder / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def keep_best(self) -> None:
        """Remember the weights as they are as those of the best epoch."""
        self.best = _copied(self.model.state_dict())

    def load_best(self) -> None:
        """Give the model the weights of the best epoch."""
        assert self.best is not None
        _load(self.model, self.best)

    def log(self, counts: Counts, row: dict[str, object]) -> None:
        """Write a line of the log, and how long the log is now."""
        if self.writes and self.folder is not None:
            path = self.folder / "log.jsonl"
            with _writing(path), path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
                counts.log_size = file.tell()

    def broken(self, what: str, epoch: int, step: int, rate: float | None = None) -> TrainingError:
        """The error of training that went astray, with the model put back to where it was good."""
        _load(self.model, self.last)
        self.model.eval()
        at = "" if rate is None else f" at learning rate {rate:.3g}"
        return TrainingError(
            f"{what} in epoch {epoch}, step {step}{at}; lower `rate` or `scale_rate`, or set `clip`"
            f"{', and give another folder' if self.folder else ''} (the last good weights are those of {self.where})"
        )


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().cpu().clone() if isinstance(v, Tensor) else v for name, v in state.items()}


def _load(model: nn.Module, weights: dict[str, Any]) -> None:
    """Load a state dict, with buffers that are None at one time of the training and tensors at another."""
    for name in {**model.state_dict(), **weights}:
        owner, _, key = name.rpartition(".")
        buffers = model.get_submodule(owner)._buffers
        if key in buffers and (buffers[key] is None) == (name in weights):
            device = next(model.parameters()).device
            buffers[key] = weights[name].clone().to(device) if name in weights else None
    model.load_state_dict(weights)


def described(parameter: nn.Parameter) -> str:
    """Type and shape of a parameter, by which a checkpoint is known."""
    dtype = str(parameter.dtype).removeprefix("torch.")
    return f"{dtype}{list(parameter.shape)}{'' if parameter.requires_grad else ' fixed'}"


def other_run(folder: Path | None, name: str, there: object, here: object) -> TrainingError:
    """The error of a folder that holds another run, whose `name` differs."""
    return TrainingError(
        f"'{folder}' holds a checkpoint of another run: {name} {reprlib.repr(there)} there, "
        f"{reprlib.repr(here)} here; give another folder, or delete this one to train anew"
    )


@contextlib.contextmanager
def _resuming(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}, or delete '{path}' to train anew") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write '{path}': {error.strerror or error}; choose a folder you may write to"
        ) from error
