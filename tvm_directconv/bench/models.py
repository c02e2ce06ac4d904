"""Networks with random weights, as ONNX models.

What a network computes does not change how fast it does so. These have the layers of the trained
networks, and weights with which the outputs of every layer are of the order of 1, so they can be
measured and compared where no trained weights are at hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ..errors import ModelError

_OPSET = 17
_IR_VERSION = 8
_CLASSES = 1000

# The variance that the inputs of an activation need, for the mean square of its outputs to be 1.
_VARIANCES = {"": 1.0, "Relu": 2.0, "Clip": 2.0, "HardSwish": 2.5}
# Batch norms multiply variances by this on average: scale and variance are both from 0.5 to 1.5.
_NORM_GAIN = 1.19
# Of what a block adds to its input: with 1, the variance would double with every block.
_RESIDUAL_GAIN = 0.3
# Of images: cells in a row, 0 for one of each pixel; and the roots of their mean squares.
_PATTERNS = (1, 2, 4, 14, 56, 0)
_CONTRASTS = (0.35, 1.4)
# Gates of squeeze and excite have values around 1/2; the convolution after them makes up for it.
_GATE_GAIN = 1.9


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[1]


class _Builder:
    """A graph that grows by one layer with each call; tensors know their shapes."""

    def __init__(self, name: str, seed: int, shape: tuple[int, int, int, int]) -> None:
        self.name = name
        self.x = _Tensor("x", shape)
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def model(self, y: _Tensor) -> Any:
        """Return what was built, with `y`, the last tensor, as its output."""
        from onnx import TensorProto, helper

        self._nodes[-1].output[0] = "logits"
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, tensor.shape)]
            for name, tensor in (("x", self.x), ("logits", y))
        )
        graph = helper.make_graph(self._nodes, self.name, inputs, outputs, self._constants)
        return helper.make_model(
            graph,
            producer_name="tvm-directconv",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )

    def op(
        self,
        kind: str,
        inputs: Sequence[_Tensor | np.ndarray],
        *shapes: tuple[int, ...],
        **attributes: Any,
    ) -> list[_Tensor]:
        """Add an operator of some inputs and constants; there is one output for each shape."""
        from onnx import helper, numpy_helper

        name = f"{kind.lower()}{len(self._nodes)}"
        if any(size < 1 for shape in shapes for size in shape):
            _, _, height, width = self.x.shape
            raise ModelError(
                f"an input of {height}x{width} is too small for {self.name}: nothing is left of it "
                f"after {name}; expected a larger size, such as 224"
            )
        names = []
        for number, value in enumerate(inputs):
            if isinstance(value, np.ndarray):
                self._constants.append(numpy_helper.from_array(value, f"{name}_{number}"))
                names.append(f"{name}_{number}")
            else:
                names.append(value.name)
        outputs = [_Tensor(f"{name}_out{number}", shape) for number, shape in enumerate(shapes)]
        self._nodes.append(
            helper.make_node(kind, names, [t.name for t in outputs], name, **attributes)
        )
        return outputs

    def normal(self, shape: tuple[int, ...], variance: float) -> np.ndarray:
        values = self._random.standard_normal(shape, np.float32)
        values *= np.float32(np.sqrt(variance))
        return values

    def activate(self, x: _Tensor, activation: str) -> _Tensor:
        if not activation:
            return x
        bounds = [np.array(0, np.float32), np.array(6, np.float32)] if activation == "Clip" else []
        return self.op(activation, [x, *bounds], x.shape)[0]

    def conv(
        self,
        x: _Tensor,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        activation: str = "Relu",
        norm: bool = False,
        gain: float = 1.0,
    ) -> _Tensor:
        """Add a convolution, with a bias or a batch norm, and its activation.

        Padding is that of "same" if not given; `gain` is the root of the mean square of the
        outputs.
        """
        pad = kernel // 2 if padding is None else padding
        weight_shape = (channels, x.channels // groups, kernel, kernel)
        variance = gain**2 * _VARIANCES[activation] / prod(weight_shape[1:])
        if norm:
            variance /= _NORM_GAIN
        inputs: list[_Tensor | np.ndarray] = [x, self.normal(weight_shape, variance)]
        if not norm:
            inputs.append(self.normal((channels,), 0.01))
        height, width = ((size + 2 * pad - kernel) // stride + 1 for size in x.shape[2:])
        (y,) = self.op(
            "Conv",
            inputs,
            (x.shape[0], channels, height, width),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=groups,
        )
        return self.activate(self.norm(y) if norm else y, activation)

    def norm(self, x: _Tensor) -> _Tensor:
        count = (x.channels,)
        scale, variance = (self._random.uniform(0.5, 1.5, count).astype("f") for _ in range(2))
        bias, mean = (self.normal(count, 0.01) for _ in range(2))
        return self.op("BatchNormalization", [x, scale, bias, mean, variance], x.shape)[0]

    def max_pool(
        self, x: _Tensor, kernel: int = 3, stride: int = 2, padding: int = 0, ceil: bool = False
    ) -> _Tensor:
        rest = stride - 1 if ceil else 0
        height, width = ((s + 2 * padding - kernel + rest) // stride + 1 for s in x.shape[2:])
        (y,) = self.op(
            "MaxPool",
            [x],
            (*x.shape[:2], height, width),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            ceil_mode=int(ceil),
        )
        return y

    def mean(self, x: _Tensor) -> _Tensor:
        return self.op("GlobalAveragePool", [x], (*x.shape[:2], 1, 1))[0]

    def flatten(self, x: _Tensor) -> _Tensor:
        return self.op("Flatten", [x], (x.shape[0], prod(x.shape[1:])))[0]

    def dense(self, x: _Tensor, features: int = _CLASSES, activation: str = "") -> _Tensor:
        """Add a fully connected layer; as it stands it is the last one."""
        x = x if len(x.shape) == 2 else self.flatten(x)
        weight = self.normal((features, x.channels), _VARIANCES[activation] / x.channels)
        bias = self.normal((features,), 0.01)
        (y,) = self.op("Gemm", [x, weight, bias], (x.shape[0], features), transB=1)
        return self.activate(y, activation)

    def add(self, x: _Tensor, y: _Tensor) -> _Tensor:
        return self.op("Add", [x, y], x.shape)[0]

    def concat(self, *parts: _Tensor) -> _Tensor:
        shape = parts[0].shape
        channels = sum(part.channels for part in parts)
        return self.op("Concat", parts, (shape[0], channels, *shape[2:]), axis=1)[0]

    def reshape(self, x: _Tensor, *shape: int) -> _Tensor:
        return self.op("Reshape", [x, np.array(shape, np.int64)], shape)[0]


def _alexnet(b: _Builder) -> _Tensor:
    x = b.max_pool(b.conv(b.x, 64, 11, 4, 2))
    x = b.max_pool(b.conv(x, 192, 5))
    x = b.conv(b.conv(b.conv(x, 384, 3), 256, 3), 256, 3)
    x = b.dense(b.max_pool(x), 4096, "Relu")
    return b.dense(b.dense(x, 4096, "Relu"))


def _vgg16(b: _Builder) -> _Tensor:
    x = b.x
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = b.conv(x, channels, 3)
        x = b.max_pool(x, 2)
    return b.dense(b.dense(b.dense(x, 4096, "Relu"), 4096, "Relu"))


# Outputs of 1x1, 3x3 after its reduction, 5x5 after its reduction, and 1x1 after the pooling; one
# tuple for each size of images, which a pooling halves.
_INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def _googlenet(b: _Builder) -> _Tensor:
    x = b.max_pool(b.conv(b.x, 64, 7, 2), ceil=True)
    x = b.conv(b.conv(x, 64), 192, 3)
    for stage in _INCEPTIONS:
        x = b.max_pool(x, ceil=True)
        for one, reduced3, three, reduced5, five, pooled in stage:
            x = b.concat(
                b.conv(x, one),
                b.conv(b.conv(x, reduced3), three, 3),
                b.conv(b.conv(x, reduced5), five, 5),
                b.conv(b.max_pool(x, 3, 1, 1), pooled),
            )
    return b.dense(b.mean(x))


def _squeezenet(b: _Builder) -> _Tensor:
    x = b.conv(b.x, 64, 3, 2, 0)
    for stage in (((16, 64),) * 2, ((32, 128),) * 2, ((48, 192),) * 2 + ((64, 256),) * 2):
        x = b.max_pool(x, ceil=True)
        for squeezed, expanded in stage:
            x = b.conv(x, squeezed)
            x = b.concat(b.conv(x, expanded), b.conv(x, expanded, 3))
    return b.flatten(b.mean(b.conv(x, _CLASSES)))


def _basic(b: _Builder, x: _Tensor, channels: int, stride: int) -> _Tensor:
    x = b.conv(x, channels, 3, stride, norm=True)
    return b.conv(x, channels, 3, activation="", norm=True, gain=_RESIDUAL_GAIN)


def _bottleneck(
    b: _Builder, x: _Tensor, channels: int, stride: int, groups: int = 1, widening: int = 1
) -> _Tensor:
    x = b.conv(x, channels * widening, norm=True)
    x = b.conv(x, channels * widening, 3, stride, groups=groups, norm=True)
    return b.conv(x, 4 * channels, activation="", norm=True, gain=_RESIDUAL_GAIN)


def _resnet(b: _Builder, block: Callable[..., _Tensor], counts: Sequence[int]) -> _Tensor:
    x = b.max_pool(b.conv(b.x, 64, 7, 2, norm=True), padding=1)
    for stage, count in enumerate(counts):
        for number in range(count):
            stride = 2 if stage and not number else 1
            y = block(b, x, 64 << stage, stride)
            if x.shape != y.shape:
                x = b.conv(x, y.channels, stride=stride, activation="", norm=True)
            x = b.activate(b.add(x, y), "Relu")
    return b.dense(b.mean(x))


# Output channels and stride after each depthwise convolution.
_MOBILENET_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)


def _mobilenetv1(b: _Builder) -> _Tensor:
    x = b.conv(b.x, 32, 3, 2, norm=True)
    for channels, stride in _MOBILENET_V1:
        x = b.conv(x, x.channels, 3, stride, groups=x.channels, norm=True)
        x = b.conv(x, channels, norm=True)
    return b.dense(b.mean(x))


def _inverted(
    b: _Builder,
    x: _Tensor,
    kernel: int,
    expanded: int,
    channels: int,
    stride: int,
    activation: str,
    gated: bool = False,
) -> _Tensor:
    y = x
    if expanded != x.channels:
        y = b.conv(y, expanded, activation=activation, norm=True)
    y = b.conv(y, expanded, kernel, stride, groups=expanded, activation=activation, norm=True)
    if gated:
        gate = b.conv(b.conv(b.mean(y), _multiple_of_8(expanded // 4)), expanded, activation="")
        (gate,) = b.op("HardSigmoid", [gate], gate.shape, alpha=1 / 6, beta=0.5)
        (y,) = b.op("Mul", [y, gate], y.shape)
    adds = stride == 1 and channels == x.channels
    gain = (_GATE_GAIN if gated else 1) * (_RESIDUAL_GAIN if adds else 1)
    y = b.conv(y, channels, activation="", norm=True, gain=gain)
    return b.add(x, y) if adds else y


def _multiple_of_8(channels: int) -> int:
    """Round as MobileNets do: never down by more than a tenth."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


