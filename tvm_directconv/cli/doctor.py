"""``tvm-directconv doctor``."""

import argparse
import platform
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from .. import versions
from ..assembly import find_mca
from ..errors import DirectConvError, ToolchainError, said_by
from ..hardware.architecture import ARCHITECTURES, architecture
from ..toolchain import Toolchain, find_toolchain
from ._output import add_format, render, write

_NARROWEST = 40
_COMMAND = re.compile(r"\b(?:pip|apt) install [^,;:]+")
_NO_BREAK = "\N{NO-BREAK SPACE}"

# By what is imported, as XGBoost's package has several names: what for, and the extra it is in.
_OPTIONAL = {
    **dict.fromkeys(("xgboost", "cloudpickle", "psutil", "tornado"), ("tuning", "tune")),
    "onnx": ("ONNX files", "onnx"),
    "onnxruntime": ("checks", "compare"),
    "torch": (".pt2 files", "torch"),
    "PIL": ("images", "image"),
    "matplotlib": ("plots", "plot"),
}
_PACKAGES = {"PIL": "pillow"}


@dataclass(frozen=True)
class _Check:
    check: str
    status: str
    """``ok``, ``missing`` or ``wrong``."""
    found: str
    advice: str
    required: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything; status 1 if something is missing that is required."""
    checks = list(_checks())
    # What is to be found missing must not be needed to say so: a table would take rich.
    if args.format == "table":
        print(_text(checks))
    else:
        write(render([asdict(check) for check in checks], args.format))
    return 1 if any(check.required and check.status != "ok" for check in checks) else 0


def _text(checks: list[_Check]) -> str:
    """Return what people read: what was found, and below it what to do; as wide as the terminal."""
    width = max(shutil.get_terminal_size().columns, _NARROWEST)
    state = max(len(check.status) for check in checks)
    name = min(max(len(check.check) for check in checks), width // 2)

    def row(check: _Check) -> str:
        begin = f"{check.status:{state}}  {check.check:{name}}  "
        text = " ".join(filter(None, (check.found, "" if check.required else "(optional)")))
        return _wrapped(text, width, begin, " " * (state + name + 4))

    def advice(check: _Check) -> str:
        return _wrapped(f"{check.check}: {check.advice}", width, "", "  ")

    lines = [row(check) for check in checks]
    if lacking := [advice(check) for check in checks if check.advice]:
        lines += ["", "What to do", *lacking]
    return "\n".join(lines)


def _wrapped(text: str, width: int, first: str, later: str) -> str:
    # Commands are to be pasted: they stay on one line if they can.
    joined = _COMMAND.sub(lambda found: found[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(
        joined,
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
    )
    return "\n".join(line.replace(_NO_BREAK, " ").rstrip() for line in lines or [first])


def _checks() -> Iterator[_Check]:
    yield _Check("Python", "ok", platform.python_version(), "")
    pins = versions.pins()
    for name, wanted in pins.items():
        yield _package(name, wanted)
    for name in ("numpy", "rich"):
        yield _package(name)
    for module, (purpose, extra) in _OPTIONAL.items():
        yield _optional(module, purpose, extra)
    yield from _tvm(usable=all(versions.installed(name) == want for name, want in pins.items()))
    yield from _compilers()
    yield _cycle_model()


def _cycle_model() -> _Check:
    name = "llvm-mca (cycle model)"
    try:
        return _Check(name, "ok", find_mca(), "", required=False)
    except ToolchainError as error:
        return _Check(name, "missing", "", str(error), required=False)


def _package(name: str, wanted: str | None = None) -> _Check:
    found = versions.installed(name)
    pinned = f"{name}=={wanted}" if wanted else name
    if found is None:
        return _Check(name, "missing", "", f"pip install {pinned}")
    if wanted and found != wanted:
        return _Check(name, "wrong", found, f"pip install {pinned}")
    return _Check(name, "ok", found, "")


def _optional(module: str, purpose: str, extra: str) -> _Check:
    found = find_spec(module) is not None
    advice = "" if found else f"pip install 'tvm-directconv[{extra}]'"
    name = f"{_PACKAGES.get(module, module)}, for {purpose}"
    return _Check(name, "ok" if found else "missing", "", advice, required=False)


def _tvm(usable: bool) -> Iterator[_Check]:
    """Look into TVM, which only the right pair of versions survives."""
    names = ("LLVM in TVM", "device of this machine")
    if not usable:
        for name in names:
            yield _Check(name, "missing", "", "install TVM and its FFI first, see above")
        return
    try:
        from tvm.target import codegen

        known = [str(target) for target in codegen.llvm_get_targets()]
        lacking = [each.name for each in ARCHITECTURES if each.name not in known]
        yield _Check(
            names[0],
            "wrong" if lacking else "ok",
            f"{codegen.llvm_version_major()}, {len(known)} targets"
            + (f", without {', '.join(lacking)}" if lacking else ""),
            "pip install --force-reinstall apache-tvm" if lacking else "",
        )
    except Exception as error:  # Whatever a broken installation may raise.
        yield _Check(names[0], "missing", said_by(error), "reinstall TVM")
        yield _Check(names[1], "missing", "", "reinstall TVM")
        return
    yield _native(names[1])


def _native(name: str) -> _Check:
    from ..hardware.host import native

    try:
        here = native()
    except DirectConvError as error:
        return _Check(name, "wrong", "", str(error))
    vectors = ", ".join(f"{rate.lanes} lanes x {rate.per_cycle:g}" for rate in here.rates())
    facts = (
        f"{here.name}: {here.description}; per cycle {vectors}; {here.vector_registers} registers; "
        f"cores to use: {here.cores}"
    )
    return _Check(name, "ok", facts, "")


def _compilers() -> Iterator[_Check]:
    name = "C compiler of this machine"
    try:
        yield _Check(name, "ok", find_toolchain(platform.machine()).description, "")
    except DirectConvError as error:
        yield _Check(name, "missing", "", str(error))
    here = architecture(platform.machine())
    for foreign in ARCHITECTURES:
        if foreign is here:
            continue
        compiler, emulator = f"cross compiler for {foreign.title}", f"emulator for {foreign.title}"
        try:
            toolchain = find_toolchain(foreign.triple)
        except DirectConvError as error:
            yield _Check(compiler, "missing", "", str(error), required=False)
            yield _Check(emulator, "missing", "", "install the compiler first", required=False)
            continue
        yield _Check(compiler, "ok", " ".join(toolchain.cc), "", required=False)
        yield _emulator(emulator, toolchain)


def _emulator(name: str, toolchain: Toolchain) -> _Check:
    try:
        command = toolchain.command("--version")
        version = subprocess.run(
            [command[0], "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except DirectConvError as error:
        return _Check(name, "missing", "", str(error), required=False)
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return _Check(name, "wrong", f"{toolchain.emulator[0]}: {error}", "reinstall it", False)
    return _Check(name, "ok", version, "", required=False)
