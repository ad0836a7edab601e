"""The verbs on every kind of layer and model: what they change, what they refuse, and what they leave alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lowbit import models
from lowbit.batches import Batch
from lowbit.errors import CalibrationError, DataError, LayerError, RecipeError
from lowbit.formats import Int, parse
from lowbit.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.layers import Quantized
from lowbit.quantization import activation_quantizers, calibrate, coverage, freeze, quantize
from lowbit.quantizer import Codes
from lowbit.recipe import Recipe, Rule

INT8 = Recipe.uniform("int8", "int8")


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def one_rule(weights: str | None, activations: str | None, granularity: Granularity | None = None) -> Recipe:
    recipe = Recipe.uniform(weights, activations, granularity=str(granularity or PerChannel()))
    return replace(recipe, glue=None)


def layer_of(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer of 8 channels in and out, and an input for it."""
    torch.manual_seed(0)
    match kind:
        case "Linear":
            return nn.Linear(8, 8), seeded(5, 8)
        case "Embedding":
            return nn.Embedding(12, 8), torch.arange(12).reshape(3, 4)
    dimensions = int(kind[-2])
    layer: nn.Module = getattr(nn, kind)(8, 8, 3)
    return layer, seeded(2, 8, *[6] * dimensions)


LINEAR = ["Linear", "Conv1d", "Conv2d", "Conv3d"]
TRANSPOSED = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
KINDS = [*LINEAR, *TRANSPOSED, "Embedding"]


