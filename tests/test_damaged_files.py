"""Every kind of file that is read, damaged in many ways: an error of one line, or a result."""

import argparse
import contextlib
import functools
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import change_manifest
from hostile import damaged, refusals, rewritten
from onnx_models import Graph, saved
from PIL import Image

import tvm_directconv as dc
from tvm_directconv import logs
from tvm_directconv.bench.report import environment, rows
from tvm_directconv.build import resolve_blocking
from tvm_directconv.cli import _network
from tvm_directconv.deploy.runner import read_report
from tvm_directconv.errors import DirectConvError
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.network.network import NetworkManifest, Port
from tvm_directconv.toolchain import elf_info

LAYER = dc.ConvWorkload.parse("ic8ih4oc8oh4kh1")
LAYOUT = ActivationLayout("NCHW8c")
EVERY = 100  # versions of a file in each way; every kind has passed 3,000

Case = tuple[bytes, Callable[[bytes], object]]


@functools.cache
def exported() -> dc.CompiledConv:
    return dc.build(LAYER, blocking="model")


def placed(path: Path, use: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that puts content into a file, and uses that."""

    def used(content: bytes) -> object:
        path.unlink(missing_ok=True)  # A library that is loaded must not change.
        path.write_bytes(content)
        return use(path)

    return used


def layer_manifest(folder: Path) -> Case:
    path = exported().export(folder / "a.so")
    right = Path(f"{path}.json")
    return right.read_bytes(), placed(right, lambda _: dc.load(path))


def network_manifest(folder: Path) -> Case:
    g = Graph(x=(1, 8, 4, 4))
    path = folder / "a.so"
    dc.compile_network(saved(g.model(g.conv("x", 8, 8, 1, 1)), folder), path, blocking="model")
    right = Path(f"{path}.json")
    return right.read_bytes(), placed(right, lambda _: NetworkManifest.read(path))


def sealed(path: Path, use: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that first makes the digest right that a manifest has of itself."""

    def used(content: bytes) -> object:
        path.write_bytes(content)
        with contextlib.suppress(ValueError, RecursionError, KeyError, AttributeError, TypeError):
            change_manifest(path)
        return use(path)

    return used


def sealed_layer_manifest(folder: Path) -> Case:
    path = exported().export(folder / "a.so")
    right = Path(f"{path}.json")

    def use(_: Path) -> object:
        conv = dc.load(path)
        return conv(*dc.random_tensors(conv.workload, 0))

    return right.read_bytes(), sealed(right, use)


def sealed_network_manifest(folder: Path) -> Case:
    right, _ = network_manifest(folder)

    def use(_: Path) -> object:
        network = dc.load_network(folder / "a.so")
        if sum(port.nbytes for port in network.manifest.inputs) > 2**28:
            raise DirectConvError("more than a test should ask for")
        return network.run(*(np.zeros(port.shape, port.dtype) for port in network.manifest.inputs))

    return right, sealed(folder / "a.so.json", use)


def blocking_file(folder: Path) -> Case:
    right = json.dumps(exported().blocking.to_dict()).encode()
    known = (LAYER, dc.device("native"), 1, LAYOUT)
    return right, placed(folder / "b.json", lambda path: resolve_blocking(path, *known))


def device_file(folder: Path) -> Case:
    devices = Path(logs.__file__).parents[1] / "schedules/devices"
    right = "\n".join((devices / f"{name}.toml").read_text() for name in ("generic", "haswell"))
    lines = [line for line in right.splitlines() if not line.startswith(("#", "abstract"))]
    unique = {line.partition("=")[0]: line for line in lines}

    def use(path: Path) -> object:
        found = dc.device(path)
        return found.target_options(), dc.blocking.choose(LAYER, found, 1, LAYOUT)

    return "\n".join(unique.values()).encode(), placed(folder / "my.toml", use)


def log(folder: Path) -> Case:
    shipped = Path(logs.__file__).parents[1] / "tuning_logs/x86-64-v3.jsonl"
    right = b"".join(shipped.read_bytes().splitlines(keepends=True)[:4])

    def use(path: Path) -> object:
        with warnings.catch_warnings(), logs.use_logs(folder):
            warnings.simplefilter("ignore", logs.LogWarning)
            for record in logs.read(path):
                layout = ActivationLayout(record.input_layout)
                logs.best(record.workload, dc.device("x86-64-v3"), record.threads, layout)
        for line in logs.lines(path):
            assert line.record or (line.problem and "\n" not in line.problem)
        return None

    return right, placed(folder / "x86-64-v3.jsonl", use)


def rows_of_a_report(folder: Path) -> Case:
    row = rows.Row(
        date=rows.now(),
        subject="layer",
        network="net",
        layer="a",
        workload=str(LAYER),
        threads=1,
        contestant="ours",
        library=None,
        implementation=None,
        status="ok",
        reason=None,
        algorithm="direct",
        includes="the call",
        seconds=(1e-6, 2e-6),
        peak_gflops=(100.0, 101.0),
        extra_bytes=0,
        max_error=0.0,
        compile_seconds=1.5,
        blocking="a",
        blocking_source="model",
    )
    right = f"{row.to_line()}\n{row.to_line()}\n".encode()
    return right, placed(folder / "rows.jsonl", rows.read)


def environment_of_a_report(folder: Path) -> Case:
    absent = {"layer": ["not installed"], "network": []}
    runs = [{"date": logs.now(), "threads": [1], "repeats": 3, "cpus": [0], "absent": absent}]
    found = {**environment.here(), "copy_gb_per_s": {"1": 9.5}, "runs": runs}

    def use(path: Path) -> object:
        environment.check(path)
        return environment.absent(path)

    return json.dumps(found).encode(), placed(folder / "environment.json", use)


def report_of_a_run(_: Path) -> Case:
    said = {
        "status": 0,
        "seconds": [1e-6],
        "different": 0,
        "outside": 0,
        "allocations": 1,
        "allocated_bytes": 64,
        "rss_growth_bytes": 0,
        "cpuinfo": "processor: 0",
    }

    def use(content: bytes) -> object:
        found = read_report(0, content.decode("utf-8", "replace"), "", ["seconds", "different"])
        return min(found["seconds"]), found["different"] + 1

    return json.dumps(said).encode(), use


PORTS = (Port("x", (2, 3, 4), "float32"), Port("y", (), "float32"))


def npz(folder: Path) -> Case:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.ones(PORTS[0].shape, np.float32), y=np.float32(3))
    return file.getvalue(), placed(folder / "a", lambda p: _network.read_arrays(str(p), PORTS))


