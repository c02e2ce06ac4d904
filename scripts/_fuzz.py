"""What scripts/fuzz runs: random layers and networks, each compared with a reference.

Everything about a case follows from its number, so that one that fails can be made again alone:
``--first NUMBER --count 1``.
"""

import argparse
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from onnx_quantized import qlinear_conv
from quantized_models import OPERATORS, QDQ, Quantized, by_onnxruntime, grown

import tvm_directconv as dc
from tvm_directconv.deploy.emulated import emulated
from tvm_directconv.epilogue import ACTIVATIONS
from tvm_directconv.errors import BlockingError, ModelError, WorkloadError

EMULATED = ("cortex-a53", "cortex-a72", "cortex-a76", "armv7", "rv64gcv", "spacemit-x60")
# What is exact on whole numbers; others are rounded.
EXACT = ("none", "relu", "relu6", "leaky_relu")
SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 14, 17, 19, 27, 28, 31)
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 17, 20, 24, 31, 32, 33, 40, 48, 56, 64, 112)
TOLERANCE = 2e-4


class Wrong(Exception):
    """A result that is not the reference's."""


def main() -> int:
    warnings.simplefilter("ignore", dc.ModelWarning)
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("what", choices=CASES)
    parser.add_argument("--count", type=int, default=100, help="of cases; default: 100")
    parser.add_argument("--first", type=int, default=0, help="number of the first; default: 0")
    parser.add_argument(
        "--emulate", action="store_true", help="ARM and RISC-V processors, in an emulator"
    )
    parser.add_argument("--device", action="append", help="instead of those; may be given again")
    args = parser.parse_args()
    devices = args.device or (list(EMULATED) if args.emulate else runnable())
    case = CASES[args.what]
    outcomes: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory(prefix="tvm_directconv-") as scratch:
        for number in range(args.first, args.first + args.count):
            device = devices[number % len(devices)]
            rng = np.random.default_rng(number)
            described: list[str] = []
            try:
                outcome = case(rng, device, args.emulate, Path(scratch), described)
            except Wrong as error:
                outcome = "wrong"
                failures.append(f"{number} on {device}: {' '.join(described)}: {error}")
            except Exception:  # Whatever it is, it is no answer to give.
                outcome = "failed"
                last = traceback.format_exc().strip().splitlines()[-1]
                failures.append(f"{number} on {device}: {' '.join(described)}: {last[:300]}")
            if outcome in ("wrong", "failed"):
                print(failures[-1], flush=True)
            outcomes[outcome] += 1
            if sys.stderr.isatty():
                print(f"\r{number}: {dict(outcomes)}", end="", file=sys.stderr)
    print(f"{args.what} on {', '.join(devices)}:")
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    return 1 if failures else 0


def runnable() -> list[str]:
    """Return the devices whose code this machine runs."""
    return [target.name for target in dc.devices() if target.is_host_runnable]


# --- Layers -------------------------------------------------------------------------------------


def pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def random_workload(rng: np.random.Generator) -> dc.ConvWorkload:
    while True:
        kernel = pick(rng, (1, 1, 2, 3, 3, 3, 4, 5, 7)), pick(rng, (1, 1, 2, 3, 3, 3, 5, 7))
        stride = pick(rng, (1, 1, 1, 2, 3)), pick(rng, (1, 1, 1, 2, 4))
        dilation = pick(rng, (1, 1, 1, 2)), pick(rng, (1, 1, 1, 2, 3))
        groups = pick(rng, (1, 1, 1, 1, 2, 3, 4))
        in_channels = pick(rng, CHANNELS) * (groups if rng.random() < 0.7 else 1)
        out_channels = pick(rng, CHANNELS) * (groups if rng.random() < 0.7 else 1)
        if rng.random() < 0.12:
            groups = in_channels
            out_channels = in_channels * pick(rng, (1, 1, 2))
        reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple(int(rng.integers(0, reach[axis % 2] + 1)) for axis in range(4))
        try:
            workload = dc.ConvWorkload(
                batch=pick(rng, (1, 1, 1, 2, 3)),
                in_channels=in_channels,
                out_channels=out_channels,
                in_height=pick(rng, SIZES),
                in_width=pick(rng, SIZES),
                kernel=kernel,
                stride=stride,
                dilation=dilation,
                padding=padding,
                groups=groups,
            )
        except WorkloadError:
            continue  # Most often a kernel that is larger than its image.
        if workload.flops < 3e8:
            return workload


