"""Claim: written along a path, 8-bit outputs of accurate regressors are 3 times finer, with next to no time to read.

--part stereo: dense. Scanline stereo of slanted, textured planes and an occluding step, 12 px of disparity.
--part sensor: the position of a peak in a noisy spectrum.
--part rotation: the angle of a digit, which networks do not know well enough: the library has to refuse. What would
  have happened otherwise stands beside it.
--part real: two tables that come with scikit-learn; the library chooses a path, or refuses.
--part parts: without training. Simulated noise, round trips, levels, and the time that reading takes.

All rows of a task start from one direct network and are trained equally long, the direct one too; folds are the direct
network as it is. Then all is quantized to int8, exported, and what the file returns in ONNX Runtime on test data is
compared with the truth ("total") and with what the float network returns ("quantization"). Validation data choose
epochs and paths, test data are looked at once a row. The published row starts from scratch, with the steps of both
trainings. Seeds draw data, networks and the order of samples; figures are medians of them, and ratios medians of each
seed's ratio. Networks and rows are kept in runs/benchmarks/curves, so the script can be stopped and goes on. The full
run takes about 35 minutes on one core that others use too, half of it for stereo.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowbit as lb
from _figures import emit, parser
from lowbit import files
from lowbit.export.runtime import Session, arrays, open_session
from lowbit.methods.curves.measures import confidence_curve
from lowbit.methods.curves.paths import Fold, Hilbert, Snake, parse_path
from lowbit.methods.curves.tables import learned_table

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "curves"
RECIPE = lb.Recipe.uniform("int8", "int8")
SHIFTS, RANGE = 13, 12.0  # of stereo, px
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Data:
    """Inputs and targets in batches; targets are shares of the range."""

    train: Batches
    held: Batches
    test: Batches


@dataclass(frozen=True)
class Task:
    """A regression. `scale` turns shares of the range into `unit`.

    `network` makes an untrained direct network for a number of inputs. It is trained for `epochs`, then every row for
    as many again.
    """

    name: str
    data: Callable[[int, bool], Data]
    network: Callable[[int], nn.Module]
    rows: tuple[str, ...]
    epochs: int
    batch_size: int
    unit: str = "of the range"
    scale: float = 1.0
    rate: float = 3e-3


class Trial:
    """A task with one seed: its data, its networks, and what came of its rows."""

    def __init__(self, task: Task, seed: int, quick: bool) -> None:
        self.task, self.seed, self.quick = task, seed, quick
        self.epochs = 1 if quick else task.epochs
        self.kept = KEPT / ("quick" if quick else "full")

    @cached_property
    def data(self) -> Data:
        """Drawn by the seed."""
        return self.task.data(self.seed, self.quick)

    @cached_property
    def untrained(self) -> nn.Module:
        """The network with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.task.network(self.data.train[0][0].shape[1]).eval()

    @cached_property
    def direct(self) -> nn.Module:
        """The direct network that rows start from."""
        return self._fitted("start", self.untrained, codec_of("fold1"))

    @cached_property
    def choice(self) -> Any:
        """What the library advises: validation data measure, training data calibrate."""
        given = [b for i, held in enumerate(self.data.held) for b in (held, *_seven(self.data.train, i))]
        return lb.choose_path(self.direct, given, codec_of("snake8"), RECIPE, progress=False)

    def row(self, name: str) -> dict[str, Any]:
        """The figures of a row, from its folder if they are there."""
        path = self.kept / f"{self.task.name}-{name.replace(' ', '_').replace(',', '')}-{self.seed}.json"
        if not path.exists():
            found = self._advice() if name == "choice" else self._measured(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, found)
        return json.loads(files.read_text(path))  # type: ignore[no-any-return]

    def _advice(self) -> dict[str, Any]:
        found = self.choice
        return {
            **{"path": None if found.codec is None else str(found.codec.path), "reason": found.reason},
            **{"noise": found.noise, "uncertainty": found.uncertainty},
            "gain": found.chosen.gain if found.chosen else 1.0,
        }

    def _measured(self, name: str) -> dict[str, Any]:
        model, codec = self.network(name)
        student = lb.quantize(model, RECIPE)
        lb.calibrate(student, self.data.train[:16], progress=False)
        decoder = lb.Decoder(codec, confidence=codec.channels == 2 and not isinstance(codec.path, Fold))
        if name.endswith("learned"):
            student_points = points_of(lb.attach_decoder(student, decoder), self.data.train)
            learned = learned_table(codec, student_points, torch.cat([y for _, y in self.data.train]))
            decoder = lb.Decoder(codec, table=learned, confidence=True)
        ended = lb.attach_decoder(student, decoder)
        found, distance = returned(ended, self.data, check=self.seed == 0)
        truth = torch.cat([y for _, y in self.data.test])
        with torch.no_grad():
            float_found = torch.cat([codec.decode(model(x)) for x, _ in self.data.test])
        more = {}
        if distance is not None:
            (more["sure97"],) = (rmse for _, rmse in confidence_curve(found - truth, distance, (0.97,)))
        return {
            "path": str(codec.path),
            "total": asdict(lb.output_errors(found, truth, codec)),
            "quantization": asdict(lb.output_errors(found, float_found, codec)),
            "float": asdict(lb.output_errors(float_found, truth, codec)),
            **more,
        }

    def network(self, name: str) -> tuple[nn.Module, lb.Codec]:
        """The trained float network of a row, and its codec."""
        if name == "published":
            codec = codec_of("hilbert3")
            scratch = lb.wrap_head(self.untrained, codec, heads="published", seed=self.seed)
            return self._fitted(name, scratch, codec, loss="published", epochs=2 * self.epochs), codec
        if name == "chosen":
            codec = self.choice.codec or codec_of("fold1")
            return self._along(str(codec.path), codec), codec
        if name == "direct, 16 bits":
            codec = replace(codec_of("fold1"), bits=16)
            return self._along("fold1", codec_of("fold1")), codec
        codec = codec_of("fold1" if name == "direct" else name.removesuffix(", learned"))
        if isinstance(codec.path, Fold) and codec.path.copies > 1:
            return lb.wrap_head(self._along("fold1", codec_of("fold1")), codec), codec
        return self._along(str(codec.path), codec), codec

    def _along(self, name: str, codec: lb.Codec) -> nn.Module:
        """The direct network, trained on along a path; a fold of 1 is direct."""
        return self._fitted(name, lb.wrap_head(self.direct, codec), codec)

    def _fitted(self, name: str, model: nn.Module, codec: lb.Codec, **options: Any) -> nn.Module:
        """A network trained, or read from its folder if it was."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lb.TrainingWarning)
            trained, _ = lb.fit_head(
                *(model, codec, self.data.train),
                **{"epochs": self.epochs, "rate": self.task.rate, "batch_size": self.task.batch_size, **options},
                folder=self.kept / f"{self.task.name}-{self.seed}" / name,
                **{"held_out": self.data.held, "seed": self.seed, "progress": False, "save_every": 100000},
            )
        return trained


def codec_of(path: str) -> lb.Codec:
    """Of a path and the shares that all targets are."""
    return lb.Codec(0.0, 1.0, parse_path(path), clip=True)


def returned(student: nn.Module, data: Data, *, check: bool) -> tuple[Tensor, Tensor | None]:
    """What the student's file returns in ONNX Runtime on test data, and how far from the path it was, if it says so."""
    with tempfile.TemporaryDirectory() as folder:
        exported = lb.export_onnx(student, Path(folder, "model.onnx"), data.test[0][0][:2])
        if check:
            lb.verify(exported, data.train[:2], progress=False)
        session = open_session(exported.path, threads=1)
        parts = [session.run(arrays([x.numpy()], session.inputs)) for x, _ in data.test]
    found = [torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)]
    return found[0], found[1] if found[1:] else None


