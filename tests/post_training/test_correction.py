"""After the correction, the channels of every layer have the moments of the float network's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowbit import models
from lowbit.layers import Quantized
from lowbit.post_training.correction import correct_moments
from lowbit.post_training.segments import float_twin
from lowbit.quantization import calibrate, freeze, origin, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False)
        self.conv = nn.Conv2d(4, 3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.relu(self.up(x)))
        return y


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "digits_cnn": (models.digits_cnn, seeded(48, 1, 8, 8)),
    "mlp": (lambda: models.mlp(6, 3, (16,)), seeded(64, 6)),
    "transposed": (Transposed, seeded(16, 3, 5, 5)),
    "on sequences": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), seeded(16, 5, 6)),
}


def prepared(name: str, recipe: Recipe) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    build, x = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    student = quantize(model, recipe)
    calibrate(student, [x], progress=False)
    return student, model, [x[:10], x[10:]]


def moments(network: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of each channel of some layers' outputs."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:
        layer = network.get_submodule(name)
        inner = layer.layer if isinstance(layer, Quantized) else layer
        axis = -1 if isinstance(inner, nn.Linear) else 1
        hooks.append(
            layer.register_forward_hook(
                lambda _, args, output, name=name, axis=axis: seen[name].append(output.movedim(axis, 0).flatten(1))
            )
        )
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for hook in hooks:
        hook.remove()
    rows = {name: torch.cat(parts, 1) for name, parts in seen.items()}
    return {name: (row.mean(1), row.std(1, correction=0)) for name, row in rows.items()}


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_has_its_moments_again(name: str, spread: bool) -> None:
    student, model, batches = prepared(name, Recipe.uniform("int4", "int8"))
    corrected, told = correct_moments(student, model, batches, spread=spread, progress=False)
    names = [row.name for row in told.layers]
    assert names == [n for n, m in student.named_modules() if isinstance(m, Quantized)]
    want, got = moments(float_twin(model, student), names, batches), moments(corrected, names, batches)
    for row in told.layers:
        size = float(want[row.name][1].max())
        torch.testing.assert_close(got[row.name][0], want[row.name][0], rtol=0, atol=1e-4 * max(size, 1))
        layer = corrected.get_submodule(row.name)
        assert isinstance(layer, Quantized)
        assert layer.bias is not None
        if not spread or isinstance(layer.layer, nn.ConvTranspose2d):
            assert row.smallest_factor == row.largest_factor == 1
        elif row.smallest_factor > 0.5 and row.largest_factor < 2:
            torch.testing.assert_close(got[row.name][1], want[row.name][1], rtol=1e-3, atol=1e-5)


def test_without_spread_only_biases_change() -> None:
    student, model, batches = prepared("digits_cnn", Recipe.uniform("int4", "int8"))
    before = copy.deepcopy(student.state_dict())
    corrected, _ = correct_moments(student, model, batches, spread=False, progress=False)
    after = corrected.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.endswith("bias"))
    assert any(not torch.equal(after[name], value) for name, value in before.items() if name.endswith("bias"))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert origin(corrected).steps == ("correct_moments(spread=False)",)  # type: ignore[union-attr]
    assert freeze(corrected)(batches[0]).isfinite().all()


def test_with_spread_codes_stay() -> None:
    student, model, batches = prepared("mlp", Recipe.uniform("int4", "int8"))
    corrected, _ = correct_moments(student, model, batches, progress=False)
    for name, layer in student.named_modules():
        if isinstance(layer, Quantized):
            other = corrected.get_submodule(name)
            assert isinstance(other, Quantized)
            codes = []
            for one in (layer, other):
                assert isinstance(one.weight_quantizer, Quantizer)
                codes.append(one.weight_quantizer.quantize(one.layer.get_parameter("weight")))
            assert (codes[0] != codes[1]).float().mean() < 0.01  # a tie may fall the other way


@pytest.mark.parametrize("granularity", ["tensor", "channel:1", "group:8"])
def test_scales_that_are_not_a_channels_own_stay(granularity: str) -> None:
    torch.manual_seed(0)
    model, x = models.mlp(8, 4, (16,)).eval(), seeded(64, 8)
    student = quantize(model, Recipe.uniform("int4", "int8", granularity=granularity))
    calibrate(student, [x], progress=False)
    _, told = correct_moments(student, model, [x], progress=False)
    assert all(row.smallest_factor == row.largest_factor == 1 for row in told.layers)


@pytest.mark.parametrize("weights", ["int4", "mxfp4", None])
def test_dead_channels_stay_dead(weights: str | None) -> None:
    torch.manual_seed(0)
    model, x = models.mlp(8, 4, (16,)).eval(), seeded(64, 8)
    first = model.get_submodule("linear1")
    first.get_parameter("weight").data[3:6] = 0
    first.get_parameter("bias").data[3:6] = torch.tensor([0.0, 1.0, -1.0])
    student = quantize(model, Recipe.uniform(weights, "int8"))
    calibrate(student, [x], progress=False)
    corrected, told = correct_moments(student, model, [x], progress=False)
    with torch.no_grad():
        assert corrected(x).isfinite().all()
        bias = corrected.get_submodule("linear1").bias
        assert isinstance(bias, Tensor)
        torch.testing.assert_close(bias[3:6], torch.tensor([0.0, 1.0, -1.0]), rtol=0, atol=1e-5)
    assert all(0.5 <= row.smallest_factor <= row.largest_factor <= 2 for row in told.layers)


def test_embeddings_and_frozen_layers_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)).eval()
    student, ids = quantize(model, Recipe.uniform("int4", "int8")), torch.arange(9)
    calibrate(student, [ids], progress=False)
    _, told = correct_moments(student, model, [ids], progress=False)
    assert [row.name for row in told.layers] == ["1"]
    frozen = freeze(student)
    same, told = correct_moments(frozen, model, [ids], progress=False)
    assert told.layers == ()
    assert torch.equal(same(ids), frozen(ids))


def test_tied_weights_are_not_scaled_under_the_other_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9)).eval()
    model[1].weight = model[0].weight
    student, ids = quantize(model, Recipe.uniform("int2", "int8")), torch.arange(9)
    calibrate(student, [ids], progress=False)
    corrected, _ = correct_moments(student, model, [ids], progress=False)
    with torch.no_grad():
        torch.testing.assert_close(corrected.get_submodule("0")(ids), student.get_submodule("0")(ids))
