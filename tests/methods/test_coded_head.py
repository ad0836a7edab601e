"""Codes of features inside of a network: where they go, and that they are those of the quantizers, in a file too."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.errors import DataError, FeatureError, LayerError
from lowbit.formats import Int
from lowbit.methods.discrimination import heads, linear
from lowbit.methods.discrimination.heads import FeatureCodes, attach_head, coded, coded_head, head_rule, head_tensors
from lowbit.methods.discrimination.linear import code_head, float_heads
from lowbit.quantizer import Quantizer

CLASSES = 3


class Net(nn.Module):
    """Maps `[N, 1, 6, 6]` to scores; its seven features are means over positions, one of them always 0."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 7, 3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(7, classes)
        with torch.no_grad():
            self.body[0].get_parameter("weight")[3] = 0.0
            self.body[0].get_parameter("bias")[3] = -1.0

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.flatten(self.pool(self.body(x))))
        return scores


class Branching(Net):
    """The same, which no tracer follows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


class Twice(Net):
    """Its ReLU runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body[1](x))


class Values(nn.Module):
    """Ends in numbers that no Linear made."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.hidden(x.flatten(1)), 1) * 2.0 if x.dim() > 9 else self.hidden(x.flatten(1))[:, :2]


def samples(count: int = 180, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose brightness and slope tell the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    ramp = torch.linspace(-1, 1, 6).expand(6, 6)
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.4
    return images + (labels[:, None, None] * ramp * 0.8 + labels[:, None, None] * 0.5)[:, None], labels


X, Y = samples()
BATCHES = [(X[i : i + 45], Y[i : i + 45]) for i in range(0, len(X), 45)]
MADE: dict[tuple[str, object], tuple[nn.Module, heads.CodedHead]] = {}


def made(codes: str = "binary", threshold: Any = "global", layer: str = "") -> tuple[nn.Module, heads.CodedHead]:
    """A network with codes; each is made once."""
    key = (f"{codes} {layer}", threshold)
    if key not in MADE:
        options: dict[str, Any] = {"codes": codes, "threshold": threshold, "layer": layer, "classifier": "logistic"}
        MADE[key] = coded_head(Net().eval(), BATCHES, **options)
    return MADE[key]


def features(model: Net, x: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    with torch.no_grad():
        found: np.ndarray[Any, np.dtype[Any]] = model.flatten(model.pool(model.body(x))).numpy()
    return found


# What the network computes


@pytest.mark.parametrize("threshold", ["global", "per-feature", 0.25])
@pytest.mark.parametrize("codes", ["binary", "ternary"])
def test_codes_are_comparisons_with_thresholds_in_units_of_the_training_data(codes: str, threshold: Any) -> None:
    network, found = made(codes, threshold)
    new, _ = samples(90, seed=5)
    train, x = features(Net().eval(), X).astype(float), features(Net().eval(), new)
    z = (x - train.mean(0)) / np.where(train.std(0) > 0, train.std(0), 1)
    tau = np.broadcast_to(found.quantizer.threshold_, 7)
    expected = (z > tau).astype(float) - ((z < -tau) if codes == "ternary" else 0)
    expected[:, 3] = 0  # always 0 in the training data
    sure = np.abs(np.abs(z) - np.abs(tau)) > 1e-4
    with torch.no_grad():
        seen = network.get_submodule("coding")(torch.from_numpy(x))
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(seen.numpy()[sure], expected[sure])
    np.testing.assert_array_equal(seen.numpy(), found.quantizer.transform(x))
    assert found.rule == {"global": "global", "per-feature": "per feature"}.get(threshold, "given")
    assert (found.features == features(Net().eval(), X)).all()


def test_the_head_is_the_classifier_that_was_fitted() -> None:
    network, found = made("ternary", "per-feature")
    new, _ = samples(90, seed=5)
    with torch.no_grad():
        scores = network(new).numpy()
    np.testing.assert_allclose(scores, found.linear.scores(features(Net().eval(), new)), rtol=1e-4, atol=1e-5)
    assert (scores.argmax(1) == found.linear.pipeline.predict(features(Net().eval(), new))).all()


def test_a_head_of_two_classes_returns_two_scores() -> None:
    x, y = samples(80, classes=2)
    network, found = coded_head(Net(2).eval(), [(x, y)], codes="binary", threshold="per-feature", classifier="svm")
    with torch.no_grad():
        scores = network(x).numpy()
    decided = found.linear.pipeline.decision_function(features(Net(2).eval(), x))
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], decided, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, found.linear.scores(features(Net(2).eval(), x)), rtol=1e-4, atol=1e-5)


def test_all_else_stays_as_it_was() -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    network, found = coded_head(model, BATCHES, threshold=0.0, codes="binary", classifier="logistic")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (found.coding, found.head, found.layer) == ("coding", "classifier", "")
    kept = {name for name, _ in network.named_parameters()}
    assert kept == {name for name, _ in model.named_parameters()}  # rules of a recipe still match
    assert not network.training


def test_codes_of_a_layer_inside_are_of_its_mean_over_positions_and_end_the_network() -> None:
    network, found = made("ternary", 0.2, "body.0")
    with torch.no_grad():
        means = Net().eval().body[0](X).mean((2, 3))
    assert np.allclose(found.features, means.numpy(), atol=1e-6)
    assert found.head == "classifier"
    assert "pool" not in dict(network.named_children())
    with torch.no_grad():
        assert (network(X).argmax(1).numpy() == found.linear.pipeline.predict(found.features)).all()


def test_a_network_without_a_graph_has_its_head_in_the_place_of_the_linear() -> None:
    network, found = coded_head(Branching().eval(), BATCHES, codes="binary", threshold="per-feature")
    assert (found.coding, found.head) == ("classifier.coding", "classifier.head")
    _, same = made("binary", "per-feature")
    np.testing.assert_array_equal(found.quantizer._cuts(np.float32)[0], same.quantizer._cuts(np.float32)[0])
    recipe = head_rule(lb.Recipe.uniform("int8", "int8"), network, found.head)
    student, _ = lb.post_train(network, recipe, BATCHES, level="fast", progress=False)
    heads.set_head_scale(student)
    (reading,) = heads._reading_codes(student)
    assert reading[0].format == Int(1)
    with torch.no_grad():
        assert (lb.freeze(student)(X).argmax(1) == network(X).argmax(1)).float().mean() > 0.97
    with pytest.raises(LayerError, match=r"layer 'pool': the model cannot be traced \(.*leave layer out"):
        coded_head(Branching().eval(), BATCHES, layer="pool")


def test_a_head_comes_back_from_its_tensors() -> None:
    for key in (("binary", "per-feature", ""), ("ternary", 0.2, "body.0")):
        network, found = made(*key)
        again = attach_head(Net().eval(), head_tensors(network, found), layer=found.layer, example=BATCHES[0])
        with torch.no_grad():
            assert torch.equal(again(X), network(X))
    tensors = head_tensors(*made("binary", "per-feature"))
    with pytest.raises(DataError, match="expected the tensors of a head; no 'bias'"):
        attach_head(Net().eval(), {k: v for k, v in tensors.items() if k != "bias"}, layer="", example=BATCHES[0])
    with pytest.raises(DataError, match=r"\[7, 3\] features and classes, the model has 7 and 4"):
        attach_head(Net(4).eval(), tensors, layer="", example=BATCHES[0])


# Gradients


def test_gradients_are_those_of_ramps_around_the_thresholds() -> None:
    above, below, scale = torch.tensor([0.5, 0.2]), torch.tensor([-0.5, -1.0]), torch.tensor([0.4, 2.0])
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None].repeat(1, 2).requires_grad_()
    weights = torch.rand(61, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (coded(x, above, below, scale) * weights).sum().backward()  # type: ignore[no-untyped-call]
    ramped = x.detach().clone().requires_grad_()
    up = ((ramped - above) / (2 * scale)).clamp(-0.5, 0.5)
    down = ((ramped - below) / (2 * scale)).clamp(-0.5, 0.5)
    ((up + down) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert ramped.grad is not None
    inside = ((x - above).abs() - scale).abs().minimum(((x - below).abs() - scale).abs()) > 1e-6  # not on a corner
    assert torch.allclose(x.grad[inside], ramped.grad[inside])
    assert inside.float().mean() > 0.9


def test_features_with_one_value_have_no_gradient() -> None:
    codes = FeatureCodes(torch.tensor([torch.inf]), torch.tensor([-torch.inf]), torch.tensor([1.0]))
    x = torch.randn(5, 1, requires_grad=True)
    codes(x).sum().backward()
    assert x.grad is not None
    assert not codes(x).any()
    assert not x.grad.any()


# Low bits, and the file


@pytest.fixture(scope="module")
def student() -> nn.Module:
    network, found = made("ternary", "per-feature")
    recipe = head_rule(lb.Recipe.uniform("int4", "int8"), network, found.head)
    done, _ = lb.post_train(network, recipe, BATCHES, level="balanced", progress=False)
    return done


def test_the_head_reads_ternary_codes_whose_scale_is_one(student: nn.Module) -> None:
    heads.set_head_scale(student)
    ((quantizer, readers),) = heads._reading_codes(student)
    assert (str(quantizer.format), float(quantizer.scale), quantizer.zero_point) == ("ternary", 1.0, None)
    assert readers == [student.get_submodule("classifier")]
    frozen = lb.freeze(student)
    assert frozen.get_submodule("classifier").input_scale == 1.0


def test_a_scale_that_training_moved_goes_into_the_weights(student: nn.Module) -> None:
    moved = copy.deepcopy(student)
    ((quantizer, _),) = heads._reading_codes(moved)
    quantizer.scale.data.fill_(0.8)
    with torch.no_grad():
        before = moved(X)
        heads.set_head_scale(moved)
        assert float(quantizer.scale) == 1.0
        assert torch.allclose(moved(X), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("codes", "told"), [("binary", ("int1", False)), ("ternary", ("ternary", True))])
def test_a_recipe_keeps_what_it_says_of_the_head_but_its_input(codes: str, told: tuple[str, bool]) -> None:
    network, _ = made(codes, "per-feature")
    recipe = lb.Recipe((lb.Rule("*", lb.Int(4), lb.Int(8)), lb.Rule("class*", lb.Int(6), lb.Int(16))))
    rule = head_rule(recipe, network, "classifier").resolve(["classifier"])["classifier"]
    assert rule is not None
    assert (str(rule.weights), str(rule.activations), rule.symmetric) == ("int6", *told)
    for weights_only in (lb.Recipe.uniform("int4", None), lb.Recipe((lb.Rule("body.0", lb.Int(4), lb.Int(8)),))):
        assert head_rule(weights_only, network, "classifier") == weights_only


def test_binary_codes_are_one_bit_to_the_head() -> None:
    network, found = made("binary", "per-feature")
    recipe = lb.Recipe.from_dict(head_rule(lb.Recipe.uniform("int8", "int8"), network, found.head).to_dict())
    student = lb.quantize(network, recipe)
    lb.calibrate(student, BATCHES, progress=False)
    heads.set_head_scale(student)
    ((quantizer, _),) = heads._reading_codes(student)
    codes = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(quantizer(codes), codes)
    assert [float(end) for end in quantizer.bounds()] == [0.0, 1.0]
    row = next(row for row in lb.coverage(student).layers if row.name == "classifier")
    assert (row.weights, row.activations) == ("int8", "int1")


def test_codes_in_the_file_are_comparisons_and_the_same_codes(student: nn.Module, tmp_path: Path) -> None:
    heads.set_head_scale(student)
    exported = lb.export_onnx(student, tmp_path / "model.onnx", X[:2])
    verified = lb.verify(exported, BATCHES)  # raises where codes differ
    assert verified.kernels["Greater"] == verified.kernels["Less"] == 1
    assert verified.kernels["QGemm"] == 1
    graph = onnx.load(exported.path)
    greater = next(node for node in graph.graph.node if node.op_type == "Greater")
    threshold = next(one for one in graph.graph.initializer if one.name == greater.input[1])
    above, below = made("ternary", "per-feature")[1].quantizer._cuts(np.float32)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(threshold).reshape(-1), above)
    ends = {"Greater": greater.output[0], "features": greater.input[0]}
    ends["Less"] = next(node for node in graph.graph.node if node.op_type == "Less").output[0]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ends.values())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    more, x, less = session.run(
        [ends[k] for k in ("Greater", "features", "Less")], {session.get_inputs()[0].name: X.numpy()}
    )
    np.testing.assert_array_equal(more, x > above)
    np.testing.assert_array_equal(less, x < below)
    assert 0.05 < more.mean() < 0.95


def test_students_learn_through_codes() -> None:
    """From the model that the codes were made of, body and all: comparisons alone would let the head learn only."""
    network, found = made("binary", "per-feature")
    recipe = head_rule(lb.Recipe.uniform("int3", "int3"), network, found.head)
    student = lb.quantize(network, recipe, fold=False)
    lb.calibrate(student, BATCHES, progress=False)
    teacher = Net().eval()
    with torch.no_grad():
        teacher.classifier.weight.copy_(network.get_parameter("classifier.weight"))
    trained, _ = lb.distill(student, teacher, BATCHES, epochs=1, batch_size=30, progress=False, quantizer="lsq")
    name = "body.0.layer.weight"
    assert not torch.equal(trained.get_parameter(name), student.get_parameter(name))
    assert isinstance(next(heads._reading_codes(trained))[0], Quantizer)


# What is chosen


def test_choices_are_made_on_the_training_data_by_what_was_asked_for() -> None:
    x, y = features(Net().eval(), X), Y.numpy()
    given = code_head(x, y, codes="ternary", threshold=0.4, classifier="svm")
    assert [(t.name, t.threshold) for t in given.tried] == [("ternary", 0.4)]
    assert given.classifier == "svm"
    own = code_head(x, y, codes="binary", threshold="per-feature", classifier="logistic")
    assert [(t.threshold, t.per_feature) for t in own.tried] == [(None, True)]
    common = code_head(x, y, codes="binary", threshold="global", classifier="logistic")
    assert not any(t.per_feature for t in common.tried)
    assert len(common.tried) > 1
    free = code_head(x, y)
    assert {t.name for t in free.tried} == {"binary", "ternary"}
    assert free.accuracy >= max(t.accuracy for t in free.tried)
    assert free.accuracy >= common.accuracy - 1e-9
    assert [one.name for one in float_heads(x, y, classifier="logistic")] == ["original", "clipped", "robust-scaled"]
    assert code_head(x, y, threshold=-0.5).name == "binary"  # which a ternary code cannot have


def test_few_rows_are_drawn_from_every_class() -> None:
    y = np.repeat([0, 1, 2], [1000, 200, 4])
    rows = linear._drawn(y, 120, 0)
    counts = np.bincount(y[rows])
    assert counts[2] >= 3
    assert abs(counts[0] / counts[1] - 5) < 0.3
    assert len(rows) <= 125


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"codes": "quaternary"}, "codes: got 'quaternary', expected auto or binary or ternary"),
        ({"threshold": "own"}, "threshold: got 'own', expected auto, global, per-feature or a number"),
        ({"threshold": float("nan")}, "threshold: got nan, expected a finite number"),
        ({"threshold": -0.5, "codes": "ternary"}, "threshold: got -0.5, expected at least 0"),
        ({"classifier": "tree"}, "classifier: got 'tree', expected linear, logistic, svm"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], told: str) -> None:
    with pytest.raises(FeatureError, match=re.escape(told)):
        coded_head(Net().eval(), BATCHES, **options)


# What cannot be


@pytest.mark.parametrize(
    ("model", "batches", "layer", "told"),
    [
        (Net(), BATCHES, "clasifier", r"layer 'clasifier' is not in the model; did you mean classifier"),
        (Net(), BATCHES, "zzzz", r"'zzzz' is not in the model; its layers are body, body.0, body.1, pool"),
        (Twice(), BATCHES, "body.1", r"layer 'body.1' runs 2 times in the model, expected once"),
        (Net(), [X], "", r"has no labels; name them"),
        (Net(), [], "", r"got no batches"),
        (Net(), [(X, Y * 0)], "", r"labels: got class 0 only"),
        (Net(), [(X, Y + 1)], "", r"classes 1 to 3, and the network returns 3 scores; expected 0 to 2"),
        (Net(), [(X, Y.float())], "", r"labels: got float32 \[180\], expected a class"),
        (Net(), [(X[:8], Y[:8])], "", r"got 2 samples of class 2, expected at least 3"),
        (Net(), [(X[:1].repeat(9, 1, 1, 1), Y[:9])], "", r"each of its 7 features has one value only on 9 samples"),
        (Net(), [(X * float("nan"), Y)], "", r"NaN|finite"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), BATCHES, "", r"expected \[N, classes\] scores"),
        (nn.Conv2d(1, 3, 3), BATCHES, "", r"expected \[N, classes\] scores"),
        (Values(), BATCHES, "", r"does not end in a Linear layer .* hidden"),
    ],
)
def test_what_cannot_have_codes(model: nn.Module, batches: Any, layer: str, told: str) -> None:
    with pytest.raises((LayerError, DataError, FeatureError), match=told):
        coded_head(model.eval(), batches, layer=layer)


def test_a_linear_layer_in_front_of_binary_codes_runs_on_integers(tmp_path: Path) -> None:
    """ONNX Runtime makes one float node of Gemm and ReLU where nothing but a comparison reads it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()
    network, found = coded_head(model, BATCHES, codes="binary", threshold=0.0, classifier="svm")
    recipe = head_rule(lb.Recipe.uniform("int8", "int8"), network, found.head)
    student, _ = lb.post_train(network, recipe, BATCHES, level="fast", progress=False)
    heads.set_head_scale(student)
    exported = lb.export_onnx(student, tmp_path / "model.onnx", X[:2])
    verified = lb.verify(exported, BATCHES)
    assert verified.layers == {"1": "QGemm", "3": "QGemm"}
    assert verified.kernels["Max"] == 1
