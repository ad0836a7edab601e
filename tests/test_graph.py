"""BatchNorm folding against the float model, and quantizer placement spelled out tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from lowbit import graph, models
from lowbit.formats import Int, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.layers import Quantized
from lowbit.quantization import calibrate, coverage, freeze, quantize
from lowbit.quantizer import Quantizer
from lowbit.recipe import Recipe, Rule

INT4 = Recipe((Rule(weights=Int(4), activations=Int(4)),))  # and int8 glue, so that the two can be told apart


def reads(student: nn.Module) -> dict[str, list[str]]:
    """What each operation of a graph reads: `int8(x)` is tensor x behind an int8 quantizer."""
    assert isinstance(student, fx.GraphModule)
    modules = dict(student.named_modules())

    def name(node: fx.Node) -> str:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        return f"{module.format}({name(node.all_input_nodes[0])})" if isinstance(module, Quantizer) else node.name

    operations = [n for n in student.graph.nodes if not name(n).endswith(")") and n.op != "placeholder"]
    return {node.name: [name(read) for read in node.all_input_nodes] for node in operations}


def placed(model: nn.Module, recipe: Recipe = INT4, example: Tensor | None = None) -> dict[str, list[str]]:
    """`reads` of the quantized model, after a check that it runs, calibrates and freezes."""
    student = quantize(model, recipe)
    if example is not None:
        calibrate(student, [example])
        with torch.no_grad():
            expected = student(example)
            difference = freeze(student)(example) - expected  # biases are rounded, numbers near ties move by a code
        assert difference.abs().mean() <= 0.2 * expected.abs().mean()
    return reads(student)


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by keyword, and a forward that reads them as `m.<name>`."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def __getattr__(self, name: str) -> nn.Module:
        module = super().__getattr__(name)
        assert isinstance(module, nn.Module)
        return module

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


# Folding


def lively(model: nn.Module) -> nn.Module:
    """BatchNorm statistics as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data = torch.randn(tensor.shape, generator=generator)
    return model.eval()


def fold(model: nn.Module) -> tuple[fx.GraphModule, list[str]]:
    traced = graph.trace(copy.deepcopy(model))
    assert isinstance(traced, fx.GraphModule)
    return traced, graph.fold_batchnorm(traced)


