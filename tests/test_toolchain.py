"""Finding compilers and emulators, linking, and reading ELF files."""

import importlib.util
import os
import platform
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tvm_directconv.errors import LibraryError, ToolchainError
from tvm_directconv.toolchain import (
    ElfInfo,
    Toolchain,
    elf_info,
    find_toolchain,
    link_shared,
    run_cc,
)

TRIPLES = (
    "x86_64-linux-gnu",
    "aarch64-linux-gnu",
    "arm-linux-gnueabihf",
    "riscv64-linux-gnu",
)
FOREIGN = tuple(triple for triple in TRIPLES if not triple.startswith(platform.machine()))

SOURCE = """
extern int needed(int);
extern int optional(int) __attribute__((weak));
void *slot __attribute__((weak)) = 0;
static int hidden(int x) { return needed(x) * 3; }
int offered(int x) { return optional ? hidden(x) : needed(x); }
"""


@pytest.fixture(params=TRIPLES)
def toolchain(request: pytest.FixtureRequest) -> Toolchain:
    return find_toolchain(request.param)


@pytest.fixture
def object_file(toolchain: Toolchain, tmp_path: Path) -> Path:
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    output = tmp_path / "source.o"
    run_cc(["-c", "-O1", "-fno-inline", "-fPIC", str(source)], output, toolchain)
    return output


@pytest.fixture
def library(object_file: Path, toolchain: Toolchain) -> Path:
    output = object_file.with_suffix(".so")
    run_cc(["-shared", str(object_file)], output, toolchain)  # Without a look at what is missing.
    return output


@pytest.mark.parametrize(
    ("spelling", "triple", "machine"),
    [
        ("x86_64", TRIPLES[0], "x86_64"),
        ("amd64", TRIPLES[0], "x86_64"),
        ("x86_64-pc-linux-gnu", TRIPLES[0], "x86_64"),
        ("aarch64-linux-gnu", TRIPLES[1], "aarch64"),
        ("aarch64-unknown-linux-gnu", TRIPLES[1], "aarch64"),
        ("arm64-linux", TRIPLES[1], "aarch64"),
        ("armv7l-linux-gnueabihf", TRIPLES[2], "arm"),
        ("armv7a-none-linux-gnueabihf", TRIPLES[2], "arm"),
        ("arm-linux-gnueabihf", TRIPLES[2], "arm"),
        ("armv8l", TRIPLES[2], "arm"),
        ("riscv64", TRIPLES[3], "riscv64"),
        ("riscv64-unknown-linux-gnu", TRIPLES[3], "riscv64"),
    ],
)
def test_triples_are_normalised(spelling: str, triple: str, machine: str) -> None:
    found = find_toolchain(spelling)
    assert (found.triple, found.machine) == (triple, machine)


@pytest.mark.parametrize(
    "triple",
    [
        "",
        "riscv32-linux-gnu",
        "riscv64-linux-musl",
        "arm-linux-gnueabi",
        "armv6l-linux-gnueabihf",
        "aarch64-apple-darwin",
        "aarch64-linux-android",
        "x86_64-linux-musl",
        "thumbv7em-none-eabihf",
    ],
)
def test_other_systems_are_refused(triple: str) -> None:
    with pytest.raises(ToolchainError, match=r"unsupported target triple .*hard float"):
        find_toolchain(triple)


def test_the_host_needs_no_emulator() -> None:
    native = find_toolchain(platform.machine(), qemu_cpu="cortex-a72")
    assert native.emulator == ()
    assert native.command("program", "argument") == ["program", "argument"]


@pytest.mark.parametrize("triple", FOREIGN)
def test_foreign_programs_run_in_the_emulator(triple: str) -> None:
    command = find_toolchain(triple, qemu_cpu="max").command("program")
    assert os.path.basename(command[0]).startswith("qemu-")
    assert command[1:] == ["-L", f"/usr/{triple}", "-cpu", "max", "program"]