# Expansion, output channels, how many, and the stride of the first of them.
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _mobilenetv2(b: _Builder) -> _Tensor:
    x = b.conv(b.x, 32, 3, 2, activation="Clip", norm=True)
    for expansion, channels, count, first in _MOBILENET_V2:
        for number in range(count):
            stride = 1 if number else first
            x = _inverted(b, x, 3, expansion * x.channels, channels, stride, "Clip")
    return b.dense(b.mean(b.conv(x, 1280, activation="Clip", norm=True)))


# Kernel, expanded and output channels, stride, activation, and whether there is a gate.
_MOBILENET_V3 = (
    (3, 16, 16, 1, "Relu", False),
    (3, 64, 24, 2, "Relu", False),
    (3, 72, 24, 1, "Relu", False),
    (5, 72, 40, 2, "Relu", True),
    (5, 120, 40, 1, "Relu", True),
    (5, 120, 40, 1, "Relu", True),
    (3, 240, 80, 2, "HardSwish", False),
    (3, 200, 80, 1, "HardSwish", False),
    (3, 184, 80, 1, "HardSwish", False),
    (3, 184, 80, 1, "HardSwish", False),
    (3, 480, 112, 1, "HardSwish", True),
    (3, 672, 112, 1, "HardSwish", True),
    (5, 672, 160, 2, "HardSwish", True),
    (5, 960, 160, 1, "HardSwish", True),
    (5, 960, 160, 1, "HardSwish", True),
)