FOLDED = {
    "conv1d": (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
    "conv2d": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "conv3d": (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
    "conv without bias": (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "conv in groups": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 8, 8)),
    "conv with reflection": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
    "transposed 2d": (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    "transposed 3d": (nn.ConvTranspose3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
    "linear": (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
    "without affine": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), (2, 3, 8, 8)),
}


@pytest.mark.parametrize(("layer", "bn", "shape"), FOLDED.values(), ids=list(FOLDED))
def test_folding_keeps_the_function(layer: nn.Module, bn: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = lively(nn.Sequential(layer, bn, nn.ReLU())), torch.randn(shape)
    before = copy.deepcopy(model.state_dict())
    traced, folded = fold(model)
    assert folded == ["1"]
    assert not any(type(m).__name__.startswith("BatchNorm") for m in traced.modules())
    torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_folding_twice_in_a_row_keeps_both() -> None:
    model = lively(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    traced, folded = fold(model)
    assert folded == ["1", "2"]
    torch.testing.assert_close(traced(image()), model(image()), rtol=1e-5, atol=1e-5)


UNFOLDED = {
    "the layer is called twice": Net(lambda m, x: m.bn(m.conv(m.conv(x))), conv=conv(3, 3), bn=nn.BatchNorm2d(3)),
    "the norm is called twice": Net(lambda m, x: m.bn(m.b(m.bn(m.a(x)))), a=conv(), b=conv(4, 4), bn=nn.BatchNorm2d(4)),
    "another reads the layer": Net(lambda m, x: _twice(m, m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)),
    "the norm comes first": Net(lambda m, x: m.conv(m.bn(x)), conv=conv(), bn=nn.BatchNorm2d(3)),
    "something lies between": Net(lambda m, x: m.bn(m.conv(x).relu()), conv=conv(), bn=nn.BatchNorm2d(4)),
    "statistics of the batch": Net(
        lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "the weight is parametrized": Net(
        lambda m, x: m.bn(m.conv(x)), conv=parametrizations.spectral_norm(conv()), bn=nn.BatchNorm2d(4)
    ),
    "transposed in groups": Net(
        lambda m, x: m.bn(m.conv(m.first(x))),
        first=conv(),
        conv=nn.ConvTranspose2d(4, 4, 3, groups=2),
        bn=nn.BatchNorm2d(4),
    ),
    "the layer carries a hook": Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)),
}
UNFOLDED["the layer carries a hook"].conv.register_forward_hook(lambda module, args, y: y * 2)


def _twice(m: Net, y: Tensor) -> Tensor:
    return torch.cat([m.bn(y), y])


@pytest.mark.parametrize("model", UNFOLDED.values(), ids=list(UNFOLDED))
def test_what_cannot_be_folded_stays(model: nn.Module) -> None:
    traced, folded = fold(lively(model))
    assert folded == []
    torch.testing.assert_close(traced(image()), model(image()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [models.digits_cnn, models.resnet20, models.mobilenet_v2], ids=lambda b: b.__name__)
def test_folding_keeps_whole_networks(build: Callable[[], nn.Module]) -> None:
    model = lively(build())
    x = image(1, 8) if build is models.digits_cnn else image(3, 32)
    traced, folded = fold(model)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert folded == norms
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_norms_stay_when_folding_is_off() -> None:
    student = quantize(lively(models.digits_cnn()), INT4, fold=False)
    assert any(isinstance(m, nn.BatchNorm2d) for m in student.modules())


# BatchNorms that stay for training


def of_both_signs(model: nn.Module) -> nn.Module:
    for module in lively(model).modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            module.weight.data[::2] *= -1
    return model


LAYERS = [
    (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    (nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8, affine=False), (2, 4, 8, 8)),
    (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (2, 4, 8, 8)),
    (nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 9)),
    (nn.Linear(12, 4), nn.BatchNorm1d(4), (5, 12)),
]


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(3)], ids=str)
@pytest.mark.parametrize("weights", ["int2", "int4", "mid2", "ternary", "e2m1"])
@pytest.mark.parametrize(("layer", "bn", "shape"), LAYERS)
def test_folding_into_a_quantized_layer_keeps_the_codes(
    layer: nn.Module, bn: nn.Module, shape: tuple[int, ...], weights: str, granularity: Granularity
) -> None:
    if isinstance(granularity, PerGroup) and (isinstance(layer, nn.ConvTranspose2d)):
        pytest.skip("transposed convolutions have no groups")
    model = of_both_signs(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(bn), nn.ReLU()))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    student = quantize(model, Recipe((Rule(weights=parse(weights), granularity=granularity),), glue=None), fold=False)
    assert isinstance(student, fx.GraphModule)
    quantized = student.get_submodule("0")
    assert isinstance(quantized, Quantized)
    assert isinstance(quantized.weight_quantizer, Quantizer)
    codes, before = quantized.weight_quantizer.quantize(quantized.layer.get_parameter("weight")), student(x)
    assert graph.fold_batchnorm(student) == ["1"]
    assert torch.allclose(student(x), before, atol=1e-5)
    after = quantized.weight_quantizer.quantize(quantized.layer.get_parameter("weight"))
    assert torch.equal(codes, after)
    freeze(student)


