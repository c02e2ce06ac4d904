"""What the model compares, and chooses."""

import pytest
from conftest import DEVICES, LAYERS

from tvm_directconv import ConvWorkload, device
from tvm_directconv.candidates import candidates, choose
from tvm_directconv.case import Case, default_input_layout
from tvm_directconv.model import estimate
from tvm_directconv.tiling import Tiling, reasons_against


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", DEVICES)
def test_the_model_chooses_what_can_be_used(name: str, threads: int) -> None:
    target = device(name)
    for layer in LAYERS[threads - 1 :: 3 * threads]:
        layout = default_input_layout(layer, target)
        chosen = choose(Case.of(layer, target, threads))
        assert reasons_against(chosen, Case.of(layer, target, input_layout=layout)) == []
        cost = estimate(Tiling(Case.of(layer, target, threads), chosen))
        assert 0 < cost.of_peak < layer.flops / layer.useful_flops
        assert 0.5 < cost.balance <= 1


# Layers whose tiles are many, few, narrower at the end, in groups and in matrix registers.
@pytest.mark.parametrize("precision", ["", "uint8_", "bfloat16_"])
@pytest.mark.parametrize("name", ["haswell", "znver4", "sapphirerapids", "cortex-a72", "apple-m1"])
def test_no_candidate_is_better_than_the_choice(name: str, precision: str) -> None:
    target = device(name)
    for number, layer in enumerate(LAYERS[len(name) + len(precision) :: 13]):
        workload = ConvWorkload.parse(f"{precision}{layer}")
        if not target.rates(workload.precision):
            continue
        case = Case.of(workload, target, 1 + number % 3)
        cycles = {b: estimate(Tiling(case, b)).cycles for b in candidates(case)}
        # The first of equals.
        assert choose(case) == min(cycles, key=cycles.__getitem__)


@pytest.mark.parametrize("layer", LAYERS[::7], ids=str)
def test_all_candidates_can_be_used(layer: ConvWorkload) -> None:
    target = device("cortex-a72")
    layout = default_input_layout(layer, target)
    for candidate in candidates(Case.of(layer, target, 3, layout)):
        assert reasons_against(candidate, Case.of(layer, target, input_layout=layout)) == []


@pytest.mark.parametrize("name", ["haswell", "znver4", "cortex-a72"])
def test_any_number_of_channels_can_be_built_for(name: str) -> None:
    target = device(name)
    # 36 = 4 x 9 channels lie in blocks of 8, of which neither 12 nor 36 is a multiple.
    for channels in (1, 5, 17, 36, 42, 66, 100, 127, 150, 286):
        layer = ConvWorkload(
            in_channels=channels,
            in_height=9,
            in_width=9,
            out_channels=channels,
            kernel=(3, 3),
            padding=(1, 1, 1, 1),
        )
        layout = default_input_layout(layer, target)
        for candidate in candidates(Case.of(layer, target, input_layout=layout)):
            assert reasons_against(candidate, Case.of(layer, target, input_layout=layout)) == []
        assert reasons_against(choose(Case.of(layer, target)), Case.of(layer, target)) == []


def test_tiles_have_few_streams_of_weights() -> None:
    # 13 vectors of 16 lanes, 2, and twice 9 in groups, which leave none over.
    for channels, groups, most in ((208, 1, 4), (32, 1, 2), (288, 2, 3)):
        workload = ConvWorkload.parse(f"g{groups}ic96ih14oc{channels}oh14kh3ph1")
        spec = device("skylake-avx512")
        layout = default_input_layout(workload, spec)
        found = {b.oc_vectors for b in candidates(Case.of(workload, spec, input_layout=layout))}
        assert max(found) == most
