"""The oracle, against hand-computed values and seven nested loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_directconv.epilogue import Epilogue
from tvm_directconv.errors import ArgumentError
from tvm_directconv.reference import (
    conv2d_reference,
    epilogue_reference,
    max_error,
    random_tensors,
)
from tvm_directconv.workload import ConvWorkload


def seven_loops(x, weight, w):
    """The definition, term by term."""
    out = np.zeros(w.output_shape)
    group_in, group_out = w.in_channels // w.groups, w.out_channels // w.groups
    for n, o, y, x_ in np.ndindex(w.output_shape):
        for i, r, s in np.ndindex(w.weight_shape[1:]):
            row = y * w.stride[0] + r * w.dilation[0] - w.padding[0]
            column = x_ * w.stride[1] + s * w.dilation[1] - w.padding[1]
            if 0 <= row < w.in_height and 0 <= column < w.in_width:
                channel = o // group_out * group_in + i
                out[n, o, y, x_] += float(x[n, channel, row, column]) * float(weight[o, i, r, s])
    return out


@st.composite
def tiny_workload(draw):
    groups = draw(st.integers(1, 3))
    sizes, kernels, strides, dilations, before, after = [], [], [], [], [], []
    for _ in "hw":
        kernels.append(draw(st.integers(1, 3)))
        strides.append(draw(st.integers(1, 3)))
        dilations.append(draw(st.integers(1, 2)))
        extent = (kernels[-1] - 1) * dilations[-1] + 1
        before.append(draw(st.integers(0, extent - 1)))
        after.append(draw(st.integers(0, extent - 1)))
        sizes.append(max(1, extent - before[-1] - after[-1]) + draw(st.integers(0, 3)))
    return ConvWorkload(
        batch=draw(st.integers(1, 2)),
        in_channels=groups * draw(st.integers(1, 2)),
        in_height=sizes[0],
        in_width=sizes[1],
        out_channels=groups * draw(st.integers(1, 2)),
        kernel=tuple(kernels),
        stride=tuple(strides),
        padding=(*before, *after),
        dilation=tuple(dilations),
        groups=groups,
    )


@settings(deadline=None)
@given(tiny_workload(), st.integers(0, 2**32))
def test_equals_seven_loops(w, seed):
    x, weight = random_tensors(w, seed)
    out = conv2d_reference(x, weight, w)
    assert (out.dtype, out.shape) == (np.float64, w.output_shape)
    np.testing.assert_allclose(out, seven_loops(x, weight, w), rtol=1e-13, atol=1e-13)


def test_by_hand():
    w = ConvWorkload.parse("ic1ih3oc1kh2")
    x = np.arange(9).reshape(1, 1, 3, 3)
    weight = np.array([[[[1, 10], [100, 1000]]]])  # not flipped
    assert conv2d_reference(x, weight, w).tolist() == [[[[4310, 5421], [7643, 8754]]]]


def test_by_hand_padding_stride_and_dilation():
    w = ConvWorkload.parse("ic1ih3oc1oh2kh2sh2ph1dh1")
    x = np.arange(1, 10).reshape(1, 1, 3, 3)
    weight = np.array([[[[1, 10], [100, 1000]]]])
    # Only the element under one corner of the kernel is inside the input's border.
    assert conv2d_reference(x, weight, w).tolist() == [[[[5000, 500], [50, 5]]]]


def test_by_hand_groups_and_batch():
    w = ConvWorkload.parse("g2mb2ic4ih1oc2kh1")
    x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]).reshape(2, 4, 1, 1)
    weight = np.array([[1, 10], [100, 1000]]).reshape(2, 2, 1, 1)
    assert conv2d_reference(x, weight, w).reshape(2, 2).tolist() == [[21, 4300], [65, 8700]]


@pytest.mark.parametrize(
    "x, weight, message",
    [
        (np.zeros((1, 8, 8, 3)), np.zeros((4, 3, 3, 3)), "x has shape (1, 8, 8, 3); expected (1, "),
        (np.zeros((1, 3, 8, 8)), np.zeros((3, 4, 3, 3)), "weight has shape (3, 4, 3, 3); expected"),
        (np.zeros((1, 3, 8, 8)), np.zeros(()), "weight has shape (); expected (4, 3, 3, 3) (OIHW)"),
        (np.zeros((1, 3, 8, 8), complex), np.zeros((4, 3, 3, 3)), "x has dtype complex128"),
    ],
)
def test_wrong_arrays(x, weight, message):
    with pytest.raises(ArgumentError) as error:
        conv2d_reference(x, weight, ConvWorkload.parse("ic3ih8oc4kh3"))
    assert message in str(error.value)


def test_max_error():
    reference = np.array([1.0, -4.0, 2.0])
    assert max_error(reference, reference) == 0
    assert max_error(reference.astype(np.float32) + 1, reference) == 0.25
    assert max_error(np.array([1.0, 4.0, 2.0]), reference) == 2
    for bad in (math.nan, math.inf, -math.inf):
        assert max_error(np.array([1.0, bad, 2.0]), reference) == math.inf
    # No scale: the absolute error.
    assert max_error(np.zeros(3), np.zeros(3)) == 0
    assert max_error(np.array([0.5, -2.0, 0.0]), np.zeros(3)) == 2


@pytest.mark.parametrize(
    "actual, reference, message",
    [
        (np.zeros(2), np.zeros(3), "actual has shape (2,); expected (3,)"),
        (np.zeros(()), np.zeros(3), "actual has shape (); expected (3,)"),
        (np.zeros(0), np.zeros(0), "reference of shape (0,) must hold numbers"),
        (np.zeros(1), np.array([math.nan]), "must hold numbers, and finite ones only"),
        (np.array(["a"]), np.zeros(1), "actual has dtype <U1"),
    ],
)
def test_max_error_refuses(actual, reference, message):
    with pytest.raises(ArgumentError) as error:
        max_error(actual, reference)
    assert message in str(error.value)


@pytest.mark.filterwarnings("error")
def test_exponentials_without_bound():
    sums = np.array([-1e4, 1e4]).reshape(1, 1, 1, 2)
    assert epilogue_reference(sums, Epilogue(activation="sigmoid")).ravel().tolist() == [0, 1]
    assert epilogue_reference(sums, Epilogue(activation="silu")).ravel().tolist() == [0, 1e4]


def test_random_tensors():
    w = ConvWorkload.parse("g2mb2ic4ih5iw6oc6kh3kw2")
    x, weight = random_tensors(w, 0)
    assert (x.shape, weight.shape) == (w.input_shape, w.weight_shape)
    assert x.dtype == weight.dtype == np.float32
    assert -1 <= x.min() < 0 < x.max() < 1
    again = random_tensors(w, 0)
    assert np.array_equal(x, again[0]) and np.array_equal(weight, again[1])
    assert not np.array_equal(x, random_tensors(w, 1)[0])
    with pytest.raises(ArgumentError, match="seed is -1"):
        random_tensors(w, -1)


@pytest.mark.parametrize(
    "descriptor, largest",
    [("ic4ih9oc2kh3", 8), ("ic65536ih4oc1kh4", 4), ("ic4194304ih1oc1kh1", 2)],
)
def test_integer_tensors_are_exact(descriptor, largest):
    w = ConvWorkload.parse(descriptor)
    x, weight = random_tensors(w, 3, integers=True)
    assert x.dtype == weight.dtype == np.float32
    for tensor in (x, weight):
        assert np.array_equal(tensor, np.round(tensor))
        assert np.abs(tensor).max() == largest
    # The worst case, all products of one sign, still fits a float32.
    assert largest**2 * math.prod(w.weight_shape[1:]) <= 2**24
    # One addition after the other in float32, against one sum in float64.
    terms = x[0, :, 0, 0] * weight[0, :, 0, 0]
    assert np.cumsum(terms)[-1] == terms.sum(dtype=np.float64)


@pytest.mark.parametrize("descriptor", ["ic16777217ih1oc1kh1", "float16_ic512ih3oc2kh3"])
def test_of_long_sums_most_products_are_zero(descriptor):
    w = ConvWorkload.parse(descriptor)
    x, weight = random_tensors(w, 0, integers=True)
    products = np.abs(x).max() * np.abs(weight.astype(np.float64)).sum(axis=(1, 2, 3)).max()
    assert 0 < products < w.precision.sum.largest_exact / 2
    assert x.dtype == weight.dtype == w.dtype
