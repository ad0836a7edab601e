"""What a pilot writes down: the records of one run, as plain frozen dataclasses.

A run folder holds one `run.json` (a `Run` without its trials) and one `variants/<name>/trial.json` a variant. The
report is drawn from these records alone, so a page can be made again long after the run, on another machine.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from lowbit import files
from lowbit.errors import DataError

Verdict = Literal["meets", "borderline", "misses", "failed"]
Requirement = Literal["minimum", "maximum", "tolerance", "seeds", "size", "bops", "latency"]


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval: shares (accuracy, agreement) are in [0, 1].

    `undefined` is the share of the bootstrap's resamples on which an own metric has no value: the interval is that of
    the others.
    """

    value: float
    low: float
    high: float
    samples: int
    undefined: float = 0.0

    def __neg__(self) -> Score:
        """The same with the other sign."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


@dataclass(frozen=True)
class LatencyRow:
    """Wall time of one batch in a runtime, in milliseconds: median, 10th and 90th percentile over `repeats` calls."""

    runtime: str
    batch: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


@dataclass(frozen=True)
class LayerRow:
    """One layer of a variant: what it holds, what it costs, and how it ran.

    `kernel` is the operator that the runtime really executed (``QLinearConv``, ``Conv``, ...); `reason` says why a
    layer stayed float, and is empty for a quantized one. `sqnr_db` is the weights' signal to quantization noise ratio,
    `shape` that of the weight, empty where a layer has not just one.
    """

    name: str
    kind: str
    weights: str
    activations: str
    granularity: str
    parameters: int
    macs: int
    bops: int
    weight_bytes: int
    sqnr_db: float | None
    kernel: str
    reason: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class ObstacleRow:
    """What keeps a file from being faster, and a remedy; `where` is layers or tensors, or empty for the whole file.

    `operations` are those without weights that compute in float between integer layers, where they are the reason.
    """

    where: tuple[str, ...]
    what: str
    remedy: str
    operations: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerificationRow:
    """How the exported file compared with the fake-quantized model on real inputs, and why it is not faster.

    Where outputs are quantities or embeddings, which predict no class, `same_prediction` is None, and `apart` the root
    mean square difference in standard deviations of the model's, the largest of theirs.
    """

    runtime: str
    samples: int
    same_prediction: float | None
    same_codes: float
    largest_code_difference: int
    kernels: dict[str, int]
    stayed_float: tuple[str, ...]
    obstacles: tuple[ObstacleRow, ...] = ()
    apart: float | None = None


@dataclass(frozen=True)
class QuantityRow:
    """One of several quantities that a network returns, such as a speed, in its own unit.

    `r2` and `rmse` are of the variant's file, those with `_float` of the float model's. `difference` is the r2 less
    that of float, paired. No r2 where all targets are equal, or where it is not defined on too many resamples.
    """

    r2: float | None
    rmse: float
    r2_float: float | None
    rmse_float: float
    difference: Score | None


@dataclass(frozen=True)
class EpochRow:
    """One pass over the training inputs: mean loss, score on held-out inputs, last learning rate, wall time.

    `agreement` is with the teacher; where labels were learned and held-out inputs have some, it is with these.
    """

    number: int
    loss: float
    agreement: float | None
    rate: float
    seconds: float


@dataclass(frozen=True)
class RangeRow:
    """The range of a quantizer before and after training, EWGS's delta at the end, and the share that is clipped."""

    name: str
    low_before: float
    high_before: float
    low: float
    high: float
    delta: float
    clipped: float


@dataclass(frozen=True)
class TeacherRow:
    """What was found of the teacher on held-out inputs; None where it does not apply.

    `confidence` is its mean largest class probability, `agreement` how well its outputs hold under augmentation.
    """

    confidence: float | None
    agreement: float
    accuracy: float | None
    concerns: tuple[str, ...]


@dataclass(frozen=True)
class DistillationRow:
    """How a variant was distilled, and what that gained over post-training alone.

    `before` and `after` say how well held-out outputs agree with the teacher's, 1 at best, and `best` is the number of
    the epoch that was kept. `post_training` is the KPI's metric of the post-trained student (of a factorized variant,
    the factorized one) on the test data, and `gain` that of the distilled file less it, paired on the same samples;
    both are None where it has no such figure.
    """

    quantizer: str
    exact: bool
    loss: str
    teacher: TeacherRow
    epochs: tuple[EpochRow, ...]
    best: int
    before: float | None
    after: float | None
    ranges: tuple[RangeRow, ...]
    post_training: Score | None = None
    gain: Score | None = None


