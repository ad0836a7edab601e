"""A first pilot file fits the model and data it was written for: it loads as it is, runs, and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lowbit import data, models
from lowbit.data import open_data
from lowbit.errors import DataError, ExportError, LayerError
from lowbit.pilot.looking import Given
from lowbit.pilot.record import Limits, Trial
from lowbit.pilot.run import run_pilot
from lowbit.pilot.spec import DataSpec, PilotSpec, load_spec
from lowbit.pilot.starting import start
from lowbit.pilot.statistics import Scoring, checks, worst

NETWORKS = """
import torch
from torch import nn


def regression():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        y = self.norm(self.first(x))
        return self.last(y if self.takes(y) else -y)

    def takes(self, y):
        return y.dim() == 2


class Deciding(Branching):
    # on values, and not on the shape
    def takes(self, y):
        return y.sum() > 0


def deciding():
    return Deciding()


class Apart(nn.Module):
    # two outputs of one number
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        y = self.last(self.first(x))
        return {"speed": y[:, 0], "turn": y[:, 1]}


def apart():
    return Apart()


class Backwards(nn.Module):
    # whose layers are called in another order than they stand in
    def __init__(self):
        super().__init__()
        self.z = nn.Linear(5, 3)
        self.a = nn.Linear(6, 5)
        self.b = nn.Linear(5, 5)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.z(self.b(self.a(x)))


def branching():
    torch.manual_seed(3)
    return Branching()


def backwards():
    torch.manual_seed(3)
    return Backwards()


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.first(x)).squeeze(1)


def squeezing():
    torch.manual_seed(3)
    return Squeezing()


def unquantizable():
    return nn.Sequential(nn.LSTM(6, 4))


def score():
    return nn.Linear(6, 1)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder with networks, which is the current one."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(name: str, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Given:
    """A data section for arrays that are now a file."""
    if labels is None:
        np.savez(name, inputs=inputs.numpy())
    else:
        np.savez(name, inputs=inputs.numpy(), labels=labels.numpy())
    return DataSpec(source=name), Path.cwd()


