"""The arrays that candidates of one workload are checked with."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from ...conv_manifest import ConvManifest
from ...convolution import CompiledConv
from ...reference import conv2d_reference, random_tensors
from ...workload import ConvWorkload

# Of whole numbers, so that every right candidate computes the same to the last bit, whatever the
# order of its additions.
_SEED = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """Input, weights and the right output of one workload.

    Attributes
    ----------
    x, weight : numpy.ndarray
        Plain, NCHW and OIHW, whole numbers.
    expected : numpy.ndarray
        The output, NCHW.
    """

    x: np.ndarray
    weight: np.ndarray
    expected: np.ndarray

    def packed(self, manifest: ConvManifest) -> list[np.ndarray]:
        """Return a library's input, weights, operands if it has any, and the expected output.

        All are in the library's layouts. What it does not write is :func:`unwritten`.
        """
        # Of pixels that are shifted, a bias makes up for that.
        operands = CompiledConv(manifest, module=None).pack_operands(self.weight)
        expected = manifest.output_layout.pack(self.expected)
        # Blocks may be filled up with vectors that have no output channel.
        lanes, (_, blocks, *_, block) = manifest.blocking.lanes, expected.shape
        channels = ceil(manifest.workload.out_channels / lanes) * lanes
        unwritten(expected[:, -1, :, :, channels - (blocks - 1) * block :])
        return [
            manifest.input_layout.pack(self.x),
            manifest.weight_layout.pack(self.weight),
            *operands.values(),
            expected,
        ]


# The last one is enough: layers are tuned one after the other, or in long turns.
@lru_cache(maxsize=2)
def problem(workload: ConvWorkload) -> Problem:
    """Return the arrays of a workload, computed once."""
    x, weight = random_tensors(workload, _SEED, integers=True)
    expected = conv2d_reference(x, weight, workload).astype(workload.precision.output.name)
    return Problem(x, weight, expected)


def unwritten(array: np.ndarray) -> np.ndarray:
    """Return an array filled with what no output of a problem is: NaN, -1 in whole numbers."""
    array.view(np.uint8).fill(0xFF)
    return array


def wrong(actual: np.ndarray, expected: np.ndarray) -> str | None:
    """Return what is wrong with a packed output, None if it is right to the last bit."""
    if np.array_equal(actual, expected):
        return None
    # Comparing with NaN is always false, so count what is not equal.
    return differing(int((~(actual == expected)).sum()), expected.size)


def differing(different: int, size: int) -> str:
    """Return what is wrong with an output of `size` elements."""
    return (
        f"{different} of {size} outputs differ from the reference, on whole numbers "
        "whose sums are exact"
    )