class Branching(nn.Module):
    """What no tracer can follow."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x if x.sum() > 1e9 else x + 0


def steps_apart(student: nn.Module, frozen: nn.Module, x: Tensor, step: Tensor) -> float:
    with torch.no_grad():
        return float(((frozen(x) - student(x)).abs() / step).max())


# Layers


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "untraced"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(4)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind: str, granularity: Granularity, traced: bool) -> None:
    layer, x = layer_of(kind)
    model = (nn.Sequential(layer) if traced else Branching(layer=layer)).eval()
    recipe = one_rule("int8", "int8", granularity)
    if kind in TRANSPOSED and isinstance(granularity, PerGroup):
        with pytest.raises(LayerError, match="transposed convolutions have no groups along inputs; use PerChannel"):
            quantize(model, recipe)
        return
    student = quantize(model, recipe)
    calibrate(student, [x])
    with torch.no_grad():
        exact = model(x)
        torch.testing.assert_close(student(x), exact, rtol=0, atol=0.02 * float(exact.abs().max()))
        torch.testing.assert_close(freeze(student)(x), student(x), rtol=0, atol=1e-2 * float(exact.abs().max()))
    (row,) = coverage(student).layers
    axis = "channel:1" if kind in TRANSPOSED else "channel:0"
    assert (row.kind, row.weights, row.reason) == (kind, "int8", "")
    assert row.activations == ("float32" if kind == "Embedding" else "int8")
    assert row.granularity == (axis if granularity == PerChannel() else str(granularity))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_by_itself_is_a_model(kind: str) -> None:
    layer, x = layer_of(kind)
    student = quantize(layer, INT8)
    assert isinstance(student, Quantized)
    calibrate(student, [x])
    assert [row.name for row in coverage(student).layers] == [""]
    assert freeze(student)(x).shape == layer(x).shape


@pytest.mark.parametrize(
    "name", ["ternary", "binary", "mid2", "mid8", "int4", "int2", "e4m3fn", "e2m1", "mxfp4", "nvfp4", "int16", "bf16"]
)
@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "Embedding"])
def test_every_weight_format(kind: str, name: str) -> None:
    layer, x = layer_of(kind)
    student = quantize(nn.Sequential(layer), one_rule(name, "int8"))
    calibrate(student, [x])
    weight = student.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    row = weight[0].flatten()[:16]  # within any block
    assert torch.unique(row).numel() <= 2 ** parse(name).bits
    assert not torch.equal(weight, layer.get_parameter("weight"))
    with torch.no_grad():
        expected = student(x)
        torch.testing.assert_close(freeze(student)(x), expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("activations", ["int2", "uint4", "int8", "int16", "ternary", "e4m3fn", "e5m2", "bf16"])
def test_every_activation_format(activations: str) -> None:
    layer, x = layer_of("Conv2d")
    student = quantize(nn.Sequential(layer), one_rule("int8", activations))
    calibrate(student, [x])
    (quantizer,) = activation_quantizers(student).values()
    assert str(quantizer.format) == activations
    assert quantizer(x).unique().numel() <= 2**quantizer.format.bits
    assert freeze(student)(x).isfinite().all()


def test_int16_activations_are_all_but_exact() -> None:
    layer, x = layer_of("Linear")
    student = quantize(nn.Sequential(layer), one_rule(None, "int16"))
    calibrate(student, [x])
    torch.testing.assert_close(student(x), layer(x), rtol=0, atol=2e-4)


@pytest.mark.parametrize("granularity", [PerChannel(0), PerChannel(1), PerTensor()], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 6),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.ConvTranspose2d(6, 6, 3),
        nn.ConvTranspose2d(6, 6, 3, groups=2),
        nn.ConvTranspose2d(6, 6, 3, groups=6, bias=False),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="replicate"),
    ],
    ids=["linear", "conv", "depthwise", "transposed", "transposed in groups", "transposed depthwise", "replicate"],
)
def test_integer_sums_are_used_only_where_scales_belong_to_outputs(layer: nn.Module, granularity: Granularity) -> None:
    x = seeded(4, 6) if isinstance(layer, nn.Linear) else seeded(2, 6, 5, 5)
    student = quantize(nn.Sequential(layer), one_rule("int8", "int8", granularity))
    calibrate(student, [x])
    frozen = freeze(student)
    if isinstance(layer, nn.ConvTranspose2d):
        outputs = granularity == PerTensor() or (granularity == PerChannel(1) and layer.groups == 1)
    else:
        outputs = granularity != PerChannel(1)
    assert (frozen.get_submodule("0").input_scale is not None) == outputs
    torch.testing.assert_close(frozen(x), student(x), rtol=0, atol=1e-3)


def test_keyword_arguments_reach_the_layer() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 3, 2, stride=2)
            self.down = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(input=self.up(x, output_size=(9, 9)))
            return y

    student, x = quantize(Up(), INT8), seeded(1, 3, 4, 4)
    calibrate(student, [x])
    assert student(x).shape == freeze(student)(x).shape == (1, 2, 9, 9)


# Refusals


@pytest.mark.parametrize(
    ("weights", "activations", "granularity", "message"),
    [
        ("uint8", None, PerChannel(), "weights in uint8 cannot be negative; use a signed format such as int8"),
        ("binary01", None, PerChannel(), "weights in binary01 cannot be negative"),
        ("int4", None, PerGroup(5), r"layer '0' weight \[8, 8, 3, 3\]: PerGroup\(5\) does not divide 72 inputs"),
        ("int4", None, PerChannel(4), r"layer '0' weight PerChannel\(4\) on shape \[8, 8, 3, 3\]"),
        ("int4", "mxfp4", PerChannel(), "mxfp4 is a weight format; activations take int2 to int16 or a float"),
        (None, "nvfp4", PerChannel(), "nvfp4 is a weight format"),
        (None, "binary", PerChannel(), "binary is a weight format"),
        ("mid2", "mid2", PerChannel(), "mid2 is a weight format; activations take int2 to int16 or a float"),
    ],
)
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "untraced"])
def test_what_does_not_fit_a_layer_is_refused(
    weights: str | None, activations: str | None, granularity: Granularity, message: str, traced: bool
) -> None:
    layer, _ = layer_of("Conv2d")
    model = nn.Sequential(layer) if traced else Branching(**{"0": layer})
    with pytest.raises(LayerError, match=message.replace("'0'", ".*0'")):
        quantize(model, one_rule(weights, activations, granularity))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_refused(bad: float) -> None:
    layer, _ = layer_of("Linear")
    layer.get_parameter("weight").data[3, 2] = bad
    with pytest.raises(LayerError, match="layer '0': its weight holds NaN or infinite values"):
        quantize(nn.Sequential(layer), INT8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(LayerError, match=r"layer '0': its weight is \w+, expected float32; call model.float\(\) first"):
        quantize(nn.Sequential(nn.Linear(2, 2)).to(dtype), INT8)


def test_a_quantized_model_is_not_quantized_again() -> None:
    student = quantize(models.digits_cnn(), Recipe.uniform("int4", None))
    for model in (student, freeze(student), nn.Sequential(student)):
        with pytest.raises(LayerError, match="quantized already; quantize the float model"):
            quantize(model, INT8)


@pytest.mark.parametrize(
    ("model", "recipe", "reason"),
    [
        (nn.Sequential(nn.Linear(2, 2)), Recipe((Rule(),)), "the recipe leaves every layer float"),
        (nn.Sequential(nn.Linear(2, 2)), Recipe(()), "the recipe leaves every layer float"),
        (nn.Sequential(nn.Embedding(2, 2)), one_rule(None, "int8"), "the recipe leaves every layer float"),
        (nn.Sequential(nn.LSTM(2, 2)), Recipe(()), "LSTM reads its weights directly"),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), INT8, "its weight is parametrized"),
    ],
    ids=["no format", "no rules", "activations of an embedding", "LSTM", "parametrized"],
)
def test_a_call_that_changes_nothing_is_an_error(model: nn.Module, recipe: Recipe, reason: str) -> None:
    with pytest.raises(LayerError, match=f"no layer of Sequential was quantized: .*{reason}"):
        quantize(model, recipe)


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(RecipeError, match="none of the model's 0 layers"):
        quantize(nn.Sequential(nn.ReLU()), INT8)


# The original, and copies


@pytest.mark.parametrize("build", [models.digits_cnn, lambda: Branching(a=nn.Conv2d(1, 2, 3), b=nn.BatchNorm2d(2))])
def test_the_original_never_changes(build: Callable[[], nn.Module]) -> None:
    model, x = build().train(), seeded(4, 1, 8, 8)
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    student = quantize(model, INT8)
    calibrate(student, [x])
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    student.train()
    student(x).square().sum().backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    freeze(student)
    assert model.training
    assert [type(m) for m in model.modules()] == kinds
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    reference = build()
    reference.load_state_dict(before)
    assert torch.equal(model.eval()(x), reference.eval()(x))


def test_freezing_leaves_the_student_alone() -> None:
    student, x = calibrated_digits()
    before, expected = copy.deepcopy(student.state_dict()), student(x)
    freeze(student)
    assert torch.equal(student(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def calibrated_digits(recipe: Recipe = INT8) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    student, x = quantize(models.digits_cnn(), recipe), seeded(8, 1, 8, 8)
    calibrate(student, [x], progress=False)
    return student, x


@pytest.mark.parametrize("frozen", [False, True], ids=["student", "frozen"])
def test_students_copy_pickle_and_save(frozen: bool) -> None:
    student, x = calibrated_digits()
    student = freeze(student) if frozen else student
    buffer = io.BytesIO()
    torch.save(student.state_dict(), buffer)
    twin = copy.deepcopy(student)
    for tensor in twin.state_dict().values():
        tensor.zero_()
    twin.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for other in (twin, copy.deepcopy(student), pickle.loads(pickle.dumps(student))):  # noqa: S301
        assert torch.equal(other(x), student(x))
        assert [str(row) for row in coverage(other).layers] == [str(row) for row in coverage(student).layers]


def test_a_student_trains() -> None:
    student, x = calibrated_digits(Recipe.uniform("int4", "int8"))
    target = torch.arange(8) % 10
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(student(x), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_layer_with_several_names_stays_one() -> None:
    shared = nn.Linear(3, 3)
    model = Branching(a=shared, b=nn.Sequential(shared), c=shared)
    student, x = quantize(model, INT8), seeded(4, 3)
    calibrate(student, [x])
    names = dict(student.named_modules(remove_duplicate=False))
    assert names["layers.a"] is names["layers.b.0"] is names["layers.c"]
    assert [row.name for row in coverage(student).layers] == ["layers.a"]
    assert steps_apart(student, freeze(student), x, torch.tensor(0.01)) < 1


def test_tied_weights_are_quantized_each() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    student, x = quantize(model, INT8), torch.arange(5)
    calibrate(student, [x])
    assert freeze(student)(x).shape == (5, 5)


# Calibration


class TwoInputs(nn.Module):
    """Two tensors in, one of them an integer, and a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 3)

    def forward(self, ids: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(self.embed(ids) + extra)
        return y, y.mean()


def test_dict_batches_are_keyword_arguments() -> None:
    student = quantize(TwoInputs(), INT8)
    ids, extra = torch.arange(5), seeded(5, 4)
    calibrate(student, [{"ids": ids, "extra": extra, "labels": ids}, {"extra": extra * 2, "ids": ids}])
    assert student(ids=ids, extra=extra)[0].shape == (5, 3)
    assert all(quantizer.ready for quantizer in activation_quantizers(student).values())


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: (x, torch.zeros(2)), lambda x: [x, None], lambda x: {"input": x}]
)
def test_all_forms_of_batches_calibrate_alike(form: Callable[[Tensor], Batch]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3)), seeded(6, 3)
    expected, student = quantize(model, INT8), quantize(model, INT8)
    calibrate(expected, [x])
    calibrate(student, [form(x[:2]), form(x[2:])])
    assert torch.equal(student(x), expected(x))


