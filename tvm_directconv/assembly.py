"""Reads the assembly of compiled kernels: multiply-adds and spills of their inner loops.

A schedule can only ask for registers; whether LLVM gave them shows in the assembly. Here its
control flow is followed far enough to find the innermost loops that multiply and add, and to know
which of their vector loads and stores go to the stack: those are spills. llvm-mca then tells how
many cycles such a loop takes on a processor that is not at hand.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .errors import ToolchainError
from .hardware.architecture import AARCH64, ARM, RISCV64, X86_64, architecture, titles

__all__ = ["Loop", "find_mca", "innermost_loops", "mca_cycles", "whole_function"]


@dataclass(frozen=True)
class Loop:
    """Instructions that are repeated, and what was counted in them.

    Attributes
    ----------
    label : str
        Where it begins in the assembly.
    body : tuple of str
        Its instructions in the order of the text, without labels and directives.
    fmas : int
        Multiply-adds of vectors; where they are not fused, pairs of a multiplication and an
        addition.
    spills : int
        Loads and stores of vector registers from and to the stack.
    """

    label: str
    body: tuple[str, ...]
    fmas: int
    spills: int

    @property
    def instructions(self) -> int:
        """Number of instructions."""
        return len(self.body)

    def __str__(self) -> str:
        return "\n".join([f"{self.label}:", *(f"\t{line}" for line in self.body)])


def innermost_loops(text: str, triple: str) -> list[Loop]:
    """Find the loops that multiply and add vectors and contain no other loop.

    Parameters
    ----------
    text : str
        Assembly as LLVM writes it, of one function or more.
    triple : str
        Target triple. Assembly of x86-64 is in AT&T syntax.

    Returns
    -------
    list of Loop
        In the order of the text. Code that is unrolled altogether is no loop: see
        :func:`whole_function`.
    """
    machine = _machine(triple)
    blocks = _blocks(text, machine)
    loops = _natural_loops(blocks)
    found = []
    for head, members in sorted(loops.items()):
        if not any(other in members for other in loops if other != head):
            lines = [line for i in sorted(members) for line in blocks[i].lines]
            found.append(_counted(blocks[head].label, lines, machine))
    return [loop for loop in found if loop.fmas]


def whole_function(text: str, triple: str) -> Loop:
    """Return all that may run between two multiply-adds, as if it were one loop.

    What runs before the first or after the last of them is left out: there the registers of the
    caller are saved and restored, which is no spilling.

    Parameters
    ----------
    text, triple : str
        As for :func:`innermost_loops`.

    Returns
    -------
    Loop
        Empty if nothing is multiplied and added.
    """
    machine = _machine(triple)
    blocks = _blocks(text, machine)
    sums = [
        [j for j, line in enumerate(block.lines) if machine.is_sum(line.text)] for block in blocks
    ]
    working = [i for i, places in enumerate(sums) if places]
    after = _reachable(working, [block.successors for block in blocks])
    before = _reachable(working, _predecessors(blocks))
    between = [
        line
        for i, block in enumerate(blocks)
        for j, line in enumerate(block.lines)
        if (i in after or any(place <= j for place in sums[i]))
        and (i in before or any(place >= j for place in sums[i]))
    ]
    return _counted(blocks[working[0]].label if working else "", between, machine)


def mca_cycles(loop: Loop, triple: str, mca_cpu: str) -> float:
    """Return the cycles that llvm-mca counts for one round of a loop.

    It is a lower bound: every load hits the first-level cache, every branch costs nothing.

    Parameters
    ----------
    loop : Loop
        One of :func:`innermost_loops`.
    triple : str
        Its target triple.
    mca_cpu : str
        Processor for ``llvm-mca -mcpu``, as device files have it.

    Returns
    -------
    float
        Cycles per round in the steady state.

    Raises
    ------
    ToolchainError
        If llvm-mca is missing, too old, or cannot read the loop.
    """
    # So many rounds that filling the pipelines and draining them does not show.
    rounds = max(20, 20_000 // max(1, loop.instructions))
    command = [find_mca(), f"-mtriple={triple}", f"-mcpu={mca_cpu}", f"-iterations={rounds}"]
    if mca_cpu == "neoverse-n1":
        # LLVM after 19 takes the decoder's four instructions per cycle for the width of the core,
        # which renames eight.
        command.append("-dispatch=8")
    body = "\n".join(line for line in loop.body if not _BRANCH.fullmatch(line))
    result = subprocess.run(command, input=body, capture_output=True, text=True)
    total = re.search(r"^Total Cycles: +(\d+)$", result.stdout, re.MULTILINE)
    if result.returncode or not total or "not a recognized processor" in result.stderr:
        raise ToolchainError(
            f"{' '.join(command)} cannot count the cycles of a loop: {result.stderr[:500].strip()}"
        )
    return int(total[1]) / rounds


_MCA = ("llvm-mca-22", "llvm-mca-19", "llvm-mca")
_MCA_OLDEST = 19  # Before, the Neoverse N1 has no model of its own.


@lru_cache
def _version(path: str, _changed: int) -> int:
    """Return the version of an llvm-mca, 0 of what tells none."""
    words = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)", words)
    return int(version[1]) if version else 0


def find_mca() -> str:
    """Return the path of an llvm-mca that knows the processors of the device files.

    Raises
    ------
    ToolchainError
        If there is none.
    """
    for path in filter(None, map(shutil.which, _MCA)):
        if _version(path, os.stat(path).st_mtime_ns) >= _MCA_OLDEST:
            return path
    raise ToolchainError(
        f"llvm-mca {_MCA_OLDEST} or later was not found: looked for {', '.join(_MCA)} on PATH. "
        f"Install it, on Debian with: apt install llvm-{_MCA_OLDEST}"
    )


# --- Instructions -------------------------------------------------------------------------------

_BRANCH = re.compile(
    r"(?:j\w*|b(?:\.?(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)[uz]?)?|cbn?z|tbn?z)"
    r"\s(?:\S+, ?)*(\.L[\w.$]+)"
)
# What follows these in the text does not run after them.
_LEAVES = re.compile(
    r"(jmpq?|j|jr|tail|b|br|bx)\s|(ret[lq]?|ud2|unimp)$|(brk|udf)\s|(pop|ldm\w*)\s.*\bpc\b"
    r"|(ldr|mov)\s+pc,"
)
_STACK_POINTER = "sp"


@dataclass(frozen=True)
class _Machine:
    """How one architecture is written. Patterns match from the beginning of an instruction."""

    comment: str
    register: re.Pattern[str]
    """A general-purpose register; its group is the name that all its widths share."""
    result: re.Pattern[str]
    """An instruction and the general-purpose register that it writes, in the same group."""
    results: re.Pattern[str]
    """An instruction that writes several registers, all of them in its group."""
    no_result: re.Pattern[str]
    """Instructions that only seem to write one, or that move an address within its object."""
    copy: re.Pattern[str]
    """Instructions that make an address out of another one."""
    vector_access: re.Pattern[str]
    """Loads and stores of vector registers and parts of them, also within other instructions."""
    pair_load: re.Pattern[str]
    """Loads of registers that may hold a pair of whole numbers; its groups are their numbers."""
    pair_use: re.Pattern[str]
    """Instructions that compute with vectors of whole numbers."""
    fma: re.Pattern[str]
    multiply: re.Pattern[str]
    add: re.Pattern[str]
    call: re.Pattern[str]
    scratch: frozenset[str]
    """General-purpose registers that a call may change."""

    def registers(self, text: str) -> set[str]:
        """Return the general-purpose registers in an instruction."""
        return {match[match.lastindex or 0] for match in self.register.finditer(text)}

    def is_sum(self, text: str) -> bool:
        """Return whether an instruction adds vectors."""
        return bool(self.fma.match(text) or self.add.match(text))

    def loads_addresses(self, text: str, following: Sequence[str]) -> bool:
        """Return whether whole numbers are loaded: that is what they are first used as.

        Addresses are all whole numbers that kernels compute with. LLVM may divide those of several
        pixels at once, in vectors, and loads what does not change once for a tile.
        """
        loaded = self.pair_load.match(text)
        if not loaded:
            return False
        for number in filter(None, loaded.groups()):
            named = re.compile(rf"\b[bhsdqv]{number}\b")
            use = next((line for line in following if named.search(line)), "")
            if not self.pair_use.match(use):
                return False
        return True

    def after(self, text: str, stack: frozenset[str]) -> frozenset[str]:
        """Return the registers that point into the stack after an instruction."""
        if self.call.match(text):
            return stack - self.scratch
        if self.no_result.match(text):
            return stack
        if several := self.results.match(text):
            return stack - self.registers(several[1]) | {_STACK_POINTER}
        one = self.result.match(text)
        if one is None:
            return stack
        result = one[one.lastindex or 0]
        sources = self.registers(text[: one.start(one.lastindex or 0)] + text[one.end() :])
        if result == _STACK_POINTER or (self.copy.match(text) and sources & stack):
            return stack | {result}
        return stack - {result}


_X86_REGISTER = r"%(?:[re]([abcd]x|[sd]i|[sb]p)|(r\d+)[dwb]?)\b"
_X86_64 = _Machine(
    comment="#",
    register=re.compile(_X86_REGISTER),
    result=re.compile(rf".*{_X86_REGISTER}$"),
    results=re.compile(r"(?!)"),
    no_result=re.compile(r"cmp|test|push|(add|sub|and|inc|dec)[lq]?\s"),
    copy=re.compile(r"lea|mov[lq]?\s[^(]*$"),
    vector_access=re.compile(r"(?=.*%[xyz]mm)(?=.*\(%)"),
    pair_load=re.compile(r"(?!)"),
    pair_use=re.compile(r"(?!)"),
    fma=re.compile(r"vfn?m(add|sub)\d+p[sh]\s|(\{vex\} +)?vp?dp\w+\s|tdp\w+\s"),
    multiply=re.compile(r"v?mulp[sh]\s|v?pmaddwd\s"),
    add=re.compile(r"v?addp[sh]\s|v?paddd\s"),
    call=re.compile("call"),
    scratch=frozenset(["ax", "cx", "dx", "si", "di", "r8", "r9", "r10", "r11"]),
)
_AARCH64_REGISTER = r"\b(?:[wx](\d+)|(sp))\b"
_AARCH64 = _Machine(
    comment="//",
    register=re.compile(_AARCH64_REGISTER),
    result=re.compile(rf"\S+\s+{_AARCH64_REGISTER}"),
    results=re.compile(r"ldp\w*\s([^\[]*)"),
    no_result=re.compile(r"st|cmp|cmn|tst|ccm|fcmp|b\.|b\s|cb|tb"),
    copy=re.compile(r"(mov|add|sub|and)\s"),
    vector_access=re.compile(r"(ld|st)\w*\s+(\{ *v|[bhsdq]\d)"),
    pair_load=re.compile(r"ld(?:p|u?r)\s+d(\d+)(?:, d(\d+))?, \["),
    pair_use=re.compile(r"(add|sub|mul|ml[as])\s+v"),
    fma=re.compile(r"(fml[as]|[su]ml[as]l2?|ml[as]|fmlal2?|[us]{1,2}dot|bfdot|\w+mmla)\s+v"),
    multiply=re.compile(r"fmul\s+v"),
    add=re.compile(r"fadd\s+v"),
    call=re.compile(r"blr?\s"),
    scratch=frozenset([*map(str, range(19)), "30"]),
)
_ARM_REGISTER = r"\b(r\d+|sp|lr)\b"
_ARM = _Machine(
    comment="@",
    register=re.compile(_ARM_REGISTER),
    result=re.compile(rf"\S+\s+{_ARM_REGISTER}"),
    results=re.compile(r"(?:(?:ldm|pop)[^{]*\{|(?:ldrd|[us]m[ul]l)\w*\s)([^}\[]*)"),
    no_result=re.compile(r"st|cmp|cmn|tst|teq|vld|vst|push|vpush|vpop"),
    copy=re.compile(r"(mov|add|sub|bic|and)\s"),
    vector_access=re.compile(r"v(ld|st)"),
    pair_load=re.compile(r"(?!)"),
    pair_use=re.compile(r"(?!)"),
    fma=re.compile(r"v((fm|ml)[as]\.f32|mla\.i32|mlal\.[su]\d+)\s+q"),
    multiply=re.compile(r"vmul\.f32\s+q"),
    add=re.compile(r"vadd\.f32\s+q"),
    call=re.compile(r"blx?\s"),
    scratch=frozenset(["r0", "r1", "r2", "r3", "r12", "lr"]),
)
_RISCV64_REGISTER = r"\b(zero|ra|[sgt]p|[ast]\d+)\b"
_RISCV64 = _Machine(
    comment="#",
    register=re.compile(_RISCV64_REGISTER),
    result=re.compile(rf"\S+\s+{_RISCV64_REGISTER}"),
    results=re.compile(r"(?!)"),
    no_result=re.compile(r"s[bhwd]\s|b|j"),
    copy=re.compile(r"(mv|addi?|sub|sh[123]add|andi?)\s"),
    vector_access=re.compile(r"v[ls](\d+r|[emsoux]*\d|m)|f[ls][wd]\s"),
    pair_load=re.compile(r"(?!)"),
    pair_use=re.compile(r"(?!)"),
    fma=re.compile(r"vf?n?m(acc|add|sac|sub)\.v|vwmacc\w*\.v"),
    multiply=re.compile(r"vfmul\.v"),
    add=re.compile(r"vfadd\.v"),
    call=re.compile(r"call|jalr?\s"),
    scratch=frozenset(["ra", *(f"t{i}" for i in range(7)), *(f"a{i}" for i in range(8))]),
)


_MACHINES = {X86_64: _X86_64, AARCH64: _AARCH64, ARM: _ARM, RISCV64: _RISCV64}


def _machine(triple: str) -> _Machine:
    found = architecture(triple)
    if found is None:
        raise ToolchainError(
            f"cannot read the assembly of {triple!r}: expected a triple of {titles()}"
        )
    return _MACHINES[found]


# --- Control flow -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """An instruction."""

    text: str
    spills: bool


@dataclass(frozen=True)
class _Block:
    """Instructions that always run one after the other."""

    label: str
    lines: list[_Line]
    successors: list[int]


# Whoever asks for the loops often asks for the whole function, too.
@lru_cache(maxsize=1)
def _blocks(text: str, machine: _Machine) -> list[_Block]:
    """Cut assembly into blocks, and find out which instructions spill."""
    names, code = [""], [list[str]()]
    numbers = {}
    for raw in text.splitlines():
        line = " ".join(raw.split(machine.comment)[0].split())
        if label := re.fullmatch(r"([\w.$]+):", line):
            if not label[1].startswith(".Ltmp"):  # Only for debuggers.
                numbers[label[1]] = len(names)
                names.append(label[1])
                code.append([])
        elif line and not line.startswith("."):
            code[-1].append(line)
            if _BRANCH.fullmatch(line) or _LEAVES.match(line):
                names.append(names[-1])
                code.append([])
    edges = []
    for i, lines in enumerate(code):
        last = lines[-1] if lines else ""
        branch = _BRANCH.fullmatch(last)
        edges.append([numbers[branch[1]]] if branch and branch[1] in numbers else [])
        if i + 1 < len(code) and not _LEAVES.match(last):
            edges[-1].append(i + 1)
    stack = _stack_addresses(code, edges, machine)
    return [
        _Block(name, _lines(lines, known, machine), successors)
        for name, lines, known, successors in zip(names, code, stack, edges, strict=True)
    ]


def _lines(code: list[str], stack: frozenset[str], machine: _Machine) -> list[_Line]:
    lines = []
    for i, text in enumerate(code):
        spills = bool(machine.vector_access.match(text) and machine.registers(text) & stack)
        spills = spills and not machine.loads_addresses(text, code[i + 1 :])
        lines.append(_Line(text, spills))
        stack = machine.after(text, stack)
    return lines


def _stack_addresses(
    code: list[list[str]], edges: list[list[int]], machine: _Machine
) -> list[frozenset[str]]:
    """Return which registers point into the stack at the beginning of each block.

    Only those that do so whatever ran before; an address of a spilled register always does.
    """
    only_sp = frozenset([_STACK_POINTER])
    targets = {target for successors in edges for target in successors}
    known = {i: only_sp for i in range(len(code)) if i not in targets}
    waiting = list(known)
    while waiting:
        i = waiting.pop()
        stack = known[i]
        for text in code[i]:
            stack = machine.after(text, stack)
        for target in edges[i]:
            common = known.get(target, stack) & stack
            if known.get(target) != common:
                known[target] = common
                waiting.append(target)
    return [known.get(i, only_sp) for i in range(len(code))]


def _natural_loops(blocks: Sequence[_Block]) -> dict[int, set[int]]:
    """Return the loops: for each block that control flow returns to, the blocks on the way."""
    predecessors = _predecessors(blocks)
    loops: dict[int, set[int]] = {}
    visited: set[int] = set()
    for root in range(len(blocks)):
        # Depth first; an edge to a block that is still open closes a loop.
        path = [] if root in visited else [(root, iter(blocks[root].successors))]
        open_blocks = {block for block, _ in path}
        while path:
            block, rest = path[-1]
            visited.add(block)
            target = next(rest, None)
            if target is None:
                path.pop()
                open_blocks.remove(block)
            elif target in open_blocks:
                members = loops.setdefault(target, {target})
                waiting = [block]
                while waiting:
                    member = waiting.pop()
                    if member not in members:
                        members.add(member)
                        waiting += predecessors[member]
            elif target not in visited:
                path.append((target, iter(blocks[target].successors)))
                open_blocks.add(target)
    return loops


def _predecessors(blocks: Sequence[_Block]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in blocks]
    for i, block in enumerate(blocks):
        for target in block.successors:
            found[target].append(i)
    return found


def _reachable(starts: Iterable[int], edges: Sequence[Sequence[int]]) -> set[int]:
    """Return the blocks that one or more edges lead to."""
    found: set[int] = set()
    waiting = [target for start in starts for target in edges[start]]
    while waiting:
        block = waiting.pop()
        if block not in found:
            found.add(block)
            waiting += edges[block]
    return found


def _counted(label: str, lines: Sequence[_Line], machine: _Machine) -> Loop:
    def count(pattern: re.Pattern[str]) -> int:
        return sum(bool(pattern.match(line.text)) for line in lines)

    return Loop(
        label,
        tuple(line.text for line in lines),
        count(machine.fma) + min(count(machine.multiply), count(machine.add)),
        sum(line.spills for line in lines),
    )
