"""The algorithm: a direct convolution in the paper's layouts, as a TE compute.

Algorithm 3 of the paper updates, for every output and every (i, n, m),

    O[j, l, k] += I[i, l s + n, k s + m] x F[i, j, n, m]

with i = C_i, j = C_o, l and k = rows and columns of the output, n and m = rows and columns of
the kernel. In which order, in which blocks and on which registers is not said here: that is the
schedule's part. Only what decides about the layouts is fixed: the channel blocks.
"""

from functools import reduce
from typing import Any

from .epilogue import ACTIVATIONS, BIAS, RANGE, SCALE, SCALES, Epilogue, Operand
from .layout import ActivationLayout, WeightLayout
from .quantization import OF_SUMS, ROUNDING_BITS, border_classes, border_counts
from .rounding import limited, products_added, rounded
from .workload import ConvWorkload

BLOCK_NAME = "conv"
"""Name of the block that multiplies and adds; schedules find it by this."""

INPUT_NAME, WEIGHT_NAME = "x", "weight"
"""Names of the tensors that are multiplied; lowering finds them by these."""

FINISH_NAME = "finish"
"""Name of the block that finishes outputs, if there is an epilogue."""


def conv2d(
    workload: ConvWorkload,
    input_layout: ActivationLayout,
    weight_layout: WeightLayout,
    epilogue: Epilogue | None = None,
    output_shape: tuple[int, int, int, int] | None = None,
    fused: bool = True,
) -> Any:
    """Return the convolution as an unscheduled TensorIR function.

    The loops of its block :data:`BLOCK_NAME` are, in this order: batch, oc (blocks of output
    channels), oh, ow, lane (output channel within its block), ic (blocks of input channels), kh,
    kw, ici (input channel within its block). Padding is a condition on the reading of the input:
    nothing is copied.

    Parameters
    ----------
    workload : ConvWorkload
        What is convolved. With groups, each output channel reads the input channels of its group.
    input_layout : ActivationLayout
        Layout of the input. The output has its channels in blocks of ``weight_layout.oc_block``.
    weight_layout : WeightLayout
        Layout of the weights; its ``ic_block`` is the paper's C_i,b.
    epilogue : Epilogue, optional
        What becomes of the sums. It is a block of its own, :data:`FINISH_NAME`, with the loops
        batch, oc, oh, ow and lane. On paper it reads an intermediate tensor; lowering lets that be
        the output itself.
    output_shape : tuple of int, optional
        Plain shape in which the output's pixels are counted, if not in rows of the image: oh and
        ow, and the shapes of outputs and residual, are then of this.
    fused : bool, optional
        Whether the processor has a multiply-add of float32 that rounds once.

    Returns
    -------
    tvm.tirx.PrimFunc
        Function of (x, weight, y). Between weight and y come the epilogue's operands:
        those by channel as (blocks of output channels, lanes), others in the output's layout.
    """
    from tvm import te, tirx

    of_words, types = weight_layout.depth > 1, workload.precision
    rows = weight_layout.depth if weight_layout.of_rows else 1
    depth = weight_layout.depth // rows
    weight_shape = weight_layout.shape(workload.weight_shape)[:6]
    workload, input_layout = workload.in_words(depth), input_layout.in_words(depth)
    # A product of words stands for the instruction that multiplies what is in them.
    size = weight_layout.depth * types.weight.bytes
    word = types.sum.name if size == types.sum.bytes else f"int{8 * size}"
    pixel_type = word if depth > 1 else types.pixel.name
    weight_type = word if of_words else types.weight.name
    stride, dilation = workload.stride, workload.dilation
    top, left, _, _ = workload.padding
    height, width = workload.in_height, workload.in_width
    ic_block, oc_block = weight_layout.ic_block, weight_layout.oc_block
    kernel_rows, kernel_columns = workload.kernel
    output_layout = ActivationLayout.blocked(oc_block)
    counted = output_shape or workload.output_shape

    x = te.placeholder(input_layout.shape(workload.input_shape), pixel_type, INPUT_NAME)
    weight = te.placeholder(weight_shape, weight_type, WEIGHT_NAME)
    zero = tirx.const(0, types.sum.name)

    def read(batch: Any, channel: Any, row: Any, column: Any) -> tuple[Any, list[Any], list[Any]]:
        """Return a pixel, and the conditions for row and column to lie in the image."""
        if input_layout.block:
            block = input_layout.block
            value = x[batch, channel // block, row, column, channel % block]
        elif input_layout.name == "NHWC":
            value = x[batch, row, column, channel]
        else:
            value = x[batch, channel, row, column]
        value = value.astype(types.sum.name)
        # Only the borders that some output really crosses get a condition.
        in_rows, in_columns = [], []
        if top:
            in_rows.append(row >= 0)
        if reach(workload.out_height, 0, kernel_rows) - top >= height:
            in_rows.append(row < height)
        if left:
            in_columns.append(column >= 0)
        if reach(workload.out_width, 1, kernel_columns) - left >= width:
            in_columns.append(column < width)
        return value, in_rows, in_columns

    def inside(value: Any, conditions: list[Any]) -> Any:
        return tirx.if_then_else(tirx.all(*conditions), value, zero) if conditions else value

    def pixel(oh: Any, ow: Any) -> tuple[Any, Any]:
        """Return row and column in the image of an output."""
        if counted == workload.output_shape:
            return oh, ow
        number = oh * counted[3] + ow
        return number // workload.out_width, number % workload.out_width

    def reach(outputs: int, axis: int, taps: int) -> int:
        return (outputs - 1) * stride[axis] + (taps - 1) * dilation[axis]

    def first_channel(output: Any) -> Any:
        """Return the first input channel of an output channel's group."""
        if workload.groups == 1:
            return 0
        first = output // workload.group_out * workload.group_in
        lanes = output_layout.channels(workload.out_channels)
        most = most_first_channel(workload, input_layout, lanes)
        return first if most is None else tirx.min(first, most)

    ic = te.reduce_axis((0, -(-workload.group_in // ic_block)), "ic")
    kh = te.reduce_axis((0, -(-kernel_rows // rows)), "kh")
    kw = te.reduce_axis((0, kernel_columns), "kw")
    ici = te.reduce_axis((0, ic_block), "ici")

    def word_of(parts: list[Any]) -> Any:
        """Return what stands for a word of several pixels; see :mod:`.lowering.rows`."""
        bits = types.sum.bytes * 8 // len(parts)
        shifted = (value << (bits * place) for place, value in enumerate(parts))
        return reduce(lambda word, value: word | value, shifted)

    def multiplied(batch: Any, oc: Any, oh: Any, ow: Any, lane: Any) -> Any:
        row, column = pixel(oh, ow)
        channel = first_channel(oc * oc_block + lane) + ic * ic_block + ici
        first_row = row * stride[0] - top
        column = column * stride[1] - left + kw * dilation[1]
        if rows == 1:
            value, in_rows, in_columns = read(batch, channel, first_row + kh * dilation[0], column)
            value = inside(value, in_rows + in_columns)
        else:
            parts = []
            for part in range(rows):
                tap = kh * rows + part
                found, in_rows, in_columns = read(
                    batch, channel, first_row + tap * dilation[0], column
                )
                # The last word may lack rows.
                found = inside(found, in_rows)
                parts.append(inside(found, [tap < kernel_rows] if kernel_rows % rows else []))
            value = inside(word_of(parts), in_columns)
        taps = weight[oc, ic, kh, kw, ici, lane]
        product = value * taps.astype(types.sum.name)
        return te.sum(product, axis=[ic, kh, kw, ici])

    y = te.compute(output_layout.shape(counted), multiplied, name=BLOCK_NAME)
    epilogue = epilogue or Epilogue()
    output = epilogue.output(types)
    if not epilogue and output == types.sum:
        return te.create_prim_func([x, weight, y])

    def placeholder(operand: Operand) -> Any:
        if not operand.by_channel:
            return te.placeholder(y.shape, output.name, operand.name)
        borders = border_counts(workload, epilogue) if operand == BIAS else ()
        return te.placeholder((y.shape[1], *borders, oc_block), types.sum.name, operand.name)

    added = {operand: placeholder(operand) for operand in epilogue.operands}
    scale = te.placeholder((y.shape[1], oc_block), SCALES.name, SCALE)
    limits = te.placeholder((3 + OF_SUMS * epilogue.residual,), SCALES.name, RANGE)

    def of_border(place: Any, axis: int) -> Any:
        """Return the number of the class of a row or column."""
        _, *later = border_classes(workload, axis)
        return sum(((place >= c.first).astype("int32") for c in later), tirx.const(0, "int32"))

    def requantized(scaled: Any) -> Any:
        # Limits stand between product and sum.
        return rounded(limited(scaled, limits[0], limits[1])) + tirx.reinterpret("int32", limits[2])

    def added_up(value: Any, residual: Any) -> Any:
        """Return the sum of a requantised output and a residual, requantised."""
        of_output, of_residual, shift, least, most = (limits[3 + i] for i in range(OF_SUMS))
        products = [(residual, of_residual), (value, of_output)]
        if epilogue.residual_first:
            products.reverse()
        total = products_added(shift, products, fused)
        return rounded(limited(total, least, most)) - ROUNDING_BITS

    def finished(batch: Any, oc: Any, oh: Any, ow: Any, lane: Any) -> Any:
        value = y(batch, oc, oh, ow, lane).astype(types.epilogue.name)
        for operand, tensor in added.items():
            if operand.by_channel:
                borders = [of_border(oh, 0), of_border(ow, 1)] if len(tensor.shape) > 2 else []
                own = tensor[(oc, *borders, lane)]
                value = operand.apply(value, own.astype(types.epilogue.name))
        if epilogue.requantize:
            value = value.astype(SCALES.name) * scale[oc, lane]
        if epilogue.rounded:
            value = requantized(value)
        for operand, tensor in added.items():
            if not operand.by_channel:
                own = tensor[batch, oc, oh, ow, lane]
                if epilogue.rounded:
                    value = added_up(value, own)
                else:
                    value = operand.apply(value, own.astype(value.ty.dtype))
        if not epilogue.rounded:
            value = ACTIVATIONS[epilogue.activation].apply(value, epilogue.slope)
        return value.astype(output.name)

    result = te.compute(y.shape, finished, name=FINISH_NAME)
    further = [scale] * bool(epilogue.requantize) + [limits] * epilogue.rounded
    return te.create_prim_func([x, weight, *added.values(), *further, result])


def most_first_channel(
    workload: ConvWorkload, input_layout: ActivationLayout, lanes: int
) -> int | None:
    """Return the first input channel of the last group, where lanes must be kept from going on.

    What only fills the last block of outputs belongs to no group, and may read no further than
    others. None where all that the lanes of all outputs would read is stored.
    """
    last = ((lanes - 1) // workload.group_out + 1) * workload.group_in
    stored = input_layout.channels(workload.in_channels)
    return workload.in_channels - workload.group_in if last > stored else None


def symbol_of(workload: ConvWorkload, epilogue: Epilogue | None = None) -> str:
    """Return the name of the function that computes a workload."""
    return f"directconv_{workload}" + (f"_{epilogue}" if epilogue else "")
