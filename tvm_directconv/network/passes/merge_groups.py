"""Groups that vectors do not fit are made into fewer and larger ones."""

from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import tvm

from ...case import channel_block
from ...hardware.device import Device
from ..operators import CONV2D, ConvAttributes, conv2d, conv_attributes
from ..rewriter import Rewriter, constant, op_name, rewriting, value_of


def merge_groups(device: Device) -> Any:
    """Return the pass that merges groups for a device.

    Parameters
    ----------
    device : Device
        For which processor.
    """

    return rewriting("directconv.MergeGroups", device)(MergeGroups)


class MergeGroups(Rewriter):
    """Where a vector of output channels spans groups, let these be one, with zeros as weights.

    Otherwise each lane would read an input channel of its own. More is multiplied, but in vectors:
    a group of 68 channels and the next one are 17 vectors of 8 lanes together.
    """

    def __init__(self, module: tvm.IRModule, device: Device) -> None:
        super().__init__(module)
        self._device = device

    def rewrite(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.rewrite`."""
        if op_name(value) != CONV2D:
            return value
        attributes = conv_attributes(value)
        workload = attributes.workload
        block = channel_block(workload.out_channels, self._device)
        together = _together(workload.groups, workload.group_out, block)
        if together == 1 or workload.depthwise:
            return value
        x, weight, *others = value.args
        array = value_of(weight)
        assert array is not None
        merged = ConvAttributes(
            replace(workload, groups=workload.groups // together), attributes.epilogue
        )
        return conv2d(merged, x, constant(_merged(array, workload.groups, together)), *others)


def _together(groups: int, group_out: int, block: int) -> int:
    """Return how many groups have whole blocks of output channels together; at most all."""
    wanted = block // gcd(group_out, block)
    return wanted if groups % wanted == 0 else groups


def _merged(weight: np.ndarray, groups: int, together: int) -> np.ndarray:
    """Return the weights of merged groups, OIHW, zero where an input channel was of another."""
    outputs, inputs, *kernel = weight.shape
    merged = np.zeros((groups // together, together, outputs // groups, together, inputs, *kernel))
    split = weight.reshape(groups // together, together, outputs // groups, inputs, *kernel)
    for number in range(together):
        merged[:, number, :, number] = split[:, number]
    return merged.reshape(outputs, together * inputs, *kernel).astype(np.float32)
