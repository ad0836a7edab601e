"""Both runtimes load files, tell which operators run, and refuse with one line what they cannot load."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from lowbit.errors import ExportError
from lowbit.export import runtime as runtimes
from lowbit.export.onnx import Exported, export_onnx
from lowbit.export.runtime import RuntimeName, arrays, open_session
from lowbit.quantization import calibrate, quantize
from lowbit.recipe import Recipe

RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "openvino" and find_spec("openvino") is None, reason="OpenVINO is not installed"
        ),
    )
    for name in get_args(RuntimeName)
]
IMAGES = torch.linspace(-2, 2, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8).sin()


class Named(nn.Sequential):
    """Layers whose names cannot be taken for anything else."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in (
            *(("stem", nn.Conv2d(3, 8, 3)), ("relu", nn.ReLU()), ("up", nn.ConvTranspose2d(8, 4, 2, stride=2))),
            *(("conv", nn.Conv2d(4, 4, 3, bias=False)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten())),
            *(("hidden", nn.Linear(4, 8)), ("act", nn.ReLU()), ("head", nn.Linear(8, 3))),
        ):
            self.add_module(name, part)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    student = quantize(Named(), Recipe.uniform("int4", "int8"))
    calibrate(student, [IMAGES], progress=False)
    return export_onnx(student, tmp_path_factory.mktemp("export") / "low.onnx", IMAGES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same network in float."""
    torch.manual_seed(0)
    return export_onnx(Named().eval(), tmp_path_factory.mktemp("export") / "float.onnx", IMAGES)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("optimize", [True, False])
def test_a_session_runs_a_file(runtime: RuntimeName, optimize: bool, exported: Exported) -> None:
    session = open_session(exported.path, runtime=runtime, optimize=optimize)
    assert (session.inputs, len(session.outputs)) == (("input",), 1)
    with torch.no_grad():
        want = exported.model(IMAGES).numpy()
    (got,) = session.run(arrays([IMAGES], session.inputs))
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.02 * np.abs(want).max())
    (got,) = session.run(arrays([IMAGES[:1]], session.inputs))
    assert got.shape == (1, 3)


@pytest.mark.parametrize(
    ("runtime", "integer"),
    [
        (
            "onnxruntime",
            {"stem": "QLinearConv", "conv": "QLinearConv", "hidden": "QGemm", "head": "QGemm"},
        ),
        (
            "openvino",
            {
                **{"stem": "Convolution u8", "up": "Deconvolution u8", "conv": "Convolution u8"},
                **{"hidden": "FullyConnected u8", "head": "FullyConnected u8"},
            },
        ),
    ],
)
def test_kernels(runtime: RuntimeName, integer: dict[str, str], exported: Exported) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    session = open_session(exported.path, runtime=runtime)
    kernels = session.kernels()
    assert {name: kernels.get(name) for name in integer} == integer
    assert all(session.is_integer(kernel) for kernel in integer.values())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float_layers_run_as_such(runtime: RuntimeName, plain: Exported) -> None:
    session = open_session(plain.path, runtime=runtime)
    assert not any(session.is_integer(kernel) for kernel in session.kernels().values())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_operators_are_counted_once(runtime: RuntimeName, exported: Exported) -> None:
    operators = open_session(exported.path, runtime=runtime).operators()
    convolutions = Counter(kernel for kernel, _ in operators if kernel in ("QLinearConv", "Convolution u8"))
    assert sum(convolutions.values()) == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("kernel", "integer"),
    [
        *(("QLinearConv", True), ("QLinearAdd", True), ("QGemm", True), ("MatMulIntegerToFloat", True)),
        *(("Convolution u8", True), ("FullyConnected i8", True), ("Convolution bf16", False)),
        *(("Conv", False), ("FusedConv", False), ("MatMulNBits", False), ("DequantizeLinear", False)),
        *(("Conv (fused away)", False), ("FullyConnected f32", False)),
    ],
)
def test_is_integer(runtime: RuntimeName, kernel: str, integer: bool, exported: Exported) -> None:
    session = open_session(exported.path, runtime=runtime)
    own = (" " in kernel) == (runtime == "openvino")
    assert session.is_integer(kernel) == (integer and own)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_is_not_there(runtime: RuntimeName, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^no file '.*missing\.onnx'; export a model first, or check the path$"):
        open_session(tmp_path / "missing.onnx", runtime=runtime)
    with pytest.raises(ExportError, match="no file"):
        open_session(tmp_path, runtime=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"no model", lambda whole: whole[: len(whole) // 2], lambda whole: whole[40:]],
    ids=["empty", "text", "first half", "without its beginning"],
)
def test_a_damaged_file(
    runtime: RuntimeName, damage: Callable[[bytes], bytes], exported: Exported, tmp_path: Path
) -> None:
    file = tmp_path / "damaged.onnx"
    file.write_bytes(damage(exported.path.read_bytes()))
    with pytest.raises(ExportError, match=f"^{runtime} cannot load .*damaged.onnx.*intact ONNX file") as caught:
        open_session(file, runtime=runtime)
    assert "\n" not in str(caught.value)


def test_two_bits_are_not_for_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    student = quantize(Named(), Recipe.uniform("ternary", "int8"))
    calibrate(student, [IMAGES], progress=False)
    file = export_onnx(student, tmp_path / "m.onnx", IMAGES, opset=25).path
    with pytest.raises(ExportError, match="OpenVINO reads no INT2 weights; export with opset=21"):
        open_session(file, runtime="openvino")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_first_and_last_conversions_are_needed(runtime: RuntimeName, exported: Exported, plain: Exported) -> None:
    left = {name for _, names in open_session(exported.path, runtime=runtime).conversions() for name in names}
    assert not any(name.startswith("activations.input") for name in left)
    assert runtime == "openvino" or {"up.weight.dequantize", "activations.up.codes"} <= left
    kinds = {kind for kind, _ in open_session(plain.path, runtime=runtime).conversions()}
    assert not any("Quantize" in kind for kind in kinds)


def test_a_runtime_that_is_not_installed(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r"not installed; run: pip install 'lowbit\[openvino\]'"):
        open_session(exported.path, runtime="openvino")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_latency(runtime: RuntimeName, exported: Exported) -> None:
    session = open_session(exported.path, runtime=runtime)
    latency = session.latency(arrays([IMAGES], session.inputs), repeats=3, warmup=1)
    assert latency.repeats == 3
    assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_time_per_operator(runtime: RuntimeName, exported: Exported, tmp_path: Path) -> None:
    session = open_session(exported.path, runtime=runtime, profile=tmp_path)
    feed = arrays([IMAGES], session.inputs)
    for _ in range(8):
        session.run(feed)
    times = session.operator_ms()
    assert len(times) == len(session.graph()) == len(session.operators())
    assert all(0 <= ms < 1000 for ms in times)
    layers = [ms for ms, operator in zip(times, session.graph(), strict=True) if session.is_integer(operator.kind)]
    assert max(layers) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("profiled", [True, False])
def test_time_per_operator_takes_calls(
    runtime: RuntimeName, profiled: bool, exported: Exported, tmp_path: Path
) -> None:
    session = open_session(exported.path, runtime=runtime, profile=tmp_path if profiled else None)
    feed = arrays([IMAGES], session.inputs)
    for _ in range(5 if profiled else 8):
        session.run(feed)
    with pytest.raises(ExportError, match="timed from call 6 of a session with open_session"):
        session.operator_ms()


def test_arrays_wants_one_tensor_an_input() -> None:
    with pytest.raises(ValueError, match="zip"):
        arrays([IMAGES], ["a", "b"])


def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    exported = export_onnx(nn.Sequential(nn.Linear(4, 2)).eval(), tmp_path / "model.onnx", torch.zeros(2, 4))
    used = (
        "import sys\nfrom pathlib import Path\nfrom lowbit.export.runtime import open_session\n"
        f"open_session(Path({str(exported.path)!r}), runtime='openvino')\n"
        "import openvino.tools.ovc.telemetry_utils as telemetry\n"
        "print(telemetry.tm.__name__, 'openvino_telemetry' in sys.modules)"
    )
    environment = {**{k: v for k, v in os.environ.items() if k != "CI"}, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", used], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
    assert not (tmp_path / "intel").exists()