def points_of(ended: nn.Module, batches: Batches) -> Tensor:
    """What the decoder of a student reads."""
    ended = copy.deepcopy(ended)
    ended.decoder = nn.Identity()
    with torch.no_grad():
        return torch.cat([ended(x) for x, _ in batches])


def _seven(batches: Batches, turn: int) -> Batches:
    return [batches[(7 * turn + i) % len(batches)] for i in range(7)]


# the tasks


def stereo_data(seed: int, quick: bool) -> Data:
    """Pairs of scenes [N, shifts, 8, 96] as differences of the shifted images, and disparities [N, 1, 8, 96]."""
    sizes = (32, 16, 16) if quick else (1536, 96, 192)
    return Data(*(_batches(*scenes(size, 10 * seed + part), 16) for part, size in enumerate(sizes)))


def scenes(count: int, seed: int, high: int = 8, wide: int = 96) -> tuple[Tensor, Tensor]:
    """Two slanted planes, the nearer one in front of a part of the other, each with a texture of its own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, up: float, *shape: int) -> Tensor:
        return low + (up - low) * torch.rand(count, *(shape or (1, 1)), generator=generator)

    y, x = torch.arange(high).reshape(1, -1, 1) - high / 2, torch.arange(1 - SHIFTS, wide).reshape(1, 1, -1) + 0.0
    middle = x - wide / 2
    slant, tilt, far = draw(-0.03, 0.03), draw(-0.08, 0.08), draw(2.0, 6.0)
    near_slant, near_tilt, near = draw(-0.02, 0.02), draw(-0.08, 0.08), draw(8.0, 10.2)
    begin, end = draw(0, 50) + draw(-1, 1) * y, draw(15, 40)
    end = begin + end
    waves = [(draw(-math.pi, math.pi, 16), draw(-1, 1, 16), draw(0.15, 1.8, 16)) for _ in range(2)]

    def texture(which: int, at: Tensor) -> Tensor:
        phase, turn, along = (part[:, :, None, None] for part in waves[which])
        return (along * at[:, None] + turn * y[:, None] + phase).sin().sum(1) / 4

    def hit(base: Tensor, slope: Tensor, lean: Tensor) -> Tensor:
        """Where in the left image lies what the right image sees at x: x = at - disparity(at)."""
        return (x + base + lean * y - slope * wide / 2) / (1 - slope)

    far_at, near_at = hit(far, slant, tilt), hit(near, near_slant, near_tilt)
    right = torch.where((near_at >= begin) & (near_at <= end), texture(1, near_at), texture(0, far_at))
    front = (x >= begin) & (x <= end)
    here = x.expand(count, high, -1)
    left = torch.where(front, texture(1, here), texture(0, here))
    disparity = torch.where(front, near + near_slant * middle + near_tilt * y, far + slant * middle + tilt * y) / RANGE
    left, right = (one + 0.02 * torch.randn(one.shape, generator=generator) for one in (left, right))
    first = SHIFTS - 1
    shifted = [left[..., first:] - right[..., first - k : right.shape[-1] - k] for k in range(SHIFTS)]
    return torch.stack(shifted, 1), disparity[:, None, :, first:].clamp(0, 1)


def stereo_network(inputs: int) -> nn.Module:
    """Four convolutions along the scanlines and a 1x1 head."""
    layers: list[nn.Module] = []
    for before, after, wide in ((inputs, 32, 9), (32, 32, 7), (32, 32, 7), (32, 32, 7)):
        layers += [nn.Conv2d(before, after, (1, wide), padding=(0, wide // 2)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(32, 1, 1))


def sensor_data(seed: int, quick: bool) -> Data:
    """Spectra [N, 64] with one peak, and its position [N, 1]."""
    sizes = (1000, 500, 500) if quick else (20_000, 4_000, 10_000)
    return Data(*(_batches(*spectra(size, 10 * seed + part), 250) for part, size in enumerate(sizes)))


def spectra(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A Gaussian peak of 3 bins, of random height on a random background, and noise of a hundredth."""
    generator = torch.Generator().manual_seed(seed)
    where, height, ground = torch.rand(3, count, 1, generator=generator)
    center = 4 + 56 * where
    peak = (0.8 + 0.4 * height) * (-0.5 * ((torch.arange(64) - center) / 3).square()).exp()
    return peak + 0.1 * ground + 0.01 * torch.randn(count, 64, generator=generator), where