def test_batches_may_be_a_generator_and_are_read_once() -> None:
    student, read = quantize(models.digits_cnn(), INT8), 0

    def batches() -> Iterator[Tensor]:
        nonlocal read
        for _ in range(3):
            read += 1
            yield seeded(2, 1, 8, 8)

    calibrate(student, batches())
    assert read == 3


def test_a_model_without_activation_quantizers_needs_no_batches() -> None:
    student = quantize(models.digits_cnn(), Recipe.uniform("int4", None))
    calibrate(student, [])
    assert freeze(student)(seeded(2, 1, 8, 8)).shape == (2, 10)


def test_empty_calibration_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="calibration got no batches; give at least one"):
        calibrate(quantize(models.digits_cnn(), INT8), [])


def test_running_or_freezing_before_calibration_is_an_error() -> None:
    student = quantize(models.digits_cnn(), INT8)
    with pytest.raises(CalibrationError, match=r"no scale yet; call calibrate\(student, batches\)"):
        student(seeded(2, 1, 8, 8))
    with pytest.raises(CalibrationError, match=r"call calibrate\(student, batches\) before freezing"):
        freeze(student)


def test_a_layer_that_batches_do_not_reach_is_named() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return torch.relu(self.spare(y)) if y.sum() > 1e9 else y

    with pytest.raises(CalibrationError, match="'spare' saw no data during calibration; give batches that reach"):
        calibrate(quantize(Spare(), INT8), [seeded(2, 3)])