def _mobilenetv3(b: _Builder) -> _Tensor:
    x = b.conv(b.x, 16, 3, 2, activation="HardSwish", norm=True)
    for kernel, expanded, channels, stride, activation, gated in _MOBILENET_V3:
        x = _inverted(b, x, kernel, expanded, channels, stride, activation, gated)
    x = b.mean(b.conv(x, 960, activation="HardSwish", norm=True))
    return b.dense(b.dense(x, 1280, "HardSwish"))


def _shuffle_branch(b: _Builder, x: _Tensor, channels: int, stride: int) -> _Tensor:
    x = b.conv(x, channels, norm=True)
    x = b.conv(x, channels, 3, stride, groups=channels, activation="", norm=True)
    return b.conv(x, channels, norm=True)


def _shufflenetv2(b: _Builder) -> _Tensor:
    x = b.max_pool(b.conv(b.x, 24, 3, 2, norm=True), padding=1)
    for channels, count in ((116, 4), (232, 8), (464, 4)):
        half = channels // 2
        for number in range(count):
            if number:
                part = (x.shape[0], half, *x.shape[2:])
                left, right = b.op("Split", [x, np.array([half, half])], part, part, axis=1)
                right = _shuffle_branch(b, right, half, 1)
            else:
                left = b.conv(x, x.channels, 3, 2, groups=x.channels, activation="", norm=True)
                left, right = b.conv(left, half, norm=True), _shuffle_branch(b, x, half, 2)
            x = b.concat(left, right)
            batch, _, height, width = x.shape
            (halves,) = b.op(
                "Transpose",
                [b.reshape(x, batch, 2, half, height, width)],
                (batch, half, 2, height, width),
                perm=[0, 2, 1, 3, 4],
            )
            x = b.reshape(halves, *x.shape)
    return b.dense(b.mean(b.conv(x, 1024, norm=True)))


