"""oneDNN through its C interface: it chooses implementation and layouts, and tells which.

PyTorch hides these functions in its library, and where it calls them it settles the layouts itself.
The package onednn-cpu-gomp has them for OpenMP; Intel's newer packages run them through SYCL, which
queues each call. A newer build for OpenMP can be named by an environment variable.
"""

import ctypes
import importlib.metadata
import os
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from ...layout import aligned_zeros
from ...workload import ConvWorkload
from .base import (
    DIRECT,
    IM2COL,
    QUANTIZED,
    Contestant,
    Failed,
    NotHere,
    Prepared,
    quantization_of,
)

LIBRARY = "ONEDNN_LIBRARY"
"""Environment variable with the path of a libdnnl.so.3 of one's own, made for OpenMP."""

_PACKAGE = "onednn-cpu-gomp"
# Of the header dnnl_types.h, version 3.
_CPU = 1
_IN_ORDER = 1
_TYPES = {"float32": 3, "int8": 5, "uint8": 6}
_ANY, _NCHW16C = 1, 78
_INFERENCE = 96
_DIRECT = 1
_STRICT = 0
_USERS_SCRATCHPAD = 1
_IMPLEMENTATION = 8
_SRC_MD, _WEIGHTS_MD, _DST_MD, _SCRATCHPAD_MD = 129, 131, 133, 136
_SRC, _DST, _WEIGHTS, _SCRATCHPAD = 1, 17, 33, 80
_SCALES = 4096
_UNIMPLEMENTED = 3


@dataclass(frozen=True, kw_only=True)
class OneDnn(Contestant):
    """oneDNN's direct convolution.

    Attributes
    ----------
    blocked : bool
        Whether input and output have blocks of 16 channels, as ours have with AVX-512, and not the
        layouts that oneDNN likes best. An image of fewer channels has the layout it likes.
    """

    name: str = "oneDNN"
    algorithm: str = DIRECT
    includes: str = (
        "The convolution alone: input, weights and output are in layouts of its own choice, and "
        "nothing is reordered."
    )
    colour: str = "#1f77b4"
    marker: str = "^"
    blocked: bool = False

    title: ClassVar = "oneDNN"
    install: ClassVar = f"pip install {_PACKAGE}"
    precisions: ClassVar = ("float32", *QUANTIZED)

    def check(self, network: bool) -> None:
        _path()

    def environment(self, threads: int) -> dict[str, str | None]:
        return {"ONEDNN_VERBOSE": None, "DNNL_VERBOSE": None}

    def load_library(self) -> None:
        _library()

    def library(self) -> str:
        version = _library().dnnl_version
        version.restype = ctypes.POINTER(c_int * 3)
        return "oneDNN " + ".".join(map(str, version().contents))

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        w = workload
        out = aligned_zeros(w.output_shape, x.dtype)
        if w.groups > 1:
            weight = weight.reshape(w.groups, w.group_out, *weight.shape[1:])

        def wanted(channels: int) -> int:
            return _NCHW16C if self.blocked and channels >= 16 else _ANY

        top, left, bottom, right = w.padding
        quantized = w.dtype in QUANTIZED
        attributes = _attributes(quantized)
        description = _made(
            "primitive_desc",
            "convolution_forward_primitive_desc_create",
            *(_engine(), c_int(_INFERENCE), c_int(_DIRECT)),
            _tagged(x, wanted(w.in_channels)),
            _tagged(weight, _ANY),
            None,
            _tagged(out, wanted(w.out_channels)),
            _sizes(w.stride),
            _sizes(step - 1 for step in w.dilation),
            _sizes((top, left)),
            _sizes((bottom, right)),
            attributes,
        )
        source = _Memory(_queried(description, _SRC_MD), description)
        weights = _Memory(_queried(description, _WEIGHTS_MD), description)
        result = _Memory(_queried(description, _DST_MD), description)
        scratchpad = _Memory(_queried(description, _SCRATCHPAD_MD), description)
        _reorder(_plain(x), source)
        _reorder(_plain(weight), weights)
        primitive = _made("primitive", "primitive_create", description)
        memories = {_SRC: source, _WEIGHTS: weights, _DST: result, _SCRATCHPAD: scratchpad}
        if quantized:
            scale = np.array([quantization_of(w).output_scale], np.float32)
            memories[_SCALES | _DST] = _plain(scale)
        arguments = _Arguments(memories)
        execute, wait, stream = (
            _library().dnnl_primitive_execute,
            _library().dnnl_stream_wait,
            _stream(),
        )
        count, array = c_int(len(arguments.array)), arguments.array

        def call(_kept: Any = (arguments, description)) -> None:
            if execute(primitive, stream, count, array) or wait(stream):
                raise Failed("oneDNN could not execute the convolution")

        def output() -> np.ndarray:
            _reorder(result, _plain(out))
            return out

        found = c_char_p()
        _call("primitive_desc_query", description, c_int(_IMPLEMENTATION), c_int(0), byref(found))
        implementation = (found.value or b"").decode()
        return Prepared(
            call=call,
            output=output,
            # What it takes where it has nothing better.
            algorithm=IM2COL if "gemm" in implementation.split(":") else DIRECT,
            implementation=implementation,
            extra_bytes=scratchpad.size,
        )


