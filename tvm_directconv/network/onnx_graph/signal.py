"""Rules for the Fourier transform: products with constant matrices, as all lengths are known."""

import numpy as np

from .graph import Graph
from .nodes import Node, Refusal, rule


def _waves(rows: int, columns: int, length: int) -> np.ndarray:
    """Return e^(-2 pi i r c / length)."""
    turns = np.outer(np.arange(rows), np.arange(columns)) % length
    return np.exp(-2j * np.pi * turns / length)


def _forward(rows: int, length: int, onesided: bool, parts: int) -> np.ndarray:
    """Return the matrix from a signal to its transform, real and imaginary parts beside each other.

    Parameters
    ----------
    rows : int
        Samples of the signal that are read; beyond them are zeros.
    length : int
        Of the transform.
    onesided : bool
        Whether its second half is left out.
    parts : int
        1 for real signals, 2 for complex ones.
    """
    waves = _waves(rows, length // 2 + 1 if onesided else length, length)
    return _as_real(waves, parts)


def _as_real(waves: np.ndarray, parts: int) -> np.ndarray:
    """Return a complex matrix as one of real and imaginary parts beside each other."""
    rows, columns = waves.shape
    matrix = np.zeros((rows, parts, columns, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = waves.real, waves.imag
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -waves.imag, waves.real
    return matrix.reshape(rows * parts, columns * 2)


def _inverse(rows: int, length: int) -> np.ndarray:
    return _as_real(np.conj(_waves(rows, length, length)) / length, 2)


def _inverse_onesided(rows: int, length: int) -> np.ndarray:
    """Return the matrix from the first half of a transform to the real signal."""
    used = np.arange(rows)
    weight = np.where((used == 0) | (2 * used == length), 1, 2)[:, None]
    waves = weight * np.conj(_waves(rows, length, length)) / length
    matrix = np.stack([waves.real, -waves.imag], axis=1)
    return matrix.reshape(rows * 2, length)


def _transformed(graph: Graph, x: str, axis: int, matrix: np.ndarray, parts: int) -> str:
    """Multiply an axis, and the last one with it, by a matrix; the result has `parts` parts."""
    shape = graph.shape(x)
    others = [at for at in range(len(shape) - 1) if at != axis]
    order = [*others, axis, len(shape) - 1]
    x = graph.emit("Transpose", x, perm=order)
    rows = matrix.shape[0] // shape[-1]
    if rows < shape[axis]:
        ends = graph.constant([rows], np.int64)
        first, at = graph.constant([0], np.int64), graph.constant([len(others)], np.int64)
        x = graph.emit("Slice", x, first, ends, at)
    sizes = [shape[at] for at in others]
    x = graph.emit("Reshape", x, graph.constant([*sizes, matrix.shape[0]], np.int64))
    y = graph.emit("MatMul", x, graph.constant(matrix, graph.dtype(x)))
    y = graph.emit(
        "Reshape", y, graph.constant([*sizes, matrix.shape[1] // parts, parts], np.int64)
    )
    return str(graph.emit("Transpose", y, perm=np.argsort(order).tolist()))


@rule("DFT")
def fourier(graph: Graph, node: Node) -> str:
    """Multiply by the matrix of the transform."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    inverse, onesided = bool(node.get("inverse")), bool(node.get("onesided"))
    at = int(graph.value(node.input(2)).item()) if node.input(2) else -2
    axis = at % len(shape)
    if axis == len(shape) - 1 or shape[-1] not in (1, 2):
        raise Refusal(f"its input has shape {shape}: expected parts of complex numbers last")
    back = inverse and onesided
    length = 2 * (shape[axis] - 1) if back else shape[axis]
    if node.input(1):
        length = int(graph.value(node.input(1)).item())
    if length < 1:
        raise Refusal(f"its length is {length}: expected 1 or more")
    parts = shape[-1]
    if back:
        if parts != 2:
            raise Refusal("it is the inverse of a one-sided transform: expected complex numbers")
        rows = min(shape[axis], length // 2 + 1)
        return _transformed(graph, x, axis, _inverse_onesided(rows, length), 1)
    rows = min(shape[axis], length)
    if inverse:
        matrix = _inverse(rows, length)
        if parts == 1:
            matrix = matrix.reshape(rows, 2, -1)[:, 0]
        return _transformed(graph, x, axis, matrix, 2)
    return _transformed(graph, x, axis, _forward(rows, length, onesided, parts), 2)


@rule("STFT")
def short_time_fourier(graph: Graph, node: Node) -> str:
    """Cut frames, and multiply them by the window and the matrix of the transform."""
    x, step = node.inputs[0], int(graph.value(node.inputs[1]).item())
    shape = graph.shape(x)
    parts = shape[2] if len(shape) == 3 else 1
    window = graph.value(node.input(2)) if node.input(2) else None
    size = shape[1] if window is None else len(window)
    length = int(graph.value(node.input(3)).item()) if node.input(3) else size
    if (window is not None and size != length) or step < 1 or length > shape[1]:
        raise Refusal(f"its frames of {length} samples, its window and its step do not fit")
    frames = 1 + (shape[1] - length) // step
    at = np.arange(frames)[:, None] * step + np.arange(length)
    x = graph.emit("Reshape", x, graph.constant([*shape[:2], parts], np.int64))
    cut = graph.emit("Gather", x, graph.constant(at, np.int64), axis=1)
    matrix = _forward(length, length, bool(node.get("onesided")), parts)
    if window is not None:
        matrix *= np.repeat(window.astype(np.float64), parts)[:, None]
    return _transformed(graph, cut, 2, matrix, 2)
