"""Claims: thresholds by closed forms; an honest verdict; packed neighbors as fast as faiss; a sweep as fast as reading.

--part theory: where codes improve Gaussian classes, and what they keep of weak ones, against the sheet's values.
--part simulated: five simulations, codes at fixed thresholds, three classifiers.
--part accuracy: image, speech, text and tables, clean and under stress; nested cross-validation with 10 splits; four
  classifiers; original, clipped, robust-scaled and selected floats beside binary and ternary codes, with verdicts.
--part speed: 5 neighbors among 200,000 rows of 512 features: packed codes, scikit-learn's brute force, and faiss.
--part sweep: counting all thresholds beside numpy.sum of the same array.
--part memory: of a stream of 10 GB.

Hyper-parameters are chosen by an inner cross-validation on training parts alone. Rows of accuracy are kept in
runs/benchmarks/discrimination, split by split, so the script can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from statistics import mean, median
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

import lowbit as lb
from _features import KEPT, load
from _figures import emit, parser
from lowbit.methods.discrimination import theory
from lowbit.methods.discrimination.candidates import default_classifiers, quiet
from lowbit.methods.discrimination.histograms import Histograms, scaling
from lowbit.methods.discrimination.packed import pack

CASES = (
    *("image", "image, pixel noise", "image, impulses"),
    *("speech", "speech, clicks", "speech, white noise"),
    *("text", "text, lost words"),
    *("wine", "wine, impulses", "breast_cancer", "breast_cancer, junk"),
    *("digits", "digits, impulses", "digits, junk", "digits, gain"),
)
ROWS = 1500  # of a case, at most


def theoretical(_: argparse.Namespace) -> None:
    """The closed forms."""
    for code, target in (("binary", 0.764788), ("ternary", 0.663512)):
        emit(f"Gaussian, {code}: improves from mu", theory.crossover(code), "", f"= {target}")  # type: ignore[arg-type]
    for code, target in (("binary", 0.637), ("ternary", 0.810)):
        emit(f"Gaussian, {code}: share of a small F kept", theory.efficiency(code)[1], "", f"= {target}")  # type: ignore[arg-type]


def simulated(asked: argparse.Namespace) -> None:
    """As the sheet has them: 200 samples a class to train on, ternary threshold 0.3, binary 0."""
    steps: dict[str, Callable[[], Any]] = {
        "original": StandardScaler,
        "binary": lambda: lb.BinaryQuantizer(0.0),
        "ternary": lambda: lb.TernaryQuantizer(0.3),
    }
    classifiers = {
        "kNN": lambda: KNeighborsClassifier(5),
        "linear SVM": lambda: LinearSVC(C=0.1),
        "centroid": NearestCentroid,
    }
    seeds = 2 if asked.quick else 6
    for case in ("Gaussian", "Laplace", "t(3)", "2 and 50 junk", "3 and 300 junk"):
        drawn = [load(case, asked.data, seed) for seed in range(seeds)]
        for name, step in steps.items():
            for classifier, make in classifiers.items():
                values = []
                for one in drawn:
                    train, test = slice(0, 400), slice(400, None)
                    with quiet():
                        model = make_pipeline(step(), make()).fit(one.x[train], one.y[train])
                    values.append(100 * float(np.mean(model.predict(one.x[test]) == one.y[test])))
                emit(f"{case}, {name}, {classifier}, mean of {seeds} seeds", mean(values), "%")
                emit(f"{case}, {name}, {classifier}, spread over seeds", max(values) - min(values), "points")


def accuracy(asked: argparse.Namespace) -> None:
    """Verdicts on real features."""
    cases = asked.case or (("wine", "digits, impulses") if asked.quick else CASES)
    classifiers = default_classifiers()
    if asked.quick:
        del classifiers["linear SVM"]
    else:
        mlp = MLPClassifier((32,), learning_rate_init=0.01, max_iter=40, batch_size=64, random_state=0)
        classifiers["MLP"] = mlp
    for case in cases:
        found = load(case, asked.data).sample(300 if asked.quick else ROWS)
        splits = 3 if asked.quick else 10
        folder = KEPT / "verdicts" / f"{case.replace(', ', '-').replace(' ', '_')}{'-quick' if asked.quick else ''}"
        verdict = lb.judge(found.x, found.y, classifiers=classifiers, splits=splits, folder=folder, n_jobs=asked.jobs)
        for name, d in verdict.discrimination.items():
            emit(f"{case}, D, {name}", d, "")
        for classifier, scores in verdict.scores.items():
            for one in scores:
                emit(f"{case}, {classifier}, {one.name}", 100 * one.mean, "%")
                emit(f"{case}, {classifier}, {one.name}, spread", 100 * one.spread, "points")
        for row in verdict.rows:
            change = row.versus_original
            emit(f"{case}, {row.classifier}, {row.code} less original: {change.outcome}", 100 * change.gain, "points")
            other = row.versus_best_float
            what = f"{row.code} less {row.best_float.name} floats: {other.outcome}"
            emit(f"{case}, {row.classifier}, {what}", 100 * other.gain, "points")


def speed(asked: argparse.Namespace) -> None:
    """Neighbors of 200,000 rows, one thread, all in one run."""
    import faiss

    generator = np.random.default_rng(0)
    n, d, k = (20_000 if asked.quick else 200_000), 512, 5
    many, few = (64, 16) if asked.quick else (256, 32)  # queries of codes, of floats
    x = generator.standard_normal((n, d), dtype=np.float32)
    y = generator.integers(0, 10, n)
    queries = generator.standard_normal((many, d), dtype=np.float32)
    binary, ternary = pack(x > 0), pack(np.sign(x) * (np.abs(x) > 0.6))
    asked_binary, asked_ternary = pack(queries > 0), pack(np.sign(queries) * (np.abs(queries) > 0.6))
    base, base_queries = (one.planes[0].view(np.uint8) for one in (binary, asked_binary))
    index, flat = faiss.IndexBinaryFlat(d), faiss.IndexFlatL2(d)
    index.add(base)
    flat.add(x)
    both, both_queries = (
        np.ascontiguousarray(np.concatenate(one.planes, axis=1)).view(np.uint8) for one in (ternary, asked_ternary)
    )
    joined = faiss.IndexBinaryFlat(2 * d)
    joined.add(both)
    brute = KNeighborsClassifier(k, algorithm="brute").fit(x, y)
    ours = {
        "binary": (lb.PackedKNeighborsClassifier(k).fit(binary, y), asked_binary),
        "ternary": (lb.PackedKNeighborsClassifier(k, metric="manhattan").fit(ternary, y), asked_ternary),
        "ternary, squared L2": (lb.PackedKNeighborsClassifier(k, metric="sqeuclidean").fit(ternary, y), asked_ternary),
        "ternary, cosine": (lb.PackedKNeighborsClassifier(k, metric="cosine").fit(ternary, y), asked_ternary),
    }
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "scikit-learn, brute force": (lambda: brute.kneighbors(queries[:few]), few),
        "faiss, float flat": (lambda: flat.search(queries[:few], k), few),
        "faiss, binary flat": (lambda: index.search(base_queries, k), many),
        "faiss, both planes, binary flat": (lambda: joined.search(both_queries, k), many),
        **{
            f"packed, {name}": ((lambda model=model, given=given: model.kneighbors(given)), many)
            for name, (model, given) in ours.items()
        },
    }
    faiss.omp_set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in work}
    with threadpool_limits(1):
        for _ in range(2 if asked.quick else 7):
            for name, (call, count) in work.items():
                began = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - began) / count)
    taken = {name: median(each) for name, each in times.items()}
    for name, each in times.items():
        emit(f"{name}: a query", taken[name], "ms")
        emit(f"{name}: spread, 10th to 90th percentile", float(np.subtract(*np.quantile(each, [0.9, 0.1]))), "ms")
    emit(
        "packed binary over faiss binary", taken["packed, binary"] / taken["faiss, binary flat"], "x the time", "<= 1.2"
    )
    emit(
        "packed ternary over faiss on both planes",
        taken["packed, ternary"] / taken["faiss, both planes, binary flat"],
        "x the time",
        "<= 1.2",
    )
    brute_time = taken["scikit-learn, brute force"]
    emit("scikit-learn's brute force over packed binary", brute_time / taken["packed, binary"], "x the time")
    emit(
        "scikit-learn's brute force over packed ternary",
        brute_time / taken["packed, ternary, squared L2"],
        "x the time",
    )
    for name, mine, theirs in (
        ("binary", ours["binary"][0].kneighbors(asked_binary)[0] * d, index.search(base_queries, k)[0]),
        ("ternary", ours["ternary"][0].kneighbors(asked_ternary)[0], joined.search(both_queries, k)[0]),
    ):
        same = float(np.mean(np.rint(mine) == theirs))
        emit(f"{name}: distances of the 5 nearest equal to faiss", 100 * same, "%", "= 100")
    emit("memory, float32 over binary", x.nbytes / binary.nbytes, "x", "= 32")
    emit("memory, float32 over ternary", x.nbytes / ternary.nbytes, "x", "= 16")


def sweeping(asked: argparse.Namespace) -> None:
    """Counting beside reading."""
    generator = np.random.default_rng(0)
    rows, d = (40_000 if asked.quick else 400_000), 512
    for classes in (2, 10):
        x = generator.standard_normal((rows, d), dtype=np.float32)
        y = generator.integers(0, classes, rows)
        units = scaling(x[:5000])
        for threads in (1, 2):
            reading, counting = [], []
            for _ in range(3 if asked.quick else 9):
                began = time.perf_counter()
                x.sum()
                reading.append(time.perf_counter() - began)
                began = time.perf_counter()
                Histograms.empty(np.arange(classes), units).added(x, y, n_jobs=threads)
                counting.append(time.perf_counter() - began)
            what = f"{classes} classes, {threads} thread{'s' if threads > 1 else ''}"
            emit(f"{what}: counted", x.size / median(counting) / 1e9, "G numbers a second")
            target = ">= 0.333" if threads == 2 else ""
            emit(f"{what}: counting over numpy.sum", median(reading) / median(counting), "x the speed", target)
        began = time.perf_counter()
        counts = Histograms.empty(np.arange(classes), units).added(x, y)
        counted = time.perf_counter()
        counts.sweep("binary"), counts.sweep("ternary")
        emit(f"{classes} classes: D at all thresholds from the counts", 1000 * (time.perf_counter() - counted), "ms")
        del x


class Simulated:
    """Chunks that are made when they are asked for."""

    rows, features = 16384, 512
    bytes = 4 * rows * features

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        generator = np.random.default_rng(index)
        x = generator.standard_normal((self.rows, self.features), dtype=np.float32)
        return x, generator.integers(0, 2, self.rows)


def memory(asked: argparse.Namespace) -> None:
    """Memory of streams; it comes first, because what is measured is the most that the process ever held."""
    generator, d = np.random.default_rng(0), 512
    size = 0.4 if asked.quick else 10.0  # GB

    def stream() -> Iterator[tuple[Any, Any]]:
        chunk = generator.standard_normal((16384, d), dtype=np.float32)
        for i in range(round(size * 1e9 / chunk.nbytes)):
            y = generator.integers(0, 2, len(chunk))
            yield np.roll(chunk, i, axis=1), y

    taken = stream()
    lb.count_features(next(taken) for _ in range(2))  # what the counts themselves take is there from now on
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lb.count_features(taken)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    emit(f"stream of {size:g} GB: more memory at its end than after two chunks", (after - before) / 1024, "MB", "<= 64")
    lb.count_features(Simulated(8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lb.count_features(Simulated(round(size * 1e9 / Simulated.bytes)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    emit(f"{size:g} GB in chunks by index: more memory than with 8 of them", (after - before) / 1024, "MB", "<= 64")
    emit("the most memory that the process held, chunks of 34 MB", after / 1024, "MB")


def main() -> None:
    """Run the parts that were asked for."""
    options = parser(__doc__ or "")
    parts = {
        "memory": memory,
        "theory": theoretical,
        "simulated": simulated,
        "speed": speed,
        "sweep": sweeping,
        "accuracy": accuracy,
    }
    options.add_argument("--part", choices=(*parts, "all"), default="all")
    options.add_argument("--case", action="append", help="of accuracy; all by default")
    options.add_argument("--jobs", type=int, default=1, help="splits at once")
    asked = options.parse_args()
    for name, part in parts.items():
        if asked.part in (name, "all"):
            part(asked)


if __name__ == "__main__":
    main()