def mlp(inputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))


def rotation_data(seed: int, quick: bool) -> Data:
    """Digits [N, 1, 8, 8] turned by -45 to 45 degrees; those of training, validation and test are different ones."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(load_digits().images).float()[:, None] / 16
    order = torch.randperm(len(images), generator=generator)
    parts, turns = (order[:1200], order[1200:1450], order[1450:]), (1, 2, 2) if quick else (16, 4, 4)
    return Data(*(_batches(*turned(images[p].repeat(n, 1, 1, 1), generator), 200) for p, n in zip(parts, turns)))  # noqa: B905


def turned(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images, each turned by an angle of its own, and the angles as shares."""
    share = torch.rand(len(images), 1, generator=generator)
    angle = ((share - 0.5) * math.pi / 2)[:, 0]
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False), share


def rotation_network(inputs: int) -> nn.Module:
    """Two convolutions and two Linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 1)),
    )


def diabetes_data(seed: int, quick: bool) -> Data:
    """Progression of diabetes after a year, from 10 measurements: a noisy target."""
    from sklearn.datasets import load_diabetes

    return _table_data(*load_diabetes(return_X_y=True), seed)


def cancer_data(seed: int, quick: bool) -> Data:
    """The mean area of cell nuclei, from 29 other measurements of them, which nearly determine it."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    column = list(table.feature_names).index("mean area")
    return _table_data(np.delete(table.data, column, 1), table.data[:, column], seed)


