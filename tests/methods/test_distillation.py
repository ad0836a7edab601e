"""Distillation: the loss in closed form, what trains and what is chosen, models of every kind, and clear errors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import lowbit as lb
from lowbit import graph
from lowbit.batches import Batch
from lowbit.errors import CalibrationError, DataError, LayerError, RecipeError, TrainingError, TrainingWarning
from lowbit.families import FamilyName
from lowbit.methods.distillation.run import Distillation, distill
from lowbit.methods.distillation.teacher import check_teacher
from lowbit.objectives import kl_divergence
from lowbit.quantization import origin
from lowbit.quantizer import Quantizer
from lowbit.training.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.TrainingWarning")  # networks here are untrained


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Small(nn.Module):
    """Two normalized convolutions with a shortcut, and class scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)
        with torch.no_grad():
            for bn in (self.bn1, self.bn2):
                nn.init.normal_(bn.weight, 0.5, 1.0)  # of both signs
            for _ in range(30):
                self(torch.randn(64, 1, 6, 6))  # statistics as after training
            self.linear.weight.mul_(10)
            self.linear.bias.sub_(self.eval()(torch.randn(256, 1, 6, 6)).mean(0))  # all classes are predicted

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)) + y)
        return self.linear(y.mean((2, 3)))  # type: ignore[no-any-return]


def images(count: int = 96, seed: int = 0) -> list[Tensor]:
    x = torch.randn(count, 1, 6, 6, generator=generator(seed))
    return [x[i : i + 16] for i in range(0, count, 16)]


def student_of(
    model: nn.Module, batches: Sequence[Batch], weights: str = "mid2", activations: str = "int3"
) -> nn.Module:
    student = lb.quantize(model, lb.Recipe.uniform(weights, activations), fold=False)
    lb.calibrate(student, batches, progress=False)
    return student


def trained(batches: Sequence[Batch] | None = None, **options: object) -> tuple[nn.Module, Distillation]:
    model, batches = Small().eval(), batches or images()
    options = {"epochs": 3, "batch_size": 16, "rate": 5e-3, "progress": False, **options}
    return distill(student_of(model, batches), model, batches, **options)  # type: ignore[arg-type]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


# The loss


def test_kl_and_its_gradient_in_closed_form() -> None:
    teacher = torch.tensor([[2.0, 0, -1], [0, 1, 3]])
    student = torch.tensor([[1.0, 0, 0], [0, 1, 2]], requires_grad=True)
    loss = kl_divergence(student, teacher, 4.0)
    assert loss.item() == pytest.approx(0.2275206, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.allclose(gradient[0], torch.tensor([-0.1800659, 0.0254968, 0.1545691]), atol=1e-6)
    closed = 4 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 2
    assert torch.allclose(gradient, closed, atol=1e-6)


def test_kl_of_dense_maps_is_the_mean_over_places() -> None:
    a, b = torch.randn(2, 5, 3, 4, generator=generator()), torch.randn(2, 5, 3, 4, generator=generator(1))
    flat = [t.permute(0, 2, 3, 1).reshape(-1, 5) for t in (a, b)]
    assert torch.allclose(kl_divergence(a, b, 2.0), kl_divergence(flat[0], flat[1], 2.0))


# What comes out


def test_the_student_comes_closer_to_its_teacher_and_is_like_any_other() -> None:
    model, batches = Small().eval(), images()
    before = copy.deepcopy(model.state_dict())
    student = student_of(model, batches)
    given = copy.deepcopy(student.state_dict())
    finished, result = distill(student, model, batches, epochs=8, batch_size=16, rate=5e-3, progress=False)
    assert result.after > result.before
    assert result.epochs[-1].loss < 0.7 * result.epochs[0].loss
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, given[k]) for k, v in student.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in finished.modules())
    assert not finished.training
    assert {row.name for row in result.ranges} >= {"conv2.weight_quantizer", "activations.relu"}
    assert any((row.low, row.high) != (row.low_before, row.high_before) for row in result.ranges)
    noted = origin(finished)
    assert noted is not None
    assert noted.folded
    assert noted.steps[-1].startswith("distill(quantizer=ewgs")
    assert "epochs" in str(result)


def test_folding_the_batchnorms_changes_no_prediction() -> None:
    _, result = trained()
    kept = [epoch.score for epoch in result.epochs][result.best - 1]
    assert kept == pytest.approx(result.after, abs=0.07)  # a rounding may flip at a tie: one of 16 samples