@dataclass(frozen=True)
class PointRow:
    """An assignment of formats that a search judged, in weights that all assignments share.

    `choices` are of the decisions, in their order; `costs` of the whole network; `fits` says whether it is within all
    budgets. `predicted` is the loss that sensitivities add up to, `loss` and `agreement` with the float model were
    measured on held-out inputs; None where they are no number.
    """

    name: str
    choices: tuple[str, ...]
    costs: dict[str, float]
    fits: bool
    predicted: float | None
    loss: float | None
    agreement: float | None


@dataclass(frozen=True)
class ReasonRow:
    """What a search chose for the layers of a decision, the share of the budget that this takes, and why."""

    layers: tuple[str, ...]
    choice: str
    share: float
    sentence: str


@dataclass(frozen=True)
class SearchRow:
    """How a variant's formats were searched, and what training gained over post-training the recipe that was found.

    `by` is the strategy; `classes` says whether outputs are class scores, so that agreement is a share. Choices that
    the runtime cannot run are in `refused`, with the reason. `layers` are those of each decision, `budgets` the most
    that each cost may be, the first being that of the front. `sensitivities` are `[decisions][choices]`, and `movement`
    is the share of each choice in each decision while `samples` assignments were tried,
    `[windows][decisions][choices]`. Epochs are those of the phase that trains the found assignment alone; `best` is
    the number of the one that was kept (0 if there is none), and `before` and `after` are agreement on held-out inputs.
    """

    by: str
    loss: str
    classes: bool
    choices: tuple[str, ...]
    refused: dict[str, str]
    layers: tuple[tuple[str, ...], ...]
    budgets: dict[str, float]
    sensitivities: tuple[tuple[float, ...], ...]
    samples: int
    movement: tuple[tuple[tuple[float, ...], ...], ...]
    reasons: tuple[ReasonRow, ...]
    found: PointRow
    candidates: tuple[PointRow, ...]
    front: tuple[PointRow, ...]
    epochs: tuple[EpochRow, ...]
    best: int
    before: float | None
    after: float | None
    post_training: Score | None = None
    gain: Score | None = None


@dataclass(frozen=True)
class SpentRow:
    """What a layer, the layers of its chain, or a whole network cost for one sample, where it was measured with time.

    `activation_bytes` is the most that one layer holds.
    """

    parameters: int
    macs: int
    bops: int
    weight_bytes: int
    activation_bytes: int
    milliseconds: float | None = None


@dataclass(frozen=True)
class FactorizedLayerRow:
    """A layer that could become a chain, and what became of it.

    `shape` is that of its weight. `choice` is what it became, by name; `kind` is empty and `rank` 0 where it stayed
    dense. `errors` are those of the weights by method, relative to their norm, ``float`` before rounding; the others
    those of the layer's outputs inside the network, before and after the chain's last layer was fitted to them, None
    where it was not. `advice` says where a chain is not worth it, and why; else it is empty.
    """

    name: str
    shape: tuple[int, ...]
    choice: str
    kind: str
    rank: int
    errors: dict[str, float]
    output_before: float | None
    output_after: float | None
    before: SpentRow
    after: SpentRow
    advice: str


@dataclass(frozen=True)
class FactorizationRow:
    """How layers of a variant became chains of small ones, before any training.

    `skipped` are layers that have no chain, with the reason. `before` is the network with all layers dense, in the
    same formats, `after` as it was made; `budgets` the most that it may cost. `error` and `agreement` are of held-out
    outputs, against the float model's: squared error relative to their variance, and where outputs are class scores the
    share of equal predictions. `recalibrated` says whether new BatchNorm statistics were kept, None if none were asked
    for.
    """

    solver: str
    exact: bool
    layers: tuple[FactorizedLayerRow, ...]
    skipped: dict[str, str]
    before: SpentRow
    after: SpentRow
    budgets: dict[str, float]
    error: float | None
    agreement: float | None
    recalibrated: bool | None


@dataclass(frozen=True)
class ErrorsRow:
    """How far `count` numbers are off, in units of the target.

    `robust_sd` is 1.4826 times the median error, `p999` what one error in a thousand exceeds. `flips` is the share of
    numbers that noise carried to another branch of the path, `levels` how many different ones came, and `structure`
    how alike the small structures of images are, 1 at best; None for other outputs.
    """

    count: int
    rmse: float
    mae: float
    robust_sd: float
    p999: float
    levels: int
    flips: float
    structure: float | None


@dataclass(frozen=True)
class ComparedRow:
    """Errors of one network's outputs: all of the error, and what quantization alone added, None for a float network.

    `errors` are of all numbers together; `each` is the RMSE of each quantity in its own unit, where there are several.

    `what` is ``float`` (the float model), ``curve`` (the float model that returns points), ``direct`` (8 bits),
    ``wide`` (16 bits), ``trained`` (direct, trained as long), ``fold``, ``post-trained`` (the variant before it was
    distilled) or ``variant``.
    """

    what: str
    errors: ErrorsRow
    quantization: ErrorsRow | None
    each: tuple[float, ...] = ()


