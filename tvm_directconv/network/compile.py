"""From a model to a library or a folder of C, checked beside another implementation."""

import json
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import files, versions
from .. import manifest as manifests
from ..case import check_threads
from ..denormals import checked_mode
from ..errors import ArgumentError, LibraryError, ModelError, ModelWarning, path_of
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..images import Pixels
from ..kinds import is_whole, shown
from ..manifest import manifest_path
from ..precision import FLOAT32, INT8
from ..workload import ConvWorkload, model_layer_name
from .check import check_library
from .manifest import Check, Layer, Mixed, NetworkManifest
from .samples import Given

_LISTED = 4  # kinds of convolutions that a warning names


def compile_network(
    model: str | Path | Any,
    output: str | Path,
    device: Device | str = "native",
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    blocking: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    emit: str = "library",
    input_values: Mapping[str, Any] | None = None,
    check: bool | None = None,
    denormals: str | None = None,
    dtype: str | None = None,
    keep: Collection[str | int] = (),
    tolerance: float | None = None,
    samples: Given | None = None,
    pixels: Pixels | None = None,
    measuring: Callable[[int, int], None] | None = None,
) -> NetworkManifest:
    """Compile a model to one shared library, with weights in it and a manifest beside it.

    Parameters
    ----------
    model : str, Path or tvm.IRModule
        An ONNX file, a file of ``torch.export`` (.pt2), or a Relax module whose function ``main``
        is the network.
    output : str or Path
        The library, ending in ``.so``; a folder for C, made if need be, after whose name the
        function is called.
    device : Device or str
        For which processor.
    threads : int
        By how many threads it is computed; 1 gives serial code.
    input_shapes : mapping, optional
        Sizes of inputs that the model leaves open, by name.
    blocking : str, optional
        ``model`` for the analytical model's block sizes; if not given, those of tuning logs where
        there are any.
    progress : callable, optional
        Told how many kernels are compiled, and how many there are.
    emit : str
        ``library``, or ``c``: instead of the library, a folder with objects, weights, a header, the
        C runtime, a Makefile and an example. It takes no C compiler to make it.
    input_values : mapping, optional
        Values of inputs by name, which are constants then: such as those that choose a branch.
    check : bool, optional
        Whether the library is run once on random input beside ONNX Runtime (PyTorch for .pt2),
        before it is put in place. If not given, that is done where the reference is installed and
        the code runs here; if True, also in an emulator, and it is an error if it cannot be done.
        What came out, or why nothing did, is in the manifest.
    denormals : str, optional
        ``flush``: numbers below 2^-126 count as zeros, in constants and while the network runs, as
        processors can take a hundred times as long for them; ``keep``: they are computed with. If
        not given, they are flushed where the processor can; RISC-V's cannot.
    dtype : str, optional
        What convolutions and dense layers of float32 are computed in, and tensors between them are
        stored in. ``bf16``: bfloat16, with sums in float32; ``fp16``: float16, with sums in
        float32; ``fp16acc16``: float16, with sums in float16; ``fp32``: float32; ``mixed``: the one
        of 16 bits that the device computes in fastest. If not given, ``fp16`` or ``bf16`` for ONNX
        models with such weights, where the device has instructions for it, else ``fp32``.
    keep : collection of str or int
        Those that stay float32: the name of the ONNX model's node, the place among all of them as
        :func:`tvm_directconv.workloads` counts, or the descriptor of the workload.
    tolerance : float, optional
        How far outputs in 16 bits may be from those in float32: the root mean square of the
        differences over that of the output, on `samples`. Layers that lose most stay float32 until
        it is less; the manifest has them (``mixed``). It takes a run of the network for each layer
        if not all can be in 16 bits.
    samples : str, Path or sequence of mapping, optional
        Inputs to find that with, as for :func:`tvm_directconv.quantize_network`; random ones if not
        given.
    pixels : Pixels, optional
        What becomes of the pixels of images among `samples`, which are 0 to 1 at first.
    measuring : callable, optional
        Told how many variants of the network have run for that, and how many there are at most.

    Returns
    -------
    NetworkManifest
        Written to a file beside the library only.

    Warns
    -----
    ModelWarning
        If there are convolutions or products of matrices that are not ours, but compiled to general
        code, which is much slower.

    Raises
    ------
    ModelError
        If the model cannot be read, or has what cannot be compiled.
    DeviceError, LibraryError, ToolchainError
        If the device is unknown, the output cannot be written, there is no compiler for it, or the
        library is wrong.
    BlockingError
        If `threads` or `blocking` cannot be used.
    ArgumentError
        If `denormals` is none of the two that the device has, or `check` none of the three; if
        `samples` do not fit the model, or no layer can be in 16 bits for `tolerance`.
    """
    versions.check()
    from ..emit.c_folder import check_folder, write_folder
    from ..emit.library import link_network
    from ..emit.program import COPY
    from ..toolchain import find_toolchain
    from .kernels import compile_kernels
    from .planning import conv_attributes_of

    output = path_of(output, "the output", LibraryError)
    check_threads(threads)
    if check is not None and not isinstance(check, bool):
        raise ArgumentError(f"check is {shown(check)}: expected True, False or None")
    if emit not in ("library", "c"):
        raise LibraryError(f"emit is {emit!r}: expected 'library' or 'c'")
    target = find_device(device)
    mode = checked_mode(denormals, target)
    if emit == "c":
        check_folder(output)
    else:
        if output.suffix != ".so":
            raise LibraryError(
                f"cannot write a network to {str(output)!r}: expected a name ending in .so"
            )
        if not os.path.isdir(output.parent):
            raise LibraryError(f"cannot write {str(output)!r}: the folder does not exist")
        toolchain = find_toolchain(target.triple)
    program, precision, lost = plan(
        model,
        target,
        threads,
        blocking,
        input_shapes,
        input_values,
        mode,
        dtype,
        keep,
        tolerance,
        samples,
        pixels,
        measuring,
    )
    objects = compile_kernels(program.kernels, target, threads, progress)
    layers, buffers = [], [0]
    for step in program.steps:
        attributes = (
            None if step.kernel == COPY else conv_attributes_of(program.kernels[step.kernel])
        )
        if attributes is None:
            layers.append(Layer(step.kernel if step.kernel == COPY else objects[step.kernel][0]))
            continue
        workload = attributes.workload
        assert attributes.blocking is not None
        buffers.append(workload.im2col_bytes)
        layers.append(
            Layer(
                objects[step.kernel][0],
                str(workload),
                attributes.epilogue.descriptor,
                attributes.blocking.to_dict(),
                attributes.blocking_source,
            )
        )
    manifest = NetworkManifest(
        device=target.name,
        target=target.target_options(threads),
        threads=threads,
        inputs=tuple(program.inputs),
        outputs=tuple(program.outputs),
        arena_bytes=program.arena_bytes,
        unshared_bytes=program.unshared_bytes,
        weight_bytes=program.weight_bytes,
        im2col_bytes=max(buffers),
        reorders=program.reorders,
        conversions=program.conversions,
        layers=tuple(layers),
        multiply_adds=program.multiply_adds,
        unscheduled=program.unscheduled,
        check=Check(note="that comes next"),
        denormals=mode,
        mixed=lost,
    )
    if manifest.unscheduled:
        warnings.warn(ModelWarning(_said(manifest)), stacklevel=2)
    checking = partial(
        check_library, model=model, values=input_values, precision=precision, asked=check
    )
    if emit == "c":
        with files.explained(output, LibraryError), files.scratch() as scratch:
            made = scratch / "network.so"
            link = partial(link_network, program, objects, made)
            manifest = replace(manifest, check=checking(made, manifest, link=link))
        write_folder(output, program, objects, target.name, target.target_options(threads), threads)
        return manifest
    beside = manifest_path(output)
    with files.explained(output, LibraryError), files.scratch(output.parent) as scratch:
        library, text = scratch / output.name, scratch / beside.name
        link_network(program, objects, library, toolchain)
        del program, objects  # The weights are in the library now.
        manifest = replace(manifest, check=checking(library, manifest))
        found = json.dumps(manifest.to_dict(manifests.digest_of(library)), indent=1) + "\n"
        text.write_text(found, encoding="utf-8")
        files.place({library: output, text: beside})
    return manifest


