"""The algorithm: a direct convolution in the paper's layouts, as a TE compute.

Algorithm 3 of the paper updates, for every output and every (i, n, m),

    O[j, l, k] += I[i, l s + n, k s + m] x F[i, j, n, m]

with i = C_i, j = C_o, l and k = rows and columns of the output, n and m = rows and columns of
the kernel. In which order, in which blocks and on which registers is not said here: that is the
schedule's part. Only what decides about the layouts is fixed: the channel blocks.
"""

from typing import Any

from .layout import ActivationLayout, WeightLayout
from .workload import ConvWorkload

BLOCK_NAME = "conv"
"""Name of the one block of the function; schedules find it by this."""


def conv2d(
    workload: ConvWorkload, input_layout: ActivationLayout, weight_layout: WeightLayout
) -> Any:
    """Return the convolution as an unscheduled TensorIR function.

    The loops of its block :data:`BLOCK_NAME` are, in this order: batch, oc (blocks of output
    channels), oh, ow, lane (output channel within its block), ic (blocks of input channels), kh,
    kw, ici (input channel within its block). Padding is a condition on the reading of the input:
    nothing is copied.

    Parameters
    ----------
    workload : ConvWorkload
        What is convolved; one group.
    input_layout : ActivationLayout
        Layout of the input. The output has its channels in blocks of ``weight_layout.oc_block``.
    weight_layout : WeightLayout
        Layout of the weights; its ``ic_block`` is the paper's C_i,b.

    Returns
    -------
    tvm.tirx.PrimFunc
        Function of (x, weight, y), all float32.
    """
    from tvm import te, tirx

    stride, dilation = workload.stride, workload.dilation
    top, left, _, _ = workload.padding
    height, width = workload.in_height, workload.in_width
    ic_block, oc_block = weight_layout.ic_block, weight_layout.oc_block
    kernel_rows, kernel_columns = workload.kernel

    x = te.placeholder(input_layout.shape(workload.input_shape), name="x")
    weight = te.placeholder(weight_layout.shape(workload.weight_shape), name="weight")

    def read(batch: Any, channel: Any, row: Any, column: Any) -> Any:
        if input_layout.block:
            block = input_layout.block
            value = x[batch, channel // block, row, column, channel % block]
        elif input_layout.name == "NHWC":
            value = x[batch, row, column, channel]
        else:
            value = x[batch, channel, row, column]
        # Only the borders that some output really crosses get a condition.
        inside = []
        if top:
            inside.append(row >= 0)
        if reach(workload.out_height, 0, kernel_rows) - top >= height:
            inside.append(row < height)
        if left:
            inside.append(column >= 0)
        if reach(workload.out_width, 1, kernel_columns) - left >= width:
            inside.append(column < width)
        return tirx.if_then_else(tirx.all(*inside), value, 0.0) if inside else value

    def reach(outputs: int, axis: int, taps: int) -> int:
        return (outputs - 1) * stride[axis] + (taps - 1) * dilation[axis]

    ic = te.reduce_axis((0, workload.in_channels // ic_block), "ic")
    kh = te.reduce_axis((0, kernel_rows), "kh")
    kw = te.reduce_axis((0, kernel_columns), "kw")
    ici = te.reduce_axis((0, ic_block), "ici")
    output_layout = ActivationLayout.blocked(oc_block)
    y = te.compute(
        output_layout.shape(workload.output_shape),
        lambda batch, oc, oh, ow, lane: te.sum(
            read(
                batch,
                ic * ic_block + ici,
                oh * stride[0] - top + kh * dilation[0],
                ow * stride[1] - left + kw * dilation[1],
            )
            * weight[oc, ic, kh, kw, ici, lane],
            axis=[ic, kh, kw, ici],
        ),
        name=BLOCK_NAME,
    )
    return te.create_prim_func([x, weight, y])