def npy(folder: Path) -> Case:
    file = io.BytesIO()
    np.save(file, np.ones(PORTS[0].shape, np.float32))
    return file.getvalue(), placed(folder / "a", lambda p: _network.read_arrays(str(p), PORTS[:1]))


def image(folder: Path, form: str) -> Case:
    file = io.BytesIO()
    colours = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    Image.fromarray(colours).save(file, form)
    ports = (Port("x", (1, 3, 8, 8), "float32"),)
    path = folder / "a.png"
    args = argparse.Namespace(input=str(path), mean=None, std=None, bgr=False)
    manifest = argparse.Namespace(inputs=ports)

    def use(_: Path) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, about what it can still read.
            return _network._inputs(manifest, args)  # type: ignore[arg-type]

    return file.getvalue(), placed(path, use)


def shapes(folder: Path) -> Case:
    right = f"# layers\n{LAYER}\nvgg16:conv1_1\n\nresnet50:* # all\n".encode()
    return right, placed(folder / "a.txt", lambda path: dc.workloads([f"@{path}"]))


def library(folder: Path) -> Case:
    right = exported().export(folder / "a.so")
    return right.read_bytes(), placed(right, lambda path: (elf_info(path), dc.load(path)))


TEXTS = {
    "manifest of a layer": layer_manifest,
    "manifest of a network": network_manifest,
    "sealed manifest of a layer": sealed_layer_manifest,
    "sealed manifest of a network": sealed_network_manifest,
    "blocking": blocking_file,
    "log": log,
    "rows": rows_of_a_report,
    "environment": environment_of_a_report,
    "report of a run": report_of_a_run,
}
OTHERS = {
    "device": device_file,
    "npz": npz,
    "npy": npy,
    **{form: functools.partial(image, form=form) for form in ("PNG", "JPEG", "BMP", "WEBP")},
    "shapes": shapes,
    "library": library,
}
KINDS: dict[str, Callable[[Path], Case]] = {**TEXTS, **OTHERS}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str, tmp_path: Path, count: int = EVERY) -> None:
    right, use = KINDS[kind](tmp_path)
    use(right)
    refused = refusals(damaged(right, 0, count), use, DirectConvError)
    assert refused or kind == "log"  # whose bad lines are left out, with a warning


@pytest.mark.parametrize("kind", TEXTS)
def test_rewritten(kind: str, tmp_path: Path, count: int = EVERY) -> None:
    right, use = KINDS[kind](tmp_path)
    use(right)
    refused = refusals(rewritten(right, 0, count), use, DirectConvError)
    assert refused or kind == "log"