def _table_data(x: Any, y: Any, seed: int) -> Data:
    """A table, split 3 : 1 : 1; inputs are standardized and the range is that of training targets and a hundredth."""
    inputs, target = torch.from_numpy(np.asarray(x)).float(), torch.from_numpy(np.asarray(y)).float()[:, None]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order, [len(order) - 2 * (len(order) // 5), len(order) // 5, len(order) // 5])
    some, known = inputs[parts[0]], target[parts[0]]
    inputs = (inputs - some.mean(0)) / some.std(0)
    room = 0.01 * (known.max() - known.min())
    target = (target - known.min() + room) / (known.max() - known.min() + 2 * room)
    return Data(*(_batches(inputs[part], target[part], 32) for part in parts))


def _batches(inputs: Tensor, targets: Tensor, size: int) -> Batches:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


TASKS = {
    "stereo": Task(
        *("stereo", stereo_data, stereo_network),
        ("direct", "direct, 16 bits", "fold4", "fold8", "hilbert2", "hilbert3", "snake4", "snake8", "chosen"),
        **{"epochs": 15, "batch_size": 4, "unit": "px", "scale": RANGE},
    ),
    "sensor": Task(
        *("sensor", sensor_data, mlp),
        (
            *("direct", "direct, 16 bits", "fold4", "hilbert1", "hilbert2", "hilbert3"),
            *("snake4", "snake8", "snake8, learned", "chosen", "published"),
        ),
        **{"epochs": 30, "batch_size": 128},
    ),
    "rotation": Task(
        *("rotation", rotation_data, rotation_network),
        ("direct", "fold4", "hilbert2", "hilbert3", "snake4", "snake8"),
        **{"epochs": 15, "batch_size": 128},
    ),
    "diabetes": Task(
        *("diabetes", diabetes_data, mlp),
        ("direct", "fold4", "snake4", "snake8", "chosen"),
        **{"epochs": 100, "batch_size": 32, "rate": 1e-3},
    ),
    "cancer": Task(
        *("cancer", cancer_data, mlp),
        ("direct", "direct, 16 bits", "fold4", "hilbert2", "hilbert3", "snake4", "snake8", "chosen"),
        **{"epochs": 300, "batch_size": 32, "rate": 1e-3},
    ),
}
QUICK_ROWS = ("direct", "fold4", "snake8")
RATIOS: dict[str, list[tuple[str, str, str, str]]] = {  # row, of, measure, target
    "stereo": [
        ("snake8", "quantization", "robust_sd", ">= 3.2"),
        ("snake8", "quantization", "mae", ">= 2"),
        ("snake8", "quantization", "p999", ""),
        ("snake8", "total", "mae", ">= 1"),
        ("snake8", "total", "rmse", "expected below 1"),
    ],
    "sensor": [("snake8", "total", "rmse", ">= 2"), ("snake8", "quantization", "rmse", "")],
}


# what is told


def tell(name: str, values: list[float], unit: str, target: str = "", *, spread: bool = False) -> None:
    """The median over seeds, and the least and the most of them."""
    emit(f"{name}{f', median of {len(values)} seeds' if values[1:] else ''}", statistics.median(values), unit, target)
    if values[1:] and spread:
        emit(f"{name}, least", min(values), unit)
        emit(f"{name}, most", max(values), unit)


def task(name: str, asked: argparse.Namespace) -> None:
    """All rows of a task, a whole table by one seed first."""
    task = TASKS[name]
    rows = QUICK_ROWS if asked.quick else task.rows
    trials = [Trial(task, seed, asked.quick) for seed in range(asked.seeds)]
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ("choice", *rows)}
    for trial in trials:
        for row, seeds in found.items():
            seeds.append(trial.row(row))
    advise(task, found.pop("choice"))
    for row, seeds in found.items():
        errors(task, row, seeds)
    total = [(row, "total", "rmse", "") for row in found if row != "direct"]
    listed = {line[:3]: line for line in (*total, *RATIOS.get(name, []))}
    for row, of, measure, target in listed.values():
        ratios = [a[of][measure] / b[of][measure] for a, b in zip(found["direct"], found[row], strict=True)]
        tell(f"{name}: {of} {measure}, direct over {row}", ratios, "x", target, spread=True)


def advise(task: Task, found: list[dict[str, Any]]) -> None:
    """What the library says about a task."""
    refused = [float(one["path"] is None) for one in found]
    target = "= 1" if task.name in ("rotation", "diabetes") else ""
    emit(f"{task.name}: refused, share of seeds", statistics.mean(refused), "", target)
    tell(f"{task.name}: noise of quantization, robust, on validation data", [one["noise"] for one in found], "")
    tell(f"{task.name}: the network's own error, robust", [one["uncertainty"] for one in found], "")
    for seed, one in enumerate(found):
        emit(f"{task.name}, seed {seed}: {one['path'] or 'direct'}, promised gain", one["gain"], "x")


def errors(task: Task, row: str, found: list[dict[str, Any]]) -> None:
    """The errors of a row, in the task's units."""
    listed = [("total", "mae"), ("total", "robust_sd"), ("total", "rmse"), ("total", "p999"), ("float", "rmse")]
    for of, measure in listed + [("quantization", m) for m in ("robust_sd", "mae", "rmse", "p999")]:
        values = [task.scale * one[of][measure] for one in found]
        tell(f"{task.name}, {row}: {of} {measure}", values, task.unit, spread=of == "total" and measure == "rmse")
    if any(one["quantization"]["flips"] for one in found):
        tell(f"{task.name}, {row}: flips", [100 * one["quantization"]["flips"] for one in found], "%")
    if found[0]["total"]["structure"] is not None:
        tell(f"{task.name}, {row}: structure", [one["total"]["structure"] for one in found], "")
    if all("sure97" in one for one in found):  # a direct output has no distance
        values = [task.scale * one["sure97"] for one in found]
        tell(f"{task.name}, {row}: total rmse of the 97 % nearest to the path", values, task.unit)


# without training


def parts(asked: argparse.Namespace) -> None:
    """Simulated noise, round trips, levels, times."""
    count = 20_000 if asked.quick else 1_000_000
    for path, noise, target in (
        (Hilbert(3), 0.01, "6.41 +- 5 %"),
        (Hilbert(3), 0.02, "1.62 +- 15 %"),
        (Hilbert(4), 0.01, "0.99 +- 15 %"),
        (Snake(8, 0.1), 0.02, "2.3 +- 15 %"),
        (Snake(8, 0.02), 0.02, ""),
        (Fold(8), 0.01, ""),
    ):
        emit(f"simulated noise of {noise}, {path}: direct rmse over this", simulated(path, noise, count), "x", target)
    for path, target in ((Fold(1), ""), (Hilbert(3), "= 0.000159"), (Snake(8, 0.1), "= 0.000158"), (Snake(8), "")):
        emit(f"round trip of {path}: rmse", _read(path, 0.0, count)[1], "of the range", target)
    for path, target in ((Fold(4), "= 1021"), (Fold(8), "= 2041"), (Hilbert(3), "1800 to 1900"), (Snake(8), "")):
        emit(f"levels of {path}", len(torch.unique(_read(path, 0.0, count)[0])), "", target)
    times(asked)


def _read(path: Any, noise: float, count: int) -> tuple[Tensor, float]:
    """Numbers that are drawn evenly, encoded, disturbed, rounded to codes and read again, and the error's RMSE."""
    generator = torch.Generator().manual_seed(0)
    codec = lb.Codec(0.0, 1.0, path)
    q = torch.rand(count, 1, generator=generator)
    points = codec.encode(q)
    points = points + noise * torch.randn(points.shape, generator=generator)
    with torch.no_grad():
        found = lb.Decoder(codec)(points)
    return found, float((found - q).square().mean().sqrt())


def simulated(path: Any, noise: float, count: int) -> float:
    """How many times smaller a path makes the RMSE, with noise that is independent between channels."""
    return _read(Fold(1), noise, count)[1] / _read(path, noise, count)[1]


class Dense(nn.Module):
    """A depth network in small: down to an eighth, up again, a plane of numbers at the end; 1.3 billion products."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32), (32, 64), (64, 128), (128, 128), (128, 128))
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, 2 if i < 3 else 1, 1) for i, (a, b) in enumerate(sizes)])
        self.up = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in ((128, 64), (64, 32), (32, 32))])
        self.head = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 1, H, W]."""
        for layer in self.down:
            x = layer(x).relu()
        for layer in self.up:
            x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest")).relu()
        return self.head(x)  # type: ignore[no-any-return]


ENDS = {  # of a network: the path, and how it is read
    "direct": ("fold1", None),
    "table": ("snake8", "table"),
    "arithmetic": ("snake8", "arithmetic"),
    "table and confidence": ("snake8", "confidence"),
    "fold8": ("fold8", None),
}


def times(asked: argparse.Namespace) -> None:
    """Latencies at 192x256 with 1 thread, in turn, so that all have the same machine."""
    ends = dict(list(ENDS.items())[: 2 if asked.quick else None])
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 192, 256, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        direct = Dense().eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        feeds, sessions = {}, {}
        for name, (path, kind) in ends.items():
            codec = codec_of(path)
            options = {"confidence": True} if kind == "confidence" else {"kind": kind}
            decoder = lb.Decoder(codec, **options)  # type: ignore[arg-type]
            student = lb.quantize(lb.wrap_head(direct, codec), RECIPE)
            lb.calibrate(student, [images], progress=False)
            whole = lb.export_onnx(lb.attach_decoder(student, decoder), Path(folder, f"{name}.onnx"), images[:1])
            alone = lb.export_onnx(decoder.eval(), Path(folder, f"{name}, alone.onnx"), _points(codec))
            for label, exported, feed in ((name, whole, images[:1]), (f"{name}, alone", alone, _points(codec))):
                session = open_session(exported.path, threads=1)
                sessions[label], feeds[label] = session, arrays([feed.numpy()], session.inputs)
        found = interleaved(sessions, feeds, 10 if asked.quick else 60)
    network = found["direct"]
    emit("192x256: the network with a direct output", statistics.median(network), "ms")
    for name in [one for one in ends if one != "direct"]:
        ratio = statistics.median(a / b for a, b in zip(found[name], network, strict=True))
        emit(f"192x256: network and {name} over network and direct output", ratio, "x the time")
    for name in ends:
        alone = found[f"{name}, alone"]
        emit(f"192x256: decoder {name}, alone", statistics.median(alone), "ms")
        share = statistics.median(a / b for a, b in zip(alone, network, strict=True))
        target = "<= 3" if name in ("table", "arithmetic") else ""
        emit(f"192x256: decoder {name}, alone, over the network", 100 * share, "%", target)


def _points(codec: lb.Codec) -> Tensor:
    """Smooth points of a path, as a network returns them."""
    rows, columns = torch.linspace(0, 0.3, 192)[:, None], torch.linspace(0, 0.7, 256)
    return codec.encode((rows + columns)[None, None])


def interleaved(sessions: dict[str, Session], feeds: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, in turn."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(repeats + 3):
        for name, session in sessions.items():
            took = session.latency(feeds[name], repeats=1, warmup=0).median_ms
            if turn >= 3:  # the first ones warm up
                found[name].append(took)
    return found


def main() -> None:
    """Run the parts that were asked for."""
    options = parser(__doc__ or "")
    named = {name: (name,) for name in ("sensor", "rotation")} | {"real": ("diabetes", "cancer"), "stereo": ("stereo",)}
    options.add_argument("--part", choices=("parts", *named, "all"), default="all")
    options.add_argument("--seeds", type=int, default=3, help="of each row")
    asked = options.parse_args()
    if asked.quick:
        asked.seeds = 1
    if asked.part in ("parts", "all"):
        parts(asked)
    for part, tasks in named.items():
        if asked.part in (part, "all"):
            for name in tasks:
                task(name, asked)


if __name__ == "__main__":
    main()