def test_training_that_only_harms_leaves_the_student_as_it_was() -> None:
    """At 8 bits a high rate loses what calibration had; as published, the best epoch is kept all the same."""
    model, batches = Small().eval(), images(160)
    student = student_of(model, batches, weights="int8", activations="int8")
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "rate": 0.3, "progress": False}
    kept, result = distill(student, model, batches, **options)
    assert (result.best, result.after) == (0, result.before)
    assert "2 epochs, none as good as the start, which was kept" in str(result)
    assert isinstance(student, fx.GraphModule)
    graph.fold_batchnorm(student)
    x = images(32, 9)[0]
    assert torch.allclose(kept(x), student(x), atol=1e-3)
    assert all((row.low, row.high) == (row.low_before, row.high_before) for row in result.ranges)
    assert distill(student, model, batches, **options, exact=True)[1].best > 0


def test_deltas_are_updated_by_default() -> None:
    _, result = trained(epochs=4, held_out=images(16, 5))
    assert result.best > 1
    assert any(row.delta > 0 for row in result.ranges)
    _, result = trained(epochs=2, quantizer="lsq")
    assert all(row.delta == 0 for row in result.ranges)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("family", ["fixed", "lsq", "pact", "dorefa", "ewgs"])
def test_every_family_trains_exports_and_verifies(family: FamilyName, exact: bool, tmp_path: Path) -> None:
    finished, result = trained(quantizer=family, exact=exact, epochs=2)
    assert all(torch.isfinite(torch.tensor(epoch.loss)) for epoch in result.epochs)
    exported = lb.export_onnx(finished, tmp_path / "model.onnx", images()[0])
    checked = lb.verify(exported, images(), progress=False)
    assert "QLinearConv" in checked.kernels


def test_labels_do_not_matter() -> None:
    labelled: list[list[Batch]] = []
    for seed in (1, 2):
        labels = torch.randint(0, 4, (16,), generator=generator(seed))
        labelled.append([(x, labels) for x in images()])
    first, second = (trained(batches)[0] for batches in labelled)
    assert same_weights(first, second)
    assert same_weights(first, trained()[0])
    with_labels = [trained(batches, loss="labels")[0] for batches in labelled]
    assert not same_weights(*with_labels)


def test_labels_are_learned_where_they_are_asked_for() -> None:
    model, batches = Small().eval(), images(160)
    with torch.no_grad():
        labelled: list[Batch] = [(x, model(x).argmax(1)) for x in batches]
    student = student_of(model, batches)
    options = {"epochs": 8, "batch_size": 16, "rate": 5e-3, "progress": False}
    _, result = distill(student, model, labelled, loss="labels", **options)  # type: ignore[arg-type]
    assert result.epochs[-1].loss < result.epochs[0].loss
    with pytest.raises(DataError, match="got a batch without labels"):
        distill(student, model, batches, loss="labels", **options)  # type: ignore[arg-type]


def test_with_quantizers_that_round_nothing_the_student_is_its_teacher() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    student = student_of(model, images())
    for quantizer in [m for m in student.modules() if isinstance(m, Quantizer)]:
        quantizer.register_forward_hook(lambda _, args, output: args[0])  # as with 32 bits
    finished, result = distill(student, model, images(), epochs=2, optimizer="sgd", progress=False)
    assert (result.before, result.after) == (1, 1)
    assert max(epoch.loss for epoch in result.epochs) < 1e-12
    assert torch.allclose(finished(images()[0]), model(images()[0]), atol=1e-6)


def test_a_student_that_keeps_its_batchnorms_equals_its_teacher_without_quantizers() -> None:
    model = Small().eval()
    student = student_of(model, images())
    assert isinstance(student, fx.GraphModule)
    for quantizer in [m for m in student.modules() if isinstance(m, Quantizer)]:
        quantizer.register_forward_hook(lambda _, args, output: args[0])  # as with 32 bits
    x = images()[0]
    assert torch.allclose(student(x), model(x), atol=1e-6)  # channels turned around: signs, and the order of nothing


def test_the_best_epoch_is_the_one_that_agrees_most() -> None:
    _, result = trained(epochs=5)
    scores = [epoch.score or 0.0 for epoch in result.epochs]
    assert result.best == max(number for number, score in enumerate(scores, 1) if score == max(scores))


def test_resumes_to_the_same_student(tmp_path: Path) -> None:
    whole, _ = trained(folder=tmp_path / "whole", save_every=2)
    calls = 0

    def killed(batch: Batch, _: torch.Generator) -> Batch:
        nonlocal calls
        calls += 1
        if calls == 12:  # the teacher's check calls once
            raise KeyboardInterrupt
        return batch

    whole_with, _ = trained(folder=tmp_path / "with", save_every=2, augment=lambda batch, _: batch)
    with pytest.raises(KeyboardInterrupt):
        trained(folder=tmp_path / "killed", save_every=2, augment=killed)
    resumed, _ = trained(folder=tmp_path / "killed", save_every=2, augment=killed)
    assert same_weights(resumed, whole_with)
    assert same_weights(whole, whole_with)
    with pytest.raises(TrainingError, match="checkpoint of another run"):
        trained(folder=tmp_path / "whole", save_every=2, quantizer="lsq")


