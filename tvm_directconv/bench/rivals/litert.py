"""XNNPACK as LiteRT runs it."""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...workload import ConvWorkload
from .base import (
    IM2COL,
    Contestant,
    Failed,
    Prepared,
    Source,
    only_plain,
    run_converter,
    types_of,
)

_IDENTIFIER = b"TFL3"
_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Told to onnx2tf. The first is: as they are, neither mean nor deviation.
_QUANTIZE = (
    "dict(output_integer_quantized_tflite=True, quant_type=sys.argv[4], "
    "custom_input_op_name_np_data_path=[['x', sys.argv[3], [[[[0, 0, 0]]]], [[[[1, 1, 1]]]]]])"
)


@dataclass(frozen=True, kw_only=True)
class LiteRt(Contestant):
    """XNNPACK, which LiteRT leaves all convolutions to."""

    name: str = "XNNPACK"
    algorithm: str = IM2COL
    includes: str = (
        "The convolution alone, as a matrix product through pointers instead of im2col's copies: "
        "input and output have the channels last, and nothing is reordered."
    )
    colour: str = "#2ca02c"
    marker: str = "p"

    title: ClassVar = "XNNPACK in LiteRT"
    packages: ClassVar = {"ai_edge_litert": "", "flatbuffers": ", which writes its files,"}
    network_packages: ClassVar = {"onnx2tf": ", which makes .tflite files of ONNX files,"}
    network_dtypes: ClassVar = ("float32", "int8")

    def load_library(self) -> None:
        import ai_edge_litert.interpreter  # noqa: F401

    def unsupported(self, workload: ConvWorkload) -> str | None:
        return only_plain(workload, groups=workload.depthwise)

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        from ai_edge_litert.interpreter import Interpreter

        network = Interpreter(model_content=_layer(workload, weight), num_threads=threads)
        prepared = _prepared(network, x)
        operators = [step["op_name"] for step in network._get_ops_details()]
        if operators[-1] != "DELEGATE":
            raise Failed(f"XNNPACK does not take this layer; LiteRT runs {', '.join(operators)}")
        return prepared

    def convert(self, source: Source, threads: int) -> Path:
        if source.dtype != "int8":
            return _converted(source, "float32", "{}")
        samples = Path(source.float32).with_suffix(".npy")
        np.save(samples, np.ascontiguousarray(np.load(source.samples).transpose(0, 2, 3, 1)))
        try:
            return _converted(source, "integer_quant", _QUANTIZE, str(samples), "per-channel")
        except Failed:  # Some versions write no scales per channel for depthwise convolutions.
            return _converted(source, "integer_quant", _QUANTIZE, str(samples), "per-tensor")

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        from ai_edge_litert.interpreter import Interpreter

        prepared = _prepared(Interpreter(str(path), num_threads=threads), x)
        _, *how = path.parent.suffixes
        return replace(prepared, implementation=f"scales {how[0][1:]}" if how else None)


def _converted(source: Source, kind: str, options: str, *words: str) -> Path:
    """Return the .tflite file of some kind that onnx2tf makes of a model in float32."""
    onnx = Path(source.float32)
    folder = onnx.with_suffix(f".{'.'.join((kind, *words[1:]))}")
    folder.mkdir()
    # onnx2tf writes into the file that it reads.
    copy = shutil.copy(onnx, folder)
    # Without a program that it would use only where it is installed. What is wrong is said by the
    # cause of what it raises.
    program = (
        "import sys, onnx2tf\n"
        "try:\n"
        "    onnx2tf.convert(input_onnx_file_path=sys.argv[1], output_folder_path=sys.argv[2], "
        f"not_use_onnxsim=True, **{options})\n"
        "except Exception as error: sys.exit(f'{error}: {error.__cause__}')"
    )
    made = folder / f"{onnx.stem}_{kind}.tflite"
    try:
        run_converter([sys.executable, "-c", program, str(copy), str(folder), *words])
    except Failed:
        if not made.exists():  # It may fail with other kinds, which it makes later.
            raise
    return made


