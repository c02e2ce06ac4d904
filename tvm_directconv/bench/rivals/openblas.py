"""OpenBLAS: matrix products, and im2col before them."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...hardware.lookup import device
from ...layout import aligned_zeros
from ...pool import size_pool
from ...workload import ConvWorkload
from .base import IM2COL, Contestant, Prepared

_ROW_MAJOR, _NO_TRANSPOSE = 101, 111  # CblasRowMajor, CblasNoTrans


@dataclass(frozen=True, kw_only=True)
class Sgemm(Contestant):
    """The matrix product of im2col alone, of a matrix that is ready: the paper's Fig. 1.

    OpenBLAS is the build that SciPy's maintainers keep; it looks for the processor as it is loaded.
    """

    name: str = "OpenBLAS SGEMM alone"
    algorithm: str = IM2COL
    includes: str = "The matrix product only: the matrix that im2col makes is ready."
    colour: str = "#b8b8b8"
    marker: str = "P"

    title: ClassVar = "OpenBLAS"
    packages: ClassVar = {"scipy_openblas32": ", a build of OpenBLAS,"}

    def environment(self, threads: int) -> dict[str, str | None]:
        return {
            # Where they are set, OpenBLAS takes kernels that are not the best for the processor.
            "OPENBLAS_CORETYPE": None,
            "OPENBLAS_L2_SIZE": None,
            # TVM's threads, which copy, get out of the way of those that multiply.
            "TVM_THREAD_POOL_SPIN_COUNT": "0",
        }

    def load_library(self) -> None:
        _library()

    def library(self) -> str:
        return " ".join(_text("get_config").split()[:2])

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        out = aligned_zeros(workload.output_shape)
        matrices = [_matrix(workload) for _ in range(workload.batch * workload.groups)]
        for number, matrix in enumerate(matrices):
            bind_im2col(workload, threads, x, number, matrix)()
        products = _products(workload, weight, matrices, out)

        def call() -> None:
            for product in products:
                product()

        return Prepared(
            call=call,
            output=lambda: out,
            implementation=_text("get_corename"),
            extra_bytes=0,  # The matrix is its input.
        )


@dataclass(frozen=True, kw_only=True)
class Im2colSgemm(Sgemm):
    """The same with im2col before it, compiled, by all threads, of an image and group at a time.

    A convolution that is a matrix product already is not copied.
    """

    name: str = "im2col + OpenBLAS"
    includes: str = (
        "im2col and the matrix product, from plain to plain; 1x1 of stride 1 needs no im2col."
    )
    colour: str = "#7f7f7f"
    marker: str = "s"

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        out = aligned_zeros(workload.output_shape)
        number = workload.batch * workload.groups
        copies: list[Callable[[], object]]
        if workload.is_matrix_product:
            extra = 0
            copies = [lambda: None] * number
            matrices = list(x.reshape(number, workload.group_in, -1))
        else:
            matrix = _matrix(workload)
            extra = matrix.nbytes
            copies = [bind_im2col(workload, threads, x, n, matrix) for n in range(number)]
            matrices = [matrix] * number
        steps = list(zip(copies, _products(workload, weight, matrices, out), strict=True))

        def call() -> None:
            for copy, product in steps:
                copy()
                product()

        return Prepared(
            call=call,
            output=lambda: out,
            implementation=_text("get_corename"),
            extra_bytes=extra,
        )


def _matrix(workload: ConvWorkload) -> np.ndarray:
    rows = workload.group_in * prod(workload.kernel)
    return aligned_zeros((rows, workload.out_height * workload.out_width))


def _products(
    workload: ConvWorkload, weight: np.ndarray, matrices: list[np.ndarray], out: np.ndarray
) -> list[Callable[[], object]]:
    """Return what multiplies the weights of each group with the matrix of each image and group."""
    weights = weight.reshape(workload.groups, workload.group_out, -1)
    results = out.reshape(-1, workload.group_out, workload.out_height * workload.out_width)
    return [
        _product(weights[number % workload.groups], matrix, result)
        for number, (matrix, result) in enumerate(zip(matrices, results, strict=True))
    ]


def _product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Callable[[], object]:
    (rows, depth), columns = a.shape, b.shape[1]
    integers = [ctypes.c_int(size) for size in (rows, columns, depth)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, c)]
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    of_row = [ctypes.c_int(size) for size in (depth, columns, columns)]
    call = partial(
        _library().scipy_cblas_sgemm,
        *(ctypes.c_int(flag) for flag in (_ROW_MAJOR, _NO_TRANSPOSE, _NO_TRANSPOSE)),
        *integers,
        one,
        *(pointers[0], of_row[0], pointers[1], of_row[1]),
        zero,
        *(pointers[2], of_row[2]),
    )

    def product(_kept: tuple[np.ndarray, ...] = (a, b, c)) -> None:
        call()

    return product


@cache
def _library() -> ctypes.CDLL:
    import scipy_openblas32

    folder, name = scipy_openblas32.get_lib_dir(), scipy_openblas32.get_library(fullname=True)
    library = ctypes.CDLL(str(Path(folder) / name))
    library.scipy_cblas_sgemm.restype = None
    return library


def _text(function: str) -> str:
    getter = getattr(_library(), f"scipy_openblas_{function}")
    getter.restype = ctypes.c_char_p
    return str(getter().decode())


def bind_im2col(
    workload: ConvWorkload, threads: int, x: np.ndarray, number: int, matrix: np.ndarray
) -> Callable[[], object]:
    """Return what copies the input of each product of an image and group into a matrix.

    Parameters
    ----------
    workload : ConvWorkload
        The convolution.
    threads : int
        Threads that copy.
    x : numpy.ndarray
        Input, NCHW.
    number : int
        Which image and group, groups counting first.
    matrix : numpy.ndarray
        Where they are copied to: a row for each channel and kernel position, a column for each
        output position. With padding it has zeros.
    """
    import tvm_ffi

    function = _im2col(workload, threads)
    arrays = tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(matrix)
    first = number * workload.group_in
    size_pool(threads)
    return lambda: function(*arrays, first)


@lru_cache(maxsize=1)  # For other places in memory.
def _im2col(workload: ConvWorkload, threads: int) -> Any:
    """Compile im2col: loops without conditions, of which LLVM makes vectors and calls of memset."""
    from tvm import IRModule, tirx
    from tvm.script import tirx as T

    from ...lowering.pipeline import PIPELINE

    w = workload
    images, planes, height, width = w.batch, w.batch * w.in_channels, w.in_height, w.in_width
    kernel_h, kernel_w = w.kernel
    taps, rows = kernel_h * kernel_w, w.group_in * kernel_h * kernel_w
    out_h, out_w = w.out_height, w.out_width
    (stride_h, stride_w), (dilation_h, dilation_w) = w.stride, w.dilation
    top, left, _, _ = w.padding
    channels = w.in_channels

    # Of an axis: outputs [first, behind) see an input that is not padding.
    @T.prim_func(s_tir=True)
    def im2col(
        x: T.Buffer((images, channels, height, width), "float32"),  # type: ignore[valid-type]
        y: T.Buffer((rows, out_h * out_w), "float32"),  # type: ignore[valid-type]
        start: T.int32,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "im2col"})
        source = T.decl_buffer((planes, height, width), "float32", data=x.data)
        matrix = T.decl_buffer((rows, out_h, out_w), "float32", data=y.data)
        for row in T.parallel(rows):
            up: T.let[T.int32] = top - row % taps // kernel_w * dilation_h
            back: T.let[T.int32] = left - row % kernel_w * dilation_w
            bottom: T.let[T.int32] = T.min(out_h, T.max(0, height + up + stride_h - 1) // stride_h)
            right: T.let[T.int32] = T.min(out_w, T.max(0, width + back + stride_w - 1) // stride_w)
            first_row: T.let[T.int32] = T.min(bottom, (T.max(0, up) + stride_h - 1) // stride_h)
            first: T.let[T.int32] = T.min(right, (T.max(0, back) + stride_w - 1) // stride_w)
            for i in range(first_row):
                for j in range(out_w):
                    matrix[row, i, j] = T.float32(0)
            for i in range(first_row, bottom):
                for j in range(first):
                    matrix[row, i, j] = T.float32(0)
                for j in range(first, right):
                    matrix[row, i, j] = source[
                        start + row // taps, i * stride_h - up, j * stride_w - back
                    ]
                for j in range(right, out_w):
                    matrix[row, i, j] = T.float32(0)
            for i in range(bottom, out_h):
                for j in range(out_w):
                    matrix[row, i, j] = T.float32(0)

    target = device("native").target(threads)
    function = im2col.with_attr("target", target)
    module: Any = tirx.build(IRModule({"im2col": function}), target, pipeline=PIPELINE)
    return module["im2col"]