def test_cached_teacher_gives_the_same_student() -> None:
    assert same_weights(trained(cache_teacher=True)[0], trained()[0])
    named: list[Batch] = [{"x": x} for x in images()]
    assert same_weights(trained(named, cache_teacher=True)[0], trained()[0])
    with pytest.raises(RecipeError, match="without augment"):
        trained(cache_teacher=True, augment=lambda batch, _: batch)


def test_a_frozen_model_still_gives_a_student_that_learns() -> None:
    model = Small().eval().requires_grad_(False)
    student = student_of(model, images())
    _, result = distill(student, model, images(), epochs=3, batch_size=16, rate=5e-3, progress=False)
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_batches_can_be_a_function_of_the_epoch() -> None:
    asked: list[int] = []

    def batches(epoch: int) -> list[Tensor]:
        asked.append(epoch)
        return images(seed=epoch)

    model = Small().eval()
    student = student_of(model, images())
    distill(student, model, batches, held_out=images(16, 9), epochs=2, progress=False)
    assert set(asked) == {1, 2}
    with pytest.raises(DataError, match="give held_out"):
        distill(student, model, batches, epochs=2, progress=False)


# Other kinds of models


class Encoder(nn.Module):
    """Dict inputs, and an embedding for each sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.project = nn.Linear(16, 12)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
        scores = scores.masked_fill(attention_mask[:, None, :] == 0, -1e4)
        x = self.norm(x + scores.softmax(-1) @ self.value(x))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return {"embedding": self.project(x).mean(1)}


def sequences() -> list[Batch]:
    ids = torch.randint(0, 30, (96, 7), generator=generator())
    mask = (torch.arange(7) < torch.randint(3, 8, (96, 1), generator=generator(1))).long()
    return [{"input_ids": ids[i : i + 16], "attention_mask": mask[i : i + 16]} for i in range(0, 96, 16)]


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_a_transformer_with_dict_inputs_and_an_embedding(loss: str, tmp_path: Path) -> None:
    model, batches = Encoder().eval(), sequences()
    student = student_of(model, batches, "int4", "int8")
    options = {"epochs": 6, "batch_size": 16, "progress": False, "loss": loss}
    finished, result = distill(student, model, batches, **options)  # type: ignore[arg-type]
    assert result.epochs[-1].loss < result.epochs[0].loss
    exported = lb.export_onnx(finished, tmp_path / "model.onnx", batches[0])
    lb.verify(exported, batches, progress=False)


class Dense(nn.Module):
    """A regression for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            for _ in range(30):
                self(torch.randn(64, 1, 6, 6))  # statistics as after training

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.down(x)))  # type: ignore[no-any-return]


def test_a_dense_regression(tmp_path: Path) -> None:
    model, batches = Dense().eval(), images(320)
    student = student_of(model, batches, "int4", "int4")
    options = {"epochs": 8, "batch_size": 16, "rate": 3e-3, "progress": False, "loss": "mse"}
    finished, result = distill(student, model, batches, features=("head",), **options)  # type: ignore[arg-type]
    assert result.after > result.before
    assert result.teacher.confidence is None
    exported = lb.export_onnx(finished, tmp_path / "model.onnx", batches[0])
    lb.verify(exported, batches, progress=False)
    with pytest.raises(RecipeError, match="use loss='mse'"):
        distill(student, model, batches, **{**options, "loss": "kl"})  # type: ignore[arg-type]


def test_features_join_the_loss() -> None:
    plain, matched = trained(), trained(features=("linear", "conv2"))
    assert matched[1].epochs[0].loss > plain[1].epochs[0].loss
    with pytest.raises(LayerError, match=r"'lin' is no layer of GraphModule; nearest names: linear"):
        trained(features=("lin",))


# The teacher