def test_a_factor_that_became_negative_turns_the_codes_around() -> None:
    model = lively(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    student = quantize(model, Recipe((Rule(weights=parse("mid2")),), glue=None), fold=False)
    assert isinstance(student, fx.GraphModule)
    norm = student.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.mul_(-1)
    before = student(image())
    graph.fold_batchnorm(student)
    assert torch.allclose(student(image()), before, atol=1e-5)


def test_block_scales_cannot_take_factors() -> None:
    model = lively(nn.Sequential(conv(8, 8), nn.BatchNorm2d(8)))
    student = quantize(model, Recipe((Rule(weights=parse("mxfp4")),), glue=None), fold=False)
    assert isinstance(student, fx.GraphModule)
    assert graph.fold_batchnorm(student) == []


def test_quantizers_are_placed_as_if_folded() -> None:
    model = lively(models.resnet20())
    folded, kept = (quantize(model, INT4, fold=fold) for fold in (True, False))
    assert isinstance(kept, fx.GraphModule)
    names = [[n for n, m in s.named_modules() if isinstance(m, Quantizer)] for s in (folded, kept)]
    assert len(names[0]) == len(names[1])
    graph.fold_batchnorm(kept)
    assert list(reads(kept).values()) != []
    counts = [sorted(str(r).count("int") for r in reads(s).values()) for s in (folded, kept)]
    assert counts[0] == counts[1]


def test_factors_are_positive_in_training() -> None:
    given = nn.BatchNorm2d(4)
    model = of_both_signs(nn.Sequential(conv(), given, nn.ReLU()))
    factor = given.weight.detach().clone()
    assert (factor < 0).any()
    student = quantize(model, Recipe.uniform("int4", None), fold=False)
    assert isinstance(student, fx.GraphModule)
    (norm,) = graph.batchnorms_to_fold(student).values()
    assert torch.equal(norm.weight.detach(), factor.abs())
    assert torch.equal(given.weight.detach(), factor)


# Placement


def test_a_residual_block() -> None:
    assert placed(models.ResidualBlock(3, 3).eval(), example=image()) == {
        "conv1": ["int4(int8(x))"],
        "relu1": ["conv1"],
        "conv2": ["int4(relu1)"],
        "add": ["int8(conv2)", "int8(x)"],
        "relu2": ["add"],
        "output": ["int8(relu2)"],
    }


def test_a_sequence_of_convolutions_and_linear_logits() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4, 2), nn.Flatten(), nn.Linear(128, 5)).eval()
    assert list(placed(model, example=image()).values()) == [
        ["int4(input_1)"],
        ["_0"],
        ["int4(_1)"],
        ["int4(_2)"],
        ["_3"],
        ["_4"],  # float logits
    ]


def test_concatenation() -> None:
    model = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], dim=1)), a=conv(), b=conv(), c=conv(8, 2))
    assert placed(model, example=image()) == {
        "a": ["int4(x)"],
        "b": ["int4(x)"],
        "cat": ["int8(a)", "int8(b)"],
        "c": ["int4(cat)"],
        "output": ["int8(c)"],
    }


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)],
    ids=["average", "adaptive"],
)
def test_average_pooling_is_glue(pool: nn.Module) -> None:
    model = Net(lambda m, x: m.pool(m.relu(m.a(x))), a=conv(), relu=nn.ReLU(), pool=pool)
    assert placed(model, example=image()) == {
        "a": ["int4(x)"],
        "relu": ["a"],
        "pool": ["int8(relu)"],
        "output": ["int8(pool)"],
    }


@pytest.mark.parametrize(
    "pool",
    [
        lambda m, x: F.avg_pool2d(x, 2),
        lambda m, x: F.adaptive_avg_pool2d(x, 1),
        lambda m, x: x.mean((2, 3)),
        lambda m, x: x.mean(dim=[-1, -2], keepdim=True),
        lambda m, x: torch.mean(x, (2, 3)),
    ],
    ids=["avg", "adaptive", "method mean", "keyword mean", "function mean"],
)
def test_functional_average_pooling_is_glue(pool: Callable[[Net, Tensor], Tensor]) -> None:
    found = placed(Net(lambda m, x: pool(m, m.a(x)), a=conv()), example=image())
    assert list(found.values()) == [["int4(x)"], ["int8(a)"], [f"int8({list(found)[1]})"]]


def test_a_mean_over_other_axes_is_no_pooling() -> None:
    found = placed(Net(lambda m, x: m.a(x).mean(1), a=conv()), example=image())
    assert found["output"] == ["mean"]


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "max pooling": lambda x: F.max_pool2d(x, 2),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(2, -1),
    "view": lambda x: x.view(2, -1),
    "slices": lambda x: x[:, ::2, 1:],
    "a row of a slice": lambda x: x[:, 0],
    "a new axis": lambda x: x[None],
    "zero padding": lambda x: F.pad(x, (1, 1)),
    "nearest upsampling": lambda x: F.interpolate(x, scale_factor=2.0),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "permutation": lambda x: x.permute(0, 2, 3, 1).contiguous(),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "padding with ones": lambda x: F.pad(x, (1, 1), value=1.0),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "bilinear upsampling": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_moves_between_two_layers_are_looked_through(move: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda m, x: m.b(move(F.relu(m.a(x)))), a=conv(), b=nn.LazyLinear(2))
    model(image())
    found = placed(model, example=image())
    assert [r for r in found.values() if "int4(relu)" in r], found  # right behind the ReLU
    assert not any("(" in r for r in found["b"])  # not behind the move
    assert sum("(" in r for reads in found.values() for r in reads) == 2


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
def test_operations_that_make_new_numbers_end_the_search(other: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda m, x: m.b(other(F.relu(m.a(x)))), a=conv(), b=nn.LazyLinear(2))
    model(image())
    found = placed(model, example=image())
    assert found["b"][0].startswith("int4(")
    assert any(r == ["int8(relu)"] for r in found.values())  # and the convolution has its own output


