"""Blocks that are hard to divide, run twice, or learn: in-place operations, layers inside leaves, nothing to learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowbit as lb
from lowbit.post_training.segments import float_twin, walk
from lowbit.quantization import origin


class InPlace(nn.Module):
    """Scales what enters the second block where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y: Tensor = self.c(x.mul_(torch.sigmoid(self.b(x))))
        return y


def calibrated(model: nn.Module, x: Tensor, weights: str | None, activations: str | None) -> nn.Module:
    student = lb.quantize(model, lb.Recipe.uniform(weights, activations))
    lb.calibrate(student, [x], progress=False)
    return student


def test_operations_in_place_leave_what_is_held() -> None:
    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.randn(4, 3, 8, 8)
    student = calibrated(model, x, "int4", "int8")
    for segment in walk(student, float_twin(model, student), [x], "walk", progress=False):
        assert torch.equal(segment.targets()[0], segment.targets()[0])
        assert torch.equal(segment.outputs()[0], segment.outputs()[0])


def test_layers_inside_a_transformer_layer_are_rounded() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model, x = nn.Sequential(nn.Linear(8, 8), encoder, nn.Linear(8, 3)).eval(), torch.randn(6, 5, 8)
    _, rounding = lb.round_weights(calibrated(model, x, "int4", "int8"), model, [x], progress=False)
    assert {row.name for row in rounding.layers} == {"0", "1.linear1", "1.linear2", "2"}


def test_a_block_with_nothing_to_learn_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)).eval()
    x = torch.randn(8, 1, 8, 8)
    _, done = lb.reconstruct(calibrated(model, x, None, "int8"), model, [x], steps=3, progress=False)
    assert len(done.blocks) == 2


def test_few_steps() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(16, 6)
    for steps in (1, 2, 9):
        student, _ = lb.tune(calibrated(model, x, "int4", "int4"), model, [x], steps=steps, progress=False)
        assert student(x).isfinite().all()


def test_equalize_measures_behind_the_relu() -> None:
    first, second = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        nn.init.zeros_(first.bias)
        second.weight.fill_(1.0)
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    x = torch.tensor([[10.0], [-0.1]])  # channel 1 is large only below 0
    equalized, done = lb.equalize(model, [x], progress=False)
    assert done.pairs[0].spread_before > 50
    torch.testing.assert_close(equalized(x), model(x))


def test_weights_alone_note_their_calibration_too() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(16, 6)
    student, _ = lb.post_train(model, lb.Recipe.uniform("int4", None), list(torch.split(x, 4)), progress=False)
    noted = origin(student)
    assert noted is not None
    assert (noted.calibration_samples, noted.inputs["input"].shape) == (12, (6,))
