"""Is a code worth it on these data, for this classifier? Measured on data that nothing was chosen on.

    verdict = judge(x, y)
    print(verdict.summary)
    for row in verdict.rows:
        print(row.sentence)

Classes further apart are not classes told apart more often, and quantization adds no information, so a larger D decides
nothing here: accuracy does. The data are split several times; on each training part alone every candidate chooses its
threshold (or how much to clip, or which features to keep) by an inner cross-validation, and is then scored on the test
part. Each split gives a difference of accuracies between a code and floats. As training parts overlap, these are not
independent: with J splits (Nadeau and Bengio),

    t = mean(diff) / sqrt((1 / J + n_test / n_train) var(diff)),  J - 1 degrees of freedom.

The interval that follows, widened so that all of a verdict hold together (Bonferroni, two a row), is read in
this order:

    within +-margin          equal
    above 0                  improves
    below 0                  degrades
    else                     too little data

A code is recommended where it improves on standardized floats and does not degrade against the best of the float
baselines. That one is picked by its accuracy on the test parts, which favors floats.

References:
    Discrimination of binary and ternary feature quantization, 2025, https://arxiv.org/abs/2504.13792: the codes and D.
    C. Nadeau and Y. Bengio, Inference for the generalization error, Machine Learning 52, 2003,
    https://doi.org/10.1023/A:1024068626366: the test.
    The verdict, its order and the float baselines are derived.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from joblib import hash as joblib_hash
from pydantic import TypeAdapter, ValidationError
from scipy import sparse
from scipy.stats import t as student
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler

from lowbit import __version__, files
from lowbit.errors import DataError, FeatureError
from lowbit.methods.discrimination.candidates import (
    Candidate,
    Scored,
    all_scored,
    code_candidate,
    default_classifiers,
    float_candidates,
    quiet,
    seeded,
    split_rows,
)
from lowbit.methods.discrimination.estimators import QUANTIZERS
from lowbit.methods.discrimination.measure import Matrix, digest, discrimination, labeled
from lowbit.methods.discrimination.packed import bytes_per_row
from lowbit.methods.discrimination.theory import Code

Outcome = Literal["improves", "equal", "degrades", "too little data"]
LEVEL = 0.95  # at which the intervals of all rows hold together
MANY = 1_000_000  # samples beyond which no number is given
_ROUNDING = 1e-9  # of accuracies


@dataclass(frozen=True)
class Scores:
    """Accuracy on the test part of each split, of one candidate with one classifier."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the splits."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over the splits."""
        return float(np.std(self.values, ddof=1))


@dataclass(frozen=True)
class Compared:
    """A gain in accuracy with its interval, the p-value of no gain, and what that says.

    Interval and p-value are corrected for overlapping training parts and for the number of rows.
    """

    gain: float
    low: float
    high: float
    p: float
    outcome: Outcome


@dataclass(frozen=True)
class Judged:
    """One code with one classifier.

    Attributes:
        versus_original: against standardized floats.
        best_float: the float baseline with the highest mean, the original included.
        threshold: median over the splits of those chosen, in standard deviations; of a split in which each feature has
            its own, their mean.
        per_feature: splits in which each feature had a threshold of its own.
        recommended: it improves on the original and does not degrade against the best floats.
        sentence: what happened, and what to do.
    """

    classifier: str
    code: Code
    scores: Scores
    original: Scores
    versus_original: Compared
    best_float: Scores
    versus_best_float: Compared
    threshold: float
    per_feature: int
    recommended: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """Every code with every classifier.

    Attributes:
        scores: of all candidates, by classifier.
        margin: change in accuracy that does not matter.
        splits, train, test: how many, and the samples in either part.
        discrimination: mean D of "original" and of each code with the largest D, on all data; decides nothing.
    """

    rows: tuple[Judged, ...]
    scores: dict[str, tuple[Scores, ...]]
    margin: float
    splits: int
    train: int
    test: int
    features: int
    discrimination: dict[str, float]

    @property
    def recommended(self) -> tuple[Judged, ...]:
        """Rows worth their code, the largest gain first."""
        return tuple(sorted((r for r in self.rows if r.recommended), key=lambda row: -row.versus_original.gain))

    @property
    def summary(self) -> str:
        """The best row, or how many rows speak against codes."""
        chosen, rows = self.recommended, len(self.rows)
        if chosen:
            return f"{chosen[0].sentence} ({len(chosen)} of {rows} combinations of code and classifier are recommended)"
        found = Counter(row.versus_original.outcome for row in self.rows)
        counts = ", ".join(f"{found[outcome]} {outcome}" for outcome in get_args(Outcome) if found[outcome])
        if found["too little data"] == rows:
            return f"too little data to tell: none of {rows} combinations of code and classifier is decided"
        return f"no code is recommended on these data; combinations of code and classifier: {counts}"


def judge(
    x: npt.ArrayLike | sparse.csr_array,
    y: npt.ArrayLike,
    *,
    classifiers: Mapping[str, BaseEstimator] | None = None,
    codes: Sequence[Code] = ("binary", "ternary"),
    margin: float = 0.01,
    splits: int = 10,
    test_share: float = 0.25,
    seed: int = 0,
    n_jobs: int | None = None,
    folder: Path | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Verdict:
    """Measure what codes do to classifiers on these data, by nested cross-validation.

    Args:
        x: features `[N, d]`, dense or sparse.
        y: labels `[N]`.
        classifiers: by name; 5 nearest neighbors by either distance and a linear SVM by default. A `random_state` that
            is None is set from `seed`.
        codes: of "binary" and "ternary".
        margin: change in accuracy that does not matter, as a share.
        splits: random splits, stratified by class.
        test_share: of the samples.
        seed: of the splits; the same verdict for the same seed, whatever `n_jobs`; but not for `LinearSVC` in
            its dual form (more features than samples) in threads, which share liblinear's random generator.
        n_jobs: splits at once (joblib; `joblib.parallel_config` chooses a cluster).
        folder: each split is kept there when it is done, and not done again with the same data and arguments.
        say: told after each split.

    Raises:
        FeatureError: one class only, values that are not finite, too few samples of a class, an argument out of its
            range, an unknown code, or a classifier that is none.
    """
    data, names, which = labeled(x, y)
    labels = names[which]
    tried = seeded(default_classifiers() if classifiers is None else classifiers, seed)
    _check(codes, margin, splits, test_share, seed)
    parts = split_rows(which, splits, test_share, seed)
    zeros = sparse.issparse(data)
    candidates = (*float_candidates(data.shape[1], sparse=zeros), *(code_candidate(c, sparse=zeros) for c in codes))

    found = _scored_splits(candidates, tried, data, labels, parts, n_jobs, folder, say)
    train, test = (len(part) for part in parts[0])
    scores: dict[str, tuple[Scores, ...]] = {}
    rows: list[Judged] = []
    for i, classifier in enumerate(tried):
        by_name = {one.name: [split[i][k] for split in found] for k, one in enumerate(candidates)}
        scores[classifier] = tuple(Scores(n, tuple(s.accuracy for s in one)) for n, one in by_name.items())
        for code in codes:
            comparing = partial(compare, train=train, test=test, margin=margin, rows=2 * len(tried) * len(codes))
            rows.append(_judged(classifier, code, scores[classifier], by_name[code], comparing))
    verdict = Verdict(tuple(rows), scores, margin, splits, train, test, data.shape[1], _apart(data, labels, codes))
    return replace(verdict, rows=tuple(replace(row, sentence=_sentence(row, verdict)) for row in rows))


def _scored_splits(
    candidates: Sequence[Candidate],
    classifiers: Mapping[str, BaseEstimator],
    x: Matrix,
    y: npt.NDArray[np.generic],
    parts: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    n_jobs: int | None,
    folder: Path | None,
    say: Callable[[str], object],
) -> list[list[list[Scored]]]:
    """Scores by split, classifier and candidate; of splits that lie in `folder` from there."""
    described = joblib_hash([__version__, dict(classifiers), [(one.name, one.choices) for one in candidates]])
    classes, which = np.unique(y, return_inverse=True)
    described += digest(x, which, text=str(classes.tolist()))
    kept = [None if folder is None else folder / f"{digest(*part, text=described)[:24]}.json" for part in parts]
    found: dict[int, list[list[Scored]]] = {}
    for i, path in enumerate(kept):
        if path is not None and (one := _kept(path, len(classifiers), len(candidates))):
            found[i] = one
    missing = [i for i in range(len(parts)) if i not in found]
    if found:
        say(f"{len(found)} of {len(parts)} splits are there already")
    tasks = (delayed(all_scored)(candidates, list(classifiers.values()), x, y, parts[i]) for i in missing)
    with quiet():  # threads share what is quiet here
        for i, one in zip(missing, Parallel(n_jobs=n_jobs, return_as="generator")(tasks), strict=True):
            found[i] = one
            if (path := kept[i]) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_json(path, TypeAdapter(list[list[Scored]]).dump_python(one, mode="json"))
            say(f"split {len(found)} of {len(parts)}")
    return [found[i] for i in range(len(parts))]


def _kept(path: Path, classifiers: int, candidates: int) -> list[list[Scored]] | None:
    """The scores of a split, unless they are missing or damaged."""
    try:
        found = TypeAdapter(list[list[Scored]]).validate_python(files.read_json(path))
    except (DataError, ValidationError):
        return None
    return found if [len(row) for row in found] == [candidates] * classifiers else None


def compare(differences: npt.ArrayLike, *, train: int, test: int, margin: float, rows: int = 1) -> Compared:
    """What differences in accuracy between two candidates on the same splits say, `[J]`.

    Few splits may agree by chance. So their variance counts as at least that of `test` samples of which no more than
    the gain, and at least one, are told differently.

    Args:
        differences: of one candidate's accuracy to the other's, at least two.
        train, test: samples in the parts.
        margin: change in accuracy that does not matter, as a share.
        rows: comparisons whose intervals are to hold together.
    """
    values = np.asarray(differences, float)
    gain, freedom = float(values.mean()), len(values) - 1
    variance = max(float(values.var(ddof=1)), max(abs(gain) * (1 - abs(gain)), 1 / test) / test)
    error = math.sqrt((1 / len(values) + test / train) * variance)
    half = _width(len(values), test / train, rows) * variance**0.5
    p = min(1.0, rows * 2 * float(student.sf(abs(gain) / error, freedom)))
    low, high = max(gain - half, -1.0), min(gain + half, 1.0)
    return Compared(gain, low, high, p, _outcome(low, high, margin))


def _outcome(low: float, high: float, margin: float) -> Outcome:
    if max(-low, high) <= margin + _ROUNDING:
        return "equal"
    if low > 0:
        return "improves"
    return "degrades" if high < 0 else "too little data"


def _judged(
    classifier: str,
    code: Code,
    scores: Sequence[Scores],
    chosen: Sequence[Scored],
    comparing: Callable[[npt.ArrayLike], Compared],
) -> Judged:
    """Scores of a code against those of floats; the sentence is still to come."""
    by_name = {one.name: one for one in scores}
    mine, original = by_name[code], by_name["original"]
    best = max((one for one in scores if one.name not in get_args(Code)), key=lambda one: one.mean)
    versus_original, versus_best = (comparing(np.subtract(mine.values, one.values)) for one in (original, best))
    threshold, own = (
        float(np.median([one.threshold for one in chosen if one.threshold is not None])),
        sum(one.per_feature for one in chosen),
    )
    recommended = versus_original.outcome == "improves" and versus_best.outcome != "degrades"
    return Judged(
        classifier, code, mine, original, versus_original, best, versus_best, threshold, own, recommended, sentence=""
    )


def _sentence(row: Judged, verdict: Verdict) -> str:
    change, best, codes, margin = row.versus_original, row.best_float, f"{row.code} codes", verdict.margin
    before, after = f"{100 * row.original.mean:.1f} %", f"{100 * row.scores.mean:.1f} %"
    interval = f"{100 * LEVEL:.0f} % interval {_points(change.low)} to {_points(change.high)}"
    moved = f"the accuracy of {row.classifier} from {before} to {after} ({_points(change.gain)} points, {interval})"
    within = f"within {100 * margin:g} point{'' if margin == 0.01 else 's'}"
    reach = f"{best.name} floats reach {100 * best.mean:.1f} %"
    d, d_code = (f"{verdict.discrimination[one]:.2f}" for one in ("original", row.code))
    though = f" though D rises from {d} to {d_code}" if float(d_code) > float(d) else ""
    match change.outcome:
        case "improves":
            start = "recommended" if row.recommended else "not recommended"
            return f"{start}: {codes} raise {moved}; {_explained(row, reach, verdict.features)}"
        case "degrades":
            other = "" if best.name == "original" else f"; {reach}"
            return f"not recommended: {codes} lower {moved}{though}; keep floats{other}"
        case "equal":
            other = f"; {reach}" if row.versus_best_float.outcome == "degrades" else ""
            return (
                f"no accuracy to gain or lose ({within}): {codes} change {moved}{though}; worth it for size alone, "
                f"{_smaller(verdict.features, row.code)}{other}"
            )
    return (
        f"too little data: {codes} change {moved}{though}, neither {within} nor to one side of 0; "
        f"{_needed(change, verdict)} would decide"
    )


def _explained(row: Judged, reach: str, features: int) -> str:
    """How much of a code's gain floats have as well."""
    if row.best_float.name == "original":
        return "no other floats are better than the original ones"
    match row.versus_best_float.outcome:
        case "improves":
            return reach
        case "degrades":
            return f"but {reach}, which explains the gain and is more: use those"
        case "equal":
            return f"but {reach}, which explains the gain: the code is for size, {_smaller(features, row.code)}"
    return f"{reach}, not told apart from the code on these data, which is {_smaller(features, row.code)}"


