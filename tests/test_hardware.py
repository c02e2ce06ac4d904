"""Device files, the TVM targets made of them, the ways to name a device, and this machine."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tvm import compile as tvm_compile
from tvm import s_tir, te
from tvm.target import Target, codegen

from tvm_directconv.errors import DeviceError, ScheduleError
from tvm_directconv.hardware import host
from tvm_directconv.hardware import target as targets
from tvm_directconv.hardware.architecture import architecture
from tvm_directconv.hardware.device import Device
from tvm_directconv.hardware.device_files import devices, shipped
from tvm_directconv.hardware.host import native
from tvm_directconv.hardware.lookup import device
from tvm_directconv.instructions import LANE, MEMORY
from tvm_directconv.registry import find_schedule

DEVICES = {d.name: d for d in devices()}
ABSTRACT = {"generic", "generic-arm", "generic-x86"}

# name: lanes, fp32 operations per cycle, vector registers
FACTS = {
    "x86-64-v2": (4, 8, 16),
    "x86-64-v3": (8, 32, 16),
    "x86-64-v4": (16, 32, 32),
    "haswell": (8, 32, 16),
    "alderlake": (8, 32, 16),
    "arrowlake": (8, 32, 16),
    "skylake-avx512": (16, 64, 32),
    "icelake-server": (16, 64, 32),
    "sapphirerapids": (16, 64, 32),
    "znver2": (8, 32, 16),
    "znver3": (8, 32, 16),
    "znver4": (16, 32, 32),
    "znver5": (16, 64, 32),
    "aarch64": (4, 8, 32),
    "cortex-a53": (4, 8, 32),
    "cortex-a57": (4, 8, 32),
    "cortex-a72": (4, 8, 32),
    "cortex-a76": (4, 16, 32),
    "neoverse-n1": (4, 16, 32),
    "neoverse-n2": (4, 16, 32),
    "cortex-x1": (4, 32, 32),
    "neoverse-v1": (4, 32, 32),
    "apple-m1": (4, 32, 32),
    "armv7": (4, 2, 16),
    "rv64gcv": (4, 8, 32),
    "spacemit-x60": (8, 16, 32),
}

# One FMA of the widest vector in assembly, by architecture and lanes.
FMA = {
    ("x86_64", 16): r"vfmadd\d+ps\s.*%zmm",
    ("x86_64", 8): r"vfmadd\d+ps\s.*%ymm",
    ("aarch64", 4): r"fmla\s+v\d+\.4s",
    ("armv7l", 4): r"vfma\.f32\s+q\d+",
    ("riscv64", 4): r"vfm(?:acc|add)\.v",
    ("riscv64", 8): r"vfm(?:acc|add)\.v",
}


@functools.cache
def assembly(name: str) -> str:
    """Compile a small matrix product whose rows are one vector of the device wide."""
    spec = DEVICES[name]
    a, b = te.placeholder((4, 64), name="a"), te.placeholder((64, spec.lanes), name="b")
    k = te.reduce_axis((0, 64), name="k")
    c = te.compute((4, spec.lanes), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    schedule = s_tir.Schedule(te.create_prim_func([a, b, c]))
    block = schedule.get_sblock("c")
    i, j, k = schedule.get_loops(block)
    schedule.reorder(k, i, j)
    schedule.unroll(i)
    schedule.vectorize(j)
    schedule.decompose_reduction(block, k)
    return tvm_compile(schedule.mod, target=spec.target()).mod.inspect_source("asm")


def arch(spec: Device) -> str:
    return spec.triple.split("-")[0]


# --- Device files


def test_every_device_has_the_known_facts():
    assert {
        name: (d.lanes, d.peak().flops_per_cycle, d.vector_registers) for name, d in DEVICES.items()
    } == FACTS


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_chain_ends_in_generic(name):
    spec = DEVICES[name]
    assert spec.chain[0] == name
    assert spec.chain[-1] == "generic"
    assert set(spec.chain) <= DEVICES.keys() | ABSTRACT
    assert spec.description != "any processor"


def test_inherits_what_is_not_set():
    znver4, v4, v3 = DEVICES["znver4"], DEVICES["x86-64-v4"], DEVICES["x86-64-v3"]
    assert znver4.chain == (
        "znver4",
        "x86-64-v4",
        "x86-64-v3",
        "x86-64-v2",
        "generic-x86",
        "generic",
    )
    assert znver4.rates() == v4.rates()
    assert DEVICES["znver2"].instructions == v3.instructions
    rates = [(rate.lanes, rate.per_cycle, rate.latency) for rate in v4.rates()]
    assert rates == [(16, 1, 4), (8, 2, 4), (4, 2, 4)]
    assert (znver4.l2_bytes, v4.l2_bytes) == (1048576, 524288)
    assert (znver4.schedule, znver4.triple) == ("x86", "x86_64-linux-gnu")
    # Names, boards and being abstract belong to one file.
    v4_aliases = DEVICES["x86-64-v4"].aliases
    assert "tigerlake" in v4_aliases and "tigerlake" not in znver4.aliases
    assert "Raspberry Pi 5" not in DEVICES["neoverse-n1"].boards
    assert DEVICES["cortex-a76"].ghz == 2.4 and DEVICES["neoverse-n1"].ghz == 2.5
    # Apple says nothing of the clock.
    assert {d.name for d in devices() if d.boards and not d.ghz} == {"apple-m1"}


def test_a_clock_belongs_to_one_file(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text('parent = "cortex-a72"\n')
    assert device(path).ghz is None and native().ghz is None
    path.write_text('parent = "cortex-a72"\nghz = 1.5\n')
    assert device(path).ghz == 1.5


def test_abstract_devices_are_the_ones_that_cannot_be_built():
    folder = Path(__file__).parent.parent / "schedules" / "devices"
    assert {path.stem for path in folder.glob("*.toml")} == DEVICES.keys() | ABSTRACT
    for name in ABSTRACT:
        with pytest.raises(DeviceError, match=f"'{name}' is abstract.*cortex-a72"):
            device(name)


def test_x86_64_v2_is_the_only_device_without_fma():
    assert [name for name, spec in DEVICES.items() if not spec.peak().instruction.fused] == [
        "x86-64-v2"
    ]


def test_a_schedule_that_is_not_there():
    spec = replace(DEVICES["haswell"], schedule="mips")
    with pytest.raises(ScheduleError, match=r"asks for schedule 'mips'.*one of arm, riscv, x86"):
        find_schedule(spec)


def test_names_and_aliases_are_unique():
    names = [name for spec in DEVICES.values() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))
    for spec in DEVICES.values():
        for alias in spec.aliases:
            assert device(alias) == spec


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_llvm_knows_mcpu_and_aliases(name):
    spec = DEVICES[name]
    # These name an instruction set, which LLVM has no mcpu for.
    for cpu in {spec.mcpu, *spec.aliases} - {None, "arm64", "armv8-a", "armv7-a"}:
        assert codegen.llvm_is_valid_cpu(cpu, spec.triple), cpu


# --- Targets


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_assembly_has_the_expected_fma(name):
    spec, text = DEVICES[name], assembly(name)
    if spec.peak().instruction.fused:
        found = re.findall(FMA[arch(spec), spec.lanes], text)
        assert len(found) >= 4
        # LLVM's preference for 256 bits must not have split anything.
        assert len(found) == len(
            re.findall(r"\sv?fn?m(?:add\d+ps|la)\s|\svfma\.f32\s|\sv?fm(?:acc|add)\.", text)
        )
    else:
        assert re.search(r"\smulps\s.*%xmm", text) and re.search(r"\saddps\s.*%xmm", text)
        assert "fmadd" not in text


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_assembly_agrees_on_broadcasts(name):
    spec, text = DEVICES[name], assembly(name)
    operands = spec.rates()[0].instruction.pixel_operands
    assert (MEMORY in operands) == bool(re.search(r"vfmadd.*\{1to\d+\}", text))
    assert (LANE in operands) == bool(re.search(r"fmla\s.*\.s\[\d\]", text))


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_target_survives_the_round_trip(name):
    spec = DEVICES[name]
    target = spec.target()
    assert target.attrs["num-cores"] == spec.cores
    assert spec.target(cores=3).attrs["num-cores"] == 3
    assert device(target) == device(target.export()) == spec
    exported = {key: value for key, value in target.export().items() if key != "host"}
    assert device(json.dumps(exported, default=list)) == spec


def test_armv7_target_has_what_linking_and_vfma_need():
    target = DEVICES["armv7"].target().export()
    assert target["mfloat-abi"] == "hard"
    assert list(target["mattr"]) == ["+neon", "+vfp4", "+hwdiv-arm", "+use-misched"]
    assert "mcpu" not in target


def test_target_refuses_no_cores():
    with pytest.raises(DeviceError, match="cores is 0: expected at least 1"):
        DEVICES["haswell"].target(cores=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mcpu": "cortex-a27"}, "no mcpu 'cortex-a27' for 'aarch64-linux-gnu'.*mean 'cortex-a7"),
        ({"mattr": ("+neno",)}, r"mattr has '\+neno', a feature that LLVM does not know"),
        ({"mattr": ("-neno",)}, "mattr has '-neno', a feature that LLVM does not know"),
        (
            {"triple": "loongarch64-linux-gnu"},
            "triple is 'loongarch64-linux-gnu': expected one of x86-64, .* or RV64",
        ),
    ],
)
def test_target_refuses_what_llvm_only_logs(change, message):
    with pytest.raises(DeviceError, match=message):
        replace(DEVICES["cortex-a72"], **change).target()


def test_a_feature_can_be_switched_off():
    spec = replace(DEVICES["skylake-avx512"], mattr=("-prefer-256-bit",))
    assert list(spec.target().attrs["mattr"]) == ["-prefer-256-bit"]


# --- Names, target strings, files


def test_a_device_is_returned_as_it_is():
    spec = replace(DEVICES["znver4"], cores=7)
    assert device(spec) is spec


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("core-avx2", "haswell"),
        ("armv8-a", "aarch64"),
        ("cortex-a55", "cortex-a53"),
        ("neoverse-v2", "neoverse-v1"),
        ("llvm -mcpu=core-avx2", "haswell"),
        ("llvm -mcpu=cascadelake", "skylake-avx512"),
        ("llvm -mcpu=skylake-avx512 -mattr=+avx512f,+fma -libs=mkl", "skylake-avx512"),
        ("llvm -mtriple=x86_64-pc-linux-gnu -mcpu=znver3 -num-cores=64", "znver3"),
        ("llvm -keys=arm_cpu,cpu -device=arm_cpu -mcpu=cortex-a72 -model=bcm2711", "cortex-a72"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -mattr=+neon", "cortex-a72"),
        ("llvm -mtriple=aarch64-none-linux-gnu -mattr=+neon", "aarch64"),
        ("llvm -mtriple=arm64-linux-gnu -mcpu=generic", "aarch64"),
        ("llvm -mcpu=armv8-a", "aarch64"),
        ("-mcpu=cortex-a53", "cortex-a53"),
        ("llvm -mtriple=armv7l-linux-gnueabihf -mattr=+neon", "armv7"),
        ("llvm -mtriple=armv7l-linux-gnueabihf -mcpu=cortex-a53 -mattr=+neon,+vfp4", "armv7"),
        ("llvm -mtriple=armv8l-linux-gnueabihf -mcpu=cortex-a72 -mfloat-abi=hard", "armv7"),
        ("llvm -mtriple=arm-linux-gnueabihf -mcpu=cortex-a7", "armv7"),
        ("llvm -mcpu=cortex-a15", "armv7"),
        ("raspberry-pi/4b-aarch64", "cortex-a72"),
        ("arm/rasp4b64", "cortex-a72"),
        ("arm/rasp3b", "armv7"),
        ("llvm -mtriple=riscv64-linux-gnu -mattr=+v", "rv64gcv"),
        ("llvm -mtriple=riscv64-linux-gnu -mattr=+v,+zvl256b", "spacemit-x60"),
        ("llvm -mcpu=spacemit-x60", "spacemit-x60"),
        ('{"kind": "llvm", "mcpu": "znver2"}', "znver2"),
        ({"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["+avx512vl"]}, "x86-64-v4"),
        (Target({"kind": "llvm", "mcpu": "icelake-server", "num-cores": 8}), "icelake-server"),
    ],
)
def test_names_and_targets_are_translated(spec, name):
    assert device(spec).name == name


def test_num_cores_of_a_target_is_kept():
    assert device("llvm -mcpu=haswell -num-cores=3").cores == 3
    assert device({"mcpu": "haswell", "num-cores": 5}).cores == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cortex-a27", "unknown device 'cortex-a27' .did you mean 'cortex-a7.*'native' for this"),
        ("skylake_avx512", "unknown device.*did you mean 'skylake-avx512'.*my-board.toml"),
        ("", "unknown device ''"),
        (72, "device 72 is of type int: expected one of aarch64"),
        ("llvm", "names no processor .mcpu.: TVM would silently.*to SSE"),
        ({"kind": "llvm"}, "names no processor"),
        ("llvm -mcpu=generic", "names no processor"),
        ("llvm -mtriple=x86_64-linux-gnu", "names no processor"),
        ("llvm -mcpu=haswel", "no device serves mcpu 'haswel' .did you mean 'haswell'"),
        ("llvm -mcpu=x86-64", "no device serves mcpu 'x86-64'"),
        ("llvm -mtriple=armv7l-linux-gnueabihf -mcpu=cortex-a9", "serves mcpu 'cortex-a9'"),
        ("cuda -arch=sm_70", "its kind is 'cuda': expected 'llvm'"),
        ("llvm -mcpu cortex-a72", "cannot read '-mcpu': expected options of the form -mcpu=NAME"),
        ("llvm -mcpu=", "cannot read '-mcpu='"),
        ("llvm -mpcu=haswell", "cannot use 'mpcu' .did you mean 'mcpu'"),
        ("llvm -mcpu=haswell -opt-level=0", "cannot use 'opt-level'.*into a device file"),
        ("llvm -mcpu=haswell -mtriple=aarch64-linux-gnu", "has 'x86_64-linux-gnu': correct one"),
        (
            "llvm -mcpu=cortex-a72 -mtriple=aarch64-linux-android",
            'parent = "cortex-a72" and triple = "aarch64-linux-android"',
        ),
        ("llvm -mtriple=armv6l-linux-gnueabihf", "names no processor"),
        ("llvm -mcpu=haswell -mtriple=armv7l-linux-gnueabihf", "'haswell'.*: correct one"),
        ("llvm -mcpu=haswell -mtriple=x86_64-w64-windows-gnu", "leave it out, or write a device"),
        ("llvm -mtriple=armv7l-linux-gnueabi -mcpu=cortex-a7", "device 'armv7' has 'armv7l-linux"),
        ("llvm -mcpu=cortex-a7 -mfloat-abi=soft", "mfloat-abi is 'soft'.*has 'hard'"),
        (
            "llvm -mcpu=cortex-a72 -mattr=+dotprod",
            r"mattr asks for '\+dotprod'.*built without it.*mattr = \[\"\+neon\", \"\+dotprod\"\]",
        ),
        ("llvm -mcpu=haswell -mattr=-fma", "mattr asks for '-fma'.*built with it"),
        ("llvm -mcpu=haswell -mattr=avx2", "mattr is 'avx2': expected a list of features"),
        ({"mcpu": "haswell", "mattr": 3}, "mattr is 3: expected a list of features"),
        ({"mcpu": 3}, "mcpu is 3: expected a string"),
        ("llvm -mcpu=haswell -num-cores=many", "num-cores is 'many': expected a whole number"),
        ('{"kind": "llvm"', "is not valid JSON"),
        ("no/such/board.toml", "no/such/board.toml: cannot be read .No such file"),
    ],
)
def test_wrong_specs_say_what_to_do(spec, message):
    with pytest.raises(DeviceError, match=message):
        device(spec)


def board(folder: Path, text: str, name: str = "my-board.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_users_file(tmp_path):
    path = board(
        tmp_path,
        'parent = "cortex-a72"\ncores = 6\n'
        'instructions = [{name = "fmla v.4s", per_cycle = 1.5, latency = 3}]\n',
    )
    spec = device(path)
    assert spec == device(str(path))
    assert spec.name == "my-board"
    assert spec.chain == ("my-board", *DEVICES["cortex-a72"].chain)
    assert (spec.cores, spec.peak().flops_per_cycle, spec.boards) == (6, 12, ())
    assert (spec.mcpu, spec.peak().latency) == ("cortex-a72", 3)
    assert spec.target().attrs["num-cores"] == 6


def test_a_users_file_may_set_some_constants_of_the_model(tmp_path):
    path = board(tmp_path, 'parent = "cortex-a72"\nmodel = {visit_cycles = 20}\n')
    usual = DEVICES["cortex-a72"].model
    assert device(path).model == replace(usual, visit_cycles=20) != usual


def test_a_users_file_may_inherit_from_an_abstract_device(tmp_path):
    path = board(
        tmp_path,
        """
        parent = "generic-x86"
        mcpu = "bdver2"
        instructions = [{ name = "mulps+addps xmm", per_cycle = 1, latency = 5 }]
        vector_registers = 16
        loads_per_cycle = 1
        scalar_loads_per_cycle = 2
        l2_bytes_per_cycle = 8
        l3_bytes_per_cycle = 3
        l2_bytes = 1048576
        l3_bytes = 0
        """,
    )
    assert device(path).chain == ("my-board", "generic-x86", "generic")
    device(path).target()


PARENT = 'parent = "cortex-a72"\n'


def row(name: str, per_cycle: object = 1) -> str:
    return f"\n[[instructions]]\nname = {name!r}\nper_cycle = {per_cycle}\nlatency = 4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parent = ", "not valid TOML"),
        ("cores = 4", "the key 'parent' is missing"),
        (
            'parent = "cortex-a27"',
            "parent is 'cortex-a27', which is no device of this .* .did",
        ),
        # Not a file, and so not itself.
        ('parent = "./my-board.toml"', "parent is './my-board.toml', .*x86-64-v4, znver2.*znver5$"),
        ('parent = "my-board"', "closes the circle my-board -> my-board"),
        ("parent = 72", "parent is 72: expected a non-empty string"),
        (PARENT + "core = 4", "unknown key 'core' .did you mean 'cores'"),
        (PARENT + "name = 'pi'", "unknown key 'name'"),
        (PARENT + "abstract = true", "'my-board' is abstract"),
        (PARENT + "abstract = 1", "abstract is 1: expected true or false"),
        (PARENT + "cores = 0", "cores is 0: expected a whole number from 1"),
        (PARENT + "cores = true", "cores is True: expected a whole number from 1"),
        (PARENT + "cores = 4.0", "cores is 4.0: expected a whole number from 1"),
        (PARENT + 'l2_bytes = "1 MiB"', "l2_bytes is '1 MiB': expected a whole number of bytes"),
        (PARENT + "l3_bytes = -1", "l3_bytes is -1: expected a whole number of bytes from 0"),
        (PARENT + "loads_per_cycle = 0", "loads_per_cycle is 0: expected a number above 0"),
        (PARENT + "loads_per_cycle = nan", "loads_per_cycle is nan: expected a number above 0"),
        (PARENT + "model = {load_cots = 1}", r"unknown constant 'load_cots' .did you mean 'load_c"),
        (
            PARENT + "model = {load_cost = 0}",
            r"model\]: load_cost is 0: expected a number above 0",
        ),
        (PARENT + "model = 3", "model is 3: expected a table of constants"),
        (PARENT + "loads_per_cycle = inf", "loads_per_cycle is inf: expected a number above 0"),
        (
            PARENT + r'description = "a\u001b[31m"',
            r"description is 'a\\x1b.31m': expected a non-empty string of one line",
        ),
        (PARENT + r'boards = ["a\nb"]', r"boards is \['a\\nb'\]: expected a list of strings"),
        (PARENT + "description = ''", "description is '': expected a non-empty string"),
        (PARENT + "mattr = '+neon'", r"mattr is '\+neon': expected a list of features"),
        (PARENT + "mattr = ['neon']", r"mattr is \['neon'\]: expected a list of features"),
        (PARENT + "boards = 'Pi'", "boards is 'Pi': expected a list of strings"),
        (PARENT + "mfloat_abi = 'softfp'", 'mfloat_abi is \'softfp\': expected "hard" or "soft"'),
        (PARENT + "instructions = []", r"instructions is \[\]: expected a list of {name, per_cy"),
        (PARENT + "instructions = [4]", r"instructions is \[4\]: expected a list"),
        (PARENT + "instructions = [{name = 'fmla v.4s'}]", "expected a list of {name, per_cycle"),
        (PARENT + row("fmla v.4s", 0), "expected a list of {name, per_cycle, latency}"),
        (PARENT + row("fmla v.4s", "nan"), "expected a list of {name, per_cycle, latency}"),
        (PARENT + row("fmla v4s"), "has 'fmla v4s', .* .did you mean 'fmla v.4s'"),
        (PARENT + row("fmla v.4s") + row("fmla v.4s"), r"float32 have \[4, 4\] lanes: .* once"),
        (
            PARENT + row("vfmadd231ps xmm") + row("vfmadd231ps ymm"),
            r"float32 have \[4, 8\] lanes: expected each number once, the widest first",
        ),
        (
            PARENT + "conversions = [4]",
            r"conversions is \[4\]: expected a list of {name, per_cycle}",
        ),
        (
            PARENT + "conversions = [{name = 'fcvtl v.4s', per_cycle = 0}]",
            r"expected a list of {name, per_cycle}",
        ),
        (
            PARENT + "conversions = [{name = 'fcvtl', per_cycle = 1}]",
            "conversions has 'fcvtl', .* .did you mean 'fcvtl v.4s'",
        ),
        (
            PARENT + "conversions = [" + "{name = 'fcvtl v.4s', per_cycle = 1}, " * 2 + "]",
            r"conversions are of \[\('float16', 'float32'\), .* expected each pair of types once",
        ),
        (
            'parent = "generic-arm"',
            "the key 'triple' is missing and not inherited from generic-arm",
        ),
    ],
)
def test_wrong_files_say_what_to_do(tmp_path, text, message):
    path = board(tmp_path, text)
    with pytest.raises(DeviceError, match=message) as raised:
        device(path)
    assert "my-board" in str(raised.value)


def test_a_users_file_must_not_take_a_name(tmp_path):
    path = board(tmp_path, 'parent = "aarch64"', "cortex-a72.toml")
    with pytest.raises(DeviceError, match=r"the name 'cortex-a72' is taken.*rename the file"):
        device(path)


def test_a_users_file_that_is_not_text(tmp_path):
    path = tmp_path / "my-board.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DeviceError, match=r"it is not UTF-8 text.*expected a TOML file"):
        device(path)
    with pytest.raises(DeviceError, match="cannot be read"):
        device(board(tmp_path, "", "x.toml").parent / "folder.toml")


# --- This machine


def test_native_works_here():
    spec = native()
    assert spec.is_host_runnable
    assert spec.name in DEVICES
    assert device("native") == device("llvm -mcpu=native") == spec
    assert spec.cores >= 1
    assert spec.l1d_bytes >= 4096
    spec.target()


def test_only_devices_of_this_architecture_run_here():
    here = architecture(codegen.llvm_get_system_triple())
    assert all(architecture(d.triple) is here for d in DEVICES.values() if d.is_host_runnable)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend to be a machine with this triple, processor name and instruction set."""

    def pretend(triple: str, cpu: str, like: str = "") -> None:
        monkeypatch.setattr(codegen, "llvm_get_system_triple", lambda: triple)
        monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: cpu)
        features = DEVICES[like].features() if like else frozenset()
        monkeypatch.setattr(targets, "host_features", lambda: features)
        monkeypatch.setattr(host, "host_features", lambda: features)
        monkeypatch.setattr(host, "_CACHES", tmp_path)

    return pretend