def rows(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def written(path: Path) -> tuple[PilotSpec, str]:
    return load_spec(path), path.read_text()


def comments(text: str) -> str:
    """All comments as one line."""
    return " ".join(line.strip().lstrip("# ") for line in text.splitlines() if line.strip().startswith("#"))


def test_digits_get_every_variant_and_their_file_runs(here: Path) -> None:
    inputs, labels = data.digits_train()
    calibration = given("calibration.npz", inputs[:600], labels[:600])
    start("lowbit.models:digits_cnn", calibration, here / "pilot.yaml", test=given("test.npz", *data.digits_test()))
    spec, text = written(here / "pilot.yaml")
    names = ["w8a8", "w4a8", "fp4-a8", "w4a4-distilled", "mixed", "chains"]
    assert [v.name for v in spec.variants] == names
    assert (spec.name, spec.model, spec.data.calibration.source) == (
        "digits_cnn",
        "lowbit.models:digits_cnn",
        "calibration.npz",
    )
    by_name = {v.name: v for v in spec.variants}
    assert [r["match"] for r in by_name["w4a8"].rules] == ["features.0.conv", "linear"]
    chains = by_name["chains"].factorize
    assert chains is not None
    assert chains.layers == ("features.1.conv1", "features.1.conv2", "features.2.conv")
    assert "storage, not speed" in text
    assert "600 samples of [1, 8, 8], labels of 10 classes" in text
    # an untrained network: its accuracy here is computed without lowbit
    model = models.load(spec.model)
    torch.manual_seed(0)
    one = spec.model_copy(update={"variants": spec.variants[:1]})
    opened = [open_data(s.source, folder=here) for s in (spec.data.calibration, spec.data.test)]
    run = run_pilot(one, model, opened[0], opened[1], here / "run", base=here, progress=False, say=lambda _: None)
    assert [t.verdict == "failed" for t in run.trials] == [False, False]


def test_kpi_of_classes_is_a_point_less_than_float(here: Path) -> None:
    inputs = rows(90)
    with torch.no_grad():
        labels = models.load("nets.py:backwards")(inputs).argmax(1)
    labels[:9] = (labels[:9] + 1) % 3  # a tenth of them wrong
    start("nets.py:backwards", given("d.npz", inputs, labels), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    assert (spec.kpi.metric, spec.kpi.minimum, spec.kpi.tolerance) == ("accuracy", None, 0.01)
    assert "# minimum: 0.8900" in text
    assert "90.00%" in text
    assert "No --test was given" in text


@pytest.mark.parametrize(("metric", "fewest"), [("accuracy", 194), ("agreement", 96)])
def test_float_meets_what_a_first_file_asks(here: Path, metric: str, fewest: int) -> None:
    """And so does a variant that predicts the same on all samples, from as many on as the file asks for."""
    for count in (fewest - 1, fewest):
        inputs = rows(count)
        with torch.no_grad():
            outputs = models.load("nets.py:backwards")(inputs)
        labels = outputs.argmax(1) if metric == "accuracy" else None
        path = here / f"{count}.yaml"
        start("nets.py:backwards", given("d.npz", inputs, labels), path)
        spec, text = written(path)
        assert spec.kpi.metric == metric
        few = f"{count} test samples are too few to tell so small a loss" in comments(text)
        assert few == (count < fewest)
        assert (f"give {fewest} or more" in comments(text)) == few
        found = outputs.numpy()
        scoring = Scoring(metric, None if labels is None else labels.numpy(), found)
        same = Trial("same", {}, "", "misses", score=scoring.score(found), difference=scoring.difference(found))
        base = replace(same, recipe=None, difference=None)
        verdicts = [worst(checks(one, spec.kpi.asked(), Limits())) for one in (base, same)]
        assert verdicts == ["meets", "borderline" if few else "meets"]


def test_what_is_commented_out_can_be_used(here: Path) -> None:
    """Keys with a comment behind them, uncommented; the file still loads, and says what they say."""
    start("nets.py:backwards", given("d.npz", rows(40)), here / "pilot.yaml")
    text = (here / "pilot.yaml").read_text()
    assert "kpi: {metric: agreement, tolerance: 0.02}    # minimum: 0.9800" in text
    keys = ("budgets:", "  size:", "  bops:", "  latency:", "seeds:", "defaults:", "  activations:")
    for key in keys:
        assert text.count(f"\n# {key}") == 1
        text = text.replace(f"\n# {key}", f"\n{key}")
    (here / "pilot.yaml").write_text(text.replace("\nseed: 0", ""))
    spec = load_spec(here / "pilot.yaml")
    assert spec.budgets is not None
    assert (spec.budgets.size, spec.budgets.bops, spec.budgets.latency) == (200_000, 40e6, 2.5)
    assert spec.seeds == (0, 1, 2)
    assert {variant.activations for variant in spec.variants} >= {"int8"}


def test_first_and_last_layer_are_those_called_first_and_last(here: Path) -> None:
    start("nets.py:backwards", given("d.npz", rows(40)), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    assert [r["match"] for r in spec.variants[1].rules] == ["a", "z"]
    assert "Not called on this data: spare" in comments(text)


def test_without_labels_agreement_decides(here: Path) -> None:
    start("nets.py:backwards", given("d.npz", rows(40)), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    assert (spec.kpi.metric, spec.kpi.tolerance) == ("agreement", 0.02)
    assert "There are no labels" in text
    assert not any(
        v.distill or v.search or v.factorize or v.output for v in spec.variants
    )  # 40 samples, no convolution


def test_regression_gets_r2_and_outputs_on_a_path(here: Path) -> None:
    inputs = rows(600)
    with torch.no_grad():
        clean = models.load("nets.py:regression")(inputs)
    noise = 0.1 * clean.std() * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    targets = clean + noise
    start("nets.py:regression", given("d.npz", inputs, targets), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    unexplained = float(((noise**2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)).mean())
    assert spec.kpi.metric == "r2"
    assert spec.kpi.tolerance == pytest.approx(0.1 * unexplained, rel=0.05)
    assert float(text.partition("# minimum: ")[2].split()[0]) == pytest.approx(1 - 1.1 * unexplained, abs=1e-3)
    assert {"fold", "curve", "w4a4-distilled", "mixed"} - {v.name for v in spec.variants} == {"mixed"}  # three layers
    assert [v.output.path for v in spec.variants if v.output] == ["fold4", "auto"]


def test_a_model_that_ends_in_no_layer_is_told_so(here: Path) -> None:
    inputs = rows(60)
    start("nets.py:squeezing", given("d.npz", inputs, inputs[:, 0]), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    assert spec.kpi.metric == "r2"
    assert not any(v.output for v in spec.variants)
    ends = "No output variants (fold, curve): the model does not end in a layer that can be widened ("
    assert f"{ends}Squeezing ends in 'squeeze'" in comments(text)


@pytest.mark.parametrize("count", [1, 20, 200])
def test_few_samples_are_warned_of_whatever_the_metric(here: Path, count: int) -> None:
    inputs = rows(count)
    labels = torch.randn(count, 2, generator=torch.Generator().manual_seed(1)) if count > 1 else None
    said = " ".join(start("nets.py:regression", given("d.npz", inputs, labels), here / "pilot.yaml"))
    text = comments((here / "pilot.yaml").read_text())
    for told in (said, text):
        assert ("calibration samples are few: ranges of activations may cut off" in told) == (count == 20)
        assert ("1 calibration sample is few" in told) == (count == 1)
        assert ("20 test samples are few: every interval will be wide; give 100 or more." in told) == (count == 20)


def test_a_model_worse_than_the_mean_is_warned_of(here: Path) -> None:
    inputs = rows(200)
    with torch.no_grad():
        outputs = models.load("nets.py:regression")(inputs)
    said = start("nets.py:regression", given("d.npz", inputs, 5 - 9 * outputs), here / "pilot.yaml")
    assert any(line.startswith("warning: an r2 below 0") and "belong to this model?" in line for line in said)
    assert "does the data belong to this model?" in comments((here / "pilot.yaml").read_text())
    exact = start("nets.py:regression", given("d.npz", inputs, outputs * 1.001), here / "exact.yaml")
    assert not any("warning" in line for line in exact)
    score = next(line.split()[3] for line in exact if line.startswith("float model: r2 "))
    assert 0.9999 < float(score) < 1


def test_untraceable_model_is_told_so(here: Path) -> None:
    start("nets.py:branching", given("d.npz", rows(600)), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    assert "the model cannot be traced" in comments(text)
    assert "norm (LayerNorm) stays float: LayerNorm has no quantized form" in comments(text)
    assert not any(v.search for v in spec.variants)


def test_of_several_outputs_the_first_counts(here: Path) -> None:
    told = start("nets.py:apart", given("d.npz", rows(60), torch.rand(60)), here / "pilot.yaml")
    assert any(line.startswith("the model returns 2 tensors: the first is scored and compared") for line in told)


def test_single_score_of_two_classes_is_no_regression(here: Path) -> None:
    inputs = rows(60)
    start("nets.py:score", given("d.npz", inputs, (inputs[:, 0] > 0).long()), here / "pilot.yaml")
    spec, text = written(here / "pilot.yaml")
    assert spec.kpi.metric == "agreement"
    assert "Accuracy takes a score for each class" in text


def test_paths_are_relative_to_the_file(here: Path) -> None:
    (here / "inner").mkdir()
    start("nets.py:backwards", given("d.npz", rows(40)), here / "inner" / "pilot.yaml")
    spec, _ = written(here / "inner" / "pilot.yaml")
    assert (spec.model, spec.data.calibration.source) == ("../nets.py:backwards", "../d.npz")
    assert len(spec.data.calibration.open(here / "inner", 0)) == 40
    assert isinstance(models.load(spec.model, folder=here / "inner"), nn.Module)


def test_existing_file_stays(here: Path) -> None:
    (here / "pilot.yaml").write_text("mine")
    with pytest.raises(DataError, match="there already"):
        start("nets.py:backwards", given("d.npz", rows(40)), here / "pilot.yaml")
    assert (here / "pilot.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "inputs", "labels", "error", "message"),
    [
        ("nets.py:backwards", torch.zeros(20, 7), None, DataError, "does not take inputs of shape"),
        ("nets.py:backwards", torch.zeros(20, 6), torch.full((20,), 7), DataError, "labels are 7 to 7"),
        ("nets.py:regression", torch.zeros(20, 6), torch.zeros(20, 5), DataError, "neither as classes nor as targets"),
        (
            "nets.py:unquantizable",
            torch.zeros(20, 6),
            None,
            LayerError,
            "no layer that can be quantized: 0: LSTM reads",
        ),
        (
            "nets.py:regression",
            torch.zeros(20, 6),
            torch.eye(2).tile(10, 1),
            DataError,
            "array 'labels' .20, 2. look one",
        ),
        ("nets.py:deciding", torch.zeros(20, 6), None, ExportError, "branches on the values of a tensor"),
        (
            "nets.py:apart",
            torch.zeros(20, 6),
            torch.rand(20, 2),
            DataError,
            "leave labels out. The model returns 2 tensors, of which the first counts",
        ),
        ("nets.py:nothing", torch.zeros(20, 6), None, DataError, "has no 'nothing'"),
    ],
)
def test_nothing_is_written_for_what_does_not_fit(
    here: Path, model: str, inputs: torch.Tensor, labels: torch.Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start(model, given("d.npz", inputs, labels), here / "pilot.yaml")
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == ["d.npz", "nets.py"]