def test_the_shortcut_without_parameters() -> None:
    """ResNet option A: the slice and the padding read the quantized block input, and nothing is quantized twice."""
    student = quantize(models.resnet20().eval(), Recipe.uniform("int8", "int8"))
    found = reads(student)
    shortcut = next(name for name in found if name.startswith("pad"))
    (sliced,) = found[shortcut]
    assert found[sliced][0].startswith("int8(")
    assert found["layer2_0_conv1"] == found[sliced]  # one quantizer for both branches
    assert found["add_3"] == ["int8(layer2_0_conv2)", shortcut]
    assert found["linear"] == ["flatten"]
    assert found["flatten"] == ["int8(pool)"]
    assert found["output"] == ["linear"]
    tensors = 1 + 19 + 9 + 1  # the image, outputs of convolutions, adds, the pooling
    assert sum(isinstance(m, Quantizer) for m in student.modules()) == tensors + 20  # and weights
    rows = coverage(student).layers
    assert len(rows) == 20
    assert {(row.weights, row.activations, row.reason) for row in rows} == {("int8", "int8", "")}


def test_squeeze_and_excitation() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        y = m.relu(m.body(x))
        gate = torch.sigmoid(m.expand(F.relu(m.reduce(m.pool(y)))))
        out: Tensor = m.tail(y * gate)
        return out

    layers = {"body": conv(), "reduce": nn.Conv2d(4, 2, 1), "expand": nn.Conv2d(2, 4, 1), "tail": conv(4, 2)}
    model = Net(run, **layers, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))
    assert placed(model, example=image()) == {
        "body": ["int4(x)"],
        "relu": ["body"],
        "pool": ["int8(relu)"],
        "reduce": ["int4(pool)"],
        "relu_1": ["reduce"],
        "expand": ["int4(relu_1)"],
        "sigmoid": ["int8(expand)"],
        "mul": ["int8(relu)", "int8(sigmoid)"],
        "tail": ["int4(mul)"],
        "output": ["int8(tail)"],
    }


