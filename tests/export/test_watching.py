"""What a file sees is counted right, alarms name what changed, and nothing else alarms."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from scipy import stats
from torch import Tensor, nn

from lowbit import files
from lowbit.drift import Shares
from lowbit.errors import DataError, RecipeError, VerificationError
from lowbit.export import watching
from lowbit.export.codes import CodeRange, code_ranges, code_tensors
from lowbit.export.onnx import Exported, export_onnx, manifest_entry, note
from lowbit.export.profiles import Profile, Profiler, TensorCounts
from lowbit.export.quantities import Distances, values_of
from lowbit.export.verify import verify
from lowbit.export.watching import Check, Watched, profile_of, watch
from lowbit.models import resnet20
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

CLASSES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))
PATCHES = CLASSES.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)[..., :8, :8]
MIX = (0.4, 0.3, 0.2, 0.1)


class Network(nn.Module):
    """Sure of which of four patterns it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.second, self.head = nn.Conv2d(8, 6, 3, stride=2), nn.Linear(54, 4)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.act(self.second(self.act(self.conv(x)))).flatten(1)))


def images(count: int, seed: int, mix: tuple[float, ...] = MIX) -> Tensor:
    """Noisy patterns of changing brightness, with a color cast; pixels of an image depend on each other `[n,3,8,8]`."""
    generator = np.random.default_rng(seed)
    kinds = torch.from_numpy(generator.choice(4, count, p=np.array(mix) / sum(mix)))
    noise = torch.from_numpy(generator.normal(size=(count, 3, 8, 8))).float()
    light = torch.from_numpy(generator.normal(size=(count, 1, 1, 1))).float()
    return 0.8 * PATCHES[kinds] + 0.5 * noise + 0.3 * light + torch.tensor([0.4, 0.0, -0.4])[:, None, None]


def fitted() -> Network:
    """Its last layer is fitted to the patterns, in closed form."""
    model = Network().eval()
    data = torch.cat([images(200, k, tuple(float(i == k) for i in range(4))) for k in range(4)])
    with torch.no_grad():
        features = model.act(model.second(model.act(model.conv(data)))).flatten(1)
        wide = torch.cat([features, torch.ones(800, 1)], 1).double()
        wanted = 4 * nn.functional.one_hot(torch.arange(4).repeat_interleave(200)).double()
        solved = torch.linalg.solve(wide.T @ wide + torch.eye(wide.shape[1]), wide.T @ wanted).float()
        model.head.weight.copy_(solved[:-1].T)
        model.head.bias.copy_(solved[-1])
    return model


MODEL = fitted()
OLD = images(400, 100)


def parts(data: Tensor) -> list[Tensor]:
    return list(torch.split(data, 100))


def exported(folder: Path, activations: str = "int8", weights: str = "int8") -> Exported:
    student = quantize(MODEL, Recipe.uniform(weights, activations))
    calibrate(student, parts(OLD), progress=False)
    file = export_onnx(student, folder / "m.onnx", OLD[:2])
    verify(file, parts(OLD), float_model=MODEL, progress=False)
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("file"))


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(MODEL, tmp_path_factory.mktemp("float") / "m.onnx", OLD[:2]).path


@pytest.fixture
def copied(file: Exported, tmp_path: Path) -> Path:
    for name in ("m.onnx", "manifest.json"):
        shutil.copy(file.path.parent / name, tmp_path)
    return tmp_path / "m.onnx"


def seen(file: Exported | Path, data: Tensor, **options: Any) -> Watched:
    path = file.path if isinstance(file, Exported) else file
    return watch(path, parts(data), progress=False, **options)


def kinds(found: Watched) -> set[str]:
    return {alarm.kind for alarm in found.alarms}


def change(path: Path, **section: object) -> None:
    note(path, {"watch": {**cast(dict[str, object], manifest_entry(path)["watch"]), **section}})


# What is counted


