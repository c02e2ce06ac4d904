"""Networks on Relax's virtual machine: tvm.compile with the pipeline, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from conftest import FOREIGN
from onnx_models import Graph, assert_equal, random_inputs, saved
from tvm import relax
from tvm.target import Target

from tvm_directconv import compile_network, device, load_network
from tvm_directconv.errors import BlockingError, DeviceError, DirectConvError, ModelError
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.network.onnx_import import import_onnx
from tvm_directconv.network.pipeline import NAME
from tvm_directconv.toolchain import elf_info, find_toolchain

NATIVE = device("native")


def network() -> Any:
    """Make a network of two inputs and outputs, with concatenations, a copy, and dense layers."""
    g = Graph(x=(1, 3, 11, 12), r=(1, 24, 11, 12))
    y = g.node("Relu", g.batch_norm(g.conv("x", 24, 3, 3, 3, bias=True, pads=[1] * 4), 24))
    z = g.conv(y, 24, 1, 3, 3, pads=[1] * 4, group=24)
    y = g.node("Add", g.conv(y, 24, 24, 1, 1), "r")
    y = g.node("Concat", g.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4), z, axis=1)
    y = g.node("GlobalMaxPool", g.conv(y, 16, 48, 3, 3, strides=[2, 2]))
    return g.model(g.node("Gemm", g.node("Flatten", y), g.integers(16, 10)), y)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return import_onnx(saved(network(), tmp_path_factory.mktemp("module")))


@pytest.fixture(scope="module")
def library(module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Take the other way: the module to a library of its own."""
    path = tmp_path_factory.mktemp("library") / "network.so"
    compile_network(module, path)
    return load_network(path)


def machine(code: Any) -> Any:
    return relax.VirtualMachine(code, tvm.cpu())["main"]


def tensors(inputs: Any) -> list[Any]:
    return [tvm.runtime.tensor(array) for array in inputs]


def arrays(results: Any) -> tuple[np.ndarray, ...]:
    return tuple(result.numpy() for result in results)


def function(shape: Any, made: Callable[[Any, Any], Any], name: str = "main") -> Any:
    """Make a module of one function of a tensor."""
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function(name, [x]):
        builder.emit_func_output(made(builder, x))
    return builder.get()


@pytest.mark.parametrize(
    "compile_",
    [
        lambda m: relax.build(m, relax_pipeline=NAME),
        lambda m: tvm.compile(m, NATIVE.target(), relax_pipeline=relax.get_pipeline(NAME)),
        lambda m: tvm.compile(m, relax_pipeline=relax.get_pipeline(NAME, threads=2)),
    ],
    ids=["by name", "target", "threads"],
)
def test_the_machine_computes_what_the_library_does(
    compile_: Callable[[Any], Any], module: Any, library: Any
) -> None:
    run = machine(compile_(module))
    first, second = (random_inputs(library.manifest.inputs, seed) for seed in (3, 4))
    results = [run(*tensors(inputs)) for inputs in (first, second)]
    # Later runs leave earlier results alone.
    for inputs, result in zip((first, second), results, strict=True):
        assert_equal(arrays(result), library.run(*inputs))


def test_the_machine_has_only_memory_to_allocate_and_one_call_to_make(
    module: Any, library: Any
) -> None:
    code = relax.build(module, relax_pipeline=NAME).as_text().split("@main:")[1].split("\n\n")[0]
    called = [words[1] for line in code.splitlines() if (words := line.split())[:1] == ["call"]]
    memory = ["alloc_storage", "alloc_tensor"]  # Of each output, and of the arena.
    assert [name.removeprefix("vm.builtin.") for name in called] == [
        *["check_tensor_info"] * len(library.manifest.inputs),
        *["match_shape"] * len(library.manifest.inputs),
        *memory * (len(library.manifest.outputs) + 1),
        "directconv_network",
        "make_tuple",
    ]


def test_it_is_exported_and_loaded(module: Any, library: Any, tmp_path: Path) -> None:
    path = tmp_path / "machine.so"
    tvm.compile(module, relax_pipeline=relax.get_pipeline(NAME)).export_library(path)
    inputs = random_inputs(library.manifest.inputs)
    results = machine(tvm.runtime.load_module(str(path)))(*tensors(inputs))
    assert_equal(arrays(results), library.run(*inputs))


def test_it_is_exported_for_another_machine(module: Any, tmp_path: Path) -> None:
    target, path = device(FOREIGN), tmp_path / "machine.so"
    toolchain = find_toolchain(target.triple)
    for options in ({"target": target.target()}, {"relax_pipeline": {"device": FOREIGN}}):
        chosen = relax.get_pipeline(NAME, **options.pop("relax_pipeline", {}))
        made = tvm.compile(module, **options, relax_pipeline=chosen)
        made.export_library(path, cc=toolchain.cc[0])
        assert elf_info(path).machine == toolchain.machine


@pytest.mark.parametrize("returned", ["one", "tuple of one", "input", "twice"])
def test_results_have_the_networks_type(returned: str) -> None:
    def made(builder: Any, x: Any) -> Any:
        y = builder.emit(relax.op.nn.relu(x))
        return {"one": y, "tuple of one": relax.Tuple([y]), "input": x, "twice": (y, y)}[returned]

    array = np.arange(-30, 30, dtype=np.float32).reshape(1, 3, 4, 5)
    run = machine(relax.build(function(array.shape, made), relax_pipeline=NAME))
    found = run(*tensors([array]))
    expected = array if returned == "input" else np.maximum(array, 0)
    count = {"tuple of one": 1, "twice": 2}.get(returned)
    assert_equal(arrays([found] if count is None else found), [expected] * (count or 1))