@dataclass(frozen=True)
class CandidatePathRow:
    """A path that was considered; see `lowbit.methods.curves.choose.Candidate`. `why_not` is empty if it would do."""

    path: str
    length: float
    spacing: float
    gain: float
    total_gain: float
    why_not: str


@dataclass(frozen=True)
class OutputRow:
    """What became of a variant's output.

    `path` is empty where the direct output stays, and then so is all that is about a path. `reason` says why it was
    chosen or refused, with what was measured (shares of the range, None without labels) and `candidates`; it is empty
    where the path was given. `low` and `high` are of each quantity, or of all. `taught` says whether the float model
    was the teacher, None where nothing was trained, and `before` and `after` are mean errors on held-out data, as
    shares of the range. Errors are `against` ``labels`` or the ``float model``. `left_out` are controls that are not
    among `compared`, with the reason. `corners` are those of the path and `points` some that the network returned,
    `[points][channels]` from 0 to 1; `confidence` is the RMSE of the share of numbers that lie nearest to the path.
    """

    path: str
    reason: str
    noise: float | None
    uncertainty: float | None
    candidates: tuple[CandidatePathRow, ...]
    against: str
    compared: tuple[ComparedRow, ...]
    left_out: dict[str, str]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    transform: str = ""
    length: float = 0.0
    spacing: float | None = None
    heads: str = ""
    decoder: str = ""
    loss: str = ""
    taught: bool | None = None
    epochs: tuple[EpochRow, ...] = ()
    best: int = 0
    before: float | None = None
    after: float | None = None
    corners: tuple[tuple[float, ...], ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    confidence: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class HeadRow:
    """A classifier on the features of the float model, scored on the test data: its accuracy, and the codes' beside it.

    `name` is ``own`` (the network's own head), ``original``, ``clipped`` or ``robust-scaled`` (the same linear head on
    floats), or ``neighbors`` (5 nearest rows of the training data among packed codes). `gain` is the accuracy of the
    linear head on codes less this one's, paired, and `outcome` what that says: ``improves``, ``equal`` (within the
    margin), ``degrades`` or ``too little data``.
    """

    name: str
    score: Score
    gain: Score
    outcome: str


@dataclass(frozen=True)
class ThresholdRow:
    """A threshold that was tried, in standard deviations, None where the largest D chose it; accuracy over folds."""

    code: str
    threshold: float | None
    per_feature: bool
    accuracy: float


@dataclass(frozen=True)
class FeaturesRow:
    """Features that became codes, and the linear head that reads them.

    `layer` is the one whose output is coded, empty for what the last Linear reads, whose name is in `head`. `rule` says
    how the threshold came (``global``, ``per feature``, ``given``); `threshold` is in standard deviations, the mean
    where each feature has its own. `classifier` and its `strength` C were chosen on the `samples` of the training data,
    and so was the threshold, of those `tried`; `tried_floats` is the accuracy of standardized floats there. `score` is
    the accuracy of the float model with codes on the test data, `file` that of the variant, and `heads` are what it is
    compared with; `best_float` is the best linear head on floats. D of features and codes is of the training data,
    `shares` of the codes -1, 0 and 1 are of the test data. Bytes are those of one sample's features.
    """

    layer: str
    head: str
    features: int
    constant: int
    code: str
    rule: str
    threshold: float
    classifier: str
    strength: float
    samples: int
    score: Score
    file: Score
    heads: tuple[HeadRow, ...]
    best_float: str
    margin: float
    tried: tuple[ThresholdRow, ...]
    tried_floats: float
    discrimination: float
    discrimination_codes: float
    shares: tuple[float, float, float]
    bytes_float: int
    bytes_int8: int
    bytes_packed: int
    applicability: tuple[str, ...]


@dataclass(frozen=True)
class CheckRow:
    """One requirement, and how a trial stands to it.

    `limit` is the least that counts for ``minimum``, and for ``tolerance`` (the negative of what may be lost; where
    smaller is better the most that may be added, without a sign). For ``maximum``, ``size`` (bytes of the file),
    ``bops`` (of one sample) and ``latency`` (milliseconds, the median) it is the most, and for ``seeds`` the number of
    all trainings, with `value` those that did not fail. `low` and `high` are the interval of `value`, and `value`
    itself for what is exact: see `lowbit.pilot.statistics.checks`.
    """

    what: Requirement
    limit: float
    value: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class RepeatRow:
    """The same variant trained with another seed; a training that failed has its `error` and no scores."""

    seed: int
    score: Score | None
    difference: Score | None
    file_bytes: int
    error: str | None = None
    bops: int = 0


@dataclass(frozen=True)
class Trial:
    """One variant, measured: `recipe` is None for the float baseline.

    `difference` is the paired score difference from the float baseline on the same samples. Sizes are bytes; `bops` are
    MACs x weight bits x activation bits for one sample. `distillation`, `search`, `factorization`, `output` and
    `features` are None for a variant that was not made that way. A failed trial keeps its `error` and no figures.
    `agreement` is with the float model's classes; of outputs that are quantities it is None, and `apart` the root mean
    square difference from the float model's in standard deviations of these, the largest of theirs. Where there are
    several, up to 32, `quantities` has a row for each.

    `checks` are the requirements that were made, and `verdict` is the worst of theirs. `repeats` are trainings with
    other seeds. Where there are some, `score` and `difference`, which are judged, are the means over all seeds, with
    the spread of samples and of seeds in their intervals (`lowbit.pilot.statistics.over_seeds`); all other figures, and
    the file, are those of `seed`, the first one that did not fail, whose own score and difference are in `own`.
    """

    name: str
    recipe: dict[str, Any] | None
    fingerprint: str
    verdict: Verdict
    error: str | None = None
    score: Score | None = None
    difference: Score | None = None
    agreement: Score | None = None
    file: str | None = None
    file_bytes: int = 0
    weight_bytes: int = 0
    parameters: int = 0
    macs: int = 0
    bops: int = 0
    activation_bytes: int = 0
    latencies: tuple[LatencyRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    verification: VerificationRow | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    distillation: DistillationRow | None = None
    search: SearchRow | None = None
    factorization: FactorizationRow | None = None
    output: OutputRow | None = None
    seed: int = 0
    checks: tuple[CheckRow, ...] = ()
    repeats: tuple[RepeatRow, ...] = ()
    own: RepeatRow | None = None
    features: FeaturesRow | None = None
    processor: str = ""  # that it was measured on; times are the run's
    apart: float | None = None
    quantities: tuple[QuantityRow, ...] = ()


@dataclass(frozen=True)
class Kpi:
    """The figure that decides, the least value that is acceptable, and the most that may be lost against float.

    `tolerance` is in the metric's units (0.01 is one percentage point of accuracy). Of an own metric smaller may be
    better: then it has a `maximum` in the place of the `minimum`. At least one of these and `tolerance` is given.
    """

    metric: str
    minimum: float | None = None
    tolerance: float | None = None
    smaller_is_better: bool = False
    maximum: float | None = None

    @property
    def bound(self) -> float | None:
        """The minimum, or where smaller is better the maximum."""
        return self.maximum if self.smaller_is_better else self.minimum

    @property
    def sign(self) -> int:
        """What makes a larger value the better one: 1, or -1 where smaller is better."""
        return -1 if self.smaller_is_better else 1

    def gain(self, change: Score) -> Score:
        """What a change of the metric gains: the change, turned around where smaller is better."""
        return -change if self.smaller_is_better else change

    def __str__(self) -> str:
        most = self.smaller_is_better
        bound = "" if self.bound is None else f"{'<=' if most else '>='} {self.bound:g}"
        lost = "" if self.tolerance is None else f"at most {self.tolerance:g} {'above' if most else 'below'} float"
        return f"{self.metric} {' and '.join(part for part in (bound, lost) if part)}"


@dataclass(frozen=True)
class Limits:
    """The most that a variant may cost; None where nothing is asked.

    `size` is bytes of the file, `bops` those of one sample, `latency` the median in milliseconds at the first batch
    size.
    """

    size: int | None = None
    bops: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Provenance:
    """What made these figures: enough to make them again; `samples` are how many each data section has."""

    command: str
    started: str
    seed: int
    data_hash: str
    weights_hash: str
    versions: dict[str, str]
    machine: dict[str, str]
    samples: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A pilot run: what was asked, what made it, and every trial, the float baseline first."""

    name: str
    model: str
    kpi: Kpi
    pilot: dict[str, Any]
    provenance: Provenance
    trials: tuple[Trial, ...] = ()
    limits: Limits = Limits()


@dataclass(frozen=True)
class Timings:
    """What was timed (files by hash, runtime, machine), and the rows of each trial."""

    of: dict[str, Any]
    rows: dict[str, tuple[LatencyRow, ...]]


R = TypeVar("R", Run, Trial, Timings)


def read(kind: type[R], path: Path) -> R:
    """The record in a JSON file.

    Raises:
        DataError: the file cannot be read, or is no such record.
    """
    try:
        found: R = _adapter(cast("Any", kind)).validate_python(files.read_json(path))
    except DataError as error:
        raise DataError(f"{error}, or delete the file to have it made again") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "the file"
        what = kind.__name__.lower()
        raise DataError(
            f"'{path}' is no record of a {what} ({where}: {first['msg']}); delete it to have it made again"
        ) from None
    return found


@functools.cache  # making one takes longer than reading a record
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
