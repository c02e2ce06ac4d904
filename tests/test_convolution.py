"""Building, exporting, loading and running convolutions."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_exact, exact_case

from tvm_directconv import (
    Blocking,
    CompiledConv,
    ConvWorkload,
    build,
    conv2d_reference,
    device,
    load,
    max_error,
    random_tensors,
)
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.toolchain import elf_info, find_toolchain, link_shared

LAYER = ConvWorkload.parse('ic24ih13oc40oh13kh3ph1n"mine:conv"')
PIXELS = ConvWorkload.parse("ic40ih13oc24oh13kh1")


@pytest.fixture(scope="module")
def conv() -> CompiledConv:
    return build(LAYER)


def test_an_exported_library_gives_the_same(conv: CompiledConv, tmp_path: Path) -> None:
    loaded = load(conv.export(tmp_path / "conv.so"))
    assert loaded.manifest == conv.manifest
    assert (loaded.workload.name, loaded.blocking) == ("mine:conv", conv.blocking)
    assert loaded.compile_seconds is None
    assert conv.compile_seconds is not None and conv.compile_seconds > 0
    assert_exact(loaded)
    # Loaded code does not need the file any more, nor the name it was exported under.
    (tmp_path / "conv.so").rename(tmp_path / "other.so")
    (tmp_path / "conv.so.json").rename(tmp_path / "other.so.json")
    assert_exact(load(tmp_path / "other.so"))


def test_the_manifest_says_what_is_needed_to_call_it(conv: CompiledConv, tmp_path: Path) -> None:
    path = conv.export(tmp_path / "conv.so")
    found = json.loads(Path(f"{path}.json").read_text())
    assert found["workload"] == str(LAYER)
    assert found["name"] == "mine:conv"
    assert found["device"] == device("native").name
    assert found["blocking"] == conv.blocking.to_dict()
    assert found["blocking_source"] == "model"
    assert f"__tvm_ffi_{found['symbol']}" in elf_info(path).defined
    x, weight, _ = exact_case(LAYER)
    assert tuple(found["input"]["shape"]) == conv.pack_input(x).shape
    assert tuple(found["weight"]["shape"]) == conv.pack_weight(weight).shape
    assert tuple(found["output"]["shape"]) == conv.manifest.output_shape


def test_object_files_are_linked_together(conv: CompiledConv, tmp_path: Path) -> None:
    convs = [conv, build(PIXELS)]
    objects = [c.export(tmp_path / f"{i}.o") for i, c in enumerate(convs)]
    library, toolchain = tmp_path / "both.so", find_toolchain(device("native").triple)
    link_shared(objects, library, toolchain)
    for c in convs:
        x, weight, expected = exact_case(c.workload)
        packed = [c.pack_input(x), c.pack_weight(weight)]
        report = run_library(
            library, c.manifest.symbol, packed, [c.manifest.output_shape], toolchain
        )
        found = c.unpack_output(report.outputs[0])
        np.testing.assert_array_equal(found, expected)


def test_a_library_asks_for_nothing_but_a_way_to_report_errors(
    conv: CompiledConv, tmp_path: Path
) -> None:
    needed = set(elf_info(conv.export(tmp_path / "conv.so")).undefined)
    # LLVM calls the C library to set sums to zero.
    assert needed - {"memset"} == {"TVMFFIErrorSetRaisedFromCStrParts"}


def test_one_layers_output_is_the_next_ones_input(conv: CompiledConv) -> None:
    second = build(PIXELS)
    assert second.manifest.input_layout == conv.manifest.output_layout
    x, weight, expected = exact_case(LAYER)
    _, next_weight, _ = exact_case(PIXELS)
    y = conv.run(conv.pack_input(x), conv.pack_weight(weight))
    z = second.unpack_output(second.run(y, second.pack_weight(next_weight)))
    reference = conv2d_reference(expected, next_weight, PIXELS)
    np.testing.assert_array_equal(z, reference.astype(np.float32))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW4c", "NCHW8c", "NCHW24c"])
def test_any_layout_of_the_input(layout: str) -> None:
    conv = build(LAYER, input_layout=layout)
    assert str(conv.manifest.input_layout) == layout
    assert_exact(conv)


def test_fractions_are_as_exact_as_float32_allows(conv: CompiledConv) -> None:
    x, weight = random_tensors(LAYER, seed=3)
    error = max_error(conv(x, weight), conv2d_reference(x, weight, LAYER))
    assert 0 < error < 1e-6


def test_the_output_may_be_given(conv: CompiledConv) -> None:
    x, weight, expected = exact_case(LAYER)
    packed = conv.pack_input(x), conv.pack_weight(weight)
    out = aligned_zeros(conv.manifest.output_shape)
    assert conv.run(*packed, out) is out
    np.testing.assert_array_equal(conv.unpack_output(out), expected)
    assert conv.run(*packed) is not out


def test_a_bound_call_computes_from_what_the_arrays_hold_then(conv: CompiledConv) -> None:
    x, weight, expected = exact_case(LAYER)
    packed = conv.pack_input(x)
    call = conv.bind(packed, conv.pack_weight(weight), aligned_zeros(conv.manifest.output_shape))
    for factor in (1, 2):
        call()
        np.testing.assert_array_equal(conv.unpack_output(call.out), factor * expected)
        packed *= 2


def test_a_library_of_an_old_name_is_loaded_anew(tmp_path: Path) -> None:
    """The dynamic linker would take it for the one that it knows."""
    for workload in (LAYER, PIXELS):
        loaded = load(build(workload).export(tmp_path / "conv.so"))
        assert_exact(loaded)
    first = load(tmp_path / "conv.so")
    build(PIXELS, blocking={**first.blocking.to_dict(), "ow_tile": 2}).export(tmp_path / "conv.so")
    assert load(tmp_path / "conv.so").blocking.ow_tile == 2
    assert_exact(load(tmp_path / "conv.so"))
    assert_exact(first)


def test_callers_stay_on_the_cores_that_they_had() -> None:
    cores = os.sched_getaffinity(0)
    assert_exact(build(LAYER, threads=2))
    assert os.sched_getaffinity(0) == cores


def test_as_many_threads_compute_as_were_asked_for() -> None:
    """In a process of its own, where TVM has no threads yet: it likes half of the cores best."""
    code = f"""if True:
        import tvm_ffi, tvm_directconv as dc
        from tvm_directconv import pool
        conv = dc.build({str(LAYER)!r}, threads=2)
        conv(*dc.random_tensors(conv.workload, seed=0))
        print(pool.run(2, tvm_ffi.get_global_func("runtime.NumThreads")))"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert int(output) == min(2, len(os.sched_getaffinity(0)))