class _Handle(c_void_p):
    """Something of oneDNN's that is destroyed with this."""

    kind = ""

    def __del__(self) -> None:
        if self.kind and self:
            getattr(_library(), f"dnnl_{self.kind}_destroy")(self)


class _Memory:
    """An array in a layout of oneDNN's, which a descriptor says.

    `keeps` is what the descriptor belongs to.
    """

    def __init__(self, descriptor: c_void_p, keeps: Any, array: np.ndarray | None = None) -> None:
        get_size = _library().dnnl_memory_desc_get_size
        get_size.restype = c_size_t
        self.descriptor, self._keeps = descriptor, keeps
        self.size: int = get_size(descriptor)
        self.array = aligned_zeros((self.size,), "uint8") if array is None else array
        self.handle = _made(
            "memory", "memory_create", descriptor, _engine(), c_void_p(self.array.ctypes.data)
        )


class _Argument(ctypes.Structure):
    _fields_: ClassVar = [("number", c_int), ("memory", c_void_p)]


class _Arguments:
    """What a primitive is executed with."""

    def __init__(self, memories: dict[int, _Memory]) -> None:
        self._kept = memories
        self.array = (_Argument * len(memories))(
            *(_Argument(number, memory.handle) for number, memory in memories.items())
        )


def _path() -> str:
    if path := os.environ.get(LIBRARY):
        return path
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise NotHere(
            f"neither is Python package {_PACKAGE} installed, nor does {LIBRARY} name a "
            f"libdnnl.so.3 made for OpenMP; try: pip install {_PACKAGE}"
        ) from None
    return str(next(file.locate() for file in files if file.name == "libdnnl.so.3"))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(_path())


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_library(), f"dnnl_{function}")(*arguments)
    if status:
        why = "it is not implemented" if status == _UNIMPLEMENTED else f"status {status}"
        raise Failed(f"dnnl_{function} failed: {why}")


def _made(kind: str, function: str, *arguments: Any) -> _Handle:
    handle = _Handle()
    _call(function, byref(handle), *arguments)
    handle.kind = kind
    return handle


@cache
def _engine() -> _Handle:
    return _made("", "engine_create", c_int(_CPU), c_size_t(0))


@cache
def _stream() -> _Handle:
    return _made("", "stream_create", _engine(), c_int(_IN_ORDER))


def _attributes(quantized: bool) -> _Handle:
    """Return attributes: no half precision inside, scratch memory from outside, outputs scaled."""
    attributes = _made("primitive_attr", "primitive_attr_create")
    _call("primitive_attr_set_fpmath_mode", attributes, c_int(_STRICT))
    _call("primitive_attr_set_scratchpad_mode", attributes, c_int(_USERS_SCRATCHPAD))
    if quantized:
        _call("primitive_attr_set_scales_mask", attributes, c_int(_DST), c_int(0))
    return attributes


def _sizes(values: Any) -> Any:
    found = [*values]
    return (c_int64 * len(found))(*found)


def _tagged(array: np.ndarray, tag: int) -> _Handle:
    return _made(
        "memory_desc",
        "memory_desc_create_with_tag",
        *(c_int(array.ndim), _sizes(array.shape), _type(array), c_int(tag)),
    )


def _type(array: np.ndarray) -> c_int:
    return c_int(_TYPES[array.dtype.name])


def _plain(array: np.ndarray) -> _Memory:
    strides = [stride // array.itemsize for stride in array.strides]
    descriptor = _made(
        "memory_desc",
        "memory_desc_create_with_strides",
        *(c_int(array.ndim), _sizes(array.shape), _type(array), _sizes(strides)),
    )
    return _Memory(descriptor, None, array)


def _queried(description: _Handle, what: int) -> c_void_p:
    query = _library().dnnl_primitive_desc_query_md
    query.restype = c_void_p
    return c_void_p(query(description, c_int(what), c_int(0)))


def _reorder(source: _Memory, target: _Memory) -> None:
    description = _made(
        "primitive_desc",
        "reorder_primitive_desc_create",
        *(source.descriptor, _engine(), target.descriptor, _engine(), None),
    )
    primitive = _made("primitive", "primitive_create", description)
    arguments = _Arguments({_SRC: source, _DST: target})
    _call("primitive_execute", primitive, _stream(), c_int(2), arguments.array)
    _call("stream_wait", _stream())
