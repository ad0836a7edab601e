"""The columns of a layer's input, times its weight, are its output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowbit.layers import Quantized
from lowbit.post_training.covariance import as_matrix, covariance, unfolded
from lowbit.post_training.segments import Segment, float_twin, walk
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(8, 6), seeded(5, 8)),
    "linear on sequences": (lambda: nn.Linear(8, 6), seeded(2, 5, 8)),
    "linear without bias": (lambda: nn.Linear(8, 6, bias=False), seeded(5, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), seeded(2, 4, 9)),
    "conv1d, strided, dilated, in groups": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=3, groups=2),
        seeded(2, 4, 11),
    ),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), seeded(2, 4, 7, 7)),
    "oblong": (lambda: nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2)), seeded(2, 4, 7, 5)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), seeded(2, 4, 8, 7)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), seeded(2, 4, 7, 7)),
    "in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), seeded(2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), seeded(2, 4, 7, 7)),
    "depthwise, two each": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), seeded(2, 4, 7, 7)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), seeded(2, 4, 7, 7)),
    "reflect": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), seeded(2, 4, 7)),
    "same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), seeded(2, 4, 7, 7)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), seeded(2, 4, 7, 7)),
    "pointwise": (lambda: nn.Conv2d(4, 6, 1, bias=False), seeded(2, 4, 7, 7)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_columns_times_weights_are_the_output(name: str) -> None:
    torch.manual_seed(0)
    build, x = LAYERS[name]
    layer = build()
    with torch.no_grad():
        output = layer(x)
        channels = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
        made = as_matrix(layer.get_parameter("weight"), layer) @ unfolded(layer, x)  # [groups, outputs, rows]
        rows = made.flatten(0, 1).T + (layer.bias if isinstance(layer.bias, Tensor) else 0)
        torch.testing.assert_close(rows, channels.reshape(-1, channels.shape[-1]), rtol=1e-4, atol=1e-5)


def segment_of(name: str) -> tuple[Quantized, nn.Module, Segment, Tensor]:
    """A quantized layer, its float twin, the segment that is both, and the input, split into two batches."""
    build, x = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(build()).eval()
    student = quantize(model, Recipe.uniform("int2", "int4"))
    calibrate(student, [x], progress=False)
    twin = float_twin(model, student)
    (segment,) = walk(student, twin, [x[:1], x[1:]], "test", progress=False)
    layer = student.get_submodule("0")
    assert isinstance(layer, Quantized)
    return layer, twin.get_submodule("0"), segment, x


@pytest.mark.parametrize("name", ["linear", "strided", "in groups", "depthwise", "circular", "conv1d"])
def test_covariance_gives_the_error_of_the_output(name: str) -> None:
    layer, twin, segment, _ = segment_of(name)
    found = covariance(layer, twin, segment)
    assert found is not None
    weight = as_matrix(layer.weight.detach(), layer.layer).double()
    float_weight = as_matrix(twin.get_parameter("weight").detach(), twin).double()
    for one in (layer.layer, twin):
        one.register_parameter("bias", None)
    got, want = (torch.cat(values) for values in (seen(layer, segment), seen(twin, segment)))
    expected = float(((got - want) ** 2).mean() / (want**2).mean())
    assert found.error(weight, float_weight) == pytest.approx(expected, rel=1e-3)


def seen(layer: nn.Module, segment: Segment) -> list[Tensor]:
    """What a layer returns while its segment runs."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, output: outputs.append(output.detach().double()))
    _ = segment.outputs(), segment.targets()
    hook.remove()
    return outputs


@pytest.mark.parametrize("name", ["linear", "in groups", "depthwise", "circular"])
def test_covariance_is_the_mean_over_rows_of_all_batches(name: str) -> None:
    layer, twin, segment, x = segment_of(name)
    found = covariance(layer, twin, segment)
    assert found is not None
    columns = unfolded(twin, x).double()
    torch.testing.assert_close(found.twin, columns @ columns.mT / columns.shape[2], rtol=1e-5, atol=1e-6)
    assert found.student.shape == found.cross.shape == found.twin.shape


def test_watching_leaves_no_hook() -> None:
    layer, twin, segment, _ = segment_of("linear")
    covariance(layer, twin, segment)
    segment.inputs.append(torch.zeros(2, 3))
    segment.twin_inputs.append(torch.zeros(2, 3))
    with pytest.raises(RuntimeError):
        covariance(layer, twin, segment)
    assert not layer._forward_hooks
    assert not twin._forward_hooks
