"""What people write for convolutions: networks, layers, models, descriptors, files of these."""

from __future__ import annotations

import fnmatch
import glob
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from . import reading
from .descriptor import EXAMPLE, looks_like_descriptor
from .errors import ModelError, WorkloadError, did_you_mean, similar_file
from .network.compile import checked_inputs, network_workloads
from .precision import PRECISIONS
from .workload import ConvWorkload

MODELS = (".onnx", ".pt2")
"""How files of models end: ONNX, and torch.export."""

_MODEL = re.compile(rf"(.+(?:{'|'.join(map(re.escape, MODELS))}))(?::([^,]*))?", re.DOTALL)
_LONGEST = 4096 + 100  # characters of a spec: a path and which layers


def workloads(
    spec: str | Path | ConvWorkload | Sequence[str | Path | ConvWorkload],
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> list[ConvWorkload]:
    """Find the convolutions that a spec asks for.

    Parameters
    ----------
    spec : str, Path, ConvWorkload, or list or tuple of these
        A string holds one or more of these, separated by commas:

        - ``resnet50``: all convolutions of a network (see `networks`);
        - ``vgg16:conv3_*``, ``*:conv1``: the layers that match, ``*`` and ``?`` being wildcards;
        - ``float16_vgg16:conv3_*``: the same in another number type;
        - ``model.onnx``, ``model.pt2``: all convolutions of a model;
        - ``model.onnx:3``, ``model.onnx:[4-6]``: those that match of its convolutions, which are
          called after their place, from 0 on, in the order in which they are computed;
        - ``ic256ih56oc256oh56kh3ph1``: a descriptor, see `ConvWorkload.parse`;
        - ``@my_layers.txt``: a file with one of the above on each line; blank lines, and the rest
          of a line from a ``#`` on, are ignored.

        A path is that of a model. A workload is passed through.
    input_shapes : mapping, optional
        Sizes of inputs that models leave open, by name.
    input_values : mapping, optional
        Values of inputs of models, which are constants then.

    Returns
    -------
    list of ConvWorkload
        In the order asked for. Equal layers that one spec selects from one network become one
        entry: it has the name of the first of them, and counts them. So ``vgg16`` gives conv3_2
        with a count of 2, and ``vgg16:conv3_3`` the same convolution under its own name. What is
        asked for repeatedly, with the same name, comes once, with the largest count.

    Raises
    ------
    WorkloadError
        If the spec is malformed, a file cannot be read, or nothing matches.
    ModelError
        If a model cannot be read, or sizes of inputs are given but no model.
    """
    items = spec if isinstance(spec, (list, tuple)) else [spec]
    inputs = checked_inputs(input_shapes, input_values)
    models: dict[str, list[ConvWorkload]] = {}

    def layers_of_model(path: str) -> list[ConvWorkload]:
        if path not in models:
            models[path] = network_workloads(path, *inputs.values())
        return models[path]

    found: dict[tuple[str, ConvWorkload], ConvWorkload] = {}
    for item in items:
        for workload in _resolve(item, layers_of_model):
            key = (workload.name, workload)
            found[key] = max(found.get(key, workload), workload, key=operator.attrgetter("count"))
    for what, given in inputs.items():
        if given and not models:
            raise ModelError(
                f"a {what} of input {next(iter(given))!r} is given, but no model: expected a file "
                f"ending in {' or '.join(MODELS)}"
            )
    if not items:
        raise WorkloadError(f"no convolution is given; {_expected()}")
    return list(found.values())


def is_model(spec: str) -> bool:
    """Return whether a spec is a model in whole, and not layers of one."""
    return spec.endswith(MODELS)


def networks() -> list[str]:
    """Names of the networks whose layers are known, sorted."""
    return sorted(_networks())


def load_shapes(path: str | Path) -> list[ConvWorkload]:
    """Read a file of shapes: one descriptor on each line, ``#`` starting a comment.

    Parameters
    ----------
    path : str or Path
        The file, in UTF-8.

    Returns
    -------
    list of ConvWorkload
        The different convolutions in the order of the file. Equal ones become one entry that has
        the name of the first and the sum of their counts.

    Raises
    ------
    WorkloadError
        If the file cannot be read, is empty, or has a malformed line, which the message names.
    """
    return _merge(_read(Path(path), _descriptor))


def _resolve(
    item: object, layers_of_model: Callable[[str], list[ConvWorkload]]
) -> list[ConvWorkload]:
    if isinstance(item, ConvWorkload):
        return [item]
    if isinstance(item, Path):
        item = str(item)
    if not isinstance(item, str):
        raise WorkloadError(f"cannot use {item!r} as a convolution; {_expected()}")

    def resolve(spec: str) -> list[ConvWorkload]:
        return _layers_or_descriptor(spec, layers_of_model)

    model = _MODEL.fullmatch(item)
    if model and Path(model[1]).is_file():  # Commas may be in its name.
        return resolve(item)
    found = []
    for spec in (part.strip() for part in item.split(",")):
        if spec.startswith("@"):
            # Files hold no "@": a file that names itself would never end.
            found += _read(Path(spec[1:]), resolve)
        else:
            found += resolve(spec)
    return found


def _layers_or_descriptor(
    spec: str, layers_of_model: Callable[[str], list[ConvWorkload]]
) -> list[ConvWorkload]:
    if len(spec) > _LONGEST:  # For long patterns, looking for what matches would not end.
        raise WorkloadError(
            f"{spec!r} has {len(spec)} characters: expected up to {_LONGEST}; {_expected()}"
        )
    model = _MODEL.fullmatch(spec)
    if model and ('"' not in spec or Path(model[1]).is_file()):
        path, layer = model.groups()
        paths = [path] if Path(path).is_file() else sorted(glob.glob(path)) or [path]
        return _matching({path: layers_of_model(path) for path in paths}, layer)
    # No network is called like a key and its value, and only descriptors have quotes.
    if '"' in spec or (":" not in spec and looks_like_descriptor(spec)):
        return _descriptor(spec)
    if not spec or spec.startswith("@"):
        raise WorkloadError(f"{spec!r} is not a convolution; {_expected()}")

    number, _, layers = spec.partition("_")
    if number in PRECISIONS and layers:
        return [replace(w, dtype=number) for w in _layers_of_networks(layers)]
    return _layers_of_networks(spec)


def _layers_of_networks(spec: str) -> list[ConvWorkload]:
    network, colon, layer = spec.partition(":")
    chosen = [name for name in networks() if fnmatch.fnmatchcase(name, network)]
    if not chosen:
        raise WorkloadError(
            f"unknown network {network!r}; {_expected()}"
            + (did_you_mean(network, networks(), 3) or similar_file(network))
        )
    return _matching({name: _networks()[name] for name in chosen}, layer if colon else None)


def _matching(chosen: dict[str, list[ConvWorkload]], layer: str | None) -> list[ConvWorkload]:
    """Return the layers of networks that match a pattern, all of them if there is none."""
    found: list[ConvWorkload] = []
    for layers in chosen.values():
        found += _merge(w for w in layers if layer is None or fnmatch.fnmatchcase(w.layer, layer))
    names = [w.layer for layers in chosen.values() for w in layers]
    if not names:
        raise WorkloadError(f"there are no convolutions in {', '.join(chosen)}")
    if not found:
        raise WorkloadError(
            f"no layer of {', '.join(chosen)} matches {layer!r}; use a layer's name, {names[0]} to "
            f"{names[-1]}, a pattern such as {names[-1][:-1] + '*'!r}, or '*' for all"
            + did_you_mean(str(layer), names, 3)
        )
    return found


def _descriptor(text: str) -> list[ConvWorkload]:
    return [ConvWorkload.parse(text)]


def _read(path: Traversable, read_line: Callable[[str], list[ConvWorkload]]) -> list[ConvWorkload]:
    """Apply `read_line` to each line of a file that holds more than a comment."""
    try:
        text = reading.text(str(path))
    except reading.Unreadable as error:
        raise WorkloadError(
            f"cannot read the shapes file {str(path)!r}: {error}; give the path of a text file "
            f"with a descriptor such as {EXAMPLE!r} on each line"
        ) from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line := line.partition("#")[0].strip():
            try:
                found += read_line(line)
            except WorkloadError as error:
                raise WorkloadError(f"{path}:{number}: {error}") from None
    if not found:
        raise WorkloadError(
            f"the shapes file {str(path)!r} holds no convolution; write a descriptor such as "
            f"{EXAMPLE!r} on each line"
        )
    return found


def _merge(items: Iterable[ConvWorkload]) -> list[ConvWorkload]:
    """Make one entry of equal convolutions: the name of the first, the sum of the counts."""
    merged: dict[ConvWorkload, ConvWorkload] = {}
    for workload in items:
        first = merged.get(workload)
        merged[workload] = replace(first, count=first.count + workload.count) if first else workload
    return list(merged.values())


@cache
def _networks() -> dict[str, list[ConvWorkload]]:
    """Every layer of every network of the package, equal layers under each of their names."""
    files = resources.files(f"{__package__}.shapes").iterdir()
    return {
        file.name.removesuffix(".txt"): _read(file, _descriptor)
        for file in files
        if file.name.endswith(".txt")
    }


def _expected() -> str:
    return (
        f"expected a network ({', '.join(networks())}), NETWORK:LAYER, a model "
        f"({' or '.join(MODELS)}), MODEL:NUMBER, a descriptor such as {EXAMPLE!r}, or @FILE"
    )
