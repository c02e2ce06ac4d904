"""The networks with random weights: ours against ONNX Runtime, at sizes that keep tests short."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_models import SCORES_REORDERED

import tvm_directconv as dc
from tvm_directconv.bench.models import MODELS, model
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.errors import ModelError
from tvm_directconv.specs import workloads
from tvm_directconv.toolchain import find_toolchain

onnxruntime.set_default_logger_severity(3)


def saved(name: str, folder: Path, **options: int) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(model(name, **options), path)
    return path


def case(path: Path, size: int, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return an input and ONNX Runtime's output."""
    x = np.random.default_rng(1).standard_normal((batch, 3, size, size)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return x, y


# The dense layers of AlexNet and VGG-16 are larger than the rest of all networks together.
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("alexnet", "vgg16")])
def test_networks_compute_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path, size=97)
    manifest = dc.compile_network(
        path, tmp_path / "net.so", threads=2, blocking="model", check=False
    )
    x, expected = case(path, 97)
    assert dc.max_error(dc.load_network(tmp_path / "net.so").run(x), expected) < 1e-4
    assert manifest.reorders == SCORES_REORDERED
    kernels = {layer.kernel for layer in manifest.layers}
    assert len(kernels) < len(manifest.layers)  # Equal layers share their kernels.
    assert not any("batch_norm" in kernel or kernel == "relu" for kernel in kernels)


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_networks_with_large_dense_layers(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path, size=67)
    dc.compile_network(path, tmp_path / "net.so", blocking="model", check=False)
    x, expected = case(path, 67)
    assert dc.max_error(dc.load_network(tmp_path / "net.so").run(x), expected) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_batches(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path, size=65, batch=2)
    dc.compile_network(path, tmp_path / "net.so", blocking="model", check=False)
    x, expected = case(path, 65, batch=2)
    assert dc.max_error(dc.load_network(tmp_path / "net.so").run(x), expected) < 1e-4


# Few kernels that are quick to compile and to emulate.
SMALL = ("squeezenet", "mobilenetv3")
MORE = ("googlenet", "resnet18", "mobilenetv1", "mobilenetv2")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *((name, "cortex-a72") for name in SMALL + MORE),
        *((name, "armv7") for name in SMALL),
        ("mobilenetv3", "rv64gcv"),
    ],
)
def test_networks_for_other_processors(name: str, device: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path, size=65)
    manifest = dc.compile_network(path, tmp_path / "net.so", device, blocking="model", check=False)
    x, expected = case(path, 65)
    target = dc.device(device)
    report = run_library(
        tmp_path / "net.so",
        "main",
        [x],
        [port.shape for port in manifest.outputs] + [(manifest.arena_bytes // 4,)],
        find_toolchain(target.triple, target.qemu_cpu),
    )
    assert dc.max_error(report.outputs[0], expected) < 1e-4
    assert report.allocations == 0


def test_convolutions_are_counted(tmp_path: Path) -> None:
    path = saved("resnet18", tmp_path, size=65)
    found = workloads(path)
    # 20 convolutions and the dense layer.
    assert sum(workload.count for workload in found) == 21
    assert len(found) == len(set(found)) < 21
    assert all(workload.name.startswith(f"{path}:") for workload in found)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ModelError, match="'lenet'"):
        model("lenet")