def _said(manifest: NetworkManifest) -> str:
    """Return what is said of convolutions that are not ours."""
    found = manifest.unscheduled
    listed = "; ".join(map(str, found[:_LISTED]))
    more = f"; and {len(found) - _LISTED} more kinds, all in the manifest" * (len(found) > _LISTED)
    return (
        f"{manifest.unscheduled_share:.1%} of the model's multiply-adds are not computed by direct "
        f"convolutions but by general code, which is many times slower: {listed}{more}"
    )


_SAVED = {
    "ModelProto": "save it first: onnx.save(model, 'model.onnx')",
    "ExportedProgram": "save it first: torch.export.save(model, 'model.pt2')",
}
"""What to do with models in memory, by their type."""


def _is_onnx(model: str | Path | Any) -> bool:
    return isinstance(model, str | Path) and Path(model).suffix != ".pt2"


def plan(
    model: str | Path | Any,
    device: Device,
    threads: int,
    blocking: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
    denormals: str | None = None,
    dtype: str | None = None,
    keep: Collection[str | int] = (),
    tolerance: float | None = None,
    samples: Given | None = None,
    pixels: Pixels | None = None,
    measuring: Callable[[int, int], None] | None = None,
) -> tuple[Any, str, Mixed]:
    """Return the program of a model, the coarsest type that its numbers are rounded to, and why.

    Parameters and errors are those of :func:`compile_network`.
    """
    from .mixed import check_tolerance, mixed
    from .passes.convert_precision import checked_dtype, precision_of
    from .pipeline import planned
    from .quantized import is_quantized
    from .rewriter import coarsest, compiling, types_of

    check_tolerance(tolerance, samples, pixels, dtype)
    dtype = checked_dtype(dtype, device)
    kept = _names(model, keep)

    module = import_model(model, input_shapes, input_values)
    found = Mixed()
    if tolerance is not None:
        assert dtype is not None
        with compiling("the network"):
            more, found = mixed(
                module,
                device,
                threads,
                dtype,
                kept,
                tolerance,
                samples,
                pixels or Pixels(),
                blocking,
                measuring,
            )
        kept += more

    types = {precision_of(module, device, dtype).pixel.name, *types_of(module)}
    rounded = coarsest(types)
    if rounded == FLOAT32.name and is_quantized(module):
        rounded = INT8.name

    def lowered(module: Any) -> Any:
        return planned(module, device, threads, blocking, denormals, dtype, kept)

    try:
        with compiling("the network"):
            return lowered(module), rounded, found
    except ModelError as error:
        if not _is_onnx(model):
            raise
        from .onnx_import import onnx_failure

        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error

        raise onnx_failure(model, input_shapes, input_values, lowered, cause) from cause