def test_two_readers_with_different_formats_share_the_widest() -> None:
    model = Net(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    recipe = Recipe((Rule("a", Int(8), Int(8)), Rule("b", Int(4), Int(4))), glue=None)
    assert placed(model, recipe, torch.randn(4, 8)) == {
        "a": ["int8(x)"],
        "b": ["int4(int8(x))"],
        "add": ["a", "b"],
        "output": ["add"],
    }


def test_a_narrow_reader_of_two_views_gets_both() -> None:
    """cat reads a tensor and a slice of it in int8, a layer reads it in int16."""
    model = Net(lambda m, x: _views(m, m.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    recipe = Recipe((Rule("a", Int(8), Int(8)), Rule("b", Int(8), Int(16))))
    found = placed(model, recipe, torch.randn(4, 8))
    assert found["b"] == ["int16(a)"]
    assert found["cat"] == ["int8(int16(a))", "int8(getitem)"]


def _views(m: Net, y: Tensor) -> Tensor:
    last: Tensor = m.b(y)
    return torch.cat([y, y[:, :4]], dim=1).sum(1) + last.sum(1)


def test_a_layer_that_is_called_twice_quantizes_both_inputs() -> None:
    student = quantize(Net(lambda m, x: m.a(m.a(m.a(x) * 9) * 9), a=nn.Linear(3, 3)), Recipe.uniform("int8", "int8"))
    x = torch.randn(50, 3)
    calibrate(student, [x])
    assert reads(student)["a_2"] == ["int8(mul_1)"]
    assert coverage(student).layers[0].activations == "int8"
    torch.testing.assert_close(freeze(student)(x), student(x))  # no single input scale fits all three


def test_numbers_computed_from_sizes_are_no_tensors() -> None:
    model = Net(lambda m, x: m.a(x) * x.size(-1) ** -0.5 + x.shape[0] * x.ndim, a=nn.Linear(8, 8))
    found = placed(model, example=torch.randn(4, 8))
    assert found["mul"] == ["a", "pow_1"]
    assert found["add"] == ["mul", "mul_1"]


def test_adding_constants_is_no_glue() -> None:
    found = placed(Net(lambda m, x: m.a(x) * 0.5 + 1, a=nn.Linear(8, 8)), example=torch.randn(4, 8))
    assert found["output"] == ["add"]
    assert found["mul"] == ["a"]


@pytest.mark.parametrize(
    "recipe",
    [Recipe.uniform("int4", None), Recipe((Rule(weights=Int(4)),)), Recipe((Rule("*.conv", weights=parse("mxfp4")),))],
    ids=["uniform", "with default glue", "one rule"],
)
def test_a_weight_only_recipe_adds_no_activation_quantizers(recipe: Recipe) -> None:
    student = quantize(models.digits_cnn().eval(), recipe)
    assert not any("int8(" in r for found in reads(student).values() for r in found)
    weights = {id(m.weight_quantizer) for m in student.modules() if isinstance(m, Quantized)}
    assert {id(m) for m in student.modules() if isinstance(m, Quantizer)} == weights


def test_float_activations_leave_the_glue_alone() -> None:
    recipe = Recipe((Rule(weights=Int(8), activations=parse("e4m3fn")),))
    assert placed(models.ResidualBlock(3, 3).eval(), recipe, image())["output"] == ["relu2"]


def test_without_glue_only_layers_read_quantized_numbers() -> None:
    recipe = Recipe((Rule(weights=Int(4), activations=Int(4)), Rule("first")), glue=None)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = conv(), conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            pooled = F.max_pool2d(x, 2)
            return self.b(torch.relu(self.a(pooled))) + pooled + x[:, :, ::2, ::2]  # type: ignore[no-any-return]

    found = placed(Residual(), recipe, image())
    assert found["a"] == ["int4(max_pool2d)"]
    assert found["b"] == ["int4(relu_1)"]
    assert not any("int" in read for name in ("add", "add_1") for read in found[name])


# Tracing


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).mean((2, 3))
        return self.head(y) if y.sum() > 0 else self.head(-y)  # type: ignore[no-any-return]


class Optional(nn.Module):
    """An argument that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y: Tensor = self.linear(x)
        return y if gate is None else y * gate


def test_a_model_that_cannot_be_traced_gets_quantizers_inside_its_layers() -> None:
    model = lively(Branching())
    assert "control flow" in str(graph.trace(model))
    student = quantize(model, INT4)
    assert isinstance(student, Branching)
    calibrate(student, [image()])
    assert isinstance(student.head, Quantized)
    assert student.head.input_quantizer is not None
    assert student.head.input_quantizer.format == Int(4)
    assert student(image()).shape == (2, 2)
    note = coverage(student).note
    assert note.startswith("the model cannot be traced (symbolically traced variables cannot be used as inputs to")
    assert "BatchNorms are not folded" in note


def test_an_optional_argument_is_not_decided_while_tracing() -> None:
    student, x = quantize(Optional(), Recipe.uniform("int8", "int8")), torch.randn(4, 3)
    calibrate(student, [{"x": x}, {"x": x, "gate": torch.zeros(3)}])
    assert student(x).abs().sum() > 0
    assert student(x, torch.zeros(3)).abs().sum() == 0
    assert "argument 'gate' of its forward is None or a tensor" in coverage(student).note


def test_a_reason_is_one_line() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("first\nsecond")

    assert graph.trace(Broken()) == "first"


def test_a_tensor_named_as_a_method_of_modules_gets_a_quantizer() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.to(torch.float32))  # type: ignore[no-any-return]

    assert placed(Cast().eval(), example=torch.randn(3, 4))["layer"] == ["int4(to)"]
