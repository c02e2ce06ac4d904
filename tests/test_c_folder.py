"""Folders with C: built by make, run here and in emulators, compared with Python."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from conftest import Command, exact_case
from onnx_models import Graph, by_onnxruntime, random_inputs, saved

import tvm_directconv as dc
from tvm_directconv import epilogue_reference
from tvm_directconv.bench.models import model
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.emit.c_folder import arguments_of, name_of
from tvm_directconv.emit.program import Port, Program
from tvm_directconv.errors import LibraryError
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.toolchain import elf_info, find_toolchain, link_shared

TESTS = Path(__file__).parent
# Devices, and the processors that an emulator is to be.
CASES = (
    ("native", None),
    ("cortex-a53", "cortex-a53"),
    ("cortex-a72", "cortex-a72"),
    ("armv7", "cortex-a7"),
)
WARNINGS = "-O2 -Wall -Wextra -Werror"


@dataclass(frozen=True)
class Machine:
    """What a folder is made for."""

    device: str
    qemu_cpu: str | None

    @property
    def toolchain(self) -> Any:
        return find_toolchain(dc.device(self.device).triple, self.qemu_cpu)

    def make(self, folder: Path, *words: str) -> None:
        command = ["make", "-s", "-C", str(folder), f"CFLAGS={WARNINGS}", *words]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def run(self, program: Path, *words: object) -> str:
        command = self.toolchain.command(f"./{program.name}", *map(str, words))
        done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(*request.param)


@pytest.fixture(scope="module")
def native() -> Machine:
    return Machine("native", None)


def two_of_each() -> onnx.ModelProto:
    """Make a network of whole numbers with two inputs and two outputs, with awkward names."""
    g = Graph(**{"class": (1, 3, 11, 12), "x:0": (1, 24, 11, 12)})
    y = g.node("Relu", g.conv("class", 24, 3, 3, 3, bias=True, pads=[1] * 4))
    y = g.node("Relu", g.node("Add", g.conv(y, 24, 24, 1, 1), "x:0"))
    y = g.conv(y, 16, 24, 3, 3, strides=[2, 2])
    z = g.node("Flatten", g.node("GlobalMaxPool", y))
    return g.model(g.node("Gemm", z, g.integers(16, 10), g.integers(10)), y)


def arrays_of(folder: Path, names: list[str], ports: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [
        np.fromfile(folder / name, np.float32).reshape(shape)
        for name, shape in zip(names, ports, strict=True)
    ]


# --- What they compute ------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_networks_answer_as_in_python(machine: Machine, threads: int, tmp_path: Path) -> None:
    path = saved(two_of_each(), tmp_path)
    folder = tmp_path / "two-of each"
    m = dc.compile_network(path, folder, machine.device, threads, emit="c", check=False)
    machine.make(folder, "CPPFLAGS=-DRUNS=2", "all", "mapped")
    inputs = random_inputs(m.inputs)
    for number, array in enumerate(inputs):
        np.save(folder / f"in{number}.npy", array)
        array.tofile(folder / f"in{number}.bin")
    expected = by_onnxruntime(two_of_each(), inputs)
    shapes = [port.shape for port in m.outputs]
    for program, suffix in (("two_of_each", "npy"), ("two_of_each_mapped", "bin")):
        words = [*(f"in{n}.{suffix}" for n in range(2)), "out0", "out1"]
        text = machine.run(folder / program, *words)
        for found, right in zip(arrays_of(folder, words[2:], shapes), expected, strict=True):
            np.testing.assert_array_equal(found, right)  # Whole numbers: bit for bit.
        best = sorted(range(10), key=lambda n: -expected[0][0, n])[:5]
        lines = text.splitlines()
        assert [int(line.split()[0]) for line in lines[1:6]] == best
        assert lines[-1].startswith("milliseconds ")


LAYERS = ("ic24ih13oc40oh13kh3ph1", "ic3ih27oc17oh13kh5sh2ph2")
THOROUGH = ("vgg16", "googlenet", "mobilenetv1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer" in metafunc.fixturenames:
        thorough = metafunc.config.getoption("--thorough")
        layers = list(dict.fromkeys(dc.workloads(THOROUGH if thorough else LAYERS)))
        metafunc.parametrize("layer", layers, ids=lambda layer: layer.name or str(layer))


def computed(machine: Machine, folder: Path, name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Run the example of a layer and return what it has written, as it is."""
    for number, array in enumerate(arrays):
        array.tofile(folder / f"in{number}")
    machine.run(folder / name, *(f"in{number}" for number in range(len(arrays))), "out")
    return np.fromfile(folder / "out", np.float32)