def _prepared(network: Any, x: np.ndarray) -> Prepared:
    network.allocate_tensors()
    (source,), (result,) = network.get_input_details(), network.get_output_details()

    def feed(image: np.ndarray) -> None:
        network.set_tensor(source["index"], np.ascontiguousarray(image.transpose(0, 2, 3, 1)))

    feed(x)  # Once, as runs leave inputs as they are.

    def output() -> np.ndarray:
        found: np.ndarray = network.get_tensor(result["index"])
        return found.transpose(0, 3, 1, 2) if found.ndim == 4 else found

    def precision() -> str:
        dtypes = {each["index"]: each["dtype"].__name__ for each in network.get_tensor_details()}
        steps = network._get_ops_details()
        return types_of(dtypes[s["inputs"][0]] for s in steps if s["op_name"] in _PRODUCTS)

    return Prepared(call=network.invoke, output=output, feed=feed, precision=precision)


def _layer(workload: ConvWorkload, weight: np.ndarray) -> bytes:
    """Return a .tflite file of one convolution, after a Pad where its own padding will not do.

    XNNPACK makes one of both.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    w = workload
    operators = schema.BuiltinOperator
    top, left, bottom, right = w.padding
    padded = (w.batch, w.in_height + top + bottom, w.in_width + left + right, w.in_channels)
    last = lambda shape: (shape[0], *shape[2:], shape[1])  # noqa: E731
    same = _same(w)
    pad = any(w.padding) and not same

    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]  # The first is that of tensors without data.
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, model.operatorCodes = [], [], []
    model.subgraphs = [graph]

    def tensor(shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.shape = list(shape)
        made.type = schema.TensorType.FLOAT32
        if data is not None:
            if data.dtype == np.int32:
                made.type = schema.TensorType.INT32
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(kind: int, inputs: list[int], output: int, name: str) -> Any:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        made = schema.OperatorT()
        made.opcodeIndex = len(model.operatorCodes)
        made.inputs, made.outputs = inputs, [output]
        made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        made.builtinOptions = getattr(schema, f"{name}T")()
        model.operatorCodes.append(code)
        graph.operators.append(made)
        return made.builtinOptions

    source = tensor(last(w.input_shape))
    graph.inputs = [source]
    if pad:
        margins = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        inner = tensor(padded)
        operator(operators.PAD, [source, tensor((4, 2), margins)], inner, "PadOptions")
        source = inner
    if w.depthwise:
        taps = weight.transpose(1, 2, 3, 0)
        kind, name = operators.DEPTHWISE_CONV_2D, "DepthwiseConv2DOptions"
    else:
        taps = weight.transpose(0, 2, 3, 1)
        kind, name = operators.CONV_2D, "Conv2DOptions"
    bias = tensor((w.out_channels,), np.zeros(w.out_channels, np.float32))
    result = tensor(last(w.output_shape))
    options = operator(kind, [source, tensor(taps.shape, taps), bias], result, name)
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.strideH, options.strideW = w.stride
    options.dilationHFactor, options.dilationWFactor = w.dilation
    if w.depthwise:
        options.depthMultiplier = 1
    graph.outputs = [result]

    builder = flatbuffers.Builder(weight.nbytes + 4096)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _same(workload: ConvWorkload) -> bool:
    """Return whether LiteRT's padding named SAME is what a convolution has."""
    w = workload
    if not any(w.padding):
        return False
    for axis, (size, out) in enumerate([(w.in_height, w.out_height), (w.in_width, w.out_width)]):
        stride = w.stride[axis]
        total = max((out - 1) * stride + w.dilated_kernel[axis] - size, 0)
        if out != -(-size // stride) or w.padding[axis] != total // 2:
            return False
    return True
