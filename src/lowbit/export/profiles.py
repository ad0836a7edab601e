"""What a file saw: a few numbers a tensor that later data can be compared with, kept in the manifest by `verify`.

For every quantized tensor: how often its codes came, in about ten bins of about equal share, and how often the lowest
and the highest one, where numbers are cut off. For the inputs: the mean of each channel, and how samples differ in it.
For the output: how often each class was predicted, and by what margin; or where it is of quantities, how the values of
each are spread.

A sample is one observation, however many codes it brings. So each share comes with its spread between samples; `drift`
says what for. Counting takes constant memory: a histogram a sample, of which only sum and products are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lowbit.batches import Batch, Batches, call, inputs_of, output_tensor, size_of
from lowbit.drift import Means, Shares
from lowbit.errors import DataError, LowbitError
from lowbit.export.codes import CodeRange, code_ranges, code_tensors, feed_of
from lowbit.export.predicted import Predictions
from lowbit.export.quantities import Distances, values_of
from lowbit.export.runtime import Array, RuntimeName, Session
from lowbit.progress import track

Floats = npt.NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[FiniteFloat, Field(ge=0)]
_BINS = 10  # of a tensor's codes at most, about; the rule of thumb for the stability index is one for tenths
_CELLS = 256  # that bins are made of; a code each, but for 16-bit codes
_CLASSES = 32  # that have a count of their own, the others one together
_CHANNELS = 8  # means of an input; of more channels, neighbors have one together
_STRICT = ConfigDict(frozen=True, extra="forbid")


@final
class TensorProfile(BaseModel):
    """How often the codes of a quantized tensor came.

    Attributes:
        starts: lowest code of each bin, `[k]`; a bin ends where the next one starts.
        highest: the highest code that the tensor can have.
        shares: of the codes in each bin, `[k]`.
        total, squares: how these differ from sample to sample, see `lowbit.drift.Shares`.
        low, high: share of the lowest and the highest code, and its deviation between samples. `low` is None where the
            lowest code means zero, as behind a ReLU: nothing is cut off there.
    """

    model_config = _STRICT

    starts: tuple[NonNegativeInt, ...] = Field(min_length=1)
    highest: NonNegativeInt
    shares: tuple[Share, ...]
    total: Spread
    squares: Spread
    low: tuple[Share, Spread] | None
    high: tuple[Share, Spread]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.starts) != len(self.shares):
            raise ValueError(f"{len(self.starts)} starts and {len(self.shares)} shares, expected one each a bin")
        if list(self.starts) != sorted(set(self.starts)) or self.highest < self.starts[-1]:
            raise ValueError("starts do not ascend up to highest")
        if abs(sum(self.shares) - 1) > 0.01:
            raise ValueError(f"shares add up to {sum(self.shares):.3g}, expected 1")
        return self

    def as_shares(self, samples: int) -> Shares:
        """The shares of the bins, to be compared."""
        shares = np.asarray(self.shares)
        return Shares(shares / shares.sum(), samples, self.total, self.squares)


@final
class InputProfile(BaseModel):
    """One float input: what samples have in each channel on average, then their standard deviation over all numbers.

    Attributes:
        mean: over samples, `[d]`.
        covariance: between samples, the lower triangle row by row, `[d (d + 1) / 2]`.
    """

    model_config = _STRICT

    mean: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=_CHANNELS + 1)
    covariance: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        d = len(self.mean)
        if len(self.covariance) != d * (d + 1) // 2:
            raise ValueError(f"covariance has {len(self.covariance)} numbers, expected {d * (d + 1) // 2}")
        if min(np.diag(self.as_means(1).covariance)) < 0:
            raise ValueError("covariance has a variance below 0")
        return self

    def as_means(self, samples: int) -> Means:
        """Mean and full covariance, to be compared."""
        full = np.zeros((len(self.mean), len(self.mean)))
        full[np.tril_indices(len(self.mean))] = self.covariance
        return Means(np.asarray(self.mean), full + np.tril(full, -1).T, samples)


@final
class OutputProfile(BaseModel):
    """Which classes were predicted, and by how much their output was ahead of the next one's.

    Attributes:
        classes, counts: the classes that came most, and how often each came.
        others: how often all other classes came.
        edges: deciles of the margin; of an only output, its deciles.
        margins: how often it came below, between and from the edges on, one count more than edges.
        probability: of an only output, whether it was read as a probability, and not as a logit.
    """

    model_config = _STRICT

    classes: tuple[NonNegativeInt, ...] = Field(max_length=_CLASSES)
    counts: tuple[NonNegativeInt, ...]
    others: NonNegativeInt
    edges: tuple[FiniteFloat, ...]
    margins: tuple[NonNegativeInt, ...]
    probability: bool | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.counts) != len(self.classes) or len(set(self.classes)) != len(self.classes):
            raise ValueError("counts are not one a class")
        if len(self.margins) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("margins do not fit ascending edges")
        if sum(self.margins) != sum(self.counts) + self.others:
            raise ValueError(f"{sum(self.margins)} margins, but {sum(self.counts) + self.others} predictions")
        return self


@final
class QuantityProfile(BaseModel):
    """How the values of one quantity that the file returns are spread.

    Attributes:
        edges: its deciles.
        counts: how often it came below, between and from the edges on, one count more than edges.
    """

    model_config = _STRICT

    edges: tuple[FiniteFloat, ...]
    counts: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.counts) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("counts do not fit ascending edges")
        return self


@final
class Distance(BaseModel):
    """How far quantities that the file returns lie from the float model's; see `lowbit.export.quantities.Distances`.

    Attributes:
        mean, spread: of the samples' squared distances, which are means over quantities in units of `deviations`.
        samples: how many.
        deviations: of the float model's quantities, `[Q]`.
    """

    model_config = _STRICT

    mean: Spread
    spread: Spread
    samples: PositiveInt
    deviations: tuple[Spread, ...] = Field(min_length=1)

    @staticmethod
    def measured(found: Distances) -> Distance:
        """Of all samples that were counted."""
        deviations = _digits(found.deviations(), 6)
        mean, spread = spread_of(found.of_samples(np.asarray(deviations)))
        return Distance(mean=mean, spread=spread, samples=found.samples, deviations=tuple(deviations))


@final
class Agreement(BaseModel):
    """On how many samples the file predicts what the float model predicts."""

    model_config = _STRICT

    same: NonNegativeInt
    samples: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.same > self.samples:
            raise ValueError(f"{self.same} of {self.samples} samples agree")
        return self


@final
class Profile(BaseModel):
    """The manifest's section ``watch``: what a file saw, how many samples of it, in which runtime.

    Class scores have `output` and `agreement` with the float model, others `quantities` and their `distance` from it.
    """

    model_config = _STRICT

    samples: PositiveInt
    runtime: RuntimeName
    tensors: dict[str, TensorProfile]
    inputs: dict[str, InputProfile]
    output: OutputProfile | None = None
    agreement: Agreement | None = None
    quantities: tuple[QuantityProfile, ...] = ()
    distance: Distance | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.output is None) != bool(self.quantities):
            raise ValueError("expected an output, of class scores, or quantities, and not both")
        if self.output is not None and sum(self.output.margins) != self.samples:
            raise ValueError(f"{sum(self.output.margins)} predictions of {self.samples} samples")
        for number, one in enumerate(self.quantities):
            if sum(one.counts) != self.samples:
                raise ValueError(f"{sum(one.counts)} values of quantity {number} in {self.samples} samples")
        if self.distance is not None and len(self.distance.deviations) != len(self.quantities):
            raise ValueError("distance does not have a deviation for each quantity")
        return self


@final
class TensorCounts:
    """How often each code of one tensor came, sample by sample, in constant memory."""

    def __init__(self, codes: CodeRange) -> None:
        self.range = codes
        self.width = -(-(codes.highest - codes.lowest + 1) // _CELLS)
        self.cells = -(-(codes.highest - codes.lowest + 1) // self.width)
        self.samples = 0
        self.whole = True  # whether samples could be told apart in all that came
        # sums over samples of the shares of the cells and of the two ends, and of their products
        self._sums, self._products = np.zeros(self.cells), np.zeros((self.cells, self.cells))
        self._ends, self._end_squares = np.zeros(2), np.zeros(2)

    def add(self, codes: Array, samples: int) -> None:
        """Count the codes of so many samples, which are along the first dimension."""
        if not codes.size or not codes.ndim or codes.shape[0] % samples:
            self.whole = False
            return
        rows = codes.reshape(samples, -1)
        cells = rows if self.width == 1 else (rows - self.range.lowest) // self.width
        first = self.range.lowest if self.width == 1 else 0
        counts = np.stack([np.bincount(row, minlength=first + self.cells) for row in cells])[:, first:]
        shares = counts / rows.shape[1]
        ends = shares[:, [0, -1]]
        if self.width > 1:
            ends = np.stack([(rows == end).mean(1) for end in (self.range.lowest, self.range.highest)], 1)
        self.samples += samples
        self._sums += shares.sum(0)
        self._products += shares.T @ shares
        self._ends += ends.sum(0)
        self._end_squares += (ends**2).sum(0)

    def starts(self) -> tuple[int, ...]:
        """Lowest codes of bins that hold about equal shares; a code that comes more often has a bin of its own."""
        shares, least = self._sums / self.samples, 1 / _BINS
        bins = [0]
        held = 0.0
        for cell, share in enumerate(shares):
            if (held >= least or (share >= least and held >= least / 2)) and bins[-1] < cell:
                bins.append(cell)
                held = 0.0
            held += share
        if held < least / 2 and len(bins) > 1:  # the last one is too rare to be compared
            bins.pop()
        if len(bins) == 1:  # one code, or hardly another: that code against what is below and above it
            most = int(shares.argmax())
            bins = sorted({0, most, min(most + 1, self.cells - 1)})
        return tuple(self.range.lowest + cell * self.width for cell in bins)

    def has(self, starts: Sequence[int], highest: int) -> bool:
        """Whether these can be bins of this tensor."""
        cells = {(start - self.range.lowest) // self.width for start in starts}
        return (starts[0], highest) == (self.range.lowest, self.range.highest) and len(cells) == len(starts)

    def shares(self, starts: Sequence[int]) -> Shares:
        """Mean shares of bins, and how samples differ in them."""
        cells = [(start - self.range.lowest) // self.width for start in starts]
        mean = np.add.reduceat(self._sums, cells) / self.samples
        products = np.add.reduceat(np.add.reduceat(self._products, cells, axis=0), cells, axis=1)
        unbiased = max(self.samples - 1, 1)
        return Shares.measured(mean, (products - self.samples * np.outer(mean, mean)) / unbiased, self.samples)

    def end(self, which: int) -> tuple[float, float]:
        """Share of the lowest (0) or highest (1) code, and its deviation between samples."""
        mean = float(self._ends[which] / self.samples)
        variance = (float(self._end_squares[which]) - self.samples * mean**2) / max(self.samples - 1, 1)
        return min(mean, 1.0), max(variance, 0.0) ** 0.5

    def _kept_end(self, which: int) -> tuple[float, float]:
        share, deviation = _digits(self.end(which))
        return share, deviation

    def profile(self) -> TensorProfile:
        """What is kept, shares with 4 digits."""
        starts = self.starts()
        shares = self.shares(starts)
        return TensorProfile(
            starts=starts,
            highest=self.range.highest,
            shares=tuple(_digits(shares.shares)),
            total=_digits([shares.total])[0],
            squares=_digits([shares.squares])[0],
            low=self._kept_end(0) if self.range.zero > self.range.lowest else None,
            high=self._kept_end(1),
        )


class _InputMeans:
    """Running means and products of what each sample has in each channel of one input."""

    def __init__(self) -> None:
        self.samples, self._sum, self._products = 0, np.zeros(0), np.zeros((0, 0))

    def add(self, x: Tensor) -> None:
        """Take a batch `[n, ...]` into account; the channels are along its second dimension."""
        n = len(x)
        wide = x.detach().cpu().double().reshape(n, x.shape[1] if x.dim() > 1 else 1, -1)
        groups = np.array_split(np.arange(wide.shape[1]), min(wide.shape[1], _CHANNELS))
        means = [wide[:, group[0] : group[-1] + 1].reshape(n, -1).mean(1) for group in groups]
        rows = torch.stack([*means, wide.reshape(n, -1).std(1, correction=0)], 1).numpy()
        if not self.samples:
            self._sum, self._products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        if rows.shape[1] != len(self._sum):
            raise DataError(f"got inputs of {rows.shape[1] - 1} channels after {len(self._sum) - 1}, expected as many")
        if not np.isfinite(rows).all():
            raise DataError("got inputs that hold NaN or infinity, expected finite numbers; remove these samples")
        self.samples += n
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def means(self) -> Means:
        mean = self._sum / self.samples
        covariance = (self._products - self.samples * np.outer(mean, mean)) / max(self.samples - 1, 1)
        np.fill_diagonal(covariance, np.maximum(np.diag(covariance), 0))
        return Means(mean, covariance, self.samples)


@final
class Profiler:
    """Counts what a file sees, batch by batch.

    Args:
        graph: of the file.
        runtime: that executes it.
        float_model: what the file replaces, if its outputs are to be compared.
        quantities: whether outputs are quantities, and no class scores.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        runtime: RuntimeName,
        float_model: nn.Module | None = None,
        *,
        quantities: bool = False,
    ) -> None:
        self.names, self.runtime, self.float_model = code_tensors(graph), runtime, float_model
        self.quantities, self.distances = quantities, Distances()
        self.tensors = {name: TensorCounts(codes) for name, codes in code_ranges(graph, self.names).items()}
        self.inputs: dict[str, _InputMeans] = {}
        self.predicted, self.wanted = Predictions(), Predictions()
        self._values: list[Floats] = []

    def run(self, session: Session, batches: Batches, *, progress: bool = False) -> None:
        """Count what a session that returns codes (`reading_codes`) sees.

        Raises:
            DataError: the file does not take the inputs.
        """
        for batch in track(batches, "watch", show=progress):
            by_tensor = dict(zip(session.outputs, ran(session, batch), strict=True))
            codes = {name: by_tensor[tensor] for name, tensor in self.names.items()}
            self.add(batch, codes, by_tensor[session.outputs[0]])

    def add(self, batch: Batch, codes: Mapping[str, Array], output: Array) -> None:
        """Count the codes of each tensor, by its name, and the output of a batch.

        Raises:
            DataError: outputs are not finite.
        """
        samples = size_of(batch)
        if not samples:
            return
        if not np.isfinite(output.astype(np.float32)).all():
            raise DataError("the file returns NaN or infinity; check the data and the model")
        for name, counts in self.tensors.items():
            counts.add(codes[name], samples)
        args, kwargs = inputs_of(batch)
        for name, x in [*(("input", a) for a in args), *kwargs.items()]:
            if x.is_floating_point() and x.numel():
                self.inputs.setdefault(name, _InputMeans()).add(x)
        self._values.append(values_of(output) if self.quantities else _margins(output)[:, None])
        if not self.quantities:
            self.predicted.add(output)
        if self.float_model is not None:
            with torch.no_grad():
                self.compare(output, output_tensor(call(self.float_model, batch)).cpu().numpy())

    def compare(self, output: Array, wanted: Array) -> None:
        """Take what the float model returns for a batch into account, beside what the file does.

        Raises:
            DataError: quantities of different shapes.
        """
        if self.quantities:
            self.distances.add(output, wanted)
        else:
            self.wanted.add(wanted)

    def values(self) -> Floats:
        """Of each sample the quantities, `[n, Q]`, or by how much the predicted class was ahead, `[n, 1]`.

        Raises:
            DataError: no samples.
        """
        if not self._values:
            raise DataError("got no samples to watch; give at least one batch")
        return np.concatenate(self._values)

    def counted(self) -> dict[str, TensorCounts]:
        """The tensors whose samples could be told apart, by name."""
        return {name: counts for name, counts in self.tensors.items() if counts.whole}

    def profile(self) -> Profile:
        """What the manifest keeps.

        Raises:
            DataError: no samples.
        """
        values = self.values()
        lower = {name: np.tril_indices(len(seen.means().mean)) for name, seen in self.inputs.items()}
        compared = self.float_model is not None
        return Profile(
            samples=len(values),
            runtime=self.runtime,
            tensors={name: counts.profile() for name, counts in self.counted().items()},
            inputs={
                name: InputProfile(
                    mean=tuple(_digits(seen.means().mean, 8)),
                    covariance=tuple(_digits(seen.means().covariance[lower[name]], 6)),
                )
                for name, seen in self.inputs.items()
            },
            output=None if self.quantities else self._output(values[:, 0]),
            agreement=self._agreement() if compared and not self.quantities else None,
            quantities=tuple(map(_quantity, values.T)) if self.quantities else (),
            distance=Distance.measured(self.distances) if compared and self.quantities else None,
        )

    def _output(self, margins: Floats) -> OutputProfile:
        probability = self.predicted.probability() if self.float_model is None else self.wanted.probability()
        counts = Counter(self.predicted.classes(probability=probability).tolist())
        most, edges = counts.most_common(_CLASSES), _deciles(margins)
        return OutputProfile(
            classes=tuple(one for one, _ in most),
            counts=tuple(count for _, count in most),
            others=counts.total() - sum(count for _, count in most),
            edges=tuple(edges),
            margins=tuple(binned(margins, edges)),
            probability=probability if self.predicted.single else None,
        )

    def _agreement(self) -> Agreement:
        found = self.predicted.classes(probability=self.wanted.probability())
        return Agreement(same=int((found == self.wanted.classes()).sum()), samples=len(found))


