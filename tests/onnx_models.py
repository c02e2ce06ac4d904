"""Small ONNX models, what ONNX Runtime says of them, and what becomes of them here."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tvm_directconv.case import channel_block
from tvm_directconv.emit.program import Program
from tvm_directconv.hardware.lookup import device
from tvm_directconv.network.compile import compile_network
from tvm_directconv.network.network import Network, load_network
from tvm_directconv.network.onnx_import import import_onnx
from tvm_directconv.network.pipeline import passes
from tvm_directconv.network.planning import program_of
from tvm_directconv.network.rewriter import Rewriter, op_name

onnxruntime.set_default_logger_severity(3)

Shape = Sequence[int | str | None]


# 1000 scores are copied out of their blocks where the last of these is not full.
SCORES_REORDERED = int(1000 % channel_block(1000, device("native")) > 0)


class Graph:
    """A model that grows node by node.

    Weights and inputs are whole numbers, of which float32 holds every sum.
    """

    def __init__(self, **inputs: Shape) -> None:
        self.inputs = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        }
        self.constants: list[TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self._rng = np.random.default_rng(7)

    def constant(self, values: Any, name: str = "", dtype: Any = np.float32) -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *shape: int, name: str = "", most: int = 3) -> str:
        """Add a constant of random whole numbers, none of them 0."""
        values = self._rng.integers(1, most, shape, endpoint=True)
        return self.constant(values * self._rng.choice([-1, 1], shape), name)

    def node(self, kind: str, *operands: str, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        names = [f"t{number}_{n}" if outputs > 1 else f"t{number}" for n in range(outputs)]
        made = helper.make_node(kind, operands, names, f"{kind.lower()}{number}", **attributes)
        self.nodes.append(made)
        return names if outputs > 1 else names[0]

    def conv(
        self, x: str, *weight: int, bias: bool = False, most: int = 3, **attributes: Any
    ) -> str:
        """Add a convolution with random weights of this shape, OIHW."""
        operands = [x, self.integers(*weight, most=most)]
        if bias:
            operands.append(self.integers(weight[0]))
        return self.node("Conv", *operands, **attributes)

    def batch_norm(self, x: str, channels: int) -> str:
        """Add one that multiplies by and adds whole numbers."""
        scale, shift, mean = (self.integers(channels) for _ in range(3))
        variance = self.constant(np.full(channels, 0.25))
        return self.node("BatchNormalization", x, scale, shift, mean, variance, epsilon=0.0)

    def model(
        self, *outputs: str, opset: int = 17, ir_version: int = 8, domains: Sequence[str] = ()
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            list(self.inputs.values()),
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=opsets)
        if domains:
            for value in model.graph.output:  # Nothing can be inferred of strange operators.
                value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None]))
            return model
        inferred = {}
        found = onnx.shape_inference.infer_shapes(model).graph
        for value in [*found.value_info, *found.output, *found.input]:
            inferred[value.name] = value
        constants = {t.name: t for t in self.constants}
        for value in model.graph.output:
            if value.name in constants:
                t = constants[value.name]
                value.CopyFrom(helper.make_tensor_value_info(value.name, t.data_type, t.dims))
            else:
                value.CopyFrom(inferred[value.name])
        model.ir_version = ir_version
        return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model into a folder, under a name that is new there."""
    number = len(list(folder.glob("*.onnx")))
    path = folder / f"model{number}.onnx"
    onnx.save(model, str(path))
    return path


def compiled(model: onnx.ModelProto, folder: Path, **options: Any) -> Network:
    """Compile a model for this machine, and load it."""
    path = saved(model, folder)
    compile_network(path, path.with_suffix(".so"), **{"check": False, **options})
    return load_network(path.with_suffix(".so"))


def random_inputs(ports: Any, seed: int = 3) -> list[np.ndarray]:
    """Return whole numbers for the inputs of a manifest or a program."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 4, p.shape, endpoint=True).astype(p.dtype) for p in ports]


def by_onnxruntime(
    model: onnx.ModelProto, inputs: Sequence[np.ndarray], optimized: bool = False
) -> list[np.ndarray]:
    """Return ONNX Runtime's outputs, computed without its own optimizations if not asked for."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def assert_like_onnxruntime(
    model: onnx.ModelProto, folder: Path, exact: bool = True, **options: Any
) -> Network:
    """Compile a model, run it, and compare with ONNX Runtime: every bit if `exact`."""
    network = compiled(model, folder, **options)
    inputs = random_inputs(network.manifest.inputs)
    expected = by_onnxruntime(model, inputs)
    assert_equal(network.run(*inputs), expected, exact)
    return network


def assert_equal(found: Any, expected: Sequence[np.ndarray], exact: bool = True) -> None:
    found = found if isinstance(found, tuple) else (found,)
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if exact:
            np.testing.assert_array_equal(one, other)
        else:
            largest = np.abs(other).max() if other.size else 0
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * largest)


def after(model: onnx.ModelProto, folder: Path, *transforms: Any) -> Any:
    """Return a model imported and transformed by these passes."""
    module = import_onnx(saved(model, folder))
    for transform in transforms:
        module = transform(module)
    return module


def calls(module: Any) -> Counter[str]:
    """Return how often each operator is called."""
    names = (op_name(value) for _, value in Rewriter(module).bindings)
    return Counter(name.removeprefix("relax.") for name in names if name)


def planned(
    model: onnx.ModelProto, folder: Path, device_name: str = "native", threads: int = 1
) -> tuple[Any, Program]:
    """Return a model as scheduled kernels, and its program."""
    module = after(model, folder, *passes(device(device_name), threads, "model"))
    return module, program_of(module, device(device_name))
