"""A compiled network beside another implementation of its model, on random input.

The reference is ONNX Runtime for ONNX files, without its optimizations: it computes the model as it
is written, operator by operator, so a fusion that is wrong there is not held against us, and it is
ready soonest. Quantised models it computes in whole numbers only with them. For files of
``torch.export`` it is PyTorch.

An error is the root mean square of the differences over that of the reference's output. That sees a
single wrong number in a million, and a few numbers that flip where values tie, as indices of maxima
do, do not make it large. Rounding explains ``16 eps sqrt(steps)`` of float32, where sums are long,
and ``2 eps sqrt(steps)`` of coarser types, which each step rounds to. Where the reference computes
floats between quantisations, some numbers in a hundred may be another one: ``2^-9 sqrt(steps)``. If
there is more, the reference is asked how much it moves itself when inputs and weights are moved by
as much as rounding does: networks that amplify that, and quantised ones, in which it tips values
over, may differ by some times as much. If there is more still, agreement with another is enough: a
quantised model as ONNX Runtime computes it without its optimizations, which drop one of two
quantisations that follow each other, or ONNX's own implementation, as runtimes do not follow the
standard everywhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import memory
from ..emit.program import Port
from ..errors import LibraryError, ModelError, ToolchainError
from ..hardware.target import host_lacks
from .manifest import Check, NetworkManifest
from .onnx_session import session

if TYPE_CHECKING:
    from ..toolchain import Toolchain

Inputs = Sequence[np.ndarray]

_SEED = 0
_EPSILON = 2.0**-23
# What a step may lose: in the sums of a convolution, as float32; and where it rounds to its type.
_SUMS = 16 * _EPSILON
_ROUNDED = {"float32": _SUMS, "float16": 2 * 2.0**-10, "bfloat16": 2 * 2.0**-7, "int8": 2.0**-9}
# How far numbers are moved to see how the reference moves; how often; and how many times as much a
# library may differ.
_MOVED, _TIMES, _MORE = 32 * _EPSILON, 3, 4
_LITTLE = 0.1  # A tolerance beyond which wrong results look like right ones.
_LIMIT = 600  # seconds, for a library that does not end


STANDARD = "ONNX's reference implementation"


class Unavailable(Exception):
    """There is nothing to compare with; the message says why."""


def check_library(
    library: Path,
    manifest: NetworkManifest,
    model: Any,
    values: Mapping[str, Any] | None,
    precision: str,
    asked: bool | None,
    link: "Callable[[Toolchain], None] | None" = None,
) -> Check:
    """Run a library once beside a reference.

    Parameters
    ----------
    library : Path
    manifest : NetworkManifest
        The library's.
    model : str, Path or tvm.IRModule
        What it was compiled from.
    values : mapping or None
        Inputs of the model that are constants in the library.
    precision : str
        The coarsest type that the model's numbers are rounded to.
    asked : bool or None
        True to check it in an emulator, too, and to fail if it cannot be checked; None to check it
        where that is possible; False not to.
    link : callable, optional
        What makes the library, called if it is to be run. It is there already if not given.

    Raises
    ------
    LibraryError
        If the results are wrong, or there are none.
    ModelError
        If there is no way to check it, and it was asked for.
    ToolchainError
        If what runs it is missing, and it was asked for.
    """
    if asked is False:
        return Check(note="it was not asked for")
    try:
        run = _runs(library, manifest, asked, link)
        return _compared(manifest, _reference(model, values, precision), precision, run)
    except Unavailable as reason:
        if asked:
            raise ModelError(
                f"the library cannot be checked: {reason}. Compile it without --check (check=True)"
            ) from None
        return Check(note=str(reason))
    except ToolchainError as error:
        if asked:
            raise
        return Check(note=str(error))


def _runs(
    library: Path,
    manifest: NetworkManifest,
    asked: bool | None,
    link: "Callable[[Toolchain], None] | None",
) -> Callable[[Inputs], list[np.ndarray]]:
    """Return what runs a library here."""
    from ..deploy.emulated import emulated, toolchain_of

    toolchain = toolchain_of(manifest)
    reason = host_lacks(manifest.target)
    foreign = bool(reason) and bool(toolchain.emulator)
    if reason and not (asked and foreign):
        hint = "; --check (check=True) runs it in an emulator" if foreign else ""
        raise Unavailable(f"it is for {manifest.device}, and {reason}{hint}")
    options: dict[str, Any] = {} if foreign else {"limit": _LIMIT}
    # Reads and writes beside inputs and outputs are noticed, and a crash ends another process.
    options |= {"guard": "end", "scratch_bytes": manifest.arena_bytes}
    options["output_types"] = [port.dtype for port in manifest.outputs]
    shapes = [port.shape for port in manifest.outputs]
    if empty := [p for p in (*manifest.inputs, *manifest.outputs) if not p.nbytes]:
        raise Unavailable(f"{empty[0]} is empty")

    sizes = manifest.memory()
    # The library runs in another process, which has inputs and outputs of its own.
    needed = sum(sizes.values()) + sizes["inputs"] + sizes["outputs"]
    if needed > (free := memory.free()):
        raise Unavailable(f"that takes {needed:,} bytes of memory, of which {free:,} are free")

    def run(inputs: Inputs) -> list[np.ndarray]:
        if link:
            link(toolchain)
        return emulated(library, manifest, "main", inputs, shapes, **options)[0]

    return run


# --- References -------------------------------------------------------------------------------


class _OnnxReference:
    """ONNX Runtime, and a file that it reads."""

    def __init__(self, path: Path, values: Mapping[str, Any], optimized: bool) -> None:
        try:
            import onnxruntime
        except Exception as error:  # It may be installed for another NumPy.
            raise Unavailable(
                f"onnxruntime cannot be imported ({error}): pip install onnxruntime"
            ) from None
        from .onnx_import import input_values_of

        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._path = path
        self._optimized = optimized
        self._known = input_values_of(path, values)

    def runner(
        self, manifest: NetworkManifest, moved: np.random.Generator | None = None
    ) -> Callable[[Inputs], list[np.ndarray]]:
        """Return the function that the model is, with its weights `moved` if that is given.

        Raises
        ------
        Unavailable
            If ONNX Runtime cannot run it; the function that is returned does so, too.
        """
        source = str(self._path) if moved is None else _moved_onnx(self._path, moved)
        made = self._tried(session, source, optimized=self._optimized)
        names = [port.name for port in manifest.inputs]
        outputs = [port.name for port in manifest.outputs]
        return lambda inputs: self._tried(
            made.run, outputs, {**dict(zip(names, inputs, strict=True)), **self._known}
        )

    def others(
        self, manifest: NetworkManifest, inputs: Inputs
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Yield the names and outputs of what else may be right, of those that run the model."""
        if self._optimized:
            plain = _OnnxReference(self._path, self._known, optimized=False)
            with suppress(Unavailable):
                yield f"{self.name} without optimizations", plain.runner(manifest)(inputs)
        from onnx.reference import ReferenceEvaluator

        feeds = dict(zip([port.name for port in manifest.inputs], inputs, strict=True))
        names = [port.name for port in manifest.outputs]
        with suppress(Exception):  # Of whatever kind: it does not run every model.
            found = ReferenceEvaluator(str(self._path)).run(names, feeds | dict(self._known))
            yield STANDARD, [np.asarray(array) for array in found]

    def _tried(self, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:  # Its kinds of errors have no base of their own.
            said = " ".join(str(error).split())
            raise Unavailable(f"{self.name} cannot run the model: {said[:300]}") from None


class _TorchReference:
    """PyTorch, and a file that it reads."""

    def __init__(self, path: Path) -> None:
        import torch

        self.name = f"torch {torch.__version__}"
        self._path = path

    def runner(
        self, _manifest: NetworkManifest, moved: np.random.Generator | None = None
    ) -> Callable[[Inputs], list[np.ndarray]]:
        """See :meth:`_OnnxReference.runner`."""
        import torch
        from torch.utils import _pytree

        from .torch_import import tensors_only

        with tensors_only():
            module = torch.export.load(self._path).module()
        if moved is not None:
            with torch.no_grad():
                for tensor in (*module.parameters(), *module.buffers()):
                    if tensor.dim() > 1 and tensor.dtype == torch.float32:
                        tensor.copy_(torch.from_numpy(_moved(tensor.numpy(), moved)))

        def run(inputs: Inputs) -> list[np.ndarray]:
            try:
                with torch.no_grad():
                    found = module(*map(torch.from_numpy, inputs))
                return [tensor.numpy() for tensor in _pytree.tree_leaves(found)]
            except Exception as error:  # Of whatever kind.
                raise Unavailable(f"{self.name} cannot run the model: {error}") from None

        return run

    def others(self, _manifest: NetworkManifest, _inputs: Inputs) -> tuple[()]:
        """See :meth:`_OnnxReference.others`: PyTorch says itself what is right."""
        return ()


def _reference(
    model: Any, values: Mapping[str, Any] | None, precision: str
) -> _OnnxReference | _TorchReference:
    if not isinstance(model, str | Path):
        raise Unavailable("there is nothing to compare a Relax module with")
    if Path(model).suffix == ".pt2":
        return _TorchReference(Path(model))
    return _OnnxReference(Path(model), values or {}, optimized=precision == "int8")


def _moved_onnx(path: Path, rng: np.random.Generator) -> bytes:
    """Return an ONNX file with its weights moved."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        # What has one dimension may be no weights, but say how large something is to be.
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            array = _moved(numpy_helper.to_array(tensor), rng)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    try:
        found: bytes = model.SerializeToString()
    except Exception as error:  # Protocol buffers end at 2 GiB.
        raise Unavailable(f"the model is too large to be moved: {error}") from None
    return found


def _moved(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return float32 numbers, each moved by what rounding might have done; others as they are."""
    if array.dtype != np.float32:
        return array
    steps = rng.uniform(-1, 1, array.shape).astype(np.float32)
    return array * (1 + np.float32(_MOVED) * steps)


# --- Comparing --------------------------------------------------------------------------------


def _compared(
    manifest: NetworkManifest,
    reference: _OnnxReference | _TorchReference,
    precision: str,
    run: Callable[[Inputs], list[np.ndarray]],
) -> Check:
    by_reference = reference.runner(manifest)
    inputs, expected = _usable_case(manifest.inputs, by_reference)
    try:
        found = run(inputs)
    except LibraryError as error:
        raise LibraryError(
            f"the library was made, but it cannot be run, and is not kept: {error}. {_ADVICE}"
        ) from None
    for port, array in zip(manifest.outputs, expected, strict=True):
        if (port.shape, port.dtype) != (array.shape, array.dtype.name):
            raise LibraryError(
                f"the library is wrong, and is not kept: its output {port}, where "
                f"{reference.name} returns {array.dtype} of shape {array.shape}. {_ADVICE}"
            )
    tolerance = sqrt(len(manifest.layers)) * _ROUNDED[precision]
    allowed = [tolerance] * len(found)
    notes = _blindness(expected)
    if max(map(relative_error, found, expected)) > tolerance:
        if max(map(relative_error, by_reference(inputs), expected)) > tolerance:
            raise Unavailable(f"{reference.name} returns other numbers at each run of the model")
        moved = _movements(manifest, reference, inputs, expected)
        allowed = [max(tolerance, _MORE * movement) for movement in moved]
        notes.append(f"rounding moves the reference itself by {max(moved):.2g}")
    checked = _worst(reference.name, manifest, found, expected, allowed, notes)
    if checked.error > checked.tolerance:
        note = f"{checked.by} itself differs from that by {checked.error:.2g}"
        for name, outputs in reference.others(manifest, inputs):
            other = _worst(name, manifest, found, outputs, allowed, [note])
            if other.error <= other.tolerance:
                return other
        raise LibraryError(
            f"the library is wrong, and is not kept: its output {checked.output!r} has an error of "
            f"{checked.error:.2g} beside {checked.by} on random input (root mean square, relative "
            f"to the output), expected up to {checked.tolerance:.2g}. {_ADVICE}"
        )
    return checked


def _worst(
    by: str,
    manifest: NetworkManifest,
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    allowed: Sequence[float],
    notes: Sequence[str],
) -> Check:
    errors = list(map(relative_error, found, expected))
    worst = max(range(len(errors)), key=lambda number: errors[number] / allowed[number])
    if allowed[worst] > _LITTLE:
        notes = [*notes, "with such a tolerance the check says little"]
    name = manifest.outputs[worst].name
    return Check(by, name, errors[worst], allowed[worst], "; ".join(notes))


_ADVICE = (
    "That is a fault of tvm-directconv or of TVM, not of yours: please report it with the model. "
    "Other block sizes (--blocking model) or another device may avoid it; --no-check (check=False) "
    "keeps the library"
)


def _usable_case(
    ports: Sequence[Port], by_reference: Callable[[Inputs], list[np.ndarray]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return random inputs, and outputs: the first finite ones, or the first ones that there are.

    Raises
    ------
    Unavailable
        If the reference refuses all inputs.
    """
    cases, refusal = [], None
    for inputs in _draws(ports):
        try:
            case = inputs, by_reference(inputs)
        except Unavailable as error:
            refusal = refusal or error
            continue
        if all(map(_is_finite, case[1])):
            return case
        cases.append(case)
    if not cases:
        assert refusal is not None
        raise refusal
    return cases[0]


def _draws(ports: Sequence[Port]) -> Iterator[list[np.ndarray]]:
    """Yield random inputs: any numbers, and then such as roots and logarithms are defined for.

    Integers may be indices: they are small, and then smaller.
    """
    for only_positive, most in ((False, 3), (True, 1), (True, 0)):
        rng = np.random.default_rng(_SEED)
        yield [drawn(port, rng, only_positive, most) for port in ports]


def drawn(
    port: Port, rng: np.random.Generator, only_positive: bool = False, most: int = 3
) -> np.ndarray:
    """Return random numbers for an input; integers of more than 8 bits go from 0 to the most."""
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f" or dtype.name == "bfloat16":
        found = rng.random(port.shape) if only_positive else rng.standard_normal(port.shape)
        return np.asarray(found, dtype)
    if dtype.kind == "b":
        return np.asarray(rng.random(port.shape) < 0.5)
    if dtype.itemsize == 1:  # Pixels, or numbers that are quantised.
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, port.shape, dtype, endpoint=True))
    return np.asarray(rng.integers(0, most, port.shape, dtype, endpoint=True))


def _movements(
    manifest: NetworkManifest,
    reference: _OnnxReference | _TorchReference,
    inputs: Inputs,
    expected: Sequence[np.ndarray],
) -> list[float]:
    """Return how much outputs of the reference move, at most, when what they depend on is moved."""
    found = []
    for number in range(_TIMES):
        rng = np.random.default_rng([_SEED, number])
        moved = [_moved(array, rng) for array in inputs]
        try:
            outputs = reference.runner(manifest, rng)(moved)
        except Unavailable:
            outputs = reference.runner(manifest)(moved)
        found.append(list(map(relative_error, outputs, expected)))
    return [max(filter(isfinite, errors), default=0.0) for errors in zip(*found, strict=True)]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of differences, over that of what is expected.

    NaN and infinities must be where they are expected: else the error is infinite.
    """
    if found.shape != expected.shape:
        return np.inf
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return np.inf
    difference = np.linalg.norm(found[finite] - expected[finite])
    norm = float(np.linalg.norm(expected[finite]))
    return float(difference) / (norm or 1.0) if isfinite(difference) else np.inf


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())


def _blindness(expected: Sequence[np.ndarray]) -> list[str]:
    """Return what keeps a comparison from seeing much."""
    if not all(map(_is_finite, expected)):
        return ["some of the outputs are not finite"]
    if all(array.size > 1 and (array == array.flat[0]).all() for array in expected):
        return ["each output is one and the same number throughout, so this check says little"]
    return []