def test_numbers_of_threads_take_turns() -> None:
    for threads in (2, 1, 3, 2):
        conv = build(LAYER, threads=threads)
        assert conv.manifest.threads == threads
        assert_exact(conv)


def test_batches_are_shared_among_threads() -> None:
    assert_exact(build(replace(LAYER, batch=3), threads=2))


def test_where_a_blocking_comes_from(conv: CompiledConv, tmp_path: Path) -> None:
    knobs = conv.blocking.to_dict()
    assert build(LAYER, blocking="model").manifest.blocking_source == "model"
    for given in (conv.blocking, knobs, {"blocking": knobs}):
        built = build(LAYER, blocking=given)
        assert (built.blocking, built.manifest.blocking_source) == (conv.blocking, "user")
    path = tmp_path / "knobs.json"
    for given in (knobs, {"blocking": knobs, "more": 1}):
        path.write_text(json.dumps(given))
        for name in (path, str(path)):
            built = build(LAYER, blocking=name)
            assert built.blocking == conv.blocking
            assert built.manifest.blocking_source == f"file {path}"


def test_a_users_schedule(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def schedule(sch, tiling):\n    pass\n")
    assert_exact(build(LAYER, schedule=path))
    assert_exact(build(LAYER, schedule=str(path)))


def test_a_users_device(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(f'parent = "{device("native").name}"\ncores = 2\n')
    conv = build(LAYER, path)
    assert (conv.manifest.device, conv.manifest.target["num-cores"]) == ("board", 1)
    assert_exact(conv)


def test_descriptors_and_workloads_are_the_same() -> None:
    assert build(str(PIXELS)).manifest == build(PIXELS).manifest
    blocking = build(PIXELS).blocking
    assert Blocking.from_dict(blocking.to_dict()) == blocking