def spread_of(distances: Floats) -> tuple[float, float]:
    """Mean of the samples' squared distances, and their deviation between samples."""
    return float(distances.mean()), float(distances.std(ddof=1)) if len(distances) > 1 else 0.0


def _quantity(values: Floats) -> QuantityProfile:
    edges = _deciles(values)
    return QuantityProfile(edges=tuple(edges), counts=tuple(binned(values, edges)))


def _deciles(values: Floats) -> list[float]:
    return sorted(set(_digits(np.quantile(values, np.arange(1, 10) / 10), 6)))


def binned(values: Floats, edges: Sequence[float]) -> list[int]:
    """How many values lie below, between and from the edges on; one count more than edges."""
    places = np.searchsorted(np.asarray(edges), values, side="right")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def ran(session: Session, batch: Batch) -> list[Array]:
    """The outputs of a session for a batch.

    Raises:
        DataError: the file does not take it; the message holds the runtime's own.
    """
    try:
        return session.run(feed_of(batch, session))
    except LowbitError:
        raise
    except Exception as error:  # runtimes raise their own types, and a missing input is a KeyError
        args, kwargs = inputs_of(batch)
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in [*(("", a) for a in args), *kwargs.items()])
        raise DataError(
            f"the file does not take inputs of shape {shapes.strip()} ({' '.join(str(error).split())[:200]}); correct "
            "the data or its preprocessing"
        ) from error


def _margins(output: Array) -> Floats:
    rows = output.reshape(len(output), -1).astype(np.float64)
    if rows.shape[1] == 1:
        return rows[:, 0]
    top = np.partition(rows, rows.shape[1] - 2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _digits(numbers: Sequence[float] | Floats, digits: int = 4) -> list[float]:
    return [float(f"{number:.{digits}g}") for number in numbers]