def interrupted() -> Iterator[Tensor]:
    yield 100 * seeded(2, 1, 8, 8)
    raise OSError("disk")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("batches", "error"),
    [
        (interrupted, OSError),
        (lambda: [], CalibrationError),
        (lambda: [100 * seeded(2, 1, 8, 8), torch.full((1, 1, 8, 8), torch.nan)], CalibrationError),
        (lambda: [100 * seeded(2, 1, 8, 8), seeded(2, 5)], DataError),
    ],
    ids=["interrupted", "empty", "NaN", "wrong shape"],
)
def test_a_failure_keeps_the_old_scales(
    batches: Callable[[], Iterable[Tensor]], error: type[Exception], training: bool
) -> None:
    student, x = calibrated_digits()
    before = copy.deepcopy(student.state_dict())
    student.train(training)
    with pytest.raises(error):
        calibrate(student, batches())
    assert student.training == training
    assert all(quantizer.histogram is None for quantizer in activation_quantizers(student).values())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student(x).isfinite().all()


def test_new_batches_replace_the_old_scales() -> None:
    student, x = calibrated_digits()
    first = next(iter(activation_quantizers(student).values())).scale.item()
    calibrate(student, [2 * x])
    assert next(iter(activation_quantizers(student).values())).scale.item() == pytest.approx(2 * first, rel=0.05)