def _needed(change: Compared, verdict: Verdict) -> str:
    """What would make the interval narrow enough, roughly: splits if those do, else samples as well."""
    half, gain = (change.high - change.low) / 2, abs(change.gain)
    room = max(gain, verdict.margin - gain)
    ratio, rows = verdict.test / verdict.train, 2 * len(verdict.rows)
    splits = [times * verdict.splits for times in (1, 2, 4, 8)]
    left = [half * _width(many, ratio, rows) / _width(verdict.splits, ratio, rows) / room for many in splits]
    enough = next((many for many, one in zip(splits, left, strict=True) if one <= 1), None)
    if enough is not None:
        return f"some {enough} splits"
    # an interval's width goes by the root of the samples
    samples = _rounded_up((verdict.train + verdict.test) * left[-1] ** 2)
    return f"some {splits[-1]} splits of {samples:,} samples" if samples < MANY else "far more samples than these"


def _width(splits: int, ratio: float, rows: int) -> float:
    """Half the interval of so many splits whose differences have a deviation of 1."""
    return float(student.ppf(1 - (1 - LEVEL) / (2 * rows), splits - 1)) * math.sqrt(1 / splits + ratio)


def _smaller(features: int, code: Code) -> str:
    times = 4 * features / bytes_per_row(features, ternary=code == "ternary")
    return f"{times:.0f} times smaller than float32" if times >= 2 else "hardly smaller with so few features"


