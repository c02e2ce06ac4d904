"""What is convolved: :class:`ConvWorkload`, its name and its descriptor."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WorkloadError, did_you_mean
from .kinds import shown

if TYPE_CHECKING:
    pass

MAX_ELEMENTS = 2**31 - 1  # kernels index every tensor with 32-bit integers

# The keys of descriptors; a benchdnn descriptor says "dh0" for no dilation.
_KEYS = ("g", "mb", "ic", "oc", *(key + axis for key in "iokspd" for axis in "hw"))
_KEYS_3D = ("id", "od", "kd", "sd", "pd", "dd")
_MAY_BE_ZERO = ("ph", "pw", "dh", "dw")
_TOKEN = re.compile("([A-Za-z]*)([0-9]*)")
_NAME = re.compile(r'n"([^"*]+)(?:\*([0-9]+)"|"(?:\*([0-9]+))?)')
_NOT_IN_NAMES = re.compile(r'["*,#:\[]|^\s')
EXAMPLE = "ic256ih56oc256oh56kh3ph1"
"""A descriptor, for messages."""


@dataclass(frozen=True, kw_only=True)
class ConvWorkload:
    """One 2-D convolution: sizes only, no data, no device.

    Every field is given by keyword. Pairs are (height, width), and an integer stands for a pair
    of equals. Two workloads are equal when they are the same convolution: `name` and `count` are
    descriptive and not compared.

    Parameters
    ----------
    batch : int
        Number of images, N.
    in_channels, in_height, in_width : int
        Size of one input image.
    out_channels : int
        Number of output channels.
    kernel : int or (int, int)
        Rows and columns of the kernel, not dilated.
    stride : int or (int, int)
        Distance between neighbouring outputs, in input elements.
    padding : int, (int, int) or (int, int, int, int)
        Zeros around the input: the same everywhere, (vertical, horizontal), or
        (top, left, bottom, right). Each is smaller than the dilated kernel, since an output
        beyond that would be computed from padding alone.
    dilation : int or (int, int)
        Distance between neighbouring kernel elements, in input elements; 1 is a dense kernel.
    groups : int
        Number of channel groups; equal to `in_channels` for a depthwise convolution.
    dtype : str
        Element type of all tensors. Only "float32" exists.
    name : str
        Where the convolution comes from, such as "vgg16:conv3_2".
    count : int
        How many layers of that network this entry stands for.

    Raises
    ------
    WorkloadError
        If a field has the wrong type or value, or the fields do not fit together.
    """

    batch: int = 1
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: str = "float32"
    name: str = field(default="", compare=False)
    count: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        def normalise(field_name: str, value: object) -> None:
            object.__setattr__(self, field_name, value)  # the way past `frozen`

        for key in ("batch", "in_channels", "in_height", "in_width", "out_channels", "groups"):
            normalise(key, _integer(key, getattr(self, key), minimum=1))
        for key in ("kernel", "stride", "dilation"):
            normalise(key, _pair(key, getattr(self, key)))
        normalise("padding", _padding(self.padding))
        normalise("count", _integer("count", self.count, minimum=1))
        self._check_strings()
        self._check_geometry()

    def _check_strings(self) -> None:
        if self.dtype != "float32":
            raise WorkloadError(
                f"dtype is {self.dtype!r}; only 'float32' is supported, convert the tensors to it"
            )
        if (
            not isinstance(self.name, str)
            or not self.name.isprintable()
            or self.name != self.name.strip()
            or any(c in '"*,#' for c in self.name)
        ):
            raise WorkloadError(
                f'name is {self.name!r}; expected printable text without any of " * , # and '
                "without spaces at its ends, such as 'vgg16:conv3_2'"
            )

    def _check_geometry(self) -> None:
        for key in ("in_channels", "out_channels"):
            if getattr(self, key) % self.groups:
                raise WorkloadError(
                    f"groups is {self.groups}, which does not divide {key} = "
                    f"{getattr(self, key)}; choose a common divisor of both channel counts"
                )
        extent_h, extent_w = self.dilated_kernel
        top, left, bottom, right = self.padding
        if max(top, bottom) >= extent_h or max(left, right) >= extent_w:
            raise WorkloadError(
                f"padding is {self.padding} (top, left, bottom, right) but the dilated kernel is "
                f"{extent_h}x{extent_w}; each padding must be smaller than the kernel, because "
                "outputs beyond that are computed from padding alone: reduce the padding and pad "
                "the output instead"
            )
        padded_h, padded_w = self.in_height + top + bottom, self.in_width + left + right
        if padded_h < extent_h or padded_w < extent_w:
            raise WorkloadError(
                f"the dilated kernel is {extent_h}x{extent_w} but the padded input is only "
                f"{padded_h}x{padded_w}; there is no output: enlarge the input or the padding, or "
                "reduce the kernel or the dilation"
            )
        for key in ("input", "weight", "output"):
            shape = getattr(self, f"{key}_shape")
            if math.prod(shape) > MAX_ELEMENTS:
                raise WorkloadError(
                    f"the {key} of shape {shape} has {math.prod(shape)} elements; at most "
                    f"{MAX_ELEMENTS} can be indexed: reduce the batch, channels or image size"
                )

    @property
    def dilated_kernel(self) -> tuple[int, int]:
        """Rows and columns of the input that one output spans."""
        (rows, columns), (dilation_h, dilation_w) = self.kernel, self.dilation
        return (rows - 1) * dilation_h + 1, (columns - 1) * dilation_w + 1

    @property
    def group_in(self) -> int:
        """Input channels of one group: those that an output channel sums over."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        """Whether every output channel is that of one input channel."""
        return self.groups > 1 and self.group_in == self.group_out == 1

    @property
    def is_matrix_product(self) -> bool:
        """Whether weights times input, pixels in a row, is the output: im2col has nothing to do."""
        return self.kernel == self.stride == (1, 1) and not any(self.padding)

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        top, _, bottom, _ = self.padding
        return (self.in_height + top + bottom - self.dilated_kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        _, left, _, right = self.padding
        return (self.in_width + left + right - self.dilated_kernel[1]) // self.stride[1] + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the plain input, NCHW."""
        return self.batch, self.in_channels, self.in_height, self.in_width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the plain weights, OIHW, where I is the input channels of one group."""
        return self.out_channels, self.group_in, *self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Shape of the plain output, NCHW."""
        return self.batch, self.out_channels, self.out_height, self.out_width

    @property
    def flops(self) -> int:
        """Nominal floating-point operations, a multiply-add being two.

        Products with padding are counted too, as every benchmark of convolutions does.
        """
        return 2 * math.prod(self.output_shape) * math.prod(self.weight_shape[1:])

    @property
    def useful_flops(self) -> int:
        """Floating-point operations without the products with padding."""
        top, left, _, _ = self.padding
        rows = _taps_inside(
            self.in_height, self.kernel[0], self.stride[0], top, self.dilation[0], self.out_height
        )
        columns = _taps_inside(
            self.in_width, self.kernel[1], self.stride[1], left, self.dilation[1], self.out_width
        )
        channels = self.out_channels * (self.group_in)
        return 2 * self.batch * channels * rows * columns

    @property
    def input_bytes(self) -> int:
        """Bytes of the input."""
        return 4 * math.prod(self.input_shape)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return 4 * math.prod(self.weight_shape)

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return 4 * math.prod(self.output_shape)

    @property
    def im2col_bytes(self) -> int:
        """Bytes that an im2col buffer for the whole batch would take.

        The buffer holds, for each output position, the input elements under the kernel in all
        channels: N x (C_i K_h K_w) x (H_o W_o). It is 0 where the input is that matrix, see
        `is_matrix_product`. Direct convolution needs none of it.
        """
        if self.is_matrix_product:
            return 0
        columns = self.in_channels * math.prod(self.kernel)
        return 4 * self.batch * columns * self.out_height * self.out_width

    @property
    def network(self) -> str:
        """The part of `name` before the first colon, or "" where it has none."""
        return self.name.partition(":")[0] if ":" in self.name else ""

    @property
    def layer(self) -> str:
        """The part of `name` after the first colon, or all of it where it has none."""
        return self.name.partition(":")[2] if ":" in self.name else self.name

    @property
    def descriptor(self) -> str:
        """The canonical descriptor, such as ``ic256ih56oc256oh56kh3ph1``.

        Keys are in the order of oneDNN's benchdnn. A width is printed where it differs from its
        height; the stride, the padding and the dilation (minus 1) where they are not the default.
        ``ph0`` is printed where a reader would otherwise deduce another padding from ``oh``.

        The grammar holds the top and left padding; that at the bottom and right follows from the
        output size. So padding that no output reads, left over by the stride, is not kept:
        `parse` returns the same computation, with symmetric padding if that gives this output
        size and with the least padding that does if not. Name and count are not printed either;
        see `to_line`.
        """
        (kernel_h, kernel_w), (stride_h, stride_w) = self.dilated_kernel, self.stride
        top, left, _, _ = self.padding
        # benchdnn halves these, towards zero, where the padding is left out.
        deduced_from = (
            (self.out_height - 1) * stride_h + kernel_h - self.in_height,
            (self.out_width - 1) * stride_w + kernel_w - self.in_width,
        )
        padding_default = 0 if all(-1 <= total <= 1 for total in deduced_from) else None
        dilation_h, dilation_w = self.dilation
        return "".join(
            [
                f"g{self.groups}" if self.groups != 1 else "",
                f"mb{self.batch}" if self.batch != 1 else "",
                f"ic{self.in_channels}",
                _print_pair("i", (self.in_height, self.in_width), None),
                f"oc{self.out_channels}",
                _print_pair("o", (self.out_height, self.out_width), None),
                _print_pair("k", self.kernel, None),
                _print_pair("s", self.stride, 1),
                _print_pair("p", (top, left), padding_default),
                _print_pair("d", (dilation_h - 1, dilation_w - 1), 0),
            ]
        )

    def __str__(self) -> str:
        return self.descriptor

    def to_line(self) -> str:
        """The descriptor with name and count, as files of shapes have it.

        Returns
        -------
        str
            Such as ``ic256ih56oc256oh56kh3ph1n"vgg16:conv3_2*2"``. The count is left out when it
            is 1, and both are when there is no name.
        """
        if not self.name:
            return self.descriptor
        count = f"*{self.count}" if self.count != 1 else ""
        return f'{self.descriptor}n"{self.name}{count}"'

    @classmethod
    def parse(cls, text: str) -> ConvWorkload:
        """Read a convolution descriptor in the grammar of oneDNN's benchdnn.

        The grammar is ``[gN][mbN]icN ihN [iwN] ocN [ohN] [owN] khN [kwN] [shN] [swN] [phN] [pwN]
        [dhN] [dwN] [n"name*count"]`` without the spaces. Keys stand in any order, the name last;
        underscores between them are ignored.

        ====== ============================== ==================================================
        key    meaning                        when left out
        ====== ============================== ==================================================
        g      groups                         1
        mb     batch                          1 (benchdnn: 2)
        ic, oc input and output channels      an error
        ih, iw input height and width         the other of the two; an error without both
        kh, kw kernel height and width        the other of the two; an error without both
        oh, ow output height and width        the other of the two; computed without both
        sh, sw stride                         the other of the two; 1 without both
        ph, pw padding at the top and left    the other of the two; without both, half of what
                                              the output size needs, or 0 if that is not given
        dh, dw dilation minus 1               the other of the two; 0 without both
        ====== ============================== ==================================================

        The padding at the bottom and right equals that at the top and left if this gives the
        stated output size (or none is stated), and is the least that gives it otherwise.

        Unlike here, a width key given alone makes benchdnn compute a 1-D convolution, and one
        given beside heights ends all its height-to-width defaults; write both keys of each pair
        in a descriptor that is not square and meant for both.

        Parameters
        ----------
        text : str
            The descriptor. The count may stand inside or after the quotes: ``n"conv3_2*2"`` or
            ``n"conv3_2"*2``.

        Returns
        -------
        ConvWorkload

        Raises
        ------
        WorkloadError
            If the text is not a descriptor, or describes no possible convolution.
        """
        if not isinstance(text, str):
            raise WorkloadError(f"expected a descriptor such as {EXAMPLE!r}, got {shown(text)}")
        if not text:
            raise WorkloadError(f"the descriptor is empty; expected one such as {EXAMPLE!r}")
        try:
            values, name, count = _tokens(text)
            return _workload(values, name, count)
        except WorkloadError as error:
            raise WorkloadError(f"descriptor {shown(text)}: {error}") from None