def test_the_teacher_is_checked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    with torch.no_grad():
        model[1].weight.mul_(10)  # type: ignore[operator]
    batches = images()
    with torch.no_grad():
        right: list[Batch] = [(x, model(x).argmax(1)) for x in batches]
        wrong: list[Batch] = [(x, (model(x).argmax(1) + 1) % 4) for x in batches]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check_teacher(model, right)
    assert found.accuracy == 1
    assert found.concerns == ()
    assert found.agreement > 0.8
    with pytest.warns(TrainingWarning, match=r"a weak teacher: its accuracy is 0.00, expected at least 0.5"):
        assert check_teacher(model, wrong).accuracy == 0
    with pytest.warns(TrainingWarning, match="predictions under augmentation agree by"):
        check_teacher(model, batches, augment=lambda batch, g: torch.randn(16, 1, 6, 6, generator=g), seed=1)
    with pytest.raises(DataError, match="got no batches to check the teacher"):
        check_teacher(model, [])


# Errors


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    model, batches = Small().eval(), images()
    student = student_of(model, batches)
    with pytest.raises(TrainingError, match=r"teacher is in train mode.*call teacher.eval\(\) first"):
        distill(student, Small().train(), batches)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with pytest.raises(TrainingError, match=r"student returns \[16, 4\] and the teacher \[16, 3\]"):
        distill(student, other, batches)
    with pytest.raises(DataError, match="got no batches to train on"):
        distill(student, model, [])
    with pytest.raises(DataError, match="got 1 batches and none to hold out"):
        distill(student, model, batches[:1])
    with pytest.raises(RecipeError, match="loss 'KL' is unknown; expected one of kl, mse"):
        distill(student, model, batches, loss="KL")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="temperature is 0, expected a positive number"):
        distill(student, model, batches, temperature=0)
    with pytest.raises(LayerError, match="is frozen and cannot learn"):
        distill(lb.freeze(student), model, batches)
    with pytest.raises(CalibrationError, match="no scale yet"):
        distill(lb.quantize(model, lb.Recipe.uniform("int4", "int4"), fold=False), model, batches)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def poisoned(batch: Batch, _: torch.Generator) -> Batch:
        nonlocal calls
        calls += 1
        assert isinstance(batch, Tensor)
        return batch * torch.nan if calls == 9 else batch

    with pytest.raises(TrainingError, match=r"the loss is nan in epoch \d, step 8"):
        trained(folder=tmp_path, save_every=2, augment=poisoned)
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in stored["weights"].values() if v.is_floating_point())


