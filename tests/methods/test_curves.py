"""Curve outputs on small problems: heads, decoders in the file, the choice, training, measures."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.errors import DataError, LayerError, RecipeError, TrainingError
from lowbit.layers import Quantized
from lowbit.methods.curves.choose import choice_for
from lowbit.methods.curves.heads import Encoded, deployed_points
from lowbit.methods.curves.measures import confidence_curve, flip_rate, structure
from lowbit.methods.curves.paths import Fold, Hilbert, Moore, Snake
from lowbit.methods.curves.tables import learned_table

RECIPE = lb.Recipe.uniform("int8", "int8")


class Net(nn.Module):
    """Two convolutions, and a head for one number or for images of them."""

    def __init__(self, *, dense: bool, outputs: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.head: nn.Module = nn.Conv2d(8, outputs, 1) if dense else nn.Linear(8, outputs)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        out: Tensor = self.head(x if self.dense else x.mean((2, 3)))
        return out


def net(*, dense: bool, outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return Net(dense=dense, outputs=outputs).eval()


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 8, 12, generator=torch.Generator().manual_seed(seed))


def around(model: nn.Module, x: Tensor, path: Snake | Hilbert | Fold | Moore, **given: object) -> lb.Codec:
    """A codec whose range holds what a model returns."""
    with torch.no_grad():
        y = model(x)
    low, high = y.amin((0, *range(2, y.dim()))) - 0.1, y.amax((0, *range(2, y.dim()))) + 0.1
    return lb.Codec(tuple(low.tolist()), tuple(high.tolist()), path, **given)  # type: ignore[arg-type]


def deployed(points: nn.Module, codec: lb.Codec, x: Tensor, **kind: object) -> nn.Module:
    student = lb.quantize(points, RECIPE)
    lb.calibrate(student, [x], progress=False)
    return lb.attach_decoder(student, lb.Decoder(codec, **kind))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "kind", "dense"),
    [
        (Snake(8), "table", False),
        (Snake(8), "table", True),
        (Snake(8), "arithmetic", False),
        (Hilbert(2), "table", True),
        (Moore(2), "table", False),
        (Fold(4), "arithmetic", True),
        (Fold(1), "arithmetic", False),
    ],
    ids=str,
)
def test_the_file_decodes_exactly_as_torch(
    path: Snake | Hilbert | Fold | Moore, kind: str, dense: bool, tmp_path: Path
) -> None:
    model, x = net(dense=dense, outputs=2), images()
    codec = around(model, x, path)
    ready = deployed(lb.wrap_head(model, codec), codec, x, kind=kind)
    exported = lb.export_onnx(ready, tmp_path / "m.onnx", x)
    found = lb.verify(exported, [x], progress=False)
    assert found.same_codes == 1
    assert found.largest_output_difference == 0
    assert "decoder.codes.quantizer" in {tensor.name for tensor in found.tensors}
    assert not found.stayed_float
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x[:3].numpy()})
    assert torch.equal(torch.from_numpy(got), exported.model(x[:3]))


def test_the_file_tells_how_far_from_the_path_points_are(tmp_path: Path) -> None:
    model, x = net(dense=True), images()
    codec = around(model, x, Snake(8))
    ready = deployed(lb.wrap_head(model, codec), codec, x, confidence=True)
    exported = lb.export_onnx(ready, tmp_path / "m.onnx", x)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    target, distance = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert target.shape == distance.shape == (32, 1, 8, 12)
    wanted = exported.model(x)[1]
    assert torch.equal(torch.from_numpy(distance), wanted)
    assert float(wanted.max()) > 0


@pytest.mark.parametrize("copies", [1, 2, 4, 8])
def test_a_fold_is_the_same_network_with_finer_steps(copies: int) -> None:
    model, x = net(dense=False), images(512)
    codec = around(model, x, Fold(copies))
    folded = lb.wrap_head(model, codec)
    with torch.no_grad():
        assert torch.allclose(codec.decode(folded(x)), model(x), atol=1e-6)
        decoder = lb.Decoder(codec)
        steps = decoder(folded(x)) - model(x)
    width = float(codec.width(model(x).detach()))
    assert float(steps.abs().max()) <= 0.5 * width / (255 * copies) * 1.001
    # uniform rounding errors: d / (R sqrt 12)
    assert float(steps.square().mean().sqrt()) == pytest.approx(width / (255 * copies * math.sqrt(12)), rel=0.1)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_quantized_head_keeps_its_codes_when_folded(granularity: str) -> None:
    model, x = net(dense=False, outputs=3), images()
    codec = around(model, x, Fold(4))
    student = lb.quantize(model, lb.Recipe.uniform("int8", "int8", granularity=granularity))
    lb.calibrate(student, [x], progress=False)
    folded = lb.wrap_head(student, codec)
    before, after = student.get_submodule("head"), folded.get_submodule("head")
    assert isinstance(before, Quantized)
    assert isinstance(after, Quantized)
    with torch.no_grad():
        assert torch.allclose(codec.decode(folded(x)), student(x), atol=1e-5)
    codes = [lb.freeze(one).get_submodule("head") for one in (student, folded)]
    whole, copied = (one.weight_quantizer.codes() for one in codes)  # type: ignore[union-attr, operator]
    assert torch.equal(copied, torch.cat([whole] * 4))
    assert student.get_submodule("head") is before  # the argument is not changed


def test_wrapped_layers_start_near_the_path_and_the_model_stays() -> None:
    model, x = net(dense=False), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codec = around(model, x, Snake(8))
    wrapped = lb.wrap_head(model, codec)
    assert wrapped(x).shape == (32, 2)
    # rows follow one another, so the second coordinate is nearly the share itself
    with torch.no_grad():
        assert float((wrapped(x)[:, 1:] - codec.share(model(x))).abs().max()) < 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_separate_and_published_heads() -> None:
    model, x = net(dense=True), images()
    codec = around(model, x, Hilbert(2))
    separate = lb.wrap_head(model, codec, heads="separate", head="head")
    with torch.no_grad():
        assert torch.equal(separate(x), model(x).repeat(1, 2, 1, 1))
    published = lb.wrap_head(model, codec, heads="published", seed=3)
    shapes = {name: list(p.shape) for name, p in published.named_parameters() if name.startswith("head.heads.1")}
    assert shapes["head.heads.1.0.weight"] == [32, 8, 3, 3]
    assert shapes["head.heads.1.2.weight"] == [1, 32, 1, 1]
    again = lb.wrap_head(model, codec, heads="published", seed=3)
    assert torch.equal(published(x), again(x))
    assert lb.wrap_head(net(dense=False), codec, heads="published")(x).shape == (32, 2)
    assert deployed(published, codec, x)(x).shape == (32, 1, 8, 12)


class Squashed(nn.Module):
    """A network that ends in something else than a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(x))


