"""The fit loop: it learns, it can be killed anywhere, it shares its work, and it says what is wrong."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lowbit.batches import Batch, call, labels_of, output_tensor
from lowbit.errors import DataError, LowbitError, TrainingError
from lowbit.formats import Int
from lowbit.quantizer import Quantizer
from lowbit.training.keeping import Fitted
from lowbit.training.loop import Fitting, Loss, Optimizer, fit, parameter_groups, rate_share
from lowbit.training.samples import Shuffled, crop_and_flip

IMAGES = torch.randn(44, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (44,), generator=torch.Generator().manual_seed(1))
BATCHES = [(IMAGES, LABELS)]


def network(*, dropout: float = 0.2, norm: bool = True) -> nn.Sequential:
    """A small network, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        middle = [nn.BatchNorm2d(5)] if norm else []
        layers = [nn.Conv2d(3, 5, 3), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(80, 4)]
        return nn.Sequential(*layers)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    labels = labels_of(batch)
    assert labels is not None
    return functional.cross_entropy(output_tensor(call(model, batch)), labels)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models are equal in every bit."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def timeless(fitted: Fitted) -> Fitted:
    return replace(fitted, epochs=tuple(replace(epoch, seconds=0.0) for epoch in fitted.epochs))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


# It learns


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_loss_goes_down(optimizer: Optimizer) -> None:
    model = network(dropout=0)
    fitted = fit(model, cross_entropy, Shuffled(BATCHES, 11), epochs=20, rate=0.02, optimizer=optimizer)
    assert fitted.epochs[-1].loss < 0.2 < fitted.epochs[0].loss
    assert (fitted.steps, fitted.best, len(fitted.epochs)) == (80, 20, 20)
    assert not model.training
    assert cross_entropy(model, BATCHES[0]) < 0.2


def test_loss_of_an_epoch_is_the_mean_over_samples() -> None:
    batches = [(IMAGES[:40], LABELS[:40]), (IMAGES[40:], LABELS[40:])]
    expected = sum(cross_entropy(network(norm=False, dropout=0), b).item() * len(b[0]) for b in batches) / 44
    fitted = fit(network(norm=False, dropout=0), cross_entropy, batches, epochs=1, rate=0.0)
    assert fitted.epochs[0].loss == pytest.approx(expected)


def test_one_step_equals_a_bare_loop() -> None:
    model, expected = network(dropout=0), network(dropout=0)
    fit(model, cross_entropy, BATCHES, epochs=3, rate=0.01, warmup=0.0)
    expected.train()
    adam = torch.optim.Adam(expected.parameters())
    for step in range(3):
        adam.param_groups[0]["lr"] = 0.01 * rate_share(step, 3, 0.0)
        adam.zero_grad()
        torch.autograd.backward(cross_entropy(expected, BATCHES[0]))
        adam.step()
    assert same(model, expected)