class OneOutput(Network):
    """The leaning to class 0 of two, as a logit or a probability."""

    def __init__(self, probability: bool) -> None:
        super().__init__()
        self.load_state_dict(MODEL.state_dict())
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 1]`."""
        classes = super().forward(x)
        leaning = classes[:, :1] - classes[:, 1:2]
        return torch.sigmoid(leaning) if self.probability else leaning


@pytest.mark.parametrize("probability", [False, True])
def test_a_single_output_is_read_alike_in_any_batches(probability: bool, tmp_path: Path) -> None:
    """A logit between 0 and 1, alone in its batch, looks like a probability; the manifest says what outputs are."""
    model = OneOutput(probability).eval()
    student = quantize(model, Recipe.uniform("int8", "int8"))
    calibrate(student, parts(OLD), progress=False)
    made = export_onnx(student, tmp_path / "m.onnx", OLD[:2])
    verify(made, [*torch.split(OLD[:20], 1), OLD[20:]], float_model=model, progress=False)
    output = profile_of(made.path).output
    assert output is not None
    assert output.probability is probability
    floats = export_onnx(model, tmp_path / "floats" / "m.onnx", OLD[:2]).path
    with torch.no_grad():
        ones = int((model(OLD)[:, 0] > (0.5 if probability else 0.0)).sum())
    assert dict(zip(output.classes, output.counts, strict=True))[1] == pytest.approx(ones, abs=4)
    some = OLD[(model(OLD)[:, 0] > 0.1).nonzero()[:60, 0]] if not probability else OLD[:60]
    every = [watch(made.path, torch.split(some, size), reference=floats, progress=False) for size in (1, 60)]
    assert str(every[0]) == str(every[1])


@pytest.mark.parametrize("activations", ["int8", "int4", "int16"])
def test_clipping_and_shares_are_what_numpy_counts(activations: str, tmp_path: Path) -> None:
    """The reference quantizes with numpy, outside of lowbit's graph, what the float input of the first layer is."""
    made = exported(tmp_path, activations)
    graph = onnx.load(made.path).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    name = next(iter(code_tensors(graph)))
    scale, zero = float(stored[f"{name}.scale"]), int(stored[f"{name}.zero_point"])
    ends = code_ranges(graph, code_tensors(graph))[name]
    assert (ends.lowest, ends.highest, ends.zero) == (0, 2 ** int(activations[3:]) - 1, zero)
    new = images(200, 5) * 1.5
    codes = np.clip(np.rint(new.numpy() / np.float32(scale)) + zero, ends.lowest, ends.highest)
    cut = [one for one in seen(made, new).checks if one.kind == "clipping" and one.where.startswith(name)]
    assert [one.where for one in cut] == [f"{name} lowest", f"{name} highest"]
    assert [one.new for one in cut] == pytest.approx([(codes == e).mean() for e in (ends.lowest, ends.highest)])
    kept = profile_of(made.path).tensors[name]
    before = np.clip(np.rint(OLD.numpy() / np.float32(scale)) + zero, ends.lowest, ends.highest)
    assert kept.high[0] == pytest.approx((before == ends.highest).mean(), rel=1e-3)
    bins = np.searchsorted(np.array(kept.starts), before.ravel(), side="right") - 1
    counted = np.bincount(bins, minlength=len(kept.starts)) / bins.size
    assert kept.shares == pytest.approx(counted.tolist(), rel=1e-3)


def test_counting_in_parts_is_counting_at_once() -> None:
    codes = np.random.default_rng(0).binomial(255, 0.2, size=(60, 3, 5)).astype(np.uint8)
    whole, parts = (TensorCounts(CodeRange(0, 255, 0)) for _ in range(2))
    whole.add(codes, 60)
    for part in (codes[:7], codes[7:50], codes[50:]):
        parts.add(part, len(part))
    starts = whole.starts()
    assert parts.starts() == starts
    assert 8 <= len(starts) <= 12
    shares = np.stack([[((s <= row) & (row < e)).mean() for s, e in zip(starts, [*starts[1:], 256], strict=True)]
                       for row in codes.reshape(60, -1)])  # fmt: skip
    expected = Shares.measured(shares.mean(0), np.cov(shares.T), 60)
    for found in (whole, parts):
        got = found.shares(starts)
        assert got.shares == pytest.approx(expected.shares)
        assert [got.total, got.squares] == pytest.approx([expected.total, expected.squares])
        high = (codes.reshape(60, -1) == 255).mean(1)
        assert list(found.end(1)) == pytest.approx([high.mean(), high.std(ddof=1)])


@pytest.mark.parametrize(
    ("codes", "starts"),
    [
        (np.full((4, 9), 7), (0, 7, 8)),
        (np.zeros((4, 9)), (0, 1)),
        (np.full((4, 9), 15), (0, 15)),
        (np.repeat(np.arange(16), 4).reshape(4, 16), tuple(range(0, 16, 2))),
        (np.repeat([0, 3, 9, 15], 5).reshape(4, 5), (0, 1, 4, 10)),
    ],
)
def test_bins(codes: np.ndarray[Any, Any], starts: tuple[int, ...]) -> None:
    """A code alone is told from others, and a code that never comes is part of a bin that does."""
    counts = TensorCounts(CodeRange(0, 15, 0))
    counts.add(codes.astype(np.uint8), len(codes))
    assert counts.starts() == starts


def test_a_tensor_without_samples_is_left_out() -> None:
    counts = TensorCounts(CodeRange(0, 15, 0))
    counts.add(np.zeros((3, 4), np.uint8), 2)
    assert not counts.whole


def test_what_the_manifest_keeps(file: Exported) -> None:
    kept = profile_of(file.path)
    assert kept.output is not None
    outputs = lb_outputs(file.path, OLD)
    counts = dict(zip(kept.output.classes, kept.output.counts, strict=True))
    assert counts == {k: c for k, c in enumerate(np.bincount(outputs.argmax(1), minlength=4).tolist()) if c}
    ordered = np.sort(outputs, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    assert kept.output.edges == pytest.approx(np.quantile(margins, np.arange(0.1, 0.95, 0.1)).tolist(), rel=1e-4)
    assert kept.output.margins == pytest.approx([40] * 10, abs=1)
    with torch.no_grad():
        same = int((torch.from_numpy(outputs).argmax(1) == MODEL(OLD).argmax(1)).sum())
    assert kept.agreement is not None
    assert (kept.agreement.same, kept.agreement.samples, kept.samples) == (same, 400, 400)
    rows = torch.cat([OLD.mean((2, 3)), OLD.flatten(1).std(1, correction=0)[:, None]], 1).double().numpy()
    old = kept.inputs["input"].as_means(400)
    assert old.mean == pytest.approx(rows.mean(0), rel=1e-5)
    assert old.covariance == pytest.approx(np.cov(rows.T), rel=1e-3, abs=1e-6)


def lb_outputs(path: Path, data: Tensor) -> np.ndarray[Any, Any]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return cast("np.ndarray[Any, Any]", session.run(None, {session.get_inputs()[0].name: data.numpy()})[0])


def test_round_trip(file: Exported) -> None:
    kept = profile_of(file.path)
    assert Profile.model_validate_json(kept.model_dump_json()) == kept
    assert (
        Profile.model_validate(json.loads((file.path.parent / "manifest.json").read_text())["m.onnx"]["watch"]) == kept
    )


def test_the_data_themselves_have_no_drift(file: Exported) -> None:
    found = seen(file, OLD)
    assert not found.drifted
    assert max(one.effect for one in found.checks if one.kind in ("codes", "margin", "classes", "input")) < 1e-3
    assert str(found) == f"no drift: none of {len(found.checks)} checks on 400 samples differs from the manifest"


# What alarms


@pytest.mark.parametrize("count", [40, 150, 1000])
def test_equal_data_do_not_alarm(file: Exported, floats: Path, count: int) -> None:
    """Of 40 draws each, none: the chance of an alarm is below 0.1 % in each by significance alone."""
    for seed in range(40):
        found = seen(file, images(count, 1000 + seed), reference=floats)
        assert not found.drifted, found.alarms


def test_significance_alone_holds_its_level(file: Exported) -> None:
    """The chance of p below 0.01 / checks in any check, without the second threshold, is at most about 1 %."""
    false = 0
    for seed in range(150):
        found = seen(file, images(60, 5000 + seed))
        false += min(one.p for one in found.checks) * len(found.checks) < 0.01
    assert false <= stats.binom.ppf(0.999, 150, 0.01)


def darker(x: Tensor) -> Tensor:
    return x - 0.9


def wrong_mean(x: Tensor) -> Tensor:
    return x - torch.tensor([0.0, 0.5, 0.0])[:, None, None]


def permuted(x: Tensor) -> Tensor:
    return x.flip(1)


def stretched(x: Tensor) -> Tensor:
    return 2.5 * x


@pytest.mark.parametrize("changed", [darker, wrong_mean, permuted, stretched])
@pytest.mark.parametrize("seed", range(5))
def test_wrong_preprocessing_is_named(file: Exported, changed: Any, seed: int) -> None:
    found = seen(file, changed(images(200, 300 + seed)))
    alarm = found.alarms[0]
    assert (alarm.kind, alarm.where) == ("input", "input")
    assert "look at the preprocessing first (scale, mean, order of channels)" in alarm.remedy
    if changed is wrong_mean:
        assert "the mean of channel 1 is " in alarm.told
    if changed is stretched:
        names = [one.where for one in found.alarms if one.kind == "clipping"]
        assert {"activations.x highest", "activations.x lowest"} <= set(names), names
    assert str(found).startswith(
        f"drift: {len(found.alarms)} of {len(found.checks)} checks on 200 samples differ: input"
    )


def test_permuted_channels_leave_the_codes_of_the_input_as_they_were(file: Exported) -> None:
    """So only the channels' means tell."""
    found = {(one.kind, one.where): one for one in seen(file, permuted(images(200, 1))).checks}
    assert found["codes", "activations.x"].effect < 0.02
    assert found["input", "input"].effect > 2


@pytest.mark.parametrize("seed", range(5))
def test_another_mix_of_classes_is_named(file: Exported, seed: int) -> None:
    found = seen(file, images(300, 600 + seed, (0.1, 0.2, 0.3, 0.4)))
    assert "classes" in kinds(found)
    told = next(one for one in found.alarms if one.kind == "classes").told
    assert told.startswith(("class 0 is predicted for ", "class 3 is predicted for "))


def test_three_samples_never_alarm(file: Exported, floats: Path) -> None:
    for odd in (torch.full((3, 3, 8, 8), 1e3), torch.zeros(3, 3, 8, 8), images(3, 0).flip(1) * 9):
        found = seen(file, odd, reference=floats)
        assert not found.drifted
        assert str(found) == "nothing can be told: 3 new samples, expected 30 or more"
        assert min(one.p for one in found.checks) < 0.01  # it is not that nothing would have been seen


def test_many_samples_do_not_alarm_on_little(file: Exported) -> None:
    found = seen(file, images(20_000, 3) + 0.1)
    assert not found.drifted
    assert min(one.p for one in found.checks) < 0.001 / len(found.checks)


def test_agreement_that_falls_alarms(floats: Path, tmp_path: Path) -> None:
    """On inputs that leave the model unsure, the file often predicts something else."""
    file = exported(tmp_path, "int3", "int3")
    with torch.no_grad():
        many = images(20_000, 9)
        top = MODEL(many).topk(2, dim=1).values
        unsure = many[(top[:, 0] - top[:, 1]).argsort()[:300]]
    found = seen(file, unsure, reference=floats, margin=0.01)
    (alarm,) = [one for one in found.alarms if one.kind == "agreement"]
    predicted = lb_outputs(file.path, unsure).argmax(1) == lb_outputs(floats, unsure).argmax(1)
    known = profile_of(file.path).agreement
    assert known is not None
    assert (alarm.old, alarm.new) == (known.same / known.samples, predicted.mean())
    table = [[known.same, known.samples - known.same], [predicted.sum(), 300 - predicted.sum()]]
    assert alarm.p == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
    assert "agreement" not in kinds(seen(file, unsure, reference=floats, margin=0.9))
    assert not any(one.kind == "agreement" for one in seen(file, unsure).checks)


def test_alarm_names_the_layer(file: Exported) -> None:
    found = seen(file, stretched(images(200, 2)))
    first = next(one for one in found.alarms if one.kind == "codes")
    assert first.told.startswith("tensor 'activations.x', which layer 'conv' reads: ")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["drifted"] is True


def test_both_runtimes(file: Exported) -> None:
    pytest.importorskip("openvino")
    assert not seen(file, images(200, 4), runtime="openvino").drifted
    assert "input" in kinds(seen(file, permuted(images(200, 4)), runtime="openvino"))


def test_a_single_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(5, 8), nn.Linear(8, 1)
    model = nn.Sequential(first, nn.ReLU(), last).eval()
    with torch.no_grad():
        first.weight.abs_()
        last.weight.abs_()
    x = torch.randn(200, 5)
    student = quantize(model, Recipe.uniform("int8", "int8"))
    calibrate(student, [x], progress=False)
    made = export_onnx(student, tmp_path / "m.onnx", x)
    verify(made, [x], progress=False)
    assert not seen(made, torch.randn(200, 5)).drifted
    new = torch.randn(200, 5) + 1
    margin = next(one for one in seen(made, new).alarms if one.kind == "margin")
    assert margin.told.startswith("the output has a stability index of ")
    assert margin.new == pytest.approx(np.median(lb_outputs(made.path, new)), rel=1e-4)


# Quantities


class Regression(nn.Module):
    """A speed of about 10 and an angle of about 90, from the brightness of two channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        with torch.no_grad():
            self.head.weight[1] *= 40
            self.head.bias.copy_(torch.tensor([10.0, 90.0]))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.relu(self.conv(x)).mean((2, 3))))


REGRESSION = Regression().eval()


def labelled(data: Tensor) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(part, REGRESSION(part)) for part in parts(data)]


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    student = quantize(REGRESSION, Recipe.uniform("int8", "int8"))
    calibrate(student, parts(OLD), progress=False)
    made = export_onnx(student, tmp_path_factory.mktemp("regression") / "m.onnx", OLD[:2])
    result = verify(made, labelled(OLD), float_model=REGRESSION, progress=False)
    assert result.same_prediction is None
    assert result.apart is not None
    assert 0 <= result.apart < 0.05
    assert "of their standard deviation" in result.closeness
    return made.path


def test_of_quantities_values_are_kept_and_no_classes(regression: Path) -> None:
    kept, outputs = profile_of(regression), lb_outputs(regression, OLD)
    assert (kept.output, kept.agreement) == (None, None)
    assert [sum(one.counts) for one in kept.quantities] == [400, 400]
    for one, values in zip(kept.quantities, outputs.T, strict=True):
        assert one.edges == pytest.approx(np.quantile(values, np.arange(0.1, 0.95, 0.1)).tolist(), rel=1e-4)
    with torch.no_grad():
        wanted = REGRESSION(OLD).numpy().astype(float)
    squares = ((outputs - wanted) ** 2 / wanted.var(0)).mean(1)
    assert kept.distance is not None
    assert kept.distance.mean == pytest.approx(squares.mean(), rel=1e-3)
    assert kept.distance.spread == pytest.approx(squares.std(ddof=1), rel=1e-3)
    assert kept.distance.deviations == pytest.approx(wanted.std(0), rel=1e-4)
    assert Profile.model_validate_json(kept.model_dump_json()) == kept


def test_quantities_are_watched_one_by_one(regression: Path, tmp_path: Path) -> None:
    floats = export_onnx(REGRESSION, tmp_path / "float.onnx", OLD[:2]).path
    same = seen(regression, images(300, 8), reference=floats)
    assert not same.drifted
    assert {"classes", "margin", "agreement"}.isdisjoint(check.kind for check in same.checks)
    assert [check.where for check in same.checks if check.kind == "output"] == ["0", "1"]
    brighter = seen(regression, images(300, 8) * 1.5 + 0.5, reference=floats)
    assert {"output", "distance"} <= kinds(brighter)
    (distance,) = (check for check in brighter.alarms if check.kind == "distance")
    assert "standard deviation from the float model's" in distance.told


def test_only_the_quantity_that_moved_alarms(regression: Path) -> None:
    known, profiler = profile_of(regression), Profiler(onnx.load(regression).graph, "onnxruntime", quantities=True)
    outputs = lb_outputs(regression, images(300, 8)) + np.array([0, 30], np.float32)
    profiler.tensors.clear()
    profiler.add(images(300, 8), {}, outputs)
    checks = watching._quantities(known, profiler)
    assert [check.effect > check.limit and check.p < 1e-6 for check in checks] == [False, True]


def test_a_file_is_verified_again_as_quantities(regression: Path, tmp_path: Path) -> None:
    for name in ("m.onnx", "manifest.json"):
        shutil.copy(regression.parent / name, tmp_path)
    assert verify(tmp_path / "m.onnx", parts(OLD), progress=False).same_prediction is None  # the manifest says so
    assert verify(tmp_path / "m.onnx", parts(OLD), classes=True, progress=False).same_prediction is not None
    verify(tmp_path / "m.onnx", parts(OLD), reference=parts(OLD), progress=False)
    assert profile_of(tmp_path / "m.onnx").distance == profile_of(regression).distance


def test_distances_in_batches_are_those_at_once() -> None:
    generator = np.random.default_rng(0)
    wanted = generator.normal(size=(50, 3, 4, 4)) * np.array([1, 10, 100])[:, None, None] + 1000
    found = wanted + generator.normal(size=wanted.shape)
    whole, split = Distances(), Distances()
    whole.add(found, wanted)
    for part in (slice(0, 7), slice(7, 30), slice(30, 50)):
        split.add(found[part], wanted[part])
    deviations = wanted.std((0, 2, 3))
    assert split.deviations() == pytest.approx(deviations)
    assert split.of_samples() == pytest.approx(whole.of_samples())
    assert whole.largest() == pytest.approx(((found - wanted)[:, 0] ** 2).mean() ** 0.5 / deviations[0])
    assert values_of(wanted.astype(np.float32)) == pytest.approx(wanted.mean((2, 3)), rel=1e-5)
    assert values_of(generator.normal(size=(5, 384))).shape == (5, 32)
    with pytest.raises(DataError, match="returns"):
        whole.add(found[:, :2], wanted)


# The manifest


def test_size_for_resnet20(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 32, 32)
    student = quantize(resnet20().eval(), Recipe.uniform("int8", "int8"))
    calibrate(student, [x], progress=False)
    made = export_onnx(student, tmp_path / "m.onnx", x[:2])
    verify(made, parts(x), progress=False)
    section = manifest_entry(made.path)["watch"]
    assert len(profile_of(made.path).tensors) > 20
    assert len(json.dumps(section)) < 9_000
    with_it = (tmp_path / "manifest.json").stat().st_size
    note(made.path, {"watch": None})
    assert with_it - (tmp_path / "manifest.json").stat().st_size < 16_000


def test_a_new_export_forgets_what_the_older_file_saw(copied: Path) -> None:
    student = quantize(MODEL, Recipe.uniform("int4", "int8"))
    calibrate(student, [OLD], progress=False)
    export_onnx(student, copied, OLD[:2])
    with pytest.raises(DataError, match="does not tell what the file saw; run lowbit apply or lowbit pilot again"):
        seen(copied, OLD)


def test_an_old_manifest_is_refused_until_the_file_is_verified(copied: Path, floats: Path) -> None:
    entry = manifest_entry(copied)
    del entry["watch"]
    (copied.parent / "manifest.json").write_text(json.dumps({"m.onnx": entry}))
    with pytest.raises(DataError, match="does not tell what the file saw; run lowbit apply or lowbit pilot again, or "):
        seen(copied, OLD)
    verify(copied, parts(OLD), progress=False)
    assert not seen(copied, OLD).drifted
    with pytest.raises(DataError, match="does not tell how often it agrees with a float model; run lowbit apply or"):
        seen(copied, OLD, reference=floats)


def test_verifying_again_keeps_what_was_noted_unless_told_so(copied: Path) -> None:
    before = manifest_entry(copied)["watch"]
    other = permuted(OLD)
    verify(copied, [other], progress=False)
    assert manifest_entry(copied)["watch"] == before
    verify(copied, [other], reference=[other], progress=False)
    assert not seen(copied, permuted(images(200, 4))).drifted
    assert profile_of(copied).agreement is not None


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"samples": 0}, "watch: samples: expected more than 0, got 0"),
        ({"samples": 30}, "400 predictions of 30 samples"),
        ({"runtime": "tensorrt"}, "watch: runtime: "),
        ({"tensor": {}}, "watch: tensor: unknown key; did you mean 'tensors'?"),
        ({"tensors": 3}, "watch: tensors: "),
        ({"inputs": {"input": {"mean": [0.0], "covariance": []}}}, "covariance has 0 numbers, expected 1"),
        ({"inputs": {"input": {"mean": [0.0], "covariance": [-1.0]}}}, "covariance has a variance below 0"),
        ({"agreement": {"same": 3, "samples": 2}}, "3 of 2 samples agree"),
        ({"output": None}, "expected an output, of class scores, or quantities"),
        ({"output": None, "quantities": [{"edges": [], "counts": [3]}]}, "3 values of quantity 0 in 400 samples"),
        ({"output": {"classes": [1], "counts": [], "others": 0, "edges": [], "margins": [0]}}, "not one a class"),
    ],
)
def test_a_damaged_section_is_refused(copied: Path, section: dict[str, object], told: str) -> None:
    change(copied, **section)
    with pytest.raises(RecipeError) as refused:
        seen(copied, OLD)
    assert told in str(refused.value)
    assert "manifest.json, m.onnx, watch: " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("starts", lambda old: old[::-1], "starts do not ascend"),
        ("shares", lambda old: old[1:], "starts and "),
        ("shares", lambda old: [0.5 * share for share in old], "shares add up to 0.5, expected 1"),
        ("highest", lambda _: 3, "starts do not ascend up to highest"),
        ("total", lambda _: -1, "expected 0 or more"),
    ],
)
def test_a_damaged_tensor_is_refused(copied: Path, field: str, value: Any, told: str) -> None:
    tensors = cast(dict[str, dict[str, Any]], cast(dict[str, object], manifest_entry(copied)["watch"])["tensors"])
    first = next(iter(tensors.values()))
    first[field] = value(first[field])
    change(copied, tensors=tensors)
    with pytest.raises(RecipeError, match=told):
        seen(copied, OLD)


@pytest.mark.parametrize("renamed", [True, False])
def test_tensors_of_another_file_are_refused(copied: Path, renamed: bool) -> None:
    tensors = cast(dict[str, dict[str, Any]], cast(dict[str, object], manifest_entry(copied)["watch"])["tensors"])
    first = next(iter(tensors))
    if renamed:
        tensors["another"] = tensors.pop(first)
    else:
        tensors[first]["highest"] = 300
    change(copied, tensors=tensors)
    with pytest.raises(DataError, match=f"codes of a tensor '{'another' if renamed else first}' that are not the file"):
        seen(copied, OLD)


def test_a_changed_file_is_refused(copied: Path) -> None:
    copied.write_bytes(copied.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match=r"is not the file its manifest describes \(sha256 differs\)"):
        seen(copied, OLD)


def test_what_cannot_be_watched(file: Exported, tmp_path: Path) -> None:
    look = partial(watch, file.path, progress=False)
    with pytest.raises(DataError, match="got no samples to watch; give at least one batch"):
        look([])
    with pytest.raises(DataError, match=r"the file does not take inputs of shape \[2, 1, 8, 8\]"):
        look([torch.zeros(2, 1, 8, 8)])
    with pytest.raises(DataError, match="NaN or infinity"):
        look([torch.full((2, 3, 8, 8), torch.nan)])
    with pytest.raises(DataError, match="margin is 2, expected a share from 0 to below 1"):
        look([OLD], margin=2)
    with pytest.raises(DataError, match="no file"):
        look([OLD], reference=tmp_path / "no.onnx")
    assert files.sha256(file.path) == manifest_entry(file.path)["sha256"]


def test_checks_are_plain_data() -> None:
    check = Check("codes", "x", 0.1, 0.2, 1.0, "told", "remedy")
    found = Watched("m.onnx", "onnxruntime", 50, 20, (check,))
    assert str(found) == "nothing can be told: 20 samples in the manifest, expected 30 or more"
    assert found.to_dict()["enough"] is False