class Normalized(nn.Module):
    """A network that ends in a module without outputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(x))
        return out


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Squashed(), {}, "ends in 'sigmoid'"),
        (Normalized(), {}, "ends in 'norm', a LayerNorm"),
        (nn.Conv1d(4, 4, 1, groups=2), {"head": ""}, "with 2 groups"),
        (nn.Sequential(nn.Linear(4, 1)), {"head": "1"}, "no module '1'; it has 0"),
    ],
    ids=["function", "norm", "groups", "name"],
)
def test_layers_that_cannot_be_widened_are_named(model: nn.Module, given: dict[str, str], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        lb.wrap_head(model, lb.Codec(0.0, 1.0), **given)  # type: ignore[arg-type]


def test_frozen_and_decoded_models_are_refused() -> None:
    model, x = net(dense=False), images()
    codec = around(model, x, Fold(2))
    student = lb.quantize(model, RECIPE)
    lb.calibrate(student, [x], progress=False)
    with pytest.raises(LayerError, match="frozen"):
        lb.wrap_head(lb.freeze(student), codec)
    ready = deployed(lb.wrap_head(model, codec), codec, x)
    with pytest.raises(LayerError, match="decoder already"):
        lb.attach_decoder(ready, lb.Decoder(codec))
    with pytest.raises(TrainingError, match="float models"):
        lb.fit_head(ready, codec, [(x, model(x).detach())] * 2, progress=False)


def test_options_that_do_not_go_together() -> None:
    model, codec = net(dense=False), lb.Codec(0.5, 1.0, Fold(4))
    for given, message in (
        ({"heads": "both"}, "unknown"),
        ({"heads": "separate"}, "name it"),
        ({"heads": "published"}, "by itself"),
    ):
        with pytest.raises(RecipeError, match=message):
            lb.wrap_head(model, codec, **given)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="by itself"):
        lb.wrap_head(model, replace(codec, transform="log"))


def test_calibration_leaves_the_output_scale_alone() -> None:
    model, x = net(dense=True), images()
    codec = around(model, x, Snake(4))
    ready = deployed(lb.wrap_head(model, codec), codec, x)
    before = ready(x)
    lb.calibrate(ready, [3 * x], progress=False)
    quantizer = ready.get_submodule("decoder.codes.quantizer")
    assert float(quantizer.get_parameter("scale")) == pytest.approx(1 / 255)
    assert float(quantizer.get_buffer("zero_point")) == -128
    assert before.shape == ready(x).shape


def test_biases_of_channels_without_weights_survive_freezing() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.bias.copy_(torch.tensor([0.7, -0.3]))
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), layer), torch.randn(64, 4)
    student = lb.quantize(model, RECIPE)
    lb.calibrate(student, [x], progress=False)
    assert torch.allclose(lb.freeze(student)(x)[:, 0], torch.tensor(0.7), atol=1e-4)


# The problem below is the sheet's task B, smaller: where a peak lies in a noisy spectrum.


def spectra(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    place = torch.rand(count, 1, generator=draw)
    bins, width = torch.arange(32.0), 2 + torch.rand(count, 1, generator=draw)
    peak = torch.exp(-0.5 * ((bins - 4 - 24 * place) / width) ** 2)
    return peak + 0.005 * torch.randn(count, 32, generator=draw), place


@pytest.fixture(scope="module")
def finder() -> nn.Module:
    """A direct model that finds the peak."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    codec = lb.Codec(0.0, 1.0, Fold(1))
    trained, _ = lb.fit_head(
        lb.wrap_head(model, codec), codec, [spectra(4096, 1)] * 2, epochs=12, rate=3e-3, progress=False
    )
    return trained


