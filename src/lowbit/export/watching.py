"""Does a file still see what it was made for?

`verify` keeps in the manifest what the file saw of the data it was made with (`profiles`). Here the same is counted on
new data, labels not needed, and compared: the inputs, the codes of every quantized tensor, the share of numbers that
are cut off, the predicted classes and by what margin, and where the float model's file is there too, how often both
predict the same. Where outputs are quantities, it is the values of each, and how far they lie from the float model's.

Each check has two thresholds. It alarms only if the difference is large, whatever the number of samples, and sure: in
fewer than 1 of 1,000 looks at equal data would any check differ so, a chance that Bonferroni divides among them. A
million samples do not alarm on a difference that does not matter, and a handful proves nothing: below 30 on either side
there are no alarms at all. Samples are taken for independent of each other; frames of one video are not, so draw them
from many.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from lowbit.batches import Batches
from lowbit.drift import (
    MOVED,
    Shares,
    chi_squared,
    clustered,
    distance,
    fell,
    interval,
    rose,
    stability_index,
)
from lowbit.errors import DataError
from lowbit.export.advice import LAYERS, Wiring
from lowbit.export.codes import reading_codes, without_int8_blocks
from lowbit.export.onnx import described, existing, note
from lowbit.export.profiles import (
    Agreement,
    Distance,
    Floats,
    OutputProfile,
    Profile,
    Profiler,
    TensorCounts,
    TensorProfile,
    binned,
    ran,
    spread_of,
)
from lowbit.export.quantities import Distances
from lowbit.export.runtime import RuntimeName, open_session
from lowbit.progress import track
from lowbit.recipe import validated

Kind = Literal["input", "codes", "clipping", "classes", "margin", "agreement", "output", "distance"]
SURE = 0.001  # chance of any alarm in data that did not change: a monitor looks every day
ENOUGH = 30  # samples on both sides, below which nothing is called a drift
APART = 0.5  # standard deviations that the means of an input are apart
CUT = 0.01  # share of a tensor's codes at an end of their range
TIMES = 2.0  # that it is as large as it was
_EXPECTED = 5  # samples of a class, below which classes are counted together
_AGAIN = "run lowbit apply or lowbit pilot again, or lowbit verify on the data it was made with"
_PREPROCESSING = (
    "look at the preprocessing first (scale, mean, order of channels), then at what takes the data; if both are right, "
    "calibrate again on new data"
)
_CODES = (
    "if an input differs too, mend that first; else calibrate again on new data, and train again if accuracy on new "
    "labels fell"
)
_CLIPPING = "numbers beyond it are cut off: if an input differs too, mend that first; else calibrate again on new data"
_CLASSES = (
    "if the mix of classes did not change where the data come from, look at the preprocessing; if it did, check "
    "accuracy on new labels, and train again where it fell"
)
_MARGIN = "label some hundred new samples and check accuracy; if it fell, calibrate again, then train again"
_AGREEMENT = "calibrate again on new data; if that does not help, give layers more bits or distill on new data"
_OUTPUT = (
    "if what it tells of did not change where the data come from, look at the preprocessing; if it did, check the "
    "error on new labels, and train again where it grew"
)


@dataclass(frozen=True)
class Check:
    """One comparison with the manifest.

    Attributes:
        kind: what is compared.
        where: the input, the tensor, the quantity of an output, or empty for outputs as a whole.
        effect: how large the difference is, in the unit of `limit`: standard deviations for an input, a population
            stability index for codes, classes, margin and output, the share of codes at an end for clipping, the share
            by which agreement fell, and the standard deviations by which the distance from float grew.
        limit: the effect above which it matters.
        p: chance that equal data differ as much.
        old, new: the share for clipping and agreement, the median of margin and output, the distance, else None.
        low, high: 95 % interval of `new`, where it is a share.
        told: in words what was found.
        remedy: what to do if it is an alarm.
        alarm: whether the difference is both large and sure.
    """

    kind: Kind
    where: str
    effect: float
    limit: float
    p: float
    told: str
    remedy: str
    old: float | None = None
    new: float | None = None
    low: float | None = None
    high: float | None = None
    alarm: bool = False


@dataclass(frozen=True)
class Watched:
    """What new data look like to a file, beside the data it was made with.

    Attributes:
        file: its name.
        runtime: that executed it.
        samples, reference_samples: new ones, and those that the manifest tells of.
        checks: inputs first, tensors in the order of the graph, outputs last.
    """

    file: str
    runtime: RuntimeName
    samples: int
    reference_samples: int
    checks: tuple[Check, ...]

    @property
    def alarms(self) -> tuple[Check, ...]:
        """The checks that differ."""
        return tuple(check for check in self.checks if check.alarm)

    @property
    def drifted(self) -> bool:
        """Whether any check differs."""
        return bool(self.alarms)

    @property
    def enough(self) -> bool:
        """Whether there are as many samples as it takes to tell anything."""
        return min(self.samples, self.reference_samples) >= ENOUGH

    def to_dict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {"drifted": self.drifted, "enough": self.enough} | asdict(self)

    def __str__(self) -> str:
        if not self.enough:
            which = "new samples" if self.samples < ENOUGH else "samples in the manifest"
            return (
                f"nothing can be told: {min(self.samples, self.reference_samples)} {which}, expected {ENOUGH} or more"
            )
        if not self.drifted:
            return f"no drift: none of {len(self.checks)} checks on {self.samples} samples differs from the manifest"
        kinds = ", ".join(dict.fromkeys(check.kind for check in self.alarms))
        return f"drift: {len(self.alarms)} of {len(self.checks)} checks on {self.samples} samples differ: {kinds}"


def watch(
    path: str | Path,
    batches: Batches,
    *,
    reference: str | Path | None = None,
    margin: float = 0.02,
    runtime: RuntimeName | None = None,
    threads: int = 1,
    progress: bool = True,
) -> Watched:
    """Compare what a file sees in new data, labels not needed, with what its manifest says it saw before.

    Args:
        path: an exported and verified file.
        batches: new inputs in any batch form, drawn independently of each other.
        reference: the float model as an ONNX file; predictions of both are compared, and their agreement (of
            quantities: their distance) with the manifest's, which ``lowbit apply``, ``lowbit pilot`` and
            `lowbit.verify` with a ``float_model`` note.
        margin: by how much agreement may fall, a share; of quantities, by how much the root mean square distance may
            grow, in standard deviations of the float model's.
        runtime: what executes the file; by default what it was verified in.
        threads: threads of the runtime.
        progress: show a bar on a terminal.

    Raises:
        VerificationError: the file changed since its export.
        DataError: no batches, no such file, inputs that it does not take, or a manifest that does not tell what it saw.
        RecipeError: what the manifest tells is damaged.
        ExportError: the runtime cannot load a file.
    """
    path = Path(path)
    if not 0 <= margin < 1:
        raise DataError(f"margin is {margin}, expected a share from 0 to below 1; 0.02 is 2 %")
    known = profile_of(path)
    if reference is not None:
        existing(Path(reference))
    if reference is not None and known.agreement is None and known.distance is None:
        raise DataError(f"the manifest of {str(path)!r} does not tell how often it agrees with a float model; {_AGAIN}")
    executes = runtime or known.runtime
    graph = onnx.load(path).graph
    profiler = Profiler(graph, executes, quantities=bool(known.quantities))
    with tempfile.TemporaryDirectory() as folder:
        plain = without_int8_blocks(path, Path(folder, "float_blocks.onnx"))
        copy = reading_codes(plain, Path(folder, "watched.onnx"), forced=False)
        session = open_session(copy, runtime=executes, threads=threads)
        beside = None if reference is None else open_session(reference, runtime=executes, threads=threads)
        for batch in track(batches, "watch", show=progress):
            by_tensor = dict(zip(session.outputs, ran(session, batch), strict=True))
            output = by_tensor[session.outputs[0]]
            profiler.add(batch, {name: by_tensor[tensor] for name, tensor in profiler.names.items()}, output)
            if beside is not None:
                profiler.compare(output, ran(beside, batch)[0])
    samples = len(profiler.values())
    checks = [*_inputs(known, profiler), *_tensors(known, profiler, Wiring(graph))]
    checks += _quantities(known, profiler) if known.output is None else _outputs(known.output, known.samples, profiler)
    if beside is not None and known.agreement is not None:
        noted = known.output.probability if known.output else None
        read = profiler.wanted.probability() if noted is None else noted
        same = profiler.predicted.classes(probability=read) == profiler.wanted.classes(probability=read)
        checks.append(_agreement(known.agreement, int(same.sum()), samples, margin))
    if beside is not None and known.distance is not None:
        checks.append(_distance(known.distance, profiler, margin))
    enough = min(samples, known.samples) >= ENOUGH
    judged = [
        replaced(check, alarm=enough and check.effect > check.limit and check.p * len(checks) < SURE)
        for check in checks
    ]
    return Watched(path.name, executes, samples, known.samples, tuple(judged))


def profile_of(path: Path) -> Profile:
    """What the manifest says that a file saw.

    Raises:
        VerificationError: the file is not the one in the manifest.
        DataError: there is no manifest, or it does not tell.
        RecipeError: what it tells is damaged.
    """
    entry = described(path)
    if not entry.get("watch"):
        raise DataError(f"the manifest of {str(path)!r} does not tell what the file saw; {_AGAIN}")
    return validated(Profile, entry["watch"], f"{path.parent / 'manifest.json'}, {path.name}, watch")


def note_agreement(path: Path, same: int, samples: int) -> None:
    """Note in the manifest of a verified file on how many samples it predicts what the float model predicts."""
    _note(path, {"agreement": Agreement(same=same, samples=samples)})


def note_distance(path: Path, found: Distances) -> None:
    """Note in the manifest of a verified file how far the quantities that it returns lie from the float model's."""
    _note(path, {"distance": Distance.measured(found)})