_NETWORKS: dict[str, Callable[[_Builder], _Tensor]] = {
    "alexnet": _alexnet,
    "vgg16": _vgg16,
    "googlenet": _googlenet,
    "resnet18": partial(_resnet, block=_basic, counts=(2, 2, 2, 2)),
    "resnet50": partial(_resnet, block=_bottleneck, counts=(3, 4, 6, 3)),
    "mobilenetv1": _mobilenetv1,
    "mobilenetv2": _mobilenetv2,
    "mobilenetv3": _mobilenetv3,
    "squeezenet": _squeezenet,
    "shufflenetv2": _shufflenetv2,
    "resnext50": partial(
        _resnet, block=partial(_bottleneck, groups=32, widening=2), counts=(3, 4, 6, 3)
    ),
}

MODELS = tuple(_NETWORKS)
"""Names of the networks."""


def model(name: str, seed: int = 0, batch: int = 1, size: int | None = None) -> Any:
    """Return a network with random weights.

    Parameters
    ----------
    name : str
        One of :data:`MODELS`: ``alexnet`` is torchvision's, ``googlenet`` the first Inception
        without its local response normalization, ``resnet50`` has its stride in the 3x3
        convolution, ``mobilenetv3`` is the large one, ``squeezenet`` version 1.1, ``shufflenetv2``
        of width 1, ``resnext50`` 32x4d. ResNets, MobileNets and ShuffleNet have batch norms.
    seed : int
        Of the weights.
    batch : int
        Images at once.
    size : int, optional
        Height and width of the images; 224 if not given. The first dense layers of AlexNet and
        VGG-16 have as many inputs as is left of the image.

    Returns
    -------
    onnx.ModelProto
        From ``x`` of shape (batch, 3, size, size) to logits of shape (batch, 1000).

    Raises
    ------
    ModelError
        If there is no such network, a size is impossible, or onnx is not installed.
    """
    if name not in _NETWORKS:
        raise ModelError(f"there is no network {name!r}: expected one of {', '.join(MODELS)}")
    size = 224 if size is None else size
    for what, value in (("batch", batch), ("size", size)):
        if value < 1:
            raise ModelError(f"{what} of {name} is {value}: expected a whole number from 1")
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise ModelError(
            "making ONNX models needs the Python package onnx: pip install 'tvm-directconv[onnx]'"
        ) from None
    builder = _Builder(name, seed, (batch, 3, size, size))
    return builder.model(_NETWORKS[name](builder))


def images(count: int, seed: int = 0, size: int = 224) -> np.ndarray:
    """Return random images, of which networks with random weights make different outputs.

    Images of noise alone look all the same to them. These are sums of random patterns, from a
    single colour to noise, and have more contrast the later they come.

    Parameters
    ----------
    count : int
    seed : int
    size : int
        Height and width.

    Returns
    -------
    numpy.ndarray
        Of shape (count, 3, size, size), float32, with mean squares from about 0.1 to 2.
    """
    random = np.random.default_rng(seed)
    found = np.zeros((count, 3, size, size), np.float32)
    for number, cells in product(range(count), _PATTERNS):
        pattern = random.standard_normal((3, cells or size, cells or size), np.float32)
        places = np.arange(size) * (cells or size) // size
        found[number] += pattern[:, places[:, np.newaxis], places]
    contrasts = np.linspace(*_CONTRASTS, count, dtype=np.float32) / len(_PATTERNS) ** 0.5
    return found * contrasts[:, np.newaxis, np.newaxis, np.newaxis]
