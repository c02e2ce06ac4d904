"""PyTorch models, as ``torch.export`` saves them, to Relax."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tvm import relax

from ..errors import ModelError, absence, said_by
from .quantized import wrong_scale

_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""PyTorch's own variables."""


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Have PyTorch unpickle nothing but tensors, where else a file can run what it likes."""
    if _TENSORS in os.environ or _ANYTHING in os.environ:
        yield
        return
    os.environ[_TENSORS] = "1"
    try:
        yield
    finally:
        del os.environ[_TENSORS]


def import_torch(program: str | Path | Any) -> Any:
    """Read a model that ``torch.export.export`` made.

    Parameters
    ----------
    program : str, Path or torch.export.ExportedProgram
        The model, or the file that ``torch.export.save`` wrote.

    Returns
    -------
    tvm.IRModule
        With one function, ``main``; weights are constants in it.

    Raises
    ------
    ModelError
        If PyTorch is not installed, the file cannot be read, or TVM cannot import the model.
    """
    try:
        import torch
    except ImportError:
        raise ModelError(
            "reading models of PyTorch needs the Python package torch: "
            "pip install 'tvm-directconv[torch]'"
        ) from None
    with contextlib.suppress(ImportError):  # It registers the operators of quantised models.
        import torch.ao.quantization.fx._decomposed
    from tvm.relax.frontend.torch import from_exported_program

    if isinstance(program, str | Path):
        if not os.path.isfile(program):
            raise ModelError(
                f"model {str(program)!r} {absence(program)}: expected a file of torch.export"
            )
        try:
            with tensors_only():
                program = torch.export.load(program)
        except Exception as error:  # Zip, pickle and version errors, all of their own kinds.
            # PyTorch says what is wrong first, and where its documentation is last.
            said = str(error).partition("\n")[0]
            raise ModelError(
                f"model {str(program)!r} is corrupt, was not written by torch.export.save, or has "
                f"objects in it that are no tensors ({type(error).__name__}: {said}). For one with "
                f"such objects that you trust like a program, set {_ANYTHING}=1"
            ) from None
    try:
        return from_exported_program(
            program, unwrap_unit_return_tuple=True, custom_convert_map=_QUANTIZED
        )
    except ModelError:
        raise
    except Exception as error:  # Whatever a converter of TVM's does not expect.
        raise ModelError(f"TVM cannot import the model: {said_by(error)}") from error


def _number_type(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _meaning(node: Any, importer: Any, scale: Any, zero_point: Any, dtype: str) -> tuple[Any, Any]:
    """Return what numbers of a type stand for, which PyTorch has as numbers or tensors."""
    if isinstance(scale, float | int):
        scale = relax.const(np.float32(scale))
        if wrong := wrong_scale(scale.value.numpy(), node.name.startswith("quantize")):
            raise ModelError(f"the scale of {node.name} {wrong}")
    if isinstance(zero_point, int):
        return scale, relax.const(np.array(zero_point, dtype))
    return scale, importer.block_builder.emit(relax.op.astype(zero_point, dtype))


def _quantized(node: Any, importer: Any) -> Any:
    """Quantise, and hold numbers to a range, which may be smaller than that of their type."""
    x, scale, zero_point, *axis, least, most, dtype = importer.retrieve_args(node)
    kind = _number_type(dtype)
    meaning = _meaning(node, importer, scale, zero_point, kind)
    found = importer.block_builder.emit(
        relax.op.quantize(x, *meaning, axis[0] if axis else 0, kind)
    )
    info = np.iinfo(kind)
    for limit, own, hold in (
        (least, info.min, relax.op.maximum),
        (most, info.max, relax.op.minimum),
    ):
        if limit != own:
            found = importer.block_builder.emit(hold(found, relax.const(np.array(limit, kind))))
    return found


def _dequantized(node: Any, importer: Any) -> Any:
    x, scale, zero_point, *axis, _least, _most, dtype = importer.retrieve_args(node)
    meaning = _meaning(node, importer, scale, zero_point, _number_type(dtype))
    return importer.block_builder.emit(
        relax.op.dequantize(x, *meaning, axis[0] if axis else 0, "float32")
    )


_QUANTIZED = {
    f"{name}_per_{each}": convert
    for name, convert in (("quantize", _quantized), ("dequantize", _dequantized))
    for each in ("tensor.default", "tensor.tensor", "channel.default")
}
"""Operators of ``quantized_decomposed``, which quantised models of ``torch.export`` have."""