def _note(path: Path, known: Mapping[str, object]) -> None:
    note(path, {"watch": profile_of(path).model_copy(update=known).model_dump(mode="json")})


# The checks


def _inputs(known: Profile, profiler: Profiler) -> list[Check]:
    found = []
    for name, before in known.inputs.items():
        if name not in profiler.inputs:
            raise DataError(f"got no float input {name!r}, which the manifest tells of; give it in each batch")
        old, new = before.as_means(known.samples), profiler.inputs[name].means()
        if len(old.mean) != len(new.mean):
            raise DataError(f"input {name!r} has {len(new.mean) - 1} channels, expected {len(old.mean) - 1}")
        apart, p = distance(old, new)
        deviations = np.sqrt(np.maximum(np.diag(old.covariance), 1e-24))
        most = int((np.abs(new.mean - old.mean) / deviations).argmax())
        channels = f"the mean of channel {most}" if len(old.mean) > 2 else "the mean"
        which = channels if most < len(old.mean) - 1 else "the deviation within a sample"
        told = (
            f"input {name!r} is {apart:.2f} standard deviations from where it was: {which} is {new.mean[most]:.4g}, "
            f"was {old.mean[most]:.4g}"
        )
        found.append(Check("input", name, apart, APART, p, told, _PREPROCESSING))
    return found