def test_a_snake_makes_the_quantization_error_smaller(finder: nn.Module, tmp_path: Path) -> None:
    x, place = spectra(2048, 3)
    calibration = spectra(512, 2)
    errors = {}
    for path in (Fold(1), Snake(8)):
        codec = lb.Codec(0.0, 1.0, path, clip=True)
        points = lb.wrap_head(finder, codec)
        points, fitted = lb.fit_head(points, codec, [spectra(4096, 1)] * 2, epochs=12, rate=3e-3, progress=False)
        assert fitted.after < fitted.before
        assert len(fitted.epochs) == 12
        ready = deployed(points, codec, calibration[0])
        lb.export_onnx(ready, tmp_path / f"{path}.onnx", x)
        session = onnxruntime.InferenceSession(tmp_path / f"{path}.onnx")
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            exact = codec.decode(points(x))
        errors[str(path)] = (
            lb.output_errors(torch.from_numpy(got), place, codec),
            lb.output_errors(torch.from_numpy(got), exact, codec),
        )
    direct, curve = errors["fold1"], errors["snake8"]
    assert curve[1].robust_sd < direct[1].robust_sd / 3  # of quantization, the sheet has 4.5
    assert curve[0].rmse < direct[0].rmse / 1.3  # of all
    assert curve[0].levels > 4 * direct[0].levels
    assert curve[0].flips == 0


