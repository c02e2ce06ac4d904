"""The networks that come with ONNX, at their own sizes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import SCORES_REORDERED, by_onnxruntime, compiled

from tvm_directconv.hardware.lookup import device

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

# How many reorders there are. Local response normalisation wants plain tensors, as do dense layers
# that read more than one pixel. Scores may be one more.
REORDERS = {
    "bvlc_alexnet": 5,
    "densenet121": 0,
    "inception_v2": 0,
    "resnet50": 0,
    "shufflenet": 0,
    "squeezenet": 0,
    "zfnet512": 5,
}
# Where the widest vectors have half the rate, some layers prefer narrower blocks than others.
MIXED_BLOCKS = {"shufflenet": 6}
# Weights of these models are all the same number, so the outputs are, too. Networks like the others
# have random weights in tvm_directconv.bench.models.
RANDOM = ("inception_v2", "shufflenet", "squeezenet")
# GoogLeNet and VGG-16 of tests/test_models.py have the same operators.
ALIKE = ("inception_v1", "vgg19")


def test_all_are_here() -> None:
    found = {path.stem.removeprefix("light_") for path in FOLDER.glob("*.onnx")}
    assert found == {*REORDERS, *ALIKE}


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with random weights, without a softmax at its end.

    It would leave one class at 1 and all others at 0, whatever is computed before it.
    """
    rng = np.random.default_rng(0)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        shape = constants.get(node.input[0]) if node.op_type == "ConstantOfShape" else None
        if shape is None:
            nodes.append(node)
            continue
        values = rng.uniform(0.5, 1.5, shape)
        if len(shape) > 1:
            # Alternating signs, so that sums do not grow.
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        tensor = numpy_helper.from_array(values.astype(np.float32), node.output[0])
        model.graph.initializer.append(tensor)
    if nodes[-1].op_type == "Softmax":
        model.graph.output[0].name = nodes.pop().input[0]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.ir_version = 8  # Before 4, weights had to be inputs, too.
    return model


@pytest.mark.parametrize("name", REORDERS)
def test_networks_compute_what_onnx_says(tmp_path: Path, name: str) -> None:
    path = FOLDER / f"light_{name}.onnx"
    network = compiled(onnx.load(path), tmp_path)
    (port,) = network.manifest.inputs
    count = np.prod(port.shape)
    x = (np.arange(count).reshape(port.shape) / count).astype(np.float32)
    result = onnx.load_tensor(str(path.with_name(f"light_{name}_output_0.pb")))
    np.testing.assert_allclose(network.run(x), numpy_helper.to_array(result), rtol=1e-3, atol=1e-7)
    widest, *narrower = device("native").rates()
    mixed = any(rate.per_cycle > widest.per_cycle for rate in narrower)
    expected = (REORDERS | MIXED_BLOCKS if mixed else REORDERS)[name]
    assert network.manifest.reorders == expected + SCORES_REORDERED
    assert network.manifest.arena_bytes < 0.7 * network.manifest.unshared_bytes


@pytest.mark.parametrize("name", RANDOM)
def test_channels_are_told_apart(tmp_path: Path, name: str) -> None:
    model = with_weights(onnx.load(FOLDER / f"light_{name}.onnx"))
    network = compiled(model, tmp_path)
    x = np.random.default_rng(1).standard_normal(network.manifest.inputs[0].shape)
    (expected,) = by_onnxruntime(model, [x.astype(np.float32)])
    assert expected.std() > 0.1 * np.abs(expected).max()
    found = network.run(x.astype(np.float32))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