# ---- checks of the fields


def _integer(key: str, value: object, minimum: int) -> int:
    """Return `value` as an int; bools and floats, even whole ones, are mistakes."""
    expected = "a positive integer" if minimum else "an integer of 0 or more"
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # its TypeError is the check
    except TypeError:
        raise WorkloadError(f"{key} is {value!r}; expected {expected}") from None
    if isinstance(value, bool) or number < minimum:
        raise WorkloadError(f"{key} is {value!r}; expected {expected}")
    if number > MAX_ELEMENTS:
        raise WorkloadError(f"{key} is {number}; expected at most {MAX_ELEMENTS}")
    return number


def _pair(key: str, value: object) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        raise WorkloadError(
            f"{key} is {value!r}; expected a positive integer or a pair (height, width)"
        )
    height, width = (_integer(key, item, minimum=1) for item in value)
    return height, width


def _padding(value: object) -> tuple[int, int, int, int]:
    if not isinstance(value, (tuple, list)):
        value = (value,) * 4
    if len(value) == 2:
        value = (*value, *value)
    if len(value) != 4:
        raise WorkloadError(
            f"padding is {value!r}; expected an integer, a pair (vertical, horizontal) or "
            "(top, left, bottom, right)"
        )
    top, left, bottom, right = (_integer("padding", item, minimum=0) for item in value)
    return top, left, bottom, right


