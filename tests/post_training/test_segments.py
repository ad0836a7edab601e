"""Blocks chained give the network, and each quantized layer is in one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.batches import Batch, call, output_tensor
from lowbit.errors import CalibrationError
from lowbit.layers import Quantized
from lowbit.post_training.segments import Value, float_twin, parts, quantizers_in, run, walk
from lowbit.quantization import activation_quantizers, calibrate, quantize
from lowbit.recipe import Recipe

RECIPE = Recipe.uniform("int4", "int8")


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Branching(nn.Module):
    """What no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)))
        return y if x.sum() > 1e9 else y + 0


class Keywords(nn.Module):
    """Two inputs by name, one with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, *, gain: Tensor, power: float = 2.0) -> Tensor:
        y: Tensor = self.b(torch.pow(torch.relu(self.a(x * gain)), power))
        return y


class Attributes(nn.Module):
    """Parameters and buffers that the graph reads by themselves, early and late."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.shift = nn.Parameter(seeded(6))
        self.register_buffer("gain", seeded(6))
        self.gain: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x) + self.shift)
        x = torch.relu(self.b(x) * self.gain)
        y: Tensor = self.c(x + self.shift * 2)
        return y


class TwoOutputs(nn.Module):
    """The second output is made of what enters the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.a(x))
        return self.b(x), x.mean(1)


class Halves(nn.Module):
    """Nothing but a pair of tensors goes from the first layer to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        y: Tensor = self.b(left) * right
        return y


IMAGES, ROWS = seeded(4, 3, 16, 16), seeded(5, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Batch, int]] = {  # and the number of blocks
    "resnet20": (models.resnet20, IMAGES, 11),  # stem, 9 residual blocks, head
    "mobilenet_v2": (lambda: models.mobilenet_v2(width=0.25), IMAGES, 32),
    "digits_cnn": (models.digits_cnn, seeded(4, 1, 8, 8), 4),
    "mlp": (lambda: models.mlp(6, 3), ROWS, 3),
    "untraced": (Branching, ROWS, 1),
    "keywords": (Keywords, {"x": ROWS, "gain": ROWS * 2, "labels": ROWS}, 2),
    "attributes": (Attributes, ROWS, 3),
    "two outputs": (TwoOutputs, (ROWS, ROWS), 2),
    "halves": (Halves, ROWS, 2),
    "one layer": (lambda: nn.Linear(6, 2), ROWS, 1),
}


def prepared(name: str) -> tuple[nn.Module, nn.Module, Batch, int]:
    """A calibrated student, its float network with BatchNorms that do something, a batch, the number of blocks."""
    build, batch, blocks = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
    student = quantize(model, RECIPE)
    calibrate(student, [batch], progress=False)
    return student, model, batch, blocks


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_chained_are_the_network(name: str) -> None:
    student, model, batch, _ = prepared(name)
    twin = float_twin(model, student)
    value: Value = batch
    wanted: Value = batch
    with torch.no_grad():
        for _, part, twin_part in parts(student, twin):
            value, wanted = run(part, value), run(twin_part, wanted)
        assert torch.equal(output_tensor(value), output_tensor(call(student, batch)))
        assert torch.equal(output_tensor(wanted), output_tensor(call(twin, batch)))
        torch.testing.assert_close(output_tensor(wanted), output_tensor(call(model, batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_and_quantizer_is_in_one_block(name: str) -> None:
    student, model, _, blocks = prepared(name)
    found = parts(student, float_twin(model, student))
    assert len(found) == blocks
    layers = [layer for of_block, _, _ in found for layer in of_block.values()]
    assert layers == [m for m in student.modules() if isinstance(m, Quantized)]
    assert all(of_block for of_block, _, _ in found)
    quantizers = [id(q) for _, part, _ in found for q in quantizers_in(part)]
    assert sorted(quantizers) == sorted(id(q) for q in activation_quantizers(student).values())


def test_a_residual_block_is_one_block() -> None:
    student, model, _, _ = prepared("digits_cnn")
    names = [list(layers) for layers, _, _ in parts(student, float_twin(model, student))]
    assert names == [["features.0.conv"], ["features.1.conv1", "features.1.conv2"], ["features.2.conv"], ["linear"]]


@pytest.mark.parametrize("name", ["digits_cnn", "untraced", "keywords"])
def test_walking_hands_on_what_the_blocks_make(name: str) -> None:
    student, model, batch, blocks = prepared(name)
    twin = float_twin(model, student)
    last = None
    count = 0
    for segment in walk(student, twin, [batch, batch], "test", progress=False):
        if last is not None:
            assert all(torch.equal(a, b) for a, b in zip(last.outputs(), segment.inputs, strict=True))  # type: ignore[arg-type]
            assert all(torch.equal(a, b) for a, b in zip(last.targets(), segment.twin_inputs, strict=True))  # type: ignore[arg-type]
        last, count = segment, count + 1
    assert count == blocks
    assert last is not None
    with torch.no_grad():
        assert torch.equal(last.outputs()[1], output_tensor(call(student, batch)))
        assert torch.equal(last.targets()[1], output_tensor(call(twin, batch)))


def test_what_changes_in_a_block_enters_the_next() -> None:
    student, model, batch, _ = prepared("mlp")
    segments = walk(student, float_twin(model, student), [batch], "test", progress=False)
    first = next(segments)
    (layer,) = first.layers.values()
    assert layer.bias is not None
    layer.bias.data += 1
    changed = first.outputs()[0]
    assert torch.equal(next(segments).inputs[0], changed)  # type: ignore[arg-type]


def test_batch_norms_stay_where_the_student_has_them() -> None:
    torch.manual_seed(0)
    model = models.digits_cnn().eval()
    student = quantize(model, RECIPE, fold=False)
    x = seeded(4, 1, 8, 8)
    calibrate(student, [x], progress=False)
    twin = float_twin(model, student)
    assert any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    assert len(parts(student, twin)) == 4


def test_no_batches_is_an_error() -> None:
    student, model, _, _ = prepared("mlp")
    with pytest.raises(CalibrationError, match="round weights: got no batches; give at least one"):
        next(walk(student, float_twin(model, student), [], "round weights", progress=False))