@pytest.mark.parametrize(
    ("triple", "cpu", "like", "name"),
    [
        ("x86_64-conda-linux-gnu", "znver4", "znver4", "znver4"),
        ("x86_64-conda-linux-gnu", "cascadelake", "skylake-avx512", "skylake-avx512"),
        ("x86_64-pc-linux-gnu", "raptorlake", "haswell", "x86-64-v3"),
        # A virtual machine that hides AVX-512.
        ("x86_64-pc-linux-gnu", "znver4", "znver3", "x86-64-v3"),
        ("x86_64-pc-linux-gnu", "sapphirerapids", "skylake-avx512", "skylake-avx512"),
        # One that hides the model.
        ("x86_64-pc-linux-gnu", "rocketlake", "sapphirerapids", "sapphirerapids"),
        ("x86_64-pc-linux-gnu", "rocketlake", "icelake-server", "x86-64-v4"),
        # Names without a file.
        ("x86_64-pc-linux-gnu", "x86-64", "znver5", "x86-64-v4"),
        ("x86_64-pc-linux-gnu", "znver1", "haswell", "x86-64-v3"),
        ("x86_64-pc-linux-gnu", "sandybridge", "x86-64-v2", "x86-64-v2"),
        ("aarch64-linux-gnu", "cortex-a72", "cortex-a72", "cortex-a72"),
        ("aarch64-unknown-linux-gnu", "neoverse-n2", "neoverse-n2", "neoverse-n2"),
        ("aarch64-linux-gnu", "tsv110", "neoverse-n1", "aarch64"),
        ("armv7l-linux-gnueabihf", "cortex-a72", "armv7", "armv7"),
        ("aarch64-linux-gnu", "generic", "cortex-a72", "aarch64"),
        ("riscv64-unknown-linux-gnu", "spacemit-x60", "spacemit-x60", "spacemit-x60"),
        ("riscv64-linux-gnu", "generic", "rv64gcv", "rv64gcv"),
    ],
)
def test_native_finds_the_nearest_device_that_runs(machine, triple, cpu, like, name):
    machine(triple, cpu, like)
    found = native()
    assert found.name == name
    assert found.triple == DEVICES[name].triple
    assert found.l2_bytes == DEVICES[name].l2_bytes