@pytest.mark.filterwarnings("ignore:on training data")
def test_a_direct_model_is_teacher_enough(finder: nn.Module) -> None:
    inputs = [spectra(2048, seed)[0] for seed in (1, 4)]
    found, made = lb.curve_output(
        finder, inputs, RECIPE, path="snake4", low=0.0, high=1.0, epochs=4, rate=3e-3, progress=False
    )
    assert made.codec is not None
    assert made.fit is not None
    assert made.fit.taught
    assert made.choice is None
    x, _ = spectra(512, 5)
    with torch.no_grad():
        apart = made.codec.decode(found(x)) - finder(x)
    assert float(apart.abs().median()) < 0.01
    student = lb.quantize(found, RECIPE)
    lb.calibrate(student, inputs, progress=False)
    student, done = lb.distill(student, Encoded(finder, made.codec), inputs, loss="mse", epochs=2, progress=False)
    assert done.after > 0.9


@pytest.mark.filterwarnings("ignore:on training data")  # two epochs are few
def test_the_verb_chooses_trains_and_resumes(finder: nn.Module, tmp_path: Path) -> None:
    batches = [spectra(1024, seed) for seed in range(10, 14)]
    runs = [
        lb.curve_output(
            finder,
            batches,
            RECIPE,
            epochs=2,
            calibration=[spectra(256, s) for s in (20, 21, 22)],
            folder=tmp_path,
            progress=False,
        )
        for _ in range(2)
    ]
    (first, made), (second, again) = runs
    assert made.choice is not None
    assert made.codec is not None
    assert isinstance(made.codec.path, Snake)
    assert made == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    low, high = made.codec.low, made.codec.high
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert -0.02 < low < 0
    assert 1 < high < 1.02
    assert (tmp_path / "log.jsonl").exists()
    folded, made = lb.curve_output(finder, batches, path="fold4", progress=False)
    assert made.fit is None
    assert made.codec is not None
    assert folded(batches[0][0]).shape == (1024, 4)


@pytest.mark.parametrize(
    ("noise", "uncertainty", "path"),
    [
        (0.0, 0.0, "snake40"),  # the steps of the output alone
        (0.02, math.nan, None),  # theory: t = .02 takes branches .14 apart
        (0.002, 0.004, "snake9"),
        (0.002, 0.015, None),  # the network's own error is all that counts
    ],
)
def test_the_choice_follows_the_rules(noise: float, uncertainty: float, path: str | None) -> None:
    choice = choice_for(noise, uncertainty, lb.Codec(0.0, 1.0))
    if noise == 0.02:  # seven times .02 fit into a snake of few rows, and three times into its margin
        assert choice.codec is not None
        assert isinstance(choice.codec.path, Snake)
        assert 2 <= choice.codec.path.rows <= 7
        assert choice.codec.path.margin > 0.06
        return
    assert (None if choice.codec is None else str(choice.codec.path)) == path
    if choice.codec is None:
        assert "the direct output stays" in choice.reason
        assert choice.chosen is None
        return
    chosen = choice.chosen
    assert chosen is not None
    assert not chosen.why_not
    t = math.hypot(noise, 1 / 255 / math.sqrt(12))
    assert choice.channel_noise == pytest.approx(t)
    assert chosen.spacing > 7 * t
    longer = [one for one in choice.candidates if one.length > chosen.length]
    assert all(one.why_not for one in longer)