def _tensors(known: Profile, profiler: Profiler, wiring: Wiring) -> list[Check]:
    counted, codes, cut = profiler.counted(), list[Check](), list[Check]()
    for name, before in known.tensors.items():
        if name not in counted or not counted[name].has(before.starts, before.highest):
            raise DataError(f"the manifest tells of codes of a tensor {name!r} that are not the file's; {_AGAIN}")
        place = _place(name, wiring)
        codes.append(_codes(name, place, before.as_shares(known.samples), counted[name], before.starts))
        cut += _clipping(name, place, before, known.samples, counted[name])
    return [*codes, *cut]


def _codes(name: str, place: str, old: Shares, counts: TensorCounts, starts: Sequence[int]) -> Check:
    new = counts.shares(starts)
    index = float(stability_index(old.shares, new.shares))
    told = f"{place}: how often its codes come has a stability index of {index:.2f} to how often they came"
    return Check("codes", name, index, MOVED, clustered(old, new), told, _CODES)


def _clipping(name: str, place: str, before: TensorProfile, samples: int, counts: TensorCounts) -> list[Check]:
    found = []
    for which, (end, old) in enumerate((("lowest", before.low), ("highest", before.high))):
        if old is None:
            continue
        new = counts.end(which)
        low, high = interval(*new, counts.samples)
        told = f"{place}: {new[0]:.2%} of its codes are the {end} ({low:.2%} to {high:.2%}), were {old[0]:.2%}"
        limit, p = max(TIMES * old[0], CUT), rose((*old, samples), (*new, counts.samples))
        where = f"{name} {end}"
        found.append(Check("clipping", where, new[0], limit, p, told, _CLIPPING, old[0], new[0], low, high))
    return found