def test_telling_features_are_those_of_one_device():
    for name, file in shipped().items():
        if feature := file.keys.get("told_by"):
            assert [d.name for d in DEVICES.values() if feature in d.features()] == [name]


def test_native_elsewhere_keeps_the_systems_triple(machine):
    machine("arm64-apple-darwin23.1.0", "apple-m3")
    assert native().name == "apple-m1"
    assert native().triple == "arm64-apple-darwin23.1.0"
    assert not DEVICES["apple-m1"].is_host_runnable


@pytest.mark.parametrize(
    ("triple", "like", "message"),
    [
        ("loongarch64-linux-gnu", "", "triple is 'loongarch64-linux-gnu': expected x86-64, .*RV64"),
        ("armv7l-linux-gnueabihf", "aarch64", "older than any device"),
    ],
)
def test_native_says_when_nothing_fits(machine, triple, like, message):
    machine(triple, "generic", like)
    with pytest.raises(DeviceError, match=message):
        native()


def cache(folder: Path, index: int, level: int, kind: str, size: str, cpus: str) -> None:
    path = folder / f"index{index}"
    path.mkdir()
    contents = {
        "level": level,
        "type": kind,
        "size": size,
        "shared_cpu_list": cpus,
    }
    for name, value in contents.items():
        (path / name).write_text(f"{value}\n")


