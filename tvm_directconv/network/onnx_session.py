"""ONNX Runtime, as a reference that computes models operator by operator."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ModelError

_LARGEST = 2**31 - 1
"""Bytes of an ONNX file."""


def session(source: str | bytes, simplified: Path | None = None, optimized: bool = False) -> Any:
    """Return ONNX Runtime's session of a model, on one core each of those that may be used.

    Parameters
    ----------
    source : str or bytes
        The model's file, or what would be in it.
    simplified : Path, optional
        Where the model is written to without what it needs not compute, such as batch norms after
        convolutions. If not given, nothing is left out.
    optimized : bool
        Whether operators are fused, as for users: it computes in whole numbers only then.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    Exception
        Of whatever kind: they have no base of their own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    if simplified:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(simplified)
    options.log_severity_level = 4  # What it has to say comes as exceptions.
    options.enable_cpu_mem_arena = False  # Memory of a single run need not be kept for another.
    # By itself it would bind threads to cores, and have them wait there while we run.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def with_outputs(model: Any, names: Iterable[str]) -> Any:
    """Return a copy of an ONNX model that has these outputs besides its own."""
    copy = type(model)()
    copy.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in own:
            copy.graph.output.add().name = name
    return copy


def serialized(model: Any) -> bytes:
    """Return a model as it is in a file.

    Raises
    ------
    ModelError
        If it is too large for one.
    """
    if model.ByteSize() > _LARGEST:
        raise ModelError(
            f"the model has {model.ByteSize():,} bytes with its weights: expected at most "
            f"{_LARGEST:,}, where ONNX files end"
        )
    found: bytes = model.SerializeToString()
    return found
