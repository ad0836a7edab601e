"""Feature data sets for `discrimination.py`: from images, speech, text and tables, drawn ones, and all under stress.

A case is named "set" or "set, stress": `load("digits, impulses", data, seed)`. Stresses of the features take any dense
set; others act on pixels, waveforms and words, before features are computed. Rows of a stressed set are the rows of the
clean one in the same order, so that a classifier may learn from one and be tested on the other. Nothing is
standardized here and no label is looked at, so splits and standardization stay with the caller.

Features that take a while are kept in runs/benchmarks/discrimination until this file or the data change.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as pq
import scipy.fft
import scipy.sparse
import torch
from sklearn import datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from _mobilenet import NORMALIZE
from lowbit import files, models
from lowbit.data import Preprocess, open_data

KEPT = Path(__file__).resolve().parents[1] / "runs" / "benchmarks" / "discrimination"
CHOSEN = 0  # seed of the images and headlines that are used; stresses have their own
RATE, WINDOW, HOP, SPECTRUM = 8000, 200, 80, 256  # of speech: 1/s, then samples: 25 ms every 10 ms
BANDS, FRAMES, FLOOR = 20, 16, 1e-4


@dataclass(frozen=True, eq=False)
class Features:
    """Rows to classify: `x` is float32 `[n, d]`, sparse for text, `y` int64 `[n]`; `about` is a line for readers."""

    name: str
    x: np.ndarray | scipy.sparse.csr_array
    y: np.ndarray
    about: str

    @property
    def dense(self) -> np.ndarray:
        """The features, if they are dense; ValueError otherwise."""
        if not isinstance(self.x, np.ndarray):
            raise ValueError(f"'{self.name}' is sparse; the stresses of features want dense ones")
        return self.x

    def sample(self, rows: int, seed: int = 0) -> Features:
        """At most so many rows, chosen at random and kept in order."""
        chosen = _chosen(len(self.y), rows, seed)
        return replace(self, x=self.x[chosen], y=self.y[chosen], about=f"{self.about}; {len(chosen)} rows of it")


# Images


def image(data: Path, stress: str = "", seed: int = 0, rows: int = 4000) -> Features:
    """CIFAR-10 test images as the 64 pooled features in front of the last layer of the given ResNet-20.

    All features are at least 0. `rows` of the 10,000 are chosen by a fixed seed; `stress` is one of `PIXELS`.
    """
    folder = data / "cifar10"
    weights, images = folder / "resnet20.safetensors", folder / "test-00000-of-00001.parquet"

    def compute() -> tuple[np.ndarray, np.ndarray]:
        model = models.load("lowbit.models:resnet20", weights)
        model.linear = nn.Identity()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (NORMALIZE.mean, NORMALIZE.std))
        change = PIXELS[stress] if stress else lambda x, _: x
        generator = torch.Generator().manual_seed(seed)
        pairs = open_data(str(images), preprocess=Preprocess(scale=255)).take(rows, CHOSEN).batches(250)
        with torch.no_grad():
            found = [(model((change(x, generator) - mean) / std), y) for x, y in pairs]
        return torch.cat([x for x, _ in found]).numpy(), torch.cat([y for _, y in found if y is not None]).numpy()

    x, y = _kept(_case("image", stress, *[seed] * bool(stress), f"{rows} rows"), [weights, images], compute)
    return Features(_case("image", stress), x, y, f"{len(y)} CIFAR-10 test images, 64 pooled features of ResNet-20")


def pixel_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise with a standard deviation of 0.05 on pixels from 0 to 1, clipped to that range."""
    return (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def pixel_impulses(x: Tensor, generator: torch.Generator) -> Tensor:
    """Salt and pepper: 3 % of the pixels become black or white, all channels at once."""
    shape = (len(x), 1, *x.shape[2:])
    hit = torch.rand(shape, generator=generator) < 0.03
    white = torch.rand(shape, generator=generator) < 0.5
    return torch.where(hit, white.to(x.dtype), x)


# Speech


def speech(data: Path, stress: str = "", seed: int = 0) -> Features:
    """Spoken digits, 3,000 recordings at 8 kHz, as 320 log-mel features: 20 bands for each of 16 spans of time.

    Loudness is normalized: each recording is divided by its root mean square, after the stress. Then power spectra of
    25 ms every 10 ms (Hann window), 20 triangular bands from 80 to 4,000 Hz, even on the mel scale, log(power + 1e-4),
    where white noise as loud as the recording has power 1 at each frequency, and the mean over each sixteenth of the
    recording, however long that is. `stress` is one of `WAVEFORMS`. Random splits hear all six speakers on both sides.
    """
    path = data / "speech" / "fsdd.npz"

    def compute() -> tuple[np.ndarray, np.ndarray]:
        arrays = files.load_arrays(path)
        rng, bank = np.random.default_rng(seed), mel_bank()
        found = []
        for samples in np.split(arrays["samples"].astype(np.float64), arrays["offsets"][1:-1]):
            wave = samples / loudness(samples)
            found.append(log_mel(WAVEFORMS[stress](wave, rng) if stress else wave, bank))
        return np.array(found, np.float32), arrays["digit"].astype(np.int64)

    x, y = _kept(_case("speech", stress, *[seed] * bool(stress)), [path], compute)
    return Features(_case("speech", stress), x, y, f"{len(y)} spoken digits, {x.shape[1]} log-mel features")


def white_noise(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise as loud as the recording: 0 dB."""
    return wave + rng.standard_normal(len(wave))


def clicks(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At 0.3 % of the samples, 24 times a second, a click of 20 times the root mean square, up or down."""
    hit = rng.random(len(wave)) < 0.003
    return wave + np.where(hit, rng.choice([-20.0, 20.0], len(wave)), 0)


def loudness(wave: np.ndarray) -> float:
    """Root mean square."""
    return math.sqrt(np.mean(wave**2))


def mel_bank() -> np.ndarray:
    """Triangular bands `[bands, frequencies]` of height 1."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (80, RATE / 2))  # mel
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)[:, None]  # Hz
    frequencies = np.fft.rfftfreq(SPECTRUM, 1 / RATE)
    widths = np.diff(edges, axis=0)
    rising, falling = (frequencies - edges[:-2]) / widths[:-1], (edges[2:] - frequencies) / widths[1:]
    bank: np.ndarray = np.maximum(0, np.minimum(rising, falling))
    return bank


def log_mel(wave: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Log-mel features `[frames * bands]` of a recording, whatever its loudness."""
    window = np.hanning(WINDOW + 1)[:-1]
    windows = np.lib.stride_tricks.sliding_window_view(wave / loudness(wave), WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(windows * window, SPECTRUM)) ** 2 / np.sum(window**2)
    log = np.log(power @ bank.T + FLOOR)
    ends = np.arange(FRAMES + 1) * len(log) / FRAMES
    spans = [slice(int(begin), math.ceil(end)) for begin, end in itertools.pairwise(ends)]  # may overlap
    return np.concatenate([log[span].mean(0) for span in spans])


# Text


def text(data: Path, stress: str = "", seed: int = 0) -> Features:
    """AG News headlines with their teasers: TF-IDF of 5,000 words at most, sparse, rows of length 1; 4 topics.

    4,000 of the 10,001 training rows are chosen by a fixed seed. Words in fewer than 3 rows are left out, counts enter
    as 1 + log(count). The words and their weights are those of all 4,000 rows, without labels. `stress` is one of
    `WORDS`; after it, words and weights are found anew, so columns are not those of the clean set.
    """
    table = pq.read_table(data / "text" / "agnews_train.parquet")
    chosen = _chosen(len(table), 4000, CHOSEN)
    texts = table["text"].take(chosen).to_pylist()
    if stress:
        texts = WORDS[stress](texts, np.random.default_rng(seed))
    vectorizer = TfidfVectorizer(max_features=5000, min_df=3, sublinear_tf=True, dtype=np.float32)
    x = scipy.sparse.csr_array(vectorizer.fit_transform(texts))
    y = table["label"].to_numpy()[chosen].astype(np.int64)
    share = 100 * x.nnz / math.prod(x.shape)
    about = f"{len(y)} AG News headlines, TF-IDF of {x.shape[1]} words, {share:.1f} % of them above 0"
    return Features(_case("text", stress), x, y, about)


def added_words(texts: list[str], rng: np.random.Generator) -> list[str]:
    """As many random words again as a headline has, drawn as often as they occur in all of them."""
    counts = [len(text.split()) for text in texts]
    words = np.array(" ".join(texts).split())
    drawn = np.split(rng.choice(words, sum(counts)), np.cumsum(counts)[:-1])
    return [f"{text} {' '.join(more)}" for text, more in zip(texts, drawn, strict=True)]


def lost_words(texts: list[str], rng: np.random.Generator) -> list[str]:
    """Every word is lost with a probability of 50 %."""
    split = [text.split() for text in texts]
    return [" ".join(np.array(words)[rng.random(len(words)) < 0.5]) for words in split]


# Tables and draws


def bundled(name: str) -> Features:
    """A table that comes with scikit-learn: "wine", "breast_cancer" or "digits" (8 x 8 pixels from 0 to 16)."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    about = f"{name.replace('_', ' ')} of scikit-learn, {len(y)} rows, {x.shape[1]} features"
    return Features(name, x.astype(np.float32), y.astype(np.int64), about)


@dataclass(frozen=True)
class Draw:
    """Two classes of independent features around -mu and mu with total variance 1, and junk of variance 1."""

    informative: int
    mu: float
    noise: str = "Gaussian"
    junk: int = 0


def simulated(name: str, seed: int = 0, train: int = 200, test: int = 1000) -> Features:
    """One of `DRAWS`: first `train` rows of each class, then `test` rows of each, both shuffled, all independent."""
    draw, rng = DRAWS[name], np.random.default_rng([seed, 1])  # not the stream of the stresses
    parts = [rng.permutation(np.repeat([0, 1], rows)) for rows in (train, test)]
    y = np.concatenate(parts).astype(np.int64)
    shape = (len(y), draw.informative + draw.junk)
    match draw.noise:  # of variance 1
        case "Laplace":
            x = rng.laplace(size=shape) / math.sqrt(2)
        case "t(3)":
            x = rng.standard_t(3, shape) / math.sqrt(3)
        case _:
            x = rng.standard_normal(shape)
    x[:, : draw.informative] *= math.sqrt(1 - draw.mu**2)
    x[:, : draw.informative] += np.where(y == 1, draw.mu, -draw.mu)[:, None]
    what = f"{draw.informative} {draw.noise} features at mu {draw.mu:g}" + f", {draw.junk} of junk" * bool(draw.junk)
    return Features(name, x.astype(np.float32), y, f"simulated: {what}, the first {2 * train} rows to train")


# Stresses of dense features


def impulses(features: Features, seed: int) -> Features:
    """8 % of the entries are replaced by the feature's mean plus or minus 6 of its standard deviations.

    With 6, standardized 5 nearest neighbors on digits fall to what the method sheet saw (44.6 %); more is still worse.
    Constant features stay so.
    """
    x, rng = features.dense, np.random.default_rng(seed)
    hit = rng.random(x.shape) < 0.08
    value = x.mean(0) + 6 * x.std(0) * rng.choice([-1, 1], x.shape)
    return _stressed(features, "impulses", np.where(hit, value, x))


def junk(features: Features, seed: int) -> Features:
    """200 more features that tell nothing: Student's t with 3 degrees of freedom, scale 1 (standard deviation 1.7).

    The scale matters only to those who do not standardize.
    """
    x, rng = features.dense, np.random.default_rng(seed)
    return _stressed(features, "junk", np.hstack([x, rng.standard_t(3, (len(x), 200))]))


def gain(features: Features, seed: int) -> Features:
    """Each row times its own factor exp(0.7 g), g standard normal; for features where 0 means nothing is there.

    With 0.7, standardized 5 nearest neighbors on digits fall to what the method sheet saw (87.9 %).
    """
    x, rng = features.dense, np.random.default_rng(seed)
    return _stressed(features, "gain", x * rng.lognormal(0, 0.7, (len(x), 1)))


def dct(features: Features, seed: int) -> Features:
    """The orthonormal two-dimensional DCT-II of square images, `digits`; the seed has nothing to decide."""
    x = features.dense
    side = math.isqrt(x.shape[1])
    if side**2 != x.shape[1]:
        raise ValueError(f"'{features.name}' has {x.shape[1]} features, which are no square image; take digits")
    turned = scipy.fft.dctn(x.reshape(-1, side, side).astype(np.float64), axes=(1, 2), norm="ortho")
    return _stressed(features, "DCT", turned.reshape(x.shape))


# All


Stress = Callable[[Features, int], Features]
STRESSES: MappingProxyType[str, Stress] = MappingProxyType(
    {"impulses": impulses, "junk": junk, "gain": gain, "DCT": dct}
)
PIXELS = MappingProxyType({"pixel noise": pixel_noise, "pixel impulses": pixel_impulses})
WAVEFORMS = MappingProxyType({"white noise": white_noise, "clicks": clicks})
WORDS = MappingProxyType({"added words": added_words, "lost words": lost_words})
DRAWS = MappingProxyType(
    {
        "Gaussian": Draw(100, 0.15),
        "Laplace": Draw(100, 0.15, "Laplace"),
        "t(3)": Draw(100, 0.15, "t(3)"),
        "2 and 50 junk": Draw(2, 0.8, junk=50),
        "3 and 300 junk": Draw(3, 0.9, junk=300),
    }
)
Source = Callable[[Path, str, int], Features]
SOURCES: MappingProxyType[str, Source] = MappingProxyType({"image": image, "speech": speech, "text": text})
CLEAN = ("image", "speech", "text", "wine", "breast_cancer", "digits")
STRESSED = (
    *(f"image, {stress}" for stress in (*PIXELS, "impulses", "junk", "gain")),
    *(f"speech, {stress}" for stress in (*WAVEFORMS, "impulses", "junk")),
    *(f"text, {stress}" for stress in WORDS),
    *(f"{name}, {stress}" for name in ("wine", "breast_cancer") for stress in ("impulses", "junk")),
    *(f"digits, {stress}" for stress in STRESSES),
)


def load(case: str, data: Path, seed: int = 0) -> Features:
    """The features of a case: of `CLEAN`, `STRESSED`, `DRAWS`, or any dense set with any of `STRESSES`.

    The seed draws stresses and simulations. `data` is the folder that holds cifar10, speech and text.

    Raises:
        ValueError: there is no such case.
    """
    name, _, stress = case.partition(", ")
    before = {"image": set(PIXELS), "speech": set(WAVEFORMS), "text": set(WORDS)}.get(name, set())
    early, late = (stress, "") if stress in before else ("", stress)
    if late and late not in STRESSES:
        raise ValueError(f"no stress '{stress}' of '{name}'; stresses are {', '.join([*before, *STRESSES])}")
    if name in SOURCES:
        found = SOURCES[name](data, early, seed)
    elif name in DRAWS:
        found = simulated(name, seed)
    elif name in CLEAN:
        found = bundled(name)
    else:
        raise ValueError(f"no set '{name}'; sets are {', '.join([*CLEAN, *DRAWS])}")
    return STRESSES[late](found, seed) if late else found


def _case(name: str, *parts: str | int) -> str:
    return ", ".join([name, *(str(part) for part in parts if part != "")])


def _chosen(of: int, rows: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(of)[:rows])


def _stressed(features: Features, stress: str, x: np.ndarray) -> Features:
    return replace(features, name=_case(features.name, stress), x=x.astype(np.float32))


def _kept(
    name: str, inputs: list[Path], compute: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """What was computed before, unless this file or the inputs changed since."""
    state = [Path(__file__).read_bytes(), *(f"{path.resolve()} {path.stat().st_size}".encode() for path in inputs)]
    made_by = np.frombuffer(hashlib.sha256(b"\0".join(state)).digest(), np.uint8)
    kept = KEPT / f"features-{name.replace(', ', '-').replace(' ', '_')}.npz"
    if kept.exists():
        arrays = files.load_arrays(kept)
        if np.array_equal(arrays["made_by"], made_by):
            return arrays["x"], arrays["y"]
    x, y = compute()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(kept) as path, path.open("wb") as file:
        np.savez(file, x=x, y=y, made_by=made_by)
    return x, y
