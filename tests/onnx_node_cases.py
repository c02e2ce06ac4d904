"""What becomes of ONNX's own tests of its operators, each a model of one operator.

Cases are compiled and run in processes of their own, many in each, and linked into one library: so
a crash or a hang costs one case, which is named, and the C compiler is called a few times only.
"""

import functools
import multiprocessing
import re
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

RIGHT, CONSTANT, COMPUTED = "right", "constant", "computed"
REFUSED, WRONG, CRASHED = "refused", "wrong", "crashed"
"""Outcomes. ``constant`` is right if the inputs of integers, or all but the first, are constants,
as they are in models; ``computed`` is right if all are, so that it is computed when compiling;
``wrong`` are errors, too, that are not this package's own."""

LINKING = "linking"
_AT_ONCE = 48
_SECONDS = 60.0
_PRELOADED = (
    "onnx.reference",
    "tvm_directconv.network.kernels",
    "tvm_directconv.network.onnx_graph.stage",
    "tvm_directconv.network.pipeline",
)
"""What all processes need, imported once."""

TABLE = Path(__file__).parents[1] / "docs" / "operators.md"
_HEADINGS = {
    RIGHT: "right",
    CONSTANT: "right with constants",
    COMPUTED: "computed when compiling",
    REFUSED: "refused",
    WRONG: "wrong",
    CRASHED: "crashed",
}


@dataclass(frozen=True)
class Case:
    """A model, inputs, and what ONNX says the outputs are."""

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """What became of a case, and why, in a line."""

    kind: str
    reason: str = ""


@functools.cache
def cases() -> dict[str, Case]:
    """Return all cases by name, without ``test_`` before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX computes its expectations as it collects them.
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    operators: dict[str, str] = {}
    made = {}
    for case in found:
        name = case.name.removeprefix("test_")
        plain = re.sub(r"_expanded(_ver\d+)?$", "", name)
        nodes = case.model.graph.node
        # What ONNX expands is named after what is expanded, which comes before it.
        operator = operators.setdefault(plain, _qualified(nodes[-1]))
        ((given, wanted),) = case.data_sets
        made[name] = Case(name, operator, case.model, given, wanted, case.rtol, case.atol)
    return made


def _qualified(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def outcomes(given: Sequence[Case], seconds: float = _SECONDS) -> Iterator[tuple[str, Outcome]]:
    """Yield what becomes of cases, by their names.

    Parameters
    ----------
    given : sequence of Case
        What is compiled and run.
    seconds : float
        How long one of them may take.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_PRELOADED])
    remaining = list(given)
    while remaining:
        batch = remaining[:_AT_ONCE]
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(sender, batch))
        worker.start()
        sender.close()
        current, done, failure = "", set(), "ends the process"
        try:
            while True:
                if not receiver.poll(seconds):
                    failure = "hangs"
                    break
                name, outcome = receiver.recv()
                if outcome is None:
                    current = name
                else:
                    done.add(name)
                    yield name, outcome
        except EOFError:
            pass
        worker.kill()
        worker.join()
        if len(done) < len(batch):
            if current == LINKING:
                raise RuntimeError(f"linking {failure}: {', '.join(case.name for case in batch)}")
            done.add(current)
            yield current, Outcome(CRASHED, failure)
        remaining = [case for case in remaining if case.name not in done]


def _work(sender: Any, batch: Sequence[Case]) -> None:
    """Send each case's name when it begins, and its outcome when it is known."""
    waiting = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, case in enumerate(batch):
            sender.send((case.name, None))
            found, network = _compiled(case, folder / str(number))
            if network is None:
                sender.send((case.name, found))
            else:
                waiting.append((case, found, network))
        sender.send((LINKING, None))
        library = _linked([network for _, _, network in waiting], folder) if waiting else None
        for case, found, network in waiting:
            sender.send((case.name, None))
            sender.send((case.name, _compared(case, found, network, library)))
    sender.close()


@dataclass
class _Network:
    source: Path
    objects: list[Path]
    program: Any
    inputs: list[np.ndarray]