def only_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, *programs: str) -> None:
    """Leave nothing but these programs to be found, neither on PATH nor in Python."""
    for program in programs:
        target = shutil.which(program)
        assert target is not None
        (folder / program).symlink_to(target)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("triple", "package"),
    [
        (platform.machine(), "gcc"),
        ("aarch64-linux-gnu", "gcc-aarch64-linux-gnu"),
        ("armv7l-linux-gnueabihf", "gcc-arm-linux-gnueabihf"),
        ("riscv64-linux-gnu", "gcc-riscv64-linux-gnu"),
    ],
)
def test_a_missing_compiler_is_explained(
    triple: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path)
    with pytest.raises(ToolchainError, match=rf"apt install {package}, .* pip install ziglang"):
        find_toolchain(triple)


@pytest.mark.parametrize("triple", TRIPLES)
def test_ziglang_stands_in_for_a_missing_compiler(
    triple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang" or None)
    cc = find_toolchain(triple).cc
    assert cc[1:] == ("-m", "ziglang", "cc", "-target", f"{triple}.2.17")


@pytest.mark.parametrize("triple", FOREIGN)
def test_compiling_does_not_need_the_emulator(
    triple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path, f"{triple}-gcc")
    found = find_toolchain(triple)
    assert found.cc == (str(tmp_path / f"{triple}-gcc"),)
    with pytest.raises(ToolchainError, match="apt install qemu-user"):
        found.command("program")


@pytest.mark.parametrize("triple", FOREIGN)
def test_a_missing_c_library_is_explained(triple: str) -> None:
    found = find_toolchain(triple)
    emulator = (found.emulator[0], "-L", "/nonexistent/sysroot")
    broken = Toolchain(found.triple, found.cc, emulator, "no libc")
    with pytest.raises(ToolchainError, match=r"/nonexistent/sysroot.*apt install libc6-\w+-cross"):
        broken.command("program")


@pytest.mark.parametrize("triple", FOREIGN)
def test_the_static_emulator_will_do(
    triple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(monkeypatch, tmp_path, f"{triple}-gcc")
    static = tmp_path / f"qemu-{find_toolchain(triple).machine}-static"
    static.write_text("#!/bin/sh\n")
    static.chmod(0o755)
    assert find_toolchain(triple).command("program")[0] == str(static)


def test_programs_of_every_toolchain_run(toolchain: Toolchain, tmp_path: Path) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int main(int argc, char **argv) { return 40 + argc; }")
    run_cc([str(source)], tmp_path / "answer", toolchain)
    command = toolchain.command(str(tmp_path / "answer"), "one more")
    assert subprocess.run(command).returncode == 42


def test_symbols_of_a_library(library: Path, toolchain: Toolchain) -> None:
    info = elf_info(library)
    assert info.machine == toolchain.machine
    assert info.bits == (32 if toolchain.machine == "arm" else 64)
    assert "needed" in info.undefined
    assert info.unresolved == ("needed",)
    assert "optional" not in info.undefined
    assert set(info.defined) >= {"offered", "slot"}
    assert "hidden" not in info.defined


def test_symbols_of_an_object_file(object_file: Path, toolchain: Toolchain) -> None:
    info = elf_info(str(object_file))
    assert info.machine == toolchain.machine
    assert set(info.undefined) - {"_GLOBAL_OFFSET_TABLE_", "__aeabi_unwind_cpp_pr1"} == {"needed"}
    assert info.defined == ("offered", "slot")


def test_a_library_is_self_contained_or_says_what_it_loads(tmp_path: Path) -> None:
    toolchain = find_toolchain("aarch64-linux-gnu")
    needs = {}
    for name, body in {"plain": "return x;", "math": "return expf(x);"}.items():
        source = tmp_path / f"{name}.c"
        source.write_text(f"#include <math.h>\nfloat run(float x) {{ {body} }}")
        run_cc(["-c", "-fPIC", str(source)], tmp_path / f"{name}.o", toolchain)
        link_shared([tmp_path / f"{name}.o"], tmp_path / f"{name}.so", toolchain)
        needs[name] = b"libm.so.6" in (tmp_path / f"{name}.so").read_bytes()
    assert needs == {"plain": False, "math": True}


def test_link_errors_carry_the_linkers_words(object_file: Path, toolchain: Toolchain) -> None:
    output = object_file.with_suffix(".so")
    output.write_text("old")
    with pytest.raises(ToolchainError, match=r"(?s)failed to make .*nowhere\.o: No such file"):
        link_shared([object_file, object_file.with_name("nowhere.o")], output, toolchain)
    assert output.read_text() == "old"
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "source.c",
        "source.o",
        "source.so",
    ]


def test_a_symbol_that_nobody_has_fails_when_it_is_linked(
    object_file: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    with pytest.raises(
        ToolchainError, match=r"cannot make .*out\.so: no object file and no library"
    ):
        link_shared([object_file], tmp_path / "out.so", toolchain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.c", "source.o"]
    source = tmp_path / "others.c"
    source.write_text(
        "#include <math.h>\n#include <stdio.h>\n"
        "extern int TVMFFIErrorSetRaisedFromCStrParts(int);\n"
        'int needed(int x) { return printf("%f", expf(x)) + TVMFFIErrorSetRaisedFromCStrParts(x); }'
    )
    link_shared([object_file, "-fPIC", source], tmp_path / "out.so", toolchain)
    info = elf_info(tmp_path / "out.so")
    assert info.unresolved == ("TVMFFIErrorSetRaisedFromCStrParts",)
    assert {"printf", "expf"} < set(info.undefined)


def test_objects_of_another_machine_do_not_link(tmp_path: Path) -> None:
    source = tmp_path / "source.c"
    source.write_text("int x;")
    run_cc(["-c", str(source)], tmp_path / "source.o", find_toolchain("aarch64"))
    with pytest.raises(ToolchainError, match="arm-linux-gnueabihf"):
        link_shared([tmp_path / "source.o"], tmp_path / "out.so", find_toolchain("armv7l"))
    assert not (tmp_path / "out.so").exists()


def test_a_folder_that_does_not_exist(object_file: Path, toolchain: Toolchain) -> None:
    with pytest.raises(ToolchainError, match=r"cannot make .*nowhere"):
        link_shared([object_file], object_file.parent / "nowhere" / "out.so", toolchain)


def test_a_compiler_that_is_gone(tmp_path: Path) -> None:
    gone = Toolchain("x86_64-linux-gnu", ("/nonexistent/cc",), (), "gone")
    with pytest.raises(ToolchainError, match=r"cannot make .* with /nonexistent/cc"):
        link_shared([], tmp_path / "out.so", gone)


def check_damaged(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    try:
        assert isinstance(elf_info(path), ElfInfo)
    except LibraryError as error:
        assert str(path) in str(error)


def test_truncated_files(library: Path, object_file: Path, tmp_path: Path) -> None:
    for file in (library, object_file):
        whole = file.read_bytes()
        step = max(1, len(whole) // 400)
        for length in {*range(200), *range(200, len(whole), step)}:
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(LibraryError, match=r"cut is (not an ELF|truncated)"):
                elf_info(tmp_path / "cut")


def test_damaged_files(library: Path, tmp_path: Path) -> None:
    whole = library.read_bytes()
    e_shoff = whole[0x28:0x30] if whole[4] == 2 else whole[0x20:0x24]
    section_table = int.from_bytes(e_shoff, "little")
    chance = random.Random(7)
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            # The tables are where damage matters; anywhere else is mostly code.
            start, end = chance.choice([(0, 64), (section_table, len(whole)), (0, len(whole))])
            damaged[chance.randrange(start, end)] = chance.choice([0, 1, 0x7F, 0xFF])
        check_damaged(bytes(damaged), tmp_path / "damaged")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an ELF file"),
        (b"!<arch>\n", "is not an ELF file"),
        (b"\x7fELF", "is truncated"),
        (b"\x7fELF\x02\x02" + bytes(58), "little-endian"),
        (b"\x7fELF\x07\x01" + bytes(58), "little-endian"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\x02\x00" + bytes(46), "neither a shared library"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\x03\x00" + bytes(46), "no table of sections"),
    ],
)
def test_other_files(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(LibraryError, match=message):
        elf_info(tmp_path / "file")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"cannot read library .*nowhere"):
        elf_info(tmp_path / "nowhere")


def test_an_unknown_machine_is_a_number(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[18:20] = (258).to_bytes(2, "little")
    library.write_bytes(data)
    assert elf_info(library).machine == "e_machine 258"