def test_native_takes_the_caches_of_this_machine(machine, tmp_path):
    machine("x86_64-pc-linux-gnu", "znver4", "znver4")
    # Eight cores of two threads.
    cache(tmp_path, 0, 1, "Data", "48K", "0,8")
    cache(tmp_path, 1, 1, "Instruction", "64K", "0,8")
    cache(tmp_path, 2, 2, "Unified", "2048K", "0,8")
    cache(tmp_path, 3, 3, "Unified", "32768K", "0-15")
    found = native()
    assert (found.l1d_bytes, found.l2_bytes, found.l3_bytes) == (49152, 2097152, 4194304)
    (tmp_path / "index3" / "size").write_text("unknown")
    assert native().l1d_bytes == DEVICES["znver4"].l1d_bytes


def test_messages_name_no_vendor_of_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "loongarch64-conda-linux-gnu"
    monkeypatch.setattr(codegen, "llvm_get_system_triple", lambda: here)
    reason = targets.host_lacks({"mtriple": "x86_64-linux-gnu"})
    assert reason == "the code is for x86_64-linux-gnu, this machine is loongarch64-linux-gnu"


def test_what_linux_tells_of_a_board_that_llvm_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Raspberry Pi 5, and a 4.
    boards = {
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp": {"dotprod", "fullfp16"},
        "fp asimd evtstrm crc32 cpuid": set(),
    }
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(targets, "_CPUINFO", cpuinfo)
    assert targets._told_by_linux() == set()
    for features, told in boards.items():
        cpuinfo.write_text(f"processor\t: 0\nFeatures\t: {features}\nCPU part\t: 0xd0b\n\n" * 4)
        assert targets._told_by_linux() == told
        llvm = {"neon", "fp-armv8", "crc", *(["lse"] if told else [])}
        monkeypatch.setattr(targets, "host_features", lambda f=llvm | told: frozenset(f))
        monkeypatch.setattr(
            targets,
            "llvm",
            lambda name, *args: (
                "aarch64-unknown-linux-gnu"
                if name == "llvm_get_system_triple"
                else getattr(codegen, name)(*args)
            ),
        )
        for name, lacking in (("cortex-a76", ["dotprod", "fullfp16", "lse"]), ("cortex-a72", [])):
            found = targets.host_lacks(device(name).target_options(1))
            missing = "" if told else ", ".join(lacking)
            assert found == (f"this machine's processor has no {missing}" if missing else None)


