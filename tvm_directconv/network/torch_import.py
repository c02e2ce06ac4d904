"""PyTorch models, as ``torch.export`` saves them, to Relax."""

from pathlib import Path
from typing import Any

from ..errors import ModelError


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
        if not Path(program).is_file():
            raise ModelError(
                f"model {str(program)!r} does not exist: expected a file of torch.export"
            )
        try:
            program = torch.export.load(program)
        except Exception as error:  # Zip, pickle and version errors, all of their own kinds.
            raise ModelError(
                f"model {str(program)!r} is corrupt or was not written by torch.export.save "
                f"({type(error).__name__}: {error})"
            ) from None
    try:
        return from_exported_program(program, unwrap_unit_return_tuple=True)
    except Exception as error:  # Whatever a converter of TVM's does not expect.
        raise ModelError(f"TVM cannot import the model: {type(error).__name__}: {error}") from error