def _taps_inside(size: int, kernel: int, stride: int, padding: int, dilation: int, out: int) -> int:
    """Count the (output, kernel element) pairs of one axis that read the input, not padding."""
    total = 0
    for k in range(kernel):
        offset = k * dilation - padding  # the position that output 0 reads
        first = max(0, -(offset // stride))  # the least o with o * stride + offset >= 0
        end = min(out, (size - 1 - offset) // stride + 1)  # past the last one below `size`
        total += max(0, end - first)
    return total


# ---- the descriptor


def _print_pair(key: str, pair: tuple[int, int], default: int | None) -> str:
    height, width = pair
    if height == width == default:
        return ""
    return f"{key}h{height}" + (f"{key}w{width}" if width != height else "")


def _tokens(text: str) -> tuple[dict[str, int], str, int]:
    """Split a descriptor into its keys' values, its name ("") and its count (1)."""
    values: dict[str, int] = {}
    position = 0
    while position < len(text):
        if text[position] == "_":
            position += 1
            continue
        if text[position] == "n":
            return values, *_name(text, position)
        token = _TOKEN.match(text, position)
        assert token is not None  # the pattern matches the empty string too
        key, digits = token.groups()
        where = f"at character {position + 1}"
        if not key:
            raise WorkloadError(
                f"unexpected {text[position:]!r} {where}; expected a key such as 'ic' and its "
                "value (several descriptors are separated by commas)"
            )
        if key in _KEYS_3D:
            raise WorkloadError(
                f"{key!r} {where} belongs to 3-D convolutions; only 2-D convolutions exist here"
            )
        if key not in _KEYS:
            bare = next((known for known in _KEYS if key.startswith(known)), None)
            if bare:  # as in "icih56": the next key, or a letter, stands where digits should
                raise WorkloadError(f"key {bare!r} {where} has no value; write {bare}N")
            raise WorkloadError(
                f"unknown key {key!r} {where}; keys are {', '.join(_KEYS)}, n"
                + did_you_mean(key, _KEYS, 3)
            )
        if not digits:
            raise WorkloadError(
                f"key {key!r} {where} has no value but {text[token.end() :]!r}; write {key}N with "
                "a decimal number N"
            )
        if key in values:
            raise WorkloadError(f"key {key!r} {where} is given twice; remove one")
        values[key] = _number(key, digits, minimum=0 if key in _MAY_BE_ZERO else 1)
        position = token.end()
    return values, "", 1


def _number(key: str, digits: str, minimum: int) -> int:
    # The length first: Python refuses to convert thousands of digits with an error of its own.
    if len(digits.lstrip("0")) > 10:
        raise WorkloadError(f"{key} is {digits}; expected at most {MAX_ELEMENTS}")
    return _integer(key, int(digits), minimum)


def _name(text: str, position: int) -> tuple[str, int]:
    match = _NAME.fullmatch(text, position)
    if match is None:
        raise WorkloadError(
            f"the name {text[position:]!r} at character {position + 1} is malformed; a "
            'descriptor ends with n"name" or n"name*count"'
        )
    return match[1], _number("count", match[2] or match[3] or "1", minimum=1)


def _workload(values: dict[str, int], name: str, count: int) -> ConvWorkload:
    """Fill in what a descriptor leaves out."""
    missing = [key for key in ("ic", "oc") if key not in values]
    missing += [f"{k}h" for k in "ik" if f"{k}h" not in values and f"{k}w" not in values]
    if missing:
        raise WorkloadError(
            f"missing {', '.join(repr(key) for key in missing)}; ic, ih, oc and kh are needed, "
            f"as in {EXAMPLE!r}"
        )
    for k in "iokspd":
        for key, twin in ((f"{k}h", f"{k}w"), (f"{k}w", f"{k}h")):
            if key in values:
                values.setdefault(twin, values[key])
    top, bottom = _descriptor_padding(values, "h")
    left, right = _descriptor_padding(values, "w")
    return ConvWorkload(
        batch=values.get("mb", 1),
        in_channels=values["ic"],
        in_height=values["ih"],
        in_width=values["iw"],
        out_channels=values["oc"],
        kernel=(values["kh"], values["kw"]),
        stride=(values.get("sh", 1), values.get("sw", 1)),
        padding=(top, left, bottom, right),
        dilation=(values.get("dh", 0) + 1, values.get("dw", 0) + 1),
        groups=values.get("g", 1),
        name=name,
        count=count,
    )


def _descriptor_padding(values: dict[str, int], axis: str) -> tuple[int, int]:
    """Padding before and after one axis, "h" or "w"."""
    size, stride = values[f"i{axis}"], values.get(f"s{axis}", 1)
    extent = (values[f"k{axis}"] - 1) * (values.get(f"d{axis}", 0) + 1) + 1
    before, out = values.get(f"p{axis}"), values.get(f"o{axis}")
    if out is None:
        before = before or 0
        return before, before

    # Padding on either side is at most extent - 1, which bounds the output size.
    least = max(1, (size + (before or 0) - extent) // stride + 1)
    most = (size + (extent - 1 if before is None else before) - 1) // stride + 1
    if not least <= out <= most:
        given = "" if before is None else f" and p{axis}{before}"
        expected = f"o{axis}{least}" + (f" to o{axis}{most}" if most != least else "")
        raise WorkloadError(
            f"o{axis}{out} is impossible: i{axis}{size} with a dilated kernel of {extent}, "
            f"s{axis}{stride}{given} can give {expected}; correct o{axis} or leave it out"
        )
    both = (out - 1) * stride + extent - size  # negative where the stride leaves input unread
    if before is None:
        before = max(0, both // 2)
    symmetric_out = (size + 2 * before - extent) // stride + 1
    return before, before if symmetric_out == out else max(0, both - before)


def model_layer_name(path: str | Path, number: int) -> str:
    """Return what a convolution of a model is called: a spec that finds it again.

    Parameters
    ----------
    path : str or Path
        The model's file.
    number : int
        Place among its convolutions.
    """
    # Names take fewer characters than files; a wildcard stands for the others.
    letters = (c if c.isprintable() else "?" for c in _NOT_IN_NAMES.sub("?", str(path)))
    return f"{''.join(letters)}:{number}"
