"""Every layer of the networks, as the model blocks it for this machine, against the reference."""

import pytest
from conftest import LAYERS, assert_exact

from tvm_directconv import ConvWorkload, build


@pytest.mark.parametrize("layer", LAYERS, ids=lambda w: w.name)
def test_layers_are_exact(layer: ConvWorkload) -> None:
    assert_exact(build(layer, "native"))
