"""Every kind of file that is read, damaged in many ways: an error of one line, or a result."""

import argparse
import contextlib
import ctypes
import functools
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import change_manifest
from hostile import damaged, refusals, remodelled, rewritten, spliced
from onnx_models import Graph, saved
from PIL import Image
from quantized_models import QDQ, Quantized

import tvm_directconv as dc
from tvm_directconv import cache
from tvm_directconv.bench.report import environment, rows
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case as ConvCase
from tvm_directconv.cli import _network
from tvm_directconv.deploy.runner import build_cached, read_report
from tvm_directconv.emit.c_source import DEPLOY, write_weights
from tvm_directconv.emit.program import Port
from tvm_directconv.errors import DirectConvError, LogWarning
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.logs import choice, log_file
from tvm_directconv.logs import record as records
from tvm_directconv.network.manifest import NetworkManifest
from tvm_directconv.network.onnx_import import import_onnx
from tvm_directconv.network.samples import Samples
from tvm_directconv.resolution import resolve_blocking
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling
from tvm_directconv.toolchain import elf_info, find_toolchain

LAYER = dc.ConvWorkload.parse("ic8ih4oc8oh4kh1")
LAYOUT = ActivationLayout("NCHW8c")
Case = tuple[bytes, Callable[[bytes], object]]
Way = Callable[[bytes, int, int], Iterator[bytes]]


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
    g = Quantized(QDQ, np.uint8, 1, 8, 4, 4, whole=True)
    path = folder / "a.so"
    model = g.made(g.conv(g.image(), 8, 8, 1, 1))
    dc.compile_network(saved(model, folder), path, blocking="model")
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
        for port in network.manifest.inputs:
            port.quantize(np.zeros(port.shape))
        return network.run(*(np.zeros(port.shape, port.dtype) for port in network.manifest.inputs))

    return right, sealed(folder / "a.so.json", use)


def blocking_file(folder: Path) -> Case:
    right = json.dumps(exported().blocking.to_dict()).encode()
    case = ConvCase.of(LAYER, "native", 1, LAYOUT)
    return right, placed(folder / "b.json", lambda path: resolve_blocking(path, case))


def device_file(folder: Path) -> Case:
    devices = Path(dc.__file__).parents[1] / "schedules/devices"
    generic, haswell = ((devices / f"{name}.toml").read_text() for name in ("generic", "haswell"))
    generic, _, model = generic.partition("[model]")
    lines = [line for line in (generic + haswell).splitlines() if line and line[0] not in "#a"]
    unique = {line.partition("=")[0]: line for line in lines}
    right = "\n".join([*unique.values(), "[model]", model])

    def use(path: Path) -> object:
        found = dc.device(path)
        return found.target_options(), choose(ConvCase.of(LAYER, found, 1, LAYOUT))

    return right.encode(), placed(folder / "my.toml", use)


def log(folder: Path) -> Case:
    shipped = Path(dc.__file__).parents[1] / "tuning_logs/x86-64-v3.jsonl"
    right = b"".join(shipped.read_bytes().splitlines(keepends=True)[:4])

    def use(path: Path) -> object:
        with warnings.catch_warnings(), dc.use_logs(folder):
            warnings.simplefilter("ignore", LogWarning)
            for record in log_file.read(path):
                layout = ActivationLayout(record.input_layout)
                choice.best(
                    ConvCase.of(record.workload, dc.device("x86-64-v3"), record.threads, layout)
                )
        for line in log_file.lines(path):
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
    runs = [{"date": records.now(), "threads": [1], "repeats": 3, "cpus": [0], "absent": absent}]
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


def samples(folder: Path, case: Callable[[Path], Case], ports: Sequence[Port]) -> Case:
    right, _ = case(folder)
    suffix = "npz" if len(ports) > 1 else "npy"

    def use(path: Path) -> object:
        return [*Samples(path, ports, dc.Pixels())]

    return right, placed(folder / f"a.{suffix}", use)


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


def schedule(folder: Path) -> Case:
    right = b"""
from tvm_directconv.schedules.common import split_and_order, start_sums, unroll_tile


def schedule(sch, tiling):
    loops = split_and_order(sch, tiling)
    unroll_tile(sch, tiling, loops, finished=2)
    start_sums(sch, loops)
"""
    tiling = Tiling(ConvCase.of(LAYER, "native", 1, LAYOUT), exported().blocking)
    return right, placed(folder / "s.py", lambda path: scheduled(tiling, path))