def _outputs(output: OutputProfile, n: int, profiler: Profiler) -> list[Check]:
    margins = profiler.values()[:, 0]
    m = len(margins)
    kinds, old, new = _classes(output, profiler, min(n, m))
    gap = new / m - old / n
    moved = int(np.abs(gap).argmax())
    told = f"{kinds[moved]} is predicted for {new[moved] / m:.2%} of the samples, was for {old[moved] / n:.2%}"
    index = float(stability_index(old / n, new / m))
    classes = Check("classes", "", index, MOVED, float(chi_squared(old / n, n, new / m, m)), told, _CLASSES)
    what = "the output" if profiler.predicted.single else "the margin by which the predicted class leads"
    return [classes, _spread("margin", "", what, (output.edges, output.margins), margins, _MARGIN)]


def _quantities(known: Profile, profiler: Profiler) -> list[Check]:
    """How the values of each quantity are spread."""
    return [
        _spread("output", str(i), f"output {i}", (before.edges, before.counts), values, _OUTPUT)
        for i, (before, values) in enumerate(zip(known.quantities, profiler.values().T, strict=True))
    ]


def _spread(
    kind: Kind, where: str, what: str, known: tuple[Sequence[float], Sequence[int]], values: Floats, remedy: str
) -> Check:
    """One number a sample, against the deciles that it had and how often it came between them."""
    (edges, counts), m = known, len(values)
    n, before, after = sum(counts), np.asarray(counts), np.asarray(binned(values, edges))
    index = float(stability_index(before / n, after / m))
    middle, median = _median(edges, counts), float(np.median(values))
    told = f"{what} has a stability index of {index:.2f} to what it was: its median is {median:.4g}"
    told += "" if middle is None else f", was {middle:.4g}"
    p = float(chi_squared(before / n, n, after / m, m))
    return Check(kind, where, index, MOVED, p, told, remedy, middle, median)


def _distance(known: Distance, profiler: Profiler, margin: float) -> Check:
    """How far quantities lie from the float model's, in the standard deviations that these had."""
    distances = profiler.distances.of_samples(np.asarray(known.deviations))
    mean, spread = spread_of(distances)
    old, new = known.mean**0.5, mean**0.5
    told = (
        f"outputs lie {new:.4g} of their standard deviation from the float model's (root mean square), lay {old:.4g} "
        "from it"
    )
    p = rose((known.mean, known.spread, known.samples), (mean, spread, len(distances)))
    return Check("distance", "", new - old, margin, p, told, _AGREEMENT, old, new)


def _classes(output: OutputProfile, profiler: Profiler, samples: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, and old and new counts, of the classes that are not too rare to be compared; the last are all others."""
    old = dict(zip(output.classes, output.counts, strict=True))
    new = Counter(profiler.predicted.classes(probability=output.probability).tolist())
    total = sum(output.counts) + output.others + new.total()
    kept = [one for one in old if (old[one] + new[one]) * samples >= _EXPECTED * total]
    before, after = [old[one] for one in kept], [new[one] for one in kept]
    rest = sum(output.counts) + output.others - sum(before), new.total() - sum(after)
    names = [f"class {one}" for one in kept]
    return [*names, "another class"], np.array([*before, rest[0]], float), np.array([*after, rest[1]], float)


def _median(edges: Sequence[float], counts: Sequence[int]) -> float | None:
    """The edge nearest to the middle, None where all values were alike below the only edge."""
    if not edges:
        return None
    below = np.cumsum(counts)[:-1] / sum(counts)
    return edges[int(np.abs(below - 0.5).argmin())]


def _agreement(known: Agreement, same: int, samples: int, margin: float) -> Check:
    old, new = known.same / known.samples, same / samples
    low, high = interval(new, (new * (1 - new)) ** 0.5, samples)
    told = f"predicts as the float model on {new:.2%} of the samples ({low:.2%} to {high:.2%}), did on {old:.2%}"
    p = fell((known.same, known.samples), (same, samples))
    return Check("agreement", "", old - new, margin, p, told, _AGREEMENT, old, new, low, high)


def _place(name: str, wiring: Wiring) -> str:
    """A tensor in words, with the layers that read it, or that write it."""
    own = wiring.parts.get(name, [])
    read = [node.name for one in own for out in one.output for node in wiring.readers.get(out, []) if node not in own]
    made = [wiring.made[one.input[0]].name for one in own if one.input and one.input[0] in wiring.made]
    layers = {node.name for node in wiring.nodes.values() if node.op_type in LAYERS}
    for verb, names in (("reads", read), ("writes", made)):
        known = [layer for layer in dict.fromkeys(names) if layer in layers]
        if known:
            return f"tensor {name!r}, which layer {known[0]!r} {verb}"
    return f"tensor {name!r}"
