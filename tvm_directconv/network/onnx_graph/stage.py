"""The way in: a model's graph once every rule is known, and what becomes of it."""

# ruff: noqa: F401  They register what they are for.
from . import (
    accumulation,
    arithmetic,
    control_flow,
    convolution,
    elementwise,
    indexing,
    normalization,
    padding,
    pooling,
    quantization,
    recurrent,
    resize,
    signal,
    upgrades,
    windows,
)
from .convert import failure, to_relax
from .graph import Graph

__all__ = ["Graph", "failure", "to_relax"]