def test_an_input_that_cannot_be_used_is_named(module: Any) -> None:
    run = machine(relax.build(module, relax_pipeline=NAME))
    x, r = aligned_zeros((1, 3, 11, 12)), aligned_zeros((1, 24, 11, 12))
    elsewhere = aligned_zeros((x.size + 1,))[1:].reshape(x.shape)
    with pytest.raises(ValueError, match=r"input0 x: float32 of shape 1x3x11x12.*aligned to 64"):
        run(*map(tvm_ffi.from_dlpack, (elsewhere, r)))
    with pytest.raises(ValueError, match="input1 r: float32 of shape 1x24x11x12, contiguous"):
        strided = np.asfortranarray(aligned_zeros((1, 24, 11, 12)))
        run(*map(tvm_ffi.from_dlpack, (x, strided)))


# --- What is refused ---------------------------------------------------------------------------


def refusal(module: Any, target: Any = None, **options: Any) -> DirectConvError:
    with pytest.raises(DirectConvError) as caught:
        tvm.compile(module, target, relax_pipeline=relax.get_pipeline(NAME, **options))
    return caught.value


OTHER = "haswell" if NATIVE.name != "haswell" else "znver3"
TRIPLE = str(NATIVE.target_options()["mtriple"])
BARE = {"kind": "llvm", "mtriple": NATIVE.triple}


@pytest.mark.parametrize(
    ("target", "named", "words"),
    [
        (BARE, "native", ("is not that of device", NATIVE.name)),
        (device(OTHER).target_options(), "native", (OTHER, "is not that of device", NATIVE.name)),
        (NATIVE.target_options(), FOREIGN, (TRIPLE, "is not that of device", FOREIGN)),
        ({"kind": "llvm", "mcpu": device(FOREIGN).mcpu}, None, ("mtriple", device(FOREIGN).triple)),
        (BARE, None, ("names no processor",)),
        ({"kind": "cuda", "arch": "sm_80"}, "native", ("cuda", NATIVE.name)),
        ({"kind": "cuda", "arch": "sm_80"}, None, ("'cuda': expected 'llvm'",)),
    ],
)
def test_a_target_of_another_device_is_refused(
    module: Any, target: dict[str, Any], named: str | None, words: tuple[str, ...]
) -> None:
    error = refusal(module, Target(target), device=named)
    assert isinstance(error, DeviceError)
    assert all(word in str(error) for word in words), error


def test_features_that_the_devices_code_has_not_are_refused(module: Any) -> None:
    target = device(FOREIGN).target_options() | {"mattr": ["-neon"]}
    assert "-neon" in str(refusal(module, Target(target), device=FOREIGN))


def test_another_name_of_the_devices_processor_will_do(module: Any) -> None:
    target = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "core-avx2"})
    tvm.compile(module, target, relax_pipeline=relax.get_pipeline(NAME, device="haswell"))


@pytest.mark.parametrize(("option", "value"), [("threads", 0), ("threads", "2"), ("blocking", "x")])
def test_options_that_make_no_sense_are_refused(module: Any, option: str, value: Any) -> None:
    error = refusal(module, **{option: value})
    assert isinstance(error, BlockingError)
    assert f"{option} is {value!r}: expected" in str(error)


def _branch(_builder: Any, x: Any) -> Any:
    def block(value: Any) -> Any:
        y = relax.Var("y", x.ty)
        return relax.SeqExpr([relax.BindingBlock([relax.VarBinding(y, value)])], y)

    condition = relax.const(True, "bool")
    return relax.If(condition, block(relax.op.nn.relu(x)), block(relax.op.negative(x)))


def _nested(builder: Any, x: Any) -> Any:
    return relax.Tuple([x, relax.Tuple([x])])


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (function((tvm.tirx.Var("n", "int64"), 3), lambda b, x: relax.op.nn.relu(x)), "input x"),
        (function((2, 3), lambda b, x: relax.op.nn.relu(x), "forward"), "are forward: expected"),
        (function((2, 3), _branch), "a branch"),
        (function((2, 3), lambda b, x: relax.op.unique(x)), "depends on data"),
        (function((2, 3), lambda b, x: relax.op.sort(x)), "sort, which there is no kernel for"),
        (
            function((2, 3), lambda b, x: relax.Call(relax.ExternFunc("f"), [x], ty_args=[x.ty])),
            "calls .*f",
        ),
        (function((2, 3), _nested), "returns .*expected a tensor"),
    ],
)
def test_what_is_no_network_is_refused(refused: Any, words: str) -> None:
    error = refusal(refused)
    assert isinstance(error, ModelError)
    assert re.search(words, str(error)), error


def test_functions_that_would_be_lost_are_refused(module: Any) -> None:
    other = function((2, 3), lambda b, x: relax.op.nn.relu(x), "other")
    both = tvm.IRModule({**module.functions, **other.functions})
    assert "are main, other: expected main alone" in str(refusal(both))


def test_private_functions_are_inlined() -> None:
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("inner", [x], private=True):
        builder.emit_func_output(builder.emit(relax.op.negative(x)))
    inner = builder.get().get_global_var("inner")
    z = relax.Var("z", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [z]):
        once = builder.emit(relax.Call(inner, [z]))
        builder.emit_func_output(builder.emit(relax.op.nn.relu(once)))
    array = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    found = machine(relax.build(builder.get(), relax_pipeline=NAME))(*tensors([array]))
    np.testing.assert_array_equal(found.numpy(), np.maximum(-array, 0))