# Freezing


@pytest.mark.parametrize("weights", ["int8", "int4", "ternary", "binary", "mid2", "mid8", "e4m3fn", "e2m1", "mxfp4"])
def test_a_frozen_model_is_its_student_up_to_one_output_code(weights: str) -> None:
    """The last layer is a convolution, so that the output lies on an int8 grid."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    student, x = quantize(model, Recipe.uniform(weights, "int8")), seeded(16, 1, 8, 8)
    calibrate(student, [x])
    step = list(activation_quantizers(student).values())[-1].scale
    assert steps_apart(student, freeze(student), x, step) < 1.01


def test_freezing_drops_float_weights() -> None:
    student, _ = calibrated_digits(Recipe.uniform("int4", "int8"))
    frozen = freeze(student)
    layers = [m for m in frozen.modules() if isinstance(m, Quantized)]
    assert all(isinstance(layer.weight_quantizer, Codes) for layer in layers)
    assert all(layer.layer.weight is None for layer in layers)
    assert not any(p.requires_grad for p in frozen.parameters())
    largest = max(t.numel() * t.element_size() for t in frozen.state_dict().values())
    float_weights = sum(p.numel() * 4 for n, p in student.named_parameters() if n.endswith("weight"))
    assert largest < float_weights / 8
    assert sum(m.packed.numel() for m in frozen.modules() if isinstance(m, Codes)) * 8 == float_weights


def test_frozen_integer_layers_sum_integers() -> None:
    layer, x = layer_of("Linear")
    student = quantize(nn.Sequential(layer), one_rule("int8", "int8"))
    calibrate(student, [x])
    frozen = freeze(student).get_submodule("0")
    assert isinstance(frozen, Quantized)
    assert isinstance(frozen.weight_quantizer, Codes)
    assert frozen.input_scale is not None
    unit = frozen.input_scale * frozen.weight_quantizer.integer_scale
    y = freeze(student)(x) / unit
    torch.testing.assert_close(y, y.round(), rtol=0, atol=1e-2)
    assert frozen.bias is not None
    torch.testing.assert_close(frozen.bias / unit, (frozen.bias / unit).round(), rtol=0, atol=1e-2)


def test_freezing_twice_changes_nothing() -> None:
    student, x = calibrated_digits()
    once = freeze(student)
    assert torch.equal(freeze(once)(x), once(x))


# Coverage


def test_coverage_gives_a_reason_for_every_skipped_layer() -> None:
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, args, output: None)
    model = Branching(
        linear=nn.Linear(4, 4),
        left=nn.Linear(4, 4),
        norm=nn.BatchNorm1d(4),
        normed=parametrizations.weight_norm(nn.Linear(4, 4)),
        hooked=hooked,
        prelu=nn.PReLU(),
    )
    model.lstm = nn.LSTM(4, 4)
    model.attention = nn.MultiheadAttention(4, 2)
    recipe = Recipe((Rule("*", Int(8), Int(8)), Rule("layers.left")))
    found = coverage(quantize(model, recipe))
    assert [row.name for row in found.quantized] == ["layers.linear"]
    assert {row.name: (row.kind, row.reason.split(";")[0]) for row in found.skipped} == {
        "layers.left": ("Linear", "the recipe leaves it float"),
        "layers.norm": ("BatchNorm1d", "BatchNorm1d has no quantized form"),
        "layers.normed": ("ParametrizedLinear", "its weight is parametrized"),
        "layers.hooked": ("Linear", "it carries forward hooks, which would run twice"),
        "layers.prelu": ("PReLU", "PReLU has no quantized form"),
        "lstm": ("LSTM", "LSTM reads its weights directly"),
        "attention": ("MultiheadAttention", "MultiheadAttention reads its weights directly"),
    }
    assert found.note.startswith("the model cannot be traced (")


def test_coverage_of_float_and_frozen_models() -> None:
    student, _ = calibrated_digits(Recipe.uniform("int4", "int8"))
    assert coverage(freeze(student)).layers == coverage(student).layers
    assert coverage(student).note == ""
    rows = coverage(models.digits_cnn())
    assert {row.weights for row in rows.layers} == {"float32"}
    assert not rows.quantized


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # the float model takes the fused path
@pytest.mark.parametrize("deep", [False, True], ids=["layer", "stack"])
def test_transformer_encoders_really_run_their_quantizers(deep: bool) -> None:
    """In eval mode torch takes a fused path that reads the weights itself, unless `quantize` turns it off."""
    torch.manual_seed(0)
    model: nn.Module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    if deep:
        model = nn.TransformerEncoder(model, 2).eval()  # type: ignore[arg-type]
    x, padding = seeded(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    batch = {"src": x, "src_key_padding_mask": padding}
    fine, coarse = quantize(model, INT8), quantize(model, Recipe.uniform("int2", "int2"))
    with torch.no_grad():
        for student in (fine, coarse):
            calibrate(student, [batch])
        exact, valid = model(**batch), ~padding
        assert (fine(**batch) - exact)[valid].abs().max() < 0.1
        assert (coarse(**batch) - exact)[valid].abs().max() > 0.2
        assert (freeze(fine)(**batch) - fine(**batch))[valid].abs().max() < 0.05
    kinds = {row.kind for row in coverage(fine).quantized}
    assert kinds == {"Linear"}
    assert {row.kind for row in coverage(fine).skipped} == {"MultiheadAttention", "LayerNorm"}


def test_a_transformer_inside_a_traced_model() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Embedding(9, 8), layer, nn.Linear(8, 3)).eval()
    student, ids = quantize(model, INT8), torch.arange(9).reshape(1, 9)
    calibrate(student, [ids])
    assert coverage(student).note == ""
    assert {row.name for row in coverage(student).quantized} == {"0", "1.linear1", "1.linear2", "2"}
    with torch.no_grad():
        assert (student(ids) - model(ids)).abs().max() < 0.1
        assert (freeze(student)(ids) - student(ids)).abs().max() < 0.05


def test_a_mask_gets_no_quantizer() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.b(self.a(x) * mask)
            return result

    batch = {"x": torch.randn(16, 8), "mask": torch.rand(16, 8) > 0.5}
    student = quantize(Masked(), Recipe.uniform("int8", "int8"))
    calibrate(student, [batch])
    assert not any("mask" in name for name in activation_quantizers(student))
    assert torch.isfinite(student(**batch)).all()


def test_readers_that_want_other_scales_get_quantizers_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.a(x) + self.b(x)
            return result

    affine = Rule("a", weights=Int(8), activations=Int(8))
    symmetric = replace(affine, match="b", symmetric=True)
    student = quantize(Two(), Recipe((affine, symmetric)))
    kinds = {q.zero_point is None for n, q in activation_quantizers(student).items() if n.startswith("activations.x")}
    assert kinds == {True, False}