def test_layers_answer_as_in_python(
    machine: Machine, layer: dc.ConvWorkload, tmp_path: Path
) -> None:
    epilogue = dc.Epilogue(bias=True, residual=True, activation="relu")
    conv = dc.build(layer, machine.device, threads=2, epilogue=epilogue)
    folder = conv.export_c(tmp_path / "layer")
    machine.make(folder, "CPPFLAGS=-DRUNS=1")

    def packed(
        x: np.ndarray, weight: np.ndarray, bias: np.ndarray, residual: np.ndarray
    ) -> list[np.ndarray]:
        operands = {"bias": bias, "residual": residual}
        return [
            conv.pack_input(x),
            conv.pack_weight(weight),
            *(conv.pack_operand(name, array) for name, array in operands.items()),
        ]

    x, weight, sums = exact_case(layer)
    rng = np.random.default_rng(1)
    bias = rng.integers(-64, 64, layer.out_channels).astype(np.float32)
    residual = rng.integers(-64, 64, sums.shape).astype(np.float32)
    found = computed(machine, folder, "layer", packed(x, weight, bias, residual))
    found = conv.unpack_output(found.reshape(conv.manifest.output_shape))
    np.testing.assert_array_equal(
        found, epilogue_reference(sums, epilogue, bias=bias, residual=residual)
    )

    if machine.qemu_cpu is None:  # Where Python runs the same code: any numbers, every bit.
        x, weight = dc.random_tensors(layer, seed=2)
        bias, residual = (rng.standard_normal(a.shape, np.float32) for a in (bias, residual))
        operands = packed(x, weight, bias, residual)
        expected = conv.run(*operands[:2], bias=operands[2], residual=operands[3])
        found = computed(machine, folder, "layer", operands)
        np.testing.assert_array_equal(found, expected.ravel())