def test_updates_of_delta_that_never_come_are_told() -> None:
    with pytest.warns(TrainingWarning, match=r"update delta every 1 epochs and trains for 1: delta stays 0"):
        trained(epochs=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What is easily done wrong


class Shared(nn.Module):
    """One layer called twice, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.a, self.b = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 36)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(x.flatten(1)))))
        return self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["fixed", "lsq", "pact", "dorefa", "ewgs"])
def test_layers_called_twice_and_weights_shared(family: FamilyName) -> None:
    model = Shared().eval()
    student = student_of(model, images(), "mid4", "int8")
    _, result = distill(student, model, images(), epochs=2, quantizer=family, loss="mse", rate=0, progress=False)
    assert result.after == pytest.approx(float(result.epochs[result.best - 1].score or 0), abs=1e-3)


def test_regressions_are_judged_by_their_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    student = student_of(model, images(), "int4", "int4")
    _, result = distill(student, model, images(), epochs=4, loss="mse", batch_size=16, progress=False)
    assert result.teacher.confidence is None
    assert all(epoch.score not in (None, 0.0, 1.0) for epoch in result.epochs)
    assert "%" not in str(result)


def test_the_loss_of_a_batch_is_the_mean_over_its_samples() -> None:
    model = Small().eval()
    student = student_of(model, images())
    objective = Objective(student, model, "mse", 4.0, ("linear",), [*images()[:2]])
    whole = images()[0]
    parts = [objective.loss(student, whole[:4]) * 4, objective.loss(student, whole[4:]) * 12]
    assert objective.loss(student, whole).item() == pytest.approx(sum(part.item() for part in parts) / 16, rel=1e-5)


def test_a_bias_in_front_of_a_batchnorm_goes_into_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    student = student_of(model, images(), "int8", "int8")
    assert student.get_submodule("0").bias is None
    folded = lb.quantize(model, lb.Recipe.uniform("int8", "int8"))
    lb.calibrate(folded, images(), progress=False)
    assert torch.allclose(student(images()[0]), folded(images()[0]), atol=0.05)
    finished, _ = distill(student, model, images(), epochs=1, rate=0, progress=False)
    assert finished.get_submodule("0").bias is not None


def test_a_loader_that_shuffles_holds_out_the_same_samples_each_time(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.cat(images()))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    model = Small().eval()
    student = student_of(model, images())
    options = {"epochs": 2, "batch_size": 16, "progress": False}
    first, second = (distill(student, model, loader, **options)[0] for _ in range(2))  # type: ignore[arg-type]
    assert same_weights(first, second)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"loss": "mse"}, "loss 'kl' there, 'mse' here"),
        ({"temperature": 2.0}, "temperature 4.0 there"),
        ({"cache_teacher": True}, "cache_teacher False there"),
        ({"quantizer": "lsq"}, "quantizer 'ewgs' there"),
        ({"batches": images(seed=7)}, "calibration '"),
    ],
)
def test_a_checkpoint_of_another_run_names_what_differs(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    trained(folder=tmp_path, epochs=1)
    with pytest.raises(TrainingError, match=f"another run: {named}"):
        trained(**{"folder": tmp_path, "epochs": 1, **change})


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trained(folder=tmp_path, epochs=1)
    model = Small().eval()
    with pytest.raises(TrainingError, match="another run: recipe '"):
        distill(student_of(model, images(), "int4"), model, images(), epochs=1, batch_size=16, folder=tmp_path)


def test_block_formats_are_folded_before_they_train() -> None:
    student = student_of(Small().eval(), images(), "mxfp4", "int8")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in student.modules())


def test_batchnorms_that_were_never_folded_are_named(tmp_path: Path) -> None:
    exported = lb.export_onnx(student_of(Small().eval(), images(), "int8", "int8"), tmp_path / "m.onnx", images()[0])
    reasons = lb.verify(exported, images(), progress=False).stayed_float.values()
    assert any("a BatchNorm follows it that is not folded" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(16, 1).long(), r"labels of int64 \[16, 1\], expected class numbers \[16\]"),
        (torch.zeros(16), r"labels of float32 \[16\]"),
        (torch.full((16,), 9), "labels reach from 9 to 9, expected 0 to 3"),
        (None, "got a batch without labels"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trained([(x, labels) for x in images()], loss="labels")


def test_options_without_effect_are_refused() -> None:
    for options, message in (
        ({"features": ("linear",), "loss": "labels"}, "'labels' has no teacher"),
        ({"exact": True, "scale_rate": 0.1}, "scale_rate has no effect"),
        ({"delta_every": 2, "quantizer": "lsq"}, "only with quantizer 'ewgs'"),
        ({"loss": "cosine", "cache_teacher": True, "features": ("linear",)}, "cache_teacher keeps one output"),
    ):
        with pytest.raises(RecipeError, match=message):
            trained(**options)
    with pytest.raises(TrainingError, match=r"got rate=-1"):
        trained(rate=-1.0)


def test_data_that_is_not_finite_is_told_before_training() -> None:
    batches = images()
    batches[0][3] = torch.nan
    with pytest.raises(DataError, match="teacher's outputs for batch 0 are not finite"):
        distill(student_of(Small().eval(), images()), Small().eval(), batches)


def test_pact_without_clipping_is_told() -> None:
    big = [100 * x for x in images()]
    with pytest.warns(TrainingWarning, match=r"PACT learns \d ranges beyond 10"):
        trained(big, quantizer="pact", epochs=1)


# Regressions


def regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two outputs of different units, and batches with float labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(96, 6, generator=generator())
    return model, [(part, model(part).detach() + torch.tensor([0.0, 20.0])) for part in torch.split(x, 16)]


def test_the_default_loss_of_a_regression_is_mse() -> None:
    model, labelled = regression()
    student = student_of(model, labelled, "int4", "int8")
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "progress": False, "seed": 0}
    assert distill(student, model, labelled, **options)[1].loss == "mse"
    plain = [x for x, _ in labelled]
    assert distill(student, model, plain, **options)[1].loss == "kl"  # nothing tells them from class scores
    hot = [(x, torch.nn.functional.one_hot(y.argmax(1), 2).float()) for x, y in labelled]
    assert distill(student, model, hot, **options)[1].loss == "kl"
    one = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).eval()
    assert distill(student_of(one, plain, "int4", "int8"), one, plain, **options)[1].loss == "mse"
    with pytest.warns(TrainingWarning, match=r"takes outputs for class scores.*give loss='mse'"):
        assert distill(student, model, labelled, loss="kl", **options)[1].loss == "kl"


def test_a_student_without_quantizers_is_refused() -> None:
    model, labelled = regression()
    with pytest.raises(TrainingError, match=r"has no quantizers.*call lb.quantize"):
        distill(model, model, labelled, progress=False)
    with pytest.raises(CalibrationError, match="has no quantizers"):
        lb.calibrate(model, labelled, progress=False)
    for verb in (lb.round_weights, lb.correct_moments, lb.tune, lb.reconstruct, lb.fit_scales):
        with pytest.raises(CalibrationError, match="has no quantizers"):
            verb(model, model, labelled, progress=False)