def layer(
    rng: np.random.Generator, device: str, emulate: bool, scratch: Path, described: list[str]
) -> str:
    workload = random_workload(rng)
    activation = pick(rng, list(ACTIVATIONS))
    slope = 0.125 if ACTIVATIONS[activation].has_slope else 0.0
    epilogue = dc.Epilogue(bool(rng.integers(2)), bool(rng.integers(2)), activation, slope)
    threads = pick(rng, (1, 1, 2))
    layouts = [None, "NHWC", "NCHW"]
    described += [str(workload), epilogue.descriptor, f"threads={threads}"]
    layout = pick(rng, layouts)
    described.append(f"layout={layout}")
    try:
        conv = dc.build(workload, device, threads=threads, input_layout=layout, epilogue=epilogue)
    except BlockingError as error:
        return f"refused: {str(error)[:60]}"
    x, weight = dc.random_tensors(workload, int(rng.integers(1000)), integers=True)
    operands = {}
    if epilogue.bias:
        operands["bias"] = rng.integers(-8, 9, workload.out_channels).astype(np.float32)
    if epilogue.residual:
        operands["residual"] = rng.integers(-8, 9, workload.output_shape).astype(np.float32)
    if emulate:
        path = conv.export(scratch / "layer.so")
        arrays = [conv.pack_input(x), conv.pack_weight(weight)]
        arrays += [conv.pack_operand(name, array) for name, array in operands.items()]
        m = conv.manifest
        (packed,), _, _ = emulated(path, m, m.symbol, arrays, [m.output_shape])
        found = conv.unpack_output(packed)
    else:
        found = conv(x, weight, **operands)
    from tvm_directconv.reference import epilogue_reference

    wanted = epilogue_reference(dc.conv2d_reference(x, weight, workload), epilogue, **operands)
    if activation in EXACT:
        if not np.array_equal(found, wanted):
            raise Wrong(f"{(found != wanted).sum()} of {found.size} outputs differ")
    elif (error := dc.max_error(found, wanted)) > TOLERANCE:
        raise Wrong(f"error {error:g}")
    return "right"


# --- Quantised layers ---------------------------------------------------------------------------


def quantized(
    rng: np.random.Generator, device: str, emulate: bool, scratch: Path, described: list[str]
) -> str:
    """Compare a layer of whole numbers with the reference and with ONNX Runtime, bit by bit."""
    from dataclasses import replace

    workload = replace(random_workload(rng), dtype=pick(rng, ("uint8", "int8")))
    zero_point = rng.random() < 0.7
    activation = pick(rng, ("none", "none", "relu"))
    epilogue = dc.Epilogue(
        bias=bool(rng.integers(2)),
        residual=(residual := rng.random() < 0.3),
        residual_first=residual and zero_point,
        zero_point=zero_point,
        activation=activation,
        requantize=workload.dtype,
    )
    threads = pick(rng, (1, 1, 2))
    layout = pick(rng, (None, None, "NHWC", "NCHW", "NCHW8c", "NCHW32c"))
    described += [str(workload), epilogue.descriptor, f"threads={threads}", f"layout={layout}"]
    try:
        conv = dc.build(workload, device, threads=threads, input_layout=layout, epilogue=epilogue)
    except BlockingError as error:
        return f"refused: {str(error)[:60]}"
    x, weight = dc.random_tensors(workload, int(rng.integers(1000)))
    info = np.iinfo(workload.dtype)
    channels = workload.out_channels
    operands = {}
    if epilogue.bias:
        operands["bias"] = rng.integers(-9999, 9999, channels).astype(np.int32)
    products = np.prod(workload.weight_shape[1:])
    per_channel = rng.random() < 0.5
    scales = rng.uniform(0.001, 0.01, channels if per_channel else 1).astype(np.float32)
    meaning = dc.Quantization(
        float(np.float32(rng.uniform(0.01, 0.1))),
        int(rng.integers(info.min, info.max + 1)) if zero_point else 0,
        scales if per_channel else float(scales[0]),
        float(np.float32(rng.uniform(0.02, 0.2) * np.sqrt(products))),
        int(rng.integers(info.min, info.max + 1)),
        float(np.float32(rng.uniform(0.01, 0.1))),
        int(rng.integers(info.min, info.max + 1)),
        float(np.float32(rng.uniform(0.01, 0.1))),
        int(rng.integers(info.min, info.max + 1)),
    )
    if epilogue.residual:
        operands["residual"] = rng.integers(
            info.min, info.max, workload.output_shape, workload.dtype, endpoint=True
        )
    packed = conv.pack_operands(weight, meaning, **operands)
    if emulate:
        path, m = conv.export(scratch / "layer.so"), conv.manifest
        arrays = [conv.pack_input(x), conv.pack_weight(weight), *packed.values()]
        (out,), _, _ = emulated(
            path, m, m.symbol, arrays, [m.output_shape], output_types=[m.output_type.name]
        )
    else:
        out = conv.run(conv.pack_input(x), conv.pack_weight(weight), **packed)
    found = conv.unpack_output(out)
    sums = dc.conv2d_reference(x.astype(np.int64) - meaning.input_zero_point, weight, workload)
    wanted = dc.epilogue_reference(sums, epilogue, meaning, **operands)
    if not np.array_equal(found, wanted):
        raise Wrong(f"{(found != wanted).sum()} of {found.size} outputs differ")
    if activation == "none":
        first = epilogue.residual_first
        by_onnx = qlinear_conv(workload, x, weight, meaning, **operands, residual_first=first)
        if not np.array_equal(found, by_onnx):
            raise Wrong(f"{(found != by_onnx).sum()} of {found.size} differ from ONNX Runtime's")
    return "right"