# Of AArch64, one is enough: what takes memory is the same C code.
@pytest.mark.parametrize(
    "machine",
    [case for case in CASES if case[0] != "cortex-a53"],
    indirect=True,
    ids=lambda case: case[0],
)
def test_squeezenet_takes_its_own_memory_only(
    machine: Machine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    device, emulated = machine.device, machine.qemu_cpu is not None
    network = model("squeezenet", size=224 if request.config.getoption("--thorough") else 65)
    network.graph.input[0].name = network.graph.node[0].input[0] = "x"
    old, network.graph.output[0].name = network.graph.output[0].name, "y"
    for node in network.graph.node:
        node.output[:] = ["y" if name == old else name for name in node.output]
    path = saved(network, tmp_path)
    manifest = dc.compile_network(path, tmp_path / "net", device, threads=2, emit="c", check=False)
    machine.make(tmp_path / "net")
    x = np.random.default_rng(0).standard_normal(manifest.inputs[0].shape).astype(np.float32)
    x.tofile(tmp_path / "x")
    command = [*machine.toolchain.cc, "-std=c99", *WARNINGS.split(), str(TESTS / "overhead.c")]
    command += ["-I", str(tmp_path / "net"), "-I", str(tmp_path / "net/runtime")]
    command += [str(tmp_path / "net/libnet.a"), "-o", str(tmp_path / "overhead"), "-pthread", "-lm"]
    subprocess.run(command, check=True)
    report = json.loads(machine.run(tmp_path / "overhead", "x", "y"))
    assert (report["allocations"], report["different"]) == (0, 0)
    if not emulated:  # An emulator's own memory grows with the code that it translates.
        assert report["extra"] < 2**20
    (y,) = arrays_of(tmp_path, ["y"], [manifest.outputs[0].shape])
    assert dc.max_error(y, by_onnxruntime(network, [x])[0]) < 1e-4
    # The library that Python loads has the same kernels.
    library = tmp_path / "net.so"
    dc.compile_network(path, library, device, threads=2, check=False)
    if emulated:
        shapes = [y.shape, (manifest.arena_bytes // 4,)]
        in_python = run_library(library, "main", [x], shapes, machine.toolchain).outputs[0]
    else:
        in_python = dc.load_network(library).run(x)
    np.testing.assert_array_equal(y, in_python)


def test_a_shared_library_serves_c_and_tvm(native: Machine, tmp_path: Path) -> None:
    path = saved(two_of_each(), tmp_path)
    folder = tmp_path / "net"
    m = dc.compile_network(path, folder, threads=2, emit="c", check=False)
    native.make(folder, "shared", "main.o", "runtime/directconv.o", "CPPFLAGS=-DRUNS=2")
    inputs = random_inputs(m.inputs)
    expected = by_onnxruntime(two_of_each(), inputs)

    objects = [folder / "main.o", folder / "runtime/directconv.o", folder / "libnet.so"]
    subprocess.run(["cc", *objects, "-pthread", "-Wl,-rpath,.", "-o", folder / "app"], check=True)
    for number, array in enumerate(inputs):
        array.tofile(folder / f"in{number}")
    native.run(folder / "app", "in0", "in1", "out0", "out1")
    shapes = [port.shape for port in m.outputs]
    for found, right in zip(arrays_of(folder, ["out0", "out1"], shapes), expected, strict=True):
        np.testing.assert_array_equal(found, right)

    arrays = [aligned_zeros(a.shape) for a in (*inputs, *expected)]
    for array, given in zip(arrays, inputs, strict=False):
        array[...] = given
    arrays.append(aligned_zeros((m.arena_bytes // 4,)))
    tvm.runtime.load_module(str(folder / "libnet.so"))["main"](*map(tvm_ffi.from_dlpack, arrays))
    for found, right in zip(arrays[2:], expected, strict=False):
        np.testing.assert_array_equal(found, right)


def test_cmake_builds_it_for_cpp_beside_another_network(native: Machine, tmp_path: Path) -> None:
    """Two networks in one C++ program: names must not clash, headers must be C++ as well."""
    g = Graph(x=(1, 8, 9, 9))
    first = g.model(g.node("Relu", g.conv("x", 8, 8, 3, 3)))
    g = Graph(x=(1, 8, 7, 7))
    second = g.model(g.node("Neg", g.conv("x", 16, 8, 1, 1)))
    for name, network in (("first", first), ("second", second)):
        dc.compile_network(
            saved(network, tmp_path), tmp_path / name, threads=2, emit="c", check=False
        )
    output = by_onnxruntime(first, [np.ones((1, 8, 9, 9), np.float32)])[0]
    (tmp_path / "CMakeLists.txt").write_text(
        """
        cmake_minimum_required(VERSION 3.13)
        project(both C CXX)
        add_subdirectory(first)
        add_subdirectory(second)
        add_executable(both both.cc)
        target_link_libraries(both first second)
        """
    )
    outputs = {
        name: (tmp_path / name / f"{name}.h").read_text().split("Output ")[1].split(":")[0]
        for name in ("first", "second")
    }
    (tmp_path / "both.cc").write_text(
        f"""
        #include <cstdio>
        #include "first.h"
        #include "second.h"
        static DIRECTCONV_ALIGNED float a[FIRST_X_ELEMENTS], b[SECOND_X_ELEMENTS];
        static DIRECTCONV_ALIGNED float c[FIRST_{outputs["first"].upper()}_ELEMENTS];
        static DIRECTCONV_ALIGNED float d[SECOND_{outputs["second"].upper()}_ELEMENTS];
        static DIRECTCONV_ALIGNED unsigned char memory[FIRST_ARENA_BYTES + SECOND_ARENA_BYTES];
        int main() {{
            for (float &value : a) value = 1;
            if (first_run(a, c, first_weights, memory, sizeof memory)) return 1;
            if (second_run(b, d, second_weights, memory, sizeof memory)) return 2;
            if (first_run(a, c, second_weights, memory, sizeof memory) != DIRECTCONV_BAD_WEIGHTS)
                return 3;
            std::puts(directconv_error());
            std::printf("%g\\n", c[0]);
        }}
        """
    )
    build = tmp_path / "build"
    subprocess.run(["cmake", "-S", tmp_path, "-B", build], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    error, value = native.run(build / "both").splitlines()
    assert error == (
        "first: the weights are not those of this network: expected those that it was compiled with"
    )
    assert float(value) == output[0, 0, 0, 0]
    # By itself it builds the example, too.
    alone = tmp_path / "alone"
    subprocess.run(["cmake", "-S", tmp_path / "first", "-B", alone], check=True)
    subprocess.run(["cmake", "--build", alone], check=True)
    np.ones((1, 8, 9, 9), np.float32).tofile(alone / "x")
    assert "largest of" in native.run(alone / "first_example", "x")


def test_without_threads(native: Machine, tmp_path: Path) -> None:
    path = saved(two_of_each(), tmp_path)
    m = dc.compile_network(path, tmp_path / "net", threads=2, emit="c", check=False)
    native.make(tmp_path / "net", "CPPFLAGS=-DDIRECTCONV_NO_THREADS")
    undefined = elf_info(tmp_path / "net/runtime/directconv.o").undefined
    assert not [name for name in undefined if "pthread" in name or "sched" in name]
    inputs = random_inputs(m.inputs)
    for number, array in enumerate(inputs):
        array.tofile(tmp_path / "net" / f"in{number}")
    native.run(tmp_path / "net/net", "in0", "in1", "out0")
    (found,) = arrays_of(tmp_path / "net", ["out0"], [m.outputs[0].shape])
    np.testing.assert_array_equal(found, by_onnxruntime(two_of_each(), inputs)[0])


def test_only_what_is_used_is_linked(native: Machine, tmp_path: Path) -> None:
    """Where the weights are mapped, they are not in the program as well."""
    g = Graph(x=(1, 64, 9, 9))
    path = saved(g.model(g.conv("x", 640, 64, 3, 3)), tmp_path)
    manifest = dc.compile_network(path, tmp_path / "net", emit="c", check=False)
    native.make(tmp_path / "net", "all", "mapped")
    sizes = [(tmp_path / "net" / name).stat().st_size for name in ("net", "net_mapped")]
    assert 0 <= sizes[0] - sizes[1] - manifest.weight_bytes < 10_000


# --- What is said against bad input -----------------------------------------------------------


@pytest.fixture(scope="module")
def example(native: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "net"
    path = saved(two_of_each(), folder.parent)
    dc.compile_network(path, folder, emit="c", check=False)
    native.make(folder, "all", "mapped", "CPPFLAGS=-DRUNS=1")
    np.zeros((1, 3, 11, 12), np.float32).tofile(folder / "a")
    np.zeros((1, 24, 11, 12), np.float32).tofile(folder / "b")
    return folder


def said(program: Path, *words: str) -> str:
    done = subprocess.run(
        [f"./{program.name}", *words], cwd=program.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_the_example_explains_itself(example: Path) -> None:
    usage = "net: usage: net class.in x_0.in [t8.out] [t5.out]\n"
    header = (example / "net.h").read_text()
    assert "Input class: float32, 1 x 3 x 11 x 12" in header and "*input_x_0" in header
    assert said(example / "net").startswith(usage.split(" [")[0])
    assert said(example / "net", *"abcde").startswith(usage.split(" [")[0])
    assert said(example / "net", "a", "nowhere") == "net: nowhere: cannot be opened\n"
    fewer = "holds more or fewer values than the input has: expected"
    for name, values in {
        "a": "3168 of float32, 1 x 24 x 11 x 12, 12672 bytes",
        "b": "396 of float32, 1 x 3 x 11 x 12, 1584 bytes",
    }.items():
        assert said(example / "net", name, name) == f"net: {name}: {fewer} {values}\n"
    for array in (np.zeros((1, 3, 11, 12), np.int32), np.zeros((12, 11, 3, 1), np.float32).T):
        np.save(example / "other.npy", array)
        assert "of another type, or columns before rows" in said(example / "net", "other.npy", "b")
    assert "/nowhere/out: cannot be written" in said(example / "net", "a", "b", "/nowhere/out")


def test_weights_that_cannot_be_used(example: Path, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(example, folder)
    whole = (folder / "net.weights").read_bytes()
    cases = {
        whole[:-1]: r"holds \d+ bytes, of weights that are \d+: copy it again",
        whole[:63]: "holds less than the 64 bytes",
        b"": "holds less than the 64 bytes",
        whole + b"\0": "copy it again",
        b"x" + whole[1:]: "is no file of weights",
        whole[:24] + b"x" * 32 + whole[56:]: "the weights are not those of this network",
        # It says that it is whole, and is the right one, but the network would read beyond it.
        whole[:16] + (64).to_bytes(8, sys.byteorder) + whole[24:64]: "not those of this network",
    }
    for content, message in cases.items():
        (folder / "net.weights").write_bytes(content)
        assert re.search(message, said(folder / "net_mapped", "a", "b"))
    (folder / "net.weights").unlink()
    os.mkfifo(folder / "net.weights")
    assert "net.weights holds less than the 64" in said(folder / "net_mapped", "a", "b")
    (folder / "net.weights").unlink()
    assert "cannot open weights net.weights: No such file" in said(folder / "net_mapped", "a", "b")


def test_damaged_weights_are_found_if_asked(example: Path, native: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(example, folder)
    (folder / "net_mapped").unlink()
    native.make(folder, "mapped", "CPPFLAGS=-DRUNS=1 -DCHECK_WEIGHTS")
    native.run(folder / "net_mapped", "a", "b")
    whole = (folder / "net.weights").read_bytes()
    for place in (64, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        (folder / "net.weights").write_bytes(damaged)
        assert "the weights are damaged" in said(folder / "net_mapped", "a", "b")
        native.run(example / "net_mapped", "a", "b")


def test_weights_are_compared_with_their_sha256(native: Machine, tmp_path: Path) -> None:
    library = tmp_path / "runtime.so"
    runtime = Path(dc.__file__).parent / "deploy" / "directconv.c"
    link_shared(["-fPIC", "-pthread", runtime], library, native.toolchain)
    check = ctypes.CDLL(str(library)).directconv_check_weights

    class Weights(ctypes.Structure):
        _fields_ = (("data", ctypes.c_char_p), ("bytes", ctypes.c_size_t))

    for size in (0, 64, 128, 6400, 2**20):
        data = np.random.default_rng(size).bytes(size)
        for digest, expected in ((hashlib.sha256(data).digest(), 0), (bytes(32), 3)):
            head = struct.pack("=16sQ32s8x", b"directconv\0\0\0\0\0\1", 64 + size, digest)
            assert check(ctypes.byref(Weights(head + data, 64 + size))) == expected
            assert check(ctypes.byref(Weights(head + data, 63 + size))) == 3
    assert check(None) == check(ctypes.byref(Weights(None, 0))) == 1


@pytest.mark.parametrize("name", ["net.so", "net.c", "file", "...", "--"])
def test_what_is_no_folder(name: str, tmp_path: Path, run: Command) -> None:
    (tmp_path / "file").touch()
    words = ("compile", "ic8ih7oc8oh7kh3ph1", "--emit", "c", "-o")
    status, out, err = run(*words[:-1], f"--output={tmp_path / name}")
    assert (status, out) == (2, "")
    assert f"cannot write C to '{tmp_path / name}': expected a folder" in err


def test_a_folder_that_cannot_be_written(tmp_path: Path, run: Command) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/kernels").touch()
    status, out, err = run("compile", "ic8ih7oc8oh7kh3ph1", "--emit", "c", "-o", f"{tmp_path}/net")
    assert (status, out) == (2, "")
    assert f"cannot write into '{tmp_path}/net' (File exists): expected a folder" in err


def test_what_can_be_emitted(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="emit is 'rust': expected 'library' or 'c'"):
        dc.compile_network("net.onnx", tmp_path / "net", emit="rust")


# --- How it is written ------------------------------------------------------------------------


def test_the_command_line_makes_folders(native: Machine, tmp_path: Path, run: Command) -> None:
    layers = ("googlenet:5a_5x5r", "mobilenetv1:dw1")
    status, out, err = run("compile", *layers, "--emit", "c", "-o", f"{tmp_path}/all")
    assert (status, err) == (0, "")
    names = ["googlenet_5a_5x5r", "mobilenetv1_dw1"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == names
    assert [line.split(":")[0].split("/")[-1] for line in out.splitlines()] == names
    for name in names:
        native.make(tmp_path / "all" / name)
        assert (
            f"int {name}_run(const float *input_x, const float *input_weight, float *output_y);"
            in (tmp_path / "all" / name / f"{name}.h").read_text()
        )


def test_a_folder_is_written_again(native: Machine, tmp_path: Path) -> None:
    for descriptor in ("ic8ih7oc8oh7kh3ph1", "ic8ih7oc16oh7kh1"):
        folder = dc.build(descriptor).export_c(tmp_path / "conv")
        native.make(folder)
        header = (folder / "conv.h").read_text()
    assert len(list((folder / "kernels").iterdir())) == 1
    m = dc.build(descriptor).manifest
    shape = " x ".join(map(str, m.output_shape))
    assert f"/* Output y: float32, {shape}; {m.output_layout}. */" in header


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50-v1.5", "resnet50_v1_5"),
        ("3net", "n3net"),
        ("__main", "main_"),
        ("main", "main_"),
        ("class", "class"),
        ("clean", "clean_"),
        ("Makefile", "Makefile_"),
        ("directconv", "directconv_"),
        ("größe", "gr__e"),
        ("名", "unnamed"),
        ("n" * 250, "n" * 100),
    ],
)
def test_names_of_folders(name: str, expected: str) -> None:
    assert name_of(Path("somewhere", name)) == expected


# Words of C and C++, names and macros of their libraries, of Linux, of what is generated and of the
# runtime; what ends a comment or a string, or looks like it; what is alike without its signs.
NAMES = [
    "size_t",
    "memcpy",
    "NULL",
    "errno",
    "assert",
    "int",
    "class",
    "rand",
    "main",
    "stdin",
    "linux",
    "EOF",
    "uint8_t",
    "_Bool",
    "__LINE__",
    "argv",
    "argc",
    "network",
    "weights",
    "arena",
    "arena_bytes",
    "arguments",
    "net_weights",
    "net_run",
    "Network",
    "Step",
    "Parameter",
    "directconv_run",
    "DIRECTCONV_OK",
    "RUNS",
    "THREADS",
    "milliseconds",
    "read_input",
    "input_x",
    "output_x",
    "x",
    "X",
    "x_",
    "x.",
    "9",
    "x??/x",
    "??/",
    "a*/b",
    "/*",
    "//",
    "**//",
    "?/",
    "%s%n",
    "a\\",
    '"',
    "'",
    "größe",
    "名",
]


def test_tensors_of_any_name(native: Machine, tmp_path: Path) -> None:
    names = [*NAMES, "a b", "a\nb", "a\rb", " ", "n" * 5000, "n" * 5001]
    inputs = names[::2]
    g = Graph(**dict.fromkeys(inputs, (1, 2, 3, 4)))
    total = g.conv(inputs[0], 2, 2, 1, 1)
    for name in inputs[1:]:
        total = g.node("Add", total, name)
    made = g.model(*(g.node(("Relu", "Tanh", "Neg", "Abs")[n % 4], total) for n in range(4)))
    for name, output, node in zip(
        names[1::2], made.graph.output, made.graph.node[-4:], strict=False
    ):
        output.name = node.output[0] = name
    dc.compile_network(saved(made, tmp_path), tmp_path / "net", emit="c")
    native.make(tmp_path / "net", f"CFLAGS={WARNINGS} -pedantic", "all", "mapped", "shared")
    accepted_by_cpp(tmp_path / "net", "net")


def accepted_by_cpp(folder: Path, name: str) -> None:
    """Compile a header as C++, beside the library's own."""
    words = ["g++", *WARNINGS.split(), "-pedantic", "-std=c++17", "-xc++", "-fsyntax-only", "-"]
    words += ["-iquote", str(folder), "-iquote", str(folder / "runtime")]
    code = f'#include "{name}.h"\n#include <cstring>\n#include <string>\nauto f = {name}_run;\n'
    subprocess.run(words, input=code, check=True, text=True)


def test_folders_of_any_name(
    native: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conv = dc.build("ic8ih4oc8oh4kh1", blocking="model")
    others = ["string", "version", "main", "Makefile", "directconv", "network", "m", "-x", "名"]
    for name in (*others, "n" * 250, "a b", "a\nb", "$(x) ${x} #'\"\\%;&"):
        folder = Path(conv.export_c(name)).resolve()
        native.make(folder, f"CFLAGS={WARNINGS} -pedantic")
        accepted_by_cpp(folder, name_of(folder))


def test_cmake_takes_folders_of_many_names(tmp_path: Path) -> None:
    # CMake itself refuses quotes, backslashes, colons, semicolons and newlines.
    g = Graph(x=(1, 8, 4, 4))
    path = saved(g.model(g.conv("x", 8, 8, 1, 1)), tmp_path)
    for name in ("test", "a $x #'%& größe"):
        folder = tmp_path / name
        dc.compile_network(path, folder, emit="c")
        build = folder / "build"
        subprocess.run(["cmake", "-S", folder, "-B", build], check=True, capture_output=True)
        subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
        assert list(build.glob("*_example"))


def test_arguments_have_names_of_their_own() -> None:
    ports = [Port(name, (2,), dtype) for name, dtype in [("a.b", "int64"), ("A_B", "float16")]]
    program = Program(ports, [Port("a_b", (), "bool")], [])
    arguments = arguments_of(program)
    assert [a.variable for a in arguments] == ["input_a_b", "input_A_B_", "output_a_b__"]
    assert [a.c_type for a in arguments] == ["int64_t", "uint16_t", "uint8_t"]
    assert [a.elements for a in arguments] == [2, 2, 1]


def test_every_placeholder_is_filled(example: Path, tmp_path: Path) -> None:
    layer = dc.build("ic8ih7oc8oh7kh3ph1").export_c(tmp_path / "layer")
    for folder in (example, layer):
        for path in folder.glob("*"):
            if path.suffix in (".c", ".h", ".txt") or path.name == "Makefile":
                assert not re.search(r"@\w+", path.read_text())
