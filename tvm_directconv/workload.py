"""What is convolved: :class:`ConvWorkload`, and its name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from .descriptor import EXAMPLE, MAX_ELEMENTS, parsed, printed, whole, with_name
from .errors import WorkloadError, did_you_mean
from .kinds import shown
from .precision import PRECISIONS, NumberType, Precision

_NOT_IN_NAMES = re.compile(r'["*,#:\[]|^\s')


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
        Name of the precision: which number types its tensors have, and what sums are added up in.
        One of :data:`~tvm_directconv.precision.PRECISIONS`.
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
            normalise(key, whole(key, getattr(self, key), minimum=1))
        for key in ("kernel", "stride", "dilation"):
            normalise(key, _pair(key, getattr(self, key)))
        normalise("padding", _padding(self.padding))
        normalise("count", whole("count", self.count, minimum=1))
        self._check_strings()
        self._check_geometry()

    def _check_strings(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in PRECISIONS:
            raise WorkloadError(
                f"dtype is {shown(self.dtype)}; expected one of {', '.join(PRECISIONS)}"
                + did_you_mean(str(self.dtype), PRECISIONS)
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

    @cached_property
    def out_height(self) -> int:
        """Rows of the output."""
        top, _, bottom, _ = self.padding
        return (self.in_height + top + bottom - self.dilated_kernel[0]) // self.stride[0] + 1

    @cached_property
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

    def in_words(self, depth: int) -> ConvWorkload:
        """Return the same convolution with words of so many input channels in place of these.

        The last word of a group may lack channels.
        """
        if depth == 1:
            return self
        return replace(self, in_channels=-(-self.group_in // depth) * self.groups)

    @cached_property
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
    def precision(self) -> Precision:
        """The number types of its tensors."""
        return PRECISIONS[self.dtype]

    @property
    def input_bytes(self) -> int:
        """Bytes of the input."""
        return _bytes(self.precision.pixel, self.input_shape)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return _bytes(self.precision.weight, self.weight_shape)

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return _bytes(self.precision.output, self.output_shape)

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
        shape = self.batch, columns, self.out_height, self.out_width
        return _bytes(self.precision.pixel, shape)

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

        It begins with the precision and an underscore, unless that is float32. Keys are in the
        order of oneDNN's benchdnn. A width is printed where it differs from its
        height; the stride, the padding and the dilation (minus 1) where they are not the default.
        ``ph0`` is printed where a reader would otherwise deduce another padding from ``oh``.

        The grammar holds the top and left padding; that at the bottom and right follows from the
        output size. So padding that no output reads, left over by the stride, is not kept:
        `parse` returns the same computation, with symmetric padding if that gives this output
        size and with the least padding that does if not. Name and count are not printed either;
        see `to_line`.
        """
        return printed(
            self.dtype,
            {
                "g": self.groups,
                "mb": self.batch,
                "ic": self.in_channels,
                "oc": self.out_channels,
                **_by_axis("i", (self.in_height, self.in_width)),
                **_by_axis("o", (self.out_height, self.out_width)),
                **_by_axis("k", self.kernel),
                **_by_axis("s", self.stride),
                **_by_axis("p", self.padding[:2]),
                **_by_axis("d", (self.dilation[0] - 1, self.dilation[1] - 1)),
            },
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
        return with_name(self.descriptor, self.name, self.count)

    @classmethod
    def parse(cls, text: str) -> ConvWorkload:
        """Read a convolution descriptor in the grammar of oneDNN's benchdnn.

        The grammar is ``[type_][gN][mbN]icN ihN [iwN] ocN [ohN] [owN] khN [kwN] [shN] [swN] [phN]
        [pwN] [dhN] [dwN] [n"name*count"]`` without the spaces. Keys stand in any order, the name
        last; underscores between them are ignored. The type, which benchdnn has as an option, is
        that of `dtype`; float32 when left out.

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
            found = parsed(text)
            sizes = found.sizes
            return cls(
                batch=sizes["mb"],
                in_channels=sizes["ic"],
                in_height=sizes["ih"],
                in_width=sizes["iw"],
                out_channels=sizes["oc"],
                kernel=(sizes["kh"], sizes["kw"]),
                stride=(sizes["sh"], sizes["sw"]),
                padding=found.padding,
                dilation=(sizes["dh"] + 1, sizes["dw"] + 1),
                groups=sizes["g"],
                dtype=found.dtype,
                name=found.name,
                count=found.count,
            )
        except WorkloadError as error:
            raise WorkloadError(f"descriptor {shown(text)}: {error}") from None


# ---- checks of the fields


def _pair(key: str, value: object) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        raise WorkloadError(
            f"{key} is {value!r}; expected a positive integer or a pair (height, width)"
        )
    height, width = (whole(key, item, minimum=1) for item in value)
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
    top, left, bottom, right = (whole("padding", item, minimum=0) for item in value)
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


def _by_axis(key: str, pair: tuple[int, ...]) -> dict[str, int]:
    height, width = pair
    return {f"{key}h": height, f"{key}w": width}


def _bytes(number: NumberType, shape: tuple[int, ...]) -> int:
    return number.bytes * math.prod(shape)


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
