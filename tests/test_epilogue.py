"""Epilogues: rows of operands and activations, which all else follows."""

from dataclasses import fields

import numpy as np
import pytest

from tvm_directconv import Epilogue, build, reference
from tvm_directconv.epilogue import ACTIVATIONS, OPERANDS
from tvm_directconv.errors import ArgumentError, WorkloadError


def test_the_oracle_knows_the_same_ones() -> None:
    assert reference._ACTIVATIONS.keys() == ACTIVATIONS.keys()
    assert list(reference._OPERANDS) == [operand.name for operand in OPERANDS]


def test_an_epilogue_has_a_flag_for_each_operand() -> None:
    flags = [field.name for field in fields(Epilogue) if field.type in (bool, "bool")]
    assert flags == [*(operand.name for operand in OPERANDS), "zero_point", "residual_first"]
    everything = Epilogue(**dict.fromkeys(flags[:-1], True))
    assert everything.operands == OPERANDS
    assert Epilogue.parse(everything.descriptor) == everything
    assert str(everything) == "_".join(flags[:-1])


def test_the_order_of_an_addition_is_said_where_it_matters() -> None:
    first = Epilogue(residual=True, residual_first=True, requantize="int8")
    assert first.descriptor == "residual_first,none,requantize=int8"
    assert Epilogue.parse(first.descriptor) == first
    assert str(first) == "residual_first_int8"
    for others in ({"requantize": "float32"}, {"requantize": "int8", "residual": False}):
        with pytest.raises(WorkloadError, match="residual_first is given"):
            Epilogue(**{"residual": True, "residual_first": True, **others})


def test_operands_are_asked_for_by_name() -> None:
    conv = build("ic8ih4oc8oh4kh1", epilogue=Epilogue(bias=True))
    x, weight = np.zeros((1, 8, 4, 4), np.float32), np.zeros((8, 8, 1, 1), np.float32)
    bias = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(conv(x, weight, bias=bias)[0, :, 0, 0], bias)
    with pytest.raises(ArgumentError, match="there is no bias: expected one"):
        conv(x, weight)
    with pytest.raises(ArgumentError, match=r"'bais' is no operand of .*did you mean 'bias'"):
        conv(x, weight, bias=bias, bais=bias)
    with pytest.raises(ArgumentError, match="a residual is given: expected none"):
        conv(x, weight, bias=bias, residual=x)
    with pytest.raises(ArgumentError, match="the bias has shape"):
        conv.pack_operand("bias", x)