# --- Networks -----------------------------------------------------------------------------------


class Grower:
    """A random ONNX graph that grows node by node from images.

    Attributes
    ----------
    tensors : dict
        Shapes of what can be read, by name.
    """

    def __init__(self, rng: np.random.Generator, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.tensors: dict[str, tuple[int, ...]] = {}

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        reduction = max(1, int(np.prod(shape[1:])))
        return self.constant(self.rng.standard_normal(shape) / reduction**0.5)

    def model(self, outputs: list[str]) -> Any:
        from onnx import TensorProto, helper

        values = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "random",
            [values(name, TensorProto.FLOAT, shape) for name, shape in self.inputs.items()],
            [values(name, TensorProto.FLOAT, self.tensors.get(name)) for name in outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def node(self, kind: str, *operands: str, outputs: int = 1, **attributes: Any) -> bool:
        """Add a node if the graph is still valid with it and its outputs have a size."""
        import onnx
        from onnx import helper

        names = [f"t{len(self.nodes)}_{n}" for n in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, operands, names, f"n{len(self.nodes)}", **attributes)
        )
        try:
            model = self.model(names)
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except Exception:
            self.nodes.pop()
            return False
        for value in inferred.graph.output:
            sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if not all(size > 0 for size in sizes) or np.prod(sizes) > 2e5:
                self.nodes.pop()
                return False
            self.tensors[value.name] = tuple(sizes)
        return True

    def grow(self) -> bool:
        """Try to add one node, of a random kind, on a random tensor, late ones more often."""
        names = [name for name, shape in self.tensors.items() if len(shape) > 1]
        x = names[-1 - int(self.rng.integers(min(3, len(names))))]
        shape = self.tensors[x]
        kinds = IMAGE_KINDS if len(shape) == 4 else OTHER_KINDS
        return bool(pick(self.rng, kinds)(self, x, shape))


def _pads(g: Grower, kernel: tuple[int, int]) -> dict[str, Any]:
    way = pick(g.rng, ("none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if way == "pads":
        return {"pads": [int(g.rng.integers(0, kernel[axis % 2])) for axis in range(4)]}
    return {} if way == "none" else {"auto_pad": way}


def _conv(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    kernel = pick(g.rng, ((1, 1), (3, 3), (3, 3), (5, 5), (1, 7), (2, 2), (3, 1)))
    groups = pick(g.rng, [n for n in (1, 1, 1, 2, 4, shape[1]) if shape[1] % n == 0])
    out = pick(g.rng, CHANNELS[:16]) * groups if groups < 8 else groups
    operands = [x, g.weights(out, shape[1] // groups, *kernel)]
    if g.rng.random() < 0.6:
        operands.append(g.weights(out))
    dilations = pick(g.rng, ([1, 1], [1, 1], [2, 2])) if kernel != (1, 1) else [1, 1]
    pads = _pads(g, kernel)
    if "auto_pad" in pads:
        dilations = [1, 1]
    return g.node(
        "Conv",
        *operands,
        kernel_shape=list(kernel),
        strides=pick(g.rng, ([1, 1], [1, 1], [2, 2], [2, 1])),
        dilations=dilations,
        group=groups,
        **pads,
    )


def _conv_transpose(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    kernel = pick(g.rng, ((2, 2), (3, 3), (4, 4)))
    groups = pick(g.rng, [n for n in (1, 1, 2) if shape[1] % n == 0])
    attributes: dict[str, Any] = {"strides": [2, 2]}
    way = pick(g.rng, ("none", "pads", "output_padding", "SAME_UPPER", "SAME_LOWER"))
    if way == "pads":
        attributes["pads"] = [int(g.rng.integers(0, 2)) for _ in range(4)]
    elif way == "output_padding":
        attributes["output_padding"] = [1, 1]
    elif way != "none":
        attributes["auto_pad"] = way
    weight = g.weights(shape[1], pick(g.rng, CHANNELS[:10]), *kernel)
    return g.node("ConvTranspose", x, weight, group=groups, **attributes)


def _pool(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    kernel = pick(g.rng, ((2, 2), (3, 3), (3, 2)))
    attributes = _pads(g, kernel)
    kind = pick(g.rng, ("MaxPool", "MaxPool", "AveragePool"))
    if kind == "AveragePool" and g.rng.random() < 0.5:
        attributes["count_include_pad"] = 1
    if g.opset >= 10 and "auto_pad" not in attributes and g.rng.random() < 0.3:
        attributes["ceil_mode"] = 1
    strides = pick(g.rng, ([1, 1], [2, 2], [2, 1], [3, 3]))
    return g.node(kind, x, kernel_shape=list(kernel), strides=strides, **attributes)


def _global(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    return g.node(pick(g.rng, ("GlobalAveragePool", "GlobalMaxPool")), x)


def _batch_norm(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    given = [g.weights(shape[1]) for _ in range(3)]
    variance = g.constant(g.rng.random(shape[1]) + 0.5)
    return g.node("BatchNormalization", x, *given, variance)


def _instance_norm(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    return g.node("InstanceNormalization", x, g.weights(shape[1]), g.weights(shape[1]))


def _unary(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    kind = pick(
        g.rng,
        ("Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "Softplus", "Abs",
         "Neg", "Exp", "Softsign", "Selu", "Floor", "Erf", "ThresholdedRelu", "Identity", "Sin"),
    )  # fmt: skip
    return g.node(kind, x)


def _clip(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    low, high = pick(g.rng, ((0.0, 6.0), (-1.0, 1.0), (0.0, 1.0)))
    if g.opset < 11:
        return g.node("Clip", x, min=low, max=high)
    return g.node("Clip", x, g.constant(low), g.constant(high))


def _prelu(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    return g.node("PRelu", x, g.weights(shape[1], *[1] * (len(shape) - 2)))


def _hard_swish(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    return g.node("HardSigmoid", x, alpha=1 / 6, beta=0.5) and g.node("Mul", x, list(g.tensors)[-1])


def _binary(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    kind = pick(g.rng, ("Add", "Add", "Mul", "Sub", "Max", "Min"))
    like = [name for name, other in g.tensors.items() if other == shape]
    way = g.rng.random()
    if way < 0.6:
        other = pick(g.rng, like)
    elif way < 0.8:
        other = g.weights(shape[1], *[1] * (len(shape) - 2))
    else:
        other = g.constant(float(g.rng.standard_normal()))
    return g.node(kind, *((x, other) if g.rng.random() < 0.7 else (other, x)))


def _concat(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    axis = pick(g.rng, [1, 1, len(shape) - 1])
    fits = [
        name
        for name, other in g.tensors.items()
        if len(other) == len(shape)
        and all(a == b for i, (a, b) in enumerate(zip(shape, other, strict=True)) if i != axis)
    ]
    others = [pick(g.rng, fits) for _ in range(int(g.rng.integers(1, 3)))]
    return g.node("Concat", x, *others, axis=axis)


def _split(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    if shape[1] < 2:
        return False
    first = int(g.rng.integers(1, shape[1]))
    sizes = [first, shape[1] - first]
    if g.opset < 13:
        return g.node("Split", x, outputs=2, axis=1, split=sizes)
    return g.node("Split", x, g.constant(sizes, np.int64), outputs=2, axis=1)


def _slice(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    axis = int(g.rng.integers(1, len(shape)))
    begin = int(g.rng.integers(0, shape[axis]))
    end = int(g.rng.integers(begin, shape[axis])) + 1
    if g.opset < 10:
        return g.node("Slice", x, starts=[begin], ends=[end], axes=[axis])
    step = pick(g.rng, (1, 1, 2, -1))
    if step < 0:
        begin, end = end - 1, begin - 1 - shape[axis]
    given = [g.constant([value], np.int64) for value in (begin, end, axis, step)]
    return g.node("Slice", x, *given)


def _pad(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    pads = [0] * (2 * len(shape))
    for axis in (-1, -2):
        pads[axis], pads[len(shape) + axis] = (int(n) for n in g.rng.integers(0, 3, 2))
    mode = pick(g.rng, ("constant", "constant", "reflect", "edge"))
    if g.opset < 11:
        return g.node("Pad", x, pads=pads, mode=mode)
    return g.node("Pad", x, g.constant(pads, np.int64), mode=mode)


def _resize(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    mode = pick(g.rng, ("nearest", "nearest", "linear"))
    scale = float(pick(g.rng, (2.0, 2.0, 1.5, 0.5, 3.0, 0.6)))
    scales = g.constant([1, 1, scale, scale])
    if g.opset < 10:
        return g.node("Upsample", x, scales, mode=mode) if scale >= 1 else False
    if g.opset < 11:
        return g.node("Resize", x, scales, mode=mode)
    ways = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    attributes: dict[str, Any] = {"coordinate_transformation_mode": pick(g.rng, ways), "mode": mode}
    if mode == "nearest":
        rounding = ("floor", "round_prefer_floor", "ceil", "round_prefer_ceil")
        attributes["nearest_mode"] = pick(g.rng, rounding)
    if g.rng.random() < 0.4:
        sizes = [*shape[:2], *(max(1, int(n * scale)) for n in shape[2:])]
        return g.node("Resize", x, "", "", g.constant(sizes, np.int64), **attributes)
    return g.node("Resize", x, "", scales, **attributes)


def _depth_to_space(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    if shape[1] % 4 == 0 and g.rng.random() < 0.6:
        mode = {"mode": pick(g.rng, ("DCR", "CRD"))} if g.opset >= 11 else {}
        return g.node("DepthToSpace", x, blocksize=2, **mode)
    return g.node("SpaceToDepth", x, blocksize=2)


def _transpose(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    return g.node("Transpose", x, perm=[int(axis) for axis in g.rng.permutation(len(shape))])


def _reshape(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    way = g.rng.random()
    if way < 0.3:
        return g.node("Flatten", x, axis=pick(g.rng, (1, 1, 2)))
    if way < 0.6 and len(shape) == 4:
        return g.node("Reshape", x, g.constant([0, shape[1], -1], np.int64))
    if len(shape) == 3:
        return g.node("Reshape", x, g.constant([shape[0], shape[1], 1, shape[2]], np.int64))
    return g.node("Reshape", x, g.constant([0, -1], np.int64))


def _shuffle(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    if shape[1] % 2:
        return False
    n, c, *rest = shape
    apart = g.constant([n, 2, c // 2, *rest], np.int64)
    back = g.constant(shape, np.int64)
    return (
        g.node("Reshape", x, apart)
        and g.node("Transpose", list(g.tensors)[-1], perm=[0, 2, 1, 3, 4])
        and g.node("Reshape", list(g.tensors)[-1], back)
    )


def _reduce(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    kind = pick(g.rng, ("ReduceMean", "ReduceMax", "ReduceL2"))
    if g.opset >= 18:
        axes = g.constant([-1], np.int64)
        return g.node(kind, x, axes, keepdims=int(g.rng.integers(2)))
    axes_ = [-1] if len(shape) < 4 or g.rng.random() < 0.5 else [2, 3]
    return g.node(kind, x, axes=axes_, keepdims=int(g.rng.integers(2)))


def _softmax(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    return g.node(pick(g.rng, ("Softmax", "LogSoftmax")), x, axis=pick(g.rng, (1, -1)))


def _gather(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    axis = int(g.rng.integers(0, len(shape)))
    if g.rng.random() < 0.4:
        index: Any = int(g.rng.integers(-shape[axis] if g.opset >= 11 else 0, shape[axis]))
    else:
        index = g.rng.integers(0, shape[axis], int(g.rng.integers(1, 5)))
    return g.node("Gather", x, g.constant(index, np.int64), axis=axis)


def _lrn(g: Grower, x: str, _: tuple[int, ...]) -> bool:
    return g.node("LRN", x, size=pick(g.rng, (3, 5)), alpha=0.1, bias=1.0)


def _squeeze_excite(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    c = shape[1]
    steps = [
        ("GlobalAveragePool", ()),
        ("Conv", (g.weights(max(1, c // 4), c, 1, 1),)),
        ("Relu", ()),
        ("Conv", (g.weights(c, max(1, c // 4), 1, 1),)),
        ("Sigmoid", ()),
    ]
    last = x
    for kind, operands in steps:
        if not g.node(kind, last, *operands):
            return False
        last = list(g.tensors)[-1]
    return g.node("Mul", x, last)


def _gemm(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    out = pick(g.rng, CHANNELS)
    if len(shape) == 2 and g.rng.random() < 0.6:
        if g.rng.random() < 0.5:
            return g.node("Gemm", x, g.weights(out, shape[1]), g.weights(out), transB=1)
        return g.node("Gemm", x, g.weights(shape[1], out), g.weights(out), alpha=0.5, beta=2.0)
    return g.node("MatMul", x, g.weights(shape[-1], out))


def _layer_norm(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    if g.opset < 17:
        return False
    return g.node("LayerNormalization", x, g.weights(shape[-1]), g.weights(shape[-1]), axis=-1)


def _attention(g: Grower, x: str, shape: tuple[int, ...]) -> bool:
    if len(shape) != 3:
        return False
    if not g.node("Transpose", x, perm=[0, 2, 1]):
        return False
    if not g.node("MatMul", x, list(g.tensors)[-1]):
        return False
    return g.node("Softmax", list(g.tensors)[-1], axis=-1) and g.node(
        "MatMul", list(g.tensors)[-1], x
    )


COMMON = [_unary, _binary, _concat, _split, _slice, _transpose, _reshape, _reduce, _softmax,
          _gather, _clip, _prelu]  # fmt: skip
IMAGE_KINDS = [*[_conv] * 14, *[_pool] * 4, *[_batch_norm] * 2, *[_binary] * 3, _conv_transpose,
               _global, _instance_norm, _hard_swish, _pad, _resize, _resize, _depth_to_space,
               _shuffle, _lrn, _squeeze_excite, _layer_norm, *COMMON]  # fmt: skip
OTHER_KINDS = [*[_gemm] * 3, _layer_norm, _attention, *COMMON]


def random_model(rng: np.random.Generator) -> Any:
    g = Grower(rng, pick(rng, (9, 10, 11, 13, 17, 18, 21)))
    for number in range(pick(rng, (1, 1, 1, 2))):
        shape = (pick(rng, (1, 1, 1, 2)), pick(rng, (1, 3, 3, 8, 20)), *rng.integers(4, 24, 2))
        g.inputs[f"x{number}"] = g.tensors[f"x{number}"] = tuple(int(n) for n in shape)
    wanted, tries = int(rng.integers(3, 12)), 0
    while len(g.nodes) < wanted and tries < 100:
        g.grow()
        tries += 1
    read = {name for node in g.nodes for name in node.input}
    ends = [name for node in g.nodes for name in node.output if name not in read]
    if rng.random() < 0.2 and g.nodes:  # What is read by others may be a result, too.
        inner = pick(rng, g.nodes).output[0]
        ends += [] if inner in ends else [inner]
    if not g.nodes or set(g.inputs) - read:
        return None
    return g.model(ends)


def network(
    rng: np.random.Generator, device: str, emulate: bool, scratch: Path, described: list[str]
) -> str:
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    onnxruntime.set_default_logger_severity(3)
    model = None
    while model is None:
        model = random_model(rng)
        if model is None:
            continue
        shapes = [
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in model.graph.input
        ]
        inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            names = [value.name for value in model.graph.input]
            feeds = dict(zip(names, inputs, strict=True))
            wanted = session.run(None, feeds)
        except Exception:
            model = None  # The reference cannot say what is right.
            continue
        if not all(np.isfinite(w).all() and w.size and np.abs(w).max() < 1e6 for w in wanted):
            model = None
    described += [f"opset {model.opset_import[0].version}:"]
    described += [node.op_type for node in model.graph.node]
    threads = pick(rng, (1, 1, 2))
    path, library = scratch / "model.onnx", scratch / "model.so"
    onnx.save(model, str(path))
    try:
        manifest = dc.compile_network(path, library, device, threads=threads, check=False)
    except ModelError as error:
        described.append(str(error))
        print(f"refused: {error}"[:300], flush=True)
        return "refused"
    if emulate:
        outputs = [port.shape for port in manifest.outputs]
        arena = (manifest.arena_bytes // 4,)
        found, _, _ = emulated(library, manifest, "main", inputs, [*outputs, arena])
        found = found[: len(outputs)]
    else:
        result = dc.load_network(library).run(*inputs)
        found = list(result) if isinstance(result, tuple) else [result]
    if not (wrong := difference(found, wanted)):
        return "right"
    # Where runtimes do not follow the standard, its own implementation says what is right.
    try:
        standard = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        raise Wrong(f"{wrong}, and ONNX's own implementation cannot run it: {error}") from None
    if difference(found, standard):
        raise Wrong(wrong)
    return "right by the standard, not by ONNX Runtime"


def quantized_network(
    rng: np.random.Generator, device: str, emulate: bool, scratch: Path, described: list[str]
) -> str:
    """Compare a quantised network with ONNX Runtime, bit by bit."""
    import onnx

    form, dtype = pick(rng, ((QDQ, np.uint8), (OPERATORS, np.uint8), (OPERATORS, np.int8)))
    shape = 1, pick(rng, (1, 3, 4, 13, 24)), pick(rng, SIZES[2:]), pick(rng, SIZES[2:])
    g = Quantized(form, dtype, *shape, seed=int(rng.integers(2**31)))
    model = g.made(*grown(g, int(rng.integers(2, 12))))
    described += [form, np.dtype(dtype).name, str(shape)]
    described += [
        node.op_type for node in model.graph.node if "quantize" not in node.op_type.lower()
    ]
    x = rng.standard_normal(shape).astype(np.float32)
    wanted = by_onnxruntime(model, x=x)
    path, library = scratch / "model.onnx", scratch / "model.so"
    onnx.save(model, str(path))
    threads = pick(rng, (1, 1, 2))
    m = dc.compile_network(path, library, device, threads=threads, check=False)
    if emulate:
        shapes, types = [port.shape for port in m.outputs], [port.dtype for port in m.outputs]
        options = {"output_types": types, "scratch_bytes": m.arena_bytes}
        found, _, _ = emulated(library, m, "main", [x], shapes, **options)
    else:
        result = dc.load_network(library).run(x)
        found = list(result) if isinstance(result, tuple) else [result]
    for one, right in zip(found, wanted, strict=True):
        if one.dtype != right.dtype or not np.array_equal(one, right):
            different = np.count_nonzero(one != right)
            raise Wrong(f"{different} of {right.size} outputs differ from ONNX Runtime's")
    return "right"


CASES: dict[str, Callable[..., str]] = {
    "layers": layer,
    "quantized": quantized,
    "networks": network,
    "quantized-networks": quantized_network,
}
"""What is made at random, compiled and compared, by name."""


def difference(found: list[np.ndarray], wanted: list[np.ndarray]) -> str:
    """Return what is wrong with outputs, empty if nothing is."""
    for one, right in zip(found, wanted, strict=True):
        if one.shape != right.shape or one.dtype != right.dtype:
            return f"{one.dtype}{one.shape} instead of {right.dtype}{right.shape}"
        error = float(np.abs(one - right).max() / max(1.0, np.abs(right).max()))
        if not error <= TOLERANCE:
            return f"error {error:g}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
