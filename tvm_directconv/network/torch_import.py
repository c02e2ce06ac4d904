"""PyTorch models, as ``torch.export`` saves them, to Relax."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ModelError, absence, said_by

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
        return from_exported_program(program, unwrap_unit_return_tuple=True)
    except Exception as error:  # Whatever a converter of TVM's does not expect.
        raise ModelError(f"TVM cannot import the model: {said_by(error)}") from error