@pytest.mark.parametrize(
    ("name", "feature", "triple"),
    [
        ("znver4", "avx512bf16", "x86_64-unknown-linux-gnu"),
        ("alderlake", "avxvnni", "x86_64-unknown-linux-gnu"),
        ("arrowlake", "avxvnniint8", "x86_64-unknown-linux-gnu"),
        ("neoverse-n2", "bf16", "aarch64-unknown-linux-gnu"),
        ("neoverse-n2", "i8mm", "aarch64-unknown-linux-gnu"),
        ("apple-m1", "fp16fml", "aarch64-unknown-linux-gnu"),
    ],
)
def test_code_is_refused_where_a_feature_of_an_instruction_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, feature: str, triple: str
) -> None:
    spec = DEVICES[name]
    assert any(feature in rate.instruction.features for rate in spec.instructions)
    options, known = spec.target_options(1), codegen.llvm_get_cpu_features
    monkeypatch.setattr(
        targets,
        "llvm",
        lambda name, *args: triple if name == "llvm_get_system_triple" else known(*args),
    )
    for lacking in (set(), {feature}):
        monkeypatch.setattr(targets, "host_features", lambda f=lacking: spec.features() - f)
        expected = f"this machine's processor has no {feature}" if lacking else None
        assert targets.host_lacks(options) == expected