def _names(model: str | Path | Any, keep: Collection[str | int]) -> list[str | int]:
    """Return places, and names of convolutions without that of the model before them.

    Raises
    ------
    ArgumentError
        If it is no list of names.
    """
    if isinstance(keep, str) or not all(
        isinstance(name, str) or is_whole(name, 0) for name in keep
    ):
        raise ArgumentError(
            f"keep is {shown(keep)}: expected a list of names or places of convolutions"
        )
    of_model = f"{model}:" if isinstance(model, str | Path) else ""
    return [name.removeprefix(of_model) if isinstance(name, str) else name for name in keep]


def import_model(
    model: str | Path | Any,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> Any:
    """Return a model as a Relax module; see :func:`compile_network`."""
    from tvm import IRModule

    from .rewriter import prepared

    if not isinstance(model, str | Path | IRModule):
        advice = _SAVED.get(type(model).__name__, "save it to a file first")
        raise ModelError(
            f"the model is of type {type(model).__name__}: expected the path of an ONNX file, that "
            f"of a file of torch.export (.pt2), or a tvm.IRModule; {advice}"
        )
    inputs = checked_inputs(input_shapes, input_values)
    if _is_onnx(model):
        from .onnx_import import import_onnx

        module = import_onnx(model, input_shapes, input_values)
    else:
        for what, given in inputs.items():
            if given:
                name = repr(str(model)) if isinstance(model, str | Path) else "the module"
                raise ModelError(
                    f"a {what} of input {next(iter(given))!r} is given, but {name} leaves none "
                    "open: expected none, what is no ONNX model has them fixed"
                )
        if isinstance(model, str | Path):
            from .torch_import import import_torch

            module = import_torch(model)
        else:
            module = model
    return prepared(module)


def checked_inputs(
    input_shapes: Mapping[str, Sequence[int]] | None, input_values: Mapping[str, Any] | None
) -> dict[str, Mapping[str, Any]]:
    """Return what is said of a model's inputs, under ``size`` and ``value``.

    Raises
    ------
    ModelError
        If one is no mapping.
    """
    inputs = {"size": input_shapes or {}, "value": input_values or {}}
    for what, given in inputs.items():
        if not isinstance(given, Mapping):
            raise ModelError(
                f"the {what}s of inputs are {shown(given)}: expected them by the inputs' names"
            )
    return inputs


def network_workloads(
    model: str | Path | Any,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> list[ConvWorkload]:
    """Return the convolutions of a model.

    Parameters
    ----------
    model, input_shapes, input_values
        As for :func:`compile_network`.

    Returns
    -------
    list of ConvWorkload
        All of them, in the order in which they are computed; each is named after the model's file
        and its place, as :func:`tvm_directconv.workloads` finds it.

    Raises
    ------
    ModelError
        If the model cannot be read.
    """
    versions.check()
    from .pipeline import convolutions

    name = model if isinstance(model, str | Path) else "network"
    module = import_model(model, input_shapes, input_values)
    found = convolutions(module)
    return [replace(w, name=model_layer_name(name, number)) for number, w in enumerate(found)]