def _points(share: float) -> str:
    return f"{round(100 * share, 6) + 0.0:+.1f}"  # -0.0 only for what is below 0


def _rounded_up(count: float) -> int:
    """To two digits."""
    unit = int(10 ** max(math.floor(math.log10(count)) - 1, 0))
    return math.ceil(count / unit) * unit


def _apart(
    x: npt.NDArray[np.generic] | sparse.csr_array, y: npt.NDArray[np.generic], codes: Sequence[Code]
) -> dict[str, float]:
    """Mean D of standardized features, and of each code with the largest D."""
    found = {"original": discrimination(x if sparse.issparse(x) else StandardScaler().fit_transform(x), y).mean}
    return found | {code: discrimination(QUANTIZERS[code]().fit_transform(x, y), y).mean for code in codes}


def _check(codes: Sequence[Code], margin: float, splits: int, test_share: float, seed: int) -> None:
    if seed < 0:
        raise FeatureError(f"seed: got {seed}, expected at least 0")
    unknown = [code for code in codes if code not in get_args(Code)]
    if unknown or not codes or len(set(codes)) < len(codes):
        raise FeatureError(f"codes: got {list(codes)}, expected some of {list(get_args(Code))}, each once")
    if not 0 < margin < 1:
        raise FeatureError(f"margin: got {margin:g}, expected a share above 0 and below 1, such as 0.01 for one point")
    if splits < 2:
        raise FeatureError(f"splits: got {splits}, expected at least 2; a difference on one split has no interval")
    if not 0 < test_share < 1:
        raise FeatureError(f"test_share: got {test_share:g}, expected a share above 0 and below 1")
