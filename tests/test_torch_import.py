"""Models of PyTorch, as torch.export saves them, against PyTorch itself."""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_directconv as dc
from tvm_directconv.errors import ModelError
from tvm_directconv.network.compile import network_workloads


@pytest.fixture(scope="module")
def torch() -> Any:
    """Return PyTorch, which scripts/test puts beside the environment."""
    sys.path.append(str(Path(sys.prefix, "torch")))
    import torch

    return torch


def test_a_file_cannot_run_what_it_likes(torch: Any, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    right, path = tmp_path / "right.pt2", tmp_path / "hostile.pt2"
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, right)
    replaced = 0
    with zipfile.ZipFile(right) as members, zipfile.ZipFile(path, "w") as changed:
        for name in members.namelist():
            data = members.read(name)
            if name.endswith(".pt"):
                pickled = io.BytesIO()
                torch.save(Hostile(), pickled)
                data, replaced = pickled.getvalue(), replaced + 1
            changed.writestr(name, data)
    assert replaced
    with pytest.raises(ModelError, match=r"objects in it that are no tensors .* TORCH_FORCE_NO"):
        dc.compile_network(path, tmp_path / "a.so")
    assert not (tmp_path / "ran").exists()
    assert network_workloads(right) == []


@pytest.fixture(scope="module")
def small(torch: Any) -> Any:
    """Return a network of what networks are made of."""
    nn = torch.nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish()
            )
            self.depthwise = nn.Sequential(
                nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
            )
            self.branch = nn.Sequential(nn.Conv2d(16, 24, 1), nn.SiLU())
            self.dropout = nn.Dropout()
            self.head = nn.Linear(40, 10)

        def forward(self, x: Any) -> Any:
            y = self.first(x)
            y = nn.functional.max_pool2d(nn.functional.relu6(self.depthwise(y) + y), 3, 2, 1)
            y = torch.cat([y, self.branch(y)], 1)
            y = nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)
            return torch.softmax(self.head(self.dropout(y)), 1)

    torch.manual_seed(0)
    model = Small()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return model.eval()


def test_an_exported_model_computes_what_pytorch_does(
    torch: Any, small: Any, tmp_path: Path
) -> None:
    x = torch.randn(2, 3, 27, 27)
    with torch.no_grad():
        expected = small(x).numpy()
        torch.export.save(torch.export.export(small, (x,)), tmp_path / "small.pt2")
    manifest = dc.compile_network(tmp_path / "small.pt2", tmp_path / "small.so", blocking="model")
    y = dc.load_network(tmp_path / "small.so").run(x.numpy())
    assert dc.max_error(y, expected) < 1e-5
    assert manifest.check.by.startswith("torch ") and manifest.check.error < 1e-5
    kernels = " ".join(layer.kernel for layer in manifest.layers)
    assert "relu6" in kernels and "hard_swish" in kernels and "residual" in kernels
    assert "batch_norm" not in kernels


@pytest.mark.usefixtures("torch")
def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'no\.pt2' does not exist"):
        dc.compile_network("no.pt2", tmp_path / "a.so")
    corrupt = tmp_path / "corrupt.pt2"
    corrupt.write_bytes(b"no zip")
    with pytest.raises(ModelError, match=r"corrupt\.pt2' is corrupt"):
        dc.compile_network(corrupt, tmp_path / "a.so")
    with pytest.raises(ModelError, match=r"size of input 'x' is given, but .*corrupt\.pt2' leaves"):
        dc.workloads(f"{corrupt}:0", input_shapes={"x": (1, 3)})


def test_sizes_that_depend_on_the_input_are_refused(torch: Any, small: Any, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 9, 9)
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=8)}}
    exported = torch.export.export(small, (x,), dynamic_shapes=batch)
    torch.export.save(exported, tmp_path / "dynamic.pt2")
    with pytest.raises(ModelError, match="fixed"):
        dc.compile_network(tmp_path / "dynamic.pt2", tmp_path / "a.so")


def test_quantised_models_compute_in_whole_numbers(torch: Any, tmp_path: Path) -> None:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    operators = torch.ops.quantized_decomposed
    random = torch.Generator().manual_seed(0)

    class Quantised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randint(-127, 128, (16, 3, 3, 3), generator=random).to(torch.int8)
            self.register_buffer("weight", weight)
            self.register_buffer("scale", torch.rand(16, generator=random) * 0.01 + 0.002)
            self.register_buffer("zero", torch.zeros(16, dtype=torch.int64))
            self.bias = torch.nn.Parameter(torch.rand(16, generator=random))

        def passed(self, x: Any, scale: float, zero: int, most: int = 255) -> Any:
            meaning = scale, zero, 0, most, torch.uint8
            numbers = operators.quantize_per_tensor(x, *meaning)
            return operators.dequantize_per_tensor(numbers, *meaning)

        def forward(self, x: Any) -> Any:
            meaning = self.scale, self.zero, 0, -127, 127, torch.int8
            weight = operators.dequantize_per_channel(self.weight, *meaning)
            x = self.passed(x, 0.02, 128)
            y = torch.relu(torch.nn.functional.conv2d(x, weight, self.bias, padding=1))
            return self.passed(y, 0.01, 3, 127)

    x = torch.randn(1, 3, 13, 11, generator=random)
    program = torch.export.export(Quantised(), (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    manifest = dc.compile_network(tmp_path / "model.pt2", tmp_path / "model.so")
    (workload,) = (layer.workload for layer in manifest.layers if layer.workload)
    assert workload.startswith("uint8_")
    found = dc.load_network(tmp_path / "model.so").run(x.numpy())
    expected = program.module()(x).detach().numpy()
    # PyTorch multiplies floats, so a number between two steps may become the other one.
    steps = np.rint((found - expected) / 0.01)
    assert np.abs(found - expected - 0.01 * steps).max() < 1e-6
    assert np.abs(steps).max() <= 1 and np.count_nonzero(steps) < 0.01 * steps.size
    assert expected.max() == np.float32(1.24)  # It is held to 127.


def test_a_scale_of_zero_is_refused(torch: Any, tmp_path: Path) -> None:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    class Quantised(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            quantize = torch.ops.quantized_decomposed.quantize_per_tensor
            return quantize(x, 0.0, 3, 0, 255, torch.uint8)

    program = torch.export.export(Quantised(), (torch.ones(1, 3),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(ModelError, match="the scale of quantize_per_tensor is 0: expected finite"):
        dc.compile_network(tmp_path / "model.pt2", tmp_path / "model.so")