def test_rate_rises_and_falls() -> None:
    shares = [rate_share(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.0, abs=1e-3)
    assert rate_share(0, 1, 0.03) == 1.0
    assert rate_share(100, 100, 0.1) == rate_share(120, 100, 0.1) == 0.0


def test_rates_follow_the_schedule() -> None:
    seen: list[int] = []
    model = network()
    fitted = fit(model, cross_entropy, Shuffled(BATCHES, 11), epochs=5, rate=0.01, warmup=0.1, before_epoch=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert [e.rate for e in fitted.epochs] == pytest.approx(
        [0.01 * rate_share(last, 20, 0.1) for last in (3, 7, 11, 15, 19)]
    )


class WithQuantizers(nn.Module):
    """A layer, a norm, and the three kinds of quantizers: fixed, learned scale, learned scale and zero point."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(108, 4), nn.LayerNorm(4)
        self.fixed, self.symmetric, self.affine = (
            Quantizer(Int(8, signed=False), symmetric=s) for s in (True, True, False)
        )
        for quantizer, scale in ((self.fixed, 0.1), (self.symmetric, 0.02), (self.affine, 3.0)):
            quantizer.scale = nn.Parameter(torch.tensor(scale), requires_grad=quantizer is not self.fixed)
        del self.affine.zero_point
        self.affine.zero_point = nn.Parameter(torch.tensor(128.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.symmetric(x.flatten(1).abs()))) + self.affine(x).mean()  # type: ignore[no-any-return]


def test_groups() -> None:
    model = WithQuantizers()
    groups = parameter_groups(model, 1e-3, 1e-2, {}, 0.5)
    found = [([id(p) for p in g["params"]], round(g["lr"], 9), g["weight_decay"]) for g in groups]
    assert found == [
        ([id(model.linear.weight)], 1e-3, 0.5),
        ([id(model.linear.bias), id(model.norm.weight), id(model.norm.bias)], 1e-3, 0),
        ([id(model.symmetric.scale)], 2e-4, 0),
        ([id(model.affine.scale)], 3e-2, 0),
        ([id(model.affine.zero_point)], 1e-2, 0),
    ]
    own, *others = parameter_groups(model, 1e-3, 1e-2, {model.symmetric.scale: 7.0}, 0.5)
    assert own["params"] == [model.symmetric.scale]
    assert (own["lr"], own["weight_decay"]) == (7.0, 0)
    assert len(others) == len(groups) - 1
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter requires gradients"):
        parameter_groups(model, 1e-3, 1e-2, {}, 0.5)


def test_clipping_limits_the_step() -> None:
    moved = {}
    for clip in (None, 0.01):
        model = network(norm=False, dropout=0)
        fit(model, cross_entropy, BATCHES, epochs=1, rate=1.0, optimizer="sgd", warmup=0.0, clip=clip)
        pairs = zip(model.parameters(), network(norm=False).parameters(), strict=True)
        moved[clip] = torch.cat([(a - b).flatten() for a, b in pairs]).norm().item()
    assert moved[0.01] == pytest.approx(0.01 * 1.9, rel=1e-3)  # Nesterov: gradient + 0.9 * momentum
    assert moved[None] > 0.05


def test_weights_decay() -> None:
    model = network(norm=False, dropout=0)
    fit(model, lambda m, b: 0 * cross_entropy(m, b), BATCHES, epochs=1, rate=0.1, weight_decay=1.0, optimizer="sgd")
    before = network(norm=False)
    assert torch.allclose(model[0].get_parameter("weight"), before[0].get_parameter("weight") * (1 - 0.19))
    assert torch.equal(model[0].get_parameter("bias"), before[0].get_parameter("bias"))


def test_best_epoch_by_score() -> None:
    weights, scores = [], iter([float("nan"), 0.1, 0.7, 0.7, 0.2])

    def score(model: nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    model = network()
    fitted = fit(model, cross_entropy, Shuffled(BATCHES, 11), epochs=5, score=score)
    assert fitted.best == 4  # of equals the last, which has learned most
    assert all(torch.equal(v, weights[3][k]) for k, v in model.state_dict().items())
    assert [e.score for e in fitted.epochs[1:]] == [0.1, 0.7, 0.7, 0.2]


def test_random_numbers_of_the_caller_stay() -> None:
    before = torch.get_rng_state()
    fit(network(), cross_entropy, Shuffled(BATCHES, 11), epochs=2, augment=crop_and_flip(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_decide() -> None:
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fit(model, cross_entropy, BATCHES, epochs=2, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])  # by dropout alone


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16(channels_last: bool) -> None:
    seen = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        output = output_tensor(call(model, batch))
        seen.append(output.dtype)
        return functional.cross_entropy(output, labels_of(batch))  # type: ignore[arg-type]

    model = network(dropout=0)
    options: dict[str, Any] = {"precision": "bf16", "channels_last": channels_last, "rate": 0.02}
    fitted = fit(model, loss, Shuffled(BATCHES, 11), epochs=20, **options)
    assert set(seen) == {torch.bfloat16}
    assert fitted.epochs[-1].loss < 0.3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    fit(model, cross_entropy, BATCHES, epochs=1)  # another precision in the same process
    with_quantizers = WithQuantizers()
    fit(with_quantizers, cross_entropy, Shuffled(BATCHES, 11), epochs=1, precision="bf16")
    assert with_quantizers.symmetric.scale != 0.02


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(TrainingError, match="fp16 trains on CUDA devices only, got cpu; use bf16"):
        fit(network(), cross_entropy, BATCHES, epochs=1, precision="fp16")


def test_an_accelerator_of_the_caller_stays() -> None:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    try:
        accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
        fit(network(), cross_entropy, BATCHES, epochs=1)
        assert accelerator.mixed_precision == "bf16"
        assert accelerator.gradient_accumulation_steps == 2
    finally:
        AcceleratorState._reset_state(True)


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    fit(network(), cross_entropy, Shuffled(BATCHES, 11), epochs=2, progress=False)
    assert not capsys.readouterr().err
    fit(network(), cross_entropy, Shuffled(BATCHES, 11), epochs=2)
    assert "epoch 2  loss 1." in capsys.readouterr().err


# Batches


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_shuffled(form: str) -> None:
    numbers = torch.arange(23)
    parts = [numbers[:10], numbers[10:]]
    batches: dict[str, list[Batch]] = {
        "tensor": list(parts),
        "tuple": [(part, -part, None) for part in parts],
        "dict": [{"x": part, "labels": -part} for part in parts],
    }
    shuffled = Shuffled(batches[form], 5, seed=3)
    first = list(shuffled(1))
    inputs = [b if isinstance(b, Tensor) else b["x"] if isinstance(b, dict) else b[0] for b in first]  # type: ignore[index]
    assert len(shuffled) == len(first) == 4
    assert len(set(torch.cat(inputs).tolist())) == 20  # type: ignore[arg-type]
    if form != "tensor":
        assert all(torch.equal(labels_of(b), -x) for b, x in zip(first, inputs, strict=True))  # type: ignore[arg-type, operator]
    assert str(list(shuffled(1, 2))) == str(first[2:])
    assert str(list(shuffled(2))) != str(first)
    assert str(list(Shuffled(batches[form], 5, seed=4)(1))) != str(first)
    assert len(Shuffled(batches[form], 100)) == 1


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "got 0 batches"),
        ([torch.ones(2, 3), torch.ones(2, 4)], "do not have one shape"),
        ([{"x": torch.ones(2)}, {"y": torch.ones(2)}], "do not have one shape"),
        ([(torch.ones(2), None), (torch.ones(2), torch.ones(2))], "do not have one shape"),
        ([(torch.ones(2), torch.ones(2)), (torch.ones(2), None)], "do not have one shape"),
        ([(torch.ones(2), torch.ones(2)), (torch.ones(2),)], "do not have one shape"),
        ([torch.ones(0, 3)], "got no samples"),
    ],
)
def test_samples_that_cannot_be_drawn(batches: list[Batch], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Shuffled(batches, 2)


class Named(nn.Module):
    """Takes keyword arguments and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(pixels)}


def test_dict_batches() -> None:
    data = Shuffled([{"pixels": IMAGES, "labels": LABELS}], 11)
    fitted = fit(Named(), cross_entropy, data, epochs=20, rate=0.02, augment=crop_and_flip(0))
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss


def test_batches_from_a_function_and_from_a_stream_of_unknown_length() -> None:
    parts = [(IMAGES[i : i + 11], LABELS[i : i + 11]) for i in range(0, 44, 11)]

    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(parts)

    def of_epoch(epoch: int) -> Iterator[Batch]:
        assert epoch in (1, 2, 3)
        return iter(parts)

    sources: list[Any] = [parts, of_epoch, DataLoader(Stream(), batch_size=None)]
    models = [network() for _ in range(3)]
    for model, batches in zip(models, sources, strict=True):
        fitted = fit(model, cross_entropy, batches, epochs=3)
        assert fitted.steps == 12
    assert same(models[0], models[1])
    assert same(models[0], models[2])


@pytest.mark.parametrize("batches", [[], iter([]), lambda epoch: [], lambda epoch: iter([]), DataLoader([])])  # type: ignore[arg-type]
def test_no_batches(batches: Any) -> None:
    with pytest.raises(TrainingError, match="got no batches; give at least one"):
        fit(network(), cross_entropy, batches, epochs=1)


def test_generator() -> None:
    with pytest.raises(TrainingError, match="got a generator, which is used up after one of 2 epochs; give a list"):
        fit(network(), cross_entropy, (b for b in BATCHES), epochs=2)
    assert fit(network(), cross_entropy, (b for b in BATCHES), epochs=1).steps == 1
    with pytest.raises(TrainingError, match="epoch 2 had no batches"):
        fit(network(), cross_entropy, lambda epoch: [] if epoch > 1 else BATCHES, epochs=2)


@pytest.mark.parametrize(
    "loss",
    [lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction="none"), lambda m, b: m(b[0]).detach().sum()],
)
def test_loss_of_a_wrong_kind(loss: Loss) -> None:
    with pytest.raises(TrainingError, match="expected a scalar that depends on what learns"):
        fit(network(), loss, BATCHES, epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "expected at least 1 of each"),
        ({"save_every": 0}, "expected at least 1 of each"),
        ({"optimizer": "adamw"}, "optimizer 'adamw' and precision 'float32'; use adam or sgd, and float32, bf16, fp16"),
        ({"precision": "int8"}, "precision 'int8'; use"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(network(), cross_entropy, BATCHES, **{"epochs": 1, **options})


def test_keywords_that_methods_pass_on() -> None:
    assert set(Fitting.__annotations__) <= set(inspect.signature(fit).parameters)


# Augmentation


def slowly_moved(images: Tensor, pixels: int, flip: bool, fill: tuple[float, ...], seed: int) -> Tensor:
    """One image at a time: pad, cut, mirror."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5 if flip else torch.zeros(count, 1, dtype=torch.bool)
    result = []
    for i in range(count):
        planes = [
            functional.pad(images[i, c], [pixels] * 4, value=(fill or (0.0,) * channels)[c]) for c in range(channels)
        ]
        cut = torch.stack(planes)[:, down[i] : down[i] + height, right[i] : right[i] + width]
        result.append(cut.flip(2) if mirrored[i] else cut)
    return torch.stack(result)


@pytest.mark.parametrize(("pixels", "flip", "fill"), [(4, True, ()), (2, False, (1.0, -2.0, 3.0)), (0, True, ())])
def test_crop_and_flip(pixels: int, flip: bool, fill: tuple[float, ...]) -> None:
    augment = crop_and_flip(pixels, flip=flip, fill=fill)
    expected = slowly_moved(IMAGES, pixels, flip, fill, 7)
    labels_in_2d = torch.ones(44, 1, 6, 6)
    for batch in (IMAGES, (IMAGES, LABELS), {"labels": labels_in_2d, "x": IMAGES}):
        before = torch.get_rng_state()
        moved = augment(batch, torch.Generator().manual_seed(7))
        assert torch.equal(torch.get_rng_state(), before)
        images = moved if isinstance(moved, Tensor) else moved["x"] if isinstance(moved, dict) else moved[0]  # type: ignore[index]
        assert isinstance(images, Tensor)
        assert torch.equal(images, expected)
        assert images.is_contiguous()
        assert labels_of(moved) is labels_of(batch)
        assert type(moved) is type(batch)


def test_crop_and_flip_of_what_is_no_image() -> None:
    with pytest.raises(TrainingError, match="no images"):
        crop_and_flip()(torch.ones(3, 4), torch.Generator())
    with pytest.raises(TrainingError, match="3 channels, fill 2 numbers"):
        crop_and_flip(fill=(1.0, 2.0))(IMAGES, torch.Generator())


# Killed and called again


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=11, shuffle=True)


def run(model: nn.Module, folder: Path | None, batches: Any = None, **changes: Any) -> Fitted:
    """A run with all that could go astray when it is resumed: 3 epochs of 4 steps, a checkpoint after every third."""

    def freeze_norm(epoch: int) -> None:
        first = model.get_submodule("1")
        if isinstance(first, nn.BatchNorm2d):
            first.train(epoch < 2)
            first.bias.requires_grad_(epoch < 2)

    options: dict[str, Any] = {
        **{"epochs": 3, "rate": 0.05, "optimizer": "sgd", "weight_decay": 1e-3, "clip": 1.0, "save_every": 3},
        **{"augment": crop_and_flip(1), "score": lambda m: -float(cross_entropy(m, BATCHES[0]))},
        **{"folder": folder, "before_epoch": freeze_norm, "loss": cross_entropy, **changes},
    }
    loss = options.pop("loss")
    return fit(model, loss, Shuffled(BATCHES, 11) if batches is None else batches, **options)


class Killed(Exception):
    pass


def killed_at(step: int) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss that ends the run at a step."""
    made = 0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal made
        made += 1
        if made > step:
            raise Killed
        return cross_entropy(model, batch)

    return loss


@pytest.mark.parametrize("source", [lambda: None, loader, lambda: lambda epoch: loader()])
@pytest.mark.parametrize("steps", [[0], [2], [3], [4], [6, 1], [10, 1, 0]])
def test_resumed_run_equals_an_uninterrupted_one(steps: list[int], source: Callable[[], Any], tmp_path: Path) -> None:
    expected_model, model = network(), network()
    expected = run(expected_model, tmp_path / "straight", source())
    for step in steps:
        with pytest.raises(Killed):
            run(network(), tmp_path / "killed", source(), loss=killed_at(step))
    fitted = run(model, tmp_path / "killed", source())
    assert timeless(fitted) == timeless(expected)
    assert same(model, expected_model)
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")


@pytest.mark.parametrize(
    "changes", [{"optimizer": "adam", "score": None}, {"channels_last": True}, {"precision": "bf16"}]
)
def test_resumed_in_other_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    expected_model, model = network(), network()
    expected = run(expected_model, None, **changes)
    with pytest.raises(Killed):
        run(network(), tmp_path, loss=killed_at(7), **changes)
    assert timeless(run(model, tmp_path, **changes)) == timeless(expected)
    assert same(model, expected_model)


def test_rates_of_scales_are_those_of_the_first_start(tmp_path: Path) -> None:
    expected_model, model = WithQuantizers(), WithQuantizers()
    model.load_state_dict(expected_model.state_dict())
    start = WithQuantizers()
    start.load_state_dict(expected_model.state_dict())
    options: dict[str, Any] = {"epochs": 3, "scale_rate": 0.1, "save_every": 1}
    fit(expected_model, cross_entropy, Shuffled(BATCHES, 11), **options)
    with pytest.raises(Killed):
        fit(start, killed_at(7), Shuffled(BATCHES, 11), folder=tmp_path, **options)
    with torch.no_grad():
        model.symmetric.scale.mul_(5)  # the checkpoint decides, whatever the model holds
    fit(model, cross_entropy, Shuffled(BATCHES, 11), folder=tmp_path, **options)
    assert same(model, expected_model)


def test_buffer_that_training_sets(tmp_path: Path) -> None:
    def with_delta(folder: Path | None, loss: Loss) -> Quantizer:
        quantizer = Quantizer(Int(8), symmetric=True)
        quantizer.scale = nn.Parameter(torch.tensor(0.02))
        model = nn.Sequential(quantizer, network())
        fit(model, loss, BATCHES, epochs=3, folder=folder, before_epoch=lambda epoch: quantizer.set_delta(epoch / 10))
        return quantizer

    with pytest.raises(Killed):
        with_delta(tmp_path, killed_at(2))
    assert float(with_delta(tmp_path, cross_entropy).delta) == pytest.approx(0.3)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"of the start\)"):
        with_delta(None, explodes_after(0))