def model() -> onnx.ModelProto:
    g = Graph(x=(1, 3, 8, 8))
    y = g.node("Relu", g.batch_norm(g.conv("x", 4, 3, 3, 3, bias=True, pads=[1] * 4), 4))
    y = g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = g.node("Resize", y, "", g.constant([1, 1, 2, 2]), mode="nearest")
    y = g.node("Pad", y, g.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64), mode="reflect")
    a, b = g.node("Split", y, g.constant([1, 3], dtype=np.int64), outputs=2, axis=1)
    y = g.node("Concat", b, a, axis=1)
    size = g.node("Gather", g.node("Shape", y), g.constant([1], dtype=np.int64), axis=0)
    shape = g.node(
        "Concat", g.constant([1], dtype=np.int64), size, g.constant([-1], dtype=np.int64), axis=0
    )
    return g.model(g.node("Softmax", g.node("Reshape", y, shape), axis=2))


def onnx_file(folder: Path) -> Case:
    return model().SerializeToString(), placed(folder / "a.onnx", import_onnx)


def external_data(folder: Path) -> Case:
    path = folder / "a.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="a.data", size_threshold=0)
    right = folder / "a.data"
    return right.read_bytes(), placed(right, lambda _: import_onnx(path))


def onnx_file_with_external_data(folder: Path) -> Case:
    external_data(folder)
    path = folder / "a.onnx"
    return path.read_bytes(), placed(path, import_onnx)


def cached(_: Path) -> Case:
    path, kernel = cache.folder() / "a.o", b"\x7fELF, and what follows"
    cache.store(path, kernel)

    def use(content: bytes) -> None:
        path.write_bytes(content)
        if cache.load(path) != kernel:
            raise DirectConvError("it is compiled again")

    return path.read_bytes(), use


def weights_of_c(folder: Path) -> Case:
    path = folder / "a.weights"
    write_weights([np.arange(48, dtype=np.float32)], path)
    toolchain = find_toolchain(dc.device("native").triple)
    flags = ("-O1", "-shared", "-fPIC")
    sources, headers = [DEPLOY / "directconv.c"], [DEPLOY / "directconv.h", DEPLOY / "network.h"]
    runtime = ctypes.CDLL(str(build_cached("runtime", sources, headers, flags, toolchain)))
    runtime.directconv_error.restype = ctypes.c_char_p

    right = path.read_bytes()

    def use(path: Path) -> None:
        mapped = (ctypes.c_void_p * 2)()
        failed = runtime.directconv_map(mapped, str(path).encode())
        failed = failed or runtime.directconv_check_weights(mapped)
        said = runtime.directconv_error().decode()
        runtime.directconv_unmap(mapped)
        if failed:
            raise DirectConvError(said)
        assert path.read_bytes()[64:] == right[64:]

    return right, placed(path, use)


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
    "samples, npz": functools.partial(samples, case=npz, ports=PORTS),
    "samples, npy": functools.partial(samples, case=npy, ports=PORTS[:1]),
    "npy": npy,
    **{form: functools.partial(image, form=form) for form in ("PNG", "JPEG", "BMP", "WEBP")},
    "shapes": shapes,
    "library": library,
    "schedule": schedule,
    "cached kernel": cached,
    "weights of C": weights_of_c,
    "external data": external_data,
}
MODELS = {"model": onnx_file, "model with external data": onnx_file_with_external_data}
KINDS: dict[str, Callable[[Path], Case]] = {**TEXTS, **OTHERS, **MODELS}


WAYS = {
    damaged: KINDS,
    spliced: (*TEXTS, "device", "shapes", "schedule"),
    rewritten: TEXTS,
    remodelled: MODELS,
}


@pytest.mark.parametrize(
    ("way", "kind"),
    [(way, kind) for way, kinds in WAYS.items() for kind in kinds],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_damaged(way: Way, kind: str, mutations: int, tmp_path: Path) -> None:
    right, use = KINDS[kind](tmp_path)
    use(right)
    refused = refusals(way(right, 0, mutations), use, DirectConvError)
    assert refused or kind == "log"  # whose bad lines are left out, with a warning
