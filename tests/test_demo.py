"""The demo: its pilot is valid, its network is the same each time, and all of it runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from lowbit import demo, files, models
from lowbit.cli import runs
from lowbit.data import digits_test
from lowbit.pilot.record import Trial, read
from lowbit.pilot.spec import PilotSpec


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.trained_weights(tmp_path_factory.mktemp("demo") / "new/weights.safetensors", progress=False)


def test_pilot_is_valid(tmp_path: Path) -> None:
    spec = demo.PILOT
    assert PilotSpec.model_validate(spec.model_dump(exclude_defaults=True)) == spec
    recipes = [variant.to_recipe(tmp_path, variant.name) for variant in spec.variants]
    assert len({recipe.fingerprint for recipe in recipes}) == len(recipes) == 5


def test_weights_are_the_same_each_time(weights: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)  # whatever came before
    again = demo.trained_weights(tmp_path / "weights.safetensors", progress=False)
    first, second = files.load_tensors(weights), files.load_tensors(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_are_good(weights: Path) -> None:
    model = models.load(demo.PILOT.model, weights)
    inputs, labels = digits_test()
    with torch.no_grad():
        assert (model(inputs).argmax(1) == labels).float().mean() > 0.97


def test_weights_that_are_there_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_text("mine")
    assert demo.trained_weights(path, progress=False).read_text() == "mine"


@pytest.mark.slow
def test_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    runs.demo(tmp_path)
    assert time.perf_counter() - began < 120
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"report: {tmp_path / 'report.html'}" in captured.out
    scores = {}
    for name in ("float", *(variant.name for variant in demo.PILOT.variants)):
        trial = read(Trial, tmp_path / "variants" / name / "trial.json")
        assert trial.score is not None
        scores[name] = trial.score.value
        assert (tmp_path / "variants" / name / "model.onnx").stat().st_size == trial.file_bytes
    assert min(scores["float"], scores["w8a8"], scores["fp4-a8"]) > 0.98
    assert scores["ternary-a8"] > 0.95  # rounded to nearest, it would be 0.27
    assert "ternary" in (tmp_path / "report.html").read_text()
