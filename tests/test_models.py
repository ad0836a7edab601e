"""The networks have the sizes of their papers, can be traced, and load exactly the weights that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lowbit import models
from lowbit.data import Preprocess, digits_test, digits_train, open_data
from lowbit.errors import DataError

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
needs_cifar = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"needs the CIFAR-10 files in {CIFAR}")
IMAGE = (3, 32, 32)


def refusal(*args: object) -> str:
    """The one line that `models.load` refuses with."""
    load: Callable[..., nn.Module] = models.load
    with pytest.raises(DataError) as caught:
        load(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# The networks


@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        (models.resnet20, IMAGE, 269_722),
        (models.resnet32, IMAGE, 464_154),
        (models.resnet44, IMAGE, 658_586),
        (models.resnet56, IMAGE, 853_018),
        (lambda: models.mobilenet_v1(width=0.25), IMAGE, 215_642),
        (lambda: models.mobilenet_v2(width=0.25), IMAGE, 250_922),
        (lambda: models.vgg(depth=8), IMAGE, 3_917_386),
        (lambda: models.vgg(depth=11), IMAGE, 9_228_362),
        (lambda: models.mlp(64, 10), (1, 8, 8), 64 * 65 + 64 * 65 + 65 * 10),
        (lambda: models.mlp(5, 2, hidden=()), (5,), 12),
        (models.digits_cnn, (1, 8, 8), 19_858),
    ],
)
def test_networks_have_their_size_and_trace_to_the_same_function(
    build: Callable[[], nn.Module], shape: tuple[int, ...], expected: int
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    assert parameters(model) == expected
    inputs = torch.randn(2, *shape)
    outputs = model(inputs)
    assert outputs.ndim == 2
    assert torch.equal(torch.fx.symbolic_trace(model)(inputs), outputs)


@pytest.mark.parametrize(("build", "expected"), [(models.mobilenet_v1, 4_231_976), (models.mobilenet_v2, 3_504_872)])
def test_mobilenets_are_those_of_the_papers(build: Callable[..., nn.Sequential], expected: int) -> None:
    with torch.device("meta"):
        model = build(1000, stem_stride=2)
        assert parameters(model) == expected
        features = model.get_submodule("features")
        assert features(torch.empty(1, 3, 224, 224)).shape[2:] == (7, 7)
        assert build().get_submodule("features")(torch.empty(1, 3, 32, 32)).shape[2:] == (2, 2)


def test_the_padded_shortcut_takes_every_second_pixel_and_adds_zeros() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y = models.PaddedShortcut(2)(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_new_weights_keep_activations_at_one_scale() -> None:
    torch.manual_seed(0)
    deep = models.mlp(256, 256, hidden=(256,) * 10)
    with torch.no_grad():
        power = float(deep(torch.randn(100, 256)).square().mean())
    assert 1 < power < 4  # 2 in expectation: the factor 2 makes up for the ReLU that does not follow the head


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(DataError, match="depth is 16, expected 8 or 11"):
        models.vgg(depth=16)  # type: ignore[arg-type]


def test_the_digits_network_learns_the_digits_in_seconds() -> None:
    torch.manual_seed(0)
    inputs, labels = digits_train()
    model = models.digits_cnn()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=120)
    for _ in range(120):
        chosen = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]))
        optimizer.step()
        schedule.step()
    test_inputs, test_labels = digits_test()
    accuracy = (model.eval()(test_inputs).argmax(1) == test_labels).float().mean()
    assert accuracy > 0.97


# Loading


@needs_cifar
def test_the_pretrained_resnet_loads_and_classifies() -> None:
    model = models.load("lowbit.models:resnet20", "resnet20.safetensors", CIFAR)
    assert not model.training
    preprocess = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = open_data("test-*.parquet", folder=CIFAR, preprocess=preprocess, limit=500)
    with torch.no_grad():
        right = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in data.batches(125))
    assert right / len(data) > 0.88


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build(): return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))\n"
        "def words(): return 'words'\n"
        "def fails(): raise RuntimeError('two\\nlines')\n"
        "def broken():\n"
        "    model = nn.Linear(3, 2)\n    nn.init.constant_(model.bias, float('nan'))\n    return model\n"
    )
    return tmp_path


def weights() -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_load_takes_the_users_function_and_weights(folder: Path) -> None:
    tensors = weights()
    save_file(tensors, folder / "w.safetensors")
    model = models.load("mine.py:build", "w.safetensors", folder)
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)
    assert isinstance(models.load("mine.py:build", folder=folder), nn.Sequential)
    del tensors["1.num_batches_tracked"]  # files of old PyTorch versions lack it
    torch.save({"state_dict": tensors}, folder / "old.pt")
    assert torch.equal(models.load("mine.py:build", "old.pt", folder).state_dict()["0.weight"], tensors["0.weight"])


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    path = folder / "w.safetensors"
    where = f"weights '{path}' for 'mine.py:build': "

    def message(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, path)
        return refusal("mine.py:build", "w.safetensors", folder)

    fitting = weights()
    remedy = "; take the weights that belong to this network"
    assert message({**fitting, "0.weight": torch.ones(2, 4)}) == (
        f"{where}'0.weight' has shape [2, 4], expected [2, 3]{remedy}"
    )
    renamed = {name.replace("0.bias", "0.offset"): tensor for name, tensor in fitting.items()}
    assert message(renamed) == f"{where}no '0.bias', it has '0.offset' instead{remedy}"
    missing = {name: tensor for name, tensor in fitting.items() if name != "1.bias"}
    assert message(missing) == f"{where}no '1.bias', it has 6 others{remedy}"
    assert message({**fitting, "extra": torch.ones(1)}) == (
        f"{where}'extra' is in the file but not in the network{remedy}"
    )
    infinite = {**fitting, "1.running_var": torch.tensor([1.0, float("inf")])}
    assert "'1.running_var' in 'w.safetensors' holds NaN or infinity" in message(infinite)


def test_functions_that_build_no_network_are_refused(folder: Path) -> None:
    assert "returned str, expected an nn.Module; return the network" in refusal("mine.py:words", None, folder)
    assert "raised RuntimeError: two lines; correct it" in refusal("mine.py:fails", None, folder)
    assert "'bias' as built holds NaN or infinity" in refusal("mine.py:broken", None, folder)
    assert "'mine.py' has no 'absent'; choose from build" in refusal("mine.py:absent", None, folder)
    assert "No such file" in refusal("mine.py:build", "missing.safetensors", folder)