def _compiled(case: Case, folder: Path) -> tuple[Outcome, _Network | None]:
    """Compile a case, as it is or with constants, to C source in a new folder and objects."""
    from tvm_directconv.errors import ModelError

    folder.mkdir()
    reason = ""
    for kind, constant in _variants(case):
        try:
            found = Outcome(kind, reason if kind == COMPUTED else "")
            return found, _network(case, constant, folder)
        except ModelError as error:
            # What is left to say when all is known that can be.
            reason = str(error).replace(f"{folder}/", "")
        except Exception as error:
            text = f"{type(error).__name__}: {error}".strip().splitlines()
            return Outcome(WRONG, f"{text[0]} ... {text[-1]}"[:300]), None
    return Outcome(REFUSED, reason), None


def _variants(case: Case) -> Iterator[tuple[str, set[int]]]:
    """Yield which inputs are constants: none, those of integers, all but the first, all."""
    yield RIGHT, set()
    if any(not isinstance(value, np.ndarray | np.generic | TensorProto) for value in case.inputs):
        return
    count = len(case.inputs)
    integers = {n for n in range(count) if array(case.inputs[n]).dtype.kind in "iu"}
    for constant in (integers, set(range(1, count))):
        if constant and len(constant) < count:
            yield CONSTANT, constant
    yield COMPUTED, set(range(count))