SCRIPT = """
import sys, warnings
from pathlib import Path
import torch
warnings.simplefilter("error")
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import test_loop as tests
model = tests.network()
{body}
torch.save(model.state_dict(), Path({folder!r}) / "model.pt")
"""


def script(folder: Path, body: str) -> list[str]:
    return ["-c", SCRIPT.format(tests=str(Path(__file__).parent), body=body, folder=str(folder))]


def loaded(folder: Path) -> nn.Module:
    model = network()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model


@pytest.mark.slow
def test_killed_for_real(tmp_path: Path) -> None:
    body = f"tests.run(model, Path({str(tmp_path)!r}), epochs=60, save_every=1)"
    process = subprocess.Popen([sys.executable, *script(tmp_path, body)], stderr=subprocess.PIPE)
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.stat().st_size > 1500) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len(rows(tmp_path))
    model, expected = network(), network()
    fitted = run(model, tmp_path, epochs=60, save_every=1)
    assert done < len(rows(tmp_path)) == 60 * 5
    assert timeless(fitted) == timeless(run(expected, None, epochs=60, save_every=1))
    assert same(model, expected)


def test_finished_folder_is_read(tmp_path: Path) -> None:
    first, second = network(), network()
    fitted = run(first, tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    assert run(second, tmp_path, loss=killed_at(0)) == fitted
    assert same(first, second)
    assert not second.training
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert {p.name for p in tmp_path.iterdir()} == {"log.jsonl", "checkpoint.pt"}


def test_log(tmp_path: Path) -> None:
    fitted = run(network(), tmp_path)
    found = rows(tmp_path)
    assert [(row["step"], row["epoch"]) for row in found if "score" not in row] == [(3, 1), (6, 2), (9, 3), (12, 3)]
    epochs = [(row["epoch"], row["loss"], row["score"], row["rate"]) for row in found if "score" in row]
    assert epochs == [(e.number, e.loss, e.score, e.rate) for e in fitted.epochs]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {"data": "b"}}, "data 'a' there, 'b' here"),
        ({"rate": 0.1}, "rate 0.05 there, 0.1 here"),
        ({"clip": None}, r"clip 1\.0 there, None here"),
        ({"score": None}, "score 'given' there, 'none' here"),
        ({"batches": Shuffled(BATCHES, 22)}, "batches in an epoch 4 there, 2 here"),
    ],
)
def test_checkpoint_of_another_run(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    run(network(), tmp_path, about={"data": "a"})
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=f"{tmp_path}' holds a checkpoint of another run: {message}; give another"):
        run(network(), tmp_path, **{"about": {"data": "a"}, **changes})
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    run(network(), tmp_path)
    other = network()
    other[0] = nn.Conv2d(3, 5, (1, 3))
    with pytest.raises(
        TrainingError, match=r"parameter '0.weight' 'float32\[5, 3, 3, 3\]' there, 'float32\[5, 3, 1, 3"
    ):
        run(other, tmp_path)