def test_the_verb_stays_direct_where_nothing_is_gained() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    x = torch.randn(256, 8)
    noisy = model(x).detach() + 0.5 * torch.randn(256, 1)
    same, made = lb.curve_output(model, [(x, noisy)] * 4, RECIPE, progress=False)
    assert made.codec is None
    assert made.choice is not None
    assert "direct output stays" in str(made)
    assert torch.equal(same(x), model(x))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"path": "snake8", "low": 0.0}, RecipeError, "both low and high"),
        ({}, RecipeError, "give a recipe, or a path"),
        ({"path": "snake8", "low": 0.0, "high": 0.5}, DataError, "outside 0.0 to 0.5"),
        ({"path": "snake8", "loss": "l2"}, RecipeError, "unknown"),
        ({"path": "spiral"}, RecipeError, "expected snake8"),
    ],
)
def test_bad_input_of_the_verb(
    finder: nn.Module, given: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lb.curve_output(finder, [spectra(64, 1)] * 2, epochs=1, progress=False, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("path", ["fold4", "snake4"])
def test_a_model_that_squeezes_its_output(finder: nn.Module, path: str, labels: bool) -> None:
    squeezed, (x, y) = nn.Sequential(finder, nn.Flatten(0)), spectra(64, 1)
    batches = [(x, y.flatten())] * 2 if labels else [(x,)] * 2
    with pytest.raises(DataError, match=r"^the model returns \[N\]; an output needs \[N, 1\]: leave out the squeeze$"):
        lb.curve_output(squeezed, batches, path=path, epochs=1, progress=False)


def test_constant_and_missing_targets(finder: nn.Module) -> None:
    x = spectra(64, 1)[0]
    with pytest.raises(DataError, match="always 1"):
        lb.curve_output(finder, [(x, torch.ones(64, 1))] * 2, path="snake4", progress=False)
    with pytest.raises(DataError, match="NaN"):
        lb.curve_output(finder, [(x, torch.full((64, 1), math.nan))] * 2, path="snake4", progress=False)
    codec = lb.Codec(0.0, 1.0)
    with pytest.raises(DataError, match="no targets"):
        lb.fit_head(lb.wrap_head(finder, codec), codec, [x] * 2, progress=False)
    with pytest.raises(DataError, match=r"expected \[64, 1\]"):
        lb.fit_head(lb.wrap_head(finder, codec), codec, [(x, torch.zeros(64, 3))] * 2, progress=False)


def test_the_published_loss() -> None:
    codec = lb.Codec(0.0, 1.0, Hilbert(2))
    target = torch.tensor([[0.3]])
    point = codec.encode(target) + torch.tensor([[0.01, 0.0]])
    share, distance = codec.project(point)
    from lowbit.methods.curves.fit import point_loss

    wanted = (share - 0.3).abs() + 0.01**2 + 25 * distance.square()
    assert float(point_loss(point, target, codec, "published")) == pytest.approx(float(wanted), rel=1e-4)


def test_flips_are_counted_and_terraces_seen() -> None:
    codec = lb.Codec(0.0, 1.0, Snake(8))
    target = torch.linspace(0, 1, 1000)[:, None]
    found = target.clone()
    found[:100] += 0.25  # two rows further
    found[100:] += 0.001
    assert flip_rate(found.clamp(0, 1), target, codec) == pytest.approx(0.1)
    assert flip_rate(found, target, replace(codec, path=Fold(4))) == 0
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64) + torch.linspace(0, 0.7, 64)[:, None]
    assert structure(ramp, ramp) == pytest.approx(1)
    terraces = [structure((ramp * steps).round() / steps, ramp) for steps in (16, 64, 512)]
    assert terraces[0] < terraces[1] < terraces[2] < 1
    assert terraces[0] < 0.9
    assert structure(torch.zeros_like(ramp), ramp) == 0


def test_errors_are_in_units_of_the_target() -> None:
    codec = lb.Codec(0.0, 200.0, Fold(1))
    errors = torch.zeros(10_000, 1)
    errors[:20] = 50.0
    errors[20:6000] = 1.0
    found = lb.output_errors(100 + errors, torch.full((10_000, 1), 100.0), codec)
    assert found.mae == pytest.approx((20 * 50 + 5980) / 10_000)
    assert found.robust_sd == pytest.approx(1.4826)
    assert found.p999 == 50
    assert found.rmse == pytest.approx(math.sqrt((20 * 2500 + 5980) / 10_000))
    assert found.levels == 3
    assert found.structure is None
    assert "RMSE" in str(found)
    with pytest.raises(DataError, match="same shape"):
        lb.output_errors(torch.zeros(3, 1), torch.zeros(4, 1), codec)
    turn = lb.Codec(0.0, 360.0, Moore(2))
    around_zero = lb.output_errors(torch.tensor([[359.0]]), torch.tensor([[1.0]]), turn)
    assert around_zero.mae == pytest.approx(2, abs=1e-3)
    assert around_zero.flips == 0


def test_confidence_sorts_out_the_worst() -> None:
    error = torch.cat([torch.ones(30) * 10, torch.ones(970) * 0.1])
    distance = error / 100
    (_, every), *_, (share, best) = confidence_curve(error, distance, (1.0, 0.97))
    assert share == 0.97
    assert best == pytest.approx(0.1)
    assert every > 1.7


class Untraceable(nn.Module):
    """A network whose way depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x if x.shape[1] > 5 else self.head(x)
        return out


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_untraceable_model_and_other_runtimes_read_the_table(runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    x, codec = torch.rand(64, 3), lb.Codec(-2.0, 2.0, Snake(4))
    with pytest.raises(LayerError, match="name the layer"):
        lb.wrap_head(Untraceable(), codec)
    ready = deployed(lb.wrap_head(Untraceable(), codec, head="head"), codec, x)
    exported = lb.export_onnx(ready, tmp_path / "m.onnx", x)
    found = lb.verify(exported, [x], progress=False, runtime=runtime)  # type: ignore[arg-type]
    assert found.same_codes > 0.98
    assert lb.output_errors(exported.model(x), codec.decode(deployed_points(ready, [x])), codec).mae < 1e-3


def test_noise_in_front_of_the_head_is_for_training_alone(finder: nn.Module) -> None:
    codec, data = lb.Codec(0.0, 1.0, Snake(4)), [spectra(512, seed) for seed in (1, 2)]
    start = lb.wrap_head(finder, codec)
    plain, noisy, again = (
        lb.fit_head(start, codec, data, epochs=2, noise=noise, progress=False)[0] for noise in (0.0, 0.5, 0.5)
    )
    x = data[0][0]
    assert torch.equal(noisy(x), again(x))
    assert not torch.equal(noisy(x), plain(x))
    assert not any(module._forward_pre_hooks for module in noisy.modules())
    with pytest.raises(RecipeError, match="noise is -1"):
        lb.fit_head(start, codec, data, noise=-1, progress=False)


def test_without_labels_nothing_is_known_of_the_whole_error() -> None:
    choice = choice_for(0.0005, math.nan, lb.Codec(0.0, 1.0))
    assert choice.codec is not None
    assert str(choice.codec.path) == "snake8"
    assert "all of it" not in choice.reason
    assert choice.chosen is not None
    assert math.isnan(choice.chosen.total_gain)


def test_a_head_is_never_left_worse_than_its_start(finder: nn.Module) -> None:
    codec = lb.Codec(0.0, 1.0, Fold(1))
    start = lb.wrap_head(finder, codec)
    kept, fitted = lb.fit_head(start, codec, [spectra(64, 1)] * 3, epochs=1, rate=1.0, progress=False)
    assert fitted.best == 0
    assert fitted.after == fitted.before
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("transform", ["log", "inverse"])
def test_the_start_is_the_best_affine_guess(transform: str) -> None:
    codec = lb.Codec(1.0, 60.0, Snake(4), transform=transform)  # type: ignore[arg-type]
    quantity = codec.quantity(torch.linspace(0, 1, 2000)[:, None])
    wanted = codec.encode(quantity)
    with torch.no_grad():
        found = lb.wrap_head(nn.Sequential(nn.Identity(), identity()), codec)(quantity)
    for column, target in zip(found.T, wanted.T, strict=True):
        design = torch.stack([quantity[:, 0], torch.ones(2000)], 1).double()
        best = torch.linalg.lstsq(design, target.double()[:, None]).solution
        residual = (design @ best)[:, 0] - target
        assert float((column - target).square().mean()) == pytest.approx(float(residual.square().mean()), rel=0.02)


def identity() -> nn.Module:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(0)
    return layer


def test_a_wrapped_student_has_no_quantizer_for_quantities_behind_its_head() -> None:
    model, x = net(dense=True), images()
    codec = around(model, x, Snake(4))
    student = lb.quantize(model, RECIPE)
    lb.calibrate(student, [x], progress=False)
    wrapped = lb.wrap_head(student, codec)
    assert len(wrapped(x).unique()) > 256  # float points


def test_a_named_head_is_used_throughout_and_checked(finder: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.rand(256, 3)
    batches = [(x, Untraceable().head(x).detach())] * 4
    _, made = lb.curve_output(Untraceable(), batches, RECIPE, head="head", epochs=1, progress=False)
    assert made.choice is not None
    with pytest.raises(LayerError, match="returns the output of '4', not of '0'"):
        lb.wrap_head(finder, lb.Codec(0.0, 1.0), head="0")


def test_choosing_leaves_the_model_in_its_mode(finder: nn.Module) -> None:
    model = copy.deepcopy(finder).train()
    lb.choose_path(model, [spectra(64, seed) for seed in (1, 2, 3)], lb.Codec(0.0, 1.0, clip=True), RECIPE)
    assert model.training


def test_periods_and_ranges_are_given_where_data_cannot_tell(finder: nn.Module) -> None:
    with pytest.raises(RecipeError, match="one period"):
        lb.curve_output(finder, [spectra(64, 1)] * 2, path="moore3", progress=False)
    with pytest.raises(DataError, match="outside"):
        lb.curve_output(finder, [spectra(64, 1)] * 2, path="fold4", low=0.4, high=0.6, progress=False)
    with pytest.raises(RecipeError, match="rate has no effect"):
        lb.curve_output(finder, [spectra(64, 1)] * 2, path="fold4", rate=0.1, progress=False)
    with pytest.raises(LayerError, match="returns 1 quantities, the range is of 2"):
        lb.wrap_head(finder, lb.Codec((0.0, 0.0), (1.0, 1.0)))
    ordered = [(x, y) for y in torch.linspace(0, 1, 40) for x in [spectra(8, 1)[0]] for y in [y.expand(8, 1)]]
    _, made = lb.curve_output(finder, lambda _: iter(ordered), path="fold4", progress=False)
    assert made.codec is not None
    assert made.codec.high == pytest.approx(1.01)  # of a whole epoch


def test_codecs_read_names_and_lists() -> None:
    codec = lb.Codec([0.0, 1.0], [1.0, 2.0], "snake6")  # type: ignore[arg-type]
    assert codec == lb.Codec((0.0, 1.0), (1.0, 2.0), Snake(6))
    with pytest.raises(RecipeError, match="2 to 8, or 16"):
        lb.Codec(0.0, 1.0, Fold(4), bits=12)


def test_a_head_that_did_not_learn_is_told(finder: nn.Module) -> None:
    batches = [spectra(256, seed) for seed in (1, 2)]
    with pytest.warns(lb.TrainingWarning, match="train for longer"):
        lb.curve_output(finder, batches, path="snake16", epochs=1, rate=1e-6, progress=False)


def test_a_learned_table_is_used_by_the_decoder() -> None:
    codec = lb.Codec(0.0, 1.0, Snake(4))
    q = torch.rand(600_000, 1, generator=torch.Generator().manual_seed(0))
    noisy = codec.encode(q) + 0.1 * torch.randn(600_000, 2, generator=torch.Generator().manual_seed(1))
    table = learned_table(codec, noisy[:500_000], q[:500_000])
    plain, learned = lb.Decoder(codec), lb.Decoder(codec, table=table)
    before, after = ((one(noisy[500_000:]) - q[500_000:]).square().mean().sqrt() for one in (plain, learned))
    assert after < 0.98 * before
    with pytest.raises(RecipeError, match="does not fit"):
        lb.Decoder(codec, kind="arithmetic", table=table)
