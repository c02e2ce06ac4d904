"""Block sizes by name."""

import pytest

from tvm_directconv import Blocking, ConvWorkload, device
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.errors import BlockingError


def test_knobs_by_name() -> None:
    blocking = choose(Case.of(ConvWorkload.parse("ic8ih8oc8kh3"), device("armv7")))
    assert Blocking.from_dict(blocking.to_dict()) == blocking
    with pytest.raises(BlockingError, match="lacks lanes"):
        Blocking.from_dict({})