@pytest.mark.parametrize("damage", ["half", "empty", "text", "other"])
def test_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    run(network(), tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    if damage == "other":
        torch.save({"options": {}}, path)
    else:
        path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"weights"}[damage])
    error = TrainingError if damage == "other" else DataError
    with pytest.raises(error, match=r"checkpoint"):
        run(network(), tmp_path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LowbitError, match="cannot write"):
        run(network(), tmp_path / "file" / "folder")


# Loss that is not finite


def explodes_after(steps: int) -> Loss:
    made = 0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal made
        made += 1
        return cross_entropy(model, batch) * (float("nan") if made > steps else 1.0)

    return loss


@pytest.mark.parametrize("keeps", [False, True])
def test_loss_that_is_not_finite(keeps: bool, tmp_path: Path) -> None:
    model, expected = network(), network()
    folder = tmp_path if keeps else None
    with pytest.raises(TrainingError) as caught:
        run(model, folder, loss=explodes_after(7))
    rate = 0.05 * rate_share(7, 12, 0.03)
    assert str(caught.value) == (
        f"the loss is nan in epoch 2, step 8 at learning rate {rate:.3g}; lower `rate` or `scale_rate`, or set `clip`"
        f"{', and give another folder' if keeps else ''} (the last good weights are those of step 6)"
    )
    with pytest.raises(Killed):
        run(expected, tmp_path / "good", loss=killed_at(6))
    assert same(model, expected)
    if keeps:
        assert timeless(run(network(), tmp_path)) == timeless(run(network(), None))


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = network()

    def spoil(_: Tensor) -> None:
        model[0].get_parameter("weight").fill_(float("inf"))

    with pytest.raises(TrainingError, match=r"weights are not finite .* of the start\)"):
        run(model, tmp_path, after_step=spoil, save_every=1)
    assert same(model, network())
    assert not (tmp_path / "checkpoint.pt").exists()


# Several processes: test_processes.py


def shared_run(model: nn.Module, folder: Path | None) -> Fitted:
    """Batches of 11, 11, 11, 11 and 3 samples, so that slices are of unequal size; no dropout."""
    parts = [(IMAGES[i : i + 11], LABELS[i : i + 11]) for i in range(0, 44, 11)]
    return run(model, folder, [*parts, (IMAGES[:3], LABELS[:3])], before_epoch=None)