def array(value: Any) -> np.ndarray:
    """Return a tensor of a case as an array."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _network(case: Case, constant: set[int], folder: Path) -> _Network:
    from tvm_directconv.emit.c_source import (
        packed_functions,
        tables,
        weights_source,
        write_weights,
    )
    from tvm_directconv.hardware.lookup import device
    from tvm_directconv.network.compile import plan
    from tvm_directconv.network.kernels import compile_kernels

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    values = list(model.graph.input)
    for number in sorted(constant, reverse=True):
        tensor = case.inputs[number]
        if not isinstance(tensor, TensorProto):
            tensor = numpy_helper.from_array(np.asarray(tensor))
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = values[number].name
        if model.ir_version >= 4:  # Before, constants had to be inputs, too.
            del model.graph.input[number]
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    shapes = {
        value.name: array(case.inputs[number]).shape
        for number, value in enumerate(values)
        if number not in constant and value.type.HasField("tensor_type")
    }
    target = device("native")
    program, _, _ = plan(path, target, 1, "model", shapes)
    compiled = compile_kernels(program.kernels, target, 1)
    symbols = {kernel: symbol for kernel, (symbol, _) in compiled.items()}
    # As tvm_directconv.emit.library does it, but with a name of its own for each network.
    name, weights = f"network{folder.name}", folder / "weights"
    parts = (
        '#include "network.h"\n',
        tables(name, program, symbols, write_weights(program.weights, weights)),
        re.sub(
            r"__tvm_ffi_(main|profile)", rf"\g<0>{folder.name}", packed_functions(name, program)
        ),
        weights_source(name, str(weights), visibility="hidden"),
    )
    source = folder / f"{name}.c"
    source.write_text("\n".join(parts), encoding="utf-8")
    inputs = [array(v) for n, v in enumerate(case.inputs) if n not in constant]
    objects = [folder.parent / f"{symbol}.o" for symbol, _ in compiled.values()]
    for path, (_, code) in zip(objects, compiled.values(), strict=True):
        path.write_bytes(code)
    return _Network(source, objects, program, inputs)


def _linked(networks: Sequence[_Network], folder: Path) -> Any:
    """Link networks into one library, which has a function ``main`` and a number for each."""
    import tvm_ffi

    from tvm_directconv.emit.c_source import DEPLOY
    from tvm_directconv.hardware.lookup import device
    from tvm_directconv.toolchain import find_toolchain, link_shared

    objects = dict.fromkeys(path for network in networks for path in network.objects)
    sources = [network.source for network in networks]
    flags = ("-std=gnu99", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{DEPLOY}")
    toolchain = find_toolchain(device("native").triple)
    link_shared([*flags, *sources, DEPLOY / "network.c", *objects], folder / "all.so", toolchain)
    return tvm_ffi.load_module(str(folder / "all.so"))


def _compared(case: Case, found: Outcome, network: _Network, library: Any) -> Outcome:
    from tvm_directconv.network.manifest import Check, NetworkManifest
    from tvm_directconv.network.network import Network

    program = network.program
    main = library[f"main{network.source.parent.name}"]
    manifest = NetworkManifest(
        device="native",
        target={},
        threads=1,
        inputs=tuple(program.inputs),
        outputs=tuple(program.outputs),
        arena_bytes=program.arena_bytes,
        unshared_bytes=0,
        weight_bytes=0,
        im2col_bytes=0,
        reorders=0,
        conversions=0,
        layers=(),
        multiply_adds=0,
        unscheduled=(),
        check=Check(note="the case is compared here"),
    )
    try:
        results = Network(manifest, {"main": main, "profile": main}).run(*network.inputs)
    except Exception as error:
        return Outcome(WRONG, f"{type(error).__name__}: {error}")
    results = results if isinstance(results, tuple) else (results,)
    if len(results) != len(case.outputs):
        return Outcome(WRONG, f"{len(results)} outputs instead of {len(case.outputs)}")
    for port, result, value in zip(program.outputs, results, case.outputs, strict=True):
        wanted = array(value)
        if (result.shape, result.dtype) != (wanted.shape, wanted.dtype):
            what = f"{result.dtype}{result.shape} instead of {wanted.dtype}{wanted.shape}"
            return Outcome(WRONG, f"output {port.name!r} is {what}")
        try:
            # What is cancelled in a sum leaves rounding errors of its largest terms.
            noise = 0.0
            if wanted.dtype.kind == "f" or wanted.dtype == "bfloat16":
                largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
                noise = 4 * float(ml_dtypes.finfo(wanted.dtype).eps) * float(largest)
            np.testing.assert_allclose(result, wanted, case.rtol, max(case.atol, noise))
        except AssertionError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Outcome(WRONG, f"output {port.name!r}: {' '.join(lines[1:4])}")
    return found


def rows(found: Mapping[str, Outcome]) -> list[str]:
    """Return the lines of the table for cases: one for each operator, outcome and reason."""
    grouped: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    order = list(_HEADINGS)
    for name, outcome in found.items():
        key = (cases()[name].operator, order.index(outcome.kind), _cell(outcome.reason))
        grouped[key].append(f"`{name}`")
    return [
        f"| `{operator}` | {_HEADINGS[order[kind]]} | {reason} | {' '.join(sorted(names))} |"
        for (operator, kind, reason), names in sorted(grouped.items())
    ]


def _cell(reason: str) -> str:
    """Return a reason as it stands in the table: of one node, whose type is in the first column."""
    reason = re.sub(r"^the model has [a-z ]+: ", "", reason)
    return " ".join(reason.replace("|", "/").split())


def table(found: Mapping[str, Outcome]) -> str:
    """Return the text of docs/operators.md."""
    kinds = Counter(outcome.kind for outcome in found.values())
    counts = [f"| {heading} | {kinds[kind]} |" for kind, heading in _HEADINGS.items()]
    return "\n".join(
        [
            "# ONNX's operators",
            "",
            f"What becomes of the {len(found)} tests that ONNX {onnx.__version__} has for its",
            "own operators, each a model of one operator with certain attributes and types. Names",
            "that end in `_expanded` are of models in which ONNX's own definition stands in place",
            "of the operator. `scripts/list_operators` writes this file; a test compares it with",
            "what it finds.",
            "",
            "- right: the outputs are what ONNX says, in shape, type and value.",
            "- right with constants: if inputs other than the first, or those of integers, are",
            "  constants, as weights, axes and shapes are in models.",
            "- computed when compiling: if all inputs are constants; the reason says why it fails",
            "  with inputs that vary.",
            "- refused: an error says so when the model is compiled; for the node `NAME`, it is",
            "  `TYPE (NAME): reason`.",
            "",
            "| outcome | tests |",
            "| --- | --- |",
            *counts,
            "",
            "| operator | outcome | reason | tests |",
            "| --- | --- | --- | --- |",
            *rows(found),
            "",
        ]
    )
